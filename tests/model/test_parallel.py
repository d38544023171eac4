"""Several processes train what one would: the same losses, the same weights, and checkpoints that fit all."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import together
from tuning import history, losses, tune, weights, write_rows

from danlu.core.config import build
from danlu.core.workspace import cache_folder
from danlu.tune import reference_model
from danlu.tune.config import TrainConfig
from danlu.tune.parallel.together import objects_of_all, process_group

pytestmark = pytest.mark.model

EASY: dict[str, Any] = {
    "finetuning_type": "lora",
    "num_train_epochs": 3,
    "gradient_accumulation_steps": 2,  # 13 rows: the last batch of an epoch has one row, for one of two processes
    "save_strategy": "steps",
    "save_steps": 3,
    "logging_steps": 2,
    "weight_decay": 0.01,
    "lr_scheduler_type": "cosine",
}
CASES: dict[str, dict[str, Any]] = {
    "lora": {"val_size": 3, "eval_strategy": "epoch", "per_device_eval_batch_size": 2},
    "freeze": {"finetuning_type": "freeze", "freeze_trainable_layers": 1, "num_train_epochs": 2},
    "p_tuning_v2": {"finetuning_type": "p_tuning_v2", "pre_seq_len": 4, "num_train_epochs": 2},
    "packing": {"packing": True, "cutoff_len": 64, "per_device_train_batch_size": 1},
    "fsdp-full": {"finetuning_type": "full", "fsdp": "fsdp2", "num_train_epochs": 2},
    "fsdp-lora": {"fsdp": "fsdp2_offload", "num_train_epochs": 2},
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", count=13)


def trained_together(model: Path, data: Path, output: Path, **options: Any) -> Path:
    """A run of two processes, each with half of the rows of a step."""
    size = max(options.get("per_device_train_batch_size", 4) // 2, 1)
    log = output.parent / f"{output.name}.log"
    codes = together(2, lambda rank: tune(model, data, output, **{**options, "per_device_train_batch_size": size}), log)
    assert codes == [0, 0], log.read_text()
    return output


def assert_equal_runs(one: Path, two: Path) -> None:
    """The same losses, also of evaluations, and the same weights, but for the order of sums."""
    first, second = history(one), history(two)
    assert [entry["step"] for entry in first] == [entry["step"] for entry in second]
    for name in ("loss", "eval_loss", "train_loss"):
        wanted = [entry[name] for entry in first if name in entry]
        assert [entry[name] for entry in second if name in entry] == pytest.approx(wanted, rel=2e-4)
    here, there = weights(one), weights(two)
    assert here.keys() == there.keys()
    for name, value in here.items():
        difference = (value.float() - there[name].float()).norm() / value.float().norm().clamp(min=1e-2)
        assert float(difference) < 2e-2, name


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_what_one_would(
    case: str, tiny_models: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    options = {**EASY, **CASES[case]}
    alone = {key: value for key, value in options.items() if key != "fsdp"}
    if case == "packing":
        alone["per_device_train_batch_size"] = 2
    one = tune(tiny_models["llama"], data, tmp_path / "one", **alone)
    two = trained_together(tiny_models["llama"], data, tmp_path / "two", **options)
    assert_equal_runs(one, two)
    assert (two / "checkpoint-3" / "optimizer.pt").is_file()


STAGES: dict[str, dict[str, Any]] = {
    "rm": {"val_size": 3, "eval_strategy": "epoch", "per_device_eval_batch_size": 2},
    "dpo": {},
    "ppo": {"max_new_tokens": 6, "max_steps": 4, "ppo_epochs": 2, "ppo_score_norm": True},
    "grpo": {"max_new_tokens": 6, "max_steps": 3, "num_generations": 2},
}


@pytest.mark.parametrize("stage", STAGES)
def test_other_objectives_too(stage: str, tiny_models: dict[str, Path], data: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    if stage in ("rm", "dpo"):
        rows = [{"prompt": row["instruction"], "chosen": row["output"], "rejected": "No."} for row in rows]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    rewards = {"reward_funcs": "length(max=8)"} if stage in ("ppo", "grpo") else {}
    options = {**EASY, "num_train_epochs": 1, **STAGES[stage], "stage": stage, **rewards}
    one = tune(tiny_models["llama"], data, tmp_path / "one", **options)
    two = trained_together(tiny_models["llama"], data, tmp_path / "two", **options)
    assert_equal_runs(one, two)
    for name in ("accuracy", "margin", "reward", "kl"):
        wanted = [entry[name] for entry in history(one) if name in entry]
        found = [entry[name] for entry in history(two) if name in entry]
        assert found == pytest.approx(wanted, rel=1e-3, abs=1e-4), name
    assert len((two / "trainer_log.jsonl").read_text().splitlines()) == len(
        (one / "trainer_log.jsonl").read_text().splitlines()
    )


class Pairs:
    """As much of a token store as the reference asks for."""

    lengths = np.array([3, 2, 1, 4])
    width = 3

    def __len__(self) -> int:
        return len(self.lengths)


def test_kept_reference_numbers_are_used_by_all_processes_or_by_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference_model, "log_probs_of", lambda learner, store, batch, _: np.stack([batch, -batch], 1))

    def work(rank: int) -> None:
        monkeypatch.setenv("DANLU_CACHE", str(tmp_path / f"cache-{rank}"))
        if rank == 1:  # another run has just written them, or this machine has had them from an earlier one
            np.save(cache_folder("reference") / "k.npy", np.full((4, 2), 7, dtype=np.float32))
        with process_group(build(TrainConfig, {"ddp_timeout": 20}, where="test")):
            found = reference_model.reference_log_probs(
                None, Pairs(), key="k", batch_size=2, precision=nullcontext(), rank=(rank, 2)
            )
            assert objects_of_all("the next thing") == ["the next thing"] * 2
        assert found.tolist() == [[0, 0], [1, -1], [2, -2], [3, -3]]

    log = tmp_path / "log"
    assert together(2, work, log) == [0, 0], log.read_text()


def cut_back(run: Path, step: int) -> None:
    """As if the run had been killed soon after the checkpoint of a step."""
    for checkpoint in run.glob("checkpoint-*"):
        if int(checkpoint.name.rsplit("-", 1)[1]) > step:
            shutil.rmtree(checkpoint)
    for name in ("adapter_model.safetensors", "model.safetensors", "train_results.json"):
        (run / name).unlink(missing_ok=True)


@pytest.mark.parametrize("fsdp", [None, "fsdp2"])
def test_a_checkpoint_goes_on_with_another_number_of_processes(
    fsdp: str | None, tiny_models: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    options = {**EASY, "finetuning_type": "full" if fsdp else "lora"}
    one = tune(tiny_models["qwen2"], data, tmp_path / "one", **options)
    more = {**options, "fsdp": fsdp} if fsdp else options
    two = trained_together(tiny_models["qwen2"], data, tmp_path / "two", **more)
    from_two = Path(shutil.copytree(two, tmp_path / "from-two"))
    from_one = Path(shutil.copytree(one, tmp_path / "from-one"))
    for run in (from_two, from_one):
        cut_back(run, 3)
    tune(tiny_models["qwen2"], data, from_two, **{**options, "per_device_train_batch_size": 2})
    trained_together(tiny_models["qwen2"], data, from_one, **more)
    for run in (from_two, from_one):
        assert_equal_runs(one, run)
    if fsdp:  # without it, that is tried with processes that are really killed
        again = Path(shutil.copytree(two, tmp_path / "again"))
        cut_back(again, 3)
        trained_together(tiny_models["qwen2"], data, again, **more)
        assert_equal_runs(one, again)
        assert losses(again) == losses(two)
    assert "gradient_accumulation_steps: 4" in (from_two / "run.yaml").read_text()


def test_best_weights_come_back_and_errors_are_those_of_one_process(
    tiny_models: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    options = {"finetuning_type": "full", "val_size": 4, "eval_strategy": "epoch", "save_strategy": "epoch"}
    options |= {"load_best_model_at_end": True, "num_train_epochs": 4, "learning_rate": 0.02}
    one = tune(tiny_models["llama"], data, tmp_path / "one", **options)
    two = trained_together(tiny_models["llama"], data, tmp_path / "two", fsdp="fsdp2", **options)
    best = [
        Path(json.loads((run / "trainer_state.json").read_text())["best_model_checkpoint"]).name for run in (one, two)
    ]
    assert best[0] == best[1]
    assert_equal_runs(one, two)
    log = tmp_path / "nonsense.log"
    wild = {"finetuning_type": "full", "learning_rate": 1e30, "max_grad_norm": 0, "logging_steps": 1}
    codes = together(2, lambda rank: tune(tiny_models["llama"], data, tmp_path / "wild", **wild), log)
    assert codes == [1, 1]
    assert "the loss became" in log.read_text()
