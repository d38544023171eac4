"""Formats: every shape that rows come in."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from sample_rows import HERE, PAIR, TOOL, WANTED, WEATHER, example, read, turns

from danlu.data.rows import BadRow
from danlu.data.schema import (
    Conversation,
    Document,
    Example,
    Message,
    Row,
    ToolCall,
)

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
