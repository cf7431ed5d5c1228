"""What a causal language model computes in the plain way: one text at a time, by a forward that nothing shortens.

The fast ways of `mcbench.evaluation` are held against this, and texts that they cannot serve are computed by it.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mcbench.errors import BadInput
from mcbench.logits import token_loglikelihoods

CACHED = 0.05  # nats per token: rounding that a cache may add in 16 bits
PADDINGS = (1, 8, 61)  # tokens of padding with which a forward is held against one without
STEPS = 16  # tokens at most that are read one by one to see what a cache adds


class Plain:
    """A model by its own forward, without mask, padding, cached beginnings or anything of ours in its attention.

    alike_up_to: the greatest number of tokens whose computation does not depend on how long their text is or where it
    stands in a batch, None where it never does. LongRoPE and dynamic rotary embeddings turn all tokens of longer texts
    by other angles, so that a longer one in a batch or a beginning in a cache changes what a token is. Sparse attention
    selects tokens by scores of which many are equal, and then by where they stand.
    """

    def __init__(self, model: Any, window: int) -> None:
        self.model = model
        self._accepts = set(inspect.signature(model.forward).parameters)
        longest = [(*found, remembers) for *found, remembers in _turning_points(model)]
        self.alike_up_to: int | None = min((at for at, _ in longest if at < window), default=None)
        self._remembers = any(remembers and at < window for at, remembers in longest)
        self.caches = True  # while it writes

    @torch.inference_mode()
    def scores(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[np.ndarray, bool]:
        """Log-likelihood (nats) of each token [N] after its context, and whether each is the likeliest."""
        self._forget()
        ids = self._tensor([[*context, *continuation[:-1]]])
        return self._read(self._forward(ids, len(continuation)), continuation)

    @torch.inference_mode()
    def apart_from_itself(
        self,
        context: Sequence[int],
        continuation: Sequence[int],
        *,
        enough: float = math.inf,
        at_once: int = 8192,
        cached: bool = True,
    ) -> float:
        """How far rounding alone takes the plain forward from itself: nats per token, the greatest found.

        It is computed with padding before the text and beside another one, then, where `cached`, its last tokens one by
        one with a cache; what that adds counts up to CACHED, as a wrong cache is no rounding. Nothing more is computed
        once `enough` is found, and no other stands beside a text that is more than `at_once` tokens with it.
        """
        alone, _ = self.scores(context, continuation)
        ids, keep, apart = [*context, *continuation[:-1]], len(continuation), 0.0
        for padding in PADDINGS if "position_ids" in self._accepts else ():
            rows = [[0] * padding + ids, [*ids, *ids[:1] * padding]]
            rows = rows[: max(1, at_once // len(rows[0]))]
            mask = torch.ones_like(self._tensor(rows))
            mask[0, :padding] = 0
            # no place lies beyond the text's own: rotary embeddings may turn all tokens by the greatest
            position = (mask.cumsum(1) - 1).clamp(min=0, max=len(ids) - 1)
            out = self._forward(self._tensor(rows), keep, attention_mask=mask, position_ids=position)
            apart = max(apart, per_token(self._read(out[:1], continuation)[0], alone))
            if apart >= enough:
                return apart
        if not cached:
            return apart
        cut = max(0, keep - STEPS)
        written = self.steps([*context, *continuation[:cut]], continuation[cut:])
        return max(apart, min(CACHED, per_token(written, alone[cut:])))

    @torch.inference_mode()
    def steps(self, context: Sequence[int], written: Sequence[int]) -> np.ndarray:
        """Log-likelihood of each written token [N] as it was when it was written: one forward for each, with a cache.

        For models whose routing looks at later tokens, where a forward over the finished text says something else.
        """
        self._forget()
        ids, cache, logits = self._tensor([list(context)]), None, []
        for token in written:
            if self.caches:
                arguments: dict[str, Any] = {} if cache is None else {"past_key_values": cache}
                out = self.model(input_ids=ids, use_cache=True, **arguments)
                cache, ids = out.past_key_values, self._tensor([[token]])
            else:
                out = self.model(input_ids=ids, use_cache=False)
                ids = torch.cat([ids, self._tensor([[token]])], dim=1)
            logits.append(out.logits[:, -1:])
        return self._read(torch.cat(logits, dim=1), written)[0]

    @torch.inference_mode()
    def write(
        self, context: Sequence[int], allowed: int, choose: Callable[[Tensor], int], more: Callable[[int], bool]
    ) -> None:
        """Lets transformers' own `generate` write: `choose` is given logits [1, 1, V], `more` each token that follows.

        It ends when `more` says so, or after `allowed` tokens.
        """
        from transformers import GenerationConfig, LogitsProcessor, StoppingCriteria

        class Chosen(LogitsProcessor):
            def __call__(self, input_ids: Any, scores: Any) -> Any:
                only = torch.full_like(scores, float("-inf"))
                only[0, choose(scores[:, None].clone())] = 0.0
                return only

        class Ended(StoppingCriteria):
            def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
                return torch.tensor([not more(int(input_ids[0, -1]))], device=input_ids.device)

        self._forget()
        ids = self._tensor([list(context)])
        settings = GenerationConfig(max_new_tokens=allowed, do_sample=False, use_cache=self.caches, pad_token_id=0)
        with self._own_settings(GenerationConfig()):
            self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                generation_config=settings,
                logits_processor=[Chosen()],
                stopping_criteria=[Ended()],
            )

    def try_writing(self) -> None:
        """Finds out whether the model writes with its cache; BadInput where it writes in no way."""
        for self.caches in (True, False):
            try:
                self.write([0, 0], 3, lambda logits: int(logits.argmax()), lambda _: True)
                return
            except BadInput:
                raise
            except Exception as error:
                failed = error
        raise BadInput(f"the model cannot write a few tokens: {type(failed).__name__}: {failed}")

    def _forward(self, ids: Tensor, keep: int, **arguments: Tensor) -> Tensor:
        kept = {"logits_to_keep": keep} if "logits_to_keep" in self._accepts else {}
        logits: Tensor = self.model(input_ids=ids, use_cache=False, **kept, **arguments).logits
        return logits[:, -keep:]

    def _read(self, logits: Tensor, tokens: Sequence[int]) -> tuple[np.ndarray, bool]:
        value, best = token_loglikelihoods(logits, [0] * len(tokens), range(len(tokens)), tokens)
        return value, bool(best.all())

    def _forget(self) -> None:
        """Puts back what a longer text before has changed: dynamic rotary embeddings keep the angles of the longest."""
        if self._remembers:
            self.model(input_ids=self._tensor([[0]]), use_cache=False)

    def _tensor(self, rows: Sequence[Sequence[int]]) -> Tensor:
        return torch.as_tensor(rows, dtype=torch.long, device=self.model.device)

    @contextlib.contextmanager
    def _own_settings(self, settings: Any) -> Iterator[None]:
        """A model's folder may ask for penalties and the like, which no task asks for."""
        own = self.model.generation_config
        self.model.generation_config = settings
        try:
            yield
        finally:
            self.model.generation_config = own


def per_token(one: np.ndarray, other: np.ndarray) -> float:
    """The mean difference of two rows of log-likelihoods, in nats per token."""
    return float(np.abs(one - other).mean()) if len(one) else 0.0


def _turning_points(model: Any) -> Iterator[tuple[int, bool]]:
    """Lengths in tokens beyond which texts are computed otherwise, and whether a model remembers the longest one."""
    config = model.config.get_text_config()
    blocks, size = (getattr(config, name, None) for name in ("index_topk_blocks", "index_block_size"))
    for selected in (getattr(config, "index_topk", None), blocks * size if blocks and size else None):
        if isinstance(selected, int):
            yield selected, False
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        for layer, kind in kinds.items() if isinstance(kinds, dict) else [(None, kinds)]:
            if kind == "longrope":
                settings = getattr(module.config, "rope_parameters", None) or {}
                settings = settings.get(layer, settings) if layer is not None else settings
                original = settings.get("original_max_position_embeddings")
                original = original or getattr(module.config, "original_max_position_embeddings", None)
                yield int(original or module.original_max_seq_len), False
            elif isinstance(kind, str) and "dynamic" in kind:
                yield int(module.original_max_seq_len) - 1, True  # at the length itself it does not forget
