"""Batch norms folded into convolutions: exact where they are, and not done where it would be
wrong."""

from __future__ import annotations

import copy

import pytest
import torch
from models import CONVE, error, graph
from pykeen.models import ConvE
from torch import Tensor, nn

from tracin_nb.engine import gradients
from tracin_nb.engine.factors import inner
from tracin_nb.engine.gradients import (
    FactoredEngine,
    LoopEngine,
    _folding,
    _steps,
    capturing,
    describe,
    frozen,
)
from tracin_nb.engine.objectives import BCE, Objective, Softmax

pytestmark = pytest.mark.filterwarnings('ignore')
TRIPLES = graph().mapped_triples[::25][:23]


def shaken(model: nn.Module, seed: int = 0) -> nn.Module:
    """`model` with batch norms that are nobody's default: far means, variances over three orders
    of size."""
    generator = torch.Generator().manual_seed(seed)
    for m in model.modules():
        if not isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)):
            continue
        if m.running_mean is not None:
            m.running_mean.copy_(3 * torch.randn(m.num_features, generator=generator))
            m.running_var.copy_(10 ** (3 * torch.rand(m.num_features, generator=generator) - 2))
        if m.affine:
            for p in (m.weight, m.bias):
                p.data.copy_(torch.randn(m.num_features, generator=generator))
    return model.eval()


def conve(channels: int, **kwargs: bool) -> ConvE:
    """A ConvE in float64; with 12 `channels` its convolution is made of patches, with 3 it is
    PyTorch's."""
    torch.manual_seed(0)
    return shaken(
        ConvE(triples_factory=graph(), **{**CONVE, 'output_channels': channels}, **kwargs)
    ).double()


def folds(model: nn.Module) -> int:
    "How many pairs are folded."
    return sum(
        isinstance(s, gradients._Folded)
        for m in model.modules()
        if isinstance(m, nn.Sequential)
        for s in _steps(m)
    )


def check(model: ConvE, objective: Objective = BCE(), limit: float = 1e-12) -> None:
    "The factored engine against the loop, over the matrix of all triples."
    truth, ours = (cls(model, objective)(TRIPLES) for cls in (LoopEngine, FactoredEngine))
    assert error(inner(ours, ours), inner(truth, truth)) <= limit
    for name, (block,) in truth.blocks.items():
        one = inner(type(truth)({name: (block,)}), type(truth)({name: (block,)}))
        got = type(ours)({name: ours.blocks[name]}, ours.weight)
        assert error(inner(got, got), one) <= limit, name


# ---- exact
@pytest.mark.parametrize('objective', [BCE(), Softmax()], ids=str)
@pytest.mark.parametrize('channels', [3, 12])
def test_every_parameter(channels: int, objective: Objective) -> None:
    model = conve(channels)
    assert folds(model) == 1
    check(model, objective)
    assert set(describe(model).block) <= {'Dense', 'Outer', 'Rows'}


def change(model: ConvE, what: str) -> ConvE:
    "`model` with another convolution or batch norm in its first encoder."
    layers = model.interaction.hr2d
    if what == 'no bias':
        layers[2].bias = None
    if what == 'not affine':
        layers[3] = nn.BatchNorm2d(12, affine=False)
    if what == 'no statistics':
        layers[3] = nn.BatchNorm2d(12, track_running_stats=False)
    if what == 'frozen kernel':
        layers[2].weight.requires_grad_(False)
    if what == 'frozen norm':
        layers[3].requires_grad_(False)
    if what == 'dropout between':
        layers.insert(3, nn.Dropout(0.5))
    if what == 'frozen input':
        layers[0].requires_grad_(False)
        for table in (*model.entity_representations, *model.relation_representations):
            table.requires_grad_(False)
    return shaken(model, 1).double()


@pytest.mark.parametrize(
    'what,folded',
    [
        ('no bias', 1),
        ('not affine', 1),
        ('frozen kernel', 1),
        ('frozen norm', 1),
        ('dropout between', 1),
        ('frozen input', 1),
        ('no statistics', 0),
    ],
)
def test_other_layers(what: str, folded: int) -> None:
    "Missing and frozen parameters, layers in between, and a norm that looks at its batch."
    model = change(conve(12), what)
    assert folds(model) == folded
    if folded:
        check(model)
    if folded:
        assert not FactoredEngine(model, BCE()).routes.vectorised


def test_float32() -> None:
    "Far means cost no more digits than they cost the loop."
    exact = conve(12)
    truth = inner(*2 * [LoopEngine(exact, BCE())(TRIPLES)])
    rough = copy.deepcopy(exact).float()
    loop, ours = (inner(*2 * [cls(rough, BCE())(TRIPLES)]) for cls in (LoopEngine, FactoredEngine))
    assert error(ours.double(), truth) <= max(1e-5, 3 * error(loop.double(), truth))


# ---- left alone
def pair(**kwargs: int) -> list[nn.Module]:
    return [nn.Conv2d(2, 4, 3, **kwargs), nn.BatchNorm2d(4)]


class Loud(nn.BatchNorm2d):
    "A batch norm that does something else."

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    'layers',
    [
        pytest.param(pair(groups=2), id='groups'),
        pytest.param(pair(padding_mode='circular', padding=1), id='circular'),
        pytest.param([pair()[0], nn.ReLU(), pair()[1]], id='relu between'),
        pytest.param(pair()[::-1], id='norm first'),
        pytest.param([pair()[0], Loud(4)], id='subclass'),
    ],
)
def test_not_folded(layers: list[nn.Module]) -> None:
    assert folds(nn.Sequential(*layers).eval()) == 0


def test_training_or_hooked() -> None:
    "A norm in training mode looks at its batch; a hook has to see what it would have seen."
    layers = nn.Sequential(*pair())
    assert folds(layers) == 0
    assert folds(layers.eval()) == 1
    for m in layers:
        hook = m.register_forward_hook(lambda *_: None)
        assert folds(layers) == 0
        hook.remove()


def test_second_use() -> None:
    """A convolution that is also called by itself gives what it always gives, and is captured
    there, too."""
    torch.manual_seed(0)
    layers = shaken(nn.Sequential(nn.Conv2d(1, 12, 3), nn.BatchNorm2d(12))).double()
    x = torch.randn(5, 1, 6, 6, dtype=torch.double)
    with frozen(layers), capturing(layers) as found:
        y = layers(x) + layers[0](x)
        grads = torch.autograd.grad(y.sin().sum(), [c.output for c in found])
        blocks = [item for c, g in zip(found, grads) for item in c.blocks(g, len(x))]
    for p in layers.parameters():
        truth = [
            torch.autograd.grad((layers(v) + layers[0](v)).sin().sum(), p)[0] for v in x.split(1)
        ]
        torch.testing.assert_close(
            sum(b.grad for q, b in blocks if q is p), torch.stack(truth), rtol=1e-12, atol=1e-12
        )


def test_left_as_it_was() -> None:
    "Also after an error in the middle."
    model = conve(12)
    before = {name: set(vars(m)) for name, m in model.named_modules()}
    FactoredEngine(model, BCE())(TRIPLES)
    with pytest.raises(ZeroDivisionError), frozen(model), capturing(model):
        model.score_hrt(TRIPLES)
        raise ZeroDivisionError
    assert before == {name: set(vars(m)) for name, m in model.named_modules()}
    assert not any(m._forward_hooks for m in model.modules())
    layers = nn.Sequential(nn.ReLU())
    with _folding(layers, []):
        assert 'forward' not in vars(layers)
