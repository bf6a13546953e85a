"""Kept gradients: what they are kept by, that they are the computed ones bit by bit, and that
damage is never used."""

import functools
import math
import os
import random
import shutil
import subprocess
import sys
import threading
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pykeen.datasets import Nations
from pykeen.losses import MarginRankingLoss, loss_resolver
from pykeen.models import Model, model_resolver
from pykeen.nn.modules import DistMultInteraction
from pykeen.sampling import negative_sampler_resolver
from torch import Tensor

from tracin_nb.engine import objectives
from tracin_nb.engine.factors import Dense, Factors, Outer, Rows, inner
from tracin_nb.engine.gradients import FactoredEngine, make_engine
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
)
from tracin_nb.influence import cache as module
from tracin_nb.influence.cache import (
    CacheFileError,
    FactorCache,
    FactorFile,
    Key,
    TrainingStore,
    cache_info,
    clear_cache,
    default_folder,
    digest,
    flatten,
    gradient_key,
    objective_key,
    rounding_error,
    unflatten,
    writing,
)
from tracin_nb.runs.run import Run

TRIPLES = Nations().training.mapped_triples
KEY = Key('weights', 'objective', 'engine')
SMALL = dict(
    embedding_dim=8,
    embedding_height=2,
    embedding_width=4,
    output_channels=2,
    kernel_height=2,
    kernel_width=2,
)


def run_of(model: str = 'DistMult', **options) -> Run:
    "A run of one checkpoint, untrained."
    kwargs = SMALL if model == 'ConvE' else dict(embedding_dim=4)
    made = model_resolver.make(model, triples_factory=Nations().training, random_seed=0, **kwargs)
    return Run.from_model(made, Nations().training, learning_rates=[0.1], **options)


def same(a: Factors, b: Factors) -> None:
    "The same blocks in the same order, bit by bit."
    a, b = flatten(a), flatten(b)
    assert list(a) == list(b)
    for x, y in zip(a.values(), b.values()):
        assert x.dtype == y.dtype and torch.equal(x, y)


class Source:
    """Factors of known triples by look-up, so that one triple's are the same in any company;
    counts what it is asked."""

    def __init__(self, triples: Tensor, whole: Factors):
        self.triples, self.whole, self.asked = triples, whole, []
        self.places = {t: i for i, t in enumerate(map(tuple, triples.tolist()))}

    def __call__(self, triples: Tensor) -> Factors:
        self.asked.append(len(triples))
        return self.whole[torch.tensor([self.places[t] for t in map(tuple, triples.tolist())])]


@pytest.fixture(scope='module', params=['conve', 'distmult', 'lcwa', 'softmax', 'double', 'bf16'])
def source(request) -> Source:
    """Factors of 150 training triples: rows, outer products, dense ones; in float64 and partly
    in bfloat16, too."""
    kinds = dict(lcwa=dict(loop='lcwa', loss='BCEWithLogits'))
    run = run_of(
        'ConvE' if request.param in ('conve', 'lcwa', 'bf16') else 'DistMult',
        **kinds.get(request.param, dict(loss='BCEWithLogits')),
    )
    model = run.model(0).double() if request.param == 'double' else run.model(0)
    objective = {'lcwa': 'training', 'softmax': 'softmax'}.get(request.param, 'bce')
    triples = TRIPLES[::10][:150]
    low = torch.bfloat16 if request.param == 'bf16' else None
    engine = FactoredEngine(model, module.make_objective(objective, run), low=low)
    return Source(triples, engine(triples))


@contextmanager
def reported(*names: str) -> Iterator[None]:
    "Exactly one warning for each of `names`, in this order."
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        yield
    assert [n in str(w.message) for n, w in zip(names, said)] == [True] * len(names), [
        str(w.message) for w in said
    ]
    assert len(said) == len(names)


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob('*.safetensors'))


# ---- keys


def sampler(name: str = 'basic', **kwargs):
    return negative_sampler_resolver.make(name, mapped_triples=TRIPLES, **kwargs)


def slcwa(
    loss: str = 'marginranking',
    smoothing: float = 0.0,
    entities: int = 14,
    inverse: bool = False,
    seed: int = 0,
    triples: Tensor = TRIPLES,
    block: int = 8192,
    draw=None,
    **loss_kwargs,
) -> SLCWA:
    negatives = Negatives(draw or sampler(), triples, seed, block)
    return SLCWA(loss_resolver.make(loss, loss_kwargs), smoothing, entities, negatives, inverse)


