"""Checkpoint files of other programs: read as they are meant, refused with the reason, never
executed."""

import json
import logging
import os
import pickle
import random
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from models import CONVE, KWARGS, build, graph
from pykeen.checkpoints import save_model
from pykeen.datasets import Nations
from pykeen.models import Model, model_resolver
from pykeen.nn.modules import ConvEShapeInformation
from pykeen.pipeline import pipeline
from pykeen.training import SLCWATrainingLoop
from pykeen.training.callbacks import CheckpointTrainingCallback, TrainingCallback

from tracin_nb.influence.tracin import TracIn
from tracin_nb.runs.foreign import open_files
from tracin_nb.runs.reading import Opened, open_file, read_checkpoint_file
from tracin_nb.runs.recognition import KNOWN, images, recognise
from tracin_nb.runs.settings import RunError

logging.getLogger('pykeen').setLevel(logging.ERROR)
pytestmark = pytest.mark.filterwarnings('ignore')
E, R = (f'{kind}_representations.0._embeddings.weight' for kind in ('entity', 'relation'))
CONV, LINEAR = 'interaction.hr2d.2.weight', 'interaction.hr1d.0.weight'


@pytest.fixture(scope='module')
def trained() -> tuple[Model, SLCWATrainingLoop]:
    "A ConvE on Nations with inverse triples after two epochs of Adam, and its loop."
    torch.manual_seed(0)
    training = Nations(create_inverse_triples=True).training
    model = model_resolver.make('conve', CONVE, triples_factory=training, random_seed=0)
    loop = SLCWATrainingLoop(
        model=model, triples_factory=training, optimizer='adam', optimizer_kwargs=dict(lr=0.02)
    )
    loop.train(training, num_epochs=2, batch_size=512, use_tqdm=False)
    return model.eval(), loop


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "Training triples and label maps of Nations as files."
    folder, training = tmp_path_factory.mktemp('data'), Nations().training
    rows = training.label_triples(training.mapped_triples)
    (folder / 'train.tsv').write_text(
        ''.join('\t'.join(row) + '\n' for row in rows), encoding='utf-8'
    )
    for name in ('entity_to_id', 'relation_to_id'):
        lines = [f'{label}\t{i}\n' for label, i in getattr(training, name).items()]
        (folder / f'{name}.tsv').write_text(''.join(lines), encoding='utf-8')
    return folder


@pytest.fixture(scope='module')
def train(data: Path) -> Path:
    return data / 'train.tsv'


@pytest.fixture(scope='module')
def folder(trained, tmp_path_factory) -> Path:
    "The trained model as every kind of file."
    out, (model, loop) = tmp_path_factory.mktemp('files'), trained
    save_model(model, out / 'version.pt')
    model.save_state(out / 'protocol5.pt')
    torch.save(model.state_dict(), out / 'bare.pt')
    torch.save(model.state_dict(), out / 'legacy.pt', _use_new_zipfile_serialization=False)
    torch.save(
        dict(
            epoch=2,
            model_state_dict=model.state_dict(),
            optimizer_state_dict=loop.optimizer.state_dict(),
            model_config=dict(model='ConvE', **CONVE, num_entities=14),
        ),
        out / 'script.pt',
    )
    loop._save_state(out / 'loop.pt', triples_factory=graph(inverse=True))
    return out


@pytest.fixture(scope='module')
def pipe(tmp_path_factory) -> tuple[Path, Model]:
    "The folder of a PyKEEN pipeline, and its model."
    out = tmp_path_factory.mktemp('pipeline') / 'saved'
    result = pipeline(
        dataset='nations',
        model='TransE',
        model_kwargs=dict(embedding_dim=4, scoring_fct_norm=2),
        epochs=1,
        training_kwargs=dict(use_tqdm=False),
        evaluation_kwargs=dict(use_tqdm=False),
        random_seed=1,
        device='cpu',
        metadata=dict(optimizer_kwargs=dict(lr=0.03)),
    )
    result.save_to_directory(out)
    return out, result.model.eval()


def scores(model: Model) -> torch.Tensor:
    with torch.no_grad():
        return model.score_hrt(Nations().training.mapped_triples[:200])


class Payload:
    "A pickle that makes a file when it is loaded."

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple:
        return os.system, (f'touch {self.sentinel}',)


# every kind


