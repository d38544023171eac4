"""Freeze tuning with kept hidden states is freeze tuning without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tuning import assert_same_weights, losses, tune, write_rows

from danlu.tune.boundary import BoundaryCache, split_dtype

pytestmark = pytest.mark.model
FREEZE = {"finetuning_type": "freeze", "freeze_trainable_layers": 1, "num_train_epochs": 3}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[BoundaryCache]:
    """The caches that were made."""
    found: list[BoundaryCache] = []
    own = BoundaryCache.__init__

    def remembered(self: BoundaryCache, *args: Any, **options: Any) -> None:
        own(self, *args, **options)
        found.append(self)

    monkeypatch.setattr(BoundaryCache, "__init__", remembered)
    return found


@pytest.mark.parametrize("options", [{}, {"bf16": True}, {"bf16": True, "dtype": "float32"}, {"packing": True}])
def test_kept_states_change_nothing(
    options: dict[str, Any], tiny_model: Path, tmp_path: Path, made: list[BoundaryCache]
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", 10)
    runs = [tune(tiny_model, data, tmp_path / str(on), freeze_cache=on, **FREEZE, **options) for on in (True, False)]
    assert len(made) == 1
    assert made[0].kept.all()
    assert not made[0].folder.exists()
    if options.get("dtype") == "float32":
        assert made[0].dtype == torch.float32
    assert losses(runs[0]) == losses(runs[1])
    assert_same_weights(*runs)


def test_the_lower_layers_run_once(
    tiny_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    calls = {0: 0, 2: 0}
    own = LlamaDecoderLayer.forward

    def counted(self: Any, *args: Any, **options: Any) -> Any:
        calls[self.self_attn.layer_idx] = calls.get(self.self_attn.layer_idx, 0) + self.training
        return own(self, *args, **options)

    monkeypatch.setattr(LlamaDecoderLayer, "forward", counted)
    tune(tiny_models["llama"], write_rows(tmp_path / "rows.jsonl", 8), tmp_path / "run", **FREEZE)
    assert calls[2] == 3 * calls[0] == 6


@pytest.mark.parametrize(
    "options",
    [
        {"neftune_noise_alpha": 5.0},
        {"freeze_trainable_layers": -1},
        {"freeze_trainable_layers": 3},
        {"num_train_epochs": 1},
        {"freeze_extra_modules": "embed_tokens"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_where_states_may_not_be_kept(
    options: dict[str, Any], tiny_models: dict[str, Path], tmp_path: Path, made: list[BoundaryCache]
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", 8)
    runs = [
        tune(tiny_models["qwen2"], data, tmp_path / str(on), **{**FREEZE, **options, "freeze_cache": on})
        for on in (True, False)
    ]
    assert made == []
    assert losses(runs[0]) == losses(runs[1])


def test_a_full_disk_keeps_nothing(
    tiny_models: dict[str, Path],
    tmp_path: Path,
    made: list[BoundaryCache],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("danlu.tune.boundary.DISK_SHARE", 0.0)
    tune(tiny_models["llama"], write_rows(tmp_path / "rows.jsonl", 8), tmp_path / "run", **FREEZE)
    assert made == []
    assert "would fill the disk" in capsys.readouterr().err


def test_code_that_cannot_be_split(tiny_models: dict[str, Path]) -> None:
    from danlu.models.loading import load_model

    model = load_model(tiny_models["llama"], dtype="float32").base_model
    ids = torch.arange(5).unsqueeze(0)
    assert split_dtype(model, 1, ids, {}) == torch.float32
    model.layers[0].register_module("noise", torch.nn.Dropout(0.5))
    assert split_dtype(model, 1, ids, {}) is None
    assert split_dtype(torch.nn.Linear(2, 2), 1, ids, {}) is None
