"""The folder of a compressed model: one safetensors file with packed codes and kept tensors, and what explains it.

    model.safetensors   per MoE layer, projection and width one stack of codes, `<experts>.<projection>.<width>.packed`,
                        `.scale` and `.offset`, experts in rising order; `.16.kept` where nothing was quantised; per
                        attention or shared linear `<linear>.weight.<width>.packed` and so on; all else under its name;
                        an empty tensor under the name of every packed weight, on whose shape a loader fails that does
                        not know these codes, instead of going on with random weights
    compression.json    method, width of every expert, dtypes, the SHA-256 of every other file and of itself
    config.json         the model's own, with `quantization_config` naming mcbench
    tokenizer files     as the model had them

A kept tensor is stored in 16 bits where that loses nothing, else as it is. The file is written here, not by the
safetensors package, so that its size is known to the byte before it exists and a second copy of the model never is.

Once this module is imported, `AutoModelForCausalLM.from_pretrained(folder)` reads such folders too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from mcbench.allocation import BitAllocation
from mcbench.errors import BadInput
from mcbench.experts import PROJECTIONS, find_experts
from mcbench.files import PACKED
from mcbench.quantization import QuantizedTensor
from mcbench.sealed import content_digest, file_digest, note

SCHEMA = 1
WEIGHTS, COMPRESSION = "model.safetensors", PACKED
QUANT_METHOD = "mcbench"
FIELDS = ("packed", "scale", "offset")

# the families of classes that write text, in the order in which they are asked whether they know a configuration
_LANGUAGE: tuple[Any, ...] = (AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM)
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class Entry:
    """One tensor of a weights file and the component of the model whose bytes it is."""

    name: str
    tensor: Tensor
    component: str


def header(entries: Iterable[Entry]) -> bytes:
    """The length and the JSON that open a safetensors file of these entries, padded to whole 8 bytes."""
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for entry in entries:
        size = entry.tensor.nbytes
        dtype = _NAMES[entry.tensor.dtype]
        table[entry.name] = {"dtype": dtype, "shape": list(entry.tensor.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def in_file_order(entries: Iterable[Entry]) -> list[Entry]:
    """Wide types first, so that every tensor starts at a multiple of its own item size."""
    return sorted(entries, key=lambda entry: (-entry.tensor.dtype.itemsize, entry.name))


def write_weights(file: BinaryIO, entries: list[Entry]) -> None:
    """Writes a safetensors file, one tensor in memory at a time."""
    file.write(header(entries))
    for entry in entries:
        data = entry.tensor.detach().cpu().contiguous().reshape(-1)
        file.write(data.view(torch.uint8).numpy().data)


def narrowed(tensor: Tensor) -> Tensor:
    """The same values in 16 bits where every one of them fits, else the tensor itself."""
    if tensor.dtype in (torch.float32, torch.float64):
        for dtype in (torch.bfloat16, torch.float16):
            short = tensor.to(dtype)
            if torch.equal(short.to(tensor.dtype), tensor):
                return short
    return tensor


def untied(model: PreTrainedModel) -> dict[str, Tensor]:
    """The persistent tensors of a model by name, those that share memory only once."""
    seen: set[tuple[int, tuple[int, ...]]] = set()
    kept: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        place = (tensor.data_ptr(), tuple(tensor.shape))
        if tensor.numel() == 0 or place not in seen:
            kept[name] = tensor
        seen.add(place)
    return kept


def is_compressed(folder: str | Path) -> bool:
    return (Path(folder) / COMPRESSION).is_file()


def write_explained(folder: Path, explained: Mapping[str, Any]) -> None:
    """Writes compression.json, with the SHA-256 of every file that is in the folder, and of what it says itself."""
    files = {path.name: file_digest(path) for path in sorted(folder.iterdir()) if path.is_file()}
    whole = {**explained, "files": files}
    text = json.dumps({**whole, "seal": content_digest(whole)}, indent=1) + "\n"
    (folder / COMPRESSION).write_text(text, encoding="utf-8")


def read_explained(folder: Path) -> dict[str, Any]:
    """What compression.json says, once it and the files that it names are proven to be those that were written.

    Raises BadInput where one of them was changed or is missing, OSError and ValueError where it cannot be read.
    """
    path = folder / COMPRESSION
    explained: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if explained["schema"] > SCHEMA:
        raise BadInput(f"{str(path)!r} is of schema {explained['schema']}; a newer mcbench reads it")
    if "seal" not in explained and "files" not in explained:
        note(f"the compressed model {str(folder)!r} was saved by an older mcbench, so its files cannot be proven")
        return explained
    seal = explained.pop("seal", None)
    if seal != content_digest(explained):
        raise BadInput(f"{str(path)!r} is damaged or was changed after it was written; save the model again")
    for name, digest in explained["files"].items():
        file = folder / name
        if Path(name).name != name:
            raise BadInput(f"{str(path)!r} names {name!r}, which is no file beside it; save the model again")
        if not file.is_file():
            raise BadInput(f"the compressed model {str(folder)!r} is damaged or incomplete: there is no {name}")
        if file_digest(file) != digest:
            raise BadInput(
                f"the compressed model {str(folder)!r} is damaged or incomplete: {name} was changed after it was "
                "written; save the model again"
            )
    return explained


def read_compressed(folder: str | Path, *, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The model of such a folder with dequantised weights: bit for bit what was evaluated.

    dtype: another type to compute in, into which what was evaluated is rounded. Raises BadInput for a file that is
    damaged, incomplete or of a newer schema.
    """
    from safetensors import safe_open

    folder = Path(folder)
    try:
        explained = read_explained(folder)
        model = _empty_model(folder, dtype or _dtype(explained["dtype"]))
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        _fill(model, stored, explained)
    except BadInput:
        raise
    except Exception as error:  # a damaged file raises whatever its contents lead to
        raise _damaged(folder, error) from error
    return model


