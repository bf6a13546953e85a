"""Every flag of `run` and `batch` by its effect."""

import csv
import html
import json
import shlex
from functools import partial
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from click.testing import Result as Outcome

from tracin_nb.answer.results import Result
from tracin_nb.app.cli import main
from tracin_nb.engine.shortcuts import Only, Projected, Sample
from tracin_nb.graph.neighbourhoods import Graph, neighbourhood
from tracin_nb.graph.triples import to_ids
from tracin_nb.influence import tracin
from tracin_nb.influence.shards import RankJob
from tracin_nb.influence.tracin import TracIn
from tracin_nb.runs.run import Run
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
ASK = ('--triple', 'china', 'embassy', 'cuba')
CUBA = [('china', 'embassy', 'cuba')]


@pytest.fixture(scope='module')
def run(tmp_path_factory) -> Run:
    return train(
        'nations',
        'ConvE',
        model_kwargs=SMALL,
        out=tmp_path_factory.mktemp('runs') / 'conve',
        epochs=4,
        keep_every=2,
        progress=False,
        device='cpu',
        lr=0.01,
    )


@pytest.fixture(scope='module')
def plain(run: Run) -> Result:
    return TracIn(run, devices='cpu', progress=False).explain(CUBA, 10)


def invoke(*args) -> Outcome:
    return CliRunner().invoke(main, [str(a) for a in args])


def done(*args) -> Outcome:
    outcome = invoke(*args)
    assert outcome.exit_code == 0, outcome.stderr
    return outcome


def frame(run: Run, *args) -> pd.DataFrame:
    "What `run` prints for one triple."
    return pd.read_csv(StringIO(done('explain', run.folder, *ASK, '--format', 'csv', *args).stdout))


def facts(run: Run, *args) -> dict:
    return json.loads(done('explain', run.folder, *ASK, '--format', 'json', *args).stdout)['facts']


def refused(*args) -> str:
    outcome = invoke(*args)
    assert outcome.exit_code == 2 and outcome.stdout == '' and 'Traceback' not in outcome.stderr
    return outcome.stderr.splitlines()[-1]


def same(found: pd.DataFrame, result: Result, **tolerance) -> None:
    assert found['training_index'].tolist() == result.frame['training_index'].tolist()
    pd.testing.assert_series_equal(
        found['influence'], result.frame['influence'], check_dtype=False, **tolerance
    )


def test_names_of_earlier_scripts(run: Run, plain: Result, tmp_path: Path) -> None:
    "Other names for the same thing."
    (tests := tmp_path / 'tests.tsv').write_text('usa\tembassy\tcuba\nchina\tembassy\tcuba\n')
    out = done(
        'explain',
        run.folder,
        '--test-triples',
        tests,
        '--test-indices',
        '1',
        '--top-k',
        10,
        '--device',
        'cpu',
        '--output',
        tmp_path / 'out.csv',
    )
    same(pd.read_csv(tmp_path / 'out.csv'), plain)
    assert out.stdout == ''


def test_pointless_flags_say_why_and_change_nothing(run: Run, plain: Result) -> None:
    flags = (
        '--use-optimized-tracin',
        '--use-gradient-checkpointing',
        '--disable-memory-cleanup',
        '--disable-test-gradient-caching',
    )
    out = done(
        'explain',
        run.folder,
        *ASK,
        '--format',
        'csv',
        *flags,
        '--filter-method',
        'bfs',
        '--projection-type',
        'gaussian',
    )
    same(pd.read_csv(StringIO(out.stdout)), plain)
    lines = [line for line in out.stderr.splitlines() if line.startswith('tracin: note: --')]
    assert [line.split()[2] for line in sorted(lines)] == sorted(
        [*flags, '--filter-method', '--projection-type']
    )
    assert all(line.split('changes nothing: ')[1] for line in lines)


def test_the_loop(run: Run) -> None:
    few = ('--checkpoints', '-1', '--sample-rate', 0.05, '--weighting', 'sgd')
    found = facts(run, '--disable-vectorized-gradients', *few)
    assert found['engine'] == 'loop'
    tracin = TracIn(run, weighting='sgd', devices='cpu', progress=False, checkpoints=[-1])
    result = tracin.explain(CUBA, 10, sample=Sample(0.05))
    same(frame(run, '--disable-vectorized-gradients', *few), result, rtol=1e-4)
    assert '--engine is vmap' in refused(
        'explain', run.folder, *ASK, '--disable-vectorized-gradients', '--engine', 'vmap'
    )


