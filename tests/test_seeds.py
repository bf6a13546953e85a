"""Runs of several seeds: trained side by side as one by one, and explained by the exact mean of
their influences."""

import json

import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from models import CONVE
from pykeen.datasets.nations import Nations
from pykeen.models import ConvE, DistMult

from tracin_nb.answer.results import Result
from tracin_nb.app import cli
from tracin_nb.engine.shortcuts import Sample
from tracin_nb.evaluation.verify import check_ours
from tracin_nb.graph.neighbourhoods import Graph, near
from tracin_nb.influence import tracin as chapter
from tracin_nb.influence.batch import Batch, read_items
from tracin_nb.influence.cache import FactorCache
from tracin_nb.influence.tracin import TracIn, resume
from tracin_nb.runs.run import Run
from tracin_nb.runs.seeds import as_runs, train_seeds
from tracin_nb.runs.settings import RunError
from tracin_nb.runs.training import train

pytestmark = pytest.mark.filterwarnings('ignore')
HOW = dict(model_kwargs=dict(embedding_dim=4), epochs=1, keep_every=1, lr=0.05, progress=False)
HOW |= dict(device='cpu')
K = 4


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "Three runs."
    out = tmp_path_factory.mktemp('seeds') / 'runs'
    train_seeds('nations', 'DistMult', out=out, seeds=3, **HOW)
    return out


@pytest.fixture(scope='module')
def tests():
    return Nations().testing.mapped_triples[:3]


@pytest.fixture(scope='module')
def result(folder, tests):
    return made(folder).explain(tests, K)


def made(source, **options) -> TracIn:
    return TracIn(source, progress=False, devices='cpu', **dict(weighting='sgd') | options)


def doubles(kind, **kwargs) -> list[Run]:
    "Runs of models in float64, at two checkpoints each."
    training = Nations().training
    found = []
    for seed in range(3):
        model = kind(triples_factory=training, random_seed=seed, **kwargs).double()
        half = {n: 0.7 * x if x.is_floating_point() else x for n, x in model.state_dict().items()}
        states = [model.state_dict(), half]
        how = dict(states=states, learning_rates=[0.5, 0.2], seed=seed)
        found.append(Run.from_model(model, training, **how))
    return found


def agrees(result: Result, each: torch.Tensor, rows: torch.Tensor | None = None) -> None:
    "Does a result name what is strongest in the mean of `each` `[R, M, N]`, and how it spreads?"
    mean, frame = each.mean(0), result.frame
    at = frame['test_index'].to_numpy(), frame['training_index'].to_numpy()
    close = lambda name, x: torch.testing.assert_close(
        torch.tensor(frame[name].to_numpy()), x[at], rtol=1e-5, atol=1e-6 * float(mean.abs().max())
    )
    close('influence', mean)
    close('spread', each.std(0))
    shares = (each.sign() == mean.sign()).double().mean(0)
    assert frame['agreement'].tolist() == pytest.approx(shares[at].tolist())
    for kind, values in (('proponent', mean), ('opponent', -mean)):
        best = values if rows is None else values[:, rows]
        found = frame.loc[frame['kind'] == kind, 'influence'].abs().to_numpy().reshape(-1, K)
        assert found == pytest.approx(best.topk(K).values.numpy(), rel=1e-5)
    assert (frame['runs'] == len(each)).all()


def test_side_by_side_is_one_by_one(folder, tmp_path) -> None:
    "To the last bit."
    alone = train('nations', 'DistMult', out=tmp_path / 'one', seed=1, **HOW)
    runs = as_runs(folder)
    assert [r.seed for r in runs] == [0, 1, 2]
    shared = train_seeds('nations', 'DistMult', out=tmp_path / 'x', seeds=2, processes=2, **HOW)
    weights = lambda r: [r.fingerprint(k) for k in (0,)]
    assert weights(alone) == weights(runs[1]) == weights(shared[1])
    assert weights(runs[0]) == weights(shared[0])
    with pytest.raises(RunError, match='processes=1 needs none'):
        train_seeds('nations', lambda: 0, out=tmp_path / 'z', seeds=2, processes=2, **HOW)


def test_what_is_there_stays(folder) -> None:
    before = {p: p.stat().st_mtime_ns for p in folder.rglob('*.pt')}
    with pytest.raises(RunError, match='seed-0.*holds a run already'):
        train_seeds('nations', 'DistMult', out=folder, **HOW)
    more = train_seeds('nations', 'DistMult', out=folder, seeds=[1, 2], resume=True, **HOW)
    assert [r.seed for r in more] == [1, 2]
    assert {p: p.stat().st_mtime_ns for p in folder.rglob('*.pt')} == before


