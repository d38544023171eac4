"""ChatGLM-6B: packed as one by one, answers from the cache as without it, files under their original names."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from probes import logits_of, random_adapter, random_prefix
from test_engine_local import SHORT, engine_of
from test_packing import gradients
from test_soft_prompts import prompt_of
from tiny import build_chatglm1
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification

from danlu.core.errors import ModelError
from danlu.engine.protocol import Completion, GenerationOptions, Request
from danlu.models.abilities import Abilities, examine
from danlu.models.adapters import attach, merge
from danlu.models.chatglm.v1.places import following
from danlu.models.export import export
from danlu.models.loading import load_model
from danlu.models.prefix import PrefixModel
from danlu.models.reward_export import export_classifier
from danlu.models.runs import plain_model
from danlu.models.value_head import ValueHead
from danlu.models.weights import save_weights
from danlu.tune.batches import Batch, lay_out
from danlu.tune.learner import Learner

pytestmark = pytest.mark.model

MASK, GMASK, SOP, EOP = 1, 2, 5, 6
PROMPTS = [
    (40, 41, 42, GMASK, SOP),
    (60, MASK, 61, 62, 63, SOP),
    (70, GMASK, 71, 72, 73, 74, 75, 76, 77, SOP),
    (GMASK, SOP),
]
"""Contexts that end with the mask token, or hold it somewhere."""


@pytest.fixture
def model(chatglm1: Path) -> Any:
    return load_model(chatglm1)


def text(*ids: int, context: bool = True) -> list[int]:
    """A sequence: everything before ``<sop>`` and an answer of three tokens."""
    return [*ids, *(80 + number for number in ids[:3]), EOP] if context else list(ids)


SEQUENCES = [text(*prompt) for prompt in PROMPTS] + [text(50, 51, 52, 53, 54, context=False), text(44, 45, SOP)]
"""One has no ``<sop>`` and so no context, one no mask token."""


def packed(sequences: list[list[int]]) -> Batch:
    parts = []
    for ids in sequences:
        trained = np.zeros(len(ids), dtype=np.bool_)
        trained[ids.index(SOP) + 1 if SOP in ids else 1 :] = True
        parts.append([(np.array(ids, dtype=np.int32), trained)])
    return lay_out(parts)


def one_by_one(model: Any, sequences: list[list[int]]) -> Tensor:
    total = torch.zeros(())
    for ids in sequences:
        row = torch.tensor([ids])
        first = ids.index(SOP) if SOP in ids else 0
        total = total + F.cross_entropy(model(input_ids=row).logits[0, first:-1], row[0, first + 1 :], reduction="sum")
    return total


@pytest.mark.parametrize(("attention", "tied"), [("sdpa", False), ("eager", True)])
def test_packed_loss_and_gradients_equal_one_by_one(tmp_path: Path, attention: str, tied: bool) -> None:
    folder = build_chatglm1(tmp_path, tie_word_embeddings=tied)
    plain = load_model(folder, attention=attention)
    expected = one_by_one(plain, SEQUENCES)
    expected.backward()
    model = load_model(folder)
    abilities = examine(model)
    assert abilities == Abilities(packed=True, plain_head=True)
    loss = Learner(model, abilities)(**packed(SEQUENCES))
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)
    wanted, found = gradients(plain), gradients(model)
    assert wanted.keys() == found.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-4)
    model.config.bos_token_id = 399  # no context is found any more
    causal = Learner(model, abilities)(**packed(SEQUENCES))
    assert (causal - expected).abs().item() > (0.01 if tied else 0.1)


def test_rows_that_are_padded_give_the_same_loss(model: Any) -> None:
    expected = one_by_one(model, SEQUENCES)
    for abilities in (Abilities(False, True), Abilities(False, False), Abilities(True, False)):
        if abilities.packed:
            examine(model)
        loss = Learner(model, abilities)(**packed(SEQUENCES))
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)


def test_checkpointing_gives_the_same_gradients(chatglm1: Path) -> None:
    results = []
    for checkpointing in (False, True):
        model = load_model(chatglm1)
        learner = Learner(model, examine(model)).train()
        if checkpointing:
            learner.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            assert all(layer.gradient_checkpointing for layer in model.base_model.layers)
        learner(**packed(SEQUENCES)).backward()
        results.append(gradients(model))
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value)


def test_answers_that_share_a_prompt_are_as_each_with_its_own(model: Any) -> None:
    answers = [[30, 31, EOP], [32, EOP], [33, 34, 35, EOP]]
    items = [
        [(np.array(prompt, dtype=np.int32), np.zeros(len(prompt), dtype=np.bool_))]
        + [(np.array(ids, dtype=np.int32), np.ones(len(ids), dtype=np.bool_)) for ids in answers]
        for prompt in PROMPTS[:3]
    ]
    expected = [
        logits_of(model, torch.tensor([[*prompt, *ids]]))[0, len(prompt) - 1 : -1].log_softmax(-1)
        for prompt in PROMPTS[:3]
        for ids in answers
    ]
    wanted = torch.cat([row.gather(1, torch.tensor(ids)[:, None])[:, 0] for row, ids in zip(expected, answers * 3)])
    learner, batch = Learner(model, examine(model)), lay_out(items)
    with torch.no_grad():
        found, _ = learner.log_probs(learner.see(batch), batch)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_prompt_that_is_shared_must_hold_its_whole_context(model: Any) -> None:
    parts = [(np.array(ids, dtype=np.int32), np.ones(len(ids), dtype=np.bool_)) for ids in ([40, 41], [GMASK, SOP, 9])]
    learner = Learner(model, examine(model))
    with pytest.raises(ValueError, match="contain <sop>"):
        learner.see(lay_out([parts]))


@pytest.mark.parametrize("kind", ["prefix", "projection", "prompt_tuning", "lstm"])
def test_trained_prefixes_packed_as_in_rows(model: Any, kind: str) -> None:
    prefix = _prefix(model, kind)
    rows = [logits_of(PrefixModel(model, prefix), torch.tensor([ids]))[0] for ids in SEQUENCES]
    assert (rows[0] - logits_of(model, torch.tensor(SEQUENCES[:1]))[0]).abs().max() > 0.1
    learner, batch = Learner(model, examine(model), prefix), packed(SEQUENCES)
    with torch.no_grad():
        found = model.lm_head(learner.see(batch).hidden)
    torch.testing.assert_close(found, torch.cat(rows), rtol=1e-4, atol=1e-4)


def _prefix(model: Any, kind: str) -> Any:
    if kind in ("prefix", "projection"):
        return random_prefix(model, projection=kind == "projection")
    return prompt_of(model, kind)


def test_plain_peft_reads_our_prefix(chatglm1: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    model = load_model(chatglm1)
    prefix = random_prefix(model)
    prefix.save(tmp_path, base=model.name_or_path)
    ids = torch.tensor([SEQUENCES[0]])
    theirs = logits_of(PeftModel.from_pretrained(load_model(chatglm1), tmp_path), ids)
    torch.testing.assert_close(theirs, logits_of(PrefixModel(model, prefix), ids), rtol=1e-5, atol=1e-5)


def answers(folder: Path, model: Any, options: GenerationOptions = SHORT, **settings: Any) -> dict[str, Completion]:
    requests = [Request(str(key), ids, options) for key, ids in enumerate(PROMPTS)]
    return {item.key: item for item in engine_of(folder, model, **settings).generate(requests)}


@pytest.mark.parametrize("kind", ["plain", "packed", "lora", "prefix", "prompt_tuning"])
def test_answers_from_the_cache_are_what_the_logits_say(chatglm1: Path, kind: str, tmp_path: Path) -> None:
    model = load_model(chatglm1)
    if kind == "lora":
        random_adapter(model, tmp_path)
        model = attach(load_model(chatglm1), tmp_path)
    elif kind == "packed":  # as a model in training answers
        assert examine(model).packed
    elif kind != "plain":
        model = PrefixModel(model, _prefix(model, kind)).eval()
    together = answers(chatglm1, model, batch_size=8)
    assert together == answers(chatglm1, model, batch_size=1)
    for key, prompt in enumerate(PROMPTS):
        ids = list(prompt)
        for _ in range(8):  # without any cache or padding
            ids.append(int(logits_of(model, torch.tensor([ids]))[0, -1].argmax()))
        assert together[str(key)].tokens[:8] == tuple(ids[len(prompt) :])


@pytest.mark.parametrize("kind", ["plain", "prefix"])
def test_beam_search_and_shared_prompts(chatglm1: Path, kind: str) -> None:
    model = load_model(chatglm1)
    if kind == "prefix":
        model = PrefixModel(model, random_prefix(model)).eval()
    beams = replace(SHORT, num_beams=3)
    together = answers(chatglm1, model, beams, batch_size=8)
    assert together == answers(chatglm1, model, beams, batch_size=1)
    assert together != answers(chatglm1, model)
    likely, greedy = (
        sum(_log_p(model, prompt, found[str(key)]) for key, prompt in enumerate(PROMPTS))
        for found in (together, answers(chatglm1, model))
    )
    assert likely > greedy
    sampled = replace(SHORT, do_sample=True)
    requests = [Request(f"{key}/{copy}", ids, sampled) for key, ids in enumerate(PROMPTS) for copy in range(2)]
    shared = {item.key: item for item in engine_of(chatglm1, model, batch_size=8).generate(requests)}
    assert shared == {item.key: item for item in engine_of(chatglm1, model, batch_size=1).generate(requests)}
    assert shared["0/0"].tokens != shared["0/1"].tokens


def _log_p(model: Any, prompt: tuple[int, ...], answer: Completion) -> float:
    """Log-probability of an answer, without a cache."""
    row = torch.tensor([[*prompt, *answer.tokens]])
    found = logits_of(model, row)[0, len(prompt) - 1 : -1].log_softmax(-1)
    return float(found.gather(1, row[0, len(prompt) :, None]).sum())


def test_generate_of_transformers_answers_alike(chatglm1: Path) -> None:
    model = load_model(chatglm1)
    ours = answers(chatglm1, model)
    for key, prompt in enumerate(PROMPTS):
        row = torch.tensor([prompt])
        for cached in (True, False):
            found = model.generate(row, max_new_tokens=12, do_sample=False, eos_token_id=None, use_cache=cached)
            assert tuple(found[0, len(prompt) :].tolist()) == ours[str(key)].tokens
        beams = [
            model.generate(row, max_new_tokens=8, num_beams=3, do_sample=False, use_cache=cached)
            for cached in (True, False)
        ]
        assert torch.equal(*beams)


def test_positions_of_several_new_tokens() -> None:
    positions = torch.tensor([[[3, 3], [4, 5]], [[1, 2], [0, 0]]])  # the second text has no <sop>
    assert following(positions, 2).tolist() == [[[3, 3], [6, 7]], [[3, 4], [0, 0]]]


def test_a_step_without_its_position_is_refused(model: Any) -> None:
    output = model(torch.tensor([PROMPTS[0]]), use_cache=True)
    for positions in (None, torch.tensor([[5]])):
        with pytest.raises(ValueError, match="position_ids"):
            model(torch.tensor([[9]]), past_key_values=output.past_key_values, position_ids=positions)


@pytest.mark.parametrize(("legacy", "tied"), [(False, False), (True, False), (False, True), (True, True)])
def test_saved_under_the_original_names(tmp_path: Path, legacy: bool, tied: bool) -> None:
    folder, tmp_path = build_chatglm1(tmp_path / "base", tie_word_embeddings=tied), tmp_path / "saved"
    tmp_path.mkdir()
    model = load_model(folder)
    assert {"transformer.word_embeddings.weight", "transformer.final_layernorm.bias", "lm_head.weight"} <= set(
        model.state_dict()
    )
    inside = {name.split(".", 3)[-1] for name in model.state_dict() if ".layers.1." in name}
    assert inside == {
        *("input_layernorm.weight", "input_layernorm.bias"),
        *("post_attention_layernorm.weight", "post_attention_layernorm.bias"),
        *(f"attention.{name}.{part}" for name in ("query_key_value", "dense") for part in ("weight", "bias")),
        *(f"mlp.{name}.{part}" for name in ("dense_h_to_4h", "dense_4h_to_h") for part in ("weight", "bias")),
    }
    save_weights(model, tmp_path, shard_size=0.0001, legacy_bin=legacy)
    assert len([*tmp_path.glob("*.bin" if legacy else "*.safetensors")]) > 1
    again = load_model(tmp_path)
    assert (again.lm_head.weight is again.base_model.word_embeddings.weight) is tied
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    told, before = (json.loads((place / "config.json").read_text()) for place in (tmp_path, folder))
    assert told["num_layers"] == 3
    assert told["inner_hidden_size"] == 96
    assert {key: told.get(key) for key in before} == before


def test_rotary_frequencies_of_the_original_are_left_out_and_all_else_is_told(
    chatglm1: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load_model(chatglm1)
    state = model.state_dict()
    state["transformer.layers.0.attention.rotary_emb.inv_freq"] = torch.ones(4)
    shutil.copy(chatglm1 / "config.json", tmp_path)
    torch.save(state, tmp_path / "pytorch_model.bin")
    ids = torch.tensor(SEQUENCES[:1])
    capsys.readouterr()
    assert torch.equal(logits_of(load_model(tmp_path), ids), logits_of(model, ids))
    assert not capsys.readouterr().err
    state["transformer.prefix_encoder.embedding.weight"] = torch.ones(4, 384)
    torch.save(state, tmp_path / "pytorch_model.bin")
    load_model(tmp_path)
    assert "a trained prefix: name the folder as the adapter as well" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantization_bit": 4}, "stored in 4 bits"),
        ({"eva_config": {"num_layers": 39}}, "reads images"),
        ({"position_encoding_2d": False}, "position_encoding_2d"),
    ],
)
def test_what_is_not_computed_is_refused(chatglm1: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(chatglm1, folder)
    told = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(told))
    with pytest.raises(ModelError, match=message):
        load_model(folder)


def test_early_releases_do_not_name_their_mask_tokens(tmp_path: Path) -> None:
    folder = build_chatglm1(tmp_path)
    told = json.loads((folder / "config.json").read_text())
    for name in ("mask_token_id", "gmask_token_id"):
        del told[name]
    (folder / "config.json").write_text(json.dumps(told))
    config = load_model(folder).config
    assert (config.mask_token_id, config.gmask_token_id) == (MASK, GMASK)


@pytest.mark.parametrize("targets", ["all-linear", ["query_key_value"]])
def test_adapters_merge(chatglm1: Path, tmp_path: Path, targets: Any) -> None:
    attached = random_adapter(load_model(chatglm1), tmp_path, target_modules=targets)
    ids = torch.tensor(SEQUENCES[:1])
    merged = merge(load_model(chatglm1), [tmp_path])
    torch.testing.assert_close(logits_of(merged, ids), logits_of(attached, ids), rtol=1e-4, atol=1e-4)


def test_an_export_is_the_original_layout_with_its_code(chatglm1: Path, tmp_path: Path, capsys: Any) -> None:
    base = tmp_path / "base"
    shutil.copytree(chatglm1, base)
    told = json.loads((base / "config.json").read_text())
    told["auto_map"] = {"AutoConfig": "configuration_x.ChatGLMConfig", "AutoModel": "modeling_x.ChatGLMModel"}
    (base / "config.json").write_text(json.dumps(told))
    for name in ("configuration_x.py", "modeling_x.py", "quantization.py"):
        (base / name).write_text(f"raise SystemExit('{name} was run')")
    (base / "tokenizer_config.json").write_text((base / "tokenizer_config.json").read_text() + "\n")
    random_adapter(load_model(base), tmp_path / "lora")
    report = export(plain_model(base, adapters=[tmp_path / "lora"]), tmp_path / "out", original=True)
    assert {"configuration_x.py", "modeling_x.py", "quantization.py"} <= set(report.files)
    name = "tokenizer_config.json"
    assert (tmp_path / "out" / name).read_bytes() == (base / name).read_bytes()
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {key: written.get(key) for key in told} == told
    ids = torch.tensor(SEQUENCES[:1])
    merged = merge(load_model(base), [tmp_path / "lora"])
    torch.testing.assert_close(logits_of(load_model(tmp_path / "out"), ids), logits_of(merged, ids))
    (base / "modeling_x.py").unlink()
    capsys.readouterr()
    export(plain_model(base), tmp_path / "out")
    assert "names modeling_x.py (auto_map)" in capsys.readouterr().err


def test_a_reward_model_becomes_a_classifier(chatglm1: Path, tmp_path: Path) -> None:
    model = load_model(chatglm1)
    random_adapter(model, tmp_path / "run")
    head = ValueHead(64)
    head.save(tmp_path / "run")
    export_classifier(plain_model(chatglm1, adapters=[tmp_path / "run"]), tmp_path / "out")
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    ids = torch.tensor(SEQUENCES[:1])
    with torch.no_grad():
        hidden = attach(load_model(chatglm1), tmp_path / "run").base_model.model.base_model(input_ids=ids)[0]
        found = classifier(input_ids=ids).logits[0, 0]
    expected = head(hidden[0, -1:])[0] - head.summary.bias[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
