"""Formats: doubtful cases, names of one's own, what each format can hold, and any value at all."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_rows import ANSWER, HERE, PAIR, WANTED, WEATHER, chat, example, read, turns

from danlu.core.errors import DataError
from danlu.data.formats import FORMATS, read_row, usual_shape, write_row
from danlu.data.formats.detect import detect
from danlu.data.formats.shape import NO_COLUMNS, Columns, Shape, Tags
from danlu.data.rows import BadRow, CannotHold
from danlu.data.schema import (
    Conversation,
    Document,
    Example,
    Message,
    Preference,
    Row,
)


def test_a_prompt_that_is_json_text() -> None:
    rest = {"chosen": "good", "rejected": "bad"}
    assert read({"prompt": '[{"role": "user", "content": "q"}]', **rest}) == PAIR
    for text in ('[{"a": 1}]', "[{x} sum it up"):
        result = read({"prompt": text, **rest})
        assert isinstance(result, Preference)
        assert result.prompt.messages == (Message("user", text),)


def test_a_class_label_is_not_a_wish() -> None:
    assert read({"instruction": "q", "output": "a", "label": "sports"}) == example("q", "a")
    assert read({**chat(ANSWER), "label": 4}) == example("q", "a")


def test_a_missing_label_beside_others_is_an_example() -> None:
    shape = detect([{**chat(ANSWER), "label": True}], where="x")
    assert read({**chat(ANSWER), "label": None}, shape) == example("q", "a")


def test_two_ways_to_join_instruction_and_input() -> None:
    value = {"instruction": "q", "input": "x", "output": "a"}
    assert read(value, usual_shape("alpaca", separator="")) == example("qx", "a")
    assert read(value, usual_shape("alpaca")) == example("q\nx", "a")


def test_own_names_of_columns_and_roles() -> None:
    shape = Shape(
        "sharegpt",
        replace(NO_COLUMNS, messages="dialog", system="persona"),
        Tags("who", "what", "客户", "客服", "结果", "调用", "设定"),
    )
    value = {
        "dialog": [{"who": "客户", "what": "q"}, {"who": "客服", "what": "a"}],
        "persona": "s",
        "tools": "not read",
    }
    assert read(value, shape) == Example(Conversation((Message("system", "s"), *turns("q", "a"))))


def test_a_prompt_column_alone_is_plain_text() -> None:
    shape = Shape("alpaca", replace(NO_COLUMNS, prompt="text"))
    assert read({"text": "words", "output": "not read"}, shape) == Document("words")


def test_ranking_without_a_second_answer_is_named() -> None:
    shape = Shape("alpaca", replace(Columns(), chosen="chosen", rejected="rejected"), ranking=True)
    result = read({"instruction": "q", "input": "", "chosen": "a"}, shape)
    assert isinstance(result, BadRow)
    assert (result.field, result.message) == ("rejected", "the answer is missing")


def test_columns_that_come_later_are_seen_together() -> None:
    rows = [{"instruction": "q", "output": None}, {"instruction": "q", "output": ["a", "b"]}, {"input": "x"}]
    assert detect(rows, where="x").format == "alpaca"


def test_columns_that_fit_nothing_are_listed() -> None:
    with pytest.raises(DataError, match=r"rows\.json: no known format has these columns: left, right\."):
        detect([{"left": 1, "right": 2}], where="rows.json")


@pytest.mark.parametrize("name", FORMATS.names())
def test_no_format_writes_what_it_cannot_hold(name: str) -> None:
    rows: list[Row] = [example("q", "a"), PAIR, WANTED, Document("words")]
    held = 0
    for row in rows:
        try:
            value = write_row(row, name)
        except CannotHold:
            continue
        held += 1
        assert read_row(value, usual_shape(name), HERE) == row
    assert held >= 1


@pytest.mark.parametrize(
    ("row", "name", "reason"),
    [
        (Document("x"), "alpaca", "plain text"),
        (Document("x"), "sharegpt", "plain text"),
        (Document("x"), "openai", "plain text"),
        (Document("x"), "native", "plain text"),
        (example("q", "a"), "text", "template"),
        (example("q", "a"), "preference", "worse answer"),
        (example("q", "a"), "kto", "label"),
        (PAIR, "rounds", "only examples"),
        (
            Example(Conversation((Message("user", "q"), Message("assistant", "", (WEATHER,))))),
            "alpaca",
            "tool",
        ),
        (Example(Conversation((*turns("q"), *turns("q", "a")))), "alpaca", "two questions in a row"),
    ],
)
def test_the_reason_why_a_row_does_not_fit(row: Row, name: str, reason: str) -> None:
    with pytest.raises(CannotHold, match=reason):
        write_row(row, name)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
SPECIAL = ["instruction", "input", "output", "conversations", "label", "completion", "text", "margin"]
REJECTED = ["chosen_messages", "rejected_messages", "rejected_response"]
KEYS = st.sampled_from([*Columns.__slots__, *SPECIAL, *REJECTED])
PARTS = st.fixed_dictionaries(
    {},
    optional={
        "role": JSON | st.sampled_from(["user", "assistant", "tool", "tool_call"]),
        "from": JSON | st.sampled_from(["human", "gpt", "function_call"]),
        "content": JSON,
        "value": JSON,
        "tool_calls": JSON,
        "loss": JSON,
        "question": JSON,
        "answer": JSON,
    },
)


@settings(max_examples=300, deadline=None)
@given(
    value=st.dictionaries(KEYS, JSON | st.lists(PARTS, max_size=3) | PARTS, max_size=6),
    name=st.sampled_from(FORMATS.names()),
)
def test_any_value_is_a_row_or_a_bad_row(value: dict[str, Any], name: str) -> None:
    result = read_row(value, usual_shape(name), HERE)
    if isinstance(result, BadRow):
        assert result.message
        assert result.origin == HERE
    with suppress(DataError):
        assert detect([value], where="x").format in FORMATS
