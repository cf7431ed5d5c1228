"""Reads a transformers model and its tokenizer from a folder, the hub or this package, and says what is wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from mcbench.checkpoint import auto_class, first_sentence, is_compressed, read_compressed
from mcbench.errors import BadInput
from mcbench.reference import folder, model_names

DTYPES = ("auto", "float32", "bfloat16", "float16")


class Loaded(NamedTuple):
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None


def read_model(name_or_path: str, *, dtype: str = "auto", device: str = "cpu") -> Loaded:
    """The model on its device, every weight checked to be there and finite, and its tokenizer if it has one.

    dtype "auto" is that of the file; a model that comes with the package computes in float32 though.
    """
    if device.partition(":")[0] == "meta":
        raise BadInput("a model on device 'meta' has no weights to compress; choose cpu or cuda")
    if dtype not in DTYPES:
        raise BadInput(f"a dtype is one of {', '.join(DTYPES)}, not {dtype!r}")
    source = _source(name_or_path)
    if dtype == "auto" and name_or_path in model_names():
        dtype = "float32"  # at this size as fast as 16 bits, whose rounding would be noise beside what is measured
    transformers_logging.disable_progress_bar()
    if is_compressed(source):
        model = read_compressed(source)
        for parameter in model.parameters() if dtype != "auto" else ():
            parameter.data = parameter.data.to(getattr(torch, dtype))
    else:
        model = _weights(source, name_or_path, dtype)
    refuse_bad_numbers(model, name_or_path)
    try:
        model.to(torch.device(device))  # type: ignore[arg-type]
    except (RuntimeError, AssertionError) as error:
        raise BadInput(f"the model cannot be put on device {device!r}: {first_sentence(error)}") from error
    return Loaded(model, _tokenizer(source))


def refuse_foreign_files(folder: Path) -> None:
    """Raises BadInput where an index of weights names anything but safetensors files of the folder itself."""
    for index in folder.glob("*.index.json"):
        try:
            files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise BadInput(f"the index {str(index)!r} cannot be read: {first_sentence(error)}") from error
        for name in files:
            if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
                raise BadInput(f"{str(index)!r} names {name!r}; only safetensors files of the same folder are read")


def refuse_bad_numbers(model: PreTrainedModel, name: str) -> None:
    """Raises BadInput naming the first tensor that holds NaN or infinity."""
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise BadInput(f"the weight {key} of {name!r} holds NaN or infinity; the model is damaged")


def _source(name_or_path: str) -> str:
    """The folder or hub name behind what was typed."""
    if name_or_path in model_names():
        return str(folder(name_or_path))
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise BadInput(f"{name_or_path!r} is no model folder: it has no config.json")
        return str(path)
    if path.exists():
        raise BadInput(f"{name_or_path!r} is a file; a model is a folder with a config.json, or a name on the hub")
    if name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1:
        raise BadInput(f"there is no model folder {name_or_path!r}")
    return name_or_path


def _weights(source: str, name: str, dtype: str) -> PreTrainedModel:
    from safetensors import SafetensorError

    offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
    options: dict[str, Any] = {"local_files_only": offline or Path(source).is_dir(), "trust_remote_code": False}
    if Path(source).is_dir():
        refuse_foreign_files(Path(source))
    try:
        config = AutoConfig.from_pretrained(source, **options)
        options |= {"config": config, "dtype": dtype, "use_safetensors": True, "output_loading_info": True}
        loaded: Any = auto_class(config).from_pretrained(source, **options)
    except SafetensorError as error:
        raise BadInput(f"a weights file of {name!r} is damaged or half downloaded: {first_sentence(error)}") from error
    except Exception as error:  # a damaged config raises whatever its fields lead to
        raise BadInput(f"the model {name!r} cannot be loaded: {first_sentence(error)}") from error
    model: PreTrainedModel = loaded[0]
    info: dict[str, Any] = loaded[1]
    missing = sorted({*info["missing_keys"], *(str(key[0]) for key in info.get("mismatched_keys", ()))})
    if missing:
        raise BadInput(f"the weights of {name!r} are incomplete: {missing[0]} and {len(missing) - 1} more are missing")
    if extra := sorted(info.get("unexpected_keys", ())):
        raise BadInput(f"{name!r} holds weights that its config has no place for: {extra[0]} and {len(extra) - 1} more")
    return model


def _tokenizer(source: str) -> PreTrainedTokenizerBase | None:
    """None where the files are missing: a model can be compressed without one."""
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return tokenizer
