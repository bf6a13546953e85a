"""The built site in a browser: every page loads whole, from this host alone, and shows its formulas and widgets."""
import os, shutil, threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

SITE = Path(__file__).resolve().parent.parent/'docs/_build/html'
CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-background-networking', '--no-first-run', '--disable-sync',
         '--disable-component-update']
PAGES = sorted(p.relative_to(SITE).as_posix() for p in SITE.rglob('*.html'))

if os.environ.get('CI') != 'true':
    if not PAGES: pytest.skip('no site here: `make docs` builds it', allow_module_level=True)
    if not CHROMIUM: pytest.skip('no Chromium here to look at the site with', allow_module_level=True)


class Quiet(SimpleHTTPRequestHandler):
    "Serves files and says nothing."
    def log_message(self, *args) -> None: pass


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
    with sync_playwright() as p: yield p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)


def test_built() -> None:
    assert 'index.html' in PAGES


@pytest.mark.parametrize('name', PAGES)
def test_page(name: str, server: str, browser) -> None:
    page, wrong = browser.new_page(), []
    page.on('console', lambda m: wrong.append(m.text) if m.type == 'error' else None)
    page.on('pageerror', lambda e: wrong.append(str(e)))
    page.on('request', lambda r: wrong.append(r.url) if not r.url.startswith((server, 'data:', 'blob:')) else None)
    page.goto(server + name, wait_until='networkidle')
    text = page.inner_text('body')
    page.close()
    assert not wrong
    assert len(text) > 50 and 'Error displaying widget' not in text
