"""Neighbourhoods and paths against their definition in networkx, and how much of the graph is
read for them."""

import itertools
from dataclasses import replace
from pathlib import Path

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import torch
from pykeen.datasets import Nations
from pykeen.models import ConvE
from pykeen.triples import TriplesFactory

from tracin_nb.answer.ranking import Ranking
from tracin_nb.answer.results import Result
from tracin_nb.graph.neighbourhoods import (
    Graph,
    Near,
    metapaths,
    n_hop,
    near,
    neighbourhood,
    on_paths,
    path_table,
    paths,
    read_types,
    score_paths,
)
from tracin_nb.graph.triples import UnknownLabelError
from tracin_nb.influence.tracin import TracIn

CHAIN = torch.tensor([[0, 0, 1], [1, 0, 2], [2, 0, 3]])


def random_triples(seed: int, entities: int | None = None) -> np.ndarray:
    "A small multigraph with self-loops, parallel edges, isolated entities and, often, hubs."
    rng = np.random.default_rng(seed)
    entities = entities or int(rng.integers(3, 11))
    weights = rng.dirichlet(np.full(entities, rng.choice([0.3, 1, 10])))
    count = int(rng.integers(1, 3 * entities))
    ends = rng.choice(entities, size=(count, 2), p=weights)
    return np.stack([ends[:, 0], rng.integers(0, 2, count), ends[:, 1]], axis=1)


def random_case(seed: int) -> tuple[Graph, np.ndarray, tuple[int, int, int]]:
    "A graph, its triples and a test triple, which is one of them in half of the cases."
    triples, rng = random_triples(seed), np.random.default_rng(seed + 10_000)
    entities = triples[:, [0, 2]].max() + 2
    triple = (
        tuple(rng.choice(triples).tolist())
        if rng.random() < 0.5
        else tuple(rng.integers(0, [entities, 2, entities]).tolist())
    )
    return Graph(triples, entities), triples, triple


def networkx_graph(triples: np.ndarray, rows: list[int], entities: int) -> nx.MultiGraph:
    "The undirected graph of some rows; keys are row numbers."
    graph = nx.MultiGraph()
    graph.add_nodes_from(range(entities))
    graph.add_edges_from((int(triples[i, 0]), int(triples[i, 2]), i) for i in rows)
    return graph


def naive_hops(
    triples: np.ndarray, rows: list[int], entities: int, h: int, t: int, n: int, strict: bool
) -> set[int]:
    "Both ends within n hops of h and of t; h and t count as inside unless strict."
    graph = networkx_graph(triples, rows, entities)
    inside = set.intersection(
        *(set(nx.single_source_shortest_path_length(graph, x, cutoff=n)) for x in (h, t))
    )
    inside |= set() if strict else {h, t}
    return {i for i in rows if triples[i, 0] in inside and triples[i, 2] in inside}


def naive_paths(
    triples: np.ndarray, rows: list[int], entities: int, h: int, t: int, most: int
) -> list[list[int]]:
    "Every simple path as row numbers."
    graph = networkx_graph(triples, rows, entities)
    if h == t:
        return []
    return [
        [key for _, _, key in path] for path in nx.all_simple_edge_paths(graph, h, t, cutoff=most)
    ]


def naive(
    triples: np.ndarray,
    entities: int,
    triple: tuple[int, int, int],
    *,
    hops: int | None = None,
    path_length: int | None = None,
    min_degree: int | None = None,
    keep_test_edges: bool = True,
    strict_hops: bool = False,
    strict_paths: bool = False,
) -> set[int]:
    "The definition, condition by condition."
    h, _, t = triple
    every = [i for i in range(len(triples)) if tuple(triples[i].tolist()) != triple]
    degree = [sum(e in (row[0], row[2]) for row in triples.tolist()) for e in range(entities)]
    kept = set(every)
    if hops is not None:
        kept &= naive_hops(triples, every, entities, h, t, hops, strict_hops)
    if min_degree is not None:
        kept = {
            i
            for i in kept
            if min(degree[e] for e in triples[i, [0, 2]]) >= min_degree
            or keep_test_edges
            and {h, t} & set(triples[i, [0, 2]].tolist())
        }
    if path_length is None:
        return kept
    through = sorted(kept) if strict_paths else every
    return kept & set(itertools.chain(*naive_paths(triples, through, entities, h, t, path_length)))


