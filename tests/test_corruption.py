"""Corrupted training sets: what is replaced, how rankings are judged, and the experiment from
end to end."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pykeen.datasets import Nations
from pykeen.triples import TriplesFactory
from sklearn.metrics import roc_auc_score

from tracin_nb.engine.objectives import losses, make_objective
from tracin_nb.evaluation.corruption import (
    MODELS,
    corrupt,
    corrupted_run,
    corruption,
    detection,
    detection_row,
    last_losses,
    self_influences,
    tied,
)
from tracin_nb.influence.tracin import TracIn


def as_set(triples: torch.Tensor) -> set[tuple[int, ...]]:
    return set(map(tuple, triples.tolist()))


@pytest.mark.parametrize('side, fixed', [('head', [1, 2]), ('tail', [0, 1]), ('both', [1])])
def test_corrupt(side: str, fixed: list[int]) -> None:
    """The mask marks exactly the new triples; relations and the other side stay; nothing new is
    known or there twice."""
    nations = Nations()
    known = [nations.validation, nations.testing]
    wrong, mask = corrupt(nations.training, 0.2, 3, side=side, known=known)
    old, new = as_set(nations.training.mapped_triples), as_set(wrong.mapped_triples)
    assert (
        len(new) == len(wrong.mapped_triples) == 1592
        and mask.sum() == 318
        and mask.dtype == torch.bool
    )
    assert new - old == as_set(wrong.mapped_triples[mask])
    assert not (new - old) & set().union(*(as_set(f.mapped_triples) for f in known))
    gone = torch.tensor(sorted(old - new))[:, fixed]
    assert sorted(gone.tolist()) == sorted(wrong.mapped_triples[mask][:, fixed].tolist())
    assert sorted(new) == list(map(tuple, wrong.mapped_triples.tolist()))


def test_corrupt_inverse_and_order() -> None:
    """Inverse triples, label maps and the given factory stay; triples in any order give a sorted
    factory."""
    training = Nations(create_inverse_triples=True).training
    shuffled = training.clone_and_exchange_triples(training.mapped_triples.flip(0))
    before = shuffled.mapped_triples.clone()
    wrong, mask = corrupt(shuffled, 0.1)
    assert wrong.create_inverse_triples and wrong.num_relations == training.num_relations
    assert wrong.entity_to_id == training.entity_to_id and shuffled.mapped_triples.equal(before)
    labels = wrong.label_triples(wrong.mapped_triples)
    again = TriplesFactory.from_labeled_triples(
        labels, entity_to_id=wrong.entity_to_id, relation_to_id=wrong.relation_to_id
    )
    assert again.mapped_triples.equal(wrong.mapped_triples)
    assert as_set(again.mapped_triples[mask]) == as_set(wrong.mapped_triples) - as_set(before)


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(share=0.0), 'share is 0.0'),
        (dict(share=1), 'share is 1,'),
        (dict(share=1e-5), 'is 0 triples'),
        (dict(side='relation'), "side is 'relation'"),
    ],
)
def test_corrupt_refuses(kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        corrupt(Nations().training, **kwargs)


def test_detection_against_sklearn() -> None:
    "Scores with and without ties, and bootstrap counts, which are repetitions."
    rng = np.random.default_rng(5)
    for n, values in [(50, 3), (300, 10**6)]:
        scores, mask = rng.integers(values, size=n).astype(float), rng.random(n) < 0.3
        counts = rng.multinomial(n, [1 / n] * n, size=4)
        auc, precision = detection(scores, mask, 0.25, counts)
        assert detection(scores, mask)[0].item() == pytest.approx(roc_auc_score(mask, scores))
        assert auc == pytest.approx(
            [roc_auc_score(mask.repeat(c), scores.repeat(c)) for c in counts]
        )
        each = [detection(scores.repeat(c), mask.repeat(c), 0.25)[1].item() for c in counts]
        assert precision == pytest.approx(each)


def test_detection_of_a_constant() -> None:
    """Ties are shared out: a constant, with the noise of float32, has AUC 0.5 and the precision
    of chance, exactly."""
    noise = np.float32(0.003) * (
        1 + np.random.default_rng(0).integers(-2, 3, 1000) * np.float32(6e-8)
    )
    mask = np.arange(1000) < 100
    assert len(np.unique(noise)) > 1 and tied(noise).max() == 0
    auc, precision = detection(noise, mask)
    assert auc.item() == 0.5 and precision.item() == pytest.approx(0.1)
    assert detection(-np.arange(1000.0), mask)[1].item() == 1.0
    with pytest.raises(ValueError, match='score 1 is not a number'):
        tied(np.array([1.0, np.nan]))


def test_intervals_cover() -> None:
    """The 95 % interval holds the true AUC of two normals, one standard deviation apart, most of
    the time."""
    rng, true, hits = np.random.default_rng(0), 0.7602, 0
    for _ in range(40):
        mask = rng.random(400) < 0.2
        row = detection_row([(rng.normal(size=400) + mask, mask)], replicates=200)
        hits += row['auc_low'] <= true <= row['auc_high']
    assert hits >= 34


def test_scores_in_order(tmp_path: Path) -> None:
    """Self-influence and loss stand in the order of the training triples; ConvE trains on
    inverse triples."""
    run, mask = corrupted_run(
        'nations', 'ConvE', tmp_path / 'run', settings=dict(epochs=1), device='cpu'
    )
    assert run.training.create_inverse_triples and len(mask) == run.training.num_triples
    some = run.training.mapped_triples[[3, 700]]
    own = TracIn(run, weighting='sgd', progress=False, devices='cpu').scores(some)[[0, 1], [3, 700]]
    assert self_influences(run, device='cpu')[[3, 700]] == pytest.approx(own.numpy(), rel=1e-4)
    one_by_one = losses(run.model(-1, 'cpu'), make_objective('training', run), some).tolist()
    assert last_losses(run, device='cpu', size=100)[[3, 700]] == pytest.approx(one_by_one, rel=1e-4)


def test_corruption() -> None:
    "The experiment, twice the same: cosine is exactly chance."
    small = dict(seeds=2, settings=dict(epochs=2, keep_every=1), replicates=50, device='cpu')
    told = []
    tell = lambda *said: told.append(said)
    report = corruption(['nations'], ['DistMult'], ['sgd', 'cosine'], progress=tell, **small)
    assert json.loads(json.dumps(report)) == report and len(told) == 2
    assert corruption(['nations'], ['DistMult'], ['sgd', 'cosine'], **small) == report
    rows = {row['method']: row for row in report['rows']}
    assert list(rows) == ['self-influence, sgd', 'self-influence, cosine', 'loss', 'random']
    cosine = rows['self-influence, cosine']
    assert (
        cosine['auc'] == cosine['auc_low'] == cosine['auc_high'] == 0.5
        and cosine['largest_tie'] == 1.0
    )
    assert rows['self-influence, sgd']['largest_tie'] < 0.05
    assert report['settings']['models']['DistMult'] == MODELS['DistMult'] | small['settings']
    with pytest.raises(ValueError, match="unknown model 'TransE'; known are DistMult, ConvE"):
        corruption(models=['TransE'])
