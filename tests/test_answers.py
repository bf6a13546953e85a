"""Answers that could mislead: rounding that is ranked, nothing without a reason, numbers that
are none, lost rows."""

import copy
import json
import warnings
from functools import cache

import pytest
import torch
from click.testing import CliRunner
from pykeen.models import Model, model_resolver
from pykeen.triples import TriplesFactory
from torch import Tensor

from tests.models import fit, graph
from tracin_nb import Run, TracIn, train
from tracin_nb.answer.results import Result, text_table
from tracin_nb.app import cli
from tracin_nb.engine.factors import inner
from tracin_nb.engine.rounding import lengths, limit, sizes
from tracin_nb.influence.parts import Parts
from tracin_nb.influence.tracin import Near, resume

QUESTIONS = graph().mapped_triples[5::130]  # 13
TWO = ['cpu', 'cpu']


def make(run, *args, **kwargs):
    return TracIn(run, *args, **dict(weighting='sgd', devices='cpu', progress=False) | kwargs)


# ---- below rounding


@cache
def trained(name: str, loss: str) -> Model:
    "A model after two epochs."
    torch.manual_seed(0)
    return fit(
        model_resolver.make(name, triples_factory=graph(), embedding_dim=8, loss=loss), graph()
    )


def fitted(name: str, loss: str, dtype: torch.dtype) -> Run:
    "The same in `dtype`."
    return Run.from_model(
        copy.deepcopy(trained(name, loss)).to(dtype), training=graph(), learning_rates=[0.1]
    )


def truth(run: Run, objective: str) -> tuple[Tensor, Tensor]:
    "Influences `[M, N]`, and the sums of |terms|, by plain products."
    tracin = make(run, test_objective=objective)
    (step,) = tracin.steps
    sides = step.test(QUESTIONS), step.train(graph().mapped_triples)
    return step.rate * inner(*sides).double(), step.rate * inner(*map(lengths, sides))


def listed(result: Result) -> Tensor:
    "Which pairs are listed, as booleans `[M, N]`."
    found = torch.zeros(len(result), graph().num_triples, dtype=torch.bool)
    found[torch.tensor(result.frame[['test_index', 'training_index']].to_numpy()).T.unbind()] = True
    return found


@pytest.mark.parametrize('name', ['TransE', 'UM', 'SE', 'TransF', 'DistMult'])
@pytest.mark.parametrize('objective', ['training', 'softmax'])
def test_only_what_is_above_rounding(name, objective):
    """With room for all, float32 lists the influences that float64 finds, however small, and no
    others."""
    real, terms = truth(fitted(name, 'nssa', torch.float64), objective)
    tracin = make(fitted(name, 'nssa', torch.float32), test_objective=objective)
    result = tracin.explain(QUESTIONS, k=graph().num_triples)
    zero = real.abs() <= limit(torch.float64) * terms
    assert not (listed(result) & zero).any()
    assert not (~listed(result) & (real.abs() > 4 * limit(torch.float32) * terms)).any()
    if name in ('TransE', 'UM') and objective == 'training':
        assert (zero & (real != 0)).any()  # terms that cancel
    if name == 'TransF':
        assert result.frame['influence'].abs().min() < 1e-6 * real.abs().max()


def test_tiny_is_not_rounding():
    "Influences of tiny gradients are far below those of others, and stay."
    run = fitted('DistMult', 'softplus', torch.float32)
    model = run.model(0)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(7)
    tracin = make(Run.from_model(model, training=graph(), learning_rates=[0.1]), 'bce')
    scores, result = tracin.scores(QUESTIONS), tracin.explain(QUESTIONS, k=graph().num_triples)
    least = torch.finfo(torch.float32).tiny  # below it the last bits are chance, and 0 may be one
    assert not ((listed(result) != (scores != 0)) & (scores.abs() >= least)).any()
    assert (result.frame['influence'].abs() >= least).sum() == (scores.abs() >= least).sum()
    assert 0 < result.frame['influence'].abs().min() < 1e-12 * scores.abs().max()


