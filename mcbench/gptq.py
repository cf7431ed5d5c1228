"""GPTQ: columns are rounded one after another, and those still to come make up for the error of those that are done.

Frantar et al., https://arxiv.org/abs/2210.17323, algorithm 1. Written for experts: many matrices of one shape and
several widths go through the column loop together, sharing one factorisation of each Hessian. All matrices go through
the same operations as each would alone (element-wise ones on the whole stack, products one matrix at a time), so the
codes do not depend on who else is in the stack.

Departures from the paper, for the sake of the layer error tr(dW H dW^T): grids are searched far below the full range,
scales and offsets are fitted again to the finished codes, and a row whose error is above round-to-nearest's keeps the
codes of round-to-nearest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mcbench.errors import BadInput
from mcbench.quantization import (
    GROUP_SIZE,
    Grid,
    QuantizedTensor,
    check_weights,
    concatenate,
    decode,
    encode,
    fit_grid,
    group_size_for,
    nearest,
    sixteen_bits,
)

BLOCK = 128  # columns between two updates of all the columns that follow
_STACK_BYTES = 1 << 28  # of weights that go through the column loop together
_MOST_DAMPING = 10.0


@dataclass(frozen=True)
class Settings:
    """How the column loop runs.

    group_size: weights of a row that share a scale
    damping: added to the diagonal of the Hessian, as a share of its mean; raised tenfold while that is not positive
    act_order: columns with the largest diagonal first, on groups whose grids are fixed beforehand
    refit: how often scales and offsets are fitted to the finished codes by least squares in the Hessian's metric
    fit: makes the grid [...] of groups [..., g] at a number of bits
    feedback_above: widths up to this one correct nothing inside a block, only between blocks
    never_above_rtn: rows that round-to-nearest quantises better are left to it
    """

    group_size: int = GROUP_SIZE
    damping: float = 0.01
    act_order: bool = False
    refit: int = 2
    fit: Callable[[Tensor, int], Grid] = field(default=fit_grid)
    feedback_above: int = 0
    never_above_rtn: bool = True


def gptq(
    weights: Tensor, widths: Sequence[int], hessian: Tensor, settings: Settings | None = None
) -> dict[int, QuantizedTensor]:
    """Matrices [N, out, in] at each of the widths, given the Hessian 2 x x^T [N, in, in] of each one's inputs.

    An input that is always zero has no say in the layer's output: its weights are rounded to nearest, never dropped,
    and an all-zero Hessian gives what round-to-nearest gives. Raises BadInput for weights or Hessians that are not
    finite, or a Hessian that no damping makes positive.
    """
    settings = settings or Settings()
    check_weights(weights, widths, hessian)
    weights, hessian = weights.float(), hessian.float()
    done: dict[int, list[QuantizedTensor]] = {bits: [] for bits in widths}
    at_once = max(1, _STACK_BYTES // max(1, 4 * len(done) * weights[0].numel())) if len(weights) else 1
    for start in range(0, len(weights), at_once):
        part = slice(start, start + at_once)
        for bits, codes in _gptq_stack(weights[part], tuple(done), hessian[part], settings).items():
            done[bits].append(codes)
    return {bits: concatenate(parts) for bits, parts in done.items()}


def layer_error(weights: Tensor, quantized: Tensor, hessian: Tensor) -> Tensor:
    """What quantising does to the outputs of each row: diag(dW H dW^T) [N, out] in float64; see the paper's eq. 1."""
    rows = [
        ((difference @ metric) * difference).sum(-1)
        for difference, metric in zip((weights - quantized).double(), hessian.double(), strict=True)
    ]
    return torch.stack(rows)


def _gptq_stack(
    weights: Tensor, widths: Sequence[int], hessian: Tensor, settings: Settings
) -> dict[int, QuantizedTensor]:
    """The same for as many matrices as go through the column loop together."""
    group_size = group_size_for(weights.shape[-1], settings.group_size)
    groups: Tensor = weights.unflatten(-1, (-1, group_size))
    plain = {bits: settings.fit(groups, bits) for bits in widths}  # the grids of round-to-nearest
    damped = [_damped(h, settings.damping) for h in hessian]
    order = torch.arange(weights.shape[-1], device=weights.device).expand(len(weights), -1)  # [N, in]
    if settings.act_order:
        order = torch.stack([h.diagonal().argsort(descending=True, stable=True) for h in hessian])
    factors = torch.stack([_factor(d.hessian[o][:, o]) for d, o in zip(damped, order, strict=True)])  # [N, in, in]

    codes, grids = _column_loop(weights, widths, factors.float(), order, plain, settings)
    quantized = {}
    for bits in widths:
        rounded = _Coded(encode(weights, plain[bits], bits), plain[bits])
        parts, notes = [], []
        for n, (weight, own) in enumerate(zip(weights, damped, strict=True)):
            part = _refit(weight, _Coded(codes[bits], grids[bits]).of(n), own.hessian, bits, settings.refit)
            note = own.note
            if settings.never_above_rtn:
                part, left = _better_rows(weight, part, rounded.of(n), hessian[n])
                note += [f"{left} of {len(weight)} rows rounded to nearest: no worse than GPTQ there"] if left else []
            parts.append(part)
            notes.append(tuple(note))
        grid = Grid(torch.stack([p.grid.step for p in parts]), torch.stack([p.grid.low for p in parts]))
        codes_of_all = torch.stack([p.codes for p in parts])
        quantized[bits] = QuantizedTensor.encode(codes_of_all, grid, bits, settings.group_size, tuple(notes))
    return quantized