def random_conditions(seed: int) -> dict[str, int | bool]:
    "Conditions that `neighbourhood` accepts, each as likely to be given as not."
    rng = np.random.default_rng(seed + 20_000)
    given = {
        name: int(rng.integers(1, most + 1))
        for name, most in dict(hops=3, path_length=7, min_degree=4).items()
        if rng.random() < 0.6
    } or dict(path_length=4)
    strict = dict(
        strict_hops='hops' in given, strict_paths='path_length' in given and len(given) > 1
    )
    return (
        given
        | {name: bool(rng.random() < 0.5) for name, allowed in strict.items() if allowed}
        | dict(keep_test_edges=bool(rng.random() < 0.5))
    )


# ---- against the definition


@pytest.mark.parametrize('block', range(10))
def test_neighbourhood_is_its_definition(block: int) -> None:
    "On 500 random graphs, with random conditions."
    sizes = []
    for seed in range(50 * block, 50 * block + 50):
        graph, triples, triple = random_case(seed)
        conditions = random_conditions(seed)
        rows = neighbourhood(graph, triple, **conditions).tolist()
        assert rows == sorted(naive(triples, graph.num_entities, triple, **conditions)), (
            seed,
            triple,
            conditions,
        )
        sizes.append(len(rows))
    assert max(sizes) > 3 and min(sizes) == 0


@pytest.mark.parametrize('block', range(10))
def test_each_condition_is_its_definition(block: int) -> None:
    """On 500 random graphs: every number of hops up to 3 and every path length up to 8, the test
    edge walked along."""
    for seed in range(50 * block, 50 * block + 50):
        graph, triples, (h, _, t) = random_case(seed)
        every, entities = list(range(len(triples))), graph.num_entities
        for n, strict in itertools.product((1, 2, 3), (False, True)):
            expected = naive_hops(triples, every, entities, h, t, n, strict)
            assert n_hop(graph, h, t, n, strict=strict).tolist() == sorted(expected), (
                seed,
                n,
                strict,
            )
        for most in range(1, 9):
            expected = set(itertools.chain(*naive_paths(triples, every, entities, h, t, most)))
            assert on_paths(graph, h, t, most).tolist() == sorted(expected), (seed, most)


@pytest.mark.parametrize('block', range(5))
def test_paths_are_networkx_paths(block: int) -> None:
    "The same paths, whichever the direction, and along the triples' direction only."
    for seed in range(50 * block, 50 * block + 50):
        graph, triples, (h, _, t) = random_case(seed)
        every = naive_paths(triples, list(range(len(triples))), graph.num_entities, h, t, 5)
        found = paths(graph, h, t, 2, 5)
        assert sorted(found) == sorted(tuple(path) for path in every if len(path) > 1)
        assert [len(path) for path in found] == sorted(map(len, found))
        ahead = (
            [
                p
                for p in found
                if triples[p[0], 0] == h and (triples[p[1:], 0] == triples[p[:-1], 2]).all()
            ]
            if found
            else []
        )
        assert sorted(paths(graph, h, t, 2, 5, directed=True)) == sorted(ahead)


def test_reading_all_and_picking_out_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    "The two ways of going a step further."
    for few in (True, False):
        monkeypatch.setattr(Graph, 'few_at', lambda self, entities: few)
        for seed in range(60):
            graph, triples, triple = random_case(seed)
            for conditions in (dict(hops=2), dict(path_length=3), dict(path_length=5)):
                assert set(neighbourhood(graph, triple, **conditions)) == naive(
                    triples, graph.num_entities, triple, **conditions
                )


# ---- what is easy to get wrong


