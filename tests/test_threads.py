"""A question beside other work: it takes fewer threads while others use the cores, as many as
before at the end, and gives the same answer."""

from collections.abc import Callable, Iterator

import pytest
import torch
from test_moments import some_run

from tracin_nb.engine.beliefs import beliefs
from tracin_nb.influence import steps
from tracin_nb.influence.memory import heap
from tracin_nb.influence.tracin import TracIn
from tracin_nb.threads import Used, adapt, beside_others, own_cores, taken, threads_for, used

pytestmark = pytest.mark.filterwarnings('ignore')


@pytest.fixture(autouse=True)
def two() -> Iterator[None]:
    "PyTorch has two threads."
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def steady(others: float) -> Callable[[], Used]:
    "Looks, a second apart, between which others take so many cores."
    seconds = iter(range(10**9))
    return lambda: Used(s := float(next(seconds)), mine=0.0, every=others * s)


def seen_at_work(
    monkeypatch: pytest.MonkeyPatch, look: Callable[[], int] = torch.get_num_threads
) -> list[int]:
    "The threads, or what else is looked at, at each gradient pass over training triples."
    seen, real = [], steps.Steps.gradients

    def gradients(self: steps.Steps, triples: torch.Tensor) -> list:
        seen.append(look())
        return real(self, triples)

    monkeypatch.setattr(steps.Steps, 'gradients', gradients)
    return seen


@pytest.mark.parametrize(('others', 'threads'), [(0.1, 2), (0.8, 1)])
def test_question(others: float, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    "Gradient passes have the threads for which there are cores, and the answer is the same."
    run, seen = some_run(0), seen_at_work(monkeypatch)
    ask = lambda: TracIn(
        run, 'bce', engine='factored', memory='2MiB', devices='cpu', progress=False
    ).explain(run.training.mapped_triples[:5], 10)
    alone = ask().frame
    assert set(seen) == {2}
    del seen[:]
    with beside_others(steady(others), lambda: [0, 1], every=0):
        beside = ask().frame
        assert torch.get_num_threads() == threads
    assert seen[-1] == threads
    assert torch.get_num_threads() == 2
    assert not heap.blocks
    same = ['test_index', 'rank', 'training_index']
    assert alone[same].equals(beside[same])
    assert alone['influence'].to_numpy() == pytest.approx(beside['influence'].to_numpy(), rel=1e-5)


def test_ranks() -> None:
    "Ranks of a model's predictions look around, too."
    run = some_run(0)
    with beside_others(steady(1.0), lambda: [0, 1], every=0):
        adapt()
        beliefs(run, run.training.mapped_triples[:5])
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


def test_loop_left_early() -> None:
    "Tiles that nobody takes leave no trace."
    held = TracIn(some_run(0), 'bce', devices='cpu', progress=False).steps
    tiles = held.tiles(10, 1, 'test', lambda rows: None)
    next(tiles)
    torch.set_num_threads(1)  # as if others were busy
    tiles.close()
    assert torch.get_num_threads() == 2


def test_joined() -> None:
    "A block inside another one changes nothing at its end."
    with beside_others(steady(1.0), lambda: [0, 1], every=0):
        adapt(), adapt()
        with beside_others(steady(0.0), lambda: [0, 1], every=0):
            adapt()
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


def test_one_thread_stays() -> None:
    "Who asked for one thread gets one, and nobody looks around."
    torch.set_num_threads(1)
    with beside_others(lambda: pytest.fail('looked'), every=0):
        adapt()
        adapt()
        assert torch.get_num_threads() == 1


def test_threads_for() -> None:
    "A thread for each core that is mostly free; never none, never more than asked for."
    for most in range(1, 5):
        found = [threads_for(most, free / 10) for free in range(45)]
        assert (min(found), max(found)) == (1, most)
        assert found == sorted(found)
        assert threads_for(most, most) == most
        assert threads_for(most, most - 0.5) == max(1, most - 1)


def test_used() -> None:
    "The system's clock of the cores runs on, and this process has a part of it."
    first = used()
    sum(i * i for i in range(10**6))
    second = used()
    assert first.at < second.at
    assert first.mine < second.mine
    assert first.every <= second.every
    assert 0 <= taken(first, second) <= 2 * len(own_cores())


@pytest.mark.parametrize('ask', [TracIn.explain, TracIn.scores])
def test_what_tiles_free_is_kept(ask: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    "Not only `explain`: each loop over tiles keeps freed memory, so in workers, too."
    run, seen = some_run(0), seen_at_work(monkeypatch, lambda: heap.blocks)
    ask(TracIn(run, 'bce', devices='cpu', progress=False), run.training.mapped_triples[:5])
    assert max(seen) > 0
    assert not heap.blocks
