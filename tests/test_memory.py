"""Memory: the count against PyTorch's allocator, predictions against whole passes, and memory
that runs out."""

from __future__ import annotations

import gc
import random
import subprocess
import sys
import textwrap
import weakref
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from models import trained
from pykeen.losses import BCEWithLogitsLoss
from pykeen.models import ConvE
from pykeen.sampling import BasicNegativeSampler
from torch import Tensor
from torch.autograd.profiler import profile

from tracin_nb import TracIn, train
from tracin_nb.answer.ranking import Ranking
from tracin_nb.engine.factors import Factors, added, inner
from tracin_nb.engine.gradients import ENGINES, FactoredEngine
from tracin_nb.engine.objectives import BCE, SLCWA, Negatives
from tracin_nb.influence.memory import (
    Plan,
    Tiles,
    Usage,
    _resident,
    consume,
    metered,
    out_of_memory,
    plan_tiles,
    release,
)
from tracin_nb.influence.settings import parse_bytes

CPU = torch.device('cpu')


@pytest.fixture(scope='module', autouse=True)
def few_objects() -> Iterator[None]:
    "What other tests left behind is not searched for cycles each time that memory runs out."
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


linux = pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')


def allocated(work: Callable[[], object]) -> int:
    "The peak of what PyTorch's CPU allocator gave out while `work()` ran, by its own profiler."
    with profile(profile_memory=True) as prof:
        work()
    now = peak = 0
    events = [e for e in prof.kineto_results.events() if e.name() == '[memory]']
    for e in sorted(events, key=lambda e: e.start_ns()):
        now += e.nbytes()
        peak = max(peak, now)
    return peak


# ---- the count


@pytest.mark.parametrize('name', ['conve', 'distmult', 'complex', 'tucker'])
@pytest.mark.parametrize('engine', ENGINES)
def test_count_equals_allocator(name: str, engine: str) -> None:
    """The count misses nothing but what single operations need for themselves, and counts nothing
    twice.

    A convolution on the CPU takes a copy of its output meanwhile, which shows on a ConvE of
    dimension 8."""
    model, triples = trained(name)
    made = ENGINES[engine](model, BCE())
    tile = triples.mapped_triples[: 500 if engine == 'factored' else 20]
    made(tile)
    with metered(CPU) as used:
        made(tile)
    assert used.left == 0
    truth = allocated(lambda: made(tile))
    assert (0.45 if name == 'conve' else 0.9) * truth - 2**16 <= used.peak <= truth


def test_count_is_exact() -> None:
    """To the byte, for the factored engine on a ConvE of dimension 200, its products and the
    ranking."""
    _, triples = trained('conve')
    model = ConvE(
        triples_factory=triples,
        embedding_dim=200,
        embedding_height=10,
        embedding_width=20,
        random_seed=0,
    )
    engine, ids = FactoredEngine(model, BCE()), triples.mapped_triples
    test = engine(ids[:30])

    def step() -> None:
        Ranking(30, 5).update(inner(test, engine(ids[:64])), 0)

    step()
    with metered(CPU) as used:
        step()
    assert used.peak == allocated(step)


def test_count_views_and_what_was_there() -> None:
    old = torch.ones(1000)
    with metered(CPU) as used:
        old.add_(1)
        kept = [old.view(10, 100), old[5:], old.T, old.detach(), old.contiguous()]
        assert used == Usage(0, 0)
        new = old + 1
        kept += [new.view(10, 100).T, new.split(10)]
        del new
        assert used == Usage(4000, 4000)
        del kept
        assert used == Usage(4000, 0)
        torch.eye(10).to_sparse()
        assert used.left == 0


def test_count_ends_with_an_error() -> None:
    with pytest.raises(ValueError, match='mine'):
        with metered(CPU) as used:
            kept = torch.ones(10)
            raise ValueError('mine')
    torch.ones(1000)
    assert used == Usage(40, 40)
    del kept
    assert used == Usage(40, 40), 'what dies later does not change it'
    assert not torch.utils._python_dispatch._get_current_dispatch_mode_stack()


