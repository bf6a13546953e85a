"""Input that can be read but is meant otherwise: a hint, a refusal, or the right reading, never
silence."""

import json
import unicodedata
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from click.testing import Result as Outcome
from pykeen.models import DistMult
from pykeen.triples import TriplesFactory

from tracin_nb.answer.formats import influence_table, write_influence_csv
from tracin_nb.answer.results import Result, read_csv
from tracin_nb.app.cli import main
from tracin_nb.graph.neighbourhoods import Graph, near
from tracin_nb.graph.triples import (
    TriplesFileError,
    TriplesWarning,
    load_dataset,
    load_files,
    read_label_map,
    select,
    to_ids,
    to_labels,
)
from tracin_nb.influence.tracin import TracIn
from tracin_nb.runs.run import Run

GRAPH = [
    ('zinc', 'treats', 'cold'),
    ('cold', 'causes', 'cough'),
    ('honey', 'treats', 'cough'),
    ('cough', 'sign', 'cold'),
]


def tsv(rows: list, *first: str) -> str:
    return '\n'.join([*first, *('\t'.join(map(str, row)) for row in rows)]) + '\n'


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def told(call: Callable[[], Any]) -> tuple[Any, list[str]]:
    "What a call gives, and its warnings about triples."
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        found = call()
    return found, [str(w.message) for w in caught if isinstance(w.message, TriplesWarning)]


# ---- headers


@pytest.mark.parametrize(
    'names',
    [
        ':START_ID :TYPE :END_ID',
        'head_id relation_id tail_id',
        'from type to',
        'FROM Edge TO',
        '#head relation tail',
        'subject relation object',
        'node1 label node2',
        'startNode relType endNode',
        ':START_ID(Drug) :TYPE :END_ID(Disease)',
    ],
)
def test_a_header_of_other_names_is_left_out_aloud(names: str, tmp_path: Path) -> None:
    path = write(tmp_path / 'train.tsv', tsv(GRAPH, names.replace(' ', '\t')))
    data, hints = told(lambda: load_files(path))
    assert (data.num_entities, data.num_relations, data.training.num_triples) == (4, 3, 4)
    assert len(hints) == 1 and str(path) in hints[0] and '--no-header' in hints[0]
    data, hints = told(lambda: load_files(path, header=False))
    assert data.num_entities == 6 and hints == []


@pytest.mark.parametrize(
    'names', ['Kopf Beziehung Ende', 'tête lien queue', '头 关系 尾', 'x y z', 'from to weight']
)
def test_a_header_of_unknown_names_is_told_by_standing_alone(names: str, tmp_path: Path) -> None:
    path = write(tmp_path / 'train.tsv', tsv(GRAPH, names.replace(' ', '\t')))
    data, hints = told(lambda: load_files(path))
    assert (
        data.num_entities == 6
        and len(hints) == 1
        and 'line 1' in hints[0]
        and 'header=True (--header)' in hints[0]
    )
    data, hints = told(lambda: load_files(path, header=True))
    assert data.num_entities == 4 and hints == []


@pytest.mark.parametrize(
    'names,order',
    [
        ('head tail relation', 'head, tail, relation'),
        ('h t r', 'head, tail, relation'),
        ('source target type', 'head, tail, relation'),
        ('predicate subject object', 'relation, head, tail'),
    ],
)
def test_a_header_in_another_order_is_refused(names: str, order: str, tmp_path: Path) -> None:
    path = write(tmp_path / 'train.tsv', tsv(GRAPH, names.replace(' ', '\t')))
    for header in (None, True):
        with pytest.raises(
            TriplesFileError, match=f'line 1: the header .*names the columns {order}'
        ):
            load_files(path, header=header)


