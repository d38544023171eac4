"""Fetching models from a hub: a hub that is not there, and a stand-in that answers."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hub_server import Hub, running

from danlu.cli.models import fetch_model
from danlu.core import hub as client
from danlu.core.errors import DataError, MissingDependency, ModelError, UsageError
from danlu.core.hub import explained, reachable, site_of
from danlu.data.sources.hub import HubSource
from danlu.data.sources.hub import fetch as fetch_dataset
from danlu.models import hub

huggingface_hub = pytest.importorskip("huggingface_hub")
constants = pytest.importorskip("huggingface_hub.constants")

FILES = {
    "config.json": b"{}",
    "model.safetensors": bytes(range(256)) * 4000,
    "pytorch_model.bin": b"the same weights once more",
    "tokenizer.json": b"{}",
    "README.md": b"nobody reads this",
    "original/params.json": b"{}",
    "consolidated.safetensors": b"the same weights once more",
}
READ = {"config.json", "model.safetensors", "tokenizer.json"}


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "modelscope"))
    for name in ("HF_HUB_OFFLINE", "DANLU_OFFLINE", "DANLU_HUB", "USE_MODELSCOPE_HUB"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that both clients ask."""
    with running() as server:
        server.files["a/b"] = dict(FILES)
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        files = server.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", server.address)
        yield server


