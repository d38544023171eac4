"""The metrics benchmark's pairs and sides. Nothing is timed here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import metrics

TEXTS = [f"第{number}条，今天天气很好。编号是{number * 7919}，the cat sat on mat {number}。" for number in range(40)]


def test_no_text_comes_twice() -> None:
    pairs = metrics.made_pairs(TEXTS, 30)
    texts = [text for pair in pairs for text in pair]
    assert len(pairs) == 30
    assert len(set(texts)) == len(texts)
    assert all(reference in TEXTS for _, reference in pairs)
    assert pairs == metrics.made_pairs(TEXTS, 30)


def test_both_sides_are_measured_on_every_block_and_agree() -> None:
    for package in ("jieba", "rouge_chinese", "nltk"):
        pytest.importorskip(package)
    found = metrics.compare(metrics.made_pairs(TEXTS, 12), size=4, repeats=2)
    assert found["unequal"] == 0
    assert found["blocks"] == 6 == len(found["ratio"]) == len(found["danlu"]) == len(found["peer"])
    assert all(ratio > 0 for ratio in found["ratio"])
