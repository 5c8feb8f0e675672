"""Places spread evenly over documents of very different lengths, without chance."""

from __future__ import annotations

from collections.abc import Sequence


def spread(room: Sequence[int], wanted: int) -> list[tuple[int, int]]:
    """Choose (document, place) pairs, as many from each document as from any other where it has room, evenly over it.

    Args:
        room: places of each document.
        wanted: pairs; fewer come back where there is less room in all.
    """
    taken = [0] * len(room)
    while sum(taken) < min(wanted, sum(room)):
        for document, places in enumerate(room):
            if taken[document] < places and sum(taken) < wanted:
                taken[document] += 1
    return [(d, (2 * i + 1) * room[d] // (2 * taken[d])) for d in range(len(room)) for i in range(taken[d])]
