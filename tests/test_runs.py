"""Runs: what is kept, what comes back, what is refused."""

import gc
import json
import logging
import random
import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from pykeen.checkpoints import (
    BestCheckpointSchedule,
    EveryCheckpointSchedule,
    UnionCheckpointSchedule,
)
from pykeen.checkpoints.base import load_state_torch
from pykeen.datasets import Nations
from pykeen.datasets.nations import NationsLiteral
from pykeen.evaluation import RankBasedEvaluator
from pykeen.losses import BCEWithLogitsLoss
from pykeen.models import DistMult, ERModel, FixedModel, LiteralModel, model_resolver
from pykeen.models.inductive import InductiveERModel
from pykeen.pipeline import pipeline
from pykeen.stoppers.early_stopping import EarlyStoppingLogic
from pykeen.triples import LCWAInstances, TriplesFactory
from pykeen.utils import set_random_seed

from tracin_nb.runs import loop as looping
from tracin_nb.runs import models as making
from tracin_nb.runs import run as opening
from tracin_nb.runs import training
from tracin_nb.runs.keeping import file_facts, read_state
from tracin_nb.runs.loop import KeepCheckpoints, build_loop, why_stop
from tracin_nb.runs.models import build_model, state_fingerprint
from tracin_nb.runs.run import Checkpoint, Run, as_run
from tracin_nb.runs.settings import RunError, kept_epochs
from tracin_nb.runs.training import train

logging.getLogger('pykeen').setLevel(logging.ERROR)
pytestmark = pytest.mark.filterwarnings('ignore')

CONVE = dict(
    model='ConvE',
    model_kwargs=dict(embedding_dim=16, output_channels=4, embedding_height=4, embedding_width=4),
    loss='bcewithlogits',
)
SMALL = dict(model='DistMult', model_kwargs=dict(embedding_dim=4), epochs=1, progress=False)


@pytest.fixture(scope='module')
def nations():
    return Nations()


@pytest.fixture(scope='module')
def kept(tmp_path_factory):
    return train(
        'nations',
        **{**SMALL, 'epochs': 3},
        keep_every=1,
        out=tmp_path_factory.mktemp('kept') / 'run',
    ).folder


@pytest.fixture
def folder(kept, tmp_path):
    return shutil.copytree(kept, tmp_path / 'run')


@pytest.fixture
def built(monkeypatch):
    """The models that training and loading build, in their order."""
    models = []
    for module, name in ((training, 'build_model'), (opening, 'rebuild_model')):
        monkeypatch.setattr(
            module, name, lambda *args: models.append(build_model(*args)) or models[-1]
        )
    return models


# what is kept

EXTRA = dict(
    rgcn=dict(embedding_dim=8),
    compgcn=dict(embedding_dim=8),
    nodepiece=dict(embedding_dim=8),
    conve=CONVE['model_kwargs'],
    convkb=dict(embedding_dim=8, num_filters=2),
    ntn=dict(embedding_dim=4, num_slices=2),
    tucker=dict(embedding_dim=4),
    transr=dict(embedding_dim=4, relation_dim=4),
    boxe=dict(embedding_dim=4),
    cooccurrencefiltered=dict(embedding_dim=4),
    autosf=dict(embedding_dim=4),
    cp=dict(embedding_dim=4),
    rescal=dict(embedding_dim=4),
    se=dict(embedding_dim=4),
)
REFUSED = {
    n
    for n, cls in model_resolver.lookup_dict.items()
    if issubclass(cls, (LiteralModel, InductiveERModel, FixedModel))
}
REBUILT = sorted({*model_resolver.lookup_dict, 'rotatel1'} - REFUSED)


def test_how_many_models():
    assert (len(REBUILT), len(REFUSED)) == (35, 6)


@pytest.mark.parametrize('name', REBUILT)
def test_every_model_comes_back(name, tmp_path, built, nations):
    run = train(
        'nations',
        name,
        model_kwargs=EXTRA.get(name, dict(embedding_dim=8)),
        inverse=name in ('compgcn', 'nodepiece'),
        out=tmp_path / 'run',
        epochs=1,
        batch_size=512,
        seed=3,
        progress=False,
    )
    trained = built[0].eval()
    torch.manual_seed(99)  # other random states than in training
    rebuilt = run.model(0, 'cpu')
    assert (
        type(rebuilt) is model_resolver.lookup(name)
        and rebuilt is not trained
        and not rebuilt.training
    )
    triples = nations.testing.mapped_triples
    with torch.no_grad():
        assert torch.equal(rebuilt.score_hrt(triples), trained.score_hrt(triples))
    assert (
        run.fingerprint(0)
        == state_fingerprint(trained.state_dict())
        == state_fingerprint(rebuilt.state_dict())
    )
    assert {n: p.requires_grad for n, p in rebuilt.named_parameters()} == {
        n: p.requires_grad for n, p in trained.named_parameters()
    }
    assert (
        type(run.loss) is type(trained.loss) and vars(run.loss).keys() == vars(trained.loss).keys()
    )


def test_random_anchors_come_back(tmp_path, built, nations):
    kwargs = dict(
        embedding_dim=4,
        tokenizers=['anchor', 'relation'],
        num_tokens=[2, 2],
        tokenizers_kwargs=[
            dict(selection='random', selection_kwargs=dict(num_anchors=3), searcher='csgraph'),
            {},
        ],
    )
    run = train(
        'nations',
        'NodePiece',
        model_kwargs=kwargs,
        inverse=True,
        out=tmp_path / 'run',
        epochs=1,
        progress=False,
    )
    torch.manual_seed(99)
    random.seed(99)
    np.random.seed(99)
    with torch.no_grad():
        a, b = (
            m.eval().score_hrt(nations.training.mapped_triples)
            for m in (run.model(0, 'cpu'), built[0])
        )
    assert torch.equal(a, b)


def test_another_function_of_the_same_weights_is_noticed(tmp_path):
    run = train('nations', **{**SMALL, 'model': 'TransE'}, out=tmp_path / 'run')
    facts = json.loads((run.folder / 'run.json').read_text())
    facts['settings']['model_kwargs']['scoring_fct_norm'] = 2
    (run.folder / 'run.json').write_text(json.dumps(facts))
    with pytest.raises(RunError, match='differs from the trained one'):
        Run.open(run.folder).model(0, 'cpu')


