"""The reference model's tokenizer, training code and weights do what they promise."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, MixtralForCausalLM, Qwen2MoeForCausalLM

from mcbench.model import load_model
from mcbench.reference import calibration_text, chance, folder, items, model_names
from mcbench.reference import tokenizer as tokens
from mcbench.reference.curve import accuracies
from mcbench.reference.families import FAMILIES, reference_world
from mcbench.reference.network import Network, Shape, experts
from mcbench.reference.train import PRESETS, export, train
from mcbench.reference.world import World


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(folder() / "tokenizer.json"))


def quiet(line: str) -> None:
    """No progress."""


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


# tokenizer


@pytest.mark.parametrize(
    "text", ["anna lives", " a  b", "Zürich 日本 🙂\t\r\n", "def f(x):\n        y = x // 2\n\n\n", "\x00ÿ"]
)
def test_any_text_survives_the_tokenizer(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_the_words_of_the_world_are_single_tokens_without_bytes(tokenizer: Tokenizer) -> None:
    for text in calibration_text(300):
        assert not any(token.startswith("<0x") for token in tokenizer.encode(text).tokens), text


def test_every_digit_is_a_token(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("sums: 145 + 23", add_special_tokens=False).tokens == [
        "sums",
        ":",
        " 1",
        "4",
        "5",
        " +",
        " 2",
        "3",
    ]


@pytest.mark.parametrize("family", [family for family in FAMILIES if chance(family)])
def test_context_and_choice_tokenise_alike_apart_and_together(tokenizer: Tokenizer, family: str) -> None:
    for item in items(family, 60):
        for choice in item.choices:
            apart = ids_of(tokenizer, item.context) + ids_of(tokenizer, choice)
            assert apart == ids_of(tokenizer, item.context + choice)


def test_transformers_loads_the_same_tokenizer(tokenizer: Tokenizer) -> None:
    loaded = AutoTokenizer.from_pretrained(folder())
    text = calibration_text(1)[0] + " ünknown"
    assert loaded(text).input_ids == tokenizer.encode(text).ids == [loaded.bos_token_id, *ids_of(tokenizer, text)]
    assert loaded.decode(loaded(text).input_ids, skip_special_tokens=True) == text
    assert (loaded.pad_token, loaded.bos_token, loaded.eos_token) == (tokens.PAD, tokens.BOS, tokens.EOS)


def test_the_recipe_rebuilds_the_shipped_tokenizer(tmp_path: Path) -> None:
    tokens.save(tokens.build(reference_world()), tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_text() == (folder() / name).read_text()


# training code

SMALL = Shape(300, width=32, layers=2, expert_width=48)


def test_sorting_tokens_by_expert_has_the_gradients_of_plain_arithmetic() -> None:
    draw = torch.Generator().manual_seed(0)
    x, gate_up, down = (
        torch.randn(*size, generator=draw, requires_grad=True) for size in ((20, 8), (4, 12, 8), (4, 8, 6))
    )
    scores = torch.randn(20, 4, generator=draw, requires_grad=True)

    def plain(weight: Tensor, index: Tensor) -> Tensor:
        gate, up = torch.einsum("td,eid->tei", x, gate_up).chunk(2, -1)
        y = torch.einsum("tei,edi->ted", torch.nn.functional.silu(gate) * up, down)
        return (y.gather(1, index[..., None].expand(-1, -1, 8)) * weight[..., None]).sum(1)

    def gradients(out: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(out.square().sum(), (x, gate_up, down, scores), retain_graph=True)

    weight, index = scores.softmax(-1).topk(2, -1)
    ours, theirs = experts(x, gate_up, down, index, weight)[0], plain(weight, index)
    torch.testing.assert_close(ours, theirs)
    for one, other in zip(gradients(ours), gradients(theirs), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_an_interrupted_run_goes_on_to_the_identical_weights(tmp_path: Path, tokenizer: Tokenizer) -> None:
    recipe = PRESETS["tiny"]

    def interrupt(line: str) -> None:
        if line.startswith("step=8 "):
            raise KeyboardInterrupt

    whole = train(
        recipe, tmp_path / "a", tmp_path / "a", compiled=False, every=4, judged=0, tokenizer=tokenizer, log=quiet
    )
    with pytest.raises(KeyboardInterrupt):
        train(
            recipe,
            tmp_path / "b",
            tmp_path / "b",
            compiled=False,
            every=4,
            judged=0,
            tokenizer=tokenizer,
            log=interrupt,
        )
    resumed = train(
        recipe, tmp_path / "b", tmp_path / "b", compiled=False, every=4, judged=0, tokenizer=tokenizer, log=quiet
    )
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert (tmp_path / "b" / "curve.csv").read_text().count("\n") == 1 + recipe.steps // 4


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    from dataclasses import replace

    recipe = replace(PRESETS["tiny"], steps=2)
    train(recipe, tmp_path, tmp_path, compiled=False, judged=0, tokenizer=tokenizer, log=quiet)
    with pytest.raises(ValueError, match="another recipe"):
        train(replace(recipe, seed=1), tmp_path, tmp_path, compiled=False, tokenizer=tokenizer, log=quiet)


def test_a_network_that_knows_nothing_scores_about_chance(tokenizer: Tokenizer) -> None:
    world = World(people=60)
    network = Network(Shape(tokenizer.get_vocab_size(), width=16, layers=1, expert_width=16))
    found = accuracies(lambda ids: network(ids)[0], tokenizer, world, count=20)
    assert found["gsm8k"] == found["humaneval"] == 0
    assert all(abs(found[family] - chance(family)) < 0.5 for family in FAMILIES if chance(family))


# the shipped weights

SHIPPED = pytest.mark.parametrize("name", model_names())


def load(name: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder(name), dtype=torch.float32)


@SHIPPED
def test_a_shipped_model_loads_into_the_class_of_its_kind_and_knows_more_than_chance(name: str) -> None:
    model = load(name)
    kind = {"reference": MixtralForCausalLM, "reference-fine": Qwen2MoeForCausalLM}[name]
    assert type(model).__name__ == kind.__name__
    shipped = Tokenizer.from_file(str(folder(name) / "tokenizer.json"))
    found = accuracies(lambda ids: model(ids).logits, shipped, reference_world(), count=30)
    assert sum(found[family] > chance(family) + 0.15 for family in found if family in FAMILIES) >= 7, found


@SHIPPED
def test_a_shipped_folder_is_small_and_complete(name: str) -> None:
    where = folder(name)
    wanted = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"}
    assert wanted | {"recipe.json", "curve.csv", "curve.svg"} <= {path.name for path in where.iterdir()}
    assert sum(path.stat().st_size for path in where.iterdir()) < 12_000_000
    assert (where / "tokenizer.json").read_bytes() == (folder() / "tokenizer.json").read_bytes()


@SHIPPED
def test_the_recipe_of_a_shipped_model_is_the_one_that_training_would_follow(name: str) -> None:
    recipe = json.loads((folder(name) / "recipe.json").read_text())
    assert recipe == json.loads(json.dumps(asdict(PRESETS[name])))
    rows = list(csv.DictReader((folder(name) / "curve.csv").read_text().splitlines()))
    assert int(rows[-1]["step"]) == PRESETS[name].all_steps
    assert max(PRESETS[name].length(step) for step in range(recipe["steps"])) == 4096


@SHIPPED
def test_no_expert_of_a_shipped_model_is_dead_and_load_is_uneven(name: str, tokenizer: Tokenizer) -> None:
    model = load(name)
    encoded = tokenizer.encode("<s>" + "<s>".join(calibration_text(400))).ids[:16384]
    with torch.no_grad():
        logits = model(torch.tensor(encoded).view(-1, 512), output_router_logits=True).router_logits
    experts, chosen = logits[0].shape[-1], model.config.num_experts_per_tok
    for layer in logits:
        share = torch.bincount(layer.topk(chosen, -1).indices.flatten(), minlength=experts) / layer.shape[0] / chosen
        assert share.min() > 0.02 / experts
        assert share.max() > 1.2 / experts


@SHIPPED
def test_attention_is_a_small_part_of_the_weights_that_the_label_counts(name: str) -> None:
    count = load_model(name).weight_count()
    share = count.attention / (count.routed + count.shared + count.attention)
    assert share <= (0.035 if name == "reference" else 0.05)


def test_export_writes_bf16(tmp_path: Path, tokenizer: Tokenizer) -> None:
    from safetensors.torch import load_file

    export(Network(SMALL), tokenizer, tmp_path)
    assert {value.dtype for value in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}
