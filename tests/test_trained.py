"""A run is what PyKEEN trained: every setting of its pipeline and loops is in the gradients,
named, or refused."""

import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from pykeen.losses import BCEWithLogitsLoss, CrossEntropyLoss, MSELoss
from pykeen.pipeline import PipelineResult, pipeline
from pykeen.sampling import BasicNegativeSampler
from pykeen.sampling.filtering import PythonSetFilterer
from pykeen.training import SLCWATrainingLoop, TrainingCallback
from pykeen.triples.instances import LCWAInstances, SLCWABatch
from pykeen.triples.weights import LossWeighter, RelationLossWeighter
from torch import Tensor
from torch.utils.data import default_collate

from tracin_nb import Run, TracIn, train
from tracin_nb.app.cli import main
from tracin_nb.engine.objectives import make_objective
from tracin_nb.evaluation.stability import ensemble
from tracin_nb.influence.cache import objective_key
from tracin_nb.runs.loop import little_garbage
from tracin_nb.runs.models import build_model
from tracin_nb.runs.settings import RunError

R, E, LR = 55, 14, 0.05
WEIGHTS = torch.linspace(0, 3, R)
BY_RELATION = dict(loss_weighter='relation', loss_weighter_kwargs=dict(weights=WEIGHTS))


class ByHead(LossWeighter):
    "Weights by head and tail, which one of them may leave open."

    def __call__(self, h: Any, r: Any, t: Any) -> Any:
        heads = torch.linspace(0.5, 2, E)
        return heads[h] if h is not None else heads