@pytest.mark.parametrize(
    'scheduler, kwargs, rates',
    [
        (None, None, [0.1] * 6),
        ('exponential', dict(gamma=0.5), [0.1 * 0.5**e for e in range(6)]),
        ('step', dict(step_size=2, gamma=0.1), [0.1, 0.1, 0.01, 0.01, 0.001, 0.001]),
        ('multistep', dict(milestones=[1, 4], gamma=0.1), [0.1, 0.01, 0.01, 0.01, 0.001, 0.001]),
        (
            'linear',
            dict(start_factor=0.5, end_factor=1.0, total_iters=2),
            [0.05, 0.075, 0.1, 0.1, 0.1, 0.1],
        ),
        ('cosineannealing', dict(T_max=6), [0.05 * (1 + np.cos(np.pi * e / 6)) for e in range(6)]),
        ('onecycle', dict(max_lr=1.0, total_steps=7), None),
    ],
)
def test_learning_rates(scheduler, kwargs, rates, tmp_path, monkeypatch):
    used, post = [], KeepCheckpoints.post_batch
    monkeypatch.setattr(
        KeepCheckpoints,
        'post_batch',
        lambda self, epoch, batch, **kw: (
            used.append((epoch, self.optimizer.param_groups[0]['lr'])),
            post(self, epoch, batch, **kw),
        ),
    )
    run = train(
        'nations',
        **{**SMALL, 'epochs': 6},
        keep_every=1,
        out=tmp_path / 'run',
        lr=0.1,
        lr_scheduler=scheduler,
        lr_scheduler_kwargs=kwargs,
    )
    got = [c.learning_rate for c in run.checkpoints]
    assert got == [dict(used)[e] for e in range(1, 7)]  # what the optimiser held while it stepped
    if rates:
        assert got == pytest.approx(rates, rel=1e-12)


def test_schedule_steps_and_last_epoch(tmp_path, built):
    run = train(
        'nations', **{**SMALL, 'epochs': 5}, keep_every=2, batch_size=300, out=tmp_path / 'run'
    )
    assert [(c.epoch, c.step) for c in run.checkpoints] == [
        (2, 2 * 6),
        (4, 4 * 6),
        (5, 5 * 6),
    ]  # 1592 / 300, rounded up
    assert run.fingerprint(-1) == state_fingerprint(built[0].state_dict())
    union = UnionCheckpointSchedule(
        [EveryCheckpointSchedule(4), 'explicit'], [None, dict(steps=[3])]
    )
    assert kept_epochs(union, 9) == [3, 4, 8, 9]


def test_buffers_differ_and_come_back(tmp_path):
    run = train(
        'nations',
        **CONVE,
        out=tmp_path / 'run',
        epochs=2,
        keep_every=1,
        label_smoothing=0.1,
        progress=False,
    )
    a, b = (
        {
            n: t.clone()
            for n, t in run.model(k, 'cpu').named_buffers()
            if 'running' in n or 'num_batches' in n
        }
        for k in (0, 1)
    )
    assert len(a) == 9
    for n in a:
        assert not torch.equal(a[n], b[n])
        assert torch.equal(b[n], load_state_torch(run.checkpoints[1].path)['state_dict'][n])


@pytest.mark.parametrize(
    'name, key', [('adam', 'exp_avg_sq'), ('adamw', 'exp_avg_sq'), ('sgd', None), ('adagrad', None)]
)
def test_moments(name, key, tmp_path, monkeypatch):
    loops = []
    monkeypatch.setattr(
        training, 'build_loop', lambda *args: loops.append(build_loop(*args)) or loops[-1]
    )
    run = train('nations', **SMALL, optimizer=name, lr=0.01, out=tmp_path / 'run')
    assert (run.moments(0) is None) == (key is None)
    if key is None:
        return
    loop, moments = loops[0], run.moments(0)
    assert set(moments) == {n for n, _ in loop.model.named_parameters()}
    for n, p in loop.model.named_parameters():
        assert torch.equal(moments[n], loop.optimizer.state[p][key]) and moments[n].abs().sum() > 0
        assert run.optimizer_state(0)[n]['step'].item() == run.checkpoints[0].step
    assert (
        run.optimizer[0] == name
        and run.optimizer[1]['betas'] == [0.9, 0.999]
        and run.optimizer[1]['lr'] == 0.01
    )


def test_everything_is_kept(tmp_path, nations):
    run = train(
        nations,
        **SMALL,
        out=tmp_path / 'run',
        loss='nssa',
        loss_kwargs=dict(margin=4.0),
        negative_sampler='bernoulli',
        num_negs_per_pos=3,
        negative_sampler_kwargs=dict(filtered=True),
        batch_size=200,
        seed=7,
    )
    again = Run.open(run.folder)
    assert (again.loop, again.seed, again.loss.margin, again.label_smoothing) == (
        'slcwa',
        7,
        4.0,
        0.0,
    )
    sampler = again.sampler()
    assert (type(sampler).__name__, sampler.num_negs_per_pos) == (
        'BernoulliNegativeSampler',
        3,
    ) and sampler.filterer is not None
    for name in ('training', 'validation', 'testing'):
        a, b = getattr(again, name), getattr(nations, name)
        assert torch.equal(a.mapped_triples, b.mapped_triples)
        assert (a.entity_to_id, a.relation_to_id) == (b.entity_to_id, b.relation_to_id)
    assert again.settings == run.settings and again.settings['batch_size'] == 200


def test_lcwa_and_inverse(tmp_path):
    run = Run.open(
        train(
            'nations',
            **CONVE,
            loop='lcwa',
            inverse=True,
            label_smoothing=0.1,
            epochs=1,
            batch_size=64,
            progress=False,
            out=tmp_path / 'run',
        ).folder
    )
    assert (
        run.loop,
        run.label_smoothing,
        run.training.create_inverse_triples,
        run.training.num_relations,
    ) == ('lcwa', 0.1, True, 110)
    assert not run.testing.create_inverse_triples
    with pytest.raises(RunError, match='no negative sampler'):
        run.sampler()


def test_files_hold_no_pickle_and_pykeen_reads_them(kept):
    for path in kept.glob('*.pt'):
        torch.load(path, weights_only=True)
    state = load_state_torch(kept / 'checkpoint-0002.pt')
    assert state['version'] == 1 and set(state) == {'state_dict', 'version'}
    assert not list(kept.glob('.*')) and not list(kept.glob('*.pkl'))


def test_random_states_are_left_alone(kept, tmp_path):
    def draw():
        return torch.rand(2).tolist(), np.random.rand(), random.random()

    set_random_seed(11)
    want = draw()
    for what in (
        lambda: Run.open(kept).model(1, 'cpu'),
        lambda: train('nations', **SMALL, out=tmp_path / 'run'),
    ):
        set_random_seed(11)
        what()
        assert draw() == want


