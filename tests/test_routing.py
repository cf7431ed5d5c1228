"""Laws of run-time expert pruning: what a policy may change, what it may not, and what it really saves."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import ARCHITECTURES, random_tokens, tiny_mixtral, tiny_model, tiny_tokenizer, tiny_transformer
from torch import Tensor
from transformers import AutoConfig

from mcbench.allocation import BitAllocation
from mcbench.composition import METHODS
from mcbench.compression import compress
from mcbench.errors import BadInput
from mcbench.evaluation import LanguageModel
from mcbench.experts import Experts
from mcbench.method import Method
from mcbench.model import MoEModel, load_model
from mcbench.policy import RoutingPolicy, fit, load_policy
from mcbench.routing import Choices, Learnt, Routed, rank_in_sequence
from mcbench.store import ExpertStore
from mcbench.text import CalibrationData

NO_SOFTMAX = {"minimax", "jamba", "qwen3_next", "qwen3_5_moe_text", "lfm2_moe", "bailing_hybrid"}
SOLVED = ("naee", "odp", "odp-release", "token-statistic", "random-skip")


def everything(choices: Choices) -> Routed:
    return choices.keep(choices.chosen)


def first_only(choices: Choices) -> Routed:
    return choices.keep((torch.arange(choices.weight.shape[1]) < 1).expand_as(choices.weight))


def padded(length: int = 24, padding: int = 7) -> tuple[Tensor, Tensor]:
    """Two sequences, the first one shorter: ids and mask [2, length], padded on the left."""
    ids = random_tokens(2, length)
    mask = torch.ones_like(ids)
    mask[0, :padding] = 0
    return ids, mask


def some_data(sequences: int = 16, length: int = 48) -> CalibrationData:
    ids = random_tokens(sequences, length, seed=5)
    return CalibrationData(ids, torch.ones_like(ids), "random tokens")


def of_class(name: str, **settings: Any) -> Any:
    return METHODS.get(name)(**settings)


def ready(name: str, model: MoEModel, **settings: Any) -> RoutingPolicy:
    return fit(name, of_class(name, **settings), model, some_data())


def test_pairs_are_told_apart_by_modality(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_mixtral()
    monkeypatch.setattr(model.model.config, "image_token_id", 7, raising=False)
    monkeypatch.setattr(model.model.config, "audio_token_index", 9, raising=False)
    ids, mask = padded()
    ids[:, 8:14], ids[:, 20] = 7, 9
    odd = (torch.arange(ids.numel()) % 2 == 1)[:, None]  # every other token loses its second expert

    def policy(choices: Choices) -> Routed:
        return choices.keep(choices.chosen & ~(odd & (torch.arange(model.top_k) == 1)))

    with model.route(policy) as counts:
        model.logits(ids, mask)
    real, flat = mask.bool().flatten(), ids.flatten()
    for at, here in enumerate((real & (flat != 7) & (flat != 9), real & (flat == 7), real & (flat == 9))):
        pairs = int(here.sum()) * model.top_k
        expected = [int(here.sum()), pairs, pairs - int((here & odd[:, 0]).sum())]
        assert counts.modal[at].tolist() == [expected] * model.layers
    assert list(counts.marks) == ["image", "audio"]
    assert counts.modal[..., 1:].sum((0, 1)).tolist() == [counts.chosen.sum(), counts.executed.sum()]


def test_a_model_of_text_alone_has_no_modalities() -> None:
    model = tiny_mixtral()
    with model.route(everything) as counts:
        model.logits(random_tokens(1, 8))
    assert not counts.marks and "modal" not in counts.tables()


# -- what a policy may not change


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_keeping_everything_changes_no_logit(architecture: str) -> None:
    model = tiny_model(architecture)
    ids, mask = padded()
    before = model.logits(ids, mask)
    sees = ("hidden", "logits") if architecture in NO_SOFTMAX else ("hidden", "logits", "attention")
    with model.route(everything, sees=sees) as counts:
        after = model.logits(ids, mask)
    assert torch.equal(after, before)
    assert counts.skipped() == 0 and counts.chosen[0].sum() == int(mask.sum()) * model.layers * model.top_k
    assert torch.equal(model.logits(ids, mask), before)


# phimoe's sparse mixer always chooses two
@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "phimoe"])
def test_keeping_only_the_first_expert_is_a_top_1_model(architecture: str) -> None:
    config = AutoConfig.for_model(architecture)
    fields = [name for name in ("num_experts_per_tok", "moe_topk", "moe_k") if hasattr(config, name)]
    for top_k in (2, 4):
        many = without_correction(tiny_model(architecture, **dict.fromkeys(fields, top_k)))
        one = without_correction(tiny_model(architecture, **dict.fromkeys(fields, 1)))
        assert (many.top_k, one.top_k) == (top_k, 1)
        ids, mask = padded()
        with many.route(first_only):
            pruned = many.logits(ids, mask)
        assert torch.allclose(pruned[mask.bool()], one.logits(ids, mask)[mask.bool()], atol=2e-5)


def without_correction(model: MoEModel) -> MoEModel:
    """The same, choosing by the scores that it weighs by: first chosen is then first in weight."""
    tensors = [*model.model.named_parameters(), *model.model.named_buffers()]
    with torch.no_grad():
        for name, tensor in tensors:
            if name.endswith(("correction_bias", "expert_bias")):
                tensor.zero_()
    return model


@pytest.mark.parametrize("name", [*SOLVED, "topk"])
def test_a_sequence_is_computed_the_same_alone_in_a_batch_and_padded(name: str) -> None:
    model = tiny_mixtral()
    policy = ready(name, model, **({"protect": 0.1, "skip": 0.2} if name.startswith("odp") else {}))
    ids, mask = padded()
    with policy.applied(model):
        together = model.logits(ids, mask)
        alone = model.logits(ids[:1, 7:])
    assert torch.allclose(together[:1, 7:], alone, atol=1e-4)


@pytest.mark.parametrize("name", ["naee", "token-statistic", "random-skip", "topk"])
@pytest.mark.parametrize("architecture", ["mixtral", "qwen2_moe", "gpt_oss"])
def test_decoding_with_a_cache_equals_the_full_forward_of_a_causal_policy(name: str, architecture: str) -> None:
    model = tiny_model(architecture)
    policy = ready(name, model)
    assert policy.method.causal and policy.method.prefix_cacheable
    ids, mask = padded()
    with policy.applied(model) as counts, torch.no_grad():
        whole = model.logits(ids, mask)
        all_at_once = counts.executed.sum(0).copy()
        counts.clear()
        position = (mask.cumsum(1) - 1).clamp(min=0)
        out = model.model(
            input_ids=ids[:, :16], attention_mask=mask[:, :16], position_ids=position[:, :16], use_cache=True
        )
        stepwise = [out.logits]
        for at in range(16, ids.shape[1]):
            out = model.model(
                input_ids=ids[:, at : at + 1],
                attention_mask=mask[:, : at + 1],
                position_ids=position[:, at : at + 1],
                past_key_values=out.past_key_values,
                use_cache=True,
            )
            stepwise.append(out.logits)
    real = mask.bool()
    assert torch.allclose(torch.cat(stepwise, 1)[real], whole[real], atol=1e-4)
    assert np.array_equal(counts.executed.sum(0), all_at_once)
    assert counts.tokens.tolist() == [16 + 16 - 7, 2 * (ids.shape[1] - 16)]


def test_the_fast_evaluation_equals_the_plain_one_under_a_cacheable_policy() -> None:
    model = MoEModel(tiny_transformer("mixtral"), tiny_tokenizer())
    pairs = [("the same context again and again", f" {end}") for end in ("a", "bee", "seas", "deeds")]
    with ready("naee", model).applied(model) as counts:
        shared = LanguageModel(model.model, model.tokenizer).loglikelihoods(pairs)
        counts.clear()
        plain = LanguageModel(model.model, model.tokenizer, prefix_sharing=False, check=False).loglikelihoods(pairs)
    assert [p.value for p in shared] == pytest.approx([p.value for p in plain], abs=1e-4)


def test_a_packed_model_is_pruned_as_the_compressed_one_that_was_saved(tmp_path: Path) -> None:
    model = tiny_mixtral()
    store = ExpertStore(model, some_data(), of_class("rtn"), "rtn", (2, 16), linear_widths=(4,))
    ids, mask = padded()
    with compress(model, BitAllocation(np.full((3, 6), 2), attention=4, shared=4), store) as compressed:
        with ready("odp", model, protect=0.1).applied(model):
            wanted = model.logits(ids, mask)
        compressed.save(tmp_path / "packed")
    packed = load_model(str(tmp_path / "packed"))
    with ready("odp", packed, protect=0.1).applied(packed):
        assert torch.equal(packed.logits(ids, mask), wanted)


# -- what runs


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5])
def test_expert_rows_fall_with_the_share_pruned(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_mixtral(num_hidden_layers=2)
    policy = ready("naee", model, skip=share)
    rows = 0
    compute = Experts.output

    def output(self: Experts, expert: int, hidden: Tensor, **options: Any) -> Tensor:
        nonlocal rows
        rows += len(hidden)
        return compute(self, expert, hidden, **options)

    monkeypatch.setattr(Experts, "output", output)
    ids = some_data().input_ids
    with policy.applied(model) as counts:
        rows = 0
        model.logits(ids)
    assert rows == counts.executed.sum() == round((1 - counts.skipped()) * ids.numel() * 2 * model.top_k)
    assert counts.skipped() == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize("name", SOLVED)
@pytest.mark.parametrize("skip", [0.15, 0.25])
def test_a_share_asked_for_is_the_share_skipped(name: str, skip: float) -> None:
    model = tiny_mixtral()
    policy = ready(name, model, skip=skip)
    with policy.applied(model) as counts:
        model.logits(some_data().input_ids)
    assert counts.skipped() == pytest.approx(skip, abs=0.01)
    assert policy.learnt.facts["skipped"] == pytest.approx(counts.skipped(), abs=1e-9)


def test_more_experts_than_two_have_one_threshold_for_each_rank() -> None:
    model = tiny_mixtral(num_experts_per_tok=4)
    policy = ready("naee", model)
    threshold = policy.learnt.tables["threshold"]
    assert threshold.shape == (3, 4) and bool((threshold[:, 0] == -torch.inf).all())
    assert bool((threshold[:, 1:].diff(dim=1) < 0).all())  # the ratio to the first falls from rank to rank
    with policy.applied(model) as counts:
        model.logits(some_data().input_ids)
    assert counts.skipped() == pytest.approx(3 / 8, abs=0.02)  # half of the three that may go


def test_the_median_rule_is_naee_by_hand() -> None:
    model = tiny_mixtral(num_hidden_layers=1)
    ratios: list[Tensor] = []

    def note(choices: Choices) -> Routed:
        ratios.append(choices.weight[:, 1] / choices.weight[:, 0])
        return everything(choices)

    with model.route(note):
        model.logits(some_data().input_ids)
    ordered = ratios[0].sort().values
    median = ready("naee", model).learnt.tables["threshold"][0, 1]
    assert float(median) == float(ordered[len(ordered) // 2])


@pytest.mark.parametrize("settings", [{}, {"quantile": 0.2}, {"threshold": 0.5}])
def test_a_policy_that_is_asked_for_no_share_states_the_one_it_has(settings: dict[str, float]) -> None:
    model = tiny_mixtral()
    policy = ready("naee", model, **settings)
    with policy.applied(model) as counts:
        model.logits(some_data().input_ids)
    assert policy.learnt.facts["skipped"] == pytest.approx(counts.skipped(), abs=1e-9)


def test_only_the_layers_asked_for_are_pruned() -> None:
    model = tiny_mixtral()
    with ready("naee", model, layers=(1,), skip=0.1).applied(model) as counts:
        model.logits(some_data().input_ids)
    share = counts.executed[0].sum(-1) / counts.chosen[0].sum(-1)
    assert share[0] == share[2] == 1 and share[1] == pytest.approx(0.7, abs=0.02)


# -- importance


# sdpa, sinks with sliding windows, latent attention
@pytest.mark.parametrize("architecture", ["mixtral", "gpt_oss", "deepseek_v2"])
@pytest.mark.parametrize("padding", [0, 7])
def test_attention_received_is_the_column_sum_of_the_materialised_map(
    architecture: str, padding: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(architecture)
    ids, mask = padded(40, padding)
    seen: dict[int, Choices] = {}

    def note(choices: Choices) -> Routed:
        seen[choices.layer] = choices
        return everything(choices)

    monkeypatch.setattr("mcbench.attention.BLOCK_ELEMENTS", 2 * 4 * 40 * 3)  # three queries at a time
    before = model.logits(ids, mask if padding else None)
    with model.route(note, sees=("attention",)):
        after = model.logits(ids, mask if padding else None)
    assert torch.allclose(after, before, atol=1e-5)
    config: Any = model.model.config
    config._attn_implementation = "eager"
    with torch.no_grad():
        maps = model.model(input_ids=ids, attention_mask=mask, output_attentions=True, use_cache=False).attentions
    for layer, choices in seen.items():
        full = maps[model._layers[layer].decoder].double().mean(1)  # [B, S, S]
        column = (full * mask[:, :, None]).sum(1).reshape(-1)
        wanted = column / (choices.length - choices.place).clamp(min=1)
        assert choices.attention is not None
        assert torch.allclose(choices.attention.double()[choices.real], wanted[choices.real], atol=1e-6)


@pytest.mark.parametrize("architecture", ["mixtral", "gpt_oss"])
def test_never_more_than_a_block_of_the_attention_map_is_held(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(architecture)
    file = sys.modules[type(model.model).__module__]
    own = file.eager_attention_forward
    held: list[int] = []

    def eager(*args: Any, **options: Any) -> tuple[Tensor, Tensor]:
        output, probability = own(*args, **options)
        held.append(probability.numel())
        return output, probability

    monkeypatch.setattr(file, "eager_attention_forward", eager)
    monkeypatch.setattr("mcbench.attention.BLOCK_ELEMENTS", 4000)
    ids = random_tokens(2, 200)
    with model.route(everything, sees=("attention",)):
        held.clear()
        model.logits(ids)
    assert len(held) >= 3 * 50 and max(held) <= 4000  # where the whole map has 2 x 4 x 200 x 200


def by_importance(name: str, **changes: Any) -> Callable[[Choices], Tensor]:
    method = of_class(name, **changes)
    return lambda choices: method.importance(choices)


def sample_choices(seed: int = 0, **changes: Any) -> Choices:
    """One sequence of 50 tokens with random states and attention."""
    generator = torch.Generator().manual_seed(seed)
    tokens = 50
    settings: dict[str, Any] = {
        "layer": 0,
        "experts": 8,
        "normalizes": True,
        "index": torch.rand(tokens, 8, generator=generator).topk(2).indices,
        "weight": torch.tensor([[0.6, 0.4]]).repeat(tokens, 1),
        "token": torch.arange(tokens),
        "real": torch.ones(tokens, dtype=torch.bool),
        "sequence": torch.zeros(tokens, dtype=torch.long),
        "position": torch.arange(tokens),
        "place": torch.arange(tokens),
        "length": torch.full((tokens,), tokens),
        "decoding": False,
        "hidden": torch.randn(tokens, 16, generator=generator),
        "attention": torch.rand(tokens, generator=generator),
    }
    return Choices(**settings | changes)


def test_the_released_importance_depends_on_position_and_norm_only() -> None:
    choices = sample_choices()
    assert choices.hidden is not None and choices.attention is not None
    released, intended = by_importance("odp-release"), by_importance("odp")
    other = sample_choices(attention=choices.attention.flip(0))
    assert torch.equal(released(choices), released(other))
    assert not torch.equal(intended(choices), intended(other))
    # other states of the same l1 norms, other experts: the same importance, which is norm / (L - j)
    turned = sample_choices(seed=0, hidden=-choices.hidden.flip(1), index=choices.index.flip(0))
    assert torch.allclose(released(choices), released(turned))
    assert torch.allclose(released(choices), choices.hidden.abs().sum(1) / torch.arange(50, 0, -1))


def test_permuted_attention_changes_whom_odp_protects_and_not_whom_the_release_does() -> None:
    choices = sample_choices()
    assert choices.attention is not None
    other = sample_choices(attention=choices.attention.flip(0))
    table = {"threshold": torch.tensor([[-torch.inf, 0.9]])}
    kept = {}
    for name in ("odp", "odp-release"):
        method = of_class(name, protect=0.1)
        kept[name] = [method.route(c, table).keep[:, 1] for c in (choices, other)]
        assert all(int(k.sum()) == 5 for k in kept[name])
    assert not torch.equal(*kept["odp"])
    assert torch.equal(*kept["odp-release"])


def test_decoding_protects_nobody_and_the_least_important_can_lose_every_expert() -> None:
    table = {"threshold": torch.tensor([[-torch.inf, -torch.inf]])}
    routed = of_class("odp", protect=0.0, drop_all=0.1).route(sample_choices(), table)
    assert int((~routed.keep).all(1).sum()) == 5 and int(routed.keep.sum()) == 90
    one = torch.arange(1)
    step = sample_choices(
        place=one, length=one + 1, position=one + 30, sequence=one, decoding=True, real=one == 0,
        index=torch.tensor([[1, 2]]), weight=torch.tensor([[0.8, 0.2]]), token=one, hidden=torch.ones(1, 16),
        attention=torch.ones(1),
    )  # fmt: skip
    above = {"threshold": torch.tensor([[-torch.inf, 0.9]])}
    assert of_class("odp").route(step, above).keep.tolist() == [[True, False]]


def test_protecting_everybody_keeps_everything() -> None:
    model = tiny_mixtral()
    ids = some_data().input_ids
    with ready("odp", model, protect=1.0).applied(model):
        assert torch.equal(model.logits(ids), tiny_mixtral().logits(ids))


def test_ranks_are_counted_within_each_sequence() -> None:
    choices = sample_choices(sequence=torch.tensor([0] * 20 + [1] * 30), real=torch.tensor([False] * 3 + [True] * 47))
    value = torch.rand(50, generator=torch.Generator().manual_seed(3))
    rank = rank_in_sequence(value, choices)
    for at in range(3, 50):
        same = [other for other in range(3, 50) if choices.sequence[other] == choices.sequence[at]]
        assert rank[at] == sum(bool(value[other] > value[at]) for other in same)
    assert set(rank[:3].tolist()) == {17, 18, 19}


def test_weights_are_renormalised_only_where_the_model_does() -> None:
    mask = torch.tensor([[True, False]]).repeat(50, 1)
    assert torch.allclose(sample_choices().keep(mask).weight[:, 0], torch.ones(50))
    assert torch.equal(sample_choices(normalizes=False).keep(mask).weight[:, 0], torch.full((50,), 0.6))


# -- bad input


def test_a_share_that_cannot_be_met_is_refused_with_what_can() -> None:
    with pytest.raises(BadInput, match=r"a skip of 0.6 cannot be met: .* from 0.000 to 0.500 of all pairs"):
        ready("naee", tiny_mixtral(), skip=0.6)
    with pytest.raises(BadInput, match="or prune more layers"):
        ready("naee", tiny_mixtral(), skip=0.3, layers=(0,))


def test_a_policy_that_needs_attention_is_refused_where_the_eager_one_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("the size of tensor a (4) must match the size of tensor b (2)")

    model = tiny_mixtral()
    monkeypatch.setattr("transformers.models.mixtral.modeling_mixtral.eager_attention_forward", fails)
    with (
        pytest.raises(BadInput, match=r"eager attention of .* fails .*a policy that does not need attention"),
        model.route(everything, sees=("attention",)),
    ):
        pass


def test_a_policy_that_needs_attention_is_refused_where_there_is_none() -> None:
    with pytest.raises(BadInput, match=r"MoE layer \d of 'tiny qwen3_next' cannot report .* leave that layer out"):
        ready("odp", tiny_model("qwen3_next"))
    model = tiny_model("qwen3_next", layer_types=["linear_attention", "full_attention", "full_attention"])
    with ready("odp", model, layers=(1, 2)).applied(model) as counts:
        model.logits(some_data().input_ids)
    assert counts.skipped() > 0.1


def test_thresholds_of_another_model_are_refused(tmp_path: Path) -> None:
    policy = ready("naee", tiny_mixtral())
    other = tiny_mixtral(seed=1)
    with (
        pytest.raises(BadInput, match="was calibrated on another model .* calibrate it again"),
        policy.applied(other),
    ):
        pass
    folder = policy.save(tmp_path / "thresholds")
    with pytest.raises(BadInput, match="was calibrated on another model .* leave fitted out"):
        ready("naee", other, fitted=str(folder))
    again = ready("naee", tiny_mixtral(), fitted=str(folder))
    assert again.key == policy.key
    with pytest.raises(BadInput, match="is one of 'naee', not of 'odp'"):
        ready("odp", tiny_mixtral(), fitted=str(folder))
    (folder / "policy.json").write_text("{")
    with pytest.raises(BadInput, match="cut short or no sealed JSON; calibrate it again"):
        load_policy(folder, "naee", policy.method)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("naee", {"skip": 1.0}, "skip must lie between 0 and 0.9999, not 1.0"),
        ("naee", {"skip": 0.1, "threshold": 0.4}, "not both"),
        ("naee", {"quantile": 2.0}, "quantile must lie between 0 and 1, not 2.0"),
        ("naee", {"layers": ()}, "numbers of MoE layers"),
        ("odp", {"protect": 1.5}, "protect must lie between 0 and 1, not 1.5"),
        ("topk", {"k": 0}, "k must lie between 1 and"),
        ("topk", {"k": 3}, "3 experts cannot run"),
        ("naee", {"layers": (7,)}, "no MoE layer 7"),
        ("naee", {"layers": (7,), "threshold": 0.5}, "no MoE layer 7"),
        ("topk", {"layers": (7,)}, "no MoE layer 7"),
    ],
)
def test_a_setting_that_makes_no_sense_says_why(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        ready(name, tiny_mixtral(), **settings)


def test_two_policies_at_once_and_embeddings_as_input_are_refused() -> None:
    model = tiny_mixtral()
    with model.route(everything):
        with pytest.raises(BadInput, match="in place"), model.route(everything):
            pass
        with pytest.raises(BadInput, match="input_ids"):
            model.model(inputs_embeds=torch.zeros(1, 4, 32))


def test_a_policy_without_tables_learns_nothing() -> None:
    assert Method().learn(tiny_mixtral(), some_data()) == Learnt({}, {})