@pytest.fixture(params=["huggingface", "modelscope"])
def source(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "modelscope":
        for name in (
            "DOWNLOAD_MAX_RETRIES",
            "DOWNLOAD_RETRY_MAX_DELAY_SECONDS",
            "REPO_TREE_PAGE_RETRY_MAX_DELAY_SECONDS",
        ):
            monkeypatch.setenv(f"MODELSCOPE_{name}", "2" if name == "DOWNLOAD_MAX_RETRIES" else "1")  # read on import
        pytest.importorskip("modelscope_hub", reason="ModelScope's client is an extra: pip install danlu[modelscope]")
    return str(request.param)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


def test_only_what_is_read_is_fetched_and_once(stand_in: Hub, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = hub.fetch("a/b", source=source)
    assert names(folder) == READ
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    stand_in.asked.clear()
    assert hub.fetch("a/b", source=source) == folder
    assert not [line for line in stand_in.asked if "GET" in line and "safetensors" in line]
    monkeypatch.setenv("DANLU_OFFLINE", "1")
    stand_in.asked.clear()
    assert hub.fetch("a/b", source=source) == folder
    assert stand_in.asked == []


def test_a_connection_that_breaks_goes_on_where_it_was(
    stand_in: Hub, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    monkeypatch.setattr("time.sleep", lambda _: None)
    stand_in.break_after["model.safetensors"] = 400_000
    folder = hub.fetch("a/b", source=source)
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    ranges = [line.rpartition(" ")[2] for line in stand_in.asked if "bytes=" in line]
    assert ranges == ["bytes=400000-", "bytes=800000-"]


def test_a_fetch_that_failed_goes_on_with_the_missing_files(
    stand_in: Hub, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    stand_in.break_after["model.safetensors"] = 0
    with pytest.raises(ModelError, match="a/b: it cannot be fetched") as caught:
        hub.fetch("a/b", source=source, folder=tmp_path / "here")
    assert "the same command fetches the rest" in str(caught.value)
    assert "\n" not in str(caught.value)
    stand_in.break_after.clear()
    stand_in.asked.clear()
    assert hub.fetch("a/b", source=source, folder=tmp_path / "here") == tmp_path / "here"
    assert names(tmp_path / "here") >= READ
    assert not [line for line in stand_in.asked if "GET" in line and "tokenizer.json" in line and "resolve" in line]


def test_weights_of_the_older_kind_where_there_are_no_others(stand_in: Hub, source: str) -> None:
    del stand_in.files["a/b"]["model.safetensors"]
    assert "pytorch_model.bin" in names(hub.fetch("a/b", source=source))


def test_refusals_are_one_line(stand_in: Hub, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    with pytest.raises(ModelError, match=r"no/such: .* has no such repository, or it needs a login") as caught:
        hub.fetch("no/such", source=source)
    assert "\n" not in str(caught.value)
    stand_in.refuse = 500
    with pytest.raises(ModelError, match="answered 500"):
        hub.fetch("a/b", source=source)


def test_datasets_come_through_the_same_client(stand_in: Hub, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in.files["some/rows"] = {"train.jsonl": b'{"text": "x"}', "test.jsonl": b"{}", "README.md": b"x"}
    (found,) = fetch_dataset(HubSource("some/rows", source))
    assert found.read_bytes() == b'{"text": "x"}'
    assert not [line for line in stand_in.asked if "test.jsonl" in line]
    monkeypatch.setenv("DANLU_OFFLINE", "1")
    assert fetch_dataset(HubSource("some/rows", source)) == [found]
    found.rename(found.with_name("train-00000-of-00002.jsonl"))
    with pytest.raises(DataError, match="only 1 of its 2 parts"):
        fetch_dataset(HubSource("some/rows", source))


def test_the_command_fetches_by_a_short_name_and_asks_the_hub_of_the_environment(tmp_path: Path, stand_in: Hub) -> None:
    stand_in.files["Qwen/Qwen2.5-0.5B"] = dict(FILES)
    program = "from danlu.cli.main import main; main()"
    run = subprocess.run(
        [sys.executable, "-c", program, "models", "fetch", "qwen2.5-0.5b", "--to", str(tmp_path / "here")],
        env={"HF_ENDPOINT": stand_in.address, "PATH": "", "HF_HOME": str(tmp_path), "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == str(tmp_path / "here")
    assert run.stderr.strip() == "3 files, 1.0 MB"
    assert names(tmp_path / "here") == READ


def test_what_is_here_is_not_fetched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fetch_model("smollm2-135m").suffix == ".gguf"
    assert "on this machine already (packaged)" in capsys.readouterr().err
    folder = tmp_path / "chatglm2-6b"  # the zoo knows a release of that name; the folder is meant
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    assert fetch_model("chatglm2-6b").resolve() == folder
    with pytest.raises(ModelError, match="on this machine already"):
        fetch_model("smollm2-135m", to=tmp_path / "elsewhere")
    monkeypatch.setenv("DANLU_OFFLINE", "1")
    with pytest.raises(ModelError, match="danlu is told to stay offline"):
        fetch_model("baichuan-inc/Baichuan2-7B-Chat")
    assert "which danlu never runs" in capsys.readouterr().err


def test_the_hub_that_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    assert site_of() == site_of("auto") == site_of("hf") == "huggingface"
    monkeypatch.setenv("USE_MODELSCOPE_HUB", "1")
    assert site_of() == "modelscope"
    monkeypatch.setenv("DANLU_HUB", "hf")
    assert site_of() == "huggingface"
    assert site_of("ms") == "modelscope"
    with pytest.raises(UsageError, match="no hub named 'github'"):
        site_of("github")


def test_names_are_those_of_the_hub(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert hub._name_on("modelscope", "meta-llama/Llama-3.2-1B") == "LLM-Research/Llama-3.2-1B"
    assert "is called LLM-Research/Llama-3.2-1B on ModelScope" in capsys.readouterr().err
    assert hub._name_on("huggingface", "ZhipuAI/GLM-4-9B-0414") == "zai-org/GLM-4-9B-0414"
    assert hub._name_on("huggingface", "some/model") == hub._name_on("modelscope", "some/model") == "some/model"


def test_without_the_client_of_modelscope(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope_hub", None)
    with pytest.raises(MissingDependency, match="modelscope-hub"):
        hub.fetch("a/b", source="modelscope")


def a_cached_model(root: Path, name: str) -> Path:
    """What the hub's cache looks like after a download."""
    repository = root / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    return snapshot


def test_no_network_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    def hang(address: Any, timeout: float) -> None:
        assert timeout <= 1.5
        released.wait(60)
        raise OSError

    monkeypatch.setattr(socket, "create_connection", hang)
    with pytest.raises(ModelError, match=r"'a/b' is not on this machine and the hub cannot be reached") as caught:
        hub.fetch("a/b", cache_dir=tmp_path)  # while the connection still hangs
    released.set()
    assert "\n" not in str(caught.value)
    assert "smollm2-135m" in str(caught.value)


def test_offline_never_connects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DANLU_OFFLINE", "1")
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("connected"))
    with pytest.raises(ModelError, match="danlu is told to stay offline") as caught:
        hub.fetch("a/b", cache_dir=tmp_path)
    assert "ModelScope" not in str(caught.value), "the other hub would not be asked either"
    assert hub.fetch("c/d", cache_dir=a_cached_model(tmp_path, "c/d").parents[2]).name == "0" * 40


def test_the_cache_is_enough_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "reachable", lambda _: False)
    snapshot = a_cached_model(tmp_path, "a/b")
    assert hub.fetch("a/b", cache_dir=tmp_path) == snapshot


def test_a_proxy_is_asked_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def connect(address: Any, timeout: float) -> Any:
        asked.append(address)
        raise OSError

    monkeypatch.setattr(socket, "create_connection", connect)
    assert not reachable("https://huggingface.co")
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    assert not reachable("https://huggingface.co")
    assert asked == [("huggingface.co", 443), ("proxy.example", 3128)]


@pytest.mark.parametrize(
    ("status", "words"),
    [(401, "no such repository, or it needs a login"), (403, "needs access"), (500, "the hub answered 500")],
)
def test_answers_of_the_hub(status: int, words: str) -> None:
    from huggingface_hub.errors import HfHubHTTPError

    response: Any = SimpleNamespace(status_code=status, headers={}, request=None)
    error = RuntimeError("what the client makes of it")
    error.__cause__ = HfHubHTTPError("many\nlines", response=response)
    told = explained(error, "a/b", "huggingface")
    assert words in str(told)
    assert "\n" not in str(told)
    assert "a/b: it cannot be fetched (reset by peer)" in str(explained(OSError("reset\nby peer"), "a/b", "modelscope"))
