"Every explanation says what it explains: the right numbers, and in every form it is given out."

import json
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from models import build, graph
from pykeen.evaluation import RankBasedEvaluator
from pykeen.models import DistMult, ERModel, TransE
from pykeen.triples import CoreTriplesFactory

from tracin_nb.answer.results import CAVEAT, CAVEAT_OF_REPLAY, Result, read_csv, text_table
from tracin_nb.answer.standing import BELIEFS, UNKNOWN, belief_line, doubts, summary_of
from tracin_nb.app import cli
from tracin_nb.app.audit import compare
from tracin_nb.app.explorer import ExplorerQuestion, InfluenceExplorer
from tracin_nb.engine import beliefs as module
from tracin_nb.engine.beliefs import beliefs, guessed, heads_too_dear, ranked, standing
from tracin_nb.engine.objectives import score
from tracin_nb.evaluation.replay import replay
from tracin_nb.influence.batch import SUMMARY
from tracin_nb.influence.tracin import TracIn, resume
from tracin_nb.runs.run import Run
from tracin_nb.runs.training import train

pytestmark = pytest.mark.filterwarnings('ignore')
KNOWN = ('israel', 'militaryactions', 'egypt')


def labels(run: Run, ids: torch.Tensor) -> list[tuple[str, str, str]]:
    "Labels of triples."
    return [tuple(row) for row in run.training.label_triples(ids).tolist()]


@pytest.fixture(scope='module')
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    "DistMult on Nations, two checkpoints."
    return train(
        'nations',
        'DistMult',
        out=tmp_path_factory.mktemp('beliefs') / 'run',
        epochs=6,
        keep_every=3,
        lr=0.05,
        model_kwargs=dict(embedding_dim=8),
        progress=False,
        device='cpu',
    )


@pytest.fixture(scope='module')
def test(run: Run) -> torch.Tensor:
    "A training triple, a validation triple, two test triples, and two that the graph lacks."
    every = {
        tuple(t)
        for part in (run.training, run.validation, run.testing)
        for t in part.mapped_triples.tolist()
    }
    new = [
        (h, r, t) for h in range(3) for r in range(3) for t in range(14) if (h, r, t) not in every
    ]
    parts = [
        run.training.mapped_triples[5:6],
        run.validation.mapped_triples[:1],
        run.testing.mapped_triples[:2],
    ]
    return torch.cat([*parts, torch.tensor(new[:2])])


@pytest.fixture(scope='module')
def result(run: Run, test: torch.Tensor) -> Result:
    return TracIn(run, weighting='sgd', progress=False).explain(test, k=3)


# ---- the numbers

MODELS = 'DistMult TransE RotatE ComplEx ConvE TuckER RESCAL ProjE CrossE KG2E ConvKB RGCN'.split()
INVERSE = ['DistMult', 'ConvE', 'RotatE', 'CompGCN', 'NodePiece']


@pytest.mark.parametrize(
    'name, inverse', [(n, False) for n in MODELS] + [(n, True) for n in INVERSE]
)
def test_ranks_are_those_of_pykeen(name: str, inverse: bool) -> None:
    "On both sides, also of models that score all heads by an inverse relation."
    training = graph(inverse)
    model, some = build(name, training).eval(), training.mapped_triples[::60]
    run = Run.from_model(model, training, learning_rates=[0.1])
    ours = beliefs(run, some, ('tail', 'head'))
    truth = RankBasedEvaluator().evaluate(
        model, some, additional_filter_triples=training.mapped_triples, batch_size=8, use_tqdm=False
    )
    for side in ('tail', 'head'):
        ranks = ours[f'{side}_rank']
        for metric, value in (
            ('inverse_harmonic_mean_rank', (1 / ranks).mean()),
            ('arithmetic_mean_rank', ranks.mean()),
        ):
            assert truth.get_metric(f'{side}.realistic.{metric}') == pytest.approx(value, rel=1e-5)
    exact = model.score_hrt(some)[:, 0].detach().numpy()
    np.testing.assert_allclose(ours['score'], exact, rtol=1e-4, atol=1e-5)


