"""Keep the libraries from talking on the user's terminal while they load something."""

from __future__ import annotations

import logging as log
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

log.getLogger("bitsandbytes").setLevel(log.ERROR)  # it warns when imported, and again for every layer


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, log lines or warnings of transformers, peft and torch inside this block."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
