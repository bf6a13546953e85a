"""The package as others get it: built as a wheel, installed without the tools for its
development, light to import."""

import json
import os
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path
from shutil import copy, copytree, ignore_patterns

import pytest

from tracin_nb import __version__

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text(encoding='utf-8'))['project']
PARTS = (
    'pyproject.toml',
    'settings.ini',
    'README.md',
    'LICENSE',
    'tracin_nb',
    'nbs',
    'tests',
    'tools',
    'docs',
)
HEAVY = ('torch', 'pykeen', 'pandas', 'numpy', 'matplotlib', 'fastcore', 'scipy')


@pytest.fixture(scope='module')
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A wheel of a copy of the project, notebooks and tests included."
    folder = tmp_path_factory.mktemp('wheel')
    (source := folder / 'source').mkdir()
    for name in PARTS:
        if (ROOT / name).is_file():
            copy(ROOT / name, source / name)
        else:
            copytree(
                ROOT / name,
                source / name,
                ignore=ignore_patterns('__pycache__', '.*', '*.tmp', '_build', '*.js'),
            )
    pip = 'wheel . --no-deps --no-build-isolation --no-index -q -w ..'.split()
    done = subprocess.run(
        [sys.executable, '-m', 'pip', *pip], cwd=source, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return next(folder.glob('*.whl'))


@pytest.fixture(scope='module')
def installed(wheel: Path) -> Path:
    "A folder that the wheel is unpacked into: what pip puts into site-packages."
    folder = wheel.parent / 'site'
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def python(folder: Path, *args: str) -> subprocess.CompletedProcess:
    "Python with `folder` before everything else, started elsewhere than in the checkout."
    env = {**os.environ, 'PYTHONPATH': str(folder)}
    return subprocess.run(
        [sys.executable, *args], cwd=folder.parent, env=env, capture_output=True, text=True
    )


def test_contents(wheel: Path) -> None:
    "Modules and the mark of typed packages: no notebooks, no data, no tests."
    names = zipfile.ZipFile(wheel).namelist()
    package = sorted(n for n in names if '.dist-info/' not in n)
    modules = {p.relative_to(ROOT).as_posix() for p in (ROOT / 'tracin_nb').rglob('*.py')} | {
        'tracin_nb/py.typed'
    }
    assert package == sorted(modules)
    assert any(n.endswith('licenses/LICENSE') for n in names)


def test_metadata(installed: Path) -> None:
    "Version, extras and entry points; what is needed at run time holds no tool of development."
    found = Parser().parsestr(
        next(installed.glob('*.dist-info/METADATA')).read_text(encoding='utf-8')
    )
    assert found['Version'] == __version__
    assert found['Requires-Python'] == '>=3.11'
    assert {'app', 'ray', 'docs', 'dev', 'bench'} <= set(found.get_all('Provides-Extra'))
    needed = [r for r in found.get_all('Requires-Dist') if 'extra ==' not in r]
    assert len(needed) == len(PROJECT['dependencies'])
    assert not [
        r
        for r in needed
        if r.startswith(('nbdev', 'pytest', 'sphinx', 'ray', 'playwright', 'captum'))
    ]
    points = next(installed.glob('*.dist-info/entry_points.txt')).read_text(encoding='utf-8')
    assert (
        'tracin = tracin_nb.app.cli:main' in points and 'tracin_nb = tracin_nb._modidx:d' in points
    )


def test_module_runs(installed: Path) -> None:
    "`python -m tracin_nb` of what was installed is the command, named as the command."
    done = python(installed, '-m', 'tracin_nb', '--version')
    assert (done.returncode, done.stdout) == (0, f'tracin, version {__version__}\n'), done.stderr
    done = python(installed, '-m', 'tracin_nb', 'run', '--help')
    assert done.returncode == 0 and done.stdout.startswith('Usage: tracin run '), done.stderr


def test_light(installed: Path) -> None:
    """Neither the import nor the help of every command loads PyTorch, PyKEEN or another heavy
    library; the names of the package come with their first use."""
    code = f"""
import json, sys
import tracin_nb
at_import = [m for m in {HEAVY} if m in sys.modules]
names = dir(tracin_nb)
from click.testing import CliRunner
from tracin_nb.app.cli import main
status = [CliRunner().invoke(main, [name, '--help']).exit_code for name in main.commands]
heavy = [m for m in {HEAVY} if m in sys.modules]
print(json.dumps([tracin_nb.__file__, at_import, names, status, heavy]))
"""
    done = python(installed, '-c', code)
    assert done.returncode == 0, done.stderr
    file, at_import, names, status, at_help = json.loads(done.stdout)
    assert Path(file).parent.parent == installed
    assert at_import == at_help == []
    assert {'TracIn', 'Run', 'train', 'describe', 'load_dataset', '__version__'} <= set(names)
    assert set(status) == {0}


def test_names() -> None:
    "What the package itself offers is listed, and anything else is an error that says so."
    import tracin_nb

    assert set(tracin_nb.__all__) <= set(dir(tracin_nb))
    with pytest.raises(AttributeError, match="module 'tracin_nb' has no attribute 'tracin'"):
        tracin_nb.tracin
