"""Replay against finite differences of real trainings, in double precision, and what it refuses."""

from __future__ import annotations

import itertools
import json
import os
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from models import CONVE
from pykeen.datasets import EagerDataset, Nations
from pykeen.losses import CrossEntropyLoss
from torch.profiler import ProfilerActivity, profile

import tracin_nb.evaluation.adjoints as adjoints
import tracin_nb.evaluation.repeating as repeating
import tracin_nb.evaluation.replay as replaying
from tracin_nb.answer.results import Result, replay_text
from tracin_nb.engine.objectives import make_objective
from tracin_nb.evaluation.adjoints import (
    Backwards,
    Gradient,
    Joining,
    backwards_through,
    end_adjoint,
    end_losses,
    stretches,
    taken_again,
    trained_in_double,
    weighted_training,
)
from tracin_nb.evaluation.repeating import (
    Moment,
    Repeater,
    blank_moment,
    check_repeatable,
    moment_of,
    put,
    record_training,
)
from tracin_nb.evaluation.replay import replay, room_for, tape_room
from tracin_nb.evaluation.side_by_side import train_without
from tracin_nb.evaluation.updates import updated
from tracin_nb.influence.tracin import TracIn
from tracin_nb.runs.loop import KeepCheckpoints
from tracin_nb.runs.run import Run
from tracin_nb.runs.settings import RunError
from tracin_nb.runs.training import train, train_again

D = dict(embedding_dim=8)
LCWA = dict(loop='lcwa', batch_size=128)
STEP = 1e-4  # of a weight
MILD = dict(optimizer_kwargs=dict(eps=1e-3))  # rounding before a batch norm is not trained
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    'distmult-margin-adam-regulariser': ('DistMult', dict(model_kwargs=D)),
    'distmult-softmax-smoothing': (
        'DistMult',
        dict(model_kwargs=D, loss='crossentropy', label_smoothing=0.1, **LCWA),
    ),
    'distmult-bce-rows-adagrad': (
        'DistMult',
        dict(model_kwargs=D, loss='bcewithlogits', optimizer='adagrad', lr=0.1, **LCWA),
    ),
    'distmult-weighter': (
        'DistMult',
        dict(
            model_kwargs=D,
            loss='bcewithlogits',
            loss_weighter='relation',
            loss_weighter_kwargs=dict(weights=torch.linspace(0.5, 2, 55)),
        ),
    ),
    'distmult-rmsprop': (
        'DistMult',
        dict(
            model_kwargs=D, optimizer='rmsprop', optimizer_kwargs=dict(momentum=0.5, centered=True)
        ),
    ),
    'distmult-inverse-clipped-adamw': (
        'DistMult',
        dict(
            model_kwargs=D,
            inverse=True,
            training_kwargs=dict(gradient_clipping_max_norm=0.05),
            optimizer='adamw',
            optimizer_kwargs=dict(weight_decay=0.1),
        ),
    ),
    'distmult-parts-of-batches': (
        'DistMult',
        dict(model_kwargs=D, loss='softplus', training_kwargs=dict(sub_batch_size=100)),
    ),
    'transe-margin-momentum': (
        'TransE',
        dict(
            model_kwargs=D,
            num_negs_per_pos=2,
            optimizer='sgd',
            optimizer_kwargs=dict(momentum=0.9, nesterov=True),
            lr=0.1,
        ),
    ),
    'transe-nssa-filtered-adagrad': (
        'TransE',
        dict(
            model_kwargs=D,
            loss='nssa',
            num_negs_per_pos=3,
            negative_sampler_kwargs=dict(filtered=True),
            optimizer='adagrad',
            lr=0.1,
        ),
    ),
    'transe-rows-margin-momentum': (
        'TransE',
        dict(
            model_kwargs=D | dict(scoring_fct_norm=2),
            optimizer='sgd',
            optimizer_kwargs=dict(momentum=0.9),
            lr=0.1,
            **LCWA,
        ),
    ),
    'rotate-rows-nssa-adagrad': (
        'RotatE',
        dict(model_kwargs=D, loss='nssa', optimizer='adagrad', lr=0.1, **LCWA),
    ),
    'complex-regularised': ('ComplEx', dict(model_kwargs=D)),
    'complex-rows-amsgrad-inverse': (
        'ComplEx',
        dict(
            model_kwargs=D,
            optimizer_kwargs=dict(amsgrad=True),
            inverse=True,
            loss='crossentropy',
            **LCWA,
        ),
    ),
    'rotate-scheduler': (
        'RotatE',
        dict(model_kwargs=D, lr_scheduler='ExponentialLR', lr_scheduler_kwargs=dict(gamma=0.5)),
    ),
    'conve-sampled': ('ConvE', dict(model_kwargs=CONVE, **MILD)),
    'conve-rows': ('ConvE', dict(model_kwargs=CONVE, **LCWA, **MILD)),
}


