"""The reference models as they are trained: tokens sorted by expert, and the export to transformers' classes.

Without a shared expert the arithmetic is Mixtral's, with one Qwen2-MoE's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """The sizes of a model; `shared_width` is that of its shared expert, 0 for none."""

    vocabulary: int
    width: int = 128
    layers: int = 4
    heads: int = 2
    head_width: int = 32
    experts: int = 8
    chosen: int = 2
    expert_width: int = 224
    shared_width: int = 0
    context: int = 4096
    theta: float = 1_000_000.0
    epsilon: float = 1e-5


# expert batches are padded to a multiple of this many rows: matrix kernels are prepared once per size
BLOCK = 128


def _ranges(count: Tensor) -> list[tuple[int, int]]:
    ends = _padded(count).cumsum(0).tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _padded(count: Tensor) -> Tensor:
    return (count + BLOCK - 1) // BLOCK * BLOCK


def _swiglu(h: Tensor) -> Tensor:
    gate, up = h.float().chunk(2, -1)
    return (F.silu(gate) * up).to(h.dtype)


def _swiglu_gradient(h: Tensor, grad: Tensor) -> Tensor:
    gate, up = h.float().chunk(2, -1)
    grad = grad.float()
    sigmoid = torch.sigmoid(gate)
    silu = gate * sigmoid
    return torch.cat((grad * up * (sigmoid + silu * (1 - sigmoid)), grad * silu), -1).to(h.dtype)


_fast: dict[str, Any] = {"swiglu": _swiglu, "gradient": _swiglu_gradient}


def compile_pieces() -> None:
    """Compile the elementwise functions inside the experts' step."""
    _fast["swiglu"] = torch.compile(_swiglu, dynamic=False)
    _fast["gradient"] = torch.compile(_swiglu_gradient, dynamic=False)


