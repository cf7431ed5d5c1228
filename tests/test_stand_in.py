"""A model attends under its own name, with every argument it gives, whatever of ours stands in its place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import LATENT_ATTENTION, random_tokens, tiny_tokenizer, tiny_transformer

from mcbench.attention import attention_forward as received_forward
from mcbench.attention import collecting
from mcbench.errors import BadInput
from mcbench.lastlayer import last_layer, only_last
from mcbench.model import MoEModel
from mcbench.stand_in import attention_of, standing_in
from mcbench.trunk import attention_forward as trunk_forward

# models that choose by the name of their attention how to select what a token sees, and what makes them select
SPARSE: dict[str, dict[str, Any]] = {
    "deepseek_v32": {**LATENT_ATTENTION, "index_topk": 8, "index_n_heads": 4, "index_head_dim": 16},
    "glm_moe_dsa": {**LATENT_ATTENTION, "index_topk": 8, "index_n_heads": 4, "index_head_dim": 16},
    "hy_v4": {"index_topk": 8},
    "minimax_m3_vl_text": {},
    "gpt_oss": {"sliding_window": 8},  # a window, sinks and eager attention
    "mellum": {"sliding_window": 8},
}
TOKENS = 40


@pytest.mark.parametrize("architecture", SPARSE)
@torch.inference_mode()
def test_a_policy_that_sees_attention_and_drops_nothing_changes_no_logit(architecture: str) -> None:
    moe = MoEModel(tiny_transformer(architecture, **SPARSE[architecture]), tiny_tokenizer(), architecture)
    ids, mask = random_tokens(2, TOKENS), torch.ones(2, TOKENS, dtype=torch.long)
    mask[1, :5] = 0
    expected = moe.model(input_ids=ids, attention_mask=mask).logits
    with moe.route(lambda choices: choices.keep(choices.chosen), sees=("attention",)):
        found = moe.model(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("architecture", [name for name in SPARSE if name not in ("gpt_oss", "hy_v4")])
@torch.inference_mode()
def test_the_last_layer_alone_selects_what_the_whole_selects(architecture: str) -> None:
    model = tiny_transformer(architecture, **SPARSE[architecture])
    assert attention_of(model) == "sdpa"
    layer, ids = last_layer(model), random_tokens(2, TOKENS)
    assert layer is not None
    expected = model(input_ids=ids).logits[:, -3:]
    with only_last(model, layer, 2, TOKENS, 3):
        found = model(input_ids=ids).logits[:, -3:]
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)


def test_the_name_stays_and_only_marked_modules_are_given_ours() -> None:
    model: Any = tiny_transformer("olmoe")
    marked, called = model.model.layers[1].self_attn, []

    def ours(module: torch.nn.Module, query: torch.Tensor, *_others: Any, **_options: Any) -> tuple[torch.Tensor, None]:
        called.append(module)
        return torch.zeros_like(query).transpose(1, 2), None

    with standing_in(model, "ours", ours, {marked: {}}):
        assert attention_of(model) == "ours" and model.config._attn_implementation == "sdpa"
        model(input_ids=random_tokens())
    model(input_ids=random_tokens())
    assert called == [marked] and attention_of(model) == "sdpa"


@pytest.mark.parametrize("argument", ["position_bias", "s_aux", "softcap", "sliding_window", "indices", "another"])
def test_a_shared_beginning_is_refused_where_an_argument_is_not_known(argument: str) -> None:
    module = torch.nn.Module()
    module.__dict__["_mcbench_beginning"] = torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4)
    query, states = torch.zeros(1, 2, 1, 4), torch.zeros(1, 2, 5, 4)
    trunk_forward(module, query, states, states, None, scaling=0.3, dropout=0.0, use_cache=True)
    with pytest.raises(BadInput, match="knows no shared beginning"):
        trunk_forward(module, query, states, states, None, **{argument: torch.ones(1, 2, 1, 5)})
    with pytest.raises(BadInput, match="knows no shared beginning"):
        trunk_forward(module, query, states, states, None, dropout=0.1)


@pytest.mark.parametrize("option", ["position_bias", "unheard_of", "is_causal"])
def test_received_attention_takes_a_bias_of_each_query_into_blocks(
    option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = tiny_transformer("olmoe")
    attention = model.model.layers[0].self_attn
    bias = torch.randn(1, 4, TOKENS, TOKENS)
    options: dict[str, Any] = {"is_causal": False} if option == "is_causal" else {option: bias}

    def eager(module: Any, query: Any, key: Any, value: Any, mask: Any, **given: Any) -> Any:
        scores = query @ key.transpose(2, 3) + (0 if mask is None else mask)
        shares = (scores + given.get("position_bias", 0) + given.get("unheard_of", 0)).softmax(-1)
        return (shares @ value).transpose(1, 2), shares

    import mcbench.attention as module

    monkeypatch.setattr(module, "eager_attention", lambda _: eager)
    columns = []
    query, states = torch.randn(1, 4, TOKENS, 8), torch.randn(1, 4, TOKENS, 8)
    for elements in (1 << 22, 4 * TOKENS * 7):
        monkeypatch.setattr(module, "BLOCK_ELEMENTS", elements)
        with collecting(model, list(model.model.layers)) as collectors:
            collectors[0].real = torch.ones(1, TOKENS, dtype=torch.bool)
            attention.__dict__["_mcbench_own_attention"] = eager
            received_forward(attention, query, states, states, None, **options)
            columns.append(collectors[0].total)
    torch.testing.assert_close(*columns)
    causal = option != "is_causal"
    added = torch.full((TOKENS, TOKENS), float("-inf")).triu(1) if causal else 0
    scores = query @ states.transpose(2, 3) + added + (bias if causal else 0)
    torch.testing.assert_close(columns[0], scores.softmax(-1).mean(1).sum(1))
