"""The compiled engine equals the plain one; where it cannot be had, there is one warning and a
reason.

Compiling takes seconds for each model, so most cases run the graph as it was recorded.
ConvE and DistMult are compiled."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from models import CONVE, case, double, error, graph, negatives, slcwa, trained
from pykeen.losses import loss_resolver
from pykeen.models import ConvE, Model
from torch import nn
from torch._dynamo.utils import counters
from torch._inductor import config

from tracin_nb.engine import compile as compilation
from tracin_nb.engine.compile import CompiledEngine, _fusing, _ShiftConv, compiled, make_program
from tracin_nb.engine.factors import Factors, concat, inner
from tracin_nb.engine.gradients import FactoredEngine
from tracin_nb.engine.objectives import BCE

TILE = 8
MODELS = ('conve', 'distmult', 'transe', 'complex', 'rotate', 'tucker')
TRIPLES = graph().mapped_triples[::40]
NEGATIVES = negatives(graph())
pytestmark = pytest.mark.filterwarnings('ignore')


@pytest.fixture(autouse=True)
def fresh() -> None:
    "Nobody was told anything yet."
    compilation._TOLD.clear()


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    "Graphs run as they were recorded."
    monkeypatch.setattr(torch, 'compile', lambda graph, **_: graph)


def difference(ours: Factors, truth: Factors) -> float:
    "Relative error of the influence matrix of `ours` on itself."
    return error(inner(ours, ours), inner(truth, truth))


def check(engine: FactoredEngine, made: CompiledEngine, limit: float) -> None:
    "Many tiles with a short last one, one short tile, and a single triple."
    whole = engine(TRIPLES[:29])
    assert difference(made(TRIPLES[:29]), whole) <= limit
    assert (
        difference(concat([made(TRIPLES[:5]), made(TRIPLES[5:6]), made(TRIPLES[6:29])]), whole)
        <= limit
    )
    names = lambda f: {name: [type(b) for b in bs] for name, bs in f.blocks.items()}
    assert names(made(TRIPLES[:3])) == names(whole)


# ---- the same result
SLCWA_KINDS, LCWA_KINDS = (
    ('slcwa-bce', 'slcwa-margin', 'slcwa-nssa'),
    ('lcwa-bce', 'lcwa-bce-row', 'lcwa-crossentropy'),
)


def objectives(i: int) -> tuple[str, str, str]:
    """The triple's own loss, and of the losses with negatives and of rows one that changes from
    model to model."""
    return 'bce', SLCWA_KINDS[i % 3], LCWA_KINDS[(i + i // 3) % 3]


@pytest.mark.usefixtures('recorded')
@pytest.mark.parametrize(
    'name,objective', [(n, o) for i, n in enumerate(MODELS) for o in objectives(i)]
)
def test_recorded_graph(name: str, objective: str) -> None:
    """Forward and backward pass in one graph, for the losses that models are trained with, in
    float64."""
    model = double(trained(name)[0])
    engine = FactoredEngine(model, case(objective, model, graph(), NEGATIVES).objective)
    check(engine, CompiledEngine(engine, make_program(engine, TRIPLES[:TILE])), 1e-9)


def wide_conve() -> ConvE:
    """A ConvE with as many output channels as make the slim backward pass of the convolution
    worth it."""
    torch.manual_seed(0)
    return ConvE(triples_factory=graph(), **{**CONVE, 'output_channels': 4}).eval()


@pytest.mark.parametrize(
    'name,dtype,limit', [('conve', torch.float64, 1e-12), ('distmult', torch.float32, 1e-6)]
)
def test_compiled(name: str, dtype: torch.dtype, limit: float) -> None:
    "By inductor; one program for all tiles, checkpoints, and layouts of the ids."
    model = (wide_conve() if name == 'conve' else copy.deepcopy(trained(name)[0])).to(dtype)
    engine = FactoredEngine(model, BCE())
    program = make_program(engine, TRIPLES[:TILE])
    graphs = counters['stats']['unique_graphs']
    check(engine, CompiledEngine(engine, program), limit)
    check(other := FactoredEngine(shaken(model), BCE()), CompiledEngine(other, program), limit)
    turned = TRIPLES.T.contiguous().T
    assert difference(CompiledEngine(engine, program)(turned[:7]), engine(TRIPLES[:7])) <= limit
    _, facts = compiled(engine, TRIPLES[:TILE], program, rounds=1)
    assert facts['compile_error'] <= limit and facts['compile_seconds'] == 0 and facts['gain'] > 0
    assert counters['stats']['unique_graphs'] == graphs, 'it was compiled again'


def shaken(model: Model) -> Model:
    "Another checkpoint: other parameters, other running statistics."
    other = copy.deepcopy(model)
    with torch.no_grad():
        for t in [*other.parameters(), *(b for b in other.buffers() if b.is_floating_point())]:
            t.mul_(1 + torch.rand(t.shape, dtype=t.dtype))
    return other


@pytest.mark.usefixtures('recorded')
def test_other_checkpoint() -> None:
    "A program takes the weights of the engine that runs it, and weights that change are noticed."
    model = wide_conve().double()
    engine, other = FactoredEngine(model, BCE()), FactoredEngine(shaken(model), BCE())
    program = make_program(engine, TRIPLES[:TILE])
    assert difference(engine(TRIPLES), other(TRIPLES)) > 0.01
    check(other, CompiledEngine(other, program), 1e-9)
    made, facts = compiled(other, TRIPLES[:TILE], program, rounds=1)
    assert facts['compile_seconds'] == 0 and facts['compile_error'] <= 1e-9
    same = CompiledEngine(engine, program)
    model.load_state_dict(other.model.state_dict())
    assert difference(same(TRIPLES), other(TRIPLES)) <= 1e-9


@pytest.mark.usefixtures('recorded')
def test_reduced_precision() -> None:
    "The graph is recorded in the engine's 16 bits, with the weights that undo the normalisation."
    engine = FactoredEngine(wide_conve(), BCE(), low=torch.bfloat16)
    made = CompiledEngine(engine, make_program(engine, TRIPLES[:TILE]))
    assert made.low is torch.bfloat16
    truth, ours = engine(TRIPLES[:11]), made(TRIPLES[:11])
    assert (truth.weight is None) == (ours.weight is None)
    assert difference(ours, truth) <= torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize(
    'options',
    [
        dict(kernel_size=3),
        dict(kernel_size=(2, 3), padding=(1, 2)),
        dict(kernel_size=(3, 2), dilation=(1, 3), padding=(0, 1), bias=False),
    ],
)
def test_convolution(options: dict) -> None:
    "The sum of shifted planes is the gradient by the input."
    m, x = (
        nn.Conv2d(2, 20, **options).double(),
        torch.randn(3, 2, 7, 9, dtype=torch.float64, requires_grad=True),
    )
    D = torch.randn_like(m(x))
    (ours,), (truth,) = (torch.autograd.grad(y, x, D) for y in (_ShiftConv.apply(x, m), m(x)))
    torch.testing.assert_close(ours, truth)


@pytest.mark.usefixtures('recorded')
def test_nothing_left_behind() -> None:
    "Recording leaves model and engine as they were, also when it fails."
    from tracin_nb.engine import gradients

    before, model = gradients._slim, wide_conve()
    engine = FactoredEngine(model, BCE())
    make_program(engine, TRIPLES[:TILE])
    with pytest.raises(RuntimeError), _fusing():
        raise RuntimeError
    assert gradients._slim is before and not any('forward' in vars(m) for m in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


# ---- reasons
def told(engine: FactoredEngine, **options: object) -> tuple[dict, list[str]]:
    "The facts of an engine that must not be compiled, and what the user was told."
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        used, facts = compiled(engine, TRIPLES[:TILE], rounds=1, **options)
    assert used is engine and facts['compile'] == 'not used' and '\n' not in facts['reason']
    said = [str(w.message) for w in caught if 'torch.compile' in str(w.message)]
    assert all(facts['reason'] in message for message in said)
    return facts, said


def test_no_compiler() -> None:
    engine = FactoredEngine(trained('distmult')[0], BCE())
    with config.patch({'cpp.cxx': (None, 'no-such-compiler'), 'force_disable_caches': True}):
        facts, said = told(engine)
        assert (
            facts['reason'].startswith('no C++ compiler') and 'no-such-compiler' in facts['reason']
        )
        assert len(said) == 1 and 'DistMult' in said[0]
        assert told(engine) == (facts, []), 'told twice'


def broken(graph: torch.fx.GraphModule, inputs: list) -> object:
    raise TypeError('cannot do this')


def wrong(graph: torch.fx.GraphModule, inputs: list) -> object:
    "Results that are off by 1e-5."
    return lambda *args: tuple(t * (1 + 1e-5) if t.is_floating_point() else t for t in graph(*args))


def not_a_number(graph: torch.fx.GraphModule, inputs: list) -> object:
    return lambda *args: tuple(t * torch.nan if t.is_floating_point() else t for t in graph(*args))


def test_failing_backend() -> None:
    facts, said = told(FactoredEngine(trained('distmult')[0], BCE()), backend=broken)
    assert (
        'TypeError: cannot do this' in facts['reason']
        and len(said) == 1
        and facts['compile_seconds'] is None
    )


@pytest.mark.parametrize('backend', [wrong, not_a_number])
def test_wrong_result(backend: object) -> None:
    "A difference of 2e-5 is found; the engine with it is not used."
    facts, said = told(FactoredEngine(trained('distmult')[0], BCE()), backend=backend)
    assert facts['reason'].startswith('wrong result') and len(said) == 1 and facts['gain'] is None
    assert backend is not_a_number or 1e-5 < facts['compile_error'] < 3e-5


@pytest.mark.usefixtures('recorded')
def test_not_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    "The reason has the numbers."
    monkeypatch.setattr(compilation, '_gain', lambda *_: (0.5, [1.0, 2.0]))
    facts, said = told(FactoredEngine(trained('distmult')[0], BCE()))
    assert (
        facts['reason'] == f'not faster: 2.00 ms for {TILE} triples, uncompiled 1.00 ms'
        and facts['gain'] == 0.5
    )
    assert len(said) == 1


@pytest.mark.usefixtures('recorded')
def test_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, '_gain', lambda *_: (1.5, [3.0, 2.0]))
    engine = FactoredEngine(trained('distmult')[0], BCE())
    with warnings.catch_warnings(action='error'):
        used, facts = compiled(engine, TRIPLES[:TILE])
    assert (
        isinstance(used, CompiledEngine) and facts['compile'] == 'used' and facts['reason'] is None
    )
    assert facts['gain'] == 1.5 and facts['compile_error'] <= 1e-6 and facts['compile_seconds'] > 0


@pytest.mark.usefixtures('recorded')
def test_parameters_that_mix() -> None:
    facts, said = told(FactoredEngine(trained('rgcn')[0], BCE()))
    assert (
        facts['reason'].startswith('ValueError: one backward pass per triple for entity_')
        and len(said) == 1
    )


@pytest.mark.usefixtures('recorded')
def test_loss_of_its_own() -> None:
    "Filtered negatives: how many there are depends on the triple."
    drawn = negatives(graph(), filtered=True)
    c = slcwa(graph(), loss_resolver.make('bcewithlogits'), drawn=drawn)
    facts, said = told(FactoredEngine(trained('distmult')[0], c.objective))
    assert facts['reason'] and len(said) == 1


class Reading(BCE):
    "A loss that reads a number out of a tensor."

    def loss(self, scores: torch.Tensor) -> torch.Tensor:
        return scores.sum() * scores.sum().item()


@pytest.mark.usefixtures('recorded')
def test_reading_numbers() -> None:
    "What Python reads out of a tensor must not become a constant of the graph."
    facts, _ = told(FactoredEngine(trained('distmult')[0], Reading()))
    assert facts['reason']


@pytest.mark.usefixtures('recorded')
def test_out_of_memory_is_no_reason() -> None:
    "It is for the caller, who can take a smaller tile."
    engine = FactoredEngine(trained('distmult')[0], BCE())

    class Full(FactoredEngine):
        def __call__(self, triples: torch.Tensor) -> Factors:
            raise torch.OutOfMemoryError('no memory')

    with pytest.raises(torch.OutOfMemoryError):
        compiled(Full(engine.model, BCE(), engine.routes), TRIPLES[:TILE])
