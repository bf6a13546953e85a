"""Several workers give what one process gives, whatever happens to them; with real processes."""

import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from objectives_for_workers import Misbehaving, Slow
from pykeen.datasets.nations import Nations

from tracin_nb.answer.results import Result
from tracin_nb.app.cli import main
from tracin_nb.engine.objectives import BCE
from tracin_nb.influence.cluster import _packed
from tracin_nb.influence.parts import Parts, read_question
from tracin_nb.influence.shards import RankJob, pass_at
from tracin_nb.influence.tiles import Pass
from tracin_nb.influence.tracin import TracIn, resume
from tracin_nb.influence.workers import WorkerError
from tracin_nb.runs.run import Run
from tracin_nb.runs.settings import RunError
from tracin_nb.runs.training import train

pytestmark = pytest.mark.filterwarnings('ignore')
SMALL = dict(
    embedding_dim=8,
    embedding_height=2,
    embedding_width=4,
    output_channels=3,
    kernel_height=2,
    kernel_width=2,
)
KINDS = dict(
    conve=dict(model='ConvE', model_kwargs=SMALL, num_negs_per_pos=2),
    distmult=dict(model='DistMult', model_kwargs=dict(embedding_dim=8), loss='MarginRanking'),
)
KILLS = int(os.environ.get('TRACIN_KILLS', 1))  # random moments at which a worker is killed
TWO = ['cpu', 'cpu']


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    "A run of two checkpoints of each kind."
    folder = tmp_path_factory.mktemp('runs')
    options = dict(epochs=2, keep_every=1, lr=0.01, batch_size=128, progress=False, device='cpu')
    return {
        name: train('nations', out=folder / name, **options, **kind) for name, kind in KINDS.items()
    }


@pytest.fixture
def tests():
    return Nations().testing.mapped_triples[:20]


def make(run, *args, devices='cpu', batch_size=64, **kwargs):
    return TracIn(
        run,
        *args,
        **dict(weighting='sgd', devices=devices, batch_size=batch_size, progress=False) | kwargs,
    )


def assert_equal(a, b):
    "Two results are the same bit for bit, ties and order included."
    assert a.frame.equals(b.frame) and a.tests.equals(b.tests)


def no_workers_left():
    return not multiprocessing.active_children() and not list(
        Path('/tmp').glob(f'tracin-{os.getpid()}-*')
    )


@pytest.mark.parametrize('kind', KINDS)
def test_two_are_as_one(runs, tests, kind):
    """Results, self-influence and matrix, from the same work: each triple passed over once per
    checkpoint."""
    one, two = make(runs[kind]), make(runs[kind], devices=TWO)
    assert_equal(two.explain(tests, 15, breakdown=True), one.explain(tests, 15, breakdown=True))
    first = two.counters.train_passes
    assert first == one.counters.train_passes and two.counters.shards == len(range(0, 1592, 64))
    if kind == 'conve':
        own = [
            make(runs[kind], weighting='natural', **how).self_influence(40)
            for how in ({}, dict(devices=TWO))
        ]
        assert own[1].frame.equals(own[0].frame)  # the metric travels to the workers
        assert torch.equal(two.scores(tests[:3]), one.scores(tests[:3]))
    assert two.counters.loads == one.counters.loads == 2 and no_workers_left()


def asked(tracin, tests):
    "A question's work."
    side, *_ = tracin.tests.side(tests, tracin.tests.engines())
    whole = tracin.planner.plan(side, torch.arange(tracin.run.training.num_triples), 5)
    return tracin.crew.work(RankJob(whole, side, 5), tracin.steps)


@pytest.mark.parametrize('kind', KINDS)
def test_what_the_folder_of_the_run_holds_is_not_sent(runs, tests, kind):
    "Neither models nor triples nor their order travel; a worker finds the same in the folder."
    work = asked(make(runs[kind], devices=TWO), tests[:1])
    light, whole = _packed(work.delivery()), _packed(work.delivery(sent=True))
    state = runs[kind].state(0)
    held = 2 * sum(x.nbytes for x in state.values()) + 1592 * 4 * 8
    assert len(whole) - len(light) > 0.9 * held > 40_000
    rest = work.delivery().order
    assert rest.rows is None and len(rest.some) == 64 and not len(rest.rest)
    ours, theirs = (
        d('cpu')(3, lambda n: None)['found'] for d in (work.delivery(), work.delivery(sent=True))
    )
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


