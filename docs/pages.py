"""Pages that are made when the site is built: the API from the modules, the commands from click,
the benchmarks."""

import ast
import inspect
import json
import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator
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


@cache
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


@cache
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


FACE = _HOME | {
    'TracIn.explain': 'influence.tracin',
    'TracIn.scores': 'influence.tracin',
    'TracIn.self_influence': 'influence.tracin',
    'Run.open': 'runs.run',
    'Result': 'answer.results',
    'FactorCache': 'influence.cache',
    'Graph': 'graph.neighbourhoods',
}


def modules_imported(path: Path) -> Iterator[tuple[str, str]]:
    "Return the names that a module of the package imports from others of it, with those modules."
    here = ('tracin_nb', *path.relative_to(ROOT / 'tracin_nb').with_suffix('').parts)
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.ImportFrom):
            base = '.'.join(here[: -node.level]) + '.' if node.level else ''
            module = f'{base}{node.module or ""}'.removeprefix('tracin_nb.')
            yield from ((module, alias.name) for alias in node.names)


@cache
def used_elsewhere() -> set[tuple[str, str]]:
    "Names that other modules or the tutorials import, with their modules."
    package = {p for p in (ROOT / 'tracin_nb').rglob('*.py') if p.name[0] != '_'}
    found = {pair for path in package for pair in modules_imported(path)}
    for path in NBS.glob('tutorials/*.ipynb'):
        cells = json.loads(path.read_text(encoding='utf-8'))['cells']
        text = '\n'.join(''.join(c['source']) for c in cells)
        for module, names in re.findall(
            r'from tracin_nb\.([\w.]+) import ([^(\n]+|\([^)]+\))', text
        ):
            found |= {(module, name) for name in re.findall(r'\w+', names)}
    return found


def ranked(module: str) -> tuple[list[str], list[str]]:
    """Return the documented names of a module: first what most people need, then what others
    use; and the helpers that only the module itself uses. A class's methods stand after it."""
    face = [n.split('.')[0] for n, m in FACE.items() if m == module]
    own = lambda name: name.split('.')[0]
    place = lambda name: face.index(own(name)) if own(name) in face else len(face)
    names = sorted(documented(module), key=place)
    known = lambda name: own(name) in face or (module, own(name)) in used_elsewhere()
    return [n for n in names if known(n)], [n for n in names if not known(n)]


def room_of(path: Path) -> str:
    "Return the room of a chapter; 'root' for what every room uses."
    return path.parent.name if path.parent != NBS else 'root'


def room_map(path: Path) -> str:
    "Return the modules of a chapter's room, each with a link to its page of the API."
    room = room_of(path)
    others = [m for m, p in chapters().items() if room_of(p) == room]
    links = [f'[{m.rpartition(".")[2]}]({m}.md)' for m in others]
    return f'The room [{ROOM_TITLES[room][0]}](../rooms/{room}.md): ' + ' · '.join(links)


def api_page(module: str, path: Path) -> str:
    "Return the page of a module: its definitions without the explanations of the notebook."
    title, line = heading(path)
    chapter = path.relative_to(NBS)
    public, helpers = ranked(module)
    described = lambda names: [directive(f'tracin_nb.{module}', n) for n in names]
    parts = [
        f'---\norphan: true\n---\n\n# tracin_nb.{module}',
        linked(line),
        f'Explained, with examples, in [{title}](../{chapter}). {room_map(path)}.',
        *described(public),
    ]
    if helpers:
        said = 'What nothing outside this module uses.' if public else ''
        parts += ['## Helpers', said, *described(helpers)]
    return '\n\n'.join(filter(None, parts)) + '\n'


