"""Prompts with several answers: the prompt is computed once, and everything is as with whole conversations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import build_config, build_model, build_tokenizer

from danlu.core.config import build
from danlu.models.abilities import Abilities, examine
from danlu.models.prefix import PrefixEncoder, PrefixShape
from danlu.tune.batches import Batch, lay_out
from danlu.tune.config import TrainConfig
from danlu.tune.learner import Learner
from danlu.tune.objectives.pairs import answers

pytestmark = pytest.mark.model

Item = list[tuple[np.ndarray, np.ndarray]]
BOTH = Abilities(packed=True, plain_head=True)
"""What the tiny models allow."""


def load(folder: Path, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, **options)


def forks(*shapes: Sequence[int], seed: int = 5) -> list[Item]:
    """Prompts with answers of these lengths, of random tokens; the first tokens of some answers are not trained."""
    random = np.random.default_rng(seed)
    items = []
    for prompt, *lengths in shapes:
        item = [(random.integers(4, 300, prompt).astype(np.int32), np.zeros(prompt, dtype=np.bool_))]
        for number, length in enumerate(lengths):
            trained = np.ones(length, dtype=np.bool_)
            trained[: number % 2 if length > 1 else 0] = False
            item.append((random.integers(4, 300, length).astype(np.int32), trained))
        items.append(item)
    return items


PAIRS = forks((9, 4, 6), (1, 1, 3), (17, 8, 1))
FIVE = forks((11, 3, 1, 5, 2, 7), (6, 2, 2, 9, 1, 4))


def one_by_one(model: Any, items: Sequence[Item], see: Any = None) -> torch.Tensor:
    """The textbook: each answer after its prompt as a sequence of its own, full logits, (items, answers)."""
    sums = []
    for (prompt, _), *rest in items:
        for ids, trained in rest:
            whole = torch.from_numpy(np.concatenate((prompt, ids))).long().unsqueeze(0)
            logits = see(whole) if see else model(input_ids=whole).logits
            log_p = logits[0, :-1].float().log_softmax(-1).gather(1, whole[0, 1:, None])[:, 0]
            sums.append(log_p[len(prompt) - 1 :][torch.from_numpy(trained)].sum())
    return torch.stack(sums).view(len(items), -1)


def computed(learner: Learner, items: Sequence[Item]) -> torch.Tensor:
    """The same numbers as danlu computes them."""
    batch = lay_out(items)
    log_p, _ = learner.log_probs(learner.see(batch), batch)
    return log_p.new_zeros(len(batch["ends"])).index_add(0, batch["owners"], log_p).view(len(items), -1)


def weighed(log_p: torch.Tensor) -> torch.Tensor:
    """A loss in which every answer counts differently."""
    return (log_p * torch.linspace(-1, 2, log_p.numel()).view_as(log_p)).sum()


def gradients(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: part.grad.clone() for name, part in module.named_parameters() if part.grad is not None}


def assert_close(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], tolerance: float = 1e-4) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        scale = float(value.float().norm()) + 1e-3
        assert float((found[name].float() - value.float()).norm()) < tolerance * scale, name


def assert_as_one_by_one(model: Any, learner: Learner, plain: Any, items: Sequence[Item], tolerance=1e-4) -> None:
    expected, found = one_by_one(plain, items), computed(learner, items)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * 10)
    weighed(expected).backward()
    weighed(found).backward()
    assert_close(gradients(model), gradients(plain), tolerance)


@pytest.mark.parametrize("items", [PAIRS, FIVE], ids=["two", "five"])
def test_log_probs_and_gradients(tiny_model: Path, items: list[Item]) -> None:
    model = load(tiny_model)
    assert examine(model) == BOTH
    assert_as_one_by_one(model, Learner(model.train(), BOTH), load(tiny_model), items)


@pytest.mark.parametrize(
    ("family", "window", "limit"),  # each window in both families, and on both sides of the limit
    [
        ("mistral", 2, 0),
        ("qwen2", 2, 1024),
        ("mistral", 3, 1024),
        ("qwen2", 3, 0),
        ("mistral", 8, 0),
        ("qwen2", 8, 1024),
    ],
)
def test_sliding_window(family: str, window: int, limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token of an answer sees the end of its prompt through the window, and no other answer."""
    monkeypatch.setattr("danlu.models.attention.EXPLICIT_LIMIT", limit)
    folder = sliding_model(family, window, tmp_path)
    model = load(folder)
    assert examine(model).packed
    assert_as_one_by_one(model, Learner(model.train(), BOTH), load(folder, attn_implementation="eager"), PAIRS)


def sliding_model(family: str, window: int, folder: Path) -> Path:
    from transformers import AutoModelForCausalLM, MistralConfig

    if family == "qwen2":
        changes = {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 1}
        return build_model("qwen2", folder / "qwen2", seed=3, **changes)
    tokenizer = build_tokenizer()
    sizes = build_config("llama", tokenizer).to_dict()
    keys = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    keys += ("num_key_value_heads", "initializer_range", "max_position_embeddings", "tie_word_embeddings")
    torch.manual_seed(3)
    config = MistralConfig(**{key: sizes[key] for key in keys}, sliding_window=window)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "mistral")
    return folder / "mistral"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "glm"])
