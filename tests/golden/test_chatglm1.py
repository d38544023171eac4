"""ChatGLM-6B against tensors of the original code for a tiny random checkpoint (``data/chatglm/tiny_v1``)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from chatglm_tiny import checkpoint
from chatglm_tiny import golden as tensors
from torch import Tensor

from danlu.models.chatglm.v1.configuration import ChatGLMConfig
from danlu.models.chatglm.v1.modeling import ChatGLMForConditionalGeneration, angles, rotated
from danlu.models.loading import load_model
from danlu.models.prefix import PrefixEncoder, PrefixModel, PrefixShape
from danlu.models.weights import count_parameters

pytestmark = pytest.mark.golden

CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module")
def folder(shared: Path) -> Path:
    return checkpoint(shared, "tiny_v1")


@pytest.fixture(scope="module")
def golden(folder: Path) -> dict[str, Tensor]:
    return tensors(folder)


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request: pytest.FixtureRequest, folder: Path) -> Any:
    return load_model(folder, attention=request.param, family="chatglm")


def logits(model: Any, **inputs: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(**inputs).logits
    return found


def test_logits_with_gmask(model: Any, golden: dict[str, Tensor]) -> None:
    torch.testing.assert_close(logits(model, input_ids=golden["single"][None]), golden["single_logits"], **CLOSE)


def test_logits_with_mask(model: Any, golden: dict[str, Tensor]) -> None:
    torch.testing.assert_close(logits(model, input_ids=golden["mask_ids"][None]), golden["mask_logits"], **CLOSE)


def test_logits_of_padded_rows(model: Any, golden: dict[str, Tensor]) -> None:
    mask = golden["am2d"]
    found = logits(model, input_ids=golden["ids"], attention_mask=mask)
    torch.testing.assert_close(found[mask.bool()], golden["pad_logits"][mask.bool()], **CLOSE)


def test_positions(model: Any, golden: dict[str, Tensor]) -> None:
    found = model.token_positions(golden["ids"], golden["am2d"])
    assert torch.equal(found.transpose(0, 1), golden["pos"])
    assert found.max() > 7
    given = logits(model, input_ids=golden["ids"], attention_mask=golden["am2d"], position_ids=found)
    assert torch.equal(given, logits(model, input_ids=golden["ids"], attention_mask=golden["am2d"]))


def test_positions_and_context_matter(model: Any, golden: dict[str, Tensor]) -> None:
    """The comparisons above can fail: one wrong row of positions is far off."""
    ids = golden["single"][None]
    positions = model.token_positions(ids)
    positions[1] = 0
    wrong = logits(model, input_ids=ids, position_ids=positions)
    assert (wrong - golden["single_logits"]).abs().max() > 0.1


def test_generation_from_padded_rows(model: Any, golden: dict[str, Tensor]) -> None:
    ids = golden["gen_in"]
    found = model.generate(ids, attention_mask=(ids != 3).long(), max_new_tokens=15, do_sample=False)
    assert torch.equal(found, golden["gen"])
    single = golden["gen_single"]
    assert torch.equal(model.generate(single[:, :7], max_new_tokens=15, do_sample=False), single)


def test_loss_and_gradient(model: Any, golden: dict[str, Tensor]) -> None:
    model.zero_grad()
    loss = model(input_ids=golden["single"][None], labels=golden["labels"]).loss
    loss.backward()
    torch.testing.assert_close(loss, golden["loss"], **CLOSE)
    gradient = model.base_model.layers[1].attention.query_key_value.weight.grad
    torch.testing.assert_close(gradient, golden["g"], rtol=1e-4, atol=1e-6)


def test_prefix_of_the_original_is_one_of_ours_with_turned_keys(model: Any, golden: dict[str, Tensor]) -> None:
    """In the original prefix and text both begin at position 0; here the first row of the text begins at N."""
    shape = PrefixShape.of(model.config, len(golden["prefix"]))
    table = golden["prefix"].view(shape.length, shape.layers, 2, shape.kv_heads, shape.head_dim).clone()
    places = torch.tensor([shape.length, 0]).view(2, 1, 1).expand(-1, 1, shape.length)
    keys = table[:, :, 0].permute(1, 2, 0, 3)
    table[:, :, 0] = rotated(keys, *angles(places, shape.head_dim)).permute(2, 0, 1, 3)
    prefix = PrefixEncoder(shape)
    prefix.load_state_dict({"embedding.weight": table.reshape(shape.length, -1)})
    found = logits(PrefixModel(model, prefix).eval(), input_ids=golden["single"][None])
    torch.testing.assert_close(found, golden["prefix_logits"], **CLOSE)
    assert (found - golden["single_logits"]).abs().max() > 0.01


def test_tables_that_differ_are_not_tied(folder: Path, golden: dict[str, Tensor], tmp_path: Path) -> None:
    """No release says whether output layer and embeddings are one table; what is stored decides."""
    told = json.loads((folder / "config.json").read_text())
    del told["tie_word_embeddings"]
    (tmp_path / "config.json").write_text(json.dumps(told))
    (tmp_path / "pytorch_model.bin").symlink_to(folder / "pytorch_model.bin")
    found = logits(load_model(tmp_path), input_ids=golden["single"][None])
    torch.testing.assert_close(found, golden["single_logits"], **CLOSE)


def test_number_of_weights_of_the_release() -> None:
    """6 173 286 400, as tools that counted the loaded ChatGLM-6B printed it."""
    with torch.device("meta"):
        model = ChatGLMForConditionalGeneration(ChatGLMConfig())
    assert count_parameters(model) == 6_173_286_400
    assert (model.config.mask_token_id, model.config.gmask_token_id) == (130000, 130001)
    old = ChatGLMConfig(vocab_size=150528, bos_token_id=150004, eos_token_id=150005)
    assert (old.mask_token_id, old.gmask_token_id) == (150000, 150001)
