import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax
from jax.extend import core
from jax.sharding import Mesh, PartitionSpec

from jaxdet import configs, flops
from jaxdet.flops.rules import OpCounts
from jaxdet.models.lenet import LeNet
from jaxdet.models.resnet import Bottleneck, ResNet
from jaxdet.models.sliding import NgSlidingNet, multiply_adds
from jaxdet.ops import windows
from jaxdet.profiling import summary
from tests import tiny

MATRIX = jax.ShapeDtypeStruct((3, 3), jnp.float32)
PRODUCT = OpCounts(additions=18, multiplications=27, multiply_adds=27)  # two 3 x 3 matrices


def square(x, *_):
    return x @ x


def twice(x, *_):
    return x @ x @ x


def counted(fn, *args):
    """`FlopReport` of a function of one 3 x 3 matrix, or of the given arguments."""
    return flops.count(fn, *(args or [MATRIX]))


def root_counts(fn, *args):
    """`OpCounts` of a function whose operations are all known, forward and outside any scope."""
    found = counted(fn, *args)
    assert (set(found.by_layer), found.unknown, found.unbounded) == ({("", "forward")}, {}, ())
    return found.sum()


def scan(body, length):
    return lambda x: lax.scan(lambda carry, _: (body(carry), None), x, length=length)[0]


def test_scan_bodies_count_once_per_iteration():
    assert root_counts(scan(square, 7)) == PRODUCT * 7
    assert root_counts(scan(scan(square, 5), 7)) == PRODUCT * 35
    assert root_counts(scan(scan(scan(square, 2), 5), 7)) == PRODUCT * 70
    assert root_counts(scan(square, 0)) == OpCounts()


def test_maps_and_loops_of_known_length_count_as_scans():
    assert root_counts(lambda x: lax.map(lambda row: row * 2, x)) == OpCounts(multiplications=9)
    found = root_counts(lambda x: lax.fori_loop(0, 6, lambda i, x: square(x), x))
    assert found == PRODUCT * 6  # nothing reads the loop counter
    found = root_counts(lambda n: lax.fori_loop(0, 6, lambda i, n: n * i, n), 1)
    assert found == OpCounts(multiplications=6, additions=6)  # the loop counter


def test_while_bodies_count_once_and_are_reported():
    def loop(x):
        with jax.named_scope("search"):
            return lax.while_loop(lambda x: x[0, 0] < 9, square, x)

    found = counted(scan(loop, 5))
    assert found.sum() == (PRODUCT + OpCounts(comparisons=1)) * 5
    assert found.unbounded == ("search",)
    assert counted(square).unbounded == ()


def test_loops_of_unknown_length_are_reported():
    found = counted(lambda n, x: lax.fori_loop(0, n, lambda i, x: square(x), x), 6, MATRIX)
    assert found.unbounded == ("",)
    assert found.sum().multiply_adds == 27


def test_cond_counts_its_most_expensive_branch():
    for branches in ((square, twice), (twice, square)):
        assert root_counts(lambda x, b=branches: lax.cond(True, *b, x)) == PRODUCT * 2
        found = root_counts(lambda x, b=branches: lax.cond(x[0, 0] > 0, *b, x))
        assert found == PRODUCT * 2 + OpCounts(comparisons=1)
    three = [lambda x: x + x, scan(square, 4), twice]
    found = root_counts(lambda i, x: lax.switch(i, three, x), 1, MATRIX)
    assert found.multiply_adds == 4 * 27


@jax.custom_vjp
def custom_square(x):
    return square(x)


custom_square.defvjp(lambda x: (x @ x, x), lambda x, g: (g + g,))


def test_calls_cost_what_their_bodies_cost():
    assert root_counts(jax.jit(square)) == PRODUCT
    assert root_counts(jax.jit(jax.jit(square))) == PRODUCT
    assert root_counts(jax.checkpoint(square)) == PRODUCT
    assert root_counts(custom_square) == PRODUCT
    assert root_counts(jax.nn.relu) == OpCounts(maxima=9)  # a custom_jvp inside a jit
    assert root_counts(jax.vmap(square), jnp.ones((5, 3, 3))) == PRODUCT * 5
    assert root_counts(jax.vmap(scan(square, 4)), jnp.ones((5, 3, 3))) == PRODUCT * 20


