"""Files of ChatGLM-Efficient-Tuning to the byte: sizes and digests that its own code produces."""

import json

import pytest

from danlu.cli.compat import resolve_train
from danlu.core.results import write_results
from danlu.tune.artefacts import log_line, log_values, write_finetuning_args, write_model_card

pytestmark = pytest.mark.golden

DEFAULT_ARGUMENTS = {
    "finetuning_type": "lora",
    "lora_alpha": 32.0,
    "lora_dropout": 0.1,
    "lora_rank": 8,
    "lora_target": ["query_key_value"],
    "name_module_trainable": "mlp",
    "num_layer_trainable": 3,
    "pre_seq_len": 64,
    "prefix_projection": False,
}


@pytest.fixture
def config():
    return resolve_train(["--stage", "sft", "--do_train", "--dataset", "zh", "--finetuning_type", "lora"]).config


def test_finetuning_args(tmp_path, config):
    write_finetuning_args(tmp_path, config)
    content = (tmp_path / "finetuning_args.json").read_bytes()
    assert json.loads(content) == DEFAULT_ARGUMENTS
    assert content.endswith(b"}\n")
    # the old tool wrote each number of a list on a line of its own, as json does with an indent
    assert len(content) == 254


def test_a_log_line_without_a_loss():
    line = log_line(log_values({"epoch": 3.0}, step=1, total_steps=1, elapsed=6.4), "et")
    assert len(line.encode()) == 224
    assert line == (
        '{"current_steps": 1, "total_steps": 1, "loss": null, "eval_loss": null, "predict_loss": null, '
        '"reward": null, "learning_rate": null, "epoch": 3.0, "percentage": 100.0, '
        '"elapsed_time": "0:00:06", "remaining_time": "0:00:00"}\n'
    )


def test_the_model_card(tmp_path, config):
    write_model_card(tmp_path, config, base_model="b", versions={"peft": "0.4.0"})
    assert len((tmp_path / "README.md").read_bytes()) == 88


def test_results(tmp_path):
    metrics = {"train_loss": 2.0, "epoch": 3.0, "train_runtime": 6.5}
    write_results(tmp_path, "train", metrics)
    assert (tmp_path / "train_results.json").read_bytes() == (
        b'{\n    "epoch": 3.0,\n    "train_loss": 2.0,\n    "train_runtime": 6.5\n}'
    )
