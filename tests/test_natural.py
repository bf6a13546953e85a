"""The default weighting against its definition on the method page, and what is zero in theory."""

from __future__ import annotations

import copy
import math
from functools import cache

import pytest
import torch
from models import (
    TRAINABLE,
    Case,
    adjacency,
    double,
    error,
    fit,
    gradient,
    graph,
    lcwa,
    negatives,
    slcwa,
    trained,
)
from pykeen.losses import loss_resolver
from pykeen.models import Model, model_resolver
from pykeen.triples import TriplesFactory
from torch import Tensor, nn

from tracin_nb import Run, TracIn, train
from tracin_nb.engine.factors import Rows, inner
from tracin_nb.engine.gradients import ENGINES, Engine, FactoredEngine, Routes, choose_routes
from tracin_nb.engine.objectives import BCE, Objective, Score, Softmax
from tracin_nb.engine.weightings import WEIGHTINGS, Adam, Metric, Natural, RowBlocks, rounding
from tracin_nb.influence.memory import metered

pytestmark = pytest.mark.filterwarnings('ignore')
LOSSES = {
    'crossentropy': {},
    'infonce': {},
    'marginranking': dict(margin=1.0),
    'nssa': dict(margin=3.0),
    'bcewithlogits': {},
}
SLOW = ('rgcn', 'compgcn', 'inductivenodepiecegnn', 'autosf')
DTYPES = {torch.float32: 1e-4, torch.float64: 1e-6}
ZERO = {
    ('ermlp', 'interaction.hidden_to_score.bias'): ('crossentropy', 'infonce', 'marginranking'),
    ('convkb', 'interaction.linear.bias'): ('crossentropy', 'infonce', 'marginranking'),
    ('proje', 'interaction.b_p'): ('crossentropy', 'infonce', 'marginranking'),
    ('mure', 'entity_representations.1._embeddings.weight'): ('crossentropy',),
}


@cache
def some(name: str) -> tuple[Model, TriplesFactory, Tensor]:
    "A trained model, a few of its training triples, and test triples `[4, 3]`."
    if name == 'cp':  # of rank 64, unless told otherwise
        whole = graph()
        model = fit(
            model_resolver.make('cp', triples_factory=whole, embedding_dim=8, rank=3), whole
        )
    else:
        model, whole = trained(name)
    few = whole.clone_and_exchange_triples(whole.mapped_triples[:: 120 if name in SLOW else 60])
    few.create_inverse_triples = whole.create_inverse_triples
    return model, few, whole.mapped_triples[3::500]


@cache
def case(loss: str, name: str) -> Case:
    "A loss of PyKEEN: cross entropy of rows, others of a triple with seven negatives."
    few = some(name)[1]
    made = loss_resolver.make(loss, LOSSES[loss])
    return (
        lcwa(few, made) if loss == 'crossentropy' else slcwa(few, made, drawn=negatives(few, n=7))
    )


@cache
def routes(name: str, rows: bool) -> Routes:
    "How the factored engine differentiates rows, or triples with their negatives; found once."
    return choose_routes(
        some(name)[0].eval(), case('crossentropy' if rows else 'infonce', name).objective
    )


class Just(Run):
    "Only the training triples of a run."

    def __init__(self, training: TriplesFactory):
        self.training = training


def metric(engine: Engine, training: TriplesFactory, natural: Natural = Natural()) -> Metric:
    return natural.prepare(
        Just(training), 0, engine, map(engine, training.mapped_triples.split(16))
    )


def scores(
    model: Model,
    few: TriplesFactory,
    objective: Objective,
    test: Tensor,
    other: Objective | None = None,
    kind: str = 'factored',
    known: Routes | None = None,
) -> tuple[Tensor, dict[str, str]]:
    "Influence `[M, N]`, and what was left out."
    with adjacency(next(model.parameters()).dtype):
        engine = (
            ENGINES[kind](model, objective)
            if known is None
            else FactoredEngine(model, objective, known)
        )
        made = metric(engine, few)
        asked = engine if other is None else ENGINES[kind](model, other)
        return inner(
            made.test(asked(test)), made.train(engine(few.mapped_triples))
        ).double(), made.facts['left_out']


# ---- the definition, as the method page has it


def is_table(model: Model, name: str) -> bool:
    owner, _, last = name.rpartition('.')
    return last == 'weight' and isinstance(model.get_submodule(owner), nn.Embedding)


def inverse(C: Tensor, damping: Tensor | float) -> Tensor:
    return torch.linalg.inv(C + damping * torch.eye(len(C)).to(C))