def test_pmap_bodies_count_once_per_device():
    each = jnp.ones((4, 3, 3))
    assert root_counts(jax.pmap(square), each) == PRODUCT * 4
    assert root_counts(jax.pmap(scan(square, 2)), each) == PRODUCT * 8
    found = counted(jax.pmap(lambda x: lax.psum(square(x), "i"), axis_name="i"), each)
    assert found.sum() == PRODUCT * 4
    assert list(found.unknown.values()) == [4]  # the all-reduce


@pytest.mark.parametrize("manual, copies", [({"a"}, 2), ({"b"}, 2), ({"a", "b"}, 4)])
def test_shard_map_bodies_count_once_per_device_of_the_manual_axes(manual, copies):
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("a", "b"))
    spec = PartitionSpec(tuple(sorted(manual)))
    sharded = jax.shard_map(square, mesh=mesh, in_specs=spec, out_specs=spec, axis_names=manual)
    assert root_counts(sharded, jnp.ones((3 * copies, 3))) == PRODUCT * copies


def test_replicated_shard_map_bodies_count_once_per_device():
    mesh = Mesh(np.array(jax.devices()[:4]), ("a",))
    spec = PartitionSpec()
    replicated = jax.shard_map(square, mesh=mesh, in_specs=spec, out_specs=spec)
    assert root_counts(replicated) == PRODUCT * 4


def test_primitives_without_a_rule_are_reported_and_not_counted():
    found = counted(scan(lambda x: jnp.fft.fft(x).real + x, 7))
    assert found.unknown == {"fft": 7}
    assert found.sum() == OpCounts(additions=63)
    random = counted(lambda x: jax.random.bits(jax.random.key(0), (3,)))
    assert "random_bits" in random.unknown


def test_dead_code_is_not_counted():
    assert counted(lambda x: (x @ x, x + x)[1]).sum() == OpCounts(additions=9)
    assert counted(scan(lambda x: (x @ x, x + x)[1], 7)).sum() == OpCounts(additions=63)
    printing = counted(lambda x: (jax.debug.print("{}", (x @ x).sum()), x)[1])
    assert printing.sum() == PRODUCT + OpCounts(additions=8)


@pytest.mark.parametrize(
    "wrap",
    [
        jax.jit,
        jax.checkpoint,
        jax.vmap,
        lambda fn: jax.jit(jax.checkpoint(jax.jit(fn))),
        lambda fn: lambda x: lax.map(fn, x),
        lambda fn: lambda x: lax.scan(lambda carry, row: (carry, fn(row)), 0, x)[1],
        lambda fn: lambda x: lax.cond(True, fn, lambda x: (x, x), x),
        jax.pmap,
    ],
)
def test_dead_code_in_bodies_is_not_counted(wrap):
    """Of two outputs only the second is used."""
    fn = wrap(lambda x: (x @ x, x + x))
    found = counted(lambda x: fn(x)[1], jnp.ones((1, 3, 3)))
    assert found.sum() == OpCounts(additions=9)


def test_dead_carries_of_a_scan_are_not_counted():
    def body(carry, _):
        a, b, c = carry
        return (a @ a, b + b, c * b), None  # c depends on b, b and a on themselves only

    found = counted(lambda x: lax.scan(body, (x, x, x), length=4)[0][2])
    assert found.sum() == OpCounts(additions=36, multiplications=36)


def test_what_a_rematerialised_gradient_does_not_need_is_not_counted():
    """The gradient of a product needs its factors, not the product."""
    found = counted(jax.grad(lambda x: jax.checkpoint(square)(x).sum()))
    assert found.sum("backward").multiply_adds == 2 * 27
    assert found.sum("forward") == OpCounts()


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
def test_paths_are_the_same_under_any_transformation(wrap):
    found = counted(wrap(named), jnp.ones((2, 3, 3)))
    assert [path for path, _ in found.by_layer] == ["outer", "outer/inner"]
    assert found.by_layer["outer", "forward"] == PRODUCT * 2
    assert found.by_layer["outer/inner", "forward"] == OpCounts(transcendentals=18)


