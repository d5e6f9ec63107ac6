"""`jaxdet verify` on a small run of faces: people are colours."""

import csv
import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

from jaxdet.cli import common, embedding, flags, verify, verify_pairs, verify_probe
from jaxdet.cli import verify_options as options
from jaxdet.cli.options import Eval
from jaxdet.data import images, verification_protocol
from jaxdet.errors import InputError
from jaxdet.metrics import verification as verification_metrics
from jaxdet.models import resnet
from jaxdet.models.layers import Freezable
from jaxdet.training import evaluator, run_dir
from tests.cli.test_compare import cells, printed
from tests.cli.test_main import PNG, main

WORDS = [
    *("--size", "32", "--width", "0.1", "--embedding-dim", "8", "--epochs", "1", "--batch", "4"),
    *("--eval-batch", "4", "--devices", "1", "--warmup", "0", "--test-fraction", "0", "--quiet"),
    *("--embedding-loss", "center"),
]
LEARNT = {"n1": (220, 40, 40), "n2": (40, 200, 60)}
KNOWN = {"n1": (220, 40, 40), "n3": (50, 60, 230), "n4": (230, 220, 40)}
UNKNOWN = ["n3", "n000000", "n1", "n4", "n1", "n000000", "n3"]
STRANGER = (10, 10, 10)
RUN = Path("run")


class Features(Freezable):
    """One convolution: a backbone that compiles in no time."""

    classes: int = 0
    width: int = 8

    @nn.compact
    def __call__(self, x, train=False):
        return self.conv_norm_act(x, 8, 7, "stem", stride=8, train=train)


def face(path, colour, seed):
    """A noisy image of a colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).normal(0, 12, (20, 16, 3))
    Image.fromarray(np.clip(colour + noise, 0, 255).astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with data of every kind, and a run."""
    root = tmp_path_factory.mktemp("verify")
    for kind, people, count in (("train", LEARNT, 6), ("known", KNOWN, 2)):
        for who, (name, colour) in enumerate(people.items()):
            for i in range(count):
                face(root / kind / name / f"{name}_{i + 1:04d}.png", colour, 10 * who + i)
    for i, name in enumerate(UNKNOWN):
        face(root / "unknown" / f"{i}.png", KNOWN.get(name, STRANGER), 100 + i)
    (root / "truth.csv").write_text("label\n" + "\n".join(UNKNOWN) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resnet, "ResNet18", Features)
        words = ["--root", root / "train", *WORDS, "--out", root / "run"]
        assert main("train", "faces", *words) == 0
    return root


@pytest.fixture
def place(trained, tmp_path, monkeypatch):
    """The working folder; the images of the training are gone."""
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
def said(place, capsys):
    """The last line that a command prints, as JSON."""

    def said(command, chosen, **changes):
        capsys.readouterr()
        assert command(replace(chosen, **changes)) == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return said


def refused(said, command, chosen, **changes):
    with pytest.raises(InputError, match=said) as error:
        command(replace(chosen, **changes))
    assert "\n" not in str(error.value)


def similarities():
    """Cosines [N, M] of the unknown and the known, image by image, in NumPy."""
    embedder = embedding.restored(RUN, "best")
    known = images.list_images("known")
    made = [np.asarray(embedder.embed([p])[0], np.float64) for p in (*identities_of(), *known)]
    made = np.array([x / np.linalg.norm(x) for x in made])
    return made[: len(UNKNOWN)] @ made[len(UNKNOWN) :].T, [path.parent.name for path in known]


def identities_of():
    return verification_protocol.list_probes("unknown")


def judged(join, threshold):
    """(label, score) of each unknown image, by loops."""
    table, owners = similarities()
    found = []
    for row in table:
        scores = {n: join([s for s, o in zip(row, owners, strict=True) if o == n]) for n in KNOWN}
        name = max(scores, key=scores.get)
        found.append((name if scores[name] >= threshold else "n000000", scores[name]))
    return found


# embeddings


def test_embeddings_are_those_of_the_run_with_its_data(trained, place):
    paths = identities_of()
    embedder = embedding.restored(RUN, "last")
    with_data = Eval(run=RUN, root=str(trained / "train"), checkpoint="last")
    _, system, step, state = common.restored(with_data)
    assert embedder.made["step"] == step and list(embedder.classes) == list(LEARNT)
    answer = partial(jax.jit(system.task.predict), evaluator.eval_variables(state))
    wanted = [answer(system.read(path)[0][None])["embedding"][0] for path in paths]
    np.testing.assert_allclose(embedder.embed(paths), wanted, rtol=1e-4, atol=1e-5)


