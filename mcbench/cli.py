"""The command line: `mcbench run`, `sweep`, `compare`, `leaderboard`, `figure`, `profile`, `list`, `show` and more."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import textwrap
import threading
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mcbench import __version__
from mcbench.arguments import Parser
from mcbench.bounds import require_settings, shown
from mcbench.errors import BadInput, CheckFailed, UnknownName
from mcbench.escape import terminal
from mcbench.failures import DEBUG, UNFORESEEN, bearable, debugging, out_of_memory, sentence
from mcbench.interrupts import INTERRUPTED, asked, heard, require_none

if TYPE_CHECKING:
    from mcbench.sweep import Engine

DONE, FAILED, WRONG_INPUT, CANNOT_TELL = 0, 1, 2, 3
# libraries say a good deal before the one sentence that counts; --debug lets them
QUIET = {"TRANSFORMERS_VERBOSITY": "error", "DATASETS_VERBOSITY": "error", "HF_HUB_VERBOSITY": "error"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    0 done, 1 a check failed, 2 wrong input, 3 not enough samples to tell, 70 an error of mcbench itself, which is told
    in one sentence with the file that holds the details, 130 interrupted. Raises SystemExit with 2 for a command line
    that is not understood, and with 0 where only help was asked for.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a character gets a question mark
            stream.reconfigure(errors="replace")
    with heard():
        options = None
        try:
            options = _understood(sys.argv[1:] if arguments is None else arguments)
            code = int(options.command(options))
            if sys.stdout is not None:
                sys.stdout.flush()
            require_none()
        except BaseException as error:  # whatever it is, no traceback reaches a user
            if options is None and isinstance(error, SystemExit):
                raise
            code = _end(error, options)
    return code


def _understood(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of one command, with the surroundings that they ask for."""
    for word in arguments:
        if any(0xD800 <= ord(character) < 0xE000 for character in word):
            raise BadInput(f"the argument {shown(word)} is not valid UTF-8")
    parser = _parser()
    parser.require_command(arguments)
    options = parser.parse_args(arguments)
    if options.debug:
        os.environ[DEBUG] = "1"
    if not debugging():
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        threading.excepthook = lambda _: None  # who waits for the thread gets the error
    return options


def _end(error: BaseException, options: argparse.Namespace | None) -> int:
    """Says in one sentence why the command stopped, and gives the exit code for it."""
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C once more, while this is said
        if asked() or isinstance(error, KeyboardInterrupt):
            return _stop("interrupted; the same command goes on from here", INTERRUPTED)
        if debugging():
            traceback.print_exception(error)
        if isinstance(error, BrokenPipeError):  # the reader of our output, `head` say, has had enough
            _drop_output()
            return DONE
        if isinstance(error, BadInput | UnknownName):
            return _stop(error, WRONG_INPUT)
        if isinstance(error, CheckFailed):
            return _stop(error, FAILED)
        if isinstance(error, OSError) and not out_of_memory(error):
            _drop_output()
            where = f"{error.filename!r}: " if error.filename else ""
            return _stop(f"{where}{error.strerror or error}; what was finished is kept", WRONG_INPUT)
        records = options is not None and options.command in (_run, _sweep, _profile, _reproduce)
        return _stop(sentence(error, Path(options.out) if options is not None and records else None), UNFORESEEN)
    return INTERRUPTED


