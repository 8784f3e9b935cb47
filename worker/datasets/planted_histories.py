"""What users of the planted world have seen, and what they are offered now.

There are TOPICS topics of ITEMS items each, the first ones of both most frequent. A user has three
topics at heart; of what he has seen, SHARE_OF_INTERESTS is of one of them, and the rest of any. He
is offered an item of one of them, too, or as often one of any topic. To the logit of a click comes

    SEEN_WEIGHT * log(1 + sum_t DECAY^(length - 1 - t) [topic of the t-th = that of the offer])
    + SEEN_BIAS

so what he has seen counts where it fits the offer, and more the later it was. The mean of all that
he has seen says little of one topic among many.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import njit

from embedding.kernels.mixing import mix64
from worker.datasets.planted import CHUNK_ROWS, Split, stream_of

TOPICS, ITEMS = 200, 100
INTERESTS = 3
MOST_SEEN = 40
SHARE_OF_INTERESTS = 0.8
SHARE_OF_OFFERS = 0.5
DECAY = 0.9
# Chosen so that the base rate stays about .25.
SEEN_WEIGHT = 1.6
SEEN_BIAS = -0.8

# The samples' own numbers of a stream have counters that begin at 0, and never come so far.
_COUNTER = np.array([0, 0, 0, 1], np.uint64)
_SALT = np.uint64(0x5E << 48)  # beyond those of other columns

_Floats = npt.NDArray[np.float32]
_Doubles = npt.NDArray[np.float64]
_Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Histories:
    """What goes with the samples of a chunk.

    Args:
        items: int64[n], what each user is offered.
        frequencies: float32[n], how many of 10^9 samples have that item.
        seen: int64[nnz], what each user has seen, the latest last.
        offsets: int64[n + 1], those of user i are seen[offsets[i]:offsets[i + 1]].
        logits: float64[n], what comes to the logit of a click.
    """

    items: _Ids
    frequencies: _Floats
    seen: _Ids
    offsets: _Ids
    logits: _Doubles


def draw_histories(*, seed: int, split: Split, chunk: int) -> Histories:
    """Draw the histories of a chunk; arguments and promises as of `planted.draw`."""
    key = np.array([seed, stream_of(split, chunk)], np.uint64)
    random = np.random.Generator(np.random.Philox(key=key, counter=_COUNTER))
    n = CHUNK_ROWS
    of_topics, of_items = shares(TOPICS), shares(ITEMS)
    interests = _draw(random, of_topics, n * INTERESTS).reshape(n, INTERESTS)
    lengths = (random.random(n) ** 1.5 * (MOST_SEEN + 1)).astype(np.int64)
    offsets = np.zeros(n + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    nnz, owner = int(offsets[-1]), np.repeat(np.arange(n), lengths)
    one = interests[owner, random.integers(0, INTERESTS, nnz)]
    any_topic = _draw(random, of_topics, nnz)
    seen = np.where(random.random(nnz) < SHARE_OF_INTERESTS, one, any_topic)
    one = interests[np.arange(n), random.integers(0, INTERESTS, n)]
    any_topic = _draw(random, of_topics, n)
    offered = np.where(random.random(n) < SHARE_OF_OFFERS, one, any_topic)
    items_of_offers, items_of_seen = _draw(random, of_items, n), _draw(random, of_items, nnz)
    ages = offsets[1:][owner] - 1 - np.arange(nnz)
    fits = (seen == offered[owner]) * DECAY**ages
    shares_of_offers = of_topics[offered] * of_items[items_of_offers]
    return Histories(
        items=_ids_of(offered * ITEMS + items_of_offers),
        frequencies=(1e9 * shares_of_offers).astype(np.float32),
        seen=_ids_of(seen * ITEMS + items_of_seen),
        offsets=offsets,
        logits=SEEN_WEIGHT * np.log1p(np.bincount(owner, fits, n)) + SEEN_BIAS,
    )


def shares(count: int) -> _Doubles:
    """Return the share of each of so many, the first the most frequent; they sum to 1."""
    found = 1.0 / (np.arange(count, dtype=np.float64) + 5.0)
    return np.asarray(found / found.sum(), np.float64)


def _draw(random: np.random.Generator, of: _Doubles, n: int) -> _Ids:
    drawn = np.searchsorted(np.cumsum(of), random.random(n), side="right")
    return np.minimum(drawn, of.size - 1).astype(np.int64)


@njit(cache=True, nogil=True)
def _ids_of(numbers: _Ids) -> _Ids:
    ids = np.empty(numbers.size, np.int64)
    for i in range(numbers.size):
        ids[i] = np.int64(mix64(np.uint64(numbers[i]) | _SALT))
    return ids