def test_counted_by_hand(run: Run, test: torch.Tensor) -> None:
    "Ranks, candidates, counts and where each triple is known from, with sets and loops."
    model, found = run.model(-1), beliefs(run, test, ('tail', 'head')).join(standing(run, test))
    parts = [x.mapped_triples.tolist() for x in (run.training, run.validation, run.testing)]
    every = {tuple(t) for part in parts for t in part}
    for (h, r, t), row in zip(test.tolist(), found.to_dict('records')):
        tails = model.score_t(torch.tensor([[h, r]]))[0].tolist()
        left = [x for e, x in enumerate(tails) if e == t or (h, r, e) not in every]
        better, equal = (sum(f(x) for x in left) for f in (tails[t].__lt__, tails[t].__eq__))
        assert (row['tail_rank'], row['tails']) == (better + (1 + equal) / 2, len(left))
        assert row['heads'] == sum(e == h or (e, r, t) not in every for e in range(14))
        for part, entity in (('head', h), ('tail', t)):
            assert row[f'{part}_count'] == sum(entity in (x[0], x[2]) for x in parts[0])
        assert row['relation_count'] == sum(x[1] == r for x in parts[0])
    assert found['known'].tolist() == ['training', 'validation', 'test', 'test', 'new', 'new']


@pytest.mark.parametrize('most', [1, 5, 14, 40])
def test_slices_give_the_same(run: Run, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    "However few candidates there is room for, and however few triples are looked at together."
    some = run.testing.mapped_triples[:30]
    whole = beliefs(run, some, ('tail', 'head')).join(standing(run, some))
    monkeypatch.setattr(module, 'room', lambda device: most * 1000)
    monkeypatch.setattr(module, 'width', lambda model, queries: 1000)
    monkeypatch.setattr(module, '_CHUNK', 100 * most)
    again = beliefs(run, some, ('tail', 'head')).join(standing(run, some))
    pd.testing.assert_frame_equal(again, whole)


def test_one_look_at_the_known_triples(monkeypatch: pytest.MonkeyPatch) -> None:
    "The graph is gone through once for each side, not for each batch of triples."
    looks, real = [], module.agreeing
    monkeypatch.setattr(module, 'agreeing', lambda *args: looks.append(args) or real(*args))
    training = graph()
    model = build('DistMult', training).eval()
    monkeypatch.setattr(module, '_MOST', 10)
    run = Run.from_model(model, training, learning_rates=[0.1])
    beliefs(run, training.mapped_triples[:200], ('tail', 'head'))
    assert len(looks) == 2


def test_dear_heads_are_left_out_and_it_is_said() -> None:
    "A ConvE without inverse relations passes each head through its network."
    training = graph()
    conve = Run.from_model(build('ConvE', training), training, learning_rates=[0.1])
    some = training.mapped_triples[:3]
    assert heads_too_dear(conve, conve.model(-1), some, looked_at=40)
    assert not heads_too_dear(conve, conve.model(-1), some, looked_at=42)
    both = graph(inverse=True)
    for name, triples in (('ConvE', both), ('DistMult', training), ('RotatE', training)):
        cheap = Run.from_model(build(name, triples), triples, learning_rates=[0.1])
        assert not heads_too_dear(cheap, cheap.model(-1), some, looked_at=1)
    found = TracIn(conve, weighting='sgd', progress=False).explain(some, k=2, train=some)
    assert 'head_rank' not in found.tests and 'tail_rank' in found.tests
    assert 'not ranked' in found.facts['beliefs']['heads']
    assert 'head rank not computed' in found.said(0)[0]
    assert 'new: not in training' not in found.said(0)[0]


def test_width_is_that_of_a_candidate() -> None:
    "Of DistMult: at least its row of products, and no more than some copies of it."
    few = CoreTriplesFactory(torch.tensor([[0, 0, 1]]), num_entities=5000, num_relations=1)
    model = DistMult(triples_factory=few, embedding_dim=32).eval()
    queries = module.Softmax('tail').queries(few.mapped_triples)
    assert 128 <= module.width(model, queries) <= 8 * 128


def test_unseen_and_few(run: Run) -> None:
    "No validation or test triples: new means not in training."
    training = graph()
    plain = Run.from_model(build('DistMult', training), training, learning_rates=[0.1])
    found = TracIn(plain, weighting='sgd', progress=False).explain(
        run.testing.mapped_triples[:1], k=2
    )
    assert found.said(0)[0].split(' · ')[2] == 'new: not in training'


def test_last_chosen_checkpoint(run: Run, test: torch.Tensor) -> None:
    "In whatever order the checkpoints were given."
    for chosen, place in (([0], 0), ([1, 0], 1)):
        found = TracIn(run, checkpoints=chosen, weighting='sgd', progress=False).explain(test, k=1)
        held = beliefs(run, test, checkpoint=place)
        np.testing.assert_allclose(found.tests['score'], held['score'], rtol=1e-5)
        assert found.tests['tail_rank'].tolist() == held['tail_rank'].tolist()


def test_measured_is_handed_on(tmp_path: Path) -> None:
    "What early stopping measured, and what guessing reaches; nothing is evaluated for it."
    found = train(
        'nations',
        'DistMult',
        out=tmp_path / 'run',
        epochs=8,
        keep_every=4,
        patience=1,
        evaluate_every=2,
        lr=1e-6,
        model_kwargs=dict(embedding_dim=4),
        progress=False,
        device='cpu',
    )
    facts = json.loads((tmp_path / 'run/run.json').read_text())
    measured = found.settings['measured']
    assert [measured['epoch'], measured['value']] == facts['evaluations'][-1]
    said = TracIn(found, weighting='sgd', progress=False).explain(
        found.training.mapped_triples[:1], k=1
    )
    assert said.facts['beliefs']['measured'] == measured | dict(chance=10 / 14)
    assert guessed('both.realistic.arithmetic_mean_rank', 14) is None


# ---- the words


def test_warnings() -> None:
    row = dict(zip(BELIEFS, (1.0, 2.0, 500, 1.0, 500, 'new'))) | dict(
        test_head='a',
        test_relation='r',
        test_tail='b',
        head_count=3,
        relation_count=9,
        tail_count=5,
    )
    assert doubts(row, {}) == []
    for change, word in (
        (dict(tail_rank=101.0), 'not predicted: 100 of 500'),
        (dict(tail_rank=10.0, tails=15), 'not predicted: 9 of 15'),
        (dict(known='training'), 'already in training'),
        (dict(head_count=2), 'head a is in 2 training triples only'),
        (dict(relation_count=1), 'relation r is in 1 training triple only'),
        (dict(tail_count=0), 'tail b is in no training triple'),
    ):
        (said,) = doubts(row | change, {})
        assert said.startswith(word)
    poor = dict(metric='both.realistic.hits_at_10', value=0.05, split='validation', chance=0.02)
    (said,) = doubts(row, dict(beliefs=dict(measured=poor)))
    assert said.startswith('the model is weak: hits at 10 0.05 on validation')
    assert doubts(row, dict(beliefs=dict(measured=poor | dict(value=0.5)))) == []
    assert summary_of(pd.DataFrame([row, row | dict(tail_rank=400.0)])).startswith('1 of 2 test')


# ---- every form


def numbers(test: dict) -> tuple[str, str, str]:
    "What a text has to hold: score, rank, known or new."
    known = 'new: not in' if test['known'] == 'new' else f'in {test["known"]}'
    rank = f'tail rank {test["tail_rank"]:g} of {test["tails"]}'
    return f'score {test["score"]:.3g}', rank, known


def in_text(text: str, result: Result, n: int = 1000) -> None:
    "Assert that a text tells them of the first `n` test triples."
    for test in result.tests.to_dict('records')[:n]:
        line = belief_line(test, result.facts)
        assert line in text and all(part in line for part in numbers(test))


def in_rows(frame: pd.DataFrame, result: Result) -> None:
    "Assert that a table tells them in every row."
    assert len(frame) == len(result.frame)
    for row in frame.to_dict('records'):
        test = result.tests.iloc[row['test_index']]
        for name in BELIEFS:
            assert (
                row[f'test_{name}'] == pytest.approx(test[name], rel=1e-6)
                if name != 'known'
                else row[f'test_{name}'] == test[name]
            )


def in_content(content: dict, result: Result) -> None:
    "Assert that what was read from JSON tells them of every test triple."
    assert len(content['tests']) == len(result)
    for told, test in zip(content['tests'], result.tests.to_dict('records')):
        assert {name: told[name] for name in BELIEFS} == {name: test[name] for name in BELIEFS}


def test_on_the_screen(result: Result) -> None:
    "Whole text, HTML, print, pictures, and those of a part of the result."
    for shown in (result, result[3], result.by_strength(2), result[4]):
        in_text(text_table(shown), shown)
        in_text(shown._repr_html_(), shown)
        in_text(repr(shown), shown, 3)
        assert shown.plot().get_title().split('\n')[1].startswith('tail rank ')
    assert 'and 3 more test triples' in repr(result)
    assert result.outlook() in text_table(result)
    assert repr(result).count('proponents') == 4  # of three blocks, and of the summary
    line = result.frame.iloc[0]
    assert f'1  {line["influence"]:+.4f}'[:5] in repr(result) and line['head'] in repr(result)


def test_frames_lead_with_the_training_triple(result: Result) -> None:
    for frame in (result.to_frame(), result.proponents, result.opponents, result[0].frame):
        first = ['head', 'relation', 'tail', 'influence', 'kind', 'rank', 'test_head']
        assert [*frame.columns[:7]] == first
        assert [*frame.columns[-2:]] == ['test_index', 'training_index']


def test_in_files(result: Result, tmp_path: Path) -> None:
    "CSV, Parquet, JSON and the folder; the folder gives back all of it."
    folder = result.save(tmp_path / 'saved')
    in_rows(read_csv(folder / 'result.csv'), result)
    in_rows(pd.read_parquet(folder / 'result.parquet'), result)
    in_content(json.loads((folder / 'result.json').read_text()), result)
    again = Result.load(folder)
    assert text_table(again) == text_table(result) and again._repr_html_() == result._repr_html_()
    for suffix, read in (('.csv', read_csv), ('.parquet', pd.read_parquet)):
        in_rows(read(result.save(tmp_path / f'one{suffix}')), result)


def test_an_older_result_says_that_it_does_not_know(result: Result, tmp_path: Path) -> None:
    "Saved without these columns, and in the earlier order."
    names = [f'test_{name}' for name in BELIEFS]
    older = result.frame.drop(columns=names)
    older = older[['test_index', *(c for c in older if c != 'test_index')]]
    tests = result.tests[
        ['test_head', 'test_relation', 'test_tail', 'head_id', 'relation_id', 'tail_id']
    ]
    made = Result(older, {n: x for n, x in result.facts.items() if n != 'beliefs'}, tests)
    made.frame = older
    again = Result.load(made.save(tmp_path / 'older'))
    assert [*again.frame.columns[:4]] == ['head', 'relation', 'tail', 'influence']
    assert text_table(again).count(UNKNOWN) == len(result) and UNKNOWN in again._repr_html_()
    assert UNKNOWN in repr(again) and 'rank not known' in again.plot().get_title()
    assert again.outlook() == ''


def test_resumed_and_spread(run: Run, test: torch.Tensor, result: Result, tmp_path: Path) -> None:
    "What workers and a folder give holds the same."
    folder = tmp_path / 'folder'
    TracIn(run, weighting='sgd', progress=False).explain(test, k=3, out=folder)
    for again in (resume(folder, progress=False), Result.load(folder)):
        pd.testing.assert_frame_equal(again.tests, result.tests, check_dtype=False)
        assert again.facts['beliefs'] == result.facts['beliefs']


def test_made_from_another(run: Run, result: Result) -> None:
    "By checkpoint, and by neighbourhood."
    in_text(text_table(TracIn(run, weighting='sgd', progress=False).by_checkpoint(result)), result)


def test_on_the_command_line(run: Run, result: Result, test: torch.Tensor, tmp_path: Path) -> None:
    "As table, CSV and JSON, and beside a folder."
    ask = [
        'run',
        str(run.folder),
        '--test-triples',
        str(file := tmp_path / 'test.tsv'),
        '-k',
        '3',
        '--weighting',
        'sgd',
    ]
    file.write_text(''.join('\t'.join(row) + '\n' for row in labels(run, test)))
    forms = dict(
        table=[], csv=['--format', 'csv'], json=['--format', 'json', '--out', tmp_path / 'o']
    )
    done = {
        form: CliRunner().invoke(cli.main, [*ask, *map(str, more)]) for form, more in forms.items()
    }
    assert all(x.exit_code == 0 for x in done.values()), [x.output for x in done.values()]
    in_text(done['table'].stdout, result)
    (tmp_path / 'out.csv').write_text(done['csv'].stdout, newline='')
    in_rows(read_csv(tmp_path / 'out.csv'), result)
    in_content(json.loads(done['json'].stdout), result)
    words = result.outlook()
    assert words and words in done['table'].stdout and words in done['csv'].stderr
    assert words in done['json'].stderr


def test_in_a_replay(run: Run, result: Result, test: torch.Tensor, tmp_path: Path) -> None:
    "Which says in every form that it is one, and not TracIn."
    found = replay(run, test, k=3, check=2, progress=False, out=tmp_path / 'folder')
    pd.testing.assert_frame_equal(found.tests[[*BELIEFS]], result.tests[[*BELIEFS]], rtol=1e-4)
    assert found.facts['beliefs'] == result.facts['beliefs']
    folder = found.save(tmp_path / 'saved')
    in_rows(read_csv(folder / 'result.csv'), found)
    content = json.loads((folder / 'result.json').read_text())
    in_content(content, found)
    assert content['caveat'] == found.to_frame().attrs['caveat'] == CAVEAT_OF_REPLAY
    again, ask = Result.load(tmp_path / 'folder'), ['replay', str(run.folder), '--check', '0']
    said = CliRunner().invoke(cli.main, [*ask, '--triple', *labels(run, test)[3], '--verbose'])
    assert said.exit_code == 0, said.output
    in_text(said.output, found[3], 1)
    assert CAVEAT_OF_REPLAY in said.output and 'not checked by dropping triples' in said.output
    for text in (text_table(found), found._repr_html_(), repr(again), said.output):
        assert 'Replay: exact derivative of the recorded training' in text
        assert 'TracIn estimate' not in text and CAVEAT not in text
    for text in (text_table(found), repr(found), repr(again), found._repr_html_()):
        assert 'repeated bit for bit' in text and '2 triples were really dropped' in text
    assert result.facts['rung'] == 'estimate' and 'TracIn estimate' in repr(result)


def test_in_a_batch(run: Run, result: Result, test: torch.Tensor, tmp_path: Path) -> None:
    "In the summary, new or skipped, and in the file of each prediction."
    (tmp_path / 'test.tsv').write_text(''.join('\t'.join(row) + '\n' for row in labels(run, test)))
    ask = [
        'batch',
        str(run.folder),
        '--test',
        str(tmp_path / 'test.tsv'),
        '--output-dir',
        str(tmp_path / 'out'),
    ]
    for more in ([], ['--skip-existing']):
        assert CliRunner().invoke(cli.main, [*ask, *more]).exit_code == 0
        summary = json.loads((tmp_path / 'out' / SUMMARY).read_text())
        in_content(dict(tests=summary['results']), result)
        assert f'{summary["not_predicted"]} of 6' in result.outlook()
    for i, row in enumerate(summary['results']):
        (name,) = (x for x in row['files'] if x.endswith('.json'))
        in_content(json.loads((tmp_path / 'out' / name).read_text()), result[i])


def test_in_panels(run: Run, result: Result, test: torch.Tensor) -> None:
    "The explorer, and two runs compared."
    explorer, one = InfluenceExplorer(run), result[3]
    explorer.draw = lambda: None
    explorer.show(ExplorerQuestion(labels(run, test)[3]), one)
    in_text(explorer.view.content, one)
    a = TracIn(run, weighting='sgd', progress=False)
    both = compare(a, a, test[3], k=2)
    for text in (repr(both), both._repr_html_(), text_table(both)):
        assert text.count('tail rank') == 2 and text.count(' · in test') == 2
    assert (both.frame['test_known'] == 'test').all() and both.facts['beliefs'][0]['run'] == 'a'


@pytest.mark.parametrize('name', ['TransE', 'RotatE', 'DistMult', 'ConvE'])
def test_equal_queries_are_scored_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triples in any order, with the same head and relation or twice: each gets the rank that it
    has alone, also where only some entities are scored at once."""
    training = graph(inverse=name == 'ConvE')
    run = Run.from_model(build(name, training), training, learning_rates=[0.1])
    triples = training.mapped_triples[torch.tensor([40, 3, 17, 3, 41, 2, 40, 0])]
    model = run.model(-1, 'cpu')
    alone = pd.concat([ranked(run, model, t[None], ('tail', 'head')) for t in triples])
    scored, real = [], module.candidate_scores

    def counted(model: Any, queries: Any, candidates: Any = None) -> torch.Tensor:
        if candidates is None:  # all entities; else it is tried what a few of them take
            scored.append(len(queries))
        return real(model, queries, candidates)

    monkeypatch.setattr(module, 'candidate_scores', counted)
    for bytes_ in (2**26, 2**8):
        monkeypatch.setattr(module, 'room', lambda device, n=bytes_: n)
        scored.clear()
        found = ranked(run, model, triples, ('tail', 'head'))
        pd.testing.assert_frame_equal(found, alone.reset_index(drop=True))
        pairs = sum(len(triples[:, c].unique(dim=0)) for c in ([0, 1], [1, 2]))
        assert bytes_ < 2**26 or sum(scored) == pairs


class Halved(DistMult):
    "A model that scores tails in its own way."

    def score_t(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        "Half of what a DistMult gives."
        return super().score_t(*args, **kwargs) / 2


@pytest.mark.parametrize('side', ['tail', 'head'])
def test_scores_of_candidates_are_the_models_own(side: module.Side) -> None:
    "Also with other norms, and where a class scores in its own way."
    training, by = graph(), dict(embedding_dim=8, random_seed=0)
    given = dict(triples_factory=training, random_seed=0)
    tables = dict(
        entity_representations_kwargs=dict(shape=8, dtype=torch.cfloat),
        relation_representations_kwargs=dict(shape=8, dtype=torch.cfloat),
    )
    rotate = partial(ERModel, interaction='rotate', **given, **tables)
    models = [
        Halved(triples_factory=training, **by),
        rotate(interaction_kwargs=dict(p=1)),
        rotate(interaction_kwargs=dict(p=2, power_norm=True)),
        rotate(),
        TransE(triples_factory=training, scoring_fct_norm=3, **by),
        TransE(triples_factory=training, power_norm=True, scoring_fct_norm=2, **by),
    ]
    queries = module.Softmax(side).queries(training.mapped_triples)
    for model in models:
        found = module.candidate_scores(model.eval(), queries)
        torch.testing.assert_close(found, score(model, queries), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('name', ['inductivenodepiece', 'inductivenodepiecegnn'])
def test_inductive_models(name: str) -> None:
    """They are asked about the graph that they were trained on: what they believe, what they
    predict, and why; also about one triple, of which PyKEEN's GNN forgets that it is a batch."""
    training = graph(True)
    training = training.clone_and_exchange_triples(training.mapped_triples[::40])
    model, some = build(name, training).eval(), training.mapped_triples[:3]
    run = Run.from_model(model, training, learning_rates=[0.1])
    exact = model.score_hrt(some, mode='training').flatten().detach()
    rows = model.predict_t(some[:, :2], mode='training')
    for triples in (some, some[:1]):
        found = beliefs(run, triples, ('tail', 'head'))
        torch.testing.assert_close(torch.tensor(found['score']), exact[: len(triples)])
        assert len(TracIn(run, 'bce', progress=False).explain(triples, k=3).frame)
    head, relation, _ = labels(run, some[:1])[0]
    best = run.predict(head=head, relation=relation, k=1, known='show')
    assert best['score'][0] == pytest.approx(float(rows[0].max()), rel=1e-4)
    assert len(run.predict(head=head, k=3)) == 3


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_memory_does_not_grow_with_the_number_of_ranks() -> None:
    """Small results that are kept between large pieces of memory would keep the C library from
    using those again: a gigabyte for a thousand ranks, in a process that has worked before."""
    script = """
    from pathlib import Path

    import torch
    from pykeen.models import ComplEx
    from pykeen.triples import TriplesFactory

    from tracin_nb.engine.beliefs import ranked
    from tracin_nb.runs.run import Run

    def resident():
        return int(Path('/proc/self/statm').read_text().split()[1]) * 4096 / 2**20

    for size in (1, 4, 16, 31):  # each raises the size of pieces up to which they are kept
        torch.ones(size * 2**18)
    torch.manual_seed(0)
    E, N = 20_000, 600
    triples = torch.stack([torch.randint(n, (N,)) for n in (E, 5, E)], 1)
    labels = [{str(i): i for i in range(n)} for n in (E, 5)]
    training = TriplesFactory(triples, *labels)
    model = ComplEx(triples_factory=training, embedding_dim=64, random_seed=0)
    run = Run.from_model(model, training, learning_rates=[0.1])
    model = run.model(-1, 'cpu')
    ranked(run, model, triples[:8], ('tail',))
    start = resident()
    ranked(run, model, triples, ('tail', 'head'))
    assert resident() - start < 100, resident() - start
    """
    subprocess.run([sys.executable, '-W', 'ignore', '-c', textwrap.dedent(script)], check=True)
