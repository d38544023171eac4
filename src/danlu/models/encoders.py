"""Encoders: contextual embeddings of tokens, and embeddings of whole texts as sentence-transformers' folders describe.

What leaves this module are numpy arrays, so that the rooms above need no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from danlu.core.console import warn
from danlu.core.errors import ModelError
from danlu.core.files import expanded, read_json
from danlu.models.quiet import quiet

Vectors: TypeAlias = NDArray[np.float32]

BATCH_TOKENS = 4096
"""Most tokens, padding included, that are computed at one time."""

MODULES = "modules.json"


@dataclass(frozen=True, slots=True)
class EncodedText:
    """One text as an encoder sees it.

    Attributes:
        ids: its tokens, with what the tokenizer puts around them.
        special: which of them the tokenizer put there; shape (n,).
        vectors: one state for each token; shape (n, width).
    """

    ids: tuple[int, ...]
    special: NDArray[np.bool_]
    vectors: Vectors


class Encoder:
    """A local encoder.

    Args:
        folder: a transformers folder, or one of sentence-transformers (its transformer is used).
        device: where to compute; the best there is by default.

    Attributes:
        name: of the folder.
        layers: number of layers; states 0 (embeddings) to ``layers`` can be asked for.
        limit: most tokens of a text; what is longer loses its end, which is counted in ``cut``.

    Raises:
        ModelError: when the folder holds no such model.
    """

    def __init__(self, folder: str | Path, *, device: str | None = None) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer

        from danlu.models.loading import pick_device

        path = expanded(folder)
        self.name = path.resolve().name
        inner = _transformer_folder(path)
        if not (inner / "config.json").is_file():
            raise ModelError(
                "there is no encoder in it: config.json is missing",
                where=str(inner),
                hint="Name a local folder; `danlu models fetch` downloads one.",
            )
        try:
            with quiet():
                self.tokenizer: Any = AutoTokenizer.from_pretrained(inner, local_files_only=True)
                model: Any = AutoModel.from_pretrained(inner, local_files_only=True, dtype=torch.float32)
        except (OSError, ValueError, KeyError) as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise ModelError(f"the encoder cannot be loaded: {reason}", where=str(inner)) from error
        self.model = model.to(pick_device(device)).eval()
        self.layers = int(model.config.get_text_config().num_hidden_layers)
        self.limit = _limit(model, self.tokenizer, inner)
        self.cut = 0
        self._pad = self.tokenizer.pad_token_id
        self._lower = _sentence_settings(inner).get("do_lower_case", False)

    def ids(self, text: str) -> tuple[list[int], list[int]]:
        """Tokens of a text, cut to the limit, and for each whether the tokenizer put it there (1) or not (0)."""
        told = {"return_special_tokens_mask": True, "return_attention_mask": False, "verbose": False}
        text = text.strip().lower() if self._lower else text.strip()
        read = self.tokenizer(text, **told)
        if len(read["input_ids"]) > self.limit:
            if not self.cut:
                warn(f"{self.name} reads {self.limit} tokens at most: the ends of longer texts are left out")
            self.cut += 1
            read = self.tokenizer(text, truncation=True, max_length=self.limit, **told)
        # a text without a token, where the tokenizer adds none, still is one position
        return list(read["input_ids"]) or [self._pad or 0], list(read["special_tokens_mask"]) or [1]

    def encode(self, texts: Sequence[str], *, layer: int | None = None) -> list[EncodedText]:
        """States of all tokens of some texts.

        Args:
            texts: in any order and of any length; similar lengths are computed together.
            layer: which state, the last by default; 0 are the embeddings.

        Raises:
            ModelError: when the encoder has no such layer.
        """
        layer = self.layers if layer is None else layer
        if not 0 <= layer <= self.layers:
            raise ModelError(f"{self.name} has the layers 0 to {self.layers}, and no layer {layer}")
        read = [self.ids(text) for text in texts]
        found: dict[int, EncodedText] = {}
        for batch in _batches([len(ids) for ids, _ in read]):
            states = self._states([read[number][0] for number in batch], layer)
            for number, vectors in zip(batch, states, strict=True):
                ids, special = read[number]
                found[number] = EncodedText(tuple(ids), np.array(special, dtype=bool), vectors[: len(ids)])
        return [found[number] for number in range(len(texts))]

    def _states(self, rows: Sequence[Sequence[int]], layer: int) -> Vectors:
        """States of one batch, padded on the right; shape (rows, longest, width)."""
        import torch

        longest = max(map(len, rows))
        pad = self._pad if self._pad is not None else 0
        ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows], device=self.model.device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=self.model.device)
        with torch.inference_mode():
            states = self.model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[layer]
        return np.asarray(states.float().cpu().numpy(), dtype=np.float32)


class SentenceEncoder:
    """Embeddings of whole texts, as the modules of a sentence-transformers folder make them.

    A folder without ``modules.json`` is averaged over its tokens, which is said.

    Args:
        folder: where ``modules.json`` is, or a plain encoder.
        device: where to compute.

    Raises:
        ModelError: for modules that danlu does not know.
    """

    def __init__(self, folder: str | Path, *, device: str | None = None) -> None:
        path = expanded(folder)
        self.encoder = Encoder(path, device=device)
        self.name = self.encoder.name
        self.steps: list[str] = []
        self._pool: Callable[[EncodedText], Vectors] = _pooling({"pooling_mode_mean_tokens": True}, path)
        self._after: list[Callable[[Vectors], Vectors]] = []
        for kind, place in _modules(path):
            if kind == "Pooling":
                self._pool = _pooling(read_json(place / "config.json"), place)
            elif kind == "Dense":
                self._after.append(_dense(place))
            elif kind == "Normalize":
                self._after.append(_normalised)
            elif kind != "Transformer":
                raise ModelError(f"its module {kind} is not known", where=str(path / MODULES))
            self.steps.append(kind)
        if not self.steps:
            warn(f"{self.name} has no {MODULES}: the mean of the states of its last layer is the embedding")
            self.steps = ["Transformer", "mean"]

    def encode(self, texts: Sequence[str]) -> Vectors:
        """One vector for each text; shape (texts, width)."""
        pooled = np.stack([self._pool(encoded) for encoded in self.encoder.encode(texts)])
        for step in self._after:
            pooled = step(pooled)
        return pooled


def _modules(folder: Path) -> list[tuple[str, Path]]:
    """Kind and place of each module; none where the folder is a plain encoder."""
    if not (folder / MODULES).is_file():
        return []
    listed = sorted(read_json(folder / MODULES), key=lambda module: module["idx"])
    return [(str(module["type"]).rpartition(".")[2], folder / module["path"]) for module in listed]


def _transformer_folder(folder: Path) -> Path:
    return next((place for kind, place in _modules(folder) if kind == "Transformer"), folder)


def _sentence_settings(folder: Path) -> dict[str, Any]:
    path = folder / "sentence_bert_config.json"
    return dict(read_json(path)) if path.is_file() else {}


def _limit(model: Any, tokenizer: Any, folder: Path) -> int:
    """Most tokens of a text: the least that the tokenizer, the positions and sentence-transformers allow."""
    known = [tokenizer.model_max_length, _sentence_settings(folder).get("max_seq_length")]
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions and positions > 0:
        table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
        # RoBERTa numbers positions from behind its padding token on
        first = getattr(table, "padding_idx", None)
        known.append(positions - (0 if first is None else first + 1))
    return int(min(number for number in known if number))


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Numbers of texts of similar length, the longest first."""
    batch: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        if batch and lengths[batch[0]] * (len(batch) + 1) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