def test_prefix(family: str, dtype: torch.dtype, tiny_models: dict[str, Path]) -> None:
    """Trained keys and values come before the prompt, once, and get the gradient of every answer."""
    from transformers import DynamicCache

    model, plain = (load(tiny_models[family], dtype=dtype).requires_grad_(False) for _ in range(2))
    shape = PrefixShape.of(model.config, 5)
    torch.manual_seed(1)
    prefix = PrefixEncoder(shape)
    examine(model)
    learner = Learner(model.train(), BOTH, prefix)

    def see(ids: torch.Tensor) -> torch.Tensor:
        cache = DynamicCache()
        for layer, (key, value) in enumerate(prefix().to(dtype)):
            cache.update(key.unsqueeze(0), value.unsqueeze(0), layer)
        return plain(input_ids=ids, past_key_values=cache, attention_mask=torch.ones(1, ids.shape[1] + 5)).logits

    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    for items in (PAIRS, FIVE):
        expected, found = one_by_one(plain, items, see), computed(learner, items)
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * 10)
        (wanted,) = torch.autograd.grad(weighed(expected), list(prefix.parameters()))
        (slope,) = torch.autograd.grad(weighed(found), list(prefix.parameters()))
        assert_close({"prefix": slope}, {"prefix": wanted}, tolerance)


def test_checkpointing(tiny_model: Path) -> None:
    model = load(tiny_model)
    learner = Learner(model, examine(model)).train()
    learner.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert_as_one_by_one(model, learner, load(tiny_model), FIVE)


@pytest.mark.parametrize(
    ("abilities", "items"),
    [(Abilities(False, True), PAIRS), (Abilities(True, False), FIVE), (Abilities(False, False), FIVE)],
)
def test_fallbacks(tiny_models: dict[str, Path], abilities: Abilities, items: list[Item]) -> None:
    model = load(tiny_models["qwen3"])
    if abilities.packed:
        examine(model)
    assert_as_one_by_one(model, Learner(model.train(), abilities), load(tiny_models["qwen3"]), items)


def test_half_precision(tiny_model: Path) -> None:
    """bfloat16 weights: as near to float32 as one sequence at a time is."""
    model, exact = load(tiny_model, dtype=torch.bfloat16), load(tiny_model, dtype=torch.bfloat16).float()
    examine(model)
    assert_as_one_by_one(model, Learner(model.train(), BOTH), exact, FIVE, tolerance=0.06)


STAGES = [
    ("rm", {}),
    ("dpo", {}),
    ("dpo", {"pref_loss": "hinge", "pref_ftx": 0.2}),
    ("dpo", {"dpo_label_smoothing": 0.1}),
    ("ipo", {}),
    ("kto", {}),
    ("orpo", {}),
    ("simpo", {}),
]


def pair_batch(items: Sequence[Item]) -> Batch:
    batch = lay_out(items)
    batch["values"] = torch.tensor([1.0, 0.0, 1.0])
    batch["reference"] = torch.tensor([[-30.0, -35.0], [-10.0, -20.0], [-40.0, -9.0]])
    return batch


@pytest.mark.parametrize("abilities", [BOTH, Abilities(False, False)])
@pytest.mark.parametrize(("stage", "options"), STAGES)
def test_losses_equal_those_of_whole_conversations(
    stage: str, options: dict[str, Any], abilities: Abilities, tiny_models: dict[str, Path]
) -> None:
    """The prompt repeated for each answer, in padded rows, against what a training computes."""
    settings = build(TrainConfig, {"stage": stage, **options}, where="test")
    losses, slopes = [], []
    for shared in (False, True):
        model = load(tiny_models["glm"])
        able = abilities if shared else Abilities(packed=False, plain_head=False)
        if able.packed:
            examine(model)
        torch.manual_seed(4)
        learner = Learner(model.train(), able, settings=settings)
        loss = learner(**pair_batch(PAIRS))
        loss.backward()
        losses.append(loss.detach())
        slopes.append(gradients(learner))
        means = learner.tally.means()
        assert means
        assert all(np.isfinite(list(means.values())))
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-4)
    assert_close(slopes[1], slopes[0], 1e-3)


@pytest.mark.parametrize("abilities", [BOTH, Abilities(False, True), Abilities(True, False), Abilities(False, False)])
def test_rewards_are_read_at_the_last_token_of_an_answer(abilities: Abilities, tiny_models: dict[str, Path]) -> None:
    model, plain = load(tiny_models["qwen2"]), load(tiny_models["qwen2"])
    if abilities.packed:
        examine(model)
    learner = Learner(model, abilities, settings=build(TrainConfig, {"stage": "rm"}, where="test"))
    batch = lay_out(FIVE)
    found = learner.numbers(learner.see(batch), batch["ends"])
    wanted = []
    for (prompt, _), *rest in FIVE:
        for ids, _ in rest:
            whole = torch.from_numpy(np.concatenate((prompt, ids))).long().unsqueeze(0)
            state = plain.base_model(input_ids=whole).last_hidden_state[0, -1]
            wanted.append(learner.value_head.summary(state)[0])
    torch.testing.assert_close(found, torch.stack(wanted), rtol=1e-4, atol=1e-4)


def test_answers_do_not_see_each_other(tiny_models: dict[str, Path]) -> None:
    """Another second answer changes nothing of the first, and nothing of the next pair."""
    model = load(tiny_models["llama"]).eval()
    learner = Learner(model, examine(model))
    changed = [list(item) for item in PAIRS]
    changed[0][2] = (changed[0][2][0][::-1].copy(), changed[0][2][1])
    with torch.no_grad():
        before, after = (answers(learner, lay_out(items)).log_p for items in (PAIRS, changed))
    assert before[0, 1] != after[0, 1]
    keep = torch.tensor([[True, False], [True, True], [True, True]])
    torch.testing.assert_close(after[keep], before[keep], rtol=1e-6, atol=1e-6)
