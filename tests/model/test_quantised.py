"""QLoRA: the frozen weights in 4 or 8 bits, on whatever device there is; merged into the whole weights."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from methods_tried import Watch
from probes import logits_of, token_batch
from test_resume import HARD, killed_at
from tuning import assert_same_run, losses, tune

from danlu.core.config import build
from danlu.core.errors import ConfigError, MissingDependency
from danlu.models.adapters import attach, merge
from danlu.models.loading import load_model
from danlu.models.quantize import Quantization
from danlu.models.runs import open_run
from danlu.tune import checks
from danlu.tune.config import TrainConfig
from danlu.tune.preflight import Load, memory_needed, read_shape

pytestmark = pytest.mark.model
needs_bitsandbytes = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")

CASES: list[dict[str, Any]] = [
    {"quantization_bit": 4},
    {"quantization_bit": 4, "quantization_type": "fp4", "double_quantization": False, "bf16": True},
    {"quantization_bit": 8, "bf16": True},
    {"quantization_bit": 4, "finetuning_type": "oft", "learning_rate": 2e-2},
    {"quantization_bit": 8, "finetuning_type": "ia3", "learning_rate": 5e-2},
    {"quantization_bit": 4, "finetuning_type": "p_tuning_v2", "pre_seq_len": 8, "learning_rate": 5e-2},
    {"quantization_bit": 4, "finetuning_type": "prompt_tuning", "pre_seq_len": 8, "learning_rate": 5e-2},
    {"quantization_bit": 4, "finetuning_type": "adapter", "gradient_checkpointing": True},
]


@needs_bitsandbytes
@pytest.mark.parametrize("options", CASES, ids=lambda options: "-".join(map(str, options.values())))
def test_an_adapter_learns_on_quantised_weights(
    options: dict[str, Any], tiny_models: dict[str, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(monkeypatch)
    folder = tiny_models["llama"]
    run = tune(folder, data, tmp_path / "run", **options)
    found = losses(run)
    assert sum(found[-3:]) < sum(found[:3]) * 0.97
    kind = Quantization(
        options["quantization_bit"], options.get("quantization_type", "nf4"), options.get("double_quantization", True)
    )
    base = load_model(folder, dtype="float32", quantization=kind)
    assert {str(weight.dtype) for weight in base.parameters()} >= {"torch.uint8" if kind.bits == 4 else "torch.int8"}
    if not options.get("bf16"):
        torch.testing.assert_close(
            logits_of(attach(base, run), token_batch()), logits_of(watch.model(), token_batch()), rtol=1e-3, atol=1e-3
        )
    assert logits_of(open_run(run).load(dtype="float32")[0], token_batch()).isfinite().all()


@needs_bitsandbytes
def test_a_killed_run_goes_on(
    tiny_models: dict[str, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**HARD, "quantization_bit": 4, "val_size": 2, "eval_strategy": "steps", "eval_steps": 1}
    whole = tune(tiny_models["llama"], data, tmp_path / "whole", **options)
    with killed_at(monkeypatch, 4):
        tune(tiny_models["llama"], data, tmp_path / "again", **options)
    assert_same_run(whole, tune(tiny_models["llama"], data, tmp_path / "again", **options))


@needs_bitsandbytes
def test_merging_takes_the_whole_base(tiny_models: dict[str, Path], data: Path, tmp_path: Path) -> None:
    run = tune(tiny_models["qwen2"], data, tmp_path / "run", quantization_bit=4, max_steps=2)
    merged = merge(load_model(tiny_models["qwen2"], dtype="float32"), [run])
    opened, _ = open_run(run).load(dtype="float32")
    torch.testing.assert_close(logits_of(merged, token_batch()), logits_of(opened, token_batch()), rtol=1e-3, atol=1e-3)
    with pytest.raises(ConfigError, match=r"merged into whole weights.*danlu export"):
        tune(
            tiny_models["qwen2"],
            data,
            tmp_path / "second",
            quantization_bit=4,
            adapter_name_or_path=str(run),
            create_new_adapter=True,
        )


def test_without_the_package_nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match=r"bitsandbytes.*quantization_bit"):
        checks.check_packages(build(TrainConfig, {"quantization_bit": 8}, where="test"))


def test_starts_that_change_the_base_are_refused(tiny_models: dict[str, Path]) -> None:
    from danlu.tune.methods import lora

    config = build(TrainConfig, {"quantization_bit": 4, "pissa_init": True}, where="test")
    with pytest.raises(ConfigError, match="start pissa changes the frozen weights"):
        lora.apply(load_model(tiny_models["llama"]), config)


def test_the_estimate_counts_bits(tiny_models: dict[str, Path]) -> None:
    shape = read_shape(load_model(tiny_models["llama"]).config)
    load = Load(tokens=8, longest=8, checkpointing=False, activation_bytes=4, explicit_attention=False)
    needed = {
        bits: memory_needed(shape, 0, build(TrainConfig, {"quantization_bit": bits}, where="test"), load)
        for bits in (None, 8, 4)
    }
    assert needed[None] - needed[8] == 3 * shape.linear
    assert needed[8] - needed[4] == pytest.approx(0.484 * shape.linear, rel=0.01)
