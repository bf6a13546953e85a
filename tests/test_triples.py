"""Files, label maps, data sets, labels and ids: the right reading of odd input, and clear errors
for the malformed."""

import gzip
import pickle
import random
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from pykeen.datasets import Dataset, EagerDataset
from pykeen.triples import CoreTriplesFactory, TriplesFactory

from tracin_nb.graph.triples import (
    TriplesFileError,
    UnknownLabelError,
    load_dataset,
    load_files,
    nearest_labels,
    read_label_map,
    read_triples,
    select,
    to_ids,
    to_labels,
    triples_fingerprint,
)

GOOD = b'zinc\ttreats\tcold\n'


@pytest.fixture(scope='module')
def nations() -> Dataset:
    return load_dataset('nations')


@pytest.fixture(params=[1 << 25, 5], ids=['whole', 'in pieces'])
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    "Files are read as they are, and again in pieces of five bytes"
    monkeypatch.setattr('tracin_nb.graph.triples._READ', request.param)


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def quiet(*args: Any, **kwargs: Any) -> Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return load_files(*args, **kwargs)


# --- files of triples -----------------------------------------------------------------------------

READ = {
    'plain': (GOOD + b'a\tb\tc\n', [['zinc', 'treats', 'cold'], ['a', 'b', 'c']]),
    'no final line end': (b'a\tb\tc', [['a', 'b', 'c']]),
    'blank lines at the end': (b'a\tb\tc\n\n\r\n', [['a', 'b', 'c']]),
    'byte order mark': (b'\xef\xbb\xbfa\tb\tc\n', [['a', 'b', 'c']]),
    'byte order mark, then header': (b'\xef\xbb\xbfh\tr\tt\na\tb\tc\n', [['a', 'b', 'c']]),
    'CRLF': (b'a\tb\tc\r\nd\te\tf\r\n', [['a', 'b', 'c'], ['d', 'e', 'f']]),
    'mixed line ends': (b'a\tb\tc\r\nd\te\tf\n', [['a', 'b', 'c'], ['d', 'e', 'f']]),
    'header': (b'head\trelation\ttail\na\tb\tc\n', [['a', 'b', 'c']]),
    'header in capitals': (b'Subject\tPredicate\tObject\na\tb\tc\n', [['a', 'b', 'c']]),
    'header names below line 1': (b'a\tb\tc\nh\tr\tt\n', [['a', 'b', 'c'], ['h', 'r', 't']]),
    'almost a header': (b'head\trelation\ttails\n', [['head', 'relation', 'tails']]),
    'duplicates stay': (GOOD * 2, [['zinc', 'treats', 'cold']] * 2),
    'words that look missing': (b'NA\tnull\tNaN\n', [['NA', 'null', 'NaN']]),
    'numbers stay text': (b'007\t1.0\t1e3\n', [['007', '1.0', '1e3']]),
    'spaces kept': (b' a \tb c\td \n', [[' a ', 'b c', 'd ']]),
    'quotes kept': (b'"a\tb"\t"c, d"\n', [['"a', 'b"', '"c, d"']]),
    'odd line separators are text': (
        'a\u2028b\t\x0br\tc\x85\n'.encode(),
        [['a\u2028b', '\x0br', 'c\x85']],
    ),
    'not ASCII': ('Müller\tkennt\t東京\n'.encode(), [['Müller', 'kennt', '東京']]),
}


@pytest.mark.parametrize('content,rows', READ.values(), ids=READ)
@pytest.mark.usefixtures('pieces')
def test_reads(content: bytes, rows: list, tmp_path: Path) -> None:
    found = read_triples(write(tmp_path / 't.tsv', content))
    assert found.tolist() == rows and found.dtype == object
    assert read_triples(write(tmp_path / 't.tsv.gz', gzip.compress(content))).tolist() == rows


