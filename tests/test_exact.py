"""Every engine equals a plain loop of backward passes, for every PyKEEN model and every
interaction.

The loop is written out in models.py: PyKEEN's own scoring and losses, one backward pass per
triple, dense gradients."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from captum.influence import TracInCP
from models import (
    NO_GRADIENT,
    OBJECTIVES,
    OWN,
    REPRESENTATIONS,
    TRAINABLE,
    WRAPPED,
    Case,
    D,
    adjacency,
    around,
    case,
    double,
    error,
    examples,
    fit,
    graph,
    interacting,
    interaction,
    negatives,
    oracle,
    own_ids,
    represented,
    trained,
)
from pykeen.models import Model, model_resolver
from pykeen.nn import Representation, message_passing
from pykeen.nn.modules import Interaction, interaction_resolver
from pykeen.triples import CoreTriplesFactory, TriplesFactory
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import TensorDataset

from tracin_nb.engine.factors import Factors, concat, inner
from tracin_nb.engine.gradients import (
    ENGINES,
    FactoredEngine,
    LoopEngine,
    _trial_triples,
    make_engine,
)
from tracin_nb.engine.objectives import BCE, Objective, Softmax

pytestmark = pytest.mark.filterwarnings('ignore')
LIMIT = {torch.float64: 1e-6, torch.float32: 1e-5}
WORST: dict[str, tuple[float, str]] = {}


@pytest.fixture(scope='module', autouse=True)
def worst_said():
    "Tell the worst errors at the end (pytest -s)."
    yield
    for key, (worst, where) in sorted(WORST.items()):
        print(f'\nworst relative error, {key}: {worst:.1e} ({where})')


def note(key: str, err: float, where: str) -> float:
    WORST[key] = max(WORST.get(key, (0.0, '')), (err, where))
    return err


def tiles(engine, triples: Tensor) -> Factors:
    "Gradients of 11 triples, computed 1, 3 and 7 at a time."
    return concat([engine(part) for part in triples.split([1, 3, 7])])


def check(
    model: Model, factory: TriplesFactory, c: Case, where: str, engines: str = 'factored vmap'
) -> None:
    "Both engines in float64, and the factored one in float32, against the loop in float64."
    train, test = examples(factory)
    exact = double(model)
    with adjacency(torch.float64):
        truth = oracle(exact, c.truth, train, test)
        for name in engines.split():
            engine = make_engine(name, exact, c.objective)
            against = engine(test)
            whole = inner(engine(train), against)
            assert note(f'{name} float64', error(whole, truth), where) <= LIMIT[torch.float64], name
            parts = inner(tiles(engine, train), concat([engine(test[:1]), engine(test[1:])]))
            assert note(f'{name} float64', error(parts, truth), where) <= LIMIT[torch.float64], (
                f'{name} in tiles'
            )
    engine = FactoredEngine(model.float(), c.objective)
    single = error(inner(tiles(engine, train), engine(test)), truth)
    assert note('factored float32', single, where) <= LIMIT[torch.float32], 'factored in float32'


# ---- 1: all of PyKEEN's models
ALL = (
    'distmult',
    'conve',
    'tucker',
    'rotate',
    'transe',
    'proje',
    'ermlp',
    'nodepiece',
    'compgcn',
    'rgcn',
)
SLCWA_KINDS, ROW_KINDS = OBJECTIVES[5:8], ('softmax', 'softmax-head', *OBJECTIVES[8:])


def chosen(name: str) -> tuple[str, ...]:
    "All objectives for a few models, and three that change from model to model for the others."
    i = TRAINABLE.index(name)
    return OBJECTIVES if name in ALL else ('bce', SLCWA_KINDS[i % 3], ROW_KINDS[i % 6])


@pytest.mark.parametrize('name,objective', [(n, o) for n in TRAINABLE for o in chosen(n)])
def test_model(name, objective):
    model, factory = trained(name)
    with adjacency(torch.float64):
        c = case(objective, double(model), factory)
    check(model, factory, c, f'{name} {objective}')


def test_the_examples_share_all_that_triples_can_share():
    for factory in (graph(), graph(inverse=True)):
        train, test = (set(map(tuple, x.tolist())) for x in examples(factory))
        known = set(map(tuple, factory.mapped_triples.tolist()))
        pairs = [(x, y) for x in train for y in train | test if x != y]
        shares = lambda *same: any(tuple(a == b for a, b in zip(x, y)) == same for x, y in pairs)
        assert (
            shares(True, False, False) and shares(False, False, True) and shares(False, True, False)
        )
        assert any(x[2] == y[0] and x[1] != y[1] for x, y in pairs) and any(
            h == t for h, _, t in train
        )
        assert len(train) < len(examples(factory)[0]) == 11 and train & test
        assert train - known and test - known and len(train & known) > 5


def test_all_forty_models_are_here():
    assert len(TRAINABLE) == 38 and {*TRAINABLE, *NO_GRADIENT, *OWN} >= set(
        model_resolver.lookup_dict
    )
    assert all(len(chosen(n)) == 12 for n in ALL)
    used = {o for n in TRAINABLE if n not in ALL for o in chosen(n)}
    assert used == {'bce', *SLCWA_KINDS, *ROW_KINDS}


# ---- 2: all of its interactions
@pytest.mark.parametrize('objective', ['bce', 'lcwa-bce', 'softmax-head'])
@pytest.mark.parametrize('name', sorted([*interaction_resolver.lookup_dict, *WRAPPED]))
def test_interaction(name, objective):
    model, factory = interacting(name)
    check(model, factory, case(objective, double(model), factory), f'{name} {objective}')


NO_VMAP = {
    'embeddingbag': 'torch has no vmap rule for the unique ids of nn.EmbeddingBag',
    'partition': "torch has no vmap rule for PyKEEN's boolean masks",
}


@pytest.mark.parametrize('objective', ['bce', 'softmax', 'softmax-head'])
@pytest.mark.parametrize('name', [n for n in REPRESENTATIONS if n != 'normalised by dim 1'])
def test_representation(name, objective):
    model, factory = represented(name)
    engines = 'factored' if name in NO_VMAP else 'factored vmap'
    check(model, factory, case(objective, double(model), factory), f'{name} {objective}', engines)


@pytest.mark.parametrize(
    'name',
    [
        pytest.param(n, marks=pytest.mark.xfail(strict=True, raises=RuntimeError, reason=why))
        for n, why in NO_VMAP.items()
    ],
)
def test_vmap_of_representations_with_dynamic_shapes(name):
    model, factory = represented(name)
    make_engine('vmap', model, BCE())(examples(factory)[0])


def test_a_normalizer_that_takes_the_wrong_axis():
    """PyKEEN's default `normalize` works along axis 1, so what a vector is depends on how many are
    asked for at once.

    Scored with rows of candidates it then has no route: the factored engine says so, the others
    are exact."""
    model, factory = represented('normalised by dim 1')
    exact, (train, test) = double(model), examples(factory)
    check(model, factory, case('bce', exact, factory), 'normalised by dim 1')
    c = case('softmax', exact, factory)
    with pytest.raises(
        ValueError, match='no exact factored route for entity_rep.*use engine "vmap" or "loop"'
    ):
        make_engine('factored', exact, c.objective)
    truth = oracle(exact, c.truth, train, test)
    for name in ('vmap', 'loop'):
        engine = make_engine(name, exact, c.objective)
        assert error(inner(engine(train), engine(test)), truth) <= LIMIT[torch.float64]


# ---- 1: the two that have no gradient of their own
def test_fixed_model_has_nothing_to_attribute():
    model = model_resolver.make('fixed', triples_factory=graph())
    for name in ENGINES:
        with pytest.raises(ValueError, match='FixedModel has no trainable parameters'):
            make_engine(name, model, BCE())


def test_a_filter_around_a_model():
    "CooccurrenceFilteredModel is no ERModel: the factored engine says so, the loop is exact."
    torch.manual_seed(0)
    model = fit(
        model_resolver.make(
            'cooccurrencefiltered',
            triples_factory=graph(),
            base='distmult',
            embedding_dim=D,
            apply_in_training=False,
        ),
        graph(),
    )
    with pytest.raises(
        ValueError, match='CooccurrenceFilteredModel is not made of .*use engine "vmap" or "loop"'
    ):
        make_engine('factored', model, BCE())
    exact, (train, test) = double(model), examples(graph())
    c = case('bce', exact, graph())
    truth = oracle(exact, c.truth, train, test)
    for name in ('vmap', 'loop'):
        engine = make_engine(name, exact, c.objective)
        assert error(inner(engine(train), engine(test)), truth) <= 1e-6


def test_pykeen_cannot_build_its_gated_literal_model():
    """So `trained('distmultliteralgated')` builds the same architecture by hand. If this fails,
    use PyKEEN's own again."""
    with pytest.raises(TypeError, match='entity_embedding_dim'):
        model_resolver.make(
            'distmultliteralgated', triples_factory=graph(literals=True), embedding_dim=D
        )


