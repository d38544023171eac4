"""Runs inside the peer's Python: LLaMA-Factory's own training or tokenising, with a log of steps and tokens.

    python llamafactory_side.py task.json answer.json

It calls what `llamafactory-cli train` calls, in this process, and changes nothing in it. What is added is a
TrainerCallback that writes the time, and a count of each batch's tokens just before it is trained.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import json
import sys
import time
import types
from pathlib import Path
from typing import Any


def import_peer() -> None:
    """Import LLaMA-Factory without torchaudio.

    It imports torchaudio for audio rows as soon as it starts, also for text; wheels for a CPU are not found
    everywhere. An empty module of that name stands in during the import and is taken away again.
    """
    missing = importlib.machinery.PathFinder.find_spec("torchaudio") is None
    if missing:
        module = types.ModuleType("torchaudio")
        module.__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
        sys.modules["torchaudio"] = module
    importlib.import_module("llamafactory.train.tuner")
    if missing:
        del sys.modules["torchaudio"]


def options(task: dict[str, Any]) -> dict[str, Any]:
    """The task's options; where there is no GPU the peer must be told so."""
    import torch

    accelerated = torch.cuda.is_available() or torch.backends.mps.is_available()
    return {**task["config"], "use_cpu": not accelerated}


def train(task: dict[str, Any]) -> dict[str, Any]:
    """Train, writing ``log`` of the task as it goes."""
    from llamafactory.train.sft.trainer import CustomSeq2SeqTrainer
    from llamafactory.train.tuner import run_exp
    from transformers import TrainerCallback

    log = Path(task["log"])
    counts = {"tokens": 0, "supervised": 0, "places": 0}

    def write(kind: str, **fields: Any) -> None:
        with log.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"kind": kind, "time": time.time(), **fields}) + "\n")

    class Clock(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            write("begin")

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            write("step", step=state.global_step, **counts)
            counts.update(tokens=0, supervised=0, places=0)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                write("loss", step=state.global_step, loss=float(logs["loss"]))

    plain = CustomSeq2SeqTrainer.training_step

    def counted(self: Any, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
        counts["tokens"] += int(inputs["attention_mask"].sum())
        counts["supervised"] += int((inputs["labels"][:, 1:] != -100).sum())
        counts["places"] += inputs["input_ids"].numel()
        return plain(self, model, inputs, *rest, **named)

    CustomSeq2SeqTrainer.training_step = counted
    run_exp(options(task), callbacks=[Clock()])
    return {}


def tokenise(task: dict[str, Any]) -> dict[str, Any]:
    """Tokenise a file as its training does and time that alone; imports and the tokenizer come before."""
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.data.template import TEMPLATES
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer

    config = options(task)
    config["template"] = next(name for name in config["template"].split("|") if name in TEMPLATES)
    model, data, training, *_ = get_train_args(config)
    module = load_tokenizer(model)
    template = get_template_and_fix_tokenizer(module["tokenizer"], data)
    started = time.monotonic()
    rows = get_dataset(template, model, data, training, stage="sft", **module)["train_dataset"]
    answer: dict[str, Any] = {
        "seconds": time.monotonic() - started,
        "sequences": len(rows),
        "template": config["template"],
    }
    if task.get("details"):
        answer |= {
            "tokens": [len(row["input_ids"]) for row in rows],
            "supervised": [sum(label != -100 for label in row["labels"][1:]) for row in rows],
            "trained": [False, *(label != -100 for label in rows[0]["labels"][1:])],
            "pieces": module["tokenizer"].convert_ids_to_tokens(rows[0]["input_ids"]),
        }
    return answer


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    import_peer()
    result = {"train": train, "tokenise": tokenise}[given["do"]](given)
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")
