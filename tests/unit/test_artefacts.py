"""Files for users of other tools: keys, order, line ends."""

import json
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.core.config import build
from danlu.core.results import metrics_block, write_results
from danlu.tune.artefacts import (
    append_log,
    finetuning_args,
    log_line,
    log_values,
    write_finetuning_args,
    write_model_card,
    write_training_args,
)
from danlu.tune.config import TrainConfig


def config(**values):
    return build(TrainConfig, {"dataset": "a", **values}, where="test")


def test_a_line_of_the_old_log_keeps_its_order_and_nulls():
    values = log_values({"loss": 2.5, "learning_rate": 5e-05, "epoch": 0.5}, step=10, total_steps=40, elapsed=75.9)
    line = log_line(values, "et")
    assert list(json.loads(line)) == [
        *("current_steps", "total_steps", "loss", "eval_loss", "predict_loss", "reward"),
        *("learning_rate", "epoch", "percentage", "elapsed_time", "remaining_time"),
    ]
    found = json.loads(line)
    assert (found["percentage"], found["elapsed_time"], found["remaining_time"]) == (
        25.0,
        "0:01:15",
        "0:03:47",
    )
    assert found["eval_loss"] is None
    assert line.endswith("}\n")


@pytest.mark.parametrize("style", ["llamafactory", "danlu"])
def test_a_line_of_the_newer_log_drops_nulls(style):
    logs = {"loss": 2.5, "learning_rate": 5e-05, "epoch": 0.5, "throughput": 1200.5, "grad_norm": 1.0}
    found = json.loads(log_line(log_values(logs, step=1, total_steps=3, elapsed=1.0), style))
    assert list(found) == [
        *("current_steps", "total_steps", "loss", "lr", "epoch", "percentage"),
        *("elapsed_time", "remaining_time", "throughput"),
    ]


def test_outside_training_everything_is_done():
    values = log_values({"eval_loss": 1.0}, step=0, total_steps=0, elapsed=3.0)
    assert (values["percentage"], values["remaining_time"]) == (100.0, "0:00:00")


def test_the_estimate_counts_only_this_process():
    values = log_values({}, step=90, total_steps=100, elapsed=10.0, done=10)
    assert values["remaining_time"] == "0:00:10"


def test_the_log_grows_by_whole_lines(tmp_path):
    for step in (1, 2):
        append_log(tmp_path, log_values({"loss": 1.0}, step=step, total_steps=2, elapsed=1.0), "danlu")
    lines = (tmp_path / "trainer_log.jsonl").read_text().splitlines()
    assert [json.loads(line)["current_steps"] for line in lines] == [1, 2]


@settings(deadline=None)
@given(step=st.integers(0, 10**6), total=st.integers(0, 10**6), elapsed=st.floats(0, 1e7))
def test_any_progress_is_a_line(step, total, elapsed):
    values = log_values({}, step=min(step, total), total_steps=total, elapsed=elapsed)
    found = json.loads(log_line(values, "et"))
    assert 0 <= found["percentage"] <= 100
    assert not found["remaining_time"].startswith("-")


def test_arguments_of_the_method():
    found = finetuning_args(config(lora_rank=4, lora_target="q,v", finetuning_type="p_tuning_v2"))
    assert found["lora_alpha"] == 8.0
    assert found["lora_target"] == ["q", "v"]
    assert found["finetuning_type"] == "p_tuning"
    assert finetuning_args(config(freeze_trainable_modules="query_key_value"))["name_module_trainable"] == "qkv"


def test_arguments_of_the_method_are_sorted_json(tmp_path):
    write_finetuning_args(tmp_path, config())
    text = (tmp_path / "finetuning_args.json").read_text()
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True) + "\n"


def test_training_arguments_are_json_without_secrets(tmp_path):
    write_training_args(tmp_path, config(trainer={"hub_token": "hf_x", "adam_beta1": 0.8}, learning_rate=1e-3))
    found = json.loads((tmp_path / "training_args.bin").read_text())
    assert (found["learning_rate"], found["adam_beta1"], found["seed"]) == (1e-3, 0.8, 42)
    assert "hub_token" not in found


def test_results_are_merged_over_commands(tmp_path):
    write_results(tmp_path, "train", {"train_loss": 1.5, "epoch": 3.0})
    write_results(tmp_path, "eval", {"eval_rouge-l": 20.5, "epoch": 4.0})
    assert (tmp_path / "train_results.json").read_text() == '{\n    "epoch": 3.0,\n    "train_loss": 1.5\n}'
    merged = (tmp_path / "all_results.json").read_text()
    assert json.loads(merged) == {"epoch": 4.0, "eval_rouge-l": 20.5, "train_loss": 1.5}
    assert list(json.loads(merged)) == sorted(json.loads(merged))


def test_broken_results_of_an_earlier_command_do_not_stop_this_one(tmp_path):
    (tmp_path / "all_results.json").write_text("{")
    write_results(tmp_path / "deep", "eval", {"eval_loss": 1.0})
    write_results(tmp_path, "eval", {"eval_loss": 1.0})
    assert json.loads((tmp_path / "all_results.json").read_text()) == {"eval_loss": 1.0}


def test_the_printed_block_is_aligned():
    metrics = {"epoch": 3.0, "train_loss": 2.123456, "train_runtime": 6.509, "total_flos": 5 << 30, "n": 3}
    assert metrics_block("train", metrics) == (
        "***** train metrics *****\n"
        "  epoch         =        3.0\n"
        "  n             =          3\n"
        "  total_flos    =        5GF\n"
        "  train_loss    =     2.1235\n"
        "  train_runtime = 0:00:06.50"
    )
    assert metrics_block("eval", {}) == "***** eval metrics *****"
    assert metrics_block("eval", {"x_mem_y": 3 << 20, "eval_loss": math.inf}).count("\n") == 2


def test_the_model_card(tmp_path):
    folder = tmp_path / "my-run"
    write_model_card(
        folder,
        config(learning_rate=1e-4, bf16=True),
        base_model="org/base",
        data=["a.json: 3 rows"],
        scores={"eval_rouge-l": 20.123456},
        versions={"python": "3.11", "peft": "0.21.2"},
    )
    text = (folder / "README.md").read_text()
    assert text.startswith('---\nbase_model: "org/base"\nlibrary_name: peft\n')
    for part in (
        "# my-run",
        "a.json: 3 rows",
        "| lora_rank | 8 |",
        "| lora_alpha | 16.0 |",
        "| precision | bf16 |",
    ):
        assert part in text
    assert "| eval_rouge-l | 20.1235 |" in text
    assert "- peft 0.21.2" in text
    assert not re.search(r"\n{3}", text)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("freeze", "| freeze_trainable_layers | 2 |"),
        ("p_tuning_v2", "| pre_seq_len | 64 |"),
        ("full", "library_name: transformers"),
    ],
)
def test_the_model_card_names_the_methods_options(tmp_path, method, expected):
    write_model_card(tmp_path, config(finetuning_type=method, max_steps=5), base_model="b")
    text = (tmp_path / "README.md").read_text()
    assert expected in text
    assert "| max_steps | 5 |" in text
    assert "lora_rank" not in text
    assert "## Scores" not in text