def trained(folder: Path, model: str = 'DistMult', **kwargs: Any) -> Run:
    "A run of two epochs on Nations."
    kwargs = dict(model_kwargs=D, epochs=2, keep_every=1, batch_size=512, lr=0.01) | kwargs
    return train('nations', model, out=folder, progress=False, **kwargs)


def in_double(run: Run, new: torch.Tensor | None = None) -> Gradient:
    "The gradient of a run whose training was taken again in double precision."
    loop, tape = record_training(run, room=4)
    assert tape.bits
    repeater = Repeater(loop, tape, check_repeatable(run))
    trained_in_double(repeater)
    joining = None if new is None else Joining(run, new, len(tape.steps))
    return Gradient(repeater, run.training, joining)


def slope(gradient: Gradient, loss: Callable[[], torch.Tensor], to: torch.Tensor) -> torch.Tensor:
    "The derivative along the weights `to`, from two real trainings."
    found = []
    for h in (STEP, -STEP):
        weighted_training(gradient, gradient.present(torch.float64) + h * to, lambda n: None)
        found.append(loss())
    return (found[0] - found[1]) / (2 * STEP)


def directions_of(n: int, many: bool) -> torch.Tensor:
    "20 random triples: a random direction among all of them, and one alone; or each alone."
    rows = torch.randperm(n, generator=torch.Generator().manual_seed(2))[:20]
    to = torch.zeros(20 if many else 2, n, dtype=torch.float64)
    if many:
        to[range(20), rows] = 1
    else:
        to[0, rows] = (
            torch.rand(20, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) - 0.5
        )
        to[1, rows[0]] = 1
    return to


def check_derivative(gradient: Gradient, run: Run, loss: str, to: torch.Tensor) -> torch.Tensor:
    "Derivatives by all weights `[3, N]`, held against real trainings along `to` `[n, N]`."
    loop, test = gradient.loop, run.testing.mapped_triples[:3]
    objective, backwards = make_objective(loss, run), Backwards(gradient)
    _, adjoint = end_adjoint(loop, objective, test, gradient.names)
    total = torch.zeros(3, gradient.count, dtype=torch.float64)
    backwards_through(backwards, adjoint, total, room=2)
    assert backwards.pull.together
    ends = lambda: end_losses(loop, objective, test)
    if not len(to):
        return total
    want, found = torch.stack([slope(gradient, ends, x) for x in to], 1), total @ to.T
    assert want.abs().max() > 1e-7
    for a, b in zip(found, want):  # of each prediction
        assert (a - b).norm() <= 1e-4 * b.norm(), float((a - b).norm() / b.norm())
    return total


@pytest.mark.parametrize('name', CASES)
def test_replay_is_the_derivative_of_real_trainings(tmp_path: Path, name: str) -> None:
    model, kwargs = CASES[name]
    run = trained(tmp_path / 'run', model, **kwargs)
    to = directions_of(run.training.num_triples, many=bool(os.environ.get('TRACIN_SLOW')))
    check_derivative(in_double(run), run, 'training' if 'margin' not in name else 'softmax', to)


@pytest.fixture(scope='module')
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    "A run that is replayed in several tests."
    yield trained(tmp_path_factory.mktemp('replay') / 'run', loss='bcewithlogits', lr=0.003)


def test_a_weighted_step_with_weights_of_1_is_that_of_pykeen(run: Run) -> None:
    loop, tape = record_training(run, room=100)
    gradient = Gradient(Repeater(loop, tape, check_repeatable(run)), run.training)
    want = moment_of(loop).weights
    weighted_training(gradient, torch.ones(gradient.count), lambda n: None)
    for name, x in moment_of(loop).weights.items():
        torch.testing.assert_close(x, want[name], rtol=1e-5, atol=1e-6)
    put(loop, tape.moments[3])
    gradient.repeater.take(3)
    assert all(
        torch.equal(x, tape.moments[4].weights[n]) for n, x in moment_of(loop).weights.items()
    )


