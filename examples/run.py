"""Run an example, measure it before and after on held-out pairs, and record the numbers.

    python examples/run.py reward_model
    python examples/run.py dpo

Everything is done by danlu's own verbs; this file only puts the numbers side by side. It is run from the repository.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from record import HERE, conditions, main

import danlu
from danlu.core.config import read_yaml
from danlu.core.files import sha256
from danlu.core.run import RunDirectory
from danlu.evaluate.statistics import bootstrap_interval, paired_difference, wilson_interval
from danlu.tune.config import TrainConfig

HELD_OUT = HERE / "data" / "pairs_heldout.jsonl"

Rows = Sequence[Mapping[str, float]]
"""What `danlu eval` wrote of every pair, in the order of the pairs."""


def untrained_head(config: Path, place: Path, options: Mapping[str, Any]) -> Rows:
    """The reward model with its head as drawn at random: one step that moves nothing."""
    still = {**options, "max_steps": 1, "learning_rate": 1e-12}
    return measured(place, run=danlu.train(config, output_dir=str(place), **still))


def untrained_model(config: Path, place: Path, options: Mapping[str, Any]) -> Rows:
    """Log-probabilities under the model as it is."""
    values = {**read_yaml(config), **options}
    shared = {key: values[key] for key in ("cutoff_len", "bf16", "max_samples") if key in values}
    return measured(place, model=values["model_name_or_path"], **BY_TOKEN, **shared)


def reward_model(run: Path) -> Rows:
    """Rewards of a trained reward model."""
    return measured(run, run=run)


def tuned_model(run: Path) -> Rows:
    """Implicit rewards of a run, and log-probabilities under it."""
    implicit = [{f"implicit_{key}": value for key, value in row.items()} for row in measured(run, run=run)]
    plain = measured(run.with_name(f"{run.name}-by-token"), run=run, **BY_TOKEN)
    return [{**one, **two} for one, two in zip(plain, implicit, strict=True)]


BY_TOKEN = {"stage": "simpo", "pref_beta": 1.0}
"""Has `danlu eval` tell log-probabilities without a reference; its margin is then their difference per token."""
BEFORE = {"reward_model": untrained_head, "dpo": untrained_model}
AFTER = {"reward_model": reward_model, "dpo": tuned_model}

Column = Callable[[Mapping[str, float]], float]
COLUMNS: Mapping[str, Mapping[str, Column]] = {
    "reward_model": {
        "accuracy": lambda row: row["accuracy"],
        "margin": lambda row: row["margin"],
    },
    "dpo": {
        "per_token_accuracy": lambda row: row["accuracy"],
        "per_token_margin": lambda row: row["margin"],
        "whole_answer_accuracy": lambda row: float(row["logps_chosen"] > row["logps_rejected"]),
        "whole_answer_margin": lambda row: row["logps_chosen"] - row["logps_rejected"],
        "better_answer": lambda row: row["logps_chosen"],
        "worse_answer": lambda row: row["logps_rejected"],
    },
}
"""What is compared before and after."""
ONLY_AFTER: Mapping[str, Mapping[str, Column]] = {
    "reward_model": {},
    "dpo": {
        "implicit_reward_accuracy": lambda row: row["implicit_accuracy"],
        "implicit_reward_margin": lambda row: row["implicit_margin"],
    },
}
"""What is 0 for every pair before training."""


def measured(place: Path, **named: Any) -> Rows:
    """`danlu eval` on the held-out pairs."""
    danlu.evaluate(dataset=str(HELD_OUT), output_dir=str(place), **named)
    return read(place / "eval_rows.jsonl")


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def score(values: Sequence[float], name: str) -> dict[str, Any]:
    """A mean with its 95 % interval: Wilson's for a share, a bootstrap otherwise."""
    n, total = len(values), sum(values)
    found = wilson_interval(round(total), n) if name.endswith("accuracy") else bootstrap_interval(values)
    return {"value": total / n, "low": found.low, "high": found.high, "interval": found.method, "n": n}


