"""The explorer without a browser: its answers are those of `explain`, its errors are seen, its
cost is known."""

import base64
import gc
import io
import re
import time
import weakref
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import ipywidgets
import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from pykeen.evaluation import RankBasedEvaluator
from pykeen.models import DistMult
from pykeen.triples import TriplesFactory

from tracin_nb.app.explorer import (
    PICTURES,
    ExplorerQuestion,
    InfluenceExplorer,
    _show_view,
    first_look,
    ranked_tests,
)
from tracin_nb.app.live import parts_of
from tracin_nb.app.panels import Stopped
from tracin_nb.app.serve import page, settings
from tracin_nb.graph.neighbourhoods import Graph, near, paths
from tracin_nb.influence.tracin import TracIn
from tracin_nb.runs.run import Run
from tracin_nb.runs.training import train

TRIPLE = ('brazil', 'embassy', 'uk')
SMALL = dict(
    model='DistMult',
    model_kwargs=dict(embedding_dim=8),
    epochs=4,
    keep_every=2,
    lr=0.02,
    progress=False,
)


@pytest.fixture(scope='module')
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train('nations', out=tmp_path_factory.mktemp('widgets') / 'run', **SMALL)


@pytest.fixture(autouse=True)
def undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    "Pictures take half a second each: only the tests of pictures and files make them."
    if request.node.name not in ('test_pictures', 'test_files'):
        monkeypatch.setattr('tracin_nb.app.explorer.png', lambda figure: b'')


@pytest.fixture(scope='module')
def tracin(run: Run) -> TracIn:
    """What the tests compare with, and what their explorers begin with, since its first question
    takes a second."""
    return TracIn(run, progress=False)


@pytest.fixture
def explorer(run: Run, tracin: TracIn) -> Iterator[InfluenceExplorer]:
    "An explorer with a triple in its fields."
    explorer = InfluenceExplorer(run)
    tracin.steps.telling.progress = explorer.job.progress
    tiles_of(tracin, None)
    explorer.kept.setting, explorer.kept.tracin = ExplorerQuestion(TRIPLE).setting, tracin
    explorer.head.label, explorer.relation.label, explorer.tail.label = TRIPLE
    explorer.k.value = 5
    yield explorer
    explorer.job.stop()


def tiles_of(tracin: TracIn, size: int | None) -> None:
    "Give tiles another size."
    tracin.steps.settings = replace(tracin.steps.settings, batch_size=size)


def asked(explorer: InfluenceExplorer) -> pd.DataFrame:
    "Press Run, and wait for the frame."
    explorer.job.button.click()
    explorer.job.wait()
    assert explorer.error is None, explorer.error
    return explorer.result.frame


def link(explorer: InfluenceExplorer, name: str) -> bytes:
    "The file behind a link."
    data = re.search(rf'download="{name}" href="data:[^;]*;base64,([^"]*)"', explorer.files.value)[
        1
    ]
    return base64.b64decode(data)


# ---- answers


def test_rows(explorer: InfluenceExplorer, run: Run) -> None:
    explorer.kept.tracin = None
    frame, direct = (
        asked(explorer),
        TracIn(run, progress=False).explain(TRIPLE, k=5, breakdown=True).frame,
    )
    pd.testing.assert_frame_equal(frame[direct.columns], direct)
    cells = re.findall(r'<td>([^<]*)</td>', explorer.view.content)
    assert cells == direct[['head', 'relation', 'tail']].to_numpy().ravel().tolist()
    copied = [line.split('\t') for line in explorer.view.lines]
    assert [x[-3:] for x in copied[1:]] == direct[['head', 'relation', 'tail']].values.tolist()


