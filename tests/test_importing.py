"A model that was trained elsewhere becomes a run; what nobody told is marked in every result"

import json
import pickle
import shutil
import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path

import models
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from pykeen.losses import loss_resolver
from pykeen.models import ConvE, DistMult, ERModel, TransE
from pykeen.pipeline import PipelineResult, pipeline
from pykeen.sampling import BasicNegativeSampler
from pykeen.triples import TriplesFactory
from safetensors.torch import load_file, save_file

from tracin_nb.answer.results import facts_line
from tracin_nb.app.cli import main
from tracin_nb.graph.names import names_of
from tracin_nb.graph.triples import load_dataset, triples_fingerprint
from tracin_nb.influence.tracin import TracIn
from tracin_nb.runs.foreign import open_files
from tracin_nb.runs.importing import import_files
from tracin_nb.runs.keeping import file_facts
from tracin_nb.runs.run import Run
from tracin_nb.runs.settings import RunError, build_loss

ENTITY_ROWS = 'entity_representations.0._embeddings.weight'
FACT = ('china', 'embassy', 'cuba')
LOOPS = dict(
    lcwa=dict(
        model='ComplEx',
        model_kwargs=dict(embedding_dim=6),
        training_loop='lcwa',
        loss='bcewithlogits',
        inverse=True,
        training_kwargs=dict(label_smoothing=0.1, use_tqdm=False),
    ),
    slcwa=dict(
        model='RotatE',
        model_kwargs=dict(embedding_dim=6),
        training_loop='slcwa',
        loss='nssa',
        loss_kwargs=dict(margin=4.0, adversarial_temperature=0.7),
        negative_sampler_kwargs=dict(num_negs_per_pos=8),
        training_kwargs=dict(use_tqdm=False),
    ),
)
FLAGS = dict(
    lcwa=('--loop', 'lcwa', '--label-smoothing', '0.1'),
    slcwa=(
        *('--loop', 'slcwa', '--label-smoothing', '0', '--negative-sampler', 'basic'),
        *('--num-negs-per-pos', '8'),
    ),
)


@cache
def nations(inverse: bool = False) -> TriplesFactory:
    "A few training triples of Nations, with all of its entities and relations"
    whole = load_dataset('nations', inverse=inverse).training
    first = {r: i for i, r in reversed([*enumerate(whole.mapped_triples[:, 1].tolist())])}
    rows = sorted({*first.values(), *range(0, whole.num_triples, 8)})
    return whole.clone_and_exchange_triples(whole.mapped_triples[rows])


TESTING = TriplesFactory(
    load_dataset('nations').testing.mapped_triples[:20],
    nations().entity_to_id,
    nations().relation_to_id,
)


@pytest.fixture(scope='module')
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp('importing')


@pytest.fixture(scope='module')
def piped(home: Path) -> dict[str, tuple[PipelineResult, Path]]:
    "Pipelines as PyKEEN saves them"
    found = {}
    for name, how in LOOPS.items():
        training = nations(how.get('inverse', False))
        how = {n: v for n, v in how.items() if n != 'inverse'}
        result = pipeline(
            training=training,
            testing=TESTING,
            epochs=2,
            random_seed=0,
            optimizer_kwargs=dict(lr=0.02),
            evaluation_kwargs=dict(use_tqdm=False),
            **how,
        )
        result.save_to_directory(home / name)
        found[name] = result, home / name
    return found


@pytest.fixture(scope='module')
def train(home: Path) -> Path:
    return tsv(nations(), home / 'train.tsv')


@pytest.fixture(scope='module')
def distmult(home: Path) -> tuple[DistMult, Path]:
    model = DistMult(triples_factory=nations(), embedding_dim=4, random_seed=0)
    (home / 'kept').mkdir()
    for k in (2, 10):
        torch.save(dict(state_dict=model.state_dict(), version=1), home / 'kept' / f'ck-{k}.pt')
    return model, home / 'kept'


def tsv(triples, path: Path) -> Path:
    rows = triples.label_triples(triples.mapped_triples)
    path.write_text(''.join('\t'.join(row) + '\n' for row in rows))
    return path


def tracin(*args: object) -> Result:
    return CliRunner().invoke(main, list(map(str, args)))


def fine(*args: object) -> Result:
    done = tracin(*args)
    assert done.exit_code == 0, done.stderr
    return done


def explained(run: object, **more: object):
    how = dict(weighting='sgd') | more
    return TracIn(run, devices='cpu', progress=False, **how).explain([FACT], k=5)


def alike(a, b) -> None:
    names = ['head', 'relation', 'tail']
    assert a.frame[names].values.tolist() == b.frame[names].values.tolist()
    np.testing.assert_allclose(a.frame['influence'], b.frame['influence'], rtol=1e-5)


