"""Triples that are not in the training: what would adding them do, and how that is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from models import build, graph

from tracin_nb.answer.results import Result, text_table
from tracin_nb.engine.objectives import losses
from tracin_nb.influence.tracin import TracIn
from tracin_nb.runs.run import Run


@pytest.fixture(scope='module')
def tracin() -> TracIn:
    "A DistMult that was never trained."
    training = graph()
    run = Run.from_model(build('DistMult', training), training, learning_rates=[0.1])
    return TracIn(run, weighting='sgd', progress=False)


@pytest.fixture(scope='module')
def candidates(tracin: TracIn) -> torch.Tensor:
    "Five triples that are not in the training."
    training = tracin.run.training
    every = {tuple(t) for t in training.mapped_triples.tolist()}
    grid = torch.cartesian_prod(
        torch.arange(training.num_entities), torch.arange(2), torch.arange(training.num_entities)
    )
    return torch.tensor([t for t in grid.tolist() if tuple(t) not in every][:50:10])


def test_adding_a_triple_counts_as_its_gradient_would(
    tracin: TracIn, candidates: torch.Tensor, tmp_path: Path
) -> None:
    test = tracin.run.training.mapped_triples[:2]
    found = tracin.explain(test, k=9, candidates=candidates)
    frame = found.frame
    assert set(frame['candidate_index']) <= set(range(5)) and 'training_index' not in frame
    labels = tracin.run.training.label_triples(candidates)
    objective, model = tracin.objective, tracin.run.model(-1, 'cpu')

    def slope(triple: torch.Tensor) -> torch.Tensor:
        loss = losses(model, objective, triple[None])[0]
        grads = torch.autograd.grad(loss, [*model.parameters()], materialize_grads=True)
        return torch.cat([g.flatten() for g in grads])

    for row in frame.to_dict('records'):
        i, j = row['test_index'], row['candidate_index']
        want = 0.1 * slope(test[i]) @ slope(candidates[j])
        assert row['influence'] == pytest.approx(float(want), rel=1e-3, abs=1e-9)
        assert (row['head'], row['relation'], row['tail']) == tuple(labels[j])
    assert found.facts['candidates'] == 5 and 'training_triples' not in found.facts
    again = Result.load(found.save(tmp_path / 'saved'))
    for text in (text_table(found), repr(again), found._repr_html_()):
        assert 'adding each of 5 candidates, which are not in training' in text
    rows = json.loads((tmp_path / 'saved' / 'result.json').read_text())['rows']
    assert rows[0].keys() >= {'candidate_index'} and 'training_index' not in rows[0]
    with pytest.raises(ValueError, match='of candidates, not of training triples'):
        tracin.by_checkpoint(found)


def test_candidates_are_none_of_the_training_triples(
    tracin: TracIn, candidates: torch.Tensor
) -> None:
    test = tracin.run.training.mapped_triples[:1]
    with pytest.raises(ValueError, match='is a training triple already'):
        tracin.explain(test, candidates=torch.cat([candidates, test]))
    with pytest.raises(ValueError, match='candidates and train cannot be given together'):
        tracin.explain(test, candidates=candidates, train=test)
