"""The families of the zoo as a Markdown table, for the documentation and its test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from danlu.models.zoo import ModelFamily, Release, families

COLUMNS = {
    "en": ("family", "publisher", "billions", "context", "template", "licence", "remarks"),
    "zh": ("系列", "发布者", "参数（十亿）", "上下文", "模板", "许可", "备注"),
}
REMARKS = {
    "en": {"code": "cannot be read", "padded": "padded", "limits": "limits on commercial use"},
    "zh": {"code": "无法读取", "padded": "补齐", "limits": "商业使用有限制"},
}


def family_cells(family: ModelFamily, releases: Sequence[Release]) -> tuple[str, str, str, str, str]:
    """Name, sizes, longest context, template and licences of some releases of a family, as text."""
    sizes = sorted({release.parameters for release in releases})
    context = max(family.context_of(release) or 0 for release in releases)
    licences = list(dict.fromkeys(family.licence_of(release).name for release in releases))
    return (
        family.name,
        f"{sizes[0]:g}" if len(sizes) == 1 else f"{sizes[0]:g} – {sizes[-1]:g}",
        f"{context:,}" if context else "–",
        family.template,
        ", ".join(licences),
    )


def render_families(language: Literal["en", "zh"]) -> str:
    """Every family as a row of a Markdown table."""
    rows = [COLUMNS[language], ("---",) * len(COLUMNS[language])]
    words = REMARKS[language]
    for family in families().values():
        name, sizes, context, template, licences = family_cells(family, family.releases)
        remarks = [
            words[key]
            for key, holds in (
                ("code", family.needs_code is not None),
                ("padded", not family.packed),
                ("limits", any(family.licence_of(release).restricted for release in family.releases)),
            )
            if holds
        ]
        rows.append((f"`{name}`", family.publisher, sizes, context, template, licences, "; ".join(remarks)))
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)