def test_chain_of_three_edges() -> None:
    "h-a-b-t keeps three edges at L = 3, by paths and by two hops, and none at L = 2."
    graph = Graph(CHAIN)
    assert neighbourhood(graph, (0, 1, 3), path_length=3).tolist() == [0, 1, 2]
    assert neighbourhood(graph, (0, 1, 3), hops=2).tolist() == [0, 1, 2]
    assert neighbourhood(graph, (0, 1, 3), path_length=2).tolist() == []
    assert neighbourhood(
        graph, (0, 1, 3), path_length=3, min_degree=2, keep_test_edges=False
    ).tolist() == [1]


def test_test_edge_neither_kept_nor_walked() -> None:
    """With (h, r, t) in the graph, even twice, the neighbourhood is that without it; a parallel
    edge counts."""
    graph = Graph(torch.cat([CHAIN, torch.tensor([[0, 1, 3], [0, 1, 3]])]))
    for conditions in (
        dict(hops=1),
        dict(hops=2),
        dict(path_length=3),
        dict(hops=2, strict_hops=True),
    ):
        assert (
            neighbourhood(graph, (0, 1, 3), **conditions).tolist()
            == neighbourhood(Graph(CHAIN), (0, 1, 3), **conditions).tolist()
        )
    assert neighbourhood(graph, (0, 2, 3), hops=1).tolist() == [3, 4]
    assert neighbourhood(graph, (3, 1, 0), path_length=1).tolist() == [3, 4]


def test_test_triple_from_an_entity_to_itself() -> None:
    "There is no simple path, and hops are around the one entity."
    graph = Graph(CHAIN)
    assert neighbourhood(graph, (1, 0, 1), path_length=4).tolist() == []
    assert neighbourhood(graph, (1, 0, 1), hops=1).tolist() == [0, 1]
    assert paths(graph, 1, 1) == []


def test_unreachable_and_empty() -> None:
    graph = Graph(CHAIN, num_entities=9)
    for conditions in (dict(hops=5), dict(path_length=3), dict(path_length=8)):
        assert neighbourhood(graph, (0, 0, 8), **conditions).tolist() == []
    empty = Graph(torch.empty(0, 3, dtype=torch.long), num_entities=2)
    assert (
        neighbourhood(empty, (0, 0, 1), hops=2).tolist()
        == neighbourhood(empty, (0, 0, 1), path_length=5).tolist()
    )
    assert paths(empty, 0, 1) == []


def test_small_neighbourhood_of_large_graph_reads_little() -> None:
    """A chain beside 100,000 other triples: what is read depends on the chain; elsewhere, it is
    bounded by the graph."""
    rng = np.random.default_rng(0)
    crowd = np.stack(
        [rng.integers(4, 5000, 100_000), np.zeros(100_000, int), rng.integers(4, 5000, 100_000)],
        axis=1,
    )
    graph = Graph(np.concatenate([CHAIN.numpy(), crowd]))
    for conditions in (dict(hops=2), dict(path_length=3), dict(path_length=4)):
        graph.reads = 0
        assert neighbourhood(graph, (0, 1, 3), **conditions).tolist() == [0, 1, 2]
        assert graph.reads < 50, conditions
    graph.reads = 0
    neighbourhood(graph, (5, 1, 6), hops=2)
    assert graph.reads <= 4 * len(crowd) + 2 * len(crowd)
    graph.reads = 0
    neighbourhood(graph, (5, 1, 6), path_length=3)
    assert graph.reads <= 4 * len(crowd) + 2 * len(crowd)


def test_arrays_are_small() -> None:
    "30 bytes a triple and 8 an entity, beside a constant."
    triples = random_triples(1, entities=500)
    for count in (10_000, 20_000):
        many = triples[np.random.default_rng(0).integers(0, len(triples), count)]
        graph = Graph(many[many[:, 0] != many[:, 2]], num_entities=1000)
        arrays = (
            graph.head,
            graph.relation,
            graph.tail,
            graph.edges.data,
            graph.edges.indices,
            graph.edges.indptr,
            graph.degree,
            graph.touch.data,
        )
        assert sum(array.nbytes for array in arrays) <= 30 * len(graph) + 8 * 1000 + 8


# ---- bad input