class HalfLoss(BCEWithLogitsLoss):
    "A loss of the user's own."

    def forward(self, x: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        return 0.5 * super().forward(x.tanh(), target, weight)


class NextTail(BasicNegativeSampler):
    "A sampler of the user's own."

    def corrupt_batch(self, positive_batch: Tensor) -> Tensor:
        negatives = super().corrupt_batch(positive_batch)
        negatives[..., 2] = (positive_batch[..., None, 2] + 1) % E
        return negatives


def run_pipeline(loop: str = 'slcwa', **options: Any) -> PipelineResult:
    """PyKEEN's pipeline on Nations, one epoch of a small DistMult unless told otherwise; weights
    in float64."""
    how = dict(
        dataset='nations',
        model='DistMult',
        model_kwargs=dict(embedding_dim=4),
        random_seed=3,
        device='cpu',
        optimizer='sgd',
        optimizer_kwargs=dict(lr=LR),
        loss='bcewithlogits',
        training_loop=loop,
    )
    more = dict(num_epochs=1) | options.pop('training_kwargs', {})
    loop_kwargs = dict(automatic_memory_optimization=False) | options.pop(
        'training_loop_kwargs', {}
    )
    with warnings.catch_warnings(), little_garbage():
        warnings.simplefilter('ignore')
        result = pipeline(
            **how | options,
            training_loop_kwargs=loop_kwargs,
            training_kwargs=more,
            use_tqdm=False,
            evaluation_kwargs=dict(use_tqdm=False),
        )
    result.model.double()
    return result


def slcwa_batches(result: PipelineResult, run: Run, triples: Tensor) -> list[list[SLCWABatch]]:
    """For each triple PyKEEN's batches of one, with the negatives that were drawn for it: one,
    or two with inverses."""
    factory = result.training
    both = factory._add_inverse_triples_if_necessary(triples)
    negatives, mask = make_objective('training', run).negatives.draw(both)
    weighter = run.loss_weighter
    found = []
    for i in range(len(triples)):
        for j in (i, i + len(triples))[: len(both) // len(triples)]:
            batch = SLCWABatch(positives=both[j : j + 1], negatives=negatives[j : j + 1])
            if run.sampler().filterer is not None:
                batch['masks'] = mask[j : j + 1]
            if weighter is not None:
                batch |= dict(
                    pos_weights=weighter.weight_triples(both[j : j + 1]),
                    neg_weights=weighter.weight_triples(negatives[j : j + 1]),
                )
            found.append(batch)
    return [
        found[i * len(found) // len(triples) : (i + 1) * len(found) // len(triples)]
        for i in range(len(triples))
    ]


def lcwa_batches(
    result: PipelineResult, run: Run, triples: Tensor
) -> list[list[dict[str, Tensor]]]:
    "For each triple the rows that PyKEEN's own instances have for it."
    loop, factory = result.training_loop, result.training
    rows = LCWAInstances.from_triples_factory(
        factory,
        target=loop.target,
        loss_weighter=loop.loss_weighter,
        loss_weighter_kwargs=loop.loss_weighter_kwargs,
    )
    both = factory._add_inverse_triples_if_necessary(triples)
    pairs = both[:, [c for c in range(3) if c != loop.target]]
    places = [[tuple(p) for p in rows.pairs.tolist()].index(tuple(p)) for p in pairs.tolist()]
    found = [default_collate([rows[i]]) for i in places]
    return [found[i :: len(triples)] for i in range(len(triples))]


def gradients(result: PipelineResult, run: Run, triples: Tensor) -> Tensor:
    "The gradient of each triple's loss `[N, p]`, by PyKEEN's loop and autograd in float64."
    loop, model = result.training_loop, result.model.eval()
    batches = (slcwa_batches if isinstance(loop, SLCWATrainingLoop) else lcwa_batches)(
        result, run, triples
    )
    smoothing, params = (
        result.configuration.get('label_smoothing', 0.0),
        list(model.get_grad_params()),
    )
    found = []
    for own in batches:
        loss = sum(loop._process_batch(batch, 0, 1, smoothing) for batch in own)
        grads = torch.autograd.grad(loss, params, materialize_grads=True, allow_unused=True)
        found.append(torch.cat([g.flatten() for g in grads]))
    return torch.stack(found)


def check(result: PipelineResult, **how: Any) -> dict[str, Any]:
    """Scores of a few triples equal the products of these gradients; returns the facts of an
    explanation."""
    run = Run.from_pipeline(result)
    objective = 'training' if run.loop == 'slcwa' else 'training-row'
    triples = result.training.mapped_triples
    test, rows = triples[[3, 700]], triples[::97]
    tracin = TracIn(run, objective, weighting='sgd', progress=False, **how)
    want = LR * gradients(result, run, test) @ gradients(result, run, rows).T
    have = tracin.scores(test, rows).double()
    assert want.abs().max() > 0
    assert (have - want).abs().max() <= 1e-6 * want.abs().max()
    return tracin.explain(test[:1], train=rows[:4], k=3).facts


WEIGHER = dict(training_loop_kwargs=BY_RELATION)
SLCWA = {
    'plain': {},
    'weights by relation': WEIGHER,
    'weights, mean': dict(WEIGHER, loss='mse'),
    'weights, focal': dict(WEIGHER, loss='focal', loss_kwargs=dict(gamma=1.5, alpha=0.3)),
    'weights, sum, negatives': dict(
        WEIGHER,
        loss='bcewithlogits',
        loss_kwargs=dict(reduction='sum'),
        negative_sampler_kwargs=dict(num_negs_per_pos=3, corruption_scheme=('head', 'relation')),
    ),
    'weights, inverse': dict(
        dataset_kwargs=dict(create_inverse_triples=True),
        training_loop_kwargs=dict(loss_weighter=RelationLossWeighter(torch.linspace(0, 3, 2 * R))),
    ),
    'weights of the user': dict(training_loop_kwargs=dict(loss_weighter=ByHead)),
    'positives weigh more': dict(loss_kwargs=dict(pos_weight=3)),
    'adversarial temperature': dict(
        loss='nssa',
        loss_kwargs=dict(margin=2.0, adversarial_temperature=0.3),
        negative_sampler_kwargs=dict(num_negs_per_pos=4),
    ),
    'adversarial, filtered': dict(
        loss='nssa',
        negative_sampler_kwargs=dict(num_negs_per_pos=4, filtered=True, filterer='python-set'),
    ),
    'soft margin': dict(loss='softmarginranking', loss_kwargs=dict(margin=0.5)),
    'double margin': dict(
        loss='doublemargin',
        loss_kwargs=dict(
            positive_margin=2.0,
            offset=1.0,
            positive_negative_balance=0.3,
            margin_activation='softplus',
            reduction='sum',
        ),
    ),
    'sum, smoothing': dict(
        loss='mse', loss_kwargs=dict(reduction='sum'), training_kwargs=dict(label_smoothing=0.1)
    ),
    'InfoNCE, smoothing': dict(
        loss='infonce',
        loss_kwargs=dict(log_adversarial_temperature=-0.5),
        training_kwargs=dict(label_smoothing=0.1),
        negative_sampler_kwargs=dict(num_negs_per_pos=4),
    ),
    'filterer as a class': dict(
        negative_sampler_kwargs=dict(filtered=True, filterer=PythonSetFilterer, num_negs_per_pos=3)
    ),
    'bernoulli': dict(
        negative_sampler='bernoulli', negative_sampler_kwargs=dict(num_negs_per_pos=3)
    ),
    'typed': dict(negative_sampler='pseudotyped'),
    'sampler of the user': dict(
        negative_sampler=NextTail, negative_sampler_kwargs=dict(num_negs_per_pos=2)
    ),
    'loss of the user': dict(loss=HalfLoss),
    'loss as an instance': dict(loss=MSELoss(reduction='sum')),
    'sub-batches': dict(training_kwargs=dict(sub_batch_size=16)),
    'evaluated in part': dict(evaluation_relation_whitelist=['embassy', 'treaties']),
    'literals': dict(dataset='nationsliteral', model='DistMultLiteral'),
    'an interaction': dict(
        model=None,
        interaction='transe',
        dimensions=4,
        model_kwargs={},
        interaction_kwargs=dict(p=2),
    ),
}
LCWA = {
    'plain': {},
    'weights by relation': WEIGHER,
    'weights, cross entropy': dict(WEIGHER, loss='crossentropy', loss_kwargs=dict(reduction='sum')),
    'weights, InfoNCE, smoothing': dict(
        WEIGHER, loss='infonce', training_kwargs=dict(label_smoothing=0.1)
    ),
    'weights, mean': dict(WEIGHER, loss='mse'),
    'weights of heads': dict(training_loop_kwargs=dict(loss_weighter=ByHead())),
    'weights, inverse': dict(
        dataset_kwargs=dict(create_inverse_triples=True),
        training_loop_kwargs=dict(
            loss_weighter='relation', loss_weighter_kwargs=dict(weights=torch.linspace(0, 3, 2 * R))
        ),
    ),
    'rows of heads': dict(training_loop_kwargs=dict(target='head')),
    'rows of heads, weights': dict(
        loss='crossentropy', training_loop_kwargs=dict(BY_RELATION, target='head')
    ),
    'rows of heads, weights of heads': dict(
        training_loop_kwargs=dict(loss_weighter=ByHead(), target='head')
    ),
    'rows of heads, inverse': dict(
        dataset_kwargs=dict(create_inverse_triples=True),
        loss='softplus',
        training_loop_kwargs=dict(target='head'),
    ),
    'positives weigh more, smoothing': dict(
        loss_kwargs=dict(pos_weight=2.5), training_kwargs=dict(label_smoothing=0.1)
    ),
    'margin': dict(loss='marginranking', loss_kwargs=dict(margin=0.5)),
    'slices': dict(training_kwargs=dict(slice_size=3)),
    'sub-batches': dict(training_kwargs=dict(sub_batch_size=16)),
}


@pytest.mark.parametrize('name', SLCWA)
def test_sampled(name: str) -> None:
    check(run_pipeline(**SLCWA[name]))


@pytest.mark.parametrize('name', LCWA)
def test_rows(name: str) -> None:
    check(run_pipeline('lcwa', **LCWA[name]))


@pytest.mark.parametrize('loop', ['slcwa', 'lcwa'])
@pytest.mark.parametrize('engine', ['loop', 'vmap'])
def test_weights_in_every_engine(loop: str, engine: str) -> None:
    facts = check(run_pipeline(loop, **WEIGHER), engine=engine)
    assert facts['objective'].endswith('weighted by RelationLossWeighter')


def test_weight_zero_is_no_influence() -> None:
    """Rows of relations that do not count have influence 0, the part of the triple as well as
    the row."""
    run = Run.from_pipeline(
        run_pipeline(
            'lcwa',
            training_loop_kwargs=dict(
                loss_weighter='relation',
                loss_weighter_kwargs=dict(weights=(torch.arange(R) >= 20).double()),
            ),
        )
    )
    triples = run.training.mapped_triples
    for objective in ('training', 'training-row'):
        scores = TracIn(run, objective, weighting='sgd', progress=False).scores(
            triples[triples[:, 1] > 30][:1]
        )[0]
        assert scores[triples[:, 1] < 20].abs().max() == 0
        assert scores[triples[:, 1] >= 20].abs().max() > 0


def test_part_of_the_row_with_weights() -> None:
    """The triple's part is the row's loss less that of the row without the triple, each with the
    row's weight."""
    result = run_pipeline('lcwa', **WEIGHER)
    run, model = Run.from_pipeline(result), result.model.eval()
    triples = run.training.mapped_triples[700:704]
    params = list(model.get_grad_params())
    found = []
    for triple, (row,) in zip(triples, lcwa_batches(result, run, triples)):
        without = dict(row, target=row['target'].clone())
        without['target'][0, triple[2]] = 0.0
        loop, alone = result.training_loop, without['target'].sum() == 0
        loss = loop._process_batch(row, 0, 1) - (0 if alone else loop._process_batch(without, 0, 1))
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, params)]))
    want = LR * torch.stack(found) @ torch.stack(found).T
    have = (
        TracIn(run, 'training', weighting='sgd', progress=False).scores(triples, triples).double()
    )
    assert (have - want).abs().max() <= 1e-6 * want.abs().max()


