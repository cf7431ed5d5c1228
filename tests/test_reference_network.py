"""The networks trained as reference models are the ones transformers runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, MixtralForCausalLM, Qwen2MoeForCausalLM

from mcbench.reference.network import Network, Shape, checkpoint_of, config_of

MIXTRAL = Shape(300, width=32, layers=2, expert_width=48)
QWEN = Shape(300, width=48, layers=2, experts=12, chosen=4, expert_width=16, shared_width=24)
SHAPES = pytest.mark.parametrize("shape", [MIXTRAL, QWEN], ids=["mixtral", "qwen2_moe"])


def save(network: Network, folder: Path) -> None:
    from safetensors.torch import save_file

    (folder / "config.json").write_text(json.dumps(config_of(network.shape)))
    save_file(checkpoint_of(network), str(folder / "model.safetensors"), metadata={"format": "pt"})


@pytest.mark.parametrize("length", [40, 300])
@pytest.mark.parametrize(("shape", "kind"), [(MIXTRAL, MixtralForCausalLM), (QWEN, Qwen2MoeForCausalLM)])
def test_transformers_gives_the_same_logits(shape: Shape, kind: type[Any], length: int, tmp_path: Path) -> None:
    network = Network(shape)
    save(network, tmp_path)
    reading: Any = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, output_loading_info=True)
    loaded, info = reading
    assert type(loaded) is kind
    assert not any(info.values()), info
    ids = torch.randint(0, shape.vocabulary, (2, length), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(network(ids)[0], loaded(ids).logits, atol=1e-4, rtol=0)


@SHAPES
def test_every_weight_gets_a_gradient(shape: Shape) -> None:
    network = Network(shape)
    logits, balance, shares = network(torch.arange(300).view(2, 150))
    (logits.logsumexp(-1).mean() + balance).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
    torch.testing.assert_close(shares.sum(-1), torch.ones(shape.layers))


@pytest.mark.gpu
@SHAPES
def test_the_forward_pass_is_the_same_on_a_gpu(shape: Shape) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    network = Network(shape)
    ids = torch.arange(300).view(2, 150)
    with torch.no_grad():
        ours, there = network(ids)[0], network.cuda()(ids.cuda())[0]
    torch.testing.assert_close(there.cpu(), ours, atol=1e-3, rtol=0)