def lcwa(
    loss: str = 'bcewithlogits',
    smoothing: float = 0.0,
    row: bool = False,
    triples: Tensor = TRIPLES,
    inverse: bool = False,
) -> LCWA:
    return LCWA(loss_resolver.make(loss), smoothing, Labels(triples, 14), row, inverse)


OBJECTIVES: dict[str, Callable[[], Objective]] = {
    'bce': BCE,
    'bce smoothing': lambda: BCE(0.1),
    'bce inverse': lambda: BCE(0.0, True),
    'score': Score,
    'score inverse': lambda: Score(True),
    'contrast 1': lambda: Contrast(1),
    'contrast 2': lambda: Contrast(2),
    'contrast inverse': lambda: Contrast(1, True),
    'tail': Softmax,
    'head': lambda: Softmax('head'),
    'tail inverse': lambda: Softmax('tail', True),
    'slcwa': slcwa,
    'margin': lambda: slcwa(margin=2.0),
    'reduction': lambda: slcwa(reduction='sum'),
    'activation': lambda: slcwa('softmarginranking'),
    'nssa': lambda: slcwa('nssa'),
    'nssa temperature': lambda: slcwa('nssa', adversarial_temperature=0.5),
    'bce loss': lambda: slcwa('bcewithlogits'),
    'softplus': lambda: slcwa('softplus'),
    'smoothing': lambda: slcwa(smoothing=0.1),
    'entities': lambda: slcwa(entities=15),
    'slcwa inverse': lambda: slcwa(inverse=True),
    'seed': lambda: slcwa(seed=1),
    'other triples': lambda: slcwa(triples=TRIPLES[:-1]),
    'other order': lambda: slcwa(triples=TRIPLES.flip(0)),
    'block': lambda: slcwa(block=100),
    'bernoulli': lambda: slcwa(draw=sampler('bernoulli')),
    'pseudotyped': lambda: slcwa(draw=sampler('pseudotyped')),
    'negatives': lambda: slcwa(draw=sampler(num_negs_per_pos=2)),
    'scheme': lambda: slcwa(draw=sampler(corruption_scheme=['tail'])),
    'filtered': lambda: slcwa(draw=sampler(filtered=True)),
    'exactly filtered': lambda: slcwa(draw=sampler(filtered=True, filterer='pythonset')),
    'lcwa': lcwa,
    'lcwa row': lambda: lcwa(row=True),
    'lcwa smoothing': lambda: lcwa(smoothing=0.1),
    'lcwa loss': lambda: lcwa('crossentropy'),
    'lcwa triples': lambda: lcwa(triples=TRIPLES[:-1]),
    'lcwa inverse': lambda: lcwa(inverse=True),
}


def test_each_ingredient_changes_the_objective_key() -> None:
    run = run_of()
    keys = {name: objective_key(make(), run) for name, make in OBJECTIVES.items()}
    twice = {name: objective_key(make(), run) for name, make in OBJECTIVES.items()}
    assert keys == twice
    assert len(set(keys.values())) == len(keys), [
        a for a in keys for b in keys if a < b and keys[a] == keys[b]
    ]


def test_the_run_decides_a_named_objective() -> None:
    variants = dict(
        plain={},
        smoothing=dict(label_smoothing=0.1),
        seed=dict(seed=1),
        loss=dict(loss='NSSA'),
        sampler=dict(negative_sampler='bernoulli'),
        lcwa=dict(loop='lcwa', loss='BCEWithLogits'),
        kwargs=dict(negative_sampler_kwargs=dict(num_negs_per_pos=3)),
    )
    keys = {name: objective_key('training', run_of(**kw)) for name, kw in variants.items()}
    assert len(set(keys.values())) == len(variants)
    assert objective_key('training', run_of()) == keys['plain']
    assert objective_key('bce', run_of(label_smoothing=0.1)) == objective_key(BCE(0.1), run_of())


