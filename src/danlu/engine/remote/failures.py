"""What a service can answer wrong, each as one paragraph: the address, the status, what to do; never the key."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from danlu.core.errors import DanluError

PASSING = frozenset({408, 409, 425, 429})
"""Statuses below 500 that may be another one a moment later."""

SHOWN = 200
"""Characters of a service's own words that are shown."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP answer that is not a success.

    Attributes:
        status: of the answer.
        body: what it holds.
        headers: of the answer, lower case.
    """

    status: int
    body: bytes = b""
    headers: Mapping[str, str] | None = None

    @property
    def said(self) -> Any:
        """The error object of the body, ``{}`` where it has none."""
        try:
            value = json.loads(self.body)
        except ValueError:
            return {}
        inner = value.get("error", value) if isinstance(value, dict) else {}
        return inner if isinstance(inner, dict) else {"message": inner}

    @property
    def words(self) -> str:
        """What the service says, in one line."""
        told = self.said.get("message")
        return shown(told.encode("utf-8", "replace") if isinstance(told, str) and told else self.body)

    @property
    def code(self) -> str:
        """The service's own name of the error."""
        return str(self.said.get("code") or self.said.get("type") or "")

    @property
    def passing(self) -> bool:
        """Whether asking again may help. Credit that is used up is answered with 429 too, and does not come back."""
        return (self.status in PASSING or self.status >= 500) and self.code != "insufficient_quota"


class RemoteError(DanluError):
    """A service gives no usable answer.

    Attributes:
        reply: the HTTP answer; None where there was none, or it was a success that makes no sense.
        hopeless: whether every other request would fail in the same way (wrong key, wrong address, no credit).
    """

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        hint: str | None = None,
        reply: Reply | None = None,
        hopeless: bool = False,
    ) -> None:
        super().__init__(what, where=where, hint=hint)
        self.reply, self.hopeless = reply, hopeless


class Passing(Exception):
    """A failure that may be over a moment later.

    Attributes:
        told: in words.
        wait: seconds that the service asks for.
        reply: the HTTP answer, if there was one.
    """

    def __init__(self, told: str, wait: float | None = None, reply: Reply | None = None) -> None:
        super().__init__(told)
        self.told, self.wait, self.reply = told, wait, reply


class BudgetError(DanluError):
    """The next request could cost more than the budget has left."""


def shown(body: bytes) -> str:
    """The beginning of an answer, in one line and without anything that looks like a key."""
    text = " ".join(body[:4000].decode("utf-8", "replace").split())
    return re.sub(r"\b(sk-|Bearer )[\w*.-]{4,}", "…", text)[:SHOWN] or "nothing"


def refused(reply: Reply, told: str, where: str, hints: Mapping[int, str]) -> RemoteError:
    """The error of an answer that asking again would not change; ``told`` is it in words."""
    hint = hints.get(reply.status)
    hopeless = reply.status in (401, 402, 403, 404, 405) or 300 <= reply.status < 400
    if reply.code == "insufficient_quota":
        hint, hopeless = "The account has no credit left; asking again would not help.", True
    return RemoteError(
        told,
        where=where,
        hint=hint,
        reply=reply,
        hopeless=hopeless,
    )


REDIRECTS = dict.fromkeys((301, 302, 303, 307, 308), "Give the address that it points to.")
"""They are not followed: a redirected POST loses its body, and the key would travel to another host."""


def service_hints(key_variable: str, model: str) -> dict[int, str]:
    """What to do about the statuses of a model service."""
    return {
        400: "It does not accept this request; its words say why (often a prompt that is too long).",
        401: f"Put the service's key into the environment variable {key_variable}, or name another with --api-key-env.",
        402: "The account has no credit left.",
        403: f"The key in {key_variable} may not use the model {model}, or the service is closed to this place.",
        404: f"Check the address (it usually ends with /v1) and that the service has a model named {model}.",
        405: "Check the address: it usually ends with /v1.",
        413: "The prompt is too long for this service.",
        422: "It does not accept this request; its words say why.",
        **REDIRECTS,
    }
