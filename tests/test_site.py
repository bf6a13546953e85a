"""The built site: whole by its files, and in a browser, light and dark, wide and narrow, asking
no other host."""

import os
import re
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest
from looks import dull, faults, hidden

SITE = Path(__file__).resolve().parent.parent / 'docs/_build/html'
CHROMIUM = (
    shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
)
FLAGS = [
    '--no-sandbox',
    '--disable-gpu',
    '--disable-background-networking',
    '--no-first-run',
    '--disable-sync',
    '--disable-component-update',
]
PAGES = sorted(p.relative_to(SITE).as_posix() for p in SITE.rglob('*.html'))
HOST = 'http://site/'

if os.environ.get('CI') != 'true':
    if not PAGES:
        pytest.skip('no site here: `make docs` builds it', allow_module_level=True)
    if not CHROMIUM:
        pytest.skip('no Chromium here to look at the site with', allow_module_level=True)


# ---- by its files


class Seen(HTMLParser):
    "The ids of a page, what it links to, and what it loads."

    def __init__(self, text: str):
        super().__init__()
        self.ids, self.links, self.loads = set(), [], []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if 'id' in given:
            self.ids.add(given['id'])
        if tag == 'a' and given.get('href'):
            self.links.append(given['href'])
        if (
            tag == 'link'
            and given.get('href')
            and given.get('rel') in ('stylesheet', 'icon', 'preload', 'search')
        ):
            self.loads.append(given['href'])
        if tag in ('img', 'script', 'iframe', 'source', 'video', 'audio') and given.get('src'):
            self.loads.append(given['src'])


@pytest.fixture(scope='module')
def seen() -> dict[str, Seen]:
    "Every page, parsed."
    return {name: Seen((SITE / name).read_text(encoding='utf-8')) for name in PAGES}


def place(page: str, link: str) -> tuple[str, str]:
    "The file of the site and the id that a link on a page leads to."
    parts = urlsplit(urljoin(HOST + page, link))
    return unquote(parts.path.lstrip('/')) or 'index.html', unquote(parts.fragment)


def dead(page: str, link: str, seen: dict[str, Seen]) -> bool:
    "Does a link of this site lead nowhere?"
    path, fragment = place(page, link)
    if path not in seen:
        return not (SITE / path).is_file()
    return bool(fragment) and fragment not in seen[path].ids


def is_local(link: str) -> bool:
    return not urlsplit(link).scheme and not link.startswith('//')


def test_parts() -> None:
    "All that the site promises is there."
    wanted = {
        'index',
        '00_tracin',
        'method',
        'glossary',
        'api/index',
        'api/influence.tracin',
        'commands',
        'benchmarks',
        'comparison',
        'contributing',
        'changelog',
        'graph/00_triples',
        'influence/90_tracin',
        'app/70_cli',
        'search',
        'genindex',
    }
    assert not {f'{name}.html' for name in wanted} - set(PAGES)


def test_links(seen: dict[str, Seen]) -> None:
    "Every internal link, with its anchor."
    bad = [
        f'{name}: {link}'
        for name, page in seen.items()
        for link in page.links
        if is_local(link) and dead(name, link, seen)
    ]
    assert sum(len(page.links) for page in seen.values()) > 1000
    assert not bad, '\n'.join(bad[:20])


def test_loads_from_here(seen: dict[str, Seen]) -> None:
    "Pictures, scripts and styles are files of the site."
    bad = [
        f'{name}: {link}'
        for name, page in seen.items()
        for link in page.loads
        if not link.startswith('data:')
        and (not is_local(link) or dead(name, link.split('?')[0], {}))
    ]
    assert not bad, '\n'.join(bad[:20])
    styles = [
        p
        for p in SITE.rglob('*.css')
        if re.search(r'url\(["\']?(https?:)?//', p.read_text(encoding='utf-8'))
    ]
    assert not styles


def test_commands() -> None:
    "Each command and each of its options is on the page of the commands."
    from tracin_nb.app.cli import main

    text = re.sub(r'<[^>]+>', '', (SITE / 'commands.html').read_text(encoding='utf-8'))
    for name, command in main.commands.items():
        options = [o for p in command.params for o in p.opts if o.startswith('--')]
        assert f'tracin {name}' in text and not [o for o in options if o not in text], name


def test_benchmarks() -> None:
    "Each file of benchmarks/ has its table, and can be had."
    text = (SITE / 'benchmarks.html').read_text(encoding='utf-8')
    files = sorted((SITE.parents[2] / 'benchmarks').glob('*.json'))
    assert files and not [p.name for p in files if p.name not in text]
    assert text.count('<table') >= len(files) and text.count('class="picture chart"') >= 5
    assert text.count('<details class="table">') >= 4


