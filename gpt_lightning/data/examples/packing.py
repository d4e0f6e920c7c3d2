"""Examples into rows of one length, by best-fit decreasing: the longest first, each where it leaves least room.

Done once, when the examples are prepared. A row's examples do not see each other (a document mask, positions that
restart), so which of them share one changes nothing but how little is padding.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence


def pack(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Which examples stand in which row, in order. Raises ValueError for one that is longer than a row."""
    if max(lengths, default=0) > room:
        raise ValueError(f"an example of {max(lengths)} tokens does not fit a row of {room}")
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # what is left in rows that are not full, the least first; and the row
    for example in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = bisect_left(free, (lengths[example], -1))
        if place < len(free):
            left, row = free.pop(place)
        else:
            left, row = room, len(rows)
            rows.append([])
        rows[row].append(example)
        if left > lengths[example]:
            insort(free, (left - lengths[example], row))
    return rows
