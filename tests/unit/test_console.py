"""What reaches the terminal is what was written."""

from __future__ import annotations

import pytest

from danlu.core.console import err, note, out, warn
from danlu.core.errors import did_you_mean


def test_text_between_colons_is_no_picture(capsys: pytest.CaptureFixture[str]) -> None:
    note("dataset_info.json:b: see :smile:")
    warn("rows.jsonl:b: bad")
    out.print("answer :x: end", markup=False)
    out.print("[accent]path:a:b[/accent]")
    shown = capsys.readouterr()
    assert shown.err == "dataset_info.json:b: see :smile:\nwarning: rows.jsonl:b: bad\n"
    assert shown.out == "answer :x: end\npath:a:b\n"
    err.print("a:b: c", markup=False)
    assert capsys.readouterr().err == "a:b: c\n"


def test_a_name_is_suggested_once() -> None:
    assert did_you_mean("alpaca_zg", ["alpaca_zh", "guanaco", "alpaca_zh"]) == "Did you mean alpaca_zh?"