POOLS: dict[str, Callable[[Vectors], Vectors]] = {
    "cls": lambda states: states[0],
    "max": lambda states: states.max(axis=0),
    "mean": lambda states: states.mean(axis=0),
    "mean_sqrt_len": lambda states: states.sum(axis=0) / np.float32(np.sqrt(len(states))),
    "weightedmean": lambda states: np.average(states, axis=0, weights=np.arange(1, len(states) + 1)),
    "lasttoken": lambda states: states[-1],
}
"""Ways to make one vector of the states of all tokens, shape (n, width), those around the text included."""

_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Keys of a pooling's config.json; several may be true, and their vectors stand one behind the other in this order."""


def _pooling(config: dict[str, Any], place: Path) -> Callable[[EncodedText], Vectors]:
    named = config.get("pooling_mode")
    names = [named] if isinstance(named, str) else list(named or ())
    names = names or [name for key, name in _MODES.items() if config.get(key)]
    unknown = [name for name in names if name not in POOLS]
    if unknown or not names:
        raise ModelError(f"the pooling {', '.join(unknown) or 'of it'} is not known", where=str(place / "config.json"))

    def pool(encoded: EncodedText) -> Vectors:
        return np.concatenate([POOLS[name](encoded.vectors) for name in names]).astype(np.float32)

    return pool


_ACTIVATIONS: dict[str, Callable[[Vectors], Vectors]] = {
    "Identity": lambda values: values,
    "Tanh": np.tanh,
    "ReLU": lambda values: np.maximum(values, 0),
}


def _dense(folder: Path) -> Callable[[Vectors], Vectors]:
    config = read_json(folder / "config.json")
    name = str(config.get("activation_function", "Tanh")).rpartition(".")[2]
    if name not in _ACTIVATIONS:
        raise ModelError(f"the activation {name} of its dense layer is not known", where=str(folder / "config.json"))
    weights = _weights(folder)
    matrix, shift, activation = weights["linear.weight"], weights.get("linear.bias"), _ACTIVATIONS[name]
    return lambda values: activation(values @ matrix.T + (0 if shift is None else shift)).astype(np.float32)


def _weights(folder: Path) -> dict[str, Vectors]:
    if (folder / "model.safetensors").is_file():
        from safetensors.numpy import load_file

        return dict(load_file(folder / "model.safetensors"))
    import torch

    read = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
    return {name: np.asarray(tensor.float().numpy()) for name, tensor in read.items()}


def _normalised(values: Vectors) -> Vectors:
    return values / np.maximum(np.linalg.norm(values, axis=-1, keepdims=True), np.float32(1e-12))
