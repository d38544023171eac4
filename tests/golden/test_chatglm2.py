"""ChatGLM2 in its original layout, run by transformers' own Glm: equal to what its published code computes.

The golden numbers come from a tiny random checkpoint that the published code built and ran in float32.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from chatglm_tiny import checkpoint
from chatglm_tiny import golden as tensors

sys.path.insert(0, str(Path(__file__).parents[1] / "model"))

from chatglm2 import reference_logits

from danlu.models.chatglm.layout import glm_config, read_layout
from danlu.models.loading import load_model, model_folder

pytestmark = pytest.mark.golden

TOLERANCE = 1e-4
ANSWER = 20


@pytest.fixture(scope="module")
def original(shared: Path) -> Path:
    """The tiny checkpoint, in the original layout."""
    return checkpoint(shared, "tiny_v2")


@pytest.fixture(scope="module")
def golden(original: Path) -> Any:
    return tensors(original)


@pytest.fixture(scope="module")
def model(original: Path) -> Any:
    return load_model(original, dtype="float32", device="cpu")


def furthest(found: Any, expected: Any) -> float:
    return float((found - expected).abs().max())


def test_the_plain_pass_of_other_tests_is_right(original: Path, golden: Any) -> None:
    """Long contexts and single key heads are compared with it, so it has to agree with the published code itself."""
    assert furthest(reference_logits(original, golden["ids"]), golden["logits"]) < TOLERANCE


def test_logits(model: Any, golden: Any) -> None:
    import torch

    with torch.no_grad():
        found = model(input_ids=golden["ids"]).logits
    assert golden["logits"].std() > 0.5, "logits that do not differ could not tell a wrong model"
    assert furthest(found, golden["logits"]) < TOLERANCE


def test_left_padded_logits(model: Any, golden: Any) -> None:
    import torch

    mask = golden["pad_am"]
    with torch.no_grad():
        found = model(input_ids=golden["pad_ids"], attention_mask=mask, position_ids=golden["pad_pos"]).logits
    real = mask.bool()
    assert not real.all()
    assert furthest(found[real], golden["pad_logits"][real]) < TOLERANCE


def test_greedy_generation_with_a_cache(model: Any, golden: Any) -> None:
    found = model.generate(
        input_ids=golden["pad_ids"], attention_mask=golden["pad_am"], max_new_tokens=ANSWER, do_sample=False
    )
    assert found.tolist() == golden["gen"].tolist()


def test_loss_and_gradients(model: Any, golden: Any) -> None:
    import torch

    model.zero_grad()
    loss = model(input_ids=golden["ids"], labels=golden["labels"]).loss
    loss.backward()
    assert furthest(loss.detach(), golden["loss"]) < TOLERANCE
    layer = model.model.layers[0]
    parts = [getattr(layer.self_attn, part).weight.grad for part in ("q_proj", "k_proj", "v_proj")]
    assert golden["grad_qkv0"].abs().max() > 100 * TOLERANCE
    assert furthest(torch.cat(parts), golden["grad_qkv0"]) < TOLERANCE
    assert furthest(layer.mlp.gate_up_proj.weight.grad, golden["grad_up0"]) < TOLERANCE
    model.zero_grad()


@pytest.mark.parametrize(
    "wrong",
    [
        {"rms_norm_eps": 1e-3},
        {"rope_parameters": {"rope_type": "linear", "factor": 16.0, "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0}},
    ],
    ids=["epsilon", "positions", "rotated-share"],
)
def test_the_comparison_has_power(original: Path, golden: Any, tmp_path: Path, wrong: dict[str, Any]) -> None:
    import torch

    folder = tmp_path / "wrong"
    shutil.copytree(model_folder(original), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | wrong))
    with torch.no_grad():
        found = load_model(folder, dtype="float32", device="cpu")(input_ids=golden["ids"]).logits
    assert furthest(found, golden["logits"]) > 100 * TOLERANCE


def test_the_config_is_complete(original: Path) -> None:
    config = json.loads((original / "config.json").read_text())
    written = glm_config(read_layout(original, config), "float32")
    assert (written["eos_token_id"], written["pad_token_id"], written["rms_norm_eps"]) == (2, 0, 1e-5)
    assert written["vocab_size"] == config["padded_vocab_size"]
