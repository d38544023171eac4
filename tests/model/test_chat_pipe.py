"""A chat with a real (tiny) model through a pipe."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from probes import random_adapter, random_prefix

from danlu.core.errors import UsageError
from danlu.core.manifest import Manifest
from danlu.core.run import RunDirectory
from danlu.models.loading import load_model, load_tokenizer
from danlu.tune.config import TrainConfig
from danlu.verbs.chat import chat

pytestmark = pytest.mark.model


def talked(lines: str, capsys: pytest.CaptureFixture[str], **options: object) -> str:
    chat(stdin=io.StringIO(lines), max_new_tokens=10, **options)
    return capsys.readouterr().out


def test_every_family_answers(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = talked("你好\nand now?\n", capsys, model=str(tiny_model))
    assert first.count("\n") >= 2
    assert first == talked("你好\nand now?\n", capsys, model=str(tiny_model))
    assert first != talked("你好\nand now?\n", capsys, model=str(tiny_model), system="Be brief.")


@pytest.mark.parametrize("kind", ["lora", "prefix"])
def test_a_run_answers_differently_from_its_base(
    tiny_models: dict[str, Path], tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load_model(tiny_models["qwen3"])
    if kind == "lora":
        random_adapter(model, tmp_path)
    else:
        random_prefix(model).save(tmp_path, base=model.name_or_path)
    RunDirectory(tmp_path).write_config(TrainConfig())
    RunDirectory(tmp_path).write_manifest(Manifest(method=kind))
    base = talked("你好\n", capsys, model=str(tiny_models["qwen3"]))
    run = talked("你好\n", capsys, run=str(tmp_path))
    assert run != base
    assert run == talked("你好\n", capsys, model=str(tiny_models["qwen3"]), adapter=[str(tmp_path)])


PROGRAM = """
import sys
from danlu.verbs.chat import chat
chat(model=sys.argv[1], max_new_tokens=100000)
"""


def test_ctrl_c_stops_the_answer_of_a_process(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    """An answer that would be long is stopped by the signal; the next line is still answered."""
    folder = tmp_path / "endless"
    model = load_model(tiny_models["llama"])
    with torch.no_grad():
        model.lm_head.weight[:4] = 0  # control tokens, those that end an answer among them, are never likeliest
    model.save_pretrained(folder)
    load_tokenizer(tiny_models["llama"]).save_pretrained(folder)
    child = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write("你好\n".encode())
    child.stdin.flush()
    told = child.stdout.read(1)
    assert told
    child.send_signal(signal.SIGINT)
    rest, errors = child.communicate(b"/exit\n", timeout=60)
    assert child.returncode == 0, errors.decode()
    assert rest.decode(errors="replace").endswith(" …\n")


def test_a_model_without_a_template_is_given_one(
    tiny_models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = Path(shutil.copytree(tiny_models["qwen2"], tmp_path / "bare"))
    (bare / "chat_template.jinja").unlink(missing_ok=True)
    told = json.loads((bare / "tokenizer_config.json").read_text())
    told.pop("chat_template", None)
    (bare / "tokenizer_config.json").write_text(json.dumps(told))
    with pytest.raises(UsageError, match="no chat template"):
        talked("你好\n", capsys, model=str(bare))
    assert talked("你好\n", capsys, model=str(bare), template="chatml").endswith("\n")