# ---- the column loop


def _column_loop(
    weights: Tensor,
    widths: Sequence[int],
    factors: Tensor,
    order: Tensor,
    plain: dict[int, Grid],
    settings: Settings,
) -> tuple[dict[int, Tensor], dict[int, Grid]]:
    """Codes uint8 [N, out, in] and grids [N, out, G] for each width.

    Works on [in, W, N, out], so that a column of all matrices at all widths is one piece of memory.
    """
    matrices, columns = len(weights), weights.shape[-1]
    group_size = group_size_for(columns, settings.group_size)
    ordered = torch.stack([w.T[o] for w, o in zip(weights, order, strict=True)], dim=1)  # [in, N, out]
    work = ordered[:, None].repeat(1, len(widths), 1, 1)  # [in, W, N, out]
    codes = torch.empty(work.shape, dtype=torch.uint8, device=work.device)
    top = torch.tensor([(1 << bits) - 1.0 for bits in widths], device=work.device)[:, None, None]
    inside = torch.tensor([float(bits > settings.feedback_above) for bits in widths], device=work.device)[:, None, None]
    diagonal = factors.diagonal(dim1=1, dim2=2).T[:, :, None]  # [in, N, 1]
    fitted: list[Grid] = []  # [W, N, out] for each group, where grids come from the updated weights

    for start, stop in _blocks(columns, group_size):
        if settings.act_order:
            grid = _grids_of_columns(plain, order[:, start:stop] // group_size)  # [B, W, N, out]
        else:
            if start % group_size == 0:
                fitted.append(_fit_updated(work[start : start + group_size], widths, settings))
            grid = Grid(*(t.expand(stop - start, -1, -1, -1) for t in fitted[-1]))
        block, errors = work[start:stop], torch.empty_like(work[start:stop])
        for j in range(stop - start):
            column = Grid(grid.step[j], grid.low[j])
            code = nearest(block[j], column, top)
            codes[start + j] = code
            errors[j] = (block[j] - (code * column.step + column.low)) / diagonal[start + j]
            reach = factors[:, start + j, start + j + 1 : stop].T[:, None, :, None]  # [rest of the block, 1, N, 1]
            block[j + 1 :] -= reach * (errors[j] * inside)
        for n, factor in enumerate(factors):
            reach = factor[start:stop, stop:].contiguous().T
            for w in range(len(widths)):
                # one product for each matrix and width: a batched one may add up in another order
                work[stop:, w, n] -= reach @ errors[:, w, n].contiguous()

    back = order.argsort(dim=1)
    chosen = {
        bits: torch.stack([codes[back[n], w, n].T.contiguous() for n in range(matrices)])
        for w, bits in enumerate(widths)
    }
    if settings.act_order:
        return chosen, plain
    grids = {
        bits: Grid(torch.stack([f.step[w] for f in fitted], -1), torch.stack([f.low[w] for f in fitted], -1))
        for w, bits in enumerate(widths)
    }
    return chosen, grids


def _blocks(columns: int, group_size: int) -> list[tuple[int, int]]:
    """The column ranges between two updates of the rest: no block reaches over the end of a group."""
    return [
        (start, min(start + BLOCK, group + group_size))
        for group in range(0, columns, group_size)
        for start in range(group, group + group_size, BLOCK)
    ]


def _fit_updated(work: Tensor, widths: Sequence[int], settings: Settings) -> Grid:
    """The grids [W, N, out] of one group, from its weights [g, W, N, out] as the columns before have left them."""
    groups = work.permute(1, 2, 3, 0).contiguous()
    grids = [settings.fit(groups[w], bits) for w, bits in enumerate(widths)]
    return Grid(torch.stack([g.step for g in grids]), torch.stack([g.low for g in grids]))


def _grids_of_columns(plain: dict[int, Grid], group: Tensor) -> Grid:
    """The grids [B, W, N, out] of columns that belong to `group` [N, B]."""

    def gathered(values: Tensor) -> Tensor:  # [N, out, G] -> [B, N, out]
        return torch.stack([v[:, g].T for v, g in zip(values, group, strict=True)], dim=1)

    steps = [gathered(grid.step) for grid in plain.values()]
    return Grid(torch.stack(steps, 1), torch.stack([gathered(grid.low) for grid in plain.values()], 1))


# ---- the Hessian


@dataclass(frozen=True)
class _Damped:
    hessian: Tensor  # [in, in] float64, positive definite
    note: list[str]


def _damped(hessian: Tensor, damping: float) -> _Damped:
    """The Hessian with its diagonal raised until it is positive definite."""
    hessian = hessian.double()
    diagonal = hessian.diagonal()
    mean = float(diagonal.mean())
    if not hessian.any():
        return _Damped(torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device), ["no input was ever seen"])
    dead = (diagonal == 0).to(hessian.dtype) * mean  # such an input gets no say and no feedback
    asked = damping
    while damping <= max(_MOST_DAMPING, asked):
        damped = hessian + torch.diag(dead + damping * mean)
        if int(torch.linalg.cholesky_ex(damped).info) == 0:
            raised = [f"damping raised from {asked:g} to {damping:g}"] if damping != asked else []
            return _Damped(damped, raised)
        damping = max(10 * damping, 1e-6)
    raise BadInput(
        f"a Hessian with mean diagonal {mean:g} is not positive semi-definite, damping up to {asked:g} or 10"
    )


