"""Files of LLaMA-Factory: every key that its examples use is honoured or answered."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.cli.compat import resolve_train
from danlu.cli.compat.tables import table
from danlu.cli.compat.train import train_vocabulary
from danlu.core.errors import ConfigError, UsageError

_LISTED = """
    model_name_or_path template trust_remote_code cutoff_len finetuning_type output_dir
    preprocessing_num_workers stage dataset do_train gradient_accumulation_steps learning_rate
    logging_steps lr_scheduler_type overwrite_output_dir per_device_train_batch_size save_steps
    report_to plot_loss warmup_ratio bf16 dataloader_num_workers ddp_timeout max_samples
    num_train_epochs save_only_model overwrite_cache lora_rank lora_target resume_from_checkpoint
    image_max_pixels video_max_pixels deepspeed flash_attn max_steps use_kt use_v1_kernels
    adapter_name_or_path export_device export_dir export_legacy_format export_size infer_backend
    oft_block_size oft_target disable_gradient_checkpointing kt_config kt_cpu_activation
    quantization_bit freeze_language_model freeze_multi_modal_projector freeze_vision_tower packing
    pipeline_model_parallel_size pref_beta pure_bf16 quantization_method seed sequence_parallel
    tensor_model_parallel_size use_distributed_optimizer apply_rope_fusion asft_alpha
    bias_activation_fusion double_quantization expert_model_parallel_size fp8 fp8_backend
    fp8_enable_fsdp_float8_all_gather lora_alpha overlap_grad_reduce overlap_param_gather pref_loss
    run_name use_asft_loss video_fps video_maxlen adam_beta1 adam_beta2 apollo_layerwise apollo_rank
    apollo_scale apollo_scale_type apollo_target badam_mode badam_switch_interval badam_switch_mode
    badam_verbose context_parallel_size dataset_dir do_predict eval_dataset export_hf_on_finish
    export_quantization_bit export_quantization_dataset freeze_trainable_layers freeze_trainable_modules
    fsdp fsdp_transformer_layer_cls_to_wrap galore_layerwise galore_rank galore_scale galore_target
    gradient_checkpointing gradient_checkpointing_kwargs kt_non_expert_weight_path kt_weight_path
    loraplus_lr_ratio max_grad_norm mixed_precision mixture_of_depths moe_grouped_gemm
    moe_token_dispatcher_type optim per_device_eval_batch_size pissa_convert pissa_init pissa_iter
    predict_with_generate ray_num_workers recompute_granularity tokenized_path use_adam_mini use_apollo
    use_badam use_dft_loss use_eaft_loss use_galore use_llama_pro use_muon use_packed_sequences
    use_reentrant_gc warmup_steps weight_decay
"""
KEYS = _LISTED.split()

TYPICAL = """\
### model
model_name_or_path: some/model
trust_remote_code: true

### method
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all

### dataset
dataset: identity,alpaca_en_demo
template: llama3
cutoff_len: 2048
max_samples: 1000
overwrite_cache: true
preprocessing_num_workers: 16
dataloader_num_workers: 4

### output
output_dir: saves/lora
logging_steps: 10
save_steps: 500
plot_loss: true
overwrite_output_dir: true
save_only_model: false
report_to: none  # choices

