"""What is particular to one kind of PEFT adapter: starts that change the base, schedules, chains, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from probes import logits_of, token_batch
from tuning import tune, write_rows

from danlu.core.config import build
from danlu.core.errors import ConfigError, UsageError
from danlu.models.loading import load_model
from danlu.models.runs import open_run
from danlu.tune import methods
from danlu.tune.config import TrainConfig

pytestmark = pytest.mark.model


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", 8)


def applied(folder: Path, method: str, **options: Any) -> methods.Tuned:
    config = build(TrainConfig, {"finetuning_type": method, **options}, where="test")
    tuned: methods.Tuned = methods.METHODS[method].apply(load_model(folder, dtype="float32"), config)
    return tuned


@pytest.mark.parametrize(
    "options",
    [
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "orthogonal"},
        {"init_lora_weights": "olora"},
        {"pissa_init": True, "pissa_iter": -1},
        {"init_lora_weights": "pissa", "pissa_iter": 2, "use_rslora": True},
    ],
    ids=lambda options: "-".join(map(str, options)),
)
def test_every_start_is_the_model_as_it_was(options: dict[str, Any], tiny_models: dict[str, Path]) -> None:
    tuned = applied(tiny_models["qwen2"], "lora", **options)
    plain = logits_of(load_model(tiny_models["qwen2"], dtype="float32"), token_batch())
    torch.testing.assert_close(logits_of(tuned.model, token_batch()), plain, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_an_adapter_that_changed_its_base_is_written_for_the_unchanged_one(
    start: str, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    tuned = applied(tiny_models["llama"], "lora", init_lora_weights=start, lora_rank=4, use_rslora=True)
    with torch.no_grad():
        for name, weight in tuned.adapter.named_parameters():
            if "lora_" in name:
                weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) * 0.05)
    expected = logits_of(tuned.model, token_batch())
    methods.METHODS["lora"].save(tuned, tmp_path)
    told = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (told["r"], told["init_lora_weights"]) == (8, True)
    again = applied(tiny_models["llama"], "lora", adapter_name_or_path=str(tmp_path))
    torch.testing.assert_close(logits_of(again.model, token_batch()), expected, rtol=1e-3, atol=1e-3)
    torch.manual_seed(77)  # another machine would find other singular vectors
    elsewhere = applied(
        tiny_models["llama"], "lora", init_lora_weights=start, lora_rank=4, use_rslora=True, pissa_iter=1
    )
    methods.METHODS["lora"].load(elsewhere, tmp_path)
    torch.testing.assert_close(logits_of(elsewhere.model, token_batch()), expected, rtol=1e-3, atol=1e-3)
    methods.METHODS["lora"].save(elsewhere, tmp_path / "again")
    third = applied(tiny_models["llama"], "lora", adapter_name_or_path=str(tmp_path / "again"))
    torch.testing.assert_close(logits_of(third.model, token_batch()), expected, rtol=1e-3, atol=1e-3)


def test_adalora_takes_rank_away(tiny_models: dict[str, Path], data: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    options = {
        "finetuning_type": "adalora",
        "adalora_init_r": 6,
        "adalora_target_r": 2,
        "lora_target": "q_proj, v_proj",
    }
    run = tune(tiny_models["llama"], data, tmp_path / "run", num_train_epochs=4, **options)
    state = load_file(run / "adapter_model.safetensors")
    kept = sum(int((value != 0).sum()) for name, value in state.items() if "lora_E" in name)
    assert kept == 2 * 6  # two ranks on average in six layers
    assert json.loads((run / "adapter_config.json").read_text())["rank_pattern"] is None
    again = tune(tiny_models["llama"], data, tmp_path / "again", adapter_name_or_path=str(run), max_steps=2, **options)
    assert (again / "adapter_model.safetensors").is_file()


def test_the_penalty_of_adalora(tiny_models: dict[str, Path]) -> None:
    tuned = applied(tiny_models["llama"], "adalora", lora_target="q_proj", adalora_orth_reg_weight=0.25)
    expected = []
    for name, weight in tuned.adapter.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            rows = weight if "lora_A" in name else weight.T
            expected.append((rows @ rows.T - torch.eye(12)).norm())
    torch.testing.assert_close(methods.METHODS["adalora"].penalty(tuned), 0.25 * torch.stack(expected).mean())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"finetuning_type": "adalora", "adalora_init_r": 4, "adalora_target_r": 4}, "the rank could not fall"),
        ({"finetuning_type": "adalora", "adalora_tinit": 1, "adalora_tfinal": 3}, r"run has 4 steps.*leave none"),
        ({"finetuning_type": "adalora", "max_steps": 1}, r"run has 1 steps.*leave none"),  # nothing is measured before
        ({"finetuning_type": "oft", "oft_block_size": 48}, r"inputs of 64 .*oft_block_size=48.*8, 16, 32 works"),
        ({"finetuning_type": "oft", "oft_rank": 5}, r"inputs of 64 .*oft_rank=5"),
        ({"finetuning_type": "ia3", "ia3_target": "k_proj"}, "down_proj is in ia3_feedforward and not in ia3_target"),
        ({"finetuning_type": "ia3", "ia3_target": "c_proj"}, r"ia3_target.*no linear layer named 'c_proj'"),
        ({"finetuning_type": "vera", "vera_target": "qproj"}, r"vera_target.*Did you mean .*q_proj"),
        ({"finetuning_type": "ln_tuning", "ln_target": "mlp"}, r"no normalisation layer named 'mlp'.*norm"),
        ({"init_lora_weights": "orthogonal", "lora_rank": 3}, "needs an even rank, lora_rank is 3"),
        ({"init_lora_weights": "olora", "pissa_init": True}, "contradict each other"),
    ],
)
def test_options_that_cannot_work(
    options: dict[str, Any], message: str, tiny_models: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        tune(tiny_models["llama"], data, tmp_path / "run", **options)


@pytest.mark.parametrize("kind", ["ia3", "oft", "vera", "ln_tuning"])
def test_adapters_of_all_kinds_are_continued_and_merged(
    kind: str, tiny_models: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    options = {"finetuning_type": kind, "vera_rank": 8, "max_steps": 2, "learning_rate": 5e-2}
    first = tune(tiny_models["qwen3"], data, tmp_path / "first", **options)
    second = tune(tiny_models["qwen3"], data, tmp_path / "second", adapter_name_or_path=str(first), **options)
    opened = [logits_of(open_run(run).load()[0], token_batch()) for run in (first, second)]
    assert not torch.allclose(*opened, atol=1e-3)
    with pytest.raises(ConfigError, match=rf"which finetuning_type lora cannot continue.*finetuning_type={kind} .*"):
        tune(tiny_models["qwen3"], data, tmp_path / "third", adapter_name_or_path=str(second))
    new = {"adapter_name_or_path": str(second), "create_new_adapter": True, "learning_rate": 1e-9, "max_steps": 1}
    third = tune(tiny_models["qwen3"], data, tmp_path / "third", **new)
    found = logits_of(open_run(third).load()[0], token_batch())
    torch.testing.assert_close(found, opened[1], rtol=1e-3, atol=1e-3)


def test_a_bfloat16_base_with_trained_norms_answers(tiny_models: dict[str, Path], data: Path, tmp_path: Path) -> None:
    run = tune(tiny_models["llama"], data, tmp_path / "run", finetuning_type="ln_tuning", max_steps=1)
    opened, _ = open_run(run).load(dtype="bfloat16")
    assert logits_of(opened, token_batch()).isfinite().all()
