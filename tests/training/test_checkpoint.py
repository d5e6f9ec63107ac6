import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdet.errors import InputError
from jaxdet.training import checkpoint, parallel
from jaxdet.types import TrainState


def make_state(fill=1.0, width=3):
    """A small state with all kinds of leaves: random key, bfloat16, optax states, empty dicts."""
    params = {"kernel": jnp.full((2, width), fill), "half": jnp.full(5, fill / 3, jnp.bfloat16)}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    return TrainState(
        step=jnp.int32(7),
        params=params,
        stats={},
        opt_state=optimizer.init(params),
        ema={"params": params, "stats": {}},
        hparams={"weight": jnp.float32(fill)},
        key=jax.random.key(5),
        bookkeeping={"sums": {"loss": jnp.float32(jnp.nan)}, "best": jnp.float32(-jnp.inf)},
    )


def bits(tree):
    """(structure, [(type, shape, bytes) of every leaf]) of a tree."""
    leaves, structure = jax.tree.flatten(tree)
    data = [
        jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        for x in leaves
    ]
    described = [
        (str(x.dtype), x.shape, np.asarray(d).tobytes()) for x, d in zip(leaves, data, strict=True)
    ]
    return structure, described


def fill_of(state):
    return float(state.hparams["weight"])


@pytest.fixture(scope="module")
def pattern(tmp_path_factory):
    """A run with checkpoints 2, the best, and 3, each filled with its step; 1 was pruned."""
    run = tmp_path_factory.mktemp("pattern")
    for step, score in ((1, 0.5), (2, 0.9), (3, 0.7)):
        checkpoint.save(run, step, make_state(float(step)), score=(score, 1.0))
    return run


@pytest.fixture
def run(pattern, tmp_path):
    """A copy of `pattern` that a test may damage."""
    return shutil.copytree(pattern, tmp_path / "run")


def path_of(run, step):
    return run / "checkpoints" / str(step)


def data_file(run, step):
    """The largest file that orbax wrote, which holds the arrays."""
    return max((path_of(run, step) / "state").rglob("d/*"), key=lambda path: path.stat().st_size)


def flip(run, step):
    path = data_file(run, step)
    content = bytearray(path.read_bytes())
    start = len(content) // 2
    content[start : start + 64] = bytes(255 - byte for byte in content[start : start + 64])
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES = {
    "data flipped": flip,
    "data cut": lambda run, step: cut(data_file(run, step)),
    "data deleted": lambda run, step: data_file(run, step).unlink(),
    "file added": lambda run, step: (path_of(run, step) / "state" / "more").write_text("more"),
    "manifest cut": lambda run, step: cut(path_of(run, step) / "manifest.json"),
    "manifest emptied": lambda run, step: (path_of(run, step) / "manifest.json").write_text("{}"),
    "manifest deleted": lambda run, step: (path_of(run, step) / "manifest.json").unlink(),
    "_METADATA cut": lambda run, step: cut(path_of(run, step) / "state" / "_METADATA"),
    "ocdbt cut": lambda run, step: cut(path_of(run, step) / "state" / "manifest.ocdbt"),
}


def test_a_state_is_restored_bit_for_bit_from_its_abstract_shape(tmp_path):
    state = make_state()
    assert checkpoint.save(tmp_path, 7, state) == path_of(tmp_path, 7)
    step, restored = checkpoint.restore(tmp_path, jax.eval_shape(make_state))
    assert step == 7
    assert bits(restored) == bits(state)


def test_the_next_interface_of_orbax_reads_the_folder(run):
    """So that it can take the place of the calls in `checkpoint`, see its four functions."""
    from orbax.checkpoint import v1

    found = v1.load(path_of(run, 3) / "state")
    expected = make_state(3.0)
    assert found["params"].keys() == expected.params.keys()
    for name, array in expected.params.items():
        np.testing.assert_array_equal(found["params"][name], array, strict=True)
    np.testing.assert_array_equal(found["key"], jax.random.key_data(expected.key))
    assert int(found["step"]) == 7


def test_all_calls_of_orbax_are_in_two_functions():
    tree = ast.parse(Path(checkpoint.__file__).read_text())
    used = {
        function.name
        for function in tree.body
        if isinstance(function, ast.FunctionDef)
        and any(isinstance(node, ast.Name) and node.id == "ocp" for node in ast.walk(function))
    }
    assert used == {"_own_process", "_write"}


