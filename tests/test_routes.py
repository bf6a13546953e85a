"""Models that the factored engine's routes could be wrong for: the right numbers by a slower route, or an error.

The truth is a plain backward pass through PyKEEN's own scoring, one for each triple, dense."""
from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from pykeen.datasets import Nations
from pykeen.losses import BCEWithLogitsLoss, MarginRankingLoss, NSSALoss
from pykeen.models import ERModel
from pykeen.nn import (BackfillRepresentation, CombinedRepresentation, Embedding, LowRankRepresentation,
                       MultiBackfillRepresentation, PartitionRepresentation, Representation, SubsetRepresentation,
                       TensorTrainRepresentation, TokenizationRepresentation, TransformedRepresentation)
from pykeen.nn.modules import DistMultInteraction, Interaction
from pykeen.triples import CoreTriplesFactory, TriplesFactory
from torch import Tensor, nn
from torch.nn import functional as F

from tracin_nb import Run, TracIn
from tracin_nb.engine.gradients import FactoredEngine, RouteError, Routes, settled_routes
from tracin_nb.engine.objectives import BCE, Softmax

pytestmark = pytest.mark.filterwarnings('ignore')
NATIONS = Nations().training
E, R, D = 14, 55, 4
TRAIN, TEST = NATIONS.mapped_triples[::7], NATIONS.mapped_triples[[3, 500, 900, 1400]]
Loss = Callable[[ERModel, Tensor], Tensor]


def bce(model: ERModel, triple: Tensor) -> Tensor: return F.softplus(-model.score_hrt(triple)).sum()


def softmax(model: ERModel, triple: Tensor) -> Tensor: return F.cross_entropy(model.score_t(triple[:, :2]), triple[:, 2])


def softmax_head(model: ERModel, triple: Tensor) -> Tensor:
    return F.cross_entropy(model.score_h(triple[:, 1:]), triple[:, 0])


LOSSES: dict[str, Loss] = {'bce': bce, 'softmax': softmax, 'softmax-head': softmax_head}


def gradient(model: ERModel, loss: Loss, triple: Tensor) -> Tensor:
    params = [p for p in model.parameters() if p.requires_grad]
    grads = torch.autograd.grad(loss(model, triple[None]), params, allow_unused=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(params, grads)])


def truth(models: list[ERModel], loss: Loss, test: Tensor, train: Tensor) -> Tensor:
    "Influences `[M, N]`, summed over the checkpoints, at a learning rate of 1."
    rows = lambda m, triples: torch.stack([gradient(m, loss, t) for t in triples])
    return sum(rows(m, test) @ rows(m, train).T for m in models)


def model(entities: Representation | list[Representation], interaction: Interaction | str = 'distmult',
          factory: CoreTriplesFactory = NATIONS) -> ERModel:
    torch.manual_seed(0)
    relations = Embedding(max_id=factory.num_relations, shape=(D,), initializer=nn.init.normal_)
    made = ERModel(triples_factory=factory, interaction=interaction, entity_representations=entities,
                   relation_representations=relations).double().eval()
    for p in made.parameters():
        if p.requires_grad: nn.init.normal_(p, std=.7)
    return made


def run(made: ERModel, states: list[dict] | None = None, factory: CoreTriplesFactory = NATIONS) -> Run:
    return Run.from_model(made, factory, states=states, learning_rates=[1.] * len(states or [0]))


def tracin(made: ERModel | Run, objective: str = 'bce', **options: object) -> TracIn:
    made = run(made) if isinstance(made, ERModel) else made
    return TracIn(made, objective, **dict(weighting='sgd', progress=False, devices='cpu') | options)


def error(ours: Tensor, expected: Tensor) -> float:
    assert expected.isfinite().all() and expected.norm() > 0
    return ((ours - expected).norm() / expected.norm()).item()


def table(n: int = E, d: int = D) -> Embedding: return Embedding(max_id=n, shape=(d,))


# ----------------------------------------------------------------------------- representations that treat entities apart
class Own(Representation):
    "A representation of one's own around a table of all entities."
    def __init__(self, n: int = E):
        super().__init__(max_id=n, shape=(D,))
        self.table, self.special = table(n), nn.Parameter(torch.zeros(D))
    def ids(self, indices: Tensor | None) -> Tensor: return torch.arange(self.max_id) if indices is None else indices


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
    def _plain_forward(self, indices=None): return self.table(torch.arange(self.max_id))[self.ids(indices)]


