import json
from functools import partial
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import answers, sliding_windows, ways
from benchmarks.lib import agreement, harness, sliding
from benchmarks.sliding_windows import main
from jaxdet.models.sliding import NgSlidingNet
from jaxdet.ops import windows

QUICK = ["--batch", "2", "--sample", "3", "--seconds", "0"]


@pytest.fixture(autouse=True)
def one_thread():
    """PyTorch's threads wait for each other by spinning: on a busy machine one is quicker."""
    if find_spec("torch"):
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(before)
    else:
        yield


@pytest.fixture(scope="module")
def andrew():
    return sliding.pair(NgSlidingNet())


@partial(jax.jit, static_argnums=0)
def applied(net, variables, images):
    return net.apply(variables, images)


def test_the_command_times_compares_and_draws(tmp_path, capsys):
    files = {name: tmp_path / "out" / f"a.{name}" for name in ("json", "plot.png", "markdown")}
    words = [w for name, file in files.items() for w in (f"--{name.split('.')[0]}", str(file))]
    assert main([*QUICK, "--multiscale", "16", "28", *words]) == 0
    assert capsys.readouterr().out == files["markdown"].read_text()
    assert files["plot.png"].stat().st_size > 1000
    kept = json.loads(files["json"].read_text(), parse_constant=pytest.fail)
    jax_rows = [row for row in kept["rows"] if row["library"] == "jax"]
    assert [row["form"] for row in jax_rows] == [*sliding.FORMS] * 2
    assert [row["output"] for row in jax_rows[:3]] == [[3, 4], [2, 2, 2, 4], [2, 2, 2, 4]]
    assert [row["output"] for row in jax_rows[4:]] == [[2, 8, 8, 4]] * 2
    assert [row["timed_windows"] for row in jax_rows] == [3, 8, 8, 3, 128, 128]
    assert [row["note"] for row in jax_rows] == ["extrapolated", None, None] * 2
    assert all(row["seconds"] > 0 and row["compile_s"] > 0 for row in jax_rows)
    assert [round(row["multiply_adds"], 4) for row in kept["ratios"]] == [1.2105, 1.3285]
    assert all(row["jax_loop"] > 0 and row["jax_chunks"] > 0 for row in kept["ratios"])
    assert all(row["difference"] < 1e-5 * row["norm"] for row in kept["agreement"])
    assert [row["whole_numbers"] for row in kept["agreement"]] == [0, 0]


def test_pytorch_is_timed_where_it_is_installed(andrew):
    pytest.importorskip("torch")
    rows = sliding.compare(
        sliding.workload(andrew, agreement.image(16), 8, 1), ("torch",), seconds=0.0
    )
    assert [row["output"] for row in rows] == [[1, 4], [1, 2, 2, 4], [1, 2, 2, 4]]
    assert all(row["seconds"] > 0 for row in rows)


def test_pytorch_agrees_with_jax(andrew):
    torch = pytest.importorskip("torch")
    from benchmarks.torch_refs import sliding as peer

    images = agreement.image(20, batch=2)
    nets = peer.networks(andrew.converted["params"])
    parts = sliding.pieces(andrew.net, images.shape, stride=2, chunk=9)
    slid = sliding.assemble(peer.slide(nets[0], peer.images(images), parts, 14, 2), (2, 4, 4))
    dense = peer.convolve(nets[1], peer.images(images))
    expected = applied(andrew.dense, andrew.converted, images)
    assert isinstance(dense, torch.Tensor) and not dense.requires_grad
    np.testing.assert_allclose(slid, expected, atol=1e-5)
    np.testing.assert_allclose(dense, expected, atol=1e-5)