def test_whole_lengths_are_no_bound():
    """A pair that shares only a small part of its gradients keeps its influence: what does not
    meet does not count."""
    real, terms = truth(fitted('TransF', 'nssa', torch.float64), 'score')
    tracin = make(fitted('TransF', 'nssa', torch.float32), test_objective='score')
    (step,) = tracin.steps
    whole = (
        step.rate * sizes(step.test(QUESTIONS))[:, None] * sizes(step.train(graph().mapped_triples))
    )
    taken = (real != 0) & (real.abs() <= limit(torch.float32) * whole)
    assert taken.any() and listed(tracin.explain(QUESTIONS, k=graph().num_triples))[taken].all()


def ways(run: Run, folder) -> dict[str, Result]:
    "The same question, in every form that a pass can have."
    ask, N = dict(k=run.training.num_triples), run.training.num_triples
    every = Near([torch.arange(N)] * len(QUESTIONS))
    found = {
        'index': make(run).explain(QUESTIONS, **ask),
        'tiles': make(run, batch_size=97).explain(QUESTIONS, **ask),
        'dense': make(run).explain(QUESTIONS, near=every, **ask),
        'dense tiles': make(run, batch_size=97).explain(QUESTIONS, near=every, **ask),
        'loop': make(run, engine='loop', batch_size=500).explain(QUESTIONS, **ask),
    }
    for name, kept in (('memory', {}), ('files', dict(folder=folder / 'kept'))):
        ready = make(run, batch_size=300)
        ready.prepare(**kept)
        found[name] = ready.explain(QUESTIONS, **ask)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Parts, 'close', lambda *_: None)
        make(run, batch_size=97).explain(QUESTIONS, out=folder / 'out', **ask)
    for i, part in enumerate(sorted((folder / 'out' / 'parts').iterdir())):
        if i % 3:
            part.unlink()
    for path in (folder / 'out').glob('[rm]*.*'):
        path.unlink()
    return found | dict(
        resumed=make(run, batch_size=97).explain(QUESTIONS, out=folder / 'out', **ask)
    )


