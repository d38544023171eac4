"""The parameter counts in the documentation are counted, not written by hand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from transformers import GlmConfig

from danlu.core.config import build
from danlu.tune.config import TrainConfig
from danlu.tune.methods import FAMILIES, METHODS, family
from danlu.tune.preflight import read_shape, trainable_parameters

pytestmark = pytest.mark.model

CHATGLM2_6B = {
    "vocab_size": 65024,
    "hidden_size": 4096,
    "num_hidden_layers": 28,
    "num_attention_heads": 32,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "intermediate_size": 13696,
    "attention_bias": True,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "eos_token_id": 2,
}
ROW = re.compile(r"^\| `(\w+)`(?: (?:with|加) `(\w+)(?:=(\w+))?`)? \| .* \| ([\d,]+) \| ([^|]+) \|$", re.MULTILINE)


def test_the_table_of_methods() -> None:
    root = Path(__file__).parents[2] / "docs"
    rows = {language: ROW.findall((root / language / "methods.md").read_text("utf-8")) for language in ("en", "zh")}
    assert {name for name, *_ in rows["en"]} == set(METHODS.names()) == set(FAMILIES)
    assert [row[:4] for row in rows["en"]] == [row[:4] for row in rows["zh"]]
    shape = read_shape(GlmConfig(**CHATGLM2_6B))
    for method, option, value, count, merged in rows["en"]:
        options = {option: value or True} if option else {}
        config = build(TrainConfig, {"finetuning_type": method, **options}, where="docs")
        assert f"{trainable_parameters(shape, config):,}" == count, (method, option)
        assert (merged == "no") != family(method).mergeable
