"""Values that cannot be: one line that names the flag, exit status 2, and nothing left behind."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from pykeen.datasets.nations import Nations

from tracin_nb.app.cli import main
from tracin_nb.runs.run import Run
from tracin_nb.runs.settings import RunError
from tracin_nb.runs.training import train
from tracin_nb.runs.trial import check_schedule, few_triples, milder, schedule

pytestmark = pytest.mark.filterwarnings('ignore')
TINY = ('--model', 'DistMult', '--model-kwargs', '{"embedding_dim": 4}', '--device', 'cpu')


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    "PyKEEN's log is not what is checked here."
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def tracin(*words: Any) -> Result:
    return CliRunner().invoke(main, list(map(str, words)))


def refused(done: Result, *said: str) -> None:
    "One line names all that is `said`; status 2."
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert done.exit_code == 2 and isinstance(done.exception, SystemExit), done.exception
    assert len(lines) == 1 and lines[0].startswith('tracin: error: '), lines
    assert all(text in lines[0] for text in said), lines[0]


# options of `tracin train`, and what the line has to name
BAD = [
    (('--model', 'ConvE'), '--model-kwargs \'{"embedding_dim": 4}\''),
    (
        ('--model', 'ConvE', '--model-kwargs', '{"embedding_dim": 7}'),
        '--model-kwargs \'{"embedding_dim": 7}\'',
    ),
    (('--model-kwargs', '{"embedding_dim": 0}'), '--model-kwargs \'{"embedding_dim": 0}\''),
    (('--model-kwargs', '{"embedding_dim": -3}'), '--model-kwargs \'{"embedding_dim": -3}\''),
    (('--optimizer', 'SparseAdam'), '--optimizer sparseadam needs sparse gradients'),
    (('--optimizer', 'LBFGS'), '--optimizer lbfgs needs a closure'),
    (('--optimizer-kwargs', '{"betas": [0.9]}'), '--optimizer-kwargs \'{"betas": [0.9]}\''),
    (('--optimizer-kwargs', '{"lr": "a"}'), '--optimizer-kwargs \'{"lr": "a"}\''),
    (('--optimizer-kwargs', '{"lr": -1}'), '--optimizer-kwargs \'{"lr": -1}\''),
    (('--optimizer-kwargs', '{"capturable": true}'), '--optimizer-kwargs \'{"capturable": true}\''),
    (
        ('--optimizer-kwargs', '{"differentiable": true}'),
        '--optimizer-kwargs \'{"differentiable": true}\'',
    ),
    (('--device', 'meta'), '--device meta'),
    (
        ('--lr-scheduler', 'StepLR', '--lr-scheduler-kwargs', '{"step_size": 0}'),
        '--lr-scheduler-kwargs \'{"step_size": 0}\'',
    ),
    (('--lr-scheduler', 'StepLR'), '--lr-scheduler step'),
    (
        ('--lr-scheduler', 'ExponentialLR', '--lr-scheduler-kwargs', '{"gamma": "a"}'),
        '--lr-scheduler-kwargs \'{"gamma": "a"}\'',
    ),
    (
        ('--lr-scheduler', 'ExponentialLR', '--lr-scheduler-kwargs', '{"gamma": 1e300}'),
        '--lr-scheduler-kwargs \'{"gamma": 1e+300}\'',
    ),
    (
        ('--lr-scheduler', 'ExponentialLR', '--lr-scheduler-kwargs', '{"gamma": -1}'),
        '--lr-scheduler-kwargs \'{"gamma": -1}\': exponential gives epoch 2',
    ),
    *(
        (
            ('--negative-sampler-kwargs', f'{{"num_negs_per_pos": {n}}}'),
            "--negative-sampler-kwargs['num_negs_per_pos'] must be a whole number at least 1",
        )
        for n in ('0', '-1', '1.5', '"3"')
    ),
    (('--num-negs-per-pos', '0'), '--num-negs-per-pos'),
    (
        ('--negative-sampler-kwargs', '{"filtered": true, "filterer": "nope"}'),
        '--negative-sampler-kwargs \'{"filterer": "nope"}\'',
    ),
    (
        ('--negative-sampler-kwargs', '{"filtered": true, "filterer_kwargs": {"x": 1}}'),
        '--negative-sampler-kwargs \'{"filterer_kwargs": {"x": 1}}\'',
    ),
    (
        ('--negative-sampler-kwargs', '{"corruption_scheme": "head"}'),
        '--negative-sampler-kwargs \'{"corruption_scheme": "head"}\'',
    ),
    (
        ('--negative-sampler-kwargs', '{"num_entities": 3}'),
        '--negative-sampler-kwargs \'{"num_entities": 3}\'',
    ),
    (('--training-kwargs', '{"slice_size": 2}'), '--training-kwargs \'{"slice_size": 2}\''),
    (
        ('--training-kwargs', '{"sub_batch_size": "x"}'),
        "--training-kwargs['sub_batch_size'] must be",
    ),
    (('--training-kwargs', '{"num_workers": "a"}'), "--training-kwargs['num_workers'] must be"),
    (('--training-kwargs', '{"drop_last": "x"}'), "--training-kwargs['drop_last'] must be"),
    (('--training-kwargs', '{"sampler": "x"}'), '--training-kwargs \'{"sampler": "x"}\''),
    (
        ('--training-kwargs', '{"gradient_clipping_max_norm": "x"}'),
        "--training-kwargs['gradient_clipping_max_norm'] must be",
    ),
    (
        ('--loop', 'lcwa', '--training-kwargs', '{"slice_size": -2}'),
        "--training-kwargs['slice_size'] must be",
    ),
    (
        ('--loss', 'marginranking', '--loss-kwargs', '{"margin": "x"}'),
        '--loss-kwargs \'{"margin": "x"}\'',
    ),
    (
        ('--loss', 'marginranking', '--loss-kwargs', '{"margin": NaN}'),
        "--loss-kwargs['margin'] must be a finite number",
    ),
    (
        ('--loss', 'bcewithlogits', '--loss-kwargs', '{"pos_weight": [1, 2, 3]}'),
        '--loss-kwargs \'{"pos_weight": [1, 2, 3]}\'',
    ),
    (('--batch-size', '99999999999999999999999'), '--batch-size must be a whole number'),
    (('--seed', '99999999999999999999'), '--seed must be a whole number'),
]


@pytest.mark.parametrize('options, said', BAD, ids=[' '.join(b[0])[:60] for b in BAD])
def test_train(options: tuple[str, ...], said: str, tmp_path: Path) -> None:
    out = tmp_path / 'run'
    words = ('--epochs', 3, '--keep-every', 1, '--out', out)
    refused(tracin('train', 'nations', *TINY, *words, *options), said)
    assert not out.exists()


def test_folders_that_are_there(tmp_path: Path) -> None:
    "They stay as they were."
    words = ('train', 'nations', *TINY, '--epochs', 1, '--optimizer-kwargs', '{"betas": [0.9]}')
    for name in ('empty', 'full'):
        (tmp_path / name).mkdir()
    (tmp_path / 'full' / 'mine').write_text('mine')
    for name, left in (('empty', []), ('full', ['mine'])):
        refused(tracin(*words, '--out', tmp_path / name))
        assert [p.name for p in (tmp_path / name).iterdir()] == left


def test_one_entity(tmp_path: Path) -> None:
    (folder := tmp_path / 'one').mkdir()
    (folder / 'train.txt').write_text('a\tr\ta\n')
    out = tmp_path / 'run'
    refused(tracin('train', folder, *TINY, '--epochs', 1, '--out', out), 'have one entity')
    assert not out.exists()


def test_python(tmp_path: Path) -> None:
    "The parameter's name, in a `ValueError`."
    how = dict(model='ConvE', out=tmp_path / 'run', epochs=1, progress=False, device='cpu')
    for options, said in (
        (dict(model_kwargs=dict(embedding_dim=4)), r"model_kwargs=\{'embedding_dim': 4\}"),
        (dict(optimizer_kwargs=dict(betas=[0.9])), r"optimizer_kwargs=\{'betas': \[0.9\]\}"),
        (dict(device='meta'), "device='meta'"),
        (dict(lr_scheduler='step', lr_scheduler_kwargs=dict(step_size=0)), 'lr_scheduler_kwargs='),
        (dict(batch_size=2**70), 'batch_size must be'),
    ):
        with pytest.raises(ValueError, match=said):
            train('nations', **{**how, **options})
        assert not (tmp_path / 'run').exists()


def test_what_only_the_real_batch_shows(tmp_path: Path) -> None:
    "A weight for each of the few scores: the trial passes, the first real batch does not."
    words = ('--loss', 'bcewithlogits', '--epochs', 1, '--out', tmp_path / 'run')
    weights = f'{{"pos_weight": {[1.0] * 32}}}'
    done = tracin('train', 'nations', *TINY, *words, '--loss-kwargs', weights)
    last = done.stderr.splitlines()[-1]
    assert done.exit_code == 2 and last.startswith('tracin: error: --')
    assert '--loss-kwargs {"pos_weight": [1.0' in last and 'RuntimeError: The size' in last
    assert not (tmp_path / 'run').exists()


@pytest.fixture(scope='module')
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp('bad') / 'run'
    assert tracin('train', 'nations', *TINY, '--epochs', 1, '--out', out).exit_code == 0
    return out


@pytest.mark.parametrize(
    'options, said',
    [
        (('--batch-size', 10**20), '--batch-size is 100000000000000000000'),
        (('--sample-rate', 0.5, '--seed', 10**20), 'seed is 100000000000000000000'),
        (('--devices', 'meta'), '--devices meta'),
        (('--devices', 'cpu,meta'), '--devices meta'),
    ],
)
def test_run(options: tuple[Any, ...], said: str, run: Path) -> None:
    refused(tracin('explain', run, '--triple', 'brazil', 'commonbloc1', 'india', *options), said)


# ---- the trial changes nothing


def test_odd_values_that_work(tmp_path: Path) -> None:
    "What a step can be made with is trained."
    how: dict[str, Any] = dict(
        epochs=1, progress=False, device='cpu', model='DistMult', model_kwargs=dict(embedding_dim=3)
    )
    for i, options in enumerate(
        [
            dict(training_kwargs=dict(sampler='schlichtkrull')),
            dict(batch_size=1, training_kwargs=dict(drop_last=True)),
            dict(training_kwargs=dict(sub_batch_size=100, num_workers=0)),
            dict(loop='lcwa', training_kwargs=dict(slice_size=5)),
            dict(negative_sampler_kwargs=dict(filtered=True, filterer='python-set')),
            dict(lr=0.0),
            dict(batch_size=2**40),
            dict(optimizer='Muon') if hasattr(torch.optim, 'Muon') else {},
            dict(lr_scheduler='CyclicLR', optimizer='sgd', optimizer_kwargs=dict(momentum=0.9))
            | dict(lr_scheduler_kwargs=dict(base_lr=0.1, max_lr=0.2)),
        ]
    ):
        run = train('nations', out=tmp_path / str(i), **how, **options)
        assert len(run.checkpoints) == 1


def test_the_callers_random_state_and_log_stay(tmp_path: Path) -> None:
    log, state = logging.getLogger('pykeen').level, torch.get_rng_state()
    with pytest.raises(RunError):
        train('nations', 'ConvE', out=tmp_path / 'run', model_kwargs=dict(embedding_dim=4))
    assert torch.equal(torch.get_rng_state(), state)
    assert logging.getLogger('pykeen').level == log


def test_few_triples() -> None:
    nations = Nations().training
    assert few_triples(nations, 256).mapped_triples[:, 0].unique().numel() > 8
    assert few_triples(nations, 4).num_triples == 2


def test_rates_of_a_schedule(tmp_path: Path) -> None:
    "The rates that training records are those that the schedule was asked for."
    how: dict[str, Any] = dict(optimizer='SGD', lr=0.5, epochs=4)
    how |= dict(lr_scheduler='ExponentialLR', lr_scheduler_kwargs=dict(gamma=0.5))
    small = dict(model='DistMult', model_kwargs=dict(embedding_dim=4))
    run = train('nations', **small, **how, keep_every=1, out=tmp_path / 'run', progress=False)
    rates = [c.learning_rate for c in run.checkpoints]
    assert schedule(run.settings) == rates == [0.5, 0.25, 0.125, 0.0625]
    check_schedule(run.settings)
    assert all(name.split('=')[0] in run.settings for name, _ in milder(run.settings))
    assert Run.open(tmp_path / 'run').settings == run.settings
