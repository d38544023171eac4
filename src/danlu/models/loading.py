"""Load a model and its tokenizer from any source, quickly, quietly, and with errors that say what to do."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from danlu.core.errors import ModelError
from danlu.models.gguf import dequantised
from danlu.models.hub import fetch
from danlu.models.quantize import Quantization, keep_layout, quantized
from danlu.models.quiet import quiet
from danlu.models.sources import check_folder, read_folder_json, resolve_model
from danlu.models.zoo import family_of_type

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DataType: TypeAlias = Literal["auto", "float32", "bfloat16", "float16"]
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
UNEXPECTED_BY_DESIGN = ("rotary_emb.inv_freq", "rotary_pos_emb.inv_freq")


def model_folder(
    name: str | Path, *, revision: str = "main", cache_dir: str | Path | None = None, hub: str | None = None
) -> Path:
    """The local folder with config, weights and tokenizer of ``name``.

    A hub id is downloaded, a GGUF file is dequantised into the cache (once); a folder is itself.

    Args:
        name: a folder, GGUF file, packaged name or hub id.
        revision: hub revision.
        cache_dir: where hub downloads are kept.
        hub: ``huggingface`` or ``modelscope``; what the environment says by default.

    Raises:
        ModelError: when there is no such model or its folder is not one.
    """
    source = resolve_model(name)
    if source.kind == "hub":
        folder = fetch(source.name, revision=revision, cache_dir=cache_dir, source=hub)
        check_folder(folder)
        return folder
    if source.path is None:
        raise ModelError("there is no such model", where=source.name)
    return source.path if source.kind == "folder" else dequantised(source.path)


def load_model(
    path: str | Path,
    *,
    dtype: DataType = "auto",
    family: str | None = None,
    revision: str = "main",
    cache_dir: str | Path | None = None,
    attention: str | None = None,
    device: str | torch.device | None = None,
    quantization: Quantization | None = None,
) -> PreTrainedModel:
    """Load a causal language model, in evaluation mode.

    Args:
        path: a folder, GGUF file, packaged name or hub id.
        dtype: precision of the weights; ``auto`` keeps the stored one.
        family: the model type that is expected, for instance ``llama``; anything else is an error.
        revision: hub revision.
        cache_dir: where hub downloads are kept.
        attention: attention implementation of transformers (``sdpa``, ``eager``, ``flash_attention_2``).
        device: where to put it; ``auto`` or None: the GPU if there is one.
        quantization: keep the linear layers in few bits, or None.

    Raises:
        MissingDependency: when ``quantization`` needs a package that is not there.
        ModelError: when it cannot be loaded, needs code from its folder, or its weights do not fit it.
    """
    folder = model_folder(path, revision=revision, cache_dir=cache_dir)
    kind = check_architecture(folder)
    if family is not None and kind != family:
        raise ModelError(f"this is a {kind} model, not {family}", where=str(folder))
    import torch

    chosen: Any = "auto" if dtype == "auto" else getattr(torch, dtype)
    extra: dict[str, Any] = {} if attention is None else {"attn_implementation": attention}
    place = pick_device(device)
    if quantization is not None:
        extra |= quantized(quantization, chosen, place)
    model, report = _from_folder(folder, dtype=chosen, **extra)
    _check_weights(folder, report)
    model.name_or_path = model.config._name_or_path = lasting_name(path)
    if quantization is not None:
        keep_layout(model)
        return model.eval()
    return model.to(place).eval()


def lasting_name(path: str | Path) -> str:
    """The name that adapters record for their base: packaged names and hub ids as given, paths absolute."""
    given = Path(path).expanduser()
    return str(given.resolve()) if given.exists() else str(path)


def _from_folder(folder: Path, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        with quiet():
            return AutoModelForCausalLM.from_pretrained(
                folder, output_loading_info=True, local_files_only=True, trust_remote_code=False, **options
            )
    except ImportError as error:
        raise ModelError(_first_line(error), where=str(folder)) from error
    except MemoryError as error:
        raise ModelError("there is not enough memory for the weights", where=str(folder)) from error
    except Exception as error:  # safetensors, pickle, JSON and shape errors share no base class
        raise ModelError(
            f"the weights cannot be loaded ({_first_line(error)})",
            where=str(folder),
            hint="Check that every file was copied whole and that config.json belongs to these weights.",
        ) from error


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _check_weights(folder: Path, report: dict[str, Any]) -> None:
    missing = sorted(report["missing_keys"])
    mismatched = sorted(str(item[0]) for item in report["mismatched_keys"])
    if missing or mismatched:
        what = f"{len(missing)} weights are missing" if missing else f"{len(mismatched)} have another shape"
        raise ModelError(
            f"the weights do not fit config.json: {what}, for instance {(missing or mismatched)[0]}",
            where=str(folder),
            hint="A shard may be missing, or the folder mixes two models.",
        )


def check_architecture(folder: Path) -> str:
    """The model type of a folder, if transformers has it built in.

    Raises:
        ModelError: for models that need code from their folder, unknown ones, and encoders.
    """
    config = read_folder_json(folder / "config.json")
    kind = config.get("model_type")
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    where = str(folder / "config.json")
    if kind not in CONFIG_MAPPING_NAMES:
        family = family_of_type(str(kind))
        known = family.needs_code if family else None
        if known or config.get("auto_map"):
            what = f"{known.reason} (model type {kind!r})" if known else f"the model type {kind!r}"
            raise ModelError(
                f"{what} needs Python code from the model folder, which danlu never runs",
                where=where,
                hint=known.instead if known else "Use a release of the model that transformers reads by itself.",
            )
        hint = "A newer transformers may know it."
        raise ModelError(f"the model type {kind!r} is unknown to transformers", where=where, hint=hint)
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ModelError(f"a {kind} model does not generate text", where=where)
    return str(kind)


def pick_device(device: str | torch.device | None = None) -> torch.device:
    """The device that is meant: ``auto`` and None are the GPU if there is one, else the CPU.

    Raises:
        ModelError: when a GPU is asked for and there is none.
    """
    import torch

    if device is None or device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = torch.device(device)
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ModelError("there is no CUDA device", where=f"device {device}", hint="Use device=cpu.")
    return chosen


def load_tokenizer(
    path: str | Path,
    *,
    revision: str = "main",
    cache_dir: str | Path | None = None,
    need_template: bool = False,
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model.

    Args:
        path: as for :func:`load_model`; a run directory that holds tokenizer files works too.
        revision: hub revision.
        cache_dir: where hub downloads are kept.
        need_template: refuse a tokenizer without a chat template.

    Raises:
        ModelError: when there is no tokenizer, it is damaged, or it has no template although one is needed.
    """
    given = Path(path).expanduser()
    own = given.is_dir() and has_tokenizer(given)
    folder = given if own else model_folder(path, revision=revision, cache_dir=cache_dir)
    if not has_tokenizer(folder):
        raise ModelError(
            "the model folder has no tokenizer",
            where=str(folder),
            hint="Copy tokenizer.json and tokenizer_config.json of the base model into it.",
        )
    tokenizer = _tokenizer(folder)
    if need_template and not tokenizer.chat_template:
        raise ModelError(
            "the model has no chat template",
            where=str(folder),
            hint="Name one with template=…, for instance template=chatml.",
        )
    return tokenizer


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds the files of a tokenizer."""
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers raises bare Exception
        if (folder / "config.json").is_file():
            check_architecture(folder)  # a model that cannot be used at all is not a damaged tokenizer
        raise ModelError(
            f"the tokenizer cannot be loaded ({_first_line(error)})",
            where=str(folder),
            hint="Check that tokenizer.json and tokenizer_config.json are whole.",
        ) from error
    if tokenizer.pad_token_id is None:  # batches need one; masked positions never reach the loss
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every token that ends an answer: the tokenizer's end of sequence and those of the generation config."""
    config = getattr(model, "generation_config", None)
    given = getattr(config, "eos_token_id", None)
    ids: Iterable[int | None] = given if isinstance(given, (list, tuple)) else [given]
    return frozenset(number for number in (*ids, tokenizer.eos_token_id) if number is not None)
