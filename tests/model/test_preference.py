"""Objectives over preferences: what a run says of its rows is what is measured again when it is opened."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from methods_tried import METHODS
from tuning import assert_same_run, history, losses, tune, weights, write_rows

import danlu
from danlu.core.errors import DanluError, DataError, UsageError
from danlu.models.value_head import read_head

pytestmark = pytest.mark.model


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    rows = [
        {"prompt": f"What is number {n}?" + " Tell me." * (n % 3), "chosen": f"It is {n * 7 % 10}.", "rejected": "No."}
        for n in range(14)
    ]
    return write(tmp_path / "pairs.jsonl", rows)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def evaluated(run: Path) -> dict[str, float]:
    """The last evaluation of a training, without the clock."""
    last = next(entry for entry in reversed(history(run)) if "eval_loss" in entry)
    return {name: value for name, value in last.items() if name.startswith("eval_")}


MEASURED = [("dpo", method) for method in METHODS if method not in ("projection", "orthogonal", "pfeiffer")] + [
    *(("rm", method) for method in ("lora", "p_tuning_v2")),
    *(("ipo", "full"), ("kto", "lora"), ("kto", "prompt_tuning"), ("orpo", "p_tuning_v2"), ("simpo", "full")),
]


@pytest.mark.parametrize(("stage", "method"), MEASURED)
def test_a_run_is_measured_again_as_in_training(
    stage: str, method: str, tiny_models: dict[str, Path], pairs: Path, tmp_path: Path
) -> None:
    options = {**METHODS[method], "stage": stage, "val_size": 4, "eval_strategy": "epoch"}
    run = tune(tiny_models["qwen3"], pairs, tmp_path / "run", per_device_eval_batch_size=4, **options)
    told = evaluated(run)
    assert told["eval_accuracy"] >= 0.5
    again = danlu.evaluate(run, per_device_eval_batch_size=4)
    for name, value in told.items():
        assert again[name] == pytest.approx(value, rel=1e-3, abs=1e-4), name


@pytest.mark.parametrize("stage", ["rm", "dpo"])
def test_every_pair_is_told_with_intervals(
    stage: str, tiny_models: dict[str, Path], pairs: Path, tmp_path: Path
) -> None:
    run = tune(tiny_models["llama"], pairs, tmp_path / "run", stage=stage, max_steps=2)
    found = danlu.evaluate(run, dataset=str(pairs), per_device_eval_batch_size=4)
    rows = [json.loads(line) for line in (run / "eval_rows.jsonl").read_text().splitlines()]
    assert [row["index"] for row in rows] == list(range(14))
    for name in ("accuracy", "margin", "reward_chosen"):
        assert sum(row[name] for row in rows) / 14 == pytest.approx(found[f"eval_{name}"], abs=1e-6)
    assert all(row["accuracy"] == (row["margin"] > 0) for row in rows)
    for name in ("accuracy", "margin"):
        assert found[f"eval_{name}_low"] < found[f"eval_{name}"] < found[f"eval_{name}_high"] or name == "accuracy"
    assert 0 <= found["eval_accuracy_low"] <= found["eval_accuracy"] <= found["eval_accuracy_high"] <= 1


def test_an_old_file_style_has_no_intervals(tiny_models: dict[str, Path], pairs: Path, tmp_path: Path) -> None:
    run = tune(tiny_models["llama"], pairs, tmp_path / "run", stage="rm", max_steps=1, file_style="et")
    found = danlu.evaluate(run, dataset=str(pairs))
    assert not [name for name in found if name.endswith(("_low", "_high"))]
    assert not (run / "eval_rows.jsonl").exists()


def test_the_reference_is_the_model_as_training_began(
    tiny_models: dict[str, Path], pairs: Path, tmp_path: Path
) -> None:
    first = tune(tiny_models["llama"], pairs, tmp_path / "first", stage="dpo", learning_rate=1e-3)
    assert losses(first)[0] == pytest.approx(0.693147, abs=1e-5)
    second = tune(tiny_models["llama"], pairs, tmp_path / "second", stage="dpo", adapter_name_or_path=str(first))
    assert losses(second)[0] == pytest.approx(0.693147, abs=1e-5)


def test_the_reference_is_computed_once(
    tiny_models: dict[str, Path], pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = tune(tiny_models["llama"], pairs, tmp_path / "one", stage="dpo")

    def never(*_: Any) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr("danlu.tune.reference_model.log_probs_of", never)
    assert_same_run(one, tune(tiny_models["llama"], pairs, tmp_path / "two", stage="dpo"))


def test_a_kept_reference_is_only_for_the_model_it_was_computed_with(tiny_models: dict[str, Path]) -> None:
    from types import SimpleNamespace

    from danlu.core.config import build
    from danlu.tune.config import TrainConfig
    from danlu.tune.reference_model import reference_key

    store: Any = SimpleNamespace(folder=Path("rows"))

    def key(**options: Any) -> str:
        return reference_key(build(TrainConfig, options, where="test"), tiny_models["llama"], store)

    others: list[dict[str, Any]] = [
        {"quantization_bit": 4},
        {"quantization_bit": 8},
        {"pissa_init": True},
        {"pissa_init": True, "seed": 3},
        {"finetuning_type": "full"},
        {"bf16": True},
        {"per_device_train_batch_size": 7},
    ]
    assert len({key(), *(key(**options) for options in others)}) == 1 + len(others)
    assert key(lora_rank=3, learning_rate=1e-5) == key()


def test_a_value_head_is_taken_up_only_by_its_own_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    from danlu.core.config import build
    from danlu.models.value_head import ValueHead
    from danlu.tune.config import TrainConfig
    from danlu.tune.value import begin

    earlier = ValueHead(8)
    earlier.save(tmp_path)
    (tmp_path / "manifest.json").write_text('{"stage": "rm"}')

    def begun(stage: str, **options: Any) -> torch.Tensor:
        head = ValueHead(8)
        begin(head, build(TrainConfig, {"stage": stage, **options}, where="test"), tmp_path / "base")
        return head.summary.weight

    given = {"adapter_name_or_path": str(tmp_path)}
    assert torch.equal(begun("rm", **given), earlier.summary.weight)
    assert not begun("ppo").any()
    assert not capsys.readouterr().err
    assert not begun("ppo", **given).any()
    assert "is of stage rm; stage ppo begins with a new one" in " ".join(capsys.readouterr().err.split())


def test_a_reward_model_leaves_its_head_and_scores(tiny_models: dict[str, Path], pairs: Path, tmp_path: Path) -> None:
    run = tune(tiny_models["glm"], pairs, tmp_path / "rm", stage="rm", file_style="et")
    assert {"value_head.safetensors:summary.weight", "value_head.safetensors:summary.bias"} <= weights(run).keys()
    assert (run / "value_head.bin").is_file()
    head = read_head(run)
    assert head is not None
    lines = [json.loads(line) for line in danlu.score(run, dataset=str(pairs)).read_text().splitlines()]
    assert all(line["chosen_score"] > line["rejected_score"] for line in lines)
    danlu.predict(run, dataset=str(pairs))
    text = (run / "generated_predictions.jsonl").read_text()
    assert not text.endswith("\n")
    assert json.loads(text.splitlines()[0]) == {
        "accept": round(lines[0]["chosen_score"], 2),
        "reject": round(lines[0]["rejected_score"], 2),
    }


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_reward_model_does_not_answer(method: str, tiny_models: dict[str, Path], pairs: Path, tmp_path: Path) -> None:
    base = tiny_models["llama"]
    run = tune(base, pairs, tmp_path / "rm", stage="rm", max_steps=1, finetuning_type=method)
    talks = str(write_rows(tmp_path / "talks.jsonl"))
    told = r"this is a reward model: .*danlu score --run DIR.*danlu eval"
    for work in (danlu.predict, danlu.evaluate):
        with pytest.raises(UsageError, match=told):
            work(run, dataset=talks, stage="sft")
    with pytest.raises(DataError, match=told):
        danlu.predict(run, dataset=talks)
    named = {"model": str(run)} if method == "full" else {"model": str(base), "adapter": [str(run)]}
    for what in ({"run": str(run)}, named):
        with pytest.raises(UsageError, match=told):
            danlu.chat(stdin=io.StringIO("hello\n"), **what)


def test_scores_do_not_depend_on_the_company(tiny_models: dict[str, Path], pairs: Path, tmp_path: Path) -> None:
    run = tune(tiny_models["llama"], pairs, tmp_path / "rm", stage="rm")
    together = [json.loads(line) for line in danlu.score(run, dataset=str(pairs)).read_text().splitlines()]
    one = write(tmp_path / "one.jsonl", [json.loads(pairs.read_text().splitlines()[3])])
    (alone,) = [json.loads(line) for line in danlu.score(run, dataset=str(one)).read_text().splitlines()]
    assert alone["chosen_score"] == pytest.approx(together[3]["chosen_score"], abs=1e-4)


def test_a_killed_run_goes_on(
    tiny_models: dict[str, Path], pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from test_resume import HARD, killed_at

    options = {**HARD, "stage": "dpo", "lora_dropout": 0.1}
    whole = tune(tiny_models["llama"], pairs, tmp_path / "whole", **options)
    for step in (4, 7):
        with killed_at(monkeypatch, step):
            tune(tiny_models["llama"], pairs, tmp_path / "again", **options)
    assert_same_run(whole, tune(tiny_models["llama"], pairs, tmp_path / "again", **options))


def test_plain_text_is_learnt_and_measured_by_perplexity(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    texts = write(tmp_path / "texts.jsonl", [{"text": "The furnace takes raw text. " * n} for n in range(1, 12)])
    run = tune(tiny_models["llama"], texts, tmp_path / "run", stage="pt", cutoff_len=32, val_size=2)
    assert losses(run)[-1] < losses(run)[0]
    found = danlu.evaluate(run)
    assert found["eval_perplexity"] == pytest.approx(2.718281828 ** found["eval_loss"], rel=1e-6)


def test_texts_need_no_chat_template(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    import shutil

    base = shutil.copytree(tiny_models["llama"], tmp_path / "base")
    (base / "chat_template.jinja").unlink()
    texts = write(tmp_path / "texts.jsonl", [{"text": f"Line {n} of a text."} for n in range(6)])
    run = tune(base, texts, tmp_path / "run", stage="pt", max_steps=1)
    assert not (run / "chat_template.jinja").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stage": "pt", "finetuning_type": "p_tuning_v2"}, "makes no sense with stage pt"),
        ({"stage": "dpo", "predict_with_generate": True}, "measured by its own numbers"),
        ({"stage": "sft"}, "trains on conversations, this row is for pairs"),
    ],
)
def test_what_does_not_go_together(
    options: dict[str, Any], message: str, tiny_models: dict[str, Path], pairs: Path, tmp_path: Path
) -> None:
    with pytest.raises(DanluError, match=message):
        tune(tiny_models["llama"], pairs, tmp_path / "run", **options)


def test_a_model_that_was_never_rewarded_has_no_scores(
    tiny_models: dict[str, Path], pairs: Path, tmp_path: Path
) -> None:
    with pytest.raises(DanluError, match="no value head"):
        danlu.score(model=str(tiny_models["llama"]), dataset=str(pairs), output_dir=str(tmp_path / "out"))


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_reward_model_is_exported_as_a_classifier(method: str, tiny_model: Path, pairs: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    run = tune(tiny_model, pairs, tmp_path / "rm", stage="rm", finetuning_type=method)
    danlu.export(run=str(run), output_dir=str(tmp_path / "out"))
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    row = json.loads(danlu.score(run, dataset=str(pairs)).read_text().splitlines()[0])
    head = read_head(run)
    assert head is not None
    for answer in ("chosen", "rejected"):
        messages = [*row["prompt"], {"role": "assistant", "content": row[answer]}]
        text = tokenizer.apply_chat_template(messages, tokenize=False).rstrip("\n")
        ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
        with torch.no_grad():
            reward = float(model(input_ids=ids).logits) + float(head["summary.bias"])
        assert reward == pytest.approx(row[f"{answer}_score"], abs=1e-3)


def test_a_prefix_cannot_be_exported_as_a_classifier(tiny_models: dict[str, Path], pairs: Path, tmp_path: Path) -> None:
    run = tune(tiny_models["llama"], pairs, tmp_path / "rm", stage="rm", finetuning_type="p_tuning_v2")
    with pytest.raises(DanluError, match="cannot become part of a classifier"):
        danlu.export(run=str(run), output_dir=str(tmp_path / "out"))


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_value_head_is_continued(method: str, tiny_models: dict[str, Path], pairs: Path, tmp_path: Path) -> None:
    first = tune(tiny_models["llama"], pairs, tmp_path / "first", stage="rm", finetuning_type=method, seed=1)
    given = {"adapter_name_or_path": str(first)} if method == "lora" else {}
    base = tiny_models["llama"] if method == "lora" else first
    still = {"learning_rate": 1e-12, "max_steps": 1, "seed": 2}
    second = tune(base, pairs, tmp_path / "second", stage="rm", finetuning_type=method, **given, **still)
    one, two = read_head(first), read_head(second)
    assert one is not None
    assert two is not None
    torch.testing.assert_close(one["summary.weight"], two["summary.weight"])