def test_mixed_precision(run: Run) -> None:
    found = facts(run, '--use-mixed-precision', '--device', 'cpu')
    assert found['precision'] == 'bf16' and 0 < found['precision_error']['relative_error'] < 0.05
    assert facts(run, '--use-mixed-precision', '--precision', 'fp16')['precision'] == 'fp16'
    assert '--precision is tf32' in refused(
        'explain', run.folder, *ASK, '--use-mixed-precision', '--precision', 'tf32'
    )


def test_compile(run: Run) -> None:
    assert 'compile' in json.dumps(
        facts(run, '--use-torch-compile')
    ) and 'compile' not in json.dumps(facts(run))


def test_batch_size_and_seconds(run: Run) -> None:
    assert facts(run, '--batch-size', 77)['tile'] == 77


def test_top_k_and_rank_by(run: Run, plain: Result) -> None:
    same(frame(run, '-k', 3), TracIn(run, devices='cpu', progress=False).explain(CUBA, 3))
    found = frame(run, '-k', 7, '--rank-by', 'absolute')
    scores = TracIn(run, devices='cpu', progress=False).scores(CUBA)[0]
    assert found['training_index'].tolist() == scores.abs().topk(7).indices.tolist()
    assert found['rank'].tolist() == list(range(1, 8))


def test_rank_by_strength_in_a_folder_and_in_the_table(run: Run, tmp_path: Path) -> None:
    done(
        'explain',
        run.folder,
        *ASK,
        '-k',
        5,
        '--rank-by',
        'absolute',
        '--out',
        tmp_path / 'out',
        '--csv-output',
        tmp_path / 't.csv',
    )
    found = Result.load(tmp_path / 'out')
    assert found.facts['rank_by'] == 'absolute' and len(found.frame) == 5
    assert (pd.read_csv(tmp_path / 't.csv')['TracInScore'].abs().diff().dropna() <= 0).all()


@pytest.mark.parametrize(
    'args, weighting',
    [
        (('--use-last-layers-only',), Only(2)),
        (('--use-last-layers-only', '--num-last-layers', 4), Only(4)),
        (('--use-last-layers-only', '--last-layer-names', 'hr1d.0,hr2d'), Only(('hr1d.0', 'hr2d'))),
        (('--use-projection',), Projected(4096)),
        (('--use-projection', '--projection-dim', 64, '--seed', 5), Projected(64, 5)),
        (('--use-projection', '--use-last-layers-only'), Projected(4096, 0, Only(2))),
    ],
)
def test_shortcuts(run: Run, args: tuple, weighting) -> None:
    result = TracIn(run, weighting=weighting, devices='cpu', progress=False).explain(CUBA, 10)
    args = ('--weighting', 'sgd', *args)
    same(frame(run, *args), result, rtol=1e-5)
    assert facts(run, *args)['shortcut_error'] == pytest.approx(
        result.facts['shortcut_error'], rel=1e-3
    )


def test_shortcuts_that_contradict(run: Run) -> None:
    for args, why in (
        (('--num-last-layers', 3), 'needs --use-last-layers-only'),
        (('--projection-dim', 3), 'needs --use-projection'),
        (
            ('--use-last-layers-only', '--last-layer-names', 'fc'),
            "no layer is called 'fc'; there are",
        ),
        (('--stratify-by', 'equal'), 'needs --sample-rate'),
        (('--sample-rate', 2), 'sample rate is 2'),
    ):
        assert why in refused('explain', run.folder, *ASK, *args)


@pytest.mark.parametrize('strata', ['proportional', 'equal'])
def test_sampling(run: Run, strata: str) -> None:
    found = frame(run, '--sample-rate', 0.2, '--stratify-by', strata, '--seed', 4)
    rows = Sample(0.2, strata, 4).rows(run.training.mapped_triples[:, 1])
    same(
        found,
        TracIn(run, devices='cpu', progress=False).explain(
            CUBA, 10, train=run.training.mapped_triples[rows]
        ),
        rtol=1e-5,
    )
    assert facts(run, '--sample-rate', 0.2)['sample']['missed'] > 0


