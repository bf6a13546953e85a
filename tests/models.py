"""Small trained models of every kind, and the plain loop that every engine is held against."""

from __future__ import annotations

import copy
import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import torch
from pykeen.datasets.nations import Nations, NationsLiteral
from pykeen.losses import Loss, loss_resolver
from pykeen.models import ERModel, LiteralModel, Model, model_resolver
from pykeen.models.inductive.base import InductiveERModel
from pykeen.nn import Embedding, PartitionRepresentation, message_passing
from pykeen.nn.combination import GatedCombination
from pykeen.nn.modules import (
    ClampedInteraction,
    DirectionAverageInteraction,
    DistMultInteraction,
    Interaction,
    KG2EInteraction,
    MonotonicAffineTransformationInteraction,
    TransEInteraction,
    TuckERInteraction,
    interaction_resolver,
)
from pykeen.sampling import negative_sampler_resolver
from pykeen.training import LCWATrainingLoop, SLCWATrainingLoop
from pykeen.triples import TriplesFactory
from torch import Tensor, nn
from torch.nn import functional as F

from tracin_nb.engine.objectives import (
    BCE,
    LCWA,
    SLCWA,
    Contrast,
    Labels,
    Negatives,
    Objective,
    Score,
    Softmax,
    directions,
)

logging.getLogger('pykeen').setLevel(logging.ERROR)

D = 8
CONVE = dict(
    embedding_dim=D,
    embedding_height=2,
    embedding_width=4,
    output_channels=3,
    kernel_height=2,
    kernel_width=2,
)
KWARGS = {
    'conve': CONVE,
    'convkb': dict(embedding_dim=D, num_filters=3),
    'autosf': dict(embedding_dim=D, num_components=4),
    'tucker': dict(embedding_dim=D, relation_dim=4),
    'ermlp': dict(embedding_dim=D, hidden_dim=5),
    'ermlpe': dict(embedding_dim=D, hidden_dim=6),
    'ntn': dict(embedding_dim=D, num_slices=2),
    'transr': dict(embedding_dim=D, relation_dim=4),
    'transd': dict(embedding_dim=D, relation_dim=4),
    'rgcn': dict(embedding_dim=D, num_layers=2),
    'nodepiece': dict(embedding_dim=D, num_tokens=3),
    'inductivenodepiece': dict(embedding_dim=D, num_tokens=3),
    'inductivenodepiecegnn': dict(embedding_dim=D, num_tokens=3),
}
NEED_INVERSE = ('compgcn', 'nodepiece', 'inductivenodepiece', 'inductivenodepiecegnn')
NO_GRADIENT = (
    'fixed',
    'cooccurrencefiltered',
)  # a mock without parameters, and a filter around another model
OWN = {'rotatel1'}  # tracin_nb adds it to PyKEEN's
TRAINABLE = sorted(set(model_resolver.lookup_dict) - set(NO_GRADIENT) - OWN)


@cache
def graph(inverse: bool = False, literals: bool = False) -> TriplesFactory:
    "Training triples of Nations."
    return (NationsLiteral if literals else Nations)(create_inverse_triples=inverse).training


def gated(triples: TriplesFactory) -> LiteralModel:
    """DistMultLiteralGated, which PyKEEN 1.11.1 cannot build: it passes keywords that
    GatedCombination does not know."""
    plain = [dict(shape=D, initializer=nn.init.xavier_normal_)]
    return LiteralModel(
        triples_factory=triples,
        interaction='distmult',
        combination=GatedCombination,
        combination_kwargs=dict(entity_dim=D, literal_dim=triples.numeric_literals.shape[1]),
        entity_representations_kwargs=plain,
        relation_representations_kwargs=plain,
    )


def build(name: str, triples: TriplesFactory) -> Model:
    "Model `name` of PyKEEN's resolver with small dimensions, untrained."
    torch.manual_seed(0)
    if name == 'distmultliteralgated':
        return gated(triples)
    extra = dict(inference_factory=triples) if name.startswith('inductive') else {}
    return model_resolver.make(
        name, triples_factory=triples, **{'embedding_dim': D, **KWARGS.get(name, {})}, **extra
    )


def fit(model: Model, triples: TriplesFactory, lcwa: bool = False, batch_size: int = 256) -> Model:
    "`model` after two epochs of Adam."
    torch.manual_seed(1)
    loop = LCWATrainingLoop if lcwa else SLCWATrainingLoop
    # PyKEEN collects garbage after every epoch, which is slow among the objects of a whole test
    # session
    gc.freeze()
    try:
        loop(
            model=model,
            triples_factory=triples,
            mode=mode_of(model),
            optimizer='adam',
            optimizer_kwargs=dict(lr=0.02),
        ).train(triples, num_epochs=2, batch_size=batch_size, use_tqdm=False)
    finally:
        gc.unfreeze()
    return model


