"""What the tests share: the graphs that lie beside the checkout, and one thread."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault('OMP_NUM_THREADS', '1')


@pytest.fixture(scope='session', autouse=True)
def threads() -> None:
    "One thread: the arrays are small, and more threads only wait for each other."
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope='session')
def shared_data() -> Path:
    """The folder of larger graphs (`TRACIN_DATA`, else ../shared/data): skips without it, but
    fails under CI=true."""
    path = Path(os.environ.get('TRACIN_DATA') or ROOT.parent / 'shared/data')
    if path.is_dir():
        return path
    say = pytest.fail if os.environ.get('CI') == 'true' else pytest.skip
    say(f'{path} is missing: put the graphs there or name their folder in TRACIN_DATA')


@pytest.fixture(scope='module')
def little_garbage() -> Iterator[None]:
    "PyKEEN collects garbage after each epoch, slow among the objects of a whole test session."
    gc.freeze()
    yield
    gc.unfreeze()