def packed_bits(folder: str | Path) -> BitAllocation:
    """The widths of a folder that `read_compressed` reads, once its files are proven; BadInput where they cannot be."""
    folder = Path(folder)
    try:
        return BitAllocation.from_json(read_explained(folder)["allocation"])
    except BadInput:
        raise
    except Exception as error:  # a damaged file raises whatever its contents lead to
        raise _damaged(folder, error) from error


def _damaged(folder: Path, error: Exception) -> BadInput:
    return BadInput(f"the compressed model {str(folder)!r} is damaged or incomplete: {first_sentence(error)}")


def auto_class(config: PretrainedConfig) -> Any:
    """The class of transformers that makes a language model of a configuration, one that also sees if need be.

    It is the one that the configuration names, where it makes language models; of the others the first that fits.
    """
    known = [auto for auto in _LANGUAGE if type(config) in auto._model_mapping]
    asked = set(config.architectures or ())
    for auto in known:
        classes = auto._model_mapping[type(config)]
        names = {made.__name__ for made in (classes if isinstance(classes, tuple | list) else (classes,))}
        if names & asked:
            return auto
    return known[0] if known else AutoModelForCausalLM


def writes_text(config: PretrainedConfig) -> bool:
    """Whether transformers has a class that continues text for a configuration: no encoder-decoder, no classifier."""
    return any(type(config) in auto._model_mapping for auto in _LANGUAGE)


