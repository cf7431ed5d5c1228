"""Reads a transformers model and its tokenizer from a folder, the hub or this package, and says what is wrong."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from mcbench import hub
from mcbench.allocation import BitAllocation
from mcbench.checkpoint import (
    QUANT_METHOD,
    auto_class,
    first_sentence,
    is_compressed,
    packed_bits,
    read_compressed,
    writes_text,
)
from mcbench.errors import BadInput
from mcbench.reference import folder, model_names
from mcbench.source import (
    DECODED,
    Files,
    Left,
    explain,
    odd_expert,
    quantization_of,
    read_config,
    read_files,
    refuse_damaged_object,
    require_decodable,
    require_layers,
)
from mcbench.tokens import read_tokenizer, require_fit

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Origin:
    """Where a model came from, for `mcbench.source.describe`.

    renamed: the name inside the model of each tensor of the files. packed: the widths of a folder that mcbench packed.
    """

    files: Files
    renamed: Mapping[str, str]
    left: Left
    method: str = ""
    packed: BitAllocation | None = None
    notes: tuple[str, ...] = ()


class Loaded(NamedTuple):
    """tokenizer is None where there is none to be had, for the reason `no_tokenizer`."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    no_tokenizer: str
    origin: Origin


@dataclass(frozen=True)
class _Place:
    """What transformers is asked for, the folder on this machine, and whether nothing else may be looked at."""

    source: str
    folder: Path
    local: bool
    notes: tuple[str, ...] = ()


def read_model(name_or_path: str, *, dtype: str = "auto", device: str = "cpu", text: bool = False) -> Loaded:
    """The model on its device, every weight checked to be there and finite, and its tokenizer if it has one.

    dtype "auto" is that of the file; a model that comes with the package computes in float32 though. text: whether the
    model will have to read text, so that one without a tokenizer is refused before a weight is read.
    """
    if device.partition(":")[0] == "meta":
        raise BadInput("a model on device 'meta' has no weights to compress; choose cpu or cuda")
    if dtype not in DTYPES:
        raise BadInput(f"a dtype is one of {', '.join(DTYPES)}, not {dtype!r}")
    place = _place(name_or_path)
    if dtype == "auto" and name_or_path in model_names():
        dtype = "float32"  # at this size as fast as 16 bits, whose rounding would be noise beside what is measured
    transformers_logging.disable_progress_bar()
    config = read_config(place.folder, name_or_path)
    refuse_damaged_object(place.folder / "generation_config.json", name_or_path)
    with _quiet():
        settings = _settings(place, config, name_or_path)
        tokenizer, reason = read_tokenizer(place.source, place.folder, name_or_path, local=place.local)
        if text and tokenizer is None:
            raise BadInput(reason)
        if is_compressed(place.folder):
            model, origin = _packed(place, config, name_or_path, dtype)
        else:
            model, origin = _weights(place, config, settings, name_or_path, dtype)
    _require_one_model(model, name_or_path)
    if tokenizer is not None:
        require_fit(tokenizer, model, name_or_path)
    refuse_bad_numbers(model, name_or_path)
    try:
        model.to(torch.device(device))  # type: ignore[arg-type]
    except (RuntimeError, AssertionError) as error:
        raise BadInput(f"the model cannot be put on device {device!r}: {first_sentence(error)}") from error
    return Loaded(model, tokenizer, reason, origin)


def _require_one_model(model: PreTrainedModel, name: str) -> None:
    """Raises BadInput for a class that joins several language models, none of which reads text as the whole."""
    try:
        model.get_input_embeddings()
    except NotImplementedError:
        raise BadInput(
            f"the model {name!r} is a {type(model).__name__}, which joins several models and embeds no text as a whole;"
            " save the part that reads and writes text (a thinker, say) as a model of its own"
        ) from None


