"""The command line: what it prints is what the library computes, and whatever is wrong ends with
one clear line."""

import gzip
import importlib.util
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import networkx as nx
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from click.testing import Result as Outcome

from tracin_nb.answer import results
from tracin_nb.answer.results import Result, SelfInfluence
from tracin_nb.app import cli
from tracin_nb.app import options as flags
from tracin_nb.app.demo import QUESTION
from tracin_nb.engine.beliefs import beliefs
from tracin_nb.evaluation.mechanisms import Mechanisms, tail_prediction
from tracin_nb.graph.drugmechdb import mechanisms
from tracin_nb.graph.triples import to_ids
from tracin_nb.influence.settings import ENGINE_NAMES
from tracin_nb.influence.tracin import TracIn
from tracin_nb.runs.keeping import file_facts
from tracin_nb.runs.run import Run
from tracin_nb.runs.training import train

ROOT = Path(__file__).resolve().parent.parent
TRAINED = dict(
    model='DistMult', model_kwargs=dict(embedding_dim=8), epochs=4, keep_every=2, lr=0.05
)
TRIPLE = ('china', 'embassy', 'cuba')
ASK = ('--triple', *TRIPLE)
MODULE = [sys.executable, '-m', 'tracin_nb']


@pytest.fixture(scope='session')
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A run of a few epochs on Nations; not to be changed."
    folder = tmp_path_factory.mktemp('cli') / 'run'
    train('nations', out=folder, progress=False, **TRAINED)
    return folder


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    "A copy of the run that a test may damage."
    return shutil.copytree(original, tmp_path / 'run')


def invoke(*args: object) -> Outcome:
    "The command in this process; an exception that it does not handle is a failure of the test."
    done = CliRunner().invoke(cli.main, list(map(str, args)))
    if not isinstance(done.exception, SystemExit | None):
        raise done.exception
    return done


def succeeded(*args: object) -> Outcome:
    done = invoke(*args)
    assert done.exit_code == 0, done.stderr
    assert 'tracin: error' not in done.stderr
    return done


def check_refusal(status: int, stdout: str, stderr: str, *parts: str) -> None:
    "Status 2, nothing on stdout, and one line on stderr that names all of `parts`."
    lines = stderr.splitlines()
    assert status == 2
    assert stdout == ''
    assert 'Traceback' not in stderr
    assert [line.startswith('tracin: error: ') for line in lines if 'tracin: error' in line] == [
        True
    ], stderr
    assert lines[-1].startswith('tracin: error: ') and len(lines[-1]) < 1500
    assert not (missing := [p for p in parts if p not in lines[-1]]), (
        f'{missing} not in {lines[-1]!r}'
    )


def tree(folder: Path) -> dict[str, bytes | None]:
    "Every file and folder, with its content."
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None
        for p in folder.rglob('*')
    }


def refused(tmp_path: Path, args: tuple, *parts: str) -> None:
    "The command is refused and leaves every file as it was."
    before = tree(tmp_path)
    done = invoke(*args)
    check_refusal(done.exit_code, done.stdout, done.stderr, *parts)
    assert tree(tmp_path) == before


# ---- what works: `train`


def test_train_equals_the_function(original: Path, tmp_path: Path) -> None:
    done = succeeded(
        'train',
        'nations',
        '--model',
        'DistMult',
        '--model-kwargs',
        '{"embedding_dim": 8}',
        '--lr',
        '0.05',
        '--epochs',
        4,
        '--keep-every',
        2,
        '--out',
        tmp_path / 'run',
    )
    made, same = Run.open(tmp_path / 'run'), Run.open(original)
    assert [made.fingerprint(k) for k in (0, 1)] == [same.fingerprint(k) for k in (0, 1)]
    assert done.stdout.startswith('Run of distmult (slcwa') and str(tmp_path / 'run') in done.stdout


def test_train_hands_on_every_option(tmp_path: Path) -> None:
    succeeded(
        'train',
        'nations',
        '--model',
        'ConvE',
        '--model-kwargs',
        json.dumps(
            dict(
                embedding_dim=8,
                embedding_height=4,
                embedding_width=2,
                kernel_height=2,
                kernel_width=2,
            )
        ),
        '--epochs',
        4,
        '--keep-every',
        '1,3',
        '--loop',
        'slcwa',
        '--inverse',
        '--loss',
        'nssa',
        '--loss-kwargs',
        '{"margin": 2.0}',
        '--optimizer',
        'Adagrad',
        '--lr',
        '.1',
        '--optimizer-kwargs',
        '{"eps": 1e-9}',
        '--lr-scheduler',
        'ExponentialLR',
        '--lr-scheduler-kwargs',
        '{"gamma": 0.5}',
        '--negative-sampler',
        'bernoulli',
        '--num-negs-per-pos',
        3,
        '--negative-sampler-kwargs',
        '{"filtered": true}',
        '--batch-size',
        300,
        '--training-kwargs',
        '{"drop_last": true}',
        '--seed',
        7,
        '--device',
        'cpu',
        '--out',
        tmp_path / 'run',
    )
    settings = Run.open(tmp_path / 'run').settings
    assert settings == dict(
        model='conve',
        model_kwargs=settings['model_kwargs'],
        loss='nssa',
        loss_kwargs=dict(margin=2.0),
        loop='slcwa',
        loss_weighter=None,
        loss_weighter_kwargs={},
        negative_sampler='bernoulli',
        negative_sampler_kwargs=dict(filtered=True, num_negs_per_pos=3),
        optimizer='adagrad',
        optimizer_kwargs=dict(eps=1e-9, lr=0.1),
        lr_scheduler='exponential',
        lr_scheduler_kwargs=dict(gamma=0.5),
        label_smoothing=0.0,
        batch_size=300,
        seed=7,
        inverse=True,
        epochs=4,
        keep=[1, 3, 4],
        training_kwargs=dict(drop_last=True),
        precision='fp32',
        early_stopping=None,
    )


