"""A run that was killed and started again is the run that was never killed, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tuning import Killed, assert_same_run, log_lines, tune

from danlu.core.errors import RunError
from danlu.tune.callbacks import Recorder
from danlu.tune.trainer import DanluTrainer

pytestmark = pytest.mark.model

HARD = {
    "num_train_epochs": 3,
    "gradient_accumulation_steps": 3,  # 14 rows in 7 batches: the third step of an epoch has one batch
    "per_device_train_batch_size": 2,
    "logging_steps": 2,
    "save_strategy": "steps",
    "save_steps": 3,
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.3,
    "weight_decay": 0.01,
}
CASES: dict[str, dict[str, Any]] = {
    "full": {"finetuning_type": "full"},
    "freeze": {"finetuning_type": "freeze", "freeze_trainable_layers": 1},
    "freeze-bf16": {"finetuning_type": "freeze", "freeze_trainable_layers": 1, "bf16": True},
    "lora": {"finetuning_type": "lora", "lora_dropout": 0.2},
    "lora-bf16": {"finetuning_type": "lora", "bf16": True},
    "p_tuning_v2": {"finetuning_type": "p_tuning_v2", "pre_seq_len": 4, "prefix_dropout": 0.1},
    "projection": {"finetuning_type": "p_tuning_v2", "pre_seq_len": 4, "prefix_projection": True},
    "adalora": {"finetuning_type": "adalora", "adalora_init_r": 6, "adalora_target_r": 2, "adalora_tfinal": 3}
    | {"lora_target": "q_proj, v_proj", "lora_dropout": 0.1},
    "pissa": {"pissa_init": True, "lora_rank": 2, "lora_target": "q_proj"},
    "p_tuning": {"finetuning_type": "p_tuning", "pre_seq_len": 4, "encoder_reparameterization_type": "lstm"}
    | {"encoder_hidden_size": 16, "encoder_dropout": 0.1, "prefix_dropout": 0.1},
    "adapter": {"finetuning_type": "adapter", "adapter_length": 8, "adapter_dropout": 0.1},
    "packing": {"finetuning_type": "lora", "packing": True, "cutoff_len": 64, "per_device_train_batch_size": 1},
    "evaluation": {"finetuning_type": "lora", "lora_dropout": 0.2, "val_size": 2, "eval_strategy": "steps"}
    | {"eval_steps": 1, "per_device_eval_batch_size": 2, "num_train_epochs": 4},
    "epochs": {"finetuning_type": "lora", "val_size": 3, "eval_strategy": "epoch", "logging_strategy": "epoch"}
    | {"gradient_accumulation_steps": 2},
    "neftune": {"finetuning_type": "freeze", "freeze_trainable_layers": 1, "neftune_noise_alpha": 5.0},
}


@contextmanager
def killed_at(monkeypatch: pytest.MonkeyPatch, step: int) -> Iterator[None]:
    """The process dies at the end of a step, before anything of that step is saved."""
    own = Recorder.on_step_end

    def on_step_end(self: Any, args: Any, state: Any, control: Any, **rest: Any) -> None:
        own(self, args, state, control, **rest)
        if state.global_step == step:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "on_step_end", on_step_end)
        with pytest.raises(Killed):
            yield


@pytest.mark.parametrize("case", CASES)
def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    case: str, tiny_models: dict[str, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**HARD, **CASES[case]}
    whole = tune(tiny_models["llama"], data, tmp_path / "whole", **options)
    steps = log_lines(whole)[-1]["current_steps"]
    assert steps > 6
    for step in (2, 4, steps - 1):  # before the first checkpoint, after it, and near the end
        with killed_at(monkeypatch, step):
            tune(tiny_models["llama"], data, tmp_path / "again", **options)
    again = tune(tiny_models["llama"], data, tmp_path / "again", **options)
    assert_same_run(whole, again)


@pytest.mark.parametrize("place", ["_save_optimizer_and_scheduler", "_save_rng_state", "on_save"])
def test_killed_while_writing_a_checkpoint(
    place: str, tiny_models: dict[str, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**HARD, "finetuning_type": "lora", "lora_dropout": 0.2}
    whole = tune(tiny_models["qwen2"], data, tmp_path / "whole", **options)
    owner = Recorder if place == "on_save" else DanluTrainer
    own = getattr(owner, place)

    def die(self: Any, *args: Any, **rest: Any) -> Any:
        state = args[1] if place == "on_save" else self.state
        if state.global_step == 6:
            raise Killed
        return own(self, *args, **rest)

    with monkeypatch.context() as patch:
        patch.setattr(owner, place, die)
        with pytest.raises(Killed):
            tune(tiny_models["qwen2"], data, tmp_path / "again", **options)
    half_written = (tmp_path / "again" / ".saving-6").exists()
    assert half_written == (place != "on_save")
    assert (tmp_path / "again" / "checkpoint-6").exists() == (not half_written)
    again = tune(tiny_models["qwen2"], data, tmp_path / "again", **options)
    assert_same_run(whole, again)
    assert not list(again.glob(".saving-*"))


@pytest.mark.parametrize("schedule", ["steps", "epoch"])
def test_ctrl_c_saves_and_says_how_to_go_on(
    schedule: str, tiny_models: dict[str, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {**HARD, "finetuning_type": "lora", "lora_dropout": 0.1, "save_only_model": True}
    options |= {"val_size": 3, "eval_strategy": schedule, "logging_strategy": schedule, "save_strategy": schedule}
    options |= {"gradient_accumulation_steps": 1, "eval_steps": 3}
    whole = tune(tiny_models["llama"], data, tmp_path / "whole", **options)
    own = Recorder.on_step_end

    def on_step_end(self: Any, args: Any, state: Any, control: Any, **rest: Any) -> None:
        own(self, args, state, control, **rest)
        if state.global_step == 4:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "on_step_end", on_step_end)
        with pytest.raises(RunError, match=r"stopped at step 4 of \d+ as you asked; it is saved.*same command again"):
            tune(tiny_models["llama"], data, tmp_path / "again", **options)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert (tmp_path / "again" / "checkpoint-4" / "optimizer.pt").is_file()
    assert not (tmp_path / "again" / "adapter_model.safetensors").exists()
    again = tune(tiny_models["llama"], data, tmp_path / "again", **options)
    assert_same_run(whole, again)


def test_ctrl_c_in_the_last_step_finishes_the_run(
    tiny_models: dict[str, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Recorder.on_step_end

    def on_step_end(self: Any, args: Any, state: Any, control: Any, **rest: Any) -> None:
        own(self, args, state, control, **rest)
        if state.global_step == state.max_steps:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Recorder, "on_step_end", on_step_end)
    run = tune(tiny_models["llama"], data, tmp_path / "run", max_steps=2)
    assert (run / "adapter_model.safetensors").is_file()
    assert (run / "train_results.json").is_file()


def test_kill_minus_nine(tiny_models: dict[str, Path], data: Path, tmp_path: Path) -> None:
    options = {**HARD, "finetuning_type": "lora", "lora_dropout": 0.1, "num_train_epochs": 12, "save_steps": 4}
    whole = tune(tiny_models["llama"], data, tmp_path / "whole", **options)
    words = [f"{key}={value}" for key, value in options.items()]
    command = [sys.executable, "-m", "danlu", "train", f"model_name_or_path={tiny_models['llama']}"]
    command += [f"dataset={data}", f"output_dir={tmp_path / 'again'}", "cutoff_len=128", "learning_rate=5e-3", *words]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "again" / "trainer_log.jsonl"
    deadline = time.monotonic() + 120
    while process.poll() is None and not (log.exists() and log.read_text().count("\n") >= 8):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    _, told = process.communicate()
    assert process.returncode == -signal.SIGKILL, told
    again = tune(tiny_models["llama"], data, tmp_path / "again", **options)
    assert_same_run(whole, again)
    assert not list(again.glob(".saving-*"))


def test_a_finished_run_started_again_changes_nothing(tiny_models: dict[str, Path], data: Path, tmp_path: Path) -> None:
    options = {**HARD, "finetuning_type": "freeze"}
    whole = tune(tiny_models["llama"], data, tmp_path / "whole", **options)
    again = tune(tiny_models["llama"], data, tmp_path / "again", **options)
    again = tune(tiny_models["llama"], data, tmp_path / "again", **options)
    assert_same_run(whole, again)


def test_a_checkpoint_of_another_run_can_be_named(tiny_models: dict[str, Path], data: Path, tmp_path: Path) -> None:
    options = {**HARD, "finetuning_type": "lora"}
    whole = tune(tiny_models["llama"], data, tmp_path / "whole", **options)
    checkpoint = str(whole / "checkpoint-3")
    again = tune(tiny_models["llama"], data, tmp_path / "again", resume_from_checkpoint=checkpoint, **options)
    assert json.loads((again / "train_results.json").read_text())["train_loss"] == pytest.approx(
        json.loads((whole / "train_results.json").read_text())["train_loss"], abs=0
    )
    with pytest.raises(RunError, match="no checkpoint that training can go on from"):
        tune(tiny_models["llama"], data, tmp_path / "third", resume_from_checkpoint=str(tmp_path), **options)
    assert not (tmp_path / "third").exists()


def test_early_stopping_counts_across_a_restart(
    tiny_models: dict[str, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**HARD, "finetuning_type": "lora", "learning_rate": 0.5, "lr_scheduler_type": "constant"}
    options |= {"val_size": 3, "eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "num_train_epochs": 20}
    options |= {"early_stopping_steps": 4, "warmup_ratio": 0}
    whole = tune(tiny_models["llama"], data, tmp_path / "whole", **options)
    stopped = log_lines(whole)[-1]["current_steps"]
    assert stopped < log_lines(whole)[-1]["total_steps"]
    with killed_at(monkeypatch, stopped - 1):
        tune(tiny_models["llama"], data, tmp_path / "again", **options)
    again = tune(tiny_models["llama"], data, tmp_path / "again", **options)
    assert_same_run(whole, again)