@pytest.mark.parametrize(
    'conditions, message',
    [
        (dict(), 'Give at least one of hops, path_length, min_degree'),
        (dict(hops=0), 'hops is 0'),
        (dict(hops=True), 'hops is True'),
        (dict(path_length=2.5), 'path_length is 2.5'),
        (dict(min_degree=-1), 'min_degree'),
        (dict(path_length=3, strict_hops=True), 'strict_hops needs hops'),
        (dict(path_length=3, strict_paths=True), 'strict_paths needs path_length, and'),
    ],
)
def test_conditions_that_make_no_sense(conditions: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        neighbourhood(Graph(CHAIN), (0, 0, 3), **conditions)


@pytest.mark.parametrize(
    'triple, message',
    [
        ((0, 0, 4), r'entity 4: expected a label or an id in 0..3'),
        ((0, 0), 'expected one triple'),
        (('a', 0, 1), 'has no labels'),
        ((0, 'r', 1), "relation 'r'"),
        ((-1, 0, 1), 'entity -1'),
    ],
)
def test_triples_that_are_not_there(triple: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        neighbourhood(Graph(CHAIN), triple, hops=1)


@pytest.mark.parametrize(
    'triples', [torch.zeros(3, 2, dtype=torch.long), torch.zeros(2, 3), torch.tensor([[0, 0, -1]])]
)
def test_graph_of_what_is_no_triples(triples: torch.Tensor) -> None:
    with pytest.raises(ValueError, match='triples: expected'):
        Graph(triples)


def test_unknown_labels_are_named() -> None:
    graph = Graph(Nations().training)
    with pytest.raises(UnknownLabelError, match="'brasil'.*brazil"):
        paths(graph, 'brasil', 'uk')
    with pytest.raises(UnknownLabelError, match="relation 'treatie'"):
        graph.ids(('brazil', 'treatie', 'uk'))


# ---- the lens


@pytest.fixture(scope='module')
def nations() -> tuple[TriplesFactory, Graph, Result]:
    "A result of two test triples with made-up scores."
    training = Nations().training
    scores = torch.randn(2, training.num_triples, generator=torch.Generator().manual_seed(0))
    ranking = Ranking(num_tests=2, k=50)
    ranking.update(scores, 0)
    test = training.mapped_triples[[7, 900]]
    return training, Graph(training), Result.of(test, training, ranking, dict(objective='made up'))


@pytest.fixture(scope='module')
def tracin(nations: tuple[TriplesFactory, Graph, Result]) -> TracIn:
    model = ConvE(
        triples_factory=nations[0],
        embedding_dim=8,
        embedding_height=2,
        embedding_width=4,
        output_channels=2,
        kernel_height=2,
        kernel_width=2,
        random_seed=0,
    ).eval()
    return TracIn(
        model,
        'bce',
        weighting='sgd',
        training=nations[0],
        learning_rates=[0.1],
        progress=False,
        batch_size=100,
    )


def test_a_lens(nations: tuple[TriplesFactory, Graph, Result], tracin: TracIn) -> None:
    """Columns and shares, recomputed from the neighbourhoods row by row; the ranking itself is
    that of all triples."""
    training, graph, _ = nations
    test = training.mapped_triples[[7, 900]]
    lens, scores = (
        tracin.explain(test, 50, near=near(graph, test, False, path_length=2)),
        tracin.scores(test).numpy(),
    )
    plain = tracin.explain(test, 50)
    for i, row in enumerate(test.tolist()):
        rows = set(neighbourhood(graph, row, path_length=2).tolist())
        mine = lens.frame[lens.frame['test_index'] == i]
        assert mine['in_neighbourhood'].tolist() == [
            index in rows for index in mine['training_index']
        ]
        assert 0 < mine['in_neighbourhood'].sum() < len(mine)
        for _, side in mine[mine['in_neighbourhood']].groupby('kind'):
            assert side['rank_within'].tolist() == list(range(1, len(side) + 1))
        share = np.abs(scores[i, list(rows)]).sum() / np.abs(scores[i]).sum()
        assert lens.tests['share_inside'][i] == pytest.approx(share, rel=1e-5)
        assert lens.tests['neighbourhood_size'][i] == len(rows)
    assert (lens.frame.loc[~lens.frame['in_neighbourhood'], 'rank_within'] == 0).all()
    assert lens.frame[plain.frame.columns].equals(plain.frame)
    assert lens.facts['neighbourhood'] == dict(path_length=2, restrict=False)


def test_a_restriction(nations: tuple[TriplesFactory, Graph, Result], tracin: TracIn) -> None:
    """Two test triples with neighbourhoods of their own, in one pass, give what each gives alone
    with `train`."""
    training, graph, _ = nations
    test = training.mapped_triples[[7, 900, 3]]
    before = tracin.counters.train_passes
    both = tracin.explain(
        test, 20, near=near(graph, test, hops=1, min_degree=220, keep_test_edges=False)
    )
    passed = tracin.counters.train_passes - before
    rows = [
        neighbourhood(graph, row, hops=1, min_degree=220, keep_test_edges=False)
        for row in test.tolist()
    ]
    union = len(np.unique(np.concatenate(rows)))
    assert 0 < union < len(graph) and passed == -(-union // 100)
    for i, mine in enumerate(rows):
        alone = tracin.explain(test[[i]], 20, train=training.mapped_triples[mine])
        theirs = (
            both.frame[both.frame['test_index'] == i].reset_index(drop=True).assign(test_index=0)
        )
        pd.testing.assert_frame_equal(theirs, alone.frame, rtol=1e-4)


def test_an_empty_neighbourhood(
    nations: tuple[TriplesFactory, Graph, Result], tracin: TracIn
) -> None:
    nothing = Near([torch.zeros(0, dtype=torch.long)] * 2)
    result = tracin.explain(nations[0].mapped_triples[:2], near=nothing)
    assert not len(result.frame) and result.tests['neighbourhood_size'].tolist() == [0, 0]
    lens = tracin.explain(nations[0].mapped_triples[:2], near=replace(nothing, restrict=False))
    assert lens.tests['share_inside'].tolist() == [0, 0] and len(lens.frame) == 80


def test_a_lens_survives_saving(
    nations: tuple[TriplesFactory, Graph, Result], tracin: TracIn, tmp_path: Path
) -> None:
    test = nations[0].mapped_triples[:3]
    lens = tracin.explain(
        test, near=near(nations[1], test, False, hops=1, min_degree=200), out=tmp_path / 'near'
    )
    again = Result.load(tmp_path / 'near')
    pd.testing.assert_frame_equal(again.frame, lens.frame)
    pd.testing.assert_frame_equal(again.tests, lens.tests, check_dtype=False)
    with pytest.raises(ValueError, match='near is'):
        tracin.explain(test, near=near(nations[1], test, hops=1), out=tmp_path / 'near')


def test_neighbourhoods_of_other_triples_are_refused(
    nations: tuple[TriplesFactory, Graph, Result], tracin: TracIn
) -> None:
    with pytest.raises(ValueError, match='near: row 5000'):
        tracin.explain(nations[0].mapped_triples[:1], near=Near([torch.tensor([5000])]))
    with pytest.raises(ValueError, match='near: 1 neighbourhoods for 2'):
        tracin.explain(nations[0].mapped_triples[:2], near=Near([torch.tensor([5])]))


# ---- scores of paths and metapaths


def test_scores_of_paths_of_different_lengths() -> None:
    "Against numpy and scipy, path by path."
    from scipy import stats

    rng = np.random.default_rng(0)
    influence = torch.from_numpy(rng.random(30) + 0.1)
    several = [tuple(rng.integers(0, 30, n).tolist()) for n in rng.integers(1, 6, 40)]
    for how, one in dict(
        sum=np.sum, mean=np.mean, geometric=stats.gmean, harmonic=stats.hmean, min=np.min
    ).items():
        expected = [one(influence.numpy()[list(path)]) for path in several]
        np.testing.assert_allclose(score_paths(several, influence, how), expected, rtol=1e-12)
        assert score_paths([], influence, how).shape == (0,)
    with pytest.raises(ValueError, match='row 29 is on a path'):
        score_paths([(29,)], influence[:29])


@pytest.mark.parametrize('bad', [0.0, -1.0])
def test_no_geometric_mean_of_what_is_not_positive(bad: float) -> None:
    values = np.array([1.0, bad])
    assert np.isnan(score_paths([(0, 1)], values, 'geometric')[0])
    assert np.isnan(score_paths([(0, 1)], values, 'harmonic')[0])
    assert score_paths([(0, 1)], values, 'min')[0] == bad


def test_paths_from_a_result(nations: tuple[TriplesFactory, Graph, Result]) -> None:
    """A series of the shown rows by training index scores the paths that are wholly shown, and
    no other."""
    training, graph, result = nations
    shown = result.frame[result.frame['test_index'] == 0].set_index('training_index')['influence']
    h, _, t = training.mapped_triples[7].tolist()
    found = paths(graph, h, t, max_edges=2)
    scored = ~np.isnan(score_paths(found, shown))
    assert scored.tolist() == [set(path) <= set(shown.index) for path in found] and scored.any()
    table = path_table(graph, h, found, score_paths(found, shown))
    first, last = table['score'].iloc[: scored.sum()], table['score'].iloc[scored.sum() :]
    assert first.is_monotonic_decreasing and last.isna().all()


def test_metapaths_count_all_paths(nations: tuple[TriplesFactory, Graph, Result]) -> None:
    training, graph, _ = nations
    found = paths(graph, 'uk', 'cuba', max_edges=2)
    scores = np.random.default_rng(0).standard_normal(len(found))
    table = metapaths(
        graph, 'uk', found, scores, lambda label: 'bloc' if label in ('usa', 'ussr') else 'country'
    )
    assert table['paths'].sum() == len(found) and table['mean_score'].is_monotonic_decreasing
    best = table.iloc[0]
    assert best['example'] == graph.pattern(
        found[int(np.flatnonzero(scores == best['example_score'])[0])], graph.entity('uk')
    )
    assert best['metapath'].startswith('country ') and best['metapath'].endswith(' country')
    with pytest.raises(ValueError, match='does not begin where the path has come to'):
        graph.pattern(found[0], graph.entity('poland'))


def test_read_types(tmp_path: Path) -> None:
    (good := tmp_path / 'nodes.tsv').write_text(
        'id\ttype\tname\nA:1\tDrug\t"x, y\nB:2\tGene\tz\nA:1\tDrug\tagain\n'
    )
    assert read_types(good) == {'A:1': 'Drug', 'B:2': 'Gene'}
    for text, message in (
        ('id\tkind\nA\tx\n', "no column 'type'"),
        ('id\ttype\nA\t\n', "'A' has no type"),
        ('id\ttype\nA\tx\nA\ty\n', "'A' has more than one type"),
    ):
        (bad := tmp_path / 'bad.tsv').write_text(text)
        with pytest.raises(ValueError, match=f'bad.tsv.*{message}'):
            read_types(bad)


def test_drugmechdb(shared_data: Path) -> None:
    """Real identifiers, types and mechanism paths: a pair's curated path edges of at most 3
    edges are found as paths."""
    folder = shared_data / 'drugmechdb'
    training = TriplesFactory.from_path(folder / 'train.txt')
    graph, types = Graph(training), read_types(folder / 'nodes.tsv')
    curated = pd.read_csv(folder / 'paths.tsv', sep='\t', dtype=str)
    place = {tuple(row): i for i, row in graph.frame(range(len(graph))).iterrows()}
    checked = 0
    for (_, drug, disease), edges in list(curated.groupby(['record', 'drug', 'disease']))[:300]:
        rows = {place[tuple(row)] for row in edges[['head', 'relation', 'tail']].to_numpy()}
        if len(rows) > 3:
            continue
        found = paths(graph, drug, disease, min_edges=len(rows), max_edges=len(rows))
        if rows not in map(set, found):
            continue
        near = neighbourhood(graph, (drug, 'indication', disease), path_length=3)
        assert rows <= set(near.tolist())
        assert (
            metapaths(graph, drug, found, np.ones(len(found)), types)['metapath']
            .str.startswith(types[drug])
            .all()
        )
        checked += 1
    assert checked > 20
