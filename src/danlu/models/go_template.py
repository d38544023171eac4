"""A chat template in the language of Ollama's Modelfiles, found by rendering marked texts and cutting between them.

Ollama renders Go's text/template over ``.System`` and ``.Messages``. A Jinja template is a program and cannot be
translated; but what it writes around the turns of a plain conversation is nearly always the same text each time. That
text is found by probes, and the result is compared with the template itself on conversations of several lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from danlu.core.errors import ModelError
from danlu.data.rendering import TemplateError
from danlu.data.schema import Conversation, Message
from danlu.data.templates import Template

MARKS = ("Probe-system", "Probe-asks-1", "Probe-says-1", "Probe-asks-2", "Probe-says-2", "Probe-asks-3")


class NotExpressible(ModelError):
    """A chat template whose turns are not always surrounded by the same text."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a chat template writes around the texts of a conversation.

    Attributes:
        opening: before the first question, when there is no system prompt.
        system: before and behind a system prompt, up to the first question; None if it takes none.
        answer: between a question and its answer, for answers on the way.
        prompt: behind the last question, where the answer is to begin.
        next: between an answer and the next question.
    """

    opening: str
    system: tuple[str, str] | None
    answer: str
    prompt: str
    next: str

    def render(self, conversation: Conversation) -> str:
        """The text of a conversation that ends with a question.

        Raises:
            NotExpressible: when it has a system prompt and the template takes none.
        """
        turns = list(conversation.messages)
        text = self.opening
        if conversation.system is not None:
            if self.system is None:
                raise NotExpressible("the chat template takes no system prompt")
            text = self.system[0] + turns.pop(0).content + self.system[1]
        for number, message in enumerate(turns):
            last = number == len(turns) - 1
            behind = (self.prompt if last else self.answer) if message.role == "user" else self.next
            text += message.content + behind
        return text


def surroundings(template: Template) -> Surroundings:
    """What a template writes around the texts of plain conversations.

    Raises:
        NotExpressible: when that is not the same each time, for instance because rounds are numbered.
    """
    opening, answer, following, answer_again, _, prompt = _between(template, MARKS[1:])
    try:
        before, behind, *_ = _between(template, MARKS)
        system: tuple[str, str] | None = (before, behind)
    except TemplateError:
        system = None
    found = Surroundings(opening, system, answer, prompt, following)
    if answer != answer_again:
        raise _differs(template, MARKS[1:])
    for turns in (1, 3, 5, 7):
        for with_system in (False, True)[: 1 if system is None else 2]:
            conversation = _conversation(_texts(turns, with_system=with_system))
            if template.render(conversation, generation_prompt=True) != found.render(conversation):
                raise _differs(template, [message.content for message in conversation.messages])
    return found


def _between(template: Template, texts: Sequence[str]) -> list[str]:
    """The rendered conversation cut at its texts."""
    rest = template.render(_conversation(texts), generation_prompt=True)
    pieces = []
    for text in texts:
        before, found, rest = rest.partition(text)
        if not found:
            raise _differs(template, texts)
        pieces.append(before)
    return [*pieces, rest]


def _texts(turns: int, *, with_system: bool) -> list[str]:
    said = [f"Probe-{'says' if number % 2 else 'asks'}-{number} of {turns}" for number in range(turns)]
    return [MARKS[0], *said] if with_system else said


def _conversation(texts: Sequence[str]) -> Conversation:
    messages, turns = [], list(texts)
    if turns[0] == MARKS[0]:
        messages.append(Message("system", turns.pop(0)))
    messages += [Message("assistant" if number % 2 else "user", text) for number, text in enumerate(turns)]
    return Conversation(tuple(messages))


def _differs(template: Template, texts: Sequence[str]) -> NotExpressible:
    return NotExpressible(
        f"the chat template does not write the same text around every turn ({len(texts)} texts were tried), which "
        "Ollama's template language cannot follow"
    )


def go_template(found: Surroundings, *, without: str = "") -> str:
    """The same in Go's text/template, over Ollama's ``.System`` and ``.Messages``.

    An answer that stands last is left open, to be continued.

    Args:
        found: the texts between.
        without: a text that the reader writes before everything by itself (BOS), left out at the start.
    """
    opening = _literal(found.opening.removeprefix(without))
    start = opening
    if found.system is not None:
        before, behind = found.system
        start = (
            f"{{{{ if .System }}}}{_literal(before.removeprefix(without))}{{{{ .System }}}}{_literal(behind)}"
            f"{{{{ else }}}}{opening}{{{{ end }}}}"
        )
    asked = _literal(found.prompt)
    if found.prompt != found.answer:
        asked = f"{{{{ if $last }}}}{asked}{{{{ else }}}}{_literal(found.answer)}{{{{ end }}}}"
    return (
        f"{start}{{{{ range $i, $_ := .Messages }}}}{{{{ $last := eq (len (slice $.Messages $i)) 1 }}}}"
        f'{{{{ if eq .Role "user" }}}}{{{{ .Content }}}}{asked}'
        f'{{{{ else if eq .Role "assistant" }}}}{{{{ .Content }}}}'
        f"{{{{ if not $last }}}}{_literal(found.next)}{{{{ end }}}}{{{{ end }}}}{{{{ end }}}}"
    )


def _literal(text: str) -> str:
    """A text that Go's text/template writes as it is."""
    return text.replace("{{", '{{ "{{" }}')
