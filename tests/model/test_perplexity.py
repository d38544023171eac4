"""Perplexity through the engine: what the logits of each text say, in one window or in many."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from danlu.cli.main import main
from danlu.core.errors import UsageError
from danlu.data.templates import Template
from danlu.engine.local import LocalEngine
from danlu.engine.protocol import ScoreRequest
from danlu.evaluate.metrics import measure
from danlu.evaluate.metrics.perplexity import EngineScorer
from danlu.models.loading import load_model, load_tokenizer

pytestmark = pytest.mark.model
TEXTS = [
    "什么是运行？运行是一个文件夹。",
    "A dataset is a list of conversations; a template turns them into tokens.",
    "a",
]


def opened(folder: Path) -> tuple[Any, Any, EngineScorer]:
    model, tokenizer = load_model(folder, dtype="float32"), load_tokenizer(folder)
    return model, tokenizer, EngineScorer(LocalEngine(model, tokenizer, Template(tokenizer), batch_size=1), "tiny")


def losses(model: Any, ids: list[int], start: int, size: int, stride: int) -> float:
    """The windows of the metric, written as a loop over the whole text."""
    total, done = 0.0, 0
    while done < len(ids):
        count = size - 1 if not done else stride
        scored = ids[done : done + count]
        before = [start] if not done else ids[max(0, done + len(scored) - size) : done]
        with torch.no_grad():
            log_p = model.eval()(input_ids=torch.tensor([before + scored])).logits[0].float().log_softmax(-1)
        total -= sum(float(log_p[len(before) - 1 + place, token]) for place, token in enumerate(scored))
        done += len(scored)
    return total


@pytest.mark.parametrize(("size", "stride"), [(1024, 512), (8, 4), (8, 7), (5, 1)])
def test_it_is_the_loss_of_each_token_in_its_window(model: Path, size: int, stride: int) -> None:
    plain, tokenizer, scorer = opened(model)
    options = {"scorer": scorer, "window": size, "stride": stride}
    means = measure(TEXTS, None, "perplexity", options=options).means()
    ids = [tokenizer.encode(text, add_special_tokens=False) for text in TEXTS]
    start = tokenizer.bos_token_id
    loss = sum(losses(plain, row, start, size, stride) for row in ids)
    assert means["perplexity"] == pytest.approx(math.exp(loss / sum(map(len, ids))), rel=1e-4)
    octets = sum(len(text.encode()) for text in TEXTS)
    assert means["bits-per-byte"] == pytest.approx(loss / octets / math.log(2), rel=1e-4)


def test_token_ids_continue_token_ids_and_no_text(model: Path) -> None:
    _, tokenizer, scorer = opened(model)
    before, text = tuple(tokenizer.encode("The furnace takes")), " raw text"
    ids = tuple(tokenizer.encode(text))
    asked = [ScoreRequest(key, before, (scored,), per_token=True) for key, scored in (("ids", ids), ("text", text))]
    found = {item.key: item for item in scorer.engine.score(asked)}
    assert found["ids"].per_token == found["text"].per_token
    assert found["ids"].tokens == (len(ids),)
    with pytest.raises(UsageError, match="token ids can continue token ids only"):
        list(scorer.engine.score([ScoreRequest("q", "The furnace", (ids,))]))


def test_every_family_scores_every_token(tiny_model: Path) -> None:
    plain, _, scorer = opened(tiny_model)
    front, tokens = scorer.tokens(TEXTS[1])
    assert plain is scorer.engine.model
    assert tokens
    measured = measure(TEXTS, None, "perplexity", options={"scorer": scorer})
    assert 1 < measured["perplexity"].value < 1e5
    assert len(front) <= 2


def test_the_command(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")
    words = [str(file), "--predict-column", "text", "--metrics", "perplexity,length", "--json"]
    with pytest.raises(SystemExit) as done:
        main(["score", *words, "--model", str(model), "window=16"])
    assert not done.value.code
    told = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    _, _, scorer = opened(model)
    expected = measure(TEXTS, None, "perplexity", options={"scorer": scorer, "window": 16}).means()
    assert told["perplexity"]["value"] == pytest.approx(expected["perplexity"], rel=1e-4)
    assert told["perplexity"]["protocol"] == f"model:{model.name}|window:16|stride:8|per token"
    assert told["length-ok"]["value"] == 100
