"""A batch: one bad label is one failure, old results are never taken for new ones, and the
killed leave nothing."""

import errno
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from click.testing import Result as Outcome

from tracin_nb.app import cli
from tracin_nb.influence import batch as batches
from tracin_nb.influence.batch import MANIFEST, SUMMARY, Batch, read_items, write_neighbourhoods
from tracin_nb.influence.parts import Parts
from tracin_nb.influence.shards import RankJob
from tracin_nb.influence.tracin import TracIn
from tracin_nb.locks import alone
from tracin_nb.runs.run import Run
from tracin_nb.runs.training import train

pytestmark = pytest.mark.filterwarnings('ignore')
LONG = ('北' * 70, 'r0', 'ü' * 90)  # 210 and 180 bytes in UTF-8
TRIPLES = [
    LONG,
    ('a', 'r1', 'b'),
    ('a' * 300, 'r1', 'B'),
    ('con', 'r0', 'x/y:z?*|"<>\\'),
    ('𝔘' * 40, 'r1', '..'),
]


@pytest.fixture(scope='module')
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    "A run of one epoch on triples with labels that are hard on file systems."
    (data := tmp_path_factory.mktemp('batch') / 'graph').mkdir()
    plain = [(f'e{i % 6}', f'r{i % 2}', f'f{i % 5}') for i in range(30)]
    (data / 'train.txt').write_text(
        ''.join('\t'.join(t) + '\n' for t in [*plain, *TRIPLES]), encoding='utf-8'
    )
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


@pytest.fixture
def test(tmp_path: Path) -> Path:
    "A file of all these as predictions, and one with an unknown label."
    rows = [*TRIPLES, ('a', 'r1', 'atlantis')]
    (tmp_path / 'test.tsv').write_text(''.join('\t'.join(t) + '\n' for t in rows), encoding='utf-8')
    return tmp_path / 'test.tsv'


def call(run: Run, test: Path, *words: object) -> tuple[Outcome, dict, Path]:
    "`tracin batch`, its summary and its folder."
    out = test.parent / 'out'
    done = CliRunner().invoke(
        cli.main,
        [
            'batch',
            str(run.folder),
            '--test',
            str(test),
            '--output-dir',
            str(out),
            '--devices',
            'cpu',
            *map(str, words),
        ],
    )
    if not isinstance(done.exception, SystemExit | None):
        raise done.exception
    return done, json.loads((out / SUMMARY).read_text()) if (out / SUMMARY).exists() else {}, out


def hidden(out: Path) -> list[str]:
    return sorted(p.name for p in out.iterdir() if p.name.startswith('.'))


def states(summary: dict) -> list[str]:
    return [row['status'][0] for row in summary['results']]


def killed(work: Callable[[], object]) -> None:
    "Do the work in a process that kills itself meanwhile."
    if not (pid := os.fork()):
        try:
            work()
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# ---- names


def test_labels_of_all_kinds(run: Run, test: Path) -> None:
    """Names of files are cut by bytes, and each prediction has its own, also where letters are
    not told apart by case."""
    done, summary, out = call(run, test)
    assert (done.exit_code, states(summary)) == (1, list('sssssf'))
    names = [name for row in summary['results'] for name in row.get('files', ())]
    assert sorted(names) == sorted(
        p.name for p in out.iterdir() if p.name not in (MANIFEST, SUMMARY)
    )
    assert (
        max(len(name.encode()) for name in names) < 160
        and len({name.casefold() for name in names}) == 10
    )
    assert names[0] == f'triple_000_{"北" * 20}_{"ü" * 30}_tracin.csv'
    assert names[2:5] == [
        'triple_001_a_b_tracin.csv',
        'triple_001_a_b_tracin.json',
        f'triple_002_{"a" * 60}_B_tracin.csv',
    ]
    assert not set('/\\:*?"<>|') & set(''.join(names))
    assert call(run, test, '--skip-existing')[1]['skipped'] == 5