def refuse_bad_numbers(model: PreTrainedModel, name: str) -> None:
    """Raises BadInput naming the first tensor that holds NaN or infinity.

    A vector that is added to router logits may hold -inf where an expert was switched off, as long as one is left.
    """
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.dtype.itemsize == 1:
            raise BadInput(f"the weight {key} of {name!r} is in {str(tensor.dtype)[6:]} without the scale it needs")
        if not tensor.is_floating_point() or bool(torch.isfinite(tensor).all()):
            continue
        switched_off = tensor.dim() == 1 and key.rpartition(".")[2].endswith("bias") and _routes(model, key, tensor)
        if switched_off and bool(torch.isfinite(tensor[~torch.isneginf(tensor)]).all()):
            if not bool(torch.isneginf(tensor).all()):
                continue
            raise BadInput(f"{key} of {name!r} switches every expert off; the model is damaged")
        raise BadInput(f"the weight {key} of {name!r} holds NaN or infinity; the model is damaged")


def _routes(model: PreTrainedModel, key: str, tensor: torch.Tensor) -> bool:
    """Whether a vector has an entry for each expert and stands in a router: no part of attention or of an expert."""
    from mcbench.experts import decorated

    counts = {int(getattr(m, "num_experts", 0)) for m in model.modules() if decorated(m)}
    counts |= {p.shape[0] for m in model.modules() if decorated(m) for p in m.parameters()}
    return tensor.shape[0] in counts and "attn" not in key and ".experts." not in key


# ---- where a model is


def _place(name_or_path: str) -> _Place:
    """The folder behind what was typed; for a name on the hub that of its files on this machine.

    Raises BadInput for what is no model folder, and for a name that can be had neither here nor from the hub.
    """
    if name_or_path in model_names():
        return _Place(str(folder(name_or_path)), folder(name_or_path), True)
    try:
        path = Path(name_or_path).expanduser()
        there, here = path.is_dir(), path.exists()
    except (OSError, ValueError, RuntimeError) as error:
        raise BadInput(f"{name_or_path!r} is no name of a model: {first_sentence(error)}") from None
    if there:
        if not (path / "config.json").is_file():
            raise BadInput(f"{name_or_path!r} is no model folder: it has no config.json")
        return _Place(str(path), path, True)
    if here:
        raise BadInput(f"{name_or_path!r} is a file; a model is a folder with a config.json, or a name on the hub")
    if name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1 or "\\" in name_or_path:
        raise BadInput(f"there is no model folder {name_or_path!r}")
    found = hub.find(name_or_path)
    return _Place(name_or_path, found.folder, found.local, found.notes)


# ---- weights


def _packed(place: _Place, config: Mapping[str, Any], name: str, dtype: str) -> tuple[PreTrainedModel, Origin]:
    """A folder that mcbench packed, decoded."""
    packed = packed_bits(place.folder)
    files = read_files(place.folder, {}, name)
    require_layers(files, config, name)
    model = read_compressed(place.folder, dtype=None if dtype == "auto" else getattr(torch, dtype))
    origin = Origin(files, {key: key for key in files.tensors}, Left(), QUANT_METHOD, packed)
    return model, origin


def _settings(place: _Place, config: Mapping[str, Any], name: str) -> PretrainedConfig:
    """The configuration as transformers reads it; BadInput where it cannot, or it names a format that we cannot."""
    method = quantization_of(config)
    if not is_compressed(place.folder):
        require_decodable(method, name)
    try:
        settings: PretrainedConfig = AutoConfig.from_pretrained(
            place.source, local_files_only=place.local, trust_remote_code=False
        )
        _decode(settings, method)
    except Exception as error:  # a damaged config raises whatever its fields lead to
        raise BadInput(f"the model {name!r} cannot be loaded: {_reason(error)}") from error
    if not writes_text(settings):
        raise BadInput(
            f"the model {name!r} is a {settings.model_type}, for which transformers has no class that continues text;"
            " encoder-decoders and classifiers are not supported"
        )
    return settings


