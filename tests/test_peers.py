"""Captum and dattri give the same scores as we do, each in a process of its own."""

import importlib.util
from typing import Any

import pytest
import torch

from tracin_nb.bench import peers
from tracin_nb.bench.engine import table
from tracin_nb.engine.factors import inner
from tracin_nb.engine.gradients import LoopEngine
from tracin_nb.engine.objectives import BCE

SMALL = dict(entities=14, relations=5, dim=20)


def case(name: str) -> tuple:
    """A small model, training triples and test triples that share much, and their influence by
    the loop."""
    model = peers.build(name, **SMALL)
    train, test = peers.skewed_triples(7, 8, 2), peers.skewed_triples(3, 8, 2, seed=1)
    loop = LoopEngine(model, BCE())
    return model, train, test, inner(loop(test), loop(train))


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    assert (a - b).norm() <= 1e-5 * b.norm()


@pytest.mark.parametrize('model', ['ConvE', 'DistMult'])
@pytest.mark.parametrize('name', peers.CONTENDERS)
@pytest.mark.parametrize('batch', [1, 4])
def test_scores(name: str, model: str, batch: int) -> None:
    "Whatever the batch size, and in a second call too, the scores are the loop's."
    contender = peers.CONTENDERS[name]
    if contender.package:
        pytest.importorskip(contender.package)
    model, train, test, truth = case(model)
    if not contender.exact:
        truth = inner(peers.tail_rows(model, test), peers.tail_rows(model, train))
    assert truth.count_nonzero() > truth.numel() / 4
    scores = contender.prepare(model, test)
    for _ in range(2):
        close(scores(train, batch).detach(), truth)
    close(scores(train[:2], batch).detach(), truth[:, :2])


def test_tail_rows_are_a_part() -> None:
    "What `TracInCPFast` sees is not the influence, but a part of it."
    model, train, test, truth = case('ConvE')
    part = inner(peers.tail_rows(model, test), peers.tail_rows(model, train))
    assert (part - truth).norm() > 0.1 * truth.norm()
    assert torch.equal(part != 0, test[:, None, 2] == train[None, :, 2])


@pytest.mark.parametrize('model', ['ConvE', 'DistMult'])
def test_batch_norms_count(model: str) -> None:
    "A contender that took other running statistics would be found out."
    model, train, test, truth = case(model)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    for m in norms:
        m.reset_running_stats()
    assert torch.allclose(peers.factored(model, test)(train, 4), truth, rtol=0.1) == (not norms)


def test_benchmark() -> None:
    """Every contender that is installed, in its process: a row for each and for each number of
    test triples."""
    names = tuple(
        n for n, c in peers.CONTENDERS.items() if c.package and importlib.util.find_spec(c.package)
    )
    if not names:
        pytest.skip('neither captum nor dattri is installed')
    result = peers.bench_peers(
        **SMALL, tests=(2, 5), models=('DistMult',), contenders=names, rounds=2, enough=0.0
    )
    assert [r['name'] for r in result['rows']] == [
        f'DistMult, {m} test triples: {n}' for m in (2, 5) for n in (peers.OURS, *names)
    ]
    assert result['relative_error'] <= 1e-5 and all(
        r['relative_error'] <= 1e-5 for r in result['rows']
    )
    ours, *others = result['rows'][: 1 + len(names)]
    assert ours['times_slower'] == ours['times_memory'] == 1 and ours['relative_error'] == 0
    for row in others:
        assert row['times_slower'] == pytest.approx(row['ms_per_triple'] / ours['ms_per_triple'])
    assert {peers.CONTENDERS[n].package for n in names} <= set(result['machine'])
    lines = table(result).splitlines()
    assert sum(line.startswith('|') for line in lines) == 2 + len(result['rows'])
    assert all(note in lines for note in result['notes'])


def test_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """One error names all that is missing, and how to get it; it comes before any process is
    started."""
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    monkeypatch.setattr(peers, 'start', lambda *args: pytest.fail('started'))
    with pytest.raises(ImportError, match=r'captum and dattri: pip install "tracin_nb\[bench\]"'):
        peers.bench_peers()
    with pytest.raises(ImportError, match=r'needs dattri: '):
        peers.bench_peers(contenders=('dattri TracInAttributor',))


def test_unknown_contender() -> None:
    with pytest.raises(ValueError, match="unknown contender 'TRAK'; known are Captum TracInCP, "):
        peers.bench_peers(contenders=('TRAK',))


class Stub:
    "A contender without a process: takes `times[batch]` seconds per triple by its own `clock`."

    clock = 0.0

    def __init__(self, times: dict[int, float]):
        self.times, self.calls = times, []

    def __call__(self, method: str, *args: Any) -> Any:
        if method == 'prepare':
            return 7
        self.calls.append(args[1])
        assert len(args[0]) >= args[1]
        Stub.clock += self.times[args[1]] * len(args[0])
        return self.times[args[1]], args[1]


def test_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is slow is asked once, for the largest batch; who is fast in every round, for every
    batch size."""
    monkeypatch.setattr(peers, 'perf_counter', lambda: Stub.clock)
    fast, slow = Stub({256: 1e-6, 1024: 3e-6}), Stub({1: 5.0, 64: 4.0})
    remotes = {peers.OURS: fast, 'dattri TracInAttributor': slow}
    train = peers.skewed_triples(1024, 14, 5)
    found = peers.rounds_of(remotes, train, train[:2], rounds=3, budget=30.0)
    assert fast.calls == [1024, 256] * 3 and slow.calls == [64]
    assert found['dattri TracInAttributor'] == {64: [(4.0, 64)]}  # prepare's 7 bytes are fewer
    assert peers.fastest(found[peers.OURS]) == (256, 1e-6, 256)


def test_peaks() -> None:
    "What a call uses and frees is seen; what was used before the mark was reset is not."
    memory = peers.PeakMemory(torch.device('cpu'))
    if not memory.resets:
        pytest.skip('the high-water mark of a process cannot be reset here')
    torch.ones(2**26)
    assert memory.peak() - memory.loaded >= 2**27
    memory.reset()
    assert memory.peak() - memory.loaded < 2**26
