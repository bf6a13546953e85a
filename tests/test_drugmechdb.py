"""The data set that comes inside the package: what is in it, and that the script in tools/ makes
it from its sources."""

import gzip
import re
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from pykeen.datasets import Dataset, dataset_resolver, get_dataset
from pykeen.datasets.utils import iter_dataset_classes

from tools.drugmechdb import HEADERS, build
from tracin_nb.evaluation.mechanisms import Mechanisms
from tracin_nb.graph.drugmechdb import DRUGMECHDB, DrugMechDB, mechanisms, names
from tracin_nb.graph.triples import TriplesWarning, load_dataset, load_files, triples_fingerprint

COUNTS = dict(training=14756, validation=233, testing=466)


@pytest.fixture(scope='module')
def data() -> DrugMechDB:
    return DrugMechDB()


def labels(data: Dataset, part: str) -> set[tuple[str, str, str]]:
    "The triples of one part, by label."
    factory = data.factory_dict[part]
    return set(map(tuple, factory.label_triples(factory.mapped_triples).tolist()))


def test_counts(data: DrugMechDB) -> None:
    "As many triples as are stated to PyKEEN; no line of a file was a duplicate or dropped."
    assert {part: factory.num_triples for part, factory in data.factory_dict.items()} == COUNTS
    stated = DrugMechDB.docdata('statistics')
    assert {part: stated[part] for part in COUNTS} == COUNTS
    assert stated['triples'] == sum(COUNTS.values())
    assert (stated['entities'], stated['relations']) == (data.num_entities, data.num_relations)
    for part, name in dict(training='train', validation='valid', testing='test').items():
        assert len(labels(data, part)) == len(lines(DRUGMECHDB / f'{name}.txt.gz')) == COUNTS[part]


def lines(path: Path) -> list[str]:
    "The lines of a gzipped file."
    return gzip.decompress(path.read_bytes()).decode('utf-8').removesuffix('\n').split('\n')


def test_maps(data: DrugMechDB) -> None:
    "The label maps hold what training has, and nothing else; no held-out label is missing there."
    training = labels(data, 'training')
    assert set(data.entity_to_id) == {x for h, _, t in training for x in (h, t)}
    assert set(data.relation_to_id) == {r for _, r, _ in training}
    assert len(set(data.entity_to_id.values())) == data.num_entities
    for part in ('validation', 'testing'):
        factory = data.factory_dict[part]
        assert factory.entity_to_id == data.entity_to_id
        assert factory.relation_to_id == data.relation_to_id


def test_no_leak(data: DrugMechDB) -> None:
    "No training triple joins a held-out pair, either way round, and no pair is held out twice."
    training, valid, test = (labels(data, x) for x in ('training', 'validation', 'testing'))
    assert {r for _, r, _ in valid | test} == {'indication'}
    pairs = [{(h, t) for h, _, t in part} for part in (valid, test)]
    assert not pairs[0] & pairs[1]
    joined = {(h, t) for h, _, t in training} | {(t, h) for h, _, t in training}
    assert not joined & (pairs[0] | pairs[1])


def test_names(data: DrugMechDB) -> None:
    "Every entity has one name and one type, and nothing else has."
    frame = names()
    assert list(frame.columns) == ['id', 'name', 'type']
    assert frame['id'].is_unique and set(frame['id']) == set(data.entity_to_id)
    assert frame.map(lambda x: isinstance(x, str) and bool(x.strip())).all().all()


def test_mechanisms(data: DrugMechDB) -> None:
    """Every indication has a path, every path an indication; all steps are training triples, and
    `Mechanisms` takes the frame as it comes."""
    frame = mechanisms()
    assert list(frame.columns) == ['record', 'drug', 'disease', 'head', 'relation', 'tail']
    assert not frame.duplicated().any()
    steps = set(frame[['head', 'relation', 'tail']].itertuples(index=False, name=None))
    indications = {x for part in COUNTS for x in labels(data, part) if x[1] == 'indication'}
    assert labels(data, 'training') == steps | (labels(data, 'training') & indications)
    assert not steps & indications
    assert set(zip(frame['drug'], frame['disease'])) == {(h, t) for h, _, t in indications}
    found = Mechanisms(frame, data.training)
    assert found.facts == dict(
        paths='DrugMechDB', records=4846, edges=32597, edges_unknown=0, edges_not_in_training=0
    )
    assert all(len(found.rows((h, t))) for h, _, t in data.testing.mapped_triples.tolist())


def test_lazy() -> None:
    "Nothing is read before a triple is asked for."
    data = DrugMechDB()
    assert not data._loaded and DrugMechDB(eager=True)._loaded
    assert repr(data).startswith('DrugMechDB(') and not data._loaded


