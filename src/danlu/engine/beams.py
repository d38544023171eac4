"""Beam search, by transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from danlu.engine.decoding import Row, pad_left
from danlu.models.prefix import split_prefix


def beam_search(model: Any, rows: Sequence[Row], *, stop_ids: frozenset[int], pad: int) -> None:
    """Answer rows that ask for the same number of beams and the same longest answer; fills in their tokens.

    Args:
        model: as for :func:`danlu.engine.decoding.decode_rows`.
        rows: prompts.
        stop_ids: tokens that end an answer.
        pad: token that fills up shorter prompts.
    """
    from transformers import GenerationConfig

    from danlu.models.quiet import quiet

    model, prefix = split_prefix(model)
    options, beams = rows[0].options, rows[0].options.num_beams
    ids, mask = (part.to(model.device) for part in pad_left([row.ids for row in rows], pad))
    extra: dict[str, Any] = {}
    if prefix is not None:  # transformers takes a filled cache together with ids that stand for it
        size = prefix.shape.length
        ids = torch.cat([ids.new_full((len(rows), size), pad), ids], dim=1)
        mask = torch.cat([mask.new_ones(len(rows), size), mask], dim=1)
        with torch.no_grad():
            extra["past_key_values"] = prefix.past_key_values(model, len(rows) * beams, model.dtype)
    config = GenerationConfig(
        num_beams=beams,
        do_sample=False,
        max_new_tokens=max(row.limit for row in rows),
        repetition_penalty=options.repetition_penalty,
        eos_token_id=sorted(stop_ids) or None,
        pad_token_id=pad,
    )
    with torch.no_grad(), quiet():
        answers = model.generate(input_ids=ids, attention_mask=mask, generation_config=config, **extra)
    for row, answer in zip(rows, answers[:, ids.shape[1] :].tolist()):
        for token in answer:
            row.take(token, stop_ids)
            if row.finished:
                break
        row.finished = row.finished or "length"