def test_key_and_pickle() -> None:
    "Weights and targets are part of the key of an objective, and go to workers with it."
    model = run_pipeline().model
    training = Run.from_pipeline(run_pipeline()).training
    twice = dict(loss_weighter='relation', loss_weighter_kwargs=dict(weights=2 * WEIGHTS))
    runs = [
        Run.from_model(model, training, learning_rates=[LR], loop=loop, **weights)
        for loop in ('slcwa', 'lcwa')
        for weights in ({}, BY_RELATION, twice, dict(loss_weighter=ByHead()))
    ]
    heads = Run.from_pipeline(run_pipeline('lcwa', training_loop_kwargs=dict(target='head')))
    keys = [objective_key('training', run) for run in (*runs, heads)]
    assert len(set(keys)) == len(keys)
    again = pickle.loads(pickle.dumps(make_objective('training', runs[1])))
    assert torch.equal(again.weighter.weights, WEIGHTS)


def test_ensemble_of_other_losses() -> None:
    "What a loss does not print of itself is compared, too."
    result = run_pipeline()
    about = [dict(loss=BCEWithLogitsLoss(pos_weight=w)) for w in (2.0, 3.0)] + [
        dict(loss='bcewithlogits', **BY_RELATION)
    ]
    runs = [
        Run.from_model(result.model, result.training, learning_rates=[LR], **how) for how in about
    ]
    with pytest.raises(ValueError, match='differ in loss'):
        ensemble(runs[:2])
    with pytest.raises(ValueError, match='loss_weighter'):
        ensemble([Run.from_pipeline(result), runs[2]])