def test_train_in_mixed_precision_until_it_gets_no_better(tmp_path: Path) -> None:
    """--precision bf16 changes the weights; the four options of early stopping say when training
    ends."""
    train_it = (
        'train',
        'nations',
        '--model',
        'ERMLP',
        '--model-kwargs',
        '{"embedding_dim": 4}',
        '--epochs',
        9,
        '--keep-every',
        2,
        '--patience',
        1,
        '--evaluate-every',
        1,
        '--stop-delta',
        0.9,
    )
    done = succeeded(
        *train_it, '--stop-metric', 'mrr', '--precision', 'bf16', '--out', tmp_path / 'low'
    )
    succeeded(*train_it, '--stop-metric', 'mrr', '--out', tmp_path / 'full')
    low, full = Run.open(tmp_path / 'low'), Run.open(tmp_path / 'full')
    assert [c.epoch for c in low.checkpoints] == [2] and low.fingerprint(0) != full.fingerprint(0)
    assert low.settings['early_stopping'] == dict(
        patience=1,
        evaluate_every=1,
        stop_delta=0.9,
        stop_metric='both.realistic.inverse_harmonic_mean_rank',
    )
    assert f'stopped early: {low.stopped["why"]}' in done.stdout
    before = tree(tmp_path)
    succeeded(*train_it, '--stop-metric', 'mrr', '--out', tmp_path / 'full', '--resume')
    assert tree(tmp_path) == before
    succeeded('explain', tmp_path / 'low', '--max', 1, '--out', tmp_path / 'result')


def test_train_resumes(run: Path, original: Path) -> None:
    "A run that lost its last checkpoint is finished, and ends where the uninterrupted one did."
    edit(
        run,
        lambda facts: facts.update(
            checkpoints=facts['checkpoints'][:1], losses=facts['losses'][:2]
        ),
    )
    options = (
        'nations',
        '--model',
        'DistMult',
        '--model-kwargs',
        '{"embedding_dim": 8}',
        '--lr',
        '0.05',
        '--epochs',
        4,
        '--keep-every',
        2,
        '--out',
        run,
    )
    succeeded('train', *options, '--resume')
    assert Run.open(run).fingerprint(1) == Run.open(original).fingerprint(1)


def test_train_from_a_folder_of_files(tmp_path: Path) -> None:
    "Repeated lines are one warning line; labels need not be ASCII."
    (tmp_path / 'graph').mkdir()
    (tmp_path / 'graph/train.txt').write_text(
        'Ö,"x"\tmag\tb\nb\tmag\tÖ,"x"\nb\tmag\tb\nb\tmag\tb\n', encoding='utf-8'
    )
    done = succeeded(
        'train', tmp_path / 'graph', '--model', 'DistMult', '--epochs', 1, '--out', tmp_path / 'run'
    )
    assert [line for line in done.stderr.splitlines() if line.startswith('tracin: warning: ')] == [
        f'tracin: warning: {tmp_path / "graph/train.txt"}: 1 of 4 lines repeat an earlier triple; '
        f'each is kept once'
    ]
    table = succeeded(
        'explain', tmp_path / 'run', '--triple', 'Ö,"x"', 'mag', 'b', '--format', 'csv'
    ).stdout
    assert pd.read_csv(StringIO(table))['test_head'].unique().tolist() == ['Ö,"x"']


# ---- what works: `run`


def rows(done: Outcome) -> pd.DataFrame:
    return pd.read_csv(StringIO(done.stdout), keep_default_na=False)


def same_rows(frame: pd.DataFrame, result: Result | SelfInfluence) -> None:
    "The numbers and labels of `result`."
    pd.testing.assert_frame_equal(
        frame, pd.read_csv(StringIO(result.frame.to_csv(index=False)), keep_default_na=False)
    )


def test_run_prints_what_explain_gives(original: Path) -> None:
    expected = TracIn(original, progress=False).explain([TRIPLE], k=10)
    done = succeeded('explain', original, *ASK)
    first, belief, doubt, third, fourth = done.stdout.splitlines()[:5]
    assert first == 'china  embassy  cuba' and ' · tail rank ' in belief
    assert doubt == '  not predicted: 3 of 6 tails are ranked higher'
    assert third == '  proponents' and fourth.startswith('     1  +')
    same_rows(rows(succeeded('explain', original, *ASK, '--format', 'csv')), expected)
    content = json.loads(succeeded('explain', original, *ASK, '--format', 'json').stdout)
    assert [r['influence'] for r in content['rows']] == pytest.approx(
        expected.frame['influence'].tolist()
    )
    assert content['facts']['engine'] == 'factored' and content['kind'] == 'Result'


@pytest.mark.parametrize('engine', [*ENGINE_NAMES])
def test_run_hands_on_every_option(original: Path, engine: str) -> None:
    expected = TracIn(
        original,
        'bce',
        test_objective='softmax',
        engine=engine,
        checkpoints=[1],
        batch_size=500,
        devices='cpu',
        memory='1GiB',
        progress=False,
    ).explain([TRIPLE], k=3, breakdown=True)
    done = succeeded(
        'explain',
        original,
        *ASK,
        '--objective',
        'bce',
        '--test-objective',
        'softmax',
        '--engine',
        engine,
        '--checkpoints',
        '-1',
        '--batch-size',
        500,
        '--devices',
        'cpu',
        '--memory',
        '1GiB',
        '-k',
        3,
        '--breakdown',
        '--format',
        'csv',
    )
    same_rows(rows(done), expected)
    assert (
        [c for c in rows(done) if c.startswith('via_')]
        == [c for c in expected.frame if c.startswith('via_')]
        != []
    )


def test_run_against(original: Path) -> None:
    done = succeeded('explain', original, *ASK, '--against', 'brazil', '--format', 'csv')
    same_rows(
        rows(done), TracIn(original, progress=False).explain([TRIPLE], k=10, against='brazil')
    )


def asked(done: Outcome) -> list[tuple[str, ...]]:
    "The test triples of a result, in its order."
    return [
        *dict.fromkeys(
            rows(done)[['test_head', 'test_relation', 'test_tail']].itertuples(
                index=False, name=None
            )
        )
    ]


