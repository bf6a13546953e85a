"""Pictures by their content: labels, counts, and the values of what is drawn."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pykeen.datasets import Nations
from pykeen.models import DistMult

from tracin_nb.answer import bars, plots
from tracin_nb.answer.ranking import Ranking
from tracin_nb.answer.results import Result, SelfInfluence
from tracin_nb.answer.table import signed
from tracin_nb.graph.neighbourhoods import Graph, entities_along, path_table, paths, score_paths
from tracin_nb.influence.tracin import TracIn
from tracin_nb.runs.run import Run

ROOT = Path(__file__).resolve().parent.parent
TRAINING = Nations().training
TEST = ('brazil', 'embassy', 'uk')
IDS = torch.tensor(
    [
        [
            TRAINING.entity_to_id[TEST[0]],
            TRAINING.relation_to_id[TEST[1]],
            TRAINING.entity_to_id[TEST[2]],
        ]
    ]
)


@pytest.fixture(autouse=True)
def agg() -> Iterator[None]:
    "No window is opened, and no figure is left open."
    matplotlib.use('agg')
    yield
    plt.close('all')


@pytest.fixture(scope='module')
def tracin() -> TracIn:
    "A DistMult on Nations at two moments of random weights."
    states = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = DistMult(triples_factory=TRAINING, embedding_dim=8)
        states.append(model.state_dict())
    return TracIn(
        Run.from_model(model, TRAINING, states=states, learning_rates=[0.5, 0.25]),
        'bce',
        weighting='sgd',
        progress=False,
    )


@pytest.fixture(scope='module')
def result(tracin: TracIn) -> Result:
    return tracin.explain(TEST, k=8, breakdown=True)


def made(values: dict[int, float]) -> Result:
    "A result with these scores by training index."
    scores = torch.zeros(1, TRAINING.num_triples)
    for row, value in values.items():
        scores[0, row] = value
    ranking = Ranking(1, 5)
    ranking.update(scores, 0)
    return Result.of(IDS, TRAINING, ranking, {})


def ticks(ax: Axes) -> list[str]:
    return [tick.get_text() for tick in ax.get_yticklabels()]


def drawn(ax: Axes) -> Axes:
    "The axes after drawing: nothing of them is cut off by the figure."
    ax.figure.canvas.draw()
    box, whole = ax.get_tightbbox(), ax.figure.bbox
    assert box.x0 >= -1 and box.x1 <= whole.x1 + 1 and box.y0 >= -1 and box.y1 <= whole.y1 + 1
    return ax


def test_ranking() -> None:
    ax = drawn(made({100: 0.75, 500: 0.5, 9: -0.25, 0: -1.0}).plot())
    assert [bar.get_width() for bar in ax.patches] == [0.75, 0.5, -0.25, -1.0]
    assert [bool(bar.get_hatch()) for bar in ax.patches] == [False, False, True, True]
    triples = [
        '  '.join(x)
        for x in TRAINING.label_triples(TRAINING.mapped_triples[[100, 500, 9, 0]]).tolist()
    ]
    assert ticks(ax) == triples
    assert [t.get_text() for t in ax.texts] == signed([0.75, 0.5, -0.25, -1.0])
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ['proponents', 'opponents']
    title = '  '.join(TEST) + '\nrank not known'
    assert ax.get_title() == title and ax.get_ylim()[0] > ax.get_ylim()[1]
    assert made({1: 1.0}).plot(k=1).get_xlabel() == 'influence'
    assert 'the 1 strongest' in made({1: 1.0, 2: 2.0}).plot(k=1).get_xlabel()


def test_ranking_draws_where_told_and_self_influence(tracin: TracIn) -> None:
    found = tracin.self_influence(k=3)
    mine = Figure(layout='constrained').subplots()
    assert isinstance(found, SelfInfluence) and found.plot(ax=mine) is mine
    np.testing.assert_allclose([bar.get_width() for bar in mine.patches], found.frame['influence'])
    assert not plt.get_fignums()


def test_long_labels_are_cut_and_stay_apart() -> None:
    long = [f'MONDO:{"0" * 60}{i}' for i in range(2)]
    assert bars.shortened(long[0], 20) != bars.shortened(long[1], 20)
    assert len(bars.shortened(long[0], 20)) == 20 == len(bars.shortened(long[0], 20).strip())
    assert len(
        bars.triple_text([long[0], 'treats', long[1]])
    ) == 64 and '  treats  ' in bars.triple_text([long[0], 'treats', long[1]])
    frame = made({1: 1.0, 2: -1.0})
    frame.frame['head'] = frame.frame['head'].map(lambda x: f'$\\alpha {x * 30}')
    assert all(
        t.startswith('$\\\\alpha') or t.startswith('$\\alpha') for t in ticks(drawn(frame.plot()))
    )


@pytest.mark.parametrize('scale', [1.2345e-9, 1e-3, 0.0123, 12_000.0, 3.3e6])
def test_numbers_of_the_axis_stay_apart(scale: float) -> None:
    "However long the names and the numbers."
    found = made(
        {row: value * scale for row, value in {100: 0.75, 500: 0.5, 9: -0.25, 0: -1.0}.items()}
    )
    found.frame['head'] = found.frame['head'].map(lambda x: x * 30)
    for ax in (None, Figure((6, 2.5), layout='constrained').subplots()):
        ax = found.plot(ax=ax)
        ax.figure.canvas.draw()
        left, right = ax.get_xlim()
        shown = [
            t for t in ax.get_xticklabels() if t.get_text() and left <= t.get_position()[0] <= right
        ]
        boxes = [t.get_window_extent() for t in shown]
        assert len(boxes) > 2 and all(a.x1 + 3 < b.x0 for a, b in zip(boxes, boxes[1:])), [
            t.get_text() for t in shown
        ]


def test_shares(result: Result) -> None:
    rows, total = result.frame, result.frame['influence'].abs().sum()
    ax = drawn(plots.shares(result, 'relation', k=3))
    table = plots.share_table(rows, 'relation')
    assert len(ticks(ax)) == 4 and ticks(ax)[-1] == f'{len(table) - 3} others'
    widths = np.array([bar.get_width() for bar in ax.patches]).reshape(2, len(ticks(ax)))
    np.testing.assert_allclose(np.abs(widths).sum(), 1)
    sums = [rows['influence'].clip(*ends).sum() / total for ends in ((0, None), (None, 0))]
    np.testing.assert_allclose(widths.sum(1), sums, rtol=1e-5)
    ax = drawn(plots.shares(result, 'parameters'))
    assert set(ticks(ax)) == {'entity', 'relation'}
    parts = rows[['via_entity', 'via_relation']]
    at = ticks(ax).index('entity')
    np.testing.assert_allclose(
        ax.containers[0][at].get_width(),
        parts['via_entity'].clip(0).sum() / parts.abs().to_numpy().sum(),
        rtol=1e-5,
    )


def test_by_checkpoint(tracin: TracIn, result: Result) -> None:
    timed = tracin.by_checkpoint(result)
    columns = [name for name in timed.frame if name.startswith('at_')]
    assert columns == ['at_checkpoint_0', 'at_checkpoint_1']
    np.testing.assert_allclose(
        timed.frame[columns].sum(axis=1), timed.frame['influence'], rtol=1e-4
    )
    for k, column in enumerate(columns):
        alone = (
            TracIn(tracin.run, 'bce', weighting='sgd', checkpoints=[k], progress=False)
            .scores(TEST)[0]
            .numpy()
        )
        np.testing.assert_allclose(
            timed.frame[column], alone[timed.frame['training_index']], rtol=1e-4, atol=1e-8
        )
    assert ticks(drawn(plots.shares(timed, 'checkpoint'))) == ['checkpoint 0', 'checkpoint 1']
    ax = drawn(plots.over_checkpoints(timed, k=2))
    lines = [
        line for line in ax.lines if len(line.get_xdata()) == 2 and line.get_marker() in 'osD^vP'
    ]
    assert len(lines) == 4 and {line.get_linestyle() for line in lines} == {'-', '--'}
    np.testing.assert_array_equal(lines[2].get_ydata(), timed.opponents.loc[0, columns].tolist())
    assert ax.get_xlabel() == 'checkpoint'
    with pytest.raises(ValueError, match='its objective is'):
        TracIn(tracin.run, 'score', progress=False).by_checkpoint(result)


def test_distribution() -> None:
    scores = torch.tensor([[-2.0, -1.0, 0.0, 0.0, 0.5, 1.0, 3.0]])
    ax = drawn(plots.distribution(scores, 4.0, bins=5))
    edges = {round(bar.get_x(), 6) for bar in ax.patches}
    assert 0.0 in edges and sum(bar.get_height() for bar in ax.patches) == 5
    assert all(
        bar.get_x() >= 0 or bar.get_x() + bar.get_width() <= 1e-9
        for bar in ax.patches
        if bar.get_height()
    )
    assert [t.get_text() for t in ax.get_legend().get_texts()] == [
        '3 proponents',
        '2 opponents',
        'self-influence 4',
    ]
    assert list(ax.lines[0].get_xdata()) == [4, 4] and '2 triples with exactly 0' in ax.get_xlabel()
    far = drawn(plots.distribution(scores, 300.0, bins=5))
    assert (
        not far.lines
        and far.get_title(loc='right') == 'self-influence 300, 100 times the largest |score| →'
    )
    only = drawn(plots.distribution(np.array([1.0, 2.0])))
    assert [t.get_text() for t in only.get_legend().get_texts()] == ['2 proponents']


def shapes(ax: Axes) -> tuple[list, list, list[str]]:
    "Arrows, boxes and words of a picture of the evidence."
    lines = [line for line in ax.lines if len(line.get_xdata()) == 2]
    boxes = [patch.get_bbox() for patch in ax.patches if hasattr(patch, 'get_boxstyle')]
    return lines, boxes, [text.get_text() for text in ax.texts]


def apart(ax: Axes) -> None:
    "No arrow crosses a box, no word another one, and no word leaves the box that it is in."
    lines, boxes, _ = shapes(ax)
    for line in lines:
        (x, u), (y, v) = sorted(line.get_xdata()), sorted(line.get_ydata())
        for box in boxes:
            assert u <= box.x0 or x >= box.x1 or v <= box.y0 or y >= box.y1
    ax.figure.canvas.draw()
    words = [text.get_window_extent() for text in ax.texts]
    for i, one in enumerate(words):
        assert not any(one.padded(-1.5).overlaps(other) for other in words[:i])
    real = [box.transformed(ax.transData) for box in boxes]
    for word in words:
        middle = (word.x0 + word.x1) / 2, (word.y0 + word.y1) / 2
        inside = [box for box in real if box.contains(*middle)]
        assert all(box.x0 <= word.x0 and word.x1 <= box.x1 for box in inside)


def test_ego_graph(tracin: TracIn) -> None:
    graph, scores = Graph(TRAINING), tracin.scores(TEST)[0]
    ax = drawn(plots.ego_graph(graph, TEST, scores, k=4, best=2, max_edges=2))
    own = graph.rows_of(tuple(IDS[0].tolist()))
    found = [p for p in paths(graph, 'brazil', 'uk', 1, 2) if p[0] not in own]
    table = path_table(graph, 'brazil', found, score_paths(found, scores))
    chain = [tuple(entities_along(graph, path, int(IDS[0, 0]))) for path in table['rows']]
    table = table[~pd.Series(chain).duplicated()][:2]
    near = plots.strongest_at(graph, IDS[0, [0, 2]].tolist(), scores.numpy(), 4, own)
    rows = {*(row for path in table['rows'] for row in path), *near.tolist()}
    lines, boxes, words = shapes(ax)
    assert len(lines) == len(rows) and len(boxes) > 2
    strongest = max(rows, key=lambda row: abs(scores[row]))
    widest = max(lines, key=lambda line: line.get_linewidth())
    assert widest.get_color() == (bars.BLUE if scores[strongest] > 0 else bars.VERMILION)
    colours = [bars.BLUE if scores[row] > 0 else bars.VERMILION for row in rows]
    assert sorted(line.get_color() for line in lines) == sorted(colours)
    said = ' '.join(ax.get_xlabel().split())
    assert all(' '.join(path.split()) in said for path in table['path'])
    assert words.count('brazil') == words.count('uk') == 1
    apart(ax)
    again = plots.ego_graph(graph, TEST, scores, k=4, best=2, max_edges=2)
    assert [t.get_position() for t in again.texts] == [t.get_position() for t in ax.texts]


def test_ego_graph_of_a_result_without_whole_paths() -> None:
    graph = Graph(TRAINING)
    row = next(
        i for i in graph.at(IDS[0, :1].numpy())[2] if graph.tail[i] != IDS[0, 2] != graph.head[i]
    )
    ax = drawn(plots.ego_graph(graph, TEST, pd.Series({row: 1.0})))
    assert len(shapes(ax)[0]) == 1 and ax.get_xlabel() == 'no path from head to tail has a score'


def test_evidence_in_axes_of_any_size(result: Result) -> None:
    "What a result names, as its view draws it; letters shrink with the axes."
    whole, small = Figure((7, 9)).subplots(), Figure((4, 9)).subplots()
    for ax in (plots.evidence(result), plots.evidence(result, ax=whole)):
        apart(ax)
        assert {'brazil', 'uk'} <= {*shapes(ax)[2]} and 'paths by mean' in ax.get_xlabel()
    assert plots.evidence(result, ax=small).texts[0].get_fontsize() < whole.texts[0].get_fontsize()


def test_svg_in_the_colours_of_the_page(result: Result) -> None:
    """Nothing of a picture is black or white in SVG, letters stay letters and are at least 9
    pixels high in the narrowest place, and no two ids of two pictures mean different things."""
    seen = {}
    for ax in (result.plot(), plots.shares(result), plots.evidence(result)):
        page = ax.figure._repr_html_()
        root = ElementTree.fromstring(page)[0]
        assert not re.search('#000000|#ffffff|<style|url\\(http', page)
        narrow = float(re.search(r'min-width: (\d+)px', root.get('style'))[1])
        units = float(root.get('viewBox').split()[2])
        texts = [x for x in root.iter() if x.tag.endswith('}text')]
        heights = [float(re.search(r'([\d.]+)px', x.get('style'))[1]) for x in texts]
        assert len(texts) > 5 and min(heights) * narrow / units >= 9
        for part in root.iter():
            if name := part.get('id'):
                assert seen.setdefault(name, ElementTree.tostring(part)) == ElementTree.tostring(
                    part
                )


@pytest.mark.parametrize('suffix', bars.PICTURES)
def test_saved_pictures(suffix: str, result: Result, tmp_path: Path) -> None:
    path = tmp_path / f'new/why{suffix}'
    bars.save_picture(result.plot(), path)
    begin = {'.png': b'\x89PNG', '.svg': b'<svg xmlns'}[suffix]
    assert path.read_bytes().startswith(begin) and [p.name for p in path.parent.iterdir()] == [
        path.name
    ]
    bars.save_picture(result.plot(), path)
    with pytest.raises(ValueError, match='expected a file ending in .png or .svg'):
        bars.save_picture(result.plot(), tmp_path / 'why.pdf')


STAGES = pd.DataFrame(
    dict(stage=['load', 'inner products'], seconds=[1.0, 3.0], bytes=[2**20, 2**22])
)


def test_profile() -> None:
    time, memory = map(drawn, plots.stage_plot(STAGES))
    assert ticks(time) == ['load', 'inner products'] and memory.get_xlabel() == 'MiB'
    assert [bar.get_width() for bar in (*time.patches, *memory.patches)] == [1, 3, 1, 4]
    assert [t.get_text() for t in time.texts] == ['1   25%', '3   75%']


@pytest.mark.parametrize(
    'name, column', [('peers', 'times_slower'), ('workers', 'gain'), ('engine', 'pair_speedup')]
)
def test_speedups(name: str, column: str) -> None:
    ax = drawn(plots.speedups(ROOT / f'benchmarks/{name}.json', column))
    rows = json.loads((ROOT / f'benchmarks/{name}.json').read_text())['rows']
    points = sorted(
        (y, x) for line in ax.lines if line.get_linestyle() == 'None' for x, y in line.get_xydata()
    )
    assert [x for _, x in points] == [row[column] for row in rows]
    assert [ticks(ax)[int(y)] for y, _ in points] == [
        row['name'].rpartition(': ')[2] for row in rows
    ]
    assert ax.get_xscale() == ('linear' if name == 'workers' else 'log') and ax.get_title() == name


TABLE = pd.DataFrame(
    [
        (m, f, v, v - 0.1, v + 0.05)
        for m, b in (('TracIn', 0.6), ('random', 0.2))
        for f, v in [('recall@1', b), ('recall@10', b + 0.1), ('MRR', b), ('MAP', b / 2)]
    ],
    columns=['method', 'metric', 'value', 'lo', 'hi'],
)


def test_curves_and_comparison() -> None:
    ax = drawn(plots.curves(TABLE))
    assert [line.get_label() for line in ax.lines] == ['TracIn', 'random'] and len(
        ax.collections
    ) == 2
    np.testing.assert_allclose(ax.lines[0].get_xydata(), [[1, 0.6], [10, 0.7]])
    assert ax.lines[0].get_marker() != ax.lines[1].get_marker()
    axes = [drawn(ax) for ax in plots.comparison(TABLE)]
    assert [ax.get_xlabel() for ax in axes] == ['MRR', 'MAP'] and ticks(axes[0]) == [
        'TracIn',
        'random',
    ]
    np.testing.assert_allclose(
        np.asarray(axes[1].containers[0][0].get_xdata(), dtype=float), [0.3, 0.1]
    )
    (segments,) = axes[0].containers[0][2]
    np.testing.assert_allclose(
        [s[:, 0] for s in segments.get_segments()], [[0.5, 0.65], [0.1, 0.25]]
    )
    assert len(plots.comparison(TABLE, ['recall@1'])) == 1


def test_dark_style() -> None:
    "Text, frames and grounds follow matplotlib's style, in SVG, too."
    with plt.style.context('dark_background'):
        ax = drawn(
            plots.ego_graph(Graph(TRAINING), TEST, torch.ones(TRAINING.num_triples), k=2, best=1)
        )
        assert matplotlib.colors.to_hex(ax.texts[0].get_color()) == '#ffffff'
        assert ax.figure.get_facecolor() == (0, 0, 0, 1)
        own = bars.svg_text(ax.figure)
    assert 'currentColor' not in own and '#ffffff' in own


NAN = TABLE.assign(lo=np.nan)


@pytest.mark.parametrize(
    'draw, says',
    [
        (lambda: made({}).plot(), 'nothing to plot'),
        (lambda: made({1: 1.0}).plot(k=0), 'k is 0'),
        (
            lambda: plots.shares(made({1: 1.0}), 'size'),
            "by='size', expected one of relation, head, tail, parameters",
        ),
        (
            lambda: plots.shares(made({1: 1.0}), 'parameters'),
            r'no columns via_\.\.\., expected one made by explain',
        ),
        (lambda: plots.shares(made({})), 'nothing to plot'),
        (
            lambda: plots.over_checkpoints(made({1: 1.0})),
            'expected one made by tracin.by_checkpoint',
        ),
        (lambda: plots.distribution(torch.zeros(3)), 'nothing to plot'),
        (lambda: plots.distribution(torch.zeros(2, 3)), r'got float32 of shape \[2, 3\]'),
        (lambda: plots.distribution(np.array([1.0, np.inf])), 'number 1 is not finite'),
        (lambda: plots.distribution(np.array([1.0]), np.nan), 'own is nan'),
        (lambda: plots.distribution(np.array([1.0]), bins=0), 'bins is 0'),
        (
            lambda: plots.ego_graph(Graph(TRAINING), ('uk', 'embassy', 'uk'), torch.ones(1592)),
            'expected two entities',
        ),
        (lambda: plots.ego_graph(Graph(TRAINING), TEST, torch.ones(3)), 'one number for each'),
        (
            lambda: plots.ego_graph(Graph(TRAINING.mapped_triples), IDS[0], torch.ones(1592)),
            'no labels',
        ),
        (
            lambda: plots.stage_plot(STAGES.drop(columns='bytes')),
            "no column 'bytes', only stage, seconds",
        ),
        (lambda: plots.stage_plot(STAGES[:0]), 'without rows'),
        (lambda: plots.stage_plot(STAGES.assign(seconds=-1.0)), "seconds of 'load' is below 0"),
        (lambda: plots.stage_plot(STAGES.assign(seconds='1')), 'expected numbers'),
        (lambda: plots.stage_plot([1]), 'got list'),
        (
            lambda: plots.speedups(ROOT / 'benchmarks/workers.json', 'speed'),
            "workers.json: there is no column 'speed'",
        ),
        (lambda: plots.speedups({'rows': [dict(name='a', gain=0.0)]}, 'gain'), 'not above 0'),
        (
            lambda: plots.speedups(ROOT / 'README.md', 'gain'),
            "README.md: expected a benchmark's result",
        ),
        (lambda: plots.curves(TABLE, 'precision'), 'no metric precision@k, only recall@1'),
        (lambda: plots.curves(NAN), "column 'lo' is not finite in row 0"),
        (lambda: plots.comparison(TABLE, ['F1']), 'expected some of recall@1'),
        (
            lambda: plots.comparison(TABLE.assign(lo=0.9)),
            "'recall@1' of 'TracIn' has a value that is not between",
        ),
        (lambda: plots.comparison(pd.concat([TABLE, TABLE])), 'is there twice'),
    ],
)
def test_bad_input(draw: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        draw()
    assert not plt.get_fignums()
