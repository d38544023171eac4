"""Words of the command line that name a model behind a URL."""

from __future__ import annotations

from typing import Annotated, Any

import typer

Api = Annotated[str | None, typer.Option("--api", help="address of a service; --model is its model then")]
KeyName = Annotated[
    str | None, typer.Option("--api-key-env", help="environment variable with the service's key [OPENAI_API_KEY]")
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="with --api: ask again what was answered before")]


def service_options(api: str | None, key_name: str | None, no_cache: bool = False) -> dict[str, Any]:
    """Options of a service, those that are given."""
    given = {"api": api, "api_key_env": key_name, "answer_cache": "off" if no_cache else None}
    return {name: value for name, value in given.items() if value is not None}
