"""Every family of the zoo: batches are exact, training works, answers are transformers' own, merging is exact."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from probes import logits_of, random_prefix, token_batch
from scored import assert_right, engine_of, requests
from tuning import losses, tune, write_rows
from zoo_models import build

from danlu.core.errors import ModelError
from danlu.data.encode import EncodingReport
from danlu.data.schema import Conversation, Message
from danlu.data.templates import Encoded, Template
from danlu.data.tokens import Item, TokenStore, write_store
from danlu.engine.local import LocalEngine
from danlu.engine.protocol import GenerationOptions, Request
from danlu.models.abilities import beginnings_are_exact, examine
from danlu.models.adapters import attach, merge
from danlu.models.layout import decoder_layers
from danlu.models.loading import load_model, load_tokenizer
from danlu.models.prefix import PrefixModel, check_prefix
from danlu.models.zoo import families
from danlu.tune.batches import collate, lay_out
from danlu.tune.learner import Learner
from danlu.tune.methods.peft_adapters import linear_names
from danlu.tune.norms import speed_up_norms

pytestmark = pytest.mark.model

TRIED = sorted(name for name, family in families().items() if family.tiny)
LENGTHS = (13, 2, 29, 7)


@pytest.fixture(scope="module", params=TRIED)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(families()[name], tmp_path_factory.mktemp("zoo") / name)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    random = np.random.default_rng(3)
    rows = [
        Item(number, (Encoded(random.integers(4, 300, length).tolist(), [place % 3 > 0 for place in range(length)]),))
        for number, length in enumerate(LENGTHS)
    ]
    return write_store(tmp_path_factory.mktemp("zoo") / "store", rows, range(len(rows)), EncodingReport())


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def one_by_one(folder: Path, store: TokenStore) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and gradients by the textbook: a row at a time, the family's own attention, full logits."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    total = torch.zeros(())
    for number in range(len(store)):
        ids, trained = (torch.from_numpy(np.array(part)) for part in store[number])
        logits = model(input_ids=ids.long().unsqueeze(0)).logits[0, :-1]
        chosen = trained[1:].bool()
        total = total + torch.nn.functional.cross_entropy(logits[chosen], ids[1:].long()[chosen], reduction="sum")
    total.backward()
    return total.detach(), gradients(model)


def test_batches_equal_one_by_one(name: str, folder: Path, store: TokenStore) -> None:
    expected, wanted = one_by_one(folder, store)
    model = load_model(folder, dtype="float32", device="cpu")
    abilities = examine(model)
    assert abilities.packed == beginnings_are_exact(model) == families()[name].packed
    speed_up_norms(model)
    loss = Learner(model, abilities).eval()(**collate(store, range(len(store))))  # eval: some families drop at random
    loss.backward()
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-5, atol=1e-4)
    found = gradients(model)
    assert wanted.keys() == found.keys()
    for weight, value in wanted.items():
        torch.testing.assert_close(
            found[weight], value, rtol=1e-3, atol=1e-3, msg=lambda m, weight=weight: f"{weight}: {m}"
        )


def test_prompts_that_answers_share_are_computed_once(name: str, folder: Path) -> None:
    """A prompt with several answers gives what each whole conversation gives."""
    random = np.random.default_rng(5)
    lengths = ((9, 5, 8), (3, 11, 2))
    parts = [
        [(random.integers(4, 300, n).astype(np.int32), np.full(n, place > 0)) for place, n in enumerate(row)]
        for row in lengths
    ]
    model = load_model(folder, dtype="float32", device="cpu")
    abilities = examine(model)
    found = told(Learner(model, abilities).eval(), lay_out(parts))
    apart = load_model(folder, dtype="float32", device="cpu")
    for item, answer in ((0, 1), (0, 2), (1, 1), (1, 2)):
        prompt, reply = parts[item][0], parts[item][answer]
        whole = (np.concatenate((prompt[0], reply[0])), np.arange(len(prompt[0]) + len(reply[0])) >= len(prompt[0]))
        expected = told(Learner(apart, replace(abilities, packed=False)).eval(), lay_out([[whole]]))
        torch.testing.assert_close(found[2 * item + answer - 1], expected[0], rtol=1e-4, atol=1e-4)


def told(learner: Learner, batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Log-probabilities of the trained tokens, an entry for each answer."""
    with torch.no_grad():
        values = learner.log_probs(learner.see(batch), batch)[0]
    owners = batch.get("owners", torch.zeros(len(values), dtype=torch.long))
    return [values[owners == number] for number in owners.unique()]


