"""The linear datamodeling score: by its definition, and a small experiment from end to end."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from pykeen.datasets import Nations
from scipy.stats import spearmanr
from torch.testing import assert_close

from tracin_nb.engine.objectives import Softmax, losses
from tracin_nb.evaluation.datamodel import (
    ESTIMATORS,
    LOSSES,
    Design,
    datamodel,
    datamodel_table,
    distmult,
    estimate,
    halves,
    lds,
    own_and_other,
    seed_agreement,
    simple_baselines,
    train_seed,
)
from tracin_nb.evaluation.retraining import Recipe, retrain
from tracin_nb.evaluation.statistics import bootstrap
from tracin_nb.graph.triples import load_dataset

pytestmark = pytest.mark.filterwarnings('ignore')
SMALL = dict(dim=8, epochs=3, checkpoints=2, subsets=20, tests=10, group=8)


def test_lds_is_spearmans() -> None:
    torch.manual_seed(0)
    scores, kept, outcome = torch.randn(4, 30), halves(30, 25, 0.5), torch.randn(25, 4)
    truth = [spearmanr((kept * scores[m]).sum(1), -outcome[:, m]).statistic for m in range(4)]
    np.testing.assert_allclose(lds(scores, kept, outcome), truth)
    assert lds(torch.zeros(4, 30), kept, outcome).tolist() == [0] * 4


def test_interval() -> None:
    values = np.random.default_rng(0).normal(0.3, 0.2, size=400)
    found = bootstrap(values)
    assert found == bootstrap(values) and found.low < values.mean() < found.high
    assert abs((found.high - found.low) / (2 * 1.96 * 0.2 / 20) - 1) < 0.15


@pytest.mark.parametrize('loss', LOSSES)
def test_losses_are_those_of_models_trained_on_the_subsets(loss: str) -> None:
    training, test = Nations().training, Nations().testing.mapped_triples[:6]
    kept, design = halves(training.num_triples, 3, 0.5), Design(loss=loss, **SMALL)
    trained = train_seed(design, training, test, kept, seed=5)
    recipe = Recipe(trained.objective, 3, 256, 5e-3, seed=5)
    model = distmult(training, 8, 5)
    for g in range(3):
        stack = retrain(model, training.mapped_triples, recipe, kept[g : g + 1])[3]
        model.load_state_dict(stack.state(0))
        assert_close(trained.losses[g], losses(model, Softmax(), test).detach())
        model = distmult(training, 8, 5)
    assert len(trained.run.checkpoints) == 2 and trained.run.fingerprint(
        0
    ) != trained.run.fingerprint(1)


def test_own_other_and_ensembles() -> None:
    "Scores that foretell their own seed only; the outcomes' agreement."
    torch.manual_seed(0)
    scores, kept = [torch.randn(3, 40) for _ in range(3)], halves(40, 60, 0.5)
    losses = [-(kept.float() @ s.T) for s in scores]
    found = own_and_other(scores, losses, kept)
    np.testing.assert_allclose(found['own'], 1)
    assert abs(found['other'].mean()) < 0.3 and found['ensemble'].mean() > 0.4
    assert (
        abs(found['ensemble of others'].mean()) < 0.3
        and found['ensemble, mean outcome'].mean() > 0.9
    )
    np.testing.assert_allclose(seed_agreement(losses), found['other'])
    assert set(own_and_other(scores[:1], losses[:1], kept)) == {'own'}


def test_experiment() -> None:
    "From end to end, for ConvE too: the result is JSON, and a seed decides it."
    few = {n: ESTIMATORS[n] for n in ('tracin', 'natural')}
    results = [
        datamodel(Design(**SMALL), few, seeds=2),
        datamodel(Design(model='conve', **SMALL | dict(dim=12)), few, seeds=1),
    ]
    for result in json.loads(json.dumps(results)):
        value = {r['estimator']: r['own']['mean'] for r in result['rows']}
        assert set(value) == {
            *few,
            'entity overlap',
            'overlap and relation',
            'embedding similarity',
            'random',
            *(f'{name}, random weights' for name in few),
        }
        assert value['tracin'] > value['random'] + 0.1
    assert results[0]['rows'][-1]['QLD']['mean'] > results[0]['rows'][3]['QLD']['mean']
    again = datamodel(Design(**SMALL), few, seeds=2)
    assert again['rows'] == results[0]['rows']
    assert datamodel_table(results).shape == (8, 2)


def test_baselines_and_errors() -> None:
    data = load_dataset('nations')
    train, test = data.training.mapped_triples, data.testing.mapped_triples[:5]
    kept = halves(len(train), 2, 0.5)
    trained = train_seed(Design(**SMALL), data.training, test, kept, 0)
    found = simple_baselines(trained, test, 0)
    fresh, weights = (
        run.model(-1, 'cpu').entity_representations[0]._embeddings.weight
        for run in (trained.untrained, trained.run)
    )
    assert abs(torch.corrcoef(torch.stack([fresh.flatten(), weights.flatten()]))[0, 1]) < 0.2, (
        'other first weights'
    )
    own = estimate(trained, test, ESTIMATORS['natural'])
    assert own.shape == found['natural, random weights'].shape and not own.equal(
        found['natural, random weights']
    )
    h, r, t = test[3].tolist()
    i = next(i for i, x in enumerate(train.tolist()) if x[0] == t and x[1] == r and x[2] != h)
    assert found['entity overlap'][3, i] == found['overlap and relation'][3, i] == 1
    other = next(i for i, x in enumerate(train.tolist()) if x[0] == t and x[1] != r and x[2] != h)
    assert found['entity overlap'][3, other] == 1 and found['overlap and relation'][3, other] == 0
    assert found['embedding similarity'].abs().max() <= 1 + 1e-6
    with pytest.raises(ValueError, match="model is 'gpt', expected one of distmult, conve"):
        Design(model='gpt')
    with pytest.raises(ValueError, match='dim is 8, expected a multiple of 4 from 12 on'):
        datamodel(Design(model='conve', **SMALL))
    with pytest.raises(ValueError, match='seeds is 0'):
        datamodel(seeds=0)
