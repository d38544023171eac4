"""The console block and the result files against the Trainer whose output they keep."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from danlu.core.results import metrics_block, write_results

pytestmark = pytest.mark.golden

VALUES = {
    "eval_bleu-4": 12.859133333333332,
    "eval_rouge-1": 37.41444999,
    "eval_accuracy": 0.0,
    "eval_runtime": 3671.2391,
    "eval_samples_per_second": 7.687,
    "total_flos": 7 << 31,
    "epoch": 3.0,
    "n": 12,
    "eval_mem_gpu_peaked_delta": 5 << 20,
}


def trainer_functions():
    pytest.importorskip("torch")
    return pytest.importorskip("transformers.trainer_pt_utils")


def test_console_block_equals_the_trainers(capsys):
    functions = trainer_functions()
    trainer = SimpleNamespace(is_world_process_zero=lambda: True)
    trainer.metrics_format = functions.metrics_format
    functions.log_metrics(trainer, "eval", VALUES)
    assert capsys.readouterr().out == metrics_block("eval", VALUES) + "\n"


def test_files_equal_the_trainers(tmp_path):
    functions = trainer_functions()
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    theirs.mkdir()
    trainer = SimpleNamespace(
        is_world_process_zero=lambda: True, args=SimpleNamespace(output_dir=str(theirs), should_save=True)
    )
    for split in ("eval", "predict"):
        values = {key.replace("eval", split): value for key, value in VALUES.items()}
        functions.save_metrics(trainer, split, values)
        write_results(ours, split, values)
    for name in ("eval_results.json", "predict_results.json", "all_results.json"):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes()
