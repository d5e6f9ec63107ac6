from jaxdet import tables


def test_markdown():
    rows = [{"a": 1234567, "b": 1.23456}, {"a": [5, 2, 2, 4], "b": None}, {"b": True}]
    lines = tables.to_markdown(rows, {"a": "first", "b": "second"}).split("\n")
    assert lines[:2] == ["| first | second |", "| --- | --- |"]
    assert lines[2:] == ["| 1,234,567 | 1.2346 |", "| 5 x 2 x 2 x 4 |  |", "|  | yes |"]