def _weights(
    place: _Place, config: Mapping[str, Any], settings: PretrainedConfig, name: str, dtype: str
) -> tuple[PreTrainedModel, Origin]:
    from safetensors import SafetensorError

    method = quantization_of(config)
    files = None
    if Path(place.source).is_dir():
        files = read_files(place.folder, config, name)
        require_layers(files, config, name)
    options: dict[str, Any] = {"local_files_only": place.local, "trust_remote_code": False}
    try:
        if files is not None:
            _require_size(settings, files, name)
        options |= {"config": settings, "dtype": dtype, "use_safetensors": True, "output_loading_info": True}
        with _dropped() as dropped:
            loaded: Any = auto_class(settings).from_pretrained(place.source, **options)
    except SafetensorError as error:
        raise BadInput(f"a weights file of {name!r} is damaged or half downloaded: {first_sentence(error)}") from error
    except BadInput:
        raise
    except Exception as error:  # a damaged config raises whatever its fields lead to
        odd = odd_expert(files) if files is not None else ""
        reason = f"the weights of its experts do not fit together: {odd}" if odd else _reason(error)
        raise BadInput(f"the model {name!r} cannot be loaded: {reason}") from error
    model: PreTrainedModel = loaded[0]
    info: dict[str, Any] = loaded[1]
    missing = sorted({*info["missing_keys"], *(str(key[0]) for key in info.get("mismatched_keys", ()))})
    if missing:
        raise BadInput(f"the weights of {name!r} are incomplete: {missing[0]} and {len(missing) - 1} more are missing")
    if files is None:  # what the hub had is on this machine now
        files = read_files(place.folder, config, name)
    renamed = _renamed(model, files)
    _refuse_twice(model, files, name)
    if not method:
        _refuse_codes(model, files, renamed, name)
    left = _left(model, files, renamed, sorted(info.get("unexpected_keys", ())), sorted(dropped.unexpected), config)
    if extra := left.unexplained:
        raise BadInput(f"{name!r} holds weights that its config has no place for: {extra[0]} and {len(extra) - 1} more")
    notes = (*place.notes, *_departures(model, config))
    if made := sorted(dropped.missing):
        notes = (*notes, f"not in the files, and made by the class of the model: {made[0]} and {len(made) - 1} more")
    return model, Origin(files, renamed, left, method, None, notes)


def _decode(config: Any, method: str) -> None:
    """Asks transformers for the decoded weights, whatever device it finds."""
    for part in (config, config.get_text_config()):
        found = getattr(part, "quantization_config", None)
        if isinstance(found, dict) and method in DECODED:
            found["dequantize"] = True
        elif isinstance(found, dict) and method == "compressed-tensors":
            found["run_compressed"] = False


def _require_size(config: Any, files: Files, name: str) -> None:
    """Raises BadInput where a configuration describes far more numbers than the files can hold, before any is made."""
    with torch.device("meta"):
        described = sum(p.numel() for p in auto_class(config).from_config(config, trust_remote_code=False).parameters())
    if described > 16 * files.size:  # a file of one bit a weight holds 8 to the byte
        raise BadInput(
            f"the config of {name!r} describes a model of {described:,} weights, which its files of {files.size:,}"
            " bytes cannot hold"
        )


def _refuse_codes(model: PreTrainedModel, files: Files, renamed: Mapping[str, str], name: str) -> None:
    """Raises BadInput where a weight is stored in a type that is none of floating point, and no method explains it."""
    state = model.state_dict()
    for key, tensor in files.tensors.items():
        at = state.get(renamed[key])
        if at is not None and at.is_floating_point() and not tensor.dtype.startswith(("F", "BF")):
            raise BadInput(
                f"the weight {key} of {name!r} is stored in {tensor.dtype}, which is no floating-point type, and the"
                " config names no method by which it was compressed; give the model that this one was made from"
            )