# ---- 1: confident triples
def confident(name: str, top: float) -> tuple[Model, Tensor]:
    """A float64 model, its weights those of a float32 one, and 13 training triples with logits
    from 15 to `top`."""
    source, factory = trained(name)
    model, ids = double(source), factory.mapped_triples
    table = model.entity_representations[0]._embeddings.weight
    with torch.no_grad():
        while model.score_hrt(ids).max() < top:
            table.mul_(1.03)
        table.copy_(table.float())
        scores = model.score_hrt(ids)[:, 0]
    order = scores.sort().indices
    sure = torch.cat([order[-5:], order[scores[order] > 15][:8]])
    assert 15 < scores[sure].min() < 16 and scores[sure].max() >= top - 0.01
    return model, ids[sure]


def worst_entry(ours: Tensor, truth: Tensor) -> float:
    """The largest relative error of a single influence; pairs that share nothing have influence
    exactly 0."""
    assert (
        ours.dtype == truth.dtype
        and (ours[truth == 0] == 0).all()
        and (ours[truth != 0] != 0).all()
    )
    return ((ours - truth).abs() / truth.abs())[truth != 0].max().item()


@pytest.mark.parametrize('top', [25, 42])
@pytest.mark.parametrize('name', ['distmult', 'conve', 'complex'])
def test_confident_triples(name, top):
    """The derivative of the loss is down to 1e-18, and float32 still has each single influence.

    The derivative is as exact as the float32 logit, whose rounding grows with its size: to 1e-5
    up to a logit of 25, and as exact as the plain loop in float32 above."""
    model, ids = confident(name, top)
    bce = lambda model, x: nn.functional.softplus(-model.score_hrt(x)).squeeze()
    truth = oracle(model, bce, ids, ids)
    assert truth.diagonal().min() < (1e-18 if top == 25 else 1e-31)
    single = double(model).float()
    gradients = {
        e: make_engine(e, single, BCE())(ids).to(dtype=torch.float64) for e in ('factored', 'loop')
    }
    errors = {e: worst_entry(inner(f, f), truth) for e, f in gradients.items()}
    assert errors['factored'] <= (1e-5 if top == 25 else 2 * errors['loop'])


