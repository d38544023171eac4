"""Where the parts of a decoder are, whatever its code calls them."""

from __future__ import annotations

from typing import Any

from danlu.core.errors import ModelError


def decoder_layers(model: Any) -> Any:
    """The layers of a causal language model, first to last: a ``ModuleList``.

    Families call the list ``layers``, ``h``, ``blocks`` or ``decoder.layers``; it is the one with as many members as
    the configuration says.

    Raises:
        ModelError: when there is none.
    """
    from torch import nn

    backbone, count = model.base_model, model.config.get_text_config().num_hidden_layers
    for module in backbone.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise ModelError(
        f"no list of {count} layers is found in a {model.config.model_type} model",
        hint="Use a method that needs none, for instance finetuning_type=lora.",
    )
