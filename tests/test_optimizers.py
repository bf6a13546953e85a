"""The rate that is in force at a step, for every optimiser of PyTorch, and what it does beside."""

import copy
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pykeen.datasets.nations import Nations
from pykeen.models import DistMult
from pykeen.pipeline import PipelineResult, pipeline
from pykeen.triples import TriplesFactory
from torch import Tensor

from tracin_nb.engine.objectives import left_out, make_objective
from tracin_nb.influence.tracin import TracIn
from tracin_nb.runs.foreign import open_files
from tracin_nb.runs.loop import KeepCheckpoints
from tracin_nb.runs.optimizers import HABITS, complete_settings, habits_of, rate_at
from tracin_nb.runs.run import Run
from tracin_nb.runs.settings import RunError, optimizer_settings
from tracin_nb.runs.training import train

pytestmark = pytest.mark.filterwarnings('ignore')
EVERY = sorted(
    name.lower()
    for name, cls in vars(torch.optim).items()
    if isinstance(cls, type)
    and issubclass(cls, torch.optim.Optimizer)
    and cls is not torch.optim.Optimizer
)
REFUSED = ('lbfgs', 'sparseadam')
CLASSES = {n.lower(): c for n, c in vars(torch.optim).items() if isinstance(c, type)}
SMALL: dict[str, Any] = dict(
    model='DistMult', model_kwargs=dict(embedding_dim=4), device='cpu', progress=False
)
WORDS = dict(
    adagrad='Adagrad',
    rmsprop='RMSprop',
    adamax='Adamax',
    adadelta='Adadelta',
    radam='RAdam',
    nadam='momentum_decay',
    asgd='lambd 0.0001',
    adafactor='Adafactor',
    rprop='sign of the gradient',
    muon='orthogonal',
)


# ---- all of torch.optim


def test_every_optimiser_is_decided_on() -> None:
    assert set(EVERY) - set(HABITS) == set(REFUSED)
    assert set(WORDS) | {'sgd', 'adam', 'adamw'} == set(HABITS)


@pytest.mark.parametrize('name', EVERY)
def test_climbing_is_refused(name: str) -> None:
    if name not in REFUSED:
        with pytest.raises(RunError, match='maximize=True'):
            optimizer_settings(name, 0.1, dict(maximize=True), None, None)
    else:
        with pytest.raises(RunError, match=f"optimizer='{name}' needs"):
            optimizer_settings(name, 0.1, None, None, None)


def moves(name: str, steps: int, **settings: Any) -> Iterator[float]:
    "How far a weight at zero goes in each step against a gradient that is always 1."
    weight = torch.nn.Parameter(torch.zeros(1, 1, dtype=torch.float64))
    made = CLASSES[name]([weight], **settings)
    for _ in range(steps):
        weight.data.zero_()  # no decay acts on a zero
        weight.grad = torch.ones_like(weight)
        made.step()
        yield -weight.item()


# name, settings, and what beside the rate makes the length of step t
LENGTHS: dict[str, tuple[dict[str, Any], Callable[[int], float]]] = {
    'sgd': ({}, lambda t: 1.0),
    'adam': ({}, lambda t: 1.0),
    'adamw': ({}, lambda t: 1.0),
    'adamax': ({}, lambda t: 1.0),
    'adagrad': (dict(lr_decay=0.3), lambda t: t**-0.5),
    'rmsprop': ({}, lambda t: (1 - 0.99**t) ** -0.5),
    'radam': (dict(betas=(0.9, 0.99)), lambda t: 1.0),
    'asgd': (dict(lambd=0.7), lambda t: 1.0),
    'adafactor': (dict(lr=0.2), lambda t: 1e-3),
}


@pytest.mark.parametrize('name', LENGTHS)
def test_rates_are_those_of_pytorch(name: str) -> None:
    given, length = LENGTHS[name]
    if name not in CLASSES:
        pytest.skip('this PyTorch has no such optimiser')
    settings = complete_settings(name, dict(lr=0.1) | given)
    for t, moved in enumerate(moves(name, 60, **dict(lr=0.1) | given), 1):
        expected = rate_at(name, settings, settings['lr'], t) * length(t)
        assert moved == pytest.approx(expected, rel=1e-5), t
        assert rate_at(name.upper(), given, settings['lr'], t) == rate_at(
            name, settings, settings['lr'], t
        )