def test_selected(explorer: InfluenceExplorer) -> None:
    "What a click tells is the row; it stays while the answer grows, and goes with the answer."
    frame = asked(explorer)
    told = []
    explorer.view.observe(lambda _: told.append(explorer.view.selected.copy()), 'value')
    explorer.view.set_state(dict(value=[7]))  # as the page does
    assert told[0]['training_index'].tolist() == [frame['training_index'][7]]
    assert f'opponent {frame["rank"][7]}: ' in explorer.view.detail['html']
    explorer.result.note_verified(0, 'Trained again: so.', frame[:0])
    _show_view(explorer, keep=True)
    assert explorer.view.value == (7,) and 'Trained again' in explorer.view.content
    explorer.view.query, explorer.view.order = 'uk', '-tail'
    asked(explorer)
    assert (explorer.view.value, explorer.view.detail, explorer.view.query) == ((), {}, '')
    assert explorer.view.order == '-tail'
    explorer.view.value = (99,)  # of an answer that is no longer there
    assert explorer.view.selected.empty and explorer.view.detail == {}


def test_report(explorer: InfluenceExplorer) -> None:
    "A page to mail, with the panel's names; after a verification it says what came out."
    asked(explorer)
    page = link(explorer, 'why.html').decode()
    assert page.startswith('<!DOCTYPE html>') and '<script' not in page and 'embassy' in page


def test_paths_through(explorer: InfluenceExplorer) -> None:
    explorer.paths_button.click()
    assert 'press Run' in explorer.alert.value
    asked(explorer)
    explorer.longest.value = 2  # of the others there are too many here
    for through in ('usa', 'embassy', ''):
        explorer.through.value = through
        explorer.paths_button.click()
        explorer.job.wait()
        said = f' through {through}' if through else ''
        assert f'paths of 2 to 2 edges{said}</caption>' in explorer.found_paths.value
    explorer.through.value = 'usaa'
    explorer.paths_button.click()
    with pytest.raises(ValueError, match="nearest: 'usa'"):
        explorer.job.wait()
    assert 'role="alert"' in explorer.found_paths.value


def test_too_many_paths(explorer: InfluenceExplorer, monkeypatch: pytest.MonkeyPatch) -> None:
    "The control is named in its own words, where the button was pressed."
    asked(explorer)
    few = partial(paths, limit=10)
    monkeypatch.setattr('tracin_nb.app.explorer.paths', few)
    explorer.paths_button.click()
    said = 'Path length: more than 10 paths of up to 3 edges lead there, choose a shorter one'
    with pytest.raises(ValueError, match=said):
        explorer.job.wait()
    assert said in explorer.found_paths.value and explorer.longest.description == 'Path length'


