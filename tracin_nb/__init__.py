"""Which training triples made a PyKEEN model believe a prediction: exact TracIn influence"""

__version__ = "0.2.0"

from typing import TYPE_CHECKING

from .runs.registering import register_callback as _register_callback

if TYPE_CHECKING:  # for type checkers and editors; at run time see `__getattr__`
    from .app.audit import CompareRuns as CompareRuns
    from .app.audit import ProfilePanel as ProfilePanel
    from .app.audit import TrainingAudit as TrainingAudit
    from .app.explorer import InfluenceExplorer as InfluenceExplorer
    from .engine.gradients import describe as describe
    from .evaluation.replay import replay as replay
    from .evaluation.verify import verify as verify
    from .graph.triples import load_dataset as load_dataset
    from .influence.tracin import TracIn as TracIn
    from .runs.callback import KeepRun as KeepRun
    from .runs.run import Run as Run
    from .runs.training import train as train

_HOME = {
    "TracIn": "influence.tracin",
    "Run": "runs.run",
    "train": "runs.training",
    "replay": "evaluation.replay",
    "verify": "evaluation.verify",
    "KeepRun": "runs.callback",
    "describe": "engine.gradients",
    "load_dataset": "graph.triples",
    "InfluenceExplorer": "app.explorer",
    "TrainingAudit": "app.audit",
    "CompareRuns": "app.audit",
    "ProfilePanel": "app.audit",
}
__all__ = [*_HOME]
_register_callback()  # PyKEEN's `callbacks='tracin'`; imports nothing but the standard library


def __getattr__(name: str) -> object:
    "The names that most people need, imported at first use so that `import tracin_nb` stays light."
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import gc
    import warnings
    from importlib import import_module
    collects = gc.isenabled()
    gc.disable()  # what is imported stays: looking for garbage in it takes a tenth of the time
    try:
        with warnings.catch_warnings():
            # said in notebooks when PyKEEN is imported
            warnings.filterwarnings("ignore", "Using `tqdm.autonotebook.tqdm`")
            return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    finally:
        if collects and not gc.get_freeze_count():
            gc.freeze()  # and back, which makes all of it old, not to be looked through at once
            gc.unfreeze()
        if collects:
            gc.enable()


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
