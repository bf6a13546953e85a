"""A thousand malformed inputs: a clear error or the right reading, never a traceback, a zero status
or half a result.

Every case is drawn from a seed of its own, `KIND-NUMBER`, which a failure names."""

import json
import logging
import math
import os
import pickle
import random
import shutil
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import click
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from click.testing import Result as Outcome

from tracin_nb.answer.results import Result
from tracin_nb.app.cli import main
from tracin_nb.influence.parts import Parts
from tracin_nb.influence.tracin import TracIn
from tracin_nb.runs.keeping import file_facts
from tracin_nb.runs.run import Run
from tracin_nb.runs.training import train

pytestmark = pytest.mark.filterwarnings('ignore')
logging.getLogger('pykeen').setLevel(logging.ERROR)
ENTITIES, RELATIONS, K = [f'e{i}' for i in range(8)] + ['ä ö'], ['likes', 'owns', 'near'], 5
QUICK = ('--device', 'cpu', '--batch-size', 64)  # without trials of how large a tile may be
PRINT = ('-k', K, '--format', 'json', *QUICK)
Triple = tuple[str, str, str]


# ---- the inputs before anything happens to them


@dataclass
class World:
    "A small graph, a run on it, and one whole file of each kind that a command reads."

    folder: Path
    train: list[Triple]
    test: list[Triple]
    truth: dict[
        Triple, dict[int, float]
    ]  # influence by test triple and number of the training triple

    def __getitem__(self, name: str) -> Path:
        return self.folder / name


def tsv(rows: list[tuple[Any, ...]]) -> str:
    return ''.join('\t'.join(map(str, row)) + '\n' for row in rows)


def begun(folder: Path, out: Path, triple: Triple) -> None:
    "A result of which three of five shards are finished."

    class Stop(Exception):
        pass

    write = Parts.write

    def some(self: Parts, shard: int, tensors: dict[str, torch.Tensor]) -> None:
        if shard == 3:
            raise Stop
        write(self, shard, tensors)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr(Parts, 'write', some)
        TracIn(folder, devices='cpu', batch_size=8, progress=False).explain([triple], K, out=out)


@pytest.fixture(scope='module')
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    rng, d = random.Random(0), tmp_path_factory.mktemp('world')
    rows = sorted(
        {(rng.choice(ENTITIES), rng.choice(RELATIONS), rng.choice(ENTITIES)) for _ in range(70)}
    )
    rng.shuffle(rows)
    (d / 'graph').mkdir()
    known, test = rows[:40], rows[40:44]
    for name, part in (('train', known), ('test', test)):
        (d / f'graph/{name}.txt').write_text(tsv(part), 'utf-8')
    run = train(
        d / 'graph',
        'DistMult',
        model_kwargs=dict(embedding_dim=4),
        out=d / 'run',
        epochs=2,
        keep_every=1,
        lr=0.05,
        progress=False,
        device='cpu',
    )
    tracin = TracIn(run, devices='cpu', progress=False)
    every = [(h, r, t) for h in ENTITIES for r in RELATIONS for t in ENTITIES]
    truth = {t: dict(enumerate(s)) for t, s in zip(every, tracin.scores(every).tolist())}
    for name in ('entity_to_id', 'relation_to_id'):
        (d / f'{name}.tsv').write_text(tsv(list(getattr(run.training, name).items())), 'utf-8')
    (d / 'names.tsv').write_text(
        tsv([(f'Name of {label}', i) for label, i in run.training.entity_to_id.items()]), 'utf-8'
    )
    (d / 'edges.json').write_text(
        json.dumps({json.dumps(dict(predicate=f'x:{r}s')): r for r in RELATIONS})
    )
    (d / 'types.tsv').write_text(
        tsv([('id', 'type'), *((e, 'AB'[i % 2]) for i, e in enumerate(ENTITIES))]), 'utf-8'
    )
    path = [('record', 'drug', 'disease', 'head', 'relation', 'tail')]
    path += [(f'r{i // 2}', test[0][0], test[0][2], *row) for i, row in enumerate(known[:6])]
    (d / 'mechanisms.tsv').write_text(tsv(path), 'utf-8')
    torch.save(run.model(-1).state_dict(), d / 'state.pt')
    begun(run.folder, d / 'begun', test[0])
    shutil.copytree(d / 'begun', d / 'whole')
    good('resume', d / 'whole')
    good(
        'batch',
        run.folder,
        '--test',
        d / 'graph/test.txt',
        '--output-dir',
        d / 'batch',
        '--max-triples',
        2,
    )
    good('explain', run.folder, '--max', 1, '--cache', d / 'cache', '--keep-training', '1GiB')
    return World(d, known, test, truth)


def invoke(*args: Any) -> Outcome:
    return CliRunner().invoke(main, [str(a) for a in args])


def good(*args: Any) -> Outcome:
    done = invoke(*args)
    assert done.exit_code == 0, done.stderr
    return done


# ---- the rule


@dataclass
class Case:
    args: tuple[Any, ...]  # the command
    names: tuple[str, ...]  # of which an error names at least one
    right: Callable[[Outcome], None]  # raises AssertionError unless a result is complete and right
    accepts: bool | None = None  # must it be accepted? None: either
    out: Path | None = None  # where a result goes that must not be there after a failure
    failed_items: bool = False  # may the status be 1, with a line for each item that failed?


