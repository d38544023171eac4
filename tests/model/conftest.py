"""Fixtures of the model tier: tiny random models, built once a session."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import FAMILIES, build_model


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """``family → model folder`` of llama, qwen2, qwen3 and glm. Read only: copy before changing."""
    root = tmp_path_factory.mktemp("tiny")
    return {family: build_model(family, root / family, seed=index) for index, family in enumerate(FAMILIES)}


@pytest.fixture(params=FAMILIES)
def tiny_model(request: pytest.FixtureRequest, tiny_models: dict[str, Path]) -> Path:
    """Each tiny model folder in turn."""
    return tiny_models[request.param]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache, and none goes to the network."""
    monkeypatch.setenv("DANLU_CACHE", str(tmp_path / "danlu-cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
