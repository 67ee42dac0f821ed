"""`IdentityBatchSampler`: batches of P identities with K images each, the same for any number of ranks."""

from collections.abc import Iterator, Sequence
from typing import Literal, Self

import numpy as np
from torch.utils.data import Sampler

from bdbnet.loading.samples import Draw


class SamplerError(ValueError):
    """Labels and batch settings that do not fit together; the message names the settings."""


class IdentityBatchSampler(Sampler[list[Draw]]):
    """Draws batches of P identities x K images (paper, section 4.1; schedule of Hermans et al., 2017).

    `labels` (N,) are the identities of the train rows.  A batch holds P different identities; the K images of one
    identity lie side by side and are distinct where the identity has K images.  An identity with fewer contributes
    all of them, and the rest drawn with replacement.

    `epoch="identities"`: an epoch draws each identity once, in random order; the last incomplete batch is dropped
    (Market-1501, 32 x 4: 23 batches).  `epoch="images"`: an epoch draws every image at least once.  Each identity's
    images are shuffled and cut into groups of K, the last filled from the same identity; the groups are
    distributed evenly, at random, over the smallest number of batches in which no identity occurs twice, and free places
    are filled with random further identities.

    With `sets` (N,), the number 0..S-1 of each row's data set, batches are balanced over S sets (`sampler.balance=per_set`): each
    batch has P // S identities of every set, and of the first P % S sets one more, in random order.  An epoch is as long as
    that of the set that needs most batches for its share alone, after the rule of `epoch`; the others begin again, in a new
    random order, as often as that takes, and no identity is in a batch twice.  A set with fewer identities than its share is
    refused.  Without `sets` the P identities are drawn from all sets alike, so that a set has as large a part of the batches
    as of the identities.

    The order is a function of (seed, epoch) alone.  Every rank draws the share `rank` of each batch, P / world_size
    whole identities: the ranks' batches put side by side in rank order are the batch of a single process.

    Raises SamplerError if the labels can't fill a batch.
    """

    def __init__(
        self,
        labels: np.ndarray,
        identities_per_batch: int = 32,
        images_per_identity: int = 4,
        *,
        epoch: Literal["identities", "images"] = "identities",
        sets: np.ndarray | None = None,
        set_names: Sequence[str] = (),
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        labels = np.asarray(labels)
        _check_settings(len(np.unique(labels)), identities_per_batch, images_per_identity, rank, world_size)
        if epoch not in ("identities", "images"):
            raise SamplerError(f"sampler.epoch is {epoch!r}: choose identities or images")
        covers_images = epoch == "images"
        if sets is None:
            rows = [np.arange(len(labels))]
            shares = [identities_per_batch]
        else:
            rows = [np.flatnonzero(sets == number) for number in range(int(np.max(sets)) + 1)]
            shares = _shares(labels, rows, identities_per_batch, images_per_identity, set_names)
        self._drawers = [
            _Drawer(labels[own], own, share, images_per_identity, covers_images=covers_images)
            for own, share in zip(rows, shares)
        ]
        self.identities_per_batch = identities_per_batch
        self.images_per_identity = images_per_identity
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.first_batch = 0

    @classmethod
    def from_batch_size(
        cls,
        labels: np.ndarray,
        batch_size: int = 128,
        images_per_identity: int = 4,
        *,
        epoch: Literal["identities", "images"] = "identities",
        sets: np.ndarray | None = None,
        set_names: Sequence[str] = (),
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> Self:
        """A sampler of `batch_size` = P x K images over all ranks.  Raises SamplerError where K does not divide it."""
        if images_per_identity < 1 or batch_size < 1 or batch_size % images_per_identity:
            raise SamplerError(
                f"sampler.batch_size={batch_size} is not a multiple of "
                f"sampler.images_per_identity={images_per_identity}: a batch holds whole identities"
            )
        return cls(
            labels,
            batch_size // images_per_identity,
            images_per_identity,
            epoch=epoch,
            sets=sets,
            set_names=set_names,
            seed=seed,
            rank=rank,
            world_size=world_size,
        )

    @property
    def sampler(self) -> Self:
        """Itself: Lightning calls `set_epoch` of a batch sampler's `sampler`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Use the order of this epoch from the next iteration on."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Number of batches of an epoch."""
        return max(map(len, self._drawers))

    def __iter__(self) -> Iterator[list[Draw]]:
        epoch = self.epoch
        batches = self.batches(epoch)
        share = self.identities_per_batch // self.world_size
        for number in range(self.first_batch, len(batches)):
            mine = batches[number, self.rank * share : (self.rank + 1) * share].reshape(-1)
            start = (number * self.identities_per_batch + self.rank * share) * self.images_per_identity
            yield [Draw(row, epoch, start + place) for place, row in enumerate(mine.tolist())]

    def batches(self, epoch: int) -> np.ndarray:
        """The rows of all ranks' batches of an epoch, int64 (batches, P, K)."""
        generator = np.random.default_rng((self.seed, epoch))
        if len(self._drawers) == 1:
            return self._drawers[0].draw(generator)
        shares = [drawer.draw_at_least(len(self), generator) for drawer in self._drawers]
        whole = np.concatenate(shares, axis=1)
        order = generator.permuted(np.tile(np.arange(whole.shape[1]), (len(whole), 1)), axis=1)
        return np.take_along_axis(whole, order[:, :, None], axis=1)


class _Drawer:
    """Draws P identities x K images of one set of rows for each batch; see `IdentityBatchSampler`."""

    def __init__(
        self, labels: np.ndarray, rows: np.ndarray, identities: int, images: int, *, covers_images: bool
    ) -> None:
        order = np.argsort(labels, kind="stable")
        first = np.unique(labels[order], return_index=True)[1]
        self.rows_of_identity = np.split(rows[order], first[1:])
        self.identities_per_batch = identities
        self.images_per_identity = images
        self.covers_images = covers_images

    def __len__(self) -> int:
        """Number of batches that the set needs."""
        if not self.covers_images:
            return len(self.rows_of_identity) // self.identities_per_batch
        groups = self._groups_per_identity()
        return int(max(-(-groups.sum() // self.identities_per_batch), groups.max()))

    def draw(self, generator: np.random.Generator) -> np.ndarray:
        """The rows of all batches, int64 (batches, P, K)."""
        return self._cover_images(generator) if self.covers_images else self._cover_identities(generator)

    def draw_at_least(self, batches: int, generator: np.random.Generator) -> np.ndarray:
        """The rows of so many batches; the set begins again as often as that takes."""
        times = -(-batches // len(self))
        return np.concatenate([self.draw(generator) for _ in range(times)])[:batches]

    def _cover_identities(self, generator: np.random.Generator) -> np.ndarray:
        order = generator.permutation(len(self.rows_of_identity))[: len(self) * self.identities_per_batch]
        groups = np.stack([self._group(identity, generator) for identity in order])
        return groups.reshape(len(self), self.identities_per_batch, self.images_per_identity)

    def _cover_images(self, generator: np.random.Generator) -> np.ndarray:
        groups_of = self._groups_per_identity()
        batches: list[list[np.ndarray]] = [[] for _ in range(len(self))]
        members: list[set[int]] = [set() for _ in batches]
        load = np.zeros(len(batches))
        for identity in generator.permutation(len(self.rows_of_identity)).tolist():
            # Least filled batches first, ties at random: sizes differ by at most one, so none overflows.
            chosen = np.argsort(load + generator.random(len(batches)))[: groups_of[identity]]
            load[chosen] += 1
            for batch, group in zip(chosen.tolist(), self._all_groups(identity, generator)):
                batches[batch].append(group)
                members[batch].add(identity)
        for batch, present in zip(batches, members):
            missing = self.identities_per_batch - len(batch)
            if missing:
                others = np.setdiff1d(np.arange(len(self.rows_of_identity)), list(present))
                further = generator.choice(others, missing, replace=False)
                batch.extend(self._group(identity, generator) for identity in further)
        return np.stack([np.stack(batch)[generator.permutation(len(batch))] for batch in batches])

    def _groups_per_identity(self) -> np.ndarray:
        return -(-np.array([len(rows) for rows in self.rows_of_identity]) // self.images_per_identity)

    def _all_groups(self, identity: int, generator: np.random.Generator) -> np.ndarray:
        """All images of an identity, shuffled and cut into groups of K: (groups, K)."""
        size = self.images_per_identity
        shuffled = generator.permutation(self.rows_of_identity[identity])
        rest = len(shuffled) % size
        if rest == 0:
            return shuffled.reshape(-1, size)
        # The last group takes images of the groups before it, or, if it is the only one, repeats its own.
        before = shuffled[:-rest]
        fill = generator.choice(before if len(before) else shuffled, size - rest, replace=len(before) == 0)
        return np.concatenate([shuffled, fill]).reshape(-1, size)

    def _group(self, identity: int, generator: np.random.Generator) -> np.ndarray:
        """K images of one identity, distinct as far as possible: (K,)."""
        rows, size = self.rows_of_identity[identity], self.images_per_identity
        if len(rows) >= size:
            return generator.choice(rows, size, replace=False)
        return np.concatenate([generator.permutation(rows), generator.choice(rows, size - len(rows))])


def _shares(
    labels: np.ndarray, rows: Sequence[np.ndarray], per_batch: int, images: int, names: Sequence[str]
) -> list[int]:
    """Identities of each set in a batch.  Raises SamplerError where a set has too few, or a batch has none for one."""
    if per_batch < len(rows):
        raise SamplerError(
            f"sampler.balance=per_set: a batch has {per_batch} identities (sampler.batch_size / sampler.images_per_identity) for "
            f"{len(rows)} data sets: set sampler.batch_size to at least {len(rows) * images}"
        )
    shares = [per_batch // len(rows) + (number < per_batch % len(rows)) for number in range(len(rows))]
    for number, (own, share) in enumerate(zip(rows, shares)):
        if (found := len(np.unique(labels[own]))) < share:
            name = names[number] if names else f"set {number}"
            raise SamplerError(
                f"sampler.balance=per_set: a batch needs {share} identities of {name}, which has {found}: set "
                f"sampler.batch_size to at most {found * len(rows) * images}, or sampler.balance=none"
            )
    return shares


def _check_settings(identities: int, per_batch: int, images: int, rank: int, world_size: int) -> None:
    if identities < 2:
        raise SamplerError(f"the training set has {identities} identities; metric learning needs at least two")
    if images < 1:
        raise SamplerError(f"sampler.images_per_identity is {images}: give at least 1")
    if per_batch < 2:
        raise SamplerError(
            f"a batch of {per_batch * images} images holds {per_batch} identities at sampler.images_per_identity="
            f"{images}, and needs at least two: raise sampler.batch_size"
        )
    if per_batch > identities:
        raise SamplerError(
            f"a batch needs {per_batch} identities (sampler.batch_size / sampler.images_per_identity), the training "
            f"set has {identities}: set sampler.batch_size to at most {identities * images}"
        )
    if not 0 <= rank < world_size:
        raise SamplerError(f"rank {rank} does not exist among {world_size} ranks")
    if world_size > per_batch:
        most = f"raise sampler.batch_size to {world_size * images}, or use" if world_size <= identities else "use"
        raise SamplerError(
            f"a batch has {per_batch} identities (sampler.batch_size / sampler.images_per_identity) for {world_size} processes, of "
            f"which each needs a whole one: {most} at most {per_batch} (trainer.devices, trainer.num_nodes)"
        )
    if per_batch % world_size:
        raise SamplerError(
            f"{per_batch} identities per batch (sampler.batch_size / sampler.images_per_identity) can't be divided among "
            f"{world_size} ranks: choose a sampler.batch_size that is a multiple of {world_size * images}"
        )
