"""Write a model that stands alone: adapters merged, weights in shards, tokenizer and template beside them.

Nothing is announced before the written folder has been loaded again and answers as the model in memory did.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from danlu.core.console import note, warn
from danlu.core.errors import ModelError
from danlu.models.adapters import AdapterInfo, attach, merge, merge_attached, read_adapter, save
from danlu.models.chatglm.families import generation
from danlu.models.chatglm.prefix import write_official
from danlu.models.chatglm.write_back import copy_companions, find_record, load_original, write_back
from danlu.models.export_report import MARKER, ExportReport, describe, report_of
from danlu.models.folders import room_for, whole_folder
from danlu.models.loading import DataType, lasting_name, load_model, load_tokenizer, model_folder, stop_ids
from danlu.models.original_code import bring_code
from danlu.models.runs import TrainedModel
from danlu.models.sources import read_folder_json
from danlu.models.stored_bits import in_whole
from danlu.models.weights import cast_weights, count_parameters, save_weights

ADAPTER_FOLDER = "adapter"
MERGE_TOLERANCE = 1e-3
"""Largest difference of float32 logits, merged against unmerged, in units of their standard deviation.

Sums in another order differ by 1e-6 in a tiny model and by 3e-4 in thirty layers with a violent adapter."""

NOTICEABLE = 0.5
"""A change by rounding, in the same unit, from which on it is said."""

RELOAD_TOLERANCE = 1e-5
"""The same, the written folder against the weights in memory, both rounded to the written precision."""

PROBE_ROWS, PROBE_LENGTH = 2, 24


def export(
    model: TrainedModel,
    target: Path,
    *,
    shard_size: float = 5.0,
    legacy_bin: bool = False,
    dtype: DataType = "auto",
    device: str | None = "cpu",
    chat_template: str | None = None,
    original: bool = False,
) -> ExportReport:
    """Merge, write, load again, compare; only then does the folder appear.

    Args:
        model: what to export, from :func:`danlu.models.runs.open_run` or ``plain_model``.
        target: folder to write; a former export there is replaced, anything else is refused.
        shard_size: largest weight file in GB (10^9 bytes).
        legacy_bin: write pytorch_model*.bin instead of safetensors.
        dtype: precision to write; ``auto`` is that of the base model.
        device: where to merge.
        chat_template: written into the tokenizer in place of its own.
        original: write the layout of the folder that the base was converted from, its tokenizer and code beside it.

    Raises:
        ModelError: when the model cannot be loaded, or the written one does not answer like it.
        RunError: when the folder holds something else, or there is no room; nothing half is left.
    """
    import torch

    infos = [read_adapter(adapter) for adapter in model.adapters]
    record = _original_record(model, infos) if original else None
    base, tokenizer = _opened(model, chat_template, device)
    written_type = str(base.dtype).removeprefix("torch.") if dtype == "auto" else dtype
    kept = infos.pop() if infos and not infos[-1].mergeable else None
    merged, change = merged_and_compared(cast_weights(base, torch.float32), infos)
    with whole_folder(target, marker=MARKER) as folder:
        room_for(folder, count_parameters(merged) * _bytes(written_type), target)
        expected, rounding = _rounded(merged, written_type)
        write = save_weights if record is None else partial(write_back, record=record)
        write(merged, folder, shard_size=shard_size, legacy_bin=legacy_bin)
        if record is None:
            _companions(tokenizer, merged.config, model_folder(model.model), folder, original=original)
        parameters = count_parameters(merged)
        if kept is not None:
            expected = _keep_beside(merged, kept, folder, target, original=original)
        del merged, base
        reloaded = _compare_again(folder, expected, kept, target, record["family"] if record else None)
        differences = change, reloaded, rounding
        report = report_of(folder, target, parameters, written_type, adapters=(infos, kept), differences=differences)
        form = "original" if generation(read_folder_json(folder / "config.json")) else "safetensors"
        describe(report, model, folder, form=form, has_template=bool(tokenizer.chat_template))
    return report


def _opened(model: TrainedModel, chat_template: str | None, device: str | None) -> tuple[Any, Any]:
    tokenizer = load_tokenizer(model.tokenizer)
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    base = in_whole(load_model(model.model, device=device))
    base.generation_config.eos_token_id = sorted(stop_ids(base, tokenizer)) or None
    return base, tokenizer


def _companions(tokenizer: Any, config: Any, source: Path, folder: Path, *, original: bool) -> None:
    """What stands beside the weights: the tokenizer, and code that config.json names; or what the original has."""
    if original:
        copy_companions(source, vars(config), folder)
    else:
        tokenizer.save_pretrained(folder)
        bring_code(vars(config), source, folder)


def _original_record(model: TrainedModel, infos: Sequence[AdapterInfo]) -> dict[str, Any] | None:
    """The record of the conversion that is undone, None for ChatGLM-6B, which is never converted.

    Raises:
        ModelError: for adapters that the original code does not know, and models that have no original form.
    """
    kept = next((info for info in infos if not info.mergeable), None)
    if kept is not None and kept.kind != "PREFIX_TUNING":
        raise ModelError(
            f"an adapter of the kind {kept.kind} cannot be merged, so it cannot be written in the original layout",
            where=str(kept.path),
            hint="Leave the format out: base and adapter are then written side by side.",
        )
    if generation(read_folder_json(model_folder(model.model) / "config.json")) == "v1":
        return None
    return find_record(model)


def _bytes(dtype: str) -> int:
    return 4 if dtype == "float32" else 2


def merged_and_compared(base: Any, infos: Sequence[AdapterInfo]) -> tuple[Any, float]:
    """The base (float32) with all adapters merged, and how far its logits are from the unmerged model's."""
    if not infos:
        return base, 0.0
    *earlier, last = infos
    name = base.name_or_path
    attached = attach(merge(base, [info.path for info in earlier]), last.path)
    before = probe(attached)
    merged = merge_attached(attached)
    merged.name_or_path = name
    found = difference(probe(merged), before)
    if not found <= MERGE_TOLERANCE:
        raise ModelError(
            f"merging changed the answers: logits differ by {found:.2g} standard deviations "
            f"(allowed {MERGE_TOLERANCE:g})",
            where=str(last.path),
            hint="Please report it with the adapter's adapter_config.json; the adapter itself is fine.",
        )
    return merged, found


