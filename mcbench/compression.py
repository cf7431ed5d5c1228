"""Puts an allocation into the model: every expert matrix at its width, proven, measured in bytes, saved, taken back.

What is evaluated is what is stored: the model computes with the dequantised values of the packed codes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mcbench.allocation import BitAllocation
from mcbench.checkpoint import (
    COMPRESSION,
    FIELDS,
    QUANT_METHOD,
    SCHEMA,
    WEIGHTS,
    Entry,
    header,
    in_file_order,
    is_compressed,
    narrowed,
    untied,
    write_explained,
    write_weights,
)
from mcbench.errors import BadInput, CheckFailed
from mcbench.fallbacks import gathered
from mcbench.inputs import require_place
from mcbench.model import PROJECTIONS, MoEModel, load_model
from mcbench.quantization import QuantizedTensor, concatenate
from mcbench.source import Source
from mcbench.store import Fallback

_WIDTHS = {"float8": 8, "fp8": 8, "mxfp4": 4, "float4": 4}  # bits of a weight, by how the type's name begins
COMPONENTS = ("experts", "attention", "shared", "router", "other", "header")


class Codes(Protocol):
    """Where quantised matrices come from; `mcbench.store.ExpertStore` is one."""

    def tensor(self, layer: int, expert: int, projection: str, width: int) -> QuantizedTensor: ...

    def linear(self, name: str, width: int) -> QuantizedTensor: ...


@dataclass(frozen=True)
class Sizes:
    """Four ways to count bits per weight, and the bytes of the weights file.

    expert: plain average over routed experts. label: that of the papers. whole_model: over all weights, what is kept
    at 16 bits. These three count codes only; stored counts every byte of the file, scales and header included.
    bytes: of the file, by component; they add up to it.
    """

    expert: float
    label: float
    whole_model: float
    stored: float
    bytes: Mapping[str, int]

    @property
    def total(self) -> int:
        """Bytes of the weights file."""
        return sum(self.bytes.values())


def compress(model: MoEModel, allocation: BitAllocation, store: Codes, *, method: str = "") -> CompressedModel:
    """The same model, computing with quantised weights until it is restored.

    Routed experts get the width that `allocation` gives each, attention and shared-expert linears theirs; width 16
    keeps the weights bit for bit. Biases, router, embeddings, norms and dense MLPs are kept. All codes are fetched
    before any weight changes, since the store may still have to run the uncompressed model for them.

    Raises BadInput for an allocation that does not fit the model, CheckFailed where afterwards any matrix is not what
    it should be.
    """
    if allocation.widths.shape != (model.layers, model.experts):
        shape = allocation.widths.shape
        raise BadInput(f"an allocation of {shape} does not fit {model.layers} layers of {model.experts} experts")
    if allocation.router != 16:
        raise BadInput(f"the router is kept at 16 bits; {allocation.router} are not supported")
    experts: dict[tuple[int, str, int], QuantizedTensor] = {
        (layer, projection, width): concatenate([store.tensor(layer, e, projection, width) for e in chosen])
        for layer, width, chosen in _groups(allocation)
        for projection in PROJECTIONS
        if width != 16
    }
    widths = dict.fromkeys(model.attention_linears(), allocation.attention)
    widths |= dict.fromkeys(model.shared_linears(), allocation.shared)
    linears = {name: store.linear(name, width) for name, width in widths.items() if width != 16}
    return CompressedModel(model, allocation, experts, linears, method)


class CompressedModel:
    """A model while it is compressed; as a context manager it restores the model at the end.

    experts: codes by (layer, projection, width), the experts of that width in rising order. linears: codes by name.
    """

    def __init__(
        self,
        model: MoEModel,
        allocation: BitAllocation,
        experts: Mapping[tuple[int, str, int], QuantizedTensor],
        linears: Mapping[str, QuantizedTensor],
        method: str = "",
    ) -> None:
        self.model, self.allocation, self.method = model, allocation, method
        self.experts, self.linears = experts, linears
        self._originals = {
            (layer, projection): model.weight(layer, projection).detach().cpu().clone()
            for layer in range(model.layers)
            for projection in PROJECTIONS
        }
        self._original_linears = {name: _linear(model, name).detach().cpu().clone() for name in linears}
        self._kept = _digests(self._kept_tensors())
        self._active = True
        try:
            self._write()
            self.verify()
        except BaseException:
            self.restore()
            raise

    def restore(self) -> None:
        """Gives the model its own weights back, bit for bit; once is enough, more does nothing."""
        if not self._active:
            return
        for (layer, projection), matrices in self._originals.items():
            for expert, matrix in enumerate(matrices):
                self.model.set_weight(layer, expert, projection, matrix)
        for name, weight in self._original_linears.items():
            self.model.set_linear(name, weight)
        self._active = False

    def __enter__(self) -> CompressedModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()

    def verify(self) -> None:
        """Proves coverage from the model's actual tensors; raises CheckFailed naming the first that is wrong.

        Each expert matrix equals the dequantised codes of its width, or, at 16 bits, what it was; so do the linears;
        and what is kept has not changed.
        """
        for layer, width, chosen in _groups(self.allocation):
            for projection in PROJECTIONS:
                actual = self.model.weight(layer, projection)
                codes = self.experts.get((layer, projection, width))
                if width != 16 and (codes is None or codes.bits != width or len(codes) != len(chosen)):
                    raise CheckFailed(f"there are no {width}-bit codes for {projection} of MoE layer {layer}")
                for place, expert in enumerate(chosen):
                    original = self._originals[layer, projection][expert]
                    expected = original if codes is None else codes[place].dequantize(original.dtype)[0]
                    if not torch.equal(actual[expert].cpu(), expected.cpu()):
                        what = f"{projection} of expert {expert} of MoE layer {layer}"
                        raise CheckFailed(f"{what} is not at its {width} bits")
        for name, codes in self.linears.items():
            actual = _linear(self.model, name)
            if not torch.equal(actual.cpu(), codes.dequantize(actual.dtype)[0].cpu()):
                raise CheckFailed(f"{name} is not at its {codes.bits} bits")
        self._verify_linear_widths()
        for name, digest in _digests(self._kept_tensors()).items():
            if self._kept.get(name) != digest:
                raise CheckFailed(f"{name} was to be kept and has changed")

    def expert_bytes(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """[L, E] bytes that each routed expert takes in the weights file, scales included, biases not."""
        sizes = np.zeros(self.allocation.widths.shape)
        for layer, width, chosen in _groups(self.allocation):
            for projection in PROJECTIONS:
                codes = self.experts.get((layer, projection, width))
                kept = narrowed(self.model.weight(layer, projection)[chosen]) if codes is None else None
                tensors = [kept] if kept is not None else list(codes.tensors().values()) if codes is not None else []
                sizes[layer, chosen] += sum(tensor.nbytes for tensor in tensors) / len(chosen)
        return sizes

    def fallbacks(self, starved: Iterable[Fallback] = ()) -> tuple[str, ...]:
        """What did not go as asked for the matrices that have codes, gathered into lines that say for how many.

        starved: what was done for experts that saw few tokens or none; of experts that are kept it does not count.
        """
        by_place: dict[tuple[int, int, str], list[str]] = {}
        for each in starved:
            by_place.setdefault((each.layer, each.expert, each.projection), []).append(each.remark)
        experts = [
            (*codes.remarks(place), *by_place.get((layer, expert, projection), ()))
            for (layer, projection, width), codes in self.experts.items()
            for place, expert in enumerate(np.flatnonzero(self.allocation.widths[layer] == width).tolist())
        ]
        linears = [codes.remarks(0) for codes in self.linears.values()]
        return (*gathered(experts, "expert matrices"), *gathered(linears, "attention and shared-expert matrices"))

    def digest(self) -> str:
        """That of the model as it computes now."""
        return self.model.digest()

    @property
    def sizes(self) -> Sizes:
        """The four averages and the bytes of the weights file that `save` would write, to the byte."""
        return _sizes(self.model, self.allocation, self._entries())

    def save(self, folder: str | Path) -> Path:
        """Writes the packed model into a folder that is new, empty, or an earlier compressed model, which it replaces.

        The folder is complete or absent. Raises BadInput where it cannot be written.
        """
        if not self._active:
            raise BadInput("the model was restored; compress it again to save it")
        folder = require_place(folder)
        part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
        try:
            part.mkdir(parents=True)
            self._write_folder(part)
            if folder.is_dir():
                shutil.rmtree(folder)
            part.rename(folder)
        except OSError as error:
            raise BadInput(f"{str(folder)!r} cannot be written: {error.strerror or error}") from error
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return folder

    def _write(self) -> None:
        for (layer, projection, width), codes in self.experts.items():
            dtype = self.model.weight(layer, projection).dtype
            chosen = np.flatnonzero(self.allocation.widths[layer] == width)
            for place, expert in enumerate(chosen.tolist()):
                self.model.set_weight(layer, expert, projection, codes[place].dequantize(dtype)[0])
        for name, codes in self.linears.items():
            self.model.set_linear(name, codes.dequantize(_linear(self.model, name).dtype)[0])

    def _verify_linear_widths(self) -> None:
        """Every attention and shared linear either has codes of its width, or is kept at 16."""
        for names, width in (
            (self.model.attention_linears(), self.allocation.attention),
            (self.model.shared_linears(), self.allocation.shared),
        ):
            for name in names:
                bits = self.linears[name].bits if name in self.linears else 16
                if bits != width:
                    raise CheckFailed(f"{name} is at {bits} bits instead of {width}")

    def _kept_tensors(self) -> dict[str, Tensor]:
        """Every persistent tensor that no codes stand for, the experts' matrices left out."""
        packed = self._packed_parameters()
        return {name: tensor for name, tensor in untied(self.model.model).items() if name not in packed}

    def _entries(self) -> list[Entry]:
        model, attention = self.model, self.model.attention_linears()
        entries: list[Entry] = []
        for layer, width, chosen in _groups(self.allocation):
            for projection in PROJECTIONS:
                prefix = f"{model.experts_name(layer)}.{projection}.{width}"
                codes = self.experts.get((layer, projection, width))
                if codes is None:
                    kept = narrowed(model.weight(layer, projection)[chosen])
                    entries.append(Entry(f"{prefix}.kept", kept, "experts"))
                else:
                    entries += _packed(prefix, codes, "experts")
        for name, codes in self.linears.items():
            component = "attention" if name in attention else "shared"
            entries += _packed(f"{name}.weight.{codes.bits}", codes, component)
        components = model.components()
        for name, tensor in self._kept_tensors().items():
            entries.append(Entry(name, narrowed(tensor), components.get(name, "other")))
        # see mcbench.checkpoint: what makes other loaders fail
        entries += [Entry(name, torch.empty(0, dtype=torch.float16), "other") for name in self._packed_parameters()]
        return in_file_order(entries)

    def _packed_parameters(self) -> list[str]:
        """The names of the parameters that are not in the file under their own name."""
        return sorted({f"{name}.weight" for name in self.linears} | _expert_parameters(self.model))

    def _write_folder(self, folder: Path) -> None:
        model = self.model
        entries = self._entries()
        with (folder / WEIGHTS).open("wb") as file:
            write_weights(file, entries)
            file.flush()
            os.fsync(file.fileno())
        stored = {entry.name: entry.tensor.dtype for entry in entries}
        dtypes = {n: _dtype(t) for n, t in self._kept_tensors().items() if t.dtype != stored[n]}
        explained = {
            "schema": SCHEMA,
            "method": self.method,
            "model": model.name,
            "digest": model.digest(),
            "dtype": _dtype(model.model),
            "dtypes": dtypes,
            "allocation": self.allocation.to_json(),
            "packed": self._packed_parameters(),
            "groups": sorted({codes.group_size for codes in (*self.experts.values(), *self.linears.values())}),
        }
        model.model.config.save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config["quantization_config"] = {"quant_method": QUANT_METHOD, "schema": SCHEMA}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        if getattr(model.model, "generation_config", None) is not None:
            model.model.generation_config.save_pretrained(folder)
        if model.has_tokenizer:
            model.tokenizer.save_pretrained(folder)
        write_explained(folder, explained)