# ---- 3: inverse triples
@pytest.mark.parametrize(
    'objective',
    [
        'bce',
        'slcwa-bce',
        'slcwa-margin',
        'slcwa-nssa',
        'lcwa-bce',
        'lcwa-bce-row',
        'lcwa-crossentropy',
        'softmax',
        'softmax-head',
    ],
)
@pytest.mark.parametrize('name', ['distmult', 'conve'])
def test_inverse_triples(name, objective):
    model, factory = trained(name, inverse=True, lcwa='lcwa' in objective)
    check(model, factory, case(objective, double(model), factory), f'{name} {objective} inverse')


def test_own_ids_are_what_pykeen_trains_on():
    factory = graph(inverse=True)
    ours = {tuple(x[0].tolist()) for t in factory.mapped_triples for x in own_ids(t[None], True)}
    assert ours == set(
        map(tuple, factory._add_inverse_triples_if_necessary(factory.mapped_triples).tolist())
    )


# ---- 4: samplers
@pytest.mark.parametrize('objective', ['slcwa-bce', 'slcwa-margin', 'slcwa-nssa'])
@pytest.mark.parametrize(
    'sampler,filtered', [('basic', True), ('bernoulli', False), ('bernoulli', True)]
)
@pytest.mark.parametrize('name', ['distmult', 'conve'])
def test_samplers(name, sampler, filtered, objective):
    model, factory = trained(name)
    drawn = negatives(factory, sampler, n=6, filtered=filtered)
    _, mask = drawn.draw(torch.cat(examples(factory)))
    assert 0 < (~mask).sum() < mask.numel() if filtered else mask.all()
    check(
        model,
        factory,
        case(objective, double(model), factory, drawn),
        f'{name} {objective} {sampler}',
        'factored',
    )


