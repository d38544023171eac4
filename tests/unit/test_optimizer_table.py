"""Optimizers by name: what is refused, what is missing, what each keeps."""

from __future__ import annotations

from typing import Any

import pytest

from danlu.core.errors import MissingDependency, UsageError
from danlu.tune.checks import check_packages
from danlu.tune.config import TrainConfig
from danlu.tune.optimizers import kinds, state_bytes


def config(optim: str, **groups: dict[str, Any]) -> TrainConfig:
    return TrainConfig.model_validate({**groups, "optimizer": {"optim": optim, **groups.get("optimizer", {})}})


def test_the_table_has_every_optimizer_once() -> None:
    for name, kind in kinds().items():
        rules = (kind.numbers, kind.bytes, kind.factored, kind.low_rank, kind.matrices)
        assert sum(map(bool, rules)) == (0 if kind.refused or name == "sgd" else 1), name


def test_a_wrong_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"optim: there is no optimizer 'adamm'. Did you mean") as error:
        check_packages(config("adamm"))
    assert error.value.exit_code == 2


@pytest.mark.parametrize("name", [name for name, kind in kinds().items() if kind.refused])
def test_what_is_refused_names_something_that_is_not(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} cannot be used: ") as error:
        check_packages(config(name))
    words = str(error.value).replace(",", " ").split()
    named = [word.removeprefix("optim=").rstrip(".") for word in words if word.startswith("optim=")]
    assert named
    assert not any(kinds()[word].refused for word in named)


@pytest.mark.parametrize(
    ("name", "package"),
    [("adamw_8bit", "bitsandbytes"), ("galore_adamw", "pytorch-optimizer"), ("stable_adamw", "torch-optimi")],
)
def test_a_missing_package_is_named(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("danlu.tune.optimizers.find_spec", lambda _: None)
    with pytest.raises(MissingDependency, match=f"for optim={name}.*pip install {package}"):
        check_packages(config(name, method={"finetuning_type": "full"}))


def test_projected_gradients_need_whole_matrices() -> None:
    with pytest.raises(UsageError, match="finetuning_type lora does not train"):
        check_packages(config("galore_adamw"))
    for split in ({"parallel": {"deepspeed": "z3"}}, {"parallel": {"fsdp": "fsdp2"}}):
        with pytest.raises(UsageError, match="muon needs whole matrices and (deepspeed|fsdp) splits them"):
            check_packages(config("muon", **split))


def test_a_schedule_on_a_schedule_free_optimizer_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("danlu.tune.optimizers.find_spec", lambda _: object())
    check_packages(config("schedule_free_adamw"))
    assert "lr_scheduler_type=constant" in " ".join(capsys.readouterr().err.split())
    check_packages(config("schedule_free_adamw", optimizer={"lr_scheduler_type": "constant"}))
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("adamw_torch_fused", 8 * 1000),
        ("sgd", 0),
        ("lion_8bit", 1020),
        ("adafactor", 8 * 1000 / 100),
        ("muon", 4 * 800 + 8 * 200),
        ("galore_adamw", 4 * (800 * 3 * 16 / 100 + 2 * 200)),
    ],
)
def test_what_each_keeps(name: str, expected: float) -> None:
    assert state_bytes(config(name), 1000, hidden=100, tables=200, weight_bytes=4) == pytest.approx(expected)