# resuming


class Stop(Exception):
    pass


def interrupted(monkeypatch, epoch, **options):
    post = KeepCheckpoints.post_batch

    def stopping(self, epoch, batch, **kwargs):
        post(self, epoch, batch, **kwargs)
        if epoch == stop:
            raise Stop

    stop = epoch
    with monkeypatch.context() as m:
        m.setattr(KeepCheckpoints, 'post_batch', stopping)
        with pytest.raises(Stop):
            train('nations', **options)


@pytest.mark.parametrize(
    'options',
    [
        dict(
            **CONVE,
            label_smoothing=0.1,
            lr_scheduler='exponential',
            lr_scheduler_kwargs=dict(gamma=0.7),
        ),
        dict(
            **CONVE,
            loop='lcwa',
            batch_size=64,
            lr_scheduler='cyclic',
            lr_scheduler_kwargs=dict(
                base_lr=1e-3, max_lr=1e-2, cycle_momentum=False, step_size_up=2
            ),
        ),
        dict(
            model='DistMult',
            optimizer='sgd',
            lr=0.1,
            negative_sampler='bernoulli',
            num_negs_per_pos=2,
        ),
        dict(
            model='TransE',
            optimizer='sgd',
            lr=0.1,
            optimizer_kwargs=dict(momentum=0.9),
            lr_scheduler='onecycle',
            lr_scheduler_kwargs=dict(max_lr=0.1, total_steps=10),
        ),
        dict(
            model='RotatE',
            optimizer='adagrad',
            negative_sampler='pseudotyped',
            negative_sampler_kwargs=dict(filtered=True),
        ),
        dict(model='RGCN', model_kwargs=dict(embedding_dim=8)),
        dict(model='CompGCN', model_kwargs=dict(embedding_dim=8), inverse=True, optimizer='adamw'),
    ],
    ids=lambda o: o['model'] + '-' + o.get('loop', 'slcwa'),
)
def test_resumed_equals_uninterrupted(options, tmp_path, monkeypatch):
    options = dict(**options, epochs=4, keep_every=1, progress=False)
    whole = train('nations', **options, out=tmp_path / 'whole')
    interrupted(monkeypatch, 3, **options, out=tmp_path / 'part')
    assert [c.epoch for c in Run.open(tmp_path / 'part').checkpoints] == [1, 2]
    part = train('nations', **options, out=tmp_path / 'part', resume=True)
    assert [part.fingerprint(k) for k in range(4)] == [whole.fingerprint(k) for k in range(4)]
    assert part.checkpoints == [
        Checkpoint(**{**vars(c), 'path': part.folder / c.path.name}) for c in whole.checkpoints
    ]
    losses = [json.loads((r.folder / 'run.json').read_text())['losses'] for r in (part, whole)]
    assert losses[0] == losses[1] and len(losses[0]) == 4


def test_resume_before_the_first_checkpoint_and_after_the_last(tmp_path, monkeypatch):
    options = dict(**{**SMALL, 'epochs': 4}, keep_every=2, out=tmp_path / 'run')
    interrupted(monkeypatch, 2, **options)
    assert [p.name for p in (tmp_path / 'run').iterdir()] == [
        'run.json'
    ]  # what the run is, before its first step
    with pytest.raises(RunError, match='interrupted before the first'):
        Run.open(tmp_path / 'run')
    run = train('nations', **options, resume=True)
    assert [c.epoch for c in run.checkpoints] == [2, 4]
    before = [file_facts(p) for p in sorted(run.folder.iterdir())]
    assert train('nations', **options, resume=True).fingerprint(1) == run.fingerprint(1)
    assert [file_facts(p) for p in sorted(run.folder.iterdir())] == before


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(seed=1), r'seed \(kept 0, now 1\)'),
        (dict(epochs=5), 'epochs'),
        (dict(lr=0.5), 'optimizer_kwargs'),
        (dict(model='TransE'), 'model '),
        (dict(keep_every=3), 'keep '),
        (dict(label_smoothing=0.1, loss='bcewithlogits'), 'loss '),
    ],
)
def test_resume_needs_the_same_settings(change, message, folder):
    with pytest.raises(RunError, match=message):
        train(
            'nations', **{**SMALL, 'epochs': 3, 'keep_every': 1, **change}, out=folder, resume=True
        )


def test_resume_needs_the_same_triples(folder):
    with pytest.raises(RunError, match='training triples'):
        train('kinships', **{**SMALL, 'epochs': 3}, keep_every=1, out=folder, resume=True)


def test_nothing_is_written_over(folder, tmp_path):
    with pytest.raises(RunError, match='holds a run already'):
        train('nations', **SMALL, out=folder)
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full' / 'thesis.tex').write_text('x')
    with pytest.raises(RunError, match='not empty'):
        train('nations', **SMALL, out=tmp_path / 'full')
    with pytest.raises(RunError, match='is a file'):
        train('nations', **SMALL, out=tmp_path / 'full' / 'thesis.tex')


# mixed precision and early stopping

EARLY = dict(
    epochs=12, patience=2, evaluate_every=1, stop_delta=0.9, stop_metric='mrr', keep_every=5
)


def facts_of(run):
    return json.loads((run.folder / 'run.json').read_text())


@pytest.mark.parametrize('loop', ['slcwa', 'lcwa'])
def test_bf16_is_computed_in_training_only(loop, tmp_path, built, monkeypatch):
    seen, build = [], training.build_model

    def hooked(*args):
        model = build(*args)
        for module in model.modules():
            if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
                module.register_forward_hook(lambda m, x, y: seen.append((m.training, y.dtype)))
        return model

    for module in (training, making):
        monkeypatch.setattr(module, 'build_model', hooked)
    options = dict(
        **CONVE, loop=loop, batch_size=64, epochs=4, keep_every=2, lr=0.01, progress=False
    )
    full = train('nations', **options, out=tmp_path / 'full')
    assert {t for _, t in seen} == {torch.float32}
    seen.clear()
    low = train(
        'nations', **options, precision='bf16', patience=1, evaluate_every=1, out=tmp_path / 'low'
    )
    assert {t for training, t in seen if training} == {torch.bfloat16}
    assert {t for training, t in seen[2 * 2 :] if not training} == {
        torch.float32
    }  # after the two probes of the beginning
    weights = [dict(r.model(0, 'cpu').named_parameters()) for r in (full, low)]
    for n, p in weights[0].items():
        assert weights[1][n].dtype == torch.float32 and not torch.equal(p, weights[1][n])
    assert facts_of(low)['losses'][:2] == pytest.approx(facts_of(full)['losses'][:2], rel=0.02)
    assert (full.settings['precision'], low.settings['precision']) == ('fp32', 'bf16')
    with pytest.raises(RunError, match=r"precision \(kept 'bf16', now 'fp32'\)"):
        train('nations', **options, patience=1, evaluate_every=1, out=tmp_path / 'low', resume=True)


