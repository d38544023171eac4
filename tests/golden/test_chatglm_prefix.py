"""Prefixes of the official P-Tuning scripts on the native model: the numbers of the reference code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from chatglm_tiny import as_official, checkpoint, golden, native_v2
from torch.nn import functional as F

from danlu.engine.decoding import Row, decode_rows
from danlu.engine.protocol import GenerationOptions
from danlu.models.adapters import attach
from danlu.models.chatglm.prefix import NAMES, START, import_prefix, official_state
from danlu.models.prefix import PrefixEncoder, PrefixModel, PrefixShape

pytestmark = pytest.mark.golden
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


@pytest.fixture(scope="module")
def tiny(shared: Path) -> Path:
    """The checkpoint of the second generation."""
    return checkpoint(shared, "tiny_v2")


@pytest.fixture(scope="module")
def known(tiny: Path) -> dict[str, Any]:
    """What the reference code computed."""
    return golden(tiny)


def official(known: dict[str, Any], case: str, folder: Path) -> Path:
    """A checkpoint as the official scripts saved it: ``prefix0`` a table, ``prefix1`` with a network."""
    start = f"{case}_sd."
    state = {f"{START}{name.removeprefix(start)}": value for name, value in known.items() if name.startswith(start)}
    folder.mkdir()
    torch.save(state, folder / "pytorch_model.bin")
    return folder


CASES = pytest.mark.parametrize("case", ["prefix0", "prefix1"], ids=["table", "network"])


@CASES
def test_logits(tiny: Path, known: dict[str, Any], tmp_path: Path, case: str) -> None:
    model = attach(native_v2(tiny), official(known, case, tmp_path / "old"))
    with torch.no_grad():
        plain = model(input_ids=known["ids"]).logits
        padded = model(input_ids=known["pad_ids"], attention_mask=known["pad_am"]).logits
    torch.testing.assert_close(plain, known[f"{case}_logits"], **CLOSE)
    text = known["pad_am"].bool()
    torch.testing.assert_close(padded[text], known[f"{case}_pad_logits"][text], **CLOSE)


@CASES
def test_greedy_answers(tiny: Path, known: dict[str, Any], tmp_path: Path, case: str) -> None:
    """In a left-padded batch, through danlu's own decoding."""
    model = attach(native_v2(tiny), official(known, case, tmp_path / "old"))
    prompts = [ids[mask.bool()].tolist() for ids, mask in zip(known["pad_ids"], known["pad_am"])]
    expected = known[f"{case}_gen"][:, known["pad_ids"].shape[1] :]
    rows = [Row(str(number), ids, GenerationOptions(), expected.shape[1]) for number, ids in enumerate(prompts)]
    for _ in decode_rows(model, rows, stop_ids=frozenset(), pad=0):
        pass
    assert [row.tokens for row in rows] == expected.tolist()


@CASES
def test_there_and_back(tiny: Path, known: dict[str, Any], tmp_path: Path, case: str) -> None:
    """Read and written again, the official weights are what they were; through danlu's own files as well."""
    config, folder = native_v2(tiny).config, official(known, case, tmp_path / "old")
    prefix = import_prefix(folder, config)
    prefix.save(tmp_path / "new", base="")
    for form in (prefix, PrefixEncoder.load(tmp_path / "new", config)):
        state = official_state(form, config, hidden_size=config.hidden_size)
        assert state.keys() == torch.load(folder / "pytorch_model.bin").keys()
        for name, value in state.items():
            original = known[f"{case}_sd.{name.removeprefix(START)}"]
            torch.testing.assert_close(value, original, atol=1e-6, rtol=0)


def test_keys_that_are_not_turned_answer_differently(tiny: Path, known: dict[str, Any]) -> None:
    """The golden numbers can tell the two apart."""
    model = native_v2(tiny)
    prefix = PrefixEncoder.of_state(
        PrefixShape.of(model.config, 6), {"embedding.weight": known["prefix0_sd.embedding.weight"]}
    )
    with torch.no_grad():
        logits = PrefixModel(model, prefix)(input_ids=known["ids"]).logits
    assert (logits - known["prefix0_logits"]).abs().max() > 0.1


def official_encoder(known: dict[str, Any], case: str, config: Any) -> PrefixEncoder:
    """The prefix of the golden files, its keys not turned."""
    state = {name: known[f"{case}_sd.{theirs}"] for theirs, name in NAMES.items() if f"{case}_sd.{theirs}" in known}
    length = len(state["embedding.weight"])
    return PrefixEncoder.of_state(PrefixShape.of(config, length), state)


@CASES
@pytest.mark.parametrize(
    "rope", [{}, {"rope_type": "linear", "factor": 4.0}, {"rope_theta": 5e5}], ids=["plain", "linear", "base"]
)
def test_scaled_positions(tiny: Path, known: dict[str, Any], tmp_path: Path, case: str, rope: dict[str, Any]) -> None:
    """As ChatGLM2-6B-32K and ChatGLM3-6B-32K have them; unscaled ones are the reference's own numbers."""
    model = native_v2(tiny, **rope)
    with torch.no_grad():
        expected = as_official(model, official_encoder(known, case, model.config), known["ids"])
        found = attach(model, official(known, case, tmp_path / "old"))(input_ids=known["ids"]).logits
    if not rope:
        torch.testing.assert_close(expected, known[f"{case}_logits"], **CLOSE)
    torch.testing.assert_close(found, expected, **CLOSE)


@CASES
def test_a_training_step(tiny: Path, known: dict[str, Any], tmp_path: Path, case: str) -> None:
    """A step of gradient descent on the turned weights is the official step, turned."""
    model, ids = native_v2(tiny).requires_grad_(False), known["ids"]
    theirs = official_encoder(known, case, model.config)
    ours = attach(model, official(known, case, tmp_path / "old"), trainable=True).eval()
    for prefix, logits in ((theirs, as_official(model, theirs, ids)), (ours.prefix, ours(input_ids=ids).logits)):
        F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
        torch.optim.SGD(prefix.parameters(), lr=0.5).step()
    stepped = official_state(ours.prefix, model.config, hidden_size=model.config.hidden_size)
    for theirs_name, name in NAMES.items():
        if name not in theirs.state_dict():
            continue
        before, after = known[f"{case}_sd.{theirs_name}"], theirs.state_dict()[name]
        assert (after - before).abs().max() > 1e-4
        torch.testing.assert_close(stepped[START + theirs_name], after, atol=1e-6, rtol=1e-5)