def test_api(seen: dict[str, Seen]) -> None:
    "Every public function and class of every module has a page with its signature to link to."
    from tracin_nb._modidx import d

    ids = set().union(*(page.ids for name, page in seen.items() if name.startswith('api/')))
    missing = [
        name
        for module, names in d['syms'].items()
        for name in names
        if '.' not in (own := name.removeprefix(f'{module}.'))
        and not own.startswith('_')
        and name not in ids
    ]
    documented = [name for name in missing if has_docstring(name)]
    assert (
        not documented
        and {'tracin_nb.influence.tracin.TracIn.explain', 'tracin_nb.runs.run.Run.open'} <= ids
    )


def test_signatures() -> None:
    """A signature is Python: one that is not shows whole module paths after a tilde, or an
    address in memory."""
    bad = {}
    for name in PAGES:
        shown = re.findall(
            r'<dt class="sig.*?</dt>', (SITE / name).read_text(encoding='utf-8'), re.DOTALL
        )
        plain = [re.sub(r'<[^>]+>', '', text) for text in shown]
        bad |= {
            name: text[:200] for text in plain if '~' in text or '&lt;' in text or len(text) > 2500
        }
    assert bad == {}


def has_docstring(name: str) -> bool:
    "Does a definition have one? Commands are on a page of their own."
    from importlib import import_module

    import click

    module, _, attribute = name.rpartition('.')
    found = getattr(import_module(module), attribute)
    return bool(getattr(found, '__doc__', None)) and not isinstance(found, click.Command)


# ---- in a browser


class Quiet(SimpleHTTPRequestHandler):
    "Serves files and says nothing."

    def log_message(self, *args) -> None:
        pass


@pytest.fixture(scope='module')
def server() -> Iterator[str]:
    "The site on a free port of this machine."
    httpd = ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=SITE))
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{httpd.server_port}/'
    httpd.shutdown()


@pytest.fixture(scope='module')
def browser():
    "Headless Chromium."
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        yield p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)


LOOK = """() => {
  const drawn = (e) => { const b = e.getBoundingClientRect(); return b.width > 3 && b.height > 3; };
  const all = (what) => [...document.querySelectorAll('article ' + what)];
  const light = (c) => c.match(/[\\d.]+/g).slice(0, 3).reduce((s, x) => s + Number(x), 0) / 3;
  const opaque = (e) => { for (; e; e = e.parentElement) {
    const c = getComputedStyle(e).backgroundColor;
    if (!/, 0\\)$|transparent/.test(c)) return light(c);
  } return 255; };
  const ink = (e) => getComputedStyle(e)[e.closest('svg') ? 'fill' : 'color'];
  const contrast = (e) => Math.abs(light(ink(e)) - opaque(e));
  const text = ['p', 'td', '.picture text', '.widget-label', '.widget-html-content',
    '.widget-readout'].flatMap(all);
  return {
    formulas: all('mjx-container').filter((e) => e.querySelector('svg') && drawn(e)).length,
    raw: all('.math').filter((e) => !e.querySelector('mjx-container')).length,
    figures: all('img').filter((e) => e.naturalWidth > 50 && drawn(e)).length
      + all('.picture svg').filter(drawn).length,
    small: all('.picture svg text').filter((e) => e.textContent.trim() && drawn(e))
      .filter((e) => parseFloat(getComputedStyle(e).fontSize)
        * Math.hypot(e.getScreenCTM().a, e.getScreenCTM().b) < 8.95)
      .map((e) => e.textContent),
    broken: all('img').filter((e) => !e.complete || !e.naturalWidth).map((e) => e.src.slice(0, 80)),
    tables: all('table').filter((e) => drawn(e) && e.rows.length > 1).length,
    widgets: all('.jupyter-widgets').filter(drawn).length,
    faint: text.filter((e) => e.textContent.trim() && drawn(e) && contrast(e) < 60)
      .map((e) => e.textContent.slice(0, 40)),
    page: document.documentElement.scrollWidth, window: innerWidth,
    theme: light(getComputedStyle(document.body).backgroundColor), text: document.body.innerText};
}"""


VIEW = re.compile(
    r'<script type="application/vnd.jupyter.widget-view\+json">.*?"model_id": "(\w+)"', re.DOTALL
)
STATE = re.compile(
    r'<script type="application/vnd.jupyter.widget-state\+json">(.*?)</script>', re.DOTALL
)


def views(name: str) -> tuple[list[str], str]:
    "The widgets that a page shows, and the stored state of all that it holds."
    text = (SITE / name).read_text(encoding='utf-8')
    return VIEW.findall(text), ''.join(STATE.findall(text))