def test_a_checkpoint_does_not_depend_on_the_number_of_devices(tmp_path):
    state = make_state()
    checkpoint.save(tmp_path, 7, parallel.replicate(state, parallel.local_devices(4)))
    assert bits(checkpoint.restore(tmp_path, state)[1]) == bits(state)


def test_the_two_newest_and_the_best_are_kept(tmp_path):
    scores = (0.5, 0.9, 0.9, 0.9, 0.2, 0.3)
    losses = (1.0, 3.0, 2.0, 2.5, 1.0, 1.0)
    for step, score in enumerate(zip(scores, losses, strict=True)):
        checkpoint.save(tmp_path, step, make_state(), score=score)
    assert checkpoint.steps(tmp_path) == [2, 4, 5]
    assert checkpoint.best(tmp_path) == 2


@pytest.mark.parametrize(
    "history, best",
    [
        ({10: (0.5, 1.0), 20: (0.8, 9.0), 30: (0.7, 0.1)}, 20),  # the highest score
        ({10: (0.8, 0.5), 20: (0.8, 0.3), 30: (0.8, 0.4)}, 20),  # then the lower loss
        ({10: (0.8, 0.3), 20: (0.8, 0.3), 9: (0.8, 0.4)}, 10),  # then the earlier step
        ({10: None, 20: (0.1, 9.0), 30: None}, 20),  # checkpoints without a score are ignored
        ({10: None}, None),
        ({}, None),
    ],
)
def test_best_is_the_highest_score_then_the_lower_loss_then_the_earlier_step(
    tmp_path, history, best
):
    for step, score in history.items():
        checkpoint.save(tmp_path, step, {"x": jnp.zeros(1)}, score=score, keep=9)
    assert checkpoint.best(tmp_path) == best


def test_a_checkpoint_of_the_same_step_is_replaced(run):
    checkpoint.save(run, 3, make_state(33.0), score=(0.95, 1.0))
    assert checkpoint.steps(run) == [2, 3]
    assert fill_of(checkpoint.restore(run, make_state())[1]) == 33
    assert checkpoint.best(run) == 3


@pytest.mark.parametrize("which, step", [("last", 3), ("best", 2), ("2", 2), (3, 3)])
def test_restore_accepts_last_best_or_a_step(run, which, step):
    found, state = checkpoint.restore(run, make_state(), which, warn=pytest.fail)
    assert (found, fill_of(state)) == (step, step)


def test_without_scores_best_is_the_last_checkpoint(tmp_path):
    checkpoint.save(tmp_path, 4, make_state(4.0))
    assert checkpoint.restore(tmp_path, make_state(), "best")[0] == 4


@pytest.mark.parametrize("which", ["7", "-1", "newest", "", "2.0"])
def test_an_unknown_checkpoint_is_refused_with_the_available_steps(run, which):
    with pytest.raises(InputError, match="steps 2, 3 of"):
        checkpoint.restore(run, make_state(), which)


@pytest.mark.parametrize("which, damaged, used", [("last", 3, 2), ("best", 2, 3), ("2", 2, 3)])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damage_is_reported_in_one_line_and_the_newest_undamaged_one_is_used(
    run, damage, which, damaged, used
):
    damage(run, damaged)
    lines = []
    step, state = checkpoint.restore(run, make_state(), which, lines.append)
    assert (step, fill_of(state)) == (used, used)
    (line,) = lines
    assert str(path_of(run, damaged)) in line and "damaged" in line and "\n" not in line


def test_a_run_whose_checkpoints_are_all_damaged_is_refused(run):
    for step in checkpoint.steps(run):
        flip(run, step)
    lines = []
    with pytest.raises(InputError, match="no undamaged checkpoint"):
        checkpoint.restore(run, make_state(), warn=lines.append)
    assert len(lines) == 2


def variables_of(state):
    """The variables that `restore_variables` returns for a state."""
    kept = state.ema or {"params": state.params, "stats": state.stats}
    stats = {"batch_stats": kept["stats"]} if kept["stats"] else {}
    return {"params": kept["params"], **stats}