def by_row(G: Tensor) -> Tensor:
    "P of a table: each row by itself, one damping for all. `G` `[N, n, d]`."
    C = torch.einsum('znd,zne->nde', G, G) / len(G)
    damping = 0.3 * C.diagonal(dim1=1, dim2=2).sum() / (C.shape[0] * C.shape[1])
    return torch.block_diag(*[inverse(c, damping) for c in C])


def whole(G: Tensor) -> Tensor:
    flat = G.reshape(len(G), -1)
    C = flat.T @ flat / len(G)
    return inverse(C, 0.3 * C.trace() / len(C))


def by_axis(G: Tensor, table: bool) -> Tensor:
    "P as a Kronecker product of one inverse for each axis of the parameter."
    P, long = torch.ones(1, 1).to(G), [n for n in G.shape[1:] if n > 1]
    for axis, n in enumerate(G.shape[1:]):
        unfolded = G.movedim(axis + 1, 0).reshape(n, -1)
        S = unfolded @ unfolded.T / len(G)
        if n > 4096 or table and axis == 0:
            S = S.diagonal().diag()
        P = torch.kron(P, inverse(S, 0.3 ** (1 / len(long)) * S.trace() / n if n > 1 else 0.0))
    return P * (G.square().sum() / len(G)) ** (G.dim() - 2)


def metric_of(G: Tensor, table: bool) -> Tensor:
    if table:
        return by_row(G) if G[0].numel() <= 2**15 else by_axis(G, True)
    return whole(G) if G[0].numel() <= 1024 else by_axis(G, False)


def reference(model: Model, loss: Case, train: Tensor, test: Tensor) -> Tensor:
    """Influence `[M, N]`: dense gradients from plain backward passes, parameter by parameter,
    dense matrices."""
    rows = lambda triples: torch.stack(
        [gradient(model, lambda: loss.truth(model, t[None])) for t in triples]
    )
    shapes = {n: p.shape for n, p in model.named_parameters() if p.requires_grad}
    a, b = (
        dict(zip(shapes, rows(x).split([s.numel() for s in shapes.values()], 1)))
        for x in (test, train)
    )
    largest, total = (
        max(g.abs().max() for g in b.values()),
        torch.zeros(len(test), len(train)).double(),
    )
    for name, shape in shapes.items():
        if b[name].abs().max() < 1e-12 * largest:
            continue  # zero in theory
        total += a[name] @ metric_of(b[name].view(-1, *shape), is_table(model, name)) @ b[name].T
    return total


@pytest.mark.parametrize('name', TRAINABLE)
def test_definition(name: str) -> None:
    "Every model, the five kinds of loss in turn."
    model, few, test = some(name)
    loss, exact = case([*LOSSES][TRAINABLE.index(name) % len(LOSSES)], name), double(model)
    with adjacency(torch.float64):
        expected = reference(exact, loss, few.mapped_triples, test)
    assert error(scores(exact, few, loss.objective, test)[0], expected) < 1e-6


# ---- rounding


@pytest.mark.parametrize('name', TRAINABLE)
def test_single_precision_is_enough(name: str) -> None:
    "float32 equals float64 under every kind of loss."
    model, few, test = some(name)
    exact, single = double(model), copy.deepcopy(model).eval()
    for loss in LOSSES:
        objective = case(loss, name).objective
        known = routes(name, loss == 'crossentropy')
        (a, left), (b, also) = (
            scores(m, few, objective, test, known=known) for m in (single, exact)
        )
        assert error(a, b) < 1e-4, loss
        assert (
            left.keys()
            == also.keys()
            == {p for (m, p), zero in ZERO.items() if m == name and loss in zero}
        ), loss


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('name,parameter', ZERO)
def test_what_is_zero_contributes_zero(name: str, parameter: str, dtype: torch.dtype) -> None:
    """Freezing it changes nothing, for test triples with the same loss or one that the parameter
    matters to."""
    model, few, test = some(name)
    for loss in ZERO[name, parameter]:
        for other in (None, Score(few.create_inverse_triples)):
            free, frozen = (copy.deepcopy(model).to(dtype).eval() for _ in range(2))
            frozen.get_parameter(parameter).requires_grad_(False)
            (a, left), (b, _) = (
                scores(m, few, case(loss, name).objective, test, other) for m in (free, frozen)
            )
            assert error(a, b) < DTYPES[dtype]
            assert 'zero up to rounding' in left[parameter]


