"""Which tests run where; every skip says why."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import made_up
import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # several workers share the cores; set before torch is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# a shell starts what runs in the background with signals ignored, and children inherit that
for _signal, _usual in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGTERM, signal.SIG_DFL),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(_signal) == signal.SIG_IGN:
        signal.signal(_signal, _usual)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow as well")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="takes long; --slow runs it"))
        if "gpu" in item.keywords and not _has_gpu():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and there is none here"))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope="session")
def made_up_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a few made-up rows of every published set, in the forms in which they are published."""
    return made_up.write(tmp_path_factory.mktemp("sets"))


@pytest.fixture
def sets(made_up_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That folder, in a test for which each set is officially as large as its made-up rows."""
    made_up.install(monkeypatch)
    return made_up_folder
