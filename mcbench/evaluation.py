"""Runs a causal language model for the tasks: log-likelihoods, perplexity and generation, in as few tokens as is exact.

Requests that share a context run it once and reuse its key-value cache; logits are computed only where they are
scored; a batch holds a number of tokens, not of requests. The fast path is compared with a plain forward at the start,
and again on some of the requests of each call, the longest among them.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import inspect
import json
import math
import statistics
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from mcbench.caches import joined_cache, rows_of_cache, widened
from mcbench.drafts import LONGEST, Drafts, accepted
from mcbench.errors import BadInput, CheckFailed
from mcbench.lastlayer import last_layer, only_last
from mcbench.logits import greatest_logit, token_loglikelihoods
from mcbench.plain import Plain, per_token
from mcbench.prefixes import Node, Sharing, plan
from mcbench.progress import inner
from mcbench.stand_in import additive, attention_of
from mcbench.tokens import require_fit
from mcbench.trunk import IMPLEMENTATION, SUPPORTED, attending
from mcbench.witness import TIMES_PLAIN, TOLERANCE, Answered, merged, watched

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

T = TypeVar("T")

PADDING = 512  # tokens of padding in a batch: about what another forward costs on top of its tokens
TEXTS_AT_A_TIME = 1024  # for the tokenizer, so that its progress shows
DRAWS = 4  # of a token, before a vocabulary is sorted instead
# settings that an answer may depend on in its last bits, and our modules that it goes through
COMPUTING = (
    "dtype", "experts_implementation", "attention_implementation", "window", "tokens_per_batch", "prefix_sharing",
    "drafts", "device", "computed_by",
)  # fmt: skip
OWN_CODE = (
    "attention", "caches", "drafts", "evaluation", "experts", "lastlayer", "logits", "model", "plain", "policy",
    "prefixes", "router", "routing", "stand_in", "trunk", "witness",
)  # fmt: skip
CACHE_SHARE = 8  # a cached token counts as this fraction of one that is computed when a batch is filled

# what makes an evaluation fast, by the names under which a record says that it was given up
LAST_LAYER = "the last layer only where it is read"
DRAFTS = "drafts"
HELD_ONCE = "a shared beginning held once for all texts"
TRIE = "shared beginnings in several levels"
ONE_LEVEL = "shared beginnings in one level"
WRITING = "several texts written in one batch"
BATCHES = "several texts in one batch"
WRITING_ALONE = (DRAFTS, HELD_ONCE, WRITING)
EVERYTHING = (LAST_LAYER, DRAFTS, HELD_ONCE, TRIE, ONE_LEVEL, WRITING, BATCHES)
# what the check at the start does without, one after the other, until a way works
LADDER = ((LAST_LAYER,), (HELD_ONCE, TRIE), (HELD_ONCE, TRIE, ONE_LEVEL), WRITING_ALONE,
          (HELD_ONCE, TRIE, ONE_LEVEL, *WRITING_ALONE), EVERYTHING)  # fmt: skip
WAYS = ("sharing", "drafts", "_last", "_holds_once", "_selects_rows", "_alone", "_writes_alone")

WindowStyle = Literal["rolling", "disjoint"]


class LogLikelihood(NamedTuple):
    """How likely a continuation is after its context."""

    value: float  # natural logarithm, summed over the continuation's tokens
    tokens: int
    greedy: bool  # every token is the most likely one
    truncated: int  # tokens of the context dropped from the left because the model's window is full


class WindowLoss(NamedTuple):
    """The loss of one window of a text; words and bytes are those of the whole text, given with its first window."""

    text: int
    loss: float  # nats, summed over the scored tokens
    tokens: int
    words: int
    bytes: int


class Completion(NamedTuple):
    """What the model wrote after a prompt, cut before the first stop string."""

    text: str
    tokens: int
    finish: Literal["stop", "end", "length"]  # a stop string, the end-of-text token, or no token left to write
    truncated: int


@dataclass(frozen=True)
class Prompt:
    """A text to continue until one of the stop strings, the end-of-text token or `max_new_tokens`."""

    text: str
    stop: tuple[str, ...]
    max_new_tokens: int


@dataclass(frozen=True)
class Sampling:
    """Random continuation: each token from the smallest set of probability `top_p` at this temperature.

    Every (prompt, sample) has its own random stream, so that the result does not depend on how prompts are batched.
    """

    temperature: float = 0.8
    top_p: float = 0.95
    samples: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature <= 0 or not 0 < self.top_p <= 1 or self.samples < 1:
            raise BadInput(f"sampling needs temperature > 0, 0 < top_p <= 1 and samples >= 1, not {self}")


@dataclass(frozen=True)
class _Request:
    context: tuple[int, ...]
    continuation: tuple[int, ...]
    truncated: int


@dataclass(frozen=True)
class _Trunk:
    """Texts in a key-value cache, padded to `width`, and the row of the cache that a node comes after."""

    cache: Any
    mask: Tensor | None  # [rows, width]; none where nothing is padded
    width: int
    parent: dict[int, int]  # id of a node -> row
    tokens: Sequence[int] = ()  # of the text, where it is the only one


class _Batch:
    """Rows that are written together: their cache, and where the next tokens of each stand.

    mask [rows, tokens in the cache]; position [rows, 1] of the first new token. All rows go on where the longest ends,
    or each where its own text ends, in the `room` tokens after that, where there are any.
    """

    def __init__(self, cache: Any, mask: Tensor, position: Tensor, window: int, room: int) -> None:
        self.cache = cache
        self._width, self._window, self._apart = mask.shape[1], window, room > 0
        self._mask = torch.cat([mask, mask.new_ones(len(mask), room)], dim=1)
        self._position = position

    def keep(self, rows: Tensor) -> None:
        """Only these rows."""
        self.cache = rows_of_cache(self.cache, rows, last=True)
        self._mask, self._position = self._mask[rows], self._position[rows]

    def next(self, written: Sequence[int], width: int) -> tuple[Tensor, Tensor]:
        """Mask and positions [rows, width] of the next tokens, to be asked once before they are read.

        written: how many of the new tokens that have been read stay, for each row. The mask is
        [rows, tokens in the cache], or [rows, 1, width, tokens in the cache] where each row goes on by itself.
        """
        before = self._mask.new_tensor(written)[:, None]  # [rows, 1]
        step = torch.arange(width, device=before.device)
        # a draft that could not stay anyway may lie beyond the window
        position = (self._position + before + step).clamp(max=self._window - 1)
        if not self._apart:
            self._mask = torch.cat([self._mask, self._mask.new_ones(len(before), width)], dim=1)
            return self._mask, position
        used = self._width + max(written) + width
        places = self._width + before + step
        for layer in self.cache.layers:
            layer.place(places, used)
        earlier = torch.arange(used, device=before.device) <= places[:, :, None]
        return (self._mask[:, None, :used].bool() & earlier)[:, None], position


class _Asked(NamedTuple):
    """Prompts to continue: their tokens as far as they fit, and how many were dropped from the left."""

    prompts: Sequence[Prompt]
    kept: Sequence[Sequence[int]]
    truncated: Sequence[int]  # an empty prompt is asked as one token, which drops none
    sampling: Sampling | None


class _Apart(Exception):
    """An answer of the fast path that differs from the plain one: of the request or prompt at this position."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at


class _Spots(NamedTuple):
    """Where a batch of nodes predicts tokens that are scored: one entry for every request and token."""

    request: list[int]
    row: list[int]
    at: list[int]  # position in the whole sequence of the token read last
    target: list[int]
    first: list[int]  # [rows], the first such position of each node, or its end