def test_images_are_embedded_alike_in_any_batch(place, monkeypatch):
    paths = identities_of()
    made = embedding.restored(RUN, "best").embed(paths)  # 7 in batches of 4
    assert made.shape == (7, 8)
    for i in (0, 5):
        alone = embedding.restored(RUN, "best").embed(paths[i : i + 1])
        np.testing.assert_allclose(made[i : i + 1], alone, rtol=1e-4, atol=1e-5)


def test_a_run_of_an_earlier_version_embeds_alike(place):
    """Such a run does not say what a record of its data is like."""
    before = embedding.restored(RUN, "best").embed(identities_of())
    path = RUN / "config.json"
    kept = json.loads(path.read_text())
    assert kept["about"].pop("record") == embedding._record(32)
    path.write_text(json.dumps(kept))
    np.testing.assert_array_equal(embedding.restored(RUN, "best").embed(identities_of()), before)


def test_a_stream_of_images_trains_to_the_same_scores(place, trained):
    pytest.importorskip("grain")
    words = ["--root", trained / "train", *WORDS, "--stream", "--out", "streamed"]
    assert main("train", "faces", *words) == 0
    one, other = (
        [line["val"] for line in run_dir.read_metrics(run)] for run in ("run", "streamed")
    )
    assert len(one) == 2
    for a, b in zip(one, other, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)


# dev


@pytest.mark.parametrize("join", ["max", "mean"])
def test_dev_counts_right_decisions(said, join):
    found = said(verify.dev, DEV, join=join)
    how = {"max": max, "mean": np.mean}[join]
    for prefix, threshold in (("", 0.4), ("best_", found["best_threshold"])):
        labels = [label for label, _ in judged(how, threshold - 1e-6)]
        right = [a == b for a, b in zip(labels, UNKNOWN, strict=True)]
        known = [a == b != "n000000" for a, b in zip(labels, UNKNOWN, strict=True)]
        assert found[f"{prefix}accuracy"] == pytest.approx(np.mean(right))
        assert found[f"{prefix}known_accuracy"] == pytest.approx(sum(known) / len(KNOWN))
    assert found["best_accuracy"] >= found["accuracy"]
    assert (found["unknown_images"], found["strangers"]) == (7, 2)
    assert (found["known_identities"], found["known_identities_learnt"]) == (3, 1)


def test_dev_separates_pairs(said):
    found = said(verify.dev, DEV)
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
    assert "\naccuracy " in out and "\nbest_threshold " in out and "wrote pictures" in out
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
    assert verify_pairs.pairs(replace(PAIRS, plots=Path("pairs"))) == 0
    assert {path.name for path in Path("pairs").iterdir()} == {"scores.png", "roc.png"}
    assert all(path.read_bytes().startswith(PNG) for path in Path("pairs").iterdir())


def test_a_line_names_the_first_identity_that_training_had(place, capsys):
    """Of n1, n3 and n4 it had n1."""
    assert verify.dev(DEV) == 0
    assert "1 of 3 known identities were learnt in training, first: n1;" in capsys.readouterr().err
    shutil.rmtree("known/n1")
    assert verify.test(TEST) == 0
    assert not capsys.readouterr().err


def test_euclidean_thresholds_are_distances(said):
    found = said(verify.dev, DEV, kind="euclidean", out=Path("thr.json"))
    assert "threshold" not in found and found["best_threshold"] <= 0
    scores = said(
        verify.test, TEST, kind="euclidean", threshold="thr.json", truth=Path("truth.csv")
    )
    assert scores["accuracy"] == found["best_accuracy"]
    assert not said(verify.pair, PAIR, kind="euclidean", threshold="0.1")["same"]


# test


def test_a_threshold_of_dev_gives_its_scores_in_test(said):
    found = said(verify.dev, DEV, out=Path("new/thr.json"))
    changes = {"truth": Path("truth.csv"), "threshold": "new/thr.json"}
    scores = said(verify.test, TEST, **changes, submit=Path("new/table.csv"))
    for name in ("threshold", "accuracy", "known_accuracy"):
        assert scores[name] == found[f"best_{name}"]
    assert {name: scores[name] for name in ("auc", "step", "manifest")} == {
        name: found[name] for name in ("auc", "step", "manifest")
    }
    rows = list(csv.reader(Path("new/table.csv").read_text().splitlines()))
    labels = [label for label, _ in judged(max, found["best_threshold"] - 1e-6)]
    assert rows == [["index", "label"], *([str(i), label] for i, label in enumerate(labels))]


