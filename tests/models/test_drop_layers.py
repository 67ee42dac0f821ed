"""Drop layers: what they zero, how they rescale, and that the draw is a function of (seed, step) alone."""

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bdbnet.models import BatchDropBlock, BatchDropout, DropBlock, Dropout, SpatialDropout
from bdbnet.models.drop_layers import MASK_SCOPES, counter_hash, hash_is_below

LAYERS = [BatchDropBlock, DropBlock, BatchDropout, SpatialDropout, Dropout]
BLOCKS = [BatchDropBlock, DropBlock]
UNITS = [BatchDropout, SpatialDropout, Dropout]
SCOPES = {"BatchDropBlock": "global", "BatchDropout": "global"}  # the others': image


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


def rectangle(image: torch.Tensor) -> tuple[int, int, int, int, int]:
    """First row and column, rows and columns of the zeros of (C, H, W), and how many they are in a channel."""
    assert (image == image[:1]).all()
    zeros = image[0].eq(0).nonzero()
    low, high = zeros.min(0).values, zeros.max(0).values
    top, left, rows, columns = (*low.tolist(), *(high - low + 1).tolist())
    return top, left, rows, columns, len(zeros)


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
@pytest.mark.parametrize("rescale", [False, True])
def test_ratio_one_drops_everything_and_leaves_zeros(layer: type, rescale: bool) -> None:
    features = torch.ones(2, 3, 6, 4, dtype=torch.float16)
    assert torch.equal(layer(1.0, 1.0, rescale=rescale)(features), torch.zeros_like(features))


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("ratio", [-0.1, 1.01, float("nan"), float("inf"), True, False, "0.3", None])
def test_what_is_no_ratio_is_named(layer: type, ratio: Any) -> None:
    with pytest.raises(ValueError, match=r"height_ratio must be a number from 0 to 1, got"):
        layer(ratio, 0.5)
    with pytest.raises(ValueError, match=r"width_ratio must be a number from 0 to 1, got"):
        layer(0.5, ratio)
    if layer in UNITS and ratio is not None:
        with pytest.raises(ValueError, match=r"^rate must be a number from 0 to 1, got"):
            layer(0.5, 0.5, rate=ratio)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("scope", ["batch", "Global", ""])
def test_unknown_scope_is_answered_with_the_choices(layer: type, scope: str) -> None:
    with pytest.raises(ValueError, match=rf"mask_scope must be one of global, rank, image, got '{scope}'"):
        layer(0.3, 1.0, mask_scope=scope)


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


@pytest.mark.parametrize("layer", BLOCKS)
@pytest.mark.parametrize("scope", MASK_SCOPES)
@given(
    rows=st.integers(1, 24),
    columns=st.integers(1, 12),
    height=st.floats(0, 1),
    width=st.floats(0, 1),
    step=st.integers(0),
)
def test_blocks_are_whole_whatever_their_scope(
    layer: type, scope: str, rows: int, columns: int, height: float, width: float, step: int
) -> None:
    drop = layer(height, width, mask_scope=scope)
    drop.step.fill_(step % 2**40)
    h, w = round(height * rows), round(width * columns)
    for image in kept(drop, 3, 2, rows, columns):
        if h and w:
            assert rectangle(image)[2:] == (h, w, h * w)
        else:
            assert image.eq(1).all()


def test_the_papers_block_takes_seven_of_twenty_four_rows() -> None:
    for layer in BLOCKS:
        for image in kept(layer(0.3, 1.0), 4, 2, 24, 8):
            assert rectangle(image)[1:] == (0, 7, 8, 56)


def test_dropblocks_rectangles_lie_at_all_places_alike() -> None:
    places = [rectangle(image)[:2] for image in kept(DropBlock(0.5, 0.25, seed=3), 3000, 1, 8, 8)]
    counts = torch.bincount(torch.tensor([top * 7 + left for top, left in places]), minlength=35)
    assert len(counts) == 5 * 7
    assert chi_square_is_ordinary(counts.double())


def test_blocks_of_ranks_lie_at_all_places_alike() -> None:
    drop, starts = BatchDropBlock(0.3, 1.0, mask_scope="rank"), []
    for rank in range(400):
        drop.rank = rank
        starts.append(rectangle(~drop.dropped((1, 1, 24, 8))[0])[0])
    assert chi_square_is_ordinary(torch.bincount(torch.tensor(starts), minlength=18).double())


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
    maps = mask.view(4 * 30, 12 * 10)
    for slices in (maps, maps.T):
        assert len(slices.unique(dim=0)) == len(slices)


