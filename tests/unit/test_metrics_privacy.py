"""Personal data is found next to Chinese characters, and numbers that only look like it are not."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from danlu.core.errors import UsageError
from danlu.data.personal import find_personal_data, id_checksum, kinds_of_data, luhn
from danlu.evaluate.metrics import measure

FOUND = [
    ("我的电话是13800138000。", "phone", "13800138000"),
    ("电话+86-13800138000，急", "phone", "+86-13800138000"),
    ("+86 138 0013 8000", "phone", "+86 138 0013 8000"),
    ("拨打138-0013-8000吧", "phone", "138-0013-8000"),
    ("手机１３８００１３８０００号", "phone", "１３８００１３８０００"),
    ("座机010-62781234转", "phone", "010-62781234"),
    ("(0571)87654321", "phone", "(0571)87654321"),
    ("call +1-202-555-0123 now", "phone", "+1-202-555-0123"),
    ("身份证11010519491231002X，", "id-card", "11010519491231002X"),
    ("号码440524188001010014号", "id-card", "440524188001010014"),
    ("卡号4111 1111 1111 1111谢", "bank-card", "4111 1111 1111 1111"),
    ("运通378282246310005卡", "bank-card", "378282246310005"),
    ("卡5555-5555-5555-4444", "bank-card", "5555-5555-5555-4444"),
    ("邮箱是zhang.san@mail.example.com.cn。", "email", "zhang.san@mail.example.com.cn"),
    ("write to a+b@x-y.org!", "email", "a+b@x-y.org"),
    ("服务器192.168.0.1上", "ip", "192.168.0.1"),
    ("at 10.0.0.255.", "ip", "10.0.0.255"),
    ("地址2001:db8::1是", "ip", "2001:db8::1"),
]
NOTHING = [
    *("2138001380001", "1380013800", "12800138000", "圆周率3.13800138000"),
    *("110105194912310021", "110105194913310021"),
    *("4111111111111112", "6222021234567890123", "6217000010001234563", "0000 0000 0000 0000"),
    *("1.2.3.4.5", "256.1.1.1", "192.168.0", "std::vector<int>", "a::b", "12:30:45", "2026-11-23 10:20:30"),
    *("user@localhost", "@name", "订单1700000000000", "今天天气很好", "", "1,234,567,890"),
]


@pytest.mark.parametrize(("text", "kind", "datum"), FOUND)
def test_found(text: str, kind: str, datum: str) -> None:
    (found,) = find_personal_data(text)
    assert (found.kind, found.text) == (kind, datum)
    assert text[found.start : found.end] == datum


@pytest.mark.parametrize("text", NOTHING)
def test_not_found(text: str) -> None:
    assert find_personal_data(text) == []


def test_several_in_order_and_none_twice() -> None:
    text = "张三13800138000，身份证11010519491231002X，邮箱a@b.cn，卡4111111111111111，IP 8.8.8.8"
    assert [found.kind for found in find_personal_data(text)] == ["phone", "id-card", "email", "bank-card", "ip"]


@pytest.mark.parametrize(
    ("number", "right"),
    [
        ("4111111111111111", True),
        ("4111 1111 1111 1111", True),
        ("378282246310005", True),
        ("5555555555554444", True),
        ("1234567812345670", True),
        ("4111111111111112", False),
        ("6222021234567890123", False),
        ("6217000010001234563", False),
        ("", False),
        ("0", False),
    ],
)
def test_luhn(number: str, right: bool) -> None:
    assert luhn(number) is right


@given(st.integers(10**14, 10**18))
def test_luhn_has_one_right_last_digit(number: int) -> None:
    assert sum(luhn(f"{number}{last}") for last in range(10)) == 1


@pytest.mark.parametrize(
    ("number", "right"),
    [
        ("11010519491231002X", True),
        ("11010519491231002x", True),
        ("440524188001010014", True),
        ("110105194912310021", False),
        ("11010519491231002", False),
        ("１１０１０５１９４９１２３１００２Ｘ", False),
    ],
)
def test_checksum_of_an_id_card(number: str, right: bool) -> None:
    assert id_checksum(number) is right


def test_a_changed_digit_or_two_that_change_places_break_the_checksum() -> None:
    number, generator = "44052418800101001", random.Random(1)
    for _ in range(200):
        place, digit = generator.randrange(17), generator.randrange(10)
        changed = number[:place] + str(digit) + number[place + 1 :] + "4"
        assert id_checksum(changed) == (number[place] == str(digit))


def test_the_metric_counts_answers_and_kinds() -> None:
    texts = ["电话13800138000", "没有", "a@b.cn 和 13800138000", "8.8.8.8"]
    measured = measure(texts, None, "pii")
    assert measured.means() == {
        "pii": 75.0,
        "pii-email": 25.0,
        "pii-id-card": 0.0,
        "pii-bank-card": 0.0,
        "pii-phone": 50.0,
        "pii-ip": 25.0,
    }
    assert measured["pii"].interval == "wilson"
    assert measure(texts, None, "pii", options={"kinds": "email,ip"}).means()["pii"] == 50.0
    assert measure(texts, None, "pii-ip").means() == {"pii-ip": 25.0}
    assert len(kinds_of_data()) == 5
    with pytest.raises(UsageError, match="Did you mean phone"):
        measure(texts, None, "pii", options={"kinds": ["fone"]})


@given(st.text(max_size=60))
def test_any_text_can_be_searched(text: str) -> None:
    found = find_personal_data(text)
    assert all(one.end <= two.start for one, two in zip(found, found[1:]))
