"""TracIn as a whole: the loop law by counters, streaming against the whole matrix, and what must
not change a score."""

import math

import pytest
import torch
from pykeen.datasets import Nations
from pykeen.pipeline import pipeline

from tracin_nb import TracIn, train
from tracin_nb.engine.objectives import Score
from tracin_nb.influence.steps import Counters

SMALL = dict(
    embedding_dim=8,
    embedding_height=2,
    embedding_width=4,
    output_channels=2,
    kernel_height=2,
    kernel_width=2,
)
KINDS = {
    'slcwa': dict(
        model='ConvE',
        model_kwargs=SMALL,
        loss='NSSA',
        num_negs_per_pos=3,
        lr_scheduler='ExponentialLR',
        lr_scheduler_kwargs=dict(gamma=0.7),
    ),
    'pairwise': dict(model='TransE', model_kwargs=dict(embedding_dim=8), loss='MarginRanking'),
    'lcwa': dict(
        model='ConvE',
        model_kwargs=SMALL,
        loop='lcwa',
        loss='BCEWithLogits',
        label_smoothing=0.1,
        inverse=True,
    ),
    'inverse': dict(
        model='DistMult', model_kwargs=dict(embedding_dim=8), loss='BCEWithLogits', inverse=True
    ),
}


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    "A run of three checkpoints of each kind."
    folder = tmp_path_factory.mktemp('runs')
    options = dict(epochs=3, keep_every=1, lr=0.01, batch_size=128, progress=False, device='cpu')
    return {
        name: train('nations', out=folder / name, **options, **kind) for name, kind in KINDS.items()
    }


@pytest.fixture(scope='module')
def test_triples():
    return Nations().testing.mapped_triples[:5]


def make(run, *args, **kwargs):
    return TracIn(run, *args, **dict(weighting='sgd', devices='cpu', progress=False) | kwargs)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('size', [1, 100, 797, 5000])
def test_loop_law(runs, test_triples, kind, size):
    """Each checkpoint loaded once, one pass over the test triples per checkpoint, ceil(N / B)
    over the training triples."""
    if size == 1:
        part = runs[kind].training.mapped_triples[:7]
    else:
        part = None
    tracin = make(runs[kind], batch_size=size)
    tracin.explain(test_triples, k=3, train=part)
    n = runs[kind].training.num_triples if part is None else len(part)
    assert tracin.counters == Counters(loads=3, test_passes=3, train_passes=3 * math.ceil(n / size))
    tracin.self_influence(k=3, train=part)
    assert tracin.counters.loads == 3 and tracin.counters.train_passes == 6 * math.ceil(n / size)


@pytest.mark.parametrize('kind', KINDS)
def test_factored_equals_loop(runs, test_triples, kind):
    "The whole matrix over three checkpoints, under the run's own loss."
    part = runs[kind].training.mapped_triples[::40]
    ours, truth = (
        make(runs[kind], engine=e).scores(test_triples, part) for e in ('factored', 'loop')
    )
    assert truth.norm() > 0
    assert (ours - truth).norm() / truth.norm() <= 1e-5


@pytest.mark.parametrize('kind', KINDS)
def test_streaming_equals_matrix(runs, test_triples, kind):
    "What `explain` keeps is the top of the matrix, in any tiling."
    k, run = 6, runs[kind]
    matrix = make(run).scores(test_triples)
    for size in (97, 1000, None):
        frame = make(run, batch_size=size).explain(test_triples, k=k).to_frame()
        for i, row in enumerate(matrix):
            mine = frame[(frame.test_index == i) & (frame.kind == 'proponent')]
            best = row.sort(descending=True, stable=True).values[:k]
            torch.testing.assert_close(
                torch.tensor(mine.influence.values), best[best > 0], rtol=1e-4, atol=1e-9
            )
            kept = row[torch.tensor(mine.training_index.values)]
            torch.testing.assert_close(
                torch.tensor(mine.influence.values), kept, rtol=1e-4, atol=1e-9
            )


