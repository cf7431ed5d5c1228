"""A beginning held once is attended to as if every row had its own copy."""

from __future__ import annotations

import pytest
import torch
from tiny import random_tokens, tiny_tokenizer, tiny_transformer

from mcbench.errors import BadInput
from mcbench.evaluation import LanguageModel, Prompt
from mcbench.stand_in import attention_of
from mcbench.trunk import IMPLEMENTATION, attending, attention_forward

SHARED = "the same few examples stand before each question of this task "


@pytest.mark.parametrize(("new", "masked"), [(1, False), (1, True), (3, True)])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_it_is_the_attention_to_a_copy_in_every_row(groups: int, new: int, masked: bool) -> None:
    torch.manual_seed(0)
    rows, heads, length, own, width = 3, 4, 7, 5, 8
    beginning = torch.randn(1, groups, length, width), torch.randn(1, groups, length, width + 2)
    key, value = torch.randn(rows, groups, own, width), torch.randn(rows, groups, own, width + 2)
    query = torch.randn(rows, heads, new, width)
    mask = torch.ones(rows, 1, new, own, dtype=torch.bool)
    if masked:
        mask[1, ..., :3] = mask[2, ..., :1] = False
        mask[..., own - new + 1 :] = torch.ones(new, new - 1, dtype=torch.bool).tril(-1)
    module = torch.nn.Module()
    module.__dict__["layer_idx"] = 0
    module.__dict__["_mcbench_beginning"] = beginning
    keys, values = (
        torch.cat([first.expand(rows, -1, -1, -1), states], dim=2).repeat_interleave(heads // groups, dim=1)
        for first, states in zip(beginning, (key, value), strict=True)
    )
    seen = torch.cat([mask.new_ones(rows, 1, new, length), mask], dim=-1)
    expected = torch.nn.functional.scaled_dot_product_attention(query, keys, values, attn_mask=seen, scale=0.3)
    forms = [mask, torch.zeros(mask.shape).masked_fill(~mask, float("-inf"))] + ([] if masked else [None])
    for form in forms:
        output, _ = attention_forward(module, query, key, value, form, scaling=0.3)
        torch.testing.assert_close(output, expected.transpose(1, 2))


@pytest.mark.parametrize("architecture", ["qwen2_moe", "olmoe"])
def test_texts_with_a_shared_beginning_are_those_of_each_prompt_alone(architecture: str) -> None:
    lm = LanguageModel(tiny_transformer(architecture), tiny_tokenizer())
    assert lm._holds_once
    prompts = [Prompt(SHARED + own, ("q",), 12) for own in ("a", "bc de", "fgh ab c d e f", "g")]
    alone = LanguageModel(tiny_transformer(architecture), tiny_tokenizer(), prefix_sharing=False, tokens_per_batch=1)
    expected = [done for (done,) in _texts(alone, prompts)]
    for budget in (8192, 60, 1):  # read and written at once; read in parts; written in batches of one
        lm.tokens_per_batch = budget
        assert [done for (done,) in _texts(lm, prompts)] == expected
    assert lm.model.config._attn_implementation == "sdpa"


def test_another_attention_keeps_copies() -> None:
    model = tiny_transformer("mixtral")
    model.set_attn_implementation("eager")
    lm = LanguageModel(model, tiny_tokenizer())
    assert not lm._holds_once
    with pytest.raises(BadInput, match="not 'eager'"), attending(model, []):
        pass


def test_several_new_tokens_without_a_mask_are_refused() -> None:
    model = tiny_transformer("mixtral")
    states = torch.zeros(1, 1, 2, 4)
    with pytest.raises(BadInput, match="knows no shared beginning"), attending(model, [(states, states)] * 8):
        assert attention_of(model) == IMPLEMENTATION and model.config._attn_implementation == "sdpa"
        model(input_ids=random_tokens())
    assert attention_of(model) == model.config._attn_implementation == "sdpa"


def _texts(lm: LanguageModel, prompts: list[Prompt]) -> list[list[object]]:
    found: dict[int, list[object]] = {}
    for batch in lm.generate_batches(prompts):
        found.update({at: list(done) for at, done in batch.items()})
    return [found[at] for at in range(len(prompts))]
