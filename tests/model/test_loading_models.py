"""Loading: the same logits from every source, and a clear answer for everything that is not a model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from probes import logits_of, random_adapter, token_batch

from danlu.core.errors import ModelError
from danlu.models.loading import load_model, load_tokenizer, stop_ids
from danlu.models.zoo import packaged_models

pytestmark = pytest.mark.model


@pytest.fixture
def copy(tiny_models: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the tiny Llama that a test may break."""
    return Path(shutil.copytree(tiny_models["llama"], tmp_path / "copy"))


def edit(path: Path, **changes: object) -> None:
    value = json.loads(path.read_text())
    path.write_text(json.dumps({**value, **changes}))


def test_saved_and_loaded_logits_are_equal(tiny_model: Path, tmp_path: Path) -> None:
    model = load_model(tiny_model)
    ids = token_batch()
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(logits_of(load_model(tmp_path / "again"), ids), logits_of(model, ids))
    assert model.dtype == torch.float32
    assert not model.training
    assert model.name_or_path == str(tiny_model.resolve())


def test_precision_is_chosen(tiny_models: dict[str, Path]) -> None:
    assert load_model(tiny_models["qwen2"], dtype="bfloat16").dtype == torch.bfloat16


def test_loading_says_nothing(tiny_models: dict[str, Path], capfd: pytest.CaptureFixture[str]) -> None:
    load_model(tiny_models["llama"])
    load_tokenizer(tiny_models["llama"])
    assert capfd.readouterr() == ("", "")


def test_a_family_can_be_demanded(tiny_models: dict[str, Path]) -> None:
    assert load_model(tiny_models["glm"], family="glm").config.model_type == "glm"
    with pytest.raises(ModelError, match="this is a glm model, not llama"):
        load_model(tiny_models["glm"], family="llama")


def test_weights_cut_short(copy: Path) -> None:
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"the weights cannot be loaded .* copied whole"):
        load_model(copy)


def test_weights_of_another_size(copy: Path) -> None:
    edit(copy / "config.json", intermediate_size=128)
    with pytest.raises(ModelError, match="copy"):
        load_model(copy)


def test_missing_weights_are_not_made_up(copy: Path) -> None:
    edit(copy / "config.json", num_hidden_layers=4)
    with pytest.raises(ModelError, match=r"9 weights are missing, for instance model\.layers\.3"):
        load_model(copy)


def test_missing_shard(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    load_model(tiny_models["llama"]).save_pretrained(tmp_path / "shards", max_shard_size="200KB")
    shard = sorted((tmp_path / "shards").glob("model-0000*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ModelError, match=shard.name):
        load_model(tmp_path / "shards")


def test_code_of_the_folder_is_never_run(copy: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (copy / "modeling_odd.py").write_text(f"open({str(marker)!r}, 'w')")
    edit(copy / "config.json", model_type="odd", auto_map={"AutoModelForCausalLM": "modeling_odd.Odd"})
    with pytest.raises(ModelError, match="needs Python code from the model folder, which danlu never runs"):
        load_model(copy)
    assert not marker.exists()


def test_families_that_need_code_are_named_with_what_to_use_instead(copy: Path) -> None:
    edit(copy / "config.json", model_type="baichuan", auto_map={"AutoConfig": "configuration_baichuan.BaichuanConfig"})
    with pytest.raises(ModelError, match=r"Baichuan .* which danlu never runs.*layout of Llama"):
        load_model(copy)
    (copy / "tokenizer.json").unlink()
    edit(copy / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_baichuan.BaichuanTokenizer", None]})
    (copy / "tokenizer.model").touch()
    with pytest.raises(ModelError, match=r"baichuan-inc/Baichuan2-7B-Chat: Baichuan needs .*layout of Llama"):
        load_model("baichuan-inc/Baichuan2-7B-Chat")  # before anything is downloaded
    with pytest.raises(ModelError, match="Baichuan"):  # and not that the tokenizer is damaged
        load_tokenizer(copy)


def test_unknown_and_encoder_models(copy: Path) -> None:
    edit(copy / "config.json", model_type="from-the-future")
    with pytest.raises(ModelError, match="unknown to transformers"):
        load_model(copy)
    edit(copy / "config.json", model_type="vit")
    with pytest.raises(ModelError, match="does not generate text"):
        load_model(copy)


def test_tokenizer_errors(copy: Path) -> None:
    (copy / "chat_template.jinja").unlink()
    assert load_tokenizer(copy).eos_token == "<|im_end|>"
    with pytest.raises(ModelError, match=r"no chat template.*template=chatml"):
        load_tokenizer(copy, need_template=True)
    (copy / "tokenizer.json").write_text("{ broken")
    with pytest.raises(ModelError, match="the tokenizer cannot be loaded"):
        load_tokenizer(copy)
    (copy / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="has no tokenizer"):
        load_tokenizer(copy)


def test_an_adapter_is_not_a_model(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    random_adapter(load_model(tiny_models["llama"]), tmp_path / "lora")
    with pytest.raises(ModelError, match=rf"is an adapter, not a model.*{tiny_models['llama'].name}"):
        load_model(tmp_path / "lora")


def test_stop_ids_come_from_both_places(tiny_models: dict[str, Path]) -> None:
    model, tokenizer = load_model(tiny_models["llama"]), load_tokenizer(tiny_models["llama"])
    model.generation_config.eos_token_id = [0, 7]
    assert stop_ids(model, tokenizer) == {0, 7, tokenizer.eos_token_id}


def test_no_gpu_is_said(tiny_models: dict[str, Path]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ModelError, match="no CUDA device"):
        load_model(tiny_models["llama"], device="cuda")


def test_every_packaged_model_is_described() -> None:
    models = packaged_models()
    assert "smollm2-135m" in models
    for name, model in models.items():
        assert model.name == name
        assert model.licence
        assert model.source.startswith("https://")
        assert model.file.endswith(".gguf")
