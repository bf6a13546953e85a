"""Models that are trained side by side against models trained one after the other, by torch's
own optimisers."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from models import CONVE, around, graph, interaction
from pykeen.models import ConvE, DistMult, ERModel, Model
from pykeen.sampling import BasicNegativeSampler
from torch import Tensor
from torch.testing import assert_close

from tracin_nb import TracIn
from tracin_nb.engine.objectives import BCE, Objective, Softmax, make_objective, score
from tracin_nb.evaluation.retraining import AnyScores, Recipe, Stack, retrain, run_of
from tracin_nb.runs.run import Run

pytestmark = pytest.mark.filterwarnings('ignore')
N = 96
TRIPLES = graph().mapped_triples[::16][:N]
KEPT = torch.rand(3, N, generator=torch.Generator().manual_seed(0)) < torch.tensor(
    [[1.0], [0.5], [0.3]]
)
NO_DROPOUT = dict(input_dropout=0.0, output_dropout=0.0, feature_map_dropout=0.0)


def build(name: str) -> ERModel:
    "An untrained model in float64 that is nothing but its parameters."
    torch.manual_seed(0)
    if name == 'conve':
        return ConvE(triples_factory=graph(), random_seed=0, **CONVE, **NO_DROPOUT).double()
    return around(interaction(name), graph()).double()


def objective(name: str, model: Model) -> Objective:
    "Softmax, or PyKEEN's loss of a triple and fixed negatives."
    if name == 'softmax':
        return Softmax()
    run = Run.from_model(
        model,
        graph(),
        learning_rates=[1.0],
        loss=name,
        negative_sampler=BasicNegativeSampler,
        negative_sampler_kwargs=dict(num_negs_per_pos=3),
    )
    return make_objective('training', run)


def alone(
    model: Model, recipe: Recipe, kept: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor] | None, int]:
    """State, second moments and steps of `model` after training on the kept triples `[N]`, by a
    plain loop."""
    model, steps = copy.deepcopy(model).train(), 0
    adam = recipe.optimizer == 'adam'
    make = torch.optim.Adam if adam else torch.optim.SGD
    optimizer = make(
        model.parameters(), recipe.lr, **(dict(betas=recipe.betas, eps=recipe.eps) if adam else {})
    )
    for batches in recipe.batches(N):
        for rows in (b[kept[b]] for b in batches):
            if not len(rows):
                continue
            q = recipe.objective.queries(TRIPLES[rows])
            losses = [
                recipe.objective.loss(s, *(x[i] for x in q.extra))
                for i, s in enumerate(score(model, q))
            ]
            optimizer.zero_grad()
            torch.stack(losses).mean().backward()
            optimizer.step()
            steps += 1
    moments = (
        {n: optimizer.state[p]['exp_avg_sq'] for n, p in model.named_parameters()} if adam else None
    )
    return model.state_dict(), moments, steps


def compare(model: Model, recipe: Recipe, stack: Stack) -> None:
    "Each model of the stack against its own loop."
    for g, kept in enumerate(KEPT):
        state, moments, steps = alone(model, recipe, kept)
        assert_close(stack.state(g), state, rtol=1e-6, atol=1e-9)
        if moments:
            assert_close(
                {n: m[g] for n, m in stack.moments.items()}, moments, rtol=1e-6, atol=1e-15
            )
        assert stack.steps[g] == steps


@pytest.mark.parametrize(
    'name, loss, batch, optimizer',
    [
        ('distmult', 'softmax', 32, 'adam'),
        ('distmult', 'softmax', 32, 'sgd'),
        ('distmult', 'crossentropy', 1, 'adam'),
        ('distmult', 'bcewithlogits', 20, 'adam'),
        ('transe', 'bcewithlogits', 32, 'adam'),
        ('transe', 'softmax', 4, 'sgd'),
        ('conve', 'softmax', 32, 'adam'),
        ('conve', 'bcewithlogits', 32, 'sgd'),
        ('ermlp', 'softmax', 32, 'adam'),
    ],
)
def test_equals_one_by_one(name: str, loss: str, batch: int, optimizer: str) -> None:
    model = build(name)
    recipe = Recipe(
        objective(loss, model), epochs=2, batch_size=batch, lr=0.01, optimizer=optimizer, seed=3
    )
    compare(model, recipe, retrain(model, TRIPLES, recipe, KEPT)[2])


def test_order_as_given_and_adam_settings() -> None:
    model = build('distmult')
    recipe = Recipe(
        Softmax(), epochs=1, batch_size=8, lr=0.02, betas=(0.8, 0.95), eps=1e-3, seed=None
    )
    assert torch.cat(next(recipe.batches(N))).tolist() == list(range(N))
    compare(model, recipe, retrain(model, TRIPLES, recipe, KEPT)[1])


def test_a_model_without_triples_in_a_batch_makes_no_step() -> None:
    "Nor do its batch norms move."
    model, kept = build('conve'), torch.zeros(2, N, dtype=torch.bool)
    kept[0, :64] = True
    recipe = Recipe(Softmax(), epochs=1, batch_size=32, seed=None)
    stack = retrain(model, TRIPLES, recipe, kept)[1]
    assert stack.steps.tolist() == [2, 0]
    assert_close(stack.state(1), model.state_dict(), rtol=0, atol=0)
    assert_close(stack.state(0), retrain(model, TRIPLES[:64], recipe, kept[:1, :64])[1].state(0))


def test_groups_and_epochs() -> None:
    "Memory is bounded by groups, which change nothing; looking at epochs in between neither."
    model, recipe = build('distmult'), Recipe(Softmax(), epochs=3, batch_size=32)
    whole = retrain(model, TRIPLES, recipe, KEPT, at=[0, 1, 3])
    parts = retrain(model, TRIPLES, recipe, KEPT, group=2)[3]
    assert_close((whole[3].params, whole[3].moments), (parts.params, parts.moments))
    assert_close(whole[0].state(2), model.state_dict(), rtol=0, atol=0)
    assert_close(
        whole[1].params, retrain(model, TRIPLES, replace(recipe, epochs=1), KEPT)[1].params
    )


def test_own_scores_of_distmult_are_chosen_only_where_they_are_right() -> None:
    "A DistMult with a normaliser is no plain one."
    model = DistMult(
        triples_factory=graph(), embedding_dim=4, regularizer=None, entity_constrainer=None
    ).double()
    model.entity_representations[0].normalizer = lambda x: torch.nn.functional.normalize(x, dim=-1)
    recipe = Recipe(Softmax(), epochs=1, batch_size=32)
    compare(model, recipe, retrain(model, TRIPLES, recipe, KEPT)[1])
    params = {n: p.detach()[None] for n, p in model.named_parameters()}
    q = BCE().queries(TRIPLES[:4])
    assert_close(AnyScores(model)(params, {}, q)[0][0], score(model, q))


def test_a_run_of_the_stack_explains_itself() -> None:
    """What is explained is the model that was trained, with its moments: a first step of Adam,
    foretold by TracIn."""
    model, recipe = build('distmult'), Recipe(Softmax(), epochs=2, batch_size=32)
    stacks = retrain(
        model, graph().mapped_triples, recipe, torch.ones(1, 1592, dtype=torch.bool), at=[1, 2]
    )
    run = run_of(model, graph(), recipe, stacks, loop='lcwa', loss='crossentropy')
    assert [(c.epoch, c.step, c.learning_rate) for c in run.checkpoints] == [
        (1, 50, 5e-3),
        (2, 100, 5e-3),
    ]
    assert_close(dict(run.model(1, 'cpu').state_dict()), stacks[2].state(0))
    scores = TracIn(run, Softmax(), weighting='adam', devices='cpu', progress=False).scores(
        TRIPLES[:2]
    )
    assert scores.shape == (2, 1592) and scores.isfinite().all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
def test_on_a_gpu() -> None:
    for name in ('distmult', 'conve'):
        model, recipe = build(name), Recipe(Softmax(), epochs=2, batch_size=32)
        compare(model, recipe, retrain(model, TRIPLES, recipe, KEPT, device='cuda')[2])
