"""Who answers and how it is asked, as options of a command."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from danlu.core.config import Options
from danlu.engine.remote.ledger import Price


class EngineOptions(Options):
    """A model behind a URL, or replicas of one in memory."""

    api: str | None = Field(default=None, description="address of a service that speaks OpenAI's protocol")
    api_key_env: str = Field(default="OPENAI_API_KEY", description="environment variable with the service's key")
    api_concurrency: int = Field(default=8, ge=1, description="requests under way at a time")
    requests_per_minute: float | None = Field(default=None, gt=0, description="most requests a minute")
    tokens_per_minute: float | None = Field(default=None, gt=0, description="most tokens a minute, answers included")
    api_timeout: float = Field(default=300.0, gt=0, description="seconds to wait for an answer")
    api_retries: int = Field(default=6, ge=0, description="how often a request that failed for now is made again")
    price_in: float | None = Field(default=None, ge=0, description="price of a million tokens that are read")
    price_out: float | None = Field(default=None, ge=0, description="price of a million tokens that are written")
    budget: float | None = Field(default=None, gt=0, description="most that may be spent, in the prices' currency")
    answer_cache: Literal["on", "off", "sampled"] = Field(
        default="on", description="remember answers; sampled: also those that were sampled without a seed"
    )

    engine: Literal["local", "vllm"] = Field(default="local", description="what runs the model: transformers, or vLLM")
    replicas: int = Field(default=1, ge=1, description="copies of the model that share the requests, through Ray")

    @property
    def price(self) -> Price | None:
        """The price of the tokens, None when none is given."""
        given = (self.price_in, self.price_out)
        return None if given == (None, None) else Price(self.price_in or 0.0, self.price_out or 0.0)

    def model_post_init(self, _: Any) -> None:
        """A budget without a price cannot be kept."""
        if self.budget is not None and self.price is None:
            raise ValueError("a budget needs the prices of tokens: price_in and price_out, for a million each")
