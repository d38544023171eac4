"""ChatGLM-6B's tokenizer and prompts: the ids of SentencePiece with the original's treatment of blanks."""

from __future__ import annotations

import json
import random
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from pieces import make_tokenizer_model
from sentencepiece import SentencePieceProcessor

from danlu.core.errors import ModelError
from danlu.data.encode import EncodingReport, EncodingRules, encode_rows
from danlu.data.prepare import tokenizer_digest
from danlu.data.schema import Conversation, Example, Message
from danlu.data.templates import Template
from danlu.models.chatglm.hard_texts import FRAGMENTS, hard_texts
from danlu.models.loading import load_tokenizer

pytestmark = pytest.mark.model

MASK, START, END = 501, 504, 505


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("chatglm1")
    make_tokenizer_model(root, "chatglm1")
    return root


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def processor(folder: Path) -> Any:
    return SentencePieceProcessor(model_file=str(folder / "ice_text.model"))


def written_out(text: str) -> str:
    """Line ends, tabs and blanks as the original writes them: the longest blanks first, here of at most 20."""
    text = text.replace("\n", "<n>").replace("\t", "<|tab|>")
    for size in range(20, 1, -1):
        text = text.replace(" " * size, f"<|blank_{size}|>")
    return text


def test_ids_are_those_of_sentencepiece(tokenizer: Any, processor: Any) -> None:
    texts = [*hard_texts(800, seed=3), *(" " * size + "x" for size in range(60)), "a" + " " * 81 + "b\t\tc"]
    for text in texts:
        wanted = processor.encode(written_out(text))
        assert tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True) == wanted, text
        told = re.sub(r"<\|blank_(\d+)\|>", lambda match: " " * int(match[1]), processor.decode(wanted))
        assert tokenizer.decode(wanted) == told.replace("<n>", "\n").replace("<|tab|>", "\t"), text


def test_it_is_a_tokenizer_of_transformers(tokenizer: Any) -> None:
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (START, END, 3)
    short, long = tokenizer(["what", "what is a run"])["input_ids"]
    assert short[-2:] == long[-2:] == [MASK, START]
    batch = tokenizer(["what", "what is a run"], padding=True)
    assert batch["input_ids"][0] == [3] * (len(long) - len(short)) + short
    assert batch["attention_mask"][0] == [0] * (len(long) - len(short)) + [1] * len(short)
    assert tokenizer("what", "a")["input_ids"][-1] == END
    ids = [*short, *tokenizer.encode("a run", add_special_tokens=False), END]
    assert tokenizer.decode(ids) == "what[gMASK]<sop>a run<eop>"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "what a run"
    assert tokenizer.convert_ids_to_tokens(END) == "<eop>"
    assert len(tokenizer) == 528


def test_it_is_saved_and_opened_again(tokenizer: Any, folder: Path, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path / "a")
    load_tokenizer(tmp_path / "a").save_pretrained(tmp_path / "b")
    again = load_tokenizer(tmp_path / "b")
    assert (tmp_path / "b" / "ice_text.model").read_bytes() == (folder / "ice_text.model").read_bytes()
    assert "auto_map" not in json.loads((tmp_path / "b" / "tokenizer_config.json").read_text(encoding="utf-8"))
    text = "什么是  运行？ [gMASK] <sop>\n"
    assert again.encode(text) == tokenizer.encode(text)
    assert again.get_added_vocab() == tokenizer.get_added_vocab()
    assert again.chat_template == tokenizer.chat_template
    assert tokenizer_digest(again) == tokenizer_digest(tokenizer)


