"""Which rows, and how they become tokens."""

from __future__ import annotations

from typing import Literal

from danlu.core.config import Options, Words
from danlu.tune.options.fields import Count, Numbers, option


class DataOptions(Options):
    """Which rows, and how they are mixed."""

    dataset: Words = option((), "names from the catalog, files, folders, globs or hub ids; commas between")
    eval_dataset: Words = option((), "rows to evaluate on, named the same way")
    dataset_dir: str = option("data", "folder that holds dataset_info.json")
    max_samples: Count | None = option(None, "at most this many rows of each dataset (the first)")
    val_size: float = option(0.0, "rows held out for evaluation: a share below 1 or a count", ge=0)
    mix_strategy: Literal["concat", "interleave_under", "interleave_over", "interleave_once"] = option(
        "concat", "how several datasets are joined"
    )
    interleave_probs: Numbers = option((), "sampling weight of each dataset when interleaving")
    eval_on_each_dataset: bool = option(False, "report eval_<dataset>_loss for each evaluation dataset")
    on_bad_row: Literal["skip", "error"] = option("skip", "rows that cannot be read: count and show them, or stop")
    tokenized_path: str | None = option(None, "folder to keep the tokenised rows in, instead of the cache")
    overwrite_cache: bool = option(False, "tokenise again even if the cache has these rows")
    prompt_separator: str = option("\n", "alpaca rows: what joins instruction and input")


class EncodeOptions(Options):
    """How rows become tokens and which of them are trained."""

    template: str | None = option(None, "named template, for models that have none of their own")
    default_system: str | None = option(None, "system prompt for rows that bring none")
    enable_thinking: bool | None = option(None, "passed to templates that know it")
    source_prefix: str | None = option(None, "text put straight before the first user turn")
    cutoff_len: Count = option(2048, "longest sequence, in tokens")
    max_source_length: Count | None = option(None, "a budget for the prompt alone, within cutoff_len")
    max_target_length: Count | None = option(None, "a budget for the answer alone, within cutoff_len")
    truncation: Literal["drop", "keep_start", "keep_end", "split", "error"] = option(
        "drop", "what happens to longer rows; control tokens are never cut"
    )
    train_on_prompt: bool = option(False, "train the prompt's tokens as well")
    mask_history: bool = option(False, "train the last answer only")
    unstable_template: Literal["error", "split"] = option(
        "error", "when the chat template rewrites earlier turns: refuse, or one sequence for each answer"
    )
    packing: bool = option(False, "fill sequences up to cutoff_len with several rows that cannot see each other")
