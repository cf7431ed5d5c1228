"""A mixture-of-experts model of transformers as mcbench sees it: layers of experts to read, replace, run and observe.

Everything goes through transformers' experts registry (`mcbench.experts`); what else has to be known of a model, its
blocks, routers, shared experts and attention, is found by running a few tokens through it and watching who is called
with what. No architecture is listed by name; what is not understood is refused with BadInput.

Letters in shapes: B sequences, S positions, T = B * S tokens, V vocabulary, L MoE layers, E experts, K chosen experts,
D width of the model, F inner width of an expert.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mcbench.allocation import WeightCount
from mcbench.attention import Received, collecting
from mcbench.errors import BadInput
from mcbench.experts import IMPLEMENTATION, PROJECTIONS, Experts, find_experts, prove_layout
from mcbench.loading import Origin, read_model
from mcbench.router import RouterRule, read_rule
from mcbench.routing import SIGHTS, Choices, PairCounts, Routed, modality_marks
from mcbench.source import Source, base_name, describe

__all__ = ["PROJECTIONS", "MoEBatch", "MoEModel", "Trace", "load_model"]

_SURVEY_TOKENS = 16
# how configurations say that there are experts, for the models in which we found none
_EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_moe_experts")


@dataclass(frozen=True)
class MoEBatch:
    """What one MoE layer did with the tokens of one forward pass.

    hidden: [T, D] what the routed experts read. index: [T, K] chosen experts; E means none. weight: [T, K] routing
    weights as applied. probability: [T, K] fp32 the router's score of the chosen ones among all experts, before top-k
    renormalisation and without correction bias. output: [T, D] of the block, shared experts included. mask: [T] bool,
    False at padding, which must never be counted.
    """

    layer: int
    hidden: Tensor
    index: Tensor
    weight: Tensor
    probability: Tensor
    output: Tensor
    mask: Tensor


class Trace(NamedTuple):
    """A forward pass to resume from: logits [B, S, V], and for each MoE layer what enters its decoder layer."""

    logits: Tensor
    entering: tuple[Tensor, ...]


class DecoderLayer(NamedTuple):
    """What can be quantised in one decoder layer: its MoE layer, None where it is dense, and its linears by name."""

    moe: int | None
    linears: tuple[str, ...]


@dataclass(frozen=True)
class _Layer:
    """One MoE layer: its experts, the block around them, its router, and the decoder layer it stands in."""

    experts: Experts
    block: nn.Module
    block_name: str
    router: nn.Module
    router_name: str
    rule: RouterRule | None
    decoder: int


def load_model(name_or_path: str, *, dtype: str = "auto", device: str = "cpu", text: bool = False) -> MoEModel:
    """The model `reference`, a folder in transformers' format or a packed one of ours, or a name on the hub.

    dtype: auto (as stored; float32 for `reference`), float32, bfloat16 or float16. Only safetensors are read; code in a
    model folder is never executed. text: whether it will have to read text, so that a model without tokenizer is
    refused at once. Raises BadInput for whatever is missing, damaged, not finite or not understood, and where both
    do not belong together.
    """
    loaded = read_model(name_or_path, dtype=dtype, device=device, text=text)
    moe = MoEModel(loaded.model, loaded.tokenizer, name_or_path)
    moe._no_tokenizer, moe._origin = loaded.no_tokenizer, loaded.origin
    return moe


class MoEModel:
    """A loaded model and what mcbench knows of it. A dense model has no layers here, and `is_moe` says so.

    layers, experts, top_k: L, E, K. normalizes_top_k: whether the weights of the chosen are divided by their sum.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None, name: str = ""
    ) -> None:
        self.model = model.eval()
        self.name = name or str(model.config.name_or_path) or type(model).__name__
        self._tokenizer = tokenizer
        self._no_tokenizer = ""
        self._origin: Origin | None = None
        self._digest: str | None = None
        self._resumable: bool | None = None
        experts = find_experts(model)
        self._refuse_hidden_experts(experts)
        if experts:
            model.set_experts_implementation(IMPLEMENTATION)
        for layer in experts:
            layer.module._mcbench = layer  # type: ignore[assignment]
            if layer.module.config._experts_implementation != IMPLEMENTATION:  # type: ignore[union-attr]
                raise BadInput(f"{layer.name} does not accept another experts implementation; it is not supported")
            prove_layout(layer)
        survey = _Survey(self, experts)
        self._decoders = survey.decoders
        self._decoder_names = [survey.names[decoder] for decoder in survey.decoders]
        self._layers = survey.layers()
        self._mixers = survey.mixers
        self._siblings = survey.siblings
        self._called = survey.called
        self._returned = survey.returned
        self.top_k = survey.top_k
        self.layers = len(experts)
        self.experts = experts[0].count if experts else 0

    @property
    def is_moe(self) -> bool:
        return self.layers > 0

    @property
    def normalizes_top_k(self) -> bool:
        return self.is_moe and self._rule(0).normalizes

    @property
    def has_tokenizer(self) -> bool:
        return self._tokenizer is not None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Raises BadInput with the reason where the model came without one."""
        if self._tokenizer is None:
            none = f"the model {self.name!r} has no tokenizer, so it cannot read text; add the tokenizer files"
            raise BadInput(self._no_tokenizer or none)
        return self._tokenizer

    @functools.cached_property
    def source(self) -> Source | None:
        """What the model was in its files; None where it was not read from any."""
        if self._origin is None:
            return None
        origin, components = self._origin, self.components()
        return describe(
            origin.files,
            {key: components.get(base_name(name), "other") for key, name in origin.renamed.items()},
            origin.left,
            method=origin.method,
            packed=origin.packed.expert_average if origin.packed is not None and self.is_moe else None,
            computes=str(self.model.dtype).removeprefix("torch."),
            notes=origin.notes,
        )

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    def score(self, layer: int) -> RouterRule:
        """How the router of a layer makes weights from its logits; raises BadInput where that is not understood."""
        return self._rule(layer)

    # ---- weights

    def weight(self, layer: int, projection: str) -> Tensor:
        """[E, out, in] view of one projection of all experts of a layer, in the model's dtype; do not write into it."""
        return self._layers[layer].experts.matrices(projection)

    def bias(self, layer: int, projection: str) -> Tensor | None:
        """[E, out] view of the biases, None where the experts have none."""
        return self._layers[layer].experts.biases(projection)

    def set_weight(self, layer: int, expert: int, projection: str, value: Tensor) -> None:
        """Replaces one expert matrix [out, in]; the values are rounded to the model's dtype."""
        target = self.weight(layer, projection)[expert]
        _copy(target, value, f"expert {expert} of MoE layer {layer}, {projection}")
        self._digest = None

    def set_linear(self, name: str, value: Tensor) -> None:
        """Replaces the weight [out, in] of an attention or shared-expert linear."""
        _copy(self.linear(name).weight.detach(), value, name)
        self._digest = None

    def linear(self, name: str) -> nn.Linear:
        """An attention or shared-expert linear by its name."""
        found = self.model.get_submodule(name)
        assert isinstance(found, nn.Linear)
        return found

    def experts_name(self, layer: int) -> str:
        """The name of the experts module of a layer inside the transformers model."""
        return self._layers[layer].experts.name

    def attention_linears(self) -> dict[str, nn.Linear]:
        """Every linear of the parts that mix positions: attention of any kind, and what hybrids put in its place.

        A linear whose weight is read without calling it (some of Mamba's) is left out: no calibration sees its input.
        """
        return {name: linear for name, linear in _linears(self._mixers).items() if linear in self._called}

    def shared_linears(self) -> dict[str, nn.Linear]:
        """Every linear of the experts that run for all tokens, whether inside the MoE block or beside it."""
        inside = {layer.block_name: layer.block for layer in self._layers}
        skipped = tuple(f"{n}." for layer in self._layers for n in (layer.router_name, layer.experts.name))
        names = {layer.router_name for layer in self._layers}
        found = _linears(inside | self._siblings)
        # a linear of one output is a gate in front of the shared expert, part of the routing
        return {
            name: linear
            for name, linear in found.items()
            if linear in self._called and linear.out_features > 1 and name not in names and not name.startswith(skipped)
        }

    def decoder_layers(self) -> tuple[DecoderLayer, ...]:
        """Every decoder layer in the order of running, with its attention and shared-expert linears."""
        sparse = {layer.decoder: index for index, layer in enumerate(self._layers)}
        names = (*self.attention_linears(), *self.shared_linears())
        return tuple(
            DecoderLayer(sparse.get(place), tuple(name for name in names if name.startswith(f"{prefix}.")))
            for place, prefix in enumerate(self._decoder_names)
        )

    def router_parameters(self) -> dict[str, nn.Parameter]:
        """What decides about experts, by full name: all of a MoE block that is neither routed nor shared expert."""
        taken = {f"{name}.{part}" for name in self.shared_linears() for part in ("weight", "bias")}
        return {
            f"{layer.block_name}.{name}": parameter
            for layer in self._layers
            for name, parameter in layer.block.named_parameters()
            if f"{layer.block_name}.{name}" not in taken
            and not f"{layer.block_name}.{name}".startswith(f"{layer.experts.name}.")
        }

    def components(self) -> dict[str, str]:
        """The component of every parameter that is not "other", by its name in the transformers model."""
        fused = ("gate_up_proj", "down_proj")
        return {
            **{f"{self.experts_name(layer)}.{part}": "experts" for layer in range(self.layers) for part in fused},
            **dict.fromkeys((f"{name}.weight" for name in self.attention_linears()), "attention"),
            **dict.fromkeys((f"{name}.weight" for name in self.shared_linears()), "shared"),
            **dict.fromkeys(self.router_parameters(), "router"),
        }

    def weight_count(self) -> WeightCount:
        """How many weights each component has; parameters that are tied count once."""
        per_expert = sum(self.weight(0, p)[0].numel() for p in PROJECTIONS) if self.is_moe else 0
        attention = sum(linear.weight.numel() for linear in self.attention_linears().values())
        shared = sum(linear.weight.numel() for linear in self.shared_linears().values())
        router = sum(parameter.numel() for parameter in self.router_parameters().values())
        total = sum(parameter.numel() for parameter in self.model.parameters())
        return WeightCount(
            layers=self.layers,
            experts=self.experts,
            per_expert=per_expert,
            attention=attention,
            shared=shared,
            router=router,
            other=total - self.layers * self.experts * per_expert - attention - shared - router,
        )

    def digest(self) -> str:
        """sha256 of every parameter and persistent buffer (name, dtype, shape, bytes) and of the configuration."""
        if self._digest is None:
            digest = hashlib.sha256(json.dumps(_essentials(self.model.config), sort_keys=True, default=str).encode())
            for name, tensor in sorted(self.model.state_dict().items()):
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
            self._digest = digest.hexdigest()
        return self._digest

    # ---- running

    @torch.no_grad()
    def logits(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """[B, S, V] for input_ids [B, S]; attention_mask [B, S] is 0 at padding."""
        mask = None if attention_mask is None else attention_mask.to(self.device)
        output = self.model(input_ids=input_ids.to(self.device), attention_mask=mask, use_cache=False)
        logits: Tensor = output.logits
        return logits

    @torch.no_grad()
    def expert_output(
        self,
        layer: int,
        expert: int,
        hidden: Tensor,
        gate: Tensor | None = None,
        up: Tensor | None = None,
        down: Tensor | None = None,
    ) -> Tensor:
        """[T, D]: the MLP of one expert on hidden [T, D], with some of its matrices [out, in] replaced.

        Activation, clamps and biases are the architecture's own; the routing weight is not applied.
        """
        return self._layers[layer].experts.output(expert, hidden, gate, up, down)

    @torch.no_grad()
    def expert_hidden(
        self, layer: int, expert: int, hidden: Tensor, gate: Tensor | None = None, up: Tensor | None = None
    ) -> Tensor:
        """[T, F]: what enters the down projection of one expert."""
        return self._layers[layer].experts.hidden(expert, hidden, gate, up)

    @torch.no_grad()
    def run_experts(
        self,
        layer: int,
        hidden: Tensor,
        index: Tensor,
        weight: Tensor,
        weights_override: Mapping[tuple[int, str], Tensor] | None = None,
    ) -> Tensor:
        """[T, D]: the routed experts' weighted sum for hidden [T, D], index and weight [T, K]; no shared expert."""
        return self._layers[layer].experts.run(hidden, index, weight, weights_override)

    def trace(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Trace:
        """A forward pass that keeps what `forward_from` needs; raises BadInput where resuming would not be exact."""
        entering: list[Tensor] = []
        with ExitStack() as stack:
            for layer in self._layers:
                module = self._decoders[layer.decoder]
                stack.enter_context(_hooked(module, lambda _, args, kwargs: entering.append(_first(args, kwargs))))
            trace = Trace(self.logits(input_ids, attention_mask), tuple(entering))
        if self._resumable is None and max(self._returned) > 1:
            self._resumable = False
        if self._resumable is None:
            again = self.forward_from(self.layers - 1, trace.entering[-1], input_ids, attention_mask)
            self._resumable = torch.equal(again, trace.logits) or not trace.logits.is_cpu
        if not self._resumable:
            raise BadInput(f"a forward pass of {self.name!r} cannot be resumed: its layers share more than one state")
        return trace

    @property
    def resumes(self) -> bool:
        """Whether a forward pass can be resumed in the middle, exactly; tried on a few tokens when first asked."""
        if self._resumable is None:
            try:
                self.trace(self._some_tokens())
            except BadInput:
                self._resumable = False
        return bool(self._resumable)

    def forward_from(
        self, layer: int, hidden: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> Tensor:
        """[B, S, V] logits, computed from the decoder layer of MoE layer `layer` upwards.

        hidden is what `trace` saw enter that layer, input_ids and attention_mask are those of the trace: embedding and
        masks are the model's own, the decoder layers below are passed over.
        """
        with self._passing_over(self._layers[layer].decoder, hidden):
            return self.logits(input_ids, attention_mask)

    def run_decoders(
        self,
        start: int,
        stop: int,
        hidden: Tensor | None,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
    ) -> Tensor | None:
        """[B, S, D] what enters decoder layer `stop`, None behind the last, after running those from `start` on.

        hidden is what enters decoder layer `start` for these input_ids [B, S]; None where that is the first. What comes
        after `stop` is not computed.
        """
        assert start == 0 or hidden is not None
        with ExitStack() as stack:
            if hidden is not None:
                stack.enter_context(self._passing_over(start, hidden.to(self.device)))
            if stop < len(self._decoders):
                stack.enter_context(_hooked(self._decoders[stop], _stop))
            try:
                self.logits(input_ids, attention_mask)
            except _Stopped as stopped:
                return stopped.hidden
        return None

    @contextmanager
    def _passing_over(self, start: int, hidden: Tensor) -> Iterator[None]:
        """While open, a forward pass finds `hidden` [B, S, D] in front of decoder layer `start`."""
        with ExitStack() as stack:
            for index, module in enumerate(self._decoders[:start]):
                stack.enter_context(_replaced(module, (hidden,) if self._returned[index] else hidden))
            yield

    def _some_tokens(self) -> Tensor:
        vocabulary: int = self.model.get_input_embeddings().weight.shape[0]
        return torch.arange(1, 1 + _SURVEY_TOKENS)[None] % vocabulary

    @contextmanager
    def observe(self, observer: Callable[[MoEBatch], None]) -> Iterator[None]:
        """Calls `observer` for every MoE layer of every forward pass, in order, while the context is open."""
        watch = _Watch(self, observer)
        for layer in range(self.layers):
            self._rule(layer)
        with ExitStack() as stack:
            stack.enter_context(_hooked(self.model, watch.masks))
            for index, found in enumerate(self._layers):
                found.experts.listening = True
                stack.callback(_deafen, found.experts)
                stack.enter_context(_listening(found.router, watch.routed(index)))
                stack.enter_context(_listening(found.block, watch.finished(index)))
            yield

    @contextmanager
    def route(
        self,
        policy: Callable[[Choices], Routed],
        *,
        sees: Sequence[str] = (),
        layers: Sequence[int] | None = None,
    ) -> Iterator[PairCounts]:
        """While open, `policy` says for each of the MoE layers which of the chosen experts run; yields what ran.

        sees: what it wants to see of SIGHTS. layers: where it is asked, everywhere by default; elsewhere all that the
        router chose runs. Raises BadInput where the model cannot show what the policy wants to see.
        """
        chosen = tuple(range(self.layers)) if layers is None else tuple(layers)
        self._refuse_routing(sees, chosen)
        switch = _Switch(self, policy, frozenset(sees), frozenset(chosen))
        with ExitStack() as stack:
            if "attention" in sees:
                switch.received = stack.enter_context(collecting(self.model, self._decoders))
            stack.enter_context(_hooked(self.model, switch.entering))
            for index, found in enumerate(self._layers):
                if "logits" in sees:
                    stack.enter_context(_listening(found.router, switch.routed(index)))
                found.experts.policy = partial(switch.apply, index)
                stack.callback(setattr, found.experts, "policy", None)
            if "attention" in sees:
                self._try_attention(switch)
            yield switch.counts

    def _refuse_routing(self, sees: Sequence[str], layers: Sequence[int]) -> None:
        if not self.is_moe:
            raise BadInput(f"{self.name!r} is a dense model, so there are no experts to prune")
        if unknown := sorted(set(sees) - set(SIGHTS)):
            raise BadInput(f"a policy can see {', '.join(SIGHTS)}, not {unknown[0]!r}")
        if wrong := [layer for layer in layers if not 0 <= layer < self.layers]:
            raise BadInput(f"there is no MoE layer {wrong[0]} in {self.name!r}; choose from 0 to {self.layers - 1}")
        if any(found.experts.policy is not None for found in self._layers):
            raise BadInput(f"a routing policy is in place in {self.name!r} already; close it first")
        for layer in layers:
            self._rule(layer)

    def _try_attention(self, switch: _Switch) -> None:
        """Runs a few tokens to see whether each layer that the policy prunes reports its attention."""
        counts, policy = switch.counts, switch.policy
        switch.counts, switch.policy = (
            PairCounts(self.layers, self.experts, modality_marks(self.model.config)),
            lambda choices: choices.keep(choices.chosen),
        )
        try:
            self.logits(self._some_tokens())
        except BadInput:
            raise
        except Exception as error:  # nobody runs the eager attention of some families
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise BadInput(
                f"the eager attention of {self.name!r} fails ({reason}), so it cannot report what tokens receive;"
                " choose a policy that does not need attention"
            ) from error
        switch.counts, switch.policy = counts, policy

    def _rule(self, layer: int) -> RouterRule:
        found = self._layers[layer]
        if found.rule is None:
            raise BadInput(f"how the router {found.router_name} makes weights from its logits is not understood")
        return found.rule

    def _refuse_hidden_experts(self, experts: Sequence[Experts]) -> None:
        config = self.model.config.get_text_config()
        for key in _EXPERT_COUNTS:
            count = getattr(config, key, None)
            if not experts and isinstance(count, int) and count > 1:
                raise BadInput(f"{self.name!r} declares {key} = {count}, none in transformers' experts registry")


class _Survey:
    """One forward pass over a few tokens, to see which module does what."""

    def __init__(self, model: MoEModel, experts: Sequence[Experts]) -> None:
        self.name, self.experts = model.name, experts
        self.names = {module: name for name, module in model.model.named_modules()}
        prefix, self.decoders = _decoder_layers(model.model, experts)
        self.blocks = [model.model.get_submodule(e.name.rpartition(".")[0]) for e in experts]
        if any(block in self.decoders for block in self.blocks):
            raise BadInput(f"the experts of {self.name!r} stand in the decoder layer, not in a block of their own")
        self.calls: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in experts]
        self.produced: dict[nn.Module, Any] = {}
        self.told: dict[nn.Module, bool] = {}
        self.called: set[nn.Module] = set()
        self.returned = [0] * len(self.decoders)  # length of the tuple a decoder layer returns, 0 for a plain tensor
        self._run(model)
        self.top_k = self._checked_top_k()
        children = {f"{prefix}.{i}.{n}": (i, c) for i, d in enumerate(self.decoders) for n, c in d.named_children()}
        candidates = {name: (i, c) for name, (i, c) in children.items() if c not in self.blocks and _linears({name: c})}
        sparse = {self._decoder_of(e) for e in experts}
        self.mixers = {name: c for name, (i, c) in candidates.items() if self.told.get(c)}
        self.siblings = {name: c for name, (i, c) in candidates.items() if not self.told.get(c) and i in sparse}
        if not self.mixers:
            raise BadInput(f"no attention made of linear layers was found in {self.name!r}; it is not supported")
        self.prefix = prefix

    def layers(self) -> list[_Layer]:
        return [self._layer(experts, block) for experts, block in zip(self.experts, self.blocks, strict=True)]

    def _layer(self, experts: Experts, block: nn.Module) -> _Layer:
        _, index, weight = self.calls[self.experts.index(experts)][0]
        router = next((c for c in block.children() if _contains(self.produced.get(c), index)), None)
        if router is None:
            raise BadInput(f"no module in {self.names[block]} hands out the chosen experts; it is not supported")
        logits = _router_logits(self.produced[router], experts.count, len(index), weight)
        rule = None
        if logits is not None:
            jitter = getattr(router, "router_jitter_noise", None)
            try:
                rule = read_rule(self.names[router], logits, index, weight, jitter)
            except BadInput:
                rule = None  # the model can be run and compressed; observing it is refused
        return _Layer(
            experts=experts,
            block=block,
            block_name=self.names[block],
            router=router,
            router_name=self.names[router],
            rule=rule,
            decoder=self._decoder_of(experts),
        )

    def _run(self, model: MoEModel) -> None:
        order: list[int] = []

        def experts_called(index: int) -> Callable[..., None]:
            def note(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
                hidden, chosen, weight = args[:3]
                self.calls[index].append((hidden, chosen, weight))
                order.append(index)

            return note

        def child_called(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.told[module] = len(args) + len(kwargs) > 1  # a part that mixes positions is told masks or positions

        with ExitStack() as stack:
            for i, experts in enumerate(self.experts):
                stack.enter_context(_hooked(experts.module, experts_called(i)))
            for block in self.blocks:
                for child in block.children():
                    stack.enter_context(_listening(child, self.produced.__setitem__))
            for linear in _linears({"": model.model}).values():
                stack.enter_context(_listening(linear, lambda module, _: self.called.add(module)))
            for i, decoder in enumerate(self.decoders):
                stack.enter_context(_listening(decoder, partial(self._returned, i)))
                for child in decoder.children():
                    stack.enter_context(_hooked(child, child_called))
            try:
                logits = model.logits(model._some_tokens())
            except BadInput:
                raise
            except Exception as error:  # a config that does not fit the weights leads anywhere
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                raise BadInput(
                    f"{self.name!r} cannot run {_SURVEY_TOKENS} tokens ({reason}); see its config"
                ) from error
        if not bool(torch.isfinite(logits).all()):
            raise BadInput(f"{self.name!r} computes NaN or infinity for ordinary tokens; try --dtype float32")
        if order != list(range(len(self.experts))):
            raise BadInput(f"the MoE layers of {self.name!r} do not run once each and in order: {order}")

    def _returned(self, index: int, module: nn.Module, output: Any) -> None:
        self.returned[index] = len(output) if isinstance(output, tuple) else 0

    def _checked_top_k(self) -> int:
        chosen = {index.shape[-1] for [(_, index, _)] in self.calls}
        if len(chosen) > 1:
            raise BadInput(f"the MoE layers of {self.name!r} choose different numbers of experts: {sorted(chosen)}")
        if 0 in chosen:
            raise BadInput(f"the MoE layers of {self.name!r} choose no expert; see its config")
        return chosen.pop() if chosen else 0

    def _decoder_of(self, experts: Experts) -> int:
        for index, decoder in enumerate(self.decoders):
            if experts.name.startswith(f"{self.names[decoder]}."):
                return index
        raise AssertionError(experts.name)


class _Watch:
    """Puts the batches for an observer together from what the hooks of one forward pass see."""

    def __init__(self, model: MoEModel, observer: Callable[[MoEBatch], None]) -> None:
        self.model, self.observer = model, observer
        self.mask: Tensor | None = None
        self.logits: dict[int, Any] = {}
        self.checked: set[int] = set()

    def masks(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
        if not isinstance(ids, Tensor) or not (mask is None or (isinstance(mask, Tensor) and mask.dim() == 2)):
            raise BadInput("a model can be observed only with input_ids [B, S] and an attention_mask [B, S]")
        # while text is generated the mask covers the past as well
        self.mask = torch.ones_like(ids).bool() if mask is None else mask[:, -ids.shape[1] :].bool()

    def routed(self, layer: int) -> Callable[[nn.Module, Any], None]:
        return lambda _, output: self.logits.__setitem__(layer, output)

    def finished(self, layer: int) -> Callable[[nn.Module, Any], None]:
        def note(_: nn.Module, output: Any) -> None:
            found = self.model._layers[layer]
            call, rule = found.experts.last_call, found.rule
            assert call is not None
            assert rule is not None
            assert self.mask is not None
            found.experts.last_call = None
            logits = _router_logits(self.logits.pop(layer), self.model.experts, len(call.chosen), call.weight)
            assert logits is not None
            if len(call.hidden) != self.mask.numel():
                raise BadInput(f"MoE layer {layer} sees {len(call.hidden)} of {self.mask.numel()} tokens")
            if layer not in self.checked and not rule.explains(logits, call.chosen, call.weight):
                raise BadInput(f"the weights that the router {found.router_name} applies do not follow {rule}")
            self.checked.add(layer)
            states = output[0] if isinstance(output, tuple) else output
            self.observer(
                MoEBatch(
                    layer=layer,
                    hidden=call.hidden,
                    index=call.chosen,
                    weight=call.weight,
                    probability=rule.probability(logits, call.chosen),
                    output=states.reshape(-1, states.shape[-1]),
                    mask=self.mask.reshape(-1).to(call.hidden.device),
                )
            )

        return note


@dataclass(frozen=True)
class _Pass:
    """Which tokens go through the model just now: everything [B, S], flattened to [T] where a policy sees it."""

    token: Tensor
    real: Tensor
    position: Tensor
    past: Tensor  # [B, 1]
    decoding: bool

    def flat(self) -> dict[str, Any]:
        """The fields of `Choices` that are the same in every layer."""
        batch, length = self.token.shape
        rows = torch.arange(batch, device=self.token.device)[:, None].expand(batch, length)
        lengths = self.real.sum(1, keepdim=True).expand(batch, length)
        fields = {"token": self.token, "real": self.real, "sequence": rows, "position": self.position}
        fields |= {"place": self.position - self.past, "length": lengths}
        return {name: value.reshape(-1).contiguous() for name, value in fields.items()} | {"decoding": self.decoding}


class _Switch:
    """Stands between router and experts while a policy is in place."""

    def __init__(
        self, model: MoEModel, policy: Callable[[Choices], Routed], sees: frozenset[str], layers: frozenset[int]
    ) -> None:
        self.model, self.policy, self.sees, self.layers = model, policy, sees, layers
        self.counts = PairCounts(model.layers, model.experts, modality_marks(model.model.config))
        self.received: list[Received] = []  # by decoder layer
        self.passing: dict[str, Any] = {}
        self.logits: dict[int, Any] = {}

    def entering(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
        if not isinstance(ids, Tensor) or not (mask is None or (isinstance(mask, Tensor) and mask.dim() == 2)):
            raise BadInput("a policy can be used only with input_ids [B, S] and an attention_mask [B, S]")
        batch, length = ids.shape
        if mask is None:
            cache = kwargs.get("past_key_values")
            seen = int(cache.get_seq_length()) if cache is not None else 0
            mask = torch.ones(batch, seen + length, dtype=torch.long, device=ids.device)
        attended = mask.bool().to(ids.device)  # the past comes first
        real = attended[:, -length:]
        past = attended[:, :-length].sum(1, keepdim=True)
        position = (attended.long().cumsum(1) - 1).clamp(min=0)[:, -length:]
        decoding = length == 1 and bool((past > 0).all())
        self.passing = _Pass(ids, real, position, past, decoding).flat()
        for collector in self.received:
            collector.real, collector.total = real, None

    def routed(self, layer: int) -> Callable[[nn.Module, Any], None]:
        return lambda _, output: self.logits.__setitem__(layer, output)

    def apply(self, layer: int, hidden: Tensor, index: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The index [T, K] and weight [T, K] that run, slot by slot as the router had them."""
        found, experts = self.model._layers[layer], self.model.experts
        if len(hidden) != len(self.passing["real"]):
            raise BadInput(f"MoE layer {layer} sees {len(hidden)} of {len(self.passing['real'])} tokens")
        falling = weight.masked_fill(index >= experts, -torch.inf).argsort(dim=-1, descending=True, stable=True)
        choices = Choices(
            layer=layer,
            experts=experts,
            normalizes=found.rule.normalizes if found.rule is not None else False,
            index=index.gather(-1, falling),
            weight=weight.gather(-1, falling),
            **self._passing_on(hidden.device),
            hidden=hidden if "hidden" in self.sees else None,
            logits=self._logits(layer, len(index), weight) if layer in self.layers else None,
            attention=self._attention(layer, hidden.device) if layer in self.layers else None,
        )
        if layer not in self.layers:
            self.counts.add(choices, None)
            return index, weight
        routed = self.policy(choices)
        self.counts.add(choices, routed)
        keep = torch.zeros_like(routed.keep).scatter(-1, falling, routed.keep)
        return index.masked_fill(~keep, experts), torch.zeros_like(weight).scatter(-1, falling, routed.weight)

    def _passing_on(self, device: torch.device) -> dict[str, Any]:
        return {name: v.to(device) if isinstance(v, Tensor) else v for name, v in self.passing.items()}

    def _logits(self, layer: int, tokens: int, weight: Tensor) -> Tensor | None:
        if "logits" not in self.sees:
            return None
        return _router_logits(self.logits.pop(layer), self.model.experts, tokens, weight)

    def _attention(self, layer: int, device: torch.device) -> Tensor | None:
        """[T] received by each token, divided by the number of queries at or after it."""
        if "attention" not in self.sees:
            return None
        total = self.received[self.model._layers[layer].decoder].total
        if total is None:
            raise BadInput(
                f"the attention of MoE layer {layer} of {self.model.name!r} cannot report what tokens receive (it has "
                "no softmax attention in transformers' registry); leave that layer out of layers=(...), or choose a "
                "policy that does not need attention"
            )
        later = (self.passing["length"] - self.passing["place"]).clamp(min=1)
        received: Tensor = total.reshape(-1).to(device) / later.to(device)
        return received


def _decoder_layers(model: PreTrainedModel, experts: Sequence[Experts]) -> tuple[str, list[nn.Module]]:
    """The list of decoder layers and its name: the one all MoE layers stand in, or that of the configured length."""
    count = model.config.get_text_config().num_hidden_layers
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or (len(module) != count and not experts):
            continue
        own = {e.name[len(name) + 1 :].split(".")[0] for e in experts if e.name.startswith(f"{name}.")}
        if len(own) == len(experts):
            return name, list(module)
    raise BadInput(f"no list of decoder layers that holds every MoE layer was found in {type(model).__name__}")


def _router_logits(produced: Any, experts: int, tokens: int, weight: Tensor) -> Tensor | None:
    """[T, E] the logits among what a router returned, None where there are none."""
    for tensor in produced if isinstance(produced, tuple | list) else (produced,):
        fits = isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.shape[-1] == experts
        if fits and tensor.numel() == tokens * experts and tensor is not weight:
            logits: Tensor = tensor.reshape(tokens, experts)
            return logits
    return None


def _contains(produced: Any, index: Tensor) -> bool:
    parts = produced if isinstance(produced, tuple | list) else (produced,)
    same = [p for p in parts if isinstance(p, Tensor) and p.dtype == index.dtype and p.numel() == index.numel()]
    return any(torch.equal(p.reshape_as(index), index) for p in same)


def _linears(parts: Mapping[str, nn.Module]) -> dict[str, nn.Linear]:
    return {
        f"{prefix}.{name}" if name else prefix: module
        for prefix, part in parts.items()
        for name, module in part.named_modules()
        if isinstance(module, nn.Linear)
    }


def _copy(target: Tensor, value: Tensor, what: str) -> None:
    if target.shape != value.shape:
        raise BadInput(f"{what} is a matrix {tuple(target.shape)}; {tuple(value.shape)} does not fit")
    target.copy_(value)


def _essentials(config: Any) -> dict[str, Any]:
    """The configuration without what says nothing about the numbers: names, versions, dtype, ways of computing."""
    left_out = {"transformers_version", "dtype", "torch_dtype", "architectures", "quantization_config"}
    return {k: v for k, v in config.to_dict().items() if k not in left_out and not k.startswith("_")}


class _Stopped(Exception):
    """Ends a forward pass in front of a decoder layer."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


def _stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    raise _Stopped(_first(args, kwargs))


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    found = args[0] if args else kwargs["hidden_states"]
    assert isinstance(found, Tensor)
    return found


@contextmanager
def _hooked(module: nn.Module, hook: Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]) -> Iterator[None]:
    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hook(module, args, kwargs)

    handle = module.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _listening(module: nn.Module, hook: Callable[[nn.Module, Any], None]) -> Iterator[None]:
    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        hook(module, output)

    handle = module.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _replaced(module: nn.Module, result: Any) -> Iterator[None]:
    """Lets a module return `result` whatever it is called with."""
    own = module.__dict__.get("forward")
    module.__dict__["forward"] = lambda *args, **kwargs: result
    try:
        yield
    finally:
        if own is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = own


def _deafen(experts: Experts) -> None:
    experts.listening, experts.last_call = False, None
