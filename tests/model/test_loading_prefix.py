"""The prefix of P-Tuning v2: the same logits in PEFT, padded as unpadded, and training can go on from it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from probes import logits_of, random_prefix, token_batch
from tiny import build_model

from danlu.core.errors import ModelError
from danlu.models.adapters import attach, merge
from danlu.models.loading import load_model
from danlu.models.prefix import PrefixEncoder, PrefixModel, PrefixShape

pytestmark = pytest.mark.model


def test_the_shape_follows_the_model(tiny_models: dict[str, Path]) -> None:
    model = load_model(tiny_models["qwen3"])
    shape = PrefixShape.of(model.config, 7)
    assert (shape.layers, shape.kv_heads, shape.head_dim) == (3, 2, 24)
    prefix = PrefixEncoder(shape)
    assert prefix.table().shape == (7, 3 * 2 * 2 * 24)
    assert prefix().shape == (3, 2, 2, 7, 24)
    cache = prefix.past_key_values(model, 4)
    assert cache.get_seq_length() == 7
    assert cache.layers[0].keys.shape == (4, 2, 7, 24)


@pytest.mark.parametrize("projection", [False, True], ids=["table", "network"])
def test_plain_peft_gives_the_same_logits(tiny_model: Path, tmp_path: Path, projection: bool) -> None:
    from peft import PeftModel

    model, ids = load_model(tiny_model), token_batch()
    prefix = random_prefix(model, projection=projection)
    ours = logits_of(PrefixModel(model, prefix), ids)
    prefix.save(tmp_path, base=model.name_or_path)
    theirs = logits_of(PeftModel.from_pretrained(load_model(tiny_model), tmp_path), ids)
    assert (ours - logits_of(model, ids)).abs().max() > 0.1
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(tiny_model: Path, side: str) -> None:
    model = load_model(tiny_model)
    wrapped = PrefixModel(model, random_prefix(model))
    ids = token_batch(rows=1, length=6)
    alone = logits_of(wrapped, ids)
    padding = torch.full((1, 4), 3)
    parts = [padding, ids] if side == "left" else [ids, padding]
    padded = torch.cat(parts, dim=1)
    mask = torch.cat([torch.full_like(part, int(part is ids)) for part in parts], dim=1)
    text = slice(4, None) if side == "left" else slice(0, 6)
    torch.testing.assert_close(logits_of(wrapped, padded, attention_mask=mask)[:, text], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("projection", [False, True], ids=["table", "network"])
def test_training_can_go_on(tiny_models: dict[str, Path], tmp_path: Path, projection: bool) -> None:
    model, ids = load_model(tiny_models["glm"]), token_batch()
    prefix = random_prefix(model, projection=projection)
    prefix.save(tmp_path, base=model.name_or_path)
    again = attach(load_model(tiny_models["glm"]), tmp_path, trainable=True)
    assert again.prefix.projection is projection
    assert {name for name, value in again.named_parameters() if value.requires_grad} == {
        f"prefix.{name}" for name, _ in prefix.named_parameters()
    }
    for name, value in prefix.state_dict().items():
        assert torch.equal(again.prefix.state_dict()[name], value)
    loss = again(input_ids=ids).logits.logsumexp(-1).mean()
    loss.backward()
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in again.prefix.parameters())


def test_an_adapter_of_peft_can_be_read(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    from peft import PrefixTuningConfig, get_peft_model

    ids = token_batch()
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    theirs = get_peft_model(load_model(tiny_models["qwen2"]), config)
    theirs.save_pretrained(tmp_path)
    ours = attach(load_model(tiny_models["qwen2"]), tmp_path)
    torch.testing.assert_close(logits_of(ours, ids), logits_of(theirs, ids), atol=1e-5, rtol=1e-5)


def test_dropout_only_while_training(tiny_models: dict[str, Path]) -> None:
    shape = PrefixShape.of(load_model(tiny_models["llama"]).config, 8)
    prefix = PrefixEncoder(shape, dropout=0.5)
    assert 0.3 < (prefix.train()() == 0).float().mean() < 0.7
    assert torch.equal(prefix.eval()(), prefix.eval()())


def test_a_prefix_of_another_model(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    random_prefix(load_model(tiny_models["llama"])).save(tmp_path, base="somewhere")
    deep = build_model("llama", tmp_path / "deep", num_hidden_layers=4)
    with pytest.raises(ModelError, match="belongs to another model"):
        attach(load_model(deep), tmp_path)


def test_a_prefix_cannot_be_merged(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    random_prefix(load_model(tiny_models["llama"])).save(tmp_path, base=str(tiny_models["llama"]))
    with pytest.raises(ModelError, match="cannot be merged"):
        merge(load_model(tiny_models["llama"]), [tmp_path])
