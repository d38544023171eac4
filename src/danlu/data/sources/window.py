"""A window over the text of a JSON file: grows while a value is incomplete, forgets what was read."""

from __future__ import annotations

import codecs
import json
import re
from pathlib import Path
from types import TracebackType
from typing import Any

from danlu.data.sources.lines import check_text, refuse_foreign

_BLOCK = 1 << 20
_EDGE = 16  # an error this close to the end of the window may only mean that the text goes on
_INDENT = 256
_BETWEEN = re.compile(r"[\s,\[\]\ufeff]*")
_CUT = re.compile(r"\"?[\w+.\\-]*\s*")  # what may stand where a text breaks off: the beginning of a value
_SAME_LINE = re.compile(r"\}\s*,?\s*(\{)")


class Broken(Exception):
    """The text at the window's position is not a JSON value.

    Attributes:
        message: the parser's words, with line and column.
        cut: whether the file ends inside the value.
        at: position of the error in the window.
    """

    def __init__(self, message: str, cut: bool, at: int) -> None:
        super().__init__(message)
        self.message, self.cut, self.at = message, cut, at


class Window:
    """Text of a file from ``at`` on, with the number of the line that ``at`` is in.

    Memory is bounded by the longest value plus a megabyte, whatever the size of the file.
    """

    def __init__(self, path: Path) -> None:
        check_text(path)
        self.path = path
        self.text = ""
        self.at = 0
        self._line = 1
        self._counted = 0
        self.depth = 0
        self.dirty = False
        """Whether some text so far has bytes that are not UTF-8, or escapes that may be half a character."""
        self._stream = path.open("rb")
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("strict")
        self._read = 0
        self.ended = False
        self._scan = json.JSONDecoder().raw_decode

    def __enter__(self) -> Window:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    def more(self) -> None:
        """Read on: as much again as is waiting, so that a long value is scanned a few times only."""
        # the start of the line stays: its indentation tells where the next row begins
        keep = max(self.text.rfind("\n", 0, self.at), self.at - _INDENT, 0)
        kept_line = self.line
        waiting = self.text[keep:]
        block = self._stream.read(max(_BLOCK, len(waiting)))
        self.ended = not block
        fresh = self._decode(block)
        self._read += len(block)
        self.dirty = self.dirty or "\\u" in fresh
        self.text, self.at = waiting + fresh, self.at - keep
        self._line, self._counted = kept_line, self.at

    def _decode(self, block: bytes) -> str:
        try:
            return self._decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            refuse_foreign(self.path, max(0, self._read + error.start))
            # damaged bytes become lone surrogates, which the rows that hold them are refused for
            tolerant = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
            tolerant.setstate(self._decoder.getstate())
            self._decoder, self.dirty = tolerant, True
            return tolerant.decode(block, final=not block)

    @property
    def line(self) -> int:
        """Number of the line that ``at`` is in; lines are counted when asked for, once."""
        if self._counted != self.at:
            self._line += self.text.count("\n", self._counted, self.at)
            self._counted = self.at
        return self._line

    def skip_between(self) -> bool:
        """Pass white space, commas and the brackets of arrays; False at the end of the file."""
        while True:
            end = _BETWEEN.match(self.text, self.at).end()  # type: ignore[union-attr]  # it also matches nothing
            between = self.text[self.at : end]
            if not between.isspace() and between.strip() != ",":
                self.depth += between.count("[") - between.count("]")
            self.at = end
            if self.at < len(self.text):
                return True
            if self.ended:
                return False
            self.more()

    def take(self) -> Any:
        """Read one value and move behind it.

        Raises:
            Broken: when there is none; the position is unchanged.
        """
        while True:
            try:
                value, end = self._scan(self.text, self.at)
            except json.JSONDecodeError as error:
                incomplete = error.msg.startswith("Unterminated") or error.pos >= len(self.text) - _EDGE
                if incomplete and not self.ended:
                    self.more()
                    continue
                raise self._broken(error, incomplete) from error
            except RecursionError as error:
                raise Broken("it is nested too deeply", False, self.at + 1) from error
            except ValueError as error:  # a number of thousands of digits
                raise Broken(f"not valid JSON: {error}", False, self.at + 1) from error
            if end == len(self.text) and not self.ended:
                self.more()  # a bare number or word may go on
                continue
            self.at = end
            return value

    def _broken(self, error: json.JSONDecodeError, incomplete: bool) -> Broken:
        line = self.line + self.text.count("\n", self.at, error.pos)
        column = error.pos - self.text.rfind("\n", 0, error.pos)
        message = f"not valid JSON: {error.msg[:1].lower()}{error.msg[1:]} (line {line}, column {column})"
        cut = incomplete and _CUT.fullmatch(self.text, max(error.pos, len(self.text) - _EDGE)) is not None
        return Broken(message, cut, error.pos)

    def resume(self, error_at: int) -> bool:
        """Move to where the next row seems to begin; False when there is no such place.

        A row that begins its own line is followed by one with the same indentation; otherwise rows are
        looked for behind the error, as ``}, {``.
        """
        line_start = self.text.rfind("\n", 0, self.at) + 1
        indent = self.text[line_start : self.at]
        # the first line may begin with the array's bracket
        own_line = not indent.strip(" \t") and (line_start > 0 or self.line == 1)
        if own_line:
            pattern, start = re.compile(rf"\n[\[,]?{re.escape(indent)}(\{{)"), self.at + 1
        else:
            pattern, start = _SAME_LINE, max(self.at + 1, error_at - 2)
        while True:
            found = pattern.search(self.text, start)
            if found:
                self.at = found.start(1)
                return True
            if self.ended:
                self.at = len(self.text)
                return False
            self.at = max(self.at, len(self.text) - _INDENT)
            self.more()
            start = self.at
