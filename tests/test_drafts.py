"""Drafts follow what stood before, and texts written with them are those written one token after another."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from tiny import ARCHITECTURES, tiny_tokenizer, tiny_transformer

from mcbench.drafts import LONGEST, Drafts, accepted
from mcbench.evaluation import Completion, LanguageModel, Prompt, Sampling

PROMPTS = [
    Prompt("ab ab cd ab ab cd ", ("q",), 40),
    Prompt("ab ab cd ab ab cd ab ab cd hgfed", (), 40),
    Prompt("abcdefgh gfedcba", ("never",), 60),
    Prompt("ab ab cd ", (), 7),
]
CYCLE = "abcdefg"


# -- drafts


def test_what_a_text_repeats_is_guessed_over_and_over() -> None:
    drafts = Drafts([[1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3]])
    assert drafts.draft(0, 6) == [4, 1, 2, 3, 4, 1]
    assert Drafts([[1, 2, 3, 4, 5]]).draft(0, 6) == [] == Drafts([[]]).draft(0, 6)


def test_a_text_is_looked_at_before_others_and_those_before_what_all_begin_with() -> None:
    own, other, shared = [1, 2, 3, 7, 1, 2, 3], [5, 1, 2, 3, 8, 8], [1, 2, 3, 9, 9, 9]
    assert Drafts([own, other], shared).draft(0, 1) == [7]
    assert Drafts([[0, 1, 2, 3], other], shared).draft(0, 6) == [8, 8]  # and no further than it is known
    assert Drafts([[0, 1, 2, 3]], shared).draft(0, 2) == [9, 9]


def test_the_last_of_several_places_is_believed() -> None:
    assert Drafts([[1, 2, 3, 7, 1, 2, 3, 8, 1, 2, 3]]).draft(0, 1) == [8]
    assert Drafts([[0, 1, 2, 3], [1, 2, 3, 7], [1, 2, 3, 8]]).draft(0, 1) == [8]


def test_a_guess_reaches_as_far_as_the_last_ones_came_true() -> None:
    drafts = Drafts([[1, 2, 3, 4, 1, 2, 3]])
    assert drafts.proposals({0: 9}, 9) == {0: []}
    drafts.append(0, 4)
    assert drafts.proposals({0: 9}, 9) == {0: [1]}
    for token in (1, 2, 3):
        drafts.append(0, token)
    assert drafts.proposals({0: 9}, 9) == {0: [4, 1, 2, 3]}
    assert drafts.proposals({0: 2}, 9) == {0: [4, 1]} == drafts.proposals({0: 9}, 2)
    drafts.append(0, 5)
    assert drafts.proposals({0: 9}, 9) == {0: []}
    for token in (1, 2, 3, 4) * 4:
        drafts.append(0, token)
    assert len(drafts.proposals({0: 99}, 99)[0]) == LONGEST


def test_a_batch_is_as_wide_as_nine_of_ten_texts_follow() -> None:
    drafts = Drafts([[10 * text + token for token in (1, 2, 3, 4, 1, 2, 3)] for text in range(10)])
    foreseen = (5, 3, 2, 6, 4, 3, 3, 0, 7, 5)
    for text, count in enumerate(foreseen):
        for at in range(count):
            drafts.append(text, 10 * text + (4, 1, 2, 3)[at % 4])
    everyone = dict.fromkeys(range(10), 99)
    assert [len(draft) for draft in drafts.proposals(everyone, 99).values()] == [min(2, n) for n in foreseen]
    del everyone[2]  # now one of nine follows none
    assert [len(draft) for draft in drafts.proposals(everyone, 99).values()] == [0] * 9


@pytest.mark.parametrize(
    ("said", "draft", "kept"),
    [([5], [], [5]), ([5, 6, 7], [5, 6], [5, 6, 7]), ([5, 6, 7], [5, 9], [5, 6]), ([5, 6, 7], [9, 6], [5])],
)
def test_a_guess_stays_up_to_the_first_token_that_the_model_does_not_choose(
    said: list[int], draft: list[int], kept: list[int]
) -> None:
    assert accepted(said, draft) == kept


# -- texts


def texts(lm: LanguageModel, prompts: list[Prompt] = PROMPTS) -> list[list[Completion]]:
    found: dict[int, list[Completion]] = {}
    for batch in lm.generate_batches(prompts):
        found.update(batch)
    return [found[at] for at in range(len(prompts))]


def counted_forwards(lm: LanguageModel) -> list[int]:
    """Lengthens with each forward of the model, by the new tokens of a row."""
    widths: list[int] = []
    lm.model.register_forward_pre_hook(
        lambda _module, _args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    return widths


def going_round() -> Any:
    """A transformer that writes CYCLE over and over, whatever comes before: its layers add nothing to the token."""
    model: Any = tiny_transformer("qwen3_moe")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                parameter.zero_()
        table = torch.nn.functional.normalize(model.get_input_embeddings().weight)
        head = torch.zeros_like(table)
        tokens = tiny_tokenizer().encode(CYCLE, add_special_tokens=False)
        for at, token in enumerate(tokens):
            head[tokens[(at + 1) % len(tokens)]] = table[token]
        model.get_input_embeddings().weight.copy_(table)
        model.get_output_embeddings().weight.copy_(head)
    return model


WITHOUT = ("gpt_oss", "jamba")  # a sliding window forgets, a recurrent state takes nothing back


@pytest.mark.parametrize("architecture", ["olmoe", "mellum", "glm4_moe", "deepseek_v3", "minimax_m2", *WITHOUT])
def test_texts_are_those_written_one_token_after_another(architecture: str) -> None:
    assert architecture in ARCHITECTURES
    lm = LanguageModel(tiny_transformer(architecture), tiny_tokenizer())
    plain = LanguageModel(tiny_transformer(architecture), tiny_tokenizer(), shortcuts=False)
    assert lm.drafts == lm.settings()["drafts"] == (architecture not in WITHOUT) and not plain.drafts
    for budget in (8192, 120, 1):
        lm.tokens_per_batch = budget
        assert texts(lm) == texts(plain)


def test_a_text_that_repeats_itself_takes_few_forwards() -> None:
    lm = LanguageModel(going_round(), tiny_tokenizer(), witness=False)
    widths = counted_forwards(lm)
    ((written,),) = lm.generate(["xyz a"], [], 60)
    assert written.text == (CYCLE * 9)[1:61] and written.tokens == 60 and written.finish == "length"
    assert len(widths) <= 18 and max(widths[1:]) == LONGEST + 1
    widths.clear()
    lm.generate(["xyz a"], [], 60, Sampling(temperature=1.0, top_p=1e-9))
    assert len(widths) == 60 and max(widths[1:]) == 1  # what is drawn is not drafted


@pytest.mark.parametrize("stop", ["c", "fg", "efgabc", "gabcdefga"])
def test_a_text_stops_inside_a_guess_where_it_would_have_stopped(stop: str) -> None:
    lm, plain = (LanguageModel(going_round(), tiny_tokenizer(), shortcuts=shortcuts) for shortcuts in (True, False))
    prompts = [
        Prompt(f"{before}abcdefgabcdef{own}", (stop,), 50) for before in ("x", "yyy") for own in ("", "gab", "zd")
    ]
    assert texts(lm, prompts) == texts(plain, prompts)
    (found,) = lm.generate(["e"], [stop], 50)
    assert found[0].finish == "stop" and found[0].text == ("fg" + CYCLE * 3).partition(stop)[0]


@pytest.mark.parametrize("allowed", [1, 2, 9, 30])
def test_no_text_is_longer_than_allowed_nor_read_beyond_the_window(allowed: int) -> None:
    model = going_round()
    lm = LanguageModel(model, tiny_tokenizer(), witness=False)
    lm.window = 40
    seen: list[int] = []
    model.register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append(int(kwargs["position_ids"].max())), with_kwargs=True
    )
    prompts = [Prompt(CYCLE * 6, (), allowed), Prompt(CYCLE, (), max(1, allowed - 3))]
    for prompt, (written,) in zip(prompts, texts(lm, prompts), strict=True):
        assert written.tokens == prompt.max_new_tokens and written.finish == "length"
        assert written.text == (CYCLE * 6)[: prompt.max_new_tokens]
    assert max(seen) < 40


def test_a_batch_with_guesses_is_no_larger_than_any_other() -> None:
    lm = LanguageModel(going_round(), tiny_tokenizer(), tokens_per_batch=20, witness=False)
    widths = counted_forwards(lm)
    sizes: list[int] = []
    lm.model.register_forward_pre_hook(
        lambda _module, _args, kwargs: sizes.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    texts(lm, [Prompt(CYCLE, (), 12)] * 8)
    assert max(widths) > 1 and max(sizes) <= 20


def test_a_model_that_attends_in_its_own_way_is_given_no_guesses(monkeypatch: pytest.MonkeyPatch) -> None:
    modeling: Any = importlib.import_module("transformers.models.olmoe.modeling_olmoe")
    own = modeling.create_causal_mask

    def blind(**arguments: Any) -> Any:
        mask = arguments["attention_mask"]
        if mask is not None and mask.ndim == 4:  # knows padding, but not rows that go on by themselves
            arguments["attention_mask"] = mask[:, 0, -1]
        return own(**arguments)

    monkeypatch.setattr(modeling, "create_causal_mask", blind)
    lm = LanguageModel(tiny_transformer("olmoe"), tiny_tokenizer())
    assert not lm.drafts and lm._holds_once
    eager = tiny_transformer("olmoe")
    eager.set_attn_implementation("eager")
    assert not LanguageModel(eager, tiny_tokenizer()).drafts
    assert not LanguageModel(tiny_transformer("olmoe"), tiny_tokenizer(), causal=False, prefix_sharing=False).drafts
