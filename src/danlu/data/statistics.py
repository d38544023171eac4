"""What a dataset is like: lengths, what a cutoff would cost, duplicates, languages, turns."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from danlu.data.schema import (
    Conversation,
    Document,
    Example,
    Message,
    Preference,
    Row,
    UnpairedPreference,
    row_key,
)

_HAN = re.compile(r"[㐀-鿿豈-﫿]")
_LATIN = re.compile(r"[A-Za-zÀ-ɏ]")
_OTHER = re.compile(r"[Ͱ-῿぀-ヿ가-힯]")  # Greek to Khmer, kana, Hangul
_LOOKED_AT = 4000  # characters of a row that decide its language


@dataclass(frozen=True, slots=True)
class Lengths:
    """Lengths of rows in the unit they were counted in.

    Attributes:
        mean: arithmetic mean.
        p50: half of the rows are not longer.
        p95: 95 % are not longer.
        p99: 99 % are not longer.
        longest: the longest row.
        total: of all rows.
        bins: ``(from, below, rows)`` with doubling edges.
    """

    mean: float
    p50: int
    p95: int
    p99: int
    longest: int
    total: int
    bins: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers that are compared or labelled.

    Attributes:
        pairs: of a better and a worse answer.
        same: pairs whose answers are the same.
        longer: pairs whose better answer is the longer one: far from half of them, length may be all that is learnt.
        better: mean length of better and of wanted answers, in the unit of the statistics.
        worse: mean length of worse and of unwanted answers.
        wanted: answers labelled as wanted.
        unwanted: answers labelled as not wanted.
    """

    pairs: int
    same: int
    longer: int
    better: float
    worse: float
    wanted: int
    unwanted: int


@dataclass(frozen=True, slots=True)
class Statistics:
    """A dataset in numbers.

    Attributes:
        rows: usable rows.
        unit: what lengths are counted in: characters or tokens.
        lengths: of whole rows.
        cutoff: longest sequence asked about, if any.
        over_cutoff: rows longer than it.
        lost: how much lies beyond the cutoff, in the unit.
        duplicates: rows that came before, letter for letter.
        languages: rows by script: zh, en, other.
        turns: rows by number of answers.
        kinds: rows by kind.
        system: rows with a system prompt.
        tools: rows with tools.
        answers: of preferences, or None where there are none.
    """

    rows: int
    unit: str
    lengths: Lengths
    cutoff: int | None
    over_cutoff: int
    lost: int
    duplicates: int
    languages: dict[str, int]
    turns: dict[int, int]
    kinds: dict[str, int]
    system: int
    tools: int
    answers: Answers | None = None


def statistics(
    rows: Iterable[Row],
    *,
    count: Callable[[Row], int] | None = None,
    measure: Callable[[str], int] = len,
    cutoff: int | None = None,
) -> Statistics:
    """Measure rows.

    Args:
        rows: any rows.
        count: length of a row in tokens; characters are counted when it is None.
        measure: length of a text in the same unit.
        cutoff: longest sequence, in the same unit.
    """
    sizes: list[int] = []
    seen: set[int] = set()
    languages: Counter[str] = Counter()
    turns: Counter[int] = Counter()
    kinds: Counter[str] = Counter()
    system = tools = 0
    judged = _Judged(measure)
    for row in rows:
        judged.add(row)
        sizes.append(count(row) if count else characters(row))
        seen.add(row_key(row))
        languages[language(" ".join(texts(row)))] += 1
        kinds[type(row).__name__] += 1
        conversation = _conversation(row)
        if conversation is not None:
            turns[answers(row)] += 1
            system += conversation.system is not None
            tools += bool(conversation.tools)
    beyond = [size - cutoff for size in sizes if size > cutoff] if cutoff is not None else []
    return Statistics(
        rows=len(sizes),
        unit="tokens" if count else "characters",
        lengths=lengths(sizes),
        cutoff=cutoff,
        over_cutoff=len(beyond),
        lost=sum(beyond),
        duplicates=len(sizes) - len(seen),
        languages={name: languages[name] for name in ("zh", "en", "other") if languages[name]},
        turns=dict(sorted(turns.items())),
        kinds=dict(kinds),
        system=system,
        tools=tools,
        answers=judged.answers(),
    )


