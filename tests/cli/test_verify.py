"""`jaxdet verify` on a small run of faces: identities are colors."""

import csv
import json
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

from jaxdet import api, migrations
from jaxdet.cli import flags, verify
from jaxdet.cli import verify_options as options
from jaxdet.data import images, verification_protocol
from jaxdet.errors import InputError
from jaxdet.metrics import verification as verification_metrics
from jaxdet.models import resnet
from jaxdet.models.layers import Freezable
from jaxdet.training import run_dir
from tests.cli.test_compare import cells, printed
from tests.cli.test_main import PNG, main, parse_aligned

WORDS = [
    *(
        "--size",
        "32",
        "--width-multiplier",
        "0.1",
        "--embedding-dim",
        "8",
        "--epochs",
        "1",
        "--batch",
        "4",
    ),
    *("--eval-batch", "4", "--devices", "1", "--warmup", "0", "--test-fraction", "0", "--quiet"),
    *("--embedding-loss", "center"),
]
TRAINED = {"n1": (220, 40, 40), "n2": (40, 200, 60)}
KNOWN = {"n1": (220, 40, 40), "n3": (50, 60, 230), "n4": (230, 220, 40)}
UNKNOWN = ["n3", "n000000", "n1", "n4", "n1", "n000000", "n3"]
UNKNOWN_COLOR = (10, 10, 10)
RUN = Path("run")


class Features(Freezable):
    """One convolution: a backbone that compiles fast."""

    classes: int = 0
    width: int = 8

    @nn.compact
    def __call__(self, x, train=False):
        return self.conv_norm_act(x, 8, 7, "stem", stride=8, train=train)


def face(path, color, seed):
    """A noisy image of a color."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).normal(0, 12, (20, 16, 3))
    Image.fromarray(np.clip(color + noise, 0, 255).astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with training images, gallery, probes, and a run."""
    root = tmp_path_factory.mktemp("verify")
    for folder, identities, count in (("train", TRAINED, 6), ("known", KNOWN, 2)):
        for number, (name, color) in enumerate(identities.items()):
            for i in range(count):
                face(root / folder / name / f"{name}_{i + 1:04d}.png", color, 10 * number + i)
    for i, name in enumerate(UNKNOWN):
        face(root / "unknown" / f"{i}.png", KNOWN.get(name, UNKNOWN_COLOR), 100 + i)
    (root / "truth.csv").write_text("label\n" + "\n".join(UNKNOWN) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resnet, "ResNet18", Features)
        words = ["--root", root / "train", *WORDS, "--out", root / "run"]
        assert main("train", "faces", *words) == 0
    return root


@pytest.fixture
def place(trained, tmp_path, monkeypatch):
    """The folder as working folder, without the training images."""
    monkeypatch.setattr(resnet, "ResNet18", Features)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    shutil.rmtree("train")
    return tmp_path


FOLDERS = {"run": RUN, "known": Path("known"), "unknown": Path("unknown")}
DEV = options.Dev(**FOLDERS, truth=Path("truth.csv"), json=True)
TEST = options.Test(**FOLDERS, json=True)
PAIR = options.Pair(run=RUN, images=(Path("unknown/0.png"), Path("unknown/6.png")), json=True)
PAIRS = options.Pairs(run=RUN, pairs=Path("pairs.txt"), root=Path("known"), json=True)
PROBE = options.Probe(run=RUN, folder=Path("known"), json=True)
LIST = "2 1\nn1 1 2\nn1 1 n3 1\nn3 1 2\nn4 1 n3 2\n"


@pytest.fixture
def scores_of(place, capsys):
    """The last line that a command prints, as JSON."""

    def scores_of(command, chosen, **changes):
        capsys.readouterr()
        assert command(replace(chosen, **changes)) == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return scores_of


def refused(message, command, chosen, **changes):
    with pytest.raises(InputError, match=message) as error:
        command(replace(chosen, **changes))
    assert "\n" not in str(error.value)


def embed(paths, checkpoint="best"):
    return verify.Embedder(api.load(RUN, checkpoint), {}).embed(paths)


