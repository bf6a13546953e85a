"""Models that the factored engine's routes could be wrong for: the right numbers by a slower route,
or an error.

The truth is a plain backward pass through PyKEEN's own scoring, one for each triple, dense."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from pykeen.datasets import Nations
from pykeen.losses import BCEWithLogitsLoss, MarginRankingLoss, NSSALoss
from pykeen.models import ERModel
from pykeen.nn import (
    BackfillRepresentation,
    CombinedRepresentation,
    Embedding,
    LowRankRepresentation,
    MultiBackfillRepresentation,
    PartitionRepresentation,
    Representation,
    SubsetRepresentation,
    TensorTrainRepresentation,
    TokenizationRepresentation,
    TransformedRepresentation,
)
from pykeen.nn.modules import Interaction
from pykeen.nn.representation import Partition
from pykeen.triples import CoreTriplesFactory
from torch import Tensor, nn
from torch.nn import functional as F

from tracin_nb import Run, TracIn
from tracin_nb.engine.gradients import FactoredEngine, RouteError, Routes, settled_routes
from tracin_nb.engine.objectives import BCE, Softmax
from tracin_nb.influence import steps as influence

pytestmark = pytest.mark.filterwarnings('ignore')
NATIONS = Nations().training
E, R, D = 14, 55, 4
TRAIN, TEST = NATIONS.mapped_triples[::9], NATIONS.mapped_triples[[3, 500, 900, 1400]]
Loss = Callable[[ERModel, Tensor], Tensor]


def bce(model: ERModel, triple: Tensor) -> Tensor:
    return F.softplus(-model.score_hrt(triple)).sum()


def softmax(model: ERModel, triple: Tensor) -> Tensor:
    return F.cross_entropy(model.score_t(triple[:, :2]), triple[:, 2])


def softmax_head(model: ERModel, triple: Tensor) -> Tensor:
    return F.cross_entropy(model.score_h(triple[:, 1:]), triple[:, 0])


LOSSES: dict[str, Loss] = {'bce': bce, 'softmax': softmax, 'softmax-head': softmax_head}


def gradient(model: ERModel, loss: Loss, triple: Tensor) -> Tensor:
    params = [p for p in model.parameters() if p.requires_grad]
    grads = torch.autograd.grad(loss(model, triple[None]), params, allow_unused=True)
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(params, grads)]
    )


def truth(models: list[ERModel], loss: Loss, test: Tensor, train: Tensor) -> Tensor:
    "Influences `[M, N]`, summed over the checkpoints, at a learning rate of 1."
    rows = lambda m, triples: torch.stack([gradient(m, loss, t) for t in triples])
    return sum(rows(m, test) @ rows(m, train).T for m in models)


def model(
    entities: Representation | list[Representation],
    interaction: Interaction | str = 'distmult',
    factory: CoreTriplesFactory = NATIONS,
) -> ERModel:
    torch.manual_seed(0)
    relations = Embedding(max_id=factory.num_relations, shape=(D,), initializer=nn.init.normal_)
    made = (
        ERModel(
            triples_factory=factory,
            interaction=interaction,
            entity_representations=entities,
            relation_representations=relations,
        )
        .double()
        .eval()
    )
    for p in made.parameters():
        if p.requires_grad:
            nn.init.normal_(p, std=0.7)
    return made


def run(
    made: ERModel, states: list[dict] | None = None, factory: CoreTriplesFactory = NATIONS
) -> Run:
    return Run.from_model(made, factory, states=states, learning_rates=[1.0] * len(states or [0]))


def tracin(made: ERModel | Run, objective: str = 'bce', **options: object) -> TracIn:
    made = run(made) if isinstance(made, ERModel) else made
    return TracIn(made, objective, **dict(weighting='sgd', progress=False, devices='cpu') | options)


def error(ours: Tensor, expected: Tensor) -> float:
    assert expected.isfinite().all() and expected.norm() > 0
    return ((ours - expected).norm() / expected.norm()).item()


def table(n: int = E, d: int = D) -> Embedding:
    return Embedding(max_id=n, shape=(d,))


# ---- representations that treat entities apart
class Own(Representation):
    "A representation of one's own around a table of all entities."

    def __init__(self, n: int = E):
        super().__init__(max_id=n, shape=(D,))
        self.table, self.special = table(n), nn.Parameter(torch.zeros(D))

    def ids(self, indices: Tensor | None) -> Tensor:
        return torch.arange(self.max_id) if indices is None else indices


class Special(Own):
    "One entity has a vector of its own, which is read only where that entity is asked for."

    def _plain_forward(self, indices=None):
        ids = self.ids(indices)
        x = self.table(ids)
        return torch.where((ids == 5)[..., None], self.special, x) if (ids == 5).any() else x


class Sorted(Own):
    "Each id is looked up once, in order."

    def _plain_forward(self, indices=None):
        ids, back = self.ids(indices).unique(return_inverse=True)
        return self.table(ids)[back]


class Whole(Own):
    "All vectors are computed, whichever are asked for."

    def _plain_forward(self, indices=None):
        return self.table(torch.arange(self.max_id))[self.ids(indices)]


class Alias(Own):
    """Some entities have the vectors of others, and an entity's own vector is added once more
    without a module."""

    def _plain_forward(self, indices=None):
        ids = self.ids(indices)
        x = self.table(torch.where(ids > 9, ids - 7, ids))
        return x + self.table._embeddings.weight[ids] * (ids == 3)[..., None]


class Later(Own):
    "A part of the entities goes through a layer, and only these are given to it."

    def __init__(self, n: int = E):
        super().__init__(n)
        self.layer = nn.Linear(D, D)

    def _plain_forward(self, indices=None):
        ids = self.ids(indices)
        x = self.table(ids)
        return x.masked_scatter((ids % 5 == 2)[..., None], self.layer(x[ids % 5 == 2]))


ASSIGNED = torch.tensor([[i % 2, i // 2] for i in range(E)])
REPRESENTATIONS: dict[str, Callable[[], Representation | list[Representation]]] = {
    'backfill': lambda: BackfillRepresentation(max_id=E, base_ids=[1, 2, 5], base=table(3)),
    'backfill half': lambda: BackfillRepresentation(
        max_id=E, base_ids=[3, 6, 8, 9, 10, 11, 12], base=table(7)
    ),
    'multi-backfill': lambda: MultiBackfillRepresentation(
        max_id=E,
        partitions=[Partition(ids=[1, 8], base=table(2)), Partition(ids=[2, 5, 11], base=table(3))],
    ),
    'partition': lambda: PartitionRepresentation(assignment=ASSIGNED, bases=[table(7), table(7)]),
    'partition inside a layer': lambda: TransformedRepresentation(
        nn.Linear(D, D),
        base=PartitionRepresentation(assignment=ASSIGNED, bases=[table(7), table(7)]),
    ),
    'tokens from a partition': lambda: TransformedRepresentation(
        nn.Flatten(-2),
        base=TokenizationRepresentation(
            assignment=torch.stack([torch.arange(E) % 5, torch.arange(E) % 3 + 5], 1),
            token_representation=BackfillRepresentation(
                max_id=8, base_ids=[1, 6], base=table(2, 2)
            ),
        ),
    ),
    'subset of backfill': lambda: SubsetRepresentation(
        max_id=E, base=BackfillRepresentation(max_id=20, base_ids=[1, 15], base=table(2))
    ),
    'combined with backfill': lambda: CombinedRepresentation(
        max_id=E,
        base=[table(d=2), BackfillRepresentation(max_id=E, base_ids=[4, 9], base=table(2, 2))],
        combination='concat',
    ),
    'layer of zeros': lambda: TransformedRepresentation(
        nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, D)), base=table(d=3)
    ),
    'low rank': lambda: LowRankRepresentation(max_id=E, shape=(D,), num_bases=3),
    'tensor train': lambda: TensorTrainRepresentation(max_id=E, shape=(D,), num_cores=2, ranks=2),
    'one table twice': lambda: CombinedRepresentation(
        max_id=E, base=[shared := table(d=2), shared], combination='concat'
    ),
    'frozen base': lambda: BackfillRepresentation(
        max_id=E, base_ids=[1, 2, 5], base=Embedding(max_id=3, shape=(D,), trainable=False)
    ),
    **{kind.__name__.lower(): kind for kind in (Special, Sorted, Whole, Alias, Later)},
}


ROW_BY_ROW = ('layer of zeros', 'tensor train', 'one table twice')
SOME = [
    (name, o)
    for i, name in enumerate(REPRESENTATIONS)
    for j, o in enumerate(LOSSES)
    if i < 2 or (i + j) % 3 == 0
]


@pytest.mark.parametrize('name,objective', SOME)
def test_representation(name: str, objective: str) -> None:
    "Exact by the default engine, whichever entities come together."
    made = model(REPRESENTATIONS[name]())
    asked = tracin(made, objective)
    assert error(asked.scores(TEST, TRAIN), truth([made], LOSSES[objective], TEST, TRAIN)) <= 1e-9
    assert 0 <= asked.facts(asked.objective)['route_error'] <= 1e-9
    assert bool(asked.steps[0].train.routes.mixed) == (name not in ROW_BY_ROW)


@pytest.mark.parametrize(
    'options', [dict(devices=['cpu']), dict(precision='bf16'), dict(compile=True)]
)
def test_options(options: dict) -> None:
    """A worker takes the routes along; reduced precision is settled in full; a compiled form is
    refused and told."""
    made = model(REPRESENTATIONS['backfill']())
    asked, expected = tracin(made, **options), truth([made], bce, TEST, TRAIN)
    with pytest.warns(UserWarning) if 'compile' in options else nullcontext():
        result = asked.scores(TEST, TRAIN)
    assert error(result, expected) <= 1e-9
    facts = asked.facts(asked.objective)
    assert facts['route_error'] <= 1e-9 and 'bases.0' in facts['routes'][0]
    if 'compile' in options:
        assert facts['reason'].startswith('ValueError: one backward pass per triple')


def test_kept() -> None:
    "Gradients that `prepare` keeps are made by the settled routes."
    made = model(REPRESENTATIONS['backfill']())
    few = NATIONS.clone_and_exchange_triples(TRAIN)
    asked = tracin(run(made, factory=few))
    asked.prepare()
    frame = asked.explain(TEST, k=3).frame
    every = truth([made], bce, TEST, few.mapped_triples)
    for i, part in frame[frame['kind'] == 'proponent'].groupby('test_index'):
        best = every[i].topk(3).values
        torch.testing.assert_close(
            torch.tensor(part['influence'].to_numpy()), best, rtol=1e-9, atol=0
        )


def large(n: int = 3000, triples: int = 400) -> CoreTriplesFactory:
    torch.manual_seed(0)
    ids = torch.stack([torch.randint(m, (triples,)) for m in (n, 5, n)], 1)
    ids[-1] = torch.tensor([1234, 0, 77])
    return CoreTriplesFactory.create(ids, num_entities=n, num_relations=5)


def test_one_entity_among_thousands() -> None:
    "It is in one training triple that no sample takes."
    factory = large()
    rare = BackfillRepresentation(max_id=3000, base_ids=[1234], base=table(1))
    made, ids = model(rare, factory=factory), factory.mapped_triples
    at = (ids[:, 0] == 1234).nonzero()[0]
    train, test = torch.cat([ids[:40], ids[at]]), torch.cat([ids[at], ids[50:52]])
    asked = tracin(run(made, factory=factory))
    assert error(asked.scores(test, train), truth([made], bce, test, train)) <= 1e-9


class Moody(Own):
    "Looks up each id once where many are asked for, as a representation may do to save work."

    def _plain_forward(self, indices=None):
        ids = self.ids(indices)
        if ids.numel() <= 150:
            return self.table(ids)
        ids, back = ids.unique(return_inverse=True)
        return self.table(ids)[back]


class Hidden(Own):
    "Where many ids are asked for, the same vectors are read without a module."

    def _plain_forward(self, indices=None):
        ids = self.ids(indices)
        return self.table(ids) if ids.numel() <= 150 else self.table._embeddings.weight[ids]


@pytest.mark.parametrize('kind', [Moody, Hidden])
def test_seen_only_in_a_call(kind: type[Own]) -> None:
    """What no trial of a few triples can show is an error in the call that shows it, and never a
    wrong number."""
    asked = tracin(made := model(kind()), batch_size=100)
    assert error(asked.scores(TEST, TRAIN), truth([made], bce, TEST, TRAIN)) <= 1e-9
    with pytest.raises(
        RouteError, match=r'no exact factored route for entity_.*use engine "vmap" or "loop"'
    ):
        tracin(made, batch_size=200).scores(TEST, TRAIN)


@pytest.mark.parametrize('objective', LOSSES)
def test_hooked_table(objective: str) -> None:
    "Somebody's hook changes the vectors of some entities: the table is then no plain one."
    made = model(table())
    keep = torch.where(torch.arange(E) == 6, 0.0, 1.0).double()

    def some(e: Embedding, args: tuple, kwargs: dict, x: Tensor) -> Tensor:
        ids = kwargs.get('indices')
        return x * (keep if ids is None else keep[ids])[..., None]

    made.entity_representations[0].register_forward_hook(some, with_kwargs=True)
    ours = tracin(made, objective).scores(TEST, TRAIN)
    assert error(ours, truth([made], LOSSES[objective], TEST, TRAIN)) <= 1e-9


class Biased(ERModel):
    "Scores one entity's triples in its own way."

    def score_hrt(self, hrt_batch: Tensor, **kwargs: object) -> Tensor:
        s = super().score_hrt(hrt_batch, **kwargs)
        return s + self.bias if (hrt_batch[:, 0] == 13).any() else s


def test_scoring_of_its_own() -> None:
    made = Biased(
        triples_factory=NATIONS,
        interaction='distmult',
        entity_representations=table(),
        relation_representations=table(R),
    ).double()
    made.bias = nn.Parameter(torch.ones((), dtype=torch.double))
    with pytest.raises(
        ValueError, match='Biased has a score_hrt of its own; use engine "vmap" or "loop"'
    ):
        tracin(made).scores(TEST, TRAIN)
    ours = tracin(made, engine='loop').scores(TEST, TRAIN)
    assert error(ours, truth([made], bce, TEST, TRAIN)) <= 1e-9


# ---- interactions, and zero slopes
class Net(Interaction):
    "The product of three vectors, and a network of head and tail whose last layer may be zero."

    entity_shape, relation_shape = ('d',), ('d',)

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(D, D), nn.Linear(D, 1)

    def forward(self, h, r, t):
        return (h * r * t).sum(-1) + self.last(torch.tanh(self.first(h + t))).squeeze(-1)


class Twice(Net):
    "The first layer's weight is read once more, without its module."

    def forward(self, h, r, t):
        hidden = self.first(torch.tanh(self.first(h * t))) + torch.tanh(h) @ self.first.weight.T
        return (h * r * t).sum(-1) + self.last(torch.tanh(hidden)).squeeze(-1)


class Some(Net):
    "The network sees only those triples whose relation asks for it."

    def forward(self, h, r, t):
        s = (h * r * t).sum(-1)
        x, wanted = (h + t) * torch.ones_like(r), (r[..., 0] > 0.5).expand(s.shape)
        return s.masked_scatter(
            wanted, s[wanted] + self.last(torch.tanh(self.first(x[wanted]))).squeeze(-1)
        )


class Kink(Interaction):
    "Linear in the tail for half of the relations."

    entity_shape, relation_shape = ('d',), ('d',)

    def forward(self, h, r, t):
        return torch.where(r[..., 0] > 0, (h * r * t).sum(-1), -(h + r - t).abs().sum(-1))


def zeroed(made: ERModel) -> dict[str, Tensor]:
    state = copy.deepcopy(made.state_dict())
    return {name: torch.zeros_like(v) if '.last.' in name else v for name, v in state.items()}


@pytest.mark.parametrize('first', ['zero', 'full'])
@pytest.mark.parametrize('objective', ['bce', 'softmax'])
@pytest.mark.parametrize('kind', [Net, Twice])
def test_checkpoints_with_a_layer_of_zeros(kind: type[Net], objective: str, first: str) -> None:
    "Each checkpoint has routes of its own; a gradient of zero says nothing of others."
    made = model(table(), kind())
    states = [zeroed(made), copy.deepcopy(made.state_dict())][:: 1 if first == 'zero' else -1]
    asked = tracin(run(made, states), objective)
    ours, models = asked.scores(TEST, TRAIN), []
    for state in states:
        models.append(copy.deepcopy(made))
        models[-1].load_state_dict(state)
    assert error(ours, truth(models, LOSSES[objective], TEST, TRAIN)) <= 1e-9
    for place, single in enumerate(models):
        part = tracin(run(made, states), objective, checkpoints=[place]).scores(TEST, TRAIN)
        assert error(part, truth([single], LOSSES[objective], TEST, TRAIN)) <= 1e-9
    full = asked.steps[-1 if first == 'zero' else 0].train.routes
    assert not full.whole_tables and full.vectorised == (kind is Twice)


def test_a_layer_of_zeros_in_a_representation() -> None:
    made = model(REPRESENTATIONS['layer of zeros']())
    states = [
        {
            n: torch.zeros_like(v) if 'transformation.2' in n else v
            for n, v in made.state_dict().items()
        },
        copy.deepcopy(made.state_dict()),
    ]
    models = [copy.deepcopy(made) for _ in states]
    for m, state in zip(models, states):
        m.load_state_dict(state)
    ours = tracin(run(made, states)).scores(TEST, TRAIN)
    assert error(ours, truth(models, bce, TEST, TRAIN)) <= 1e-9


@pytest.mark.parametrize('objective', LOSSES)
def test_linear_for_some_relations(objective: str) -> None:
    made = model(table(), Kink())
    asked = tracin(made, objective)
    assert error(asked.scores(TEST, TRAIN), truth([made], LOSSES[objective], TEST, TRAIN)) <= 1e-9


def test_linear_for_all_but_one_relation() -> None:
    """Relation 0 has no triple in the sample; a row of it shows in the call what the table's
    gradient is not."""
    made = model(table(), Kink())
    with torch.no_grad():
        weight = made.relation_representations[0]._embeddings.weight
        weight[:, 0] = weight[:, 0].abs()
        weight[7, 0] = -1
    others = TRAIN[TRAIN[:, 1] != 7]
    odd = torch.cat([others[:3], torch.tensor([[1, 7, 2]])])
    routes, wrong = settled_routes(made, Softmax(), others)
    engine = FactoredEngine(made, Softmax(), routes)
    assert routes.whole_tables and wrong <= 1e-9
    engine(others)
    with pytest.raises(RouteError, match='entity_representations'):
        engine(odd)


@pytest.mark.parametrize('objective', ['bce', 'softmax'])
def test_a_layer_for_some_triples(objective: str) -> None:
    "No route is exact for it: an error that says what is."
    made = model(table(), Some())
    with pytest.raises(
        ValueError, match=r'no exact factored route for interaction\..*use engine "vmap" or "loop"'
    ):
        tracin(made, objective).scores(TEST, TRAIN)
    ours = tracin(made, objective, engine='loop').scores(TEST, TRAIN)
    assert error(ours, truth([made], LOSSES[objective], TEST, TRAIN)) <= 1e-9


class Saturated(Net):
    "The network is felt only where the product is large: by none of the triples that are tried."

    limit = 1e9

    def forward(self, h, r, t):
        s = (h * r * t).sum(-1)
        return s + (s > self.limit) * (s - self.limit) * super().forward(h, r, t)


def test_unfelt_parameters_take_the_slower_route() -> None:
    "A network with a gradient of zero for all triples tried is not taken for right."
    made = model(table(), Saturated())
    made.interaction.limit = made.score_hrt(NATIONS.mapped_triples).max().item() - 1e-3
    routes, wrong = settled_routes(made, BCE(), TRAIN)
    assert routes.vectorised and wrong <= 1e-9
    made.interaction.limit = -10.0
    assert not settled_routes(made, BCE(), TRAIN)[0].vectorised


@pytest.mark.parametrize('objective', ['bce', 'softmax'])
def test_a_triple_to_explain_that_feels_nothing(objective: str) -> None:
    "What was confirmed by training triples is not taken back for want of a slope."
    made = model(table(), Saturated())
    scores = made.score_hrt(NATIONS.mapped_triples)[:, 0].detach()
    made.interaction.limit = scores.quantile(0.8).item()
    made.entity_representations[0]._embeddings.weight.data[13] = 0
    low = torch.tensor([[13, 0, 1]])
    assert made.interaction.limit > 0 and not made.score_hrt(low).any()
    ours = tracin(made, objective).scores(low, TRAIN)
    assert error(ours, truth([made], LOSSES[objective], low, TRAIN)) <= 1e-9


def test_satisfied_margins_do_not_hide_errors() -> None:
    "The loss of every triple has no slope; the routes are tried all the same."
    made = model(REPRESENTATIONS['backfill']())
    asked = TracIn(
        Run.from_model(made, NATIONS, learning_rates=[1.0], loss=MarginRankingLoss(margin=-1e9)),
        weighting='sgd',
        progress=False,
        devices='cpu',
    )
    assert not asked.scores(TEST, TRAIN).any()
    assert asked.steps[0].train.routes.mixed and asked.facts(asked.objective)['route_error'] <= 1e-9


def test_frozen_parameters() -> None:
    for name in ('table', 'special'):
        made = model(Special())
        getattr(made.entity_representations[0], name).requires_grad_(False)
        assert error(tracin(made).scores(TEST, TRAIN), truth([made], bce, TEST, TRAIN)) <= 1e-9


def test_a_kink_is_no_error() -> None:
    "In float32 an activation next to zero may fall on either side of it; float64 knows better."
    made = model(table(), Kink()).float()
    routes, wrong = settled_routes(made, BCE(), TRAIN)
    assert routes == Routes() and wrong <= 1e-5


def test_the_error_of_the_triples_to_explain_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    "Training triples first, at each checkpoint, then those to explain."
    seen, settled = [], influence.settled_routes

    def watch(*args: object) -> tuple[Routes, float]:
        seen.append(args[2])
        routes, _ = settled(*args)
        return routes, len(seen) / 100

    monkeypatch.setattr(influence, 'settled_routes', watch)
    made = model(table())
    asked = tracin(run(made, [made.state_dict()] * 2))
    facts = asked.explain(TEST, k=1).facts
    assert facts['route_error'] == 0.04 and [len(x) for x in seen] == [NATIONS.num_triples] * 2 + [
        4,
        4,
    ]


def test_routes_that_fail_for_a_test_triple(monkeypatch: pytest.MonkeyPatch) -> None:
    "What was computed for the training triples can then not be trusted: an error."
    asked = tracin(model(table()))
    asked.steps.every
    monkeypatch.setattr(influence, 'settled_routes', lambda *_: (Routes(vectorised=True), 0.0))
    with pytest.raises(
        ValueError, match='not for the triples to explain.*use engine "vmap" or "loop"'
    ):
        asked.scores(TEST, TRAIN)


# ---- losses that vmap has no rule for
VMAP = dict(
    filtered=dict(loss=NSSALoss(), negative_sampler_kwargs=dict(filtered=True, num_negs_per_pos=5)),
    filtered_margin=dict(loss=MarginRankingLoss(2.0), negative_sampler_kwargs=dict(filtered=True)),
    filtered_bce=dict(loss=BCEWithLogitsLoss(), negative_sampler_kwargs=dict(filtered=True)),
    margin_rows=dict(loss=MarginRankingLoss(2.0), loop='lcwa'),
    nssa_rows=dict(loss=NSSALoss(), loop='lcwa'),
)


@pytest.mark.parametrize('name', VMAP)
def test_vmap_of_losses_whose_steps_depend_on_the_data(name: str) -> None:
    "The loss of one triple, by PyKEEN's own methods for a batch of this one."
    made = model(table())
    ran = Run.from_model(made, NATIONS, learning_rates=[1.0], **VMAP[name])
    scores = {
        e: TracIn(ran, engine=e, weighting='sgd', progress=False, devices='cpu').scores(
            TEST, TRAIN[:40]
        )
        for e in ('vmap', 'factored')
    }
    loss = rows(ran) if VMAP[name].get('loop') == 'lcwa' else sampled(ran)
    expected = truth([made], loss, TEST, TRAIN[:40])
    for ours in scores.values():
        assert error(ours, expected) <= 1e-9


def sampled(ran: Run) -> Loss:
    "The triple and its negatives, those that were filtered out left away."
    drawn = TracIn(ran, weighting='sgd').objective.negatives

    def loss(made: ERModel, triple: Tensor) -> Tensor:
        negatives, mask = drawn.draw(triple)
        positive, negative = made.score_hrt(triple), made.score_hrt(negatives[0]).view(1, -1)
        return ran.loss.process_slcwa_scores(
            positive, negative[mask], batch_filter=mask, num_entities=E
        )

    return loss


def rows(ran: Run) -> Loss:
    "The row with the triple, less the row without it."

    def loss(made: ERModel, triple: Tensor) -> Tensor:
        h, r, t = triple[0]
        ids = NATIONS.mapped_triples
        labels = torch.zeros(1, E, dtype=torch.double)
        labels[0, ids[(ids[:, 0] == h) & (ids[:, 1] == r), 2]] = 1
        with_, without = labels.clone(), labels.clone()
        with_[0, t], without[0, t] = 1, 0
        of = lambda y: ran.loss.process_lcwa_scores(made.score_t(triple[:, :2]), y, num_entities=E)
        return of(with_) - of(without) if without.any() else of(with_)

    return loss


# ---- layers of an interaction that see the rows in another order
class Grouped(Interaction):
    "Rows of a kind together, as told by the first number of their relation."

    entity_shape = relation_shape = ('d',)

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(D, D)

    def forward(self, h: Tensor, r: Tensor, t: Tensor) -> Tensor:
        x = h * r
        kind = r.expand(x.shape).reshape(-1, D)[:, 0] > 5
        return ((x + self.grouped(x.reshape(-1, D), kind).view(x.shape)) * t).sum(-1)

    def grouped(self, flat: Tensor, kind: Tensor) -> Tensor:
        order = kind.long().argsort(stable=True)
        return self.lin(flat[order])[order.argsort()]


class Selected(Grouped):
    def grouped(self, flat: Tensor, kind: Tensor) -> Tensor:
        order = kind.long().argsort(stable=True)
        return self.lin(flat.index_select(0, order)).index_select(0, order.argsort())


class Gathered(Grouped):
    def grouped(self, flat: Tensor, kind: Tensor) -> Tensor:
        order = kind.long().argsort(stable=True)[:, None].expand(flat.shape)
        return self.lin(flat.gather(0, order)).gather(0, order.argsort(0))


class Masked(Grouped):
    def grouped(self, flat: Tensor, kind: Tensor) -> Tensor:
        y = self.lin(torch.cat([flat[~kind], flat[kind]]))
        back = torch.cat([(~kind).nonzero()[:, 0], kind.nonzero()[:, 0]]).argsort()
        return y[back]


class Turned(Grouped):
    "Another order only where there are rows of both kinds."

    def grouped(self, flat: Tensor, kind: Tensor) -> Tensor:
        return self.lin(flat.flip(0)).flip(0) if kind.any() else self.lin(flat)


class Straight(Grouped):
    "What is taken from its place only behind the layer is no matter."

    def grouped(self, flat: Tensor, kind: Tensor) -> Tensor:
        order = kind.long().argsort(stable=True)
        return self.lin(flat)[order][order.argsort()]


def of_a_rare_kind(interaction: Interaction, frozen: bool = False) -> tuple[ERModel, Tensor]:
    "A model and training triples, some of them of a relation that is in none of those tried."
    rare, every = 0, NATIONS.mapped_triples
    made = model(table(), interaction)
    with torch.no_grad():
        made.relation_representations[0]._embeddings.weight[rare, 0] = 6.0
    for p in made.entity_representations.parameters():
        p.requires_grad_(not frozen)
    for p in made.relation_representations.parameters():
        p.requires_grad_(not frozen)
    some = torch.cat([every[::30], every[every[:, 1] == rare][:20]])
    return made, some[torch.randperm(len(some), generator=torch.Generator().manual_seed(0))]


@pytest.mark.parametrize('frozen', [False, True])
@pytest.mark.parametrize('kind', [Grouped, Selected, Gathered, Masked, Turned, Straight])
def test_rows_in_another_order(kind: type[Grouped], frozen: bool) -> None:
    made, train = of_a_rare_kind(kind(), frozen)
    ours = tracin(made)
    expected = truth([made], bce, TEST, train)
    may_fail = kind in (Masked, Turned)  # what `vmap` cannot do
    with pytest.raises(ValueError, match='no exact factored route') if may_fail else nullcontext():
        assert error(ours.scores(TEST, train), expected) < 1e-9
    if kind is Straight:
        assert not ours.steps[0].train.routes.vectorised
    if may_fail:
        assert error(tracin(made, engine='loop').scores(TEST, train), expected) < 1e-9