@pytest.mark.parametrize(
    'args, wanted',
    [
        (('--n-hops', 1), dict(hops=1)),
        (('--n-hops', 1, '--strict-hop-constraint'), dict(hops=1, strict_hops=True)),
        (('--min-degree', 240), dict(min_degree=240)),
        (
            ('--min-degree', 240, '--no-preserve-test-edges'),
            dict(min_degree=240, keep_test_edges=False),
        ),
        (('--path-filtering', '--max-total-path-length', 2), dict(path_length=2)),
        (('--n-hops', 1, '--path-filtering'), dict(hops=1, path_length=2)),
        (
            (
                '--min-degree',
                210,
                '--path-filtering',
                '--max-total-path-length',
                3,
                '--strict-path-filtering',
            ),
            dict(min_degree=210, path_length=3, strict_paths=True),
        ),
    ],
)
def test_neighbourhoods(run: Run, args: tuple, wanted: dict, tmp_path: Path) -> None:
    "In `run` as a restriction and as a lens, in `batch`, in `filter`."
    rows = neighbourhood(Graph(run.training), CUBA[0], **wanted)
    result = TracIn(run, devices='cpu', progress=False).explain(
        CUBA, 10, train=run.training.mapped_triples[rows]
    )
    same(frame(run, *args), result, rtol=1e-4)
    lens = frame(run, *args, '--lens')
    assert lens['in_neighbourhood'].tolist() == lens['training_index'].isin(rows).tolist()
    (tests := tmp_path / 't.tsv').write_text('china\tembassy\tcuba\n')
    done('batch', run.folder, '--test', tests, '--output-dir', tmp_path / 'out', *args)
    content = json.loads((tmp_path / 'out' / 'triple_000_china_cuba_tracin.json').read_text())
    assert [r['training_index'] for r in content['rows']] == result.frame['training_index'].tolist()
    done('filter', run.folder, '--test', tests, '--out', tmp_path / 'near.tsv', *args)
    kept = to_ids(
        pd.read_csv(tmp_path / 'near.tsv', sep='\t', header=None).values.tolist(), run.training
    )
    assert torch.equal(kept, run.training.mapped_triples[rows])


def test_the_conditions_differ(run: Run) -> None:
    "Each of the conditions above keeps other triples, so the tests above tell them apart."
    graph = Graph(run.training)
    several = [
        dict(hops=1),
        dict(min_degree=240),
        dict(min_degree=240, keep_test_edges=False),
        dict(path_length=2),
        dict(min_degree=210, path_length=3),
    ]
    assert len({len(neighbourhood(graph, CUBA[0], **c)) for c in several}) == len(several)


def test_strict_hops_matter_at_a_distance(tmp_path: Path) -> None:
    """In the chain h-a-b-t, h and t are three edges apart: strict about two hops, no triple at h
    or t is left."""
    (graph := tmp_path / 'train.tsv').write_text('h\tr\ta\na\tr\tb\nb\tr\tt\n')
    ask = (
        'filter',
        '--train',
        graph,
        '--triple',
        'h',
        'r',
        't',
        '--n-hops',
        2,
        '--overwrite',
        '--out',
        tmp_path / 'kept.tsv',
    )
    kept = lambda *more: done(*ask, *more) and (tmp_path / 'kept.tsv').read_text().splitlines()
    assert kept() == ['a\tr\tb', 'b\tr\tt', 'h\tr\ta'] and kept('--strict-hop-constraint') == [
        'a\tr\tb'
    ]
    paths = (
        'filter',
        '--train',
        graph,
        '--triple',
        'h',
        'r',
        't',
        '--path-filtering',
        '--overwrite',
        '--out',
        tmp_path / 'kept.tsv',
    )
    done(*paths, '--max-total-path-length', 3)
    assert len((tmp_path / 'kept.tsv').read_text().splitlines()) == 3
    done(*paths, '--max-total-path-length', 2)
    assert (tmp_path / 'kept.tsv').read_text() == ''


def test_strict_paths(tmp_path: Path) -> None:
    "h-b and c-t are spared by the degree, but with b-c gone they are on no path."
    lines = ['h\tr\ta', 'a\tr\tt', 'h\tr\tb', 'b\tr\tc', 'c\tr\tt', 'a\tr\tx']
    (graph := tmp_path / 'train.tsv').write_text('\n'.join(lines) + '\n')
    ask = (
        'filter',
        '--train',
        graph,
        '--triple',
        'h',
        'r',
        't',
        '--min-degree',
        3,
        '--path-filtering',
        '--max-total-path-length',
        3,
        '--overwrite',
        '--out',
        tmp_path / 'kept.tsv',
    )
    kept = lambda *more: (
        done(*ask, *more) and sorted((tmp_path / 'kept.tsv').read_text().splitlines())
    )
    assert kept() == sorted([*lines[:3], lines[4]])
    assert kept('--strict-path-filtering') == sorted(lines[:2])


