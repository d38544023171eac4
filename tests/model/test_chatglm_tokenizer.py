"""ChatGLM2 and ChatGLM3 tokenizers: the converted one gives the ids and the text of the SentencePiece library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pieces import make_tokenizer_model

from danlu.core.errors import ModelError
from danlu.models.chatglm.hard_texts import hard_texts
from danlu.models.chatglm.tokenizer import CONTROL, check_equal, fast_tokenizer, read_sentencepiece, write_tokenizer

pytestmark = pytest.mark.model


@pytest.fixture(scope="module", params=["chatglm2", "chatglm3"])
def converted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, Any]:
    """The family, the converted tokenizer as transformers reloads it, and the SentencePiece processor."""
    from transformers import AutoTokenizer

    root = tmp_path_factory.mktemp(request.param)
    make_tokenizer_model(root / "original", request.param)
    write_tokenizer(root / "original", root / "converted", request.param)
    (root / "converted" / "config.json").write_text('{"model_type": "glm"}')
    AutoTokenizer.from_pretrained(root / "converted").save_pretrained(root / "again")
    (root / "again" / "config.json").write_text('{"model_type": "glm"}')
    processor, _ = read_sentencepiece(root / "original" / "tokenizer.model")
    return request.param, AutoTokenizer.from_pretrained(root / "again"), processor


def test_ids_and_text_are_those_of_sentencepiece(converted: tuple[str, Any, Any]) -> None:
    _, tokenizer, processor = converted
    texts = hard_texts(4000, seed=7)
    wanted = [processor.encode(text) for text in texts]
    given = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert [text for text, a, b in zip(texts, given, wanted, strict=True) if a != b] == []
    told = [tokenizer.decode(ids, skip_special_tokens=True) for ids in wanted]
    assert [text for text, a, ids in zip(texts, told, wanted, strict=True) if a != processor.decode(ids)] == []


def test_control_tokens_follow_the_vocabulary(converted: tuple[str, Any, Any]) -> None:
    family, tokenizer, processor = converted
    first = processor.vocab_size()
    assert tokenizer.convert_tokens_to_ids(list(CONTROL[family])) == [*range(first, first + len(CONTROL[family]))]
    assert len(tokenizer) == first + len(CONTROL[family]) <= 512
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.padding_side) == (2, 0, "left")
    assert tokenizer("a")["input_ids"][:2] == tokenizer.convert_tokens_to_ids(["[gMASK]", "sop"])


def test_plain_transformers_leaves_words_alone(converted: tuple[str, Any, Any]) -> None:
    _, tokenizer, processor = converted
    for text in ("sophisticated people", "philosophy", "人sop人"):
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == processor.encode(text)
    control = tokenizer("a [gMASK]", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_tokens_to_ids("[gMASK]") in control


def test_a_difference_is_refused(tmp_path: Path) -> None:
    make_tokenizer_model(tmp_path)
    path = tmp_path / "tokenizer.model"
    processor, _ = read_sentencepiece(path)
    core = fast_tokenizer(tmp_path, "chatglm2").backend_tokenizer
    state = json.loads(core.to_str())
    state["model"]["merges"].reverse()
    changed = type(core).from_str(json.dumps(state))
    with pytest.raises(ModelError, match=r"differs from the original: '.*' would become \["):
        check_equal(changed, processor, path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    make_tokenizer_model(tmp_path)
    path = tmp_path / "tokenizer.model"
    _, proto = read_sentencepiece(path)
    proto.normalizer_spec.remove_extra_whitespaces = True
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match="cannot be converted exactly: repeated spaces are removed"):
        write_tokenizer(tmp_path, tmp_path / "new", "chatglm2")
    path.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ModelError, match="pointer of Git LFS"):
        write_tokenizer(tmp_path, tmp_path / "new", "chatglm2")
    path.write_bytes(b"nothing")
    with pytest.raises(ModelError, match="not a SentencePiece model"):
        write_tokenizer(tmp_path, tmp_path / "new", "chatglm2")
    path.unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        write_tokenizer(tmp_path, tmp_path / "new", "chatglm2")
    with pytest.raises(ModelError, match="no fast tokenizer for the family 'chatglm9'"):
        write_tokenizer(tmp_path, tmp_path / "new", "chatglm9")
    assert not (tmp_path / "new").exists()
