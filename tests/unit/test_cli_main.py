"""How the command line ends: with a result, or with one paragraph on standard error."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from danlu.cli.main import main
from danlu.core import console
from danlu.core.errors import DataError


def ends(words: list[str], monkeypatch: pytest.MonkeyPatch, error: BaseException) -> int:
    """The exit code of a command that meets ``error``."""

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("danlu.cli.main.app", fail)
    monkeypatch.setattr(console.err, "_width", 400)
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert isinstance(stop.value.code, int)
    return stop.value.code


def test_what_danlu_explains_is_one_paragraph(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ends(["x"], monkeypatch, DataError("it is torn", where="a.jsonl:3")) == 1
    assert capsys.readouterr().err == "error: a.jsonl:3: it is torn.\n"


def test_what_nobody_foresaw_is_one_paragraph_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ends(["x"], monkeypatch, ValueError("no such\nthing")) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("error: unexpected ValueError: no such thing.")
    assert "--debug" in shown
    assert shown.count("\n") == 1
    with pytest.raises(ValueError, match="no such"):
        ends(["x", "--debug"], monkeypatch, ValueError("no such\nthing"))


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOSPC, errno.EROFS])
def test_the_system_says_no(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert ends(["x"], monkeypatch, OSError(number, "it will not", str(tmp_path / "f"))) == 1
    assert capsys.readouterr().err == f"error: {tmp_path / 'f'}: it will not.\n"


def test_too_little_memory(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert ends(["x"], monkeypatch, MemoryError()) == 1
    assert "memory" in capsys.readouterr().err
