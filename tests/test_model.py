"""Promises of the adapter: bit for bit the model itself, on every architecture, and a refusal where it is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import (
    ARCHITECTURES,
    random_tokens,
    tiny_folder,
    tiny_mixtral,
    tiny_model,
    tiny_seeing_folder,
    tiny_tokenizer,
    tiny_transformer,
)
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from mcbench.errors import BadInput
from mcbench.experts import _surplus
from mcbench.model import PROJECTIONS, MoEBatch, MoEModel, load_model
from mcbench.router import RouterRule, read_rule

every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


def padded() -> tuple[Tensor, Tensor]:
    """Two sequences, the first with four positions of padding on the left: [2, 12], [2, 12]."""
    ids, mask = random_tokens(), torch.ones(2, 12, dtype=torch.long)
    mask[0, :4] = 0
    return ids, mask


@every_architecture
def test_logits_are_bit_equal_to_the_models_own(architecture: str) -> None:
    own = tiny_transformer(architecture)
    own.set_experts_implementation("eager")
    ids, mask = padded()
    with torch.no_grad():
        expected = own(input_ids=ids, attention_mask=mask, use_cache=False).logits
    assert torch.equal(tiny_model(architecture).logits(ids, mask), expected)


@every_architecture
def test_writing_back_what_was_read_changes_no_bit(architecture: str) -> None:
    model = tiny_model(architecture)
    digest, expected = model.digest(), model.logits(random_tokens())
    for layer in range(model.layers):
        for projection in PROJECTIONS:
            for expert, matrix in enumerate(model.weight(layer, projection).clone()):
                model.set_weight(layer, expert, projection, torch.zeros_like(matrix))
                model.set_weight(layer, expert, projection, matrix)
    assert torch.equal(model.logits(random_tokens()), expected)
    assert model.digest() == digest


@every_architecture
def test_changing_any_one_projection_changes_the_logits_and_the_digest(architecture: str) -> None:
    model = tiny_model(architecture)
    digest, expected = model.digest(), model.logits(random_tokens())
    for projection in PROJECTIONS:
        kept = model.weight(0, projection).clone()
        for expert in range(model.experts):
            model.set_weight(0, expert, projection, kept[expert] * 0.5)
        assert not torch.equal(model.logits(random_tokens()), expected)
        assert model.digest() != digest
        for expert in range(model.experts):
            model.set_weight(0, expert, projection, kept[expert])


@every_architecture
def test_the_matrices_read_reproduce_an_expert_when_computed_naively(architecture: str) -> None:
    model = tiny_model(architecture)
    x = torch.randn(5, model.weight(0, "gate").shape[-1], generator=torch.Generator().manual_seed(3))
    gate, up, down = (_affine(model, projection, x.shape[-1]) for projection in PROJECTIONS)
    config = model.model.config.get_text_config()
    if architecture in ("gpt_oss", "minimax_m3_vl_text"):
        g, u = gate(x).clamp(max=config.swiglu_limit), up(x).clamp(-config.swiglu_limit, config.swiglu_limit)
        hidden = (u + 1) * g * torch.sigmoid(g * config.swiglu_alpha)
    else:
        hidden = nn.functional.silu(gate(x)) * up(x)
    torch.testing.assert_close(model.expert_hidden(0, 1, x), hidden, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.expert_output(0, 1, x), down(hidden), rtol=1e-5, atol=1e-5)


def _affine(model: MoEModel, projection: str, width: int) -> Any:
    weight, bias = model.weight(0, projection)[1], model.bias(0, projection)
    return lambda x: nn.functional.linear(x, weight, None if bias is None else bias[1])


@every_architecture
def test_a_batch_replays_the_block(architecture: str) -> None:
    """Routed experts of the batch plus the shared ones inside the block give the block's output."""
    model = tiny_model(architecture)
    for batch in observed(model, *padded()):
        routed = model.run_experts(batch.layer, batch.hidden, batch.index, batch.weight)
        shared = batch.output - routed
        inside = any("mlp.shared" in name and "shared_mlp.input" not in name for name in model.shared_linears())
        scaled = architecture in ("laguna",)  # multiplies the routed part once more, behind the experts
        if not inside and not scaled:
            torch.testing.assert_close(shared, torch.zeros_like(shared), rtol=0, atol=1e-6)
        replaced: dict[tuple[int, str], Tensor] = {}
        replaced |= {(e, p): model.weight(batch.layer, p)[e] for e in range(model.experts) for p in PROJECTIONS}
        again = model.run_experts(batch.layer, batch.hidden, batch.index, batch.weight, replaced)
        assert torch.equal(again, routed)


