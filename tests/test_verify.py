"""Trained again without some triples: against `train` on fewer triples, against a loop by hand, and
what comes out of it in words, tables, files and on the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from pykeen.datasets import EagerDataset
from pykeen.triples import TriplesFactory
from pykeen.utils import set_random_seed

from tracin_nb import Run, TracIn, train
from tracin_nb.answer.results import Result, text_table
from tracin_nb.app.cli import main
from tracin_nb.engine.beliefs import beliefs
from tracin_nb.engine.objectives import Softmax, losses
from tracin_nb.evaluation import side_by_side
from tracin_nb.evaluation.beside_rivals import removed
from tracin_nb.evaluation.held_out import TOGETHER, most_together
from tracin_nb.evaluation.predicting import Deletion
from tracin_nb.evaluation.side_by_side import train_without, why_alone
from tracin_nb.evaluation.verify import MEASURES, Verified, carry_out, verification, verify
from tracin_nb.graph.triples import to_ids
from tracin_nb.runs.loop import build_loop
from tracin_nb.runs.models import build_model, state_fingerprint
from tracin_nb.runs.settings import RunError
from tracin_nb.runs.training import settings_again, train_again

pytestmark = pytest.mark.filterwarnings('ignore')
PARTS = ['head', 'relation', 'tail']
HOW = dict(model_kwargs=dict(embedding_dim=8), epochs=3, lr=0.05, device='cpu', progress=False)
KINDS = dict(
    slcwa=dict(model='DistMult', num_negs_per_pos=2),
    lcwa=dict(model='DistMult', loop='lcwa', loss='crossentropy'),
    inverse=dict(model='ComplEx', inverse=True, lr_scheduler='exponential'),
)
KINDS['inverse']['lr_scheduler_kwargs'] = dict(gamma=0.9)
PREDICTION = ('ussr', 'booktranslations', 'usa')


@pytest.fixture(scope='module')
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    "Three small trainings of Nations."
    out = tmp_path_factory.mktemp('verify')
    return {n: train('nations', out=out / n, **(HOW | how)) for n, how in KINDS.items()}


@pytest.fixture(scope='module')
def run(runs: dict[str, Run]) -> Run:
    return runs['slcwa']


def explained(run: Run, k: int = 3) -> Result:
    return TracIn(run, test_objective='softmax', progress=False).explain([PREDICTION], k=k)


@pytest.fixture(scope='module')
def proof(run: Run) -> tuple[Result, Verified]:
    "A result that was verified, and what came out."
    result = explained(run)
    return result, verify(run, result, k=2, seeds=2, device='cpu', progress=False)


def reduced(run: Run, without: torch.Tensor) -> TriplesFactory:
    "The training triples but some, by a loop."
    out = {*map(tuple, without.tolist())}
    rows = [row for row in run.training.mapped_triples.tolist() if tuple(row) not in out]
    return run.training.clone_and_exchange_triples(torch.tensor(rows))


@pytest.mark.parametrize('kind', KINDS)
def test_equals_train_on_fewer_triples(kind: str, runs: dict[str, Run], tmp_path: Path) -> None:
    "The weights are those of `train` bit for bit, with all triples and with fewer."
    run = runs[kind]
    few = run.training.mapped_triples[[3, 400, 900]]
    assert state_fingerprint(train_again(run).state_dict()) == run.fingerprint(-1)
    data = EagerDataset(reduced(run, few), run.testing, run.validation)
    theirs = train(data, out=tmp_path / 'fewer', seed=5, **(HOW | KINDS[kind]))
    ours = train_again(run, few, batches='own', seed=5, device='cpu')
    assert state_fingerprint(ours.state_dict()) == theirs.fingerprint(-1)


@pytest.mark.parametrize('kind', ['slcwa', 'inverse'])
def test_same_batches_by_hand(kind: str, runs: dict[str, Run]) -> None:
    "PyKEEN's batches in a plain loop, rows of the dropped triples left out one by one."
    run = runs[kind]
    few = run.training.mapped_triples[[3, 400, 900]]
    out = {*map(tuple, few.tolist())}
    if kind == 'inverse':
        both = [((h, 2 * r, t), (t, 2 * r + 1, h)) for h, r, t in out]
        out = {row for pair in both for row in pair}
    model = build_model(run.settings, run.training)
    set_random_seed(run.seed)
    loop = build_loop(run.settings, model, run.training)
    how = dict(batch_size=256, drop_last=False, sampler=None)
    loader, taken = loop._create_training_data_loader(run.training, **how), 0
    for _ in range(run.settings['epochs']):
        for batch in loader:
            kept = [tuple(row) not in out for row in batch['positives'].tolist()]
            taken += kept.count(False)
            batch = {name: x[kept] for name, x in batch.items()}
            loss = loop._process_batch(batch, 0, sum(kept))
            loop.optimizer.zero_grad()
            loss.backward()
            model.post_forward_pass()
            loop.optimizer.step()
            model.post_parameter_update()
        if loop.lr_scheduler:
            loop.lr_scheduler.step()
    assert taken == len(out) * run.settings['epochs']
    ours = train_again(run, few, device='cpu').state_dict()
    torch.testing.assert_close(dict(ours), dict(model.state_dict()), rtol=1e-6, atol=1e-7)


def test_same_batches_under_lcwa(runs: dict[str, Run]) -> None:
    "Where no pair of head and relation vanishes, own batches are the same."
    run = runs['lcwa']
    triples = run.training.mapped_triples
    pairs, which, counts = triples[:, :2].unique(dim=0, return_inverse=True, return_counts=True)
    shared, lone = (triples[(keep)[which]][:1] for keep in (counts > 2, counts == 1))
    prints = lambda few: [
        state_fingerprint(train_again(run, few, batches=b, device='cpu').state_dict())
        for b in ('same', 'own')
    ]
    assert len({*prints(shared)}) == 1 and len({*prints(lone)}) == 2


@pytest.mark.parametrize('kind', KINDS)
def test_side_by_side(kind: str, runs: dict[str, Run]) -> None:
    "Each model is the one that is trained alone, and ranks all tails as it does."
    run = runs[kind]
    few = run.training.mapped_triples[[3, 400, 900]]
    sets, pairs = [few, few[:1], few[[2]]], run.training.mapped_triples[::50, :2]
    assert not why_alone(run, sets)
    models = [*train_without(run, sets, seed=1, device='cpu')]
    for model, some in zip(models, (None, *sets), strict=True):
        alone = train_again(run, some, seed=1, device='cpu')
        apart = dict(rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(dict(model.state_dict()), dict(alone.state_dict()), **apart)
        order = [m.score_t(pairs).argsort(stable=True).tolist() for m in (model, alone)]
        assert order[0] == order[1] and not model.training
    assert len({state_fingerprint(m.state_dict()) for m in models}) == 4


def test_one_after_another(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    "Where it cannot go side by side, the result says why, and is the same."
    few = run.training.mapped_triples[:1]
    asks = lambda **how: verification(run, PREDICTION, triples=few, each=False, seeds=1, **how)
    settings = dict(early_stopping=dict(patience=2), precision='bf16', optimizer='muon')
    settings['training_kwargs'] = dict(gradient_clipping_max_norm=1.0)
    for name, value in settings.items():
        other = replace(run, settings=run.settings | {name: value})
        assert why_alone(other, [few])
    assert asks(batches='own').alone == 'each has its own batches'
    told = carry_out(asks(device='cpu'), progress=False)
    assert 'side by side, in its batches' in told.facts['way']

    def unknown(*args: object) -> None:
        raise RuntimeError('no rule for it')

    monkeypatch.setattr(side_by_side.SideBySide, '_loss', unknown)
    found = carry_out(asks(device='cpu'), progress=False)
    assert found.facts['way'].endswith('cannot be made for a stack of models: no rule for it.')
    assert 'no rule for it' in ' '.join(repr(found).split())
    pd.testing.assert_frame_equal(found.frame, told.frame, rtol=1e-5)
    monkeypatch.setattr(
        side_by_side.SideBySide,
        '_loss',
        lambda self, batch, params: sum(p.sum() for p in params.values()),
    )
    plan = asks(device='cpu')
    plan.first()
    assert plan.alone.startswith('its first steps differ by ')


def test_as_many_side_by_side_as_fit(runs: dict[str, Run], monkeypatch: pytest.MonkeyPatch) -> None:
    "Where 128 models take too much memory, fewer go side by side, and the falls are the same."
    run, test = runs['lcwa'], runs['lcwa'].testing.mapped_triples[:2]
    deletions = [Deletion(i % 2, (i,)) for i in range(9)]
    whole = removed(run, test, deletions, 0, 'cpu')
    sets = [run.training.mapped_triples[[i]] for i in range(40)]
    assert most_together(run, sets) == TOGETHER
    one = side_by_side._rows_bytes(settings_again(run), run.model(-1, 'cpu'))
    monkeypatch.setattr(side_by_side, 'MEMORY', 6 * one)
    assert most_together(run, sets) == 4
    for found, expected in zip(removed(run, test, deletions, 0, 'cpu'), whole):
        torch.testing.assert_close(torch.tensor(found), torch.tensor(expected))
    monkeypatch.setattr(side_by_side, 'MEMORY', one)
    with pytest.raises(RunError, match='cannot go side by side: their steps'):
        most_together(run, sets)


def test_goes_on(run: Run, tmp_path: Path) -> None:
    "What was done before it was interrupted is kept, for the same question only."
    few = run.training.mapped_triples[:2]
    ask = dict(triples=few, seeds=2, device='cpu', each=False, out=tmp_path / 'proof.csv')

    def stop(label: str, done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verify(run, PREDICTION, progress=stop, **ask)
    with pytest.raises(ValueError, match='begun with another each'):
        verify(run, PREDICTION, progress=False, **ask | dict(each=True))
    heard: list = []
    found = verify(run, PREDICTION, progress=lambda *said: heard.append(said), **ask)
    assert heard[0][1:] == (3, 6) and heard[0][0].startswith('3 trainings')
    whole = verify(run, PREDICTION, progress=False, **ask | dict(out=None))
    pd.testing.assert_frame_equal(found.frame, whole.frame)
    assert [p.name for p in tmp_path.iterdir()] == ['proof.csv']
    for name, said in (('proof.csv', 'already exists'), ('proof.txt', 'expected a file ending')):
        with pytest.raises(ValueError, match=said):
            verify(run, PREDICTION, **ask | dict(out=tmp_path / name))


def test_rows(run: Run, proof: tuple[Result, Verified]) -> None:
    "Each row is what a training without that set gives, from its seed."
    result, found = proof
    frame, named = found.to_frame(), result.proponents[PARTS].head(2)
    assert list(frame) == [
        *('dropped', 'triples', 'set', *PARTS),
        *(f'{what}_{when}' for what in MEASURES for when in ('before', 'after')),
        *('seed', 'members'),
    ]
    counts = frame.groupby(['seed', 'dropped', 'set'])['triples'].agg(list).to_dict()
    one = {('nothing', 'together'): [0]}
    for kind in ('control', 'proponent'):
        one |= {(kind, 'alone'): [1, 1], (kind, 'together'): [2]}
    assert counts == {(seed, *key): sizes for seed in (0, 1) for key, sizes in one.items()}
    assert frame.query("set == 'alone' and seed == 1 and dropped == 'proponent'")[
        PARTS
    ].to_numpy().tolist() == (named.to_numpy().tolist())
    row = frame.query("dropped == 'proponent' and set == 'together' and seed == 1").iloc[0]
    assert row['members'] == '; '.join('  '.join(x) for x in named.to_numpy())
    prediction = to_ids(PREDICTION, run.training)
    for when, few in (('before', None), ('after', to_ids(named, run.training))):
        model = train_again(run, few, seed=1, device='cpu')
        probability = (-losses(model, Softmax(), prediction)).exp().item()
        assert row[f'probability_{when}'] == pytest.approx(probability, rel=1e-6)
        score = model.score_hrt(prediction).item()
        assert row[f'score_{when}'] == pytest.approx(score, rel=1e-6)
        state = {n: x.clone() for n, x in model.state_dict().items()}
        other = replace(run, state=lambda k, state=state: state)
        other.checkpoints = [replace(c, probe=None) for c in run.checkpoints]
        assert row[f'rank_{when}'] == beliefs(other, prediction)['tail_rank'][0]
    nothing = found.of('nothing')
    assert nothing['score_before'].nunique() == 1 and nothing['score_after'].nunique() == 2


def test_controls(run: Run, proof: tuple[Result, Verified]) -> None:
    "Random triples at an entity of the prediction: never named, never it, others for each seed."
    result, found = proof
    named = {*map(tuple, found.facts['named'])}
    controls = [[*map(tuple, rows)] for rows in found.facts['controls'].values()]
    assert controls[0] != controls[1] and [len({*rows}) for rows in controls] == [2, 2]
    for head, relation, tail in sum(controls, []):
        assert {head, tail} & {'ussr', 'usa'} and (head, relation, tail) not in {PREDICTION} | named
    alone = found.of('control', together=False)[PARTS].to_numpy().tolist()
    assert {*map(tuple, alone)} == {*sum(controls, [])}
    every = verification(run, result, k=2, control='any', seeds=20, each=False)
    drawn = {row for x in every.sets if x.dropped == 'control' for row in x.rows}
    ends = to_ids(PREDICTION, run.training)[0, [0, 2]]
    triples = run.training.mapped_triples[sorted(drawn)]
    assert not torch.isin(triples[:, [0, 2]], ends).any(1).all()


def test_result_carries_it(proof: tuple[Result, Verified], tmp_path: Path) -> None:
    "In text, HTML and files, with the triple that it is about."
    result, found = proof
    words = found.verdict()
    assert words.startswith('Without these two the prediction ')
    for shown in (text_table(result), repr(found), repr(result)):
        assert words in ' '.join(shown.split())
    again = Result.load(result.save(tmp_path / 'why'))
    assert again.said(0)[-1] == f'Trained again: {words}'
    pd.testing.assert_frame_equal(again.verified, result.verified)
    assert 'Trained again' in again._repr_html_() and 'only ' in found._repr_html_()
    assert explained.__name__ and 'verified' not in text_table(result, verbose=True)


def test_round_trip(proof: tuple[Result, Verified], tmp_path: Path) -> None:
    found = proof[1]
    again = Verified.load(found.save(tmp_path / 'proof.json'))
    pd.testing.assert_frame_equal(again.frame, found.frame)
    assert (again.facts, repr(again)) == (found.facts, repr(found))
    table = pd.read_csv(found.save(tmp_path / 'proof.csv'), keep_default_na=False)
    pd.testing.assert_frame_equal(table, found.frame, check_dtype=False)
    (tmp_path / 'other.json').write_text('{"kind": "Result"}')
    with pytest.raises(ValueError, match='other.json: expected JSON of a Verified'):
        Verified.load(tmp_path / 'other.json')


def test_refused(run: Run, proof: tuple[Result, Verified], tmp_path: Path) -> None:
    "What cannot be retrained, and what does not fit."
    result = proof[0]
    foreign = Run.from_model(run.model(-1), run.training, learning_rates=[0.1], loop='slcwa')
    begun = replace(run, checkpoints=[replace(run.checkpoints[-1], epoch=2)])
    saved = Run.open(foreign.save(tmp_path / 'saved'))
    for other, said in ((foreign, 'are not all known'), (saved, 'are not all known')):
        with pytest.raises(RunError, match=said):
            verify(other, result)
    with pytest.raises(RunError, match='interrupted after epoch 2 of 3'):
        verify(begun, result)
    with pytest.raises(RunError, match='over heads'):
        verify(replace(run, target='head'), result)
    with pytest.raises(ValueError, match='k is 4, and the result names 3 proponents'):
        verify(run, result, k=4)
    with pytest.raises(ValueError, match='is not a training triple'):
        verify(run, result, triples=[('ussr', 'embassy', 'ussr')])
    with pytest.raises(ValueError, match='triples= must name'):
        verify(run, PREDICTION)
    two = TracIn(run, progress=False).explain([PREDICTION, ('usa', 'embassy', 'china')], k=3)
    with pytest.raises(ValueError, match='select one by test='):
        verify(run, two)
    with pytest.raises(IndexError, match='there is no test triple 2'):
        verify(run, two, test=2)
    others = run.training.mapped_triples[:700]
    with pytest.raises(ValueError, match='can serve as controls'):
        verify(run, result, triples=others)
    for name, value in (('seeds', 0), ('k', 0), ('processes', 0)):
        with pytest.raises(ValueError, match=name):
            verify(run, result, **dict(k=3) | {name: value})


def test_another_run(runs: dict[str, Run], proof: tuple[Result, Verified]) -> None:
    with pytest.raises(ValueError, match='the result is of another run'):
        verify(runs['lcwa'], proof[0])


def test_saved_run_and_new_start(run: Run, tmp_path: Path) -> None:
    "A saved run is trained again; weights that differ make a new training, which is said."
    state = {n: x + 0.001 for n, x in run.state(-1).items()}
    moved = replace(run, state=lambda k: state, folder=None)
    moved.checkpoints = [replace(c, fingerprint=None, probe=None) for c in run.checkpoints]
    saved = Run.open(moved.save(tmp_path / 'moved'))
    few = run.training.label_triples(run.training.mapped_triples[:1])
    found = verify(saved, PREDICTION, triples=few, seeds=1, device='cpu', progress=False)
    assert '"Before" is a new training with the settings of the run' in found.facts['repeats']
    assert found.frame['dropped'].tolist() == ['nothing', 'named', 'control']
    assert found.verdict().endswith('One seed cannot distinguish this from chance: use more seeds.')
    assert found.frame['head'].tolist()[1] == few[0, 0]


def test_progress_says_the_price_before(run: Run) -> None:
    heard = []
    few = run.training.mapped_triples[:1]
    tell = lambda *said: heard.append(said)
    verify(run, PREDICTION, triples=few, seeds=2, device='cpu', progress=tell)
    assert heard[0][0].startswith('6 trainings, 3 at a time side by side: about ')
    assert [*dict.fromkeys(said[1:] for said in heard)] == [(n, 6) for n in range(7)]


def test_command_line(run: Run, tmp_path: Path) -> None:
    ask = ['verify', str(run.folder), '--triple', *PREDICTION]
    few = tmp_path / 'few.tsv'
    lines = run.training.label_triples(run.training.mapped_triples[[4, 5]])
    few.write_text(''.join('\t'.join(row) + '\n' for row in lines))
    how = ['--processes', '1', '--seeds', '1']
    done = CliRunner().invoke(main, [*ask, '-k', '2', *how, '--format', 'json'])
    assert done.exit_code == 0 and 'at a time side by side: about' in done.stderr, done.stderr
    content = json.loads(done.stdout)
    assert [x['dropped'] for x in content['rows']].count('control') == 3
    out = tmp_path / 'proof.json'
    done = CliRunner().invoke(
        main, [*ask, '--drop', str(few), *how, '--together', '--out', str(out)]
    )
    assert done.exit_code == 0 and Verified.load(out).facts['named'] == lines.tolist()
    folder = tmp_path / 'why'
    explained(run).save(folder)
    ask_saved = ['verify', str(run.folder), '--result', str(folder), '-k', '1']
    done = CliRunner().invoke(main, [*ask_saved, *how, '--one-by-one'])
    assert done.exit_code == 0 and f'noted in {folder}' in done.stderr, done.stderr
    assert len(Result.load(folder).verified) == 3
    assert 'not side by side: that was asked for' in done.stdout
    for more, said in (
        (['--triple', 'usa', 'embassy', 'china'], 'does not explain usa embassy china'),
        (['--top', '3'], '--result does not go with --top'),
    ):
        done = CliRunner().invoke(main, [*ask_saved, *more])
        assert (done.exit_code, said in done.stderr) == (2, True), done.stderr
    for more, said in (
        (['--out', str(out)], 'already exists'),
        (['--out', 'proof.txt'], 'expected a file ending in .json or .csv'),
        (['-k', '3', '--drop', str(few)], '--drop does not go with -k'),
        (['--triple', 'usa', 'embassy', 'china'], 'one prediction is verified at a time, not 2'),
    ):
        done = CliRunner().invoke(main, [*ask, *more])
        assert (done.exit_code, said in done.stderr) == (2, True), done.stderr
