"""Runs inside a Python that has lm-eval: scores prompts with its Hugging Face backend. One JSON file in, one out."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


def main() -> None:
    """Score every prompt with every letter; time that alone, after one prompt to warm up."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    task = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    model = HFLM(pretrained=task["model"], device="cpu", dtype=task["dtype"], batch_size=task["batch_size"])

    def requests(texts: list[str]) -> list[Instance]:
        return [
            Instance(request_type="loglikelihood", doc={}, arguments=(text, letter), idx=number)
            for number, text in enumerate(texts)
            for letter in task["letters"]
        ]

    model.loglikelihood(requests(task["texts"][:1]), disable_tqdm=True)
    asked = requests(task["texts"])
    start = time.perf_counter()
    found = model.loglikelihood(asked, disable_tqdm=True)
    seconds = time.perf_counter() - start
    size = len(task["letters"])
    log_probs = [[float(item[0]) for item in found[place : place + size]] for place in range(0, len(found), size)]
    Path(sys.argv[2]).write_text(json.dumps({"seconds": seconds, "log_probs": log_probs}), encoding="utf-8")


if __name__ == "__main__":
    main()