@pytest.mark.parametrize('name', sorted(set(HABITS) - set(LENGTHS) & set(CLASSES)))
def test_others_say_what_makes_their_length(name: str) -> None:
    assert WORDS[name] in ' '.join(habits_of(name, {}))


def test_steps_that_are_not_known() -> None:
    for name in ('asgd', 'adafactor', 'radam'):
        with pytest.raises(RunError, match='the rate of the last step'):
            rate_at(name, {}, 0.1, None)
    assert rate_at('adagrad', {}, 0.1, None) == rate_at('lion', {}, 0.1, None) == 0.1
    assert rate_at('asgd', dict(lambd=0.0), 0.1, None) == 0.1


@pytest.mark.parametrize('name', sorted(set(HABITS) & set(CLASSES)))
def test_runs_of_every_optimiser(name: str, tmp_path: Path) -> None:
    "The recorded rate is the one in force; what is done beside is named."
    run = train('nations', **SMALL, out=tmp_path / 'run', epochs=1, optimizer=name, lr=0.02)
    (kept,) = run.checkpoints
    assert kept.learning_rate == rate_at(name, {}, 0.02, kept.step)
    said = ' '.join(left_out(run, run.model(-1, 'cpu'), make_objective('score', run)))
    assert WORDS.get(name, '') in said
    if name in ('sgd', 'adam'):
        assert 'optimiser' not in said
    assert ('weight decay' in said) == bool(run.optimizer[1].get('weight_decay'))


# ---- a decaying rate


@pytest.mark.parametrize(
    'name, settings', [('Adagrad', dict(lr_decay=0.5)), ('ASGD', dict(lambd=0.4))]
)
def test_influence_at_the_rate_in_force(name: str, settings: dict, tmp_path: Path) -> None:
    "The sum is the plain loop's in float64, each checkpoint at the rate of its last step."
    run = train(
        'nations',
        **SMALL,
        out=tmp_path / 'run',
        epochs=3,
        keep_every=1,
        lr=0.02,
        optimizer=name,
        optimizer_kwargs=settings,
    )
    triples = run.training.mapped_triples
    rates = [
        0.02 / (1 + 0.5 * (c.step - 1))
        if name == 'Adagrad'
        else 0.02 / (1 + 0.4 * 0.02 * (c.step - 1)) ** 0.75
        for c in run.checkpoints
    ]
    assert [c.learning_rate for c in run.checkpoints] == pytest.approx(rates, rel=1e-12)
    assert len(set(rates)) == 3
    found = TracIn(run, objective='score', weighting='sgd', progress=False, devices='cpu').scores(
        triples[:2], triples[::30]
    )
    expected = sum(
        rate * plain(run.model(k, 'cpu'), triples[:2], triples[::30])
        for k, rate in enumerate(rates)
    )
    assert close(found, expected)


def test_resumed_at_the_same_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    how = dict(**SMALL, epochs=4, keep_every=2, optimizer='Adagrad', lr=0.02)
    how |= dict(optimizer_kwargs=dict(lr_decay=0.5))
    how |= dict(lr_scheduler='ExponentialLR', lr_scheduler_kwargs=dict(gamma=0.5))
    whole = train('nations', **how, out=tmp_path / 'whole')

    class Stop(Exception):
        pass

    def stop(self: KeepCheckpoints, epoch: int, batch: Any, **kwargs: Any) -> None:
        self.step += 1
        if epoch == 3:
            raise Stop

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(KeepCheckpoints, 'post_batch', stop)
        train('nations', **how, out=tmp_path / 'half')
    again = train('nations', **how, out=tmp_path / 'half', resume=True)
    assert [c.learning_rate for c in again.checkpoints] == [
        c.learning_rate for c in whole.checkpoints
    ]
    assert again.fingerprint(-1) == whole.fingerprint(-1)


# ---- groups in pipelines


@pytest.fixture(scope='module')
def nations() -> TriplesFactory:
    return Nations().training


def weights(model: Any) -> tuple[Tensor, Tensor]:
    return tuple(
        getattr(model, f'{kind}_representations')[0]._embeddings.weight
        for kind in ('entity', 'relation')
    )