def test_bf16_leaves_the_loss_in_float32(tmp_path, monkeypatch):
    seen, process = [], BCEWithLogitsLoss.process_slcwa_scores
    monkeypatch.setattr(
        BCEWithLogitsLoss,
        'process_slcwa_scores',
        lambda self, *args, **kwargs: (
            seen.append((kwargs['positive_scores'].dtype, torch.is_autocast_enabled('cpu')))
            or process(self, *args, **kwargs)
        ),
    )
    train(
        'nations',
        'ERMLP',
        model_kwargs=dict(embedding_dim=4),
        loss='bcewithlogits',
        precision='bf16',
        epochs=1,
        progress=False,
        out=tmp_path / 'run',
    )
    assert set(seen) == {(torch.float32, False)}


@pytest.mark.parametrize(
    'kept, options',
    [
        (
            [1, 2],
            dict(
                **CONVE,
                precision='bf16',
                label_smoothing=0.1,
                lr_scheduler='exponential',
                lr_scheduler_kwargs=dict(gamma=0.7),
            ),
        ),
        (
            [1],
            dict(
                model='RGCN', model_kwargs=dict(embedding_dim=8), precision='bf16', batch_size=800
            ),
        ),
        ([], dict(model='DistMult', model_kwargs=dict(embedding_dim=8), optimizer='sgd', lr=0.1)),
    ],
    ids=['ConvE', 'RGCN', 'DistMult'],
)
def test_resumed_early_stopping_equals_uninterrupted(kept, options, tmp_path, monkeypatch):
    options = dict(**options, **EARLY | dict(keep_every=kept or [5]), progress=False)
    whole = train('nations', **options, out=tmp_path / 'whole')
    assert whole.stopped['epoch'] == whole.checkpoints[-1].epoch == 3
    interrupted(monkeypatch, 3, **options, out=tmp_path / 'part')
    if kept:
        part = Run.open(tmp_path / 'part')
        assert (
            [c.epoch for c in part.checkpoints] == kept
            and part.stopped is None
            and 'interrupted' in repr(part)
        )
    part = train('nations', **options, out=tmp_path / 'part', resume=True)
    old, new = ({k: v for k, v in facts_of(r).items() if k != 'checkpoints'} for r in (whole, part))
    assert new == old and len(new['evaluations']) == 3
    rows = [
        [{**r, 'optimizer': 0, 'model': 0, 'seconds': 0} for r in facts_of(run)['checkpoints']]
        for run in (whole, part)
    ]
    assert rows[0] == rows[1]  # fingerprints, scores, rates and steps


def test_the_last_checkpoint_is_of_its_epoch(tmp_path):
    """Evaluating changes no training; the weights after the last epoch are kept, not those of
    the best one."""
    options = dict(**CONVE, lr=0.01, progress=False)
    run = train('nations', **options, **EARLY, out=tmp_path / 'run')
    plain = train('nations', **options, epochs=3, keep_every=1, out=tmp_path / 'plain')
    assert [c.epoch for c in run.checkpoints] == [3] and run.fingerprint(0) == plain.fingerprint(2)
    rows = facts_of(run)['evaluations']
    assert [e for e, _ in rows] == [1, 2, 3] and run.stopped['best_epoch'] == 1
    for k, (_, value) in enumerate(rows):
        metrics = RankBasedEvaluator().evaluate(
            plain.model(k, 'cpu'),
            plain.validation.mapped_triples,
            additional_filter_triples=plain.training.mapped_triples,
            batch_size=32,
            use_tqdm=False,
        )
        assert value == metrics.get_metric('mrr')
    assert f'not better than {rows[0][1]:.4g} at epoch 1 in 2 evaluations' in repr(run)


def test_a_stopped_run_stays_as_it_is(tmp_path):
    options = dict(**{**SMALL, **EARLY}, out=tmp_path / 'run')
    run = train('nations', **options)
    before = [file_facts(p) for p in sorted(run.folder.iterdir())]
    again = train('nations', **options, resume=True)
    assert [
        file_facts(p) for p in sorted(run.folder.iterdir())
    ] == before and again.checkpoints == run.checkpoints
    with pytest.raises(RunError, match='early_stopping'):
        train('nations', **{**options, 'patience': 3}, resume=True)


def test_patience_that_lasts_trains_to_the_end(tmp_path):
    run = train(
        'nations',
        **{**SMALL, **EARLY, 'epochs': 4, 'stop_delta': 0.0, 'lr': 0.05},
        out=tmp_path / 'run',
    )
    assert (
        run.stopped is None
        and [c.epoch for c in run.checkpoints] == [4]
        and 'stopped' not in repr(run)
    )
    assert [e for e, _ in facts_of(run)['evaluations']] == [1, 2, 3]


def test_why_stop_decides_like_pykeens_stopper():
    rng = np.random.default_rng(0)
    for metric, larger in (('hits_at_10', True), ('mean_rank', False)):
        asked = dict(patience=3, stop_delta=0.05, stop_metric=metric)
        for values in rng.uniform(1, 1.3, (50, 12)).tolist():
            logic = EarlyStoppingLogic(3, 0.05, larger)
            want = next((n for n, v in enumerate(values, 1) if logic.report_result(v, n)), None)
            got = next(
                (n for n in range(1, 13) if why_stop(asked, list(enumerate(values[:n], 1)))), None
            )
            assert got == want


def test_early_stopping_needs_validation_triples(tmp_path):
    (tmp_path / 'graph').mkdir()
    (tmp_path / 'graph' / 'train.txt').write_text('a\tr\tb\nb\tr\tc\n')
    with pytest.raises(RunError, match='validation triples, and the data set has none'):
        train(tmp_path / 'graph', **{**SMALL, **EARLY}, out=tmp_path / 'run')