def test_run_chooses(original: Path, tmp_path: Path) -> None:
    "By labels, by file, by relation, by row, and the first few."
    testing = Run.open(original).testing
    labels = [tuple(t) for t in testing.label_triples(testing.mapped_triples).tolist()]
    treaties = [t for t in labels if t[1] == 'treaties']
    csv = ('--format', 'csv', '-k', 2)
    (tmp_path / 'ask.tsv').write_text(
        'head\trelation\ttail\n' + ''.join('\t'.join(t) + '\n' for t in labels[3:6])
    )
    assert asked(succeeded('explain', original, *ASK, '--triple', *labels[5], *csv)) == [
        TRIPLE,
        labels[5],
    ]
    assert (
        asked(succeeded('explain', original, '--test', tmp_path / 'ask.tsv', *csv)) == labels[3:6]
    )
    assert (
        asked(succeeded('explain', original, '--test', tmp_path / 'ask.tsv', '--max', 2, *csv))
        == labels[3:5]
    )
    assert asked(succeeded('explain', original, '--relation', 'treaties', *csv)) == treaties
    assert (
        asked(succeeded('explain', original, '--relation', 'treaties', '--max', 1, *csv))
        == treaties[:1]
    )
    assert asked(succeeded('explain', original, '--test-index', 7, '--test-index', 2, *csv)) == [
        labels[7],
        labels[2],
    ]
    assert asked(succeeded('explain', original, '--max', 4, *csv)) == labels[:4]


def passed_on(result: Result, folder: Path) -> None:
    "Assert that other tools read back each triple with its influence."
    wanted = sorted(result.frame['influence'].astype(float))
    again = [nx.read_graphml(result.save(folder / 'one.graphml'))]
    content = json.loads(result.save(folder / 'one.cyjs').read_text())
    again.append(nx.cytoscape_graph(content, name='label'))
    edges = pd.read_csv(result.save(folder / 'one.tsv'), sep='\t')
    found = [sorted(x for *_, x in g.edges(data='influence') if x is not None) for g in again]
    for values in (*found, sorted(edges['influence'].dropna())):
        assert values == pytest.approx(wanted)
    nodes = pd.read_csv(folder / 'one_nodes.tsv', sep='\t', dtype=str)
    assert {*edges['subject'], *edges['object']} == set(nodes['id'])
    if importlib.util.find_spec('openpyxl'):
        sheet = pd.read_excel(result.save(folder / 'one.xlsx'), 'triples')
        assert sorted(sheet['influence']) == pytest.approx(wanted)
    else:
        with pytest.raises(ValueError, match='tracin_nb.excel'):
            result.save(folder / 'one.xlsx')


def test_run_saves(original: Path, tmp_path: Path) -> None:
    "With `--out` the result is in files and stdout stays free, unless a format is asked for."
    done = succeeded('explain', original, *ASK, '--out', tmp_path / 'new/result')
    assert done.stdout == '' and f'saved in {tmp_path / "new/result"}' in done.stderr
    expected = TracIn(original, progress=False).explain([TRIPLE], k=10)
    pd.testing.assert_frame_equal(Result.load(tmp_path / 'new/result').frame, expected.frame)
    for suffix in flags.SUFFIXES[:3]:
        succeeded('explain', original, *ASK, '--out', tmp_path / f'one{suffix}')
        assert (tmp_path / f'one{suffix}').read_bytes()
    passed_on(expected, tmp_path)
    succeeded('report', tmp_path / 'new/result', '--out', tmp_path / 'why.html')
    page = (tmp_path / 'why.html').read_text()
    assert '<script' not in page and 'http' not in page.replace('http-equiv', '')
    assert page.count('<tr><td') == len(expected.frame)
    done = succeeded(
        'explain',
        original,
        *ASK,
        '--out',
        tmp_path / 'one.csv',
        '--overwrite',
        '-k',
        3,
        '--format',
        'csv',
    )
    assert (tmp_path / 'one.csv').read_text() == done.stdout and len(rows(done)) <= 6


def test_more_than_there_are(original: Path) -> None:
    "A k beyond the number of training triples gives them all."
    n = Run.open(original).training.num_triples
    assert len(rows(succeeded('explain', original, *ASK, '-k', 10**12, '--format', 'csv'))) <= n
    assert len(rows(succeeded('self', original, '-k', 10**12, '--format', 'csv'))) == n


# ---- what works: `self`, `demo`, help


def test_self(original: Path, tmp_path: Path) -> None:
    expected = TracIn(original, progress=False).self_influence(k=100)
    same_rows(rows(succeeded('self', original, '--format', 'csv')), expected)
    both = ('--relation', 'embassy', '--relation', 'treaties')
    done = succeeded('self', original, *both, '-k', 5, '--out', tmp_path / 'x.csv')
    frame = pd.read_csv(tmp_path / 'x.csv')
    assert (
        done.stdout == '' and len(frame) == 5 and set(frame['relation']) <= {'embassy', 'treaties'}
    )
    assert succeeded('self', original, '-k', 2).stdout.startswith('self-influence\n')


def demo_command(out: Path) -> subprocess.CompletedProcess:
    return subprocess.run([*MODULE, 'demo', '--out', out], capture_output=True, text=True)


def without_digits(text: str) -> list[str]:
    "The lines of a text; digits are 0 and spaces single."
    bare = re.sub(r'\d+(?:[.,]\d+)*', '0', text)
    return [' '.join(line.split()) for line in bare.splitlines()]


def shown_in_readme() -> list[list[str]]:
    "What README shows of the demo, in pieces between which lines are left out."
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    block = re.search(r'^```text\n(.*?)^```$', text, re.MULTILINE | re.DOTALL)[1]
    return [without_digits(piece) for piece in re.split(r'^…\n', block, flags=re.MULTILINE)]


def test_demo(tmp_path: Path) -> None:
    """The whole demo as a newcomer runs it: a good model, a test pair that it predicts, explained
    by curated steps, saved, and shown in README; then once more."""
    out = tmp_path / 'demo'
    done = demo_command(out)
    assert done.returncode == 0, done.stderr
    printed = without_digits(done.stdout)
    for piece in filter(None, shown_in_readme()):
        starts = [i for i, line in enumerate(printed) if line == piece[0]]
        found = any(printed[i : i + len(piece)] == piece for i in starts)
        assert found, f'README shows of the demo {piece}, and it printed\n{done.stdout}'
    assert re.search(
        r'Time: importing PyTorch and PyKEEN .* s, training .* s, explaining .* s\n', done.stdout
    )
    run, result = Run.open(out), Result.load(out / 'explanation')
    assert len(run.checkpoints) == 3 and len(result) == 1 and result.frame['rank'].max() == 50
    assert result.tests['known'].item() == 'test' and result.tests['tail_rank'].item() <= 10
    assert beliefs(run, to_ids([QUESTION], run.training))['tail_rank'].item() <= 10
    check_steps(run, result)
    known = [run.training.mapped_triples, run.validation.mapped_triples]
    assert tail_prediction(run, run.testing.mapped_triples, known)['mrr'] >= 0.45
    assert all((ROOT / name).exists() for name in re.findall(r'nbs/\S+\.ipynb', done.stdout))
    again = invoke('demo', '--out', out)
    assert again.exit_code == 0 and 'using the run in' in again.stderr
    assert again.stdout.split('Time:')[0] == done.stdout.split('Time:')[0]