# ---------------------------------------------------------------- the front door


def test_names(piped, tmp_path) -> None:
    "Names given to `import` stay with the run; `predict` takes them, too."
    (tmp_path / 'names.tsv').write_text('id\tname\nchina\tMiddle Kingdom\n')
    named = ('--names', tmp_path / 'names.tsv')
    command = ('import', piped['slcwa'][1], '--allow-pickle', '--learning-rate', 0.02)
    fine(*command, '--out', tmp_path / 'run', *named)
    done = fine('predict', tmp_path / 'run', 'middle kingdom', 'embassy', '-k', 1)
    assert done.stdout.startswith('Middle Kingdom [china]  embassy  ?\n')
    fine(*command, '--out', tmp_path / 'plain')
    asked = ('predict', tmp_path / 'plain', 'Middle Kingdom', 'embassy', '-k', 1)
    assert "unknown entity 'Middle Kingdom'" in tracin(*asked).stderr
    again = fine(*asked, *named)
    assert again.stdout == done.stdout and again.stderr.splitlines()[-1].endswith(str(named[1]))


@pytest.mark.parametrize('name', LOOPS)
def test_two_commands_from_a_pipeline_folder(piped, name, tmp_path) -> None:
    result, folder = piped[name]
    command = ('import', folder, '--allow-pickle', '--out')
    refused = tracin(*command, tmp_path / 'no')
    assert refused.exit_code == 2 and '--learning-rate' in refused.stderr
    assert not (tmp_path / 'no').exists()
    done = fine(*command, tmp_path / 'rough', '--learning-rate', 0.02)
    assert 'assumed: loop slcwa' in done.stderr
    explain = ('explain', tmp_path / 'rough', '--triple', *FACT, '--devices', 'cpu')
    if name == 'slcwa':
        assert 'assumed: loop slcwa' in fine(*explain).stdout
    else:
        facts = json.loads(fine(*explain, '--format', 'json').stdout)['facts']
        assert facts['assumed']['loop'].startswith('slcwa; nothing tells')
    fine(*command, tmp_path / 'told', '--learning-rate', 0.02, *FLAGS[name])
    run = Run.open(tmp_path / 'told')
    assert run.assumed == {} and run.label_smoothing == Run.from_pipeline(result).label_smoothing
    mine, theirs = explained(run), explained(result)
    alike(mine, theirs)
    assert 'assumed' not in mine.facts and 'assumed' not in theirs.facts


def test_what_the_metadata_of_a_pipeline_tells_is_not_assumed(piped, tmp_path) -> None:
    folder = shutil.copytree(piped['slcwa'][1], tmp_path / 'piped')
    told = dict(
        optimizer_kwargs=dict(lr=0.02),
        training_loop='SLCWA',
        negative_sampler='basic',
        negative_sampler_kwargs=dict(num_negs_per_pos=8),
    )
    (folder / 'metadata.json').write_text(json.dumps(dict(pipeline=told)))
    run = open_files(folder, allow_pickle=True)
    assert list(run.assumed) == ['label_smoothing'] and run.sampler().num_negs_per_pos == 8
    given = open_files(folder, allow_pickle=True, num_negs_per_pos=3, label_smoothing=0.0)
    assert given.assumed == {} and given.sampler().num_negs_per_pos == 3
    lcwa = open_files(folder, allow_pickle=True, loop='lcwa', label_smoothing=0)
    assert (lcwa.loop, lcwa.assumed) == ('lcwa', {})


def test_two_commands_from_checkpoints(distmult, train, tmp_path) -> None:
    folder = distmult[1]
    ways = dict(folder=[folder], pattern=[folder / '*.pt'], two=sorted(folder.iterdir()))
    for name, files in ways.items():
        fine('import', *files, '--train', train, '--learning-rate', 0.1, '--out', tmp_path / name)
        run = Run.open(tmp_path / name)
        assert [len(run.checkpoints), run.settings['model']] == [2, 'distmult']
        assert {'loop', 'loss', 'label_smoothing', 'num_negs_per_pos'} <= run.assumed.keys()
        assert {'entity_to_id', 'relation_to_id', 'negative_sampler'} <= run.assumed.keys()
    fine('explain', tmp_path / 'two', '--triple', *FACT, '--devices', 'cpu')


