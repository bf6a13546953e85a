"""Training under attack: full disks, kills, two at once, divergence, impossible sizes. One line,
nothing lost."""

import errno
import gzip
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from click.testing import Result as Outcome
from pykeen.datasets import EagerDataset
from pykeen.datasets.nations import Nations, NationsLiteral
from pykeen.triples import TriplesNumericLiteralsFactory
from safetensors.torch import load_file, save_file

from tracin_nb.app import cli
from tracin_nb.engine.shortcuts import Projected
from tracin_nb.graph import triples
from tracin_nb.influence import question
from tracin_nb.influence.tracin import TracIn
from tracin_nb.runs import models, settings, training
from tracin_nb.runs.keeping import file_facts
from tracin_nb.runs.loop import KeepCheckpoints
from tracin_nb.runs.run import Run
from tracin_nb.runs.settings import RunError
from tracin_nb.runs.training import train

pytestmark = pytest.mark.filterwarnings('ignore')
TINY = dict(
    model='DistMult',
    model_kwargs=dict(embedding_dim=4),
    epochs=4,
    keep_every=1,
    progress=False,
    device='cpu',
)
ARGS = (
    '--model',
    'DistMult',
    '--model-kwargs',
    '{"embedding_dim": 4}',
    '--epochs',
    4,
    '--keep-every',
    1,
    '--device',
    'cpu',
)
TABLE = 'entity_representations.0._embeddings.weight'
KILLS = int(os.environ.get('TRACIN_KILLS', 10))  # random moments at which a training is killed


@pytest.fixture(scope='module')
def nations() -> Nations:
    return Nations()


@pytest.fixture(scope='module')
def whole(tmp_path_factory: pytest.TempPathFactory, nations: Nations) -> Run:
    "An undisturbed training."
    return train(nations, out=tmp_path_factory.mktemp('whole') / 'run', **TINY)


@pytest.fixture
def copied(whole: Run, tmp_path: Path) -> Path:
    return shutil.copytree(whole.folder, tmp_path / 'copied')


def same(run: Run, whole: Run) -> bool:
    "Are all checkpoints those of the undisturbed training, and is nothing left over?"
    assert [p.name for p in run.folder.iterdir() if p.name.startswith('.')] == []
    return [run.fingerprint(k) for k in range(4)] == [whole.fingerprint(k) for k in range(4)]


def invoke(*args: object) -> Outcome:
    "The command in this process; an exception that it does not handle is a failure of the test."
    done = CliRunner().invoke(cli.main, list(map(str, args)))
    if not isinstance(done.exception, SystemExit | None):
        raise done.exception
    return done


def refused(*args: object) -> str:
    "The one line with which a command is refused."
    done = invoke(*args)
    lines = [line for line in done.stderr.splitlines() if 'error' in line]
    assert done.exit_code == 2 and len(lines) == 1 and lines[0].startswith('tracin: error: '), (
        done.output
    )
    return lines[0]


# ---- test files with labels that training does not know


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    (tmp_path / 'graph').mkdir()
    (tmp_path / 'graph/train.txt').write_text('a\tr\tb\nb\tr\tc\nc\tr\ta\n')
    (tmp_path / 'graph/test.txt').write_text('a\tr\tc\nnew\tr\ta\nb\tr\tnewer\n')
    (tmp_path / 'graph/valid.txt').write_text('b\tr\ta\na\tother\tc\n')
    return tmp_path / 'graph'


def test_unseen(graph: Path, tmp_path: Path) -> None:
    command = ('train', graph, *ARGS, '--out', tmp_path / 'run')
    line = refused(*command)
    assert 'test.txt: line 2' in line and '2 of 3 triples' in line and '--unseen' in line
    assert '--unseen' in refused(*command, '--unseen', 'error') and not (tmp_path / 'run').exists()
    with warnings.catch_warnings():
        warnings.simplefilter('default')
        done = invoke(*command, '--unseen', 'drop')
    assert done.exit_code == 0
    for said in ('test.txt: left out 2 of 3 triples', 'valid.txt: left out 1 of 2 triples'):
        assert said in done.stderr
    run = Run.open(tmp_path / 'run')
    assert (run.testing.num_triples, run.validation.num_triples) == (1, 1)
    with pytest.warns(UserWarning, match='left out 2 of 3'):
        train(graph, **TINY, out=tmp_path / '2', unseen='drop')