# ---- what cannot be written


@pytest.mark.parametrize(
    'error', [OSError(errno.ENAMETOOLONG, 'File name too long'), ValueError('odd letter')]
)
def test_one_failure_is_one_failure(
    run: Run, test: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    "The others are written and kept; the next call does that one, without another pass."
    write = batches.write_influence_csv

    def fails(table: object, path: Path) -> None:
        if 'triple_001' in path.name:
            raise error
        write(table, path)

    with monkeypatch.context() as patch:
        patch.setattr(batches, 'write_influence_csv', fails)
        done, summary, out = call(run, test)
    assert (done.exit_code, states(summary)) == (1, list('sfsssf'))
    assert f'error: triple 1: its files cannot be written: {error.args[-1]}' in done.stderr
    assert len(json.loads((out / MANIFEST).read_text())) == 4
    done, summary, out = call(run, test, '--skip-existing')
    assert (summary['skipped'], states(summary), hidden(out)) == (4, list('sssssf'), [])


def test_a_full_disk_keeps_the_pass(run: Run, test: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "Nothing can be written at the end: the answer is kept, and the same call takes it from there."

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, 'No space left on device')

    with monkeypatch.context() as patch:
        for name in ('write_influence_csv', '_write_object'):
            patch.setattr(batches, name, full)
        done, summary, out = call(run, test)
    assert (done.exit_code, summary, 'No space left' in done.stderr) == (2, {}, True)
    monkeypatch.setattr(RankJob, 'rank', lambda *_: pytest.fail('a second pass'))
    done, summary, out = call(run, test)
    assert (states(summary), hidden(out)) == (list('sssssf'), [])


# ---- what is there already


def test_other_results_are_named(run: Run, test: Path) -> None:
    "Files of other predictions, and of a question of which fewer were asked, are told of."
    out = call(run, test, '--max-triples', 4)[2]
    before = {p.name for p in out.iterdir() if 'tracin' in p.name and p.name.startswith('triple')}
    done, summary, _ = call(run, test, '--max-triples', 2, '-k', 3, '--overwrite')
    others = sorted(n for n in before if n.startswith(('triple_002', 'triple_003')))
    assert (summary['others'], len(others)) == (others, 4)
    assert (
        f'note: {out} also holds 4 files of other predictions or questions, such as {others[0]}'
        in done.stderr
    )
    done, summary, _ = call(run, test, '--max-triples', 4, '--overwrite')
    assert summary['others'] == [] and 'also holds' not in done.stderr
    done, summary, _ = call(run, test, '--max-triples', 1, '--skip-tracin', '--n-hops', 1)
    assert summary['others'] == [] and [row['files'] for row in summary['results']] == [
        [f'triple_000_{"北" * 20}_{"ü" * 30}_filtered.tsv']
    ]


DAMAGED = {
    'no files': lambda e: dict(e, files={}),
    'one file': lambda e: dict(e, files=dict([*e['files'].items()][:1])),
    'other files': lambda e: dict(e, files={MANIFEST: {}}),
    'files a list': lambda e: dict(e, files=[*e['files']]),
    'a list': lambda e: [],
    'a text': lambda e: 'x',
    'null': lambda e: None,
    'no question': lambda e: dict(files=e['files']),
}


@pytest.mark.parametrize('how', DAMAGED)
def test_damaged_entries(run: Run, test: Path, how: str) -> None:
    "They are trusted no more than none, whether or not the prediction can be explained."
    out = call(run, test)[2]
    manifest = json.loads((out / MANIFEST).read_text())
    first, second, *_ = manifest
    manifest[first] = DAMAGED[how](manifest[first])
    manifest['triple_005_a_atlantis'] = DAMAGED[how](manifest[second])
    (out / MANIFEST).write_text(json.dumps(manifest))
    done, summary, _ = call(run, test, '--skip-existing')
    assert (done.exit_code, summary['skipped'], summary['successful'], summary['failed']) == (
        1,
        4,
        1,
        1,
    )
    assert call(run, test, '--skip-existing')[1]['skipped'] == 5


# ---- killed


@pytest.mark.parametrize('where', ['pass', 'first file', 'second file', 'manifest', 'summary'])
def test_killed(run: Run, test: Path, tmp_path: Path, where: str) -> None:
    """The next call gives what an undisturbed one gives, counters included, and nothing hidden
    stays."""
    (whole := tmp_path / 'whole').mkdir()
    (whole / 'test.tsv').write_bytes(test.read_bytes())
    expected = call(run, whole / 'test.tsv', '--batch-size', 8)[2]

    def work() -> None:
        with pytest.MonkeyPatch.context() as patch:
            replace, write = os.replace, Parts.write
            names = {
                'first file': '000',
                'second file': '001',
                'manifest': MANIFEST,
                'summary': SUMMARY,
            }
            name = names.get(where, '\0')
            patch.setattr(
                os, 'replace', lambda a, b: die() if name in Path(b).name else replace(a, b)
            )
            if where == 'pass':
                patch.setattr(Parts, 'write', lambda s, n, t: die() if n == 2 else write(s, n, t))
            call(run, test, '--batch-size', 8)

    killed(work)
    out = test.parent / 'out'
    assert hidden(out)
    assert call(run, test, '--batch-size', 8)[0].exit_code == 1
    assert hidden(out) == [] and {p.name for p in out.iterdir()} == {
        p.name for p in expected.iterdir()
    }
    for path in expected.glob('triple_*'):
        found, right = (
            folder.joinpath(path.name).read_text(encoding='utf-8') for folder in (out, expected)
        )
        if path.suffix == '.csv':
            assert found == right
        else:
            found, right = json.loads(found), json.loads(right)
            for facts in (found['facts'], right['facts']):
                del facts['seconds'], facts['memory']
            assert found == right


def test_swept(run: Run, test: Path) -> None:
    """What others left half-way goes with any next call, neighbourhoods only included; links and
    own files stay."""
    out = test.parent / 'out'
    for words in ((), ('--skip-existing',), ('--skip-tracin', '--n-hops', 1)):
        for name in (
            'triple_000_a_b_tracin.csv.x8_s1k2a',
            'parts-0123456789abcdef',
            f'{MANIFEST}.x',
            f'{SUMMARY}.x',
        ):
            (out / f'.{name}').mkdir(parents=True)
        (out / '.triple_mine').symlink_to(test.parent)
        (out / '.notes').write_text('mine')
        call(run, test, *words)
        assert hidden(out) == ['.notes', '.triple_mine'] and test.exists()
        (out / '.triple_mine').unlink()


def test_one_at_a_time(run: Run, test: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('tracin_nb.locks.PATIENCE', 0.2)
    (out := test.parent / 'out').mkdir()
    if not (pid := os.fork()):
        try:
            with alone(out):
                signal.pause()
        finally:
            os._exit(0)
    while not (out / '.lock').exists():
        pass
    for words in ((), ('--skip-tracin', '--n-hops', 1)):
        done = call(run, test, *words)[0]
        assert (
            done.exit_code,
            f'{out}: another process (or thread) is using it' in done.stderr,
        ) == (2, True)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert states(call(run, test)[1]) == list('sssssf')


def test_a_neighbourhood_that_cannot_be_written(
    run: Run, test: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    "It is the failure of one prediction."
    items = read_items(test, run.training)[:3]
    batch = Batch(
        TracIn(run, devices='cpu', progress=False), test.parent / 'near', around=dict(hops=1)
    )
    write = batches.write_triples

    def fails(training: object, rows: list[torch.Tensor], path: Path) -> int:
        if 'triple_001' in path.name:
            raise ValueError('a label with a tab')
        return write(training, rows, path)

    monkeypatch.setattr(batches, 'write_triples', fails)
    assert states(write_neighbourhoods(batch, items)) == list('sfs')
