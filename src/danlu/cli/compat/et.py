"""What ChatGLM-Efficient-Tuning did beyond its flags' defaults, written out as plain options."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from danlu.cli.compat.translate import Translation, as_number
from danlu.cli.compat.vocabulary import TRUE
from danlu.core.errors import UsageError

DERIVED = "as ChatGLM-Efficient-Tuning does"


def check_as_asked(asked: Mapping[str, Any]) -> None:
    """Refuse the combinations that the old tool refused, before anything is translated.

    Args:
        asked: flag → value, as written.

    Raises:
        UsageError: with the old tool's message where scripts may look for it.
    """
    stage = str(asked.get("stage", "sft"))
    method = str(asked.get("finetuning_type", "lora"))
    training = _on(asked.get("do_train"))
    generating = _on(asked.get("predict_with_generate"))
    if method == "none" and training:
        raise UsageError(
            "finetuning_type none trains nothing",
            hint="Use lora, freeze, p_tuning or full, or leave do_train out.",
        )
    if generating and (training or stage != "sft"):
        raise UsageError(
            "`predict_with_generate` cannot be used while training, nor outside stage sft",
            hint="Measure in a second command with --do_eval, or use a configuration file, where it can.",
        )
    if stage == "sft" and _on(asked.get("do_predict")) and not generating:
        raise UsageError(
            "Please enable `predict_with_generate` to save model predictions.", hint="Add --predict_with_generate."
        )
    bits = asked.get("quantization_bit")
    if bits is not None and str(bits) not in ("4", "8"):
        raise UsageError(
            "quantization_bit is 4 or 8", where=f"quantization_bit={bits!r}", hint="Give one of them, or leave it out."
        )
    if bits is not None and (method in ("full", "freeze") or (method == "p_tuning" and _on(asked.get("fp16")))):
        raise UsageError(
            f"quantised weights cannot be trained with finetuning_type {method}",
            hint="Leave quantization_bit out.",
        )


def complete(translation: Translation) -> None:
    """Fill in what followed from other flags: lengths, the rows to measure on, where a checkpoint belongs."""
    values = translation.values
    if values.get("finetuning_type") == "p_tuning":  # its P-Tuning is what the papers call v2
        translation.replace("finetuning_type", "p_tuning_v2", translation.places["finetuning_type"])
        translation.notes.append("finetuning_type p_tuning → p_tuning_v2")
    _lengths(translation)
    _checkpoint(translation)
    training = _on(values.get("do_train"))
    if not training and "val_size" in values:
        translation.notes.append("dev_ratio splits rows only while training; all rows of dataset are measured")
        del values["val_size"], translation.places["val_size"]
    measured = _on(values.get("do_eval")) or _on(values.get("do_predict"))
    split = training and (as_number(values.get("val_size")) or 0) > 1e-6
    if measured and not split and not values.get("eval_dataset"):
        translation.replace("eval_dataset", values["dataset"], DERIVED)
        translation.notes.append("no rows are held out: evaluation and prediction run over dataset itself")


def _lengths(translation: Translation) -> None:
    values = translation.values
    source, target = (as_number(values[key]) or 0 for key in ("max_source_length", "max_target_length"))
    if not (1 <= source < math.inf and 1 <= target < math.inf):
        return  # the configuration refuses it with its place
    translation.default("cutoff_len", source + target, DERIVED)
    translation.default("max_new_tokens", target + 1, DERIVED)


def _checkpoint(translation: Translation) -> None:
    """A checkpoint of full or freeze tuning is a model, one of lora or p_tuning is an adapter."""
    values, places = translation.values, translation.places
    adapter = values.get("adapter_name_or_path")
    if adapter and values["finetuning_type"] in ("full", "freeze") and "," not in str(adapter):
        place = places["adapter_name_or_path"]
        translation.replace("model_name_or_path", adapter, place)
        del values["adapter_name_or_path"], places["adapter_name_or_path"]
        translation.notes.append(
            f"checkpoint_dir → model_name_or_path; a {values['finetuning_type']} checkpoint is a model"
        )
    elif not adapter and not _on(values.get("do_train")):
        translation.notes.append("no checkpoint_dir is given: the original model is measured")


def _on(value: Any) -> bool:
    return str(value).lower() in TRUE
