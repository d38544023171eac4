"""Choose the next token of every row of a batch, each row by its own options and its own random numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from danlu.engine.protocol import GenerationOptions, request_seed


def row_generator(options: GenerationOptions, key: str) -> torch.Generator | None:
    """Random numbers of one request, from its seed and key; None when nothing is sampled."""
    if not options.do_sample:
        return None
    return torch.Generator().manual_seed(request_seed(options.seed, key))


def choose(
    logits: Tensor,
    options: Sequence[GenerationOptions],
    generators: Sequence[torch.Generator | None],
    seen: Tensor | None = None,
) -> Tensor:
    """The next token of each row, shape (rows,).

    Args:
        logits: (rows, vocabulary), any precision.
        options: of each row.
        generators: of each row that samples.
        seen: (rows, vocabulary) booleans: tokens of the prompt and the answer so far, for the penalty.
    """
    scores = logits.float()
    if seen is not None:
        penalty = scores.new_tensor([[option.repetition_penalty] for option in options])
        penalised = torch.where(scores < 0, scores * penalty, scores / penalty)
        scores = torch.where(seen, penalised, scores)
    tokens = scores.argmax(dim=-1)
    sampled = [row for row, option in enumerate(options) if option.do_sample]
    whole = [row for row in sampled if options[row].top_p == 1 and not options[row].top_k]
    ranked = [row for row in sampled if row not in set(whole)]
    for rows, draw in ((whole, _from_all), (ranked, _from_likeliest)):
        if rows:
            chosen = [options[row] for row in rows]
            random = torch.cat([torch.rand(1, generator=generators[row]) for row in rows]).to(scores.device)
            warmth = scores.new_tensor([[option.temperature] for option in chosen])
            tokens[rows] = draw(scores[rows] / warmth, chosen, random.unsqueeze(-1))
    return tokens


def _from_all(scores: Tensor, options: Sequence[GenerationOptions], random: Tensor) -> Tensor:
    """The token at ``random`` (rows, 1) of the cumulative distribution; sorting it would cost more than the model."""
    cumulative = scores.softmax(dim=-1).cumsum(dim=-1)
    place = torch.searchsorted(cumulative, random * cumulative[:, -1:], right=True).squeeze(-1)
    return torch.where(place < scores.shape[-1], place, scores.argmax(dim=-1))  # rounded up to the very end


def _from_likeliest(scores: Tensor, options: Sequence[GenerationOptions], random: Tensor) -> Tensor:
    """Top-k, then top-p, then the token at ``random`` (rows, 1) of what they leave, likeliest first."""
    vocabulary = scores.shape[-1]
    limits = [min(option.top_k or vocabulary, vocabulary) for option in options]
    if max(limits) < vocabulary:
        ordered, index = scores.topk(max(limits), dim=-1)
    else:
        ordered, index = scores.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(ordered.shape[-1], device=ordered.device)
    limit = torch.tensor(limits, device=ordered.device).unsqueeze(-1)
    probabilities = ordered.masked_fill(rank >= limit, -torch.inf).softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    share = scores.new_tensor([[option.top_p] for option in options])
    kept = probabilities.masked_fill((before >= share) & (rank > 0), 0.0)
    cumulative = kept.cumsum(dim=-1)
    place = torch.searchsorted(cumulative, random * cumulative[:, -1:], right=True)
    place = torch.minimum(place, (kept > 0).sum(dim=-1, keepdim=True) - 1)
    return index.gather(-1, place).squeeze(-1)
