"""BERTScore and cosine with a tiny random encoder, and perplexity with a tiny model, against plain computations."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from danlu.core.errors import DataError, ModelError
from danlu.evaluate.metrics import measure
from danlu.evaluate.metrics.embeddings import matched
from danlu.models.encoders import EncodedText, Encoder, SentenceEncoder

pytestmark = pytest.mark.model
torch = pytest.importorskip("torch")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"今天气很真好你世界", "the", "cat", "sat", "##s", ","]
MINE, GOLD = ["今天天气很好", "the cats sat", "好"], ["今天天气真好", "the cat , sat", "世界"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of three layers with a vocabulary of its own."""
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    BertTokenizer(str(folder / "vocab.txt"), model_max_length=16).save_pretrained(folder)
    torch.manual_seed(3)
    sizes = {"vocab_size": len(WORDS), "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    config = BertConfig(**sizes, num_hidden_layers=3, max_position_embeddings=20, initializer_range=0.4)
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sentences(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as sentence-transformers lays it out: mean pooling, a dense layer, normalisation."""
    import shutil

    from safetensors.numpy import save_file

    folder = tmp_path_factory.mktemp("sentences")
    shutil.copytree(bert, folder / "0_Transformer")
    parts = (("0_Transformer", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense"), ("3_N", "Normalize"))
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(parts)
    ]
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    for name in ("1_Pooling", "2_Dense", "3_N"):
        (folder / name).mkdir()
    pooling = {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling), encoding="utf-8")
    dense = {"in_features": 16, "out_features": 4, "activation_function": "torch.nn.modules.activation.Tanh"}
    (folder / "2_Dense" / "config.json").write_text(json.dumps(dense), encoding="utf-8")
    weights = {"linear.weight": dense_matrix(), "linear.bias": np.array([0.1, 0, 0, -0.1], np.float32)}
    save_file(weights, folder / "2_Dense" / "model.safetensors")
    (folder / "0_Transformer" / "sentence_bert_config.json").write_text('{"max_seq_length": 6}', encoding="utf-8")
    return folder


def dense_matrix() -> np.ndarray:
    return np.random.default_rng(5).normal(size=(4, 16)).astype(np.float32)


def plain_states(folder: Path, text: str, layer: int) -> tuple[list[int], np.ndarray]:
    """Ids and states of one text alone, by transformers."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    read = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        states = AutoModel.from_pretrained(folder).eval()(**read, output_hidden_states=True).hidden_states[layer]
    return read["input_ids"][0].tolist(), states[0].numpy()


def encoded(vectors: list[list[float]], special: list[bool]) -> EncodedText:
    return EncodedText(tuple(range(len(vectors))), np.array(special), np.array(vectors, np.float32))


def weigh(text: EncodedText) -> np.ndarray:
    return np.where(text.special, 0.0, 1.0)


def test_matching_by_hand() -> None:
    mine = encoded([[0, 1], [1, 0], [3, 4]], [True, False, False])
    gold = encoded([[0, 2], [5, 0]], [True, False])
    # cosines: (1,0) with (0,1) 0, with (1,0) 1; (.6,.8) with (0,1) .8, which is special but may be matched
    precision, recall, f = matched(mine, gold, weigh)
    assert (precision, recall) == pytest.approx((0.9, 1.0))
    assert f == pytest.approx(2 * 0.9 / 1.9)
    assert matched(encoded([[1, 0]], [True]), gold, weigh) == (0, 0, 0)


@pytest.mark.parametrize("layer", [0, 1, 2, 3])
def test_bertscore_is_what_one_pair_at_a_time_gives(bert: Path, layer: int) -> None:
    measured = measure(MINE, GOLD, "bertscore", options={"encoder": str(bert), "layer": layer})
    for row, (mine, gold) in enumerate(zip(MINE, GOLD, strict=True)):
        (_, one), (_, two) = plain_states(bert, mine, layer), plain_states(bert, gold, layer)
        table = (one @ two.T) / np.linalg.norm(one, axis=1)[:, None] / np.linalg.norm(two, axis=1)
        precision, recall = table.max(axis=1)[1:-1].mean(), table.max(axis=0)[1:-1].mean()
        expected = (precision, recall, 2 * precision * recall / (precision + recall))
        assert [column.rows[row] for column in measured.columns] == pytest.approx(expected, abs=1e-5)
    assert measured["bertscore-f1"].protocol == f"BERTScore[{bert.name},L{layer}]|idf:no|baseline:none|mean of rows"


def test_the_default_layer_is_two_thirds_up_and_equal_texts_score_one(bert: Path) -> None:
    measured = measure(MINE, MINE, "bertscore", options={"encoder": bert})
    assert "L2]" in measured["bertscore-f1"].protocol
    assert measured["bertscore-f1"].value == pytest.approx(1, abs=1e-6)
    empty = measure(["", "好"], ["好", "好"], "bertscore", options={"encoder": bert})
    assert empty.columns[2].rows.tolist() == pytest.approx([0, 1])


def test_rare_tokens_weigh_more_with_idf(bert: Path) -> None:
    mine, gold = ["the cat", "the"], ["the cat", "the"]
    ids, one = plain_states(bert, "the cat", 2)
    assert len(ids) == 4
    (_, two) = plain_states(bert, "the", 2)
    cosine = (one @ two.T) / np.linalg.norm(one, axis=1)[:, None] / np.linalg.norm(two, axis=1)
    the, cat = math.log(3 / 3), math.log(3 / 2)  # two references: both have "the", one has "cat"
    crossed = measure(["the cat", "the cat"], gold, "bertscore", options={"encoder": bert, "layer": 2, "idf": True})
    best = cosine.max(axis=1)[1:3]
    # the reference "the" has no weight at all, so the second row scores 0; in the first row only "cat" counts
    assert crossed.columns[0].rows.tolist() == pytest.approx([1, 0], abs=1e-6)
    assert (the * best[0] + cat * best[1]) / (the + cat) == pytest.approx(best[1])
    plain = measure(mine, gold, "bertscore", options={"encoder": bert, "idf": True})
    assert plain.columns[2].rows.tolist() == pytest.approx([1, 0], abs=1e-6)


def test_a_baseline_rescales(bert: Path, tmp_path: Path) -> None:
    file = tmp_path / "zh.tsv"
    file.write_text("LAYER,P,R,F\n1,0.1,0.1,0.1\n2,0.5,0.25,0.4\n", encoding="utf-8")
    options: dict[str, Any] = {"encoder": bert, "layer": 2}
    plain = measure(MINE, GOLD, "bertscore", options=options).means()
    rescaled = measure(MINE, GOLD, "bertscore", options={**options, "baseline": file}).means()
    for name, lowest in (("bertscore-p", 0.5), ("bertscore-r", 0.25), ("bertscore-f1", 0.4)):
        assert rescaled[name] == pytest.approx((plain[name] - lowest) / (1 - lowest))
    with pytest.raises(DataError, match="no baseline for layer 3"):
        measure(MINE, GOLD, "bertscore", options={**options, "layer": 3, "baseline": file})


def test_what_cannot_be_is_explained(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="layers 0 to 3, and no layer 9"):
        measure(MINE, GOLD, "bertscore", options={"encoder": bert, "layer": 9})
    with pytest.raises(ModelError, match="config.json is missing"):
        Encoder(tmp_path)


def test_long_texts_lose_their_ends_and_that_is_told(bert: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encoder = Encoder(bert)
    assert encoder.limit == 16
    one, two = encoder.encode(["好" * 40, "好" * 14])
    assert len(one.ids) == 16
    assert np.allclose(one.vectors, two.vectors, atol=1e-5)
    assert encoder.cut == 1
    assert "16 tokens at most" in capsys.readouterr().err


def test_sentence_embeddings_follow_the_modules(sentences: Path, bert: Path) -> None:
    encoder = SentenceEncoder(sentences)
    assert encoder.steps == ["Transformer", "Pooling", "Dense", "Normalize"]
    assert encoder.encoder.limit == 6
    found = encoder.encode(MINE)
    for text, vector in zip(("今天天气", "the cats sat", "好"), found, strict=True):  # the first loses its end
        _, states = plain_states(bert, text, 3)
        dense = np.tanh(dense_matrix() @ states.mean(axis=0) + np.array([0.1, 0, 0, -0.1]))
        assert vector == pytest.approx(dense / np.linalg.norm(dense), abs=1e-5)
    cosine = measure(MINE, GOLD, "cosine", options={"encoder": sentences})
    other = encoder.encode(GOLD)
    assert cosine.columns[0].rows == pytest.approx((found * other).sum(axis=1), abs=1e-6)
    assert "BERTScore" in measure(MINE, GOLD, "bertscore", options={"encoder": sentences})["bertscore-p"].protocol


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("cls", lambda states: states[0]),
        ("max", lambda states: states.max(axis=0)),
        ("lasttoken", lambda states: states[-1]),
        ("mean_sqrt_len", lambda states: states.sum(axis=0) / len(states) ** 0.5),
        ("weightedmean", lambda states: (states * np.arange(1, len(states) + 1)[:, None]).sum(axis=0) / 6),
    ],
)
def test_ways_of_pooling(mode: str, expected: Any, sentences: Path, tmp_path: Path) -> None:
    from danlu.models.encoders import _pooling

    states = np.array([[1, 5], [2, 4], [4, 3]], np.float32)
    text = EncodedText((0, 1, 2), np.zeros(3, bool), states)
    key = {"cls": "pooling_mode_cls_token", "max": "pooling_mode_max_tokens"}.get(mode, f"pooling_mode_{mode}")
    key = key if key.endswith(("token", "tokens", "lasttoken")) else f"{key}_tokens"
    for config in ({key: True}, {"pooling_mode": mode}):
        assert _pooling(config, tmp_path)(text) == pytest.approx(expected(states))
    both = _pooling({"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True}, tmp_path)(text)
    assert both.tolist() == [1, 5, 4, 5]
    with pytest.raises(ModelError, match="is not known"):
        _pooling({"pooling_mode": "median"}, tmp_path)


def test_a_plain_encoder_is_averaged_and_an_unknown_module_refused(
    bert: Path, sentences: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = SentenceEncoder(bert)
    assert "no modules.json" in capsys.readouterr().err
    _, states = plain_states(bert, "你好", 3)
    assert encoder.encode(["你好"])[0] == pytest.approx(states.mean(axis=0), abs=1e-5)
    modules = json.loads((sentences / "modules.json").read_text(encoding="utf-8"))
    modules[2]["type"] = "sentence_transformers.models.LSTM"
    modules[0]["path"] = str(sentences / "0_Transformer")
    modules[1]["path"] = str(sentences / "1_Pooling")
    (tmp_path / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    with pytest.raises(ModelError, match="LSTM"):
        SentenceEncoder(tmp_path)