def check_steps(run: Run, result: Result) -> None:
    "The first proponents are curated steps, and the picture in the tutorial shows them."
    first = result.proponents.head(4)
    curated = Mechanisms(mechanisms(), run.training)
    h, _, t = to_ids([QUESTION], run.training)[0].tolist()
    steps = run.training.label_triples(run.training.mapped_triples[curated.rows((h, t))])
    named = first[['head', 'relation', 'tail']].to_numpy().tolist()
    assert [row in steps.tolist() for row in named] == [True] * 4
    picture = (ROOT / 'docs/_static/explanation.svg').read_text(encoding='utf-8')
    bars = re.findall(r'<text[^>]*>([^<]*) \xa0([^<]*) \xa0([^<]*)<', picture)
    assert len(bars) == 11  # and the question
    for column, labels in zip(('head_name', 'relation', 'tail_name'), zip(*bars[:5])):
        for name, label in zip(result.proponents[column], labels):
            start, _, end = label.partition('…')
            assert name.startswith(start) and name.endswith(end)


@pytest.mark.parametrize('command', ['', *cli.main.commands])
def test_help(command: str) -> None:
    done = succeeded(*command.split(), '--help')
    assert f'Usage: tracin {command}'.strip() in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 110


def test_help_lists_the_commands() -> None:
    assert {'demo', 'train', 'explain', 'self'} <= set(cli.main.commands)
    text = succeeded('--help').stdout
    assert all(f'\n  {name} ' in text for name in cli.main.commands)


@pytest.mark.parametrize('command', ['bench', 'evaluate'])
def test_help_lists_what_can_be_measured(command: str) -> None:
    """Each benchmark and each experiment, whose file in benchmarks/ has its name, with a line on
    what it is."""
    from tracin_nb.app.experiments import EXPERIMENTS
    from tracin_nb.bench.suite import BENCHMARKS

    text = succeeded(command, '--help').stdout
    listed = re.findall(r'^  ([a-z0-9]+)  +(?=\w)', text.partition('Options:')[0], re.MULTILINE)
    assert sorted(listed) == sorted({'bench': BENCHMARKS, 'evaluate': EXPERIMENTS}[command])
    files = {p.stem for p in (ROOT / 'benchmarks').glob('*.json')}
    assert files <= {*BENCHMARKS, *EXPERIMENTS}


def test_version() -> None:
    from tracin_nb import __version__

    assert succeeded('--version').stdout == f'tracin, version {__version__}\n'


@pytest.mark.parametrize(
    'args', [['--help'], ['explain', '--help'], ['--version'], ['explain', 'x'], ['train', 'umls']]
)
def test_light(args: list[str]) -> None:
    "Help and errors of use import neither PyTorch nor pandas."
    command = [sys.executable, '-X', 'importtime', '-m', 'tracin_nb', *args]
    done = subprocess.run(command, capture_output=True, text=True)
    imported = set(re.findall(r'^import time:.*\|\s+(\w+)', done.stderr, re.MULTILINE))
    assert 'click' in imported
    assert not imported & {'torch', 'pykeen', 'pandas', 'numpy', 'fastcore', 'matplotlib'}


# ---- streams and status of a real process


