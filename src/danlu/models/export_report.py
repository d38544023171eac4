"""What an export tells: a report for its caller, the lineage in danlu_export.json, and the model card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from danlu.core.files import sha256, write_json
from danlu.core.run import EXPORTED
from danlu.models.adapters import AdapterInfo
from danlu.models.card import model_card
from danlu.models.card_facts import read_facts
from danlu.models.loading import lasting_name
from danlu.models.runs import TrainedModel

MARKER = EXPORTED


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What an export wrote, and how it was checked.

    Attributes:
        path: the folder.
        files: names of its files with their sizes in bytes.
        parameters: number of weights.
        dtype: precision that was written.
        merged: adapters that are now part of the weights.
        kept: the prefix, prompt or bottleneck adapter that stays an adapter, in the folder ``adapter``; None otherwise.
        merge_difference: merged against unmerged logits, float32, in standard deviations.
        reload_difference: reloaded against written logits, likewise; None where nothing here reads the file back.
        rounding: written precision against float32, likewise; 0 for float32. For information.
    """

    path: Path
    files: dict[str, int]
    parameters: int
    dtype: str
    merged: tuple[str, ...]
    kept: str | None
    merge_difference: float
    reload_difference: float | None
    rounding: float


def report_of(
    folder: Path,
    target: Path,
    parameters: int,
    dtype: str,
    *,
    adapters: tuple[Sequence[AdapterInfo], AdapterInfo | None],
    differences: tuple[float, float | None, float],
) -> ExportReport:
    """The report of a folder that is about to appear.

    Args:
        folder: where it stands now.
        target: where it will stand.
        parameters: number of weights.
        dtype: precision that was written.
        adapters: those that were merged, and the one that stays beside the base.
        differences: merged against unmerged, read back against written, written precision against float32.
    """
    merged, kept = adapters
    change, reloaded, rounding = differences
    return ExportReport(
        path=target,
        files={file.name: file.stat().st_size for file in sorted(folder.iterdir()) if file.is_file()},
        parameters=parameters,
        dtype=dtype,
        merged=tuple(str(info.path) for info in merged),
        kept=str(kept.path) if kept else None,
        merge_difference=change,
        reload_difference=reloaded,
        rounding=rounding,
    )


def describe(
    report: ExportReport,
    model: TrainedModel,
    folder: Path,
    *,
    form: str,
    has_template: bool,
) -> None:
    """Write the lineage and the model card.

    Args:
        report: what was written.
        model: what was exported.
        folder: where it stands now.
        form: ``safetensors``, ``original``, ``gguf`` or ``classifier``.
        has_template: whether the tokenizer has a chat template.
        options: what was chosen in training, as the card shows it.
    """
    import transformers

    from danlu import __version__

    adapters = [
        {"path": path, "sha256": _digest(Path(path))} for path in (*report.merged, *filter(None, [report.kept]))
    ]
    lineage = {
        "danlu": __version__,
        "transformers": transformers.__version__,
        "format": form,
        "base": lasting_name(model.base or model.model),
        "run": str(model.run) if model.run else None,
        "method": model.method,
        "stage": model.stage,
        "adapters": adapters,
        "kept": report.kept,
        "dtype": report.dtype,
        "parameters": report.parameters,
        "files": sorted(report.files),
        "checks": {
            "merge_difference": report.merge_difference,
            "reload_difference": report.reload_difference,
            "rounding": report.rounding,
            "unit": "standard deviations of the logits",
        },
    }
    write_json(folder / MARKER, lineage)
    facts = read_facts(model.run, model.options)
    card = model_card(lineage, report.path.name, facts, form=form, has_template=has_template)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _digest(folder: Path) -> str | None:
    files = [folder / "adapter_model.safetensors", folder / "adapter_model.bin", folder / "pytorch_model.bin"]
    return next((sha256(file) for file in files if file.is_file()), None)