def test_where_adam_has_no_derivative_it_is_0() -> None:
    p, g, m, v = (torch.zeros(2, dtype=torch.float64, requires_grad=True) for _ in range(4))
    group = dict(lr=0.1, betas=(0.9, 0.999), eps=1e-8, weight_decay=0, amsgrad=False)
    q, _ = updated('adam', group, 1, p, g, dict(exp_avg=m, exp_avg_sq=v))
    grads = torch.autograd.grad(q.sum(), (p, g, m, v), materialize_grads=True)
    assert [x.tolist() for x in grads] == [[1, 1], [0, 0], [0, 0], [0, 0]]


def test_a_satisfied_hinge_moves_nothing(tmp_path: Path) -> None:
    run = trained(tmp_path / 'run', 'TransE', loss_kwargs=dict(margin=0.0), epochs=1, batch_size=64)
    loop, tape = record_training(run, room=100)
    gradient = Gradient(Repeater(loop, tape, check_repeatable(run)), run.training)
    (made,) = gradient(tape.steps[0].batch, again=True)[1]
    satisfied = made.scores[0] > made.scores[1]
    assert satisfied.any() and not satisfied.all()
    assert (made.u[0][satisfied] == 0).all() and (made.u[0][~satisfied] != 0).all()


def test_the_result_is_of_the_kind_that_explain_gives(run: Run) -> None:
    test = run.testing.mapped_triples[:2]
    told: list[tuple[str, int, int]] = []
    result = replay(
        run, test, test_objective='softmax', k=4, check=3, progress=lambda *x: told.append(x)
    )
    assert result.facts['rung'] == 'replay' and result.facts['arrives'] == 'bit for bit'
    assert len(result.tests) == 2 and result.tests['has_slope'].all()
    assert (result.proponents['influence'] > 0).all() and (result.opponents['influence'] < 0).all()
    assert result.facts['training'] == 'not known' and 'cannot be judged' in result.facts['check']
    assert 'rank correlation' in result.facts['check']
    dropped = result.facts['dropped']['triples']
    assert len(dropped) == 3 and len(dropped[0]['happened']) == 2
    assert told[-1][1] == told[-1][2]
    alone = replay(run, test[1:], test_objective='softmax', k=4, check=0, progress=False)
    mine = result[1].frame
    assert alone.frame['training_index'].tolist() == mine['training_index'].tolist()
    assert alone.frame['influence'].tolist() == pytest.approx(mine['influence'], rel=1e-4)


def test_little_memory_takes_steps_again_and_gives_the_same(run: Run) -> None:
    test = run.testing.mapped_triples[:3]
    ask = dict(k=3, check=0, progress=False)
    much, little = replay(run, test, **ask), replay(run, test, memory='1170KB', **ask)
    assert much.facts['replayed']['steps_taken_again'] == 0
    assert little.facts['replayed']['steps_taken_again'] > 0
    assert little.facts['replayed']['predictions_together'] < 3
    assert little.frame['training_index'].tolist() == much.frame['training_index'].tolist()
    assert little.frame['influence'].tolist() == pytest.approx(much.frame['influence'], rel=1e-4)
    with pytest.raises(RunError, match='is too little to replay this run'):
        replay(run, test, memory='20KB', progress=False)


def allocated_at_most(profiled: profile) -> int:
    "The most bytes that tensors took at a time, beyond those at the beginning."
    events = profiled.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == '[memory]')
    return max(itertools.accumulate(n for _, n in changes))