def test_unseen_where_it_does_nothing(graph: Path, tmp_path: Path) -> None:
    assert 'only for a folder' in refused(
        'train', 'nations', *ARGS, '--unseen', 'drop', '--out', tmp_path / 'run'
    )
    with pytest.raises(RunError, match='only for a folder'):
        train('nations', **TINY, out=tmp_path / 'run', unseen='drop')
    with pytest.raises(ValueError, match="'error' or 'drop'"):
        train(graph, **TINY, out=tmp_path / 'run', unseen='x')


# ---- literals

LITERAL = TINY | dict(model='DistMultLiteral', epochs=2)


@pytest.mark.parametrize(
    'name, more', [('DistMultLiteral', {}), ('ComplExLiteral', dict(loop='lcwa'))]
)
def test_literal_models_train(name: str, more: dict, tmp_path: Path) -> None:
    """What is opened scores as what was trained, and is explained as the same model without a
    folder."""
    run = train('nationsliteral', **LITERAL | dict(model=name), **more, out=tmp_path / 'run')
    again, data = Run.open(run.folder), NationsLiteral().training
    assert again.training.numeric_literals.tolist() == data.numeric_literals.tolist()
    assert again.training.literals_to_id == data.literals_to_id
    states = [again.state(k) for k in (0, 1)]
    foreign = Run.from_model(
        again.model(1, 'cpu'), data, states=states, learning_rates=[1e-3] * 2, loop=again.loop
    )
    asked, some = again.testing.mapped_triples[:3], again.training.mapped_triples[:40]
    options = dict(weighting='sgd', devices='cpu', progress=False)
    scores = TracIn(again, **options).scores(asked, some)
    for other in (TracIn(foreign, **options), TracIn(again, engine='loop', **options)):
        want = other.scores(asked, some)
        assert (scores - want).norm() <= 1e-5 * want.norm() and want.norm() > 0


def other_literals() -> EagerDataset:
    data = NationsLiteral()
    old = data.training
    new = TriplesNumericLiteralsFactory(
        numeric_literals=old.numeric_literals + 1,
        literals_to_id=old.literals_to_id,
        mapped_triples=old.mapped_triples,
        entity_to_id=old.entity_to_id,
        relation_to_id=old.relation_to_id,
    )
    return EagerDataset(new, data.testing, data.validation)


def test_literals_belong_to_the_run(tmp_path: Path, nations: Nations) -> None:
    with pytest.raises(RunError, match='needs literals.*nationsliteral'):
        train(nations, **LITERAL, out=tmp_path / 'no')
    assert 'literals' in refused(
        'train', 'nations', '--model', 'DistMultLiteral', '--out', tmp_path / 'no'
    )
    assert not (tmp_path / 'no').exists()
    run = train('nationsliteral', **LITERAL | dict(epochs=1), out=tmp_path / 'run')
    with pytest.raises(RunError, match='literals'):
        train(other_literals(), **LITERAL | dict(epochs=1), out=run.folder, resume=True)
    tensors = load_file(run.folder / 'triples.safetensors')
    save_file(
        tensors | dict(literals=tensors['literals'][:5].clone()), run.folder / 'triples.safetensors'
    )
    vouch(run.folder, 'files', 'triples', 'triples.safetensors')
    with pytest.raises(RunError, match='one number for each of 14 entities'):
        Run.open(run.folder)


# ---- what is not finite