def test_test_prints_an_answer_an_image(place, capsys):
    assert verify.test(replace(TEST, json=False, threshold="0.5", join="mean")) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    wanted = judged(np.mean, 0.5)
    assert [line[:2] for line in lines] == [
        [f"unknown/{i}.png", label] for i, (label, _) in enumerate(wanted)
    ]
    scores = [float(line[2]) for line in lines]
    np.testing.assert_allclose(scores, [score for _, score in wanted], atol=2e-4)


def test_a_submission_has_the_rows_of_its_sample(place):
    rows = [f"{i}.png,n000000\n" for i in range(7)]
    Path("sample.csv").write_text("Id,Label\n" + "".join(rows))
    changes = {"submit": Path("table.csv"), "sample": Path("sample.csv")}
    assert verify.test(replace(TEST, **changes, threshold="2")) == 0
    assert Path("table.csv").read_text() == Path("sample.csv").read_text()
    Path("table.csv").unlink()
    rows[1:3] = rows[2:0:-1]
    Path("sample.csv").write_text("Id,Label\n" + "".join(rows))
    said = (
        "sample.csv: 2 rows do not match the images; first: row 3: found 2.png, wanted 1 or 1.png"
    )
    refused(said, verify.test, TEST, **changes)
    assert not Path("table.csv").exists()


# cut-offs


def test_the_report_of_a_run_says_which_cut_offs_it_reaches(said, capsys):
    dev = said(verify.dev, DEV, out=Path("dev.json"))
    truth = {"truth": Path("truth.csv"), "threshold": "2"}
    test = said(verify.test, TEST, **truth, out=Path("new/test.json"))
    words = ["compare", "run", "--report", "out.md", "--verified", "dev.json", "new/test.json"]
    assert main(*words) == 0
    ((run,), _) = printed("compare", "run")
    text = Path("out.md").read_text().split("## Cut-offs\n")[1]
    assert "accuracy: high from 0.9, medium from 0.84, low from 0.82; verif" in text
    first, second = text.split("## What the runs are")
    (row,), (what,) = cells(first), cells(second)
    both = (run["accuracy"], dev["best_accuracy"], test["accuracy"])
    names = ("accuracy", "verification, dev", "verification, test")
    for name, value in zip(names, both, strict=True):
        assert float(row[name]) == pytest.approx(value, abs=1e-4)
        cuts = (0.9, 0.84, 0.82) if name == "accuracy" else (0.55, 0.49, 0.3)
        reached = sum(value >= cut for cut in cuts)
        assert row[f"{name} reaches"] == ("none", "low", "medium", "high")[reached]
    assert (what["run"], what["epochs"], what["optimizer"]) == ("run", "1", "adamw")
    assert what["validation accuracy"] and what["scheduler"] == "cosine"


def test_scores_of_another_network_or_of_nothing_are_refused(said, capsys):
    said(verify.dev, DEV, out=Path("dev.json"))
    kept = json.loads(Path("dev.json").read_text())
    kept["embedder"]["manifest"] = "0"
    Path("other.json").write_text(json.dumps(kept))
    Path("none.json").write_text(json.dumps({**kept, "scores": {}}))
    for name, words in {
        "other.json": "other.json: found with checkpoint",
        "none.json": "none.json: no scores in it",
        "gone.json": "gone.json: cannot be read",
    }.items():
        assert main("compare", "run", "--report", "out.md", "--verified", name) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
        assert not Path("out.md").exists()
    assert main("compare", "run", "--verified", "dev.json") == 2
    assert "--verified: its scores are for --report" in capsys.readouterr().err
    refused("--out: what is right is known with", verify.test, TEST, out=Path("a.json"))


# pair


def test_a_pair_is_the_same_person_from_a_threshold_on(said, capsys):
    table, owners = similarities()
    two = (Path("unknown/0.png"), Path("known/n1/n1_0001.png"))
    wanted = table[0, owners.index("n1")]
    found = said(verify.pair, PAIR, images=two)
    assert found["score"] == pytest.approx(wanted, abs=1e-5)
    assert found["threshold"] == 0.4 and found["same"] == (wanted >= 0.4)
    for threshold, word in ((wanted - 1e-3, "same"), (wanted + 1e-3, "different")):
        changes = {"images": two, "threshold": str(threshold), "json": False}
        assert verify.pair(replace(PAIR, **changes)) == 0
        assert capsys.readouterr().out == f"{found['score']:.4f} {word}\n"
    alike = said(verify.pair, PAIR, images=(two[0], two[0]))
    assert alike["score"] == pytest.approx(1, abs=1e-5) and alike["same"]


# pairs