@pytest.mark.parametrize('name', ['version', 'protocol5', 'bare', 'legacy', 'script', 'loop'])
def test_every_kind_gives_the_model(name, folder, train, trained) -> None:
    model, loop = trained
    run = open_files(
        folder / f'{name}.pt', train, learning_rates=None if name in ('script', 'loop') else 0.02
    )
    assert torch.equal(scores(run.model(0, 'cpu')), scores(model))
    assert run.checkpoints[0].learning_rate == 0.02 and run.training.create_inverse_triples
    assert (
        run.settings['model'] == 'conve' and run.settings['model_kwargs']['embedding_height'] == 2
    )
    if name not in ('script', 'loop'):
        assert run.moments(0) is None and run.optimizer is None and run.checkpoints[0].epoch is None
        return
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    want = {
        n: loop.optimizer.state[p]['exp_avg_sq'] for n, p in zip(names, model.get_grad_params())
    }
    got = run.moments(0)
    assert got.keys() == want.keys() and all(torch.equal(got[n], want[n]) for n in want)
    assert run.optimizer[0] == 'adam' and run.optimizer[1]['eps'] == 1e-8
    assert (run.checkpoints[0].epoch, run.checkpoints[0].step) == (2, 12)


def test_a_run_can_be_explained(folder, train) -> None:
    run = open_files([folder / 'script.pt', folder / 'loop.pt'], train)
    triples = run.training.mapped_triples
    found = {
        w: TracIn(run, objective='bce', weighting=w).scores(triples[:2], triples[:20])
        for w in ('sgd', 'adam')
    }
    one = TracIn(
        open_files(folder / 'version.pt', train, learning_rates=0.04),
        objective='bce',
        weighting='sgd',
    )
    torch.testing.assert_close(found['sgd'], one.scores(triples[:2], triples[:20]))
    assert found['adam'].isfinite().all() and not torch.allclose(found['adam'], found['sgd'])


@pytest.mark.parametrize('name', KNOWN)
def test_sizes_follow_from_the_weights(name) -> None:
    """With its name given, every model's sizes are found from its weights; with none, it is
    found or among those named."""
    model = build(name, graph(inverse := name == 'conve'))
    opened = Opened(Path('a.pt'), {}, model.state_dict())
    found, kwargs = recognise(opened, (14, 55, inverse), model=name)
    again = model_resolver.make(found, kwargs, triples_factory=graph(inverse))
    assert found == name and {n: t.shape for n, t in again.state_dict().items()} == opened_shapes(
        model
    )
    again.load_state_dict(model.state_dict())
    if name not in ('kg2e', 'ntn', 'um'):
        assert torch.equal(scores(again.eval()), scores(model.eval()))
    try:
        assert recognise(opened, (14, 55, inverse))[0] == name
    except RunError as e:
        assert 'all have weights of these names and shapes; give model=' in str(
            e
        ) and f' {name}' in str(e)
        assert name not in ('conve', 'distmult', 'tucker', 'ermlp', 'rescal')


def opened_shapes(model: Model) -> dict[str, torch.Size]:
    return {n: t.shape for n, t in model.state_dict().items()}


