"""Scores by the textbook: each text by itself, all of its logits; and requests to try an engine with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from danlu.data.schema import Conversation, Message
from danlu.data.templates import Template
from danlu.engine.local import LocalEngine
from danlu.engine.protocol import Scored, ScoreRequest
from danlu.models.loading import load_model, load_tokenizer

HEAD = "The furnace takes raw text and gives back a small model that answers. " * 4
QUESTIONS = ("What is a run?", "什么是丹炉？", "A dataset is a list of conversations, is it not?")


def engine_of(folder: Path, model: Any = None, **options: Any) -> LocalEngine:
    """An engine in float32."""
    tokenizer = load_tokenizer(folder)
    return LocalEngine(model or load_model(folder, dtype="float32"), tokenizer, Template(tokenizer), **options)


def requests(per_token: bool = True) -> list[ScoreRequest]:
    """Questions behind a common beginning with letters and texts to choose from, and others without."""
    letters, texts = (" A", " B", " C"), (" A folder.", " A folder that holds", "丹炉")
    made = [
        ScoreRequest(f"{kind}/{place}", f"{HEAD}{question}\nAnswer:", options, per_token)
        for place, question in enumerate(QUESTIONS)
        for kind, options in (("letters", letters), ("texts", texts))
    ]
    chat = Conversation((Message("system", HEAD), Message("user", QUESTIONS[0])))
    return [
        *made,
        ScoreRequest("short", "Answer", ("ing", "s"), per_token),
        ScoreRequest("ids", tuple(range(40, 60)), ("ab", "c"), per_token),
        ScoreRequest("chat", chat, ("A run", "no"), per_token),
        ScoreRequest("one", f"{HEAD}{QUESTIONS[1]}", ("什么是运行？",), per_token),
    ]


def textbook(model: Any, joined: Sequence[Sequence[int]], common: int) -> tuple[list[list[float]], list[list[bool]]]:
    """Log-probability of each token behind the common ones, and whether it is the likeliest; for each text."""
    log_probs: list[list[float]] = []
    greedy: list[list[bool]] = []
    for ids in joined:
        with torch.no_grad():
            log_p = model.eval()(input_ids=torch.tensor([list(ids)])).logits[0].float().log_softmax(-1)
        places = range(common - 1, len(ids) - 1)
        log_probs.append([float(log_p[place, ids[place + 1]]) for place in places])
        greedy.append([int(log_p[place].argmax()) == ids[place + 1] for place in places])
    return log_probs, greedy


def tokens_of(tokenizer: Any, request: ScoreRequest) -> tuple[list[list[int]], int]:
    """Joined ids and how many of them are common, by the tokenizer alone."""
    texts = ("", *request.continuations)
    if isinstance(request.prompt, str):
        rows = [tokenizer.encode(request.prompt + text) for text in texts]
    else:
        prompt = request.prompt
        head = prompt if isinstance(prompt, tuple) else Template(tokenizer).prompt(prompt)
        rows = [[*head, *tokenizer.encode(text)] for text in texts]
    return rows[1:], common_of(rows)


def common_of(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows begin with."""
    return next((n for n, column in enumerate(zip(*rows)) if len(set(column)) > 1), min(map(len, rows)))


def assert_right(engine: LocalEngine, asked: Sequence[ScoreRequest]) -> None:
    """Every score is the textbook's."""
    found = {item.key: item for item in engine.score(asked)}
    assert found.keys() == {request.key for request in asked}
    for request in asked:
        joined, common = tokens_of(engine.tokenizer, request)
        assert_scored(found[request.key], *textbook(engine.model, joined, common))
        assert found[request.key].prompt_tokens == common


def assert_scored(item: Scored, log_probs: list[list[float]], greedy: list[list[bool]]) -> None:
    """One request's numbers are these."""
    assert item.per_token is not None
    assert item.tokens == tuple(map(len, log_probs))
    for ours, theirs in zip(item.per_token, log_probs, strict=True):
        torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=1e-4, atol=1e-4)
    sums = torch.tensor(list(map(sum, log_probs)))
    torch.testing.assert_close(torch.tensor(item.log_probs), sums, rtol=1e-4, atol=1e-4)
    assert item.greedy == tuple(map(all, greedy))
