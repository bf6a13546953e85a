"""Which training triples made a PyKEEN model believe a prediction: exact TracIn influence"""

__version__ = "0.1.0"

_HOME = {
    "TracIn": "influence.tracin",
    "Run": "runs.run",
    "train": "runs.training",
    "describe": "engine.gradients",
    "load_dataset": "graph.triples",
    "InfluenceExplorer": "app.explorer",
    "TrainingAudit": "app.audit",
    "CompareRuns": "app.audit",
    "ProfilePanel": "app.audit",
}
__all__ = [*_HOME]


def __getattr__(name: str) -> object:
    "The names that most people need, imported at first use so that `import tracin_nb` stays light."
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import warnings
    from importlib import import_module
    with warnings.catch_warnings():
        # said in notebooks when PyKEEN is imported
        warnings.filterwarnings("ignore", "Using `tqdm.autonotebook.tqdm`")
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
