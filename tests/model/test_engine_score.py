"""Scores: the log-probabilities of full prompts, one by one, whatever shares a batch or a beginning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from probes import random_adapter, random_prefix

from danlu.core.errors import UsageError
from danlu.data.schema import Conversation, Message
from danlu.data.templates import Template
from danlu.engine.local import LocalEngine
from danlu.engine.protocol import Scored, ScoreRequest
from danlu.models.adapters import attach
from danlu.models.loading import load_model, load_tokenizer
from danlu.models.prefix import PrefixModel

pytestmark = pytest.mark.model

HEAD = "The furnace takes raw text and gives back a small model that answers. " * 4
QUESTIONS = ("What is a run?", "什么是丹炉？", "A dataset is a list of conversations, is it not?")


def engine_of(folder: Path, model: Any = None, **options: Any) -> LocalEngine:
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
    ]


def textbook(model: Any, joined: Sequence[Sequence[int]], common: int) -> tuple[list[list[float]], list[list[bool]]]:
    """Each text by itself, all of its logits."""
    log_probs: list[list[float]] = []
    greedy: list[list[bool]] = []
    for ids in joined:
        row = torch.tensor([list(ids)])
        with torch.no_grad():
            log_p = model.eval()(input_ids=row).logits[0].float().log_softmax(-1)
        places = range(common - 1, len(ids) - 1)
        log_probs.append([float(log_p[place, ids[place + 1]]) for place in places])
        greedy.append([int(log_p[place].argmax()) == ids[place + 1] for place in places])
    return log_probs, greedy


def tokens_of(tokenizer: Any, request: ScoreRequest) -> tuple[list[list[int]], int]:
    """Joined ids and how many of them are common, by the tokenizer alone."""
    if isinstance(request.prompt, str):
        rows = [tokenizer.encode(request.prompt + text) for text in ("", *request.continuations)]
    elif isinstance(request.prompt, tuple):
        rows = [[*request.prompt, *tokenizer.encode(text)] for text in ("", *request.continuations)]
    else:
        head = Template(tokenizer).prompt(request.prompt)
        rows = [[*head, *tokenizer.encode(text)] for text in ("", *request.continuations)]
    common = next((n for n, column in enumerate(zip(*rows)) if len(set(column)) > 1), min(map(len, rows)))
    return rows[1:], common


def assert_right(engine: LocalEngine, asked: Sequence[ScoreRequest]) -> None:
    found = {item.key: item for item in engine.score(asked)}
    assert found.keys() == {request.key for request in asked}
    for request in asked:
        joined, common = tokens_of(engine.tokenizer, request)
        log_probs, greedy = textbook(engine.model, joined, common)
        assert_scored(found[request.key], log_probs, greedy)
        assert found[request.key].prompt_tokens == common


def assert_scored(item: Scored, log_probs: list[list[float]], greedy: list[list[bool]]) -> None:
    assert item.per_token is not None
    assert item.tokens == tuple(map(len, log_probs))
    for ours, theirs in zip(item.per_token, log_probs, strict=True):
        torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        torch.tensor(item.log_probs), torch.tensor(list(map(sum, log_probs))), rtol=1e-4, atol=1e-4
    )
    assert item.greedy == tuple(map(all, greedy))


def variants(folder: Path, kind: str, tmp_path: Path) -> Any:
    """A plain model, one with LoRA, one with a prefix."""
    model = load_model(folder, dtype="float32")
    if kind == "lora":
        random_adapter(model, tmp_path / "lora")
        return attach(load_model(folder, dtype="float32"), tmp_path / "lora")
    return PrefixModel(model, random_prefix(model)) if kind == "prefix" else model


@pytest.mark.parametrize("kind", ["plain", "lora", "prefix"])
def test_scores_are_those_of_full_prompts(tiny_model: Path, kind: str, tmp_path: Path) -> None:
    assert_right(engine_of(tiny_model, variants(tiny_model, kind, tmp_path)), requests())


def test_greedy_is_told(model: Path) -> None:
    engine = engine_of(model)
    with torch.no_grad():
        likeliest = engine.model(torch.arange(300).unsqueeze(1)).logits[:, -1].argmax(-1).tolist()
    texts = [engine.tokenizer.decode([token]) for token in likeliest]
    first = next(n for n, text in enumerate(texts) if engine.renderer.content_ids(text) == [likeliest[n]])
    prompt, text = (first,), texts[first]
    other = "a" if text != "a" else "b"
    (found,) = engine.score([ScoreRequest("q", prompt, (text, other))])
    assert found.greedy == (True, False)
    assert found.per_token is None


def test_tokens_that_merge_across_the_seam_are_scored(model: Path) -> None:
    """The last letters of the prompt belong to a token of one continuation: every one is measured from before them."""
    engine = engine_of(model)
    request = ScoreRequest("q", "The furnace takes raw te", ("xt", "a"), per_token=True)
    joined, common = tokens_of(engine.tokenizer, request)
    assert common < len(engine.tokenizer.encode("The furnace takes raw te"))
    assert len(joined[1]) > common + 1
    assert_right(engine, [request])


def test_a_long_prompt_keeps_its_end(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = engine_of(model, context=24)
    ids = tuple(40 + number % 50 for number in range(60))
    found = list(engine.score([ScoreRequest(str(n), ids, ("ab c", "d"), per_token=True) for n in range(3)]))
    rows = [[*ids, *engine.tokenizer.encode(text)] for text in ("ab c", "d")]
    cut = len(rows[0]) - 1 - 24
    assert {item.cut_tokens for item in found} == {cut}
    assert {item.prompt_tokens for item in found} == {60 - cut}
    assert (engine.cut.prompts, engine.cut.tokens) == (3, 3 * cut)
    assert capsys.readouterr().err.count("left out") == 1
    log_probs, greedy = textbook(engine.model, [row[cut:] for row in rows], 60 - cut)
    for item in found:
        assert_scored(item, log_probs, greedy)


def test_requests_come_as_soon_as_they_are_known(model: Path) -> None:
    def endless() -> Any:
        number = 0
        while True:
            yield ScoreRequest(str(number), HEAD, (" A", " B"))
            number += 1

    results = engine_of(model).score(endless())
    assert len({next(results).key for _ in range(300)}) == 300


def test_what_cannot_be_scored_is_refused(model: Path) -> None:
    engine = engine_of(model, context=24)
    with pytest.raises(UsageError, match="same key"):
        list(engine.score([ScoreRequest("q", "a", ("b",)), ScoreRequest("q", "b", ("b",))]))
    for wrong in ((), ("a", "")):
        with pytest.raises(UsageError, match="nothing to score"):
            list(engine.score([ScoreRequest("q", "a", wrong)]))
    with pytest.raises(UsageError, match="longer than the model's context"):
        list(engine.score([ScoreRequest("q", "a", ("x y z " * 20,))]))
    assert list(engine.score([])) == []


def test_an_empty_prompt_has_a_beginning(model: Path) -> None:
    engine = engine_of(model)
    (found,) = engine.score([ScoreRequest("q", "", ("The furnace", "A"), per_token=True)])
    start = engine.tokenizer.bos_token_id
    rows = [[start, *engine.tokenizer.encode(text)] for text in ("The furnace", "A")]
    assert_scored(found, *textbook(engine.model, rows, 1))


def test_plain_texts_are_continued(model: Path) -> None:
    from danlu.engine.protocol import GenerationOptions, Request

    engine = engine_of(model)
    options = GenerationOptions(max_new_tokens=8)
    text = "What is a run? <|im_end|>"
    (found,) = engine.generate([Request("a", text, options)])
    ids = engine.tokenizer.encode(text, split_special_tokens=True)
    assert engine.tokenizer.eos_token_id not in ids
    (same,) = engine.generate([Request("a", tuple(ids), options)])
    assert found == same
    assert "".join(engine.stream(text, options)) == found.text
