"""The distance to the uncompressed model, against closed forms, scipy and brute force; zero where nothing changed."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from records import sample_record
from scipy import stats

from mcbench.fidelity import Reading, entropy, fidelity, gini, read
from mcbench.model import load_model
from mcbench.record import Fidelity, Record

E, K, V = 8, 2, 50


def reading(seed: int, windows: int = 3, layers: int = 2) -> Reading:
    draw = torch.Generator().manual_seed(seed)
    sizes = [7 + at for at in range(windows)]
    logits = tuple(3 * torch.randn(size, V, generator=draw) for size in sizes)
    index = tuple(
        torch.stack([torch.randperm(E, generator=draw)[:K] for _ in range(sum(sizes))]) for _ in range(layers)
    )
    return Reading(logits, index)


def test_a_model_is_at_no_distance_from_itself() -> None:
    found = fidelity(reading(0), reading(0), E, "text")
    assert found.divergence == pytest.approx(0, abs=1e-12)
    assert (found.top_1, found.top_5, found.expert_overlap) == (1.0, 1.0, (1.0, 1.0))
    assert found.load_gini == found.original_load_gini
    assert found.load_entropy == found.original_load_entropy


def test_divergence_is_the_mean_over_tokens_as_scipy_has_it() -> None:
    one, other = reading(0), reading(1)
    found = fidelity(one, other, E, "text")
    each = [
        stats.entropy(a, b)
        for first, second in zip(one.logits, other.logits, strict=True)
        for a, b in zip(first.softmax(-1).double().numpy(), second.softmax(-1).double().numpy(), strict=True)
    ]
    assert found.tokens == len(each)
    assert found.divergence == pytest.approx(np.mean(each), rel=1e-5)


def test_agreement_and_overlap_count_what_both_have() -> None:
    one, other = reading(0), reading(1)
    found = fidelity(one, other, E, "text")
    alike, common = [], []
    for first, second in zip(torch.cat(one.logits).tolist(), torch.cat(other.logits).tolist(), strict=True):
        ranks = [sorted(range(V), key=row.__getitem__, reverse=True)[:5] for row in (first, second)]
        alike.append(ranks[0][0] == ranks[1][0])
        common.append(len(set(ranks[0]) & set(ranks[1])) / 5)
    assert found.top_1 == pytest.approx(np.mean(alike))
    assert found.top_5 == pytest.approx(np.mean(common))
    for layer in range(2):
        pairs = zip(one.index[layer].tolist(), other.index[layer].tolist(), strict=True)
        assert found.expert_overlap[layer] == pytest.approx(np.mean([len(set(a) & set(b)) / K for a, b in pairs]))


def test_the_error_of_equal_windows_is_that_of_their_mean() -> None:
    draw = torch.Generator().manual_seed(0)
    one, other = (Reading(tuple(torch.randn(6, V, generator=draw) for _ in range(9)), ()) for _ in range(2))
    each = [
        fidelity(Reading((a,), ()), Reading((b,), ()), E, "") for a, b in zip(one.logits, other.logits, strict=True)
    ]
    found = fidelity(one, other, E, "")
    assert each[0].divergence_error is None
    assert found.divergence_error == pytest.approx(stats.sem([single.divergence for single in each]))


@pytest.mark.parametrize("n", [2, 8, 60])
def test_loads_have_their_closed_forms(n: int) -> None:
    even, one, ramp = np.ones(n), np.eye(n)[0], np.arange(1.0, n + 1)
    assert gini(even) == pytest.approx(0, abs=1e-12)
    assert entropy(even) == pytest.approx(1)
    assert gini(one) == pytest.approx((n - 1) / n)
    assert entropy(one) == 0
    assert gini(ramp - 1) == pytest.approx((n + 1) / (3 * n))
    assert entropy(ramp) == pytest.approx(stats.entropy(ramp) / math.log(n))


def test_an_expert_that_was_not_there_is_not_missed() -> None:
    nothing = Reading((torch.zeros(2, V),), (torch.tensor([[0, E], [E, E]]),))
    other = Reading((torch.zeros(2, V),), (torch.tensor([[1, 0], [1, 2]]),))
    assert fidelity(nothing, other, E, "").expert_overlap == (1.0,)


def test_a_reading_is_what_the_model_says_and_chooses() -> None:
    moe = load_model("reference")
    windows = (torch.arange(5, 25), torch.arange(9, 40))
    there = read(moe, windows)
    assert torch.equal(there.logits[1], moe.logits(windows[1][None])[0])
    assert [tuple(chosen.shape) for chosen in there.index] == [(51, moe.top_k)] * moe.layers


def test_a_record_keeps_it() -> None:
    found = fidelity(reading(0), reading(1), E, "mini-perplexity@01234567")
    record = dataclasses.replace(sample_record(), fidelity=found)
    again = Record.from_json(record.to_json())
    assert isinstance(again.fidelity, Fidelity)
    assert again == record