def test_three_commands_where_tables_fit_several_models(train, tmp_path) -> None:
    model = TransE(triples_factory=nations(), embedding_dim=4, scoring_fct_norm=2)
    torch.save(model.state_dict(), tmp_path / 'bare.pt')
    command = ('import', tmp_path / 'bare.pt', '--train', train, '--out', tmp_path / 'run')
    first = tracin(*command)
    assert first.exit_code == 2 and '--model' in first.stderr.splitlines()[-1]
    fine(*command, '--model', 'TransE', '--learning-rate', 0.1)
    assert Run.open(tmp_path / 'run').assumed['scoring_fct_norm'].startswith('1; nothing tells it')
    kwargs = ('--model-kwargs', '{"scoring_fct_norm": 2, "power_norm": false}')
    again = (*command[:-1], tmp_path / 'two')
    fine(*again, '--model', 'TransE', '--learning-rate', 0.1, *kwargs)
    run = Run.open(tmp_path / 'two')
    assert run.model(0, 'cpu').interaction.p == 2 and 'scoring_fct_norm' not in run.assumed
    fine('explain', tmp_path / 'two', '--triple', *FACT, '--devices', 'cpu')


def test_commands_without_import_mark_the_same(distmult, train) -> None:
    done = fine(
        *('explain', '--model-path', next(distmult[1].iterdir()), '--train', train),
        *('--model', 'DistMult', '--learning-rate', 0.1, '--num-negs-per-pos', 2),
        *('--triple', *FACT, '--devices', 'cpu', '--format', 'json'),
    )
    assumed = json.loads(done.stdout)['facts']['assumed']
    assert 'loss' in assumed and not {'loop', 'num_negs_per_pos'} & assumed.keys()


def test_validation_and_test_triples(distmult, train, tmp_path) -> None:
    test = tsv(TESTING, tmp_path / 'test.tsv')
    command = ('import', distmult[1], '--train', train, '--model', 'DistMult', '--learning-rate', 1)
    fine(*command, '--test', test, '--validation', test, '--out', tmp_path / 'run')
    run = Run.open(tmp_path / 'run')
    assert run.testing.num_triples == TESTING.num_triples == run.validation.num_triples
    test.write_text('china\tembassy\tatlantis\n')
    done = tracin(*command, '--test', test, '--out', tmp_path / 'other')
    assert "test.tsv: line 1: unknown entity 'atlantis'" in done.stderr
    assert not (tmp_path / 'other').exists()


def test_wrong_numbering_is_warned_of(tmp_path, train) -> None:
    triples = nations()
    model = DistMult(triples_factory=triples, embedding_dim=16, random_seed=0)
    adam = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(40):
        adam.zero_grad()
        wrong = triples.mapped_triples.clone()
        wrong[:, 2] = torch.randint(14, wrong[:, 2].shape)
        margin = model.score_hrt(triples.mapped_triples) - model.score_hrt(wrong)
        torch.nn.functional.softplus(-margin).mean().backward()
        adam.step()
    torch.save(model.state_dict(), tmp_path / 'a.pt')
    told = dict(model='DistMult', learning_rates=0.05)
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='.*near chance')
        import_files(tmp_path / 'a.pt', train, out=tmp_path / 'right', **told)
    maps = nations().entity_to_id
    wrong = dict(zip(maps, np.random.default_rng(1).permutation(len(maps)).tolist()))
    with pytest.warns(UserWarning, match='near chance: label maps, model or triples'):
        import_files(tmp_path / 'a.pt', train, out=tmp_path / 'wrong', entity_to_id=wrong, **told)


def test_names_kept(distmult, train, tmp_path) -> None:
    "Shown, accepted, and kept by each save."
    table = tmp_path / 'names.csv'
    table.write_text('kind,name,id\nCountry,Cathay,china\nCountry,"Cuba, the island",cuba\n')
    command = ('import', distmult[1], '--train', train, '--model', 'DistMult')
    command += ('--learning-rate', 0.1, '--test', tsv(TESTING, tmp_path / 'test.tsv'))
    wrong = tmp_path / 'wrong.csv'
    wrong.write_text('id,name\nQ148,China\n')
    done = tracin(*command, '--out', tmp_path / 'a', '--names', wrong)
    assert done.exit_code == 2 and "'Q148', is a label of the graph" in done.stderr
    assert not (tmp_path / 'a').exists()
    fine(*command, '--out', tmp_path / 'a', '--names', table)
    run = Run.open(Run.open(tmp_path / 'a').save(tmp_path / 'b'))
    assert run.names.name == {'china': 'Cathay', 'cuba': 'Cuba, the island'}
    assert run.names.type['cuba'] == 'Country' and names_of(run.testing) == run.names
    asked = ('--triple', 'Cathay', 'embassy', 'Cuba, the island', '--devices', 'cpu')
    assert 'Cathay' in fine('explain', tmp_path / 'b', *asked).stdout