def test_pairs_are_judged_by_folds(said):
    Path("pairs.txt").write_text(LIST)
    found = said(verify_pairs.pairs, PAIRS, worst=Path("worst.png"))
    assert (found["pairs"], found["same"], found["folds"]) == (4, 2, 2)
    known = [f"known/{a}/{a}_000{i}.png" for a, i in (("n1", 1), ("n1", 2), ("n3", 1), ("n3", 2))]
    made = embedding.restored(RUN, "best").embed(
        [Path(p) for p in (*known, "known/n4/n4_0001.png")]
    )
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    scores = [float(made[i] @ made[j]) for i, j in ((0, 1), (0, 2), (2, 3), (4, 3))]
    same = [True, False, True, False]
    assert found["accuracy"] == pytest.approx(
        verification_metrics.cross_validate(scores, same, 2).mean
    )
    assert found["auc"] == verification_metrics.auc(scores, same)
    assert found["tar_at_far_0.1"] == verification_metrics.tar_at_far(scores, same)[0]
    assert said(verify_pairs.pairs, PAIRS, kind="euclidean", folds=4)["folds"] == 4


def test_pairs_without_images_stop_or_are_counted(said):
    Path("pairs.txt").write_text(LIST.replace("n3 1 2", "n3 1 9"))
    refused("row 4: no image n3/n3_0009 below known", verify_pairs.pairs, PAIRS)
    found = said(verify_pairs.pairs, PAIRS, on_missing="skip")
    assert (found["pairs"], found["rows_missing"]) == (3, 1)
    Path("pairs.txt").write_text("1 1\neve 1 2\neve 1 ann 1\n")
    refused("no pair whose images are there", verify_pairs.pairs, PAIRS, on_missing="skip")


def test_pairs_that_are_left_out_do_not_move_others_to_another_fold(said):
    """The first fold keeps a pair, the second two; three in a row would be cut after two."""
    Path("pairs.txt").write_text(LIST.replace("n1 1 2", "n1 1 9"))
    found = said(verify_pairs.pairs, PAIRS, on_missing="skip")
    listed = verification_protocol.read_pairs("pairs.txt", "known").pairs
    embedder = embedding.restored(RUN, "best")
    score, same = verify_pairs._likeness(PAIRS, embedder, listed)
    wanted, moved = (
        verification_metrics.cross_validate(score, same, f) for f in ([0, 1, 1], [0, 0, 1])
    )
    assert found["threshold"] == wanted.thresholds.mean() != moved.thresholds.mean()
    assert (found["accuracy"], found["folds"]) == (wanted.mean, 2)


def test_pairs_of_one_kind_have_counts_and_a_line_says_what_they_lack(place, capsys):
    chosen = replace(PAIRS, on_missing="skip", json=False, worst=Path("worst.png"))
    Path("pairs.txt").write_text(LIST.replace("n1 1 n3", "n1 9 n3").replace("n4 1", "n4 9"))
    assert verify_pairs.pairs(chosen) == 0
    out, error = capsys.readouterr()
    assert "\npairs 2\nsame 2\nrows_missing 2\nfolds 2\n" in out and "accuracy" not in out
    assert "all 2 pairs that are there are of one person: accuracy, auc" in error
    Path("pairs.txt").write_text(LIST.replace("n3 1 2", "n3 1 9").replace("n4 1", "n4 9"))
    assert verify_pairs.pairs(chosen) == 0
    out, error = capsys.readouterr()
    assert "\nfolds 1\nauc " in out and "accuracy" not in out
    assert error.count("\n") == 1 and "in one fold: accuracy wants others" in error


# words


def test_the_words_of_the_command_line_are_understood(place, capsys):
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


def test_a_table_of_classes_has_what_predict_says_of_each_image(place, capsys):
    assert main("predict", "run", "unknown", "--submit", "new/table.csv") == 0
    assert capsys.readouterr().out == "wrote new/table.csv\n"
    assert main("predict", "run", "unknown", "--json") == 0
    told = [json.loads(line)["label"] for line in capsys.readouterr().out.splitlines()]
    wanted = [f"{i}.png,{list(LEARNT).index(name)}" for i, name in enumerate(told)]
    assert Path("new/table.csv").read_text().splitlines() == ["id,label", *wanted]
    assert main("predict", "run", "unknown", "--sample", "truth.csv") == 2
    assert "--sample: its rows are for --submit" in capsys.readouterr().err


