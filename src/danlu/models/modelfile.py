"""Modelfiles: what Ollama needs to serve a GGUF file as it was trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from danlu.core.console import warn
from danlu.data.templates import Template
from danlu.models.go_template import NotExpressible, go_template, surroundings

FENCE = '"""'


@dataclass(frozen=True, slots=True)
class Serving:
    """How a model is meant to be asked.

    Attributes:
        system: the system prompt of conversations that bring none.
        variables: passed to the chat template, for instance ``enable_thinking``.
        parameters: of generation, under Ollama's names (``temperature``, ``num_predict``, …).
    """

    system: str | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    parameters: Mapping[str, float] = field(default_factory=dict)


def modelfile(file: str, template: Template | None, serving: Serving, *, writes_bos: bool) -> str:
    """The text of a Modelfile.

    Args:
        file: name of the GGUF file beside it.
        template: the one that was trained with; None for a model of plain text.
        serving: system prompt and options of generation.
        writes_bos: whether readers of the GGUF file write BOS before every text; then it is no part of the template.
    """
    lines = [f"# ollama create {file.removesuffix('.gguf')} -f Modelfile", f"FROM ./{file}", ""]
    if template is not None:
        lines += _template(template, writes_bos)
    if serving.system:
        lines += [f"SYSTEM {_quoted(serving.system)}", ""]
    if template is not None:
        lines += [f"PARAMETER stop {_quoted(text)}" for text in stop_texts(template)]
    lines += [f"PARAMETER {name} {value:g}" for name, value in serving.parameters.items()]
    return "\n".join(lines).rstrip() + "\n"


def stop_texts(template: Template) -> list[str]:
    """The texts of every token that ends an answer."""
    texts = {number: text for text, number in template.tokenizer.get_added_vocab().items()}
    plain = template.tokenizer.decode
    return sorted(texts.get(number) or plain([number], skip_special_tokens=False) for number in template.stop_ids)


def _template(template: Template, writes_bos: bool) -> list[str]:
    bos = str(template.tokenizer.special_tokens_map.get("bos_token", "")) if writes_bos else ""
    try:
        found = surroundings(template)
        text = go_template(found, without=bos)
        if FENCE in text:
            raise NotExpressible(f"the chat template writes {FENCE}, which a Modelfile cannot")
    except NotExpressible as error:
        warn(f"{error.what}: the Modelfile has no TEMPLATE, and Ollama reads the one in the GGUF file")
        return [f"# No TEMPLATE: {error.what}.", "# Ollama reads the chat template in the GGUF file.", ""]
    remarks = []
    if found.system is None:
        remarks.append("# The model takes no system prompt: one would be left out.")
    return [*remarks, f"TEMPLATE {FENCE}{text}{FENCE}", ""]


def _quoted(text: str) -> str:
    """A value as Modelfiles quote it. There is no escape: three quotes become apostrophes, and that is said."""
    if "\n" not in text and '"' not in text:
        return f'"{text}"'
    if FENCE in text:
        warn(f"a Modelfile cannot hold {FENCE} in a text: apostrophes take their place")
    end = " " if text.endswith('"') else ""
    return f"{FENCE}{text.replace(FENCE, chr(39) * 3)}{end}{FENCE}"
