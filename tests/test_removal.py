"""The removal experiment: its constants, its deletions, and its retrainings against a plain
loop."""

from __future__ import annotations

import copy
import json
from functools import partial

import pytest
import torch
from pykeen.datasets import Nations
from torch.testing import assert_close

from tracin_nb.engine.objectives import Softmax, losses
from tracin_nb.evaluation.removal import (
    METHODS,
    NOTHING,
    RANDOM,
    OneByOne,
    Protocol,
    Trial,
    best_allowed,
    deletions,
    first_model,
    in_file_order,
    make_recipe,
    measure,
    removal,
    removal_table,
    sharing,
    some,
)
from tracin_nb.evaluation.retraining import retrain

pytestmark = pytest.mark.filterwarnings('ignore')


@pytest.fixture(scope='module')
def trial() -> Trial:
    return Trial(Protocol(epochs=1), seed=1, limit=12)


def test_constants() -> None:
    "Everything the protocol fixes."
    data, setting = Nations(), Protocol()
    triples, model = (
        in_file_order(data.training, data.training_path),
        first_model(data.training, setting, 0),
    )
    recipe = make_recipe(model, data.training, setting, 0)
    first = [line.split() for line in open(data.training_path).read().splitlines()]
    assert data.training.label_triples(triples).tolist() == first and len(first) == 1592
    assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.eps, recipe.seed) == (
        10,
        1,
        3e-3,
        1e-7,
        None,
    )
    assert recipe.betas == (0.9, 0.999) and recipe.optimizer == 'adam'
    for p in model.parameters():
        assert p.dtype == torch.float64 and p.shape[1] == 10 and 0.045 < p.abs().max() <= 0.05
    ids = recipe.objective.queries(triples).ids
    assert ids.shape == (1592, 14, 3) and (ids[:, 0] == triples).all()
    assert (ids[:, 1:, 2] != triples[:, None, 2]).all() and (
        ids[..., :2] == triples[:, None, :2]
    ).all()
    assert (recipe.objective.queries(triples).ids == ids).all(), 'negatives are drawn once'
    assert torch.stack([(ids[:, 1:, 2] == e).sum() for e in range(14)]).float().std() < 100


def test_one_by_one_against_a_plain_loop() -> None:
    "Deleted triples' steps are skipped altogether: torch's Adam on the others is the same."
    data, setting = Nations().training, Protocol(dim=5, epochs=2)
    triples = in_file_order(data, Nations().training_path)[:60]
    first = first_model(data, setting, 0)
    recipe = make_recipe(first, data, setting, 0)
    kept = torch.rand(3, len(triples), generator=torch.Generator().manual_seed(0)) < torch.tensor(
        [[1.0], [0.9], [0.4]]
    )
    stack = retrain(first, triples, recipe, kept, program=OneByOne)[2]
    for g in range(3):
        model = copy.deepcopy(first)
        optimizer = torch.optim.Adam(model.parameters(), setting.lr, eps=setting.eps)
        for triple in list(triples[kept[g]]) * 2:
            optimizer.zero_grad()
            losses(model, recipe.objective, triple[None]).sum().backward()
            optimizer.step()
        assert_close(stack.state(g), model.state_dict(), rtol=1e-6, atol=1e-9)


def test_outcomes_are_the_models_own(trial: Trial) -> None:
    "Probabilities and best tails by PyKEEN's own scores."
    model = trial.run.model(-1, 'cpu')
    probability = torch.exp(-losses(model, Softmax(), trial.predictions))
    assert_close(trial.before.probability, probability.detach())
    with torch.no_grad():
        scores = model.score_t(trial.predictions[:, :2])
    known = {
        tuple(x) for x in torch.cat([trial.triples, Nations().validation.mapped_triples]).tolist()
    }
    for (h, r, t), row in zip(trial.predictions.tolist(), scores):
        free = [e for e in range(14) if (h, r, e) not in known]
        assert t == max(free, key=row.__getitem__)


def test_deletions(trial: Trial) -> None:
    made = deletions(trial, {'tracin': METHODS['tracin']}, (1, 10, None))
    allowed = sharing(trial.triples, trial.predictions)
    assert all((~mask | allowed).all() for mask in made.values())
    assert (made['tracin', 1].sum(1) == 1).all() and not (
        made['tracin', 1] & ~made['tracin', 10]
    ).any()
    assert (made[RANDOM, None].sum(1) == made['tracin', None].sum(1)).all()
    few = best_allowed(torch.tensor([[1.0, -1.0, 2.0]]), torch.tensor([[True, True, False]]), 10)
    assert few.tolist() == [[True, False, False]], (
        'neither scores below zero nor what is no candidate'
    )
    assert (
        some(allowed, torch.full((12,), 10), 0) != some(allowed, torch.full((12,), 10), 1)
    ).any()


def test_retrained_choice(trial: Trial) -> None:
    """Of the best few, the one whose deletion lowers the probability most, by a training of its
    own; those that raise it are not deleted."""
    natural = dict(weighting='natural')
    made = deletions(trial, {'again': dict(natural, retrained=4), 'natural': natural}, (1, 4))
    best, one, down = made['natural', 4], made['again', 1], made['again', 4]
    assert not (one & ~down).any() and not (down & ~best).any() and (one.sum(1) == 1).all()
    after = torch.full(best.shape, torch.inf, dtype=torch.float64)
    for m, i in best.nonzero().tolist():
        without = torch.ones(1, best.shape[1], dtype=torch.bool)
        without[0, i] = False
        after[m, i] = trial.judge(trial.train(without)[1].params).probability[m]
    assert (after.argmin(1) == one.int().argmax(1)).all()
    assert (down == (after <= trial.before.probability[:, None])).all()


def test_processes_share_out_the_seeds() -> None:
    "Two give what one gives."
    ask = partial(removal, 2, {}, (1,), limit=3, setting=Protocol(epochs=1))
    one, two = ask(), ask(processes=2)
    assert one['rows'] == two['rows'] and [t['seed'] for t in two['trials']] == [0, 1]


def test_removal() -> None:
    """Nothing deleted changes nothing; TracIn beats random neighbours even in one epoch; the
    result is JSON."""
    result = removal(1, {'tracin': METHODS['tracin']}, (10,), limit=30, setting=Protocol(epochs=1))
    rows = {(r['method'], r['k']): r for r in json.loads(json.dumps(result))['rows']}
    assert rows[NOTHING, 'all']['PD']['mean'] == rows[NOTHING, 'all']['TC']['mean'] == 0
    assert rows['tracin', 10]['PD']['mean'] > rows[RANDOM, 10]['PD']['mean'] + 15
    assert rows[RANDOM, 10]['published'] == dict(PD=66, TC=36)
    assert removal_table(result).loc['gradient rollback, published', 'all'] == '100 / 97'


def test_a_seed_decides_everything(trial: Trial) -> None:
    again = Trial(trial.setting, trial.seed, limit=trial.limit)
    assert_close(again.before.probability, trial.before.probability, rtol=0, atol=0)
    made, twice = (deletions(t, {}, (1, 10))[RANDOM, 10] for t in (trial, again))
    assert (made == twice).all()


def test_equal_deletions_are_one_model(trial: Trial) -> None:
    mask = deletions(trial, {}, (1,))[RANDOM, 1]
    found, models = measure(trial, {'a': mask, 'b': mask})
    assert found['a'] == found['b'] and models == len(mask.unique(dim=0))
    with pytest.raises(ValueError, match='seeds is 0, expected at least 1'):
        removal(0)
