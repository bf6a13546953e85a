"""What negatives cost beside PyKEEN's own training, and which rows are looked at for rounding."""

import json
import pickle
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from pykeen.datasets import Nations
from pykeen.losses import NSSALoss
from pykeen.models import DistMult
from pykeen.sampling import BasicNegativeSampler
from pykeen.training import SLCWATrainingLoop
from pykeen.triples import CoreTriplesFactory
from torch import Tensor

from tracin_nb.bench import scale
from tracin_nb.engine import objectives
from tracin_nb.engine.factors import Factors, Outer, shared
from tracin_nb.engine.objectives import Negatives
from tracin_nb.engine.rounding import doubtful
from tracin_nb.influence import tiles
from tracin_nb.influence.steps import TestSide
from tracin_nb.influence.tiles import as_dense
from tracin_nb.influence.tracin import TracIn
from tracin_nb.runs.run import Run

ROOT = Path(__file__).parents[1]


def test_an_epoch_is_of_the_same_training(monkeypatch: pytest.MonkeyPatch) -> None:
    "The epoch beside a question has the run's loss, negatives, batches and all training triples."
    seen: list[tuple[Any, ...]] = []

    class Watched(SLCWATrainingLoop):
        def train(self, triples_factory: Any, *args: Any, **kwargs: Any) -> Any:
            n = self.negative_sampler_kwargs['num_negs_per_pos']
            loss, batch = type(self.model.loss), kwargs['batch_size']
            seen.append((n, loss, batch, triples_factory.num_triples))
            return super().train(triples_factory, *args, **kwargs)

    monkeypatch.setattr(scale, 'SLCWATrainingLoop', Watched)
    how: dict[str, Any] = dict(dim=4, epochs=1, batch=100, rounds=1)
    made = scale.bench_negatives('nations', ['TransE'], (2, 5), (3,), ['sgd'], **how)
    assert set(seen) == {(n, NSSALoss, 100, 1592) for n in (2, 5)}
    assert [(r['negatives'], r['test_triples']) for r in made['rows']] == [(2, 3), (5, 3)]
    assert made['relative_error'] == max(r['relative_error'] for r in made['rows']) < 1e-5


def test_the_kept_numbers() -> None:
    "Each cell is there and exact, and time grows at most in proportion to the negatives."
    read = json.loads((ROOT / 'benchmarks/negatives.json').read_text(encoding='utf-8'))
    found = [
        tuple(r[c] for c in ('name', 'negatives', 'weighting', 'test_triples'))
        for r in read['rows']
    ]
    models = ('DistMult', 'ComplEx', 'TransE', 'RotatE')
    assert found == list(product(models, (1, 16, 64), ('sgd', 'natural'), (1, 20, 1000)))
    assert max(r['relative_error'] for r in read['rows']) < 1e-5
    assert max(r['exponent_in_negatives'] for r in read['rows']) < 1.05


def wanted(row: Tensor, each: Tensor, k: int, least: float, most: float) -> bool:
    """Is one of the `k` highest above 0 or the `k` lowest below 0 of a row within what its column's
    size allows?"""
    order = row.argsort(descending=True)
    ends = [(i, row[i]) for i in order[:k]] + [(i, -row[i]) for i in order.flip(0)[:k]]
    return any(x > 0 and least <= x <= most * each[i] for i, x in ends)


@pytest.mark.parametrize('k', [1, 3, 40])
@pytest.mark.parametrize('zeros', [0.0, 0.5, 0.95, 1.0])
def test_doubtful_rows(k: int, zeros: float) -> None:
    "By the definition, row by row: many zeros, few columns, some lists that are full already."
    torch.manual_seed(k)
    for n in (2, 40, 700):
        scores = torch.randn(60, n) * (torch.rand(60, n) >= zeros)
        scores[::2] *= 10 ** (4 * torch.rand(30, n) - 4)
        most, each = 10 ** (4 * torch.rand(60) - 4), 10 ** (2 * torch.rand(n) - 1)
        for reached in (None, torch.randn(60) * most):
            least = [0.0] * 60 if reached is None else reached.tolist()
            rows = zip(scores, least, most.tolist(), strict=True)
            expected = [i for i, (row, a, b) in enumerate(rows) if wanted(row, each, k, a, b)]
            assert doubtful(scores, k, most, each, reached).tolist() == expected


