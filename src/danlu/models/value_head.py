"""The head that turns a hidden state into one number: a reward, or the value of a state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from danlu.core.errors import RunError

FILE = "value_head.safetensors"
OLD_FILE = "value_head.bin"
NAMES = ("summary.", "v_head.summary.", "value_head.summary.", "score.")
"""What the same layer is called in files of ChatGLM-Efficient-Tuning, LLaMA-Factory, TRL and transformers."""


class ValueHead(nn.Module):
    """One linear layer in float32, (d) → 1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.summary = nn.Linear(width, 1, dtype=torch.float32)
        nn.init.normal_(self.summary.weight, std=1 / (width + 1) ** 0.5)
        nn.init.zeros_(self.summary.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Numbers (n) of hidden states (n, d), in float32."""
        with torch.autocast(hidden.device.type, enabled=False):
            result: Tensor = self.summary(hidden.float())[..., 0]
        return result

    def save(self, folder: Path, *, old_style: bool = False) -> None:
        """Write value_head.safetensors; in the old style value_head.bin as well, as ChatGLM-Efficient-Tuning did."""
        from safetensors.torch import save_file

        state = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        save_file(state, folder / FILE, metadata={"format": "pt"})
        if old_style:
            torch.save(state, folder / OLD_FILE)

    def load(self, folder: Path) -> None:
        """Read a head that any of the known tools wrote.

        Raises:
            RunError: when there is none, or it belongs to another width.
        """
        state = read_head(folder)
        if state is None:
            raise RunError(
                "there is no value head: this is no reward model",
                where=str(folder),
                hint=f"A run of stage rm leaves {FILE}.",
            )
        if state["summary.weight"].shape != self.summary.weight.shape:
            raise RunError(
                f"the value head is made for {state['summary.weight'].shape[-1]} numbers, this model has "
                f"{self.summary.in_features}",
                where=str(folder),
                hint="It was trained on another base model.",
            )
        self.load_state_dict(state)


def hidden_width(model: Any) -> int:
    """How many numbers a hidden state of a model has."""
    return int(model.config.get_text_config().hidden_size)


def read_head(folder: Path) -> dict[str, Tensor] | None:
    """The weights of a value head under the names ``summary.weight`` and ``summary.bias``; None if there is none."""
    from safetensors.torch import load_file

    found: dict[str, Any]
    if (folder / FILE).is_file():
        found = load_file(folder / FILE)
    elif (folder / OLD_FILE).is_file():
        found = torch.load(folder / OLD_FILE, map_location="cpu", weights_only=True)
    else:
        return None
    state: dict[str, Tensor] = {}
    for name, value in found.items():
        prefix = next((prefix for prefix in NAMES if name.startswith(prefix)), None)
        if prefix:
            state["summary." + name.removeprefix(prefix)] = value.float()
    if "summary.weight" not in state:
        raise RunError("the value head holds no layer that is known", where=str(folder))
    state.setdefault("summary.bias", torch.zeros(1))
    return state
