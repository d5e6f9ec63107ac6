import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax
from jax.extend import core
from jax.sharding import Mesh, PartitionSpec

from jaxdet import flops
from jaxdet.configs import networks
from jaxdet.flops.rules import OpCounts
from jaxdet.models.lenet import LeNet
from jaxdet.models.resnet import Bottleneck, ResNet
from jaxdet.models.sliding import Andrew, multiply_adds
from jaxdet.ops import windows
from jaxdet.profiling import summary
from tests import tiny

MATRIX = jax.ShapeDtypeStruct((3, 3), jnp.float32)
PRODUCT = OpCounts(additions=18, multiplications=27, multiply_adds=27)  # of two matrices 3 x 3


def square(x, *_):
    return x @ x


def twice(x, *_):
    return x @ x @ x


def counted(fn, *args):
    """`Counted` of a function of one matrix, or of these arguments."""
    return flops.count(fn, *(args or [MATRIX]))


def one_row(fn, *args):
    """The `Count` of everything, all of it at the top, forward and known."""
    found = counted(fn, *args)
    assert (set(found.rows), found.unknown, found.unbounded) == ({("", "forward")}, {}, ())
    return found.sum()


def scan(body, length):
    return lambda x: lax.scan(lambda carry, _: (body(carry), None), x, length=length)[0]


def test_a_scan_counts_as_often_as_it_runs():
    assert one_row(scan(square, 7)) == PRODUCT * 7
    assert one_row(scan(scan(square, 5), 7)) == PRODUCT * 35
    assert one_row(scan(scan(scan(square, 2), 5), 7)) == PRODUCT * 70
    assert one_row(scan(square, 0)) == OpCounts()


def test_a_map_and_a_loop_of_known_length_are_scans():
    assert one_row(lambda x: lax.map(lambda row: row * 2, x)) == OpCounts(multiplications=9)
    found = one_row(lambda x: lax.fori_loop(0, 6, lambda i, x: square(x), x))
    assert found == PRODUCT * 6 + OpCounts(additions=6)  # the counter


def test_a_while_loop_counts_once_and_is_told():
    def loop(x):
        with jax.named_scope("search"):
            return lax.while_loop(lambda x: x[0, 0] < 9, square, x)

    found = counted(scan(loop, 5))
    assert found.sum() == (PRODUCT + OpCounts(comparisons=1)) * 5
    assert found.unbounded == ("search",)
    assert counted(square).unbounded == ()


def test_a_loop_of_unknown_length_is_told():
    found = counted(lambda n, x: lax.fori_loop(0, n, lambda i, x: square(x), x), 6, MATRIX)
    assert found.unbounded == ("",)
    assert found.sum().multiply_adds == 27


def test_a_branch_counts_as_the_larger():
    for branches in ((square, twice), (twice, square)):
        assert one_row(lambda x, b=branches: lax.cond(True, *b, x)) == PRODUCT * 2
        found = one_row(lambda x, b=branches: lax.cond(x[0, 0] > 0, *b, x))
        assert found == PRODUCT * 2 + OpCounts(comparisons=1)
    three = [lambda x: x + x, scan(square, 4), twice]
    found = one_row(lambda i, x: lax.switch(i, three, x), 1, MATRIX)
    assert found.multiply_adds == 4 * 27


@jax.custom_vjp
def own(x):
    return square(x)


own.defvjp(lambda x: (x @ x, x), lambda x, g: (g + g,))


def test_calls_count_as_their_bodies():
    assert one_row(jax.jit(square)) == PRODUCT
    assert one_row(jax.jit(jax.jit(square))) == PRODUCT
    assert one_row(jax.checkpoint(square)) == PRODUCT
    assert one_row(own) == PRODUCT
    assert one_row(jax.nn.relu) == OpCounts(maxima=9)  # a custom_jvp within a jit
    assert one_row(jax.vmap(square), jnp.ones((5, 3, 3))) == PRODUCT * 5
    assert one_row(jax.vmap(scan(square, 4)), jnp.ones((5, 3, 3))) == PRODUCT * 20


def test_devices_count_each():
    each = jnp.ones((4, 3, 3))
    assert one_row(jax.pmap(square), each) == PRODUCT * 4
    assert one_row(jax.pmap(scan(square, 2)), each) == PRODUCT * 8
    found = counted(jax.pmap(lambda x: lax.psum(square(x), "i"), axis_name="i"), each)
    assert found.sum() == PRODUCT * 4
    assert list(found.unknown.values()) == [4]  # what devices tell each other


@pytest.mark.parametrize("manual, copies", [({"a"}, 2), ({"b"}, 2), ({"a", "b"}, 4)])
def test_a_body_runs_once_on_each_device_of_the_axes_it_is_cut_along(manual, copies):
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("a", "b"))
    spec = PartitionSpec(tuple(sorted(manual)))
    cut = jax.shard_map(square, mesh=mesh, in_specs=spec, out_specs=spec, axis_names=manual)
    assert one_row(cut, jnp.ones((3 * copies, 3))) == PRODUCT * copies


def test_a_body_runs_on_the_devices_that_do_the_same_too():
    mesh = Mesh(np.array(jax.devices()[:4]), ("a",))
    spec = PartitionSpec()
    same = jax.shard_map(square, mesh=mesh, in_specs=spec, out_specs=spec)
    assert one_row(same) == PRODUCT * 4


def test_what_has_no_rule_is_told_and_not_counted():
    found = counted(scan(lambda x: jnp.fft.fft(x).real + x, 7))
    assert found.unknown == {"fft": 7}
    assert found.sum() == OpCounts(additions=63)
    draw = counted(lambda x: jax.random.bits(jax.random.key(0), (3,)))
    assert "random_bits" in draw.unknown


