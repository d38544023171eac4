"""Text files as numbered lines, with their encoding checked."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from danlu.core.errors import DataError

_BLOCK = 1 << 20
_FOREIGN_SHARE = 0.2  # more broken than this among the non-ASCII characters: not UTF-8 at all

_SIGNATURES = (
    (b"\x1f\x8b", "it is compressed with gzip", "Unpack it first (gzip -d)."),
    (b"PK\x03\x04", "it is a zip archive", "Unpack it first."),
    (b"PAR1", "it is a parquet file", "Give it a name that ends in .parquet."),
    (codecs.BOM_UTF16_LE, "its encoding is UTF-16", "Save it as UTF-8 (iconv -f utf-16 -t utf-8)."),
    (codecs.BOM_UTF16_BE, "its encoding is UTF-16", "Save it as UTF-8 (iconv -f utf-16 -t utf-8)."),
)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of text with its end; ``problem`` instead of text when its bytes are not UTF-8."""

    number: int
    text: str
    problem: str = ""


def numbered_lines(path: Path) -> Iterator[Line]:
    """Yield the lines of a UTF-8 file, without its byte-order mark, numbered from 1.

    Raises:
        DataError: when the file is empty, is not text, or is written in another encoding as a whole.
            A single damaged line is yielded with its ``problem``.
    """
    check_text(path)
    with path.open("rb") as stream:
        offset = 0
        for number, raw in enumerate(stream, 1):
            content = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
            try:
                yield Line(number, content.decode("utf-8"))
            except UnicodeDecodeError as error:
                at = offset + len(raw) - len(content) + error.start
                refuse_foreign(path, at)
                yield Line(number, "", undecodable(at))
            offset += len(raw)


def undecodable(offset: int) -> str:
    """The message about one damaged place."""
    return f"the byte at offset {offset} is not UTF-8"


def check_text(path: Path) -> None:
    """Refuse what cannot be a file of rows.

    Raises:
        DataError: when the file cannot be opened, is empty, or begins like another kind of file.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(4096)
    except OSError as error:
        raise DataError(f"it cannot be read ({error.strerror})", where=str(path)) from error
    if not head.removeprefix(codecs.BOM_UTF8).strip() and path.stat().st_size <= len(head):
        raise DataError("the file is empty", where=str(path), hint="Give a file with at least one row.")
    for signature, what, hint in _SIGNATURES:
        if head.startswith(signature):
            raise DataError(what, where=str(path), hint=hint)


def refuse_foreign(path: Path, offset: int) -> None:
    """Raise when a file with a bad byte is in another encoding as a whole; return when it is merely damaged.

    The first megabyte from the line of the bad byte on is looked at.

    Raises:
        DataError: naming the byte and, where it decodes so, gb18030.
    """
    with path.open("rb") as stream:
        stream.seek(max(0, offset - 1024))
        sample = stream.read(_BLOCK)
    # the sample's own edges may cut a character
    wrong = sample[4:-4].decode("utf-8", "replace").count("\ufffd")
    foreign = sum(1 for character in sample.decode("utf-8", "replace") if character > "\x7f")
    if wrong <= max(1, _FOREIGN_SHARE * foreign):
        return
    gb = _decodes_as(path, "gb18030")
    raise DataError(
        f"{undecodable(offset)}" + (", the whole file reads as gb18030" if gb else ""),
        where=str(path),
        hint="Save it as UTF-8" + (f": iconv -f gb18030 -t utf-8 {path.name} > utf8-{path.name}" if gb else "."),
    )


def _decodes_as(path: Path, encoding: str) -> bool:
    decoder = codecs.getincrementaldecoder(encoding)("strict")
    try:
        with path.open("rb") as stream:
            while block := stream.read(_BLOCK):
                decoder.decode(block)
            decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True
