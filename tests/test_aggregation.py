"""Streaming top-k equals a plain stable sort of the whole matrix, for any cut into tiles and any
order of them."""

import pytest
import torch
from torch import LongTensor, Tensor

from tracin_nb.answer.ranking import Ranking, TopK, group_sum

DEVICES = ['cpu', 'cuda'] if torch.cuda.is_available() else ['cpu']
SIZES = [1, 3, 127, 128, 129, 400, 1000]


def reference(
    scores: Tensor, k: int, largest: bool, beyond: float | None
) -> tuple[Tensor, LongTensor]:
    "What one sort of everything gives, padded to `[M, k]`."
    ordered = scores.sort(dim=1, descending=largest, stable=True)
    values, indices = ordered.values[:, :k], ordered.indices[:, :k]
    out = torch.zeros(len(scores), k, dtype=scores.dtype), torch.full((len(scores), k), -1)
    kept = torch.ones_like(values, dtype=torch.bool) if beyond is None else (values > 0) == largest
    kept &= (values != 0) | (beyond is None)
    out[0][:, : values.shape[1]] = values.masked_fill(~kept, 0)
    out[1][:, : values.shape[1]] = indices.masked_fill(~kept, -1)
    return out


def example(seed: int) -> tuple[Tensor, int, list[LongTensor], torch.Generator]:
    "Scores with few or no ties, k, and tiles in some order."
    generator = torch.Generator().manual_seed(seed)

    def pick(options: list) -> object:
        return options[int(torch.randint(len(options), (1,), generator=generator))]

    tests, n, k, levels = (
        pick([0, 1, 2, 5]),
        pick(SIZES),
        pick([1, 2, 5, 20, 150]),
        pick([0, 1, 2, None]),
    )
    dtype = pick([torch.float32, torch.float64])
    scores = (
        torch.randn(tests, n, generator=generator, dtype=dtype)
        if levels is None
        else torch.randint(-levels, levels + 1, (tests, n), generator=generator).to(dtype)
        * pick([1.0, 1e-42, 1e30])
    )
    order = pick([torch.arange(n), torch.arange(n).flip(0), torch.randperm(n, generator=generator)])
    return (
        scores,
        k,
        list(order.split(pick([1, 7, 128, 130, n]) if n < 300 else pick([64, 130, n]))),
        generator,
    )


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('beyond', [None, 0.0])
@pytest.mark.parametrize('largest', [True, False])
@pytest.mark.parametrize('seed', range(60))
def test_any_tiling(seed: int, largest: bool, beyond: float | None, device: str) -> None:
    scores, k, tiles, generator = example(seed)
    values, indices = reference(scores, k, largest, beyond)
    one, *shards = [TopK(len(scores), k, largest, device, scores.dtype, beyond) for _ in range(4)]
    scores, values, indices = scores.to(device), values.to(device), indices.to(device)
    for i, tile in enumerate(tiles):
        one.update(scores[:, tile], tile)
        shards[i % 3].update(scores[:, tile], tile)
    assert torch.equal(one.values, values) and torch.equal(one.indices, indices)
    first, second, third = (shards[i] for i in torch.randperm(3, generator=generator))
    first.merge(second)
    first.merge(third)
    assert torch.equal(first.values, values) and torch.equal(first.indices, indices)


def test_ranking_leaves_out_zeros() -> None:
    scores = torch.randint(-1, 2, (4, 900), generator=torch.Generator().manual_seed(1)).float()
    ranking = Ranking(4, k=500)
    for start in range(0, 900, 256):
        ranking.update(scores[:, start : start + 256], start)
    for top, sign in ((ranking.proponents, 1), (ranking.opponents, -1)):
        for row in range(4):
            kept = top.indices[row][top.indices[row] >= 0]
            assert torch.equal(kept, (scores[row] == sign).nonzero()[:500, 0])
            assert top.values[row].count_nonzero() == len(kept)


def test_a_tile_of_equal_scores_keeps_the_first() -> None:
    top = TopK(3, k=5)
    for start in (2048, 0, 1024):
        top.update(torch.ones(3, 1024), start)
    assert top.indices.tolist() == [[0, 1, 2, 3, 4]] * 3


def test_an_empty_tile_changes_nothing() -> None:
    top = TopK(2, k=2)
    top.update(torch.zeros(2, 0), torch.zeros(0, dtype=torch.int64))
    assert top.indices.tolist() == [[-1, -1]] * 2


@pytest.mark.parametrize('column', [0, 127, 128, 299])
@pytest.mark.parametrize('later', [False, True])
def test_nan_is_never_lost(column: int, later: bool) -> None:
    top, scores = TopK(3, k=2), torch.randn(3, 300, generator=torch.Generator().manual_seed(0))
    if later:
        top.update(torch.full((3, 5), 100.0), 1000)
    scores[2, column] = float('nan')
    with pytest.raises(ValueError, match=f'test triple 2 with training triple {column} is nan'):
        top.update(scores, 0)


@pytest.mark.parametrize(
    'indices, message',
    [
        (torch.tensor([1, 2]), 'expected int64 \\[3\\]'),
        (torch.tensor([1.0, 2.0, 3.0]), 'expected int64'),
        (torch.tensor([0, -1, 2]), 'training index -1 is negative'),
        (-3, 'training index -3 is negative'),
    ],
)
def test_bad_indices(indices: LongTensor | int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TopK(1, k=2).update(torch.ones(1, 3), indices)


@pytest.mark.parametrize(
    'options, message', [(dict(k=0), 'k is 0'), (dict(k=1, dtype=torch.float16), 'float16')]
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TopK(1, **options)


def test_group_sums_add_up() -> None:
    scores, groups = torch.randn(3, 50, dtype=torch.float64), torch.arange(50) % 4
    sums = group_sum(scores, groups, 4)
    torch.testing.assert_close(sums.sum(1), scores.sum(1))
    torch.testing.assert_close(sums[:, 1], scores[:, 1::4].sum(1))