class Alias(Own):
    "Some entities have the vectors of others, and an entity's own vector is added once more without a module."
    def _plain_forward(self, indices=None):
        ids = self.ids(indices)
        return self.table(torch.where(ids > 9, ids - 7, ids)) + self.table._embeddings.weight[ids] * (ids == 3)[..., None]


class Later(Own):
    "A part of the entities goes through a layer, and only these are given to it."
    def __init__(self, n: int = E):
        super().__init__(n)
        self.layer = nn.Linear(D, D)
    def _plain_forward(self, indices=None):
        ids = self.ids(indices)
        x = self.table(ids)
        return x.masked_scatter((ids % 5 == 2)[..., None], self.layer(x[ids % 5 == 2]))


class Neighbours(Own):
    "One entity is seen together with whoever is asked for at the same time, but only by a small weight."
    def _plain_forward(self, indices=None):
        x = self.table(self.ids(indices))
        return x + .01 * (self.ids(indices) == 7)[..., None] * x.flatten(0, -2).mean(0)


ASSIGNED = torch.tensor([[i % 2, i // 2] for i in range(E)])
REPRESENTATIONS: dict[str, Callable[[], Representation | list[Representation]]] = {
    'backfill': lambda: BackfillRepresentation(max_id=E, base_ids=[1, 2, 5], base=table(3)),
    'backfill half': lambda: BackfillRepresentation(max_id=E, base_ids=[3, 6, 8, 9, 10, 11, 12], base=table(7)),
    'multi-backfill': lambda: MultiBackfillRepresentation(
        max_id=E, partitions=[dict(ids=[1, 8], base=table(2)), dict(ids=[2, 5, 11], base=table(3))]),
    'partition': lambda: PartitionRepresentation(assignment=ASSIGNED, bases=[table(7), table(7)]),
    'partition inside a layer': lambda: TransformedRepresentation(
        nn.Linear(D, D), base=PartitionRepresentation(assignment=ASSIGNED, bases=[table(7), table(7)])),
    'tokens from a partition': lambda: TokenizationRepresentation(
        assignment=torch.stack([torch.arange(E) % 5, torch.arange(E) % 3 + 5], 1),
        token_representation=BackfillRepresentation(max_id=9, base_ids=[1, 6], base=table(2, 2)), shape=(2, 2)),
    'subset of backfill': lambda: SubsetRepresentation(
        max_id=E, base=BackfillRepresentation(max_id=20, base_ids=[1, 15], base=table(2))),
    'combined with backfill': lambda: CombinedRepresentation(
        max_id=E, base=[table(d=2), BackfillRepresentation(max_id=E, base_ids=[4, 9], base=table(2, 2))],
        combination='concat'),
    'layer of zeros': lambda: TransformedRepresentation(nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, D)),
                                                        base=table(d=3)),
    'low rank': lambda: LowRankRepresentation(max_id=E, shape=(D,), num_bases=3),
    'tensor train': lambda: TensorTrainRepresentation(max_id=E, shape=(D,), num_cores=2, ranks=2),
    'one table twice': lambda: CombinedRepresentation(max_id=E, base=[shared := table(d=2), shared], combination='concat'),
    'frozen base': lambda: BackfillRepresentation(max_id=E, base_ids=[1, 2, 5], base=Embedding(
        max_id=3, shape=(D,), trainable=False)),
    **{kind.__name__.lower(): kind for kind in (Special, Sorted, Whole, Alias, Later)}}


@pytest.mark.parametrize('objective', LOSSES)
@pytest.mark.parametrize('name', REPRESENTATIONS)
def test_representation(name: str, objective: str) -> None:
    made = model(REPRESENTATIONS[name]())
    if name.startswith('tokens'): made = tokens(made)
    asked = tracin(made, objective)
    assert error(asked.scores(TEST, TRAIN), truth([made], LOSSES[objective], TEST, TRAIN)) <= 1e-9
    assert asked.facts(asked.objective)['route_error'] <= 1e-9


def tokens(made: ERModel) -> ERModel:
    "Tokens are added up to a vector."
    entities = TransformedRepresentation(nn.Flatten(-2), base=made.entity_representations[0], shape=(D,))
    return model(entities)
