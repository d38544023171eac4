"""Adapters of ChatGLM's scripts as folders of today, and prefixes of today as the scripts read them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from danlu import __version__
from danlu.core.errors import UsageError
from danlu.core.files import replacing, write_json
from danlu.models.adapters import PROMPTS, AdapterInfo, load_prefix, read_adapter
from danlu.models.chatglm.convert import is_original
from danlu.models.chatglm.layout import glm_config, read_layout
from danlu.models.chatglm.lora import is_old, read_lora, translate
from danlu.models.chatglm.prefix import official_state
from danlu.models.folders import whole_folder
from danlu.models.hub import fetch
from danlu.models.loading import check_architecture, lasting_name, model_folder
from danlu.models.prefix import PrefixEncoder
from danlu.models.runs import open_run
from danlu.models.sources import check_folder, read_folder_json, resolve_model

MARKER = "danlu_adapter.json"
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


def native_config(model: str) -> Any:
    """The configuration of a model as it is computed here; weights are neither read nor converted.

    Raises:
        ModelError: when there is no such model.
    """
    from transformers import AutoConfig

    source = resolve_model(model)
    if source.kind in ("folder", "hub"):
        folder = source.path or fetch(source.name)
        check_folder(folder)
        if is_original(folder):
            layout = read_layout(folder, read_folder_json(folder / "config.json"))
            return AutoConfig.for_model(**glm_config(layout, "float32"))
    folder = model_folder(model)
    check_architecture(folder)
    return AutoConfig.from_pretrained(folder)


def convert_adapter(source: str | Path, target: Path, *, model: str | None = None, original: bool = False) -> Path:
    """Write an adapter of ChatGLM's scripts as one of today, or a prefix of today as the scripts read it.

    Args:
        source: a checkpoint of the P-Tuning scripts, a LoRA adapter on fused layers, or a run with a prefix.
        target: folder to write; a former conversion there is replaced, anything else is refused.
        model: the base model; what the adapter says by default.
        original: write the scripts' own form.

    Returns:
        The folder.

    Raises:
        UsageError: when no base is known, or there is nothing to convert.
        ModelError: when the adapter does not belong to the base.
        RunError: when the folder holds something else, or cannot be written.
    """
    info = read_adapter(source)
    base = model or _base_of(info)
    config = native_config(base)
    with whole_folder(target, marker=MARKER) as folder:
        if original:
            write_official(_prefix(info, config), config, folder, base=lasting_name(base))
        elif info.official:
            load_prefix(info, config).save(folder, base=lasting_name(base))
        else:
            _translate(info, config, folder)
        told = {"danlu": __version__, "source": str(info.path.resolve()), "base": lasting_name(base)}
        write_json(folder / MARKER, told | {"format": "original" if original else "peft"})
    return target


def _base_of(info: AdapterInfo) -> str:
    if (info.path / "manifest.json").is_file():
        return open_run(info.path).model
    if info.base is None:
        raise UsageError(
            "the adapter does not say which model it belongs to",
            where=str(info.path),
            hint="Name the ChatGLM model with --model.",
        )
    return info.base


def _prefix(info: AdapterInfo, config: Any) -> PrefixEncoder:
    prefix = load_prefix(info, config) if info.kind in PROMPTS else None
    if not isinstance(prefix, PrefixEncoder):
        raise UsageError(
            f"the official scripts know prefixes only, and this is an adapter of the kind {info.kind}",
            where=str(info.path),
            hint="danlu export --format original writes a model with a merged LoRA adapter.",
        )
    return prefix


def _translate(info: AdapterInfo, config: Any, folder: Path) -> None:
    tensors = read_lora(info.path) if info.kind == "LORA" and config.model_type == "glm" else {}
    if not is_old(tensors):
        raise UsageError(
            "there is nothing to convert: the adapter is in a form of today",
            where=str(info.path),
            hint="Use it as it is; --format original writes a prefix for the official scripts.",
        )
    translate(info.path, tensors, config, folder)
    for file in info.path.glob("value_head.*"):  # of a reward model
        shutil.copyfile(file, folder / file.name)
