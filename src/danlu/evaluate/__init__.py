"""The evaluate room: metrics, intervals, paired tests, predictions, reports.

The verb has the room's name, so the room can be called: ``danlu.evaluate(run, dataset=…)`` is
:func:`danlu.verbs.evaluate.evaluate`, whether or not a module of the room was imported before.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _CallableRoom(ModuleType):
    def __call__(self, *args: Any, **keys: Any) -> dict[str, float]:
        scores: dict[str, float] = import_module("danlu.verbs.evaluate").evaluate(*args, **keys)
        return scores


sys.modules[__name__].__class__ = _CallableRoom
