"""What `danlu doctor` says can be trained: the preflight's estimate, counted from a few layers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from danlu.cli import doctor
from danlu.cli.models import show_model
from danlu.core import console
from danlu.core.config import build, read_yaml
from danlu.core.errors import ModelError
from danlu.tune import capacity
from danlu.tune.config import TrainConfig
from danlu.tune.preflight import GIB, Load, memory_needed, read_shape, trainable_parameters

pytestmark = pytest.mark.model

SIZES = read_yaml(capacity.FILE)["sizes"]


@pytest.mark.parametrize("method", ["full", "freeze", "lora"])
def test_a_few_layers_tell_the_whole_model(method: str) -> None:
    from transformers import Qwen2Config

    config = build(TrainConfig, {"finetuning_type": method}, where="test")
    shape, small = capacity.counted(SIZES["0.1B"])
    whole = read_shape(Qwen2Config(**SIZES["0.1B"]))
    assert (shape.parameters, shape.layers, shape.tables) == (whole.parameters, whole.layers, whole.tables)
    counts = [trainable_parameters(one, config) for one in small]
    trainable = trainable_parameters(whole, config)
    assert capacity._extended(counts, whole.layers) == trainable
    load = Load(1024, 1024, False, 4, True)
    assert memory_needed(shape, trainable, config, load) == memory_needed(whole, trainable, config, load)


def test_more_memory_never_fits_less() -> None:
    order = ["no", "recomputed", "fits"]
    verdicts = []
    for free in (2 * GIB, 20 * GIB, 200 * GIB):
        found = capacity.estimates(free, bf16=True, gpu=False)
        assert all(one.recomputed < one.bytes for one in found)
        verdicts.append([order.index(one.verdict) for one in found])
    assert all(low <= high for less, more in zip(verdicts, verdicts[1:]) for low, high in zip(less, more))
    assert 0 in verdicts[0]
    assert set(verdicts[-1]) == {2}


def test_optimizers_and_precision_are_in_the_numbers() -> None:
    needed = {(one.method, one.size): one.bytes for one in capacity.estimates(GIB, bf16=True, gpu=False)}
    assert (
        needed["full", "7B"] > needed["full, adafactor", "7B"] > needed["full, pure_bf16", "7B"] > needed["lora", "7B"]
    )


def test_models_of_other_sizes_lie_between_those_of_the_table() -> None:
    known = {(one.method, one.size): one for one in capacity.estimates(GIB, bf16=True, gpu=False)}
    counts = {size: capacity.counted(numbers)[0].parameters for size, numbers in SIZES.items()}
    asked = {"small": counts["0.1B"] // 2, "same": counts["0.5B"], "3B": 3 * 10**9, "14B": 2 * counts["7B"]}
    found = {(one.method, one.size): one for one in capacity.similar(asked, GIB, bf16=True, gpu=False)}
    for method in ("full", "lora", "qlora"):
        same, exact = found[method, "same"], known[method, "0.5B"]
        assert (same.bytes, same.recomputed, same.verdict) == (exact.bytes, exact.recomputed, exact.verdict)
        assert known[method, "1.5B"].bytes < found[method, "3B"].bytes < known[method, "7B"].bytes
        assert found[method, "14B"].bytes == pytest.approx(2 * known[method, "7B"].bytes, abs=2)
        assert found[method, "small"].bytes == pytest.approx(known[method, "0.1B"].bytes / 2, rel=1e-6)


def test_a_model_is_shown_with_what_can_be_trained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_models: dict[str, Path]
) -> None:
    monkeypatch.setattr("danlu.models.memory.free_memory", lambda: 16 * GIB)
    show_model("qwen2.5", fit=True)
    shown = capsys.readouterr().out
    assert "GiB to train" in shown
    assert "72.7B" in shown
    rows = show_model(str(tiny_models["llama"]), fit=True, as_json=True)["training"]["estimates"]
    assert {row["verdict"] for row in rows} == {"fits"}
    with pytest.raises(ModelError, match="its size is not known"):
        show_model("some/model", fit=True)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setattr(console.out, "_width", 80)
    monkeypatch.setattr("danlu.models.memory.free_memory", lambda: 16 * GIB)
    doctor.report()
    return capsys.readouterr().out


def test_the_report_can_be_read_at_80_columns(shown: str) -> None:
    assert max(map(len, shown.splitlines())) <= 80
    rows = {line.split("  ")[0]: line for line in shown.splitlines()}
    assert rows["full"].rstrip().endswith("–")
    assert "–" not in rows["freeze"].rpartition("5")[0]
    assert "optim=adamw_8bit" in rows["bitsandbytes"]
    assert "free" in rows


def test_the_report_as_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("danlu.models.memory.free_memory", lambda: 16 * GIB)
    doctor.report(as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert told["free_bytes"] == 16 * GIB
    rows = told["training"]["estimates"]
    assert {row["size"] for row in rows} == SIZES.keys()
    assert {row["verdict"] for row in rows} == {"fits", "recomputed", "no"}
    assert told["packages"]["torch"]


def test_without_torch_the_rest_is_still_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda _: None)
    doctor.report(as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert told["training"] == {}
    assert told["cores"]
    doctor.report()
    assert "GiB to train" not in capsys.readouterr().out