def check(case: Case, folder: Path) -> None:
    "The rule that every case keeps."
    before = tree(folder)
    done = invoke(*case.args)
    if not isinstance(done.exception, SystemExit | None):
        raise AssertionError(
            f'{type(done.exception).__name__}: {done.exception}'
        ) from done.exception
    errors = [line for line in done.stderr.splitlines() if line.startswith('tracin: error:')]
    assert 'Traceback' not in done.output
    hidden = [p for p in folder.rglob('.*') if p not in before]
    assert not hidden, f'left behind: {hidden}'
    if done.exit_code == 0:
        assert not errors, errors
        assert case.accepts is not False, 'accepted'
        return case.right(done)
    if done.exit_code == 1 and case.failed_items:
        return case.right(done)
    assert done.exit_code == 2 and len(errors) == 1, (done.exit_code, errors)
    assert case.accepts is not True, f'refused: {errors[0]}'
    assert done.stdout == '', done.stdout[:200]
    assert len(errors[0]) < 2000 and any(n in errors[0] for n in case.names), (
        f'{case.names} not named: {errors[0]}'
    )
    assert case.out is None or not os.path.lexists(case.out), (
        f'{case.out} is there after: {errors[0]}'
    )


def tree(folder: Path) -> set[Path]:
    return set(folder.rglob('*'))


def answers(
    world: World, done: Outcome, tests: list[Triple] | None = None, exact: bool = True
) -> dict[str, Any]:
    """The result printed as JSON; raises unless it is whole: about `tests`, and `exact`ly the
    influences of `world`."""
    content = json.loads(done.stdout, parse_constant=lambda x: pytest.fail(f'{x} in a result'))
    found = [tuple(t[f'test_{n}'] for n in ('head', 'relation', 'tail')) for t in content['tests']]
    assert tests is None or found == tests, (found, tests)
    ranked(world, pd.DataFrame(content['rows']), found, exact)
    return content


def ranked(world: World, frame: pd.DataFrame, tests: list[Triple], exact: bool, k: int = K) -> None:
    "Raise unless each test has its strongest `k` of either sign."
    for i, test in enumerate(tests):
        of, truth = frame[frame['test_index'] == i], world.truth.get(test)
        assert len(of) and all(map(math.isfinite, of['influence']))
        if not exact or truth is None:
            continue
        assert of['influence'].tolist() == pytest.approx(
            [truth[n] for n in of['training_index']], rel=1e-3, abs=1e-7
        )
        signs = [[v for v in truth.values() if s * v > 0] for s in (1, -1)]
        assert len(of) == sum(min(k, len(side)) for side in signs)


# ---- mutations

LONG, HUGE = 'x' * 70_000, '9' * 5000
ODD = [
    '',
    ' ',
    '\t',
    '\0',
    '\r',
    '\ufeff',
    '"',
    "'",
    'nan',
    '-1',
    '0',
    '1.0',
    '1e3',
    '٣',
    '²',
    '99999999999999999999',
    HUGE,
    LONG,
    'é',
    '\u2028',
    '\x85',
    '\x0b',
    'é' * 300,
    '🙂',
    '\\N',
    '#',
    'NA',
    '../..',
    'e0',
    'likes',
    'E0',
    '{}',
]