def uncompressed_sizes(model: MoEModel) -> Sizes:
    """The same figures for a model as it is: all widths 16, the bytes those of a file with every tensor kept.

    Of a model that its files hold compressed, the widths are those of the files, and so are the bytes.
    """
    if (source := model.source) is not None and source.kind:
        return _source_sizes(model, source)
    widths = np.full((model.layers, model.experts), 16)
    allocation = BitAllocation(widths, attention=16, shared=16)
    components = model.components()
    entries = [
        Entry(name, narrowed(tensor), components.get(name, "other")) for name, tensor in untied(model.model).items()
    ]
    return _sizes(model, allocation, in_file_order(entries))


def load_compressed(folder: str | Path, *, device: str = "cpu") -> MoEModel:
    """A model that `CompressedModel.save` wrote: its logits are bit for bit those that were evaluated."""
    if not is_compressed(folder):
        raise BadInput(f"{str(folder)!r} holds no compressed model: there is no {COMPRESSION}")
    return load_model(str(folder), device=device)


def _groups(allocation: BitAllocation) -> Iterator[tuple[int, int, list[int]]]:
    """Layer, width, and the experts of that layer that have that width."""
    for layer, widths in enumerate(allocation.widths):
        for width in np.unique(widths).tolist():
            yield layer, width, np.flatnonzero(widths == width).tolist()