def test_count_leaves_compiled_functions_compiled() -> None:
    calls = []

    def backend(module: torch.fx.GraphModule, example: list[Tensor]) -> Callable:
        return lambda *args: calls.append(1) or module(*args)

    def double(x: Tensor) -> Tensor:
        return x.sin() * 2

    compiled = torch.compile(double, backend=backend)
    with metered(CPU) as used:
        compiled(torch.ones(10))
    assert used.peak == 3 * 40 and not calls
    compiled(torch.ones(10))
    assert calls == [1]
    with metered(CPU):
        compiled(torch.ones(10))
    compiled(torch.ones(10))
    assert calls == [1, 1]


# ---- the plan, on made-up costs


def cost(peak: Callable[[int], int]) -> Callable[[slice], None]:
    "Work on `n` triples that takes `peak(n)` bytes, a multiple of 4, and keeps a list of sizes."

    def work(rows: slice) -> None:
        work.sizes.append(n := rows.stop - rows.start)
        torch.empty(peak(n) // 4)

    work.sizes = []
    return work


@pytest.mark.parametrize(
    ('peak', 'best'),
    [
        (lambda n: 4000 + 400 * n, 2490),
        (lambda n: 40_000 + 4 * n, 10_000),
        (lambda n: max(40_000, 400 * n), 2500),
        (lambda n: 4 * n * n, 500),
        (lambda n: 4 * int(10_000 * n**0.5 / 4), 10_000),
        (lambda n: 400 * n if n < 300 else 300_000, 10_000),
        (lambda n: 400 * min(n, 200) + 1600 * max(0, n - 200), 775),
        (lambda n: 40 * n if n < 300 else 4000 * n, 299),
        (lambda n: 12, 10_000),
        (lambda n: 1_200_000 * (n > 1) + 400_000, 1),
        (lambda n: 100_000 * n, 10),
    ],
)
def test_plan_any_growth(peak: Callable[[int], int], best: int) -> None:
    "Within 5 % of the largest tile, whatever the growth; what is predicted is what the size takes."
    work = cost(peak)
    plan = plan_tiles(work, 10**5, 10**6, CPU, most=10_000)
    assert (
        0.94 * best - 1 <= plan.size <= best
        and plan.peak == max(peak(plan.size), peak(1)) <= plan.budget == 10**6
    )
    assert len(set(work.sizes)) <= 13


def test_plan_small_budgets_are_not_exceeded_by_far() -> None:
    """A trial takes at most what 64 triples take, or four times what the line predicted from
    smaller ones."""
    work = cost(lambda n: 400 * n)
    plan_tiles(work, 10**5, 60_000, CPU, most=10_000)
    assert max(work.sizes) <= 150


def test_plan_that_is_mostly_fixed_is_tried_in_small() -> None:
    "Lists of many test triples take the same for every tile: a large one need not be tried."
    work = cost(lambda n: 100_000 + 4 * n)
    plan = plan_tiles(work, 10**5, 10**6, CPU, most=10_000)
    assert plan == Plan(10_000, 140_000, 0, 100_000, 4, 10**6)
    assert sorted(work.sizes) == [1, 16, 64, 512]


def test_plan_held_and_left() -> None:
    "What is held, and what the first step leaves behind, count against the budget."
    kept = []

    def work(rows: slice) -> None:
        if not kept:
            kept.append(torch.ones(1000))
        torch.empty(100 * (rows.stop - rows.start))

    plan = plan_tiles(work, 10**5, 100_000, CPU, most=10_000, held=20_000)
    assert plan == Plan(190, 100_000, 24_000, 0, 400, 100_000)


def test_plan_fails_with_numbers() -> None:
    with pytest.raises(ValueError, match=r'hold 500 bytes.* takes 4,000 bytes, .*memory=4,400'):
        plan_tiles(cost(lambda n: 4000 * n), 1000, 4400, CPU, most=100, held=500)
    assert plan_tiles(cost(lambda n: 4000 * n), 1000, 4500, CPU, most=100, held=500).size == 1


def test_plan_out_of_memory_in_trial() -> None:
    "Memory that is not there limits the tile as the budget does; other errors are passed on."

    def work(rows: slice) -> None:
        if rows.stop - rows.start > 30:
            raise torch.OutOfMemoryError('CUDA out of memory')
        torch.empty(1000 * (rows.stop - rows.start))

    assert 25 <= plan_tiles(work, 10**5, 10**9, CPU, most=10_000).size <= 30
    with pytest.raises(RuntimeError, match='shapes'):
        plan_tiles(lambda rows: torch.ones(2, 3) @ torch.ones(2, 3), 100, 10**9, CPU, most=10)


# ---- predictions, on whole passes

SMALL = dict(embedding_dim=32, embedding_height=4, embedding_width=8, output_channels=8)
MODELS = {
    'ConvE': dict(model_kwargs=SMALL, inverse=True),
    'DistMult': dict(model_kwargs=dict(embedding_dim=64)),
    'TransE': dict(model_kwargs=dict(embedding_dim=64)),
}
LOOPS = {
    'slcwa': dict(loss='BCEWithLogits', num_negs_per_pos=4),
    'lcwa': dict(loop='lcwa', loss='BCEWithLogits'),
}


@pytest.fixture(scope='module')
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], TracIn]:
    "TracIn on a run of two checkpoints on Nations, by model and training loop."
    made = {}

    def get(model: str, loop: str) -> TracIn:
        if (model, loop) not in made:
            folder = tmp_path_factory.mktemp('runs') / 'run'
            run = train(
                'nations',
                model,
                out=folder,
                epochs=2,
                keep_every=1,
                lr=0.01,
                progress=False,
                device='cpu',
                batch_size=512,
                **MODELS[model],
                **LOOPS[loop],
            )
            made[model, loop] = TracIn(run, weighting='sgd', devices='cpu', progress=False)
        return made[model, loop]

    return get


