"""Names of entities and relations: read from tables, accepted as input, shown in every output."""

import gzip
import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from click.testing import CliRunner
from click.testing import Result as Outcome

from tracin_nb.answer.formats import influence_table
from tracin_nb.answer.results import Result, read_csv, text_table
from tracin_nb.answer.standing import doubts
from tracin_nb.app.cli import main
from tracin_nb.app.explorer import InfluenceExplorer
from tracin_nb.graph.names import Names, as_names, name_triples, named_frame, names_of, read_names
from tracin_nb.graph.neighbourhoods import Graph, near, path_table, paths
from tracin_nb.graph.triples import (
    AmbiguousNameError,
    TriplesFileError,
    UnknownLabelError,
    load_dataset,
    select,
    to_ids,
)
from tracin_nb.influence.parts import Parts
from tracin_nb.influence.tracin import TracIn, resume
from tracin_nb.runs.run import Run
from tracin_nb.runs.settings import RunError
from tracin_nb.runs.training import train

LABELS = {'MONDO:0004979': 0, 'MESH:D000068877': 1, 'x 1': 2, 'treats': 0}
ASTHMA = {'MONDO:0004979': 'Asthma, allergic'}
TINY = dict(model='DistMult', epochs=2, keep_every=1, progress=False, device='cpu')
TINY |= dict(model_kwargs=dict(embedding_dim=8))
FAST = dict(weighting='sgd', batch_size=2000, progress=False)
QUICK = ('--weighting', 'sgd', '--batch-size', 2000)

# ---- tables

FORMS = {
    'csv': b'id,name\nMONDO:0004979,"Asthma, allergic"\n',
    'tsv': b'id\tname\nMONDO:0004979\tAsthma, allergic\n',
    'other order': b'category,name,CURIE\nDisease,"Asthma, allergic",MONDO:0004979\n',
    'words joined': b'"Node ID","Preferred-Name"\nMONDO:0004979,"Asthma, allergic"\n',
    'label is the name': b'identifier\tlabel\nMONDO:0004979\tAsthma, allergic\n',
    'label is the id': b'label\ttitle\nMONDO:0004979\tAsthma, allergic\n',
    'no header': b'MONDO:0004979\tAsthma, allergic\n',
    'no header, types': b'MONDO:0004979\tAsthma, allergic\tDisease\n',
    'mark and line ends': b'\xef\xbb\xbfid\tname\r\nMONDO:0004979\tAsthma, allergic\r\n\r\n',
    'quoted tsv': b'"id"\t"name"\n"MONDO:0004979"\t"Asthma, allergic"\n',
    'spaces, a line break': b'id,name\nMONDO:0004979,"  Asthma,\n  allergic "\n',
    'two columns of ids': b'id,curie,name\n77,MONDO:0004979,"Asthma, allergic"\n',
    'said twice': b'id,name\n' + b'MONDO:0004979,"Asthma, allergic"\n' * 2,
    'columns for others': b'id,name,note\nMONDO:0004979,"Asthma, allergic","a\nb, ""c"""\n',
}


@pytest.mark.parametrize('form', FORMS)
def test_forms(form: str, tmp_path: Path) -> None:
    "Every form of a table gives the same name."
    (path := tmp_path / 'nodes.txt').write_bytes(FORMS[form])
    assert read_names(path, LABELS).name == ASTHMA
    path = tmp_path / 'nodes.gz'
    path.write_bytes(gzip.compress(FORMS[form]))
    assert read_names(path, LABELS).name == ASTHMA


def test_what_is_kept(tmp_path: Path) -> None:
    "Types, odd characters, relations; rows about others are counted."
    path = tmp_path / 'nodes.tsv'
    path.write_text(
        'type\tname\tid\nDrug\t"Glivec" 格列卫\tMESH:D000068877\n\tNA\tx 1\n\theals\ttreats\n'
        'T\to\tother\nT\t\tnobody\n',
        encoding='utf-8',
    )
    found = read_names(path, LABELS)
    assert found.name == {'MESH:D000068877': '"Glivec" 格列卫', 'x 1': 'NA', 'treats': 'heals'}
    assert found.type == {'MESH:D000068877': 'Drug'} and found.others == 2
    assert repr(found) == 'names of 3 labels, types of 1, and 2 rows about others'