def test_entry_point(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What pyproject.toml registers is this class, and PyKEEN's ways to a data set take its name
    (test_packaging.py asks what is really installed)."""
    value = 'tracin_nb.graph.drugmechdb:DrugMechDB'
    assert EntryPoint('drugmechdb', value, 'pykeen.datasets').load() is DrugMechDB
    monkeypatch.setattr('pykeen.datasets.utils.PYKEEN_DATASETS', tmp_path)
    monkeypatch.setitem(dataset_resolver.lookup_dict, 'drugmechdb', DrugMechDB)
    for again in range(2):  # the second comes from PyKEEN's cache
        found = get_dataset(dataset='drugmechdb', dataset_kwargs=dict(create_inverse_triples=True))
        assert found.num_relations == 2 * 68 and found.get_normalized_name() == 'drugmechdb'
        assert triples_fingerprint(found.training) == triples_fingerprint(
            load_dataset('DrugMechDB', inverse=True).training
        )
    listed = iter_dataset_classes('drugmechdb', max_triples=16000, use_tqdm=False)
    assert list(listed) == [('drugmechdb', DrugMechDB)]


def test_readme() -> None:
    "The file beside the data states licence and origin, and counts the rows that are there."
    text = (DRUGMECHDB / 'README.md').read_text(encoding='utf-8')
    assert 'CC0 1.0' in text and 'SuLab/DrugMechDB-agentic' in text
    stated = re.findall(r'^\| (\S+\.gz) \| ([\d,]+) \|', text, re.MULTILINE)
    rows = {
        f'{name}.gz': len(lines(DRUGMECHDB / f'{name}.gz')) - bool(header)
        for name, header in HEADERS.items()
    }
    assert {name: int(n.replace(',', '')) for name, n in stated} == rows
    assert {p.name for p in DRUGMECHDB.iterdir()} == {*rows, 'README.md'}
    assert sum(p.stat().st_size for p in DRUGMECHDB.iterdir()) <= 500_000


def test_rebuilt(shared_data: Path, data: DrugMechDB, tmp_path: Path) -> None:
    """The script makes the same bytes from the sources, and what it left out is what the README
    says; the graph is that of the sources."""
    source = shared_data / 'drugmechdb'
    left = {name: counts[1:] for name, counts in build(source, tmp_path).items()}
    assert left == dict.fromkeys(HEADERS, (0, 0)) | {'paths.tsv': (44, 0)}
    for name in HEADERS:
        made, shipped = (d / f'{name}.gz' for d in (tmp_path, DRUGMECHDB))
        assert lines(made) == lines(shipped)
        assert made.read_bytes() == shipped.read_bytes(), f'{name}: another version of zlib?'
    with pytest.warns(TriplesWarning, match='6 pairs of entities differ only by'):
        files = load_files(*(source / f'{name}.txt' for name in ('train', 'test', 'valid')))
    for part, factory in files.factory_dict.items():
        assert torch.equal(factory.mapped_triples, data.factory_dict[part].mapped_triples)
    assert triples_fingerprint(files.training) == triples_fingerprint(data.training)


SMALL = {
    'train.txt': 'd\tindication\ti\nd\tstops\tp\np\tcauses\ti\ne\tstops\tp\nd\tstops\tp\n',
    'valid.txt': 'e\tindication\ti\n',
    'test.txt': 'x\tindication\ti\n',
    'nodes.tsv': 'id\ttype\tname\n'
    'd\tDrug\tD\ne\tDrug\tE\np\tProtein\tP\ni\tDisease\tI\nx\tDrug\tX\n',
    'paths.tsv': 'record\tdrug\tdisease\thead\trelation\ttail\n'
    'one\td\ti\td\tstops\tp\none\td\ti\tp\tcauses\ti\none\td\ti\tp\tcauses\tx\n',
}


def written(folder: Path, **changes: str) -> Path:
    "The small sources in `folder`, some of them changed."
    for name, text in SMALL.items():
        (folder / name).write_text(changes.get(name.split('.')[0], text), encoding='utf-8')
    return folder


def test_left_out(tmp_path: Path) -> None:
    "What a repeated row, an unseen drug and a step that is no triple come to, and by what name."
    counts = build(written(tmp_path), tmp_path / 'out')
    assert counts == {
        'train.txt': (4, 1, 0),
        'valid.txt': (1, 0, 0),
        'test.txt': (0, 0, 1),
        'nodes.tsv': (4, 0, 1),
        'paths.tsv': (2, 0, 1),
    }
    assert lines(tmp_path / 'out/nodes.tsv.gz')[0] == 'id\ttype\tname'


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(test='i\tindication\td\n'), '1 held-out pairs are joined in training'),
        (dict(test='e\tindication\ti\n'), '1 pairs are in validation and in test'),
        (dict(nodes='id\ttype\tname\nd\tDrug\tD\n'), '3 entities have no name: e'),
        (dict(nodes='d\tDrug\tD\n'), 'nodes.tsv: line 1: expected'),
        (dict(valid='e\tindication\n'), 'expected 3 columns'),
    ],
)
def test_refused(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    "What would make the data set wrong; nothing is written."
    with pytest.raises(SystemExit, match=message):
        build(written(tmp_path, **changes), tmp_path / 'out')
    assert not (tmp_path / 'out').exists()
