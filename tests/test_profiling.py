"""Where the time goes: stages, counters, the loop law's traces in a profile, and that nothing is
left behind."""

import json
import pickle
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch
from pykeen.datasets import Nations
from pykeen.models import ConvE, DistMult

from tracin_nb.answer import plots
from tracin_nb.answer.results import Result
from tracin_nb.bench import profiling
from tracin_nb.bench.engine import relative_error
from tracin_nb.bench.profiling import (
    OPTIONS,
    STAGES,
    Profile,
    compare_options,
    count_flops,
    flops,
    profile,
    trace,
)
from tracin_nb.clock import OTHER, Stopwatch, bytes_of, stage, watching
from tracin_nb.influence import shards
from tracin_nb.influence.cache import FactorCache
from tracin_nb.influence.tracin import TracIn
from tracin_nb.runs.run import Run

pytestmark = pytest.mark.filterwarnings('ignore')
SMALL = dict(embedding_dim=16, embedding_height=4, embedding_width=4, output_channels=2)


@pytest.fixture(scope='module')
def runs() -> dict[str, Run]:
    "Two checkpoints of random weights."
    training = Nations().training
    kinds = dict(conve=(ConvE, SMALL), distmult=(DistMult, dict(embedding_dim=8)))

    def run(cls: type, kwargs: dict) -> Run:
        models = [cls(triples_factory=training, random_seed=seed, **kwargs) for seed in (1, 2)]
        return Run.from_model(
            models[0], training, states=[m.state_dict() for m in models], learning_rates=[0.1, 0.01]
        )

    return {name: run(*kind) for name, kind in kinds.items()}


@pytest.fixture(autouse=True)
def quick_floor(monkeypatch) -> None:
    "How fast the machine is matters to no test."
    monkeypatch.setattr(
        profiling, 'measure_floor', partial(profiling.measure_floor, n=32, rounds=1)
    )


@pytest.fixture
def tests() -> torch.Tensor:
    return Nations().testing.mapped_triples[:6]


def make(run: Run, **settings) -> TracIn:
    return TracIn(
        run,
        'bce',
        **dict(weighting='sgd', devices='cpu', progress=False, batch_size=400) | settings,
    )


def calls(p: Profile) -> dict[str, int]:
    return p.stages.set_index('stage')['calls'].to_dict()


def test_stages(runs, tests) -> None:
    """1592 training triples in tiles of 400, at two checkpoints: what the loop law allows, and
    no more."""
    tracin = make(runs['conve'])
    p = profile(tracin, tests, k=5)
    found = calls(p)
    assert (
        found['load'] == found['routes'] == found['weighting'] == 2 and found['test gradients'] == 1
    )
    assert found['training forward'] == found['inner products'] == found['top-k'] == 4
    assert found['transfer'] == 8 and found['training backward'] >= 8
    assert [s for s in STAGES if s in found] == p.stages['stage'].tolist() and found[OTHER] == 0
    assert p.facts['counters'] == p.result.facts['counters']
    assert p.facts['counters']['loads'] == 2 and p.facts['counters']['train_passes'] == 8
    again = profile(tracin, tests, k=5)
    assert 'load' not in calls(again) and again.facts['counters']['loads'] == 0
    assert again.facts['counters']['train_passes'] == 8 and tracin.counters.train_passes == 16
    assert p.result.frame.equals(make(runs['conve']).explain(tests, k=5).frame)


def test_sum(runs, tests, monkeypatch) -> None:
    """The stages make up the wall time that somebody else measures, and what is in none of them
    is less than 5 %."""
    taken, explain = [], TracIn.explain

    def timed(*args, **kwargs) -> Result:
        start = time.perf_counter()
        try:
            return explain(*args, **kwargs)
        finally:
            taken.append(time.perf_counter() - start)

    monkeypatch.setattr(TracIn, 'explain', timed)
    for kind, settings in [
        ('conve', {}),
        ('conve', dict(batch_size=None)),
        ('distmult', dict(batch_size=None)),
        ('distmult', dict(weighting='natural')),
    ]:
        shares = []
        for _ in range(3):  # a busy machine may interrupt where no stage is open
            p = profile(make(runs[kind], **settings), tests, k=5)
            assert (
                p.stages['seconds'].sum()
                == pytest.approx(p.seconds)
                == pytest.approx(taken[-1], rel=0.05)
            )
            assert p.stages['share'].sum() == pytest.approx(1) and (p.stages['seconds'] >= 0).all()
            shares.append(p.stages.set_index('stage').loc[OTHER, 'share'])
            if shares[-1] < 0.05:
                break
        assert min(shares) < 0.05, p


