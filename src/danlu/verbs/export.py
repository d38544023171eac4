"""``danlu export``: a run, or a model with adapters, as a model folder that stands alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from danlu.core.console import note, out
from danlu.core.errors import UsageError

if TYPE_CHECKING:
    from danlu.models.export import ExportReport


def export(
    *,
    run: str | None = None,
    model_name_or_path: str | None = None,
    adapter_name_or_path: Sequence[str] = (),
    output_dir: str | None = None,
    max_shard_size: float = 5.0,
    legacy_bin: bool = False,
    device: str = "cpu",
    dtype: Any = "auto",
    template: str | None = None,
) -> ExportReport:
    """Export, and say what was written and how it was checked.

    Args:
        run: run directory or checkpoint; says base and adapter.
        model_name_or_path: without a run: the base model.
        adapter_name_or_path: without a run: adapters to merge, in order.
        output_dir: folder to write.
        max_shard_size: largest weight file in GB.
        legacy_bin: .bin files instead of safetensors.
        device: where to merge.
        dtype: precision to write.
        template: text of a chat template to write into the tokenizer.

    Raises:
        UsageError: when nothing to export or no folder is named.
    """
    if not output_dir:
        raise UsageError("no folder to write is named", hint="Set output_dir.")
    from danlu.models.export import export as write
    from danlu.models.runs import open_run, plain_model

    if run:
        source = open_run(run)
    elif model_name_or_path:
        source = plain_model(model_name_or_path, tuple(adapter_name_or_path))
    else:
        raise UsageError("there is nothing to export", hint="Give --run DIR or --model_name_or_path MODEL.")
    note("Loading, merging, writing and checking …")
    report = write(
        source,
        Path(output_dir).expanduser(),
        shard_size=max_shard_size,
        legacy_bin=legacy_bin,
        dtype=dtype,
        device=device,
        chat_template=template,
    )
    show(report)
    return report


def show(report: ExportReport) -> None:
    """One line for each thing that a user may want to know."""
    weights = sum(size for name, size in report.files.items() if name.endswith((".safetensors", ".bin")))
    shards = sum(name.endswith((".safetensors", ".bin")) for name in report.files)
    out.print(f"[accent]{report.path}[/accent]", soft_wrap=True)
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
