"""The hubs that models and datasets come from: which one is meant, whether it answers, and its client in a few words.

Both are asked through their own clients, which keep what is complete, go on where a download broke off, and know the
user's login. Neither client is imported before it is needed.
"""

from __future__ import annotations

import io
import logging
import socket
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from danlu.core.console import err
from danlu.core.errors import DanluError, MissingDependency, UsageError
from danlu.core.workspace import offline, wanted_hub

Site: TypeAlias = Literal["huggingface", "modelscope"]
SITES: dict[str, Site] = {
    "huggingface": "huggingface",
    "hf": "huggingface",
    "modelscope": "modelscope",
    "ms": "modelscope",
}
TITLES: dict[Site, str] = {"huggingface": "the hub", "modelscope": "ModelScope"}
BRANCH: dict[Site, str] = {"huggingface": "main", "modelscope": "master"}
"""What the first branch of a repository is called."""

PATIENCE = 1.5
"""Seconds to wait for a hub to answer the first connection."""


class HubError(DanluError):
    """A hub does not give what was asked for."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A repository and what to take from it.

    Attributes:
        repository: ``owner/name``.
        kind: ``model`` or ``dataset``.
        revision: branch, tag or commit; the first branch by default.
        allow: patterns of file names; all files by default.
        ignore: patterns of file names that are left out.
        cache_dir: where downloads are kept; the client's own cache by default.
        folder: a folder to put the files into, in place of the cache.
    """

    repository: str
    kind: Literal["model", "dataset"] = "model"
    revision: str | None = None
    allow: Sequence[str] = ()
    ignore: Sequence[str] = ()
    cache_dir: str | Path | None = None
    folder: Path | None = None


def site_of(asked: str | None = None) -> Site:
    """The hub that is meant: by name, or for None and ``auto`` the one that the environment names.

    Raises:
        UsageError: for an unknown name.
    """
    name = asked if asked not in (None, "", "auto") else wanted_hub()
    if str(name).lower() not in SITES:
        raise UsageError(f"there is no hub named {name!r}", hint="Known: huggingface (hf) and modelscope (ms).")
    return SITES[str(name).lower()]


def address(site: Site) -> str:
    """Where a hub is (``HF_ENDPOINT`` and ``MODELSCOPE_ENDPOINT`` move it).

    Raises:
        MissingDependency: without its client.
    """
    if site == "huggingface":
        huggingface()
        from huggingface_hub import constants

        return str(constants.ENDPOINT)
    modelscope()
    from modelscope_hub import HubConfig

    return str(HubConfig().endpoint)


def huggingface() -> Any:
    """The client of the Hugging Face hub, ``huggingface_hub``.

    Raises:
        MissingDependency: when it is not installed.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise MissingDependency("huggingface_hub", "to fetch from the hub") from error
    return huggingface_hub


def modelscope() -> Any:
    """The client of ModelScope, ``modelscope_hub.HubApi``.

    Raises:
        MissingDependency: when it is not installed.
    """
    try:
        from modelscope_hub import HubApi, HubConfig
    except ImportError as error:
        raise MissingDependency("modelscope-hub", "to fetch from ModelScope") from error
    logging.getLogger("modelscope_hub").setLevel(logging.WARNING)
    return HubApi(HubConfig())  # its default configuration remembers the environment of the first call


def reachable(site_address: str, patience: float = PATIENCE) -> bool:
    """Whether a connection to a site (or to the proxy in front of it) opens within ``patience`` seconds.

    Name resolution has no time limit of its own, so the attempt runs beside us and is given up.
    """
    target = urllib.parse.urlsplit(site_address)
    proxy = urllib.request.getproxies().get(target.scheme)
    if proxy and not urllib.request.proxy_bypass(target.hostname or ""):
        target = urllib.parse.urlsplit(proxy if "//" in proxy else f"//{proxy}")
    port = target.port or (80 if target.scheme == "http" else 443)
    opened = threading.Event()

    def attempt() -> None:
        try:
            with socket.create_connection((target.hostname or "", port), timeout=patience):
                opened.set()
        except OSError:
            return

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(patience)
    return opened.is_set()


def silent(site: Site) -> str | None:
    """Why a hub is not asked, in words; None when it can be."""
    if offline():
        return "danlu is told to stay offline"
    return None if reachable(address(site)) else f"{TITLES[site]} cannot be reached"


def snapshot(site: Site, wanted: Wanted, *, local: bool = False) -> Path:
    """The local folder of a repository's files, downloaded where they are not there yet.

    Args:
        site: the hub.
        wanted: what to take.
        local: only look at what is there already.

    Raises:
        HubError: when it is not there, or cannot be had; one line.
        MissingDependency: without the hub's client.
    """
    try:
        with bars(site):
            return _copied(wanted, site, local)
    except DanluError:
        raise
    except Exception as error:  # the clients, those below them and their errors change between versions
        raise explained(error, wanted.repository, site) from error


def _copied(wanted: Wanted, site: Site, local: bool) -> Path:
    """The folder of what is wanted; the two clients take the same arguments."""
    copy = huggingface().snapshot_download if site == "huggingface" else modelscope().download_repo
    found = copy(
        wanted.repository,
        repo_type=wanted.kind,
        revision=wanted.revision,
        cache_dir=wanted.cache_dir,
        local_dir=wanted.folder,
        allow_patterns=list(wanted.allow) or None,
        ignore_patterns=list(wanted.ignore) or None,
        local_files_only=local,
    )
    return Path(found)


def explained(error: Exception, repository: str, site: Site) -> HubError:
    """A client's error in one line, with what to do."""
    chain = [error]
    while isinstance(cause := chain[-1].__cause__, Exception):
        chain.append(cause)
    names = {kind.__name__ for one in chain for kind in type(one).__mro__}
    numbers = [getattr(getattr(one, "response", None), "status_code", 0) for one in chain]
    number = next(filter(None, numbers), 0)
    login = "hf auth login" if site == "huggingface" else "ms-hub login"
    access = f"Check the spelling; for a gated or private one, accept its terms and run `{login}`."
    if "GatedRepoError" in names or number == 403:
        what, hint = "it is gated and needs access", access
    elif "RevisionNotFoundError" in names:
        what, hint = f"{TITLES[site]} has no such revision of it", "Give another revision."
    elif names & {"RepositoryNotFoundError", "NotExistError"} or number in (401, 404):
        what, hint = f"{TITLES[site]} has no such repository, or it needs a login", access
    elif number:
        what, hint = f"{TITLES[site]} answered {number}", "Try again later."
    else:
        text = " ".join(str(error).split())[:160] or type(error).__name__
        what, hint = f"it cannot be fetched ({text})", "Complete files are kept; the same command fetches the rest."
    return HubError(what, where=repository, hint=hint)


@contextmanager
def bars(site: Site) -> Iterator[None]:
    """Progress bars of the clients only on a terminal."""
    if err.is_terminal:
        yield
    elif site == "modelscope":
        with redirect_stderr(io.StringIO()):
            yield
    else:
        from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

        before = are_progress_bars_disabled()
        disable_progress_bars()
        try:
            yield
        finally:
            if not before:
                enable_progress_bars()
