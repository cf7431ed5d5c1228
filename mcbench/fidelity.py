"""How far a model is from the one that it was made of, token by token: what it predicts, and which experts it asks.

Both read the same windows of the same text. Letters in shapes: W windows, S tokens of one, V words of the vocabulary,
L MoE layers, E experts, K chosen ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mcbench.model import MoEBatch, MoEModel
from mcbench.record import Fidelity

WINDOW = 512  # tokens at most
WINDOWS = 16
NEAREST = 5  # of the likeliest tokens

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Reading:
    """What a model makes of the windows.

    logits: for each window [S, V], in the precision of the model. index: for each MoE layer [W * S, K] chosen experts.
    """

    logits: tuple[Tensor, ...]
    index: tuple[Tensor, ...]


def windows_of(moe: MoEModel, texts: Sequence[str]) -> tuple[Tensor, ...]:
    """The first windows of the texts, as token ids [S]; none longer than a text, the model's window or `WINDOW`."""
    longest = min(WINDOW, getattr(moe.model.config, "max_position_embeddings", None) or WINDOW)
    found: list[Tensor] = []
    for text in texts:
        ids = moe.tokenizer(text)["input_ids"] if text.strip() else []
        for at in range(0, len(ids), longest):
            if len(found) == WINDOWS:
                return tuple(found)
            if len(piece := ids[at : at + longest]) > 1:
                found.append(torch.tensor(piece))
    return tuple(found)


@torch.no_grad()
def read(moe: MoEModel, windows: Sequence[Tensor]) -> Reading:
    """Runs the model, as it is now, over the windows, one at a time."""
    logits: list[Tensor] = []
    index: list[list[Tensor]] = [[] for _ in range(moe.layers)]

    def note(batch: MoEBatch) -> None:
        index[batch.layer].append(batch.index[batch.mask].cpu())

    with moe.observe(note) if moe.is_moe else nullcontext():
        for ids in windows:
            logits.append(moe.logits(ids[None])[0].cpu())
    return Reading(tuple(logits), tuple(torch.cat(chosen) for chosen in index))


def fidelity(original: Reading, other: Reading, experts: int, text: str) -> Fidelity:
    """The distance of `other` from `original`; `text` says what they read, `experts` is E."""
    divergences, alike, shared = zip(
        *(_compared(one.float(), two.float()) for one, two in zip(original.logits, other.logits, strict=True)),
        strict=True,
    )
    sizes = [len(divergence) for divergence in divergences]
    tokens = sum(sizes)
    means = np.array([float(divergence.mean()) for divergence in divergences])
    loads = [[_load(chosen, experts) for chosen in reading.index] for reading in (original, other)]
    return Fidelity(
        text=text,
        windows=len(sizes),
        tokens=tokens,
        divergence=math.fsum(float(divergence.sum()) for divergence in divergences) / tokens,
        divergence_error=_ratio_error(means, np.array(sizes, dtype=float)),
        top_1=math.fsum(float(a.sum()) for a in alike) / tokens,
        top_5=math.fsum(float(s.sum()) for s in shared) / tokens,
        expert_overlap=tuple(_overlap(*pair, experts) for pair in zip(original.index, other.index, strict=True)),
        load_entropy=tuple(map(entropy, loads[1])),
        load_gini=tuple(map(gini, loads[1])),
        original_load_entropy=tuple(map(entropy, loads[0])),
        original_load_gini=tuple(map(gini, loads[0])),
    )


def gini(load: Array) -> float:
    """Gini coefficient of a load [E]: 0 where it is even, (E - 1) / E where one expert bears all of it."""
    ordered = np.sort(np.asarray(load, dtype=float))
    n, total = len(ordered), ordered.sum()
    return float(((2 * np.arange(1, n + 1) - n - 1) * ordered).sum() / (n * total)) if total else 0.0


def entropy(load: Array) -> float:
    """Entropy of a load [E] divided by log E: 1 where it is even, 0 where one expert bears all of it."""
    load = np.asarray(load, dtype=float)
    if len(load) < 2 or not load.sum():
        return 0.0
    share = load[load > 0] / load.sum()
    return float(-(share * np.log(share)).sum() / math.log(len(load))) + 0.0  # no -0


def _compared(original: Tensor, other: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[S] KL(original || other) in nats, [S] likeliest token alike, [S] share of the likeliest few in common."""
    true, approximate = original.log_softmax(-1).double(), other.log_softmax(-1).double()
    divergence = (true.exp() * (true - approximate)).sum(-1).clamp(min=0.0)
    few = min(NEAREST, original.shape[-1])
    ours, theirs = (values.topk(few, dim=-1).indices for values in (other, original))
    common = (ours[..., :, None] == theirs[..., None, :]).any(-1).double().mean(-1)
    return divergence, ours[..., 0] == theirs[..., 0], common


def _overlap(original: Tensor, other: Tensor, experts: int) -> float:
    """The mean share of a token's original experts [T, K] that it is still sent to; an index E names no expert."""
    real = original < experts
    still = (original[:, :, None] == other[:, None, :]).any(-1) & real
    having = real.any(-1)
    return float((still.sum(-1)[having] / real.sum(-1)[having]).double().mean()) if bool(having.any()) else 1.0


def _load(chosen: Tensor, experts: int) -> Array:
    """[E] tokens sent to each expert."""
    counts = torch.bincount(chosen.flatten(), minlength=experts + 1)[:experts]
    return np.asarray(counts.double().numpy(), dtype=float)


def _ratio_error(means: Array, sizes: Array) -> float | None:
    """Standard error of the mean weighted by size, windows being independent; None for a single one."""
    n = len(means)
    if n < 2:
        return None
    overall = float((means * sizes).sum() / sizes.sum())
    spread = float((sizes**2 * (means - overall) ** 2).sum())
    return math.sqrt(n / (n - 1) * spread) / float(sizes.sum())
