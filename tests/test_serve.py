"""`tracin serve`: real processes, ended in every way; nothing of it stays, and the token is on
no command line."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.skipif(os.name == 'nt', reason='signals of POSIX')
WAIT = 60.0  # seconds, far more than anything takes


def until(true: Callable[[], object], seconds: float = WAIT) -> object:
    "What `true` gives as soon as it is not empty."
    end = time.monotonic() + seconds
    while not (found := true()) and time.monotonic() < end:
        time.sleep(0.05)
    return found


class Serve(subprocess.Popen):
    """`tracin serve` of a folder that looks like a run, with a folder of its own for temporary
    files."""

    def __init__(self, home: Path, *args: str, before: Callable | None = None, **env: str):
        (run := home / 'run').mkdir(exist_ok=True)
        (run / 'run.json').write_text('{}')
        (home / 'tmp').mkdir(exist_ok=True)
        self.temporary = home / 'tmp'
        command = [
            sys.executable,
            '-m',
            'tracin_nb',
            'serve',
            str(run),
            *(args or ('--port', '0', '--no-browser')),
        ]
        super().__init__(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=before,
            env=os.environ
            | dict(TMPDIR=str(self.temporary), JUPYTER_RUNTIME_DIR=str(home / 'tmp'))
            | env,
        )

    def address(self) -> str:
        "The address that it prints."
        found = self.stdout.readline().strip()
        assert re.fullmatch(r'http://127\.0\.0\.1:\d+/\?token=[\w-]{32}', found), self.stderr.read()
        return found

    def folders(self) -> list[Path]:
        return sorted(self.temporary.glob('tracin_serve_*'))

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.pid).children(recursive=True)


@pytest.fixture(autouse=True)
def hang_up() -> Iterator[None]:
    "Under nohup, SIGHUP would be ignored in all that a test starts."
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Serve]]:
    "Starts `tracin serve`; whatever of it is left at the end is killed."
    started = []

    def start(*args: str, **kwargs: object) -> Serve:
        started.append(Serve(tmp_path, *args, **kwargs))
        return started[-1]

    yield start
    for process in started:
        family = process.family() if process.poll() is None else []
        for one in (*family, process):
            try:
                one.kill()
            except psutil.Error:
                pass
        process.communicate()


def asked(address: str) -> None:
    "Ask for the page, whose kernel then starts; nobody waits for it."

    def ask() -> None:
        try:
            urllib.request.urlopen(address, timeout=WAIT).read()
        except OSError:
            pass

    threading.Thread(target=ask, daemon=True).start()


def listens(address: str) -> bool:
    "Does anybody answer there?"
    with socket.socket() as s:
        return s.connect_ex(('127.0.0.1', int(re.search(r':(\d+)/', address)[1]))) == 0


def gone(family: list[psutil.Process]) -> bool:
    "Have all ended? (A zombie has.)"
    return not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize('how', [signal.SIGHUP, signal.SIGKILL, signal.SIGTERM])
def test_ended(serve: Callable[..., Serve], how: signal.Signals) -> None:
    """The terminal is closed, or it is killed, while a page is being made: Voila, its kernel and
    the folder go, too."""
    process = serve()
    asked(address := process.address())
    family = until(lambda: len(found := process.family()) >= 2 and found)
    assert family and listens(address) and len(process.folders()) == 1
    process.send_signal(how)
    assert process.wait(WAIT) == (-how if how == signal.SIGKILL else 130)
    assert until(lambda: gone(family) and not process.folders()), (family, process.folders())
    assert until(lambda: not listens(address) and not list(process.temporary.iterdir()))


def test_ended_while_it_starts(serve: Callable[..., Serve]) -> None:
    process = serve()
    assert until(process.folders) and (family := until(process.family))
    process.kill()
    assert until(lambda: gone(family) and not process.folders())


def test_sweep(serve: Callable[..., Serve]) -> None:
    "If all are killed, the next start removes the folder, and not that of another one."
    first, other = serve(), serve()
    assert all(p.address() for p in (first, other))
    (killed,) = (f for f in first.folders() if any(p.cwd() == str(f) for p in first.family()))
    for one in (*first.family(), first):
        one.kill()
    (kept,) = set(first.folders()) - {killed}
    assert killed.exists()
    assert serve().address() and not killed.exists() and kept.exists() and other.poll() is None


def test_one_port(serve: Callable[..., Serve]) -> None:
    "Of two at once at one port, one serves; the other says so, and prints no address."
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = str(s.getsockname()[1])
    both = [serve('--port', port, '--no-browser') for _ in range(2)]
    loser = until(lambda: next((p for p in both if p.poll() is not None), None))
    assert loser and loser.returncode == 2
    out, err = loser.communicate()
    (winner,) = (p for p in both if p is not loser)
    assert out == '' and winner.address() and winner.poll() is None
    assert (
        err.startswith('tracin: error: ') and 'Traceback' not in err and len(winner.folders()) == 1
    )


def test_browser(serve: Callable[..., Serve], tmp_path: Path) -> None:
    """The browser is given a file that only its owner can read. Who has SIGHUP ignored (nohup)
    goes on."""
    part, whole = tmp_path / 'said.part', tmp_path / 'said'
    (script := tmp_path / 'browser').write_text(
        f'#!/bin/sh\necho "$@" > {part}; mv {part} {whole}\n'
    )
    script.chmod(0o755)
    process = serve(
        '--port',
        '0',
        before=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
        BROWSER=str(script),
    )
    address = process.address()
    token = address.partition('token=')[2]
    assert until(whole.exists)
    said = whole.read_text()
    assert said.startswith('file://') and token not in said
    page = Path(said.strip().removeprefix('file://'))
    assert page.stat().st_mode & 0o77 == 0 and page.parent.stat().st_mode & 0o77 == 0
    assert f'url={address}"' in page.read_text()
    assert not [
        p for p in psutil.process_iter(['cmdline']) if token in ' '.join(p.info['cmdline'] or ())
    ]
    process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert process.poll() is None and listens(address)
    process.terminate()
    assert process.wait(WAIT) == 130 and not process.folders()