def test_a_run_from_before_these_options_opens_and_resumes(folder):
    facts = json.loads((folder / 'run.json').read_text())
    for name in ('evaluations', 'stopped'):
        del facts[name]
    for name in ('precision', 'early_stopping'):
        del facts['settings'][name]
    (folder / 'run.json').write_text(json.dumps(facts))
    assert len(Run.open(folder).checkpoints) == 3
    edit(lambda d: d.update(checkpoints=d['checkpoints'][:2], losses=d['losses'][:2]))(folder)
    assert (
        len(
            train(
                'nations', **{**SMALL, 'epochs': 3}, keep_every=1, out=folder, resume=True
            ).checkpoints
        )
        == 3
    )


# options that are refused before training


class Unknown:
    pass


BAD = [
    (
        dict(model='Conve3'),
        "model='Conve3' is not one that PyKEEN can find by name; it knows: autosf",
    ),
    (dict(model=Unknown), "model='Unknown'"),
    (dict(loss='hinge2'), 'loss='),
    (dict(loss=BCEWithLogitsLoss()), 'loss='),
    (dict(optimizer='adamant'), 'optimizer='),
    (dict(optimizer='lbfgs'), 'closure'),
    (dict(lr_scheduler='cosine9'), 'lr_scheduler='),
    (dict(negative_sampler='best'), 'negative_sampler='),
    (dict(loop='kvsall'), "'slcwa' or 'lcwa'"),
    (dict(loop='lcwa', num_negs_per_pos=2), 'no num_negs_per_pos'),
    (dict(loop='lcwa', negative_sampler='basic'), 'no negative_sampler'),
    (dict(epochs=0), 'epochs'),
    (dict(epochs=True), 'epochs'),
    (dict(epochs='5'), 'epochs'),
    (dict(keep_every=0), 'keep_every'),
    (dict(keep_every='2'), 'keep_every'),
    (dict(keep_every=[2]), 'keep_every'),
    (dict(keep_every=1.5), 'keep_every'),
    (dict(batch_size=0), 'batch_size'),
    (dict(label_smoothing=1.0), 'label_smoothing'),
    (dict(label_smoothing=-0.1), 'label_smoothing'),
    (dict(lr=float('nan')), 'lr must'),
    (dict(lr=-1.0), 'lr must'),
    (dict(lr=1.0, optimizer_kwargs=dict(lr=1.0)), 'twice'),
    (dict(seed=-1), 'seed'),
    (dict(seed=2**32), 'seed'),
    (dict(num_negs_per_pos=0), 'num_negs_per_pos'),
    (
        dict(model_kwargs=dict(entity_initializer=torch.nn.init.ones_)),
        r"model_kwargs\['entity_initializer'\] is a function",
    ),
    (dict(model_kwargs=dict(a=torch.ones(2))), 'is a Tensor'),
    (dict(model_kwargs=dict(a=[torch.nn.ReLU()])), r"\['a'\]\[0\] is a ReLU"),
    (dict(model_kwargs={1: 2}), 'model_kwargs is a dict'),
    (dict(model_kwargs=dict(loss='mse')), 'has parameters for them'),
    (dict(model_kwargs=dict(embeding_dim=4)), 'embeding_dim'),
    (dict(model='NodePiece', model_kwargs={}), 'inverse'),
    (dict(model='DistMultLiteral'), 'Run.from_model'),
    (dict(model='InductiveNodePiece'), 'Run.from_model'),
    (dict(model='fixed'), 'no parameters'),
    (dict(loss='nssa', loss_kwargs=dict(edge=1)), 'edge'),
    (dict(optimizer_kwargs=dict(beta=1)), 'beta'),
    (dict(lr_scheduler='reducelronplateau'), 'metric'),
    (dict(lr_scheduler='lambda', lr_scheduler_kwargs=dict(lr_lambda=lambda e: 1)), 'lr_lambda'),
    (dict(lr_scheduler='step'), 'step_size'),
    (dict(lr_scheduler_kwargs=dict(gamma=0.1)), 'without an lr_scheduler'),
    (dict(device='cuda:99'), 'CUDA devices'),
    (dict(device='abacus'), 'not a device'),
    (dict(training_kwargs=dict(num_epochs=3)), 'not num_epochs'),
    (dict(loss='marginranking', label_smoothing=0.1), 'label smoothing'),
    (dict(**CONVE, batch_size=5000), 'single training batch'),
    (dict(lr=1e30, optimizer='sgd', loss='mse', epochs=9), 'non-finite'),
    (dict(precision='fp16'), 'gradient scaler'),
    (dict(precision='int8'), "'fp32' or 'bf16'"),
    (dict(precision=16), "'fp32' or 'bf16'"),
    (dict(precision='bf16', model='TransE'), 'changes nothing for TransE'),
    (dict(precision='bf16', model='DistMult', loop='lcwa'), 'changes nothing for DistMult'),
    (dict(patience=0), 'patience'),
    (dict(patience=2.5), 'patience'),
    (dict(evaluate_every=2), 'without patience'),
    (dict(stop_delta=0.1), 'stop_delta without'),
    (dict(stop_metric='mrr'), 'stop_metric without'),
    (dict(patience=2, epochs=30), 'before epoch 30'),
    (dict(patience=1, evaluate_every=0, epochs=9), 'evaluate_every'),
    (dict(patience=1, stop_delta=1.0, epochs=99), 'stop_delta'),
    (dict(patience=1, stop_delta='x'), 'stop_delta'),
    (
        dict(patience=1, epochs=99, stop_metric='accuracy2'),
        "stop_metric='accuracy2' .* it knows: adjusted",
    ),
    (dict(patience=1, epochs=99, stop_metric=3), 'stop_metric=3'),
    (dict(patience=1, epochs=99, stop_metric='hits_at_0'), 'stop_metric'),
]


@pytest.mark.parametrize('options, message', BAD, ids=lambda x: str(x)[:40])
def test_bad_options(options, message, tmp_path):
    with pytest.raises(RunError, match=message):
        train('nations', **{**SMALL, **options}, out=tmp_path / 'run')
    assert not [p for p in (tmp_path / 'run').glob('*') if not p.name.startswith('.')]


def test_best_schedule_is_refused(tmp_path):
    schedule = object.__new__(BestCheckpointSchedule)
    with pytest.raises(RunError, match='best-metric'):
        train('nations', **SMALL, keep_every=schedule, out=tmp_path / 'run')


# damaged and foreign folders


def edit(change):
    """A damage to run.json."""

    def damage(folder):
        facts = json.loads((folder / 'run.json').read_text())
        facts = change(facts) or facts
        (folder / 'run.json').write_text(json.dumps(facts))

    return damage


