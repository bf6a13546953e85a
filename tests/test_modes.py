"""Every way of doing the same pass gives the same answer: tiles, order, index, store, cache,
memory that runs out."""

import random

import pytest
import torch
from pykeen.datasets import Nations

from tracin_nb import TracIn, train
from tracin_nb.engine.factors import Shared, inner, shared
from tracin_nb.engine.gradients import FactoredEngine
from tracin_nb.engine.rounding import lengths
from tracin_nb.influence.cache import FactorCache

K = 25
SMALL = dict(
    embedding_dim=8,
    embedding_height=2,
    embedding_width=4,
    output_channels=8,
    kernel_height=2,
    kernel_width=2,
)
KINDS = {
    'conve': dict(model='ConvE', model_kwargs=SMALL, num_negs_per_pos=1),
    'conve-lcwa': dict(
        model='ConvE', model_kwargs=SMALL, loop='lcwa', loss='BCEWithLogits', inverse=True
    ),
    'distmult': dict(
        model='DistMult',
        model_kwargs=dict(embedding_dim=8),
        loss='BCEWithLogits',
        num_negs_per_pos=2,
    ),
    'transe': dict(model='TransE', model_kwargs=dict(embedding_dim=8), loss='MarginRanking'),
    'complex': dict(
        model='ComplEx', model_kwargs=dict(embedding_dim=4), loss='NSSA', num_negs_per_pos=3
    ),
    'rotate': dict(model='RotatE', model_kwargs=dict(embedding_dim=4), loss='NSSA'),
}
ROWS_ONLY = ('distmult', 'transe', 'complex', 'rotate')


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    "A run of two checkpoints of each kind."
    folder = tmp_path_factory.mktemp('runs')
    options = dict(epochs=2, keep_every=1, lr=0.01, batch_size=128, progress=False, device='cpu')
    return {
        name: train('nations', out=folder / name, **options, **kind) for name, kind in KINDS.items()
    }


@pytest.fixture(scope='module')
def tests():
    return Nations().testing.mapped_triples[:30]


@pytest.fixture(scope='module')
def truth(runs, tests):
    "The whole matrix of each run in one tile, kind -> [M, N]."
    return {kind: make(run, batch_size=10**6).scores(tests) for kind, run in runs.items()}


def make(run, *args, **kwargs):
    return TracIn(run, *args, **dict(weighting='sgd', devices='cpu', progress=False) | kwargs)


def assert_same(result, matrix):
    """The result's top K on both sides are those of the matrix, and each score is the one of the
    triple that is named."""
    frame, scale = result.to_frame(), matrix.abs().max().item()
    for kind, sign in (('proponent', 1), ('opponent', -1)):
        rows = frame[frame['kind'] == kind]
        for i in range(len(matrix)):
            mine = rows[rows['test_index'] == i].sort_values('rank')
            best = (sign * matrix[i]).clamp(min=0).topk(K).values
            best = best[best > 1e-6 * scale]
            values = torch.tensor(mine['influence'].values).float()
            torch.testing.assert_close(
                sign * values[: len(best)], best, rtol=1e-5, atol=1e-6 * scale
            )
            named = matrix[i][torch.tensor(mine['training_index'].values)]
            torch.testing.assert_close(values, named, rtol=1e-5, atol=1e-6 * scale)


@pytest.mark.parametrize('size', [1, 13, 700, None])
@pytest.mark.parametrize('kind', KINDS)
def test_tiles_of_any_size(runs, tests, truth, kind, size):
    part = None if size != 1 else runs[kind].training.mapped_triples[:60]
    result = make(runs[kind], batch_size=size).explain(tests, K, train=part)
    assert_same(result, truth[kind] if part is None else truth[kind][:, :60])


@pytest.mark.parametrize('kind', ROWS_ONLY)
def test_the_index_is_used_and_right(runs, tests, truth, kind):
    "Models of embedding rows go by the index; without it, by the matrix, the answer is the same."
    by_index, by_matrix = make(runs[kind]), make(runs[kind])
    by_matrix.planner._is_rows = False
    side, *_ = by_index.tests.side(tests, by_index.tests.engines())
    assert by_index.planner.plan(side, torch.arange(50), K).sparse
    for tracin in (by_index, by_matrix):
        assert_same(tracin.explain(tests, K), truth[kind])


