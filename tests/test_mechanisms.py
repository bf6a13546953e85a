"""Mechanism paths: joins that no label can break, numbers against all orders of ties, and
DrugMechDB's baselines."""

import itertools
from pathlib import Path

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import torch
from pykeen.datasets import Nations
from pykeen.triples import TriplesFactory

from tracin_nb.answer.results import Result
from tracin_nb.evaluation.mechanisms import (
    BASELINES,
    COLUMNS,
    Mechanisms,
    evaluate,
    expected,
    graph_baselines,
    groups,
    mark,
    mechanism_experiment,
    random_places,
    read_paths,
)
from tracin_nb.evaluation.statistics import p_above, p_paired
from tracin_nb.graph.neighbourhoods import Graph, in_tiers, path_tiers
from tracin_nb.graph.triples import TriplesFileError, load_files
from tracin_nb.influence.tracin import TracIn
from tracin_nb.runs.training import train

HEADER = '\t'.join(COLUMNS)


def numbers(score: np.ndarray, truth: np.ndarray, ks: tuple[int, ...] = (1, 3)) -> list[float]:
    "MRR, MAP and recall of one ranking without ties."
    at = np.flatnonzero(truth[np.argsort(-score)]) + 1
    return [1 / at[0], np.mean(np.arange(1, len(at) + 1) / at), *(np.mean(at <= k) for k in ks)]


def written(folder: Path, text: str) -> Path:
    (path := folder / 'paths.tsv').write_text(text, encoding='utf-8')
    return path


# ---- numbers


@pytest.mark.parametrize('seed', range(20))
def test_ties_are_averaged_over_all_orders(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 7))
    score, truth, last = (
        rng.integers(0, 3, n).astype(float),
        rng.random(n) < 0.5,
        rng.random(n) < 0.3,
    )
    truth[rng.integers(n)] = True
    orders = np.array(list(itertools.permutations(range(n)))) / (2 * n)
    for put, shift in ((None, 0), (last, 10)):
        want = np.mean([numbers(score - shift * last + order, truth) for order in orders], axis=0)
        np.testing.assert_allclose(expected(*groups(score, truth, put), (1, 3)), want, rtol=1e-12)


def test_large_groups_agree_with_a_simulation() -> None:
    rng = np.random.default_rng(0)
    score, truth = rng.integers(0, 4, 3000).astype(float), np.zeros(3000, dtype=bool)
    truth[rng.choice(3000, 12, replace=False)] = True
    drawn = [numbers(score + rng.random(3000) / 2, truth, (500,)) for _ in range(2000)]
    error = np.std(drawn, axis=0) / np.sqrt(len(drawn))
    assert (
        np.abs(np.mean(drawn, axis=0) - expected(*groups(score, truth), (500,))) < 5 * error + 1e-12
    ).all()


def test_signed_zeros_are_equal() -> None:
    truth = np.array([True, False])
    assert expected(*groups(np.array([0.0, -0.0]), truth), (1,))[0] == 0.75
    assert expected(*groups(np.array([-0.0, 0.0]), truth), (1,))[0] == 0.75


def test_random_places_cover_all_choices_equally() -> None:
    drawn = random_places(np.random.default_rng(0), 6, 4, 30_000)
    choices, counts = np.unique(drawn, axis=0, return_counts=True)
    assert choices.tolist() == [list(c) for c in itertools.combinations(range(1, 7), 4)]
    np.testing.assert_allclose(counts / 30_000, 1 / 15, atol=0.008)
    assert random_places(np.random.default_rng(0), 3, 3, 2).tolist() == [[1, 2, 3]] * 2
    assert random_places(np.random.default_rng(0), 3, 0, 2).shape == (2, 0)


def test_p_is_never_zero_and_fair() -> None:
    rng = np.random.default_rng(0)
    assert p_above(2.0, np.zeros(9)) == 0.1 and p_above(0.0, np.zeros(9)) == 1
    assert 0 < p_paired(rng.random(50) + 9, rng.random(50), rng, 99) <= 0.02
    assert 0 < p_paired(np.array([9.0, 9.0]), np.array([0.0, 0.0]), rng, 99) <= 1
    assert p_paired(np.ones(1), np.zeros(1), rng, 99) == 1
    fair = [p_paired(*rng.random((2, 30)), rng, 99) for _ in range(200)]
    assert 0.01 <= np.mean(np.array(fair) <= 0.1) <= 0.18


