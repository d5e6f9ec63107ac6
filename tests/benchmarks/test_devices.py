import json

import pytest

from benchmarks import devices


def test_pmap_and_shard_map_are_timed_beside_one_device(tmp_path, capsys):
    out = tmp_path / "rows.json"
    assert devices.main(["--devices", "4", "--seconds", "0", "--json", str(out)]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [(row["implementation"], row["devices"]) for row in rows] == [
        ("jit, one device", 1),
        ("pmap", 4),
        ("shard_map", 4),
    ]
    for row in rows:
        assert row["ratio"] == pytest.approx(row["median"] / rows[1]["median"])
    assert "| shard_map | 4 |" in capsys.readouterr().out


@pytest.mark.parametrize("count", ["1", "99"])
def test_a_number_of_devices_that_cannot_be_is_refused(count, capsys):
    assert devices.main(["--devices", count]) == 2
    assert f"got {count}" in capsys.readouterr().err
