"""Options: told once, in a field, from which the commands, their help, the page of the commands and
`TracIn` are made."""

import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from click.testing import Result as Outcome

from tracin_nb.app import cli, options, terminal
from tracin_nb.app.terminal import EARLIER, KINDS, Command, Flag, takes
from tracin_nb.influence import settings
from tracin_nb.influence.settings import GROUPS, Settings, option, options_of
from tracin_nb.influence.tracin import TracIn

ROOT = Path(__file__).resolve().parent.parent


def commands(group: click.Group = cli.main, path: tuple[str, ...] = ()) -> Iterator[tuple]:
    "All commands, with the words that call them."
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


COMMANDS = dict(commands())
CLASSES = [
    found
    for module in (settings, options, cli)
    for found in vars(module).values()
    if is_dataclass(found) and found.__module__ == module.__name__ and [*options_of(found)]
]


def invoke(*args: str, group: click.Group = cli.main) -> Outcome:
    return CliRunner().invoke(group, args)


@pytest.mark.parametrize('path', COMMANDS, ids=' '.join)
def test_parameters_come_from_fields(path: tuple[str, ...]) -> None:
    """No command has a parameter that is written down elsewhere, and its help shows all of them, or
    says where the others are."""
    command, earlier = COMMANDS[path], {e.flag for e in EARLIER}
    assert isinstance(command, Command)
    for p in command.params:
        told = isinstance(p, (Flag, click.Argument)) or p.opts[0] in earlier and p.hidden
        assert told, p
    shown, every = (invoke(*path, name).stdout for name in ('--help', '--help-all'))
    flags = {p.opts[0]: p.told.advanced for p in command.params if isinstance(p, Flag)}
    assert [f for f, advanced in flags.items() if not advanced and f not in shown] == []
    if any(flags.values()):
        assert '--help-all' in shown and [f for f in flags if f not in every] == []
    assert not [flag for flag in earlier if flag in shown + every]


def test_every_option_is_told() -> None:
    "A sentence with a full stop, a group, and a kind of value that there is; no sentence twice."
    told = {
        (cls, f.name): one
        for cls in CLASSES
        for f, one in options_of(cls)
        if f.name in cls.__annotations__
    }
    for place, one in told.items():
        assert one.group in GROUPS and one.kind in KINDS, place
        assert one.help.endswith(('.', '?')) and one.help == ' '.join(one.help.split()), place
    assert len(told) > 100
    said = [one.help for (cls, name), one in told.items() if not one.argument]
    common = {f.name: one.help for f, one in options_of(Settings)}
    assert {text for text in said if said.count(text) > 1} == {
        common[name] for name in ('memory', 'batch_size')
    }


def test_defaults_are_values() -> None:
    "What is asked for without a word is what the class is without one."
    asked = []

    tool = terminal.Commands('tool')

    @tool.command('explain')
    @takes
    def run(how: Settings) -> None:
        asked.append(how)

    assert invoke('explain', group=tool).exit_code == 0
    assert asked == [Settings()]


@pytest.mark.parametrize('command', ['explain', 'batch', 'paths', 'self'])
def test_settings_reach_the_commands(command: str) -> None:
    "`TracIn` and each analysis have all of `Settings`, but for what only one command has."
    own = {f.name: told for f, told in options_of(Settings)}
    params = inspect.signature(TracIn).parameters
    assert {n: params[n].default for n in own if n != 'objective'} == {
        f.name: f.default for f in fields(Settings) if f.name != 'objective'
    }
    there = {p.name for p in COMMANDS[command,].params}
    assert {n for n, told in own.items() if command in (told.commands or (command,))} <= there
    assert ('test_objective' in there) == (command == 'explain')


def test_a_new_option(tmp_path: Path) -> None:
    "One field is all that it takes: the flag, its check, its help, its value, the kept question."

    @dataclass(frozen=True)
    class More(Settings):
        deep_breath: int = option(2, 'Breathe first.', 'How', kind='count', advanced=True)

    tool = terminal.Commands('tool')

    @tool.command('explain')
    @takes
    def run(how: More) -> None:
        click.echo(how.deep_breath)

    assert invoke('explain', '--deep-breath', '3', group=tool).stdout == '3\n'
    refused = invoke('explain', '--deep-breath', '0', group=tool)
    assert refused.exit_code == 2 and "'--deep-breath'" in refused.stderr
    shown, every = (invoke('explain', h, group=tool).stdout for h in ('--help', '--help-all'))
    assert '--deep-breath' not in shown and '--deep-breath N' in every
    assert More().asked() == Settings().asked() | dict(deep_breath=2)


@pytest.mark.parametrize('earlier', EARLIER, ids=lambda e: e.flag)
def test_flags_of_earlier_scripts(earlier: terminal.Earlier) -> None:
    "Accepted by the commands that had it, with a line that says why it changes nothing."
    accept = {
        path[0]
        for path, c in COMMANDS.items()
        if earlier.flag in {o for p in c.params for o in p.opts}
    }
    assert accept == set(earlier.commands)
    for command in earlier.commands:
        done = invoke(command, earlier.flag, *['x'] * earlier.value, 'nowhere')
        assert f'tracin: note: {earlier.flag} changes nothing: {earlier.why}\n' in done.stderr


def test_page_of_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    "Every option is on the page in its group, and so are the flags that change nothing."
    monkeypatch.setattr(sys, 'path', [str(ROOT / 'docs'), *sys.path])
    pages = pytest.importorskip('pages')
    text = pages.commands()
    for path, command in COMMANDS.items():
        part = text.partition(f'# tracin {" ".join(path)}\n')[2].partition('\n#')[0]
        rows = {g: part.partition(f'| {g} |')[2].partition('\n\n')[0] for g in GROUPS}
        for p in command.params:
            if isinstance(p, Flag):
                assert f'{p.opts[0]}' in rows[p.told.group], (path, p.opts)
    assert all(f'| `{e.flag}` | {e.why}' in text for e in EARLIER)


def test_names_are_read_where_they_are_defined() -> None:
    "A new weighting is known to the command line by its entry in `WEIGHTINGS` alone."
    from tracin_nb.engine.weightings import WEIGHTINGS

    weighting = next(p for p in COMMANDS['explain',].params if p.name == 'weighting')
    assert list(weighting.type.choices) == list(WEIGHTINGS)
    assert settings.names_in('engine.weightings', 'WEIGHTINGS') == tuple(WEIGHTINGS)
