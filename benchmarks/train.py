"""How fast danlu trains, as ratios against LLaMA-Factory on the same model, rows, cutoff, batch and precision.

    python benchmarks/train.py --out results.json
    python benchmarks/train.py --table results.json

Every run is a fresh process with every core; the sides take turns. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from speed import rows as row_tools
from speed.measure import (
    Counted,
    RunFailed,
    StepLog,
    read_danlu_log,
    read_peer_log,
    run_child,
    speed,
    step_counts,
)
from speed.report import cores, heading, machine, table, token_remarks
from speed.sides import DANLU, METHODS, PEER, Bench, Contender, contenders, peer_environment, peer_versions, words

MODEL = "smollm2-135m"


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="rows to train, any format danlu reads; made up by default")
    parser.add_argument("--methods", default="lora,freeze,full", help="which of lora,freeze,full")
    parser.add_argument("--rows", type=int, default=32, help="rows of an epoch, cut to whole optimizer steps")
    parser.add_argument("--steps", type=int, help="optimizer steps of lora and full; one epoch by default")
    parser.add_argument("--epochs", type=int, default=2, help="epochs of freeze, at least 2")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each contender")
    parser.add_argument("--preprocess-rows", type=int, default=20_000, help="rows to tokenise; 0 leaves that out")
    parser.add_argument("--peer-env", type=Path, help="the peer's virtual environment; made there if absent")
    parser.add_argument("--work", type=Path, help="folder to keep every run's files in; a temporary one by default")
    parser.add_argument("--out", type=Path, help="write every measured value here, after each run")
    parser.add_argument("--table", type=Path, metavar="RESULTS", help="only print the table of an earlier --out file")
    options = parser.parse_args(given)
    options.methods = [name for name in options.methods.split(",") if name]
    if unknown := [name for name in options.methods if name not in METHODS]:
        parser.error(f"--methods: {', '.join(unknown)} is none of {', '.join(METHODS)}")
    if options.epochs < 2 or options.repeats < 1:
        parser.error("--epochs is at least 2 and --repeats at least 1")
    return options


class Benchmark:
    """Runs everything and keeps the results.

    Args:
        options: the command line.
        bench: what every run shares.
    """

    def __init__(self, options: argparse.Namespace, bench: Bench) -> None:
        self.options, self.bench = options, bench
        self.results: dict[str, Any] = {"machine": machine(), "remarks": [], "runs": [], "failures": []}

    def prepare(self) -> None:
        """Find the model, choose the rows, write them for both sides and compare what both make of them."""
        say("looking at the rows")
        found, _ = self.bench.danlu_task("model", {"do": "model", "model": MODEL})
        self.bench = self.bench.knowing(model=found["folder"])
        versions = {DANLU: found["versions"], PEER: peer_versions(self.bench.peer_python)}
        self.rows = self._chosen()
        self.ours = row_tools.write_rows(self.bench.work / "danlu-rows" / "train.jsonl", self.rows)
        mine, _ = self.bench.danlu_task("check-danlu", self._tokenise(self.ours, peer=False), self.cache("danlu"))
        if sorted(mine["rows"]) != list(range(len(self.rows))):
            raise RunFailed("danlu does not make one sequence of each row")
        order = mine["order"]
        self.theirs = row_tools.write_rows(
            self.bench.work / "peer-rows" / "train.jsonl", [self.rows[mine["rows"][place]] for place in order]
        )
        other, _ = self.bench.peer_task("check-peer", self._tokenise(self.theirs, peer=True), self.cache("peer"))
        self.bench = self.bench.knowing(template=other["template"])
        by_row = [Counted(*pair) for pair in zip(mine["tokens"], mine["supervised"], strict=True)]
        self.danlu_steps = step_counts(by_row, order, self.bench.sequences)
        by_place = [Counted(*pair) for pair in zip(other["tokens"], other["supervised"], strict=True)]
        self.peer_steps = step_counts(by_place, range(len(by_place)), self.bench.sequences)
        self.results["versions"] = versions
        self.results["settings"] = self._settings()
        self.results["remarks"] = token_remarks(mine, other, other["template"])

    def _chosen(self) -> list[row_tools.Row]:
        wanted, left_out = self.options.rows, 0
        if self.options.data:
            candidates, left_out = row_tools.read_rows(self.options.data)
        else:
            candidates = row_tools.made_rows(2 * wanted)
        path = row_tools.write_rows(self.bench.work / "candidates" / "candidates.jsonl", candidates)
        task = self._tokenise(path, peer=False)
        task["config"] |= {"cutoff_len": 1_000_000}
        lengths, _ = self.bench.danlu_task("lengths", task, self.cache("danlu"))
        if lengths["sequences"] != len(candidates):
            raise RunFailed("danlu does not make one sequence of each candidate row")
        if left_out:
            say(f"{left_out} rows are not one question and one answer and are left out")
        return row_tools.choose(candidates, lengths["tokens"], self.bench.cutoff, wanted, self.bench.sequences)

    def _settings(self) -> dict[str, Any]:
        epoch = len(self.danlu_steps)
        self.steps = min(self.options.steps or epoch, epoch)
        if self.steps < 2:
            raise RunFailed("at least 2 optimizer steps are needed: the first counts as start-up (see --rows, --steps)")
        options, bench = self.options, self.bench
        return {
            "model": MODEL,
            "data": options.data.name if options.data else "rows of its own",
            "rows": len(self.rows),
            "cutoff": bench.cutoff,
            "batch": bench.batch,
            "accumulation": bench.accumulation,
            "steps": self.steps,
            "epochs": options.epochs,
            "repeats": options.repeats,
            "preprocess_rows": options.preprocess_rows,
        }

    def _tokenise(self, rows: Path, *, peer: bool, details: bool = True) -> dict[str, Any]:
        config = self.bench.peer_options(rows) if peer else self.bench.danlu_options(rows)
        return {"do": "tokenise", "config": config, "details": details}

    def cache(self, name: str) -> Path:
        """A cache folder of the benchmark's own."""
        return self.bench.work / "cache" / name

    def train(self, method: str, repeat: int, contender: Contender) -> dict[str, Any]:
        """Train once."""
        name = f"{method}-{repeat}-{contender.name.replace(' ', '-')}"
        folder = self.bench.work / name
        length = {"num_train_epochs": self.options.epochs} if method == "freeze" else {"max_steps": self.steps}
        extra = {**METHODS[method], **length, **contender.training, "output_dir": str(folder / "run")}
        if contender.peer:
            task = {
                "do": "train",
                "log": str(folder / "steps.jsonl"),
                "config": {**self.bench.peer_options(self.theirs), **extra},
            }
            _, child = self.bench.peer_task(name, task, self.cache("peer"), contender.environment)
            log, counts, places = read_peer_log(folder / "steps.jsonl")
            self._same_rows(name, counts)
        else:
            command = [sys.executable, "-m", "danlu", "train"]
            command += words({**self.bench.danlu_options(self.ours), **extra})
            environment = self.bench.environment(peer=False, cache=self.cache("danlu"))
            child = run_child(command, environment, folder / "log.txt")
            log = read_danlu_log(folder / "run" / "events.jsonl")
            # later epochs have another order but the same sum, and only whole ones are timed
            counts = (self.danlu_steps * self.options.epochs)[: len(log.times)]
            places = sum(count.tokens for count in counts)
        shutil.rmtree(folder / "run", ignore_errors=True)
        values = self._speeds(method, log, counts)
        values |= {
            "peak": child.peak,
            "begin": log.began - child.started,
            "first_step": log.times[0] - child.started,
        }
        real = sum(count.tokens for count in counts)
        return {
            "values": values,
            "losses": log.losses,
            "step_seconds": [b - a for a, b in zip(log.times[:-1], log.times[1:], strict=True)],
            "padding": 1 - real / places,
            "seconds": child.seconds,
        }

    def _same_rows(self, name: str, counts: Sequence[Counted]) -> None:
        epoch = self.peer_steps
        if list(counts) != (epoch * self.options.epochs)[: len(counts)]:
            self.results["remarks"].append(f"WARNING: {name} did not train the rows of danlu's steps")

    def _speeds(self, method: str, log: StepLog, counts: Sequence[Counted]) -> dict[str, float]:
        expected = len(self.danlu_steps) * self.options.epochs if method == "freeze" else self.steps
        if len(log.times) != expected:
            raise RunFailed(f"{len(log.times)} optimizer steps were made instead of {expected}")
        if method != "freeze":
            real, supervised = speed(log.times, counts, 1, expected)
            return {"speed": real, "supervised_speed": supervised}
        epoch = len(self.danlu_steps)
        first, later = speed(log.times, counts, 1, epoch), speed(log.times, counts, epoch, expected)
        return {
            "first_epoch_speed": first[0],
            "first_epoch_supervised_speed": first[1],
            "later_epochs_speed": later[0],
            "later_epochs_supervised_speed": later[1],
        }

    def preprocess(self, repeat: int, contender: Contender) -> dict[str, Any]:
        """Tokenise many rows once, with an empty cache."""
        name = f"tokenise-{repeat}-{contender.name.replace(' ', '-')}"
        path = self.bench.work / "many" / "many.jsonl"
        if not path.exists():
            row_tools.write_rows(path, row_tools.repeated(self.rows, self.options.preprocess_rows))
        task = self._tokenise(path, peer=contender.peer, details=False)
        task["config"] |= {"cutoff_len": 2 * self.bench.cutoff, **contender.tokenising}
        cache = self.cache(name)
        if contender.peer:
            answer, child = self.bench.peer_task(name, task, cache, contender.environment)
        else:
            answer, child = self.bench.danlu_task(name, task, cache)
        shutil.rmtree(cache, ignore_errors=True)
        if answer["sequences"] != self.options.preprocess_rows:
            raise RunFailed(f"{name} made {answer['sequences']} sequences")
        values = {"rows_speed": self.options.preprocess_rows / answer["seconds"], "rows_peak": child.peak}
        return {"values": values, "seconds": child.seconds}

    def run(self) -> None:
        """Every contender of every method, taking turns."""
        for what in [*self.options.methods, *(["tokenising"] if self.options.preprocess_rows else [])]:
            for repeat in range(1, self.options.repeats + 1):
                for contender in contenders(self.bench.cores):
                    self._one(what, repeat, contender)

    def _one(self, what: str, repeat: int, contender: Contender) -> None:
        label = {"what": what, "contender": contender.name, "repeat": repeat}
        try:
            done = self.preprocess(repeat, contender) if what == "tokenising" else self.train(what, repeat, contender)
        except RunFailed as error:
            say(f"{what}, {contender.name}, {repeat}: FAILED: {error}")
            self.results["failures"].append({**label, "error": str(error)})
        else:
            self.results["runs"].append({**label, **done})
            fast = next(iter(done["values"].values()))
            say(f"{what}, {contender.name}, {repeat}: {fast:.0f} a second, {done['seconds']:.0f} s in all")
        if self.options.out:
            self.options.out.write_text(json.dumps(self.results, indent=1, ensure_ascii=False), encoding="utf-8")


