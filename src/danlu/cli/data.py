"""``danlu data``: what there is, whether it is sound, what it is like, and into another format."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from danlu.data.check import CheckReport
    from danlu.data.convert import ConvertReport
    from danlu.data.rows import BadRow
    from danlu.data.schema import Row
    from danlu.data.statistics import Statistics

app = typer.Typer(no_args_is_help=True, help="Look at datasets, check them, convert them.")

DatasetDirOption = Annotated[str, typer.Option(help="Folder that holds dataset_info.json.", show_default=True)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
StageOption = Annotated[
    str | None, typer.Option(help="Only rows that this stage trains on are good.", metavar="pt|sft|rm|dpo|kto|…")
]
NameArgument = Annotated[str, typer.Argument(help="A name, file, folder, pattern or hub id.", metavar="NAME")]

_SHOWN = 50
_BAR = 32


@app.command("list")
def list_datasets(dataset_dir: DatasetDirOption = "data", as_json: JsonOption = False) -> None:
    """Every dataset that has a name: yours (dataset_info.json) and the built-in catalog."""
    from rich.markup import escape

    from danlu.core.console import out

    entries = [*_own(dataset_dir), *_builtin()]
    if as_json:
        _print_json(entries)
        return
    table = _table("name", "format", ("rows", "right"), "language", "licence", "where")
    for entry in entries:
        rows = f"{entry['rows']:,}" if entry["rows"] else ""
        values = (entry["name"], entry["format"], rows, entry["language"], entry["licence"], entry["where"])
        table.add_row(*(escape(str(value)) for value in values))
    out.print(table)
    out.print("A path to a file or folder, a pattern, or a hub id works in the place of a name.", style="quiet")


def _own(dataset_dir: str) -> list[dict[str, Any]]:
    from danlu.core.errors import DataError
    from danlu.data.catalog import entry_source, read_entries

    entries, path = read_entries(dataset_dir)
    listed = []
    for name, value in entries.items():
        try:
            source = entry_source(name, value, None, where=f"{path}:{name}")
        except DataError as error:
            listed.append(_listed(name, "-", f"cannot be used: {error.what}", "yours"))
            continue
        listed.append(_listed(name, source.shape.format if source.shape else "-", source.path, "yours"))
    return listed


def _listed(name: str, layout: str, where: str, origin: str) -> dict[str, Any]:
    unknown = {"rows": None, "language": "", "licence": "", "title": "", "notes": ""}
    return {"name": name, "format": layout, "where": where, "from": origin, **unknown}


def _builtin() -> list[dict[str, Any]]:
    from danlu.data.catalog import builtin

    return [
        {
            **_listed(entry.name, entry.shape.format, entry.hub.repository, "danlu"),
            "rows": entry.rows,
            "language": entry.language,
            "licence": entry.licence.partition(";")[0],
            "title": entry.title,
            "notes": entry.notes,
        }
        for entry in builtin().values()
    ]


@app.command("check")
def check_datasets(
    names: Annotated[list[str], typer.Argument(help="Names, files, folders, patterns or hub ids.", metavar="NAME…")],
    dataset_dir: DatasetDirOption = "data",
    write_good: Annotated[
        Path | None, typer.Option(help="Write the usable rows to this JSON-lines file.", metavar="FILE")
    ] = None,
    stage: StageOption = None,
    pii: Annotated[bool, typer.Option("--pii", help="Also warn of personal data in usable rows.")] = False,
    show: Annotated[int, typer.Option(help="Bad rows to print; 0 prints all of them.", min=0)] = _SHOWN,
    as_json: JsonOption = False,
) -> None:
    """Look at every row and name those that cannot be used, as file:line:field.

    Exits with 1 when there are any.
    """
    from danlu.core.errors import UsageError
    from danlu.data.check import check

    if write_good is not None and len(names) > 1:
        raise UsageError("--write-good is for one dataset", hint="Check them one by one.")
    reports = [check(name, dataset_dir=dataset_dir, write_good=write_good, stage=stage, pii=pii) for name in names]
    if as_json:
        _print_json([_check_value(report) for report in reports])
    else:
        for report in reports:
            _print_check(report, show or len(report.bad), write_good)
    if any(report.bad for report in reports):
        raise typer.Exit(1)


def _check_value(report: CheckReport) -> dict[str, Any]:
    files = [{"path": path, "format": layout, "rows": rows} for path, layout, rows in report.files]
    return {**asdict(report), "files": files, "bad": _bad_values(report.bad)}


def _bad_values(bad: Iterable[BadRow]) -> list[dict[str, Any]]:
    return [
        {
            "file": row.origin.path,
            "line": row.origin.line,
            "row": row.origin.row,
            "field": row.field,
            "message": row.message,
        }
        for row in bad
    ]


def _print_check(report: CheckReport, show: int, write_good: Path | None) -> None:
    from rich.markup import escape

    from danlu.core.console import out, warn

    table = _table("file", "format", ("rows", "right"))
    for path, layout, rows in report.files:
        table.add_row(escape(path), layout, f"{rows:,}")
    out.print(table)
    _print_bad(report.bad, show)
    kinds = ", ".join(f"{count:,} {name}" for name, count in report.kinds.items())
    style = "bad" if report.bad else "good"
    bad = f"{len(report.bad):,} bad" if report.bad else "no bad rows"
    out.print(f"{report.good:,} good rows{f' ({kinds})' if kinds else ''}, {bad}", style=style, soft_wrap=True)
    for note, count in report.notes.items():
        out.print(f"  note: {note}: {count:,}", style="quiet", soft_wrap=True)
    if write_good is not None:
        out.print(f"  good rows written to {write_good}", markup=False, soft_wrap=True)
    for warning in report.warnings:
        warn(warning)


def _print_bad(bad: Sequence[BadRow], show: int) -> None:
    from rich.text import Text

    from danlu.core.console import out

    for row in bad[:show]:
        out.print(Text.assemble((row.place, "bold"), f": {row.message}"), soft_wrap=True)
    if len(bad) > show:
        out.print(f"… and {len(bad) - show:,} more bad rows (--show 0 prints all, --json too)", style="quiet")


@app.command("stats")
def show_statistics(
    name: NameArgument,
    dataset_dir: DatasetDirOption = "data",
    cutoff: Annotated[int | None, typer.Option(help="Count the rows longer than this.", min=1)] = None,
    model: Annotated[str | None, typer.Option(help="Count tokens of this model instead of characters.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Lengths, what a cutoff would cost, duplicates, languages, turns."""
    from danlu.core.console import err
    from danlu.data.loading import load_rows
    from danlu.data.statistics import statistics

    loaded = load_rows([name], dataset_dir=dataset_dir)
    count, measure = token_counter(model) if model else (None, len)
    measured = statistics(loaded.rows, count=count, measure=measure, cutoff=cutoff)
    if as_json:
        _print_json({**asdict(measured), "bad": len(loaded.bad), "sources": [asdict(item) for item in loaded.sources]})
        return
    print_statistics(measured)
    if loaded.bad:
        err.print(f"{len(loaded.bad):,} bad rows are left out; see them with: danlu data check {name}")


