"""Rewards: how they are written, what the rules say, and functions and servers that misbehave."""

from __future__ import annotations

import json
import math
from inspect import signature
from pathlib import Path
from typing import Any

import pytest

from danlu.core.errors import ConfigError, DataError, UsageError
from danlu.data.schema import Conversation, Message
from danlu.tune.online.builtin_rewards import (
    chinese,
    contains,
    exact_match,
    format_think,
    length,
    number,
    regex,
)
from danlu.tune.online.builtin_rewards import json as json_rule
from danlu.tune.online.function_reward import OFFERED
from danlu.tune.online.rewards import REWARDS, Rewards, open_reward, open_rewards
from danlu.tune.online.samples import RewardError, Sample
from danlu.tune.online.sources import parse_source, split_sources

PROMPT = Conversation((Message("system", "Be brief."), Message("user", "What melts at 1538 °C?")))


def sample(answer: str, reference: str | None = None, key: int = 0xABC) -> Sample:
    return Sample(PROMPT, answer, reference, tokens=len(answer), finished=True, key=key)


def module(folder: Path, text: str) -> str:
    path = folder / "my rewards.py"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("written", "entries"),
    [
        (None, []),
        ("", []),
        ("length, chinese", ["length", "chinese"]),
        ("length(min=1, max=5), a/b.py:f(x=[1, 2])", ["length(min=1, max=5)", "a/b.py:f(x=[1, 2])"]),
        ('regex(pattern="a,(b"), json', ['regex(pattern="a,(b")', "json"]),
        (r'regex(pattern="\",)"), json', [r'regex(pattern="\",)")', "json"]),
        ({"length": {"max": 5}, "json": None}, [{"length": {"max": 5}}, {"json": None}]),
        (["length", "json"], ["length", "json"]),
    ],
)
def test_sources_are_split_at_commas_outside_brackets(written: Any, entries: list[Any]) -> None:
    assert split_sources(written) == entries


@pytest.mark.parametrize(
    ("entry", "source", "arguments", "label"),
    [
        ("length", "length", {}, "length"),
        (" length( max = 80 , min=-1 )", "length", {"max": 80, "min": -1}, "length"),
        ("contains(text=铁)", "contains", {"text": "铁"}, "contains"),
        ("contains(text=['a', 'b'])", "contains", {"text": ["a", "b"]}, "contains"),
        ('regex(pattern="(a|b):c", full=true)', "regex", {"pattern": "(a|b):c", "full": True}, "regex"),
        ("my rewards/r (2).py:brevity", "my rewards/r (2).py:brevity", {}, "brevity"),
        ("r.py:brevity(limit=3)", "r.py:brevity", {"limit": 3}, "brevity"),
        ("package.module:brevity", "package.module:brevity", {}, "brevity"),
        ("https://host:8000/score?v=(1)", "https://host:8000/score?v=(1)", {}, "server"),
        ({"http://host/": {"timeout": 5}}, "http://host/", {"timeout": 5}, "server"),
        ({"json": None}, "json", {}, "json"),
    ],
)
def test_sources_are_read(entry: Any, source: str, arguments: dict[str, Any], label: str) -> None:
    spec = parse_source(entry)
    assert (spec.source, spec.arguments, spec.label) == (source, arguments, label)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("two words", "no reward"),
        ("r.py:", "no reward"),
        ("length(80)", "name=value"),
        ("length(max=)", "name=value"),
        ("length(**x)", "name=value"),
        ("length(max=len(x))", "name=value"),
        ({"length": 80}, "are a mapping"),
        ({"length": None, "json": None}, "one name"),
    ],
)
def test_what_cannot_be_read_is_said(entry: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_source(entry)
    assert "reward_funcs" in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("length(maximum=80)", "no argument maximum"),
        ("length(max=eighty)", r"valid integer.*'eighty'"),
        ("length(min=5, max=3)", "no answer has 5 to 3"),
        ("regex", "needs pattern"),
        ("regex(pattern='(')", "not a regular expression"),
        ("contains(text='')", "every answer"),
        ("json(kind=number)", "object"),
        ("number(tolerance=2)", "share"),
        ({"http://host/": {"timeout": 0}}, "above 0"),
        ({"http://host/": {"sleep": 1}}, "no argument sleep"),
        ("http:///score", "no address"),
    ],
)
def test_wrong_arguments_are_said_before_anything_starts(entry: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_reward(parse_source(entry))


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UsageError, match="exact_match"):
        open_reward(parse_source("exactmatch"))


