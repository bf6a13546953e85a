"""A question that was interrupted goes on where it stopped, and nothing else ever goes into its
folder."""

import errno
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time

import pytest
from pykeen.datasets.nations import Nations

from tracin_nb.answer.results import Result
from tracin_nb.influence.parts import Parts, read_question
from tracin_nb.influence.tracin import TracIn, resume
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
KILLS = int(os.environ.get('TRACIN_KILLS', 10))  # random moments at which the program is killed
SHARDS, CHECKPOINTS = 64, 2


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    return train(
        'nations',
        'ConvE',
        out=tmp_path_factory.mktemp('run') / 'conve',
        epochs=2,
        keep_every=1,
        lr=0.01,
        batch_size=128,
        progress=False,
        device='cpu',
        model_kwargs=SMALL,
        num_negs_per_pos=2,
    )


@pytest.fixture(scope='module')
def tests():
    return Nations().testing.mapped_triples[:20]


@pytest.fixture(scope='module')
def whole(run, tests):
    "The result of an undisturbed call."
    return make(run).explain(tests, 5)


def make(run, *args, **kwargs):
    return TracIn(
        run,
        *args,
        **dict(dict(weighting='sgd', devices='cpu', progress=False, batch_size=25), **kwargs),
    )


def parts_of(out):
    return Parts(out, read_question(out))


def in_child(work):
    "Run `work` in a forked process; its id."
    if pid := os.fork():
        return pid
    try:
        work()
    finally:
        os._exit(0)


def cut(run, tests, out, n=40):
    "A folder in which `n` shards are finished."

    class Stop(Exception):
        pass

    tracin, write = make(run), Parts.write

    def some(self, shard, tensors):
        if shard == n:
            raise Stop
        write(self, shard, tensors)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Parts, 'write', some)
        with pytest.raises(Stop):
            tracin.explain(tests, 5, out=out)
    return out


@pytest.mark.parametrize('moment', range(KILLS))
def test_killed_at_any_moment(run, tests, whole, tmp_path, moment):
    """The program is killed; the next call does what is missing and nothing else, and the result
    is the same."""
    out = tmp_path / 'out'
    pid = in_child(lambda: make(run).explain(tests, 5, out=out))
    time.sleep(random.uniform(0, 0.8))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    done = len(list(parts_of(out).finished())) if (out / 'question.json').exists() else 0
    complete = (out / 'question.json').exists() and parts_of(out).complete
    tracin = make(run)
    result = tracin.explain(tests, 5, out=out)
    assert result.frame.equals(whole.frame)
    assert tracin.counters.shards == (0 if complete else SHARDS - done)
    assert tracin.counters.train_passes == CHECKPOINTS * tracin.counters.shards
    assert sorted(p.name for p in out.iterdir() if not p.name.startswith('.')) == [
        'manifest.json',
        'question.json',
        'result.csv',
        'result.json',
        'result.parquet',
    ]


def test_finished_is_found(run, tests, whole, tmp_path):
    "The third call does nothing at all."
    for passes in (SHARDS * CHECKPOINTS, 0, 0):
        tracin = make(run)
        assert tracin.explain(tests, 5, out=tmp_path / 'out').frame.equals(whole.frame)
        assert tracin.counters.train_passes == passes and tracin.counters.loads == (
            CHECKPOINTS if passes else 0
        )
    assert Result.load(tmp_path / 'out').frame.equals(whole.frame)


@pytest.mark.parametrize(
    'how', [lambda b: b[:-1], lambda b: b'', lambda b: b[:200] + bytes([b[200] ^ 1]) + b[201:]]
)
def test_damaged_parts_are_done_again(run, tests, whole, tmp_path, how):
    out = cut(run, tests, tmp_path / 'out')
    path = next((out / 'parts').glob('00007-*'))
    path.write_bytes(how(path.read_bytes()))
    tracin = make(run)
    assert tracin.explain(tests, 5, out=out).frame.equals(whole.frame)
    assert tracin.counters.shards == SHARDS - 40 + 1


OTHER = dict(
    objective=dict(objective='bce'),
    weighting=dict(weighting='cosine'),
    engine=dict(engine='loop'),
    precision=dict(precision='bf16'),
    batch_size=dict(batch_size=26),
    weights=dict(checkpoints=[0]),
)


@pytest.mark.parametrize('name', OTHER)
def test_another_analysis_is_refused(run, tests, tmp_path, name):
    out = cut(run, tests, tmp_path / 'out', 2)
    before = {p: p.read_bytes() for p in out.rglob('*') if p.is_file()}
    with pytest.raises(ValueError, match=f'belongs to another question:.*{name}'):
        make(run, **OTHER[name]).explain(tests, 5, out=out)
    assert before == {p: p.read_bytes() for p in out.rglob('*') if p.is_file()}


