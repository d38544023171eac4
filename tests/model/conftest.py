"""Fixtures of the model tier: tiny random models, built once a session."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import FAMILIES, build_chatglm1, build_model
from tuning import write_rows


@pytest.fixture(scope="session", autouse=True)
def _imports_are_no_garbage() -> Iterator[None]:
    """A training ends with a search for garbage; a million objects of imported packages would be searched each time."""
    import peft  # noqa: F401
    import transformers.trainer  # noqa: F401

    import danlu.tune.session  # noqa: F401

    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


NOT_COUNTED = frozenset(
    {"compute", "data", "encode", "generate", "grpo", "log", "optimizer", "output", "parallel", "ppo", "preference"}
    | {"rollout", "task", "trainer"}
)
"""Groups of options that do not change which weights are trained."""


@pytest.fixture(scope="session", autouse=True)
def _weights_are_counted_once() -> Iterator[None]:
    """Each plan counts the trained weights on a model without any, which takes a sixth of a small training."""
    from danlu.tune import preflight

    known: dict[tuple[str, str], int] = {}
    own = preflight.trainable_parameters

    def counted(shape: Any, config: Any) -> int:
        if config.model.adapter_name_or_path:
            return own(shape, config)
        options = config.model_dump_json(exclude=NOT_COUNTED)
        key = (shape.model.to_json_string(use_diff=False), options)
        if key not in known:
            known[key] = own(shape, config)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preflight, "trainable_parameters", counted)
        yield


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """``family → model folder`` of llama, qwen2, qwen3 and glm. Read only: copy before changing."""
    root = tmp_path_factory.mktemp("tiny")
    return {family: build_model(family, root / family, seed=index) for index, family in enumerate(FAMILIES)}


@pytest.fixture(scope="session")
def chatglm1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny ChatGLM-6B of the first version. Read only."""
    return build_chatglm1(tmp_path_factory.mktemp("chatglm1") / "chatglm-6b")


@pytest.fixture(params=FAMILIES)
def tiny_model(request: pytest.FixtureRequest, tiny_models: dict[str, Path]) -> Path:
    """Each tiny model folder in turn."""
    return tiny_models[request.param]


@pytest.fixture
def model(tiny_models: dict[str, Path]) -> Path:
    """One of them, for tests that need any model."""
    return tiny_models["llama"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Rows to train on."""
    return write_rows(tmp_path / "rows.jsonl")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache, and none goes to the network."""
    monkeypatch.setenv("DANLU_CACHE", str(tmp_path / "danlu-cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The model of the last training in memory."""
    from methods_tried import Watch

    return Watch(monkeypatch)