@pytest.mark.parametrize('made', [slcwa, lcwa])
def test_training_triples_are_read_once(
    made: Callable[[], Objective], monkeypatch: pytest.MonkeyPatch
) -> None:
    "By the keys of any number of questions about one objective."
    objective, reads, real = made(), [], objectives.state_fingerprint
    monkeypatch.setattr(
        objectives, 'state_fingerprint', lambda state: (reads.append(1), real(state))[1]
    )
    assert digest(objective) == digest(objective) == digest(made())
    assert len(reads) == 2  # one for each of the two objectives


def test_a_key_outlives_use_and_the_process(tmp_path: Path) -> None:
    "Drawing negatives, computing gradients and another process with other hashes change no key."
    run = run_of(seed=3)
    objective, engine = module.make_objective('training', run), None
    before = objective_key(objective, run)
    engine = make_engine('factored', run.model(0), objective)
    key = gradient_key(engine, before)
    engine(TRIPLES[:9])
    assert gradient_key(engine, objective_key(objective, run)) == key
    code = (
        'from tests.test_cache import *; r = run_of(seed=3); o = '
        'module.make_objective("training", r); '
        'print(gradient_key(make_engine("factored", r.model(0), o), objective_key(o, r)))'
    )
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, '-c', code],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, 'PYTHONHASHSEED': '5'},
    )
    assert done.stdout.strip().splitlines()[-1] == str(key)


def test_the_model_changes_the_key() -> None:
    def weights(model: Model) -> str:
        return gradient_key(make_engine('loop', model, BCE()), 'bce').weights

    def transe(**kwargs) -> Model:
        made = dict(triples_factory=Nations().training, embedding_dim=4, random_seed=0, **kwargs)
        return model_resolver.make('transe', **made)

    plain, changed, frozen, double = transe(), transe(), transe(), transe().double()
    with torch.no_grad():
        changed.entity_representations[0]._embeddings.weight[3, 2] += 1e-6
    frozen.relation_representations[0].requires_grad_(False)
    models = [
        plain,
        changed,
        frozen,
        double,
        transe(scoring_fct_norm=2),
        run_of('DistMult').model(0),
    ]
    assert len({weights(m) for m in models}) == len(models)
    assert weights(plain.train()) == weights(plain.eval()) == weights(transe())
    conve = run_of('ConvE').model(0)
    before = weights(conve)
    next(b for n, b in conve.named_buffers() if n.endswith('running_var')).mul_(1.01)
    assert weights(conve) != before


def test_engine_precision_and_versions_change_the_key(monkeypatch) -> None:
    model = run_of().model(0)
    keys = {gradient_key(make_engine(e, model, BCE()), 'bce') for e in ('factored', 'vmap', 'loop')}
    keys.update(
        gradient_key(FactoredEngine(model, BCE(), low=t), 'bce')
        for t in (torch.bfloat16, torch.float16)
    )
    keys.add(gradient_key(make_engine('factored', model, BCE()), 'bce', 'tf32'))
    for place, name, other in (
        (module.importlib.metadata, 'version', lambda x: '9'),
        (module, '_CODE', '9'),
    ):
        monkeypatch.setattr(place, name, other)
        module._versions.cache_clear()
        keys.add(gradient_key(make_engine('factored', model, BCE()), 'bce'))
    module._versions.cache_clear()
    assert len(keys) == 8


def test_own_objectives_are_their_code() -> None:
    """A class, its base, a function that it calls, a number that it reads: what the user edits
    changes the key."""

    def define(
        step: str = '1.', scale: float = 2.0, base: str = '0.', default: str = '3.'
    ) -> Objective:
        space = dict(Objective=Objective, SCALE=scale, __name__='__main__')
        exec(
            f'def helper(x): return x * {step}\n'
            f'class Base(Objective):\n    def shift(self): return {base}\n'
            f'class Mine(Base):\n    def loss(self, s, k={default}): return helper(s) * SCALE * k '
            f'+ self.shift()',
            space,
        )
        return space['Mine']()

    variants = [{}, dict(step='2.'), dict(scale=3.0), dict(base='1.'), dict(default='4.')]
    keys = [objective_key(define(**v), run_of()) for v in variants]
    assert len(set(keys)) == len(variants) and objective_key(define(), run_of()) == keys[0]


def test_hidden_content_is_refused() -> None:
    objective = BCE()
    object.__setattr__(objective, 'noise', threading.Lock())
    with pytest.raises(ValueError, match='lock does not show its content.*cannot be cached'):
        objective_key(objective, run_of())


