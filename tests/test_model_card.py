"""The card of a shipped model says what the committed record and figures say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scripts import script

from mcbench.reference import model_names

ROOT = Path(__file__).parents[1]
BOARD = ROOT / "leaderboards"


model_card = script("model_card")


def sources(name: str) -> list[str]:
    return [str(BOARD / "records" / name / "none" / "record.json"), str(BOARD / "figures" / "figures.json")]


@pytest.mark.parametrize("name", model_names())
def test_the_committed_card_is_what_record_and_figures_give(name: str) -> None:
    assert model_card.main([name, *sources(name), "--check"]) == 0


def test_a_record_of_another_model_makes_no_card(capsys: pytest.CaptureFixture[str]) -> None:
    other, _ = sources("reference-fine")
    assert model_card.main(["reference", other, sources("reference")[1], "--check"]) == 2
    assert "of weights" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "complaint"), [("refrence", "did you mean 'reference'"), ("reference", "no figures")])
def test_wrong_input_is_answered_in_words(
    name: str, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "figures.json"
    empty.write_text(json.dumps([]))
    assert model_card.main([name, sources("reference")[0], str(empty)]) == 2
    assert complaint in capsys.readouterr().err
