"""Rows to sequences of token ids with a loss mask, in batches, with everything that is left out counted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import Any, Literal

from danlu.data.fitting import Fitted, Truncation, fit, within_budgets
from danlu.data.rendering import TemplateError, UnstableTemplateError
from danlu.data.schema import Conversation, Document, Example, Preference, Row, UnpairedPreference
from danlu.data.templates import Encoded, Piece, Template

BATCH = 1000
"""Rows tokenised at once: enough to keep every core busy, little enough to stay small in memory."""


@dataclass(frozen=True, slots=True)
class EncodingRules:
    """How rows become sequences; part of the key of the token cache.

    Attributes:
        cutoff_len: longest sequence in tokens.
        truncation: what happens to longer rows.
        train_on_prompt: train every token, not only answers.
        mask_history: train the last answer only.
        unstable_template: what to do when a template rewrites earlier turns: refuse, or one sequence an answer
            (which a template may also ask for itself).
        max_source_length: cut each text that is not an answer to this many tokens, keeping its start.
        max_target_length: cut each answer to this many tokens.
        source_prefix: text put straight before the first user turn.
    """

    cutoff_len: int = 2048
    truncation: Truncation = "drop"
    train_on_prompt: bool = False
    mask_history: bool = False
    unstable_template: Literal["error", "split"] = "error"
    max_source_length: int | None = None
    max_target_length: int | None = None
    source_prefix: str | None = None


@dataclass(slots=True)
class EncodingReport:
    """What became of the rows.

    Attributes:
        rows: rows read.
        sequences: sequences made.
        too_long: rows longer than the cutoff, whatever became of them.
        shortened: rows with a text cut to max_source_length or max_target_length.
        left_out: rows that made no sequence because they were too long.
        untrainable: rows that made no sequence because nothing in them is trained.
        refused: rows that the chat template refuses.
        divided: rows that made a sequence for each answer.
        same: pairs whose answers are the same (perhaps only after they were cut): there is nothing to prefer.
        wanted: sequences of answers labelled as wanted; ``unwanted``: of the others.
        tokens: tokens of all sequences.
        supervised: of those, tokens that are trained.
        longest: tokens of the longest row, before anything was cut.
        examples: the first places of each kind of loss, for messages.
    """

    rows: int = 0
    sequences: int = 0
    too_long: int = 0
    shortened: int = 0
    left_out: int = 0
    untrainable: int = 0
    refused: int = 0
    divided: int = 0
    same: int = 0
    wanted: int = 0
    unwanted: int = 0
    tokens: int = 0
    supervised: int = 0
    longest: int = 0
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add_example(self, kind: str, place: str, most: int = 5) -> None:
        """Remember where a loss happened, the first few times."""
        places = self.examples.setdefault(kind, [])
        if len(places) < most:
            places.append(place)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def encode_rows(
    rows: Iterable[Row], template: Template, rules: EncodingRules, report: EncodingReport
) -> Iterator[tuple[int, Encoded]]:
    """Encode rows in order.

    Yields:
        ``(row number, sequence)``; a row may make none or several. ``report`` is filled on the way.

    Raises:
        DataError: a row is too long and the policy is ``error``.
        TemplateError: the template cannot train such conversations; see ``unstable_template``.
    """
    for batch in batches_of(rows, report):
        yield from _encode_batch(batch, template, rules, report)


def batches_of(rows: Iterable[Row], report: EncodingReport) -> Iterator[list[tuple[int, Row]]]:
    """Numbered rows, :data:`BATCH` at a time, counted as they are read."""
    source = enumerate(rows)
    while batch := list(islice(source, BATCH)):
        report.rows += len(batch)
        yield batch


def trainable_conversation(row: Row, rules: EncodingRules) -> Conversation | None:
    """The conversation of a row as supervised fine-tuning sees it: preferences give their better answer."""
    match row:
        case Example(conversation):
            pass
        case Preference(prompt, chosen):
            conversation = replace(prompt, messages=(*prompt.messages, chosen))
        case UnpairedPreference(conversation, desirable):
            if not desirable:
                return None
        case Document():
            return None
    if rules.source_prefix:
        conversation = with_prefix(conversation, rules.source_prefix)
    if rules.mask_history:
        conversation = last_answer_only(conversation)
    return conversation


def with_prefix(conversation: Conversation, prefix: str) -> Conversation:
    """The conversation with a text before its first user turn."""
    messages = list(conversation.messages)
    for index, message in enumerate(messages):
        if message.role == "user":
            messages[index] = replace(message, content=prefix + message.content)
            break
    return replace(conversation, messages=tuple(messages))


def last_answer_only(conversation: Conversation) -> Conversation:
    """The conversation with all answers but the last untrained."""
    answers = [index for index, message in enumerate(conversation.messages) if message.role == "assistant"]
    muted = set(answers[:-1])
    messages = tuple(
        replace(message, train=False) if index in muted else message
        for index, message in enumerate(conversation.messages)
    )
    return replace(conversation, messages=messages)


def _encode_batch(
    batch: Sequence[tuple[int, Row]], template: Template, rules: EncodingRules, report: EncodingReport
) -> Iterator[tuple[int, Encoded]]:
    numbers: list[int] = []
    sources: list[tuple[Fitted, Row]] = []
    pieces: list[list[Piece]] = []
    for number, row in batch:
        for item, cut in _conversations(row, template, rules, report):
            numbers.append(number)
            sources.append((item, row))
            pieces.append(cut)
    for number, (item, row), encoded in zip(numbers, sources, template.encode_pieces(pieces), strict=True):
        report.longest = max(report.longest, len(encoded.ids))
        if len(encoded.ids) <= rules.cutoff_len:
            yield from _counted(number, encoded, row, rules, report)
            continue
        report.too_long += 1
        report.add_example("too_long", str(row.origin))
        fitted = fit(item, template, rules.cutoff_len, rules.truncation, row.origin)
        report.left_out += not fitted
        for shorter in fitted:
            cut_again = template.encode(shorter.conversation, unfinished=shorter.unfinished)
            yield from _counted(number, cut_again, row, rules, report)


def _conversations(
    row: Row, template: Template, rules: EncodingRules, report: EncodingReport
) -> Iterator[tuple[Fitted, list[Piece]]]:
    """What to train for one row: its conversation, or one for each answer where the template forces that."""
    conversation = trainable_conversation(row, rules)
    if conversation is None or not any(message.role == "assistant" for message in conversation.messages):
        report.untrainable += 1
        report.add_example("untrainable", str(row.origin))
        return
    item = within_budgets(conversation, template, rules.max_source_length, rules.max_target_length)
    if item.unfinished:
        report.shortened += 1
        report.add_example("shortened", str(row.origin))
    try:
        yield item, template.pieces(item.conversation, unfinished=item.unfinished)
    except UnstableTemplateError:
        if rules.unstable_template == "error" and not template.one_answer:
            raise
        report.divided += 1
        for shorter in _one_for_each_answer(item.conversation):
            yield Fitted(shorter, item.unfinished), template.pieces(shorter, unfinished=item.unfinished)
    except TemplateError as error:
        report.refused += 1
        report.add_example("refused", f"{row.origin}: {error.what}")


def _one_for_each_answer(conversation: Conversation) -> Iterator[Conversation]:
    for index, message in enumerate(conversation.messages):
        if message.role == "assistant" and message.train is not False:
            shorter = replace(conversation, messages=conversation.messages[: index + 1])
            yield last_answer_only(shorter)


def _counted(
    number: int, encoded: Encoded, row: Row, rules: EncodingRules, report: EncodingReport
) -> Iterator[tuple[int, Encoded]]:
    if rules.train_on_prompt:
        encoded = Encoded(encoded.ids, [True] * len(encoded.ids))
    supervised = sum(encoded.trained[1:])
    if not supervised:
        report.untrainable += 1
        report.add_example("untrainable", str(row.origin))
        return
    report.sequences += 1
    report.tokens += len(encoded.ids)
    report.supervised += supervised
    yield number, encoded