def test_every_rule_can_be_opened() -> None:
    needed = {"regex": {"pattern": "x"}}
    for name in REWARDS:
        reward = open_reward(parse_source({name: needed.get(name)}))
        assert reward.score([sample("12", "12")])[0] in (0.0, 1.0)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_rule_and_its_arguments_are_documented(language: str, root: Path) -> None:
    text = (root / "docs" / language / "objectives.md").read_text(encoding="utf-8")
    for name in REWARDS:
        (line,) = [line for line in text.splitlines() if line.startswith(f"| `{name}` |")]
        arguments = line.split("|")[3]
        assert all(f"`{argument}`" in arguments for argument in signature(REWARDS[name]).parameters), name
    assert all(f"`{name}`" in text for name in (*OFFERED, "DANLU_REWARD_TOKEN", "retries", "timeout", "batch_size"))


@pytest.mark.parametrize(
    ("rule", "answer", "reference", "wanted"),
    [
        (length(min=2, max=4), " abc\n", None, 1.0),
        (length(min=4), "ab", None, 0.5),
        (length(max=4), "abcdefgh", None, 0.5),
        (length(max=0), "", None, 1.0),
        (length(max=0), "a", None, 0.0),
        (chinese(), "铁的熔点是 1538°C。", None, 5 / 10),
        (chinese(), "", None, 0.0),
        (chinese(), "！。", None, 0.0),
        (chinese(), "𠀀好", None, 1.0),
        (contains(), "It is IRON, I think.", "iron", 1.0),
        (contains(), "It is gold.", "iron", 0.0),
        (contains(text="ＦＥ"), "fe", None, 1.0),
        (contains(text=["iron", "1538"]), "iron", None, 0.5),
        (exact_match(), " “Iron.” ", "iron", 1.0),
        (exact_match(), "iron ore", "iron", 0.0),
        (exact_match(), "?", "!", 0.0),
        (regex(r"\d+"), "at 1538", None, 1.0),
        (regex(r"\d+", full=True), "at 1538", None, 0.0),
        (regex(r"a.b", full=True), "a\nb\n", None, 1.0),
        (json_rule(), '{"a": [1]}', None, 1.0),
        (json_rule(), '```json\n{"a": 1}\n```', None, 1.0),
        (json_rule(), "7", None, 0.0),
        (json_rule(kind="object"), "[1]", None, 0.0),
        (json_rule(), "{a: 1}", None, 0.0),
        (json_rule(), "[" * 100_000, None, 0.0),
        (format_think(), "<think>hm</think>\nIron.", None, 1.0),
        (format_think(), "<think> </think>Iron.", None, 0.0),
        (format_think(), "<think>hm</think>", None, 0.0),
        (format_think(), "<think>a</think>b</think>c", None, 0.0),
        (format_think(), "Well. <think>hm</think>Iron.", None, 0.0),
        (format_think(opened=True), "hm</think>Iron.", None, 1.0),
        (number(), "So 5 − 3 = 2.", "#### 2", 1.0),
        (number(), "1,538.0 °C", "1538", 1.0),
        (number(), "共１，５３８度", "1538", 1.0),
        (number(), "得 -3 分", "3", 0.0),
        (number(), "1234567", "1234568", 0.0),
        (number(tolerance=0.01), "0.333", "0.3333", 1.0),
        (number(), "no idea", "3", 0.0),
        (number(), "x" + "9" * 400 + " 1e999999999999", "3", 0.0),
        (number(), "0.5", ".50", 1.0),
    ],
)
def test_rules(rule: Any, answer: str, reference: str | None, wanted: float) -> None:
    assert rule(sample(answer, reference)) == pytest.approx(wanted)


@pytest.mark.parametrize("rule", [contains(), exact_match(), number()])
@pytest.mark.parametrize("reference", [None, " "])
def test_rules_that_compare_need_an_answer_of_the_row(rule: Any, reference: str | None) -> None:
    with pytest.raises(DataError, match=r"row 0+abc: .*needs the row's answer"):
        rule(sample("a", reference))


def test_a_row_without_a_number_is_named() -> None:
    with pytest.raises(DataError, match="row 0+abc.*no number"):
        number()(sample("3", "three"))


def test_rewards_are_weighted_and_added() -> None:
    rewards = open_rewards(["length(max=4)", "json", "length(max=8)"], [1.0, 2.0, 0.5])
    scored = rewards.score([sample("abcdefgh"), sample("[1]")])
    assert scored.parts == {"length": [0.5, 1.0], "json": [0.0, 1.0], "length_2": [1.0, 1.0]}
    assert scored.total == [1.0, 3.5]
    assert rewards.score([]).total == []


def test_other_rewards_come_behind() -> None:
    class Two:
        def score(self, samples: Any) -> list[float]:
            return [2.0] * len(samples)

    rewards = open_rewards(["length"], [1.0, 10.0], further=[("model", Two())])
    assert rewards.score([sample("a")]).total == [21.0]


