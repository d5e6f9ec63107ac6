"""A run that starts from another one has its outputs for the classes that both have."""

import shutil
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest

import jaxdet
from jaxdet import configs
from jaxdet.errors import InputError
from jaxdet.tasks import sliding_window
from jaxdet.training import checkpoint, run_dir, warm_start
from jaxdet.training.progress import Progress
from jaxdet.training.warm_start import Layout
from tests import tiny
from tests.cli import test_detect


class Lines(Progress):
    """Keeps the lines that are shown."""

    def __init__(self):
        super().__init__(quiet=True)
        self.lines = []

    def line(self, text):
        self.lines.append(text)


def random_tree(shapes, seed):
    draw = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: draw.normal(size=leaf.shape).astype(leaf.dtype), shapes)


@pytest.mark.parametrize("axis, groups, first", [(0, 1, None), (1, 3, None), (1, 2, 1)])
def test_classes_are_matched_by_name_as_an_obvious_loop_does(axis, groups, first):
    classes, before, others = ["c", "new", "a"], ["a", "b", "c", "d"], 2
    sides = {"new": [5, 5], "old": [5, 5]}
    sides["new"][axis] = groups * (others + len(classes))
    sides["old"][axis] = groups * (others + len(before))
    draw = np.random.default_rng(0)
    new, old = (draw.normal(size=shape).astype(np.float32) for shape in sides.values())
    path = "params/head/kernel"
    trees = ({"params": {"head": {"kernel": leaf}}} for leaf in (new, old))
    found, outcomes = warm_start.transfer(
        *trees, {path: Layout(axis, groups, first)}, classes, before
    )
    expected, old = np.moveaxis(new.copy(), axis, 0), np.moveaxis(old, axis, 0)
    for group in range(groups):
        to, of = group * (others + len(classes)), group * (others + len(before))
        entries = [("other", i) for i in range(others)]
        place = others if first is None else first
        own, theirs = ([*entries[:place], *names, *entries[place:]] for names in (classes, before))
        for i, entry in enumerate(own):
            if entry in theirs:
                expected[to + i] = old[of + theirs.index(entry)]
    np.testing.assert_array_equal(
        np.moveaxis(np.asarray(found["params"]["head"]["kernel"]), axis, 0), expected
    )
    assert outcomes == {path: "by class"}


def digits_logits(output):
    return output[..., 1:-4]


NETWORKS = {
    "digits": (tiny.CONFIG, digits_logits),
    "cifar10": (configs.cifar10.Config(), lambda output: output),
    "detect": (
        configs.detect.Config(
            size=(64, 96), neck_channels=8, anchors_per_cell=2, background="class", reg_max=1
        ),
        lambda output: output.classes[..., 1:],
    ),
    "objects": (configs.objects.Config(size=64), lambda output: output[0]),
    "faces": (
        configs.faces.Config(
            model="bottleneck", size=32, channels=(8, 8), blocks=(1, 1), strides=(1, 2)
        ),
        lambda output: output[1],
    ),
}


@pytest.mark.parametrize("system", NETWORKS)
def test_outputs_of_common_classes_are_those_of_the_other_run(system):
    config, logits = NETWORKS[system]
    classes, before = ("x", "b", "a"), ("a", "b", "c", "d")
    with test_detect.small() if system == "detect" else nullcontext():
        nets = {
            len(names): configs.network(system, config, len(names)) for names in (classes, before)
        }
        shapes = {
            n: jax.eval_shape(net.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, "float32"))
            for n, (net, shape) in nets.items()
        }
        first = sliding_window.FIRST_CLASS if system == "digits" else None
        layouts = warm_start.find_layouts(shapes[3], shapes[4], first)
        own, given = (random_tree(shapes[n], n) for n in (3, 4))
        variables, outcomes = warm_start.transfer(own, given, layouts, classes, before)
        image = np.random.default_rng(1).random(nets[3][1], np.float32)
        outputs = {
            n: logits(jax.jit(partial(nets[n][0].apply, train=False))(of, image))
            for n, of in ((3, variables), (4, given))
        }
    assert layouts and {*outcomes.values()} == {"copied", "by class"}
    for name in ("a", "b"):
        np.testing.assert_allclose(
            outputs[3][..., classes.index(name)],
            outputs[4][..., before.index(name)],
            rtol=1e-5,
            atol=1e-5,
        )