# ---- what is left out is named


class Shake(TrainingCallback):
    "Does something to the training."


CONVE = dict(
    embedding_dim=4,
    embedding_height=2,
    embedding_width=2,
    output_channels=2,
    kernel_height=2,
    kernel_width=2,
)
LEFT_OUT = {
    'regulariser of a representation': (
        dict(
            model_kwargs=dict(
                embedding_dim=4, regularizer_kwargs=dict(weight=0.2, p=3.0, normalize=True)
            )
        ),
        ['LpRegularizer, weight 0.2'],
    ),
    'regulariser of the model': (
        dict(regularizer='lp', regularizer_kwargs=dict(weight=0.3)),
        ['weight 0.3'],
    ),
    'constrainer': (dict(model='TransE'), ['constraints', 'normalize']),
    'dropout and batch norm': (
        dict(model='ConvE', model_kwargs=CONVE),
        ['dropout', 'batch statistics', 'the last batch of each epoch, skipped'],
    ),
    'clipping': (
        dict(
            training_kwargs=dict(
                callbacks='gradient-norm-clipping', callbacks_kwargs=dict(max_norm=1.0)
            )
        ),
        ['gradient-norm-clipping'],
    ),
    'callbacks': (dict(training_kwargs=dict(callbacks=[Shake])), ['Shake']),
    'dropped batch': (
        dict(training_kwargs=dict(drop_last=True)),
        ['the last batch of each epoch, skipped'],
    ),
    'subgraphs': (
        dict(training_kwargs=dict(sampler='schlichtkrull', batch_size=512)),
        ['schlichtkrull'],
    ),
    'optimiser': (
        dict(optimizer_kwargs=dict(lr=LR, weight_decay=0.01, momentum=0.9)),
        ['weight decay 0.01', 'momentum 0.9'],
    ),
    'weighted mean': (dict(WEIGHER, loss='mse'), ['divides by the sum of the weights']),
}