@pytest.mark.parametrize(
    ("weights", "message"), [([1.0, 2.0], "2 weights for 1 rewards"), ([math.nan], "not a number")]
)
def test_weights_have_to_fit(weights: list[float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_rewards(["json"], weights)


def test_no_rewards_are_a_mistake() -> None:
    with pytest.raises(ConfigError, match="reward_funcs.*nothing says"):
        Rewards([])


FUNCTIONS = """
import json
from dataclasses import dataclass

@dataclass
class Kept:
    calls: int = 0

def everything(**given):
    Kept.calls += 1
    assert given["prompts"][0] == [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "What melts at 1538 °C?"}]
    assert given["rows"][0] == "0000000000000abc", given["rows"]
    assert given["references"] == ["iron", None] and given["finished"] == [True, True]
    return [float(n) for n in given["tokens"]]

def some(answers, *, factor=1):
    return tuple(len(answer) * factor for answer in answers)

def needs(answers, secret): return [0.0] * len(answers)
def short(answers): return [0.0]
def text(answers): return "good"
def nothing(answers): return None
def hole(answers): return [1.0, None]
def nan(answers): return [1.0, float("nan")]
def word(answers): return [1.0, "good"]
def flags(answers): return [True, False]
def broken(answers):
    return json.loads(answers[0])
NUMBER = 3
"""


def test_a_function_gets_what_it_asks_for(tmp_path: Path) -> None:
    path = module(tmp_path, FUNCTIONS)
    samples = [sample("abc", "iron"), sample("de")]
    assert open_reward(parse_source(f"{path}:everything")).score(samples) == [3.0, 2.0]
    assert open_reward(parse_source(f"{path}:some(factor=10)")).score(samples) == [30, 20]
    assert open_reward(parse_source(f"{path}:flags")).score(samples) == [1.0, 0.0]


def test_an_edited_file_is_read_again(tmp_path: Path) -> None:
    path = module(tmp_path, "def f(answers): return [1] * len(answers)\n")
    assert open_reward(parse_source(f"{path}:f")).score([sample("a")]) == [1]
    module(tmp_path, "def f(answers): return [22] * len(answers)\n")
    assert open_reward(parse_source(f"{path}:f")).score([sample("a")]) == [22]


def test_a_function_of_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "danlu_test_rewards.py").write_text("def f(answers): return [3.0] * len(answers)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert open_reward(parse_source("danlu_test_rewards:f")).score([sample("a")]) == [3.0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("short", "short: it returned 1 numbers for 2 answers"),
        ("text", "text: it returned text instead of a list of 2 numbers"),
        ("nothing", "nothing: it returned None instead"),
        ("hole", r"hole: it returned None for answer 1 of this batch \(row 0+1: 'second'\)"),
        ("nan", "nan: it returned nan for answer 1 .*second"),
        ("word", "word: it returned text for answer 1 "),
        ("broken", r"rewards.py:29:broken: the reward function raised JSONDecodeError: .*the first one is 'first'"),
    ],
)
def test_a_wrong_return_names_function_and_sample(name: str, message: str, tmp_path: Path) -> None:
    reward = open_reward(parse_source(f"{module(tmp_path, FUNCTIONS)}:{name}"))
    with pytest.raises(RewardError, match=message) as caught:
        reward.score([sample("first"), sample("second", key=1)])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("PATH:sone", "no function sone.*Did you mean some"),
        ("PATH:NUMBER", "no function NUMBER"),
        ("PATH:needs", "missing a required argument: 'secret'"),
        ("PATH:some(amount=1)", "unexpected keyword argument 'amount'"),
        ("PATH:some(answers=1)", "answers is filled in by danlu"),
        ("nowhere.py:f", "nowhere.py: there is no such file"),
        ("no_such_package_at_all.rewards:f", "cannot be imported.*path/to/file.py:function"),
    ],
)
def test_a_function_that_cannot_be_called_is_said_first(entry: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        open_reward(parse_source(entry.replace("PATH", module(tmp_path, FUNCTIONS))))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\nimport no_such_thing_at_all\n", r"my rewards.py:2: .*ModuleNotFoundError"),
        ("def f(:\n", r":1: .*SyntaxError"),
    ],
)
def test_a_file_that_cannot_be_imported_names_the_line(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        open_reward(parse_source(f"{module(tmp_path, text)}:f"))


def test_specs_survive_yaml_and_json() -> None:
    entries = split_sources("length(max=80), r.py:f(x=1)")
    assert [parse_source(item) for item in json.loads(json.dumps(entries))] == [parse_source(item) for item in entries]
