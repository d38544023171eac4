"""Bottleneck adapters: h + W₂ f(W₁ h) behind a layer's parts (Houlsby et al. 2019; Pfeiffer et al. 2021).

W₁ is (m, d), W₂ (d, m) with m much smaller than d; W₂ begins at zero, so the model begins as it was. Houlsby's
placement has one behind attention and one behind the feed-forward part of every layer, Pfeiffer's the latter only,
both before the residual sum. They sit in forward hooks: no weight of the base changes its name.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from danlu.core.errors import ModelError
from danlu.core.files import replacing, write_json
from danlu.models.layout import decoder_layers
from danlu.models.prefix import TABLE_FILE, read_tensors, write_tensors
from danlu.models.sources import read_folder_json

KIND = "DANLU_BOTTLENECK"
NAME = "danlu_bottlenecks"
"""Where the adapters live in a model."""

Placement = Literal["houlsby", "pfeiffer"]
PARTS: dict[str, tuple[str, ...]] = {"houlsby": ("attention", "mlp"), "pfeiffer": ("mlp",)}
ACTIVATIONS = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu, "tanh": torch.tanh}


@dataclass(frozen=True, slots=True)
class BottleneckShape:
    """The form of the adapters of one model, as ``adapter_config.json`` has it."""

    placement: Placement
    length: int
    activation: str
    layers: int
    width: int


class Bottleneck(nn.Module):
    """One adapter: (…, width) → (…, width), the identity at first."""

    def __init__(self, shape: BottleneckShape, dropout: float) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(shape.width, shape.length), nn.Linear(shape.length, shape.width)
        self.dropout = nn.Dropout(dropout)
        self.activation = ACTIVATIONS[shape.activation]
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """The hidden states with what the adapter adds, in their own precision."""
        inner = self.dropout(self.activation(self.down(hidden.to(self.down.weight.dtype))))
        return hidden + self.up(inner).to(hidden.dtype)


class Bottlenecks(nn.Module):
    """All adapters of one model.

    Args:
        shape: their form.
        dropout: on the bottleneck while training.
    """

    def __init__(self, shape: BottleneckShape, dropout: float = 0.0) -> None:
        super().__init__()
        self.shape, self.enabled = shape, True
        self.layers = nn.ModuleList(
            nn.ModuleDict({part: Bottleneck(shape, dropout) for part in PARTS[shape.placement]})
            for _ in range(shape.layers)
        )

    def put_on(self, model: Any) -> Bottlenecks:
        """Hook the adapters into a model, which then holds them; the adapters.

        Raises:
            ModelError: when the model has some already, or its layers are not built of attention and feed-forward.
        """
        if bottlenecks_of(model) is not None:
            raise ModelError("the model has bottleneck adapters already", hint="One set at a time can be attached.")
        for layer, adapters in zip(decoder_layers(model), self.layers, strict=True):
            parts = sublayers(layer)
            for part, adapter in adapters.items():
                parts[part].register_forward_hook(_Hook(self, adapter))
        model.add_module(NAME, self.to(model.device))
        return self

    @contextmanager
    def off(self) -> Iterator[None]:
        """The model without its adapters."""
        self.enabled = False
        try:
            yield
        finally:
            self.enabled = True

    def save(self, folder: Path, *, base: str) -> None:
        """Write ``adapter_config.json`` and ``adapter_model.safetensors``.

        Args:
            folder: made if needed.
            base: name of the model that the adapters belong to.
        """
        folder.mkdir(parents=True, exist_ok=True)
        told = {"peft_type": KIND, "task_type": "CAUSAL_LM", "base_model_name_or_path": base, **asdict(self.shape)}
        write_json(folder / "adapter_config.json", told, indent=2)
        state = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        with replacing(folder / TABLE_FILE) as temporary:
            write_tensors(state, temporary)

    @classmethod
    def load(cls, folder: Path, model: Any, *, dropout: float = 0.0) -> Bottlenecks:
        """Read adapters saved by :meth:`save` for a model.

        Raises:
            ModelError: when they are damaged or belong to a model of another shape.
        """
        told = read_folder_json(folder / "adapter_config.json")
        try:
            shape = BottleneckShape(**{name: told[name] for name in BottleneckShape.__dataclass_fields__})
            adapters = cls(shape, dropout)
            adapters.load_state_dict(read_tensors(folder / TABLE_FILE))
        except (KeyError, RuntimeError) as error:
            raise ModelError(
                f"the bottleneck adapters are damaged ({str(error).splitlines()[0][:200]})", where=str(folder)
            ) from error
        ours = (len(decoder_layers(model)), model.config.get_text_config().hidden_size)
        if ours != (shape.layers, shape.width):
            raise ModelError(
                f"the adapters do not fit {model.name_or_path or 'this model'}: they are for {shape.layers} layers of "
                f"width {shape.width}, it has {ours[0]} of {ours[1]}",
                where=str(folder),
                hint=f"They were trained on {told.get('base_model_name_or_path')}.",
            )
        return adapters


class _Hook:
    """Passes what a part of a layer returns through its adapter."""

    def __init__(self, owner: Bottlenecks, adapter: nn.Module) -> None:
        self.owner, self.adapter = owner, adapter

    def __call__(self, module: nn.Module, arguments: Any, output: Any) -> Any:
        if not self.owner.enabled:
            return output
        if isinstance(output, tuple):
            return (self.adapter(output[0]), *output[1:])
        return self.adapter(output)


def bottlenecks_of(model: Any) -> Bottlenecks | None:
    """The adapters that a model holds, or None."""
    found = getattr(model, NAME, None)
    return found if isinstance(found, Bottlenecks) else None


def sublayers(layer: nn.Module) -> dict[str, nn.Module]:
    """Attention and feed-forward part of a decoder layer, found by what they are.

    Attention is the part that knows the number of its layer, for its cache; the feed-forward part is the other one
    that holds matrices.

    Raises:
        ModelError: when there is not exactly one of each.
    """
    children = [child for child in layer.children() if any(weight.ndim > 1 for weight in child.parameters())]
    attention = [child for child in children if isinstance(getattr(child, "layer_idx", None), int)]
    others = [child for child in children if child not in attention]
    if len(attention) != 1 or len(others) != 1:
        raise ModelError(
            f"bottleneck adapters need layers of one attention and one feed-forward part; {type(layer).__name__} has "
            f"{len(attention)} and {len(others)}",
            hint="Use another method, for instance finetuning_type=lora.",
        )
    return {"attention": attention[0], "mlp": others[0]}
