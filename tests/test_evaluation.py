"""The fast path gives what one plain forward after the other gives, however requests are batched."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from tiny import tiny_tokenizer, tiny_transformer

from mcbench.errors import BadInput
from mcbench.evaluation import Completion, LanguageModel, Prompt, Sampling, _Chooser
from mcbench.logits import places_at_once

ARCHITECTURES = ("mixtral", "qwen2_moe", "gpt_oss", "jamba")  # plain, shared experts, sliding window, recurrent
TOLERANCE = 1e-4


def language_model(architecture: str = "mixtral", **settings: Any) -> LanguageModel:
    return LanguageModel(tiny_transformer(architecture), tiny_tokenizer(), **settings)


def some_pairs(count: int = 12, seed: int = 0) -> list[tuple[str, str]]:
    """Contexts of 1 to 70 bytes (beyond the sliding window of 32), each with one to four continuations."""
    rng = random.Random(seed)

    def text(n: int) -> str:
        return "".join(rng.choice("abcdefgh ") for _ in range(n)).strip() or "a"

    contexts = [text(rng.choice((1, 5, 30, 70))) for _ in range(count)]
    return [(c, " " + text(rng.choice((1, 2, 9, 20)))) for c in contexts for _ in range(rng.randint(1, 4))]


@torch.inference_mode()
def plain_loglikelihood(lm: LanguageModel, context: list[int], continuation: list[int]) -> float:
    logits = lm.model(input_ids=torch.tensor([[*context, *continuation]])).logits[0]
    scored = logits.double().log_softmax(-1)[len(context) - 1 : -1]
    return float(scored.gather(1, torch.tensor(continuation)[:, None]).sum())


def ids(text: str) -> list[int]:
    return [int(i) for i in tiny_tokenizer().encode(text, add_special_tokens=False)]


@torch.inference_mode()
def plain_greedy(lm: LanguageModel, prompt: str, steps: int) -> list[int]:
    """Argmax of a full forward over everything so far, step by step."""
    context = ids(prompt)
    written: list[int] = []
    for _ in range(steps):
        token = int(lm.model(input_ids=torch.tensor([[*context, *written]])).logits[0, -1].argmax())
        if token == lm.tokenizer.eos_token_id:
            break
        written.append(token)
    return written


@pytest.mark.parametrize("sharing", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loglikelihoods_are_those_of_one_forward_each(architecture: str, sharing: bool) -> None:
    lm = language_model(architecture, prefix_sharing=sharing)
    pairs = some_pairs()
    for (context, text), score in zip(pairs, lm.loglikelihoods(pairs), strict=True):
        assert score.value == pytest.approx(plain_loglikelihood(lm, ids(context), ids(text)), abs=TOLERANCE)
        assert score.tokens == len(ids(text)) and score.truncated == 0


@pytest.mark.parametrize("tokens_per_batch", [1, 200, 800, 100_000])
def test_batching_and_order_change_nothing(tokens_per_batch: int) -> None:
    pairs = some_pairs()
    expected = language_model().loglikelihoods(pairs)
    order = random.Random(1).sample(range(len(pairs)), len(pairs))
    found = language_model(tokens_per_batch=tokens_per_batch).loglikelihoods([pairs[i] for i in order])
    for at, score in zip(order, found, strict=True):
        assert score.value == pytest.approx(expected[at].value, abs=TOLERANCE)
        assert score.greedy == expected[at].greedy


def test_a_shared_context_is_read_once() -> None:
    lm = language_model(witness=False)
    tokens = counted_tokens(lm)
    lm.loglikelihoods([("x" * 60, " ab"), ("x" * 60, " cd"), ("x" * 60, " ef")])
    assert sum(tokens) == 60 + 1 + 3  # the space is shared too; the last token of a continuation is never read
    alone = language_model(prefix_sharing=False, witness=False)
    tokens = counted_tokens(alone)
    alone.loglikelihoods([("x" * 60, " ab"), ("x" * 60, " cd"), ("x" * 60, " ef")])
    assert sum(tokens) == 3 * 62


def counted_tokens(lm: LanguageModel) -> list[int]:
    """Lengthens by the tokens of each forward of the model."""
    tokens: list[int] = []
    lm.model.register_forward_pre_hook(
        lambda _module, _args, kwargs: tokens.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    return tokens


def test_greedy_says_whether_every_token_is_the_likeliest() -> None:
    lm = language_model()
    written = text_of(plain_greedy(lm, "hello", 1))
    likeliest, other = lm.loglikelihoods([("hello", written), ("hello", "~" if written != "~" else "!")])
    assert likeliest.greedy and not other.greedy


def test_spaces_at_the_end_of_a_context_belong_to_the_continuation() -> None:
    lm = language_model()
    moved, plain = lm.loglikelihoods([("ab ", "cd"), ("ab", " cd")])
    assert moved == plain and moved.tokens == 3


def test_without_context_the_text_stands_after_bos() -> None:
    lm = language_model()
    (score,) = lm.loglikelihoods([("", "abc")])
    assert score.value == pytest.approx(plain_loglikelihood(lm, [1], ids("abc")), abs=TOLERANCE)


def test_an_empty_continuation_is_refused() -> None:
    with pytest.raises(BadInput, match="continuation 1 has no token"):
        language_model().loglikelihoods([("a", "b"), ("a", "")])


def test_a_tokenizer_without_bos_and_pad_is_enough_for_texts_with_a_context() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token = tokenizer.pad_token = None
    lm = LanguageModel(tiny_transformer("mixtral"), tokenizer)
    pairs = some_pairs()
    assert [s.value for s in lm.loglikelihoods(pairs)] == [s.value for s in language_model().loglikelihoods(pairs)]
    with pytest.raises(BadInput, match="neither BOS nor EOS"):
        lm.loglikelihoods([("", "abc")])


def test_a_context_beyond_the_window_is_cut_on_the_left_and_counted() -> None:
    lm = language_model()
    (score,) = lm.loglikelihoods([("ab" * 300, " cde")])  # 600 + 4 bytes, window 512
    assert score.truncated == 600 + 3 - 512
    kept = ids("ab" * 300)[score.truncated :]
    assert score.value == pytest.approx(plain_loglikelihood(lm, kept, ids(" cde")), abs=TOLERANCE)
    with pytest.raises(BadInput, match="does not fit the model's window of 512"):
        lm.loglikelihoods([("a", "b" * 600)])


def test_a_step_off_the_processor_scores_many_places() -> None:
    assert places_at_once(torch.device("cpu"), 151_936) == 1
    assert places_at_once(torch.device("cuda"), 151_936) == 441


def test_a_model_without_tokenizer_is_refused() -> None:
    with pytest.raises(BadInput, match="no tokenizer"):
        LanguageModel(tiny_transformer("mixtral"), None)


def test_numbers_that_are_none_are_refused() -> None:
    model = tiny_transformer("mixtral")
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)
    with pytest.raises(BadInput, match="NaN"):
        LanguageModel(model, tiny_tokenizer())


@pytest.mark.parametrize("wrong", [math.inf, -math.inf, math.nan])
def test_an_infinite_logit_is_refused(wrong: float) -> None:
    model = tiny_transformer("mixtral")
    lm = LanguageModel(model, tiny_tokenizer())

    def spoil(_module: Any, _arguments: Any, logits: torch.Tensor) -> torch.Tensor:
        return torch.full_like(logits, wrong) if wrong < 0 else logits.index_fill(-1, torch.tensor([7]), wrong)

    model.get_output_embeddings().register_forward_hook(spoil)
    with pytest.raises(BadInput, match="not finite numbers"):
        lm.loglikelihoods([("a", "b")])
    with pytest.raises(BadInput, match="not finite numbers"):
        lm.generate(["a"], (), 2)


# -- perplexity


def test_rolling_windows_score_every_token_once() -> None:
    lm = language_model()
    texts = ["abcdefghij" * 3, "xyz", ""]
    windows = lm.perplexity(texts, window=8)
    for at, text in enumerate(texts):
        tokens = [1, *ids(text)]
        expected = []
        for start in range(1, len(tokens), 8):
            end = min(start + 8, len(tokens))
            before = tokens[max(0, end - 9) : start]  # a last, shorter window reaches back
            expected.append(-plain_loglikelihood(lm, before, tokens[start:end]))
        found = [w for w in windows if w.text == at]
        assert [w.loss for w in found] == pytest.approx(expected, abs=TOLERANCE)
        assert sum(w.tokens for w in found) == len(ids(text))
        assert sum(w.bytes for w in found) == len(text.encode())
        assert sum(w.words for w in found) == len(text.split())


def test_disjoint_windows_drop_the_rest_and_predict_all_but_the_first_token() -> None:
    lm = language_model()
    text = "the quick brown fox jumps over"
    windows = lm.perplexity([text], window=8, style="disjoint")
    assert [w.tokens for w in windows] == [7] * (len(ids(text)) // 8)
    for at, window in enumerate(windows):
        part = ids(text)[8 * at : 8 * at + 8]
        assert window.loss == pytest.approx(-plain_loglikelihood(lm, part[:1], part[1:]), abs=TOLERANCE)


def test_a_window_larger_than_the_models_is_refused() -> None:
    with pytest.raises(BadInput, match="window of 4096 tokens does not fit"):
        language_model().perplexity(["abc"], window=4096)


# -- generation

PROMPTS = ["a", "hello world", "x" * 50, "the answer is", "1 + 1 ="]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_generation_is_the_argmax_of_full_forwards(architecture: str) -> None:
    lm = language_model(architecture)
    expected = [plain_greedy(lm, prompt, 12) for prompt in PROMPTS]
    found = lm.generate(PROMPTS, stop=[], max_new_tokens=12)
    for tokens, (completion,) in zip(expected, found, strict=True):
        assert completion.text == text_of(tokens) and completion.tokens == len(tokens)
        assert completion.finish == ("length" if len(tokens) == 12 else "end")


def text_of(tokens: list[int]) -> str:
    return str(tiny_tokenizer().decode(tokens, skip_special_tokens=True))


@pytest.mark.parametrize("tokens_per_batch", [1, 100, 100_000])
@pytest.mark.parametrize("sampling", [None, Sampling(samples=3, seed=7)])
def test_generation_does_not_depend_on_the_batch(tokens_per_batch: int, sampling: Sampling | None) -> None:
    expected = language_model().generate(PROMPTS, ["q"], 10, sampling)
    assert language_model(tokens_per_batch=tokens_per_batch).generate(PROMPTS, ["q"], 10, sampling) == expected


def test_text_ends_before_the_first_stop_string() -> None:
    lm = language_model()
    ((whole,),) = lm.generate(["hello"], stop=[], max_new_tokens=20)
    stop = next(c for c in whole.text if c.isprintable())
    ((cut,),) = lm.generate(["hello"], stop=["never", stop], max_new_tokens=20)
    assert cut.text == whole.text[: whole.text.index(stop)] and cut.finish == "stop"
    assert cut.tokens <= whole.tokens


def test_prompts_may_stop_at_different_lengths() -> None:
    lm = language_model()
    asked = [Prompt(text, (), n) for text, n in zip(PROMPTS, (1, 12, 3, 7, 12), strict=True)]
    found: dict[int, list[Completion]] = {}
    for batch in lm.generate_batches(asked):
        found.update(batch)
    for at, prompt in enumerate(asked):
        assert found[at] == lm.generate([prompt.text], [], prompt.max_new_tokens)[0]


def test_a_prompt_beyond_the_window_is_cut_on_the_left_and_counted() -> None:
    ((completion,),) = language_model().generate(["ab" * 300], stop=[], max_new_tokens=12)
    assert completion.truncated == 600 + 12 - 512
    with pytest.raises(BadInput, match="leave no room"):
        language_model().generate(["a"], stop=[], max_new_tokens=512)


def test_an_empty_prompt_is_not_cut() -> None:
    lm = language_model()
    assert lm._encode([""]) == [[]]  # the tokenizer adds no BOS
    (answers,) = lm.generate([""], (), 3)
    assert answers[0].truncated == 0


def test_sampling_from_the_very_top_is_greedy() -> None:
    lm = language_model()
    greedy = lm.generate(PROMPTS, [], 10)
    assert [s[:1] for s in lm.generate(PROMPTS, [], 10, Sampling(temperature=1.0, top_p=1e-9))] == greedy


def test_samples_follow_the_models_distribution() -> None:
    """Frequencies of 4000 first tokens against the softmax at that temperature: within five standard errors."""
    lm, n = language_model(), 4000
    (drawn,) = lm.generate(["hello"], [], 1, Sampling(temperature=0.7, top_p=1.0, samples=n))
    with torch.inference_mode():
        share = (lm.model(input_ids=torch.tensor([ids("hello")])).logits[0, -1].double() / 0.7).softmax(-1).numpy()
    for token in np.argsort(-share)[:20]:
        text = text_of([int(token)])
        if text.isascii() and text.isprintable() and text:  # half a character is not told from another half
            found = sum(c.text == text for c in drawn) / n
            assert abs(found - share[token]) < 5 * math.sqrt(share[token] * (1 - share[token]) / n)


@pytest.mark.parametrize("top_p", [0.05, 0.3, 0.8, 0.95])
def test_samples_come_from_the_smallest_set_of_that_probability(top_p: float) -> None:
    """Chi-square of 20,000 draws from twenty tokens, two of them equal, against the set cut by hand."""
    share = np.array([0.2, 0.13, 0.13, *[0.04] * 9, *[0.0225] * 8])
    place = np.random.default_rng(0).permutation(len(share))
    expected = np.zeros(len(share))
    order = np.lexsort((place, -share))  # likelier first, of equals the lower id
    kept = np.cumsum(share[order]) - share[order] < top_p
    expected[place[order[kept]]] = share[order[kept]] / share[order[kept]].sum()
    n = 20_000
    logits = torch.zeros(len(share), dtype=torch.double)
    logits[torch.from_numpy(place)] = torch.from_numpy(np.log(share))
    choose = _Chooser(Sampling(temperature=1.0, top_p=top_p), [(0, at) for at in range(n)])
    found = np.bincount(choose(logits.expand(n, 1, -1), range(n))[:, 0].numpy(), minlength=len(share))
    assert found[expected == 0].sum() == 0
    inside = expected > 0
    if inside.sum() > 1:
        assert scipy.stats.chisquare(found[inside], n * expected[inside]).pvalue > 1e-4


def test_a_row_draws_the_same_in_any_company() -> None:
    logits = torch.randn(6, 1, 50, generator=torch.Generator().manual_seed(0))
    rows = [(at, 0) for at in range(6)]
    sampling = Sampling(temperature=2.0, top_p=0.2)  # most draws are rejected
    together = _Chooser(sampling, rows)
    apart = [_Chooser(sampling, rows) for _ in rows]
    for _ in range(20):
        alone = [int(choose(logits[[at]], [at])[0]) for at, choose in enumerate(apart)]
        assert together(logits, range(6))[:, 0].tolist() == alone


def test_other_seeds_give_other_samples() -> None:
    lm = language_model()
    first, second = (lm.generate(PROMPTS, [], 10, Sampling(seed=seed)) for seed in (0, 1))
    assert first != second and first == lm.generate(PROMPTS, [], 10, Sampling(seed=0))


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"samples": 0}])
def test_sampling_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="sampling needs"):
        Sampling(**wrong)


# -- going on, and identity


def collected(batches: Callable[[list[int]], Any]) -> None:
    """What is left after some positions is computed in the same batches, bit for bit."""
    whole: dict[int, Any] = {}
    for batch in batches([]):
        whole.update(batch)
    done = sorted(whole)[::3]
    rest: dict[int, Any] = {}
    for batch in batches(done):
        rest.update(batch)
    assert set(rest) >= set(whole) - set(done)
    assert all(whole[at] == answer for at, answer in rest.items())
    assert list(batches(sorted(whole))) == []


def test_an_interrupted_run_goes_on_bit_for_bit() -> None:
    lm, pairs = language_model(tokens_per_batch=300), some_pairs()
    collected(lambda done: lm.loglikelihood_batches(pairs, done))
    collected(lambda done: lm.perplexity_batches(["abc" * 9, "defg" * 20], 16, "rolling", done))
    collected(lambda done: lm.generate_batches([Prompt(p, ("q",), 8) for p in PROMPTS], None, done))


def test_the_fingerprint_names_weights_tokenizer_and_way_of_computing() -> None:
    same = {language_model().fingerprint for _ in range(2)}
    assert len(same) == 1
    other = tiny_transformer("mixtral", seed=1)
    assert LanguageModel(other, tiny_tokenizer()).fingerprint not in same
    assert language_model(prefix_sharing=False).fingerprint not in same
    assert language_model(identity="mine").identity == "mine"


def test_rows_decoded_at_once_are_those_decoded_one_by_one() -> None:
    lm = language_model()
    rows = [ids("hello"), ids("a  b\n c"), [lm.tokenizer.eos_token_id, *ids(" x")], []]
    assert lm._usual_tokenizer("batch_decode", "decode", "_decode")
    theirs = lm.tokenizer.batch_decode(rows, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert lm._decode(rows) == theirs == ["hello", "a  b\n c", " x", ""]


@pytest.mark.parametrize("special", [True, False])
def test_texts_encoded_at_once_are_those_of_the_tokenizer(special: bool) -> None:
    lm = language_model()
    texts = ["hello", "", "a  b\n c", f"x{lm.tokenizer.eos_token}y", "ünï"]
    expected = lm.tokenizer(texts, add_special_tokens=special)["input_ids"]
    assert lm._usual_tokenizer("__call__", "_encode_plus")
    assert lm._ids(texts, special) == expected
    lm.tokenizer.backend_tokenizer.enable_truncation(1)  # which a tokenizer may bring along
    lm.tokenizer.backend_tokenizer.enable_padding()
    assert lm._ids(texts, special) == expected
