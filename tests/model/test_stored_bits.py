"""Checkpoints whose weights are stored in few bits: read where that is possible, or refused in a line."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from probes import logits_of, random_adapter, token_batch
from safetensors.torch import load_file, save_file
from tuning import tune, write_rows

from danlu.core.errors import MissingDependency, ModelError
from danlu.models.adapters import attach
from danlu.models.export import export
from danlu.models.loading import load_model
from danlu.models.quantize import Quantization
from danlu.models.runs import open_run, plain_model
from danlu.models.stored_bits import check_trainable, formats, stored_bits

pytestmark = pytest.mark.model
needs_bitsandbytes = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")


def said_to_be(base: Path, folder: Path, settings: dict[str, Any]) -> Path:
    """A copy whose config.json says that its weights are stored so, and whose weights are damaged."""
    folder = Path(shutil.copytree(base, folder))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    (folder / "model.safetensors").write_bytes(b"never read")
    return folder


@pytest.mark.parametrize(
    ("settings", "package", "command"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptqmodel", "pip install gptqmodel"),
        ({"quant_method": "awq", "bits": 4}, "gptqmodel", "pip install gptqmodel"),
        ({"quant_method": "compressed-tensors"}, "compressed-tensors", "pip install compressed-tensors"),
        ({"load_in_4bit": True}, "bitsandbytes", 'pip install "danlu[quant]"'),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes", 'pip install "danlu[quant]"'),
    ],
    ids=["gptq", "awq", "compressed", "old bitsandbytes", "bitsandbytes"],
)
def test_a_missing_package_is_named_before_weights_are_read(
    settings: dict[str, Any],
    package: str,
    command: str,
    tiny_models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from importlib.metadata import PackageNotFoundError

    def nothing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("danlu.models.stored_bits.version", nothing)
    folder = said_to_be(tiny_models["llama"], tmp_path / "base", settings)
    with pytest.raises(MissingDependency) as caught:
        load_model(folder)
    text = str(caught.value)
    assert f"the package {package} is needed to read weights stored in" in text
    assert "take the release that is not quantised" in text
    assert text.endswith(command)
    assert "\n" not in text


def test_an_unknown_format(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    folder = said_to_be(tiny_models["llama"], tmp_path / "base", {"quant_method": "wishful"})
    with pytest.raises(ModelError, match=r"stored in wishful, which danlu does not know.*not quantised"):
        load_model(folder)


def test_bits_twice(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    folder = said_to_be(tiny_models["llama"], tmp_path / "base", {"quant_method": "fp8"})
    with pytest.raises(ModelError, match=r"stored in few bits already.*Leave quantization_bit out"):
        load_model(folder, quantization=Quantization(4))


@pytest.mark.parametrize("method", ["full", "freeze"])
def test_such_weights_are_not_trained_themselves(method: str, tiny_models: dict[str, Path], tmp_path: Path) -> None:
    folder = said_to_be(tiny_models["llama"], tmp_path / "base", {"quant_method": "gptq", "bits": 4})
    with pytest.raises(ModelError, match=r"stored in gptq cannot be changed themselves.*finetuning_type=lora"):
        tune(folder, write_rows(tmp_path / "rows.jsonl"), tmp_path / "run", finetuning_type=method)


def test_formats_without_gradients(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    folder = said_to_be(tiny_models["llama"], tmp_path / "base", {"quant_method": "auto-round"})
    with pytest.raises(ModelError, match="no gradient flows through weights stored in auto-round"):
        check_trainable(folder, whole=False)
    check_trainable(tiny_models["llama"], whole=True)
    assert stored_bits(tiny_models["llama"]) is None
    assert all(item.packages or item.whole for item in formats().values())


def test_fp8_is_read_as_ordinary_weights(tiny_models: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    """Blocks of float8 with a scale each, written here by hand."""
    folder = said_to_be(tiny_models["llama"], tmp_path / "base", {"quant_method": "fp8", "weight_block_size": [32, 32]})
    state, expected = {}, load_model(tiny_models["llama"])
    plain = dict(expected.named_parameters())
    for name, value in load_file(tiny_models["llama"] / "model.safetensors").items():
        if "_proj" not in name:
            state[name] = value
            continue
        rows, columns = value.shape
        blocks = value.reshape(rows // 32, 32, columns // 32, 32).transpose(1, 2)
        scale = blocks.abs().amax((2, 3), keepdim=True) / 448
        stored = (blocks / scale).to(torch.float8_e4m3fn)
        state[name] = stored.transpose(1, 2).reshape(rows, columns).contiguous()
        state[f"{name}_scale_inv"] = scale[:, :, 0, 0].contiguous()
        whole = (stored.float() * scale).transpose(1, 2).reshape(rows, columns)
        plain[name].data.copy_(whole)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    found = load_model(folder)
    assert "stored in fp8; they are read as ordinary ones" in capsys.readouterr().err
    torch.testing.assert_close(logits_of(found, token_batch()), logits_of(expected, token_batch()))
    report = export(plain_model(str(folder)), tmp_path / "out")
    assert report.dtype == "float32"
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())


@needs_bitsandbytes
@pytest.mark.parametrize("bits", [4, 8])
def test_bitsandbytes_is_read_trained_on_and_merged(
    bits: Any, tiny_models: dict[str, Path], tmp_path: Path, capsys: Any
) -> None:
    folder = tmp_path / "base"
    small = load_model(tiny_models["llama"], dtype="float32", quantization=Quantization(bits))
    small.save_pretrained(folder)
    for file in tiny_models["llama"].glob("*token*"):
        shutil.copy(file, folder)
    shutil.copy(tiny_models["llama"] / "chat_template.jinja", folder)
    found = load_model(folder)
    ids = token_batch()
    torch.testing.assert_close(logits_of(found, ids), logits_of(small, ids), rtol=1e-3, atol=1e-3)
    run = tune(folder, write_rows(tmp_path / "rows.jsonl"), tmp_path / "run", finetuning_type="lora", max_steps=2)
    assert logits_of(open_run(run).load()[0], ids).isfinite().all()
    random_adapter(load_model(tiny_models["llama"]), tmp_path / "lora")
    report = export(plain_model(str(folder), [str(tmp_path / "lora")]), tmp_path / "out")
    assert "so that adapters can be merged" in capsys.readouterr().err
    assert report.merge_difference < 1e-3
    merged = load_model(tmp_path / "out")
    assert "quantization_config" not in merged.config.to_dict()
    attached = logits_of(attach(load_model(folder), tmp_path / "lora"), ids)
    tolerance = 1e-3 if bits == 4 else 0.5  # 8 bits also round what flows through the layers
    torch.testing.assert_close(logits_of(merged, ids), attached, rtol=tolerance, atol=tolerance)
