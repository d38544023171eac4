"""Rewards that a rule decides, between 0 and 1: nothing to train, nothing to fool but the rule itself.

Each function takes the arguments written behind its name, ``length(max=80)``, and returns the rule.
"""

from __future__ import annotations

import json as json_text
import re
import unicodedata
from collections.abc import Callable
from decimal import Decimal
from typing import Literal

from danlu.core.errors import ConfigError, DataError
from danlu.tune.online.samples import Sample

Rule = Callable[[Sample], float]

CJK = re.compile("[㐀-䶿一-鿿豈-﫿\U00020000-\U0003134f]")
NUMBER = re.compile(
    r"(?<![A-Za-z0-9_])(?<!\d\.)[-+]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,3}(?!\d))?"
)
FENCE = re.compile(r"\s*```[\w-]*\n(.*?)\n?```\s*", re.DOTALL)
THINK = re.compile(r"\s*<think>(.*?)</think>(.*)", re.DOTALL)


def length(min: int = 0, max: int | None = None) -> Rule:
    """1 for answers of ``min`` to ``max`` characters; beyond, the share: 40 of at least 80 give 0.5."""
    if min < 0 or (max is not None and max < min):
        raise ConfigError(f"no answer has {min} to {max} characters", where="length")

    def rule(sample: Sample) -> float:
        size = len(sample.answer.strip())
        if size < min:
            return size / min
        return 1.0 if max is None or size <= max else max / size

    return rule


def chinese() -> Rule:
    """The share of Chinese characters among letters, characters and digits; 0 for none at all."""

    def rule(sample: Sample) -> float:
        counted = sum(map(str.isalnum, sample.answer))
        return len(CJK.findall(sample.answer)) / counted if counted else 0.0

    return rule


def contains(text: str | list[str] | None = None) -> Rule:
    """1 if the answer names ``text``, or else the row's own answer; of several texts the share that is named.

    Case and the width of characters do not matter.
    """
    wanted = None if text is None else [_plain(item) for item in ([text] if isinstance(text, str) else text)]
    if wanted is not None and not all(wanted):
        raise ConfigError("an empty text is in every answer", where="contains")

    def rule(sample: Sample) -> float:
        texts = wanted or [_plain(_reference(sample, "contains"))]
        answer = _plain(sample.answer)
        return sum(item in answer for item in texts) / len(texts)

    return rule


def exact_match() -> Rule:
    """1 if the answer is the row's own, but for case, width of characters, spaces, and punctuation at the ends."""

    def rule(sample: Sample) -> float:
        return float(_bare(sample.answer) == _bare(_reference(sample, "exact_match")))

    return rule


def regex(pattern: str, full: bool = False) -> Rule:
    """1 if a regular expression is found in the answer, or with ``full`` describes all of it."""
    try:
        compiled = re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise ConfigError(f"{pattern!r} is not a regular expression: {error}", where="regex") from error
    search = compiled.fullmatch if full else compiled.search
    return lambda sample: float(search(sample.answer.strip()) is not None)


def json(kind: Literal["object", "array", "either"] = "either") -> Rule:
    """1 if the answer is a JSON object or array, also inside a fence of three backticks."""
    kinds: tuple[type, ...] = {"object": (dict,), "array": (list,), "either": (dict, list)}[kind]

    def rule(sample: Sample) -> float:
        fenced = FENCE.fullmatch(sample.answer)
        try:
            return float(isinstance(json_text.loads(fenced[1] if fenced else sample.answer), kinds))
        except (ValueError, RecursionError):
            return 0.0

    return rule


def format_think(opened: bool = False) -> Rule:
    """1 for one ``<think>…</think>`` with text in it and an answer behind; ``opened``: the prompt ends with the tag."""

    def rule(sample: Sample) -> float:
        found = THINK.fullmatch("<think>" + sample.answer if opened else sample.answer)
        if found is None or not found[1].strip() or not found[2].strip():
            return 0.0
        return float("<think>" not in found[1] + found[2] and "</think>" not in found[2])

    return rule


def number(tolerance: float = 0.0) -> Rule:
    """1 if the last number of the answer is that of the row's own answer, within a relative ``tolerance``."""
    if not 0 <= tolerance < 1:
        raise ConfigError(f"a tolerance is a share of the number, from 0 to below 1, not {tolerance}", where="number")

    def rule(sample: Sample) -> float:
        wanted = _last_number(_reference(sample, "number"))
        if wanted is None:
            raise DataError("the row's answer has no number to compare with", where=sample.place, hint=_HINT)
        found = _last_number(sample.answer)
        return float(found is not None and abs(found - wanted) <= Decimal(tolerance) * abs(wanted))

    return rule


_HINT = "Leave such rows out, or use a reward that needs no answer."


def _reference(sample: Sample, name: str) -> str:
    if sample.reference is None or not sample.reference.strip():
        raise DataError(f"the reward {name} needs the row's answer and there is none", where=sample.place, hint=_HINT)
    return sample.reference


def _plain(text: str) -> str:
    """Without differences of case, width of characters and white space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _bare(text: str) -> str:
    text = _plain(text)
    start, end = 0, len(text)
    while start < end and not text[start].isalnum():
        start += 1
    while end > start and not text[end - 1].isalnum():
        end -= 1
    return text[start:end] or text


def _last_number(text: str) -> Decimal | None:
    found = NUMBER.findall(unicodedata.normalize("NFKC", text).replace("−", "-"))
    return Decimal(found[-1].replace(",", "")) if found else None
