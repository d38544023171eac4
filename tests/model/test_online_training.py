"""ppo and grpo: the reward rises, the same seed gives the same curve, a killed run goes on, trouble is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from methods_tried import METHODS, kind_of
from probes import random_adapter
from test_resume import killed_at
from tuning import assert_same_run, history, tune, weights

import danlu
from danlu.core.errors import DanluError, RunError, UsageError
from danlu.core.manifest import Manifest
from danlu.core.run import RunDirectory
from danlu.models.loading import load_model
from danlu.models.value_head import ValueHead
from danlu.tune.config import TrainConfig

pytestmark = pytest.mark.model

LETTERS = """
def letters(answers, **_):
    return [sum("a" <= c <= "z" for c in answer) / max(len(answer), 1) for answer in answers]
"""
BROKEN = """
calls = []


def third(answers, **_):
    calls.append(1)
    return [0.0 if len(calls) < 3 else None for _ in answers]
"""
QUICK: dict[str, Any] = {
    "max_new_tokens": 10,
    "per_device_train_batch_size": 16,
    "learning_rate": 1e-2,
    "kl_coef": 0.01,
    "ppo_target": None,
    "vf_coef": 0.5,
    "ppo_epochs": 1,
    "grpo_beta": 0.005,
}
LEARNS: dict[str, dict[str, Any]] = {
    "ppo": {"stage": "ppo", "max_steps": 24},
    "grpo": {"stage": "grpo", "num_generations": 8, "max_steps": 16},
}


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    rows = [{"instruction": f"What is number {n}?", "output": f"It is {n * 7 % 10}."} for n in range(12)]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def letters(tmp_path: Path) -> str:
    path = tmp_path / "letters.py"
    path.write_text(LETTERS, encoding="utf-8")
    return f"{path}:letters"


def rewards(run: Path) -> list[float]:
    return [entry["reward"] for entry in history(run) if "reward" in entry]


@pytest.mark.parametrize("stage", LEARNS)
def test_the_reward_rises(
    stage: str, tiny_models: dict[str, Path], prompts: Path, letters: str, tmp_path: Path
) -> None:
    run = tune(tiny_models["llama"], prompts, tmp_path / "run", reward_funcs=letters, **QUICK, **LEARNS[stage])
    found = rewards(run)
    assert sum(found[-4:]) / 4 > sum(found[:4]) / 4 + 0.1
    first = next(entry for entry in history(run) if "reward" in entry)
    assert first["kl"] == pytest.approx(0, abs=1e-4)  # nothing has been learnt yet
    assert first["clip_fraction"] == 0
    assert {"entropy", "length", "finished", "kl_coef", "moved"} <= first.keys()
    assert (run / "value_head.safetensors").exists() == (stage == "ppo")


@pytest.mark.parametrize(("stage", "method"), [("ppo", "p_tuning_v2"), ("grpo", "freeze")])
def test_a_run_answers_when_it_is_evaluated(
    stage: str, method: str, tiny_models: dict[str, Path], prompts: Path, letters: str, tmp_path: Path
) -> None:
    options = {**QUICK, **LEARNS[stage], "max_steps": 2, "finetuning_type": method, "reward_funcs": letters}
    run = tune(tiny_models["glm"], prompts, tmp_path / "run", **options)
    assert danlu.evaluate(run, dataset=str(prompts), max_samples=2, max_new_tokens=4)


@pytest.mark.parametrize(
    ("stage", "method"),
    [*(("grpo", method) for method in ("lora", "full", "freeze", "ln_tuning", "p_tuning_v2")), ("ppo", "full")],
)
def test_answers_are_weighed_in_the_precision_of_training(
    stage: str, method: str, tiny_models: dict[str, Path], prompts: Path, letters: str, tmp_path: Path
) -> None:
    options = {**QUICK, **LEARNS[stage], **METHODS[method], "max_steps": 2, "bf16": True, "reward_funcs": letters}
    run = tune(tiny_models["glm"], prompts, tmp_path / "run", **options)
    first = history(run)[0]
    assert first["moved"] == pytest.approx(0, abs=1e-5)  # probability ratios of a model to itself are 1
    if method != "p_tuning_v2":  # a new prefix is not part of the reference
        assert first["kl"] == pytest.approx(0, abs=1e-4)


SPLIT = {
    "ppo": {"stage": "ppo", "ppo_epochs": 2, "steps_per_generation": 2, "ppo_target": 1.0, "ppo_score_norm": True},
    "grpo": {"stage": "grpo", "num_generations": 4, "num_iterations": 2, "gradient_accumulation_steps": 2},
}


@pytest.mark.parametrize("stage", SPLIT)
def test_a_run_killed_in_the_middle_of_a_rollout_goes_on(
    stage: str,
    tiny_models: dict[str, Path],
    prompts: Path,
    letters: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = {
        **{**QUICK, "per_device_train_batch_size": 2, "save_strategy": "steps", "save_steps": 3, "max_steps": 9},
        **SPLIT[stage],
        "reward_funcs": letters,
        "lora_dropout": 0.1,
        "logging_steps": 2,
    }
    whole = tune(tiny_models["qwen3"], prompts, tmp_path / "whole", **options)
    for step in (2, 5):  # before the first checkpoint, and between two
        with killed_at(monkeypatch, step):
            tune(tiny_models["qwen3"], prompts, tmp_path / "again", **options)
    again = tune(tiny_models["qwen3"], prompts, tmp_path / "again", **options)
    assert_same_run(whole, again)


def test_a_reward_model_is_the_reward(tiny_models: dict[str, Path], prompts: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"What is number {n}?", "chosen": "abc", "rejected": "123"} for n in range(8)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    judge = tune(tiny_models["qwen2"], pairs, tmp_path / "rm", stage="rm")
    options = {**QUICK, "stage": "ppo", "max_steps": 2, "file_style": "et", "plot_loss": True}
    run = tune(tiny_models["llama"], prompts, tmp_path / "run", reward_model=str(judge), **options)
    assert len(rewards(run)) == 2
    files = {file.name for file in run.iterdir()}
    assert {"value_head.bin", "training_loss.png", "training_reward.png", "trainer_state.json"} <= files
    assert not {"train_results.json", "all_results.json"} & files
    lines = [json.loads(line) for line in (run / "trainer_log.jsonl").read_text().splitlines()]
    assert all(line["reward"] is not None for line in lines if line["loss"] is not None)


def test_held_out_prompts_tell_the_reward(
    tiny_models: dict[str, Path], prompts: Path, letters: str, tmp_path: Path
) -> None:
    options = {**QUICK, **LEARNS["grpo"], "max_steps": 4, "val_size": 4, "eval_strategy": "steps", "eval_steps": 2}
    saved = {"save_strategy": "steps", "save_steps": 2}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "reward", **saved}
    run = tune(tiny_models["llama"], prompts, tmp_path / "run", reward_funcs=letters, **options, **best)
    told = [entry for entry in history(run) if "eval_reward" in entry]
    assert [entry["step"] for entry in told] == [2, 4]
    assert {"eval_length", "eval_finished"} <= told[0].keys()


def test_a_policy_that_runs_away_is_stopped_and_the_last_checkpoint_stays(
    tiny_models: dict[str, Path], prompts: Path, letters: str, tmp_path: Path
) -> None:
    options = {**QUICK, **LEARNS["grpo"], "learning_rate": 0.01, "kl_limit": 12.0, "save_strategy": "steps"}
    with pytest.raises(RunError, match=r"divergence from the reference became .* more than 12.*=.*checkpoint-[1-9]"):
        tune(tiny_models["llama"], prompts, tmp_path / "run", reward_funcs=letters, save_steps=1, **options)
    assert weights(tmp_path / "run" / "checkpoint-1")


@pytest.mark.parametrize("stage", LEARNS)
def test_the_last_updates_are_checked_as_well(
    stage: str, tiny_models: dict[str, Path], prompts: Path, letters: str, tmp_path: Path
) -> None:
    several = {"max_steps": 2, "ppo_epochs": 2, "num_iterations": 2}  # of one rollout, which begins without divergence
    options = {**QUICK, **LEARNS[stage], **several, "learning_rate": 0.1, "kl_limit": 1.0, "save_strategy": "steps"}
    run = tmp_path / "run"
    with pytest.raises(RunError, match=r"divergence from the reference became .* at step 2, more than 1.*checkpoint-1"):
        tune(tiny_models["llama"], prompts, run, reward_funcs=letters, save_steps=1, **options)
    assert weights(run / "checkpoint-1")
    assert not (run / "adapter_model.safetensors").exists()


def test_a_reward_that_fails_is_named_and_the_last_checkpoint_stays(
    tiny_models: dict[str, Path], prompts: Path, tmp_path: Path
) -> None:
    path = tmp_path / "broken.py"
    path.write_text(BROKEN)
    options = {**QUICK, **LEARNS["ppo"], "save_strategy": "steps", "save_steps": 1}
    with pytest.raises(DanluError, match=r"returned None for answer 0"):
        tune(tiny_models["llama"], prompts, tmp_path / "run", reward_funcs=f"{path}:third", **options)
    assert weights(tmp_path / "run" / "checkpoint-2")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stage": "ppo"}, "needs something that says how good an answer is"),
        ({"stage": "grpo", "reward_funcs": "chinese", "num_generations": 1}, "at least two"),
        ({"stage": "grpo", "reward_funcs": "chinese", "num_generations": 3}, "do not fit into batches of 4"),
        ({"stage": "grpo", "reward_funcs": "chinese", "num_generations": 8}, "no multiple of the 8 answers"),
        ({"stage": "ppo", "reward_funcs": "chinese", "reward_weights": "1,2"}, "2 weights for 1 rewards"),
        ({"stage": "ppo", "reward_funcs": "chinse"}, "chinese"),
        ({"stage": "ppo", "reward_funcs": "chinese", "packing": True}, "nothing to fill"),
        ({"stage": "ppo", "reward_model": "nowhere"}, "no such run"),
        ({"stage": "ppo", "reward_model": "ADAPTER"}, "there is no value head: this is no reward model"),
        ({"stage": "ppo", "reward_model": "WIDER"}, "made for 7 numbers, this model has 64"),
        ({"stage": "ppo", "reward_model": "PPO"}, "expected of a state: it is no reward model"),
        ({"stage": "ppo", "reward_funcs": "nowhere.py:f"}, "nowhere.py: there is no such file"),
        ({"stage": "ppo", "reward_funcs": "FILE:f"}, "no function f in .*It has needs"),
        ({"stage": "ppo", "reward_funcs": "FILE:needs"}, "missing a required argument: 'more'"),
    ],
)
def test_what_cannot_work_is_refused_before_any_row_is_read(
    options: dict[str, Any],
    message: str,
    tiny_models: dict[str, Path],
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("danlu.verbs.train.gather", lambda config: pytest.fail("rows are tokenised"))
    (tmp_path / "rewards.py").write_text("def needs(answers, more):\n    return answers\n")
    if (kind := options.get("reward_model")) and kind != "nowhere":
        base = load_model(tiny_models["llama"])
        random_adapter(base, tmp_path / kind)
        if kind != "ADAPTER":
            ValueHead(7 if kind == "WIDER" else 64).save(tmp_path / kind)
        if kind == "PPO":
            RunDirectory(tmp_path / kind).write_config(TrainConfig())
            RunDirectory(tmp_path / kind).write_manifest(Manifest(stage="ppo"))
        options = {**options, "reward_model": str(tmp_path / kind)}
    if "reward_funcs" in options:
        options = {**options, "reward_funcs": options["reward_funcs"].replace("FILE", str(tmp_path / "rewards.py"))}
    with pytest.raises((UsageError, DanluError), match=message):
        tune(tiny_models["llama"], prompts, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", METHODS)
def test_the_first_weights_can_be_put_back(method: str, tiny_models: dict[str, Path]) -> None:
    from probes import token_batch

    from danlu.core.config import build
    from danlu.models.abilities import examine
    from danlu.tune import methods
    from danlu.tune.batches import lay_out
    from danlu.tune.initial import InitialWeights
    from danlu.tune.learner import Learner

    config = build(TrainConfig, METHODS[method], where="test")
    model = load_model(tiny_models["llama"], dtype="float32")
    abilities = examine(model)
    ids = token_batch(1, 9)[0].numpy()
    batch = lay_out([[(ids, ids > 0)]])
    before = Learner(model, abilities)(**batch)
    tuned = methods.METHODS[kind_of(method)].apply(model, config)
    learner = Learner(tuned.model, abilities, tuned.prefix)
    initial = InitialWeights(learner, new_prefix=True)
    with torch.no_grad():
        for parameter in learner.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    moved = learner(**batch)
    with initial.in_place():
        torch.testing.assert_close(learner(**batch), before, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(learner(**batch), moved)
    assert not torch.allclose(before, moved)
