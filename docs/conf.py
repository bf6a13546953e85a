"""The site: Sphinx reads nbs/ as it stands; the stored outputs are what it shows."""

import json
import re
import sys
from pathlib import Path
from typing import Any

from bs4 import BeautifulSoup
from sphinx.writers.html5 import HTML5Translator

HERE = Path(__file__).resolve().parent
NBS = HERE.parent / 'nbs'
sys.path[:0] = [str(HERE), str(HERE.parent)]
import pages
from reader import linked

project, author, copyright = 'tracin_nb', 'The tracin_nb authors', 'the tracin_nb authors'
extensions = ['myst_nb', 'sphinx.ext.mathjax']
root_doc, language = 'index', 'en'
exclude_patterns = ['**/.ipynb_checkpoints', '_*', '**/_*', '**.tmp']
source_suffix = {'.ipynb': 'myst-nb', '.md': 'myst-nb'}

nb_custom_formats = {'.ipynb': 'reader.read'}
nb_execution_mode = 'off'
nb_merge_streams = True
nb_render_markdown_format = 'myst'  # tables in outputs, too
myst_enable_extensions = ['dollarmath', 'amsmath', 'colon_fence', 'deflist']
myst_heading_anchors = 3
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 180  # counted with full names, shown without
add_module_names = False
toc_object_entries_show_parents = 'hide'

html_theme, html_title = 'furo', 'tracin_nb'
html_static_path, html_favicon = ['_static'], '_static/icon.svg'
html_css_files, html_js_files = ['site.css'], ['widgets-math.js', 'keyboard.js']
html_search_scorer = str(HERE / 'scorer.js')  # which page is found first
nb_code_prompt_show = nb_code_prompt_hide = 'Checks'  # what is folded
html_show_sphinx = html_copy_source = html_show_sourcelink = False
smartquotes = False  # they make one dash of the two before an option

# Both scripts come with `make docs-assets`, so that the site asks no other host.
mathjax_path = 'tex-svg.js'
html_math_renderer = 'mathjax' if (HERE / '_static' / mathjax_path).exists() else 'tex'
nb_ipywidgets_js = {'embed.js': {}} if (HERE / '_static/embed.js').exists() else {}


PARTS = [  # caption, pages: names or patterns; what an earlier line has is not repeated
    ('Start here', ['00_tracin', 'rooms/tutorials']),
    ('Reference', ['method', 'glossary', 'commands', 'api/index', 'benchmarks', 'comparison']),
    ('How it is made', ['rooms/index', 'contributing', 'changelog']),
]
MADE_HERE = {'api', 'rooms'}  # folders of pages that are made when the site is built


def toctrees() -> str:
    "Hidden toctrees, one for each part."
    parts = [
        ['```{toctree}', ':hidden:', f':caption: {caption}', *names, '```']
        for caption, names in PARTS
    ]
    return '\n\n'.join(map('\n'.join, parts))


THEMED = re.compile(
    r'<picture>\n<source [^>]*srcset="\.\./docs/([^"]+)">\n<img src="\.\./docs/([^"]+)" ([^>]+)>\n'
    '</picture>'
)


def themed(text: str) -> str:
    """Return Markdown in which a picture of two, for a light and for a dark page, follows the
    switch of the page; `<picture>` asks the browser only."""
    both = r'<img class="only-light" src="\2" \3>\n<img class="only-dark" src="\1" \3>'
    return THEMED.sub(both, text)


def complete(app, docname: str, source: list[str]) -> None:
    """Put into pages what is made when the site is built: the table of contents into the first
    page, which is also the README and so does not hold it, and for `<!-- made: name -->` what
    `pages.MADE` says."""
    if docname == root_doc:
        nb = json.loads(source[0])
        for cell in nb['cells']:
            cell['source'] = themed(''.join(cell['source']))
        nb['cells'].append(dict(cell_type='markdown', id='toctree', metadata={}, source=toctrees()))
        source[0] = json.dumps(nb)
    elif (NBS / f'{docname}.md').exists() and docname.split('/')[0] not in MADE_HERE:
        source[0] = re.sub(
            r'<!-- made: (\w+) -->', lambda m: pages.MADE[m[1]](), linked(source[0], plain=False)
        )


def show_tex(self, node) -> None:
    "Without MathJax a formula is shown as the TeX that it is."
    from docutils.nodes import SkipNode

    self.body.append(
        self.starttag(node, 'code', '', CLASS='tex') + self.encode(node.astext()) + '</code>'
    )
    raise SkipNode


MOST = 12  # chapters of a room that the sidebar lists around the one that is read


def nearest(items: list, current: int) -> list:
    "At most `MOST` items around the current one."
    first = max(0, min(current - MOST // 2, len(items) - MOST))
    return items[first : first + MOST]


def drop_others(level: Any, kept: list) -> None:
    "Drop the entries of a list of the sidebar that are not `kept`."
    for item in level.find_all('li', recursive=False):
        if item not in kept:
            item.decompose()


def shortened(tree: str) -> str:
    """Return the sidebar with few entries: what lies below an entry is listed where that is
    read, of rooms and chapters the one that is read and those around it, and the tutorials
    elsewhere. A caption is a heading, whose level Sphinx leaves out."""
    soup = BeautifulSoup(tree, 'html.parser')
    for caption in soup.select('[role=heading]'):
        caption['aria-level'] = '2'
    elsewhere = not soup.select('li.current.has-children')
    for item in soup.select('li.has-children'):
        if item.decomposed:
            continue
        tutorials = elsewhere and item.a.get_text() == 'Tutorials'
        if tutorials:
            item.input['checked'] = ''
        elif 'current' not in item['class']:
            for part in item.find_all(['ul', 'input', 'label'], recursive=False):
                part.decompose()
            item['class'].remove('has-children')
    for level in soup.select('li.current > ul'):
        items = level.find_all('li', recursive=False)
        at = [i for i, item in enumerate(items) if 'current' in item.get('class', [])]
        inside = at and 'has-children' in items[at[0]]['class']
        drop_others(level, [items[at[0]]] if inside else nearest(items, at[0] if at else 0))
    return str(soup)


def shorten(app, pagename: str, templatename: str, context: dict, doctree) -> None:
    "Shorten the sidebar of a page, after the theme has made it."
    if tree := context.get('furo_navigation_tree'):
        context['furo_navigation_tree'] = shortened(tree)


LINES = {'<dl>': '<span class="sig-lines">', '<dd>': '<span class="sig-line">'}


class Writer(HTML5Translator):
    """Writes a signature of several lines as lines; Sphinx makes a list of definitions of them,
    without terms."""

    def visit_desc_parameterlist(self, node) -> None:
        self.signature_starts = len(self.body)
        super().visit_desc_parameterlist(node)

    def depart_desc_parameterlist(self, node) -> None:
        super().depart_desc_parameterlist(node)
        for i in range(self.signature_starts, len(self.body)):
            self.body[i] = re.sub(r'</?d[dl]>', lambda m: LINES.get(m[0], '</span>'), self.body[i])


def setup(app) -> None:
    app.set_translator('html', Writer)
    app.add_html_math_renderer('tex', (show_tex, None), (show_tex, None))
    app.connect('builder-inited', lambda app: pages.write_made())
    app.connect('html-page-context', shorten, priority=900)
    app.connect('source-read', complete)