def bytes_changed(rng: random.Random, data: bytes) -> bytes:
    "One of many ways in which a file gets damaged."
    at, n = rng.randrange(len(data) + 1), rng.randrange(1, 5)
    if not data:
        return b'\0'
    return rng.choice(
        [
            lambda: data[:at],
            lambda: data[at:],
            lambda: b'',
            lambda: b'\n',
            lambda: b'\xef\xbb\xbf',
            lambda: data[:at] + bytes(rng.randrange(256) for _ in range(n)) + data[at:],
            lambda: data[:at] + bytes(rng.randrange(256) for _ in range(n)) + data[at + n :],
            lambda: data[:at] + bytes([(data + b'x')[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :],
            lambda: b'\xef\xbb\xbf' + data,
            lambda: data[:at] + b'\xef\xbb\xbf' + data[at:],
            lambda: data[:at] + rng.choice(ODD).encode() + data[at:],
            lambda: data + data,
            lambda: data.replace(b'\n', b'\r\n'),
            lambda: data.replace(b'\n', b'\r'),
            lambda: data + b'\n' * n,
            lambda: data.decode('utf-8', 'replace').encode('utf-16'),
            lambda: data.rstrip(b'\n'),
            lambda: data.decode('utf-8', 'replace').encode('latin-1', 'replace'),
            lambda: data + b'\0',
        ]
    )()


def table_changed(rng: random.Random, data: bytes) -> bytes:
    "One of many ways in which a table is not what it should be."
    rows = [line.split('\t') for line in data.decode().splitlines()]
    i, j = rng.randrange(len(rows)), rng.randrange(len(rows))
    c, d = rng.sample(range(len(rows[i])), 2)

    def put(text: str) -> None:
        rows[i][c] = text

    def swap() -> None:
        rows[i][c], rows[i][d] = rows[i][d], rows[i][c]

    def swap_all() -> None:
        for row in rows:
            row[c], row[d] = row[d], row[c]

    rng.choice(
        [
            lambda: put(rng.choice(ODD)),
            lambda: put(rng.choice(ODD)),
            lambda: put(rows[i][c] + rng.choice(ODD)),
            lambda: put(rows[i][d]),
            lambda: put(rows[j][c]),
            lambda: put(str(rng.randrange(-3, 20))),
            lambda: rows[i].pop(c),
            lambda: rows[i].insert(c, rng.choice(ODD)),
            swap,
            swap_all,
            lambda: rows.insert(j, rows[i]),
            lambda: rows.pop(i),
            lambda: rows.insert(i, []),
            lambda: rng.shuffle(rows),
            lambda: rows.insert(0, ['head', 'relation', 'tail'][: len(rows[0])]),
            lambda: rows.insert(0, ['label', 'index']),
            lambda: [row.append('x') for row in rows],
            lambda: [row.pop() for row in rows],
        ]
    )()
    spoilt = rows[min(i, len(rows) - 1)] if rows and rng.random() < 0.3 else None
    between = lambda row: rng.choice(['\t', ' ', ',', '\t\t', ';']) if row is spoilt else '\t'
    text = '\n'.join(between(row).join(row) for row in rows) + '\n'
    return text.encode()


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    "Paths to all values inside a value of JSON."
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


WRONG = [
    None,
    True,
    False,
    0,
    -1,
    1,
    7,
    0.5,
    -0.5,
    1e308,
    10**400,
    math.nan,
    math.inf,
    -math.inf,
    '',
    'x',
    'nan',
    '1',
    '\0',
    '../x',
    '/',
    LONG[:5000],
    [],
    [[]],
    {},
    [None],
    {'x': 1},
    [1, 2],
    ['x'],
    [-1],
    [10**9],
    {'': None},
]


def json_changed(rng: random.Random, data: bytes) -> tuple[bytes, tuple]:
    "JSON with one value replaced, removed, added or repeated, and where."
    content = json.loads(data)
    path = rng.choice(list(places(content)))
    *way, key = path
    inner = content
    for step in way:
        inner = inner[step]
    action = rng.randrange(6)
    if action < 3:
        inner[key] = rng.choice(WRONG)
    elif action == 3:
        inner.pop(key)
    elif action == 4 and isinstance(inner, list):
        inner.append(inner[key])
    elif action == 4:
        inner[rng.choice(ODD)] = inner[key]
    elif isinstance(inner[key], (int, float)):
        inner[key] += rng.choice([1, -1, 0.5])
    else:
        inner[key] = str(inner[key])[: rng.randrange(1 + len(str(inner[key])))]
    return json.dumps(content).encode(), path


def object_changed(rng: random.Random, data: bytes) -> tuple[bytes, tuple | None]:
    "A damaged JSON file; where, if it is one value."
    if rng.random() < 0.75:
        return json_changed(rng, data)
    text = rng.choice(
        [
            lambda: bytes_changed(rng, data),
            lambda: b'[' * 100_000,
            lambda: b'{"a":' * 50_000,
            lambda: json.dumps(rng.choice(WRONG)).encode(),
            lambda: data.replace(b'{', b'{"x": 1, "x": 2, ', 1),
            lambda: b'[' + data + b']',
        ]
    )()
    return text, None


def no_file(rng: random.Random, path: Path) -> bytes | None:
    "Something that is no file in place of one; None as there is nothing to read."
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    rng.choice(
        [
            lambda: path.mkdir(),
            lambda: path.symlink_to('nowhere'),
            lambda: path.symlink_to(path),
            lambda: None,
            lambda: path.write_bytes(b''),
        ]
    )()
    return None


def damaged(
    rng: random.Random, source: Path, path: Path, change: Callable[[random.Random, bytes], bytes]
) -> bytes | None:
    "Write a damaged copy of a file; its content, None if there is no such file."
    if rng.random() < 0.06:
        return no_file(rng, path)
    data = source.read_bytes()
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        data = (bytes_changed if rng.random() < 0.4 and data else change)(rng, data)
    path.write_bytes(data)
    return data


def lines_of(data: bytes | None, width: int, headers: tuple = ()) -> list[tuple[str, ...]] | None:
    """The rows of a table, read by the rules of `read_triples` as simply as can be; None if it
    must be refused."""
    try:
        text = (data or b'').removeprefix(b'\xef\xbb\xbf').rstrip(b'\r\n').decode()
    except UnicodeDecodeError:
        return None
    rows = [tuple(line.removesuffix('\r').split('\t')) for line in text.split('\n')]
    if any(
        len(row) != width or any(not x.strip() or '\0' in x or '\r' in x for x in row)
        for row in rows
    ):
        return None
    if tuple(x.lower() for x in rows[0]) in headers:
        rows = rows[1:]
    return rows or None


TRIPLE_HEADERS, MAP_HEADERS = (('head', 'relation', 'tail'),), (('label', 'index'),)


def map_of(data: bytes | None) -> dict[str, int] | None:
    "A label map; None if it must be refused."
    rows = lines_of(data, 2, MAP_HEADERS)
    if rows is None or not all(x.isascii() and x.isdecimal() and len(x) < 4000 for _, x in rows):
        return None
    found = {label: int(x) for label, x in rows}
    return found if sorted(int(x) for _, x in rows) == list(range(len(found))) else None


# ---- kinds of cases


def table_or_bytes(rng: random.Random, data: bytes) -> bytes:
    try:
        return table_changed(rng, data)
    except (ValueError, IndexError, UnicodeDecodeError):
        return bytes_changed(rng, data)


def a_test_file(rng: random.Random, world: World, folder: Path) -> Case:
    data = damaged(rng, world['graph/test.txt'], path := folder / 'tests.tsv', table_or_bytes)
    rows = lines_of(data, 3, TRIPLE_HEADERS)
    accepts = rows is not None and all(row in world.truth for row in rows)
    args = ('explain', world['run'], '--test', path, *PRINT)
    return Case(args, (str(path),), lambda done: answers(world, done, rows), accepts)


def a_training_file(rng: random.Random, world: World, folder: Path) -> Case:
    data = damaged(rng, world['graph/train.txt'], path := folder / 'train.tsv', table_or_bytes)
    rows, ask, out = lines_of(data, 3, TRIPLE_HEADERS), world.test[0], folder / 'out.tsv'
    ends, kinds = {x for h, _, t in rows or () for x in (h, t)}, {r for _, r, _ in rows or ()}
    accepts = rows is not None and {ask[0], ask[2]} <= ends and ask[1] in kinds

    def right(done: Outcome) -> None:
        assert set(lines_of(out.read_bytes(), 3)) == set(rows)

    args = (
        'filter',
        '--train',
        path,
        '--triple',
        *ask,
        '--min-degree',
        1,
        '--no-preserve-test-edges',
        '--out',
        out,
    )
    return Case(args, (str(path), '--triple'), right, accepts, out)


def a_label_map(rng: random.Random, world: World, folder: Path) -> Case:
    name = rng.choice(['entity_to_id', 'entity_to_id', 'relation_to_id'])
    data = damaged(rng, world[f'{name}.tsv'], path := folder / f'{name}.tsv', table_or_bytes)
    maps = {
        n: map_of(data if n == name else world[f'{n}.tsv'].read_bytes())
        for n in ('entity_to_id', 'relation_to_id')
    }
    plain = {n: map_of(world[f'{n}.tsv'].read_bytes()) for n in maps}
    needed = ENTITIES if name == 'entity_to_id' else RELATIONS
    accepts = maps[name] is not None and set(maps[name]) == set(needed)
    args = (
        'explain',
        '--model-path',
        world['state.pt'],
        '--train',
        world['graph/train.txt'],
        '--learning-rate',
        0.1,
        *(
            x
            for n in maps
            for x in (f'--{n.replace("_", "-")}', path if n == name else world[f'{n}.tsv'])
        ),
        '--model',
        'distmult',
        '--triple',
        *world.test[0],
        *PRINT,
    )

    def right(done: Outcome) -> None:
        content = answers(world, done, [world.test[0]], exact=False)
        if maps == plain:
            assert content['rows'] == json.loads(foreign(world).stdout)['rows']

    # a map that fits the file but not the training triples or the weights is found there
    return Case(
        args, (str(path), str(world['graph/train.txt']), str(world['state.pt'])), right, accepts
    )


def foreign(world: World, path: Path | None = None, *more: Any) -> Outcome:
    return invoke(
        'explain',
        '--model-path',
        path or world['state.pt'],
        '--train',
        world['graph/train.txt'],
        '--learning-rate',
        0.1,
        '--entity-to-id',
        world['entity_to_id.tsv'],
        '--relation-to-id',
        world['relation_to_id.tsv'],
        '--model',
        'distmult',
        '--triple',
        *world.test[0],
        *PRINT,
        *more,
    )


def names_file(rng: random.Random, world: World, folder: Path) -> Case:
    data = damaged(rng, world['names.tsv'], path := folder / 'names.tsv', table_or_bytes)
    rows, out = lines_of(data, 2, (*MAP_HEADERS, ('name', 'index'))), folder / 'out.csv'
    names = None if rows is None else {i: name for name, i in rows}
    label = {str(i): e for e, i in map_of(world['entity_to_id.tsv'].read_bytes()).items()}
    if names is not None and (len(names) < len(rows) or not set(names) <= set(label)):
        names = None

    def right(done: Outcome) -> None:
        table = pd.read_csv(out, keep_default_na=False)
        assert table.shape[1] == 14 and len(table)
        by_label = {label[str(i)]: name for i, name in names.items()}
        assert table['TrainHead_label'].tolist() == [by_label.get(x, x) for x in table['TrainHead']]

    args = (
        'explain',
        world['run'],
        '--triple',
        *world.test[0],
        '-k',
        K,
        '--csv-output',
        out,
        '--node-name-dict',
        path,
        *QUICK,
    )
    return Case(
        args,
        (str(path),),
        right,
        None if any(not str(i).isascii() for i in names or ()) else names is not None,
        out,
    )


def edge_file(rng: random.Random, world: World, folder: Path) -> Case:
    out, path = folder / 'out.csv', folder / 'edges.json'
    if rng.random() < 0.06:
        no_file(rng, path)
    else:
        path.write_bytes(object_changed(rng, world['edges.json'].read_bytes())[0])

    def right(done: Outcome) -> None:
        table = pd.read_csv(out, keep_default_na=False)
        assert (
            table.shape[1] == 14 and len(table) and isinstance(json.loads(path.read_text()), dict)
        )

    args = (
        'explain',
        world['run'],
        '--triple',
        *world.test[0],
        '-k',
        K,
        '--csv-output',
        out,
        '--edge-map',
        path,
        *QUICK,
    )
    return Case(args, (str(path),), right, None, out)


def types_file(rng: random.Random, world: World, folder: Path) -> Case:
    damaged(rng, world['types.tsv'], path := folder / 'types.tsv', table_or_bytes)
    out, kinds = folder / 'out.csv', folder / 'kinds.csv'

    def right(done: Outcome) -> None:
        table, metapaths = pd.read_csv(out), pd.read_csv(kinds)
        assert metapaths['paths'].sum() == len(table) > 0 and table['score'].is_monotonic_decreasing

    args = (
        'paths',
        world['run'],
        '--triple',
        *world.test[0],
        '--max-edges',
        2,
        '--types',
        path,
        '--csv-output',
        out,
        '--metapath-output',
        kinds,
        *QUICK,
    )
    return Case(args, (str(path), '--types'), right, None, out)


def mechanism_file(rng: random.Random, world: World, folder: Path) -> Case:
    data = damaged(rng, world['mechanisms.tsv'], path := folder / 'mechanisms.tsv', table_or_bytes)
    rows = lines_of(data, 6)

    def right(done: Outcome) -> None:
        content = answers(world, done, [world.test[0]])
        known = {r[3:] for r in rows[1:] if r[1:3] == (world.test[0][0], world.test[0][2])}
        if rows[0][3:] == ('head', 'relation', 'tail') and rows[0][1:3] == ('drug', 'disease'):
            for r in content['rows']:
                if r['IsGroundTruth']:
                    assert (r['head'], r['relation'], r['tail']) in known

    args = (
        'explain',
        world['run'],
        '--triple',
        *world.test[0],
        '-k',
        K,
        '--mechanism-paths',
        path,
        '--format',
        'json',
        *QUICK,
    )
    return Case(args, (str(path),), right, False if rows is None else None)


LEGITIMATE = (
    'learning_rate',
    'loss',
    'loss_kwargs',
    'label_smoothing',
    'loop',
    'seed',
    'negative_sampler',
    'negative_sampler_kwargs',
)  # other values of these are other questions


def run_folder(rng: random.Random, world: World, folder: Path) -> Case:
    """A run of which one file is damaged; half of the time its new size and checksum are noted
    in run.json."""
    shutil.copytree(world['run'], run := folder / 'run')
    path, where = run / rng.choice(['run.json'] * 6 + sorted(os.listdir(run))), None
    if path.name == 'run.json':
        if rng.random() < 0.05:
            no_file(rng, path)
        else:
            data, where = object_changed(rng, path.read_bytes())
            path.write_bytes(data)
    elif (
        damaged(rng, path, path, table_or_bytes if path.suffix == '.tsv' else bytes_changed)
        is not None
        and rng.random() < 0.5
    ):
        note(run, path)
    exact = where is None or not set(where) & set(LEGITIMATE)
    exact &= path.suffix != '.tsv'  # noted labels are other labels
    command = rng.choice(['explain', 'explain', 'self', 'adam', 'filter'])
    out = folder / 'out.tsv'

    def right(done: Outcome) -> None:
        if command in ('explain', 'adam'):
            answers(world, done, None, exact and command == 'explain')
        elif command == 'self':
            assert len(json.loads(done.stdout)['rows']) == K
        else:
            assert out.read_text()

    args = dict(
        explain=('explain', run, '--triple', *world.test[0], *PRINT),
        self=('self', run, *PRINT),
        filter=('filter', run, '--triple', *world.test[0], '--min-degree', 1, '--out', out),
    )
    args['adam'] = (*args['explain'], '--weighting', 'adam')
    return Case(args[command], (str(run), '--triple', 'weighting'), right, None, out)


def note(run: Path, path: Path) -> None:
    "Make run.json agree with a changed file."
    facts, new = json.loads((run / 'run.json').read_text()), file_facts(path)
    for entry in [
        *facts['files'].values(),
        *(row[n] for row in facts['checkpoints'] for n in ('model', 'optimizer')),
    ]:
        if entry['file'] == path.name:
            entry.update(new)
    (run / 'run.json').write_text(json.dumps(facts))


def result_folder(rng: random.Random, world: World, folder: Path) -> Case:
    "A result, whole or begun, of which something is damaged."
    kind = rng.choice(['begun', 'begun', 'whole'])
    shutil.copytree(world[kind], out := folder / 'out')
    path = out / rng.choice(
        ['question.json'] * 5 + [str(p.relative_to(out)) for p in sorted(out.rglob('*'))]
    )
    if path.is_dir() or rng.random() < 0.06:
        no_file(rng, path)
    elif path.suffix == '.json':
        path.write_bytes(object_changed(rng, path.read_bytes())[0])
    else:
        path.write_bytes(bytes_changed(rng, path.read_bytes()))
    command = rng.choice(['resume', 'resume', 'status', 'explain'])

    def right(done: Outcome) -> None:
        if command == 'status':
            assert done.stdout.startswith(str(out)) and (
                'finished' in done.stdout or 'shards done' in done.stdout
            )
        else:
            whole_result(world, out)

    args = dict(
        resume=('resume', out),
        status=('status', out),
        explain=(
            'explain',
            world['run'],
            '--triple',
            *world.test[0],
            '-k',
            K,
            '--batch-size',
            8,
            '--device',
            'cpu',
            '--out',
            out,
        ),
    )
    return Case(args[command], (str(out),), right)


def whole_result(world: World, out: Path) -> None:
    found = Result.load(out)
    ranked(world, found.frame, [world.test[0]], exact=True)


def batch_folder(rng: random.Random, world: World, folder: Path) -> Case:
    "Predictions, or the files of an older batch, damaged."
    tests, out, rows = folder / 'tests.tsv', folder / 'out', world.test[:2]
    shutil.copy(world['graph/test.txt'], tests)
    if fresh := rng.random() < 0.5:
        data = damaged(rng, world['graph/test.txt'], tests, table_or_bytes)
        found = lines_of(data, 3, TRIPLE_HEADERS)
        rows = None if found is None else found[:2]
    else:
        shutil.copytree(world['batch'], out)
        path = out / rng.choice(['batch_manifest.json'] * 3 + sorted(os.listdir(out)))
        if rng.random() < 0.06:
            no_file(rng, path)
        else:
            path.write_bytes(
                object_changed(rng, path.read_bytes())[0]
                if path.suffix == '.json'
                else bytes_changed(rng, path.read_bytes())
            )

    def right(done: Outcome) -> None:
        summary = json.loads((out / 'batch_tracin_summary.json').read_text())
        assert [(r['head'], r['relation'], r['tail']) for r in summary['results']] == rows
        for r in summary['results']:
            known = (r['head'], r['relation'], r['tail']) in world.truth
            assert (r['status'] == 'failed') == (not known) == ('error' in r)
            if not known:
                continue
            content = json.loads(
                (out / next(f for f in r['files'] if f.endswith('.json'))).read_text()
            )
            ranked(
                world,
                pd.DataFrame(content['rows']),
                [(r['head'], r['relation'], r['tail'])],
                exact=True,
                k=10,
            )
        assert (done.exit_code == 1) == (summary['failed'] > 0)

    args = (
        'batch',
        world['run'],
        '--test',
        tests,
        '--output-dir',
        out,
        '--max-triples',
        2,
        '--skip-existing',
        *QUICK,
    )
    return Case(
        args,
        (str(tests), str(out)),
        right,
        rows is not None if fresh else None,
        out if fresh else None,
        True,
    )


class Opener:
    "A pickle that makes a file when it is loaded."

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return open, (str(self.path), 'w')


def state_changed(rng: random.Random, state: dict[str, Any]) -> Any:
    "A state dictionary of the wrong kind."
    name = rng.choice(list(state))
    t, state = state[name], dict(state)

    def put(value: Any) -> dict:
        return state | {name: value}

    nan = t.clone()
    nan.view(-1)[rng.randrange(t.numel())] = rng.choice([math.nan, math.inf, -math.inf])
    return rng.choice(
        [
            lambda: {n: v for n, v in state.items() if n != name},
            lambda: state | {'more': t},
            lambda: state | {'epoch': 3},
            lambda: put(t[1:]),
            lambda: put(t[:, 1:]),
            lambda: put(t.T),
            lambda: put(t.flatten()),
            lambda: put(t[:0]),
            lambda: put(t.unsqueeze(0)),
            lambda: put(nan),
            lambda: put(t.to(torch.complex64)),
            lambda: put(t.to(torch.int32)),
            lambda: put(t.half()),
            lambda: put(t.double()),
            lambda: put(t.to_sparse()),
            lambda: put(t.tolist()),
            lambda: put(None),
            lambda: put('x'),
            lambda: put(torch.tensor(1.0)),
            lambda: put(t.bool()),
            lambda: put({}),
            lambda: {1: t},
            lambda: {},
            lambda: [t],
            lambda: t,
            lambda: 7,
            lambda: None,
            lambda: 'x',
            lambda: {'state_dict': {}},
            lambda: {'state_dict': state, 'version': 2},
            lambda: {'model_state_dict': 3},
            lambda: {'state_dict': state},
            lambda: {'model_state_dict': state, 'epoch': rng.choice(WRONG)},
            lambda: put(t.to('meta')),
            lambda: {
                'model_state_dict': state,
                'model_config': {
                    rng.choice(
                        ['model', 'embedding_dim', 'label_smoothing', 'learning_rate', 'x']
                    ): rng.choice(WRONG)
                },
            },
            lambda: {
                'model_state_dict': state,
                'optimizer_state_dict': rng.choice(
                    [
                        *WRONG,
                        {'param_groups': [{}]},
                        {'param_groups': [{'lr': 'x'}], 'state': []},
                        {
                            'param_groups': [{'lr': 0.1, 'params': rng.choice(WRONG)}],
                            'state': {0: rng.choice(WRONG)},
                        },
                    ]
                ),
            },
            lambda: {'model_state_dict': state, 'entity_to_id_dict': rng.choice(WRONG)},
            lambda: {f'module.{n}': v for n, v in state.items()},
        ]
    )()


def checkpoint_file(rng: random.Random, world: World, folder: Path) -> Case:
    path, way = folder / 'model.pt', rng.randrange(10)
    if way == 0:
        no_file(rng, path)
    elif way == 1:
        path.write_bytes(
            rng.choice(
                [
                    b'',
                    b'\x80',
                    b'\x80\x02.',
                    b'PK\x03\x04',
                    b'PK\x05\x06' + b'\0' * 18,
                    b'text',
                    pickle.dumps(dict(a=1)),
                    pickle.dumps(Opener(folder / 'ran')),
                    rng.randbytes(500),
                    b'\x80\x02}q\0.',
                    json.dumps(WRONG[5]).encode(),
                ]
            )
        )
    elif way < 5:
        path.write_bytes(bytes_changed(rng, world['state.pt'].read_bytes()))
    elif way == 5:
        entries_changed(rng, world['state.pt'], path)
    else:
        torch.save(
            state_changed(rng, torch.load(world['state.pt'], weights_only=True)),
            path,
            _use_new_zipfile_serialization=rng.random() < 0.8,
        )

    def right(done: Outcome) -> None:
        content, want = (
            answers(world, done, [world.test[0]], exact=False),
            json.loads(foreign(world).stdout),
        )
        if way < 6:
            assert content['rows'] == want['rows']
        else:
            assert [r['influence'] for r in content['rows']] == pytest.approx(
                [r['influence'] for r in want['rows']], rel=2e-2, abs=1e-4
            )

    name = () if rng.random() < 0.1 else ('--model', 'distmult')
    args = (
        'explain',
        '--model-path',
        path,
        '--train',
        world['graph/train.txt'],
        '--learning-rate',
        0.1,
        '--entity-to-id',
        world['entity_to_id.tsv'],
        '--relation-to-id',
        world['relation_to_id.tsv'],
        *name,
        '--triple',
        *world.test[0],
        *PRINT,
    )
    return Case(args, (str(path),), right, out=folder / 'ran')


def entries_changed(rng: random.Random, source: Path, path: Path) -> None:
    """A checkpoint with one record of its archive missing, doubled, or of other content,
    checksums right."""
    with zipfile.ZipFile(source) as old:
        records = [(n, old.read(n)) for n in old.namelist()]
    i = rng.randrange(len(records))
    name, data = records[i]
    records[i : i + 1] = rng.choice(
        [
            lambda: [],
            lambda: [(name, data)] * 2,
            lambda: [(name, data[: len(data) // 2])],
            lambda: [(name + 'x', data)],
            lambda: [(name, b'')],
            lambda: [(f'../{name}', data)],
        ]
    )()
    with zipfile.ZipFile(path, 'w') as new:
        for name, data in records:
            new.writestr(name, data)


# ---- options

VALUES = [
    '',
    ' ',
    '0',
    '1',
    '2',
    '3',
    '-1',
    '-0',
    '0.5',
    '1.0',
    '1e3',
    'nan',
    'inf',
    '-inf',
    '1e-320',
    '1e400',
    '9' * 30,
    HUGE,
    'x',
    'é',
    '🙂',
    '\u202e',
    ',',
    ',,',
    '0,0',
    '1,2',
    '-1,x',
    '0,',
    '{}',
    '[]',
    'null',
    '{"x": 1}',
    '{"x"',
    'e0',
    'likes',
    '--',
    '-',
    '/',
    '..',
    '/dev/null',
    '/nowhere/x',
    'a\nb',
    '1KiB',
    '-1GB',
    '0B',
    '10B',
    '9e99GB',
    '1 TB',
    'cpu',
    'cuda:99',
    'cpu:7',
    'meta',
    'tpu',
    'true',
    'None',
    'equal',
    'adam',
    'loop',
    'fp16',
    'csv',
    'json',
    'self',
]
SLOW = {
    'compile',
    'timeout',
    'cache',
    'keep_training',
    'max_edges',
    'resume',
}  # tested elsewhere, or at length
PATHS = {'out', 'csv_output', 'metapath_output', 'all_scores', 'output_dir'}


def options_of(command: click.Command) -> list[click.Option]:
    return [
        p
        for p in command.params
        if isinstance(p, click.Option) and p.name not in {*SLOW, *PATHS, 'help'}
    ]


def drawn(rng: random.Random, option: click.Option) -> list[str]:
    "An option with values from anywhere."
    name = rng.choice([o for o in option.opts if o.startswith('--')])
    if option.is_flag:
        return [name]
    if isinstance(option.type, click.Choice) and rng.random() < 0.6:
        return [name, rng.choice(list(option.type.choices))]
    if option.name in ('devices', 'device'):
        return [
            name,
            rng.choice(['', 'cpu', 'cpu', 'cuda:99', 'cpu:7', 'meta', 'tpu', 'x,y', ',', 'mps']),
        ]
    if option.name == 'projection_dim':
        return [name, rng.choice(['', '-1', '0', '1', '3', '64', 'nan', 'x', '9' * 15, '9' * 30])]
    return [name, *(rng.choice(VALUES) for _ in range(option.nargs))]


def an_option(rng: random.Random, world: World, folder: Path) -> Case:
    "A right command with one to three options more."
    name = rng.choice([*['explain'] * 3, 'batch', 'filter', 'paths', 'self', 'self', 'files'])
    command = main.commands['explain' if name == 'files' else name]
    out, test = folder / 'out', world.test[0]
    tests = ('--test', world['graph/test.txt'])
    base = dict(
        explain=[world['run'], *PRINT],
        self=[world['run'], *PRINT],
        batch=[world['run'], *tests, '--output-dir', out, '--max-triples', 1, *QUICK],
        filter=[world['run'], '--triple', *test, '--out', out],
        paths=[world['run'], '--triple', *test, *QUICK],
        files=[
            '--model-path',
            world['state.pt'],
            '--train',
            world['graph/train.txt'],
            '--model',
            'distmult',
            '--learning-rate',
            0.1,
            *PRINT,
        ],
    )[name]
    if name in ('explain', 'files') and rng.random() < 0.8:
        base += ['--triple', *test]
    if name == 'filter' and rng.random() < 0.7:
        base += ['--n-hops', 1]
    if name == 'paths':
        base += ['--max-edges', 2]
    more = [
        drawn(rng, option) for option in rng.sample(options_of(command), rng.choice([1, 1, 2, 3]))
    ]

    def right(done: Outcome) -> None:
        if name in ('explain', 'files', 'self'):
            printed(done)
        elif name == 'paths':
            assert done.stdout.strip()
        elif name == 'filter':
            assert lines_of(out.read_bytes(), 3) is not None or not out.stat().st_size
        else:
            assert json.loads((out / 'batch_tracin_summary.json').read_text())['total'] > 0

    names = [o for part in (base, *more) for o in part if isinstance(o, str) and o.startswith('-')]
    names += [
        o.removeprefix('--').rstrip('s').replace('-', by) for o in names for by in ' _'
    ]  # 'there is no checkpoint 7'
    names += ['specify', *(o for part in more for o in part if len(o) > 2)]
    return Case(
        (command.name, *base, *(x for part in more for x in part)),
        tuple(names),
        right,
        None,
        out if name == 'filter' else None,
        name == 'batch',
    )


def last_line(text: str) -> str:
    return text.rstrip().rpartition('\n')[2]


def printed(done: Outcome) -> None:
    "Raise unless the standard output is whole: JSON, CSV or a table."
    text = done.stdout
    if text.startswith('{'):
        frame = pd.DataFrame(json.loads(text)['rows'])
    elif '"influence"' in text.partition('\n')[0]:
        frame = pd.read_csv(StringIO(text))
    else:
        assert 'TracIn is a first-order estimate' in text or '; weighting ' in last_line(text)
        return
    assert not len(frame) or all(map(math.isfinite, frame['influence']))


def a_training(rng: random.Random, world: World, folder: Path) -> Case:
    "`tracin train` with one to three options more, or with a damaged file."
    out, graph, more = folder / 'out', world['graph'], []
    if rng.random() < 0.3:
        (graph := folder / 'graph').mkdir()
        damaged(rng, world['graph/train.txt'], graph / 'train.txt', table_or_bytes)
    else:
        options = [o for o in options_of(main.commands['train']) if o.name not in ('epochs',)]
        more = [given(rng, o) for o in rng.sample(options, rng.choice([1, 1, 2, 3]))]

    def right(done: Outcome) -> None:
        assert Run.open(out).model(-1) is not None

    args = (
        'train',
        graph,
        '--epochs',
        1,
        '--model',
        'DistMult',
        '--model-kwargs',
        '{"embedding_dim": 4}',
        '--device',
        'cpu',
        '--out',
        out,
        *(x for part in more for x in part),
    )
    names = [str(graph)] if not more else [x for part in more for x in part if len(x) > 2]
    names += [o.removeprefix('--').replace('-', '_') for o in names if o.startswith('--')]
    return Case(args, tuple(names), right, None, out)


def given(rng: random.Random, option: click.Option) -> list[str]:
    "An option of `train`; those that take JSON get an object more often than not."
    if not option.name.endswith('_kwargs') or rng.random() < 0.2:
        return drawn(rng, option)
    key = rng.choice(
        [
            'embedding_dim',
            'lr',
            'margin',
            'betas',
            'eps',
            'num_negs_per_pos',
            'drop_last',
            'reduction',
            'gamma',
            'x',
            '',
            'weight_decay',
            'filtered',
            'sampler',
            'num_workers',
            'label_smoothing',
        ]
    )
    return [option.opts[0], json.dumps({key: rng.choice(WRONG)})]


def other_commands(rng: random.Random, world: World, folder: Path) -> Case:
    "`resume`, `status`, `cache info` and `cache clear` of what they are not for; a damaged cache."
    place = rng.choice(
        [
            folder,
            folder / 'nothing',
            world['run'],
            world['graph'],
            world['graph/test.txt'],
            '',
            ' ',
            'é/x',
            'x' * 300,
            '-',
            '..',
            folder / 'cache',
            folder / 'cache',
        ]
    )
    if place == folder / 'cache':
        shutil.copytree(world['cache'], place)
        for path in rng.sample(
            files := sorted(p for p in place.rglob('*') if p.is_file()), min(2, len(files))
        ):
            if rng.random() < 0.1:
                no_file(rng, path)
            else:
                path.write_bytes(bytes_changed(rng, path.read_bytes()))
        ask = ('explain', world['run'], '--max', 1, *PRINT, '--cache', place)
        args = rng.choice([('cache', 'info', place), ('cache', 'clear', place), ask, ask])
    else:
        args = rng.choice(
            [
                ('resume', place),
                ('status', place),
                ('resume', place, '--devices', 'x'),
                ('resume', place, '--format', rng.choice(VALUES)),
                ('cache', 'info', place),
            ]
        )

    def right(done: Outcome) -> None:
        if args[0] == 'explain':
            answers(world, done)
        else:
            assert args[0] == 'cache' and done.stdout.strip()

    return Case(args, (str(place), repr(str(place)), "'DIR'", '--format', 'No such'), right)


KINDS = dict(
    test_file=(a_test_file, 100),
    training_file=(a_training_file, 150),
    label_map=(a_label_map, 100),
    names_file=(names_file, 75),
    edge_file=(edge_file, 75),
    types_file=(types_file, 50),
    mechanism_file=(mechanism_file, 50),
    run_folder=(run_folder, 125),
    result_folder=(result_folder, 100),
    batch_folder=(batch_folder, 50),
    checkpoint_file=(checkpoint_file, 100),
    option=(an_option, 150),
    training=(a_training, 25),
    other_commands=(other_commands, 50),
)
SIZE = 25
GROUPS = [
    (kind, first, min(SIZE, n - first))
    for kind, (_, n) in KINDS.items()
    for first in range(0, n, SIZE)
]


def test_there_are_a_thousand() -> None:
    assert sum(n for *_, n in GROUPS) >= 1000


@pytest.mark.parametrize(
    'kind, first, count', GROUPS, ids=[f'{kind}-{first}' for kind, first, _ in GROUPS]
)
def test_malformed(kind: str, first: int, count: int, world: World, tmp_path: Path) -> None:
    faults = []
    for number in range(first, first + count):
        (folder := tmp_path / f'{number}').mkdir()
        case = KINDS[kind][0](random.Random(f'{kind}-{number}'), world, folder)
        try:
            check(case, folder)
        except Exception as e:
            faults.append(
                f'{kind}-{number}: {type(e).__name__}: {str(e)[:600]}\n    '
                f'{" ".join(repr(str(a)[:90]) for a in case.args)}'
            )
        shutil.rmtree(folder)
    assert not faults, f'{len(faults)} of {count}:\n' + '\n'.join(faults)
