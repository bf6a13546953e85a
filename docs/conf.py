"""The site: Sphinx reads nbs/ as it stands; the stored outputs are what it shows."""
import json, sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
NBS = HERE.parent/'nbs'
sys.path[:0] = [str(HERE), str(HERE.parent)]
from tracin_nb import __version__ as release

project, author, copyright = 'tracin_nb', 'The tracin_nb authors', 'the tracin_nb authors'
extensions = ['myst_nb', 'sphinx.ext.mathjax']
root_doc, language = 'index', 'en'
exclude_patterns = ['**/.ipynb_checkpoints', '_*', '**/_*', '**.tmp']
source_suffix = {'.ipynb': 'myst-nb', '.md': 'myst-nb'}

nb_custom_formats = {'.ipynb': 'reader.read'}
nb_execution_mode = 'off'
nb_merge_streams = True
myst_enable_extensions = ['dollarmath', 'amsmath', 'colon_fence', 'deflist']
myst_heading_anchors = 3
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 180  # counted with full names, shown without
add_module_names = False
toc_object_entries_show_parents = 'hide'

html_theme, html_title = 'furo', 'tracin_nb'
html_static_path, html_favicon = ['_static'], '_static/icon.svg'
html_css_files, html_js_files = ['site.css'], ['widgets-math.js']
html_show_sphinx = html_copy_source = False

# Both scripts come with `make docs-assets`, so that the site asks no other host.
mathjax_path = 'tex-svg.js'
html_math_renderer = 'mathjax' if (HERE/'_static'/mathjax_path).exists() else 'tex'
nb_ipywidgets_js = {'embed.js': {}} if (HERE/'_static/embed.js').exists() else {}


def toctree(caption: str, pattern: str) -> str:
    "A hidden toctree of the notebooks that match `pattern`, or nothing if there is none."
    pages = sorted(p.relative_to(NBS).with_suffix('').as_posix() for p in NBS.glob(pattern) if p.stem != 'index')
    return '\n'.join(['```{toctree}', ':hidden:', f':caption: {caption}', *pages, '```']) if pages else ''


def add_toctree(app, docname: str, source: list[str]) -> None:
    "Append the table of contents to the first page, which is also the README and so does not hold it."
    if docname != root_doc: return
    nb = json.loads(source[0])
    groups = {'Tutorials': 'tutorials/*.ipynb', 'Chapters': '[0-9]*.ipynb', 'Reference': '*.md'}
    trees = [toctree(caption, pattern) for caption, pattern in groups.items()]
    nb['cells'].append(dict(cell_type='markdown', id='toctree', metadata={}, source='\n\n'.join(filter(None, trees))))
    source[0] = json.dumps(nb)


def show_tex(self, node) -> None:
    "Without MathJax a formula is shown as the TeX that it is."
    from docutils.nodes import SkipNode
    self.body.append(self.starttag(node, 'code', '', CLASS='tex') + self.encode(node.astext()) + '</code>')
    raise SkipNode


def setup(app) -> None:
    app.add_html_math_renderer('tex', (show_tex, None), (show_tex, None))
    app.connect('source-read', add_toctree)
