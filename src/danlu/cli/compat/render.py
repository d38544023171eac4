"""What ``--dry-run`` prints: every option, where its value comes from, and what was translated."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import wrap
from typing import Any

from pydantic.fields import FieldInfo

from danlu.cli.compat.export import ResolvedExport
from danlu.cli.compat.train import Resolved
from danlu.core.config import Options
from danlu.core.config_text import Comment, scalar, to_yaml
from danlu.core.run import public


def render_resolved(resolved: Resolved | ResolvedExport) -> str:
    """The resolved command as YAML that can be run: ``danlu train --dry-run … > run.yaml``.

    A star marks a value that differs from danlu's own default, which stands behind it.
    """
    verb = "train" if isinstance(resolved, Resolved) else "export"
    head = [f"# danlu {verb}: what was understood. This text is itself a file that `danlu {verb}` reads."]
    for note in resolved.notes:
        head += wrap(note, 104, initial_indent="#  - ", subsequent_indent="#    ", break_on_hyphens=False)
    head.append("# * differs from danlu's own default.")
    options: Options = resolved.config
    body = to_yaml(public(options), _commenter(resolved.sources))
    return "\n".join(head) + "\n\n" + body


def _commenter(sources: Mapping[str, str]) -> Comment:
    def comment(group: str, name: str, value: Any, field: FieldInfo) -> str:
        del group
        source = _short(sources.get(name, ""))
        if name == "trainer":
            passed = [_short(place) for key, place in sources.items() if key.startswith("trainer.")]
            source = ", ".join(dict.fromkeys(passed))
        if value == field.get_default(call_default_factory=True):
            return source
        before = f"* default {scalar(field.default)}"
        return f"{before}; {source}" if source else before

    return comment


def _short(place: str) -> str:
    """``command line:--lora_rank`` → ``--lora_rank``."""
    return place.removeprefix("command line:")
