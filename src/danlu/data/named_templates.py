"""Named chat templates, for models that bring none of their own. Data under ``assets/templates``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from danlu.core.errors import UsageError, did_you_mean


@dataclass(frozen=True, slots=True)
class NamedTemplate:
    """A chat template by name.

    Attributes:
        name: what ``template=`` takes.
        text: the Jinja source.
        source: where the format is documented.
        licence: of the format's text.
        about: one line for `danlu models templates`.
    """

    name: str
    text: str
    source: str
    licence: str
    about: str


@cache
def named_templates() -> dict[str, NamedTemplate]:
    """Every named template, by name."""
    found = {}
    for file in sorted(files("danlu.assets").joinpath("templates").iterdir(), key=lambda item: item.name):
        if file.name.endswith(".yaml"):
            entry: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
            found[entry["name"]] = NamedTemplate(**entry)
    return found


def template_text(name: str) -> str:
    """The Jinja source of a named template.

    Raises:
        UsageError: for an unknown name, with the nearest.
    """
    known = named_templates()
    if name not in known:
        raise UsageError(
            f"there is no template named {name!r}",
            where="template",
            hint=did_you_mean(name, known) or f"Known: {', '.join(known)}.",
        )
    return known[name].text


def choose_template(tokenizer: Any, name: str | None) -> tuple[str | None, str | None]:
    """Which template a model is used with.

    Returns:
        The source to use (None: the model's own) and a note for the user, if the given name is not used.

    Raises:
        UsageError: when the model has none and no known name is given.
    """
    if tokenizer.chat_template:
        same = name in named_templates() and named_templates()[str(name)].text == tokenizer.chat_template
        unused = not same and name not in (None, "", "own", "default")
        note = f"template={name} is not used: the model brings its own chat template, and that is the truth"
        return None, note if unused else None
    if name is None:
        raise UsageError(
            "the model brings no chat template",
            hint=f"Name one with template=…: {', '.join(named_templates())}.",
        )
    return template_text(name), None
