"""Models and checkpoints as people have them: in 16 bits, wrapped, diverged, with a graph
inside, without labels."""

import copy
import logging
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import build, forget, graph
from pykeen.datasets import Nations
from pykeen.models import DistMult, ERModel, Model
from pykeen.nn.modules import DistMultInteraction
from pykeen.pipeline import PipelineResult, pipeline
from pykeen.triples import CoreTriplesFactory, TriplesFactory
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from tracin_nb.influence.tracin import TracIn
from tracin_nb.runs.foreign import open_files
from tracin_nb.runs.models import state_fingerprint
from tracin_nb.runs.run import Run, as_run
from tracin_nb.runs.settings import RunError

logging.getLogger('pykeen').setLevel(logging.ERROR)
pytestmark = pytest.mark.filterwarnings('ignore')
E, R = (f'{kind}_representations.0._embeddings.weight' for kind in ('entity', 'relation'))
LOW = [torch.float16, torch.bfloat16]
TRAIN, TEST = graph().mapped_triples[:40], Nations().testing.mapped_triples[:3]


def small(name: str = 'distmult', inverse: bool = False) -> Model:
    return build(name, graph(inverse))


def loop(model: Model, weigh: object = lambda name, g: g) -> Tensor:
    "Influence `[3, 40]` on the score, by one plain backward pass for each triple."

    def gradient(triple: Tensor) -> Tensor:
        forget(model)
        model.eval().score_hrt(triple[None]).sum().backward()
        return {
            n: torch.zeros_like(p) if p.grad is None else p.grad.clone()
            for n, p in model.named_parameters()
        }

    test = [{n: weigh(n, g) for n, g in gradient(x).items()} for x in TEST]
    train = [gradient(x) for x in TRAIN]
    forget(model)
    return torch.stack(
        [torch.stack([sum((a[n] * b[n]).sum() for n in a) for b in train]) for a in test]
    )


def close(found: Tensor, true: Tensor) -> bool:
    return ((found - true).norm() / true.norm()).item() <= (
        1e-5 if true.dtype == torch.float32 else 1e-6
    )


def scores(source: object, rate: float = 1.0, weighting: str = 'sgd', **options: object) -> Tensor:
    "Influence `[3, 40]` on the score."
    own = (
        {}
        if isinstance(source, (Run, PipelineResult))
        else dict(training=graph(), learning_rates=[rate])
    )
    return TracIn(source, 'score', weighting=weighting, progress=False, **own, **options).scores(
        TEST, TRAIN
    )


# 16 bits


@pytest.mark.parametrize('dtype', LOW)
@pytest.mark.parametrize('name', ['distmult', 'complex', 'rotate', 'conve', 'tucker', 'quate'])
def test_models_in_16_bits_are_computed_with_in_float32(name: str, dtype: torch.dtype) -> None:
    inverse = name == 'conve'
    half = small(name, inverse).to(dtype)
    wide = copy.deepcopy(half).float()
    make = lambda model: TracIn(
        model,
        'score',
        weighting='sgd',
        progress=False,
        training=graph(inverse),
        learning_rates=[1.0],
    )
    tracin, found = make(half), make(half).scores(TEST, TRAIN)
    assert torch.equal(found, make(wide).scores(TEST, TRAIN)) and found.dtype == torch.float32
    if not inverse:
        assert close(found, loop(wide))
    facts = tracin.explain(TEST, train=TRAIN).facts
    assert facts['weights'] == f'{str(dtype)[6:]}, computed with in float32'
    assert (facts['precision'], facts['dtype']) == ('fp32', 'float32')
    assert (
        next(half.parameters()).dtype == dtype
        and 'weights' not in make(wide).explain(TEST, train=TRAIN).facts
    )


@pytest.mark.parametrize('dtype', LOW)
def test_parts_in_16_bits(dtype: torch.dtype) -> None:
    "A part is raised to the type of the rest, float64 where that is there."
    for rest in (torch.float32, torch.float64):
        model = small().to(rest)
        model.entity_representations[0].to(dtype)
        true = copy.deepcopy(model).to(rest)
        tracin = TracIn(
            model, 'score', weighting='sgd', progress=False, training=graph(), learning_rates=[1.0]
        )
        assert (
            close(tracin.scores(TEST, TRAIN), loop(true))
            and tracin.scores(TEST, TRAIN).dtype == rest
        )
        assert (
            tracin.explain(TEST).facts['weights']
            == f'{str(dtype)[6:]} in part, computed with in {str(rest)[6:]}'
        )


