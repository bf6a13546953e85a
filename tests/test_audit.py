"""The panels of audit, comparison and settings, without a browser: what they show is what
`TracIn` says."""

import base64
import io
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import rankdata

from tracin_nb.app.audit import (
    Ask,
    CompareRuns,
    EngineSetting,
    ProfilePanel,
    RunDesk,
    TrainingAudit,
    both_ranked,
    compare,
    compare_settings,
    without,
)
from tracin_nb.app.panels import Panel, Stopped
from tracin_nb.evaluation.stability import overlap
from tracin_nb.graph.names import Names
from tracin_nb.graph.triples import select, to_labels
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
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    return [
        train('nations', out=tmp_path_factory.mktemp('audit') / 'run', seed=seed, **SMALL)
        for seed in (0, 1)
    ]


@pytest.fixture(scope='module')
def tracins(runs: list[Run]) -> list[TracIn]:
    "What the tests compare with."
    return [TracIn(run, progress=False) for run in runs]


@pytest.fixture(autouse=True)
def undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    "Pictures take half a second each: only the tests of files make them."
    if 'files' not in request.node.name:
        monkeypatch.setattr('tracin_nb.app.audit.png', lambda figure: b'')


@pytest.fixture
def audit(runs: list[Run]) -> TrainingAudit:
    panel = TrainingAudit(runs[0])
    panel.k.value = 12
    return panel


@pytest.fixture
def both(runs: list[Run]) -> CompareRuns:
    panel = CompareRuns(*runs)
    panel.head.label, panel.relation.label, panel.tail.label = TRIPLE
    panel.k.value = 6
    return panel


def pressed(panel: Panel) -> Panel:
    "Press Run, and wait for the end."
    panel.job.button.click()
    panel.job.wait()
    assert panel.error is None, panel.error
    return panel


def click(panel: TrainingAudit, name: str) -> None:
    panel.buttons[name].click()
    panel.job.wait()
    assert panel.error is None, panel.error


def link(panel: Panel, name: str) -> io.BytesIO:
    "The file behind a link."
    data = re.search(rf'download="{name}" href="data:[^;]*;base64,([^"]*)"', panel.files.value)[1]
    return io.BytesIO(base64.b64decode(data))


def stopped(panel: Panel, pattern: str) -> float:
    "Press Run, wait until it goes on, press Stop; the seconds until it has stopped."
    panel.job.button.click()
    while not re.search(pattern, panel.job.news.value):
        time.sleep(0.01)
    start = time.monotonic()
    panel.job.stop_button.click()
    with pytest.raises(Stopped):
        panel.job.wait()
    assert isinstance(panel.error, Stopped) and 'stopped after' in panel.job.news.value
    return time.monotonic() - start


# ---- audit


def test_ranking(audit: TrainingAudit, tracins: list[TracIn]) -> None:
    frame, direct = pressed(audit).result.frame, tracins[0].self_influence(12).frame
    pd.testing.assert_frame_equal(frame, direct)
    cells = re.findall(r'<td>([^<]*)</td>', audit.ranking.content)
    assert cells == direct[['head', 'relation', 'tail']].to_numpy().ravel().tolist()


def test_ranking_of_relations(audit: TrainingAudit, tracins: list[TracIn], runs: list[Run]) -> None:
    audit.relation.label = 'embassy'
    some = select(runs[0].training, relation='embassy')
    pd.testing.assert_frame_equal(
        pressed(audit).result.frame, tracins[0].self_influence(12, train=some).frame
    )
    assert f'12 of {len(some)} training triples' in audit.title.value
    audit.relation.field.value, audit.each.value, audit.k.value = '', True, 1
    frame = pressed(audit).result.frame
    pd.testing.assert_frame_equal(frame, tracins[0].self_influence(1, by_relation=True).frame)
    assert frame['relation'].is_unique and len(frame) == runs[0].training.num_relations


def test_marks_are_kept(audit: TrainingAudit) -> None:
    "Over rankings, each once, in the order of marking."
    pressed(audit).ranking.value = (3, 1)
    click(audit, 'Mark')
    first = audit.result.frame.loc[[3, 1], 'training_index'].tolist()
    audit.ranking.value = (1, 2)
    click(audit, 'Mark')
    audit.weighting.value = 'sgd'
    pressed(audit)
    assert len(audit.suspects.lines) == 1 + 3 and set(first) < set(audit.marked['training_index'])
    assert set(audit.marked['ranking']) == {'all relations, training, natural'}
    audit.suspects.value = (audit.marked.index.get_loc(first[0]),)
    click(audit, 'Unmark')
    assert first[0] not in audit.marked['training_index'].tolist() and len(audit.marked) == 2


