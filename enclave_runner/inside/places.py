"""Who may stay when there is no place for all: shared by address, and kept by those at work."""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Collection
from typing import Protocol, TypeVar


class Seat(Protocol):
    """A connection that holds a place.

    Attributes:
        owner: Whose it is: the address that it came from, or the key that it proved to have.
        since: When its last message was whole, in seconds of the clock.
        answered: Images of it that were answered.
        under_way: Its requests that are not answered yet.
    """

    owner: str
    since: float
    answered: int
    under_way: int


S = TypeVar("S", bound=Seat)


def gives_way(seats: Collection[S], owner: str, now: float, spare: float) -> S | None:
    """Who of `seats`, all taken, gives its place to a newcomer of `owner`; None: nobody does.

    First those that have nothing under way and were silent for `spare` seconds, of the newcomer's
    own owner or of one that holds more places: those that were never answered before others. Then
    the newest of the owner that holds the most, if that is two more than the newcomer's. So nobody
    holds all places by being silent, and no owner does by being busy.
    """
    held = Counter(seat.owner for seat in seats)
    idle = [
        seat
        for seat in seats
        if not seat.under_way
        and now - seat.since >= spare
        and (seat.owner == owner or held[seat.owner] > held[owner])
    ]
    if idle:
        return min(idle, key=lambda s: (s.answered > 0, -held[s.owner], s.since))
    busy = [seat for seat in seats if held[seat.owner] > held[owner] + 1]
    return max(busy, key=lambda s: (held[s.owner], s.since), default=None)


def oldest_of_greediest(seats: Collection[S]) -> S:
    """Of the owner that holds the most of `seats`, the one that was silent for longest."""
    held = Counter(seat.owner for seat in seats)
    return min(seats, key=lambda s: (-held[s.owner], s.since))


def owner_of(address: str) -> str:
    """Whose an address is: an IPv6 network of 64 bits is one owner's."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(ipaddress.ip_network((found, 64), strict=False))
    return str(found)
