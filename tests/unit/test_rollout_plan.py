"""What is said about prompts and answers before a training on the model's own answers begins."""

from __future__ import annotations

from typing import Any

import pytest

from danlu.core.config import build
from danlu.core.errors import UsageError
from danlu.tune.config import TrainConfig
from danlu.tune.online.plan import check_room


def config(**options: Any) -> TrainConfig:
    return build(TrainConfig, {"stage": "grpo", "max_new_tokens": 100, **options}, where="test")


def test_a_prompt_that_fills_the_context_is_refused() -> None:
    with pytest.raises(UsageError, match="512 tokens and leaves no room.*takes 512 tokens. Set cutoff_len=412"):
        check_room(config(), 512, 512)
    with pytest.raises(UsageError, match="takes 448 tokens"):
        check_room(config(finetuning_type="prompt_tuning", pre_seq_len=64), 448, 512)


def test_shorter_answers_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    check_room(config(), 450, 512)
    assert "end after 62 instead of 100 tokens" in capsys.readouterr().err


@pytest.mark.parametrize(("longest", "context"), [(412, 512), (9_000, None)])
def test_where_everything_fits_nothing_is_said(
    longest: int, context: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    check_room(config(), longest, context)
    assert capsys.readouterr().err == ""
