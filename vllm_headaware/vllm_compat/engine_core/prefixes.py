"""Prefix hits by what prefixes were computed under: wide windows serve narrow requests, never the
other way round.

What a layer stores of a token depends on what that token saw. So the hashes of a request's blocks
are salted with the windows they are computed under, where these are not everything: at the start,
and anew wherever windows change while the prompt is read. A later request is led along the same
hashes as long as it would have seen no more.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from vllm_headaware.cache.managers import BlockHashes
from vllm_headaware.plan import HeadClass
from vllm_headaware.plan.windows import Window, Windows, covers, first_token

Find = Callable[[], Any]
"""vLLM's look-up of request.block_hashes: blocks of each group, and how many tokens they hold."""
Way = tuple[tuple[int, Windows], ...]
"""(position, windows) in order."""
ROOT = b""
MOST_PLACES = 4096
"""Places in prompts whose windows are remembered; the one that was used longest ago goes."""
MOST_WAYS = 4
"""Windows that are remembered of one place."""
MOST_TRIES = 32
"""Ways that a look-up follows."""


@dataclass
class Prefix:
    """What is there of a request, and how the rest of its prompt is read.

    Attributes:
        hit: as vLLM's look-up gives it.
        reading: (position, windows) in order: those of the hit, then those of the rest.
        places: hash of what comes before each of these.
    """

    hit: Any
    reading: Way
    places: list[bytes]


@dataclass
class Chains:
    """Hashes of a request's blocks by the windows they are computed under, made as they are asked
    for."""

    salt: str | None
    made: dict[Way, BlockHashes] = field(default_factory=dict)


class Prefixes:
    """Which windows cached prefixes were computed under, as a tree of places in prompts.

    Args:
        hash_block: tokens of a block hash.
    """

    def __init__(self, classes: Sequence[HeadClass], hash_block: int) -> None:
        self.classes, self.hash_block = classes, hash_block
        self._ways: OrderedDict[bytes, list[Windows]] = OrderedDict()

    def look_up(self, request: Any, reading: Windows, least: Windows, find: Find) -> Prefix:
        """The longest prefix that a request can take over; its block hashes are set to match.

        Args:
            reading: its windows while its prompt is read.
            least: windows that the hit must fill.
        """
        best: tuple[Any, Way] | None = None
        known = [wide for wide in self._known(ROOT) if wide != reading]
        open_ways: list[Way] = [((0, windows),) for windows in (reading, *known)]
        for _ in range(MOST_TRIES):
            if not open_ways:
                break
            way = open_ways.pop()
            if all(self._serves(windows, reading, least, at) for at, windows in way):
                self._chain(request, way, reading, least)
                hit = find()
                if best is None or hit[1] > best[0][1]:
                    best = hit, way
                open_ways += self._branches(request, way)
        assert best is not None, "a request's own way is open to it"
        hit, way = best
        way = tuple(part for part in way if part[0] < hit[1]) or ((0, reading),)
        rest = self._rest(hit[1], hit[0].blocks, reading)
        if hit[1] and rest != way[-1][1]:
            way = (*way, (hit[1], rest))
        self._chain(request, way, reading, least)
        places = [ROOT, *(self._place(request, way[:n], way[n][0]) for n in range(1, len(way)))]
        return Prefix(hit, way, places)

    def started(self, prefix: Prefix) -> None:
        """A request goes on from a prefix: what it computes can be found by others."""
        for place, (_, windows) in zip(prefix.places, prefix.reading, strict=True):
            ways = self._ways.setdefault(place, [])
            self._ways.move_to_end(place)
            if windows in ways:
                ways.remove(windows)
            ways.insert(0, windows)
            del ways[MOST_WAYS:]
        while len(self._ways) > MOST_PLACES:
            self._ways.popitem(last=False)

    def _known(self, place: bytes) -> list[Windows]:
        """Windows that others had from a place on, the narrowest first."""
        ways = self._ways.get(place, ())

        def width(wide: Windows) -> int:
            return sum(all(map(covers, wide, other, itertools.repeat(0))) for other in ways)

        return sorted(ways, key=width)

    def _serves(self, windows: Windows, reading: Windows, least: Windows, at: int) -> bool:
        """Whether what was computed by windows from a place on is good enough for a request: it saw
        all that the request would have seen, or what is missing was lost to both."""
        return all(
            covers(w, r, at) or (w is not None and w < 0 and covers(w, n, at))
            for w, r, n in zip(windows, reading, least, strict=True)
        )

    def _branches(self, request: Any, way: Way) -> list[Way]:
        """Ways that part from one, the longest last."""
        chain = request._headaware_chains.made[way]
        first = way[-1][0] // self.hash_block
        return [
            (*way, ((index + 1) * self.hash_block, windows))
            for index in range(first, len(chain))
            if chain[index] in self._ways
            for windows in self._known(chain[index])
        ]

    def _place(self, request: Any, way: Way, length: int) -> bytes:
        return bytes(request._headaware_chains.made[way][length // self.hash_block - 1])

    def _chain(self, request: Any, way: Way, reading: Windows, least: Windows) -> None:
        """Give a request the block hashes of a way; those of the way before its last part are known
        already."""
        chains = request.__dict__.get("_headaware_chains")
        if chains is None:
            chains = request._headaware_chains = Chains(request.cache_salt)
        parting, windows = way[-1][0] // self.hash_block, way[-1][1]
        before = chains.made[way[:-1]][:parting] if len(way) > 1 else []
        chain = chains.made.setdefault(way, BlockHashes(before, least, reading))
        chain.least, chain.reading = least, reading
        root = way[0][1]
        whole = all(window is None for window in root)
        request.cache_salt = chains.salt if whole else f"{chains.salt or ''}|kv_windows={root}"
        request.block_hashes = chain
        if before and len(chain) == parting:
            # What comes next goes on from a hash of its own.
            chain[-1] = hashlib.sha256(before[-1] + repr(windows).encode()).digest()
        request.update_block_hashes()
        if before and len(chain) > parting:
            chain[parting - 1] = before[-1]

    def _rest(self, length: int, hit: Sequence[Any], reading: Windows) -> Windows:
        """How the rest of a prompt is read: through what is left of what comes before."""
        return tuple(
            _through(c, length, blocks, window)
            for c, blocks, window in zip(self.classes, hit, reading, strict=True)
        )


def _through(head_class: HeadClass, length: int, blocks: Sequence[Any], window: Window) -> Window:
    first = len(blocks)
    while first > head_class.sink_blocks and not blocks[first - 1].is_null:
        first -= 1
    there = first * head_class.block_tokens
    if first <= head_class.sink_blocks or there <= first_token(length, window):
        return window
    return -there if window is None or window <= 0 else length - there + 1
