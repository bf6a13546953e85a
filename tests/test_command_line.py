"""The command line as somebody meets it who has not used it before: mistakes, files of other
programs, forms of output, completion."""

import contextlib
import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from click.testing import Result as Outcome
from pykeen.datasets.nations import NATIONS_TRAIN_PATH

from tracin_nb.answer.results import Result
from tracin_nb.answer.standing import BELIEFS
from tracin_nb.app.cli import main
from tracin_nb.graph.neighbourhoods import paths
from tracin_nb.influence.tracin import TracIn
from tracin_nb.runs.run import Run
from tracin_nb.runs.training import train

TRIPLE = ('china', 'embassy', 'cuba')
ASK = ('--triple', *TRIPLE)
FAST = ('--weighting', 'sgd', '--batch-size', 2000)
SMALL = dict(model='DistMult', model_kwargs=dict(embedding_dim=4), lr=0.05, device='cpu')


@pytest.fixture(scope='module')
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, its weights as files of other programs, a graph, and what else a
    mistake may be about. Not to be changed."""
    folder = tmp_path_factory.mktemp('place')
    run = train('nations', out=folder / 'run', epochs=2, keep_every=1, progress=False, **SMALL)
    (folder / 'ck').mkdir()
    for name, k in (('step-9', 0), ('step-10', 1)):
        torch.save(run.state(k), folder / f'ck/{name}.pt')
    shutil.copy(NATIONS_TRAIN_PATH, folder / 'train.txt')
    (folder / 'two columns.txt').write_text('a\tb\n')
    (folder / 'unknown.txt').write_text('china\tembassy\tatlantis\n')
    (folder / 'asked.txt').write_text('\t'.join(TRIPLE) + '\n')
    (folder / 'types.csv').write_text('id,kind\nchina,country\n')
    (folder / 'nothing.txt').touch()
    (folder / 'full').mkdir()
    (folder / 'full/notes.txt').touch()
    (folder / 'empty').mkdir()
    return folder


def invoke(*words: object) -> Outcome:
    "The command in this process; an exception that it does not handle is a failure of the test."
    done = CliRunner().invoke(main, list(map(str, words)))
    if not isinstance(done.exception, SystemExit | None):
        raise done.exception
    return done


def good(*words: object) -> Outcome:
    done = invoke(*words)
    assert done.exit_code == 0, done.stderr
    return done


# ---- mistakes: what was typed in the folder above, and what the one line has to name

GIVEN = ('--model-path', 'ck/step-9.pt', '--train', 'train.txt')
EXPLAIN, FILES = ('explain', 'run', *ASK), ('explain', *ASK, *GIVEN)
TRAIN = ('train', 'nations', '--model', 'DistMult', '--out', 'new')
BATCH = ('batch', 'run', '--test', 'asked.txt', '--output-dir', 'new')
MISTAKES = {
    'a command that is misspelt': (('explian', 'run'), 'explian', 'explain'),
    'nothing to explain': (('explain', 'run'), '--triple', '--test', '--max'),
    'no model': (('explain', *ASK), 'RUN_DIR', '--model-path'),
    'a run that is not there': (('explain', 'runs/x', *ASK), 'runs/x', '--model-path'),
    'a file as a run': (('explain', 'ck/step-9.pt', *ASK), 'step-9.pt', '--model-path'),
    'a folder of something else': (('explain', 'full', *ASK), 'full', '--model-path'),
    'two words of a triple': (('explain', 'run', '--triple', 'a', 'b', '--max', 1), '--triple'),
    'a label that is misspelt': (('explain', 'run', '--triple', 'chian', *TRIPLE[1:]), 'china'),
    'a label of a file': (('explain', 'run', '--test', 'unknown.txt'), 'unknown.txt', 'line 1'),
    'a file of two columns': (('explain', 'run', '--test', 'two columns.txt'), 'two columns.txt'),
    'a file that is not there': (('explain', 'run', '--test', 'no.tsv'), '--test no.tsv: '),
    'a row beyond the end': (('explain', 'run', '--test-index', 10**6), '--test-index'),
    'a relation that is misspelt': (('explain', 'run', '--relation', 'embasy'), '--relation'),
    'two choices of triples': ((*EXPLAIN, '--test', 'asked.txt'), '--triple', '--test'),
    'an option that is misspelt': ((*EXPLAIN, '--wieghting', 'sgd'), '--weighting'),
    'a value that is misspelt': ((*EXPLAIN, '--weighting', 'addam'), '--weighting', 'adam'),
    'no proponents': ((*EXPLAIN, '-k', 0), '-k'),
    'a number in letters': ((*EXPLAIN, '-k', 'ten'), '-k'),
    'a format that is not there': ((*EXPLAIN, '--format', 'xml'), '--format', 'json'),
    'a device that is not there': ((*EXPLAIN, '--devices', 'cuda:99'), '--devices cuda:99'),
    'a device in one word': ((*EXPLAIN, '--device', 'gpu'), '--devices gpu'),
    'a size that is none': ((*EXPLAIN, '--memory', 'much'), '--memory'),
    'too little memory': ((*EXPLAIN, '--memory', '10B'), '--memory 10'),
    'a checkpoint too many': ((*EXPLAIN, '--checkpoints', '7'), '--checkpoints'),
    'the tail itself': ((*EXPLAIN, '--against', 'cuba'), '--against', "'cuba'"),
    'a contrast with nobody': ((*EXPLAIN, '--against', 'atlantis'), '--against', 'atlantis'),
    'a sample of more than all': ((*EXPLAIN, '--sample-rate', 2), '--sample-rate'),
    'an end that cannot be': ((*EXPLAIN, '--out', 'why.docx'), '--out', '.csv'),
    'a result that is there': ((*EXPLAIN, '--out', 'full'), '--out', '--overwrite'),
    'needs --out': ((*EXPLAIN, '--overwrite'), '--overwrite', '--out'),
    'a folder below a file': ((*EXPLAIN, '--out', 'train.txt/x'), '--out'),
    'paths without a length': ((*EXPLAIN, '--path-filtering'), '--max-total-path-length'),
    'names without a table': ((*EXPLAIN, '--node-name-dict', 'x'), '--csv-output'),
    'options of files for a run': ((*EXPLAIN, '--train', 'train.txt'), '--train', '--model-path'),
    'a run as a file': (('explain', *ASK, '--model-path', 'run'), '--model-path', 'RUN_DIR'),
    'a pattern without files': (('explain', *ASK, '--model-path', 'x/*.pt'), '--model-path'),
    'a folder without files': (('explain', *ASK, '--model-path', 'empty'), '--model-path', '.pt'),
    'no triples for a file': (('explain', *ASK, *GIVEN[:2]), '--train'),
    'no learning rate': (FILES, '--learning-rate'),
    'a rate too many': (
        (*FILES, '--model', 'DistMult', '--learning-rate', 1, '--learning-rate', 2),
        '--learning-rate',
    ),
    'settings that are no JSON': ((*FILES, '--model-kwargs', '{dim: 4}'), '--model-kwargs'),
    'a model that is misspelt': (
        (*TRAIN[:2], '--model', 'TransX', '--out', 'new'),
        '--model TransX',
    ),
    'a graph that is misspelt': (('train', 'nation', '--out', 'new'), "'nations'"),
    'no place for the run': (('train', 'nations'), '--out'),
    'a run that is there': (('train', 'nations', '--out', 'run'), '--out', '--resume'),
    'a place that is taken': (('train', 'nations', '--out', 'full'), '--out'),
    'a loss that is misspelt': ((*TRAIN, '--loss', 'margin'), '--loss margin', 'marginranking'),
    'no epochs': ((*TRAIN, '--epochs', 0), '--epochs'),
    'a setting that is misspelt': (
        (*TRAIN, '--model-kwargs', '{"embeding_dim": 4}'),
        '--model-kwargs',
    ),
    'negatives where there are none': (
        (*TRAIN, '--loop', 'lcwa', '--num-negs-per-pos', 3),
        '--loop lcwa',
        '--num-negs-per-pos',
    ),
    'a device of training': ((*TRAIN, '--device', 'gpu'), '--device gpu'),
    'a batch without a folder': (BATCH[:4], '--output-dir'),
    'a batch of nothing': (('batch', 'run', '--output-dir', 'new'), '--test'),
    'paths of unknown types': (('paths', 'run', *ASK, '--types', 'types.csv'), 'types.csv', 'type'),
    'kinds without types': (('paths', 'run', *ASK, '--metapath-output', 'x.csv'), '--types'),
    'a relation of nobody': (('self', 'run', '--relation', 'loves'), '--relation', 'loves'),
    'a filter without conditions': (('filter', 'run', *ASK, '--out', 'new.tsv'), '--n-hops'),
    'nothing begun': (('resume', 'empty'), 'empty', 'tracin explain --out'),
    'an experiment of another name': (('evaluate', 'removals'), 'removals', 'removal'),
    'a folder of triples': (('explain', 'run', '--test', 'full'), '--test full', 'a folder'),
    'an empty file': (('explain', 'run', '--test', 'nothing.txt'), '--test nothing.txt', 'empty'),
    'no file of names': ((*EXPLAIN, '--names', 'n.csv'), '--names n.csv', 'no such file'),
    'names of another graph': ((*EXPLAIN, '--names', 'types.csv'), '--names types.csv', 'kind'),
    'triples for names': ((*EXPLAIN, '--names', 'asked.txt'), '--names asked.txt', 'triples'),
    'types from nowhere': (('paths', 'run', *ASK, '--types', 'no.csv'), '--types no.csv'),
    'all scores as CSV': ((*EXPLAIN, '--all-scores', 's.csv'), '--all-scores', '.parquet'),
    'many numbers in a word': ((*EXPLAIN, '-k', '1,2'), '-k', 'whole number'),
    'too few words at the end': (('explain', 'run', '--triple', 'a', 'b'), '--triple', '3'),
    'a relation first': (('predict', 'run', 'embassy', 'china'), '--head', 'it is a relation'),
    'nothing left open': (('predict', 'run', *TRIPLE), 'nothing to predict', 'explain --triple'),
    'everything left open': (('predict', 'run', '-', '-', '-'), '--head', '--tail'),
    'a head twice': (('predict', 'run', 'china', '--head', 'cuba'), '--head', 'china'),
    'known, perhaps': (('predict', 'run', 'china', '--known', 'maybe'), '--known', 'show'),
    'a checkpoint beyond': (('predict', 'run', 'china', '--checkpoint', 2), '--checkpoint', '2'),
    'predictions in a folder': (('predict', 'run', 'china', '--out', 'new'), '--out', '.parquet'),
    'the best of what': (('explain', 'run', '--top', 3), '--top', '--head', '--tail'),
    'the best and a file': (
        ('explain', 'run', '--top', 3, '--head', 'china', '--test', 'asked.txt'),
        '--top',
        '--test',
    ),
    'the best, and how many': (
        ('explain', 'run', '--top', 3, '--head', 'china', '--max', 2),
        '--max',
        '--top',
    ),
    'a head without the best': (('explain', 'run', '--head', 'china'), '--head', '--top'),
    'two relations of the best': (
        ('explain', 'run', '--top', 1, '--head', 'china', *(('--relation', 'embassy') * 2)),
        '--top',
        '--relation',
    ),
    'a file of triples to train on': (('train', 'train.txt', '--out', 'new'), 'with train.txt'),
    'the state of nothing': (('status', 'full'), 'full/question.json', 'tracin explain --out'),
    'a number after --resume': (('resume', 'train.txt'), 'question.json', 'tracin explain'),
    'paths the wrong way round': (
        ('paths', 'run', *ASK, '--min-edges', 3, '--max-edges', 2),
        '--min-edges',
        '--max-edges',
    ),
    'names that a page would lack': (
        ('serve', 'run', '--no-browser', '--names', 'types.csv'),
        '--names types.csv',
    ),
    'a page for nobody': (('serve', 'full', '--no-browser'), 'full', 'no run folder'),
    'a batch in a file': ((*BATCH[:5], 'train.txt'), '--output-dir', 'train.txt'),
    'a batch beyond the end': ((*BATCH, '--start-index', 9), '1 triples'),
    'kept gradients of nowhere': (('cache', 'info', 'nowhere'), 'nowhere'),
    'a benchmark of another name': (('bench', 'engines'), 'engines', 'engine'),
    'a run as something to import': (('import', 'run', '--out', 'new'), 'run'),
    'a setting of an experiment': (('evaluate', 'removal', '--set', '{"x": 1}'), '--set'),
}
KEYWORD = re.compile(r'(?<![\w-])[a-z]\w*=|\bRun\.|\bTracIn\(')


@pytest.mark.parametrize('name', MISTAKES)
def test_a_mistake_has_one_helpful_line(
    place: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    "Status 2, one line, which names a flag or the file, and no argument of a Python function."
    monkeypatch.chdir(place)
    words, *parts = MISTAKES[name]
    done = invoke(*words)
    lines = done.stderr.splitlines()
    assert done.exit_code == 2 and done.stdout == '', done.output
    assert len(lines) == 1 and lines[0].startswith('tracin: error: '), done.stderr
    line = lines[0].removeprefix('tracin: error: ')
    assert not KEYWORD.search(line), line
    assert all(part in line for part in parts), line
    assert not Path('new').exists()


def test_enough_mistakes() -> None:
    assert len(MISTAKES) >= 90
    flags = [name for name, (_, *parts) in MISTAKES.items() if any(p[:1] == '-' for p in parts)]
    assert len(flags) >= 60


def test_too_many_paths(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "The line names the flag that helps."
    monkeypatch.chdir(place)
    monkeypatch.setattr('tracin_nb.graph.neighbourhoods.paths', partial(paths, limit=10))
    done = invoke('paths', 'run', *ASK, *FAST)
    assert done.exit_code == 2 and "'--max-edges': more than 10 paths of up" in done.stderr


def test_serve_says_what_is_on_its_page() -> None:
    told, listed = invoke('serve', '--help').stdout, invoke('--help').stdout
    assert all(f'{tab}:' in told for tab in ('Explore', 'Audit', 'Compare', 'Profile'))
    assert re.search(r'serve +Explore, audit, compare', listed)


# ---- the name that it had, and the files of other programs


def same(a: Outcome, b: Outcome) -> bool:
    return a.stdout == b.stdout and a.exit_code == b.exit_code == 0


def test_run_is_the_earlier_name_of_explain(place: Path) -> None:
    ask = (place / 'run', *ASK, *FAST, '--format', 'csv')
    assert same(invoke('run', *ask), invoke('explain', *ask))
    assert invoke('run', '--help').stdout == invoke('explain', '--help').stdout
    listed = re.findall(r'^  (\w+) ', invoke('--help').stdout, re.M)
    assert 'explain' in listed and 'run' not in listed
    assert 'tracin explain --help' in invoke('run').stderr


RATES = ('--learning-rate', 0.05, '--learning-rate', 0.02)
FOREIGN = ('--train', 'train.txt', '--model', 'DistMult', *RATES, *FAST, '--format', 'csv')
WAYS = {
    'files after one flag, as a shell lists them': ('ck/step-10.pt', 'ck/step-9.pt'),
    'a pattern': ('ck/step-*.pt',),
    'a folder': ('ck',),
}


class Stopped(ValueError):
    "Raised instead of opening files."


@pytest.mark.parametrize('way', WAYS)
def test_several_checkpoints(place: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    "However they are given, they are the same files in the order of their numbers."

    def stop(files: list[Path], **told: object) -> None:
        raise Stopped(' '.join(path.name for path in files))

    monkeypatch.chdir(place)
    monkeypatch.setattr('tracin_nb.runs.foreign.open_files', stop)
    done = invoke('explain', *ASK, '--model-path', *WAYS[way], *FOREIGN)
    assert done.stderr == 'tracin: error: step-9.pt step-10.pt\n'


def test_files_after_one_flag_and_after_two(place: Path) -> None:
    with contextlib.chdir(place):
        two = ('--model-path', 'ck/step-9.pt', '--model-path', 'ck/step-10.pt')
        one = ('--model-path', 'ck/step-10.pt', 'ck/step-9.pt')
        assert same(*(good('explain', *ASK, *paths, *FOREIGN) for paths in (one, two)))


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    "What a logger shows where nobody has set it up: warnings."
    return [r.message for r in caplog.records if r.levelno >= logging.WARNING]


def test_pykeen_says_nothing_of_models_that_are_only_tried(
    place: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    "To find out whose weights a file has, other models are built, which is nobody's concern."
    from tracin_nb.runs.recognition import _layouts

    _layouts.cache_clear()
    with contextlib.chdir(place):
        done = good('explain', *ASK, '--model-path', 'ck', *FOREIGN)
    assert done.stderr == ''
    assert not told(caplog) and not [w for w in recwarn if 'pykeen' in w.filename]


def test_a_run_of_conve_is_opened_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    "PyKEEN's advice about inverse triples is for those who train."
    caplog.set_level(logging.WARNING, logger='pykeen')
    sizes = dict(embedding_dim=4, embedding_height=2, embedding_width=2)
    kernel = dict(kernel_height=1, kernel_width=1, output_channels=2)
    how = dict(epochs=1, keep_every=1, progress=False, device='cpu')
    train('nations', 'ConvE', out=tmp_path / 'run', model_kwargs={**sizes, **kernel}, **how)
    assert ['inverse triples' in text for text in told(caplog)] == [True]
    caplog.clear()
    Run.open(tmp_path / 'run').model(0)
    assert not told(caplog)


# ---- what is printed


@pytest.mark.parametrize('command', ['explain', 'self', 'paths'])
def test_the_same_forms(place: Path, command: str) -> None:
    "As many rows by -k in each form, the same rows, and one line below a table."
    triple = dict(self=(), explain=ASK, paths=(*ASK, '--max-edges', 2))[command]
    words = (command, place / 'run', *triple, *FAST, '-k', 3)
    table = pd.read_csv(StringIO(good(*words, '--format', 'csv').stdout))
    assert len(table) == (6 if command == 'explain' else 3)
    content = json.loads(good(*words, '--format', 'json').stdout)
    rows = pd.DataFrame(content['rows'])
    told = [f'test_{name}' for name in BELIEFS if command != 'self']  # in JSON: once, in `tests`
    assert [*rows] == [name for name in table if name not in told]
    pd.testing.assert_frame_equal(rows, table[[*rows]], check_dtype=False)
    for test in content.get('tests', ()):
        assert table['test_tail_rank'].eq(test['tail_rank']).all()
        assert table['test_known'].eq(test['known']).all()
    assert content['facts']['model'] == 'DistMult' and content['kind']
    shown = good(*words).stdout
    assert command == 'self' or 'tail rank' in shown.splitlines()[1]
    foot = shown.rstrip().split('\n\n')[-1]
    assert '\n' not in foot and foot.startswith('TracIn estimate')
    assert all(part in foot for part in ('DistMult', '2 checkpoints (epochs 1, 2)', 'loss "'))
    assert 'fingerprint' not in shown
    verbose = good(*words, '--verbose').stdout
    assert verbose.rstrip().endswith(foot)
    assert all(f'\n{name}: ' in verbose for name in ('fingerprint', 'versions', 'counters'))


def test_what_is_approximate_is_below_the_table(place: Path) -> None:
    words = (*FAST, '--sample-rate', 0.5, '--use-projection', '--projection-dim', 64)
    foot = good('explain', place / 'run', *ASK, *words).stdout.splitlines()[-1]
    assert 'from 798 of 1,592 training triples' in foot and 'by a shortcut (relative error' in foot


def test_labels_in_messages(place: Path) -> None:
    foot = good('explain', place / 'run', *ASK, *FAST, '--against', 'brazil').stdout.splitlines()[
        -1
    ]
    assert 'contrast with brazil' in foot


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_one_bar_on_a_terminal_none_in_a_pipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ('train', 'nations', '--model', 'DistMult', '--epochs', '3', '--device', 'cpu')
    assert (
        good(*words, '--out', tmp_path / 'a').stderr
        == f'next: tracin explain {tmp_path}/a --max 3\n'
    )
    monkeypatch.setattr(sys, 'stderr', shown := Terminal())
    with pytest.raises(SystemExit):
        main([*words, '--out', str(tmp_path / 'b')])
    assert 'loss=' in shown.getvalue() and '3/3' in shown.getvalue()
    assert shown.getvalue().count('Training epochs') and 'batches' not in shown.getvalue()


# ---- completion


@pytest.mark.parametrize(
    'typed, offered',
    [
        ('tracin ex', 'explain'),
        ('tracin explain --weigh', '--weighting'),
        ('tracin explain --weighting na', 'natural'),
    ],
)
def test_completion(typed: str, offered: str) -> None:
    "Bash is told what may follow, and neither PyTorch nor PyKEEN is imported for that."
    asked = dict(
        _TRACIN_COMPLETE='bash_complete', COMP_WORDS=typed, COMP_CWORD=str(typed.count(' '))
    )
    code = (
        'import sys, atexit\n'
        'from tracin_nb.app.cli import main\n'
        "atexit.register(lambda: print(*{'torch', 'pykeen'} & {*sys.modules}, file=sys.stderr))\n"
        'main()'
    )
    done = subprocess.run(
        [sys.executable, '-c', code], env={**os.environ, **asked}, capture_output=True, text=True
    )
    assert f'plain,{offered}' in done.stdout.splitlines(), done.stderr
    assert done.stderr.strip() == ''


@pytest.mark.parametrize('shell', ['bash', 'zsh', 'fish'])
def test_completion_is_switched_on(shell: str) -> None:
    "The page tells the line for each shell, and `tracin` answers it."
    page = (Path(__file__).parent.parent / 'nbs/commands.md').read_text(encoding='utf-8')
    assert f'_TRACIN_COMPLETE={shell}_source tracin' in page


# ---- to pass on

ASKED = {
    'options': ('--weighting', 'sgd', '--objective', 'score', '-k', 4, '--checkpoints', '0'),
    'against': ('--against', 'brazil', '-k', 3),
    'near': ('--n-hops', 1, '--min-degree', 5, '--no-preserve-test-edges'),
    'lens': ('--n-hops', 1, '--lens'),
    'paths': ('--path-filtering', '--max-total-path-length', 2),
    'sample': ('--sample-rate', 0.5, '--seed', 3),
    'breakdown': ('--breakdown', '--weighting', 'adam'),
    'by strength': ('--rank-by', 'absolute', '-k', 5),
    'last layers': ('--use-last-layers-only',),
}


@pytest.mark.parametrize('name', ASKED)
def test_the_call_that_is_shown_repeats_the_result(name: str, place: Path, tmp_path: Path) -> None:
    done = invoke('explain', place / 'run', *ASK, *ASKED[name], '--out', tmp_path / 'one')
    assert done.exit_code == 0, done.output
    one = Result.load(tmp_path / 'one')
    python, command = one.calls()['Python'], one.calls()['Command']
    if name == 'last layers':  # an object, which stands there by its name
        assert 'weighting=weighting' in python and not command
        return
    again = invoke(*shlex.split(command)[1:], '--out', tmp_path / 'two')
    assert again.exit_code == 0, (command, again.output)
    there: dict[str, Any] = {}
    exec(python, there)
    for other in (Result.load(tmp_path / 'two'), there['result']):
        pd.testing.assert_frame_equal(other.to_frame(), one.to_frame(), check_exact=False)
        assert other.calls() == one.calls()


def test_a_part_of_the_training_triples_is_told(place: Path) -> None:
    tracin = TracIn(place / 'run', weighting='sgd', devices='cpu', progress=False)
    some = tracin.run.training.mapped_triples[:50]
    calls = tracin.explain([TRIPLE], k=2, train=some).calls()
    assert 'train=train' in calls['Python'] and not calls['Command']


def test_a_page(place: Path, tmp_path: Path) -> None:
    "One file for ten predictions, which asks no host for anything; from a question or a result."
    page, kept = tmp_path / 'why.html', tmp_path / 'kept'
    asked = (place / 'run', '--max', 10, *FAST, '--report', page, '--out', kept)
    assert f'saved in {page}' in (done := invoke('explain', *asked)).output, done.output
    text = page.read_text()
    assert len(text) < 300_000 and text.count('<section') == 10 and text.count('<svg') > 1
    assert not re.search(r'https?:|<script|<link|<img|@import|url\(', text)
    assert f'saved in {kept}/report.html' in invoke('report', kept).output
    assert (kept / 'report.html').read_text() == text
    for words, said in (
        (('report', kept), '--out.*already exists.*--overwrite'),
        (('report', kept, '--out', tmp_path / 'why.pdf'), 'expected a file ending in .html'),
        (('explain', place / 'run', *ASK, '--report', 'why.txt'), '--report.*ending in .html'),
        (('report', place / 'empty'), 'no result|manifest'),
    ):
        bad = invoke(*words)
        assert bad.exit_code and re.search(said, ' '.join(bad.output.split())), bad.output


def test_pictures(place: Path, tmp_path: Path) -> None:
    "PNG and SVG of each picture, from a question or a result, of one prediction or of many."
    kept, run = tmp_path / 'kept', place / 'run'
    plot = lambda name, *more: ('--plot', tmp_path / name, *more)
    asked = (run, '--max', 2, *FAST, '--breakdown', '--out', kept)
    done = invoke('explain', *asked, *plot('why.svg', '--picture', 'graph'))
    assert f'saved in {tmp_path}/why-2.svg' in done.output, done.output
    assert 'role="img"' in (tmp_path / 'why-1.svg').read_text()
    for name, kind in (('bars.png', 'bars'), ('p.svg', 'parameters'), ('r.svg', 'relation')):
        drawn = plot(name, '--picture', kind)
        done = invoke('report', kept, '--overwrite', *drawn)
        assert f'saved in {tmp_path}/{Path(name).stem}-1' in done.output, done.output
    assert (tmp_path / 'bars-1.png').read_bytes().startswith(b'\x89PNG')
    assert invoke('self', run, *FAST, '-k', 2, *plot('own.svg')).exit_code == 0
    assert 'self-influence' in (tmp_path / 'own.svg').read_text()
    for words, said in (
        (('explain', run, *ASK, *plot('why.pdf')), '--plot.*ending in .png or .svg'),
        (('explain', run, *ASK, *plot('a.svg', '--picture', 'parameters')), 'it can be bars'),
        (('self', run, *plot('a.svg', '--picture', 'graph')), 'bars or relation'),
        (('explain', run, *ASK, '--picture', 'graph'), 'nothing to draw into without --plot'),
    ):
        bad = invoke(*words)
        assert bad.exit_code == 2 and re.search(said, ' '.join(bad.output.split())), bad.output


def test_paths_through(place: Path) -> None:
    ask = ('paths', place / 'run', *ASK, '--weighting', 'sgd', '--max-edges', 2)
    every, some = (
        invoke(*ask, *more, '--format', 'csv').output.strip().split('\n')[1:]
        for more in ((), ('--through', 'india'))
    )
    assert some and all('india' in line for line in some)
    assert not all('india' in line for line in every)
    bad = invoke(*ask, '--through', 'indya')
    assert bad.exit_code and re.search("--through.*'indya'.*'india'", ' '.join(bad.output.split()))