def _drop_output() -> None:
    """Lets what could not be written go, so that Python does not try again when it leaves."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
        return
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(options: argparse.Namespace) -> int:
    from mcbench.pipeline import run
    from mcbench.report import table

    record = run(
        options.method,
        bits=options.bits,
        expert_bits=options.expert_bits,
        model=options.model,
        tasks=options.tasks,
        calibration=options.calibration,
        samples=options.samples,
        length=options.length,
        seed=options.seed,
        device=options.device,
        dtype=options.dtype,
        out=options.out,
        save=options.save,
        limit=options.limit,
        allow_code_execution=options.allow_code_execution,
        execute=not options.no_execution,
        data_dir=options.data_dir,
        widths=_widths(options.widths),
        quiet=options.quiet or options.json,
        command=_command_line(),
    )
    _say(record.to_json() if options.json else table(record))
    return DONE


def _command_line() -> list[str]:
    """The command line for the record, without the folder that the program lies in."""
    return [Path(sys.argv[0]).name, *sys.argv[1:]]


def _widths(text: str) -> tuple[int, ...]:
    try:
        return tuple(sorted({int(width) for width in text.split(",")}))
    except ValueError:
        raise BadInput(f"widths are whole numbers of bits by commas, such as 1,2,3, not {shown(text)}") from None


def _sweep(options: argparse.Namespace) -> int:
    from mcbench.sweep import make_grid, plan, read_grid, report, sweep

    names = ("methods", "bits", "expert_bits", "seeds", "tasks", "model", "widths", "calibration", "samples", "length",
             "device", "dtype", "limit", "data_dir")  # fmt: skip
    asked = {name: value for name in names if (value := getattr(options, name)) is not None}
    for name, value in asked.items():
        if isinstance(value, str) and not value.strip():
            raise BadInput(f"{name} is empty; leave it out or name one")
    require_settings(**{name: asked[name] for name in ("samples", "length", "limit") if name in asked})
    grid = read_grid(options.grid, **asked) if options.grid is not None else make_grid(asked, "the sweep")
    engine = _engine(options)
    code = options.allow_code_execution
    if options.dry_run:
        planned = plan(grid, out=options.out, allow_code_execution=code, quiet=options.quiet)
        _say(report(planned.outcomes, planned))
        return DONE
    outcomes = sweep(grid, out=options.out, allow_code_execution=code, quiet=options.quiet, engine=engine)
    _say(report(outcomes))
    return FAILED if any(outcome.state == "failed" for outcome in outcomes) else DONE


def _engine(options: argparse.Namespace) -> Engine | None:
    """Where a sweep runs; None for this process."""
    names = {"ray_address": "address", "cpus": "cpus", "gpus": "gpus", "memory": "memory_gb"}
    asked = {field: value for name, field in names.items() if (value := getattr(options, name)) is not None}
    if options.engine == "ray":
        from mcbench.ray_engine import RayEngine

        if options.ray_address is not None and not options.ray_address.strip():
            raise BadInput("the Ray address is empty; leave it out or name one")
        return RayEngine(**asked)
    if asked:
        raise BadInput("--ray-address, --cpus, --gpus and --memory are about Ray; add --engine ray")
    return None


def _list(options: argparse.Namespace) -> int:
    from mcbench.catalogue import TASKS, models
    from mcbench.composition import METHODS, defaults

    listing = {"methods": METHODS.names, "tasks": TASKS.names, "models": models}
    _say("\n".join(listing[options.what]()))
    if options.what == "tasks":
        for suite, members in defaults()["suites"].items():
            _say(f"{suite} = {','.join(members)}")
        for suite, metrics in defaults()["means"].items():
            _say(f"{suite} mean = {','.join(f'{task}:{metric}' for task, metric in metrics.items())}")
    return DONE


def _show(options: argparse.Namespace) -> int:
    from mcbench.catalogue import describe

    _say(describe(options.name))
    return DONE


def _check(options: argparse.Namespace) -> int:
    from mcbench.contract import check_method

    outcome = check_method(options.name)
    for promise in outcome:
        _say(promise)
    return DONE if all(promise.kept for promise in outcome) else FAILED


def _data(options: argparse.Namespace) -> int:
    from mcbench.catalogue import served
    from mcbench.report import data_table

    found = served(Path(options.folder))
    _say(data_table(found))
    return FAILED if any(split.refused for _, looks in found for split in looks) else DONE


def _score(options: argparse.Namespace) -> int:
    from mcbench.datasets import data_folder
    from mcbench.progress import muted
    from mcbench.report import score_line
    from mcbench.scoring import score

    asked = {"task": options.task, "allow_code_execution": options.allow_code_execution}
    with muted(options.quiet), data_folder(options.data_dir):
        outcome = [score(file, **asked) for file in options.files]
    for scores in outcome:
        _say(score_line(scores))
    return FAILED if any(scores.skipped for scores in outcome) else DONE


def _compare(options: argparse.Namespace) -> int:
    from mcbench.gate import judge
    from mcbench.versus import compare, table

    ruled = {"margin": options.margin, "perplexity_margin": options.perplexity_margin}
    asked = {name: value for name, value in ruled.items() if value is not None}
    if not options.gate and (asked or options.each):
        raise BadInput("--margin, --perplexity-margin and --each are about the gate; add --gate")
    require_settings(confidence=options.confidence, **asked)
    if options.tasks is not None and not options.tasks.strip():
        raise BadInput("the task list is empty; leave it out for all tasks")
    comparison = compare(options.records, tasks=options.tasks or "", confidence=options.confidence)
    verdict = judge(comparison, each=options.each, **asked) if options.gate else None
    if options.json:
        _say(json.dumps({**comparison.to_json(), **({"gate": verdict.to_json()} if verdict else {})}, indent=1))
    else:
        _say("\n\n".join([table(comparison), *([textwrap.fill(verdict.why, 100)] if verdict else [])]))
    return DONE if verdict is None else {"passed": DONE, "failed": FAILED, "cannot tell": CANNOT_TELL}[verdict.outcome]


def _profile(options: argparse.Namespace) -> int:
    if options.record is None:
        _require_profile(options)
    from mcbench.profiling import profile
    from mcbench.speed import profile_table

    names = ("method", "bits", "expert_bits", "model", "record", "calibration", "samples", "length", "seed", "device",
             "dtype", "grid", "warmup", "repeats", "out")  # fmt: skip
    asked = {name: value for name in names if (value := getattr(options, name)) is not None}
    quiet = options.quiet or options.json
    found = profile(**asked, widths=_widths(options.widths), quiet=quiet, command=_command_line())
    _say(found.to_json() if options.json else profile_table(found))
    return DONE


def _require_profile(options: argparse.Namespace) -> None:
    """Refuses what can be refused before torch is imported."""
    from mcbench.composition import defaults
    from mcbench.inputs import require_device
    from mcbench.pipeline import composed, require_sources
    from mcbench.speed import read_grid

    if options.grid is not None:
        read_grid(options.grid)
    for name in ("method", "model"):
        if (value := getattr(options, name)) is not None and not value.strip():
            raise BadInput(f"{name} is empty; leave it out or name one")
    require_settings(**{name: getattr(options, name) for name in ("samples", "length", "repeats", "warmup")})
    require_sources(options.model or defaults()["model"], options.dtype, options.calibration)
    composed(options.method or "none", options.bits, options.expert_bits, _widths(options.widths), options.seed or 0)
    require_device(options.device)


def _leaderboard(options: argparse.Namespace) -> int:
    from mcbench.leaderboard import leaderboard
    from mcbench.progress import stage

    if not all([options.out, *options.records]):
        raise BadInput("a folder is empty; name it, or leave it out for the default")
    with stage("leaderboard"):
        lines = leaderboard([Path(p) for p in options.records], Path(options.out), check=options.check)
    for line in lines:
        _say(line)
    return DONE


def _figure(options: argparse.Namespace) -> int:
    from mcbench.composition import method_strings
    from mcbench.figure import figure

    said = figure(
        options.kind,
        [Path(p) for p in options.records],
        Path(options.out or f"{options.kind}.svg"),
        table=options.table,
        score=options.score,
        methods=method_strings(options.methods) if options.methods else (),
        bits=options.bits,
        statistics=Path(options.statistics),
    )
    _say(said)
    return DONE


def _audit(options: argparse.Namespace) -> int:
    from mcbench.audit import audit, report

    _say(report(audit(options.table)))
    return DONE


def _reproduce(options: argparse.Namespace) -> int:
    from mcbench.datasets import data_folder
    from mcbench.reproduce import listing, planned, reproduce, study
    from mcbench.sweep import numbers, report

    if options.name is None or options.list:
        _say(listing())
        return DONE
    chosen = study(options.name)
    names = ("model", "tasks", "limit", "samples", "calibration", "length", "device", "dtype")
    asked = {name: value for name in names if (value := getattr(options, name)) is not None}
    bits = numbers(options.bits) if options.bits is not None else ()
    code = options.allow_code_execution
    with data_folder(options.data_dir):
        if options.dry_run:
            for each in planned(chosen, asked, out=options.out, bits=bits):
                _say(report(each.outcomes, each))
        else:
            ways = {"grid": options.grid or "", "allow_code_execution": code, "quiet": options.quiet}
            found = reproduce(chosen, asked, out=options.out, bits=bits, **ways)
            _say(found.text)
            return FAILED if found.failed else DONE
    return DONE


def _parser() -> Parser:
    parser = Parser(
        prog="mcbench",
        description="What does compressing this Mixture-of-Experts model cost, and what does it buy?",
    )
    parser.add_argument("--version", action="version", version=f"mcbench {__version__}")
    commands = parser.add_subparsers(metavar="command", required=True)
    _add_run(commands)

    listing = _command(commands, "list", _list, "the methods, tasks or models that can be named")
    listing.add_argument("what", choices=("methods", "tasks", "models"))

    show = _command(commands, "show", _show, "what a method or task does, its parameters and its paper")
    show.add_argument("name", help="a method or task, or a path to a file that defines one")

    check = _command(commands, "check", _check, "does a contributed method keep its promises?")
    check.add_argument("name", help="a method, or a path such as ./mine.py")

    data = _command(commands, "data", _data, "which tasks a folder of evaluation sets can serve")
    data.add_argument("what", choices=("check",))
    data.add_argument("folder", metavar="DIR", help="a folder of sets in their published formats")

    score = _command(commands, "score", _score, "run and score programs that were written with --no-execution")
    score.add_argument("files", nargs="+", metavar="FILE", help="files that end in .completions.jsonl")
    score.add_argument("--task", default="", metavar="PY", help="the file of a task of yours, such as ./mine.py")
    _add_data_dir(score)
    _add_allow(score)
    score.add_argument("--quiet", action="store_true", help="no progress")

    _add_sweep(commands)
    _add_compare(commands)
    _add_profile(commands)

    board = _command(commands, "leaderboard", _leaderboard, "records in, tables out")
    board.add_argument("records", nargs="*", default=["runs"], help="records or folders of them")
    board.add_argument("--out", default="leaderboards", metavar="DIR", help="where the tables go")
    board.add_argument("--check", action="store_true", help="write nothing; fail if the tables in DIR are not these")

    drawn = _command(commands, "figure", _figure, "records in, a figure for print out")
    drawn.add_argument("kind", help="tradeoff (a score against stored bits), allocation or significance of experts")
    drawn.add_argument("records", nargs="*", default=["runs"], help="records or folders of them")
    drawn.add_argument("--out", metavar="FILE", help="ends in .svg or .png (default: the kind, as SVG)")
    drawn.add_argument("--table", type=int, metavar="N", help="which table of the leaderboard, from 1")
    drawn.add_argument("--score", default="", metavar="NAME", help="a task or mean to draw (default: the first)")
    drawn.add_argument("--methods", default="", metavar="LIST", help="method strings, by commas (default: all)")
    drawn.add_argument("--bits", type=float, metavar="B", help="runs that were asked for this budget only")
    drawn.add_argument("--statistics", default="leaderboards", metavar="DIR", help="where those of experts stand")

    checks = _command(commands, "audit", _audit, "what does not add up in the papers' published figures")
    checks.add_argument("--table", default="", metavar="NAME", help="one table only, such as T2 or R-latency")

    again = _command(commands, "reproduce", _reproduce, "a table or figure of the papers, published beside measured")
    again.add_argument("name", nargs="?", metavar="NAME", help="a study, such as table7; without one they are listed")
    again.add_argument("--list", action="store_true", help="the studies")
    again.add_argument("--model", metavar="NAME", help="a name, folder or hub id (default: the reference model)")
    again.add_argument("--tasks", metavar="LIST", help="other tasks than the study's; marks the output as partial")
    again.add_argument("--bits", metavar="LIST", help="only rows of these bits; marks the output as partial")
    again.add_argument("--limit", type=int, metavar="N", help="items per task; marks the output as partial")
    again.add_argument("--grid", metavar="LIST", help="cells to time, as for profile; marks the output as partial")
    _add_calibration(again)
    again.add_argument("--device", help="a torch device (default: cpu)")
    again.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), help="(default: auto)")
    again.add_argument("--out", default="runs", metavar="DIR", help="where records go")
    _add_data_dir(again)
    again.add_argument("--dry-run", action="store_true", help="print the plan and what it would take")
    again.add_argument("--allow-code-execution", action="store_true", help="run generated programs without isolation")
    again.add_argument("--quiet", action="store_true", help="no progress")
    return parser


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Prints a default where there is one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None or action.default is False else super()._get_help_string(action)


def _add_run(commands: argparse._SubParsersAction[Parser]) -> None:
    from mcbench.composition import defaults

    usual = defaults()
    run = _command(commands, "run", _run, "compress a model, evaluate it, write a record")
    run.add_argument("--method", default=usual["method"], metavar="STRING", help="such as 'pmq(beta=1)+hqq'")
    budget = run.add_mutually_exclusive_group()
    budget.add_argument("--bits", type=float, metavar="B", help="average bits as the papers label it")
    budget.add_argument("--expert-bits", type=float, metavar="B", help="average bits over routed experts alone")
    run.add_argument("--widths", default="1,2,3", metavar="LIST", help="candidate widths of an expert, in bits")
    run.add_argument("--model", default=usual["model"], metavar="NAME", help="a name, folder or hub id")
    run.add_argument("--tasks", default=usual["tasks"], metavar="LIST", help="tasks or suites, by commas")
    _add_calibration(run)
    run.add_argument("--seed", type=int, default=0, help="of everything that is random")
    run.add_argument("--device", default="cpu", help="a torch device")
    run.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    run.add_argument("--out", default="runs", metavar="DIR", help="where records go")
    run.add_argument("--save", metavar="DIR", help="write the packed model there")
    run.add_argument(
        "--limit",
        type=int,
        metavar="N",
        help="items per task, of each subject or set in mmlu and longbench as lm-eval; marks the record as partial",
    )
    _add_data_dir(run)
    _add_allow(run)
    run.add_argument("--no-execution", action="store_true", help="write programs and leave them to `mcbench score`")
    run.add_argument("--json", action="store_true", help="print the record instead of the table")
    run.add_argument("--quiet", action="store_true", help="no progress")


def _add_calibration(parser: Parser, purpose: str = "to calibrate on") -> None:
    parser.add_argument(
        "--calibration", metavar="FILE", help=f"text {purpose}: plain, JSON, parquet or arrow, packed or not"
    )
    parser.add_argument("--samples", type=int, metavar="N", help="calibration sequences")
    parser.add_argument("--length", type=int, metavar="T", help="tokens in a calibration sequence")


def _add_data_dir(parser: Parser) -> None:
    from mcbench.datasets import FOLDER_VARIABLE

    text = f"a folder of evaluation sets, looked into before the Hugging Face cache and the hub ({FOLDER_VARIABLE})"
    parser.add_argument("--data-dir", metavar="DIR", help=text)


def _add_allow(parser: Parser) -> None:
    parser.add_argument("--allow-code-execution", action="store_true", help="run generated programs without isolation")


def _add_sweep(commands: argparse._SubParsersAction[Parser]) -> None:
    grid = _command(commands, "sweep", _sweep, "a grid of runs that share what they can, and go on after a kill")
    grid.add_argument("grid", nargs="?", metavar="TOML", help="a file that names what the flags below name")
    grid.add_argument("--methods", metavar="LIST", help="method strings, by commas")
    budget = grid.add_mutually_exclusive_group()
    budget.add_argument("--bits", metavar="LIST", help="budgets as labels, by commas or low:high[:points]")
    budget.add_argument("--expert-bits", metavar="LIST", help="the same as averages over routed experts alone")
    grid.add_argument("--seeds", metavar="LIST", help="seeds, by commas (default: 0)")
    grid.add_argument("--tasks", metavar="LIST", help="tasks or suites, by commas")
    grid.add_argument("--model", metavar="NAME", help="a name, folder or hub id")
    grid.add_argument("--widths", metavar="LIST", help="candidate widths of an expert, in bits (default: 1,2,3)")
    _add_calibration(grid)
    grid.add_argument("--device", help="a torch device (default: cpu)")
    grid.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), help="(default: auto)")
    grid.add_argument("--limit", type=int, metavar="N", help="items per task; marks the records as partial")
    _add_data_dir(grid)
    grid.add_argument("--out", default="runs", metavar="DIR", help="where records go")
    grid.add_argument("--engine", default="local", choices=("local", "ray"), help="this process, or workers of Ray")
    grid.add_argument("--ray-address", metavar="HOST:PORT", help="a running cluster, or auto (default: start one here)")
    grid.add_argument("--cpus", type=int, metavar="N", help="processors, and threads, of a Ray worker (default: 1)")
    grid.add_argument("--gpus", type=float, metavar="N", help="GPUs of a Ray worker, or a share of one (default: 0)")
    grid.add_argument("--memory", type=float, metavar="GB", help="memory that Ray sets aside for a worker")
    grid.add_argument("--dry-run", action="store_true", help="print the plan and what it would take")
    grid.add_argument("--allow-code-execution", action="store_true", help="run generated programs without isolation")
    grid.add_argument("--quiet", action="store_true", help="no progress")


def _add_compare(commands: argparse._SubParsersAction[Parser]) -> None:
    versus = _command(commands, "compare", _compare, "how far runs are apart, and how sure that is")
    versus.add_argument("records", nargs="+", metavar="RUN", help="records or run folders, compared with the first")
    versus.add_argument("--tasks", metavar="LIST", help="tasks or suites, by commas (default: all in common)")
    versus.add_argument("--confidence", type=float, default=0.95, metavar="C", help="of intervals and of the gate")
    versus.add_argument(
        "--gate", action="store_true", help="exit 0: less lost than the margin, 1: more, 3: cannot tell"
    )
    versus.add_argument("--margin", type=float, metavar="P", help="points that the mean may lose (default: 1)")
    versus.add_argument("--perplexity-margin", type=float, metavar="P", help="per cent it may rise (default: 1)")
    versus.add_argument("--each", action="store_true", help="the margin holds for every task by itself")
    versus.add_argument("--json", action="store_true", help="print JSON instead of tables")


def _add_profile(commands: argparse._SubParsersAction[Parser]) -> None:
    from mcbench.composition import defaults

    cost = _command(commands, "profile", _profile, "time and memory of prefill and decode, beside transformers")
    cost.add_argument("--record", metavar="RUN", help="profile the model of this run, and write beside its record")
    cost.add_argument("--method", metavar="STRING", help="as for run (default: none, the model as it is)")
    budget = cost.add_mutually_exclusive_group()
    budget.add_argument("--bits", type=float, metavar="B", help="average bits as the papers label it")
    budget.add_argument("--expert-bits", type=float, metavar="B", help="average bits over routed experts alone")
    cost.add_argument("--widths", default="1,2,3", metavar="LIST", help="candidate widths of an expert, in bits")
    text = f"a name, folder (also one that --save wrote) or hub id (default: {defaults()['model']})"
    cost.add_argument("--model", metavar="NAME", help=text)
    grid = "cells BATCHxPROMPT+OUTPUT by commas, / between values (default: batch 1, 8 and 16 on 512 to 4096 tokens)"
    cost.add_argument("--grid", metavar="LIST", help=grid)
    cost.add_argument("--repeats", type=int, default=5, metavar="N", help="timed passes of each arm")
    cost.add_argument("--warmup", type=int, default=1, metavar="N", help="passes before them")
    _add_calibration(cost, "to calibrate on and to run")
    cost.add_argument("--seed", type=int, help="of everything that is random (default: 0)")
    cost.add_argument("--device", default="cpu", help="a torch device")
    cost.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    cost.add_argument("--out", default="runs", metavar="DIR", help="where runs are")
    cost.add_argument("--json", action="store_true", help="print the profile instead of tables")
    cost.add_argument("--quiet", action="store_true", help="no progress")


def _command(
    commands: argparse._SubParsersAction[Parser],
    name: str,
    function: Callable[[argparse.Namespace], int],
    summary: str,
) -> Parser:
    parser = commands.add_parser(name, help=summary, description=summary, formatter_class=_Help)
    parser.add_argument("--debug", action="store_true", help=f"show the details of a failure ({DEBUG})")
    parser.set_defaults(command=function)
    return parser


def _say(text: object) -> None:
    """Prints what may hold names out of files."""
    print(terminal(str(text)))


def _stop(reason: object, code: int) -> int:
    if sys.stderr is not None:  # print would take stdout for it
        with contextlib.suppress(OSError):  # the exit code says it all the same
            print(terminal(f"mcbench: {bearable(str(reason))}"), file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
