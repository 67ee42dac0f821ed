"""Drop layers: what they zero, how they rescale, and that the draw is a function of (seed, step) alone."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bdbnet.models import BatchDropBlock, BatchDropout, DropBlock, Dropout, SpatialDropout
from bdbnet.models.dropping import counter_hash

LAYERS = [BatchDropBlock, DropBlock, BatchDropout, SpatialDropout, Dropout]
PER_IMAGE = [DropBlock, SpatialDropout, Dropout]
RESCALED = [SpatialDropout, Dropout]


def hash_by_hand(*counters: int) -> int:
    """The hash again, in plain Python integers, one line per operation."""
    word = 0x9E3779B9
    for counter in counters:
        word = (word ^ counter ^ (counter >> 32)) % 2**32
        word ^= word >> 16
        word = word * 73244475 % 2**32
        word ^= word >> 16
        word = word * 73244475 % 2**32
        word ^= word >> 16
    return word


def kept(layer: nn.Module, *shape: int) -> torch.Tensor:
    return layer(torch.ones(shape))


def chi_square_is_ordinary(counts: torch.Tensor) -> bool:
    """Within five standard deviations of what uniform draws give, on both sides."""
    expected = counts.sum() / counts.numel()
    statistic = float(((counts - expected) ** 2 / expected).sum())
    freedom = counts.numel() - 1
    return abs(statistic - freedom) < 5 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("layer", LAYERS)
def test_eval_mode_is_the_identity_and_draws_nothing(layer: type) -> None:
    drop = layer(0.5, 0.5).eval()
    features = torch.randn(2, 3, 4, 4)
    assert drop(features) is features
    assert drop.step == 0
    assert not list(drop.parameters())


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(("height", "width"), [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0)])
def test_ratio_zero_drops_nothing(layer: type, height: float, width: float) -> None:
    features = torch.randn(2, 3, 6, 4)
    assert torch.equal(layer(height, width)(features), features)


@pytest.mark.parametrize("layer", LAYERS)
def test_ratio_one_drops_everything(layer: type) -> None:
    assert not kept(layer(1.0, 1.0), 2, 3, 6, 4).any()


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("ratio", [-0.1, 1.01, float("nan")])
def test_ratio_outside_the_range_is_named(layer: type, ratio: float) -> None:
    with pytest.raises(ValueError, match="height_ratio"):
        layer(ratio, 0.5)
    with pytest.raises(ValueError, match="width_ratio"):
        layer(0.5, ratio)


@given(
    rows=st.integers(1, 24),
    columns=st.integers(1, 12),
    height=st.floats(0, 1),
    width=st.floats(0, 1),
    seed=st.integers(-(2**63), 2**63 - 1),
    step=st.integers(0, 2**40),
)
def test_batch_dropblock_is_one_rectangle_where_the_hash_says(
    rows: int, columns: int, height: float, width: float, seed: int, step: int
) -> None:
    drop = BatchDropBlock(height, width, seed=seed)
    drop.step.fill_(step)
    h, w = round(height * rows), round(width * columns)
    top = hash_by_hand(seed, 0, step, 0) * (rows - h + 1) // 2**32
    left = hash_by_hand(seed, 0, step, 1) * (columns - w + 1) // 2**32
    expected = torch.ones(3, 2, rows, columns)
    expected[:, :, top : top + h, left : left + w] = 0
    assert torch.equal(kept(drop, 3, 2, rows, columns), expected)
    assert drop.step == step + 1


def test_dropblock_is_a_rectangle_of_the_same_size_for_each_image() -> None:
    drop = DropBlock(0.5, 0.25, seed=3)
    mask = kept(drop, 8, 2, 8, 8)
    assert torch.equal(mask[:, 0], mask[:, 1])
    rectangles = [image.eq(0).nonzero() for image in mask[:, 0]]
    for units in rectangles:
        assert len(units) == 4 * 2
        assert (units.max(0).values - units.min(0).values).tolist() == [3, 1]
    assert len({tuple(units[0].tolist()) for units in rectangles}) > 1


def test_batch_dropout_takes_the_same_positions_for_all_images_and_channels() -> None:
    mask = kept(BatchDropout(0.5, 0.5, seed=1), 3, 4, 40, 40)
    assert (mask == mask[:1, :1]).all()
    assert abs(mask[0, 0].eq(0).float().mean() - 0.25) < 0.05
    assert set(mask.unique().tolist()) == {0.0, 1.0}


def test_spatial_dropout_takes_whole_channels_and_rescales() -> None:
    mask = kept(SpatialDropout(0.5, 0.5, seed=1), 20, 80, 3, 2)
    assert (mask == mask[:, :, :1, :1]).all()
    assert abs(mask.eq(0).float().mean() - 0.25) < 0.05
    torch.testing.assert_close(mask.max(), torch.tensor(4 / 3))


def test_dropout_takes_single_units_and_rescales() -> None:
    mask = kept(Dropout(0.5, 0.5, seed=1), 4, 30, 12, 10)
    assert abs(mask.mean() - 1) < 0.03
    torch.testing.assert_close(mask.max(), torch.tensor(4 / 3))
    for dim in range(4):  # no two slices alike along any dimension
        slices = mask.movedim(dim, 0).flatten(1)
        assert len(slices.unique(dim=0)) == len(slices)


@pytest.mark.parametrize("layer", [BatchDropout, *RESCALED])
def test_rate_overrides_the_area(layer: type) -> None:
    mask = kept(layer(0.3, 1.0, rate=0.8), 10, 40, 20, 20)
    assert abs(mask.eq(0).float().mean() - 0.8) < 0.06
    with pytest.raises(ValueError, match="rate"):
        layer(0.3, 1.0, rate=1.5)


@pytest.mark.parametrize("layer", LAYERS)
def test_copies_draw_alike_steps_and_seeds_differ(layer: type) -> None:
    first, other = layer(0.3, 0.5, seed=5), layer(0.3, 0.5, seed=6)
    copied = copy.deepcopy(first)
    masks = [kept(first, 4, 8, 24, 16) for _ in range(6)]
    assert all(torch.equal(mask, kept(copied, 4, 8, 24, 16)) for mask in masks)
    assert any(not torch.equal(mask, masks[0]) for mask in masks)
    assert any(not torch.equal(mask, kept(other, 4, 8, 24, 16)) for mask in masks)


@pytest.mark.parametrize("layer", LAYERS)
def test_state_dict_resumes_the_sequence(layer: type) -> None:
    drop, resumed = layer(0.3, 0.5, seed=5), layer(0.3, 0.5, seed=5)
    for _ in range(3):
        kept(drop, 2, 4, 12, 8)
    resumed.load_state_dict(drop.state_dict())
    for _ in range(3):
        assert torch.equal(kept(drop, 2, 4, 12, 8), kept(resumed, 2, 4, 12, 8))


@pytest.mark.parametrize("layer", LAYERS)
def test_an_image_is_treated_alike_whatever_the_size_of_the_batch(layer: type) -> None:
    small, large = layer(0.3, 0.5, seed=2), layer(0.3, 0.5, seed=2)
    assert torch.equal(kept(small, 2, 4, 12, 8), kept(large, 7, 4, 12, 8)[:2])


@pytest.mark.parametrize("layer", LAYERS)
def test_rank_matters_to_the_layers_that_drop_per_image_alone(layer: type) -> None:
    here, there = layer(0.3, 0.5), layer(0.3, 0.5)
    there.rank = 1
    assert torch.equal(kept(here, 4, 8, 24, 16), kept(there, 4, 8, 24, 16)) == (layer not in PER_IMAGE)


def test_hash_is_uniform_over_steps_places_and_their_pairs() -> None:
    steps = torch.arange(20_000)
    for seed in (0, 1, 42):
        rows = (counter_hash(seed, 0, steps, 0) * 18) >> 32
        columns = (counter_hash(seed, 0, steps, 1) * 5) >> 32
        assert chi_square_is_ordinary(torch.bincount(rows, minlength=18).double())
        assert chi_square_is_ordinary(torch.bincount(rows * 5 + columns, minlength=90).double())
        assert chi_square_is_ordinary(torch.bincount(rows[:-1] * 18 + rows[1:], minlength=324).double())


def test_hash_is_uniform_over_seeds_and_units() -> None:
    seeds = (counter_hash(torch.arange(20_000), 0, 7, 0) * 18) >> 32
    assert chi_square_is_ordinary(torch.bincount(seeds, minlength=18).double())
    neighbours = (counter_hash(0, 0, 0, torch.arange(100)[:, None], torch.arange(400)) * 18) >> 32
    pairs = neighbours[:, :-1] * 18 + neighbours[:, 1:]
    assert chi_square_is_ordinary(torch.bincount(pairs.flatten(), minlength=324).double())


def test_every_bit_of_the_hash_is_fair() -> None:
    words = counter_hash(3, 0, torch.arange(40_000), 0)
    ones = torch.stack([(words >> bit) & 1 for bit in range(32)]).double().mean(1)
    assert ((ones - 0.5).abs() < 5 * 0.5 / math.sqrt(40_000)).all()
    assert (words >= 0).all()
    assert (words < 2**32).all()


@pytest.mark.parametrize("layer", LAYERS)
def test_gradient_passes_where_units_are_kept_alone(layer: type) -> None:
    features = torch.randn(2, 3, 8, 6, dtype=torch.float64, requires_grad=True)
    drop = layer(0.5, 0.5, seed=4)
    dropped = drop.dropped(features.shape).expand_as(features)
    drop(features).sum().backward()
    assert features.grad is not None
    assert torch.equal(features.grad == 0, dropped)


@pytest.mark.parametrize("layer", LAYERS)
def test_keeps_dtype_and_memory_layout(layer: type) -> None:
    features = torch.randn(2, 4, 6, 6).bfloat16().to(memory_format=torch.channels_last)
    out = layer(0.5, 0.5)(features)
    assert out.dtype == torch.bfloat16
    assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("layer", LAYERS)
def test_compiled_in_one_graph_that_serves_every_step(layer: type) -> None:
    drop, plain = layer(0.3, 0.5, seed=9), layer(0.3, 0.5, seed=9)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled = torch.compile(drop, fullgraph=True, backend="eager")
        for _ in range(5):
            assert torch.equal(kept(compiled, 2, 3, 12, 8), kept(plain, 2, 3, 12, 8))
    assert drop.step == 5


@pytest.mark.parametrize("layer", LAYERS)
def test_nothing_is_read_back_from_the_device(layer: type) -> None:
    """A tensor without data cannot be read: any wait for the device would be an error here."""
    drop = layer(0.3, 1.0).to("meta").train()
    assert drop(torch.ones(2, 4, 6, 3, device="meta")).shape == (2, 4, 6, 3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("layer", LAYERS)
def test_on_cuda_it_draws_as_on_the_cpu_and_does_not_wait(layer: type) -> None:
    host, device = layer(0.3, 1.0, seed=3).train(), layer(0.3, 1.0, seed=3).train().cuda()
    features = torch.ones(2, 4, 6, 3)
    on_device = features.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = [device(on_device) for _ in range(3)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(host(features), each.cpu()) for each in found)
