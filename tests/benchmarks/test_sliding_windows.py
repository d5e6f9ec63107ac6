import json
import re
from functools import partial
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from benchmarks import sliding_windows
from benchmarks.lib import agreement, harness, sliding, units
from benchmarks.sliding_windows import SIZES, main
from jaxdet import configs
from jaxdet.configs.digits import Config
from jaxdet.models.sliding import NgSlidingNet, multiply_adds
from jaxdet.ops import windows
from tests.reference import windows as reference_windows

pytestmark = pytest.mark.long  # it runs and times whole programs

ROOT = Path(sliding_windows.__file__).parents[1]
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
        sliding.make_workload(pair, agreement.random_images(16), 8, 1), ("torch",), seconds=0.0
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
    assert len(agreement.CASES) == 18 and "by default in 18 cases" in TEXT
    assert {case.question[0] for case in agreement.CASES} == {"3", "4", "6", "7"}
    assert "1 of 2" in agreement.markdown([ROW, {**ROW, "measured": "differ"}])


ROW = {"predicted": "agree", "measured": "agree"}


def test_check_takes_an_architecture(capsys):
    words = ["--arch", "c5,p2,c3", "c5,p2,c3,p2", "--window", "16", "--stride", "4"]
    assert main(["--check", *words, "--sizes", "28"]) == 0
    out = capsys.readouterr().out
    assert "steps by 4 pixels, but the strides of the layers multiply to 2" in out
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
        ("--check --arch c5,x2", "layers must be words such as c5, p2 or c3s2p1, got 'x2'"),
        ("--check --arch c5,p2 --window 5", "window must be larger, got 5 pixels"),
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


PAGE = (ROOT / "docs" / "sliding_windows.md").read_text()
RECORD = json.loads((ROOT / "benchmarks" / "results" / "sliding_windows.json").read_text())
TEXT = " ".join(PAGE.split())