BAD_FILES = {
    'empty': (b'', ['the file is empty']),
    'only a byte order mark': (b'\xef\xbb\xbf', ['the file is empty']),
    'only line ends': (b'\r\n\n', ['the file is empty']),
    'only a header': (b'head\trelation\ttail\n', ['line 1', 'nothing below the header']),
    'two columns': (
        GOOD + b'zinc\ttreats\n',
        ['line 2', 'expected 3 columns', 'found 2', "'zinc\\ttreats'"],
    ),
    'four columns': (GOOD * 2 + b'a\tb\tc\td\n', ['line 3', 'found 4']),
    'four columns in line 1': (b'a\tb\tc\td\n' + GOOD, ['line 1', 'found 4']),
    'four columns everywhere': (b'a\tb\tc\td\ne\tf\tg\th\n', ['line 1', 'found 4']),
    'a final tab': (b'a\tb\tc\t\n', ['line 1', 'found 4']),
    'tab inside quotes': (
        GOOD + b'"a\tb"\tr\tc\n',
        ['line 2', 'found 4', 'quotes do not protect tabs'],
    ),
    'spaces': (GOOD + b'zinc treats cold\n', ['line 2', 'found 1', 'spaces instead of tabs']),
    'commas': (b'zinc,treats,cold\n', ['line 1', 'found 1', 'commas instead of tabs']),
    'empty head': (GOOD + b'\tr\tc\n', ['line 2', 'column 1 is empty']),
    'empty relation': (b'a\t\tc\n', ['line 1', 'column 2 is empty']),
    'empty tail': (b'a\tr\t\n', ['line 1', 'column 3 is empty', "'a\\tr\\t'"]),
    'empty tail before CRLF': (b'a\tr\t\r\n', ['line 1', 'column 3 is empty']),
    'blank field': (GOOD + b'a\t  \tc\n', ['line 2', 'column 2 is empty']),
    'blank line': (GOOD + b'\n' + GOOD, ['line 2', 'the line is blank']),
    'line of tabs': (GOOD + b'\t\t\n' + GOOD, ['line 2', 'the line is blank']),
    'not UTF-8': (GOOD + b'caf\xe9\tr\tc\n', ['line 2', 'not UTF-8', '0xe9']),
    'not UTF-8 and far down': (GOOD * 999 + b'a\tr\t\xff\n', ['line 1000', 'not UTF-8', '0xff']),
    'UTF-16': ('a\tr\tc\n'.encode('utf-16'), ['line 1', 'not UTF-8']),
    'UTF-16 without mark': ('a\tr\tc\n'.encode('utf-16-le'), ['line 1', 'NUL byte', 'UTF-16']),
    'NUL': (GOOD + b'a\0\tr\tc\n', ['line 2', 'NUL byte']),
    'old Macintosh line ends': (b'a\tr\tc\rd\tr\te\r', ['line 1', 'carriage return']),
    'carriage return inside': (GOOD + b'a\tr\rs\tc\n', ['line 2', 'carriage return']),
    'a line that never ends': (b'x' * (1 << 25), ['line 1', 'found 1']),
}