@pytest.mark.parametrize('name', ['complex', 'transe', 'rotate', 'distmult'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_tables(name, dtype, train, tmp_path) -> None:
    model = build(name, graph()).to(dtype).eval()
    torch.save(model.state_dict(), tmp_path / 'a.pt')
    kwargs = dict(model=None if name == 'distmult' else name)
    run = open_files(tmp_path / 'a.pt', train, learning_rates=[0.1], **kwargs)
    assert torch.equal(scores(run.model(0, 'cpu')), scores(model))
    assert next(run.model(0, 'cpu').parameters()).dtype == dtype
    assert not run.training.create_inverse_triples


def test_other_models_by_name(train, tmp_path) -> None:
    """Message passing is outside the rules: name and settings have to be given, and inverse
    relations are still seen."""
    for name, kwargs in dict(
        rgcn=KWARGS['rgcn'], compgcn=dict(embedding_dim=8), nodepiece=KWARGS['nodepiece']
    ).items():
        model = build(name, graph(name != 'rgcn')).eval()
        torch.save(model.state_dict(), tmp_path / 'a.pt')
        run = open_files(
            tmp_path / 'a.pt', train, model=name, model_kwargs=kwargs, learning_rates=1
        )
        assert torch.equal(scores(run.model(0, 'cpu')), scores(model)), name
        with pytest.raises(RunError):
            open_files(tmp_path / 'a.pt', train, learning_rates=1)


# the pipeline folder


def test_pipeline_folder(pipe, train, data) -> None:
    folder, model = pipe
    for path in (folder, folder / 'trained_model.pkl'):
        with pytest.raises(RunError, match=r'trained_model\.pkl is refused: .*allow_pickle=True'):
            open_files(path)
        run = open_files(path, allow_pickle=True)
        assert torch.equal(scores(run.model(0, 'cpu')), scores(model))
        assert run.checkpoints[0].learning_rate == 0.03 and type(run.loss) is type(model.loss)
        assert torch.equal(run.training.mapped_triples, Nations().training.mapped_triples)
        assert run.training.entity_to_id == Nations().training.entity_to_id
    assert torch.equal(
        open_files(folder, train, allow_pickle=True).training.mapped_triples,
        Nations().training.mapped_triples,
    )


def test_broken_pipeline_folders(pipe, tmp_path) -> None:
    def copy(name: str) -> Path:
        return shutil.copytree(pipe[0], tmp_path / name)

    with pytest.raises(RunError, match='without trained_model.pkl'):
        open_files(tmp_path)
    (a := copy('a') / 'metadata.json').write_text('{')
    with pytest.raises(RunError, match='metadata.json is not JSON'):
        open_files(a.parent, allow_pickle=True)
    a.write_text(json.dumps(dict(optimizer_kwargs=dict(lr=1), lr_scheduler='StepLR')))
    with pytest.raises(RunError, match='metadata.json: the pipeline used the scheduler'):
        open_files(a.parent, allow_pickle=True)
    a.unlink()
    with pytest.raises(
        RunError,
        match=r'does not state its learning rate.*give learning_rates=\[result.configuration',
    ):
        open_files(a.parent, allow_pickle=True)
    assert (
        open_files(a.parent, allow_pickle=True, learning_rates=0.5).checkpoints[0].learning_rate
        == 0.5
    )
    for name in ('entity_to_id.tsv.gz', 'numeric_triples.tsv.gz'):
        (b := copy(name[:3]) / 'training_triples' / name).write_bytes(b'no gzip')
        with pytest.raises(RunError, match=f'{name} cannot be read'):
            open_files(b.parent.parent, allow_pickle=True)
    shutil.rmtree((c := copy('c')) / 'training_triples')
    with pytest.raises(RunError, match='without its training triples'):
        open_files(c, allow_pickle=True)
    (c / 'trained_model.pkl').write_bytes(b'')
    with pytest.raises(RunError, match='trained_model.pkl is empty'):
        open_files(c, allow_pickle=True)
    (c / 'trained_model.pkl').write_bytes(b'abc')
    with pytest.raises(RunError, match='trained_model.pkl is not a checkpoint'):
        open_files(c, allow_pickle=True)


def piped(out: Path, **model: object) -> Path:
    "The folder of a pipeline whose metadata say nothing."
    result = pipeline(
        dataset='nations',
        model='TransE',
        model_kwargs=dict(embedding_dim=4, **model),
        epochs=1,
        random_seed=2,
        training_kwargs=dict(use_tqdm=False),
        evaluation_kwargs=dict(use_tqdm=False),
    )
    result.save_to_directory(out)
    return out


def test_several_pipeline_folders(pipe, train, tmp_path) -> None:
    other = piped(tmp_path / 'other', scoring_fct_norm=2)
    run = open_files([pipe[0], other], allow_pickle=True, learning_rates=[0.03, 0.001])
    assert 'Run of transe (slcwa, MarginRankingLoss)' in repr(run)
    assert not torch.equal(scores(run.model(0, 'cpu')), scores(run.model(1, 'cpu')))
    with pytest.raises(
        RunError,
        match=r'other/trained_model.pkl: the file.*PyKEEN does not write it into the folder',
    ):
        open_files([pipe[0], other], allow_pickle=True)
    with pytest.raises(RunError, match=r'2 numbers for 1|3 numbers for 2'):
        open_files([pipe[0], other], allow_pickle=True, learning_rates=[1, 2, 3])
    with pytest.raises(
        RunError, match=r"other scores than the first file's: their settings differ"
    ):
        open_files(
            [pipe[0], piped(tmp_path / 'one', scoring_fct_norm=1)],
            allow_pickle=True,
            learning_rates=0.1,
        )
    path = other / 'training_triples/numeric_triples.tsv.gz'
    rows = pd.read_csv(path, sep='\t')
    rows.iloc[1:].to_csv(path, sep='\t', index=False)
    with pytest.raises(
        RunError, match='training_triples holds other triples than the first folder'
    ):
        open_files([pipe[0], other], allow_pickle=True, learning_rates=0.1)
    assert (
        len(open_files([pipe[0], other], train, allow_pickle=True, learning_rates=0.1).checkpoints)
        == 2
    )
    path = other / 'training_triples/entity_to_id.tsv.gz'
    table = pd.read_csv(path, sep='\t')
    table.assign(id=table['id'].to_numpy()[::-1]).to_csv(path, sep='\t', index=False)
    for given in (None, train):
        with pytest.raises(
            RunError,
            match="trained_model.pkl: entity_to_id of the training triples has 'brazil' at 0",
        ):
            open_files([pipe[0], other], given, allow_pickle=True, learning_rates=0.1)


@pytest.mark.parametrize(
    'content, message',
    [
        ('[]', None),
        ('null', None),
        ('{"optimizer_kwargs": 3}', None),
        ('{"optimizer_kwargs": {"lr": "fast"}}', 'number'),
        ('{"optimizer_kwargs": {"lr": true}}', 'number'),
        ('{"optimizer_kwargs": {"lr": -1}}', 'number'),
        ('{"optimizer_kwargs": {"lr": NaN}}', 'number'),
        ('{"optimizer_kwargs": {}}', 'does not state'),
        ('{"pipeline": {"optimizer_kwargs": {"lr": 0.1}, "lr_scheduler": "StepLR"}}', 'scheduler'),
        ('[' * 9000, 'not JSON'),
        ('\x00', 'not JSON'),
    ],
)
def test_malformed_metadata(content, message, pipe, tmp_path) -> None:
    "A rate is taken as it stands there, or the error names the file."
    folder = shutil.copytree(pipe[0], tmp_path / 'copy')
    (folder / 'metadata.json').write_text(content)
    told = (
        f'metadata.json.*{message}'
        if message
        else 'trained_model.pkl: the file does not state its learning rate'
    )
    with pytest.raises(RunError, match=told):
        open_files(folder, allow_pickle=True)
    for place in ('pipeline', 'configuration'):
        (folder / 'metadata.json').write_text(
            json.dumps({place: dict(optimizer_kwargs=dict(lr=0.25))})
        )
        assert open_files(folder, allow_pickle=True).checkpoints[0].learning_rate == 0.25


# nothing is executed


def evil_files(folder: Path, state: dict, evil: Payload) -> list[Path]:
    "Files of every kind with the payload in every place."
    opt = dict(state={}, param_groups=[dict(lr=0.1, params=[0], evil=evil)])
    kinds = dict(
        version=dict(state_dict=state, version=evil),
        inside=dict(state_dict={**state, 'x': evil}, version=1),
        script=dict(model_state_dict=state, epoch=evil),
        config=dict(model_state_dict=state, model_config=evil),
        optimizer=dict(model_state_dict=state, optimizer_state_dict=opt),
        bare={**state, 'x': evil},
        key={**state, evil: 1},
        whole=evil,
        rest=[evil],
    )
    paths = []
    for name, content in kinds.items():
        for protocol in (2, 3, 4, 5):
            torch.save(content, path := folder / f'{name}{protocol}.pt', pickle_protocol=protocol)
            with open(raw := folder / f'{name}{protocol}.pkl', 'wb') as f:
                pickle.dump(content, f, protocol=protocol)
            paths += [path, raw]
        torch.save(content, path := folder / f'{name}.old.pt', _use_new_zipfile_serialization=False)
        paths.append(path)
    return paths


def test_malicious_pickles_are_refused_unexecuted(trained, pipe, train, tmp_path) -> None:
    sentinel = tmp_path / 'executed'
    for path in evil_files(tmp_path, trained[0].state_dict(), Payload(sentinel)):
        with pytest.raises(RunError, match=path.name):
            open_files(path, train, learning_rates=0.1)
        assert not sentinel.exists(), path
    for name, protocol in (('zip', True), ('old', False)):
        folder = shutil.copytree(pipe[0], tmp_path / name)
        torch.save(
            Payload(sentinel), folder / 'trained_model.pkl', _use_new_zipfile_serialization=protocol
        )
        with pytest.raises(RunError, match=r'trained_model\.pkl is refused.*system'):
            open_files(folder)
        torch.save(Payload(sentinel), folder / 'training_triples/base.pth')  # never read
        with pytest.raises(RunError):
            open_files(folder, train)
    assert not sentinel.exists()
    with pytest.raises(RunError):
        open_files(folder, train, allow_pickle=True)  # os.system gave a number, not a model
    assert sentinel.exists()


# what does not fit


def changed(folder: Path, path: Path, **changes) -> Path:
    "The plain state with entries replaced, or removed where None; `__` in a name stands for a dot."
    state = torch.load(folder / 'bare.pt', weights_only=True)
    for name, t in changes.items():
        state[name.replace('__', '.')] = t
    torch.save({n: t for n, t in state.items() if t is not None}, path)
    return path


@pytest.mark.parametrize(
    'changes, message',
    [
        (
            {E: torch.ones(13, 8)},
            'has 13 rows, the training triples and label map have 14 entities',
        ),
        ({R: torch.ones(54, 8)}, 'has 54 rows, .* 55 relations .110 with inverse'),
        ({E: torch.ones(14)}, r'table .* has shape \(14,\)'),
        ({E: torch.ones(14, 9)}, "PyKEEN's ConvE puts the images|conve"),
        ({R: torch.ones(110, 9)}, rf"'{R}' has shape \(110, 9\), the model needs \(110, 8\)"),
        ({'interaction.hr1d.0.bias': None}, 'missing: interaction.hr1d.0.bias'),
        ({'interaction.gate': torch.ones(8)}, 'unknown: interaction.gate'),
        (
            {'interaction.hr1d.0.bias': torch.ones(8).double()},
            'is torch.float64, the model needs torch.float32',
        ),
        ({'interaction.hr1d.0.bias': torch.full((8,), torch.nan)}, 'not finite'),
        ({'interaction.hr1d.0.bias': torch.ones(0)}, r'its shape \(0,\) is empty'),
        ({'interaction.hr1d.0.bias': torch.ones(1).expand(8)}, 'fewer numbers than its shape says'),
        ({'interaction.hr1d.0.bias': torch.ones(8).to_sparse()}, 'not a dense tensor'),
        ({'interaction.hr1d.0.bias': 'x'}, 'it is a str, not a tensor'),
        ({LINEAR: torch.ones(8, 48)}, 'they fit with a padding that keeps the size of the image'),
        (
            {LINEAR: torch.ones(8, 21)},
            "fits conve in 2 ways; .*width': 8}; or model_kwargs={'embedding_height': 4",
        ),
        (
            {LINEAR: torch.ones(8, 33)},
            "no image of 8 numbers gives the 33 inputs of 'interaction.hr1d.0.weight'",
        ),
    ],
)
def test_wrong_weights(changes, message, folder, train, tmp_path) -> None:
    path = changed(folder, tmp_path / 'wrong.pt', **changes)
    with pytest.raises(RunError, match=f'(?s)wrong.pt.*({message})'):
        open_files(path, train, learning_rates=1)


def test_foreign_conves_are_refused(folder, train, tmp_path) -> None:
    sides = dict(embedding_height=2, embedding_width=4)
    path = changed(folder, tmp_path / 'side.pt', **{LINEAR: torch.ones(8, 21)})
    with pytest.raises(
        RunError, match='they fit side by side with h x w = 2 x 4: this ConvE is another model'
    ):
        open_files(path, train, learning_rates=1, model_kwargs=sides)
    torch.save(
        dict(model_state_dict=torch.load(path), model_config=dict(model='ConvE', **sides)), path
    )
    with pytest.raises(RunError, match='side by side'):
        open_files(path, train, learning_rates=1)
    original = {
        'emb_e.weight': torch.ones(14, 8),
        'emb_rel.weight': torch.ones(110, 8),
        'b': torch.zeros(14),
        'bn0.weight': torch.ones(1),
        'conv1.weight': torch.ones(3, 1, 2, 2),
        'conv1.bias': torch.ones(3),
        'fc.weight': torch.ones(8, 27),
        'fc.bias': torch.ones(8),
    }
    torch.save(original, tmp_path / 'original.pt')
    for kwargs in (dict(), dict(model='ConvE'), dict(model='ConvE', model_kwargs=sides)):
        with pytest.raises(
            RunError,
            match='original.pt is refused: .*conv1.weight.*cannot be known from its weights',
        ):
            open_files(tmp_path / 'original.pt', train, learning_rates=1, **kwargs)
    with pytest.raises(RunError, match="model_config: model='MyConvE' is not one"):
        torch.save(
            dict(state_dict=original, model_config=dict(model_name='MyConvE')),
            tmp_path / 'named.pt',
        )
        counts = (14, 55, True)
        recognise(open_file(tmp_path / 'named.pt'), counts)


def test_images_are_what_pykeen_computes() -> None:
    "Every image of a number of sizes is found again from its shapes, with PyKEEN's own formula."
    for dim in (12, 36, 50, 200):
        for kernel in ((3, 1, 2, 3), (2, 1, 3, 3), (4, 2, 2, 1)):
            for h in (h for h in range(1, dim // kernel[1] + 1) if dim % (h * kernel[1]) == 0):
                w = dim // kernel[1] // h
                info = ConvEShapeInformation(dim, kernel[1], h, w, kernel[0], kernel[2], kernel[3])
                if 2 * h >= kernel[2] and w >= kernel[3]:
                    assert (h, w) in images(dim, kernel, info.num_in_features)


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(model='DistMult'), 'bare.pt as distmult does not fit'),
        (dict(model='Bogus'), "'Bogus' is not one that"),
        (
            dict(model='ConvE', model_kwargs=dict(embedding_dim=4)),
            'embedding_dim is 4, the weights need 8',
        ),
        (dict(model='ConvE', model_kwargs=dict(bogus=4)), 'bogus'),
        (dict(learning_rates=None), 'bare.pt: .*learning rate'),
        (dict(learning_rates=[1, 2]), '2 numbers for 1'),
        (dict(learning_rates='x'), 'learning_rates'),
        (dict(learning_rates=-1), 'learning_rates'),
        (dict(label_smoothing=2), 'label_smoothing'),
        (dict(loop='x'), 'loop'),
        (dict(loss='x'), 'loss'),
        (dict(loss_kwargs={}, loss='x'), 'loss'),
        (dict(loss_kwargs=dict(margin=1)), 'loss_kwargs without'),
        (dict(train=None), 'without its training triples'),
    ],
)
def test_wrong_arguments(kwargs, message, folder, train) -> None:
    with pytest.raises(ValueError, match=message):
        open_files(folder / 'bare.pt', **{**dict(train=train, learning_rates=1), **kwargs})


def test_warns_of_what_weights_do_not_show(train, tmp_path, recwarn) -> None:
    model = model_resolver.make(
        'transe', dict(embedding_dim=4, scoring_fct_norm=2), triples_factory=graph()
    ).eval()
    torch.save(model.state_dict(), tmp_path / 'a.pt')
    with pytest.warns(UserWarning, match='scoring_fct_norm, power_norm of transe'):
        open_files(tmp_path / 'a.pt', train, model='TransE', learning_rates=1)
    run = open_files(
        tmp_path / 'a.pt',
        train,
        model='TransE',
        learning_rates=1,
        model_kwargs=dict(scoring_fct_norm=2, power_norm=False),
    )
    assert torch.equal(scores(run.model(0, 'cpu')), scores(model))


# triples, rates, order


def test_label_maps(folder, data, train, tmp_path) -> None:
    maps = {n: data / f'{n}.tsv' for n in ('entity_to_id', 'relation_to_id')}
    run = open_files(folder / 'bare.pt', train, **maps, learning_rates=1)
    assert run.training.entity_to_id == Nations().training.entity_to_id
    ids = Nations().training.entity_to_id
    turned = {n: 13 - i for n, i in ids.items()}
    assert (
        open_files(
            folder / 'bare.pt', train, entity_to_id=turned, learning_rates=1
        ).training.entity_to_id
        == turned
    )
    with pytest.raises(
        RunError, match=r"loop.pt: entity_to_id of the training triples has 'brazil' at 13"
    ):
        open_files(folder / 'loop.pt', train, entity_to_id=turned)
    content = read_checkpoint_file(folder / 'loop.pt')
    torch.save(
        {**content, 'entity_to_id_dict': turned, 'np_random_state': None}, tmp_path / 'own.pt'
    )
    assert (
        open_files(tmp_path / 'own.pt', train).training.entity_to_id == turned
    )  # the file's own map counts
    with pytest.raises(
        RunError, match='has 14 rows, the training triples and label map have 15 entities'
    ):
        open_files(folder / 'bare.pt', train, entity_to_id={**ids, 'new': 14}, learning_rates=1)
    with pytest.raises(ValueError, match='train.tsv: line 1: .* is not in the label map'):
        open_files(folder / 'bare.pt', train, relation_to_id={'x': 0}, learning_rates=1)


def script_file(trained, path: Path, **changes) -> Path:
    model, loop = trained
    content = dict(
        model_state_dict=model.state_dict(), optimizer_state_dict=loop.optimizer.state_dict()
    )
    torch.save({**content, **changes}, path)
    return path


def test_rates_and_order(trained, train, tmp_path) -> None:
    paths = [script_file(trained, tmp_path / f'{e}.pt', epoch=e) for e in (3, 1, 2)]
    run = open_files(paths, train, learning_rates=[0.3, 0.1, 0.2])
    assert [(c.epoch, c.learning_rate, c.path.name) for c in run.checkpoints] == [
        (e, e / 10, f'{e}.pt') for e in (1, 2, 3)
    ]
    assert torch.equal(scores(run.model(2, 'cpu')), scores(trained[0])) and run.moments(2)
    paths.append(script_file(trained, tmp_path / 'none.pt'))
    assert [c.epoch for c in open_files(paths, train).checkpoints] == [3, 1, 2, None]
    save_model(trained[0], tmp_path / 'checkpoint_0000007.pt')
    paths = [tmp_path / 'checkpoint_0000007.pt', *paths[:3]]
    with pytest.raises(RunError, match=r'checkpoint_0000007\.pt: the file does not state'):
        open_files(paths, train)
    run = open_files(paths, train, learning_rates=0.5)
    assert [c.epoch for c in run.checkpoints] == [1, 2, 3, 6] and run.moments(0) is None
    config = dict(learning_rate=0.25, label_smoothing=0.1)
    run = open_files(
        script_file(trained, tmp_path / 'a.pt', optimizer_state_dict=None, model_config=config),
        train,
    )
    assert (run.checkpoints[0].learning_rate, run.label_smoothing) == (0.25, 0.1)
    with pytest.raises(
        RunError, match="lr_scheduler_state_dict': its rate 0.02 is for the next steps"
    ):
        open_files(
            script_file(trained, tmp_path / 'a.pt', lr_scheduler_state_dict=dict(last_epoch=3)),
            train,
        )
    with pytest.raises(RunError, match='a.pt: epoch'):
        open_files(script_file(trained, tmp_path / 'a.pt', epoch='two'), train)
    with pytest.raises(RunError, match='at least one'):
        open_files([], train)


class ByHand(TrainingCallback):
    "Keeps the weights after each epoch, numbered by those that were finished."

    def __init__(self) -> None:
        super().__init__()
        self.states: list[dict[str, torch.Tensor]] = []

    def post_epoch(self, *args: object, **kwargs: object) -> None:
        self.states.append({n: t.clone() for n, t in self.model.state_dict().items()})


def test_epochs_of_pykeens_callback(train, tmp_path) -> None:
    "PyKEEN names its files one epoch too high; an epoch of a run is one that was finished."
    model = build('distmult', graph())
    loop = SLCWATrainingLoop(
        model=model, triples_factory=graph(), optimizer='sgd', optimizer_kwargs=dict(lr=0.5)
    )
    keep = CheckpointTrainingCallback(
        schedule='every', schedule_kwargs=dict(frequency=1), root=tmp_path
    )
    loop.train(graph(), num_epochs=3, use_tqdm=False, callbacks=[hand := ByHand(), keep])
    run = open_files(
        sorted(tmp_path.iterdir(), reverse=True), train, model='DistMult', learning_rates=0.5
    )
    assert [c.epoch for c in run.checkpoints] == [1, 2, 3] and len(hand.states) == 3
    assert [c.path.name for c in run.checkpoints] == [f'checkpoint_000000{e}.pt' for e in (2, 3, 4)]
    for k, want in enumerate(hand.states):
        assert all(torch.equal(t, want[n]) for n, t in run.state(k).items())
    assert not torch.equal(
        *(run.state(k)['entity_representations.0._embeddings.weight'] for k in (0, 1))
    )


def test_other_checkpoint_of_another_model(folder, train, tmp_path) -> None:
    torch.save(build('distmult', graph()).state_dict(), tmp_path / 'other.pt')
    with pytest.raises(RunError, match='other.pt does not fit the model'):
        open_files([folder / 'bare.pt', tmp_path / 'other.pt'], train, learning_rates=1)


def test_moments_that_do_not_fit_are_not_offered(trained, train, tmp_path) -> None:
    def opened(change) -> object:
        state = pickle.loads(pickle.dumps(trained[1].optimizer.state_dict()))
        change(state)
        return open_files(
            script_file(trained, tmp_path / 'a.pt', optimizer_state_dict=state), train
        )

    changes = [
        lambda s: s['state'][0].update(exp_avg_sq=torch.ones(3)),
        lambda s: s['state'][0].pop('exp_avg_sq'),
        lambda s: s['param_groups'][0]['params'].pop(),
        lambda s: s['param_groups'][0].pop('amsgrad'),
        lambda s: s['param_groups'][0].update(momentum_decay=0.1),
        lambda s: s.update(state=None),
    ]
    assert opened(lambda s: None).optimizer is not None
    for change in changes:
        run = opened(change)
        assert (
            run.optimizer is None
            and run.moments(0) is None
            and run.checkpoints[0].learning_rate == 0.02
        )


def test_not_checkpoints(train, tmp_path) -> None:
    (tmp_path / 'empty.pt').touch()
    (tmp_path / 'text.pt').write_text('head\trelation\ttail\n')
    np.savez(tmp_path / 'arrays.npz', a=np.ones(3))
    with zipfile.ZipFile(tmp_path / 'zip.pt', 'w') as z:
        z.writestr('a.txt', 'abc')
    torch.save(torch.ones(3), tmp_path / 'tensor.pt')
    torch.save([torch.ones(3)], tmp_path / 'list.pt')
    torch.save(dict(state_dict={}, version=1), tmp_path / 'nothing.pt')
    torch.save(dict(state_dict=dict(a=torch.ones(1)), version=2), tmp_path / 'later.pt')
    torch.save({1: torch.ones(3)}, tmp_path / 'number.pt')
    torch.save({}, tmp_path / 'dict.pt')
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / 'script.pt')
    for path in [*sorted(tmp_path.iterdir()), tmp_path / 'missing.pt']:
        with pytest.raises(RunError, match=path.name):
            open_files(path, train, learning_rates=1)