ROOM_TITLES = {  # title, its one job
    'root': ('What every room uses', 'files, locks, a clock, progress'),
    'graph': ('The graph', 'labels and ids, files in and out, what is near what'),
    'runs': ('Runs', 'train with PyKEEN and keep what an explanation needs; open what others kept'),
    'engine': ('The engine', 'model, loss and triples become factors; what is done to them'),
    'answer': ('The answer', 'the answer as plain data; everything that shows or saves it'),
    'influence': ('Influence', 'the pass over checkpoints and training triples'),
    'evaluation': ('Is it true?', 'what a training without triples does, and how to ask it'),
    'bench': ('What it costs', 'time and memory, measured'),
    'app': ('What a person touches', 'panels in a notebook, and the command line'),
}


def listed(names: Iterable[str]) -> str:
    "Return a hidden list of pages for the sidebar."
    return '\n'.join(['```{toctree}', ':hidden:', *names, '```'])


def room_page(room: str, modules: dict[str, Path]) -> str:
    "Return the page of a room: its chapters, what each is about, and its page of the API."
    title, job = ROOM_TITLES[room]
    inside = {m: p for m, p in modules.items() if room_of(p) == room}
    rows = [
        cells(
            f'[{heading(p)[0]}](../{p.relative_to(NBS)})',
            linked(heading(p)[1]),
            f'[{m.rpartition(".")[2]}](../api/{m}.md)',
        )
        for m, p in inside.items()
    ]
    table = '\n'.join(['| chapter | | API |', '|---|---|---|', *rows])
    pages = [f'/{p.relative_to(NBS).with_suffix("").as_posix()}' for p in inside.values()]
    return '\n\n'.join([f'# {title}', f'{job[0].upper()}{job[1:]}.', table, listed(pages)]) + '\n'


def rooms_index(modules: dict[str, Path]) -> str:
    "Return the page that lists the rooms."
    count = Counter(map(room_of, modules.values()))
    rows = [
        cells(f'[{title}]({room}.md)', job, f'{count[room]}')
        for room, (title, job) in ROOM_TITLES.items()
    ]
    intro = (
        'Everything is written in notebooks, one idea each: explained, shown and tested. They are '
        'the chapters of eight rooms; a room uses those above it only.'
    )
    table = '\n'.join(['| room | its one job | chapters |', '|---|---|---|', *rows])
    return '\n\n'.join(['# All chapters', intro, table, listed(ROOM_TITLES)]) + '\n'


def tutorials_page() -> str:
    "Return the page that lists the tutorials."
    paths = [*sorted(NBS.glob('tutorials/[0-9]*.ipynb')), NBS / 'tutorials/earlier_scripts.ipynb']
    rows = [
        cells(f'[{heading(p)[0]}](../tutorials/{p.name})', linked(heading(p)[1])) for p in paths
    ]
    table = '\n'.join(['| tutorial | |', '|---|---|', *rows])
    pages = [f'/tutorials/{p.stem}' for p in paths]
    return '\n\n'.join(['# Tutorials', table, listed(pages)]) + '\n'


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
            ', '.join(reference(m, n) for n in ranked(m)[0] if '.' not in n),
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
    return (
        '\n\n'.join(
            ['# API', intro, '## What most people need', tables[0], '## Modules', tables[1]]
        )
        + '\n'
    )


def write(path: Path, text: str) -> None:
    "Write a file unless it holds just this, so that Sphinx reads again only what has changed."
    if not path.exists() or path.read_text(encoding='utf-8') != text:
        path.write_text(text, encoding='utf-8')


def write_pages(folder: Path, pages: dict[str, str]) -> None:
    "Write pages into a folder, and remove those that are no more."
    folder.mkdir(exist_ok=True)
    for path in folder.glob('*.md'):
        if path.stem not in pages:
            path.unlink()
    for name, text in pages.items():
        write(folder / f'{name}.md', text)


