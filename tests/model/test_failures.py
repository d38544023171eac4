"""Bad input gets a clear answer, and what was finished before stays."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tuning import assert_same_run, assert_same_weights, tune

from danlu.core.errors import ConfigError, DanluError, DataError, ModelError, RunError, UsageError
from danlu.tune.callbacks import Recorder, exploded
from danlu.tune.checkpoints import whole_or_absent
from danlu.tune.trainer import DanluTrainer

pytestmark = pytest.mark.model
SAVE = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6}


def full_disk(monkeypatch: pytest.MonkeyPatch, place: str, at: int, error: Exception) -> None:
    """From a step on, writing a checkpoint fails in one of its parts."""
    import safetensors.torch
    import torch

    step = {"now": 0}
    own_begin = Recorder.on_step_end

    def on_step_end(self: Any, args: Any, state: Any, control: Any, **rest: Any) -> None:
        step["now"] = state.global_step
        own_begin(self, args, state, control, **rest)

    def failing(own: Any) -> Any:
        def write(*args: Any, **options: Any) -> Any:
            if step["now"] >= at:
                raise error
            return own(*args, **options)

        return write

    monkeypatch.setattr(Recorder, "on_step_end", on_step_end)
    if place == "optimizer":
        monkeypatch.setattr(torch, "save", failing(torch.save))
    else:
        monkeypatch.setattr("peft.peft_model.safe_save_file", failing(safetensors.torch.save_file))


OS = OSError(28, "No space left on device")
TORCH = RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")
SAFETENSORS = RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize(("place", "error"), [("optimizer", TORCH), ("weights", SAFETENSORS)], ids=["torch", "weights"])
def test_a_full_disk_leaves_the_last_checkpoint(
    place: str, error: Exception, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tune(model, data, tmp_path / "whole", **SAVE)
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        full_disk(patch, place, 4, error)
        with pytest.raises(RunError, match=r"the checkpoint of step 4 cannot be written.*same command again"):
            tune(model, data, run, **SAVE)
    assert sorted(path.name for path in run.glob("*checkpoint*")) == ["checkpoint-2"]
    assert not list(run.glob(".saving*"))
    assert_same_weights(run / "checkpoint-2", whole / "checkpoint-2")
    assert_same_run(whole, tune(model, data, run, **SAVE))


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OS, r"what is written cannot be written.*No space left"),
        (TORCH, r"what is written cannot be written.*file write failed"),
        (SAFETENSORS, r"what is written cannot be written.*No space left"),
        (
            RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 18039680 vs 18039572"),
            "what is written cannot be written: the disk is full",
        ),
        (RuntimeError("a bug"), "^a bug$"),
    ],
)
def test_errors_of_a_writer_are_put_into_words(error: Exception, told: str, tmp_path: Path) -> None:
    work = tmp_path / "work"
    with pytest.raises((RunError, RuntimeError), match=told), whole_or_absent(work, what="what is written"):
        work.mkdir()
        (work / "half").write_text("")
        raise error
    assert not work.exists()


def test_a_full_disk_at_the_end(model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        full_disk(patch, "weights", 6, OS)
        with pytest.raises(RunError, match=r"the trained model cannot be written.*No space left"):
            tune(model, data, run, max_steps=6)
    assert not (run / "adapter_model.safetensors").exists()
    assert not list(run.glob(".saving*"))


def test_a_loss_that_is_no_number(model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = DanluTrainer.compute_loss

    def broken(self: Any, *args: Any, **options: Any) -> Any:
        loss = own(self, *args, **options)
        return loss * float("nan") if self.state.global_step >= 3 else loss

    monkeypatch.setattr(DanluTrainer, "compute_loss", broken)
    for logging in (1, 5):
        run = tmp_path / f"run-{logging}"
        with pytest.raises(RunError, match=r"loss became nan at step 4.*learning_rate.*checkpoint-2"):
            tune(model, data, run, **SAVE, logging_steps=logging)
        assert sorted(path.name for path in run.glob("checkpoint-*")) == ["checkpoint-2"]


@pytest.mark.parametrize(
    ("losses", "told"),
    [
        ([2.0, 8.0, 9.0, 7.5], True),
        ([2.0, 8.0, 9.0], False),  # nothing stays yet
        ([2.0, 90.0, 90.0, 6.9], False),
        ([0.01, 0.3, 0.4, 0.3], False),  # other rows, not other weights
        ([0.7, 0.2, 30.0, 40.0, 50.0], True),
    ],
)
def test_a_loss_that_explodes(losses: list[float], told: bool) -> None:
    assert exploded(losses) == told


@pytest.mark.parametrize(("rate", "told"), [(1.0, 1), (1e-3, 0)])
def test_a_learning_rate_that_is_too_high_is_told_once(
    rate: float, told: int, model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tune(model, data, tmp_path / "run", finetuning_type="full", learning_rate=rate, max_steps=8)
    assert capsys.readouterr().err.count("learning_rate=1 is probably too high") == told
    assert (run / "events.jsonl").read_text().count("loss_exploded") == told


def test_folders_of_other_runs(model: Path, data: Path, tmp_path: Path) -> None:
    run = tune(model, data, tmp_path / "run", max_steps=1)
    with pytest.raises(RunError, match=r"other options \(lora.lora_rank: 8 → 4\).*overwrite_output_dir"):
        tune(model, data, run, max_steps=1, lora_rank=4)
    with pytest.raises(RunError, match=r"optimizer.learning_rate: 0.005 → 0.1"):
        tune(model, data, run, max_steps=1, learning_rate=0.1)
    before = (run / "adapter_model.safetensors").read_bytes()
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    shutil.copy(run / "adapter_model.safetensors", foreign)
    with pytest.raises(RunError, match=r"another run's files \(adapter_model.safetensors\)"):
        tune(model, data, foreign, max_steps=1)
    (foreign / "notes.txt").write_text("mine")
    tune(model, data, foreign, max_steps=1, overwrite_output_dir=True, lora_rank=4)
    assert (foreign / "notes.txt").read_text() == "mine"
    assert (run / "adapter_model.safetensors").read_bytes() == before
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(RunError, match="this is a file"):
        tune(model, data, file, max_steps=1)


def test_what_may_change_on_resume(model: Path, data: Path, tmp_path: Path) -> None:
    run = tune(model, data, tmp_path / "run", **SAVE)
    tune(model, data, run, **{**SAVE, "save_steps": 3, "logging_steps": 2, "plot_loss": True})
    assert (run / "training_loss.png").exists()


def test_checkpoints_without_optimizer_cannot_be_resumed(model: Path, data: Path, tmp_path: Path) -> None:
    run = tune(model, data, tmp_path / "run", save_only_model=True, **SAVE)
    with pytest.raises(RunError, match=r"save_only_model.*overwrite_output_dir"):
        tune(model, data, run, save_only_model=True, **SAVE)


def test_model_folders_that_lack_something(model: Path, data: Path, tmp_path: Path) -> None:
    for missing in ("tokenizer", "template", "weights", "config"):
        folder = tmp_path / missing
        shutil.copytree(model, folder)
        if missing == "tokenizer":
            for file in folder.glob("*token*"):
                file.unlink()
        if missing == "template":
            (folder / "chat_template.jinja").unlink()
        if missing == "weights":
            (folder / "model.safetensors").unlink()
        if missing == "config":
            (folder / "config.json").unlink()
    with pytest.raises(ModelError, match="tokenizer"):
        tune(tmp_path / "tokenizer", data, tmp_path / "run")
    with pytest.raises(DanluError, match=r"brings no chat template.*template=.*chatml"):
        tune(tmp_path / "template", data, tmp_path / "run2")
    with pytest.raises(ModelError, match="weights"):
        tune(tmp_path / "weights", data, tmp_path / "run3")
    with pytest.raises(ModelError, match=r"no config.json"):
        tune(tmp_path / "config", data, tmp_path / "run4")
    run = tune(tmp_path / "template", data, tmp_path / "run5", template="chatml", max_steps=1)
    assert "im_start" in (run / "chat_template.jinja").read_text()
    with pytest.raises(UsageError, match=r"no template named 'chatmll'.*chatml"):
        tune(tmp_path / "template", data, tmp_path / "run6", template="chatmll")


def test_data_that_cannot_be_trained_on(model: Path, data: Path, tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(DataError, match=r"all 14 rows are longer than cutoff_len=6"):
            tune(model, data, tmp_path / "run", cutoff_len=6)
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    with pytest.raises(DataError, match=r"empty.jsonl"):
        tune(model, empty, tmp_path / "run2")
    with pytest.raises(DanluError, match="nowhere"):
        tune(model, Path("nowhere"), tmp_path / "run3")


def refusal(work: Callable[[], object]) -> str | None:
    """The words with which something is refused, None if it is done."""
    try:
        work()
    except UsageError as error:
        return str(error)
    return None


def test_memory_is_refused_with_a_way_out(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from danlu.core.config import build
    from danlu.tune import preflight
    from danlu.tune.config import TrainConfig

    plans: list[preflight.Plan] = []
    own = preflight.make_plan
    monkeypatch.setattr("danlu.tune.session.make_plan", lambda *a: plans.append(own(*a)) or plans[-1])
    options: dict[str, Any] = {"finetuning_type": "full", "per_device_train_batch_size": 8}
    tune(model, data, tmp_path / "run", max_steps=1, **options)
    assert not plans[0].checkpointing
    refused = 0
    for share in (0.95, 0.8, 0.6, 0.4, 0.2, 0.02):
        free = int(plans[0].memory * share)
        monkeypatch.setattr(preflight, "free_memory", lambda free=free: free)
        words = refusal(lambda share=share: tune(model, data, tmp_path / f"run-{share}", max_steps=1, **options))
        if words is None:
            assert plans[-1].checkpointing
            continue
        refused += 1
        if "choose a smaller model" in words:
            continue
        change = words.partition("It would fit with ")[2].rstrip(".").split(" (")[0].split()
        changes = dict(word.split("=") for word in change)
        build(TrainConfig, changes, where="hint")
        tune(model, data, tmp_path / f"fits-{share}", max_steps=1, **{**options, **changes})
    assert refused >= 2


def test_an_old_half_written_checkpoint_is_removed(model: Path, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / ".saving-3").mkdir(parents=True)
    (run / ".saving-3" / "optimizer.pt").write_bytes(b"half")
    tune(model, data, run, max_steps=1)
    assert not (run / ".saving-3").exists()


def test_a_damaged_checkpoint_is_named(model: Path, data: Path, tmp_path: Path) -> None:
    run = tune(model, data, tmp_path / "run", finetuning_type="freeze", **SAVE)
    from safetensors.torch import load_file, save_file

    file = run / "checkpoint-6" / "model.safetensors"
    tensors = load_file(file)
    tensors.pop("model.norm.weight")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(RunError, match=r"lacks 1 weights, for instance model.norm.weight.*older checkpoint"):
        tune(model, data, run, finetuning_type="freeze", **SAVE)


def test_nothing_to_do(model: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to do"):
        tune(model, data, tmp_path / "run", do_train=False)
    with pytest.raises(ConfigError, match=r"no key 'lora_rnak'.*lora_rank"):
        tune(model, data, tmp_path / "run", lora_rnak=3)
    assert not (tmp_path / "run").exists()
