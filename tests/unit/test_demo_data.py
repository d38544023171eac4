"""The demo's instruction set: valid rows, and held-out questions that are new but answerable."""

from __future__ import annotations

import json
from collections import Counter
from difflib import SequenceMatcher
from pathlib import Path

import pytest

KEYS = {"instruction", "input", "output"}


def rows(root: Path, name: str) -> list[dict[str, str]]:
    text = (root / "src/danlu/assets/demo" / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def train(root: Path) -> list[dict[str, str]]:
    return rows(root, "train")


@pytest.fixture(scope="module")
def heldout(root: Path) -> list[dict[str, str]]:
    return rows(root, "heldout")


def is_chinese(text: str) -> bool:
    return any("一" <= letter <= "鿿" for letter in text)


def plain(question: str) -> str:
    """The question without case, spaces and punctuation."""
    return "".join(letter for letter in question.lower() if letter.isalnum())


def test_rows_are_whole(train: list[dict[str, str]], heldout: list[dict[str, str]]) -> None:
    for row in (*train, *heldout):
        assert row.keys() == KEYS
        assert row["instruction"].strip() == row["instruction"] != ""
        assert row["output"].strip() == row["output"] != ""
        assert row["input"] == ""
        assert len(row["output"]) <= 130
    assert 120 <= len(train) <= 160
    assert len(heldout) == 40


def test_no_question_is_asked_twice(train: list[dict[str, str]], heldout: list[dict[str, str]]) -> None:
    asked = Counter(plain(row["instruction"]) for row in (*train, *heldout))
    assert not [question for question, times in asked.items() if times > 1]


def test_heldout_questions_are_reworded(train: list[dict[str, str]], heldout: list[dict[str, str]]) -> None:
    for row in heldout:
        nearest = max(SequenceMatcher(None, row["instruction"], other["instruction"]).ratio() for other in train)
        assert nearest < 0.95, row["instruction"]


def test_every_heldout_answer_was_taught(train: list[dict[str, str]], heldout: list[dict[str, str]]) -> None:
    taught = Counter(row["output"] for row in train)
    for row in heldout:
        assert taught[row["output"]] >= 3, row["instruction"]


def test_question_and_answer_share_a_language(train: list[dict[str, str]]) -> None:
    chinese = [row for row in train if is_chinese(row["instruction"])]
    assert len(train) / 4 <= len(chinese) <= len(train) / 2
    assert all(is_chinese(row["output"]) for row in chinese)
