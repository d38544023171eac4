"""Questions from files, and what is wrong with them by file, line and field."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from danlu.core.console import warn
from danlu.core.errors import DataError
from danlu.data.rows import BadRow, RawRow
from danlu.data.sources import iter_raw
from danlu.data.sources.tables import iter_separated
from danlu.evaluate.benchmarks.files import FileRecord, Folder, records
from danlu.evaluate.benchmarks.schema import LETTERS, Benchmark, Item

SHOWN = 5
"""Defects that an error names; the others are counted."""

LISTS = ("choices", "options")
"""Columns that may hold all choices as a list, where there is not one column for each."""


@dataclass(frozen=True, slots=True)
class Questions:
    """The questions of a run.

    Attributes:
        items: by subject, in file order.
        demos: demonstrations by subject, in file order.
        files: where all of them were read.
        missing: subjects that the files do not have.
    """

    items: dict[str, list[Item]]
    demos: dict[str, list[Item]]
    files: list[FileRecord]
    missing: tuple[str, ...] = ()


def load_questions(
    benchmark: Benchmark,
    folder: Folder,
    *,
    split: str | None = None,
    subjects: Sequence[str] = (),
    demonstrations: bool = True,
    limit: int | None = None,
) -> Questions:
    """Read the questions of a split and the demonstrations that go with them.

    Args:
        benchmark: what the files look like.
        folder: where they are.
        split: which questions; the benchmark's usual one by default.
        subjects: names as :meth:`Benchmark.chosen_subjects` takes them; all by default.
        demonstrations: whether demonstrations are needed.
        limit: at most so many questions of each subject, the first ones.

    Raises:
        DataError: when no subject has a file, a named one has none, or rows are defective (by file, line and field).
        UsageError: for an unknown subject.
    """
    split = split or benchmark.split
    if split not in benchmark.splits:
        raise DataError(f"{benchmark.name} has no split {split!r}", hint=f"Splits: {', '.join(benchmark.splits)}.")
    items: dict[str, list[Item]] = {}
    demos: dict[str, list[Item]] = {}
    paths: list[Path] = []
    missing = []
    for subject in benchmark.chosen_subjects(tuple(subjects)):
        found, used = read_subject(benchmark, folder, subject, split)
        if not used:
            missing.append(subject)
            continue
        _told_count(benchmark, subject, split, len(found))
        items[subject] = found[:limit]
        paths += used
        if demonstrations and benchmark.demo_split:
            source = benchmark.subjects[subject].demos or subject
            demos[subject], used = read_subject(benchmark, folder, source, benchmark.demo_split)
            paths += used
    if not items or (subjects and missing):
        raise _no_files(benchmark, folder, split, missing)
    if missing:
        warn(f"{len(missing)} subjects have no file and count nowhere: {', '.join(missing)}")
    return Questions(items, demos, records(folder, paths), tuple(missing))


def _no_files(benchmark: Benchmark, folder: Folder, split: str, missing: Sequence[str]) -> DataError:
    patterns = " or ".join(benchmark.splits[split])
    return DataError(
        f"there is no file for {missing[0]} in the split {split}",
        where=folder.place,
        hint=f"{benchmark.name} looks for {patterns}, at any depth.",
    )


def _told_count(benchmark: Benchmark, subject: str, split: str, found: int) -> None:
    expected = benchmark.subjects[subject].counts.get(split)
    if expected is not None and expected != found:
        warn(f"{benchmark.name}: {subject} has {found} questions in {split}, {expected} were published")


def read_subject(benchmark: Benchmark, folder: Folder, subject: str, split: str) -> tuple[list[Item], list[Path]]:
    """The items of one subject in one split, and the files that they are in (none: it has no file).

    Raises:
        DataError: naming the first defects by file, line and field.
    """
    if benchmark.reader:
        module, _, function = benchmark.reader.partition(":")
        read: tuple[list[Item], list[Path]] = getattr(import_module(module), function)(
            benchmark, folder, subject, split
        )
        return read
    paths = folder.find(benchmark.splits[split], subject)
    labelled = split not in benchmark.unlabelled
    items: list[Item] = []
    defects: list[str] = []
    for path in paths:
        for row in raw_rows(path, benchmark.header):
            if isinstance(row, BadRow):
                defects.append(str(row))
                continue
            item = _item(row, benchmark, subject, labelled, defects)
            items += [item] if item else []
    defects += duplicates(items)
    if defects:
        raise defective(defects)
    return items, paths


def raw_rows(path: Path, names: Sequence[str] = ()) -> Iterator[RawRow | BadRow]:
    """Rows of a csv, jsonl, parquet … file; ``names`` are those of the columns of tables that do not say them."""
    if names and path.suffix.lower() in (".csv", ".tsv"):
        return iter_separated(path, "\t" if path.suffix.lower() == ".tsv" else ",", names)
    return iter_raw(path)


def defective(defects: Sequence[str]) -> DataError:
    """One error for several defects, the first ones in words."""
    first, *others = defects
    place, _, what = first.partition(": ")
    further = "; ".join(others[: SHOWN - 1])
    more = f" and {len(others) - SHOWN + 1} more" if len(others) >= SHOWN else ""
    return DataError(what, where=place, hint=f"Also: {further}{more}." if others else None)


def duplicates(items: Iterable[Item]) -> list[str]:
    """A defect for every id that was there before."""
    seen: dict[str, Item] = {}
    defects = []
    for item in items:
        if item.id in seen:
            defects.append(f"{item.origin}:id: {item.id!r} is already the id of {seen[item.id].origin}")
        seen.setdefault(item.id, item)
    return defects


def _item(row: RawRow, benchmark: Benchmark, subject: str, labelled: bool, defects: list[str]) -> Item | None:
    columns, value, place = benchmark.columns, row.value, str(row.origin)
    before = len(defects)
    question = text_of(value.get(columns.question))
    if columns.question not in value:
        defects.append(f"{place}:{columns.question}: there is no such column; columns: {', '.join(map(str, value))}")
    elif not question.strip():
        defects.append(f"{place}:{columns.question}: the question is empty")
    choices = _choices(value, columns.choices, place, defects)
    answers: tuple[str, ...] = ()
    if labelled and columns.answer not in value:
        defects.append(f"{place}:{columns.answer}: there are no labels; columns: {', '.join(map(str, value))}")
    elif labelled:
        answers = answers_of(value[columns.answer], choices, f"{place}:{columns.answer}", defects)
    if len(defects) > before:
        return None
    passage = text_of(value.get(columns.passage))
    return Item(
        id=text_of(value.get(columns.id)) or str(row.origin.row),
        subject=subject,
        question=question,
        choices=choices,
        answers=answers,
        passage=passage,
        explanation=text_of(value.get(columns.explanation)),
        group=text_of(value.get(columns.group)) or passage,
        origin=place,
    )


def _choices(value: Mapping[str, Any], names: Sequence[str], place: str, defects: list[str]) -> tuple[str, ...]:
    present = [name for name in names if name in value]
    listed = next((name for name in (*names, *LISTS) if isinstance(value.get(name), (list, tuple))), None)
    if listed is not None:
        texts = {f"{listed}[{number}]": text_of(choice) for number, choice in enumerate(value[listed])}
    elif len(present) < len(names):
        absent = next(name for name in names if name not in value)
        defects.append(f"{place}:{absent}: there is no such column; columns: {', '.join(map(str, value))}")
        return ()
    else:
        texts = {name: text_of(value[name]) for name in names}
    defects += [f"{place}:{name}: the option is empty" for name, text in texts.items() if not text.strip()]
    return tuple(texts.values())


def answers_of(value: Any, choices: Sequence[str], place: str, defects: list[str]) -> tuple[str, ...]:
    """Labels as letters (or texts of a free answer); what is wrong goes to ``defects``."""
    letters = LETTERS[: len(choices)]
    if isinstance(value, int) and not isinstance(value, bool) and choices:
        if 0 <= value < len(choices):
            return (letters[value],)
        defects.append(f"{place}: {value} is not the number of a choice (0 to {len(choices) - 1})")
        return ()
    found = tuple(text_of(entry).strip() for entry in (value if isinstance(value, (list, tuple)) else [value]))
    found = tuple(entry for entry in found if entry)
    if not found:
        defects.append(f"{place}: there is no label")
    elif choices and (wrong := [entry for entry in found if len(entry) != 1 or entry not in letters]):
        defects.append(f"{place}: {wrong[0]!r} is not one of {', '.join(letters)}")
    return found


def text_of(value: Any) -> str:
    """A cell as text; nothing for an empty one."""
    return "" if value is None else str(value)