@cache
def similarities():
    """(cosines [N, M] of probes and gallery images in NumPy, identity [M] of the latter).

    Those of one test are those of all, which have copies of the same run and images.
    """
    gallery, run = images.list_images("known"), api.load(RUN)
    found = [np.asarray(run.embed(path), np.float64) for path in (*probe_paths(), *gallery)]
    found = np.array([x / np.linalg.norm(x) for x in found])
    return found[: len(UNKNOWN)] @ found[len(UNKNOWN) :].T, [path.parent.name for path in gallery]


def probe_paths():
    return verification_protocol.list_probes("unknown")


def identified(reduce, threshold):
    """(label, score) of each probe, by loops."""
    table, owners = similarities()
    found = []
    for row in table:
        scores = {
            name: reduce([s for s, owner in zip(row, owners, strict=True) if owner == name])
            for name in KNOWN
        }
        name = max(scores, key=scores.get)
        found.append((name if scores[name] >= threshold else "n000000", scores[name]))
    return found


def held_out_decisions(reduce):
    """Whether each of the 7 probes is judged rightly at the best threshold of the 6 others."""
    found = identified(reduce, -1)
    right = []
    for i, (name, score) in enumerate(found):
        others = [j for j in range(7) if j != i]
        scores = np.array([found[j][1] for j in others])
        accept = np.array([found[j][0] == UNKNOWN[j] for j in others])
        reject = np.array([UNKNOWN[j] == "n000000" for j in others])
        threshold, _ = verification_metrics.best_threshold(scores, accept, reject=reject)
        right.append((name if score >= threshold else "n000000") == UNKNOWN[i])
    return right


# embeddings


def test_embeddings_are_those_of_the_run_with_its_data(trained, place):
    paths = probe_paths()
    run = api.load(RUN, "last")
    experiment = run.with_data(root=str(trained / "train"))
    assert list(run.classes) == list(TRAINED) == experiment.metadata["classes"]
    batch = np.stack([experiment.read_image(path)[0] for path in paths])
    expected = experiment.task.predict(run.variables, batch)["embedding"]
    np.testing.assert_allclose(embed(paths, "last"), expected, rtol=1e-4, atol=1e-5)


def test_embeddings_do_not_depend_on_the_batch(place):
    paths = probe_paths()
    found = embed(paths)  # 7 in batches of 4
    assert found.shape == (7, 8)
    for i in (0, 5):
        np.testing.assert_allclose(found[i : i + 1], embed(paths[i : i + 1]), rtol=1e-4, atol=1e-5)


def test_a_run_of_an_earlier_version_gives_the_same_embeddings(place):
    """Its config.json does not describe a record of the data."""
    before = embed(probe_paths())
    path = RUN / "config.json"
    content = json.loads(path.read_text())
    metadata = content.pop("metadata")
    record = metadata.pop("record")
    former = {new: old for old, new in migrations.OPTIONS["faces"].items()}
    config = {former.get(name, name): value for name, value in content["config"].items()}
    content |= {"schema": 1, "config": config, "about": metadata}
    path.write_text(json.dumps(content))
    assert run_dir.read_metadata(RUN)["record"] == record
    np.testing.assert_array_equal(embed(probe_paths()), before)


def test_a_stream_of_images_trains_to_the_same_scores(place, trained):
    pytest.importorskip("grain")
    words = ["--root", trained / "train", *WORDS, "--stream", "--out", "streamed"]
    words += ["--image-cache", "cache"]
    assert main("train", "faces", *words) == 0
    one, other = (
        [line["val"] for line in run_dir.read_metrics(run)] for run in ("run", "streamed")
    )
    assert len(one) == 2
    for a, b in zip(one, other, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)


# dev


