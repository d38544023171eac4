"""Names of datasets: dataset_info.json with all its keys, the built-in catalog, paths, hub ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from danlu.core.errors import DataError
from danlu.data.catalog import builtin, entry_shape, entry_source, read_entries, resolve
from danlu.data.formats import FORMATS, read_row
from danlu.data.rows import BadRow
from danlu.data.schema import NOWHERE
from danlu.data.sources.hub import HubSource


def info(folder: Path, entries: dict[str, Any]) -> Path:
    (folder / "dataset_info.json").write_text(json.dumps(entries), encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", builtin())
def test_every_catalog_entry_reads_its_own_sample(name: str) -> None:
    entry = builtin()[name]
    assert entry.name == name
    assert entry.title
    assert entry.licence
    assert entry.language
    assert len(entry.sample) >= 2
    rows = [read_row(value, entry.shape, NOWHERE) for value in entry.sample]
    assert [row for row in rows if isinstance(row, BadRow)] == []
    assert entry.source().place == entry.hub
    assert entry.rows is None or entry.rows > 0


def test_the_sets_of_this_field_are_named() -> None:
    wanted = {
        "coig",
        "alpaca_zh",
        "guanaco",
        "webqa",
        "pclue",
        "alpaca_gpt4_zh",
        "alpaca_gpt4_en",
        "belle_1m",
    }
    assert wanted <= set(builtin())


def test_defaults_without_columns() -> None:
    columns = entry_shape({"file_name": "x"}, "x").columns
    assert (columns.prompt, columns.query, columns.response) == ("instruction", "input", "output")
    assert columns.history is None
    assert columns.system is None
    assert entry_shape({"formatting": "sharegpt"}, "x").columns.messages == "conversations"
    assert entry_shape({"ranking": True}, "x").columns.chosen == "chosen"
    assert entry_shape({"formatting": "preference"}, "x").columns.prompt == "prompt"


def test_once_columns_is_there_what_it_leaves_out_is_not_read() -> None:
    columns = entry_shape({"columns": {"prompt": "text"}}, "x").columns
    assert columns.prompt == "text"
    assert columns.query is None
    assert columns.response is None
    assert columns.messages is None


def test_tags_replace_single_names() -> None:
    tags = entry_shape({"formatting": "sharegpt", "tags": {"role_tag": "role", "user_tag": "客户"}}, "x").tags
    assert (tags.role_tag, tags.user_tag, tags.content_tag) == ("role", "客户", "value")
    assert entry_shape({"formatting": "openai"}, "x").tags.role_tag == "role"


def test_every_key_of_an_entry() -> None:
    entry = {
        "hf_hub_url": "owner/name",
        "subset": "zh",
        "split": "test",
        "folder": "data",
        "num_samples": 5,
        "formatting": "sharegpt",
        "ranking": True,
        "columns": {"messages": "m", "chosen": "c", "rejected": "r"},
    }
    source = entry_source("x", entry, None, where="x")
    assert source.place == HubSource("owner/name", subset="zh", split="test", folder="data")
    assert source.num_samples == 5
    assert source.shape is not None
    assert source.shape.ranking
    assert source.warnings == ()
    local = entry_source("x", {"file_name": "x.json", "file_sha1": "ab"}, Path("d"), where="x")
    assert (local.place, local.sha1, local.base) == ("x.json", "ab", Path("d"))
    modelscope = entry_source("x", {"ms_hub_url": "a/b"}, None, where="x")
    assert modelscope.place == HubSource("a/b", "modelscope")
    both = entry_source("x", {"hf_hub_url": "h/h", "ms_hub_url": "a/b", "file_name": "f.json"}, None, where="x")
    assert both.place == HubSource("h/h")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ([], "an entry is an object"),
        ({}, "does not say where the rows are"),
        ({"script_url": "x.py"}, "script_url cannot be used: loading scripts"),
        ({"cloud_file_name": "s3://x"}, "cloud_file_name cannot be used"),
        ({"om_hub_url": "a/b"}, "om_hub_url cannot be used"),
        ({"file_name": 3}, "file_name must be text"),
        ({"file_name": "x", "num_samples": 0}, "num_samples must be 1 or more"),
        ({"file_name": "x", "num_samples": True}, "num_samples must be a number"),
        ({"file_name": "x", "ranking": "yes"}, "ranking must be true or false"),
        ({"file_name": "x", "columns": []}, "columns must be an object"),
        ({"file_name": "x", "columns": {"promt": "x"}}, "columns has no 'promt'. Did you mean prompt"),
        ({"file_name": "x", "columns": {"prompt": 1}}, "columns.prompt must be text"),
        ({"file_name": "x", "tags": {"rol_tag": "x"}}, "tags has no 'rol_tag'. Did you mean role_tag"),
        (
            {"file_name": "x", "formatting": "sharegtp"},
            "unknown formatting 'sharegtp'. Did you mean sharegpt",
        ),
    ],
)
def test_entries_that_make_no_sense(entry: Any, message: str) -> None:
    with pytest.raises(DataError) as error:
        entry_source("name", entry, None, where="info.json:name")
    assert str(error.value).startswith("info.json:name: ")
    assert message in str(error.value)


def test_an_unknown_key_is_a_warning_with_the_nearest() -> None:
    source = entry_source("x", {"file_name": "x.json", "colums": {}}, None, where="x")
    assert source.warnings == ("unknown key 'colums' is not read. Did you mean columns?",)


def test_the_order_in_which_a_name_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    info(tmp_path / "data", {"mine": {"file_name": "mine.json"}, "webqa": {"file_name": "own.json"}})
    (tmp_path / "data" / "folder").mkdir()
    assert resolve("mine").place == "mine.json"
    assert resolve("webqa").place == "own.json"
    assert isinstance(resolve("pclue").place, HubSource)
    assert resolve("x.jsonl").place == "x.jsonl"
    assert resolve("folder").place == "folder"
    assert resolve("owner/name").place == HubSource("owner/name")
    assert resolve("owner/name.json").place == "owner/name.json"
    assert resolve("a/b", "ONLINE").place == HubSource("a/b")
    assert resolve("here", {"here": {"file_name": "z.csv"}}).place == "z.csv"


def test_an_unknown_name_suggests_the_nearest_and_a_path(tmp_path: Path) -> None:
    info(tmp_path, {"identity": {"file_name": "identity.json"}})
    with pytest.raises(DataError) as error:
        resolve("identiy", tmp_path)
    assert "there is no dataset named 'identiy'. Did you mean identity?" in str(error.value)
    assert "A path to a file or folder works as well." in str(error.value)
    with pytest.raises(DataError, match="danlu data list"):
        resolve("qqqqqq", tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{\n'a': 1}", r"dataset_info\.json:2: it is not valid JSON"), ("[]", "it must map names to entries")],
)
def test_a_broken_dataset_info(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "dataset_info.json").write_text(text)
    with pytest.raises(DataError, match=message):
        resolve("x", tmp_path)


def test_dataset_info_in_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "dataset_info.json").write_bytes('{"中文": {}}'.encode("gb18030"))
    with pytest.raises(DataError, match="cannot be read"):
        read_entries(tmp_path)


def test_dataset_info_with_bom_and_without_any(tmp_path: Path) -> None:
    assert read_entries(tmp_path) == ({}, str(tmp_path / "dataset_info.json"))
    (tmp_path / "dataset_info.json").write_text('\ufeff{"a": {"file_name": "x"}}', encoding="utf-8")
    assert list(read_entries(tmp_path)[0]) == ["a"]


def test_a_dataset_info_that_lives_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from danlu.data import catalog

    info(tmp_path, {"far": {"hf_hub_url": "owner/rows"}})
    asked: list[tuple[str, str]] = []

    def fetch_file(repository: str, name: str) -> Path:
        asked.append((repository, name))
        return tmp_path / name

    monkeypatch.setattr(catalog, "fetch_file", fetch_file)
    assert resolve("far", "REMOTE:owner/demo").place == HubSource("owner/rows")
    assert asked == [("owner/demo", "dataset_info.json")]


def test_formats_are_open_to_plugins_and_listed_in_the_command() -> None:
    from danlu.cli.data import convert_dataset

    assert FORMATS.group == "danlu.formats"
    assert all(name in (convert_dataset.__doc__ or "") for name in FORMATS)


def test_an_entry_whose_file_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": {"file_name": "nope.json"}}))
    (tmp_path / "nope.jsonl").write_text("{}")
    with pytest.raises(DataError) as error:
        resolve("mine", tmp_path).files()
    told = str(error.value)
    assert told.startswith(f"{tmp_path / 'dataset_info.json'}:mine: the file nope.json does not exist")
    assert "Did you mean nope.jsonl?" in told
    assert "relative paths start here" not in told
