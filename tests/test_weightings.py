"""Weightings against their definitions: dense matrices from one backward pass per triple,
inverted in float64."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from models import adjacency, case, double, error, examples, trained
from pykeen.datasets import Nations
from pykeen.models import Model, model_resolver
from torch import Tensor, nn

from tracin_nb import Run, train
from tracin_nb.engine.factors import Dense, Factors, inner
from tracin_nb.engine.gradients import FactoredEngine, LoopEngine
from tracin_nb.engine.objectives import Objective, Softmax, losses
from tracin_nb.engine.weightings import (
    WEIGHTINGS,
    Adam,
    Cosine,
    Natural,
    Sgd,
    Weighting,
    make_weighting,
)

pytestmark = pytest.mark.filterwarnings('ignore')
CASES = [
    ('distmult', 'softmax'),
    ('distmult', 'slcwa-nssa'),
    ('distmult', 'lcwa-bce-row'),
    ('conve', 'bce'),
    ('conve', 'lcwa-crossentropy'),
    ('tucker', 'softmax'),
    ('rotate', 'slcwa-margin'),
    ('ermlp', 'bce'),
    ('nodepiece', 'bce'),
]
FORMS = {
    'natural': Natural(),
    'natural in Kronecker form': Natural(damping=0.1, table=0, full=20),
    'natural, long axes diagonal': Natural(damping=1.0, table=0, full=4, side=10),
}


def some(name: str, objective: str) -> tuple[Model, Objective, Tensor, Tensor]:
    """A float64 model, an objective, training triples `[70, 3]` (some of them twice) and test
    triples `[4, 3]`."""
    model, factory = trained(name)
    first, test = examples(factory)
    exact = double(model)
    return (
        exact,
        case(objective, exact, factory).objective,
        torch.cat([first, factory.mapped_triples[::27]])[:70],
        test,
    )


def plain(model: Model, objective: Objective, triples: Tensor) -> dict[str, Tensor]:
    "Gradients `[B, *shape]` by parameter, one backward pass per triple."
    return {name: b.grad for name, (b,) in LoopEngine(model, objective)(triples).blocks.items()}


def is_table(model: Model, name: str) -> bool:
    module = model.get_submodule(name.rsplit('.', 1)[0])
    return name.endswith('.weight') and isinstance(module, nn.Embedding)


def damped(C: Tensor, damping: float) -> Tensor:
    return torch.linalg.inv(C + damping * C.trace() / len(C) * torch.eye(len(C), dtype=C.dtype))


def block_diagonal(G: Tensor, block: int, damping: float) -> Tensor:
    """Damped inverse of the covariance of `G` `[N, p]`, of which only diagonal blocks of size
    `block` are kept."""
    p = G.shape[1]
    mask = torch.kron(torch.eye(p // block), torch.ones(block, block))
    return damped(G.T @ G / len(G) * mask, damping)


def kronecker(G: Tensor, damping: float, diagonal: list[bool]) -> Tensor:
    """Damped inverse `[p, p]` of the Kronecker product of the covariances of `G` `[N, n1, n2,
    ...]` over each axis."""
    whole, trace = torch.ones(1, 1, dtype=G.dtype), (G**2).sum() / len(G)
    damping **= 1 / sum(n > 1 for n in G.shape[1:])
    for i, diag in enumerate(diagonal):
        x = G.movedim(i + 1, 0).flatten(1)
        C = x @ x.T / len(G)
        whole = torch.kron(
            whole, damped(C.diagonal().diag() if diag else C, damping if len(C) > 1 else 0.0)
        )
    return whole * trace ** (len(diagonal) - 1)


def definition(model: Model, name: str, G: Tensor, w: Natural) -> Tensor:
    """The matrix `[p, p]` that `w` multiplies gradients by `name` with; `G` are those of the
    training triples."""
    shape = G.shape[1:]
    if is_table(model, name):
        if math.prod(shape) <= w.table:
            return block_diagonal(G.flatten(1), shape[1], w.damping)
        return kronecker(G, w.damping, [True, shape[1] > w.side])
    if math.prod(shape) <= w.full:
        return block_diagonal(G.flatten(1), math.prod(shape), w.damping)
    return kronecker(G, w.damping, [n > w.side for n in shape])


def truth(model: Model, objective: Objective, train: Tensor, test: Tensor, w: Natural) -> Tensor:
    "Influence `[4, 70]` from dense matrices."
    a, b = plain(model, objective, test), plain(model, objective, train)
    return sum(
        a[n].flatten(1) @ definition(model, n, b[n], w) @ b[n].flatten(1).T
        for n in b
        if (b[n] != 0).any()
    )


def ours(
    engine: FactoredEngine | LoopEngine,
    weighting: Weighting,
    train: Tensor,
    test: Tensor,
    tile: int,
    run: Run | None = None,
    k: int = 0,
) -> Tensor:
    "Influence `[4, 70]` with the training triples in tiles."
    metric = weighting.prepare(run, k, engine, (engine(part) for part in train.split(tile)))
    return inner(metric.test(engine(test)), metric.train(engine(train)))


@pytest.mark.parametrize(
    'name,objective,form', [(*c, f) for c in CASES for f in FORMS] + [('rgcn', 'bce', 'natural')]
)
def test_natural(name: str, objective: str, form: str) -> None:
    """Exact in float64 by both engines and any tiling, and near it in float32; the same bits a
    second time."""
    model, loss, train, test = some(name, objective)
    if name == 'rgcn':
        train = train[:20]  # slow
    with adjacency(torch.float64):
        expected = truth(model, loss, train, test, FORMS[form])
        assert expected.norm() > 0
        engine = FactoredEngine(model, loss)
        for tile in (70, 9):
            assert error(ours(engine, FORMS[form], train, test, tile), expected) < 1e-9
        assert error(ours(LoopEngine(model, loss), FORMS[form], train, test, 16), expected) < 1e-9
    single = FactoredEngine(model.float(), loss)
    first, second = (ours(single, FORMS[form], train, test, 16) for _ in range(2))
    assert error(first, expected) < 1e-5
    assert torch.equal(first, second)


def test_natural_says_what_it_did() -> None:
    model, loss, train, _ = some('conve', 'bce')
    engine = FactoredEngine(model, loss)
    facts = Natural(side=10, full=40).prepare(None, 0, engine, [engine(train)]).facts
    assert facts['training_triples'] == 70 and facts['damping'] == 0.3
    assert set(facts['blocks']) == set(engine.params)
    assert (
        facts['blocks']['entity_representations.0._embeddings.weight'] == 'row blocks, 14 x [8, 8]'
    )
    assert facts['blocks']['interaction.hr1d.0.weight'] == 'Kronecker [8, 8] x 27 diagonal'
    assert facts['blocks']['interaction.hr1d.0.bias'] == 'full [8, 8]'


def test_stays_factored() -> None:
    "Rows stay rows and outer products outer products, as far as the weighting allows."
    model, loss, train, test = some('conve', 'softmax')
    engine = FactoredEngine(model, loss)
    before = engine(test)
    kinds = lambda f: {n: [type(b).__name__ for b in blocks] for n, blocks in f.blocks.items()}
    metric = Natural(table=0, full=40).prepare(None, 0, engine, [engine(train)])
    assert kinds(metric.test(before)) == kinds(before)
    for blocks in (before, metric.test(before)):
        assert blocks.blocks['interaction.hr1d.0.weight'][0].factors


def test_tables_without_covariance() -> None:
    """A parameter that no training triple has a gradient by adds nothing; if there is no other,
    all influence is zero."""
    model, loss, train, test = some('distmult', 'bce')
    engine = FactoredEngine(model, loss)
    nothing = engine(train).map(lambda b: b.map(lambda t: t * 0 if t.is_floating_point() else t))
    metric = Natural().prepare(None, 0, engine, [nothing])
    assert not inner(metric.test(engine(test)), engine(train)).any()


@pytest.fixture(scope='module')
def runs(tmp_path_factory) -> dict[str, Run]:
    "Two checkpoints of DistMult under sLCWA and of ConvE under LCWA."
    folder = tmp_path_factory.mktemp('runs')
    options = dict(epochs=2, keep_every=1, lr=0.01, batch_size=256, progress=False, device='cpu')
    conve = dict(
        embedding_dim=8,
        embedding_height=2,
        embedding_width=4,
        output_channels=2,
        kernel_height=2,
        kernel_width=2,
    )
    return dict(
        slcwa=train(
            'nations', 'DistMult', out=folder / 'a', model_kwargs=dict(embedding_dim=8), **options
        ),
        lcwa=train(
            'nations',
            'ConvE',
            out=folder / 'b',
            loop='lcwa',
            loss='BCEWithLogits',
            model_kwargs=conve,
            **options,
        ),
    )


@pytest.mark.parametrize('kind', ['slcwa', 'lcwa'])
@pytest.mark.parametrize('k', [0, 1])
def test_adam(runs: dict[str, Run], kind: str, k: int) -> None:
    "The run's own moments, elementwise on dense gradients."
    run, loss = runs[kind], Softmax()
    train, test = run.training.mapped_triples[::40], run.testing.mapped_triples[:4]
    model, step = run.model(k, 'cpu').double(), run.checkpoints[k].step
    beta2, eps = run.optimizer[1]['betas'][1], run.optimizer[1]['eps']
    a, b, v = plain(model, loss, test), plain(model, loss, train), run.moments(k)
    root = {n: (v[n].double() / (1 - beta2**step)).sqrt() for n in b}
    expected = sum((a[n] / (root[n] + eps)).flatten(1) @ b[n].flatten(1).T for n in b)
    for engine in (FactoredEngine(model, loss), LoopEngine(model, loss)):
        assert error(ours(engine, Adam(), train, test, 9, run, k), expected) < 1e-9
    single = FactoredEngine(run.model(k, 'cpu'), loss)
    assert error(ours(single, Adam(), train, test, 9, run, k), expected) < 1e-5


def test_adam_is_the_step_that_adam_makes() -> None:
    """Without momentum, torch's own update is the learning rate times the weighed gradient of
    the batch."""
    graph = Nations().training
    torch.manual_seed(0)
    model = model_resolver.make('TransE', triples_factory=graph, embedding_dim=4).double()
    settings, loss, batch = dict(betas=(0.0, 0.9), eps=1e-8), Softmax(), graph.mapped_triples[:50]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, **settings)
    for _ in range(3):
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        optimizer.zero_grad()
        losses(model, loss, batch).sum().backward()
        grads = {n: p.grad.clone() for n, p in model.named_parameters()}
        optimizer.step()
    moments = {n: optimizer.state[p]['exp_avg_sq'] for n, p in model.named_parameters()}
    run = Run.from_model(
        model,
        graph,
        learning_rates=[0.01],
        optimizer=('Adam', settings),
        optimizer_moments=[moments],
    )
    run.checkpoints = [replace(run.checkpoints[0], step=3)]
    metric = Adam().prepare(run, 0, LoopEngine(model, loss), ())
    weighed = metric.test(Factors({n: (Dense(g[None]),) for n, g in grads.items()}))
    for n, p in model.named_parameters():
        torch.testing.assert_close(p.detach() - before[n], -0.01 * weighed.blocks[n][0].grad[0])


def test_adam_errors(runs: dict[str, Run]) -> None:
    run = runs['slcwa']
    engine = FactoredEngine(run.model(1), Softmax())

    def fails(match: str, adam: Adam = Adam(), **changes) -> None:
        with pytest.raises(ValueError, match=match):
            adam.prepare(replace(run, **changes), 1, engine, ())

    state = {n: dict(exp_avg_sq=v) for n, v in run.moments(1).items()}
    name = 'relation_representations.0._embeddings.weight'
    fewer, other = (
        {n: s for n, s in state.items() if n != name},
        state | {name: dict(exp_avg_sq=torch.ones(3))},
    )
    fails(f'checkpoint 1 has no second moments .* {name}', optimizer_state=lambda k: fewer)
    fails(f'{name} at checkpoint 1 have shape', optimizer_state=lambda k: other)
    fails('does not know its own', optimizer=None)
    fails('trained with Adagrad', optimizer=('Adagrad', {}))
    fails('trained with Adam', optimizer=('Adam', dict(betas=(0.9, 0.999), eps=1e-8, amsgrad=True)))
    fails("lack \\['eps'\\]", optimizer=('Adam', dict(betas=(0.9, 0.999))))
    fails(
        'checkpoint 1 does not know its step',
        checkpoints=[replace(c, step=None) for c in run.checkpoints],
    )
    with pytest.raises(ValueError, match='memory=100;'):
        Adam(memory=100).prepare(run, 1, engine, ()).test(engine(run.testing.mapped_triples[:2]))


def tiles_never_read() -> Iterator[Factors]:
    raise AssertionError('no pass over the training triples is needed')
    yield


@pytest.mark.parametrize('weighting', ['sgd', 'adam', 'cosine', 'adam-cosine'])
def test_no_pass_unless_needed(runs: dict[str, Run], weighting: str) -> None:
    run = runs['slcwa']
    make_weighting(weighting).prepare(
        run, 1, FactoredEngine(run.model(1), Softmax()), tiles_never_read()
    )


@pytest.mark.parametrize('metric', [Sgd(), Adam(), Natural()])
def test_cosine(runs: dict[str, Run], metric: Weighting) -> None:
    "The cosine of the angle between dense gradients, and zero where a gradient is zero."
    run, loss = runs['lcwa'], Softmax()
    train, test = run.training.mapped_triples[:30], run.testing.mapped_triples[:4]
    engine = LoopEngine(run.model(1, 'cpu').double(), loss)
    made = metric.prepare(run, 1, engine, [engine(train)])
    flat = lambda f: torch.cat(
        [b.grad.flatten(1) for blocks in f.blocks.values() for b in blocks], 1
    )
    unit = lambda x: x / x.norm(dim=1, keepdim=True)
    expected = unit(flat(made.test(engine(test)))) @ unit(flat(engine(train))).T
    fast = FactoredEngine(engine.model, loss)
    cosine = Cosine(metric).prepare(run, 1, fast, [fast(train)])
    weight = torch.arange(30) / 1e30
    got = inner(cosine.test(fast(test)), cosine.train(fast(train).scale(weight)))
    assert (got[:, 0] == 0).all()
    assert error(got[:, 1:], expected[:, 1:]) < 1e-9
    assert cosine.facts == dict(weighting='cosine', metric=cosine.facts['metric'])


@pytest.mark.parametrize(
    'kind,out', [(torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)]
)
@pytest.mark.parametrize('name', [n for n in WEIGHTINGS if n not in ('sgd', 'cosine')])
def test_precision(runs: dict[str, Run], name: str, kind: torch.dtype, out: torch.dtype) -> None:
    """16-bit gradients with weights go in and finite ones with weights come out, as wide as
    their range needs."""
    run = runs['slcwa']
    engine = FactoredEngine(run.model(1, 'cpu'), Softmax())
    full = engine(run.training.mapped_triples[:20])
    low = full.to(dtype=kind).scale(torch.full([20], 1e-6))
    metric = make_weighting(name).prepare(run, 1, engine, [low])
    weighed = metric.test(low)
    dtypes = {t.dtype for blocks in weighed.blocks.values() for b in blocks for t in b.tensors()}
    assert dtypes == {out, torch.long}
    assert inner(weighed, metric.train(low)).isfinite().all() and weighed.weight.shape == (20,)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_cuda() -> None:
    "The same on a GPU, and the same bits a second time."
    model, loss, train, test = some('distmult', 'softmax')
    for weighting in FORMS.values():
        expected = truth(model.cpu(), loss, train, test, weighting)
        engine = FactoredEngine(model.cuda(), loss)
        first, second = (ours(engine, weighting, train, test, 16).cpu() for _ in range(2))
        assert error(first, expected) < 1e-9
        assert torch.equal(first, second)
