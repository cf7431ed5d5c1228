"""The picture of a training run shows what its curve.csv says."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from mcbench.errors import BadInput, NotInstalled
from mcbench.reference import FAMILIES
from mcbench.reference.curve import MEASURES, picture

OTHERS = ("needle, 90 words", "needle, 360 words")


def curve(path: Path, families: tuple[str, ...] = (*FAMILIES, *OTHERS), rows: int = 20) -> Path:
    """A curve.csv as training writes it: a row every 100 steps, families every 1000 and at the end."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*MEASURES, *families])
        for row in range(1, rows + 1):
            measures = [100 * row, 409_600 * row, 40 * row, 0.003, 6 / row, row / rows, 0.1 / row, 0.3]
            asked = row % 10 == 0 or row == rows
            writer.writerow([*measures, *((i / 20 if asked else "") for i, _ in enumerate(families))])
    return path


def written(path: Path) -> list[str]:
    """Every piece of text in an SVG."""
    return [text for node in ElementTree.parse(path).iter() if (text := (node.text or "").strip())]


def test_every_family_and_the_loss_are_drawn_with_their_last_value(tmp_path: Path) -> None:
    picture(curve(tmp_path / "curve.csv"), tmp_path / "curve.svg")
    texts = written(tmp_path / "curve.svg")
    for place, family in enumerate((*FAMILIES, *OTHERS)):
        assert f"{family}, % right" in texts
        assert f"{5 * place}" in texts
    assert {"loss per token (nats)", "0.300", "most 30", "least 0.5"} <= set(texts)


@pytest.mark.parametrize("families", [(), FAMILIES[:2]], ids=["none yet", "two"])
def test_a_run_that_has_just_begun_is_drawn_too(tmp_path: Path, families: tuple[str, ...]) -> None:
    picture(curve(tmp_path / "curve.csv", families, rows=1), tmp_path / "curve.svg")
    texts = written(tmp_path / "curve.svg")
    assert [text for text in texts if text.endswith("% right")] == [f"{family}, % right" for family in families]


def test_equal_curves_are_equal_files_whatever_the_user_has_set(tmp_path: Path) -> None:
    matplotlib = pytest.importorskip("matplotlib", reason="pictures need matplotlib, the extra 'figures'")
    curve(tmp_path / "curve.csv")
    picture(tmp_path / "curve.csv", tmp_path / "first.svg")
    with matplotlib.rc_context({"font.size": 20, "svg.fonttype": "path"}):
        picture(tmp_path / "curve.csv", tmp_path / "second.svg")
    assert (tmp_path / "first.svg").read_bytes() == (tmp_path / "second.svg").read_bytes()
    assert (tmp_path / "first.svg").stat().st_size < 200_000


def test_without_matplotlib_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(NotInstalled, match=r"matplotlib.*\[figures\]"):
        picture(curve(tmp_path / "curve.csv"), tmp_path / "curve.svg")
    assert not (tmp_path / "curve.svg").exists()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "cannot be read"),
        ("", "no rows"),
        (",".join(MEASURES) + "\n", "no rows"),
        ("step,tokens\n1,2\n", "lacks 'seconds'"),
        (",".join(MEASURES) + "\n1,2,3,4,much,6,7,8\n", "much"),
        (",".join(MEASURES) + "\n1,2,3,4,,6,7,8\n", "lacks 'loss'"),
        ("step\n1,2\n", "cannot be read"),
    ],
    ids=["absent", "empty", "header only", "another table", "a word", "a gap", "too many cells"],
)
def test_a_file_that_is_no_curve_is_refused(tmp_path: Path, content: str | None, complaint: str) -> None:
    if content is not None:
        (tmp_path / "curve.csv").write_text(content)
    with pytest.raises(BadInput, match=complaint):
        picture(tmp_path / "curve.csv", tmp_path / "curve.svg")


def test_the_command_draws_and_says_in_one_sentence_what_it_cannot(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mcbench.reference.curve"]
    done = subprocess.run([*command, "curve.csv", "out.svg"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "cannot be read" in done.stderr
    curve(tmp_path / "curve.csv")
    subprocess.run([*command, "curve.csv", "out.svg"], cwd=tmp_path, check=True)
    assert "loss per token (nats)" in written(tmp_path / "out.svg")