@pytest.mark.parametrize('kind', ['loop', 'vmap'])
def test_every_engine_leaves_the_same_out(kind: str) -> None:
    model, few, test = some('ermlp')
    objective = case('infonce', 'ermlp').objective
    (a, left), (b, also) = (
        scores(model.eval(), few, objective, test, kind=k) for k in ('factored', kind)
    )
    assert left.keys() == also.keys() and error(b, a) < 1e-4


def test_rows_and_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hidden units of ERMLP that are the same for all candidates leave rounding in some rows of
    the relations."""
    factory = graph()
    torch.manual_seed(0)
    model = fit(
        model_resolver.make('ermlp', triples_factory=factory, embedding_dim=64), factory
    ).eval()
    relations, test = (
        'relation_representations.0._embeddings.weight',
        factory.mapped_triples[3::300],
    )
    objective = slcwa(
        factory, loss_resolver.make('infonce'), drawn=negatives(factory, n=7)
    ).objective
    (a, left), (b, _) = (scores(m, factory, objective, test) for m in (model, double(model)))
    assert error(a, b) < 1e-4
    assert 'rows and directions: rounding' in left[relations]
    monkeypatch.setattr('tracin_nb.engine.weightings.Rounding.floor', lambda *_: 0.0)
    assert error(scores(model, factory, objective, test)[0], b) > 3e-4


def test_small_gradients_are_no_rounding() -> None:
    """Parameters of very unlike sizes: a gradient may be a billionth of another, and still have
    all its digits."""
    model, few, test = some('distmult')
    uneven = copy.deepcopy(model).eval()
    with torch.no_grad():
        for name, p in uneven.named_parameters():
            p *= 1e5 if 'relation' in name else 1e-5
    (a, left), (b, _) = (scores(m, few, BCE(), test) for m in (uneven, double(uneven)))
    assert not left and error(a, b) < 1e-5


def test_rounding_gives_the_weights_back() -> None:
    model, few, _ = some('mure')
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    rounding(FactoredEngine(model.eval(), Softmax()), few.mapped_triples)
    for n, p in model.named_parameters():
        assert torch.equal(p, before[n])


def test_directions_below_the_floor() -> None:
    """By hand: two triples pull one row along (2, 0); along the second axis there is only noise
    of 1e-6."""
    rows, D = (
        RowBlocks('table', torch.zeros(2, 2, dtype=torch.float64), 2**20),
        dict(dtype=torch.float64),
    )
    rows.add(
        (
            Rows(
                torch.zeros(2, 1, dtype=torch.long),
                torch.tensor([[[2.0, 1e-6]], [[2.0, -1e-6]]], **D),
            ),
        )
    )
    ask = Rows(torch.tensor([[0, 1]]), torch.ones(1, 2, 2, **D))
    kept, filtered = (rows.inverse(2, 1.0, floor)(ask).grads[0] for floor in (0.0, 1e-9))
    torch.testing.assert_close(
        kept, torch.tensor([[1 / 5, 1], [1, 1]], **D)
    )  # 4 + damping of 1; only damping
    torch.testing.assert_close(filtered, torch.tensor([[1 / 5, 0], [0, 0]], **D))


# ---- every weighting, every model


@pytest.mark.parametrize('name', TRAINABLE)
def test_every_weighting(name: str) -> None:
    model, few, test = some(name)
    moments = {n: torch.rand(p.shape) * 1e-4 for n, p in model.named_parameters()}
    run = Run.from_model(
        model,
        few,
        learning_rates=[1.0],
        optimizer=('Adam', dict(betas=(0.9, 0.999), eps=1e-8)),
        optimizer_moments=[moments],
        steps=[100],
    )
    for weighting in WEIGHTINGS:
        found = TracIn(
            run,
            BCE(inverse=few.create_inverse_triples),
            weighting=weighting,
            progress=False,
            devices='cpu',
        ).scores(test[:2], few.mapped_triples[:8])
        assert found.isfinite().all() and found.any(), weighting


@pytest.mark.parametrize('weighting', ['adam', 'adam-cosine'])
def test_adam_leaves_out_what_is_zero(weighting: str, tmp_path) -> None:
    "The optimiser's second moments of a bias that changes nothing are rounding, too."
    run = train(
        'nations',
        'ERMLP',
        epochs=2,
        keep_every=2,
        loop='lcwa',
        loss='crossentropy',
        lr=0.01,
        out=tmp_path,
        model_kwargs=dict(embedding_dim=8),
        progress=False,
        device='cpu',
    )
    model, bias = run.model(-1, 'cpu'), 'interaction.hidden_to_score.bias'

    def ask(model: Model, objective: str) -> Tensor:
        given = Run.from_model(
            model,
            run.training,
            learning_rates=[0.01],
            optimizer=run.optimizer,
            loop='lcwa',
            optimizer_moments=[run.moments(-1)],
            steps=[run.checkpoints[-1].step],
        )
        tracin = TracIn(
            given, test_objective=objective, weighting=weighting, progress=False, devices='cpu'
        )
        return tracin.scores(run.training.mapped_triples[::400])

    free = {objective: ask(model, objective) for objective in ('training', 'score')}
    model.get_parameter(bias).requires_grad_(False)
    for objective, scores in free.items():
        assert error(scores, ask(model, objective)) < 1e-4


# ---- tables without gradients


@pytest.mark.parametrize(
    'name,what',
    [
        ('DistMult', 'relation'),
        ('ComplEx', 'relation'),
        ('TransE', ''),
        ('TransE', 'entity'),
        ('DistMult', ''),
        ('DistMult', 'entity'),
    ],
)
def test_absent_tables(name: str, what: str) -> None:
    "All weights of a table (or of all) are equal: what is named is what the matrix has."
    factory = graph()
    torch.manual_seed(0)
    model = model_resolver.make(name, triples_factory=factory, embedding_dim=4)
    with torch.no_grad():
        for parameter, p in model.named_parameters():
            if what in parameter:
                p.fill_(0.0 if what else 0.5)
    tracin = TracIn(model, training=factory, learning_rates=[0.1], progress=False, devices='cpu')
    test = factory.mapped_triples[:3]
    result, matrix = tracin.explain(test, k=3), tracin.scores(test)
    assert 'no training triple has a gradient by it' in result.facts['metric']['left_out'].values()
    frame = result.frame
    for row in frame.itertuples():
        assert math.isclose(row.influence, matrix[row.test_index, row.training_index], rel_tol=1e-5)
    best = frame[frame.kind == 'proponent'].groupby('test_index').influence.max()
    for i in range(3):
        assert math.isclose(best.get(i, 0.0), matrix[i].max().clamp(min=0), rel_tol=1e-5)


# ---- memory


def rescal(dim: int, memory: str) -> TracIn:
    torch.manual_seed(0)
    model = model_resolver.make('RESCAL', triples_factory=graph(), embedding_dim=dim)
    return TracIn(
        model,
        'score',
        training=graph(),
        learning_rates=[0.1],
        memory=memory,
        progress=False,
        devices='cpu',
    )


def test_second_moments_that_do_not_fit() -> None:
    "Both numbers are named, before any gradient is computed."
    tracin = rescal(60, '60MB')
    with pytest.raises(
        ValueError,
        match=r'relation_representations.* [\d,]+ in all, are more than memory=60,000,000',
    ):
        tracin.explain(graph().mapped_triples[:2], k=2)
    assert tracin.counters.covariance_passes <= 1


def test_memory_is_kept() -> None:
    "All that is in use at a time stays within the budget, and the budget changes no number."
    test = graph().mapped_triples[:2]
    small, large = rescal(30, '80MB'), rescal(30, '4GiB')
    with metered(torch.device('cpu')) as used:
        found = small.explain(test, k=2)
    assert used.peak <= small.settings.memory
    assert found.facts['metric'] == large.explain(test, k=2).facts['metric']
    torch.testing.assert_close(small.scores(test), large.scores(test), rtol=1e-5, atol=0)


def test_rows_in_parts() -> None:
    "Row blocks are inverted a few at a time where memory is little."
    model, few, test = some('rescal')
    engine = FactoredEngine(model.eval(), BCE())
    a, b = (metric(engine, few, natural) for natural in (Natural(), Natural().within(1_300_000, 1)))
    assert a.facts == b.facts
    torch.testing.assert_close(
        inner(a.test(engine(test)), engine(test)), inner(b.test(engine(test)), engine(test))
    )
    with pytest.raises(ValueError, match='are more than memory=1,000'):
        metric(engine, few, Natural().within(1000, 1))
    with pytest.raises(ValueError, match='weighting "adam".* are more than memory=1,000'):
        run = Run.from_model(
            model,
            few,
            learning_rates=[1.0],
            optimizer=('Adam', dict(betas=(0.9, 0.9), eps=1e-8)),
            optimizer_moments=[{n: p.detach() for n, p in model.named_parameters()}],
            steps=[1],
        )
        Adam().within(1000, 1).prepare(run, 0, engine, ())
