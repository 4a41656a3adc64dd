"""Maps: what a range of a disk, or of one layer of it, holds and where, as arrays of runs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from standby.model.extent import Kind

Offsets = npt.NDArray[np.int64]
Kinds = npt.NDArray[np.int8]

HOLE, ZERO, DATA = int(Kind.HOLE), int(Kind.ZERO), int(Kind.DATA)


@dataclass(frozen=True, slots=True)
class Map:
    """Runs without gaps over [starts[0], stop); at least one.

    `places` is the file offset of a DATA run's first byte (0 for others), `layers` the index of
    the layer that the run comes from.
    """

    starts: Offsets
    kinds: Kinds
    places: Offsets
    layers: npt.NDArray[np.int16]
    stop: int

    @property
    def start(self) -> int:
        """First byte of the first run."""
        return int(self.starts[0])

    @property
    def stops(self) -> Offsets:
        """Ends of the runs."""
        return np.append(self.starts[1:], self.stop)


def single(start: int, stop: int, kind: int, place: int = 0) -> Map:
    """A map of one run."""
    return Map(
        np.array([start], dtype=np.int64),
        np.array([kind], dtype=np.int8),
        np.array([place], dtype=np.int64),
        np.zeros(1, dtype=np.int16),
        stop,
    )


def joined(starts: Offsets, kinds: Kinds, places: Offsets, stop: int) -> Map:
    """The map of one layer with its neighbouring runs joined: equal kinds, and for DATA one piece
    of the file."""
    return _joined(Map(starts, kinds, places, np.zeros(starts.size, dtype=np.int16), stop))


def _joined(whole: Map) -> Map:
    starts, kinds, places, layers = whole.starts, whole.kinds, whole.places, whole.layers
    if starts.size < 2:
        return whole
    differs = (kinds[1:] != kinds[:-1]) | (layers[1:] != layers[:-1])
    differs |= (kinds[1:] == DATA) & (places[1:] - places[:-1] != starts[1:] - starts[:-1])
    keep = np.concatenate((np.ones(1, dtype=bool), differs))
    if keep.all():
        return whole
    return Map(starts[keep], kinds[keep], places[keep], layers[keep], whole.stop)


def clipped(whole: Map, start: int, stop: int) -> Map:
    """The part of a map that lies in [start, stop), which is not empty and lies inside it."""
    first = int(np.searchsorted(whole.starts, start, "right")) - 1
    last = int(np.searchsorted(whole.starts, stop, "left"))
    starts = whole.starts[first:last].copy()
    places = whole.places[first:last].copy()
    if whole.kinds[first] == DATA:
        places[0] += start - starts[0]
    starts[0] = start
    return Map(starts, whole.kinds[first:last], places, whole.layers[first:last], stop)


def filled(top: Map, below: Map, layer: int) -> Map:
    """`top` with its HOLE runs taken from `below`, as runs of `layer`; `below` lies inside
    [top.start, top.stop)."""
    bounds = [top.starts, below.starts]
    if below.stop < top.stop:
        bounds.append(np.array([below.stop], dtype=np.int64))
    starts = np.unique(np.concatenate(bounds))
    upper = np.searchsorted(top.starts, starts, "right") - 1
    kinds, layers = top.kinds[upper], top.layers[upper]
    places = top.places[upper] + np.where(kinds == DATA, starts - top.starts[upper], 0)
    hole = (kinds == HOLE) & (starts >= below.start) & (starts < below.stop)
    at = starts[hole]
    lower = np.searchsorted(below.starts, at, "right") - 1
    kinds[hole] = below.kinds[lower]
    inside = np.where(below.kinds[lower] == DATA, at - below.starts[lower], 0)
    places[hole] = below.places[lower] + inside
    layers[hole] = layer
    return _joined(Map(starts, kinds, places, layers, top.stop))
