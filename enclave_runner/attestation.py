"""Proof that a head worker is the enclave that was exported: checking SGX quotes.

A quote (ECDSA, version 3) holds the enclave's measurement and 64 bytes of its choice, here the hash
of the handshake. Its signature and the platform's state are judged by Intel's DCAP quote
verification library; where that library is missing the quote is refused, not believed.
Layout: Intel, "SGX ECDSA Quote Library Reference" (DCAP), structures sgx_quote3_t and
sgx_report_body_t.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

from ..errors import AttestationError, UsageError
from .wire.accepted import BACKENDS
from .wire.session import Hello

_BODY = 48  # bytes of the quote's header
_ATTRIBUTES, _MRENCLAVE, _MRSIGNER, _USER = _BODY + 48, _BODY + 64, _BODY + 128, _BODY + 320
_SHORTEST = _BODY + 384 + 4
_DEBUG = 0x2

CLAIMED = "gramine-sgx (claimed, not proven)"
LABELS = {
    "gramine-sgx": "SGX enclave: the host sees boundary tensors and answers, not images or weights",
    "gramine-direct": "NO PROTECTION: Gramine without SGX, the host can read everything",
    "native": "NO PROTECTION: an ordinary process, the host can read everything",
    CLAIMED: "NO PROTECTION PROVEN: it claims to be an SGX enclave, the host may read everything",
    "unknown": "NO PROTECTION PROVEN: it does not say what it is, the host may read everything",
}
# What Intel's library may say of a platform (sgx_ql_qv_result_t), "OK" aside.
_BASE = 0xA000
RESULTS = {
    _BASE + 1: "CONFIG_NEEDED",
    _BASE + 2: "OUT_OF_DATE",
    _BASE + 3: "OUT_OF_DATE_CONFIG_NEEDED",
    _BASE + 4: "INVALID_SIGNATURE",
    _BASE + 5: "REVOKED",
    _BASE + 6: "UNSPECIFIED",
    _BASE + 7: "SW_HARDENING_NEEDED",
    _BASE + 8: "CONFIG_AND_SW_HARDENING_NEEDED",
}
# Those of a genuine enclave on a platform whose state the client may accept.
ACCEPTABLE = tuple(
    name for name in RESULTS.values() if name not in ("INVALID_SIGNATURE", "REVOKED", "UNSPECIFIED")
)


def claimed(backend: str, *, proven: bool) -> str:
    """The key of `LABELS` for what a head worker says that it runs in."""
    if backend not in BACKENDS:
        return "unknown"
    return CLAIMED if backend == "gramine-sgx" and not proven else backend


@dataclass(frozen=True, kw_only=True)
class Quote:
    """The parts of a quote that are compared."""

    mrenclave: bytes
    mrsigner: bytes
    debug: bool
    report_data: bytes


def parse(quote: bytes) -> Quote:
    """Read a version 3 quote.

    Raises:
        AttestationError: Not such a quote.
    """
    if len(quote) < _SHORTEST or int.from_bytes(quote[:2], "little") != 3:
        raise AttestationError("the head worker's quote is no SGX quote of version 3")
    flags = int.from_bytes(quote[_ATTRIBUTES : _ATTRIBUTES + 8], "little")
    return Quote(
        mrenclave=quote[_MRENCLAVE : _MRENCLAVE + 32],
        mrsigner=quote[_MRSIGNER : _MRSIGNER + 32],
        debug=bool(flags & _DEBUG),
        report_data=quote[_USER : _USER + 64],
    )


def verified_by_dcap(quote: bytes, accept: Collection[str] = ()) -> None:
    """Let Intel's library check signature, certificates and platform state.

    Args:
        quote: The quote.
        accept: Names of `ACCEPTABLE` that do, beside "OK".

    Raises:
        AttestationError: The library is missing, or answers anything else.
    """
    name = ctypes.util.find_library("sgx_dcap_quoteverify")
    if name is None:
        raise AttestationError(
            "the quote cannot be checked: libsgx_dcap_quoteverify is missing; install "
            "libsgx-dcap-quote-verify on the client"
        )
    library = ctypes.CDLL(name)
    expired, result = ctypes.c_uint32(1), ctypes.c_uint32(0xFFFF)
    code = library.sgx_qv_verify_quote(
        quote,
        ctypes.c_uint32(len(quote)),
        None,
        ctypes.c_int64(int(time.time())),
        ctypes.byref(expired),
        ctypes.byref(result),
        None,
        ctypes.c_uint32(0),
        None,
    )
    if code != 0:
        raise AttestationError(
            f"the quote is refused: the library failed with code {code & 0xFFFFFFFF:#x} (see "
            "quote3_error_t in sgx_ql_lib_common.h); check the client's access to collateral (PCCS)"
        )
    if expired.value != 0:
        raise AttestationError("the quote is refused: its collateral has expired; renew it")
    said = RESULTS.get(result.value, f"{result.value:#x}, which is no known result")
    if result.value == 0 or (said in ACCEPTABLE and said in accept):
        return
    how = f", or accept it with --accept-tcb {said}" if said in ACCEPTABLE else ""
    raise AttestationError(
        f"the quote is refused: the platform's state is {said}; update the platform{how}"
    )


def verifier(
    mrenclave: str | None,
    *,
    insecure: bool,
    accept: Collection[str] = (),
    by_library: Callable[[bytes], None] | None = None,
) -> Callable[[Hello], None]:
    """What a client demands of a head worker.

    Args:
        mrenclave: The measurement in the bundle, hexadecimal; None if it was never signed.
        insecure: Go on without proof (``--insecure-no-attestation``).
        accept: Names of `ACCEPTABLE` that are as good as "OK" (``--accept-tcb``).
        by_library: Checks the quote's signature; None: `verified_by_dcap`.

    Raises:
        UsageError: `accept` names something else.
    """
    for name in accept:
        if name not in ACCEPTABLE:
            raise UsageError(f"`accept-tcb` got {name!r}; use {', '.join(ACCEPTABLE)}")
    check = by_library or (lambda quote: verified_by_dcap(quote, accept))

    def verify(hello: Hello) -> None:
        if insecure:
            return
        if not hello.quote:
            raise AttestationError(
                f"the head worker runs as {hello.backend!r} and proves nothing "
                f"({LABELS.get(hello.backend, 'unknown backend')}); use gramine-sgx, or accept it "
                "with --insecure-no-attestation"
            )
        quote = parse(hello.quote)
        if mrenclave is None:
            raise AttestationError(
                "the bundle has no MRENCLAVE to compare with; export it with --sign KEY.pem"
            )
        if quote.mrenclave.hex() != mrenclave.lower():
            raise AttestationError(
                f"the enclave measures {quote.mrenclave.hex()[:16]}..., not the bundle's "
                f"{mrenclave[:16]}...; it is another program"
            )
        if quote.debug:
            raise AttestationError("the enclave is in debug mode: the host can read it; sign anew")
        if quote.report_data != hello.report_data:
            raise AttestationError("the quote belongs to another handshake; connect again")
        check(hello.quote)

    return verify