def influence(tracin: TracIn, held: list[Factors], triples: Tensor, rows: slice) -> Tensor:
    "Influence `[M, n]` of some training triples, summed over the checkpoints."
    return added(
        inner(factors, step.metric.train(step.train(triples[rows]))).mul_(step.rate)
        for step, factors in zip(tracin.steps, held, strict=True)
    )


def planned(
    tracin: TracIn, held: list[Factors], triples: Tensor, budget: int, most: int = 60
) -> Plan:
    "The plan of a pass."
    M = len(held[0])

    def work(rows: slice) -> None:
        Ranking(M, 20).update(influence(tracin, held, triples, rows), rows.start)

    return plan_tiles(work, len(triples), budget, CPU, most=most, held=sum(f.nbytes for f in held))


@pytest.mark.parametrize('M', [1, 100, 1000])
@pytest.mark.parametrize('loop', LOOPS)
@pytest.mark.parametrize('model', MODELS)
def test_prediction(runs: Callable[[str, str], TracIn], model: str, loop: str, M: int) -> None:
    """Predicted and counted peak of a whole pass over two checkpoints differ by less than 20 %,
    within the budget."""
    tracin = runs(model, loop)
    triples = tracin.run.training.mapped_triples[:120]
    held = tracin.tests.side(tracin.run.training.mapped_triples[-M:], tracin.tests.engines())[
        0
    ].factors
    for budget in ('60MiB',) if M == 1000 else ('15MiB', '1GiB'):
        budget = parse_bytes(budget) + sum(f.nbytes for f in held)
        plan, ranking = planned(tracin, held, triples, budget), Ranking(M, 20)
        tiles = Tiles(plan.size, plan.budget).each(
            len(triples), partial(influence, tracin, held, triples)
        )
        measured = plan.held + consume(
            tiles, lambda rows, s: ranking.update(s, rows.start), CPU, every=1
        )
        print(
            f'{model} {loop} M={M} tile={plan.size} {plan.peak / 2**20:.1f} MiB, '
            f'{plan.peak / measured - 1:+.1%}'
        )
        assert abs(plan.peak / measured - 1) < 0.2
        assert measured < 1.05 * budget and plan.peak <= budget