class _Judged:
    """Gathers the lengths of answers that are compared or labelled."""

    def __init__(self, measure: Callable[[str], int]) -> None:
        self.measure = measure
        self.better: list[int] = []
        self.worse: list[int] = []
        self.pairs = self.same = self.longer = 0

    def add(self, row: Row) -> None:
        match row:
            case Preference(_, chosen, rejected):
                better, worse = self._length(chosen), self._length(rejected)
                self.pairs += 1
                self.same += chosen == rejected
                self.longer += better > worse
                self.better.append(better)
                self.worse.append(worse)
            case UnpairedPreference(conversation, desirable):
                (self.better if desirable else self.worse).append(self._length(conversation.messages[-1]))

    def _length(self, answer: Message) -> int:
        return sum(map(self.measure, _spoken(answer)))

    def answers(self) -> Answers | None:
        if not self.better and not self.worse:
            return None
        mean = [sum(lengths) / max(1, len(lengths)) for lengths in (self.better, self.worse)]
        wanted, unwanted = len(self.better) - self.pairs, len(self.worse) - self.pairs
        return Answers(self.pairs, self.same, self.longer, mean[0], mean[1], wanted, unwanted)


def lengths(sizes: Sequence[int]) -> Lengths:
    """Summarise lengths; percentiles are values that occur (nearest rank)."""
    if not sizes:
        return Lengths(0.0, 0, 0, 0, 0, 0, ())
    ordered = sorted(sizes)

    def rank(share: float) -> int:
        return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]

    return Lengths(
        mean=sum(ordered) / len(ordered),
        p50=rank(0.50),
        p95=rank(0.95),
        p99=rank(0.99),
        longest=ordered[-1],
        total=sum(ordered),
        bins=_bins(ordered),
    )


def _bins(ordered: Sequence[int]) -> tuple[tuple[int, int, int], ...]:
    """Bins between 0, 16, 32, 64, …; the empty ones at both ends are left out."""
    edges = [0, 16]
    while edges[-1] <= ordered[-1]:
        edges.append(edges[-1] * 2)
    counts = Counter(next(i for i in range(1, len(edges)) if size < edges[i]) - 1 for size in ordered)
    first, last = min(counts), max(counts)
    return tuple((edges[i], edges[i + 1], counts[i]) for i in range(first, last + 1))


def texts(row: Row) -> list[str]:
    """Every text of a row that a model would see, but tools."""
    match row:
        case Example(conversation) | UnpairedPreference(conversation):
            return [text for message in conversation.messages for text in _spoken(message)]
        case Preference(prompt, chosen, rejected):
            messages = (*prompt.messages, chosen, rejected)
            return [text for message in messages for text in _spoken(message)]
        case Document(text):
            return [text]


def _spoken(message: Message) -> list[str]:
    return [message.content, *(f"{call.name} {call.arguments}" for call in message.tool_calls)]


def characters(row: Row) -> int:
    """Length in characters; of a preference, the prompt with its longer answer."""
    if isinstance(row, Preference):
        longer = max(sum(map(len, _spoken(answer))) for answer in (row.chosen, row.rejected))
        return longer + sum(len(text) for message in row.prompt.messages for text in _spoken(message))
    return sum(map(len, texts(row)))


def either_answer(row: Preference) -> tuple[Conversation, Conversation]:
    """The two whole conversations of a pair."""
    first, second = (
        replace(row.prompt, messages=(*row.prompt.messages, answer)) for answer in (row.chosen, row.rejected)
    )
    return first, second


def answers(row: Row) -> int:
    """How often the assistant speaks (in a preference: in one of the two versions)."""
    conversation = _conversation(row)
    if conversation is None:
        return 0
    spoken = sum(message.role == "assistant" for message in conversation.messages)
    return spoken + isinstance(row, Preference)


def _conversation(row: Row) -> Conversation | None:
    match row:
        case Example(conversation) | UnpairedPreference(conversation):
            return conversation
        case Preference(prompt):
            return prompt
        case Document():
            return None


def language(text: str) -> str:
    """``zh``, ``en`` or ``other``, by script: a Chinese character weighs as much as four Latin letters.

    Kana, Hangul and other scripts that make up more than a tenth of the text are ``other``.
    """
    sample = text[:_LOOKED_AT]
    han = 4 * len(_HAN.findall(sample))
    latin = len(_LATIN.findall(sample))
    other = 4 * len(_OTHER.findall(sample))
    whole = han + latin + other
    if not whole or other > 0.1 * whole:
        return "other"
    return "zh" if han >= latin else "en"