def token_counter(model: str) -> tuple[Callable[[Row], int], Callable[[str], int]]:
    """Functions that count the tokens of a row as the model's template writes it, and of a text by itself."""
    from danlu.data.encode import last_answer_only
    from danlu.data.schema import Document, Preference
    from danlu.data.statistics import either_answer
    from danlu.data.templates import Template
    from danlu.models.loading import load_tokenizer, model_folder

    template = Template(load_tokenizer(model_folder(model), need_template=True))

    def measure(text: str) -> int:
        return len(template.content_ids(text))

    def count(row: Row) -> int:
        if isinstance(row, Document):
            return len(template.document_ids([row.text])[0])
        conversations = either_answer(row) if isinstance(row, Preference) else (row.conversation,)
        pieces = [template.pieces(last_answer_only(conversation)) for conversation in conversations]
        return max(len(encoded.ids) for encoded in template.encode_pieces(pieces))

    return count, measure


def print_statistics(measured: Statistics) -> None:
    """Two tables: the dataset in numbers, and how long its rows are."""
    from danlu.core.console import out

    table = _table("", ("", "right"), "")
    for what, value, remark in _facts(measured):
        table.add_row(what, value, remark)
    table.show_header = False
    out.print(table)
    histogram = _table(f"{measured.unit} in a row", ("rows", "right"), "")
    most = max((rows for _, _, rows in measured.lengths.bins), default=0)
    for start, end, rows in measured.lengths.bins:
        bar = "█" * round(_BAR * rows / most) or ("▏" if rows else "")
        histogram.add_row(f"{start:>7,} – {end - 1:<7,}", f"{rows:,}", f"[accent]{bar}[/accent]")
    out.print(histogram)