def write_made() -> None:
    "Write the pages of the API and of the rooms, which are made from the modules."
    modules = chapters()
    write_pages(
        API, {'index': api_index(modules), **{m: api_page(m, p) for m, p in modules.items()}}
    )
    rooms = {room: room_page(room, modules) for room in ROOM_TITLES}
    write_pages(
        NBS / 'rooms', {'index': rooms_index(modules), 'tutorials': tutorials_page(), **rooms}
    )


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
        'From files to an answer: 18.6 million triples',
        'A graph of 1.45 million entities as files of labels, a small ConvE; its own loss with one '
        'negative, unless the row names another. A few predictions are explained by what is near '
        'them, 950 by all triples. '
        'Each way in a process of its own, imports included. Memory is what comes on top of '
        'the imports and the model.',
        None,
    ),
    'growth': (
        'Growth',
        'Time and memory are taken to grow like a power of the size: an exponent of 1 is '
        'proportional growth.',
        None,
    ),
    'negatives': (
        'Negatives beside training',
        "The run's own loss of a triple with its negatives. *Training epochs* is the time of a "
        "question, at one checkpoint, in epochs of PyKEEN's own training of the same run; the "
        'first question also settles how to compute and, for `natural`, gathers second moments. '
        'With many negatives in a graph of 104 entities nearly all pairs of triples share rows, '
        'and for 1,000 test triples their products take longer than an epoch.',
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
    'trust': (
        'Deletions in other seeds',
        'Rank correlation with the mean change over held-out seeds when one fact, or four, are '
        'dropped, with 95 % intervals over the predictions; what one to five real retrainings '
        'predict of it; what the facts that each ranking names first do there (mean rise of the '
        "loss); and the LDS in the run's own seed. See "
        '[the chapter](evaluation/67_held_out.ipynb).',
        None,
    ),
    'rivals': (
        'Removal beside other explainers',
        'What the first one, three, four or ten facts that each method names do to predictions '
        'that the run ranks first: fall of the filtered reciprocal rank and rise of the loss after '
        'a training without them, with 95 % intervals over the predictions, and paired '
        'differences. '
        'The best of ours is chosen on one half of the predictions and counted on the other. See '
        '[the chapter](evaluation/69_beside_rivals.ipynb).',
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
    'view': (
        'The mechanism view',
        "Curated steps, where the pair's own evidence comes first: by trained weights, by weights "
        'as they were drawn, and by rules that know no model. Chosen on validation pairs. '
        'See [the chapter](evaluation/50_mechanisms.ipynb).',
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


def drawn(ax: Any, name: str) -> str:
    "Return the figure of axes as a part of the page, in its colours."
    import matplotlib

    from tracin_nb.answer.bars import svg_text

    for some in ax.figure.axes:
        some.set_title(some.get_title() if len(ax.figure.axes) > 1 else '')
    text = svg_text(ax.figure, alone=False).replace('aria-label="figure"', f'aria-label="{name}"')
    matplotlib.pyplot.close(ax.figure)
    return f'```{{raw}} html\n<div class="picture chart">{text}</div>\n```'


def folded(text: str, summary: str) -> str:
    "Content that can be opened."
    begin = f'```{{raw}} html\n<details class="table"><summary>{summary}</summary>\n```'
    return f'{begin}\n\n{text}\n\n```{{raw}} html\n</details>\n```'


def ratio_chart(path: Path, column: str) -> str:
    "Return the ratios of a benchmark as a picture in the page."
    from tracin_nb.answer.plots import speedups

    return drawn(speedups(path, column), f'{column.replace("_", " ")} in {path.name}')


TRIED = re.compile(r'(.*): (\D[^:]*?) ((?:[\d,.]+ at \d+(?:, )?)+)')
SIZES = 'Times slower at each batch size tried: '


def batch_chart(result: dict[str, Any]) -> str:
    "How many times slower each library is at each batch size, one of the axes for each question."
    from tracin_nb.answer.bars import SERIES
    from tracin_nb.answer.plots import panels

    said = next(x for x in result['notes'] if x.startswith(SIZES)).removeprefix(SIZES)
    found = [TRIED.fullmatch(part).groups() for part in said.rstrip('.').split('; ')]
    questions = list(dict.fromkeys(question for question, *_ in found))
    axes = panels(None, len(questions), 2.1, 3.2)
    looks = dict(zip(dict.fromkeys(name for _, name, _ in found), SERIES))
    for question, name, sizes in found:
        ratios = [ratio.split(' at ') for ratio in sizes.split(', ')]
        x, y = [int(b) for _, b in ratios], [float(a.replace(',', '')) for a, _ in ratios]
        axes[questions.index(question)].plot(x, y, label=name, **looks[name])
    for ax, question in zip(axes, questions):
        ax.set(xscale='log', yscale='log', xlabel='batch', title=question.replace(', ', '\n'))
        ax.spines[['top', 'right']].set_visible(False)
    axes[0].set_ylabel('times slower')
    handles, names = axes[0].get_legend_handles_labels()
    axes[0].figure.legend(
        handles, names, loc='outside lower center', ncols=4, fontsize='small', frameon=False
    )
    return drawn(axes[0], 'times slower at each batch size')


def lds_chart(result: dict[str, Any]) -> str:
    """Return the rank correlation of each estimator with its interval, one of the axes for each
    model."""
    import pandas as pd

    from tracin_nb.answer.bars import BLUE
    from tracin_nb.answer.plots import panels

    axes = panels(None, len(result['experiments']), 1.3, 7.4)
    for ax, experiment in zip(axes, result['experiments']):
        rows = pd.DataFrame([r['own'] for r in experiment['rows']])
        errors = [rows['mean'] - rows['low'], rows['high'] - rows['mean']]
        ax.errorbar(rows['mean'], range(len(rows)), xerr=errors, fmt='o', color=BLUE, markersize=4)
        settings = experiment['settings']
        models = dict(distmult='DistMult', conve='ConvE')
        ax.set_title(f'{settings["dataset"]}\n{models[settings["model"]]}', fontsize='medium')
        ax.set(xlim=(-0.1, 0.8), xticks=[0, 0.5])
        ax.grid(alpha=0.3)
        ax.spines[['top', 'right']].set_visible(False)
    names = [r['estimator'] for r in result['experiments'][0]['rows']]
    axes[0].set_yticks(range(len(names)), names)
    axes[0].set_ylim(len(names) - 0.4, -0.6)
    return drawn(axes[0], 'rank correlation of predicted and actual losses')


def charts(path: Path, result: dict[str, Any], ratio: str | None) -> list[str]:
    "Return the pictures of a benchmark, if it has any."
    import matplotlib

    matplotlib.use('Agg')
    found = [ratio_chart(path, ratio)] if ratio else []
    if any(note.startswith(SIZES) for note in result.get('notes', ())):
        found.append(batch_chart(result))
    return [*found, lds_chart(result)] if path.stem == 'lds' else found


def with_table(path: Path, result: dict[str, Any], ratio: str | None) -> list[str]:
    "Pictures and the table of a benchmark; a table beside its pictures is folded."
    pictures, table = charts(path, result, ratio), table_of(result, path)
    return [*pictures, folded(table, 'The table, with notes') if pictures else table]


def benchmark_section(path: Path) -> str:
    "Heading, picture and table of one file."
    title, text, ratio = about(path.stem)
    result = json.loads(path.read_text(encoding='utf-8'))
    source = f'From [`benchmarks/{path.name}`](../benchmarks/{path.name}).'
    parts = [f'## {title}', linked(f'{text} {source}'.strip())]
    return '\n\n'.join([*parts, *with_table(path, result, ratio)])


def benchmarks() -> str:
    "Return a section for each file in benchmarks/."
    return '\n\n'.join(map(benchmark_section, sorted(BENCHMARKS.glob('*.json'), key=order)))


def peers() -> str:
    "Return the figures of the comparison with other libraries, with their charts."
    path = BENCHMARKS / 'peers.json'
    return '\n\n'.join(
        with_table(path, json.loads(path.read_text(encoding='utf-8')), 'times_slower')
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
