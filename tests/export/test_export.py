"""Files of exported models: what they predict, what they hold, and how damage is reported."""

import zipfile

import numpy as np
import pytest
from PIL import Image

import jaxdet
from jaxdet.errors import ReplayError
from jaxdet.export import package, replay
from jaxdet.types import Classification, Detections, Localization
from tests.cli.test_main import main
from tests.test_golden_runs import SCHEMA2

run_process = replay.run_process  # that is replaced below
SIZES = [(40, 56), (1, 1), (7, 90), (101, 33)]


@pytest.fixture(scope="module")
def run():
    return jaxdet.load(SCHEMA2 / "objects", "last")


@pytest.fixture(scope="module")
def in_process():
    """Replay in this process, which has imported JAX already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay, "run_process", replay.main)
        patch.setattr(replay, "SIZES", SIZES)
        yield


@pytest.fixture(scope="module")
def file(run, in_process, tmp_path_factory):
    return run.export(tmp_path_factory.mktemp("exported") / "model.jaxdet", "stablehlo")


@pytest.fixture
def place(file, tmp_path, monkeypatch):
    """The working folder, with the exported file and an image."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.jaxdet").write_bytes(file.read_bytes())
    Image.fromarray(np.zeros((40, 56, 3), np.uint8)).save("a.png")
    return tmp_path


def pictures(sizes=SIZES):
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (*size, 3), np.uint8) for size in sizes]


def assert_equal_predictions(expected, found):
    for pair in zip(expected, found, strict=True):
        pixels, score = replay.difference(*pair)
        assert pixels < 1e-3 and score < 1e-5


def test_a_file_predicts_as_its_run(run, file):
    model = jaxdet.load_exported(file)
    assert (model.classes, model.system, model.finds_many) == (run.classes, "objects", False)
    assert_equal_predictions(run.predict(pictures()), model.predict(pictures()))
    assert_equal_predictions([run.predict(pictures()[0])], [model.predict(pictures()[0])])


def test_wrong_arguments_of_a_model(file):
    model = jaxdet.load_exported(file)
    assert model.predict([]) == []
    for call, message in (
        (lambda: model.predict(pictures(), batch_size=0), "batch_size must be at least 1"),
        (lambda: model.predict(3), "must be a path, bytes, a PIL image or an array"),
        (lambda: model.embed(pictures()), "embeddings need faces"),
    ):
        with pytest.raises(jaxdet.InputError, match=message):
            call()


def test_a_file_is_loaded_as_the_run(run, file):
    again = jaxdet.load(file)
    assert (again.config, again.step, again.classes) == (run.config, run.step, run.classes)
    expected, found = (one.predict(pictures()[0]) for one in (run, again))
    assert found.score == expected.score and (found.box == expected.box).all()


def test_renew_makes_the_program_again(place, in_process, capsys):
    before = package.read("model.jaxdet")
    assert main("export", "model.jaxdet", "--renew", "new.jaxdet") == 0
    assert "replayed 16 images of noise" in capsys.readouterr().out
    after = package.read("new.jaxdet")
    assert after.description == before.description | {"sha256": after.description["sha256"]}
    assert after.network.config == before.network.config
    assert sorted(path.name for path in place.iterdir()) == ["a.png", "model.jaxdet", "new.jaxdet"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("predict", "model.jaxdet"), "has no data; give images"),
        (("predict", "model.jaxdet", "a.png", "--nms-iou", ".4"), "--nms-iou needs a run"),
        (("predict", "model.jaxdet", "a.png", "--checkpoint", "last"), "--checkpoint needs a run"),
        (("predict", "model.jaxdet", "a.csv"), "must be an image"),
        (("eval", "model.jaxdet"), "--root must name the data"),
        (("export", "model.jaxdet", "out.onnx", "--format", "stablehlo"), "must end in .jaxdet"),
        (("export", "model.jaxdet", "out", "--batch", "2"), "--batch needs --format"),
        (("export", "model.jaxdet", "--format", "stablehlo"), "OUT is missing"),
        (("export", "model.jaxdet", "model.jaxdet", "--format", "stablehlo"), "exists"),
        (
            ("export", "model.jaxdet", "o.jaxdet", "--format", "stablehlo", "--batch", "0"),
            "--batch must be at least 1, got 0",
        ),
        (
            ("export", "model.jaxdet", "o.jaxdet", "--format", "stablehlo", "--nms", "false"),
            "--nms false needs a run of detect",
        ),
        (("export", "a.png", "--renew"), "--renew needs a .jaxdet file"),
        (("export", "none.jaxdet", "--renew"), "none.jaxdet"),
    ],
)
def test_wrong_words_give_one_line(place, capsys, words, said):
    assert main(*words) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert sorted(path.name for path in place.iterdir()) == ["a.png", "model.jaxdet"]


