"""A reward model as transformers loads it: one label, ``AutoModelForSequenceClassification``, adapters merged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from danlu.core.errors import ModelError
from danlu.models.adapters import AdapterInfo, read_adapter
from danlu.models.export import PROBE_LENGTH, PROBE_ROWS, RELOAD_TOLERANCE, difference, merged_and_compared
from danlu.models.export_report import MARKER, ExportReport, describe, report_of
from danlu.models.folders import room_for, whole_folder
from danlu.models.loading import DataType, load_model, load_tokenizer
from danlu.models.quiet import quiet
from danlu.models.runs import TrainedModel
from danlu.models.stored_bits import in_whole
from danlu.models.value_head import ValueHead, hidden_width
from danlu.models.weights import cast_weights, count_parameters, save_weights


def export_classifier(
    model: TrainedModel,
    target: Path,
    *,
    shard_size: float = 5.0,
    legacy_bin: bool = False,
    dtype: DataType = "auto",
    device: str | None = "cpu",
) -> ExportReport:
    """Write a reward model as a sequence classifier with one label, whose logit is the reward.

    The classifier's layer has no bias; that of a value head never decides between two answers and is left out.

    Args:
        model: a run of stage rm.
        target: folder to write; a former export there is replaced.
        shard_size: largest weight file in GB (10^9 bytes).
        legacy_bin: write pytorch_model*.bin instead of safetensors.
        dtype: precision to write; ``auto`` is that of the base model.
        device: where to merge.

    Raises:
        ModelError: when its adapter cannot be merged, its kind of model has no classifier in transformers, or the
            written one does not score like it.
        RunError: when it has no value head, or the folder cannot be written.
    """
    import torch

    infos = _mergeable(model)
    tokenizer = load_tokenizer(model.tokenizer)
    base = in_whole(load_model(model.model, device=device))
    written = base.dtype if dtype == "auto" else getattr(torch, dtype)
    classifier, change = _classifier(base, infos, model.run, tokenizer)
    cast_weights(cast_weights(classifier, written), torch.float32)
    expected = _rewards(classifier)
    cast_weights(classifier, written)
    with whole_folder(target, marker=MARKER) as folder:
        room_for(folder, count_parameters(classifier) * written.itemsize, target)
        save_weights(classifier, folder, shard_size=shard_size, legacy_bin=legacy_bin)
        tokenizer.save_pretrained(folder)
        found = difference(_rewards(_reloaded(folder)), expected)
        if not found <= RELOAD_TOLERANCE:
            raise ModelError(
                f"the written classifier does not score as the model in memory ({found:.2g} standard deviations)",
                where=str(folder),
                hint="Nothing was exported. Check the disk, and try again.",
            )
        report = report_of(
            folder,
            target,
            count_parameters(classifier),
            str(written).removeprefix("torch."),
            adapters=(infos, None),
            differences=(change, found, 0.0),
        )
        describe(report, model, folder, form="classifier", has_template=bool(tokenizer.chat_template))
    return report


def _mergeable(model: TrainedModel) -> list[AdapterInfo]:
    """The adapters, all of which can become part of the weights."""
    infos = [read_adapter(adapter) for adapter in model.adapters]
    stuck = next((info for info in infos if not info.mergeable), None)
    if stuck is not None:
        raise ModelError(
            "a prefix, prompt or bottleneck adapter cannot become part of a classifier's weights",
            where=str(stuck.path),
            hint="Use the run itself: `danlu score --run DIR`, or as reward_model.",
        )
    return infos


def _classifier(base: Any, infos: Sequence[AdapterInfo], run: Path | None, tokenizer: Any) -> tuple[Any, float]:
    """The base in float32 with its adapters merged and the value head as its one label; what merging changed."""
    import copy

    import torch
    from transformers import AutoModelForSequenceClassification

    head = ValueHead(hidden_width(base))
    head.load(run or (infos[-1].path if infos else Path(base.name_or_path)))
    model, change = merged_and_compared(cast_weights(base, torch.float32), infos)
    config = copy.deepcopy(model.config)
    config.num_labels, config.pad_token_id = 1, tokenizer.pad_token_id
    try:
        with quiet(), torch.device("meta"):
            classifier = AutoModelForSequenceClassification.from_config(config)
    except ValueError as error:
        raise ModelError(
            f"transformers has no sequence classifier for {config.model_type} models",
            hint="Use the run itself: `danlu score --run DIR`, or as reward_model.",
        ) from error
    setattr(classifier, classifier.base_model_prefix, model.base_model)
    classifier.score.weight = torch.nn.Parameter(head.summary.weight.detach().clone())
    return classifier.eval(), change


def _reloaded(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForSequenceClassification

    with quiet():
        model = AutoModelForSequenceClassification.from_pretrained(folder, local_files_only=True)
    return cast_weights(model, torch.float32).eval()


def _rewards(classifier: Any) -> Any:
    import torch

    vocabulary = classifier.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(20)
    ids = torch.randint(vocabulary, (2 * PROBE_ROWS, PROBE_LENGTH), generator=generator)
    pad = classifier.config.pad_token_id
    ids[ids == pad] = (pad or 0) + 1  # padding would end the sequence
    with torch.no_grad():
        return classifier(input_ids=ids).logits.float().cpu()
