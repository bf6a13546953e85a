"""Folders of results: one process at a time, nothing half-way that blocks, and labels that any
terminal can show."""

import errno
import io
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from click.testing import Result as Outcome

from tracin_nb import locks
from tracin_nb.answer import results
from tracin_nb.answer.results import Result, SelfInfluence
from tracin_nb.app import cli
from tracin_nb.influence.parts import Parts
from tracin_nb.influence.tracin import TracIn
from tracin_nb.locks import LOCK, SAVING, alone
from tracin_nb.runs.run import Run
from tracin_nb.runs.training import train

pytestmark = pytest.mark.filterwarnings('ignore')
FILES = ['manifest.json', 'result.csv', 'result.json', 'result.parquet']
TOKYO = ('東京1', 'r1', 'x1')


@pytest.fixture(scope='module')
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    "A run of one epoch on 35 triples whose heads are Japanese."
    (data := tmp_path_factory.mktemp('data') / 'graph').mkdir()
    lines = [f'東京{i % 5}\tr{i % 3}\tx{i % 7}' for i in range(35)]
    (data / 'train.txt').write_text('\n'.join(lines), encoding='utf-8')
    return train(
        data,
        'DistMult',
        out=data.parent / 'run',
        epochs=1,
        keep_every=1,
        model_kwargs=dict(embedding_dim=4),
        progress=False,
        device='cpu',
    )


def ask(run: Run, *words: object) -> Outcome:
    "A command in this process, on the CPU; only what it refuses may go wrong."
    where = () if words[0] in ('filter', 'status') else ('--devices', 'cpu')
    done = CliRunner().invoke(
        cli.main,
        [
            str(words[0]),
            *([str(run.folder)] if words[0] != 'status' else []),
            *map(str, (*words[1:], *where)),
        ],
    )
    if not isinstance(done.exception, SystemExit | None):
        raise done.exception
    return done


QUESTIONS = {
    'self': ('self', '-k', 3),
    'absolute': ('explain', '--triple', *TOKYO, '--rank-by', 'absolute'),
    'mode self': ('explain', '--mode', 'self'),
    'run': ('explain', '--triple', *TOKYO),
}


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, 'No space left on device')


def killed(work: Callable[[], object]) -> None:
    "Do the work in a process that kills itself meanwhile."
    if not (pid := os.fork()):
        try:
            work()
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def saved(out: Path) -> list[str]:
    return sorted(p.name for p in out.iterdir() if p.name != 'question.json')


# ---- saved whole, or not at all


@pytest.mark.parametrize('suffix', ['.csv', '.parquet', '.json'])
@pytest.mark.parametrize('name', QUESTIONS)
def test_full_disk(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, suffix: str
) -> None:
    "One line that names the place; the same command works as soon as there is room."
    out = tmp_path / 'why'
    with monkeypatch.context() as patch:
        patch.setitem(results.WRITERS, suffix, full)
        done = ask(run, *QUESTIONS[name], '--out', out)
    assert (done.exit_code, f'{out} cannot be saved (No space left on device)' in done.stderr) == (
        2,
        True,
    ), done.stderr
    assert name == 'run' or not out.exists()
    assert ask(run, *QUESTIONS[name], '--out', out).exit_code == 0
    assert saved(out) == FILES


@pytest.mark.parametrize('moves', range(5))
@pytest.mark.parametrize('name', ['self', 'absolute'])
def test_killed_while_saving(run: Run, tmp_path: Path, name: str, moves: int) -> None:
    """Killed before the first, second, ... file is in its place: the same command does it again,
    and nothing stays."""
    out, places, replace = tmp_path / 'why', [], os.replace

    def some(source: Path, target: Path) -> None:
        if Path(target).parent == out:
            places.append(target)
            if len(places) > moves:
                os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    def work() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, 'replace', some)
            ask(run, *QUESTIONS[name], '--out', out)
        os.kill(os.getpid(), signal.SIGKILL)  # the last time: after all of it

    killed(work)
    done = ask(run, *QUESTIONS[name], '--out', out)
    assert (done.exit_code, saved(out)) == ((0, FILES) if moves < 4 else (2, FILES)), done.stderr
    kind = SelfInfluence if name == 'self' else Result
    assert (
        len(kind.load(out).frame) == len(json.loads((out / 'result.json').read_text())['rows']) > 0
    )