def vouch(folder: Path, *place: object) -> None:
    "Let run.json give the size and SHA-256 of a file as it is now."
    facts = json.loads((folder / 'run.json').read_text())
    *way, key, name = place
    owner = facts
    for step in way:
        owner = owner[step]
    owner[key] = file_facts(folder / name)
    (folder / 'run.json').write_text(json.dumps(facts))


def edit(folder: Path, change: Callable[[dict], object]) -> None:
    facts = json.loads((folder / 'run.json').read_text())
    change(facts)
    (folder / 'run.json').write_text(json.dumps(facts))


def spoil(folder: Path, k: int, value: float) -> None:
    "One number of the weights of checkpoint `k`."
    name = f'checkpoint-{k + 1:04d}.pt'
    content = torch.load(folder / name, weights_only=True)
    content['state_dict'][TABLE][13, 3] = value
    torch.save(content, folder / name)
    vouch(folder, 'checkpoints', k, 'model', name)


@pytest.mark.parametrize(
    'value, k', [(float('nan'), 0), (float('inf'), 3), (float('-inf'), 1), (3e38, 2), (-1e20, 3)]
)
def test_open_refuses_weights_that_are_not_finite(copied: Path, value: float, k: int) -> None:
    spoil(copied, k, value)
    with pytest.raises(
        RunError,
        match=rf"checkpoint-000{k + 1}.pt: '{TABLE}' holds {value:.3g}".replace('+', r'\+'),
    ):
        Run.open(copied)
    for command in (('explain', copied, '--max', 1), ('self', copied)):
        assert TABLE in refused(*command)
    with pytest.raises(RunError, match=TABLE):
        train('nations', **TINY, out=copied, resume=True)


@pytest.mark.parametrize('key', ['exp_avg', 'exp_avg_sq', 'step'])
def test_moments_that_are_not_finite(copied: Path, key: str) -> None:
    name = 'checkpoint-0004.optimizer.pt'
    content = torch.load(copied / name, weights_only=True)
    content['state'][0][key].fill_(float('nan'))
    torch.save(content, copied / name)
    vouch(copied, 'checkpoints', 3, 'optimizer', name)
    run = Run.open(copied)
    with pytest.raises(RunError, match=f"{name}: training diverged: '{key} of {TABLE}' holds nan"):
        run.moments(3)
    assert run.moments(2)
    assert TABLE in refused('explain', copied, '--max', 1, '--weighting', 'adam')


@pytest.mark.parametrize('lost', ['state', 'parameters', 'rng'])
def test_an_optimiser_that_lacks_something(copied: Path, lost: str, nations: Nations) -> None:
    name = 'checkpoint-0003.optimizer.pt'
    content = torch.load(copied / name, weights_only=True)
    del content[lost]
    torch.save(content, copied / name)
    vouch(copied, 'checkpoints', 2, 'optimizer', name)
    edit(
        copied,
        lambda facts: facts.update(
            checkpoints=facts['checkpoints'][:3], losses=facts['losses'][:3]
        ),
    )
    with pytest.raises(RunError, match=f"{name} lacks '{lost}'"):
        train(nations, **TINY, out=copied, resume=True)


NOT_FINITE = {
    'rate': (
        lambda f: f['checkpoints'][1].update(learning_rate=float('inf')),
        r'checkpoints\[1\]: learning_rate',
    ),
    'scores': (
        lambda f: f['checkpoints'][2]['probe'].__setitem__(5, float('nan')),
        r'checkpoints\[2\].*triples nan',
    ),
    'scores of words': (
        lambda f: f['checkpoints'][2]['probe'].__setitem__(5, 'x'),
        r'checkpoints\[2\]: probe',
    ),
    'eps': (lambda f: f['optimizer'].update(eps=float('nan')), 'optimizer: eps is nan'),
    'betas': (lambda f: f['optimizer'].update(betas=[0.9, float('inf')]), 'optimizer: betas'),
    'step': (lambda f: f['checkpoints'][0].update(step=-3), r'checkpoints\[0\]: step'),
}


