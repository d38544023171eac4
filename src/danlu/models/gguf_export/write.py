"""A model as one GGUF file: adapters merged, rounded to few bits, read back and compared before it appears."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from danlu.core.console import note, warn
from danlu.core.errors import MissingDependency, ModelError
from danlu.data.schema import Conversation, Message
from danlu.data.templates import Template
from danlu.models.adapters import read_adapter
from danlu.models.export import NOTICEABLE, RELOAD_TOLERANCE, difference, merged_and_compared, probe
from danlu.models.export_report import MARKER, ExportReport, describe, report_of
from danlu.models.folders import room_for, whole_folder
from danlu.models.gguf import read_model, read_tokenizer
from danlu.models.gguf_export.architectures import Architecture, architecture_of
from danlu.models.gguf_export.metadata import add_metadata
from danlu.models.gguf_export.tensors import BYTES, FILE_TYPES, GgufType, plan, write_tensors
from danlu.models.gguf_export.vocabulary import Vocabulary, vocabulary_of
from danlu.models.loading import load_model, load_tokenizer, stop_ids
from danlu.models.modelfile import Serving, modelfile
from danlu.models.runs import TrainedModel
from danlu.models.stored_bits import in_whole
from danlu.models.weights import cast_weights, count_parameters

TEXTS = (
    "The capital of France is Paris; it's 1,234.5 km away, isn't it?",
    "def add(a, b):\n    return a + b  # 42\n\n\tprint(add(1, 22222))",
    "丹炉把原始文本炼成会回答的小模型。２０２６年，第 3 次。",
    "日本語とрусский, العربية, हिन्दी 🙂👩‍🔬 naïve café…",
    "runs   of spaces, \n\n\n  lines and <b>tags</b> &amp; http://a.b/c?d=e#f  ",
    "?",
)
"""What a vocabulary is compared with before and after. None begins with a space: some tokenizers of Llama's kind put
no further one there, llama.cpp does."""


def export_gguf(
    model: TrainedModel,
    target: Path,
    *,
    kind: GgufType = "f16",
    device: str | None = "cpu",
    chat_template: str | None = None,
    serving: Serving | None = None,
) -> ExportReport:
    """Write a model as a GGUF file into a folder, with a Modelfile for Ollama.

    Args:
        model: what to export; all its adapters must be mergeable.
        target: folder to write; a former export there is replaced, anything else is refused.
        kind: how numbers are kept: f32, f16, bf16, q8_0 or q4_0 (vectors always in float32).
        device: where to merge.
        chat_template: written in place of the tokenizer's own.
        serving: how the model is meant to be asked.

    Raises:
        MissingDependency: when the package gguf is missing.
        ModelError: when the format cannot say what the model is, or the written file does not answer like it.
        RunError: when the folder holds something else, or there is no room; nothing half is left.
    """
    import torch

    _check_package()
    infos = _mergeable(model)
    tokenizer = load_tokenizer(model.tokenizer)
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    base = in_whole(load_model(model.model, device=device))
    architecture = architecture_of(base.config)
    ends, serving = sorted(stop_ids(base, tokenizer)), serving or Serving()
    template = Template(tokenizer, stop_ids=ends, **dict(serving.variables)) if tokenizer.chat_template else None
    vocabulary = _as_trained(vocabulary_of(tokenizer, base.config.vocab_size, stop_ids=ends), tokenizer, template)
    merged, change = merged_and_compared(cast_weights(base, torch.float32), infos)
    with whole_folder(target, marker=MARKER) as folder:
        parameters = count_parameters(merged)
        room_for(folder, int(parameters * BYTES[kind]), target)
        file = folder / f"{target.name.removesuffix(f'-{kind}')}-{kind}.gguf"
        exact = probe(merged)
        _write(file, merged, vocabulary, tokenizer.chat_template, architecture=architecture, kind=kind)
        expected = probe(merged)
        rounding = _said(difference(expected, exact), kind)
        del merged, base  # the file is read back into their place
        _check_tokens(file, tokenizer, plain=vocabulary.flags.get("add_space_prefix", True))
        reloaded = _check_logits(file, expected, architecture)
        told = modelfile(file.name, template, serving, writes_bos=vocabulary.flags["add_bos_token"])
        (folder / "Modelfile").write_text(told, encoding="utf-8")
        report = report_of(
            folder,
            target,
            parameters,
            kind,
            adapters=(infos, None),
            differences=(change, reloaded, rounding),
        )
        describe(report, model, folder, form="gguf", has_template=template is not None)
    return report


def _check_package() -> None:
    from importlib.util import find_spec

    if find_spec("gguf") is None:
        raise MissingDependency("gguf", "to write GGUF files", "tune")


def _mergeable(model: TrainedModel) -> list[Any]:
    infos = [read_adapter(adapter) for adapter in model.adapters]
    stuck = next((info for info in infos if not info.mergeable), None)
    if stuck is not None:
        raise ModelError(
            f"an adapter of the kind {stuck.kind} cannot be merged into weights, and a GGUF file has no place for it",
            where=str(stuck.path),
            hint="Export safetensors: the adapter is then written beside the base model.",
        )
    return infos


def _as_trained(vocabulary: Vocabulary, tokenizer: Any, template: Template | None) -> Vocabulary:
    """No BOS before every text if conversations were trained without: llama.cpp would write one before them."""
    if template is None or not vocabulary.flags["add_bos_token"]:
        return vocabulary
    question = Conversation((Message("user", "?"),))
    if template.render(question, generation_prompt=True).startswith(tokenizer.bos_token):
        return vocabulary
    note(f"Conversations do not begin with {tokenizer.bos_token}, so the file asks for none before a text.")
    return replace(vocabulary, flags={**vocabulary.flags, "add_bos_token": False})


def _write(
    file: Path,
    model: Any,
    vocabulary: Vocabulary,
    chat_template: str | None,
    *,
    architecture: Architecture,
    kind: GgufType,
) -> None:
    """Write the file; the model's weights become those that its readers get."""
    import gguf

    writer = gguf.GGUFWriter(file, architecture.gguf)
    try:
        writer.add_name(file.stem)
        writer.add_type("model")
        writer.add_file_type(gguf.LlamaFileType[FILE_TYPES[kind]])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        add_metadata(writer, model.config, architecture)
        vocabulary.add_to(writer)
        if chat_template:
            writer.add_chat_template(chat_template)
        write_tensors(writer, model, plan(model, architecture, kind))
    finally:
        writer.close()