class _Sums:
    """The log-likelihoods of requests, summed as the nodes they pass through are computed.

    Of the `watched` ones each token's is kept: `tokens` gives them in order, in nats.
    """

    def __init__(self, requests: Sequence[_Request], watched: Collection[int] = ()) -> None:
        self._requests = requests
        self._apart: dict[int, dict[int, float]] = {at: {} for at in watched}
        self._value = [0.0] * len(requests)
        self._greedy = [True] * len(requests)
        self._left = [len(request.continuation) for request in requests]

    def spots(self, nodes: Sequence[Node]) -> _Spots:
        """What these nodes predict of their members' continuations."""
        found = _Spots([], [], [], [], [node.end for node in nodes])
        for row, node in enumerate(nodes):
            for request in node.members:
                context, continuation = self._requests[request].context, self._requests[request].continuation
                before = len(context) - 1  # the position that predicts the continuation's first token
                low, high = max(node.start, before), min(node.end, before + len(continuation))
                if low < high:
                    found.request.extend([request] * (high - low))
                    found.row.extend([row] * (high - low))
                    found.at.extend(range(low, high))
                    found.target.extend(continuation[low - before : high - before])
                    found.first[row] = min(found.first[row], low)
        return found

    def add(self, spots: _Spots, value: np.ndarray, best: np.ndarray) -> None:
        """Adds the values (nats) of scored tokens, and whether each is the most likely, both [N]."""
        for request, at, nats, likeliest in zip(spots.request, spots.at, value.tolist(), best.tolist(), strict=True):
            if request in self._apart:
                self._apart[request][at] = nats
            self._value[request] += nats
            self._greedy[request] &= likeliest
            self._left[request] -= 1

    def tokens(self, request: int) -> np.ndarray:
        """[N] of a watched request that is finished."""
        return np.array([nats for _, nats in sorted(self._apart[request].items())])

    def finished(self, members: Iterable[int]) -> dict[int, LogLikelihood]:
        """Those of the members whose every token has been scored."""
        return {
            at: LogLikelihood(
                self._value[at], len(self._requests[at].continuation), self._greedy[at], self._requests[at].truncated
            )
            for at in sorted(members)
            if self._left[at] == 0
        }