def _refuse_twice(model: PreTrainedModel, files: Files, name: str) -> None:
    """Raises BadInput where a weight is stored with and without the name of the body before it: one of them is lost."""
    for key in files.tensors:
        longer = f"{model.base_model_prefix}.{key}"
        if longer in files.tensors:
            raise BadInput(
                f"{name!r} holds the weight {longer} twice, as {key} too; delete the one that is out of date"
            )


def _departures(model: PreTrainedModel, config: Mapping[str, Any]) -> Iterator[str]:
    """Where the model that was loaded is another than its configuration says."""
    asked = config.get("architectures")
    if isinstance(asked, list) and asked and type(model).__name__ not in asked:
        yield f"the config names the class {asked[0]}, and the model was loaded as {type(model).__name__}"
    if config.get("tie_word_embeddings") is not True or not model._tied_weights_keys:
        return
    try:
        head: Any = model.get_output_embeddings()
        embedding: Any = model.get_input_embeddings()
    except NotImplementedError:  # of several models joined, which are refused as such
        return
    one, other = getattr(head, "weight", None), getattr(embedding, "weight", None)
    if one is not None and other is not None and one.data_ptr() != other.data_ptr():
        yield (
            "the config ties the output matrix to the embedding, and the files hold two matrices that differ: both are"
            " used as they are stored"
        )


def _reason(error: BaseException) -> str:
    text = first_sentence(error)
    if "custom code" in text or "trust_remote_code" in text:
        return "it needs a program that comes with it (auto_map), and no code of a model is executed"
    if isinstance(error, KeyError):
        return f"its config leads to {text}, which transformers does not know"
    if "automatic conversion" in text:
        return "its weights cannot be put together as its config says; one is missing or of another shape"
    if "ignore_mismatched_sizes" in text:
        return "its weights have other shapes than its config says"
    return text


@dataclass
class _Dropped:
    """What a class of transformers leaves out of its report of missing and unexpected weights."""

    missing: set[str]
    unexpected: set[str]


@contextmanager
def _dropped() -> Iterator[_Dropped]:
    """Notes what a class of transformers says nothing about while it reads weights."""
    found, own = _Dropped(set(), set()), PreTrainedModel._adjust_missing_and_unexpected_keys

    def adjust(model: PreTrainedModel, info: Any) -> None:
        missing, unexpected = set(info.missing_keys), set(info.unexpected_keys)
        own(model, info)
        found.missing |= missing - set(info.missing_keys)
        found.unexpected |= unexpected - set(info.unexpected_keys)

    PreTrainedModel._adjust_missing_and_unexpected_keys = adjust  # type: ignore[method-assign, assignment]
    try:
        yield found
    finally:
        PreTrainedModel._adjust_missing_and_unexpected_keys = own  # type: ignore[method-assign]


def _renamed(model: PreTrainedModel, files: Files) -> dict[str, str]:
    """The name inside the model of each tensor of the files, by transformers' own table of names."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    table = get_model_conversion_mapping(model)
    renamings = [entry for entry in table if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in table if isinstance(entry, WeightConverter)]
    state = model.state_dict()
    return {
        key: rename_source_key(key, renamings, converters, model.base_model_prefix, state)[0] for key in files.tensors
    }


def _left(
    model: PreTrainedModel,
    files: Files,
    renamed: Mapping[str, str],
    unexpected: list[str],
    dropped: list[str],
    config: Mapping[str, Any],
) -> Left:
    """What was left out, under the names of the files."""
    back: dict[str, list[str]] = {}
    for key, name in renamed.items():
        back.setdefault(name, []).append(key)
    there = set(files.tensors)

    def in_files(names: list[str]) -> list[str]:
        return [key for name in names for key in ([name] if name in there else back.get(name, [name]))]

    return explain(in_files(unexpected), in_files(dropped), config)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the libraries' own reports off the terminal: what matters of them is said in a sentence of ours."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(level)