class Slots:
    __slots__ = ('a', 'b')

    def __init__(self, a: int):
        self.a = a


def test_state_that_is_not_an_attribute() -> None:
    """Numbers that objects keep outside `__dict__`: generators, frames, arrays, sparse tensors,
    slots, partials."""

    def varied(i: int) -> list:
        return [
            random.Random(i),
            np.random.default_rng(i),
            pd.DataFrame(dict(a=[i])),
            pd.Series(['x', str(i)]),
            np.array(['x', i], dtype=object),
            np.array(['x', str(i)]),
            np.arange(3)[::-1] + i,
            Slots(i),
            deque([i]),
            torch.tensor([0.0, i + 1]).to_sparse(),
            functools.partial(max, i),
            Counter([i]),
            {(i,)},
            frozenset([i]),
            torch.Size([i]),
            range(i),
            torch.tensor(i, dtype=torch.complex64).conj(),
            loss_resolver.make('nssa', margin=i),
        ]

    one, again, two = ([digest(x) for x in varied(i)] for i in (1, 1, 2))
    assert one == again and not set(one) & set(two) and len(set(one)) == len(one)


def test_own_losses_and_interactions() -> None:
    "Subclasses of the library's abstract classes, defined by the user."

    def define(scale: str) -> tuple:
        space = dict(
            Loss=MarginRankingLoss,
            DistMult=DistMultInteraction,
            __name__='__main__',
            cached_property=functools.cached_property,
        )
        exec(
            f'class Mine(Loss):\n    @cached_property\n    def scale(self): return {scale}\n'
            f'class Other(DistMult):\n    @staticmethod\n    def func(h, r, t): return {scale} * '
            f'(h * r * t).sum(-1)',
            space,
        )
        return space['Mine'](), space['Other']()

    keys = [tuple(map(digest, define(s))) for s in ('1.', '1.', '2.')]
    assert keys[0] == keys[1] and keys[0][0] != keys[2][0] and keys[0][1] != keys[2][1]


def test_same_key_same_gradients() -> None:
    "Two runs made apart, equal in all: equal keys and equal gradients, negatives included."
    made = []
    for _ in range(2):
        run = run_of(seed=2, loss='NSSA')
        objective = module.make_objective('training', run)
        engine = make_engine('factored', run.model(0), objective)
        made.append((gradient_key(engine, objective_key(objective, run)), engine(TRIPLES[:40])))
    assert made[0][0] == made[1][0]
    same(made[0][1], made[1][1])


# ---- the file


def test_file_holds_every_form(source: Source, tmp_path: Path) -> None:
    same(unflatten(flatten(source.whole)), source.whole)
    n = len(source.triples)
    for size in (1, 7, n, 1000):
        with writing(tmp_path / 'f', dict(a='b'), n, source.whole) as w:
            for at in range(0, n, size):
                w.append(source.triples[at : at + size], source.whole[at : at + size])
        file = FactorFile(tmp_path / 'f', dict(a='b'))
        assert (
            torch.equal(file.triples, source.triples)
            and (tmp_path / 'f').stat().st_size == w.nbytes
        )
        same(file[:], source.whole)
        for rows, part in file.tiles(11):
            same(part, source.whole[rows])


def test_every_flipped_bit_of_a_file_is_noticed(tmp_path: Path) -> None:
    factors = Factors(
        dict(
            w=(Rows(torch.tensor([[1, 2]]), torch.rand(1, 2, 3)), Dense(torch.rand(1, 2))),
            v=(Outer((torch.rand(1, 1, 2), torch.rand(1, 1, 3).half())),),
        )
    )
    path, bad = tmp_path / 'good', tmp_path / 'bad'
    with writing(path, asdict(KEY), 1, factors) as w:
        w.append(TRIPLES[:1], factors)
    data = path.read_bytes()
    for i in range(len(data)):
        bad.write_bytes(data[:i] + bytes([data[i] ^ 1 << i % 8]) + data[i + 1 :])
        with pytest.raises(CacheFileError, match=str(bad)):
            FactorFile(bad, asdict(KEY))
    for n in (*range(0, len(data), 37), len(data) - 1):
        bad.write_bytes(data[:n])
        with pytest.raises(CacheFileError, match='cannot be read'):
            FactorFile(bad, asdict(KEY))
    bad.write_bytes(data + b'x')
    with pytest.raises(CacheFileError):
        FactorFile(bad, asdict(KEY))


