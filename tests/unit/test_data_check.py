"""Check, statistics and convert: what they find, and what they say about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from danlu.core.errors import DataError, UsageError
from danlu.data.check import check, unusual
from danlu.data.convert import convert
from danlu.data.loading import load_rows
from danlu.data.schema import (
    Conversation,
    Document,
    Example,
    Message,
    Preference,
    Row,
    ToolCall,
    UnpairedPreference,
)
from danlu.data.statistics import Answers, answers, characters, language, lengths, statistics


def put(folder: Path, name: str, rows: list[Any]) -> Path:
    path = folder / name
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def alpaca(text: str, answer: Any = "a", **more: Any) -> dict[str, Any]:
    return {"instruction": text, "input": "", "output": answer, **more}


def conversation(*roles: str) -> Conversation:
    return Conversation(tuple(Message(role, f"{role} says") for role in roles))  # type: ignore[arg-type]


def test_check_names_every_bad_row_and_writes_the_good_ones(tmp_path: Path) -> None:
    rows = [alpaca("1"), alpaca("2", ""), '{"instruction": "3"', alpaca("4", 5), alpaca("5", id="kept")]
    path = put(tmp_path, "x.jsonl", rows)
    good = tmp_path / "good" / "rows.jsonl"
    report = check(str(path), write_good=good)
    assert [row.place for row in report.bad] == [f"{path}:2:output", f"{path}:3", f"{path}:4:output"]
    assert report.good == 2
    assert report.files == ((str(path), "alpaca", 5),)
    assert report.kinds == {"Example": 2}
    written = [json.loads(line) for line in good.read_text(encoding="utf-8").splitlines()]
    assert written == [rows[0], rows[4]]
    assert check(str(good)).bad == ()


def test_check_goes_on_behind_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    put(tmp_path, "a.jsonl", [alpaca("1")])
    (tmp_path / "b.json").write_text("")
    put(tmp_path, "c.jsonl", [alpaca("2")])
    put(tmp_path, "d.jsonl", [{"left": 1}])
    report = check(str(tmp_path))
    assert report.good == 2
    assert [str(row).removeprefix(f"{tmp_path}/") for row in report.bad] == [
        "b.json: the file is empty. Give a file with at least one row",
        "d.jsonl: no known format has these columns: left. Name them under columns of an entry in dataset_info.json",
    ]


def test_check_does_not_overwrite_what_it_reads(tmp_path: Path) -> None:
    path = put(tmp_path, "x.jsonl", [alpaca("1")])
    before = path.read_bytes()
    with pytest.raises(DataError, match="would overwrite"):
        check(str(path), write_good=path)
    assert path.read_bytes() == before


def test_check_passes_warnings_on(tmp_path: Path) -> None:
    put(tmp_path, "x.jsonl", [alpaca("1", system="s")])
    entry = {"file_name": "x.jsonl", "file_sha1": "00", "rankin": True}
    put(tmp_path, "dataset_info.json", [{"mine": entry}])
    warnings = check("mine", dataset_dir=tmp_path).warnings
    assert len(warnings) == 3
    assert "rankin" in warnings[0]
    assert "checksum" in warnings[1]
    assert "'system'" in warnings[2]


@pytest.mark.parametrize(
    ("row", "notes"),
    [
        (Example(conversation("user", "assistant")), []),
        (Example(conversation("assistant")), ["the assistant speaks first"]),
        (Example(conversation("system", "assistant")), ["the assistant speaks first"]),
        (Example(conversation("user", "user", "assistant")), ["two user turns in a row"]),
        (Example(conversation("user", "assistant", "assistant")), ["two assistant turns in a row"]),
        (Example(conversation("user", "system", "assistant")), ["a system prompt after the first turn"]),
        (Example(conversation("user", "tool", "assistant")), ["a tool result without a call before it"]),
        (UnpairedPreference(conversation("assistant"), True), ["the assistant speaks first"]),
        (
            Preference(conversation("user"), Message("assistant", "a"), Message("assistant", "a")),
            ["chosen and rejected are the same"],
        ),
        (Document("x"), []),
    ],
)
def test_unusual_rows_are_usable_and_noted(row: Row, notes: list[str]) -> None:
    assert unusual(row) == notes


def test_several_results_of_several_calls_are_usual() -> None:
    calls = (ToolCall("f", "{}"), ToolCall("g", "{}"))
    turns = (
        Message("user", "q"),
        Message("assistant", "", calls),
        Message("tool", "1"),
        Message("tool", "2"),
    )
    assert unusual(Example(Conversation((*turns, Message("assistant", "a"))))) == []


def test_personal_data_is_counted_by_kind_with_its_first_place_and_not_repeated(tmp_path: Path) -> None:
    rows = [alpaca("你好"), alpaca("我的电话", "是13800138000。"), alpaca("写信给a@b.cn", "打13900139000")]
    path = put(tmp_path, "p.jsonl", [*rows, {"instruction": 13800138000}])
    told = check(str(path), pii=True).warnings
    assert sorted(told) == [
        f"personal data (email) in 1 row, the first is {path}:3",
        f"personal data (phone) in 2 rows, the first is {path}:2",
    ]
    assert check(str(path)).warnings == ()
    assert check(str(path), pii=True).good == 3


def test_repeated_rows_are_noted(tmp_path: Path) -> None:
    put(tmp_path, "a.jsonl", [alpaca("1"), alpaca("1"), alpaca("2")])
    put(tmp_path, "b.jsonl", [{"question": "1", "answer": "a"}])
    assert check(str(tmp_path)).notes == {"the same row again": 2}


def test_statistics_of_known_rows() -> None:
    rows: list[Row] = [
        Example(Conversation((Message("user", "x" * 10), Message("assistant", "y" * 20)))),
        Example(Conversation((Message("user", "x" * 10), Message("assistant", "y" * 20)))),
        Example(
            Conversation(
                (Message("system", "你好"), *conversation("user", "assistant", "user", "assistant").messages),
                ("{}",),
            )
        ),
        Document("今天天气很好" * 20),
        Preference(conversation("user"), Message("assistant", "long" * 5), Message("assistant", "b")),
    ]
    measured = statistics(rows, cutoff=40)
    assert measured.rows == 5
    assert measured.unit == "characters"
    assert measured.duplicates == 1
    assert measured.kinds == {"Example": 3, "Document": 1, "Preference": 1}
    assert measured.turns == {1: 3, 2: 1}
    assert (measured.system, measured.tools) == (1, 1)
    assert measured.languages == {"zh": 1, "en": 4}
    assert measured.lengths.longest == 120
    assert measured.lengths.p50 == 30
    assert measured.over_cutoff == 2
    assert measured.lost == (120 - 40) + (2 + 2 * 9 + 2 * 14 - 40)
    assert characters(rows[4]) == len("user says") + 20
    assert answers(rows[3]) == 0


def test_statistics_can_count_tokens() -> None:
    measured = statistics([Document("a b c"), Document("d")], count=lambda row: len(row.text.split()), cutoff=2)  # type: ignore[union-attr]
    assert measured.unit == "tokens"
    assert measured.lengths.total == 4
    assert (measured.over_cutoff, measured.lost) == (1, 1)


def test_statistics_of_answers() -> None:
    def of(better: str, worse: str) -> Preference:
        return Preference(conversation("user"), Message("assistant", better), Message("assistant", worse))

    pairs: list[Row] = [of("long" * 3, "b"), of("b", "longer"), of("same", "same"), of("yes", "no")]
    found = statistics(pairs).answers
    assert found == Answers(
        pairs=4, same=1, longer=2, better=(12 + 1 + 4 + 3) / 4, worse=(1 + 6 + 4 + 2) / 4, wanted=0, unwanted=0
    )
    labelled: list[Row] = [
        UnpairedPreference(conversation("user", "assistant"), wanted) for wanted in (True, True, False)
    ]
    found = statistics(labelled, count=lambda row: 1, measure=lambda text: len(text.split())).answers
    assert found == Answers(pairs=0, same=0, longer=0, better=2, worse=2, wanted=2, unwanted=1)
    assert statistics([Document("x")]).answers is None


def test_statistics_of_nothing() -> None:
    measured = statistics([], cutoff=5)
    assert (measured.rows, measured.over_cutoff, measured.lengths.bins) == (0, 0, ())


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=200))
def test_lengths_add_up(sizes: list[int]) -> None:
    found = lengths(sizes)
    assert sum(rows for _, _, rows in found.bins) == len(sizes)
    assert all(end > start for start, end, _ in found.bins)
    assert all(a[1] == b[0] for a, b in zip(found.bins, found.bins[1:], strict=False))
    assert found.bins[0][0] <= min(sizes) <= max(sizes) < found.bins[-1][1]
    assert found.p50 <= found.p95 <= found.p99 <= found.longest == max(sizes)
    assert sum(size <= found.p95 for size in sizes) >= 0.95 * len(sizes)
    assert {found.p50, found.p95, found.p99} <= set(sizes)


def test_percentiles_are_nearest_ranks() -> None:
    found = lengths(range(1, 101))
    assert (found.p50, found.p95, found.p99, found.longest, found.mean) == (50, 95, 99, 100, 50.5)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("今天天气很好", "zh"),
        ("The weather is fine", "en"),
        ("用 Python 写一个快速排序函数", "zh"),
        ("Translate 你好 into English, and then say it aloud slowly", "en"),
        ("今日はとても天気がいいです", "other"),
        ("오늘 날씨가 좋다", "other"),
        ("Сегодня хорошая погода", "other"),
        ("Größe und Maße", "en"),
        ("12 + 30 = 42", "other"),
        ("", "other"),
    ],
)
def test_language_by_script(text: str, expected: str) -> None:
    assert language(text) == expected


def test_convert_says_what_is_lost_and_how_often(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "loss": False}]
    call = {"role": "tool_call", "content": '{"name": "f", "arguments": {}}'}
    rows = [
        {"messages": messages, "id": 1},
        {"messages": [messages[0], {"role": "assistant", "content": "a"}], "id": 2, "note": ""},
        {"messages": [messages[0], call, {"role": "tool", "content": "1"}, messages[1]]},
        {"messages": messages[:1]},
    ]
    target = tmp_path / "out.json"
    report = convert(str(put(tmp_path, "x.jsonl", rows)), target, "alpaca")
    assert (report.read, report.written) == (4, 2)
    assert report.lost == {"which turns are trained": 1}
    assert list(report.left_out.values()) == [1]
    assert "tools" in next(iter(report.left_out))
    assert report.columns == {"id": 2}
    assert [row.field for row in report.bad] == ["messages[0]"]
    assert report.source_format == "openai"
    value = json.loads(target.read_text(encoding="utf-8"))
    assert value == [{"instruction": "q", "input": "", "output": "a"}] * 2


@pytest.mark.parametrize("to", ["sharegpt", "openai", "native"])
@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_convert_there_and_back_loses_nothing(tmp_path: Path, to: str, ending: str) -> None:
    rows = [alpaca("问"), alpaca("2", system="s", history=[["h", "i"]]), alpaca("3", ["good", "bad"])]
    rows += [{**alpaca("4"), "kto_tag": False}]
    start = put(tmp_path, "x.jsonl", rows[:3])
    middle, end = tmp_path / f"middle.{ending}", tmp_path / f"end.{ending}"
    there = convert(str(start), middle, to)
    # chosen_messages and messages in one file: told what it is, not guessed
    info = {"m": {"file_name": middle.name, "formatting": to, "columns": _all_columns(to)}}
    put(tmp_path, "dataset_info.json", [info])
    back = convert("m", end, "pair", dataset_dir=tmp_path)
    assert (there.lost, there.left_out, back.lost, back.left_out) == ({}, {}, {}, {})
    assert load_rows(str(end)).rows == load_rows(str(start)).rows


def _all_columns(to: str) -> dict[str, str]:
    from danlu.data.formats import usual_shape
    from danlu.data.formats.shape import Columns

    columns = usual_shape(to).columns
    return {name: value for name in Columns.__slots__ if (value := getattr(columns, name))}


def test_json_arrays_are_readable_and_keep_chinese(tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    convert(str(put(tmp_path, "x.jsonl", [alpaca("问"), alpaca("再问")])), target, "alpaca")
    text = target.read_text(encoding="utf-8")
    assert text.startswith('[\n  {\n    "instruction": "问",')
    assert text.endswith("  }\n]\n")


@pytest.mark.parametrize(
    ("to", "name", "kind", "message"),
    [
        ("sharegtp", "out.json", UsageError, "Did you mean sharegpt"),
        ("alpaca", "out.csv", UsageError, r"must end in \.json or \.jsonl"),
        ("alpaca", "x.jsonl", UsageError, "onto itself"),
        ("text", "out.json", DataError, "no row can be written as text: a conversation becomes"),
    ],
)
def test_conversions_that_cannot_be(tmp_path: Path, to: str, name: str, kind: type[Exception], message: str) -> None:
    path = put(tmp_path, "x.jsonl", [alpaca("1")])
    with pytest.raises(kind, match=message):
        convert(str(path), tmp_path / name, to)
    assert [item.name for item in tmp_path.iterdir()] == ["x.jsonl"]


def test_a_conversion_without_one_good_row_names_the_first_bad(tmp_path: Path) -> None:
    path = put(tmp_path, "x.jsonl", [alpaca("1", "")])
    with pytest.raises(DataError, match=r"x\.jsonl:1:output: the answer is empty"):
        convert(str(path), tmp_path / "y.json", "openai")