def test_any_pass_is_the_same_there(runs):
    "All triples, some in a row, some in any order; none where triples are not those of the run."
    every = runs['conve'].training.mapped_triples
    some = torch.tensor([7, 3, 900])
    for rows in (torch.arange(5, 20), some, torch.arange(len(every))):
        there = pass_at(Pass(rows, every[rows], False, 4, 4), every)
        assert torch.equal(there(every).rows, rows) and torch.equal(
            there(every).triples, every[rows]
        )
    assert isinstance(there.rows, range)
    assert pass_at(Pass(some, every[some].flip(1), False, 4, 4), every) is None
    with pytest.raises(RunError, match='in another order here'):
        there(every.flip(0))


def test_another_run_in_the_folder_is_noticed(runs, tests, tmp_path):
    "What a worker opens must be what was asked about."
    folder = Path(shutil.copytree(runs['conve'].folder, tmp_path / 'run'))
    work = asked(make(Run.open(folder), devices=TWO), tests[:1])
    shutil.rmtree(folder)
    shutil.copytree(runs['distmult'].folder, folder)
    with pytest.raises(WorkerError, match='has changed: other triples or checkpoints'):
        work.do([0], lambda *found: None)
    assert no_workers_left()


def test_equal_scores_keep_their_order(runs):
    "A training triple that is there many times ties with itself."
    run = runs['conve']
    copies = run.training.mapped_triples[:3].repeat(100, 1)
    run = Run.from_model(
        run.model(1), run.training.clone_and_exchange_triples(copies), learning_rates=[0.1]
    )
    one, two = (
        make(run, BCE(), devices=d, batch_size=7).explain(copies[:2], 25) for d in ('cpu', TWO)
    )
    assert_equal(two, one)
    assert one.proponents['influence'].duplicated().any()


def test_the_command_line(runs, tmp_path):
    ask = ['--triple', 'china', 'embassy', 'cuba', '-k', '5', '--out', tmp_path / 'out']
    how = ['--batch-size', '64', '--devices', 'cpu,cpu']
    command = [sys.executable, '-m', 'tracin_nb', 'explain', runs['conve'].folder, *ask, *how]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    one = make(runs['conve'], weighting='natural').explain(('china', 'embassy', 'cuba'), 5)
    assert Result.load(tmp_path / 'out').frame.equals(one.frame)


@pytest.mark.skipif(torch.cuda.is_available(), reason='there are GPUs here')
def test_no_gpu_is_an_error(runs):
    done = CliRunner().invoke(
        main,
        [
            'explain',
            str(runs['conve'].folder),
            '--triple',
            'china',
            'embassy',
            'cuba',
            '--enable-multi-gpu',
        ],
    )
    assert done.exit_code == 2 and 'no GPU' in done.stderr


@pytest.mark.parametrize('what', ['raise', 'die'])
def test_a_worker_fails_once(runs, tests, tmp_path, what):
    "The other one does its shard."
    one = make(runs['conve'], BCE()).explain(tests, 5)
    two = make(runs['conve'], Misbehaving(what=what, flag=str(tmp_path / 'once')), devices=TWO)
    assert_equal(two.explain(tests, 5), one)
    assert no_workers_left()


@pytest.mark.parametrize(
    'what,said', [('raise', 'ArithmeticError: on purpose'), ('die', 'SIGKILL')]
)
def test_every_worker_fails(runs, tests, tmp_path, what, said):
    "The error has their words in it, and there is no result."
    with pytest.raises(WorkerError, match=said):
        make(runs['conve'], Misbehaving(what=what), devices=['cpu']).explain(
            tests, 5, out=tmp_path / 'out'
        )
    assert not list((tmp_path / 'out').glob('result*')) and no_workers_left()


def test_a_worker_hangs(runs, tests, tmp_path):
    "It is given up, and its shard is done elsewhere."
    one = make(runs['conve'], BCE()).explain(tests, 5)
    two = make(
        runs['conve'],
        Misbehaving(what='hang', flag=str(tmp_path / 'once')),
        devices=TWO,
        timeout=10.0,
    )
    assert_equal(two.explain(tests, 5), one)
    assert no_workers_left()


def test_an_objective_of_this_module_is_named(runs, tests):
    class Here(BCE):
        pass

    with pytest.raises(ValueError, match='cannot be sent to workers.*module'):
        make(runs['conve'], Here(), devices=TWO).explain(tests, 5)
    assert no_workers_left()


