"""A tiny random model of each family of the zoo, from the numbers in its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny import build_tokenizer

from danlu.models.zoo import ModelFamily

NUMBERS = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.15,
    "tie_word_embeddings": False,
}
"""What a family's ``tiny`` block adds to or changes; names that its configuration does not know are left out."""


def build(family: ModelFamily, folder: Path) -> Path:
    """Write the family's tiny model (float32) to ``folder`` and return the folder."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    assert family.tiny is not None
    tokenizer = build_tokenizer()
    kind = family.tiny["model_type"]
    changed = {key: value for key, value in family.tiny.items() if key != "model_type"}
    known = set(CONFIG_MAPPING[kind]().to_dict()) | set(CONFIG_MAPPING[kind].attribute_map)
    numbers = {key: value for key, value in NUMBERS.items() if key in known}
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("eos", "bos", "pad")}
    config: Any = AutoConfig.for_model(kind, **{**numbers, **ids, **changed})
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and ("norm" in name or name.endswith("bias")):
                torch.nn.init.normal_(
                    parameter, mean=float(parameter.detach().mean()), std=0.1
                )  # ones and zeros hide mistakes
            elif name.endswith("sinks"):
                torch.nn.init.normal_(parameter, mean=2.0)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
