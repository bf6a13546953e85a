"""`bench` and `evaluate`: whatever is given to `--set`, one line says what is wrong with it."""

import inspect
import json

import pytest
from click.testing import CliRunner

from tracin_nb.app import cli
from tracin_nb.app.experiments import EXPERIMENTS
from tracin_nb.app.options import fits
from tracin_nb.bench.suite import BENCHMARKS

FUNCTIONS = {('bench', name): f for name, f in BENCHMARKS.items()} | {
    ('evaluate', name): e.run for name, e in EXPERIMENTS.items()
}
CALLERS = ('name', 'out', 'device', 'settings', 'options', 'threads', 'progress', 'self')


def refused(command: str, name: str, given: object) -> str:
    "The one line that refuses it."
    done = CliRunner().invoke(cli.main, [command, name, '--set', json.dumps(given)])
    assert isinstance(done.exception, SystemExit), done.exception
    (line,) = done.stderr.splitlines()
    assert (done.exit_code, done.stdout) == (2, '') and line.startswith('tracin: error: ')
    return line


@pytest.mark.parametrize('command,name', FUNCTIONS)
def test_every_name(command: str, name: str) -> None:
    """Names of the callers' own parameters, of every parameter of the function with a value of
    another kind, and none."""
    parameters = inspect.signature(FUNCTIONS[command, name]).parameters
    for given in CALLERS:
        line = refused(command, name, {given: 'x'})
        assert (
            "'--set'" in line
            and repr(given) in line
            or given in parameters
            and f'{given}: expected' in line
        )
        if given in ('device', 'out'):
            assert f'has an option of its own, --{given}' in line
    for given, p in parameters.items():
        for value in ('x', -1, 0, [0], {'a': 1}, True, [['x']], None, 1.5):
            right = (
                p.kind is p.VAR_KEYWORD
                or fits(value, p.annotation)
                or (given, value) == ('seed', 0)
            )
            if given in CALLERS or right:
                continue
            assert f"'--set': {given}: expected " in refused(command, name, {given: value})


def test_names_inside() -> None:
    "Unknown names inside of a value, what is missing, and unknown benchmarks, whatever is set."
    assert "'--set': got an unexpected keyword argument 'device'" in refused(
        'evaluate', 'lds', dict(designs=[dict(device='x')], seeds=1)
    )
    assert "'--set': mechanisms needs 'data'" in refused('evaluate', 'mechanisms', {})
    assert "'--set': mechanisms needs 'run'" in refused('evaluate', 'mechanisms', dict(data='x'))
    for command, what in (('bench', 'benchmark'), ('evaluate', 'experiment')):
        for given in ({}, dict(device='x'), dict(name='x'), dict(out='x')):
            assert f"unknown {what} 'speed'" in refused(command, 'speed', given)
