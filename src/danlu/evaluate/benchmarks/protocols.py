"""Questions as prompts: a protocol's templates filled in, byte by byte as they were written down."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from danlu.data.schema import Conversation, Message
from danlu.engine.protocol import Prompt
from danlu.evaluate.benchmarks.schema import LETTERS, Benchmark, Item, Protocol, fill

Length = Callable[[Prompt], int]
"""Tokens of a prompt as the model will see it."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A question as it is put to a model.

    Attributes:
        prompt: a text to continue, or a conversation that ends with the question.
        text: the question's own part of it, that a second question builds on.
        targets: what is scored for each choice, in their order; a demonstration shows the same text.
        shots: demonstrations in the prompt.
        dropped: demonstrations that did not fit.
    """

    prompt: Prompt
    text: str
    targets: tuple[str, ...]
    shots: int
    dropped: int = 0


def ask(benchmark: Benchmark, protocol: Protocol, item: Item, demos: Sequence[Item]) -> Asked:
    """The prompt for a question after demonstrations, in their order.

    Args:
        benchmark: knows the names of subjects.
        protocol: already that of the subject's kind (:meth:`Protocol.of`).
        item: the question.
        demos: questions with their answers.
    """
    shown = [
        (fill(protocol.question, values), demonstrated(protocol, demo, values))
        for number, demo in enumerate(demos, start=1)
        for values in [names_of(benchmark, protocol, demo, number)]
    ]
    values = names_of(benchmark, protocol, item, len(demos) + 1)
    prompt: Prompt
    if protocol.form == "completion":
        examples = "".join(question + answer + protocol.joiner for question, answer in shown)
        text = fill(protocol.head, values) + examples + fill(protocol.question + protocol.lead, values)
        prompt = fill(protocol.wrap, {"text": text})
    else:
        turns = [turn for pair in shown for turn in pair]
        turns.append(fill(protocol.question, values))
        turns[0] = fill(protocol.head, values) + turns[0]
        text = turns[-1]
        prompt = _conversation(fill(protocol.system, values), turns)
    return Asked(prompt, text, targets_of(protocol, item), len(demos))


def ask_within(
    benchmark: Benchmark,
    protocol: Protocol,
    item: Item,
    demos: Sequence[Item],
    *,
    length: Length,
    room: int,
) -> Asked:
    """As :func:`ask`, with as many demonstrations as fit into ``room`` tokens; the last ones are left out.

    A question that does not fit alone is asked all the same; the engine then cuts it and counts that.
    """
    for kept in range(len(demos), -1, -1):
        asked = ask(benchmark, protocol, item, demos[:kept])
        if kept == 0 or length(asked.prompt) <= room:
            break
    return Asked(asked.prompt, asked.text, asked.targets, kept, len(demos) - kept)


def ask_again(benchmark: Benchmark, protocol: Protocol, item: Item, asked: Asked, reply: str) -> Prompt:
    """The second question of a protocol in two stages, over the reply to the first."""
    values = names_of(benchmark, protocol, item, asked.shots + 1)
    text = fill(protocol.second, values | {"asked": asked.text, "reply": reply})
    if isinstance(asked.prompt, Conversation):
        *before, last = asked.prompt.messages
        return Conversation((*before, Message(last.role, text)))
    return fill(protocol.wrap, {"text": text})


def demonstrated(protocol: Protocol, item: Item, values: dict[str, str]) -> str:
    """What a demonstration answers: exactly what would be scored, unless the protocol says more."""
    if protocol.answer:
        return fill(protocol.answer, values)
    place = LETTERS.find(item.answer) if item.choices and len(item.answer) == 1 else -1
    text = item.choices[place] if 0 <= place < len(item.choices) else item.answer
    return fill(protocol.target, {"letter": item.answer, "text": text})


def targets_of(protocol: Protocol, item: Item) -> tuple[str, ...]:
    """What is scored for each choice."""
    return tuple(
        fill(protocol.target, {"letter": letter, "text": text})
        for letter, text in zip(item.letters, item.choices, strict=True)
    )


def names_of(benchmark: Benchmark, protocol: Protocol, item: Item, number: int) -> dict[str, str]:
    """Values of the names in templates; see :mod:`danlu.evaluate.benchmarks.schema`."""
    subject = benchmark.subjects[item.subject]
    zh, en = subject.zh or subject.en or item.subject, subject.en or subject.zh or item.subject
    language = protocol.language or subject.language or benchmark.language
    tidy = str.strip if protocol.strip else str
    options = [
        fill(protocol.option, {"letter": letter, "text": tidy(text)})
        for letter, text in zip(item.letters, item.choices, strict=True)
    ]
    return {
        "subject": zh if language == "zh" else en,
        "subject_zh": zh,
        "subject_en": en,
        "subject_id": item.subject,
        "passage": tidy(item.passage),
        "question": tidy(item.question),
        "options": protocol.option_joiner.join(options),
        "last": item.letters[-1:],
        "number": str(number),
        "explanation": item.explanation,
        "answer": item.answer,
    }


def prompt_text(prompt: Prompt) -> str:
    """A prompt as one text, to hash and to show: conversations as JSON."""
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, Conversation):
        turns = [[message.role, message.content] for message in prompt.messages]
        return json.dumps(turns, ensure_ascii=False)
    return " ".join(map(str, prompt))


def prompt_digest(prompt: Prompt, *further: str) -> str:
    """Sixteen hex digits of a prompt and what else decides the answer."""
    text = "\x00".join((prompt_text(prompt), *further))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _conversation(system: str, turns: Sequence[str]) -> Conversation:
    messages = [Message("assistant" if place % 2 else "user", text) for place, text in enumerate(turns)]
    return Conversation((*([Message("system", system)] if system else []), *messages))