def first_sentence(error: BaseException) -> str:
    """What an error of a library says first, for a message of ours."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text.split(". ")[0][:300].rstrip(".")


def stacks(
    stored: Mapping[str, Tensor], prefix: str, shape: tuple[int, int]
) -> Iterator[tuple[int, QuantizedTensor | Tensor]]:
    """The codes, or kept matrices, of every width that the file has under a prefix, for matrices [out, in]."""
    rows, columns = shape
    for name in sorted(stored):
        if not name.startswith(f"{prefix}.") or name.count(".") != prefix.count(".") + 2:
            continue
        width, _, part = name[len(prefix) + 1 :].partition(".")
        if part == "kept":
            yield int(width), stored[name]
        elif part == "packed":
            fields = {field: stored.get(f"{prefix}.{width}.{field}") for field in FIELDS}
            packed, scale, offset = fields["packed"], fields["scale"], fields["offset"]
            assert packed is not None
            if scale is None:
                raise BadInput(f"the weights file has no {prefix}.{width}.scale")
            group = columns // scale.shape[-1]
            yield (
                int(width),
                QuantizedTensor(
                    packed=packed,
                    scale=scale,
                    offset=offset,
                    shape=(len(packed), rows, columns),
                    bits=int(width),
                    group_size=group,
                    asked_group_size=group,
                ),
            )


def _dtype(name: str) -> torch.dtype:
    """The type of that name, which stood in a file; BadInput for whatever else torch has under it."""
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise BadInput(f"there is no dtype {name!r}; save the model again")
    return found


def _fill(model: PreTrainedModel, stored: dict[str, Tensor], explained: Mapping[str, Any]) -> None:
    """Puts every tensor of the file into the model; raises BadInput where one is missing or left over.

    A model of another dtype than was evaluated gets the values that were, rounded to its own; what was kept in another
    type than the rest stays in it.
    """
    allocation, dtypes = BitAllocation.from_json(explained["allocation"]), explained["dtypes"]
    evaluated, computes = _dtype(explained["dtype"]), model.dtype
    exempt = _kept_wide(model, computes) if computes != evaluated else ()
    used: set[str] = set()
    state = model.state_dict()
    wanted = set(untied(model))
    for layer, experts in enumerate(find_experts(model)):
        for projection in PROJECTIONS:
            target = experts.matrices(projection)
            prefix = f"{experts.name}.{projection}"
            found = set()
            for width, codes in stacks(stored, prefix, (target.shape[1], target.shape[2])):
                where = [e for e in range(experts.count) if allocation.widths[layer, e] == width]
                if len(codes) != len(where):
                    raise BadInput(f"{prefix} has {len(codes)} matrices of {width} bits, {len(where)} are allocated")
                target[where] = _values(codes, evaluated).to(target.device, target.dtype)
                used |= {name for name in stored if name.startswith(f"{prefix}.{width}.")}
                found.update(where)
            if len(found) != experts.count:
                raise BadInput(f"the weights file lacks {experts.count - len(found)} matrices of {prefix}")
        fused = {f"{experts.name}.gate_up_proj", f"{experts.name}.down_proj"}
        wanted -= fused
        used |= fused
    assigned: dict[str, Tensor] = {}
    for name in wanted:
        used.add(name)
        shape = state[name].shape
        if name in stored and stored[name].shape == shape:
            value = stored[name].to(state[name].device)
            value = value.to(_dtype(dtypes[name])) if name in dtypes else value
            moved = value.dtype == evaluated and not any(part in name for part in exempt)
            assigned[name] = value.to(computes) if moved else value
            continue
        for width, codes in stacks(stored, name, (shape[0], shape[-1])) if len(shape) == 2 else ():
            assigned[name] = _values(codes, evaluated)[0].to(state[name].device, computes)
            used |= {key for key in stored if key.startswith(f"{name}.{width}.")}
    missing, left = sorted(wanted - set(assigned)), sorted(set(stored) - used)
    if missing or left:
        what = f"has no {missing[0]}" if missing else f"holds {left[0]}, which the model does not know"
        raise BadInput(f"the weights file {what}")
    model.load_state_dict(assigned, strict=False, assign=True)
    model.tie_weights()
    if computes == torch.float16 and computes != evaluated:
        for name, tensor in model.state_dict().items():
            if tensor.dtype == torch.float16 and bool(torch.isinf(tensor).any()):
                raise BadInput(f"{name} holds values too large for float16; choose bfloat16 or float32")


def _kept_wide(model: PreTrainedModel, dtype: torch.dtype) -> tuple[str, ...]:
    """Parts of the names of weights that a class of transformers keeps in float32 while the rest is in `dtype`."""
    always = set(model._keep_in_fp32_modules_strict or ()) if dtype.itemsize == 2 else set()
    return tuple(always | (set(model._keep_in_fp32_modules or ()) if dtype == torch.float16 else set()))


def _values(codes: QuantizedTensor | Tensor, dtype: torch.dtype) -> Tensor:
    return codes.dequantize(dtype) if isinstance(codes, QuantizedTensor) else codes.to(dtype)


@register_quantization_config(QUANT_METHOD)
class PackedConfig(QuantizationConfigMixin):
    """What `config.json` of a compressed model says to transformers; the rest is in compression.json."""

    def __init__(self, quant_method: str = QUANT_METHOD, schema: int = SCHEMA, **rest: Any) -> None:
        self.quant_method, self.schema = quant_method, schema  # type: ignore[assignment]


@register_quantizer(QUANT_METHOD)
class PackedLoader(HfQuantizer):
    """Lets `from_pretrained` read a compressed folder: the weights are decoded once everything else is loaded.

    A model spread over several devices or offloaded is not supported.
    """

    requires_calibration = False

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        (file,) = kwargs["checkpoint_files"]
        self.folder = Path(file).parent
        self.shapes: dict[str, tuple[torch.Size, torch.dtype]] = {}
        explained = read_explained(self.folder)
        for name in explained["packed"]:
            owner, part = _owner(model, name)
            weight = owner._parameters[part]
            assert weight is not None
            self.shapes[name] = (weight.shape, weight.dtype)
            owner._parameters[part] = nn.Parameter(weight.new_empty(0), requires_grad=False)
        known = set(model._keys_to_ignore_on_load_unexpected or ())
        model._keys_to_ignore_on_load_unexpected = known | {rf"\.\d+\.({'|'.join((*FIELDS, 'kept'))})$"}

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        from safetensors import safe_open

        for name, (shape, dtype) in self.shapes.items():
            owner, part = _owner(model, name)
            weight = torch.empty(shape, dtype=dtype, device=model.device)
            owner._parameters[part] = nn.Parameter(weight, requires_grad=False)
        explained = read_explained(self.folder)
        with safe_open(self.folder / WEIGHTS, framework="pt") as opened:
            stored = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
        _fill(model, stored, explained)
        self.remove_quantization_config(model)  # type: ignore[no-untyped-call]

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False


def _owner(model: PreTrainedModel, name: str) -> tuple[nn.Module, str]:
    prefix, _, part = name.rpartition(".")
    return model.get_submodule(prefix), part


def _empty_model(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The model of a configuration, its weights not yet set."""
    from transformers.initialization import no_init_weights

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with no_init_weights():
        model: PreTrainedModel = auto_class(config).from_config(config, dtype=dtype, trust_remote_code=False)
    model.tie_weights()
    return model