# mutations


def mutated(rng: random.Random, folder: Path, path: Path) -> bool:
    """Writes a damaged or changed checkpoint file to `path`; returns whether its weights may
    still be the same."""
    source = (
        folder / f'{rng.choice(["version", "protocol5", "bare", "legacy", "script", "loop"])}.pt'
    )
    kind = rng.choice(
        ['truncate', 'flip', 'flip', 'insert', 'swap', 'rename', 'transpose', 'type', 'drop']
    )
    data = bytearray(source.read_bytes())
    at = rng.randrange(len(data))
    if kind == 'truncate':
        del data[at:]
    elif kind == 'flip':
        for i in (at, *rng.sample(range(len(data)), rng.choice([0, 0, 5]))):
            data[i] ^= 1 << rng.randrange(8)
    elif kind == 'insert':
        data[at:at] = rng.randbytes(3)
    elif kind == 'swap':
        data[at : at + 64], data[:64] = data[:64], data[at : at + 64]
    if kind in ('truncate', 'flip', 'insert', 'swap'):
        path.write_bytes(data)
        return (
            source.name != 'legacy.pt'
        )  # the old format has no checksums: a damaged number reads as another
    content = {
        n: v for n, v in read_checkpoint_file(source).items() if n != 'np_random_state'
    }  # it was not read
    state = dict(content.get('state_dict', content.get('model_state_dict', content)))
    name = rng.choice(
        [
            n
            for n, t in state.items()
            if t.ndim > 1 and t.shape[0] != t.shape[1] or kind != 'transpose'
        ]
    )
    t = state.pop(name)
    if kind == 'rename':
        state[name.replace('interaction', 'model') + 'x'] = t
    elif kind == 'transpose':
        state[name] = t.transpose(0, 1).contiguous()
    elif kind == 'type':
        state[name] = rng.choice([t.tolist(), None, t.double(), t.bool(), 'x', t[None], {}])
    torch.save(
        {**content, 'state_dict': state}
        if 'state_dict' in content
        else {**content, 'model_state_dict': state}
        if 'model_state_dict' in content
        else state,
        path,
    )
    return False


@pytest.mark.parametrize('seed', range(8))
def test_mutations_are_read_right_or_refused(seed, folder, train, trained, tmp_path) -> None:
    "160 files: a `ValueError` that names the file, or the very weights that were saved."
    rng, want, path = random.Random(seed), trained[0].state_dict(), tmp_path / 'mutated.pt'
    for _ in range(20):
        same = mutated(rng, folder, path)
        try:
            run = open_files(path, train, learning_rates=0.1)
        except ValueError as e:
            assert 'mutated.pt' in str(e) and len(str(e)) < 1500, e
            continue
        state = run.state(0)
        assert state.keys() == want.keys()
        if same:
            assert all(torch.equal(state[n], t) for n, t in want.items())
