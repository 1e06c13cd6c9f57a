"""The enclave's own quote, from Gramine's pseudo-files, and newcomers who wait for theirs."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from ...errors import AttestationError, PartoptError
from .clients import Session
from .fair import FairQueue

_REPORT_DATA = Path("/dev/attestation/user_report_data")
_QUOTE = Path("/dev/attestation/quote")
# The enclave has one report data: what is read belongs to what was written last.
_ONE_AT_A_TIME = threading.Lock()


def own_quote(report_data: bytes) -> bytes:
    """The quote of the enclave that this runs in, for 64 bytes of report data.

    Raises:
        AttestationError: Gramine offers no quotes here.
    """
    try:
        with _ONE_AT_A_TIME:
            _REPORT_DATA.write_bytes(report_data)
            return _QUOTE.read_bytes()
    except OSError as error:
        raise AttestationError(
            f"this enclave cannot be quoted ({error.strerror}); set up the AESM service and DCAP"
        ) from error


class Quotes:
    """Newcomers who wait for a quote of their handshake; owners in turn.

    Args:
        quote: Makes a quote for 64 bytes of report data; None outside SGX.
        trouble: Told what failed.
        wake: Called when a quote was made.
    """

    def __init__(
        self,
        quote: Callable[[bytes], bytes] | None,
        trouble: Callable[[Exception], None],
        wake: Callable[[], None],
    ) -> None:
        self._quote, self._trouble, self._wake = quote, trouble, wake
        self._waiting: FairQueue[Session] = FairQueue(1 << 16, 1 << 30)
        self._made: deque[tuple[Session, bytes | None]] = deque()

    def ask(self, session: Session) -> None:
        """Let `session` wait for its quote."""
        self._waiting.put(session)

    def forget(self, session: Session) -> None:
        """It waits no longer."""
        self._waiting.leave(session)

    def made(self) -> Iterator[tuple[Session, bytes | None]]:
        """Quotes that were made since the last call; None where one could not be."""
        while self._made:
            yield self._made.popleft()

    def run(self) -> None:
        """Make quotes for ever, one after the other."""
        while True:
            session = self._waiting.take()
            if session is None or session.accepting is None or session.gone:
                continue
            proof: bytes | None = None
            try:
                assert self._quote is not None
                proof = self._quote(session.accepting.report_data)
            except (PartoptError, OSError) as error:
                self._trouble(error)
            self._made.append((session, proof))
            self._wake()