@pytest.mark.parametrize("wrap", [lambda fn: fn, jax.jit, jax.vmap, lambda fn: scan(fn, 1)])
def test_gradients_count_as_backward(wrap):
    found = counted(jax.value_and_grad(lambda x: wrap(named)(x).sum()), jnp.ones((2, 3, 3)))
    assert found.by_layer["outer", "forward"] == PRODUCT * 2
    assert found.by_layer["outer/inner", "forward"] == OpCounts(
        transcendentals=36
    )  # sine and its derivative, cosine
    backward = found.by_layer["outer", "backward"]
    assert backward.multiply_adds == 2 * 2 * 27
    assert found.by_layer["outer/inner", "backward"] == OpCounts(multiplications=18)
    assert found.sum() == found.sum("forward") + found.sum("backward")


def test_rematerialized_operations_count_as_backward():
    def loss(fn):
        return lambda x: fn(x).sum()

    plain, remat = (counted(jax.value_and_grad(loss(f))) for f in (named, jax.checkpoint(named)))
    assert remat.by_layer["outer", "backward"] == plain.by_layer["outer", "backward"] + PRODUCT
    assert remat.by_layer["outer", "forward"] == PRODUCT
    assert {path for path, _ in remat.by_layer} <= {"", "outer", "outer/inner"}


def test_custom_vjps_cost_what_their_backward_functions_cost():
    found = counted(jax.grad(lambda x: custom_square(x).sum()))
    assert found.sum("backward") == OpCounts(additions=9)


def test_calls_of_a_shared_module_add_up():
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            dense = nn.Dense(3, use_bias=False, name="shared")
            return dense(dense(x))

    params = {"params": {"shared": {"kernel": MATRIX}}}
    found = counted(Twice().apply, params, MATRIX)
    assert found.by_layer == {("Twice/shared", "forward"): PRODUCT * 2}


def test_mac_counts_only_the_multiply_adds_of_products():
    found = flops.count(lambda x: jnp.exp(x @ x) * x, MATRIX, convention="mac")
    assert found.total() == 27
    assert found.sum().total() == 45 + 9 + 9
    assert flops.count(jnp.exp, MATRIX, convention="mac").total() == 0


# By hand: 25 * 3 * 16 per output pixel of conv1, 25 * 16 * 400 + 400 * 400 + 400 * 4 per window.
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
def test_multiply_adds_of_sliding_windows_match_the_closed_form(form, size, expected):
    net = NgSlidingNet(form=form)
    grid = windows.grid(net.chain(), size, size)
    shapes = {
        "sequential": (grid.rows * grid.columns, 14, 14, 3),
        "convolutional": (1, size, size, 3),
    }
    images = jax.ShapeDtypeStruct(shapes[form], jnp.float32)
    variables = jax.eval_shape(net.init, jax.random.key(0), images)
    found = flops.count(net.apply, variables, images, convention="mac").total()
    assert found == multiply_adds(net, size, size) == expected[form]


# XLA counts two operations per tap, one addition more than a sum of products needs, but the bias or
# normalization that follows makes up for it.  It also counts selections and conversions.
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(
    "net, shape",
    [
        (LeNet(), (4, 32, 32, 3)),
        (ResNet(stages=(1, 1), width=8, classes=10), (2, 32, 32, 3)),
        (ResNet(stages=(1, 1), width=8, classes=10, block=Bottleneck), (2, 32, 32, 3)),
        configs.network_of_config("digits", tiny.CONFIG),
    ],
    ids=["lenet", "resnet", "bottlenecks", "digits"],
)
def test_counts_are_within_3_percent_of_xla(net, shape, backward):
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    network = summary.summarize(net, images, backward=backward, padding="valid")
    closed, found = network.jaxpr, network.report
    shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in closed.in_avals]
    xla = jax.jit(core.jaxpr_as_fun(closed)).lower(*shapes).cost_analysis()
    assert (found.unknown, found.unbounded) == ({}, ())
    assert found.total() == pytest.approx(xla["flops"] + xla.get("transcendentals", 0), rel=0.03)
