from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from danlu.core.errors import ConfigError, UsageError
from danlu.evaluate.benchmarks.catalog import benchmark_named, benchmarks, described
from danlu.evaluate.benchmarks.schema import Item, Protocol


def small(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "name": "small",
        "splits": {"test": ["{subject}.csv"]},
        "subjects": {"a": {"zh": "甲", "category": "X"}, "b": {"zh": "乙", "category": "Y"}},
        "protocols": {"plain": {"question": "{question}\n{options}\n答案："}},
    }
    return values | changes


def test_every_description_loads_and_says_where_it_is_from() -> None:
    assert set(benchmarks()) >= {"ceval", "cmmlu", "mmlu"}
    for name, benchmark in benchmarks().items():
        assert benchmark.name == name
        assert benchmark.source.startswith("https://")
        assert benchmark.licence
        for protocol in benchmark.protocols.values():
            assert protocol.title
            assert protocol.source


def test_published_tables() -> None:
    ceval, cmmlu, mmlu = (benchmark_named(name) for name in ("ceval", "cmmlu", "mmlu"))
    categories = {"STEM": 20, "Social Science": 10, "Humanities": 11, "Other": 11}
    assert Counter(subject.category for subject in ceval.subjects.values()) == categories
    totals = {split: sum(subject.counts[split] for subject in ceval.subjects.values()) for split in ceval.splits}
    assert totals == {"dev": 260, "val": 1346, "test": 12342}
    hard = [ceval.subjects[subject].counts for subject in ceval.groups["hard"]]
    assert (sum(counts["val"] for counts in hard), sum(counts["test"] for counts in hard)) == (152, 1405)
    assert Counter(subject.category for subject in cmmlu.subjects.values()) == {
        "Social Sciences": 22, "STEM": 17, "Other": 15, "Humanities": 13,
    }  # fmt: skip
    assert Counter(subject.category for subject in mmlu.subjects.values()) == {
        "STEM": 18, "Other": 14, "Humanities": 13, "Social Sciences": 12,
    }  # fmt: skip


def test_subjects_by_any_of_their_names() -> None:
    ceval = benchmark_named("ceval")
    assert ceval.chosen_subjects(("逻辑学", "Art Studies", "computer_network")) == [
        "computer_network", "logic", "art_studies",
    ]  # fmt: skip
    assert len(ceval.chosen_subjects(("hard",))) == 8
    assert len(ceval.chosen_subjects(("Humanities",))) == 11
    assert len(ceval.chosen_subjects()) == 52
    with pytest.raises(UsageError, match="Did you mean logic"):
        ceval.chosen_subjects(("logics",))


def test_a_digest_follows_the_words_and_not_the_title() -> None:
    protocol = Protocol(question="{question}", title="one")
    assert protocol.digest == Protocol(question="{question}", title="two").digest
    assert protocol.digest != Protocol(question="{question} ", title="one").digest
    assert len({entry.digest for entry in benchmark_named("ceval").protocols.values()}) == 11


def test_kinds_replace_fields() -> None:
    protocol = Protocol(question="{question}", shots=3, kinds={"cloze": {"mode": "generate", "extractor": "boxed"}})
    cloze = protocol.of("cloze")
    assert (cloze.mode, cloze.shots, cloze.question) == ("generate", 3, "{question}")
    assert protocol.of("qa") is protocol


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocols": {"plain": {"question": "{qestion}"}}}, r"protocols\.plain.*\{qestion\}.*Did you mean question"),
        ({"protocols": {"plain": {"question": "{question", "mode": "letter"}}}, r"protocols\.plain.*expected '}'"),
        ({"protocols": {"plain": {"question": "q", "mode": "guess"}}}, r"protocols\.plain:mode"),
        ({"protocols": {"plain": {"question": "q", "shot": 3}}}, r"no key 'shot'. Did you mean shots"),
        ({"subjects": {"a": {"category": "X", "ch": "甲"}}}, r"subjects\.a:ch"),
        ({"subjects": {"a": "甲"}}, r"subjects\.a.*mapping"),
        ({"groups": {"hard": ["c"]}}, "group 'hard' names subjects that do not exist: c"),
        ({"demo_split": "dev"}, "there is no split 'dev'"),
        ({"licens": "MIT"}, "no key 'licens'"),
    ],
)
def test_wrong_descriptions_name_the_place(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        described(small(**changes), where="small.yaml")


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(UsageError, match="Did you mean cmmlu"):
        benchmark_named("cmmlv")
    with pytest.raises(UsageError, match="Did you mean official"):
        benchmark_named("mmlu").protocol("offical")
    assert benchmark_named("mmlu").protocol()[0] == "official"


def test_letters_of_an_item() -> None:
    item = Item("1", "a", "?", choices=("x", "y", "z"), answers=("A", "C"))
    assert (item.letters, item.answer) == ("ABC", "AC")
    assert Item("1", "a", "?", answers=("42", "42.0")).answer == "42"