@contextmanager
def one_killed(seconds):
    """Kill one of the workers so long after they were started; one may be killed only while the
    block runs."""
    over = threading.Event()

    def kill():
        while not multiprocessing.active_children() and not over.wait(0.05):
            pass
        there = not over.wait(seconds) and multiprocessing.active_children()
        if there:
            os.kill(random.choice(there).pid, signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    try:
        yield
    finally:
        over.set()
        killer.join()


@pytest.mark.parametrize('moment', range(KILLS))
def test_a_worker_is_killed_at_any_moment(runs, tests, moment, monkeypatch, fresh_workers):
    one = make(runs['conve'], BCE()).explain(tests, 5)
    monkeypatch.setenv('TRACIN_TEST_WAIT', '0.1')
    with one_killed(random.Random(moment + int(time.time())).uniform(0, 12)):
        assert_equal(make(runs['conve'], Slow(), devices=TWO).explain(tests, 5), one)
    assert no_workers_left()


def started(run, out, devices='cpu,cpu'):
    """A command that takes a minute, with parts in a folder, in a process group of its own;
    returns when there are some."""
    code = (
        'from objectives_for_workers import Slow; from tracin_nb.influence.tracin import TracIn\n'
        'import signal, sys, torch; torch.set_num_threads(1)\n'
        'if __name__ == "__main__":\n'
        '    signal.signal(signal.SIGINT, signal.default_int_handler)\n'  # a shell may ignore it
        '    run, out, devices = sys.argv[1:]\n'
        '    TracIn(run, Slow(), weighting="sgd", devices=devices.split(","), batch_size=16,'
        '           progress=False).explain('
        '[("china", "embassy", "cuba")], 5, out=out)\n'
    )
    script = Path(out).parent / 'ask.py'
    script.write_text(code)
    temporary(out).mkdir()
    env = dict(
        os.environ,
        PYTHONPATH=str(Path(__file__).parent),
        TRACIN_TEST_WAIT='0.5',
        TMPDIR=str(temporary(out)),
    )
    process = subprocess.Popen(
        [sys.executable, script, run.folder, out, devices],
        env=env,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not list(Path(out).glob('parts/0*')):
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.1)
    return process


def temporary(out):
    return Path(out).parent / 'temporary'


def group(pid):
    "The processes of a process group that still run, by their ids."
    listed = subprocess.run(
        ['ps', '-eo', 'pgid=,stat=,pid='], capture_output=True, text=True
    ).stdout.splitlines()
    return [
        line.split()[2]
        for line in listed
        if int(line.split()[0]) == pid and 'Z' not in line.split()[1]
    ]


def shared_memory(pids):
    "What processes have left in /dev/shm, where the names are made with their ids."
    return [name for name in os.listdir('/dev/shm') if set(re.findall(r'\d+', name)) & set(pids)]


@pytest.mark.parametrize('how', [signal.SIGINT, signal.SIGKILL])
def test_the_whole_program_is_stopped(runs, tmp_path, how):
    """Ctrl-C, which all processes of a terminal get, or the death of the parent: nothing is left
    but what was finished."""
    process = started(runs['conve'], tmp_path / 'out')
    pids, start = group(process.pid), time.monotonic()
    assert list(temporary(tmp_path / 'out').glob('tracin-*'))
    if how == signal.SIGINT:
        os.killpg(process.pid, how)
    else:
        os.kill(process.pid, how)
    assert process.wait(30) != 0
    while group(process.pid) and time.monotonic() < start + 30:
        time.sleep(0.1)
    assert not group(process.pid) and not shared_memory(pids)
    assert not list(temporary(tmp_path / 'out').glob('tracin-*'))
    parts = Parts(tmp_path / 'out', read_question(tmp_path / 'out'))
    done = len(list(parts.finished()))
    assert 0 < done < len(parts)
    rest = make(runs['conve'], Slow(), batch_size=16)
    result = rest.explain([('china', 'embassy', 'cuba')], 5, out=tmp_path / 'out')
    assert rest.counters.shards == len(parts) - done
    assert_equal(
        result, make(runs['conve'], BCE(), batch_size=16).explain([('china', 'embassy', 'cuba')], 5)
    )
    with pytest.raises(ValueError, match='from memory'):
        resume(tmp_path / 'out')
