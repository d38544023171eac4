"""What to do, and with which model."""

from __future__ import annotations

from typing import Literal

from danlu.core.config import Options, Words
from danlu.tune.options.fields import option

Stage = Literal["pt", "sft", "rm", "dpo", "ipo", "kto", "orpo", "simpo", "ppo", "grpo"]


class TaskOptions(Options):
    """What to do."""

    stage: Stage = option("sft", "training objective")
    do_train: bool = option(True, "train")
    do_eval: bool = option(False, "measure the evaluation rows afterwards")
    do_predict: bool = option(False, "write an answer for every evaluation row")
    predict_with_generate: bool = option(False, "evaluate by generating answers (BLEU, ROUGE) instead of by loss")


class ModelOptions(Options):
    """Which weights to start from."""

    model_name_or_path: str = option("smollm2-135m", "folder, hub id, GGUF file, or a name from `danlu models`")
    adapter_name_or_path: Words = option((), "adapters: all but the last are merged, the last is trained further")
    create_new_adapter: bool = option(False, "merge all given adapters and train a new one")
    cache_dir: str | None = option(None, "where hub downloads are kept")
    model_hub: Literal["auto", "huggingface", "modelscope"] = option(
        "auto", "where hub ids are fetched from; auto: DANLU_HUB, else the Hugging Face hub"
    )
    model_revision: str = option("main", "hub revision: branch, tag or commit")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option("auto", "precision of the frozen weights")
    flash_attn: Literal["auto", "disabled", "sdpa", "fa2", "packed"] = option("auto", "attention implementation")
    trust_remote_code: bool = option(False, "accepted for old files; danlu never runs code from a model folder")
