"""What --dry-run prints: complete, marked, and itself a configuration."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.cli.compat import render_resolved, resolve_train
from danlu.core.config import build
from danlu.core.config_text import scalar, to_yaml
from danlu.tune.config import TrainConfig

COMMANDS = [
    ["dataset=a"],
    ["--do_train"],
    ["--do_eval", "--checkpoint_dir", "D", "--predict_with_generate", "--source_prefix", "答：\n"],
    ["--do_train", "--template", "x", "--dataset", "a,b", "--fsdp", "full_shard", "--adam_beta1", "0.8"],
    ["dataset=[a, '#1: b']", "lr_scheduler_kwargs={a: [1, 2]}", "prompt_separator=' | '", "report_to=wandb"],
]


@pytest.mark.parametrize("words", COMMANDS)
def test_it_reads_back_as_the_same_configuration(words, tmp_path):
    resolved = resolve_train(words)
    path = tmp_path / "run.yaml"
    path.write_text(render_resolved(resolved), encoding="utf-8")
    again = resolve_train([str(path)])
    assert again.config == resolved.config
    assert again.mode == "danlu"


def test_every_option_stands_in_it():
    lines = render_resolved(resolve_train(["--do_train"])).splitlines()
    for name, field in TrainConfig.model_fields.items():
        assert sum(line.startswith(f"{name}:") for line in lines) == 1
        for inner in getattr(field.annotation, "model_fields", ()):
            assert sum(line.startswith(f"  {inner}: ") for line in lines) == 1, inner


def test_changes_sources_and_notes_are_marked():
    text = render_resolved(resolve_train(["--do_train", "--learning_rate", "1e-3", "--dev_ratio", "0.1"]))
    lines = {line.split(":")[0].strip(): line for line in text.splitlines() if not line.startswith("#")}
    assert lines["learning_rate"].endswith("# * default 5.0e-05; --learning_rate")
    assert lines["lora_rank"].endswith("# from ChatGLM-Efficient-Tuning")
    assert lines["prompt_separator"].endswith('# * default "\\n"; from ChatGLM-Efficient-Tuning')
    assert "#" not in lines["seed"]
    assert "#  - dev_ratio → val_size\n" in text
    assert max(map(len, text.splitlines())) < 130


def test_secrets_are_not_shown():
    resolved = resolve_train(["dataset=a", "trainer.hub_token=hf_secret", "trainer.data_seed=1"])
    assert resolved.config.trainer["hub_token"] == "hf_secret"
    assert "hf_secret" not in render_resolved(resolved)
    assert "data_seed: 1" in render_resolved(resolved)


def test_descriptions_are_the_default_comment():
    text = to_yaml(TrainConfig())
    assert "# rank r of the update" in text
    assert "lora:                                         # Low-rank adapters." in text


@settings(deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=6,
    )
)
def test_a_value_is_one_line_and_reads_back(value):
    import yaml

    text = scalar(value)
    assert "\n" not in text
    assert yaml.safe_load(f"key: {text}")["key"] == value


@settings(deadline=None)
@given(st.text(min_size=1, max_size=20), st.floats(min_value=1e-9, max_value=1.0))
def test_any_text_and_number_survive(text, rate):
    config = build(TrainConfig, {"run_name": text, "learning_rate": rate}, where="test")
    import yaml

    assert build(TrainConfig, yaml.safe_load(to_yaml(config)), where="test") == config
