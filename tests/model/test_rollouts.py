"""Answers to learn from: reproducible whatever they are computed with, and the model is left as it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from probes import random_adapter, random_prefix

from danlu.core.errors import UsageError
from danlu.engine.protocol import GenerationOptions
from danlu.models.loading import load_model
from danlu.models.prefix import PrefixModel
from danlu.tune.online.rollout import Rollout, Sampler

pytestmark = pytest.mark.model

PROMPTS = [list(range(40, 40 + length)) for length in (3, 9, 1, 14)]
OPTIONS = GenerationOptions(do_sample=True, max_new_tokens=8, seed=5)
SAMPLER = Sampler(OPTIONS, frozenset(), pad=0)


@pytest.fixture
def model(tiny_models: dict[str, Path]) -> Any:
    return load_model(tiny_models["llama"])


def answers(rollouts: list[Rollout]) -> dict[tuple[int, int], tuple[int, ...]]:
    return {(rollout.prompt, rollout.sample): rollout.answer_ids for rollout in rollouts}


@pytest.mark.parametrize(("family", "kind"), [("llama", "plain"), ("qwen3", "lora"), ("glm", "prefix")])
def test_an_answer_does_not_depend_on_its_company(
    family: str, kind: str, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    model = load_model(tiny_models[family])
    if kind == "lora":
        model = random_adapter(model, tmp_path / "lora")
    elif kind == "prefix":
        model = PrefixModel(model, random_prefix(model))
    together = answers(SAMPLER.sample(model, PROMPTS, 3, step=2))
    narrow = answers(replace(SAMPLER, rows=2).sample(model, PROMPTS, 3, step=2))
    short = answers(replace(SAMPLER, tokens=30).sample(model, PROMPTS, 3, step=2))
    alone: dict[tuple[int, int], tuple[int, ...]] = {}
    for number in (3, 0, 2, 1):
        alone |= answers(SAMPLER.sample(model, [PROMPTS[number]], 3, step=2, numbers=[number]))
    assert together == narrow == short == alone
    assert len(set(together.values())) == 12


def test_seed_step_prompt_and_sample_decide(model: Any) -> None:
    twice = [SAMPLER.sample(model, [PROMPTS[0]] * 2, 2, step=1) for _ in range(2)]
    assert answers(twice[0]) == answers(twice[1])
    other_step = SAMPLER.sample(model, [PROMPTS[0]] * 2, 2, step=2)
    other_seed = replace(SAMPLER, options=replace(OPTIONS, seed=6)).sample(model, [PROMPTS[0]] * 2, 2, step=1)
    found = [ids for rollouts in (twice[0], other_step, other_seed) for ids in answers(rollouts).values()]
    assert len(set(found)) == len(found) == 12


def test_answers_come_in_the_order_of_the_prompts(model: Any) -> None:
    rollouts = SAMPLER.sample(model, PROMPTS, 2, step=0, numbers=[7, 3, 9, 1])
    assert [(item.prompt, item.sample) for item in rollouts] == [(n, s) for n in (7, 3, 9, 1) for s in (0, 1)]
    assert [list(item.prompt_ids) for item in rollouts] == [ids for ids in PROMPTS for _ in range(2)]


def test_temperature_and_the_cuts_are_honoured(model: Any) -> None:
    greedy = {}
    for options in (replace(OPTIONS, temperature=1e-4), replace(OPTIONS, top_k=1), replace(OPTIONS, top_p=1e-6)):
        found = answers(replace(SAMPLER, options=options).sample(model, PROMPTS, 2, step=0))
        assert all(found[number, 0] == found[number, 1] for number in range(4))
        greedy[options] = found
    assert len({tuple(found.items()) for found in greedy.values()}) == 1


def test_an_answer_ends_with_a_stop_token_or_at_the_limit(model: Any) -> None:
    stops = frozenset(range(50, 400, 4))
    rollouts = replace(SAMPLER, stop_ids=stops).sample(model, PROMPTS, 6, step=0)
    ended = [item for item in rollouts if item.finished]
    assert ended
    assert all(item.answer_ids[-1] in stops for item in ended)
    assert all(item.text_ids(stops) == item.answer_ids[:-1] for item in ended)
    assert not any(set(item.text_ids(stops)) & stops for item in rollouts)
    endless = SAMPLER.sample(model, PROMPTS, 1, step=0)
    assert {(len(item.answer_ids), item.finished) for item in endless} == {(8, False)}
    assert endless[0].text_ids(stops) == endless[0].answer_ids or endless[0].answer_ids[-1] in stops


def test_a_model_in_training_stays_in_training(model: Any, tmp_path: Path) -> None:
    tuned = random_adapter(model, tmp_path / "lora", lora_dropout=0.5).train()
    modes = {name: module.training for name, module in tuned.named_modules()}
    first = SAMPLER.sample(tuned, PROMPTS, 1, step=0)
    assert {name: module.training for name, module in tuned.named_modules()} == modes
    assert answers(first) == answers(SAMPLER.sample(tuned.eval(), PROMPTS, 1, step=0))  # no dropout while it answers
    assert all(parameter.grad is None for parameter in tuned.parameters())
    state = torch.get_rng_state()
    SAMPLER.sample(tuned, PROMPTS, 1, step=0)
    assert torch.equal(state, torch.get_rng_state())


def test_a_prompt_is_computed_once_and_batches_stay_small(model: Any) -> None:
    shapes: list[tuple[int, int]] = []
    model.register_forward_hook(
        lambda module, args, kwargs, output: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    replace(SAMPLER, rows=8).sample(model, PROMPTS, 4, step=0)
    begun = [shape for shape in shapes if shape[1] > 1]
    assert begun == [(2, 14), (2, 3)]  # two prompts, each once, the longest first
    assert max(rows for rows, _ in shapes) == 8
    shapes.clear()
    replace(SAMPLER, tokens=45).sample(model, PROMPTS, 4, step=0)  # 2 × (14 + 8) fit, 3 do not
    assert shapes[0] == (1, 14)
    assert shapes[1] == (2, 1)


def test_the_context_is_not_overrun(model: Any) -> None:
    sampler = replace(SAMPLER, context=16)
    rollouts = sampler.sample(model, PROMPTS, 1, step=0)
    assert [len(item.answer_ids) for item in rollouts] == [8, 7, 8, 2]
    with pytest.raises(UsageError, match="16 tokens leaves no room"):
        sampler.sample(model, [list(range(40, 56))], 1, step=0)
    with pytest.raises(UsageError, match="no tokens"):
        sampler.sample(model, [[]], 1, step=0)
    wrapped = PrefixModel(model, random_prefix(model, length=5))
    assert len(sampler.sample(wrapped, [PROMPTS[1]], 1, step=0)[0].answer_ids) == 2


@pytest.mark.parametrize(
    "options", [GenerationOptions(), replace(OPTIONS, repetition_penalty=1.2), replace(OPTIONS, stop=("x",))]
)
def test_options_that_the_loss_does_not_know_are_refused(options: GenerationOptions) -> None:
    with pytest.raises(UsageError, match="answers to learn from"):
        Sampler(options, frozenset(), pad=0)
