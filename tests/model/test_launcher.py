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
from processes import free_port, together
from tuning import losses, tune, write_rows

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


def start(model: Path, data: Path, output: Path, **options: Any) -> subprocess.Popen[str]:
    """A command of a user, on its own terminal as it were."""
    named = {"model_name_or_path": model, "dataset": data, "output_dir": output, **OPTIONS, **options}
    words = [sys.executable, "-m", "danlu", "train", *(f"{key}={value}" for key, value in named.items())]
    return subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def until(done: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait for something that the process does."""
    deadline = time.monotonic() + 200
    while not done():
        assert process.poll() is None, process.communicate()
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
def test_killed_then_interrupted_then_finished(tiny_models: dict[str, Path], data: Path, tmp_path: Path) -> None:
    model, run = tiny_models["llama"], tmp_path / "run"
    launcher = start(model, data, run, nproc=2)
    until((run / "checkpoint-4").exists, launcher)
    os.kill(workers_of(launcher.pid)[1], signal.SIGKILL)
    _, told = launcher.communicate(timeout=60)
    assert launcher.returncode == 1
    assert "rank-1.log: rank 1 was ended by SIGKILL" in told
    assert "The end of its log:\n  ready after" in told
    assert told.count("error:") == 1
    assert "Traceback" not in told
    assert not workers_of(launcher.pid)

    launcher = start(model, data, run, nproc=2)
    lines = len((run / "trainer_log.jsonl").read_text().splitlines())
    until(lambda: len((run / "trainer_log.jsonl").read_text().splitlines()) > lines + 2, launcher)
    launcher.send_signal(signal.SIGINT)
    _, told = launcher.communicate(timeout=60)
    assert launcher.returncode == 1
    assert "resuming from" in told
    assert "as you asked; it is saved" in told
    assert told.count("error:") == 1
    assert not workers_of(launcher.pid)

    log = tmp_path / "log"
    assert together(2, lambda rank: tune(model, data, run, **OPTIONS), log) == [0, 0], log.read_text()
    whole = tune(model, data, tmp_path / "whole", **{**OPTIONS, "per_device_train_batch_size": 4})
    assert losses(run) == pytest.approx(losses(whole), rel=1e-3)


def test_two_machines(tiny_models: dict[str, Path], data: Path, tmp_path: Path) -> None:
    options = {"num_train_epochs": 1, "nnodes": 2, "master_port": free_port(), "master_addr": "127.0.0.1"}
    run = tmp_path / "run"
    machines = [start(tiny_models["llama"], data, run, node_rank=number, **options) for number in (1, 0)]
    told = [machine.communicate(timeout=200)[1] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], told
    assert "train metrics" in told[1]
    assert "train metrics" not in told[0]
    assert sorted(file.name for file in (run / "logs").iterdir()) == ["rank-0.log", "rank-1.log"]
    whole = {**OPTIONS, "num_train_epochs": 1, "per_device_train_batch_size": 4}
    assert losses(run) == pytest.approx(losses(tune(tiny_models["llama"], data, tmp_path / "whole", **whole)), rel=1e-4)


def test_an_error_before_the_start_is_said_once(data: Path, tmp_path: Path) -> None:
    launcher = start(tmp_path / "nothing", data, tmp_path / "run", nproc=2)
    _, told = launcher.communicate(timeout=60)
    assert launcher.returncode == 1
    assert told.count("error:") == 1
    assert not (tmp_path / "run" / "logs").exists()
