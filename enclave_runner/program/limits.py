"""How large a half of a network may get, whatever runs it."""

from __future__ import annotations

MAX_DIMS, MAX_ELEMENTS, MAX_BYTES = 16, 1 << 31, 1 << 32
# Of all values that are there at once, views counted as if they were copies.
MAX_LIVE_BYTES = 1 << 35
