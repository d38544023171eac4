"""How fast danlu scores C-Eval 5-shot questions, against full prompts and against lm-evaluation-harness.

    python benchmarks/score.py DATA/ceval --out results.json
    python benchmarks/score.py DATA/ceval --peer-python ENV/bin/python

DATA/ceval holds dev/ and val/ with the CSV files of the release and mapping.json. The sides take turns; see README.md
beside this file. lm-eval is measured where --peer-python (or this Python) can import it.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from speed.report import machine, ratio

LETTERS = ("A", "B", "C", "D")
SIDES = ("shared", "full prompts", "lm-eval")
PEER_SIDE = Path(__file__).parent / "peers" / "lm_eval_side.py"
SUBJECTS = "art_studies,discrete_mathematics,business_administration"


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the ceval folder")
    parser.add_argument("--model", default="smollm2-135m", help="any model danlu opens")
    parser.add_argument("--dtype", default="float32", help="precision of every side")
    parser.add_argument("--subjects", default=SUBJECTS, help="which of C-Eval's subjects")
    parser.add_argument("--questions", type=int, help="at most so many of each subject")
    parser.add_argument("--shots", type=int, default=5, help="worked examples before each question")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side")
    parser.add_argument("--batch-size", type=int, default=4, help="prompts in a batch of full prompts, on both sides")
    parser.add_argument("--peer-python", default=sys.executable, help="a Python that can import lm_eval")
    parser.add_argument("--out", type=Path, help="write every measured value here")
    return parser.parse_args(given)


def prompts(data: Path, subject: str, shots: int, limit: int | None) -> list[str]:
    """The questions of a subject in C-Eval's own format: an instruction, worked examples, the question."""
    name = json.loads((data / "mapping.json").read_text(encoding="utf-8"))[subject]["name"]
    examples, questions = (rows(data / split / f"{subject}_{split}.csv") for split in ("dev", "val"))
    shown = "".join(f"{question(row)}{row['answer']}\n\n" for row in examples[:shots])
    head = f"以下是中国关于{name}考试的单项选择题，请选出其中的正确答案。\n\n{shown}"
    return [head + question(row) for row in questions[:limit]]


def rows(path: Path) -> list[dict[str, str]]:
    """A CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def question(row: dict[str, str]) -> str:
    """A question up to where the letter comes."""
    options = "".join(f"\n{letter}. {row[letter]}" for letter in LETTERS)
    return f"{row['question']}{options}\n答案："


class Danlu:
    """danlu's side, in this process."""

    def __init__(self, options: argparse.Namespace) -> None:
        from danlu.data.templates import Template
        from danlu.engine.local import LocalEngine
        from danlu.models.loading import load_model, load_tokenizer, model_folder
        from danlu.models.memory import keep_freed_memory

        keep_freed_memory()
        self.folder = model_folder(options.model)
        tokenizer = load_tokenizer(self.folder)
        model = load_model(self.folder, dtype=options.dtype)
        self.engine = LocalEngine(model, tokenizer, Template(tokenizer))
        self.batch_size = options.batch_size

    def shared(self, texts: Sequence[str]) -> list[tuple[float, ...]]:
        """As the engine scores: common beginnings once, the rest side by side."""
        found = {item.key: item.log_probs for item in self.engine.score(self.requests(texts))}
        return [found[str(number)] for number in range(len(texts))]

    def full(self, texts: Sequence[str]) -> list[tuple[float, ...]]:
        """Every prompt whole, in padded batches of similar length; the output layer at the last place only."""
        from danlu.engine.joining import join
        from danlu.engine.scoring import Sheet, read_rows, rows_of

        engine = self.engine
        sheets = [Sheet(join(request, engine.renderer, 0, engine.context)) for request in self.requests(texts)]
        batches = sorted(rows_of(sheets), key=lambda row: -len(row.ids))
        for start in range(0, len(batches), self.batch_size):
            read_rows(engine.model.eval(), batches[start : start + self.batch_size], 0)
        return [sheet.scored().log_probs for sheet in sheets]

    def requests(self, texts: Sequence[str]) -> list[Any]:
        """Each prompt with the four letters."""
        from danlu.engine.protocol import ScoreRequest

        return [ScoreRequest(str(number), text, LETTERS) for number, text in enumerate(texts)]

    def tokens(self, texts: Sequence[str]) -> int:
        """Tokens of all prompts."""
        return sum(len(self.engine.tokenizer.encode(text)) for text in texts)


