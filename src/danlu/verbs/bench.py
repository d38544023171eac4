"""`danlu bench`: a model's answers to the questions of a benchmark, scored as a protocol says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from danlu.core.console import note, warn
from danlu.core.errors import UsageError
from danlu.evaluate.benchmarks.catalog import benchmark_named, looks_like_file
from danlu.evaluate.benchmarks.files import open_files, together
from danlu.evaluate.benchmarks.loading import load_questions
from danlu.evaluate.benchmarks.results import Results, write_results
from danlu.evaluate.benchmarks.runner import Task, answer_questions, waiting_questions
from danlu.evaluate.benchmarks.schema import Benchmark
from danlu.evaluate.benchmarks.submission import write_submission

if TYPE_CHECKING:
    from danlu.engine.protocol import Engine


@dataclass(frozen=True, slots=True)
class Answering:
    """What answers: an engine, and what identifies it in keys and results."""

    engine: Engine
    identity: dict[str, str]
    folder: Path


def find_benchmark(name: str, data: str | Path | None = None) -> tuple[Benchmark, str | Path | None]:
    """A benchmark by name or by the user's file, and where its questions are."""
    if not looks_like_file(name):
        return benchmark_named(name), data
    from danlu.evaluate.benchmarks.own import own_benchmark

    benchmark, folder = own_benchmark(Path(name))
    return benchmark, data if data is not None else folder


def prepare(
    name: str,
    *,
    data: str | Path | None = None,
    split: str | None = None,
    subjects: Sequence[str] = (),
    protocol: str | None = None,
    shots: int | None = None,
    limit: int | None = None,
) -> Task:
    """The questions of a benchmark, read and checked, and how they will be asked.

    Args:
        name: ``ceval``, ``cmmlu``, ``mmlu``, or a YAML file or table of your own.
        data: folder, archive, file, ``hub`` or hub id; by default the user's benchmark folder.
        split: the benchmark's usual one by default.
        subjects: ids, names, categories or groups; all by default.
        protocol: the benchmark's first by default.
        shots: demonstrations; the protocol's number by default.
        limit: at most so many questions of each subject.
    """
    benchmark, place = find_benchmark(name, data)
    chosen, how = benchmark.protocol(protocol)
    count = how.shots if shots is None else shots
    if count < 0 or (limit is not None and limit < 1):
        raise UsageError("shots cannot be negative, and limit is at least 1", where="danlu bench")
    if count and not benchmark.demo_split:
        raise UsageError(f"{benchmark.name} has no demonstrations", where="shots", hint="Use --shots 0.")
    folder = open_files(benchmark, place)
    split = split or benchmark.split
    questions = load_questions(benchmark, folder, split=split, subjects=subjects, demonstrations=count > 0, limit=limit)
    digest = together(questions.files)
    total = sum(map(len, questions.items.values()))
    note(f"{benchmark.name} {split}: {total} questions of {len(questions.items)} subjects, sha256 {digest[:16]}…")
    note(f"protocol {benchmark.name}/{chosen} {how.digest}, {count} demonstrations: {how.title or how.mode}")
    return Task(benchmark, chosen, how, count, split, questions, place=folder.place, limit=limit)


def run_task(task: Task, engine: Engine, identity: dict[str, str], folder: Path) -> Results:
    """Ask, score, sum up, write: ``samples.jsonl``, ``results.json``, and a submission where the site scores."""
    from dataclasses import replace

    task = replace(task, model=identity)
    length, context = getattr(engine, "length", None), getattr(engine, "context", None)
    waiting = waiting_questions(task, length=length, context=context)
    rows = answer_questions(engine, waiting, task, folder)
    results = write_results(task, rows, folder)
    if ties := results.document["diagnostics"].get("ties"):
        warn(
            f"{ties} of {len(rows)} questions have two likeliest choices that are equal, the first one counts; "
            "dtype=float32 tells apart what bfloat16 rounds to the same"
        )
    if task.benchmark.submission and task.split in task.benchmark.unlabelled:
        path = write_submission(rows, folder)
        note(f"{task.split} has no labels: the answers for the site are in {path}")
    elif not results.numbers:
        warn(f"{task.split} has no labels: there is nothing to measure")
    return results


def bench(
    name: str,
    run: str | Path | None = None,
    *,
    model: str | None = None,
    adapter: Sequence[str] = (),
    output: str | Path | None = None,
    engine: Engine | None = None,
    **options: Any,
) -> Results:
    """Measure a run or a model on a benchmark.

    Args:
        name: ``ceval``, ``cmmlu``, ``mmlu``, or a YAML file or table of your own.
        run: run directory.
        model: instead of a run: folder, hub id, GGUF file or known name.
        adapter: adapters on ``model``.
        output: folder for the answers and results; by default in ``<run>/bench`` or ``runs/<model>-bench``.
        engine: instead of a run or a model: anything that answers (:class:`danlu.engine.protocol.Engine`).
        options: those of :func:`prepare`; others are keys of a configuration (``template``, ``dtype`` …) or of
            :class:`danlu.engine.options.EngineOptions`: with ``api`` the model of that name at a service.

    Raises:
        DanluError: with what is wrong, where and what to do.
    """
    known = {"data", "split", "subjects", "protocol", "shots", "limit"}
    task = prepare(name, **{key: value for key, value in options.items() if key in known})
    rest = {key: value for key, value in options.items() if key not in known}
    if engine is None:
        with _answering(run, model, adapter, rest) as answering:
            return _measured(task, answering, output)
    if run is not None or model is not None or rest:
        raise UsageError("an engine answers by itself: name no run, model or options for one")
    answering = Answering(engine, {"engine": type(engine).__name__}, Path("runs/engine-bench"))
    return _measured(task, answering, output)


def _measured(task: Task, answering: Answering, output: str | Path | None) -> Results:
    folder = Path(output) if output is not None else answering.folder / _folder_name(task)
    return run_task(task, answering.engine, answering.identity, folder)


def _folder_name(task: Task) -> str:
    return f"{task.benchmark.name}-{task.split}-{task.protocol_name}-{task.shots}shot"


@contextmanager
def _answering(
    run: str | Path | None, model: str | None, adapter: Sequence[str], keys: dict[str, Any]
) -> Iterator[Answering]:
    """A run, a model in this process, replicas of one, or a model behind a URL."""
    from danlu.verbs.asking import asking_of, check_service, engine_options
    from danlu.verbs.opening import refuse_reward_model, settings

    engines, rest = engine_options(keys)
    check_service(engines, run, model, adapter)
    config, source, place = settings(run, model, adapter, rest)
    refuse_reward_model(source)
    folder = place / "bench" if run is not None else Path("runs") / f"{Path(str(model)).name}-bench"
    with asking_of(config, source, engines) as asking:
        dtype = getattr(getattr(asking.engine, "model", None), "dtype", config.model.dtype)
        identity = {**asking.identity, "dtype": str(dtype).removeprefix("torch.")}
        yield Answering(asking.engine, identity, folder)
