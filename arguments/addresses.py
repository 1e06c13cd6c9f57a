"""Where to listen and where to connect: HOST:PORT, as an option got it."""

from __future__ import annotations

import ipaddress
import socket

from ..errors import UsageError


def address(name: str, text: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT``, ``[IPV6]:PORT`` or ``:PORT`` (this machine alone).

    Raises:
        UsageError: It is none of these.
    """
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    usable = bracketed or (":" not in host and "[" not in host and "]" not in host)
    digits = port.isascii() and port.isdigit() and int(port) <= 65535
    if not colon or not usable or not digits or host == "[]":
        raise UsageError(f"`{name}` got {text!r}; use HOST:PORT, or [ADDRESS]:PORT for IPv6")
    return host.strip("[]") or "127.0.0.1", int(port)


def numeric(name: str, text: str) -> tuple[str, int]:
    """As `address`, with the host as a number: an enclave has no files to look names up in.

    IPv4 goes before IPv6.

    Raises:
        UsageError: The name means no address.
    """
    host, port = address(name, text)
    try:
        return str(ipaddress.ip_address(host)), port
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UsageError(
            f"`{name}` got {text!r}, whose host has no address ({error}); use a number"
        ) from None
    first = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    return str(first[4][0]), port


def shown(host: str, port: int) -> str:
    """HOST:PORT as `address` reads it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