def test_process_succeeds(original: Path) -> None:
    """An answer in a real process, which compiles nothing: PyTorch's compiler and its library of
    symbols take longer to import than a small question takes, and are not."""
    command = [sys.executable, '-X', 'importtime', '-m', 'tracin_nb', 'explain', original, *ASK]
    done = subprocess.run([*command, '--format', 'json'], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told['rows']
    imported = set(re.findall(r'^import time:.*\|\s+([\w.]+)$', done.stderr, re.MULTILINE))
    assert 'torch' in imported
    assert not imported & {'torch._dynamo', 'sympy', 'torch._inductor'}
    passes = told['facts']['counters']
    assert 0 < passes['trial_passes'] <= 24 * passes['loads']  # of few triples each, to plan by


def test_process_is_refused(original: Path) -> None:
    command = [*MODULE, 'explain', original, '--triple', 'chnia', 'embassy', 'cuba']
    done = subprocess.run(command, capture_output=True, text=True)
    check_refusal(
        done.returncode,
        done.stdout,
        done.stderr,
        '--triple',
        "unknown entity 'chnia'",
        "nearest: 'china'",
    )


def test_a_fault_keeps_its_traceback(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError('a fault')

    monkeypatch.setattr(flags.Keeping, 'tracin', broken)
    done = CliRunner().invoke(cli.main, ['explain', str(original), *ASK])
    assert done.exit_code == 1 and isinstance(done.exception, ZeroDivisionError)


def test_interrupted(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(flags.Keeping, 'tracin', stopped)
    done = invoke('explain', original, *ASK)
    assert done.exit_code == 130 and done.stderr.splitlines()[-1] == 'tracin: error: interrupted'


def test_no_command() -> None:
    done = invoke()
    assert done.exit_code == 2 and done.stdout == '' and 'Usage: tracin' in done.stderr


# ---- malformed: files of triples

GOOD = b'china\tembassy\tcuba\n'
FILES = {
    'empty': (b'', 'the file is empty'),
    'only a byte order mark': (b'\xef\xbb\xbf\r\n', 'the file is empty'),
    'only a header': (b'head\trelation\ttail\n', 'line 1', 'nothing below the header'),
    'two columns': (GOOD + b'china\tembassy\n', 'line 2', 'expected 3 columns', 'found 2'),
    'four columns': (
        GOOD + b'china\tembassy\tcuba\t1\n',
        'line 2',
        'expected 3 columns',
        'found 4',
    ),
    'spaces': (b'china embassy cuba\n', 'line 1', 'spaces instead of tabs?'),
    'commas': (b'china,embassy,cuba\n', 'line 1', 'commas instead of tabs?'),
    'tab in quotes': (GOOD + b'"chi\tna"\tembassy\tcuba\n', 'line 2', 'quotes do not protect tabs'),
    'blank line': (GOOD + b'\n' + GOOD, 'line 2', 'blank'),
    'empty field': (GOOD * 2 + b'china\t\tcuba\n', 'line 3', 'column 2 is empty'),
    'latin-1': (GOOD + b'chin\xe4\tembassy\tcuba\n', 'line 2', 'not UTF-8', '0xe4'),
    'utf-16': ('china\tembassy\tcuba\n'.encode('utf-16-le'), 'line 1', 'UTF-16'),
    'lone carriage return': (
        b'china\tembassy\tcuba\rchina\tembassy\tcuba\n',
        'line 1',
        'carriage return',
    ),
    'unknown head': (
        GOOD + b'chnia\tembassy\tcuba\n',
        'line 2',
        "unknown entity 'chnia'",
        "'china'",
    ),
    'unknown relation': (
        GOOD + b'china\tembasy\tcuba\n',
        'line 2',
        "unknown relation 'embasy'",
        "'embassy'",
    ),
    'unknown tail': (GOOD + b'china\tembassy\tCuba\n', 'line 2', "unknown entity 'Cuba'", "'cuba'"),
    'unknown below a header': (
        b'h\tr\tt\n' + GOOD + b'china\tembassy\tcubba\n',
        'line 3',
        "'cubba'",
        "'cuba'",
    ),
    'swapped columns': (
        b'china\tcuba\tembassy\n',
        'line 1',
        "unknown relation 'cuba'",
        'columns swapped?',
    ),
    'ids': (b'0\t1\t2\n', 'line 1', "unknown entity '0'"),
    'broken gzip': (gzip.compress(GOOD * 500)[:40], 'cannot be read'),
}


@pytest.mark.parametrize('name', FILES)
def test_malformed_test_file(original: Path, tmp_path: Path, name: str) -> None:
    content, *parts = FILES[name]
    path = tmp_path / ('ask.tsv.gz' if 'gzip' in name else 'ask.tsv')
    path.write_bytes(content)
    refused(
        tmp_path,
        ('explain', original, '--test', path, '--out', tmp_path / 'result'),
        str(path),
        *parts,
    )


def test_missing_test_file(original: Path, tmp_path: Path) -> None:
    for path, parts in (
        (tmp_path / 'no.tsv', ('no.tsv', 'no such file')),
        (tmp_path, (str(tmp_path), 'a folder, not a file')),
    ):
        refused(
            tmp_path, ('explain', original, '--test', path, '--out', tmp_path / 'r.csv'), *parts
        )


# ---- malformed: data sets

GRAPHS = {
    'no train': ({'test.txt': GOOD}, 'no train.txt or train.tsv', 'test.txt'),
    'nothing': ({}, 'no train.txt or train.tsv'),
    'two trains': ({'train.txt': GOOD, 'train.tsv': GOOD}, 'both train.txt and train.tsv'),
    'empty train': ({'train.txt': b''}, 'train.txt', 'the file is empty'),
    'bad line': (
        {'train.txt': GOOD * 2 + b'china embassy cuba\n'},
        'train.txt: line 3',
        'expected 3 columns',
    ),
    'unseen in test': (
        {'train.txt': GOOD, 'test.txt': GOOD + b'usa\tembassy\tcuba\n'},
        'test.txt: line 2',
        "'usa'",
    ),
    'bad valid': (
        {'train.txt': GOOD, 'valid.tsv': b'china\tembassy\n'},
        'valid.tsv: line 1',
        'expected 3 columns',
    ),
}


@pytest.mark.parametrize('name', GRAPHS)
def test_malformed_graph(tmp_path: Path, name: str) -> None:
    files, *parts = GRAPHS[name]
    (tmp_path / 'graph').mkdir()
    for file, content in files.items():
        (tmp_path / 'graph' / file).write_bytes(content)
    refused(tmp_path, ('train', tmp_path / 'graph', '--out', tmp_path / 'new'), 'graph', *parts)


def test_unknown_dataset(tmp_path: Path) -> None:
    (tmp_path / 'train.txt').write_bytes(GOOD)
    refused(
        tmp_path,
        ('train', 'nationss', '--out', tmp_path / 'new'),
        "'nationss'",
        "nearest: 'nations'",
    )
    refused(
        tmp_path, ('train', '', '--out', tmp_path / 'new'), "''", 'neither a folder nor a data set'
    )
    refused(
        tmp_path,
        ('train', tmp_path / 'train.txt', '--out', tmp_path / 'new'),
        'train.txt',
        'is a file, not a folder',
    )


# ---- malformed: run folders


def edit(run: Path, change: Callable[[dict], object]) -> None:
    "Change what run.json says."
    facts = json.loads((run / 'run.json').read_text())
    change(facts)
    (run / 'run.json').write_text(json.dumps(facts))


def edited(change: Callable[[dict], object]) -> Callable[[Path], None]:
    return lambda run: edit(run, change)


def cut(name: str) -> Callable[[Path], None]:
    "Keep the first half of a file."
    return lambda run: (run / name).write_bytes(
        (run / name).read_bytes()[: (run / name).stat().st_size // 2]
    )


def flip(name: str) -> Callable[[Path], None]:
    "Change the last byte of a file."

    def change(run: Path) -> None:
        content = (run / name).read_bytes()
        (run / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))

    return change


def exchanged(content: object, dump: Callable[[object, Path], object]) -> Callable[[Path], None]:
    "Another content for the last checkpoint, which run.json vouches for."

    def change(run: Path) -> None:
        dump(content, run / LAST)
        edit(run, lambda facts: facts['checkpoints'][-1].update(model=file_facts(run / LAST)))

    return change


def text(name: str, content: str) -> Callable[[Path], object]:
    return lambda run: (run / name).write_text(content)


def gone(name: str) -> Callable[[Path], object]:
    return lambda run: (run / name).unlink()


class Trap:
    "Unpickling this leaves a file behind."

    def __reduce__(self) -> tuple:
        return os.system, ('touch trapped',)


LAST = 'checkpoint-0004.pt'
RUNS = {
    'missing': (shutil.rmtree, 'is not a folder'),
    'a file': (lambda run: (shutil.rmtree(run), run.write_bytes(GOOD)), 'is not a folder'),
    'empty': (lambda run: (shutil.rmtree(run), run.mkdir()), 'run.json is missing'),
    'no run.json': (gone('run.json'), 'run.json is missing'),
    'truncated run.json': (cut('run.json'), 'run.json', 'not JSON, or truncated'),
    'empty run.json': (text('run.json', ''), 'run.json', 'not JSON'),
    'a list': (text('run.json', '[]'), 'run.json', 'not a dictionary'),
    'foreign format': (edited(lambda f: f.update(format='other')), 'run.json', "'other'"),
    'newer version': (edited(lambda f: f.update(version=2)), 'run.json', 'version 2'),
    'key missing': (edited(lambda f: f.pop('settings')), 'run.json', "lacks 'settings'"),
    'setting missing': (
        edited(lambda f: f['settings'].pop('seed')),
        'run.json: settings',
        "lacks 'seed'",
    ),
    'wrong kind': (
        edited(lambda f: f['settings'].update(epochs='4')),
        'run.json: settings',
        "'epochs'",
    ),
    'unknown loop': (
        edited(lambda f: f['settings'].update(loop='x')),
        'run.json: settings',
        "loop 'x'",
    ),
    'unknown model': (edited(lambda f: f['settings'].update(model='distmlt')), "'distmlt'"),
    'unknown loss': (edited(lambda f: f['settings'].update(loss='marginn')), "loss='marginn'"),
    'other shape': (
        edited(lambda f: f['settings']['model_kwargs'].update(embedding_dim=9)),
        'does not fit',
        'shape',
    ),
    'no checkpoint': (edited(lambda f: f.update(checkpoints=[])), 'run.json', 'no checkpoint'),
    'epochs swapped': (edited(lambda f: f['checkpoints'].reverse()), 'run.json', 'do not increase'),
    'negative rate': (
        edited(lambda f: f['checkpoints'][0].update(learning_rate=-0.1)),
        'checkpoints[0]: learning_rate',
    ),
    'no rate': (
        edited(lambda f: f['checkpoints'][0].update(learning_rate=None)),
        'checkpoints[0]',
        "'learning_rate'",
    ),
    'outside': (
        edited(lambda f: f['checkpoints'][0]['model'].update(file='../x.pt')),
        "'../x.pt'",
        'outside',
    ),
    'other triples': (
        edited(lambda f: f['dataset'].update(fingerprint='0')),
        'run.json',
        'fingerprint',
    ),
    'checkpoint missing': (gone(LAST), LAST, 'is missing'),
    'checkpoint truncated': (cut(LAST), LAST, 'is damaged'),
    'checkpoint empty': (text(LAST, ''), LAST, 'is damaged'),
    'checkpoint altered': (flip(LAST), LAST, 'SHA-256'),
    'checkpoint pickled': (
        exchanged(Trap(), lambda x, p: p.write_bytes(pickle.dumps(x))),
        LAST,
        'never done',
    ),
    'no state': (exchanged(dict(a=1), torch.save), LAST, 'no state dictionary'),
    'other state': (
        exchanged(dict(state_dict=dict(w=torch.ones(2))), torch.save),
        LAST,
        'does not fit',
        'is missing',
    ),
    'optimiser missing': (
        gone('checkpoint-0004.optimizer.pt'),
        'checkpoint-0004.optimizer.pt',
        'is missing',
    ),
    'entities missing': (gone('entity_to_id.tsv'), 'entity_to_id.tsv', 'is missing'),
    'entities altered': (text('entity_to_id.tsv', 'a\t0\n'), 'entity_to_id.tsv', 'is damaged'),
    'relations truncated': (cut('relation_to_id.tsv'), 'relation_to_id.tsv', 'is damaged'),
    'triples missing': (gone('triples.safetensors'), 'triples.safetensors', 'is missing'),
    'triples altered': (flip('triples.safetensors'), 'triples.safetensors', 'SHA-256'),
}


@pytest.mark.parametrize('name', RUNS)
def test_malformed_run(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    damage, *parts = RUNS[name]
    monkeypatch.chdir(tmp_path)
    damage(run)
    for args in (('explain', run, *ASK), ('self', run)):
        refused(tmp_path, (*args, '--out', tmp_path / 'result'), *parts)


# ---- malformed: options


def without_testing(run: Path) -> None:
    "Take the testing triples out of a run."
    from safetensors.torch import load_file, save_file

    triples = load_file(run / 'triples.safetensors')
    save_file(dict(training=triples['training']), run / 'triples.safetensors')
    edit(run, lambda facts: facts['files'].update(triples=file_facts(run / 'triples.safetensors')))


def test_run_without_testing_triples(run: Path, tmp_path: Path) -> None:
    without_testing(run)
    refused(tmp_path, ('explain', run, '--max', 3), str(run), 'no testing triples', '--triple')
    succeeded('explain', run, *ASK)


CHOICES = {
    'nothing to explain': ((), 'specify what to explain', '--triple'),
    'two ways': ((*ASK, '--relation', 'embassy'), '--triple', '--relation', 'exclude'),
    'file and triple': ((*ASK, '--test', 'x.tsv'), '--triple', '--test', 'exclude'),
    'file and relation': (
        ('--test', 'x.tsv', '--relation', 'embassy'),
        '--test',
        '--relation',
        'exclude',
    ),
    'half a triple': (('--triple', 'china', 'embassy'), '--triple', 'found the option --out'),
    'half a triple without out': (('--triple', 'china', 'embassy'), '--triple', 'requires 3'),
    'head': (
        ('--triple', 'chnia', 'embassy', 'cuba'),
        '--triple',
        "entity 'chnia'",
        "nearest: 'china'",
    ),
    'relation': (
        ('--triple', 'china', 'embasy', 'cuba'),
        '--triple',
        "relation 'embasy'",
        "nearest: 'embassy'",
    ),
    'swapped': (('--triple', 'china', 'cuba', 'embassy'), '--triple', 'columns swapped?'),
    'empty label': (('--triple', '', 'embassy', 'cuba'), '--triple', "unknown entity ''"),
    'label of two lines': (('--triple', 'chi\nna', 'embassy', 'cuba'), '--triple', r"'chi\nna'"),
    'second triple': ((*ASK, '--triple', 'china', 'embassy', 'cubba'), '--triple', "'cubba'"),
    '--relation': (('--relation', 'treatis'), '--relation', "relation 'treatis'", "'treaties'"),
    'row': (('--test-index', 10**6), '--test-index', '1000000', 'out of range'),
    'negative row': (('--test-index', -1), '--test-index', '-1', 'out of range'),
    'row of letters': (('--test-index', 'two'), '--test-index', "'two'"),
    'relation not in row': (
        ('--test-index', 0, '--relation', 'embassy'),
        '--test-index',
        '--relation',
        'none of the',
    ),
    '--max': (('--max', 0), '--max', '0'),
    '-k': ((*ASK, '-k', 0), '-k', '0'),
    '-k of letters': ((*ASK, '-k', 'ten'), '-k', "'ten'"),
    '-k fraction': ((*ASK, '-k', '2.5'), '-k', "'2.5'"),
    '--objective': ((*ASK, '--objective', 'bcee'), '--objective', "'bcee'", "'softmax'"),
    'rows under slcwa': ((*ASK, '--objective', 'training-row'), 'training-row', 'sLCWA'),
    '--test-objective': ((*ASK, '--test-objective', 'x'), '--test-objective', "'x'"),
    '--against': (
        (*ASK, '--against', 'brasil'),
        '--against',
        "entity 'brasil'",
        "nearest: 'brazil'",
    ),
    'against itself': ((*ASK, '--against', 'cuba'), '--against', "'cuba' is the tail"),
    'against and objective': (
        (*ASK, '--against', 'brazil', '--test-objective', 'bce'),
        '--against',
        'exclude',
    ),
    '--engine': ((*ASK, '--engine', 'fast'), '--engine', "'fast'", "'factored'"),
    '--precision': ((*ASK, '--precision', 'int4'), '--precision', "'int4'", "'bf16'"),
    '--precision without engine': (
        (*ASK, '--precision', 'bf16', '--engine', 'loop'),
        "'loop'",
        "'bf16'",
    ),
    'no such checkpoint': ((*ASK, '--checkpoints', '0,9'), 'no checkpoint 9', 'the run has 2'),
    'checkpoint twice': ((*ASK, '--checkpoints', '1,-1'), 'checkpoints [1, -1]', 'once'),
    'checkpoint names': (
        (*ASK, '--checkpoints', 'last'),
        '--checkpoints',
        "'last'",
        'whole numbers',
    ),
    'empty checkpoints': ((*ASK, '--checkpoints', ''), '--checkpoints', 'whole numbers'),
    '--devices': ((*ASK, '--devices', 'gpuu'), '--devices gpuu'),
    'no such GPU': ((*ASK, '--devices', 'cuda:99'), '--devices cuda:99', 'CUDA devices'),
    '--memory': ((*ASK, '--memory', 'lots'), "memory 'lots'", 'expected one such as'),
    'too little memory': ((*ASK, '--memory', '10B'), '--memory 10'),
    '--batch-size': ((*ASK, '--batch-size', -5), '--batch-size', '-5'),
    '--format': ((*ASK, '--format', 'xml'), '--format', "'xml'"),
    'overwrite what': ((*ASK, '--overwrite'), '--overwrite', 'needs --out'),
    'out of two kinds': ((*ASK, '--out', 'result.docx'), '--out', 'result.docx', '.parquet'),
    'unknown option': ((*ASK, '--top', 3), '--top'),
    'stray word': ((*ASK, 'embassy'), 'embassy'),
}


@pytest.mark.parametrize('name', CHOICES)
def test_malformed_options_of_run(
    original: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    args, *parts = CHOICES[name]
    out = () if 'out' in name or 'overwrite' in name else ('--out', tmp_path / 'result')
    refused(tmp_path, ('explain', original, *args, *out), *parts)


@pytest.mark.parametrize('command', [('explain', *ASK), ('self',)])
def test_out_is_not_lost(original: Path, tmp_path: Path, command: tuple) -> None:
    "An older result, a file in the way, and a place where nothing can be written."
    name, *more = command
    (tmp_path / 'old').mkdir()
    for file in ('old/note', 'old.csv'):
        (tmp_path / file).write_text('mine')
    for out, part in (
        ('old', 'already exists'),
        ('old.csv', 'already exists'),
        ('old.csv/new', 'is not a folder'),
        ('old/note/x.csv', 'is not a folder'),
        ('old/a.b', 'expected a folder, or a file'),
    ):
        refused(tmp_path, (name, original, *more, '--out', tmp_path / out), '--out', part)
    refused(
        tmp_path,
        (name, original, *more, '--out', '/proc/version/x'),
        '--out',
        '/proc/version is not a folder',
    )


def test_disk_errors_are_told(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(28, 'No space left on device', 'x.csv')

    monkeypatch.setitem(results.WRITERS, '.csv', full)
    refused(
        tmp_path,
        ('explain', original, *ASK, '--out', tmp_path / 'x.csv'),
        'x.csv cannot be saved (No space left on device)',
    )


SELF = {
    '-k': (('-k', '-1'), '-k'),
    '--relation': (('--relation', 'embasy'), '--relation', "nearest: 'embassy'"),
    '--checkpoints': (('--checkpoints', '2'), 'no checkpoint 2'),
    '--test': (('--test', 'x'), '--test'),
    '--engine': (('--engine', ''), '--engine'),
}


@pytest.mark.parametrize('name', SELF)
def test_malformed_options_of_self(original: Path, tmp_path: Path, name: str) -> None:
    args, *parts = SELF[name]
    refused(tmp_path, ('self', original, *args, '--out', tmp_path / 'result'), *parts)


SETTINGS = {
    '--model': (('--model', 'DistMlt'), '--model DistMlt', 'distmult'),
    'nothing to train': (('--model', 'FixedModel'), '--model fixed', 'no parameters'),
    'needs literals': (('--model', 'DistMultLiteral'), 'literals'),
    'not JSON': (
        ('--model-kwargs', '{embedding_dim: 8}'),
        '--model-kwargs',
        'expected a JSON object',
    ),
    'a JSON list': (('--model-kwargs', '[8]'), '--model-kwargs', 'found a list'),
    'unknown setting': (('--model-kwargs', '{"embeding_dim": 8}'), 'embeding_dim'),
    'wrong kind': (('--model-kwargs', '{"embedding_dim": "eight"}'), 'eight'),
    'reserved': (('--model-kwargs', '{"random_seed": 8}'), 'random_seed'),
    'JSON of sampler': (
        ('--negative-sampler-kwargs', 'filtered'),
        '--negative-sampler-kwargs',
        'JSON',
    ),
    'JSON of loss': (('--loss-kwargs', '{"margin": }'), '--loss-kwargs', 'JSON'),
    'JSON of optimiser': (('--optimizer-kwargs', ''), '--optimizer-kwargs', 'JSON'),
    'JSON of scheduler': (('--lr-scheduler-kwargs', '1'), '--lr-scheduler-kwargs', 'found a int'),
    '--epochs': (('--epochs', 0), '--epochs must be', '0'),
    'half an epoch': (('--epochs', '1.5'), '--epochs', "'1.5'"),
    '--keep-every': (('--keep-every', 0), '--keep-every must be'),
    'late epoch': (('--epochs', 4, '--keep-every', '2,9'), '--keep-every: an epoch', '9'),
    'epochs of letters': (('--keep-every', 'all'), '--keep-every', "'all'"),
    '--loop': (('--loop', 'owa'), '--loop', "'owa'"),
    '--loss': (('--loss', 'margin'), '--loss margin', 'marginranking'),
    'setting of loss': (('--loss', 'nssa', '--loss-kwargs', '{"marge": 1}'), 'marge'),
    '--optimizer': (('--optimizer', 'Adem'), '--optimizer Adem', 'adam'),
    'closure': (('--optimizer', 'LBFGS'), 'lbfgs', 'closure'),
    'setting of optimiser': (('--optimizer-kwargs', '{"betta": 1}'), 'betta'),
    'rate twice': (('--lr', '.1', '--optimizer-kwargs', '{"lr": 0.1}'), 'twice'),
    'negative rate': (('--lr', '-1'), '--lr must be', '-1'),
    'rate nan': (('--lr', 'nan'), 'lr', 'nan'),
    'rate of letters': (('--lr', 'fast'), '--lr', "'fast'"),
    '--lr-scheduler': (('--lr-scheduler', 'cosin'), '--lr-scheduler cosin'),
    'settings of no scheduler': (
        ('--lr-scheduler-kwargs', '{"gamma": 1}'),
        '--lr-scheduler-kwargs without',
    ),
    '--label-smoothing': (('--label-smoothing', '1.5'), '--label-smoothing', '1.5'),
    'smoothed pairs': (
        ('--label-smoothing', '.1', '--loss', 'marginranking', '--loop', 'slcwa'),
        'smoothing',
    ),
    '--negative-sampler': (('--negative-sampler', 'bern'), '--negative-sampler bern', 'bernoulli'),
    'sampler under lcwa': (
        ('--loop', 'lcwa', '--negative-sampler', 'basic'),
        '--negative-sampler',
        '--loop lcwa',
    ),
    'negatives under lcwa': (
        ('--loop', 'lcwa', '--num-negs-per-pos', 3),
        '--num-negs-per-pos',
        '--loop lcwa',
    ),
    '--num-negs-per-pos': (('--num-negs-per-pos', 0), '--num-negs-per-pos', '0'),
    '--batch-size': (('--batch-size', 0), '--batch-size', '0'),
    '--seed': (('--seed', -1), 'seed', '-1'),
    '--device': (('--device', 'tpu9'), '--device tpu9'),
    '--training-kwargs': (
        ('--training-kwargs', '{"num_epochs": 3}'),
        '--training-kwargs takes',
        'num_epochs',
    ),
    '--precision': (('--precision', 'fp16'), '--precision', "'fp16'", "'bf16'"),
    'precision without effect': (('--precision', 'bf16'), 'changes nothing for DistMult'),
    '--patience': (('--patience', 0), 'patience', '0'),
    'patience beyond the end': (('--patience', 3, '--epochs', 40), 'before epoch 40'),
    '--evaluate-every': (('--evaluate-every', 5), '--evaluate-every without patience'),
    '--stop-delta': (('--patience', 1, '--stop-delta', '1.5'), '--stop-delta', '1.5'),
    '--stop-metric': (
        ('--patience', 1, '--stop-metric', 'loss'),
        '--stop-metric loss',
        'hits_at_10',
    ),
    'diverges': (
        ('--lr', '1e30', '--loss', 'softplus', '--epochs', 9, '--batch-size', 50),
        'non-finite',
    ),
}


@pytest.mark.parametrize('name', SETTINGS)
def test_malformed_options_of_train(tmp_path: Path, name: str) -> None:
    args, *parts = SETTINGS[name]
    model = () if '--model' in args[:1] else ('--model', 'DistMult')
    refused(tmp_path, ('train', 'nations', *model, *args, '--out', tmp_path / 'new'), *parts)


def test_train_keeps_what_is_there(original: Path, run: Path, tmp_path: Path) -> None:
    "Another run, other settings, and folders and files of somebody else."
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine/note').write_text('mine')
    new = ('train', 'nations', '--model', 'DistMult', '--epochs', 1)
    refused(tmp_path, (*new, '--out', run), str(run), 'holds a run already')
    refused(
        tmp_path,
        (*new, '--out', run, '--resume'),
        str(run),
        'other settings',
        '--epochs (kept 4, now 1)',
    )
    refused(tmp_path, (*new, '--out', tmp_path / 'mine'), 'mine', 'holds no run')
    refused(tmp_path, (*new, '--out', tmp_path / 'mine/note'), 'note', 'holds no run')
    refused(tmp_path, (*new, '--out', tmp_path / 'mine/note/run'), 'note')
    refused(tmp_path, new, '--out')
    refused(tmp_path, ('train', '--out', tmp_path / 'new'), 'DATASET')


def test_demo_keeps_what_is_there(run: Path, tmp_path: Path) -> None:
    "A run with other settings, a folder of something else, and an option that it has not."
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine/note').write_text('mine')
    refused(tmp_path, ('demo', '--out', run), str(run), 'other settings')
    refused(tmp_path, ('demo', '--out', tmp_path / 'mine'), 'mine', 'holds no run')
    refused(tmp_path, ('demo', '--out', tmp_path / 'mine/note/x'), 'note')
    refused(tmp_path, ('demo', '--epochs', 3), '--epochs')


def test_unknown_command(tmp_path: Path) -> None:
    refused(tmp_path, ('rum',), "'rum'", 'tracin --help')
    refused(tmp_path, ('--verison',), '--verison')
    refused(tmp_path, ('explain',), 'RUN_DIR', 'tracin explain --help')
    refused(tmp_path, ('self',), 'RUN_DIR')


def test_enough_malformed_inputs() -> None:
    assert sum(map(len, (FILES, GRAPHS, RUNS, CHOICES, SELF, SETTINGS))) >= 60
