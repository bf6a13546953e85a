"""Every public method of what people hold is found by tools: by `inspect`, by completion, by the
site; and so are the options of `TracIn`."""

import ast
import inspect
import subprocess
import sys
import textwrap
from dataclasses import fields
from pathlib import Path

import jedi
import pytest

from tracin_nb import Run, TracIn
from tracin_nb.answer.results import Report, Result, SelfInfluence
from tracin_nb.influence.steps import Settings

ROOT = Path(__file__).resolve().parent.parent
HELD = [TracIn, Run, Report, Result, SelfInfluence]
GIVEN = """
from tracin_nb import Run, TracIn, train
run = Run.open('runs/umls')
tracin = TracIn(run)
report = result = tracin.explain([('a', 'r', 'b')])
strongest = tracin.self_influence(k=3)
"""
NAMES = {
    TracIn: 'tracin',
    Run: 'run',
    Report: 'report',
    Result: 'result',
    SelfInfluence: 'strongest',
}


def public(cls: type) -> list[str]:
    "Names of the public methods and properties of a class, inherited ones included."
    found = inspect.classify_class_attrs(cls)
    return [
        a.name
        for a in found
        if not a.name.startswith('_')
        and a.kind != 'data'
        and a.defining_class.__module__.startswith('tracin_nb')
    ]


def function(cls: type, name: str) -> object:
    "What a method or property was written as."
    found = inspect.getattr_static(cls, name)
    return getattr(found, 'fget', None) or getattr(found, '__func__', None) or found


def home(cls: type, name: str) -> type:
    "The class that defines a method."
    return next(c for c in cls.__mro__ if name in vars(c))


@pytest.mark.parametrize('cls', HELD)
def test_inspect(cls: type) -> None:
    "Each stands in a class statement, says what it does, and what it takes and returns."
    assert len(public(cls)) >= 3
    for name in public(cls):
        tree = ast.parse(textwrap.dedent(inspect.getsource(home(cls, name))))
        written = {n.name for n in tree.body[0].body if isinstance(n, ast.FunctionDef)}
        assert name in written, f'{cls.__name__}.{name} is patched on elsewhere'
        method = function(cls, name)
        assert inspect.getdoc(method), name
        signature = inspect.signature(method)
        assert signature.return_annotation is not signature.empty, name


@pytest.mark.parametrize('cls', HELD)
def test_completion(cls: type) -> None:
    "As an editor does it, from the text alone, and as a notebook does it, from the class itself."
    code = f'{GIVEN}{NAMES[cls]}.'
    line = code.count('\n') + 1
    project = jedi.Project(ROOT, sys_path=sys.path)
    offered = {c.name for c in jedi.Script(code, project=project).complete(line)}
    assert not set(public(cls)) - offered
    live = jedi.Interpreter(f'{cls.__name__}.', [{cls.__name__: cls}])
    assert not set(public(cls)) - {c.name for c in live.complete()}


def test_options() -> None:
    """The options of `Settings`, told there once, are offered inside of `TracIn(`; who reads the
    text alone sees `**options`."""
    wanted = {f.name for f in fields(Settings)}
    assert wanted <= set(inspect.signature(TracIn).parameters)
    live = jedi.Interpreter('TracIn(run, ', [dict(TracIn=TracIn)])
    (signature,) = live.get_signatures()
    assert wanted <= {p.name for p in signature.params}
    assert {f'{name}=' for name in wanted - {'objective'}} <= {c.name for c in live.complete()}


def test_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "Sphinx knows each of them from the pages of the API."
    from sphinx.application import Sphinx

    monkeypatch.syspath_prepend(str(ROOT / 'docs'))
    import pages

    modules = {home(cls, name).__module__ for cls in HELD for name in public(cls)}
    chapters = pages.chapters()
    for module in modules:
        short = module.removeprefix('tracin_nb.')
        text = pages.api_page(short, chapters[short])
        (tmp_path / f'{short}.md').write_text(text, encoding='utf-8')
    (tmp_path / 'index.md').write_text('# Index\n', encoding='utf-8')
    app = Sphinx(
        tmp_path,
        None,
        tmp_path / 'out',
        tmp_path / 'trees',
        'dummy',
        dict(extensions=['myst_parser']),
        status=None,
        warning=None,
    )
    app.build()
    known = app.env.domains.python_domain.objects
    for cls in HELD:
        for name in public(cls):
            where = home(cls, name)
            assert f'{where.__module__}.{where.__qualname__}.{name}' in known


def test_light() -> None:
    "`import tracin_nb` loads neither PyTorch nor PyKEEN, and its names are those of `_HOME`."
    code = 'import sys, tracin_nb; print([m for m in ("torch", "pykeen") if m in sys.modules])'
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == '[]', done.stderr
    import tracin_nb

    tree = ast.parse((ROOT / 'tracin_nb/__init__.py').read_text(encoding='utf-8'))
    told = next(n for n in tree.body if isinstance(n, ast.If))
    named = {a.asname: n.module for n in told.body for a in n.names}
    assert named == tracin_nb._HOME
