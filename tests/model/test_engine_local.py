"""The engine: batched = one by one, as transformers generates, in any order, nothing lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from probes import random_adapter, random_prefix

from danlu.core.errors import UsageError
from danlu.data.schema import Conversation, Message
from danlu.data.templates import Template
from danlu.engine.local import LocalEngine
from danlu.engine.protocol import GREEDY, Completion, GenerationOptions, Renderer, Request
from danlu.models.abilities import computing_parts
from danlu.models.adapters import attach
from danlu.models.loading import load_model, load_tokenizer
from danlu.models.prefix import PrefixModel, split_prefix

pytestmark = pytest.mark.model

PROMPTS = [tuple(range(40, 40 + length)) for length in (3, 11, 7, 1, 19)]  # ordinary tokens, no stop token among them
SHORT = GenerationOptions(max_new_tokens=12)


class Ids:
    """A renderer for prompts that are ids already."""

    def __init__(self, *stop_ids: int) -> None:
        self.stop_ids = frozenset(stop_ids)

    def prompt(self, conversation: Conversation) -> list[int]:
        return [50 + len(message.content) for message in conversation.messages]


def engine_of(folder: Path, model: Any = None, renderer: Renderer | None = None, **options: Any) -> LocalEngine:
    tokenizer = load_tokenizer(folder)
    return LocalEngine(model or load_model(folder), tokenizer, renderer or Ids(), **options)


def answers(engine: LocalEngine, options: GenerationOptions = SHORT) -> dict[str, Completion]:
    requests = [Request(str(key), ids, options) for key, ids in enumerate(PROMPTS)]
    return {completion.key: completion for completion in engine.generate(requests)}


def variants(folder: Path, kind: str, tmp_path: Path) -> Any:
    """A plain model, one with LoRA, one with a prefix."""
    model = load_model(folder)
    if kind == "lora":
        random_adapter(model, tmp_path / "lora")
        return attach(load_model(folder), tmp_path / "lora")
    return PrefixModel(model, random_prefix(model)) if kind == "prefix" else model


@pytest.mark.parametrize("kind", ["plain", "lora", "prefix"])
def test_batched_is_one_by_one(tiny_model: Path, kind: str, tmp_path: Path) -> None:
    model = variants(tiny_model, kind, tmp_path)
    together = answers(engine_of(tiny_model, model, batch_size=8))
    alone = answers(engine_of(tiny_model, model, batch_size=1))
    assert together == alone
    assert len({completion.tokens for completion in alone.values()}) > 1
    assert all(len(completion.tokens) == 12 for completion in alone.values())


@pytest.mark.parametrize("kind", ["plain", "lora"])
@pytest.mark.parametrize("options", [SHORT, replace(SHORT, repetition_penalty=1.7)], ids=["greedy", "penalty"])
def test_greedy_is_what_transformers_generates(
    tiny_model: Path, kind: str, options: GenerationOptions, tmp_path: Path
) -> None:
    model = variants(tiny_model, kind, tmp_path)
    ours = answers(engine_of(tiny_model, model))
    for key, ids in enumerate(PROMPTS):
        prompt = torch.tensor([ids])
        theirs = model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=None,
            repetition_penalty=1.0,
        )
        assert ours[str(key)].tokens == tuple(theirs[0, len(ids) :].tolist())
    if options.repetition_penalty > 1:
        penalised = answers(engine_of(tiny_model, model), options)
        assert penalised != ours
        prompt = torch.tensor([PROMPTS[1]])
        theirs = model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=None,
            repetition_penalty=1.7,
        )
        assert penalised["1"].tokens == tuple(theirs[0, len(PROMPTS[1]) :].tolist())


@pytest.mark.parametrize("kind", ["plain", "prefix"])
def test_a_prompt_that_comes_several_times_is_computed_once(tiny_model: Path, kind: str, tmp_path: Path) -> None:
    model = variants(tiny_model, kind, tmp_path)
    sampled = replace(SHORT, do_sample=True, repetition_penalty=1.3)
    requests = [Request(f"{key}/{copy}", ids, sampled) for key, ids in enumerate(PROMPTS) for copy in range(2)]
    rows: list[int] = []
    split_prefix(model)[0].register_forward_hook(lambda module, args, output: rows.append(len(output.logits)))
    together = {item.key: item for item in engine_of(tiny_model, model, batch_size=10).generate(requests)}
    assert rows[:2] == [5, 10]
    alone = {item.key: item for item in engine_of(tiny_model, model, batch_size=1).generate(requests)}
    assert together == alone
    assert together["0/0"].tokens != together["0/1"].tokens


@pytest.mark.parametrize("kind", ["plain", "lora", "prefix"])
def test_a_beginning_that_prompts_share_is_read_once(tiny_model: Path, kind: str, tmp_path: Path) -> None:
    model = variants(tiny_model, kind, tmp_path)
    options = [SHORT, replace(SHORT, do_sample=True), replace(SHORT, repetition_penalty=1.7)]
    head = tuple(20 + number % 200 for number in range(150))
    asked = [Request(str(key), (*head, *ids), options[key % 3]) for key, ids in enumerate((*PROMPTS, PROMPTS[0]))]
    asked += [Request(f"other {key}", ids, SHORT) for key, ids in enumerate(PROMPTS)]
    engine = engine_of(tiny_model, model, batch_size=3)
    assert engine._examined.decodes
    read: list[int] = []
    inner = computing_parts(model)[0].base_model
    hook = inner.register_forward_pre_hook(
        lambda module, args, told: read.append(told["input_ids"].numel()), with_kwargs=True
    )
    together = {item.key: item for item in engine.generate(asked)}
    hook.remove()
    assert read.count(149) == 1  # the shortest keeps a token for itself
    assert sum(read) < 150 + 11 * 12 + 100
    alone = {item.key: item for request in asked for item in engine_of(tiny_model, model).generate([request])}
    assert together == alone


def test_a_prefix_generates_what_its_logits_say(tiny_model: Path) -> None:
    model = load_model(tiny_model)
    wrapped = PrefixModel(model, random_prefix(model)).eval()
    found = answers(engine_of(tiny_model, wrapped))
    for key, prompt in enumerate(PROMPTS):
        ids = list(prompt)
        for _ in range(6):  # without any cache
            with torch.no_grad():
                ids.append(int(wrapped(torch.tensor([ids])).logits[0, -1].argmax()))
        assert found[str(key)].tokens[:6] == tuple(ids[len(prompt) :])


@pytest.mark.parametrize("kind", ["plain", "lora", "prefix"])
def test_beam_search(tiny_models: dict[str, Path], kind: str, tmp_path: Path) -> None:
    folder = tiny_models["llama"]
    model = variants(folder, kind, tmp_path)
    beams = replace(SHORT, num_beams=3)
    together = answers(engine_of(folder, model, batch_size=8), beams)
    assert together == answers(engine_of(folder, model, batch_size=1), beams)
    assert together != answers(engine_of(folder, model))


def test_rows_end_at_their_own_stop_and_length(tiny_models: dict[str, Path]) -> None:
    folder = tiny_models["llama"]
    free = answers(engine_of(folder))
    stop = free["1"].tokens[4]
    ended = answers(engine_of(folder, renderer=Ids(stop)))
    for key, completion in ended.items():
        expected = free[key].tokens
        if stop in expected:
            place = expected.index(stop)
            assert completion.tokens == expected[: place + 1]
            assert completion.finish_reason == "stop"
        else:
            assert completion == free[key]
            assert completion.finish_reason == "length"
    requests = [Request(str(key), ids, replace(SHORT, max_new_tokens=key + 1)) for key, ids in enumerate(PROMPTS)]
    for completion in engine_of(folder).generate(requests):
        assert completion.tokens == free[completion.key].tokens[: int(completion.key) + 1]


def test_finished_rows_come_before_the_batch_ends(tiny_models: dict[str, Path]) -> None:
    requests = [
        Request("long", PROMPTS[0], replace(SHORT, max_new_tokens=40)),
        Request("short", PROMPTS[1], replace(SHORT, max_new_tokens=2)),
    ]
    engine = engine_of(tiny_models["llama"])
    steps = 0
    forward = engine.model.forward

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal steps
        steps += 1
        return forward(*args, **options)

    engine.model.forward = counted
    results = engine.generate(requests)
    assert next(results).key == "short"
    assert steps == 2
    assert next(results).key == "long"
    assert steps == 40


def test_what_is_left_after_a_kill_gives_the_same_answers(tiny_models: dict[str, Path]) -> None:
    """The answers of a run that was cut off and continued are those of one run."""
    options = GenerationOptions(max_new_tokens=8, do_sample=True, temperature=1.3)
    requests = [Request(f"row {number}", tuple(range(40, 44 + number % 9)), options) for number in range(24)]
    whole = {item.key: item for item in engine_of(tiny_models["glm"]).generate(requests)}
    assert len(whole) == 24
    started = engine_of(tiny_models["glm"]).generate(requests)
    done = {item.key: item for item, _ in zip(started, range(7))}
    rest = [request for request in requests if request.key not in done]
    done |= {item.key: item for item in engine_of(tiny_models["glm"]).generate(rest)}
    assert done == whole


def test_sampling_depends_on_seed_and_key_only(tiny_models: dict[str, Path]) -> None:
    options = replace(SHORT, do_sample=True, temperature=2.0)
    engine = engine_of(tiny_models["qwen2"])
    first = answers(engine, options)
    assert first == answers(engine, options)
    assert first == answers(engine_of(tiny_models["qwen2"], batch_size=2), options)
    assert first != answers(engine, replace(options, seed=1))
    same_prompt = [Request(str(number), PROMPTS[0], options) for number in range(4)]
    assert len({item.tokens for item in engine.generate(same_prompt)}) == 4


def test_requests_are_read_lazily(tiny_models: dict[str, Path]) -> None:
    def endless() -> Any:
        number = 0
        while True:
            yield Request(str(number), PROMPTS[0], replace(SHORT, max_new_tokens=1))
            number += 1

    results = engine_of(tiny_models["llama"]).generate(endless())
    assert next(results).text


def test_long_prompts_are_cut_at_the_start_and_counted(
    tiny_models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    engine = engine_of(tiny_models["llama"], context=32)
    long = tuple(40 + number % 50 for number in range(60))
    found = list(engine.generate([Request(str(n), long, SHORT) for n in range(3)]))
    assert {item.cut_tokens for item in found} == {40}
    assert {item.prompt_tokens for item in found} == {20}
    assert (engine.cut.prompts, engine.cut.tokens) == (3, 120)
    assert capsys.readouterr().err.count("left out") == 1
    kept = list(engine.generate([Request("kept", long[40:], SHORT)]))
    assert kept[0].tokens == found[0].tokens


def test_an_answer_never_leaves_the_context(tiny_models: dict[str, Path]) -> None:
    engine = engine_of(tiny_models["llama"], context=32)
    (found,) = engine.generate([Request("a", PROMPTS[4], replace(SHORT, max_new_tokens=500))])
    assert found.prompt_tokens + len(found.tokens) == 32
    assert found.finish_reason == "length"


def test_streaming_gives_the_same_text(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    template = Template(tokenizer)
    engine = LocalEngine(load_model(tiny_model), tokenizer, template)
    conversation = Conversation((Message("system", "简短"), Message("user", "什么是丹炉？")))
    options = GenerationOptions(max_new_tokens=40)
    pieces = list(engine.stream(conversation, options))
    (whole,) = engine.generate([Request("", conversation, options)])
    assert "".join(pieces) == whole.text
    assert len(pieces) > 5
    assert whole.prompt_tokens == len(template.prompt(conversation))


def test_stop_texts(tiny_models: dict[str, Path]) -> None:
    engine = engine_of(tiny_models["llama"])
    (free,) = engine.generate([Request("a", PROMPTS[2], SHORT)])
    word = free.text[len(free.text) // 2 : len(free.text) // 2 + 3]
    options = replace(SHORT, stop=("never there", word))
    (found,) = engine.generate([Request("a", PROMPTS[2], options)])
    assert found.text == free.text[: free.text.index(word)]
    assert found.finish_reason == "stop"
    assert len(found.tokens) <= len(free.tokens)
    assert "".join(engine.stream(PROMPTS[2], options)) == found.text


def test_a_model_in_training_stays_in_training(tiny_models: dict[str, Path]) -> None:
    model = load_model(tiny_models["llama"]).train()
    model.model.norm.eval()
    list(engine_of(tiny_models["llama"], model).generate([Request("a", PROMPTS[0], SHORT)]))
    assert model.training
    assert model.lm_head.training
    assert not model.model.norm.training


def test_nothing_asked_nothing_answered(tiny_models: dict[str, Path]) -> None:
    engine = engine_of(tiny_models["llama"])
    assert list(engine.generate([])) == []
    (found,) = engine.generate([Request("empty", (), replace(GREEDY, max_new_tokens=2))])
    assert len(found.tokens) == 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": 0},
        {"top_p": 0},
        {"top_k": -1},
        {"max_new_tokens": 0},
        {"stop": ("",)},
        {"num_beams": 2, "do_sample": True},
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong)) if len(wrong) == 1 else "exclude"):
        GenerationOptions(**wrong)
