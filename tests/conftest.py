"""What every test shares: no network, no user's cache, the repository's folders, and the summary by tier."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("search", deadline=None)
settings.load_profile("repeatable" if os.environ.get("CI") else "search")

# A shell that starts a job in the background tells it to ignore Ctrl-C, and so would every process started here.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent
TIERS = ("unit", "model", "golden", "smoke")
REAL_CONNECT = socket.socket.connect


def tier_of(keywords: Any) -> str:
    """The tier of a test: its marker, or unit."""
    return next((tier for tier in TIERS[1:] if tier in keywords), "unit")


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of public data sets beside the repository; the test is skipped where it is absent."""
    folder = Path(os.environ.get("DANLU_SHARED", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"no data beside the repository ({folder}); set DANLU_SHARED")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests start from an empty cache, one for the whole run, and leave the user's alone."""
    base = tmp_path_factory.getbasetemp()
    shared_base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    os.environ["DANLU_CACHE"] = str(shared_base / "danlu-cache")


@pytest.fixture(autouse=True)
def _only_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that reaches for the network fails, at once and by name."""

    def connect(self: socket.socket, address: Any) -> None:
        host = address[0] if isinstance(address, tuple) else "local"
        if host not in ("127.0.0.1", "::1", "localhost", "local"):
            # a thread that outlives its test must not fail the next one: it meets a closed door instead
            alone = threading.current_thread() is threading.main_thread()
            raise (RuntimeError if alone else ConnectionRefusedError)(f"a test tried to reach {host}")
        REAL_CONNECT(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Longest tiers first, so that no worker is left alone with them at the end."""
    order = {"smoke": 0, "model": 1, "golden": 2, "unit": 3}
    items.sort(key=lambda item: order[tier_of(item.keywords)])


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """One line for each tier: what ran, what was skipped and why, and the time it took."""
    counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    seconds: dict[str, float] = defaultdict(float)
    for outcome in ("passed", "failed", "error", "skipped", "xfailed"):
        for report in terminalreporter.stats.get(outcome, []):
            tier = tier_of(
                getattr(report, "keywords", report.nodeid.split("/"))
            )  # a whole file that is skipped has none
            counts[tier][outcome] += 1
            seconds[tier] += getattr(report, "duration", 0.0)
    if not counts:
        return
    terminalreporter.section("tiers")
    for tier in TIERS:
        told = ", ".join(f"{count} {outcome}" for outcome, count in counts[tier].items()) or "no tests run"
        terminalreporter.write_line(f"{tier:<8}{told}, {seconds[tier]:.0f} s of tests")