def test_damaged_and_foreign_files_give_one_line(place, capsys):
    content = (place / "model.jaxdet").read_bytes()
    with zipfile.ZipFile("foreign.zip", "w") as other:
        other.writestr("a", "b")
    broken = [content[:-100], content[: len(content) // 2], b"", b"hello", b"PK\x03\x04" + bytes(9)]
    broken += [(place / "foreign.zip").read_bytes(), (place / "a.png").read_bytes()]
    for where in np.linspace(60, len(content) - 2000, 12).astype(int):
        broken.append(content[:where] + bytes([content[where] ^ 255]) + content[where + 1 :])
    for case in broken:
        (place / "bad.jaxdet").write_bytes(case)
        assert main("predict", "bad.jaxdet", "a.png") == 2
        error = capsys.readouterr().err
        assert "bad.jaxdet: " in error and error.count("\n") == 1


def test_a_program_that_jax_cannot_read_names_the_remedy(file, monkeypatch):
    read = package.read(file)
    with pytest.raises(jaxdet.InputError, match=r"model\.jaxdet: JAX .* --renew"):
        package.load_program(read._replace(program=b"other"), "model.jaxdet")


def test_another_model_does_not_pass_the_replay(run, file, in_process):
    images = replay.images_to_replay(pictures())
    expected = run.predict(images)
    assert max(replay.prove(file, images, expected, replay.run_process)) < 1e-3
    moved = [one._replace(box=one.box + 0.03) for one in expected]
    with pytest.raises(ReplayError, match=r"boxes differ by up to 0.03.* \(limit 0.02\)"):
        replay.prove(file, images, moved, replay.run_process)


def test_a_file_that_differs_from_its_run_is_not_kept(place, capsys, monkeypatch):
    monkeypatch.setattr(jaxdet.Run, "_exported", lambda *_: (place / "model.jaxdet").read_bytes())
    monkeypatch.setattr(jaxdet.Run, "predict", lambda *_: [None])

    def prove(path, images, *_, **__):
        assert path.exists() and len(images) == replay.COUNT
        raise ReplayError(f"{path} does not give the predictions of its run")

    monkeypatch.setattr(replay, "prove", prove)
    assert main("export", "model.jaxdet", "new.jaxdet", "--format", "stablehlo") == 1
    error = capsys.readouterr().err
    assert "does not give the predictions" in error and error.count("\n") == 1
    assert sorted(path.name for path in place.iterdir()) == ["a.png", "model.jaxdet"]


@pytest.mark.long
def test_a_process_that_fails_is_reported(tmp_path):
    (tmp_path / "images.npz").write_bytes(b"")
    with pytest.raises(ReplayError, match="none.jaxdet cannot be replayed: EOFError"):
        run_process(["none.jaxdet", str(tmp_path / "images.npz"), "out.npz"])


def test_images_to_replay_are_of_all_kinds():
    made = replay.images_to_replay(pictures())
    sizes = {image.shape[:2] for image in made}
    assert len(made) == replay.COUNT and {*replay.SIZES, SIZES[0]} <= sizes
    gray = [(image == image[..., :1]).all() and image.size > 3 for image in made]
    assert 0 < sum(gray) < replay.COUNT
    assert {image.shape for image in replay.images_to_replay([], (8, 9))} == {(8, 9, 3)}


def detections(scores, shift=0.0, labels=(0, 1)):
    boxes = np.float32([[0, 0, 9, 9], [5, 5, 20, 30]]) + np.float32(shift)
    count = len(scores)
    return Detections(boxes[:count], np.float32(scores), np.int32(labels[:count]))


def test_difference_of_detections():
    one = detections([0.9, 0.5])
    assert replay.difference(one, one) == (0, 0)
    found = replay.difference(one, detections([0.9, 0.4], shift=0.5))
    assert found == pytest.approx((0.5, 0.1), abs=1e-6)
    swapped = Detections(*(column[::-1] for column in one))
    assert replay.difference(one, swapped) == (0, 0)
    assert replay.difference(one, detections([0.9])) == (np.inf, np.inf)
    assert replay.difference(one, detections([0.9]), score_threshold=0.5) == (0, 0)
    other = detections([0.9, 0.5], labels=(0, 2))
    assert replay.difference(one, other) == (np.inf, np.inf)
    assert replay.difference(one, other, max_detections=2) == (0, 0)  # the last ones are equals
    assert replay.difference(detections([]), detections([])) == (0, 0)


def test_difference_of_other_predictions():
    one = Localization(np.int32(1), np.float32(0.5), np.float32([1, 2, 3, 4]))
    assert replay.difference(one, one) == (0, 0)
    assert replay.difference(one, one._replace(label=np.int32(0))) == (np.inf, np.inf)
    a = Classification(np.int32(1), np.float32(0.5), np.float32([0.5, 0.5]))
    b = Classification(np.int32(1), np.float32(0.6), np.float32([0.4, 0.6]))
    assert replay.difference(a, b) == pytest.approx((0, 0.1), abs=1e-6)


@pytest.mark.long
def test_tiles_are_cut_in_the_program(tmp_path, in_process):
    run = jaxdet.load(SCHEMA2 / "detect", "last", tiles="1x2", score_threshold=0.0)
    said = []
    model = jaxdet.load_exported(run.export(tmp_path / "m.jaxdet", "stablehlo", show=said.append))
    assert "scores differ by at most" in said[0]
    assert model.metadata["input"] == run.metadata["input"] != [*run.config.size, 3]


@pytest.mark.long
@pytest.mark.parametrize("system", ["digits", "cifar10", "faces"])
def test_every_system_in_a_process_of_its_own(system, tmp_path, monkeypatch):
    monkeypatch.setattr(replay, "run_process", run_process)
    run = jaxdet.load(SCHEMA2 / system, "last")
    said = []
    path = run.export(tmp_path / "m.jaxdet", "stablehlo", batch=3, show=said.append)
    assert "replayed 16 images" in said[0]
    sizes = [run.metadata["input"][:2]] * 4 if system == "digits" else SIZES
    model = jaxdet.load_exported(path)
    assert_equal_predictions(run.predict(pictures(sizes)), model.predict(pictures(sizes)))
    if system == "faces":
        found = model.embed(pictures())
        np.testing.assert_allclose(found, run.embed(pictures()), rtol=1e-4, atol=1e-5)
