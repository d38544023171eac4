"""The words of a benchmark: item, subject, protocol, benchmark.

Templates are Python format strings over these names; a literal brace is doubled:

==============  ==========================================================================
subject         name of the subject in the protocol's language
subject_zh      its Chinese name; also subject_en, subject_id
passage         text that the question is about, or nothing
question        the question
options         the choices, each as ``option`` says, joined by ``option_joiner``
last            letter of the last choice
number          place of the question in the prompt, from 1 (demonstrations come first)
explanation     worked solution of a demonstration
answer          the right answer: letters without a separator (``ACD``), or a text
letter, text    in ``option`` and ``target`` only: one choice
==============  ==========================================================================
"""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from pydantic import Field, model_validator

from danlu.core.config import Options
from danlu.core.errors import UsageError, did_you_mean

Mode: TypeAlias = Literal["letter", "continuation", "generate", "cot"]
Form: TypeAlias = Literal["completion", "chat"]
Average: TypeAlias = Literal["macro", "micro"]

LETTERS = string.ascii_uppercase
ITEM_FIELDS = frozenset({
    "subject", "subject_zh", "subject_en", "subject_id",
    "passage", "question", "options", "last", "number", "explanation", "answer",
})  # fmt: skip
CHOICE_FIELDS = frozenset({"letter", "text"})


@dataclass(frozen=True, slots=True)
class Item:
    """One question.

    Attributes:
        id: as the file has it; unique within its subject and split.
        subject: id of the subject.
        question: the question alone.
        choices: texts of the choices in order; empty for a question with a free answer.
        answers: what is right: letters of choices (more than one where all of them have to be named), or accepted
            texts of a free answer. Empty where the file has no labels.
        passage: text that the question is about.
        explanation: worked solution, for demonstrations.
        group: items of one group stand or fall together (questions on the same passage); intervals draw groups.
        origin: ``file:line`` for messages.
    """

    id: str
    subject: str
    question: str
    choices: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    passage: str = ""
    explanation: str = ""
    group: str = ""
    origin: str = ""

    @property
    def letters(self) -> str:
        """Letters of the choices: ``ABCD`` for four."""
        return LETTERS[: len(self.choices)]

    @property
    def answer(self) -> str:
        """The right answer as a demonstration shows it."""
        return "".join(self.answers) if self.choices else next(iter(self.answers), "")


class Subject(Options):
    """One part of a benchmark.

    Attributes:
        zh: Chinese name.
        en: English name.
        category: what it is averaged with.
        kind: which variant of a protocol's templates it uses (``Protocol.kinds``).
        language: overrides the benchmark's.
        demos: subject whose demonstrations it uses, where it has none of its own.
        counts: questions of each split, as published; another number is told.
    """

    zh: str = ""
    en: str = ""
    category: str = ""
    kind: str = ""
    language: Literal["zh", "en"] | None = None
    demos: str = ""
    counts: dict[str, int] = Field(default_factory=dict)