@cache
def trained(name: str, inverse: bool = False, lcwa: bool = False) -> tuple[Model, TriplesFactory]:
    "A trained model of PyKEEN's resolver, in float32, with the factory of its training triples."
    triples = graph(inverse or name in NEED_INVERSE, 'literal' in name)
    return fit(build(name, triples), triples, lcwa=lcwa), triples


COEFFICIENTS = ((0, 0, 0, 1), (1, 1, 1, 1), (0, 1, 1, -1))
INTERACTIONS: dict[str, dict] = {
    'autosf': dict(coefficients=COEFFICIENTS),
    'conve': CONVE,
    'convkb': dict(embedding_dim=D, num_filters=3),
    'crosse': dict(embedding_dim=D),
    'ermlp': dict(embedding_dim=D, hidden_dim=5),
    'ermlpe': dict(embedding_dim=D, hidden_dim=6),
    'lineare': dict(p=2),
    'mure': dict(p=2, power_norm=True),
    'multilineartucker': dict(head_dim=D, relation_dim=5, tail_dim=6),
    'pairre': dict(p=1),
    'proje': dict(embedding_dim=D),
    'se': dict(p=2),
    'transe': dict(p=2),
    'transh': dict(p=2),
    'transr': dict(p=2),
    'tucker': dict(embedding_dim=D),
    'um': dict(p=2),
    'transformer': dict(input_dim=D, num_layers=1, num_heads=2, dim_feedforward=6),
}
WRAPPED: dict[str, Callable[[], Interaction]] = {
    'clamped-distmult': lambda: ClampedInteraction('distmult', clamp_score=(-0.1, 3.0)),
    'clamped-transe': lambda: ClampedInteraction('transe', dict(p=2), clamp_score=(-4.0, -0.5)),
    'directionaverage-transe': lambda: DirectionAverageInteraction('transe', dict(p=1)),
    'directionaverage-ermlp': lambda: DirectionAverageInteraction(
        'ermlp', dict(embedding_dim=D, hidden_dim=5)
    ),
    'clamped-tucker': lambda: ClampedInteraction(
        'tucker', dict(embedding_dim=D), clamp_score=(-1.0, 50.0)
    ),
    'directionaverage-multilineartucker': lambda: DirectionAverageInteraction(
        'multilineartucker', dict(head_dim=D)
    ),
    'directionaverage-tucker': lambda: DirectionAverageInteraction('tucker', dict(embedding_dim=D)),
    'directionaverage-convkb': lambda: DirectionAverageInteraction(
        'convkb', dict(embedding_dim=D, num_filters=3)
    ),
    'conve-plain': lambda: interaction_resolver.make(
        'conve', {**CONVE, 'apply_batch_normalization': False}
    ),
    'tucker-plain': lambda: interaction_resolver.make(
        'tucker', dict(embedding_dim=D, apply_batch_normalization=False)
    ),
    'affine-tucker': lambda: MonotonicAffineTransformationInteraction(
        TuckERInteraction(embedding_dim=D)
    ),
    'affine-distmult': lambda: MonotonicAffineTransformationInteraction(
        DistMultInteraction(), initial_bias=0.5, initial_scale=2.0
    ),
    'affine-transe': lambda: MonotonicAffineTransformationInteraction(
        TransEInteraction(p=2), initial_bias=2.0, trainable_scale=False
    ),
}
DIMENSIONS = dict(d=D, e=5, f=6, k=4, s=1)
COMPLEX = ('complex', 'rotate')


def interaction(name: str) -> Interaction:
    "An interaction of PyKEEN's resolver, or a wrapped one."
    if name not in WRAPPED:
        return interaction_resolver.make(name, INTERACTIONS.get(name, {}))
    made = WRAPPED[name]()
    if isinstance(made, DirectionAverageInteraction):
        made.entity_shape = made.relation_shape = ('d', 'd')
    return made


def start_covariances(x: Tensor) -> Tensor:
    "Numbers from 0.8 to 1.6: half of KG2E's vectors are variances."
    return nn.init.uniform_(x, 0.8, 1.6)


