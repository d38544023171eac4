"""The examples of rewards: files that resolve, rows that are valid and held apart, results that are whole and clear."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from examples_told import READMES, resolved, result, rows

from danlu.core.files import sha256
from danlu.data.check import check

NAMES = ("grpo", "ppo")
FILES = ("facts", "facts_heldout")


def shown(found: dict[str, Any]) -> str:
    return f"{found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


@pytest.mark.parametrize("name", NAMES)
def test_the_file_resolves(name: str, root: Path) -> None:
    resolved(root, name)


@pytest.mark.parametrize("name", FILES)
def test_every_row_is_a_question_with_its_fact(name: str, root: Path) -> None:
    report = check(str(root / "examples/data" / f"{name}.jsonl"))
    assert report.bad == ()
    assert dict(report.kinds) == {"Example": len(rows(root, name))}


def test_no_held_out_question_is_trained(root: Path) -> None:
    trained, held = ({row["instruction"] for row in rows(root, name)} for name in FILES)
    assert len(held) == len(rows(root, "facts_heldout")) >= 24
    assert not trained & held


@pytest.mark.parametrize("name", NAMES)
def test_the_result_is_whole_and_clear(name: str, root: Path) -> None:
    found = result(root, name)
    assert found["command"] == f"python examples/rewards.py {name}"
    assert found["n"] == len(rows(root, "facts_heldout"))
    assert found["data"] == {f"{file}.jsonl": sha256(root / "examples/data" / f"{file}.jsonl") for file in FILES}
    reward = found["scores"]["reward"]
    assert reward["difference"]["p_value"] < 0.05
    assert found["scores"]["length"]["difference"]["p_value"] < 0.001
    assert reward["difference"]["interval"]["low"] > 0
    assert max(rollout["kl"] for rollout in found["rollouts"]) < 20  # it has not run away
    curve = [rollout["reward"] for rollout in found["rollouts"]]
    assert sum(curve[-5:]) / 5 > sum(curve[:5]) / 5 + 0.3


@pytest.mark.parametrize("readme", READMES)
@pytest.mark.parametrize("name", NAMES)
def test_the_readme_repeats_the_result(name: str, readme: str, root: Path) -> None:
    text = (root / "examples" / readme).read_text(encoding="utf-8")
    found = result(root, name)
    for key in ("reward", "contains", "characters"):
        for when in ("before", "after"):
            assert shown(found["scores"][key][when]) in text, (key, when)
    assert found["command"] in text
