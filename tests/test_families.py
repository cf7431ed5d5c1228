"""The table of supported model types: every type of the installed transformers has a row, and what a row says is so."""

from __future__ import annotations

from pathlib import Path

import pytest
from families import PAGE, examine, model_types, page, rows_of

TYPES = model_types()
ROWS = rows_of(PAGE.read_text(encoding="utf-8"))
# one of each kind; the others are tried with --slow
KINDS = (
    "mixtral",  # softmax, renormalised, full attention
    "phimoe",  # sparse mixer
    "gpt_oss",  # transposed, interleaved, biased; sliding windows
    "aria_text",  # transposed
    "kolibri1",  # sigmoid, shared experts
    "deepseek_v32",  # latent and sparse attention
    "lfm2_moe",  # convolutions beside attention
    "jamba",  # state space layers
    "qwen3_vl_moe",  # the text part of a model that sees
    "zaya",  # a router that is not understood
    "nemotron_h",  # refused: no gate
    "llama4_text",  # refused: not through the registry
    "gemma4_text",  # refused: no block of experts
    "nllb-moe",  # refused: an encoder-decoder
)


def test_every_model_type_with_experts_has_a_row() -> None:
    missing, gone = sorted(set(TYPES) - set(ROWS)), sorted(set(ROWS) - set(TYPES))
    assert not missing and not gone, (
        f"{PAGE.name} has no row for {missing} and one too many for {gone}: run python tests/families.py"
    )


def test_the_page_is_made_of_its_rows_and_readme_leads_to_it() -> None:
    assert page(list(ROWS.values())) == PAGE.read_text(encoding="utf-8")
    assert "docs/families.md" in (PAGE.parent.parent / "README.md").read_text(encoding="utf-8")


def test_what_is_tried_by_default_has_one_of_every_kind_of_router_experts_and_policies() -> None:
    supported = {name: cells for name, row in ROWS.items() if len(cells := row.split(" | ")) > 3}
    for column in (2, 3, 5, 9):  # router, shared experts, experts, policies
        kinds = {cells[column] for cells in supported.values()}
        assert kinds == {cells[column] for name, cells in supported.items() if name in KINDS}


@pytest.mark.parametrize(
    "model_type", [name if name in KINDS else pytest.param(name, marks=pytest.mark.slow) for name in TYPES]
)
def test_what_a_row_says_of_a_model_type_is_so(model_type: str, tmp_path: Path) -> None:
    assert examine(model_type, tmp_path).row() == ROWS[model_type], "python tests/families.py writes the table anew"
