"""Panels in a browser: the explorer in JupyterLab and as the page of `tracin serve`, the audit
in JupyterLab."""

import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
from looks import dull, faults, hidden

from tracin_nb.graph.names import Names
from tracin_nb.influence.tracin import TracIn
from tracin_nb.runs.run import Run
from tracin_nb.runs.training import train

CHROMIUM = (
    shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
)
FLAGS = [
    '--no-sandbox',
    '--disable-gpu',
    '--disable-dev-shm-usage',
    '--disable-background-networking',
    '--no-first-run',
    '--disable-sync',
    '--disable-component-update',
]
TRIPLE = ('brazil', 'embassy', 'uk')
TILE = 8  # training triples: small, so that there is time to press Stop

if os.environ.get('CI') != 'true' and not CHROMIUM:
    pytest.skip('no Chromium here to look at pages with', allow_module_level=True)


@pytest.fixture(scope='module')
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(
        'nations',
        'DistMult',
        out=tmp_path_factory.mktemp('browser') / 'run',
        epochs=4,
        keep_every=2,
        lr=0.02,
        model_kwargs=dict(embedding_dim=8),
        progress=False,
    )


@pytest.fixture(scope='module')
def browser() -> Iterator:
    "Headless Chromium."
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, tmp_path: Path) -> Iterator:
    "A page; its last look stays in `tmp_path`."
    context = browser.new_context(viewport=dict(width=1250, height=1800))
    context.grant_permissions(['clipboard-read', 'clipboard-write'])
    page = context.new_page()
    page.set_default_timeout(60_000)
    yield page
    page.screenshot(path=tmp_path / 'last.png')
    context.close()