@every_architecture
def test_probability_is_the_routers_opinion_before_renormalisation(architecture: str) -> None:
    model = tiny_model(architecture)
    for batch in observed(model, *padded()):
        rule = model.score(batch.layer)
        assert batch.probability.dtype == torch.float32
        assert bool((batch.probability > 0).all())
        if rule.score == "softmax":
            assert bool((batch.probability.sum(-1) < 1).all())
        expected = batch.probability
        if rule.normalizes:
            expected = expected / expected.sum(-1, keepdim=True)
        if rule.jitter is None:
            torch.testing.assert_close(batch.weight, expected * rule.scale, rtol=1e-4, atol=1e-6)


@every_architecture
def test_a_forward_pass_resumed_in_the_middle_is_exact(architecture: str) -> None:
    model, (ids, mask) = tiny_model(architecture), padded()
    trace = model.trace(ids, mask)
    for layer in range(model.layers):
        assert torch.equal(model.forward_from(layer, trace.entering[layer], ids, mask), trace.logits)
    last = model.layers - 1
    for expert, matrix in enumerate(model.weight(last, "down").clone()):
        model.set_weight(last, expert, "down", matrix / 2)
    assert torch.equal(model.forward_from(last, trace.entering[last], ids, mask), model.logits(ids, mask))
    assert not torch.equal(model.logits(ids, mask), trace.logits)


def test_a_forward_pass_that_cannot_be_resumed_says_so() -> None:
    with pytest.raises(BadInput, match="cannot be resumed"):
        tiny_model("hy_v4").trace(random_tokens())


@every_architecture
def test_every_parameter_belongs_to_one_component(architecture: str) -> None:
    model = tiny_model(architecture)
    count = model.weight_count()
    assert count.parameters == sum(p.numel() for p in model.model.parameters())
    assert min(count.routed, count.attention, count.router, count.other) > 0
    names = [*model.attention_linears(), *model.shared_linears()]
    assert len(set(names)) == len(names)
    assert not {f"{name}.weight" for name in names} & set(model.router_parameters())
    assert all("expert" in name or "shared" in name for name in model.shared_linears())
    assert not any(".mlp." in name or "feed_forward" in name for name in model.attention_linears())


def test_shared_experts_are_counted_wherever_they_stand() -> None:
    names = ("mixtral", "deepseek_v3", "qwen2_moe", "granitemoeshared")
    shared = {name: tiny_model(name).weight_count().shared for name in names}
    # 2 MoE layers x 3 matrices x (2 experts of 24) x 32; 3 layers x 3 x 40 x 32 in both of the others
    assert shared == {"mixtral": 0, "deepseek_v3": 9216, "qwen2_moe": 11520, "granitemoeshared": 11520}


def test_padding_is_marked_and_reaches_no_real_token() -> None:
    model, (ids, mask) = tiny_mixtral(), padded()
    batches = observed(model, ids, mask)
    assert [batch.layer for batch in batches] == [0, 1, 2]
    assert all(torch.equal(batch.mask, mask.flatten().bool()) for batch in batches)
    other = ids.clone()
    other[mask == 0] = 7
    for batch, again in zip(batches, observed(model, other, mask), strict=True):
        torch.testing.assert_close(batch.hidden[batch.mask], again.hidden[again.mask], rtol=1e-5, atol=1e-5)
        assert not torch.equal(batch.hidden, again.hidden)


def test_observing_changes_nothing_and_ends_with_the_context() -> None:
    model = tiny_mixtral()
    expected, seen = model.logits(random_tokens()), list[MoEBatch]()
    with model.observe(seen.append):
        assert torch.equal(model.logits(random_tokens()), expected)
    model.logits(random_tokens())
    assert len(seen) == model.layers


def test_observers_follow_the_generation_of_text() -> None:
    model, seen = tiny_mixtral(), list[MoEBatch]()
    ids, mask = padded()
    with model.observe(seen.append):
        model.model.generate(ids, attention_mask=mask, max_new_tokens=3, do_sample=False, eos_token_id=None)
    assert [int(batch.mask.sum()) for batch in seen if batch.layer == 0] == [20, 2, 2]


def test_an_index_of_no_expert_runs_nothing() -> None:
    model = tiny_mixtral()
    batch = observed(model, *padded())[0]
    index = batch.index.clone()
    index[:, 1] = model.experts
    single = model.run_experts(0, batch.hidden, batch.index[:, :1], batch.weight[:, :1])
    assert torch.equal(model.run_experts(0, batch.hidden, index, batch.weight), single)
    assert not model.run_experts(0, batch.hidden, torch.full_like(index, model.experts), batch.weight).any()


