"""As much of Go's text/template as Modelfiles of danlu use: a reading of its own, to compare with."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

ACTION = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)


def go_render(source: str, system: str, messages: list[dict[str, str]]) -> str:
    """Render a template over ``.System`` and ``.Messages``."""
    parts = ACTION.split(source)
    words = [(number % 2 == 1, text.strip() if number % 2 else text) for number, text in enumerate(parts)]
    tree, rest = _parse(iter(words))
    assert rest is None
    root = {"System": system, "Messages": messages}
    return "".join(_run(tree, root, root, {}))


def _parse(words: Iterator[tuple[bool, str]]) -> tuple[list[Any], str | None]:
    """Nodes up to ``end`` or ``else …``, and which of them it was."""
    nodes: list[Any] = []
    for is_action, text in words:
        if not is_action:
            nodes.append(("text", text))
        elif text == "end" or text.startswith("else"):
            return nodes, text
        elif text.startswith(("if ", "range ")):
            nodes.append(_block(text, words))
        else:
            nodes.append(("action", text))
    return nodes, None


def _block(text: str, words: Iterator[tuple[bool, str]]) -> tuple[Any, ...]:
    body, ended = _parse(words)
    other: list[Any] = []
    assert ended is not None
    if ended.startswith("else if "):
        other = [_block(ended.removeprefix("else "), words)]
    elif ended == "else":
        other, ended = _parse(words)
        assert ended == "end"
    kind, _, what = text.partition(" ")
    return kind, what, body, other


def _run(nodes: list[Any], root: Any, dot: Any, names: dict[str, Any]) -> Iterator[str]:
    for node in nodes:
        if node[0] == "text":
            yield node[1]
        elif node[0] == "action":
            name, assigns, value = node[1].partition(" := ")
            if assigns:
                names[name] = _value(value, root, dot, names)
            else:
                yield str(_value(node[1], root, dot, names))
        elif node[0] == "if":
            yield from _run(node[2] if _value(node[1], root, dot, names) else node[3], root, dot, names)
        else:
            variables, _, value = node[1].partition(" := ")
            index = variables.split(",")[0]
            for number, item in enumerate(_value(value, root, dot, names)):
                yield from _run(node[2], root, item, {**names, index: number})


def _value(text: str, root: Any, dot: Any, names: dict[str, Any]) -> Any:
    words = re.findall(r'"[^"]*"|[()]|[^\s()]+', text)
    value, rest = _call(words, root, dot, names)
    assert not rest
    return value


def _call(words: list[str], root: Any, dot: Any, names: dict[str, Any]) -> tuple[Any, list[str]]:
    """A function with its arguments, or a single operand."""
    functions = {
        "eq": lambda a, b: a == b,
        "not": lambda a: not a,
        "len": len,
        "slice": lambda a, b: a[b:],
    }
    if words[0] not in functions:
        return _operand(words, root, dot, names)
    function, rest, arguments = functions[words[0]], words[1:], []
    while rest and rest[0] != ")":
        value, rest = _operand(rest, root, dot, names)
        arguments.append(value)
    return function(*arguments), rest


def _operand(words: list[str], root: Any, dot: Any, names: dict[str, Any]) -> tuple[Any, list[str]]:
    word, rest = words[0], words[1:]
    if word == "(":
        value, rest = _call(rest, root, dot, names)
        assert rest[0] == ")"
        return value, rest[1:]
    if word.startswith('"'):
        return word[1:-1], rest
    if word.isdigit():
        return int(word), rest
    if word.startswith("$."):
        return root[word[2:]], rest
    if word.startswith("$"):
        return names[word], rest
    assert word.startswith("."), word
    return dot[word[1:]], rest
