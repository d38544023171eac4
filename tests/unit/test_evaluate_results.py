from __future__ import annotations

import json

import pytest

from danlu.core.results import metrics_block, write_results
from danlu.evaluate.metrics import measure
from danlu.evaluate.results import number, prefixed, print_scores

SCORES = {"bleu-4": 12.859133333333332, "rouge-1": 37.4144, "accuracy": 0.0}


def test_keys_and_speed():
    values = prefixed(SCORES, "eval", runtime=6.50491, samples=50, steps=7)
    assert values == {
        "eval_bleu-4": 12.859133333333332,
        "eval_rouge-1": 37.4144,
        "eval_accuracy": 0.0,
        "eval_runtime": 6.5049,
        "eval_samples_per_second": 7.687,
        "eval_steps_per_second": 1.076,
    }
    assert prefixed(values, "eval") == values
    assert prefixed({"loss": 1}, "predict", runtime=0.0, samples=3) == {
        "predict_loss": 1,
        "predict_runtime": 0.0,
    }


def test_files_to_the_byte_and_merged(tmp_path):
    write_results(tmp_path, "eval", {"eval_rouge-1": 37.4144, "eval_accuracy": 0.0})
    text = '{\n    "eval_accuracy": 0.0,\n    "eval_rouge-1": 37.4144\n}'
    assert (tmp_path / "eval_results.json").read_text() == text
    write_results(tmp_path, "predict", {"predict_rouge-1": 1.5})
    write_results(tmp_path, "eval", {"eval_rouge-1": 40.0})
    merged = json.loads((tmp_path / "all_results.json").read_text())
    assert merged == {"eval_accuracy": 0.0, "eval_rouge-1": 40.0, "predict_rouge-1": 1.5}
    assert json.loads((tmp_path / "eval_results.json").read_text()) == {"eval_rouge-1": 40.0}


def test_console_block():
    values = prefixed(SCORES, "eval", runtime=6.5, samples=50)
    assert metrics_block("eval", values).splitlines() == [
        "***** eval metrics *****",
        "  eval_accuracy           =        0.0",
        "  eval_bleu-4             =    12.8591",
        "  eval_rouge-1            =    37.4144",
        "  eval_runtime            = 0:00:06.50",
        "  eval_samples_per_second =      7.692",
    ]
    assert metrics_block("train", {"total_flos": 5 << 30}).splitlines()[1] == "  total_flos = 5GF"


def test_scores_are_printed_with_interval_n_and_protocol(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("jieba")
    pytest.importorskip("sacrebleu")
    print_scores(measure(["你好世界", "早上好"], ["你好世界", "晚上好"], "standard"))
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("bleu: ") and "tok:zh" in line for line in lines)
    row = next(line for line in lines if line.startswith("exact-match "))
    assert row.split()[:4] == ["exact-match", "50.00", "9.45–90.55", "2"]


def test_numbers():
    assert number(12.345) == "12.35"
    assert number(0.5, 1.0) == "0.5000"
    assert number(float("nan")) == "–"
