"""Make the preference pairs of the examples: every good answer meets one that has a realistic defect.

    python examples/pairs/make.py

The questions, the good answers and the sentences of the defects are in the YAML files beside this one. Every second
question goes into the held-out file; the two files share no question, no answer and no wording of a defect. In about
half of the pairs the worse answer is the longer one, so that length alone decides nothing.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
DATA = HERE.parent / "data"
SEED = 3
PAIRS = {"train": 2, "heldout": 1}
"""How many pairs are made of one question. Held-out questions appear once, so that their pairs are independent."""

LANGUAGES = ("en", "zh")
DEFECTS = (
    "off_topic",
    "wrong_language",
    "refusal",
    "empty",
    "rude",
    "repetition",
    "contradiction",
    "cut_off",
)


@dataclass(frozen=True)
class Question:
    """One question in one language.

    Attributes:
        topic: number of its topic; the same in both languages.
        room: the file it comes from, a field of life.
        language: en or zh.
        text: subject, question, answer and perhaps contradiction.
        other: the good answer in the other language, where the two questions are translations of each other.
    """

    topic: int
    room: str
    language: str
    text: Mapping[str, str]
    other: str | None

    @property
    def answer(self) -> str:
        """The good answer."""
        return self.text["answer"]


def questions() -> Iterator[Question]:
    """All questions, by file and in the order of the files."""
    topic = 0
    for path in sorted(HERE.glob("*.yaml")):
        if path.stem == "defects":
            continue
        for entry in yaml.safe_load(path.read_text(encoding="utf-8")):
            for language, opposite in zip(LANGUAGES, reversed(LANGUAGES)):
                other = entry[opposite]["answer"] if entry.get("translated", True) else None
                yield Question(topic, path.stem, language, entry[language], other)
            topic += 1


class Spoiler:
    """Makes worse answers for the questions of one side, longer and shorter ones in turn."""

    def __init__(self, side: list[Question], wordings: Mapping[str, Any], seed: int) -> None:
        self.side, self.wordings = side, wordings
        self.random = random.Random(seed)
        self.made: Counter[tuple[str, str]] = Counter()
        self.longer: Counter[tuple[str, str]] = Counter()
        self.turns: Counter[tuple[str, ...]] = Counter()

    def defects_of(self, question: Question, count: int) -> list[str]:
        """The defects that are rarest so far in the question's language, of those that can be made of it."""
        possible = [
            defect
            for defect in DEFECTS
            if (defect != "contradiction" or "contradiction" in question.text)
            and (defect != "wrong_language" or question.other)
        ]
        self.random.shuffle(possible)
        # a contradiction goes first among equals: only some questions have one
        possible.sort(key=lambda defect: (self.made[defect, question.language], defect != "contradiction"))
        return possible[:count]

    def spoil(self, question: Question, defect: str) -> str:
        """A worse answer with this defect."""
        key = (defect, question.language)
        even, first_longer = self.made[key] % 2 == 0, question.language == "en"
        want_longer = even == first_longer
        answers = getattr(self, f"_{defect}")(question)
        fitting = [text for text in answers if (len(text) > len(question.answer)) == want_longer]
        chosen = (fitting or answers)[0]
        self.made[key] += 1
        self.longer[key] += len(chosen) > len(question.answer)
        return chosen

    def _worded(self, question: Question, *path: str) -> str:
        """The next wording in turn, about the question's subject."""
        found: Any = self.wordings[question.language]
        for name in path:
            found = found[name]
        key = (question.language, *path)
        self.turns[key] += 1
        return str(found[self.turns[key] % len(found)]).format(subject=question.text["subject"])

    def _off_topic(self, question: Question) -> list[str]:
        others = [q.answer for q in self.side if q.language == question.language and q.room != question.room]
        self.random.shuffle(others)
        return others

    def _wrong_language(self, question: Question) -> list[str]:
        assert question.other is not None
        return [question.other]

    def _refusal(self, question: Question) -> list[str]:
        return [self._worded(question, "refusal", length) for length in ("short", "long")]

    def _empty(self, question: Question) -> list[str]:
        return [self._worded(question, "empty", length) for length in ("short", "long")]

    def _rude(self, question: Question) -> list[str]:
        before = self._worded(question, "rude", "long")
        return [self._worded(question, "rude", "short"), join(question, before, question.answer)]

    def _repetition(self, question: Question) -> list[str]:
        *_, last = sentences(question.answer)
        shortest = min(sentences(question.answer), key=len)
        times = max(2, (len(question.answer) - 1) // (len(shortest) + 1))
        return [join(question, *[shortest] * times), join(question, question.answer, last, last)]

    def _contradiction(self, question: Question) -> list[str]:
        first, *_ = sentences(question.answer)
        against = question.text["contradiction"]
        return [join(question, first, against), join(question, question.answer, against)]

    def _cut_off(self, question: Question) -> list[str]:
        pieces = re.findall(r"[一-鿿]|[^\s一-鿿]+|\s+", question.answer)
        places = range(int(0.4 * len(pieces)), int(0.85 * len(pieces)))
        ends = [place for place in places if pieces[place - 1].isalpha() and pieces[place] not in "。！？"]
        short = "".join(pieces[: self.random.choice(ends)])
        return [short, join(question, question.answer, self._worded(question, "tail"))]


def sentences(text: str) -> list[str]:
    """The sentences of a text, without the spaces between them."""
    return [part.strip() for part in re.split(r"(?<=[.!?])\s+|(?<=[。！？])(?![”」])", text) if part.strip()]


def join(question: Question, *parts: str) -> str:
    """Sentences one after another, as the language writes them."""
    return ("" if question.language == "zh" else " ").join(parts)


def rows(side: str) -> list[dict[str, str]]:
    """The pairs of one side, train or heldout."""
    chosen = [question for question in questions() if question.topic % 2 == (side == "heldout")]
    wordings = yaml.safe_load((HERE / "defects.yaml").read_text(encoding="utf-8"))[side]
    spoiler = Spoiler(chosen, wordings, SEED)
    order = list(chosen)
    spoiler.random.shuffle(order)
    found = []
    for question in order:
        for defect in spoiler.defects_of(question, PAIRS[side]):
            found.append(
                {
                    "instruction": question.text["question"],
                    "input": "",
                    "chosen": question.answer,
                    "rejected": spoiler.spoil(question, defect),
                    "defect": defect,
                }
            )
    return found


def main() -> None:
    """Write both files."""
    DATA.mkdir(exist_ok=True)
    for side, name in (("train", "pairs.jsonl"), ("heldout", "pairs_heldout.jsonl")):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows(side))
        (DATA / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
