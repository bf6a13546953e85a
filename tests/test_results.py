"What results look like on the screen and in files, with labels that try to break them."

import csv
import json
import os
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from pykeen.triples import TriplesFactory

from tracin_nb.answer import results
from tracin_nb.answer.ranking import Ranking, TopK, by_entity, by_group, by_relation
from tracin_nb.answer.results import CAVEAT, Result, SelfInfluence, text_table

LABELS = [
    'a,b',
    'say "x"',
    'line\nbreak',
    'cr\rhere',
    'tab\tinside',
    'Zoë 日本',
    '<script>alert(1)</script>',
    'NA',
    '',
    ' spaced ',
    '$x_1$',
    'a & b',
    "'; --",
    '\x1b[31mred',
    'crlf\r\nend',
    '=1+1',
]
FACTS = dict(
    objective='training',
    engine='factored',
    fingerprint='f' * 64,
    wall_seconds=1.25,
    checkpoints=[dict(epoch=5, learning_rate=0.1), dict(epoch=10, learning_rate=0.05)],
    versions=dict(torch='2'),
)


def factory(labels: list[str]) -> TriplesFactory:
    "A ring: each label to the next, by two relations."
    n = len(labels)
    triples = torch.tensor([[i, r, (i + 1) % n] for i in range(n) for r in (0, 1)])
    return TriplesFactory(
        triples,
        entity_to_id={label: i for i, label in enumerate(labels)},
        relation_to_id={'is, a': 0, '<b>of</b>': 1},
    )


def example(
    num_tests: int = 3, k: int = 40, labels: list[str] = LABELS, **options: object
) -> Result:
    "Random scores of all training triples; test triple 2 is influenced by none."
    training, generator = factory(labels), torch.Generator().manual_seed(0)
    scores = torch.randn(num_tests, training.num_triples, generator=generator)
    scores[2:3] = 0
    ranking = Ranking(num_tests, k)
    ranking.update(scores, 0)
    test = training.mapped_triples[torch.arange(num_tests) % training.num_triples]
    return Result.of(test, training, ranking, FACTS, **options)


class Page(HTMLParser):
    "Tags and texts of a page."

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_frame_columns_and_ranks() -> None:
    frame = example().to_frame()
    assert list(frame.columns) == [
        'head',
        'relation',
        'tail',
        'influence',
        'kind',
        'rank',
        'test_head',
        'test_relation',
        'test_tail',
        'test_index',
        'training_index',
    ]
    assert set(frame.test_index) == {0, 1}
    for (_, kind), rows in frame.groupby(['test_index', 'kind']):
        assert rows['rank'].tolist() == list(range(1, len(rows) + 1))
        assert (rows.influence > 0).all() if kind == 'proponent' else (rows.influence < 0).all()
        assert (rows.influence.abs().diff().dropna() <= 0).all()
    assert frame.attrs['facts'] == FACTS and 'first-order' in frame.attrs['caveat']


def test_labels_are_those_of_the_training_triples() -> None:
    result, training = example(), factory(LABELS)
    labels = {i: label for label, i in training.entity_to_id.items()}
    for row in result.frame.itertuples():
        head, relation, tail = training.mapped_triples[row.training_index].tolist()
        assert (row.head, row.tail) == (labels[head], labels[tail])
        assert training.relation_to_id[row.relation] == relation


def test_a_frame_can_be_changed_without_changing_the_result() -> None:
    result = example()
    frame = result.to_frame()
    frame['influence'] = 0.0
    assert (result.frame.influence != 0).all()


def test_html_escapes_labels_and_keeps_the_uninfluenced() -> None:
    text = example()._repr_html_()
    page = Page(text)
    assert not set(page.tags) & {'script', 'b', 'img', 'iframe', 'object', 'link', 'form'}
    assert (
        '<script' not in text
        and '&lt;script&gt;alert(1)&lt;/script&gt;' in text
        and '&lt;b&gt;of' in text
    )
    joined = ' '.join(page.texts)
    assert (
        'no proponents' in joined and CAVEAT in joined and '2 checkpoints (epochs 5, 10)' in joined
    )
    assert 'color: inherit' in text and all(
        c.isprintable() or c == '\n' for c in text.rpartition('</style>')[2]
    )