@pytest.mark.parametrize('content,words', BAD_FILES.values(), ids=BAD_FILES)
def test_malformed_file(
    content: bytes, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / 'triples.tsv', content)
    with pytest.raises(TriplesFileError) as e:
        read_triples(path)
    monkeypatch.setattr('tracin_nb.graph.triples._READ', 5 + len(content) // 8)
    with pytest.raises(TriplesFileError) as in_pieces:
        read_triples(path)
    assert str(in_pieces.value) == str(e.value)
    assert str(e.value).startswith(str(path)) and all(w in str(e.value) for w in words), str(
        e.value
    )
    assert len(str(e.value)) < len(str(path)) + 300


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(TriplesFileError, match='none.tsv: no such file'):
        read_triples(tmp_path / 'none.tsv')
    with pytest.raises(TriplesFileError, match='a folder, not a file'):
        read_triples(tmp_path)
    with pytest.raises(TriplesFileError, match='t.gz: cannot be read'):
        read_triples(write(tmp_path / 't.gz', GOOD))
    half = gzip.compress(GOOD * 50)[:-12]
    with pytest.raises(TriplesFileError, match='h.gz: cannot be read'):
        read_triples(write(tmp_path / 'h.gz', half))


def test_header_by_request(tmp_path: Path) -> None:
    path = write(tmp_path / 't.tsv', b'h\tr\tt\na\tb\tc\n')
    assert len(read_triples(path, header=False)) == 2
    assert read_triples(write(path, b'x\ty\tz\na\tb\tc\n'), header=True).tolist() == [
        ['a', 'b', 'c']
    ]


# --- label maps -----------------------------------------------------------------------------------


@pytest.mark.usefixtures('pieces')
def test_label_map(tmp_path: Path) -> None:
    path = write(tmp_path / 'e.tsv', b'label\tid\ncold\t1\nzinc\t0\nNA\t2\n')
    assert list(read_label_map(path).items()) == [('zinc', 0), ('cold', 1), ('NA', 2)]


BAD_MAPS = {
    'empty': (b'', ['the file is empty']),
    'one column': (b'zinc\n', ['line 1', 'expected 2 columns', 'found 1']),
    'three columns': (b'zinc\t0\tx\n', ['line 1', 'found 3']),
    'spaces': (b'zinc 0\n', ['line 1', 'spaces instead of tabs']),
    'duplicate label': (b'zinc\t0\ncold\t1\nzinc\t2\n', ['line 3', "duplicate label 'zinc'"]),
    'duplicate index': (b'zinc\t0\ncold\t0\n', ['line 2', "duplicate index 0: 'zinc' and 'cold'"]),
    'a word': (b'zinc\tzero\n', ['line 1', "index 'zero' of 'zinc' is not an integer"]),
    'a fraction': (b'zinc\t0.0\n', ['line 1', "index '0.0'", 'not an integer']),
    'underscores': (b'zinc\t1_0\n', ['line 1', 'not an integer']),
    'a space': (b'zinc\t 0\n', ['line 1', 'not an integer']),
    'negative': (b'zinc\t0\ncold\t-1\n', ['line 2', "index -1 of 'cold' is negative"]),
    'a gap': (b'zinc\t0\ncold\t2\n', ['index 1 is missing', '0 to 1']),
    'counted from 1': (b'zinc\t1\ncold\t2\n', ['index 0 is missing']),
    'swapped': (b'0\tzinc\n', ['line 1', 'columns swapped']),
    'OpenKE': (b'2\nzinc\t0\ncold\t1\n', ['line 1', 'found 1']),
    'empty label': (b'\t0\n', ['line 1', 'column 1 is empty']),
}


@pytest.mark.parametrize('content,words', BAD_MAPS.values(), ids=BAD_MAPS)
def test_malformed_map(content: bytes, words: list[str], tmp_path: Path) -> None:
    path = write(tmp_path / 'entity_to_id.tsv', content)
    with pytest.raises(TriplesFileError) as e:
        read_label_map(path)
    assert str(e.value).startswith(str(path)) and all(w in str(e.value) for w in words), str(
        e.value
    )
    train = write(tmp_path / 'train.tsv', GOOD)
    with pytest.raises(TriplesFileError, match='entity_to_id.tsv'):
        load_files(train, entity_to_id=path)


BAD_MAPPINGS = [
    ({'zinc': 0, 'cold': 2}, 'index 1 is missing'),
    ({'zinc': 0, 'cold': 0}, 'index 1 is missing'),
    ({'zinc': 0, 'cold': '1'}, 'not an integer'),
    ({'zinc': 0, 'cold': True}, 'not an integer'),
    ({'zinc': -1, 'cold': 0}, 'index 1 is missing'),
    ({}, 'is empty'),
]


@pytest.mark.parametrize('labels,words', BAD_MAPPINGS, ids=str)
def test_malformed_mapping(labels: dict, words: str, tmp_path: Path) -> None:
    with pytest.raises(TriplesFileError, match=f'entity_to_id: .*{words}'):
        load_files(write(tmp_path / 'train.tsv', GOOD), entity_to_id=labels)


# --- data sets from files -------------------------------------------------------------------------


def test_same_as_pykeen(nations: Dataset, tmp_path: Path) -> None:
    "A shuffled file of Nations gives PyKEEN's own factory, ids included."
    triples = nations.training.label_triples(nations.training.mapped_triples)
    np.random.RandomState(0).shuffle(triples)
    path = write(tmp_path / 'train.tsv', '\n'.join('\t'.join(t) for t in triples))
    found = load_files(path).training
    assert found == nations.training and triples_fingerprint(found) == triples_fingerprint(
        nations.training
    )


def test_splits_share_label_maps(tmp_path: Path) -> None:
    train = write(tmp_path / 'a', b'a\tr\tb\nb\ts\tc\n')
    test, valid = write(tmp_path / 'b', b'c\ts\ta\nb\tr\tc\n'), write(tmp_path / 'c', b'c\tr\tb\n')
    data = load_files(train, test, valid, inverse=True)
    assert data.testing.mapped_triples.tolist() == [[1, 0, 2], [2, 1, 0]]
    assert data.validation.mapped_triples.tolist() == [[2, 0, 1]]
    assert data.training.create_inverse_triples and not data.testing.create_inverse_triples
    assert load_files(train).testing is None and load_files(train, valid=valid).testing is None
    relations = write(tmp_path / 'r', 's\t0\nr\t1')
    given = load_files(
        train, test, entity_to_id={'c': 0, 'b': 1, 'a': 2, 'z': 3}, relation_to_id=relations
    )
    assert (
        given.testing.mapped_triples.tolist() == [[0, 0, 2], [1, 1, 0]] and given.num_entities == 4
    )


def test_inverse_suffix_is_a_label(tmp_path: Path) -> None:
    "PyKEEN by default throws such triples away."
    data = load_files(write(tmp_path / 't', b'a\tr\tb\nb\tr_inverse\ta\n'))
    assert data.training.num_triples == 2 and set(data.relation_to_id) == {'r', 'r_inverse'}


def test_duplicates_are_counted(tmp_path: Path) -> None:
    with pytest.warns(
        UserWarning, match='train.tsv: 2 of 4 lines repeat an earlier triple'
    ) as caught:
        data = load_files(write(tmp_path / 'train.tsv', GOOD * 3 + b'a\tb\tc\n'))
    assert data.training.num_triples == 2 and len(caught) == 1


BAD_SPLITS = {
    'unseen head': (
        b'zinc\ttreats\tcold\nsage\ttreats\tcold\n',
        ['line 2', "entity 'sage'", '1 of 2 triples', "unseen='drop'"],
    ),
    'unseen tail': (
        b'zinc\ttreats\tflu\nzinc\ttreats\tcold\n',
        ['line 1', "entity 'flu'", '1 of 2'],
    ),
    'unseen relation': (
        b'zinc\tcures\tcold\ncold\ttreats\tzinc\n',
        ['line 1', "relation 'cures'", '1 of 2'],
    ),
    'below a header': (
        b'h\tr\tt\ncold\ttreats\tx\ncold\ttreats\ty\nzinc\ttreats\tcold\n',
        ['line 2', "'x'", '2 of 3'],
    ),
    'swapped columns': (b'zinc\tcold\ttreats\n', ['line 1', "relation 'cold'", 'columns swapped']),
    'malformed': (b'zinc\ttreats\n', ['line 1', 'found 2']),
    'empty': (b'', ['the file is empty']),
}


@pytest.mark.parametrize('split', ['test', 'valid'])
@pytest.mark.parametrize('content,words', BAD_SPLITS.values(), ids=BAD_SPLITS)
def test_malformed_split(content: bytes, words: list[str], split: str, tmp_path: Path) -> None:
    train, path = write(tmp_path / 'train.tsv', GOOD), write(tmp_path / f'{split}.tsv', content)
    with pytest.raises(TriplesFileError) as e:
        load_files(train, **{split: path})
    assert str(e.value).startswith(str(path)) and all(w in str(e.value) for w in words), str(
        e.value
    )


def test_drop(tmp_path: Path) -> None:
    train = write(tmp_path / 'train.tsv', GOOD)
    test = write(tmp_path / 'test.tsv', b'zinc\ttreats\tflu\ncold\ttreats\tzinc\n')
    with pytest.warns(UserWarning, match='test.tsv: left out 1 of 2 triples'):
        data = load_files(train, test, unseen='drop')
    assert to_labels(data.testing.mapped_triples, data.training) == [('cold', 'treats', 'zinc')]
    with pytest.raises(TriplesFileError, match='2 of 2'):
        load_files(train, write(test, b'x\ttreats\ty\n' * 2), unseen='drop')
    with pytest.raises(ValueError, match="'error' or 'drop', not 'ignore'"):
        load_files(train, unseen='ignore')


def test_training_labels_not_in_map(tmp_path: Path) -> None:
    train = write(tmp_path / 'train.tsv', GOOD + b'sage\ttreats\tcold\n')
    with pytest.raises(
        TriplesFileError, match="train.tsv: line 2: entity 'sage' is not in the label map .1 of 2"
    ):
        load_files(train, entity_to_id={'zinc': 0, 'cold': 1}, unseen='drop')
    with pytest.raises(TriplesFileError, match="line 1: relation 'treats' is not in the label map"):
        load_files(train, relation_to_id={'cures': 0})


def test_fb15k237(shared_data: Path) -> None:
    folder = shared_data / 'fb15k237'
    with pytest.raises(
        TriplesFileError,
        match=r"test.txt: line \d+: entity '/m/\w+' is unknown .*28 of 20466 triples",
    ):
        load_dataset(folder)
    with pytest.warns(UserWarning, match='left out') as caught:
        data = load_dataset(folder, unseen='drop')
    assert [any(w in str(c.message) for c in caught) for w in ('28 of 20466', '9 of 17535')] == [
        True,
        True,
    ]
    assert [f.num_triples for f in (data.training, data.testing, data.validation)] == [
        272_115,
        20_438,
        17_526,
    ]
    assert data.num_relations == 237
    start = time.process_time()
    assert len(read_triples(folder / 'train.txt')) == 272_115
    assert time.process_time() - start < 2


# --- data sets by name or folder ------------------------------------------------------------------


def test_load_dataset(nations: Dataset, tmp_path: Path) -> None:
    assert load_dataset(nations) is nations and load_dataset('Nations') == nations
    assert (
        load_dataset('nations', inverse=True).create_inverse_triples
        and not nations.create_inverse_triples
    )
    write(tmp_path / 'train.txt', GOOD), write(tmp_path / 'test.tsv.gz', gzip.compress(GOOD))
    write(tmp_path / 'notes.md', 'not a split')
    for source in (tmp_path, str(tmp_path)):
        assert load_dataset(source).testing.num_triples == 1
    assert (
        load_dataset(
            tmp_path, inverse=True, entity_to_id={'cold': 0, 'zinc': 1, 'x': 2}
        ).num_entities
        == 3
    )


def test_load_dataset_errors(nations: Dataset, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="'FB15k-238' is neither a folder nor .*nearest: 'fb15k237'"
    ):
        load_dataset('FB15k-238')
    with pytest.raises(ValueError, match='neither a folder'):
        load_dataset(tmp_path / 'none')
    with pytest.raises(ValueError, match="'' is neither"):
        load_dataset('')
    with pytest.raises(ValueError, match='use load_files'):
        load_dataset(write(tmp_path / 'graph.tsv', GOOD))
    with pytest.raises(TriplesFileError, match='no train.txt or train.tsv .there is graph.tsv'):
        load_dataset(tmp_path)
    write(tmp_path / 'train.tsv', GOOD), write(tmp_path / 'train.txt', GOOD)
    with pytest.raises(TriplesFileError, match='both train.txt and train.tsv'):
        load_dataset(tmp_path)
    with pytest.raises(TypeError, match='not int'):
        load_dataset(7)
    with pytest.raises(TypeError, match='unseen: only for a folder'):
        load_dataset('nations', unseen='drop')
    with pytest.raises(TypeError, match='unseen: only for a folder'):
        load_dataset(nations, unseen='drop')
    with pytest.raises(ValueError, match='made without inverse triples'):
        load_dataset(nations, inverse=True)


def test_download_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    class Offline(EagerDataset):
        @property
        def training(self) -> None:
            raise OSError('no network')

        def __init__(self, create_inverse_triples: bool = False) -> None:
            pass

    monkeypatch.setattr(
        'tracin_nb.graph.triples.dataset_resolver.make', lambda name, **kwargs: Offline(**kwargs)
    )
    with pytest.raises(
        TriplesFileError, match="could not fetch the data set 'nations': no network"
    ):
        load_dataset('nations')


# --- labels and ids -------------------------------------------------------------------------------


def test_ids_and_labels(nations: Dataset) -> None:
    f = nations.training
    ids = f.mapped_triples[[5, 0, 5]]
    labels = to_labels(ids, f)
    assert labels[0] == labels[2] and all(type(x) is str for t in labels for x in t)
    frame = pd.DataFrame(labels, columns=['head', 'relation', 'tail'])[
        ['tail', 'head', 'relation']
    ].assign(other=1)
    lists = (
        labels,
        tuple(labels),
        [list(x) for x in labels],
        iter(labels),
        ids.tolist(),
        list(ids),
        iter(ids.numpy()),
    )
    arrays = (
        np.array(labels),
        np.array(labels, dtype=object),
        ids.numpy(),
        ids.numpy().astype(np.uint8),
        ids,
        ids.int(),
    )
    frames = (
        frame,
        frame.astype('category'),
        pd.DataFrame(ids.numpy(), columns=['head', 'relation', 'tail']),
    )
    for same in lists + arrays + frames:
        found = to_ids(same, f)
        assert torch.equal(found, ids) and found.dtype == torch.long and found.is_contiguous()
    for one in (
        labels[1],
        list(labels[1]),
        np.array(labels[1]),
        ids[1],
        ids[1].tolist(),
        tuple(ids[1]),
    ):
        assert torch.equal(to_ids(one, f), ids[1:2])
    assert to_labels(ids[:0], f) == [] and to_labels(ids[1], f) == labels[1:2]


@pytest.mark.parametrize('inverse', [False, True])
def test_inverse_triples_keep_relation_ids(inverse: bool) -> None:
    f = load_dataset('nations', inverse=inverse).training
    assert f.num_relations == (110 if inverse else 55) and len(f.relation_to_id) == 55
    labels = to_labels(f.mapped_triples, f)
    assert labels == [tuple(x) for x in f.label_triples(f.mapped_triples).tolist()]
    assert torch.equal(to_ids(labels, f), f.mapped_triples)
    with pytest.raises(
        ValueError, match='row 1, relation: id 55 is out of range; relation ids go from 0 to 54'
    ) as e:
        to_ids([[0, 54, 1], [0, 55, 1]], f)
    assert ('inverse relations have no ids' in str(e.value)) is inverse


BAD_TRIPLES = {
    'nothing': ([], ValueError, ['there are no triples']),
    'an empty tensor': (torch.empty(0, 3, dtype=torch.long), ValueError, ['there are no triples']),
    'an empty frame': (
        pd.DataFrame(columns=['head', 'relation', 'tail']),
        ValueError,
        ['there are no triples'],
    ),
    'None': (None, TypeError, ['(head, relation, tail)', 'None']),
    'a string': ('usa treaties uk', TypeError, ['(head, relation, tail)', 'usa treaties uk']),
    'bytes': (b'usa', TypeError, ['(head, relation, tail)']),
    'a mapping': ({'head': 'usa'}, TypeError, ['(head, relation, tail)']),
    'a number': (7, TypeError, ['(head, relation, tail)', '7']),
    'two labels': (
        ('usa', 'treaties'),
        ValueError,
        ['row 0', 'three parts', "['usa', 'treaties']"],
    ),
    'four labels': (('usa', 'treaties', 'uk', 'x'), ValueError, ['row 0', 'three parts']),
    'a short row': (
        [('usa', 'treaties', 'uk'), ('usa', 'treaties')],
        ValueError,
        ['row 1', 'three parts'],
    ),
    'a string among rows': (
        [('usa', 'treaties', 'uk'), 'uk'],
        ValueError,
        ['row 1', 'three parts', "'uk'"],
    ),
    'nested too deep': ([[[0, 1, 2]]], ValueError, ['row 0', 'three parts']),
    'a cell that is a list': ([[[0], 1, 2]], TypeError, ['row 0, head', '[0]', 'neither a label']),
    'a wrong shape': (torch.zeros(2, 4, dtype=torch.long), ValueError, ['[3] or [M, 3]', '[2, 4]']),
    'three axes': (np.zeros((1, 1, 3), dtype=int), ValueError, ['[3] or [M, 3]', '[1, 1, 3]']),
    'a 0-d tensor': (torch.tensor(3), ValueError, ['[3] or [M, 3]', '[]']),
    'a float tensor': (torch.zeros(1, 3), TypeError, ['row 0, head', '0.0', 'neither a label']),
    'a bool tensor': (
        torch.zeros(3, dtype=torch.bool),
        TypeError,
        ['row 0, head', 'False', 'neither a label'],
    ),
    'a float array': (np.array([[0, 1.5, 2]]), TypeError, ['neither a label']),
    'a byte array': (
        np.array([[b'usa', b'treaties', b'uk']]),
        TypeError,
        ['row 0, head', "b'usa'"],
    ),
    'a float in a list': (
        [(0, 1, 2), (0, 1, 2.0)],
        TypeError,
        ['row 1, tail', '2.0', 'neither a label'],
    ),
    'None in a list': (
        [('usa', None, 'uk')],
        TypeError,
        ['row 0, relation', 'None', 'neither a label'],
    ),
    'mixed in a row': ([('usa', 0, 'uk')], TypeError, ['row 0, relation', 'mixed']),
    'mixed rows': ([('usa', 'treaties', 'uk'), (0, 0, 1)], TypeError, ['row 1, head', 'mixed']),
    'NaN in a frame': (
        pd.DataFrame({'head': ['usa', None], 'relation': 'treaties', 'tail': 'uk'}),
        TypeError,
        ['row 1, head', 'neither a label'],
    ),
    'a frame without relation': (
        pd.DataFrame({'head': ['usa'], 'tail': ['uk']}),
        ValueError,
        ['lacks relation', "['head', 'tail']"],
    ),
    'a negative id': ([(0, 0, 1), (0, 0, -1)], ValueError, ['row 1, tail', 'id -1', '0 to 13']),
    'a head id too large': (
        torch.tensor([14, 0, 1]),
        ValueError,
        ['row 0, head', 'id 14', 'entity ids go from 0 to 13'],
    ),
    'a relation id too large': (
        np.array([[0, 55, 1]]),
        ValueError,
        ['row 0, relation', 'id 55', 'relation ids go from 0 to 54'],
    ),
    'a huge id': ([(0, 0, 2**70)], ValueError, ['row 0, tail', str(2**70)]),
    'an unsigned id': (
        np.array([[0, 0, 2**64 - 1]], dtype=np.uint64),
        ValueError,
        ['row 0, tail', str(2**64 - 1)],
    ),
    'an unknown head': (
        [('usaa', 'treaties', 'uk')],
        UnknownLabelError,
        ['row 0', "unknown entity 'usaa'", "nearest: 'usa'"],
    ),
    'an unknown tail': (
        [('usa', 'treaties', 'uk'), ('usa', 'treaties', 'Izrael')],
        UnknownLabelError,
        ['row 1', "unknown entity 'Izrael'", "nearest: 'israel'"],
    ),
    'another case': (('USA', 'treaties', 'uk'), UnknownLabelError, ["'USA'", "nearest: 'usa'"]),
    'a space': (('usa ', 'treaties', 'uk'), UnknownLabelError, ["'usa '", "nearest: 'usa'"]),
    'an unknown relation': (
        ('usa', 'treatise', 'uk'),
        UnknownLabelError,
        ["unknown relation 'treatise'", "'treaties'"],
    ),
    'an empty label': (('', 'treaties', 'uk'), UnknownLabelError, ["unknown entity ''"]),
    'nothing near': (
        ('zzzzzzzz', 'treaties', 'uk'),
        UnknownLabelError,
        ["unknown entity 'zzzzzzzz'"],
    ),
    'a long label': (('u' * 10**6, 'treaties', 'uk'), UnknownLabelError, ['unknown entity', '...']),
    'relation first': (
        ('treaties', 'usa', 'uk'),
        UnknownLabelError,
        ["entity 'treaties'", 'it is a relation', 'columns swapped'],
    ),
    'relation last': (
        ('usa', 'uk', 'treaties'),
        UnknownLabelError,
        ["relation 'uk'", 'it is an entity', 'columns swapped'],
    ),
}


@pytest.mark.parametrize('triples,error,words', BAD_TRIPLES.values(), ids=BAD_TRIPLES)
def test_malformed_triples(triples: Any, error: type, words: list[str], nations: Dataset) -> None:
    with pytest.raises(error) as e:
        to_ids(triples, nations.training)
    assert type(e.value) is error and all(w in str(e.value) for w in words), str(e.value)
    assert len(str(e.value)) < 300


def test_unknown_label_tells_more(nations: Dataset) -> None:
    with pytest.raises(UnknownLabelError) as e:
        to_ids([('usa', 'treaties', 'uk'), ('usa', 'treatise', 'uk')], nations.training)
    assert (e.value.label, e.value.kind, e.value.row) == ('treatise', 'relation', 1)
    assert e.value.nearest[0] == 'treaties' and len(e.value.nearest) <= 3
    again = pickle.loads(
        pickle.dumps(e.value)
    )  # what a worker process raises reaches its parent whole
    assert str(again) == str(e.value) and again.nearest == e.value.nearest


def test_factory_without_labels(nations: Dataset) -> None:
    core = nations.training.to_core_triples_factory()
    assert torch.equal(to_ids([0, 1, 2], core), torch.tensor([[0, 1, 2]]))
    with pytest.raises(
        ValueError, match='CoreTriplesFactory has no labels: give the triples as ids'
    ):
        to_ids(('usa', 'treaties', 'uk'), core)
    with pytest.raises(ValueError, match='CoreTriplesFactory has no labels'):
        to_labels([0, 1, 2], core)
    assert triples_fingerprint(core) != triples_fingerprint(nations.training)


def test_nearest_among_a_million_and_a_half() -> None:
    "One typing error at any place is mended, in less than a second of CPU time."
    rng = random.Random(0)
    sources = ['MESH:D', 'UniProt:P', 'CHEBI:', 'GO:', 'Some Long Name Of ']
    known = {f'{rng.choice(sources)}{i:07d}': i for i in range(1_450_000)}
    targets = rng.sample(list(known), 8)
    for i, target in enumerate(targets):
        at = len(target) * i // 8
        typed = target[:at] + '_' + target[at + (i % 2) :]
        start = time.process_time()
        near = nearest_labels(typed, known)
        assert time.process_time() - start < 1
        assert target in near, (typed, target, near)
    assert (
        nearest_labels('mesh:d', known, k=3) is not None
        and nearest_labels('\u4e1c\u4eac', known) == []
    )


# --- selection and fingerprint --------------------------------------------------------------------


def test_select(nations: Dataset) -> None:
    f = nations.training
    pair = [f.entity_to_id['usa'], f.relation_to_id['treaties']]
    by_hand = [t for t in f.mapped_triples.tolist() if t[:2] == pair]
    assert by_hand and select(f, head='usa', relation='treaties').tolist() == by_hand
    assert select(f, head=pair[0], relation=pair[1:]).tolist() == by_hand
    assert len(select(f, tail=['uk', 'usa'])) == len(select(f, tail='uk')) + len(
        select(f, tail='usa')
    )
    assert torch.equal(select(f), f.mapped_triples)
    usa = torch.tensor(f.entity_to_id['usa'])
    for x in (usa, usa[None], usa[None].numpy(), usa.item()):
        assert torch.equal(select(f, head=x), select(f, head='usa'))
    for rows in (3, [3], torch.tensor([3]), np.array([3]), slice(3, 4), torch.arange(1592) == 3):
        assert torch.equal(select(f, indices=rows), f.mapped_triples[3:4])
    assert select(f, indices=[3, 1, 3]).tolist() == f.mapped_triples[[3, 1, 3]].tolist()
    assert select(f, indices=[]).shape == (0, 3) and select(f, head=[]).shape == (0, 3)
    assert select(f, indices=slice(0, 100), relation='treaties').tolist() == [
        t for t in f.mapped_triples[:100].tolist() if t[1] == f.relation_to_id['treaties']
    ]


BAD_SELECTIONS = [
    (dict(head='usaa'), UnknownLabelError, "unknown entity 'usaa'; nearest: 'usa'"),
    (dict(relation='usa'), UnknownLabelError, 'it is an entity'),
    (dict(tail=['uk', 'ukk']), UnknownLabelError, "'ukk'"),
    (dict(head=99), ValueError, 'id 99 is out of range'),
    (dict(relation=[0, -1]), ValueError, 'row 1, relation: id -1'),
    (dict(head=['usa', 1]), TypeError, 'neither|mixed'),
    (dict(head=1.5), TypeError, 'row 0, head: 1.5 is neither a label'),
    (dict(tail=None, head=[None]), TypeError, 'row 0, head: None is neither a label'),
    (dict(indices=[[0, 1, 2]]), TypeError, 'indices are integers'),
    (dict(indices='usa'), TypeError, "indices are integers, .* not 'usa'"),
    (dict(indices=2**70), TypeError, 'indices are integers'),
    (dict(indices=1592), ValueError, 'index 1592 is out of range; .* 0 to 1591'),
    (dict(indices=[0, -1]), ValueError, 'index -1'),
    (dict(indices=[0.5]), TypeError, 'indices are integers'),
    (dict(indices=[True, False]), TypeError, '1592 booleans'),
]


@pytest.mark.parametrize('conditions,error,words', BAD_SELECTIONS, ids=str)
def test_malformed_selection(conditions: dict, error: type, words: str, nations: Dataset) -> None:
    with pytest.raises(error, match=words):
        select(nations.training, **conditions)


def test_fingerprint(tmp_path: Path) -> None:
    lines = [b'a\tr\tb', b'b\ts\tc', b'c\tr\ta']
    prints = [
        triples_fingerprint(quiet(write(tmp_path / 't', b'\n'.join(x))).training)
        for x in (
            lines,
            lines[::-1],
            lines + lines[:1],
            lines[:2],
            [*lines[:2], b'c\ts\ta'],
            [*lines[:2], b'd\tr\ta'],
            [x.replace(b's', b'z') for x in lines],
        )
    ]
    assert prints[0] == prints[1] == prints[2] and len(set(prints)) == 5
    assert len(prints[0]) == 64 and int(prints[0], 16)
    f = TriplesFactory(np.array([[0, 0, 1]]), {'a': 0, 'b': 1}, {'r': 0})
    g = TriplesFactory(np.array([[0, 0, 1]]), {'b': 1, 'a': 0}, {'r': 0})
    assert triples_fingerprint(f) == triples_fingerprint(g)
    assert triples_fingerprint(f) != triples_fingerprint(
        CoreTriplesFactory(np.array([[0, 0, 1]]), 3, 1)
    )
