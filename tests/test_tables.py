from jaxdet import tables


def test_markdown():
    rows = [{"a": 1234567, "b": 1.23456}, {"a": [5, 2, 2, 4], "b": None}, {"b": True}]
    lines = tables.to_markdown(rows, {"a": "first", "b": "second"}).split("\n")
    assert lines[:2] == ["| first | second |", "| --- | --- |"]
    assert lines[2:] == ["| 1,234,567 | 1.2346 |", "| 5 x 2 x 2 x 4 |  |", "|  | yes |"]


def test_aligned_pads_columns_and_right_aligns_numbers():
    rows = [
        {"name": "a", "count": 1234567, "score": 0.123456, "shape": [1, 28]},
        {"name": "longer", "count": 5, "score": 12345.6},
        {"name": "c", "score": None},
    ]
    headings = {"name": "name", "count": "count", "score": "score", "shape": "shape"}
    assert tables.aligned(rows, headings).split("\n") == [
        "name        count   score  shape",
        "------  ---------  ------  ------",
        "a       1,234,567  0.1235  1 x 28",
        "longer          5  12,346",
        "c",
    ]
    assert tables.aligned([], ["a", "b"]) == "a  b\n-  -"
