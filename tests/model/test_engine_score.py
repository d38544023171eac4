"""Scores: the log-probabilities of full prompts, one by one, whatever shares a batch or a beginning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from probes import random_adapter, random_prefix
from scored import HEAD, QUESTIONS, assert_right, assert_scored, common_of, engine_of, requests, textbook, tokens_of
from test_soft_prompts import prompt_of

from danlu.core.errors import UsageError
from danlu.engine.beginnings import Beginnings, grouped
from danlu.engine.protocol import GenerationOptions, Request, ScoreRequest
from danlu.engine.scorer import Examined, affordable_tokens
from danlu.engine.scoring import exact_head
from danlu.models.abilities import Abilities, examine
from danlu.models.adapters import attach
from danlu.models.loading import load_model
from danlu.models.prefix import PrefixModel

pytestmark = pytest.mark.model


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
    engine = engine_of(model)
    options = GenerationOptions(max_new_tokens=8)
    text = "What is a run? <|im_end|>"
    (found,) = engine.generate([Request("a", text, options)])
    ids = engine.tokenizer.encode(text, split_special_tokens=True)
    assert engine.tokenizer.eos_token_id not in ids
    (same,) = engine.generate([Request("a", tuple(ids), options)])
    assert found == same
    assert "".join(engine.stream(text, options)) == found.text


@pytest.mark.parametrize("window", [256, 4])
def test_a_common_beginning_is_computed_once(window: int, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few-shot examples once, also for later windows; each question once; its options side by side."""
    monkeypatch.setattr("danlu.engine.local.SCORE_WINDOW", window)
    engine, asked = engine_of(model), requests()[:6]
    tokens = watched(engine)
    list(engine.score(asked))
    joined = [(rows, common) for rows, common in (tokens_of(engine.tokenizer, request) for request in asked)]
    contexts = {tuple(rows[0][:common]) for rows, common in joined}
    depth = common_of(list(contexts))
    options = sum(len(ids) - common - 1 for rows, common in joined for ids in rows)
    assert len(contexts) == 3
    assert depth > 32
    assert sum(tokens) == depth + sum(len(context) - depth for context in contexts) + options


def watched(engine: Any) -> list[int]:
    """Counts of tokens that the model reads, call by call, from now on; it has been examined before."""
    list(engine.score([ScoreRequest("first", "a", ("b",))]))
    counts: list[int] = []

    def count(module: Any, args: Any, options: Any) -> None:
        counts.append(options["input_ids"].numel())

    engine.model.base_model.register_forward_pre_hook(count, with_kwargs=True)
    return counts


def test_beginnings_within_beginnings() -> None:
    long, short = tuple(range(100)), tuple(range(40))
    texts = [(*long, 1), (*long, 2), (*short, 3), (4, 5), (*short, 6), (*long[:60], 7), long[:40]]
    tree = grouped(texts)
    assert sorted(tree.members) == [3]
    (first,) = tree.groups
    assert (first.depth, first.start, sorted(first.members)) == (
        39,
        long[:39],
        [2, 4, 5, 6],
    )  # the last one keeps a token
    (second,) = first.groups
    assert (second.depth, sorted(second.members), second.groups) == (100, [0, 1], [])
    alone = grouped([(*short, 3)], known=[long])
    assert [group.depth for group in alone.groups] == [40]
    assert grouped([(*short, 3)]).members == [0]
    assert list(grouped([]).walk()) == []


def test_what_is_kept_of_beginnings_is_bounded(model: Path) -> None:
    loaded = load_model(model, dtype="float32")
    examine(loaded)
    one = 2 * 3 * 2 * 16 * 4 * 40  # keys and values, layers, heads, width, bytes, tokens
    kept = Beginnings(loaded, limit=2 * one)
    texts = [tuple(range(start, start + 40)) for start in (10, 60, 110)]
    whole = [kept.before(text) for text in texts]
    assert kept.known == texts[1:]
    assert kept.computed == 120
    again = kept.before(texts[1][:30])
    assert kept.computed == 120
    longer = kept.before((*texts[1][:35], 7, 8))
    assert kept.computed == 122
    assert kept.known == [texts[1], (*texts[1][:35], 7, 8)]
    for found, other, size in ((again, whole[1], 30), (longer, whole[1], 35)):
        for (keys, values), (same_keys, same_values) in zip(found, other, strict=True):
            torch.testing.assert_close(keys[:, :size], same_keys[:, :size], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(values[:, :size], same_values[:, :size], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["plain", "prefix", "mlp"])
def test_a_context_that_sees_itself_is_read_whole(chatglm1: Path, kind: str) -> None:
    """ChatGLM-6B: what comes later in a prompt changes its beginning."""
    gmask, sop = 2, 5
    model = load_model(chatglm1, dtype="float32")
    if kind != "plain":
        model = PrefixModel(model, random_prefix(model) if kind == "prefix" else prompt_of(model, kind)).eval()
    head = tuple(range(40, 90))
    prompts = [(*head, 100 + n, *range(150, 150 + n), gmask, sop) for n in range(3)]
    engine = engine_of(chatglm1, model)
    asked = [ScoreRequest(str(n), prompt, ("a", "bcd e"), per_token=True) for n, prompt in enumerate(prompts)]
    for item in engine.score(asked):
        prompt = prompts[int(item.key)]
        rows = [[*prompt, *engine.renderer.content_ids(text)] for text in ("a", "bcd e")]
        assert_scored(item, *textbook(model, rows, len(prompt)))


@pytest.mark.parametrize("bias", [False, True])
def test_logits_are_not_rounded_to_the_precision_of_the_weights(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("danlu.engine.scoring.PART", 7)
    torch.manual_seed(3)
    head = torch.nn.Linear(16, 40, bias=bias).bfloat16()
    states = torch.randn(5, 16).bfloat16()
    found = exact_head(head)(states)
    expected = states.double() @ head.weight.double().T + (head.bias.double() if bias else 0)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
    assert not torch.equal(found, head(states).float())


@pytest.mark.parametrize("kind", ["plain", "lora", "prefix"])
def test_padded_rows_give_the_same(kind: str, model: Path, tmp_path: Path) -> None:
    """As models are read that cannot take sequences side by side."""
    engine = engine_of(model, variants(model, kind, tmp_path))
    engine.__dict__["_examined"] = Examined(Abilities(packed=False, plain_head=True), keeps=False, decodes=False)
    assert_right(engine, requests())


def test_batches_are_as_large_as_is_asked_or_fits(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [ScoreRequest(str(n), f"{QUESTIONS[n % 3]} {n}", (" A", " folder"), per_token=True) for n in range(60)]
    sizes = {}
    for name, size in (("all", None), ("one", 1), ("seven", 7)):
        engine = engine_of(model, batch_size=size)
        tokens = watched(engine)
        list(engine.score(asked))
        sizes[name] = len(tokens)
    assert sizes == {"all": 1, "one": 60, "seven": 9}
    monkeypatch.setattr("danlu.engine.scorer.free_memory", lambda: 0)
    engine = engine_of(model)
    assert affordable_tokens(engine.model) == 256
    tokens = watched(engine)
    assert_right(engine, asked[:30])
    assert len(tokens) > 60 + 1, "the textbook takes two calls for each request"
