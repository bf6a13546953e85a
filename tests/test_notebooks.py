"""tools/notebooks.py: which cells it runs, and what it calls stale."""

import ast
import json
import os
import shutil
from pathlib import Path

import nbformat
import pytest

from tools.notebooks import OF_THIS_MACHINE, compare, differences, execute, names, run

ROOT = Path(__file__).resolve().parent.parent


def slow(path: Path) -> list[dict]:
    "The cells of a notebook that are flagged slow, with their source as one string."
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    sources = [{**c, 'source': ''.join(c['source'])} for c in cells]
    return [c for c in sources if c['source'].startswith('#| slow')]


SLOW = [p for p in sorted(ROOT.glob('nbs/**/*.ipynb')) if slow(p)]


def table(*rows: tuple[str, str]) -> dict:
    "An output as pandas makes it."
    body = ''.join(
        f'<tr><th>{i}</th><td>{a}</td><td>{b}</td></tr>' for i, (a, b) in enumerate(rows)
    )
    page = f'<table><tr><th></th><th>head</th><th>influence</th></tr>{body}</table>'
    return dict(output_type='execute_result', data={'text/html': page, 'text/plain': '...'})


def test_names() -> None:
    "Columns, and the names of the rows in their order; no numbers."
    assert names([table(('ann', '1.5'), ('cats &amp; dogs', '1e-3'))]) == [
        'head',
        'influence',
        'ann',
        'cats & dogs',
    ]
    assert names([dict(output_type='stream', text='workers: 2 of 3\n')]) == ['workers:', 'of']


def test_differences() -> None:
    "Other numbers are no difference; another order is, and so is an output that is not there."
    cells = lambda *outputs: [dict(id='x', outputs=list(outputs))]
    stored = cells(table(('ann', '1.5'), ('bob', '1.2')))
    assert differences('a', stored, cells(table(('ann', '1.7'), ('bob', '1.1')))) == []
    for other in (cells(table(('bob', '1.5'), ('ann', '1.2'))), cells()):
        (line,) = differences('a', stored, other)
        assert line.startswith('a cell 0 [x]: stored outputs name')


def test_slow_cells_run_when_asked_for(tmp_path: Path) -> None:
    shutil.copy(ROOT / 'pyproject.toml', tmp_path)
    sources = ["'soon'", "#| slow\n'late'", f"#| slow\n{OF_THIS_MACHINE}\n'fast'", "#| gpu\n'none'"]
    cells = [nbformat.v4.new_code_cell(s) for s in sources]
    cells[1].outputs = [nbformat.v4.new_output('stream', text='early')]
    (tmp_path / 'nbs').mkdir()
    path = tmp_path / 'nbs/some.ipynb'
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    shown = lambda nb: [names(c.outputs) for c in nb.cells]
    assert shown(execute(path)) == [["'soon'"], ['early'], [], []]
    assert len(compare([path], slow=True)) == 2  # nothing was stored of the first yet
    assert run([path], slow=True) == []
    assert shown(nbformat.read(path, 4)) == [["'soon'"], ["'late'"], [], []]
    assert compare([path], slow=True) == []


@pytest.mark.parametrize('path', SLOW, ids=lambda p: p.stem)
def test_slow_outputs_are_stored(path: Path) -> None:
    "What a slow cell shows is there to read, unless it is about times of the machine."
    shows = lambda source: isinstance(ast.parse(source).body[-1], ast.Expr)
    bare = [
        c['id']
        for c in slow(path)
        if shows(c['source']) and bool(c['outputs']) == (OF_THIS_MACHINE in c['source'])
    ]
    assert bare == [], f'run `make notebooks SLOW=1 NB={path.relative_to(ROOT)}`'


@pytest.mark.parametrize(
    'path', [p for p in SLOW if any(c['outputs'] for c in slow(p))], ids=lambda p: p.stem
)
def test_slow_outputs_are_not_stale(path: Path) -> None:
    """A run gives the same columns and the same names in the same order. It takes minutes, so it
    is asked for: `SLOW=1 pytest tests/test_notebooks.py`."""
    if not os.environ.get('SLOW'):
        pytest.skip('set SLOW=1 to run the cells flagged slow')
    text = path.read_text(encoding='utf-8')
    if 'DRUGMECHDB' in text and not os.environ.get('DRUGMECHDB'):
        pytest.skip('set DRUGMECHDB to the folder with the files of DrugMechDB')
    if 'import ray' in text:
        pytest.importorskip('ray')
    assert compare([path], slow=True) == []
