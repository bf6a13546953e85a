"""The site: Sphinx reads nbs/ as it stands; the stored outputs are what it shows."""

import json
import re
import sys
from pathlib import Path

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
html_css_files, html_js_files = ['site.css'], ['widgets-math.js']
html_show_sphinx = html_copy_source = html_show_sourcelink = False
smartquotes = False  # they make one dash of the two before an option

# Both scripts come with `make docs-assets`, so that the site asks no other host.
mathjax_path = 'tex-svg.js'
html_math_renderer = 'mathjax' if (HERE / '_static' / mathjax_path).exists() else 'tex'
nb_ipywidgets_js = {'embed.js': {}} if (HERE / '_static/embed.js').exists() else {}


PARTS = [  # caption, pages: names or patterns; what an earlier line has is not repeated
    ('Start here', ['00_tracin']),
    ('Tutorials', ['tutorials/[0-9]*', 'tutorials/*']),
    ('Reference', ['method', 'glossary', 'api/index', 'commands', 'benchmarks', 'comparison']),
    ('What every room uses', ['[0-9]*']),
    ('The graph', ['graph/*']),
    ('Runs', ['runs/*']),
    ('The engine', ['engine/*']),
    ('The answer', ['answer/*']),
    ('Influence', ['influence/*']),
    ('Is it true?', ['evaluation/*']),
    ('What it costs', ['bench/*']),
    ('What a person touches', ['app/*']),
    ('Project', ['contributing', 'changelog', '*']),
]
OTHER = {'index', 'README'}  # pages that no part lists


def matching(pattern: str) -> list[str]:
    "Return the pages in nbs/ whose name matches a pattern, without suffix."
    found = [
        p
        for p in NBS.glob(pattern + '.*')
        if p.suffix in source_suffix and not p.stem.startswith('_')
    ]
    return sorted(p.relative_to(NBS).with_suffix('').as_posix() for p in found)


def toctrees() -> str:
    "Hidden toctrees, one for each part that has pages."
    seen, trees = set(OTHER), []
    for caption, patterns in PARTS:
        names = [
            name for name in dict.fromkeys(sum(map(matching, patterns), [])) if name not in seen
        ]
        seen.update(names)
        if names:
            trees.append(
                '\n'.join(['```{toctree}', ':hidden:', f':caption: {caption}', *names, '```'])
            )
    return '\n\n'.join(trees)


def complete(app, docname: str, source: list[str]) -> None:
    """Put into pages what is made when the site is built: the table of contents into the first
    page, which is also the README and so does not hold it, and for `<!-- made: name -->` what
    `pages.MADE` says."""
    if docname == root_doc:
        nb = json.loads(source[0])
        nb['cells'].append(dict(cell_type='markdown', id='toctree', metadata={}, source=toctrees()))
        source[0] = json.dumps(nb)
    elif (NBS / f'{docname}.md').exists() and not docname.startswith('api/'):
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


def setup(app) -> None:
    app.add_html_math_renderer('tex', (show_tex, None), (show_tex, None))
    app.connect('builder-inited', lambda app: pages.write_api())
    app.connect('source-read', complete)
