"""The options people rely on: evaluation on the way, best checkpoints, schedules, precision, trackers."""

from __future__ import annotations

import json
import math
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tuning import history, log_lines, losses, tune, weights, write_rows

from danlu.core.errors import ConfigError, UsageError
from danlu.core.run import RunDirectory
from danlu.tune.session import Session
from danlu.tune.tally import Tally

pytestmark = pytest.mark.model


def checkpoints(run: Path) -> list[int]:
    return [int(path.name.split("-")[1]) for path in RunDirectory(run).checkpoints()]


def evaluations(run: Path) -> list[dict[str, Any]]:
    return [entry for entry in history(run) if "eval_loss" in entry]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"save_strategy": "steps", "save_steps": 3}, [3, 6, 8]),
        ({"save_strategy": "steps", "save_steps": 0.5}, [4, 8]),
        ({"save_strategy": "epoch"}, [4, 8]),
        ({"save_strategy": "no"}, []),
        ({"save_strategy": "steps", "save_steps": 2, "save_total_limit": 2}, [6, 8]),
        ({"save_strategy": "steps", "save_steps": 2, "save_total_limit": 1, "max_steps": 5}, [5]),
    ],
)
def test_when_checkpoints_are_written(
    options: dict[str, Any], expected: list[int], model: Path, data: Path, tmp_path: Path
) -> None:
    run = tune(model, data, tmp_path / "run", **options)
    assert checkpoints(run) == expected
    for step in expected:
        manifest = json.loads((run / f"checkpoint-{step}" / "manifest.json").read_text())
        assert manifest["step"] == step
        assert (run / f"checkpoint-{step}" / "optimizer.pt").exists()


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"logging_steps": 3}, [3, 6]),
        ({"logging_steps": 0.25}, [2, 4, 6, 8]),
        ({"logging_strategy": "epoch"}, [4, 8]),
        ({"logging_steps": 5, "logging_first_step": True}, [1, 5]),
        ({"logging_strategy": "no"}, []),
    ],
)
def test_when_the_loss_is_logged(
    options: dict[str, Any], steps: list[int], model: Path, data: Path, tmp_path: Path
) -> None:
    run = tune(model, data, tmp_path / "run", **options)
    assert [line["current_steps"] for line in log_lines(run) if "loss" in line] == steps


def test_logged_losses_are_means_of_the_steps(model: Path, data: Path, tmp_path: Path) -> None:
    each = losses(tune(model, data, tmp_path / "each"))
    every_third = losses(tune(model, data, tmp_path / "third", logging_steps=3))
    assert every_third == pytest.approx([sum(each[:3]) / 3, sum(each[3:6]) / 3], rel=1e-6)
    results = json.loads((tmp_path / "third" / "train_results.json").read_text())
    assert results["train_loss"] == pytest.approx(sum(each) / len(each), rel=1e-6)


