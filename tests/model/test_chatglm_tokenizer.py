"""ChatGLM2 and ChatGLM3 tokenizers: the converted one gives the ids and the text of the SentencePiece library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pieces import make_tokenizer_model

from danlu.core.errors import ModelError
from danlu.data.schema import Conversation, Message
from danlu.data.templates import Template
from danlu.models.chatglm.hard_texts import hard_texts
from danlu.models.chatglm.pieces import read_sentencepiece
from danlu.models.chatglm.tokenizer import (
    CONTROL,
    ENDS,
    InexactTokenizerError,
    check_equal,
    end_ids,
    fast_tokenizer,
    tokenizer_family,
    write_tokenizer,
)
from danlu.models.loading import load_tokenizer

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


def test_a_plain_prompt_begins_as_the_original_begins_one(converted: tuple[str, Any, Any]) -> None:
    _, tokenizer, processor = converted
    front = tokenizer.convert_tokens_to_ids(["[gMASK]", "sop"])
    texts = ("什么是运行", "什么是运行？")
    expected = [[*front, *processor.encode(text)] for text in texts]
    assert Template(tokenizer).continued(texts[0], ["", "？"]) == expected


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
    with pytest.raises(ModelError, match=r"would differ from the original \('.*' would become \["):
        check_equal(changed, processor, path, CONTROL["chatglm2"])
    with pytest.raises(ModelError, match="control token eop2 would be None and is 502"):
        check_equal(core, processor, path, [*CONTROL["chatglm2"][:4], "eop2"])


def test_other_files_are_refused(tmp_path: Path) -> None:
    make_tokenizer_model(tmp_path)
    path = tmp_path / "tokenizer.model"
    path.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ModelError, match="pointer of Git LFS"):
        write_tokenizer(tmp_path, tmp_path / "new", "chatglm2")
    path.write_bytes(b"nothing")
    with pytest.raises(ModelError, match="not a SentencePiece model"):
        write_tokenizer(tmp_path, tmp_path / "new", "chatglm2")
    path.unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        write_tokenizer(tmp_path, tmp_path / "new", "chatglm2")
    with pytest.raises(ModelError, match="no tokenizer for the family 'chatglm9'"):
        write_tokenizer(tmp_path, tmp_path / "new", "chatglm9")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("family", ["chatglm2", "chatglm3"])
def test_an_original_folder_is_opened_without_its_code(family: str, tmp_path: Path) -> None:
    make_tokenizer_model(tmp_path, family)
    tokenizer = load_tokenizer(tmp_path, need_template=True)
    assert tokenizer.convert_tokens_to_ids(CONTROL[family][-1]) == 498 + len(CONTROL[family]) - 1
    assert ("[Round" in tokenizer.chat_template) == (family == "chatglm2")
    tokenizer.save_pretrained(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").get_vocab() == tokenizer.get_vocab()


def test_the_family_is_told_by_files_or_asked_for(tmp_path: Path) -> None:
    make_tokenizer_model(tmp_path)
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text('{"tokenizer_class": "ChatGLMTokenizer"}')
    with pytest.raises(ModelError, match=r"ChatGLM2 or of ChatGLM3, and no file tells.*tokenization_chatglm\.py"):
        load_tokenizer(tmp_path)
    code = tmp_path / "tokenization_chatglm.py"
    code.write_text('raise SystemExit("this is never run")')
    assert tokenizer_family(tmp_path) == "chatglm2"
    code.write_text('["[MASK]", "<|assistant|>"]')
    assert tokenizer_family(tmp_path) == "chatglm3"


def words_like_control_tokens(proto: Any) -> None:
    known = {piece.piece for piece in proto.pieces}
    rare = [piece for piece in proto.pieces if piece.type == 1 and len(piece.piece) > 2]
    for text in ("op", "sop", "eo", "eop"):
        if text not in known:
            rare.pop().piece = text


def both(proto: Any) -> None:
    words_like_control_tokens(proto)
    spaces_removed(proto)


@pytest.mark.parametrize("change", [words_like_control_tokens, both])
@pytest.mark.parametrize("family", ["chatglm2", "chatglm3"])
def test_control_tokens_and_pieces_of_one_name(family: str, change: Any, tmp_path: Path) -> None:
    make_tokenizer_model(tmp_path / "old", family)
    path = tmp_path / "old" / "tokenizer.model"
    _, proto = read_sentencepiece(path)
    change(proto)
    path.write_bytes(proto.SerializeToString())
    write_tokenizer(tmp_path / "old", tmp_path / "new", family)
    tokenizer, (processor, _) = load_tokenizer(tmp_path / "new"), read_sentencepiece(path)
    words = processor.encode("7sop7eop7")
    assert {processor.piece_to_id("sop"), processor.piece_to_id("eop")} <= set(words)
    assert tokenizer.convert_tokens_to_ids(["[gMASK]", "<sop>", "<eop>"]) == [499, 501, 502]
    for text in ("7sop7eop7", *hard_texts(200, seed=6)):
        ids = processor.encode(text)
        assert tokenizer(text, split_special_tokens=True)["input_ids"] == [499, 501, *ids]
        assert tokenizer.decode(ids, skip_special_tokens=True) == processor.decode(ids)
    question = Conversation((Message("user", "7sop7eop7"),))
    assert Template(tokenizer).prompt(question)[:2] == [499, 501]
    assert not {499, 500, 501, 502} & set(Template(tokenizer).prompt(question)[2:])


def spaces_removed(proto: Any) -> None:
    proto.normalizer_spec.remove_extra_whitespaces = True


def own_pieces(proto: Any) -> None:
    for text in ("<n>", "炼丹"):
        piece = next(piece for piece in reversed(proto.pieces) if piece.type == 1)
        piece.piece, piece.type = text, 4


@pytest.mark.parametrize("change", [spaces_removed, own_pieces])
@pytest.mark.parametrize("family", ["chatglm2", "chatglm3"])
def test_what_has_no_fast_counterpart_is_read_with_sentencepiece(
    family: str, change: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_tokenizer_model(tmp_path / "old", family)
    path = tmp_path / "old" / "tokenizer.model"
    _, proto = read_sentencepiece(path)
    change(proto)
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(InexactTokenizerError, match="no exact fast counterpart"):
        fast_tokenizer(tmp_path / "old", family)
    write_tokenizer(tmp_path / "old", tmp_path / "new", family)
    assert "read with SentencePiece itself" in " ".join(capsys.readouterr().err.split())
    load_tokenizer(tmp_path / "new").save_pretrained(tmp_path / "again")
    tokenizer, (processor, _) = load_tokenizer(tmp_path / "again", need_template=True), read_sentencepiece(path)
    assert tokenizer.convert_tokens_to_ids(list(CONTROL[family])) == [*range(498, 498 + len(CONTROL[family]))]
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, len(tokenizer)) == (2, 0, 498 + len(CONTROL[family]))
    assert end_ids(tmp_path / "old", family) == tokenizer.convert_tokens_to_ids(list(ENDS[family]))
    for text in hard_texts(300, seed=5):
        ids = processor.encode(text)
        assert tokenizer.encode(text, split_special_tokens=True) == [499, 501, *ids]
        assert tokenizer.decode(ids, skip_special_tokens=True) == processor.decode(ids)
        if family == "chatglm2":
            question = Conversation((Message("user", text),))
            wanted = processor.encode(f"[Round 1]\n\n问：{text}\n\n答：")
            assert Template(tokenizer).prompt(question) == [499, 501, *wanted]