def peer_side(options: argparse.Namespace, folder: Path) -> Callable[[Sequence[str]], tuple[float, Any]]:
    """Runs lm-eval's Hugging Face backend in its own Python; only scoring is timed, as it is here."""

    def run(texts: Sequence[str]) -> tuple[float, Any]:
        with tempfile.TemporaryDirectory() as place:
            task, answer = Path(place) / "task.json", Path(place) / "answer.json"
            told = {"model": str(folder), "dtype": options.dtype, "batch_size": options.batch_size, "texts": texts}
            task.write_text(json.dumps({**told, "letters": LETTERS}), encoding="utf-8")
            subprocess.run([options.peer_python, str(PEER_SIDE), str(task), str(answer)], check=True)
            found = json.loads(answer.read_text(encoding="utf-8"))
        return found["seconds"], found["log_probs"]

    return run


def timed(score: Callable[[Sequence[str]], Any]) -> Callable[[Sequence[str]], tuple[float, Any]]:
    """The same, with the seconds it took."""

    def run(texts: Sequence[str]) -> tuple[float, Any]:
        start = time.perf_counter()
        found = score(texts)
        return time.perf_counter() - start, found

    return run


def can_import(python: str) -> bool:
    """Whether lm-eval is there."""
    try:
        return subprocess.run([python, "-c", "import lm_eval"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def compare(found: Sequence[Sequence[float]], reference: Sequence[Sequence[float]]) -> dict[str, Any]:
    """How many choices are equal, and the largest difference of a log-probability."""
    equal = sum(_best(ours) == _best(theirs) for ours, theirs in zip(found, reference, strict=True))
    largest = max(abs(a - b) for ours, theirs in zip(found, reference) for a, b in zip(ours, theirs))
    return {"equal_choices": equal, "of": len(reference), "largest_difference": largest}


def _best(log_probs: Sequence[float]) -> int:
    return max(range(len(log_probs)), key=lambda place: log_probs[place])


def main() -> None:
    """Measure and print a table."""
    options = arguments()
    subjects = [name for name in options.subjects.split(",") if name]
    texts = {name: prompts(options.data, name, options.shots, options.questions) for name in subjects}
    every = [text for name in subjects for text in texts[name]]
    danlu = Danlu(options)
    sides = {SIDES[0]: timed(danlu.shared), SIDES[1]: timed(danlu.full)}
    if can_import(options.peer_python):
        sides[SIDES[2]] = peer_side(options, danlu.folder)
    else:
        print(f"lm_eval cannot be imported by {options.peer_python}: it is left out", file=sys.stderr)
    danlu.full(every[:1])  # the first call of a process is slower; the other Python warms up itself
    results: dict[str, Any] = {"machine": machine(), "runs": [], "equal": {}, "settings": _settings(options)}
    results["questions"], results["tokens"] = len(every), danlu.tokens(every)
    last: dict[str, Any] = {}
    for repeat in range(options.repeats):
        for name, run in sides.items():
            seconds, last[name] = run(every)
            results["runs"].append({"side": name, "repeat": repeat, "questions_per_second": len(every) / seconds})
            print(f"{name}, run {repeat + 1}: {len(every) / seconds:.2f} questions/s", file=sys.stderr)
    results["equal"] = {name: compare(last[name], last[SIDES[1]]) for name in sides if name != SIDES[1]}
    if options.out:
        options.out.write_text(json.dumps(results, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    print(table(results))


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    return {
        name: getattr(options, name) for name in ("model", "dtype", "subjects", "shots", "repeats", "batch_size")
    } | {"questions_of_each": options.questions}


def table(results: dict[str, Any]) -> str:
    """Medians with the smallest and largest run, and ratios of medians, as Markdown."""
    import statistics

    values: dict[str, list[float]] = {}
    for run in results["runs"]:
        values.setdefault(run["side"], []).append(run["questions_per_second"])
    lines = [
        "| side | questions/s | shared is faster | equal choices | largest difference |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, found in values.items():
        told = results["equal"].get(name, {})
        equal = f"{told['equal_choices']} of {told['of']}" if told else "–"
        largest = f"{told['largest_difference']:.1e}" if told else "–"
        spread = f"{statistics.median(found):.2f} ({min(found):.2f}–{max(found):.2f})"
        lines.append(f"| {name} | {spread} | {ratio(values[SIDES[0]], found):.2f} × | {equal} | {largest} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
