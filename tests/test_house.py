"""The rules of the house: what is committed agrees with what it is made from, and reads as it
should."""

import ast
import json
import re
import shutil
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from nbdev.config import nbdev_defaults

from tools.notebooks import problems, readme

ROOT = Path(__file__).resolve().parent.parent
ROOMS = (
    'graph',
    'runs',
    'engine',
    'answer',
    'influence',
    'evaluation',
    'bench',
    'app',
)  # from the ground up
CHAPTERS = [
    *sorted(ROOT.glob('nbs/[0-9]*.ipynb')),  # what every room uses
    *(p for room in ROOMS for p in sorted(ROOT.glob(f'nbs/{room}/[0-9]*.ipynb'))),
]
NOTEBOOKS = sorted(p for p in ROOT.glob('nbs/**/*.ipynb') if '.ipynb_checkpoints' not in p.parts)
PACKAGE = ROOT / 'tracin_nb'
MODULES = sorted(p for p in PACKAGE.rglob('*.py') if not p.name.startswith('_'))
SCRATCH = shutil.ignore_patterns('__pycache__', '.*', '*.tmp', '_build')
IS_TEST = re.compile(r'\btest_\w+\(|\bassert\b|assert_close\(|expect_fail\(')


def nbdev(command: str, folder: Path) -> None:
    "Run an nbdev command of this environment in `folder`."
    done = subprocess.run(
        [Path(sys.executable).with_name(command)], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def copy(folder: Path, *names: str) -> Path:
    "Copy files and folders of the project into `folder`."
    for name in names:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=SCRATCH)
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    "Every file of nbs/ and tracin_nb/ below `folder`."
    files = [
        p
        for d in ('nbs', 'tracin_nb')
        for p in (folder / d).rglob('*')
        if p.suffix in ('.ipynb', '.py')
    ]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


def cells(path: Path) -> list[dict]:
    "The notebook's cells, with their source as one string."
    return [
        {**c, 'source': ''.join(c['source'])}
        for c in json.loads(path.read_text(encoding='utf-8'))['cells']
    ]


def module_of(path: Path) -> str | None:
    "The module that the notebook exports to, if any."
    found = [
        m[1] for c in cells(path) if (m := re.match(r'#\|\s*default_exp\s+(\S+)', c['source']))
    ]
    return found[0] if found else None


def dotted(path: Path) -> str:
    "The name of a module below the package: `engine.factors`."
    return '.'.join(path.relative_to(PACKAGE).with_suffix('').parts)


