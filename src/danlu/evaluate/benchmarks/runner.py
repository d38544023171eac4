"""Asks an engine the questions of a benchmark; every answer is written as it comes, and kept over a kill."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from danlu.core.console import ProgressLine, progress, warn
from danlu.core.errors import UsageError
from danlu.engine.protocol import Completion, Engine, GenerationOptions, Request, Scored, ScoreRequest
from danlu.evaluate.benchmarks.loading import Questions
from danlu.evaluate.benchmarks.protocols import Asked, Length, ask, ask_again, ask_within, prompt_digest
from danlu.evaluate.benchmarks.samples import FILE_NAME, SampleFile
from danlu.evaluate.benchmarks.schema import Benchmark, Item, Protocol
from danlu.evaluate.benchmarks.scoring import from_log_probs, from_reply

ANSWER_TOKENS = 16
"""Room that is kept free behind a prompt for what is scored."""


@dataclass(frozen=True, slots=True)
class Task:
    """What is asked.

    Attributes:
        benchmark: and its files.
        protocol_name: name of the protocol.
        protocol: how it is asked.
        shots: demonstrations.
        split: of the questions.
        questions: the questions, with demonstrations.
        model: what answers, by name (model, weights, adapters, template …); part of every key.
        place: where the questions came from.
        limit: questions of each subject at most; None for all.
    """

    benchmark: Benchmark
    protocol_name: str
    protocol: Protocol
    shots: int
    split: str
    questions: Questions
    model: Mapping[str, str] = field(default_factory=dict)
    place: str = ""
    limit: int | None = None

    @property
    def protocol_id(self) -> str:
        """``ceval/official``."""
        return f"{self.benchmark.name}/{self.protocol_name}"


@dataclass(frozen=True, slots=True)
class Waiting:
    """A question, ready to be asked; ``key`` is its own whatever else is asked."""

    key: str
    item: Item
    protocol: Protocol
    asked: Asked


def waiting_questions(task: Task, *, length: Length | None = None, context: int | None = None) -> list[Waiting]:
    """Every question as it will be asked, in the order of subjects and files.

    Args:
        task: what is asked.
        length: counts the tokens of a prompt; with ``context`` demonstrations that do not fit are left out.
        context: longest sequence of the model, in tokens.

    Raises:
        UsageError: when more demonstrations are wanted than there are.
    """
    found = []
    for subject, items in task.questions.items.items():
        protocol = task.protocol.of(task.benchmark.subjects[subject].kind)
        demos = task.questions.demos.get(subject, [])
        if len(demos) < task.shots:
            raise UsageError(
                f"{task.shots} demonstrations are wanted and {subject} has {len(demos)}",
                where=task.protocol_id,
                hint=f"Use --shots {len(demos)} or fewer.",
            )
        shown = demos[: task.shots]
        for item in items:
            if length is not None and context is not None and shown:
                free = ANSWER_TOKENS if protocol.mode in ("letter", "continuation") else protocol.max_new_tokens
                room = max(context - free, 1)
                asked = ask_within(task.benchmark, protocol, item, shown, length=length, room=room)
            else:
                asked = ask(task.benchmark, protocol, item, shown)
            found.append(Waiting(_key(task, item, protocol, asked), item, protocol, asked))
    return found


def _key(task: Task, item: Item, protocol: Protocol, asked: Asked) -> str:
    model = {name: value for name, value in task.model.items() if protocol.form == "chat" or name != "template"}
    return prompt_digest(
        asked.prompt, json.dumps(model, sort_keys=True), protocol.digest, *asked.targets, item.subject, item.id
    )


def answer_questions(engine: Engine, waiting: Sequence[Waiting], task: Task, folder: Path) -> list[dict[str, Any]]:
    """Ask what has no answer in ``folder/samples.jsonl`` yet; all answers, in the order of the questions.

    Raises:
        UsageError: when the engine cannot see log-probabilities and the protocol needs them.
        RunError: when the file cannot be written.
    """
    file = SampleFile(folder / FILE_NAME, [question.key for question in waiting])
    if dropped := sum(bool(question.asked.dropped) for question in waiting):
        warn(
            f"{dropped} of {len(waiting)} prompts are too long for the model with {task.shots} demonstrations: "
            "the last ones are left out there"
        )
    left = [question for question in waiting if question.key not in file.rows or file.rows[question.key].get("partial")]
    with progress(task.protocol_id, len(waiting)) as line:
        line.advance(len(waiting) - len(left))
        scored = [question for question in left if question.protocol.mode in ("letter", "continuation")]
        _score(engine, {question.key: (question, question.asked.prompt) for question in scored}, file, line)
        _reply(engine, [question for question in left if question not in scored], task, file, line)
    return file.finish()


def _score(engine: Engine, asked: Mapping[str, tuple[Waiting, Any]], file: SampleFile, line: ProgressLine) -> None:
    for question, _ in asked.values():
        if not question.item.choices:
            raise UsageError(
                "a question without choices has nothing to score",
                where=question.item.origin or question.item.id,
                hint="Use a protocol that generates.",
            )
    requests = (ScoreRequest(key, prompt, question.asked.targets) for key, (question, prompt) in asked.items())
    if not asked:
        return
    for scored in engine.score(requests):
        question, _ = asked[scored.key]
        before = file.rows.get(scored.key, {})
        found = from_log_probs(question.protocol, question.item, scored.log_probs)
        file.add({**_head(question), **_of_model(scored), **_first(before), **found})
        line.advance()


def _reply(engine: Engine, left: Sequence[Waiting], task: Task, file: SampleFile, line: ProgressLine) -> None:
    """Replies, and for protocols in two stages the answer to the second question."""
    by_key = {question.key: question for question in left}
    fresh = [question for question in left if question.key not in file.rows]
    for completion in _generated(engine, [(question, question.asked.prompt) for question in fresh]):
        question = by_key[completion.key]
        row = {**_head(question), **_of_model(completion), "reply": completion.text, "finish": completion.finish_reason}
        if question.protocol.second:
            file.add({**row, "partial": True})
            continue
        file.add({**row, **from_reply(question.protocol, question.item, completion.text)})
        line.advance()
    again = [
        (question, ask_again(task.benchmark, question.protocol, question.item, question.asked, reply))
        for question in left
        if question.protocol.second
        for reply in [file.rows[question.key]["reply"]]
    ]
    scored = {
        question.key: (question, prompt) for question, prompt in again if question.protocol.second_mode == "letter"
    }
    _score(engine, scored, file, line)
    for completion in _generated(engine, [pair for pair in again if pair[0].key not in scored]):
        question = by_key[completion.key]
        found = {"second_reply": completion.text, **from_reply(question.protocol, question.item, completion.text)}
        file.add({**_head(question), **_of_model(completion), **_first(file.rows[completion.key]), **found})
        line.advance()


def _generated(engine: Engine, asked: Sequence[tuple[Waiting, Any]]) -> Iterable[Completion]:
    if not asked:
        return ()
    options = GenerationOptions()
    return engine.generate(
        Request(
            question.key,
            prompt,
            replace(options, max_new_tokens=question.protocol.max_new_tokens, stop=question.protocol.stop),
        )
        for question, prompt in asked
    )


def _head(question: Waiting) -> dict[str, Any]:
    item = question.item
    row: dict[str, Any] = {
        "key": question.key,
        "subject": item.subject,
        "id": item.id,
        "answer": item.answer,
        "choices": len(item.choices),
        "prompt": prompt_digest(question.asked.prompt),
        "shots": question.asked.shots,
    }
    if question.asked.dropped:
        row["shots_dropped"] = question.asked.dropped
    if item.group:
        row["group"] = prompt_digest(item.group)
    return row


def _of_model(given: Scored | Completion) -> dict[str, Any]:
    return {"prompt_tokens": given.prompt_tokens, **({"cut_tokens": given.cut_tokens} if given.cut_tokens else {})}


def _first(row: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of the first stage."""
    return {name: row[name] for name in ("reply", "finish") if name in row}
