"""Rows of preferences that cannot be used, or not for a stage: each is named by its field with one clear reason."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from sample_rows import read

from danlu.core.errors import DataError, UsageError
from danlu.data.check import check
from danlu.data.loading import load_rows
from danlu.data.rows import BadRow

QUESTION = {"role": "user", "content": "q"}
OTHER = {"role": "user", "content": "p"}


def answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    ("value", "field", "message"),
    [
        ({"chosen": "a", "rejected": "b"}, "chosen", "there is no prompt"),
        ({"prompt": " ", "chosen": "a", "rejected": "b"}, "prompt", "the prompt is empty"),
        ({"prompt": "q", "chosen": "", "rejected": "b"}, "chosen", "the answer is empty"),
        ({"prompt": "q", "chosen": "a", "rejected": None}, "rejected", "the answer is missing"),
        ({"prompt": "q", "chosen": [], "rejected": [answer("b")]}, "chosen", "does not end with an answer"),
        ({"prompt": [answer("z")], "chosen": "a", "rejected": "b"}, "prompt", "there is no prompt"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": "big"}, "margin", "a number is expected"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": float("nan")}, "margin", "a finite number .* nan"),
        (
            {"chosen": [QUESTION, answer("a")], "rejected": [OTHER, answer("b")]},
            "rejected",
            "belong to different prompts",
        ),
        (
            {"chosen_messages": [QUESTION, answer("a")], "rejected_messages": [OTHER, answer("b")]},
            "rejected_messages",
            "belong to different prompts",
        ),
        ({"chosen": [answer("a")], "rejected": [answer("b")]}, "chosen", "there is no prompt"),
        ({"instruction": "q", "input": "", "output": ["a"]}, "output", "a pair is .*a list of 1"),
        ({"instruction": "q", "input": "", "output": ["a", ""]}, r"output\[1\]", "the answer is empty"),
        ({"prompt": "q", "completion": "", "label": True}, "completion", "the answer is empty"),
        ({"prompt": "q", "completion": "a", "label": "maybe"}, "label", "true or false is expected"),
        ({"prompt": None, "completion": "a", "label": True}, "prompt", "the prompt is missing"),
        ({"messages": [answer("a")], "label": True}, "messages", "there is no prompt"),
    ],
)
def test_what_cannot_be_used(value: dict[str, Any], field: str, message: str) -> None:

    row = read(value)
    assert isinstance(row, BadRow)
    assert re.fullmatch(field, row.field)
    assert re.search(message, row.message)


def put(folder: Path, *rows: dict[str, Any]) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}


def labelled(prompt: str, label: bool, text: str = "a") -> dict[str, Any]:
    return {"prompt": prompt, "completion": text, "label": label}


def test_pairs_of_equal_answers_are_noted(tmp_path: Path) -> None:
    report = check(put(tmp_path, PAIR, {**PAIR, "rejected": "a"}))
    assert report.notes == {"chosen and rejected are the same": 1}
    assert report.bad == ()


def test_an_answer_that_follows_an_answer_is_noted(tmp_path: Path) -> None:
    report = check(put(tmp_path, {**PAIR, "prompt": [QUESTION, answer("a")]}))
    assert report.notes == {"two assistant turns in a row": 1}


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("sft", "stage sft trains on conversations, this row is for pairs of a better and a worse answer"),
        ("pt", "stage pt trains on plain text, this row is for pairs"),
    ],
)
def test_rows_of_another_stage(tmp_path: Path, stage: str, message: str) -> None:
    name = put(tmp_path, PAIR)
    (bad,) = check(name, stage=stage).bad
    assert message in bad.message
    with pytest.raises(DataError, match=message):
        load_rows(name, stage=stage)
    for fitting in ("rm", "dpo", "ipo", "orpo", "simpo", "kto", "ppo", "grpo"):
        assert check(name, stage=fitting).good == 1


@pytest.mark.parametrize("start", [{"instruction": "q", "output": "a"}, {"messages": [QUESTION, answer("a")]}])
def test_a_label_that_is_neither_true_nor_false(tmp_path: Path, start: dict[str, Any]) -> None:
    told = r"rows\.jsonl:1:label: .*true or false is expected, this is 'maybe'"
    maybe = {**start, "label": "maybe"}
    for others in ([], [True], [True, False, "maybe"]):
        name = put(tmp_path, maybe, *({**start, "label": label} for label in others))
        assert re.search(told, str(check(name, stage="kto").bad[0]))
        with pytest.raises(DataError, match=told):
            load_rows(name, stage="kto", on_bad_row="error")
    name = put(tmp_path, maybe, {**start, "label": False})
    assert re.search(told, str(check(name).bad[0]))  # whatever it is read for, where labels are mostly true or false
    with pytest.raises(DataError, match=told):
        load_rows(put(tmp_path, maybe), stage="kto")
    assert check(put(tmp_path, maybe, maybe, {**start, "label": "true"})).kinds == {"Example": 3}
    assert len(load_rows(put(tmp_path, {**start, "label": 1}, {**start, "label": 0}), stage="kto").rows) == 2


def test_a_stage_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no stage 'dop'.*dpo"):
        check(put(tmp_path, PAIR), stage="dop")


@pytest.mark.parametrize(
    ("rows", "warnings"),
    [
        ([labelled("q", True), labelled("p", False)], []),
        ([labelled("q", True), labelled("p", True)], ["there is no unwanted answer"]),
        ([labelled("q", False), labelled("p", False)], ["there is no wanted answer"]),
        ([labelled("q", True), labelled("q", False, "b")], ["there is only one prompt"]),
        ([PAIR], ["there is only one prompt"]),
    ],
)
def test_what_kto_would_stumble_over(tmp_path: Path, rows: list[dict[str, Any]], warnings: list[str]) -> None:
    found = check(put(tmp_path, *rows), stage="kto").warnings
    assert [told.split(":")[0] for told in found] == warnings
    assert check(put(tmp_path, *rows)).warnings == ()