def _factor(hessian: Tensor) -> Tensor:
    """The upper triangular U with U^T U = H^-1.

    The Cholesky factor of H with rows and columns reversed is, reversed again, an R with H = R R^T and R upper
    triangular; U is its inverse. One factorisation and one triangular inverse, where the paper's code takes three.
    """
    upper = torch.linalg.cholesky(hessian.flip(0, 1)).flip(0, 1)
    one = torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device)
    inverse: Tensor = torch.linalg.solve_triangular(upper, one, upper=True)
    return inverse


# ---- after the loop


@dataclass(frozen=True)
class _Coded:
    codes: Tensor  # uint8 [.., out, in]
    grid: Grid  # [.., out, G]

    def of(self, n: int) -> _Coded:
        return _Coded(self.codes[n], Grid(self.grid.step[n], self.grid.low[n]))


def _refit(weight: Tensor, coded: _Coded, hessian: Tensor, bits: int, sweeps: int) -> _Coded:
    """Moves scale and offset of one group after the other to where dw H dw^T is least, the codes being what they are.

    Each group of each row is a least-squares problem in two unknowns; a step is taken only where it helps after
    rounding to 16 bits, so the error never rises.
    """
    if not sweeps:
        return coded
    step, low = coded.grid.step.clone(), coded.grid.low.clone()  # [out, G]
    difference = (weight - decode(coded.codes, coded.grid)).double()
    slope = difference @ hessian  # [out, in]
    size = weight.shape[-1] // step.shape[-1]
    for group in list(range(step.shape[-1])) * sweeps:
        own = slice(group * size, (group + 1) * size)
        codes, metric = coded.codes[:, own].double(), hessian[own, own]
        if bits == 1:
            codes = codes - 0.5  # the offset follows the step: low = -step / 2
        bent = codes @ metric
        a, b, c = (bent * codes).sum(-1), bent.sum(-1), metric.sum()
        along, across = (slope[:, own] * codes).sum(-1), slope[:, own].sum(-1)
        if bits == 1:
            move_step, move_low = along / a.clamp(min=1e-30), torch.zeros_like(along)
        else:
            determinant = a * c - b * b
            solvable = determinant > 1e-9 * a * c
            determinant = torch.where(solvable, determinant, 1.0)
            move_step = torch.where(solvable, (c * along - b * across) / determinant, 0.0)
            move_low = torch.where(solvable, (a * across - b * along) / determinant, across / c)
        new_step = sixteen_bits((step[:, group] + move_step).float())
        if bits == 1:
            new_step = 2 * sixteen_bits(new_step / 2)
        new_low = sixteen_bits((low[:, group] + move_low).float())
        s, o = (new_step - step[:, group]).double(), (new_low - low[:, group]).double()
        if bits == 1:
            o = torch.zeros_like(s)
        change = s * s * a + 2 * s * o * b + o * o * c - 2 * (s * along + o * across)
        taken = (change < 0) & (new_step >= 0)
        s, o = torch.where(taken, s, 0.0), torch.where(taken, o, 0.0)
        step[:, group] = torch.where(taken, new_step, step[:, group])
        low[:, group] = -step[:, group] / 2 if bits == 1 else torch.where(taken, new_low, low[:, group])
        slope -= (codes * s[:, None] + o[:, None]) @ hessian[own]
    return _Coded(coded.codes, Grid(step, low))


def _better_rows(weight: Tensor, first: _Coded, rounded: _Coded, hessian: Tensor) -> tuple[_Coded, int]:
    """Row by row whichever has the smaller layer error, and how many rows are better left to `rounded`."""
    error = [layer_error(weight[None], decode(c.codes, c.grid)[None], hessian[None])[0] for c in (first, rounded)]
    wins = (error[0] < error[1])[:, None]
    step = torch.where(wins, first.grid.step, rounded.grid.step)
    low = torch.where(wins, first.grid.low, rounded.grid.low)
    left = int((error[0] > error[1]).sum())
    return _Coded(torch.where(wins, first.codes, rounded.codes), Grid(step, low)), left