def test_schedule_and_steps_are_those_of_the_plan(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = []
    own = Session.plan
    monkeypatch.setattr(Session, "plan", lambda self, members: plans.append(own(self, members)) or plans[-1])
    options = {"gradient_accumulation_steps": 3, "num_train_epochs": 2.5, "warmup_ratio": 0.4}
    run = tune(model, data, tmp_path / "run", **options, lr_scheduler_type="cosine", learning_rate=1e-3)
    lines = [line for line in log_lines(run) if "loss" in line]
    assert plans[0].steps == lines[-1]["total_steps"] == len(lines) == 5
    assert plans[0].batch == 12
    rates = [line["lr"] for line in lines]
    expected = [0.0, 0.5, 1.0] + [0.5 * (1 + math.cos(math.pi * k / 3)) for k in (1, 2)]
    assert rates == pytest.approx([1e-3 * rate for rate in expected], rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("schedule", ["linear", "constant_with_warmup", "polynomial", "cosine_with_restarts"])
def test_schedules(schedule: str, model: Path, data: Path, tmp_path: Path) -> None:
    rates = [
        line["lr"]
        for line in log_lines(tune(model, data, tmp_path / "run", lr_scheduler_type=schedule, warmup_steps=2))
        if "lr" in line
    ]
    assert rates[0] < rates[1] < rates[2] == max(rates)


def test_accumulation_is_the_large_batch(model: Path, data: Path, tmp_path: Path) -> None:
    large = tune(model, data, tmp_path / "large", per_device_train_batch_size=4, finetuning_type="full")
    small = tune(
        model,
        data,
        tmp_path / "small",
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        finetuning_type="full",
    )
    assert losses(small) == pytest.approx(losses(large), rel=1e-4)


EVALUATE = {"val_size": 4, "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}


def test_the_best_checkpoint_is_the_result(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted = chain([5.0, 2.0], repeat(3.0))  # which step is best must not hang on rounding
    monkeypatch.setattr("danlu.tune.evaluation._of_one", lambda *_: (next(scripted), 1.0, Tally()))
    options = {**EVALUATE, "num_train_epochs": 4, "save_total_limit": 1}
    run = tune(model, data, tmp_path / "run", load_best_model_at_end=True, **options)
    found = {entry["step"]: entry["eval_loss"] for entry in evaluations(run)}
    best = min(found, key=found.__getitem__)
    assert best < max(found)
    state = json.loads((run / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(run / f"checkpoint-{best}")
    assert best in checkpoints(run)
    kept, final = weights(run / f"checkpoint-{best}"), weights(run)
    assert all(torch.equal(kept[name], final[name]) for name in final)


@pytest.mark.parametrize("method", ["full", "freeze", "p_tuning_v2"])
def test_the_best_of_other_methods(method: str, model: Path, data: Path, tmp_path: Path) -> None:
    options = {**EVALUATE, "learning_rate": 0.3, "finetuning_type": method, "load_best_model_at_end": True}
    run = tune(model, data, tmp_path / "run", **options)
    found = {entry["step"]: entry["eval_loss"] for entry in evaluations(run)}
    kept, final = weights(run / f"checkpoint-{min(found, key=found.__getitem__)}"), weights(run)
    assert all(torch.equal(kept[name], final[name]) for name in final)


def test_early_stopping(model: Path, data: Path, tmp_path: Path) -> None:
    options = {**EVALUATE, "learning_rate": 0.5, "num_train_epochs": 20, "early_stopping_steps": 2}
    run = tune(model, data, tmp_path / "run", **options)
    found = [entry["eval_loss"] for entry in evaluations(run)]
    assert len(found) < 20
    assert found.index(min(found)) == len(found) - 3


def test_generated_answers_on_the_way(model: Path, data: Path, tmp_path: Path) -> None:
    options = {**EVALUATE, "predict_with_generate": True, "max_new_tokens": 4, "max_steps": 2}
    options |= {"metric_for_best_model": "rouge-l", "load_best_model_at_end": True}
    run = tune(model, data, tmp_path / "run", **options)
    for entry in evaluations(run):
        assert 0 <= entry["eval_rouge-l"] <= 100
        assert {"eval_bleu-4", "eval_rouge-1", "eval_rouge-2"} < set(entry)
    state = json.loads((run / "trainer_state.json").read_text())
    assert state["best_metric"] == max(entry["eval_rouge-l"] for entry in evaluations(run))
    without = tune(model, data, tmp_path / "without", max_steps=2, val_size=4)
    assert losses(run) == losses(without)  # looking does not change the training


@pytest.mark.parametrize("method", ["freeze", "p_tuning_v2"])
def test_generated_answers_of_other_methods(method: str, model: Path, data: Path, tmp_path: Path) -> None:
    options = {**EVALUATE, "predict_with_generate": True, "max_new_tokens": 3, "max_steps": 2}
    run = tune(model, data, tmp_path / "run", finetuning_type=method, gradient_checkpointing=True, **options)
    assert len(evaluations(run)) == 2
    assert losses(run) == losses(
        tune(
            model,
            data,
            tmp_path / "without",
            finetuning_type=method,
            max_steps=2,
            val_size=4,
            gradient_checkpointing=True,
        )
    )


@pytest.mark.parametrize("each", [False, True])
def test_several_evaluation_sets(each: bool, model: Path, data: Path, tmp_path: Path) -> None:
    one, two = write_rows(tmp_path / "one.jsonl", 2, 100), write_rows(tmp_path / "two.jsonl", 5, 200)
    sets = {"eval_dataset": f"{one}, {two}", "eval_on_each_dataset": each, "load_best_model_at_end": True}
    run = tune(model, data, tmp_path / "run", **{**EVALUATE, "val_size": 0, "max_steps": 2}, **sets)
    entry = evaluations(run)[0]
    names = {key for key in entry if key.endswith("_loss")}
    assert names == ({"eval_loss", "eval_one_loss", "eval_two_loss"} if each else {"eval_loss"})
    if each:
        assert min(entry["eval_one_loss"], entry["eval_two_loss"]) < entry["eval_loss"]
        assert max(entry["eval_one_loss"], entry["eval_two_loss"]) > entry["eval_loss"]
    else:
        assert [e["eval_loss"] for e in evaluations(run)] == pytest.approx(
            [
                e["eval_loss"]
                for e in evaluations(
                    tune(
                        model,
                        data,
                        tmp_path / "each",
                        **{**EVALUATE, "val_size": 0, "max_steps": 2},
                        **{**sets, "eval_on_each_dataset": True},
                    )
                )
            ]
        )


def test_held_out_rows_are_not_trained_on(model: Path, data: Path, tmp_path: Path) -> None:
    run = tune(model, data, tmp_path / "run", val_size=0.25)
    directory = RunDirectory(run)
    assert len(directory.row_keys()) == 10
    whole = RunDirectory(tune(model, data, tmp_path / "whole")).row_keys()
    assert np.isin(directory.row_keys(), whole).all()
    assert len(whole) == 14


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_size": 14}, "val_size=14 holds out 14 of 14 rows"),
        ({"val_size": 0.01}, "holds out 0 of 14 rows"),
        ({"val_size": 2, "eval_dataset": "x"}, "both name rows"),
        ({"eval_strategy": "steps"}, "eval_dataset"),
        ({**EVALUATE, "metric_for_best_model": "rouge-l"}, "predict_with_generate=true"),
        ({**EVALUATE, "load_best_model_at_end": True, "save_strategy": "epoch"}, "checkpoint at each evaluation"),
        ({**EVALUATE, "load_best_model_at_end": True, "metric_for_best_model": "eval_x_loss"}, "It has loss"),
        ({"trainer": {"lr": 3}}, "TrainingArguments has no argument 'lr'"),
        ({"optim": "adamm"}, "adamm"),
        ({"load_best_model_at_end": True}, "needs eval_strategy"),
        ({"early_stopping_steps": 2}, "needs eval_strategy"),
    ],
)
def test_options_that_make_no_sense(
    options: dict[str, Any], message: str, model: Path, data: Path, tmp_path: Path
) -> None:
    from danlu.core.errors import DanluError

    with pytest.raises(DanluError, match=message) as error:
        tune(model, data, tmp_path / "run", **options)
    assert isinstance(error.value, (UsageError, ConfigError)) or "rows" in message


def scalars(folder: Path) -> dict[str, list[int]]:
    """Tag → the steps that tensorboard reads, from every file in a folder of its own."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder)).Reload()
    return {tag: [event.step for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def test_scalars_arrive_in_tensorboard(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    options = {"report_to": "tensorboard", "val_size": 2, "eval_strategy": "steps", "eval_steps": 1}
    options |= {"save_strategy": "steps", "save_steps": 2}
    run = tune(model, data, tmp_path / "run", max_steps=2, run_name="first try: 5e-3", **options)
    assert [path.name for path in (run / "runs").iterdir()] == ["first-try-5e-3"]
    found = scalars(run / "runs" / "first-try-5e-3")
    assert found["train/loss"] == found["eval/loss"] == found["train/grad_norm"] == [1, 2]
    plain = tune(model, data, tmp_path / "plain", max_steps=1, **options)
    assert [path.name for path in (plain / "runs").iterdir()] == ["plain"]
    assert not list(tmp_path.glob("runs"))


def test_a_place_for_tensorboard_that_was_chosen_is_kept(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "chosen"))
    tune(model, data, tmp_path / "run", report_to="tensorboard", max_steps=1, run_name="x")
    assert scalars(tmp_path / "chosen")["train/loss"] == [1]


def test_neftune_moves_training_only(model: Path, data: Path, tmp_path: Path) -> None:
    plain = tune(model, data, tmp_path / "plain", max_steps=2)
    noisy = tune(model, data, tmp_path / "noisy", max_steps=2, neftune_noise_alpha=5.0)
    assert losses(plain) != losses(noisy)


def test_fp16_on_a_machine_without_gpu(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half = tune(model, data, tmp_path / "half", fp16=True, max_steps=2)
    assert "fp16 needs a GPU; this run uses bf16" in capsys.readouterr().err
    assert losses(half) == losses(tune(model, data, tmp_path / "bf16", bf16=True, max_steps=2))


def test_the_curve_is_drawn(model: Path, data: Path, tmp_path: Path) -> None:
    run = tune(model, data, tmp_path / "run", plot_loss=True, max_steps=3)
    assert (run / "training_loss.png").read_bytes().startswith(b"\x89PNG")


def test_training_in_a_thread(model: Path, data: Path, tmp_path: Path) -> None:
    from threading import Thread

    thread = Thread(target=lambda: tune(model, data, tmp_path / "run", max_steps=1))
    thread.start()
    thread.join()
    assert (tmp_path / "run" / "train_results.json").exists()


def test_lora_plus_moves_the_second_matrix_faster(model: Path, data: Path, tmp_path: Path) -> None:
    plain = weights(tune(model, data, tmp_path / "plain", max_steps=1, optim="sgd"))
    faster = weights(tune(model, data, tmp_path / "plus", max_steps=1, optim="sgd", loraplus_lr_ratio=16))
    moved = [name for name in plain if "lora_B" in name]
    assert moved
    for name in moved:  # B begins at zero, so that its first step is the rate times the gradient
        torch.testing.assert_close(faster[name], 16 * plain[name])
    assert all(torch.equal(plain[name], faster[name]) for name in plain if "lora_A" in name)


def test_lora_plus_is_resumed_exactly(model: Path, data: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"loraplus_lr_ratio": 8, "save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    run = tune(model, data, tmp_path / "run", **options)
    whole = losses(run)
    again = tune(model, data, run, **options, resume_from_checkpoint=str(run / "checkpoint-2"))
    assert losses(again) == whole


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr_scheduler_type": "cosine_with_min_lr"}, r"lr_scheduler_kwargs: the schedule cosine_with_min_lr.*min_lr"),
        ({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"nonsense": 1}}, "the schedule polynomial cannot"),
    ],
)
def test_what_a_schedule_refuses_is_named(
    options: dict[str, Any], message: str, model: Path, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        tune(model, data, tmp_path / "run", **options)


def test_an_optimizer_without_its_package_is_named(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(self: object, *_: object, **__: object) -> None:
        raise ImportError("You need to install `bits`: `pip install bits`. More.")

    monkeypatch.setattr("transformers.Trainer.create_optimizer", missing)
    with pytest.raises(ConfigError, match="optim: this optimizer cannot be used: You need to install `bits`"):
        tune(model, data, tmp_path / "run")


def test_activations_have_nowhere_to_go_without_a_gpu(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("danlu.tune.arguments._accelerated", lambda: False)
    for name in ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"):
        with pytest.raises(ConfigError, match=f"trainer.{name}: .*no GPU whose memory"):
            tune(model, data, tmp_path / "run", max_steps=1, trainer={name: {"offload": True}})


def test_how_activations_are_recomputed_changes_no_loss(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import PreTrainedModel

    asked: list[dict[str, Any]] = []
    own = PreTrainedModel._activation_checkpointing_enable

    def enable(self: Any, *args: Any, **named: Any) -> None:
        asked.append(dict(zip(("kwargs", "every_n_layers", "offload"), args)) | named)
        own(self, *args, **named)

    monkeypatch.setattr(PreTrainedModel, "_activation_checkpointing_enable", enable)
    plain = tune(model, data, tmp_path / "plain", max_steps=2)
    assert not asked
    kwargs = {"every_n_layers": 2}
    options = {"gradient_checkpointing": True, "trainer": {"activation_checkpointing_kwargs": kwargs}}
    other = tune(model, data, tmp_path / "other", max_steps=2, **options)
    assert [call | kwargs for call in asked] == asked != []
    assert losses(other) == pytest.approx(losses(plain), rel=1e-6)
