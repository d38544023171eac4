"""Sampling draws from the distribution that transformers' warpers describe."""

from __future__ import annotations

import pytest
import torch

from danlu.engine.protocol import GenerationOptions
from danlu.engine.sampling import choose, row_generator

pytestmark = pytest.mark.model

CASES = [
    GenerationOptions(do_sample=True),
    GenerationOptions(do_sample=True, temperature=0.6),
    GenerationOptions(do_sample=True, top_k=4),
    GenerationOptions(do_sample=True, top_p=0.7),
    GenerationOptions(do_sample=True, temperature=0.95, top_p=0.7, top_k=50),
    GenerationOptions(do_sample=True, temperature=1.5, top_p=0.9, top_k=6),
    GenerationOptions(do_sample=True, top_p=1e-6),
]


def expected_probabilities(logits: torch.Tensor, options: GenerationOptions) -> torch.Tensor:
    from transformers.generation.logits_process import (
        LogitsProcessorList,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    warpers = LogitsProcessorList([TemperatureLogitsWarper(options.temperature)])
    if options.top_k:
        warpers.append(TopKLogitsWarper(options.top_k))
    if options.top_p < 1:
        warpers.append(TopPLogitsWarper(options.top_p))
    return warpers(torch.zeros(1, 1, dtype=torch.long), logits.unsqueeze(0)).softmax(-1)[0]


@pytest.mark.parametrize("options", CASES, ids=str)
def test_frequencies(options: GenerationOptions) -> None:
    draws = 20_000
    logits = torch.randn(12, generator=torch.Generator().manual_seed(8)) * 2
    generator = row_generator(options, "a")
    tokens = choose(logits.expand(draws, -1), [options] * draws, [generator] * draws)
    found = torch.bincount(tokens, minlength=12) / draws
    expected = expected_probabilities(logits, options)
    assert not (found[expected == 0] > 0).any()
    assert (found - expected).abs().sum() < 0.03


def test_rows_keep_their_own_options() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(2))
    narrow = GenerationOptions(do_sample=True, top_k=1)
    wide = GenerationOptions(do_sample=True, temperature=50.0)
    for seed in range(30):
        generators = [None, torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed)]
        tokens = choose(logits, [GenerationOptions(), narrow, wide], generators)
        assert tokens[0] == logits[0].argmax()
        assert tokens[1] == logits[1].argmax()
    assert len({int(choose(logits, [wide] * 3, [row_generator(wide, str(n))] * 3)[2]) for n in range(30)}) > 10


def test_penalty_pushes_seen_tokens_down() -> None:
    logits = torch.tensor([[2.0, 1.9, -1.0], [-0.1, -0.2, -3.0]])
    seen = torch.tensor([[True, False, False], [True, False, False]])
    options = GenerationOptions(repetition_penalty=3.0)
    assert choose(logits, [options] * 2, [None, None], seen).tolist() == [1, 1]
    assert choose(logits, [GenerationOptions()] * 2, [None, None], seen).tolist() == [0, 0]


def test_greedy_uses_no_random_numbers() -> None:
    assert row_generator(GenerationOptions(), "a") is None


def test_the_end_of_the_distribution_is_a_token_that_can_come(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.tensor([[0.0, 3.0, -torch.inf, -torch.inf]])
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.ones(1))
    for options in (GenerationOptions(do_sample=True), GenerationOptions(do_sample=True, top_k=3)):
        assert choose(logits, [options], [None]).item() in (0, 1)


def test_more_than_the_vocabulary_is_the_vocabulary() -> None:
    logits = torch.randn(2, 9, generator=torch.Generator().manual_seed(4))
    many, few = GenerationOptions(do_sample=True, top_k=50), GenerationOptions(do_sample=True, top_k=2)
    for seed in range(10):
        pair = [torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed)]
        tokens = choose(logits, [many, few], pair)
        assert int(tokens[1]) in logits[1].topk(2).indices.tolist()
