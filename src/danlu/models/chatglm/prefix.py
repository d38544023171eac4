"""Prefixes that the official P-Tuning scripts of ChatGLM saved, read into danlu's form and written back.

There the trained keys stand in the cache without rotation and the text begins at position 0; here, as in PEFT, the
text begins behind the prefix, at position N. Attention sees differences of positions only, so keys that are turned
by the angle of N positions give the same logits. The turn is linear and acts on the output: on a table it acts
directly, on a network it goes into weight and bias of the last layer, so the network can be trained further.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from torch import Tensor

from danlu.core.console import note
from danlu.core.errors import ModelError
from danlu.core.files import replacing
from danlu.models.chatglm.convert import PREFIX as START
from danlu.models.chatglm.turning import turn, turn_back
from danlu.models.prefix import PrefixEncoder, PrefixShape, other_model
from danlu.models.shards import PATTERNS, Shards

OUTPUT = "network.2"
NAMES = {
    "embedding.weight": "embedding.weight",
    "trans.0.weight": "network.0.weight",
    "trans.0.bias": "network.0.bias",
    "trans.2.weight": f"{OUTPUT}.weight",
    "trans.2.bias": f"{OUTPUT}.bias",
}
"""The official names, below :data:`START`, and ours."""

OFFICIAL_FILE = "pytorch_model.bin"
README = """# A prefix for ChatGLM's own code

{length} virtual tokens, for {base}. In Python, with the code and the weights of the model's release:

```python
import torch
from transformers import AutoConfig, AutoModel

config = AutoConfig.from_pretrained(BASE, trust_remote_code=True, pre_seq_len={length}, prefix_projection={network})
model = AutoModel.from_pretrained(BASE, config=config, trust_remote_code=True)
saved = torch.load("pytorch_model.bin")
start = "transformer.prefix_encoder."
model.transformer.prefix_encoder.load_state_dict({{name.removeprefix(start): saved[name] for name in saved}})
```

danlu reads this folder as an adapter: `danlu chat --model BASE --adapter FOLDER`.
"""


@dataclass(frozen=True, slots=True)
class OfficialPrefix:
    """The weights of a prefix as the official scripts saved them.

    Attributes:
        tensors: by their names below ``transformer.prefix_encoder.``, float32.
        others: how many other tensors lie in the same files: some scripts saved the whole model.
    """

    tensors: dict[str, Tensor]
    others: int


def has_prefix(folder: Path) -> bool:
    """Whether a folder holds an official prefix; only names of tensors are read.

    Raises:
        ModelError: when its weight files are damaged.
    """
    if not any(any(folder.glob(pattern)) for pattern in PATTERNS.values()):
        return False
    return f"{START}embedding.weight" in Shards(folder).stored


def is_prefix_alone(folder: Path) -> bool:
    """Whether a folder holds an official prefix and no other weights. Several files are a whole model, unopened."""
    files = [file for pattern in PATTERNS.values() for file in folder.glob(pattern)]
    return len(files) == 1 and all(name.startswith(START) for name in Shards(folder).stored)


def count_prefix(folder: Path) -> int:
    """How many numbers an official prefix and its network have; 0 when there is none."""
    if not has_prefix(folder):
        return 0
    return sum(prod(part.shape) for name, part in Shards(folder).stored.items() if name.startswith(START))


def read_prefix(folder: Path) -> OfficialPrefix:
    """Read an official prefix.

    Raises:
        ModelError: when there is none, or parts of it are missing or unknown.
    """
    shards = Shards(folder)
    wanted = [name for name in shards.stored if name.startswith(START)]
    found = {name.removeprefix(START): shards.read(name).float().clone() for name in wanted}
    if found.keys() not in ({"embedding.weight"}, NAMES.keys()):
        listed = ", ".join(sorted(found)) or "nothing"
        raise ModelError(
            f"this is no whole prefix of ChatGLM: below {START} there is {listed}",
            where=str(folder),
            hint=f"Expected embedding.weight alone, or {', '.join(NAMES)}.",
        )
    return OfficialPrefix(found, len(shards.stored) - len(wanted))


def import_prefix(folder: Path, config: Any, *, dropout: float = 0.0) -> PrefixEncoder:
    """An official prefix as danlu's own, for a model with ``config``: the same logits, and it can be trained further.

    Args:
        folder: a checkpoint of the official scripts.
        config: of the native model that it is put on.
        dropout: on the table, while it is trained further.

    Raises:
        ModelError: when it is damaged, or the model has another shape or is no ChatGLM.
    """
    official = read_prefix(folder)
    if official.others:
        note(f"{folder} holds {official.others} tensors besides the prefix; only the prefix is taken from it.")
    length = int(official.tensors["embedding.weight"].shape[0])
    shape = PrefixShape.of(config, length)
    state = {NAMES[name]: value for name, value in official.tensors.items()}
    last = state.get(f"{OUTPUT}.bias", state["embedding.weight"])
    if last.shape[-1] != shape.width:
        raise other_model(int(last.shape[-1]), shape, folder)
    try:
        return PrefixEncoder.of_state(shape, turn(state, shape, config), dropout=dropout)
    except RuntimeError as error:  # shapes that do not go together
        raise ModelError(f"the prefix is damaged ({str(error).splitlines()[-1].strip()})", where=str(folder)) from error


def official_state(prefix: PrefixEncoder, config: Any, *, hidden_size: int) -> dict[str, Tensor]:
    """A prefix under the official names, its keys turned back; float32, on the CPU.

    A network stays one where its widths are those of the official code (which has no option for them); any other
    is evaluated, and its table is written.

    Args:
        prefix: of a native ChatGLM model.
        config: the model's.
        hidden_size: width of the hidden layer in the official code: the model's own.

    Raises:
        ModelError: when the model is no ChatGLM.
    """
    state = {name: value.detach().float().cpu() for name, value in prefix.state_dict().items()}
    if prefix.projection and not _is_official(prefix, config, hidden_size):
        state = {"embedding.weight": prefix.table().detach().float().cpu()}
    turned = turn_back(state, prefix.shape, config)
    return {START + name: turned[ours].contiguous().clone() for name, ours in NAMES.items() if ours in turned}


def _is_official(prefix: PrefixEncoder, config: Any, hidden_size: int) -> bool:
    """Whether the official code would build a network of these widths."""
    embedding = hidden_size if config.model_type == "chatglm" else prefix.shape.width
    return (prefix.embedding_size, prefix.hidden_size) == (embedding, hidden_size)


def write_official(prefix: Any, config: Any, folder: Path, *, base: str) -> None:
    """Write a prefix as the official P-Tuning scripts read it: ``pytorch_model.bin``, and how to load it.

    Args:
        prefix: a :class:`danlu.models.prefix.PrefixEncoder`.
        config: of the native model that it belongs to.
        folder: made if needed.
        base: name of that model.

    Raises:
        ModelError: when the model is no ChatGLM.
        RunError: when it cannot be written.
    """
    import torch

    state = official_state(prefix, config, hidden_size=config.hidden_size)
    with replacing(folder / OFFICIAL_FILE) as temporary:
        torch.save(state, temporary)
    text = README.format(length=prefix.shape.length, base=base, network=len(state) > 1)
    (folder / "README.md").write_text(text, encoding="utf-8")
