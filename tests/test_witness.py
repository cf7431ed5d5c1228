"""Some answers are computed again in the plain way; a fast way that gives others, or fails, is given up and named."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import LATENT_ATTENTION, LINEAR_ATTENTION, tiny_model, tiny_tokenizer, tiny_transformer

from mcbench.catalogue import task_with
from mcbench.evaluation import BATCHES, DRAFTS, LAST_LAYER, LanguageModel, LogLikelihood, Prompt, Sampling, _Apart
from mcbench.routing import PairCounts
from mcbench.task import score_choices
from mcbench.witness import TOLERANCE, Answered, merged, noted, sound, watched

LONGROPE: dict[str, Any] = {
    "original_max_position_embeddings": 64,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "long_factor": [1.0, 3.0, 8.0, 16.0],
        "short_factor": [1.0] * 4,
        "long_mscale": 1.2,
        "short_mscale": 1.0,
        "original_max_position_embeddings": 64,
    },
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "longrope": ("phimoe", LONGROPE),
    "sparse attention": (
        "deepseek_v32",
        {**LATENT_ATTENTION, "index_topk": 16, "index_n_heads": 4, "index_head_dim": 16},
    ),
    "a cache of its own": ("deepseek_v4", {}),
    "convolutions in attention": ("zaya", {"num_experts_per_tok": 1}),
    "convolutions and biases": ("inkling2_text", {}),
    "linear attention alone": ("qwen3_next", {**LINEAR_ATTENTION, "layer_types": ["linear_attention"] * 3}),
}


def some_pairs(seed: int = 0) -> list[tuple[str, str]]:
    """Contexts of 20 to 100 bytes with a shared beginning, each with two continuations."""
    rng = random.Random(seed)

    def text(n: int) -> str:
        return "".join(rng.choice("abcdefgh") for _ in range(n))

    shared = text(18)
    return [(f"{shared} {text(n)}", f" {text(k)}") for n in (2, 30, 40, 41, 82) for k in (2, 13)]


def plain_value(lm: LanguageModel, context: str, text: str) -> float:
    """By one forward over the whole text, with the model's own attention."""
    before, after = (tiny_tokenizer().encode(part, add_special_tokens=False) for part in (context, text))
    with torch.inference_mode():
        logits = lm.model(input_ids=torch.tensor([[*before, *after[:-1]]]), use_cache=False).logits[0].double()
    scored = logits.log_softmax(-1)[len(before) - 1 :]
    return float(scored.gather(1, torch.tensor(after)[:, None]).sum())