@pytest.mark.parametrize(
    ('kind', 'kwargs', 'weighting'),
    [(DistMult, dict(embedding_dim=3), 'natural'), (ConvE, CONVE, 'sgd')],
)
def test_mean_of_loops(kind, kwargs, weighting, tests) -> None:
    "In float64, against the plain loop over each run by itself, each with its own negatives."
    runs = doubles(kind, **kwargs)
    some = Nations().training.mapped_triples[::80]
    options = dict(weighting=weighting)
    loop = options | dict(engine='loop') if weighting == 'sgd' else options
    each = torch.stack([made(r, **loop).scores(tests, some) for r in runs])
    tracin = made(runs, **options)
    whole = torch.zeros(3, 3, runs[0].training.num_triples, dtype=torch.float64)
    rows = torch.arange(0, whole.shape[2], 80)
    whole[:, :, rows] = each
    agrees(tracin.explain(tests, K, train=some), whole, rows)
    assert torch.allclose(tracin.scores(tests, some), each.mean(0), rtol=1e-6, atol=0)


def test_little_memory(folder, tests, result) -> None:
    "Tiles of a few triples give the same, and what does not fit is refused with what would."
    small = made(folder, memory='1500kB').explain(tests, K)
    assert small.frame['training_index'].tolist() == result.frame['training_index'].tolist()
    assert small.frame['influence'].to_numpy() == pytest.approx(
        result.frame['influence'].to_numpy(), rel=1e-4
    )
    with pytest.raises(ValueError, match='explain at most 2 at a time'):
        made(folder, memory='160kB').explain(tests, K)


def test_each_run_is_loaded_once(folder, tests, monkeypatch) -> None:
    "One pass of each run; little is kept for the next question, much is let go."
    tracin = made(folder)
    tracin.explain(tests, K)
    tracin.explain(tests, K)
    assert [t.counters.loads for t in chapter.each_run(tracin)] == [1, 1, 1]
    monkeypatch.setattr(chapter, 'KEPT', 10**12)
    tracin.explain(tests, K)
    assert not any(t.steps.made for t in chapter.each_run(tracin))


def test_neighbourhoods_and_contrasts(folder, tests) -> None:
    runs, tracin = as_runs(folder), made(folder)
    each = torch.stack([made(r).scores(tests[:1]) for r in runs])
    for restrict in (True, False):
        around = near(Graph(runs[0].training), tests[:1], restrict, hops=1, min_degree=60)
        ours = tracin.explain(tests[:1], K, near=around)
        rows = torch.as_tensor(around.rows[0]) if restrict else None
        agrees(ours, each, rows)
        assert ('in_neighbourhood' in ours.frame) == (not restrict)
    other = runs[0].training.entity_id_to_label[int((tests[0, 2] + 1) % 14)]
    found = tracin.explain(tests[:1], K, against=other)
    single = [made(r).explain(tests[:1], 2000, against=other).frame for r in runs]
    sums = pd.concat(single).groupby('training_index')['influence'].sum() / 3
    assert found.frame['influence'].to_numpy() == pytest.approx(
        sums[found.frame['training_index']].to_numpy(), rel=1e-4
    )


def test_what_differs_is_named(folder, tmp_path) -> None:
    run = as_runs(folder)[0]
    other = train('nations', 'DistMult', out=tmp_path / 'a', **HOW | dict(batch_size=64, seed=5))
    with pytest.raises(RunError, match='batch_size is 64, not 256'):
        made([run, other])
    fewer = Nations().training.mapped_triples[:-1]
    model = run.model(-1, 'cpu')
    part = run.training.clone_and_exchange_triples(fewer)
    runs = [Run.from_model(model, t, learning_rates=[0.1]) for t in (run.training, part)]
    with pytest.raises(RunError, match='training triples is'):
        made(runs)
    with pytest.raises(RunError, match='give each seed once'):
        made([run, run])
    with pytest.raises(RunError, match='no run'):
        made([])
    with pytest.raises(RunError, match='3 seeds.*seed-0'):
        Run.open(folder)


@pytest.mark.parametrize('name', ['breakdown', 'candidates', 'sample'])
def test_questions_to_one_run(folder, tests, name) -> None:
    given = dict(breakdown=True, candidates=[('a', 'b', 'c')], sample=Sample(0.5))
    with pytest.raises(ValueError, match=f'^{name} takes one run, and this TracIn has 3'):
        made(folder).explain(tests, K, **{name: given[name]})


def test_methods_of_one_run(folder, tests, result, tmp_path) -> None:
    tracin = made(folder, cache=FactorCache(2**20))
    calls = dict(
        self_influence=lambda: tracin.self_influence(),
        by_checkpoint=lambda: tracin.by_checkpoint(result),
        scores_by_checkpoint=lambda: tracin.scores_by_checkpoint(tests, tests),
        write_scores=lambda: tracin.write_scores(tests, tmp_path / 's.parquet'),
        prepare=lambda: tracin.prepare(),
    )
    for name, call in calls.items():
        with pytest.raises(ValueError, match=f'^{name} takes one run'):
            call()
    tracin.precompute(tests)
    found = tracin.explain(tests, K)
    assert found.frame['training_index'].tolist() == result.frame['training_index'].tolist()