def test_filter_refuses(run: Run, tmp_path: Path) -> None:
    out = ('--out', tmp_path / 'kept.tsv')
    assert 'specify the neighbourhood' in refused('filter', run.folder, *ASK, *out)
    assert 'give either RUN_DIR or --train' in refused('filter', *ASK, '--n-hops', 1, *out)
    assert "unknown entity 'kuba'" in refused(
        'filter', run.folder, '--triple', 'china', 'embassy', 'kuba', '--n-hops', 1, *out
    )
    (tmp_path / 'kept.tsv').write_text('old')
    assert 'already exists' in refused('filter', run.folder, *ASK, '--n-hops', 1, *out)
    assert (tmp_path / 'kept.tsv').read_text() == 'old'


def test_modes(run: Run, plain: Result, tmp_path: Path) -> None:
    same(frame(run, '--mode', 'single'), plain)
    assert '--mode single explains one triple, not 2' in refused(
        'explain', run.folder, '--max', 2, '--mode', 'single'
    )
    own = pd.read_csv(
        StringIO(done('explain', run.folder, '--mode', 'self', '-k', 4, '--format', 'csv').stdout)
    )
    assert (
        own['training_index'].tolist()
        == TracIn(run, devices='cpu', progress=False)
        .self_influence(4)
        .frame['training_index']
        .tolist()
    )
    for args, name in (
        ((*ASK,), '--triple'),
        (('--n-hops', 1), '--n-hops'),
        (('--csv-output', tmp_path / 'x'), '--csv-output'),
    ):
        assert f'does not go with {name}' in refused('explain', run.folder, '--mode', 'self', *args)


def test_max_test_triples(run: Run) -> None:
    content = json.loads(
        done('explain', run.folder, '--max-test-triples', 3, '--format', 'json').stdout
    )
    assert len(content['tests']) == 3


def test_all_scores(run: Run, tmp_path: Path) -> None:
    done('explain', run.folder, '--max', 3, '--all-scores', tmp_path / 'all.parquet')
    scores = TracIn(run, devices='cpu', progress=False).scores(run.testing.mapped_triples[:3])
    assert torch.equal(
        torch.tensor(
            pd.read_parquet(tmp_path / 'all.parquet')[['test_0', 'test_1', 'test_2']].values.T
        ),
        scores,
    )
    assert '--all-scores does not go with --rank-by' in refused(
        'explain',
        run.folder,
        '--max',
        3,
        '--all-scores',
        tmp_path / 'x.parquet',
        '--rank-by',
        'absolute',
    )


def test_profile(run: Run, plain: Result) -> None:
    out = done('explain', run.folder, *ASK, '--format', 'csv', '--profile')
    same(pd.read_csv(StringIO(out.stdout)), plain)
    assert all(
        stage in out.stderr
        for stage in ('load', 'training forward', 'training backward', 'inner products', 'top-k')
    )


def test_multi_gpu_needs_gpus(run: Run, monkeypatch) -> None:
    monkeypatch.setattr('torch.cuda.device_count', lambda: 0)
    assert 'PyTorch sees no GPU' in refused('explain', run.folder, *ASK, '--enable-multi-gpu')


def test_self_per_relation(run: Run) -> None:
    found = pd.read_csv(
        StringIO(done('self', run.folder, '--per-relation', '-k', 2, '--format', 'csv').stdout)
    )
    assert found.groupby('relation').size().max() == 2 and found['relation'].nunique() == 55