def test_older_result_survives(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "A disk that is full, or a kill, while an older result is replaced: that stays as it was."
    out = tmp_path / 'why'
    assert ask(run, 'self', '-k', 3, '--out', out).exit_code == 0
    before = {p: p.read_bytes() for p in out.iterdir()}
    for last in (full, lambda *_: os.kill(os.getpid(), signal.SIGKILL)):
        with monkeypatch.context() as patch:
            patch.setitem(results.WRITERS, '.json', last)
            again = lambda: ask(run, 'self', '-k', 4, '--out', out, '--overwrite')
            if last is full:
                assert again().exit_code == 2
            else:
                killed(again)
        assert before == {p: p.read_bytes() for p in out.iterdir() if not p.name.startswith('.')}
    assert len(SelfInfluence.load(out).frame) == 3
    assert ask(run, 'self', '-k', 4, '--out', out, '--overwrite').exit_code == 0
    assert (saved(out), len(SelfInfluence.load(out).frame)) == (FILES, 4)


def test_nothing_is_replaced_unasked(run: Run, tmp_path: Path) -> None:
    """The folder of an answer, of another kind of answer, and a table that somebody saved:
    refused, and left alone."""
    (tmp_path / 'table').mkdir()
    (tmp_path / 'table' / 'result.csv').write_text('mine')
    assert ask(run, *QUESTIONS['run'], '--out', tmp_path / 'why').exit_code == 0
    before = {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()}
    for name in ('self', 'mode self', 'absolute'):
        for out in ('why', 'table'):
            done = ask(run, *QUESTIONS[name], '--out', tmp_path / out)
            assert (done.exit_code, 'already exists' in done.stderr) == (2, True)
    assert before == {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()}


def test_leftovers_of_other_versions(run: Run, tmp_path: Path) -> None:
    """Hidden folders in which earlier versions were writing when they were killed are no result,
    and go."""
    for name in (
        '.result.csv.x8_s1k2a',
        '.manifest.json.abcdefgh',
        '.question.json.abcdefgh',
        SAVING,
    ):
        (tmp_path / 'why' / name).mkdir(parents=True)
    (tmp_path / 'why' / '.note').write_text('mine')
    assert ask(run, *QUESTIONS['run'], '--out', tmp_path / 'why').exit_code == 0
    assert saved(tmp_path / 'why') == ['.note', *FILES]


# ---- one at a time


@pytest.mark.parametrize('name', QUESTIONS)
def test_somebody_else_is_there(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """While another works in the folder, or writes the file, it is refused with the truth; and
    not afterwards."""
    monkeypatch.setattr(locks, 'PATIENCE', 0.2)
    for out, where in (
        (tmp_path / 'why', (tmp_path / 'why',)),
        (tmp_path / 'why.csv', (tmp_path, f'.why.csv{LOCK}')),
    ):
        inside, leave = threading.Event(), threading.Event()

        def other() -> None:
            with alone(*where):
                inside.set()
                leave.wait()

        (thread := threading.Thread(target=other)).start()
        inside.wait()
        done = ask(run, *QUESTIONS[name], '--out', out)
        leave.set()
        thread.join()
        assert done.exit_code == 2 and done.stdout == ''
        assert f'{where[0]}: another process (or thread) is using it' in done.stderr, done.stderr
        assert ask(run, *QUESTIONS[name], '--out', out).exit_code == 0 and out.exists()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith('.')] == []


@pytest.mark.parametrize('name', ['run', 'self'])
def test_two_at_once(run: Run, tmp_path: Path, name: str) -> None:
    """Four processes ask the same at once: the answer is there and whole, and whoever does not
    have it says why."""
    out, go = tmp_path / 'why', tmp_path / 'go'
    pids = []
    for _ in range(4):
        if not (pid := os.fork()):
            try:
                while not go.exists():
                    pass
                done = ask(run, *QUESTIONS[name], '--out', out)
                os._exit(
                    done.exit_code if done.exit_code != 2 or 'already exists' in done.stderr else 9
                )
            finally:
                os._exit(8)
        pids.append(pid)
    go.touch()
    ended = sorted(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids)
    assert ended == ([0] * 4 if name == 'run' else [0, 2, 2, 2])
    assert (
        saved(out) == FILES
        and len((Result if name == 'run' else SelfInfluence).load(out).frame) > 0
    )


def test_the_lock_of_the_killed(tmp_path: Path) -> None:
    """A lock ends with its process; the file that is left does not matter. A folder made for
    nothing goes."""

    def work() -> None:
        with alone(tmp_path / 'a' / 'b'):
            os.kill(os.getpid(), signal.SIGKILL)

    killed(work)
    assert (tmp_path / 'a' / 'b' / LOCK).exists()
    with alone(tmp_path / 'a' / 'b', seconds=0):
        pass
    assert list((tmp_path / 'a' / 'b').iterdir()) == []
    with pytest.raises(KeyError), alone(tmp_path / 'c' / 'd'):
        raise KeyError
    assert not (tmp_path / 'c').exists()


# ---- what an answer cost


@pytest.mark.parametrize(
    'size', [dict(batch_size=4), dict(memory='64MB')], ids=lambda d: next(iter(d))
)
@pytest.mark.parametrize('weighting', ['sgd', 'natural'])
def test_counters_of_a_resumed_answer(run: Run, tmp_path: Path, size: dict, weighting: str) -> None:
    "They are those of an answer that was not disturbed; the analysis itself counts what it did."

    class Stop(Exception):
        pass

    make = lambda: TracIn(run, devices='cpu', progress=False, weighting=weighting, **size)
    whole, write = make().explain(TOKYO, 3, out=tmp_path / 'whole'), Parts.write

    def some(self: Parts, shard: int, tensors: dict) -> None:
        write(self, shard, tensors)
        if shard == len(self) // 2:
            raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Parts, 'write', some)
        with pytest.raises(Stop):
            make().explain(TOKYO, 3, out=tmp_path / 'cut')
    tracin = make()
    assert (
        tracin.explain(TOKYO, 3, out=tmp_path / 'cut').facts['counters'] == whole.facts['counters']
    )
    if 'batch_size' in size:
        assert 0 < tracin.counters.train_passes < whole.facts['counters']['train_passes']
    else:
        assert tracin.counters.trial_passes == 0 < whole.facts['counters']['trial_passes']


