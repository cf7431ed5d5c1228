"""What a routing policy is shown and what it answers: the router's choice for some tokens, and which of it runs.

Letters in shapes: T tokens of one forward pass, K experts chosen for each, E experts, D width of the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

SIGHTS = ("hidden", "logits", "attention")  # what a policy may declare to see beside the router's choice
PHASES = ("prefill", "decode")


class Routed(NamedTuple):
    """A policy's answer: keep [T, K] bool, which pairs run; weight [T, K], with what weights.

    `protected` [T] bool marks tokens that a rule kept whole against its own threshold; it is only counted.
    """

    keep: Tensor
    weight: Tensor
    protected: Tensor | None = None


class Learnt(NamedTuple):
    """What a policy found out about a model: tensors by name, and what there is to say about how it came about.

    notes: what it did otherwise than asked, in words, for the record of a run.
    """

    tables: Mapping[str, Tensor]
    facts: Mapping[str, Any]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Choices:
    """What the router of one MoE layer chose for the T tokens of one forward pass; each row's heaviest expert first.

    index: [T, K] experts; E where the router runs none. weight: [T, K] as the model would apply them, never rising.
    normalizes: the model divides the weights of the chosen by their sum. token: [T] ids. real: [T] bool, False at
    padding, for which any answer will do. sequence: [T] row of the batch. position: [T] place in its sequence, padding
    not counted, earlier passes counted. place, length: [T] its place in this pass, and real tokens of its sequence in
    this pass. decoding: each sequence has a past and gets one new token.

    Only where the policy says that it sees them: hidden [T, D] what the experts read, logits [T, E] of the router,
    attention [T] that the token receives: mean over heads of the probabilities in its column, summed over the real
    queries of this pass and divided by the number of those at or after it.
    """

    layer: int
    experts: int
    normalizes: bool
    index: Tensor
    weight: Tensor
    token: Tensor
    real: Tensor
    sequence: Tensor
    position: Tensor
    place: Tensor
    length: Tensor
    decoding: bool
    hidden: Tensor | None = None
    logits: Tensor | None = None
    attention: Tensor | None = None

    @property
    def chosen(self) -> Tensor:
        """[T, K] bool: the pairs that would run without a policy."""
        return self.index < self.experts

    def keep(self, mask: Tensor, protected: Tensor | None = None) -> Routed:
        """Runs the pairs of `mask` [T, K] alone, their weights renormalised where the model itself does so.

        The weights of a token that loses nothing stay as they are, bit for bit.
        """
        mask = (mask | ~self.real[:, None]) & self.chosen
        return Routed(mask, self._renormalized(mask) if self.normalizes else self.weight, protected)

    def _renormalized(self, mask: Tensor) -> Tensor:
        import torch

        exact = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))
        total = (exact * self.chosen).sum(-1, keepdim=True)  # 1, or the constant that the router scales with
        kept = (exact * mask).sum(-1, keepdim=True).clamp(min=torch.finfo(exact.dtype).tiny)
        loses = (mask != self.chosen).any(-1, keepdim=True)
        return torch.where(loses, (exact * (total / kept)).to(self.weight.dtype), self.weight)


def rank_in_sequence(value: Tensor, choices: Choices) -> Tensor:
    """[T] how many real tokens of the same sequence and pass have a greater value; ties go by position.

    Padding stands behind all real tokens.
    """
    import torch

    by_value = torch.argsort(value.double().masked_fill(~choices.real, -torch.inf), descending=True, stable=True)
    order = by_value[torch.argsort(choices.sequence[by_value], stable=True)]  # sequence by sequence, falling
    row = choices.sequence[order]
    start = torch.searchsorted(row, row)  # where the token's sequence begins
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device) - start
    return rank


def modality_marks(config: Any) -> dict[str, int]:
    """The token ids by which a model's configuration marks places of images, video and sound, by modality."""
    found: dict[str, int] = {}
    for modality in ("image", "video", "audio"):
        for name in (f"{modality}_token_id", f"{modality}_token_index"):
            if isinstance(mark := getattr(config, name, None), int):
                found.setdefault(modality, mark)
    return found