# ---- 5: the model comes back as it was
def facts(model: nn.Module) -> dict:
    """All that an engine could leave behind: identities, values, gradients, modes, hooks, flags,
    caches."""
    of = lambda what: {name: what(m) for name, m in model.named_modules()}
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    return dict(
        identities={n: id(t) for n, t in tensors.items()},
        versions={n: t._version for n, t in tensors.items()},
        values={n: t.detach().clone() for n, t in tensors.items()},
        requires_grad={n: t.requires_grad for n, t in tensors.items()},
        grads={
            n: None if p.grad is None else (id(p.grad), p.grad.clone())
            for n, p in model.named_parameters()
        },
        training=of(lambda m: m.training),
        unique=of(lambda m: m.unique if isinstance(m, Representation) else None),
        hooks=of(lambda m: [list(v) for k, v in sorted(vars(m).items()) if k.endswith('_hooks')]),
        attributes=of(lambda m: sorted(vars(m))),
        parameters=of(lambda m: [*m._parameters, *m._buffers, *m._modules]),
        caches=of(
            lambda m: [
                id(getattr(m, k, None)) for k in ('enriched_embeddings', 'enriched_representations')
            ]
        ),
        adjacency=id(message_passing.adjacency_tensor_to_stacked_matrix),
        grad_mode=torch.is_grad_enabled(),
        rng=torch.get_rng_state(),
    )


def same(a: object, b: object) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, Tensor) else a == b


def disorder(model: Model) -> Model:
    """A float64 copy in a state that is nobody's default: mixed modes, gradients, a hook, a
    chosen `unique`."""
    model = double(model)
    model.train()
    for m in list(model.modules())[::3]:
        m.training = False
    for p in list(model.parameters())[::2]:
        p.grad = torch.full_like(p, 0.5)
    for i, m in enumerate(m for m in model.modules() if isinstance(m, Representation)):
        m.unique = (True, False, None)[i % 3]
    model.interaction.register_forward_hook(lambda *_: None)
    model.interaction.register_forward_pre_hook(lambda *_: None)
    return model


class Boom(Exception):
    pass


class Failing(Objective):
    "Fails while the loss of the third triple is computed, or of the first batch."

    def __init__(self, inner: Objective, kind: type[Exception]):
        self.inner, self.kind, self.left = inner, kind, 2

    def queries(self, triples):
        return self.inner.queries(triples)

    def loss(self, scores, *extra):
        self.left -= 1
        if self.left < 0:
            raise self.kind('in the middle')
        return self.inner.loss(scores, *extra)


@pytest.mark.parametrize('engine', ENGINES)
@pytest.mark.parametrize('name', ['conve', 'rgcn', 'compgcn', 'nodepiece'])
def test_the_model_comes_back_as_it_was(name, engine):
    source, factory = trained(name)
    model, (train, test) = disorder(source), examples(factory)
    inverse = factory.create_inverse_triples
    before = facts(model)

    def unchanged(after_what: str) -> None:
        after = facts(model)
        assert not [k for k in before if not same(before[k], after[k])], after_what

    with adjacency(torch.float64):
        before['adjacency'] = id(message_passing.adjacency_tensor_to_stacked_matrix)
        for objective in (BCE(0.1, inverse), Softmax('tail', inverse)):
            made = make_engine(engine, model, objective)
            unchanged('made')
            first = inner(made(train), made(test))
            unchanged('called')
            with torch.no_grad():
                again = inner(made(train), made(test))
            assert torch.equal(first, again)
            unchanged('called without gradients')
            for kind in (Boom, RuntimeError):
                failing = make_engine(engine, model, Failing(objective, kind))
                failing.objective.left = 2 if engine == 'loop' else 0
                with pytest.raises(kind, match='in the middle'):
                    failing(train)
                unchanged(f'left by {kind.__name__}')


