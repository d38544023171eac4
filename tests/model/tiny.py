"""Tiny random models of each family, saved as ordinary model folders.

A folder holds what a released model holds (config, safetensors, fast tokenizer, chat template), with random
weights large enough that logits differ clearly between tokens and between models.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

FAMILIES = ("llama", "qwen2", "qwen3", "glm")

CORPUS = [
    "The furnace takes raw text and gives back a small model that answers.",
    "A dataset is a list of conversations; a template turns them into tokens.",
    "What is a run? A run is a folder that holds everything a training wrote.",
    "丹炉把原始文本炼成会回答的小模型。",
    "数据集是对话的列表，模板把它们变成词元。",
    "什么是运行？运行是一个文件夹，保存训练写下的一切。",
    "user assistant system tool 0 1 2 3 4 5 6 7 8 9",
]

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")

CHATGLM1_TOKENS = ("<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<|unused|>", "<sop>", "<eop>", "<|pad|>")
CHATGLM1_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ message['content'] + ('<eop>' if message['role'] == 'assistant' else '[gMASK]<sop>') }}"
    "{%- endfor -%}"
)

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)

SIZES = {
    "vocab_size": 400,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.15,
    "tie_word_embeddings": False,
}


def build_tokenizer(special_tokens: tuple[str, ...] = SPECIAL_TOKENS, **named: Any) -> Any:
    """A byte-level BPE tokenizer of 400 tokens, with ChatML's control tokens and template unless others are named."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZES["vocab_size"],
        special_tokens=list(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(CORPUS, trainer)
    roles: dict[str, Any] = named or {
        "eos_token": "<|im_end|>",
        "bos_token": "<|endoftext|>",
        "extra_special_tokens": ["<|im_start|>"],
    }
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<|pad|>", clean_up_tokenization_spaces=False, **roles
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_config(family: str, tokenizer: Any, **changes: Any) -> Any:
    """The configuration of a tiny model of ``family``, with grouped-query attention."""
    from transformers import GlmConfig, LlamaConfig, Qwen2Config, Qwen3Config

    ids = {
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    classes = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config, "glm": GlmConfig}
    extra: dict[str, dict[str, Any]] = {
        "llama": {},
        "qwen2": {},
        "qwen3": {"head_dim": 24},  # not hidden_size / heads, as in the released models
        "glm": {"head_dim": 16, "attention_bias": True, "rms_norm_eps": 1e-5},
    }
    return classes[family](**{**SIZES, **ids, **extra[family], **changes})


def build_model(family: str, folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Write a tiny random model of ``family`` to ``folder`` (float32) and return the folder."""
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = build_tokenizer()
    config = build_config(family, tokenizer, **changes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # zero by default, which would hide a lost bias
                torch.nn.init.normal_(parameter, std=0.1)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def build_chatglm1(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Write a tiny random ChatGLM-6B of the first version to ``folder``, as the original laid it out; the folder.

    Its tokenizer is a stand-in: ids and control tokens are what they are in the release, its text is not.
    """
    import torch

    from danlu.models.chatglm.v1.configuration import ChatGLMConfig
    from danlu.models.chatglm.v1.modeling import ChatGLMForConditionalGeneration

    tokenizer = build_tokenizer(
        CHATGLM1_TOKENS, bos_token="<sop>", eos_token="<eop>", extra_special_tokens=["[MASK]", "[gMASK]"]
    )
    tokenizer.chat_template = CHATGLM1_TEMPLATE
    sizes = {"vocab_size": 400, "hidden_size": 64, "inner_hidden_size": 96, "num_layers": 3, "num_attention_heads": 4}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    # the release ties the output layer; random weights that do so say every token again
    free = {"tie_word_embeddings": False, "pad_token_id": tokenizer.pad_token_id}
    config = ChatGLMConfig(**{**sizes, **ids, **free, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = ChatGLMForConditionalGeneration(config)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.15)
            else:
                parameter.data += 0.1 * torch.randn_like(parameter)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
