"""Fetch a model from a hub, or say within seconds that it cannot be had."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from danlu.core.console import note
from danlu.core.errors import ModelError
from danlu.core.hub import BRANCH, TITLES, HubError, Site, Wanted, silent, site_of, snapshot
from danlu.core.workspace import offline
from danlu.models.zoo import find, modelscope_id

WANTED = ("*.json", "*.safetensors", "*.model", "*.jinja", "*.txt")
LEGACY = ("pytorch_model*.bin", "adapter_model.bin")
IGNORED = ("*/*", "consolidated*", "*.fp16.safetensors", "*.bf16.safetensors")
"""Folders and the same weights in other forms."""


def fetch(
    name: str,
    *,
    revision: str = "main",
    cache_dir: str | Path | None = None,
    source: str | None = None,
    folder: Path | None = None,
) -> Path:
    """The local folder of a hub repository, with the files that danlu reads, downloaded if needed.

    Args:
        name: ``owner/name``.
        revision: branch, tag or commit; ``main`` is the first branch, whatever the hub calls it.
        cache_dir: where downloads are kept; the hub's own cache by default.
        source: ``huggingface``, ``modelscope``, or ``auto``: what the environment says.
        folder: put the files here instead of into the cache.

    Raises:
        ModelError: when it is not in the cache and cannot be downloaded (no network, offline, no such
            repository, no access); within two seconds when there is no network.
        MissingDependency: without the hub's client.
    """
    site = site_of(source)
    repository = _name_on(site, name)
    branch = BRANCH[site] if revision == "main" else revision
    wanted = Wanted(repository, "model", branch, WANTED, IGNORED, cache_dir, folder)
    why = silent(site)
    try:
        return _whole(site, wanted, local=why is not None)
    except HubError as error:
        if why is None:
            raise ModelError(f"{error.what}", where=repository, hint=error.hint) from error
        other: Site = "modelscope" if site == "huggingface" else "huggingface"
        else_asked = "" if offline() else f"; DANLU_HUB={other} asks {TITLES[other]}"
        raise ModelError(
            f"the model {name!r} is not on this machine and {why}",
            hint=f"Give a model folder, a GGUF file, or the packaged name smollm2-135m{else_asked}.",
        ) from error


def _name_on(site: Site, name: str) -> str:
    """What a site calls a model; said where it is another name."""
    if site == "huggingface":
        found = find(name) if "/" in name else None
        other = found[1].id if found and found[1] else name
    else:
        other = modelscope_id(name)
    if other.casefold() != name.casefold():
        note(f"{name} is called {other} on {TITLES[site]}")
        return other
    return name


def _whole(site: Site, wanted: Wanted, *, local: bool) -> Path:
    """What is read of a repository; weights of the older kind only where there are no others."""
    found = snapshot(site, wanted, local=local)
    if not any(found.glob("*.safetensors")):
        snapshot(site, replace(wanted, allow=LEGACY), local=local)
    return found
