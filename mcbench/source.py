"""What the files of a model hold, told before a weight is read: sense of the configuration, precision, bytes."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mcbench.errors import BadInput

PLAIN = "16 bits"  # how a model is called of which nothing else is known
ONE_FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
DECODED = ("fp8", "mxfp4")  # formats that transformers decodes exactly, on any machine
NEEDS_PACKAGE = {"compressed-tensors": "compressed_tensors"}  # and those it decodes with a package

_FLOATS = {
    "F64": ("float64", 64),
    "F32": ("float32", 32),
    "F16": ("float16", 16),
    "BF16": ("bfloat16", 16),
    "F8_E4M3": ("float8_e4m3fn", 8),
    "F8_E5M2": ("float8_e5m2", 8),
    "F8_E8M0": ("float8_e8m0fnu", 8),
    "F4": ("float4_e2m1fn", 4),
}
_SOME = 0.05  # of the bytes of a component: a smaller share of another precision is not named
# of a configuration: what has to be positive, and how much is more than any model has
_POSITIVE = {
    "vocab_size": 10**8,
    "hidden_size": 10**7,
    "intermediate_size": 10**7,
    "moe_intermediate_size": 10**7,
    "num_hidden_layers": 10**5,
    "num_attention_heads": 10**5,
    "num_key_value_heads": 10**5,
    "head_dim": 10**6,
    "max_position_embeddings": 10**12,
    "sliding_window": 10**12,
    "num_labels": 10**6,
}
_COUNT = re.compile(r"(^|_)(num|n)_|_(size|dim|heads|layers|rank|experts)$")  # fields that count something
_MOST = 10**12
_UNBUILT = 1000  # layers that are too many to build only to find them missing
_DEPTHS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer", "depth", "encoder_layers", "decoder_layers")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", "num_moe_experts")
_CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "moe_k", "top_k_experts")
_MTP_FIELD = re.compile(r"nextn|mtp")
_MTP_NAME = re.compile(r"(^|\.)mtp\w*\.")
_PACKED = re.compile(r"(.*)\.(gate|up|down|weight)\.\d+\.(?:packed|scale|offset|kept)$")
_SCALES = re.compile(r"(_blocks|_scales|_scale_inv|_scale|_packed|_shape|_zero_point)$")
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


class Stored(NamedTuple):
    """One tensor of a weights file, as its header tells."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True)
