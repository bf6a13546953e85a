"""The table of 14 columns, from the command line."""

import csv
import json

import pandas as pd
import pytest
from click.testing import CliRunner

from tracin_nb.app.cli import main
from tracin_nb.influence.tracin import TracIn
from tracin_nb.runs.training import train

COLUMNS = (
    'TestHead TestHead_label TestRel TestRel_label TestTail TestTail_label TrainHead '
    'TrainHead_label TrainRel '
    'TrainRel_label TrainTail TrainTail_label TracInScore SelfInfluence'
).split()
ASK = ('--triple', 'china', 'embassy', 'cuba', '-k', '4', '--format', 'json')


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    return train(
        'nations',
        'DistMult',
        out=tmp_path_factory.mktemp('run') / 'run',
        epochs=1,
        keep_every=1,
        progress=False,
        device='cpu',
        model_kwargs=dict(embedding_dim=8),
    )


def ask(run, *options):
    return CliRunner().invoke(main, ['explain', str(run.folder), *ASK, *map(str, options)])


def test_the_table(run, tmp_path):
    "Numbers are those of `explain`; names, with all that may be in them, stand beside the labels."
    index = run.training.entity_to_id['china']
    (tmp_path / 'nodes.tsv').write_text(f'中国, "the middle"\t{index}\n', encoding='utf-8')
    (tmp_path / 'edges.json').write_text(
        json.dumps({json.dumps(dict(predicate='biolink:hosts')): 'embassy'})
    )
    done = ask(
        run,
        '--csv-output',
        tmp_path / 'new' / 'a.csv',
        '--node-name-dict',
        tmp_path / 'nodes.tsv',
        '--edge-map',
        tmp_path / 'edges.json',
    )
    assert done.exit_code == 0, done.stderr
    with open(tmp_path / 'new' / 'a.csv', newline='', encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == COLUMNS and len(rows) == 8
    named = {(r['TestHead'], r['TestHead_label'], r['TestRel_label']) for r in rows}
    assert named == {('china', '中国, "the middle"', 'hosts')}
    mine = TracIn(run, devices='cpu', progress=False).explain(('china', 'embassy', 'cuba'), 4).frame
    table = pd.read_csv(tmp_path / 'new' / 'a.csv')
    assert table['TracInScore'].tolist() == pytest.approx(mine['influence'].tolist(), rel=1e-6)
    assert table['SelfInfluence'].tolist() == pytest.approx(
        mine['test_self_influence'].tolist(), rel=1e-6
    )
    ours, theirs = mine[['head', 'relation', 'tail']], table[['TrainHead', 'TrainRel', 'TrainTail']]
    assert theirs.values.tolist() == ours.values.tolist()


BAD = [
    ('china\t99', "'99' is not the index"),
    ('a\t0\nb\t0', 'line 2: entity 0 has a name'),
    ('china', 'nodes.tsv'),
    ('a\tb', "'b' is not the index"),
]


@pytest.mark.parametrize('content,said', BAD)
def test_bad_names(run, tmp_path, content, said):
    "One clear error, and the older table stays."
    (tmp_path / 'nodes.tsv').write_text(content + '\n')
    (tmp_path / 'a.csv').write_text('mine')
    done = ask(run, '--csv-output', tmp_path / 'a.csv', '--node-name-dict', tmp_path / 'nodes.tsv')
    assert (
        done.exit_code == 2 and said in done.stderr and (tmp_path / 'a.csv').read_text() == 'mine'
    )


def test_names_without_a_table(run, tmp_path):
    done = ask(run, '--edge-map', tmp_path / 'edges.json')
    assert done.exit_code == 2 and '--csv-output' in done.stderr
