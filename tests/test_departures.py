"""The table of departures names every task, and what it says about defaults, stop strings and spaces is so."""

from __future__ import annotations

import re
from pathlib import Path

import made_up
import pytest
from tiny import tiny_tokenizer, tiny_transformer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mcbench.catalogue import TASKS, select_tasks
from mcbench.datasets import data_folder, load
from mcbench.evaluation import LanguageModel
from mcbench.items import CodeItem
from mcbench.task import items_of

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "departures.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `([^`]+)` \| (.+?) \| (.+) \|$", TEXT.partition("## In all tasks")[0], re.MULTILINE)


def test_every_task_has_one_row_and_every_row_a_task() -> None:
    named = [name for name, _, _ in ROWS]
    known = [name for name in TASKS.names() if not name.startswith("mini-")]
    assert sorted(named) == sorted([*known, "mini-*"])
    assert "docs/departures.md" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("told", re.findall(r"`([a-z0-9-]+\([^`]+\))`", TEXT))
def test_a_setting_that_is_told_is_the_default(told: str) -> None:
    (task,) = select_tasks(told)
    assert task == TASKS.get(task.name)()


def test_tasks_of_lm_eval_are_those_whose_definition_is_its_own() -> None:
    """ "None" is said of no task that changes its definition."""
    for name, _, departures in ROWS:
        changes = getattr(TASKS.get(name)(), "changes", dict) if name != "mini-*" else dict
        assert not (changes() and departures.startswith("none")), name


def test_the_programs_of_humaneval_are_asked_and_ended_as_in_lm_eval() -> None:
    from lm_eval.tasks._yaml_loader import load_yaml

    from mcbench.harness_model import DEFINITIONS

    config = load_yaml(DEFINITIONS / "humaneval" / "humaneval.yaml", resolve_func=False)
    assert config["doc_to_text"] == "{{prompt}}" and config["doc_to_target"] == "{{test}}\ncheck({{entry_point}})"
    rows = load("humaneval", "test").rows
    for item, row in zip(items_of(TASKS.get("humaneval")()), rows, strict=True):
        assert isinstance(item, CodeItem)
        assert (item.prompt, list(item.stop)) == (row["prompt"], config["generation_kwargs"]["until"])
        assert item.tests == f"{row['test']}\ncheck({row['entry_point']})"
    assert (config["generation_kwargs"]["max_gen_toks"], config["metric_list"][0]["k"]) == (1024, [1])


def test_a_space_at_the_beginning_of_what_is_written_stays() -> None:
    """A tokenizer of the SentencePiece kind, which marks spaces and drops the first one when it decodes."""
    words = ["<unk>", "<s>", "</s>", "\u2581return", "\u2581x", "\u2581def", ":"]
    backend = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )
    lm = LanguageModel(tiny_transformer("mixtral"), tiny_tokenizer())
    lm.tokenizer = tokenizer  # of seven words, too few to be a model's own
    prompt, written = tokenizer("def x")["input_ids"], [words.index("\u2581return"), words.index("\u2581x")]
    assert tokenizer.decode(written) == "return x"  # what lm-eval's backend judges
    assert lm._text(prompt, written, (), "end") == (" return x", "end")


def test_the_mean_of_mmlu_is_over_questions(sets: Path) -> None:
    with data_folder(sets):
        groups = [item.group for item in items_of(TASKS.get("mmlu")())]
    assert {group: groups.count(group) for group in groups} == made_up.SUBJECTS
    assert re.search(r"\| `mmlu` \| lm-eval `mmlu` \| none; the mean is over questions", TEXT)