class LanguageModel:
    """A causal transformers model and its tokenizer, as the tasks see them.

    `identity` names the weights (for a compressed model: its digest); without it the weights are hashed when needed.
    `tokens_per_batch` bounds the padded tokens of one forward. `prefix_sharing=False` computes every context anew, for
    models whose routing looks at later tokens.
    `causal=False` says that it does: then text written with a cache differs from a forward over the finished text, and
    the check at the start leaves writing out. `shortcuts=False` takes every token once through every layer: for whoever
    counts or changes what the model does for a token. Otherwise greedy texts are written with drafts, which are
    computed as well where they do not come true, and the last layer is left out where nobody reads what it makes.

    The check at the start finds the first way that works and gives what a plain forward gives, within `tolerance` (nats
    per token; in 16 bits a rounded router may choose other experts): shared beginnings in several levels, in one, in
    none, and one text at a time. In each call the longest request and a few others are computed once more in the plain
    way (see `mcbench.witness`) unless `witness=False`; what differs is given up, and the answers are computed again.
    `given_up` names all of that. `restarts` counts how often answers that had been handed out were computed again: they
    are then handed out anew, every one. What is computed for comparison alone runs inside `aside()`.

    Raises BadInput for a model without tokenizer, and for one that computes no finite number in any way.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        *,
        identity: str = "",
        tokens_per_batch: int = 8192,
        prefix_sharing: bool = True,
        causal: bool = True,
        shortcuts: bool = True,
        check: bool = True,
        witness: bool = True,
        aside: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
    ) -> None:
        if tokenizer is None:
            raise BadInput("the model has no tokenizer: put its tokenizer files beside its weights")
        require_fit(tokenizer, model, str(model.config.name_or_path) or type(model).__name__)
        if tokens_per_batch < 1:
            raise BadInput(f"tokens_per_batch must be positive, not {tokens_per_batch}")
        self.model: Any = model.eval()
        self.tokenizer: Any = tokenizer
        self.tokens_per_batch = tokens_per_batch
        self.window = _window(model, tokenizer)
        self._exact = model.dtype in (torch.float32, torch.float64)
        self.tolerance = 2e-3 if self._exact else 0.5
        self._identity = identity
        self._causal = causal
        self._cut: tuple[object, list[tuple[int, _Request]]] | None = None
        self._accepts = set(inspect.signature(model.forward).parameters)
        self._witness, self._aside = False, aside  # nothing is watched before a way is found
        self._plain = Plain(model, self.window)
        self.given_up: list[str] = []
        self.restarts = 0
        self._alone = self._writes_alone = False
        self._own_masks, self._last = False, None
        self._selects_rows, self._keeps_all = self._probe_cache()
        self.sharing: Sharing = "trie" if self._keeps_all else "one level"
        if not (prefix_sharing and self._selects_rows):
            self.sharing = "none"
        self._holds_once = self.sharing == "trie" and self._probe_trunk()
        self._own_masks = self._keeps_all and self._probe_masks()
        self.drafts = shortcuts and causal and self._own_masks
        self._last = self._probe_last() if shortcuts and causal else None
        self.check_difference = self._settle() if check else None
        self._witness = witness

    # -- what it is

    @functools.cached_property
    def identity(self) -> str:
        """A name for the weights: the one given, or the SHA-256 of every parameter and buffer."""
        return self._identity or weights_digest(self.model)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all that an answer could depend on to the last bit: weights, tokenizer, precision, computing."""
        return fingerprint_of(self.identity, self.tokenizer, self.settings())

    def settings(self) -> dict[str, Any]:
        """How answers are computed, for the record."""
        return {
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "experts_implementation": getattr(self.model.config, "_experts_implementation", None),
            "attention_implementation": getattr(self.model.config, "_attn_implementation", None),
            "window": self.window,
            "tokens_per_batch": self.tokens_per_batch,
            "prefix_sharing": "one text at a time" if self._alone else self.sharing,
            "drafts": self.drafts and not self._writes_alone,
            "device": self.model.device.type,
            "computed_by": computed_by(),
            **({"alone_beyond": beyond} if (beyond := self._plain.alike_up_to) is not None else {}),
        }

    def give_up(self, names: Iterable[str]) -> None:
        """Goes on without these ways of being fast, by the names that `given_up` has."""
        for name in names:
            if name not in self.given_up and self._uses([name]):
                self.given_up.append(name)
            if name == LAST_LAYER:
                self._last = None
            elif name == DRAFTS:
                self.drafts = False
            elif name == HELD_ONCE:
                self._holds_once = False
            elif name == TRIE and self.sharing == "trie":
                self.sharing, self._holds_once = "one level", False
            elif name == ONE_LEVEL:
                self.sharing, self._holds_once, self._selects_rows = "none", False, False
            elif name == WRITING:
                self._writes_alone, self.drafts = True, False
            elif name == BATCHES:
                self._alone = True

    # -- log-likelihoods

    def loglikelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[LogLikelihood]:
        """The log-likelihood of each continuation after its context, in the order of the pairs."""
        found: dict[int, LogLikelihood] = {}
        for batch in self.loglikelihood_batches(pairs):
            found.update(batch)
        return [found[i] for i in range(len(pairs))]

    def loglikelihood_batches(
        self, pairs: Sequence[tuple[str, str]], done: Collection[int] = ()
    ) -> Iterator[Answered[LogLikelihood]]:
        """As `loglikelihoods`, batch by batch as they are computed; keys are positions in `pairs`.

        Batches depend on `pairs` alone; one whose positions are all in `done` is left out, so a resumed run computes
        bit for bit what an uninterrupted one computes.
        """
        yield from self._score(self._requests(pairs), frozenset(done))

    def perplexity(
        self, texts: Sequence[str], window: int | None = None, style: WindowStyle = "rolling"
    ) -> list[WindowLoss]:
        """The loss of every window of the texts; perplexity is exp(sum of losses / sum of tokens).

        "rolling" (lm-eval): every token of every text is scored once, a BOS that the tokenizer adds included, in
        windows of `window` predictions; the first token after BOS (or EOS), later windows after the last token of
        the one before, a last shorter window after as much text as fits. "disjoint" (GPTQ's evaluation): each text is
        cut into windows of `window` tokens, the rest dropped, and the first token of a window is not scored.
        """
        found: dict[int, WindowLoss] = {}
        for batch in self.perplexity_batches(texts, window, style):
            found.update(batch)
        return [found[i] for i in sorted(found)]

    def perplexity_batches(
        self,
        texts: Sequence[str],
        window: int | None = None,
        style: WindowStyle = "rolling",
        done: Collection[int] = (),
        most: int | None = None,
    ) -> Iterator[Answered[WindowLoss]]:
        """As `perplexity`, batch by batch; keys count the windows from 0 in the order of the texts.

        Only the first `most` windows are scored, where given. Raises BadInput where there is no window at all.
        """
        windows = self._windows(texts, window, style, most)
        first = {i: at for at, (i, _) in reversed(list(enumerate(windows)))}
        for batch in self._score([request for _, request in windows], frozenset(done)):
            losses = {
                at: WindowLoss(
                    windows[at][0],
                    -score.value,
                    score.tokens,
                    *(_words_and_bytes(texts[windows[at][0]]) if first[windows[at][0]] == at else (0, 0)),
                )
                for at, score in batch.items()
            }
            yield Answered(losses, batch.witness)

    def count_windows(
        self, texts: Sequence[str], window: int | None = None, style: WindowStyle = "rolling", most: int | None = None
    ) -> int:
        """How many windows `perplexity_batches` scores; raises BadInput as that does."""
        return len(self._windows(texts, window, style, most))

    def _windows(
        self, texts: Sequence[str], window: int | None, style: WindowStyle, most: int | None
    ) -> list[tuple[int, _Request]]:
        """Every window with the position of its text; those asked for last are kept, as they are counted first."""
        window = self._fit_window(window)
        key = (tuple(texts), window, style, most)
        if self._cut is None or self._cut[0] != key:
            cut = self._rolling if style == "rolling" else self._disjoint
            found = [(at, request) for at, text in enumerate(texts) for request in cut(text, window)][:most]
            self._cut = (key, found)
        if not self._cut[1]:
            raise BadInput(f"the text has fewer than {window} tokens, so it makes no window: choose a shorter window")
        return self._cut[1]

    def text_batches(
        self, texts: Sequence[str], window: int | None = None, done: Collection[int] = ()
    ) -> Iterator[Answered[LogLikelihood]]:
        """The log-likelihood of every whole text in rolling windows (see `perplexity`), as texts get complete.

        Keys are positions in `texts`; those in `done` may be left out.
        """
        window = self._fit_window(window)
        windows = [(at, request) for at, text in enumerate(texts) for request in self._rolling(text, window)]
        left = collections.Counter(at for at, _ in windows)
        sums: dict[int, dict[int, LogLikelihood]] = {}
        facts: dict[int, dict[int, dict[str, Any]]] = {}
        empty = {at: LogLikelihood(0.0, 0, True, 0) for at in range(len(texts)) if at not in left}
        if empty:
            yield Answered(empty)
        finished = frozenset(n for n, (at, _) in enumerate(windows) if at in done)
        restarts = self.restarts
        for batch in self._score([request for _, request in windows], finished):
            if self.restarts != restarts:
                restarts = self.restarts
                sums.clear()
                facts.clear()
            for n, score in batch.items():
                sums.setdefault(windows[n][0], {})[n] = score
            for n, fact in batch.witness.items():
                facts.setdefault(windows[n][0], {})[n] = fact
            full = [at for at in dict.fromkeys(windows[n][0] for n in batch) if len(sums[at]) == left[at]]
            if full:
                joined = {at: _joined([score for _, score in sorted(sums.pop(at).items())]) for at in full}
                yield Answered(joined, {at: merged(facts.pop(at).values()) for at in full if at in facts})

    # -- generation

    def generate(
        self, prompts: Sequence[str], stop: Sequence[str], max_new_tokens: int, sampling: Sampling | None = None
    ) -> list[list[Completion]]:
        """The continuations of each prompt: one, the greedy one, unless `sampling` asks for more."""
        found: dict[int, list[Completion]] = {}
        for batch in self.generate_batches([Prompt(p, tuple(stop), max_new_tokens) for p in prompts], sampling):
            found.update(batch)
        return [found[i] for i in range(len(prompts))]

    def generate_batches(
        self, prompts: Sequence[Prompt], sampling: Sampling | None = None, done: Collection[int] = ()
    ) -> Iterator[Answered[list[Completion]]]:
        """As `generate`, batch by batch; keys are positions in `prompts`; `done` as in `loglikelihood_batches`."""
        encoded = self._encode([p.text for p in prompts])
        kept = [self._fit_prompt(ids, p.max_new_tokens) for ids, p in zip(encoded, prompts, strict=True)]
        truncated = [max(0, len(ids) - len(own)) for ids, own in zip(encoded, kept, strict=True)]
        asked = _Asked(prompts, kept, truncated, sampling)
        length = [len(ids) + prompt.max_new_tokens for ids, prompt in zip(kept, prompts, strict=True)]
        yield from self._held_to_plain(
            functools.partial(self._written_together, asked, length),
            functools.partial(self._written_alone, asked),
            length,
            frozenset(done),
            [(DRAFTS,), (HELD_ONCE,), (DRAFTS, HELD_ONCE, TRIE), WRITING_ALONE],
        )

    def _written_together(
        self, asked: _Asked, length: Sequence[int], among: Sequence[int], done: frozenset[int], first: int | None
    ) -> Iterator[Answered[list[Completion]]]:
        """What is written after these prompts, batch by batch; raises _Apart as `_held_to_plain` wants it."""
        prompts, copies = asked.prompts, asked.sampling.samples if asked.sampling else 1
        mine = [asked.kept[at] for at in among]
        watch = self._watched(length, among, first)
        jobs: list[tuple[int, list[int]]] = []
        for beginning, members in self._beginnings(mine, [prompts[at].max_new_tokens for at in among]):
            # rows that stop at about the same time share a batch: by allowance first, then by length
            places = [among[n] for n in members]
            order = sorted(places, key=lambda i: (-prompts[i].max_new_tokens, -len(asked.kept[i]), i))
            size = {
                i: copies * self._writing_size(len(asked.kept[i]) - beginning, beginning, prompts[i].max_new_tokens)
                for i in places
            }
            jobs += [(beginning, chunk) for chunk in _chunks(order, size.__getitem__, self.tokens_per_batch)]
        pending = set(watch[:1]) - done
        jobs.sort(key=lambda job: not pending.intersection(job[1]))
        held: list[Answered[list[Completion]]] = []
        trunk: _Trunk | None = None
        for beginning, chunk in jobs:
            if done.issuperset(chunk):
                continue
            start = asked.kept[chunk[0]][:beginning]
            if not beginning:
                trunk = None
            elif trunk is None or list(trunk.tokens) != list(start):
                trunk = self._read(start)
            rows = [(i, sample) for i in chunk for sample in range(copies)]
            rest = [asked.kept[i][beginning:] for i in chunk]
            allowed = max(prompts[i].max_new_tokens for i in chunk)
            listening = [n for n, (i, sample) in enumerate(rows) if i in watch and not sample]
            heard: dict[int, list[tuple[int, float]]] = {n: [] for n in listening}
            with inner(f"at most {allowed} tokens for {len(rows)} texts", allowed) as step:
                written = self._continue(rest, [prompts[i] for i, _ in rows], rows, asked.sampling, trunk, step, heard)
            answer: dict[int, list[Completion]] = {i: [] for i in chunk}
            for (i, _), (ids, finish) in zip(rows, written, strict=True):
                answer[i].append(self._completion(asked, i, ids, finish))
            facts = {}
            for n, said in heard.items():
                tokens, nats = [token for token, _ in said], np.array([value for _, value in said])
                facts[rows[n][0]] = self._compared(rows[n][0], asked.kept[rows[n][0]], tokens, nats, writing=True)
            pending -= set(chunk)
            held.append(Answered(answer, facts))
            if not pending:
                yield from held
                held = []
        yield from held

    def _written_alone(self, asked: _Asked, at: int) -> list[Completion]:
        """The continuations of one prompt, each written by transformers' own `generate`."""
        prompt, found = asked.prompts[at], []
        for sample in range(asked.sampling.samples if asked.sampling else 1):
            choose = _Chooser(asked.sampling, [(at, sample)])
            written: list[list[int]] = [[]]
            finish: list[Literal["stop", "end", "length"]] = []

            def more(token: int, written: Any = written, finish: Any = finish) -> bool:
                if token in self._ends:
                    finish.append("end")
                    return False
                written[0].append(token)
                finish.extend(self._stopped([0], written, [prompt]).values())
                return not finish

            self._plain.write(asked.kept[at], prompt.max_new_tokens, functools.partial(_only_token, choose), more)
            found.append(self._completion(asked, at, written[0], finish[0] if finish else "length"))
        return found

    def _completion(
        self, asked: _Asked, at: int, ids: Sequence[int], finish: Literal["stop", "end", "length"]
    ) -> Completion:
        text, finish = self._text(asked.kept[at], ids, asked.prompts[at].stop, finish)
        return Completion(text, len(ids), finish, asked.truncated[at])

    def _beginnings(self, prompts: Sequence[Sequence[int]], allowance: Sequence[int]) -> list[tuple[int, list[int]]]:
        """Groups of prompts with the number of tokens that all of a group begin with, 0 where that is not used.

        A group of its own is written in batches of its own, which takes a forward for each new token: what it saves
        must be worth that, unless it holds every prompt.
        """
        alone: list[int] = []
        groups: list[tuple[int, list[int]]] = []
        for node in plan(prompts, "one level") if self.sharing == "trie" else []:
            if not node.children:
                alone += node.members
                continue
            # every prompt keeps a token of its own, whose logits choose the first new one
            shared = min(node.end, min(len(prompts[at]) for at in node.members) - 1)
            saved = shared * (len(node.members) - 1)
            cost = PADDING * max(allowance[at] for at in node.members)
            if saved >= cost or len(node.members) == len(prompts):
                groups.append((shared, sorted(node.members)))
            else:
                alone += node.members
        return [*groups, (0, sorted(alone) if self.sharing == "trie" else list(range(len(prompts))))]

    def _writing_size(self, own: int, beginning: int, new: int) -> int:
        """What a row counts in a batch that is written: tokens to compute at once, and a fraction of those cached."""
        if not self._keeps_all:  # its prompts are read in one forward, as such caches cannot be joined
            return own + (beginning + new) // CACHE_SHARE
        return max(1, (own + new + (0 if self._holds_once else beginning)) // CACHE_SHARE)

    def _read(self, tokens: Sequence[int]) -> _Trunk:
        """The cache of these tokens."""
        ids, mask, position = self._pad([tokens])
        out = self._forward(ids, mask, position, keep=1, use_cache=True)
        return _Trunk(out.past_key_values, mask, len(tokens), {}, tokens)

    # -- tokens

    def _encode(self, texts: Sequence[str], special: bool = True) -> list[list[int]]:
        """Token ids; special tokens as the tokenizer adds them, but BOS never twice."""
        if not texts:
            return []
        bos = self.tokenizer.bos_token
        rows: list[list[int]] = []
        with inner("tokens", len(texts)) as step:
            for start in range(0, len(texts), TEXTS_AT_A_TIME):
                part = list(texts[start : start + TEXTS_AT_A_TIME])
                rows += self._ids(part, special)
                for _ in part:
                    step()
        plain = [i for i, text in enumerate(texts) if special and bos and text.startswith(bos)]
        for i in plain:
            rows[i] = list(self.tokenizer.encode(texts[i], add_special_tokens=False))
        return rows

    def _ids(self, texts: list[str], special: bool) -> list[list[int]]:
        if self._usual_tokenizer("__call__", "_encode_plus"):
            backend = self.tokenizer.backend_tokenizer
            plain = backend.truncation is None and backend.padding is None
            if plain and backend.encode_special_tokens == self.tokenizer.split_special_tokens:  # without their places
                return [found.ids for found in backend.encode_batch_fast(texts, add_special_tokens=special)]
        ids = self.tokenizer(texts, add_special_tokens=special, return_attention_mask=False, verbose=False)
        return [list(row) for row in ids["input_ids"]]

    def _prefix(self) -> int:
        """The token that stands before a text without context: BOS, else EOS."""
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return int(token)
        raise BadInput(
            "a text without context needs a token before it, and this tokenizer has neither BOS nor EOS: "
            "set its bos_token"
        )

    def _requests(self, pairs: Sequence[tuple[str, str]]) -> list[_Request]:
        """Tokens of each pair as lm-eval makes them: the continuation is what the whole has beyond the context.

        Spaces at the context's end move to the continuation first, because tokenizers join them to the next word.
        """
        moved = [(c.rstrip(), c[len(c.rstrip()) :] + text) for c, text in pairs]
        contexts = list(dict.fromkeys(c for c, _ in moved if c))
        context_ids = dict(zip(contexts, self._encode(contexts), strict=True))
        whole = self._encode([c + text for c, text in moved if c])
        alone = self._encode([text for c, text in moved if not c], special=False)
        with_context, without = iter(whole), iter(alone)
        requests = []
        for at, (context, text) in enumerate(moved):
            if context:
                ids, start = next(with_context), len(context_ids[context])
            else:
                ids, start = next(without), 0
            if start == 0:  # no context, or one that has no token
                ids = ids if ids and ids[0] == self._prefix() else [self._prefix(), *ids]
                start = 1
            if len(ids) <= start:
                raise BadInput(f"continuation {at} has no token: {text!r} after {context[-40:]!r}")
            requests.append(self._fit(tuple(ids[:start]), tuple(ids[start:]), text))
        return requests

    def _fit(self, context: tuple[int, ...], continuation: tuple[int, ...], text: str) -> _Request:
        # the last token of the continuation is predicted, never read
        surplus = max(0, len(context) + len(continuation) - 1 - self.window)
        if surplus >= len(context):
            raise BadInput(
                f"a continuation of {len(continuation)} tokens does not fit the model's window of {self.window}: "
                f"{text[:60]!r}"
            )
        return _Request(context[surplus:], continuation, surplus)

    def _fit_prompt(self, ids: list[int], max_new_tokens: int) -> list[int]:
        room = self.window - max_new_tokens
        if room < 1:
            raise BadInput(
                f"{max_new_tokens} new tokens leave no room for a prompt in the model's window of {self.window}"
            )
        return ids[-room:] if ids else [self._prefix()]

    def _fit_window(self, window: int | None) -> int:
        window = self.window if window is None else window
        if not 1 < window <= self.window:
            raise BadInput(f"a window of {window} tokens does not fit the model, whose window is {self.window}")
        return window

    def _rolling(self, text: str, window: int) -> list[_Request]:
        (ids,) = self._encode([text])
        requests = []
        for start in range(0, len(ids), window):
            end = min(start + window, len(ids))
            context = ids[end - window - 1 : start] if start else [self._prefix()]
            requests.append(_Request(tuple(context), tuple(ids[start:end]), 0))
        return requests

    def _disjoint(self, text: str, window: int) -> list[_Request]:
        (ids,) = self._encode([text])
        starts = range(0, len(ids) - window + 1, window)
        return [_Request((ids[at],), tuple(ids[at + 1 : at + window]), 0) for at in starts]

    # -- the witness

    def _serves(self, length: int) -> bool:
        """Whether texts of so many tokens may be computed together with others, or in parts."""
        most = self._plain.alike_up_to
        return most is None or length <= most

    def _watched(self, length: Sequence[int], among: Sequence[int], first: int | None) -> list[int]:
        """The positions whose answers are computed once more; at the beginning the one that must be right first."""
        if not self._witness:
            return []
        found = watched(length, among)
        return found if first is None else [first, *(at for at in found if at != first)]

    def _held_to_plain(
        self,
        together: Callable[[Sequence[int], frozenset[int], int | None], Iterator[Answered[T]]],
        alone: Callable[[int], T],
        length: Sequence[int],
        done: frozenset[int],
        suspects: Sequence[tuple[str, ...]],
    ) -> Iterator[Answered[T]]:
        """The answers to texts of these lengths but to those `done`, together where none differs from the plain one.

        `together` hands out nothing before the answer to the longest text, or to that given last, was found right, and
        raises _Apart where one is not. Then one suspect after the other is given up, until that answer is right. The
        last one is computing texts together at all.
        """
        among = [at for at in range(len(length)) if self._serves(length[at])]
        trials: Iterator[tuple[str, ...]] | None = None
        before, first, handed_out, again = self._state(), None, False, False
        writing = WRITING_ALONE in suspects
        while among and not (self._writes_alone if writing else self._alone):
            try:
                for batch in together(among, done, first):
                    self.restarts, again = self.restarts + again, False
                    handed_out = True
                    yield batch
                break
            except _Apart as apart:
                if trials is None:
                    trials = iter([*filter(self._uses, suspects), EVERYTHING])
                    before = self._state()
                if handed_out or done:  # an interrupted run may have handed out as well
                    again, handed_out, done = True, False, frozenset()
                first = apart.at
                self._restore(before)
                self.give_up(next(trials))
        else:
            among = []
        self.restarts += again
        left = sorted(set(range(len(length))).difference(among))
        for at in left:
            if at not in done:
                told = {"requests": 0, "nats_per_token": 0.0, "tolerance": TOLERANCE, "given_up": list(self.given_up)}
                yield Answered({at: alone(at)}, {at: told} if at == left[0] and self.given_up else {})

    def _compared(
        self, at: int, context: Sequence[int], tokens: Sequence[int], fast: np.ndarray, *, writing: bool = False
    ) -> dict[str, Any]:
        """What the witness finds of log-likelihoods [N] of some tokens; raises _Apart where they are too far off."""
        with self._aside():
            stepwise = writing and not self._causal
            plain = self._plain.steps(context, tokens) if stepwise else self._plain.scores(context, tokens)[0]
            apart, allowed = per_token(fast, plain), TOLERANCE
            if not self._exact and not apart <= allowed:
                itself = self._plain.apart_from_itself(
                    context, tokens, enough=apart / TIMES_PLAIN, at_once=self.tokens_per_batch, cached=not stepwise
                )
                allowed = max(allowed, TIMES_PLAIN * itself)
        if not apart <= allowed:
            raise _Apart(at)
        found = {"requests": 1, "nats_per_token": apart, "tolerance": allowed}
        return {**found, "given_up": list(self.given_up)} if self.given_up else found

    def _uses(self, names: Collection[str]) -> bool:
        """Whether giving these up would change anything."""
        in_use = {
            LAST_LAYER: self._last is not None,
            DRAFTS: self.drafts,
            HELD_ONCE: self._holds_once,
            TRIE: self.sharing == "trie",
            ONE_LEVEL: self.sharing != "none",
            WRITING: not self._writes_alone,
            BATCHES: not self._alone,
        }
        return any(in_use[name] for name in names)

    def _state(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in WAYS), list(self.given_up)

    def _restore(self, state: tuple[Any, ...]) -> None:
        ways, given_up = state
        for name, value in zip(WAYS, ways, strict=True):
            setattr(self, name, value)
        self.given_up = list(given_up)

    # -- scoring

    def _score(self, requests: Sequence[_Request], done: frozenset[int]) -> Iterator[Answered[LogLikelihood]]:
        """Log-likelihoods of all requests but those of finished batches."""
        # the last token of a continuation is predicted, never read
        length = [len(request.context) + len(request.continuation) - 1 for request in requests]
        yield from self._held_to_plain(
            functools.partial(self._scored_together, requests, length),
            lambda at: self._scored_alone(requests[at]),
            length,
            done,
            [(LAST_LAYER,), (TRIE,), (TRIE, ONE_LEVEL)],
        )

    def _scored_together(
        self,
        requests: Sequence[_Request],
        length: Sequence[int],
        among: Sequence[int],
        done: frozenset[int],
        first: int | None,
    ) -> Iterator[Answered[LogLikelihood]]:
        """The log-likelihoods of these requests, batch by batch; raises _Apart as `_held_to_plain` wants it."""
        mine = [requests[at] for at in among]
        place = {at: n for n, at in enumerate(among)}
        watch = [place[at] for at in self._watched(length, among, first)]
        with inner("shared beginnings"):
            nodes = plan([(*r.context, *r.continuation[:-1]) for r in mine], self.sharing)
        finished = frozenset(place[at] for at in done if at in place)
        pending = set(watch[:1]) - finished
        sums = _Sums(mine, watch)
        held: list[Answered[LogLikelihood]] = []
        for batch in self._descend(nodes, None, sums, finished, frozenset(pending)):
            facts = {
                among[n]: self._compared(among[n], mine[n].context, mine[n].continuation, sums.tokens(n))
                for n in batch
                if n in watch
            }
            pending -= set(batch)
            held.append(Answered({among[n]: score for n, score in batch.items()}, facts))
            if not pending:
                yield from held
                held = []
        yield from held

    def _scored_alone(self, request: _Request) -> LogLikelihood:
        value, greedy = self._plain.scores(request.context, request.continuation)
        return LogLikelihood(float(value.sum()), len(request.continuation), greedy, request.truncated)

    def _descend(
        self, nodes: Sequence[Node], trunk: _Trunk | None, sums: _Sums, done: frozenset[int], ahead: frozenset[int]
    ) -> Iterator[dict[int, LogLikelihood]]:
        """Computes sibling nodes batch by batch, and after each batch what comes after its nodes.

        The batches on the way to the requests in `ahead` come first.
        """
        width = trunk.width if trunk else 0

        def size(at: int) -> int:
            # a copy of the cache is far smaller than the activations of as many tokens, but not nothing
            return max(len(nodes[at].tokens), width // CACHE_SHARE)

        rank = {at: (not nodes[at].children, -len(nodes[at].tokens), at) for at in range(len(nodes))}
        inner = [at for at in sorted(rank, key=rank.__getitem__) if nodes[at].children]
        outer = [at for at in sorted(rank, key=rank.__getitem__) if not nodes[at].children]
        budget = self.tokens_per_batch
        chunks = [*_chunks(inner, size, budget, PADDING), *_chunks(outer, size, budget, PADDING)]
        if ahead:
            chunks.sort(key=lambda chunk: not any(ahead.intersection(nodes[at].members) for at in chunk))
        for chunk in chunks:
            members = {member for at in chunk for member in nodes[at].members}
            if done.issuperset(members):
                continue
            below = self._advance([nodes[at] for at in chunk], trunk, sums)
            finished = sums.finished(members)
            if finished:
                yield finished
            if below is not None:
                children = [(row, child) for row, at in enumerate(chunk) for child in nodes[at].children]
                parents = dataclasses.replace(below, parent={id(child): row for row, child in children})
                yield from self._descend([child for _, child in children], parents, sums, done, ahead)

    def _advance(self, nodes: Sequence[Node], trunk: _Trunk | None, sums: _Sums) -> _Trunk | None:
        """One forward over the tokens of the nodes; what their children go on from, if they have any."""
        goes_on = any(node.children for node in nodes)
        spots = sums.spots(nodes)
        # a gap between a cached text and what follows it moves a sliding window: there, pad where nobody looks
        left = trunk is None or self._keeps_all or goes_on
        ids, own, position = self._pad([node.tokens for node in nodes], left=left)
        mask, cache = own, None
        if trunk is not None:
            rows = self._tensor([trunk.parent[id(node)] for node in nodes])
            cache = rows_of_cache(trunk.cache, rows, last=False)
            position = position + self._tensor([node.start for node in nodes])[:, None]
            mask = _joined_mask(trunk.mask, rows, trunk.width, own, ids)
        keep = max((node.end - at for node, at in zip(nodes, spots.first, strict=True)), default=1)
        out = self._forward(ids, mask, position, keep=max(1, keep) if left else 0, cache=cache, use_cache=goes_on)
        if spots.request:
            longest = out.logits.shape[1]
            column = [
                longest - (nodes[row].end - at) if left else at - nodes[row].start
                for row, at in zip(spots.row, spots.at, strict=True)
            ]
            sums.add(spots, *token_loglikelihoods(out.logits, spots.row, column, spots.target))
        if not goes_on:
            return None
        return _Trunk(out.past_key_values, mask, ids.shape[1] + (trunk.width if trunk else 0), {})

    # -- writing

    def _continue(
        self,
        contexts: Sequence[Sequence[int]],
        prompts: Sequence[Prompt],
        rows: Sequence[tuple[int, int]],
        sampling: Sampling | None,
        trunk: _Trunk | None = None,
        step: Callable[[], object] = lambda: None,
        heard: Mapping[int, list[tuple[int, float]]] | None = None,
    ) -> list[tuple[list[int], Literal["stop", "end", "length"]]]:
        """New token ids of each row, with the reason to stop; rows that have stopped leave the batch.

        The contexts come after the one text of `trunk`, where there is one. `step` is called whenever all texts that go
        on have one more token.
        """
        repeat = [n for n in range(len(contexts)) for _ in range(len(rows) // len(contexts))]
        drafts = Drafts(contexts, trunk.tokens if trunk else ()) if self.drafts and sampling is None else None
        room = max(p.max_new_tokens for p in prompts) + (LONGEST if drafts else 0)
        batch, logits = self._open(contexts, repeat, room, trunk, apart=drafts is not None)
        with self._attending(trunk):
            return self._write(batch, logits, prompts, _Chooser(sampling, rows), drafts, step, heard or {})

    def _open(
        self, contexts: Sequence[Sequence[int]], repeat: Sequence[int], room: int, trunk: _Trunk | None, *, apart: bool
    ) -> tuple[_Batch, Tensor]:
        """Rows that go on after the contexts of these numbers, and the logits [rows, 1, vocabulary] of what comes next.

        `room` is what a row may be given to read beyond its context.
        """
        if not self._selects_rows:
            contexts, repeat = [contexts[n] for n in repeat], list(range(len(repeat)))
        caches, logits, masks = self._read_all(contexts, trunk)
        position = torch.cat([mask.sum(1, keepdim=True) for mask in masks])[repeat]  # [rows, 1]
        skipped = trunk.width if trunk and self._holds_once else 0
        mask = torch.cat(widened([mask[:, skipped:] for mask in masks], dim=-1))[repeat]
        if self._keeps_all:
            cache = joined_cache(caches, self._tensor(repeat), room, skipped)
        else:
            (cache,) = caches
            if len(repeat) > len(contexts):  # several samples of one prompt: it has been read once
                cache = rows_of_cache(cache, self._tensor(repeat), last=True)
        window = min(self.window, self._plain.alike_up_to or self.window)
        return _Batch(cache, mask, position, window, room if apart else 0), logits[repeat][:, None]

    def _attending(self, trunk: _Trunk | None) -> contextlib.AbstractContextManager[None]:
        """While open, rows also attend to the one beginning that is held for all, where it is."""
        if trunk is None or not self._holds_once:
            return contextlib.nullcontext()
        return attending(self.model, [(layer.keys, layer.values) for layer in trunk.cache.layers])

    def _read_all(
        self, contexts: Sequence[Sequence[int]], trunk: _Trunk | None
    ) -> tuple[list[Any], Tensor, list[Tensor]]:
        """The caches of the contexts and their masks, part by part, with the logits [contexts, vocabulary] after them.

        A part holds as many as may be computed at once, and is as wide as its longest.
        """
        width = trunk.width if trunk else 0
        size = max(map(len, contexts)) + width // CACHE_SHARE
        most = max(1, self.tokens_per_batch // size) if self._keeps_all else len(contexts)
        caches, logits, masks = [], [], []
        for start in range(0, len(contexts), most):
            ids, mask, position = self._pad(contexts[start : start + most])
            mask = torch.ones_like(ids) if mask is None else mask.long()
            mask = torch.cat([mask.new_ones(len(ids), width), mask], dim=1)
            cache = rows_of_cache(trunk.cache, self._tensor([0] * len(ids)), last=False) if trunk else None
            out = self._forward(ids, mask, position + width, keep=1, cache=cache, use_cache=True)
            caches.append(out.past_key_values)
            logits.append(out.logits[:, -1])
            masks.append(mask)
        return caches, torch.cat(logits), masks

    def _write(
        self,
        batch: _Batch,
        logits: Tensor,
        prompts: Sequence[Prompt],
        choose: _Chooser,
        drafts: Drafts | None,
        step: Callable[[], object],
        heard: Mapping[int, list[tuple[int, float]]],
    ) -> list[tuple[list[int], Literal["stop", "end", "length"]]]:
        """As `_continue`, once the prompts have been read; logits [rows, 1, vocabulary] of the next token."""
        written: list[list[int]] = [[] for _ in prompts]
        finish: dict[int, Literal["stop", "end", "length"]] = {}
        active = list(range(len(prompts)))  # row of the batch -> row asked for
        proposed: dict[int, list[int]] = {}
        shown = 0
        while True:
            said = zip(active, choose(logits, active).tolist(), strict=True)
            new = {at: accepted(tokens, proposed.get(at, [])) for at, tokens in said if at not in finish}
            nats = {at: _nats(logits[n], new[at]) for n, at in enumerate(active) if at in heard and at in new}
            for which in range(max(map(len, new.values()))):
                going = []
                for at, tokens in new.items():
                    if at in finish or which >= len(tokens):
                        continue
                    if at in heard:
                        heard[at].append((tokens[which], nats[at][which]))
                    if tokens[which] in self._ends:
                        finish[at] = "end"
                        continue
                    written[at].append(tokens[which])
                    if drafts:
                        drafts.append(at, tokens[which])
                    if len(written[at]) == prompts[at].max_new_tokens:
                        finish[at] = "length"
                    else:
                        going.append(at)
                finish.update(self._stopped(going, written, prompts))
            left = [n for n, at in enumerate(active) if at not in finish]
            if not left:
                return [(written[at], finish[at]) for at in range(len(prompts))]
            while shown < min(len(written[active[n]]) for n in left):
                shown += 1
                step()
            if self._selects_rows and len(left) <= 0.75 * len(active):
                batch.keep(self._tensor(left))
                active = [active[n] for n in left]
            if drafts:
                room = {at: prompts[at].max_new_tokens - len(written[at]) - 1 for at in active if at not in finish}
                proposed = drafts.proposals(room, self.tokens_per_batch // len(active) - 1)
            width = 1 + max(map(len, proposed.values()), default=0)
            ids = [[*written[at][-1:], *proposed.get(at, [])] for at in active]
            ids = [[*row, *[0] * (width - len(row))] for row in ids]  # a finished row reads what nobody looks at
            mask, position = batch.next([max(0, len(written[at]) - 1) for at in active], width)
            out = self._forward(self._tensor(ids), mask, position, cache=batch.cache, use_cache=True)
            batch.cache, logits = out.past_key_values, out.logits

    @functools.cached_property
    def _ends(self) -> frozenset[int]:
        config = getattr(self.model, "generation_config", None)
        ends = getattr(config, "eos_token_id", None)
        ends = ends if isinstance(ends, list) else [ends]
        return frozenset(int(e) for e in [*ends, self.tokenizer.eos_token_id] if e is not None)

    def _stopped(
        self, rows: Sequence[int], written: Sequence[Sequence[int]], prompts: Sequence[Prompt]
    ) -> dict[int, Literal["stop"]]:
        """The rows whose text now holds a stop string; only the end of the text is looked at until one is seen."""
        rows = [at for at in rows if prompts[at].stop]
        if not rows:
            return {}
        reach = {at: max(map(len, prompts[at].stop)) + 4 for at in rows}
        tails = self._decode([written[at][-reach[at] :] for at in rows])
        seen = [at for at, tail in zip(rows, tails, strict=True) if any(s in tail for s in prompts[at].stop)]
        whole = self._decode([written[at] for at in seen])
        return {at: "stop" for at, text in zip(seen, whole, strict=True) if any(s in text for s in prompts[at].stop)}

    def _text(
        self, context: Sequence[int], ids: Sequence[int], stop: Sequence[str], finish: Literal["stop", "end", "length"]
    ) -> tuple[str, Literal["stop", "end", "length"]]:
        """The text of the new tokens, cut at the first stop string.

        Decoded together with the prompt's last tokens: some tokenizers drop a space at the start of what they decode.
        """
        before, after, alone = self._decode([context[-4:], [*context[-4:], *ids], ids])
        text = after[len(before) :] if after.startswith(before) else alone
        cuts = [at for at in (text.find(s) for s in stop) if at >= 0]
        return (text[: min(cuts)], "stop") if cuts else (text, finish)

    def _decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        if not rows:
            return []
        ids = [list(row) for row in rows]
        if self._usual_tokenizer("batch_decode", "decode", "_decode"):  # which decode one row after the other
            return list(self.tokenizer.backend_tokenizer.decode_batch(ids, skip_special_tokens=True))
        return list(self.tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _usual_tokenizer(self, *names: str) -> bool:
        """Whether methods are transformers' own, so that the library behind the tokenizer may be asked directly."""
        from transformers import PreTrainedTokenizerFast

        kind, usual = type(self.tokenizer), PreTrainedTokenizerFast
        return issubclass(kind, usual) and all(getattr(kind, n, None) is getattr(usual, n, None) for n in names)

    # -- the model

    def _tensor(self, rows: Sequence[Any] | np.ndarray) -> Tensor:
        return torch.as_tensor(rows, dtype=torch.long, device=self.model.device)

    def _pad(self, rows: Sequence[Sequence[int]], *, left: bool = True) -> tuple[Tensor, Tensor | None, Tensor]:
        """Ids, mask and positions, each [rows, longest]; no mask where all rows are equally long."""
        length = [len(row) for row in rows]
        longest = max(length)
        ids = np.zeros((len(rows), longest), dtype=np.int64)
        start = np.array([longest - n if left else 0 for n in length])[:, None]
        for at, row in enumerate(rows):
            ids[at, start[at, 0] : start[at, 0] + len(row)] = row
        offset = np.arange(longest)[None] - start  # [rows, longest]
        mask = (offset >= 0) & (offset < np.array(length)[:, None])
        tensors = (self._tensor(array) for array in (ids, mask, offset.clip(min=0)))
        ids_, mask_, position = tensors
        return ids_, (None if min(length) == longest else mask_), position

    @torch.inference_mode()
    def _forward(
        self,
        ids: Tensor,
        mask: Tensor | None,
        position: Tensor,
        *,
        keep: int = 0,
        cache: Any = None,
        use_cache: bool = False,
    ) -> Any:
        """The model's output; logits of the last `keep` positions (0: all).

        The mask is [rows, tokens with those in the cache], or [rows, 1, tokens, tokens with those in the cache].
        """
        if mask is not None and self._own_masks and attention_of(self.model) in (SUPPORTED, IMPLEMENTATION):
            mask = additive(mask if mask.ndim == 4 else _causal(mask, ids.shape[1]), self.model.dtype)
        arguments: dict[str, Any] = {"attention_mask": mask, "use_cache": use_cache or cache is not None}
        if cache is not None:
            arguments["past_key_values"] = cache
        if "position_ids" in self._accepts:
            arguments["position_ids"] = position
        if "logits_to_keep" in self._accepts:
            arguments["logits_to_keep"] = keep
        rows, new = ids.shape
        # a mask of its own costs what half of the positions save
        if self._last is not None and 0 < keep <= new // 2 and attention_of(self.model) == SUPPORTED:
            with only_last(self.model, self._last, rows, new, keep):
                out = self.model(input_ids=ids, **arguments)
        else:
            out = self.model(input_ids=ids, **arguments)
        if keep:
            out.logits = out.logits[:, -keep:]
        return out

    def _probe_cache(self) -> tuple[bool, bool]:
        """Whether rows of the model's cache can be copied and dropped, and whether it keeps every token as it came.

        Recurrent states mostly allow neither; a sliding window forgets.
        """
        try:
            out = self._forward(self._tensor([[0, 0]]), None, self._tensor([[0, 1]]), keep=1, use_cache=True)
            rows_of_cache(out.past_key_values, self._tensor([0, 0]), last=False)
            return True, all(type(layer).__name__ == "DynamicLayer" for layer in out.past_key_values.layers)
        except Exception:  # whatever a model's own cache makes of it, the rows are not to be had
            return False, False

    def _probe_trunk(self) -> bool:
        """Whether rows that are written can share the keys and values of what all of them begin with."""
        self._holds_once = True
        return self._probe_writing([(1, 1), (1, 1)], apart=False)

    def _probe_masks(self) -> bool:
        """Whether the model lets itself be told what each token sees, as rows with drafts that do not stay need it."""
        self._own_masks = True
        return self._probe_writing([(2, 1), (1, 2)], apart=True)

    def _probe_last(self) -> nn.Module | None:
        """The last layer, where it can compute some positions alone and their logits are the same."""
        if (layer := last_layer(self.model)) is None or self.window < 7 or attention_of(self.model) != SUPPORTED:
            return None
        ids = self._tensor([[3, 1, 4, 1, 5, 2, 2], [0, 0, 3, 5, 4, 1, 2]])
        mask, position = torch.ones_like(ids), self._tensor([range(7)] * 2)
        mask[1, :2] = 0
        whole = self._forward(ids, mask, position).logits[:, -2:]
        self._last = layer
        apart = (self._forward(ids, mask, position, keep=2).logits - whole).abs().amax(-1).flatten().tolist()
        return layer if self._distance(apart) <= self.tolerance else None

    def _probe_writing(self, steps: Sequence[tuple[int, int]], *, apart: bool) -> bool:
        """Whether two rows have the logits of a plain forward after each new token that stays, so many in each step.

        A model that attends in a way of its own is found by that.
        """
        if "position_ids" not in self._accepts or attention_of(self.model) != SUPPORTED or self.window < 9:
            return False
        random = np.random.default_rng(0)
        vocabulary = min(int(self.model.config.get_text_config().vocab_size), len(self.tokenizer))
        ids = random.integers(0, vocabulary, (2, 9))
        ids[1, :3] = ids[0, :3]
        plain = self._forward(self._tensor(ids), None, self._tensor([range(9)] * 2)).logits
        start, written = (6, 5), [0, 0]  # where the new tokens of each row begin, and how many have been read
        apart_by = []
        try:
            trunk = self._read(ids[0, :3].tolist()) if self._holds_once else None
            contexts = [ids[row, trunk.width if trunk else 0 : start[row]].tolist() for row in range(2)]
            batch, _ = self._open(contexts, range(2), 4, trunk, apart=apart)
            with self._attending(trunk):
                for stay in steps:
                    width = max(stay)
                    now = np.full((2, width), ids[0, 0])  # what does not stay is some other token
                    for row, n in enumerate(stay):
                        first = start[row] + written[row]
                        now[row, :n] = ids[row, first : first + n]
                    mask, position = batch.next(written, width)
                    out = self._forward(self._tensor(now), mask, position, cache=batch.cache, use_cache=True)
                    for row, n in enumerate(stay):
                        first = start[row] + written[row]
                        apart_by += (out.logits[row, :n] - plain[row, first : first + n]).abs().amax(-1).tolist()
                    batch.cache, written = out.past_key_values, [a + b for a, b in zip(written, stay, strict=True)]
        except Exception:  # whatever a model makes of it, this way is not for it
            return False
        return bool(self._distance(apart_by) <= self.tolerance)

    def _distance(self, differences: Sequence[float]) -> float:
        """The greatest difference; in 16 bits the middle one, as a rounded router may send a few tokens elsewhere."""
        return max(differences) if self._exact else statistics.median(differences)

    # -- proof

    def _settle(self) -> float:
        """Finds the first way that works and gives what a plain forward gives; says how far it is from that.

        What fails on the way down is given up. Raises BadInput where one text at a time cannot be computed either.
        """
        before = self._state()
        trials = iter([names for names in LADDER if self._uses(names)])
        while True:
            try:
                with self._aside():
                    if self._writes_alone:
                        self._plain.try_writing()
                    return self._self_check()
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                if self._alone:
                    why = f"this model cannot compute a text of a few tokens: {type(error).__name__}: {error}"
                    raise error if isinstance(error, BadInput) else BadInput(why) from None
            self._restore(before)
            self.give_up(next(trials))

    def _self_check(self) -> float:
        """The largest difference between fast and plain log-likelihoods on a few requests of random tokens.

        Greedy writing is compared as well, token by token, as far as the plain path has one clear winner.
        """
        random = np.random.default_rng(0)
        vocabulary = min(int(self.model.config.get_text_config().vocab_size), len(self.tokenizer))
        room = max(2, min(17, min(self.window, self._plain.alike_up_to or self.window) - 8))

        def tokens(n: int) -> tuple[int, ...]:
            return tuple(random.integers(0, vocabulary, n).tolist())

        contexts = [tokens(n) for n in (room, max(1, room // 2), max(1, room // 3))]
        lengths = [min(n, self.window - room) for n in (1, 3, 5)]
        requests = [_Request(c, tokens(n), 0) for c in contexts for n in lengths]
        fast: dict[int, LogLikelihood] = {}
        for batch in self._score(requests, frozenset()):
            fast.update(batch)
        apart = [  # nats per token
            abs(self._scored_alone(request).value - fast[at].value) / len(request.continuation)
            for at, request in enumerate(requests)
        ]
        worst = self._distance(apart)  # a wrong cache or position shows in every request
        if not worst <= self.tolerance:
            raise CheckFailed(
                f"the batched, cached log-likelihoods of this model differ from plain ones by {worst:.3g} nats "
                f"per token (tolerance {self.tolerance:g})"
            )
        if not self._causal or self._writes_alone:
            return worst
        rows = [(n, 0) for n in range(len(contexts))]
        allowance = Prompt("", (), min(5, self.window - room))
        for context, (ids, _) in zip(contexts, self._continue(contexts, [allowance] * 3, rows, None), strict=True):
            if self._leaves_greedy_path(context, ids):
                raise CheckFailed("cached generation of this model differs from plain greedy decoding")
        return worst

    @torch.inference_mode()
    def _leaves_greedy_path(self, context: Sequence[int], written: Sequence[int]) -> bool:
        if not written:
            return False
        ids = self._tensor([[*context, *written[:-1]]])
        logits = self.model(input_ids=ids, use_cache=False).logits[0, len(context) - 1 :].float()
        chosen = logits.gather(1, self._tensor(list(written))[:, None])[:, 0]
        return bool((logits.max(-1).values - chosen > self.tolerance).any())


class _Chooser:
    """Picks the next token of each active row: the most likely, or one drawn with the row's own random numbers.

    A token drawn from the whole vocabulary is kept where those likelier than it have less than `top_p` together, and
    drawn anew where not: so the draw is one from the smallest set of that probability, mostly without sorting.
    """

    def __init__(self, sampling: Sampling | None, rows: Sequence[tuple[int, int]]) -> None:
        self._sampling = sampling
        if sampling:
            self._streams = [np.random.default_rng([sampling.seed, prompt, sample]) for prompt, sample in rows]

    def __call__(self, logits: Tensor, active: Sequence[int]) -> Tensor:
        """Token ids [active, tokens] from logits [active, tokens, vocabulary]; one token where they are drawn."""
        greatest_logit(logits)
        if self._sampling is None:
            return logits.argmax(-1)
        (logits,) = logits.unbind(1)
        share = (logits.double() / self._sampling.temperature).softmax(-1)
        total = share.cumsum(-1)
        chosen = share.new_zeros(len(active), dtype=torch.long)
        left = torch.arange(len(active), device=share.device)
        for _ in range(DRAWS):
            token = self._draw(total[left], active, left)
            kept = self._mass_before(share[left], token) < self._sampling.top_p
            chosen[left[kept]] = token[kept]
            left = left[~kept]
            if not len(left):
                return chosen[:, None]
        share, order = share[left].sort(dim=-1, descending=True, stable=True)
        total = share.cumsum(-1)
        total = share.masked_fill(total - share >= self._sampling.top_p, 0.0).cumsum(-1)  # the first token always stays
        chosen[left] = order.gather(-1, self._draw(total, active, left)[:, None])[:, 0]
        return chosen[:, None]

    def _draw(self, total: Tensor, active: Sequence[int], rows: Tensor) -> Tensor:
        """A place in each row of a running total [rows, vocabulary], never one that adds nothing to it."""
        uniform = total.new_tensor([self._streams[active[n]].random() for n in rows.tolist()])[:, None]
        whole = total[:, -1:].contiguous()
        at = torch.searchsorted(total, uniform * whole, right=True)
        return torch.minimum(at, torch.searchsorted(total, whole))[:, 0]

    @staticmethod
    def _mass_before(share: Tensor, token: Tensor) -> Tensor:
        """[rows] what the tokens that come before this one have together, likelier ones and equal ones of lower id."""
        own = share.gather(-1, token[:, None])
        before = torch.arange(share.shape[1], device=share.device) < token[:, None]
        return share.masked_fill(~((share > own) | ((share == own) & before)), 0.0).sum(-1)


def _only_token(choose: _Chooser, logits: Tensor) -> int:
    return int(choose(logits, [0]))


def _nats(logits: Tensor, tokens: Sequence[int]) -> list[float]:
    """Log-likelihoods of tokens by logits [as many or more, vocabulary]."""
    value, _ = token_loglikelihoods(logits[None], [0] * len(tokens), range(len(tokens)), tokens)
    return [float(nats) for nats in value]


def _joined(scores: Sequence[LogLikelihood]) -> LogLikelihood:
    """The windows of a text as one."""
    return LogLikelihood(
        math.fsum(score.value for score in scores),
        sum(score.tokens for score in scores),
        all(score.greedy for score in scores),
        0,
    )


def _joined_mask(before: Tensor | None, rows: Tensor, width: int, own: Tensor | None, ids: Tensor) -> Tensor | None:
    """The mask over a cached text and what follows it, [rows, both]; none where nothing is padded."""
    if before is None and own is None:
        return None
    cached = before[rows] if before is not None else ids.new_ones(len(ids), width)
    return torch.cat([cached, own if own is not None else torch.ones_like(ids)], dim=1)


def _causal(mask: Tensor, new: int) -> Tensor:
    """[rows, 1, new, tokens] bool: which of the tokens that a mask [rows, tokens] lets be seen come no later."""
    place = torch.arange(mask.shape[1], device=mask.device)
    return (mask.bool()[:, None] & (place <= place[-new:, None]))[:, None]


def _chunks(
    items: Sequence[T], length: Callable[[T], int], budget: int, padding: int | None = None
) -> Iterator[list[T]]:
    """Consecutive items whose number times their greatest length stays within the budget (at least one each).

    No more than `padding` of that is what shorter items lack.
    """
    chunk: list[T] = []
    longest = total = 0
    for item in items:
        longest, total = max(longest, length(item)), total + length(item)
        padded = (len(chunk) + 1) * longest
        if chunk and (padded > budget or (padding is not None and padded - total > padding)):
            yield chunk
            chunk, longest, total = [], length(item), length(item)
        chunk.append(item)
    if chunk:
        yield chunk


def _window(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The longest sequence in tokens: the model's configuration, else the tokenizer's, else 2048 (as lm-eval)."""
    config = model.config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "n_ctx"):
        if isinstance(getattr(config, name, None), int):
            return int(getattr(config, name))
    length = getattr(tokenizer, "model_max_length", None)
    return int(length) if length is not None and length < 10**9 else 2048


def _words_and_bytes(text: str) -> tuple[int, int]:
    return len(text.split()), len(text.encode())


def weights_digest(model: torch.nn.Module) -> str:
    """SHA-256 over every parameter and buffer, with its name, type and shape."""
    digest = hashlib.sha256()
    state: Mapping[str, Any] = model.state_dict()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def fingerprint_of(identity: str, tokenizer: PreTrainedTokenizerBase, settings: Mapping[str, Any]) -> str:
    """The fingerprint of the model of that identity, computed with such settings, those of an older record included."""
    ways = [str(settings[name]) for name in COMPUTING if name in settings]
    return hashlib.sha256("\n".join([identity, _tokenizer_digest(tokenizer), *ways]).encode()).hexdigest()


@functools.cache
def computed_by() -> str:
    """The code behind an answer: a digest of ours, the versions of the libraries."""
    ours = hashlib.sha256()
    for name in OWN_CODE:
        ours.update(Path(__file__).with_name(f"{name}.py").read_bytes())
    libraries = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers", "tokenizers")]
    return ", ".join([f"mcbench {ours.hexdigest()[:12]}", *libraries])


def _tokenizer_digest(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
