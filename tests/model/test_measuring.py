"""`danlu eval` and `danlu predict` on tiny models: which rows, what is said about them, which numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tuning import tune

from danlu.models.loading import load_tokenizer
from danlu.verbs.evaluate import evaluate, predict
from danlu.verbs.export import export
from danlu.verbs.train import train

pytestmark = pytest.mark.model

SHORT = {"max_new_tokens": 4}


def labels(file: Path) -> list[str]:
    return [json.loads(line)["prompt"] for line in file.read_text().splitlines()]


def test_known_rows_are_told_however_the_model_is_named(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora = tune(model, data, tmp_path / "lora", max_steps=1)
    full = tune(model, data, tmp_path / "full", max_steps=1, finetuning_type="full")
    for place, named in ((lora, {"model": str(model), "adapter": [str(lora)]}), (full, {"model": str(full)})):
        capsys.readouterr()
        evaluate(dataset=str(data), output_dir=str(tmp_path / "e"), **SHORT, **named)
        assert f"14 of 14 rows of {data} were in the training data of {place}" in capsys.readouterr().err
    evaluate(model=str(model), dataset=str(data), output_dir=str(tmp_path / "e"), **SHORT)
    assert "training data" not in capsys.readouterr().err


def test_rows_held_out_stay_the_same_ones(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tune(model, data, tmp_path / "run", max_steps=1, val_size=4)
    whole = labels(predict(run, output_dir=str(tmp_path / "a"), **SHORT))
    assert len(whole) == 4
    fewer = labels(predict(run, output_dir=str(tmp_path / "b"), max_samples=3, seed=7, **SHORT))
    assert fewer == whole[:3]
    assert "training data" not in capsys.readouterr().err


def test_answers_that_reach_the_limit_are_told(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predict(model=str(model), dataset=str(data), max_samples=3, output_dir=str(tmp_path / "p"), max_new_tokens=1)
    assert "3 of 3 answers reached max_new_tokens=1" in capsys.readouterr().err


def test_loss_alone_has_the_speed_in_steps_too(model: Path, data: Path, tmp_path: Path) -> None:
    options = {"model_name_or_path": str(model), "do_train": False, "do_eval": True, "file_style": "et"}
    train({**options, "eval_dataset": str(data), "output_dir": str(tmp_path / "e")})
    assert set(json.loads((tmp_path / "e" / "eval_results.json").read_text())) == {
        "eval_loss",
        "eval_runtime",
        "eval_samples_per_second",
        "eval_steps_per_second",
    }


def test_results_of_training_in_the_old_style_have_its_keys(model: Path, data: Path, tmp_path: Path) -> None:
    run = tune(model, data, tmp_path / "run", max_steps=1, file_style="et")
    assert sorted(json.loads((run / "train_results.json").read_text())) == [
        "epoch",
        "train_loss",
        "train_runtime",
        "train_samples_per_second",
        "train_steps_per_second",
    ]


def test_an_export_keeps_the_template_that_was_trained_with(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A LLaMA-Factory file names a template for every model; one that brings its own is trained with that."""
    run = tune(model, data, tmp_path / "run", max_steps=1, template="alpaca")
    export(run=str(run), output_dir=str(tmp_path / "out"), template="alpaca")
    assert load_tokenizer(tmp_path / "out").chat_template == load_tokenizer(model).chat_template
    assert "template=alpaca is not used" in capsys.readouterr().err


def test_the_revision_of_a_hub_model_reaches_evaluation(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[object, ...]] = []

    def fetch(name: str, *, revision: str = "main", cache_dir: object = None, source: str | None = None) -> Path:
        asked.append((name, revision, cache_dir, source))
        return model

    monkeypatch.setattr("danlu.models.loading.fetch", fetch)
    keys = {"model_revision": "v2", "model_hub": "modelscope", "cache_dir": str(tmp_path / "hub"), "max_samples": 1}
    evaluate(model="someone/tiny", dataset=str(data), output_dir=str(tmp_path / "e"), **keys, **SHORT)
    assert set(asked) == {("someone/tiny", "v2", str(tmp_path / "hub"), "modelscope")}


@pytest.mark.parametrize("metrics", ["compat", "standard"])
def test_eval_of_a_run_in_an_old_style_generates_and_prints(
    metrics: str, model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tune(model, data, tmp_path / "run", max_steps=1, file_style="et")
    capsys.readouterr()
    values = evaluate(
        run, dataset=str(data), max_samples=2, metric_set=metrics, output_dir=str(tmp_path / "e"), **SHORT
    )
    assert "eval_rouge-1" in values or "eval_chrf" in values
    assert "rouge-1" in capsys.readouterr().out