FAULTS = {
    'id,name\nMONDO:4979,Asthma\n': (
        "none of its 1 identifiers, such as 'MONDO:4979', is a label of the graph, such as",
        "nearest to 'MONDO:4979': 'MONDO:0004979'",
    ),
    'Asthma\tMONDO:0004979\n': ('the names are labels: are the columns swapped?',),
    'Asthma\t7\n': ('a table of a name and an index (--node-name-dict)?',),
    'id,name\nx 1,a\nMONDO:0004979,b\nx 1,c\n': ("line 4: 'x 1' has the name 'c', and 'a' before",),
    'id,name,type\nx 1,a,T\nx 1,a,U\n': ("line 3: 'x 1' has the type 'U', and 'T' before",),
    'id,name\nMONDO:0004979,a\nx 1,""\n': (
        "line 3: the name of 'x 1' is empty; rows without a name: 1",
    ),
    'id,name\n"MONDO:0004979","a\nb"\nx 1,\n': ("line 4: the name of 'x 1' is empty",),
    'id\tname\nx 1\ta\nb\n': ('line 3: expected 2 columns separated by tabs, found 1',),
    'id,name\nx 1,a, b\n': ('line 2: expected 2 columns separated by commas, found 3', 'quotes'),
    'id,name\nx 1,"a\n': ('line 2',),
    'id,type\nx 1,T\n': ("line 1: the header ['id', 'type'] has no column of names; known words",),
    'a,b,c,d\n1,2,3,4\n': ('line 1: 4 columns without a header',),
    'id,name\n': ('there is nothing below the header',),
    '': ('the file is empty',),
}


@pytest.mark.parametrize('content', FAULTS)
def test_faults(content: str, tmp_path: Path) -> None:
    "What names nothing, or twice, or cannot be read, is an error with file and line."
    (path := tmp_path / 'nodes.csv').write_text(content)
    with pytest.raises(TriplesFileError) as e:
        read_names(path, LABELS)
    assert str(e.value).startswith(f'{path}: ') and all(x in str(e.value) for x in FAULTS[content])


def test_no_utf8(tmp_path: Path) -> None:
    "The line is named, wherever it is."
    for bad in (b'id,n\xfcme\nx 1,a\n', b'id,name\nx 1,a\nMONDO:0004979,\xfc\n'):
        (path := tmp_path / 'nodes.csv').write_bytes(bad)
        with pytest.raises(
            TriplesFileError, match=f'line {bad[: bad.index(0xFC)].count(10) + 1}: not'
        ):
            read_names(path, LABELS)
    with pytest.raises(TriplesFileError, match='no such file'):
        read_names(tmp_path / 'none.csv', LABELS)


# ---- a graph with names

NAMES = {
    'china': 'China',
    'cuba': 'Cuba, the island',
    'brazil': 'Big country',
    'ussr': 'big country',
    'uk': 'usa',  # a label of another
    'embassy': 'has embassy in',
}
TYPES = {'china': 'Country', 'brazil': 'Country', 'ussr': 'Union'}


@pytest.fixture(scope='module')
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "The names as a file."
    path = tmp_path_factory.mktemp('names') / 'nodes.tsv'
    rows = (f'{name}\t{label}\t{TYPES.get(label, "")}\n' for label, name in NAMES.items())
    path.write_text('name\tid\ttype\n' + ''.join(rows), encoding='utf-8')
    return path