def test_a_small_budget_is_kept_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kwargs = dict(model_kwargs=dict(embedding_dim=128), batch_size=200, epochs=1)
    runs = [trained(tmp_path / 'sampled', **kwargs)]
    kwargs |= dict(loop='lcwa', loss='crossentropy', batch_size=64)
    runs += [trained(tmp_path / 'rows', **kwargs)]
    now = most = 0

    def counted(loop: Any) -> Moment:
        nonlocal now, most
        made = blank_moment(loop)
        now += made.nbytes
        most = max(most, now)
        weakref.finalize(next(iter(made.weights.values())).untyped_storage(), freed, made.nbytes)
        return made

    def freed(n: int) -> None:
        nonlocal now
        now -= n

    monkeypatch.setattr(repeating, 'blank_moment', counted)
    for run, tests in zip(runs, (1, 3)):
        test, again = run.testing.mapped_triples[:tests], []
        with pytest.raises(RunError, match='at least') as info:
            room_for(run, 1000, tests)
        number, unit = str(info.value).split('at least ')[1].split()[:2]
        least = float(number) * dict(KiB=2**10, MiB=2**20)[unit]
        for budget in (int(1.02 * least), int(1.5 * least)):
            now = most = 0
            with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
                found = replay(run, test, check=0, memory=budget, progress=False)
            room = room_for(run, budget, tests)
            assert 0 < most == found.facts['memory']['states'] <= (room.states + 1) * room.state
            assert most < allocated_at_most(profiled) <= budget
            again.append(found.facts['replayed']['steps_taken_again'])
        assert again[0] > again[1]


def test_states_are_had_in_reverse_order_within_their_room() -> None:
    for steps, room in itertools.product((1, 2, 3, 10, 60, 200), (1, 2, 4, 9, 70, 199)):
        made = SimpleNamespace(moments={0: 0}, copy=lambda loop: loop.at)
        loop = SimpleNamespace(at=0, taken=0, tape=made)

        def put(loop: Any, moment: int) -> None:
            loop.at = moment

        def take(i: int, loop: Any = loop) -> None:
            assert loop.at == i
            loop.at, loop.taken = i + 1, loop.taken + 1

        loop.loop, loop.take, most, found = loop, take, 0, []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(adjoints, 'put', put)
            for i, moment in stretches(loop, 0, steps, room):
                assert i == moment
                found.append(i)
                most = max(most, len(made.moments) - 1)
        assert found == [*range(steps)][::-1] and most <= room
        assert loop.taken == taken_again(steps, room)
        assert loop.taken < steps or room < steps - 1
    assert taken_again(55, 9) == 99  # none more than twice
    assert [tape_room(8, n) for n in (4, 6, 8, 100)] == [2, 4, 8, 8]