@pytest.mark.parametrize('kind', ['conve', 'conve-lcwa'])
def test_repeated_inputs_are_multiplied_once(runs, tests, kind):
    """Triples that share head and relation share factors, and the products are those of the
    factors held apart."""
    tracin = make(runs[kind])
    every = runs[kind].training.mapped_triples
    triples = every[(every[:, 0] * 99 + every[:, 1]).argsort()][:200]
    test, train = tracin.steps[0].test(tests), tracin.steps[0].train(triples)
    held = shared(train)
    assert any(isinstance(b, Shared) for bs in held.blocks.values() for b in bs)
    exact = inner(test, train)
    for a, b in ((test, held), (shared(test), held), (shared(test), train)):
        torch.testing.assert_close(
            inner(a, b), exact, rtol=1e-5, atol=1e-6 * exact.abs().max().item()
        )


def test_negatives_with_other_tails_are_no_further_terms(runs, tests):
    """A negative with the head and relation of its triple has the same input: one term for both,
    and the sums of |terms| are those of the two."""
    tracin = make(runs['conve'])
    triples = runs['conve'].training.mapped_triples[:300]
    negatives, _ = tracin.objective.negatives.draw(triples)
    apart = (negatives[:, 0, :2] != triples[:, :2]).any(1).sum().item()
    assert 0 < apart < len(triples)
    test, train = tracin.steps[0].test(tests), tracin.steps[0].train(triples)
    held = shared(train)
    (block,) = [b for bs in held.blocks.values() for b in bs if isinstance(b, Shared)]
    assert block.counts == (len(triples), apart)
    exact = inner(lengths(test), lengths(train))
    torch.testing.assert_close(inner(lengths(shared(test)), lengths(held)), exact)


@pytest.mark.parametrize('where', ['memory', 'files'])
@pytest.mark.parametrize('kind', KINDS)
def test_prepared(runs, tests, truth, kind, where, tmp_path):
    "After `prepare` no training triple is passed over again, and a second process finds the files."
    folder = tmp_path if where == 'files' else None
    for again in range(2 if folder else 1):
        tracin = make(runs[kind])
        tracin.prepare('200MB', folder=folder)
        passes = tracin.counters.train_passes
        assert (passes == 0) == (again == 1)
        result = tracin.explain(tests, K)
        assert tracin.counters.train_passes == passes and result.facts['store']['kept'] == where
        assert_same(result, truth[kind])


def test_prepared_is_not_used_for_a_part(runs, tests, truth):
    part = runs['conve'].training.mapped_triples[:300]
    tracin = make(runs['conve'])
    tracin.prepare()
    result = tracin.explain(tests, K, train=part)
    assert 'store' not in result.facts
    assert_same(result, truth['conve'][:, :300])


def test_prepared_in_16_bits_tells_its_error(runs, tests, truth):
    tracin = make(runs['conve'])
    facts = tracin.prepare(precision='bf16')
    assert 0 < facts['relative_error'] < 0.02
    mine = tracin.explain(tests, 5).to_frame()
    named = truth['conve'][mine['test_index'].values, mine['training_index'].values]
    ours = torch.tensor(mine['influence'].values).float()
    assert (ours - named).norm() / named.norm() < 0.02
    with pytest.raises(ValueError, match='tf32'):
        tracin.prepare(precision='tf32')


@pytest.mark.parametrize('kind', ['conve', 'distmult'])
def test_a_damaged_store_is_made_anew(runs, tests, truth, kind, tmp_path):
    make(runs[kind]).prepare('200MB', folder=tmp_path)
    for path in tmp_path.glob('store-*'):
        content = bytearray(path.read_bytes())
        content[-20] ^= 255
        path.write_bytes(content)
    tracin = make(runs[kind])
    with pytest.warns(UserWarning, match='ignored and replaced'):
        tracin.prepare('200MB', folder=tmp_path)
    assert tracin.counters.train_passes > 0
    assert_same(tracin.explain(tests, K), truth[kind])


