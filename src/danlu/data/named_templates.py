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
        stop: the control token that ends a turn, where the format has one of its own.
        aliases: what other tools call it.
    """

    name: str
    text: str
    source: str
    licence: str
    about: str
    stop: str | None = None
    aliases: tuple[str, ...] = ()

    def fitted(self, tokenizer: Any) -> str:
        """The Jinja source for a tokenizer: without the token that ends turns, its end of text ends them."""
        if self.stop is None or self.stop in tokenizer.get_added_vocab():
            return self.text
        return self.text.replace(self.stop, tokenizer.eos_token or self.stop)


@cache
def named_templates() -> dict[str, NamedTemplate]:
    """Every named template, by name."""
    found = {}
    for file in sorted(files("danlu.assets").joinpath("templates").iterdir(), key=lambda item: item.name):
        if file.name.endswith(".yaml"):
            entry: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
            found[entry["name"]] = NamedTemplate(**{**entry, "aliases": tuple(entry.get("aliases", ()))})
    return found


def named_template(name: str) -> NamedTemplate:
    """A template by its name, or by what another tool calls it.

    Raises:
        UsageError: for an unknown name, with the nearest.
    """
    known = named_templates()
    found = known.get(name) or next((one for one in known.values() if name in one.aliases), None)
    if found is None:
        names = [*known, *(alias for one in known.values() for alias in one.aliases)]
        raise UsageError(
            f"there is no template named {name!r}",
            where="template",
            hint=did_you_mean(name, names) or f"Known: {', '.join(known)}.",
        )
    return found


def template_text(name: str) -> str:
    """The Jinja source of a named template.

    Raises:
        UsageError: for an unknown name, with the nearest.
    """
    return named_template(name).text


def adopt(tokenizer: Any, name: str | None) -> str | None:
    """Write the template of a name into a tokenizer that has none, with the token that ends its turns.

    Returns:
        A note for the user, or None.

    Raises:
        UsageError: when the model has none and no known name is given.
    """
    source, remark = choose_template(tokenizer, name)
    if source is None or name is None:
        return remark
    template = named_template(name)
    tokenizer.chat_template = source
    if template.stop is None or template.stop == tokenizer.eos_token:
        return remark
    if template.stop not in tokenizer.get_added_vocab():
        return f"template={name}: the model has no token {template.stop}; its own end of text ends each turn"
    tokenizer.add_special_tokens({"eos_token": template.stop})  # answers are to stop there, wherever the run is used
    return f"template={name}: answers end with {template.stop}, which becomes the tokenizer's end of text"


def choose_template(tokenizer: Any, name: str | None) -> tuple[str | None, str | None]:
    """Which template a model is used with.

    Returns:
        The source to use (None: the model's own) and a note for the user, if the given name is not used.

    Raises:
        UsageError: when the model has none and no known name is given.
    """
    if tokenizer.chat_template:
        unused = name not in (None, "", "own", "default") and not _is_there(tokenizer, str(name))
        note = f"template={name} is not used: the model brings its own chat template, and that is the truth"
        return None, note if unused else None
    if name is None:
        raise UsageError(
            "the model brings no chat template",
            hint=f"Name one with template=…: {', '.join(named_templates())}.",
        )
    return named_template(name).fitted(tokenizer), None


def _is_there(tokenizer: Any, name: str) -> bool:
    """Whether a tokenizer has the template of this name already."""
    known = [one for one in named_templates().values() if name in (one.name, *one.aliases)]
    return any(one.fitted(tokenizer) == tokenizer.chat_template for one in known)
