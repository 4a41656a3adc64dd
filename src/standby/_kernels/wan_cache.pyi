"""A table from names of 4 KiB pieces to locations, in arrays. Owner: standby.wan.table."""

import numpy as np
from numpy.typing import NDArray

Room = NDArray[np.uint8]
Shards = NDArray[np.uint32]
Names = NDArray[np.uint8]
Locations = NDArray[np.uint64]

NONE: int
BUSY: int
LOCATION_LAST: int
BUCKET_BYTES: int
SHARD_BYTES: int
SLOTS: int
BUCKETS_FIRST: int
BUCKETS_LAST: int
BUCKETS_STEP: int
SAMPLED_BITS: int
ONLY_SAMPLES: int

def check(shards: Shards) -> None: ...
def lookup(room: Room, shards: Shards, names: Names, out: Locations, prefetches: bool) -> int: ...
def insert(
    room: Room,
    shards: Shards,
    names: Names,
    locations: Locations,
    start: int,
    only_samples: bool,
    scratch: NDArray[np.uint8],
    counts: NDArray[np.int64],
) -> int: ...
def remove(room: Room, shards: Shards, names: Names, locations: Locations) -> int: ...
def remove_between(
    room: Room, shards: Shards, first: int, last: int, start: int, stop: int
) -> int: ...
def recount(room: Room, shards: Shards) -> None: ...
