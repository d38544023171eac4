"""danlu 丹炉: label, tune, evaluate, judge, export and serve open language models.

Every verb of the command line is a function of the same name here (``danlu.evaluate`` is ``danlu eval``). They are
loaded when they are first used: importing danlu imports nothing heavy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from danlu.verbs.bench import bench
    from danlu.verbs.chat import chat
    from danlu.verbs.convert import convert
    from danlu.verbs.demo import demo
    from danlu.verbs.evaluate import evaluate, predict
    from danlu.verbs.export import export
    from danlu.verbs.merge import merge
    from danlu.verbs.rewards import score
    from danlu.verbs.score_file import score_file
    from danlu.verbs.train import train

__all__ = [
    "__version__",
    "bench",
    "chat",
    "convert",
    "demo",
    "evaluate",
    "export",
    "merge",
    "predict",
    "score",
    "score_file",
    "train",
]

_VERBS = {
    "bench": "danlu.verbs.bench",
    "chat": "danlu.verbs.chat",
    "convert": "danlu.verbs.convert",
    "demo": "danlu.verbs.demo",
    "evaluate": "danlu.verbs.evaluate",
    "export": "danlu.verbs.export",
    "merge": "danlu.verbs.merge",
    "predict": "danlu.verbs.evaluate",
    "score": "danlu.verbs.rewards",
    "score_file": "danlu.verbs.score_file",
    "train": "danlu.verbs.train",
}


def __getattr__(name: str) -> Any:
    if name in _VERBS:
        from danlu.core.workspace import share_cores

        share_cores()  # before torch is loaded: afterwards it has no effect
        return getattr(import_module(_VERBS[name]), name)
    raise AttributeError(f"module 'danlu' has no attribute {name!r}")
