"""Formats: every way in which a row is wrong, named by its field."""

from __future__ import annotations

from typing import Any

import pytest
from sample_rows import ANSWER, chat, read

from danlu.data.rows import BadRow

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
    ({"instruction": "q", "chosen": "a", "rejected": "b", "margin": float("nan")}, "margin", "a finite number"),
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
