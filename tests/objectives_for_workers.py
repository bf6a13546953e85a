"""Losses that misbehave in workers only. They stand in a module of their own, where workers find
them."""

import multiprocessing
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from tracin_nb.engine.objectives import BCE, Queries


def in_worker() -> bool:
    return multiprocessing.parent_process() is not None


@dataclass(frozen=True)
class Misbehaving(BCE):
    "Does something in workers: in the first that comes by (`once`, told by a file), or in all."

    what: str = 'raise'
    flag: str = ''

    def queries(self, triples: Tensor) -> Queries:
        if in_worker() and self.first():
            if self.what == 'raise':
                raise ArithmeticError('on purpose')
            if self.what == 'die':
                os.kill(os.getpid(), signal.SIGKILL)
            if self.what == 'hang':
                time.sleep(600)
        return super().queries(triples)

    def first(self) -> bool:
        "Return whether no other worker came by; two at once cannot both be the first."
        try:
            if self.flag:
                Path(self.flag).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


@dataclass(frozen=True)
class Slow(BCE):
    """A loss that takes as many seconds to prepare as the environment says; it is the same loss
    whatever that is."""

    def queries(self, triples: Tensor) -> Queries:
        time.sleep(float(os.environ.get('TRACIN_TEST_WAIT', 0)))
        return super().queries(triples)