def test_padded_batches_are_right_while_packed_attention_is_on(name: str, folder: Path) -> None:
    """Answers on the way are computed by the model as training has it."""
    plain = load_model(folder, dtype="float32", device="cpu", attention="eager")
    model = load_model(folder, dtype="float32", device="cpu")
    examine(model)
    short, long = token_batch(1, 5), token_batch(1, 13, seed=8)
    ids = torch.cat((torch.cat((torch.full((1, 8), 3), short), 1), long))
    mask = torch.ones_like(ids)
    mask[0, :8] = 0
    found = logits_of(model, ids, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0))
    torch.testing.assert_close(found[0, 8:], logits_of(plain, short)[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[1], logits_of(plain, long)[0], rtol=1e-4, atol=1e-4)


def test_a_prefix_is_seen_in_training_as_in_use(name: str, folder: Path) -> None:
    model = load_model(folder, dtype="float32", device="cpu")
    if not families()[name].packed or getattr(model.config, "kv_lora_rank", None):
        with pytest.raises(ModelError, match="no place for trained keys and values"):
            check_prefix(model.config)
        return
    check_prefix(model.config)
    prefix = random_prefix(model, length=4)
    ids = token_batch(1, 17)
    expected = logits_of(PrefixModel(model, prefix), ids)[0]  # further on than the window of those that have one
    learner = Learner(model, examine(model), prefix).eval()
    numbers = ids[0].numpy().astype(np.int32)
    with torch.no_grad():
        seen = learner.see(lay_out([[(numbers, np.ones(17, dtype=bool))]]))
        found = model.get_output_embeddings()(seen.hidden) if seen.logits is None else seen.logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_scores_are_those_of_full_prompts(name: str, folder: Path) -> None:
    """Longer than the window of those that have one, behind a beginning that is computed once where that is right."""
    assert_right(engine_of(folder), [request for request in requests() if request.key != "texts/1"])


def test_prompts_that_begin_alike_are_answered_alike(name: str, folder: Path) -> None:
    head = tuple(token_batch(1, 150, vocabulary=300)[0].tolist())
    options = GenerationOptions(max_new_tokens=8)
    prompts = [(*head, *range(20, 20 + length)) for length in (1, 9, 4)]
    asked = [Request(str(number), prompt, options) for number, prompt in enumerate(prompts)]
    engine = engine_of(folder)
    together = {item.key: item for item in engine.generate(asked)}
    for request in asked:
        assert list(engine.generate([request])) == [together[request.key]]


def test_layers_are_called_as_the_file_says(name: str, folder: Path) -> None:
    model = load_model(folder, device="cpu")
    layers = decoder_layers(model)
    assert len(layers) == 2
    assert all(sum(weight.numel() for weight in layer.parameters()) > 1000 for layer in layers)
    modules, there = families()[name].modules, set(linear_names(model))
    listed = {*modules.attention, *modules.mlp}
    assert there - listed <= {"shared_expert_gate"}
    assert listed - there == ({"q_a_proj", "q_b_proj"} if name == "deepseek-v2" else set())  # its larger models
    assert set(modules.fused) <= listed


def test_a_family_is_trained_asked_and_merged(name: str, folder: Path, tmp_path: Path) -> None:
    run = tune(folder, write_rows(tmp_path / "rows.jsonl", 8), tmp_path / "run", num_train_epochs=3, learning_rate=2e-2)
    history = losses(run)
    assert sum(history[-2:]) < sum(history[:2]) - 0.2
    adapted = attach(load_model(folder, dtype="float32", device="cpu"), run)
    assert_same_answers(adapted, load_tokenizer(folder))
    ids = token_batch(2, 9)
    before = logits_of(adapted, ids)
    plain = load_model(folder, dtype="float32", device="cpu")
    assert not torch.allclose(logits_of(plain, ids), before, atol=1e-2)
    merged = merge(plain, [run])
    torch.testing.assert_close(logits_of(merged, ids), before, rtol=1e-4, atol=1e-3)


def assert_same_answers(model: Any, tokenizer: Any) -> None:
    """A batch against transformers' greedy answer to each question alone.

    Two questions are the same, and answers end at different times, so that caches are copied and rows leave.
    """
    engine = LocalEngine(model, tokenizer, Template(tokenizer), batch_size=3)
    long = "What is number 11? Tell me. Tell me, what is a run, and what is it for?"
    asked = [("What is number 3?", 8), (long, 4), ("What is number 3?", 3)]
    requests = [
        Request(str(number), Conversation((Message("user", text),)), GenerationOptions(max_new_tokens=limit))
        for number, (text, limit) in enumerate(asked)
    ]
    found = {answer.key: list(answer.tokens) for answer in engine.generate(requests)}
    for request, (_, limit) in zip(requests, asked):
        ids = torch.tensor([engine.renderer.prompt(request.prompt)])
        own = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=limit, do_sample=False)
        assert found[request.key] == own[0, ids.shape[1] :].tolist()
