"""Methods on families whose layers are called otherwise, stored otherwise, or read past."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from probes import logits_of, token_batch
from tuning import losses, tune, write_rows
from zoo_models import build

from danlu.core.errors import ConfigError
from danlu.data.named_templates import named_template
from danlu.data.schema import Conversation, Message
from danlu.data.templates import Template
from danlu.engine.local import LocalEngine
from danlu.engine.protocol import GenerationOptions, Request
from danlu.models.abilities import examine
from danlu.models.adapters import attach, merge
from danlu.models.attention import packed_attention
from danlu.models.loading import load_model
from danlu.models.zoo import families
from danlu.tune.methods import peft_adapters
from danlu.tune.methods.peft_adapters import linear_names, targets

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A family's tiny model folder by name, built once."""
    root, built = tmp_path_factory.mktemp("zoo"), {}

    def folder(name: str) -> Path:
        return built.setdefault(name, built.get(name) or build(families()[name], root / name))

    return folder


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("bloom", {"finetuning_type": "freeze", "freeze_trainable_layers": 1}),
        ("bloom", {"finetuning_type": "adapter", "adapter_length": 8}),
        (
            "opt",
            {"finetuning_type": "freeze", "freeze_trainable_layers": 1, "freeze_extra_modules": "final_layer_norm"},
        ),
        ("gpt2", {"finetuning_type": "adalora", "adalora_init_r": 6, "adalora_target_r": 3, "num_train_epochs": 4}),
        ("mamba", {"finetuning_type": "lora", "bf16": True}),
        ("mixtral", {"finetuning_type": "full"}),
    ],
)
def test_methods_learn_and_their_results_open(name: str, options: dict[str, Any], tiny: Any, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 8)
    run = tune(tiny(name), rows, tmp_path / "run", **{"num_train_epochs": 3, "learning_rate": 2e-2, **options})
    history = losses(run)
    assert sum(history[-2:]) < sum(history[:2])
    whole = (run / "config.json").is_file()
    opened = load_model(run) if whole else attach(load_model(tiny(name)), run)
    ids = token_batch(1, 8)
    assert not torch.allclose(logits_of(opened, ids), logits_of(load_model(tiny(name)), ids), atol=1e-3)


def test_extra_modules_are_those_outside_the_layers(tiny: Any, tmp_path: Path, watch: Any) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 4)
    options = {"finetuning_type": "freeze", "freeze_trainable_layers": 1, "freeze_extra_modules": "ln_f"}
    tune(tiny("gpt2"), rows, tmp_path / "run", max_steps=1, **options)
    assert watch.moved()
    assert all(".h.1." in name or ".ln_f." in name for name in watch.moved())


def test_a_router_is_no_target(tiny: Any) -> None:
    assert "router" not in linear_names(load_model(tiny("phimoe")))
    assert linear_names(load_model(tiny("falcon"))).keys() >= {"query_key_value", "dense"}  # by code of their own
    assert linear_names(load_model(tiny("gpt2"))).keys() == {"c_attn", "c_proj", "c_fc"}  # stored transposed


def test_layers_that_kernels_read_past_are_left_alone(tiny: Any) -> None:
    model = load_model(tiny("mamba"))
    assert targets(model, ["all"], "lora_target") == ["in_proj"]
    with pytest.raises(ConfigError, match="an adapter on out_proj would be ignored"):
        targets(model, ["out_proj"], "lora_target")


def test_adapters_without_a_gradient_are_told(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peft_adapters, "family_of_type", lambda _: None)
    rows = write_rows(tmp_path / "rows.jsonl", 4)
    tune(tiny("mamba"), rows, tmp_path / "run", max_steps=2, lora_target="in_proj, dt_proj")
    told = capsys.readouterr().err
    assert told.count("got no gradient in the first step") == 1
    assert "dt_proj" in told


def test_experts_that_adapters_do_not_reach_are_told(
    tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 4)
    tune(tiny("mixtral"), rows, tmp_path / "run", max_steps=1)
    assert "adapters do not reach: 36,864 weights (53 %)" in capsys.readouterr().err