def test_audit_files(audit: TrainingAudit, runs: list[Run]) -> None:
    "What was marked is read back, and left out of training; the code does the same without a file."
    pressed(audit).ranking.value = (0, 2)
    click(audit, 'Mark')
    pd.testing.assert_frame_equal(
        pd.read_parquet(link(audit, 'self_influence.parquet')), audit.result.frame
    )
    wanted = audit.result.frame.loc[[0, 2]]
    rest = np.delete(runs[0].training.mapped_triples.numpy(), wanted['training_index'], axis=0)
    for name, read in (('suspicious.csv', pd.read_csv), ('suspicious.parquet', pd.read_parquet)):
        back = read(link(audit, name))
        assert back['training_index'].tolist() == wanted['training_index'].tolist()
        assert without(runs[0].training, back).mapped_triples.tolist() == rest.tolist()
    exec(audit.code.value, space := {})
    assert space['cleaned'].mapped_triples.tolist() == rest.tolist()
    pd.testing.assert_frame_equal(space['found'].frame, audit.result.frame)


@pytest.mark.parametrize(
    'change',
    [dict(each=True, k=1), dict(objective='score', weighting='sgd', checkpoints=(1,))],
    ids=str,
)
def test_audit_code(audit: TrainingAudit, change: dict) -> None:
    for name, value in change.items():
        getattr(audit, name).value = value
    exec(pressed(audit).code.value, space := {})
    pd.testing.assert_frame_equal(space['found'].frame, audit.result.frame)


def test_doubt(audit: TrainingAudit, tracins: list[TracIn], runs: list[Run]) -> None:
    "What speaks against a training triple is told without the triple."
    pressed(audit).ranking.value = (4,)
    click(audit, 'What contradicts it?')
    place = int(audit.result.frame['training_index'][4])
    every = to_labels(runs[0].training.mapped_triples, runs[0].training)
    direct = tracins[0].explain(every[place], 5, train=every[:place] + every[place + 1 :])
    pd.testing.assert_frame_equal(audit.doubt.frame, direct.frame)
    assert place not in direct.frame['training_index'].tolist()
    assert f'Against {"  ".join(every[place])}' in audit.against.value


def test_audit_mistakes(audit: TrainingAudit, capsys: pytest.CaptureFixture) -> None:
    "They are said at once, beside the buttons, and nowhere else."
    for name in audit.buttons:
        audit.buttons[name].click()
        assert isinstance(audit.error, ValueError) and 'role="alert"' in audit.alert.value, name
    audit.relation.field.value = 'embasy'
    audit.job.button.click()
    assert "no 'embasy'" in str(audit.error) and not audit.job.running
    audit.relation.field.value, audit.checkpoints.value = '', ()
    audit.job.button.click()
    assert 'choose at least one' in audit.alert.value
    audit.checkpoints.value = (0, 1)
    pressed(audit)
    assert not audit.alert.value and capsys.readouterr() == ('', '')


def test_without(runs: list[Run]) -> None:
    training = runs[0].training
    with pytest.raises(ValueError, match='is not a training triple'):
        without(training, [TRIPLE, ('uk', 'embassy', 'uk')])
    with pytest.raises(ValueError, match='no training triple would be left'):
        without(training, training.mapped_triples)
    assert (
        without(training, training.mapped_triples[[5, 5]]).num_triples == training.num_triples - 1
    )


# ---- comparison


def test_rankings(both: CompareRuns, tracins: list[TracIn], runs: list[Run]) -> None:
    "Rows, ranks, overlaps and predictions are those that each run gives alone."
    result, scores = pressed(both).result, [t.scores(TRIPLE)[0].numpy() for t in tracins]
    for i, name in enumerate('ab'):
        direct = tracins[i].explain(TRIPLE, 6)
        for kind, rows in (('proponent', direct.proponents), ('opponent', direct.opponents)):
            mine = result.side(name, kind)
            assert (
                mine[['training_index', 'rank']].to_numpy().tolist()
                == rows[['training_index', 'rank']].to_numpy().tolist()
            )
            sign = 1 if kind == 'proponent' else -1
            there = rankdata(-sign * scores[1 - i], method='ordinal')[
                mine['training_index']
            ].tolist()
            assert mine['other_rank'].tolist() == there
            table = both.rankings.content.partition(f'<caption>{kind}s of run {name}<')[2]
            told = re.findall(r'<small>([\d,]+) in [ab]</small>', table.partition('</table>')[0])
            assert [int(rank.replace(',', '')) for rank in told] == there
    copied = [line.split('\t') for line in both.rankings.lines]
    assert copied[0][:2] == ['run', 'kind'] and len(copied) == 1 + len(result.frame)
    named = both_ranked(result.with_names(Names({'uk': 'United Kingdom'})))
    assert 'United Kingdom<small>uk</small>' in named
    shared = result.agreement.set_index('measure')['value']
    for k in (10, 100):
        for side, sign in (('proponents', 1), ('opponents', -1)):
            a, b = (set(np.argsort(-sign * s, kind='stable')[:k]) for s in scores)
            assert shared[f'shared among the first {k} {side}'] == pytest.approx(len(a & b) / k)
            assert overlap(*(sign * s[None] for s in scores), k)[0] == pytest.approx(len(a & b) / k)
    ids = (
        runs[0].training.entity_to_id['brazil'],
        runs[0].training.relation_to_id['embassy'],
        runs[0].training.entity_to_id['uk'],
    )
    for name, run in zip('ab', runs):
        row = result.beliefs.set_index('run').loc[name]
        assert row['score'] == pytest.approx(run.model(-1).score_hrt(torch.tensor([ids])).item())
        assert 1 <= row['rank'] <= row['among'] <= 14