class Protocol(Options):
    """How the questions of a benchmark are asked and scored. See the module for the names in templates.

    Attributes:
        title: what it is, in a few words.
        source: where it was written down.
        form: one text to continue, or turns for the model's own template.
        mode: ``letter``: probability of the targets after the question. ``continuation``: the same with whole choices,
            also by length. ``generate``: answer freely, then extract. ``cot``: reason first; then ``second`` asks for
            the answer, or without it the answer is extracted from the reasoning.
        shots: demonstrations unless told otherwise.
        system: system turn (chat).
        head: stands before everything; in a chat at the beginning of the first user turn.
        question: a question up to where its answer begins.
        option: one choice.
        option_joiner: between choices.
        target: what is scored for a choice; a demonstration shows exactly the same text.
        answer: what a demonstration answers, where that is more than the target of the right choice.
        joiner: after a demonstration (completion).
        lead: follows the question that is asked, not the demonstrations (``cot``): how the reasoning begins.
        wrap: around the whole text (completion), over ``text``.
        second: text of the second question, over ``asked`` (the first) and ``reply`` (``cot``).
        second_mode: how the second answer is found.
        extractor: name of the rules that find an answer in a reply.
        match: name of the rule that compares it with the label.
        max_new_tokens: longest reply.
        stop: texts that end a reply.
        strip: white space around questions is removed.
        language: of ``{subject}``; the benchmark's by default.
        average: which average is the headline; both are always reported.
        kinds: other values of these fields for subjects of a kind.
    """

    title: str = ""
    source: str = ""
    form: Form = "completion"
    mode: Mode = "letter"
    shots: int = Field(0, ge=0)
    system: str = ""
    head: str = ""
    question: str
    option: str = "{letter}. {text}"
    option_joiner: str = "\n"
    target: str = "{letter}"
    answer: str = ""
    joiner: str = "\n\n"
    lead: str = ""
    wrap: str = "{text}"
    second: str = ""
    second_mode: Literal["letter", "generate"] = "letter"
    extractor: str = "choice"
    match: str = "choice"
    max_new_tokens: int = Field(512, ge=1)
    stop: tuple[str, ...] = ()
    strip: bool = False
    language: Literal["zh", "en"] | None = None
    average: Average = "macro"
    kinds: dict[str, dict[str, Any]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _names_exist(self) -> Protocol:
        allowed = {
            "system": ITEM_FIELDS, "head": ITEM_FIELDS, "question": ITEM_FIELDS, "answer": ITEM_FIELDS,
            "lead": ITEM_FIELDS, "option": CHOICE_FIELDS, "target": CHOICE_FIELDS,
            "wrap": {"text"}, "second": {"asked", "reply", *ITEM_FIELDS},
        }  # fmt: skip
        for field, names in allowed.items():
            for name in fields_of(getattr(self, field)):
                if name not in names:
                    hint = did_you_mean(name, names) or f"Known: {', '.join(sorted(names))}."
                    raise ValueError(f"{field} has no name {{{name}}}. {hint}")
        if self.second and self.mode != "cot":
            raise ValueError("second belongs to the mode cot")
        if self.form == "chat" and self.lead:
            raise ValueError("a chat cannot begin the reply: lead belongs to the form completion")
        for kind in self.kinds:
            self.of(kind)
        return self

    def of(self, kind: str) -> Protocol:
        """The protocol for subjects of a kind."""
        if kind not in self.kinds:
            return self
        values = self.model_dump(exclude={"kinds"}, exclude_unset=True)
        return Protocol.model_validate({**values, **self.kinds[kind]})

    @property
    def digest(self) -> str:
        """Twelve hex digits over everything that changes a prompt or a score, not over titles and sources."""
        values = self.model_dump(mode="json", exclude={"title", "source"})
        text = json.dumps(values, ensure_ascii=False, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


class Columns(Options):
    """Which column of a file holds what. A name that the file does not have is an error, but for the optional ones.

    Attributes:
        id: optional; the place in the file otherwise.
        question: the question.
        choices: one column for each choice, or a single one that holds a list.
        answer: a letter, a list of letters, the number of a choice from 0 (where the file has numbers), or a text.
        passage: optional.
        explanation: optional.
        group: optional; the passage otherwise.
    """

    id: str = "id"
    question: str = "question"
    choices: tuple[str, ...] = ("A", "B", "C", "D")
    answer: str = "answer"
    passage: str = "passage"
    explanation: str = "explanation"
    group: str = "group"


class Benchmark(Options):
    """A benchmark: files, subjects, protocols.

    Attributes:
        name: short, for the command line.
        title: English name.
        title_zh: Chinese name.
        source: where the data is published.
        licence: of the data.
        language: of the questions.
        hub: dataset that ``--data hub`` fetches; empty for none.
        splits: patterns of the files of each split, the first that fits is taken; ``{subject}`` is the id.
        split: which one is answered by default.
        demo_split: which one demonstrations come from; empty for none.
        unlabelled: splits that have no labels.
        header: names of the columns, where the files do not begin with them.
        columns: what they mean.
        reader: another reader of the files, ``module:function``; see :mod:`danlu.evaluate.benchmarks.loading`.
        subjects: by id, in the order of reports.
        groups: further averages over subjects, by name.
        protocols: by name; the first is the default.
        submission: the site that scores the unlabelled split wants ``submission.json``.
    """

    name: str
    title: str = ""
    title_zh: str = ""
    source: str = ""
    licence: str = ""
    language: Literal["zh", "en"] = "zh"
    hub: str = ""
    splits: dict[str, tuple[str, ...]]
    split: str = "test"
    demo_split: str = ""
    unlabelled: tuple[str, ...] = ()
    header: tuple[str, ...] = ()
    columns: Columns = Columns()
    reader: str = ""
    subjects: dict[str, Subject]
    groups: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    protocols: dict[str, Protocol]
    submission: bool = False

    @model_validator(mode="after")
    def _parts_exist(self) -> Benchmark:
        for name in filter(None, (self.split, self.demo_split, *self.unlabelled)):
            if name not in self.splits:
                raise ValueError(f"there is no split {name!r} among {', '.join(self.splits)}")
        for group, subjects in self.groups.items():
            if strange := [subject for subject in subjects if subject not in self.subjects]:
                raise ValueError(f"group {group!r} names subjects that do not exist: {', '.join(strange)}")
        return self

    def protocol(self, name: str | None = None) -> tuple[str, Protocol]:
        """A protocol by name, or the default one, with its name.

        Raises:
            UsageError: with the nearest names.
        """
        chosen = name or next(iter(self.protocols))
        if chosen not in self.protocols:
            hint = did_you_mean(chosen, self.protocols) or f"Known: {', '.join(self.protocols)}."
            raise UsageError(f"{self.name} has no protocol {chosen!r}", hint=hint)
        return chosen, self.protocols[chosen]

    def chosen_subjects(self, names: tuple[str, ...] = ()) -> list[str]:
        """Ids of subjects in the order of reports: all, or those named by id, Chinese or English name, or group.

        Raises:
            UsageError: with the nearest names.
        """
        known: dict[str, tuple[str, ...]] = {
            key: (id,) for id, subject in self.subjects.items() for key in (id, subject.zh, subject.en) if key
        }
        for id, subject in self.subjects.items():
            if subject.category and subject.category not in self.subjects:
                known[subject.category] = (*known.get(subject.category, ()), id)
        known |= self.groups
        wanted: set[str] = set()
        for name in names:
            if name not in known:
                hint = did_you_mean(name, known) or f"danlu bench show {self.name} lists them."
                raise UsageError(f"{self.name} has no subject {name!r}", hint=hint)
            wanted |= set(known[name])
        return [id for id in self.subjects if not names or id in wanted]


def fields_of(template: str) -> list[str]:
    """Names that a template uses.

    Raises:
        ValueError: when it is no format string.
    """
    return [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]


def fill(template: str, values: Mapping[str, str]) -> str:
    """A template with its names replaced; braces inside the values stay as they are."""
    return template.format_map(values)
