"""The groups of options, and the checks across them."""

import pytest

from danlu.core.config import build, field_homes
from danlu.core.errors import ConfigError, MissingDependency, UsageError
from danlu.tune.checks import check, check_packages, remarks
from danlu.tune.config import FREE_ON_RESUME, TrainConfig


def config(**values):
    return build(TrainConfig, {"dataset": "a", **values}, where="test")


def test_groups_stay_small_and_names_are_unique():
    for name, field in TrainConfig.model_fields.items():
        assert len(getattr(field.annotation, "model_fields", ())) <= 12, name
    assert len(field_homes(TrainConfig)) > 90


def test_every_option_is_documented():
    for field in TrainConfig.model_fields.values():
        for name, inner in getattr(field.annotation, "model_fields", {}).items():
            assert inner.description, name
            assert not inner.description.endswith("."), name


def test_what_may_change_on_resume_exists():
    paths = {".".join(path) for path in field_homes(TrainConfig).values()}
    assert {name for name in FREE_ON_RESUME if "." in name} <= paths
    assert {name for name in FREE_ON_RESUME if "." not in name} <= set(TrainConfig.model_fields)


@pytest.mark.parametrize(
    ("key", "given", "value"),
    [
        ("report_to", "none", ()),
        ("report_to", False, ()),
        ("report_to", ["none"], ()),
        ("report_to", ("none",), ()),
        ("report_to", "tensorboard, wandb", ("tensorboard", "wandb")),
        ("eval_strategy", False, "no"),
        ("save_strategy", "epoch", "epoch"),
        ("lr_scheduler_kwargs", None, {}),
        ("lr_scheduler_kwargs", '{"a": 1}', {"a": 1}),
        ("resume_from_checkpoint", "False", False),
        ("resume_from_checkpoint", "runs/x/checkpoint-1", "runs/x/checkpoint-1"),
        ("deepspeed", '{"stage": 2}', {"stage": 2}),
        ("deepspeed", "ds.json", "ds.json"),
        ("learning_rate", "5e-5", 5e-5),
        ("lora_target", None, ()),
        ("model_revision", 2024, "2024"),
        ("interleave_probs", "0.7,0.3", (0.7, 0.3)),
    ],
)
def test_values_in_their_usual_spellings(key, given, value):
    groups = config(**{key: given}).model_dump().values()
    assert next(group[key] for group in groups if key in group) == value


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr_scheduler_type": "cosin"}, "there is no such schedule. Did you mean cosine"),
        ({"lr_scheduler_type": "zzz"}, "Known: linear"),
        ({"eval_strategy": True}, "eval_strategy"),
        ({"lr_scheduler_kwargs": "{a"}, "not valid JSON"),
        ({"bf16": True, "fp16": True}, "exclude each other"),
        ({"gradient_checkpointing": True, "disable_gradient_checkpointing": True}, "contradict"),
        ({"stage": "dance"}, "stage"),
        ({"report_to": 0}, "report_to"),
        ({"interleave_probs": [None]}, "interleave_probs"),
        ({"warmup_ratio": 1.5}, r"^test:warmup_ratio: it has to be at most 1 \(got 1.5\)"),
        ({"nothing": 1}, "has no key 'nothing'"),
        ({"max_minutes": 0}, r"^test:max_minutes: it has to be above 0 \(got 0\)\.$"),
        ({"output.max_minutes": -1}, r"^test:output.max_minutes: it has to be above 0 \(got -1\)\.$"),
        ({"output": {"max_minutes": "x"}}, r"^test:output.max_minutes: a number is expected \(got 'x'\)\.$"),
        ({"save_strategy": "never"}, r"^test:save_strategy: it has to be '.*' or '.*' \(got 'never'\)"),
    ],
)
def test_values_that_make_no_sense(values, message):
    with pytest.raises(ConfigError, match=message):
        config(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"do_train": False}, "nothing to do"),
        ({"dataset": ""}, "no dataset is named"),
        ({"do_eval": True}, r"do_eval: Please make sure eval_dataset be provided or val_size >1e-6"),
        ({"eval_strategy": "steps"}, r"eval_strategy: Please make sure"),
        ({"load_best_model_at_end": True}, "load_best_model_at_end needs eval_strategy"),
        ({"early_stopping_steps": 2}, "early_stopping_steps needs eval_strategy"),
        (
            {"load_best_model_at_end": True, "eval_strategy": "epoch", "val_size": 0.1},
            "save_strategy steps, eval_strategy epoch",
        ),
        ({"train_on_prompt": True, "mask_history": True}, "contradict each other"),
        ({"dataset": "a,b", "interleave_probs": "1"}, "1 weights for 2 datasets"),
        ({"quantization_bit": "4", "finetuning_type": "freeze"}, "quantised weights cannot be trained"),
        ({"adapter_name_or_path": "a", "finetuning_type": "full"}, "full has no adapters"),
    ],
)
def test_options_that_contradict_each_other(values, message):
    with pytest.raises(UsageError, match=message):
        check(config(**values))


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"do_eval": True, "val_size": 0.1},
        {"do_train": False, "do_predict": True, "eval_dataset": "b"},
        {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_dataset": "b"},
        {"adapter_name_or_path": "a,b"},
        {"dataset": "a,b", "interleave_probs": "1,2"},
    ],
)
def test_options_that_agree(values):
    check(config(**values))