def test_everywhere_it_is_shown(result, tmp_path) -> None:
    text, page = str(result), result._repr_html_()
    first = result.frame.iloc[0]
    assert f'{first["agreement"] * 3:.0f}/3' in text and '±' in text
    assert 'mean of 3 runs (seeds 0, 1, 2)' in text and 'median (and range) of 3 runs' in text
    assert '±' in page and '/3</small>' in page
    assert 'mean over runs of several seeds' in page
    back = Result.load(result.save(tmp_path / 'out'))
    assert str(back) == text
    for table in (back.frame, pd.read_csv(tmp_path / 'out/result.csv')):
        assert {'spread', 'agreement', 'runs', 'test_tail_rank_low'} <= {*table}
    rows = json.loads((tmp_path / 'out/result.json').read_text())['rows']
    assert 'spread' in rows[0] and 'test_tail_rank_low' not in rows[0]
    ax = result.plot()
    assert '±' in ax.get_xlabel() and '/3' in ax.texts[0].get_text()
    check_ours(result, as_runs(result.facts['asked']['run'])[1])
    assert [r['seed'] for r in result.facts['runs']] == [0, 1, 2]


def test_beliefs_are_a_median(folder, tests, result) -> None:
    each = [made(r).explain(tests, 1).tests for r in as_runs(folder)]
    for name in ('score', 'tail_rank', 'head_rank'):
        values = pd.concat([t[name] for t in each], axis=1)
        assert result.tests[name].to_numpy() == pytest.approx(values.median(axis=1).to_numpy())
        assert result.tests[f'{name}_high'].to_numpy() == pytest.approx(values.max(axis=1))


def test_goes_on_after_the_last_whole_run(folder, tests, result, tmp_path, monkeypatch) -> None:
    out, work = tmp_path / 'out', chapter.taken_run

    def dies(tracin, question, moments):
        if tracin.run.seed == 2:
            raise KeyboardInterrupt
        return work(tracin, question, moments)

    monkeypatch.setattr(chapter, 'taken_run', dies)
    with pytest.raises(KeyboardInterrupt):
        made(folder).explain(tests, K, out=out)
    said = CliRunner().invoke(cli.main, ['status', str(out)]).output
    assert '2 of 3 runs done' in said
    went = []
    monkeypatch.setattr(chapter, 'taken_run', lambda *a: (went.append(a[0].run.seed), work(*a))[1])
    found = resume(out, progress=False)
    assert went == [2] and found.frame.equals(result.frame)
    assert Result.load(out).frame.equals(result.frame)
    assert made(folder).explain(tests, K, out=out).frame.equals(result.frame) and went == [2]
    with pytest.raises(ValueError, match='another question'):
        made(as_runs(folder)[:2]).explain(tests, K, out=out)


def test_batch(folder, tests, tmp_path, result) -> None:
    "Another set of seeds is another question."
    runs, path = as_runs(folder), tmp_path / 'test.tsv'
    labels = result.tests[['test_head', 'test_relation', 'test_tail']]
    labels.to_csv(path, sep='\t', header=False, index=False)
    items = read_items(path, runs[0].training)
    batch = Batch(made(runs), tmp_path / 'why', K)
    assert batch.run(items)['successful'] == 3
    assert batch.run(items, skip_existing=True)['skipped'] == 3
    assert Batch(made(runs[:2]), tmp_path / 'why', K).run(items, True)['successful'] == 3


def test_commands(folder, tmp_path) -> None:
    run = CliRunner().invoke
    explain = ['explain', '--max', '1', '-k', '2', '--format', 'csv', '--devices', 'cpu']
    explain += ['--weighting', 'sgd']
    whole, listed = (
        run(cli.main, [*explain, *map(str, source)])
        for source in ([folder], [folder / 'seed-0', folder / 'seed-1', folder / 'seed-2'])
    )
    assert whole.exit_code == 0 and whole.stdout == listed.stdout and 'spread' in whole.stdout
    refused = run(cli.main, [*explain, str(folder), '--breakdown'])
    assert refused.exit_code == 2 and '3 runs does not go with --breakdown' in refused.output
    for command in (['self', str(folder)], ['predict', str(folder), 'brazil']):
        refused = run(cli.main, command)
        assert refused.exit_code == 2 and '3 seeds' in refused.output, refused.output
    train = ['train', 'nations', '--model', 'DistMult', '--epochs', '1', '--seed', '4']
    train += ['--model-kwargs', '{"embedding_dim": 4}', '--out', str(tmp_path / 'r')]
    done = run(cli.main, [*train, '--seeds', '2', '--processes', '1'])
    assert done.exit_code == 0 and '2 runs (seeds 4, 5)' in done.output
    refused = run(cli.main, [*train, '--processes', '2'])
    assert refused.exit_code == 2 and "'--processes': needs --seeds" in refused.output