@pytest.mark.parametrize("reduce", ["max", "mean"])
def test_dev_counts_correct_decisions(scores_of, reduce):
    found = scores_of(verify.dev, DEV, reduce=reduce)
    reduction = {"max": max, "mean": np.mean}[reduce]
    for prefix, threshold in (("", 0.4), ("best_", found["best_threshold"])):
        labels = [label for label, _ in identified(reduction, threshold - 1e-6)]
        correct = [a == b for a, b in zip(labels, UNKNOWN, strict=True)]
        known = {a for a, b in zip(labels, UNKNOWN, strict=True) if a == b != "n000000"}
        assert found[f"{prefix}accuracy"] == pytest.approx(np.mean(correct))
        assert found[f"{prefix}known_accuracy"] == len(known) / len(KNOWN) <= 1
    assert found["best_accuracy"] >= found["accuracy"]
    assert found["held_out_accuracy"] == pytest.approx(np.mean(held_out_decisions(reduction)))
    assert (found["probes"], found["unknown_probes"]) == (7, 2)
    assert (found["gallery_identities"], found["trained_identities"]) == (3, 1)


def test_dev_separates_pairs(scores_of):
    found = scores_of(verify.dev, DEV)
    table, owners = similarities()
    same = np.array([[owner == name for owner in owners] for name in UNKNOWN])
    assert found["auc"] == pytest.approx(
        verification_metrics.auc(table.ravel(), same.ravel()), abs=0.01
    )
    assert found["eer"] == pytest.approx(
        verification_metrics.eer(table.ravel(), same.ravel()), abs=0.01
    )
    tars = verification_metrics.tar_at_far(table.ravel(), same.ravel())
    assert [
        found[f"tar_at_far_{far:g}"] for far in verification_metrics.FAR_LEVELS
    ] == pytest.approx(tars)
    assert 0 <= found["dir_at_fpir_0.1"] <= 1


def test_dev_writes_pictures_and_prints_lines(place, capsys):
    chosen = replace(DEV, json=False, plots=Path("new/plots"), worst=Path("worst.png"), step=0.5)
    assert verify.dev(chosen) == 0
    out = capsys.readouterr().out
    (rows,) = parse_aligned(out)
    assert {"probes", "accuracy", "best_threshold"} <= {row["score"] for row in rows}
    assert out.startswith("run, checkpoint of step 3:\n\n") and "wrote pictures" in out
    assert {path.name for path in Path("new/plots").iterdir()} == {
        *("sweep.csv", "sweep.png", "scores.png", "roc.png")
    }
    rows = list(csv.DictReader(Path("new/plots/sweep.csv").read_text().splitlines()))
    assert [float(row["threshold"]) for row in rows] == [-1, -0.5, 0, 0.5, 1]
    assert float(rows[0]["accuracy"]) >= 0
    assert "no mistakes" in out or Path("worst.png").read_bytes().startswith(PNG)


def test_test_and_pairs_make_the_pictures_of_dev(place, capsys):
    chosen = replace(TEST, plots=Path("new/test"), truth=Path("truth.csv"), step=0.5)
    assert verify.test(chosen) == 0
    names = {"sweep.csv", "sweep.png", "scores.png", "roc.png"}
    assert {path.name for path in Path("new/test").iterdir()} == names
    Path("pairs.txt").write_text(LIST)
    assert verify.pairs(replace(PAIRS, plots=Path("pairs"))) == 0
    assert {path.name for path in Path("pairs").iterdir()} == {"scores.png", "roc.png"}
    assert all(path.read_bytes().startswith(PNG) for path in Path("pairs").iterdir())


def test_known_identities_in_the_training_data_are_warned_of(place, capsys):
    """Of n1, n3 and n4, n1 was in it."""
    assert verify.dev(DEV) == 0
    message = "1 of 3 known identities were in the training data, such as n1;"
    assert message in capsys.readouterr().err
    shutil.rmtree("known/n1")
    assert verify.test(TEST) == 0
    assert not capsys.readouterr().err


def test_euclidean_thresholds_are_distances(scores_of):
    found = scores_of(verify.dev, DEV, metric="euclidean", out=Path("thr.json"))
    assert "threshold" not in found and found["best_threshold"] <= 0
    scores = scores_of(
        verify.test, TEST, metric="euclidean", threshold="thr.json", truth=Path("truth.csv")
    )
    assert scores["accuracy"] == found["best_accuracy"]
    assert not scores_of(verify.pair, PAIR, metric="euclidean", threshold="0.1")["same"]


# test