def around(made: Interaction, triples: TriplesFactory, dtype: torch.dtype | None = None) -> ERModel:
    "An ERModel of plain tables around an interaction, in the shapes that it asks for."
    start = start_covariances if isinstance(made, KG2EInteraction) else nn.init.normal_
    table = lambda shape: dict(
        shape=tuple(DIMENSIONS[c] for c in shape), initializer=start, dtype=dtype
    )
    many = lambda shapes: dict(
        representations=[None] * len(shapes), representations_kwargs=[table(s) for s in shapes]
    )
    side = lambda side, shapes: {f'{side}_{k}': v for k, v in many(shapes).items()}
    return ERModel(
        triples_factory=triples,
        interaction=made,
        **side('entity', made.entity_shape),
        **side('relation', made.relation_shape),
    )


@cache
def interacting(name: str) -> tuple[ERModel, TriplesFactory]:
    "A trained ERModel around interaction `name`."
    torch.manual_seed(0)
    model = around(interaction(name), graph(), torch.cfloat if name in COMPLEX else None)
    return fit(model, graph()), graph()


REPRESENTATIONS: dict[str, dict] = {
    'lowrank': dict(shape=(D,), num_bases=3),
    'tensortrain': dict(shape=(4,), num_cores=2, ranks=2),
    'transformed': dict(
        transformation=nn.Linear(4, D), base='embedding', base_kwargs=dict(shape=(4,))
    ),
    'mlp': dict(
        transformation=nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, D)),
        base='embedding',
        base_kwargs=dict(shape=(4,)),
    ),
    'combined': dict(
        base=[None, None], base_kwargs=[dict(shape=(3,)), dict(shape=(5,))], combination='concat'
    ),
    'normalised': dict(
        shape=(D,), normalizer='normalize', normalizer_kwargs=dict(dim=-1), dropout=0.2
    ),
    'normalised by dim 1': dict(shape=(D,), normalizer='normalize'),
    'embeddingbag': dict(
        assignment=torch.stack([torch.arange(14).repeat(3), torch.arange(42) % 9], 1), shape=(D,)
    ),
    'partition': {},
    'subset': dict(base=Embedding(max_id=20, shape=(D,))),
}