# ---- narrow terminals

NARROW = {
    'run': ('explain', '--triple', *TOKYO),
    'self': ('self', '-k', '3'),
    'mode self': ('explain', '--mode', 'self'),
    'csv': ('explain', '--triple', *TOKYO, '--format', 'csv'),
    'json': ('self', '--format', 'json'),
    'paths': ('paths', '--triple', *TOKYO),
    'unknown label': ('explain', '--triple', '大阪', 'r1', 'x1'),
    'profile': ('explain', '--triple', *TOKYO, '--profile'),
}


@pytest.mark.parametrize(
    'name,encoding', [*((name, 'cp1252') for name in NARROW), ('run', 'ascii')]
)
def test_narrow_output(run: Run, monkeypatch: pytest.MonkeyPatch, name: str, encoding: str) -> None:
    """What the encoding of stdout and stderr lacks is replaced; the status is that of a wide
    terminal."""
    wide, (command, *rest) = ask(run, *NARROW[name]), NARROW[name]
    out, err = (
        io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors='strict') for _ in range(2)
    )
    monkeypatch.setattr(sys, 'stdout', out)
    monkeypatch.setattr(sys, 'stderr', err)
    with pytest.raises(SystemExit) as ended:
        cli.main([command, str(run.folder), *rest, '--devices', 'cpu'])
    monkeypatch.undo()
    for stream in (out, err):
        stream.flush()
    assert ended.value.code == wide.exit_code == (2 if name == 'unknown label' else 0)
    written = (err if wide.exit_code else out).buffer.getvalue()
    if name in ('csv', 'json'):
        assert '東京1' in written.decode('utf-8')
    elif name != 'unknown label':
        assert len(written.splitlines()) == len(wide.stdout.splitlines()) > 2
    assert b'Traceback' not in err.buffer.getvalue()
    if encoding == 'cp1252' and name not in ('csv', 'json'):
        assert rb'\u5927\u962a' in written if wide.exit_code else rb'\u6771\u4eac' in written