def _facts(measured: Statistics) -> list[tuple[str, str, str]]:
    size, whole = measured.lengths, max(1, measured.rows)
    kinds = ", ".join(f"{count:,} {name}" for name, count in measured.kinds.items())
    facts = [
        ("rows", f"{measured.rows:,}", kinds),
        ("length, mean", f"{size.mean:,.1f}", measured.unit),
        (
            "length, median",
            f"{size.p50:,}",
            f"95 %: {size.p95:,}   99 %: {size.p99:,}   longest: {size.longest:,}",
        ),
        ("length, all rows", f"{size.total:,}", measured.unit),
    ]
    if measured.cutoff is not None:
        share = f"{measured.over_cutoff / whole:.1%} of the rows; {measured.lost:,} {measured.unit} beyond it"
        facts.append((f"longer than {measured.cutoff:,}", f"{measured.over_cutoff:,}", share))
    facts.append(("duplicates", f"{measured.duplicates:,}", f"{measured.duplicates / whole:.1%} of the rows"))
    facts += [(f"language {name}", f"{count:,}", f"{count / whole:.1%}") for name, count in measured.languages.items()]
    facts += [(f"answers: {turns}", f"{count:,}", f"{count / whole:.1%}") for turns, count in measured.turns.items()]
    facts += _answer_facts(measured)
    facts += [("with a system prompt", f"{measured.system:,}", "")] if measured.system else []
    facts += [("with tools", f"{measured.tools:,}", "")] if measured.tools else []
    return facts


def _answer_facts(measured: Statistics) -> list[tuple[str, str, str]]:
    """What is said of answers that are compared or labelled."""
    judged, unit = measured.answers, measured.unit
    if judged is None:
        return []
    facts = []
    if judged.pairs:
        share = f"{judged.longer / judged.pairs:.1%} of the pairs"
        facts.append(("better answer is longer", f"{judged.longer:,}", share))
    if judged.same:
        facts.append(("both answers the same", f"{judged.same:,}", f"{judged.same / judged.pairs:.1%} of the pairs"))
    if judged.wanted or judged.unwanted:
        facts += [("wanted answers", f"{judged.wanted:,}", ""), ("unwanted answers", f"{judged.unwanted:,}", "")]
    good, poor = ("wanted", "unwanted") if not judged.pairs else ("better", "worse")
    facts.append((f"{good} answer, mean", f"{judged.better:,.1f}", unit))
    return [*facts, (f"{poor} answer, mean", f"{judged.worse:,.1f}", unit)]


@app.command("convert")
def convert_dataset(
    name: Annotated[str, typer.Argument(help="A name, file, folder, pattern or hub id.", metavar="SRC")],
    destination: Annotated[Path, typer.Argument(help="The new file: .json or .jsonl.", metavar="DST")],
    to: Annotated[str, typer.Option(help="Format of the new file.", metavar="FORMAT")],
    dataset_dir: DatasetDirOption = "data",
    as_json: JsonOption = False,
) -> None:
    """Write a dataset in another format and say what that loses, row by row read again.

    Formats: alpaca, pair, sharegpt, openai, native, rounds, preference, kto, text.
    """
    from danlu.data.convert import convert

    report = convert(name, destination, to, dataset_dir=dataset_dir)
    if as_json:
        _print_json({**asdict(report), "bad": _bad_values(report.bad), "path": str(destination), "format": to})
    else:
        _print_convert(report, destination, to)
    if report.bad:
        raise typer.Exit(1)


def _print_convert(report: ConvertReport, destination: Path, to: str) -> None:
    from danlu.core.console import out

    _print_bad(report.bad, _SHOWN)
    whole = report.written == report.read and not report.lost
    done = f"{report.written:,} of {report.read:,} rows from {report.source_format} to {to}: {destination}"
    out.print(done, style="good" if whole else "", soft_wrap=True)
    if whole:
        out.print("  nothing that danlu reads is lost", style="quiet")
    for reason, count in report.left_out.items():
        out.print(f"  left out: {count:,} rows: {reason}", style="bad", soft_wrap=True)
    for what, count in report.lost.items():
        out.print(f"  lost: {what}, in {count:,} rows", style="bad", soft_wrap=True)
    for column, count in report.columns.items():
        told = f"  column not carried over: {column} ({count:,} rows)"
        out.print(told, style="quiet", markup=False, soft_wrap=True)


def _table(*columns: str | tuple[str, str]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        name, justify = column if isinstance(column, tuple) else (column, "left")
        whole = justify == "right" or (number == 0 and name == "name")  # names are copied into commands
        table.add_column(name, justify=justify, no_wrap=whole, overflow="fold")  # type: ignore[arg-type]
    return table


def _print_json(value: object) -> None:
    from danlu.core.console import out

    out.print(json.dumps(value, ensure_ascii=False, indent=2), markup=False, soft_wrap=True)
