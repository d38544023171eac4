"""Tables of ``name → "module:object"``: nothing is imported until it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from danlu.core.errors import UsageError, did_you_mean


class Registry:
    """A lazy table of named objects, open to other packages through an entry-point group.

    Args:
        kind: what one entry is, in the singular, for messages ("metric", "method").
        table: ``name → "module:object"`` (or ``"module"``) of danlu's own entries.
        group: entry-point group that other distributions may add to; ``danlu.<kind>s`` by default.

    Raises:
        UsageError: on look-up, when a name is unknown or two distributions claim it.
    """

    def __init__(self, kind: str, table: Mapping[str, str], group: str | None = None) -> None:
        self.kind = kind
        self.group = group or f"danlu.{kind}s"
        self._table = dict(table)
        self._plugins: dict[str, EntryPoint] | None = None

    def _entries(self) -> dict[str, EntryPoint]:
        if self._plugins is None:
            self._plugins = {}
            for entry in entry_points(group=self.group):
                if entry.name in self._table or entry.name in self._plugins:
                    raise UsageError(
                        f"two packages provide the {self.kind} {entry.name!r}",
                        where=entry.value,
                        hint="Uninstall one of them.",
                    )
                self._plugins[entry.name] = entry
        return self._plugins

    def names(self) -> list[str]:
        """Every known name, danlu's own first."""
        return [*self._table, *self._entries()]

    def target(self, name: str) -> str:
        """Where ``name`` lives, as ``module:object``, without importing it."""
        if name in self._table:
            return self._table[name]
        if name in self._entries():
            return self._entries()[name].value
        raise UsageError(
            f"unknown {self.kind} {name!r}",
            hint=did_you_mean(name, self.names()) or f"Known: {', '.join(self.names())}.",
        )

    def __getitem__(self, name: str) -> Any:
        module, _, attribute = self.target(name).partition(":")
        return getattr(import_module(module), attribute) if attribute else import_module(module)

    def __contains__(self, name: object) -> bool:
        return name in self._table or name in self._entries()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())
