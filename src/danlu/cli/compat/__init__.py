"""Old commands, new configuration: every way to say `danlu train` and `danlu export`."""

from danlu.cli.compat.export import ResolvedExport, resolve_export
from danlu.cli.compat.render import render_resolved
from danlu.cli.compat.train import Mode, Resolved, resolve_train

__all__ = ["Mode", "Resolved", "ResolvedExport", "render_resolved", "resolve_export", "resolve_train"]
