"""Padding-free batches: the same loss and gradients as one sequence at a time, in every family."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from danlu.data.encode import EncodingReport
from danlu.data.templates import Encoded
from danlu.data.tokens import Item, TokenStore, write_store
from danlu.models.abilities import Abilities, examine
from danlu.models.attention import packed_attention
from danlu.tune.batches import collate
from danlu.tune.head import summed_cross_entropy
from danlu.tune.learner import Learner

pytestmark = pytest.mark.model


def load(folder: Path):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    random = np.random.default_rng(3)
    rows = []
    for number, length in enumerate((13, 2, 29, 7)):
        trained = random.random(length) < 0.5
        trained[-1] = True
        rows.append(Item(number, (Encoded(random.integers(4, 300, length).tolist(), trained.tolist()),)))
    return write_store(tmp_path / "store", rows, [1, 2, 3, 4], EncodingReport())


def reference_loss(model, store: TokenStore) -> torch.Tensor:
    """The textbook computation: one row at a time, full logits, torch's cross entropy."""
    total = torch.zeros(())
    for index in range(len(store)):
        ids, trained = (torch.from_numpy(np.array(part)) for part in store[index])
        logits = model(input_ids=ids.long().unsqueeze(0)).logits[0, :-1]
        chosen = trained[1:]
        total = total + torch.nn.functional.cross_entropy(logits[chosen], ids[1:].long()[chosen], reduction="sum")
    return total


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_packed_loss_and_gradients_equal_one_by_one(tiny_model: Path, store: TokenStore) -> None:
    plain = load(tiny_model)
    expected = reference_loss(plain, store)
    expected.backward()
    model = load(tiny_model)
    abilities = examine(model)
    assert abilities == Abilities(packed=True, plain_head=True)
    loss = Learner(model.train(), abilities)(**collate(store, range(len(store))))
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)
    wanted, found = gradients(plain), gradients(model)
    assert wanted.keys() == found.keys()
    for name in wanted:
        torch.testing.assert_close(
            found[name], wanted[name], rtol=1e-4, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.parametrize("abilities", [Abilities(False, True), Abilities(True, False), Abilities(False, False)])
def test_fallbacks_compute_the_same_loss(tiny_models: dict[str, Path], store: TokenStore, abilities: Abilities) -> None:
    model = load(tiny_models["qwen3"])
    expected = reference_loss(model, store)
    if abilities.packed:
        examine(model)
    loss = Learner(model, abilities)(**collate(store, range(len(store))))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)


def test_a_model_whose_sequences_would_see_each_other_is_padded(tiny_models: dict[str, Path]) -> None:
    model = load(tiny_models["llama"])
    own = model.config._attn_implementation
    model._supports_attention_backend = False
    assert examine(model) == Abilities(packed=False, plain_head=True)
    assert model.config._attn_implementation == own


def test_checkpointing_gives_the_same_gradients(tiny_models: dict[str, Path], store: TokenStore) -> None:
    results = []
    for checkpointing in (False, True):
        model = load(tiny_models["llama"])
        learner = Learner(model, examine(model)).train()
        if checkpointing:
            learner.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        learner(**collate(store, range(len(store)))).backward()
        results.append(gradients(model))
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 5, 2500])
def test_chunked_cross_entropy_equals_torch(rows: int, bias: bool) -> None:
    torch.manual_seed(rows)
    hidden, weight = torch.randn(rows, 16, requires_grad=True), torch.randn(40, 16, requires_grad=True)
    offset = torch.randn(40, requires_grad=True) if bias else None
    targets = torch.randint(0, 40, (rows,))
    inputs = [hidden, weight, *([offset] if offset is not None else [])]
    expected = torch.nn.functional.cross_entropy(
        torch.nn.functional.linear(hidden, weight, offset), targets, reduction="sum"
    )
    wanted = torch.autograd.grad(expected * 0.3, inputs)
    loss = summed_cross_entropy(hidden, weight, offset, targets)
    found = torch.autograd.grad(loss * 0.3, inputs)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-3)
    for first, second in zip(found, wanted, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)


def reference_attention(query, key, value, *, window, softcap, prefix, sinks, context=0):
    """Attention by its definition, one head and one query at a time; the first ``context`` keys are seen by all."""
    heads, length, width = query.shape
    groups = heads // key.shape[0]
    out = torch.zeros(heads, length, value.shape[2])
    for head in range(heads):
        keys, values = key[head // groups], value[head // groups]
        extra = 0
        if prefix is not None:
            keys, values = torch.cat((prefix[0, head // groups], keys)), torch.cat((prefix[1, head // groups], values))
            extra = prefix.shape[2]
        for place in range(extra, extra + length):
            first = 0 if window is None else max(0, place - window + 1)
            seen = sorted({*range(extra + context if context else 0), *range(first, place + 1)})
            scores = keys[seen] @ query[head, place - extra] * width**-0.5
            if softcap:
                scores = torch.tanh(scores / softcap) * softcap
            if sinks is not None:
                scores = torch.cat((scores, sinks[head : head + 1]))
            out[head, place - extra] = scores.softmax(0)[: len(seen)] @ values[seen]
    return out


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("variant", ["", "prefix", "sinks", "wide values"])
@pytest.mark.parametrize("contexts", [None, (5, 0), (3, 7)])
@pytest.mark.parametrize("limit", [1024, 0])
def test_attention_by_definition(
    window: int | None,
    softcap: float | None,
    variant: str,
    limit: int,
    contexts: tuple[int, int] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("danlu.models.attention.EXPLICIT_LIMIT", limit)
    torch.manual_seed(1)
    query, key = torch.randn(1, 4, 16, 8), torch.randn(1, 2, 16, 8)
    value = torch.randn(1, 2, 16, 12 if variant == "wide values" else 8)
    prefix = torch.randn(3, 2, 2, 5, 8) if variant == "prefix" else None
    sinks = torch.randn(4) if variant == "sinks" else None
    layer = torch.nn.Module()
    layer.layer_idx = 2
    told = {"prefix": prefix, "sliding_window": window, "softcap": softcap, "s_aux": sinks, "contexts": contexts}
    found, _ = packed_attention(layer, query, key, value, None, bounds=[0, 9, 16], **told)
    parts = [
        reference_attention(
            query[0, :, start:end],
            key[0, :, start:end],
            value[0, :, start:end],
            window=window,
            softcap=softcap,
            prefix=None if prefix is None else prefix[2],
            sinks=sinks,
            context=context,
        )
        for (start, end), context in zip(((0, 9), (9, 16)), contexts or (0, 0))
    ]
    expected = torch.cat(parts, dim=1).transpose(0, 1).unsqueeze(0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