def test_variables_that_do_not_fit_keep_their_values():
    own = {
        "params": {
            "a": {"kernel": np.zeros(3, np.float32)},
            "b": {"kernel": np.ones(2, np.float32)},
        }
    }
    given = {
        "params": {"a": {"kernel": np.ones(4, np.float32)}, "c": {"kernel": np.ones(2, np.float32)}}
    }
    found, outcomes = warm_start.transfer(own, given, {}, (), ())
    assert jax.tree.all(jax.tree.map(np.array_equal, found, own))
    assert outcomes == {
        "params/a/kernel": "initial",
        "params/b/kernel": "initial",
        "params/c/kernel": "dropped",
    }


# whole runs


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "first"
    jaxdet.train(tiny.experiment(epochs=1, ema=0.5, eval_first=False), folder)
    return folder


def test_a_run_starts_where_another_ended_and_needs_it_no_more(trained, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(trained, source)
    shown = Lines()
    experiment = tiny.experiment(weights=f"run:{source}", epochs=1)
    jaxdet.train(experiment, tmp_path / "second", show=shown)
    best = run_dir.best_line(run_dir.read_metrics(trained), "right_iou")
    first = run_dir.read_metrics(tmp_path / "second")[0]
    assert best["step"] > first["step"] == 0
    for name in ("accuracy", "iou", "right_iou"):
        assert first["val"][name] == best["val"][name]
    table = "\n".join(shown.lines)
    rows = [line.split() for line in table.split("\n")]
    assert ["dense1", "1", "0", "0", "0"] in rows and ["dense2", "0", "2", "0", "0"] in rows
    assert "classes: 10 kept (0, 1, 2, 3, 4, ...), 0 new, 0 dropped" in table
    shutil.rmtree(source)
    jaxdet.load(tmp_path / "second", experiment=experiment)


def test_variables_are_read_as_they_are_for_a_network(trained):
    step, variables = checkpoint.read_variables(trained)
    run = jaxdet.load(trained, experiment=tiny.experiment())
    assert step == run.step
    assert jax.tree.structure(variables) == jax.tree.structure(run.variables)
    assert jax.tree.all(jax.tree.map(np.array_equal, variables, run.variables))


def test_other_backbones_and_networks_are_refused(trained, monkeypatch):
    whole, fewer = (
        {f"stage1_block{i}": {"kernel": np.ones(2, np.float32)} for i in range(n)} for n in (3, 2)
    )
    start = warm_start.WarmStart(
        partial(warm_start.read_run, str(trained)), tuple("ab"), lambda count: {"params": {}}
    )
    trees = {
        "the run has another backbone .params/features/stage1_block2": (
            {"params": {"features": fewer}},
            {"params": {"features": whole}},
        ),
        "the run has another backbone .params/features/stage1_block2/kernel ": (
            {"params": {"features": whole}},
            {"params": {"features": fewer}},
        ),
        "no variable of that run fits": ({"params": {"a": np.ones(2, np.float32)}}, {"params": {}}),
    }
    for message, (own, given) in trees.items():
        monkeypatch.setattr(checkpoint, "read_variables", lambda folder, given=given: (1, given))
        with pytest.raises(InputError, match=message):
            start(own)


@pytest.mark.parametrize(
    "system, changes, message",
    [
        (
            "digits",
            {"weights": "a.pth"},
            "--weights must be the variables of another run, as run:DIR",
        ),
        ("digits", {"weights": "run:nowhere"}, "nowhere is not a run"),
        ("faces", {"weights": "package:lite0", "model": "bottleneck"}, "can be frozen"),
    ],
)
def test_wrong_sources_are_refused_before_data_are_read(system, changes, message, tmp_path):
    config = replace(configs.config(system)(), **changes)
    with pytest.raises(InputError, match=message):
        jaxdet.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
