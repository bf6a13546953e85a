"""Make the files of the data set `drugmechdb` that ships inside the package.

python tools/drugmechdb.py FOLDER [OUT]  # OUT: by default tracin_nb/graph/data/drugmechdb

FOLDER has train.txt, valid.txt, test.txt (head, relation, tail; no header), nodes.tsv (id, type,
name) and paths.tsv (record, drug, disease, head, relation, tail), tab-separated, in UTF-8. OUT
gets the same files, gzipped, with the rows in the same order: the same bytes every time. Left out,
and counted, is only what nobody could use:

- a row that stands earlier in its file already;
- a held-out triple with an entity or a relation that no training triple has;
- a node that no training triple has;
- a step of a path that is no training triple.

Refused is what would make the data set wrong: a held-out pair of drug and disease that training
joins in either direction, an entity without a name, a record about two pairs.
"""

import argparse
import gzip
import io
import os
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / 'tracin_nb/graph/data/drugmechdb'
HEADERS = {
    'train.txt': None,
    'valid.txt': None,
    'test.txt': None,
    'nodes.tsv': ('id', 'type', 'name'),
    'paths.tsv': ('record', 'drug', 'disease', 'head', 'relation', 'tail'),
}
Rows = list[tuple[str, ...]]


def read(path: Path) -> Rows:
    "The rows of a file below its header, if it has one."
    header = HEADERS[path.name]
    text = path.read_bytes().decode('utf-8')
    rows = [tuple(line.split('\t')) for line in text.split('\n') if line]
    if header and rows.pop(0) != header:
        raise SystemExit(f'{path}: line 1: expected {header}')
    if wrong := [row for row in rows if len(row) != len(header or 'hrt') or not all(row)]:
        raise SystemExit(f'{path}: expected {len(header or "hrt")} columns, none empty: {wrong[0]}')
    return rows


def write(rows: Rows, path: Path) -> None:
    "Write rows and header to `path`, gzipped, without a time and a name inside."
    lines = ['\t'.join(row) for row in [HEADERS[path.name.removesuffix('.gz')], *rows] if row]
    file = io.BytesIO()
    with gzip.GzipFile(filename='', mode='wb', compresslevel=9, fileobj=file, mtime=0) as f:
        f.write(('\n'.join(lines) + '\n').encode('utf-8'))
    tmp = path.with_name(path.name + '.tmp')
    tmp.write_bytes(file.getvalue())
    os.replace(tmp, path)


def kept(rows: Rows, good: Callable[[tuple[str, ...]], bool]) -> tuple[Rows, int, int]:
    "The good rows, each once; how many were repeated, and how many not good."
    once = list(dict.fromkeys(rows))
    some = [row for row in once if good(row)]
    return some, len(rows) - len(once), len(once) - len(some)


def usable(train: Iterable[tuple[str, ...]]) -> dict[str, Callable[[tuple[str, ...]], bool]]:
    "For each file, whether a row of it can be used beside these training triples."
    triples = set(train)
    entities = {x for h, _, t in triples for x in (h, t)}
    relations = {r for _, r, _ in triples}
    known = lambda row: row[0] in entities and row[1] in relations and row[2] in entities
    return {
        'train.txt': lambda row: True,
        'valid.txt': known,
        'test.txt': known,
        'nodes.tsv': lambda row: row[0] in entities,
        'paths.tsv': lambda row: row[3:] in triples,
    }


def check(files: dict[str, Rows]) -> None:
    "Refuse what would make the data set wrong."
    train = files['train.txt']
    joined = {pair for h, _, t in train for pair in ((h, t), (t, h))}
    held_out = [*files['valid.txt'], *files['test.txt']]
    if leaks := [row for row in held_out if (row[0], row[2]) in joined]:
        raise SystemExit(f'{len(leaks)} held-out pairs are joined in training: {leaks[0]}')
    if both := {row[::2] for row in files['valid.txt']} & {row[::2] for row in files['test.txt']}:
        raise SystemExit(f'{len(both)} pairs are in validation and in test: {min(both)}')
    names = [row[0] for row in files['nodes.tsv']]
    if without := {x for h, _, t in train for x in (h, t)} - set(names):
        raise SystemExit(f'{len(without)} entities have no name: {min(without)}')
    if len(names) > len(set(names)):
        raise SystemExit('an entity has two names')
    pairs = {row[:3] for row in files['paths.tsv']}
    if len(pairs) > len({record for record, _, _ in pairs}):
        raise SystemExit('a record is about two pairs')


def build(source: Path, out: Path = OUT) -> dict[str, tuple[int, int, int]]:
    "Write the package's files; for each, the rows kept, repeated, and of no use."
    files = {name: read(source / name) for name in HEADERS}
    good, counts = usable(files['train.txt']), {}
    for name, rows in files.items():
        files[name], *left = kept(rows, good[name])
        counts[name] = (len(files[name]), *left)
    check(files)
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        write(rows, out / f'{name}.gz')
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('source', type=Path, help='folder with the five files')
    parser.add_argument('out', type=Path, nargs='?', default=OUT, help='folder to write to')
    args = parser.parse_args()
    for name, (n, again, useless) in build(args.source, args.out).items():
        print(f'{name}: {n:,} rows; left out: {again} repeated, {useless} of no use')


if __name__ == '__main__':
    main()