@pytest.mark.parametrize('kind', KINDS)
def test_company_and_order_do_not_matter(runs, test_triples, kind):
    "A score depends on the two triples and the run, not on what else is asked or in which order."
    run, part = runs[kind], runs[kind].training.mapped_triples[:300]
    whole = make(run).scores(test_triples, part)
    torch.manual_seed(99)
    torch.testing.assert_close(
        make(run).scores(test_triples[2:3], part)[0], whole[2], rtol=1e-5, atol=1e-9
    )
    order = torch.randperm(len(part))
    turned = make(run).scores(test_triples.flip(0), part[order])
    torch.testing.assert_close(turned, whole.flip(0)[:, order], rtol=1e-5, atol=1e-9)
    thrice = make(run).scores(torch.cat([test_triples[:1]] * 3), part[:9])
    torch.testing.assert_close(thrice, whole[:1, :9].expand(3, 9))


@pytest.mark.parametrize('kind', KINDS)
def test_self_influence_is_the_diagonal(runs, kind):
    run = runs[kind]
    part = run.training.mapped_triples[:120]
    frame = make(run).self_influence(k=120, train=part).to_frame()
    diagonal = make(run).scores(part, part).diagonal()
    ranked = diagonal[torch.tensor(frame.training_index.values)]
    torch.testing.assert_close(torch.tensor(frame.influence.values), ranked, rtol=1e-4, atol=1e-9)
    assert frame.influence.is_monotonic_decreasing and (frame.influence >= 0).all()


def test_learning_rates_weigh_checkpoints(runs, test_triples):
    "The sum over all checkpoints is the rate-weighted sum of single ones, and the rates fall."
    run, part = runs['slcwa'], runs['slcwa'].training.mapped_triples[:50]
    rates = [c.learning_rate for c in run.checkpoints]
    assert rates == pytest.approx([0.01, 0.007, 0.0049])
    single = [make(run, checkpoints=[k]).scores(test_triples, part) for k in range(3)]
    torch.testing.assert_close(make(run).scores(test_triples, part), sum(single))
    torch.testing.assert_close(make(run, checkpoints=[-1]).scores(test_triples, part), single[2])


def test_test_objective(runs, test_triples):
    """BCE of the training triples, softmax of the test triples: the blocks on both sides are of
    different kinds."""
    for kind in ('slcwa', 'inverse', 'pairwise'):
        part = runs[kind].training.mapped_triples[:40]
        for side in ('softmax', 'softmax-head'):
            ours, truth = (
                make(runs[kind], 'bce', test_objective=side, engine=e).scores(test_triples, part)
                for e in ('factored', 'loop')
            )
            assert (ours - truth).norm() / truth.norm() <= 1e-5


def test_against_is_a_difference_of_scores(runs, test_triples):
    run, part = runs['inverse'], runs['inverse'].training.mapped_triples[:60]
    other = test_triples[:1].clone()
    other[0, 2] = (other[0, 2] + 1) % run.training.num_entities
    tracin = make(run, 'score')
    expected = tracin.scores(test_triples[:1], part) - tracin.scores(other, part)
    frame = tracin.explain(test_triples[:1], k=60, train=part, against=int(other[0, 2])).to_frame()
    got = torch.tensor(frame.influence.values)
    torch.testing.assert_close(
        got, expected[0][torch.tensor(frame.training_index.values)], rtol=1e-4, atol=1e-7
    )


def test_breakdown_adds_up(runs, test_triples):
    for kind in KINDS:
        frame = make(runs[kind]).explain(test_triples, k=5, breakdown=True).to_frame()
        parts = frame[[c for c in frame.columns if c.startswith('via_')]].sum(axis=1)
        whole = torch.tensor(frame.influence.values)
        torch.testing.assert_close(torch.tensor(parts.values), whole, rtol=1e-4, atol=1e-8)


def test_facts(runs, test_triples):
    "A result says how it was made."
    facts = make(runs['lcwa'], test_objective=Score(True)).explain(test_triples, k=1).facts
    assert [c['epoch'] for c in facts['checkpoints']] == [1, 2, 3]
    assert facts['objective'].startswith('training') and facts['test_objective'] == 'score'
    assert facts['engine'] == 'factored' and facts['routes'][1] == 'loss: vectorised'
    assert (
        set(facts['versions']) == {'tracin_nb', 'pykeen', 'torch'}
        and facts['counters']['loads'] == 3
    )


