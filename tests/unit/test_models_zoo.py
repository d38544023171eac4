"""The model zoo: every file is whole, agrees with transformers' own tables, and is found by each of its names."""

from __future__ import annotations

import json
import re

import pytest
from typer.testing import CliRunner

from danlu.cli.models import app, list_models, show_model
from danlu.core.errors import UsageError
from danlu.data.named_templates import named_templates
from danlu.models.zoo import families, family_named, family_of_type, find, modelscope_id, packaged_models

FAMILIES = sorted(families())
SPDX = {"Apache-2.0", "MIT", "CC-BY-NC-4.0"}
OURS = {"chatglm"}
"""Families whose layout danlu reads itself; they have tests of their own."""

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_whole(name: str) -> None:
    family = families()[name]
    assert name == family.name == name.lower()
    assert family.source.startswith("https://huggingface.co/")
    ways = [family.tiny is not None, family.like is not None, family.needs_code is not None, name in OURS]
    assert sum(ways) == 1, "a family has a tiny model, or is like one that has, or cannot be read, or is our own"
    if family.like:
        assert families()[family.like].tiny, "what a family is like has a tiny model"
    assert family.modules.attention
    assert family.releases
    for release in family.releases:
        assert HUB_ID.fullmatch(release.id)
        assert release.modelscope is None or HUB_ID.fullmatch(release.modelscope)
        licence = family.licence_of(release)
        assert licence.name in SPDX or (licence.url or "").startswith("https://"), licence.name
        template = family.template_of(release)
        assert template == "own" or template in named_templates(), template


def test_ids_are_said_once() -> None:
    ids = [release.id for family in families().values() for release in family.releases]
    assert len(ids) == len(set(ids))
    assert len(ids) > 200


def test_transformers_knows_the_families() -> None:
    pytest.importorskip("transformers")
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    for family in families().values():
        for kind in family.model_types:
            readable = kind in CONFIG_MAPPING_NAMES and kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
            assert readable == (family.needs_code is None and family.name not in OURS), f"{family.name}: {kind}"
        if family.tiny:
            assert family.tiny["model_type"] in family.model_types


def test_families_are_found_by_every_name() -> None:
    qwen = families()["qwen2.5"]
    release = next(one for one in qwen.releases if one.id == "Qwen/Qwen2.5-0.5B-Instruct")
    assert find("qwen2.5") == find("Qwen2.5") == (qwen, None)
    assert find("Qwen/Qwen2.5-0.5B-Instruct") == find("qwen2.5-0.5b-instruct") == (qwen, release)
    assert find("ZhipuAI/glm-4-9b-chat-hf") == find("zai-org/glm-4-9b-chat-hf")
    assert find("nothing/like-it") is None
    assert family_of_type("bloom") is families()["bloom"]
    assert family_of_type("t5") is None
    with pytest.raises(UsageError, match=r"no model family named 'qwen25'.*qwen2\.5"):
        family_named("qwen25")


def test_names_on_modelscope() -> None:
    assert modelscope_id("meta-llama/Llama-3.2-1B") == "LLM-Research/Llama-3.2-1B"
    assert modelscope_id("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"
    assert modelscope_id("some/model") == "some/model"


def names(rows: list) -> list[str]:
    return [row["name"] for row in rows]


def test_the_list_is_filtered(capsys: pytest.CaptureFixture[str]) -> None:
    everything = list_models()
    assert names(everything) == [*packaged_models(), *FAMILIES]
    assert "qwen2.5" in capsys.readouterr().out
    assert names(list_models(family="tencent")) == ["hunyuan"]
    small = list_models(max_size=0.5, as_json=True)
    sizes = [release["parameters"] for row in small if row["kind"] == "family" for release in row["releases"]]
    assert sizes
    assert max(sizes) <= 0.5
    free = {release["id"] for row in list_models(licence="free", family="qwen2.5") for release in row["releases"]}
    assert "Qwen/Qwen2.5-1.5B" in free
    assert "Qwen/Qwen2.5-3B" not in free
    assert "Qwen/Qwen2.5-3B" in json.dumps(list_models(licence="qwen research"))
    capsys.readouterr()
    assert list_models(family="nothing") == []
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "no model fits" in shown.err


def test_a_family_and_a_release_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    facts = show_model("bloom")
    shown = capsys.readouterr().out
    assert "bigscience/bloomz-7b1-mt" in shown
    assert "ALiBi" in shown
    assert facts["packed"] is False
    assert show_model("smollm2")["packaged"] == ["smollm2-135m"]
    release = show_model("Qwen/Qwen2.5-3B")
    assert release["licence"]["restricted"] == "no commercial use"
    assert release["kind"] == "hub"
    assert release["modules"]["mlp"] == ["gate_proj", "up_proj", "down_proj"]
    unknown = show_model("some/model")
    assert unknown == {"name": "some/model", "kind": "hub", "path": None}
    assert "knows no more of it" in capsys.readouterr().err
    with pytest.raises(UsageError, match=r"no model family named 'qwen25'.*qwen2\.5"):
        show_model("qwen25")


def test_templates_are_listed_as_they_are_written() -> None:
    answer = CliRunner().invoke(app, ["templates"])
    assert answer.exit_code == 0, answer.exception
    for template in named_templates().values():
        assert " ".join(template.about.split()[-2:]) in " ".join(answer.output.split())
