"""Templates: messages to token ids and a loss mask, the same way in training, prediction, chat and serving.

The model's own ``chat_template`` is the truth. What is trained is found by a prefix difference: an answer is
the text between the conversation before it (with the answer's header) and the conversation including it.
Each such piece is tokenised by itself, so the ids of a prompt in training are the ids of that prompt when the
model is asked; and text written by people is neutralised first, so it never becomes a control token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from danlu.data.continuations import IN_TEXT, Continuations, Tokenizer
from danlu.data.control import ControlText, Run
from danlu.data.rendering import (
    ONE_ANSWER,
    TemplateError,
    UnstableTemplateError,
    compile_template,
    inline_tools,
    render,
    without_escapes,
)
from danlu.data.schema import Conversation, Message, ToolCall


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of the rendered conversation that is tokenised by itself."""

    text: str
    trained: bool


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids and, for each, whether it is trained.

    Attributes:
        ids: token ids, length n.
        trained: n flags; True where the loss is computed for predicting that token.
    """

    ids: list[int]
    trained: list[bool]


class Template:
    """Renders and encodes conversations for one tokenizer.

    Args:
        tokenizer: the model's tokenizer.
        source: a chat template to use; the tokenizer's own by default.
        stop_ids: tokens that end an answer, besides the tokenizer's end of sequence.
        default_system: system prompt for conversations that bring none.
        variables: passed to the template, for instance ``enable_thinking``.

    Raises:
        TemplateError: when the model has no chat template and none is given.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        source: str | None = None,
        stop_ids: Iterable[int] = (),
        default_system: str | None = None,
        **variables: Any,
    ) -> None:
        text = source or tokenizer.chat_template
        if isinstance(text, dict):
            text = text.get("default")
        if not text:
            raise TemplateError(
                "the model brings no chat template",
                hint="Name one with template=…, for instance template=chatml (see `danlu models templates`).",
            )
        self.tokenizer = tokenizer
        self.source: str = text
        self.default_system = default_system
        self._template = compile_template(text)
        self._variables = {**_token_texts(tokenizer), **{k: v for k, v in variables.items() if v is not None}}
        eos = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
        self.stop_ids = frozenset((*eos, *stop_ids))
        added = tokenizer.get_added_vocab()
        self._control = ControlText(tokenizer, added)
        self._continuations = Continuations(tokenizer, added)
        self._stop_texts = tuple(text for text, number in added.items() if number in self.stop_ids)

    @cached_property
    def knows_tools(self) -> bool:
        """Whether the template writes tool schemas, calls and results into the text by itself."""
        probe = Conversation((Message("user", "?"),), ('{"name": "probe_tool_name", "parameters": {}}',))
        try:
            return "probe_tool_name" in self._render(probe.messages, probe.tools, generation_prompt=True)
        except TemplateError:
            return False

    @property
    def one_answer(self) -> bool:
        """Whether the template asks by itself that each answer be trained in a sequence of its own."""
        return ONE_ANSWER in self.source

    @cached_property
    def lead(self) -> str:
        """White space from a line end on that stands between an answer's header and its text; "" if there is none.

        The model writes it itself, and it is no part of the answer.
        """
        asked = (Message("user", "?"),)
        try:
            before = self._render(asked, (), generation_prompt=True)
            after = self._render((*asked, Message("assistant", "answer")), (), generation_prompt=False)
        except TemplateError:
            return ""
        between = after[len(before) :].partition("answer")[0] if after.startswith(before) else ""
        return between if between.startswith("\n") and between.isspace() else ""

    @property
    def digest(self) -> str:
        """Hex hash of everything that decides how a conversation becomes ids, the tokenizer's vocabulary aside."""
        parts = [
            self.source,
            repr(sorted(self._variables.items())),
            self.default_system or "",
            str(sorted(self.stop_ids)),
        ]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]

    def prompt(self, conversation: Conversation) -> list[int]:
        """Ids of a conversation with the header of the answer to come."""
        return self.encode_pieces([self.prompt_pieces(conversation)])[0].ids

    def encode(self, conversation: Conversation, *, unfinished: frozenset[int] = frozenset()) -> Encoded:
        """Ids and loss mask of a whole conversation; see :meth:`pieces`."""
        return self.encode_pieces([self.pieces(conversation, unfinished=unfinished)])[0]

    def render(self, conversation: Conversation, *, generation_prompt: bool = False) -> str:
        """The text that the model sees."""
        conversation = self._prepare(conversation)
        return self._control.reveal(
            self._render(conversation.messages, conversation.tools, generation_prompt=generation_prompt)
        )

    def pieces(self, conversation: Conversation, *, unfinished: frozenset[int] = frozenset()) -> list[Piece]:
        """Cut the rendered conversation into trained and untrained pieces.

        Args:
            conversation: at least one assistant turn. Turns with ``train`` set say themselves whether they are
                trained; otherwise assistant turns are.
            unfinished: indices of messages whose text was cut; their end of turn is not trained.

        Raises:
            TemplateError: when the template is not prefix-stable: what it writes for a trained turn depends on
                later turns.
        """
        prepared = self._prepare(conversation)
        shift = len(prepared.messages) - len(conversation.messages)
        pieces: list[Piece] = []
        open_ends: list[int] = []
        told = ""
        for index, message in enumerate(prepared.messages):
            if message.role != "assistant":
                continue
            before, after = self._around(prepared, index)
            if message.train is False:
                found, told = self._steady(told, before, after, self._seen_from(prepared, index))
                pieces += found
                continue
            if not (before.startswith(told) and after.startswith(before)):
                raise UnstableTemplateError
            pieces.append(Piece(before[len(told) :], trained=False))
            answer, stop, rest = self._at_stop(after[len(before) :])
            finished = index - shift not in unfinished
            if not (finished or stop or message.tool_calls):
                answer, rest = _at_end_of(message.content, answer)
            pieces += [Piece(answer, trained=True), Piece(stop, trained=finished), Piece(rest, trained=False)]
            if finished and not stop:
                open_ends.append(len(pieces) - 2)
            told = after
        if prepared.messages[-1].role != "assistant" or prepared.messages[-1].train is False:
            whole = self._render(prepared.messages, prepared.tools, generation_prompt=False)
            if not whole.startswith(told):
                raise UnstableTemplateError
            pieces.append(Piece(whole[len(told) :], trained=False))
        return [piece for piece in self._closed(pieces, open_ends) if piece.text]

    def prompt_pieces(self, conversation: Conversation) -> list[Piece]:
        """The pieces of a prompt: earlier answers cut where training cuts them, then the answer's header."""
        prepared = self._prepare(conversation)
        whole = self._render(prepared.messages, prepared.tools, generation_prompt=True)
        pieces: list[Piece] = []
        told = ""
        for index, message in enumerate(prepared.messages):
            if message.role == "assistant":
                found, told = self._steady(told, *self._around(prepared, index), whole)
                pieces += found
        pieces.append(Piece(whole[len(told) :], trained=False))
        return [piece for piece in pieces if piece.text]

    def _around(self, prepared: Conversation, index: int) -> tuple[str, str]:
        """The text up to an answer with its header, and with the answer."""
        return (
            self._render(prepared.messages[:index], prepared.tools, generation_prompt=True),
            self._render(prepared.messages[: index + 1], prepared.tools, generation_prompt=False),
        )

    def _seen_from(self, prepared: Conversation, index: int) -> str:
        """What the next trained answer sees, or the whole text if none follows."""
        for later in range(index + 1, len(prepared.messages)):
            if prepared.messages[later].role == "assistant" and prepared.messages[later].train is not False:
                return self._render(prepared.messages[:later], prepared.tools, generation_prompt=True)
        return self._render(prepared.messages, prepared.tools, generation_prompt=False)

    def _steady(self, told: str, before: str, after: str, seen: str) -> tuple[list[Piece], str]:
        """Pieces of an untrained answer, as far as later text leaves it as it was; and what has been told with them."""
        pieces: list[Piece] = []
        if self.one_answer and not seen.startswith(after):
            return pieces, told  # no answer is trained inside its history, so nothing is cut there
        if before.startswith(told) and seen.startswith(before):
            pieces.append(Piece(before[len(told) :], trained=False))
            told = before
        if after.startswith(told) and seen.startswith(after):
            pieces += [Piece(text, trained=False) for text in self._at_stop(after[len(told) :])]
            told = after
        return pieces, told

    def encode_pieces(self, conversations: Sequence[Sequence[Piece]]) -> list[Encoded]:
        """Tokenise many conversations at once, piece by piece.

        Returns:
            One :class:`Encoded` per conversation, in order.
        """
        parts = [list(self._parts(pieces)) for pieces in conversations]
        ids = iter(self._encoded([(before, run) for row in parts for before, run, _ in row]))
        encoded = []
        for row in parts:
            numbers: list[int] = []
            trained: list[bool] = []
            for _, _, is_trained in row:
                part = next(ids)
                numbers += part
                trained += [is_trained] * len(part)
            encoded.append(Encoded(numbers, trained))
        return encoded

    def _parts(self, pieces: Sequence[Piece]) -> Iterator[tuple[str, Run, bool]]:
        """What is tokenised by itself: what stands before it, its text, and whether it is trained."""
        before = ""
        for piece in pieces:
            for run in self._control.runs(piece.text):
                yield self._continuations.context(before, plain=run.plain), run, piece.trained
                before = IN_TEXT if run.plain else run.text

    def _encoded(self, runs: Sequence[tuple[str, Run]]) -> list[list[int]]:
        """Token ids of runs, each after what stands before it."""
        texts = [(before, run.text, run.plain) for before, run in runs if run.number is None]
        ids = iter(self._continuations.encode(texts))
        return [self._harmless(before, run, next(ids)) if run.number is None else [run.number] for before, run in runs]

    def _harmless(self, before: str, run: Run, ids: list[int]) -> list[int]:
        """The ids of a run; again in halves where a vocabulary makes control tokens of ordinary text."""
        if not run.plain or self._control.special_ids.isdisjoint(ids):
            return ids
        contexts = [before, *[self._continuations.context(IN_TEXT)] * len(run.text)]
        halves = [(context, half.text, False) for context, half in zip(contexts, self._control.halves(run.text))]
        return [number for part in self._continuations.encode(halves) for number in part]

    def content_ids(self, text: str) -> list[int]:
        """Ids of a text by itself, as ordinary text."""
        context = self._continuations.context(IN_TEXT)
        runs = [(context, run) for run in self._control.runs(self._control.hide(text))]
        return [number for part in self._encoded(runs) for number in part]

    def document_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of plain texts, each with what the tokenizer writes before a text and an end of text."""
        pieces = [[Piece(self._control.hide(text), trained=True)] for text in texts]
        end = self.tokenizer.eos_token_id
        start = self.tokenizer.encode("", add_special_tokens=True)
        start = start[:-1] if start and start[-1] == end else start
        return [[*start, *encoded.ids, *([] if end is None else [end])] for encoded in self.encode_pieces(pieces)]

    def continued(self, prompt: Conversation | str, texts: Sequence[str]) -> list[list[int]]:
        """Ids of a prompt with each of some texts directly behind it; with "" those of the prompt alone.

        Behind a conversation and the header of its answer stands the beginning of an answer, with the white space that
        the model writes first. A plain text and what continues it are tokenised as one text, with what the tokenizer
        writes in front of a text. A tokenizer that ends a prompt with control tokens (ChatGLM-6B's) is not asked for
        one text: the answer is tokenised behind them.
        """
        if isinstance(prompt, Conversation):
            before = self.prompt_pieces(prompt)
            rows = [[*before, Piece(self.lead + self._control.hide(text), trained=True)] for text in texts]
            return [encoded.ids for encoded in self.encode_pieces(rows)]
        front, back = self._around_text
        if back:
            rows = [[*(Piece(part, trained=False) for part in (self._control.hide(prompt), back))] for _ in texts]
            rows = [[*row, Piece(self._control.hide(text), trained=True)] for row, text in zip(rows, texts)]
        else:
            rows = [[Piece(self._control.hide(prompt + text), trained=True)] for text in texts]
        return [[*front, *encoded.ids] for encoded in self.encode_pieces(rows)]

    @cached_property
    def _around_text(self) -> tuple[list[int], str]:
        """Ids that the tokenizer writes in front of a text, and control text behind it unless that ends the text."""
        alone, whole = (self.tokenizer.encode("a", add_special_tokens=special) for special in (False, True))
        starts = range(len(whole) - len(alone) + 1)
        at = next((place for place in starts if whole[place : place + len(alone)] == alone), None)
        if at is None or not alone:
            return [], ""
        back = whole[at + len(alone) :]
        ends = bool(back) and back[-1] == self.tokenizer.eos_token_id
        return whole[:at], "" if ends else str(self.tokenizer.decode(back, skip_special_tokens=False))

    def content_text(self, ids: Sequence[int]) -> str:
        """The text of such ids; a character that was cut in its middle is left out."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=False)).strip("\ufffd")

    def _render(self, messages: Sequence[Message], tools: Sequence[str], *, generation_prompt: bool) -> str:
        return render(self._template, messages, tools, self._variables, generation_prompt=generation_prompt)

    def _prepare(self, conversation: Conversation) -> Conversation:
        """Add the default system prompt, write tools out where the template cannot, neutralise control text."""
        if self.default_system and conversation.system is None:
            system = Message("system", self.default_system)
            conversation = replace(conversation, messages=(system, *conversation.messages))
        uses_tools = conversation.tools or any(
            message.tool_calls or message.role == "tool" for message in conversation.messages
        )
        if uses_tools and not self.knows_tools:
            conversation = inline_tools(conversation)
        messages = tuple(self._hidden(message) for message in conversation.messages)
        tools = tuple(self._control.hide(without_escapes(tool)) for tool in conversation.tools)
        return Conversation(messages, tools)

    def _hidden(self, message: Message) -> Message:
        """The message with control text hidden; an answer keeps tokens it may write itself, such as ``<think>``."""
        answer = message.role == "assistant"
        content = self._control.hide(message.content, answer=answer)
        calls = tuple(
            ToolCall(self._control.hide(call.name), self._control.hide(without_escapes(call.arguments), answer=answer))
            for call in message.tool_calls
        )
        if content == message.content and calls == message.tool_calls:
            return message
        return replace(message, content=content, tool_calls=calls)

    def _at_stop(self, answer: str) -> tuple[str, str, str]:
        """An answer's text, the control token that ends it ("" if the template writes none), and what follows."""
        found = [(answer.rfind(stop), stop) for stop in self._stop_texts]
        place, stop = max(found, default=(-1, ""))
        if place < 0:
            return answer, "", ""
        return answer[:place], stop, answer[place + len(stop) :]

    def _closed(self, pieces: list[Piece], open_ends: list[int]) -> list[Piece]:
        """Give answers without a stop token one: the next turn's marker if that is what stops it; the last one EOS."""
        for place in open_ends:
            following = next((i for i in range(place + 1, len(pieces)) if pieces[i].text), None)
            if following is None:
                pieces[place] = Piece(self._eos_text, trained=True)
                continue
            text = pieces[following].text
            stop = next((stop for stop in self._stop_texts if text.startswith(stop)), "")
            pieces[place] = Piece(stop, trained=True)
            pieces[following] = replace(pieces[following], text=text[len(stop) :])
        return pieces

    @cached_property
    def _eos_text(self) -> str:
        return str(self._variables.get("eos_token", ""))


def _at_end_of(content: str, answer: str) -> tuple[str, str]:
    """An answer up to its own text, and what the template writes behind that."""
    if not content.strip():
        return "", answer
    for text in (content, content.strip()):
        place = answer.rfind(text)
        if place >= 0:
            return answer[: place + len(text)], answer[place + len(text) :]
    return answer, ""


def _token_texts(tokenizer: Tokenizer) -> dict[str, str]:
    return {name: str(text) for name, text in tokenizer.special_tokens_map.items() if isinstance(text, str)}
