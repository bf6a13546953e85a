"""Take the pictures of the app that the start page shows, light and dark.

python tools/pictures.py [RUN_DIR]  # the run of `tracin demo`, which is trained if it is not there
"""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from tracin_nb.app.demo import QUESTION

STATIC = Path(__file__).resolve().parent.parent / 'docs/_static'
WIDTH, HEIGHT, SCALE = 1200, 1200, 1.4  # of the window, and pixels of the picture to one of it
MOST = 120_000  # bytes
BROWSERS = ('chromium', 'chromium-browser', 'google-chrome')
TRACIN = [sys.executable, '-m', 'tracin_nb']


@contextmanager
def served(run: Path, theme: str) -> Iterator[str]:
    "Serve a run, and give the address."
    command = [*TRACIN, 'serve', str(run), '--port', '0', '--no-browser', '--theme', theme]
    process = subprocess.Popen(command, text=True, stdout=subprocess.PIPE)
    try:
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait()


def explain(page: Page) -> None:
    "Ask the question of the demo, and wait for the answer."
    for label, value in zip(('Head', 'Relation', 'Tail'), QUESTION):
        field = page.get_by_role('combobox', name=label, exact=True)
        field.fill(value)
        field.press('Enter')
        page.wait_for_timeout(500)
    page.get_by_role('button', name='Run', exact=True).click()
    page.get_by_role('grid', name='proponents').wait_for()
    page.wait_for_timeout(3000)  # pictures and shares come after the rows


def small(picture: bytes) -> bytes:
    "Return a picture as WebP of at most `MOST` bytes."
    for quality in range(90, 20, -5):
        Image.open(BytesIO(picture)).save(made := BytesIO(), 'webp', quality=quality, method=6)
        if len(made.getvalue()) <= MOST:
            return made.getvalue()
    raise ValueError(f'no quality makes the picture smaller than {MOST:,} bytes')


def take(run: Path, theme: str, browser: str) -> Path:
    "Take the picture in a theme; return its file."
    flags = ['--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage']
    with served(run, theme) as address, sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=flags)
        size = dict(width=WIDTH, height=HEIGHT)
        page = chromium.new_page(viewport=size, device_scale_factor=SCALE, color_scheme=theme)
        page.set_default_timeout(180_000)
        page.goto(address)
        explain(page)
        path = STATIC / f'app-{theme}.webp'
        path.write_bytes(small(page.screenshot()))
        chromium.close()
    return path


def main() -> None:
    ap = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    ap.add_argument('run', nargs='?', type=Path, default=Path('runs/demo'))
    run = ap.parse_args().run
    if not (browser := next(filter(None, map(shutil.which, BROWSERS)), None)):
        sys.exit(f'no browser here: {", ".join(BROWSERS)}')
    if not (run / 'run.json').exists():
        subprocess.run([*TRACIN, 'demo', '--out', str(run)], check=True)
    for theme in ('light', 'dark'):
        path = take(run, theme, browser)
        print(f'{path}: {path.stat().st_size:,} bytes')


if __name__ == '__main__':
    main()
