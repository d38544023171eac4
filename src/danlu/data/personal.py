"""Personal data in texts: phone numbers, e-mail, ID cards, bank cards, IP addresses; in Chinese as in English text."""

from __future__ import annotations

import datetime
import ipaddress
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

import yaml

_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}
_ID_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_ID_CHECKS = "10X98765432"


@dataclass(frozen=True, slots=True)
class Found:
    """One personal datum.

    Attributes:
        kind: phone, email, id-card, bank-card or ip.
        start: where it begins in the text.
        end: behind its last character.
        text: as it is written.
    """

    kind: str
    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True)
class Pattern:
    """What one kind of datum looks like, and what else must hold."""

    kind: str
    expression: re.Pattern[str]
    check: Callable[[str], bool] | None


def find_personal_data(text: str) -> list[Found]:
    """Every personal datum in a text, in order; none overlap."""
    rest = text.translate(_FULL_WIDTH)
    found = []
    for pattern in patterns():
        for match in pattern.expression.finditer(rest):
            if pattern.check is None or pattern.check(match[0]):
                found.append(Found(pattern.kind, match.start(), match.end(), text[match.start() : match.end()]))
        taken = list(rest)
        for item in found:
            taken[item.start : item.end] = "\0" * (item.end - item.start)
        rest = "".join(taken)
    return sorted(found, key=lambda item: item.start)


def texts_of(value: Any) -> Iterator[str]:
    """Every text inside a row as a file holds it, whatever its format."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from texts_of(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts_of(inner)


@lru_cache(maxsize=1)
def patterns() -> tuple[Pattern, ...]:
    """The patterns of ``assets/patterns/pii.yaml``."""
    text = files("danlu").joinpath("assets/patterns/pii.yaml").read_text(encoding="utf-8")
    return tuple(
        Pattern(
            entry["kind"],
            re.compile(entry["pattern"], re.ASCII | re.VERBOSE),
            CHECKS[entry["check"]] if "check" in entry else None,
        )
        for entry in yaml.safe_load(text)["patterns"]
    )


def kinds_of_data() -> tuple[str, ...]:
    """The kinds there are patterns for."""
    return tuple(dict.fromkeys(pattern.kind for pattern in patterns()))


def luhn(number: str) -> bool:
    """Whether the last digit is the check digit of the others; what is no digit is left out (ISO/IEC 7812-1)."""
    digits = [int(character) for character in reversed(number) if "0" <= character <= "9"]
    if len(digits) < 2:
        return False
    doubled = [
        digit if place % 2 == 0 else (2 * digit - 9 if digit > 4 else 2 * digit) for place, digit in enumerate(digits)
    ]
    return sum(doubled) % 10 == 0


def id_checksum(number: str) -> bool:
    """Whether the last of eighteen characters is the check character of the others (ISO 7064 MOD 11-2)."""
    if not re.fullmatch(r"[0-9]{17}[0-9Xx]", number):
        return False
    total = sum(weight * int(digit) for weight, digit in zip(_ID_WEIGHTS, number))
    return _ID_CHECKS[total % 11] == number[-1].upper()


def is_id_card(number: str) -> bool:
    """A Chinese ID number: checksum right, and a day of birth that exists and is not to come."""
    if not id_checksum(number):
        return False
    try:
        born = datetime.date(int(number[6:10]), int(number[10:12]), int(number[12:14]))
    except ValueError:
        return False
    return datetime.date(1800, 1, 1) <= born <= datetime.date.today()


def is_bank_card(number: str) -> bool:
    """A card number: the check digit is right and the digits are not all the same."""
    return luhn(number) and len({character for character in number if character.isdigit()}) > 1


def is_international_number(number: str) -> bool:
    """Eight to fifteen digits behind the plus sign (ITU-T E.164)."""
    return 8 <= sum(character.isdigit() for character in number) <= 15


def is_ipv6(address: str) -> bool:
    """An address, with a group of at least three digits: ``a::b`` in program text is none."""
    try:
        ipaddress.IPv6Address(address)
    except ValueError:
        return False
    groups = address.split(":")
    return len(groups) == 8 or any(len(group) > 2 for group in groups)


CHECKS: dict[str, Callable[[str], bool]] = {
    "is_id_card": is_id_card,
    "is_bank_card": is_bank_card,
    "is_international_number": is_international_number,
    "is_ipv6": is_ipv6,
}
