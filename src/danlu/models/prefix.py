"""P-Tuning v2: trained keys and values in front of every layer (Liu et al., 2021, arXiv:2110.07602).

The prefix takes positions 0 … N-1 and the text begins at position N, as PEFT's prefix tuning has it, so the
final table is an ordinary PEFT adapter. What PEFT does not keep, the network that makes the table, is saved
beside it, so training can go on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from danlu.core.errors import ModelError
from danlu.core.files import replacing
from danlu.models.zoo import family_of_type

TABLE_FILE = "adapter_model.safetensors"
NETWORK_FILE = "prefix_encoder.safetensors"
TABLE_KEY = "prompt_embeddings"


@dataclass(frozen=True, slots=True)
class PrefixShape:
    """The size of a prefix: ``length`` virtual tokens for each of ``layers``, ``kv_heads``, ``head_dim``."""

    length: int
    layers: int
    kv_heads: int
    head_dim: int

    @classmethod
    def of(cls, config: Any, length: int) -> PrefixShape:
        """The shape of a prefix of ``length`` tokens for a model with this configuration."""
        text = config.get_text_config()
        heads = text.num_attention_heads
        return cls(
            length=length,
            layers=text.num_hidden_layers,
            kv_heads=getattr(text, "num_key_value_heads", None) or heads,
            head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        )

    @property
    def token_dim(self) -> int:
        """Numbers in one key (or value) of one layer: all heads."""
        return self.kv_heads * self.head_dim

    @property
    def width(self) -> int:
        """Numbers of one virtual token: keys and values of all layers."""
        return self.layers * 2 * self.token_dim


def check_prefix(config: Any) -> None:
    """Refuse a model that has no place for keys and values in front of the text.

    Raises:
        ModelError: with the reason.
    """
    text, family = config.get_text_config(), family_of_type(str(config.model_type))
    if not getattr(text, "num_attention_heads", None):
        what = "has no attention"
    elif getattr(text, "kv_lora_rank", None):
        what = "makes keys and values of different widths from one narrow matrix (multi-head latent attention)"
    elif family is not None and not family.packed:
        what = "cannot compute sequences side by side, which they are trained with"
    else:
        return
    raise ModelError(
        f"a {config.model_type} model has no place for trained keys and values: it {what}",
        hint="Use another method, for instance finetuning_type=lora.",
    )


class PrefixEncoder(nn.Module):
    """Makes the prefix: a table, or an embedding and a two-layer tanh network.

    Args:
        shape: the size of the prefix.
        projection: make the table with the network (more weights, steadier training).
        hidden_size: width of the network's hidden layer; ``shape.token_dim`` by default.
        embedding_size: width of the network's input; ``hidden_size`` by default.
        dropout: dropout on the table while training.
        init_std: standard deviation of a fresh table. Small: the model begins close to what it was.
    """

    def __init__(
        self,
        shape: PrefixShape,
        *,
        projection: bool = False,
        hidden_size: int | None = None,
        embedding_size: int | None = None,
        dropout: float = 0.0,
        init_std: float = 0.02,
    ) -> None:
        super().__init__()
        self.shape, self.projection = shape, projection
        self.hidden_size = hidden_size or shape.token_dim
        self.dropout = nn.Dropout(dropout)
        self.embedding_size = (embedding_size or self.hidden_size) if projection else shape.width
        self.embedding = nn.Embedding(shape.length, self.embedding_size)
        self.network: nn.Module = nn.Identity()
        if projection:
            self.network = nn.Sequential(
                nn.Linear(self.embedding_size, self.hidden_size),
                nn.Tanh(),
                nn.Linear(self.hidden_size, shape.width),
            )
        else:
            nn.init.normal_(self.embedding.weight, std=init_std)

    def table(self) -> Tensor:
        """The prefix as a table (N, layers · 2 · kv_heads · head_dim), before dropout."""
        table: Tensor = self.network(self.embedding.weight)
        return table

    def forward(self) -> Tensor:
        """Keys and values: (layers, 2, kv_heads, N, head_dim); index 0 of the second axis is the key."""
        shape = self.shape
        table = self.dropout(self.table())
        split = table.view(shape.length, shape.layers, 2, shape.kv_heads, shape.head_dim)
        return split.permute(1, 2, 3, 0, 4)

    def keys_and_values(self, model: Any) -> Tensor:
        """As :meth:`forward`; the model does not matter."""
        made: Tensor = self()
        return made

    def past_key_values(self, model: Any, batch: int, dtype: torch.dtype | None = None) -> Any:
        """A ``DynamicCache`` that holds the prefix for ``batch`` sequences."""
        return filled_cache(self.keys_and_values(model), batch, dtype or model.dtype)

    def save(self, folder: Path, *, base: str) -> None:
        """Write ``adapter_config.json`` and ``adapter_model.safetensors`` as PEFT does, and the network.

        Args:
            folder: made if needed.
            base: name of the model that the prefix belongs to.

        Raises:
            RunError: when it cannot be written.
        """
        from peft import PrefixTuningConfig

        config = PrefixTuningConfig(
            task_type="CAUSAL_LM",
            inference_mode=True,
            base_model_name_or_path=base,
            num_virtual_tokens=self.shape.length,
            num_layers=self.shape.layers,
            num_attention_heads=self.shape.kv_heads,
            token_dim=self.shape.token_dim,
            num_transformer_submodules=1,
            encoder_hidden_size=self.hidden_size,
        )
        save_table(folder, config, self.table(), self.state_dict() if self.projection else None)

    @classmethod
    def load(cls, folder: Path, config: Any, *, dropout: float = 0.0) -> PrefixEncoder:
        """Read a prefix saved by :meth:`save`, or by PEFT, for a model with ``config``.

        The network is restored where it was saved; an adapter of PEFT becomes a plain table.

        Raises:
            ModelError: when it is damaged or belongs to a model of another shape.
        """
        table = read_tensors(folder / TABLE_FILE).get(TABLE_KEY)
        if table is None or table.ndim != 2:
            raise ModelError("this is not a prefix: there is no prompt_embeddings", where=str(folder / TABLE_FILE))
        shape = PrefixShape.of(config, int(table.shape[0]))
        if table.shape[1] != shape.width:
            raise other_model(int(table.shape[1]), shape, folder)
        if (folder / NETWORK_FILE).is_file():
            return cls.of_state(shape, read_tensors(folder / NETWORK_FILE), dropout=dropout)
        return cls.of_state(shape, {"embedding.weight": table.float()}, dropout=dropout)

    @classmethod
    def of_state(cls, shape: PrefixShape, state: dict[str, Tensor], *, dropout: float = 0.0) -> PrefixEncoder:
        """A prefix with these weights: a table alone, or an embedding and a network of any widths."""
        if "network.0.weight" not in state:
            encoder = cls(shape, dropout=dropout)
        else:
            hidden, embedding = state["network.0.weight"].shape
            encoder = cls(shape, projection=True, hidden_size=hidden, embedding_size=embedding, dropout=dropout)
        encoder.load_state_dict(state)
        return encoder


def other_model(width: int, shape: PrefixShape, where: Path) -> ModelError:
    """The error for a prefix with ``width`` numbers a token where the model takes ``shape.width``."""
    return ModelError(
        f"the prefix belongs to another model: it has {width} numbers a token, this model takes {shape.width}",
        where=str(where),
    )


def filled_cache(keys_and_values: Tensor, batch: int, dtype: torch.dtype) -> Any:
    """A ``DynamicCache`` with the same keys and values (layers, 2, kv_heads, N, head_dim) for every sequence."""
    from transformers import DynamicCache

    cache = DynamicCache()
    for layer, pair in enumerate(keys_and_values.to(dtype)):
        keys, values = (part.expand(batch, -1, -1, -1).contiguous() for part in pair)
        cache.update(keys, values, layer)
    return cache


def save_table(folder: Path, config: Any, table: Tensor, network: Mapping[str, Tensor] | None) -> None:
    """Write a trained table as PEFT does, and the weights of the network that makes it.

    Args:
        folder: made if needed.
        config: PEFT's description of it.
        table: a row for each virtual token.
        network: weights by name; None where the table is all there is.

    Raises:
        RunError: when it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    with replacing(folder / TABLE_FILE) as temporary:
        write_tensors({TABLE_KEY: table.detach().float().cpu().contiguous()}, temporary)
    if network is not None:
        state = {name: value.detach().cpu().contiguous() for name, value in network.items()}
        with replacing(folder / NETWORK_FILE) as temporary:
            write_tensors(state, temporary)


