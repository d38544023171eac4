"""Weights to files: safetensors in shards, or the older .bin files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from danlu.core.files import write_json
from danlu.models.quiet import quiet
from danlu.models.shards import save_pickled

BIN_PATTERN = "pytorch_model{suffix}.bin"


def count_parameters(model: Any) -> int:
    """Number of weights; tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def cast_weights(model: Any, dtype: Any) -> Any:
    """Change the precision of a model's weights in place, and of nothing else.

    ``model.to(dtype)`` would also round the rotary frequencies, which a model loaded in that precision keeps
    in float32: its answers would differ from those of the same weights loaded from disk.
    """
    kept = set(model.state_dict(keep_vars=True))
    tensors = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in tensors:
        if name in kept and tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)
    return model


def save_weights(model: Any, folder: Path, *, shard_size: float, legacy_bin: bool = False) -> None:
    """Write config, generation config and weights of a model.

    Args:
        model: a model of transformers without adapters.
        folder: an existing folder.
        shard_size: largest file in GB (10^9 bytes); a single larger tensor gets a file of its own.
        legacy_bin: pickled ``pytorch_model*.bin`` instead of safetensors.

    Raises:
        OSError: when the disk is full or the folder cannot be written.
    """
    from safetensors import SafetensorError

    limit = max(int(shard_size * 1e9), 1)
    try:
        if legacy_bin:
            _save_bin(model, folder, limit)
        else:
            with quiet():
                model.save_pretrained(folder, max_shard_size=limit)
    except SafetensorError as error:
        raise OSError(f"writing the weights failed: {error}") from error


def _save_bin(model: Any, folder: Path, limit: int) -> None:
    from huggingface_hub import split_torch_state_dict_into_shards

    model.config.dtype = model.dtype  # or the folder would be loaded in the precision of the base
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    state = _untied(model)
    split = split_torch_state_dict_into_shards(state, filename_pattern=BIN_PATTERN, max_shard_size=limit)
    for name, keys in split.filename_to_tensors.items():
        save_pickled({key: state[key] for key in keys}, folder / name)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(folder / "pytorch_model.bin.index.json", index)


def _untied(model: Any) -> dict[str, Any]:
    """The state dict with each tied tensor once, contiguous, on the CPU."""
    seen: set[int] = set()
    state: dict[str, Any] = {}
    for key, value in model.state_dict().items():
        if value.data_ptr() in seen and value.numel():
            continue
        seen.add(value.data_ptr())
        state[key] = value.detach().cpu().contiguous().clone()
    return state
