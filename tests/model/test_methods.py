"""Every method: PEFT opens what it left, its choices, its plan, its precisions. With every stage: test_matrix.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from methods_tried import METHODS, Watch, kind_of
from probes import logits_of, token_batch
from scored import assert_right, requests
from tiny import FAMILIES
from tuning import history, losses, tune, weights

from danlu.core.config import build
from danlu.core.errors import ConfigError, DanluError, ModelError
from danlu.data.templates import Template
from danlu.engine.local import LocalEngine
from danlu.models.adapters import merge
from danlu.models.loading import load_model
from danlu.models.runs import open_run
from danlu.tune import methods
from danlu.tune.config import TrainConfig
from danlu.tune.preflight import read_shape, trainable_parameters
from danlu.tune.session import Session

pytestmark = pytest.mark.model

FIRST = ("full", "freeze", "lora", "p_tuning_v2", "projection")
"""Compute each in their own way: tried in more precisions."""

SAME_ARITHMETIC = ("pissa", "olora", "orthogonal", "pfeiffer", "p_tuning-mlp", "prefix_tuning")
"""Compute as another one of the list does: not tried in every precision."""


@pytest.mark.parametrize(("number", "method"), list(enumerate(METHODS)))
def test_method(
    number: int, method: str, tiny_models: dict[str, Path], data: Path, tmp_path: Path, watch: Watch
) -> None:
    model, kind = tiny_models[FAMILIES[number % len(FAMILIES)]], kind_of(method)
    run = tune(model, data, tmp_path / "run", **METHODS[method])
    found = losses(run)
    assert sum(found[-3:]) < sum(found[:3]) * 0.97
    ids = token_batch()
    in_memory = logits_of(watch.model(), ids)
    plain = logits_of(load_model(model, dtype="float32"), ids)
    assert not torch.allclose(in_memory, plain, atol=1e-2)
    opened, tokenizer = open_run(run).load()
    torch.testing.assert_close(logits_of(opened, ids), in_memory, rtol=1e-4, atol=1e-4)
    assert tokenizer.chat_template
    assert_right(LocalEngine(opened, tokenizer, Template(tokenizer)), requests()[:4])
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["method"] == kind
    if methods.family(kind).kind in ("peft", "prompt"):
        from peft import PeftModel

        with_peft = PeftModel.from_pretrained(load_model(model, dtype="float32"), str(run))
        theirs = logits_of(with_peft, ids)[:, -ids.shape[1] :]  # PEFT also returns what it computes at a prompt
        torch.testing.assert_close(theirs, in_memory, rtol=1e-3, atol=1e-3)
    if not methods.family(kind).mergeable:
        with pytest.raises(ModelError, match="cannot be merged"):
            merge(load_model(model, dtype="float32"), [run])


@pytest.mark.parametrize("method", FIRST)
def test_the_plan_counts_what_is_trained(
    method: str, tiny_models: dict[str, Path], data: Path, tmp_path: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_plan_is_right(tiny_models["glm"], data, tmp_path, watch, monkeypatch, METHODS[method])


@pytest.mark.parametrize("method", [method for method in METHODS if method not in FIRST])
def test_methods_are_counted_without_weights(method: str, tiny_models: dict[str, Path]) -> None:
    model = load_model(tiny_models["qwen3"], dtype="float32")
    config = build(TrainConfig, METHODS[method], where="test")
    counted = trainable_parameters(read_shape(model.config), config)
    tuned = methods.METHODS[kind_of(method)].apply(model, config)
    parts = [tuned.adapter or tuned.model, *([tuned.prefix] if tuned.prefix is not None else [])]
    assert counted == sum(p.numel() for part in parts for p in part.parameters() if p.requires_grad) > 0


@pytest.mark.parametrize(
    "options",
    [
        {"lora_target": "q_proj, v_proj", "lora_rank": 3},
        {"lora_target": "query_key_value", "additional_target": "lm_head"},
        {"use_dora": True},
        {"pissa_init": True},
        {"finetuning_type": "freeze", "freeze_trainable_layers": -1, "freeze_trainable_modules": "mlp"},
        {"finetuning_type": "freeze", "freeze_trainable_layers": 1, "freeze_extra_modules": "norm, lm_head"},
    ],
    ids="-".join,
)
def test_the_plan_counts_choices(
    options: dict[str, Any],
    tiny_models: dict[str, Path],
    data: Path,
    tmp_path: Path,
    watch: Watch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert_plan_is_right(tiny_models["qwen2"], data, tmp_path, watch, monkeypatch, options)


def assert_plan_is_right(
    model: Path, data: Path, folder: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    plans = []
    own = Session.plan
    monkeypatch.setattr(Session, "plan", lambda self, members: plans.append(own(self, members)) or plans[-1])
    tune(model, data, folder / "run", **{**options, "max_steps": 1})
    real = sum(p.numel() for p in watch.learner.parameters() if p.requires_grad)
    assert plans[0].trainable == real
    if options.get("finetuning_type") in ("full", "freeze"):
        assert plans[0].parameters == sum(p.numel() for p in watch.learner.parameters())


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"freeze_trainable_layers": -1}, ["layers.0."]),
        ({"freeze_trainable_layers": 1, "freeze_trainable_modules": "mlp"}, ["layers.2.mlp."]),
        (
            {"freeze_trainable_layers": 1, "freeze_trainable_modules": "query_key_value"},
            ["layers.2.self_attn.q_proj", "layers.2.self_attn.k_proj", "layers.2.self_attn.v_proj"],
        ),
        ({"freeze_trainable_layers": 1, "freeze_extra_modules": "lm_head"}, ["layers.2.", "lm_head"]),
        ({"freeze_trainable_layers": 3}, ["layers."]),
    ],
)
def test_freeze_choices(
    options: dict[str, Any], parts: list[str], tiny_models: dict[str, Path], data: Path, tmp_path: Path, watch: Watch
) -> None:
    tune(tiny_models["qwen3"], data, tmp_path / "run", finetuning_type="freeze", **options)
    assert watch.moved() == {name for name in watch.before if any(part in name for part in parts)}


def test_freeze_extra_modules_of_a_model_with_tied_embeddings(data: Path, tmp_path: Path, watch: Watch) -> None:
    from tiny import build_model

    model = build_model("llama", tmp_path / "tied", tie_word_embeddings=True)
    tune(model, data, tmp_path / "run", finetuning_type="freeze", freeze_extra_modules="lm_head")
    assert "model.model.embed_tokens.weight" in watch.moved()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora_target": "query_kye"}, r"lora_target.*no linear layer named 'query_kye'.*q_proj"),
        ({"lora_target": "q_prj"}, r"Did you mean .*q_proj"),
        ({"finetuning_type": "freeze", "freeze_trainable_modules": "mpl"}, r"no layer has a module 'mpl'.*mlp"),
        ({"finetuning_type": "freeze", "freeze_trainable_layers": 4}, r"is 4, the model has 3 layers"),
        ({"finetuning_type": "freeze", "freeze_trainable_layers": 0}, r"is 0, the model has 3 layers"),
        (
            {"finetuning_type": "freeze", "freeze_extra_modules": "head"},
            r"no module 'head' outside its layers.*lm_head",
        ),
        ({"additional_target": "lm_haed"}, r"additional_target.*lm_haed"),
    ],
)
def test_modules_that_do_not_exist(
    options: dict[str, Any], message: str, tiny_models: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        tune(tiny_models["llama"], data, tmp_path / "run", **options)


def test_old_names_of_lora_targets(tiny_models: dict[str, Path], data: Path, tmp_path: Path, watch: Watch) -> None:
    run = tune(tiny_models["llama"], data, tmp_path / "run", lora_target="query_key_value")
    saved = json.loads((run / "adapter_config.json").read_text())
    assert sorted(saved["target_modules"]) == ["k_proj", "q_proj", "v_proj"]


def test_an_adapter_is_continued(tiny_models: dict[str, Path], data: Path, tmp_path: Path, watch: Watch) -> None:
    model = tiny_models["llama"]
    first = tune(model, data, tmp_path / "first")
    before = weights(first)
    second = tune(model, data, tmp_path / "second", adapter_name_or_path=str(first))
    start = {name: value for name, value in watch.before.items() if "lora_A" in name}
    assert len(start) == len([name for name in before if "lora_A" in name])
    assert losses(second)[0] < losses(first)[0]
    ids = token_batch()
    opened, _ = open_run(second).load()
    torch.testing.assert_close(logits_of(opened, ids), logits_of(watch.model(), ids), rtol=1e-4, atol=1e-4)
    for name, value in weights(first).items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("chain", ["new", "two", "new-on-new"])
def test_adapters_on_adapters_are_opened_with_what_they_stand_on(
    chain: str, tiny_models: dict[str, Path], data: Path, tmp_path: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, ids = tiny_models["llama"], token_batch()
    monkeypatch.chdir(tmp_path)
    first = tune(model, data, Path("first"))
    new = {"adapter_name_or_path": str(first), "create_new_adapter": True}
    last = tune(model, data, Path("second"), **new)
    if chain == "two":
        last = tune(model, data, Path("third"), adapter_name_or_path=f"{first}, {last}")
    if chain == "new-on-new":
        last = tune(model, data, Path("third"), **{**new, "adapter_name_or_path": str(last)})
    expected = logits_of(watch.model(), ids)
    monkeypatch.chdir("/")
    opened, _ = open_run(tmp_path / last).load()
    torch.testing.assert_close(logits_of(opened, ids), expected, rtol=1e-3, atol=1e-3)


def test_a_prefix_is_continued(tiny_models: dict[str, Path], data: Path, tmp_path: Path, watch: Watch) -> None:
    options = METHODS["projection"]
    first = tune(tiny_models["glm"], data, tmp_path / "first", **options)
    after = {name: value.detach().clone() for name, value in watch.learner.named_parameters()}
    tune(tiny_models["glm"], data, tmp_path / "second", adapter_name_or_path=str(first), **options)
    for name, value in watch.before.items():
        assert torch.equal(value, after[name]), name
    with pytest.raises(ConfigError, match="cannot be merged"):
        tune(
            tiny_models["glm"],
            data,
            tmp_path / "third",
            adapter_name_or_path=str(first),
            create_new_adapter=True,
            **options,
        )


def test_an_adapter_of_another_base_is_refused(tiny_models: dict[str, Path], data: Path, tmp_path: Path) -> None:
    from tiny import build_model

    other = build_model("llama", tmp_path / "wide", hidden_size=32, intermediate_size=48)
    adapter = tune(other, data, tmp_path / "adapter")
    with pytest.raises(DanluError, match="does not fit"):
        tune(tiny_models["llama"], data, tmp_path / "run", adapter_name_or_path=str(adapter))


@pytest.mark.parametrize(
    ("method", "precision"),
    [(method, "bf16") for method in (*FIRST, "adalora", "p_tuning-lstm")]
    + [(method, "pure_bf16") for method in METHODS if method not in SAME_ARITHMETIC],
)
def test_half_precision(
    method: str, precision: str, tiny_models: dict[str, Path], data: Path, tmp_path: Path, watch: Watch
) -> None:
    run = tune(tiny_models["qwen3"], data, tmp_path / "run", **{precision: True}, **METHODS[method])
    found = losses(run)
    assert sum(found[-3:]) < sum(found[:3])
    ids = token_batch()
    opened, _ = open_run(run).load(dtype="float32")
    with torch.autocast("cpu", torch.bfloat16):
        in_memory = logits_of(watch.model(), ids)
    difference = (logits_of(opened, ids) - in_memory).norm() / in_memory.norm()
    assert difference < 0.03


@pytest.mark.parametrize("method", ["full", "freeze", "ln_tuning"])
def test_answers_on_the_way_in_half_precision(
    method: str, tiny_models: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    """Some weights are float32 beside frozen ones in bfloat16."""
    asked = {"predict_with_generate": True, "max_new_tokens": 3, "val_size": 2, "eval_strategy": "epoch"}
    run = tune(tiny_models["glm"], data, tmp_path / "run", bf16=True, num_train_epochs=1, **asked, **METHODS[method])
    assert [entry for entry in history(run) if "eval_rouge-l" in entry]


@pytest.mark.parametrize("method", [m for m in METHODS if m not in SAME_ARITHMETIC])
def test_recomputed_activations_change_nothing(
    method: str, tiny_models: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    pairs = tmp_path / "pairs.jsonl"  # answers that continue one prompt are the harder case
    rows = [{"prompt": f"What is number {n}?", "chosen": f"It is {n * 7 % 10}.", "rejected": "No."} for n in range(8)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    options = {"stage": "dpo", "max_steps": 2, **METHODS[method]}
    runs = [
        tune(tiny_models["llama"], pairs, tmp_path / str(on), gradient_checkpointing=on, **options)
        for on in (False, True)
    ]
    assert losses(runs[0]) == pytest.approx(losses(runs[1]), rel=1e-5)
