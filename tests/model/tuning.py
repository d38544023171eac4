"""Small trainings: a file of rows, options that take a second, and what to compare of two runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from danlu.verbs.train import train

QUICK = {
    "per_device_train_batch_size": 4,
    "num_train_epochs": 2,
    "learning_rate": 5e-3,
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "save_strategy": "no",
    "cutoff_len": 128,
}
CLOCK = ("elapsed_time", "remaining_time", "throughput")


class Killed(BaseException):
    """Stands for a process that is gone: nothing in the package may handle it."""


def write_rows(path: Path, count: int = 14, start: int = 0) -> Path:
    """Alpaca rows of different lengths."""
    rows = [
        {"instruction": f"What is number {n}?" + " Tell me." * (n % 3), "input": "", "output": f"It is {n * 7 % 10}."}
        for n in range(start, start + count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def tune(model: Path, data: Path, output: Path, **options: Any) -> Path:
    """Train with quick options; the run directory."""
    named = {"model_name_or_path": str(model), "dataset": str(data), "output_dir": str(output)}
    return train({**QUICK, **named, **options})


def history(run: Path) -> list[dict[str, Any]]:
    """Everything that was logged, without the clock."""
    state = json.loads((run / "trainer_state.json").read_text())
    return [
        {key: value for key, value in entry.items() if not key.startswith("train_") or key == "train_loss"}
        for entry in state["log_history"]
    ]


def log_lines(run: Path) -> list[dict[str, Any]]:
    """trainer_log.jsonl without the clock."""
    lines = (run / "trainer_log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in CLOCK} for line in lines]


def losses(run: Path) -> list[float]:
    """The training losses in order."""
    return [entry["loss"] for entry in history(run) if "loss" in entry]


def weights(folder: Path) -> dict[str, Any]:
    """Every tensor of the safetensors files in a folder."""
    from safetensors.torch import load_file

    found: dict[str, Any] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= {f"{file.name}:{name}": value for name, value in load_file(file).items()}
    return found


def assert_same_weights(first: Path, second: Path) -> None:
    """Bit for bit."""
    import torch

    one, two = weights(first), weights(second)
    assert one.keys() == two.keys()
    assert one
    for name, value in one.items():
        assert torch.equal(value, two[name]), name


def assert_same_run(first: Path, second: Path) -> None:
    """The same losses, logs, results and weights."""
    assert history(first) == history(second)
    assert log_lines(first) == log_lines(second)
    results = [json.loads((run / "train_results.json").read_text()) for run in (first, second)]
    assert results[0]["train_loss"] == results[1]["train_loss"]
    assert_same_weights(first, second)