def piped(
    nations: TriplesFactory, optimizer: Any, optimizer_kwargs: Any = None, **options: Any
) -> PipelineResult:
    "Two epochs of DistMult; `optimizer` is a name, or makes one from the two tables of weights."
    model = DistMult(triples_factory=nations, embedding_dim=4, random_seed=0)
    return pipeline(
        dataset='nations',
        model=model,
        optimizer=optimizer if isinstance(optimizer, str) else optimizer(*weights(model)),
        optimizer_kwargs=optimizer_kwargs,
        training_kwargs=dict(num_epochs=2, use_tqdm=False, use_tqdm_batch=False),
        evaluation_kwargs=dict(use_tqdm=False),
        random_seed=5,
        device='cpu',
        **options,
    )


def groups(e: Tensor, r: Tensor) -> torch.optim.Optimizer:
    return torch.optim.SGD([dict(params=[e], lr=0.001), dict(params=[r], lr=0.1)], lr=0.7)


def relations_only(e: Tensor, r: Tensor) -> torch.optim.Optimizer:
    return torch.optim.SGD([dict(params=[r], lr=0.1)], lr=0.7)


def plain(model: Any, test: Tensor, train: Tensor, parts: tuple[int, ...] = (0, 1)) -> Tensor:
    "Inner products of score gradients, one triple at a time in float64, by some of the tables."
    model = copy.deepcopy(model).double()
    of = [weights(model)[i] for i in parts]

    def gradient(triple: Tensor) -> Tensor:
        found = torch.autograd.grad(model.score_hrt(triple[None]).sum(), of)
        return torch.cat([g.flatten() for g in found])

    a, b = (torch.stack(list(map(gradient, some))) for some in (test, train))
    return a @ b.T


def close(found: Tensor, expected: Tensor) -> bool:
    return bool((found.double() - expected).norm() <= 1e-5 * expected.norm())


def asked(run: Any, nations: TriplesFactory, **options: Any) -> tuple[Tensor, dict[str, Any]]:
    "Influence by `sgd`, and the facts."
    tracin = TracIn(
        run, objective='score', weighting='sgd', progress=False, devices='cpu', **options
    )
    triples = nations.mapped_triples
    facts = tracin.self_influence(k=1).facts
    return tracin.scores(triples[:2], triples[::30]), facts


@pytest.mark.parametrize('made, rate', [(groups, 0.001), (relations_only, 0.1)])
def test_pykeen_trains_everything_by_the_first_group(
    made: Callable, rate: float, nations: TriplesFactory
) -> None:
    "It makes the optimiser anew, so what other groups say, or do not hold, never took effect."
    result = piped(nations, made, clear_optimizer=False)
    same = piped(nations, 'SGD', dict(lr=rate))
    for a, b in zip(result.model.parameters(), same.model.parameters()):
        assert torch.equal(a, b)
    run = Run.from_pipeline(result)
    assert run.checkpoints[0].learning_rate == rate
    found, facts = asked(run, nations)
    triples = nations.mapped_triples
    assert close(found, rate * plain(result.model, triples[:2], triples[::30]))
    assert 'rates' not in facts


def test_a_record_says_where_its_rate_is_from(nations: TriplesFactory) -> None:
    "Without the optimiser only its defaults are known."
    run = Run.from_pipeline(piped(nations, groups))
    assert run.checkpoints[0].learning_rate == 0.7
    assert 'clear_optimizer=False' in asked(run, nations)[1]['rates']
    run = Run.from_pipeline(piped(nations, groups), learning_rates=[0.001])
    assert 'rates' not in asked(run, nations)[1]


def trained_on(result: PipelineResult, made: Callable) -> PipelineResult:
    "The result of a loop that went on with an optimiser as it was."
    result.training_loop.optimizer = made(*weights(result.model))
    return result


def test_groups_with_rates_of_their_own(nations: TriplesFactory) -> None:
    result = trained_on(piped(nations, 'SGD'), groups)
    with pytest.raises(RunError, match=r'0\.001 \(entity_repr.*; 0\.1 \(relation_repr'):
        Run.from_pipeline(result)
    found, facts = asked(Run.from_pipeline(result, learning_rates=[0.5]), nations)
    triples = nations.mapped_triples
    assert close(found, 0.5 * plain(result.model, triples[:2], triples[::30]))
    assert 'that parameter groups of the optimiser had lr of their own' in facts['left_out']


