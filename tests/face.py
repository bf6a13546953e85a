"""The public face as a user writes it: mypy reads this in `test_types`, nothing runs it."""

from pathlib import Path
from typing import assert_type

import torch
from pykeen.models import Model

from tracin_nb import Run, TracIn, describe, load_dataset, train
from tracin_nb.answer.results import Result, SelfInfluence


def explained(folder: Path) -> Result:
    "A run, trained or opened, and what it answers."
    run = train('umls', model='ConvE', epochs=100, keep_every=20, out=folder)
    assert_type(run, Run)
    assert_type(Run.open(folder), Run)
    assert_type(run.model(0), Model)
    assert_type(run.fingerprint(-1), str)
    tracin = TracIn(run, objective='training', precision='fp32', devices='auto', memory='4GiB')
    result = tracin.explain([('steroid', 'interacts_with', 'eicosanoid')], k=20, out=folder)
    assert_type(result, Result)
    assert_type(result[0], Result)
    assert_type(result.save(folder), Path)
    assert_type(Result.load(folder), Result)
    assert_type(tracin.self_influence(k=100), SelfInfluence)
    assert_type(tracin.scores([('a', 'r', 'b')]), torch.Tensor)
    assert_type(tracin.write_scores([('a', 'r', 'b')], folder / 'scores.parquet'), Path)
    describe(run.model(-1))
    load_dataset('nations')
    return result


def refused(tracin: TracIn) -> None:
    "What a type checker refuses; an ignore that is not needed is an error, too."
    tracin.explain('a', k='many')  # type: ignore[arg-type]
    tracin.explain('a', depth=3)  # type: ignore[call-arg]
    tracin.explian('a')  # type: ignore[attr-defined]
