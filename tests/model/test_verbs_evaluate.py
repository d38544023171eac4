"""`danlu eval` and `danlu predict` through their functions: files, resuming, held-out rows, warnings."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

import danlu
from danlu.core.errors import UsageError
from danlu.verbs import evaluate as verb

pytestmark = pytest.mark.model

SHORT = {"max_new_tokens": 6, "bf16": False}


def write_rows(path: Path, count: int, word: str = "run") -> Path:
    rows = [
        {"instruction": f"What is {word} {n}?", "input": "", "output": f"A {word} is folder {n}."} for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def run(tiny_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    return danlu.train(
        {
            "model_name_or_path": str(tiny_models["llama"]),
            "dataset": str(write_rows(folder / "rows.jsonl", 10)),
            "val_size": 3,
            "max_steps": 2,
            "output_dir": str(folder / "out"),
        }
    )


def test_a_run_knows_its_held_out_rows(run: Path, tmp_path: Path) -> None:
    file = danlu.predict(run, output_dir=str(tmp_path), **SHORT)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["index"] for row in rows] == [0, 1, 2]
    assert all(row["prompt"].endswith("<|im_start|>assistant\n") for row in rows)
    assert json.loads((tmp_path / "predict_results.json").read_text())["predict_samples_per_second"] > 0
    scores = json.loads((tmp_path / "predict_scores.json").read_text())
    assert {"value", "low", "high", "n", "protocol"} <= scores[0].keys()
    assert scores[0]["n"] == 3


def test_a_killed_evaluation_asks_only_what_is_missing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_rows(tmp_path / "other.jsonl", 5, "word")
    asked: list[int] = []
    own = verb.answer

    def dying(engine: Any, waiting: Any, options: Any, finished: Any, *, limit: int | None = 2) -> None:
        def counted(number: int, completion: Any) -> None:
            if limit is not None and len(asked) >= limit:
                raise KeyboardInterrupt
            asked.append(number)
            finished(number, completion)

        own(engine, waiting, options, counted)

    monkeypatch.setattr(verb, "answer", dying)
    with pytest.raises(KeyboardInterrupt):
        danlu.evaluate(run, dataset=str(data), output_dir=str(tmp_path / "eval"), **SHORT)
    assert len(asked) == 2
    monkeypatch.setattr(verb, "answer", lambda *given: dying(*given, limit=None))
    resumed = danlu.evaluate(run, dataset=str(data), output_dir=str(tmp_path / "eval"), **SHORT)
    assert sorted(asked) == [0, 1, 2, 3, 4]
    whole = danlu.evaluate(run, dataset=str(data), output_dir=str(tmp_path / "whole"), **SHORT)
    speed = ("runtime", "per_second")
    assert all(resumed[key] == whole[key] for key in whole if not key.endswith(speed))
    assert not list((tmp_path / "eval").glob(".evaluation*"))


def test_trained_rows_are_named(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    danlu.evaluate(run, dataset=str(run.parent / "rows.jsonl"), output_dir=str(tmp_path), **SHORT)
    assert "were in the training data" in capsys.readouterr().err


def test_the_loss_afterwards_is_that_of_the_held_out_rows(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    folder = danlu.train(
        {
            "model_name_or_path": str(tiny_models["llama"]),
            "dataset": str(write_rows(tmp_path / "rows.jsonl", 10)),
            "val_size": 3,
            "max_steps": 2,
            "eval_strategy": "steps",
            "eval_steps": 1,
            "do_eval": True,
            "file_style": "llamafactory",
            "output_dir": str(tmp_path / "out"),
        }
    )
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    on_the_way = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    afterwards = json.loads((folder / "eval_results.json").read_text())["eval_loss"]
    assert math.isfinite(afterwards)
    assert afterwards == pytest.approx(on_the_way[-1], rel=1e-4)


def test_exactly_one_model_is_named(run: Path) -> None:
    with pytest.raises(UsageError, match="run or a model"):
        danlu.evaluate(run, model="x")
    with pytest.raises(UsageError, match="run or a model"):
        danlu.evaluate()
