"""``danlu export``: a run, or a model with adapters, in a form that other tools load."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from danlu.core.checkpoints import step_of
from danlu.core.config import build
from danlu.core.console import note, out
from danlu.core.errors import DanluError, UsageError
from danlu.core.run import EXPORTED, resolve_run
from danlu.models.export_config import ExportConfig, check_export
from danlu.models.folders import check_target

if TYPE_CHECKING:
    from danlu.models.export_report import ExportReport
    from danlu.models.runs import TrainedModel
    from danlu.tune.config import TrainConfig

WEIGHTS = (".safetensors", ".bin", ".gguf")


def export(config: ExportConfig | None = None, **keys: Any) -> ExportReport:
    """Export a run, or a model with adapters, and say what was written and how it was checked.

    Args:
        config: the options, or
        keys: the same by name: ``run``, ``output_dir``, ``export_format``, … (:class:`ExportConfig`).

    Raises:
        UsageError: when nothing to export or no folder is named.
    """
    options = config or build(ExportConfig, keys, where="export()")
    check_export(options)
    from danlu.models.runs import open_run, plain_model

    source = (
        open_run(options.run)
        if options.run
        else plain_model(str(options.model_name_or_path), options.adapter_name_or_path)
    )
    report = _write(options, source, _trained_with(options.run))
    show(report)
    return report


def _write(options: ExportConfig, source: TrainedModel, trained: TrainConfig | None) -> ExportReport:
    """Write the form that is asked for."""
    chosen = _format(options, source)
    target = _target(options, source, chosen)
    check_target(target, EXPORTED)
    note("Loading, merging, writing and checking …")
    source = replace(source, options=_card(trained))
    form: dict[str, Any] = {"device": options.device}
    weights: dict[str, Any] = {
        "shard_size": options.max_shard_size,
        "legacy_bin": options.legacy_bin,
        "dtype": options.dtype,
    }
    if source.stage == "rm" and chosen != "safetensors":
        raise UsageError(
            f"a reward model cannot be written as {chosen}: it gives a number, not text",
            hint="Leave export_format out.",
        )
    if source.stage == "rm":
        from danlu.models.reward_export import export_classifier

        note("A reward model is written as a sequence classifier with one label.")
        return export_classifier(source, target, **weights, **form)
    form["chat_template"] = _template(source, options.template) if options.template else None
    if chosen == "gguf":
        from danlu.models.gguf_export.write import export_gguf

        return export_gguf(source, target, kind=options.gguf_type, serving=_serving(trained), **form)
    from danlu.models.export import export as write

    return write(source, target, original=chosen == "original", **weights, **form)


def _format(options: ExportConfig, source: TrainedModel) -> str:
    """The form that is asked for; ``auto`` is that of the base, which reward models have no place in."""
    if options.export_format != "auto":
        return options.export_format
    from danlu.models.chatglm.convert import converted_family
    from danlu.models.loading import model_folder

    return "original" if source.stage != "rm" and converted_family(model_folder(source.model)) else "safetensors"


def _target(options: ExportConfig, source: TrainedModel, chosen: str) -> Path:
    """The folder to write: the one that is named, or one below the run that tells the run and the form."""
    if options.output_dir is not None or source.run is None:
        return Path(str(options.output_dir)).expanduser()
    run = source.run.resolve()
    name = run.name if step_of(run) is None else f"{run.parent.name}-{run.name}"
    form = {"safetensors": "", "gguf": f"-{options.gguf_type}"}.get(chosen, f"-{chosen}")
    return source.run / "exports" / f"{name}{form}"


def _trained_with(run: str | None) -> TrainConfig | None:
    """The options of a run, as far as this version can read them."""
    if run is None:
        return None
    from danlu.tune.config import TrainConfig

    try:
        return resolve_run(Path(run)).read_config(TrainConfig)
    except DanluError:  # a folder without run.yaml, or of another version: the card does without its options
        return None


def _card(trained: TrainConfig | None) -> dict[str, str] | None:
    if trained is None:
        return None
    from danlu.tune.artefacts import card_options

    return card_options(trained)


def _serving(trained: TrainConfig | None) -> Any:
    """How a run is asked, in the words of Ollama: greedily, unless its options say otherwise."""
    from danlu.models.modelfile import Serving

    if trained is None:
        return Serving()
    generate, encode = trained.generate, trained.encode
    sampling = {"temperature": generate.temperature, "top_p": generate.top_p, "top_k": float(generate.top_k)}
    parameters = {
        **(sampling if generate.do_sample else {"temperature": 0.0}),
        "repeat_penalty": generate.repetition_penalty,
        "num_predict": float(generate.max_new_tokens),
    }
    thinking = {} if encode.enable_thinking is None else {"enable_thinking": encode.enable_thinking}
    return Serving(encode.default_system, thinking, parameters)


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
    weights = [name for name in report.files if name.endswith(WEIGHTS)]
    size = sum(report.files[name] for name in weights)
    gguf = report.path / weights[0] if len(weights) == 1 and weights[0].endswith(".gguf") else None
    out.print(str(gguf or report.path), style="accent", markup=False, soft_wrap=True)
    out.print(
        f"  {report.parameters:,} parameters, {report.dtype}, {size / 1e6:,.1f} MB in {len(weights)} file"
        f"{'' if len(weights) == 1 else 's'}"
    )
    if gguf is not None:
        out.print(f"  for Ollama: {report.path / 'Modelfile'}", markup=False, soft_wrap=True)
    if report.merged:
        out.print(f"  merged: {', '.join(report.merged)}", markup=False, soft_wrap=True)
    if report.kept:
        out.print(f"  beside the base: {report.path / 'adapter'}", markup=False, soft_wrap=True)
    again = report.reload_difference
    out.print(
        f"  checked by logits (standard deviations): merged against unmerged {report.merge_difference:.1e}, "
        f"reloaded against written {'not compared' if again is None else f'{again:.1e}'}, "
        f"rounding {report.rounding:.1e}",
        soft_wrap=True,
    )
