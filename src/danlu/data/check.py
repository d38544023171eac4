"""Every row of a dataset looked at: what cannot be used and why, and what is unusual."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any, TextIO

from danlu.core.errors import DataError
from danlu.core.files import replacing
from danlu.data.branching import prompt_of
from danlu.data.catalog import DatasetDir, Source, resolve
from danlu.data.formats import read_row
from danlu.data.loading import (
    HEAD,
    checksum_warnings,
    column_warnings,
    known_stage,
    of_stage,
    shape_of,
    unnamed_columns,
)
from danlu.data.personal import find_personal_data, texts_of
from danlu.data.rows import WHOLE_FILE, BadRow, RawRow
from danlu.data.schema import (
    Conversation,
    Document,
    Example,
    Origin,
    Preference,
    Row,
    UnpairedPreference,
    row_key,
)
from danlu.data.sources import iter_raw


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What a check found.

    Attributes:
        name: the dataset as the user wrote it.
        files: path, format and number of rows of each file.
        good: usable rows.
        bad: the others, in order.
        kinds: usable rows by kind: Example, Preference, UnpairedPreference, Document.
        notes: usable but unusual rows: what, and how many.
        warnings: about the dataset as a whole.
    """

    name: str
    files: tuple[tuple[str, str, int], ...]
    good: int
    bad: tuple[BadRow, ...]
    kinds: dict[str, int]
    notes: dict[str, int]
    warnings: tuple[str, ...]


class _Tally:
    def __init__(self, stage: str | None, pii: bool = False) -> None:
        self.stage = stage
        self.pii = pii
        self.personal: Counter[str] = Counter()
        self.first: dict[str, Origin] = {}
        self.labels: set[bool] = set()
        self.prompts: set[Conversation] = set()
        self.bad: list[BadRow] = []
        self.kinds: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self.seen: set[int] = set()
        self.ignored: set[str] = set()

    def good(self, row: Row) -> None:
        self.kinds[type(row).__name__] += 1
        self.notes.update(unusual(row))
        key = row_key(row)
        if key in self.seen:
            self.notes["the same row again"] += 1
        self.seen.add(key)
        if self.stage == "kto" and isinstance(row, (Preference, UnpairedPreference)):
            self.labels |= {True, False} if isinstance(row, Preference) else {row.desirable}
            if len(self.prompts) < 2:
                self.prompts.add(prompt_of(row))

    def look_for_personal_data(self, raw: RawRow) -> None:
        """Count the kinds of personal data of a usable row, and note where the first of each is."""
        if not self.pii:
            return
        for kind in {found.kind for text in texts_of(raw.value) for found in find_personal_data(text)}:
            self.personal[kind] += 1
            self.first.setdefault(kind, raw.origin)

    def personal_warnings(self) -> list[str]:
        """Rows with personal data by kind; the data themselves are not repeated."""
        return [
            f"personal data ({kind}) in {count:,} row{'s' if count > 1 else ''}, the first is {self.first[kind]}"
            for kind, count in self.personal.most_common()
        ]

    def stage_warnings(self) -> list[str]:
        """What the stage would stumble over in the dataset as a whole."""
        found = []
        if len(self.labels) == 1:
            missing = "unwanted" if True in self.labels else "wanted"
            found.append(f"there is no {missing} answer: kto then only pushes all answers one way")
        if len(self.prompts) == 1:
            found.append(
                "there is only one prompt: kto compares answers with answers to other prompts, and refuses this"
            )
        return found


def check(
    name: str,
    *,
    dataset_dir: DatasetDir = "data",
    write_good: Path | None = None,
    stage: str | None = None,
    pii: bool = False,
) -> CheckReport:
    """Look at every row of a dataset.

    Args:
        name: name, file, folder, pattern or hub id.
        dataset_dir: folder with dataset_info.json.
        write_good: JSON-lines file for the usable rows, as they are.
        stage: rows that this stage cannot train on are bad; None takes every kind.
        pii: also warn of phone numbers, e-mail and IP addresses, ID and bank cards in usable rows.

    Raises:
        UsageError: for an unknown stage.
        DataError: for an unknown name. A file that cannot be read at all is one bad row.
    """
    if stage is not None:
        known_stage(stage)
    source = resolve(name, dataset_dir)
    paths = source.files()
    if write_good is not None and write_good.resolve() in [path.resolve() for path in paths]:
        raise DataError("good rows would overwrite the dataset", where=str(write_good))
    tally = _Tally(stage, pii)
    files: list[tuple[str, str, int]] = []
    with _lines(write_good) as stream:
        for path in paths:
            try:
                files.append(_check_file(path, source, tally, stream))
            except DataError as error:
                hint = f". {error.hint.rstrip('.')}" if error.hint else ""
                tally.bad.append(BadRow(Origin(str(path), 0, 0), WHOLE_FILE, error.what + hint))
                files.append((str(path), "-", 0))
    return CheckReport(
        name=name,
        files=tuple(files),
        good=sum(tally.kinds.values()),
        bad=tuple(tally.bad),
        kinds=dict(tally.kinds),
        notes=dict(tally.notes),
        warnings=(
            *source.warnings,
            *checksum_warnings(source, paths),
            *column_warnings(source, tally.ignored),
            *tally.stage_warnings(),
            *tally.personal_warnings(),
        ),
    )


@contextmanager
def _lines(path: Path | None) -> Iterator[TextIO | None]:
    if path is None:
        yield None
        return
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as stream:
        yield stream


def _check_file(path: Path, source: Source, tally: _Tally, stream: TextIO | None) -> tuple[str, str, int]:
    raw = iter_raw(path)
    head = list(islice(raw, HEAD))
    shape = shape_of(head, source, path, "\n", tally.stage)
    if source.described:
        tally.ignored |= unnamed_columns(head, shape)
    count = 0
    for item in chain(head, raw):
        count += 1
        row = read_row(item.value, shape, item.origin) if isinstance(item, RawRow) else item
        if tally.stage is not None:
            row = of_stage(row, tally.stage)
        if isinstance(row, BadRow):
            tally.bad.append(row)
            continue
        tally.good(row)
        if isinstance(item, RawRow):
            tally.look_for_personal_data(item)
            if stream is not None:
                stream.write(_line(item.value))
    return str(path), shape.format, count


def _line(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, default=str) + "\n"


def unusual(row: Row) -> list[str]:
    """What is odd about a usable row: things that some templates refuse or that teach little."""
    match row:
        case Example(conversation) | UnpairedPreference(conversation):
            return _unusual_turns(conversation)
        case Preference(prompt, chosen, rejected):
            same = ["chosen and rejected are the same"] if chosen == rejected else []
            return same + _unusual_turns(replace(prompt, messages=(*prompt.messages, chosen)))
        case Document():
            return []


def _unusual_turns(conversation: Conversation) -> list[str]:
    found = []
    roles = [message.role for message in conversation.messages]
    spoken = [role for role in roles if role != "system"]
    if spoken and spoken[0] == "assistant":
        found.append("the assistant speaks first")
    pairs = list(pairwise(spoken))
    if ("user", "user") in pairs:
        found.append("two user turns in a row")
    if ("assistant", "assistant") in pairs:
        found.append("two assistant turns in a row")
    if "system" in roles[1:]:
        found.append("a system prompt after the first turn")
    if _answers_nothing(conversation):
        found.append("a tool result without a call before it")
    return found


def _answers_nothing(conversation: Conversation) -> bool:
    called = False
    for message in conversation.messages:
        if message.role == "tool" and not called:
            return True
        if message.role != "tool":
            called = bool(message.tool_calls)
    return False
