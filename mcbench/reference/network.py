"""The reference model as it is trained: Mixtral's arithmetic with tokens sorted by expert, and its export."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """The sizes of a Mixtral model."""

    vocabulary: int
    width: int = 128
    layers: int = 4
    heads: int = 2
    head_width: int = 32
    experts: int = 8
    chosen: int = 2
    expert_width: int = 224
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


class Block(nn.Module):
    """The weights of one layer; the heads of queries, keys and values lie one below the other."""

    def __init__(self, shape: Shape, drawn: Callable[..., nn.Parameter]) -> None:
        super().__init__()
        s, d = shape, shape.width
        out = 0.05 / (2 * s.layers) ** 0.5
        self.norm = nn.Parameter(torch.ones(d))
        self.qkv = drawn((s.heads + 2) * s.head_width, d, scale=0.08)
        self.out = drawn(d, s.heads * s.head_width, scale=out)
        self.expert_norm = nn.Parameter(torch.ones(d))
        self.router = drawn(s.experts, d, scale=0.05)
        self.gate_up = drawn(s.experts, 2 * s.expert_width, d, scale=0.06)
        self.down = drawn(s.experts, d, s.expert_width, scale=out)


class Network(nn.Module):
    """A Mixtral model whose forward pass gives logits and the router's load-balance loss."""

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
        rows, length = ids.shape
        frequency = s.theta ** (
            -torch.arange(0, s.head_width, 2, device=ids.device, dtype=torch.float32) / s.head_width
        )
        angle = torch.arange(length, device=ids.device, dtype=torch.float32)[:, None] * frequency
        cosine, sine = angle.cos(), angle.sin()
        future = torch.ones(length, length, dtype=torch.bool, device=ids.device).triu(1)
        x = self.embedding[ids]  # [B, T, D]
        balance = x.new_zeros(())
        shares = []
        for block in self.each_block():
            normed = _norm(x, block.norm, s.epsilon).to(dtype)
            qkv = F.linear(normed, block.qkv.to(dtype)).view(rows, length, s.heads + 2, s.head_width).transpose(1, 2)
            turned = _rotate(qkv[:, : s.heads + 1].float(), cosine, sine).to(dtype)
            q = turned[:, : s.heads]
            k = turned[:, s.heads :].expand(rows, s.heads, length, s.head_width)
            v = qkv[:, s.heads + 1 :].expand(rows, s.heads, length, s.head_width)
            if length <= 256:  # quicker than the fused kernel here, once compiled
                score = (q @ k.transpose(2, 3)).float() * s.head_width**-0.5  # [B, H, T, T]
                mixed = score.masked_fill(future, float("-inf")).softmax(-1).to(dtype) @ v
            else:
                mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            mixed = mixed.transpose(1, 2).reshape(rows, length, s.heads * s.head_width)
            x = x + F.linear(mixed, block.out.to(dtype)).float()
            normed = _norm(x, block.expert_norm, s.epsilon).view(rows * length, s.width)
            probability = F.linear(normed, block.router).softmax(-1)  # [T, E]
            weight, index = probability.topk(s.chosen, -1)
            weight = weight / weight.sum(-1, keepdim=True)
            share = F.one_hot(index, s.experts).float().mean((0, 1))
            shares.append(share)
            balance = balance + s.experts * (share * probability.mean(0)).sum() / s.layers
            moved = experts(normed.to(dtype), block.gate_up.to(dtype), block.down.to(dtype), index, weight)[0]
            x = x + moved.float().view(x.shape)
        logits = F.linear(_norm(x, self.last_norm, s.epsilon).to(dtype), self.head.to(dtype))
        return logits, balance, torch.stack(shares)


def to_mixtral(network: Network) -> dict[str, Tensor]:
    """The weights under the names of a transformers Mixtral checkpoint, one tensor per expert matrix."""
    s = network.shape
    weights: dict[str, Tensor] = {
        "model.embed_tokens.weight": network.embedding,
        "model.norm.weight": network.last_norm,
        "lm_head.weight": network.head,
    }
    queries = s.heads * s.head_width
    for number, block in enumerate(network.each_block()):
        layer = f"model.layers.{number}."
        weights[layer + "input_layernorm.weight"] = block.norm
        weights[layer + "post_attention_layernorm.weight"] = block.expert_norm
        weights[layer + "self_attn.q_proj.weight"] = block.qkv[:queries]
        weights[layer + "self_attn.k_proj.weight"] = block.qkv[queries : queries + s.head_width]
        weights[layer + "self_attn.v_proj.weight"] = block.qkv[queries + s.head_width :]
        weights[layer + "self_attn.o_proj.weight"] = block.out
        weights[layer + "block_sparse_moe.gate.weight"] = block.router
        for e in range(s.experts):
            expert = f"{layer}block_sparse_moe.experts.{e}."
            weights[expert + "w1.weight"] = block.gate_up[e, : s.expert_width]
            weights[expert + "w3.weight"] = block.gate_up[e, s.expert_width :]
            weights[expert + "w2.weight"] = block.down[e]
    return {name: value.detach().clone().contiguous() for name, value in weights.items()}


def mixtral_config(shape: Shape) -> dict[str, Any]:
    """The fields of the transformers configuration that this shape means."""
    return {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.width,
        "intermediate_size": shape.expert_width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": 1,
        "head_dim": shape.head_width,
        "num_local_experts": shape.experts,
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