@pytest.fixture(scope='module')
def run(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train('nations', out=tmp_path_factory.mktemp('run') / 'run', names=table, **TINY)


@pytest.fixture(scope='module')
def tracin(run: Run) -> TracIn:
    return TracIn(run, **FAST)


@pytest.fixture(scope='module')
def result(tracin: TracIn) -> Result:
    return tracin.explain(('CHINA', 'has embassy in', 'Cuba, the island'), k=4)


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    plt.close('all')


def test_input(run: Run) -> None:
    "A name is accepted wherever a label is, and a label wins over a name."
    training = run.training
    ids = to_ids(('china', 'embassy', 'cuba'), training)
    for triple in (
        ('CHINA', 'has embassy in', 'cuba,  the island'),
        ('China [china]', 'embassy', 'Cuba, the island [cuba]'),
    ):
        assert (to_ids(triple, training) == ids).all()
        assert Graph(training).ids(triple) == tuple(ids[0].tolist())
    assert to_ids(('usa', 'embassy', 'Big country'), training)[0].tolist() == [
        training.entity_to_id['usa'],
        training.relation_to_id['embassy'],
        training.entity_to_id['brazil'],
    ]
    for factory in (training, run.testing, run.validation):
        found = select(factory, relation='Has embassy in')
        assert len(found) and (found == select(factory, relation='embassy')).all()
    assert len(near(Graph(training), ('China', 'embassy', 'cuba'), hops=1).rows[0])


def test_input_refused(run: Run) -> None:
    "A name of several is an error with their labels and types, an unknown one has the nearest."
    with pytest.raises(AmbiguousNameError) as e:
        to_ids([('china', 'embassy', 'cuba'), ('BIG COUNTRY', 'embassy', 'cuba')], run.training)
    assert str(e.value) == (
        "row 1: 'BIG COUNTRY' is the name of 2 entities, give one by its label: brazil (Country), "
        'ussr (Union)'
    )
    assert e.value.nearest == ['brazil', 'ussr'] and (e.value.row, e.value.kind) == (1, 'entity')
    for unknown, near_it in (('Chnia', 'China [china]'), ('egipt', "'egypt'")):
        with pytest.raises(UnknownLabelError, match=f'unknown entity {unknown!r}; nearest: ') as e:
            to_ids(('china', 'embassy', unknown), run.training)
        assert near_it in str(e.value)
    with pytest.raises(UnknownLabelError, match='unknown relation'):
        select(run.training, relation='China')


def test_other_sources(run: Run) -> None:
    "Frames, mappings and `Names` do as well as files; other things are refused."
    frame = pd.DataFrame(dict(node=['china', 'x'], title=['C', 'X'], kind=['T', None]))
    assert as_names(frame, run.training) == Names({'china': 'C'}, {'china': 'T'})
    other = run.with_names({'china': 'Middle'})
    assert other.names.name == {'china': 'Middle'} and run.names.name == NAMES
    assert other.with_names(None).names is None and names_of(other.testing) == other.names
    assert TracIn(run, names=frame, progress=False).run.names.name == {'china': 'C'}
    for bad, said in (
        ({'chine': 'C'}, "nearest to 'chine': 'china'"),
        (Names({'chine': 'C'}), 'is a label of the graph'),
        (frame[['node']], 'are not known; expected id and name'),
        (frame.assign(title=['', 'X']), "names: row 0: the name of 'china' is empty"),
    ):
        with pytest.raises(ValueError, match=said):
            run.with_names(bad)


def test_kept(run: Run, table: Path, tmp_path: Path) -> None:
    "The run's folder has the names, listed with their digest, and opens with them."
    facts = json.loads((run.folder / 'run.json').read_text())
    assert facts['files']['names']['file'] == 'names.tsv'
    back = Run.open(run.folder)
    assert back.names == run.names == read_names(table, dict.fromkeys(NAMES))
    assert back.names.type == TYPES and names_of(back.testing) == back.names
    again = dict(out=run.folder, resume=True, **TINY)
    assert train('nations', **again).names == run.names
    with pytest.raises(RunError, match='other settings: names'):
        train('nations', names={'china': 'C'}, **again)
    copied = tmp_path / 'run'
    copied.mkdir()
    for path in run.folder.iterdir():
        (copied / path.name).write_bytes(path.read_bytes())
    (copied / 'names.tsv').write_text('id\tname\ttype\n')
    with pytest.raises(RunError, match=r'names\.tsv is damaged'):
        Run.open(copied)


def test_built_in() -> None:
    "DrugMechDB knows its names, whoever loads it."
    data = load_dataset('drugmechdb')
    found = names_of(data.training)
    assert found.shown('MESH:D000068877') == 'imatinib [MESH:D000068877]'
    assert len(found) == 5128 and found.type['MESH:D000068877'] == 'Drug'
    assert names_of(data.validation) == names_of(data.testing) == found
    with pytest.raises(AmbiguousNameError, match=r'name of \d+ entities, give one .* \(Protein\)'):
        to_ids(('imatinib', 'indication', 'DNA gyrase subunit A'), data.training)


# ---- results

SHOWN = 'China [china]  has embassy in [embassy]  Cuba, the island [cuba]'


def test_frames(result: Result, run: Run) -> None:
    "Names and types stand in columns of their own; the numbers are those without names."
    frame, asked = result.to_frame(), result.tests.iloc[0]
    assert asked['test_head_name'] == 'China' and asked['test_tail_type'] == ''
    assert (frame['test_relation_name'] == 'has embassy in').all()
    assert frame['head_name'].tolist() == [NAMES.get(x, '') for x in frame['head']]
    assert frame['tail_type'].tolist() == [TYPES.get(x, '') for x in frame['tail']]
    plain = TracIn(run.with_names(None), **FAST).explain(('china', 'embassy', 'cuba'), k=4)
    assert not [name for name in plain.frame if name.endswith(('_name', '_type'))]
    pd.testing.assert_frame_equal(plain.frame, named_frame(frame, None))
    pd.testing.assert_frame_equal(plain.with_names(run.names).frame, frame)


def test_texts(result: Result, tracin: TracIn) -> None:
    "A label stands behind its name in texts, and beneath it in HTML."
    for text in (text_table(result), repr(result)):
        assert SHOWN.replace('  ', ' ') in ' '.join(text.split())
    assert 'China [china]' in text_table(tracin.self_influence(200))
    page = result._repr_html_()
    assert 'China <i>has embassy in</i> Cuba, the island' in page
    assert any(f'<small>{x}' in page for x in result.frame['head'])
    ax = result.plot()
    assert ax.get_title().startswith('China  has embassy in  Cuba, the island\n')
    ticks = [x.get_text() for x in ax.get_yticklabels()]
    assert all('[' not in x or 'ig country' in x or 'usa' in x for x in ticks)
    assert any(name in x for x in ticks for name in NAMES.values())


def test_odd_names(run: Run) -> None:
    "Names cannot break a page, and long ones are cut."
    odd = {'china': '<b>&"' + 'x' * 200, 'cuba': '中国\u202e', 'embassy': '|'}
    found = TracIn(run, names=odd, **FAST).explain(('china', 'embassy', 'cuba'), k=3)
    page = found._repr_html_()
    assert '<b>&"' not in page and '&lt;b&gt;&amp;&quot;xxx' in page and '\u202e' not in page
    assert max(map(len, text_table(found).split('\n')[:8])) < 260 and found.plot()


def test_round_trips(result: Result, tmp_path: Path) -> None:
    "Saved results keep their names, and need no run for them."
    result.save(tmp_path / 'saved')
    back = Result.load(tmp_path / 'saved')
    pd.testing.assert_frame_equal(back.frame, result.frame)
    assert repr(back) == repr(result) and back._repr_html_() == result._repr_html_()
    assert back[0].by_strength(3).block(0)[0] == SHOWN
    frame = read_csv(tmp_path / 'saved' / 'result.csv')
    assert frame['head_name'].tolist() == result.frame['head_name'].tolist()
    rows = json.loads((tmp_path / 'saved' / 'result.json').read_text())
    assert rows['tests'][0]['test_tail_name'] == 'Cuba, the island'
    assert {'head_name', 'tail_name', 'relation_name', 'head_type'} <= rows['rows'][0].keys()


def test_asked_again(run: Run, tmp_path: Path) -> None:
    "An answer that is there already is told in the names of the one who asks."
    ask = dict(test=('china', 'embassy', 'cuba'), k=2, out=tmp_path / 'out')
    TracIn(run.with_names(None), **FAST).explain(**ask)
    assert TracIn(run, **FAST).explain(**ask).block(0)[0] == SHOWN


def test_finished_by_the_folder_alone(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    "A question that was begun with other names than the run's ends with them."

    def dying(*args: object) -> None:
        raise KeyboardInterrupt

    for i, (names, shown) in enumerate((({'china': 'Middle'}, 'Middle [china]'), (None, 'china'))):
        with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
            m.setattr(Parts, 'write', dying)
            asked = TracIn(run.with_names(names), **FAST)
            asked.explain(('china', 'embassy', 'cuba'), k=2, out=tmp_path / f'{i}')
        found = resume(tmp_path / f'{i}', progress=False)
        assert found.block(0)[0] == f'{shown}  embassy  cuba'


def test_fourteen_columns(result: Result, run: Run) -> None:
    "The columns with names have the run's, and those of the earlier files over them."
    plain = influence_table(result, run.training)
    assert set(plain['TestHead_label']) == {'China'} and set(plain['TestHead']) == {'china'}
    china = run.training.entity_to_id['china']
    other = influence_table(result, run.training, {china: 'C'}, {'embassy': 'e'})
    assert set(other['TestHead_label']) == {'C'} and set(other['TestRel_label']) == {'e'}
    assert set(other['TestTail_label']) == {'Cuba, the island'}


def test_paths(run: Run) -> None:
    "Paths are told in names."
    graph = Graph(run.training)
    found = paths(graph, 'China', 'cuba', 1, 1)
    table = path_table(graph, 'China', found, [1.0] * len(found))
    assert 'China [china] <-has embassy in [embassy]- Cuba, the island [cuba]' in set(table['path'])


def test_doubts(result: Result) -> None:
    "Warnings name what they are about."
    rare = result.tests.iloc[0].to_dict() | dict(tail_count=0)
    said = 'tail Cuba, the island [cuba] is in no training triple: the model never saw it'
    assert said in doubts(rare, {})


# ---- the command line and panels


def ask(*args: object) -> Outcome:
    return CliRunner().invoke(main, [str(x) for x in args])


def test_predictions_go_on(run: Run, tmp_path: Path) -> None:
    "`predict` takes a table of names, and the next command that it tells does as it stands."
    (odd := tmp_path / 'odd.csv').write_text('id,name\nchina,$中国 "x"\n', encoding='utf-8')
    done = ask('predict', run.folder, '$中国 "x"', 'embassy', '--names', odd, '-k', 2)
    assert done.exit_code == 0 and '$中国 "x" [china]  embassy  ?' in done.stdout, done.output
    told = shlex.split(done.stderr.splitlines()[-1].removeprefix('next: tracin '))
    again = ask(*told, '-k', 1, *QUICK)
    assert again.exit_code == 0 and again.stdout.count('score') == 3, again.output


def test_no_triples_for_names(run: Run, tmp_path: Path) -> None:
    "A file of triples is not taken for labels, names and types; a name of the other kind is told."
    (triples := tmp_path / 'triples.tsv').write_text('china\tembassy\tcuba\n')
    with pytest.raises(TriplesFileError, match='is it a file of triples'):
        run.with_names(triples)
    with pytest.raises(UnknownLabelError, match='it is a relation: are the columns swapped'):
        to_ids(('has embassy in', 'embassy', 'cuba'), run.training)


def test_commands(run: Run, table: Path, tmp_path: Path) -> None:
    "Names come by the run or by --names, go in, and come out, in every command."
    triple = ('--triple', 'China', 'has embassy in', 'Cuba, the island')
    done = ask('explain', run.folder, *triple, '-k', 2, *QUICK)
    assert done.exit_code == 0 and SHOWN in done.stdout, done.output
    more = ('--against', 'usa', '--format', 'csv', *QUICK)
    done = ask('explain', run.folder, *triple, '-k', 2, *more)
    assert '"head_name"' in done.stdout and '"Cuba, the island"' in done.stdout
    (middle := tmp_path / 'middle.csv').write_text('id,name\nchina,Middle\n')
    named = ('--names', middle, '--triple', 'middle', 'embassy', 'cuba')
    done = ask('explain', run.folder, *named, '-k', 2, *QUICK)
    assert done.exit_code == 0 and 'Middle [china]  embassy  cuba' in done.stdout
    done = ask('self', run.folder, '--relation', 'Has embassy in', '-k', 2, *QUICK)
    assert done.exit_code == 0 and 'has embassy in [embassy]' in done.stdout
    done = ask('paths', run.folder, *triple, '--max-edges', 2, '-k', 3, *QUICK)
    assert done.exit_code == 0 and 'China [china] <-has embassy in [embassy]- ' in done.stdout
    done = ask('filter', run.folder, *triple, '--n-hops', 1, '--out', tmp_path / 'near.tsv')
    assert done.exit_code == 0 and 'China' not in (tmp_path / 'near.tsv').read_text()
    (lines := tmp_path / 'lines.tsv').write_text('China\thas embassy in\tCuba, the island\n')
    done = ask(
        'batch', run.folder, '--test', lines, '--output-dir', tmp_path / 'b', '-k', 2, *QUICK
    )
    assert done.exit_code == 0, done.output
    rows = json.loads((tmp_path / 'b' / 'batch_tracin_summary.json').read_text())['results']
    assert (rows[0]['head'], rows[0]['relation'], rows[0]['tail']) == ('china', 'embassy', 'cuba')
    found = read_csv(tmp_path / 'b' / rows[0]['files'][0])
    assert set(found['TestHead_label']) == {'China'}


def test_commands_refuse(run: Run, tmp_path: Path) -> None:
    "One line that names what is near, and nothing is done."
    (wrong := tmp_path / 'wrong.csv').write_text('id,name\nchine,China\n')
    for command, *args in (
        ('explain', run.folder, '--max', 1),
        ('train', 'nations', '--out', tmp_path / 'new', '--epochs', 1),
    ):
        done = ask(command, *args, '--names', wrong)
        said = done.stderr.splitlines()[-1]
        assert done.exit_code == 2 and str(wrong) in said and "nearest to 'chine': 'china'" in said
    assert not (tmp_path / 'new').exists()
    done = ask('explain', run.folder, '--triple', 'Chnia', 'embassy', 'cuba')
    assert done.exit_code == 2 and '--triple: unknown entity' in done.stderr
    assert 'China [china]' in done.stderr
    done = ask('explain', run.folder, '--triple', 'china', 'embassy', 'Big Country')
    assert 'brazil (Country), ussr (Union)' in done.stderr


def test_training(table: Path, tmp_path: Path) -> None:
    "A run trained from the command line keeps names."
    done = ask('train', 'nations', '--out', tmp_path / 'run', '--names', table, '--epochs', 1,
               '--model', 'DistMult')  # fmt: skip
    assert done.exit_code == 0 and Run.open(tmp_path / 'run').names.name == NAMES


def test_panel(run: Run) -> None:
    "Names are searched, accepted, and shown."
    panel = InfluenceExplorer(run, batch_size=2000)
    panel.head.field.value = 'chin'
    assert panel.head.field.options[0] == 'China [china]'
    for typed in ('China [china]', 'china', 'CHINA'):
        panel.head.field.value = typed
        assert panel.head.label == 'china'
    panel.head.field.value = 'big country'
    with pytest.raises(ValueError, match="nearest: 'Big country .brazil.', 'big country .ussr.'"):
        panel.head.label
    panel.head.field.value = 'Chnia'
    with pytest.raises(ValueError, match='nearest: .China .china.'):
        panel.head.label
    panel.head.label, panel.relation.label, panel.tail.label = 'china', 'embassy', 'cuba'
    panel.weighting.value = 'sgd'
    question = panel.asked()
    panel.show(question, panel.explain(question))
    assert '<h3>China <i>has embassy in</i> Cuba, the island</h3>' in panel.view.content
    other = InfluenceExplorer(run, names={'china': 'Middle'})
    assert other.named('china') == 'Middle [china]'


def test_no_copy_of_triples(run: Run) -> None:
    "Names cost no second copy of the triples, and hold nothing up that goes by triples."
    named = name_triples(run.training, Names({'china': 'C'}))
    assert named.mapped_triples is run.training.mapped_triples and named == run.training
