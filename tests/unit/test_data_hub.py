"""Hub datasets without a network: which files are chosen, and what is said when nothing can be fetched."""

from __future__ import annotations

import socket
import sys
import threading
from pathlib import Path

import pytest

from danlu.core import hub as client
from danlu.core.errors import DataError, MissingDependency
from danlu.core.hub import reachable
from danlu.data.sources.hub import HubSource, choose, fetch, is_hub_id

FILES = [
    "README.md",
    ".gitattributes",
    "dataset_infos.json",
    "zh/train-00000-of-00002.parquet",
    "zh/train-00001-of-00002.parquet",
    "zh/test-00000-of-00001.parquet",
    "en/train.parquet",
    "raw/all.jsonl",
]


@pytest.mark.parametrize(
    ("source", "chosen"),
    [
        (HubSource("a/b", subset="zh"), [FILES[3], FILES[4]]),
        (HubSource("a/b", subset="zh", split="test"), [FILES[5]]),
        (HubSource("a/b", folder="raw"), ["raw/all.jsonl"]),
        (HubSource("a/b", files=("raw/all.jsonl",)), ["raw/all.jsonl"]),
        (HubSource("a/b"), ["en/train.parquet", FILES[3], FILES[4]]),
    ],
)
def test_files_of_a_split_a_subset_a_folder(source: HubSource, chosen: list[str]) -> None:
    assert choose(FILES, source) == chosen


def test_files_without_a_split_in_their_name_are_for_training() -> None:
    assert choose(["rows.json", "test.json"], HubSource("a/b")) == ["rows.json"]
    assert choose(["constrained.json"], HubSource("a/b")) == ["constrained.json"]


@pytest.mark.parametrize(
    "source",
    [
        HubSource("a/b", subset="fr"),
        HubSource("a/b", split="validation"),
        HubSource("a/b", files=("none.json",)),
    ],
)
def test_when_nothing_fits_what_there_is_is_listed(source: HubSource) -> None:
    with pytest.raises(DataError, match=r"It has: zh/train-00000-of-00002\.parquet"):
        choose(FILES, source)


def test_hub_ids() -> None:
    assert all(map(is_hub_id, ["BelleGroup/train_0.5M_CN", "a/b"]))
    assert not any(map(is_hub_id, ["a", "a/b/c", "./a", "a/ b", "/a/b"]))


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("huggingface_hub")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))


@pytest.mark.usefixtures("empty_cache")
def test_a_connection_that_hangs_is_given_up_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    def hang(*_: object, **__: object) -> None:
        released.wait(60)
        raise OSError

    monkeypatch.setattr(socket, "create_connection", hang)
    monkeypatch.setattr(client, "offline", lambda: False)
    with pytest.raises(DataError) as error:  # while the connection still hangs
        fetch(HubSource("nobody/nothing-here"))
    released.set()
    assert "the hub cannot be reached and this dataset is not in the cache" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("empty_cache")
def test_offline_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DANLU_OFFLINE", "1")
    monkeypatch.setattr(client, "reachable", lambda _: pytest.fail("the network was tried"))
    with pytest.raises(DataError, match="told to stay offline"):
        fetch(HubSource("nobody/nothing-here"))


def online(monkeypatch: pytest.MonkeyPatch, names: Exception) -> None:
    library = pytest.importorskip("huggingface_hub")

    class Api:
        def list_repo_files(self, *_: object, **__: object) -> list[str]:
            raise names

    monkeypatch.setattr(client, "reachable", lambda _: True)
    monkeypatch.setattr(client, "offline", lambda: False)
    monkeypatch.setattr(library, "HfApi", Api)


def test_errors_of_the_hub_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    online(monkeypatch, OSError("the line broke\nand more"))
    with pytest.raises(DataError, match=r"a/b: it cannot be fetched \(the line broke and more\)\."):
        fetch(HubSource("a/b"))


@pytest.mark.parametrize(
    ("name", "message"),
    [("GatedRepoError", "is gated"), ("RepositoryNotFoundError", "no such repository")],
)
def test_gated_and_unknown_datasets(monkeypatch: pytest.MonkeyPatch, name: str, message: str) -> None:
    errors = pytest.importorskip("huggingface_hub.errors")
    kind = getattr(errors, name)
    online(monkeypatch, kind.__new__(kind))
    with pytest.raises(DataError, match=message):
        fetch(HubSource("a/b"))


def test_without_the_client_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setattr(client, "offline", lambda: False)
    with pytest.raises(MissingDependency, match="huggingface_hub"):
        fetch(HubSource("a/b"))
    monkeypatch.setitem(sys.modules, "modelscope_hub", None)
    with pytest.raises(MissingDependency, match="modelscope-hub"):
        fetch(HubSource("a/b", "modelscope"))


def test_a_listening_port_is_reachable_and_a_closed_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("urllib.request.getproxies", dict)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert reachable(address)
        monkeypatch.setattr("urllib.request.getproxies", lambda: {"http": address})
        monkeypatch.setattr("urllib.request.proxy_bypass", lambda _: False)
        assert reachable("http://name.invalid")
    assert not reachable("http://name.invalid")
