"""Optional packages of the metrics, imported at first use and named when they are missing."""

from __future__ import annotations

from typing import Any

from danlu.core.errors import MissingDependency


def sacrebleu_metrics() -> Any:
    """The module ``sacrebleu.metrics``."""
    try:
        import sacrebleu.metrics
    except ImportError as error:
        raise MissingDependency("sacrebleu", "for BLEU and chrF", "metrics") from error
    return sacrebleu.metrics


def jsonschema() -> Any:
    """The package ``jsonschema``."""
    try:
        import jsonschema as package
    except ImportError as error:
        raise MissingDependency("jsonschema", "to check answers against a JSON schema", "metrics") from error
    return package