def compared(before: Sequence[float], after: Sequence[float], name: str) -> dict[str, Any]:
    """Two means on the same pairs, and a paired test of their difference."""
    difference = paired_difference(before, after, yes_or_no=name.endswith("accuracy"))
    return {"before": score(before, name), "after": score(after, name), "difference": asdict(difference)}


def longer_wins(pairs: Sequence[Mapping[str, str]]) -> list[float]:
    """What a judge that only counts characters would get right."""
    return [float(len(pair["chosen"]) > len(pair["rejected"])) for pair in pairs]


def language(pair: Mapping[str, str]) -> str:
    """The language of a question."""
    return "zh" if any("一" <= letter <= "鿿" for letter in pair["instruction"]) else "en"


def by(key: Callable[[Mapping[str, str]], str], pairs: Sequence[Mapping[str, str]], right: Sequence[float]) -> Any:
    """Accuracy within groups of pairs."""
    groups: dict[str, list[float]] = {}
    for pair, value in zip(pairs, right, strict=True):
        groups.setdefault(key(pair), []).append(value)
    return {name: score(groups[name], "accuracy") for name in sorted(groups)}


def shown(found: Mapping[str, Any], name: str) -> str:
    """A score as the READMEs show it: a share in percent, other numbers with two digits, the interval in brackets."""
    unit, digits, mark = (100, 1, " %") if name.endswith("accuracy") else (1, 2, "")
    value, low, high = (f"{unit * found[key]:.{digits}f}" for key in ("value", "low", "high"))
    return f"{value}{mark} [{low}, {high}]"


def run(name: str, runs: Path, **options: Any) -> dict[str, Any]:
    """Train and measure an example.

    Args:
        name: of its YAML file.
        runs: folder for its runs.
        options: changes to that file.

    Returns:
        What is recorded.
    """
    started, cpu = time.monotonic(), time.process_time()
    config = HERE / f"{name}.yaml"
    options = {"overwrite_output_dir": True, **options}
    before = BEFORE[name](config, runs / f"{name}-before", options)
    trained, cpu_trained = time.monotonic(), time.process_time()
    folder = danlu.train(config, output_dir=str(runs / name), **options)
    trained, cpu_trained = time.monotonic() - trained, time.process_time() - cpu_trained
    after = AFTER[name](folder)
    every = read(HELD_OUT)
    pairs = [every[int(row["index"])] for row in after]
    columns = {key: ([of(row) for row in before], [of(row) for row in after]) for key, of in COLUMNS[name].items()}
    only = {key: [of(row) for row in after] for key, of in ONLY_AFTER[name].items()}
    right = next(iter(only.values()), next(iter(columns.values()))[1])
    return {
        "name": name,
        "command": f"python examples/run.py {name}",
        "seed": RunDirectory(folder).read_config(TrainConfig).compute.seed,
        "n": len(after),
        "scores": {
            **{key: compared(*values, key) for key, values in columns.items()},
            **{key: {"after": score(values, key)} for key, values in only.items()},
        },
        "longer_wins": {**score(longer_wins(pairs), "accuracy"), "test": against(longer_wins(pairs), right)},
        "by_language": by(language, pairs, right),
        "by_defect": by(lambda pair: pair["defect"], pairs, right),
        "data": {path.name: sha256(path) for path in (HERE / "data" / "pairs.jsonl", HELD_OUT)},
        "rows": sum(source.rows for source in RunDirectory(folder).read_manifest().data),
        "seconds": {"training": round(trained), "all": round(time.monotonic() - started)},
        "cpu_seconds": {"training": round(cpu_trained), "all": round(time.process_time() - cpu)},
        **conditions(),
    }


def against(baseline: Sequence[float], right: Sequence[float]) -> dict[str, Any]:
    """The paired test of a model against a baseline on the same pairs."""
    return asdict(paired_difference(baseline, right, yes_or_no=True))


if __name__ == "__main__":
    main(__doc__, sorted(BEFORE), run)
