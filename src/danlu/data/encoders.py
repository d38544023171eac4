"""Which stage turns rows into what: one encoder for each kind of row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

from danlu.data.branching import encode_labelled, encode_pairs, encode_prompts
from danlu.data.documents import encode_documents
from danlu.data.encode import EncodingReport, EncodingRules, encode_rows
from danlu.data.schema import Row
from danlu.data.templates import Template
from danlu.data.tokens import Item

Encoder: TypeAlias = Callable[[Iterable[Row], Template, EncodingRules, EncodingReport], Iterator[Item]]


def encode_conversations(
    rows: Iterable[Row], template: Template, rules: EncodingRules, report: EncodingReport
) -> Iterator[Item]:
    """See :func:`danlu.data.encode.encode_rows`."""
    return (Item(row, (encoded,)) for row, encoded in encode_rows(rows, template, rules, report))


ENCODERS: dict[str, Encoder] = {
    "pt": encode_documents,
    "sft": encode_conversations,
    "rm": encode_pairs,
    "dpo": encode_pairs,
    "ipo": encode_pairs,
    "orpo": encode_pairs,
    "simpo": encode_pairs,
    "kto": encode_labelled,
    "ppo": encode_prompts,
    "grpo": encode_prompts,
}
"""Stages that share an encoder share the tokenised rows as well."""
