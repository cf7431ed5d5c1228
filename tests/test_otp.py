"""OTP as re-implemented here: only the heads learn, masks are hard, and what was trained comes back from its files."""

from __future__ import annotations

import itertools
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import random_tokens, tiny_mixtral

from mcbench.composition import METHODS, compose
from mcbench.errors import BadInput
from mcbench.model import MoEModel
from mcbench.policy import RoutingPolicy, fit, load_policy
from mcbench.text import CalibrationData

QUICK = {"steps": 40, "batch": 4, "rate": 0.03}


def method(**settings: Any) -> Any:
    return METHODS.get("otp")(**QUICK | settings)


def data(seed: int = 5) -> CalibrationData:
    ids = random_tokens(16, 32, seed)
    return CalibrationData(ids, torch.ones_like(ids), "random tokens")


def trained(model: MoEModel, **settings: Any) -> RoutingPolicy:
    return fit("otp", method(**settings), model, data())


@cache
def once(sparsity: float) -> RoutingPolicy:
    return trained(tiny_mixtral(), sparsity=sparsity)


def skipped(policy: RoutingPolicy, model: MoEModel) -> float:
    with policy.applied(model) as counts:
        model.logits(data().input_ids)
    return counts.skipped()


def divergence(policy: RoutingPolicy, model: MoEModel) -> float:
    """Nats per token of text that was not trained on."""
    ids = data(seed=9).input_ids
    before = model.logits(ids).log_softmax(-1)
    with policy.applied(model):
        after = model.logits(ids).log_softmax(-1)
    return float((before.exp() * (before - after)).sum(-1).mean())


def test_training_leaves_the_model_as_it_was() -> None:
    model = tiny_mixtral()
    before = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    trained(model, steps=3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.model.parameters())


def test_the_same_seed_trains_the_same_heads() -> None:
    first, second, other = (trained(tiny_mixtral(), steps=4, seed=seed) for seed in (1, 1, 2))
    assert first.key == second.key != other.key


def test_more_weight_on_sparsity_skips_more_and_diverges_more() -> None:
    model = tiny_mixtral()
    policies = [once(sparsity) for sparsity in (0.0, 0.3, 1.0)]
    shares = [skipped(policy, model) for policy in policies]
    assert shares[0] < 0.02 and 0.05 < shares[1] < shares[2] - 0.1
    losses = [divergence(policy, model) for policy in policies]
    assert losses == sorted(losses)


def test_at_equal_share_trained_heads_beat_the_lot() -> None:
    model = tiny_mixtral()
    ours = trained(model, sparsity=0.6, skip=0.2)
    lot = fit("random-skip", compose("none+random-skip(skip=0.2)").parts[1].method, model, data())
    assert skipped(ours, model) == pytest.approx(0.2, abs=0.01)
    assert skipped(lot, model) == pytest.approx(0.2, abs=0.01)
    assert divergence(ours, model) < divergence(lot, model)


def test_what_runs_is_the_most_likely_mask_of_the_head() -> None:
    model, policy = tiny_mixtral(), once(1.0)
    tables = policy.learnt.tables
    for choices in choices_of(model):
        assert choices.hidden is not None
        inner = torch.cat([choices.hidden @ tables["into"][choices.layer].T, choices.weight], -1)
        score = inner @ tables["out"][choices.layer].T + tables["bias"][choices.layer]
        keep = policy(choices).keep
        assert keep[:, 0].all() and torch.equal(keep[:, 1], score[:, 1] > score[:, 0])


def choices_of(model: MoEModel) -> list[Any]:
    seen: list[Any] = []

    def note(choices: Any) -> Any:
        seen.append(choices)
        return choices.keep(choices.chosen)

    with model.route(note, sees=("hidden",)):
        model.logits(data().input_ids[:2])
    return seen


@pytest.mark.parametrize("kind", ["prefix", "subset", "independent"])
def test_sampled_masks_are_hard_and_have_a_gradient(kind: str) -> None:
    otp = method(candidates=kind)
    count = {"prefix": 3, "subset": 7, "independent": 3}[kind]
    scores = torch.randn(200, count, generator=torch.Generator().manual_seed(0)).requires_grad_()
    mask = otp._sampled(scores, 0.7, torch.Generator().manual_seed(1))
    rows = {tuple(round(value, 4) for value in row) for row in mask.tolist()}
    allowed = {
        "prefix": {(1, 0, 0), (1, 1, 0), (1, 1, 1)},
        "subset": set(itertools.product((0, 1), repeat=3)) - {(0, 0, 0)},
        "independent": {(1, *rest) for rest in itertools.product((0, 1), repeat=2)},
    }[kind]
    assert rows == allowed
    mask.sum().backward()
    assert scores.grad is not None and float(scores.grad.abs().sum()) > 0


def test_sampled_masks_have_the_probabilities_of_their_scores() -> None:
    scores = torch.tensor([[0.3, -0.5, 1.1]])
    mask = method()._sampled(scores.expand(40000, 3), 0.5, torch.Generator().manual_seed(0))
    share = torch.bincount(mask.sum(-1).round().long() - 1, minlength=3) / len(mask)
    assert torch.allclose(share, scores[0].softmax(-1), atol=0.01)


@pytest.mark.parametrize("kind", ["prefix", "subset", "independent"])
def test_every_kind_of_candidates_trains_and_meets_a_share(kind: str) -> None:
    model = tiny_mixtral(num_experts_per_tok=4)
    policy = trained(model, candidates=kind, skip=0.3, sparsity=2.0, steps=10)
    assert skipped(policy, model) == pytest.approx(0.3, abs=0.01)


def test_trained_heads_are_read_back_from_their_folder(tmp_path: Path) -> None:
    model = tiny_mixtral()
    policy = fit("otp", method(steps=4), model, data(), folder=tmp_path)
    (folder,) = tmp_path.glob("policy-*")
    assert {path.name for path in folder.iterdir()} == {"learnt.safetensors", "policy.json"}
    again = load_policy(folder, "otp", policy.method)
    assert again.key == policy.key
    assert [entry["step"] for entry in again.learnt.facts["training"]] == [0, 1, 2, 3]
    given = fit("otp", method(fitted=str(folder)), model, data())
    assert given.key == policy.key
    with pytest.raises(BadInput, match="another model"):
        fit("otp", method(fitted=str(folder)), tiny_mixtral(seed=3), data())


def test_it_is_called_a_re_implementation_where_people_read() -> None:
    kind = METHODS.get("otp")
    assert "our re-implementation" in (__import__("sys").modules[kind.__module__].__doc__ or "")
    assert "re-implementation" in (kind.__doc__ or "")
    assert [part.name for part in compose("mc#").parts] == ["pmq", "gptq", "otp"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps must lie between"),
        ({"cold": 3.0}, "temperature"),
        ({"skip": 1.2}, "skip must lie between"),
        ({"skip": 0.7, "steps": 1}, r"a skip of 0.7 cannot be met: .* at most 0.500"),
    ],
)
def test_a_setting_that_makes_no_sense_says_why(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        trained(tiny_mixtral(), **settings)


def test_a_model_that_runs_one_expert_has_none_to_skip() -> None:
    with pytest.raises(BadInput, match="runs one expert for each token"):
        trained(tiny_mixtral(num_experts_per_tok=1))