@pytest.fixture(scope='module')
def clean(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    "An environment in which Jupyter knows nothing of its user."
    home = tmp_path_factory.mktemp('home')
    own = {f'JUPYTER_{x}_DIR': str(home / x.lower()) for x in ('CONFIG', 'RUNTIME', 'DATA')}
    return os.environ | own | dict(IPYTHONDIR=str(home / 'ipython'), OMP_NUM_THREADS='1')


@pytest.fixture(scope='module')
def jupyterlab(
    tmp_path_factory: pytest.TempPathFactory, clean: dict[str, str]
) -> Iterator[tuple[Path, int]]:
    "JupyterLab: the folder that it shows, and its port."
    home = tmp_path_factory.mktemp('lab')
    (home / 'work').mkdir()
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    options = [
        f'--ServerApp.port={port}',
        '--ServerApp.port_retries=0',
        '--IdentityProvider.token=t',
        '--no-browser',
        '--allow-root',
        '--expose-app-in-browser',
        f'--ServerApp.root_dir={home}/work',
        '--LabApp.news_url=None',
        '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate',
    ]
    with (home / 'log').open('wb') as log:
        process = subprocess.Popen(
            [sys.executable, '-m', 'jupyterlab', *options],
            env=clean,
            cwd=home,
            stdout=log,
            stderr=log,
        )
    try:
        listening(port, process, home / 'log')
        yield home / 'work', port
    finally:
        end(process)


@pytest.fixture
def lab(request: pytest.FixtureRequest, jupyterlab: tuple[Path, int], run: Run) -> str:
    "The address of a notebook that shows a panel, whose name is the parameter."
    folder, port = jupyterlab
    code = (
        f'from tracin_nb import {request.param}\n{request.param}({str(run.folder)!r}, '
        f'batch_size={TILE})'
    )
    cell = dict(
        cell_type='code', id='a', source=code, metadata={}, outputs=[], execution_count=None
    )
    kernel = dict(
        kernelspec=dict(name='python3', display_name='Python 3 (ipykernel)', language='python')
    )
    (folder / f'{request.param}.ipynb').write_text(
        json.dumps(dict(cells=[cell], metadata=kernel, nbformat=4, nbformat_minor=5))
    )
    return f'http://127.0.0.1:{port}/lab/tree/{request.param}.ipynb?reset&token=t'


def listening(port: int, process: subprocess.Popen, log: Path, seconds: float = 60) -> None:
    "Wait until somebody does."
    stop = time.monotonic() + seconds
    while time.monotonic() < stop and process.poll() is None:
        try:
            return socket.create_connection(('127.0.0.1', port), 1).close()
        except OSError:
            time.sleep(0.1)
    pytest.fail(log.read_text(errors='replace')[-3000:])


def end(process: subprocess.Popen) -> int:
    "Terminate a process and wait for it."
    process.terminate()
    try:
        return process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        raise


# ---- what one sees

NAMELESS = """() => [...document.querySelectorAll('.tracin-panel :is(input, select, textarea)')]
  .filter((e) => e.offsetWidth && !e.labels?.[0]?.innerText.trim()).map((e) => e.outerHTML)"""

SCALES = """() => [...document.querySelectorAll('.ranking tr:not(.detail) > td > .bar')]
  .filter((e) => e.offsetWidth > 20 && !e.closest('.detail'))
  .map((e) => e.getBoundingClientRect().width / parseFloat(e.style.width))"""


def check_readable(page) -> None:
    """Text stands out from what is behind it (WCAG AA), every control has a label, and no label
    of a triple is cut off at a side."""
    assert dull(page, ':is(.tracin-panel, .widget-tab, main)') == []
    assert page.evaluate(NAMELESS) == []
    assert hidden(page, ':is(.tracin, .tracin-panel)') == []


def check_widths(page, tmp_path: Path, name: str, where: str = '') -> None:
    "On a phone and on a wide screen; a picture of each stays."
    for width in (390, 1440):
        page.set_viewport_size(dict(width=width, height=1800))
        page.wait_for_timeout(300)
        check_readable(page)
        assert faults(page, name.startswith('report'), where) == []
        scales = page.evaluate(SCALES)
        assert max(scales) < 1.2 * min(scales)  # of bars, per cent: as long as they say
        page.screenshot(path=tmp_path / f'{name}_{width}.png')


def press(page, name: str) -> None:
    "Press a button with the keyboard."
    button = page.get_by_role('button', name=name, exact=True)
    page.wait_for_function('button => !button.disabled', arg=button.element_handle())
    button.focus()
    button.press('Enter')


def wait_for(page, pattern: str) -> str:
    "Wait for a line of news or an error."
    lines = page.locator('.tracin-panel :is([role=status], [role=alert])')
    lines.filter(has_text=re.compile(pattern)).first.wait_for()
    return lines.filter(has_text=re.compile(pattern)).first.inner_text()


def choose(page, label: str, part: str, whole: str) -> None:
    "Type a part of a label, see it offered, and take it."
    field = page.get_by_role('combobox', name=label, exact=True)
    field.fill('')
    field.press_sequentially(part, delay=20)
    page.wait_for_function(
        """([field, whole]) => [...document.querySelectorAll('#' + CSS.escape(
        field.getAttribute('list')) + ' option')].some((o) => o.value == whole)""",
        arg=[field.element_handle(), whole],
    )
    field.press('Enter')
    page.wait_for_function(
        '([field, whole]) => field.value == whole', arg=[field.element_handle(), whole]
    )


def saved(page, name: str) -> io.BytesIO:
    "The file behind a link."
    with page.expect_download() as download:
        page.get_by_role('link', name=f'Save {name}').click()
    return io.BytesIO(Path(download.value.path()).read_bytes())


def check_explorer(page, run: Run) -> None:
    "Choose, err, run, stop, run again, read, save: as a person would, and with the keyboard."
    choose(page, 'Head', 'razi', 'brazil')
    choose(page, 'Relation', 'embas', 'embassy')
    page.get_by_role('combobox', name='Tail', exact=True).fill('asia')
    press(page, 'Run')
    assert "no 'asia'" in wait_for(page, 'Tail: there is')
    choose(page, 'Tail', 'uk', 'uk')
    checkpoint = run.checkpoints[1].path
    away = checkpoint.rename(checkpoint.with_name('away'))
    press(page, 'Run')
    assert checkpoint.name in wait_for(page, 'is missing')
    away.rename(checkpoint)
    press(page, 'Run')
    first = wait_for(page, r'influence: [\d,]+ of 1,592')
    page.wait_for_function(
        'first => !document.querySelector(".tracin-panel").innerText.includes(first)', arg=first
    )
    moved = wait_for(page, r'influence: [\d,]+ of 1,592|done')
    assert moved != first
    stop_and_run_again(page)
    check_answer(page, TracIn(run, progress=False).explain(TRIPLE, k=20).frame)


def stop_and_run_again(page) -> None:
    "Stop is heard within two seconds."
    start = time.monotonic()
    press(page, 'Stop')
    wait_for(page, 'stopped after')
    assert time.monotonic() - start < 2
    press(page, 'Run')
    wait_for(page, 'done in')


def check_answer(page, frame: pd.DataFrame) -> None:
    "The rows are those of `explain`, a row can be opened by keyboard, the files hold the rows."
    for side, rows in frame.groupby('kind'):
        shown = page.get_by_role('grid', name=f'{side}s').locator('tr[data-row]')
        cells = [line.locator('td').all_inner_texts()[2:] for line in shown.all()[:3]]
        assert shown.count() == len(rows)
        assert cells == rows[['head', 'relation', 'tail']].to_numpy().tolist()[:3]
    check_live(page, frame)
    for name, read in (('influence.csv', pd.read_csv), ('influence.parquet', pd.read_parquet)):
        assert (
            read(saved(page, name))['training_index'].tolist() == frame['training_index'].tolist()
        )
    with page.expect_download() as download:
        page.get_by_role('link', name='Report').click()
    assert 'embassy' in Path(download.value.path()).read_text(encoding='utf-8')
    press(page, 'Python that asks the same ▸')
    assert 'TracIn(' in page.get_by_role('textbox', name='Code').input_value()


def check_live(page, frame: pd.DataFrame) -> None:
    "Rows are selected, shown in the picture, sorted, filtered, hidden and copied."
    grid, triple = page.get_by_role('grid', name='proponents'), ['head', 'relation', 'tail']
    rows, filtered = grid.locator('tr[data-row]'), page.get_by_label('Filter rows')
    tails = lambda: rows.locator('td:nth-child(5)').all_inner_texts()
    rows.first.focus()
    rows.first.press('ArrowDown')
    page.get_by_role(
        'table', name=re.compile('Influence of proponent 2: .* by checkpoint')
    ).wait_for()
    assert page.locator('.tracin-live table.ranking [aria-selected=true]').count() == 1
    page.keyboard.press('Control+c')
    page.locator('[role=status]', has_text='1 row copied').wait_for()
    copied = page.evaluate('navigator.clipboard.readText()').split('\t')
    assert copied[:2] == ['proponent', '2'] and copied[3:6] == frame[triple].values[1].tolist()
    page.keyboard.press('Escape')
    page.locator('tr.detail').wait_for(state='detached')
    arrow = page.locator('.sketch [data-row]').first
    arrow.locator('text').click()
    row = int(arrow.get_attribute('data-row'))
    page.get_by_role(
        'table', name=re.compile(f'Influence of {frame["kind"][row]} {frame["rank"][row]}: .* by')
    ).first.wait_for()
    lit = page.locator('.sketch .lit')
    assert {x.get_attribute('data-row') for x in lit.all()} == {str(row)}
    grid.get_by_role('button', name='tail').press('Enter')
    assert tails() == sorted(frame['tail'][: len(tails())])
    grid.get_by_role('button', name='tail').press('Enter')
    assert grid.locator('th[aria-sort=descending]').inner_text().startswith('tail')
    assert tails() == sorted(frame['tail'][: len(tails())], reverse=True)
    grid.get_by_role('button', name='tail').press('Enter')
    word = frame['tail'][0]
    filtered.fill(word.upper())
    fits = frame[(frame[triple].apply(lambda x: x.str.contains(word))).any(axis=1)]
    page.locator('[role=status]', has_text=f'{len(fits)} of {len(frame)} rows').wait_for()
    page.get_by_label('opponents').uncheck()
    fits = fits[fits['kind'] == 'proponent']
    page.locator('[role=status]', has_text=f'{len(fits)} of {len(frame)} rows').wait_for()
    assert page.get_by_role('grid', name='opponents').count() == 0
    page.get_by_role('button', name='Copy rows').press('Enter')
    page.locator('[role=status]', has_text=f'{len(fits)} row').wait_for()
    copied = pd.read_csv(io.StringIO(page.evaluate('navigator.clipboard.readText()')), sep='\t')
    assert copied[triple].values.tolist() == fits[triple].values.tolist()
    filtered.fill('')
    page.get_by_label('opponents').check()


def explained_by_keys(page) -> None:
    "From the top of the page with Tab, Enter and arrows only, to what a row had its influence by."
    page.get_by_role('grid', name=re.compile('Predictions')).wait_for()
    page.evaluate('document.activeElement.blur()')
    reach(page, "document.activeElement.innerText == 'Run'")
    page.keyboard.press('Enter')
    wait_for(page, 'influence: ')
    wait_for(page, 'done in')
    reach(page, "!!document.activeElement.matches('table.ranking tbody tr')")
    page.keyboard.press('ArrowDown')
    page.get_by_role('table', name=re.compile('[2-9]: .* by parameters')).wait_for()


def reach(page, there: str) -> None:
    "Press Tab until the focus is where it should be."
    for _ in range(40):
        page.keyboard.press('Tab')
        if page.evaluate(there):
            return
    pytest.fail(f'Tab does not lead to where {there}')


# ---- in JupyterLab


def shown(lab: str, page) -> None:
    "Run the notebook, and wait for the panel."
    page.goto(lab)
    page.get_by_text('Python 3 (ipykernel) | Idle').wait_for()
    page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells')")
    page.get_by_role('button', name='Run', exact=True).wait_for()
    page.locator('.tracin-panel [role=status]').filter(has_text=re.compile('ready|done')).wait_for()


def check_both_themes(page, tmp_path: Path) -> None:
    """It can be read in light and dark, on a wide screen and, with JupyterLab's list of files
    folded, on a phone; a picture of each stays. Keys stay within the panel."""
    page.evaluate('jupyterapp.shell.collapseLeft()')
    check_widths(page, tmp_path, 'light', '.tracin-panel')
    page.evaluate(
        "jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})"
    )
    page.wait_for_function("document.body.dataset.jpThemeLight == 'false'")
    page.wait_for_timeout(500)
    check_widths(page, tmp_path, 'dark', '.tracin-panel')
    page.get_by_role('button', name='Run', exact=True).press('b')  # which makes a cell elsewhere
    page.get_by_label('Filter rows').first.press('Escape')
    page.locator('tr[data-row]').first.press('b')
    assert page.locator('.jp-Notebook .jp-Cell').count() == 1
    assert page.locator('.jp-OutputArea-output').count() == 1  # the panel, and nothing printed


@pytest.mark.parametrize('lab', ['InfluenceExplorer'], indirect=True)
def test_lab(lab: str, page, run: Run, tmp_path: Path) -> None:
    shown(lab, page)
    check_explorer(page, run)
    check_both_themes(page, tmp_path)


@pytest.mark.parametrize('lab', ['TrainingAudit'], indirect=True)
def test_audit(lab: str, page, run: Run, tmp_path: Path) -> None:
    "Run, stop, run again, mark with the keyboard, ask what speaks against a triple, save."
    shown(lab, page)
    press(page, 'Run')
    wait_for(page, r'moments: [\d,]+ of 1,592')
    stop_and_run_again(page)
    frame = TracIn(run, progress=False).self_influence(100).frame
    grid = page.get_by_role('grid', name='Training triples by self-influence')
    rows = grid.locator('tr[data-row]')
    cells = [line.locator('td').all_inner_texts()[2:] for line in rows.all()[:3]]
    assert cells == frame[['head', 'relation', 'tail']].to_numpy().tolist()[:3]
    press(page, 'Mark')
    assert 'select' in wait_for(page, 'then press Mark')
    rows.first.focus()
    rows.first.press('Space')
    press(page, 'What contradicts it?')
    page.get_by_role('table', name=re.compile('Against .*')).wait_for()
    rows.first.focus()
    rows.first.press('Shift+ArrowDown')
    press(page, 'Mark')
    marked = page.get_by_role('grid', name='Marked as suspicious').locator('tr[data-row]')
    marked.nth(1).wait_for(state='attached')
    page.wait_for_timeout(300)  # the links come last
    assert (
        pd.read_csv(saved(page, 'suspicious.csv'))['training_index'].tolist()
        == frame['training_index'][:2].tolist()
    )
    check_both_themes(page, tmp_path)


class Answers:
    "What the kernel says reaches the page at once, or after `held`, as if the kernel were slow."

    def __init__(self, page):
        self.page, self.late, self.slow = page, [], False
        page.route_web_socket(re.compile('/channels'), self._connect)

    def _connect(self, socket) -> None:
        def pass_on(said: str | bytes) -> None:
            if self.slow:
                self.late.append((socket, said))
            else:
                socket.send(said)

        socket.connect_to_server().on_message(pass_on)

    @contextmanager
    def held(self) -> Iterator[None]:
        "Meanwhile the page hears nothing; what it sends arrives."
        self.slow = True
        yield
        self.page.wait_for_timeout(500)
        self.slow = False
        for where, said in self.late:
            where.send(said)
        self.late.clear()


@pytest.mark.parametrize('lab', ['TrainingAudit'], indirect=True)
def test_press_after_change(lab: str, page) -> None:
    """What is pressed acts on what the page shows, though a second change of a table or a field
    is not sent before the first one is answered."""
    answers = Answers(page)
    shown(lab, page)
    press(page, 'Run')
    wait_for(page, 'all relations, training')
    rows = page.get_by_role('grid', name='Training triples by').locator('tr[data-row]')
    rows.first.focus()
    with answers.held():
        rows.first.press('Space')
        rows.first.press('Shift+ArrowDown')
        press(page, 'Mark')
    marked = page.get_by_role('grid', name='Marked as suspicious').locator('tr[data-row]')
    marked.first.wait_for(state='attached')
    assert marked.count() == 2
    relation = page.get_by_role('combobox', name='Relation', exact=True)
    with answers.held():
        relation.press_sequentially('embas')
        relation.press('Enter')  # which takes the best offer
    page.wait_for_function('field => field.value == "embassy"', arg=relation.element_handle())
    relation.fill('')
    with answers.held():
        relation.press_sequentially('treaties')
        press(page, 'Run')
    assert wait_for(page, r'^treaties, training|^Relation: there is no').startswith('treaties')


# ---- the page to mail


def test_report(page, run: Run, tmp_path: Path) -> None:
    "Light and dark, on a phone and wide; long names and identifiers wrap."
    names = {'uk': 'United Kingdom of Great Britain and Northern Ireland', 'usa': 'U' * 60}
    result = TracIn(run, progress=False).explain(TRIPLE, k=10, breakdown=True)
    address = result.with_names(Names(names)).report(tmp_path / 'why.html').as_uri()
    for scheme in ('light', 'dark'):
        page.emulate_media(color_scheme=scheme)
        page.goto(address)
        check_widths(page, tmp_path, f'report_{scheme}')


# ---- served


def test_served(page, run: Run, clean: dict[str, str], tmp_path: Path) -> None:
    """`tracin serve`, dark and light; without the token there is no explorer, no other host is
    asked, and nothing of it stays when it is terminated."""
    command = [
        '-m',
        'tracin_nb',
        'serve',
        str(run.folder),
        '--port',
        '0',
        '--no-browser',
        '--theme',
        'dark',
        '--batch-size',
        str(TILE),
    ]
    (private := tmp_path / 'private').mkdir()
    process = subprocess.Popen(
        [sys.executable, *command],
        env=clean | dict(TMPDIR=str(private)),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        address = process.stdout.readline().strip()
        assert re.fullmatch(r'http://127\.0\.0\.1:\d+/\?token=[\w-]{32}', address), (
            process.stderr.read()
        )
        folder = next(private.glob('tracin_serve_*'))
        assert folder.stat().st_mode & 0o77 == 0
        with urllib.request.urlopen(address.partition('?')[0]) as answer:
            assert '/login' in answer.geturl()
        light, answered = page.context.new_page(), set()
        light.set_default_timeout(60_000)
        for one in (page, light):
            one.on('response', lambda r: answered.add(r.url.partition('?')[0]))
        page.bring_to_front()  # a page behind another is not drawn, and waits in it never end
        page.goto(address)
        page.get_by_role('grid', name=re.compile('Predictions')).wait_for()
        check_explorer(page, run)
        light.goto(f'{address}&theme=light', wait_until='commit')
        page.bring_to_front()
        explained_by_keys(page)
        check_widths(page, tmp_path, 'served')
        for name, asked in dict(Audit='look wrong', Compare='Do two', Profile='cost here').items():
            page.get_by_role('tab', name=name).click()
            page.get_by_role('heading', name=asked).wait_for()
            check_readable(page)
            assert faults(page) == []
            page.screenshot(path=tmp_path / f'{name}.png')
        light.bring_to_front()
        explained_by_keys(light)
        check_widths(light, tmp_path, 'served_light')
        light.close()
        own = address.partition('?')[0]
        assert not [x for x in answered if not x.startswith((own, 'data:', 'blob:'))]
    finally:
        status = end(process)
    assert status == 130 and 'interrupted' in process.stderr.read() and not folder.exists()