def test_html_says_what_it_leaves_out() -> None:
    text = example(num_tests=13, labels=[f'e{i}' for i in range(60)], k=50)._repr_html_()
    assert (
        text.count('<section') == 10 and 'and 3 more test triples' in text and 'more ranks' in text
    )


def test_text_is_aligned_and_printable() -> None:
    text = text_table(example())
    assert all(c.isprintable() or c == '\n' for c in text)
    assert 'no proponents' in text and 'no opponents' in text and CAVEAT not in text
    assert CAVEAT in text_table(example(), verbose=True)
    assert '2 checkpoints (epochs 5, 10)' in text.splitlines()[-1]
    plain = text_table(example(labels=['a', 'bbbb', 'cc', 'ddd', 'eeeee'])).split('\n')
    rows = [line for line in plain if line.startswith('    ')][:10]
    assert (
        len({line.index('is, a') if 'is, a' in line else line.index('<b>of') for line in rows}) == 1
    )


def test_csv_round_trips(tmp_path: Path) -> None:
    result = example(num_tests=16)
    path = result.save(tmp_path / 'out.csv')
    with path.open(newline='', encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
    again = pd.read_csv(path, keep_default_na=False)
    for column in ('head', 'relation', 'tail', 'test_head', 'kind'):
        assert (
            [row[column] for row in rows] == again[column].tolist() == result.frame[column].tolist()
        )
    assert set(again['head']) == set(LABELS)
    assert [np.float32(row['influence']) for row in rows] == result.frame.influence.tolist()
    assert [int(row['training_index']) for row in rows] == result.frame.training_index.tolist()


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_parquet_types_and_facts(tmp_path: Path, dtype: torch.dtype) -> None:
    training, top = factory(LABELS), TopK(1, 5, dtype=dtype)
    top.update(torch.rand(1, training.num_triples, dtype=dtype), 0)
    report = SelfInfluence.of(training, top, FACTS)
    path = report.save(tmp_path / 'out.parquet')
    types = {field.name: str(field.type) for field in pq.read_schema(path)}
    assert types['influence'] == {torch.float32: 'float', torch.float64: 'double'}[dtype]
    assert types['rank'] == types['training_index'] == 'int64' and 'string' in types['head']
    again = pd.read_parquet(path)
    pd.testing.assert_frame_equal(again, report.frame)
    assert again.attrs['facts'] == FACTS


def test_json_is_strict_and_whole(tmp_path: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    result = example(self_influence=torch.tensor([1.0, 2.0, 3.0]))
    text = result.save(tmp_path / 'out.json').read_text(encoding='utf-8')
    content = json.loads(text, parse_constant=refuse)
    assert content['facts'] == FACTS and content['caveat'] == CAVEAT and len(content['tests']) == 3
    assert content['tests'][2]['test_self_influence'] == 3.0
    assert [row['influence'] for row in content['rows']] == result.frame.influence.tolist()
    assert '日本' in text


def test_a_folder_loads_again(tmp_path: Path) -> None:
    values = torch.ones(3, 40), torch.zeros(3, 40)
    result = example(
        groups={'entity rows': values, 'weights': values}, self_influence=torch.ones(3)
    )
    again = Result.load(result.save(tmp_path / 'new' / 'folder'))
    pd.testing.assert_frame_equal(again.frame, result.frame)
    pd.testing.assert_frame_equal(again.tests, result.tests, check_dtype=False)
    assert again.facts == result.facts and again.frame.attrs == result.frame.attrs
    assert repr(again) == repr(result) and text_table(again) == text_table(result)
    assert by_group(again.frame).group.unique().tolist() == ['entity rows', 'weights']


@pytest.mark.parametrize('name', ['result.csv', 'result.parquet', 'result.json'])
def test_a_changed_or_missing_file_is_noticed(tmp_path: Path, name: str) -> None:
    example().save(tmp_path)
    with (tmp_path / name).open('ab') as file:
        file.write(b' ')
    with pytest.raises(ValueError, match=f'{name} is missing or is not the file'):
        Result.load(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=f'{name} is missing or is not the file'):
        Result.load(tmp_path)


@pytest.mark.parametrize('suffix', ['.csv', '.parquet', '.json'])
def test_a_failed_save_leaves_the_old_file(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = example().save(tmp_path / f'out{suffix}')
    old = path.read_bytes()

    def breaks(report: results.Report, path: Path) -> None:
        path.write_text('half')
        raise OSError('disk full')

    monkeypatch.setitem(results.WRITERS, suffix, breaks)
    with pytest.raises(OSError, match='disk full'):
        example(k=3).save(path)
    assert path.read_bytes() == old and os.listdir(tmp_path) == [path.name]


def test_an_interrupted_folder_does_not_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(report: results.Report, path: Path) -> None:
        raise OSError('disk full')

    monkeypatch.setitem(results.WRITERS, '.json', breaks)
    with pytest.raises(OSError):
        example().save(tmp_path)
    with pytest.raises(ValueError, match='manifest.json is missing'):
        Result.load(tmp_path)


@pytest.mark.parametrize('name', ['out.docx', 'out.CSV', 'run.2'])
def test_an_unknown_ending_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match='expected a folder'):
        example().save(tmp_path / name)
    assert not os.listdir(tmp_path)


def test_plot_takes_labels_literally() -> None:
    ax = example().plot(1)
    names = [text.get_text() for text in ax.get_yticklabels()]
    assert (
        any('$x_1$' in name for name in names)
        and ax.get_title()
        and ax.get_xlabel().startswith('influence')
    )
    assert len(ax.patches) == len(names)
    example(labels=['a', '$x_1', '$\\frac$']).plot(0).figure.canvas.draw()
    long = example(labels=[f'e{i}' for i in range(60)], k=50).plot()
    assert len(long.patches) == 10 and '5 strongest of each side' in long.get_xlabel()
    with pytest.raises(IndexError, match='no test triple 3, the result has 3'):
        example().plot(3)


def test_sums_over_the_frame() -> None:
    frame = example().frame
    net = frame.groupby('test_index').influence.sum()
    pd.testing.assert_series_equal(
        by_relation(frame).groupby('test_index').influence.sum(), net, rtol=1e-4
    )
    pd.testing.assert_series_equal(
        by_entity(frame).groupby('test_index').influence.sum(), 2 * net, rtol=1e-4
    )
    assert by_entity(frame).triples.sum() == 2 * len(frame)


def test_bad_ids_and_tables() -> None:
    training, ranking = factory(LABELS), Ranking(1, 2)
    with pytest.raises(ValueError, match='id 99 has no label'):
        Result.of(torch.tensor([[0, 0, 99]]), training, ranking, FACTS)
    ranking.update(torch.ones(1, 1), 1000)
    with pytest.raises(
        ValueError, match='training index 1000 is out of range: there are 32 triples'
    ):
        Result.of(torch.tensor([[0, 0, 1]]), training, ranking, FACTS)
    with pytest.raises(ValueError, match='expected a TriplesFactory with labels'):
        Result.of(torch.tensor([[0, 0, 1]]), None, Ranking(1, 2), FACTS)
    with pytest.raises(ValueError, match="column 'weights' holds a number that is not finite"):
        example(groups={'weights': (torch.full((3, 40), torch.nan), torch.zeros(3, 40))})


def test_a_large_result_is_quick() -> None:
    labels = [f'entity {i}' for i in range(5000)]
    start = time.perf_counter()
    result = example(num_tests=1000, k=100, labels=labels)
    assert len(result.to_frame()) == 999 * 200 and time.perf_counter() - start < 30
