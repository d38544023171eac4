"""The examples: files that resolve, rows that are valid and held apart, results that the READMEs repeat."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from examples_told import READMES, load, resolved, result, rows

from danlu.core.config import read_yaml
from danlu.data.check import check

NAMES = ("reward_model", "dpo")
FILES = ("pairs", "pairs_heldout")
BASH = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def make(root: Path) -> ModuleType:
    return load(root / "examples/pairs/make.py")


@pytest.mark.parametrize("name", NAMES)
def test_the_file_resolves(name: str, root: Path) -> None:
    assert resolved(root, name).output.output_dir == f"runs/{name}"


@pytest.mark.parametrize("name", FILES)
def test_every_row_is_a_pair(name: str, root: Path) -> None:
    report = check(str(root / "examples/data" / f"{name}.jsonl"))
    assert report.bad == ()
    assert dict(report.kinds) == {"Preference": len(rows(root, name))}
    assert all(row["chosen"] != row["rejected"] for row in rows(root, name))


def test_the_files_are_those_that_the_script_makes(root: Path, make: ModuleType) -> None:
    assert make.rows("train") == rows(root, "pairs")
    assert make.rows("heldout") == rows(root, "pairs_heldout")


def test_nothing_of_the_held_out_pairs_is_trained(root: Path) -> None:
    train, held = rows(root, "pairs"), rows(root, "pairs_heldout")
    assert len(train) >= 200
    assert len(held) >= 100
    assert len({row["instruction"] for row in held}) == len(held), "each held-out question once"
    for key in ("instruction", "chosen", "rejected"):
        assert not {row[key] for row in train} & {row[key] for row in held}, key
    everything = "\n".join(text for row in train for text in row.values())
    assert not [row for row in held if row["chosen"] in everything]


def test_wordings_of_defects_are_not_shared(root: Path) -> None:
    wordings = read_yaml(root / "examples/pairs/defects.yaml")

    def texts(value: Any) -> set[str]:
        if isinstance(value, str):
            return {value}
        return set().union(*map(texts, value.values() if isinstance(value, dict) else value))

    assert not texts(wordings["train"]) & texts(wordings["heldout"])


@pytest.mark.parametrize("name", FILES)
def test_length_alone_decides_nothing(name: str, root: Path) -> None:
    found = rows(root, name)
    longer = sum(len(row["chosen"]) > len(row["rejected"]) for row in found)
    assert 0.45 <= longer / len(found) <= 0.55
    by_defect: dict[str, list[bool]] = {}
    for row in found:
        by_defect.setdefault(row["defect"], []).append(len(row["chosen"]) > len(row["rejected"]))
    assert len(by_defect) == 8
    for defect, values in by_defect.items():
        assert 0.4 <= sum(values) / len(values) <= 0.6, defect


def test_both_languages_have_their_half(root: Path) -> None:
    for name in FILES:
        found = rows(root, name)
        chinese = sum(any("一" <= letter <= "鿿" for letter in row["instruction"]) for row in found)
        assert chinese * 2 == len(found)


@pytest.mark.parametrize("name", NAMES)
def test_the_result_is_whole(name: str, root: Path) -> None:
    found = result(root, name)
    assert found["name"] == name
    assert found["command"] == f"python examples/run.py {name}"
    assert found["n"] == len(rows(root, "pairs_heldout"))
    assert found["rows"] == len(rows(root, "pairs"))
    assert {"seed", "data", "versions", "machine", "seconds", "cpu_seconds", "longer_wins"} <= found.keys()
    for scores in found["scores"].values():
        for score in (scores[key] for key in ("before", "after") if key in scores):
            assert score["low"] <= score["value"] <= score["high"]
            assert score["n"] == found["n"]
            assert score["interval"] in ("wilson", "bootstrap")
    assert "/" not in json.dumps(found["machine"]) + json.dumps(found["versions"])


@pytest.mark.parametrize("name", NAMES)
def test_the_result_belongs_to_the_rows(name: str, root: Path) -> None:
    from danlu.core.files import sha256

    assert result(root, name)["data"] == {
        f"{file}.jsonl": sha256(root / "examples/data" / f"{file}.jsonl") for file in FILES
    }


@pytest.mark.parametrize("name", NAMES)
def test_the_effect_is_clear(name: str, root: Path) -> None:
    """What the README claims: clearly better than before, than chance and than counting characters."""
    found = result(root, name)
    first = next(scores for scores in found["scores"].values() if "difference" in scores)
    assert first["difference"]["p_value"] < 0.001
    assert first["difference"]["interval"]["low"] > 0
    final = found["scores"].get("implicit_reward_accuracy", first)["after"]
    assert final["low"] > max(0.5, found["longer_wins"]["high"])
    assert found["longer_wins"]["test"]["p_value"] < 0.001


@pytest.mark.parametrize("readme", READMES)
@pytest.mark.parametrize("name", NAMES)
def test_the_readme_repeats_the_result(name: str, readme: str, root: Path) -> None:
    show = load(root / "examples/run.py").shown
    text = (root / "examples" / readme).read_text(encoding="utf-8")
    found = result(root, name)
    for key, scores in found["scores"].items():
        for when in ("before", "after"):
            if when in scores:
                assert show(scores[when], key) in text, (key, when)
    assert show(found["longer_wins"], "accuracy") in text
    assert found["command"] in text


def test_both_readmes_show_the_same(root: Path) -> None:
    english, chinese = ((root / "examples" / name).read_text(encoding="utf-8") for name in READMES)
    assert BASH.findall(english) == BASH.findall(chinese)
    assert re.findall(r"\d+\.\d+", english) == re.findall(r"\d+\.\d+", chinese)
    assert english.count("\n## ") == chinese.count("\n## ")


@pytest.mark.parametrize("name", NAMES)
def test_both_readmes_name_the_time(name: str, root: Path) -> None:
    seconds = result(root, name)["cpu_seconds"]["training"]
    for readme in READMES:
        assert re.search(rf"\b{seconds}\b", (root / "examples" / readme).read_text(encoding="utf-8"))


@pytest.mark.smoke
@pytest.mark.timeout(120)
def test_an_example_runs(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)  # the YAML files name their rows from the repository
    module = load(root / "examples/run.py")
    found = module.run("reward_model", tmp_path, max_samples=4, max_steps=1, per_device_train_batch_size=2)
    assert found.keys() == result(root, "reward_model").keys()
    assert found["n"] == 4
    assert 0 <= found["scores"]["accuracy"]["after"]["value"] <= 1