def test_prediction_draws_negatives() -> None:
    "Negatives that the first step draws and keeps are part of the plan."
    model, triples = trained('distmult')
    ids = triples.mapped_triples
    sampler = BasicNegativeSampler(mapped_triples=ids, num_negs_per_pos=50)
    negatives = Negatives(sampler, ids, seed=0)
    engine = FactoredEngine(model, SLCWA(BCEWithLogitsLoss(), 0.0, triples.num_entities, negatives))
    negatives._drawn.clear()  # the engine drew some to find its routes
    plan = plan_tiles(lambda rows: engine(ids[rows]), len(ids), 2**24, CPU, most=100)
    kept = sum(drawn.nbytes for drawn, _ in negatives._drawn.values())
    assert kept == len(ids) * 50 * 3 * 4
    assert plan.held >= kept


# ---- memory that runs out


def test_what_is_out_of_memory() -> None:
    for size in (2**58, 2**50):
        with pytest.raises(RuntimeError) as e:
            torch.empty(size)
        assert out_of_memory(e.value), str(e.value)
    import numpy as np

    with pytest.raises(MemoryError) as e:
        np.empty(2**50)
    assert out_of_memory(e.value) and out_of_memory(torch.cuda.OutOfMemoryError('x'))
    for other in (
        RuntimeError('size mismatch'),
        ValueError('not enough memory'),
        KeyError('out of memory'),
    ):
        assert not out_of_memory(other)


@pytest.mark.parametrize('seed', range(12))
def test_halving_covers_all(seed: int) -> None:
    "Each row once and in order, sizes only shrink, other errors pass, whatever fails when."
    chance = random.Random(seed)
    n, size = chance.randint(1, 500), chance.randint(1, 600)
    tiles, seen, sizes = Tiles(size, 1), [], []

    def step(rows: slice) -> list[int]:
        if rows.stop - rows.start > 2 and chance.random() < 0.3:
            raise chance.choice(
                [
                    MemoryError(),
                    torch.OutOfMemoryError('CUDA'),
                    RuntimeError("DefaultCPUAllocator: can't allocate memory"),
                ]
            )
        return list(range(rows.start, rows.stop))

    for rows, done in tiles.each(n, step):
        assert done == list(range(rows.start, rows.stop))
        seen += done
        sizes.append(len(done))
    assert seen == list(range(n))
    assert sizes[:-1] == sorted(sizes[:-1], reverse=True) and max(sizes) <= size
    assert (tiles.size < size) == (tiles.halvings > 0)
    with pytest.raises(RuntimeError, match='mine'):
        for _ in Tiles(3, 1).each(5, lambda rows: (_ for _ in ()).throw(RuntimeError('mine'))):
            pass


def test_nothing_else_alive_during_a_step() -> None:
    "Neither a failed tile's tensors nor the finished tile before are held while a tile is made."
    before: list[weakref.ref] = []

    def step(rows: slice) -> Tensor:
        assert not any(ref() is not None for ref in before)
        made = torch.ones(rows.stop - rows.start)
        before[:] = [weakref.ref(made)]
        if len(made) > 4:
            raise torch.OutOfMemoryError('CUDA out of memory')
        return made

    tiles, sums = Tiles(16, 1), []
    consume(tiles.each(20, step), lambda rows, x: sums.append(x.sum().item()), CPU)
    assert sums == [4.0] * 5 and tiles == Tiles(4, 1, 2)


def ranked(tracin: TracIn, held: list[Factors], triples: Tensor, tiles: Tiles) -> Ranking:
    ranking = Ranking(
        len(held[0]), 10, dtype=held[0].blocks[next(iter(held[0].blocks))][0].tensors()[-1].dtype
    )
    for rows, scores in tiles.each(len(triples), partial(influence, tracin, held, triples)):
        ranking.update(scores, rows.start)
    return ranking