@pytest.mark.parametrize(
    'name,ask',
    dict(
        test=dict(test=slice(1, 20)),
        k=dict(k=6),
        breakdown=dict(breakdown=True),
        train=dict(train=slice(0, 100)),
        test_objective=dict(against=3),
    ).items(),
)
def test_another_question_is_refused(run, tests, tmp_path, name, ask):
    out = cut(run, tests, tmp_path / 'out', 2)
    asked = tests[~(tests[:, 2] == 3)] if 'against' in ask else tests[ask.get('test', slice(None))]
    options = {n: v for n, v in ask.items() if n in ('k', 'breakdown', 'against')}
    if 'train' in ask:
        options['train'] = run.training.mapped_triples[ask['train']]
    with pytest.raises(ValueError, match=f'belongs to another question:.*{name}'):
        make(run).explain(asked, **dict(dict(k=5), **options), out=out)


def test_other_code_and_other_weights_are_refused(run, tests, tmp_path):
    out = cut(run, tests, tmp_path / 'out', 2)
    question = json.loads((out / 'question.json').read_text())
    wrong = (
        (('versions', 'tracin_nb'), r'versions\.tracin_nb is "9" there'),
        (('weights', 1), r'weights\[1\]'),
    )
    for where, name in wrong:
        changed = json.loads(json.dumps(question))
        changed['asked'][where[0]][where[1]] = '9'
        (out / 'question.json').write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=name):
            make(run).explain(tests, 5, out=out)
    (out / 'question.json').write_text('{')
    with pytest.raises(ValueError, match='question.json is damaged'):
        make(run).explain(tests, 5, out=out)
    make(run).explain(tests, 5, out=out, overwrite=True)


def test_a_folder_with_something_else_is_refused(run, tests, tmp_path, whole):
    (tmp_path / 'note.txt').write_text('mine')
    with pytest.raises(ValueError, match='holds note.txt'):
        make(run).explain(tests, 5, out=tmp_path)
    make(run).explain(tests, 5, out=tmp_path, overwrite=True)
    assert (tmp_path / 'note.txt').read_text() == 'mine' and Result.load(tmp_path).frame.equals(
        whole.frame
    )


def test_by_name_of_the_folder(run, tests, whole, tmp_path):
    "`tracin status`, `tracin resume`."
    out = cut(run, tests, tmp_path / 'out')
    command = [sys.executable, '-m', 'tracin_nb']
    tell = lambda *args: subprocess.run([*command, *map(str, args)], capture_output=True, text=True)
    assert (
        tell('status', out).stdout
        == f'{out}: 40 of 64 shards done, 1,000 of 1,592 training triples\n'
    )
    done = tell('resume', out)
    assert done.returncode == 0, done.stderr
    assert Result.load(out).frame.equals(whole.frame)
    assert tell('status', out).stdout == f'{out}: finished\n'
    assert resume(out, progress=False).frame.equals(whole.frame)


def test_a_limit_on_files(run, tests, whole, tmp_path):
    "The system refuses to write a file as large as a part; what is there stays whole."
    out = cut(run, tests, tmp_path / 'out', 20)
    before = {p: p.read_bytes() for p in out.rglob('*') if p.is_file()}

    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        try:
            make(run).explain(tests, 5, out=out)
        except OSError as e:
            os._exit(7 if e.errno == errno.EFBIG and 'shard 20 cannot be kept' in str(e) else 8)

    pid = in_child(work)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert before == {p: p.read_bytes() for p in out.rglob('*') if p.is_file()}
    assert make(run).explain(tests, 5, out=out).frame.equals(whole.frame)


FULL = """
set -e
mount -t tmpfs -o size=300k tmpfs {disk}
cp -r {out} {disk}/out
[ {how} = full ] && (dd if=/dev/zero of={disk}/ballast bs=1k status=none || true)
[ {how} = readonly ] && mount -o remount,ro {disk}
set +e
{python} -m tracin_nb resume {disk}/out
echo status $?
mount -o remount,rw {disk}; rm -f {disk}/ballast
{python} -m tracin_nb status {disk}/out
cp -r {disk}/out {again}
"""


@pytest.mark.parametrize(
    'how,said', [('full', 'No space left on device'), ('readonly', 'Read-only file system')]
)
def test_a_full_disk_or_a_read_only_one(run, tests, whole, tmp_path, how, said):
    "A real file system of 300 KiB, in a mount namespace of its own."
    if subprocess.run(
        ['unshare', '-rm', 'mount', '-t', 'tmpfs', 'tmpfs', '/mnt'], capture_output=True
    ).returncode:
        pytest.skip('this system does not let us mount a file system')
    out, disk = cut(run, tests, tmp_path / 'out', 20), tmp_path / 'disk'
    disk.mkdir()
    script = FULL.format(
        disk=disk, out=out, how=how, python=sys.executable, again=tmp_path / 'again'
    )
    done = subprocess.run(['unshare', '-rm', 'sh', '-c', script], capture_output=True, text=True)
    assert 'status 2' in done.stdout and said in done.stderr and 'Traceback' not in done.stderr, (
        done
    )
    assert '20 of 64 shards done' in done.stdout
    assert make(run).explain(tests, 5, out=tmp_path / 'again').frame.equals(whole.frame)
