import json
from functools import partial
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import sliding_windows
from benchmarks.lib import agreement, harness, sliding
from benchmarks.sliding_windows import main
from jaxdet.models.sliding import NgSlidingNet
from jaxdet.ops import windows

QUICK = ["--batch", "2", "--sample", "3", "--seconds", "0"]


@pytest.fixture(autouse=True)
def one_thread():
    """PyTorch's threads wait by spinning: on a busy machine, one is faster."""
    if find_spec("torch"):
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(before)
    else:
        yield


@pytest.fixture(scope="module")
def pair():
    return sliding.build_pair(NgSlidingNet())


@partial(jax.jit, static_argnums=0)
def apply(net, variables, images):
    return net.apply(variables, images)


def test_command_times_compares_and_draws(tmp_path, capsys):
    paths = {name: tmp_path / "out" / f"a.{name}" for name in ("json", "plot.png", "markdown")}
    words = [w for name, path in paths.items() for w in (f"--{name.split('.')[0]}", str(path))]
    assert main([*QUICK, "--sizes", "16", "28", *words]) == 0
    assert capsys.readouterr().out == paths["markdown"].read_text()
    assert paths["plot.png"].stat().st_size > 1000
    record = json.loads(paths["json"].read_text(), parse_constant=pytest.fail)
    jax_rows = [row for row in record["rows"] if row["library"] == "jax"]
    assert [row["form"] for row in jax_rows] == [*sliding.FORMS] * 2
    assert [row["output"] for row in jax_rows[:3]] == [[3, 4], [2, 2, 2, 4], [2, 2, 2, 4]]
    assert [row["output"] for row in jax_rows[4:]] == [[2, 8, 8, 4]] * 2
    assert [row["timed_windows"] for row in jax_rows] == [3, 8, 8, 3, 128, 128]
    assert [row["note"] for row in jax_rows] == ["extrapolated", None, None] * 2
    assert all(row["seconds"] > 0 and row["compile_s"] > 0 for row in jax_rows)
    assert [round(row["multiply_adds"], 4) for row in record["ratios"]] == [1.2105, 1.3285]
    assert all(row["jax_loop"] > 0 and row["jax_chunks"] > 0 for row in record["ratios"])
    assert all(row["difference"] < 1e-5 * row["norm"] for row in record["agreement"])
    assert [row["integer_weights"] for row in record["agreement"]] == [0, 0]


def test_pytorch_is_timed_where_it_is_installed(pair):
    pytest.importorskip("torch")
    rows = sliding.compare(
        sliding.workload(pair, agreement.random_images(16), 8, 1), ("torch",), seconds=0.0
    )
    assert [row["output"] for row in rows] == [[1, 4], [1, 2, 2, 4], [1, 2, 2, 4]]
    assert all(row["seconds"] > 0 for row in rows)


def test_pytorch_agrees_with_jax(pair):
    torch = pytest.importorskip("torch")
    from benchmarks.torch_refs import sliding as torch_sliding

    images = agreement.random_images(20, batch=2)
    nets = torch_sliding.build_nets(pair.converted["params"])
    crops = sliding.split_into_crops(pair.sequential, images.shape, stride=2, chunk=9)
    inputs = torch_sliding.to_channels_last(images)
    outputs = torch_sliding.run_sequential(nets[0], inputs, crops, 14, 2)
    slid = sliding.stack_outputs(outputs, (2, 4, 4))
    dense = torch_sliding.run_convolutional(nets[1], inputs)
    expected = apply(pair.convolutional, pair.converted, images)
    assert isinstance(dense, torch.Tensor) and not dense.requires_grad
    np.testing.assert_allclose(slid, expected, atol=1e-5)
    np.testing.assert_allclose(dense, expected, atol=1e-5)


