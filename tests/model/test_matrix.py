"""Every method with every objective: it learns, moves only its own weights, is the same when opened or continued."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import dataclass
from math import isfinite, log
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from methods_tried import METHODS, Watch, allowed, kind_of
from probes import logits_of, token_batch
from test_resume import killed_at
from tuning import assert_same_run, history, losses, tune, write_rows

from danlu.core.errors import UsageError
from danlu.models.adapters import merge
from danlu.models.loading import load_model
from danlu.models.runs import open_run
from danlu.models.value_head import ValueHead, read_head
from danlu.tune import methods
from danlu.tune.batches import lay_out
from danlu.tune.learner import Learner
from danlu.tune.matrix import ONLINE, REFUSED
from danlu.tune.measuring import learner_of
from danlu.tune.methods import call
from danlu.tune.options.task import Stage

pytestmark = pytest.mark.model

FAMILIES = ("llama", "qwen3", "glm")
STAGES: tuple[str, ...] = get_args(Stage)
VARIANTS = {name: [variant for variant in METHODS if kind_of(variant) == name] for name in methods.METHODS}
AT_START = {"dpo": log(2), "ipo": 25.0, "kto": 0.5}
"""Loss of objectives that compare with the model before training, where nothing has been learnt."""
OPTIONS: dict[str, Any] = {
    "per_device_train_batch_size": 8,
    "num_train_epochs": 4,
    "max_new_tokens": 6,
    "num_generations": 4,
    "ppo_epochs": 2,
    "kl_limit": 1e6,
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One training of the matrix."""

    variant: str
    stage: str
    family: str

    def __str__(self) -> str:
        return f"{self.variant}-{self.stage}-{self.family}"

    @property
    def method(self) -> str:
        return kind_of(self.variant)

    @property
    def refused(self) -> bool:
        return (self.method, self.stage) in REFUSED


def cells() -> list[Cell]:
    """Every method × every objective; families and variants of a method take turns."""
    found = []
    for row, method in enumerate(VARIANTS):
        for column, stage in enumerate(STAGES):
            variant = VARIANTS[method][column % len(VARIANTS[method])]
            found.append(Cell(variant, stage, FAMILIES[(row + column) % len(FAMILIES)]))
    return found


CELLS = cells()
WORK = [cell for cell in CELLS if not cell.refused]


def diagonal(first: int, step: int) -> list[Cell]:
    """One cell of each method, with another objective for each."""
    width = len(STAGES)
    return [CELLS[row * width + (first + step * row) % width] for row in range(len(VARIANTS))]


CONTINUED = set(diagonal(4, 3)) & set(WORK)
KILLED = set(diagonal(9, 3)) & set(WORK)


