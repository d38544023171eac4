"""The model card of an export: where the model comes from, how it was made and measured, and how to use it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from danlu.data.catalog import builtin
from danlu.models.card_facts import Facts, base_licence, data_licence
from danlu.models.card_use import usage
from danlu.models.zoo import packaged_models

STAGES = {
    "sft": "answers of conversations",
    "pt": "plain text",
    "rm": "a reward from pairs of answers",
    "dpo": "preferences between answers (DPO)",
    "kto": "wanted and unwanted answers (KTO)",
    "ppo": "rewards of its own answers (PPO)",
    "grpo": "rewards of its own answers (GRPO)",
}

FORMS = {
    "gguf": "GGUF file",
    "original": "model folder in the layout of its first release",
    "classifier": "sequence classifier with one label, the reward",
}


def model_card(lineage: Mapping[str, Any], name: str, facts: Facts, *, form: str, has_template: bool) -> str:
    """README.md for an exported folder, with the metadata that model hubs read.

    Args:
        lineage: what ``danlu_export.json`` says.
        name: of the model.
        facts: what is known of its training.
        form: ``safetensors``, ``original``, ``gguf`` or ``classifier``.
        has_template: whether the tokenizer has a chat template.
    """
    front = yaml.safe_dump(_metadata(lineage, facts, form), sort_keys=False, allow_unicode=True)
    parts = [
        f"---\n{front}---",
        f"# {name}",
        _what(lineage, facts, form),
        _data(facts),
        _training(facts),
        _scores(facts.scores),
        f"## Checked when it was written\n\n{_checks(lineage['checks'])}",
        f"## Use\n\n{usage(name, form, files=lineage['files'], kept=bool(lineage['kept']), has_template=has_template)}",
        _licences(lineage, facts),
        f"Written by danlu {lineage['danlu']}. The lineage, with digests, is in `danlu_export.json`.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _metadata(lineage: Mapping[str, Any], facts: Facts, form: str) -> dict[str, Any]:
    base, manifest = str(lineage["base"]), facts.manifest
    packaged = packaged_models().get(base)
    licence = base_licence(base)
    known = [entry for entry in (builtin().get(item.name) for item in (manifest.data if manifest else ())) if entry]
    languages = [*(packaged.languages if packaged else ()), *(entry.language for entry in known)]
    method, stage = lineage["method"], manifest.stage if manifest else None
    metadata: dict[str, Any] = {}
    if licence is not None:
        metadata["license"] = licence.identifier or "other"
        metadata |= {} if licence.identifier else {"license_name": licence.name, "license_link": licence.url}
    hub = hub_id(base)
    if hub is not None:
        tuned = bool(lineage["adapters"] or method)
        metadata |= {"base_model": hub, "base_model_relation": "finetune" if tuned else "quantized"}
        if not tuned and form != "gguf":
            del metadata["base_model_relation"]
    if form != "gguf":
        metadata["library_name"] = "transformers"
    metadata["pipeline_tag"] = "text-classification" if form == "classifier" else "text-generation"
    if languages:
        metadata["language"] = [word for word in dict.fromkeys(languages) if len(word) == 2]
    if known:
        metadata["datasets"] = [entry.hub.repository for entry in known]
    metadata["tags"] = ["danlu", *filter(None, [method, stage]), *(["gguf"] if form == "gguf" else [])]
    return {key: value for key, value in metadata.items() if value}


def hub_id(base: str) -> str | None:
    """The id on the Hugging Face hub of a base model, None for a folder."""
    packaged = packaged_models().get(base)
    if packaged is not None:
        return packaged.source.removeprefix("https://huggingface.co/")
    return base if not Path(base).is_absolute() and base.count("/") == 1 else None


def _what(lineage: Mapping[str, Any], facts: Facts, form: str) -> str:
    shown = public_name(str(lineage["base"]))
    method = lineage["method"]
    stage = facts.manifest.stage if facts.manifest else ""
    learnt = STAGES.get(stage, f"data of the stage {stage}" if stage else "data that is not recorded")
    how = f"tuned with the method {method} on {learnt}" if method else "as it is"
    kind = FORMS.get(form, "model folder")
    if not method and lineage["adapters"]:
        how = "with adapters whose training is not recorded here"
    adapters = ", ".join(
        f"{Path(item['path']).name} ({'beside the base' if item['path'] == lineage['kept'] else 'merged'})"
        for item in lineage["adapters"]
    )
    rows = {
        "Base model": shown,
        "Adapters": adapters,
        "Weights": f"{lineage['parameters']:,}, {lineage['dtype']}",
    }
    return f"{shown}, {how}, as a {kind}.\n\n" + table(("", ""), rows.items())


def _data(facts: Facts) -> str:
    if facts.manifest is None or not facts.manifest.data:
        return ""
    rows = [
        (
            public_name(item.name),
            f"{item.rows:,}",
            data_licence(item) or "not known to danlu",
            f"`{(item.sha256 or '')[:12]}`",
        )
        for item in facts.manifest.data
    ]
    text = table(("trained on", "rows", "licence", "sha256"), rows)
    held = facts.manifest.eval_data
    if held:
        named = ", ".join(f"{public_name(item.name)} ({item.rows:,} rows)" for item in held)
        text += f"\n\nHeld out for evaluation: {named}."
    return f"## Data\n\n{text}"


def _training(facts: Facts) -> str:
    parts = []
    if facts.options:
        parts.append(table(("option", "value"), facts.options.items()))
    if facts.losses:
        parts.append(table(("loss", "value"), ((said, f"{value:.4f}") for said, value in facts.losses.items())))
    if not parts:
        return ""
    if facts.manifest is not None and facts.manifest.versions:
        used = ", ".join(f"{name} {version}" for name, version in facts.manifest.versions.items())
        parts.append(f"Trained with {used}, on {facts.manifest.created[:10]}.")
    return "## Training\n\n" + "\n\n".join(parts)


def _scores(scores: Sequence[Mapping[str, Any]]) -> str:
    if not scores:
        return ""
    rows = []
    for item in scores:
        digits = 2 if item["scale"] > 1 else 4
        low, high = (f"{item[end]:.{digits}f}" for end in ("low", "high"))
        rows.append(
            (
                item["name"],
                f"{item['value']:.{digits}f}",
                f"{low}–{high}",
                item["n"],
                ", ".join(map(public_name, str(item.get("data", "not recorded")).split(", "))),
                f"{item['protocol']}; {item['interval']}".replace("|", ", "),
            )
        )
    return "## Scores\n\n" + table(("metric", "value", "95 % interval", "n", "rows", "protocol; interval"), rows)


def _checks(checks: Mapping[str, Any]) -> str:
    """What was compared, in standard deviations of the logits."""
    compared = {
        "merged against unmerged": checks["merge_difference"],
        "read back against written": checks["reload_difference"],
        "rounding to the written precision": checks["rounding"],
    }
    rows = [(said, "not compared" if value is None else f"{value:.1e}") for said, value in compared.items()]
    return table(("largest difference of logits", "standard deviations"), rows)


def _licences(lineage: Mapping[str, Any], facts: Facts) -> str:
    base = str(lineage["base"])
    licence = base_licence(base)
    if licence is None:
        told = f"its licence is not known to danlu; look it up where {public_name(base)} was published"
    else:
        text = f"[{licence.name}]({licence.url})" if licence.url else licence.name
        told = f"{text} (according to {licence.source})" + (f"; {licence.restricted}" if licence.restricted else "")
    lines = [f"- Base model: {told}."]
    data = facts.manifest.data if facts.manifest else ()
    lines += [
        f"- {public_name(item.name)}: {data_licence(item) or 'not known to danlu; look it up at its source'}."
        for item in data
    ]
    return "## Licences\n\nWhat the model was made from keeps its terms:\n\n" + "\n".join(lines)


def public_name(name: str) -> str:
    """A name without the folders of the machine that it was used on."""
    return Path(name).name if Path(name).is_absolute() else name


def table(head: Sequence[str], rows: Any) -> str:
    """A Markdown table; rows whose last cell is empty are left out."""
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    lines += [f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in row)} |" for row in rows if row[-1]]
    return "\n".join(lines)