@pytest.mark.parametrize(
    'name', ['distmult', 'conve', 'tucker', 'proje', 'distmultliteralgated', 'compgcn', 'rgcn']
)
@pytest.mark.parametrize('objective', ['bce', 'lcwa-bce'])
def test_frozen_parameters_are_left_out(name, objective):
    "One parameter after another, the tables among them, is not trained: all others stay exact."
    source, factory = trained(name)
    train, test = examples(factory)
    model = double(source)
    names = [n for n, _ in model.named_parameters()]
    frozen_ = (
        names
        if len(names) <= 4
        else [n for n in names if '_representations.' in n][:3] + names[-1:]
    )
    with adjacency(torch.float64):
        c = case(objective, model, factory)
        for out in frozen_:
            p = dict(model.named_parameters())[out]
            p.requires_grad_(False)
            truth = oracle(model, c.truth, train[:3], test)
            for engine in ENGINES:
                made = make_engine(engine, model, c.objective)
                found = made(train[:3])
                assert out not in found.blocks
                wrong = error(inner(found, made(test)), truth)
                assert (
                    note(f'{engine} float64', wrong, f'{name} {objective} without {out}')
                    <= LIMIT[torch.float64]
                )
            p.requires_grad_(True)


# ---- 6: no weight gradient, one pass forward
class Watch(TorchDispatchMode):
    "What every operation returns, in new memory, and how convolutions are differentiated."

    def __init__(self, model: nn.Module):
        super().__init__()
        self.known = {
            t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())
        }
        self.shapes, self.names, self.masks = set(), Counter(), []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.names[name] += 1
        if name == 'convolution_backward':
            self.masks.append(list(args[-1]))
        for t in out if isinstance(out, (list, tuple)) else [out]:
            if isinstance(t, Tensor) and t.untyped_storage().data_ptr() not in self.known:
                self.shapes |= {tuple(t.shape), tuple(t.squeeze().shape)}
        return out


def watched(engine: object, model: Model, triples: Tensor) -> tuple[Watch, int]:
    "What one call does, and how often it scores."
    calls = []
    hook = model.interaction.register_forward_hook(lambda *_: calls.append(1))
    with Watch(model) as watch:
        engine(triples)
    hook.remove()
    return watch, len(calls)


@pytest.mark.parametrize('objective', ['bce', 'slcwa-bce', 'slcwa-nssa'])
def test_no_weight_gradient_and_one_forward_pass(objective):
    model, factory = trained('conve')
    model = double(model)
    c, (train, _) = case(objective, model, factory), examples(factory)
    linear = next(m for m in model.modules() if isinstance(m, nn.Linear)).weight
    table, relations = (
        r[0]._embeddings.weight
        for r in (model.entity_representations, model.relation_representations)
    )
    forbidden = {tuple(w.shape) for w in (linear, linear.T, table, table.T, relations, relations.T)}
    assert not forbidden & {
        (len(train), n) for n in (*linear.shape, *table.shape)
    }  # no activation looks like them
    seen, calls = watched(FactoredEngine(model, c.objective), model, train)
    assert not forbidden & seen.shapes
    assert calls == 1 and seen.names['convolution'] == 1
    assert [m[1] for m in seen.masks] == [False]
    assert not seen.names['embedding_dense_backward']
    seen, _ = watched(
        LoopEngine(model, c.objective), model, train
    )  # the loop does all that, and the watch sees it
    assert {tuple(linear.shape), tuple(table.shape)} <= seen.shapes
    assert (
        all(m[1] for m in seen.masks)
        and len(seen.masks) == len(train)
        and seen.names['embedding_dense_backward']
    )


@pytest.mark.parametrize('name', ['distmult', 'proje', 'tucker', 'transe', 'ermlp', 'nodepiece'])
def test_one_forward_pass(name):
    model, factory = trained(name)
    train, _ = examples(factory)
    _, calls = watched(
        FactoredEngine(model, case('slcwa-bce', double(model), factory).objective), model, train
    )
    assert calls == 1


# ---- 7: Captum
class Scorer(nn.Module):
    def __init__(self, model: Model):
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        return self.model.score_hrt(ids)[:, 0]


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
@pytest.mark.parametrize('name', ['conve', 'distmult'])
def test_captum(name, dtype):
    "One checkpoint, learning rate 1, no smoothing: Captum 0.9's TracInCP on the same model."
    source, factory = trained(name)
    model, (train, test) = double(source).to(dtype), examples(factory)
    ones = lambda ids: torch.ones(len(ids), dtype=dtype)
    captum = TracInCP(
        Scorer(model).eval(),
        TensorDataset(train, ones(train)),
        batch_size=4,
        checkpoints=['only one'],
        checkpoints_load_func=lambda *_: 1.0,
        loss_fn=nn.BCEWithLogitsLoss(reduction='none'),
    )
    theirs = captum.influence((test, ones(test))).T
    for engine in ENGINES:
        made = make_engine(engine, model, BCE())
        wrong = error(inner(made(train), made(test)), theirs)
        assert (
            note(f'captum {dtype}'.replace('torch.', ''), wrong, f'{name} {engine}')
            <= LIMIT[torch.float32]
        )