@pytest.mark.parametrize('dtype', LOW)
def test_states_and_files_in_16_bits(dtype: torch.dtype, tmp_path: Path) -> None:
    model, train = small('complex'), tmp_path / 'train.tsv'
    low = {n: t.to(dtype) for n, t in model.state_dict().items()}
    true = loop(copy.deepcopy(model).to(dtype).float())
    torch.save(low, tmp_path / 'low.pt')
    torch.save({**model.state_dict(), E: low[E]}, tmp_path / 'part.pt')
    rows = graph().label_triples(graph().mapped_triples)
    train.write_text(''.join('\t'.join(row) + '\n' for row in rows), encoding='utf-8')
    for states in ([low], [tmp_path / 'low.pt']):
        assert close(
            scores(Run.from_model(model, graph(), states=states, learning_rates=[1.0])), true
        )
    both = Run.from_model(
        model, graph(), states=[low, model.state_dict()], learning_rates=[1.0, 1.0]
    )
    told = [
        TracIn(both, 'score', checkpoints=[k], progress=False).explain(TEST).facts.get('weights')
        for k in (0, 1)
    ]
    assert told == [f'{str(dtype)[6:]}, computed with in float32', None]
    for file, what in (('low', ''), ('part', ' in part')):
        run = open_files(tmp_path / f'{file}.pt', train, model='complex', learning_rates=1)
        if file == 'low':
            assert close(scores(run), true)
        told = TracIn(run, 'score', progress=False).explain(TEST).facts['weights']
        assert told == f'{str(dtype)[6:]}{what}, computed with in float32'


# pipelines and their optimisers


@pytest.fixture(scope='module')
def piped() -> PipelineResult:
    return pipeline(
        dataset='nations',
        model='distmult',
        model_kwargs=dict(embedding_dim=4),
        epochs=2,
        use_tqdm=False,
        evaluation_kwargs=dict(use_tqdm=False),
        optimizer='adam',
        optimizer_kwargs=dict(lr=0.01),
        random_seed=0,
        device='cpu',
        clear_optimizer=False,
    )


def adam_loop(result: PipelineResult, steps: int) -> Tensor:
    "The plain loop with the steps of Adam after so many `steps`."
    state, (group,) = (
        result.training_loop.optimizer.state,
        result.training_loop.optimizer.param_groups,
    )
    kept = {n: state[p] for n, p in result.model.named_parameters()}

    def weigh(name: str, g: Tensor) -> Tensor:
        return (
            group['lr']
            * g
            / ((kept[name]['exp_avg_sq'] / (1 - group['betas'][1] ** steps)).sqrt() + group['eps'])
        )

    return loop(copy.deepcopy(result.model), weigh)


def test_adam_of_a_pipeline(piped: PipelineResult) -> None:
    run = as_run(piped)
    assert run.checkpoints[0].step == 14  # two epochs of seven batches
    assert close(scores(run, weighting='adam'), adam_loop(piped, 14))


def optimised(
    result: PipelineResult, optimizer: type[torch.optim.Optimizer], **options: object
) -> PipelineResult:
    "A pipeline's `result` as if it had made three steps of another optimiser."
    result = copy.deepcopy(result)
    made = optimizer(result.model.parameters(), lr=0.01, **options)
    for _ in range(3):
        made.zero_grad()
        result.model.eval().score_hrt(TRAIN).mean().backward()
        made.step()
    result.training_loop.optimizer = made
    result.configuration |= dict(optimizer=optimizer.__name__, optimizer_kwargs=dict(made.defaults))
    return result


