"""Formats: every shape that rows come in, and every way in which they are wrong."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
    Origin,
    Preference,
    Row,
    ToolCall,
    UnpairedPreference,
)

HERE = Origin("rows.json", 7, 3)


def read(value: dict[str, Any], shape: Shape | None = None) -> Row | BadRow:
    return read_row(value, shape or detect([value], where="rows.json"), HERE)


def turns(*contents: str) -> tuple[Message, ...]:
    """Question, answer, question, answer, …"""
    return tuple(Message("user" if i % 2 == 0 else "assistant", text) for i, text in enumerate(contents))


def example(*contents: str) -> Example:
    return Example(Conversation(turns(*contents)))


WEATHER = ToolCall("weather", '{"city": "北京"}')
TOOL = '{"name": "weather", "parameters": {}}'
PAIR = Preference(Conversation(turns("q")), Message("assistant", "good"), Message("assistant", "bad"))
WANTED = UnpairedPreference(Conversation(turns("q", "a")), True)

GOOD: list[tuple[str, dict[str, Any], Row]] = [
    ("alpaca", {"instruction": "q", "input": "", "output": "a"}, example("q", "a")),
    ("alpaca with input", {"instruction": "q", "input": "x", "output": "a"}, example("q\nx", "a")),
    ("alpaca, input alone", {"instruction": "", "input": "x", "output": "a"}, example("x", "a")),
    ("alpaca, null input", {"instruction": "q", "input": None, "output": "a"}, example("q", "a")),
    (
        "alpaca with history and system",
        {"instruction": "q", "input": "", "output": "a", "system": "s", "history": [["1", "2"]]},
        Example(Conversation((Message("system", "s"), *turns("1", "2", "q", "a")))),
    ),
    (
        "history as text",
        {"instruction": "q", "output": "a", "history": '[["1", "2"]]'},
        example("1", "2", "q", "a"),
    ),
    ("prompt and response", {"prompt": "q", "response": "a"}, example("q", "a")),
    (
        "chat of ChatGLM",
        {"prompt": "q", "response": "a", "history": [["1", "2"]]},
        example("1", "2", "q", "a"),
    ),
    ("prompt and completion", {"prompt": "q", "completion": "a"}, example("q", "a")),
    ("question and answer", {"question": "q", "answer": "a"}, example("q", "a")),
    ("query and response", {"query": "q", "response": "a"}, example("q", "a")),
    ("content and summary", {"content": "q", "summary": "a"}, example("q", "a")),
    ("input and output", {"input": "q", "output": "a", "id": 3}, example("q", "a")),
    ("input and target", {"input": "q", "target": "a"}, example("q", "a")),
    ("Chinese columns", {"问题": "q", "答案": "a"}, example("q", "a")),
    ("text", {"text": "words"}, Document("words")),
    ("text under content", {"content": "words"}, Document("words")),
    ("alpaca pair", {"instruction": "q", "input": "", "chosen": "good", "rejected": "bad"}, PAIR),
    ("old pair", {"instruction": "q", "input": "", "output": ["good", "bad"]}, PAIR),
    ("question pair", {"question": "q", "chosen": "good", "rejected": "bad"}, PAIR),
    ("alpaca kto", {"instruction": "q", "output": "a", "kto_tag": True}, WANTED),
    ("kto from a table", {"instruction": "q", "output": "a", "kto_tag": "True"}, WANTED),
    (
        "sharegpt",
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "tools": "[]"},
        example("q", "a"),
    ),
    (
        "sharegpt with a system column",
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"},
        Example(Conversation((Message("system", "s"), *turns("q", "a")))),
    ),
    (
        "a leading system turn wins",
        {
            "conversations": [
                {"from": "system", "value": "first"},
                {"from": "human", "value": "q"},
                {"from": "gpt", "value": "a"},
            ],
            "system": "column",
        },
        Example(Conversation((Message("system", "first"), *turns("q", "a")))),
    ),
    (
        "sharegpt with tools",
        {
            "conversations": [
                {"from": "human", "value": "q"},
                {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "北京"}}'},
                {"from": "observation", "value": "晴"},
                {"from": "gpt", "value": "a"},
            ],
            "tools": f"[{TOOL}]",
        },
        Example(
            Conversation(
                (
                    Message("user", "q"),
                    Message("assistant", "", (WEATHER,)),
                    Message("tool", "晴"),
                    Message("assistant", "a"),
                ),
                (TOOL,),
            )
        ),
    ),
    (
        "two calls and a thought",
        {
            "conversations": [
                {"from": "human", "value": "q"},
                {
                    "from": "function_call",
                    "value": '<think>hm</think>\n[{"name": "f", "arguments": {}}, {"name": "g", "arguments": "{}"}]',
                },
            ]
        },
        Example(
            Conversation(
                (
                    Message("user", "q"),
                    Message("assistant", "<think>hm</think>\n", (ToolCall("f", "{}"), ToolCall("g", "{}"))),
                )
            )
        ),
    ),
    (
        "sharegpt pair",
        {
            "conversations": [{"from": "human", "value": "q"}],
            "chosen": {"from": "gpt", "value": "good"},
            "rejected": {"from": "gpt", "value": "bad"},
        },
        PAIR,
    ),
    (
        "openai",
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        example("q", "a"),
    ),
    (
        "openai, developer and parts",
        {
            "messages": [
                {"role": "developer", "content": "s"},
                {"role": "user", "content": [{"type": "text", "text": "q"}]},
                {"role": "assistant", "content": "a"},
            ]
        },
        Example(Conversation((Message("system", "s"), *turns("q", "a")))),
    ),
    (
        "openai with tool calls",
        {
            "messages": [
                {"role": "user", "content": "q"},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {
                            "id": "1",
                            "type": "function",
                            "function": {"name": "weather", "arguments": '{"city":1}'},
                        }
                    ],
                },
                {"role": "tool", "tool_call_id": "1", "content": "晴"},
                {"role": "assistant", "content": "a"},
            ],
            "tools": [{"name": "weather", "parameters": {}}],
        },
        Example(
            Conversation(
                (
                    Message("user", "q"),
                    Message("assistant", "", (ToolCall("weather", '{"city":1}'),)),
                    Message("tool", "晴"),
                    Message("assistant", "a"),
                ),
                (TOOL,),
            )
        ),
    ),
    (
        "ms-swift, a turn that is not trained",
        {
            "messages": [
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": "a", "loss": False},
                {"role": "user", "content": "q2"},
                {"role": "assistant", "content": "a2", "loss": True},
            ]
        },
        Example(
            Conversation(
                (
                    Message("user", "q"),
                    Message("assistant", "a", train=False),
                    Message("user", "q2"),
                    Message("assistant", "a2", train=True),
                )
            )
        ),
    ),
    (
        "ms-swift tool roles",
        {
            "messages": [
                {"role": "user", "content": "q"},
                {"role": "tool_call", "content": '{"name": "weather", "arguments": {"city": "北京"}}'},
                {"role": "tool_response", "content": "晴"},
                {"role": "assistant", "content": "a"},
            ]
        },
        Example(
            Conversation(
                (
                    Message("user", "q"),
                    Message("assistant", "", (WEATHER,)),
                    Message("tool", "晴"),
                    Message("assistant", "a"),
                )
            )
        ),
    ),
    (
        "ms-swift rejected_response",
        {
            "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "good"}],
            "rejected_response": "bad",
        },
        PAIR,
    ),
    (
        "ms-swift rejected_messages",
        {
            "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "good"}],
            "rejected_messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "bad"}],
        },
        PAIR,
    ),
    (
        "openai pair",
        {
            "messages": [{"role": "user", "content": "q"}],
            "chosen": {"role": "assistant", "content": "good"},
            "rejected": [{"role": "assistant", "content": "bad"}],
            "margin": 2,
        },
        replace(PAIR, margin=2.0),
    ),
    (
        "kto of LLaMA-Factory",
        {
            "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
            "label": True,
        },
        WANTED,
    ),
    ("prompt, chosen, rejected", {"prompt": "q", "chosen": "good", "rejected": "bad"}, PAIR),
    (
        "lists of messages",
        {
            "prompt": [{"role": "user", "content": "q"}],
            "chosen": [{"role": "assistant", "content": "good"}],
            "rejected": [{"role": "assistant", "content": "bad"}],
        },
        PAIR,
    ),
    (
        "two whole conversations",
        {
            "chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "good"}],
            "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "bad"}],
        },
        PAIR,
    ),
    (
        "whole conversations beside their prompt",
        {
            "prompt": "q",
            "chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "good"}],
            "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "bad"}],
        },
        PAIR,
    ),
    (
        "chosen_messages",
        {
            "chosen_messages": [
                {"role": "user", "content": [{"type": "text", "value": "q"}]},
                {"role": "assistant", "content": [{"type": "text", "value": "good"}]},
            ],
            "rejected_messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "bad"}],
        },
        PAIR,
    ),
    ("labelled completion", {"prompt": "q", "completion": "a", "label": True}, WANTED),
    (
        "content blocks with weights",
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "value": "q"}], "loss_weight": 0.0},
                {"role": "assistant", "content": [{"type": "text", "value": "a"}], "loss_weight": 1.0},
            ]
        },
        Example(Conversation((Message("user", "q", train=False), Message("assistant", "a", train=True)))),
    ),
    (
        "rounds",
        {
            "instruction": "lead",
            "conversations": [{"question": "q", "answer": "a"}, {"question": "r", "answer": "b"}],
        },
        example("lead\nq", "a", "r", "b"),
    ),
    (
        "an assistant that begins",
        {"messages": [{"role": "assistant", "content": "hello"}]},
        Example(Conversation((Message("assistant", "hello"),))),
    ),
    (
        "two questions in a row",
        {
            "messages": [
                {"role": "user", "content": "q"},
                {"role": "user", "content": "r"},
                {"role": "assistant", "content": "a"},
            ]
        },
        Example(Conversation((Message("user", "q"), Message("user", "r"), Message("assistant", "a")))),
    ),
]


@pytest.mark.parametrize(("value", "row"), [case[1:] for case in GOOD], ids=[case[0] for case in GOOD])
def test_every_shape_is_found_and_read(value: dict[str, Any], row: Row) -> None:
    result = read(value)
    assert result == row
    assert not isinstance(result, BadRow)
    assert result.origin == HERE


def chat(*messages: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "q"}, *messages]}


ANSWER = {"role": "assistant", "content": "a"}
HUMAN = {"from": "human", "value": "q"}

WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"instruction": "q", "input": "", "output": ""}, "output", "the answer is empty"),
    ({"instruction": "q", "input": "", "output": " \n"}, "output", "the answer is empty"),
    ({"instruction": "q", "input": "", "output": None}, "output", "the answer is missing"),
    ({"instruction": "q", "input": "", "output": 42}, "output", "text is expected, this is a number"),
    ({"instruction": "", "input": "", "output": "a"}, "instruction", "the prompt is empty"),
    ({"instruction": ["q"], "output": "a"}, "instruction", "text is expected, this is a list"),
    ({"instruction": "q", "input": {}, "output": "a"}, "input", "text is expected, this is an object"),
    ({"instruction": "q", "output": "a", "system": 1}, "system", "text is expected, this is a number"),
    ({"instruction": "q", "output": "a", "history": "x"}, "history", "a list is expected, this is text"),
    ({"instruction": "q", "output": "a", "history": "[x"}, "history", "not valid JSON"),
    ({"instruction": "q", "output": "a", "history": [["q"]]}, "history[0]", "a list of 1"),
    ({"instruction": "q", "output": "a", "history": ["q"]}, "history[0]", "this is text"),
    ({"instruction": "q", "output": "a", "history": [["q", ""]]}, "history[0][1]", "the answer is empty"),
    ({"instruction": "q", "output": ["a"]}, "output", "a list of 1"),
    ({"instruction": "q", "output": ["a", ""]}, "output[1]", "the answer is empty"),
    ({"instruction": "q", "output": ["a", 1]}, "output[1]", "this is a number"),
    ({"instruction": "q", "output": "a", "images": ["x.png"]}, "images", "not supported yet"),
    ({"instruction": "q", "chosen": "a", "rejected": ""}, "rejected", "the answer is empty"),
    ({"instruction": "q", "chosen": "a", "rejected": "b", "margin": "x"}, "margin", "a number is expected"),
    ({"instruction": "q", "chosen": "a", "rejected": "b", "margin": float("nan")}, "margin", "a number"),
    ({"conversations": []}, "conversations", "there is no message"),
    ({"conversations": [HUMAN]}, "conversations[0]", "the last turn (user) has no answer"),
    ({"conversations": ["q"]}, "conversations[0]", "a message is an object, this is text"),
    (
        {"conversations": [HUMAN, {"from": "bot", "value": "a"}]},
        "conversations[1].from",
        "unknown role 'bot'",
    ),
    ({"conversations": [HUMAN, {"from": 3, "value": "a"}]}, "conversations[1].from", "unknown role a number"),
    ({"conversations": [HUMAN, {"value": "a"}]}, "conversations[1].from", "the role is missing"),
    (
        {"conversations": [HUMAN, {"from": "gpt", "value": ""}]},
        "conversations[1].value",
        "the answer is empty",
    ),
    ({"conversations": [HUMAN, {"from": "gpt"}]}, "conversations[1].value", "the answer is empty"),
    ({"conversations": [HUMAN, {"from": "gpt", "value": 1}]}, "conversations[1].value", "this is a number"),
    (
        {"conversations": [HUMAN, {"from": "function_call", "value": "call it"}]},
        "conversations[1].value",
        "not valid JSON",
    ),
    (
        {"conversations": [HUMAN, {"from": "function_call", "value": "[]"}]},
        "conversations[1].value",
        "is empty",
    ),
    (
        {"conversations": [HUMAN, {"from": "function_call", "value": "{}"}]},
        "conversations[1].value.name",
        "the name is missing",
    ),
    (
        {"conversations": [HUMAN, {"from": "function_call", "value": '{"name": "f", "arguments": "{x"}'}]},
        "conversations[1].value.arguments",
        "not valid JSON",
    ),
    ({"conversations": [HUMAN, {"from": "gpt", "value": "a"}], "tools": "{x"}, "tools", "not valid JSON"),
    (
        {"conversations": [HUMAN, {"from": "gpt", "value": "a"}], "tools": "[1]"},
        "tools[0]",
        "a tool is an object",
    ),
    (chat(), "messages[0]", "the last turn (user) has no answer"),
    (chat(ANSWER, {"role": "tool", "content": "x"}), "messages[2]", "the last turn (tool) has no answer"),
    (chat({"role": "assistant", "content": 5}), "messages[1].content", "text or a list of parts"),
    (chat({"role": "assistant", "content": ["x"]}), "messages[1].content[0]", "this is text"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, ANSWER]},
        "messages[0].content[0]",
        "this is 'image_url'",
    ),
    (chat({"role": "assistant", "content": "a", "loss": 0.5}), "messages[1].loss", "this is 0.5"),
    (chat({"role": "assistant", "content": "a", "loss_weight": []}), "messages[1].loss_weight", "a list"),
    (
        {"messages": [{"role": "user", "content": "q", "tool_calls": [{"name": "f"}]}, ANSWER]},
        "messages[0]",
        "a user message cannot call tools",
    ),
    (
        chat({"role": "assistant", "content": "", "tool_calls": [{"function": {"name": ""}}]}),
        "messages[1].tool_calls[0].function.name",
        "the name is empty",
    ),
    (
        {**chat(), "chosen": {"role": "user", "content": "a"}, "rejected": "b"},
        "chosen",
        "does not end with an answer",
    ),
    ({"messages": [], "chosen": "a", "rejected": "b"}, "chosen", "there is no prompt"),
    ({**chat(ANSWER), "label": "maybe"}, "", ""),
    ({"prompt": "q", "completion": "a", "label": "maybe"}, "label", "true or false is expected"),
    ({"prompt": "q", "completion": "a", "label": 3}, "label", "true or false is expected"),
    ({"prompt": "q", "completion": "", "label": True}, "completion", "the answer is empty"),
    ({"prompt": "", "chosen": "a", "rejected": "b"}, "prompt", "the prompt is empty"),
    ({"chosen": "a", "rejected": "b"}, "chosen", "there is no prompt"),
    (
        {
            "chosen": [{"role": "user", "content": "q"}, ANSWER],
            "rejected": [{"role": "user", "content": "other"}, ANSWER],
        },
        "rejected",
        "different prompts",
    ),
    (
        {"chosen_messages": [{"role": "user", "content": "q"}], "rejected_messages": [ANSWER]},
        "chosen_messages",
        "does not end with an answer",
    ),
    ({"conversations": [{"question": "q", "answer": ""}]}, "conversations[0].answer", "the answer is empty"),
    ({"conversations": [{"question": "q"}]}, "conversations[0].answer", "the answer is missing"),
    ({"text": " "}, "text", "the text is empty"),
]


@pytest.mark.parametrize(("value", "field", "message"), [case for case in WRONG if case[1]])
def test_what_is_wrong_is_named_with_its_field(value: dict[str, Any], field: str, message: str) -> None:
    result = read(value)
    assert isinstance(result, BadRow)
    assert result.field == field
    assert message in result.message
    assert result.place == f"rows.json:7:{field}"


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