def test_each_block_is_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass in the order of the relations draws the negatives of each block of training triples
    once, not once for each relation; what was drawn does not travel to workers."""
    draw = torch.Generator().manual_seed(0)
    some = [torch.randint(n, (30_000,), generator=draw) for n in (2_000, 20, 2_000)]
    triples = torch.stack(some, 1).unique(dim=0)
    every = CoreTriplesFactory(triples, num_entities=2_000, num_relations=20)
    model = DistMult(triples_factory=every, embedding_dim=4, random_seed=0)
    run = Run.from_model(model, every, learning_rates=[0.1], loop='slcwa', negative_sampler='basic')
    drawn, real = [], Negatives._sample

    def sample(self: Negatives, positives: torch.Tensor, seed: int) -> tuple:
        drawn.append(len(positives))
        return real(self, positives, seed)

    monkeypatch.setattr(Negatives, '_sample', sample)
    asked = TracIn(run, weighting='sgd', devices='cpu', progress=False)
    first = asked.explain(triples[:5], 10).frame
    assert sum(drawn) == len(triples)
    assert first.equals(asked.explain(triples[:5], 10).frame)
    assert sum(drawn) == len(triples)
    negatives = asked.objective.negatives
    held = negatives.draw(triples[:100])
    sent = pickle.loads(pickle.dumps(negatives))
    assert (len(negatives._drawn), len(sent._drawn)) == (-(-len(triples) // 8192), 0)
    assert all(map(torch.equal, held, sent.draw(triples[:100])))


@pytest.mark.parametrize('room', [0, 2**26])
def test_draws_are_those_of_the_sampler(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    "However many blocks are kept, negatives and mask are the same."
    monkeypatch.setattr(objectives, '_KEPT', room)
    training = Nations().training
    sampler = BasicNegativeSampler(
        mapped_triples=training.mapped_triples, num_negs_per_pos=3, filtered=True
    )
    few = Negatives(sampler, training.mapped_triples, 7, block=100)
    order = torch.randperm(training.num_triples, generator=torch.Generator().manual_seed(1))
    found, kept = (x[order.argsort()] for x in few.draw(training.mapped_triples[order]))
    assert not kept.all()
    for i in range(0, training.num_triples, 100):
        some = training.mapped_triples[i : i + 100]
        with torch.random.fork_rng(devices=[]):
            exact, mask = few._sample(some, hash((7, i // 100)) % 2**62)
        assert torch.equal(found[i : i + 100], exact)
        assert torch.equal(kept[i : i + 100], mask)


def test_one_row_in_doubt_is_multiplied_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    "The sums of |terms| of one test triple are made of its own factors, not of those of all."
    draw = torch.Generator().manual_seed(0)
    left = torch.randn(50, 2, 5, generator=draw)
    right = torch.randn(25, 64, generator=draw)[torch.arange(100) // 4].view(50, 2, 64)
    test = shared(Factors({'w': (Outer((left, right)),)}))
    tile, side = as_dense([test]), TestSide([test], [1.0], torch.float32)
    made, real = [], tiles.lengths

    def lengths(factors: Factors) -> Factors:
        made.append([len(t) for t in factors.blocks['w'][0].factors])
        return real(factors)

    monkeypatch.setattr(tiles, 'lengths', lengths)
    terms = tile.terms(side)
    every = terms(slice(None))
    assert max(made[0]) > 20
    del made[:]
    assert torch.allclose(terms(torch.tensor([7])), every[7:8])
    assert sorted(map(max, made))[0] <= 2
