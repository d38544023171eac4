"""``danlu export``: a run, or a model with adapters, as a model folder that stands alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from danlu.core.config import build
from danlu.core.console import note, out
from danlu.core.errors import UsageError
from danlu.models.export_config import ExportConfig, check_export

if TYPE_CHECKING:
    from danlu.models.export import ExportReport
    from danlu.models.runs import TrainedModel


def export(config: ExportConfig | None = None, **keys: Any) -> ExportReport:
    """Export a run, or a model with adapters, and say what was written and how it was checked.

    Args:
        config: the options, or
        keys: the same by name: ``run``, ``output_dir``, ``max_shard_size``, … (:class:`ExportConfig`).

    Raises:
        UsageError: when nothing to export or no folder is named.
    """
    options = config or build(ExportConfig, keys, where="export()")
    check_export(options)
    from danlu.models.export import export as write
    from danlu.models.runs import open_run, plain_model

    source = (
        open_run(options.run)
        if options.run
        else plain_model(str(options.model_name_or_path), options.adapter_name_or_path)
    )
    note("Loading, merging, writing and checking …")
    target = Path(str(options.output_dir)).expanduser()
    form: dict[str, Any] = {
        "shard_size": options.max_shard_size,
        "legacy_bin": options.legacy_bin,
        "dtype": options.dtype,
        "device": options.device,
    }
    original = options.export_format == "original"
    if source.stage == "rm" and original:
        raise UsageError("a reward model has no place in the original layout", hint="Leave export_format out.")
    if source.stage == "rm":
        from danlu.models.reward_export import export_classifier

        note("A reward model is written as a sequence classifier with one label.")
        report = export_classifier(source, target, **form)
    else:
        template = _template(source, options.template) if options.template else None
        report = write(source, target, chat_template=template, original=original, **form)
    show(report)
    return report


def _template(source: TrainedModel, name: str) -> str | None:
    """A named template for a model that has none; the one that was trained with stays."""
    from danlu.data.named_templates import choose_template
    from danlu.models.loading import load_tokenizer

    text, remark = choose_template(load_tokenizer(source.tokenizer), name)
    if remark:
        note(remark)
    return text


def show(report: ExportReport) -> None:
    """One line for each thing that a user may want to know."""
    weights = sum(size for name, size in report.files.items() if name.endswith((".safetensors", ".bin")))
    shards = sum(name.endswith((".safetensors", ".bin")) for name in report.files)
    out.print(str(report.path), style="accent", markup=False, soft_wrap=True)
    out.print(
        f"  {report.parameters:,} parameters, {report.dtype}, {weights / 1e6:,.1f} MB in {shards} file"
        f"{'' if shards == 1 else 's'}"
    )
    if report.merged:
        out.print(f"  merged: {', '.join(report.merged)}", markup=False, soft_wrap=True)
    if report.kept:
        out.print(f"  beside the base: {report.path / 'adapter'}", markup=False, soft_wrap=True)
    out.print(
        f"  checked by logits (standard deviations): merged against unmerged {report.merge_difference:.1e}, "
        f"reloaded against written {report.reload_difference:.1e}, rounding {report.rounding:.1e}",
        soft_wrap=True,
    )
