"""Second moments from a sample: drawn for the question, the same whoever draws it, unbiased, with
an error that is stated, and never of more training triples than it says."""

import pytest
import torch
from pykeen.models import DistMult
from pykeen.triples import TriplesFactory
from torch import Tensor

from tracin_nb.answer.results import facts_line
from tracin_nb.engine.objectives import BCE, Contrast, Objective, Softmax, losses, make_objective
from tracin_nb.engine.shortcuts import Only
from tracin_nb.engine.weightings import Cosine, Natural
from tracin_nb.influence import moments
from tracin_nb.influence.moments import aim, chances, first_size, scored_with, take_sample
from tracin_nb.influence.parts import Parts
from tracin_nb.influence.settings import Settings
from tracin_nb.influence.tracin import TracIn
from tracin_nb.runs.run import Run

pytestmark = pytest.mark.filterwarnings('ignore')
N, E, R, K = 2_400, 300, 20, 2
SLCWA = dict(loop='slcwa', loss='softplus', negative_sampler='basic')


def graph(n: int = N) -> TriplesFactory:
    "Distinct random triples, sorted as PyKEEN has them."
    order = torch.randperm(E * R * E, generator=torch.Generator().manual_seed(0))[:n].sort().values
    triples = torch.stack([order // (R * E), order // E % R, order % E], 1)
    names = ({f'{kind}{i}': i for i in range(count)} for kind, count in (('e', E), ('r', R)))
    return TriplesFactory(triples, *names)


def some_run(seed: int) -> Run:
    every = graph()
    made = [
        DistMult(triples_factory=every, embedding_dim=4, random_seed=seed + i) for i in range(K)
    ]
    states = [m.state_dict() for m in made]
    sampler = dict(negative_sampler_kwargs=dict(num_negs_per_pos=2))
    return Run.from_model(
        made[0], every, states=states, learning_rates=[0.5, 0.25], seed=seed, **SLCWA, **sampler
    )


@pytest.fixture(scope='module')
def run() -> Run:
    return some_run(3)


@pytest.fixture(scope='module')
def tests(run: Run) -> Tensor:
    "Two predictions: what is asked first, and what is asked next."
    return torch.tensor([[7, 1, 250], [100, 4, 3]])


def make(run: Run, objective: str = 'bce', **options) -> TracIn:
    return TracIn(
        run, objective, **dict(dict(devices='cpu', progress=False, moments=0.2), **options)
    )


def read(tracin: TracIn) -> int:
    "Training triples read for second moments: first looks, and samples."
    looks = len(take_sample(torch.zeros(N), first_size(N)).rows) * K
    return looks + sum(len(step.moments[0].rows) for step in tracin.steps)


def same(a: TracIn, b: TracIn, test: Tensor) -> None:
    assert torch.equal(a.scores(test), b.scores(test))


# ---- when


def test_all_are_read_where_that_is_cheap(run, tests) -> None:
    "By default, to the last bit as by request; the result says nothing of a sample."
    default, exact = make(run, moments='auto'), make(run, moments='exact')
    same(default, exact, tests)
    default.scores(tests[1:])
    for tracin in (default, exact):
        assert tracin.counters.covariance_triples == K * N and not tracin.steps.moments


def test_a_sample_of_many(run, tests, monkeypatch) -> None:
    "Beyond the size; exact on request; a restricted question reads no more than the sample."
    monkeypatch.setattr(moments, 'EXACT', N - 1)
    monkeypatch.setattr(moments, 'ERROR', 0.2)
    assert aim('auto', N) == 0.2 and aim('exact', N) is None and aim(0.5, 1) == 0.5
    tracin, few = make(run, moments='auto'), run.training.mapped_triples[:40]
    result = tracin.explain(tests, 3, train=few)
    assert tracin.counters.covariance_triples == read(tracin) < K * N / 2
    assert tracin.counters.train_passes <= K * 3
    facts = result.facts['moments']
    assert facts['of'] == N and facts['in_full'] < facts['read'] < N / 2
    assert 0 < facts['relative_error'] == max(facts['by_parameter'].values()) < 0.2
    said = f'second moments estimated from {facts["read"]} of 2,400 training triples (relative'
    assert said in facts_line(result.facts)
    assert make(run, moments='exact').steps[1].moments is None


@pytest.mark.parametrize('moments', ['all', 0, 1, -0.1, float('nan'), None, '2', [0.1]])
def test_what_is_no_error(moments) -> None:
    with pytest.raises(ValueError, match=r"moments is .*, expected 'auto', 'exact' or a number"):
        Settings(moments=moments)
    assert Settings(moments='0.1') == Settings(moments=0.1)
    assert Settings(moments=0.1).chosen() == dict(moments=0.1) and Settings().chosen() == {}


# ---- which


def by_loop(run: Run, objective: Objective, triples: Tensor) -> Tensor:
    "The definition: squared lengths `[n, E]` of each triple's gradient by each entity's row."
    model, found = run.model(0), []
    table = model.entity_representations[0]._embeddings.weight
    for triple in triples:
        loss = losses(model, objective, triple[None])[0]
        found.append(torch.autograd.grad(loss, table)[0].square().sum(1))
    return torch.stack(found).double()


@pytest.mark.parametrize('objective', ['bce', 'training'])
def test_rows_of_the_question_are_exact(run, tests, objective: str) -> None:
    """Those of its entities, negatives among them, to rounding in any sample; the others on
    average, with the error that is stated."""
    loss, every, test = make_objective(objective, run), run.training.mapped_triples[::6], tests[:1]
    squares, least = by_loop(run, loss, every), chances(every, (E, R), loss, test, loss)
    asked = scored_with(loss, test)[..., [0, 2]].unique()
    assert len(asked) == 2 if objective == 'bce' else len(asked) > 2
    truth, found, errors = squares.mean(0), [], []
    for seed in range(40):
        one = take_sample(least, 50, seed)
        weighted = squares[one.rows] * one.weights[:, None] ** 2
        torch.testing.assert_close(weighted.mean(0)[asked], truth[asked])
        found.append((weighted.mean() / squares.mean()).item())
        spread = moments.Spread()
        spread.add(dict(table=weighted.sum(1)), one.chance)
        errors.append(spread.worst)
    found, stated = torch.tensor(found), torch.tensor(errors).mean()
    real = (found - 1).square().mean().sqrt()
    assert abs(found.mean() - 1) < 4 * real / len(found) ** 0.5
    assert 0.7 < real / stated < 1.4


def test_hubs_and_what_is_compared(run, tests, monkeypatch) -> None:
    "A row with many triples is read in part; a contrast's other tail is a row of the question."
    every, one = run.training.mapped_triples, tests[:1]
    monkeypatch.setattr(moments, 'EACH', 5)
    least = chances(every, (E, R), BCE(), one, BCE())
    r = every[:, 1] == one[0, 1]
    assert (least[r] >= 5 / r.sum()).all() and least[r].min() < 1
    monkeypatch.undo()
    against = chances(every, (E, R), BCE(), one, Contrast(against=42))
    assert (against[(every[:, [0, 2]] == 42).any(1)] == 1).all()
    assert chances(every, (E, R), Softmax(), one, Softmax()).mean() < 0.2


# ---- the same whoever asks


@pytest.mark.parametrize('weighting', ['natural', Cosine(Only(2, Natural(table=0)))])
def test_the_next_question(run, tests, weighting) -> None:
    """It draws its own sample without loading anything again, and gets the numbers of a fresh
    start; the same question draws nothing."""
    asked = make(run, weighting=weighting)
    asked.scores(tests[:1])
    first = asked.counters.covariance_triples
    same(asked, make(run, weighting=weighting), tests[1:])
    second = asked.counters.covariance_triples
    assert second > first and asked.counters.loads == K
    asked.scores(tests[1:])
    assert asked.counters.covariance_triples == second
    fresh = make(run, weighting=weighting)
    fresh.scores(tests[1:])
    assert read(fresh) == fresh.counters.covariance_triples  # nothing was drawn in vain


def test_a_question_that_takes_all_changes_nothing(run, tests) -> None:
    "Not for the next one, which would get other numbers where it is resumed."
    asked = make(run)
    asked.self_influence(5)
    assert not asked.steps.moments
    same(asked, make(run), tests)


def test_interrupted_while_drawing(run, tests) -> None:
    "The samples of the last question are not taken for those of this one."
    stops = []

    def progress(label: str, done: int, total: int) -> None:
        if stops and label == 'second moments':
            raise KeyboardInterrupt(stops.pop())

    asked = make(run, progress=progress)
    asked.scores(tests[:1])
    stops.append(1)
    with pytest.raises(KeyboardInterrupt):
        asked.scores(tests[1:])
    assert not stops
    same(asked, make(run), tests[1:])


def test_what_is_prepared_holds_no_moments(run, tests) -> None:
    "Stored training gradients serve every question, each with its own sample."
    ready = make(run)
    ready.prepare('100MB')
    ready.explain(tests[:1], 5)
    one, other = ready.explain(tests[1:], 5), make(run).explain(tests[1:], 5)
    assert 'store' in one.facts and one.facts['moments'] == other.facts['moments']
    assert one.frame.equals(other.frame)


def test_resumed_and_shared_out(run, tests, tmp_path) -> None:
    "A resumed question draws the same sample; a worker gets the metric as it is."
    want, write = make(run, batch_size=100).explain(tests, 5), Parts.write

    def some(self, shard: int, tables: dict) -> None:
        if shard == 9:
            raise KeyboardInterrupt
        write(self, shard, tables)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Parts, 'write', some)
        make(run, batch_size=100).explain(tests, 5, out=tmp_path)
    tracin = make(run, batch_size=100)
    found = tracin.explain(tests, 5, out=tmp_path)
    assert found.frame.equals(want.frame) and tracin.counters.shards < N // 100
    there = tracin.steps.sent(tests, whole=True)('cpu')
    for ours, theirs in zip(tracin.steps, there):
        a, b = (s.metric.test(s.test(tests)).norm2() for s in (ours, theirs))
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match='moments'):
        make(run, moments='exact', batch_size=100).explain(tests, 5, out=tmp_path)


def test_self_influence(run) -> None:
    "All rows are rows of the question: everything is read, and the numbers are exact."
    some, few = make(run).self_influence(20), run.training.mapped_triples[:3]
    assert some.frame.equals(make(run, moments='exact').self_influence(20).frame)
    tracin = make(run)
    assert tracin.self_influence(3, train=few).facts['moments']['read'] < N / 2
    assert tracin.counters.covariance_triples == read(tracin)


def test_several_runs(run, tests) -> None:
    "Each run has its own sample; the result states the larger error."
    facts = TracIn([run, some_run(8)], 'bce', devices='cpu', progress=False, moments=0.2).explain(
        tests, 3
    )
    assert 0 < facts.facts['moments']['relative_error'] < 0.2
