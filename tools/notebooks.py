"""Run the notebooks and keep their outputs; make README.md from nbs/index.ipynb.

python tools/notebooks.py run NB...         # execute, store outputs that a second run keeps
python tools/notebooks.py run --slow NB...  # the cells flagged slow, too
python tools/notebooks.py compare [--slow] NB...  # are the stored outputs still what a run gives?
python tools/notebooks.py check NB...       # are the stored outputs fit to be read by others?
python tools/notebooks.py readme [--check]  # write README.md, or fail if it is not up to date
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import nbformat
from fastcore.nbio import dict2nb, loads, nb2dict, nb2str
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbdev.clean import clean_nb
from nbdev.config import get_config
from nbdev.process import NBProcessor
from nbdev.processors import (
    clean_magics,
    filter_stream_,
    hide_,
    hide_line,
    rm_export,
    rm_header_dash,
    strip_ansi,
)
from nbdev.test import nb_test_cells

ROOT = Path(__file__).resolve().parent.parent
WIDGETS = 'application/vnd.jupyter.widget-state+json'
MAX_PNG = 50_000  # bytes
BAR = re.compile(r'\[\d\d:\d\d.*/s\]\s*$')
MACHINE_PATH = re.compile(r'(?<![\w./])/(?:home|root|Users|tmp|work|usr|opt|var|mnt)/[\w.-]+')
OF_THIS_MACHINE = '# times of this machine'  # a cell that says so keeps no outputs
UNFIT = {
    'a traceback': re.compile(r'Traceback \(most recent call last\)'),
    'a warning': re.compile(r'\w*Warning:'),
}


def replace(path: Path, text: str) -> None:
    "Write `text` to `path` atomically."
    tmp = path.with_name(path.name + '.tmp')
    tmp.write_text(text, encoding='utf-8')
    os.replace(tmp, path)


# ---- running


class Client(NotebookClient):
    "Executes the cells whose ids are in `chosen`; the others keep their stored outputs."

    chosen: set[str] = set()

    async def async_execute_cell(self, cell, *args, **kw):
        return (
            await super().async_execute_cell(cell, *args, **kw) if cell.id in self.chosen else cell
        )


def execute(path: Path, slow: bool = False) -> nbformat.NotebookNode:
    """Execute the notebook at `path` in its own folder, as `nbdev-test` would, and return it
    with its outputs. With `slow` the cells that are flagged so are executed, too."""
    nb = nbformat.read(path, as_version=4)
    old = nb.metadata.get('widgets', {}).get(WIDGETS, {}).get('state', {})
    flags = get_config(path.parent).tst_flags.split()
    skipped = [flag for flag in flags if not (slow and flag == 'slow')]
    client = Client(
        nb,
        timeout=1200,
        kernel_name='python3',
        record_timing=False,
        coalesce_streams=True,
        extra_arguments=['--log-level=40'],
        resources={'metadata': {'path': str(path.parent)}},
    )
    client.chosen = {c.id for c in nb_test_cells(path, skipped)}
    client.execute(
        env={**os.environ, 'PYTHONHASHSEED': '0'}
    )  # sets print in the same order each time
    for cell in nb.cells:
        if OF_THIS_MACHINE in cell.source and 'outputs' in cell:
            cell.outputs = []
    new = nb.metadata.get('widgets', {}).get(WIDGETS, {}).get('state', {})
    if old or new:
        nb.metadata.widgets = {
            WIDGETS: dict(state={**old, **new}, version_major=2, version_minor=0)
        }
    return nb


def is_passing(out: dict) -> bool:
    "Is `out` for the author only: stderr, or a tqdm progress bar, which shows times?"
    return out.get('name') == 'stderr' or bool(
        BAR.search(out.get('data', {}).get('text/plain', ''))
    )


def drop_passing(nb: nbformat.NotebookNode, name: str) -> None:
    "Drop stderr and progress bars from the outputs, and print what stderr said."
    for cell in nb.cells:
        for out in cell.get('outputs', []):
            if out.get('name') == 'stderr':
                print(f'{name} [{cell.id}] stderr dropped: {out.text.strip()[:300]}')
        if 'outputs' in cell:
            cell.outputs = [o for o in cell.outputs if not is_passing(o)]


def keep_shown_widgets(nb: dict) -> dict:
    """Keep the widgets that an output shows, and what they contain, named 0, 1, 2, ... in order
    of appearance."""
    state = nb['metadata'].get('widgets', {}).get(WIDGETS, {}).get('state', {})
    known = re.compile('|'.join(map(re.escape, state)) or '(?!)')
    todo, seen = known.findall(json.dumps([c.get('outputs', []) for c in nb['cells']])), []
    while todo:
        if (i := todo.pop(0)) in seen:
            continue
        seen.append(i)
        todo += known.findall(json.dumps(state[i]))
    if seen:
        nb['metadata']['widgets'][WIDGETS]['state'] = {i: state[i] for i in seen}
    else:
        nb['metadata'].pop('widgets', None)
    return (
        json.loads(known.sub(lambda m: f'{seen.index(m[0]):032x}', json.dumps(nb))) if seen else nb
    )


def stable(nb: nbformat.NotebookNode) -> str:
    """The notebook as text without anything that changes from run to run: counts, times,
    addresses, random ids."""
    nb = keep_shown_widgets(json.loads(nbformat.writes(nb)))
    clean_nb(nb := loads(json.dumps(nb)))
    for cell in nb['cells']:
        if 'outputs' not in cell:
            continue
        text = re.sub(r'\b0x[0-9a-f]{8,16}\b', '0x0', json.dumps(cell['outputs']))
        ids = list(
            dict.fromkeys(re.findall(r'\bT_([0-9a-f]{5})\b', text))
        )  # random ids of pandas' styled tables
        text = re.sub(
            r'\bT_([0-9a-f]{5})',
            lambda m: f'T_{ids.index(m[1]):05x}' if m[1] in ids else m[0],
            text,
        )
        cell['outputs'] = json.loads(text)
    return nb2str(nb)


PICTURE = re.compile(r'<div style="overflow-x: auto">(<svg.*</svg>\n?)</div>', re.DOTALL)


def keep_pictures(nb: nbformat.NotebookNode) -> None:
    """Keep a picture that a page would hold as an image: a notebook that nobody has trusted yet
    shows no SVG in HTML, but the PNG beside an image."""
    for cell in nb.cells:
        for out in cell.get('outputs', []):
            data = out.get('data', {})
            if found := PICTURE.fullmatch(''.join(data.get('text/html', ''))):
                data['image/svg+xml'] = found[1]
                del data['text/html']


def executed(
    paths: list[Path], slow: bool, bad: list[str]
) -> Iterator[tuple[Path, nbformat.NotebookNode]]:
    "The notebooks at `paths`, executed; `bad` is told of those that fail."
    for path in map(Path.resolve, paths):
        print(f'running {path.name}', flush=True)
        try:
            nb = execute(path, slow)
        except (CellExecutionError, DeadKernelError) as e:
            bad.append(f'{path.name}: {e}')
            continue
        drop_passing(nb, path.name)
        keep_pictures(nb)
        yield path, nb


def run(paths: list[Path], slow: bool = False) -> list[str]:
    """Execute and store each notebook; a notebook that fails is left as it was. Returns what
    went wrong."""
    bad = []
    for path, nb in executed(paths, slow, bad):
        replace(path, stable(nb))
        bad += problems(path)
    return bad


def compare(paths: list[Path], slow: bool = False) -> list[str]:
    "Execute each notebook and store nothing; where the stored outputs name other things."
    bad = []
    for path, nb in executed(paths, slow, bad):
        stored = json.loads(path.read_text(encoding='utf-8'))['cells']
        bad += differences(path.name, stored, nb.cells)
    return bad


# ---- checking


def names(outputs: list[dict]) -> list[str]:
    """What outputs name, in order: headers and entries of tables, words of other text. Numbers
    differ from machine to machine and are left out."""
    found = []
    for out in outputs:
        shown = out.get('data', {})
        page = ''.join(shown.get('text/html', '') or shown.get('image/svg+xml', ''))
        if page:
            entries = re.findall(r'<(t[hd]|text)\b[^>]*>(.*?)</\1>', page, re.DOTALL)
            found += [unescape(re.sub(r'<[^>]+>', '', e)).strip() for _, e in entries]
        else:
            found += texts(out).split()
    return [name for name in found if re.search(r'[^\W\d_]{2}', name)]


def differences(name: str, stored: list[dict], fresh: list[dict]) -> list[str]:
    "The cells of a notebook whose stored and fresh outputs do not name the same, one line each."
    pairs = [(names(c.get('outputs', [])) for c in pair) for pair in zip(stored, fresh)]
    return [
        f'{name} cell {i} [{cell["id"]}]: stored outputs name {a}, a run {b}'
        for i, (cell, (a, b)) in enumerate(zip(stored, pairs))
        if a != b
    ]


def texts(out: dict) -> str:
    "All text of one output (not its images)."
    data = [v for k, v in out.get('data', {}).items() if k != 'image/png']
    return '\n'.join(
        ''.join(v) if isinstance(v, list) else str(v) for v in [out.get('text', ''), *data]
    )


def faults(out: dict) -> list[str]:
    "What is wrong with one stored output."
    found, text = [], texts(out)
    if out['output_type'] == 'error':
        found.append(f'an error ({out["ename"]})')
    here = [p for p in {str(ROOT), str(Path.home()), sys.prefix} if len(p) > 1 and p + '/' in text]
    if path := MACHINE_PATH.search(text):
        here.append(path[0])
    found += [f'a path of this machine ({p})' for p in here[:1]]
    found += [f'{what} ({m[0]})' for what, pattern in UNFIT.items() if (m := pattern.search(text))]
    size = len(''.join(out.get('data', {}).get('image/png', ''))) * 3 // 4
    if size > MAX_PNG:
        found.append(f'a PNG of {size} bytes (at most {MAX_PNG})')
    return found


def problems(path: Path) -> list[str]:
    """What is wrong with the stored outputs of the notebook at `path`, one line each, with the
    cell's number and id."""
    cells = enumerate(json.loads(Path(path).read_text(encoding='utf-8'))['cells'])
    return [
        f'{Path(path).name} cell {i} [{c.get("id")}]: output holds {fault}'
        for i, c in cells
        for out in c.get('outputs', [])
        for fault in faults(out)
    ]