def test_memory_budget(runs, test_triples):
    "The tile follows the budget; test triples that alone exceed it are an error with both numbers."
    small, large = (
        make(runs['slcwa'], memory=m).explain(test_triples, k=1).facts['tile']
        for m in ('2MB', '4GiB')
    )
    assert 1 <= small < large
    with pytest.raises(ValueError, match=r'5 test triples.*memory=1,000'):
        make(runs['slcwa'], memory='1KB').explain(test_triples)


def test_a_pipeline_result(test_triples):
    result = pipeline(
        dataset='nations',
        model='DistMult',
        model_kwargs=dict(embedding_dim=4),
        optimizer_kwargs=dict(lr=0.05),
        training_kwargs=dict(num_epochs=2, use_tqdm=False),
        random_seed=0,
        evaluation_kwargs=dict(use_tqdm=False),
        device='cpu',
    )
    before = {n: p.clone() for n, p in result.model.state_dict().items()}
    tracin = make(result)
    assert [s.rate for s in tracin.steps] == [0.05]
    assert len(tracin.explain(test_triples, k=2).proponents) > 0
    for n, p in result.model.state_dict().items():
        assert torch.equal(p, before[n])


def test_reduced_precision(runs, test_triples):
    "16 bits come close, and the result says how close; engines without them refuse."
    for precision, bound in (('bf16', 0.1), ('fp16', 0.02)):
        low = make(runs['slcwa'], precision=precision).explain(test_triples, k=3)
        error = low.facts['precision_error']
        assert 0 < error['relative_error'] < bound and error['rank_correlation'] > 0.95
        own = make(runs['slcwa'], precision=precision).self_influence(k=3)
        assert (
            own.facts['precision'] == precision
            and 0 < own.facts['precision_error']['relative_error'] < bound
        )
    assert 'precision_error' not in make(runs['slcwa']).explain(test_triples, k=3).facts
    with pytest.raises(ValueError, match='bf16'):
        make(runs['slcwa'], precision='bf16', engine='loop')


def test_weightings(runs, test_triples):
    """One more pass for the natural metric, none for the others; by cosine a self-influence is
    the sum of the rates."""
    run = runs['slcwa']
    plain = make(run).scores(test_triples)
    for name in ('adam', 'natural', 'cosine'):
        tracin = make(run, weighting=name, batch_size=400)
        result = tracin.explain(test_triples, k=3)
        passes, reads = 3 * math.ceil(run.training.num_triples / 400), name == 'natural'
        assert tracin.counters == Counters(
            3, 3, passes, passes * reads, 3 * run.training.num_triples * reads
        )
        assert result.facts['weighting'] == name
        assert not torch.allclose(tracin.scores(test_triples), plain)
        loop = make(run, weighting=name, engine='loop').scores(
            test_triples, run.training.mapped_triples[:20]
        )
        ours = tracin.scores(test_triples, run.training.mapped_triples[:20])
        assert (ours - loop).norm() / loop.norm() < 1e-4
    rates = sum(c.learning_rate for c in run.checkpoints)
    own = (
        make(run, weighting='cosine').self_influence(k=run.training.num_triples).frame['influence']
    )
    assert own.max() == pytest.approx(rates, rel=1e-4) and own.min() == pytest.approx(
        rates, rel=1e-4
    )


def test_a_slow_route_is_recorded(tmp_path, test_triples):
    """A loss that cannot be vectorised (filtered negatives) goes one example at a time, and the
    result says so."""
    run = train(
        'nations',
        'DistMult',
        out=tmp_path / 'run',
        epochs=1,
        keep_every=1,
        progress=False,
        device='cpu',
        model_kwargs=dict(embedding_dim=4),
        negative_sampler_kwargs=dict(filtered=True),
    )
    result = make(run).explain(test_triples, k=1, train=run.training.mapped_triples[:20])
    assert result.facts['routes'][1] == 'loss: one example at a time'