def say(message: str) -> None:
    """One line of progress on stderr."""
    print(f"{time.strftime('%H:%M:%S')} {message}", file=sys.stderr, flush=True)


def show(results: dict[str, Any]) -> str:
    """Everything a reader needs, as Markdown."""
    remarks = list(results["remarks"])
    for what in dict.fromkeys(run["what"] for run in results["runs"] if "losses" in run):
        first = {run["contender"]: run["losses"][0] for run in results["runs"] if run["what"] == what}
        told = ", ".join(f"{name} {loss:.4f}" for name, loss in first.items())
        remarks.append(f"loss of the first step, {what}: {told}")
    padding = [run["padding"] for run in results["runs"] if "padding" in run and run["contender"] != DANLU]
    if padding:
        remarks.append(f"the peer's batches are {100 * sum(padding) / len(padding):.0f} % padding")
    remarks += [
        f"FAILED: {failure['what']}, {failure['contender']}, {failure['repeat']}" for failure in results["failures"]
    ]
    return heading({**results, "remarks": remarks}).replace("\n", "  \n") + "\n\n" + table(results["runs"])


def main(given: Sequence[str] | None = None) -> int:
    """Run the benchmark, or print an earlier one."""
    options = arguments(given)
    if options.table:
        print(show(json.loads(options.table.read_text(encoding="utf-8"))))
        return 0
    from danlu.core.workspace import cache_folder

    peer = options.peer_env or cache_folder("benchmark") / "llamafactory-0.9.5"
    say(f"the peer lives in {peer}")
    peer_python = peer_environment(peer.resolve())
    work = options.work or Path(tempfile.mkdtemp(prefix="danlu-benchmark-"))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the running child is ended and files go
    benchmark = Benchmark(options, Bench(work.resolve(), peer_python, cores()))
    try:
        benchmark.prepare()
        benchmark.run()
    except (RunFailed, ValueError) as error:
        say(str(error))
        return 1
    finally:
        if not options.work:
            shutil.rmtree(work, ignore_errors=True)
    print(show(benchmark.results))
    return 1 if benchmark.results["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
