"""Who answers: a model in this process, one behind a URL, or replicas of a model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from danlu.core.config import build
from danlu.core.errors import ModelError, UsageError
from danlu.core.files import read_json
from danlu.data.schema import Conversation
from danlu.engine.options import EngineOptions
from danlu.engine.protocol import Engine
from danlu.models.runs import TrainedModel
from danlu.tune.config import TrainConfig
from danlu.verbs.material import Text, generation_stops, open_text
from danlu.verbs.opening import Opened, engine_of, open_model


@dataclass(frozen=True, slots=True)
class Asking:
    """An engine, and what a verb needs to know about it.

    Attributes:
        engine: answers.
        render: a conversation as the engine reads it, for the record.
        identity: what its answers depend on, by name.
    """

    engine: Engine
    render: Callable[[Conversation], str]
    identity: Mapping[str, str]


def engine_options(keys: Mapping[str, Any]) -> tuple[EngineOptions, dict[str, Any]]:
    """The options of a command that say who answers, and the others.

    Raises:
        ConfigError: for a value that cannot be.
    """
    own = {key: value for key, value in keys.items() if key in EngineOptions.model_fields}
    return build(EngineOptions, own, where="command line"), {key: keys[key] for key in keys if key not in own}


def check_service(options: EngineOptions, run: object, model: str | None, adapter: object) -> None:
    """Refuse what a service cannot do.

    Raises:
        UsageError: when a service is named with a run, an adapter or replicas, or without the name of a model.
    """
    if options.api is None:
        return
    if run is not None or adapter:
        raise UsageError("a service has models of its own", hint="--api URL --model NAME, without --run and --adapter.")
    if not model:
        raise UsageError("the service's model is not named", hint="--api URL --model NAME")
    if options.replicas > 1 or options.engine != "local":
        raise UsageError("a service is not run or replicated from here", hint="api_concurrency=N sends N at a time.")


@contextmanager
def asking_of(config: TrainConfig, source: TrainedModel, options: EngineOptions) -> Iterator[Asking]:
    """The engine that options name; a service says at the end what it took."""
    if options.api is not None:
        from danlu.engine.remote.engine import RemoteEngine

        remote = RemoteEngine(source.model, options)
        try:
            yield Asking(remote, messages_text, {"model": f"{remote.url}:{source.model}"})
        finally:
            remote.close()
    elif options.replicas > 1:
        from danlu.engine.replicas import ReplicaEngine

        text = _text_alone(config, source)
        with ReplicaEngine(partial(open_engine, config, source, options.engine), options.replicas) as replicas:
            yield Asking(replicas, _renderer(text), _identity(source, text))
    elif options.engine == "vllm":
        text = _text_alone(config, source)
        yield Asking(open_vllm(config, source, text), _renderer(text), _identity(source, text))
    else:
        yield local_asking(open_model(config, source))


def local_asking(opened: Opened) -> Asking:
    """A model in this process."""
    return Asking(engine_of(opened), _renderer(opened.text), _identity(opened.source, opened.text))


def open_engine(config: TrainConfig, source: TrainedModel, kind: str) -> Engine:
    """Load a model and answer with it; what every replica does for itself."""
    if kind == "vllm":
        return open_vllm(config, source, _text_alone(config, source))
    return engine_of(open_model(config, source))


def open_vllm(config: TrainConfig, source: TrainedModel, text: Text) -> Engine:
    """A model, and the LoRA adapter on it, in vLLM.

    Raises:
        ModelError: for an adapter that is no LoRA.
        MissingDependency: without vLLM.
    """
    from danlu.engine.vllm import VllmEngine
    from danlu.models.loading import model_folder

    rank = 16
    for adapter in source.adapters:
        facts = read_json(Path(adapter) / "adapter_config.json")
        if facts.get("peft_type") != "LORA":
            raise ModelError("vLLM knows LoRA adapters only", where=adapter, hint="Merge it first: danlu export.")
        rank = max(int(facts.get("r") or rank), *map(int, (facts.get("rank_pattern") or {}).values()), 1)
    folder, dtype = str(model_folder(source.model)), config.model.dtype
    return VllmEngine(folder, text.tokenizer, text.template, adapters=source.adapters, rank=rank, dtype=dtype)


def messages_text(conversation: Conversation) -> str:
    """A conversation as it is sent to a service, as JSON text."""
    from danlu.engine.remote.wire import messages_of

    return json.dumps(messages_of(conversation), ensure_ascii=False)


def _renderer(text: Text) -> Callable[[Conversation], str]:
    return partial(text.template.render, generation_prompt=True)


def _text_alone(config: TrainConfig, source: TrainedModel) -> Text:
    """The tokenizer and template of a model whose weights are loaded elsewhere."""
    from danlu.models.loading import load_tokenizer, model_folder

    return open_text(load_tokenizer(source.tokenizer), config, generation_stops(model_folder(source.model)))


def _identity(source: TrainedModel, text: Text) -> dict[str, str]:
    from danlu.core.manifest import weights_fingerprint
    from danlu.models.loading import model_folder

    adapters = [f"{path}:{weights_fingerprint(Path(path))}" for path in source.adapters]
    return {
        "model": f"{source.model}:{weights_fingerprint(model_folder(source.model))}",
        "adapters": ", ".join(adapters),
        "template": text.template.digest,
    }