class Source:
    """What a model was in its files, before anything was done to it.

    precision: of the routed experts, or of a dense model's weights, by the name that tables compare with: "16 bits",
    "32 bits", "fp8", "mxfp4", "packed at 2.05 bits". kind: how the weights were compressed, empty where they are plain
    floating-point numbers. components: the types that each component is stored in, the largest first. bytes: of the
    weights files by component; "header" is what is no tensor, "left out" what the model has no place for; they add up
    to the files. files: that were read. left_out: what of them was not, and why. notes: what a reader should know.
    """

    precision: str
    kind: str
    components: Mapping[str, str]
    bytes: Mapping[str, int]
    files: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Bytes of the weights files."""
        return sum(self.bytes.values())


@dataclass(frozen=True)
class Files:
    """The weights files of a folder, and the header of each.

    names: of the files, in the order of reading. tensors: by the name they have there. size: bytes of all files.
    """

    names: tuple[str, ...]
    tensors: Mapping[str, Stored]
    size: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Left:
    """Tensors of the files that the model has no place for, with what explains each: reason -> names."""

    explained: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unexplained: tuple[str, ...] = ()


# ---- the configuration


def read_config(folder: Path, name: str) -> dict[str, Any]:
    """config.json as it stands; BadInput where it is no JSON object, or describes what cannot be a model."""
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"the model {name!r} cannot be loaded: config.json is damaged ({error})") from None
    if not isinstance(content, dict):
        raise BadInput(f"the model {name!r} cannot be loaded: config.json holds no object")
    refuse_impossible(content, name)
    return content


def _without_rotation(part: Mapping[str, Any]) -> bool:
    """Whether queries have no rotated part, where attention is latent: `head_dim` is then the width of nothing."""
    return part.get("qk_rope_head_dim") == 0 and bool(part.get("kv_lora_rank"))


def refuse_damaged_object(path: Path, name: str) -> None:
    """Raises BadInput where a file that transformers passes over when it is damaged is there and no JSON object."""
    if not path.exists():
        return
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"the model {name!r} cannot be loaded: {path.name} is damaged ({error})") from None
    if not isinstance(content, dict):
        raise BadInput(f"the model {name!r} cannot be loaded: {path.name} holds no object")


def refuse_impossible(config: Mapping[str, Any], name: str) -> None:
    """Raises BadInput naming the first field of a configuration, or of one inside it, that no model can have."""
    for part in _parts(config):
        for key, most in _POSITIVE.items():
            value = part.get(key)
            if (
                value is not None
                and _is_number(value)
                and not 1 <= value <= most
                and not (value == 0 and (key == "sliding_window" or (key == "head_dim" and _without_rotation(part))))
            ):
                raise BadInput(f"the config of {name!r} says {key} = {_shown(value)}; it must be from 1 to {most:,}")
        counts = [part[key] for key in _EXPERTS if _is_number(part.get(key))]
        for key in _EXPERTS:
            count: Any = part.get(key)
            if _is_number(count) and count < 0:
                raise BadInput(f"the config of {name!r} says {key} = {_shown(count)}; it must be 0 or more")
        for key in _CHOSEN:
            chosen: Any = part.get(key)
            if _is_number(chosen) and chosen < 1 and any(count > 0 for count in counts):
                raise BadInput(f"the config of {name!r} says {key} = {_shown(chosen)}; a token needs at least 1 expert")
            if counts and _is_number(chosen) and chosen > max(counts) > 0:
                raise BadInput(
                    f"the config of {name!r} says {key} = {_shown(chosen)}, more than its {max(counts)} experts"
                )
        for key, value in part.items():
            if isinstance(value, int) and abs(value) > _MOST and _COUNT.search(key):
                raise BadInput(f"the config of {name!r} says {key} = {_shown(value)}; no model has as many")
            if _holds_nan(value):
                raise BadInput(f"the config of {name!r} says {key} = NaN; the file is damaged")


def _holds_nan(value: Any) -> bool:
    """Whether a number is NaN, or one inside a list or mapping."""
    if isinstance(value, Mapping):
        return any(_holds_nan(part) for part in value.values())
    if isinstance(value, list):
        return any(_holds_nan(part) for part in value)
    return isinstance(value, float) and math.isnan(value)


def _shown(value: Any) -> str:
    """A value for a message; of one with many digits the first."""
    text = str(value)
    return text if len(text) <= 24 else f"{text[:12]}... ({len(text)} digits)"


def quantization_of(config: Mapping[str, Any]) -> str:
    """The method by which a configuration says its weights are compressed, empty where it names none."""
    for part in _parts(config):
        for key in ("quantization_config", "compression_config"):
            found = part.get(key)
            if found is not None:
                method = found.get("quant_method") if isinstance(found, Mapping) else None
                if method is None and isinstance(found, Mapping):
                    bits = [b for b in (8, 4) if found.get(f"load_in_{b}bit")]
                    method = "bitsandbytes" if bits else None
                return str(method) if isinstance(method, str) and method else "an unnamed method"
    return ""


def require_decodable(method: str, name: str) -> None:
    """Raises BadInput with the reason where weights compressed by that method cannot be read as numbers."""
    import importlib.util

    if not method or method in DECODED:
        return
    if method in NEEDS_PACKAGE:
        package = NEEDS_PACKAGE[method]
        if importlib.util.find_spec(package) is not None:
            return
        raise BadInput(f"the weights of {name!r} are in the format {method}; install the package {package} to read it")
    raise BadInput(
        f"the weights of {name!r} are compressed already, by {method}, whose codes only its own kernels read; mcbench"
        " compresses weights that it can read as numbers, so give the model that this one was made from"
    )


def _parts(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A configuration and those of its parts, such as text_config."""
    yield config
    for key, value in config.items():
        if isinstance(value, Mapping) and key.endswith("_config") and "quant" not in key and "compress" not in key:
            yield from _parts(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# ---- the files


def read_files(folder: Path, config: Mapping[str, Any], name: str) -> Files:
    """The headers of the weights files that are read from a folder; BadInput for what is missing or damaged.

    Which files these are follows transformers: the one that the configuration names, else model.safetensors, else those
    of the index. Where both of the latter are there, a note says so.
    """
    if (folder / "adapter_config.json").is_file():
        raise BadInput(f"{name!r} holds an adapter (adapter_config.json); merge it into its model and give that")
    asked = config.get("transformers_weights")
    notes = []
    one, index = folder / ONE_FILE, folder / INDEX
    if asked is not None:
        if not isinstance(asked, str) or Path(asked).name != asked:
            raise BadInput(
                f"the config of {name!r} reads its weights from {asked!r}; only files of the folder are read"
            )
        paths = _indexed(folder / asked, name) if asked.endswith(".index.json") else [folder / asked]
    elif one.is_file():
        paths = [one]
        if index.is_file() and (named := {path.name for path in _indexed(index, name)} - {ONE_FILE}):
            notes.append(
                f"the folder has two sets of weights: {ONE_FILE} was read, as transformers does, and not the"
                f" {len(named)} file{'s' * (len(named) > 1)} of {INDEX}; delete the set that is out of date"
            )
    elif index.is_file():
        paths = _indexed(index, name)
    else:
        for path in (one, index):
            if path.is_symlink() or path.exists():
                what = "is a link to nothing" if not path.exists() else "is no regular file"
                raise BadInput(f"the model {name!r} cannot be loaded: its {path.name} {what}")
        others = sorted(
            p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".gguf", ".safetensors")
        )
        beside = f"; {others[0]} is not read, for only {ONE_FILE} and files of its index are" if others else ""
        raise BadInput(f"the model {name!r} cannot be loaded: it has no {ONE_FILE}{beside}")
    tensors: dict[str, Stored] = {}
    owner: dict[str, Path] = {}
    for path in paths:
        found = read_header(path, name)
        for key in tensors.keys() & found.keys():
            if not _same(key, owner[key], path):
                raise BadInput(
                    f"the weights of {name!r} contradict each other: {key} has other values in {owner[key].name} than"
                    f" in {path.name}; keep the file that belongs to the model"
                )
        tensors |= found
        owner |= dict.fromkeys(found, path)
    return Files(tuple(path.name for path in paths), tensors, sum(path.stat().st_size for path in paths), tuple(notes))


def _same(key: str, first: Path, second: Path) -> bool:
    """Whether two files hold the same tensor under a name."""
    from safetensors import safe_open

    with safe_open(first, framework="pt") as one, safe_open(second, framework="pt") as other:
        a, b = one.get_tensor(key), other.get_tensor(key)
        return a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())


def read_header(path: Path, name: str) -> dict[str, Stored]:
    """The tensors of a safetensors file, by its header alone; BadInput where the file is damaged or cut short."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > size - 8:
                raise ValueError("its header is cut short")
            table = json.loads(file.read(length))
        found = {
            key: Stored(
                str(entry["dtype"]),
                tuple(int(n) for n in entry["shape"]),
                int(entry["data_offsets"][1]) - int(entry["data_offsets"][0]),
            )
            for key, entry in table.items()
            if key != "__metadata__"
        }
        if size - 8 - length != sum(entry.nbytes for entry in found.values()):
            raise ValueError("its tensors do not fill it")
    except OSError as error:
        raise BadInput(f"a weights file of {name!r} cannot be read: {path.name}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise BadInput(f"a weights file of {name!r} is damaged or half downloaded: {path.name}: {error}") from None
    return found


def require_layers(files: Files, config: Mapping[str, Any], name: str) -> None:
    """Raises BadInput where a configuration has more layers or experts than the files: such a model is not even built.

    Of a part that the files may have been saved without, such as a vision tower, only what could not be built counts.
    """
    numbers = [[int(n) for n in _NUMBER.findall(key)] for key in files.tensors]
    layers = max((found[0] for found in numbers if found), default=0) + 1
    rows = max((n for tensor in files.tensors.values() for n in tensor.shape), default=0)
    experts = max(rows, *(n + 1 for found in numbers for n in found), 1)
    for part in _parts(config):
        for key in _DEPTHS:
            asked: Any = part.get(key)
            own = key == "num_hidden_layers" and (part is config or part is config.get("text_config"))
            if layers > 1 and _is_number(asked) and asked > layers + (0 if own else _UNBUILT):
                raise BadInput(
                    f"the weights of {name!r} are incomplete: {_shown(asked)} layers are configured, {layers} stored"
                )
        for key in _EXPERTS:
            asked = part.get(key)
            if _is_number(asked) and asked > experts:
                raise BadInput(
                    f"the config of {name!r} says {key} = {_shown(asked)}, and no tensor of its files has as many rows"
                )


def odd_expert(files: Files) -> str:
    """What is irregular about the stored matrices of experts, for a message; empty where nothing is."""
    kinds: dict[str, dict[str, Stored]] = {}
    for key, tensor in files.tensors.items():
        if ".experts." in key:
            kinds.setdefault(_NUMBER.sub("*", key), {})[key] = tensor
    most = max((len(found) for found in kinds.values()), default=0)
    for kind, found in sorted(kinds.items()):
        shapes = [tensor.shape for tensor in found.values()]
        usual = max(set(shapes), key=shapes.count)
        for key, tensor in sorted(found.items()):
            if tensor.shape != usual:
                return f"{key} is {list(tensor.shape)}, and others of its kind are {list(usual)}"
        if len(found) < most:
            return f"there are {len(found)} tensors {kind}, and {most} of another kind"
    return ""


def _indexed(index: Path, name: str) -> list[Path]:
    """The files that an index of weights names, each once; BadInput where it names anything outside its folder."""
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        named = dict.fromkeys(content["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise BadInput(f"the index {str(index)!r} cannot be read: {error}") from None
    for file in named:
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            raise BadInput(f"{str(index)!r} names {file!r}; only safetensors files of the same folder are read")
    if not named:
        raise BadInput(f"the index {str(index)!r} names no file; the model is damaged")
    if not isinstance(content.get("metadata"), dict):
        raise BadInput(f"the index {str(index)!r} has no object 'metadata', which transformers asks for; add one")
    return [index.parent / file for file in named]


# ---- what was read and what was not


def base_name(name: str) -> str:
    """The parameter that a stored tensor is a part of: codes and scales stand beside each other under longer names."""
    packed = _PACKED.match(name)
    if packed is not None:
        module, projection = packed[1], packed[2]
        fused = {"gate": "gate_up_proj", "up": "gate_up_proj"}.get(projection, "down_proj")
        return f"{module}.{fused}" if projection in ("gate", "up", "down") else f"{module}.{projection}"
    return _SCALES.sub("", name)


def explain(unexpected: Sequence[str], dropped: Sequence[str], config: Mapping[str, Any]) -> Left:
    """Sorts tensors that a model has no place for by what explains them.

    unexpected: those that transformers reports. dropped: those that the model's class leaves out without a word.
    Layers that predict further tokens (multi-token prediction) are no part of the model that writes one token at a
    time; they stand behind its last layer, or under a name of their own.
    """
    depth = max((p["num_hidden_layers"] for p in _parts(config) if _is_number(p.get("num_hidden_layers"))), default=0)
    further = sum(
        int(value)
        for part in _parts(config)
        for key, value in part.items()
        if _MTP_FIELD.search(key) and _is_number(value) and 0 < value < 100
    )
    explained: dict[str, list[str]] = {}
    unexplained = []
    for key in sorted({*unexpected, *dropped}):
        place = _NUMBER.search(key)
        behind = place is not None and "layers." in key and depth <= int(place[0])
        if (_MTP_NAME.search(key) and (further or key in dropped)) or (
            behind and (key in dropped or (place is not None and int(place[0]) < depth + further))
        ):
            reason = "multi-token prediction"
        elif key in dropped:
            last = key.rpartition(".")[2]
            computed = last in ("inv_freq", "position_ids")
            reason = "computed from the configuration" if computed else "not part of this class of model"
        else:
            unexplained.append(key)
            continue
        explained.setdefault(reason, []).append(key)
    return Left({reason: tuple(keys) for reason, keys in explained.items()}, tuple(unexplained))


def describe(
    files: Files,
    components: Mapping[str, str],
    left: Left,
    *,
    method: str = "",
    packed: float | None = None,
    computes: str = "",
    notes: Sequence[str] = (),
) -> Source:
    """The source of a model, from its files and the component of each of their tensors.

    components: by the tensor's name in the file; what is not in it is "other". method: that the configuration names.
    packed: the label of a model that mcbench packed. computes: the type that the model was loaded in.
    """
    out = {key for keys in left.explained.values() for key in keys}
    taken: dict[str, int] = {}
    types: dict[str, dict[str, int]] = {}
    for key, tensor in files.tensors.items():
        component = "left out" if key in out else components.get(key, "other")
        taken[component] = taken.get(component, 0) + tensor.nbytes
        if component != "left out":
            called = _type(tensor, key, method)
            of = types.setdefault(component, {})
            of[called] = of.get(called, 0) + tensor.nbytes
    taken["header"] = files.size - sum(taken.values())
    named = {component: _listed(of) for component, of in sorted(types.items())}
    main = types.get("experts") or types.get("attention") or next(iter(types.values()), {})
    largest = max(main, key=main.__getitem__, default="bfloat16")
    kind, precision = _precision(largest, method, packed, computes)
    said = [*files.notes, *notes]
    if kind:
        said.append(
            f"the model is compressed already ({precision}): scores are compared with its decoded weights, and a"
            " compression of it is one of weights that have lost something before"
        )
    elif computes and largest in ("float32", "float64") and computes in ("bfloat16", "float16"):
        said.append(f"the weights are stored in {largest} and were rounded to {computes} when they were read")
    return Source(
        precision=precision,
        kind=kind,
        components=named,
        bytes=taken,
        files=files.names,
        left_out=tuple(
            f"{reason}: {_named(keys)}, {sum(files.tensors[k].nbytes for k in keys if k in files.tensors):,} bytes"
            for reason, keys in left.explained.items()
        ),
        notes=tuple(said),
    )


def _type(tensor: Stored, key: str, method: str) -> str:
    """What a stored tensor is called: its type, or the format that its codes are of."""
    if tensor.dtype in _FLOATS:
        return _FLOATS[tensor.dtype][0]
    return method if method else tensor.dtype.lower()


def _precision(largest: str, method: str, packed: float | None, computes: str) -> tuple[str, str]:
    """How the weights are compressed, and what they are called."""
    if packed is not None:
        return "mcbench", f"packed at {packed:.2f} bits"
    bits = next((bits for name, bits in _FLOATS.values() if name == largest), None)
    if method and (bits is None or bits < 16):
        return method, method
    if bits is None:
        return largest, largest
    if bits < 16:
        return f"float{bits}", f"float{bits}"
    narrow = bits > 16 and computes in ("bfloat16", "float16")
    return "", PLAIN if narrow or bits == 16 else f"{bits} bits"


def _listed(sizes: Mapping[str, int]) -> str:
    total = sum(sizes.values())
    ordered = sorted(sizes, key=lambda name: -sizes[name])
    return ", ".join(name for at, name in enumerate(ordered) if at == 0 or sizes[name] >= _SOME * total)


def _named(keys: Sequence[str]) -> str:
    """The tensors by their names; those that differ in numbers alone once, with a star, and of many kinds the first."""
    kinds = list(dict.fromkeys(_NUMBER.sub("*", key) for key in keys))
    if len(keys) == 1:
        return keys[0]
    first = re.match(r".*?\.\d+\.|[^.]*\.", keys[0])
    opening = first[0] if first else ""
    if opening and all(key.startswith(opening) for key in keys):
        return f"{len(keys)} tensors {opening}*"
    return f"{len(keys)} tensors {kinds[0]}" + (f" and {len(kinds) - 1} more kinds" if len(kinds) > 1 else "")
