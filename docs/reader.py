"""Reads a notebook for the site: nbdev's processors, then definitions as Sphinx directives and
linked names."""

import ast
import dataclasses
import inspect
import json
import re
import sys
import textwrap
from collections import Counter
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import nbformat
from fastcore.docments import docments
from fastcore.nbio import dict2nb, nb2dict
from nbdev.process import NBProcessor
from nbdev.processors import (
    add_show_docs,
    clean_magics,
    filter_stream_,
    hide_,
    hide_line,
    mv_exports,
    rm_export,
    rm_header_dash,
    strip_ansi,
)
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer
from sphinx.util.inspect import stringify_signature

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tracin_nb._modidx import d as modidx

PROCS = [
    add_show_docs,
    strip_ansi,
    hide_line,
    filter_stream_,
    rm_header_dash,
    mv_exports,
    rm_export,
    clean_magics,
    hide_,
]
HERE = '(../CONTRIBUTING.md)', '(contributing.md)'  # the site has a page of it
TAGS = {
    'echo': 'remove-input',
    'output': 'remove-output',
    'include': 'remove-cell',
}  # `#| echo: false` and so on


def symbols() -> dict[str, str]:
    """Every exported name, with and without its module, to its full name; a name of two modules
    needs its module."""
    short = {
        name: name.removeprefix(f'{module}.')
        for module, names in modidx['syms'].items()
        for name in names
    }
    often = Counter(short.values())
    in_module = {
        f'{name.removesuffix(f".{s}").rpartition(".")[2]}.{s}': name for name, s in short.items()
    }
    return {
        **{s: name for name, s in short.items() if often[s] == 1},
        **in_module,
        **{name.split('.', 1)[1]: name for name in short},
        **{name: name for name in short},
    }


SYMBOLS = symbols()


def link(match: re.Match) -> str:
    "Return a backticked name as a cross-reference, if the package exports it."
    name = match[1].removesuffix('()')
    return f'{{py:obj}}`{match[1]} <{SYMBOLS[name]}>`' if name in SYMBOLS else match[0]


NAME = r'(?<![`\[{}])`([\w.]+(?:\(\))?)`(?![`\]])'
SPECIAL = NAME.replace('([', '((?=[^`]*[A-Z_.()])[')  # no plain word in lower case


def linked(text: str, plain: bool = True) -> str:
    """Markdown with its backticked names linked; fenced blocks, headings and existing links stay as
    they are.

    Without `plain` a word in lower case is no name: on pages about the method, `score` is an
    objective."""
    fence, lines = False, []
    for line in text.split('\n'):
        if line.lstrip().startswith(('```', ':::')):
            fence = not fence
        still = fence or line.startswith(('#', '    '))
        lines.append(line if still else re.sub(NAME if plain else SPECIAL, link, line))
    return '\n'.join(lines)


def find(module: Any, name: str) -> Any:
    """Return the object `name` (perhaps `Class.method`) of `module`, as it stands in the class: a
    property stays one."""
    first, *rest = name.split('.')
    obj = getattr(module, first)
    for part in rest:
        obj = inspect.getattr_static(obj, part)
    return (
        classmethod(obj.f) if type(obj).__name__ == '_clsmethod' else obj
    )  # `@patch(cls_method=True)`


def described(obj: Any, name: str) -> tuple[str, Any]:
    "Return the directive that describes `obj`, and the function whose signature it has."
    if inspect.isclass(obj):
        return 'py:class', obj
    if isinstance(obj, property):
        return 'py:property', obj.fget
    if isinstance(obj, (classmethod, staticmethod)):
        return f'py:method:{type(obj).__name__}', obj.__func__
    return ('py:method' if '.' in name else 'py:function'), obj


class Written:
    "A default as a reader would write it; shown as it stands."

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def default(value: Any, module: Any) -> Any:
    """Return a function or class by its name, what is long by the name of its constant, and
    `...` for what has no short form."""
    named = (
        getattr(value, '__name__', '') if inspect.isroutine(value) or inspect.isclass(value) else ''
    )
    constant = next((n for n, v in vars(module).items() if v is value and n.isupper()), '')
    made = f'{type(value).__name__}(...)' if hasattr(value, '__dataclass_fields__') else '...'
    text = named or repr(value)
    if len(text) > 60:
        text = constant or made
    try:
        ast.parse(text, mode='eval')
    except SyntaxError:
        text = '...'
    return Written(text)


def signature(func: Any, kind: str) -> str:
    "Return the signature as text, without the bound first argument; a property has none."
    if kind == 'py:property':
        return ''
    try:
        sig = inspect.signature(func)
    except (TypeError, ValueError):
        return ''
    bound = kind.startswith('py:method') and not kind.endswith('staticmethod')
    defaults = [
        p
        if p.default is p.empty
        else p.replace(default=default(p.default, inspect.getmodule(func)))
        for p in sig.parameters.values()
    ]
    sig = sig.replace(parameters=defaults)
    if inspect.isclass(func):
        sig = sig.replace(return_annotation=inspect.Signature.empty)
    if bound:
        sig = sig.replace(parameters=list(sig.parameters.values())[1:])
    return stringify_signature(sig, unqualified_typehints=True)


def told_options(func: Any) -> dict[str, str]:
    """Return what options say of themselves: those of a dataclass, and those that `TracIn` takes
    from one."""
    from tracin_nb.influence.settings import Settings, options_of

    if dataclasses.is_dataclass(func):
        return {f.name: told.sentence for f, told in options_of(func)}
    own = {f.name: told.sentence for f, told in options_of(Settings)}
    try:
        taken = inspect.signature(func).parameters.keys()
    except (TypeError, ValueError):
        return {}
    return own if own.keys() <= taken else {}


