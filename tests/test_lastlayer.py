"""The last layer may leave out positions that nobody reads: the others get the logits that they always get."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny import ARCHITECTURES, random_tokens, tiny_model, tiny_tokenizer, tiny_transformer

from mcbench.evaluation import LanguageModel
from mcbench.experts import Experts
from mcbench.lastlayer import last_layer, only_last

ROWS, NEW = 2, 12
SOME = ["mixtral", "qwen2_moe", "olmoe", "deepseek_v3", "granitemoe", "glm4_moe", "phimoe", "gpt_oss"]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Lengthens by the tokens of each call of the experts of a layer."""
    tokens: list[int] = []
    run = Experts.run

    def counted(self: Experts, hidden: Any, *others: Any) -> Any:
        tokens.append(len(hidden))
        return run(self, hidden, *others)

    monkeypatch.setattr(Experts, "run", counted)
    yield tokens


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kept", [1, 3, NEW])
@pytest.mark.parametrize("architecture", SOME)
@torch.inference_mode()
def test_positions_that_are_read_have_the_logits_of_the_whole(architecture: str, kept: int, padded: bool) -> None:
    assert architecture in ARCHITECTURES
    model = tiny_transformer(architecture)
    ids, mask = random_tokens(ROWS, NEW), torch.ones(ROWS, NEW, dtype=torch.long)
    if padded:
        mask[1, :4] = 0
    layer = last_layer(model)
    assert layer is not None
    expected = model(input_ids=ids, attention_mask=mask).logits[:, -kept:]
    own = model.config._attn_implementation
    if own != "sdpa":
        assert LanguageModel(model, tiny_tokenizer())._last is None
        return
    with only_last(model, layer, ROWS, NEW, kept):
        found = model(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(found[:, -kept:], expected, atol=2e-5, rtol=2e-5)
    if kept < NEW:
        assert (found[:, :-kept] - model(input_ids=ids, attention_mask=mask).logits[:, :-kept]).abs().max() > 1e-3
    assert model.config._attn_implementation == own
    assert not any(name.startswith("_mcbench_") for module in layer.modules() for name in module.__dict__)


def test_experts_of_the_last_layer_run_for_what_is_read_alone(seen: list[int]) -> None:
    moe = tiny_model("mixtral")
    lm = LanguageModel(moe.model, moe.tokenizer, witness=False)
    seen.clear()
    lm.loglikelihoods([("abcdefgh", "i")])
    assert seen == [8, 8, 1]
    alone = LanguageModel(moe.model, moe.tokenizer, shortcuts=False, witness=False)
    assert alone._last is None
    seen.clear()
    alone.loglikelihoods([("abcdefgh", "i")])
    assert seen == [8, 8, 8]


def test_whoever_watches_or_prunes_the_experts_sees_every_token(seen: list[int]) -> None:
    moe = tiny_model("mixtral")
    lm = LanguageModel(moe.model, moe.tokenizer, witness=False)
    moe._layers[-1].experts.listening = True
    seen.clear()
    lm.loglikelihoods([("abcdefgh", "i")])
    call = moe._layers[-1].experts.last_call
    assert seen == [8, 8, 8] and call is not None and len(call.hidden) == 8
    moe._layers[-1].experts.listening = False
    moe._layers[-1].experts.policy = lambda _hidden, index, weight: (index, weight)
    seen.clear()
    lm.loglikelihoods([("abcdefgh", "i")])
    assert seen == [8, 8, 8]


def test_a_layer_that_mixes_positions_after_its_attention_is_not_left_out() -> None:
    model: Any = tiny_transformer("olmoe")
    mlp = model.model.layers[-1].mlp
    forward = mlp.forward
    mlp.forward = lambda hidden: forward(hidden + hidden.mean(1, keepdim=True))
    lm = LanguageModel(model, tiny_tokenizer(), check=False)
    assert lm._last is None