# what is wrong


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
    ("command", "chosen", "changes", "words"),
    [
        (verify.dev, DEV, {"truth": Path("none.csv")}, "none.csv: cannot be read"),
        (verify.dev, DEV, {"run": Path("known")}, "known is not a run"),
        (verify.dev, DEV, {"checkpoint": "77"}, "--checkpoint 77: run has"),
        (verify.dev, DEV, {"step": 0.0}, "--step 0.0: more than 0"),
        (verify.dev, DEV, {"kind": "euclidean", "sweep": False}, "--no-sweep"),
        (verify.dev, DEV, {"worst": Path("worst.doc")}, "worst.doc: a picture is one of"),
        (verify.test, TEST, {"worst": Path("worst.png")}, "--worst: what is right is known with"),
        (verify.test, TEST, {"plots": Path("plots")}, "--plots: what is right is known with"),
        (verify.test, TEST, {"threshold": "nan"}, "--threshold nan: a finite number"),
        (verify.test, TEST, {"threshold": "none.json"}, "none.json: neither a number nor a file"),
        (verify.test, TEST, {"threshold": "truth.csv"}, "truth.csv: not a file of `verify dev`"),
        (verify.pair, PAIR, {"kind": "euclidean"}, "--threshold: a number, or a file"),
        (verify_pairs.pairs, PAIRS, {}, "pairs.txt: cannot be read"),
    ],
)
def test_options_that_cannot_be_are_refused(place, command, chosen, changes, words):
    refused(words, command, chosen, **changes)


def test_a_threshold_of_another_embedder_or_measure_is_refused(place):
    verify.dev(replace(DEV, out=Path("thr.json")))
    for command, chosen in ((verify.test, TEST), (verify.pair, PAIR)):
        chosen = replace(chosen, threshold="thr.json")
        refused("found with --kind cosine, not euclidean", command, chosen, kind="euclidean")
    refused("--join max, not mean", verify.test, TEST, threshold="thr.json", join="mean")
    kept = json.loads(Path("thr.json").read_text())
    kept["embedder"] |= {"manifest": "0" * 64, "run": "other"}
    Path("thr.json").write_text(json.dumps(kept))
    said = "thr.json: found with checkpoint .* of run 'other', which is not checkpoint .* of 'run'"
    refused(said, verify.test, TEST, threshold="thr.json")
    refused(said, verify.pair, PAIR, threshold="thr.json")


def test_a_probe_judges_every_second_image_by_the_others(said, capsys):
    face(Path("known/n5/n5_0001.png"), STRANGER, 7)
    assert verify_probe.probe(replace(PROBE, json=False)) == 0
    assert "people with one image, left out: 1" in capsys.readouterr().err
    found = said(verify_probe.probe, PROBE)
    assert {name: found[name] for name in ("people", "images", "accuracy", "fitted")} == {
        **{"people": 3, "images": 3},
        **{"accuracy": 1.0, "fitted": 1.0},
    }
    names = [f"{name}/{name}_0002.png" for name in KNOWN]
    kept = [Path("known", name).read_bytes() for name in names]
    for name, content in zip(names, kept[1:] + kept[:1], strict=True):
        Path("known", name).write_bytes(content)
    assert said(verify_probe.probe, PROBE)["accuracy"] == 0
    for name in ("n3", "n4"):
        Path(f"known/{name}/{name}_0002.png").unlink()
    refused("known: two people with two images each", verify_probe.probe, PROBE)


def test_a_sweep_has_the_columns_of_the_seed_and_a_row_a_run(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(resnet, "ResNet18", Features)
    words = ["--root", trained / "train", *WORDS, "--head", "softmax", "lgm", "--lr", "0.01"]
    assert main("sweep", "faces", *words, "--out", tmp_path / "swept") == 0
    first, second = json.loads((tmp_path / "swept" / "sweep.json").read_text())
    assert (first["head"], second["head"]) == ("softmax", "lgm")
    assert second["parameters"] - first["parameters"] == len(LEARNT) * 8  # variances
    table = (tmp_path / "swept" / "sweep.md").read_text()
    for column in ("architecture", "epochs", "dropout", "scheduler", "optimizer", "SE"):
        assert f"| {column} " in table


def test_a_network_that_has_diverged_is_refused(place, monkeypatch):
    monkeypatch.setattr(
        images, "read_resized_float", lambda path, side: (np.full((32, 32, 3), np.nan), (1, 1))
    )
    refused("unknown/0.png: embedding not finite", verify.pair, PAIR)


def test_a_run_of_another_system_is_refused(place):
    config = json.loads(Path("run/config.json").read_text())
    Path("run/config.json").write_text(json.dumps({**config, "system": "digits"}))
    refused("run is a run of 'digits', wanted: faces", verify.pair, PAIR)
