"""Commands of ChatGLM-Efficient-Tuning, as its users type them."""

import shlex

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.cli.compat import resolve_train
from danlu.core.errors import ConfigError, UsageError

TRAIN = shlex.split(
    "--stage sft --model_name_or_path THUDM/chatglm2-6b --do_train --dataset zh --finetuning_type lora "
    "--output_dir D --per_device_train_batch_size 4 --gradient_accumulation_steps 4 "
    "--lr_scheduler_type cosine --logging_steps 10 --save_steps 1000 "
    "--learning_rate 5e-5 --num_train_epochs 3.0 --plot_loss --fp16"
)
EVALUATE = shlex.split(
    "--stage sft --model_name_or_path M --do_eval --dataset zh --finetuning_type lora --checkpoint_dir D "
    "--output_dir E --per_device_eval_batch_size 8 --max_samples 50 --predict_with_generate"
)
PREDICT = shlex.split(
    "--stage sft --model_name_or_path M --do_predict --dataset zh --finetuning_type lora --checkpoint_dir D "
    "--output_dir P --per_device_eval_batch_size 8 --max_samples 100 --predict_with_generate"
)


def config(*words):
    return resolve_train(["--dataset", "zh", *words]).config


def test_training():
    resolved = resolve_train(TRAIN)
    found = resolved.config
    assert resolved.mode == "et"
    assert (found.task.do_train, found.task.do_eval, found.task.do_predict) == (True, False, False)
    assert found.model.model_name_or_path == "THUDM/chatglm2-6b"
    assert found.optimizer.learning_rate == 5e-5
    assert found.optimizer.lr_scheduler_type == "cosine"
    assert (found.output.plot_loss, found.compute.fp16, found.output.save_steps) == (True, True, 1000)
    assert found.data.eval_dataset == ()
    assert resolved.argv == tuple(TRAIN)


def test_defaults_of_the_old_tool():
    found = resolve_train(["--do_train"]).config
    assert found.model.model_name_or_path == "THUDM/chatglm-6b"
    assert (found.data.dataset, found.data.dataset_dir) == (("alpaca_zh",), "data")
    lora = found.lora
    assert (lora.lora_rank, lora.lora_alpha, lora.lora_dropout) == (8, 32.0, 0.1)
    assert lora.lora_target == ("query_key_value",)
    encode = found.encode
    assert (encode.max_source_length, encode.max_target_length, encode.cutoff_len) == (512, 512, 1024)
    assert (encode.truncation, encode.mask_history) == ("keep_start", True)
    assert found.data.prompt_separator == ""
    freeze, prefix = found.freeze, found.prefix
    assert (freeze.freeze_trainable_layers, freeze.freeze_trainable_modules) == (3, ("mlp",))
    assert (prefix.pre_seq_len, prefix.prefix_projection, prefix.prefix_dropout) == (64, False, 0.1)
    assert (found.optimizer.per_device_train_batch_size, found.log.logging_steps) == (8, 500)
    assert found.output.file_style == "et"


@pytest.mark.parametrize(("words", "samples"), [(EVALUATE, 50), (PREDICT, 100)])
def test_measuring_runs_over_the_dataset_itself(words, samples):
    resolved = resolve_train(words)
    found = resolved.config
    assert found.task.do_train is False
    assert found.data.eval_dataset == ("zh",)
    assert found.data.max_samples == samples
    assert found.model.adapter_name_or_path == ("D",)
    generate = found.generate
    assert (generate.do_sample, generate.top_p, generate.temperature) == (True, 0.7, 0.95)
    assert (generate.top_k, generate.max_new_tokens, generate.metric_set) == (50, 513, "compat")
    assert any("run over dataset itself" in note for note in resolved.notes)


def test_rows_held_out_while_training_are_measured_instead():
    found = config("--do_train", "--do_eval", "--dev_ratio", "0.01", "--evaluation_strategy", "steps")
    assert (found.data.val_size, found.data.eval_dataset) == (0.01, ())
    assert found.log.eval_strategy == "steps"


