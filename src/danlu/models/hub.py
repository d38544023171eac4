"""Fetch a model from the Hugging Face hub, or say within seconds that it cannot be had."""

from __future__ import annotations

import socket
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from danlu.core.errors import ModelError
from danlu.core.workspace import offline

WANTED = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]
LEGACY = ["pytorch_model*.bin", "adapter_model.bin"]
PATIENCE = 1.5
"""Seconds to wait for the hub to answer the first connection."""


def fetch(name: str, *, revision: str = "main", cache_dir: str | Path | None = None) -> Path:
    """The local folder of a hub repository, downloaded if needed.

    Args:
        name: ``owner/name``.
        revision: branch, tag or commit.
        cache_dir: where downloads are kept; the hub's own cache by default.

    Raises:
        ModelError: when it is not in the cache and cannot be downloaded (no network, offline, no such
            repository, no access); within two seconds when there is no network.
    """
    if offline() or not reachable():
        return _cached(name, revision, cache_dir)
    return _download(name, revision, cache_dir)


def reachable() -> bool:
    """Whether the hub (or the proxy in front of it) accepts a connection."""
    from huggingface_hub import constants

    endpoint = urlsplit(constants.ENDPOINT)
    proxy = urllib.request.getproxies().get(endpoint.scheme)
    if proxy:
        endpoint = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    port = endpoint.port or (443 if endpoint.scheme == "https" else 80)
    try:
        with socket.create_connection((endpoint.hostname or "", port), timeout=PATIENCE):
            return True
    except OSError:
        return False


def _cached(name: str, revision: str, cache_dir: str | Path | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        found = snapshot_download(name, revision=revision, cache_dir=cache_dir, local_files_only=True)
    except (LocalEntryNotFoundError, OSError, ValueError) as error:
        why = "danlu is offline" if offline() else "the hub cannot be reached"
        raise ModelError(
            f"the model {name!r} is not on this machine and {why}",
            hint="Give a model folder, a GGUF file, or the packaged name smollm2-135m.",
        ) from error
    return Path(found)


def _download(name: str, revision: str, cache_dir: str | Path | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        found = Path(snapshot_download(name, revision=revision, cache_dir=cache_dir, allow_patterns=[*WANTED]))
        if not any(found.glob("*.safetensors")):
            snapshot_download(name, revision=revision, cache_dir=cache_dir, allow_patterns=LEGACY)
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", 0)
        reasons = {401: "needs a login or does not exist", 403: "needs access", 404: "does not exist"}
        reason = reasons.get(status, f"answered {status}")
        raise ModelError(
            f"the hub repository {name!r} (revision {revision}) {reason}",
            hint="Check the spelling; for a gated model, accept its terms and run `hf auth login`.",
        ) from error
    except Exception as error:  # the client library below the hub's, and its errors, change between versions
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"the model {name!r} could not be downloaded ({first})") from error
    return found
