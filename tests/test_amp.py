"""Reduced precision: what stays in float32, what it costs, and switches that are left as they
were found."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from models import (
    INTERACTIONS,
    OBJECTIVES,
    WRAPPED,
    build,
    case,
    double,
    examples,
    fit,
    graph,
    interacting,
    trained,
)
from pykeen.models import ConvE, Model
from pykeen.nn.modules import interaction_resolver
from torch import Tensor, nn

from tracin_nb.engine.amp import PRECISIONS, arithmetic, low_type, precision_error
from tracin_nb.engine.factors import Dense, Outer, Rows, block_total, inner
from tracin_nb.engine.gradients import FactoredEngine, LoopEngine, Routes, _half_linear, _halved
from tracin_nb.engine.objectives import BCE, Objective, score

pytestmark = pytest.mark.filterwarnings('ignore')
HALVES = ('bf16', 'fp16')
LIMIT = dict(bf16=3e-2, fp16=5e-3)  # relative error of the influence matrix
LOGITS = (14.0, 20.0, 30.0)


def last_weights(model: Model) -> list[nn.Parameter]:
    "Parameters that the logits are proportional to."
    if isinstance(model, ConvE):
        return list(model.interaction.hr1d[2].parameters())
    return [model.relation_representations[0]._embeddings.weight]


def logits(model: Model, triples: Tensor) -> Tensor:
    return score(model, BCE().queries(triples)).detach()[:, 0]


def confident(name: str, logit: float, dims: int) -> tuple[Model, Tensor]:
    """A trained model turned up until 200 training triples and more have logits of `logit` to
    twice as much; and these."""
    torch.manual_seed(0)
    kwargs = (
        dict(embedding_height=4, embedding_width=dims // 4, output_channels=8)
        if name == 'conve'
        else {}
    )
    model = (
        ConvE(triples_factory=graph(), embedding_dim=dims, **kwargs)
        if name == 'conve'
        else build(name, graph())
    )
    fit(model, graph()).eval()
    triples = graph().mapped_triples
    up = logit / logits(model, triples).quantile(0.6)
    assert up > 0
    with torch.no_grad():
        for p in last_weights(model):
            p *= up
    sure = triples[(logits(model, triples) > logit) & (logits(model, triples) < 2 * logit)]
    assert len(sure) > 200
    return model, sure


def row_errors(ours: Tensor, truth: Tensor) -> Tensor:
    "Relative error of each row, in float64 since the squares of small rows underflow."
    ours, truth = ours.double(), truth.double()
    return (ours - truth).norm(dim=1) / truth.norm(dim=1)


@pytest.mark.parametrize('precision', HALVES)
@pytest.mark.parametrize('logit', LOGITS)
@pytest.mark.parametrize('name', ('conve', 'distmult'))
def test_confident_triples(name: str, logit: float, precision: str) -> None:
    """Slopes of 1e-6 to 1e-26 keep their precision, and each row of the influence matrix is as
    good as the whole."""
    model, sure = confident(name, logit, 32)
    engine, exact = (
        FactoredEngine(model, BCE(), low=PRECISIONS[precision]),
        FactoredEngine(double(model), BCE()),
    )
    ours, truth = (
        engine(sure),
        exact(sure),
    )  # float64, since the products of slopes are no float32 numbers
    slopes = torch.sigmoid(-logits(exact.model, sure))
    assert slopes.min() < slopes.max() ** 1.5 < 1e-9
    torch.testing.assert_close(ours.weight.double(), slopes, rtol=1e-4, atol=0)
    plain = [f.scale(1 / s) for f, s in ((ours, ours.weight), (truth, slopes))]
    found, whole = (inner(f[:60], f[60:]) for f in plain)
    assert (
        row_errors(found, whole).max() < LIMIT[precision]
        and row_errors(found.T, whole.T).max() < LIMIT[precision]
    )


@pytest.mark.parametrize('objective', OBJECTIVES)
@pytest.mark.parametrize('name', ('conve', 'ermlp'))
def test_objectives(name: str, objective: str) -> None:
    "Single triples, positives with negatives, and rows."
    model, factory = trained(name, lcwa=objective.startswith(('lcwa', 'softmax')))
    chosen = case(objective, model.eval(), factory).objective
    for precision in HALVES:
        assert error(model, chosen, precision, *examples(factory)) < LIMIT[precision]


@pytest.mark.parametrize('precision', HALVES)
@pytest.mark.parametrize('objective', ('slcwa-bce', 'lcwa-bce', 'softmax'))
def test_confident_training_losses(objective: str, precision: str) -> None:
    model, sure = confident('conve', 14.0, 32)
    chosen = case(objective, model, graph()).objective
    assert error(model, chosen, precision, sure[:200], sure[-30:]) < LIMIT[precision]


@pytest.mark.parametrize(
    'name',
    sorted(
        {*INTERACTIONS, *WRAPPED, *interaction_resolver.lookup_dict}
        - {'clamped', 'directionaverage', 'monotonicaffinetransformation'}
    ),
)
def test_every_interaction(name: str) -> None:
    try:
        model, factory = interacting(name)
    except (TypeError, ValueError, NotImplementedError):
        pytest.skip('needs settings of its own')
    for precision in HALVES:
        assert error(model.eval(), BCE(), precision, *examples(factory)) < LIMIT[precision]


def error(model: Model, objective: Objective, precision: str, train: Tensor, test: Tensor) -> float:
    "Relative error of the influence matrix against float32."
    full = FactoredEngine(model, objective)
    half = FactoredEngine(model, objective, full.routes, PRECISIONS[precision])
    return precision_error([half] * 2, [full] * 2, test, train)['relative_error']


def test_what_is_kept_in_16_bits() -> None:
    "Factors of outer products; rows, dense gradients and slopes are float32."
    model, factory = trained('conve')
    for low in (torch.bfloat16, torch.float16):
        factors = FactoredEngine(model, BCE(), low=low)(factory.mapped_triples[:5])
        kinds = {type(b) for bs in factors.blocks.values() for b in bs}
        assert kinds == {Outer, Dense, Rows} and factors.weight.dtype == torch.float32
        for b in (b for bs in factors.blocks.values() for b in bs):
            types = {t.dtype for t in b.tensors() if t.is_floating_point()}
            assert types == {low if type(b) is Outer else torch.float32}


def test_plain_rows_lose_nothing() -> None:
    model, factory = trained('distmult')
    for precision in HALVES:
        assert error(model, BCE(), precision, *examples(factory)) < 1e-6


def test_forward_pass_is_float32() -> None:
    "Switches and scores are those of float32: a rounded activation near zero would turn a ReLU."
    model, factory = trained('conve')
    triples, seen = factory.mapped_triples[:50], []
    hook = model.interaction.hr1d[3].register_forward_hook(lambda m, x, y: seen.append(y.detach()))
    try:
        for low in (None, torch.bfloat16, torch.float16):
            FactoredEngine(model, BCE(), Routes(), low)(triples)
    finally:
        hook.remove()
    assert all(torch.equal(seen[0], other) for other in seen[1:]) and len(seen) == 3


@pytest.mark.parametrize('precision', HALVES)
def test_frozen_embeddings(precision: str) -> None:
    "The linear layers are found when nothing before them can be trained."
    torch.manual_seed(0)
    model = build('conve', graph()).eval()
    for name, p in model.named_parameters():
        p.requires_grad_(name.startswith('interaction.hr1d.0'))
    train, test = examples(graph())
    truth = inner(LoopEngine(model, BCE())(test), LoopEngine(model, BCE())(train))
    engine = FactoredEngine(model, BCE(), low=PRECISIONS[precision])
    assert (inner(engine(test), engine(train)) - truth).norm() < LIMIT[precision] * truth.norm()


@pytest.mark.parametrize('size', (1e-12, 1e-6, 1.0, 1e6, 1e12))
def test_float16_has_the_range_of_float32(size: float) -> None:
    """Gradients of any size in the backward pass, activations and gradients of any size in the
    factors."""
    torch.manual_seed(0)
    linear, x, d = (
        nn.Linear(40, 30),
        torch.randn(6, 40, requires_grad=True),
        size * torch.randn(6, 30),
    )
    exact = torch.autograd.grad(linear(x), x, d)[0]
    with _half_linear(linear, torch.float16):
        y = linear(x)
    assert row_errors(torch.autograd.grad(y, x, d)[0], exact).max() < 2e-3
    block = Outer((d[:, None], torch.randn(6, 1, 40) / size))
    half = _halved(block, torch.float16).map(Tensor.float)
    assert row_errors(block_total(half, (30, 40)), block_total(block, (30, 40))).max() < 5e-3
    zero = _halved(Outer((torch.zeros(2, 1, 3), torch.ones(2, 1, 4))), torch.float16)
    assert (
        all(t.isfinite().all() for t in zero.tensors())
        and not block_total(zero.map(Tensor.float), (3, 4)).any()
    )


def test_the_model_is_given_back() -> None:
    model, factory = trained('conve')
    linear = model.interaction.hr1d[0]
    FactoredEngine(model, BCE(), low=torch.bfloat16)(factory.mapped_triples[:3])
    assert 'forward' not in vars(linear) and not linear._forward_hooks


def test_precision_error_of_full_precision_is_zero() -> None:
    model, factory = trained('conve')
    engine = [FactoredEngine(model, BCE())] * 2
    train, test = examples(factory)
    assert precision_error(engine, engine, test, train) == dict(
        relative_error=0.0, rank_correlation=1.0
    )


SETTINGS = {
    'untouched': lambda: None,
    'high': lambda: torch.set_float32_matmul_precision('high'),
    'medium': lambda: torch.set_float32_matmul_precision('medium'),
    'products in TF32': lambda: setattr(torch.backends.cuda.matmul, 'allow_tf32', True),
    'convolutions in float32': lambda: setattr(torch.backends.cudnn, 'allow_tf32', False),
    'new style': lambda: setattr(torch.backends.cuda.matmul, 'fp32_precision', 'tf32'),
    'new style, convolutions': lambda: setattr(torch.backends.cudnn.conv, 'fp32_precision', 'ieee'),
    'new style, CPU': lambda: setattr(torch.backends.mkldnn.matmul, 'fp32_precision', 'bf16'),
}


def switches() -> list:
    "All that can be read of PyTorch's settings, in both styles."
    b = torch.backends
    new = [
        m.fp32_precision
        for m in (
            b.cuda.matmul,
            b.cudnn.conv,
            b.cudnn.rnn,
            b.mkldnn.matmul,
            b.mkldnn.conv,
            b.mkldnn.rnn,
        )
        if hasattr(m, 'fp32_precision')
    ]
    old = []
    for read in (
        torch.get_float32_matmul_precision,
        lambda: b.cudnn.allow_tf32,
        lambda: b.cuda.matmul.allow_tf32,
    ):
        try:
            old.append(read())
        except RuntimeError:
            old.append('mixed')
    return [*new, *old]


@pytest.fixture
def default_switches() -> Iterator[None]:
    "The settings of a fresh process, before and after."

    def reset() -> None:
        torch.set_float32_matmul_precision('highest')
        torch.backends.cudnn.allow_tf32 = True
        for m in (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul):
            if hasattr(m, 'fp32_precision'):
                m.fp32_precision = 'none'

    reset()
    yield
    reset()


@pytest.mark.parametrize('precision', PRECISIONS)
@pytest.mark.parametrize('setting', SETTINGS)
def test_switches_are_restored(setting: str, precision: str, default_switches: None) -> None:
    "After the block, after an error in it, and after one block inside another."
    if setting.startswith('new') and not hasattr(torch.backends.cuda.matmul, 'fp32_precision'):
        pytest.skip('old torch')
    SETTINGS[setting]()
    before, fast = switches(), precision == 'tf32'
    with arithmetic(precision):
        assert torch.get_float32_matmul_precision() == ('high' if fast else 'highest')
        assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == fast
        inside = switches()
        assert not {'tf32', 'bf16', 'none'} & set(map(str, inside)) or fast
        with arithmetic('tf32'), arithmetic('fp32'):
            pass
        assert switches() == inside
    assert switches() == before
    with pytest.raises(KeyError), arithmetic(precision):
        raise KeyError
    assert switches() == before


def test_float32_is_float32(default_switches: None) -> None:
    """Whatever the process allows: "medium" multiplies in bfloat16 on processors that have units
    for it."""
    x, y = torch.randn(64, 512), torch.randn(512, 64)
    exact = x @ y
    torch.set_float32_matmul_precision('medium')
    with arithmetic('fp32'):
        assert torch.equal(x @ y, exact)


def test_unknown_and_impossible_precisions() -> None:
    cpu = torch.device('cpu')
    known = "unknown precision 'int8'; known are fp32, tf32, bf16, fp16"
    with pytest.raises(ValueError, match=known):
        low_type('int8', cpu)
    with pytest.raises(ValueError, match='"tf32" is not available on cpu'):
        low_type('tf32', cpu)
    assert [low_type(p, cpu) for p in ('fp32', 'bf16')] == [None, torch.bfloat16]


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('precision', ('tf32', *HALVES))
def test_on_a_gpu(precision: str) -> None:
    device = torch.device('cuda')
    model, sure = confident('conve', 14.0, 32)
    model = model.to(device)
    full = FactoredEngine(model, BCE())
    half = FactoredEngine(model, BCE(), full.routes, low_type(precision, device))
    found = precision_error([half] * 2, [full] * 2, sure[:20], sure[20:200], precision=precision)
    assert found['relative_error'] < LIMIT['bf16'] and found['rank_correlation'] > 0.99
