"""Soft prompts: trained embeddings in front of the text (Lester et al. 2021; Liu et al. 2021, P-Tuning).

The prompt takes positions 0 … N-1. What comes later never changes what the model computes there, so the prompt
is the same as a prefix of keys and values that the model makes of it once. Everything that works with a prefix
(packed batches, padding on the left, beams, a filled cache) works with a prompt, and a batch pays for N tokens once
instead of once a sequence.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from danlu.core.console import warn
from danlu.core.errors import ModelError
from danlu.models.prefix import NETWORK_FILE, TABLE_FILE, TABLE_KEY, filled_cache, read_tensors, save_table
from danlu.models.sources import read_folder_json

Network = Literal["mlp", "lstm"]


@dataclass(frozen=True, slots=True)
class PromptShape:
    """The size of a prompt: ``length`` virtual tokens of ``width`` numbers."""

    length: int
    width: int


@dataclass(frozen=True, slots=True)
class EncoderShape:
    """The network of P-Tuning: three layers with ReLU, or a bidirectional LSTM with two layers behind it."""

    kind: Network
    hidden: int
    layers: int = 2
    dropout: float = 0.0


class SoftPrompt(nn.Module):
    """Makes the embeddings of a prompt: a table, or a table and a network.

    Args:
        shape: the size of the prompt.
        encoder: the network, or None for the table alone.
        dropout: dropout on the embeddings while training.
    """

    def __init__(self, shape: PromptShape, encoder: EncoderShape | None = None, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.shape, self.encoder = shape, encoder
        self.embedding = nn.Embedding(shape.length, shape.width)
        self.dropout = nn.Dropout(dropout)
        self.lstm: nn.Module | None = None
        self.network: nn.Module = nn.Identity()
        if encoder is None:
            return
        hidden = encoder.hidden
        sizes: tuple[int, ...] = (shape.width, hidden, hidden, shape.width)
        if encoder.kind == "lstm":
            self.lstm = nn.LSTM(
                shape.width,
                hidden,
                num_layers=encoder.layers,
                dropout=encoder.dropout if encoder.layers > 1 else 0.0,
                bidirectional=True,
                batch_first=True,
            )
            sizes = (2 * hidden, 2 * hidden, shape.width)
        steps: list[nn.Module] = []
        for before, after in zip(sizes[:-1], sizes[1:]):
            steps += [nn.Linear(before, after), nn.ReLU()]
        self.network = nn.Sequential(*steps[:-1])

    def table(self) -> Tensor:
        """The embeddings (N, d), before dropout."""
        rows: Tensor = self.embedding.weight
        if self.lstm is not None:
            rows = self.lstm(rows.unsqueeze(0))[0][0]
        made: Tensor = self.network(rows)
        return made

    def forward(self) -> Tensor:
        """The embeddings (N, d)."""
        dropped: Tensor = self.dropout(self.table())
        return dropped

    def keys_and_values(self, model: Any) -> Tensor:
        """What ``model`` computes at the prompt: (layers, 2, kv_heads, N, head_dim), with gradients."""
        from transformers import DynamicCache

        cache = DynamicCache()
        embeddings = self().to(model.get_input_embeddings().weight.dtype).unsqueeze(0)
        with all_kept(model):
            model.base_model(inputs_embeds=embeddings, past_key_values=cache, use_cache=True)
        return torch.stack([torch.stack((layer.keys[0], layer.values[0])) for layer in cache.layers])

    def past_key_values(self, model: Any, batch: int, dtype: torch.dtype | None = None) -> Any:
        """A ``DynamicCache`` that holds the prompt for ``batch`` sequences."""
        return filled_cache(self.keys_and_values(model), batch, dtype or model.dtype)

    def save(self, folder: Path, *, base: str) -> None:
        """Write ``adapter_config.json`` and ``adapter_model.safetensors`` as PEFT does, and the network.

        Args:
            folder: made if needed.
            base: name of the model that the prompt belongs to.

        Raises:
            RunError: when it cannot be written.
        """
        from peft import PromptEncoderConfig, PromptTuningConfig

        values: dict[str, Any] = {
            "task_type": "CAUSAL_LM",
            "inference_mode": True,
            "base_model_name_or_path": base,
            "num_virtual_tokens": self.shape.length,
            "token_dim": self.shape.width,
            "num_transformer_submodules": 1,
        }
        if self.encoder is None:
            config: Any = PromptTuningConfig(**values)
        else:
            config = PromptEncoderConfig(
                **values,
                encoder_reparameterization_type=self.encoder.kind.upper(),
                encoder_hidden_size=self.encoder.hidden,
                encoder_num_layers=self.encoder.layers,
                encoder_dropout=self.encoder.dropout,
            )
        with torch.no_grad():
            save_table(folder, config, self.table(), None if self.encoder is None else self.state_dict())

    @classmethod
    def load(cls, folder: Path, config: Any, *, dropout: float = 0.0) -> SoftPrompt:
        """Read a prompt saved by :meth:`save`, or by PEFT, for a model with ``config``.

        The network is restored where it was saved; PEFT does not save it, so its P-Tuning becomes a plain table.

        Raises:
            ModelError: when it is damaged or belongs to a model of another width.
        """
        table = read_tensors(folder / TABLE_FILE).get(TABLE_KEY)
        if table is None or table.ndim != 2:
            raise ModelError("this is not a prompt: there is no prompt_embeddings", where=str(folder / TABLE_FILE))
        width = config.get_text_config().hidden_size
        if table.shape[1] != width:
            raise ModelError(
                f"the prompt belongs to another model: its tokens have {table.shape[1]} numbers, this model's {width}",
                where=str(folder),
            )
        shape = PromptShape(*map(int, table.shape))
        if not (folder / NETWORK_FILE).is_file():
            prompt = cls(shape, dropout=dropout)
            prompt.load_state_dict({"embedding.weight": table.float()})
            return prompt
        told = read_folder_json(folder / "adapter_config.json")
        kind: Network = "lstm" if told["encoder_reparameterization_type"] == "LSTM" else "mlp"
        encoder = EncoderShape(
            kind, told["encoder_hidden_size"], told["encoder_num_layers"], told.get("encoder_dropout") or 0.0
        )
        prompt = cls(shape, encoder, dropout=dropout)
        prompt.load_state_dict(read_tensors(folder / NETWORK_FILE))
        return prompt


def warn_of_lost_network(prompt: SoftPrompt, folder: Path) -> None:
    """Say that P-Tuning goes on without its network, because the folder does not hold it."""
    if prompt.encoder is None and read_folder_json(folder / "adapter_config.json")["peft_type"] == "P_TUNING":
        warn(f"{folder} holds the prompt but not the network that made it; the prompt itself is trained further")


@contextmanager
def all_kept(model: Any) -> Iterator[None]:
    """No layer recomputes its activations, which would also throw its keys and values away."""
    recomputing = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    for module in recomputing:
        module.gradient_checkpointing = False
    try:
        yield
    finally:
        for module in recomputing:
            module.gradient_checkpointing = True