def test_other_optimisers_of_a_pipeline(piped: PipelineResult) -> None:
    result = optimised(piped, torch.optim.AdamW)
    assert as_run(result).checkpoints[0].step == 3
    assert close(scores(result, weighting='adam'), adam_loop(result, 3))
    optim = torch.optim
    for cls, options in [
        (optim.SGD, dict(momentum=0.9)),
        (optim.Adagrad, {}),
        (optim.RMSprop, {}),
        (optim.NAdam, {}),
        (optim.RAdam, {}),
        (optim.Adamax, {}),
        (optim.Adam, dict(amsgrad=True)),
    ]:
        result = optimised(piped, cls, **options)
        assert scores(result).isfinite().all()
        with pytest.raises(
            ValueError, match=f'follows Adam and AdamW.*trained with {cls.__name__.lower()}'
        ):
            scores(result, weighting='adam')
    result.training_loop.optimizer, result.configuration = None, piped.configuration
    with pytest.raises(ValueError, match='clear_optimizer=False'):
        scores(result, weighting='adam')


@pytest.mark.parametrize('dtype', LOW)
def test_a_pipeline_in_16_bits(dtype: torch.dtype, piped: PipelineResult) -> None:
    result = copy.deepcopy(piped)
    result.model.to(dtype)
    assert close(scores(result), loop(copy.deepcopy(result.model).float()) * 0.01)
    assert TracIn(result, progress=False).explain(TEST).facts['weights'].startswith(str(dtype)[6:])


# not finite


