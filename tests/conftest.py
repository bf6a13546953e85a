"""What the tests share: the graphs that lie beside the checkout, one thread, and what makes them
faster without changing what they test."""

import gc
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault('OMP_NUM_THREADS', '1')
# Several files are tested at once. These take longest, so they start first: otherwise the last one
# would run alone at the end.
LONGEST = ['workers', 'cli', 'flags', 'site', 'browser', 'exact', 'docs', 'resume', 'malformed']
LONGEST += [
    'influence',
    'memory',
    'natural',
    'answers',
    'packaging',
    'cluster',
    'serve',
    'shortcuts',
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    "The files that take longest come first; the order is otherwise kept."
    place = {f'test_{name}': i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol() -> Iterator[None]:
    """What is in memory before a test is no garbage. PyKEEN collects garbage after each epoch, and
    the objects of a whole test session would be looked at each time."""
    gc.freeze()
    try:
        return (yield)
    finally:
        gc.unfreeze()


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


@pytest.fixture
def fresh_workers() -> None:
    "A test that asks for this starts workers as users do, each as a new Python (seconds each)."


@pytest.fixture(autouse=True)
def warm_workers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests fork their workers from one process that has imported PyTorch and PyKEEN, and
    nothing that the tests made: what a worker is to know still must be sent to it."""
    if 'fresh_workers' in request.fixturenames:
        return
    import torch

    warm = multiprocessing.get_context('forkserver')
    warm.set_forkserver_preload(['tracin_nb.influence.tracin'])
    other = torch.multiprocessing.get_context
    get = lambda method=None: warm if method == 'spawn' else other(method)
    monkeypatch.setattr(torch.multiprocessing, 'get_context', get)