def test_the_first_release_has_images_before_text(folder: Path, tmp_path: Path, processor: Any) -> None:
    messages: Any = import_module("sentencepiece.sentencepiece_model_pb2")
    proto = messages.ModelProto.FromString((folder / "ice_text.model").read_bytes())
    del proto.pieces[500:]
    (tmp_path / "ice_text.model").write_bytes(proto.SerializeToString())
    old = load_tokenizer(tmp_path)
    names = ["<image_7>", "[MASK]", "[gMASK]", "<sop>", "<eop>", "<ENC>", "<|tab|>", "<|blank_2|>", "<|blank_80|>"]
    assert old.convert_tokens_to_ids(names) == [7, *(20000 + n for n in (500, 501, 504, 505, 506, 508, 509, 587))]
    assert old.encode("什么", add_special_tokens=False) == [20000 + number for number in processor.encode("什么")]
    assert old.decode([7, *old.encode("a" + " " * 70 + "b", add_special_tokens=False)]) == "a" + " " * 70 + "b"
    assert old.encode("", add_special_tokens=True) == [20501, 20504]
    old.save_pretrained(tmp_path / "again")
    assert load_tokenizer(tmp_path / "again").eos_token_id == 20505
    assert tokenizer_digest(old) != tokenizer_digest(load_tokenizer(folder))


def test_ids_have_to_be_those_of_the_model(folder: Path, tmp_path: Path) -> None:
    make_tokenizer_model(tmp_path, "chatglm1")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "chatglm", "gmask_token_id": 501}))
    assert load_tokenizer(tmp_path).eos_token_id == END
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "chatglm", "gmask_token_id": 130001}))
    with pytest.raises(ModelError, match=r"\[gMASK\] is token 130001, and the tokenizer that it is 501"):
        load_tokenizer(tmp_path)


def rounds(*contents: str) -> str:
    """The original's prompt: the bare question, or rounds from 0."""
    if len(contents) == 1:
        return contents[0]
    told = "".join(
        f"[Round {place // 2}]\n问：{contents[place]}\n答：{contents[place + 1]}\n"
        for place in range(0, len(contents) - 1, 2)
    )
    return f"{told}[Round {len(contents) // 2}]\n问：{contents[-1]}\n答："


def talk(*contents: str) -> Conversation:
    return Conversation(
        tuple(Message("assistant" if place % 2 else "user", text) for place, text in enumerate(contents))
    )


def test_prompts_and_masks(tokenizer: Any, processor: Any) -> None:
    template = Template(tokenizer)
    chooser = random.Random(5)
    for _ in range(80):
        contents = ["".join(chooser.choices(FRAGMENTS, k=chooser.randint(1, 5))) for _ in range(4)]
        report = EncodingReport()
        sequences = [item for _, item in encode_rows([Example(talk(*contents))], template, EncodingRules(), report)]
        assert report.divided == 1
        for encoded, seen in zip(sequences, (contents[:2], contents), strict=True):
            prompt = [*processor.encode(written_out(rounds(*seen[:-1]))), MASK, START]
            answer = [*processor.encode(written_out(seen[-1])), END]
            assert encoded.ids == prompt + answer, seen
            assert encoded.trained == [False] * len(prompt) + [True] * len(answer)
            assert encoded.ids.count(START) == encoded.ids.count(MASK) == 1
            assert template.prompt(talk(*seen[:-1])) == prompt


def test_text_by_itself(tokenizer: Any) -> None:
    template = Template(tokenizer)
    control = set(tokenizer.get_added_vocab().values()) - {0}
    for text in ("a [gMASK] <sop> b", "<eop>", "</s>"):
        ids = template.content_ids(text)
        assert not control & set(ids)
        assert template.content_text(ids) == text
    (document,) = template.document_ids(["什么是运行"])
    assert document[:2] == [MASK, START]
    assert document[-1] == END


def test_a_plain_prompt_is_a_context(tokenizer: Any, processor: Any) -> None:
    """What the tokenizer writes behind a text ends the context; the answer follows."""
    context = [*processor.encode(written_out("什么是  运行？")), MASK, START]
    alone, whole = Template(tokenizer).continued("什么是  运行？", ["", "一个文件夹"])
    assert alone == context
    assert whole == [*context, *processor.encode(written_out("一个文件夹"))]
