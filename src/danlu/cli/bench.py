"""``danlu bench``: run a benchmark, list what there is, show one, check a submission."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from danlu.cli.service import Api, KeyName, NoCache, service_options

if TYPE_CHECKING:
    from danlu.evaluate.benchmarks.results import Results

JsonOption = Annotated[bool, typer.Option("--json", help="machine-readable")]


class _NamesRun(TyperGroup):
    """A first word that is no command is the name of a benchmark: ``bench ceval`` is ``bench run ceval``."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            args = ["run", *args]
        return super().resolve_command(ctx, args)


app = typer.Typer(cls=_NamesRun, no_args_is_help=True, help="Benchmarks: danlu bench ceval --run DIR.")


@app.command("run")
def run_benchmark(
    name: Annotated[str, typer.Argument(help="ceval, cmmlu, mmlu, or a YAML file or table of your own")],
    run: Annotated[str | None, typer.Option("--run", help="run directory, or one of its checkpoints")] = None,
    model: Annotated[str | None, typer.Option("--model", help="without a run: folder, hub id, GGUF, name")] = None,
    adapter: Annotated[list[str] | None, typer.Option("--adapter", help="adapter on --model; repeatable")] = None,
    api: Api = None,
    api_key_env: KeyName = None,
    no_cache: NoCache = False,
    data: Annotated[str | None, typer.Option(help="folder, .zip, file, hub, or a hub's dataset id")] = None,
    split: Annotated[str | None, typer.Option(help="dev, val or test; the usual one by default")] = None,
    protocol: Annotated[str | None, typer.Option(help="how it is asked; danlu bench show NAME lists them")] = None,
    shots: Annotated[int | None, typer.Option(help="demonstrations; the protocol's number by default")] = None,
    subjects: Annotated[str | None, typer.Option(help="ids, names, categories or groups, with commas")] = None,
    limit: Annotated[int | None, typer.Option(help="at most so many questions of each subject")] = None,
    template: Annotated[str | None, typer.Option(help="named template, for a model that has none")] = None,
    dtype: Annotated[str | None, typer.Option(help="precision of the weights, for instance float32")] = None,
    output: Annotated[str | None, typer.Option("--output", help="folder for samples.jsonl and results.json")] = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a run or a model the questions of a benchmark. The same command goes on where it was stopped."""
    from danlu.core.console import out
    from danlu.verbs.bench import bench

    more: dict[str, Any] = {key: word for key, word in (("template", template), ("dtype", dtype)) if word}
    more |= service_options(api, api_key_env, no_cache)
    results = bench(
        name,
        run,
        model=model,
        adapter=adapter or (),
        output=output,
        data=data,
        split=split,
        protocol=protocol,
        shots=shots,
        subjects=tuple(word.strip() for word in (subjects or "").split(",") if word.strip()),
        limit=limit,
        **more,
    )
    if as_json:
        out.print(json.dumps(results.document, ensure_ascii=False), markup=False, soft_wrap=True)
    else:
        show_results(results)


def show_results(results: Results) -> None:
    """The averages, categories and groups, the headline first, and what to look at before they are believed."""
    from rich.table import Table

    from danlu.core.console import out

    document = results.document
    by = document["protocol"]
    title = f"{by['protocol']} {by['digest']} · {by['shots']} shots · {document['benchmark']['split']}"
    table = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for heading in ("", "average"):
        table.add_column(heading, no_wrap=True)
    for heading in ("accuracy", "95 % interval", "n"):
        table.add_column(heading, justify="right", no_wrap=True)
    few = document["benchmark"]["subjects"]
    for number in results.numbers:
        if number.scope == "subject" and len(few) > 12:
            continue
        name = number.name if number.metric == "accuracy" else f"{number.name} (by length)"
        ends = f"{100 * number.interval.low:.2f}–{100 * number.interval.high:.2f}"
        value = f"{100 * number.value:.2f}"
        style = "accent" if number.headline else None
        table.add_row(name, number.average, value, ends, str(number.n), style=style)
    if results.numbers:
        out.print(table)
    facts = document["diagnostics"]
    shares = [f"{name} {100 * facts[name]:.1f} %" for name in ("unparsed", "length", "mass", "chance") if name in facts]
    plain = [f"{name} {facts[name]:.3f}" for name in ("margin", "brier", "ece") if name in facts]
    plain += [f"ties {facts['ties']}"] if facts.get("ties") else []
    out.print(" · ".join([f"n {facts['n']}", *shares, *plain]), style="quiet", soft_wrap=True)
    out.print(str(results.folder), markup=False, soft_wrap=True)


@app.command("list")
def list_benchmarks(as_json: JsonOption = False) -> None:
    """The benchmarks that danlu describes. Their questions are not part of danlu."""
    from rich.table import Table

    from danlu.core.console import out
    from danlu.core.workspace import benchmarks_home
    from danlu.evaluate.benchmarks.catalog import benchmarks

    entries = [
        {
            "name": benchmark.name,
            "title": benchmark.title,
            "language": benchmark.language,
            "subjects": len(benchmark.subjects),
            "protocols": list(benchmark.protocols),
            "licence": benchmark.licence,
            "source": benchmark.source,
        }
        for benchmark in benchmarks().values()
    ]
    if as_json:
        out.print(json.dumps(entries, ensure_ascii=False), markup=False, soft_wrap=True)
        return
    table = Table(header_style="bold", box=None, pad_edge=False)
    for heading in ("name", "language", "subjects", "licence of the data"):
        table.add_column(heading, justify="right" if heading == "subjects" else "left")
    for entry in entries:
        table.add_row(*(str(entry[key]) for key in ("name", "language", "subjects", "licence")))
    out.print(table)
    out.print(f"Questions are looked for in {benchmarks_home()}; --data names another place.", style="quiet")


@app.command("show")
def show_benchmark(
    name: Annotated[str, typer.Argument(help="a benchmark's name, or your own file")], as_json: JsonOption = False
) -> None:
    """One benchmark: source, splits, protocols, subjects."""
    from rich.markup import escape
    from rich.table import Table

    from danlu.core.console import out
    from danlu.verbs.bench import find_benchmark

    benchmark, _ = find_benchmark(name)
    if as_json:
        digests = {key: protocol.digest for key, protocol in benchmark.protocols.items()}
        document = {**benchmark.model_dump(mode="json"), "digests": digests}
        out.print(json.dumps(document, ensure_ascii=False), markup=False, soft_wrap=True)
        return
    out.print(f"{benchmark.title or benchmark.name}: {benchmark.source}\n{benchmark.licence}", markup=False)
    protocols = Table("protocol", "shots", "average", "digest", "", box=None, pad_edge=False, header_style="bold")
    for key, protocol in benchmark.protocols.items():
        protocols.add_row(key, str(protocol.shots), protocol.average, protocol.digest, escape(protocol.title))
    out.print(protocols)
    subjects = Table("subject", "", "category", *benchmark.splits, box=None, pad_edge=False, header_style="bold")
    for key, subject in benchmark.subjects.items():
        counts = [str(subject.counts.get(split, "")) for split in benchmark.splits]
        subjects.add_row(key, subject.zh or subject.en, subject.category, *counts)
    out.print(subjects)
    for group, members in benchmark.groups.items():
        out.print(f"{group}: {', '.join(members)}", markup=False, soft_wrap=True)


@app.command("validate-submission")
def validate_submission(
    path: Annotated[str, typer.Argument(help="submission.json")],
    benchmark: Annotated[str, typer.Option(help="whose site scores it")] = "ceval",
    data: Annotated[str | None, typer.Option(help="the test files, to compare ids")] = None,
) -> None:
    """Say what the site would refuse: missing subjects or ids, letters that are none."""
    from pathlib import Path

    from danlu.core.console import out
    from danlu.core.errors import DataError
    from danlu.evaluate.benchmarks.catalog import benchmark_named
    from danlu.evaluate.benchmarks.files import open_files
    from danlu.evaluate.benchmarks.loading import defective, load_questions
    from danlu.evaluate.benchmarks.submission import check_submission

    described = benchmark_named(benchmark)
    if not described.submission:
        raise DataError("its labels are public: there is nothing to submit", where=described.name)
    items = None
    if data is not None:
        split = described.unlabelled[0]
        items = load_questions(described, open_files(described, data), split=split, demonstrations=False).items
    if found := check_submission(Path(path), described, items):
        raise defective([f"{path}:{problem}" for problem in found])
    out.print(f"{path}: every subject and question has an answer.", markup=False, soft_wrap=True)