def test_paths(run: Run, tmp_path: Path) -> None:
    (types := tmp_path / 'types.tsv').write_text(
        'id\ttype\n'
        + ''.join(
            f'{label}\t{"east" if i % 2 else "west"}\n'
            for label, i in run.training.entity_to_id.items()
        )
    )
    out = done(
        'paths',
        run.folder,
        *ASK,
        '--max-edges',
        2,
        '--score',
        'min',
        '--types',
        types,
        '--csv-output',
        tmp_path / 'p.csv',
        '--metapath-output',
        tmp_path / 'm.csv',
        '--device',
        'cpu',
    )
    table, kinds = pd.read_csv(tmp_path / 'p.csv'), pd.read_csv(tmp_path / 'm.csv')
    assert kinds['paths'].sum() == len(table) and (table['score'].diff().dropna() <= 0).all()
    assert (
        table['path'][0].startswith('china ')
        and table['path'][0].endswith('cuba')
        and 'east' in out.stdout
    )
    directed = done(
        'paths',
        run.folder,
        *ASK,
        '--max-edges',
        2,
        '--directed',
        '--csv-output',
        tmp_path / 'd.csv',
    )
    assert len(pd.read_csv(tmp_path / 'd.csv')) < len(table) and '<-' not in directed.stdout
    assert 'needs --types' in refused(
        'paths', run.folder, *ASK, '--metapath-output', tmp_path / 'm.csv'
    )
    assert 'is no CURIE' in refused('paths', run.folder, *ASK, '--max-edges', 2, '--types', 'curie')


def test_paths_as_evidence(run: Run) -> None:
    "Shorter paths first, none over the prediction's relation, about the raw score, in plain words."
    ask = ('paths', run.folder, *ASK, '--view', 'mechanism', '--device', 'cpu')
    report = json.loads(done(*ask, '-k', 10**6, '--format', 'json').stdout)
    edges = [row['edges'] for row in report['rows']]
    assert edges == sorted(edges) and {*edges} == {2, 3}
    assert not any(f'-{ASK[2]}-' in row['path'] for row in report['rows'])
    assert report['facts']['objective'] == 'score' and report['view'] == 'mechanism'
    assert "seen through the model's form; untrained weights" in ' '.join(done(*ask).stdout.split())


def test_evidence(run: Run, tmp_path: Path) -> None:
    """`--view mechanism` gives what `explain` gives, path by path; the page states the command;
    what is about the ranking by influence is refused."""
    ask = ('explain', run.folder, *ASK, '--view', 'mechanism', '--device', 'cpu', '-k', 7)
    ask += ('--weighting', 'sgd')
    page, out = tmp_path / 'why.html', tmp_path / 'out'
    text = done(*ask).stdout
    done(*ask, '--report', page, '--out', out)
    asked = TracIn(run, devices='cpu', weighting='sgd', progress=False)
    frame = asked.explain(CUBA, 7, view='mechanism').frame
    pd.testing.assert_frame_equal(Result.load(out).frame, frame, rtol=1e-4, check_dtype=False)
    assert text.count('\n      ') == 7
    for path in frame['path'].unique():
        assert f'\n    {path}\n' in text
    call = html.unescape(page.read_text()).partition('tracin explain ')[2].partition('<')[0]
    assert '--objective score' in call and '--view mechanism' in call
    assert done('explain', *shlex.split(call), '--device', 'cpu').stdout == text
    for flag in (['--n-hops', 2], ['--against', 'usa'], ['--rank-by', 'absolute'], ['--breakdown']):
        assert f'--view mechanism does not go with {flag[0]}' in refused(*ask, *flag)