def test_lora_reaches_experts_where_that_is_asked(
    tiny: Any, tmp_path: Path, watch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 8)
    options = {"lora_experts": True, "lora_target": "o_proj", "num_train_epochs": 3, "learning_rate": 2e-2}
    run = tune(tiny("qwen3-moe"), rows, tmp_path / "run", **options)
    assert "adapters do not reach" not in capsys.readouterr().err
    moved = watch.moved()
    assert any("experts" in name and "lora_B" in name for name in moved)
    assert all("lora_" in name for name in moved)
    history = losses(run)
    assert sum(history[-2:]) < sum(history[:2])
    ids = token_batch(2, 9)
    expected = logits_of(watch.model(), ids)
    torch.testing.assert_close(logits_of(attach(load_model(tiny("qwen3-moe")), run), ids), expected)
    merged = merge(load_model(tiny("qwen3-moe")), [run])
    torch.testing.assert_close(logits_of(merged, ids), expected, rtol=1e-4, atol=1e-4)
    other = tune(tiny("qwen3-moe"), rows, tmp_path / "other", gradient_checkpointing=True, **options)
    assert losses(other) == pytest.approx(history, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("llama2", {}, "a llama model has no experts"),
        ("mixtral", {"lora_dropout": 0.1}, "lora_dropout does not go with adapters on experts"),
        ("mixtral", {"use_dora": True}, "use_dora does not go"),
        ("mixtral", {"finetuning_type": "adalora"}, "adalora does not reach experts"),
    ],
)
def test_experts_that_cannot_be_adapted(
    name: str, options: dict[str, Any], words: str, tiny: Any, tmp_path: Path
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 4)
    with pytest.raises(ConfigError, match=words):
        tune(tiny(name), rows, tmp_path / "run", lora_experts=True, **options)


@pytest.mark.parametrize(
    ("name", "targets", "feedforward"),
    [
        ("bloom", {"query_key_value", "dense_4h_to_h"}, {"dense_4h_to_h"}),
        ("phi3", {"qkv_proj", "down_proj"}, {"down_proj"}),
        ("deepseek-v3", {"kv_b_proj", "down_proj"}, {"down_proj"}),
        ("mixtral", {"k_proj", "v_proj"}, set()),
    ],
)
def test_ia3_takes_the_layers_of_the_family(
    name: str, targets: set[str], feedforward: set[str], tiny: Any, tmp_path: Path
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 8)
    run = tune(tiny(name), rows, tmp_path / "run", finetuning_type="ia3", learning_rate=5e-2)
    told = json.loads((run / "adapter_config.json").read_text())
    assert set(told["target_modules"]) == targets
    assert set(told["feedforward_modules"]) == feedforward
    with pytest.raises(ConfigError, match="no linear layer named 'value'"):
        tune(tiny(name), rows, tmp_path / "other", finetuning_type="ia3", ia3_target="value")


def test_transposed_layers_and_oft(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="oft does not know layers that are stored transposed"):
        tune(tiny("gpt2"), write_rows(tmp_path / "rows.jsonl", 4), tmp_path / "run", finetuning_type="oft")


def test_windows_that_are_longer_than_the_probe_are_noticed(tiny: Any) -> None:
    model = load_model(tiny("llama2"))
    model.config.sliding_window = 4096  # its layers do not pass it on, so packed attention would not know of it
    assert not examine(model).packed
    model.config.layer_types = ["full_attention", "full_attention"]
    assert examine(model).packed
    chunked = load_model(tiny("llama2"))
    chunked.config.layer_types, chunked.config.attention_chunk_size = ["chunked_attention", "full_attention"], 8192
    assert not examine(chunked).packed


def test_scores_that_are_changed_in_unknown_ways_are_refused() -> None:
    layer, x = torch.nn.Module(), torch.randn(1, 2, 4, 8)
    layer.layer_idx = 0
    with pytest.raises(TypeError, match="position_bias"):
        packed_attention(layer, x, x, x, None, bounds=[0, 4], position_bias=torch.zeros(1, 2, 4, 4))


def test_a_base_model_learns_to_stop_with_the_token_of_its_named_template(tiny: Any, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    base = tmp_path / "base"
    shutil.copytree(tiny("llama2"), base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template, tokenizer.eos_token = None, "<|endoftext|>"
    tokenizer.save_pretrained(base)
    (base / "chat_template.jinja").unlink(missing_ok=True)
    (base / "generation_config.json").unlink()
    rows = write_rows(tmp_path / "rows.jsonl", 4)
    options = {"template": "chatml", "num_train_epochs": 30, "learning_rate": 2e-2, "lora_rank": 16}
    run = tune(base, rows, tmp_path / "run", **options)
    saved = AutoTokenizer.from_pretrained(run)
    assert saved.eos_token == "<|im_end|>"
    assert saved.chat_template == named_template("chatml").text
    engine = LocalEngine(attach(load_model(base), run), saved, Template(saved))
    request = Request("0", Conversation((Message("user", "What is number 3? Tell me. Tell me."),)), GenerationOptions())
    (answer,) = engine.generate([request])
    assert answer.finish_reason == "stop"
    assert answer.text.startswith("It is")
    assert "<|" not in answer.text
