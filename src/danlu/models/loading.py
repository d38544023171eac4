"""Load a model and its tokenizer from any source, quickly, quietly, and with errors that say what to do."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from danlu.core.console import warn
from danlu.core.errors import ModelError
from danlu.models.chatglm.convert import converted_family, is_original, lasting_folder, native_folder
from danlu.models.chatglm.families import families, family_names, find_family, generation
from danlu.models.chatglm.tokenizer import original_tokenizer
from danlu.models.chatglm.v1 import check_first_version, register
from danlu.models.gguf import dequantised
from danlu.models.hub import fetch
from danlu.models.quantize import Quantization, keep_layout, quantized
from danlu.models.quiet import quiet
from danlu.models.shards import Shards
from danlu.models.sources import check_folder, read_folder_json, resolve_model
from danlu.models.stored_bits import is_in_few_bits, ordinary, reading
from danlu.models.zoo import family_of_type, find

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DataType: TypeAlias = Literal["auto", "float32", "bfloat16", "float16"]
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "ice_text.model")
UNEXPECTED_BY_DESIGN = ("rotary_emb.inv_freq", "rotary_pos_emb.inv_freq")
"""Numbers that older files hold and every model computes."""


def model_folder(
    name: str | Path,
    *,
    revision: str = "main",
    cache_dir: str | Path | None = None,
    hub: str | None = None,
    family: str | None = None,
) -> Path:
    """The local folder with config, weights and tokenizer of ``name``.

    A hub id is downloaded; a GGUF file is dequantised and a folder in the layout of ChatGLM2 is converted into the
    cache (once); any other folder is itself.

    Args:
        name: a folder, GGUF file, packaged name or hub id.
        revision: hub revision.
        cache_dir: where hub downloads are kept.
        hub: ``huggingface`` or ``modelscope``; what the environment says by default.
        family: which ChatGLM it is, where its files do not tell.

    Raises:
        ModelError: when there is no such model or its folder is not one.
    """
    source = resolve_model(name)
    if source.kind == "hub":
        _refuse_unreadable(source.name)
        folder = fetch(source.name, revision=revision, cache_dir=cache_dir, source=hub)
        check_folder(folder)
        return native_folder(folder, family)
    if source.path is None:
        raise ModelError("there is no such model", where=source.name)
    return native_folder(source.path, family) if source.kind == "folder" else dequantised(source.path)


def _refuse_unreadable(name: str) -> None:
    """What is known to need code is not downloaded only to be refused."""
    known = find(name)
    if known and (why := known[0].needs_code):
        what = f"{why.reason} needs Python code from its folder, which danlu never runs"
        raise ModelError(what, where=name, hint=why.instead)


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
        family: what is expected: a model type, for instance ``llama``, or a ChatGLM family, for instance
            ``chatglm3-32k``, which also settles what its files leave open. Anything else is an error.
        revision: hub revision.
        cache_dir: where hub downloads are kept.
        attention: attention implementation of transformers (``sdpa``, ``eager``, ``flash_attention_2``).
        device: where to put it; ``auto`` or None: the GPU if there is one.
        quantization: keep the linear layers in few bits, or None.

    Raises:
        MissingDependency: when ``quantization``, or how the weights are stored, needs a package that is not there.
        ModelError: when it cannot be loaded, needs code from its folder, or its weights do not fit it.
    """
    chatglm = family if family in family_names() else None
    folder = model_folder(path, revision=revision, cache_dir=cache_dir, family=chatglm)
    kind = check_architecture(folder)
    if family is not None:
        _check_family(folder, kind, family)
    import torch

    chosen: Any = "auto" if dtype == "auto" else getattr(torch, dtype)
    extra: dict[str, Any] = {} if attention is None else {"attn_implementation": attention}
    place = pick_device(device)
    stored = reading(folder, place)
    if quantization is not None and stored:
        raise ModelError(
            "the weights of this model are stored in few bits already",
            where=str(folder),
            hint="Leave quantization_bit out.",
        )
    extra |= stored if quantization is None else quantized(quantization, chosen, place)
    model, report = _from_folder(folder, dtype=chosen, **extra)
    _check_weights(folder, report)
    model.name_or_path = model.config._name_or_path = lasting_name(path)
    if "quantization_config" in stored:
        ordinary(model)
    if is_in_few_bits(model):
        keep_layout(model)
        return model.eval()
    return model.to(place).eval()


def _check_family(folder: Path, kind: str, family: str) -> None:
    """Compare with the model type, or with the family of the original where the folder is a conversion."""
    converted = converted_family(folder)
    wanted = find_family(family).name if converted and family in family_names() else family
    if wanted not in (kind, converted):
        raise ModelError(f"this is a {converted or kind} model, not {family}", where=str(folder))


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
        attention = options.get("attn_implementation")
        if attention and "does not support" in str(error):
            raise ModelError(
                f"this kind of model cannot be computed with {attention}",
                where=str(folder),
                hint="Leave flash_attn out: sequences are then packed without it.",
            ) from error
        if any(folder.glob("pytorch_model*.bin")):
            Shards(folder)  # a damaged file is named, in fewer words than torch uses
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
    unused = sorted(name for name in report["unexpected_keys"] if not name.endswith(UNEXPECTED_BY_DESIGN))
    if unused:
        prefix = any(".prefix_encoder." in name for name in unused)
        warn(
            f"{len(unused)} weights of {folder} have no place in the model and are left out, for instance {unused[0]}"
            + ("; they are a trained prefix: name the folder as the adapter as well" if prefix else "")
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
    if generation(config) == "v1":
        check_first_version(config, where)
        register()
        return str(kind)
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
    original = given.is_dir() and is_original(given)
    if original and not has_tokenizer(given):
        raise _no_tokenizer(given)  # before gigabytes are converted
    own = given.is_dir() and has_tokenizer(given) and not original
    if own:
        _refuse_first_version(given)
    folder = given if own else model_folder(path, revision=revision, cache_dir=cache_dir)
    if not has_tokenizer(folder):
        raise _no_tokenizer(lasting_folder(folder))
    tokenizer = _tokenizer(folder)
    if need_template and not tokenizer.chat_template:
        raise ModelError(
            "the model has no chat template",
            where=str(folder),
            hint="Name one with template=…, for instance template=chatml.",
        )
    return tokenizer


def _refuse_first_version(folder: Path) -> None:
    """What ChatGLM-6B's weights cannot be read is said before rows are tokenised for it."""
    path = folder / "config.json"
    config = read_folder_json(path) if path.is_file() else {}
    if generation(config) == "v1":
        check_first_version(config, str(path))


def _no_tokenizer(folder: Path) -> ModelError:
    """Names the files that a folder of its kind needs."""
    path = folder / "config.json"
    config = read_folder_json(path) if path.is_file() else {}
    file = {"v1": "ice_text.model", "v2": "tokenizer.model"}.get(str(generation(config)), "tokenizer.json")
    if config.get("padded_vocab_size") in {family.vocabulary for family in families().values() if family.vocabulary}:
        file = "tokenizer.json"
    return ModelError(
        "the model folder has no tokenizer",
        where=str(folder),
        hint=f"Copy {file} and tokenizer_config.json of the base model into it.",
    )


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds the files of a tokenizer."""
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def _tokenizer(folder: Path) -> Any:
    original = original_tokenizer(folder)
    if original is not None:
        return original
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