def test_a_threshold_of_dev_gives_its_scores_in_test(scores_of):
    found = scores_of(verify.dev, DEV, out=Path("new/thr.json"))
    changes = {"truth": Path("truth.csv"), "threshold": "new/thr.json"}
    scores = scores_of(verify.test, TEST, **changes, submit=Path("new/table.csv"))
    for name in ("threshold", "accuracy", "known_accuracy"):
        assert scores[name] == found[f"best_{name}"]
    assert {name: scores[name] for name in ("auc", "step", "manifest")} == {
        name: found[name] for name in ("auc", "step", "manifest")
    }
    rows = list(csv.reader(Path("new/table.csv").read_text().splitlines()))
    labels = [label for label, _ in identified(max, found["best_threshold"] - 1e-6)]
    assert rows == [["index", "label"], *([str(i), label] for i, label in enumerate(labels))]


def test_test_prints_one_line_per_probe(place, capsys):
    assert verify.test(replace(TEST, json=False, threshold="0.5", reduce="mean")) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    expected = identified(np.mean, 0.5)
    assert [line[:2] for line in lines] == [
        [f"unknown/{i}.png", label] for i, (label, _) in enumerate(expected)
    ]
    scores = [float(line[2]) for line in lines]
    np.testing.assert_allclose(scores, [score for _, score in expected], atol=2e-4)


def test_a_submission_has_the_rows_of_its_sample(place):
    rows = [f"{i}.png,n000000\n" for i in range(7)]
    Path("sample.csv").write_text("Id,Label\n" + "".join(rows))
    changes = {"submit": Path("table.csv"), "sample": Path("sample.csv")}
    assert verify.test(replace(TEST, **changes, threshold="2")) == 0
    assert Path("table.csv").read_text() == Path("sample.csv").read_text()
    Path("table.csv").unlink()
    Path("sample.csv").write_text("Id,Label\n" + "".join([*rows[:6], rows[0]]))
    refused("row 8: 0.png is in row 2 already", verify.test, TEST, **changes)
    assert not Path("table.csv").exists()


# cut-offs


def test_a_report_has_the_level_of_every_score(scores_of, capsys):
    dev = scores_of(verify.dev, DEV, out=Path("dev.json"))
    truth = {"truth": Path("truth.csv"), "threshold": "2"}
    test = scores_of(verify.test, TEST, **truth, out=Path("new/test.json"))
    words = ["compare", "run", "--report", "out.md", "--verified", "dev.json", "new/test.json"]
    assert main(*words) == 0
    ((run,), _) = printed("compare", "run")
    text = Path("out.md").read_text().split("## Cut-offs\n")[1]
    assert "accuracy: high from 0.9, medium from 0.84, low from 0.82; verif" in text
    first, second = text.split("## The runs")
    (row,), (described,) = cells(first), cells(second)
    assert "No threshold is evaluated on the images that it was found with" in text
    both = (run["accuracy"], dev["held_out_accuracy"], test["accuracy"])
    names = ("accuracy", "verification, dev", "verification, test")
    for name, value in zip(names, both, strict=True):
        assert float(row[name]) == pytest.approx(value, abs=1e-4)
        cuts = (0.9, 0.84, 0.82) if name == "accuracy" else (0.55, 0.49, 0.3)
        reached = sum(value >= cut for cut in cuts)
        assert row[f"{name} level"] == ("none", "low", "medium", "high")[reached]
    assert (described["run"], described["epochs"], described["optimizer"]) == ("run", "1", "adamw")
    assert described["validation accuracy"] and described["scheduler"] == "cosine"
    assert "not held out" not in text
    assert main(*words[:4], "--split", "val", "--overwrite") == 0
    assert "The accuracy of `run` is on the split `val`, whose" in Path("out.md").read_text()


def test_scores_of_another_checkpoint_or_without_scores_are_refused(scores_of, capsys):
    scores_of(verify.dev, DEV, out=Path("dev.json"))
    kept = json.loads(Path("dev.json").read_text())
    kept["checkpoint"]["manifest"] = "0"
    Path("other.json").write_text(json.dumps(kept))
    Path("none.json").write_text(json.dumps({**kept, "scores": {}}))
    for name, words in {
        "other.json": "other.json: has scores of checkpoint",
        "none.json": "none.json: has no scores",
        "gone.json": "gone.json: cannot be read",
    }.items():
        assert main("compare", "run", "--report", "out.md", "--verified", name) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
        assert not Path("out.md").exists()
    assert main("compare", "run", "--verified", "dev.json") == 2
    assert "--verified needs --report" in capsys.readouterr().err
    refused("--out needs --truth", verify.test, TEST, out=Path("a.json"))