@pytest.mark.parametrize('engine', ['factored', 'vmap', 'loop'])
def test_what_is_not_held_is_frozen(engine: str, nations: TriplesFactory) -> None:
    result = trained_on(piped(nations, 'SGD'), relations_only)
    run = Run.from_pipeline(result)
    found, facts = asked(run, nations, engine=engine)
    triples = nations.mapped_triples
    assert close(found, 0.1 * plain(result.model, triples[:2], triples[::30], parts=(1,)))
    (line,) = [said for said in facts['left_out'] if 'frozen' in said]
    assert 'entity_representations.0._embeddings.weight' in line
    assert all(p.requires_grad for p in result.model.parameters())


def test_settings_of_groups(nations: TriplesFactory) -> None:
    "Those that all share are the optimiser's; a group that climbs is refused."

    def decayed(e: Tensor, r: Tensor) -> torch.optim.Optimizer:
        return torch.optim.AdamW([dict(params=[e], weight_decay=0.5), dict(params=[r])], lr=0.1)

    run = Run.from_pipeline(trained_on(piped(nations, 'SGD'), decayed))
    assert run.optimizer[0] == 'adamw' and run.optimizer[1]['lr'] == 0.1
    assert 'weight_decay' not in run.optimizer[1]
    assert any('had weight_decay' in said for said in asked(run, nations)[1]['left_out'])

    def climbing(e: Tensor, r: Tensor) -> torch.optim.Optimizer:
        return torch.optim.SGD([dict(params=[e]), dict(params=[r], maximize=True)], lr=0.1)

    with pytest.raises(RunError, match='maximize=True'):
        Run.from_pipeline(trained_on(piped(nations, 'SGD'), climbing))


def test_defaults_of_a_pipelines_optimiser(nations: TriplesFactory) -> None:
    "PyTorch's AdamW decays weights unless told otherwise."
    for clear in (True, False):
        result = piped(nations, 'SGD', clear_optimizer=clear)
        result.configuration |= dict(optimizer='AdamW', optimizer_kwargs=dict(lr=0.1))
        if not clear:
            trained_on(result, lambda e, r: torch.optim.AdamW([e, r], lr=0.1))
        said = asked(Run.from_pipeline(result), nations)[1]['left_out']
        assert 'weight decay 0.01 of the optimiser' in said


# ---- files of other programs


def saved(path: Path, nations: TriplesFactory, made: Callable, steps: int = 3) -> Path:
    "A model and the state of its optimiser after some steps."
    model = DistMult(triples_factory=nations, embedding_dim=4, random_seed=0)
    optimizer = made(*weights(model))
    for _ in range(steps):
        optimizer.zero_grad()
        model.score_hrt(nations.mapped_triples[:8]).mean().backward()
        optimizer.step()
    states = dict(model_state_dict=model.state_dict(), optimizer_state_dict=optimizer.state_dict())
    torch.save(dict(epoch=2, **states), path)
    return path


def test_files(tmp_path: Path, nations: TriplesFactory) -> None:
    table = tmp_path / 'train.tsv'
    ids = {
        kind: {v: k for k, v in getattr(nations, f'{kind}_to_id').items()}
        for kind in ('entity', 'relation')
    }
    table.write_text(
        ''.join(
            f'{ids["entity"][h]}\t{ids["relation"][r]}\t{ids["entity"][t]}\n'
            for h, r, t in nations.mapped_triples.tolist()
        )
    )
    count = itertools.count()

    def opened(made: Callable, **options: Any) -> Run:
        path = saved(tmp_path / f'{next(count)}.pt', nations, made, **options)
        return open_files(path, table, model='DistMult')

    run = opened(lambda *w: torch.optim.Adagrad(w, lr=0.3, lr_decay=1.0))
    assert run.checkpoints[0].learning_rate == pytest.approx(0.1)
    assert run.optimizer[0] == 'adagrad'
    assert any('Adagrad' in said for said in asked(run, nations)[1]['left_out'])
    run = opened(lambda *w: torch.optim.SGD(w, lr=0.3, momentum=0.5))
    assert 'momentum 0.5 of the optimiser' in asked(run, nations)[1]['left_out']
    with pytest.raises(RunError, match=r'\d\.pt: .*maximize=True'):
        opened(lambda *w: torch.optim.SGD(w, lr=0.3, maximize=True))
    with pytest.raises(RunError, match=r'\d\.pt: asgd changes its learning rate'):
        opened(lambda *w: torch.optim.ASGD(w, lr=0.3), steps=0)