@pytest.mark.parametrize("ema", [True, False])
@pytest.mark.parametrize("stats", [{}, {"mean": jnp.arange(3.0)}], ids=["none", "stats"])
def test_variables_are_restored_whatever_else_the_checkpoint_holds(tmp_path, ema, stats):
    state = make_state()
    averages = {"params": jax.tree.map(lambda p: p + 1, state.params), "stats": stats}
    state = state.replace(
        stats=stats,
        ema=averages if ema else {},
        opt_state=(),
        hparams={"epoch_steps": jnp.int32(3)},
        bookkeeping={"unknown": jnp.zeros(9)},
    )
    checkpoint.save(tmp_path, 7, state)
    like = jax.eval_shape(lambda: variables_of(state))
    step, variables, epochs = checkpoint.restore_variables(tmp_path, like)
    assert (step, epochs) == (7, 2)
    assert bits(variables) == bits(variables_of(state))


def test_variables_of_another_network_are_refused_by_name(run):
    like = variables_of(make_state(width=4))
    with pytest.raises(InputError, match="does not fit.*params/kernel must be .*4.*, got .*3"):
        checkpoint.restore_variables(run, like)


def test_variables_of_a_damaged_checkpoint_are_those_of_the_newest_undamaged_one(run):
    flip(run, 2)
    lines, like = [], variables_of(make_state())
    step, variables, _ = checkpoint.restore_variables(run, like, "best", lines.append)
    assert step == 3 and float(variables["params"]["kernel"][0, 0]) == 3
    assert len(lines) == 1 and "damaged" in lines[0]


@pytest.mark.parametrize("folders", ["", "checkpoints", "checkpoints/5.partial"])
def test_a_run_without_checkpoints_is_refused(tmp_path, folders):
    (tmp_path / folders).mkdir(parents=True, exist_ok=True)
    assert checkpoint.steps(tmp_path) == []
    with pytest.raises(InputError, match="has no checkpoints; train it first"):
        checkpoint.restore(tmp_path, make_state())


def test_leftovers_of_a_killed_save_are_ignored_and_removed(run):
    leftover = path_of(run, 4).with_suffix(".partial")
    (leftover / "state").mkdir(parents=True)
    (leftover / "state" / "half").write_text("half")
    assert checkpoint.restore(run, make_state(), warn=pytest.fail)[0] == 3
    checkpoint.save(run, 4, make_state(4.0))
    assert fill_of(checkpoint.restore(run, make_state(), warn=pytest.fail)[1]) == 4
    assert not leftover.exists()


def test_leftovers_of_a_killed_save_are_removed_when_saving_another_step(run):
    leftover = path_of(run, 4).with_suffix(".partial")
    leftover.mkdir()
    checkpoint.save(run, 5, make_state())
    assert not leftover.exists()


@pytest.mark.parametrize(
    "params, named",
    [
        ({"kernel": jnp.zeros((2, 4)), "half": jnp.zeros(5, jnp.bfloat16)}, "kernel"),
        ({"kernel": jnp.zeros((2, 3))}, "half"),
        ({"kernel": jnp.zeros((2, 3)), "other": jnp.zeros(5, jnp.bfloat16)}, "other|half"),
        (make_state().params | {"more": jnp.zeros(2)}, "more"),
    ],
    ids=["wider", "fewer", "renamed", "more"],
)
def test_the_state_of_another_network_is_refused_by_name(run, params, named):
    with pytest.raises(InputError, match=f"does not fit.*({named})"):
        checkpoint.restore(run, make_state().replace(params=params))


FULL = """
import json, resource, sys
import jax.numpy as jnp
from jaxdet.training import checkpoint

run = sys.argv[1]
noise = {"x": jnp.sin(jnp.arange(30000.0) ** 2)}  # compiled, and cached, before the disk is full
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
try:
    checkpoint.save(run, 3, noise, score=(1.0, 0.0))
except OSError as error:
    print(json.dumps(str(error)))
"""


def test_a_full_disk_is_an_os_error_of_one_line_and_keeps_earlier_checkpoints(run):
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(run)], capture_output=True, text=True, timeout=120
    )
    message = json.loads(done.stdout)
    assert str(path_of(run, 3)) in message and "File too large" in message and "\n" not in message
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["2", "3"]
    step, state = checkpoint.restore(run, make_state(), "last", pytest.fail)
    assert (step, fill_of(state)) == (3, 3)