@pytest.mark.parametrize('model', MODELS)
def test_injected_failures_change_nothing(
    runs: Callable[[str, str], TracIn], model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Engines that run out of memory at random, before and after their work: the same triples in
    the same order."""
    tracin = runs(model, 'slcwa')
    exact = TracIn(tracin.run, weighting='sgd', devices='cpu', progress=False)
    for step in exact.steps:
        step.train.model.double()
    triples = tracin.run.training.mapped_triples[:800]
    held = exact.tests.side(triples[::100], exact.tests.engines())[0].factors
    truth = ranked(exact, held, triples, Tiles(400, 1))
    chance, call, tiles = random.Random(1), FactoredEngine.__call__, Tiles(400, 1)

    def failing(engine: FactoredEngine, tile: Tensor) -> Factors:
        fails = len(tile) > 20 and chance.random() < 0.3
        if fails and chance.random() < 0.5:
            raise torch.OutOfMemoryError('CUDA out of memory')
        made = call(engine, tile)
        if fails:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return made

    monkeypatch.setattr(FactoredEngine, '__call__', failing)
    ours = ranked(exact, held, triples, tiles)
    assert tiles.halvings > 1
    for a, b in ((truth.proponents, ours.proponents), (truth.opponents, ours.opponents)):
        assert torch.equal(a.indices, b.indices)
        torch.testing.assert_close(a.values, b.values, rtol=1e-6, atol=0)


def test_ranking_runs_out() -> None:
    "Each side of a ranking takes in a tile whole or not at all, so it, too, can be halved."
    scores = torch.randn(20, 300, generator=torch.Generator().manual_seed(0))
    truth, ours, chance = Ranking(20, 5), Ranking(20, 5), random.Random(1)
    truth.update(scores, 0)
    for top in (ours.proponents, ours.opponents):

        def take(columns: slice) -> None:
            if columns.stop - columns.start > 30 and chance.random() < 0.5:
                raise MemoryError
            top.update(scores[:, columns], columns.start)

        for _ in Tiles(300, 1).each(300, take):
            pass
    for a, b in ((truth.proponents, ours.proponents), (truth.opponents, ours.opponents)):
        assert torch.equal(a.indices, b.indices) and torch.equal(a.values, b.values)


REAL = """
    import resource, torch
    from tracin_nb.influence.memory import Tiles, _resident
    torch.ones(100, 100) @ torch.ones(100, 100)
    size = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 2**28, size + 2**28))
    tiles = Tiles(1000, 2**30)
    step = lambda rows: torch.ones(rows.stop - rows.start, 2**18).sum(1)
    found = sum(done.sum().item() for _, done in tiles.each(1000, step))
    print(found == 1000 * 2**18, tiles.size, tiles.halvings)
"""


@linux
def test_real_allocation_failure() -> None:
    "With 256 MiB of address space left, a tile of 1000 MiB is brought down until it fits."
    done = subprocess.run(
        [sys.executable, '-c', textwrap.dedent(REAL)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    right, size, halvings = done.stdout.split()
    assert right == 'True' and int(size) in (125, 63, 250) and int(halvings) in (2, 3, 4)


# ---- afterwards


def tensors() -> int:
    "Bytes of all tensors that there are."
    gc.collect()
    found = {
        s.data_ptr(): s.nbytes()
        for o in gc.get_objects()
        if type(o) is Tensor
        if o.layout is torch.strided
        for s in [o.untyped_storage()]
    }
    return sum(found.values())


def test_nothing_stays(runs: Callable[[str, str], TracIn]) -> None:
    "After a pass, planned and halved, there are as many bytes of tensors as before."
    tracin = runs('ConvE', 'slcwa')
    triples = tracin.run.training.mapped_triples[:100]

    def once() -> None:
        held = tracin.tests.side(triples[-10:], tracin.tests.engines())[0].factors
        ranked(tracin, held, triples, Tiles(planned(tracin, held, triples, 2**25).size, 2**25))

    once()
    before = tensors()
    with metered(CPU) as used:
        once()
    assert tensors() == before
    assert used.left == 0, 'without a search for cycles'


@linux
def test_resident_memory_falls() -> None:
    "What was freed between pieces in use goes back to the system."

    def pieces() -> None:
        [torch.ones(2**16) for _ in range(1000)]

    pieces()
    release()
    before = _resident('VmRSS')
    pieces()
    release(cycles=True)
    assert _resident('VmRSS') - before < 2**25