def test_evidence_in_parts(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    "A budget for the influences on one test triple gives the same as one for all."
    ids = run.testing.mapped_triples[:3]
    sgd = TracIn(run, devices='cpu', weighting='sgd', progress=False)
    ask = partial(sgd.explain, ids, 5, view='mechanism')
    asked, scores, whole = [], TracIn.scores, ask()
    monkeypatch.setattr(tracin, 'budget', lambda _: 8 * run.training.num_triples)
    monkeypatch.setattr(TracIn, 'scores', lambda *a: asked.append(len(a[1])) or scores(*a))
    pd.testing.assert_frame_equal(ask().frame, whole.frame, rtol=1e-4)
    assert asked == [2, 1]


def test_mechanism_paths(run: Run, tmp_path: Path) -> None:
    "Which of the named training triples are on a known path from china to cuba?"
    (paths := tmp_path / 'paths.tsv').write_text(
        'record\tdrug\tdisease\thead\trelation\ttail\nA\tchina\tcuba\tchina\tviolentactions\tindia\n'
        'A\tchina\tcuba\tcuba\tconferences\tindia\nB\tchina\tcuba\tchina\tnowhere\tcuba\n'
    )
    done(
        'explain',
        run.folder,
        *ASK,
        '-k',
        1592,
        '--mechanism-paths',
        paths,
        '--out',
        tmp_path / 'out',
    )
    found = Result.load(tmp_path / 'out').frame
    on = found[found['IsGroundTruth']]
    assert set(zip(on['head'], on['relation'], on['tail'])) <= {
        ('china', 'violentactions', 'india'),
        ('cuba', 'conferences', 'india'),
    } and len(on)
    inside = found['head'].isin(['china', 'cuba', 'india']) & found['tail'].isin(
        ['china', 'cuba', 'india']
    )
    assert found['In_path'].tolist() == inside.tolist()
    assert '1 triples of' in invoke('explain', run.folder, *ASK, '--mechanism-paths', paths).stderr
    paths.write_text('record\n')
    assert 'paths.tsv' in refused('explain', run.folder, *ASK, '--mechanism-paths', paths)


# ---- batch

PREDICTIONS = (
    'china\tembassy\tcuba\nusa\tembassy\tatlantis\nusa\tembassy\tcuba\nussr\tembassy\tegypt\n'
)


@pytest.fixture
def tests(tmp_path: Path) -> Path:
    (path := tmp_path / 'tests.tsv').write_text(PREDICTIONS)
    return path


def summary(folder: Path) -> dict:
    return json.loads((folder / 'batch_tracin_summary.json').read_text())


def test_batch(run: Run, plain: Result, tests: Path, tmp_path: Path) -> None:
    outcome = invoke('batch', run.folder, '--test', tests, '--output-dir', tmp_path / 'out')
    assert outcome.exit_code == 1 and "triple 1: unknown entity 'atlantis'" in outcome.stderr
    found = summary(tmp_path / 'out')
    assert [found[n] for n in ('total', 'successful', 'failed', 'skipped')] == [
        4,
        3,
        1,
        0,
    ] and found['elapsed'] > 0
    assert [r['status'] for r in found['results']] == [
        'successful',
        'failed',
        'successful',
        'successful',
    ]
    table = pd.read_csv(tmp_path / 'out' / 'triple_000_china_cuba_tracin.csv')
    pd.testing.assert_series_equal(
        table['TracInScore'],
        plain.frame['influence'],
        check_names=False,
        check_dtype=False,
        rtol=1e-4,
    )
    assert sorted(p.name for p in (tmp_path / 'out').iterdir()) == sorted(
        ['batch_manifest.json', 'batch_tracin_summary.json']
        + [
            f'triple_{n}_tracin.{e}'
            for e in ('csv', 'json')
            for n in ('000_china_cuba', '002_usa_cuba', '003_ussr_egypt')
        ]
    )


def test_batch_takes_a_part(run: Run, tests: Path, tmp_path: Path) -> None:
    done(
        'batch',
        run.folder,
        '--test',
        tests,
        '--output-dir',
        tmp_path / 'out',
        '--start-index',
        2,
        '--max-triples',
        1,
    )
    assert [r['index'] for r in summary(tmp_path / 'out')['results']] == [2]
    assert 'none from number 4 on' in refused(
        'batch', run.folder, '--test', tests, '--output-dir', tmp_path / 'x', '--start-index', 4
    )
    assert not (tmp_path / 'x').exists()


def test_batch_skips_what_it_can_trust(run: Run, tests: Path, tmp_path: Path) -> None:
    ask = (
        'batch',
        run.folder,
        '--test',
        tests,
        '--output-dir',
        tmp_path / 'out',
        '--start-index',
        2,
    )
    done(*ask)
    done(*ask, '--skip-existing')
    assert summary(tmp_path / 'out')['skipped'] == 2
    (tmp_path / 'out' / 'triple_002_usa_cuba_tracin.csv').write_text('x')
    done(*ask, '--skip-existing')
    assert [r['status'] for r in summary(tmp_path / 'out')['results']] == ['successful', 'skipped']
    done(*ask, '--skip-existing', '--objective', 'score')
    assert summary(tmp_path / 'out')['skipped'] == 0
    assert 'holds answers to another question' in refused(*ask)
    done(*ask, '--overwrite')
    assert summary(tmp_path / 'out')['skipped'] == 0
    (tmp_path / 'out' / 'batch_manifest.json').write_text('{')
    assert 'batch_manifest.json is damaged' in refused(*ask, '--skip-existing')


def test_batch_of_neighbourhoods_only(run: Run, tests: Path, tmp_path: Path) -> None:
    ask = (
        'batch',
        run.folder,
        '--test',
        tests,
        '--output-dir',
        tmp_path / 'out',
        '--skip-tracin',
        '--start-index',
        2,
    )
    assert 'nothing to do' in refused(*ask)
    assert 'nothing to do' in refused(*ask, '--n-hops', 1, '--skip-filtering')
    done(*ask, '--path-filtering', '--max-total-path-length', 2)
    rows = neighbourhood(Graph(run.training), ('usa', 'embassy', 'cuba'), path_length=2)
    assert len(
        (tmp_path / 'out' / 'triple_002_usa_cuba_filtered.tsv').read_text().splitlines()
    ) == len(rows)
    assert not list((tmp_path / 'out').glob('*_tracin.csv'))


def test_batch_without_filtering(run: Run, plain: Result, tests: Path, tmp_path: Path) -> None:
    invoke(
        'batch',
        run.folder,
        '--test',
        tests,
        '--output-dir',
        tmp_path / 'out',
        '--n-hops',
        1,
        '--skip-filtering',
    )
    table = pd.read_csv(tmp_path / 'out' / 'triple_000_china_cuba_tracin.csv')
    pd.testing.assert_series_equal(
        table['TracInScore'],
        plain.frame['influence'],
        check_names=False,
        check_dtype=False,
        rtol=1e-4,
    )


def test_batch_goes_on_after_a_kill(run: Run, tests: Path, tmp_path: Path, monkeypatch) -> None:
    "Parts of a pass stay in a hidden folder, and are used by the same question."
    ask = (
        'batch',
        run.folder,
        '--test',
        tests,
        '--output-dir',
        tmp_path / 'out',
        '--start-index',
        2,
        '--batch-size',
        16,
    )
    done(*ask)
    first = (tmp_path / 'out' / 'triple_002_usa_cuba_tracin.csv').read_text()
    write, wrote = RankJob.do, []

    def stop(self, *args):
        if len(wrote) == 5:
            raise KeyboardInterrupt
        wrote.append(1)
        return write(self, *args)

    monkeypatch.setattr(RankJob, 'do', stop)
    assert invoke(*ask).exit_code == 130
    assert len(list((tmp_path / 'out').glob('.parts-*/parts/*'))) == 5
    monkeypatch.setattr(RankJob, 'do', write)
    done(*ask)
    assert (tmp_path / 'out' / 'triple_002_usa_cuba_tracin.csv').read_text() == first
    content = json.loads((tmp_path / 'out' / 'triple_002_usa_cuba_tracin.json').read_text())
    assert content['facts']['counters']['shards'] < 60 and not list(
        (tmp_path / 'out').glob('.parts-*')
    )


def test_names_in_a_batch(run: Run, tests: Path, tmp_path: Path) -> None:
    "Names with commas, quotes, newlines are read by pandas and by csv."
    names = {i: f'no. {i}, "ü"' for i in range(run.training.num_entities)}
    (nodes := tmp_path / 'nodes.tsv').write_text(
        ''.join(f'{name}\t{i}\n' for i, name in names.items())
    )
    predicate = json.dumps(dict(predicate='biolink:has_embassy,in'))
    (edges := tmp_path / 'edges.json').write_text(json.dumps({predicate: 'embassy'}))
    done(
        'batch',
        run.folder,
        '--test',
        tests,
        '--output-dir',
        tmp_path / 'out',
        '--start-index',
        2,
        '--node-name-dict',
        nodes,
        '--edge-map',
        edges,
    )
    path = tmp_path / 'out' / 'triple_002_usa_cuba_tracin.csv'
    with open(path, newline='') as file:
        rows = list(csv.DictReader(file))
    usa = names[run.training.entity_to_id['usa']]
    assert rows[0]['TestHead_label'] == usa == pd.read_csv(path)['TestHead_label'][0]
    assert rows[0]['TestRel_label'] == 'has_embassy,in'


def test_a_damaged_file_of_predictions(run: Run, tmp_path: Path) -> None:
    (tests := tmp_path / 't.tsv').write_text('china\tembassy\tcuba\nchina\tembassy\n')
    assert 'line 2' in refused(
        'batch', run.folder, '--test', tests, '--output-dir', tmp_path / 'out'
    )
    assert not (tmp_path / 'out').exists()
