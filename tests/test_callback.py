"""`callbacks='tracin'` keeps what `train` keeps, of any training by PyKEEN, and disturbs none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pykeen.datasets import Dataset, EagerDataset
from pykeen.losses import BCEWithLogitsLoss
from pykeen.models import ConvE, DistMult, TransE
from pykeen.nn.init import xavier_uniform_
from pykeen.pipeline import PipelineResult, pipeline
from pykeen.regularizers import LpRegularizer
from pykeen.training import LCWATrainingLoop, SLCWATrainingLoop
from pykeen.training.callbacks import GradientNormClippingTrainingCallback as Clip
from pykeen.training.callbacks import TrainingCallback
from pykeen.triples.weights import RelationLossWeighter
from pykeen.utils import set_random_seed

from tracin_nb import KeepRun, Run, TracIn, train
from tracin_nb.graph.names import names_of
from tracin_nb.graph.triples import load_dataset
from tracin_nb.runs import loop as loop_module
from tracin_nb.runs.keeping import read_facts
from tracin_nb.runs.loop import build_loop
from tracin_nb.runs.models import build_model, state_fingerprint
from tracin_nb.runs.settings import RunError


def few_nations(inverse: bool = False) -> Dataset:
    "A third of the training triples of Nations, and a few others"
    data = load_dataset('nations', inverse=inverse)
    training = data.training.clone_and_exchange_triples(data.training.mapped_triples[::3])
    rest = (
        f.clone_and_exchange_triples(f.mapped_triples[:9]) for f in (data.testing, data.validation)
    )
    return EagerDataset(training, *rest)


NATIONS = few_nations()
SMALL: dict[str, Any] = dict(
    dataset=NATIONS,
    model='DistMult',
    model_kwargs=dict(embedding_dim=4),
    epochs=2,
    random_seed=5,
    device='cpu',
    use_tqdm=False,
    evaluation_kwargs=dict(use_tqdm=False),
)


def piped(out: Path, keep_every: int = 1, kept: Any = None, **options: Any) -> PipelineResult:
    "A pipeline that keeps a run in `out`."
    how = dict(out=out, keep_every=keep_every) | (kept or {})
    more = options.pop('training_kwargs', {})
    kwargs = dict(callbacks='tracin', callbacks_kwargs=how) | more
    return pipeline(**SMALL | options, training_kwargs=kwargs)


# ---- equal to `train`


TRAINED: dict[str, dict[str, Any]] = dict(
    slcwa=dict(
        loss='NSSA',
        loss_kwargs=dict(margin=4.0),
        num_negs_per_pos=3,
        lr_scheduler='exponential',
        lr_scheduler_kwargs=dict(gamma=0.5),
    ),
    lcwa=dict(loop='lcwa', loss='bcewithlogits', label_smoothing=0.1, optimizer='adagrad'),
    weighted=dict(loss='softplus', loss_weighter='relation', optimizer='sgd', lr=0.1),
    clipped=dict(training_kwargs=dict(sub_batch_size=64, gradient_clipping_max_norm=0.5)),
)


@pytest.mark.parametrize(
    ('name', 'inverse'), [('slcwa', False), ('lcwa', True), ('weighted', True), ('clipped', False)]
)
def test_equal_to_train(name: str, inverse: bool, tmp_path: Path) -> None:
    """The same training by `train` and by PyKEEN's loop: the same files but for the digests of
    archives, the same weights, rates and moments, the same explanation."""
    asked = dict(TRAINED[name])
    data = few_nations(inverse)
    if 'loss_weighter' in asked:
        weights = [1 + i % 3 for i in range(data.training.num_relations)]
        asked |= dict(loss_weighter_kwargs=dict(weights=list(map(float, weights))))
    asked = dict(model_kwargs=dict(embedding_dim=4), epochs=4, keep_every=3, seed=5) | asked
    own = train(data, 'DistMult', out=tmp_path / 'own', device='cpu', progress=False, **asked)
    settings = own.settings
    model = build_model(settings, data.training)
    set_random_seed(5)
    loop = build_loop(settings, model, data.training)
    keep = KeepRun(tmp_path / 'kept', 3, validation=data.validation, testing=data.testing, seed=5)
    how = dict(settings['training_kwargs'])
    clip = how.pop('gradient_clipping_max_norm', None)
    loop.train(
        data.training,
        num_epochs=4,
        batch_size=256,
        label_smoothing=settings['label_smoothing'],
        continue_training=True,
        use_tqdm=False,
        callbacks=[keep, *([Clip(clip)] if clip else [])],
        **how,
    )
    kept = Run.open(tmp_path / 'kept')
    assert [c.fingerprint for c in kept.checkpoints] == [c.fingerprint for c in own.checkpoints]
    for one, other in zip(kept.checkpoints, own.checkpoints):
        assert (one.epoch, one.step, one.learning_rate) == (
            other.epoch,
            other.step,
            other.learning_rate,
        )
    for k in range(len(own.checkpoints)):
        states = kept.optimizer_state(k), own.optimizer_state(k)
        assert states[0].keys() == states[1].keys()
        for parameter, state in states[0].items():
            assert all(torch.equal(t, states[1][parameter][n]) for n, t in state.items())
    facts = [read_facts(run.folder) for run in (kept, own)]
    for part in ('optimizer', 'dataset', 'losses', 'evaluations', 'stopped', 'packages'):
        assert facts[0][part] == facts[1][part], part
    assert facts[0]['files']['triples'] == facts[1]['files']['triples']
    differ = {n for n in facts[1]['settings'] if facts[0]['settings'][n] != facts[1]['settings'][n]}
    # a default that is not written down on one side
    assert differ <= {'optimizer_kwargs', 'loss_kwargs', 'negative_sampler_kwargs'}
    if name == 'slcwa':
        asked = dict(objective='training', weighting='adam', progress=False, devices='cpu')
        test = NATIONS.testing.mapped_triples[:2]
        results = [TracIn(run, **asked).explain(test, k=3).frame for run in (kept, own)]
        assert results[0].equals(results[1])


# ---- any pipeline


class Loud(TrainingCallback):
    "A callback of the user."


PIPES: dict[str, dict[str, Any]] = {
    'plain': {},
    'lcwa': dict(
        training_loop='lcwa', training_kwargs=dict(label_smoothing=0.1), loss='bcewithlogits'
    ),
    'heads': dict(training_loop='lcwa', training_loop_kwargs=dict(target='head')),
    'inverse': dict(dataset=few_nations(inverse=True)),
    'negatives': dict(
        loss='NSSA',
        loss_kwargs=dict(adversarial_temperature=0.5),
        negative_sampler='bernoulli',
        negative_sampler_kwargs=dict(num_negs_per_pos=8),
    ),
    'regularized': dict(regularizer='LP', regularizer_kwargs=dict(weight=0.1, p=3.0)),
    'function': dict(
        model_kwargs=dict(embedding_dim=4, entity_initializer=torch.nn.init.xavier_normal_)
    ),
    'schedule': dict(lr_scheduler='StepLR', lr_scheduler_kwargs=dict(step_size=1, gamma=0.5)),
    'weighter': dict(
        loss='softplus',
        training_loop_kwargs=dict(loss_weighter=RelationLossWeighter(torch.linspace(1, 2, 55))),
    ),
    'object': dict(
        model=TransE(
            triples_factory=NATIONS.training, embedding_dim=6, scoring_fct_norm=2, random_seed=3
        ),
        model_kwargs=None,
    ),
}
KEPT: dict[str, dict[str, Any]] = {
    'lcwa': dict(loop='lcwa', label_smoothing=0.1),
    'negatives': dict(negative_sampler='bernoulli', loss='nssa'),
    'schedule': dict(lr_scheduler='step', lr_scheduler_kwargs=dict(step_size=1, gamma=0.5)),
    'heads': dict(target='head'),
    'inverse': dict(inverse=True),
    'object': dict(model='transe', model_kwargs=dict(embedding_dim=6, scoring_fct_norm=2)),
}


@pytest.mark.parametrize('name', PIPES)
def test_pipelines(name: str, tmp_path: Path) -> None:
    "What is kept is the model that the pipeline returns, with its settings and its last moments."
    result = piped(tmp_path / 'run', **PIPES[name])
    run = Run.open(tmp_path / 'run')
    assert [c.epoch for c in run.checkpoints] == [1, 2]
    assert run.fingerprint(-1) == state_fingerprint(result.model.state_dict())
    assert run.seed == 5 and run.model(-1, 'cpu') is not None
    for n, value in KEPT.get(name, {}).items():
        assert run.settings[n] == value, n
    assert torch.equal(run.testing.mapped_triples, NATIONS.testing.mapped_triples)
    again = Run.from_pipeline(result, learning_rates=[run.checkpoints[-1].learning_rate])
    for n in ('loop', 'target', 'label_smoothing', 'seed'):
        assert getattr(run, n) == getattr(again, n), n
    assert (
        run.sampler().num_negs_per_pos == again.sampler().num_negs_per_pos
        if (run.loop == 'slcwa')
        else True
    )


def test_training_is_not_disturbed(tmp_path: Path) -> None:
    "The pipeline gives the same weights, bit for bit, without the callback."
    kept, alone = piped(tmp_path / 'run'), pipeline(**SMALL)
    states = [state_fingerprint(r.model.state_dict()) for r in (kept, alone)]
    assert states[0] == states[1] and kept.losses == alone.losses


def test_other_callbacks_are_named(tmp_path: Path) -> None:
    "Another callback may have changed the training, so it is told."
    both = [partial(KeepRun, tmp_path / 'run', 1)(), Loud()]
    pipeline(**SMALL, training_kwargs=dict(callbacks=both))
    assert Run.open(tmp_path / 'run').settings['training_kwargs'] == dict(callbacks=['Loud'])


# ---- early stopping


def test_early_stopping_ends_with_the_best_epoch(tmp_path: Path) -> None:
    "The run ends with the weights that PyKEEN puts back, wherever the schedule has its epochs."
    stopping = dict(frequency=2, patience=2, relative_delta=0.5)
    result = piped(tmp_path / 'run', 3, epochs=30, stopper='early', stopper_kwargs=stopping)
    run = Run.open(tmp_path / 'run')
    assert result.stopper.stopped and run.stopped['best_epoch'] == result.stopper.best_epoch
    assert run.checkpoints[-1].epoch == result.stopper.best_epoch
    assert run.fingerprint(-1) == state_fingerprint(result.model.state_dict())
    assert 'the weights are those of epoch' in repr(run)
    kept = {p.name for p in (tmp_path / 'run').glob('checkpoint-*')}
    assert len(kept) == 2 * len(run.checkpoints)


def test_early_stopping_that_does_not_stop(tmp_path: Path) -> None:
    "Then the run is as scheduled, and no best epoch is left between."
    stopping = dict(frequency=1, patience=20)
    piped(tmp_path / 'run', 4, epochs=6, stopper='early', stopper_kwargs=stopping)
    run = Run.open(tmp_path / 'run')
    assert [c.epoch for c in run.checkpoints] == [4, 6] and run.stopped is None


class Enough(TrainingCallback):
    "Tells the loop to stop after two epochs."

    def post_epoch(self, epoch: int, epoch_loss: float, **kwargs: Any) -> None:
        self.training_loop._should_stop = epoch == 2


def test_stopped_by_a_callback(tmp_path: Path) -> None:
    both = [KeepRun(tmp_path / 'run', 4), Enough()]
    result = pipeline(**SMALL | dict(epochs=9), training_kwargs=dict(callbacks=both))
    run = Run.open(tmp_path / 'run')
    assert [c.epoch for c in run.checkpoints] == [2] and 'a callback stopped' in run.stopped['why']
    assert run.fingerprint(-1) == state_fingerprint(result.model.state_dict())


# ---- interrupted, refused


class Dies(TrainingCallback):
    "Ends the training as if it were killed."

    def post_batch(self, epoch: int, batch: Any, **kwargs: Any) -> None:
        if epoch == 3:
            raise KeyboardInterrupt


def test_interrupted(tmp_path: Path) -> None:
    "What there is opens, and says how much is missing."
    with pytest.raises(KeyboardInterrupt):
        both = [KeepRun(tmp_path / 'run', 1), Dies()]
        pipeline(**SMALL | dict(epochs=5), training_kwargs=dict(callbacks=both))
    run = Run.open(tmp_path / 'run')
    assert [c.epoch for c in run.checkpoints] == [1, 2] and '3 to come' in repr(run)


def test_begun_again(tmp_path: Path) -> None:
    "A folder in which nothing was kept yet may be taken again."
    for keep_every in (4, 1):
        both = [KeepRun(tmp_path / 'run', keep_every), Dies()]
        with pytest.raises(KeyboardInterrupt):
            pipeline(**SMALL | dict(epochs=5), training_kwargs=dict(callbacks=both))
    assert len(Run.open(tmp_path / 'run').checkpoints) == 2


def test_folder_is_never_written_over(tmp_path: Path) -> None:
    "Not even by the same callback."
    keep = KeepRun(tmp_path / 'run')
    pipeline(**SMALL, training_kwargs=dict(callbacks=keep))
    with pytest.raises(RunError, match='holds a run already: give another folder'):
        pipeline(**SMALL, training_kwargs=dict(callbacks=keep))
    with pytest.raises(RunError, match='holds a run already: give another folder'):
        KeepRun(tmp_path / 'run')
    (tmp_path / 'other').mkdir()
    (tmp_path / 'other' / 'notes.txt').touch()
    with pytest.raises(RunError, match='is not empty and holds no run'):
        KeepRun(tmp_path / 'other')
    with pytest.raises(RunError, match='is a file'):
        KeepRun(tmp_path / 'other' / 'notes.txt')


class Intrudes(TrainingCallback):
    "Another training takes the folder."

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def post_epoch(self, epoch: int, epoch_loss: float, **kwargs: Any) -> None:
        text = (self.folder / 'run.json').read_text()
        (self.folder / 'run.json').unlink()
        (self.folder / 'run.json').write_text(text + ' ')


def test_two_trainings_in_one_folder(tmp_path: Path) -> None:
    "The one that lost the folder says so, and goes on."
    both = [KeepRun(tmp_path / 'run', 2), Intrudes(tmp_path / 'run')]
    with pytest.warns(UserWarning, match='epoch 2 is not kept: another training writes into this'):
        result = pipeline(**SMALL, training_kwargs=dict(callbacks=both))
    assert len(result.losses) == SMALL['epochs'] and not [*(tmp_path / 'run').glob('*.pt')]


class Full:
    "A disk that is full while these epochs are kept."

    def __init__(self, monkeypatch: pytest.MonkeyPatch, epochs: set[int]) -> None:
        self.epochs, self.real = epochs, loop_module.write_torch
        monkeypatch.setattr(loop_module, 'write_torch', self)

    def __call__(self, path: Path, save: Any) -> Any:
        if int(path.name[len('checkpoint-') :][:4]) in self.epochs:
            raise OSError(28, 'No space left on device', str(path))
        return self.real(path, save)


@pytest.mark.parametrize('lost', [{2}, {1, 3}, {1, 2, 3}])
def test_full_disk(lost: set[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "The training ends as it would have, and the run lacks what could not be written."
    Full(monkeypatch, lost)
    with pytest.warns(UserWarning) as warned:
        result = piped(tmp_path / 'run', 1, epochs=3)
    assert len(result.losses) == 3
    said = [str(w.message) for w in warned if 'kept' in str(w.message)]
    assert f'epoch {min(lost)} is not kept: [Errno 28] No space left on device' in said[0]
    epochs = ', '.join(map(str, sorted(lost)))
    assert f'lacks the epochs {epochs}, which' in said[-1]
    monkeypatch.undo()
    if lost == {1, 2, 3}:  # such a folder may be taken again, and nothing was disturbed
        again = piped(tmp_path / 'run', 3, epochs=3)
        states = [state_fingerprint(r.model.state_dict()) for r in (again, result)]
        assert states[0] == states[1] == Run.open(tmp_path / 'run').fingerprint(-1)
        return
    run = Run.open(tmp_path / 'run')
    assert [c.epoch for c in run.checkpoints] == sorted({1, 2, 3} - lost)
    assert f'could not be kept: epoch {epochs}' in repr(run) and 'to come' not in repr(run)


def test_full_disk_and_early_stopping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "A run whose best epoch is lost ends with what there is."
    stopping = dict(stopper='early', stopper_kwargs=dict(frequency=1, patience=1, relative_delta=9))
    Full(monkeypatch, {1})
    with pytest.warns(UserWarning, match='cannot end with epoch 1, which is not stored'):
        result = piped(tmp_path / 'run', 1, epochs=4, **stopping)
    assert result.stopper.best_epoch == 1
    assert [c.epoch for c in Run.open(tmp_path / 'run').checkpoints] == [2]


@pytest.mark.parametrize('out', ['file/run', 'x' * 300, 'locked/run'])
def test_folder_that_cannot_be_made(
    out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / 'file').touch()
    (tmp_path / 'locked').mkdir()
    can = os.access
    monkeypatch.setattr(os, 'access', lambda p, mode: can(p, mode) and Path(p).name != 'locked')
    with pytest.raises(RunError, match='out=.*cannot be .*: give another folder'):
        KeepRun(tmp_path / out)


class Moves(TrainingCallback):
    "Changes the working directory."

    def post_epoch(self, epoch: int, epoch_loss: float, **kwargs: Any) -> None:
        os.chdir('/')


def test_relative_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    both = [KeepRun('run', 1), Moves()]
    pipeline(**SMALL, training_kwargs=dict(callbacks=both))
    assert len(Run.open(tmp_path / 'run').checkpoints) == 2


def conve(**options: Any) -> ConvE:
    sizes = dict(embedding_dim=8, output_channels=2, embedding_height=2, embedding_width=4)
    more = dict(kernel_height=2, kernel_width=2, **options)
    return ConvE(triples_factory=NATIONS.training, **sizes, **more)


@pytest.mark.parametrize(
    ('model', 'said'),
    [
        (lambda: conve(random_seed=0), 'give what it was made with: callbacks_kwargs=dict'),
        (lambda: TransE(triples_factory=NATIONS.training), 'has no seed'),
    ],
)
def test_asked_before_the_first_step(model: Any, said: str, tmp_path: Path) -> None:
    "What is not known is asked for, and nothing is left behind."
    made = model()
    loop = SLCWATrainingLoop(model=made, triples_factory=NATIONS.training, optimizer='adam')
    with pytest.raises(RunError, match=said):
        loop.train(NATIONS.training, use_tqdm=False, callbacks=KeepRun(tmp_path / 'run'))
    assert not (tmp_path / 'run').exists() and loop.losses_per_epochs == []


def test_objects_in_model_kwargs(tmp_path: Path) -> None:
    "What a model was made with is told as it was given; what has no name is refused."
    made = dict(embedding_dim=4, entity_initializer=xavier_uniform_, regularizer=LpRegularizer(p=3))
    model = DistMult(triples_factory=NATIONS.training, random_seed=0, **made)
    loop = SLCWATrainingLoop(model=model, triples_factory=NATIONS.training, optimizer='adam')
    keep = KeepRun(tmp_path / 'run', model_kwargs=made)
    loop.train(NATIONS.training, num_epochs=1, use_tqdm=False, callbacks=keep)
    run = Run.open(tmp_path / 'run')
    assert run.settings['model_kwargs']['entity_initializer'] == 'xavier_uniform_'
    assert run.fingerprint(-1) == state_fingerprint(model.state_dict())
    own = type('Mine', (BCEWithLogitsLoss,), {})
    for asked in (dict(loss=own), dict(model_kwargs=dict(entity_initializer=lambda x: x))):
        with pytest.raises(RunError, match=r'Nothing was trained yet; .*TracIn\(result\) of a'):
            piped(tmp_path / 'none', **asked)
        assert not (tmp_path / 'none').exists()


def test_names(tmp_path: Path) -> None:
    table = tmp_path / 'names.csv'
    table.write_text("name,id,type\nPeople's Republic of China,china,Country\n")
    with pytest.raises(ValueError, match="'nobody', is a label of the graph"):
        piped(tmp_path / 'run', kept=dict(names=dict(nobody='x')))
    piped(tmp_path / 'run', kept=dict(names=table))
    run = Run.open(tmp_path / 'run')
    assert run.names.name == {'china': "People's Republic of China"}
    assert run.names == names_of(run.testing) == names_of(run.validation)
    assert run.predict("People's Republic of China", 'embassy', k=1)['head'][0] == 'china'


def test_loop_of_ones_own(tmp_path: Path) -> None:
    "By name, with what was asked for; two trainings of one loop are two runs."
    made = conve(random_seed=0, input_dropout=0.4)
    kwargs = dict(embedding_dim=8, output_channels=2, embedding_height=2, embedding_width=4)
    kwargs |= dict(kernel_height=2, kernel_width=2)
    loop = LCWATrainingLoop(model=made, triples_factory=NATIONS.training, optimizer='sgd')
    go = partial(loop.train, NATIONS.training, use_tqdm=False, callbacks='tracin')
    with pytest.raises(RunError, match=r'interaction.*\.p is 0.4 in training and 0.2'):
        go(callbacks_kwargs=dict(out=tmp_path / 'a', model_kwargs=kwargs))
    kwargs |= dict(input_dropout=0.4)
    go(callbacks_kwargs=dict(out=tmp_path / 'a', model_kwargs=kwargs))
    loop.optimizer.state[next(iter(made.parameters()))] = {}  # what PyKEEN wants of plain SGD
    more = dict(out=tmp_path / 'b', keep_every=1, model_kwargs=kwargs)
    go(num_epochs=3, continue_training=True, callbacks_kwargs=more)
    assert [c.epoch for c in Run.open(tmp_path / 'b').checkpoints] == [2, 3]
    assert Run.open(tmp_path / 'b').fingerprint(-1) == state_fingerprint(made.state_dict())
    assert Run.open(tmp_path / 'b').validation is None


# ---- the name


@pytest.mark.parametrize('first', ['tracin_nb', 'pykeen.training'])
def test_known_in_either_order(first: str) -> None:
    "And `import tracin_nb` brings in neither PyTorch nor PyKEEN."
    code = (
        'import sys, tracin_nb\n'
        'light = not {"torch", "pykeen"} & set(sys.modules)\n'
        'from pykeen.training import callback_resolver\n'
        'made = callback_resolver.make("tracin", dict(out="never-made"))\n'
        'print(light, type(made).__name__)'
    )
    done = subprocess.run(
        [sys.executable, '-c', f'import {first}\n{code}'], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(first == 'tracin_nb'), 'KeepRun']


def test_facts_are_json(tmp_path: Path) -> None:
    "And complete before the first checkpoint."
    with pytest.raises(KeyboardInterrupt):
        both = [KeepRun(tmp_path / 'run', 9), Dies()]
        pipeline(**SMALL | dict(epochs=9), training_kwargs=dict(callbacks=both))
    facts = json.loads((tmp_path / 'run' / 'run.json').read_text())
    assert facts['settings']['seed'] == 5 and facts['settings']['keep'] == [9]
    assert facts['checkpoints'] == []
