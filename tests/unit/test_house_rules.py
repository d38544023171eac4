"""The rules of tests/conftest.py hold: no network, a cache of the tests' own, tiers by marker."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from danlu.core.workspace import cache_home


def test_the_network_is_out_of_reach() -> None:
    with socket.socket() as wire, pytest.raises(RuntimeError, match=r"192\.0\.2\.1"):
        wire.connect(("192.0.2.1", 80))


def test_this_machine_is_in_reach() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as wire:
        wire.connect(server.getsockname())
        assert wire.getpeername() == server.getsockname()


def test_the_users_cache_is_left_alone() -> None:
    assert cache_home() == Path(os.environ["DANLU_CACHE"])
    assert not cache_home().is_relative_to(Path.home() / ".cache")


def test_markers_decide_the_tier(request: pytest.FixtureRequest, root: Path) -> None:
    tier_of = request.config.pluginmanager.get_plugin(str(root / "tests" / "conftest.py")).tier_of
    assert tier_of({"golden": 1, "test_x": 1}) == "golden"
    assert tier_of({"test_x": 1}) == "unit"