def test_same_in_every_form(tmp_path):
    """Index, tiles, kept tiles, parts of an interrupted question: the same is listed, and as
    many slopes are counted."""
    run = fitted('TransE', 'marginranking', torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        found = ways(run, tmp_path)
    first = found.pop('index')
    assert 0 < first.facts['training_triples_with_slope'] < graph().num_triples
    for name, other in found.items():
        assert torch.equal(listed(other), listed(first)), name
        assert (
            other.facts['training_triples_with_slope'] == first.facts['training_triples_with_slope']
        ), name
        assert other.tests['has_slope'].tolist() == first.tests['has_slope'].tolist(), name


# ---- nothing, and why


@pytest.fixture(scope='module')
def margin(tmp_path_factory) -> Run:
    "PyKEEN's defaults: many margins are kept."
    return train(
        'nations',
        model='TransE',
        model_kwargs=dict(embedding_dim=8),
        lr=0.05,
        epochs=40,
        keep_every=39,
        loss='marginranking',
        loss_kwargs=dict(margin=0.2),
        progress=False,
        device='cpu',
        out=tmp_path_factory.mktemp('margin') / 'run',
    )


def sloped(run: Run, triples: Tensor) -> Tensor:
    "Which triples have a gradient other than 0 at some checkpoint, by the plain loop."
    tracin = make(run, engine='loop')
    return torch.stack(
        [
            sum(
                b.grad.flatten(1).abs().amax(1)
                for bs in s.train(triples).blocks.values()
                for b in bs
            )
            > 0
            for s in tracin.steps
        ]
    ).any(0)


def test_slopes_are_counted(margin):
    "As many as the plain loop finds, in a whole pass, a part of it, and in self-influence."
    every, part = margin.training.mapped_triples, margin.training.mapped_triples[::9]
    has = sloped(margin, every)
    assert 0 < has.sum() < len(every)
    flat, steep = every[~has][:3], every[has][:2]
    tracin = make(margin, batch_size=200)
    with pytest.warns(UserWarning, match='3 of 5 test triples: no influence'):
        result = tracin.explain(torch.cat([flat, steep]), k=5)
    assert result.facts['training_triples_with_slope'] == has.sum()
    assert result.tests['has_slope'].tolist() == [False] * 3 + [True] * 2
    assert (
        tracin.explain(steep, train=part).facts['training_triples_with_slope']
        == sloped(margin, part).sum()
    )
    assert tracin.self_influence(5).facts['training_triples_with_slope'] == has.sum()
    assert (
        make(margin, devices=TWO, batch_size=200)
        .explain(steep)
        .facts['training_triples_with_slope']
        == has.sum()
    )


def test_an_empty_answer_says_why(margin, tmp_path):
    """In the table, the HTML, the JSON, and again when it is loaded; what is promised of other
    objectives holds."""
    every = margin.training.mapped_triples
    flat = every[~sloped(margin, every)][:4]
    with pytest.warns(UserWarning, match='no slope at any checkpoint'):
        result = make(margin).explain(flat, k=5)
    assert not len(result.frame)
    count = f'{result.facts["training_triples_with_slope"]:,} of the 1,592 training triples'
    for shown in (
        result,
        result[2],
        Result.load(result.save(tmp_path / 'saved')),
        result.by_strength(5),
    ):
        for text in (
            text_table(shown).replace('\n  ', ' '),
            shown._repr_html_().replace('&quot;', '"'),
        ):
            assert (
                count in text and 'no slope at any checkpoint' in text and 'with "softmax"' in text
            )
            assert text.count('no influence: ') == len(shown)
    said = json.loads((tmp_path / 'saved/result.json').read_text())
    assert [t['has_slope'] for t in said['tests']] == [False] * 4
    assert (
        said['facts']['training_triples_with_slope'] == result.facts['training_triples_with_slope']
    )
    for name in said['facts']['test_objectives_with_slope']:
        other = make(margin, test_objective=name).explain(flat, k=5)
        assert other.tests['has_slope'].all() and not other.emptiness()
        assert set(other.frame['test_index']) == {0, 1, 2, 3}
        assert 'test_objectives_with_slope' not in other.facts


def test_nothing_to_push(margin):
    "Where no training triple has a slope, no test objective is promised to help."
    every = margin.training.mapped_triples
    flat = every[~sloped(margin, every)]
    with pytest.warns(UserWarning, match='no training triple has a slope'):
        result = make(margin, test_objective='score').explain(flat[:1], train=flat[5:9])
    assert result.facts['training_triples_with_slope'] == 0 and 'with "' not in result.note(0)
    own = make(margin).self_influence(3, train=flat[5:9])
    assert '0 of the 4 training triples checked have a slope' in text_table(own)
    with pytest.warns(UserWarning, match='no training triple to check'):
        make(margin, test_objective='score').explain(
            flat[:1], near=Near([torch.tensor([], dtype=torch.long)])
        )


def test_the_command_says_it(margin, tmp_path):
    "On stderr too, with status 0: nothing went wrong."
    every = margin.training.mapped_triples
    labels = [
        margin.training.entity_id_to_label,
        margin.training.relation_id_to_label,
        margin.training.entity_id_to_label,
    ]
    flat = [names[i] for names, i in zip(labels, every[~sloped(margin, every)][0].tolist())]
    done = CliRunner().invoke(
        cli.main, ['explain', str(margin.folder), '--triple', *flat, '--weighting', 'sgd']
    )
    assert done.exit_code == 0, done.output
    for text in (done.stdout.replace('\n  ', ' '), done.stderr):
        assert 'no slope at any checkpoint' in text and 'with "softmax"' in text
    assert 'Traceback' not in done.stderr and done.stderr.count('warning') == 1


# ---- numbers that are none


@pytest.fixture(scope='module')
def huge() -> Run:
    "Weights and a learning rate whose products overflow float32."
    model = fit(model_resolver.make('DistMult', triples_factory=graph(), embedding_dim=4), graph())
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1e4)
    return Run.from_model(model, training=graph(), learning_rates=[1e32])


def test_overflow_is_refused(huge, tmp_path):
    "Never ranked, never written: the error names the triples."
    tracin = make(huge, 'score', batch_size=400)
    one = huge.training.mapped_triples[7]
    with pytest.raises(
        ValueError,
        match=r"the influence of \('.*'\) on itself is (inf|nan), expected a finite number",
    ):
        tracin.self_influence(3)
    for ask in (
        tracin.explain,
        tracin.scores,
        lambda t: tracin.write_scores(t, tmp_path / 'all.parquet'),
    ):
        with pytest.raises(
            ValueError, match=r"the influence of \('.*'\) on \('.*'\) is (-?inf|nan), expected"
        ):
            ask(one[None])
    assert not list(tmp_path.iterdir())