@torch.library.custom_op("mcbench_reference::experts", mutates_args=())
def experts(
    x: Tensor, gate_up: Tensor, down: Tensor, index: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Every token's experts, weighted and summed.

    Takes x [T, D], gate_up [E, 2I, D], down [E, D, I], index and weight [T, K]; gives the sum [T, D] and what the
    backward pass needs.
    """
    chosen = index.shape[1]
    flat = index.reshape(-1)
    order = flat.argsort(stable=True)  # [T*K], grouped by expert
    count = torch.bincount(flat, minlength=gate_up.shape[0])
    padded = _padded(count)
    shift = padded.cumsum(0) - padded - (count.cumsum(0) - count)  # how far padding moves each expert's rows
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device) + shift[flat[order]]
    source = order.new_zeros(_rows(len(order), len(count)))
    source[place] = torch.arange(len(order), device=order.device) // chosen
    rows = x[source]
    hidden = x.new_zeros(len(source), gate_up.shape[1])
    for e, (a, b) in enumerate(_ranges(count)):
        torch.mm(rows[a:b], gate_up[e].t(), out=hidden[a:b])
    active = _fast["swiglu"](hidden)
    y = x.new_empty(len(source), x.shape[1])
    for e, (a, b) in enumerate(_ranges(count)):
        torch.mm(active[a:b], down[e].t(), out=y[a:b])
    y = y[place]
    out = (y.view(*index.shape, -1) * weight.to(x.dtype).unsqueeze(-1)).sum(1)
    return out, source, place, count, hidden, y


def _rows(choices: int, experts: int) -> int:
    return choices + experts * (BLOCK - 1)


@experts.register_fake
def _(x: Tensor, gate_up: Tensor, down: Tensor, index: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    n, e = index.numel(), gate_up.shape[0]
    hidden = x.new_empty(_rows(n, e), gate_up.shape[1])
    return (
        torch.empty_like(x),
        index.new_empty(_rows(n, e)),
        index.new_empty(n),
        index.new_empty(e),
        hidden,
        x.new_empty(n, x.shape[1]),
    )


@torch.library.custom_op("mcbench_reference::experts_backward", mutates_args=())
def experts_backward(
    grad: Tensor,
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    weight: Tensor,
    source: Tensor,
    place: Tensor,
    count: Tensor,
    hidden: Tensor,
    y: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of `experts` for x, gate_up, down and weight."""
    tokens, chosen = weight.shape
    d_weight = (y.view(tokens, chosen, -1) * grad.unsqueeze(1)).sum(-1, dtype=weight.dtype)
    rows = x[source]
    d_y = torch.zeros_like(rows)  # padding stays zero
    d_y[place] = (grad.unsqueeze(1) * weight.to(x.dtype).unsqueeze(-1)).view(tokens * chosen, -1)
    active = _fast["swiglu"](hidden)
    d_active = torch.zeros_like(active)
    d_down, d_gate_up = torch.empty_like(down), torch.empty_like(gate_up)
    ranges = _ranges(count)
    for e, (a, b) in enumerate(ranges):
        torch.mm(d_y[a:b], down[e], out=d_active[a:b])
        torch.mm(d_y[a:b].t(), active[a:b], out=d_down[e])
    d_hidden = _fast["gradient"](hidden, d_active)
    d_rows = torch.zeros_like(rows)
    for e, (a, b) in enumerate(ranges):
        torch.mm(d_hidden[a:b], gate_up[e], out=d_rows[a:b])
        torch.mm(d_hidden[a:b].t(), rows[a:b], out=d_gate_up[e])
    d_x = d_rows[place].view(tokens, chosen, -1).sum(1)
    return d_x, d_gate_up, d_down, d_weight


@experts_backward.register_fake
def _(
    grad: Tensor, x: Tensor, gate_up: Tensor, down: Tensor, weight: Tensor, *saved: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(gate_up), torch.empty_like(down), torch.empty_like(weight)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    x, gate_up, down, _, weight = inputs
    ctx.save_for_backward(x, gate_up, down, weight, *output[1:])


def _backward(ctx: Any, grad: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
    d_x, d_gate_up, d_down, d_weight = experts_backward(grad.contiguous(), *ctx.saved_tensors)
    return d_x, d_gate_up, d_down, None, d_weight


experts.register_autograd(_backward, setup_context=_keep)


def _norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon) * weight


def _rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat((a * cosine - b * sine, b * cosine + a * sine), -1)


class Drawer(Protocol):
    """Draws a weight of a size from a normal distribution of a scale."""

    def __call__(self, *size: int, scale: float = 0.02) -> nn.Parameter: ...


class SharedExpert(nn.Module):
    """The expert every token visits, weighted by a gate of its own."""

    def __init__(self, shape: Shape, drawn: Drawer) -> None:
        super().__init__()
        self.gate = drawn(1, shape.width, scale=0.05)
        self.gate_up = drawn(2 * shape.shared_width, shape.width, scale=0.06)
        self.down = drawn(shape.width, shape.shared_width, scale=_output_scale(shape))

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        active = _swiglu(F.linear(x.to(dtype), self.gate_up.to(dtype)))
        return torch.sigmoid(F.linear(x, self.gate)) * F.linear(active, self.down.to(dtype)).float()


class Block(nn.Module):
    """One layer; the heads of queries, keys and values lie one below the other."""

    def __init__(self, shape: Shape, drawn: Drawer) -> None:
        super().__init__()
        self.shape = shape
        s, d = shape, shape.width
        self.norm = nn.Parameter(torch.ones(d))
        self.qkv = drawn((s.heads + 2) * s.head_width, d, scale=0.08)
        self.out = drawn(d, s.heads * s.head_width, scale=_output_scale(s))
        self.expert_norm = nn.Parameter(torch.ones(d))
        self.router = drawn(s.experts, d, scale=0.05)
        self.gate_up = drawn(s.experts, 2 * s.expert_width, d, scale=0.06)
        self.down = drawn(s.experts, d, s.expert_width, scale=_output_scale(s))
        self.shared = SharedExpert(s, drawn) if s.shared_width else None

    def attention(self, x: Tensor, cosine: Tensor, sine: Tensor, dtype: torch.dtype) -> Tensor:
        """What the layer's attention adds to x [B, T, D]."""
        s = self.shape
        rows, length, _ = x.shape
        normed = _norm(x, self.norm, s.epsilon).to(dtype)
        qkv = F.linear(normed, self.qkv.to(dtype)).view(rows, length, s.heads + 2, s.head_width).transpose(1, 2)
        turned = _rotate(qkv[:, : s.heads + 1].float(), cosine, sine).to(dtype)
        q = turned[:, : s.heads]
        k = turned[:, s.heads :].expand(rows, s.heads, length, s.head_width)
        v = qkv[:, s.heads + 1 :].expand(rows, s.heads, length, s.head_width)
        mixed = _attended(q, k, v).transpose(1, 2).reshape(rows, length, s.heads * s.head_width)
        return F.linear(mixed, self.out.to(dtype)).float()

    def mixture(self, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """What the layer's experts add to x [B, T, D], the load-balance loss, and every expert's share of choices."""
        s = self.shape
        normed = _norm(x, self.expert_norm, s.epsilon).flatten(0, 1)
        probability = F.linear(normed, self.router).softmax(-1)  # [T, E]
        weight, index = probability.topk(s.chosen, -1)
        weight = weight / weight.sum(-1, keepdim=True)
        moved, _, _, count, *_ = experts(normed.to(dtype), self.gate_up.to(dtype), self.down.to(dtype), index, weight)
        added = moved.float()
        if self.shared is not None:
            added = added + self.shared(normed, dtype)
        share = count.float() / index.numel()
        return added.view(x.shape), s.experts * (share * probability.mean(0)).sum(), share


def _output_scale(shape: Shape) -> float:
    return 0.05 / math.sqrt(2 * shape.layers)


def _attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    length, head_width = q.shape[-2:]
    if length > 256:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    # quicker than the fused kernel here, once compiled
    future = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
    score = (q @ k.transpose(2, 3)).float() / math.sqrt(head_width)  # [B, H, T, T]
    return score.masked_fill(future, float("-inf")).softmax(-1).to(q.dtype) @ v


class Network(nn.Module):
    """A model whose forward pass gives logits and the router's load-balance loss."""

    def __init__(self, shape: Shape, seed: int = 0) -> None:
        super().__init__()
        self.shape = shape
        s, d = shape, shape.width
        generator = torch.Generator().manual_seed(seed)

        def drawn(*size: int, scale: float = 0.02) -> nn.Parameter:
            return nn.Parameter(torch.randn(*size, generator=generator) * scale)

        self.embedding = drawn(s.vocabulary, d, scale=0.5)
        self.head = drawn(s.vocabulary, d)
        self.last_norm = nn.Parameter(torch.ones(d))
        self.blocks = nn.ModuleList(Block(shape, drawn) for _ in range(s.layers))

    def each_block(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def forward(self, ids: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [B, T, V], the load-balance loss, and the share of choices of every expert [L, E]."""
        s = self.shape
        cosine, sine = self._rotation(ids)
        x = self.embedding[ids]  # [B, T, D]
        balance = x.new_zeros(())
        shares = []
        for block in self.each_block():
            x = x + block.attention(x, cosine, sine, dtype)
            moved, uneven, share = block.mixture(x, dtype)
            x = x + moved
            balance = balance + uneven / s.layers
            shares.append(share)
        logits = F.linear(_norm(x, self.last_norm, s.epsilon).to(dtype), self.head.to(dtype))
        return logits, balance, torch.stack(shares)

    def _rotation(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        s = self.shape
        pair = torch.arange(0, s.head_width, 2, device=ids.device, dtype=torch.float32)
        position = torch.arange(ids.shape[1], device=ids.device, dtype=torch.float32)
        angle = position[:, None] * s.theta ** (-pair / s.head_width)
        return angle.cos(), angle.sin()


def checkpoint_of(network: Network) -> dict[str, Tensor]:
    """The weights under the names of a published checkpoint of the kind, one tensor per expert matrix."""
    weights: dict[str, Tensor] = {
        "model.embed_tokens.weight": network.embedding,
        "model.norm.weight": network.last_norm,
        "lm_head.weight": network.head,
    }
    for number, block in enumerate(network.each_block()):
        layer = _attention_of(block) | (_mixtral_of(block) if block.shared is None else _qwen_of(block, block.shared))
        weights |= {f"model.layers.{number}.{name}.weight": value for name, value in layer.items()}
    return {name: value.detach().clone().contiguous() for name, value in weights.items()}


def _attention_of(block: Block) -> dict[str, Tensor]:
    s = block.shape
    q, k, v = block.qkv.split((s.heads * s.head_width, s.head_width, s.head_width))
    return {
        "input_layernorm": block.norm,
        "post_attention_layernorm": block.expert_norm,
        "self_attn.q_proj": q,
        "self_attn.k_proj": k,
        "self_attn.v_proj": v,
        "self_attn.o_proj": block.out,
    }


def _mixtral_of(block: Block) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {"block_sparse_moe.gate": block.router}
    for e in range(block.shape.experts):
        weights |= _mlp_of(f"block_sparse_moe.experts.{e}", block.gate_up[e], block.down[e], ("w1", "w3", "w2"))
    return weights


def _qwen_of(block: Block, shared: SharedExpert) -> dict[str, Tensor]:
    names = ("gate_proj", "up_proj", "down_proj")
    weights: dict[str, Tensor] = {"mlp.gate": block.router, "mlp.shared_expert_gate": shared.gate}
    weights |= _mlp_of("mlp.shared_expert", shared.gate_up, shared.down, names)
    for e in range(block.shape.experts):
        weights |= _mlp_of(f"mlp.experts.{e}", block.gate_up[e], block.down[e], names)
    return weights


def _mlp_of(prefix: str, gate_up: Tensor, down: Tensor, names: tuple[str, str, str]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value for name, value in zip(names, (*gate_up.chunk(2), down), strict=True)}


def config_of(shape: Shape) -> dict[str, Any]:
    """The fields of the transformers configuration that this shape means."""
    return {
        **(_qwen_fields(shape) if shape.shared_width else _mixtral_fields(shape)),
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": 1,
        "head_dim": shape.head_width,
        "num_experts_per_tok": shape.chosen,
        "max_position_embeddings": shape.context,
        "rope_theta": shape.theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.theta},
        "rms_norm_eps": shape.epsilon,
        "hidden_act": "silu",
        "sliding_window": None,
        "tie_word_embeddings": False,
        "attention_dropout": 0.0,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "dtype": "bfloat16",
    }


def _mixtral_fields(shape: Shape) -> dict[str, Any]:
    return {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "intermediate_size": shape.expert_width,
        "num_local_experts": shape.experts,
    }


def _qwen_fields(shape: Shape) -> dict[str, Any]:
    return {
        "architectures": ["Qwen2MoeForCausalLM"],
        "model_type": "qwen2_moe",
        "intermediate_size": shape.shared_width,
        "moe_intermediate_size": shape.expert_width,
        "shared_expert_intermediate_size": shape.shared_width,
        "num_experts": shape.experts,
        "norm_topk_prob": True,
        "qkv_bias": False,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "use_sliding_window": False,
    }