@pytest.mark.parametrize('at', [14, 20])  # in the first part of the way back, in the second
def test_a_replay_that_was_killed_goes_on(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    monkeypatch.setattr(replaying, '_EVERY', 0.0)
    ask = dict(k=3, check=0, memory='1185KB')
    test, out = run.testing.mapped_triples[:2], tmp_path / 'out'
    want = replay(run, test, progress=False, **ask)
    assert want.facts['replayed']['predictions_together'] == 1

    def stop(label: str, done: int, total: int) -> None:
        if done >= at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replay(run, test, progress=stop, out=out, **ask)
    assert (out / 'replay.pt').is_file()
    told: list[int] = []
    found = replay(run, test, progress=lambda label, done, total: told.append(done), out=out, **ask)
    assert found.frame['influence'].tolist() == want.frame['influence'].tolist()
    assert (
        found.facts['replayed']['steps_taken_again'] < want.facts['replayed']['steps_taken_again']
    )
    assert not (out / 'replay.pt').exists()
    again = replay(run, test, progress=stop, out=out, **ask)  # which makes no step
    assert again.frame.equals(found.frame)
    with pytest.raises(ValueError, match='the answer to another question'):
        replay(run, test[:1], progress=False, out=out, **ask)
    assert len(replay(run, test[:1], progress=False, out=out, overwrite=True, **ask)) == 1
    assert len(Result.load(out)) == 1


@pytest.mark.parametrize(
    'kwargs',
    [
        dict(),
        dict(optimizer='adamw', loss='bcewithlogits', num_negs_per_pos=2),
        dict(model='TransE', optimizer='adagrad', loss='nssa', model_kwargs=D),
        dict(model='ComplEx', optimizer='sgd', optimizer_kwargs=dict(momentum=0.9), inverse=True),
    ],
    ids=['adam', 'adamw', 'none', 'sgd'],
)
def test_formulas_and_touched_rows_give_what_autograd_gives(
    tmp_path: Path, kwargs: dict[str, Any]
) -> None:
    run = trained(tmp_path / 'run', **kwargs)
    loop, tape = record_training(run, room=4)
    gradient = Gradient(Repeater(loop, tape, check_repeatable(run)), run.training)
    objective, test = make_objective('softmax', run), run.testing.mapped_triples[:2]
    backwards, found = Backwards(gradient), []
    bound = kwargs.get('optimizer') == 'adagrad'  # under which Adagrad has no formula
    assert backwards.formulas != bound and bool(backwards.tables) != bound
    tables, ways = backwards.tables, [(False, {})]
    ways += [] if bound else [(True, {}), (True, tables)]
    for backwards.formulas, backwards.tables in ways:
        put(loop, backwards.end)
        _, adjoint = end_adjoint(loop, objective, test, gradient.names)
        found.append(torch.zeros(2, gradient.count))
        backwards_through(backwards, adjoint, found[-1], room=4)
    for x in found[1:]:
        assert ((x - found[0]).norm() / x.norm()) < 1e-4


def test_a_mean_over_runs_tells_how_far_they_agree(run: Run, tmp_path: Path) -> None:
    other = trained(tmp_path / 'other', loss='bcewithlogits', lr=0.003, seed=1)
    ask = dict(test_objective='softmax', progress=False)
    test = run.testing.mapped_triples[:2]
    each = [replay(r, test, k=10**6, check=0, **ask).frame for r in (run, other)]
    place = ['test_index', 'training_index']
    each = [f.set_index(place)['influence'].groupby(place).first() for f in each]
    both = replay([run, str(other.folder)], test, k=3, check=6, out=tmp_path / 'out', **ask)
    assert (both.proponents['influence'] > 0).all() and len(both.frame) == 12
    for row in both.frame.to_dict('records'):
        found = torch.tensor([f.get((row[place[0]], row[place[1]]), 0.0) for f in each])
        assert row['influence'] == pytest.approx(float(found.mean()), rel=1e-3)
        assert row['spread'] == pytest.approx(float(found.std()), rel=1e-3)
        same = (found.sign() == found.mean().sign()).float().mean()
        assert row['agreement'] == float(same)
    assert [f['seed'] for f in both.facts['runs']] == [0, 1] and 'seed' not in both.facts
    assert 'mean of 2 runs' in repr(both) and 'dropped in each run' in repr(both)
    assert Result.load(tmp_path / 'out').frame.equals(both.frame)
    few = train('umls', 'DistMult', out=tmp_path / 'umls', epochs=1, model_kwargs=D, progress=False)
    with pytest.raises(ValueError, match='was not trained on the triples of'):
        replay([run, few], test, progress=False)


def test_a_rough_training_is_named(tmp_path: Path) -> None:
    "Full batches and large steps; with steps that shrink with their gradients it is smooth."
    rough = dict(model='ComplEx', lr=0.3, epochs=40, batch_size=4096, keep_every=20)
    smooth = dict(lr=0.02, epochs=8, batch_size=256, optimizer_kwargs=dict(eps=1e-3))
    for want, kwargs in dict(rough=rough, smooth=smooth).items():
        run = trained(tmp_path / want, loop='lcwa', loss='crossentropy', **kwargs)
        test = run.testing.mapped_triples[:3]
        found = replay(run, test, test_objective='softmax', progress=False)
        assert found.facts['training'] == want, found.facts['check']
        assert ('too rough' in repr(found)) == (want == 'rough')
        strength = [max(map(abs, t['predicted'])) for t in found.facts['dropped']['triples']]
        assert strength == sorted(strength, reverse=True) and strength[-1] < strength[0] / 20


def test_what_cannot_be_replayed_is_refused(run: Run, tmp_path: Path) -> None:
    foreign = Run.from_model(run.model(-1, 'cpu'), run.training, learning_rates=[0.01])
    test = run.testing.mapped_triples[:1]
    with pytest.raises(RunError, match='only a run of train can be replayed'):
        replay(foreign, test, progress=False)
    with pytest.raises(RunError, match="optimizer='adadelta' has no differentiable form"):
        replay(trained(tmp_path / 'other', optimizer='adadelta', epochs=1), test, progress=False)
    with pytest.raises(ValueError, match='test_objective selects the loss of the predictions'):
        replay(run, test, objective='bce', progress=False)
    path, facts = run.folder / 'run.json', (run.folder / 'run.json').read_text()
    changed = json.loads(facts)
    changed['settings']['seed'] += 1
    changed['packages']['torch'] = '1.0'
    try:
        path.write_text(json.dumps(changed))
        with pytest.raises(
            RunError, match='does not reach the same state at epoch 1.*made with torch 1.0'
        ):
            replay(Run.open(run.folder), test, progress=False)
    finally:
        path.write_text(facts)
    with pytest.raises(RunError, match='trained over heads'):
        replay(replace(run, target='head'), test, progress=False)
    with pytest.raises(RunError, match='assumed were loop'):
        replay(replace(run, assumed=dict(loop='slcwa')), test, progress=False)


class Mixed(CrossEntropyLoss):
    "A loss in which no row of a batch stands for itself."

    def process_lcwa_scores(self, predictions: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return super().process_lcwa_scores(predictions - predictions.mean(0), *args, **kwargs)


def test_rows_that_a_loss_mixes_are_refused(tmp_path: Path) -> None:
    run = trained(tmp_path / 'run', loss='crossentropy', epochs=1, **LCWA)
    loop, tape = record_training(run, room=2)
    loop.model.loss = Mixed()
    gradient = Gradient(Repeater(loop, tape, check_repeatable(run)), run.training)
    with pytest.raises(RunError, match='Mixed mixes the rows of a batch'):
        gradient(tape.steps[0].batch)


def test_an_estimate_tells_what_a_replay_takes(run: Run, tmp_path: Path) -> None:
    test = run.testing.mapped_triples[:4]
    found = TracIn(run, weighting='sgd', progress=False).explain(test, k=1)
    assert 0 < run.seconds == found.facts['training_seconds']
    assert replay_text(found.facts | dict(training_seconds=30.0), 4) == (
        'a replay takes about as long as 14 trainings, 7 minutes'  # of which 9 for the check
    )
    assert 'as long as 14 trainings' in found._repr_html_()
    kept = dict(epochs=2, keep_every=1, loss='bcewithlogits')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KeepCheckpoints, 'post_epoch', stopping_after(1))
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / 'run', **kept)
    first = Run.open(tmp_path / 'run').seconds
    assert first and trained(tmp_path / 'run', resume=True, **kept).seconds > first
    path = tmp_path / 'run' / 'run.json'
    facts = json.loads(path.read_text())
    facts['checkpoints'][-1]['seconds'] = -1
    path.write_text(json.dumps(facts))
    with pytest.raises(RunError, match=r'checkpoints\[1\]: seconds must be a finite number'):
        Run.open(tmp_path / 'run')
    del facts['checkpoints'][-1]['seconds']  # as an earlier version wrote it
    path.write_text(json.dumps(facts))
    found = TracIn(path.parent, weighting='sgd', progress=False).explain(test, k=1)
    assert 'training_seconds' not in found.facts and replay_text(found.facts, 4) == ''


