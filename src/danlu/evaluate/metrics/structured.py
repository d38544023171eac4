"""Answers that have to be JSON, and JSON of a certain shape."""

from __future__ import annotations

import json as json_text
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from danlu.core.errors import UsageError
from danlu.core.files import expanded, read_json
from danlu.evaluate.metrics.column import Column, Pairs, share_column
from danlu.evaluate.metrics.packages import jsonschema

_FENCE = re.compile(r"\s*```[\w-]*\n(.*?)\n?```\s*", re.DOTALL)
NO_JSON = object()


def json(pairs: Pairs, *, kind: str = "any", fence: bool = True) -> tuple[Column, ...]:
    """Share of answers that are JSON and nothing else.

    Args:
        pairs: the answers.
        kind: ``object``, ``array`` or ``any``.
        fence: whether a fence of three backticks around it is allowed.

    Raises:
        UsageError: for another kind.
    """
    kinds: dict[str, tuple[type, ...]] = {"object": (dict,), "array": (list,), "any": (object,)}
    if kind not in kinds:
        raise UsageError(f"unknown kind of JSON {kind!r}", hint=f"Known: {', '.join(kinds)}.")
    values = [parsed(text, fence=fence) for text in pairs.predictions]
    right = [value is not NO_JSON and isinstance(value, kinds[kind]) for value in values]
    return (share_column("json", right, f"RFC 8259|kind:{kind}|fence:{'allowed' if fence else 'no'}"),)


def json_schema(pairs: Pairs, *, schema: str | Mapping[str, Any], fence: bool = True) -> tuple[Column, ...]:
    """Share of answers that are JSON and valid under a schema; its ``$schema`` names the draft, 2020-12 by default.

    Args:
        pairs: the answers.
        schema: a file, or the schema itself.
        fence: whether a fence of three backticks around the answer is allowed.

    Raises:
        UsageError: when it is no valid schema.
        RunError: when the file is missing or broken.
        MissingDependency: without jsonschema.
    """
    package = jsonschema()
    rules = dict(schema) if isinstance(schema, Mapping) else read_json(expanded(schema))
    name = "inline" if isinstance(schema, Mapping) else Path(schema).name
    draft = package.validators.validator_for(rules, default=package.Draft202012Validator)
    try:
        draft.check_schema(rules)
    except package.SchemaError as error:
        raise UsageError(f"this is no valid JSON schema: {error.message}", where=name) from error
    validator = draft(rules)
    values = [parsed(text, fence=fence) for text in pairs.predictions]
    try:
        right = [value is not NO_JSON and bool(validator.is_valid(value)) for value in values]
    except Exception as error:  # a reference to another document, which is not fetched: the package has many classes
        raise UsageError(f"the JSON schema cannot be applied: {error}", where=name) from error
    return (share_column("json-schema", right, f"{draft.__name__}|schema:{name}|fence:{'allowed' if fence else 'no'}"),)


def parsed(text: str, *, fence: bool = True) -> Any:
    """The value of a JSON text, or :data:`NO_JSON`; NaN, Infinity and repeated keys are not JSON."""
    inside = _FENCE.fullmatch(text) if fence else None
    try:
        return json_text.loads(
            inside[1] if inside else text, parse_constant=_refused, object_pairs_hook=_without_repetition
        )
    except (ValueError, RecursionError):
        return NO_JSON


def _refused(word: str) -> Any:
    raise ValueError(word)


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is repeated")
    return found