def test_a_failed_write_leaves_what_was_there(source: Source, tmp_path: Path) -> None:
    def write(n: int, factors: Factors) -> None:
        with writing(tmp_path / 'f', {}, n, source.whole) as w:
            w.append(source.triples[: len(factors)], factors)

    write(5, source.whole[:5])
    data = (tmp_path / 'f').read_bytes()
    for n in (4, 6):
        with pytest.raises(ValueError, match=f'not those of {n} triples'):
            write(n, source.whole[:5])
    name = next(iter(source.whole.blocks))
    with pytest.raises(ValueError, match=f'differ in form.*{name}'):
        write(5, Factors({k: v for k, v in source.whole[:5].blocks.items() if k != name}))
    assert (tmp_path / 'f').read_bytes() == data and len(list(tmp_path.iterdir())) == 1


# ---- the cache


@pytest.mark.parametrize('where', ['memory', 'folder', 'reopened'])
@pytest.mark.parametrize('budget', [0, 1, 20, 10**6])
def test_random_requests(source: Source, tmp_path: Path, where: str, budget: int) -> None:
    """Whatever is asked in whatever order, with duplicates: the computed factors; only the
    missing ones are computed."""
    rng, known = random.Random(budget), set()
    kept, calls = budget * source.whole[:1].nbytes, len(source.asked)
    folder = None if where == 'memory' else tmp_path
    cache = FactorCache(kept, folder)
    for step in range(12):
        if where == 'reopened' and step % 3 == 2:
            cache = FactorCache(kept, folder)
        rows = [rng.randrange(40) for _ in range(rng.choice((1, 3, 30)))]
        before, c = len(source.asked), replace(cache.counters)
        same(cache.factors(KEY, source.triples[rows], source), source.whole[torch.tensor(rows)])
        asked, new, now = source.asked[before:], set(rows) - known, cache.counters
        if folder or budget > 1000:
            assert asked == ([len(new)] if new else [])
        assert len(asked) == now.computes - c.computes <= 1 and sum(asked) == now.misses - c.misses
        assert now.hits - c.hits + now.misses - c.misses == len(set(rows))
        assert cache.nbytes <= kept
        known |= set(rows)
    if folder:
        assert len(files(tmp_path)) == 1 and cache.counters.writes <= cache.counters.computes
    del source.asked[calls:]


def test_keys_are_apart(source: Source, tmp_path: Path) -> None:
    "Another model, objective, engine or version shares nothing."
    cache = FactorCache(10**9, tmp_path)
    for name in ('weights', 'objective', 'engine', 'versions'):
        for key in (KEY, replace(KEY, **{name: 'other'})):
            cache.factors(key, source.triples[:3], source)
    assert cache.counters.misses == 15 and cache.counters.hits == 9 and len(files(tmp_path)) == 5


def test_changed_run_is_computed_anew(tmp_path: Path) -> None:
    "Weights, smoothing, seed: with real engines, nothing of another run is ever given out."
    cache, triples = FactorCache(10**9, tmp_path), TRIPLES[:8]
    variants = [
        ({}, 'training'),
        (dict(seed=1), 'training'),
        (dict(label_smoothing=0.1), 'training'),
        ({}, 'bce'),
        (dict(label_smoothing=0.1), 'bce'),
        (dict(scaled=True), 'bce'),
    ]
    for _ in range(2):
        for kw, name in variants:
            run = run_of(loss='BCEWithLogits', **{k: v for k, v in kw.items() if k != 'scaled'})
            model = run.model(0)
            if 'scaled' in kw:
                model.entity_representations[0]._embeddings.weight.data.mul_(1.01)
            objective = module.make_objective(name, run)
            engine = make_engine('factored', model, objective)
            same(
                cache.factors(gradient_key(engine, objective_key(objective, run)), triples, engine),
                engine(triples),
            )
    assert cache.counters.misses == cache.counters.hits == len(variants) * len(triples)