@cache
def represented(name: str) -> tuple[ERModel, TriplesFactory]:
    "A trained DistMult whose entities are given by representation `name`."
    torch.manual_seed(0)
    kind = {'mlp': 'transformed'}.get(name, 'embedding' if name.startswith('normalised') else name)
    if name == 'partition':
        kind = PartitionRepresentation(
            assignment=torch.tensor([[i % 2, i // 2] for i in range(14)]),
            bases=[Embedding(max_id=7, shape=(D,)), Embedding(max_id=7, shape=(D,))],
        )
    size = 4 if name == 'tensortrain' else D
    model = ERModel(
        triples_factory=graph(),
        interaction='distmult',
        entity_representations=kind,
        entity_representations_kwargs=REPRESENTATIONS[name] or None,
        relation_representations_kwargs=dict(shape=(size,)),
    )
    return fit(model, graph()), graph()


def double(model: Model) -> Model:
    "A float64 copy of `model`, in eval mode."
    return copy.deepcopy(model).double().eval()


@contextmanager
def adjacency(dtype: torch.dtype) -> Iterator[None]:
    """R-GCN's edge weights in `dtype`: PyKEEN always makes float32 ones, which float64 states
    cannot be multiplied with."""
    name = 'adjacency_tensor_to_stacked_matrix'
    original = getattr(message_passing, name)
    setattr(message_passing, name, lambda *args, **kwargs: original(*args, **kwargs).to(dtype))
    try:
        yield
    finally:
        setattr(message_passing, name, original)


def mode_of(model: Model) -> str | None:
    return 'training' if isinstance(model, InductiveERModel) else None


def examples(factory: TriplesFactory) -> tuple[Tensor, Tensor]:
    """Training `[11, 3]` and test `[4, 3]` triples that share all that two triples can share.

    Heads, tails, a head that is another's tail, relations alone, loops, a repeated one, and ones
    outside the graph."""
    all_ = factory.mapped_triples
    h, r, t = a = all_[700]
    first = lambda mask: all_[mask.nonzero()[0, 0]]
    H, R, T = all_.T
    train = [
        a,
        first((H == h) & (T != t) & (R != r)),
        first((T == t) & (H != h) & (R != r)),
        first((T == h) & (R != r)),
        first((R == r) & (H != h) & (T != t) & (H != t)),
        torch.stack([h, r, h]),
        a,
        all_[((H == t) & (T == h)).nonzero()[-1, 0]],
        all_[3],
        all_[1500],
        torch.stack([t, all_[3, 1], t]),
    ]
    test = [a, torch.stack([t, r, t]), torch.stack([all_[3, 2], r, h]), all_[-1]]
    return torch.stack(train), torch.stack(test)


def negatives(
    factory: TriplesFactory, sampler: str = 'basic', n: int = 3, **kwargs: bool
) -> Negatives:
    "Drawn negatives of the triples of `factory`, inverse ones included."
    both = directions(factory.mapped_triples, factory.create_inverse_triples).flatten(0, 1)
    made = negative_sampler_resolver.make(
        sampler, mapped_triples=both, num_negs_per_pos=n, **kwargs
    )
    return Negatives(made, both, seed=0)


Truth = Callable[[Model, Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    "An objective, and the same loss of one triple `[1, 3]` in PyKEEN's own words."

    objective: Objective
    truth: Truth


def own_ids(triple: Tensor, inverse: bool) -> list[Tensor]:
    """What PyKEEN trains on for one triple `[1, 3]`: with inverse triples r becomes 2 r, and (t,
    2 r + 1, h) comes in."""
    if not inverse:
        return [triple]
    h, r, t = triple[0].tolist()
    return [torch.tensor([[h, 2 * r, t]]), torch.tensor([[t, 2 * r + 1, h]])]


def slcwa(
    factory: TriplesFactory, loss: Loss, smoothing: float = 0.0, drawn: Negatives | None = None
) -> Case:
    "PyKEEN's sLCWA batch of one positive, with the negatives that were drawn for it."
    inverse, drawn = factory.create_inverse_triples, drawn or negatives(factory)

    def truth(model: Model, triple: Tensor) -> Tensor:
        def one(positive: Tensor) -> Tensor:
            negative, mask = drawn.draw(positive)
            batch = dict(positives=positive, negatives=negative)
            if drawn.sampler.filterer is not None:
                batch['masks'] = mask
            whole = SLCWATrainingLoop._process_batch_static(
                model, loss, mode_of(model), batch, None, None, smoothing
            )
            return (
                whole - model.collect_regularization_term()
            )  # the same for every triple, so no triple's own

        return sum(map(one, own_ids(triple, inverse)))

    return Case(SLCWA(loss, smoothing, factory.num_entities, drawn, inverse), truth)


def lcwa(factory: TriplesFactory, loss: Loss, smoothing: float = 0.0, row: bool = False) -> Case:
    """PyKEEN's LCWA batch of one row; unless the whole `row` is asked for, less the row without
    the triple's own label."""
    inverse, E = factory.create_inverse_triples, factory.num_entities
    known: dict[tuple[int, int], set[int]] = {}
    for triple in factory.mapped_triples:
        for h, r, t in (x[0].tolist() for x in own_ids(triple[None], inverse)):
            known.setdefault((h, r), set()).add(t)

    def batch(model: Model, pair: Tensor, tails: set[int]) -> Tensor:
        target = torch.tensor(
            [[float(e in tails) for e in range(E)]], dtype=next(model.parameters()).dtype
        )
        whole = LCWATrainingLoop._process_batch_static(
            model,
            model.score_t,
            loss,
            E,
            mode_of(model),
            dict(pairs=pair, target=target),
            None,
            None,
            smoothing,
        )
        return whole - model.collect_regularization_term()

    def truth(model: Model, triple: Tensor) -> Tensor:
        total = torch.zeros(())
        for ids in own_ids(triple, inverse):
            h, r, t = ids[0].tolist()
            others = known.get((h, r), set()) - {t}
            total = total + batch(model, ids[:, :2], others | {t})
            if others and not row:
                total = total - batch(model, ids[:, :2], others)
        return total

    both = torch.cat([torch.cat(own_ids(x[None], inverse)) for x in factory.mapped_triples])
    return Case(LCWA(loss, smoothing, Labels(both, E), row, inverse), truth)


def softmax(factory: TriplesFactory, side: str) -> Case:
    "PyTorch's cross entropy of PyKEEN's row of scores."
    inverse = factory.create_inverse_triples

    def truth(model: Model, triple: Tensor) -> Tensor:
        ids, kw = own_ids(triple, inverse)[0], dict(mode=mode_of(model))
        if side == 'tail':
            return F.cross_entropy(model.score_t(ids[:, :2], **kw), ids[:, 2])
        score = model.score_h_inverse if inverse else model.score_h
        return F.cross_entropy(score(ids[:, 1:].clone(), **kw), ids[:, 0])

    return Case(Softmax(side, inverse), truth)


def plain(factory: TriplesFactory, name: str) -> Case:
    "bce with smoothing 0.1, score, contrast."
    inverse, against = factory.create_inverse_triples, 5

    def scored(model: Model, triple: Tensor) -> Tensor:
        return model.score_hrt(own_ids(triple, inverse)[0], mode=mode_of(model)).squeeze()

    def bce(model: Model, triple: Tensor) -> Tensor:
        s = scored(model, triple)
        return F.binary_cross_entropy_with_logits(s, torch.full_like(s, 0.9))

    def contrast(model: Model, triple: Tensor) -> Tensor:
        other = triple.clone()
        other[0, 2] = against
        return scored(model, other) - scored(model, triple)

    if name == 'bce':
        return Case(BCE(0.1, inverse), bce)
    if name == 'score':
        return Case(Score(inverse), lambda model, triple: -scored(model, triple))
    return Case(Contrast(against, inverse), contrast)


def margin(model: Model, factory: TriplesFactory, drawn: Negatives) -> float:
    """A margin at which the ranking loss is active for only some negatives of the `examples`,
    and which is near none."""
    with torch.no_grad():
        inverse = factory.create_inverse_triples
        positives = torch.cat(
            [x for t in torch.cat(examples(factory)) for x in own_ids(t[None], inverse)]
        )
        score = lambda ids: model.score_hrt(ids.flatten(0, -2), mode=mode_of(model)).view(
            len(positives), -1
        )
        gaps = (score(positives[:, None]) - score(drawn.draw(positives)[0])).flatten().sort().values
    middle = gaps[len(gaps) // 3 : -len(gaps) // 3]
    at = middle.diff().argmax()
    return middle[at : at + 2].mean().item()


OBJECTIVES = (
    'bce',
    'score',
    'contrast',
    'softmax',
    'softmax-head',
    'slcwa-bce',
    'slcwa-margin',
    'slcwa-nssa',
    'lcwa-bce',
    'lcwa-bce-row',
    'lcwa-crossentropy',
    'lcwa-crossentropy-row',
)


def case(name: str, model: Model, factory: TriplesFactory, drawn: Negatives | None = None) -> Case:
    "Objective `name` for a model in eval mode; `model` settles the margin of the pairwise loss."
    if name in ('bce', 'score', 'contrast'):
        return plain(factory, name)
    if name.startswith('softmax'):
        return softmax(factory, 'head' if name.endswith('head') else 'tail')
    drawn = drawn or negatives(factory)
    if name == 'slcwa-bce':
        return slcwa(factory, loss_resolver.make('bcewithlogits'), 0.1, drawn)
    if name == 'slcwa-nssa':
        return slcwa(
            factory,
            loss_resolver.make('nssa', margin=3.0, adversarial_temperature=2.0),
            drawn=drawn,
        )
    if name == 'slcwa-margin':
        return slcwa(
            factory,
            loss_resolver.make('marginranking', margin=margin(model, factory, drawn)),
            drawn=drawn,
        )
    loss = loss_resolver.make('bcewithlogits' if 'bce' in name else 'crossentropy')
    return lcwa(factory, loss, 0.1 if 'bce' in name else 0.0, name.endswith('row'))


def forget(model: Model) -> None:
    "Drop gradients, and what a graph network keeps of its last pass."
    model.zero_grad(set_to_none=True)
    for m in model.modules():
        for kept in ('enriched_embeddings', 'enriched_representations'):
            if hasattr(m, kept):
                setattr(m, kept, None)


def gradient(model: Model, loss: Callable[[], Tensor]) -> Tensor:
    "The dense gradient of all trainable parameters, from a plain backward pass."
    forget(model.eval())
    loss().backward()
    params = [p for p in model.parameters() if p.requires_grad]
    flat = torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten().clone() for p in params]
    )
    forget(model)
    return flat


def oracle(model: Model, truth: Truth, train: Tensor, test: Tensor) -> Tensor:
    "Influences `[N, M]`: inner products of dense gradients, one plain backward pass per triple."
    rows = lambda triples: torch.stack(
        [gradient(model, lambda: truth(model, x[None])) for x in triples]
    )
    return rows(train) @ rows(test).T


def error(ours: Tensor, truth: Tensor) -> float:
    "Relative error over the whole matrix; the truth must be finite and not zero."
    assert truth.isfinite().all() and truth.norm() > 0, truth
    return ((ours.to(truth.dtype) - truth).norm() / truth.norm()).item()