def test_bounded_cost(runs, tests) -> None:
    """A tile of any size reads the clock equally often; it does so at most 60 times for each
    checkpoint."""
    counts = []
    for size in (100, 400):
        watch = Stopwatch(torch.device('cpu'))
        tracin = make(runs['conve'], batch_size=size)
        tracin.steps.every
        with watching(watch):
            tracin.explain(tests, k=5)
        per_tile = (
            'transfer',
            'training forward',
            'training backward',
            'training factors',
            'inner products',
            'top-k',
        )
        counts.append(sum(watch.stages[name].calls for name in per_tile) / -(-1592 // size))
    assert counts[0] == counts[1] <= 30 * 2


def test_planning_is_whole(runs, tests) -> None:
    """Trial passes are planning, not training passes; an index is seen; a pass by rows alone has
    no products."""
    p = profile(make(runs['distmult'], batch_size=None), tests, k=5)
    assert p.facts['counters']['trial_passes'] > 0 == p.facts['counters']['covariance_passes']
    assert (
        2 * calls(p)['training forward'] == p.facts['counters']['train_passes']
        and calls(p)['index'] > 0
    )
    assert (
        p.facts['floor']['training']
        is p.facts['floor']['inner_products']
        is p.facts['floor']['top_k']
        is None
    )


def test_weighting(runs, tests) -> None:
    "The second moments are in their own stage."
    p = profile(make(runs['distmult'], weighting='natural'), tests, k=5)
    assert p.facts['counters']['covariance_passes'] > 0
    assert (
        2 * calls(p)['training forward'] == p.facts['counters']['train_passes']
        and calls(p)['weighting'] == 2
    )


def test_kept(runs, tests, tmp_path: Path) -> None:
    "Gradients that are kept cost no training pass, and have no share of the floor."
    tracin = make(runs['conve'])
    tracin.prepare()
    assert 'training forward' not in calls(profile(tracin, tests, k=5))
    tracin.prepare(folder=tmp_path)
    p = profile(tracin, tests, k=5)
    assert (
        'training forward' not in calls(p)
        and calls(p)['read'] > 0
        and p.facts['floor']['training'] is None
    )
    assert p.facts['floor']['inner_products']['done'] > 0


def test_write(runs, tests, tmp_path: Path) -> None:
    "Parts and result are writing; a question that was finished before is only read."
    ask = lambda: profile(
        make(runs['conve'], batch_size=100), tests, k=5, out=tmp_path / 'out', breakdown=True
    )
    p = ask()
    table = p.stages.set_index('stage')
    assert table.loc['write', 'calls'] >= 16 and table.loc['breakdown', 'calls'] == 1
    assert table.loc['write', 'bytes'] > bytes_of(tmp_path / 'out') - 20_000 > 0
    again = ask()
    assert type(again.result) is Result and calls(again)['read'] == 1
    assert 'training forward' not in calls(again) and again.result.frame.equals(p.result.frame)


@pytest.mark.parametrize('engine', ['vmap', 'loop'])
def test_engines(runs, tests, engine: str) -> None:
    "Their backward passes are seen, too; the loop's one by one."
    some = runs['conve'].training.mapped_triples[:8]
    p = profile(make(runs['conve'], engine=engine), tests, k=3, train=some)
    assert calls(p)['training backward'] == (2 if engine == 'vmap' else 16)


def test_floor(runs, tests) -> None:
    """Operations of Dense products are 2 * M * n * P at each checkpoint, counted once; and for
    the whole they scale."""
    tracin = make(runs['conve'], engine='vmap')
    P = sum(p.numel() for p in tracin.steps[0].train.params.values())
    passes, products = count_flops(tracin, tests, {})
    assert passes > 0 and products == pytest.approx(2 * 2 * len(tests) * P, rel=0.01)
    p = profile(make(runs['conve']), tests, k=5)
    passes, products = count_flops(make(runs['conve']), tests, {})
    assert p.facts['floor']['training']['done'] == pytest.approx(1592 * passes)
    assert p.facts['floor']['inner_products']['done'] == pytest.approx(1592 * products)
    assert p.facts['floor']['top_k']['done'] == 1592 * 6 * 4
    a = torch.ones(8, 8)
    assert flops(lambda: a @ a) == 2 * 8**3


def test_watched_threads(runs, tests) -> None:
    "After an error nobody watches any more; other threads are not watched."
    tracin = make(runs['conve'])
    with pytest.raises(ValueError, match='nowhere'):
        profile(tracin, [('nowhere', 'embassy', 'usa')])
    assert stage('load') is stage('top-k') and tracin.counters.loads == 0
    watch = Stopwatch(torch.device('cpu'))
    with watching(watch):
        other = threading.Thread(target=lambda: make(runs['conve']).explain(tests, k=2))
        other.start()
        other.join()
    assert list(watch.stages) == [OTHER]


def test_stages_are_named() -> None:
    "Every stage that the package names is in the table's order."
    package = Path(profiling.__file__).parents[1]
    names = {
        n
        for p in package.rglob('*.py')
        for n in re.findall(r"stage(?:\(|, )'([^']+)'", p.read_text())
    }
    assert {'load', 'inner products', 'training backward'} < names <= set(STAGES)


def test_workers(runs, tests, monkeypatch) -> None:
    """What workers do is one stage, and the profile says so. The job that they get knows nothing
    of the stopwatch."""

    def elsewhere(job: bytes, todo, done, alive, timeout) -> None:
        for shard in todo:
            thread = ThreadPoolExecutor(1).submit(lambda: pickle.loads(job)('cpu')(shard, alive))
            done(shard, thread.result())

    monkeypatch.setattr(shards, 'make_team', lambda job, crew: pickle.dumps(job))
    monkeypatch.setattr(shards, 'run_shards', elsewhere)
    p = profile(make(runs['conve'], devices=['cpu', 'cpu']), tests, k=5)
    assert (
        calls(p)['workers'] == 1 and 'training forward' not in calls(p) and calls(p)['top-k'] == 4
    )
    assert p.facts['workers'] == [
        'cpu',
        'cpu',
    ] and 'workers: the work of other processes is one stage' in repr(p)
    assert p.facts['counters']['train_passes'] == 8 and p.facts['floor']['training'] is None
    assert p.result.frame.equals(make(runs['conve']).explain(tests, k=5).frame)


def test_shown_and_kept(runs, tests, tmp_path: Path) -> None:
    p = profile(make(runs['conve'], cache=FactorCache(2**20)), tests, k=5)
    lines = repr(p).splitlines()
    assert [line.split()[-1] for line in lines[1 : len(p.stages) + 1]] == [
        s.split()[-1] for s in p.stages['stage']
    ]
    assert f'{len(tests)} test triples and 1592 training triples' in repr(
        p
    ) and 'matrix product' in repr(p)
    html = p._repr_html_()
    assert html.count('<tr>') == len(p.stages) + 1 and all(
        f'<td>{s}</td>' in html for s in p.stages['stage']
    )
    assert len(plots.stage_plot(p.stages)) == 2
    content = json.loads(p.save(tmp_path / 'new' / 'profile.json').read_text())
    assert content['kind'] == 'Profile' and content['stages'] == p.stages.to_dict('records')
    assert content['result']['counters'] == content['facts']['counters']
    assert [f.name for f in (tmp_path / 'new').iterdir()] == ['profile.json']
    with pytest.raises(ValueError, match='expected a file ending in .json'):
        p.save(tmp_path / 'profile.csv')


def test_trace(runs, tests, tmp_path: Path) -> None:
    "A trace has the stages and the operations; a failure leaves no file."
    tracin = make(runs['conve'])
    path = trace(tracin, tests, tmp_path / 'trace.json', k=2)
    names = [e['name'] for e in json.loads(path.read_text())['traceEvents']]
    assert names.count('training forward') == 4 and 'aten::mm' in names
    with pytest.raises(ValueError):
        trace(tracin, [('nowhere', 'embassy', 'usa')], tmp_path / 'other.json')
    with pytest.raises(ValueError, match='ending in .json or'):
        trace(tracin, tests, tmp_path / 'trace')
    assert [f.name for f in tmp_path.iterdir()] == ['trace.json']


def test_compare_options(runs, tests) -> None:
    "Rows, ratios and errors: bf16 is not exact, what is kept is."
    found = compare_options(
        runs['conve'],
        tests,
        5,
        ['bf16', 'cache', 'prepare'],
        rounds=1,
        objective='bce',
        devices='cpu',
        batch_size=400,
    ).set_index('option')
    assert (
        list(found.index) == ['plain', 'bf16', 'cache', 'prepare']
        and found.loc['plain', 'ratio'] == 1
    )
    assert (found[['seconds', 'first_seconds', 'bytes']] > 0).all(axis=None)
    assert (found['relative_error'] < 1e-5).to_dict() == dict(
        plain=True, bf16=False, cache=True, prepare=True
    )
    assert 1e-5 < found.loc['bf16', 'relative_error'] < 0.1 and (found['note'] == '').all()
    assert found.loc['prepare', 'bytes'] > 1592 * 4
    with pytest.raises(ValueError, match="unknown option 'int4'"):
        compare_options(runs['conve'], tests, 5, ['int4'])
    assert list(OPTIONS) == ['plain', 'bf16', 'compile', 'cache', 'prepare', 'two workers']


def test_relative_error(runs, tests) -> None:
    "It is that of the influences in the result's own table."
    tracin = make(runs['conve'])
    result = tracin.explain(tests, k=5)
    assert relative_error(tracin, result, tests) < 1e-6
    wrong = Result(
        result.frame.assign(influence=result.frame['influence'] * 1.5), result.facts, result.tests
    )
    assert relative_error(tracin, wrong, tests) == pytest.approx(0.5, rel=1e-5)
