"""Fetching from the hub, against a hub that is not there."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from danlu.core.errors import ModelError
from danlu.models import hub

huggingface_hub = pytest.importorskip("huggingface_hub")
constants = pytest.importorskip("huggingface_hub.constants")


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("DANLU_OFFLINE", raising=False)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def a_cached_model(root: Path, name: str) -> Path:
    """What the hub's cache looks like after a download."""
    repository = root / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    return snapshot


def test_no_network_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(address: Any, timeout: float) -> None:
        assert timeout <= 1.5
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", unreachable)
    start = time.monotonic()
    with pytest.raises(ModelError, match=r"'a/b' is not on this machine and the hub cannot be reached") as caught:
        hub.fetch("a/b", cache_dir=tmp_path)
    assert time.monotonic() - start < 2
    assert "\n" not in str(caught.value)
    assert "smollm2-135m" in str(caught.value)


def test_offline_never_connects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DANLU_OFFLINE", "1")
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("connected"))
    with pytest.raises(ModelError, match="danlu is offline"):
        hub.fetch("a/b", cache_dir=tmp_path)
    assert hub.fetch("c/d", cache_dir=a_cached_model(tmp_path, "c/d").parents[2]).name == "0" * 40


def test_the_cache_is_enough_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "reachable", lambda: False)
    snapshot = a_cached_model(tmp_path, "a/b")
    assert hub.fetch("a/b", cache_dir=tmp_path) == snapshot


def test_a_proxy_is_asked_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def connect(address: Any, timeout: float) -> Any:
        asked.append(address)
        raise OSError

    monkeypatch.setattr(socket, "create_connection", connect)
    assert not hub.reachable()
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    assert not hub.reachable()
    assert asked == [("huggingface.co", 443), ("proxy.example", 3128)]


@pytest.mark.parametrize(
    ("status", "words"),
    [(401, "needs a login or does not exist"), (404, "does not exist"), (500, "answered 500")],
)
def test_answers_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, words: str) -> None:
    from huggingface_hub.errors import HfHubHTTPError

    def refuse(*_: Any, **__: Any) -> None:
        response: Any = SimpleNamespace(status_code=status, headers={}, request=None)
        raise HfHubHTTPError("many\nlines", response=response)

    monkeypatch.setattr(hub, "reachable", lambda: True)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ModelError, match=words) as caught:
        hub.fetch("a/b", cache_dir=tmp_path)
    assert "\n" not in str(caught.value)


def test_a_connection_that_breaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class TransportError(Exception):
        pass

    def drop(*_: Any, **__: Any) -> None:
        raise TransportError("connection reset\nby peer")

    monkeypatch.setattr(hub, "reachable", lambda: True)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", drop)
    with pytest.raises(ModelError, match=r"'a/b' could not be downloaded \(connection reset\)"):
        hub.fetch("a/b", cache_dir=tmp_path)


def test_older_weights_are_fetched_only_where_there_are_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def download(name: str, *, allow_patterns: list[str], **_: Any) -> str:
        asked.append(allow_patterns)
        if "pytorch_model*.bin" in allow_patterns:
            (tmp_path / "pytorch_model.bin").touch()
        return str(tmp_path)

    monkeypatch.setattr(hub, "reachable", lambda: True)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert hub.fetch("a/b") == tmp_path
    assert len(asked) == 2
    (tmp_path / "model.safetensors").touch()
    hub.fetch("a/b")
    assert len(asked) == 3