@pytest.mark.parametrize('name', LEFT_OUT)
def test_left_out(name: str) -> None:
    options, words = LEFT_OUT[name]
    said = check(run_pipeline(**options))['left_out']
    for word in words:
        assert any(word in line for line in said), said


WATCHED = dict(
    callbacks=['checkpoint'],
    callbacks_kwargs=dict(schedule='explicit', schedule_kwargs=dict(steps=[])),
)


@pytest.mark.parametrize(
    'options', [{}, WEIGHER, dict(training_kwargs=dict(WATCHED, sub_batch_size=16))]
)
def test_nothing_left_out(options: dict[str, Any]) -> None:
    "ERMLP has no constraint and no regulariser."
    run = Run.from_pipeline(run_pipeline(model='ERMLP', **options))
    one = run.training.mapped_triples[:1]
    assert (
        TracIn(run, weighting='sgd', progress=False).explain(one, train=one, k=1).facts['left_out']
        == []
    )


def test_bf16_is_named(tmp_path: Path) -> None:
    run = train(
        'nations',
        'ERMLP',
        out=tmp_path / 'run',
        epochs=1,
        precision='bf16',
        device='cpu',
        progress=False,
        model_kwargs=dict(embedding_dim=4),
        training_kwargs=dict(drop_last=True),
    )
    said = TracIn(run, weighting='sgd', progress=False).self_influence(k=1).facts['left_out']
    assert said == [
        'the last batch of each epoch, skipped if it was not full',
        'scores in bfloat16 in training',
    ]


# ---- early stopping

STOPPER = dict(
    stopper='early', clear_optimizer=False, optimizer='adam', optimizer_kwargs=dict(lr=LR)
)


def plain_adam(epochs: int) -> Run:
    "The same training without a stopper."
    return Run.from_pipeline(
        run_pipeline(
            optimizer='adam', optimizer_kwargs=dict(lr=LR), training_kwargs=dict(num_epochs=epochs)
        )
    )


def test_stopped_early() -> None:
    """The weights are those of the best epoch, and the run says so; the optimiser is of the last
    one, and is not used."""
    stopper = dict(frequency=1, patience=2, relative_delta=0.2)
    result = run_pipeline(stopper_kwargs=stopper, training_kwargs=dict(num_epochs=20), **STOPPER)
    best = result.stopper.best_epoch
    assert result.stopper.stopped and best < len(result.losses) < 20
    run, facts = Run.from_pipeline(result), check(result)
    same = plain_adam(best)
    assert run.fingerprint(0) == same.fingerprint(0)
    assert facts['checkpoints'][0]['epoch'] == best == run.stopped['best_epoch']
    assert run.stopped['epoch'] == len(
        result.losses
    ) and f'checkpoints at epoch {best} (lr' in repr(run)
    assert f'the weights are those of epoch {best}' in repr(run)
    assert run.moments(0) is None and run.checkpoints[0].step is None


def test_not_stopped() -> None:
    "Patience that lasts leaves the weights of the last epoch, better or not."
    stopper = dict(frequency=1, patience=50)
    result = run_pipeline(stopper_kwargs=stopper, training_kwargs=dict(num_epochs=3), **STOPPER)
    run = Run.from_pipeline(result)
    same = plain_adam(3)
    assert run.fingerprint(0) == same.fingerprint(0)
    assert (run.checkpoints[0].epoch, run.stopped, run.checkpoints[0].step) == (3, None, 3 * 7)
    one = run.training.mapped_triples[:1]
    assert TracIn(run, weighting='adam', progress=False).scores(one, one).item() > 0


def test_gone_on_from_a_checkpoint(tmp_path: Path) -> None:
    where = dict(
        checkpoint_name='all.pt', checkpoint_directory=str(tmp_path), checkpoint_frequency=0
    )
    for epochs in (1, 2):
        result = run_pipeline(
            random_seed=9, optimizer='adam', training_kwargs=dict(where, num_epochs=epochs)
        )
    run = Run.from_pipeline(result)
    assert (run.checkpoints[0].epoch, run.seed) == (2, 9)
    check(result)