def test_least_recently_used_goes_first(source: Source) -> None:
    each = source.whole[:1].nbytes
    cache = FactorCache(3 * each + each // 2)
    for i in (0, 1, 2, 0, 3, 2, 4):
        cache.factors(KEY, source.triples[i : i + 1], source)  # 3 for 1, 4 for 0
    assert (cache.counters.evictions, cache.counters.misses, cache.nbytes) == (2, 5, 3 * each)
    cache.factors(KEY, source.triples[[2, 3, 4]], source)
    assert cache.counters.misses == 5
    cache.factors(KEY, source.triples[:1], source)
    assert cache.counters.misses == 6


def test_what_is_given_out_is_the_askers(source: Source, tmp_path: Path) -> None:
    "Writing into a result changes nothing that is kept, nor what the engine gave."
    cache = FactorCache(10**9, tmp_path)
    for _ in range(3):
        got = cache.factors(KEY, source.triples[:6], source)
        same(got, source.whole[:6])
        for t in flatten(got).values():
            t.zero_()
    same(FactorCache(10**9, tmp_path).factors(KEY, source.triples[:6], source), source.whole[:6])


def test_forms_that_differ_are_refused(source: Source) -> None:
    "A table of which one triple touches two rows and another one three."

    def compute(triples: Tensor) -> Factors:
        k = 2 if triples[0, 0] == 0 else 3
        return Factors(
            dict(w=(Rows(torch.zeros(len(triples), k).long(), torch.ones(len(triples), k, 4)),))
        )

    cache = FactorCache(10**6)
    cache.factors(KEY, torch.tensor([[0, 0, 1]]), compute)
    with pytest.raises(ValueError, match=r'differ in form.*w/0/Rows/0 .*\(2,\).*\(3,\)'):
        cache.factors(KEY, torch.tensor([[0, 0, 1], [1, 0, 1]]), compute)
    with pytest.raises(ValueError, match='factors of 1 triples were computed for 2'):
        cache.factors(replace(KEY, engine='b'), TRIPLES[:2], lambda t: source.whole[:1])
    with pytest.raises(ValueError, match='no triples'):
        cache.factors(KEY, TRIPLES[:0], compute)


def damaged(path: Path, how: str) -> None:
    "Damage a file."
    data = bytearray(path.read_bytes())
    if how == 'flip':
        data[-5] ^= 4
    elif how == 'header':
        data[40] ^= 1
    elif how == 'truncated':
        del data[len(data) // 2 :]
    elif how == 'empty':
        data.clear()
    elif how == 'text':
        data[:] = b'not a cache'
    elif how == 'version':
        data = data.replace(module.FORMAT.encode(), b'tracin_nb factors 9')
    path.write_bytes(data)


@pytest.mark.parametrize('how', ['flip', 'header', 'truncated', 'empty', 'text', 'version'])
def test_damage_is_reported_once_and_repaired(source: Source, tmp_path: Path, how: str) -> None:
    def ask() -> Factors:
        return FactorCache(10**9, tmp_path).factors(KEY, source.triples[:9], source)

    ask()
    (path,) = files(tmp_path)
    damaged(path, how)
    with reported(path.name):
        same(ask(), source.whole[:9])
    with reported():
        same(ask(), source.whole[:9])

    def store() -> TrainingStore:
        return TrainingStore.make(tmp_path, KEY, source.triples, source, budget=10**9, size=50)

    store()
    (path,) = (p for p in files(tmp_path) if p.name.startswith('store'))
    damaged(path, how)
    with reported(path.name):
        again = store()
    assert again.built
    same(next(again.tiles(1000))[1], source.whole)
    with reported():
        assert not store().built


def test_exchanged_files_are_noticed(source: Source, tmp_path: Path) -> None:
    "Two good files with each other's names."
    keys = KEY, replace(KEY, weights='other')
    for key in keys:
        FactorCache(10**9, tmp_path).factors(key, source.triples[:4], source)
        TrainingStore.make(tmp_path, key, source.triples, source, budget=10**9)
    for kind in ('factors', 'store'):
        a, b = (p for p in files(tmp_path) if p.name.startswith(kind))
        a.rename(tmp_path / 'x'), b.rename(a), (tmp_path / 'x').rename(b)
    for key in keys:
        with reported('is of another weights'):
            same(
                FactorCache(10**9, tmp_path).factors(key, source.triples[:4], source),
                source.whole[:4],
            )
        with reported('is of another weights'):
            assert TrainingStore.make(tmp_path, key, source.triples, source, budget=10**9).built


def test_concurrent_writers_never_tear(source: Source, tmp_path: Path) -> None:
    "Four writers of one key at once: at every moment the file is whole, and every answer is right."
    errors, done = [], threading.Event()

    def write(seed: int) -> None:
        rng = random.Random(seed)
        try:
            for _ in range(8):
                rows = torch.tensor([rng.randrange(len(source.triples)) for _ in range(9)])
                same(
                    FactorCache(0, tmp_path).factors(KEY, source.triples[rows], source),
                    source.whole[rows],
                )
        except Exception as e:
            errors.append(e)

    def read() -> None:
        while not done.is_set():
            for path in files(tmp_path):
                try:
                    module._open_kept(path, asdict(KEY))
                except Exception as e:
                    errors.append(e)

    reader, writers = (
        threading.Thread(target=read),
        [threading.Thread(target=write, args=(i,)) for i in range(4)],
    )
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for t in (reader, *writers):
            t.start()
        for t in writers:
            t.join()
        done.set(), reader.join()
    assert not errors, errors[0]
    assert len(list(tmp_path.iterdir())) == 1


# ---- the store


@pytest.mark.parametrize('size', [1, 7, 64, 1000])
def test_store_equals_computed(source: Source, tmp_path: Path, size: int) -> None:
    "Each triple is computed once, a tile at a time, and read back in any tiling, bit by bit."
    del source.asked[:]
    store = TrainingStore.make(tmp_path, KEY, source.triples, source, budget=10**9, size=size)
    n = len(source.triples)
    assert (
        sum(source.asked) == n
        and len(source.asked) == math.ceil(n / size)
        and max(source.asked) <= size
    )
    assert store.error == 0 and len(store) == n and torch.equal(store.triples, source.triples)
    for tile in (1, 13, n, 10**4):
        ends = [
            rows.stop for rows, part in store.tiles(tile) if same(part, source.whole[rows]) is None
        ]
        assert ends == [*range(tile, n, tile), n]
    del source.asked[:]
    again = TrainingStore.make(tmp_path, KEY, source.triples, source, budget=10**9, size=size)
    assert not again.built and source.asked == []


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32])
def test_reduced_precision_says_its_error(
    source: Source, tmp_path: Path, dtype: torch.dtype
) -> None:
    exact = TrainingStore.make(tmp_path, KEY, source.triples, source, budget=10**9)
    store = TrainingStore.make(
        tmp_path, KEY, source.triples, source, budget=10**9, dtype=dtype, size=31
    )
    same(next(store.tiles(1000))[1], source.whole.to(dtype=dtype))
    if any(
        t.dtype not in (dtype, torch.int64)
        for t in flatten(source.whole).values()
        if dtype is not torch.float32
    ):
        limit = {torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
        assert 0 < store.error < limit and store.nbytes < exact.nbytes
    double, stored = (f.to(dtype=torch.float64) for f in (source.whole, next(store.tiles(1000))[1]))
    true = inner(double, double)
    assert (inner(double, stored) - true).norm() / true.norm() <= 2 * store.error + 1e-7
    assert rounding_error(source.whole, None) == 0


def test_numbers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    large = Factors(dict(w=(Dense(torch.full((5, 3), 1e6)),)))
    with pytest.raises(ValueError, match='do not fit into torch.float16'):
        TrainingStore.make(
            tmp_path, KEY, TRIPLES[:5], lambda t: large[: len(t)], budget=10**6, dtype=torch.float16
        )
    with pytest.raises(ValueError, match='dtype is torch.int64'):
        TrainingStore.make(
            tmp_path, KEY, TRIPLES[:5], lambda t: large[: len(t)], budget=10**6, dtype=torch.int64
        )
    with pytest.raises(ValueError, match='no triples'):
        TrainingStore.make(tmp_path, KEY, TRIPLES[:0], lambda t: large, budget=10**6)
    assert list(tmp_path.iterdir()) == []


def test_store_keeps_its_budget(source: Source, tmp_path: Path) -> None:
    """One tile decides before anything is written; the file has exactly the bytes that were
    announced."""
    size = TrainingStore.make(tmp_path / 'a', KEY, source.triples, source, budget=10**9).nbytes
    del source.asked[:]
    with pytest.raises(
        ValueError, match=f'150 training triples take {size:,} bytes.*budget of {size - 1:,} bytes'
    ):
        TrainingStore.make(tmp_path / 'b', KEY, source.triples, source, budget=size - 1, size=10)
    assert source.asked == [10] and not (tmp_path / 'b').exists()
    assert (
        TrainingStore.make(tmp_path / 'b', KEY, source.triples, source, budget=size, size=10).nbytes
        == size
    )


def test_interrupted_store_is_built_anew(source: Source, tmp_path: Path) -> None:
    def failing(triples: Tensor) -> Factors:
        if len(source.asked) > 3:
            raise KeyboardInterrupt
        return source(triples)

    del source.asked[:]
    with pytest.raises(KeyboardInterrupt):
        TrainingStore.make(tmp_path, KEY, source.triples, failing, budget=10**9, size=20)
    assert list(tmp_path.iterdir()) == []
    assert TrainingStore.make(tmp_path, KEY, source.triples, source, budget=10**9, size=20).built


def test_store_is_of_its_triples(source: Source, tmp_path: Path) -> None:
    "Other triples, another order, another type, another key: another store."

    def built(triples: Tensor = source.triples, key: Key = KEY, **kw) -> bool:
        return TrainingStore.make(tmp_path, key, triples, source, budget=10**9, **kw).built

    cases = [
        {},
        dict(triples=source.triples[:-1]),
        dict(triples=source.triples.flip(0)),
        dict(dtype=torch.float16),
        dict(key=replace(KEY, objective='other')),
    ]
    assert [built(**c) for c in cases] == [True] * 5 and [built(**c) for c in cases] == [False] * 5


# ---- what is there


def test_info_and_clear(source: Source, tmp_path: Path) -> None:
    key = replace(KEY, objective='BCE:0123')
    FactorCache(0, tmp_path).factors(key, source.triples[:3], source)
    TrainingStore.make(tmp_path, key, source.triples, source, budget=10**9, dtype=torch.bfloat16)
    factors, store = files(tmp_path)
    shutil.copy(factors, tmp_path / 'mine.safetensors')
    (tmp_path / f'factors-{"0" * 32}.safetensors').write_bytes(b'torn')
    draft = tmp_path / f'.{store.name}.ab_12'
    draft.mkdir()
    (draft / store.name).write_bytes(b'12345')
    info = cache_info(tmp_path).set_index('file')
    assert info.kind.to_dict() == {
        factors.name: 'factors',
        store.name: 'store',
        draft.name: 'unfinished',
        f'factors-{"0" * 32}.safetensors': 'unreadable',
    }
    assert info.triples[[factors.name, store.name]].tolist() == [3, 150]
    assert info.objective[store.name] == 'BCE' and info.dtype[store.name] == 'bfloat16'
    assert info.bytes.sum() == factors.stat().st_size + store.stat().st_size + 9
    assert clear_cache(tmp_path) == info.bytes.sum() and [p.name for p in tmp_path.iterdir()] == [
        'mine.safetensors'
    ]
    assert len(cache_info(tmp_path)) == 0 == clear_cache(tmp_path) == clear_cache(tmp_path / 'none')


def test_default_folder(monkeypatch, tmp_path: Path, source: Source) -> None:
    platformdirs = pytest.importorskip('platformdirs')
    monkeypatch.setattr(platformdirs, 'user_cache_dir', lambda name: str(tmp_path / name))
    assert default_folder() == tmp_path / 'tracin_nb' and len(cache_info()) == 0
    FactorCache(0, default_folder()).factors(KEY, source.triples[:3], source)
    assert len(cache_info()) == 1 and clear_cache() > 0 and len(cache_info()) == 0


def test_digest_of_values() -> None:
    "Equal contents alike, different ones apart, whatever order sets and mappings have."
    assert digest({1: 'a', 'b': {3, 2}}) == digest({'b': {2, 3}, 1: 'a'})
    different = [
        0,
        False,
        0.0,
        '0',
        None,
        [0],
        {0},
        {0: 0},
        torch.tensor(0),
        torch.tensor([0]),
        torch.tensor(0.0),
        -0.0,
        float('nan'),
        torch.float32,
        Path('0'),
        b'0',
        [[0], 1],
        [0, [1]],
    ]
    assert len({digest(x) for x in different}) == len(different)
    assert digest(torch.arange(6).view(2, 3).T) == digest(torch.tensor([[0, 3], [1, 4], [2, 5]]))
