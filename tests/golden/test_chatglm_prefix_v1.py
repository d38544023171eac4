"""Prefixes of the official P-Tuning scripts for the first ChatGLM-6B: positions of two rows, half of a head turned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from chatglm_tiny import as_official, checkpoint, golden
from torch.nn import functional as F

from danlu.engine.decoding import Row, decode_rows
from danlu.engine.protocol import GenerationOptions
from danlu.models.adapters import attach
from danlu.models.chatglm.prefix import NAMES, START, official_state
from danlu.models.loading import load_model
from danlu.models.prefix import PrefixEncoder, PrefixShape

pytestmark = pytest.mark.golden
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


@pytest.fixture(scope="module")
def tiny(shared: Path) -> Path:
    """The checkpoint of the first generation."""
    return checkpoint(shared, "tiny_v1")


@pytest.fixture(scope="module")
def known(tiny: Path) -> dict[str, Any]:
    """What the reference code computed."""
    return golden(tiny)


def network(config: Any) -> PrefixEncoder:
    """A prefix of random weights, its network as wide as the official code makes it."""
    shape, width = PrefixShape.of(config, 6), config.hidden_size
    with torch.random.fork_rng():
        torch.manual_seed(9)
        return PrefixEncoder(shape, projection=True, hidden_size=width, embedding_size=width)


def saved(prefix: PrefixEncoder, folder: Path) -> Path:
    """A checkpoint of the official scripts with these weights, which are not turned."""
    state, folder = prefix.state_dict(), folder / "old"
    folder.mkdir()
    named = {START + name: state[ours] for name, ours in NAMES.items() if ours in state}
    torch.save(named, folder / "pytorch_model.bin")
    return folder


def test_logits(tiny: Path, known: dict[str, Any], tmp_path: Path) -> None:
    model = load_model(tiny)
    prefix = PrefixEncoder.of_state(PrefixShape.of(model.config, 6), {"embedding.weight": known["prefix"]})
    ids, expected = known["single"][None], known["prefix_logits"]
    with torch.no_grad():
        found = attach(model, saved(prefix, tmp_path))(input_ids=ids).logits
        torch.testing.assert_close(as_official(model, prefix, ids), expected, **CLOSE)
    torch.testing.assert_close(found, expected, **CLOSE)
    assert (found - known["single_logits"]).abs().max() > 0.01


def test_a_network_and_padding(tiny: Path, known: dict[str, Any], tmp_path: Path) -> None:
    model = load_model(tiny)
    prefix = network(model.config)
    ours = attach(model, saved(prefix, tmp_path))
    with torch.no_grad():
        padded = ours(input_ids=known["ids"], attention_mask=known["am2d"]).logits
        for row, mask in zip(range(len(known["ids"])), known["am2d"].bool()):
            alone = as_official(model, prefix, known["ids"][row][mask][None])[0]
            torch.testing.assert_close(padded[row][mask], alone, **CLOSE)


def test_greedy_answers(tiny: Path, known: dict[str, Any], tmp_path: Path) -> None:
    """In a left-padded batch with a cache, as one by one without."""
    model = load_model(tiny)
    prefix = network(model.config)
    prompts = [ids[ids != model.config.pad_token_id] for ids in known["gen_in"]]
    rows = [Row(str(number), ids.tolist(), GenerationOptions(), 8) for number, ids in enumerate(prompts)]
    for _ in decode_rows(attach(model, saved(prefix, tmp_path)), rows, stop_ids=frozenset(), pad=3):
        pass
    for row, prompt in zip(rows, prompts):
        whole = torch.cat([prompt, torch.tensor(row.tokens)])
        with torch.no_grad():
            likeliest = as_official(model, prefix, whole[None])[0].argmax(-1)
        assert row.tokens == likeliest[len(prompt) - 1 : -1].tolist()


@pytest.mark.parametrize("kind", ["table", "network"])
def test_a_training_step_and_back(tiny: Path, known: dict[str, Any], tmp_path: Path, kind: str) -> None:
    """A step of gradient descent on the turned weights, written back, is the official step."""
    model, ids = load_model(tiny).requires_grad_(False), known["single"][None]
    theirs = network(model.config)
    if kind == "table":
        theirs = PrefixEncoder.of_state(theirs.shape, {"embedding.weight": known["prefix"]})
    ours = attach(model, saved(theirs, tmp_path), trainable=True).eval()
    back = official_state(ours.prefix, model.config, hidden_size=model.config.hidden_size)
    for name, value in back.items():
        before = theirs.state_dict()[NAMES[name.removeprefix(START)]]
        torch.testing.assert_close(value, before, atol=1e-6, rtol=0)
    for prefix, logits in ((theirs, as_official(model, theirs, ids)), (ours.prefix, ours(input_ids=ids).logits)):
        F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
        torch.optim.SGD(prefix.parameters(), lr=0.5).step()
    stepped = official_state(ours.prefix, model.config, hidden_size=model.config.hidden_size)
    assert len(stepped) == len(theirs.state_dict())
    for name, value in stepped.items():
        assert not torch.equal(value, back[name])
        after = theirs.state_dict()[NAMES[name.removeprefix(START)]]
        torch.testing.assert_close(value, after, atol=2e-6, rtol=1e-5)