def test_a_tracker_is_looked_for_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr("danlu.tune.checks.find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match=r"report_to=wandb.*pip install wandb"):
        check_packages(config(dataset="a", report_to="wandb"))
    with pytest.raises(UsageError, match="no tracker 'wandv'.*Did you mean wandb"):
        check_packages(config(dataset="a", report_to="wandv"))
    monkeypatch.setattr("danlu.tune.checks.find_spec", lambda name: object() if name == "tensorboardX" else None)
    check_packages(config(dataset="a", report_to="tensorboard"))
    check_packages(config(dataset="a", report_to="all"))
    with pytest.raises(MissingDependency, match="package deepspeed"):
        check_packages(config(dataset="a", deepspeed="z3.json"))


def test_weights_of_datasets_that_are_not_interleaved_are_told():
    (told,) = remarks(config(dataset="a,b", interleave_probs=[0.2, 0.8]))
    assert "interleave_probs has no effect with mix_strategy=concat" in told
    assert remarks(config(dataset="a,b", interleave_probs=[0.2, 0.8], mix_strategy="interleave_over")) == []


@pytest.mark.parametrize("words", [["--dry-run"], []])
def test_a_remark_is_made_once(words, tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from danlu.cli.main import app
    from danlu.verbs import train

    def begin(*_):
        raise RuntimeError("it begins")

    monkeypatch.setattr(train, "begin", begin)
    values = ["stage=kto", "per_device_train_batch_size=1", f"output_dir={tmp_path}", "dataset=a"]
    result = CliRunner().invoke(app, ["train", "model_name_or_path=m", *values, *words])
    assert result.output.count("the number of one answer") == 1, result.output


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"stage": "orpo", "pref_ftx": 0.1}, "pref_ftx has no effect in stage orpo"),
        ({"stage": "dpo", "simpo_gamma": 1, "kto_chosen_weight": 2}, "simpo_gamma and kto_chosen_weight have no"),
        ({"stage": "dpo", "pref_loss": "hinge", "dpo_label_smoothing": 0.1}, "(with pref_loss=hinge) has no effect"),
        ({"stage": "rm", "mask_history": True}, "mask_history has no effect in stage rm"),
        ({"stage": "kto", "per_device_train_batch_size": 1}, "the number of one answer"),
        ({"stage": "dpo", "pref_ftx": 0.1, "dpo_label_smoothing": 0.1}, ""),
        ({"stage": "simpo", "pref_beta": 1, "simpo_gamma": 1, "pref_ftx": 1}, ""),
        ({"stage": "sft", "pref_beta": 0.1}, ""),  # files of LLaMA-Factory always set it
    ],
)
def test_options_that_a_stage_does_not_read_are_told(values, told):
    found = " ".join(remarks(config(**values)))
    assert " ".join(told.split()) in " ".join(found.split()) if told else found == ""


@pytest.mark.parametrize("written", [{"min_lr": "1e-5"}, '{"min_lr": 1e-5}', {"min_lr": 1e-5}, {"min_lr": "1.0E-5"}])
def test_powers_of_ten_inside_a_mapping_are_numbers(written):
    assert config(lr_scheduler_kwargs=written).optimizer.lr_scheduler_kwargs == {"min_lr": 1e-5}
    assert config(trainer={"adam_epsilon": "1e-6", "push_to_hub": False}).trainer == {
        "adam_epsilon": 1e-6,
        "push_to_hub": False,
    }
    assert config(trainer={"hub_model_id": "me/1e5-model"}).trainer == {"hub_model_id": "me/1e5-model"}
