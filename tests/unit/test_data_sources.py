"""Raw rows: every kind of file, and everything that can be wrong with one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.core.errors import DataError, MissingDependency
from danlu.data.rows import BadRow, RawRow
from danlu.data.sources import iter_raw
from danlu.data.sources.files import find_files, is_data_file, looks_like_path


def put(folder: Path, text: str | bytes, name: str = "rows.json") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return path


def numbered(count: int) -> list[dict[str, str]]:
    return [{"instruction": f"q{i}", "output": "a"} for i in range(count)]


def seen(path: Path) -> list[object]:
    """Instruction (or the first value) of good rows, line number of bad ones."""
    return [
        next(iter(item.value.values())) if isinstance(item, RawRow) else item.origin.line for item in iter_raw(path)
    ]


def bad(path: Path) -> list[BadRow]:
    return [item for item in iter_raw(path) if isinstance(item, BadRow)]


@pytest.mark.parametrize("indent", [None, 0, 2, 4])
def test_an_array_keeps_the_line_of_every_row(tmp_path: Path, indent: int | None) -> None:
    text = json.dumps(numbered(5), indent=indent)
    rows = list(iter_raw(put(tmp_path, text)))
    for index, item in enumerate(rows):
        assert isinstance(item, RawRow)
        assert item.origin.row == index
        expected = text[: text.index(f'"q{index}"')].count("\n") + (indent is None)
        # the object opens one line before its first key, unless everything is on one line
        assert item.origin.line == (1 if indent is None else expected)


def test_one_object_a_line_with_blank_lines_bom_and_crlf(tmp_path: Path) -> None:
    lines = ["", json.dumps({"text": "一"}), "  ", json.dumps({"text": "二"}), ""]
    path = put(tmp_path, "\ufeff" + "\r\n".join(lines))
    assert seen(path) == ["一", "二"]
    assert [item.origin.line for item in iter_raw(path)] == [2, 4]
    assert [item.origin.row for item in iter_raw(path)] == [0, 1]


def test_an_array_with_bom_and_crlf(tmp_path: Path) -> None:
    text = "\ufeff" + json.dumps(numbered(3), indent=2).replace("\n", "\r\n")
    assert [item.origin.line for item in iter_raw(put(tmp_path, text))] == [2, 6, 10]


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows"])
def test_layout_is_seen_from_content_not_from_the_name(tmp_path: Path, name: str) -> None:
    assert seen(put(tmp_path, json.dumps(numbered(2)), name)) == ["q0", "q1"]
    lines = "\n".join(map(json.dumps, numbered(2)))
    assert seen(put(tmp_path, lines, name)) == ["q0", "q1"]
    spread = "\n".join(json.dumps(row, indent=2) for row in numbered(3))
    assert seen(put(tmp_path, spread, name)) == ["q0", "q1", "q2"]


def test_a_broken_line_does_not_hide_the_next(tmp_path: Path) -> None:
    lines = [json.dumps(row) for row in numbered(4)]
    lines[1] = lines[1].replace('"q1",', '"q1"')
    path = put(tmp_path, "\n".join(lines), "rows.jsonl")
    assert seen(path) == ["q0", 2, "q2", "q3"]
    assert bad(path)[0].message == "not valid JSON: expecting ',' delimiter (column 22)"
    assert str(bad(path)[0]).startswith(f"{path}:2: ")


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize(
    ("whole", "broken"),
    [('"q1",', '"q1"'), ('"q1"', '"q1'), ('"q1"', "q1"), ('"q1"', '"q\\x"'), ('"q1"', "[")],
)
def test_a_broken_element_does_not_hide_the_rest_of_an_array(
    tmp_path: Path, indent: int | None, whole: str, broken: str
) -> None:
    text = json.dumps(numbered(4), indent=indent)
    path = put(tmp_path, text.replace(whole, broken))
    found = seen(path)
    assert found[0] == "q0"
    assert found[-2:] == ["q2", "q3"]
    assert len(bad(path)) == 1
    assert bad(path)[0].origin.line == (1 if indent is None else 6)


def test_the_message_names_line_and_column_of_the_error(tmp_path: Path) -> None:
    text = json.dumps(numbered(2), indent=2).replace('"q1",', '"q1"')
    message = bad(put(tmp_path, text))[0].message
    assert message == "not valid JSON: expecting ',' delimiter (line 8, column 5)"


def test_a_cut_file_names_the_row_it_ends_in(tmp_path: Path) -> None:
    text = json.dumps(numbered(3), indent=2)
    path = put(tmp_path, text[:-12])
    assert seen(path) == ["q0", "q1", 10]
    assert bad(path)[0].message == "the file ends inside this row"


def test_an_array_that_is_never_closed_is_said(tmp_path: Path) -> None:
    path = put(tmp_path, json.dumps(numbered(2))[:-1])
    assert [row.message for row in bad(path)] == [
        "the file ends before the array is closed with ]; rows may be missing"
    ]


@pytest.mark.parametrize("cut", range(1, 70, 4))
def test_a_cut_file_followed_by_a_whole_one(tmp_path: Path, cut: int) -> None:
    text = json.dumps(numbered(4), indent=2)
    found = seen(put(tmp_path, f"{text[:-cut]}\n{text}"))
    assert found[:2] == ["q0", "q1"]
    assert [name for name in found if isinstance(name, str)][-4:] == ["q0", "q1", "q2", "q3"]


def test_several_arrays_and_trailing_commas_are_read(tmp_path: Path) -> None:
    text = json.dumps(numbered(2)) + "\n" + json.dumps(numbered(1))[:-1] + ",]"
    assert seen(put(tmp_path, text)) == ["q0", "q1", "q0"]


def test_a_cut_line_before_a_whole_object(tmp_path: Path) -> None:
    first, second = map(json.dumps, numbered(2))
    path = put(tmp_path, f"{first[:20]}{second}\n{first}{second}\n", "rows.jsonl")
    assert seen(path) == [1, "q1", "q0", "q1"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "this is a number"),
        ('["text"]', "this is text"),
        ("[null, {}]", "this is null"),
        ('{"text": "x"}\n[1]', "this is a list"),
        ("hello", "expecting value"),
        ('{"text": ' + "9" * 5000 + "}", "digits"),
        ('[{"text": ' + "9" * 5000 + "}]", "digits"),
        ('{"text": ' + "[" * 100_000 + "}", "nested too deeply"),
        ('[{"text": ' + "[" * 100_000 + "}]", "nested too deeply"),
        ('{"text": "\\ud83d"}', "half of a character"),
        ('[{"text": "\\udc00 x"}]', "half of a character"),
    ],
)
def test_what_is_not_a_row(tmp_path: Path, text: str, message: str) -> None:
    assert message in bad(put(tmp_path, text))[0].message


def test_escaped_pairs_are_characters(tmp_path: Path) -> None:
    path = put(tmp_path, '{"text": "\\ud83d\\ude00"}')
    assert seen(path) == ["😀"]


@pytest.mark.parametrize("text", ["", "\ufeff", " \n\r\n\t"])
@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.csv", "rows.txt"])
def test_an_empty_file(tmp_path: Path, text: str, name: str) -> None:
    with pytest.raises(DataError, match="the file is empty"):
        list(iter_raw(put(tmp_path, text, name)))


@pytest.mark.parametrize("name", ["rows.json", "rows.csv", "rows.txt"])
def test_gb18030_is_named_with_the_byte(tmp_path: Path, name: str) -> None:
    text = '[{"text": "今天天气很好，我们去公园散步。"}]'.encode("gb18030")
    with pytest.raises(DataError) as error:
        list(iter_raw(put(tmp_path, text, name)))
    assert "offset 11 is not UTF-8" in str(error.value)
    assert "gb18030" in str(error.value)
    assert "iconv" in str(error.value)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("x".encode("utf-16"), "UTF-16"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"PK\x03\x04....", "zip"),
        (b"PAR1....", "parquet"),
    ],
)
def test_other_kinds_of_file_are_named(tmp_path: Path, head: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(iter_raw(put(tmp_path, head, "rows.jsonl")))


@pytest.mark.parametrize("array", [False, True])
def test_one_damaged_byte_costs_one_row(tmp_path: Path, array: bool) -> None:
    rows = [f'{{"text": "第{i}行，都是中文"}}'.encode() for i in range(6)]
    rows[3] = rows[3].replace("中".encode(), b"\xff\xfe")
    joined = b"[" + b",\n".join(rows) + b"]" if array else b"\n".join(rows)
    path = put(tmp_path, joined)
    assert [item.origin.line for item in iter_raw(path) if isinstance(item, BadRow)] == [4]
    assert len(seen(path)) == 6


def test_a_row_of_ten_megabytes(tmp_path: Path) -> None:
    text = json.dumps([{"text": "长" * 3_500_000}, {"text": "short"}], ensure_ascii=False, indent=1)
    path = put(tmp_path, text)
    assert path.stat().st_size > 10_000_000
    lengths = [len(item.value["text"]) for item in iter_raw(path) if isinstance(item, RawRow)]
    assert lengths == [3_500_000, 5]


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    import tracemalloc

    row = json.dumps({"text": "x" * 1000})
    path = put(tmp_path, "[" + ",\n".join([row] * 12_000) + "]")
    tracemalloc.start()
    count = sum(1 for _ in iter_raw(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 12_000
    assert peak < path.stat().st_size / 1.5


def test_csv_cells_lines_and_problems(tmp_path: Path) -> None:
    text = 'a,b\n1,2\n"two\nlines",3\n4\n\n5,6\n'
    path = put(tmp_path, text, "rows.csv")
    found = [(i.origin.line, i.value if isinstance(i, RawRow) else i.message) for i in iter_raw(path)]
    assert found == [
        (2, {"a": "1", "b": "2"}),
        (3, {"a": "two\nlines", "b": "3"}),
        (5, "it has 1 cells, the header has 2"),
        (7, {"a": "5", "b": "6"}),
    ]


@pytest.mark.parametrize("broken", ['"x,3', '"x"y,3'])
def test_one_wrong_quote_does_not_swallow_a_table(tmp_path: Path, broken: str) -> None:
    path = put(tmp_path, f"a,b\n1,2\n{broken}\n4,5\n6,7\n", "rows.csv")
    assert seen(path) == ["1", 3, "4", "6"]
    assert "not valid CSV" in bad(path)[0].message


def test_tsv_and_bom(tmp_path: Path) -> None:
    path = put(tmp_path, "\ufeff问题\t答案\r\n甲,乙\t丙\r\n", "rows.tsv")
    assert [item.value for item in iter_raw(path) if isinstance(item, RawRow)] == [{"问题": "甲,乙", "答案": "丙"}]


@pytest.mark.parametrize("header", ["a,a", "a,,b"])
def test_csv_columns_have_one_name_each(tmp_path: Path, header: str) -> None:
    with pytest.raises(DataError, match="column names"):
        list(iter_raw(put(tmp_path, f"{header}\n1,2\n", "rows.csv")))


def test_a_damaged_line_of_a_table(tmp_path: Path) -> None:
    path = put(tmp_path, "a,b\n好好,好好\n".encode() + b"\xff,1\n" + "好好,2\n好好,好好\n".encode(), "rows.csv")
    assert seen(path) == ["好好", 3, "好好", "好好"]


def test_a_cell_longer_than_the_csv_module_likes(tmp_path: Path) -> None:
    path = put(tmp_path, f"a\n{'x' * 300_000}\n", "rows.csv")
    assert [len(value) for value in seen(path) if isinstance(value, str)] == [300_000]


def test_text_is_one_row_a_line(tmp_path: Path) -> None:
    path = put(tmp_path, "first\n\n  second \n", "rows.txt")
    assert seen(path) == ["first", "  second"]


@pytest.mark.parametrize("kind", ["parquet", "arrow", "stream"])
def test_parquet_and_arrow(tmp_path: Path, kind: str) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import ipc, parquet

    table = pyarrow.Table.from_pylist([{"text": f"第{i}行", "turns": [{"role": "user"}]} for i in range(2500)])
    path = tmp_path / f"rows.{'parquet' if kind == 'parquet' else 'arrow'}"
    if kind == "parquet":
        parquet.write_table(table, path)
    else:
        opener = ipc.new_file if kind == "arrow" else ipc.new_stream
        with pyarrow.OSFile(str(path), "wb") as sink, opener(sink, table.schema) as writer:
            writer.write_table(table)
    rows = list(iter_raw(path))
    assert len(rows) == 2500
    assert rows[2499].origin.row == 2499
    assert str(rows[7].origin) == f"{path}:row 7"
    assert isinstance(rows[7], RawRow)
    assert rows[7].value == {"text": "第7行", "turns": [{"role": "user"}]}


@pytest.mark.parametrize("name", ["rows.parquet", "rows.arrow"])
def test_broken_parquet_and_arrow(tmp_path: Path, name: str) -> None:
    pytest.importorskip("pyarrow")
    with pytest.raises(DataError, match="cannot be read as"):
        list(iter_raw(put(tmp_path, "not that at all", name)))


@pytest.mark.parametrize("name", ["rows.parquet", "rows.arrow"])
def test_without_pyarrow_the_extra_is_named(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependency, match=r"danlu\[data\]"):
        list(iter_raw(put(tmp_path, "x", name)))


def test_missing_files_and_unknown_endings(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        list(iter_raw(tmp_path / "none.json"))
    with pytest.raises(DataError, match=r"'\.jsnl' are not read\. Did you mean jsonl"):
        list(iter_raw(put(tmp_path, "{}", "rows.jsnl")))
    with pytest.raises(DataError, match="no ending"):
        list(iter_raw(put(tmp_path, "hello", "rows")))


def test_files_folders_and_patterns(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.json", "notes.md", "dataset_info.json", ".hidden.json"):
        put(tmp_path, "{}", name)
    (tmp_path / "deep").mkdir()
    put(tmp_path / "deep", "{}", "c.csv")
    names = [path.name for path in find_files(str(tmp_path))]
    assert names == ["a.json", "b.jsonl"]
    assert [path.name for path in find_files(str(tmp_path / "**" / "*.*s*"))] == [
        "a.json",
        "b.jsonl",
        "c.csv",
    ]
    assert find_files("a.json", tmp_path) == [tmp_path / "a.json"]
    assert [path.name for path in find_files(str(tmp_path / "deep"))] == ["c.csv"]


def test_a_folder_of_folders_is_searched_below(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    put(tmp_path / "deep", "{}", "c.json")
    assert [path.name for path in find_files(str(tmp_path))] == ["c.json"]


def test_missing_files_name_the_nearest(tmp_path: Path) -> None:
    put(tmp_path, "{}", "alpaca_zh.json")
    with pytest.raises(DataError, match=r"Did you mean alpaca_zh\.json"):
        find_files(str(tmp_path / "alpaca_zn.json"))
    with pytest.raises(DataError, match="does not exist"):
        find_files(str(tmp_path / "nowhere" / "x.json"))
    with pytest.raises(DataError, match="no data file matches"):
        find_files(str(tmp_path / "*.csv"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no data file in this folder"):
        find_files(str(tmp_path / "empty"))


def test_what_a_name_looks_like() -> None:
    assert all(map(looks_like_path, ["x.json", "./x", "/x", "~/x", "a/*.csv", "a\\b"]))
    assert not any(map(looks_like_path, ["alpaca_zh", "owner/name"]))
    assert is_data_file("a/train-0.parquet")
    assert not is_data_file("README.md")


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=20), max_size=3), min_size=1, max_size=8),
    indent=st.sampled_from([None, 0, 2]),
    ascii_only=st.booleans(),
)
def test_any_rows_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]], indent: int | None, ascii_only: bool
) -> None:
    folder = tmp_path_factory.mktemp("any")
    array = json.dumps(rows, indent=indent, ensure_ascii=ascii_only)
    lines = "\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in rows)
    for text in (array, lines):
        path = put(folder, text)
        assert [item.value for item in iter_raw(path) if isinstance(item, RawRow)] == rows


@settings(max_examples=150, deadline=None)
@given(st.binary(min_size=1, max_size=80))
def test_any_bytes_are_rows_bad_rows_or_an_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("any")
    for name in ("x.json", "x.csv", "x.txt"):
        try:
            for item in iter_raw(put(folder, content, name)):
                assert item.origin.line >= 1
        except DataError:
            continue


def test_a_wrong_row_at_the_end_is_not_a_cut_file(tmp_path: Path) -> None:
    path = put(tmp_path, '[\n{"a": 1},\n{"a": "x" "b": 1}\n]', "x.json")
    assert [item.message for item in bad(path)] == ["not valid JSON: expecting ',' delimiter (line 3, column 11)"]
    path = put(tmp_path, '[\n{"a": 1},\n{"a": tr', "cut.json")
    assert bad(path)[0].message == "the file ends inside this row"
