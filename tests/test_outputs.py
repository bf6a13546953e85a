"""What stands at an output path stays what it is, and answers of another question are not lost."""

import os
import threading
from pathlib import Path

import pandas as pd
import pytest
from pykeen.models import DistMult
from pykeen.triples import TriplesFactory

from tracin_nb.answer.results import read_csv
from tracin_nb.files import replacing
from tracin_nb.graph.triples import load_dataset, to_ids
from tracin_nb.influence.batch import Batch, read_items
from tracin_nb.influence.tracin import TracIn

pytestmark = pytest.mark.filterwarnings('ignore')


@pytest.fixture(scope='module')
def tracin() -> TracIn:
    data = load_dataset('nations')
    model = DistMult(triples_factory=data.training, embedding_dim=4, random_seed=0)
    options = dict(weighting='sgd', devices='cpu', progress=False)
    return TracIn(model, training=data.training, learning_rates=[1.0], **options)


QUESTION = ('brazil', 'commonbloc1', 'india')


def test_a_link_stays(tracin: TracIn, tmp_path: Path) -> None:
    (real := tmp_path / 'real.csv').write_text('old\n')
    (link := tmp_path / 'link.csv').symlink_to('real.csv')
    result = tracin.explain(QUESTION, k=3)
    result.save(link)
    assert link.is_symlink() and len(read_csv(real)) == len(result.frame)


@pytest.mark.skipif(os.name == 'nt', reason='pipes of POSIX')
def test_a_pipe_is_written_into(tracin: TracIn, tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / 'pipe.csv')
    found = []
    reader = threading.Thread(target=lambda: found.append(pd.read_csv(pipe)))
    reader.start()
    result = tracin.explain(QUESTION, k=3)
    result.save(pipe)
    reader.join(60)
    assert pipe.is_fifo() and len(found[0]) == len(result.frame)


def test_a_device_stays() -> None:
    if not Path('/dev/full').is_char_device():
        pytest.skip('no /dev/full')
    with pytest.raises(OSError, match='No space left'), replacing(Path('/dev/full')) as draft:
        draft.write_text('x' * 100_000)
    assert Path('/dev/full').is_char_device()


def test_two_batches(tracin: TracIn, tmp_path: Path) -> None:
    "The second question is refused, unless it may overwrite; the same one is not."
    (test := tmp_path / 'test.tsv').write_text('\t'.join(QUESTION) + '\n')
    items = read_items(test, tracin.run.training)
    batch = Batch(tracin, tmp_path / 'why', k=2)
    assert batch.run(items)['successful'] == 1
    before = {p.name: p.read_bytes() for p in (tmp_path / 'why').iterdir()}
    other = Batch(tracin, tmp_path / 'why', k=5)
    with pytest.raises(ValueError, match='answers to another question for 1 of the predictions'):
        other.run(items)
    assert before == {p.name: p.read_bytes() for p in (tmp_path / 'why').iterdir()}
    assert batch.run(items)['successful'] == 1
    assert other.run(items, overwrite=True)['successful'] == 1


def test_by_checkpoint_of_what_was_never_trained_on(tracin: TracIn) -> None:
    training, other = tracin.run.training, load_dataset('nations').testing.mapped_triples[:3]
    for scores in (tracin.scores, tracin.scores_by_checkpoint):
        with pytest.raises(ValueError, match='is not a training triple'):
            scores(training.mapped_triples[:1], other)


@pytest.mark.parametrize('form', ['{}.0', '{}.', '0{}'])
def test_integers_that_may_be_labels(form: str) -> None:
    "1 may be the id 1 or the label '1.0' of the id 0: the two are told apart, or it is refused."
    given = load_dataset('nations').training
    names = lambda n: {form.format(i + 1): i for i in range(n)}
    factory = TriplesFactory(
        given.mapped_triples,
        entity_to_id=names(given.num_entities),
        relation_to_id=names(given.num_relations),
    )
    with pytest.raises(ValueError, match='give labels as texts, or ids as a tensor'):
        to_ids((1, 1, 2), factory)
