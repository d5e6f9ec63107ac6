import json

import jax
import pytest

from benchmarks import flops
from jaxdet import configs
from jaxdet.profiling import summary


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """(record, page) of two networks."""
    folder = tmp_path_factory.mktemp("flops")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(configs, "NETWORK_NAMES", ("lenet", "ng_sliding"))
        files = ["--json", str(folder / "a.json"), "--markdown", str(folder / "a.md")]
        assert flops.main(files) == 0
    return json.loads((folder / "a.json").read_text()), (folder / "a.md").read_text()


def test_networks_have_the_figures_of_the_assignments(outputs):
    lenet, ng_sliding = outputs[0]["rows"]
    assert (lenet["model"], lenet["input"]) == ("lenet", [1, 32, 32, 3])
    assert (lenet["parameters"], lenet["multiply_adds"]) == (62_006, 651_720)
    assert (ng_sliding["model"], ng_sliding["parameters"]) == ("ng_sliding", 323_620)
    for row in outputs[0]["rows"]:
        assert 2 < row["ratio"] == row["training"] / row["forward"] < 4


def test_layers_are_those_of_describe(outputs):
    named = configs.named_network("lenet")
    images = jax.ShapeDtypeStruct(named.input, "float32")
    found = summary.table_rows(summary.summarize(named.net, images, backward=True), backward=True)
    assert outputs[0]["layers"]["lenet"] == json.loads(json.dumps(found))
    for row in outputs[0]["rows"]:
        *rows, whole = outputs[0]["layers"][row["model"]]
        assert sum(each["total"] for each in rows) == whole["total"] == row["training"]
        assert sum(each["parameters"] for each in rows) == row["parameters"]


def test_page_has_a_table_per_network_below_the_summary(outputs):
    summary, *parts = outputs[1].split("\n### ")
    assert "| lenet | 1 x 32 x 32 x 3 | 62,006 | 651,720 |" in summary
    assert [part.splitlines()[0] for part in parts] == [
        "lenet, 1 x 32 x 32 x 3",
        "ng_sliding, 1 x 28 x 28 x 3",
    ]
    assert all(part.count("\n| sum |") == 1 for part in parts)


def test_the_short_table_has_each_network_once(outputs):
    lenet, other = outputs[0]["rows"]
    rows = [{**lenet, "model": name} for name in ("cifar10", "tutorial", "doubled")]
    rows += [other | {"model": "another"}, other | {"model": flops.RELATIVES[0]}]
    table = flops.summarize({"rows": rows})
    assert [line.split(" | ")[0] for line in table.splitlines()[2:]] == [
        "| cifar10",
        "| another",
    ]


def test_unknown_network_is_one_line_and_exit_code_two(capsys):
    assert flops.main(["--models", "lennet"]) == 2
    err = capsys.readouterr().err
    assert "lenet" in err and err.count("\n") == 1