def imported(path: Path) -> Iterator[tuple[str, int]]:
    "The modules of the package that a module imports, wherever it does so, with the line."
    package = ['tracin_nb', *dotted(path).split('.')[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = '.'.join([*above, *filter(None, [node.module])])
            names = [base, *(f'{base}.{a.name}' for a in node.names)]
        else:
            continue
        found = {m for m in map(dotted, MODULES) for n in names if n == f'tracin_nb.{m}'}
        yield from ((m, node.lineno) for m in found)


def functions(path: Path) -> Iterator[tuple[str, ast.FunctionDef]]:
    "Every function and method of a module, with its place."
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.FunctionDef):
            yield f'{path.name}:{node.lineno} {node.name}', node


def unannotated(node: ast.FunctionDef) -> list[str]:
    "The parameters without annotation, and `return` if what comes back has none."
    a = node.args
    params = [p for p in [*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg] if p]
    missing = [p.arg for p in params if p.annotation is None and p.arg not in ('self', 'cls')]
    return missing + ['return'] * (node.returns is None and node.name != '__init__')


# ---- what is made from something else


def test_exported(tmp_path: Path) -> None:
    "`nbdev-export` and `nbdev-clean` change nothing: modules equal notebooks, notebooks are clean."
    copy(tmp_path, 'nbs', 'tracin_nb', 'pyproject.toml', 'README.md')
    before = contents(tmp_path)
    nbdev('nbdev-export', tmp_path)
    nbdev('nbdev-clean', tmp_path)
    after = contents(tmp_path)
    differ = [n for n in sorted({*before, *after}) if before.get(n) != after.get(n)]
    assert not differ, f'run `make export`; it changes {differ}'


def test_every_module_has_its_notebook() -> None:
    assert sorted(m for m in map(module_of, NOTEBOOKS) if m) == sorted(map(dotted, MODULES))


def test_readme() -> None:
    assert (ROOT / 'README.md').read_text(encoding='utf-8') == readme(), 'run `make readme`'


def test_settings(tmp_path: Path) -> None:
    """settings.ini, migrated by nbdev itself, gives pyproject.toml (whose docs extra, data set
    for PyKEEN and tool settings it cannot know)."""
    copy(tmp_path, 'settings.ini')
    nbdev('nbdev-migrate-config', tmp_path)
    old, new = [tomllib.loads((d / 'pyproject.toml').read_text()) for d in (tmp_path, ROOT)]
    points = new['project']['entry-points']
    assert points.pop('pykeen.datasets') == {'drugmechdb': 'tracin_nb.graph.drugmechdb:DrugMechDB'}
    for key in (
        'name',
        'dynamic',
        'description',
        'readme',
        'requires-python',
        'license',
        'keywords',
        'classifiers',
        'dependencies',
        'scripts',
        'entry-points',
    ):
        assert old['project'][key] == new['project'][key], key
    assert old['project']['authors'][0]['name'] == new['project']['authors'][0]['name']
    assert (
        old['project']['optional-dependencies']['dev']
        == new['project']['optional-dependencies']['dev']
    )
    assert old['build-system'] == new['build-system']
    assert old['tool']['setuptools']['dynamic'] == new['tool']['setuptools']['dynamic']
    assert new['tool']['setuptools']['packages']['find']['include'] == ['tracin_nb', 'tracin_nb.*']
    nb = [{**nbdev_defaults, 'lib_path': 'tracin_nb', **t['tool']['nbdev']} for t in (old, new)]
    assert nb[0] | dict(export_procs=nb[1]['export_procs']) == nb[1]  # not in the older form
    assert (tmp_path / 'tracin_nb/__init__.py').read_text().strip() in (
        ROOT / 'tracin_nb/__init__.py'
    ).read_text()


# ---- notebooks


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook(path: Path) -> None:
    """It opens with `# Title` and `> one line`, tests what it exports, and its stored outputs
    are fit to read."""
    title = next((c['source'] for c in cells(path) if c['cell_type'] == 'markdown'), '')
    assert re.match(r'# [^#\s].*\n\n?> \S', title), (
        f'the first cell is not `# Title` and `> one line`: {title[:60]!r}'
    )
    code = [c['source'] for c in cells(path) if c['cell_type'] == 'code']
    checks = [s for s in code if IS_TEST.search(s) and not s.startswith('#| export')]
    assert checks or not module_of(path), 'it exports a module and tests nothing'
    assert not problems(path)


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_outputs_stored(path: Path) -> None:
    "A notebook that was run shows something."
    code = [c for c in cells(path) if c['cell_type'] == 'code']
    assert not code or any(c['outputs'] for c in code), (
        f'run `make notebooks NB={path.relative_to(ROOT)}`'
    )


# ---- code


def test_annotated() -> None:
    missing = {place: unannotated(f) for p in MODULES for place, f in functions(p)}
    assert {place: names for place, names in missing.items() if names} == {}


def test_functions_short() -> None:
    "At most 60 lines, the docstring included, and half of them at most 8."
    length = {place: f.end_lineno - f.lineno + 1 for p in MODULES for place, f in functions(p)}
    assert {place: n for place, n in length.items() if n > 60} == {}
    assert not length or statistics.median(length.values()) <= 8


def test_import_order() -> None:
    """A room imports only from the rooms before it, a chapter only from earlier chapters of its
    own room."""
    order = [m for m in map(module_of, CHAPTERS) if m]
    late = [
        f'{dotted(path)}:{line} imports {used}'
        for path in MODULES
        if dotted(path) in order
        for used, line in imported(path)
        if order.index(used) >= order.index(dotted(path))
    ]
    assert not late


def test_one_name_one_meaning() -> None:
    "No two modules define the same public name; a class or function is known by it."
    homes: dict[str, set[str]] = {}
    for path in MODULES:
        for node in ast.parse(path.read_text(encoding='utf-8')).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith('_'):
                if not any('patch' in ast.unparse(d) for d in node.decorator_list):
                    homes.setdefault(node.name, set()).add(dotted(path))
    assert {name: found for name, found in homes.items() if len(found) > 1} == {}


TALKING = ('workers.py', 'cluster.py')  # to processes that they started
OPT_IN = (
    'reading.py',
    "torch.load(path, map_location='cpu', weights_only=False)",
)  # where the user allowed it


@pytest.mark.parametrize('path', MODULES, ids=lambda p: p.stem)
def test_no_pickle_no_fixed_device(path: Path) -> None:
    """Nothing is unpickled but what our own processes send each other; nothing chooses a device
    for the user (`map_location='cpu'` is how one loads)."""
    text, name = path.read_text(encoding='utf-8'), path.name
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call):
            continue
        call, kw = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        where = f'{name}:{node.lineno}'
        if name not in TALKING:
            safe = (
                call != 'torch.load'
                or kw.get('weights_only') == 'True'
                or (name, ast.unparse(node)) == OPT_IN
            )
            assert safe, f'{where} no weights_only=True'
            assert call not in ('pickle.load', 'pickle.loads', 'pd.read_pickle', 'joblib.load'), (
                f'{where} unpickles'
            )
        assert not call.endswith('.cuda'), f'{where} .cuda()'
        assert kw.get('device') not in ("'cpu'", "'cuda'"), f'{where} device={kw.get("device")}'
    assert 'import *' not in text


