"""Folders and environment: what the user says is respected, what is missing is explained."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from danlu.core.errors import RunError
from danlu.core.workspace import cache_folder, cache_home, offline, share_cores


def test_the_cache_goes_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("DANLU_CACHE", raising=False)
    assert cache_home() == tmp_path / "xdg" / "danlu"
    monkeypatch.setenv("DANLU_CACHE", str(tmp_path / "own"))
    assert cache_folder("tokens") == tmp_path / "own" / "tokens"
    assert (tmp_path / "own" / "tokens").is_dir()


def test_a_cache_that_cannot_be_made_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DANLU_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(RunError, match="DANLU_CACHE"):
        cache_home()


def test_offline_is_either_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.delenv("DANLU_OFFLINE", raising=False)
    assert not offline()
    monkeypatch.setenv("DANLU_OFFLINE", "1")
    assert offline()


def test_waiting_threads_sleep_unless_the_user_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    share_cores()
    assert os.environ["OMP_WAIT_POLICY"] == "passive"
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    share_cores()
    assert os.environ["OMP_WAIT_POLICY"] == "active"


def test_verbs_share_cores_from_python_too() -> None:
    code = "import danlu, os, sys; danlu.train; print(os.environ.get('OMP_WAIT_POLICY'), 'torch' in sys.modules)"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["passive", "False"]
