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
DATA = ROOT / 'tracin_nb/graph/data/drugmechdb'
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


def python(folder: Path, *args: str, **env: str) -> subprocess.CompletedProcess:
    "Python with `folder` before everything else, started elsewhere than in the checkout."
    env = {**os.environ, **env, 'PYTHONPATH': str(folder)}
    return subprocess.run(
        [sys.executable, *args], cwd=folder.parent, env=env, capture_output=True, text=True
    )


def test_contents(wheel: Path) -> None:
    """Modules, the mark of typed packages and the one data set: no notebooks, no other data, no
    tests."""
    names = zipfile.ZipFile(wheel).namelist()
    package = sorted(n for n in names if '.dist-info/' not in n)
    ours = [*(ROOT / 'tracin_nb').rglob('*.py'), *DATA.iterdir(), ROOT / 'tracin_nb/py.typed']
    assert package == sorted(p.relative_to(ROOT).as_posix() for p in ours)
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
    assert '[pykeen.datasets]\ndrugmechdb = tracin_nb.graph.drugmechdb:DrugMechDB\n' in points


def test_module_runs(installed: Path) -> None:
    "`python -m tracin_nb` of what was installed is the command, named as the command."
    done = python(installed, '-m', 'tracin_nb', '--version')
    assert (done.returncode, done.stdout) == (0, f'tracin, version {__version__}\n'), done.stderr
    done = python(installed, '-m', 'tracin_nb', 'explain', '--help')
    assert done.returncode == 0 and done.stdout.startswith('Usage: tracin explain '), done.stderr


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


# What a program imports first decides what is half imported when PyKEEN asks for the data set.
FIRST = (
    'pykeen.datasets',
    'tracin_nb.graph.drugmechdb',
    'tracin_nb.graph.triples',
    'tracin_nb.runs.run',
)


@pytest.mark.parametrize('first', FIRST)
def test_data_set_of_pykeen(installed: Path, first: str) -> None:
    """What is installed is a data set of PyKEEN's, by its name, whichever module comes first, and
    PyKEEN has nothing to say about it."""
    code = f"""
import {first}, pykeen.datasets, sys
cls = pykeen.datasets.dataset_resolver.lookup('drugmechdb')
print(cls.__module__, sys.modules[cls.__module__].__file__, 'tracin_nb.runs.run' in sys.modules)
"""
    done = python(installed, '-W', 'ignore', '-c', code)
    assert (done.returncode, done.stderr) == (0, '')
    file, loaded = installed / 'tracin_nb/graph/drugmechdb.py', first == 'tracin_nb.runs.run'
    assert done.stdout.split() == ['tracin_nb.graph.drugmechdb', str(file), str(loaded)]


def test_data_set_trains(installed: Path) -> None:
    """PyKEEN's pipeline and `tracin train` take the name. No connection is made, and the two have
    the same triples."""
    code = """
import socket, sys
def refuse(*args): raise OSError('a connection')
socket.socket.connect = socket.create_connection = refuse
from pykeen.datasets import get_dataset
from pykeen.pipeline import pipeline
from tracin_nb.app.cli import main
from tracin_nb.graph.triples import triples_fingerprint
from tracin_nb.runs.run import Run
kwargs = dict(model_kwargs=dict(embedding_dim=4), training_kwargs=dict(batch_size=4096))
evaluation = dict(evaluation_kwargs=dict(batch_size=256), random_seed=0)
found = pipeline(dataset='drugmechdb', model='DistMult', epochs=1, **kwargs, **evaluation)
assert found.training.num_triples == 14756
assert get_dataset(dataset='drugmechdb').testing.num_triples == 466
options = '--model DistMult --model-kwargs {"embedding_dim":4} --batch-size 4096 --epochs 1'
status = main(['train', 'drugmechdb', '--out', 'drugs', *options.split()], standalone_mode=False)
same = {triples_fingerprint(t) for t in (found.training, Run.open('drugs').training)}
sys.exit(status or len(same) - 1)
"""
    env = {'PYKEEN_HOME': str(installed.parent / 'pykeen')}
    done = python(installed, '-c', code, **env)
    assert done.returncode == 0, done.stdout + done.stderr


def test_names() -> None:
    "What the package itself offers is listed, and anything else is an error that says so."
    import tracin_nb

    assert set(tracin_nb.__all__) <= set(dir(tracin_nb))
    with pytest.raises(AttributeError, match="module 'tracin_nb' has no attribute 'tracin'"):
        tracin_nb.tracin
