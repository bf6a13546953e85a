"""What a GPU would refuse, and what would make it wait, on a device in pure Python.

Nothing in here has run on CUDA. The complete cross product runs with TRACIN_SLOW=1."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cache
from itertools import product
from typing import Any

import pytest
import strict_device as strict
import torch
from models import NEED_INVERSE, TRAINABLE, build, fit, graph
from torch import Tensor

from tracin_nb import TracIn
from tracin_nb.engine.weightings import WEIGHTINGS
from tracin_nb.runs.run import Run
from tracin_nb.waiting import arrived, fetched, sent

pytestmark = pytest.mark.filterwarnings('ignore')
DEVICE = str(strict.DEVICE)
COMPLETE = os.environ.get('TRACIN_SLOW') == '1'
LOSSES = ('bce', 'score', 'softmax', 'softmax-head', 'training', 'rows', 'training-row')


@pytest.fixture(scope='module', autouse=True)
def pinned() -> Iterator[None]:
    with strict.pinning():
        yield


@cache
def run_of(name: str, loop: str) -> Run:
    "A run of a tiny model on a few triples of Nations, as if trained with Adam."
    inverse, literals = name in NEED_INVERSE, 'literal' in name
    every = graph(inverse, literals)
    some = every if literals else every.clone_and_exchange_triples(every.mapped_triples[::40])
    model = fit(build(name, some), some, batch_size=10)
    draw = torch.Generator().manual_seed(0)
    moments = {
        n: 0.1 + torch.rand(p.shape, generator=draw) for n, p in model.named_parameters()
    }
    adam = ('adam', dict(betas=(0.9, 0.999), eps=1e-8))
    how: dict[str, Any] = dict(optimizer=adam, optimizer_moments=[moments], steps=[3])
    if loop == 'lcwa':
        how['loss'] = 'crossentropy'
    return Run.from_model(model, some, learning_rates=[0.1], loop=loop, **how)


def asked(name: str, loss: str, weighting: str, device: str, size: int | None = 25) -> TracIn:
    "A `TracIn` of such a run."
    loop = 'lcwa' if loss in ('rows', 'training-row') else 'slcwa'
    loss = 'training' if loss == 'rows' else loss
    how: dict[str, Any] = dict(weighting=weighting, batch_size=size, progress=False)
    return TracIn(run_of(name, loop), loss, devices=device, **how)


def first_three(tracin: TracIn) -> Tensor:
    return tracin.run.training.mapped_triples[:3]


def numbers(result: Any) -> Tensor:
    "Influences, and the triples that they belong to."
    return torch.tensor(result.frame['influence'].to_numpy())


def explained(tracin: TracIn) -> Tensor:
    return numbers(tracin.explain(first_three(tracin), k=12))


def same(on_device: Tensor, on_cpu: Tensor) -> None:
    "Equal up to rounding."
    assert on_cpu.isfinite().all() and on_cpu.abs().max() > 0
    torch.testing.assert_close(on_device, on_cpu, rtol=0, atol=2e-5 * on_cpu.abs().max().item())


def chosen() -> list[tuple[str, str, str]]:
    "Models, losses and weightings: all, or some in which each of them occurs."
    if COMPLETE:
        return list(product(TRAINABLE, LOSSES, WEIGHTINGS))
    few = ('conve', 'distmult', 'rotate', 'tucker', 'complex', 'transe', 'proje')
    kinds = list(WEIGHTINGS)
    return [(n, LOSSES[i], kinds[i % len(kinds)]) for i, n in enumerate(few)]


@pytest.mark.parametrize('name, loss, weighting', chosen())
def test_equal_to_the_cpu(name: str, loss: str, weighting: str) -> None:
    same(*(explained(asked(name, loss, weighting, d)) for d in (DEVICE, 'cpu')))


QUESTIONS: dict[str, Callable[[TracIn], Tensor]] = {
    'explain': explained,
    'scores': lambda tracin: tracin.scores(first_three(tracin)),
    'self': lambda tracin: numbers(tracin.self_influence(k=5)),
    'self by relation': lambda tracin: numbers(tracin.self_influence(k=2, by_relation=True)),
}


def waits(name: str, loss: str, weighting: str, question: str, size: int) -> dict[str, int]:
    "How often the host waits for the device during a question, and why."
    tracin = asked(name, loss, weighting, DEVICE, size)
    with strict.counted() as counts:
        QUESTIONS[question](tracin)
    return dict(counts.waits)


COUNTED = [
    ('conve', 'bce', 'natural', 'explain'),
    ('conve', 'softmax', 'cosine', 'explain'),
    ('distmult', 'training', 'natural', 'explain'),
    ('rotate', 'training', 'sgd', 'scores'),
    ('tucker', 'rows', 'adam', 'explain'),
    ('complex', 'bce', 'natural', 'self'),
    ('transe', 'training', 'sgd', 'self by relation'),
]


@pytest.mark.parametrize('name, loss, weighting, question', COUNTED)
def test_waits_do_not_grow_with_tiles(
    name: str, loss: str, weighting: str, question: str
) -> None:
    few, many = (waits(name, loss, weighting, question, size) for size in (25, 13))
    print(name, loss, weighting, question, few, many)
    assert few == many