def test_rate_of_an_optimiser_of_the_user() -> None:
    """PyKEEN goes by the first group of an optimiser, its record by the default that the group
    overrides."""
    from pykeen.datasets import Nations
    from pykeen.models import DistMult

    model = DistMult(triples_factory=Nations().training, embedding_dim=4)
    optimizer = torch.optim.SGD([dict(params=list(model.parameters()), lr=0.5)], lr=0.01)
    result = run_pipeline(
        model=model, optimizer=optimizer, optimizer_kwargs=None, clear_optimizer=False
    )
    assert Run.from_pipeline(result).checkpoints[0].learning_rate == 0.5


# ---- `train`

SMALL = dict(
    model='ERMLP',
    model_kwargs=dict(embedding_dim=4),
    epochs=2,
    optimizer='SGD',
    lr=0.5,
    device='cpu',
    progress=False,
)


@pytest.mark.parametrize('loop', ['slcwa', 'lcwa'])
def test_train_with_weights(loop: str, tmp_path: Path) -> None:
    """Relations of weight 0 never move; the weights are in the folder, and in what is computed
    from it."""
    weights = (torch.arange(R) >= 20).float() * 1.7
    how = SMALL | dict(
        loop=loop,
        loss='bcewithlogits',
        loss_weighter='relation',
        loss_weighter_kwargs=dict(weights=weights),
    )
    run = train('nations', out=tmp_path / 'run', **how)
    name = 'relation_representations.0._embeddings.weight'
    first, last = build_model(run.settings, run.training).state_dict()[name], run.state(-1)[name]
    assert torch.equal(first[:20], last[:20]) and (first[20:] != last[20:]).any(1).all()
    assert torch.equal(Run.open(tmp_path / 'run').loss_weighter.weights, weights)
    assert train('nations', out=tmp_path / 'run', resume=True, **how).fingerprint(
        -1
    ) == run.fingerprint(-1)
    with pytest.raises(RunError, match='loss_weighter_kwargs'):
        train(
            'nations',
            out=tmp_path / 'run',
            resume=True,
            **how | dict(loss_weighter_kwargs=dict(weights=weights + 1)),
        )
    triples = run.training.mapped_triples
    scores = TracIn(run, weighting='sgd', progress=False).scores(
        triples[triples[:, 1] > 30][:1], triples[::9]
    )[0]
    assert (scores[triples[::9, 1] < 20] == 0).all() and (scores != 0).any()


def test_older_folder(tmp_path: Path) -> None:
    "A folder that was written before there were weights has none."
    train('nations', out=tmp_path / 'run', **SMALL)
    path = tmp_path / 'run' / 'run.json'
    facts = json.loads(path.read_text())
    for name in ('loss_weighter', 'loss_weighter_kwargs'):
        facts['settings'].pop(name)
    path.write_text(json.dumps(facts))
    assert Run.open(tmp_path / 'run').loss_weighter is None
    train('nations', out=tmp_path / 'run', resume=True, **SMALL)


def test_train_clips(tmp_path: Path) -> None:
    "14 steps of at most 0.5 * 0.01 in length, where they were longer; the result says so."
    clip = dict(gradient_clipping_max_norm=0.01)
    run = train(
        'nations', out=tmp_path / 'run', training_kwargs=clip, loss='bcewithlogits', **SMALL
    )
    free = train('nations', out=tmp_path / 'free', loss='bcewithlogits', **SMALL)
    first = build_model(run.settings, run.training).state_dict()
    moved = [
        torch.cat([(r.state(-1)[n] - first[n]).flatten() for n in first]).norm().item()
        for r in (run, free)
    ]
    assert 0 < moved[0] <= 14 * 0.5 * 0.01 * (1 + 1e-5) < moved[1]
    one = run.training.mapped_triples[:1]
    facts = TracIn(run, weighting='sgd', progress=False).explain(one, train=one, k=1).facts
    assert facts['left_out'] == ['gradient clipping (max_norm 0.01)']


# ---- what is refused, in one line

REFUSED = {
    'heads and tails at once': (
        dict(loop='symmetriclcwa', loss='crossentropy'),
        'SymmetricLCWATrainingLoop is neither',
    ),
    'rows of relations': (
        dict(loop='lcwa', training_loop_kwargs=dict(target='relation')),
        'over relations is neither',
    ),
    'a scheduler': (
        dict(lr_scheduler='exponential', lr_scheduler_kwargs=dict(gamma=0.5)),
        'give learning_rates',
    ),
    'a climber': (dict(optimizer_kwargs=dict(lr=1e-4, maximize=True)), 'maximize=True'),
}