def test_dev_ratio_means_nothing_without_training():
    resolved = resolve_train([*EVALUATE, "--dev_ratio", "0.2"])
    assert resolved.config.data.val_size == 0
    assert resolved.config.data.eval_dataset == ("zh",)
    assert any(note.startswith("dev_ratio splits rows only while training") for note in resolved.notes)


def test_lengths_follow_from_their_parts():
    found = config("--do_train", "--max_source_length", "100", "--max_target_length=30")
    assert (found.encode.cutoff_len, found.generate.max_new_tokens) == (130, 31)
    with pytest.raises(ConfigError, match="max_source_length"):
        config("--do_train", "--max_source_length", "long")


@pytest.mark.parametrize(
    ("words", "group", "key", "value"),
    [
        (["--resume_lora_training", "False"], "model", "create_new_adapter", True),
        (["--no_resume_lora_training"], "model", "create_new_adapter", True),
        (["--resume_lora_training"], "model", "create_new_adapter", False),
        (["--num_layer_trainable", "-2"], "freeze", "freeze_trainable_layers", -2),
        (["--name_module_trainable", "qkv"], "freeze", "freeze_trainable_modules", ("query_key_value",)),
        (["--finetuning_type", "p_tuning"], "method", "finetuning_type", "p_tuning_v2"),
        (["--quantization_bit", "4"], "quant", "quantization_bit", 4),
        (["--quantization_bit", "4", "--quantization_type", "fp4"], "quant", "quantization_type", "fp4"),
        (["--eval_num_beams", "4"], "generate", "num_beams", 4),
        (["--source_prefix", "答："], "encode", "source_prefix", "答："),
        (["--lora_target", "q_proj,v_proj"], "lora", "lora_target", ("q_proj", "v_proj")),
        (["--lora_target", "q_proj", "v_proj"], "lora", "lora_target", ("q_proj", "v_proj")),
        (["--checkpoint_dir", "a,b"], "model", "adapter_name_or_path", ("a", "b")),
        (["--prefix_projection", "yes"], "prefix", "prefix_projection", True),
        (["--overwrite-cache"], "data", "overwrite_cache", True),
        (["--optim", "adamw_hf"], "optimizer", "optim", "adamw_torch"),
        (["--evaluation_strategy", "no"], "log", "eval_strategy", "no"),
    ],
)
def test_flags_with_another_name_here(words, group, key, value):
    assert getattr(getattr(config("--do_train", *words), group), key) == value


@pytest.mark.parametrize(
    ("method", "group", "key"),
    [
        ("lora", "model", "adapter_name_or_path"),
        ("p_tuning", "model", "adapter_name_or_path"),
        ("full", "model", "model_name_or_path"),
        ("freeze", "model", "model_name_or_path"),
    ],
)
def test_where_a_checkpoint_belongs(method, group, key):
    found = getattr(config("--do_train", "--finetuning_type", method, "--checkpoint_dir", "D"), group)
    assert getattr(found, key) in ("D", ("D",))


def test_the_original_model_can_be_measured():
    resolved = resolve_train(["--do_eval", "--dataset", "zh", "--finetuning_type", "none"])
    assert resolved.config.model.adapter_name_or_path == ()
    assert any("original model" in note for note in resolved.notes)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--do_predict"], "Please enable `predict_with_generate` to save model predictions"),
        (["--do_train", "--predict_with_generate"], "`predict_with_generate` cannot be used while training"),
        (["--do_train", "--finetuning_type", "none"], "trains nothing"),
        (["--do_train", "--quantization_bit", "3"], "quantization_bit is 4 or 8"),
        (["--do_train", "--quantization_bit", "4", "--finetuning_type", "full"], "cannot be trained"),
        (
            ["--do_train", "--quantization_bit", "8", "--finetuning_type", "p_tuning", "--fp16"],
            "cannot be trained",
        ),
        (["--do_train", "--finetuning_type", "full", "--checkpoint_dir", "a,b"], "full has no adapters"),
        (["--stage", "rm", "--do_eval", "--predict_with_generate"], "nor outside stage sft"),
        (["--dataset", "zh"], "there is nothing to do"),
        (["--do_train", "--ignore_pad_token_for_loss", "false"], "padding is never trained"),
        (["--do_train", "--tokenizer_name", "x"], "tokenizer is always read from the model's folder"),
    ],
)
def test_what_is_refused_and_why(words, message):
    with pytest.raises(UsageError, match=message):
        resolve_train(words)