# ---- 8: interactions of one's own
class Own(Interaction):
    """A user's interaction: a parameter that is used directly, one that a Linear holds, and one
    that is used twice."""

    entity_shape, relation_shape = ('d', 'd'), ('d',)

    def __init__(self):
        super().__init__()
        self.mix = nn.Parameter(torch.randn(D, D) * 0.3)
        self.linear = nn.Linear(D, D)
        self.scale = nn.Parameter(torch.tensor(0.7))

    def forward(self, h, r, t):
        a, b = h[0] + h[1] * self.scale, t[0] * self.scale - t[1]
        x = torch.tanh(self.linear(a * r) @ self.mix + self.linear(a))
        return (x * b).sum(-1)


@pytest.mark.parametrize(
    'objective', ['bce', 'slcwa-nssa', 'slcwa-margin', 'softmax', 'softmax-head', 'lcwa-bce']
)
def test_own_interaction(objective):
    torch.manual_seed(0)
    model = fit(around(Own(), graph()), graph())
    check(model, graph(), case(objective, double(model), graph()), f'own {objective}')


class Late(Interaction):
    "A parameter that only the scores beyond a threshold feel."

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(D))
        self.threshold = 0.0

    def forward(self, h, r, t):
        s = (h * r * t).sum(-1)
        return s + (s - self.threshold).relu() * (h * r * t * self.weight).sum(-1)


@pytest.mark.parametrize('objective', ['bce', 'softmax', 'softmax-head'])
def test_a_parameter_that_the_trial_does_not_feel(objective):
    """The routes are chosen by a trial on three triples; a parameter whose gradient is zero
    there must not get lost."""
    torch.manual_seed(0)
    model, ids = double(around(Late(), graph())), graph().mapped_triples
    score = {
        'bce': model.score_hrt,
        'softmax': lambda ids: model.score_t(ids[:, :2]),
        'softmax-head': lambda ids: model.score_h(ids[:, 1:]),
    }[objective]
    best = lambda ids: score(ids).max(dim=1).values
    model.interaction.threshold = float('inf')
    with torch.no_grad():
        unfelt, scores = best(_trial_triples(model)).max().item() + 1e-6, best(ids)
    model.interaction.threshold = unfelt
    some = ids[scores.sort().indices[-5:]]
    assert (best(some) > unfelt).all()
    c = case(objective, model, graph())
    truth = oracle(model, c.truth, some, some)
    for name in ENGINES:
        engine = make_engine(name, model, c.objective)
        wrong = error(inner(engine(some), engine(some)), truth)
        assert note(f'{name} float64', wrong, f'late {objective}') <= LIMIT[torch.float64], name


# ---- tables whose length is a multiple of the trial's
@pytest.mark.parametrize('objective', ['softmax', 'softmax-head', 'lcwa-bce'])
@pytest.mark.parametrize(
    'name',
    ['tucker', 'conve', 'distmult', 'proje', 'multilineartucker', 'transformer', 'ermlp', 'ermlpe'],
)
def test_as_many_entities_as_triples_times_something(name, objective):
    "12 entities and batches of 1, 3, 4, 6 and 12 triples: no table is taken for a batch."
    torch.manual_seed(0)
    ids = torch.stack([torch.randint(n, (150,)) for n in (12, 5, 12)], 1).unique(dim=0)
    factory = CoreTriplesFactory.create(ids, num_entities=12, num_relations=5)
    model = double(fit(around(interaction(name), factory), factory, batch_size=32))
    c, train = case(objective, model, factory), ids[torch.randperm(len(ids))[:12]]
    truth = oracle(model, c.truth, train, train)
    engine = make_engine('factored', model, c.objective)
    right = engine(train)
    for size in (1, 3, 4, 6, 12):
        parts = concat([engine(x) for x in train.split(size)])
        assert (
            note('factored float64', error(inner(parts, right), truth), f'{name} {objective} of 12')
            <= 1e-6
        ), size
