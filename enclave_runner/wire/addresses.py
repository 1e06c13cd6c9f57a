"""Addresses to listen at, without a resolver: an enclave has none."""

from __future__ import annotations

import ipaddress
import socket

from ...errors import UsageError

_NAMES = {"localhost": "127.0.0.1", "": "127.0.0.1"}


def literal(host: str) -> str:
    """`host` as an address of numbers; ``localhost`` is 127.0.0.1, brackets are taken off.

    Raises:
        UsageError: Another name.
    """
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    bare = _NAMES.get(bare.lower(), bare)
    try:
        return str(ipaddress.ip_address(bare))
    except ValueError:
        raise UsageError(
            f"`listen` got the host {host[:80]!r}; use localhost or an address in numbers, as "
            "0.0.0.0 or [::]"
        ) from None


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to `host`."""
    return ipaddress.ip_address(literal(host)).is_loopback


def family(host: str) -> socket.AddressFamily:
    """IPv4 or IPv6, of an address in numbers."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET
