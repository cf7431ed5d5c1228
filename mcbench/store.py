"""Every expert quantised once at every width, so that any allocation is only a choice among what is already there."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

from mcbench.activations import CHUNK_TOKENS, Activations, LayerInputs, available_memory_bytes, second_moment
from mcbench.errors import BadInput
from mcbench.progress import track
from mcbench.quantization import QuantizedTensor, Quantizer, concatenate
from mcbench.sealed import Damaged, read_tensors, unless_damaged, write_tensors

if TYPE_CHECKING:
    from mcbench.model import MoEModel
    from mcbench.text import CalibrationData

PROJECTIONS = ("gate", "up", "down")
FORMAT = 1
CODES = "quantised weights 1"  # what a file of them says that it is
LAYER, LINEARS = "layer-", "linears"  # names of parts


class Candidates(Protocol):
    """Whatever can say which weights an expert would have at a width."""

    def dequantized(self, layer: int, expert: int, projection: str, width: int) -> Tensor:
        """[out, in] fp32 weights after quantising to `width` bits; the model's own at 16."""


@dataclass(frozen=True)
class Fallback:
    """A matrix whose expert saw too few tokens for a Hessian of its own, and what was done instead."""

    layer: int
    expert: int
    projection: str
    tokens: int
    remedy: str

    @property
    def remark(self) -> str:
        """What happened, without where."""
        return f"the expert saw {self.tokens} token{'' if self.tokens == 1 else 's'}, so {self.remedy}"

    def __str__(self) -> str:
        return f"{self.projection} of expert {self.expert} of layer {self.layer}: {self.remark}"


Stacks = dict[str, QuantizedTensor]  # name of a stack of matrices -> its codes


class Part(NamedTuple):
    """What is quantised, kept and read back in one go: one layer, or all attention and shared-expert linears."""

    stacks: Stacks
    fallbacks: list[Fallback]


class Workbench(NamedTuple):
    """Turns matrices into codes, as many at a time as fit into the memory budget, which never changes a result.

    starved_share: an expert matrix [out, in] with fewer than starved_share * in tokens gets a Hessian of all tokens of
    its layer, sent through that expert; one that saw no token at all is rounded to nearest. Both are fallbacks.
    """

    model: MoEModel
    quantizer: Quantizer
    memory_bytes: int
    starved_share: float

    def experts(self, layer: int, experts: Sequence[int], widths: Sequence[int], inputs: LayerInputs | None) -> Part:
        """Some experts of a layer at each of the widths; `inputs` are those of the layer where a Hessian is needed."""
        weights = {projection: self.model.weight(layer, projection).float() for projection in PROJECTIONS}
        for projection, weight in weights.items():
            if not bool(torch.isfinite(weight).all()):
                raise BadInput(
                    f"the {projection} weights of MoE layer {layer} hold NaN or infinity; the model is damaged"
                )
        chosen = list(experts)
        if not self.quantizer.needs_hessian:
            stacks = {
                f"{projection}.{width}": codes
                for projection, weight in weights.items()
                for width, codes in self.quantizer.quantize(weight[chosen], widths, None).items()
            }
            return Part(stacks, [])
        assert inputs is not None
        done: dict[str, list[QuantizedTensor]] = {}
        fallbacks: list[Fallback] = []
        for first in range(0, len(chosen), size := self._experts_at_once(weights)):
            chunk = chosen[first : first + size]
            into, hidden = self._hessians(layer, inputs, chunk, weights, fallbacks)
            part = {projection: weight[chunk] for projection, weight in weights.items()}
            # given the Hessian rows are independent, so gate and up go as one matrix and share its factorisation too
            both = self.quantizer.quantize(torch.cat([part["gate"], part["up"]], dim=1), widths, into)
            down = self.quantizer.quantize(part["down"], widths, hidden)
            inner = part["gate"].shape[1]
            for width in widths:
                done.setdefault(f"gate.{width}", []).append(_rows(both[width], slice(0, inner)))
                done.setdefault(f"up.{width}", []).append(_rows(both[width], slice(inner, None)))
                done.setdefault(f"down.{width}", []).append(down[width])
        return Part({name: concatenate(codes) for name, codes in done.items()}, fallbacks)

    def linear(self, name: str, widths: Sequence[int], hessian: Tensor | None) -> Stacks:
        """One attention or shared-expert linear at each of the widths; `hessian` [in, in] where one is needed."""
        weight = self.model.linear(name).weight.detach().float()[None]
        metric = None if hessian is None else hessian[None]
        return {f"{name}.{width}": codes for width, codes in self.quantizer.quantize(weight, widths, metric).items()}

    def _experts_at_once(self, weights: dict[str, Tensor]) -> int:
        """How many experts' Hessians, and as much again for the quantiser's work on them, fit into the budget."""
        width, inner = weights["gate"].shape[-1], weights["down"].shape[-1]
        return max(1, self.memory_bytes // (4 * 4 * (width**2 + inner**2)))

    def _hessians(
        self,
        layer: int,
        inputs: LayerInputs,
        experts: Sequence[int],
        weights: dict[str, Tensor],
        fallbacks: list[Fallback],
    ) -> tuple[Tensor, Tensor]:
        """[N, D, D] of what enters gate and up, which share one, and [N, F, F] of what enters down: 2/n sum x x^T."""
        features = {projection: weight.shape[-1] for projection, weight in weights.items()}
        into, hidden = [], []
        everyone: Tensor | None = None
        for expert in experts:
            token, _ = inputs.routed(expert)
            starved = {p for p in PROJECTIONS if len(token) < self.starved_share * features[p]}
            remedy = "Hessian of all tokens of the layer" if len(token) else "round-to-nearest"
            fallbacks += [Fallback(layer, expert, p, len(token), remedy) for p in PROJECTIONS if p in starved]
            if not len(token):
                # no input, no error: a quantiser rounds every weight to nearest and must never make it zero
                into.append(inputs.hidden.new_zeros(features["gate"], features["gate"], dtype=torch.float32))
                hidden.append(inputs.hidden.new_zeros(features["down"], features["down"], dtype=torch.float32))
                continue
            if "gate" in starved and everyone is None:
                everyone = _mean_square(inputs.hidden)
            into.append(everyone if "gate" in starved and everyone is not None else _mean_square(inputs.hidden[token]))
            rows = inputs.hidden if "down" in starved else inputs.hidden[token]
            hidden.append(_mean_square(rows, lambda x, e=expert: self.model.expert_hidden(layer, e, x)))  # type: ignore[misc]
        return torch.stack(into), torch.stack(hidden)


class Shelf:
    """Keeps what is quantised, one part at a time: in memory, and where there is a folder in one file for each part.

    key: all that the codes depend on. folder: so that an interrupted run goes on. A file that is damaged, or of another
    key or part, is made anew, which is said. shapes: the stacks of a part by name, each (matrices, out, in).
    """

    def __init__(
        self,
        key: str,
        folder: Path | None,
        memory_bytes: int,
        shapes: Callable[[str], Mapping[str, tuple[int, ...]]],
    ) -> None:
        self.key, self.folder, self.memory_bytes, self._shapes = key, folder, memory_bytes, shapes
        self._fallbacks: dict[str, list[Fallback]] = {}
        self._parts: dict[str, Stacks] = {}

    @property
    def fallbacks(self) -> list[Fallback]:
        """Those of all parts that were asked for so far, in the order of their names."""
        return [record for part in sorted(self._fallbacks) for record in self._fallbacks[part]]

    def part(self, name: str, make: Callable[[], Part]) -> Stacks:
        """From memory, from its file, or made now and kept."""
        if name not in self._parts:
            part = self._read(name)
            if part is None:
                part = make()
                self._write(name, part)
            self._fallbacks[name] = part.fallbacks
            if self.folder is not None and self._held_bytes() > self.memory_bytes // 4:
                self._parts.clear()  # they are on disk
            self._parts[name] = part.stacks
        return self._parts[name]

    def holds(self, name: str) -> bool:
        """Whether a part is there without being made."""
        return name in self._parts or self._read(name) is not None

    def _held_bytes(self) -> int:
        return sum(codes.nbytes for stacks in self._parts.values() for codes in stacks.values())

    def file(self, name: str) -> Path | None:
        """Where a part is kept, whether it is there or not; None without a folder."""
        return None if self.folder is None else self.folder / f"{name}.safetensors"

    def _write(self, name: str, part: Part) -> None:
        path = self.file(name)
        if path is None:
            return
        tensors: dict[str, Tensor] = {}
        plain: dict[str, dict[str, object]] = {}
        for stack, codes in part.stacks.items():
            fields = {f.name: getattr(codes, f.name) for f in dataclasses.fields(codes)}
            tensors |= {f"{stack}/{k}": v.contiguous() for k, v in fields.items() if isinstance(v, Tensor)}
            plain[stack] = {k: v for k, v in fields.items() if not isinstance(v, Tensor)}
        content = {"stacks": plain, "fallbacks": [dataclasses.asdict(f) for f in part.fallbacks]}
        write_tensors(path, CODES, self._key(name), tensors, content)

    def _key(self, name: str) -> dict[str, str]:
        return {"settings": self.key, "part": name}

    def _read(self, name: str) -> Part | None:
        """The part in its file; None where there is no file, or one that cannot be used."""
        path = self.file(name)
        return None if path is None else unless_damaged(lambda: self._stored(path, name))

    def _stored(self, path: Path, name: str) -> Part | None:
        found = read_tensors(path, CODES, self._key(name))
        if found is None:
            return None
        tensors, content = found
        stacks = {}
        try:
            for stack, plain in content["stacks"].items():
                own = {key.rpartition("/")[2]: v for key, v in tensors.items() if key.rpartition("/")[0] == stack}
                plain["shape"], plain["notes"] = tuple(plain["shape"]), tuple(map(tuple, plain["notes"]))
                stacks[stack] = QuantizedTensor(**plain, **own)
                if problem := stacks[stack].problem():
                    raise ValueError(f"{stack}: {problem}")
            if {stack: codes.shape for stack, codes in stacks.items()} != dict(self._shapes(name)):
                raise ValueError("its matrices are not those of the model at these widths")
            return Part(stacks, [Fallback(**record) for record in content["fallbacks"]])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Damaged.of(path, CODES, str(error)) from None


def digest_of(settings: Mapping[str, object]) -> str:
    """The key of codes that depend on these settings."""
    return hashlib.sha256(json.dumps({"format": FORMAT, **settings}, sort_keys=True).encode()).hexdigest()


class ExpertStore:
    """Quantises the experts of a layer when first asked for one of them, all widths at once, and keeps the codes.

    quantizer_name: the full name with its settings; it is part of the key of everything kept.
    widths: candidate bit-widths of the experts; 16 means the weights as they are. linear_widths: those of attention
    and shared experts.
    folder: where the codes are kept, one file per layer, so that an interrupted run goes on; None keeps them in memory.
    starved_share: when an expert has seen too few tokens for a Hessian of its own; see `Workbench`.
    """

    def __init__(
        self,
        model: MoEModel,
        data: CalibrationData | None,
        quantizer: Quantizer,
        quantizer_name: str,
        widths: Sequence[int],
        *,
        linear_widths: Sequence[int] = (4,),
        folder: Path | None = None,
        memory_bytes: int | None = None,
        starved_share: float = 0.25,
        activations: Activations | None = None,
    ) -> None:
        self.model, self.data, self.quantizer, self.quantizer_name = model, data, quantizer, quantizer_name
        self.widths = tuple(w for w in widths if w != 16)
        self.linear_widths = tuple(w for w in linear_widths if w != 16)
        self.starved_share = starved_share
        memory = available_memory_bytes() // 3 if memory_bytes is None else memory_bytes
        self._names = (*model.attention_linears(), *model.shared_linears())
        if quantizer.needs_hessian and data is None:
            raise BadInput(f"{quantizer_name!r} quantises with a Hessian and there is no calibration text; give one")
        self.key = self._key()
        self.folder = None if folder is None else Path(folder) / f"store-{self.key[:16]}"
        self._workbench = Workbench(model, quantizer, memory, starved_share)
        self._shelf = Shelf(self.key, self.folder, memory, self._shapes)
        if activations is None and data is not None:
            linears = self._names if quantizer.needs_hessian and not self._shelf.holds(LINEARS) else ()
            activations = Activations(model, data, linears=linears, memory_bytes=memory_bytes)
        self.activations = activations

    @property
    def fallbacks(self) -> list[Fallback]:
        """Every fallback in the layers quantised so far, in the order of layers and experts."""
        return self._shelf.fallbacks

    def tensor(self, layer: int, expert: int, projection: str, width: int) -> QuantizedTensor:
        """The codes of one expert matrix, as a stack of one."""
        self._check(width, self.widths)
        return self._layer(layer)[f"{projection}.{width}"][expert : expert + 1]

    def dequantized(self, layer: int, expert: int, projection: str, width: int) -> Tensor:
        """[out, in] fp32: what the codes stand for, or the model's own weights at 16 bits."""
        if width == 16:
            return self.model.weight(layer, projection)[expert].float()
        return self.tensor(layer, expert, projection, width).dequantize()[0]

    def linear(self, name: str, width: int) -> QuantizedTensor:
        """The codes of one attention or shared-expert linear, as a stack of one."""
        self._check(width, self.linear_widths)
        return self._shelf.part(LINEARS, self._quantize_linears)[f"{name}.{width}"]

    def prepare(self) -> None:
        """Quantises whatever is not there yet, layer by layer."""
        for layer in track(range(self.model.layers), self.model.layers, f"quantising ({self.quantizer_name})"):
            self._layer(layer)
        self._shelf.part(LINEARS, self._quantize_linears)

    def _layer(self, layer: int) -> Stacks:
        return self._shelf.part(f"{LAYER}{layer:03d}", lambda: self._quantize_layer(layer))

    def _shapes(self, part: str) -> dict[str, tuple[int, ...]]:
        """The stacks of a part by name, each (matrices, out, in)."""
        if part == LINEARS:
            linears = {name: tuple(self.model.linear(name).weight.shape) for name in self._names}
            return {f"{n}.{width}": (1, *shape) for n, shape in linears.items() for width in self.linear_widths}
        layer = int(part.removeprefix(LAYER))
        matrices = {p: tuple(self.model.weight(layer, p).shape) for p in PROJECTIONS}
        return {f"{p}.{width}": shape for p, shape in matrices.items() for width in self.widths}

    def _quantize_layer(self, layer: int) -> Part:
        inputs = None
        if self.quantizer.needs_hessian:
            assert self.activations is not None
            inputs = self.activations.layer(layer)
        return self._workbench.experts(layer, range(self.model.experts), self.widths, inputs)

    def _quantize_linears(self) -> Part:
        done: Stacks = {}
        for name in self._names:
            hessian = None
            if self.quantizer.needs_hessian:
                assert self.activations is not None
                hessian = self.activations.linear_hessian(name)
            done |= self._workbench.linear(name, self.linear_widths, hessian)
        return Part(done, [])

    def _key(self) -> str:
        """Everything that the codes depend on, as one digest."""
        return digest_of(
            {
                "model": self.model.digest(),
                "data": self.data.digest if self.data is not None and self.quantizer.needs_hessian else None,
                "quantizer": self.quantizer_name,
                "widths": self.widths,
                "linear_widths": self.linear_widths,
                "starved_share": self.starved_share,
            }
        )

    def _check(self, width: int, widths: tuple[int, ...]) -> None:
        if width not in widths:
            raise BadInput(f"nothing was quantised to {width} bits, only to {widths}; add it to the widths")


class MinMax:
    """Round-to-nearest as the release of MC-MoE uses it behind its statistics: it makes numbers, never a model.

    Rows are cut into groups along the input; at 2 bits and more asymmetric between minimum and maximum (zero included)
    with a rounded zero point and no range search, at 1 bit the sign times the mean magnitude.
    """

    def __init__(self, model: MoEModel, group_size: int = 128) -> None:
        self.model, self.group_size = model, group_size

    def dequantized(self, layer: int, expert: int, projection: str, width: int) -> Tensor:
        """[out, in] fp32."""
        weight = self.model.weight(layer, projection)[expert].float()
        return weight if width == 16 else minmax(weight, width, self.group_size)


def minmax(weight: Tensor, bits: int, group_size: int = 128) -> Tensor:
    """[out, in] rounded to nearest within groups of `group_size` inputs; the last group of a row may be shorter."""
    columns = weight.split(group_size, dim=1)
    return torch.cat([_minmax_group(group, bits) for group in columns], dim=1)


def _minmax_group(group: Tensor, bits: int) -> Tensor:
    if bits == 1:
        return torch.where(group >= 0, 1.0, -1.0) * group.abs().mean(dim=1, keepdim=True)
    top = 2**bits - 1
    low = group.amin(dim=1, keepdim=True).clamp(max=0)
    high = group.amax(dim=1, keepdim=True).clamp(min=0)
    scale = ((high - low) / top).clamp(min=torch.finfo(group.dtype).tiny)
    zero = (-low / scale).round()
    codes: Tensor = (group / scale).round().add(zero).clamp(0, top)
    values: Tensor = scale * (codes - zero)
    return values


def _rows(codes: QuantizedTensor, rows: slice) -> QuantizedTensor:
    """The rows of gate or of up of every matrix of a stack of both; what was noted is about the two together."""
    packed, (matrices, _, columns) = codes.packed[:, rows], codes.shape
    return dataclasses.replace(
        codes,
        packed=packed,
        scale=codes.scale[:, rows],
        offset=None if codes.offset is None else codes.offset[:, rows],
        shape=(matrices, packed.shape[1], columns),
        notes=tuple(tuple(f"{note} (gate and up as one matrix)" for note in own) for own in codes.notes),
    )


def _mean_square(rows: Tensor, through: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """[in, in] 2/n sum of x x^T over n rows, each sent `through` something first."""
    total: Tensor | float = 0.0
    for chunk in rows.split(CHUNK_TOKENS):
        total = total + second_moment(chunk if through is None else through(chunk))
    assert isinstance(total, Tensor)
    return total * (2 / len(rows))
