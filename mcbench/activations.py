"""What enters every MoE block while the model runs over the calibration text: kept for a group of layers at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mcbench.errors import BadInput
from mcbench.progress import track

if TYPE_CHECKING:
    from mcbench.model import MoEBatch, MoEModel
    from mcbench.text import CalibrationData

BATCH_TOKENS = 8192  # tokens of one forward pass
CHUNK_TOKENS = 16384  # tokens of one expert computation; fixed, so that the memory budget never changes a result


@dataclass(frozen=True)
class LayerInputs:
    """The real tokens of one MoE layer, n of them, padding already left out.

    hidden: [n, D] block input, in the model's dtype. index: [n, K] chosen experts. weight: [n, K] as applied.
    probability: [n, K] router's probability before top-k renormalisation. sequence: [n] which sequence the token is of.
    cosine, input_norm, output_norm: [n] of the block's input and output. `cosine` is that between the two.
    """

    hidden: Tensor
    index: Tensor
    weight: Tensor
    probability: Tensor
    sequence: Tensor
    cosine: Tensor
    input_norm: Tensor
    output_norm: Tensor

    def routed(self, expert: int) -> tuple[Tensor, Tensor]:
        """The tokens that chose `expert`, in order, and the slot of their choice: [n_e], [n_e]."""
        token, slot = (self.index == expert).nonzero(as_tuple=True)
        return token, slot


class Activations:
    """Runs the model over the calibration text as often as the memory budget demands, once where it can.

    linears: the attention and shared-expert linears whose Hessians will be asked for; they are collected on the way.
    """

    def __init__(
        self,
        model: MoEModel,
        data: CalibrationData,
        *,
        linears: Sequence[str] = (),
        memory_bytes: int | None = None,
        batch_tokens: int = BATCH_TOKENS,
    ) -> None:
        self.model, self.data = model, data
        self.memory_bytes = available_memory_bytes() // 3 if memory_bytes is None else memory_bytes
        self.batch_sequences = sequences_at_once(data, batch_tokens)
        self.passes = 0
        self._layers: dict[int, LayerInputs] = {}
        self._modules = {**model.attention_linears(), **model.shared_linears()}
        self._pending = list(linears)
        self._hessians: dict[str, Tensor] = {}

    def layer(self, layer: int) -> LayerInputs:
        """The inputs of one layer. Ask in rising order: the layers of a group share one run of the model."""
        if layer not in self._layers:
            self._layers.clear()
            self._run(range(layer, min(layer + self._group(), self.model.layers)))
        return self._layers[layer]

    def linear_hessian(self, name: str) -> Tensor:
        """[in, in] 2/n sum of x x^T over the n real tokens that enter a linear; handed out once, then forgotten."""
        if name not in self._hessians:
            if name not in self._pending:
                self._pending.append(name)
            self._pending.sort(key=lambda other: other != name)
            self._run(())
        return self._hessians.pop(name)

    def _group(self) -> int:
        """How many layers' inputs fit into half of the budget."""
        config = self.model.model.config.get_text_config()
        per_token: int = config.hidden_size * self.model.model.dtype.itemsize + self.model.top_k * 16 + 20
        return max(1, self.memory_bytes // 2 // max(1, per_token * self.data.tokens))

    def _run(self, layers: Sequence[int]) -> None:
        linears = affordable({name: self._modules[name] for name in self._pending}, self.memory_bytes // 4)
        self._pending = [name for name in self._pending if name not in linears]
        found, hessians = collected(
            self.model,
            self.data,
            self.batch_sequences,
            layers,
            linears,
            lambda _, input_ids, mask: self.model.logits(input_ids, mask),
        )
        self.passes += 1
        self._hessians |= hessians
        self._layers |= found


def collected(
    model: MoEModel,
    data: CalibrationData,
    batch_sequences: int,
    layers: Sequence[int],
    linears: Mapping[str, torch.nn.Linear],
    forward: Callable[[int, Tensor, Tensor], object],
) -> tuple[dict[int, LayerInputs], dict[str, Tensor]]:
    """The inputs of MoE layers and the Hessians of linears while `forward` runs over the text, batch by batch.

    forward: given the batch's number, input_ids and attention_mask, runs whatever of the model is of interest.
    """
    pieces: dict[int, list[LayerInputs]] = {layer: [] for layer in layers}
    first_sequence = 0

    def keep(batch: MoEBatch) -> None:
        if batch.layer in pieces:
            pieces[batch.layer].append(_real_tokens(batch, first_sequence, input_ids.shape[1]))

    grams = _Grams(linears)
    batches = list(data.batches(batch_sequences))
    with torch.no_grad(), ExitStack() as stack:
        stack.enter_context(model.observe(keep))
        stack.callback(grams.close)
        for number, (input_ids, mask) in enumerate(track(batches, len(batches), "calibration run")):
            grams.real = mask.flatten().bool()
            forward(number, input_ids, mask)
            first_sequence += len(input_ids)
    for layer, parts in pieces.items():
        if not parts:
            raise BadInput(f"MoE layer {layer} was not reached in the calibration run; the model cannot be calibrated")
    inputs = {
        layer: LayerInputs(*(torch.cat(column) for column in zip(*map(_columns, parts), strict=True)))
        for layer, parts in pieces.items()
    }
    return inputs, grams.hessians()


def affordable(linears: Mapping[str, torch.nn.Linear], memory_bytes: int) -> dict[str, torch.nn.Linear]:
    """The first of the linears, as many as have Hessians that fit into `memory_bytes`, and at least one."""
    chosen: dict[str, torch.nn.Linear] = {}
    for name, linear in linears.items():
        if chosen and memory_bytes <= 0:
            break
        chosen[name] = linear
        memory_bytes -= 4 * linear.in_features**2
    return chosen


def sequences_at_once(data: CalibrationData, batch_tokens: int = BATCH_TOKENS) -> int:
    """How many sequences of the text go through the model together."""
    return max(1, batch_tokens // max(1, data.input_ids.shape[1]))


def available_memory_bytes() -> int:
    """Free memory of the machine, or 4 GiB where the system does not tell."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 4 << 30


def second_moment(rows: Tensor) -> Tensor:
    """[in, in] sum of x x^T over the rows [n, in], accumulated in fp32 in chunks of fixed size."""
    total = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float32, device=rows.device)
    for chunk in rows.split(CHUNK_TOKENS):
        x = chunk.float()
        total.addmm_(x.T, x)
    return total


class _Grams:
    """Forward hooks that sum x x^T over the real tokens that enter some linears."""

    def __init__(self, linears: Mapping[str, torch.nn.Linear]) -> None:
        self.real = torch.ones(0, dtype=torch.bool)
        self._tokens = dict.fromkeys(linears, 0)
        self._sums: dict[str, Tensor] = {}
        self._handles = [linear.register_forward_pre_hook(self._hook(name)) for name, linear in linears.items()]

    def _hook(self, name: str) -> Callable[[torch.nn.Module, tuple[Tensor, ...]], None]:
        def add(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
            rows = inputs[0].reshape(-1, inputs[0].shape[-1])
            if len(rows) != len(self.real):
                raise BadInput(
                    f"{name} sees {len(rows)} of {len(self.real)} tokens, so its Hessian cannot be collected"
                )
            rows = rows[self.real.to(rows.device)]
            if not bool(torch.isfinite(rows).all()):
                raise BadInput(f"the input of {name} holds NaN or infinity; check the weights or load them in float32")
            self._tokens[name] += len(rows)  # tokens, never calls: the batch size must not weigh them
            self._sums[name] = second_moment(rows) + self._sums.get(name, 0)

        return add

    def hessians(self) -> dict[str, Tensor]:
        return {name: total * (2 / max(1, self._tokens[name])) for name, total in self._sums.items()}

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()


def _columns(inputs: LayerInputs) -> tuple[Tensor, ...]:
    return tuple(vars(inputs).values())


def _real_tokens(batch: MoEBatch, first_sequence: int, length: int) -> LayerInputs:
    real = batch.mask.nonzero()[:, 0]
    hidden, output = batch.hidden[real], batch.output
    assert output is not None
    output = output.reshape(-1, output.shape[-1])[real]
    for name, values in (("input", hidden), ("output", output)):
        if not bool(torch.isfinite(values).all()):
            raise BadInput(
                f"the {name} of MoE layer {batch.layer} holds NaN or infinity; check the weights or load in float32"
            )
    x, y = hidden.float(), output.float()
    return LayerInputs(
        hidden=hidden.clone(),
        index=batch.index[real],
        weight=batch.weight[real].float(),
        probability=batch.probability[real].float(),
        sequence=first_sequence + real // length,
        cosine=torch.nn.functional.cosine_similarity(x, y, dim=-1),
        input_norm=x.norm(dim=-1),
        output_norm=y.norm(dim=-1),
    )
