"""Layers, projections and samples: what they leave out, and whether the result says how much
that was."""

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
import torch

from tracin_nb.engine.shortcuts import Only, Projected, Sample, layers
from tracin_nb.engine.weightings import Natural
from tracin_nb.influence.shards import Work
from tracin_nb.influence.tracin import TracIn, resume
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
    )


@pytest.fixture(scope='module')
def test(run: Run) -> torch.Tensor:
    return run.testing.mapped_triples[:20]


def make(run: Run, **options) -> TracIn:
    return TracIn(run, 'bce', **dict(weighting='sgd', devices='cpu', progress=False) | options)


def test_some_layers_and_the_others_add_up(run: Run, test: torch.Tensor) -> None:
    names = list(layers(run.model(0)))
    parts = [make(run, weighting=Only(tuple(some))).scores(test) for some in (names[:3], names[3:])]
    torch.testing.assert_close(sum(parts), make(run).scores(test))


def test_the_last_layers_are_those_of_the_loop(run: Run, test: torch.Tensor) -> None:
    fast, slow = (
        make(run, weighting=Only(3), engine=e).scores(test, run.training.mapped_triples[:30])
        for e in ('factored', 'loop')
    )
    torch.testing.assert_close(fast, slow)


@pytest.mark.parametrize(
    'weighting', [Only(2), Projected(64), Projected(4096), Projected(512, metric=Natural())]
)
def test_the_result_tells_the_error(run: Run, test: torch.Tensor, weighting) -> None:
    facts = make(run, weighting=weighting, checkpoints=[1]).explain(test[:16], 5).facts
    sample = run.training.mapped_triples[
        torch.linspace(0, run.training.num_triples - 1, 256).long()
    ]
    exact = make(run, weighting=getattr(weighting, 'metric'), checkpoints=[1]).scores(
        test[:16], sample
    )
    short = make(run, weighting=weighting, checkpoints=[1]).scores(test[:16], sample)
    assert facts['shortcut_error']['relative_error'] == pytest.approx(
        ((short - exact).norm() / exact.norm()).item(), rel=1e-3
    )


def test_more_numbers_are_nearer(run: Run, test: torch.Tensor) -> None:
    error = lambda dim: (
        make(run, weighting=Projected(dim))
        .explain(test, 5)
        .facts['shortcut_error']['relative_error']
    )
    assert error(16384) < error(256) / 3


def test_no_dense_gradient_is_projected(run: Run, test: torch.Tensor) -> None:
    step = make(run, weighting=Projected(128)).steps[0]
    assert step.metric.train(step.train(test)).nbytes == len(test) * 128 * 4


def test_workers_project_alike(run: Run, test: torch.Tensor) -> None:
    one, two = (
        TracIn(
            run,
            'bce',
            weighting=Projected(256, metric=Only(3)),
            devices=d,
            batch_size=100,
            progress=False,
        )
        for d in ('cpu', ['cpu', 'cpu'])
    )
    assert torch.equal(one.scores(test), two.scores(test))


def test_a_sample_and_what_it_missed(run: Run, test: torch.Tensor) -> None:
    tracin, sample = make(run), Sample(0.25, seed=3)
    rows, scores = sample.rows(run.training.mapped_triples[:, 1]), tracin.scores(test)
    result = tracin.explain(test, 10, sample=sample)
    assert set(result.frame['training_index']) <= set(rows.tolist())
    assert result.facts['training_triples'] == len(rows) == result.facts['sample']['kept']
    left = torch.ones(scores.shape[1], dtype=bool)
    left[rows] = False
    low, high = (scores[:, rows].topk(10, largest=x).values[:, -1:] for x in (False, True))
    missed = ((scores > high) | (scores < low))[:, left].double().sum(1).mean().item()
    assert result.facts['sample']['audited'] == 256
    assert result.facts['sample']['missed'] == pytest.approx(missed, rel=0.3)


def test_a_sampled_question_goes_on(run: Run, test: torch.Tensor, tmp_path) -> None:
    first = make(run).explain(test, 5, sample=Sample(0.5), out=tmp_path / 'out')
    (tmp_path / 'out' / 'manifest.json').unlink()
    pd.testing.assert_frame_equal(resume(tmp_path / 'out', progress=False).frame, first.frame)
    with pytest.raises(ValueError, match='sample'):
        make(run).explain(test, 5, sample=Sample(0.4), out=tmp_path / 'out')


@pytest.mark.parametrize('devices', ['cpu', ['cpu', 'cpu']])
def test_all_scores_in_a_file(run: Run, test: torch.Tensor, tmp_path, devices, monkeypatch) -> None:
    "In the order of the training triples, in row groups, the same from workers."
    monkeypatch.setattr('tracin_nb.influence.tracin._ROW_GROUP', 20 * 4 * 400)
    tracin = TracIn(run, 'bce', weighting='sgd', devices=devices, batch_size=100, progress=False)
    path = tracin.write_scores(test, tmp_path / 'new' / 'all.parquet')
    table, file = pd.read_parquet(path), pyarrow.parquet.ParquetFile(path)
    np.testing.assert_array_equal(
        table[[f'test_{i}' for i in range(len(test))]].values.T,
        make(run, batch_size=100).scores(test),
    )
    assert file.num_row_groups == 4 and table['training_index'].tolist() == list(
        range(run.training.num_triples)
    )
    assert table['head'].tolist() == [
        run.training.entity_id_to_label[h] for h in run.training.mapped_triples[:, 0].tolist()
    ]
    assert b'"objective": "' in file.schema_arrow.metadata[b'tracin_nb']


def test_a_file_is_replaced_when_all_is_there(
    run: Run, test: torch.Tensor, tmp_path, monkeypatch
) -> None:
    (tmp_path / 'all.parquet').write_text('older')
    tracin = make(run)
    monkeypatch.setattr(Work, 'do', lambda *_: (_ for _ in ()).throw(RuntimeError('stopped')))
    with pytest.raises(RuntimeError, match='stopped'):
        tracin.write_scores(test, tmp_path / 'all.parquet')
    assert [p.name for p in tmp_path.iterdir()] == ['all.parquet'] and (
        tmp_path / 'all.parquet'
    ).read_text() == 'older'


def test_self_influence_of_each_relation(run: Run) -> None:
    "The strongest two of each relation, and the same from workers."
    tracin = make(run, batch_size=200)
    every = tracin.self_influence(run.training.num_triples).frame
    each = tracin.self_influence(2, by_relation=True).frame
    for relation, mine in every.groupby('relation'):
        found = each[each['relation'] == relation]
        np.testing.assert_array_equal(found['influence'], mine['influence'].nlargest(2))
        assert found['rank'].tolist() == list(range(1, 1 + len(found)))
    assert set(each['relation']) == set(every['relation'])
    two = TracIn(
        run, 'bce', weighting='sgd', devices=['cpu', 'cpu'], batch_size=200, progress=False
    )
    pd.testing.assert_frame_equal(two.self_influence(2, by_relation=True).frame, each)


def test_refusals(run: Run, test: torch.Tensor) -> None:
    with pytest.raises(ValueError, match='no layer is called .fc.; there are'):
        make(run, weighting=Only(('fc',))).explain(test)
    with pytest.raises(ValueError, match='dim is -1'):
        make(run, weighting=Projected(-1)).explain(test)
    with pytest.raises(ValueError, match='sample rate is 2'):
        Sample(2)
