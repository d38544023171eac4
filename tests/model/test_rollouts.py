"""Answers to learn from: reproducible whatever they are computed with, and the model is left as it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from probes import random_adapter, random_prefix

from danlu.core.errors import DataError, UsageError
from danlu.engine.protocol import GenerationOptions
from danlu.models.loading import load_model
from danlu.models.prefix import PrefixModel
from danlu.tune.online.rollout import Sampler

pytestmark = pytest.mark.model

PROMPTS = [list(range(40, 40 + length)) for length in (3, 9, 1, 14)]
OPTIONS = GenerationOptions(do_sample=True, max_new_tokens=8, seed=5)
SAMPLER = Sampler(OPTIONS, frozenset(), pad=0)


@pytest.fixture
def model(tiny_models: dict[str, Path]) -> Any:
    return load_model(tiny_models["llama"])


KEYS = ["0:0", "0:1", "0:2", "0:3"]


@pytest.mark.parametrize(("family", "kind"), [("llama", "plain"), ("qwen3", "lora"), ("glm", "prefix")])
def test_an_answer_does_not_depend_on_its_company(
    family: str, kind: str, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    model = load_model(tiny_models[family])
    if kind == "lora":
        model = random_adapter(model, tmp_path / "lora")
    elif kind == "prefix":
        model = PrefixModel(model, random_prefix(model))
    together = SAMPLER.ask(model, PROMPTS, 3, KEYS)
    narrow = replace(SAMPLER, rows=2).ask(model, PROMPTS, 3, KEYS)
    short = replace(SAMPLER, tokens=30).ask(model, PROMPTS, 3, KEYS)
    alone = [SAMPLER.ask(model, [ids], 3, [key])[0] for ids, key in zip(PROMPTS, KEYS)]
    turned = SAMPLER.ask(model, PROMPTS[::-1], 3, KEYS[::-1])[::-1]
    assert together == narrow == short == alone == turned
    assert len({answer.ids for group in together for answer in group}) == 12


def test_seed_key_and_number_decide(model: Any) -> None:
    same = [PROMPTS[0]] * 2
    first = SAMPLER.ask(model, same, 2, ["1:0", "1:1"])
    assert SAMPLER.ask(model, same, 2, ["1:0", "1:1"]) == first
    other_step = SAMPLER.ask(model, same, 2, ["2:0", "2:1"])
    other_seed = replace(SAMPLER, options=replace(OPTIONS, seed=6)).ask(model, same, 2, ["1:0", "1:1"])
    found = [answer.ids for given in (first, other_step, other_seed) for group in given for answer in group]
    assert len(set(found)) == len(found) == 12


def test_temperature_and_the_cuts_are_honoured(model: Any) -> None:
    greedy = {}
    for options in (replace(OPTIONS, temperature=1e-4), replace(OPTIONS, top_k=1), replace(OPTIONS, top_p=1e-6)):
        found = replace(SAMPLER, options=options).ask(model, PROMPTS, 2, KEYS)
        assert all(one == two for one, two in found)
        greedy[options] = [one.ids for one, _ in found]
    assert len(set(map(tuple, greedy.values()))) == 1


def test_an_answer_ends_with_a_stop_token_or_at_the_limit(model: Any) -> None:
    stops = frozenset(range(50, 400, 4))
    given = [answer for group in replace(SAMPLER, stop_ids=stops).ask(model, PROMPTS, 6, KEYS) for answer in group]
    assert {answer.finished for answer in given} == {True, False}
    for answer in given:
        assert (answer.ids[-1] in stops) == answer.finished
        assert not set(answer.ids[:-1]) & stops
        assert answer.finished or len(answer.ids) == 8
    endless = SAMPLER.ask(model, PROMPTS, 1, KEYS)
    assert {(len(answer.ids), answer.finished) for (answer,) in endless} == {(8, False)}


def test_a_model_in_training_stays_in_training(model: Any, tmp_path: Path) -> None:
    tuned = random_adapter(model, tmp_path / "lora", lora_dropout=0.5).train()
    modes = {name: module.training for name, module in tuned.named_modules()}
    first = SAMPLER.ask(tuned, PROMPTS, 1, KEYS)
    assert {name: module.training for name, module in tuned.named_modules()} == modes
    assert first == SAMPLER.ask(tuned.eval(), PROMPTS, 1, KEYS)  # no dropout while it answers
    assert all(parameter.grad is None for parameter in tuned.parameters())
    state = torch.get_rng_state()
    SAMPLER.ask(tuned, PROMPTS, 1, KEYS)
    assert torch.equal(state, torch.get_rng_state())


def test_a_prompt_is_computed_once_and_batches_stay_small(model: Any) -> None:
    shapes: list[tuple[int, int]] = []
    model.register_forward_hook(
        lambda module, args, kwargs, output: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    replace(SAMPLER, rows=8).ask(model, PROMPTS, 4, KEYS)
    begun = [shape for shape in shapes if shape[1] > 1]
    assert begun == [(2, 14), (2, 3)]  # two prompts, each once, the longest first
    assert max(rows for rows, _ in shapes) == 8
    shapes.clear()
    replace(SAMPLER, tokens=45).ask(model, PROMPTS, 4, KEYS)  # 2 × (14 + 8) fit, 3 do not
    assert shapes[0] == (1, 14)
    assert shapes[1] == (2, 1)


def test_the_context_is_not_overrun(model: Any) -> None:
    sampler = replace(SAMPLER, context=16)
    assert [len(answer.ids) for (answer,) in sampler.ask(model, PROMPTS, 1, KEYS)] == [8, 7, 8, 2]
    with pytest.raises(DataError, match="16 tokens leaves no room"):
        sampler.ask(model, [list(range(40, 56))], 1, ["a"])
    with pytest.raises(DataError, match="no tokens"):
        sampler.ask(model, [[]], 1, ["a"])
    wrapped = PrefixModel(model, random_prefix(model, length=5))
    ((answer,),) = sampler.ask(wrapped, [PROMPTS[1]], 1, ["a"])
    assert len(answer.ids) == 2


@pytest.mark.parametrize(
    "options", [GenerationOptions(), replace(OPTIONS, repetition_penalty=1.2), replace(OPTIONS, stop=("x",))]
)
def test_options_that_the_loss_does_not_know_are_refused(options: GenerationOptions) -> None:
    with pytest.raises(UsageError, match="answers to learn from"):
        Sampler(options, frozenset(), pad=0)