@dataclass
class PairCounts:
    """(token, expert) pairs of real tokens, counted while a policy is in place: [phase, L, E], prefill then decode.

    chosen: what the router chose. executed: what ran. tokens: [phase] real tokens that passed through the model.
    protected: [phase, L]. A decode pass adds one token to sequences that have a past; every other pass is prefill.

    marks: the token id that stands for each of M modalities other than text. Where there are some, `modal`
    [M + 1, L, 3] holds the tokens, the pairs chosen and the pairs executed of text and of each of them, both phases
    together.
    """

    layers: int
    experts: int
    marks: Mapping[str, int] = field(default_factory=dict)
    chosen: np.ndarray[Any, np.dtype[np.int64]] = field(init=False)
    executed: np.ndarray[Any, np.dtype[np.int64]] = field(init=False)
    tokens: np.ndarray[Any, np.dtype[np.int64]] = field(init=False)
    protected: np.ndarray[Any, np.dtype[np.int64]] = field(init=False)
    modal: np.ndarray[Any, np.dtype[np.int64]] = field(init=False)

    def __post_init__(self) -> None:
        self.chosen = np.zeros((2, self.layers, self.experts), dtype=np.int64)
        self.executed = np.zeros_like(self.chosen)
        self.tokens = np.zeros(2, dtype=np.int64)
        self.protected = np.zeros((2, self.layers), dtype=np.int64)
        self.modal = np.zeros((len(self.marks) + 1, self.layers, 3), dtype=np.int64)

    def add(self, choices: Choices, routed: Routed | None) -> None:
        """Counts one layer of one pass; `routed` None means that all that was chosen ran."""
        phase = int(choices.decoding)
        chosen = self._of_each_expert(choices, choices.chosen)
        self.chosen[phase, choices.layer] += chosen
        self.executed[phase, choices.layer] += (
            chosen if routed is None else self._of_each_expert(choices, routed.keep & choices.chosen)
        )
        if routed is not None and routed.protected is not None:
            self.protected[phase, choices.layer] += int((routed.protected & choices.real).sum())
        if choices.layer == 0:
            self.tokens[phase] += int(choices.real.sum())
        if self.marks:
            self._by_modality(choices, choices.chosen if routed is None else routed.keep & choices.chosen)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What runs inside is not counted."""
        counted = self.tables()
        try:
            yield
        finally:
            self.clear()
            self.include(counted)

    def clear(self) -> None:
        """Starts again from nothing."""
        for table in (self.chosen, self.executed, self.tokens, self.protected, self.modal):
            table[:] = 0

    def include(self, tables: Mapping[str, Any]) -> None:
        """Adds what `tables` of the same model counted."""
        for name, values in tables.items():
            getattr(self, name)[:] += np.asarray(values, dtype=np.int64)

    def problem(self, tables: Any) -> str:
        """Why `tables` cannot have been counted in this model, in words; empty where they can."""
        wanted = self.tables()
        if not isinstance(tables, Mapping) or set(tables) != set(wanted):
            return "its tables are not those of this model"
        try:
            found = {name: np.asarray(values) for name, values in tables.items()}
        except (ValueError, TypeError, OverflowError):
            return "a table is not rectangular"
        for name, values in found.items():
            if values.dtype.kind != "i" or values.shape != getattr(self, name).shape or (values < 0).any():
                return f"{name} is no table of counts of {self.layers} layers and {self.experts} experts"
        if (found["executed"] > found["chosen"]).any():
            return "more pairs ran than the router chose"
        if (found["chosen"].sum(-1) > found["tokens"][:, None] * self.experts).any():
            return "more pairs were chosen than there are tokens and experts"
        return ""

    def tables(self) -> dict[str, Any]:
        """The counts as plain lists, by name."""
        names = ("chosen", "executed", "tokens", "protected", *(("modal",) if self.marks else ()))
        return {name: getattr(self, name).tolist() for name in names}

    def skipped(self) -> float:
        """The share of all chosen pairs, over all MoE layers and both phases, that did not run."""
        return 1.0 - float(self.executed.sum()) / max(1, int(self.chosen.sum()))

    def _by_modality(self, choices: Choices, executed: Tensor) -> None:
        import torch

        others = torch.zeros_like(choices.real)
        for at, mark in enumerate(self.marks.values(), 1):
            here = choices.real & (choices.token == mark)
            others |= here
            self._add_modal(at, choices, executed, here)
        self._add_modal(0, choices, executed, choices.real & ~others)

    def _add_modal(self, at: int, choices: Choices, executed: Tensor, here: Tensor) -> None:
        counted = (here.sum(), (choices.chosen & here[:, None]).sum(), (executed & here[:, None]).sum())
        self.modal[at, choices.layer] += np.array([int(count) for count in counted])

    def _of_each_expert(self, choices: Choices, mask: Tensor) -> np.ndarray[Any, np.dtype[np.int64]]:
        import torch

        picked = choices.index[mask & choices.real[:, None]]
        counts: np.ndarray[Any, np.dtype[np.int64]] = torch.bincount(picked, minlength=self.experts).cpu().numpy()
        return counts
