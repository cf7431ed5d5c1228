"""GPTQ: columns are rounded one after another, and those still to come make up for the error of those that are done.

Frantar et al., https://arxiv.org/abs/2210.17323, algorithm 1. Written for experts: many matrices of one shape and
several widths go through the column loop together, sharing one factorisation of each Hessian. All matrices go through
the same operations as each would alone (element-wise ones on the whole stack, products one matrix at a time), so the
codes do not depend on who else is in the stack.

Departures from the paper, each for the sake of the layer error tr(dW H dW^T): a grid is searched far below the full
range and counts each column's error by what it costs after feedback; scales and offsets are fitted again to the
finished codes, and the columns gone through once more on those; a row that round-to-nearest serves no worse is left to
it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

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
_STACK_ROWS = {"cpu": 1 << 12, "cuda": 1 << 18}  # go through the column loop together; a CPU's cache holds a block
_MOST_DAMPING = 10.0


class GridFit(Protocol):
    """Makes the grids [...] of groups [..., g] at a number of bits; `cost` [..., g] weighs each column's error."""

    def __call__(self, groups: Tensor, bits: int, cost: Tensor, /) -> Grid: ...


@dataclass(frozen=True)
class Settings:
    """How the column loop runs.

    group_size: weights of a row that share a scale
    damping: added to the diagonal of the Hessian, as a share of its mean; raised tenfold while that is not positive
    act_order: columns with the largest diagonal first, on groups whose grids are fixed beforehand
    rounds: how often the columns are gone through, from the second time on the grids that the time before left
    refit: how often, after each round, scales and offsets are fitted to the codes in the Hessian's metric
    fit: makes the grids of the first round
    feedback_above: widths up to this one correct nothing inside a block, only between blocks
    never_above_rtn: rows that round-to-nearest quantises no worse are left to it
    """

    group_size: int = GROUP_SIZE
    damping: float = 0.01
    act_order: bool = True
    rounds: int = 3
    refit: int = 2
    fit: GridFit = fit_grid
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
    rows = _STACK_ROWS.get(weights.device.type, _STACK_ROWS["cpu"])
    at_once = max(1, rows // max(1, len(done) * weights.shape[1]))
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
    damped = [_damped(h, settings.damping) for h in hessian]
    order = torch.arange(weights.shape[-1], device=weights.device).expand(len(weights), -1)  # [N, in]
    if settings.act_order:
        order = torch.stack([h.diagonal().argsort(descending=True, stable=True) for h in hessian])
    factors = torch.stack([_factor(d.hessian[o][:, o]) for d, o in zip(damped, order, strict=True)]).float()
    cost = _cost_of_errors(factors, order)  # [N, in]

    best = {bits: _round_to_nearest(weights, groups, bits) for bits in widths}
    fixed = None
    if settings.act_order:
        fixed = {bits: settings.fit(groups, bits, cost.unflatten(-1, (-1, group_size))[:, None]) for bits in widths}
    for round_number in range(settings.rounds):
        found = _column_loop(weights, widths, factors, order, cost, fixed, settings)
        for bits, coded in found.items():
            found[bits] = coded = _refit(weights, coded, [d.hessian for d in damped], bits, settings.refit)
            compared = settings.never_above_rtn or round_number > 0
            best[bits] = _better_rows(weights, coded, best[bits], hessian) if compared else coded
        fixed = {bits: coded.grid for bits, coded in found.items()}
    return {
        bits: QuantizedTensor.encode(coded.codes, coded.grid, bits, settings.group_size, _notes(damped, coded))
        for bits, coded in best.items()
    }


def _round_to_nearest(weights: Tensor, groups: Tensor, bits: int) -> _Coded:
    grid = fit_grid(groups, bits)
    return _Coded(encode(weights, grid, bits), grid, torch.ones_like(weights[..., 0], dtype=torch.bool))


def _notes(damped: Sequence[_Damped], coded: _Coded) -> tuple[tuple[str, ...], ...]:
    """What did not go as asked, for each matrix."""
    notes = []
    for own, rounded in zip(damped, coded.rounded, strict=True):
        left = int(rounded.sum())
        rows = f"{left} of {len(rounded)} rows rounded to nearest, which serves them no worse"
        notes.append((*own.note, rows) if left and own.seen else own.note)
    return tuple(notes)


def _cost_of_errors(factors: Tensor, order: Tensor) -> Tensor:
    """How much a squared rounding error in each column adds to the layer error after feedback [N, in], mean 1."""
    cost = factors.diagonal(dim1=1, dim2=2).reciprocal().square().gather(1, order.argsort(dim=1))
    return cost / cost.mean(1, keepdim=True)


# ---- the column loop


def _column_loop(
    weights: Tensor,
    widths: Sequence[int],
    factors: Tensor,
    order: Tensor,
    cost: Tensor,
    fixed: dict[int, Grid] | None,
    settings: Settings,
) -> dict[int, _Coded]:
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
        if fixed is not None:
            grid = _grids_of_columns(fixed, order[:, start:stop] // group_size)  # [B, W, N, out]
        else:
            if start % group_size == 0:
                fitted.append(
                    _fit_updated(
                        work[start : start + group_size], widths, cost[:, start : start + group_size], settings
                    )
                )
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
    if fixed is None:
        fixed = {
            bits: Grid(torch.stack([f.step[w] for f in fitted], -1), torch.stack([f.low[w] for f in fitted], -1))
            for w, bits in enumerate(widths)
        }
    gptq_rows = torch.zeros_like(weights[..., 0], dtype=torch.bool)
    return {bits: _Coded(chosen[bits], fixed[bits], gptq_rows) for bits in widths}


def _blocks(columns: int, group_size: int) -> list[tuple[int, int]]:
    """The column ranges between two updates of the rest: no block reaches over the end of a group."""
    return [
        (start, min(start + BLOCK, group + group_size))
        for group in range(0, columns, group_size)
        for start in range(group, group + group_size, BLOCK)
    ]


def _fit_updated(work: Tensor, widths: Sequence[int], cost: Tensor, settings: Settings) -> Grid:
    """The grids [W, N, out] of one group, from its weights [g, W, N, out] as the columns before have left them."""
    groups = work.permute(1, 2, 3, 0).contiguous()
    grids = [settings.fit(groups[w], bits, cost[:, None]) for w, bits in enumerate(widths)]
    return Grid(torch.stack([g.step for g in grids]), torch.stack([g.low for g in grids]))


def _grids_of_columns(fixed: dict[int, Grid], group: Tensor) -> Grid:
    """The grids [B, W, N, out] of columns that belong to `group` [N, B]."""

    def gathered(values: Tensor) -> Tensor:  # [N, out, G] -> [B, N, out]
        return torch.stack([v[:, g].T for v, g in zip(values, group, strict=True)], dim=1)

    steps = [gathered(grid.step) for grid in fixed.values()]
    return Grid(torch.stack(steps, 1), torch.stack([gathered(grid.low) for grid in fixed.values()], 1))


# ---- the Hessian


@dataclass(frozen=True)
class _Damped:
    hessian: Tensor  # [in, in] float64, positive definite
    seen: bool  # whether any input was
    note: tuple[str, ...]


def _damped(hessian: Tensor, damping: float) -> _Damped:
    """The Hessian with its diagonal raised until it is positive definite."""
    hessian = hessian.double()
    if not hessian.any():
        one = torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device)
        return _Damped(one, False, ("no input was ever seen: rounded to nearest",))
    diagonal = hessian.diagonal()
    mean = float(diagonal.mean())
    dead = (diagonal == 0).to(hessian.dtype) * mean  # such an input has no say and gets no feedback
    tried = damping
    while tried <= max(_MOST_DAMPING, damping):
        damped = hessian + torch.diag(dead + tried * mean)
        if int(torch.linalg.cholesky_ex(damped).info) == 0:
            raised = [f"damping raised from {damping:g} to {tried:g}"] if tried != damping else []
            silent = int(dead.count_nonzero())
            zero = (
                [f"{silent} of {len(dead)} inputs were always zero: their weights rounded to nearest"] if silent else []
            )
            return _Damped(damped, True, (*raised, *zero))
        tried = max(10 * tried, 1e-6)
    raise BadInput(f"a Hessian with mean diagonal {mean:g} is not positive semi-definite, whatever the damping")


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
    codes: Tensor  # uint8 [N, out, in]
    grid: Grid  # [N, out, G]
    rounded: Tensor  # bool [N, out]: the rows that are left to round-to-nearest
    error: Tensor | None = None  # float64 [N, out]: the layer error of each row, once it is known


def _refit(weights: Tensor, coded: _Coded, hessians: Sequence[Tensor], bits: int, sweeps: int) -> _Coded:
    """Moves scales and offsets to where dw H dw^T is least, the codes being what they are."""
    if not sweeps:
        return coded
    steps, lows = [], []
    for n, hessian in enumerate(hessians):
        grid = Grid(coded.grid.step[n], coded.grid.low[n])
        grid = _refit_matrix(weights[n], coded.codes[n], grid, hessian.float(), bits, sweeps)
        steps.append(grid.step)
        lows.append(grid.low)
    return replace(coded, grid=Grid(torch.stack(steps), torch.stack(lows)))


def _refit_matrix(weight: Tensor, codes: Tensor, grid: Grid, hessian: Tensor, bits: int, sweeps: int) -> Grid:
    """The grid [out, G] of one matrix [out, in], one group after the other, `sweeps` times.

    Each group of each row is a least-squares problem in two unknowns (one at 1 bit, which is symmetric). A step is
    taken only where it still helps after rounding to 16 bits, so the error never rises.
    """
    step, low = grid.step.clone(), grid.low.clone()
    slope = (weight - decode(codes, grid)) @ hessian  # [out, in]
    size = weight.shape[-1] // step.shape[-1]
    for group in list(range(step.shape[-1])) * sweeps:
        own = slice(group * size, (group + 1) * size)
        line = codes[:, own].float() - (0.5 if bits == 1 else 0.0)  # 1 bit: the offset follows, low = -step / 2
        bent = line @ hessian[own, own]
        a, b, c = (bent * line).sum(-1).double(), bent.sum(-1).double(), hessian[own, own].sum().double()
        along, across = (slope[:, own] * line).sum(-1).double(), slope[:, own].sum(-1).double()
        if bits == 1:
            new_step = 2 * sixteen_bits((step[:, group] + along / a.clamp(min=1e-300)).float() / 2)
            new_low = -new_step / 2
            more_low = torch.zeros_like(along)
        else:
            determinant = a * c - b * b
            solvable = determinant > 1e-5 * a * c  # not where all codes of a group are equal
            determinant = torch.where(solvable, determinant, 1.0)
            by_step = torch.where(solvable, (c * along - b * across) / determinant, 0.0)
            by_low = torch.where(solvable, (a * across - b * along) / determinant, across / c)
            new_step = sixteen_bits((step[:, group] + by_step).float())
            new_low = sixteen_bits((low[:, group] + by_low).float())
            more_low = (new_low - low[:, group]).double()
        more_step = (new_step - step[:, group]).double()
        change = more_step.square() * a + 2 * more_step * more_low * b + more_low.square() * c
        taken = (change < 2 * (more_step * along + more_low * across)) & (new_step >= 0)
        step[:, group] = torch.where(taken, new_step, step[:, group])
        low[:, group] = torch.where(taken, new_low, low[:, group])
        by_step, by_low = torch.where(taken, more_step, 0.0).float(), torch.where(taken, more_low, 0.0).float()
        slope -= (by_step[:, None] * line + by_low[:, None]) @ hessian[own]
    return Grid(step, low)


def _better_rows(weights: Tensor, found: _Coded, before: _Coded, hessian: Tensor) -> _Coded:
    """Row by row whichever has the smaller layer error; on a tie what was there before."""
    new, old = (
        layer_error(weights, decode(c.codes, c.grid), hessian) if c.error is None else c.error for c in (found, before)
    )
    wins = new < old  # [N, out]
    return _Coded(
        torch.where(wins[..., None], found.codes, before.codes),
        Grid(*(torch.where(wins[..., None], *grids) for grids in zip(found.grid, before.grid, strict=True))),
        torch.where(wins, found.rounded, before.rounded),
        torch.where(wins, new, old),
    )
