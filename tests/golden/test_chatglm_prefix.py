"""Prefixes of the official P-Tuning scripts on the native model: the numbers of the reference code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from chatglm_tiny import golden, native_v2
from safetensors.torch import save_file

from danlu.models.adapters import attach

pytestmark = pytest.mark.golden
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


@pytest.fixture(scope="module")
def tiny(shared: Path) -> Path:
    """The checkpoint of the second generation."""
    folder = shared / "data/chatglm/tiny_v2"
    if not folder.is_dir():
        pytest.skip(f"no tiny ChatGLM2 at {folder}")
    return folder


@pytest.fixture(scope="module")
def known(tiny: Path) -> dict[str, Any]:
    """What the reference code computed."""
    return golden(tiny)


def official(known: dict[str, Any], case: str, folder: Path) -> Path:
    """A checkpoint as the official scripts saved it: ``prefix0`` a table, ``prefix1`` with a network."""
    start = f"{case}_sd."
    state = {
        f"transformer.prefix_encoder.{name.removeprefix(start)}": value
        for name, value in known.items()
        if name.startswith(start)
    }
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
