"""A weight matrix in few bits: the packed value itself, and the grids that codes are chosen from.

The values of a group of weights, neighbours in one row, are `scale * code + offset`; with 1 bit they are plus and minus
`scale`. Scale and offset are rounded to 16 bits before any code is chosen, so what was optimised is what is stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from mcbench.errors import BadInput
from mcbench.fallbacks import require_remarks
from mcbench.packing import CODE_BITS, pack, row_bytes, unpack

GROUP_SIZE = 128
# Two bits want about 0.6 of the range and single groups much less, which a search within 10 % of it never finds.
CLIP_CANDIDATES = tuple(c / 20 for c in range(20, 5, -1))  # 1.00, 0.95 .. 0.30
_LARGEST = 65504.0  # of 16-bit floating point


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """N matrices [out, in] of one width, packed.

    packed: uint8 [N, out, bytes of a row], laid out as `mcbench.packing` says
    scale: fp16 [N, out, G], one for each of the G groups of a row
    offset: fp16 [N, out, G]; None with symmetric 1 bit, where a weight is plus or minus the scale
    shape: (N, out, in)
    group_size: weights that share a scale
    asked_group_size: what was asked for; it differs where that does not divide the row
    notes: for each matrix, what did not go as asked (damping raised, rows rounded to nearest); the record of a run has
        them, gathered over all matrices. BadInput where they are not a tuple of texts for each matrix
    """

    packed: Tensor
    scale: Tensor
    offset: Tensor | None
    shape: tuple[int, int, int]
    bits: int
    group_size: int
    asked_group_size: int = GROUP_SIZE
    notes: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        notes: object = self.notes or ((),) * self.shape[0]
        if not isinstance(notes, tuple | list) or len(notes) != self.shape[0]:
            raise BadInput(f"notes are a tuple of texts for each of {self.shape[0]} matrices, not {notes!r:.80}")
        object.__setattr__(self, "notes", tuple(require_remarks(own, "a matrix") for own in notes))

    @classmethod
    def encode(
        cls,
        codes: Tensor,
        grid: Grid,
        bits: int,
        asked_group_size: int = GROUP_SIZE,
        notes: tuple[tuple[str, ...], ...] = (),
        *,
        symmetric: bool | None = None,
    ) -> QuantizedTensor:
        """Packs codes [N, out, in] that were chosen on `grid` [N, out, G]; by default symmetric at 1 bit only."""
        symmetric = bits == 1 if symmetric is None else symmetric
        assert not symmetric or (bits == 1 and torch.equal(grid.low, -grid.step / 2)), "an offset would be lost"
        scale, offset = (grid.step / 2, None) if symmetric else (grid.step, grid.low.half())
        rows, columns = codes.shape[1:]
        return cls(
            packed=pack(codes, bits),
            scale=scale.half(),
            offset=offset,
            shape=(len(codes), rows, columns),
            bits=bits,
            group_size=columns // grid.step.shape[-1],
            asked_group_size=asked_group_size,
            notes=notes,
        )

    @property
    def codes(self) -> Tensor:
        """uint8 [N, out, in]."""
        return unpack(self.packed, self.bits, self.shape[-1])

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The matrices [N, out, in], computed in fp32 and then rounded to `dtype`."""
        scale = self.scale.float()
        grid = Grid(2 * scale, -scale) if self.offset is None else Grid(scale, self.offset.float())
        return decode(self.codes, grid).to(dtype)

    def problem(self) -> str:
        """What does not fit together, in words; empty where all does. For codes that come from a file."""
        matrices, rows, columns = self.shape
        groups = columns // self.group_size if self.group_size > 0 else 0
        if self.bits not in CODE_BITS or groups * self.group_size != columns:
            return f"{self.bits} bits in groups of {self.group_size} are none for rows of {columns} weights"
        if self.packed.dtype != torch.uint8 or self.packed.shape != (matrices, rows, row_bytes(columns, self.bits)):
            return f"codes of {self.packed.dtype} {tuple(self.packed.shape)} are not {self.bits} bits for {self.shape}"
        for name, values in (("scale", self.scale), ("offset", self.offset)):
            if values is None:
                continue
            if not values.is_floating_point() or values.shape != (matrices, rows, groups):
                return f"a {name} of {values.dtype} {tuple(values.shape)} is not one for each group of {self.shape}"
            if not bool(torch.isfinite(values).all()):
                return f"a {name} is no finite number"
        if self.offset is None and self.bits != 1:
            return f"codes of {self.bits} bits have no offset"
        return ""

    @property
    def nbytes(self) -> int:
        """Bytes of all that is stored: codes with their padding, scales, offsets."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint has to hold, by field name."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    @property
    def group_fallback(self) -> str | None:
        """Why the groups are not as large as asked for, in words; None where they are."""
        if self.group_size == group_size_for(self.shape[-1], self.asked_group_size, exact=True):
            return None
        return f"group {self.group_size} instead of {self.asked_group_size}, as a row has {self.shape[-1]} weights"

    def remarks(self, index: int) -> tuple[str, ...]:
        """All that did not go as asked for one of the matrices, in words."""
        fallback = self.group_fallback
        return (*([fallback] if fallback else []), *self.notes[index])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int | slice) -> QuantizedTensor:
        """A part of the stack, as a stack."""
        if isinstance(index, int):
            index = range(len(self))[index]  # refuses what is out of range, so that iteration ends
            index = slice(index, index + 1)
        offset = None if self.offset is None else self.offset[index]
        packed, notes = self.packed[index], self.notes[index]
        shape = (len(packed), *self.shape[1:])
        return replace(self, packed=packed, scale=self.scale[index], offset=offset, shape=shape, notes=notes)


def concatenate(stacks: Sequence[QuantizedTensor]) -> QuantizedTensor:
    """One stack of several that agree in everything but the number of matrices."""
    assert len({(s.shape[1:], s.bits, s.group_size) for s in stacks}) == 1, "the stacks differ"
    offsets = [stack.offset for stack in stacks if stack.offset is not None]
    notes = tuple(note for stack in stacks for note in stack.notes)
    return replace(
        stacks[0],
        packed=torch.cat([stack.packed for stack in stacks]),
        scale=torch.cat([stack.scale for stack in stacks]),
        offset=torch.cat(offsets) if offsets else None,
        shape=(len(notes), *stacks[0].shape[1:]),
        notes=notes,
    )


class Quantizer(Protocol):
    """Turns matrices into codes."""

    needs_hessian: ClassVar[bool]

    def quantize(self, weights: Tensor, widths: Sequence[int], hessian: Tensor | None) -> dict[int, QuantizedTensor]:
        """Each of the matrices [N, out, in] at each of the widths; `hessian` is [N, in, in] where it is needed.

        N matrices at once give exactly what N calls give. Raises BadInput for weights or Hessians that are not finite.
        """
        ...


def stored_bytes(
    shape: tuple[int, int, int], bits: int, group_size: int = GROUP_SIZE, *, symmetric: bool | None = None
) -> int:
    """What `QuantizedTensor.nbytes` will be for matrices [N, out, in], before there are any."""
    matrices, rows, columns = shape
    groups = columns // group_size_for(columns, group_size)
    symmetric = bits == 1 if symmetric is None else symmetric
    return matrices * rows * (row_bytes(columns, bits) + 2 * groups * (1 if symmetric else 2))


def group_size_for(columns: int, asked: int, *, exact: bool = False) -> int:
    """The group size used where `asked` is wanted: the largest divisor of a row that is no larger.

    Divisors that are multiples of 8 come first, so that groups start at whole bytes; where no divisor has at least 8
    weights the whole row is one group. -1, or more than a row, asks for whole rows. `exact` returns what was asked.
    """
    if asked < -1 or asked == 0:
        raise BadInput(f"a group of {asked} weights is not possible; give a positive size, or -1 for whole rows")
    asked = columns if asked == -1 else min(asked, columns)
    if exact:
        return asked
    divisors = [d for d in range(8, asked + 1) if columns % d == 0]
    return max([d for d in divisors if d % 8 == 0] or divisors or [columns])


class Grid(NamedTuple):
    """The values that a group can take, `low + step * code`: fp32 tensors whose values fit 16 bits."""

    step: Tensor
    low: Tensor


def nearest(weights: Tensor, grid: Grid, top: int | Tensor) -> Tensor:
    """The codes 0..`top` nearest to `weights`, as floats; halves go up, so that the sign of zero is plus."""
    codes = (weights - grid.low).div_(grid.step.clamp(min=1e-8)).add_(0.5).floor_().clamp_(min=0)
    return codes.clamp_(max=top) if isinstance(top, int) else torch.minimum(codes, top)


def decode(codes: Tensor, grid: Grid) -> Tensor:
    """The values [..., in] in fp32 of codes [..., in] on `grid` [..., G]."""
    groups: Tensor = codes.float().unflatten(-1, (grid.step.shape[-1], -1))
    return groups.mul_(grid.step[..., None]).add_(grid.low[..., None]).flatten(-2)


def encode(weights: Tensor, grid: Grid, bits: int) -> Tensor:
    """The codes [..., in] in uint8 of `weights` [..., in] on `grid` [..., G]: each rounded to the nearest."""
    groups = weights.unflatten(-1, (grid.step.shape[-1], -1))
    return nearest(groups, Grid(grid.step[..., None], grid.low[..., None]), (1 << bits) - 1).flatten(-2).to(torch.uint8)


def fit_grid(
    groups: Tensor, bits: int, weight: Tensor | None = None, *, clip: Sequence[float] = CLIP_CANDIDATES, refine: int = 2
) -> Grid:
    """The grid [...] for each group [..., g] that leaves the least squared rounding error.

    1 bit: plus and minus the mean magnitude, which is the best scale there is for the signs (XNOR-Net, section 3).
    More: the range from minimum to maximum, shrunk towards the mean by each factor of `clip`, and the best of these
    then `refine` times moved to the least-squares line through its own codes wherever that helps. `weight` [..., g]
    says how much the error of each column counts.
    """
    weight = torch.ones((), device=groups.device) if weight is None else weight
    total = weight.expand_as(groups).sum(-1)
    if bits == 1:
        scale = sixteen_bits((weight * groups.abs()).sum(-1) / total)
        return Grid(2 * scale, -scale)
    top = (1 << bits) - 1
    low, high, mean = groups.amin(-1), groups.amax(-1), groups.mean(-1)
    best, least = Grid(low, high), torch.full_like(low, torch.inf)
    for shrink in clip:
        bottom = mean + shrink * (low - mean)
        trial = Grid(sixteen_bits(shrink * (high - low) / top), sixteen_bits(bottom))
        best, least, _ = _better(groups, weight, top, trial, best, least)
    for _ in range(refine):
        codes = nearest(groups, Grid(best.step[..., None], best.low[..., None]), top)
        code_mean, mean = (weight * codes).sum(-1) / total, (weight * groups).sum(-1) / total
        codes -= code_mean[..., None]
        spread = (weight * codes.square()).sum(-1)
        step = (weight * codes * groups).sum(-1) / spread.clamp(min=1e-12)
        trial = Grid(sixteen_bits(step), sixteen_bits(mean - step * code_mean))
        best, least, improved = _better(groups, weight, top, trial, best, least)
        if not improved:
            break
    return best


def _better(
    groups: Tensor, weight: Tensor, top: int, trial: Grid, best: Grid, least: Tensor
) -> tuple[Grid, Tensor, bool]:
    """For each group the better of two grids, and its error; and whether any group prefers the trial."""
    codes = nearest(groups, Grid(trial.step[..., None], trial.low[..., None]), top)
    error = codes.mul_(trial.step[..., None]).add_(trial.low[..., None]).sub_(groups).square_().mul_(weight).sum(-1)
    wins = error < least
    grid = Grid(torch.where(wins, trial.step, best.step), torch.where(wins, trial.low, best.low))
    return grid, torch.where(wins, error, least), bool(wins.any())


def round_to_nearest(
    weights: Tensor,
    bits: int,
    group_size: int = GROUP_SIZE,
    *,
    clip: Sequence[float] = CLIP_CANDIDATES,
    refine: int = 2,
) -> QuantizedTensor:
    """Each weight of [N, out, in] on its own to the nearest value of its group's best grid."""
    groups = weights.unflatten(-1, (-1, group_size_for(weights.shape[-1], group_size)))
    grid = fit_grid(groups, bits, clip=clip, refine=refine)
    return QuantizedTensor.encode(encode(weights, grid, bits), grid, bits, group_size)