def comments(func: Any) -> str:
    """Return a table of the parameters that have a comment; types and defaults stand in the
    signature."""
    found = docments(func) if callable(func) else {}
    found |= told_options(func)
    named = {
        ('returns' if name == 'return' else name): text for name, text in found.items() if text
    }
    rows = [f'| `{name}` | {linked(text)} |'.replace('\n', ' ') for name, text in named.items()]
    return '\n'.join(['| | |', '|---|---|', *rows]) if rows else ''


@cache
def parts(module: str, name: str) -> tuple[str, str, str, str]:
    """Return what a definition's directive is made of: its kind, an option of it, the signature,
    and what stands beneath."""
    obj = find(import_module(module), name)
    kind, func = described(obj, name)
    kind_name, option = re.fullmatch(r'(py:\w+)(?::(\w+))?', kind).groups()
    return (
        kind_name,
        option or '',
        signature(func, kind),
        f'{linked(inspect.getdoc(func) or "")}\n\n{comments(func)}',
    )


def directive(module: str, name: str, index: bool = True) -> str:
    """Return a `py:function`, `py:class`, ... directive with signature, docstring and the comments
    on its parameters.

    Without `index` it is shown, but links and the search lead elsewhere: to the page of its
    module."""
    kind, option, given, text = parts(module, name)
    options = '\n'.join(
        [f':module: {module}', *[f':{option}:'] * bool(option), *[':no-index:'] * (not index)]
    )
    return f'``````{{{kind}}} {name}{given}\n{options}\n\n{text}\n``````'


def source_of(obj: Any) -> str:
    """Return the source of a definition, folded; as HTML, so that the search does not find its
    words."""
    try:
        text = inspect.getsource(described(obj, '')[1])
    except (OSError, TypeError):
        return ''
    shown = highlight(textwrap.dedent(text), PythonLexer(), HtmlFormatter(nowrap=True))
    block = f'<div class="highlight"><pre>{shown}</pre></div>'
    return f'<details class="source"><summary>Source</summary>{block}</details>'


def document(cell: dict, module: str) -> None:
    "Turn a `show_doc(name)` cell into a Markdown cell that describes the name."
    name = re.search(r'show_doc\(([\w.]+)', cell['source'])[1]
    shown = source_of(find(import_module(module), name))
    folded = f'\n\n``````{{raw}} html\n{shown}\n``````' if shown else ''
    cell.update(cell_type='markdown', source=directive(module, name, index=False) + folded)
    for key in ('outputs', 'execution_count', 'has_sd'):
        cell.pop(key, None)


CHECKS = re.compile(r'\b(?:assert\b|test_eq\(|test_close\(|expect_fail\(|(?:testing|np)\.assert_)')


def tags(cell: dict) -> list[str]:
    """MyST-NB's names for Quarto's `#| echo: false` and the like. What only checks, and shows
    nothing, is folded."""
    found = [tag for key, tag in TAGS.items() if cell.directives_.get(key) == 'false']
    checks = not cell.get('outputs') and CHECKS.search(cell.source)
    return found or ['hide-input'] * bool(checks)


def inline(cell: dict) -> None:
    """Let pictures in SVG be parts of the page, in its colours; an image would know nothing of
    it."""
    for out in cell.get('outputs', []):
        data = out.get('data', {})
        drawn = ''.join(data.get('image/svg+xml', ''))
        if 'currentColor' in drawn:
            data['text/html'] = f'<div class="picture">{drawn}</div>'


STATES, SHOWN = (f'application/vnd.jupyter.widget-{x}+json' for x in ('state', 'view'))


def without_scripts(nb: dict[str, Any]) -> dict[str, Any]:
    """Return the notebook with the HTML of its live views in place of their widgets, whose script
    the site has no loader for."""
    found = nb['metadata'].get('widgets', {}).get(STATES, {}).get('state', {})
    for widget in found.values():
        if widget['model_module'] == 'anywidget':
            state = widget['state']
            page = f'<style>{state["_css"]}</style><div class="tracin">{state["content"]}</div>'
            kept = {name: state[name] for name in ('layout', '_dom_classes') if name in state}
            widget |= dict(model_name='HTMLModel', model_module='@jupyter-widgets/controls')
            widget |= dict(model_module_version='2.0.0', state=dict(kept, value=page))
    for out in (out for cell in nb['cells'] for out in cell.get('outputs', ())):
        if {SHOWN, 'text/html'} <= {*out.get('data', ())}:
            del out['data'][SHOWN]
    return nb


def read(text: str) -> nbformat.NotebookNode:
    "Return the notebook in `text` (JSON) as the site shows it."
    module = re.search(r'#\|\s*default_exp\s+([\w.]+)', text)
    nb = NBProcessor(nb=dict2nb(without_scripts(json.loads(text))), procs=PROCS, process=True).nb
    for cell in nb.cells:
        if cell.cell_type == 'markdown':
            cell['source'] = linked(cell.source.replace(*HERE))
        elif cell.source.startswith('show_doc('):
            document(cell, f'tracin_nb.{module[1]}')
        else:
            inline(cell)
            cell['metadata']['tags'] = tags(cell)
    return nbformat.reads(json.dumps(nb2dict(nb)), as_version=4)