def test_widgets_are_stored() -> None:
    "Each widget that a page shows has its state; a notebook that was not run loses it."
    lost = {
        name: sum(i not in state for i in shown) for name in PAGES for shown, state in [views(name)]
    }
    assert {name: n for name, n in lost.items() if n} == {}


WIDGETS = [name for name in PAGES if all(views(name))]
WIDGET = next(iter(WIDGETS), None)
SHOWN = {  # page: what it has to show
    'index.html': ('figures', 'tables'),
    'method.html': ('formulas', 'tables'),
    'benchmarks.html': ('figures', 'tables'),
    'influence/90_tracin.html': ('formulas', 'tables'),
    'answer/30_plots.html': ('figures',),
    'tutorials/1_five_minutes.html': ('figures', 'tables'),
    'api/influence.tracin.html': ('tables',),
} | ({WIDGET: ('widgets',)} if WIDGET else {})
KINDS = {'tutorials/1_five_minutes.html', 'api/influence.tracin.html', WIDGET}


def look(browser, server: str, name: str, width: int, theme: str) -> dict:
    """What a page shows in a window of this width; it must load from here only, and without an
    error."""
    wrong = []
    context = browser.new_context(viewport=dict(width=width, height=900), color_scheme=theme)
    page = context.new_page()
    page.on('console', lambda m: wrong.append(m.text) if m.type == 'error' else None)
    page.on('pageerror', lambda e: wrong.append(str(e)))
    page.on(
        'request',
        lambda r: wrong.append(r.url) if not r.url.startswith((server, 'data:', 'blob:')) else None,
    )
    page.goto(server + name, wait_until='load')
    page.wait_for_load_state('networkidle')
    if page.locator('.math').count() and (SITE / '_static/tex-svg.js').exists():
        page.evaluate('() => MathJax.startup.promise')
    if name == WIDGET:
        page.wait_for_selector('.jupyter-widgets', timeout=20_000)
    found = page.evaluate(LOOK) | dict(dull=dull(page, 'article'))
    if name == 'index.html':
        found |= dict(hidden=hidden(page, 'article'), faults=faults(page, contrast=True))
    elif name in KINDS and width < 1000:
        found |= dict(faults=faults(page))
    context.close()
    assert not wrong
    return found


@pytest.mark.parametrize('width, theme', [(1400, 'light'), (390, 'dark')])
@pytest.mark.parametrize('name', SHOWN)
def test_page(name: str, width: int, theme: str, server: str, browser) -> None:
    """Formulas, figures, tables and widgets show, text can be read, the page is no wider than the
    window, and axe-core finds nothing serious on a page of each kind."""
    found = look(browser, server, name, width, theme)
    missing = [what for what in SHOWN[name] if not found[what]]
    if not (SITE / '_static/tex-svg.js').exists():
        missing = [m for m in missing if m != 'formulas']
    else:
        assert not found['raw']
    assert not missing
    assert not found['broken'] and 'Error displaying widget' not in found['text']
    assert not found['faint'] and not found['small'] and not found['dull']
    assert not found.get('faults') and not found.get('hidden')  # of a page of each kind
    assert (found['theme'] > 200) == (theme == 'light')
    assert found['page'] <= found['window']


@pytest.mark.parametrize('name', WIDGETS)
def test_widgets_in_the_dark(name: str, server: str, browser) -> None:
    "Every embedded widget can be read, in the light and in the dark."
    page = browser.new_page(viewport=dict(width=1440, height=900))
    page.goto(server + name, wait_until='load')
    page.wait_for_selector('.jupyter-widgets', timeout=20_000)
    page.wait_for_load_state('networkidle')
    for theme in ('light', 'dark'):
        page.emulate_media(color_scheme=theme)
        assert dull(page, 'article .jupyter-widgets') == []
    page.close()


def test_picture_follows_the_theme(server: str, browser) -> None:
    "The start page shows the app as dark as the page is, however that was chosen; files are small."
    page = browser.new_page(viewport=dict(width=1440, height=900), color_scheme='light')
    page.goto(server, wait_until='load')
    shown = """[...document.querySelectorAll('article img')].filter((e) => e.checkVisibility())
      .map((e) => e.src.split('/').pop())"""
    assert page.evaluate(shown) == ['app-light.webp']
    page.emulate_media(color_scheme='dark')
    assert page.evaluate(shown) == ['app-dark.webp']
    page.evaluate("document.body.dataset.theme = 'light'")
    assert page.evaluate(shown) == ['app-light.webp']
    page.close()
    assert max(p.stat().st_size for p in (SITE / '_static').glob('app-*.webp')) <= 120_000


