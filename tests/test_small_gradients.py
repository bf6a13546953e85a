"""Confident triples have slopes, and other models gradients, whose squares float32 cannot hold: the
numbers of float64, or the true reason why there are none."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from pykeen.datasets import Nations
from pykeen.models import DistMult, ERModel
from torch import Tensor

from tracin_nb import TracIn
from tracin_nb.answer.ranking import Ranking
from tracin_nb.engine import row_index
from tracin_nb.engine.compile import CompiledEngine, make_program
from tracin_nb.engine.factors import Dense, Factors, Rows, inner
from tracin_nb.engine.gradients import FactoredEngine
from tracin_nb.engine.objectives import BCE
from tracin_nb.engine.rounding import cleared, limit, sizes
from tracin_nb.engine.row_index import make_indices, shared_pairs
from tracin_nb.influence.cache import FactorCache
from tracin_nb.influence.tiles import DenseTile, Pass, TestSide, as_dense

pytestmark = pytest.mark.filterwarnings('ignore')
NATIONS = Nations().training
X = NATIONS.mapped_triples[::4]
TEST, D = X[[3, 100, 200]], 4


def model(score: float, *, spread: float = 0.02, low: float = 1.0) -> DistMult:
    """All scores near `score`; with `low`, those of every second relation are that many times
    it."""
    torch.manual_seed(0)
    made = DistMult(triples_factory=NATIONS, embedding_dim=D, random_seed=0).eval()
    relations = score / D * (1 - spread + 2 * spread * torch.rand(55, D))
    relations[::2] *= low
    with torch.no_grad():
        made.entity_representations[0]._embeddings.weight.copy_(0.9 + 0.2 * torch.rand(14, D))
        made.relation_representations[0]._embeddings.weight.copy_(relations)
    return made


def tracin(made: ERModel, weighting: str = 'cosine', **options: object) -> TracIn:
    return TracIn(
        made,
        training=NATIONS,
        learning_rates=[1.0],
        weighting=weighting,
        **dict(progress=False, devices='cpu', objective='bce') | options,
    )


def truth(made: ERModel, weighting: str, **options: object) -> Tensor:
    return tracin(copy.deepcopy(made).double(), weighting, **options).scores(TEST, X)


def error(ours: Tensor, expected: Tensor) -> float:
    assert expected.isfinite().all() and (expected.norm(dim=1) > 0).all()
    return ((ours.double() - expected).norm(dim=1) / expected.norm(dim=1)).max().item()


@pytest.mark.parametrize('score', [50, 80, 120])
@pytest.mark.parametrize('weighting', ['cosine', 'natural', 'natural-cosine'])
def test_all_confident(weighting: str, score: float) -> None:
    made = model(score)
    ours = tracin(made, weighting)
    assert error(ours.scores(TEST, X), truth(made, weighting)) < 1e-4
    result = ours.explain(TEST, k=5)
    assert len(result.frame) == 15 and not result.emptiness()
    assert result.facts['training_triples_with_slope'] == NATIONS.num_triples


@pytest.mark.parametrize('weighting', ['cosine', 'natural', 'natural-cosine'])
@pytest.mark.parametrize('options', [{}, dict(batch_size=50), dict(objective='softmax')])
def test_some_confident(weighting: str, options: dict) -> None:
    "Some tiles have none of them; in a sum of squares they hardly count, in a cosine they do."
    made = model(90, low=0.01)
    assert (
        error(tracin(made, weighting, **options).scores(TEST, X), truth(made, weighting, **options))
        < 1e-4
    )


@pytest.mark.parametrize('engine', ['vmap', 'loop'])
def test_other_engines(engine: str) -> None:
    made = model(60)
    for weighting in ('cosine', 'natural'):
        ours = tracin(made, weighting, engine=engine).scores(TEST, X)
        assert error(ours, truth(made, weighting)) < 1e-4


@pytest.mark.parametrize('weighting', ['cosine', 'natural', 'natural-cosine'])
def test_small_weights(weighting: str) -> None:
    "Gradients of 1e-26 by weights of 1e-13."
    made = model(2)
    with torch.no_grad():
        made.entity_representations[0]._embeddings.weight.mul_(1e-13)
        made.relation_representations[0]._embeddings.weight.mul_(1e-13)
    ours = tracin(made, weighting, objective='score').scores(TEST, X)
    assert error(ours, truth(made, weighting, objective='score')) < 1e-4


def test_kept_gradients(tmp_path: Path) -> None:
    "With and without weights in one cache, in memory and in files, and in a store."
    made, options = model(90, low=0.01), dict(batch_size=50)
    even = X[:, 1] % 2 == 0
    for cache in (FactorCache(2**24), FactorCache(2**24, folder=tmp_path / 'cache')):
        for _ in range(2):
            ours = tracin(made, cache=cache, **options)
            for part in (X[even][:3], X[~even][:3], TEST):
                ours.precompute(part)
            assert error(ours.scores(TEST, X), truth(made, 'cosine')) < 1e-4
    for folder in (None, tmp_path / 'store'):
        ours = tracin(made, **options)
        want = ours.explain(TEST, k=5).frame['influence']
        ours.prepare(folder=folder)
        assert torch.allclose(*map(torch.tensor, (ours.explain(TEST, k=5).frame.influence, want)))


def test_compiled() -> None:
    made = model(90, low=0.01)
    plain, some = FactoredEngine(made, BCE()), X[X[:, 1] % 2 == 0][:8]
    compiled = CompiledEngine(plain, make_program(plain, some, 'eager'))
    assert compiled(some).weight is None and compiled(X[:64]).weight is not None
    assert torch.allclose(
        inner(compiled(X[:64]), compiled(X[:64])), inner(plain(X[:64]), plain(X[:64]))
    )


def test_products_that_float32_does_not_hold() -> None:
    "Plain TracIn of slopes of 1e-26 is 1e-52."
    result = tracin(model(60), 'sgd').explain(TEST, k=5)
    assert not len(result.frame) and result.tests['has_slope'].all()
    assert 'products with a gradient as small as its own underflow to 0' in result.emptiness()
    assert 'cancels' not in result.emptiness()
    assert len(tracin(model(60).double(), 'sgd').explain(TEST, k=5).frame)


@pytest.mark.parametrize('weighting', ['natural', 'natural-cosine'])
def test_small_beside_others(weighting: str) -> None:
    "Gradients by one parameter are 1e26 times those by the other: each has its own moments."
    made = model(2)
    with torch.no_grad():
        made.entity_representations[0]._embeddings.weight.mul_(1e-13)
        made.relation_representations[0]._embeddings.weight.mul_(1e13)
    assert error(tracin(made, weighting).scores(TEST, X), truth(made, weighting)) < 1e-4


def test_flat_losses_stay_flat() -> None:
    "A slope that is zero in float64, too, is none."
    from tracin_nb.engine.gradients import _faint, _raised

    class Margin(BCE):
        def loss(self, scores: Tensor) -> Tensor:
            return torch.relu(1 - scores).sum()

    scores = torch.tensor([[60.0], [0.0]])
    p = torch.tensor([[0.0], [-1.0]])
    assert _faint(p, scores).tolist() == [True, False]
    assert _raised(Margin(), scores[:1], ()) is None


def test_rounding_is_looked_for_where_it_can_be_listed() -> None:
    """A list that is full of influences above the bound takes in no rounding: the same lists, while
    the sums of |terms| are computed for fewer test triples. Those of the last one stay below."""
    torch.manual_seed(0)
    alike = torch.ones(40)
    most, asked, lists = torch.full((6,), 1.8), [0, 0], [Ranking(6, 3), Ranking(6, 3)]
    for i, tile in enumerate(torch.randn(12, 6, 40) * torch.tensor([1, 1, 1, 1, 1, 0.4])[:, None]):
        rounding = (torch.rand(6, 40) < 0.3) & (tile.abs() <= most[:, None])
        for which, ranking in enumerate(lists):

            def terms(rows: Tensor | slice, which: int = which, odd: Tensor = rounding) -> Tensor:
                asked[which] += len(odd[rows])
                return torch.where(odd[rows], 1e9, 0.0)

            reached = ranking.reached if which else None
            ranking.update(cleared(tile.clone(), 3, most, alike, terms, reached), 40 * i)
    every, few = lists
    for x, y in zip(every.tables().values(), few.tables().values()):
        assert torch.equal(x, y)
    assert (few.reached[:5] > 1.8).all() and 0 < few.reached[5] < 1.8
    assert asked[1] < asked[0] / 2 and asked[1] >= 12


def test_pairs_weaker_than_the_list_are_not_looked_at_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    "By the index, too: of three test triples with small influences, one has a list they can enter."
    steps = tracin(model(1), 'sgd').steps
    test, indices = [steps[0].test(TEST[:3])], make_indices(steps.gradients(X))
    again, real = [], row_index._strongest_parts

    def seen(*args: Any) -> Any:
        again.extend(args[2].tolist() if args[-1] else [])
        return real(*args)

    monkeypatch.setattr(row_index, '_strongest_parts', seen)
    most = torch.full((3,), torch.inf)
    for not_full in ([0, 1, 2], [1], []):
        reached = torch.full((3,), 1e9)
        reached[not_full] = -torch.inf
        again.clear()
        shared_pairs(test, indices, len(X), 5, torch.float32, most, reached)
        assert sorted(set(again)) == not_full


def test_pairs_that_are_only_rounding_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the index: a product that cancels is 0 though it is large beside a small true one, and
    terms are looked at only for a pair below what its own gradients allow."""
    draw = torch.Generator().manual_seed(0)
    a, other = torch.randn(2, 64, generator=draw, dtype=torch.float64)
    across = 1e4 * (other - (other @ a) / (a @ a) * a)
    one_row = lambda *grads: Factors(
        {'e': (Rows(torch.zeros(len(grads), 1, dtype=torch.long), torch.stack(grads)[:, None]),)}
    ).to(dtype=torch.float32)
    asked, real = [], row_index._terms
    seen = lambda *args: (asked.append(1), real(*args))[1]
    monkeypatch.setattr(row_index, '_terms', seen)
    test = one_row(a)
    for last, looked in ((across, 1), (1e4 * a, 0)):
        train = one_row(1e-6 * a, a, last)
        noise = inner(test, train)[0, 2].abs()
        assert noise > 1e-6
        most = sizes(test) * limit(torch.float32)
        indices = make_indices([train])
        _, columns, values = shared_pairs([test], indices, 3, 3, torch.float32, most)
        assert sorted(columns[values != 0].tolist()) == [0, 1] + [2] * (1 - looked)
        assert len(asked) == looked
        asked.clear()


