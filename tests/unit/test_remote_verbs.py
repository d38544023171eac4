"""predict, eval and chat with a model behind a URL, through their functions and the command line."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai_server import Service, chat, echo, failed, question, stream

import danlu
from danlu.cli.main import main
from danlu.core.errors import UsageError
from danlu.engine.options import EngineOptions
from danlu.engine.remote.failures import RemoteError


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Service]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("DANLU_CACHE", str(tmp_path / "cache"))
    service = Service()
    yield service
    service.close()


@pytest.fixture
def rows(tmp_path: Path) -> str:
    path = tmp_path / "rows.jsonl"
    values = [{"instruction": f"Say {n}", "input": "", "output": f"Say {n}!"} for n in range(6)]
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return str(path)


def run(*words: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(list(words))
    assert not stop.value.code


def written(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_predictions_of_a_service(service: Service, rows: str, tmp_path: Path) -> None:
    file = danlu.predict(model="m", api=service.url, dataset=rows, output_dir=str(tmp_path / "out"))
    found = written(file)
    assert [row["predict"] for row in found] == [f"Say {n}!" for n in range(6)]
    assert json.loads(found[0]["prompt"]) == [{"role": "user", "content": "Say 0"}]


def test_eval_by_the_command_line(
    service: Service, rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["eval", "--api", service.url, "--model", "m", f"dataset={rows}", f"output_dir={tmp_path / 'out'}"]
    for extra in ([], [], ["--no-cache", "price_in=1", "price_out=1"]):
        run(*words, *extra)
    results = json.loads((tmp_path / "out" / "eval_results.json").read_text())
    assert results["eval_rouge-l"] == 100
    told = capsys.readouterr().err.replace("\n", " ")
    assert "m: 0 answers, 0 tokens in, 0 out; 6 more from the cache" in told
    assert "m: 6 answers, 42 tokens in, 18 out; cost 0.0001" in told
    assert len(service.bodies) == 12


def test_after_a_failure_only_what_is_missing_is_asked(service: Service, rows: str, tmp_path: Path) -> None:
    service.answer = lambda body: failed(400, "no") if question(body) == "Say 3" else echo(body)
    asking: dict[str, Any] = {"model": "m", "api": service.url, "dataset": rows, "answer_cache": "off"}
    with pytest.raises(RemoteError, match="1 request got no answer, 5 did"):
        danlu.predict(**asking, output_dir=str(tmp_path / "out"))
    service.answer, before = echo, len(service.bodies)
    file = danlu.predict(**asking, output_dir=str(tmp_path / "out"))
    assert len(service.bodies) == before + 1
    assert [row["predict"] for row in written(file)] == [f"Say {n}!" for n in range(6)]


def test_talking_to_a_service(
    service: Service, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    service.answer = lambda body: stream("you said ", question(body))
    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo\n"))
    run("chat", "--api", service.url, "--model", "m", "--system", "Be brief.")
    assert capsys.readouterr().out == "you said one\nyou said two\n"
    assert [turn["role"] for turn in service.bodies[1]["messages"]] == ["system", "user", "assistant", "user"]


def test_a_wrong_key_is_one_paragraph(
    service: Service, rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "hidden-key")
    service.answer = lambda body: failed(401, "hidden-key is wrong")
    words = [f"dataset={rows}", f"output_dir={tmp_path / 'out'}"]
    with pytest.raises(SystemExit) as stop:
        main(["predict", "--api", service.url, "--model", "m", "--api-key-env", "MY_KEY", *words])
    told = capsys.readouterr().err
    assert stop.value.code == 1
    assert f"error: {service.url}/chat/completions: the server answered 401: … is wrong. Put the service's key" in told
    assert "hidden-key" not in told
    assert service.headers[0]["Authorization"] == "Bearer hidden-key"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"run": "runs/x"}, "models of its own"),
        ({"model": "m", "adapter": ["a"]}, "models of its own"),
        ({}, "model is not named"),
        ({"model": "m", "replicas": 2}, "not run or replicated"),
        ({"model": "m", "api_concurrency": 0}, "api_concurrency: it has to be at least 1"),
        ({"model": "m"}, "no rows to answer"),
    ],
)
def test_wrong_use_is_said(keys: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        danlu.evaluate(api="http://127.0.0.1:9/v1", output_dir=str(tmp_path), **keys)


def test_chat_refuses_what_a_service_does_not_have() -> None:
    with pytest.raises(UsageError, match="no option template"):
        danlu.chat(api="http://127.0.0.1:9/v1", model="m", template="chatml")
    with pytest.raises(UsageError, match="are for a service"):
        danlu.chat(model="m", price_in=1)


def test_an_answer_that_was_cut_is_counted(
    service: Service, rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    service.answer = lambda body: chat("x", finish="length") if question(body) == "Say 1" else echo(body)
    danlu.predict(model="m", api=service.url, dataset=rows, output_dir=str(tmp_path / "out"))
    assert "1 of 6 answers reached max_new_tokens=512" in capsys.readouterr().err


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_option_is_on_the_page(root: Path, language: str) -> None:
    page = (root / "docs" / language / "engines.md").read_text(encoding="utf-8")
    table = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    assert [name for name in EngineOptions.model_fields if not any(f"`{name}`" in cell for cell in table)] == []


def test_a_benchmark_of_a_service(service: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "sums.csv"
    table.write_text("question,A,B,C,answer\n一加一？,1,2,3,B\n二加一？,1,2,3,C\n", encoding="utf-8")
    service.answer = lambda body: chat("答案是B。")
    words = ["bench", str(table), "--api", service.url, "--model", "m", "--output", str(tmp_path / "out")]
    run(*words, "--protocol", "chat", "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["diagnostics"]["n"] == 2
    assert {number["value"] for number in found["scores"] if number["metric"] == "accuracy"} == {0.5}
    asked = len(service.bodies)
    run(*words, "--protocol", "chat")
    assert len(service.bodies) == asked  # what was answered is not asked again
    with pytest.raises(SystemExit) as stop:
        main([*words, "--protocol", "letter", "--output", str(tmp_path / "letters")])
    assert stop.value.code == 2
    assert "log-probabilities" in capsys.readouterr().err