def test_same_run_agrees(runs: list[Run], tracins: list[TracIn]) -> None:
    result = compare(tracins[0], tracins[0], TRIPLE, 5)
    np.testing.assert_allclose(result.agreement['value'], 1)
    assert (result.frame['rank'] == result.frame['other_rank']).all()


def test_comparison_files(both: CompareRuns) -> None:
    frame = pressed(both).result.frame
    pd.testing.assert_frame_equal(pd.read_parquet(link(both, 'comparison.parquet')), frame)
    assert (
        pd.read_csv(link(both, 'comparison.csv'))['other_rank'].tolist()
        == frame['other_rank'].tolist()
    )
    assert link(both, 'comparison.png').read(4) == b'\x89PNG'
    exec(both.code.value, space := {})
    pd.testing.assert_frame_equal(space['result'].frame, frame)
    assert 'proponents, run b' in space['result']._repr_html_()


def test_code_tells_what_was_asked(both: CompareRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    "Fields that are changed during the work do not change the code of its answer."
    begun = []
    monkeypatch.setattr(both, 'begin', begun.append)
    both.job.button.click()
    asked, both.k.value = both.k.value, 19
    begun.pop()()
    assert asked != 19 and f', k={asked})' in both.code.value


def test_other_graphs_are_refused(runs: list[Run], tmp_path: Path) -> None:
    kinships = train('kinships', out=tmp_path / 'run', **SMALL | dict(epochs=2))
    with pytest.raises(ValueError, match='different entities .a: 1,592 triples, 14 entities'):
        CompareRuns(runs[0], kinships)
    fewer = replace(
        runs[1], training=without(runs[1].training, runs[1].training.mapped_triples[:1])
    )
    with pytest.raises(ValueError, match='different training triples .*b: 1,591 triples'):
        CompareRuns(runs[0], fewer)


def test_comparison_mistakes(both: CompareRuns) -> None:
    both.tail.field.value = 'asia'
    both.job.button.click()
    assert "Tail: there is no 'asia'" in str(both.error)
    assert 'role="alert"' in both.tail.alert.value
    with pytest.raises(ValueError, match='2 triples'):
        compare(*(kept(dict(objective='bce')) for kept in both.kept), [TRIPLE, TRIPLE])


# ---- settings


@pytest.fixture(scope='module')
def conve(tmp_path_factory: pytest.TempPathFactory) -> Run:
    "A run with a linear layer, which 16 bits are for."
    small = dict(
        embedding_dim=8,
        embedding_height=2,
        embedding_width=4,
        output_channels=2,
        kernel_height=2,
        kernel_width=2,
    )
    run = train(
        'nations',
        out=tmp_path_factory.mktemp('conve') / 'run',
        **SMALL | dict(model='ConvE', model_kwargs=small, epochs=1, keep_every=1),
    )
    return replace(run, training=without(run.training, run.training.mapped_triples[200:]))


def test_settings(conve: Run) -> None:
    "Errors are those against float64: small for all that is in float32, larger in 16 bits."
    some = [
        EngineSetting(),
        EngineSetting(precision='bf16'),
        EngineSetting('vmap', batch_size=100),
        EngineSetting(keep='test gradients'),
        EngineSetting(keep='training gradients'),
    ]
    frame = compare_settings(
        conve, some, conve.testing.mapped_triples[:3], k=4, rounds=1, weighting='sgd'
    )
    errors = frame.set_index('setting')['relative_error']
    assert (
        1e-4 < errors.pop('factored, bf16') < 0.1 and (errors < 1e-5).all() and (errors > 0).all()
    )
    assert (frame[['seconds', 'first_seconds', 'ratio']] > 0).all(axis=None) and frame['ratio'][
        0
    ] == 1
    bytes = frame.set_index('setting')['bytes']
    assert bytes['factored, fp32, keeps training gradients'] > 0 and not frame['note'].any()


def test_settings_files(runs: list[Run]) -> None:
    "The list is edited, all in it are asked, and the code asks the same."
    panel = ProfilePanel(runs[0], checkpoints=[1])
    panel.add_button.click()
    assert 'already in the list' in panel.alert.value
    panel.engine.value = 'vmap'
    assert panel.tile.value == 16
    panel.tile.value = 1024
    panel.add_button.click()
    panel.list.value = (1,)
    panel.remove_button.click()
    assert (
        panel.settings == [EngineSetting(), EngineSetting('vmap', batch_size=1024)]
        and panel.error is None
    )
    panel.count.value, panel.k.value, panel.rounds.value, panel.weighting.value = 2, 3, 1, 'sgd'
    frame = pressed(panel).frame
    assert frame['setting'].tolist() == ['factored, fp32', 'vmap, fp32, tiles of 1024']
    pd.testing.assert_frame_equal(pd.read_parquet(link(panel, 'settings.parquet')), frame)
    assert link(panel, 'settings.png').read(4) == b'\x89PNG'
    assert '<td>vmap, fp32, tiles of 1024</td>' in panel.table.value
    lines = panel.code.value.splitlines()
    exec('\n'.join([*lines[:-1], f'again = {lines[-1]}']), space := {})
    np.testing.assert_allclose(space['again']['relative_error'], frame['relative_error'], rtol=1e-3)


def test_settings_mistakes(runs: list[Run]) -> None:
    panel = ProfilePanel(runs[0])
    panel.settings = []
    panel.job.button.click()
    assert 'add one' in panel.alert.value
    panel.settings = [EngineSetting('vmap', 'bf16')]
    panel.job.button.click()
    with pytest.raises(ValueError, match='has no precision'):
        panel.job.wait()
    assert 'has no precision' in panel.job.news.value and not panel.table.value
    with pytest.raises(ValueError, match='keep is'):
        EngineSetting(keep='all').options


# ---- stop


@pytest.mark.parametrize(
    'make, pattern',
    [
        (lambda runs: TrainingAudit(runs[0], batch_size=1), 'second moments: [1-9]'),
        (lambda runs: CompareRuns(*runs, batch_size=1), 'run a, second moments: [1-9]'),
        (lambda runs: ProfilePanel(runs[0]), 'loop, fp32, tiles of 16: .*: [1-9]'),
    ],
    ids=['audit', 'runs', 'settings'],
)
def test_stop_and_one_thing_at_a_time(
    runs: list[Run], make: Callable[[list[Run]], Panel], pattern: str
) -> None:
    panel = make(runs)
    if isinstance(panel, CompareRuns):
        panel.head.label, panel.relation.label, panel.tail.label = TRIPLE
    if isinstance(panel, ProfilePanel):
        panel.settings = [EngineSetting('loop', batch_size=16)]
    assert stopped(panel, pattern) < 2
    panel.job.button.click()
    panel.handler(panel.start)(None)
    assert (
        isinstance(panel.error, RuntimeError) and 'stop the running work first' in panel.alert.value
    )
    panel.job.stop()
    with pytest.raises(Stopped):
        panel.job.wait()


def test_presses_wait_in_every_panel(runs: list[Run]) -> None:
    "The heading of a panel holds presses in its box; only Stop is sent at once."
    desk = RunDesk(runs[0])
    for place in range(len(desk.kinds())):
        desk.tabs.selected_index = place
    panels = [*desk.panels.values(), CompareRuns(*runs)]
    for panel in panels:
        assert panel.box.children[0].box == panel.box.model_id
        assert panel.job.stop_button._dom_classes == ('tracin-at-once',)
    inner, found = lambda x: [x, *(y for c in getattr(x, 'children', ()) for y in inner(c))], []
    for panel in panels:
        found += [x.description for x in inner(panel.box) if 'tracin-at-once' in x._dom_classes]
    assert {*found} == {'Stop'}


def test_names(runs: list[Run]) -> None:
    panel = TrainingAudit(runs[0], edge_names={'embassy': 'has embassy in'})
    panel.relation.field.value = 'has emb'
    panel.relation.complete()
    assert panel.asked() == Ask(relation='embassy')
    panel.k.value = 3
    table = pressed(panel).ranking.content
    assert table.count('has embassy in<small>embassy</small>') == 3
