"""Prompts with the answers that continue them: pairs, labelled answers, and prompts alone.

The prompt that two answers share is one sequence and each answer another: the prompt is computed once. Where the
answers begin is found in the token ids themselves, so a template that writes something between the prompt and the
answer's text keeps it in the prompt only as far as both answers agree.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from danlu.core.errors import DataError
from danlu.data.encode import EncodingReport, EncodingRules, batches_of, last_answer_only, with_prefix
from danlu.data.fitting import Fitted, fit, within_budgets
from danlu.data.rendering import TemplateError
from danlu.data.schema import Conversation, Document, Message, Origin, Preference, Row, UnpairedPreference
from danlu.data.templates import Encoded, Template
from danlu.data.tokens import Item


@dataclass(frozen=True, slots=True)
class _Fork:
    """A prompt and two answers, before tokenising.

    Attributes:
        row: number of the row.
        prompt: what both answer.
        answers: the second may be foreign.
        value: of the item.
        origin: of the row.
        foreign: the second answer belongs to another prompt: it is cut to what room there is, and counted nowhere.
    """

    row: int
    prompt: Conversation
    answers: tuple[Message, Message]
    value: float
    origin: Origin
    foreign: bool = False


def encode_pairs(
    rows: Iterable[Row], template: Template, rules: EncodingRules, report: EncodingReport
) -> Iterator[Item]:
    """Preferences as (prompt, chosen, rejected); the value is the margin, or not a number.

    Raises:
        DataError: a row is too long and the policy is ``error``.
    """
    for batch in batches_of(rows, report):
        forks = [
            _Fork(
                number,
                row.prompt,
                (row.chosen, row.rejected),
                math.nan if row.margin is None else row.margin,
                row.origin,
            )
            for number, row in batch
            if isinstance(row, Preference)
        ]
        yield from _encode(forks, template, rules, report)


def encode_labelled(
    rows: Iterable[Row], template: Template, rules: EncodingRules, report: EncodingReport
) -> Iterator[Item]:
    """Labelled answers as (prompt, answer, an answer to another prompt); the value is 1 for a wanted answer, else 0.

    The foreign answer is what KTO estimates its KL term with. It is that of the next row with another prompt.

    Raises:
        DataError: when there are not two different prompts, or a row is too long and the policy is ``error``.
    """
    earlier: list[_Labelled] = []
    for batch in batches_of(rows, report):
        labelled = [item for number, row in batch for item in _labelled(number, row)]
        forks = []
        for item, foreign in zip(labelled, _answers_to_others(labelled, earlier)):
            if foreign is None:
                raise DataError(
                    "kto compares answers with answers to other prompts, and there is only one prompt",
                    where=str(item.origin),
                    hint="Give rows with at least two different prompts.",
                )
            answers = (item.answer, foreign)
            forks.append(_Fork(item.row, item.prompt, answers, float(item.wanted), item.origin, foreign=True))
        earlier = _two_prompts(labelled) or earlier
        yield from _encode(forks, template, rules, report)


@dataclass(frozen=True, slots=True)
class _Labelled:
    """One answer that is wanted or not."""

    row: int
    prompt: Conversation
    answer: Message
    wanted: bool
    origin: Origin


def _labelled(number: int, row: Row) -> Iterator[_Labelled]:
    match row:
        case UnpairedPreference(conversation, desirable, origin):
            yield _Labelled(number, prompt_of(row), conversation.messages[-1], desirable, origin)
        case Preference(prompt, chosen, rejected, _, origin):
            yield _Labelled(number, prompt, chosen, True, origin)
            yield _Labelled(number, prompt, rejected, False, origin)


def _answers_to_others(labelled: Sequence[_Labelled], earlier: Sequence[_Labelled]) -> Iterator[Message | None]:
    """For each answer that of the next row with another prompt, from the start again behind the last; else an earlier.

    Rows with one prompt often stand together, so each looks where the one behind it found something.
    """
    count = len(labelled)
    found: list[int | None] = [None] * count
    for place in reversed(range(2 * count)):
        here, behind = place % count, (place + 1) % count
        found[here] = behind if labelled[behind].prompt != labelled[here].prompt else found[behind]
    for item, other in zip(labelled, found):
        if other is not None:
            yield labelled[other].answer
        else:
            yield next((one.answer for one in earlier if one.prompt != item.prompt), None)


def _two_prompts(labelled: Sequence[_Labelled]) -> list[_Labelled]:
    """Two answers to different prompts, for rows that follow; none if there are no two."""
    other = next((item for item in labelled if item.prompt != labelled[0].prompt), None)
    return [] if other is None else [labelled[0], other]


def encode_prompts(
    rows: Iterable[Row], template: Template, rules: EncodingRules, report: EncodingReport
) -> Iterator[Item]:
    """Prompts with the header of the answer to come; nothing in them is trained.

    A prompt longer than the cutoff is left out: cutting it would ask another question.
    """
    for batch in batches_of(rows, report):
        for number, row in batch:
            asked = prompt_of(row)
            if rules.source_prefix:
                asked = with_prefix(asked, rules.source_prefix)
            fitted = within_budgets(asked, template, rules.max_source_length, None)
            try:
                ids = template.prompt(fitted.conversation)
            except TemplateError as error:
                report.refused += 1
                report.add_example("refused", f"{row.origin}: {error.what}")
                continue
            report.longest = max(report.longest, len(ids))
            if fitted.unfinished:
                report.shortened += 1
                report.add_example("shortened", str(row.origin))
            if len(ids) > rules.cutoff_len:
                report.too_long += 1
                report.left_out += 1
                report.add_example("too_long", str(row.origin))
                continue
            report.sequences += 1
            report.tokens += len(ids)
            yield Item(number, (Encoded(ids, [False] * len(ids)),))


def prompt_of(row: Row) -> Conversation:
    """The conversation up to the answer to come: without the last turn where that is an answer."""
    if isinstance(row, Preference):
        return row.prompt
    if isinstance(row, Document):
        raise DataError("plain text asks nothing", where=str(row.origin), hint="Give conversations.")
    conversation = row.conversation
    messages = conversation.messages
    return replace(conversation, messages=messages[:-1]) if messages[-1].role == "assistant" else conversation


def answer_of(row: Row) -> str | None:
    """The answer that a row brings to its prompt, for rewards that compare; None if it brings none."""
    if isinstance(row, Preference):
        return row.chosen.content
    if isinstance(row, Document):
        return None
    last = row.conversation.messages[-1]
    return last.content if last.role == "assistant" else None


def _encode(forks: Sequence[_Fork], template: Template, rules: EncodingRules, report: EncodingReport) -> Iterator[Item]:
    ready: list[tuple[_Fork, tuple[Fitted, Fitted]]] = []
    pieces = []
    for fork in forks:
        prompt = with_prefix(fork.prompt, rules.source_prefix) if rules.source_prefix else fork.prompt
        first, second = (
            within_budgets(_with(prompt, answer), template, rules.max_source_length, rules.max_target_length)
            for answer in fork.answers
        )
        try:
            cut = [template.pieces(side.conversation, unfinished=side.unfinished) for side in (first, second)]
        except TemplateError as error:
            report.refused += 1
            report.add_example("refused", f"{fork.origin}: {error.what}")
            continue
        if first.unfinished or (second.unfinished and not fork.foreign):
            report.shortened += 1
            report.add_example("shortened", str(fork.origin))
        ready.append((fork, (first, second)))
        pieces += cut
    encoded = iter(template.encode_pieces(pieces))
    for fork, sides in ready:
        item = _counted(fork, sides, (next(encoded), next(encoded)), template, rules, report)
        if item is not None:
            yield item


def _with(prompt: Conversation, answer: Message) -> Conversation:
    trained = replace(answer, train=None)
    return last_answer_only(replace(prompt, messages=(*prompt.messages, trained)))


def _counted(
    fork: _Fork,
    sides: tuple[Fitted, Fitted],
    encoded: tuple[Encoded, Encoded],
    template: Template,
    rules: EncodingRules,
    report: EncodingReport,
) -> Item | None:
    """The item of a fork, cut where it is too long; None if it makes none."""
    own = 1 if fork.foreign else 2
    longest = max(len(side.ids) for side in encoded[:own])
    too_long = longest > rules.cutoff_len
    report.longest = max(report.longest, longest)
    shorter: tuple[Encoded, Encoded] | None = encoded
    if too_long:
        report.too_long += 1
        report.add_example("too_long", str(fork.origin))
        shorten = _shortened_alone if fork.foreign else _shortened
        shorter = shorten(sides, template, rules, fork.origin)
    parts = None if shorter is None else split_at_answers(*shorter)
    if parts is None or not parts[0].ids or not all(any(part.trained) for part in parts[1 : 1 + own]):
        if too_long:
            report.left_out += 1
        else:
            report.untrainable += 1
            report.add_example("untrainable", str(fork.origin))
        return None
    if fork.foreign:
        parts = (*parts[:2], _up_to(parts[2], rules.cutoff_len - len(parts[0].ids)))
        report.wanted += fork.value == 1
        report.unwanted += fork.value == 0
    elif parts[1].ids == parts[2].ids:
        report.same += 1
        report.add_example("same", str(fork.origin))
    report.sequences += 1
    report.tokens += sum(len(part.ids) for part in parts)
    report.supervised += sum(sum(part.trained) for part in parts[1 : 1 + own])
    return Item(fork.row, parts, fork.value)


def _shortened(
    sides: tuple[Fitted, Fitted], template: Template, rules: EncodingRules, origin: Origin
) -> tuple[Encoded, Encoded] | None:
    """Both sides cut to the cutoff, with the prompt that the longer side leaves room for; None to leave the row out."""
    lengths = [len(_encoded(side, template).ids) for side in sides]
    order = (0, 1) if lengths[0] >= lengths[1] else (1, 0)
    found: dict[int, Fitted] = {}
    for place in order:
        side = _on_prompt_of(found[order[0]], sides[place]) if found else sides[place]
        fitted = _fitted(side, template, rules, origin)
        if fitted is None:
            return None
        found[place] = fitted
    if _prompt(found[0]) != _prompt(found[1]):  # the second answer left less room: the first takes its prompt too
        again = _fitted(_on_prompt_of(found[order[1]], found[order[0]]), template, rules, origin)
        if again is None or _prompt(again) != _prompt(found[order[1]]):
            return None
        found[order[0]] = again
    return _encoded(found[0], template), _encoded(found[1], template)


def _shortened_alone(
    sides: tuple[Fitted, Fitted], template: Template, rules: EncodingRules, origin: Origin
) -> tuple[Encoded, Encoded] | None:
    """The first side cut to the cutoff, and the second answer, as long as it is, after that prompt."""
    own = _fitted(sides[0], template, rules, origin)
    return None if own is None else (_encoded(own, template), _encoded(_on_prompt_of(own, sides[1]), template))


def _fitted(side: Fitted, template: Template, rules: EncodingRules, origin: Origin) -> Fitted | None:
    """A conversation cut to the cutoff that still ends with its answer."""
    policy = "keep_start" if rules.truncation == "split" else rules.truncation  # half a pair compares nothing
    return next(iter(fit(side, template, rules.cutoff_len, policy, origin, keep_last=True)), None)


def _encoded(side: Fitted, template: Template) -> Encoded:
    return template.encode(side.conversation, unfinished=side.unfinished)


def _prompt(side: Fitted) -> tuple[Message, ...]:
    return side.conversation.messages[:-1]


def _on_prompt_of(other: Fitted, side: Fitted) -> Fitted:
    """The answer of ``side`` after the prompt of ``other``."""
    messages = (*_prompt(other), side.conversation.messages[-1])
    last = len(messages) - 1
    cut = {index for index in other.unfinished if index < last}
    if len(side.conversation.messages) - 1 in side.unfinished:
        cut.add(last)
    return Fitted(replace(side.conversation, messages=messages), frozenset(cut))


def split_at_answers(first: Encoded, second: Encoded) -> tuple[Encoded, Encoded, Encoded]:
    """The prompt that two sequences share, and what follows it in each.

    The prompt ends before anything trained, an answer ends with its last trained token: nothing sees what follows.
    """
    most = min(_first_trained(first), _first_trained(second))
    shared = next((place for place in range(most) if first.ids[place] != second.ids[place]), most)
    prompt = Encoded(first.ids[:shared], [False] * shared)
    return prompt, _answer(first, shared), _answer(second, shared)


def _answer(encoded: Encoded, start: int) -> Encoded:
    end = max((place for place, trained in enumerate(encoded.trained) if trained), default=start) + 1
    return Encoded(encoded.ids[start:end], encoded.trained[start:end])


def _up_to(encoded: Encoded, length: int) -> Encoded:
    return Encoded(encoded.ids[:length], encoded.trained[:length])


def _first_trained(encoded: Encoded) -> int:
    return encoded.trained.index(True) if True in encoded.trained else len(encoded.ids) - 1
