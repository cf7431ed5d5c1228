"""Every method keeps the contract, and the contract notices one that does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcbench.composition import METHODS
from mcbench.contract import check_method

HEAD = '"""A method for a test."""\nfrom dataclasses import dataclass\n'


@pytest.mark.parametrize("name", METHODS.names())
def test_every_method_keeps_its_promises(name: str) -> None:
    broken = [str(promise) for promise in check_method(name) if not promise.kept]
    assert not broken


def broken(folder: Path, body: str) -> list[str]:
    path = folder / "mine.py"
    path.write_text(HEAD + body, encoding="utf-8")
    return [str(promise) for promise in check_method(str(path)) if not promise.kept]


def test_a_class_that_is_no_frozen_dataclass_is_noticed(tmp_path: Path) -> None:
    body = 'from mcbench.method import Method\nclass Mine(Method):\n    """Mine."""\n'
    assert any("@dataclass(frozen=True)" in line for line in broken(tmp_path, body))


def test_an_allocator_that_overspends_is_noticed(tmp_path: Path) -> None:
    body = """
import numpy as np
from mcbench import BitAllocation, Method

@dataclass(frozen=True)
class Mine(Method):
    '''Three bits for everybody.'''

    def allocate(self, stats, budget):
        return BitAllocation(np.full((budget.count.layers, budget.count.experts), 3))
"""
    assert any("bits were asked and 3.0 spent" in line for line in broken(tmp_path, body))


def test_an_allocator_that_rolls_dice_is_noticed(tmp_path: Path) -> None:
    body = """
import numpy as np
from mcbench import Method
from mcbench.allocation import cheapest

@dataclass(frozen=True)
class Mine(Method):
    '''Another answer every time.'''

    def allocate(self, stats, budget):
        shape = (budget.count.layers, budget.count.experts, len(budget.widths))
        return cheapest(np.random.default_rng().random(shape), budget)
"""
    assert any("two calls" in line for line in broken(tmp_path, body))


def test_a_quantiser_that_zeroes_unseen_experts_is_noticed(tmp_path: Path) -> None:
    body = """
from mcbench import Method
from mcbench.quantization import round_to_nearest

@dataclass(frozen=True)
class Mine(Method):
    '''Weights nobody uses become zero.'''

    needs_hessian = True

    def quantize(self, weights, widths, hessian):
        used = (hessian.diagonal(dim1=1, dim2=2).sum(1) > 0).float()
        return {w: round_to_nearest(weights * used[:, None, None], w) for w in widths}
"""
    assert any("a matrix became zero" in line for line in broken(tmp_path, body))


def test_a_policy_that_looks_ahead_without_saying_so_is_noticed(tmp_path: Path) -> None:
    body = """
from mcbench import Method

@dataclass(frozen=True)
class Mine(Method):
    '''The second half of a text gets one expert.'''

    def route(self, choices, learnt):
        keep = choices.chosen.clone()
        keep[:, 1] &= choices.place * 2 < choices.length
        return choices.keep(keep)
"""
    assert any("later tokens matter" in line for line in broken(tmp_path, body))


def test_a_policy_that_looks_at_its_neighbours_in_the_batch_is_noticed(tmp_path: Path) -> None:
    body = """
from mcbench import Method

@dataclass(frozen=True)
class Mine(Method):
    '''One expert for tokens surer than the average of the batch.'''

    def route(self, choices, learnt):
        keep = choices.chosen.clone()
        keep[:, 1] &= choices.weight[:, 0] < choices.weight[:, 0].mean()
        return choices.keep(keep)
"""
    assert any("a sequence alone keeps other pairs" in line for line in broken(tmp_path, body))