@pytest.mark.parametrize('name', REFUSED)
def test_refused_pipeline(name: str) -> None:
    options, words = REFUSED[name]
    with pytest.raises(RunError, match=words) as e:
        Run.from_pipeline(run_pipeline(**options))
    assert '\n' not in str(e.value)


class Scaled(CrossEntropyLoss):
    "A loss with a parameter that is trained."

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def process_lcwa_scores(self, predictions: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return super().process_lcwa_scores(predictions * self.scale, *args, **kwargs)


def test_refused_loss_that_learns() -> None:
    run = Run.from_pipeline(run_pipeline('lcwa', loss=Scaled))
    with pytest.raises(ValueError, match='Scaled was trained itself .scale.'):
        TracIn(run, weighting='sgd')
    one = run.training.mapped_triples[:1]
    assert TracIn(run, 'softmax', weighting='sgd', progress=False).scores(one, one).item() > 0


REFUSED_IN_TRAIN = {
    'loss without weights': (
        dict(loss='nssa', **BY_RELATION),
        'NSSALoss does not support sample weights',
    ),
    'pairs without weights': (
        dict(loss='marginranking', loop='lcwa', **BY_RELATION),
        'does not support sample weights',
    ),
    'weights and a filter': (
        dict(loss='mse', negative_sampler_kwargs=dict(filtered=True), **BY_RELATION),
        'filtered',
    ),
    'too few weights': (dict(loss='mse', inverse=True, **BY_RELATION), '110 finite numbers'),
    'weights that are not finite': (
        dict(
            loss='mse',
            loss_weighter='relation',
            loss_weighter_kwargs=dict(weights=[float('nan')] * R),
        ),
        '55 finite numbers',
    ),
    'no such weighter': (dict(loss='mse', loss_weighter='entity'), 'it knows: relation'),
    'a weighter of the user': (dict(loss='mse', loss_weighter=ByHead()), 'loss_weighter'),
    'weights without weighter': (
        dict(loss_weighter_kwargs=dict(weights=[1.0])),
        'without a loss_weighter',
    ),
    'loss as an instance': (dict(loss=MSELoss()), 'loss=MSELoss.* is an instance: give the name'),
    'loss of the user': (
        dict(loss=HalfLoss),
        "loss='HalfLoss' is not one that PyKEEN can find by name",
    ),
    'a climber': (dict(optimizer_kwargs=dict(maximize=True)), 'maximize=True'),
    'norm type alone': (
        dict(training_kwargs=dict(gradient_clipping_norm_type=1.0)),
        'without gradient_clipping_max_norm',
    ),
}


@pytest.mark.parametrize('name', REFUSED_IN_TRAIN)
def test_refused_in_train(name: str, tmp_path: Path) -> None:
    options, words = REFUSED_IN_TRAIN[name]
    with pytest.raises(RunError, match=words) as e:
        train('nations', out=tmp_path / 'run', **SMALL | options)
    assert '\n' not in str(e.value) and not (tmp_path / 'run').exists()


def test_train_command_with_weights(tmp_path: Path) -> None:
    "The command has the options, and refuses what `train` does in one line."
    ask = [
        'train',
        'nations',
        '--out',
        str(tmp_path / 'run'),
        '--model',
        'ERMLP',
        '--epochs',
        '1',
        '--loss',
        'mse',
        '--model-kwargs',
        '{"embedding_dim": 4}',
        '--device',
        'cpu',
        '--loss-weighter',
        'relation',
        '--loss-weighter-kwargs',
    ]
    short = CliRunner().invoke(main, [*ask, '{"weights": [1.0]}'])
    assert (
        short.exit_code and '55 finite numbers' in short.output and 'Traceback' not in short.output
    )
    done = CliRunner().invoke(main, [*ask, json.dumps(dict(weights=WEIGHTS.tolist()))])
    assert done.exit_code == 0, done.output
    assert torch.equal(Run.open(tmp_path / 'run').loss_weighter.weights, WEIGHTS)


def test_refused_weights_of_a_model() -> None:
    result = run_pipeline(loss='crossentropy')
    with pytest.raises(RunError, match='CrossEntropyLoss does not support sample weights'):
        Run.from_model(result.model, result.training, learning_rates=[LR], **BY_RELATION)