def test_missing_pytorch_is_a_row(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(harness, "find_spec", lambda name: None)
    assert main([*QUICK, "--sizes", "16", "--json", str(tmp_path / "a.json")]) == 0
    assert json.loads((tmp_path / "a.json").read_text())["rows"][-1] == {
        "library": "torch",
        "note": "not installed",
    }
    assert "not installed" in capsys.readouterr().out


def test_size_that_does_not_fit_is_a_row(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(harness, "available_memory", lambda device: 1000)
    assert main([*QUICK, "--sizes", "16", "--torch", "false", "--json", f"{tmp_path}/a.json"]) == 0
    record = json.loads((tmp_path / "a.json").read_text())
    notes = [row["note"] for row in record["rows"]]
    assert notes == ["extrapolated", None, "out of memory", "not asked for"]
    assert record["ratios"][0]["jax_loop"] is None
    assert record["agreement"] == [{"size": 16, "note": "out of memory"}]


@pytest.mark.parametrize("chunk", [1, 3, 8, 17, 1000])
def test_crops_hold_every_window_once(pair, chunk):
    images = agreement.random_images(21, batch=3)  # 4 x 4 windows each
    crops = sliding.split_into_crops(pair.sequential, images.shape, stride=2, chunk=chunk)
    counts = [size[0] * ((size[1] - 14) // 2 + 1) * 4 for _, size in crops]
    assert sum(counts) == 3 * 4 * 4 and max(counts) <= max(chunk, 4)


@pytest.mark.parametrize("size, stride, chunk", [(21, 2, 7), (21, 2, 40), (20, 3, 1000)])
def test_sequential_outputs_are_those_of_the_windows_in_order(pair, size, stride, chunk):
    images = agreement.random_images(size, batch=3)
    slid, _ = sliding.run_both(pair, images, stride, chunk)
    grid = sliding.window_grid(pair.sequential, images.shape, stride)
    cut = jax.jit(jax.vmap(lambda image: windows.extract(image, grid)))(images)
    expected = apply(pair.sequential, pair.variables, cut.reshape(-1, 14, 14, 3))
    np.testing.assert_allclose(slid, expected.reshape(slid.shape), atol=1e-5)


def test_single_windows_are_spread_over_all(pair):
    crops = sliding.single_windows(pair.sequential, (2, 28, 28, 3), stride=2, count=3)
    assert [list(crop.start) for crop in crops] == [[0, 0, 0, 0], [1, 0, 0, 0], [1, 14, 14, 0]]
    assert len(sliding.single_windows(pair.sequential, (2, 28, 28, 3), stride=2, count=999)) == 128


def test_integer_weights_stay_where_float32_is_exact():
    pair = sliding.build_pair(NgSlidingNet(), sample=agreement.sparse_signs)
    bound = jax.tree.map(np.abs, jax.device_get(pair.converted))  # outputs bound every partial sum
    image = np.round(agreement.random_images(64))
    assert apply(pair.convolutional, bound, image).max() < 2**24
    assert np.asarray(apply(pair.convolutional, pair.converted, image)).std() > 1


def test_feature_map_bytes_by_hand():
    expected = 2 * 4 * (12 * 12 * 16 + 6 * 6 * 16 + 2 * 2 * (400 + 400 + 4))
    assert sliding.feature_map_bytes(NgSlidingNet(), (2, 16, 16, 3)) == expected


VERDICTS = {  # worked out by hand: features, window, stride of sliding, size
    ("c5,p2", 14, 0, 16): "agree",
    ("c5,p2", 14, 1, 28): "differ",
    ("c5,p2", 15, 2, 28): "differ",
    ("c5,p2", 15, 2, 17): "agree",
    ("c5p2,p2", 14, 2, 28): "differ",
    ("c5,p2,c3", 14, 2, 28): "agree",
    ("c5,p2,p2", 16, 2, 28): "differ",
    ("c5,p2,p2", 16, 4, 28): "agree",
}


@pytest.mark.parametrize("case", VERDICTS, ids=str)
def test_formulas_and_random_weights_agree(case):
    (row,) = agreement.check([agreement.Case(*case)])
    assert (row["predicted"], row["measured"]) == (VERDICTS[case],) * 2
    assert bool(row["why"]) == (VERDICTS[case] == "differ")


def test_check_covers_the_questions_of_the_assignment():
    assert {case.question[0] for case in agreement.CASES} == {"3", "4", "6", "7"}
    assert "1 of 2" in agreement.markdown([ROW, {**ROW, "measured": "differ"}])


ROW = {"predicted": "agree", "measured": "agree"}


def test_check_takes_an_architecture(capsys):
    words = ["--arch", "c5,p2,c3", "c5,p2,c3,p2", "--window", "16", "--stride", "4"]
    assert main(["--check", *words, "--sizes", "28"]) == 0
    out = capsys.readouterr().out
    assert "steps by 4 pixels, the strides of the layers multiply to 2" in out
    assert "| c5,p2,c3,p2 | 16 | 4 | 28 | 4 x 4 | 4 x 4 | agree | agree |" in out
    assert "agree in 2 of 2 rows" in out


def test_summary_lists_both_networks(capsys):
    assert main(["--summary", "--sizes", "28"]) == 0
    out = capsys.readouterr().out
    assert "| dense1 | 400 | 160,400 |" in out and "| dense1 | 8 x 8 x 400 | 160,400 |" in out
    assert out.count("| sum |  | 323,620 |") == 2


def test_layers_have_the_shapes_that_the_network_gives(pair):
    rows = sliding_windows.layer_rows(pair.convolutional, pair.converted, 20)
    x = jnp.zeros((1, 20, 20, 3))
    out = jax.eval_shape(pair.convolutional.apply, pair.converted, x)
    assert rows[-2]["output"] == list(out.shape[1:])


@pytest.mark.parametrize(
    "words, message",
    [
        ("--sizes 16 10", "10 x 10 pixels is smaller than the 14 x 14 window"),
        ("--check --arch c5,x2", "cannot read layer 'x2'"),
        ("--check --arch c5,p2 --window 5", "window of 5 pixels is too small"),
        ("--check --arch c5,p2 --sizes 10", "smaller than the 14 x 14 window"),
        ("--summary --sizes 9", "smaller than the 14 x 14 window"),
        ("--batch 0", "--batch must be at least 1, got 0"),
        ("--sizes 16 0", "--sizes must be at least 1, got 0"),
        ("--check --arch c5 --stride -1", "--stride must be at least 0, got -1"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_two(words, message, capsys):
    assert main(words.split()) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
