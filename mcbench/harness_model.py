"""Our language model and in-memory data as lm-eval's own classes; importing this file imports lm-eval.

`lm_eval.simple_evaluate(model=HarnessLM(lm), ...)` runs any task of lm-eval on the fast exact path of `LanguageModel`.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import lm_eval.tasks
import lm_eval.utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks._yaml_loader import load_yaml

from mcbench.errors import BadInput

if TYPE_CHECKING:
    from mcbench.evaluation import LanguageModel, Prompt, Sampling

FEWSHOT_SEED = 1234  # lm-eval's default
DEFAULT_NEW_TOKENS = 256  # as lm-eval's own transformers backend
DEFINITIONS = Path(lm_eval.tasks.__file__).parent
# a template is compiled once, not anew for every document: building requests took ten times as long
lm_eval.utils.env.from_string = functools.cache(lm_eval.utils.env.from_string)

SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")


class HarnessLM(LM):  # type: ignore[misc]  # lm-eval ships no types
    """A LanguageModel as a backend of lm-eval.

    `truncated` counts the requests so far that lost tokens to the model's window. Raises BadInput for a continuation
    without a token, one longer than the window, and a text without context where the tokenizer has neither BOS nor EOS.
    """

    def __init__(self, lm: LanguageModel) -> None:
        super().__init__()
        self.lm, self.truncated = lm, 0

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """The log-likelihood (nats) of each continuation after its context, and whether greedy writing gives it."""
        scores = self.lm.loglikelihoods([request.args for request in requests])
        self.truncated += sum(bool(score.truncated) for score in scores)
        return [(score.value, score.greedy) for score in scores]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """The log-likelihood (nats) of each whole text, in windows as long as the model's."""
        found: dict[int, float] = {}
        for batch in self.lm.text_batches([request.args[0] for request in requests]):
            found |= {at: score.value for at, score in batch.items()}
        return [found[at] for at in range(len(requests))]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """What the model writes after each prompt, up to a stop string, as the request's settings say."""
        asked = [generation(request.args, self.lm) for request in requests]
        texts: dict[int, str] = {}
        for sampling in dict.fromkeys(sampling for _, sampling in asked):
            mine = [at for at, (_, other) in enumerate(asked) if other == sampling]
            for batch in self.lm.generate_batches([asked[at][0] for at in mine], sampling):
                for n, (completion, *_) in batch.items():
                    texts[mine[n]] = completion.text
                    self.truncated += bool(completion.truncated)
        return [texts[at] for at in range(len(requests))]


def generation(arguments: tuple[str, Mapping[str, Any]], lm: LanguageModel) -> tuple[Prompt, Sampling | None]:
    """The prompt, stop strings and allowance of a generation request, and how to sample if it is not greedy.

    As lm-eval's transformers backend has it: the text of the end-of-text token is a stop string as well. Raises
    BadInput for a setting that is not known.
    """
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

    from mcbench.evaluation import Prompt, Sampling

    text, settings = arguments
    known = dict(normalize_gen_kwargs(dict(settings), DEFAULT_NEW_TOKENS))
    stop = handle_stop_sequences(list(known.pop("until", None) or []), lm.tokenizer.eos_token)
    prompt = Prompt(text, tuple(s for s in stop if s), int(known.pop("max_gen_toks")))
    temperature, top_p = float(known.pop("temperature", 0.0)), float(known.pop("top_p", 1.0))
    sampled = bool(known.pop("do_sample", False)) and temperature > 0
    if known:
        raise BadInput(f"generation knows no setting {', '.join(sorted(known))}")
    return prompt, Sampling(temperature, top_p) if sampled else None


def new_tokens(settings: Mapping[str, Any]) -> int:
    """How many tokens an answer may have by the generation settings of a definition."""
    from lm_eval.models.utils import normalize_gen_kwargs

    return int(dict(normalize_gen_kwargs(dict(settings), DEFAULT_NEW_TOKENS))["max_gen_toks"])


class InMemoryTask(ConfigurableTask):  # type: ignore[misc]
    """A task by its definition, whose data are given as rows instead of being downloaded."""

    def __init__(self, config: dict[str, Any], splits: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        self._splits = splits
        super().__init__(config=config)

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **_: Any) -> None:
        """Puts the rows where the base class expects a downloaded data set."""
        self.dataset = {
            name: datasets.Dataset.from_list([dict(row) for row in rows]) for name, rows in self._splits.items()
        }


def definition(path: str) -> dict[str, Any]:
    """The resolved definition of a task; `path` is that of its file below lm-eval's folder of tasks."""
    config: dict[str, Any] = load_yaml(DEFINITIONS / path, resolve_func=True)
    return {key: value for key, value in config.items() if key not in ("tag", "group", "task_list")}


def in_memory_task(
    path: str, splits: Mapping[str, Sequence[Mapping[str, Any]]], *, shots: int = 0, **changes: Any
) -> InMemoryTask:
    """The task of that definition on these rows, by split; splits without rows count as absent.

    `shots` examples stand before each question; `changes` override fields of the definition.
    """
    config = definition(path) | changes
    absent = {key: None for key in SPLITS if config.get(key) not in splits}
    return task_of({**config, **absent, "num_fewshot": shots}, splits)


def task_of(config: dict[str, Any], splits: Mapping[str, Sequence[Mapping[str, Any]]]) -> InMemoryTask:
    """The task of a whole definition on these rows, by split."""
    with _quiet():
        task = InMemoryTask(config, splits)
        task.set_fewshot_seed(FEWSHOT_SEED)
    return task


def requests_of(task: InMemoryTask) -> Iterator[list[Instance]]:
    """The requests of every document of the task, as `build_all_requests` makes them, one document at a time."""
    for at, doc in enumerate(task.task_docs):
        context = task.fewshot_context(doc, task.config.num_fewshot or 0, gen_prefix=task.doc_to_prefix(doc))
        made = task.construct_requests(doc, context, metadata=(task.config.task, at, 1))
        yield made if isinstance(made, list) else [made]


def metrics_of(task: InMemoryTask, requests: Sequence[Instance], answers: Sequence[Any]) -> dict[str, Any]:
    """lm-eval's metrics of one document; named "metric,filter" where the task has filters of its own.

    `answers` are those of the requests, as an LM gives them. What a filter took from the answer stands under its
    own name.
    """
    for request, answer in zip(requests, answers, strict=True):
        request.resps = [answer]
    found: dict[str, Any] = {}
    for ensemble in task._filters:
        ensemble.apply(list(requests))
        kept = [request.filtered_resps[ensemble.name] for request in requests]
        metrics = task.process_results(requests[0].doc, kept)
        if ensemble.name == "none":
            return dict(metrics)
        found |= {f"{metric},{ensemble.name}": value for metric, value in metrics.items()}
        found[ensemble.name] = kept[0]
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval remarks on its own definitions, and data sets draw progress bars, neither of which helps here."""
    logger = logging.getLogger("lm_eval")
    level, bars = logger.level, datasets.are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()