@pytest.mark.parametrize('value', [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(
    'name', [E, R, 'interaction.hr1d.0.bias', 'interaction.hr2d.3.running_var']
)
def test_weights_that_are_not_finite(name: str, value: float, tmp_path: Path) -> None:
    model = small('conve', inverse=True)
    good = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        model.state_dict()[name].view(-1)[-1] = value
    with pytest.raises(
        RunError,
        match=f'the model: {name!r} holds numbers that are not finite, such as -?(nan|inf)',
    ):
        Run.from_model(model, graph(True), learning_rates=[1.0])
    bad, kwargs = model.state_dict(), dict(learning_rates=[1.0, 1.0])
    with pytest.raises(RunError, match=rf'states\[1\]: {name!r} holds'):
        Run.from_model(model, graph(True), states=[good, bad], **kwargs)
    torch.save(bad, tmp_path / 'bad.pt')
    with pytest.raises(RunError, match=f'bad.pt: {name!r} holds'):
        TracIn(
            Run.from_model(model, graph(True), states=[good, tmp_path / 'bad.pt'], **kwargs)
        ).explain(TEST)
    with pytest.raises(RunError, match=f'{name!r} holds'):
        Run.from_model(model.half(), graph(True), learning_rates=[1.0])


@pytest.mark.parametrize('value', [1e20, 3e38, -3e38])
@pytest.mark.parametrize('kind', ['entity', 'relation'])
def test_weights_that_overflow(kind: str, value: float) -> None:
    "One row is enough, wherever its triples are."
    model, name = small('complex'), E if kind == 'entity' else R
    with torch.no_grad():
        model.get_parameter(name)[-2, 1] = value
    for weighting in ('sgd', 'natural'):
        told = re.escape(f'not finite; the largest weight is {abs(value):.3g}, in {name!r}')
        with pytest.raises(RunError, match=told):
            scores(model, weighting=weighting)


def test_large_weights_that_do_not_overflow() -> None:
    model = small()
    with torch.no_grad():
        model.get_parameter(E).mul_(1e3)
    assert close(scores(model), loop(model))


def test_moments_that_are_not_finite() -> None:
    model = small()
    moments = {n: torch.ones_like(p) for n, p in model.named_parameters()}
    moments[R][3, 2] = torch.nan
    run = Run.from_model(
        model,
        graph(),
        learning_rates=[1.0],
        optimizer=('adam', dict(betas=(0.9, 0.999), eps=1e-8)),
        optimizer_moments=[moments],
        steps=[3],
    )
    with pytest.raises(RunError, match=rf'checkpoint 0: second moments: {R!r} .* nan at \[3, 2\]'):
        scores(run, weighting='adam')


# wrappers


def compiled_inside(model: Model) -> Model:
    model.interaction = torch.compile(model.interaction)
    model.entity_representations[0] = nn.DataParallel(
        torch.compile(model.entity_representations[0])
    )
    return model


def compiled_method(model: Model) -> Model:
    model.score_hrt = torch.compile(model.score_hrt)
    return model


WRAPPED = dict(
    compiled=torch.compile,
    parallel=nn.DataParallel,
    averaged=AveragedModel,
    both=lambda m: nn.DataParallel(torch.compile(nn.DataParallel(m))),
    inside=compiled_inside,
    nested=lambda m: torch.compile(nn.DataParallel(compiled_inside(m))),
    method=compiled_method,
)


@pytest.mark.parametrize('how', WRAPPED)
def test_wrapped_models(how: str) -> None:
    plain = small('ermlp')
    true, other = loop(plain), {n: 2 * t for n, t in plain.state_dict().items()}
    wrapped = WRAPPED[how](copy.deepcopy(plain))
    names = list(wrapped.state_dict())
    assert close(scores(wrapped), true)
    run = Run.from_model(
        wrapped, graph(), states=[wrapped.state_dict(), other], learning_rates=[1.0, 0.0]
    )
    assert close(scores(run), true) and run.fingerprint(1) == state_fingerprint(other)
    assert list(wrapped.state_dict()) == names and type(run.model(1).interaction) is type(
        plain.interaction
    )


@pytest.mark.parametrize('how', ['compiled', 'parallel', 'averaged', 'both', 'inside', 'nested'])
def test_states_of_wrapped_models(how: str, tmp_path: Path) -> None:
    plain = small('ermlp')
    state = WRAPPED[how](copy.deepcopy(plain)).state_dict()
    torch.save(dict(epoch=3, model=state), tmp_path / 'a.pt')
    run = Run.from_model(
        plain,
        graph(),
        states=[state, tmp_path / 'a.pt', {f'net.{n}': t for n, t in state.items()}],
        learning_rates=[1.0] * 3,
    )
    assert {state_fingerprint(run.model(k).state_dict()) for k in range(3)} == {
        state_fingerprint(plain.state_dict())
    }


def test_names_that_are_not_clear(tmp_path: Path) -> None:
    model = small()
    state = model.state_dict()
    other = {f'{p}.{n}': t for p in ('model', 'ema') for n, t in state.items()}
    with pytest.raises(
        RunError, match=r"states\[0\] holds the weights of several models, under 'ema.', 'model.'"
    ):
        Run.from_model(model, graph(), states=[other], learning_rates=[1.0])
    with pytest.raises(RunError, match=r'states\[0\] has .* twice'):
        Run.from_model(
            model, graph(), states=[{**state, f'module.{E}': state[E]}], learning_rates=[1.0]
        )
    with pytest.raises(RunError, match=f'{R!r} is missing'):
        Run.from_model(model, graph(), states=[{f'module.{E}': state[E]}], learning_rates=[1.0])
    with pytest.warns(UserWarning, match="the model is under 'model.'; left out is head.weight"):
        Run.from_model(
            model,
            graph(),
            states=[{**{f'model.{n}': t for n, t in state.items()}, 'head.weight': state[E]}],
            learning_rates=[1.0],
        )
    torch.save(dict(model=state, network=state), tmp_path / 'two.pt')
    with pytest.raises(
        RunError, match="two.pt holds several state dictionaries, under 'model', 'network'"
    ):
        Run.from_model(model, graph(), states=[tmp_path / 'two.pt'], learning_rates=[1.0]).model(0)
    holder = nn.Module()
    holder.kge = model
    with pytest.raises(RunError, match="Module is not a PyKEEN model; its attribute 'kge' is one"):
        TracIn(holder, training=graph(), learning_rates=[1.0])


def lightning(model: Model, **changes: object) -> dict[str, object]:
    "What Lightning saves of a module with the `model` in it, after 3 steps."
    optimizer = torch.optim.Adam(model.parameters(), lr=0.25)
    for _ in range(3):
        optimizer.zero_grad()
        model.score_hrt(TRAIN).sum().backward()
        optimizer.step()
    return {
        'epoch': 2,
        'global_step': 3,
        'pytorch-lightning_version': '2.5.0',
        'loops': {},
        'callbacks': {},
        'state_dict': {f'model.{n}': t.detach().clone() for n, t in model.state_dict().items()},
        'optimizer_states': [optimizer.state_dict()],
        'lr_schedulers': [],
        'hparams_name': 'kwargs',
        'hyper_parameters': dict(lr=0.5, model='DistMult'),
        **changes,
    }


@pytest.fixture(scope='module')
def train(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp('triples') / 'train.tsv'
    rows = graph().label_triples(graph().mapped_triples)
    path.write_text(''.join('\t'.join(row) + '\n' for row in rows), encoding='utf-8')
    return path


def test_lightning(train: Path, tmp_path: Path) -> None:
    model, path = small(), tmp_path / 'a.ckpt'
    content = lightning(model)
    torch.save(content, path)
    run = open_files(path, train)
    assert (run.checkpoints[0].learning_rate, run.checkpoints[0].step, run.optimizer[0]) == (
        0.25,
        3,
        'adam',
    )
    assert (
        close(scores(run), loop(model) * 0.25)
        and run.moments(0).keys() == dict(model.named_parameters()).keys()
    )
    torch.save({**content, 'optimizer_states': []}, path)
    assert open_files(path, train).checkpoints[0].learning_rate == 0.5
    del content['optimizer_states']
    torch.save(
        {
            **content,
            'hyper_parameters': dict(learning_rate=0.125, label_smoothing=0.1, model='DistMult'),
        },
        path,
    )
    run = open_files(path, train)
    assert (run.checkpoints[0].learning_rate, run.label_smoothing) == (0.125, 0.1)
    for change in (
        dict(lr_schedulers=[dict(last_epoch=2)]),
        dict(hyper_parameters=dict(lr=0.5, lr_scheduler='StepLR')),
    ):
        torch.save({**content, 'hyper_parameters': dict(lr=0.5), **change}, path)
        with pytest.raises(
            RunError, match="a.ckpt holds 'lr_schedulers?': its rate 0.5 is for the next steps"
        ):
            open_files(path, train, model='DistMult')
    torch.save({**content, 'hyper_parameters': dict(lr='fast', model='DistMult')}, path)
    with pytest.raises(RunError, match='a.ckpt: lr must be'):
        open_files(path, train)


@pytest.mark.parametrize(
    'wrap',
    [
        '{}',
        'module.{}',
        '_orig_mod.{}',
        'module._orig_mod.{}',
        '_orig_mod.module.{}',
        'model._orig_mod.{}',
        'net.module.{}',
        'model.module._orig_mod.{}',
    ],
)
@pytest.mark.parametrize(
    'key', ['model', 'state_dict', 'model_state_dict', 'network', 'module', 'model.state_dict', '']
)
def test_files_of_wrapped_models(wrap: str, key: str, train: Path, tmp_path: Path) -> None:
    model, optimizer = small(), torch.optim.Adam([torch.ones(1)], lr=0.5)
    content = {wrap.format(n): t for n, t in model.state_dict().items()}
    for name in filter(None, reversed(key.split('.'))):
        content = {name: content}
    if key:
        content |= dict(epoch=4, optimizer=optimizer.state_dict(), loss=torch.tensor(0.5))
    torch.save(content, tmp_path / 'a.pt')
    run = open_files(
        tmp_path / 'a.pt', train, model='DistMult', learning_rates=None if key else 0.5
    )
    assert state_fingerprint(run.model(0).state_dict()) == state_fingerprint(model.state_dict())
    assert (
        run.checkpoints[0].learning_rate == 0.5 and run.state(0).keys() == model.state_dict().keys()
    )


def test_pickled_wrapped_models(train: Path, tmp_path: Path) -> None:
    model = small()
    true = loop(model)
    for content in (
        nn.DataParallel(model),
        dict(model=nn.DataParallel(model), epoch=3),
        model.half(),
    ):
        torch.save(content, tmp_path / 'a.pkl')
        run = open_files(tmp_path / 'a.pkl', train, learning_rates=1, allow_pickle=True)
        true = loop(copy.deepcopy(model).float())
        assert close(scores(run), true)


# which graph


def test_inverse_triples_are_told_by_the_model() -> None:
    plain, both = Nations().training, Nations(create_inverse_triples=True).training
    core = lambda relations, inverse: CoreTriplesFactory(
        plain.mapped_triples, 14, relations, inverse
    )
    make = lambda factory: DistMult(triples_factory=factory, embedding_dim=4, random_seed=0)
    for model, training in [
        (make(both), core(110, False)),
        (make(both), plain),
        (make(core(110, False)), both),
    ]:
        with pytest.raises(RunError, match='with(out)? inverse triples'):
            TracIn(model, training=training, learning_rates=[1.0])
    found = [
        TracIn(make(both), 'score', training=t, learning_rates=[1.0], progress=False).scores(
            TEST, TRAIN
        )
        for t in (both, core(55, True), both.condense())
    ]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_ids_as_labels() -> None:
    "A model with a factory that has no labels."
    plain = Nations().training
    core = CoreTriplesFactory(plain.mapped_triples, 14, 55)
    model = DistMult(triples_factory=core, embedding_dim=4, random_seed=0)
    make = lambda training: TracIn(
        model, 'score', training=training, learning_rates=[1.0], progress=False
    )
    mine, theirs = make(core).explain(TEST, k=5), make(plain).explain(TEST, k=5)
    assert torch.equal(make(core).scores(TEST, TRAIN), make(plain).scores(TEST, TRAIN))
    assert mine.frame['influence'].tolist() == theirs.frame['influence'].tolist()
    assert [plain.entity_to_id[x] for x in theirs.frame['head']] == [
        int(x) for x in mine.frame['head']
    ]
    assert (
        make(core)
        .explain([('3', '1', '4')], k=2)
        .tests.equals(make(core).explain([(3, 1, 4)], k=2).tests)
    )
    assert len(make(core).self_influence(k=3).frame) == 3 and isinstance(
        make(core).run.training, TriplesFactory
    )


# what a training loop leaves


@pytest.mark.parametrize(
    'name', ['distmult', 'complex', 'quate', 'rescal', 'transe', 'rgcn', 'transh']
)
def test_after_a_loop_of_ones_own(name: str) -> None:
    "A graph left in a regulariser, in gradients and in hooks; the model is as before."
    model = build(name, graph()).train()
    true = loop(copy.deepcopy(model))
    calls = []
    model.interaction.register_forward_hook(lambda *args: calls.append(1))
    torch.nn.functional.softplus(-model.train().score_hrt(TRAIN)).mean().backward()
    grads = {n: p.grad for n, p in model.named_parameters()}
    before, regularizers = (
        copy.copy(model.__dict__),
        [m for m in model.modules() if hasattr(m, 'regularization_term')],
    )
    terms = [m.regularization_term for m in regularizers]
    run = Run.from_model(model, graph(), learning_rates=[1.0])
    assert close(scores(run), true)
    assert (
        model.training
        and all(p.grad is grads[n] for n, p in model.named_parameters())
        and model.__dict__ == before
    )
    assert all(m.regularization_term is t for m, t in zip(regularizers, terms))
    assert len(model.interaction._forward_hooks) == 1


class Keeping(DistMultInteraction):
    "Keeps what it last saw, in several ways; scores with it if asked."

    def __init__(self, use: bool = False) -> None:
        super().__init__()
        self.use, self.last, self.more, self.norm = use, None, dict(all=[]), torch.zeros(())
        self.register_buffer('total', torch.zeros(()), persistent=False)

    def forward(self, h: Tensor, r: Tensor, t: Tensor) -> Tensor:
        if self.use and self.last is not None:
            h = self.last[:1].expand_as(h)
        self.last, self.total, self.norm = h, self.total + h.sum(), self.norm + r.norm()
        self.more['all'].append((h, r, t))
        return super().forward(h, r, t)


def keeping(use: bool) -> Model:
    return ERModel(
        triples_factory=graph(),
        interaction=Keeping(use),
        entity_representations_kwargs=dict(shape=4),
        relation_representations_kwargs=dict(shape=4),
        random_seed=0,
    )


def test_any_module_may_keep_a_tensor() -> None:
    model = keeping(use=False)
    true = loop(model)
    model.score_hrt(TRAIN).sum().backward()
    last = model.interaction.last
    assert (
        close(scores(model), true) and model.interaction.last is last and last.grad_fn is not None
    )
    model = keeping(use=True)
    model.score_hrt(TRAIN).sum()
    with pytest.raises(RunError, match='stores a tensor of an earlier pass and scores with it'):
        scores(model)


def test_weight_norm() -> None:
    "Its weight is computed anew before each pass, and the last one is kept."
    model = small('ermlp')
    nn.utils.weight_norm(model.interaction.hidden)
    true = loop(model)
    model.score_hrt(TRAIN).sum().backward()
    assert close(scores(model, engine='loop'), true)


def test_no_copy() -> None:
    model = small()
    model.lock = threading.Lock()
    with pytest.raises(RunError, match='no copy of DistMult can be taken: TypeError'):
        scores(model)


# numbers of NumPy


def test_numpy_integers(tmp_path: Path) -> None:
    model = small()
    states = [model.state_dict(), {n: 2 * t for n, t in model.state_dict().items()}]
    run = Run.from_model(
        model,
        graph(),
        states=states,
        learning_rates=np.array([0.5, 0.25], dtype=np.float32),
        epochs=np.array([1, 2]),
        steps=np.arange(2) + 3,
    )
    assert [(c.epoch, c.step, c.learning_rate) for c in run.checkpoints] == [
        (1, 3, 0.5),
        (2, 4, 0.25),
    ]
    assert (
        Run.from_model(model, graph(), learning_rates=torch.tensor([0.5]))
        .checkpoints[0]
        .learning_rate
        == 0.5
    )
    want = TracIn(run, 'score', weighting='sgd', checkpoints=[1, 0], batch_size=64, progress=False)
    have = TracIn(
        run,
        'score',
        weighting='sgd',
        checkpoints=np.array([-1, 0]),
        batch_size=np.int64(64),
        progress=False,
    )
    for kind in (np.int64, np.uint8):
        for options in ({}, dict(against=kind((TEST[0, 2] + 1) % 14))):
            theirs = {n: int(v) for n, v in options.items()}
            mine = have.explain(
                TEST[:1], kind(4), **options, out=tmp_path / f'{kind.__name__}{len(options)}'
            )
            assert mine.frame.equals(want.explain(TEST[:1], 4, **theirs).frame)
    assert have.self_influence(k=np.int64(3)).frame.equals(want.self_influence(k=3).frame)
    assert next(run.model(np.int64(1)).parameters()).equal(next(run.model(1).parameters()))
    for k in (np.int64(0), np.int64(-1), np.float64(2)):
        with pytest.raises(ValueError, match='k is .*expected a whole number above 0'):
            have.explain(TEST, k)
    with pytest.raises(ValueError, match='there is no checkpoint'):
        TracIn(run, checkpoints=np.array([2]))


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        (dict(optimizer='adam'), "optimizer is 'adam', but its name and settings"),
        (dict(optimizer=('adam',)), 'but its name and settings are needed'),
        (dict(optimizer=('adam', None)), 'but its name and settings are needed'),
        (dict(optimizer=(1, {})), 'but its name and settings are needed'),
        (dict(optimizer=torch.optim.Adam), "optimizer is 'type'"),
        (dict(epochs=3), 'epochs is a int: give a list'),
        (dict(steps='5'), 'steps is a str: give a list'),
        (dict(states=3), 'states is a int: give a list'),
        (dict(states={}), 'states is a dict: give a list'),
        (dict(optimizer_moments=3), 'optimizer_moments is a int: give a list'),
        (dict(negative_sampler_kwargs=3), 'negative_sampler_kwargs=3 is not a mapping'),
        (dict(negative_sampler_kwargs=dict(foo=1)), "basic takes no 'foo'"),
        (dict(negative_sampler='bernoulli', negative_sampler_kwargs=dict(foo=1)), "no 'foo'"),
        (dict(negative_sampler_kwargs=dict(num_negs_per_pos=0)), 'num_negs_per_pos'),
        (dict(loss=3), 'loss=3 is neither a loss of PyKEEN nor the name of one'),
    ],
    ids=lambda x: None if isinstance(x, dict) else x[:30],
)
def test_wrong_kinds_are_named_at_once(given: dict[str, Any], message: str) -> None:
    "A run is not made of what only a question would stumble over."
    training = Nations().training
    model = DistMult(triples_factory=training, embedding_dim=4, random_seed=0)
    with pytest.raises(RunError, match=re.escape(message)):
        Run.from_model(model, training, **dict(dict(learning_rates=[0.1]), **given))
