"""Run an example that learns from its own answers, measure it before and after, and record the numbers.

    python examples/rewards.py grpo
    python examples/rewards.py ppo

Measured are the likeliest answers to questions that were not trained on. It is run from the repository.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from record import HERE, conditions, main

import danlu
from danlu.core.config import build, read_yaml
from danlu.core.events import read_events
from danlu.core.files import sha256
from danlu.data.schema import Conversation, Message
from danlu.evaluate.statistics import bootstrap_interval, paired_difference
from danlu.tune.config import TrainConfig
from danlu.tune.online.rewards import open_rewards
from danlu.tune.online.samples import Sample

NAMES = ("grpo", "ppo")
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
        **conditions(),
    }


if __name__ == "__main__":
    main(__doc__, NAMES, run)