@pytest.mark.parametrize('kind', ['conve', 'distmult'])
def test_cached_test_gradients(runs, tests, truth, kind, tmp_path):
    for passes in (2, 0):
        tracin = make(runs[kind], cache=FactorCache(10**7, tmp_path))
        assert_same(tracin.explain(tests, K), truth[kind])
        assert tracin.counters.test_passes == passes


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('kind', KINDS)
def test_memory_runs_out_at_random_tiles(runs, tests, truth, kind, seed, monkeypatch):
    "Tiles are halved and done again; finished ones stay; the answer does not change."
    draw, plain, failures = random.Random(seed), FactoredEngine.__call__, 0
    tracin = make(runs[kind], batch_size=400)
    side = tracin.tests.side(tests, tracin.tests.engines())

    def failing(self, triples):
        nonlocal failures
        if len(triples) > 20 and draw.random() < 0.4:
            failures += 1
            raise torch.OutOfMemoryError('injected')
        return plain(self, triples)

    monkeypatch.setattr(tracin.tests, 'side', lambda *args: side)
    monkeypatch.setattr(FactoredEngine, '__call__', failing)
    result = tracin.explain(tests, K)
    assert failures and tracin.counters.halvings == failures
    assert result.facts['counters']['halvings'] == failures
    assert_same(result, truth[kind])


def test_memory_that_never_suffices_is_one_clear_error(runs, tests, monkeypatch):
    tracin = make(runs['conve'], batch_size=64)
    side = tracin.tests.side(tests, tracin.tests.engines())

    def failing(self, triples):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 5 bytes")

    monkeypatch.setattr(tracin.tests, 'side', lambda *args: side)
    monkeypatch.setattr(FactoredEngine, '__call__', failing)
    with pytest.raises(MemoryError, match='one training triple, after 6 halvings'):
        tracin.explain(tests, K)


def test_other_errors_pass_through(runs, tests, monkeypatch):
    tracin = make(runs['conve'], batch_size=64)
    tracin.steps.every

    def failing(self, triples):
        raise RuntimeError('shape mismatch')

    monkeypatch.setattr(FactoredEngine, '__call__', failing)
    with pytest.raises(RuntimeError, match='shape mismatch'):
        tracin.explain(tests, K)


@pytest.mark.parametrize('kind', ['conve', 'distmult'])
def test_planned_tiles_count_no_pass_twice(runs, tests, kind):
    "What the plan tries is counted apart; a second question of the kind tries nothing."
    tracin = make(runs[kind])
    facts = [tracin.explain(t, K).facts for t in (tests[:3], tests[3:6])]
    tiles = -(-runs[kind].training.num_triples // facts[0]['tile'])
    parts = (
        tiles
        if kind == 'conve'
        else -(-runs[kind].training.num_triples // min(facts[0]['tile'], 4096))
    )
    assert (
        facts[0]['counters']['train_passes'] == 2 * parts
        and facts[0]['counters']['trial_passes'] > 0
    )
    assert facts[1]['counters']['trial_passes'] == facts[0]['counters']['trial_passes']


@pytest.mark.parametrize('m', [1, 30])
@pytest.mark.parametrize('kind', KINDS)
def test_predicted_memory(runs, tests, kind, m):
    "Within 20 % of what was measured, or 100 KB where next to nothing is used."
    memory = make(runs[kind]).explain(tests[:m], K).facts['memory']
    assert abs(memory['predicted'] - memory['peak']) <= max(0.2 * memory['peak'], 10**5)
    assert memory['peak'] <= memory['budget']


@pytest.mark.parametrize('kind', ['conve', 'distmult'])
def test_every_engine_agrees(runs, tests, truth, kind):
    part = runs[kind].training.mapped_triples[::50]
    loop = make(runs[kind], engine='loop').scores(tests[:4], part)
    torch.testing.assert_close(
        truth[kind][:4, ::50], loop, rtol=1e-4, atol=1e-6 * loop.abs().max().item()
    )
