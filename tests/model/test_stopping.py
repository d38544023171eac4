"""A limit of time, and the names of checkpoints while a run goes on."""

from __future__ import annotations

import json
from itertools import chain, count, repeat
from pathlib import Path
from typing import Any

import pytest
from tuning import assert_same_run, losses, tune

from danlu.core.checkpoints import follow
from danlu.core.errors import RunError
from danlu.models.runs import open_run
from danlu.tune.callbacks import StopOnRequest
from danlu.tune.tally import Tally

pytestmark = pytest.mark.model

SAVE = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 2}


def a_minute_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock for the limit alone: each look at it, once a step, is a minute later, whatever the real time is."""
    from time import monotonic

    minutes = count(1)
    began = monotonic()
    monkeypatch.setattr(StopOnRequest, "clock", staticmethod(lambda: began + 3600 * 24 + 60 * next(minutes)))
    own = StopOnRequest.after
    monkeypatch.setattr(StopOnRequest, "after", lambda self, limit, _: own(self, limit, began + 3600 * 24))


@pytest.mark.parametrize(("schedule", "stops"), [("steps", (3, 6)), ("epoch", (3,))])
def test_the_time_is_over(
    schedule: str, stops: tuple[int, ...], model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"save_strategy": schedule, "logging_strategy": schedule, "lora_dropout": 0.1}
    whole = tune(model, data, tmp_path / "whole", **options)
    for stop in stops:  # the limit holds for each start anew
        with monkeypatch.context() as patch:
            a_minute_a_step(patch)
            with pytest.raises(RunError, match=rf"stopped at step {stop} of 8 after max_minutes=3; it is saved.*go on"):
                tune(model, data, tmp_path / "again", max_minutes=3, save_only_model=True, **options)
        assert (tmp_path / "again" / f"checkpoint-{stop}" / "optimizer.pt").is_file()
        assert follow(tmp_path / "again" / "last").name == f"checkpoint-{stop}"
    again = tune(model, data, tmp_path / "again", max_minutes=1e9, **options)  # it may change when a run goes on
    assert_same_run(whole, again)


def test_a_run_that_ends_in_time_is_whole(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_minute_a_step(monkeypatch)
    run = tune(model, data, tmp_path / "run", max_steps=3, max_minutes=3)
    assert (run / "train_results.json").is_file()


def test_names_of_checkpoints(model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted = chain([5.0, 2.0], repeat(3.0))
    monkeypatch.setattr("danlu.tune.evaluation._of_one", lambda *_: (next(scripted), 1.0, Tally()))
    options = {**SAVE, "val_size": 4, "eval_strategy": "steps", "eval_steps": 2, "num_train_epochs": 4}
    run = tune(model, data, tmp_path / "run", load_best_model_at_end=True, **options)
    state = json.loads((run / "trainer_state.json").read_text())
    assert (run / "best").readlink() == Path("checkpoint-4") == Path(state["best_model_checkpoint"]).relative_to(run)
    assert (run / "last").readlink() == Path(f"checkpoint-{state['global_step']}")
    assert open_run(run / "best").adapters == (str(run / "checkpoint-4"),)
    again = tune(model, data, run, resume_from_checkpoint=str(run / "best"), load_best_model_at_end=True, **options)
    assert (again / "last").exists()
    assert losses(again)[-1] > 0


def test_without_a_measure_there_is_no_best(model: Path, data: Path, tmp_path: Path) -> None:
    run = tune(model, data, tmp_path / "run", **SAVE)
    assert (run / "last").readlink() == Path("checkpoint-8")
    assert not (run / "best").is_symlink()
    tune(model, data, run, overwrite_output_dir=True, save_strategy="no")
    assert not (run / "last").is_symlink()


def test_a_folder_of_that_name_is_somebody_elses(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run" / "last").mkdir(parents=True)
    tune(model, data, tmp_path / "run", save_strategy="steps", save_steps=8)
    assert "last is not danlu's, so it does not stand for checkpoint-8" in capsys.readouterr().err
