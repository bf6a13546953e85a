"""The same on a real Ray cluster of two nodes on this machine, one of which is lost in mid-run."""

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from objectives_for_workers import Slow
from pykeen.datasets.nations import Nations

from tracin_nb.engine.objectives import BCE
from tracin_nb.influence.cluster import _packed
from tracin_nb.influence.tracin import TracIn
from tracin_nb.runs.run import run_at
from tracin_nb.runs.training import train

pytestmark = pytest.mark.filterwarnings('ignore')
SMALL = dict(
    embedding_dim=8,
    embedding_height=2,
    embedding_width=4,
    output_channels=3,
    kernel_height=2,
    kernel_width=2,
)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    return train(
        'nations',
        'ConvE',
        out=tmp_path_factory.mktemp('run') / 'conve',
        epochs=2,
        keep_every=1,
        lr=0.01,
        batch_size=128,
        progress=False,
        device='cpu',
        model_kwargs=SMALL,
        num_negs_per_pos=2,
    )


@pytest.fixture
def cluster(monkeypatch):
    "A head, which has no core for us, and two nodes with one each."
    ray = pytest.importorskip('ray')
    from ray.cluster_utils import Cluster

    for name, value in dict(
        PYTHONPATH=str(Path(__file__).parent),
        RAY_USAGE_STATS_ENABLED='0',
        RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO='0',
        TRACIN_TEST_WAIT='0.1',
    ).items():
        monkeypatch.setenv(name, value)
    small = dict(object_store_memory=100 * 2**20, include_dashboard=False)
    made = Cluster(initialize_head=True, head_node_args=dict(num_cpus=0, **small))
    made.nodes_of_ours = [
        made.add_node(num_cpus=1, object_store_memory=100 * 2**20) for _ in range(2)
    ]
    monkeypatch.setenv('RAY_ADDRESS', made.address)
    yield made
    ray.shutdown()
    made.shutdown()


def test_a_node_is_lost(cluster, run):
    "The other node does all; then there is none, and that is an error."
    tests = Nations().testing.mapped_triples[:10]
    here = TracIn(run, BCE(), weighting='sgd', devices='cpu', batch_size=32, progress=False)
    there = TracIn(run, Slow(), weighting='sgd', devices='ray', batch_size=32, progress=False)
    seen = []

    def lose() -> None:
        while not there.counters.shards:
            time.sleep(0.1)
        seen.append(there.counters.shards)
        cluster.remove_node(cluster.nodes_of_ours[0], allow_graceful=False)

    thread = threading.Thread(target=lose, daemon=True)
    thread.start()
    result = there.explain(tests, 7)
    thread.join(30)
    assert result.frame.equals(here.explain(tests, 7).frame)
    assert seen and seen[0] < there.counters.shards == 50 and there.counters.train_passes == 100
    assert result.facts['workers'] == 'ray'


def test_nodes_without_the_folder(cluster, run, monkeypatch):
    "They are sent models and triples, once; nodes with it are not."
    tests = Nations().testing.mapped_triples[:10]
    ask = lambda devices: TracIn(
        run, BCE(), weighting='sgd', devices=devices, batch_size=32, progress=False
    ).explain(tests, 7)
    here, packed = ask('cpu').frame, []
    monkeypatch.setattr(
        'tracin_nb.influence.cluster._packed',
        lambda job, real=_packed: (packed.append(job), real(job))[1],
    )
    assert ask('ray').frame.equals(here)
    elsewhere = replace(run_at(run), folder=run.folder / 'elsewhere')
    monkeypatch.setattr('tracin_nb.influence.shards.run_at', lambda run: elsewhere)
    assert ask('ray').frame.equals(here)
    assert [job.run is not None for job in packed] == [True, True, False]