def test_overflow_on_the_training_side(tmp_path):
    """The test triple is sound, one entity of some training triples is not; workers say the
    same, and only that."""
    model = fit(model_resolver.make('DistMult', triples_factory=graph(), embedding_dim=4), graph())
    with torch.no_grad():
        next(model.parameters())[3] = 1e8
    run = Run.from_model(model, training=graph(), learning_rates=[1e33])
    h, _, t = graph().mapped_triples.T
    name, sound = (
        run.training.entity_id_to_label[3],
        graph().mapped_triples[(h != 3) & (t != 3)][:2],
    )
    tracin = make(run, 'score', batch_size=400)
    shared_out = make(run, 'score', batch_size=400, devices=TWO)
    for ask in (
        tracin.explain,
        tracin.scores,
        lambda t: tracin.write_scores(t, tmp_path / 'all'),
        shared_out.explain,
    ):
        with pytest.raises(
            ValueError, match=rf"the influence of \(.*'{name}'.*\) on \(.*\) is (-?inf|nan)"
        ):
            ask(sound)
    part = run.training.mapped_triples[((h != 3) & (t != 3))]
    assert len(tracin.explain(sound, train=part).frame)


# ---- each row counts


@pytest.fixture(scope='module')
def doubled() -> Run:
    "A training set that holds one triple three times and another one twice."
    rows = torch.tensor([*range(40), 7, 7, 30])
    factory = TriplesFactory(
        graph().mapped_triples[rows], graph().entity_to_id, graph().relation_to_id
    )
    torch.manual_seed(0)
    return Run.from_model(
        model_resolver.make('DistMult', triples_factory=factory, embedding_dim=4),
        training=factory,
        learning_rates=[0.1],
    )


@pytest.mark.parametrize('batch_size', [None, 7])
def test_every_row_that_holds_a_triple(doubled, batch_size):
    "Whatever names a triple means all its rows; naming it twice adds nothing."
    tracin, every = make(doubled, 'bce', batch_size=batch_size), doubled.training.mapped_triples
    test = every[[7]]
    whole, scores = tracin.explain(test, k=50), tracin.scores(test)[0]
    assert len(scores) == 43 and len(whole.frame) == (scores != 0).sum()
    assert {7, 40, 41, 30, 42} <= set(whole.frame['training_index'])
    for asked in (every[[7, 30, 0]], every[[30, 7, 7, 0, 41]], every[[0, 42, 40]]):
        part = tracin.explain(test, k=50, train=asked)
        assert part.facts['training_triples'] == 6
        kept = whole.frame[whole.frame['training_index'].isin([7, 40, 41, 30, 42, 0])]
        assert sorted(part.frame['training_index']) == sorted(kept['training_index'])
    again = tracin.explain(test, k=50, train=every)
    assert again.frame['training_index'].tolist() == whole.frame['training_index'].tolist()
    own = tracin.self_influence(50, train=every[[7]]).frame
    assert sorted(own['training_index']) == [7, 40, 41] and own['influence'].nunique() == 1
    with pytest.raises(ValueError, match='is not a training triple'):
        tracin.explain(test, train=graph().mapped_triples[[50]])


def test_a_sample_is_resumed_as_it_was_drawn(margin, tmp_path):
    "A part of chosen training triples is the same part when the question goes on."
    from tracin_nb.engine.shortcuts import Sample

    ask = dict(k=5, train=margin.training.mapped_triples[:200], sample=Sample(0.5))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Parts, 'close', lambda *_: None)
        first = make(margin, 'bce', batch_size=20).explain(
            QUESTIONS[:2], out=tmp_path / 'out', **ask
        )
    again = resume(tmp_path / 'out', progress=False)
    assert again.frame['training_index'].tolist() == first.frame['training_index'].tolist()
    assert again.facts['training_triples'] == first.facts['training_triples'] < 120