# ---- README


def only_output(nb: nbformat.NotebookNode) -> None:
    "Put the Markdown that a cell with `#| echo: false` gives in the place of the cell."
    for i, cell in enumerate(nb.cells):
        if cell.cell_type != 'code' or not cell.source.startswith('#| echo: false'):
            continue
        text = ''.join(cell.outputs[0]['data']['text/markdown'])
        nb.cells[i] = nbformat.v4.new_markdown_cell(text, id=cell.id)


def readme() -> str:
    "nbs/index.ipynb as Markdown, as nbdev would show it, with links that hold from the top folder."
    from nbconvert import MarkdownExporter

    procs = [strip_ansi, hide_line, filter_stream_, rm_header_dash, rm_export, clean_magics, hide_]
    source = nbformat.read(ROOT / 'nbs/index.ipynb', as_version=4)
    only_output(source)
    nbp = NBProcessor(nb=dict2nb(json.loads(nbformat.writes(source))), procs=procs, process=True)
    nb = nbformat.reads(json.dumps(nb2dict(nbp.nb)), as_version=4)
    nb.metadata['language_info'] = dict(name='python')
    text, made = MarkdownExporter().from_notebook_node(nb)
    if made.get('outputs'):
        raise ValueError('nbs/index.ipynb: an output is an image, which README.md cannot hold')
    text = re.sub(r'<style.*?</style>\n*', '', text, flags=re.DOTALL)
    text = re.sub(r'(\]\()(?!\w+:|#|/|\.\./)', r'\1nbs/', text).replace('](../', '](')
    text = re.sub(r'((?:src|srcset)=")\.\./', r'\1', text)
    text = re.sub(r'\n{3,}', '\n\n', text).strip()
    return f'<!-- Made from nbs/index.ipynb by `make readme`: edit the notebook. -->\n\n{text}\n'


def update_readme(check: bool) -> list[str]:
    "Write README.md, or with `check` only compare. Returns what is wrong."
    path, text = ROOT / 'README.md', readme()
    if not check:
        replace(path, text)
    same = path.exists() and path.read_text(encoding='utf-8') == text
    return [] if same else ['README.md differs from nbs/index.ipynb: run `make readme`']


def main() -> None:
    ap = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    ap.add_argument('command', choices=['run', 'compare', 'check', 'readme'])
    ap.add_argument('notebooks', nargs='*', type=Path)
    ap.add_argument('--check', action='store_true', help='readme: compare instead of writing')
    ap.add_argument('--slow', action='store_true', help='run, compare: cells flagged slow, too')
    args = ap.parse_intermixed_args()
    if args.command == 'readme':
        bad = update_readme(args.check)
    elif args.command == 'run':
        bad = run(args.notebooks, args.slow)
    elif args.command == 'compare':
        bad = compare(args.notebooks, args.slow)
    else:
        bad = [p for nb in args.notebooks for p in problems(nb)]
    sys.exit('\n'.join(bad) if bad else 0)


if __name__ == '__main__':
    main()
