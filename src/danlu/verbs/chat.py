"""``danlu chat``: talk to a model in the terminal, or through a pipe with one question a line."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from danlu.core.console import err, note, out, warn
from danlu.core.errors import DanluError, UsageError, did_you_mean
from danlu.core.files import write_json
from danlu.data.schema import Conversation, Message

if TYPE_CHECKING:
    from danlu.engine.protocol import GenerationOptions

HELP = {
    "/help": "this list",
    "/reset": "begin again (the system prompt stays)",
    "/system [TEXT]": "set the system prompt and begin again; without text: none",
    "/undo": "take back the last question and answer",
    "/retry": "answer the last question again",
    "/history": "show the conversation",
    "/save FILE": "write the conversation as a row that danlu train reads (JSON)",
    "/temperature X": "sample with this temperature; 0: always the likeliest token",
    "/tokens N": "longest answer, in tokens",
    "/exit": "leave (so do Ctrl-D and Ctrl-C at the prompt)",
}


class Streamer(Protocol):
    """What a chat needs of an engine; :class:`danlu.engine.local.LocalEngine` is one."""

    def stream(self, prompt: Conversation, options: GenerationOptions, *, key: str) -> Iterator[str]:
        """Pieces of the answer as they come."""


class Chat:
    """A conversation and what can be done to it.

    Args:
        engine: answers.
        options: how it answers.
        system: the system prompt.
        say: shows a piece of text, without a line break.
    """

    def __init__(
        self,
        engine: Streamer,
        options: GenerationOptions,
        *,
        system: str | None = None,
        say: Callable[[str], None],
    ) -> None:
        self.engine, self.options, self.system, self._say = engine, options, system, say
        self.turns: list[Message] = []
        self.asked = 0

    @property
    def conversation(self) -> Conversation:
        """The conversation so far."""
        system = [Message("system", self.system)] if self.system else []
        return Conversation((*system, *self.turns))

    def ask(self, question: str) -> str:
        """Ask, show the answer while it comes, and remember both.

        Ctrl-C ends the answer; what was said until then is kept. When the model fails, the question is
        forgotten.
        """
        self.turns.append(Message("user", question))
        self.asked += 1
        pieces: list[str] = []
        try:
            for piece in self.engine.stream(self.conversation, self.options, key=str(self.asked)):
                pieces.append(piece)
                self._say(piece)
        except KeyboardInterrupt:
            self._say(" …")
        except BaseException:
            self.turns.pop()
            raise
        finally:
            self._say("\n")
        answer = "".join(pieces)
        self.turns.append(Message("assistant", answer))
        return answer

    def command(self, line: str) -> bool:
        """Carry out a line that begins with a slash; False when it ends the chat.

        Raises:
            UsageError: for a command that does not exist or an argument that cannot be.
        """
        name, _, argument = line.partition(" ")
        argument = argument.strip()
        actions: dict[str, Callable[[str], object]] = {
            "/help": lambda _: self._show_help(),
            "/reset": lambda _: self._begin_again(),
            "/system": self._set_system,
            "/undo": lambda _: self.undo(),
            "/retry": lambda _: self._retry(),
            "/history": lambda _: self._show_history(),
            "/save": self.save,
            "/temperature": self._set_temperature,
            "/tokens": self._set_tokens,
        }
        if name in ("/exit", "/quit"):
            return False
        if name not in actions:
            hint = did_you_mean(name, [*actions, "/exit"]) or "/help lists the commands."
            raise UsageError(f"there is no command {name}", hint=hint)
        actions[name](argument)
        return True

    def undo(self) -> str | None:
        """Take back the last question with its answer; the question, or None when there is none."""
        if len(self.turns) < 2:
            note("There is nothing to take back.")
            return None
        question = self.turns[-2].content
        del self.turns[-2:]
        return question

    def save(self, name: str) -> None:
        """Write the conversation as a one-row dataset of messages.

        Raises:
            UsageError: without a file name.
        """
        if not name:
            raise UsageError("no file is named", hint="/save chat.json")
        path = Path(name).expanduser()
        messages = [{"role": turn.role, "content": turn.content} for turn in self.conversation.messages]
        write_json(path, [{"messages": messages}])
        note(f"Saved to {path}.")

    def _begin_again(self) -> None:
        self.turns.clear()
        note("A new conversation.")

    def _set_system(self, text: str) -> None:
        self.system = text or None
        self._begin_again()

    def _retry(self) -> None:
        question = self.undo()
        if question is not None:
            self.ask(question)

    def _set_temperature(self, text: str) -> None:
        value = _number(text, "/temperature 0.7")
        if value < 0:
            raise UsageError("a temperature cannot be negative", hint="/temperature 0.7")
        self.options = replace(self.options, do_sample=value > 0, temperature=value or 1.0)

    def _set_tokens(self, text: str) -> None:
        self.options = replace(self.options, max_new_tokens=int(_number(text, "/tokens 512")))

    def _show_help(self) -> None:
        width = max(map(len, HELP))
        for name, text in HELP.items():
            err.print(f"  [accent]{name.replace('[', chr(92) + '[').ljust(width)}[/accent]  {text}")

    def _show_history(self) -> None:
        for turn in self.conversation.messages:
            err.print(f"[quiet]{turn.role}[/quiet]")
            err.print(turn.content, markup=False)


def _number(text: str, example: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"{text!r} is not a number", hint=f"For example: {example}")
    return value


def talk(chat: Chat, lines: Iterable[str]) -> None:
    """Answer line after line until they end or one says /exit; errors of a command do not end the chat."""
    for line in lines:
        text = line.strip()
        if not text:
            continue
        try:
            if not text.startswith("/"):
                chat.ask(text)
            elif not chat.command(text):
                return
        except DanluError as error:
            warn(str(error))


def chat(
    *,
    run: str | None = None,
    model: str | None = None,
    adapter: Sequence[str] = (),
    system: str | None = None,
    template: str | None = None,
    max_new_tokens: int = 512,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 42,
    dtype: Any = "auto",
    device: str | None = None,
    stdin: TextIO | None = None,
    **keys: Any,
) -> None:
    """Chat with a run, with a model and adapters, or with a service.

    On a terminal there is a prompt with history; through a pipe every line is a question of one conversation
    and only answers are written to standard output.

    Args:
        run: run directory or checkpoint.
        model: without a run: folder, hub id, GGUF file or packaged name.
        adapter: without a run: adapters of the model.
        system: system prompt.
        template: named template, for a model that brings none.
        max_new_tokens: longest answer.
        temperature: 0 for the likeliest answer, else sampled.
        top_p: sample from the smallest set of tokens with this probability.
        seed: of sampling.
        dtype: precision of the weights.
        device: cpu, cuda or auto.
        stdin: where questions come from; standard input by default.
        keys: options of :class:`danlu.engine.options.EngineOptions`: with ``api`` the model is one behind a URL.

    Raises:
        UsageError: when it is not clear what to talk to, or it is a reward model.
        ModelError: when it cannot be loaded.
    """
    if bool(run) == bool(model):
        raise UsageError("name one thing to talk to", hint="danlu chat --run DIR, or --model MODEL.")
    if run and adapter:
        raise UsageError("a run knows its adapter", hint="Leave --adapter out, or use --model with it.")
    from danlu.engine.protocol import GenerationOptions

    options = GenerationOptions(
        do_sample=temperature > 0, temperature=temperature or 1.0, top_p=top_p, max_new_tokens=max_new_tokens, seed=seed
    )
    if keys:
        engine = _service(run, model, adapter, template, keys)
    else:
        engine = _engine(run, model, adapter, {"dtype": dtype} | ({"template": template} if template else {}), device)
    source = stdin or sys.stdin
    conversation = Chat(engine, options, system=system, say=_say)
    if source.isatty():
        note(f"{run or model}. /help lists the commands; Ctrl-C stops an answer, Ctrl-D leaves.")
        talk(conversation, _typed(_history_file()))
    else:
        talk(conversation, source)


def _engine(
    run: str | None, model: str | None, adapter: Sequence[str], keys: dict[str, Any], device: str | None
) -> Streamer:
    from danlu.verbs.opening import engine_of, open_model, refuse_reward_model, settings

    config, source, _ = settings(run, model, adapter, keys)
    refuse_reward_model(source)
    return engine_of(open_model(config, source, device=device))


def _service(
    run: str | None, model: str | None, adapter: Sequence[str], template: str | None, keys: dict[str, Any]
) -> Streamer:
    from danlu.engine.remote.engine import RemoteEngine
    from danlu.verbs.asking import check_service, engine_options

    options, rest = engine_options(keys)
    if options.api is None:
        raise UsageError(f"{', '.join(keys)} are for a service", hint="danlu chat --api URL --model NAME")
    check_service(options, run, model, adapter)
    if rest or template:
        raise UsageError(f"a service has no option {', '.join([*rest, *(['template'] if template else [])])}")
    return RemoteEngine(str(model), options)


def _say(text: str) -> None:
    out.file.write(text)
    out.file.flush()


def _history_file() -> Path:
    from danlu.core.workspace import cache_home

    return cache_home() / "chat_history"


def _typed(history: Path) -> Iterator[str]:
    """Lines typed at a prompt, with the arrow keys going through former ones; ends at Ctrl-D or Ctrl-C."""
    readline = _readline(history)
    try:
        while True:
            # the escape codes stand in \001…\002 so that readline does not count them as width
            yield input("\001\033[1;31m\002›\001\033[0m\002 ")
    except (EOFError, KeyboardInterrupt):
        _say("\n")
    finally:
        if readline is not None:
            try:
                readline.write_history_file(history)
            except OSError as error:
                warn(f"the history cannot be kept ({error.strerror})")


def _readline(history: Path) -> Any:
    try:
        import readline
    except ImportError:  # not built into this Python
        return None
    readline.set_history_length(1000)
    if history.is_file():
        readline.read_history_file(history)
    return readline
