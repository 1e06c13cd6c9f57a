"""What people must hear while a run goes on, a line each; logged as ``partopt``, never raised."""

from __future__ import annotations

import logging

log = logging.getLogger("partopt")


def notice(text: str) -> None:
    """Say one line: on stderr, unless the program that uses partopt handles its log."""
    log.warning("%s", text)