@pytest.mark.parametrize("layer", UNITS)
def test_rate_overrides_the_area(layer: type) -> None:
    mask = kept(layer(0.3, 1.0, rate=0.8), 10, 40, 20, 20)
    assert abs(mask.eq(0).float().mean() - 0.8) < 0.06


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("scope", MASK_SCOPES)
def test_rescaled_features_keep_their_mean(layer: type, scope: str) -> None:
    drop = layer(0.4, 0.5, mask_scope=scope, rescale=True, seed=8)
    masks = torch.stack([kept(drop, 8, 40, 15, 8) for _ in range(60)])
    share = 1 - 6 * 4 / (15 * 8) if layer in BLOCKS else 1 - 0.4 * 0.5  # both are 4 / 5
    torch.testing.assert_close(masks.unique(), torch.tensor([0, 1 / share]))
    assert abs(masks.mean() - 1) < (1e-6 if layer in BLOCKS else 0.02)


@pytest.mark.parametrize("layer", LAYERS)
def test_what_is_kept_stays_as_it_is_without_rescaling(layer: type) -> None:
    assert set(kept(layer(0.4, 0.5, rescale=False), 4, 40, 12, 8).unique().tolist()) == {0.0, 1.0}


def test_batch_layers_alone_do_not_rescale_by_themselves() -> None:
    highest = {layer.__name__: float(kept(layer(0.5, 0.5), 4, 40, 12, 8).max()) for layer in LAYERS}
    assert highest == pytest.approx(
        {"BatchDropBlock": 1, "BatchDropout": 1, "DropBlock": 4 / 3, "SpatialDropout": 4 / 3, "Dropout": 4 / 3}
    )


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
@pytest.mark.parametrize("scope", [None, *MASK_SCOPES])
def test_scope_says_who_shares_a_draw(layer: type, scope: str | None) -> None:
    here, there = layer(0.3, 0.5, mask_scope=scope), layer(0.3, 0.5, mask_scope=scope)
    there.rank = 1
    first, second = kept(here, 4, 64, 24, 16), kept(there, 4, 64, 24, 16)
    scope = scope or SCOPES.get(layer.__name__, "image")
    assert here.mask_scope == scope
    assert (first == first[:1]).all() == (scope != "image")
    assert torch.equal(first, second) == (scope == "global")
    assert not torch.equal(first, kept(here, 4, 64, 24, 16))
    if scope == "image":
        images = torch.cat([first, second]).flatten(1)
        assert len(images.unique(dim=0)) == 8


@pytest.mark.parametrize("scope", MASK_SCOPES)
def test_units_of_dropout_are_drawn_without_regard_to_each_other(scope: str) -> None:
    """Neighbours along every dimension, and the same unit one step or rank later: both dropped in rate ** 2 of cases."""
    drop = Dropout(0.3, 1.0, seed=2, mask_scope=scope)
    masks = []
    for drop.rank in (0, 1):
        for step in (0, 1):
            drop.step.fill_(step)
            masks.append(drop.dropped((16, 32, 24, 8)).expand(16, 32, 24, 8))
    mask = torch.stack(masks).view(2, 2, 16, 32, 24, 8)
    shared = {"global": (0, 2), "rank": (2,), "image": ()}[scope]
    for dim in range(6):
        if dim in shared:
            continue
        single = mask[tuple(slice(1) if d in shared else slice(None) for d in range(6))]
        pairs = single.narrow(dim, 1, single.shape[dim] - 1) & single.narrow(dim, 0, single.shape[dim] - 1)
        deviation = math.sqrt(0.09 * 0.91 / pairs.numel())
        assert abs(pairs.double().mean() - 0.09) < 8 * deviation, dim


@given(
    rate=st.floats(0, 1),
    seed=st.integers(-(2**63), 2**63 - 1),
    step=st.integers(0, 2**40),
    offset=st.integers(0, 2**31 - 300),
)
def test_fast_comparison_is_that_of_the_hash(rate: float, seed: int, step: int, offset: int) -> None:
    images, units = torch.arange(7)[:, None], offset + torch.arange(300)
    words = counter_hash(seed, 0, step, images, units)
    limits = [int(rate * 2**32), 0, 1, 2**31, 2**32 - 1, 2**32, int(words[3, 5]), int(words[3, 5]) + 1]
    before = counter_hash(seed, 0, step, images)
    for limit in limits:
        assert torch.equal(hash_is_below(limit, before, units), words < limit)
    assert torch.equal(before, counter_hash(seed, 0, step, images))


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
@pytest.mark.parametrize("scope", [None, *MASK_SCOPES])
def test_compiled_in_one_graph_that_serves_every_step(layer: type, scope: str | None) -> None:
    """Backwards too: the backend divides the graph as inductor does, which may draw the mask a second time."""
    drop, plain = (layer(0.3, 0.5, seed=9, mask_scope=scope, rescale=True) for _ in range(2))
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled = torch.compile(drop, fullgraph=True, backend="aot_eager_decomp_partition")
        for _ in range(4):
            features = torch.randn(2, 3, 12, 8, requires_grad=True)
            found, expected = compiled(features), plain(features)
            assert torch.equal(found, expected)
            gradients = (torch.autograd.grad(out.sum(), features)[0] for out in (found, expected))
            assert torch.equal(*gradients)
    assert drop.step == 4


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
