"""How alike rankings are, the cascade of random weights, and the experiment from end to end."""

import json

import numpy as np
import pytest
import torch
from pykeen.datasets import Nations
from pykeen.models import ConvE, DistMult
from scipy.stats import spearmanr

from tracin_nb.engine.shortcuts import layers
from tracin_nb.evaluation.stability import (
    by_checkpoint,
    cascade,
    chance,
    near_triples,
    overlap,
    randomised,
    ranking_similarity,
    stability,
    stability_table,
    subsets,
    top_mask,
)
from tracin_nb.evaluation.statistics import rank_correlation
from tracin_nb.influence.tracin import TracIn
from tracin_nb.runs.run import Run


@pytest.fixture(scope='module')
def conve() -> Run:
    "Two checkpoints of a ConvE with random weights; batch norms have seen something."
    training = Nations().training
    kwargs = dict(embedding_dim=16, embedding_height=4, embedding_width=4, output_channels=2)
    states = []
    for seed in (1, 2):
        model = ConvE(triples_factory=training, random_seed=seed, **kwargs)
        with torch.no_grad():
            model.train().score_hrt(training.mapped_triples[:64])
        states.append(model.state_dict())
    return Run.from_model(model, training, states=states, learning_rates=[0.1, 0.01])


def test_overlap() -> None:
    """Sets of equal length, of few proponents, and of none; ties go by place, zeros and below
    are no proponents."""
    a, b = np.array([[5.0, 4, 3, 2, 1]]), np.array([[5.0, 1, 3, 2, 4]])
    assert overlap(a, b, 1) == 1 and overlap(a, b, 2) == 0.5 and overlap(a, b, 9) == 1
    assert overlap(a, np.array([[1.0, 0, 0, 0, -1]]), 3) == pytest.approx(1 / 3)
    assert overlap(-a, -b, 2) == 0
    assert top_mask(np.array([[1.0, 1, 1, 0]]), 2).tolist() == [[True, True, False, False]]
    assert overlap(np.array([[1.0, 0, 0]]), np.array([[2.0, 0, 0]]), 3) == 1


def test_spearman() -> None:
    x, y = np.random.default_rng(0).integers(6, size=(2, 4, 40)).astype(float)
    assert rank_correlation(x, y) == pytest.approx(
        [spearmanr(p, q).statistic for p, q in zip(x, y)]
    )
    assert (
        rank_correlation(x, -x) == pytest.approx([-1] * 4)
        and rank_correlation(x, np.zeros_like(x)).tolist() == [0] * 4
    )


def test_near_and_chance() -> None:
    "Neighbours by definition; what chance gives is what drawn rankings have on average."
    training, test = Nations().training, Nations().testing.mapped_triples[:3]
    near, triples = near_triples(test, training), training.mapped_triples.tolist()
    for row, (h, r, t) in zip(near, test.tolist()):
        assert row.tolist() == [s == r or bool({a, b} & {h, t}) for a, s, b in triples]
    rng = np.random.default_rng(0)
    floor = chance(near, [10, 100])
    for name, where in [('random', np.ones_like(near)), ('random neighbours', near)]:
        drawn = [
            ranking_similarity(
                *(np.where(where, rng.random(near.shape), 0) for _ in 'ab'), near, [10, 100]
            )
            for _ in range(60)
        ]
        for k in ('top_10', 'top_100'):
            assert np.mean([d[k] for d in drawn]) == pytest.approx(floor[name][k].mean(), abs=0.015)


def test_randomised(conve: Run) -> None:
    """The layers that are named change, with their buffers and at every checkpoint alike;
    nothing else does."""
    order = list(layers(conve.build()))
    norm = next(name for name in order if f'{name}.running_mean' in conve.state(0))
    changed = randomised(conve, [norm, order[0]], seed=7)
    for k in (0, 1):
        old, new = conve.state(k), changed.state(k)
        for name in old:
            if name.rpartition('.')[0] not in (norm, order[0]):
                assert new[name].equal(old[name]), name
        assert not new[f'{norm}.running_mean'].equal(old[f'{norm}.running_mean'])
        assert new[f'{norm}.running_mean'].abs().max() == 0
    assert [c.learning_rate for c in changed.checkpoints] == [0.1, 0.01]
    assert randomised(conve, order, seed=7).state(0).keys() == conve.state(0).keys()
    with pytest.raises(ValueError, match="no layer is called 'conv'"):
        randomised(conve, ['conv'])