@pytest.mark.parametrize('name', NOT_FINITE)
def test_numbers_in_run_json(copied: Path, name: str) -> None:
    change, said = NOT_FINITE[name]
    edit(copied, change)
    with pytest.raises(RunError, match=f'run.json: {said}'):
        Run.open(copied)


def test_train_says_that_it_diverged(tmp_path: Path) -> None:
    options = (
        '--model',
        'ComplEx',
        '--optimizer',
        'SGD',
        '--lr',
        '3e38',
        '--epochs',
        1,
        '--out',
        tmp_path / 'run',
    )
    assert 'training diverged' in refused('train', 'nations', *options)
    assert not (tmp_path / 'run').exists()


def test_divergence_later_keeps_what_was_right(
    tmp_path: Path, whole: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    "Weights that overflow in epoch 3 are not kept, epochs 1 and 2 are."
    post = KeepCheckpoints.post_batch

    def spoiled(self: KeepCheckpoints, epoch: int, batch: object, **kwargs: object) -> None:
        post(self, epoch, batch, **kwargs)
        if self.step == 3 * 7:
            with torch.no_grad():
                next(self.model.parameters())[2, 1] = 2e19

    monkeypatch.setattr(KeepCheckpoints, 'post_batch', spoiled)
    with pytest.raises(
        RunError, match=rf"after epoch 3 '{TABLE}' holds 2e\+19.* up to epoch 2 are kept"
    ):
        train('nations', **TINY | dict(model='ComplEx'), out=tmp_path / 'run')
    assert [c.epoch for c in Run.open(tmp_path / 'run').checkpoints] == [1, 2]


# ---- a disk that is full, or is not writable

FULL = """
import subprocess, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import tracin_nb.influence.tracin
from test_training_reliability import full_disk
for size in (8, 32, 64, 104): full_disk(Path({disk!r}), size, Path({whole!r}))
"""


def mount(disk: Path, *options: str) -> None:
    subprocess.run(['mount', *options, str(disk)], check=True)


def full_disk(disk: Path, size: int, whole: Path) -> None:
    """A training on a disk of `size` KiB that goes on when there is more room, by --resume and
    by the same command."""
    command = ('train', 'nations', *ARGS, '--out', disk / 'run')
    mount(disk, '-t', 'tmpfs', '-o', f'size={size}k', 'tmpfs')
    line = refused(*command)
    assert 'No space left on device' in line and str(disk / 'run') in line, line
    kept = (
        len(json.loads((disk / 'run/run.json').read_text())['checkpoints'])
        if (disk / 'run/run.json').exists()
        else 0
    )
    assert '--resume resumes it' in line or not (disk / 'run').exists(), line
    mount(disk, '-o', 'remount,ro')
    assert 'Read-only file system' in refused(*command, '--resume')
    mount(disk, '-o', 'remount,rw,size=9m')
    if kept:
        assert '--resume to resume it' in refused(*command)
    again = (*command, '--resume') if kept or size == 8 else command
    assert invoke(*again).exit_code == 0
    assert same(Run.open(disk / 'run'), Run.open(whole))
    mount(disk, '-o', 'remount,ro')
    assert invoke(*command, '--resume').exit_code == 0  # finished: nothing is to be written
    subprocess.run(['umount', str(disk)], check=True)


def test_full_disks(whole: Run, tmp_path: Path) -> None:
    "Real file systems of 8 to 104 KiB, in a mount namespace of their own."
    if subprocess.run(
        ['unshare', '-rm', 'mount', '-t', 'tmpfs', 'tmpfs', '/mnt'], capture_output=True
    ).returncode:
        pytest.skip('this system does not let us mount a file system')
    (tmp_path / 'disk').mkdir()
    script = FULL.format(
        tests=str(Path(__file__).parent), disk=str(tmp_path / 'disk'), whole=str(whole.folder)
    )
    done = subprocess.run(
        ['unshare', '-rm', sys.executable, '-c', script], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


class Full:
    "Files are written until the `n`th one is to be moved to its place."

    def __init__(self, n: int) -> None:
        self.left, self.move = n, os.replace

    def __call__(self, draft: Path, path: Path) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(draft))
        self.move(draft, path)


def test_each_write_may_fail(
    whole: Run, nations: Nations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """run.json, then weights, optimiser, triples, two label maps and run.json, then three files
    for each epoch."""
    written = []
    for n in itertools.count():
        out = tmp_path / f'{n}'
        with monkeypatch.context() as patch:
            patch.setattr(os, 'replace', Full(n))
            try:
                train(nations, out=out, **TINY)
            except OSError as e:
                written.append(Path(e.filename).name)
            else:
                break
        begun = (out / 'run.json').exists() and json.loads((out / 'run.json').read_text())[
            'checkpoints'
        ] != []
        assert same(train(nations, out=out, **TINY, resume=begun or n % 2 == 0), whole)
    rest = [f'checkpoint-{e:04d}{end}' for e in (1, 2, 3, 4) for end in ('.pt', '.optimizer.pt')]
    data = ['triples.safetensors', 'entity_to_id.tsv', 'relation_to_id.tsv']
    assert written == [
        'run.json',
        *rest[:2],
        *data,
        'run.json',
        *rest[2:4],
        'run.json',
        *rest[4:6],
        'run.json',
        *rest[6:],
        'run.json',
    ]


def test_no_folder_for_a_run(tmp_path: Path, nations: Nations) -> None:
    (tmp_path / 'file').write_text('mine')
    (tmp_path / 'link').symlink_to(tmp_path / 'nowhere' / 'else')
    for out in ('file', 'file/run', 'link'):
        assert out.split('/')[0] in refused('train', 'nations', *ARGS, '--out', tmp_path / out)
    assert (tmp_path / 'file').read_text() == 'mine'
    with pytest.raises(RunError, match='nosuch'):
        train(nations, **TINY | dict(model='nosuch'), out=tmp_path / 'new')
    with pytest.raises(RunError, match='a single training batch|label smoothing'):
        train(
            nations, **TINY | dict(label_smoothing=0.1, loss='marginranking'), out=tmp_path / 'new'
        )
    assert not (tmp_path / 'new').exists()


# ---- two at once, and kills


def in_child(work: Callable[[], object]) -> int:
    """Run `work` in a forked process, which exits with 7 if a `RunError` says that another
    training is at work."""
    if pid := os.fork():
        return pid
    status = 9
    try:
        work()
        status = 0
    except RunError as e:
        status = 7 if re.search('another training is at work|holds a run already', str(e)) else 8
    finally:
        os._exit(status)


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_two_processes_in_one_folder(whole: Run, nations: Nations, tmp_path: Path) -> None:
    for i in range(6):
        pids = [in_child(lambda: train(nations, out=tmp_path / f'{i}', **TINY)) for _ in range(3)]
        assert sorted(map(ended, pids)) == [0, 7, 7]
        assert same(Run.open(tmp_path / f'{i}'), whole)


def test_resume_while_another_trains(
    whole: Run, nations: Nations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever comes while a training is at work is told so, whatever the options; afterwards the
    run is whole."""
    told, post = [], KeepCheckpoints.post_batch

    def other(self: KeepCheckpoints, epoch: int, batch: object, **kwargs: object) -> None:
        post(self, epoch, batch, **kwargs)
        if self.step in (1, 9):
            for options in (TINY, TINY | dict(resume=True)):
                with pytest.raises(RunError) as error:
                    train(nations, out=tmp_path / 'run', **options)
                told.append(str(error.value))

    monkeypatch.setattr(KeepCheckpoints, 'post_batch', other)
    run = train(nations, out=tmp_path / 'run', **TINY)
    monkeypatch.undo()
    assert ['another training is at work' in text for text in told] == [True, True, False, True]
    assert 'holds a run already, which is not finished' in told[2] and same(run, whole)


def test_threads(whole: Run, nations: Nations, tmp_path: Path) -> None:
    """In one folder one of them trains; in folders of their own they take turns and train as if
    alone."""
    found = {}

    def work(i: int, out: Path) -> None:
        try:
            found[i] = train(nations, out=out, **TINY)
        except RunError as e:
            found[i] = str(e)

    for outs in (['a', 'a', 'a'], ['b', 'c', 'd']):
        threads = [
            threading.Thread(target=work, args=(i, tmp_path / out)) for i, out in enumerate(outs)
        ]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        good = [run for run in found.values() if isinstance(run, Run)]
        assert len(good) == len(set(outs)) and all(same(run, whole) for run in good)
        assert all(
            'another training is at work' in x or 'holds a run' in x
            for x in found.values()
            if isinstance(x, str)
        )


@pytest.mark.parametrize('moment', range(KILLS))
def test_killed_at_any_moment(whole: Run, nations: Nations, tmp_path: Path, moment: int) -> None:
    "A killed training leaves no lock that blocks, and goes on by `resume` or the same command."
    out = tmp_path / 'run'
    pid = in_child(lambda: train(nations, out=out, **TINY))
    time.sleep(random.uniform(0, 0.6))
    os.kill(pid, signal.SIGKILL)
    ended(pid)
    facts = (
        json.loads((out / 'run.json').read_text())
        if (out / 'run.json').exists()
        else dict(checkpoints=[])
    )
    assert same(
        train(nations, out=out, **TINY, resume=bool(facts['checkpoints']) or moment % 2 == 0), whole
    )


def test_what_a_killed_one_left_is_swept(whole: Run, nations: Nations, tmp_path: Path) -> None:
    out = tmp_path / 'run'
    (out / '.checkpoint-0002.pt.abc').mkdir(parents=True)
    (out / '.checkpoint-0002.pt.abc/checkpoint-0002.pt').write_text('half')
    (out / '.checkpoint.pt.partial').write_text('half')
    (out / '.lock').write_text('')
    assert same(train(nations, out=out, **TINY), whole)
    for left in ('.lock', '.run.json.1_abc'):  # killed after its last checkpoint
        (out / left).write_text('half')
        assert same(train(nations, out=out, **TINY, resume=True), whole)


# ---- sizes that cannot be

SIZES = {
    'epochs': (dict(epochs=10**10), 'epochs=10000000000: .* of memory, and there are'),
    'epochs in words': (dict(epochs=10**30, keep_every=10**29), 'of memory'),
    'keep': (dict(epochs=10**9, keep_every=1), 'of memory'),
    'dimension': (
        dict(model_kwargs=dict(embedding_dim=10**9)),
        'embedding_dim.*would take 257 GiB of memory',
    ),
    'a larger one': (dict(model_kwargs=dict(embedding_dim=10**20)), 'embedding_dim'),
    'squares': (
        dict(model='RESCAL', model_kwargs=dict(embedding_dim=10**6)),
        'would take 200 TiB of memory',
    ),
    'cubes': (
        dict(model='TuckER', model_kwargs=dict(embedding_dim=10**9)),
        'more than 8 EiB of memory',
    ),
    'negatives': (
        dict(num_negs_per_pos=10**9),
        'num_negs_per_pos.*would take at least .* TiB of memory',
    ),
    'negatives of a sampler': (
        dict(negative_sampler_kwargs=dict(num_negs_per_pos=10**12)),
        'PiB of memory',
    ),
    'float of epochs': (dict(epochs=1e10), 'epochs must be a whole number'),
}


@pytest.mark.parametrize('name', SIZES)
def test_sizes(name: str, tmp_path: Path, nations: Nations) -> None:
    options, said = SIZES[name]
    with pytest.raises(RunError, match=said):
        train(nations, **TINY | options, out=tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_what_fits_alone_but_not_in_training(
    tmp_path: Path, nations: Nations, whole: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine whose memory holds the weights (1.09 KiB) twice, but not gradients and
    moments beside them."""
    for module in (models, training):
        monkeypatch.setattr(module, 'machine_memory', lambda: 2300)
    with pytest.raises(RunError, match='the optimiser would take at least 4.31 KiB'):
        train(nations, **TINY, out=tmp_path / 'run')
    for module in (models, settings):
        monkeypatch.setattr(module, 'machine_memory', lambda: 1000)
    with pytest.raises(RunError, match='would take 1.09 KiB of memory, and there are 1,000 bytes'):
        whole.model(0)


def test_sizes_on_the_command_line(tmp_path: Path, whole: Run) -> None:
    train_it = ('train', 'nations', '--model', 'DistMult', '--out', tmp_path / 'run')
    for args, said in (
        (('--epochs', 10**10), '--epochs 10000000000'),
        (('--epochs', '1e10'), '--epochs'),
        (('--num-negs-per-pos', 10**9), 'num_negs_per_pos'),
        (('--model-kwargs', '{"embedding_dim": 1000000000}'), '--model-kwargs'),
    ):
        line = refused(*train_it, *args)
        assert said in line and (args[1] == '1e10' or 'iB of memory' in line)
    line = refused(
        'explain', whole.folder, '--max', 1, '--use-projection', '--projection-dim', 10**12
    )
    assert '--projection-dim' in line and '7.28 TiB of memory' in line
    with pytest.raises(ValueError, match='7.28 TiB'):
        Projected(10**12)


def test_files_without_an_end(tmp_path: Path, whole: Run) -> None:
    os.mkfifo(tmp_path / 'pipe')
    with open(tmp_path / 'huge.tsv', 'wb') as f:
        f.truncate(2**42)
    for path, said in (
        ('/dev/zero', 'a device'),
        (tmp_path / 'pipe', 'a pipe'),
        (tmp_path / 'huge.tsv', '4 TiB'),
    ):
        assert said in refused('explain', whole.folder, '--test', path)
        (tmp_path / 'graph').mkdir(exist_ok=True)
        (tmp_path / 'graph/train.txt').unlink(missing_ok=True)
        (tmp_path / 'graph/train.txt').symlink_to(path)
        if said == '4 TiB':
            assert said in refused('train', tmp_path / 'graph', '--out', tmp_path / 'run')


def test_zipped_without_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / 'a.tsv.gz').write_bytes(gzip.compress(b'a\tb\tc\n' * 10**6))
    monkeypatch.setattr(triples, 'machine_memory', lambda: 2**20)
    with pytest.raises(triples.TriplesFileError, match='unzipped it has more than 256 KiB'):
        triples.read_triples(tmp_path / 'a.tsv.gz')


def test_too_many_triples_to_explain(
    tmp_path: Path, whole: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    "A table of all answers that could not be held is refused before the pass; fewer are answered."
    monkeypatch.setattr(question, 'machine_memory', lambda: 10**7)
    asked = torch.tensor([[h, r, t] for h in range(14) for r in range(50) for t in range(2)])
    rows = [f'{h}\t{r}\t{t}\n' for h, r, t in triples.to_labels(asked, whole.training)]
    (tmp_path / 'ask.tsv').write_text(''.join(rows))
    tracin = TracIn(whole, weighting='sgd', devices='cpu', progress=False)
    with pytest.raises(ValueError, match='of 1,400 triples would take about 26.7 MiB of memory'):
        tracin.explain(asked, k=10)
    assert tracin.counters.train_passes == 0 and len(tracin.explain(asked[:3], k=10).tests) == 3
    assert '1,400 triples' in refused('explain', whole.folder, '--test', tmp_path / 'ask.tsv')
    batch = (
        'batch',
        whole.folder,
        '--test',
        tmp_path / 'ask.tsv',
        '--output-dir',
        tmp_path / 'out',
    )
    assert '1,400 triples' in refused(*batch)
    assert invoke(*batch, '--max-triples', 2, '--weighting', 'sgd').exit_code == 0