def test_a_missing_pytorch_is_a_row(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(ways, "find_spec", lambda name: None)
    assert main([*QUICK, "--multiscale", "16", "--json", str(tmp_path / "a.json")]) == 0
    assert json.loads((tmp_path / "a.json").read_text())["rows"][-1] == {
        "library": "torch",
        "note": "not installed",
    }
    assert "not installed" in capsys.readouterr().out


def test_a_size_without_room_is_a_row(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(harness, "available", lambda device: 1000)
    assert (
        main([*QUICK, "--multiscale", "16", "--peers", "false", "--json", f"{tmp_path}/a.json"])
        == 0
    )
    kept = json.loads((tmp_path / "a.json").read_text())
    notes = [row["note"] for row in kept["rows"]]
    assert notes == ["extrapolated", None, "out of memory", "not asked for"]
    assert kept["ratios"][0]["jax_loop"] is None
    assert kept["agreement"] == [{"size": 16, "note": "out of memory"}]


@pytest.mark.parametrize("chunk", [1, 3, 8, 17, 1000])
def test_pieces_hold_every_window_once(andrew, chunk):
    images = agreement.image(21, batch=3)  # 4 x 4 windows each
    parts = sliding.pieces(andrew.net, images.shape, stride=2, chunk=chunk)
    counts = [size[0] * ((size[1] - 14) // 2 + 1) * 4 for _, size in parts]
    assert sum(counts) == 3 * 4 * 4 and max(counts) <= max(chunk, 4)


@pytest.mark.parametrize("size, stride, chunk", [(21, 2, 7), (21, 2, 40), (20, 3, 1000)])
def test_slid_outputs_are_those_of_the_windows_in_order(andrew, size, stride, chunk):
    images = agreement.image(size, batch=3)
    slid, _ = sliding.both(andrew, images, stride, chunk)
    seen = sliding.grid(andrew.net, images.shape, stride)
    cut = jax.jit(jax.vmap(lambda image: windows.extract(image, seen)))(images)
    expected = applied(andrew.net, andrew.variables, cut.reshape(-1, 14, 14, 3))
    np.testing.assert_allclose(slid, expected.reshape(slid.shape), atol=1e-5)


def test_singles_are_spread_over_all_windows(andrew):
    parts = sliding.singles(andrew.net, (2, 28, 28, 3), stride=2, count=3)
    assert [list(part.start) for part in parts] == [[0, 0, 0, 0], [1, 0, 0, 0], [1, 14, 14, 0]]
    assert len(sliding.singles(andrew.net, (2, 28, 28, 3), stride=2, count=999)) == 128


def test_whole_numbers_stay_where_float32_is_exact():
    forms = sliding.pair(NgSlidingNet(), sample=agreement.signs)
    bound = jax.tree.map(np.abs, jax.device_get(forms.converted))  # outputs bound every partial sum
    image = np.round(agreement.image(64))
    assert applied(forms.dense, bound, image).max() < 2**24
    assert np.asarray(applied(forms.dense, forms.converted, image)).std() > 1


def test_map_bytes_by_hand():
    expected = 2 * 4 * (12 * 12 * 16 + 6 * 6 * 16 + 2 * 2 * (400 + 400 + 4))
    assert sliding.map_bytes(NgSlidingNet(), (2, 16, 16, 3)) == expected


VERDICTS = {  # worked out by hand: features, window, stride of sliding, size
    ("c5,p2", 14, 0, 16): "coincide",
    ("c5,p2", 14, 1, 28): "differ",
    ("c5,p2", 15, 2, 28): "differ",
    ("c5,p2", 15, 2, 17): "coincide",
    ("c5p2,p2", 14, 2, 28): "differ",
    ("c5,p2,c3", 14, 2, 28): "coincide",
    ("c5,p2,p2", 16, 2, 28): "differ",
    ("c5,p2,p2", 16, 4, 28): "coincide",
}


@pytest.mark.parametrize("case", VERDICTS, ids=str)
def test_formulas_and_random_weights_tell_the_same(case):
    row = agreement.row(agreement.Case(*case))
    assert (row["predicted"], row["measured"]) == (VERDICTS[case],) * 2
    assert bool(row["why"]) == (VERDICTS[case] == "differ")


def test_the_check_covers_the_questions_of_the_seed():
    assert {case.question[0] for case in agreement.CASES} == {"3", "4", "6", "7"}
    assert "1 of 2" in agreement.text([ROW, {**ROW, "measured": "differ"}])


ROW = {"predicted": "coincide", "measured": "coincide"}


def test_check_takes_an_architecture(capsys):
    words = ["--arch", "c5,p2,c3", "c5,p2,c3,p2", "--window", "16", "--stride", "4"]
    assert main(["--check", *words, "--multiscale", "28"]) == 0
    out = capsys.readouterr().out
    assert "steps by 4 pixels, the strides of the layers multiply to 2" in out
    assert "| c5,p2,c3,p2 | 16 | 4 | 28 | 4 x 4 | 4 x 4 | coincide | coincide |" in out
    assert "agree in 2 of 2 rows" in out


def test_summary_lists_both_networks(capsys):
    assert main(["--summary", "--multiscale", "28"]) == 0
    out = capsys.readouterr().out
    assert "| dense1 | 400 | 160,400 |" in out and "| dense1 | 8 x 8 x 400 | 160,400 |" in out
    assert out.count("| sum |  | 323,620 |") == 2


def test_layers_have_the_shapes_that_the_network_gives(andrew):
    rows = sliding_windows.layers(andrew.dense, andrew.converted, 20)
    x = jnp.zeros((1, 20, 20, 3))
    out = jax.eval_shape(andrew.dense.apply, andrew.converted, x)
    assert rows[-2]["output"] == list(out.shape[1:])


def test_explain_computes_its_numbers(capsys):
    assert main(["--explain"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for number in ("160,000", "8 x 8", "1.2105 at 16", "1.3526 at 1080", "1.3529", "4,800"):
        assert number in out
    for claim in (
        "8 outputs in one procedure and 7 in the other",
        "on 17 pixels it has 2 and 2",
        "after the pool both procedures coincide at stride 2",
        "at stride 2 and coincide at stride 4",
        "they differ at stride 2",
        "12 of the 14 pixels",
        "w = 28, S = 4, and 64 x 64 pixels have 10 x 10 windows",
    ):
        assert claim in out
    assert [f"### {n}." in out for n in range(1, 9)] == [
        n in (2, 4, 5, 6, 7, 8) for n in range(1, 9)
    ]


def test_the_limit_is_what_large_images_approach():
    andrew = NgSlidingNet()
    assert answers.ratio(andrew, 14) == 1
    assert answers.ratio(andrew, 10_000) < answers.limit(andrew) == pytest.approx(1.35294, abs=1e-5)
    assert answers.dense_cost(andrew) == 321_600


@pytest.mark.parametrize(
    "words, message",
    [
        ("--multiscale 16 10", "10 x 10 pixels is smaller than the 14 x 14 window"),
        ("--check --arch c5,x2", "cannot read layer 'x2'"),
        ("--check --arch c5,p2 --window 5", "window of 5 pixels is too small"),
        ("--check --arch c5,p2 --multiscale 10", "smaller than the 14 x 14 window"),
        ("--summary --multiscale 9", "smaller than the 14 x 14 window"),
        ("--batch 0", "--batch, --multiscale, --chunk and --sample start at 1"),
        ("--check --arch c5 --stride -1", "--stride at 0"),
    ],
)
def test_wrong_input_is_one_line_and_code_two(words, message, capsys):
    assert main(words.split()) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