def _rounded(model: Any, dtype: str) -> tuple[Any, float]:
    """Round the model in place; its logits (computed in float32 from the rounded weights), and the change."""
    import torch

    exact = probe(model)
    target = getattr(torch, dtype)
    if target == torch.float32:
        return exact, 0.0
    cast_weights(cast_weights(model, target), torch.float32)
    rounded = probe(model)
    cast_weights(model, target)
    change = difference(rounded, exact)
    if not change < NOTICEABLE:
        warn(f"rounding to {dtype} moves logits by up to {change:.2g} standard deviations; float32 would not")
    return rounded, change


def _keep_beside(model: Any, info: AdapterInfo, folder: Path, target: Path, *, original: bool) -> Any:
    """Write what cannot be merged beside the base; logits of both together in float32."""
    import torch

    note(
        f"An adapter of the kind {info.kind} cannot be merged into weights: the base model and the adapter are written "
        f"side by side. Use them with --model {target} --adapter {target / ADAPTER_FOLDER}."
    )
    dtype, name = model.dtype, model.name_or_path
    model.name_or_path = info.base or name  # the base has been merged into; its name says nothing any more
    attached = attach(cast_weights(model, torch.float32), info.path)
    attached.name_or_path = lasting_name(target.absolute())
    if original:
        write_official(attached.prefix, model.config, folder / ADAPTER_FOLDER, base=attached.name_or_path)
    else:
        save(attached, folder / ADAPTER_FOLDER)
    expected = probe(attached)
    cast_weights(model, dtype)
    return expected


def _compare_again(
    folder: Path, expected: Any, kept: AdapterInfo | None, target: Path, family: str | None = None
) -> float:
    import torch

    again: Any = load_original(folder, family) if family else load_model(folder, device="cpu")
    cast_weights(again, torch.float32)
    if kept is not None:
        again.name_or_path = lasting_name(target.absolute())
        again = attach(again, folder / ADAPTER_FOLDER)
    found = difference(probe(again), expected)
    # the keys of an official prefix are turned back and forth, which rounds them anew
    turned = kept is not None and read_adapter(folder / ADAPTER_FOLDER).official
    allowed = MERGE_TOLERANCE if turned else RELOAD_TOLERANCE
    if not found <= allowed:
        raise ModelError(
            f"the written model does not answer as the one in memory: logits differ by {found:.2g} "
            f"standard deviations (allowed {allowed:g})",
            where=str(folder),
            hint="Nothing was exported. Check the disk, and try again.",
        )
    return found


def probe(model: Any) -> Any:
    """Logits of a fixed batch of tokens, (2, 24, vocabulary), float32 on the CPU."""
    import torch

    vocabulary = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(20)
    ids = torch.randint(vocabulary, (PROBE_ROWS, PROBE_LENGTH), generator=generator).to(model.device)
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits.float().cpu()


def difference(found: Any, expected: Any) -> float:
    """The largest difference of two sets of logits, in standard deviations of the expected ones."""
    return float((found - expected).abs().max() / expected.std())