def test_a_header_in_one_file_only(tmp_path: Path) -> None:
    train, test = write(tmp_path / 'train.tsv', tsv(GRAPH)), tmp_path / 'test.tsv'
    rows = [('honey', 'treats', 'cold')]
    write(test, tsv(rows, 'from\ttype\tto'))
    data, hints = told(lambda: load_files(train, test))
    assert data.testing.num_triples == 1 and len(hints) == 1 and str(test) in hints[0]
    write(test, tsv(rows, 'Kopf\tBeziehung\tEnde'))
    with pytest.raises(
        TriplesFileError, match=r"test.tsv: line 1: entity 'Kopf'.*is it a header\?.*--header"
    ):
        load_files(train, test)
    with pytest.warns(UserWarning, match=r'left out 1 of 2 .*is line 1 a header\?'):
        load_files(train, test, unseen='drop')
    _, hints = told(lambda: load_files(train, test, header=True))
    assert (
        len(hints) == 1 and "train.tsv: line 1 ['zinc', 'treats', 'cold'] is left out" in hints[0]
    )


def test_no_hint_for_a_plain_file(tmp_path: Path) -> None:
    for rows in (
        GRAPH,
        GRAPH[::-1],
        GRAPH[:1],
        [('a', 'r', 'b'), ('c', 's', 'd'), ('e', 't', 'f'), ('g', 'u', 'h')],
    ):
        assert (
            told(lambda: load_files(write(tmp_path / 't.tsv', tsv(rows).replace('\n', '\r\n'))))[1]
            == []
        )


# ---- columns


@pytest.mark.parametrize('name', ['nations', 'kinships', 'umls'])
@pytest.mark.parametrize('labels', [True, False])
def test_the_order_of_columns(name: str, labels: bool, tmp_path: Path) -> None:
    training = load_dataset(name).training
    rows = (
        np.array(to_labels(training.mapped_triples, training))
        if labels
        else training.mapped_triples.numpy()
    )
    for order, said in (
        ((0, 1, 2), None),
        ((2, 1, 0), None),
        ((0, 2, 1), 'head, tail, relation'),
        ((1, 0, 2), 'relation, head, tail'),
    ):
        _, hints = told(lambda: load_files(write(tmp_path / 'train.tsv', tsv(rows[:, order]))))
        assert (
            hints == []
            if said is None
            else f'the columns look like {said}, but are read as' in ' '.join(hints)
        )


def test_columns_that_share_no_labels(tmp_path: Path) -> None:
    rows = [(f'drug {i}', 'treats' if i % 3 else 'causes', f'disease {i % 20}') for i in range(60)]
    assert told(lambda: load_files(write(tmp_path / 't.tsv', tsv(rows))))[1] == []
    _, hints = told(
        lambda: load_files(write(tmp_path / 't.tsv', tsv([(h, t, r) for h, r, t in rows])))
    )
    assert 'look like head, tail, relation' in hints[0]