def test_the_table_covers_every_pair() -> None:
    assert {cell.method for cell in CELLS} == set(methods.METHODS) == set(methods.FAMILIES)
    assert {(cell.method, cell.stage) for cell in CELLS} == {(m, s) for m in methods.METHODS for s in STAGES}
    assert {cell.variant for cell in WORK} == set(METHODS)
    for family in FAMILIES:
        assert {cell.method for cell in WORK if cell.family == family} == set(methods.METHODS)
        assert {cell.stage for cell in WORK if cell.family == family} == set(STAGES)
    for chosen in (CONTINUED, KILLED):
        assert {cell.method for cell in chosen} == set(methods.METHODS)
        assert {cell.stage for cell in chosen} == set(STAGES)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file of rows for each objective, and ``reward``: a function that likes letters."""
    folder = tmp_path_factory.mktemp("rows")
    conversations = write_rows(folder / "rows.jsonl", 8)
    asked = [f"What is number {n}?" + " Tell me." * (n % 3) for n in range(8)]
    pairs = [{"prompt": text, "chosen": f"It is {n * 7 % 10}.", "rejected": "No."} for n, text in enumerate(asked)]
    texts = [{"text": f"The furnace takes raw text, number {n}. " * (1 + n % 2)} for n in range(8)]
    for name, items in {"pairs": pairs, "texts": texts}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    (folder / "letters.py").write_text(
        "def letters(answers, **_):\n    return [sum(c.isalpha() for c in a) / max(len(a), 1) for a in answers]\n"
    )
    kinds = {"pt": "texts.jsonl", **dict.fromkeys(("sft", "ppo", "grpo"), conversations.name)}
    return {stage: folder / kinds.get(stage, "pairs.jsonl") for stage in STAGES} | {"reward": folder / "letters.py"}


@pytest.fixture(scope="module")
def bases(tiny_models: dict[str, Path]) -> dict[str, Any]:
    """The models before training. Read only: copy before changing."""
    return {family: load_model(tiny_models[family], dtype="float32") for family in FAMILIES}


def options_of(cell: Cell, rows: dict[str, Path]) -> dict[str, Any]:
    found = {**OPTIONS, **METHODS[cell.variant], "stage": cell.stage}
    if cell.stage in ONLINE:
        found |= {"max_steps": 2, "reward_funcs": f"{rows['reward']}:letters"}
    if cell in KILLED:
        found |= {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    return found


@pytest.mark.parametrize("cell", WORK, ids=str)
def test_cell(
    cell: Cell,
    tiny_models: dict[str, Path],
    bases: dict[str, Any],
    rows: dict[str, Path],
    tmp_path: Path,
    watch: Watch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, options = tiny_models[cell.family], options_of(cell, rows)
    run = tune(model, rows[cell.stage], tmp_path / "run", **options)
    assert_learnt(cell, losses(run))
    assert_only_its_own_weights_moved(cell, watch)
    ids = token_batch(2, 9)
    in_memory = logits_of(watch.model(), ids)
    opened, _ = open_run(run).load()
    torch.testing.assert_close(logits_of(opened, ids), in_memory, rtol=1e-4, atol=1e-4)
    assert_the_head_says_the_same(run, watch.learner, opened, ids)
    if methods.family(cell.method).kind == "peft":
        merged = merge(deepcopy(bases[cell.family]), [run])
        torch.testing.assert_close(logits_of(merged, ids), in_memory, rtol=1e-3, atol=1e-3)
    if cell in CONTINUED:
        expected = loss_now(cell, watch)
        given = {"adapter_name_or_path": str(run)} if methods.family(cell.method).kind != "whole" else {}
        again = tune(
            model if given else run, rows[cell.stage], tmp_path / "again", **{**options, **given, "max_steps": 2}
        )
        assert_continued(cell, run, again, expected, watch)
    if cell in KILLED:
        with killed_at(monkeypatch, 3):
            tune(model, rows[cell.stage], tmp_path / "killed", **options)
        assert_same_run(run, tune(model, rows[cell.stage], tmp_path / "killed", **options))


def assert_learnt(cell: Cell, found: list[float]) -> None:
    assert all(map(isfinite, found))
    if cell.stage not in ONLINE:
        assert found[-1] < 0.97 * found[0]


def assert_only_its_own_weights_moved(cell: Cell, watch: Watch) -> None:
    moved = watch.moved()
    mine = {name for name in watch.before if allowed(cell.variant, name)}
    head = {name for name in watch.before if name.startswith("value_head.")}
    assert bool(head) == (cell.stage in ("rm", "ppo"))
    assert moved <= mine | head
    idle = {name for name in mine if "lora_E" in name and cell.method == "adalora"}  # entries that were given up
    idle |= {name for name in mine if "lm_head" in name and cell.stage == "rm"}  # a reward asks for no next token
    assert mine - idle <= moved
    if head:
        assert "value_head.summary.weight" in moved


def assert_the_head_says_the_same(run: Path, learner: Learner, opened: Any, ids: torch.Tensor) -> None:
    saved = read_head(run)
    assert (saved is None) == (learner.value_head is None)
    if saved is None or learner.value_head is None:
        return
    head = ValueHead(saved["summary.weight"].shape[-1])
    head.load_state_dict(saved)
    batch = lay_out([[(row.numpy(), row.numpy() > 0)] for row in ids])
    with torch.no_grad():
        here, there = (
            one.eval().numbers(one.see(batch), batch["at"])
            for one in (learner, learner_of(opened, learner.settings, head))
        )
    torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-4)


def loss_now(cell: Cell, watch: Watch) -> float:
    """What the first step of a training that goes on from here must tell."""
    if cell.stage in ONLINE:
        return 0.0
    trainer = watch.trainer
    trainer.model.train()
    with torch.no_grad():
        if cell.stage in AT_START:
            penalty = call(trainer.method, "penalty", watch.tuned)
            return AT_START[cell.stage] + (0.0 if penalty is None else float(penalty))
        return float(trainer.compute_loss(trainer.model, next(iter(trainer.get_train_dataloader()))))


def assert_continued(cell: Cell, run: Path, again: Path, expected: float, watch: Watch) -> None:
    told = history(again)
    if cell.stage in ONLINE:
        assert told[0]["kl"] == pytest.approx(0, abs=1e-3)
    else:
        assert told[0]["loss"] == pytest.approx(expected, rel=1e-3)
    assert watch.moved()
    saved = read_head(run)
    if saved is not None:
        assert torch.equal(watch.before["value_head.summary.weight"], saved["summary.weight"])


@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell.refused], ids=str)
def test_what_makes_no_sense_is_refused_before_anything_is_loaded(
    cell: Cell, rows: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as refusal:
        tune(tmp_path / "no-model", rows[cell.stage], tmp_path / "run", **options_of(cell, rows))
    assert REFUSED[cell.method, cell.stage] in str(refusal.value)
    assert not (tmp_path / "run").exists()
