"""What people get wrong with folders of ChatGLM: each mistake is named, where it is, before much is done."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from chatglm2 import write_checkpoint
from pieces import make_tokenizer_model

from danlu.cli.compat.export import resolve_export
from danlu.cli.models import show_model
from danlu.core.errors import ModelError
from danlu.models.loading import load_model, load_tokenizer
from danlu.verbs.convert import convert

pytestmark = pytest.mark.model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of ChatGLM2 as released, with a tokenizer that fits."""
    made = write_checkpoint(tmp_path / "chatglm2-6b", padded_vocab_size=512)
    make_tokenizer_model(made)
    return made


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """A folder of ChatGLM-6B with a tokenizer, and no weights that could be read."""
    made = tmp_path / "chatglm-6b"
    make_tokenizer_model(made, "chatglm1")
    (made / "config.json").write_text(json.dumps({"model_type": "chatglm", "position_encoding_2d": True}))
    (made / "pytorch_model.bin").write_bytes(b"")
    return made


def test_a_tokenizer_of_another_model_is_refused_before_training(folder: Path, tmp_path: Path) -> None:
    make_tokenizer_model(tmp_path / "other", "chatglm1")
    shutil.copyfile(tmp_path / "other" / "ice_text.model", folder / "tokenizer.model")
    with pytest.raises(ModelError, match="has 533 tokens, and the model has room for 512"):
        convert(folder, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_missing_tokenizer_is_named_where_it_belongs_and_nothing_is_converted(
    folder: Path, first: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "tokenizer.model").unlink()
    (first / "ice_text.model").unlink()
    with pytest.raises(ModelError) as later:
        load_tokenizer(folder)
    assert later.value.where == str(folder)
    assert "tokenizer.model" in str(later.value.hint)
    assert "Converting" not in capsys.readouterr().err
    with pytest.raises(ModelError) as early:
        load_tokenizer(first)
    assert "ice_text.model" in str(early.value.hint)


def test_the_first_generation_in_four_bits_is_refused_with_its_tokenizer(first: Path, tmp_path: Path) -> None:
    config = json.loads((first / "config.json").read_text())
    (first / "config.json").write_text(json.dumps(config | {"quantization_bit": 4}))
    torch.save({"transformer.word_embeddings.weight": torch.zeros(4, 2)}, first / "pytorch_model.bin")
    with pytest.raises(ModelError, match="stored in 4 bits"):
        load_tokenizer(first)
    with pytest.raises(ModelError, match="stored in 4 bits"):
        convert(first, tmp_path / "new")


@pytest.mark.parametrize("content", [b"version https://git-lfs.github.com/spec/v1\nsize 12\n", b"nonsense", None])
def test_damaged_weights_are_told_without_the_advice_of_torch(
    folder: Path, tmp_path: Path, content: bytes | None
) -> None:
    weights = folder / "pytorch_model.bin"
    weights.write_bytes(weights.read_bytes()[:5000] if content is None else content)
    with pytest.raises(ModelError) as caught:
        convert(folder, tmp_path / "new")
    told = str(caught.value)
    assert "weights_only" not in told
    assert "internal" not in told
    assert str(weights) == caught.value.where
    assert ("git lfs pull" in str(caught.value.hint)) == bool(content and content.startswith(b"version"))


def test_damaged_weights_of_the_first_generation_are_named_too(first: Path) -> None:
    with pytest.raises(ModelError) as caught:
        load_model(first)
    assert caught.value.where == str(first / "pytorch_model.bin")


def test_a_family_that_the_files_deny_is_taken_as_asked_and_said(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert(folder, tmp_path / "new", family="chatglm3")
    assert "its files say chatglm2; taken as chatglm3, as asked" in capsys.readouterr().err.replace("\n", " ")


def test_nothing_is_announced_before_an_obvious_mistake(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    for source, target in ((tmp_path / "nowhere", tmp_path / "x"), (folder, tmp_path / "full"), (folder, folder)):
        with pytest.raises(Exception, match="no such|not on this machine|not empty|there is no"):
            convert(source, target)
    assert "Converting" not in capsys.readouterr().err


def test_models_show_tells_the_first_generation_its_template_and_stored_bits(first: Path) -> None:
    config = json.loads((first / "config.json").read_text())
    (first / "config.json").write_text(json.dumps(config | {"quantization_bit": 4}))
    facts = show_model(str(first))
    assert (facts["family"], facts["chat_template"], facts["stored_bits"]) == ("chatglm", True, 4)


def test_the_documented_flag_format_is_not_explained_as_an_old_one() -> None:
    resolved = resolve_export(["--run", "runs/mine", "--output_dir", "merged", "--format", "original"])
    assert resolved.config.export_format == "original"
    assert resolved.notes == ()
