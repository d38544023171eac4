"""Which weights change: one group for each family of methods."""

from __future__ import annotations

from typing import Literal

from danlu.core.config import Options, Words
from danlu.tune.options.fields import Bits, Count, Share, option

WholeMethod = Literal["full", "freeze"]
PeftMethod = Literal["lora", "adalora", "vera", "oft", "ia3", "ln_tuning"]
OwnMethod = Literal["p_tuning_v2", "prefix_tuning", "p_tuning", "prompt_tuning", "adapter"]
MethodName = Literal[WholeMethod, PeftMethod, OwnMethod]


class MethodOptions(Options):
    """Which weights change."""

    finetuning_type: MethodName = option("lora", "the method; docs/en/methods.md compares them")


class FreezeOptions(Options):
    """Some layers of the model."""

    freeze_trainable_layers: int = option(2, "the last n layers are trained; negative: the first n")
    freeze_trainable_modules: Words = option(("all",), "parts of those layers, for instance mlp, self_attn")
    freeze_extra_modules: Words = option((), "modules outside the layers, for instance lm_head, norm")


class PrefixOptions(Options):
    """Trained keys and values in every layer, or embeddings, before the text."""

    pre_seq_len: Count = option(64, "length of the trained prefix or prompt, in tokens")
    prefix_projection: bool = option(False, "p_tuning_v2: make the prefix with a two-layer network")
    prefix_hidden_size: Count | None = option(
        None, "width of that network; one layer's keys by default, 512 for prefix_tuning"
    )
    prefix_dropout: Share = option(0.0, "dropout on the prefix or prompt while training")


class PromptOptions(Options):
    """How trained embeddings begin and are made: prompt_tuning and p_tuning."""

    prompt_tuning_init: Literal["random", "vocab", "text"] = option(
        "vocab", "prompt_tuning starts from random numbers, embeddings of random tokens, or of a text"
    )
    prompt_tuning_init_text: str | None = option(None, "the text to start from, repeated or cut to the length")
    encoder_reparameterization_type: Literal["mlp", "lstm"] = option("mlp", "the network that makes p_tuning's prompt")
    encoder_hidden_size: Count | None = option(None, "its width; the model's own by default")
    encoder_num_layers: Count = option(2, "layers of the LSTM")
    encoder_dropout: Share = option(0.0, "dropout between layers of the LSTM")


class LoraOptions(Options):
    """Low-rank adapters."""

    lora_rank: Count = option(8, "rank r of the update")
    lora_alpha: float | None = option(None, "scale: the update is multiplied by alpha / r; 2 r by default")
    lora_dropout: Share = option(0.0, "dropout on the adapter's input")
    lora_target: Words = option(("all",), "modules to adapt; all = every linear layer but the head")
    lora_experts: bool = option(False, "adapt the experts of a mixture too, each with its own A and B (lora only)")
    additional_target: Words = option((), "modules trained in full and saved beside the adapter")
    use_rslora: bool = option(False, "scale by alpha / sqrt(r)")
    use_dora: bool = option(False, "learn magnitude and direction apart (DoRA)")
    init_lora_weights: Literal["default", "gaussian", "orthogonal", "olora", "pissa"] = option(
        "default", "how A and B begin; default: A random, B zero"
    )
    pissa_init: bool = option(False, "start from the principal singular vectors (PiSSA)")
    pissa_iter: int = option(16, "iterations of the fast SVD for PiSSA; -1 for the exact one")
    loraplus_lr_ratio: float | None = option(None, "learning rate of B over that of A (LoRA+)", gt=0)


class AdaLoraOptions(Options):
    """Low-rank adapters whose rank moves; lora_alpha, _dropout and _target hold too."""

    adalora_init_r: Count = option(12, "rank of every layer at the beginning")
    adalora_target_r: Count = option(8, "mean rank at the end")
    adalora_tinit: int = option(0, "steps before the rank begins to fall", ge=0)
    adalora_tfinal: int = option(0, "steps at the end in which the ranks are fixed", ge=0)
    adalora_deltaT: Count = option(1, "steps between two allocations")
    adalora_beta1: float = option(0.85, "smoothing of the importance", gt=0, lt=1)
    adalora_beta2: float = option(0.85, "smoothing of its uncertainty", gt=0, lt=1)
    adalora_orth_reg_weight: float = option(0.5, "weight of the penalty that keeps A and B orthogonal", ge=0)


class VeraOptions(Options):
    """Vectors between random matrices that all layers share."""

    vera_rank: Count = option(256, "rank r of the shared matrices")
    vera_target: Words = option(("all",), "linear layers to adapt; all = every one but the head")
    vera_dropout: Share = option(0.0, "dropout on the adapter's input")
    vera_d_initial: float = option(0.1, "every number of d at the beginning")
    vera_projection_prng_key: int = option(0, "seed of the shared matrices")


class OftOptions(Options):
    """Rotations of the inputs of linear layers."""

    oft_block_size: Count = option(32, "size of a rotated block; must divide the layers' inputs")
    oft_rank: int = option(0, "number of blocks instead of their size; 0: use oft_block_size", ge=0)
    oft_target: Words = option(("all",), "linear layers to adapt; all = every one but the head")
    module_dropout: Share = option(0.0, "share of blocks left unrotated while training")


class Ia3Options(Options):
    """Trained factors of a few activations."""

    ia3_target: Words = option(("k_proj", "v_proj", "down_proj"), "linear layers to adapt; by default the family's own")
    ia3_feedforward: Words = option(("down_proj",), "those of them that are multiplied at their input")


class LnOptions(Options):
    """Normalisation layers."""

    ln_target: Words = option(("all",), "normalisation layers to train, for instance input_layernorm")


class AdapterOptions(Options):
    """Bottleneck adapters: a narrow network behind a layer's parts."""

    adapter_placement: Literal["houlsby", "pfeiffer"] = option(
        "houlsby", "houlsby: after attention and mlp; pfeiffer: mlp"
    )
    adapter_length: Count = option(64, "width of the bottleneck")
    adapter_act: Literal["gelu", "relu", "silu", "tanh"] = option("gelu", "activation inside the bottleneck")
    adapter_dropout: Share = option(0.0, "dropout on the bottleneck while training")


class QuantOptions(Options):
    """Frozen weights in 4 or 8 bits while an adapter is trained (QLoRA)."""

    quantization_bit: Bits | None = option(None, "bits of the frozen weights, 4 or 8; needs bitsandbytes")
    quantization_type: Literal["nf4", "fp4"] = option("nf4", "code of 4 bit weights")
    double_quantization: bool = option(True, "quantise the scales of 4 bit weights as well")
