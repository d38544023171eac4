"""The model card of an export: where the model comes from and how to use it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from danlu.models.zoo import packaged_models

CARD = """---
{front}---

# {name}

Exported by danlu {version}. The lineage, with digests, is in `danlu_export.json`.

| | |
|---|---|
{table}

## Use

```sh
danlu chat --model {name}
```

{use}
"""
WITH_PIPELINE = """```python
from transformers import pipeline

chat = pipeline("text-generation", model="{name}")
print(chat([{{"role": "user", "content": "Hello!"}}])[0]["generated_text"])
```"""
WITH_CODE = """The weights have the names and shapes of the model's first release, for programs that run that release's
code (`trust_remote_code=True`)."""


def model_card(lineage: Mapping[str, Any], name: str, has_template: bool) -> str:
    """README.md for a model folder, with the metadata that the hub reads.

    Args:
        lineage: what ``danlu_export.json`` says.
        name: of the model.
        has_template: whether the tokenizer has a chat template.
    """
    base = str(lineage["base"])
    metadata: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["danlu"],
    }
    packaged = packaged_models().get(base)
    if packaged is not None:
        metadata["license"] = packaged.licence.lower()
        metadata["base_model"] = packaged.source.removeprefix("https://huggingface.co/")
    elif not Path(base).is_absolute():
        metadata["base_model"] = base
    checks = lineage["checks"]
    rows = [
        ("Base model", Path(base).name if Path(base).is_absolute() else base),
        ("Method", lineage["method"] or "not recorded"),
        ("Adapters", ", ".join(Path(item["path"]).name for item in lineage["adapters"]) or "none"),
        ("Parameters", f"{lineage['parameters']:,}"),
        ("Precision", lineage["dtype"]),
        ("Chat template", "in the tokenizer" if has_template else "none"),
        ("Merged against unmerged", f"{checks['merge_difference']:.1e} standard deviations of the logits"),
        ("Reloaded against written", f"{checks['reload_difference']:.1e}"),
        ("Rounding to the written precision", f"{checks['rounding']:.1e}"),
    ]
    table = "\n".join(f"| {label} | {value} |" for label, value in rows)
    front = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    use = WITH_CODE if lineage["format"] == "original" else WITH_PIPELINE.format(name=name)
    return CARD.format(front=front, name=name, version=lineage["danlu"], table=table, use=use)