def check_weights(weights: Tensor, widths: Sequence[int], hessian: Tensor | None = None) -> None:
    """Refuses what no quantiser can work on. Raises BadInput that names the matrix or the width."""
    if weights.ndim != 3:
        raise BadInput(f"a quantiser takes matrices [N, out, in], not a tensor of shape {tuple(weights.shape)}")
    for width in widths:
        if width not in CODE_BITS:
            raise BadInput(f"no codes of {width} bits are known, only of {', '.join(map(str, CODE_BITS))}")
    largest = weights.abs().flatten(1).amax(1) if weights.numel() else weights.new_zeros(len(weights))
    for index, value in enumerate(largest.tolist()):
        if not value < float("inf"):
            raise BadInput(f"matrix {index} of {len(weights)} holds NaN or infinite weights")
        if value > _LARGEST:
            raise BadInput(
                f"matrix {index} of {len(weights)} holds weights up to {value:g}, too large for a 16-bit scale"
            )
    if hessian is None:
        return
    columns = weights.shape[-1]
    if hessian.shape != (len(weights), columns, columns):
        raise BadInput(f"Hessians of shape {tuple(hessian.shape)} do not belong to weights {tuple(weights.shape)}")
    for index, finite in enumerate(hessian.isfinite().flatten(1).all(1).tolist()):
        if not finite:
            raise BadInput(f"the Hessian of matrix {index} holds NaN or infinity: its activations overflowed")


def sixteen_bits(values: Tensor) -> Tensor:
    """The nearest values that 16-bit floating point can hold, in fp32."""
    return values.clamp(-_LARGEST, _LARGEST).half().float()