### train
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
ddp_timeout: 180000000
resume_from_checkpoint: null
eval_strategy: no
"""


@pytest.fixture
def file(tmp_path):
    def write(text, name="lf.yaml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def test_the_list_of_keys_is_whole():
    assert len(KEYS) == len(set(KEYS)) == 134


@pytest.mark.parametrize("key", KEYS)
def test_each_key_is_honoured_or_answered(key):
    vocabulary = train_vocabulary()
    honoured = key in vocabulary.homes or any(key in old.passed or key in old.renamed for old in vocabulary.tables)
    answers = [old.answered[key] for old in vocabulary.tables if key in old.answered]
    assert honoured or answers
    for answer in answers:
        assert answer.level in ("ignored", "refused")
        assert len(answer.why) > 15
        assert not answer.why.endswith(".")
        assert answer.use or answer.level == "ignored"


@pytest.mark.parametrize("name", ["et", "llamafactory", "transformers", "export"])
def test_an_answer_ends_in_one_sentence(name):
    for key, answer in table(name).answered.items():
        assert not answer.use or answer.use.endswith("."), key


def test_every_rename_and_default_has_a_target():
    vocabulary = train_vocabulary()
    for old in vocabulary.tables:
        for key, rename in old.renamed.items():
            target = rename.to.removeprefix("trainer.")
            assert target in vocabulary.names, key
            assert rename.to.startswith("trainer.") == (target not in vocabulary.homes), key
        assert set(old.defaults) <= set(vocabulary.homes)
        assert old.marks <= set(vocabulary.names)
    assert not table("et").marks & table("llamafactory").marks


def test_a_typical_file(file):
    resolved = resolve_train([file(TYPICAL)])
    config = resolved.config
    assert resolved.mode == "llamafactory"
    assert config.optimizer.learning_rate == 1e-4
    assert config.data.dataset == ("identity", "alpaca_en_demo")
    assert config.lora.lora_target == ("all",)
    assert config.log.report_to == ()
    assert config.log.eval_strategy == "no"
    assert config.compute.bf16 is True
    assert config.parallel.ddp_timeout == 180_000_000
    assert config.output.resume_from_checkpoint is None
    assert config.encode.template == "llama3"
    assert config.output.file_style == "llamafactory"
    assert any("trust_remote_code" in note for note in resolved.notes)


def test_defaults_of_that_tool_hold(file):
    config = resolve_train([file(TYPICAL)]).config
    assert (config.generate.do_sample, config.generate.max_new_tokens) == (True, 1024)
    assert config.encode.truncation == "keep_start"
    assert config.lora.lora_alpha is None  # twice the rank, as here


def test_the_command_line_wins_over_the_file(file):
    resolved = resolve_train([file(TYPICAL), "learning_rate=3e-4", "--lora_rank", "16", "--no_bf16"])
    assert resolved.config.optimizer.learning_rate == 3e-4
    assert resolved.config.lora.lora_rank == 16
    assert resolved.config.compute.bf16 is False
    assert resolved.sources["learning_rate"] == "command line"
    assert resolved.sources["lora_target"].endswith("lf.yaml:10")


def test_a_json_file_is_read_too(file):
    path = file('{"do_train": true, "dataset": "a", "learning_rate": 2e-4}', "lf.json")
    assert resolve_train([path]).config.optimizer.learning_rate == 2e-4


def test_a_flat_file_without_tasks_is_danlus_own(file):
    resolved = resolve_train([file("stage: sft\ndataset: a\n")])
    assert resolved.mode == "danlu"
    assert resolved.config.task.do_train is True
    assert resolved.config.encode.truncation == "drop"


def test_a_grouped_file_is_danlus_own(file):
    resolved = resolve_train([file("task: {do_train: true}\ndata: {dataset: a}\n")])
    assert resolved.mode == "danlu"


def test_further_arguments_are_handed_on(file):
    text = TYPICAL + "adam_beta1: 0.8\ntf32: true\nfsdp: [full_shard, auto_wrap]\nfsdp_config: {min_num_params: 5}\n"
    resolved = resolve_train([file(text), "--adam_epsilon", "1e-6", "trainer.data_seed=7", "--torch_compile"])
    assert resolved.config.trainer == {
        "adam_beta1": 0.8,
        "tf32": True,
        "adam_epsilon": 1e-6,
        "data_seed": 7,
        "torch_compile": True,
    }
    assert resolved.config.parallel.fsdp == "full_shard auto_wrap"
    assert resolved.config.parallel.fsdp_config == {"min_num_params": 5}


def test_old_fsdp_keys_join_one_mapping(file):
    text = TYPICAL + "fsdp_transformer_layer_cls_to_wrap: Layer\nfsdp_min_num_params: 10\n"
    parallel = resolve_train([file(text)]).config.parallel
    assert parallel.fsdp_config == {"transformer_layer_cls_to_wrap": ["Layer"], "min_num_params": 10}


def test_a_wrong_number_for_transformers_is_named(file):
    with pytest.raises(ConfigError, match=r"lf\.yaml:\d+: 'many' is no number"):
        resolve_train([file(TYPICAL + "adam_beta1: many\n")])


def test_keys_without_effect_are_noted_by_reason(file):
    notes = resolve_train([file(TYPICAL + "image_max_pixels: 1\nvideo_fps: 1.0\nkt_config: {a: 1}\n")]).notes
    assert any(note.startswith("image_max_pixels, video_fps: not used; danlu trains on text") for note in notes)
    assert any(note.startswith("kt_config: not used; it only matters together with use_kt") for note in notes)


def test_keys_at_their_idle_value_are_named_once(file):
    notes = resolve_train([file(TYPICAL + "use_galore: false\nquantization_method: bnb\npacking: null\n")]).notes
    assert "not needed here: quantization_method, use_galore" in notes
    assert resolve_train([file(TYPICAL + "use_galore: false\n")]).config.optimizer.optim == "adamw_torch_fused"


def test_optimizers_that_have_a_switch_there_have_a_name_here(file):
    galore = resolve_train([file(TYPICAL + "use_galore: true\ngalore_rank: 128\ngalore_scale: 0.5\n")])
    assert galore.config.optimizer.optim == "galore_adamw"
    assert (galore.config.galore.galore_rank, galore.config.galore.galore_scale) == (128, 0.5)
    assert "use_galore → optim: galore_adamw" in galore.notes
    assert resolve_train([file(TYPICAL + "use_muon: true\n")]).config.optimizer.optim == "muon"


@pytest.mark.parametrize("key", ["use_apollo", "use_badam", "use_adam_mini"])
def test_other_optimizers_are_refused_with_a_replacement_that_exists(file, key):
    from danlu.tune.optimizers import kinds

    with pytest.raises(ConfigError, match=rf"{key}: True is refused: .*optim=") as caught:
        resolve_train([file(TYPICAL + f"{key}: true\n")])
    named = re.findall(r"optim=(\w+)", str(caught.value))
    assert named
    assert not any(kinds()[name].refused for name in named)


def test_every_refused_key_is_named_at_once(file):
    with pytest.raises(ConfigError) as caught:
        resolve_train([file(TYPICAL + "quantization_method: hqq\nuse_badam: true\nfp8: true\n")])
    message = str(caught.value)
    for part in ("quantization_method: hqq", "use_badam: True", "fp8: True", "3 options", "bf16=true"):
        assert part in message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("stage", ["pt", "rm", "dpo", "kto"])
def test_stages_have_their_own_names(file, stage):
    config = resolve_train([file(TYPICAL.replace("stage: sft", f"stage: {stage}"))]).config
    assert (config.task.stage, config.preference.pref_beta) == (stage, 0.1)


@pytest.mark.parametrize("loss", ["ipo", "orpo", "simpo"])
def test_a_preference_loss_is_a_stage(file, loss):
    text = TYPICAL.replace("stage: sft", "stage: dpo") + f"pref_loss: {loss}\n"
    assert resolve_train([file(text)]).config.task.stage == loss


def test_a_dropped_preference_loss_is_refused(file):
    text = TYPICAL.replace("stage: sft", "stage: dpo") + "pref_loss: kto_pair\n"
    with pytest.raises(ConfigError, match=r"kto_pair is refused.*stage=kto"):
        resolve_train([file(text)])


def test_files_of_the_rewrite_and_of_accelerate_are_recognised(file):
    with pytest.raises(ConfigError, match="rewrite"):
        resolve_train([file("train_dataset: x\noutput_dir: y\n")])
    with pytest.raises(ConfigError, match="accelerate launch"):
        resolve_train([file("compute_environment: LOCAL_MACHINE\n")])


@pytest.mark.parametrize(
    ("line", "key", "value"),
    [
        ("neat_packing: true", "packing", True),
        ("flash_attn: fa2", "flash_attn", "fa2"),
        ("evaluation_strategy: no", "eval_strategy", "no"),
        ("save_strategy: no", "save_strategy", "no"),
        ("save_steps: 0.1", "save_steps", 0.1),
        ("lora_target: [q_proj, v_proj]", "lora_target", ("q_proj", "v_proj")),
        ("report_to: [tensorboard, wandb]", "report_to", ("tensorboard", "wandb")),
        ("optim: adamw_hf", "optim", "adamw_torch"),
        ("infer_dtype: bfloat16", "dtype", "bfloat16"),
        ("lr_scheduler_kwargs: {num_cycles: 2}", "lr_scheduler_kwargs", {"num_cycles": 2}),
        ("resume_from_checkpoint: true", "resume_from_checkpoint", True),
        ("deepspeed: ds_z3.json", "deepspeed", "ds_z3.json"),
        ("run_name: 7", "run_name", "7"),
    ],
)
def test_values_people_write(file, line, key, value):
    name = line.partition(":")[0]
    text = "\n".join(entry for entry in TYPICAL.splitlines() if not entry.startswith((f"{name}:", f"{key}:")))
    config = resolve_train([file(text + "\n" + line + "\n")]).config
    found = {inner: item for group in config.model_dump().values() for inner, item in group.items()}
    assert found[key] == value


def test_prediction_needs_generation_and_rows(file):
    with pytest.raises(UsageError, match="Please enable `predict_with_generate` to save model predictions"):
        resolve_train([file("do_predict: true\neval_dataset: a\n")])
    with pytest.raises(UsageError, match="Please make sure eval_dataset be provided or val_size >1e-6"):
        resolve_train([file("do_predict: true\npredict_with_generate: true\n")])


def test_two_names_of_one_key_in_a_file_are_refused(file):
    with pytest.raises(ConfigError, match="eval_strategy is given twice"):
        resolve_train([file(TYPICAL + "evaluation_strategy: steps\n")])


@settings(deadline=None)
@given(st.sampled_from(KEYS), st.text(alphabet="abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=3))
def test_a_mistyped_key_is_never_dropped(key, tail):
    wrong = f"{key}_{tail}x"
    with pytest.raises(ConfigError, match="has no key"):
        resolve_train([f"{wrong}=1"])
