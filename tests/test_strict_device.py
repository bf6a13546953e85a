"""What a GPU would refuse, and what would make it wait.

A device in Python changes PyTorch for the whole process: its threads forbid a later fork, for
example. So these tests (`tests/on_strict_device.py`) have a process of their own."""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def test_on_a_strict_device() -> None:
    "All of them pass there."
    command = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '-p', 'no:xdist']
    done = subprocess.run(
        [*command, str(HERE / 'on_strict_device.py')], cwd=HERE, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert ' passed' in done.stdout