def _said(change: float, kind: str) -> float:
    if not change < NOTICEABLE:
        warn(
            f"rounding to {kind} moves logits by up to {change:.2g} standard deviations; more bits would move them less"
        )
    return change


def _check_tokens(file: Path, tokenizer: Any, *, plain: bool) -> None:
    """Compare how texts are read, by themselves (if ``plain``) and in conversations."""
    again = read_tokenizer(file)
    for text in [*(TEXTS if plain else ()), *_conversations(tokenizer)]:
        ours, theirs = (item.encode(text, add_special_tokens=False) for item in (tokenizer, again))
        if ours != theirs:
            raise ModelError(
                f"the vocabulary of the written file reads {text[:40]!r} as other tokens",
                where=str(file),
                hint="Nothing was exported. Export safetensors and use llama.cpp's own converter.",
            )


def _check_logits(file: Path, expected: Any, architecture: Architecture) -> float | None:
    """How far the logits of what is read from the file differ; None if nothing here reads it."""
    if not architecture.read_back:
        note(
            f"Experimental: nothing here reads a {architecture.gguf} GGUF file back, so its weights are not compared. "
            "Try it in llama.cpp before you rely on it."
        )
        return None
    found = difference(probe(read_model(file)), expected)
    if not found <= RELOAD_TOLERANCE:
        raise ModelError(
            f"the written file does not answer as the model in memory: logits differ by {found:.2g} "
            f"standard deviations (allowed {RELOAD_TOLERANCE:g})",
            where=str(file),
            hint="Nothing was exported. Check the disk, and try again.",
        )
    return found


def _conversations(tokenizer: Any) -> list[str]:
    """Short conversations as the chat template writes them, with its control tokens."""
    if not tokenizer.chat_template:
        return []
    talks = [
        [{"role": "user", "content": asked}, {"role": "assistant", "content": said}, {"role": "user", "content": asked}]
        for asked, said in zip(TEXTS, reversed(TEXTS))
    ]
    return [tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True) for talk in talks]