# ---- joins

ODD = [
    'a,b',
    'c',
    'a',
    'b,c',
    'quo"te',
    "it's",
    'NA',
    'nan',
    'ünï',
    ' x',
    'x ',
    '1',
    '01',
    '1.0',
    'a\u2028b',
]


def test_labels_are_matched_exactly(tmp_path: Path) -> None:
    "Commas, quotes, numbers and NA in labels: an edge is matched with itself alone."
    triples = [(a, r, b) for a, b in itertools.permutations(ODD, 2) for r in ('r', 'r,a')]
    graph = TriplesFactory.from_labeled_triples(np.array(triples))
    chosen = [triples[i] for i in np.random.default_rng(0).choice(len(triples), 40, replace=False)]
    lines = ['\t'.join((f'p{i % 3}', 'a,b', 'c', *edge)) for i, edge in enumerate(chosen)]
    mechanisms = Mechanisms(written(tmp_path, '\n'.join([HEADER, *lines])), graph)
    pair = graph.entity_to_id['a,b'], graph.entity_to_id['c']
    assert {tuple(x) for x in graph.triples[mechanisms.rows(pair)]} == set(chosen)
    other = graph.entity_to_id['a'], graph.entity_to_id['b,c']
    assert len(mechanisms.rows(other)) == 0
    frame = pd.DataFrame(triples, columns=['head', 'relation', 'tail'])
    marked = mark(frame.assign(test_head='a,b', test_relation='r', test_tail='c'), mechanisms)
    assert marked['IsGroundTruth'].tolist() == [t in set(chosen) for t in triples]
    records = {edge: f'p{i % 3}' for i, edge in enumerate(chosen)}
    assert marked['On_specific_path'].tolist() == [
        [records[t]] if t in records else [] for t in triples
    ]
    assert not mark(frame.assign(test_head='a', test_relation='r', test_tail='b,c'), mechanisms)[
        'In_path'
    ].any()


def test_ids_in_place_of_labels() -> None:
    data = Nations()
    edges = data.training.mapped_triples[[3, 50]].numpy()
    by_id = pd.DataFrame([('x', 0, 1, *edge) for edge in edges.tolist()], columns=list(COLUMNS))
    assert Mechanisms(by_id, data.training).rows((0, 1)).tolist() == [3, 50]
    label = data.training.entity_id_to_label
    named = pd.DataFrame(
        [('x', label[0], label[1], *edge) for edge in data.training.triples[[3, 50]]],
        columns=['record', 'drug', 'disease', 'head', 'relation', 'tail'],
    )
    assert Mechanisms(named, data.training).rows((0, 1)).tolist() == [3, 50]


