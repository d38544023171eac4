"""Rows as questions with a wanted answer, and a model's answers to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from danlu.data.encode import EncodingRules, trainable_conversation
from danlu.data.rendering import inline_tools
from danlu.data.schema import Conversation, Message, Row, row_key
from danlu.engine.protocol import Completion, Engine, GenerationOptions, Request
from danlu.tune.options.running import GenerateOptions


@dataclass(frozen=True, slots=True)
class Question:
    """What a model is asked, and what it should say.

    Attributes:
        prompt: the conversation up to the answer.
        text: the prompt as the model sees it.
        label: the wanted answer.
        key: content hash of the row.
    """

    prompt: Conversation
    text: str
    label: str
    key: int


def questions(rows: Sequence[Row], render: Callable[[Conversation], str], rules: EncodingRules) -> list[Question]:
    """Rows whose last turn is an answer, as questions, shown by ``render``; other rows are left out."""
    found = []
    for row in rows:
        conversation = trainable_conversation(row, rules)
        if conversation is None or not conversation.messages or conversation.messages[-1].role != "assistant":
            continue
        prompt = replace(conversation, messages=conversation.messages[:-1])
        found.append(Question(prompt, render(prompt), _answer_text(conversation.messages[-1]), row_key(row)))
    return found


def _answer_text(message: Message) -> str:
    return inline_tools(Conversation((message,))).messages[0].content if message.tool_calls else message.content


def generation_options(options: GenerateOptions, seed: int) -> GenerationOptions:
    """The engine's options from those of a configuration."""
    sampling: dict[str, Any] = {}
    if options.do_sample:
        sampling = {"temperature": options.temperature, "top_p": options.top_p, "top_k": options.top_k}
    return GenerationOptions(
        do_sample=options.do_sample,
        num_beams=options.num_beams,
        max_new_tokens=options.max_new_tokens,
        repetition_penalty=options.repetition_penalty,
        seed=seed,
        **sampling,
    )


def answer(
    engine: Engine,
    asked: Mapping[int, Question],
    options: GenerationOptions,
    finished: Callable[[int, Completion], None],
) -> None:
    """Ask every question; ``finished(number, completion)`` is called as answers come."""
    requests = [Request(str(number), question.prompt, options) for number, question in asked.items()]
    for completion in engine.generate(requests):
        finished(int(completion.key), completion)