def test_cascade(conve: Run) -> None:
    """From the output to the input, one more layer each time; the last one is a model without
    training; scores change."""
    steps, order = list(cascade(conve, seed=7)), list(layers(conve.build()))
    assert [name for name, _ in steps] == order[::-1]
    assert steps[0][0].startswith('interaction.') and 'representations' in steps[-1][0]
    some = conve.training.mapped_triples[:2]
    runs = [conve, steps[0][1], steps[-1][1]]
    scores = [
        TracIn(run, 'bce', weighting='sgd', progress=False, devices='cpu').scores(some, some)
        for run in runs
    ]
    assert not any(changed.equal(scores[0]) for changed in scores[1:])
    a, b = (run.state(0) for run in (steps[-1][1], list(cascade(conve, seed=7))[-1][1]))
    assert all(a[n].equal(b[n]) for n in a)
    assert all(steps[-1][1].state(0)[n].equal(steps[-1][1].state(1)[n]) for n in a)


def test_by_checkpoint(conve: Run) -> None:
    "The parts sum to TracIn."
    test = Nations().testing.mapped_triples[:3]
    parts = by_checkpoint(conve, test, 'natural', 'bce', 'cpu')
    whole = (
        TracIn(conve, 'bce', weighting='natural', progress=False, devices='cpu')
        .scores(test)
        .numpy()
    )
    assert parts.shape == (2, 3, 1592)
    np.testing.assert_allclose(parts.sum(0), whole, rtol=1e-3, atol=1e-4 * np.abs(whole).max())


def test_subsets() -> None:
    assert (
        subsets(1) == {}
        and subsets(2)['last only'] == [1]
        and subsets(5)['every second'] == [4, 2, 0]
    )
    assert subsets(5)['first half'] == [0, 1, 2] and subsets(5)['second half'] == [2, 3, 4]


def test_stability() -> None:
    "The experiment has every comparison, and is plain."
    small = dict(
        seeds=2, tests=4, ks=[5], settings=dict(epochs=2, keep_every=1), replicates=20, device='cpu'
    )
    told = []
    tell = lambda *said: told.append(said)
    report = stability(['nations'], ['DistMult'], ['sgd'], progress=tell, **small)
    assert json.loads(json.dumps(report)) == report and len(told) == 2
    cases = {(row['compared'], row['case']) for row in report['rows']}
    assert {
        ('floor', 'random'),
        ('floor', 'random neighbours'),
        ('seeds', 'all checkpoints'),
        ('seeds', 'last only'),
        ('checkpoints', 'last only'),
    } < cases
    names = list(layers(DistMult(triples_factory=Nations().training)))[::-1]
    assert [c for what, c in sorted(cases) if what == 'weights'] == [
        f'{i}: {n}' for i, n in enumerate(names, 1)
    ]
    for row in report['rows']:
        assert row['top_5_low'] <= row['top_5'] <= row['top_5_high']
    by_case = {(row['compared'], row['case']): row['top_5'] for row in report['rows']}
    table, last = stability_table(report), len(names)
    assert table.index.tolist() == [('nations', 'DistMult', 'sgd')]
    means = table.iloc[0].str.split().str[0].astype(float)
    expected = {
        'two seeds': ('seeds', 'all checkpoints'),
        'last checkpoint': ('checkpoints', 'last only'),
        'random weights': ('weights', f'{last}: {names[-1]}'),
        'random neighbours': ('floor', 'random neighbours'),
    }
    for column, case in expected.items():
        assert means[column] == round(by_case[case], 2)
    with pytest.raises(ValueError, match='seeds is 0, expected at least 1'):
        stability(seeds=0)


def test_seed_of_one() -> None:
    "One seed has nobody to agree with: no such rows."
    report = stability(
        ['nations'], ['DistMult'], ['sgd'], 1, 3, settings=dict(epochs=1), device='cpu'
    )
    assert {row['compared'] for row in report['rows']} == {'floor', 'weights'}
    assert list(stability_table(report)) == ['random weights', 'random neighbours']
