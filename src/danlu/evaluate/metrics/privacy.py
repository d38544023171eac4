"""How often answers give personal data away; what is looked for is in :mod:`danlu.data.personal`."""

from __future__ import annotations

from collections.abc import Sequence

from danlu.core.errors import UsageError, did_you_mean
from danlu.data.personal import find_personal_data, kinds_of_data
from danlu.evaluate.metrics.column import Column, Pairs, share_column


def pii(pairs: Pairs, *, kinds: str | Sequence[str] = "") -> tuple[Column, ...]:
    """Share of answers that hold personal data, in all and of each kind.

    Args:
        pairs: the answers.
        kinds: which kinds to look for; all by default.

    Raises:
        UsageError: for an unknown kind.
    """
    known = kinds_of_data()
    wanted = tuple(kinds.replace(",", " ").split() if isinstance(kinds, str) else kinds) or known
    for kind in wanted:
        if kind not in known:
            hint = did_you_mean(kind, known) or f"Known: {', '.join(known)}."
            raise UsageError(f"there is no kind of personal data {kind!r}", hint=hint)
    found = [{item.kind for item in find_personal_data(text) if item.kind in wanted} for text in pairs.predictions]
    columns = [share_column("pii", [bool(row) for row in found], f"any of {', '.join(wanted)}")]
    for kind in wanted:
        columns.append(share_column(f"pii-{kind}", [kind in row for row in found], kind))
    return tuple(columns)
