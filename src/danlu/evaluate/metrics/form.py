"""Rules that can be checked without a reference: patterns, length, words, layout, language."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from danlu.core.errors import UsageError
from danlu.evaluate.metrics.column import Column, Pairs, mean_column, share_column
from danlu.evaluate.metrics.words import NORMALISATION, content_units, has_chinese, normalise

_SENTENCE = re.compile(r"[。！？!?…]+[”’」』\"']?|(?<=[^\W\d_])\.(?=\s|$)|\n+")
_PARAGRAPH = re.compile(r"\n[ \t]*\n")
_FENCED = re.compile(r"^```.*?^```[ \t]*$", re.MULTILINE | re.DOTALL)

COUNTERS: dict[str, Callable[[str], int]] = {
    "character": lambda text: sum(not character.isspace() for character in text),
    "word": lambda text: len(content_units(text)),
    "sentence": lambda text: sum(any(map(str.isalnum, part)) for part in _SENTENCE.split(text)),
    "line": lambda text: sum(bool(line.strip()) for line in text.splitlines()),
    "paragraph": lambda text: sum(bool(part.strip()) for part in _PARAGRAPH.split(text)),
}
"""How much of each unit a text has; a word is an ideograph, or a run of Latin letters or digits."""

FEATURES: dict[str, re.Pattern[str]] = {
    "title": re.compile(r"\A\s*#{1,6}[ \t]+\S"),
    "heading": re.compile(r"^#{1,6}[ \t]+\S", re.MULTILINE),
    "bullets": re.compile(r"^[ \t]*[-*+•][ \t]+\S.*\n+[ \t]*[-*+•][ \t]+\S", re.MULTILINE),
    "numbered": re.compile(
        r"^[ \t]*1[.、)）][ \t]*\S.*(?:\n(?![ \t]*2[.、)）]).*)*\n[ \t]*2[.、)）][ \t]*\S", re.MULTILINE
    ),
    "table": re.compile(r"^\|.*\|[ \t]*\n\|(?:[ \t]*:?-+:?[ \t]*\|)+[ \t]*$", re.MULTILINE),
    "code": re.compile(r"^```[\w+-]*[ \t]*\n.*?^```[ \t]*$", re.MULTILINE | re.DOTALL),
    "bold": re.compile(r"\*\*[^*\s](?:[^*\n]*[^*\s])?\*\*"),
}
"""What each feature of Markdown looks like."""


def regex(pairs: Pairs, *, pattern: str, full: bool = False) -> tuple[Column, ...]:
    """Share of answers in which a regular expression is found, or with ``full`` that it describes as a whole.

    Raises:
        UsageError: when the pattern is none.
    """
    try:
        expression = re.compile(str(pattern), re.DOTALL)
    except re.error as error:
        raise UsageError(f"{pattern!r} is not a regular expression: {error}", where="pattern") from error
    search = expression.fullmatch if full else expression.search
    right = [search(text.strip()) is not None for text in pairs.predictions]
    return (share_column("regex", right, f"{'is' if full else 'has'} /{pattern}/"),)


def length(pairs: Pairs, *, unit: str = "character", min: int = 0, max: int | None = None) -> tuple[Column, ...]:
    """Share of answers whose length is within bounds, and the mean length.

    Args:
        pairs: the answers.
        unit: character (white space does not count), word, sentence, line or paragraph.
        min: fewest units.
        max: most units; None for no limit.

    Raises:
        UsageError: for another unit, or bounds that no answer can meet.
    """
    if unit not in COUNTERS:
        raise UsageError(f"unknown unit of length {unit!r}", hint=f"Known: {', '.join(COUNTERS)}.")
    if min < 0 or (max is not None and max < min):
        raise UsageError(f"no answer has {min} to {max} {unit}s")
    sizes = [COUNTERS[unit](text) for text in pairs.predictions]
    fine = [size >= min and (max is None or size <= max) for size in sizes]
    most = "" if max is None else max
    return (
        share_column("length-ok", fine, f"{min}–{most} {unit}s"),
        mean_column("length", sizes, f"{unit}s|mean of rows", scale=0),
    )


def keywords(pairs: Pairs, *, must: str | Sequence[str] = (), forbid: str | Sequence[str] = ()) -> tuple[Column, ...]:
    """Share of answers that hold all of some words and none of others; case, width and punctuation do not matter.

    Args:
        pairs: the answers.
        must: words that have to be there.
        forbid: words that must not.

    Raises:
        UsageError: when neither is given, or a word is empty.
    """
    wanted, unwanted = _words(must), _words(forbid)
    if not wanted and not unwanted:
        raise UsageError("no words are named", hint="Give must=[…] or forbid=[…].")
    right = []
    for text in map(_searchable, pairs.predictions):
        right.append(all(word in text for word in wanted) and not any(word in text for word in unwanted))
    protocol = f"all of {len(wanted)}, none of {len(unwanted)} words|{NORMALISATION}"
    return (share_column("keywords", right, protocol),)


def _words(given: str | Sequence[str]) -> list[str]:
    words = [_searchable(str(word)) for word in ([given] if isinstance(given, str) else given)]
    if not all(word.strip() for word in words):
        raise UsageError("an empty word, or one of punctuation alone, is in every answer")
    return words


def _searchable(text: str) -> str:
    """Normalised units with spaces between Latin words only, so that ``cat`` is not in ``concatenate``."""
    units = content_units(normalise(text))
    return "".join(unit if has_chinese(unit) else f" {unit} " for unit in units)


def layout(pairs: Pairs, *, has: str | Sequence[str] = (), lacks: str | Sequence[str] = ()) -> tuple[Column, ...]:
    """Share of answers with some features of Markdown and without others.

    Args:
        pairs: the answers.
        has: features that have to be there: title, heading, bullets, numbered, table, code, bold.
        lacks: features that must not.

    Raises:
        UsageError: for an unknown feature, or none.
    """
    wanted, unwanted = _features(has), _features(lacks)
    if not wanted and not unwanted:
        raise UsageError("no feature is named", hint=f"Give has=[…] or lacks=[…] of {', '.join(FEATURES)}.")
    right = []
    for text in pairs.predictions:
        there = features_of(text)
        right.append(there.issuperset(wanted) and there.isdisjoint(unwanted))
    return (share_column("layout", right, f"has:{','.join(wanted) or '-'}|lacks:{','.join(unwanted) or '-'}"),)


def features_of(text: str) -> set[str]:
    """The features of Markdown that a text has; what stands in a code block counts as code only."""
    outside = _FENCED.sub("", text)
    return {name for name, pattern in FEATURES.items() if pattern.search(text if name == "code" else outside)}


def _features(given: str | Sequence[str]) -> list[str]:
    names = given.replace(",", " ").split() if isinstance(given, str) else list(given)
    for name in names:
        if name not in FEATURES:
            raise UsageError(f"unknown feature of a layout {name!r}", hint=f"Known: {', '.join(FEATURES)}.")
    return names


def language(pairs: Pairs, *, expected: str = "reference") -> tuple[Column, ...]:
    """Share of answers in the language that is expected: zh or en, or that of the row's reference.

    A text is Chinese when at least a third of its units (ideographs, words) are ideographs, English when none of
    the others and most of its words are Latin. Answers without a letter count as right.

    Raises:
        UsageError: for another language.
    """
    if expected not in ("zh", "en", "reference"):
        raise UsageError(f"unknown language {expected!r}", hint="Known: zh, en, reference.")
    wanted = [language_of(text) for text in pairs.references] if expected == "reference" else [expected] * len(pairs)
    right = [
        language_of(text) in (gold, None) or gold is None for text, gold in zip(pairs.predictions, wanted, strict=True)
    ]
    return (share_column("language", right, f"expected:{expected}|zh from one third of ideographs"),)


def language_of(text: str) -> str | None:
    """``zh``, ``en``, ``other``, or None when there is nothing to tell it by."""
    units = [unit for unit in content_units(text) if not unit[0].isdecimal()]
    letters = [unit for unit in units if unit[0].isalpha()]
    if not letters:
        return None
    if 3 * sum(map(has_chinese, letters)) >= len(letters):
        return "zh"
    latin = sum(unit[0].isascii() for unit in letters)
    return "en" if 2 * latin > len(letters) else "other"