def generated(lm: LanguageModel, prompt: str, new: int) -> str:
    ids = torch.tensor([tiny_tokenizer().encode(prompt, add_special_tokens=False)])
    found = lm.model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False, pad_token_id=0,
        use_cache=lm._plain.caches,
    )  # fmt: skip
    return str(tiny_tokenizer().decode(found[0, ids.shape[1] :], skip_special_tokens=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_long_and_short_texts_are_what_plain_forwards_and_generate_make_of_them(family: str) -> None:
    architecture, overrides = FAMILIES[family]
    lm = LanguageModel(tiny_transformer(architecture, **overrides), tiny_tokenizer())
    pairs = some_pairs()
    together = lm.loglikelihoods(pairs)
    for pair, found in zip(pairs, together, strict=True):
        assert found.value == pytest.approx(plain_value(lm, *pair), abs=1e-4)
        assert lm.loglikelihoods([pair])[0].value == pytest.approx(found.value, abs=1e-4)
    prompts = [context for context, _ in pairs[::4]]
    for prompt, (written,) in zip(prompts, lm.generate(prompts, [], 12), strict=True):
        assert written.text == generated(lm, prompt, 12)


def test_a_cache_whose_rows_cannot_be_copied_is_read_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_transformer("olmoe")

    def refuse(*_: Any) -> None:
        raise RuntimeError("no")

    from transformers.cache_utils import DynamicCache

    monkeypatch.setattr(DynamicCache, "batch_select_indices", refuse)
    lm = LanguageModel(model, tiny_tokenizer())
    assert lm.settings()["prefix_sharing"] == "none"
    for pair in (pairs := some_pairs()):
        assert lm.loglikelihoods(pairs)[pairs.index(pair)].value == pytest.approx(plain_value(lm, *pair), abs=1e-4)


def test_a_model_whose_answers_depend_on_the_batch_is_asked_one_text_at_a_time() -> None:
    model = tiny_transformer("mixtral")
    model.get_output_embeddings().register_forward_hook(
        lambda _module, _args, out: out + 0.1 * out.shape[0] * torch.arange(out.shape[-1]) / out.shape[-1]
    )
    lm = LanguageModel(model, tiny_tokenizer())
    assert lm.settings()["prefix_sharing"] == "one text at a time" and BATCHES in lm.given_up
    pairs = some_pairs()
    for pair, found in zip(pairs, lm.loglikelihoods(pairs), strict=True):
        assert found.value == pytest.approx(plain_value(lm, *pair), abs=1e-4)


def spoil(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, hits: Any) -> None:
    """Makes the fast path wrong wherever `hits` says so of a forward's ids, positions and arguments."""
    forward = lm._forward

    def wrong(ids: Any, mask: Any, position: Any, **options: Any) -> Any:
        out = forward(ids, mask, position, **options)
        if hits(ids, position, options):
            out.logits = out.logits * 1.5
        return out

    monkeypatch.setattr(lm, "_forward", wrong)


def test_what_is_wrong_for_long_texts_alone_is_found_and_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = LanguageModel(tiny_transformer("olmoe"), tiny_tokenizer())
    assert not lm.given_up
    spoil(lm, monkeypatch, lambda _ids, position, _options: int(position.max()) > 60)
    pairs = some_pairs()
    for pair, found in zip(pairs, lm.loglikelihoods(pairs), strict=True):
        assert found.value == pytest.approx(plain_value(lm, *pair), abs=1e-4)
    assert BATCHES in lm.given_up and not lm.restarts


def test_the_shortcut_that_is_wrong_is_the_one_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = LanguageModel(tiny_transformer("olmoe"), tiny_tokenizer())
    spoil(lm, monkeypatch, lambda ids, _position, options: lm._last is not None and options.get("keep", 0) > 0)
    pairs = some_pairs()
    for pair, found in zip(pairs, lm.loglikelihoods(pairs), strict=True):
        assert found.value == pytest.approx(plain_value(lm, *pair), abs=1e-4)
    assert lm.given_up == [LAST_LAYER] and lm.sharing == "trie"
    writer = LanguageModel(tiny_transformer("olmoe"), tiny_tokenizer())
    spoil(writer, monkeypatch, lambda _ids, _position, _options: writer.drafts)
    prompts = [context for context, _ in pairs[::2]]
    for prompt, (written,) in zip(prompts, writer.generate(prompts, [], 12), strict=True):
        assert written.text == generated(writer, prompt, 12)
    assert writer.given_up == [DRAFTS]


def test_answers_handed_out_before_a_fault_shows_are_handed_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = LanguageModel(tiny_transformer("olmoe"), tiny_tokenizer(), tokens_per_batch=1)
    rng = random.Random(1)
    pairs = [("".join(rng.choice("abcdefgh") for _ in range(40 - n)), " ab") for n in range(12)]
    _, drawn, *_ = watched([len(c) + len(t) - 1 for c, t in pairs], range(len(pairs)))
    length = len(pairs[drawn][0]) + 2
    spoil(lm, monkeypatch, lambda ids, _position, _options: ids.shape[1] == length)
    found: dict[int, float] = {}
    answered = 0
    for batch in lm.loglikelihood_batches(pairs):
        answered += len(batch)
        found.update({at: score.value for at, score in batch.items()})
    assert lm.restarts == 1 and answered > len(pairs) and BATCHES in lm.given_up
    for at, pair in enumerate(pairs):
        assert found[at] == pytest.approx(plain_value(lm, *pair), abs=1e-4)


def test_a_fault_found_after_an_interruption_takes_back_what_was_answered_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_with("mini-mmlu", {})

    def run(sink: Path, faulty: int | None = None) -> tuple[LanguageModel, list[int]]:
        lm = LanguageModel(tiny_transformer("olmoe"), tiny_tokenizer(), tokens_per_batch=1)
        pairs: list[int] = []
        compared = lm._compared

        def spoilt(at: int, *args: Any, **options: Any) -> Any:
            pairs.append(at)
            if at == faulty and lm.sharing != "none":
                raise _Apart(at)
            return compared(at, *args, **options)

        monkeypatch.setattr(lm, "_compared", spoilt)
        task.evaluate(lm, limit=6, sink=sink)
        return lm, pairs

    _, watched_pairs = run(tmp_path / "sound.jsonl")
    late = watched_pairs[-1]
    whole, _ = run(tmp_path / "whole.jsonl", late)
    lines = (tmp_path / "whole.jsonl").read_bytes()
    sound = (tmp_path / "sound.jsonl").read_bytes()
    assert whole.restarts == 1 and lines != sound
    kept = sound.splitlines(keepends=True)
    found_out = max(n for n, line in enumerate(kept) if b'"witness"' in line)
    for before in {2, found_out}:  # samples of the fast way, kept before its fault showed
        sink = tmp_path / f"after-{before}.jsonl"
        sink.write_bytes(b"".join(kept[:before]))
        run(sink, late)
        assert sink.read_bytes() == lines


def test_what_is_answered_anew_is_not_joined_with_what_was_answered_before() -> None:
    class Restarting:
        """Answers half of an item, then all of it anew, in another order."""

        restarts = 0
        window = 64

        def loglikelihood_batches(self, pairs: Any, done: Any) -> Any:
            yield Answered({0: LogLikelihood(-1.0, 1, False, 0)})
            self.restarts = 1
            yield Answered({1: LogLikelihood(-20.0, 1, False, 0)})
            yield Answered({0: LogLikelihood(-10.0, 1, False, 0)})

    found: dict[int, Any] = {}
    lm: Any = Restarting()
    for batch in score_choices(lm, [[("a", "b"), ("a", "c")]], ()):
        found.update(batch)
    assert [score.value for score in found[0]] == [-10.0, -20.0]

    class Cut(LanguageModel):
        def _score(self, requests: Any, done: Any) -> Any:
            assert len(requests) == 2
            yield from Restarting.loglikelihood_batches(self, requests, done)  # type: ignore[arg-type]

    text = Cut(tiny_transformer("olmoe"), tiny_tokenizer(), check=False)
    (joined,) = [score for batch in text.text_batches(["a" * 60], 32) for score in batch.values()]
    assert joined.value == -30.0


@pytest.mark.parametrize("sampling", [None, Sampling(samples=2)])
def test_every_call_has_its_witness(sampling: Sampling | None) -> None:
    lm = LanguageModel(tiny_transformer("qwen2_moe"), tiny_tokenizer())
    pairs = some_pairs()
    batches: list[Any] = [
        *lm.loglikelihood_batches(pairs),
        *lm.perplexity_batches(["abcdefgh" * 20], 32),
        *lm.perplexity_batches(["abcdefgh" * 20], 32, "disjoint"),
        *lm.text_batches(["abc" * 30, "dd"], 32),
        *lm.generate_batches([Prompt(c, ("q",), 9) for c, _ in pairs], sampling),
    ]
    facts = [noted(batch, at)["witness"] for batch in batches for at in batch if noted(batch, at)]
    assert len(facts) >= 5 + 5 and all(map(sound, facts))
    assert 0 < merged(facts)["nats_per_token"] < 1e-5 < merged(facts)["tolerance"] == TOLERANCE


def test_the_longest_is_watched_and_a_few_others_at_random() -> None:
    length = [5, 900, 7, 900, *range(10, 1000, 9)]
    first, *others = watched(length, range(len(length)))
    assert length[first] == max(length) and 1 <= len(others) <= 3 and first not in others
    assert watched(length, range(len(length))) == [first, *others]
    assert watched(length, [0]) == [0] and watched(length, []) == []


def test_in_16_bits_the_measure_is_what_padding_alone_does(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = tiny_transformer("olmoe")
    lm = LanguageModel(model.to(torch.bfloat16), tiny_tokenizer())
    context, tokens = list(range(10, 60)), list(range(60, 70))
    plain, _ = lm._plain.scores(context, tokens)
    assert 0 <= lm._plain.apart_from_itself(context, tokens) < 1
    monkeypatch.setattr(lm._plain, "apart_from_itself", lambda *_, **__: 0.02)
    found = lm._compared(0, context, tokens, plain + 0.05)
    assert found["tolerance"] == pytest.approx(0.06) and found["nats_per_token"] == pytest.approx(0.05)
    with pytest.raises(_Apart):
        lm._compared(0, context, tokens, plain + 0.07)


@pytest.mark.parametrize("family", ["olmoe", "longrope"])
def test_what_rounding_does_is_measured_in_few_forwards_within_the_place_of_the_text(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    architecture, overrides = FAMILIES.get(family, (family, {}))
    lm = LanguageModel(tiny_transformer(architecture, **overrides), tiny_tokenizer())
    length = lm._plain.alike_up_to or lm.window  # whatever is added, no place may lie beyond
    context, tokens = [7], [5 + n % 90 for n in range(length)]
    asked: list[tuple[int, int, int]] = []
    forward = lm.model.forward

    def counted(*args: Any, **options: Any) -> Any:
        out = forward(*args, **options)
        asked.append((*options["input_ids"].shape, out.logits.shape[1]))
        return out

    monkeypatch.setattr(lm.model, "forward", counted)
    assert lm._plain.apart_from_itself(context, tokens) < 1e-4  # in float32 there is next to no rounding
    assert len(asked) <= 20 and max(logits for *_, logits in asked) <= length
    asked.clear()
    lm._plain.apart_from_itself(context, tokens, enough=0.0, at_once=length + 1)
    assert [(rows, width) for rows, width, _ in asked] == [(1, length), (1, length + 1)]


def test_what_is_computed_for_comparison_is_not_counted() -> None:
    moe = tiny_model("olmoe")
    with moe.route(lambda choices: choices.keep(choices.chosen)) as counts:
        counted = []
        for witness in (False, True):
            settings: dict[str, Any] = {"shortcuts": False, "witness": witness, "aside": counts.aside}
            lm = LanguageModel(moe.model, moe.tokenizer, **settings)
            counts.clear()
            lm.loglikelihoods(some_pairs())
            lm.generate([context for context, _ in some_pairs()], [], 5)
            counted.append(counts.tables())
    assert counted[0] == counted[1] and isinstance(counts, PairCounts)


def test_samples_carry_what_was_found_and_a_run_that_goes_on_has_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def model() -> LanguageModel:
        lm = LanguageModel(tiny_transformer("olmoe"), tiny_tokenizer(), tokens_per_batch=400)
        spoil(lm, monkeypatch, lambda _ids, _position, options: lm._last is not None and options.get("keep", 0) > 0)
        return lm

    task = task_with("mini-mmlu", {})
    whole = task.evaluate(model(), limit=12, sink=tmp_path / "whole.jsonl")
    assert whole.details["witness"]["given_up"] == [LAST_LAYER] and whole.details["witness"]["requests"] >= 2
    lines = (tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "part.jsonl").write_bytes(b"".join(lines[: len(lines) // 2]))
    again = model()
    resumed = task.evaluate(again, limit=12, sink=tmp_path / "part.jsonl")
    assert (tmp_path / "part.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert dataclasses.replace(resumed, seconds=0) == dataclasses.replace(whole, seconds=0)
    assert again.given_up == [LAST_LAYER]