@pytest.mark.parametrize('rule', [['format', '--check', '--diff'], ['check']], ids=' '.join)
def test_ruff(rule: list[str]) -> None:
    "One handwriting, in notebooks and files: at most 100 characters a line, 88 in tutorials."
    ruff = Path(sys.executable).with_name('ruff')
    done = subprocess.run([ruff, *rule, '.'], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f'run `make format`\n{done.stdout[-3000:]}{done.stderr}'


def test_docstrings() -> None:
    "Every public class, function and method has a docstring; how it reads: see [tool.ruff.lint]."
    ruff = [Path(sys.executable).with_name('ruff'), 'check', '--isolated', '--output-format']
    rules = ['concise', '--select', 'D101,D102,D103']
    done = subprocess.run([*ruff, *rules, PACKAGE], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_modules_import_what_they_need() -> None:
    "Of a chapter's imports, the exported ones are those that its exported cells use."
    ruff = [Path(sys.executable).with_name('ruff'), 'check', '--isolated', '--select', 'F401,F821']
    done = subprocess.run([*ruff, PACKAGE], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_exported_lines() -> None:
    "What nbdev adds (titles, lists of public names) has no longer lines either."
    files = [p for p in PACKAGE.rglob('*.py') if p.name != '_modidx.py']
    lines = [
        (f'{p.name}:{i}', line)
        for p in files
        for i, line in enumerate(p.open('r', encoding='utf-8'), 1)
    ]
    assert not [where for where, line in lines if len(line.rstrip('\n')) > 100]


def test_types() -> None:
    """mypy finds nothing in influence/, in results, and in the public face as it is used in
    tests/face.py; see [tool.mypy]."""
    mypy = Path(sys.executable).with_name('mypy')
    done = subprocess.run([mypy], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
