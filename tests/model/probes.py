"""Small helpers of the model tests: fixed token batches, logits, trained-looking adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def token_batch(rows: int = 3, length: int = 11, *, vocabulary: int = 400, seed: int = 3) -> Any:
    """A fixed batch of ordinary token ids, shape (rows, length)."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    return torch.randint(10, vocabulary, (rows, length), generator=generator)


def logits_of(model: Any, ids: Any, **options: Any) -> Any:
    """Logits (rows, length, vocabulary) in float32, without gradients."""
    import torch

    with torch.no_grad():
        return model.eval()(input_ids=ids, **options).logits.float()


def random_adapter(model: Any, folder: Path, *, seed: int = 11, **options: Any) -> Any:
    """Put a LoRA adapter with random (not zero) weights on a model and save it; the attached model."""
    import torch
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        **{"r": 4, "lora_alpha": 16, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **options}
    )
    attached = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in attached.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    attached.save_pretrained(folder)
    return attached.eval()


def random_prefix(model: Any, *, length: int = 5, projection: bool = False, seed: int = 4) -> Any:
    """A prefix large enough to change every logit."""
    import torch

    from danlu.models.prefix import PrefixEncoder, PrefixShape

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        prefix = PrefixEncoder(
            PrefixShape.of(model.config, length), projection=projection, hidden_size=24, init_std=0.7
        )
        if projection:
            torch.nn.init.normal_(prefix.network[2].weight, std=0.5)
    return prefix
