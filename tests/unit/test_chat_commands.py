"""The chat without a model: history, commands, Ctrl-C, pipes."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from danlu.core.errors import ModelError, UsageError
from danlu.data.schema import Conversation, Message
from danlu.engine.protocol import GREEDY, GenerationOptions
from danlu.verbs.chat import HELP, Chat, chat, talk


class Echo:
    """Answers with the number of messages and the last question, in three pieces; can be interrupted."""

    def __init__(self) -> None:
        self.seen: list[Conversation] = []
        self.options: list[GenerationOptions] = []
        self.failure: BaseException | None = None

    def stream(self, prompt: Conversation, options: GenerationOptions, *, key: str) -> Iterator[str]:
        self.seen.append(prompt)
        self.options.append(options)
        yield str(len(prompt.messages))
        yield ":"
        if self.failure is not None:
            raise self.failure
        yield prompt.messages[-1].content


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def room(echo: Echo, said: list[str]) -> Chat:
    return Chat(echo, GREEDY, system="简短", say=said.append)


def test_the_model_sees_the_whole_conversation(room: Chat, echo: Echo, said: list[str]) -> None:
    talk(room, ["你好\n", "\n", "  再说一遍  "])
    assert "".join(said) == "2:你好\n4:再说一遍\n"
    assert [turn.role for turn in echo.seen[1].messages] == ["system", "user", "assistant", "user"]
    assert echo.seen[1].messages[2] == Message("assistant", "2:你好")


def test_ctrl_c_ends_the_answer_but_not_the_chat(room: Chat, echo: Echo, said: list[str]) -> None:
    echo.failure = KeyboardInterrupt()
    room.ask("one")
    echo.failure = None
    room.ask("two")
    assert room.turns[1] == Message("assistant", "2:")
    assert "".join(said) == "2: …\n4:two\n"


def test_a_failing_model_leaves_the_conversation_as_it_was(
    room: Chat, echo: Echo, capsys: pytest.CaptureFixture[str]
) -> None:
    echo.failure = ModelError("out of memory", hint="Ask for less.")
    talk(room, ["one"])
    assert room.turns == []
    assert "out of memory. Ask for less." in capsys.readouterr().err


def test_undo_retry_reset(room: Chat, echo: Echo, capsys: pytest.CaptureFixture[str]) -> None:
    talk(room, ["one", "two", "/undo"])
    assert [turn.content for turn in room.turns] == ["one", "2:one"]
    talk(room, ["/retry"])
    assert [turn.content for turn in room.turns] == ["one", "2:one"]
    assert len(echo.seen) == 3
    talk(room, ["/reset"])
    assert room.turns == []
    assert room.system == "简短"
    talk(room, ["/undo"])
    assert "nothing to take back" in capsys.readouterr().err


def test_system_begins_again(room: Chat, echo: Echo) -> None:
    talk(room, ["one", "/system 用中文回答", "two"])
    assert echo.seen[-1] == Conversation((Message("system", "用中文回答"), Message("user", "two")))
    talk(room, ["/system", "three"])
    assert echo.seen[-1] == Conversation((Message("user", "three"),))


def test_temperature_and_tokens(room: Chat, echo: Echo, capsys: pytest.CaptureFixture[str]) -> None:
    talk(room, ["/temperature 0.7", "/tokens 9", "one"])
    assert (echo.options[-1].do_sample, echo.options[-1].temperature) == (True, 0.7)
    assert echo.options[-1].max_new_tokens == 9
    talk(room, ["/temperature 0", "two"])
    assert echo.options[-1] == GenerationOptions(max_new_tokens=9)
    talk(room, ["/temperature hot", "/temperature -1", "/tokens 0", "/tokens nan", "/temperature inf"])
    assert echo.options[-1] == room.options
    told = capsys.readouterr().err
    assert "'hot' is not a number" in told
    assert "'nan' is not a number" in told
    assert "negative" in told
    assert "max_new_tokens cannot be 0" in told


def test_saved_conversations_are_rows(room: Chat, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "chats" / "one.json"
    talk(room, ["你好", f"/save {path}", "/save"])
    (row,) = json.loads(path.read_text(encoding="utf-8"))
    assert row["messages"] == [
        {"role": "system", "content": "简短"},
        {"role": "user", "content": "你好"},
        {"role": "assistant", "content": "2:你好"},
    ]
    assert "no file is named" in capsys.readouterr().err


def test_help_names_every_command(room: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    talk(room, ["one", "/help", "/history"])
    told = capsys.readouterr().err
    assert all(name in told for name in HELP)
    assert "2:one" in told


def test_every_command_of_the_help_exists(room: Chat, tmp_path: Path) -> None:
    for line in HELP:
        name = line.partition(" ")[0]
        argument = {"/temperature": "1", "/tokens": "5", "/save": str(tmp_path / "a.json")}.get(name, "")
        assert room.command(f"{name} {argument}") is (name != "/exit")


def test_unknown_commands(room: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    talk(room, ["/rest", "/zzz", "still here"])
    told = capsys.readouterr().err
    assert "there is no command /rest. Did you mean /reset" in told
    assert "/help lists the commands" in told
    assert len(room.turns) == 2


def test_exit(room: Chat, echo: Echo) -> None:
    talk(room, ["/exit", "never asked"])
    assert echo.seen == []


def test_what_to_talk_to(echo: Echo) -> None:
    for wrong in ({}, {"run": "a", "model": "b"}):
        with pytest.raises(UsageError, match="name one thing"):
            chat(**wrong)
    with pytest.raises(UsageError, match="a run knows its adapter"):
        chat(run="a", adapter=["b"])


def test_a_pipe_gets_answers_only(
    echo: Echo, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("danlu.verbs.chat._engine", lambda *_: echo)
    chat(model="any", stdin=io.StringIO("什么是丹炉？\nsecond\n"), temperature=0.5)
    told = capsys.readouterr()
    assert told.out == "1:什么是丹炉？\n3:second\n"
    assert told.err == ""
    assert echo.options[0].do_sample
