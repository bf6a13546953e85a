"""`Run.predict`: PyKEEN's scores, the right marks, any open parts, ready for `explain`."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import click
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from click.testing import Result as Outcome
from pykeen.predict import predict_target

from tracin_nb import Run, TracIn, train
from tracin_nb.app.cli import main
from tracin_nb.app.options import Choice
from tracin_nb.graph.triples import UnknownLabelError, to_ids
from tracin_nb.runs.settings import RunError

PARTS = ['head', 'relation', 'tail']


@pytest.fixture(scope='module', params=[False, True], ids=['plain', 'inverse'])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    "ComplEx after five epochs, which is not symmetric, without and with inverse relations."
    return train(
        'nations',
        'ComplEx',
        model_kwargs=dict(embedding_dim=4),
        epochs=5,
        lr=0.05,
        inverse=request.param,
        out=tmp_path_factory.mktemp('predict') / 'run',
        device='cpu',
        progress=False,
    )


def stated(run: Run) -> dict[str, set[tuple[int, ...]]]:
    "The triples of each part."
    parts = dict(training=run.training, validation=run.validation, test=run.testing)
    return {name: {*map(tuple, part.mapped_triples.tolist())} for name, part in parts.items()}


def marks(run: Run, frame: pd.DataFrame) -> list[str]:
    "Where each triple of a frame is, counted by hand."
    sets = stated(run)
    ids = map(tuple, to_ids(frame, run.training).tolist())
    return [next((n for n, known in sets.items() if row in known), 'new') for row in ids]


@pytest.mark.parametrize('target', PARTS)
def test_scores_are_those_of_pykeen(run: Run, target: str) -> None:
    given = dict(head='brazil', relation='embassy', tail='china')
    del given[target]
    model = run.model(-1, 'cpu')
    theirs = predict_target(model, **given, triples_factory=run.training).df
    ours = run.predict(**given, k=100, known='show', device='cpu')
    assert len(ours) == len(theirs)
    assert [*ours['score']] == sorted(theirs['score'], reverse=True)
    by_label = dict(zip(theirs[f'{target}_label'], theirs['score']))
    assert [by_label[label] for label in ours[target]] == [*ours['score']]
    if target == 'relation':  # whose numbers inside a model with inverse relations are others
        own = model.predict_hrt(to_ids(ours, run.training))[:, 0].tolist()
        assert own == pytest.approx([*ours['score']], rel=1e-5)


@pytest.mark.parametrize(
    'given',
    [dict(head='usa', relation='embassy'), dict(tail='usa', relation='embassy')]
    + [dict(head='usa', tail='uk'), dict(head='usa'), dict(tail='usa'), dict(relation='embassy')],
)
def test_marks_and_filter(run: Run, given: dict[str, str]) -> None:
    shown = run.predict(**given, k=60, known='show', device='cpu')
    assert [*shown['known']] == marks(run, shown)
    hidden = run.predict(**given, k=20, device='cpu')
    assert {*hidden['known']} <= {'new'} and {*marks(run, hidden)} <= {'new'}
    assert all((hidden[part] == label).all() for part, label in given.items())
    first = shown[shown['known'] == 'new'].head(len(hidden))
    assert [*first['score']] == pytest.approx([*hidden['score'].head(len(first))])
    assert [*first['rank']] == [*hidden['rank'].head(len(first))]


@pytest.mark.parametrize('given', ['head', 'relation', 'tail'])
def test_two_open_parts_are_the_best_of_all(run: Run, given: str) -> None:
    "Among all triples with the one part that is given, scored one by one."
    label = dict(head='usa', relation='embassy', tail='usa')[given]
    model, training = run.model(-1, 'cpu'), run.training
    n, r = training.num_entities, training.real_num_relations
    known = dict(head='usa', relation='embassy', tail='usa')
    ids = to_ids([tuple(known.values())], training)[0].tolist()
    column = PARTS.index(given)
    ways = [range(n), range(r), range(n)]
    ways[column] = [ids[column]]
    all_of = torch.cartesian_prod(*map(torch.tensor, map(list, ways)))
    new = [
        row
        for row in map(tuple, all_of.tolist())
        if not any(row in s for s in stated(run).values())
    ]
    target = 'head' if given == 'tail' else 'tail'
    pairs = [c for c in range(3) if PARTS[c] != target]
    scores = model.predict(torch.tensor(new)[:, pairs], target=target, full_batch=False)
    own = scores.gather(1, torch.tensor(new)[:, [PARTS.index(target)]])[:, 0]
    best = own.topk(7).values.tolist()
    found = run.predict(**{given: label}, k=7, device='cpu')
    assert [*found['score']] == pytest.approx(best, rel=1e-5)
    assert [*found['rank']] == [1, 2, 3, 4, 5, 6, 7]


def test_fewer_than_asked(run: Run) -> None:
    "Never more than there are."
    found = run.predict('usa', 'embassy', k=1000, device='cpu')
    assert 0 < len(found) < run.training.num_entities


def test_checkpoint(run: Run, tmp_path: Path) -> None:
    "The checkpoint that is named predicts, not the last one."
    two = train(
        'nations',
        'DistMult',
        model_kwargs=dict(embedding_dim=4),
        epochs=2,
        keep_every=1,
        lr=0.1,
        out=tmp_path / 'two',
        device='cpu',
        progress=False,
    )
    first = two.predict('usa', 'embassy', k=3, checkpoint=0, device='cpu')
    theirs = predict_target(
        two.model(0, 'cpu'), head='usa', relation='embassy', triples_factory=two.training
    )
    assert {*first['score']} <= {*theirs.df['score']}
    assert [*first['score']] != [*two.predict('usa', 'embassy', k=3, device='cpu')['score']]


def test_ready_for_explain(run: Run) -> None:
    "The frame, or a row of it, is what `explain` takes."
    tracin = TracIn(run, objective='score', progress=False, devices='cpu')
    found = run.predict('usa', 'embassy', k=2, device='cpu')
    result = tracin.explain(found, k=1)
    asked = result.tests[[f'test_{part}' for part in PARTS]]
    assert asked.to_numpy().tolist() == found[PARTS].to_numpy().tolist()
    assert len(tracin.explain(found.iloc[1], k=1).tests) == 1


def test_errors_name_what_is_meant(run: Run) -> None:
    with pytest.raises(UnknownLabelError, match="unknown entity 'brasil'; nearest: 'brazil'"):
        run.predict('brasil', 'embassy')
    with pytest.raises(UnknownLabelError, match="unknown relation 'embasy'; nearest: 'embassy'"):
        run.predict('brazil', 'embasy')
    with pytest.raises(RunError, match='all three leave nothing to predict'):
        run.predict('brazil', 'embassy', 'china')
    with pytest.raises(RunError, match='one or two of head, relation and tail'):
        run.predict()
    with pytest.raises(RunError, match="known='mark' must be 'hide' or 'show'"):
        run.predict('brazil', 'embassy', known='mark')
    with pytest.raises(RunError, match='k must be a whole number at least 1'):
        run.predict('brazil', 'embassy', k=0)


# ---- the command


def command(*args: object) -> Outcome:
    return CliRunner().invoke(main, ['predict', *map(str, args)])


def test_command_gives_the_same(run: Run, tmp_path: Path) -> None:
    "In each form, on stdout and in a file, by place and by flag."
    best = run.predict(relation='embassy', tail='cuba', k=3)
    by_place = command(run.folder, '-', 'embassy', 'cuba', '-k', 3, '--format', 'csv')
    assert by_place.exit_code == 0
    pd.testing.assert_frame_equal(pd.read_csv(StringIO(by_place.stdout)), best, check_dtype=False)
    flags = '--relation', 'embassy', '--tail', 'cuba', '-k', 3
    assert (
        json.loads(command(run.folder, *flags, '--format', 'json').stdout)['rows'][0]['known']
        == 'new'
    )
    table = command(run.folder, *flags)
    rows = [line.split()[2] for line in table.stdout.splitlines()[1:]]
    assert rows == ['head', *best['head']]
    for ending, read in (('.csv', pd.read_csv), ('.parquet', pd.read_parquet)):
        path = tmp_path / f'found{ending}'
        assert command(run.folder, *flags, '--out', path).exit_code == 0
        assert [*read(path)['head']] == [*best['head']]
    refused = command(run.folder, *flags, '--out', tmp_path / 'found.csv')
    assert refused.exit_code == 2 and 'already exists' in refused.stderr


@pytest.mark.parametrize(
    ('args', 'said'),
    [
        (['chnia', 'embassy'], "--head: unknown entity 'chnia'; nearest: 'china'"),
        (['china', '--relation', 'embasy'], "--relation: unknown relation 'embasy'"),
        ([], 'give one or two of --head, --relation and --tail'),
        (['china', 'embassy', 'cuba'], 'there is nothing to predict'),
        (['china', '--head', 'cuba'], 'the head is also given as an argument: china'),
        (['china', '--known', 'mark'], '--known'),
        (['china', '--out', 'some/folder'], 'expected a file ending in .csv'),
        (['china', '--checkpoint', '7'], '--checkpoint'),
    ],
)
def test_command_errors(run: Run, args: list[str], said: str) -> None:
    done = command(run.folder, *args)
    assert done.exit_code == 2 and said in done.stderr and 'Traceback' not in done.stderr


def test_top(run: Run) -> None:
    "`--top` explains the best new predictions, and says what it lacks."
    choice = Choice(top=2, relation=('embassy',), tail='cuba')
    choice.check()
    best = run.predict(relation='embassy', tail='cuba', k=2)
    assert choice.chosen(run).tolist() == to_ids(best, run.training).tolist()
    for wrong, said in (
        (Choice(top=2), 'specify one or two of --head, --relation and --tail'),
        (Choice(top=2, relation=('a', 'b')), 'takes --relation once'),
        (Choice(top=2, head='cuba', maximum=1), '--top already sets how many'),
        (Choice(head='cuba', maximum=1), 'needs --top'),
    ):
        with pytest.raises(click.BadParameter, match=said):
            wrong.check()
    both = Choice(top=2, head='cuba', triple=(('china', 'embassy', 'cuba'),))
    with pytest.raises(click.UsageError, match='--triple and --top exclude each other'):
        both.check()
