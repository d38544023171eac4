"""Rows for prefix language models: nothing that the model sees may be what it is to predict."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from danlu.core.console import warn
from danlu.core.errors import DataError
from danlu.data.tokens import TokenStore


def check_contexts(store: TokenStore, members: Iterable[int], end: int) -> None:
    """Look at where the context of each item ends: the first ``end`` token of its first sequence.

    Tokens before it see one another, so none of them can be learnt, nor ``end`` itself. An item without it is one
    causal text, and only the first of several counts; both are said.

    Args:
        store: tokenised rows.
        members: items to look at.
        end: the token that ends a context, as ``context_end_token_id`` of a configuration has it.

    Raises:
        DataError: when a token of a context is trained.
    """
    without = several = count = 0
    for member in members:
        (ids, trained), *answers = store.parts(member)
        ends = np.flatnonzero(ids == end)
        count += 1
        without += not len(ends)
        several += len(ends) > 1
        inside = bool(len(ends)) and trained[1 : ends[0] + 1].any()
        if inside or (not len(ends) and any((part == end).any() for part, _ in answers)):
            raise DataError(
                "tokens of the context are to be learnt, and this model sees them all before it says one",
                where=f"row {store.rows[member]}",
                hint="Train answers only: leave out train_on_prompt; for stage pt write texts without <sop>.",
            )
    if without:
        warn(
            f"{without} of {count} rows have no token {end} (<sop>), where this model's answers begin: they are learnt "
            "as plain text, each token from those before it"
        )
    if several:
        warn(f"{several} of {count} rows hold several tokens {end} (<sop>); what follows the first is all answer")
