"""Run an example that learns from its own answers, measure it before and after, and record the numbers.

    python examples/rewards.py grpo
    python examples/rewards.py ppo

Measured are the likeliest answers to questions that were not trained on. It is run from the repository.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import danlu
from danlu.core.config import build, read_yaml
from danlu.core.events import read_events
from danlu.core.files import sha256
from danlu.core.manifest import installed_versions
from danlu.data.schema import Conversation, Message
from danlu.evaluate.statistics import bootstrap_interval, paired_difference
from danlu.tune.config import TrainConfig
from danlu.tune.online.rewards import open_rewards
from danlu.tune.online.samples import Sample

HERE = Path(__file__).resolve().parent
NAMES = ("grpo", "ppo")
PACKAGES = ("danlu", "torch", "transformers", "peft")
TOLD = ("reward", "kl", "entropy", "length")
"""What is recorded of every rollout."""


def answers(place: Path, config: TrainConfig, **named: Any) -> list[Sample]:
    """The likeliest answers to the held-out questions, as rewards see them."""
    options = {"max_new_tokens": config.generate.max_new_tokens, "bf16": config.compute.bf16}
    file = danlu.predict(dataset=config.data.eval_dataset[0], output_dir=str(place), **options, **named)
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [Sample(Conversation((Message("user", row["prompt"]),)), row["predict"], row["label"]) for row in rows]


def score(values: Sequence[float]) -> dict[str, Any]:
    """A mean with its 95 % bootstrap interval."""
    found = bootstrap_interval(values)
    return {"value": sum(values) / len(values), "low": found.low, "high": found.high, "n": len(values)}


def run(name: str, runs: Path) -> dict[str, Any]:
    """Train and measure an example; what is recorded."""
    started, path = time.monotonic(), HERE / f"{name}.yaml"
    config = build(TrainConfig, read_yaml(path), where=str(path))
    rewards = open_rewards(config.rollout.reward_funcs, config.rollout.reward_weights)
    untrained = answers(runs / f"{name}-before", config, model=config.model.model_name_or_path)
    trained = time.monotonic()
    folder = danlu.train(path, output_dir=str(runs / name), overwrite_output_dir=True)
    trained = time.monotonic() - trained
    tuned = answers(folder, config, run=folder)
    before, after = rewards.score(untrained), rewards.score(tuned)
    columns = {"reward": (before.total, after.total)}
    columns |= {label: (before.parts[label], after.parts[label]) for label in before.parts}
    columns["characters"] = ([float(len(s.answer)) for s in untrained], [float(len(s.answer)) for s in tuned])
    curve = [event for event in read_events(folder / "events.jsonl", "log") if "reward" in event]
    return {
        "name": name,
        "command": f"python examples/rewards.py {name}",
        "seed": config.compute.seed,
        "n": len(tuned),
        "scores": {
            key: {"before": score(one), "after": score(two), "difference": asdict(paired_difference(one, two))}
            for key, (one, two) in columns.items()
        },
        "rollouts": [{"step": event["step"], **{key: round(event[key], 4) for key in TOLD}} for event in curve],
        "data": {Path(file).name: sha256(Path(file)) for file in (*config.data.dataset, *config.data.eval_dataset)},
        "seconds": {"training": round(trained), "all": round(time.monotonic() - started)},
        "versions": {**installed_versions(PACKAGES), "python": platform.python_version()},
        "machine": f"{platform.machine()}, {platform.system()}, {os.cpu_count()} cores, no GPU",
    }


def main() -> None:
    """Run the example that is named and write its result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder for the runs (default: runs)")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder for the result")
    words = parser.parse_args()
    words.results.mkdir(parents=True, exist_ok=True)
    text = json.dumps(run(words.name, words.runs), indent=2, ensure_ascii=False)
    (words.results / f"{words.name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