# pair


def test_a_pair_is_the_same_identity_from_the_threshold_on(scores_of, capsys):
    table, owners = similarities()
    two = (Path("unknown/0.png"), Path("known/n1/n1_0001.png"))
    expected = table[0, owners.index("n1")]
    found = scores_of(verify.pair, PAIR, images=two)
    assert found["score"] == pytest.approx(expected, abs=1e-5)
    assert found["threshold"] == 0.4 and found["same"] == (expected >= 0.4)
    for threshold, word in ((expected - 1e-3, "same"), (expected + 1e-3, "different")):
        changes = {"images": two, "threshold": str(threshold), "json": False}
        assert verify.pair(replace(PAIR, **changes)) == 0
        assert capsys.readouterr().out == f"{found['score']:.4f} {word}\n"
    alike = scores_of(verify.pair, PAIR, images=(two[0], two[0]))
    assert alike["score"] == pytest.approx(1, abs=1e-5) and alike["same"]


# pairs


def test_pairs_are_evaluated_by_folds(scores_of):
    Path("pairs.txt").write_text(LIST)
    found = scores_of(verify.pairs, PAIRS, worst=Path("worst.png"))
    assert (found["pairs"], found["same"], found["folds"]) == (4, 2, 2)
    known = [f"known/{a}/{a}_000{i}.png" for a, i in (("n1", 1), ("n1", 2), ("n3", 1), ("n3", 2))]
    found_all = embed([Path(p) for p in (*known, "known/n4/n4_0001.png")])
    unit = found_all / np.linalg.norm(found_all, axis=1, keepdims=True)
    scores = [float(unit[i] @ unit[j]) for i, j in ((0, 1), (0, 2), (2, 3), (4, 3))]
    same = [True, False, True, False]
    assert found["accuracy"] == pytest.approx(
        verification_metrics.cross_validate(scores, same, 2).mean
    )
    assert found["auc"] == verification_metrics.auc(scores, same)
    assert found["tar_at_far_0.1"] == verification_metrics.tar_at_far(scores, same)[0]
    assert scores_of(verify.pairs, PAIRS, metric="euclidean", folds=4)["folds"] == 4


def test_pairs_without_images_stop_or_are_counted(scores_of):
    Path("pairs.txt").write_text(LIST.replace("n3 1 2", "n3 1 9"))
    refused("row 4: no image n3/n3_0009 below known", verify.pairs, PAIRS)
    found = scores_of(verify.pairs, PAIRS, on_missing="skip")
    assert (found["pairs"], found["rows_missing"]) == (3, 1)
    Path("pairs.txt").write_text("1 1\neve 1 2\neve 1 ann 1\n")
    refused("must list a pair whose images both exist", verify.pairs, PAIRS, on_missing="skip")


def test_missing_pairs_do_not_move_others_to_another_fold(scores_of):
    """The first fold keeps a pair, the second two; three in a row would be cut after two."""
    Path("pairs.txt").write_text(LIST.replace("n1 1 2", "n1 1 9"))
    found = scores_of(verify.pairs, PAIRS, on_missing="skip")
    listed = verification_protocol.read_pairs("pairs.txt", "known").pairs
    score, same = verify.pair_scores("cosine", verify.load_embedder(PAIRS), listed)
    expected, moved = (
        verification_metrics.cross_validate(score, same, f) for f in ([0, 1, 1], [0, 0, 1])
    )
    assert found["threshold"] == expected.thresholds.mean() != moved.thresholds.mean()
    assert (found["accuracy"], found["folds"]) == (expected.mean, 2)