@pytest.mark.parametrize(
    ('wrong', 'said'),
    [
        (b'\x80\x02', 'damaged.pt is not a checkpoint'),
        (pickle.dumps(Path('x')), 'cannot read its pickle .nothing was executed'),
        (dict(extra=torch.ones(2)), "'extra' is unknown to the model"),
        (dict(table=torch.ones(14, 4) * torch.nan), 'not finite, such as nan at'),
        (dict(table=torch.ones(13, 4)), 'has 13 rows'),
        (dict(table=torch.ones(14, 4, dtype=torch.long)), 'is torch.int64, the model needs'),
    ],
)
def test_damaged_files(wrong, said, distmult, train, tmp_path) -> None:
    path = tmp_path / 'damaged.pt'
    if isinstance(wrong, bytes):
        path.write_bytes(wrong)
    else:
        named = {n.replace('table', ENTITY_ROWS): t for n, t in wrong.items()}
        torch.save(distmult[0].state_dict() | named, path)
    told = dict(model='DistMult', learning_rates=0.1, out=tmp_path / 'run')
    with pytest.raises(RunError, match=said):
        import_files(path, train, **told)
    assert not (tmp_path / 'run').exists()


def test_weights_of_8_bits(distmult, train, tmp_path) -> None:
    state = dict(distmult[0].state_dict())
    state[ENTITY_ROWS] = state[ENTITY_ROWS].to(torch.float8_e5m2)
    torch.save(state, tmp_path / 'a.pt')
    told = dict(model='DistMult', learning_rates=0.1, out=tmp_path / 'run')
    run = import_files(tmp_path / 'a.pt', train, **told)
    assert torch.equal(run.model(0).state_dict()[ENTITY_ROWS], state[ENTITY_ROWS].float())


@pytest.mark.parametrize('text', ['[]', '{"losses": "none"}', '{"losses": [null]}'])
def test_odd_results_beside_a_pipeline(text, piped, tmp_path) -> None:
    folder = shutil.copytree(piped['slcwa'][1], tmp_path / 'piped')
    (folder / 'results.json').write_text(text)
    told = dict(allow_pickle=True, learning_rates=0.02, out=tmp_path / 'run')
    assert 'recorded' not in import_files(folder, **told).assumed['loop']


