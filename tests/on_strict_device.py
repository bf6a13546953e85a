"""What a GPU would refuse, and what would make it wait, on a device in pure Python.

Nothing in here has run on CUDA. The complete cross product runs with TRACIN_SLOW=1."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import strict_device as strict
import torch
from models import NEED_INVERSE, TRAINABLE, build, fit, graph
from torch import Tensor

from tracin_nb import TracIn, train
from tracin_nb.answer.ranking import NotFinite, Ranking
from tracin_nb.engine.weightings import WEIGHTINGS
from tracin_nb.evaluation.replay import replay
from tracin_nb.evaluation.verify import verify
from tracin_nb.influence.tracin import resume
from tracin_nb.runs.run import Run
from tracin_nb.waiting import Doubtful, arrived, doubting, fetched, sent

pytestmark = pytest.mark.filterwarnings('ignore')
DEVICE = str(strict.DEVICE)
COMPLETE = os.environ.get('TRACIN_SLOW') == '1'
LOSSES = ('bce', 'score', 'softmax', 'softmax-head', 'training', 'rows', 'training-row')


@pytest.fixture(scope='module', autouse=True)
def installed() -> Iterator[None]:
    with strict.installed():
        yield


@cache
def run_of(name: str, loop: str, dtype: torch.dtype = torch.float32) -> Run:
    "A run of a tiny model on a few triples of Nations, as if trained with Adam."
    inverse, literals = name in NEED_INVERSE, 'literal' in name
    every = graph(inverse, literals)
    some = every if literals else every.clone_and_exchange_triples(every.mapped_triples[::40])
    model = fit(build(name, some), some, batch_size=10).to(dtype)
    draw = torch.Generator().manual_seed(0)
    moments = {
        n: 0.1 + torch.rand(p.shape, generator=draw).to(dtype) for n, p in model.named_parameters()
    }
    adam = ('adam', dict(betas=(0.9, 0.999), eps=1e-8))
    how: dict[str, Any] = dict(optimizer=adam, optimizer_moments=[moments], steps=[3])
    if loop == 'lcwa':
        how['loss'] = 'crossentropy'
    return Run.from_model(model, some, learning_rates=[0.1], loop=loop, **how)


def asked(
    name: str,
    loss: str,
    weighting: str,
    device: str,
    size: int | None = 25,
    dtype: torch.dtype = torch.float32,
) -> TracIn:
    "A `TracIn` of such a run."
    loop = 'lcwa' if loss in ('rows', 'training-row') else 'slcwa'
    loss = 'training' if loss == 'rows' else loss
    how: dict[str, Any] = dict(weighting=weighting, batch_size=size, progress=False)
    return TracIn(run_of(name, loop, dtype), loss, devices=device, **how)


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
    torch.testing.assert_close(on_device, on_cpu, rtol=0, atol=5e-5 * on_cpu.abs().max().item())


def chosen() -> list[tuple[str, str, str]]:
    "Models, losses and weightings: all, or some in which each of them occurs."
    if COMPLETE:
        return list(product(TRAINABLE, LOSSES, WEIGHTINGS))
    few = ('conve', 'distmult', 'rotate', 'tucker', 'complex', 'transe', 'proje')
    few += ('inductivenodepiece', 'inductivenodepiecegnn')
    kinds = list(WEIGHTINGS)
    return [(n, LOSSES[i % len(LOSSES)], kinds[i % len(kinds)]) for i, n in enumerate(few)]


@pytest.mark.parametrize('name, loss, weighting', chosen())
def test_equal_to_the_cpu(name: str, loss: str, weighting: str) -> None:
    """Every model has every loss. In float64 where so few triples hardly tell the second moments
    from 0, and rounding in float32 alone is more than what is compared here."""
    natural = COMPLETE and weighting.startswith('natural') and name != 'rgcn'  # float32 only
    dtype = torch.float64 if natural else torch.float32
    ask = lambda device: explained(asked(name, loss, weighting, device, dtype=dtype))
    same(ask(DEVICE), ask('cpu'))


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


# Waits of a question in all: most are for the trial of the routes at each checkpoint, which
# compares a few gradients parameter by parameter, and for the damped inverses of `natural`.
MOST = 700


@pytest.mark.parametrize('name, loss, weighting, question', COUNTED)
def test_waits_do_not_grow_with_tiles(name: str, loss: str, weighting: str, question: str) -> None:
    few, many = (waits(name, loss, weighting, question, size) for size in (25, 13))
    assert few == many and sum(few.values()) < MOST


def test_what_was_in_doubt_is_done_again() -> None:
    "Two equal scores at the end of the ranking: which of them stays is not decided blindly."
    scores = torch.tensor([[3.0, 1.0, 2.0, 2.0, 0.0, -1.0]])
    for device in ('cpu', DEVICE):
        ranking = Ranking(1, 2, device=device)
        with doubting() as doubts:
            ranking.update(scores.to(device), torch.arange(6))
        later = Doubtful(torch.device(device))
        later.add(slice(0, 6), doubts)
        assert later.again() == ([] if device == 'cpu' else [slice(0, 6)])
        if device != 'cpu':
            assert not ranking.proponents.held.isfinite().any()
            ranking.update(scores.to(device), torch.arange(6))
        assert ranking.proponents.indices.tolist() == [[0, 2]]
        assert ranking.opponents.indices.tolist() == [[5, -1]]


def test_scores_that_are_not_finite_are_refused_on_a_device_too() -> None:
    scores = torch.tensor([[1.0, torch.nan, 2.0]]).to(DEVICE)
    ranking, later = Ranking(1, 2, device=DEVICE), Doubtful(strict.DEVICE)
    with doubting() as doubts:
        ranking.update(scores, torch.arange(3))
    later.add(slice(0, 3), doubts)
    assert later.again() == [slice(0, 3)] and not ranking.proponents.held.isfinite().any()
    with pytest.raises(NotFinite, match='expected a finite number'):
        ranking.update(scores, torch.arange(3))


# ---- what is kept, resumed, replayed and verified


@cache
def trained(folder: Path, loop: str) -> Run:
    "A run of `train` on a few triples of Nations."
    lines = graph().triples[::15]
    (folder / 'data').mkdir(exist_ok=True)
    for part, some in (('train', lines), ('test', lines[:2])):
        np.savetxt(folder / 'data' / f'{part}.tsv', some, fmt='%s', delimiter='\t')
    how: dict[str, Any] = dict(epochs=2, keep_every=1, batch_size=64, lr=0.02, loop=loop)
    how |= dict(model_kwargs=dict(embedding_dim=4), progress=False, device='cpu')
    return train(folder / 'data', 'DistMult', out=folder / loop, **how)


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp('strict')


def test_prepared(folder: Path) -> None:
    def found(device: str) -> Tensor:
        tracin = TracIn(trained(folder, 'slcwa'), devices=device, batch_size=50, progress=False)
        tracin.prepare()
        return explained(tracin)

    same(found(DEVICE), found('cpu'))


class Stop(Exception):
    "Somebody interrupts."


def stop(label: str, done: int, total: int) -> None:
    if label == 'influence' and done:
        raise Stop


def test_resumed(folder: Path) -> None:
    run, found = trained(folder, 'slcwa'), []
    for device in (DEVICE, 'cpu'):
        out = folder / f'begun-{torch.device(device).type}'
        tracin = TracIn(run, devices=device, batch_size=25, progress=stop)
        with pytest.raises(Stop):
            tracin.explain(first_three(tracin), k=12, out=out)
        found.append(numbers(resume(out, devices=device, progress=False)))
    same(*found)


@pytest.mark.parametrize('loop', ['slcwa', 'lcwa'])
def test_replayed(folder: Path, loop: str) -> None:
    run = trained(folder, loop)
    ask: dict[str, Any] = dict(k=5, check=1, progress=False)
    test = run.training.mapped_triples[:2]
    same(*(numbers(replay(run, test, device=d, **ask)) for d in (DEVICE, 'cpu')))


@pytest.mark.parametrize('side_by_side', [True, False])
def test_verified(folder: Path, side_by_side: bool) -> None:
    run = trained(folder, 'slcwa')
    ask: dict[str, Any] = dict(each=False, seeds=1, progress=False, side_by_side=side_by_side)
    ask |= dict(triples=run.training.mapped_triples[:1])
    told = [
        verify(run, run.training.triples[1], device=d, **ask)
        .frame.select_dtypes('number')
        .to_numpy()
        for d in (DEVICE, 'cpu')
    ]
    same(*map(torch.tensor, told))


# ---- the device itself


def test_what_a_gpu_refuses() -> None:
    here, there = torch.ones(3), torch.ones(3).to(DEVICE)
    with pytest.raises(RuntimeError, match='expected all tensors on'):
        here + there
    with pytest.raises(RuntimeError, match='indices on'):
        here[there.long()]
    with pytest.raises(RuntimeError, match='generator'):
        torch.rand(3, device=DEVICE, generator=torch.Generator())
    with pytest.raises(TypeError, match='numpy'):
        there.numpy()
    assert (there * torch.tensor(2.0) + there[torch.tensor([0, 0, 1])]).tolist() == [3.0] * 3


def test_waits_and_copies_are_counted() -> None:
    there = torch.arange(4.0).to(DEVICE)
    with strict.counted() as counts:
        (there * 2).sum()
        assert not counts.waits and counts.operators['aten::mul'] == 1
        bool(there.any()), there[there > 1], there.cpu(), torch.ones(1).to(DEVICE)
    expected = {'_local_scalar_dense': 1, 'aten::index by a mask': 1, 'a copy out': 1}
    assert counts.waits == expected | {'a copy in': 1}


def test_copies_that_are_not_waited_for_are_late() -> None:
    with strict.counted() as counts:
        there = sent(torch.arange(3.0), DEVICE)
        back = fetched(there * 2)
        assert back.isnan().all() and not counts.waits
        arrived(strict.DEVICE)
    assert back.tolist() == [0.0, 2.0, 4.0] and counts.copies['pinned in, late'] == 1
    source = torch.arange(3.0).pin_memory()
    source.to(DEVICE, non_blocking=True)
    source += 1
    with pytest.raises(RuntimeError, match='changed while'):
        arrived(strict.DEVICE)


def test_complex_numbers_are_views_of_real_ones() -> None:
    real = torch.arange(4.0).view(2, 2).to(DEVICE).requires_grad_()
    both = torch.view_as_complex(real)
    assert both.conj().is_conj() and torch.view_as_real(both.conj().resolve_conj()).tolist() == [
        [0.0, -1.0],
        [2.0, -3.0],
    ]
    (both * both.conj()).real.sum().backward()
    assert torch.equal(real.grad.cpu(), 2 * real.detach().cpu())
