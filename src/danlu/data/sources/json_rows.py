"""Rows of JSON files: one object a line, an array, or objects one after the other.

Every row keeps the number of its first line, also inside an array, and a broken row never hides the next.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from danlu.data.rows import BadRow, RawRow, kind_of
from danlu.data.schema import Origin
from danlu.data.sources.lines import check_text, numbered_lines
from danlu.data.sources.window import Broken, Window

_decode = json.JSONDecoder().decode
_scan = json.JSONDecoder().raw_decode

HALF_CHARACTER = "the text holds half of a character (a lone surrogate or a damaged byte)"


def iter_json(path: Path) -> Iterator[RawRow | BadRow]:
    """Yield the rows of a JSON or JSON-lines file in order; which of the two is seen from its content."""
    return _iter_lines(path) if _one_object_a_line(path) else _iter_values(path)


def _one_object_a_line(path: Path) -> bool:
    check_text(path)
    with path.open("rb") as stream:
        head = stream.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
        if head.startswith(b"["):
            return False
        stream.seek(0)
        lines = (line.removeprefix(b"\xef\xbb\xbf").strip() for line in stream)
        filled = (line for line in lines if line)
        first, second = next(filled, b""), next(filled, b"")
    if not first.startswith(b"{"):
        return True
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return not second or second.startswith(b"{")
    return True


def _row(value: Any, origin: Origin, suspicious: bool) -> RawRow | BadRow:
    if not isinstance(value, dict):
        return BadRow(origin, "", f"a row is an object like {{…}}, this is {kind_of(value)}")
    if suspicious and not _encodable(value):
        return BadRow(origin, "", HALF_CHARACTER)
    return RawRow(value, origin)


def _encodable(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (UnicodeEncodeError, RecursionError):
        return False
    return True


def _iter_lines(path: Path) -> Iterator[RawRow | BadRow]:
    name, row = str(path), 0
    for line in numbered_lines(path):
        text = line.text.strip()
        if not text and not line.problem:
            continue
        origin = Origin(name, line.number, row)
        if line.problem:
            yield BadRow(origin, "", line.problem)
            row += 1
            continue
        try:
            value = _decode(text)
        except (ValueError, RecursionError):
            for item in _pieces(text, origin):
                yield item
                row += 1
            continue
        yield _row(value, origin, "\\u" in text)
        row += 1


def _pieces(text: str, origin: Origin) -> Iterator[RawRow | BadRow]:
    """Rows of a line that is not one value: several objects, or a cut one before a whole one."""
    at, row = 0, origin.row
    while at < len(text):
        here = Origin(origin.path, origin.line, row)
        try:
            value, end = _scan(text, at)
        except json.JSONDecodeError as error:
            message = error.msg[:1].lower() + error.msg[1:]
            yield BadRow(here, "", f"not valid JSON: {message} (column {error.pos + 1})")
            end = _whole_tail(text, at + 1)
        except RecursionError:
            yield BadRow(here, "", "it is nested too deeply")
            return
        except ValueError as error:
            yield BadRow(here, "", f"not valid JSON: {error}")
            return
        else:
            yield _row(value, here, "\\u" in text)
        row += 1
        at = end
        while at < len(text) and text[at] in " \t,":
            at += 1


def _whole_tail(text: str, start: int) -> int:
    """Where an object begins that fills the line up to its end; the end when there is none."""
    at = text.find('{"', start)
    while at >= 0:
        try:
            if _scan(text, at)[1] == len(text):
                return at
        except (ValueError, RecursionError):
            pass
        at = text.find('{"', at + 1)
    return len(text)


def _iter_values(path: Path) -> Iterator[RawRow | BadRow]:
    name, row = str(path), 0
    with Window(path) as window:
        while window.skip_between():
            origin = Origin(name, window.line, row)
            row += 1
            try:
                value = window.take()
            except Broken as broken:
                message = "the file ends inside this row" if broken.cut else broken.message
                yield BadRow(origin, "", message)
                if not window.resume(broken.at):
                    return
                continue
            yield _row(value, origin, window.dirty)
        if window.depth > 0:
            message = "the file ends before the array is closed with ]; rows may be missing"
            yield BadRow(Origin(name, window.line, row), "", message)