def stopping_after(n: int) -> Callable[..., None]:
    "A `post_epoch` that keeps epoch `n`, and then stops."
    keep = KeepCheckpoints.post_epoch

    def post_epoch(self: KeepCheckpoints, epoch: int, epoch_loss: float, **kwargs: Any) -> None:
        keep(self, epoch, epoch_loss, **kwargs)
        if epoch == n:
            raise KeyboardInterrupt

    return post_epoch


def test_trainings_again_are_quiet(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    "PyKEEN's advice about a model is given once, not at each repetition of its training."
    options = dict.fromkeys(['input_dropout', 'feature_map_dropout', 'output_dropout'], 0.0)
    options |= CONVE | dict(apply_batch_normalization=False)
    caplog.set_level('WARNING', 'pykeen')
    run = trained(tmp_path / 'run', model='ConvE', model_kwargs=options, **LCWA)
    assert [r.name for r in caplog.records] == ['pykeen.models.unimodal.conv_e']
    first = run.training.mapped_triples[:1]
    list(train_without(run, [first, first], device='cpu'))
    train_again(run, first, device='cpu')
    replay(run, run.testing.mapped_triples[:1], check=1, device='cpu', progress=False)
    assert len(caplog.records) == 1


def candidates_of(run: Run, n: int) -> torch.Tensor:
    "Testing triples, which are not in training, and one with a pair that no training triple has."
    known = {(h, r) for h, r, _ in run.training.mapped_triples.tolist()}
    pairs = [(h, r) for h in range(14) for r in range(55) if (h, r) not in known]
    return torch.cat([run.testing.mapped_triples[3 : 2 + n], torch.tensor([[*pairs[0], 3]])])


@pytest.mark.parametrize(
    'kwargs',
    [
        dict(loss='bcewithlogits', num_negs_per_pos=2, optimizer_kwargs=dict(eps=1e-4)),
        dict(loss='crossentropy', inverse=True, optimizer='adagrad', **LCWA),
        dict(
            model='ConvE',
            model_kwargs=CONVE,
            loss='nssa',
            optimizer='sgd',
            negative_sampler_kwargs=dict(filtered=True),
        ),
    ],
    ids=['sampled', 'rows', 'filtered-batchnorm'],
)
def test_a_candidate_is_the_derivative_at_weight_0(tmp_path: Path, kwargs: dict[str, Any]) -> None:
    run = trained(tmp_path / 'run', **kwargs)
    new, n = candidates_of(run, 5), run.training.num_triples
    gradient = in_double(run, new)
    to = torch.zeros(3, n + 5, dtype=torch.float64)
    to[0, n:] = torch.linspace(-0.5, 1, 5)
    to[1, n], to[2, n + 4] = 1, 1
    total = check_derivative(gradient, run, 'softmax', to)
    alone = check_derivative(in_double(run), run, 'softmax', to[:0, :n])
    torch.testing.assert_close(total[:, :n], alone)  # the training that happened is the same


def test_adding_a_candidate_with_weight_1_is_training_with_it(tmp_path: Path) -> None:
    "Under LCWA PyKEEN's own training with the triple has the same batches, if its pair is known."
    kwargs = dict(loss='bcewithlogits', **LCWA)
    run = trained(tmp_path / 'run', **kwargs)
    new = candidates_of(run, 2)[:1]
    gradient, data = in_double(run, new), Nations()
    more = data.training.clone_and_exchange_triples(torch.cat([data.training.mapped_triples, new]))
    with_it = train(
        EagerDataset(more, data.testing, data.validation),
        'DistMult',
        **dict(model_kwargs=D, epochs=2, batch_size=512, lr=0.01, progress=False) | kwargs,
        out=tmp_path / 'with',
    )
    w = gradient.present(torch.float64)
    w[-1] = 1
    weighted_training(gradient, w, lambda n: None)
    for name, x in with_it.state(-1).items():
        torch.testing.assert_close(
            moment_of(gradient.loop).weights[name].float(), x, rtol=1e-4, atol=1e-5
        )


def test_a_result_names_candidates(run: Run, tmp_path: Path) -> None:
    new, test = candidates_of(run, 8), run.testing.mapped_triples[:2]
    ask = dict(test_objective='softmax', k=3, candidates=new, progress=False)
    found = replay(run, test, out=tmp_path / 'out', check=6, **ask)
    assert found.facts['candidates'] == 8 and 'training_triples' not in found.facts
    assert 'training_index' not in found.frame and set(found.frame['candidate_index']) <= {
        *range(8)
    }
    assert found.facts['added']['correlation'] > 0.9 and 'dropped' not in found.facts
    signs = [t['predicted'][0] < 0 for t in found.facts['added']['triples']]
    labels = [t['triple'] for t in found.facts['added']['triples']]
    up = found.proponents[found.proponents['test_index'] == 0]
    first = up[['head', 'relation', 'tail']].values.tolist()[0]
    assert first not in labels or signs[labels.index(first)]  # a proponent lowers the loss
    again = replay(run, test, out=tmp_path / 'out', check=6, **ask)
    assert again.frame.equals(found.frame)
    for text in (repr(found), found._repr_html_()):
        assert 'adding each of 8 candidates, which are not in training' in text
        assert '6 candidates were really added' in text
    both = replay([run, run], test, check=0, **ask)
    assert both.frame['candidate_index'].tolist() == found.frame['candidate_index'].tolist()
    assert (both.frame['spread'] == 0).all() and (both.frame['agreement'] == 1).all()
    with pytest.raises(ValueError, match='is a training triple already'):
        replay(run, test, candidates=run.training.mapped_triples[:1], progress=False)
    with pytest.raises(ValueError, match="unknown entity 'atlantis'"):
        replay(run, test, candidates=[('atlantis', 'embassy', 'usa')], progress=False)
