"""Pages that are made when the site is built: the API from the modules, the commands from click,
the benchmarks."""

import ast
import base64
import inspect
import io
import json
import textwrap
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import click
from reader import directive, find, linked

from tracin_nb import _HOME

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ('graph', 'runs', 'engine', 'answer', 'influence', 'evaluation', 'bench', 'app')
NBS, API, BENCHMARKS = ROOT / 'nbs', ROOT / 'nbs/api', ROOT / 'benchmarks'


# ---- API


def chapters() -> dict[str, Path]:
    "Return the notebook of each module, in order."
    found = {}
    for path in [
        *sorted(NBS.glob('[0-9]*.ipynb')),
        *(p for room in ROOMS for p in sorted(NBS.glob(f'{room}/[0-9]*.ipynb'))),
    ]:
        for cell in json.loads(path.read_text(encoding='utf-8'))['cells']:
            source = ''.join(cell['source'])
            if source.startswith('#| default_exp '):
                found[source.split()[2]] = path
    return found


def heading(path: Path) -> tuple[str, str]:
    "Title and the line beneath it of a notebook."
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    title, line = [s for s in ''.join(cells[0]['source']).split('\n') if s.strip()][:2]
    return title.removeprefix('# ').strip(), line.removeprefix('> ').strip()


def patched(node: ast.FunctionDef) -> str | None:
    "Return the class that a function is patched into, if it is."
    names = [ast.unparse(d.func if isinstance(d, ast.Call) else d) for d in node.decorator_list]
    return ast.unparse(node.args.args[0].annotation) if 'patch' in names else None