def _sizes(model: MoEModel, allocation: BitAllocation, entries: list[Entry]) -> Sizes:
    count = model.weight_count()
    taken = dict.fromkeys(COMPONENTS, 0)
    for entry in entries:
        taken[entry.component] += entry.tensor.nbytes
    taken["header"] = len(header(entries))
    return Sizes(
        expert=allocation.expert_average,
        label=allocation.label(count),
        whole_model=allocation.whole_model(count),
        stored=sum(taken.values()) * 8 / count.parameters,
        bytes=taken,
    )


def source_allocation(model: MoEModel) -> BitAllocation:
    """The widths that a model has in its files: 16 for everything that is a number of 16 bits or more."""
    if model._origin is not None and model._origin.packed is not None:
        return model._origin.packed
    named = {} if model.source is None else model.source.components
    widths = {
        part: next((w for t, w in _WIDTHS.items() if named.get(part, "").startswith(t)), 16) for part in COMPONENTS
    }
    experts = np.full((model.layers, model.experts), widths["experts"])
    return BitAllocation(experts, attention=widths["attention"], shared=widths["shared"])


def _source_sizes(model: MoEModel, source: Source) -> Sizes:
    count, allocation = model.weight_count(), source_allocation(model)
    taken = {part: source.bytes.get(part, 0) for part in COMPONENTS}
    return Sizes(
        expert=allocation.expert_average,
        label=allocation.label(count),
        whole_model=allocation.whole_model(count),
        stored=sum(taken.values()) * 8 / count.parameters,
        bytes=taken,
    )


def _packed(prefix: str, codes: QuantizedTensor, component: str) -> list[Entry]:
    tensors = codes.tensors()
    if not set(tensors) <= set(FIELDS):
        raise CheckFailed(f"codes hold {sorted(tensors)}, of which a weights file knows only {', '.join(FIELDS)}")
    return [Entry(f"{prefix}.{field}", tensor, component) for field, tensor in tensors.items()]


def _expert_parameters(model: MoEModel) -> set[str]:
    """The names of the fused parameters that hold the expert matrices; their biases are kept like any other."""
    names = [model.experts_name(layer) for layer in range(model.layers)]
    return {f"{name}.{part}" for name in names for part in ("gate_up_proj", "down_proj")}


def _linear(model: MoEModel, name: str) -> Tensor:
    weight = model.model.get_submodule(name).weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def _digests(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    return {
        name: hashlib.sha256(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data).hexdigest()
        for name, tensor in tensors.items()
    }


def _dtype(tensor: Tensor | torch.nn.Module) -> str:
    return str(tensor.dtype).removeprefix("torch.")
