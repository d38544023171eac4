"""Runs inside danlu's Python: finds the model, or tokenises rows and says what came out. One JSON file in, one out."""

from __future__ import annotations

import json
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any


def find_model(task: dict[str, Any]) -> dict[str, Any]:
    """The folder of the model, with the versions of what is installed."""
    from importlib.metadata import version

    from danlu.models.loading import model_folder

    names = ("torch", "transformers", "peft", "accelerate")
    return {"folder": str(model_folder(task["model"])), "versions": {name: version(name) for name in names}}


def tokenise(task: dict[str, Any]) -> dict[str, Any]:
    """Tokenise a file as `danlu train` does and time that alone; imports and the tokenizer come before."""
    import numpy as np

    from danlu.data.prepare import prepare, tokenizer_digest
    from danlu.models.loading import load_tokenizer
    from danlu.verbs.material import generation_stops, open_text, rules, training_rows
    from danlu.verbs.train import as_config

    config = as_config(task["config"], {})
    folder = Path(task["config"]["model_name_or_path"])
    text = open_text(load_tokenizer(folder), config, generation_stops(folder))
    digest = tokenizer_digest(text.tokenizer)
    started = time.monotonic()
    store = prepare(training_rows(config), text.template, rules(config), tokenizer_digest=digest).store
    seconds = time.monotonic() - started
    answer: dict[str, Any] = {"seconds": seconds, "sequences": len(store)}
    if task.get("details"):
        from danlu.tune.batches import ShuffledBatches

        batches = ShuffledBatches(len(store), config.optimizer.per_device_train_batch_size, config.compute.seed)
        order = [place for batch in batches for place in batch]
        trained = np.asarray(store.trained).copy()
        trained[store.bounds[:-1]] = False  # a sequence's first token has nothing before it to be predicted from
        answer |= {
            "order": order,
            "rows": store.rows.tolist(),
            "tokens": store.lengths.tolist(),
            "supervised": [int(trained[start:end].sum()) for start, end in pairwise(store.bounds)],
            "trained": [bool(flag) for flag in trained[store.bounds[order[0]] : store.bounds[order[0] + 1]]],
            "pieces": text.tokenizer.convert_ids_to_tokens(store[order[0]][0].tolist()),
        }
    return answer


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    result = {"model": find_model, "tokenise": tokenise}[given["do"]](given)
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")