def test_own_sizes_tell_what_is_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    "In a dense tile, too: one large gradient does not put the others in doubt."
    draw = torch.Generator().manual_seed(0)
    a, other = torch.randn(2, 64, generator=draw, dtype=torch.float64)
    across = 1e4 * (other - (other @ a) / (a @ a) * a)
    dense = lambda *grads: Factors({'w': (Dense(torch.stack(grads).float()),)})
    asked, real = [], DenseTile.terms
    seen = lambda self, test: lambda rows: (asked.append(1), real(self, test)(rows))[1]
    monkeypatch.setattr(DenseTile, 'terms', seen)
    test = TestSide([dense(a)], [1.0], torch.float32)
    for last, looked in ((across, 1), (1e4 * a, 0)):
        train = dense(1e-6 * a, a, last)
        noise = inner(test.factors[0], train)[0, 2].abs()
        assert noise > 1e-6
        some = Pass(torch.arange(3), torch.zeros(3, 3, dtype=torch.long), False, 3, 3)
        found = as_dense([train]).ranking(test, some, 3).scores
        assert (found != 0).tolist() == [[True, True, not looked]]
        assert len(asked) == looked
        asked.clear()


def test_few_digits_are_told() -> None:
    made = tracin(model(53), 'sgd')
    assert 'influences below 1e-37 have few digits' in made.explain(TEST, k=5).emptiness()
    with pytest.warns(UserWarning, match='few digits in float32'):
        made.scores(TEST, X)
    assert not tracin(model(40), 'sgd').explain(TEST, k=5).emptiness()