@pytest.mark.parametrize("method", ["lora", "full", "freeze", "p_tuning"])
def test_reward_models_are_trained_by_every_method(method):
    resolved = resolve_train(["--stage", "rm", "--do_train", "--finetuning_type", method])
    assert resolved.config.task.stage == "rm"


def test_a_reward_model_predicts_without_generating():
    words = ["--stage", "rm", "--do_predict", "--dataset", "pairs", "--checkpoint_dir", "runs/rm"]
    assert resolve_train(words).config.task.do_predict


@pytest.mark.parametrize(
    "extra",
    [["--template", "llama3"], ["--cutoff_len", "64"], ["--val_size", "0.1"], ["--use_galore", "false"]],
)
def test_one_flag_of_llamafactory_makes_it_that_tool(extra):
    resolved = resolve_train(["--do_train", "--dataset", "zh", *extra])
    assert resolved.mode == "llamafactory"
    assert resolved.config.lora.lora_target == ("all",)
    assert resolved.config.task.do_train is True


@pytest.mark.parametrize(
    "extra",
    [
        ["--on_bad_row", "error"],
        ["--adam_beta1", "0.8"],
        ["--eval_steps", "5"],
        ["--quantization_type", "fp4"],
    ],
)
def test_other_flags_leave_the_mode_as_it_is(extra):
    assert resolve_train(["--do_train", *extra]).mode == "et"


def test_flags_of_the_old_tool_work_in_any_mode():
    found = resolve_train(["--do_train", "--template", "llama3", "--dataset", "a", "--num_layer_trainable", "5"])
    assert found.mode == "llamafactory"
    assert found.config.freeze.freeze_trainable_layers == 5


@settings(deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [["--fp16"], ["--plot_loss", "true"], ["--lora_rank=4"], ["--seed", "7"], ["--max-steps", "3"]]
        ),
        unique_by=lambda words: words[0],
    )
)
def test_the_order_of_flags_does_not_matter(parts):
    words = [word for part in parts for word in part]
    forward = resolve_train(["--do_train", *words]).config
    backward = resolve_train([*(word for part in reversed(parts) for word in part), "--do_train"]).config
    assert forward == backward


def test_its_flags_in_a_file(tmp_path):
    path = tmp_path / "old.json"
    path.write_text('{"do_eval": true, "dataset": "zh", "checkpoint_dir": "D", "max_target_length": 20}')
    resolved = resolve_train([str(path)])
    assert resolved.mode == "et"
    assert (resolved.config.data.eval_dataset, resolved.config.generate.max_new_tokens) == (("zh",), 21)
    path.write_text('{"do_train": true, "dataset": "zh", "checkpoint_dir": "D", "cutoff_len": 20}')
    assert resolve_train([str(path)]).mode == "llamafactory"


def test_beams_are_not_sampled():
    """The old tool samples by default, and its users ask for beams beside that."""
    resolved = resolve_train([*EVALUATE, "--eval_num_beams", "4"])
    assert (resolved.config.generate.num_beams, resolved.config.generate.do_sample) == (4, False)
    assert "beams are searched without sampling: do_sample=false" in resolved.notes
    assert resolve_train(EVALUATE).config.generate.do_sample is True
    assert resolve_train([*EVALUATE, "--eval_num_beams", "1"]).config.generate.do_sample is True
