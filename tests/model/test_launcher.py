"""`danlu train nproc=2` as users start it: processes that are killed or interrupted, and two machines on one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import Child, free_port, together
from tuning import losses, tune, write_rows

from danlu.__main__ import main as app

pytestmark = pytest.mark.model

OPTIONS: dict[str, Any] = {
    "finetuning_type": "lora",
    "per_device_train_batch_size": 2,
    "num_train_epochs": 40,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "save_steps": 4,
    "cutoff_len": 128,
}


def command(model: Path, data: Path, output: Path, **options: Any) -> list[str]:
    """What a user types behind `danlu`."""
    named = {"model_name_or_path": model, "dataset": data, "output_dir": output, **OPTIONS, **options}
    return ["train", *(f"{key}={value}" for key, value in named.items())]


def start(words: list[str], log: Path) -> Child:
    """A command of a user, on its own terminal as it were; only its workers have to import everything anew."""
    return Child(lambda: app(words), log)


def until(done: Callable[[], bool], child: Child) -> None:
    """Wait for something that the process does."""
    deadline = time.monotonic() + 200
    while not done():
        assert child.running(), child.log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def workers_of(launcher: int) -> dict[int, int]:
    """rank → process id of the workers of a launcher that are alive."""
    found: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            variables = dict(part.split("=", 1) for part in entry.read_text().split("\0") if "=" in part)
        except OSError:
            continue
        if variables.get("DANLU_LAUNCHER") == str(launcher):
            found[int(variables["RANK"])] = int(entry.parent.name)
    return found


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", count=13)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")
def test_killed_then_interrupted_then_finished(model: Path, data: Path, tmp_path: Path) -> None:
    run, logs = tmp_path / "run", [tmp_path / name for name in ("killed", "interrupted", "finished")]
    words = command(model, data, run, nproc=2)
    launcher = start(words, logs[0])
    until((run / "checkpoint-4").exists, launcher)
    os.kill(workers_of(launcher.pid)[1], signal.SIGKILL)
    assert launcher.wait() == 1
    told = logs[0].read_text()
    assert "rank-1.log: rank 1 was ended by SIGKILL" in told
    assert "The end of its log:\n  ready after" in told
    assert told.count("error:") == 1
    assert "Traceback" not in told
    assert not workers_of(launcher.pid)

    launcher = start(words, logs[1])
    lines = len((run / "trainer_log.jsonl").read_text().splitlines())
    until(lambda: len((run / "trainer_log.jsonl").read_text().splitlines()) > lines + 2, launcher)
    os.kill(launcher.pid, signal.SIGINT)
    assert launcher.wait() == 1
    told = logs[1].read_text()
    assert "resuming from" in told
    assert "as you asked; it is saved" in told
    assert told.count("error:") == 1
    assert not workers_of(launcher.pid)

    finished = {**OPTIONS, "save_strategy": "no"}
    assert together(2, lambda rank: tune(model, data, run, **finished), logs[2]) == [0, 0], logs[2].read_text()
    whole = tune(model, data, tmp_path / "whole", **{**finished, "per_device_train_batch_size": 4})
    assert losses(run) == pytest.approx(losses(whole), rel=1e-3)


def test_two_machines(model: Path, data: Path, tmp_path: Path) -> None:
    options = {"num_train_epochs": 1, "nnodes": 2, "master_port": free_port(), "master_addr": "127.0.0.1"}
    run = tmp_path / "run"
    logs = [tmp_path / f"machine-{number}" for number in (0, 1)]
    machines = [start(command(model, data, run, node_rank=number, **options), logs[number]) for number in (1, 0)]
    codes = [machine.wait() for machine in machines]
    first, second = (log.read_text() for log in logs)
    assert codes == [0, 0], first + second
    assert "train metrics" in first
    assert "train metrics" not in second
    assert sorted(file.name for file in (run / "logs").iterdir()) == ["rank-0.log", "rank-1.log"]
    whole = {**OPTIONS, "num_train_epochs": 1, "per_device_train_batch_size": 4}
    assert losses(run) == pytest.approx(losses(tune(model, data, tmp_path / "whole", **whole)), rel=1e-4)


def test_an_error_before_the_start_is_said_once(data: Path, tmp_path: Path) -> None:
    words = command(tmp_path / "nothing", data, tmp_path / "run", nproc=2)
    begun = [sys.executable, "-m", "danlu", *words]
    done = subprocess.run(begun, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.count("error:") == 1
    assert not (tmp_path / "run" / "logs").exists()
