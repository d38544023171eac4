"""Keys of a prefix turned by the angle of its length (rotary position embedding, Su et al. 2021, arXiv:2104.09864).

A turn is one orthogonal matrix (head_dim, head_dim), the same for every layer and head, made in float64.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from danlu.core.errors import ModelError
from danlu.models.prefix import PrefixShape

KNOWN_ROPE = ("default", "linear")


def rotation(config: Any, position: int) -> Tensor:
    """What the model's rotary embedding does to a key at ``position``: a matrix (head_dim, head_dim), float64.

    Raises:
        ModelError: when the model is no native ChatGLM.
    """
    if config.model_type == "glm":
        return _neighbours(config, position)
    if config.model_type == "chatglm":
        return _first_half(config, position)
    raise ModelError(
        f"prefixes of the official scripts are for ChatGLM, and this is a {config.model_type} model",
        hint="Name the ChatGLM model that the prefix was trained on.",
    )


def _neighbours(config: Any, position: int) -> Tensor:
    """ChatGLM2 and 3: numbers 2i and 2i + 1 are turned together, in the first part of a head."""
    from transformers.models.glm.modeling_glm import GlmRotaryEmbedding

    kind = config.rope_parameters["rope_type"]
    if kind not in KNOWN_ROPE:
        raise ModelError(f"no ChatGLM has rotary embeddings of the type {kind!r}")
    angles = GlmRotaryEmbedding(config).inv_freq.double() * position
    even = torch.arange(len(angles)) * 2
    return _planes(config.head_dim, (even, even + 1), angles.cos(), angles.sin())


def _first_half(config: Any, position: int) -> Tensor:
    """ChatGLM-6B: a prefix moves the first row of positions only, and that turns the first half of a head."""
    from danlu.models.chatglm.v1.modeling import angles

    cosine, sine = (part[0, 0] for part in angles(torch.tensor([position, 0]).view(2, 1, 1), config.head_dim))
    low = torch.arange(config.head_dim // 4)
    return _planes(config.head_dim, (low, low + len(low)), cosine[low].double(), sine[low].double())


def _planes(size: int, planes: tuple[Tensor, Tensor], cosine: Tensor, sine: Tensor) -> Tensor:
    """A matrix (size, size) that turns some planes and leaves everything else alone."""
    matrix = torch.eye(size, dtype=torch.float64)
    first, second = planes
    matrix[first, first] = matrix[second, second] = cosine
    matrix[first, second] = -sine
    matrix[second, first] = sine
    return matrix


def turned_keys(rows: Tensor, shape: PrefixShape, matrix: Tensor) -> Tensor:
    """Turn the keys in rows (…, layers · 2 · kv_heads · head_dim); values stay bit for bit."""
    parts = rows.view(-1, shape.layers, 2, shape.kv_heads, shape.head_dim).clone()
    parts[:, :, 0] = (parts[:, :, 0].double() @ matrix.T).to(rows.dtype)
    return parts.view(rows.shape)


def turn(state: dict[str, Tensor], shape: PrefixShape, config: Any) -> dict[str, Tensor]:
    """The weights of a :class:`danlu.models.prefix.PrefixEncoder` with its keys turned by ``shape.length`` positions.

    Raises:
        ModelError: when the model is no native ChatGLM.
    """
    return _turned(state, shape, rotation(config, shape.length))


def turn_back(state: dict[str, Tensor], shape: PrefixShape, config: Any) -> dict[str, Tensor]:
    """The inverse of :func:`turn`."""
    return _turned(state, shape, rotation(config, -shape.length))


def _turned(state: dict[str, Tensor], shape: PrefixShape, matrix: Tensor) -> dict[str, Tensor]:
    turned = dict(state)
    if "network.2.weight" not in state:
        turned["embedding.weight"] = turned_keys(state["embedding.weight"], shape, matrix)
        return turned
    turned["network.2.bias"] = turned_keys(state["network.2.bias"], shape, matrix)
    columns = state["network.2.weight"].T.contiguous()  # (hidden, width): each hidden unit's share of the table
    turned["network.2.weight"] = turned_keys(columns, shape, matrix).T.contiguous()
    return turned