def test_opens_with_something_to_see(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best predictions for a relation, the first one in the fields: Run is enough. What a
    kernel sends before a page has drawn the panel may be lost, so the search begins then."""
    explorer = InfluenceExplorer(run)
    explorer._repr_mimebundle_()
    assert not explorer.job.running and explorer.tests is None
    sent = []
    for widget in (explorer.head.field, explorer.tail.field, explorer.predictions):
        send = widget.send_state
        record = lambda key=None, w=widget, send=send: (sent.append(w), send(key))
        monkeypatch.setattr(widget, 'send_state', record)
    explorer.predictions.drawn = True
    explorer.job.wait()
    *fields, table = sent[1:]  # the first is `drawn`
    assert table is explorer.predictions and table not in fields  # what is typed then stays
    assert len(explorer.tests) and explorer.predictions.value == (0,)
    assert explorer.asked().triple == tuple(explorer.tests.loc[0, ['head', 'relation', 'tail']])
    assert explorer.tests['relation'].unique().tolist() == [first_look(run.training)['relation']]
    other = InfluenceExplorer(run)
    other.begin = lambda work: (setattr(other.head.field, 'value', 'braz'), work())
    other.open()
    assert (other.head.field.value, other.predictions.value) == ('braz', ())
    monkeypatch.setattr('tracin_nb.app.explorer.LOOK', 10)
    assert {*first_look(run.training)} == {'head', 'relation'}


@pytest.mark.parametrize(
    'change',
    [
        dict(),
        dict(against='china', hops=1, path_length=2, restrict=False),
        dict(objective='softmax', weighting='adam-cosine', checkpoints=(1,), against='usa', k=3),
        dict(order=True, k=6),
    ],
    ids=str,
)
def test_code(explorer: InfluenceExplorer, change: dict) -> None:
    "The cell gives the same frame, in a process that knows nothing but the cell."
    change = dict(change)
    if against := change.pop('against', None):
        explorer.against.label = against
    for name, value in change.items():
        getattr(explorer, name).value = value
    frame, space = asked(explorer), {}
    exec(explorer.code.value, space)
    pd.testing.assert_frame_equal(space['result'].frame, frame)


def test_evidence_is_of_all_triples(explorer: InfluenceExplorer) -> None:
    "The mechanism view is one list, path by path; what it does not go with is named as seen."
    explorer.order.value = True
    assert asked(explorer)['rank'].is_monotonic_increasing
    assert '<caption>evidence</caption>' in explorer.view.content
    assert '>path</th>' in explorer.view.content and 'Mechanism view' in explorer.view.content
    explorer.hops.value = 1
    explorer.job.button.click()
    assert 'leave &quot;Why not this tail instead?&quot; empty' in explorer.alert.value
    named = {explorer.against.description, explorer.hops.description, explorer.order.description}
    assert all(name in str(explorer.error) for name in named)


def test_code_without_a_folder() -> None:
    assert 'TracIn(run, ' in ExplorerQuestion(TRIPLE).code('run', {})


def test_second_tail(explorer: InfluenceExplorer, tracin: TracIn) -> None:
    explorer.against.label = 'china'
    frame = asked(explorer)
    direct = tracin.explain(TRIPLE, k=5, against='china').frame
    assert frame['training_index'].tolist() == direct['training_index'].tolist()
    assert '· and not china' in explorer.view.content
    explorer.picture.value = 'all influences'
    explorer.draw_button.click()
    with pytest.raises(ValueError, match='is for one tail'):
        explorer.job.wait()


def test_neighbourhood(explorer: InfluenceExplorer, run: Run) -> None:
    explorer.hops.value = 1
    inside = near(Graph(run.training), TRIPLE, hops=1).rows[0].tolist()
    assert set(asked(explorer)['training_index']) <= set(inside)
    explorer.restrict.value, explorer.k.value = False, 200
    frame = asked(explorer)
    assert explorer.view.content.count('<small>nearby</small>') == frame['in_neighbourhood'].sum()
    near_ones = frame['training_index'][frame['in_neighbourhood']]
    assert set(near_ones) == set(frame['training_index']) & set(inside)


def test_breakdown(explorer: InfluenceExplorer) -> None:
    frame = asked(explorer)
    for row in frame.index:
        for parts in parts_of(frame.loc[row]).values():
            assert parts['influence'].sum() == pytest.approx(frame.loc[row, 'influence'], rel=1e-3)
    explorer.view.value = (frame.index[-1],)
    said = 'Influence of opponent 5: [^<]*, by (parameters|checkpoint)'
    assert re.findall(said, explorer.view.detail['html']) == ['parameters', 'checkpoint']


def test_files(explorer: InfluenceExplorer) -> None:
    frame = asked(explorer)
    pd.testing.assert_frame_equal(
        pd.read_parquet(io.BytesIO(link(explorer, 'influence.parquet'))), frame
    )
    pd.testing.assert_frame_equal(
        pd.read_csv(io.BytesIO(link(explorer, 'influence.csv'))),
        frame,
        check_dtype=False,
        rtol=1e-5,
    )
    explorer.draw_button.click()
    explorer.job.wait()
    assert link(explorer, 'influence.png').startswith(b'\x89PNG')


def test_pictures(explorer: InfluenceExplorer) -> None:
    "All are drawn, in the thread, and pyplot knows of none."
    plt.close('all')
    asked(explorer)
    loads, seen, news = explorer.kept.tracin.counters.loads, set(), []
    explorer.job.news.observe(lambda change: news.append(change['new']), 'value')
    for name in PICTURES:
        explorer.picture.value = name
        explorer.draw_button.click()
        explorer.job.wait()
        assert f'alt="{name} of brazil' in explorer.image.value
        seen.add(explorer.image.value)
    assert len(seen) == len(PICTURES) and not plt.get_fignums()
    assert any('graph of the training triples' in line for line in news)
    assert explorer.kept.tracin.counters.loads == loads


def test_names(run: Run, tracin: TracIn) -> None:
    "Names are shown, searched and understood."
    ids = run.training.entity_to_id
    names = dict(node_names={ids['uk']: 'United Kingdom'}, edge_names={'embassy': 'has embassy in'})
    explorer = InfluenceExplorer(run, **names)
    explorer.head.label = 'brazil'
    explorer.relation.field.value = 'has emb'
    assert explorer.relation.field.options == ('has embassy in [embassy]',)
    explorer.relation.complete()
    explorer.tail.field.value = 'united'
    explorer.tail.complete()
    assert explorer.asked().triple == TRIPLE
    explorer.show(explorer.asked(), tracin.explain(TRIPLE, k=20, breakdown=True))
    assert 'United Kingdom<small>uk</small>' in explorer.view.content
    assert b'United Kingdom' in link(explorer, 'why.html')


# ---- test predictions


def test_ranks(explorer: InfluenceExplorer, run: Run) -> None:
    explorer.count.value = 20
    explorer.rank_button.click()
    explorer.job.wait()
    assert len(explorer.tests) == 20
    explorer.predictions.value = (7,)
    assert explorer.asked().triple == tuple(explorer.tests.loc[7, ['head', 'relation', 'tail']])
    assert explorer.predictions.content.count(' of ') == 20
    assert explorer.asked().triple in {tuple(t) for t in run.testing.triples.tolist()}


def test_predictions(explorer: InfluenceExplorer, run: Run) -> None:
    "The model's own best new predictions for what is typed; one that is chosen fills the fields."
    explorer.head.label = explorer.relation.label = explorer.tail.label = ''
    explorer.predict_button.click()
    assert 'type a head, a relation or a tail' in explorer.alert.value
    explorer.head.label, explorer.relation.label = TRIPLE[:2]
    explorer.count.value = 5
    explorer.predict_button.click()
    explorer.job.wait()
    best = run.predict(*TRIPLE[:2], k=5)
    explorer.predictions.value = (1,)
    assert explorer.asked().triple == tuple(best.loc[1, ['head', 'relation', 'tail']])
    explorer.predict_button.click()
    explorer.job.wait()
    assert explorer.tests['tail'].tolist() == best['tail'].tolist()


def test_ranks_of_an_inverse_model(tmp_path: Path) -> None:
    """Where the model has inverse relations, too, they are PyKEEN's; and the LCWA row objective
    is offered."""
    run = train('nations', out=tmp_path / 'run', loop='lcwa', inverse=True, **SMALL)
    ranks = ranked_tests(run, 10**6, lambda *said: None)
    theirs = RankBasedEvaluator().evaluate(
        run.model(-1),
        run.testing.mapped_triples,
        use_tqdm=False,
        additional_filter_triples=[run.training.mapped_triples, run.validation.mapped_triples],
    )
    assert ranks['rank'].mean() == pytest.approx(
        theirs.get_metric('tail.realistic.arithmetic_mean_rank')
    )
    assert ranks['rank'].is_monotonic_increasing and len(ranks) == run.testing.num_triples
    names = [name for _, name in InfluenceExplorer(run).objective.options]
    assert 'training-row' in names


# ---- what a press acts on


def test_fields_are_read_when_pressed(
    explorer: InfluenceExplorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    "What is changed during the work belongs to the next press."
    begun = []
    monkeypatch.setattr(explorer, 'begin', begun.append)
    for button in (explorer.predict_button, explorer.rank_button):
        explorer.count.value = 5
        button.click()
        explorer.count.value = 7
        begun.pop()()
        assert len(explorer.tests) == 5
    explorer.job.button.click()
    explorer.k.value = 3
    begun.pop()()
    assert len(explorer.result.frame) == 10
    explorer.picture.value = 'ranking'
    explorer.draw_button.click()
    explorer.picture.value = 'over checkpoints'
    begun.pop()()
    assert 'alt="ranking of brazil' in explorer.image.value
    explorer.longest.value = 2
    explorer.paths_button.click()
    explorer.longest.value, explorer.through.value = 4, 'nowhere'
    begun.pop()()
    assert 'paths of 2 to 2 edges<' in explorer.found_paths.value


# ---- cost


def test_models_stay(explorer: InfluenceExplorer) -> None:
    "The same setting loads nothing again; another lets the models go before it loads its own."
    explorer.kept.tracin = None
    asked(explorer)
    kept = explorer.kept.tracin
    explorer.tail.label, explorer.k.value, explorer.against.label, explorer.hops.value = (
        'usa',
        3,
        'china',
        2,
    )
    asked(explorer)
    assert explorer.kept.tracin is kept and kept.counters.loads == 2
    old = weakref.ref(kept.steps[0].train.model)
    del kept
    explorer.objective.value = 'score'
    asked(explorer)
    gc.collect()
    assert old() is None and explorer.kept.tracin.counters.loads == 2


def test_many_entities() -> None:
    "What goes to the browser does not grow with the graph: twenty offers for each field."
    n = 30_000
    training = TriplesFactory(
        torch.tensor([[0, 0, 1], [1, 0, 2]]), {f'entity {i:06}': i for i in range(n)}, {'r': 0}
    )
    run = Run.from_model(
        DistMult(triples_factory=training, embedding_dim=2), training, learning_rates=[0.1]
    )
    explorer = InfluenceExplorer(run)
    explorer.tail.field.value = '2999'
    assert explorer.tail.field.options[:2] == ('entity 002999', 'entity 012999')
    assert all(
        len(field.field.options) <= 20 for field in (explorer.head, explorer.tail, explorer.against)
    )
    todo, size = [explorer.box], 0
    while todo:
        widget = todo.pop()
        state = widget.get_state()
        size += len(repr({name: x for name, x in state.items() if name not in ('_esm', '_css')}))
        todo += [
            child
            for child in getattr(widget, 'children', ())
            if isinstance(child, ipywidgets.Widget)
        ]
    assert size < 50_000


# ---- stop, errors


def test_stop_and_again(explorer: InfluenceExplorer) -> None:
    tiles_of(explorer.kept.tracin, 1)
    explorer.job.button.click()
    while not re.search('influence: [1-9]', explorer.job.news.value):
        time.sleep(0.01)
    start = time.monotonic()
    explorer.job.stop_button.click()
    with pytest.raises(Stopped):
        explorer.job.wait()
    assert time.monotonic() - start < 2 and 'stopped after' in explorer.job.news.value
    assert isinstance(explorer.error, Stopped) and explorer.result is None
    tiles_of(explorer.kept.tracin, None)
    assert len(asked(explorer)) == 10


def test_mistakes(explorer: InfluenceExplorer, capsys: pytest.CaptureFixture) -> None:
    "What cannot be asked is said at once, beside the buttons, and nowhere else."
    for field, typed, said in (
        (explorer.head, 'brasil', "no 'brasil'; nearest: 'brazil'"),
        (explorer.tail, '', 'Tail: type'),
        (explorer.against, 'uk', 'itself'),
    ):
        before, field.field.value = field.field.value, typed
        explorer.job.button.click()
        if field is explorer.against:
            with pytest.raises(ValueError, match=said):
                explorer.job.wait()
        else:
            told = field.alert.value.replace('&#x27;', "'")
            assert said in told and 'role="alert"' in told and not explorer.alert.value
        assert isinstance(explorer.error, ValueError) and said in str(explorer.error)
        field.field.value = before
        assert not field.alert.value
    explorer.checkpoints.value = ()
    explorer.job.button.click()
    assert 'choose at least one' in explorer.alert.value
    explorer.checkpoints.value = (0, 1)
    explorer.draw_button.click()
    with pytest.raises(ValueError, match='press Run'):
        explorer.job.wait()
    asked(explorer)
    assert not explorer.alert.value and capsys.readouterr() == ('', '')


def test_one_thing_at_a_time(explorer: InfluenceExplorer) -> None:
    tiles_of(explorer.kept.tracin, 1)
    explorer.job.button.click()
    explorer.rank_button.click()
    assert (
        isinstance(explorer.error, RuntimeError)
        and 'stop the running work first' in explorer.alert.value
    )
    explorer.job.stop()
    with pytest.raises(Stopped):
        explorer.job.wait()


def test_missing_checkpoint(tmp_path: Path) -> None:
    "It is named, and once it is back the question can be asked."
    run = train('nations', out=tmp_path / 'run', **SMALL)
    explorer = InfluenceExplorer(run.folder)
    explorer.head.label, explorer.relation.label, explorer.tail.label = TRIPLE
    path = run.checkpoints[1].path
    path.rename(tmp_path / 'away')
    explorer.job.button.click()
    with pytest.raises(ValueError, match='is missing'):
        explorer.job.wait()
    assert f'{path.name} is missing' in explorer.job.news.value and not explorer.view.content
    (tmp_path / 'away').rename(path)
    asked(explorer)


def test_run_without_tests(run: Run) -> None:
    plain = Run.from_model(run.model(-1), run.training, learning_rates=[0.1])
    explorer = InfluenceExplorer(plain)
    explorer.rank_button.click()
    with pytest.raises(ValueError, match='no test triples'):
        explorer.job.wait()
    assert 'no test triples' in explorer.job.news.value


# ---- the served page


def test_page(run: Run, tmp_path: Path) -> None:
    "The notebook that is served opens the explorer, with names where files were given."
    (tmp_path / 'names.txt').write_text(
        f'Federative Republic\t{run.training.entity_to_id["brazil"]}\n'
    )
    cell = (
        page(run.folder, dict(node_names=tmp_path / 'names.txt'), dict(batch_size=7))
        .cells[0]
        .source
    )
    *lines, last = cell.splitlines()
    exec('\n'.join([*lines, f'desk = {last}']), space := {})
    explorer = space['desk'].panels['Explore']
    assert explorer.options == dict(batch_size=7)
    assert explorer.named('brazil') == 'Federative Republic [brazil]'


def test_settings() -> None:
    voila = settings('127.0.0.1', 80, 'secret', 'dark')['Voila']
    assert (voila['ip'], voila['token'], voila['port_retries']) == ('127.0.0.1', 'secret', 0)


def test_verified(explorer: InfluenceExplorer) -> None:
    "What it takes is said before; stopped, it goes on; the answer then says what came out."
    explorer.verify_button.click()
    assert 'press Run' in explorer.alert.value
    explorer.start()
    explorer.job.wait()
    explorer.verify_k.value, explorer.verify_seeds.value = 1, 2
    explorer.start_verifying()
    explorer.job.wait()
    assert '6 trainings, 3 at a time side by side: about' in explorer.proof.value
    assert explorer.result.verified is None and 'begin' in explorer.proof.value
    tell = explorer.job.progress

    def stop(label: str, done: int, total: int) -> None:
        if done == 4:
            explorer.job.stop()
        tell(label, done, total)

    explorer.job.progress = stop
    explorer.start_verifying()
    with pytest.raises(Stopped):
        explorer.job.wait()
    explorer.job.progress = tell
    assert len(explorer.plan.found) == 3
    explorer.start_verifying()
    explorer.job.wait()
    assert len(explorer.result.verified) == 6 and 'Trained again' in explorer.view.content
    assert b'Trained again' in link(explorer, 'why.html')
    assert 'proof.json' in explorer.proof.value and 'Without this one' in explorer.proof.value
    explorer.verify_k.value = 9
    explorer.start_verifying()
    with pytest.raises(ValueError, match='k is 9, and the result names 5'):
        explorer.job.wait()
    explorer.start()
    explorer.job.wait()
    assert explorer.plan is None and not explorer.proof.value