def test_a_replaced_matrix_counts_as_if_it_were_written() -> None:
    for architecture in ("mixtral", "gpt_oss", "aria_text"):
        model = tiny_model(architecture)
        batch = observed(model, *padded())[0]
        for projection in PROJECTIONS:
            matrix = model.weight(0, projection)[2] * 0.9
            replaced = model.run_experts(0, batch.hidden, batch.index, batch.weight, {(2, projection): matrix})
            kept = model.weight(0, projection)[2].clone()
            model.set_weight(0, 2, projection, matrix)
            assert torch.equal(model.run_experts(0, batch.hidden, batch.index, batch.weight), replaced)
            assert not torch.equal(replaced, batch.output)
            model.set_weight(0, 2, projection, kept)


def test_in_16_bits_rows_are_rounded_up_to_few_numbers_and_nothing_else_changes() -> None:
    half, whole = torch.zeros(1, dtype=torch.bfloat16), torch.zeros(1)
    asked = range(1, 5000)
    given = [rows + _surplus(half, rows) for rows in asked]
    assert all(rows <= more <= rows * 17 / 16 for rows, more in zip(asked, given, strict=True))
    assert len(set(given)) < 160 and not any(_surplus(whole, rows) for rows in asked)
    moe = tiny_mixtral()
    own = moe.model.to(torch.bfloat16)
    model = MoEModel(own, tiny_tokenizer(), "tiny")
    hidden = torch.randn(1500, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    index = torch.stack([torch.arange(1500) % 6, (torch.arange(1500) + 1) % 6], dim=1)
    weight = torch.full(index.shape, 0.5, dtype=torch.bfloat16)
    found = model.run_experts(0, hidden, index, weight)
    parts = zip(*(whole.split(15) for whole in (hidden, index, weight)), strict=True)
    apart = torch.cat([model.run_experts(0, *part) for part in parts])
    torch.testing.assert_close(found, apart, atol=2e-2, rtol=2e-2)
    assert (found != apart).float().mean() < 0.2


@pytest.mark.parametrize("score", ["softmax", "sigmoid", "sqrtsoftplus"])
@pytest.mark.parametrize("normalizes", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_routers_rule_is_read_from_its_weights(score: str, normalizes: bool, dtype: torch.dtype) -> None:
    logits = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    index = logits.topk(3).indices
    weight = RouterRule(score, normalizes, 2.5).weight(logits, index).to(dtype)
    rule = read_rule("gate", logits, index, weight)
    assert (rule.score, rule.normalizes) == (score, normalizes)
    assert rule.scale == pytest.approx(2.5, rel=1e-2)


def test_a_router_that_follows_no_rule_is_refused() -> None:
    logits = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    with pytest.raises(BadInput, match="by no rule"):
        read_rule("gate", logits, logits.topk(2).indices, torch.rand(16, 2))


# ---- what is refused


def test_a_dense_model_has_no_experts_and_still_gives_logits() -> None:
    model = MoEModel(tiny_transformer("llama"))
    assert (model.is_moe, model.layers, model.experts, model.top_k) == (False, 0, 0, 0)
    assert model.logits(random_tokens()).shape == (2, 12, 259)
    assert model.weight_count().attention == 3 * (2 * 32 * 32 + 2 * 32 * 16)


@pytest.mark.parametrize("flag", ["has_post_expert_norm", "has_gate"])
def test_a_layout_that_is_not_understood_is_refused(flag: str) -> None:
    own = tiny_transformer("mixtral")
    for module in own.modules():
        if hasattr(module, flag):
            setattr(module, flag, flag != "has_gate")
    with pytest.raises(BadInput, match="not supported"):
        MoEModel(own)


def test_a_layout_declared_falsely_is_refused() -> None:
    own = tiny_transformer("gpt_oss")
    for module in own.modules():
        if hasattr(module, "is_concatenated"):
            setattr(module, "is_concatenated", True)  # noqa: B010 - a module's attribute, unknown to its type
    with pytest.raises(BadInput, match="mixes gate and up"):
        MoEModel(own)


def test_an_extra_parameter_among_the_experts_is_refused() -> None:
    own = tiny_transformer("mixtral")
    own.model.layers[1].mlp.experts.gate_scale = nn.Parameter(torch.ones(6))
    with pytest.raises(BadInput, match="gate_scale"):
        MoEModel(own)


def test_experts_that_compute_something_else_are_refused() -> None:
    own = tiny_transformer("mixtral")

    class Doubled(type(own.model.layers[0].mlp.experts)):  # type: ignore[misc]
        pass

    plain = Doubled.forward
    Doubled.forward = lambda self, *args: plain(self, *args) * (1 + (self.config._experts_implementation == "eager"))
    own.model.layers[0].mlp.experts.__class__ = Doubled
    with pytest.raises(BadInput, match="other than its declared layout"):
        MoEModel(own)


@pytest.mark.parametrize("architecture", ["jetmoe", "llama4_text", "inkling_text", "longcat_flash"])
def test_architectures_beyond_the_seam_are_refused(architecture: str) -> None:
    with pytest.raises(BadInput, match="registry"):
        tiny_model(architecture)


def test_experts_in_a_list_of_modules_are_refused() -> None:
    own = tiny_transformer("llama")
    own.model.layers[0].mlp.experts = nn.ModuleList(nn.Linear(32, 32) for _ in range(4))
    with pytest.raises(BadInput, match="list of Linear"):
        MoEModel(own)


# ---- loading


def test_a_saved_folder_loads_as_the_same_model(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "moe")
    model = load_model(str(folder))
    assert torch.equal(model.logits(random_tokens()), tiny_mixtral().logits(random_tokens()))
    assert model.digest() == tiny_mixtral().digest()
    assert model.tokenizer("ab")["input_ids"] == tiny_mixtral().tokenizer("ab")["input_ids"]
    assert load_model(str(folder), dtype="bfloat16").model.dtype == torch.bfloat16


def test_the_language_model_beside_a_vision_tower_is_adapted_too(tmp_path: Path) -> None:
    own = AutoModelForImageTextToText.from_pretrained(tiny_seeing_folder(tmp_path)).eval()
    own.set_experts_implementation("eager")
    model, ids = load_model(str(tmp_path)), random_tokens()
    with torch.no_grad():
        expected = own(input_ids=ids, use_cache=False).logits
    trace = model.trace(ids)
    assert torch.equal(trace.logits, expected)
    assert all(torch.equal(model.forward_from(layer, trace.entering[layer], ids), expected) for layer in range(3))
    assert not any("visual" in name for name in model.attention_linears())
    assert model.weight_count().attention == 9216


def test_digests_tell_models_apart() -> None:
    assert len({tiny_mixtral().digest(), tiny_mixtral(seed=1).digest(), tiny_mixtral(rms_norm_eps=1e-3).digest()}) == 3


def test_a_missing_tokenizer_is_named_when_it_is_needed(tmp_path: Path) -> None:
    tiny_transformer("mixtral").save_pretrained(tmp_path)
    model = load_model(str(tmp_path))
    with pytest.raises(BadInput, match="no tokenizer"):
        _ = model.tokenizer


def test_what_is_no_model_folder_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="there is no model folder"):
        load_model(str(tmp_path / "missing"))
    with pytest.raises(BadInput, match="no config.json"):
        load_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(BadInput, match="cannot be loaded"):
        load_model(str(tmp_path))


def test_weights_that_are_damaged_or_missing_are_refused(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput, match="damaged"):
        load_model(str(folder))
    weights.unlink()
    torch.save(tiny_transformer("mixtral").state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(BadInput, match="cannot be loaded"):
        load_model(str(folder))


def test_a_checkpoint_that_lacks_a_weight_is_refused(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    with pytest.raises(BadInput, match="incomplete"):
        load_model(str(folder))


def test_nan_in_the_weights_is_refused_by_name(tmp_path: Path) -> None:
    own = tiny_transformer("mixtral")
    own.model.layers[1].self_attn.q_proj.weight.data[0, 0] = torch.nan
    own.save_pretrained(tmp_path)
    with pytest.raises(BadInput, match=r"layers\.1\.self_attn\.q_proj\.weight"):
        load_model(str(tmp_path))


def test_a_name_not_on_this_machine_is_refused_when_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(BadInput, match="cannot be loaded"):
        load_model("nobody/no-such-model")


def test_an_unknown_dtype_or_device_is_refused(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path)
    with pytest.raises(BadInput, match="float8"):
        load_model(str(folder), dtype="float8")
    with pytest.raises(BadInput, match="device"):
        load_model(str(folder), device="cuda:99")


def test_transformers_still_loads_what_it_saved(tmp_path: Path) -> None:
    """Wrapping a model leaves nothing behind that a saved folder would carry."""
    model = tiny_mixtral()
    model.model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        logits = again(input_ids=random_tokens(), use_cache=False).logits
    torch.testing.assert_close(logits, model.logits(random_tokens()), rtol=1e-4, atol=1e-5)


def observed(model: MoEModel, ids: Tensor, mask: Tensor) -> list[MoEBatch]:
    seen: list[MoEBatch] = []
    with model.observe(seen.append):
        model.logits(ids, mask)
    return seen