def exchange(name, write, part='model'):
    """A file that was written anew, and run.json along with it: the checksum agrees."""

    def damage(folder):
        write(folder / name)
        facts = json.loads((folder / 'run.json').read_text())
        new = file_facts(folder / name)
        for owner in [*facts['checkpoints'], facts['files']]:
            for key, value in owner.items():
                if isinstance(value, dict) and value.get('file') == name:
                    owner[key] = new
        (folder / 'run.json').write_text(json.dumps(facts))

    return damage


def flip(name):
    def damage(folder):
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)

    return damage


def cut(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-20])


def remove(name):
    return lambda folder: (folder / name).unlink()


def state(change):
    def write(path):
        content = torch.load(path, weights_only=True)
        change(content['state_dict'])
        torch.save(content, path)

    return exchange('checkpoint-0001.pt', write)


class Evil:
    def __reduce__(self):
        return Path.touch, (Path('evil-ran'),)


TABLE, RELATIONS = (
    'entity_representations.0._embeddings.weight',
    'relation_representations.0._embeddings.weight',
)
DAMAGED = {
    'no folder': (lambda f: shutil.rmtree(f), 'is not a folder'),
    'no run.json': (remove('run.json'), 'run.json is missing'),
    'run.json cut': (cut('run.json'), 'not JSON, or truncated'),
    'run.json a list': (edit(lambda d: [1]), 'not a dictionary'),
    'no settings': (edit(lambda d: d.pop('settings') and None), "lacks 'settings'"),
    'no loss': (edit(lambda d: d['settings'].pop('loss') and None), "settings lacks 'loss'"),
    'seed a string': (edit(lambda d: d['settings'].update(seed='a')), "'seed'"),
    'foreign format': (edit(lambda d: d.update(format='other')), "'other'"),
    'later version': (edit(lambda d: d.update(version=2)), 'version 2'),
    'unknown loop': (edit(lambda d: d['settings'].update(loop='x')), "loop 'x'"),
    'unknown loss': (edit(lambda d: d['settings'].update(loss='x')), "loss='x'"),
    'unknown model': (edit(lambda d: d['settings'].update(model='x')), "model 'x'"),
    'other dimension': (
        edit(lambda d: d['settings'].update(model_kwargs=dict(embedding_dim=5))),
        'has shape',
    ),
    'no checkpoints': (edit(lambda d: d.update(checkpoints=[])), 'lists no checkpoint'),
    'checkpoint a number': (
        edit(lambda d: d.update(checkpoints=[3])),
        r'checkpoints\[0\] is not a dictionary',
    ),
    'no rate': (
        edit(lambda d: d['checkpoints'][1].pop('learning_rate') and None),
        r"checkpoints\[1\] lacks 'learning_rate'",
    ),
    'rate a string': (
        edit(lambda d: d['checkpoints'][1].update(learning_rate='1')),
        'learning_rate',
    ),
    'rate NaN': (
        edit(lambda d: d['checkpoints'][1].update(learning_rate=float('nan'))),
        'learning_rate',
    ),
    'rate negative': (
        edit(lambda d: d['checkpoints'][1].update(learning_rate=-1.0)),
        'learning_rate',
    ),
    'evaluations a number': (
        edit(lambda d: d.update(evaluations=[1])),
        'evaluations is not a list',
    ),
    'evaluations disordered': (
        edit(lambda d: d.update(evaluations=[[2, 0.5], [1, 0.5]])),
        'evaluations is not a list',
    ),
    'evaluations to come': (edit(lambda d: d.update(evaluations=[[9, 0.5]])), 'up to epoch 3'),
    'stop without a reason': (
        edit(lambda d: d.update(stopped=dict(epoch=3, best_epoch=1))),
        "stopped lacks 'why'",
    ),
    'stop elsewhere': (
        edit(lambda d: d.update(stopped=dict(epoch=2, best_epoch=1, why='x'))),
        'stopped at epoch 2, but the last checkpoint is of epoch 3',
    ),
    'unknown stopping': (
        edit(lambda d: d['settings'].update(early_stopping=3)),
        "'early_stopping'",
    ),
    'epochs disordered': (edit(lambda d: d['checkpoints'].reverse()), 'do not increase'),
    'no files': (edit(lambda d: d['files'].pop('triples') and None), 'files: triples'),
    'no checksum': (
        edit(lambda d: d['checkpoints'][0]['model'].pop('sha256') and None),
        "lacks 'sha256'",
    ),
    'path outside': (
        edit(lambda d: d['checkpoints'][0]['model'].update(file='../x.pt')),
        'outside',
    ),
    'other fingerprint': (edit(lambda d: d['dataset'].update(fingerprint='0')), 'fingerprint'),
    'checkpoint missing': (remove('checkpoint-0002.pt'), r'checkpoint-0002\.pt is missing'),
    'checkpoint cut': (cut('checkpoint-0003.pt'), r'checkpoint-0003\.pt is damaged'),
    'checkpoint flipped': (flip('checkpoint-0001.pt'), r'checkpoint-0001\.pt .*SHA-256'),
    'optimizer missing': (remove('checkpoint-0002.optimizer.pt'), 'optimizer.pt is missing'),
    'optimizer flipped': (flip('checkpoint-0001.optimizer.pt'), r'optimizer\.pt .*SHA-256'),
    'labels missing': (remove('entity_to_id.tsv'), 'entity_to_id.tsv is missing'),
    'labels flipped': (flip('relation_to_id.tsv'), 'relation_to_id.tsv .*SHA-256'),
    'labels no table': (
        exchange('entity_to_id.tsv', lambda p: p.write_text('abc\n')),
        'label<TAB>index',
    ),
    'labels not text': (
        exchange('entity_to_id.tsv', lambda p: p.write_bytes(b'\xff\t0\n')),
        'entity_to_id.tsv',
    ),
    'labels of others': (
        exchange(
            'entity_to_id.tsv', lambda p: p.write_text(''.join(f'{i}\t{i}\n' for i in range(14)))
        ),
        'fingerprint',
    ),
    'labels too few': (
        exchange('entity_to_id.tsv', lambda p: p.write_text('a\t0\n')),
        'does not fit the label maps',
    ),
    'triples missing': (remove('triples.safetensors'), 'triples.safetensors is missing'),
    'triples cut': (cut('triples.safetensors'), 'triples.safetensors is damaged'),
    'triples garbage': (
        exchange('triples.safetensors', lambda p: p.write_bytes(b'garbage' * 9)),
        'triples.safetensors cannot be read',
    ),
    'triples of no training': (
        exchange(
            'triples.safetensors',
            lambda p: safetensors.torch.save_file(
                dict(testing=torch.zeros(1, 3, dtype=torch.long)), p
            ),
        ),
        'no training triples',
    ),
    'triples of others': (
        exchange(
            'triples.safetensors',
            lambda p: safetensors.torch.save_file(
                dict(training=torch.zeros(1, 3, dtype=torch.long)), p
            ),
        ),
        'fingerprint',
    ),
    'other entity count': (
        state(lambda s: s.update({TABLE: torch.zeros(15, 4)})),
        r'14 entities.*shape \(15, 4\)',
    ),
    'missing key': (state(lambda s: s.__delitem__(RELATIONS)), 'is missing'),
    'unknown key': (state(lambda s: s.update(more=torch.ones(1))), "'more' is unknown"),
    'other dtype': (state(lambda s: s.update({TABLE: s[TABLE].double()})), 'torch.float64'),
    'other weights': (state(lambda s: s.update({TABLE: s[TABLE] + 1})), 'scores'),
    'bare number': (exchange('checkpoint-0001.pt', lambda p: torch.save(3, p)), 'holds a int'),
    'later checkpoint': (
        exchange('checkpoint-0001.pt', lambda p: torch.save(dict(state_dict={}, version=2), p)),
        'version 2',
    ),
    'a pickle': (
        exchange('checkpoint-0001.pt', lambda p: torch.save(dict(state_dict=Evil(), version=1), p)),
        'never done',
    ),
    'a pickled optimizer': (
        exchange('checkpoint-0001.optimizer.pt', lambda p: torch.save(Evil(), p)),
        'never done',
    ),
    'not a zip': (exchange('checkpoint-0001.pt', lambda p: p.write_bytes(b'x' * 99)), 'truncated'),
    'an empty file': (exchange('checkpoint-0001.pt', lambda p: p.write_bytes(b'')), 'truncated'),
}


