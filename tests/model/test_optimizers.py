"""Every optimizer that can be used here lowers the loss, and a resumed run is the run that was never stopped."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from tuning import Killed, assert_same_run, losses, tune, weights

from danlu.core.errors import ConfigError
from danlu.tune.optimizers import kinds
from danlu.tune.optimizers.muon import MARK, MuonWithAdamW, build_muon

pytestmark = pytest.mark.model

PLAIN = [name for name, kind in kinds().items() if not kind.refused and not kind.package]
PACKAGED = ["galore_adamw", "adamw_8bit", "paged_adamw_8bit", "lion_8bit", "adamw_torch_4bit", "stable_adamw"]
PACKAGED += ["schedule_free_adamw"]
RATES = {"sgd": 0.1, "rmsprop": 1e-3, "lion_8bit": 1e-3}
STEPS = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "gradient_accumulation_steps": 2}


@pytest.fixture
def model(tiny_models: dict[str, Path]) -> Path:
    return tiny_models["qwen3"]


def options(name: str, method: str) -> dict[str, Any]:
    if (package := kinds()[name].package) and not find_spec(package):
        pytest.skip(f"{package} is not installed")
    rate = {"learning_rate": RATES[name]} if name in RATES else {}
    return {**STEPS, "optim": name, "finetuning_type": method, "weight_decay": 0.01, **rate}


def test_the_table_has_the_names_of_transformers() -> None:
    from transformers.training_args import OptimizerNames

    assert kinds().keys() - {"muon"} == {name.value for name in OptimizerNames}


@pytest.mark.parametrize("name", PLAIN + PACKAGED)
def test_it_lowers_the_loss_and_is_resumed_exactly(name: str, model: Path, data: Path, tmp_path: Path) -> None:
    chosen = options(name, "full")
    whole = tune(model, data, tmp_path / "whole", **chosen)
    assert losses(whole)[-1] < losses(whole)[0]
    for file in (tmp_path / "whole" / "checkpoint-6").iterdir():
        file.unlink()
    (tmp_path / "whole" / "checkpoint-6").rmdir()
    before, logged = weights(whole), losses(whole)
    again = tune(model, data, whole, **chosen)
    assert losses(again) == logged
    after = weights(again)
    assert all(torch.equal(value, after[key]) for key, value in before.items())


@pytest.mark.parametrize("name", ["muon", "adafactor"])
def test_adapters_are_resumed_exactly_too(
    name: str, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from danlu.tune.callbacks import Recorder

    chosen = options(name, "lora")
    whole = tune(model, data, tmp_path / "whole", **chosen)
    assert losses(whole)[-1] < losses(whole)[0]
    own = Recorder.on_step_end

    def on_step_end(self: Any, args: Any, state: Any, control: Any, **rest: Any) -> None:
        own(self, args, state, control, **rest)
        if state.global_step == 5:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "on_step_end", on_step_end)
        with pytest.raises(Killed):
            tune(model, data, tmp_path / "again", **chosen)
    assert_same_run(whole, tune(model, data, tmp_path / "again", **chosen))


class Small(nn.Module):
    """A table, two layers and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.inner = nn.Embedding(11, 6), nn.Linear(6, 8)
        self.outer, self.head = nn.Linear(8, 6), nn.Linear(6, 11, bias=False)
        self.outer.requires_grad_(False)


class Arguments:
    learning_rate, weight_decay, adam_beta1, adam_beta2, adam_epsilon = 0.1, 0.01, 0.9, 0.99, 1e-8


def test_muon_moves_matrices_and_adamw_the_rest() -> None:
    small = Small()
    optimizer = build_muon(small, Arguments, {"inner.weight", "table.weight", "head.weight"})
    names = {id(weight): name for name, weight in small.named_parameters()}
    found = {
        (group[MARK], group["weight_decay"]): {names[id(weight)] for weight in group["params"]}
        for group in optimizer.param_groups
    }
    assert found == {
        (True, 0.01): {"inner.weight"},
        (False, 0.01): {"table.weight", "head.weight"},
        (False, 0.0): {"inner.bias"},
    }


def test_muon_is_torchs_own_step() -> None:
    weight = nn.Parameter(torch.randn(6, 4))
    vector = nn.Parameter(torch.randn(4))
    copies = [nn.Parameter(weight.detach().clone()), nn.Parameter(vector.detach().clone())]
    joined = MuonWithAdamW(
        [{"params": [weight], "weight_decay": 0.1}],
        [{"params": [vector], "weight_decay": 0.0}],
        lr=0.1,
        betas=(0.9, 0.99),
        eps=1e-8,
    )
    apart = [
        torch.optim.Muon([copies[0]], lr=0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([copies[1]], lr=0.1, betas=(0.9, 0.99), weight_decay=0.0, fused=True),
    ]
    schedules = [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5) for optimizer in (joined, *apart)]
    for _ in range(3):
        for one, other in zip((weight, vector), copies):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        for optimizer in (joined, *apart):
            optimizer.step()
        for schedule in schedules:
            schedule.step()
    assert torch.equal(weight, copies[0])
    assert torch.equal(vector, copies[1])


def test_a_method_without_matrices_has_no_use_for_muon() -> None:
    with pytest.raises(ConfigError, match="trains no matrix.*adamw_torch_fused"):
        build_muon(nn.LayerNorm(4), Arguments, ())


def test_muon_takes_two_rates_for_adapters(model: Path, data: Path, tmp_path: Path) -> None:
    plain = weights(tune(model, data, tmp_path / "plain", max_steps=1, optim="muon"))
    faster = weights(tune(model, data, tmp_path / "plus", max_steps=1, optim="muon", loraplus_lr_ratio=16))
    for name in plain:
        if "lora_B" in name:  # it begins at zero, so that its first step is the rate times the direction
            torch.testing.assert_close(faster[name], 16 * plain[name])


def test_a_schedule_free_run_is_measured_and_kept_with_its_averages(model: Path, data: Path, tmp_path: Path) -> None:
    chosen = {**options("schedule_free_adamw", "full"), "val_size": 4, "eval_strategy": "steps", "eval_steps": 3}
    run = tune(model, data, tmp_path / "run", load_best_model_at_end=True, **chosen)
    state = json.loads((run / "trainer_state.json").read_text())
    best = Path(state["best_model_checkpoint"])
    kept, final = weights(best), weights(run)
    assert all(torch.equal(kept[name], final[name]) for name in final)
