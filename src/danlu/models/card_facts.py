"""What a run's files say of its training, and whose licences it stands under, for a model card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from danlu.core.errors import RunError
from danlu.core.files import read_json
from danlu.core.manifest import DataRecord, Manifest
from danlu.data.catalog import builtin
from danlu.models.zoo import find, packaged_models

LOSSES = {"train_loss": "training, mean of all steps", "eval_loss": "evaluation rows"}


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of how a model came about.

    Attributes:
        manifest: of the run, or None.
        options: the options that were chosen, as they are shown.
        losses: what of → mean loss.
        scores: entries of the run's ``*_scores.json``.
    """

    manifest: Manifest | None = None
    options: Mapping[str, str] | None = None
    losses: Mapping[str, float] | None = None
    scores: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Licence:
    """A licence as it is known.

    Attributes:
        name: SPDX identifier, or its name in words.
        source: whose statement that is.
        url: its text, where that is known.
        restricted: what limits commercial use, in words; None where nothing is known to.
    """

    name: str
    source: str
    url: str | None = None
    restricted: str | None = None

    @property
    def identifier(self) -> str | None:
        """The identifier that model hubs use, None for a licence of its publisher's own."""
        name = self.name.strip().lower()
        return name if name and " " not in name and self.url is None else None


def read_facts(run: Path | None, options: Mapping[str, str] | None = None) -> Facts:
    """Read a run's files; what is not there is not told.

    Args:
        run: the run directory or checkpoint, or None.
        options: what was chosen, as it is to be shown.
    """
    if run is None:
        return Facts(options=options)
    record = _json(run / "manifest.json")
    manifest = Manifest.model_validate(record) if isinstance(record, dict) else None
    results = _json(run / "all_results.json") or {}
    losses = {said: float(results[key]) for key, said in LOSSES.items() if key in results}
    scores = [item for split in ("eval", "predict") for item in _json(run / f"{split}_scores.json") or ()]
    return Facts(manifest, options, losses, tuple(scores))


def _json(path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        return read_json(path)
    except RunError:  # cut short by a crash: the card does without
        return None


def base_licence(base: str) -> Licence | None:
    """The licence of a base model: of a packaged one, a known release, or what the card in its folder says."""
    packaged = packaged_models().get(base)
    if packaged is not None:
        return Licence(packaged.licence, packaged.source)
    family, release = (find(base) if base.count("/") == 1 else None) or (None, None)
    if family is not None and release is not None:
        known = family.licence_of(release)
        return Licence(known.name, f"{family.publisher}'s release", known.url, known.restricted)
    said = card_metadata(Path(base) / "README.md").get("license")
    return Licence(said, "its model card") if isinstance(said, str) else None


def card_metadata(path: Path) -> dict[str, Any]:
    """The metadata at the head of a model card; empty where there is none."""
    if not path.is_file():
        return {}
    text = path.read_text(encoding="utf-8", errors="replace")
    head, _, _ = text.removeprefix("---\n").partition("\n---")
    try:
        found = yaml.safe_load(head) if text.startswith("---\n") else None
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def data_licence(record: DataRecord) -> str | None:
    """The licence of a dataset that the built-in catalog knows, None otherwise."""
    entry = builtin().get(record.name)
    return entry.licence if entry else None