@pytest.mark.parametrize('name', DAMAGED)
def test_damaged_folder(name, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    damage, message = DAMAGED[name]
    damage(folder)
    with pytest.raises(RunError, match=message):
        run = Run.open(folder)
        run.model(0, 'cpu')
        run.moments(0)
    assert not (tmp_path / 'evil-ran').exists()


def test_pipeline_folder_is_foreign(tmp_path):
    result = pipeline(
        dataset='nations',
        model='DistMult',
        epochs=1,
        use_tqdm=False,
        evaluation_kwargs=dict(use_tqdm=False),
    )
    result.save_to_directory(tmp_path / 'pipeline')
    with pytest.raises(RunError, match='Run.from_model'):
        Run.open(tmp_path / 'pipeline')
    with pytest.raises(RunError, match='never done'):
        read_state(tmp_path / 'pipeline' / 'trained_model.pkl')


def test_checkpoint_that_is_not_there(kept):
    run = Run.open(kept)
    assert run.fingerprint(-1) == run.fingerprint(2)
    for k in (3, -4, 'last'):
        with pytest.raises(RunError, match='there is no checkpoint'):
            run.model(k)


# models that come without a run


@pytest.fixture(scope='module')
def model(nations):
    return DistMult(triples_factory=nations.training, embedding_dim=4, random_seed=0)


@pytest.mark.parametrize(
    'options, message',
    [
        ({}, 'learning_rates is None'),
        (dict(learning_rates=1.0), 'give a list'),
        (dict(learning_rates=[]), '0 numbers for 1'),
        (dict(learning_rates=[1.0, 2.0]), '2 numbers for 1'),
        (dict(learning_rates=[None]), 'learning_rates'),
        (dict(learning_rates=[float('inf')]), 'learning_rates'),
        (dict(learning_rates=[1.0], loop='x'), 'loop'),
        (dict(learning_rates=[1.0], states=[{}]), r'states\[0\]'),
        (dict(learning_rates=[1.0], loss='x'), 'loss'),
        (dict(learning_rates=[1.0], label_smoothing=2.0), 'label_smoothing'),
        (dict(learning_rates=[1.0], epochs=[1, 2]), 'epochs'),
        (dict(learning_rates=[1.0], loop='lcwa', negative_sampler='basic'), 'no negative_sampler'),
    ],
)
def test_from_model_refuses(options, message, model, nations):
    with pytest.raises(RunError, match=message):
        Run.from_model(model, nations.training, **options)


def test_what_a_run_is_of(nations):
    model = ERModel(
        triples_factory=nations.training,
        interaction='hole',
        entity_representations_kwargs=dict(shape=4),
        relation_representations_kwargs=dict(shape=4),
    )
    run = Run.from_model(model, nations.training, learning_rates=[0.5])
    assert repr(run).startswith(
        'Run of ERModel with HolEInteraction (slcwa, MarginRankingLoss) on 1592 triples'
    )


def test_from_model_takes_a_copy(model, nations):
    before = {n: p.clone() for n, p in model.named_parameters()}
    run = Run.from_model(model, nations.training, learning_rates=[0.5])
    with torch.no_grad():
        next(model.parameters()).add_(1)
    assert all(torch.equal(p, before[n]) for n, p in run.model(0, 'cpu').named_parameters())
    with torch.no_grad():
        for p in run.model(0, 'cpu').parameters():
            p.zero_()
    assert all(torch.equal(p, before[n]) for n, p in run.model(0, 'cpu').named_parameters())
    with torch.no_grad():
        next(model.parameters()).sub_(1)
    assert model.training and run.moments(0) is None


def test_from_model_with_states_and_moments(model, nations, tmp_path):
    first = {n: torch.zeros_like(p) for n, p in model.state_dict().items()}
    torch.save(
        dict(epoch=2, model_state_dict=model.state_dict(), optimizer_state_dict={}),
        tmp_path / 'a.pt',
    )
    moments = [{TABLE: torch.ones(14, 4)}] * 2
    run = Run.from_model(
        model,
        nations.training,
        states=[first, tmp_path / 'a.pt'],
        learning_rates=[1.0, 0.5],
        epochs=[1, 2],
        optimizer_moments=moments,
        loss='bcewithlogits',
        negative_sampler_kwargs=dict(num_negs_per_pos=2),
    )
    assert [(c.epoch, c.learning_rate) for c in run.checkpoints] == [(1, 1.0), (2, 0.5)]
    assert next(run.model(0, 'cpu').parameters()).abs().sum() == 0
    assert run.fingerprint(1) == state_fingerprint(model.state_dict())
    assert torch.equal(run.moments(1)[TABLE], torch.ones(14, 4)) and isinstance(
        run.loss, BCEWithLogitsLoss
    )
    assert run.sampler().num_negs_per_pos == 2


@pytest.mark.parametrize('name', ['rgcn', 'compgcn'])
def test_from_model_after_a_pass_with_gradients(name, nations):
    training = Nations(create_inverse_triples=name == 'compgcn').training
    model = model_resolver.make(name, triples_factory=training, embedding_dim=4, random_seed=0)
    score = model.score_hrt(training.mapped_triples[:3])  # keeps a graph inside the model
    run = Run.from_model(model, training, learning_rates=[1.0])
    with torch.no_grad():
        assert (
            torch.equal(
                run.model(0, 'cpu').score_hrt(training.mapped_triples[:3]),
                model.eval().score_hrt(training.mapped_triples[:3]),
            )
            and score.requires_grad
        )


BROKEN = pytest.mark.xfail(
    raises=TypeError, strict=True, reason='PyKEEN 1.11.1 passes GatedCombination unknown arguments'
)


@pytest.mark.parametrize(
    'name',
    [pytest.param(n, marks=BROKEN if n == 'distmultliteralgated' else ()) for n in sorted(REFUSED)],
)
def test_models_that_only_from_model_takes(name):
    training, mode, more = (
        Nations(create_inverse_triples=True).training,
        None,
        dict(embedding_dim=8, random_seed=0),
    )
    if 'literal' in name:
        training = NationsLiteral().training
    if 'inductive' in name:
        mode, more = 'training', dict(**more, inference_factory=training)
    if name == 'fixed':
        more = {}
    model = model_resolver.make(name, triples_factory=training, **more).eval()
    rebuilt = Run.from_model(model, training, learning_rates=[0.1]).model(0, 'cpu')
    triples = training.mapped_triples[:50]
    with torch.no_grad():
        assert torch.equal(
            rebuilt.score_hrt(triples, mode=mode), model.score_hrt(triples, mode=mode)
        )


def test_from_model_checks_entities(model, nations):
    other = TriplesFactory(torch.tensor([[0, 0, 1]]), {'a': 0, 'b': 1}, nations.relation_to_id)
    with pytest.raises(RunError, match='14 entities, the training triples have 2'):
        Run.from_model(model, other, learning_rates=[1.0])
    with pytest.raises(RunError, match='not a PyKEEN model'):
        Run.from_model(torch.nn.Linear(2, 2), other, learning_rates=[1.0])


def pipelined(**options):
    return pipeline(
        dataset='nations',
        model='DistMult',
        loss='bcewithlogits',
        epochs=1,
        use_tqdm=False,
        random_seed=0,
        evaluation_kwargs=dict(use_tqdm=False),
        **options,
    )


def test_from_pipeline():
    result = pipelined(
        training_loop='lcwa',
        training_kwargs=dict(label_smoothing=0.1),
        optimizer_kwargs=dict(lr=0.03),
        clear_optimizer=False,
    )
    run = as_run(result)
    assert (run.loop, run.label_smoothing, run.checkpoints[0].learning_rate, run.optimizer[0]) == (
        'lcwa',
        0.1,
        0.03,
        'adam',
    )
    p = next(result.model.parameters())
    assert torch.equal(
        run.moments(0)[next(iter(dict(result.model.named_parameters())))],
        result.training_loop.optimizer.state[p]['exp_avg_sq'],
    )
    assert as_run(result, learning_rates=[7.0]).checkpoints[0].learning_rate == 7.0
    assert repr(run).startswith('Run of distmult (lcwa, BCEWithLogitsLoss) on 1592 triples')
    result.configuration = {}
    with pytest.raises(RunError, match='learning rate'):
        as_run(result)


def test_as_run_refuses(kept, model):
    run = Run.open(kept)
    for source, options, message in [
        (run, dict(learning_rates=[1.0]), 'has its own learning_rates'),
        (3, {}, 'int is neither'),
        (model, {}, 'training='),
        (kept, dict(seed=1), 'has its own seed'),
    ]:
        with pytest.raises(RunError, match=message):
            as_run(source, **options)


def test_a_run_can_be_sent_to_another_process(kept):
    import pickle

    run = pickle.loads(pickle.dumps(Run.open(kept)))
    assert state_fingerprint(run.model(1, 'cpu').state_dict()) == run.fingerprint(1)


WEIGHTS = dict(weights=[0.1 * (r + 1) for r in range(55)])
LCWA = {
    'plain': {},
    'inverse': dict(inverse=True),
    'weighter': dict(loss_weighter='relation', loss_weighter_kwargs=WEIGHTS),
    'parts': dict(training_kwargs=dict(sub_batch_size=24, drop_last=True)),
    'loaders': dict(training_kwargs=dict(num_workers=1)),
}


@pytest.mark.parametrize('name', LCWA)
def test_lcwa_takes_batches_at_once(name, tmp_path, monkeypatch):
    "Under LCWA the weights are PyKEEN's, bit for bit, and no row of a batch is read alone."
    how = dict(SMALL, loop='lcwa', loss='bcewithlogits', batch_size=64, epochs=2, device='cpu')
    with monkeypatch.context() as plain:
        plain.setattr(looping, 'take_whole_batches', lambda loop: None)
        rows = train('nations', out=tmp_path / 'rows', **how, **LCWA[name])
    monkeypatch.delattr(LCWAInstances, '__getitem__')
    run = train('nations', out=tmp_path / 'batches', **how, **LCWA[name])
    assert run.fingerprint(-1) == rows.fingerprint(-1)
    again = training.train_again(run, run.training.mapped_triples[:3], device='cpu')
    assert state_fingerprint(again.state_dict()) != run.fingerprint(-1)


@pytest.mark.parametrize('loop', ['lcwa', 'slcwa'])
def test_a_retraining_leaves_its_model_alone(loop, tmp_path, monkeypatch):
    "PyKEEN's loop, and with it the optimiser's state, is gone, and no collection is waited for."
    run, loops = train('nations', out=tmp_path / 'run', loop=loop, **SMALL), []

    def noted(*args):
        loops.append(weakref.ref(made := build_loop(*args)))
        return made

    monkeypatch.setattr(training, 'build_loop', noted)
    gc.unfreeze()
    gc.disable()
    try:
        models = [training.train_again(run, run.training.mapped_triples[i : i + 2]) for i in (0, 2)]
        assert [ref() for ref in loops] == [None, None] and gc.get_freeze_count() == 0
    finally:
        gc.enable()
        gc.freeze()  # as the tests' own fixture
    assert len({state_fingerprint(m.state_dict()) for m in models}) == 2