def test_what_cannot_be_opened_is_not_left(piped, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(Run, 'open', lambda folder: 1 / 0)
    told = dict(allow_pickle=True, learning_rates=0.02, out=tmp_path / 'run')
    with pytest.raises(ZeroDivisionError):
        import_files(piped['slcwa'][1], **told)
    assert not any(tmp_path.iterdir())


# ---------------------------------------------------------------- Run.save


def test_whatever_has_a_name_is_saved(tmp_path) -> None:
    triples = nations(True)
    for name, loss in loss_resolver.lookup_dict.items():
        model = TransE(triples_factory=triples, embedding_dim=4, scoring_fct_norm=2, loss=loss())
        run = Run.from_model(
            *(model.double(), triples),
            learning_rates=[0.1, 0.05],
            states=[model.state_dict()] * 2,
            epochs=[None, 3],
            loop='lcwa' if name == 'crossentropy' else 'slcwa',
            label_smoothing=0.2,
            seed=7,
        )
        again = Run.open(run.save(tmp_path / name))
        assert repr(again.loss) == repr(run.loss) and vars(again.loss).keys() == vars(loss()).keys()
        same = ('loop', 'label_smoothing', 'seed', 'target', 'assumed', 'stopped', 'optimizer')
        assert all(getattr(again, n) == getattr(run, n) for n in same)
        assert again.fingerprint(1) == run.fingerprint(1)
        assert [c.epoch for c in again.checkpoints] == [None, 3]
        assert again.model(0, 'cpu').interaction.p == 2 and again.training.create_inverse_triples
    alike(explained(again, objective='bce'), explained(run, objective='bce'))


def test_moments_frozen_parts_and_low_weights(tmp_path) -> None:
    triples = nations()
    model = DistMult(triples_factory=triples, embedding_dim=4, random_seed=0)
    table = 'relation_representations.0._embeddings.weight'
    model.get_parameter(table).requires_grad_(False)
    state = {n: t.to(torch.bfloat16) for n, t in model.state_dict().items()}
    moments = {n: torch.rand_like(p) for n, p in model.named_parameters() if n != table}
    run = Run.from_model(
        *(model, triples),
        learning_rates=[0.1],
        states=[state],
        optimizer=('adam', dict(betas=(0.9, 0.999), eps=1e-8)),
        optimizer_moments=[moments],
        steps=[5],
    )
    again = Run.open(run.save(tmp_path / 'a'))
    ((name, tensor),) = again.moments(0).items()
    assert torch.equal(tensor, moments[name]) and again.optimizer[0] == 'adam'
    assert not again.model(0, 'cpu').get_parameter(table).requires_grad
    assert again.weights([0]) == dict(weights='bfloat16, computed with in float32')
    alike(explained(again, weighting='adam'), explained(run, weighting='adam'))


def test_nothing_is_pickled_or_written_over(distmult, tmp_path) -> None:
    run = Run.from_model(distmult[0], nations(), learning_rates=[0.1])
    folder = run.save(tmp_path / 'a')
    for path in folder.glob('*.pt'):
        torch.load(path, weights_only=True)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(RunError, match='is not empty, and nothing is written over'):
        run.save(folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    (tmp_path / 'file').touch()
    with pytest.raises(RunError, match='is a file'):
        run.save(tmp_path / 'file')
    (tmp_path / 'empty').mkdir()
    Run.open(run.save(tmp_path / 'empty'))
    assert Run.open(Run.open(folder).save(tmp_path / 'twice')).fingerprint(0) == run.fingerprint(0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['a', 'empty', 'file', 'twice']


def test_a_seal_holds_for_its_files_only(distmult, tmp_path, monkeypatch) -> None:
    "A fingerprint is computed when a run is opened if, and only if, something is not as saved"
    folder = Run.from_model(distmult[0], nations(), learning_rates=[0.1]).save(tmp_path / 'a')
    facts = json.loads((folder / 'run.json').read_text())
    computed = []
    monkeypatch.setattr(
        'tracin_nb.runs.run.triples_fingerprint',
        lambda f: computed.append(f) or triples_fingerprint(f),
    )

    def reopen(**changes) -> Run:
        (folder / 'run.json').write_text(json.dumps(facts | changes))
        return Run.open(folder)

    found = triples_fingerprint(reopen().training)
    assert found == facts['dataset']['fingerprint'] and not computed
    reopen(seal=None)
    assert len(computed) == 1
    with pytest.raises(RunError, match='the fingerprint of the training triples is not'):
        reopen(dataset=facts['dataset'] | dict(fingerprint='0' * 64))
    path = folder / 'triples.safetensors'
    kept = load_file(path)
    save_file(kept | dict(training=kept['training'].flip(1).contiguous()), path)
    with pytest.raises(RunError, match='the fingerprint of the training triples is not'):
        reopen(files=facts['files'] | dict(triples=file_facts(path)))


def test_what_has_no_name_is_refused_and_leaves_nothing(tmp_path) -> None:
    triples = nations()
    model = DistMult(triples_factory=triples, embedding_dim=4)
    run = Run.from_model(model, triples, learning_rates=[0.1])
    kwargs = dict(shape=4)
    own = ERModel(
        triples_factory=triples,
        interaction='distmult',
        entity_representations_kwargs=kwargs,
        relation_representations_kwargs=kwargs,
    )
    sampler = BasicNegativeSampler(mapped_triples=triples.mapped_triples)
    loss = type('Mine', (type(build_loss('mse')),), {})()
    for wrong, said in (
        (Run.from_model(own, triples, learning_rates=[0.1]), 'not a model that PyKEEN can find'),
        (replace(run, negative_sampler=sampler), 'negative_sampler=BasicNegativeSampler'),
        (replace(run, loss=loss), "loss='Mine'"),
        (replace(run, settings=dict(training_kwargs=print)), 'cannot be written to run.json'),
    ):
        with pytest.raises(RunError, match=said):
            wrong.save(tmp_path / 'a')
    assert not any(tmp_path.iterdir())
    inverse = nations(True)
    sizes = dict(embedding_dim=8, embedding_height=2, embedding_width=4, output_dropout=0.4)
    conve = Run.from_model(ConvE(triples_factory=inverse, **sizes), inverse, learning_rates=[1])
    with pytest.raises(RunError, match='interaction has other parts; give model_kwargs='):
        conve.save(tmp_path / 'a')
    assert Run.open(conve.save(tmp_path / 'a', model_kwargs=sizes)).settings['model'] == 'conve'


def test_a_saved_run_that_is_damaged_says_so(distmult, tmp_path) -> None:
    run = Run.from_model(distmult[0], nations(), learning_rates=[0.1])
    folder = run.save(tmp_path / 'a')
    facts = json.loads((folder / 'run.json').read_text())
    for change, said in (
        (dict(assumed=None), "'assumed' is None"),
        (dict(target=3), "'target' is 3"),
        (dict(loop='other'), "loop 'other' is unknown"),
    ):
        settings = facts['settings'] | change
        (folder / 'run.json').write_text(json.dumps(facts | dict(settings=settings)))
        with pytest.raises(RunError, match=said):
            Run.open(folder)


# ---------------------------------------------------------------- marks


def test_python_callers_who_say_it_have_told_it(distmult) -> None:
    model, triples = distmult[0], nations()
    rough = Run.from_model(model, triples, learning_rates=[0.1])
    names = ['loop', 'label_smoothing', 'negative_sampler', 'num_negs_per_pos']
    assert list(rough.assumed) == names
    said = dict(loop='slcwa', label_smoothing=0.0, negative_sampler='basic')
    told = Run.from_model(
        *(model, triples),
        learning_rates=[0.1],
        **said,
        negative_sampler_kwargs=dict(num_negs_per_pos=1),
    )
    assert told.assumed == {}
    alike(one := explained(rough), two := explained(told))
    assert one.facts['assumed'] == rough.assumed and 'assumed' not in two.facts
    assert facts_line(one.facts).endswith('negative sampler basic, num negs per pos 1')
    own = TracIn(rough, devices='cpu', progress=False).self_influence(k=2)
    assert own.facts['assumed'] == rough.assumed
    for shown in (one._repr_html_(), repr(one)):
        assert 'assumed' in shown


# ---------------------------------------------------------------- other libraries

HRT = np.array([[0, 0, 1], [1, 1, 2], [2, 0, 0], [3, 1, 3]])
ENTITIES, RELATIONS = ('d', 'b', 'a', 'c'), ('s', 'r')  # numbered as their user pleased


@pytest.fixture(scope='module')
def small(home: Path) -> dict[str, Path]:
    "Four triples, and label maps, label first and number first"
    rows = [(ENTITIES[h], RELATIONS[r], ENTITIES[t]) for h, r, t in HRT]
    (home / 'small.tsv').write_text(''.join('\t'.join(row) + '\n' for row in rows))
    found = dict(train=home / 'small.tsv')
    for name, labels in dict(entity=ENTITIES, relation=RELATIONS).items():
        path = found[f'{name}_to_id'] = home / f'{name}.tsv'
        path.write_text(''.join(f'{label}\t{i}\n' for i, label in enumerate(labels)))
    return found


def pyg_score(model: str, w: dict[str, np.ndarray], p: float = 1) -> np.ndarray:
    "The documented scores of PyTorch Geometric's models, in numpy"
    h, r, t = HRT.T
    row = {n: (x[h], x[t]) if n.startswith('node') else x[r] for n, x in w.items()}
    (h, t), r = row['node_emb'], row['rel_emb']
    if model == 'TransE':
        unit = lambda x: x / np.linalg.norm(x, p, axis=-1, keepdims=True)
        return -np.linalg.norm(unit(h) + r - unit(t), p, axis=-1)
    if model == 'DistMult':
        return (h * r * t).sum(-1)
    h, t = (a + 1j * b for a, b in zip(row['node_emb'], row['node_emb_im']))
    if model == 'ComplEx':
        return (h * (r + 1j * row['rel_emb_im']) * t.conj()).real.sum(-1)
    return 1 - np.linalg.norm(h * np.exp(1j * r) - t, axis=-1)  # margin 1


@pytest.mark.parametrize('model', ['TransE', 'TransE 2', 'DistMult', 'ComplEx', 'RotatE'])
def test_pytorch_geometric(model, small, tmp_path) -> None:
    model, _, p = model.partition(' ')
    draw = np.random.default_rng(0).normal
    w = {n: draw(size=(4, 3)) for n in ('node_emb', 'node_emb_im')}
    w |= {n: draw(size=(2, 3)) for n in ('rel_emb', 'rel_emb_im')}
    keep = dict(TransE=('node_emb', 'rel_emb'), ComplEx=tuple(w))
    keep |= dict(DistMult=keep['TransE'], RotatE=('node_emb', 'node_emb_im', 'rel_emb'))
    state = {f'{n}.weight': torch.from_numpy(w[n]).float() for n in keep[model]}
    torch.save(state, tmp_path / 'pyg.pt')
    how = dict(model_kwargs=dict(scoring_fct_norm=int(p))) if p else {}
    if model in ('TransE', 'DistMult'):
        with pytest.raises(RunError, match='transe, distmult all have these tables; give model='):
            open_files(tmp_path / 'pyg.pt', **small, learning_rates=1)
        how['model'] = model
    run = import_files(tmp_path / 'pyg.pt', **small, learning_rates=1, out=tmp_path / 'run', **how)
    want = pyg_score(model, {n: w[n] for n in keep[model]}, int(p or 1))
    own = run.model(0, 'cpu').score_hrt(torch.from_numpy(HRT)).flatten().detach().numpy()
    shift = 1.0 if model == 'RotatE' else 0.0
    np.testing.assert_allclose(own + shift, want, rtol=1e-5, atol=1e-6)
    assert run.loop == 'slcwa' and run.sampler().num_negs_per_pos == 1
    assert ('scoring_fct_norm' in run.assumed) == (model == 'TransE' and not p)
    assert 'loop' not in run.assumed and 'loss' not in run.assumed


def test_pytorch_geometric_refuses(small, tmp_path) -> None:
    tables = {n: torch.ones(4 if n.startswith('node') else 2, 3) for n in ('node_emb', 'rel_emb')}
    state = {f'{n}.weight': t for n, t in tables.items()}
    torch.save(state, tmp_path / 'a.pt')
    told = dict(model='DistMult', learning_rates=1)
    with pytest.raises(RunError, match='users number labels themselves: give entity_to_id='):
        open_files(tmp_path / 'a.pt', small['train'], **told)
    with pytest.raises(RunError, match="are not those of model 'RotatE'"):
        open_files(tmp_path / 'a.pt', **small, **told | dict(model='RotatE'))
    torch.save(state | {'proj_rel.weight': torch.ones(2, 3)}, tmp_path / 'b.pt')
    with pytest.raises(RunError, match='not those of TransE, DistMult, ComplEx or RotatE'):
        open_files(tmp_path / 'b.pt', **small, **told)
    torch.save(state | {'rel_emb.weight': torch.ones(4, 3)}, tmp_path / 'c.pt')
    with pytest.raises(RunError, match='has no inverse relations: give relation_to_id='):
        open_files(tmp_path / 'c.pt', **small, **told)


def dgl_score(model: str, e: np.ndarray, r: np.ndarray, gamma: float) -> np.ndarray:
    "The documented scores of DGL-KE's models, in numpy"
    h, r, t = e[HRT[:, 0]], r[HRT[:, 1]], e[HRT[:, 2]]
    if model.startswith('TransE'):
        return gamma - np.linalg.norm(h + r - t, 1 if model == 'TransE_l1' else 2, axis=-1)
    if model == 'DistMult':
        return (h * r * t).sum(-1)
    whole = lambda x: x[:, : x.shape[1] // 2] + 1j * x[:, x.shape[1] // 2 :]
    if model == 'RotatE':
        phase = r / ((gamma + 2.0) / r.shape[1] / np.pi)
        return gamma - np.abs(whole(h) * np.exp(1j * phase) - whole(t)).sum(-1)
    return (whole(h) * whole(r) * whole(t).conj()).real.sum(-1)


DGL = ('TransE', 'TransE_l1', 'TransE_l2', 'DistMult', 'ComplEx', 'RotatE')


def dglke(folder: Path, model: str, named: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    "A folder as DGL-KE documents it"
    folder.mkdir()
    draw, d = np.random.default_rng(1).normal, 3
    e = draw(size=(4, d * (2 if model in ('ComplEx', 'RotatE') else 1))).astype(np.float32)
    r = draw(size=(2, d * (2 if model == 'ComplEx' else 1))).astype(np.float32)
    np.save(folder / f'mine_{model}_entity.npy', e)
    np.save(folder / f'mine_{model}_relation.npy', r)
    config = dict(
        model=named or model, emb_size=d, gamma=6.0, lr=0.25, neg_sample_size=16, max_train_step=9
    )
    config |= dict(neg_adversarial_sampling=True, adversarial_temperature=0.5, dataset='mine')
    config |= dict(emap_file='entities.tsv', rmap_file='relations.tsv')
    (folder / 'config.json').write_text(json.dumps(config))
    for name, labels in dict(entities=ENTITIES, relations=RELATIONS).items():
        text = ''.join(f'{i}\t{label}\n' for i, label in enumerate(labels))
        (folder / f'{name}.tsv').write_text(text)
    return e, r


@pytest.mark.parametrize('model', DGL)
def test_dglke(model, small, tmp_path) -> None:
    e, r = dglke(tmp_path / 'ckpts', model)
    fine('import', tmp_path / 'ckpts', '--train', small['train'], '--out', tmp_path / 'run')
    run = Run.open(tmp_path / 'run')
    own = run.model(0, 'cpu').score_hrt(torch.from_numpy(HRT)).flatten().detach().numpy()
    shift = 6.0 if model.startswith('TransE') or model == 'RotatE' else 0.0
    np.testing.assert_allclose(own + shift, dgl_score(model, e, r, 6.0), rtol=1e-5, atol=1e-6)
    assert run.checkpoints[0].learning_rate == 0.25 and run.sampler().num_negs_per_pos == 16
    assert run.loss.margin == shift and run.loss.inverse_softmax_temperature == 0.5
    assert list(run.training.entity_to_id) == list(ENTITIES)
    assert {'loss', 'optimizer', 'negative_sampler'} <= run.assumed.keys()
    result = explained_small(run)
    assert result.facts['assumed'] == run.assumed
    alike(result, explained_small(run, engine='loop'))


def explained_small(run: Run, **more: object):
    return TracIn(run, devices='cpu', progress=False, **more).explain([('b', 'r', 'a')], k=2)


class Payload:
    "What would run a command when unpickled."

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return self.path.touch, ()


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        (dict(gamma='x'), 'config.json: gamma has to be a finite number'),
        (dict(gamma=None), 'config.json: gamma has to be a finite number'),
        (dict(emb_size=4), '3 complex numbers .* emb_size in config.json is 4'),
        (dict(neg_sample_size='x'), 'config.json: neg_sample_size has to be a whole number'),
        (dict(adversarial_temperature='x'), 'config.json: adversarial_temperature has to be'),
        (dict(model=['RotatE']), r"model \['RotatE'\] of DGL-KE is not opened"),
        (dict(emap_file='latin.tsv'), 'latin.tsv cannot be read: .utf-8'),
    ],
)
def test_dglke_damaged(change, said, small, tmp_path) -> None:
    dglke(folder := tmp_path / 'a', 'RotatE')
    (folder / 'latin.tsv').write_bytes(b'0\t\xff\n')
    config = json.loads((folder / 'config.json').read_text()) | change
    (folder / 'config.json').write_text(json.dumps(config))
    with pytest.raises(RunError, match=said):
        open_files(folder, small['train'])


def test_dglke_arrays(small, tmp_path) -> None:
    "Objects are never unpickled; bytes in another order are numbers as well."
    e, _ = dglke(folder := tmp_path / 'a', 'RotatE')
    table = folder / 'mine_RotatE_entity.npy'
    np.save(table, e.astype('>f4'))
    run = open_files(folder, small['train'])
    np.testing.assert_array_equal(run.model(0).entity_representations[0]().real.detach(), e[:, :3])
    objects = np.array([[Payload(tmp_path / 'executed')]], dtype=object)
    np.save(table, objects, allow_pickle=True)
    for kind in ('npy', 'raw'):
        if kind == 'raw':
            table.write_bytes(pickle.dumps(Payload(tmp_path / 'executed')))
        with pytest.raises(RunError, match='holds objects, which are never unpickled'):
            open_files(folder, small['train'], allow_pickle=True)
    assert not (tmp_path / 'executed').exists()


def test_dglke_refuses_what_pykeen_lacks(small, tmp_path) -> None:
    dglke(tmp_path / 'a', 'DistMult', 'TransR')
    with pytest.raises(RunError, match="model 'TransR' of DGL-KE is not opened"):
        open_files(tmp_path / 'a', small['train'])
    dglke(tmp_path / 'c', 'ComplEx', 'RotatE')
    with pytest.raises(RunError, match='3 complex numbers for each entity and 6 angles'):
        open_files(tmp_path / 'c', small['train'])
    dglke(tmp_path / 'b', 'ComplEx')
    (tmp_path / 'b' / 'entities.tsv').unlink()
    with pytest.raises(RunError, match='is of DGL-KE, whose users number labels .*entity_to_id='):
        open_files(tmp_path / 'b', small['train'])
    number_first = tmp_path / 'a' / 'entities.tsv'
    told = dict(entity_to_id=number_first, loss='bcewithlogits')
    run = open_files(tmp_path / 'b', small['train'], **told)
    assert list(run.training.entity_to_id) == list(ENTITIES) and 'loss' not in run.assumed
    (tmp_path / 'b' / 'other_entity.npy').write_bytes(b'')
    with pytest.raises(RunError, match='has 2 files .*_entity.npy: expected one'):
        open_files(tmp_path / 'b', small['train'])


# ---- models as they stand

UNTOLD = {  # what a model does not show of itself
    'distmultliteralgated': 'not a model that PyKEEN can find by name',
    'inductivenodepiece': 'needs an inference graph',
    'inductivenodepiecegnn': 'needs an inference graph',
    'nodepiece': 'give model_kwargs= as the model was made with',  # the number of tokens
}


@pytest.mark.parametrize('name', models.TRAINABLE)
def test_a_model_is_saved_as_it_stands(name: str, tmp_path: Path) -> None:
    "Its settings are found, whether its weights fit in one way, in several, or tell no size."
    training = models.graph(name in models.NEED_INVERSE, 'literal' in name)
    run = Run.from_model(models.build(name, training), training, learning_rates=[0.1], loop='slcwa')
    if name in UNTOLD:
        with pytest.raises(RunError, match=UNTOLD[name]):
            run.save(tmp_path / 'run')
        return
    found = Run.open(run.save(tmp_path / 'run')).model(0)
    few = training.mapped_triples[:20]
    assert torch.equal(found.score_hrt(few), run.model(0).score_hrt(few))