@pytest.mark.parametrize(
    'line,words',
    [
        ('<x:a>\t<x:r>\t<x:b> .', 'N-Triples'),
        ('<x:a> <x:r> "text"@en .', 'N-Triples'),
        ('<x:a>\t<x:r>\t<x:b>\t.', 'N-Triples'),
        ('@prefix x: <y> .', 'Turtle'),
        ('4', 'OpenKE.*head, tail, relation'),
        ('0 1 0', 'spaces instead'),
        ('a,b,c', 'commas'),
        ('a;b;c', 'semicolons'),
        ('a|b|c', 'vertical bars'),
        ('a\tb\tc\td', 'found 4'),
    ],
)
def test_other_formats(line: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(TriplesFileError, match=f'train.tsv: line 1: .*{words}'):
        load_files(write(tmp_path / 'train.tsv', tsv(GRAPH, line)))


def test_label_maps_the_other_way_round(tmp_path: Path) -> None:
    path = tmp_path / 'entities.dict'
    for names in ('id\tlabel', 'index\tname'):
        assert read_label_map(write(path, f'{names}\n0\tzinc\n1\tcold\n')) == {'zinc': 0, 'cold': 1}
    assert read_label_map(write(path, 'entity\tid\ncold\t1\nzinc\t0\n')) == {'zinc': 0, 'cold': 1}
    for text in ('0\tzinc\n1\tcold\n', '0\t00001740\n1\t00002137\n'):
        with pytest.raises(
            TriplesFileError, match=r'entities.dict: .*are the columns swapped\? DGL-KE'
        ):
            read_label_map(write(path, text))
    found, hints = told(lambda: read_label_map(write(path, '0\t2\n1\t0\n2\t1\n')))
    assert found == {'1': 0, '2': 1, '0': 2} and 'looks like index<TAB>label' in hints[0]
    assert told(lambda: read_label_map(write(path, '0\t0\n1\t1\n')))[1] == []
    with pytest.raises(
        TriplesFileError, match="line 1: index 'Nummer' of 'Name' is not an integer .a header"
    ):
        read_label_map(write(path, 'Name\tNummer\nzinc\t0\n'))


def test_pykeens_own_label_map(tmp_path: Path) -> None:
    training = load_dataset('nations').training
    training.to_path_binary(tmp_path)
    assert read_label_map(tmp_path / 'entity_to_id.tsv.gz') == training.entity_to_id


# ---- labels


def test_labels_that_differ_by_almost_nothing(tmp_path: Path) -> None:
    names = ['zinc', 'cold', 'Müller', 'café', 'a b', 'xy', 'honey']
    other = [
        'zinc ',
        ' cold',
        *(unicodedata.normalize('NFD', x) for x in names[2:4]),
        'a\u00a0b',
        'x\u200by',
        'Honey',
    ]
    rows = [(x, 'likes', names[i % 7 - 1]) for i, x in enumerate(names + other)]
    data, hints = told(lambda: load_files(write(tmp_path / 'train.tsv', tsv(rows))))
    assert data.num_entities == 14 and len(hints) == 2
    assert '6 pairs of entities differ only by spaces or by the form of their Unicode' in hints[0]
    assert (
        "1 pair of entities differ only by upper and lower case, such as 'Honey' and 'honey'"
        in hints[1]
    )
    _, hints = told(
        lambda: load_files(
            write(tmp_path / 'train.tsv', tsv([*GRAPH, ('zinc', 'treats ', 'cough')]))
        )
    )
    assert '1 pair of relations' in hints[0] and "'treats' and 'treats '" in hints[0]


def test_labels_that_miss_by_almost_nothing(tmp_path: Path) -> None:
    train = write(tmp_path / 'train.tsv', tsv([*GRAPH, ('café', 'treats', 'cold')]))
    test = write(
        tmp_path / 'test.tsv',
        tsv([(unicodedata.normalize('NFD', 'café'), 'treats', 'cough'), GRAPH[0]]),
    )
    with pytest.raises(
        TriplesFileError,
        match=r"'caf\\xe9' differs only by spaces or Unicode form from 'cafe\\u0301'",
    ):
        load_files(train, test)
    with pytest.warns(
        UserWarning, match='left out 1 of 2 .*1 of them only for spaces or another Unicode form'
    ):
        load_files(train, test, unseen='drop')
    with pytest.raises(ValueError, match="nearest: 'zinc'; 'zinc' differs only by spaces"):
        to_ids(('zinc ', 'treats', 'cold'), load_files(train).training)


def test_what_the_label_map_has_and_training_has_not(tmp_path: Path) -> None:
    names = ['zinc', 'cold', 'cough', 'honey', 'sage', 'thyme']
    entities, relations = (
        {x: i for i, x in enumerate(names)},
        {'treats': 0, 'causes': 1, 'sign': 2, 'cures': 3},
    )
    train = write(tmp_path / 'train.tsv', tsv(GRAPH))
    _, hints = told(lambda: load_files(train, entity_to_id=entities, relation_to_id=relations))
    assert (
        "2 of 6 entities of the label map are in no training triple ('sage', 'thyme'): the model"
        in hints[0]
    )
    assert "1 of 4 relations of the label map are in no training triple ('cures')" in hints[1]


# ---- integers and labels that are numbers


def numbered(relations: tuple[str, ...] = ('2', '0', '1')) -> TriplesFactory:
    "Labels that are numbers, none of them its own id."
    return TriplesFactory(
        torch.tensor([[0, 0, 1], [1, 1, 2], [2, 2, 3], [3, 0, 0]]),
        {'1': 0, '002': 1, '3': 2, '0': 3},
        {x: i for i, x in enumerate(relations)},
    )


FORMS = [
    lambda x: x,
    lambda x: x[0],
    lambda x: np.array(x),
    lambda x: iter(x),
    lambda x: pd.DataFrame(x, columns=['head', 'relation', 'tail']),
]


@pytest.mark.parametrize('form', FORMS)
def test_integers_that_could_be_labels_are_refused(form: Callable) -> None:
    factory = numbered()
    with pytest.raises(
        ValueError, match=r"row 0, head: 1 is an id, and '1' is the label of the entity with id 0"
    ):
        to_ids(form([(1, 0, 2)]), factory)
    labels = [tuple(map(str, x)) for x in to_labels(torch.tensor([[1, 0, 2]]), factory)]
    assert labels == [('002', '2', '3')] and to_ids(labels, factory).tolist() == [[1, 0, 2]]
    ids = torch.tensor([[1, 0, 2], [3, 0, 0]])
    for certain in (ids, list(ids)):
        assert torch.equal(to_ids(certain, factory), ids)


@pytest.mark.parametrize('form', FORMS)
def test_integers_of_which_some_could_be_labels_are_ids_aloud(form: Callable) -> None:
    found, hints = told(lambda: to_ids(form([(1, 0, 2)]), numbered(('likes', 'owns', 'near'))))
    assert (
        found.tolist() == [[1, 0, 2]] and len(hints) == 1 and 'integers are read as ids' in hints[0]
    )


def test_integers_that_can_mean_one_thing_only() -> None:
    same = TriplesFactory(torch.tensor([[0, 0, 1]]), {'0': 0, '1': 1}, {'0': 0})
    assert told(lambda: to_ids([(0, 0, 1)], same))[1] == []
    assert told(lambda: to_ids([(0, 0, 1)], load_dataset('nations').training))[1] == []
    with pytest.raises(
        ValueError, match="id 33 is out of range.*'00033' is a label: give it as a text"
    ):
        to_ids(
            [(33, 0, 1)], TriplesFactory(torch.tensor([[0, 0, 1]]), {'00033': 0, 'b': 1}, {'r': 0})
        )


def test_one_integer_that_could_be_a_label() -> None:
    with pytest.raises(
        ValueError, match="tail: 3 is an id, and '3' is the label of the entity with id 2"
    ):
        select(numbered(), tail=3)
    assert select(numbered(), tail='3').tolist() == [[1, 1, 2]]
    assert select(numbered(), tail=torch.tensor(3)).tolist() == [[2, 2, 3]]


# ---- the run


def run_on(training: TriplesFactory) -> Run:
    model = DistMult(triples_factory=training, embedding_dim=4, random_seed=0)
    return Run.from_model(model, training, learning_rates=[0.1])


def make(training: TriplesFactory) -> TracIn:
    return TracIn(
        run_on(training), 'bce', weighting='sgd', devices='cpu', batch_size=8, progress=False
    )


def test_a_run_whose_labels_are_numbers() -> None:
    """Neighbourhoods, results and contrasts work with ids inside, and questions in integers are
    refused."""
    training = numbered()
    tracin, triple = make(training), ('1', '2', '3')
    found = tracin.explain([triple], 4, near=near(Graph(training), [triple], hops=2), against='0')
    assert found.tests[['test_head', 'test_tail']].values.tolist() == [['1', '3']]
    for ask in (
        lambda: tracin.explain([(1, 0, 2)]),
        lambda: tracin.scores([(1, 0, 2)]),
        lambda: tracin.explain([triple], against=3),
        lambda: tracin.explain([triple], train=[(0, 0, 1)]),
    ):
        with pytest.raises(ValueError, match='is an id, and .* is the label of'):
            ask()


def test_what_training_never_saw_is_said() -> None:
    training = TriplesFactory(
        torch.tensor([[0, 0, 1], [1, 0, 2]]), dict(a=0, b=1, c=2, z=3), dict(r=0, s=1)
    )
    tracin = make(training)
    result, hints = told(lambda: tracin.explain([('a', 'r', 'z'), ('a', 's', 'b')]))
    said = "in no training triple: entity 'z'; relation 's'"
    assert result.facts['never_seen'] == said and len(hints) == 1 and said in hints[0]
    assert 'tail z is in no training triple: the model never saw it' in repr(result)
    assert 'relation s is in no training triple: the model never saw it' in repr(result)
    assert said in told(lambda: tracin.scores([('a', 'r', 'z'), ('a', 's', 'b')]))[1][0]
    result, hints = told(lambda: tracin.explain([('a', 'r', 'c')]))
    assert 'never_seen' not in result.facts and hints == []


def test_scores_refuses_what_was_never_trained_on() -> None:
    tracin = make(numbered())
    every = tracin.run.training.mapped_triples
    with pytest.raises(ValueError, match=r"\('1', '2', '3'\) is not a training triple"):
        tracin.scores(every[:1], torch.tensor([[0, 0, 1], [0, 0, 2]]))
    whole, order = tracin.scores(every[:2]), [2, 0, 0, 3]
    torch.testing.assert_close(tracin.scores(every[:2], every[order]), whole[:, order])


# ---- CSV

WORDS = ['03395745', 'NA', 'nan', 'null', '1e5', 'True', '007', 'a "b",\r\nc', 'None', '-0']


def odd_result() -> tuple[Result, TriplesFactory]:
    n = len(WORDS)
    ring = torch.tensor([[i, 0, (i + 1) % n] for i in range(n)])
    training = TriplesFactory(ring, {x: i for i, x in enumerate(WORDS)}, {'12': 0})
    return make(training).explain([('NA', '12', '007'), ('null', '12', 'nan')], n), training


def test_csv_keeps_labels(tmp_path: Path) -> None:
    result, _ = odd_result()
    folder = result.save(tmp_path / 'out')
    again, texts = (
        read_csv(folder / 'result.csv'),
        ['test_head', 'test_tail', 'head', 'relation', 'tail', 'kind'],
    )
    assert again[texts].values.tolist() == result.frame[texts].values.tolist() and set(
        again['head']
    ) == set(WORDS)
    assert again['training_index'].tolist() == result.frame['training_index'].tolist()
    assert again['training_index'].dtype == np.int64 and again['influence'].dtype == np.float64
    assert again['influence'].astype('float32').tolist() == result.frame['influence'].tolist()
    plain = pd.read_csv(folder / 'result.csv', dtype=str, keep_default_na=False)
    assert plain[texts].values.tolist() == result.frame[texts].values.tolist()
    manifest = json.loads((folder / 'manifest.json').read_text())
    assert 'dtype=str' in manifest['csv'] and 'keep_default_na=False' in manifest['csv']
    assert Result.load(folder).frame[texts].values.tolist() == result.frame[texts].values.tolist()


def test_the_table_of_14_columns_keeps_labels(tmp_path: Path) -> None:
    result, training = odd_result()
    table = influence_table(result, training, {0: '0815'})
    write_influence_csv(table, tmp_path / 't.csv')
    pd.testing.assert_frame_equal(read_csv(tmp_path / 't.csv').astype(table.dtypes), table)


def test_read_csv_types(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        dict(
            head=['1', '', '3'],
            near=[True, False, True],
            rank=[1, 2, 3],
            share=[0.1, float('nan'), 1 / 3],
        )
    )
    frame.to_csv(tmp_path / 't.csv', index=False, quoting=2)
    pd.testing.assert_frame_equal(read_csv(tmp_path / 't.csv'), frame)
    frame[:0].to_csv(tmp_path / 't.csv', index=False, quoting=2)
    assert read_csv(tmp_path / 't.csv').columns.tolist() == list(frame) and not len(
        read_csv(tmp_path / 't.csv')
    )


# ---- the command line


def tracin(*args: Any) -> Outcome:
    return CliRunner().invoke(main, [str(a) for a in args])


def test_header_on_the_command_line(tmp_path: Path) -> None:
    train, out = (
        write(tmp_path / 'train.tsv', tsv(GRAPH, 'Kopf\tBeziehung\tEnde')),
        tmp_path / 'near.tsv',
    )
    ask = (
        'filter',
        '--train',
        train,
        '--triple',
        'zinc',
        'treats',
        'cough',
        '--n-hops',
        3,
        '--out',
        out,
        '--overwrite',
    )
    done = tracin(*ask)
    assert done.exit_code == 0 and '4 of 5' in done.stdout and '--header' in done.stderr
    assert 'tracin: warning' in done.stderr and 'warning' not in done.stdout
    done = tracin(*ask, '--header')
    assert done.exit_code == 0 and '4 of 4' in done.stdout and done.stderr == ''
    write(train, tsv(GRAPH, 'from\ttype\tto'))
    assert '4 of 4' in tracin(*ask).stdout and '4 of 5' in tracin(*ask, '--no-header').stdout


def test_header_of_a_training_and_of_questions(tmp_path: Path) -> None:
    names, graph, out = 'Kopf\tBeziehung\tEnde', tmp_path / 'graph', tmp_path / 'run'
    graph.mkdir()
    for part in ('train', 'test'):
        write(graph / f'{part}.txt', tsv(GRAPH, names))
    small = (
        '--model',
        'DistMult',
        '--model-kwargs',
        '{"embedding_dim": 4}',
        '--epochs',
        1,
        '--device',
        'cpu',
    )
    done = tracin('train', graph, '--out', out, *small, '--header')
    assert done.exit_code == 0, done.stderr
    run = Run.open(out)
    assert (run.training.num_entities, run.training.num_triples, run.testing.num_triples) == (
        4,
        4,
        4,
    )
    ask = ('--device', 'cpu', '--batch-size', 8)
    tests = write(tmp_path / 'tests.tsv', tsv(GRAPH[:2], names))
    done = tracin('explain', out, '--test', tests, '--header', '--format', 'json', *ask)
    assert done.exit_code == 0 and len(json.loads(done.stdout)['tests']) == 2
    done = tracin('explain', out, '--test', tests, *ask)
    assert (
        done.exit_code == 2
        and done.stdout == ''
        and "tests.tsv: line 1: unknown entity 'Kopf'" in done.stderr
    )
    done = tracin('batch', out, '--test', tests, '--header', '--output-dir', tmp_path / 'why', *ask)
    assert done.exit_code == 0 and '2 predictions: 2 successful' in done.stdout
    done = tracin('explain', out, '--triple', *GRAPH[0], '--header', *ask)
    assert done.exit_code == 2 and '--header' in done.stderr.splitlines()[-1]
    torch.save(run.model(-1).state_dict(), tmp_path / 'state.pt')
    done = tracin(
        'self',
        '--model-path',
        tmp_path / 'state.pt',
        '--train',
        graph / 'train.txt',
        '--model',
        'distmult',
        '--learning-rate',
        0.1,
        '--header',
        '--format',
        'json',
        *ask,
    )
    assert done.exit_code == 0 and len(json.loads(done.stdout)['rows']) == 4, done.stderr
    assert tracin('train', 'nations', '--out', tmp_path / 'n', *small, '--header').exit_code == 2


def test_a_sampler_setting_that_there_is_not(tmp_path: Path) -> None:
    done = tracin(
        'train',
        'nations',
        '--out',
        tmp_path / 'run',
        '--epochs',
        1,
        '--device',
        'cpu',
        '--negative-sampler-kwargs',
        '{"num_workers": 1}',
    )
    assert (
        done.exit_code == 2
        and "basic takes no 'num_workers'" in done.stderr
        and not (tmp_path / 'run').exists()
    )