@pytest.mark.parametrize('theme', ['light', 'dark'])
def test_phone(theme: str, server: str, browser) -> None:
    "No page is wider than a phone, and none asks another host; half of them in either theme."
    context = browser.new_context(viewport=dict(width=390, height=800), color_scheme=theme)
    page, asked, wide = context.new_page(), [], {}
    page.on(
        'request',
        lambda r: asked.append(r.url) if not r.url.startswith((server, 'data:', 'blob:')) else None,
    )
    for name in PAGES[theme == 'dark' :: 2]:
        page.goto(server + name, wait_until='load')
        if page.locator('.math').count() and (SITE / '_static/tex-svg.js').exists():
            page.evaluate('() => MathJax.startup.promise')
        width = page.evaluate('document.scrollingElement.scrollWidth')
        if width > 390:
            wide[name] = width
    context.close()
    assert wide == {} and asked == []


CODE = """() => [...document.querySelectorAll(
    'article .cell_input pre, article section > div:not(.highlight-text) > div.highlight > pre')]
  .filter((e) => e.offsetParent && e.scrollWidth > e.clientWidth)
  .map((e) => e.innerText.slice(0, 60))"""
ENTRIES = """() => [...document.querySelectorAll('.sidebar-tree li')]
  .filter((e) => e.getBoundingClientRect().height > 0).length"""


def test_wide_window(server: str, browser) -> None:
    """At 1440 pixels all code of tutorials and of the start page fits the column, and the sidebar
    lists at most 25 pages, on the way to a chapter, too."""
    page = browser.new_page(viewport=dict(width=1440, height=900))
    wide, long = {}, {}
    chapters = ['runs/60_training.html', 'rooms/index.html', 'rooms/runs.html', 'method.html']
    tutorials = [name for name in PAGES if name.startswith('tutorials/')]
    assert len(tutorials) > 7
    for name in [*tutorials, 'index.html', 'api/influence.tracin.html', *chapters]:
        page.goto(server + name, wait_until='domcontentloaded')
        if found := page.evaluate(CODE):
            wide[name] = found
        if not 5 < (count := page.evaluate(ENTRIES)) <= 25:
            long[name] = count
    page.close()
    assert wide == {} and long == {}


def test_folded(server: str, browser) -> None:
    "Checks and sources are folded, examples are open; what shows something is no check."
    page = browser.new_page(viewport=dict(width=1440, height=900))
    page.goto(server + 'influence/90_tracin.html', wait_until='domcontentloaded')
    shown = page.evaluate("""() => [...document.querySelectorAll('article .cell_input pre')]
      .filter((e) => e.checkVisibility()).map((e) => e.innerText)""")
    assert shown and not [text for text in shown if text.startswith(('assert', 'test_eq('))]
    sources = page.locator('details.source')
    assert sources.count() > 3 and page.locator('details.source[open]').count() == 0
    sources.first.locator('summary').click()
    assert sources.first.locator('pre').inner_text().startswith(('def ', 'class ', '@'))
    page.close()


def test_public_names_first() -> None:
    "On a page of the API what most people need stands first, helpers last, and the room is there."
    text = (SITE / 'api/influence.tracin.html').read_text(encoding='utf-8')
    names = re.findall(r'<dt class="sig[^>]*id="tracin_nb\.influence\.tracin\.(\w+)"', text)
    assert names[0] == 'TracIn' and 'href="../rooms/influence.html"' in text
    assert text.index('id="tracin_nb.influence.tracin.TracIn"') < text.index('id="helpers"')


@pytest.mark.parametrize(
    'query, first',
    [
        ('my own model', 'tutorials/4_my_own_model.html'),
        ('checkpoint', 'glossary.html'),
        ('rank', 'glossary.html'),
        ('leak', 'tutorials/8_is_my_test_set_leaking.html'),
    ],
)
def test_search_finds_first(query: str, first: str, server: str, browser) -> None:
    page = browser.new_page()
    page.goto(f'{server}search.html?q={query}', wait_until='load')
    page.wait_for_selector('ul.search li a', timeout=20_000)
    page.wait_for_function("document.querySelector('p.search-summary')?.innerText.includes('page')")
    if query == 'leak':
        assert faults(page) == []
    target = page.locator('ul.search li a').first.get_attribute('href')
    page.close()
    assert target.split('?')[0].split('#')[0] == first


def test_search(server: str, browser) -> None:
    "The search finds the chapter on checkpoints, and the class."
    page = browser.new_page()
    page.goto(server + 'search.html?q=TracIn', wait_until='load')
    for target in ('api/influence.tracin.html', '90_tracin'):
        page.wait_for_selector(f'ul.search li a[href*="{target}"]', timeout=20_000)
    page.close()
