"""Parts of the documentation that follow from the code: options, methods and stages, families of models.

``python -m danlu.tune.reference docs`` writes ``docs/*/configuration.md`` and the tables in ``objectives.md`` and
``models.md`` beside it.
English texts are the options' own descriptions, Chinese ones live in ``assets/i18n/config.zh.yaml``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml

from danlu.core.config import Options
from danlu.core.console import note
from danlu.core.files import write_text
from danlu.models.zoo_table import render_families
from danlu.tune.config import TrainConfig
from danlu.tune.matrix import REFUSED, STAGES
from danlu.tune.methods import FAMILIES

Language = Literal["en", "zh"]

HEAD = {
    "en": """# Configuration

Every option of `danlu train`. Write it in a YAML file, flat or inside its group, or on the command line:

```bash
danlu train run.yaml lora_rank=16 optimizer.learning_rate=1e-4
```

The last word wins: command line over file over default. An unknown key is refused and the nearest names are
suggested. Numbers like `5e-5` work as they look. A list is written `[a, b]` or `"a, b"`. `null` means that
danlu chooses or that the option is not used.

This page is generated from `src/danlu/tune/config.py`.
""",
    "zh": """# 配置

`danlu train` 的全部选项。可以写在 YAML 文件里（平铺或放进所属的组），也可以写在命令行上：

```bash
danlu train run.yaml lora_rank=16 optimizer.learning_rate=1e-4
```

后写的优先：命令行高于文件，文件高于默认值。不认识的键会被拒绝，并给出最接近的名字。
`5e-5` 这样的数字照常可用。列表写成 `[a, b]` 或 `"a, b"`。`null` 表示由 danlu 决定，或不使用这一项。

本页由 `src/danlu/tune/config.py` 生成。
""",
}
COLUMNS = {"en": ("key", "type", "default", "what it does"), "zh": ("键", "类型", "默认值", "作用")}
TYPES = {
    "en": {"string": "text", "integer": "integer", "number": "number", "boolean": "true or false"},
    "zh": {"string": "文本", "integer": "整数", "number": "数字", "boolean": "true 或 false"},
}
LIST_OF = {"en": "list of {}s", "zh": "{}列表"}
MAPPING = {"en": "mapping", "zh": "映射"}
OR = {"en": " or ", "zh": " 或 "}
BEGIN, END = "<!-- written by danlu.tune.reference -->\n", "<!-- end -->\n"
"""Around the part of a page that is written from the code."""
MATRIX = {"en": ("method", "stage", "why"), "zh": ("方法", "阶段", "原因")}
COMMA = {"en": ", ", "zh": "、"}
GOES, DOES_NOT = "✓", "–"
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def translations() -> dict[str, Any]:
    """The Chinese texts: ``groups`` (name → title) and ``options`` (name → text)."""
    text = files("danlu").joinpath("assets/i18n/config.zh.yaml").read_text(encoding="utf-8")
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def groups() -> Iterator[tuple[str, type[Options]]]:
    """The groups of a training configuration in their order."""
    for name, field in TrainConfig.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Options):
            yield name, field.annotation


def plain_options() -> Iterator[str]:
    """The names of the options that stand outside the groups."""
    grouped = {name for name, _ in groups()}
    return (name for name in TrainConfig.model_fields if name not in grouped)


def render(language: Language) -> str:
    """The whole page as Markdown.

    Raises:
        KeyError: when an option or group has no Chinese text.
    """
    chinese = translations()
    parts = [HEAD[language]]
    for name, group in groups():
        title = chinese["groups"][name] if language == "zh" else (group.__doc__ or "").strip().splitlines()[0]
        parts += [f"## {name}", "", title, "", *_table(group, group.model_fields, language, chinese), ""]
    parts += [f"## {', '.join(plain_options())}", ""]
    parts += [*_table(TrainConfig, plain_options(), language, chinese), ""]
    return "\n".join(parts)


def _table(group: type[Options], names: Any, language: Language, chinese: Mapping[str, Any]) -> Iterator[str]:
    schema = group.model_json_schema()
    yield f"| {' | '.join(COLUMNS[language])} |"
    yield "|---|---|---|---|"
    for name in names:
        described = schema["properties"][name]
        text = chinese["options"][name] if language == "zh" else described["description"]
        default = group.model_fields[name].default
        cells = (f"`{name}`", _type(described, language), _default(default), text.replace("|", "\\|"))
        yield f"| {' | '.join(cells)} |"


def _type(schema: Mapping[str, Any], language: Language) -> str:
    if "anyOf" in schema:
        choices = [choice for choice in schema["anyOf"] if choice.get("type") != "null"]
        return OR[language].join(_type(choice, language) for choice in choices)
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if schema["type"] == "array":
        return LIST_OF[language].format(_type(schema["items"], language))
    if schema["type"] == "object":
        return MAPPING[language]
    bounds = [f"{sign} {schema[key]:g}" for key, sign in BOUNDS.items() if key in schema]
    return " ".join([TYPES[language][schema["type"]], ", ".join(bounds)]).strip()


def _default(value: Any) -> str:
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    if isinstance(value, str):
        return f"`{value}`" if value.strip() else f"`{json.dumps(value)}`"
    return "`null`" if value is None else f"`{value}`"


def render_matrix(language: Language) -> str:
    """Which method goes with which stage, and why some do not, as two Markdown tables.

    Raises:
        KeyError: when a reason has no Chinese text.
    """
    method_word, stage_word, why = MATRIX[language]
    table = [[f"{method_word} / {stage_word}", *(f"`{stage}`" for stage in STAGES)], ["---", *(":-:" for _ in STAGES)]]
    for method in FAMILIES:
        table.append([f"`{method}`", *(DOES_NOT if (method, stage) in REFUSED else GOES for stage in STAGES)])
    reasons: dict[tuple[str, str], list[str]] = {}
    for (method, stage), reason in REFUSED.items():
        reasons.setdefault((reason, stage), []).append(f"`{method}`")
    chinese = translations()["reasons"]
    second = [[method_word, stage_word, why], ["---", "---", "---"]]
    for (reason, stage), names in reasons.items():
        text = chinese[reason] if language == "zh" else reason
        second.append([COMMA[language].join(names), f"`{stage}`", text])
    return "\n\n".join("\n".join(f"| {' | '.join(cells)} |" for cells in rows) for rows in (table, second)) + "\n"


def with_matrix(page: str, language: Language) -> str:
    """The page on objectives with its tables as they are now."""
    return with_part(page, render_matrix(language))


def with_families(page: str, language: Language) -> str:
    """The page on models with its table as it is now."""
    return with_part(page, render_families(language))


def with_part(page: str, part: str) -> str:
    """A page with what is written from the code as it is now.

    Raises:
        ValueError: when the page does not say where it belongs.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page has no part between {BEGIN.strip()} and {END.strip()}")
    return f"{before}{BEGIN}\n{part}\n{END}{after}"


def main(folder: Path) -> None:
    """Write both pages below ``folder``, and the tables into the pages that are there."""
    languages: tuple[Language, ...] = ("en", "zh")
    for language in languages:
        path = folder / language / "configuration.md"
        write_text(path, render(language))
        note(f"{path} written")
        for name, write in (("objectives.md", with_matrix), ("models.md", with_families)):
            page = folder / language / name
            if page.is_file():
                write_text(page, write(page.read_text(encoding="utf-8"), language))
                note(f"{page} written")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs"))
