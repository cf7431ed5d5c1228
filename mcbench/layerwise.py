"""Layer by layer: each decoder layer is quantised on what the layers before it, already quantised, give it.

This is how GPTQ walks through a model, and what the release of MC-MoE does. Inside a decoder layer all matrices see
what the layer computes before any of it is quantised. The codes of a layer depend on the widths of everything below it,
so they serve one allocation only; those of `mcbench.store` serve every allocation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from mcbench.activations import LayerInputs, affordable, available_memory_bytes, collected, sequences_at_once
from mcbench.allocation import BitAllocation
from mcbench.errors import BadInput
from mcbench.progress import track
from mcbench.quantization import QuantizedTensor, Quantizer
from mcbench.store import PROJECTIONS, Fallback, Part, Shelf, Stacks, Workbench, digest_of

if TYPE_CHECKING:
    from mcbench.model import DecoderLayer, MoEModel
    from mcbench.text import CalibrationData

DECODER = "decoder-"  # names of parts begin so


class LayerwiseStore:
    """The codes of one allocation, made layer by layer when first asked for, and kept.

    The model is changed while layers are quantised and has its own weights back afterwards, whatever happens.

    quantizer_name: the full name with its settings; it is part of the key of everything kept.
    folder: where the codes are kept, one file per decoder layer, so that an interrupted run goes on; None keeps them in
    memory. starved_share: when an expert has seen too few tokens for a Hessian of its own; see `mcbench.store`.
    """

    def __init__(
        self,
        model: MoEModel,
        data: CalibrationData,
        quantizer: Quantizer,
        quantizer_name: str,
        allocation: BitAllocation,
        *,
        folder: Path | None = None,
        memory_bytes: int | None = None,
        starved_share: float = 0.25,
    ) -> None:
        if not quantizer.needs_hessian:
            raise BadInput(f"{quantizer_name!r} does not look at inputs, so it makes no difference whose they are")
        self.model, self.allocation = model, allocation
        self.key = digest_of(
            {
                "inputs": "quantized",
                "model": model.digest(),
                "data": data.digest,
                "quantizer": quantizer_name,
                "allocation": allocation.to_json(),
                "starved_share": starved_share,
            }
        )
        self.inputs = QuantizedInputs(model, data, memory_bytes=memory_bytes)
        memory = self.inputs.memory_bytes
        self._workbench = Workbench(model, quantizer, memory, starved_share)
        home = None if folder is None else folder / f"layerwise-{self.key[:16]}"
        self._shelf = Shelf(self.key, home, memory, self._shapes)
        self._decoders = model.decoder_layers()
        self._places = {layer.moe: place for place, layer in enumerate(self._decoders)}
        self._homes = {name: place for place, layer in enumerate(self._decoders) for name in layer.linears}
        self._widths = dict.fromkeys(model.attention_linears(), allocation.attention)
        self._widths |= dict.fromkeys(model.shared_linears(), allocation.shared)
        self._prepared = False

    @property
    def fallbacks(self) -> list[Fallback]:
        """Every fallback, in the order of layers and experts."""
        self.prepare()
        return self._shelf.fallbacks

    def tensor(self, layer: int, expert: int, projection: str, width: int) -> QuantizedTensor:
        """The codes of one expert matrix at its allocated width, as a stack of one."""
        widths = self.allocation.widths[layer]
        _require(f"expert {expert} of MoE layer {layer}", width, int(widths[expert]))
        self.prepare()
        place = int(np.count_nonzero(widths[:expert] == width))
        return self._kept(self._places[layer])[f"{projection}.{width}"][place : place + 1]

    def linear(self, name: str, width: int) -> QuantizedTensor:
        """The codes of one attention or shared-expert linear at its allocated width, as a stack of one."""
        _require(name, width, self._widths[name])
        self.prepare()
        return self._kept(self._homes[name])[f"{name}.{width}"]

    def prepare(self) -> None:
        """Quantises whatever is not there yet, from the first layer to the last."""
        if self._prepared:
            return
        places = range(len(self._decoders))
        last = max((place for place in places if not self._shelf.holds(_name(place))), default=-1)
        with self._borrowed() as put:
            for place in track(range(last + 1), last + 1, "quantising layer by layer"):
                stacks = self._kept(place)
                if place < last:
                    put(self._decoders[place], stacks)
        for place in places:
            self._kept(place)  # what they fell back on is known from here on
        self._prepared = True

    def _kept(self, place: int) -> Stacks:
        return self._shelf.part(_name(place), partial(self._quantize, place))

    def _quantize(self, place: int) -> Part:
        decoder = self._decoders[place]
        stacks: Stacks = {}
        fallbacks: list[Fallback] = []
        groups = self._groups(decoder)
        wanted = [name for name in decoder.linears if self._widths[name] != 16]
        for inputs, hessians in self.inputs.of(place, decoder.moe if groups else None, wanted):
            for name, hessian in hessians.items():
                stacks |= self._workbench.linear(name, (self._widths[name],), hessian)
            if inputs is not None:
                assert decoder.moe is not None
                for width, chosen in groups.items():
                    part = self._workbench.experts(decoder.moe, chosen, (width,), inputs)
                    stacks |= part.stacks
                    fallbacks += part.fallbacks
        return Part(stacks, sorted(fallbacks, key=lambda fallback: fallback.expert))

    def _shapes(self, part: str) -> dict[str, tuple[int, ...]]:
        """The stacks of a decoder layer by name, each (matrices, out, in)."""
        decoder = self._decoders[int(part.removeprefix(DECODER))]
        shapes: dict[str, tuple[int, ...]] = {}
        for name in decoder.linears:
            if self._widths[name] != 16:
                shapes[f"{name}.{self._widths[name]}"] = (1, *self.model.linear(name).weight.shape)
        for width, chosen in self._groups(decoder).items():
            assert decoder.moe is not None
            for projection in PROJECTIONS:
                rows_columns = self.model.weight(decoder.moe, projection).shape[1:]
                shapes[f"{projection}.{width}"] = (len(chosen), *rows_columns)
        return shapes

    def _groups(self, decoder: DecoderLayer) -> dict[int, list[int]]:
        """The experts of a decoder layer that are quantised, in rising order, by their width."""
        if decoder.moe is None:
            return {}
        widths = self.allocation.widths[decoder.moe]
        return {width: np.flatnonzero(widths == width).tolist() for width in np.unique(widths).tolist() if width != 16}

    @contextmanager
    def _borrowed(self) -> Iterator[Callable[[DecoderLayer, Stacks], None]]:
        """Hands out what puts the codes of a decoder layer into the model, which is what it was when this is over."""
        model = self.model
        with ExitStack() as stack:

            def put(decoder: DecoderLayer, stacks: Stacks) -> None:
                for name in decoder.linears:
                    if (width := self._widths[name]) != 16:
                        own = model.linear(name).weight.detach()
                        stack.callback(model.set_linear, name, own.cpu().clone())
                        model.set_linear(name, stacks[f"{name}.{width}"].dequantize(own.dtype)[0])
                for width, chosen in self._groups(decoder).items():
                    assert decoder.moe is not None
                    for projection in PROJECTIONS:
                        codes = stacks[f"{projection}.{width}"]
                        for at, expert in enumerate(chosen):
                            own = model.weight(decoder.moe, projection)[expert]
                            stack.callback(model.set_weight, decoder.moe, expert, projection, own.cpu().clone())
                            model.set_weight(decoder.moe, expert, projection, codes[at].dequantize(own.dtype)[0])

            yield put


class QuantizedInputs:
    """What enters the decoder layers, one after the other, in the model as it is when they are asked for.

    Ask in rising order, and put what is below into the model first. The hidden states in front of a layer are kept
    where they fit into a quarter of the budget, so that every layer runs twice; where they do not, or a pass of the
    model cannot be resumed in the middle, each run begins with the tokens. What is found is the same.
    """

    def __init__(self, model: MoEModel, data: CalibrationData, *, memory_bytes: int | None = None) -> None:
        self.model, self.data = model, data
        self.memory_bytes = available_memory_bytes() // 3 if memory_bytes is None else memory_bytes
        self.decoders_run = 0  # how many decoder layers went over the whole text
        self._size = sequences_at_once(data)
        width: int = model.model.config.get_text_config().hidden_size
        states = data.input_ids.numel() * width * model.model.dtype.itemsize
        self._keeps = states <= self.memory_bytes // 4 and model.resumes
        self._front = 0  # the decoder layer that the states stand in front of
        self._states: list[Tensor | None] = [None] * len(list(data.batches(self._size)))

    def of(
        self, place: int, layer: int | None, linears: Sequence[str]
    ) -> Iterator[tuple[LayerInputs | None, dict[str, Tensor]]]:
        """The inputs of MoE layer `layer`, which stands in decoder layer `place`, and Hessians [in, in] of its linears.

        They come in as many pieces as the budget demands; the inputs are in the first, where a layer is given.
        """
        pending, layers = {name: self.model.linear(name) for name in linears}, [] if layer is None else [layer]
        while pending or layers:
            now = affordable(pending, self.memory_bytes // 4)
            found, hessians = collected(
                self.model, self.data, self._size, layers, now, partial(self._run_through, place)
            )
            self.decoders_run += place + 1 - self._front
            self._front = place if self._keeps else 0
            pending = {name: linear for name, linear in pending.items() if name not in now}
            yield (found[layers[0]] if layers else None), hessians
            layers = []

    def _run_through(self, place: int, batch: int, input_ids: Tensor, mask: Tensor) -> None:
        """Runs one batch of the text through all decoder layers up to `place`, from where its states are kept."""
        if not self._keeps:
            self.model.run_decoders(0, place + 1, None, input_ids, mask)
            return
        hidden = self._states[batch]
        if self._front < place:
            entering = self.model.run_decoders(self._front, place, hidden, input_ids, mask)
            assert entering is not None
            hidden = self._states[batch] = entering.cpu()
        self.model.run_decoders(place, place + 1, hidden, input_ids, mask)


def _name(place: int) -> str:
    return f"{DECODER}{place:03d}"


def _require(what: str, width: int, allocated: int) -> None:
    if width != allocated or width == 16:
        raise BadInput(f"there are no codes of {width} bits for {what}: it was given {allocated}")
