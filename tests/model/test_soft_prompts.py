"""Soft prompts and prefixes with a network: right in batches padded on the left, in training and in answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from probes import logits_of, random_prefix, token_batch
from test_engine_local import PROMPTS, SHORT, answers, engine_of
from tiny import build_model
from tuning import tune, write_rows

from danlu.core.config import build
from danlu.core.errors import ConfigError, ModelError
from danlu.engine.protocol import Request
from danlu.models.abilities import examine
from danlu.models.adapters import attach
from danlu.models.export import export
from danlu.models.loading import load_model, load_tokenizer
from danlu.models.prefix import PrefixModel
from danlu.models.runs import open_run, plain_model
from danlu.models.soft_prompt import EncoderShape, PromptShape, SoftPrompt
from danlu.tune import methods
from danlu.tune.batches import lay_out
from danlu.tune.config import TrainConfig
from danlu.tune.learner import Learner

pytestmark = pytest.mark.model

KINDS = ("prompt_tuning", "mlp", "lstm", "prefix_tuning")


def prompt_of(model: Any, kind: str) -> Any:
    """A prompt that changes every logit."""
    if kind == "prefix_tuning":
        return random_prefix(model, projection=True)
    encoder = None if kind == "prompt_tuning" else EncoderShape(kind, 24)  # type: ignore[arg-type]
    with torch.random.fork_rng():
        torch.manual_seed(5)
        prompt = SoftPrompt(PromptShape(5, 64), encoder)
        for weight in prompt.network.parameters():
            weight.data.mul_(2)
    return prompt


@pytest.mark.parametrize(("kind", "family"), [*((kind, "llama") for kind in KINDS), ("mlp", "glm")])
def test_batched_generation_is_one_by_one(kind: str, family: str, tiny_models: dict[str, Path]) -> None:
    folder = tiny_models[family]
    model = PrefixModel(load_model(folder), prompt_of(load_model(folder), kind)).eval()
    together = answers(engine_of(folder, model, batch_size=8))
    assert together == answers(engine_of(folder, model, batch_size=1))
    assert together != answers(engine_of(folder))
    for key, prompt in enumerate(PROMPTS[:3]):
        ids = list(prompt)
        for _ in range(6):  # without any cache or padding
            ids.append(int(logits_of(model, torch.tensor([ids]))[0, -1].argmax()))
        assert together[str(key)].tokens[:6] == tuple(ids[len(prompt) :])


def test_beams_with_a_prompt(tiny_models: dict[str, Path]) -> None:
    folder = tiny_models["qwen2"]
    model = PrefixModel(load_model(folder), prompt_of(None, "mlp")).eval()
    beams = [Request(str(key), ids, SHORT.__class__(max_new_tokens=8, num_beams=3)) for key, ids in enumerate(PROMPTS)]
    found = [
        {completion.key: completion.tokens for completion in engine_of(folder, model, batch_size=size).generate(beams)}
        for size in (8, 1)
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize("kind", ["prompt_tuning", "lstm"])
@pytest.mark.parametrize("recompute", [False, True])
def test_the_gradient_is_that_of_embeddings_before_the_text(
    kind: str, recompute: bool, tiny_models: dict[str, Path]
) -> None:
    model = load_model(tiny_models["qwen3"], dtype="float32").requires_grad_(False)
    prompt, ids = prompt_of(model, kind), token_batch(rows=2, length=7)
    embedded = model.get_input_embeddings()(ids)
    written = torch.cat([prompt().expand(2, -1, -1), embedded], dim=1)
    logits = model(inputs_embeds=written).logits[:, prompt.shape.length : -1]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
    slopes = torch.autograd.grad(expected, list(prompt.parameters()))
    learner = Learner(model, examine(model), prompt).train()
    if recompute:
        learner.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    batch = lay_out([[(row, [True] * 7)] for row in ids.tolist()])
    loss = learner.cross_entropy(batch)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)
    for ours, theirs in zip(torch.autograd.grad(loss, list(prompt.parameters())), slopes):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert not [name for name, _ in prompt.named_parameters() if "layers" in name]  # the base is no part of it


@pytest.mark.parametrize("kind", ["prompt_tuning", "mlp", "lstm"])
def test_a_prompt_is_read_back_whole(kind: str, tiny_models: dict[str, Path], tmp_path: Path) -> None:
    prompt = prompt_of(None, kind)
    prompt.save(tmp_path, base=str(tiny_models["llama"]))
    again = attach(load_model(tiny_models["llama"]), tmp_path, trainable=True).prefix
    assert again.encoder == prompt.encoder
    assert again.state_dict().keys() == prompt.state_dict().keys()
    for name, value in prompt.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    wide = build_model("llama", tmp_path / "wide", hidden_size=32, intermediate_size=48)
    with pytest.raises(ModelError, match=r"another model: its tokens have 64 numbers, this model's 32"):
        attach(load_model(wide), tmp_path)


def test_a_prompt_of_peft_goes_on_without_its_network(
    tiny_models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from peft import PromptEncoderConfig, get_peft_model

    model, ids = load_model(tiny_models["llama"]), token_batch()
    theirs = get_peft_model(
        model, PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, encoder_hidden_size=8)
    )
    expected = logits_of(theirs, ids)[:, 4:]
    theirs.save_pretrained(tmp_path / "theirs")
    opened = attach(load_model(tiny_models["llama"]), tmp_path / "theirs")
    torch.testing.assert_close(logits_of(opened, ids), expected, rtol=1e-4, atol=1e-4)
    data = write_rows(tmp_path / "rows.jsonl", 4)
    tune(
        tiny_models["llama"],
        data,
        tmp_path / "run",
        finetuning_type="p_tuning",
        adapter_name_or_path=str(tmp_path / "theirs"),
        max_steps=1,
    )
    assert "not the network that made it" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("start", ["random", "vocab", "text"])
def test_where_prompt_tuning_begins(start: str, tiny_models: dict[str, Path]) -> None:
    folder = tiny_models["llama"]
    model = load_model(folder, dtype="float32")
    options = {"prompt_tuning_init": start, "prompt_tuning_init_text": "What is a run?", "pre_seq_len": 9}
    values = {"model_name_or_path": str(folder), "finetuning_type": "prompt_tuning", **options}
    table = (
        methods.METHODS["prompt_tuning"].apply(model, build(TrainConfig, values, where="test")).prefix.table().detach()
    )
    embeddings = model.get_input_embeddings().weight.detach()
    same = [(row == embeddings).all(-1).any().item() for row in table]
    assert all(same) if start != "random" else not any(same)
    assert 0.5 < float(table.std() / embeddings.std()) < 2
    if start == "text":
        ids = load_tokenizer(folder)("What is a run?")["input_ids"]
        assert torch.equal(table, embeddings[(ids * 9)[:9]])
        del values["prompt_tuning_init_text"]
        with pytest.raises(ConfigError, match="there is none.*Write what the model is to do"):
            methods.METHODS["prompt_tuning"].apply(model, build(TrainConfig, values, where="test"))


def test_a_prompt_is_exported_beside_its_base(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    prompt_of(None, "lstm").save(tmp_path / "prompt", base=str(tiny_models["qwen3"]))
    report = export(plain_model(str(tiny_models["qwen3"]), [str(tmp_path / "prompt")]), tmp_path / "out")
    assert report.kept == str(tmp_path / "prompt")
    ids = token_batch()
    expected = logits_of(attach(load_model(tiny_models["qwen3"]), tmp_path / "prompt"), ids)
    again = attach(load_model(tmp_path / "out"), tmp_path / "out" / "adapter")
    torch.testing.assert_close(logits_of(again, ids), expected, rtol=1e-5, atol=1e-5)


def test_a_prompt_on_a_merged_adapter(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", 8)
    first = tune(tiny_models["llama"], data, tmp_path / "first", max_steps=2)
    new = {"finetuning_type": "prompt_tuning", "pre_seq_len": 4, "max_steps": 2}
    with pytest.raises(ConfigError, match=r"kind LORA.*create_new_adapter=true merges it"):
        tune(tiny_models["llama"], data, tmp_path / "second", adapter_name_or_path=str(first), **new)
    new |= {"adapter_name_or_path": str(first), "create_new_adapter": True}
    second = tune(tiny_models["llama"], data, tmp_path / "second", **new)
    opened, _ = open_run(second).load()
    beside = attach(open_run(first).load()[0].merge_and_unload(), second)
    torch.testing.assert_close(logits_of(opened, token_batch()), logits_of(beside, token_batch()), rtol=1e-3, atol=1e-3)
    with pytest.raises(ConfigError, match=r"kind PROMPT_TUNING cannot be merged.*nothing can stand on it"):
        tune(tiny_models["llama"], data, tmp_path / "third", adapter_name_or_path=str(second), create_new_adapter=True)
