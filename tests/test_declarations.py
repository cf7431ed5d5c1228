"""A field is a hyper-parameter whatever it is called; what changes a run is declared; what cannot be is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import tiny_folder, tiny_text

from mcbench.catalogue import task_with
from mcbench.composition import compose
from mcbench.contract import check_method
from mcbench.errors import BadInput
from mcbench.method import declared
from mcbench.pipeline import run
from mcbench.record import Record

HEAD = '''"""A method of a test."""
from __future__ import annotations
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal
from mcbench import Method
from mcbench.quantization import round_to_nearest

'''
QUANTISER = """
    def quantize(self, weights, widths, hessian):
        return {w: round_to_nearest(weights, w) for w in widths}
"""
POLICY = """
    def route(self, choices, learnt):
        return choices.keep(choices.chosen)
"""
BOTH = 'inputs: Literal["original", "quantized"] = "original"'


def written(folder: Path, fields: str, functions: str = QUANTISER, before: str = "", base: str = "Method") -> str:
    lines = "".join(f"    {line}\n" for line in fields.split("\n"))
    body = f"@dataclass(frozen=True)\nclass Mine({base}):\n    '''It declares.'''\n\n{lines}{functions}"
    path = folder / "mine.py"
    path.write_text(HEAD + before + body, encoding="utf-8")
    return str(path)


ORDINARY = """inputs: str = "quantized"
seed: None | int = None
fitted: str = "nowhere"
layers: str = "all"
window: int = 7"""


@pytest.mark.parametrize(("functions", "method"), [(QUANTISER, "{}"), (POLICY, "uniform+rtn+{}")])
def test_fields_of_any_name_are_only_fields(tmp_path: Path, functions: str, method: str) -> None:
    needs = "needs_hessian = True\n" if functions is QUANTISER else ""
    mine = written(tmp_path, needs + ORDINARY, functions)
    composition = compose(method.format(mine), seed=5)
    part = next(part for part in composition.parts if part.name == mine)
    assert part.settings() == {
        "inputs": "quantized", "seed": None, "fitted": "nowhere", "layers": "all", "window": 7
    }  # fmt: skip
    assert not composition.layerwise and str(part) == mine
    assert declared(part.method, "layers_field") is declared(part.method, "fitted_field") is None
    assert [str(promise) for promise in check_method(mine) if not promise.kept] == []


def test_a_method_with_such_fields_runs_like_any_other(tmp_path: Path) -> None:
    model = tiny_folder(tmp_path / "tiny", max_position_embeddings=256)
    text = tiny_text(tmp_path)

    def ask(method: str) -> Record:
        return run(
            method, expert_bits=2.0, widths=(2,), model=str(model), calibration=text, samples=4, length=32,
            tasks="mini-piqa", limit=1, out=tmp_path / "runs",
        )  # fmt: skip

    mine = written(tmp_path, f"needs_hessian = True\n{ORDINARY}")
    assert ask(mine).fingerprint == ask("rtn").fingerprint
    other = tmp_path / "other"
    other.mkdir()
    policy = written(other, ORDINARY, POLICY)
    record = ask(f"rtn+{policy}")
    assert record.routing is not None and record.routing.layers == tuple(range(record.model.layers))


def test_declared_fields_of_any_name_have_their_part(tmp_path: Path) -> None:
    quantiser = written(
        tmp_path,
        'lot: int | None = None\nwhose: Literal["quantized", "original"] = "original"\n'
        'needs_hessian = True\nseed_field = "lot"\ninputs_field: ClassVar[str] = "whose"',
    )
    composition = compose(f"{quantiser}(whose=quantized)", seed=5)
    assert composition.layerwise and composition.owner("quantize").settings()["lot"] == 5
    assert compose(f"{quantiser}(lot=2)", seed=5).owner("quantize").settings()["lot"] == 2
    assert all(promise.kept for promise in check_method(quantiser))
    policy = written(
        tmp_path,
        'where: tuple[int, ...] | None = None\nread: str = ""\nlayers_field = "where"\nfitted_field = "read"',
        POLICY,
    )
    part = compose(f"uniform+rtn+{policy}(where=(1,), read=there)").policy
    assert part is not None
    assert declared(part.method, "layers_field") == (1,) and declared(part.method, "fitted_field") == "there"


WRONG = {
    "a type of its own": ("needs_hessian = 'False'", QUANTISER, "needs_hessian must be bool"),
    "a number for yes": ("compresses = 1", QUANTISER, "compresses must be bool"),
    "a property": ("needs_hessian = property(lambda self: True)", QUANTISER, "needs_hessian must be bool"),
    "a list of names": (
        f"{BOTH}\nneeds_hessian = True\ninputs_field = ['inputs']",
        QUANTISER,
        "inputs_field must be str",
    ),
    "no such field": (
        "needs_hessian = True\ninputs_field = 'inputs'",
        QUANTISER,
        "names the field 'inputs'; it has none",
    ),
    "a field in its place": (
        f"{BOTH}\nneeds_hessian = True\ninputs_field: str = 'inputs'",
        QUANTISER,
        "'inputs_field' is an attribute of the class and no hyper-parameter",
    ),
    "a field for an attribute": (
        "needs_hessian: bool = True",
        QUANTISER,
        "'needs_hessian' is an attribute of the class",
    ),
    "a field for a property": ("sees: tuple[str, ...] = ('hidden',)", POLICY, "'sees' is an attribute of the class"),
    "a field for a function": ("quantize: int = 4", "", "'quantize' is an attribute of the class"),
    "a decision that is none": ("quantize = None", "", "quantize must be a function"),
    "another type": (
        "inputs: str = 'original'\nneeds_hessian = True\ninputs_field = 'inputs'",
        QUANTISER,
        r"must be of type Literal\['original', 'quantized'\]",
    ),
    "another default": (
        f"{BOTH[:-10]}'quantized'\nneeds_hessian = True\ninputs_field = 'inputs'",
        QUANTISER,
        "with default 'original'",
    ),
    "a factory": (
        "seed: int | None = field(default_factory=lambda: None)\nseed_field = 'seed'",
        QUANTISER,
        "with default None",
    ),
    "not to be set": (
        "seed: int | None = field(default=None, init=False)\nseed_field = 'seed'",
        QUANTISER,
        "must be of type int",
    ),
    "a seed of text": ("seed: str | None = None\nseed_field = 'seed'", QUANTISER, "must be of type int or None"),
    "two parts for one": (
        "seed: int | None = None\nseed_field = 'seed'\nlayers_field = 'seed'",
        POLICY,
        "layers_field names must be",
    ),
    "no hessian": (f"{BOTH}\ninputs_field = 'inputs'", QUANTISER, "needs_hessian"),
    "another decision": (
        "layers: tuple[int, ...] | None = None\nlayers_field = 'layers'",
        QUANTISER,
        "for a method that decides route",
    ),
    "misspelt": (
        "seed: int | None = None\nseeds_field = 'seed'",
        QUANTISER,
        "nothing is declared by 'seeds_field'; did you mean 'seed_field'",
    ),
    "needs of one text": ("needs = 'token_count'", QUANTISER, "needs must be a tuple of texts"),
    "an unknown sight": ("sees = ('everything',)", POLICY, "sees must be a tuple of some of"),
    "perhaps causal": ("causal = 'yes'", POLICY, "causal must be True or False"),
    "a property that fails": ("sees = property(lambda self: 1 // 0)", POLICY, "sees: ZeroDivisionError"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_declaration_is_refused_when_composed_and_when_checked(tmp_path: Path, case: str) -> None:
    fields, functions, message = WRONG[case]
    mine = written(tmp_path, fields, functions)
    with pytest.raises(BadInput, match=message):
        compose(mine if functions is not POLICY else f"uniform+rtn+{mine}")
    said = [promise for promise in check_method(mine) if not promise.kept]
    assert [promise.text for promise in said] == ["what it declares can be"]


def test_declarations_are_inherited_and_held_against_the_fields_of_the_subclass(tmp_path: Path) -> None:
    package = tmp_path / "base.py"
    package.write_text(
        HEAD + "@dataclass(frozen=True)\nclass Base(Method):\n    '''Whose inputs may be chosen.'''\n\n"
        f"    {BOTH}\n    needs_hessian = True\n    inputs_field: ClassVar[str] = 'inputs'\n{QUANTISER}"
    )
    before = f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\nfrom base import Base\nsys.path.pop(0)\n"
    assert compose(f"{written(tmp_path, 'more: int = 1', '', before, 'Base')}(inputs=quantized)").layerwise
    other = "inputs: str = 'quantized'"
    with pytest.raises(BadInput, match="must be of type Literal"):
        compose(written(tmp_path, other, "", before, "Base"))
    with pytest.raises(BadInput, match="names the field 'inputs'"):  # which is none any more
        compose(written(tmp_path, "inputs: ClassVar[str] = 'quantized'", "", before, "Base"))
    assert not compose(written(tmp_path, f"{other}\ninputs_field = ''", "", before, "Base")).layerwise


def test_a_plugin_is_held_to_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mcbench.composition import METHODS

    mine = Path(written(tmp_path, "needs_hessian: bool = True"))
    mine.rename(tmp_path / "a_plugin_of_a_test.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    points = {**METHODS._entry_points(), "plugged": "a_plugin_of_a_test"}
    monkeypatch.setattr(METHODS, "_entry_points", lambda: points)
    with pytest.raises(BadInput, match="plugged: 'needs_hessian' is an attribute of the class"):
        compose("plugged")
    assert not all(promise.kept for promise in check_method("plugged"))


TASK = '''"""A task of a test."""
from dataclasses import dataclass
from typing import ClassVar
from mcbench.harness import HarnessTask

@dataclass(frozen=True)
class Mine(HarnessTask):
    """Pages."""

    definition = "wikitext/wikitext.yaml"
    data = "wikitext2"
    metric = "word_perplexity"
    '''


def test_a_window_of_a_task_is_one_only_where_it_says_so(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"

    def made(fields: str) -> object:
        mine.write_text(TASK + fields)
        return task_with(str(mine), {})

    assert made("window: str = 'open'")._window() == 0  # type: ignore[attr-defined]
    assert made("pane: int = 64\n    window_field = 'pane'")._window() == 64  # type: ignore[attr-defined]
    for fields, message in {
        "window_field = 'pane'": "names the field 'pane'",
        "pane: str = ''\n    window_field = 'pane'": "must be of type int",
        "pane: int = 1\n    window_field: str = 'pane'": "'window_field' is an attribute of the class",
        "version: int = 2": "'version' is an attribute of the class",
        "higher_is_better = 'no'": "higher_is_better must be bool",
    }.items():
        with pytest.raises(BadInput, match=message):
            made(fields)