def write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file with the usual permissions."""
    from safetensors.torch import save_file

    mode = path.stat().st_mode
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(mode)  # safetensors makes the file readable for its owner only


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        ModelError: when it cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise ModelError(f"it cannot be read ({error})", where=str(path)) from error


class PrefixModel(nn.Module):
    """A causal language model with a prefix in front of every layer.

    Attributes:
        base: the model; its weights are never changed.
        prefix: the trained part: a :class:`PrefixEncoder`, or whatever has its ``shape.length``, ``keys_and_values``,
            ``past_key_values``, ``save`` and ``load``, as :class:`danlu.models.soft_prompt.SoftPrompt` has.
    """

    def __init__(self, base: Any, prefix: Any) -> None:
        super().__init__()
        self.base, self.prefix = base, prefix
        self.config, self.generation_config = base.config, base.generation_config
        self.name_or_path: str = base.name_or_path

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.base.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the base model."""
        return self.base.dtype

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        **options: Any,
    ) -> Any:
        """Logits of whole sequences; arguments and result as the base model's, shapes (batch, length).

        Args:
            input_ids: the text, padded on either side.
            attention_mask: 1 for text, 0 for padding.
            position_ids: positions within the text, from 0; counted from the mask by default.
            options: passed on.
        """
        batch = input_ids.shape[0]
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if position_ids is None:
            position_ids = (mask.cumsum(-1) - 1).clamp(min=0)
        size = self.prefix.shape.length
        return self.base(
            input_ids=input_ids,
            attention_mask=torch.cat([mask.new_ones(batch, size), mask], dim=1),
            position_ids=position_ids + size,
            past_key_values=self.prefix.past_key_values(self.base, batch, self.dtype),
            **options,
        )


def split_prefix(model: Any) -> tuple[Any, Any]:
    """The model that computes and the prefix to start its cache with, if it has one (else None)."""
    return (model.base, model.prefix) if isinstance(model, PrefixModel) else (model, None)
