"""The enclave's own quote, from Gramine's pseudo-files."""

from __future__ import annotations

import threading
from pathlib import Path

from ...errors import AttestationError

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
