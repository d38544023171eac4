"""From a reply to an answer: extractors as data (``assets/extractors.yaml``), and comparing with labels."""

from __future__ import annotations

import re
import string
import unicodedata
from functools import cache
from importlib.resources import files
from typing import Literal

import yaml
from pydantic import Field, model_validator

from danlu.core.config import Options, build
from danlu.core.errors import UsageError, did_you_mean
from danlu.core.registry import Registry
from danlu.evaluate.benchmarks.schema import Item

RULES = Registry(
    "extraction rule",
    {
        "exact": "danlu.evaluate.benchmarks.extracting:exact",
        "only-letter": "danlu.evaluate.benchmarks.extracting:only_letter",
        "only-choice": "danlu.evaluate.benchmarks.extracting:only_choice",
        "whole": "danlu.evaluate.benchmarks.extracting:whole",
    },
    group="danlu.extraction_rules",
)
"""Functions (reply, item) → answer or None, for what a pattern cannot say."""

MATCHES = Registry(
    "match",
    {
        "choice": "danlu.evaluate.benchmarks.extracting:same_choices",
        "text": "danlu.evaluate.benchmarks.extracting:same_text",
    },
    group="danlu.matches",
)
"""Functions (answer, item) → whether it is right."""

THOUGHT = re.compile(r"<think>.*?</think>|^.*?</think>", re.DOTALL)
PUNCTUATION = str.maketrans("", "", string.punctuation)


class Step(Options):
    """One attempt; see the head of ``assets/extractors.yaml``."""

    find: str = ""
    take: Literal["last", "first", "all"] = "last"
    within: Literal["whole", "last_line"] = "whole"
    soft: bool = False
    rule: str = ""

    @model_validator(mode="after")
    def _one_of_two(self) -> Step:
        if bool(self.find) == bool(self.rule):
            raise ValueError("a step has either find or rule")
        if self.rule and self.rule not in RULES:
            raise ValueError(f"there is no rule {self.rule!r}; known: {', '.join(RULES)}")
        try:
            groups = re.compile(_letters(self.find, "ABCD")).groups
        except re.error as error:
            raise ValueError(f"the pattern {self.find!r} is wrong ({error})") from error
        if self.find and groups != 1:
            raise ValueError(f"the pattern {self.find!r} needs exactly one group")
        return self


class Extractor(Options):
    """Rules that find an answer in a reply."""

    about: str = ""
    source: str = ""
    steps: tuple[Step, ...] = Field(min_length=1)


@cache
def extractors() -> dict[str, Extractor]:
    """Every extractor, by name."""
    text = (files("danlu.assets") / "extractors.yaml").read_text(encoding="utf-8")
    return {
        name: build(Extractor, entry, where=f"extractors.yaml:{name}") for name, entry in yaml.safe_load(text).items()
    }


def extractor_named(name: str) -> Extractor:
    """An extractor.

    Raises:
        UsageError: with the nearest names.
    """
    if name not in extractors():
        hint = did_you_mean(name, extractors()) or f"Known: {', '.join(extractors())}."
        raise UsageError(f"there is no extractor {name!r}", hint=hint)
    return extractors()[name]


def extract(name: str, reply: str, item: Item) -> str | None:
    """The answer in a reply: letters of choices, or a text; None where none is found.

    What a model thinks between ``<think>`` and ``</think>`` is not searched.
    """
    said = THOUGHT.sub("", reply).strip()
    for step in extractor_named(name).steps:
        if step.rule:
            answer: str | None = RULES[step.rule](said, item)
            if answer is not None:
                return answer
            continue
        text = (said.splitlines() or [""])[-1] if step.within == "last_line" else said
        hits = re.findall(_letters(step.find, item.letters or "A-Z"), text, re.MULTILINE)
        if not hits:
            continue
        found = _letters_of(hits, step.take, item)
        if found is not None or not step.soft:
            return found
    return None


def _letters_of(hits: list[str], take: str, item: Item) -> str | None:
    """What was found as letters of the question, in alphabetical order; as it is where there are no choices."""
    if take != "all":
        hits = [hits[-1 if take == "last" else 0]]
    if not item.choices:
        return hits[0].strip()
    letters = {letter for letter in map(_bare, hits) if len(letter) == 1 and letter in item.letters}
    return "".join(sorted(letters)) or None


def _letters(pattern: str, letters: str) -> str:
    return pattern.replace("<letters>", letters)


def _bare(text: str) -> str:
    """Upper case without ASCII punctuation and white space, full-width letters as ASCII."""
    plain = unicodedata.normalize("NFKC", text).translate(PUNCTUATION)
    return "".join(plain.split()).upper()


def exact(reply: str, item: Item) -> str | None:
    """The whole reply, if it is nothing but one letter of the question."""
    bare = _bare(reply.rstrip("。．、，"))
    return bare if len(bare) == 1 and bare in item.letters else None


def only_letter(reply: str, item: Item) -> str | None:
    """The one letter of the question that stands alone in the reply (no ASCII letter beside it, no English article)."""
    if not item.letters:
        return None
    alone = rf"(?<![A-Za-z])([{item.letters}])(?![A-Za-z'])(?!\s+(?!is\b)[a-z])"
    found = set(re.findall(alone, unicodedata.normalize("NFKC", reply)))
    return found.pop() if len(found) == 1 else None


def only_choice(reply: str, item: Item) -> str | None:
    """The letter of the one choice whose text stands in the reply."""
    found = [letter for letter, text in zip(item.letters, item.choices) if text.strip() and text.strip() in reply]
    return found[0] if len(found) == 1 else None


def whole(reply: str, item: Item) -> str | None:
    """The reply itself."""
    return reply.strip() or None


def same_choices(answer: str, item: Item) -> bool:
    """Whether exactly the right letters were named."""
    return set(answer) == set(item.answers)


def same_text(answer: str, item: Item) -> bool:
    """Whether the answer is an accepted text, but for case, width, white space and final punctuation."""
    return _plain(answer) in {_plain(accepted) for accepted in item.answers}


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).rstrip(".。!,;:")