def test_scores_that_pairs_do_not_allow_are_left_out_with_a_warning(place, capsys):
    chosen = replace(PAIRS, on_missing="skip", json=False, worst=Path("worst.png"))
    Path("pairs.txt").write_text(LIST.replace("n1 1 n3", "n1 9 n3").replace("n4 1", "n4 9"))
    assert verify.pairs(chosen) == 0
    out, error = capsys.readouterr()
    (rows,) = parse_aligned(out)
    scores = {row["score"]: row["value"] for row in rows}
    assert scores == {"pairs": "2", "same": "2", "rows_missing": "2", "folds": "2"}
    assert "all 2 pairs found are of the same identity: accuracy, auc" in error
    Path("pairs.txt").write_text(LIST.replace("n3 1 2", "n3 1 9").replace("n4 1", "n4 9"))
    assert verify.pairs(chosen) == 0
    out, error = capsys.readouterr()
    (rows,) = parse_aligned(out)
    scores = {row["score"]: row["value"] for row in rows}
    assert scores["folds"] == "1" and "auc" in scores and "accuracy" not in scores
    assert error.count("\n") == 1 and "in one fold: accuracy needs other folds" in error


# words


def test_words_of_the_command_line_become_options(place, capsys):
    words = ["run", "--known", "a", "--unknown", "b", "--truth", "c", "--sweep", "--out", "d"]
    found = flags.parse("dev", words, options.Dev)
    folders = {"run": RUN, "known": Path("a"), "unknown": Path("b"), "truth": Path("c")}
    assert found == options.Dev(**folders, out=Path("d"))
    found = flags.parse("pair", ["run", "unknown/0.png", "unknown/6.png", "--json"], options.Pair)
    assert found == PAIR
    words = ["run", "pairs.txt", "--root", "known", "--json"]
    assert flags.parse("pairs", words, options.Pairs) == PAIRS
    words = ["run", "--known", "known", "--unknown", "unknown", "--json"]
    assert flags.parse("test", words, options.Test) == TEST
    assert verify.run("pair", PAIR) == 0
    assert "score" in json.loads(capsys.readouterr().out)


# predict --submit


def test_a_submission_has_the_label_that_predict_prints_for_each_image(place, capsys):
    assert main("predict", "run", "unknown", "--submit", "new/table.csv") == 0
    assert capsys.readouterr().out == "wrote new/table.csv\n"
    assert main("predict", "run", "unknown", "--json") == 0
    labels = [json.loads(line)["label"] for line in capsys.readouterr().out.splitlines()]
    expected = [f"{i}.png,{list(TRAINED).index(name)}" for i, name in enumerate(labels)]
    assert Path("new/table.csv").read_text().splitlines() == ["id,label", *expected]
    assert main("predict", "run", "unknown", "--sample", "truth.csv") == 2
    assert "--sample needs --submit" in capsys.readouterr().err


# refusals


def test_images_and_folders_that_cannot_be_used_are_named(place):
    Path("known/n5").mkdir()
    refused("known/n5: no image files", verify.dev, DEV)
    Path("known/n5").rmdir()
    Path("unknown/3.png").write_bytes(b"no image")
    refused("unknown/3.png: not a readable image", verify.dev, DEV)
    gone = (Path("unknown/0.png"), Path("gone.png"))
    refused("gone.png: no such image", verify.pair, PAIR, images=gone)
    refused("none: no such folder", verify.dev, DEV, known=Path("none"))


@pytest.mark.parametrize(
    ("command", "chosen", "changes", "message"),
    [
        (verify.dev, DEV, {"truth": Path("none.csv")}, "none.csv: cannot be read"),
        (verify.dev, DEV, {"run": Path("known")}, "known is not a run"),
        (verify.dev, DEV, {"checkpoint": "77"}, "--checkpoint must be .* of run, got 77"),
        (verify.dev, DEV, {"step": 0.0}, "--step must be above 0"),
        (verify.dev, DEV, {"metric": "euclidean", "sweep": False}, "--no-sweep"),
        (verify.dev, DEV, {"worst": Path("worst.doc")}, "a picture must end in"),
        (verify.test, TEST, {"worst": Path("worst.png")}, "--worst needs --truth"),
        (verify.test, TEST, {"plots": Path("plots")}, "--plots needs --truth"),
        (verify.test, TEST, {"threshold": "nan"}, "--threshold must be a finite number.*got nan"),
        (
            verify.test,
            TEST,
            {"threshold": "none.json"},
            "must be a number or a file, got none.json",
        ),
        (
            verify.test,
            TEST,
            {"threshold": "truth.csv"},
            "truth.csv: must be a file that `jaxdet verify` wrote with --out",
        ),
        (verify.pair, PAIR, {"metric": "euclidean"}, "--threshold must be .* no default"),
        (verify.pairs, PAIRS, {}, "pairs.txt: cannot be read"),
    ],
)
def test_unusable_options_are_refused(place, command, chosen, changes, message):
    refused(message, command, chosen, **changes)