def definitions(module: str) -> Iterator[str]:
    "Public names of a module in the order of its source; methods right after their class."
    source = (
        (ROOT / 'tracin_nb' / module.replace('.', '/'))
        .with_suffix('.py')
        .read_text(encoding='utf-8')
    )
    nodes = [n for n in ast.parse(source).body if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
    own = {
        n.name: [m.name for m in n.body if isinstance(m, ast.FunctionDef)]
        for n in nodes
        if isinstance(n, ast.ClassDef)
    }
    for n in nodes:
        if isinstance(n, ast.FunctionDef) and (cls := patched(n)):
            own.setdefault(cls, []).append(n.name)
    here = {n.name for n in nodes}
    for n in nodes:
        cls = patched(n) if isinstance(n, ast.FunctionDef) else None
        if not cls:
            yield n.name
        if isinstance(n, ast.ClassDef):
            yield from (f'{n.name}.{m}' for m in own[n.name])
        elif cls and cls not in here:
            yield f'{cls}.{n.name}'


@cache
def documented(module: str) -> list[str]:
    "Those public names of a module that have a docstring; commands have a page of their own."
    public = [
        n for n in definitions(module) if not any(part.startswith('_') for part in n.split('.'))
    ]
    objects = {n: find(import_module(f'tracin_nb.{module}'), n) for n in dict.fromkeys(public)}
    return [n for n, o in objects.items() if inspect.getdoc(o) and not isinstance(o, click.Command)]


def api_page(module: str, path: Path) -> str:
    "Return the page of a module: its definitions without the explanations of the notebook."
    title, line = heading(path)
    chapter = path.relative_to(NBS)
    parts = [
        f'# tracin_nb.{module}',
        linked(line),
        f'Explained, with examples, in [{title}](../{chapter}).',
    ]
    return (
        '\n\n'.join(parts + [directive(f'tracin_nb.{module}', n) for n in documented(module)])
        + '\n'
    )


FACE = _HOME | {
    'TracIn.explain': 'influence.tracin',
    'TracIn.scores': 'influence.tracin',
    'TracIn.self_influence': 'influence.tracin',
    'Run.open': 'runs.run',
    'Result': 'answer.results',
    'FactorCache': 'influence.cache',
    'Graph': 'graph.neighbourhoods',
}


def reference(module: str, name: str) -> str:
    "Return a link to a definition."
    return f'{{py:obj}}`{name} <tracin_nb.{module}.{name}>`'


def summary(module: str, name: str) -> str:
    "Return the first line of a definition's docstring."
    first = (inspect.getdoc(find(import_module(f'tracin_nb.{module}'), name)) or '').split('\n\n')[
        0
    ]
    return linked(' '.join(first.split()))


def api_index(modules: dict[str, Path]) -> str:
    "Return the page that lists what most people need, and the modules with their public names."
    face = [cells(reference(m, n), summary(m, n)) for n, m in FACE.items()]
    rows = [
        cells(
            f'[{m}]({m}.md)',
            linked(heading(path)[1]),
            ', '.join(reference(m, n) for n in documented(m) if '.' not in n),
        )
        for m, path in modules.items()
    ]
    intro = (
        f'`from tracin_nb import {", ".join(_HOME)}` gives the names that most people '
        'need; everything else is imported from its module. `import tracin_nb` loads neither '
        'PyTorch nor PyKEEN: '
        'they come with the first name that is used.'
    )
    tables = [
        '\n'.join(['| name | |', '|---|---|', *face]),
        '\n'.join(['| module | what it is about | names |', '|---|---|---|', *rows]),
    ]
    tree = '\n'.join(['```{toctree}', ':hidden:', *modules, '```'])
    return (
        '\n\n'.join(
            ['# API', intro, '## What most people need', tables[0], '## Modules', tables[1], tree]
        )
        + '\n'
    )


def write(path: Path, text: str) -> None:
    "Write a file unless it holds just this, so that Sphinx reads again only what has changed."
    if not path.exists() or path.read_text(encoding='utf-8') != text:
        path.write_text(text, encoding='utf-8')


def write_api() -> None:
    "Write the pages of the API into nbs/api, and remove those of modules that are no more."
    modules = chapters()
    API.mkdir(exist_ok=True)
    pages = {'index': api_index(modules), **{m: api_page(m, path) for m, path in modules.items()}}
    for path in API.glob('*.md'):
        if path.stem not in pages:
            path.unlink()
    for name, text in pages.items():
        write(API / f'{name}.md', text)


# ---- commands


def cells(*texts: str) -> str:
    "Return a row of a Markdown table."
    return '| ' + ' | '.join(' '.join(t.split()).replace('|', '\\|') for t in texts) + ' |'


def prose(text: str) -> str:
    "Return a command's help as Markdown; what follows a `\\b` is lines for a terminal."
    blocks = textwrap.dedent(inspect.cleandoc(text)).split('\n\n')
    return '\n\n'.join(
        '```sh\n' + b.removeprefix('\b\n') + '\n```' if b.startswith('\b') else b for b in blocks
    )


def table(title: str, rows: list[tuple[str, str]]) -> str:
    "Return a table of flags and what is said of them."
    return '\n'.join([cells(title, ''), '|---|---|', *(cells(f'`{n}`', s) for n, s in rows)])


def option_tables(command: click.Command, context: click.Context) -> str:
    """Return the options of a command in groups, as its own help says them, those of
    `--help-all`, too."""
    return '\n\n'.join(table(*group) for group in command.grouped(context).items())


def earlier_table() -> str:
    "Return the flags of earlier scripts that are accepted and change nothing."
    from tracin_nb.app.terminal import EARLIER

    rows = [(e.flag, f'{e.why} (`{"`, `".join(e.commands)}`)') for e in EARLIER]
    return table('flag', rows)


def command_section(command: click.Command, name: str, context: click.Context) -> str:
    "Usage, help and options of a command; those of a group for each of its commands."
    if isinstance(command, click.Group):
        inner = click.Context(command, info_name=name.split()[-1], parent=context)
        below = [command_section(c, f'{name} {n}', inner) for n, c in command.commands.items()]
        return '\n\n'.join([f'## {name}', prose(command.help or ''), *below])
    inner = click.Context(command, info_name=name.split()[-1], parent=context)
    usage = ' '.join(command.collect_usage_pieces(inner))
    level = '#' * len(name.split())
    parts = [f'{level} {name}', prose(command.help or ''), f'```text\n{name} {usage}\n```']
    return '\n\n'.join([*parts, option_tables(command, inner)])


def commands() -> str:
    "Return a section for each command."
    from tracin_nb.app.cli import main

    context = click.Context(main, info_name='tracin')
    sections = [command_section(c, f'tracin {n}', context) for n, c in main.commands.items()]
    earlier = (
        '## Flags of earlier scripts\n\nThese change nothing. They are accepted, so that scripts '
        'go on working, and say why; `--help` does not show them.'
    )
    return '\n\n'.join([*sections, earlier, earlier_table()])


# ---- benchmarks

ABOUT = {  # in the order of the page: title, what it shows, column of ratios for the chart
    'engine': (
        'Engines beside a training step',
        'One ConvE model at the size of FB15k-237, one batch of training '
        'triples. *Training steps* is the time in units of one step of Adam on the same batch, '
        '*pair speedup* '
        'the time per pair of a training and a test triple, the dense loop being 1.',
        'pair_speedup',
    ),
    'peers': (
        'Beside Captum and dattri',
        'The same weights, triples and loss through three libraries, each in a '
        'process of its own. What is and is not like for like is said below the table, and on the '
        'page '
        '[Comparison](comparison.md).',
        'times_slower',
    ),
    'fb15k237': (
        'All of FB15k-237',
        'Every test triple explained by every training triple; *seconds for all* is '
        'measured, or projected from the number passed over where that is less than all.',
        None,
    ),
    'robokop': (
        'A graph of 1.45 million entities',
        'Projected from the part that was passed over.',
        None,
    ),
    'growth': (
        'Growth',
        'Time and memory are taken to grow like a power of the size: an exponent of 1 is '
        'proportional growth.',
        None,
    ),
    'floor': (
        'How far from the floor',
        'What the parts of a pass reach of the arithmetic, or of the memory '
        'bandwidth, that a plain operation of PyTorch reaches.',
        None,
    ),
    'repeat': (
        'A second question',
        'What `TracIn.prepare` costs once, and what a question costs after that.',
        None,
    ),
    'workers': ('Workers', 'Two processes on two cores.', 'gain'),
    'removal': (
        'Removal',
        'In percent: explained predictions that become less probable, / predictions whose first '
        'rank changes, after the K strongest proponents are deleted and the model is trained '
        'again. See '
        '[Removal](evaluation/10_removal.ipynb).',
        None,
    ),
    'lds': (
        'Linear datamodeling score',
        'Rank correlation of predicted and actual losses over trainings on random '
        'halves, with 95 % intervals. See [Datamodels](evaluation/20_datamodel.ipynb).',
        None,
    ),
    'stability': (
        'Stability',
        'What two rankings have in common of their first ten proponents, with 95 % intervals: '
        'of two seeds, of fewer checkpoints and all, of a trained run and one with random '
        'weights, and of '
        'lists of random neighbours. See [the chapter](evaluation/40_stability.ipynb).',
        None,
    ),
    'corruption': (
        'Wrong triples in the training set',
        'Are planted wrong triples found by their influence on '
        'themselves? See [the chapter](evaluation/30_corruption.ipynb).',
        None,
    ),
    'mechanisms': (
        'Known mechanism paths',
        'Do proponents lie on the paths that curators drew? Baselines that know '
        'the graph only are in the table. See [the chapter](evaluation/50_mechanisms.ipynb).',
        None,
    ),
}


def about(stem: str) -> tuple[str, str, str | None]:
    """Title, text and ratio column for a benchmark's file; one on a GPU is named for it, as
    `engine-h200`."""
    name, _, device = stem.partition('-')
    title, text, ratio = ABOUT.get(name, (name.replace('_', ' ').capitalize(), '', None))
    return title + (f', on {device.upper()}' if device else ''), text, ratio


def order(path: Path) -> tuple[int, str]:
    "Benchmarks in the order of `ABOUT`, those it does not know last."
    name = path.stem.partition('-')[0]
    return (list(ABOUT).index(name) if name in ABOUT else len(ABOUT)), path.stem


def table_of(result: dict[str, Any], path: Path) -> str:
    "Return a benchmark's or experiment's table in Markdown."
    from tracin_nb.answer.table import markdown
    from tracin_nb.app import experiments
    from tracin_nb.bench import engine as benchmarks

    known = experiments.EXPERIMENTS.get(result.get('experiment'))
    if 'benchmark' in result:
        return benchmarks.table(result)
    if known is None:
        return path.with_suffix('.md').read_text(encoding='utf-8')
    machine = ', '.join(f'{k} {v}' for k, v in result['machine'].items())
    frame = known.table(result)
    return f'{markdown(frame.columns, frame.itertuples(index=False))}\nOn: {machine}.'


def chart(path: Path, column: str) -> str:
    "Return the ratios of a benchmark as a picture in the page."
    import matplotlib

    matplotlib.use('Agg')
    from tracin_nb.answer.plots import speedups

    ax, held = speedups(path, column), io.BytesIO()
    ax.set_title('')
    ax.figure.savefig(held, format='svg', metadata=dict(Date=None), facecolor='white')
    matplotlib.pyplot.close(ax.figure)
    name = f'{column.replace("_", " ")} in {path.name}'
    data = base64.b64encode(held.getvalue()).decode()
    return (
        f'```{{raw}} html\n<img class="chart" alt="{name}" '
        f'src="data:image/svg+xml;base64,{data}">\n```'
    )


def benchmark_section(path: Path) -> str:
    "Heading, picture and table of one file."
    title, text, ratio = about(path.stem)
    result = json.loads(path.read_text(encoding='utf-8'))
    source = f'From [`benchmarks/{path.name}`](../benchmarks/{path.name}).'
    parts = [f'## {title}', linked(f'{text} {source}'.strip()), chart(path, ratio) if ratio else '']
    return '\n\n'.join(filter(None, [*parts, table_of(result, path)]))


def benchmarks() -> str:
    "Return a section for each file in benchmarks/."
    return '\n\n'.join(map(benchmark_section, sorted(BENCHMARKS.glob('*.json'), key=order)))


def peers() -> str:
    "Return the figures of the comparison with other libraries, with their chart."
    path = BENCHMARKS / 'peers.json'
    return '\n\n'.join(
        [chart(path, 'times_slower'), table_of(json.loads(path.read_text(encoding='utf-8')), path)]
    )


def contributing() -> str:
    "CONTRIBUTING.md, its links seen from nbs/."
    return linked((ROOT / 'CONTRIBUTING.md').read_text(encoding='utf-8').replace('](nbs/', ']('))


MADE = {
    'commands': commands,
    'benchmarks': benchmarks,
    'peers': peers,
    'contributing': contributing,
}
