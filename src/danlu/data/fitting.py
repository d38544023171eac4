"""Rows longer than the cutoff: leave them out, shorten what people wrote, or split them. Never control tokens.

Shortening works on the text of messages and renders again, so headers, the answer's cue and end-of-turn marks
are always whole; the end of an answer that was cut is not trained as an end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from danlu.core.errors import DataError
from danlu.data.schema import Conversation, Message, Origin
from danlu.data.templates import Template

Truncation: TypeAlias = Literal["drop", "keep_start", "keep_end", "split", "error"]


@dataclass(frozen=True, slots=True)
class Fitted:
    """A conversation that fits, and which of its messages had their text cut."""

    conversation: Conversation
    unfinished: frozenset[int] = frozenset()


Turn: TypeAlias = tuple[Message, bool]
"""A message, and whether its text was cut."""


def fit(
    item: Fitted, template: Template, cutoff: int, policy: Truncation, origin: Origin, *, keep_last: bool = False
) -> list[Fitted]:
    """Make a conversation that is too long fit into ``cutoff`` tokens.

    Args:
        item: the conversation.
        template: writes it as tokens.
        cutoff: most tokens.
        policy: what to cut.
        origin: of the row, for the error.
        keep_last: whole exchanges are only taken from the front, whatever end of a text is kept: the last answer is
            what the row is about.

    Returns:
        The sequences to train on; empty when the row is left out.

    Raises:
        DataError: with the policy ``error``.
    """
    if policy == "drop":
        return []
    if policy == "error":
        raise too_long(cutoff, origin)
    turns = [(message, index in item.unfinished) for index, message in enumerate(item.conversation.messages)]
    system, exchanges = _exchanges(turns)

    def whole(part: Sequence[tuple[Turn, ...]]) -> Fitted:
        chosen = [*system, *(turn for exchange in part for turn in exchange)]
        unfinished = frozenset(index for index, (_, cut) in enumerate(chosen) if cut)
        return Fitted(replace(item.conversation, messages=tuple(message for message, _ in chosen)), unfinished)

    def fits(part: Sequence[tuple[Turn, ...]]) -> bool:
        joined = whole(part)
        return len(template.encode(joined.conversation, unfinished=joined.unfinished).ids) <= cutoff

    chunks = _chunks(exchanges, fits, "keep_end" if keep_last else policy)
    fitted = (_shortened(whole(chunk), template, cutoff, policy) for chunk in chunks)
    return [shorter for shorter in fitted if shorter is not None]


def too_long(cutoff: int, origin: Origin) -> DataError:
    """What to tell with the policy ``error``."""
    return DataError(
        f"the row is longer than cutoff_len={cutoff} tokens",
        where=str(origin),
        hint="Raise cutoff_len, or choose truncation=drop, keep_start, keep_end or split.",
    )


def within_budgets(conversation: Conversation, template: Template, source: int | None, target: int | None) -> Fitted:
    """Cut each text to a budget of its own: ``target`` tokens for answers, ``source`` for everything else."""
    if source is None and target is None:
        return Fitted(conversation)
    messages = list(conversation.messages)
    cut: set[int] = set()
    for index, message in enumerate(messages):
        budget = target if message.role == "assistant" else source
        if budget is None or len(message.content.encode()) <= budget:  # no token is shorter than a byte
            continue
        ids = template.content_ids(message.content)
        if len(ids) > budget:
            messages[index] = replace(message, content=template.content_text(ids[:budget]))
            cut.add(index)
    return Fitted(replace(conversation, messages=tuple(messages)), frozenset(cut)) if cut else Fitted(conversation)


def _exchanges(turns: Sequence[Turn]) -> tuple[tuple[Turn, ...], list[tuple[Turn, ...]]]:
    """Leading system messages, then runs that begin with a user turn and can stand alone."""
    start = 0
    while start < len(turns) and turns[start][0].role == "system":
        start += 1
    runs: list[list[Turn]] = []
    for turn in turns[start:]:
        if turn[0].role == "user" or not runs:
            runs.append([])
        runs[-1].append(turn)
    return tuple(turns[:start]), [tuple(run) for run in runs]


def _chunks(
    exchanges: list[tuple[Turn, ...]], fits: Callable[[Sequence[tuple[Turn, ...]]], bool], policy: Truncation
) -> list[list[tuple[Turn, ...]]]:
    """Group exchanges so that each group fits, or is a single one that must be shortened."""
    ordered = exchanges[::-1] if policy == "keep_end" else exchanges
    chunks: list[list[tuple[Turn, ...]]] = []
    current: list[tuple[Turn, ...]] = []
    for exchange in ordered:
        longer = [exchange, *current] if policy == "keep_end" else [*current, exchange]
        if current and not fits(longer):
            chunks.append(current)
            if policy != "split":
                return chunks
            longer = [exchange]
        current = longer
    return [*chunks, current]


def _shortened(item: Fitted, template: Template, cutoff: int, policy: Truncation, attempts: int = 4) -> Fitted | None:
    """Cut the longest texts until the rendered conversation fits; None if even empty texts would not."""
    conversation, unfinished = item.conversation, set(item.unfinished)
    spare = 0
    for _ in range(attempts):
        excess = len(template.encode(conversation, unfinished=frozenset(unfinished)).ids) - cutoff
        if excess <= 0:
            return Fitted(conversation, frozenset(unfinished))
        texts = [template.content_ids(message.content) for message in conversation.messages]
        level = _level([len(ids) for ids in texts], excess + spare)
        if level < 1:
            return None
        messages = list(conversation.messages)
        for index, ids in enumerate(texts):
            if len(ids) > level:
                from_start = policy == "keep_end" and messages[index].role != "assistant"
                kept = ids[-level:] if from_start else ids[:level]
                text = template.content_text(kept)
                messages[index] = replace(messages[index], content=text)
                unfinished.add(index)
        conversation = replace(conversation, messages=tuple(messages))
        spare += 4
    return None


def _level(lengths: Sequence[int], excess: int) -> int:
    """The length that the longest texts are cut to so that ``excess`` tokens go: water poured from the top."""
    ordered = sorted(lengths, reverse=True)
    for count in range(1, len(ordered) + 1):
        below = ordered[count] if count < len(ordered) else 0
        removable = sum(ordered[:count]) - count * below
        if removable >= excess:
            return below + (removable - excess) // count
    return 0
