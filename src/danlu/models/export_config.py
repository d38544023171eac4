"""What `danlu export` can be told."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field

from danlu.core.config import Options, Words
from danlu.core.errors import UsageError


def _gigabytes(value: Any) -> Any:
    """``"5GB"``, ``"500MB"`` or a number of gigabytes."""
    if not isinstance(value, str):
        return value
    text = value.strip().upper()
    if text.endswith("MB"):
        return float(text[:-2]) / 1000
    return text.removesuffix("GB")


Precision: TypeAlias = Literal["auto", "float32", "bfloat16", "float16"]
ShardSize = Annotated[float, BeforeValidator(_gigabytes)]


class ConvertConfig(Options):
    """How a model or an adapter in another layout becomes one that transformers reads."""

    model: str | None = Field(None, description="of an adapter: the base, where it does not say it itself")
    convert_format: Literal["safetensors", "original"] = Field(
        "safetensors", description="original: a prefix as the official scripts of ChatGLM read it"
    )
    family: str | None = Field(None, description="which ChatGLM it is, where its files do not tell")
    dtype: Precision = Field("auto", description="precision to write; auto: as it is stored")
    max_shard_size: ShardSize = Field(5.0, gt=0, description="largest weight file, in GB (10^9 bytes)")


class ExportConfig(Options):
    """Which model to write, where, and in which form."""

    run: str | None = Field(None, description="run directory, or one of its checkpoints; says all the rest")
    model_name_or_path: str | None = Field(None, description="without a run: the base model")
    adapter_name_or_path: Words = Field((), description="without a run: adapters to merge, in order")
    output_dir: str | None = Field(None, description="folder to write; of a run: exports/NAME in it by default")
    export_format: Literal["safetensors", "gguf", "original", "auto"] = Field(
        "safetensors",
        description="safetensors: a model folder; gguf: a file for llama.cpp and Ollama; original: as the folder that "
        "the base model was converted from; auto: original if it was, else safetensors",
    )
    gguf_type: Literal["f32", "f16", "bf16", "q8_0", "q4_0"] = Field(
        "q8_0", description="with gguf: how weights are kept; vectors always in float32"
    )
    max_shard_size: ShardSize = Field(5.0, gt=0, description="largest weight file, in GB (10^9 bytes)")
    legacy_bin: bool = Field(False, description="pytorch_model.bin files instead of safetensors")
    device: Literal["auto", "cpu", "cuda"] = Field("cpu", description="where the weights are merged")
    dtype: Precision = Field("auto", description="precision to write; auto: as the base model")
    template: str | None = Field(None, description="named template to write into the tokenizer")


def check_export(config: ExportConfig) -> None:
    """Refuse an export that says too little or too much.

    Raises:
        UsageError: with the option that is missing or in the way.
    """
    if config.run and (config.model_name_or_path or config.adapter_name_or_path):
        raise UsageError(
            "run and model_name_or_path exclude each other",
            hint="A run knows its base model and adapter: leave the others out.",
        )
    if not config.run and not config.model_name_or_path:
        raise UsageError("there is nothing to export", hint="danlu export --run DIR --output_dir FOLDER")
    if config.export_format == "original" and config.template:
        raise UsageError(
            "template and export_format=original exclude each other",
            hint="The original tokenizer is copied as it is; leave template out.",
        )
    if not config.output_dir and not config.run:
        raise UsageError("no folder to write is named", hint="Set output_dir (export_dir in LLaMA-Factory).")