def page_table(heading):
    """Rows of the table on the page whose first column has this heading."""
    lines = PAGE[PAGE.index(f"| {heading} |") :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_page_has_the_layers_of_both_forms():
    window, image = sliding_windows.summarize_layers(28).values()
    rows = page_table("layer")
    names = ["input", "convolution", "max pool", *["dense"] * 3, "sum"]
    for row, name, one, other in zip(rows, names, window, image, strict=True):
        assert row[0].startswith(name)
        outputs = [" x ".join(map(str, layer.get("output", ()))) for layer in (one, other)]
        assert row[1:] == [*outputs, f"{one['parameters']:,}"]
        assert one["parameters"] == other["parameters"]


def test_page_has_the_multiply_adds_of_both_forms():
    net = NgSlidingNet()
    recorded = {row["size"]: row for row in sliding_windows.costs(RECORD)}
    for size, count, *costs, ratio, chunks, whole, measured in page_table("H"):
        size = int(size)
        own = recorded[size]
        for cell, name in ((chunks, "jax_chunks_s"), (whole, "jax_convolutional_s")):
            expected = units.format_quantity(own[name], "s")
            assert in_milliseconds(cell) == in_milliseconds(expected)
        assert measured == f"{own['jax_chunks']:.2f}"
        grid = windows.grid(net.chain(), size, size)
        sequential, convolutional = (multiply_adds(form, size, size) for form in both_forms(net))
        assert int(count.replace(",", "")) == grid.rows * grid.columns == grid.rows**2
        assert costs == [f"{sequential:,}", f"{convolutional:,}"]
        assert ratio == f"{sequential / convolutional:.2f}"
        assert sequential == 441_600 * grid.rows**2
        assert convolutional == 1_200 * (size - 4) ** 2 + 321_600 * grid.rows**2


def both_forms(net):
    return net.clone(form="sequential"), net.clone(form="convolutional")


def cost_ratio(net, size, channels):
    """Multiply-adds of sliding over those of one convolution, on one square image."""
    slid, dense = (multiply_adds(form, size, size, channels) for form in both_forms(net))
    return slid / dense


def test_page_has_the_ratios_of_large_images_and_of_digits():
    net = NgSlidingNet()
    assert cost_ratio(net, 14, 3) == 1
    limit = cost_ratio(net, 10**8, 3)
    assert cost_ratio(net, 10_000, 3) < limit == pytest.approx(441_600 / 326_400, abs=1e-5)
    assert f"441,600 / (4,800 + 321,600) = {limit:.4f} in the limit" in TEXT
    config = Config()
    digits = configs.network("digits", config)[0]
    ratios = cost_ratio(digits, config.canvas, 1), cost_ratio(digits, 10**8, 1)
    assert (
        "the ratio is {:.1f} on its canvas of 64 x 64 pixels and {:.1f} in the".format(*ratios)
        in TEXT
        and config.canvas == 64
    )


def counts(features, window, size, stride=None):
    """Windows per side (convolutional, sequential); the stride is by default that of the layers."""
    chain = (*features, windows.head_layer(features, window))
    stride = stride or windows.receptive_field(features).stride
    sliding_chain = (windows.conv(window, stride),)
    return windows.output_size(chain, size), windows.output_size(sliding_chain, size)


@pytest.mark.parametrize(
    "layout, window, size, expected, quote",
    [
        ("c5,p2", 15, 16, (2, 1), "At 16 pixels there are then 2 outputs per side in one"),
        ("c5,p2", 15, 28, (8, 7), "but 1 window per side when sliding, at 28 pixels 8 and 7."),
        ("c5,p2", 15, 17, (2, 2), "At 17 pixels both have 2, and they agree"),
        ("c5,p2,p2", 14, 28, (5, 4), "28 pixels have 5 outputs per side in one convolution but 4"),
        ("c5,p2", 14, 28, (8, 8), "| dense, 4 outputs | 4 | 8 x 8 x 4 | 1,604 |"),
    ],
)
def test_page_has_the_counts_of_windows(layout, window, size, expected, quote):
    assert counts(windows.parse(layout), window, size) == expected
    assert quote in TEXT


@pytest.mark.parametrize(
    "layout, window, stride, agree, quote",
    [
        ("c5,p2", 14, 2, True, "For the example this holds at stride 2 for every image"),
        ("c5,p2,c3", 14, 2, True, "after the pool, both ways still agree at stride 2"),
        ("c5,p2,c3s2", 14, 2, False, "has stride 2, they differ at stride 2 and agree at stride 4"),
        ("c5,p2,c3s2", 14, 4, True, "has stride 2, they differ at stride 2 and agree at stride 4"),
        ("c5,p2,p2", 16, 2, False, "they differ at stride 2 and agree at stride 4 = 2 x 2"),
        ("c5,p2,p2", 16, 4, True, "agree at stride 4 = 2 x 2, for windows of 16 pixels"),
        ("c5,p2,p2", 14, 4, False, "For windows of 14 pixels stride 4 is not enough"),
    ],
)
def test_page_says_where_both_ways_agree(layout, window, stride, agree, quote):
    sizes = range(window, 65) if agree else [28]
    features = windows.parse(layout)
    assert all(
        (windows.differences(features, window, size, stride) == ()) == agree for size in sizes
    )
    assert quote in TEXT


def test_page_has_the_pixels_that_the_layers_use():
    def used(layout, window):
        features = windows.parse(layout)
        return windows.receptive_field((*features, windows.head_layer(features, window))).window

    assert used("c5,p2", 15) == 14 and "the network really looks at 14 pixels" in TEXT
    assert used("c5,p2,p2", 14) == 12 and "looks at only 12 of the 14 pixels" in TEXT
    head = windows.head_layer(windows.parse("c5,p2,c3"), 14)
    assert head.kernel == 3 and "the head shrinks, from 5 x 5 to 3 x 3" in TEXT


def test_python_on_the_page_runs():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    names = {}
    exec(code, names)
    chain = windows.parse("c5,p2,c3s2")
    field = windows.receptive_field(chain)
    found = names["windows"]([(layer.kernel, layer.stride) for layer in chain], 61)
    assert found == (field.window, field.stride, windows.output_size(chain, 61))
    check_by_brute_force(names["windows"])


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.builds(windows.conv, st.integers(1, 5), st.integers(1, 3)) | st.just(windows.pool()),
        min_size=1,
        max_size=5,
    ),
    st.integers(1, 80),
)
def check_by_brute_force(formula, chain, height):
    """The answer to question 8 against pixels traced through every layer."""
    fields = reference_windows.receptive_fields(chain, height)
    assume(fields)
    window, stride, count = formula([(layer.kernel, layer.stride) for layer in chain], height)
    assert fields == [(i * stride, i * stride + window) for i in range(count)]


def test_page_has_the_recorded_times():
    recorded = {
        (row["size"], row["library"], row["form"]): units.format_quantity(row["seconds"], "s")
        + "*" * (row["note"] == "extrapolated")
        for row in RECORD["rows"]
    }
    last = PAGE[PAGE.rindex("| H |") :].split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in last]
    assert [int(size) for size, *_ in cells] == list(SIZES)
    for size, *times in cells:
        expected = [recorded[int(size), *way] for way in product(sliding.LIBRARIES, sliding.FORMS)]
        assert [in_milliseconds(time) for time in times] == list(map(in_milliseconds, expected))


def in_milliseconds(text):
    """The page writes 0.891 ms where a table has 891 µs."""
    value, unit = text.removesuffix("*").split()
    return round(float(value) * {"µs": 1e-3, "ms": 1, "s": 1e3}[unit], 6), text.endswith("*")


def test_page_has_the_recorded_norms_and_memory():
    first, *others = RECORD["agreement"]
    norms = (
        f"{first['difference']:.2e} at 16 pixels (the norm of the output is {first['norm']:.2f})"
    )
    assert norms in TEXT and {row["difference"] for row in others} == {0}
    assert {row["integer_weights"] for row in RECORD["agreement"]} == {0}
    peaks = {
        row["form"]: units.format_quantity(row["peak_bytes"], "B")
        for row in RECORD["rows"]
        if (row["size"], row["library"]) == (1080, "jax")
    }
    net = NgSlidingNet()
    rows = windows.grid(net.chain(), 1080, 1080).rows
    dense = units.format_quantity(4 * 5 * rows**2 * net.fc_widths[0], "B")
    assert f"takes {dense}, and a run of jax {peaks['convolutional']} at its peak" in TEXT
    assert f"in chunks it takes {peaks['chunks']}" in TEXT