@pytest.mark.parametrize(
    'text, message',
    [
        ('', 'paths.tsv: the file is empty'),
        (HEADER, 'nothing below the header in line 1'),
        ('a\tb\tc\td\te\tf\nx\th\tt\ta\tr\tb', 'line 1: expected a header with the columns record'),
        (HEADER + '\nx\th\tt\ta\tr\tb\nx\th\tt\ta\tr', 'line 3: expected 6 columns'),
        (HEADER + '\nx\th\tt\ta\t\tb', 'line 2: column 5 is empty'),
        (
            HEADER + '\nx\th\tt\ta\tr\tb\nx\th\tu\ta\tr\tb',
            "line 3: record 'x' is about ('h', 'u') here",
        ),
    ],
)
def test_malformed_files(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(TriplesFileError) as error:
        read_paths(written(tmp_path, text))
    assert message in str(error.value) and 'paths.tsv' in str(error.value)


def test_unknown_labels_name_file_and_line(tmp_path: Path) -> None:
    graph = TriplesFactory.from_labeled_triples(np.array([['a', 'r', 'b'], ['b', 'r', 'c']]))
    path = written(tmp_path, f'{HEADER}\nx\ta\tc\ta\tr\tb\nx\ta\tc\tb\tr\tq')
    with pytest.raises(ValueError, match=r"paths.tsv: line 3: unknown entity 'q' in column tail"):
        Mechanisms(path, graph)
    kept = Mechanisms(path, graph, unseen='drop')
    assert kept.facts['edges_unknown'] == 1 and kept.rows((0, 2)).tolist() == [0]
    with pytest.raises(ValueError, match='unseen must be'):
        Mechanisms(path, graph, unseen='ignore')


# ---- a whole comparison


@pytest.fixture(scope='module')
def nations(tmp_path_factory: pytest.TempPathFactory) -> TracIn:
    run = train(
        Nations(),
        'DistMult',
        epochs=2,
        keep_every=1,
        model_kwargs=dict(embedding_dim=4),
        progress=False,
        out=tmp_path_factory.mktemp('nations') / 'run',
    )
    return TracIn(run, progress=False)


def two_records(tracin: TracIn, test: torch.Tensor) -> Mechanisms:
    """For each test triple two records of three and two training triples, one of them on both;
    the last has none."""
    rng = np.random.default_rng(0)
    rows = []
    for i, (h, _, t) in enumerate(test[:-1].tolist()):
        edges = tracin.run.training.mapped_triples[rng.choice(1592, 4, replace=False)].tolist()
        rows += [(f'{i}a', h, t, *e) for e in edges[:3]] + [(f'{i}b', h, t, *e) for e in edges[2:]]
    return Mechanisms(pd.DataFrame(rows, columns=list(COLUMNS)), tracin.run.training)


def test_marks_of_a_result(nations: TracIn, tmp_path: Path) -> None:
    test = Nations().testing.mapped_triples[:12]
    mechanisms, k = two_records(nations, test), 1592
    marked = mark(nations.explain(test, k=k), mechanisms)
    frame = marked.frame
    for i, triple in enumerate(test.tolist()):
        mine = frame[(frame['test_index'] == i) & frame['IsGroundTruth']]
        assert set(mine['training_index']) <= set(mechanisms.rows(triple[::2]).tolist())
        assert mine['On_specific_path'].map(len).between(1, 2).all()
        every, edges = frame[frame['test_index'] == i], mechanisms.about(triple[::2])
        nodes = [set(part[['head', 'tail']].to_numpy().flat) for _, part in edges.groupby('record')]
        ends = nations.run.training.mapped_triples[every['training_index'].tolist()][
            :, [0, 2]
        ].tolist()
        assert every['In_path'].tolist() == [
            any(set(pair) <= some for some in nodes) for pair in ends
        ]
    assert (frame['In_path'] | ~frame['IsGroundTruth']).all() and not frame['In_path'].all()
    assert (frame['On_specific_path'].map(len).gt(0) == frame['IsGroundTruth']).all()
    assert marked.tests['path_records'].tolist()[0] >= 2
    assert (
        marked.facts['mechanisms']['tests_without']
        == (marked.tests['path_triples'] == 0).sum()
        == 1
    )
    back = Result.load(marked.save(tmp_path / 'out')).frame
    assert back['On_specific_path'].map(list).tolist() == frame['On_specific_path'].tolist()


def test_order_of_training_triples_does_not_matter() -> None:
    """A model of which all influences are 0, and the baselines, on a graph and on the same graph
    shuffled."""
    rng = np.random.default_rng(1)
    triples = np.unique(rng.integers(0, [12, 3, 12], (90, 3)), axis=0)
    test = np.array([[0, 2, 1], [3, 1, 4], [5, 0, 6]])
    triples = triples[~(triples[:, None] == test).all(-1).any(1)]
    edges = triples[rng.choice(len(triples), 9, replace=False)]
    paths = pd.DataFrame(
        [(i // 3, *test[i // 3, ::2], *edge) for i, edge in enumerate(edges)], columns=list(COLUMNS)
    )
    names = dict(
        entity_to_id={f'e{i}': i for i in range(12)}, relation_to_id={f'r{i}': i for i in range(3)}
    )
    tables = []
    for order in (np.arange(len(triples)), rng.permutation(len(triples))):
        graph = TriplesFactory(torch.tensor(triples[order]), **names)
        found = evaluate(
            {'zero': torch.zeros(3, len(triples))}, test, Mechanisms(paths, graph), resamples=19
        )
        tables.append(found.table)
    pd.testing.assert_frame_equal(*tables)
    rows = tables[0].set_index(['scope', 'method', 'relation_last'])['mrr']
    assert (rows[:, 'zero'] == rows[:, 'random']).all()


def test_perfect_and_missing(nations: TracIn) -> None:
    test = Nations().testing.mapped_triples[:12]
    mechanisms = two_records(nations, test)
    perfect = torch.zeros(12, 1592, dtype=torch.bfloat16)
    for i, triple in enumerate(test.tolist()):
        perfect[i, mechanisms.rows(triple[::2])] = 1
    found = evaluate(
        dict(perfect=perfect, tracin=nations.scores),
        test,
        mechanisms,
        ks=(20,),
        resamples=99,
        chunk=5,
    )
    row = found.table.set_index(['scope', 'method', 'relation_last']).loc['all']
    best = row.loc[('perfect', False)]
    assert best[['mrr', 'map', 'recall@20', 'mrr_low', 'map_high']].tolist() == pytest.approx(
        [1] * 5
    )
    assert best['mrr_p_random'] == 0.01 and best['mrr_p_best'] == 0.02
    rules = row[row.index.get_level_values('method').isin(BASELINES)]
    assert best['mrr_minus_best'] > 0 and best['map_minus_best'] == pytest.approx(
        1 - rules['map'].max()
    )
    assert (row['n_total'] == 12).all() and (row['n_with_truth'] + row['n_without'] == 12).all()
    assert found.facts['tests_without'] == row['n_without'].iloc[0] == 1
    nothing = found.per_triple.query('test_index == 11')
    assert nothing['rr'].isna().all() and (nothing['path_triples'] == 0).all()
    assert row['mrr_best'].iloc[-1].split(',')[0] in BASELINES


def shortest_through(triples: np.ndarray, rows: list[int], h: int, t: int) -> list[float]:
    "By networkx: length of the shortest walk h..t through each triple; inf if there is none."
    graph = nx.Graph([tuple(triples[i, ::2]) for i in rows])
    graph.add_nodes_from(range(12))
    a, b = (nx.single_source_shortest_path_length(graph, x) for x in (h, t))
    far = lambda d, x: d.get(x, np.inf)
    return [min(far(a, u) + far(b, v), far(a, v) + far(b, u)) + 1 for u, _, v in triples.tolist()]


@pytest.mark.parametrize('seed', range(10))
def test_tiers_against_networkx(seed: int) -> None:
    "Tiers are lengths of simple paths over other relations; influence decides inside a tier only."
    rng = np.random.default_rng(seed)
    triples = np.unique(rng.integers(0, [7, 3, 7], (15, 3)), axis=0)
    edges = [(*sorted((h, t)), i) for i, (h, r, t) in enumerate(triples.tolist()) if r != 1]
    graph = nx.MultiGraph()
    graph.add_nodes_from(range(7))
    graph.add_edges_from(edges)
    want = np.where(triples[:, 1] == 1, 6, 5)
    for path in nx.all_simple_edge_paths(graph, 0, 6, cutoff=4):
        for *_, i in path:
            want[i] = min(want[i], len(path))
    tiers = path_tiers(Graph(triples, 7), (0, 1, 6))
    assert tiers.tolist() == want.tolist()
    influence = rng.integers(-2, 3, len(triples)) / 2
    key = list(zip(tiers, -influence))
    scores = in_tiers(tiers, influence)
    for i, j in itertools.permutations(range(len(triples)), 2):
        assert (scores[i] > scores[j]) == (key[i] < key[j])


@pytest.mark.parametrize('seed', range(25))
def test_shortest_paths_against_networkx(seed: int) -> None:
    rng = np.random.default_rng(seed)
    triples = np.unique(rng.integers(0, [9, 3, 9], (int(rng.integers(4, 30)), 3)), axis=0)
    triple = tuple(rng.choice(triples).tolist()) if seed % 2 else (0, 1, 5)
    found = graph_baselines(Graph(triples, 12), triple, {})
    for name, drop in (
        ('shortest path', (triples == triple).all(1)),
        ('shortest path, other relations', triples[:, 1] == triple[1]),
    ):
        want = np.array(
            shortest_through(triples, np.flatnonzero(~drop).tolist(), triple[0], triple[2])
        )
        near = np.isfinite(want)
        np.testing.assert_array_equal(-found[name][near], want[near])
        assert (-found[name][~near] > 12).all()
    assert found['at head or tail'].tolist() == [
        float(bool({u, v} & {triple[0], triple[2]})) for u, _, v in triples
    ]


# ---- DrugMechDB

PUBLISHED = {  # one random order of ties: MRR, MAP, recall@10
    ('random', False): (0.003, 0.001, 0.000),
    ('at head or tail', False): (0.302, 0.117, 0.210),
    ('at head or tail', True): (0.545, 0.216, 0.358),
    ('shortest path', False): (0.300, 0.209, 0.249),
    ('shortest path', True): (0.427, 0.279, 0.335),
}
DRAW = (
    0.0065,
    0.0025,
    0.006,
)  # standard deviation of such a mean from one random order to the next, at most


def test_published_baselines(shared_data: Path) -> None:
    """All 466 test pairs: expected values over the order of ties are within chance of the
    published single draws."""
    folder = shared_data / 'drugmechdb'
    data = load_files(folder / 'train.txt', folder / 'test.txt')
    mechanisms = Mechanisms(folder / 'paths.tsv', data.training)
    assert mechanisms.facts['records'] == 4846 and mechanisms.facts['edges_not_in_training'] == 0
    truth = evaluate(
        dict(zero=torch.zeros(466, 14756)),
        data.testing.mapped_triples,
        mechanisms,
        within={},
        resamples=99,
        progress=False,
    )
    assert truth.facts['tests'] == 466 and truth.facts['tests_without'] == 0
    sizes = truth.per_triple.query('scope == "all" and method == "zero" and not relation_last')[
        'path_triples'
    ]
    assert (sizes.min(), sizes.max(), round(sizes.mean(), 1)) == (2, 27, 7.1)
    rows = truth.table.set_index(['scope', 'method', 'relation_last']).loc['all']
    for key, published in PUBLISHED.items():
        for name, number, spread in zip(('mrr', 'map', 'recall@10'), published, DRAW):
            assert abs(rows.loc[key, name] - number) < 2.5 * spread, (
                key,
                name,
                rows.loc[key, name],
                number,
            )


def test_experiment(shared_data: Path, tmp_path: Path) -> None:
    "A tiny model: the whole way, and JSON at the end."
    few = dict(
        model='TransE',
        model_kwargs=dict(embedding_dim=4),
        loss='nssa',
        epochs=1,
        keep_every=1,
        batch_size=4096,
    )
    options = dict(
        models={'score': dict(objective='score')},
        training=few,
        within={},
        resamples=19,
        progress=False,
    )
    report = mechanism_experiment(
        shared_data / 'drugmechdb', tmp_path / 'run', tmp_path / 'out', **options
    )
    assert set(report) == {'settings', 'link_prediction', 'seconds', 'facts', 'table'}
    assert (
        len(report['table']) == 2 * 2 * (len(BASELINES) + 1)
        and 0 < report['link_prediction']['mrr'] < 1
    )
    row = next(r for r in report['table'] if r['method'] == 'score')
    assert 0 < row['mrr_p_random'] <= 1 and row['n_total'] == row['n_with_truth'] == 466
    saved = pd.read_csv(tmp_path / 'out' / 'table.csv')
    np.testing.assert_allclose(saved['map'], [r['map'] for r in report['table']])
    with pytest.raises(ValueError, match='the run was trained on other triples'):
        other = train(
            Nations(), 'TransE', epochs=1, keep_every=1, out=tmp_path / 'other', progress=False
        )
        mechanism_experiment(shared_data / 'drugmechdb', other, **options)
