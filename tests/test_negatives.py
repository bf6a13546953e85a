"""What negatives cost beside PyKEEN's own training, and which rows are looked at for rounding."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from pykeen.losses import NSSALoss
from pykeen.training import SLCWATrainingLoop
from torch import Tensor

from tracin_nb.bench import scale
from tracin_nb.engine.rounding import doubtful

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