def test_dead_code_is_not_counted():
    assert counted(lambda x: (x @ x, x + x)[1]).sum() == OpCounts(additions=9)
    assert counted(scan(lambda x: (x @ x, x + x)[1], 7)).sum() == OpCounts(additions=63)
    shouted = counted(lambda x: (jax.debug.print("{}", (x @ x).sum()), x)[1])
    assert shouted.sum() == PRODUCT + OpCounts(additions=8)


def named(x):
    with jax.named_scope("outer"):
        y = x @ x
        with jax.named_scope("inner"):
            return jnp.sin(y)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda fn: fn,
        jax.jit,
        jax.checkpoint,
        jax.vmap,
        lambda fn: jax.jit(jax.vmap(jax.jit(fn))),
        lambda fn: scan(fn, 1),
        lambda fn: lambda x: lax.cond(True, fn, lambda x: x, x),
        lambda fn: lambda x: jax.jvp(fn, [x], [x])[0],
    ],
)
def test_paths_go_through_any_wrapping(wrap):
    found = counted(wrap(named), jnp.ones((2, 3, 3)))
    assert [path for path, _ in found.rows] == ["outer", "outer/inner"]
    assert found.rows["outer", "forward"] == PRODUCT * 2
    assert found.rows["outer/inner", "forward"] == OpCounts(transcendentals=18)


@pytest.mark.parametrize("wrap", [lambda fn: fn, jax.jit, jax.vmap, lambda fn: scan(fn, 1)])
def test_gradients_are_told_apart(wrap):
    found = counted(jax.value_and_grad(lambda x: wrap(named)(x).sum()), jnp.ones((2, 3, 3)))
    assert found.rows["outer", "forward"] == PRODUCT * 2
    assert found.rows["outer/inner", "forward"] == OpCounts(transcendentals=36)  # sine and cosine
    both = found.rows["outer", "backward"]
    assert both.multiply_adds == 2 * 2 * 27
    assert found.rows["outer/inner", "backward"] == OpCounts(multiplications=18)
    assert found.sum() == found.sum("forward") + found.sum("backward")


def test_what_is_computed_again_books_as_backward():
    def loss(fn):
        return lambda x: fn(x).sum()

    plain, again = (counted(jax.value_and_grad(loss(f))) for f in (named, jax.checkpoint(named)))
    assert again.rows["outer", "backward"] == plain.rows["outer", "backward"] + PRODUCT
    assert again.rows["outer", "forward"] == PRODUCT
    assert {path for path, _ in again.rows} <= {"", "outer", "outer/inner"}


def test_the_gradient_of_a_custom_vjp_is_its_own():
    found = counted(jax.grad(lambda x: own(x).sum()))
    assert found.sum("backward") == OpCounts(additions=9)


def test_modules_are_paths_and_repeats_of_one_add_up():
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            dense = nn.Dense(3, use_bias=False, name="shared")
            return dense(dense(x))

    params = {"params": {"shared": {"kernel": MATRIX}}}
    found = counted(Twice().apply, params, MATRIX)
    assert found.rows == {("Twice/shared", "forward"): PRODUCT * 2}


def test_conventions():
    found = flops.count(lambda x: jnp.exp(x @ x) * x, MATRIX, convention="mac")
    assert found.total() == 27
    assert found.sum().total() == 45 + 9 + 9
    assert flops.count(jnp.exp, MATRIX, convention="mac").total() == 0


# 25 * 3 * 16 a pixel of conv1, 25 * 16 * 400 + 400 * 400 + 400 * 4 a window: worked out by hand.
@pytest.mark.parametrize("form", ["sequential", "convolutional"])
@pytest.mark.parametrize(
    "size, expected",
    [
        (14, {"sequential": 441_600, "convolutional": 441_600}),
        (16, {"sequential": 1_766_400, "convolutional": 1_459_200}),
        (28, {"sequential": 28_262_400, "convolutional": 21_273_600}),
        (720, {"sequential": 55_339_545_600, "convolutional": 40_916_812_800}),
        (1080, {"sequential": 125_924_889_600, "convolutional": 93_095_500_800}),
    ],
)
def test_multiply_adds_of_andrew(form, size, expected):
    net = Andrew(form=form)
    grid = windows.grid(net.chain(), size, size)
    shapes = {
        "sequential": (grid.rows * grid.columns, 14, 14, 3),
        "convolutional": (1, size, size, 3),
    }
    images = jax.ShapeDtypeStruct(shapes[form], jnp.float32)
    variables = jax.eval_shape(net.init, jax.random.key(0), images)
    found = flops.count(net.apply, variables, images, convention="mac").total()
    assert found == multiply_adds(net, size, size) == expected[form]


# XLA counts 2 a tap, with which the bias or the norm makes up for the addition that a sum of
# products saves; it also counts what selects and converts.
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(
    "net, shape",
    [
        (LeNet(), (4, 32, 32, 3)),
        (ResNet(stages=(1, 1), width=8, classes=10), (2, 32, 32, 3)),
        (ResNet(stages=(1, 1), width=8, classes=10, block=Bottleneck), (2, 32, 32, 3)),
        networks.of_config("digits", tiny.CONFIG),
    ],
    ids=["lenet", "resnet", "bottlenecks", "digits"],
)
def test_xla_counts_nearly_the_same(net, shape, backward):
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    network = summary.summarize(net, images, backward=backward, padding="valid")
    closed, found = network.closed, network.counted
    shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in closed.in_avals]
    xla = jax.jit(core.jaxpr_as_fun(closed)).lower(*shapes).cost_analysis()
    assert (found.unknown, found.unbounded) == ({}, ())
    assert found.total() == pytest.approx(xla["flops"] + xla.get("transcendentals", 0), rel=0.03)
