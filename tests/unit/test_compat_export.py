"""`danlu export` in the words of three tools."""

import shlex

import pytest

from danlu.cli.compat import render_resolved, resolve_export
from danlu.core.errors import ConfigError, UsageError

OLD = shlex.split("--model_name_or_path M --finetuning_type lora --checkpoint_dir D --output_dir X")


def test_flags_of_the_old_tool():
    resolved = resolve_export(["src/export_model.py", *OLD])
    found = resolved.config
    assert resolved.mode == "et"
    assert (found.model_name_or_path, found.adapter_name_or_path, found.output_dir) == ("M", ("D",), "X")
    assert (found.max_shard_size, found.legacy_bin, found.dtype) == (1.0, True, "float16")
    assert "checkpoint_dir → adapter_name_or_path" in resolved.notes


@pytest.mark.parametrize("method", ["full", "freeze"])
def test_a_checkpoint_that_is_a_model(method):
    words = [word if word != "lora" else method for word in OLD]
    found = resolve_export(words).config
    assert (found.model_name_or_path, found.adapter_name_or_path) == ("D", ())


def test_files_of_llamafactory(tmp_path):
    path = tmp_path / "merge.yaml"
    path.write_text(
        "model_name_or_path: M\nadapter_name_or_path: a,b\ntemplate: qwen3\ntrust_remote_code: true\n"
        "finetuning_type: lora\nexport_dir: X\nexport_size: 2\nexport_device: cpu\n"
        "export_legacy_format: false\n"
        "dataset: d\ninfer_dtype: fp16\n"
    )
    resolved = resolve_export([str(path), "device=auto"])
    found = resolved.config
    assert resolved.mode == "llamafactory"
    assert found.adapter_name_or_path == ("a", "b")
    assert (found.max_shard_size, found.device, found.legacy_bin) == (2.0, "auto", False)
    assert (found.template, found.dtype) == ("qwen3", "float16")
    assert any(note.startswith("dataset: not used; it belongs to training") for note in resolved.notes)


@pytest.mark.parametrize("words", [["--run", "R", "--output_dir", "X"], ["run=R", "output_dir=X"]])
def test_a_run_says_the_rest(words):
    resolved = resolve_export(words)
    found = resolved.config
    assert resolved.mode == "danlu"
    assert (found.run, found.output_dir, found.max_shard_size, found.legacy_bin) == ("R", "X", 5.0, False)


@pytest.mark.parametrize("word", ["--format", "--export_format"])
def test_the_original_layout(word):
    flags = ["--model_name_or_path", "M", "--output_dir", "X", word, "original", "--legacy_bin", "true"]
    resolved = resolve_export(flags)
    assert resolved.mode == "danlu", "not the old tool, which wrote half precision"
    found = resolved.config
    assert (found.export_format, found.legacy_bin, found.dtype) == ("original", True, "auto")
    assert resolve_export(["run=R", "output_dir=X"]).config.export_format == "safetensors"
    with pytest.raises(ConfigError, match="export_format"):
        resolve_export(["run=R", "output_dir=X", "format=other"])
    with pytest.raises(UsageError, match="exclude each other"):
        resolve_export(["run=R", "output_dir=X", "format=original", "template=chatml"])


@pytest.mark.parametrize(("text", "size"), [("5GB", 5.0), ("500MB", 0.5), ("0.25", 0.25), (2, 2.0)])
def test_sizes(text, size):
    assert resolve_export(["run=R", "output_dir=X", f"max_shard_size={text}"]).config.max_shard_size == size


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model_name_or_path=M"], "no folder to write"),
        (["output_dir=X"], "nothing to export"),
        (["run=R", "model_name_or_path=M", "output_dir=X"], "exclude each other"),
        (["run=R", "output_dir=X", "max_shard_size=0"], "above 0"),
        (["run=R", "output_dir=X", "max_shard_size=big"], "max_shard_size"),
        (["run=R", "output_dir=X", "max_shard_size=bigMB"], "max_shard_size"),
        (
            ["run=R", "output_dir=X", "export_quantization_bit=4"],
            "safetensors are not quantised by danlu.*export_format=gguf",
        ),
        (["run=R", "output_dri=X"], "Did you mean output_dir"),
    ],
)
def test_what_is_refused(words, message):
    with pytest.raises(UsageError, match=message):
        resolve_export(words)


def test_what_is_printed_reads_back(tmp_path):
    resolved = resolve_export(OLD)
    path = tmp_path / "export.yaml"
    path.write_text(render_resolved(resolved))
    assert resolve_export([str(path)]).config == resolved.config
    assert "* default 5.0; from ChatGLM-Efficient-Tuning" in path.read_text()


def test_unknown_words_are_refused():
    with pytest.raises(ConfigError, match="no option 'lora_rnk'"):
        resolve_export([*OLD, "--lora_rnk", "3"])