def test_a_threshold_of_another_checkpoint_or_metric_is_refused(place):
    verify.dev(replace(DEV, out=Path("thr.json")))
    for command, chosen in ((verify.test, TEST), (verify.pair, PAIR)):
        chosen = replace(chosen, threshold="thr.json")
        refused(
            "found with --metric cosine, got --metric euclidean",
            command,
            chosen,
            metric="euclidean",
        )
    refused(
        "--reduce max, got --reduce mean", verify.test, TEST, threshold="thr.json", reduce="mean"
    )
    kept = json.loads(Path("thr.json").read_text())
    kept["checkpoint"] |= {"manifest": "0" * 64, "run": "other"}
    Path("thr.json").write_text(json.dumps(kept))
    message = "thr.json: threshold was found with checkpoint .* of run 'other', got .* of 'run'"
    refused(message, verify.test, TEST, threshold="thr.json")
    refused(message, verify.pair, PAIR, threshold="thr.json")


def test_a_linear_probe_is_scored_on_every_second_image(scores_of, capsys):
    face(Path("known/n5/n5_0001.png"), UNKNOWN_COLOR, 7)
    assert verify.probe(replace(PROBE, json=False)) == 0
    assert "identities with only one image are left out: 1" in capsys.readouterr().err
    found = scores_of(verify.probe, PROBE)
    assert {
        name: found[name] for name in ("identities", "images", "accuracy", "fitted_accuracy")
    } == {
        **{"identities": 3, "images": 3},
        **{"accuracy": 1.0, "fitted_accuracy": 1.0},
    }
    names = [f"{name}/{name}_0002.png" for name in KNOWN]
    kept = [Path("known", name).read_bytes() for name in names]
    for name, content in zip(names, kept[1:] + kept[:1], strict=True):
        Path("known", name).write_bytes(content)
    assert scores_of(verify.probe, PROBE)["accuracy"] == 0
    for name in ("n3", "n4"):
        Path(f"known/{name}/{name}_0002.png").unlink()
    refused("known: must have at least 2 identities", verify.probe, PROBE)


@pytest.mark.long  # the columns of a run: tests/configs/test_faces.py
def test_a_sweep_has_the_columns_of_its_system(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(resnet, "ResNet18", Features)
    words = ["--root", trained / "train", *WORDS, "--head", "softmax", "lgm", "--lr", "0.01"]
    assert main("sweep", "faces", *words, "--out", tmp_path / "sweep") == 0
    first, second = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert (first["head"], second["head"]) == ("softmax", "lgm")
    assert second["parameters"] - first["parameters"] == len(TRAINED) * 8  # variances
    table = (tmp_path / "sweep" / "sweep.md").read_text()
    for column in ("architecture", "epochs", "dropout", "scheduler", "optimizer", "SE"):
        assert f"| {column} " in table


def test_a_network_that_has_diverged_is_refused(place, monkeypatch):
    monkeypatch.setattr(
        images, "read_resized_float", lambda path, side: (np.full((32, 32, 3), np.nan), (1, 1))
    )
    refused("unknown/0.png: embedding is not finite", verify.pair, PAIR)


def test_a_run_of_another_system_is_refused(place):
    config = json.loads(Path("run/config.json").read_text())
    Path("run/config.json").write_text(json.dumps({**config, "system": "digits"}))
    refused("run must be a run of faces, got a run of 'digits'", verify.pair, PAIR)
