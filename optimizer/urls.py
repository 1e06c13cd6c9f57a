"""URLs of databases: which driver is meant, and how one is named without its password."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from urllib.parse import unquote

from ..errors import UsageError

_DRIVERS = {"postgresql": "psycopg", "postgres": "psycopg", "mysql": "pymysql"}


def hold_shared(url: str) -> None:
    """Hold a storage against what processes can take jobs out of, each one once.

    Raises:
        UsageError: SQLite, which does not lock the rows that it reads.
    """
    if url.startswith("sqlite"):
        raise UsageError(
            f"`storage` got {hidden(url)!r}, from which two workers may take the same job; give a "
            ".journal file on one machine, or a PostgreSQL or MySQL URL"
        )


def driven(url: str) -> str:
    """The URL with a driver: that of the extra ``[fleet]`` where it names none and there is it."""
    scheme, mark, rest = url.partition("://")
    driver = _DRIVERS.get(scheme)
    if not mark or driver is None:
        return url
    kind = "postgresql" if scheme == "postgres" else scheme
    return f"{kind}+{driver}://{rest}" if find_spec(driver) else f"{kind}://{rest}"


def hidden(url: str) -> str:
    """The URL as messages may show it: no password, and nothing of its query, which may hold one.

    >>> hidden("postgresql://me:secret@db.example/partopt?sslpassword=x")
    'postgresql://me:***@db.example/partopt'
    """
    scheme, mark, rest = url.partition("://")
    if not mark:
        return url
    before, at, after = rest.rpartition("@")  # a password may hold an @ that nobody escaped
    if "?" in before:  # its password, or its query's: who knows
        return f"{scheme}://***"
    who, colon, _ = before.partition(":")
    return f"{scheme}://{who}{':***' if colon else ''}{at}{after.partition('?')[0]}"


def named(url: str) -> str:
    """How results name a storage: host and database."""
    return hidden(url).partition("@")[2] or hidden(url)


def scrubbed(text: str, url: str) -> str:
    """A text about a URL, a driver's message for one, without the URL's secrets."""
    _, _, rest = url.partition("://")
    before, _, after = rest.rpartition("@")
    secrets = [before.partition(":")[2]]
    secrets += [part.partition("=")[2] for part in after.partition("?")[2].split("&")]
    for secret in sorted({*secrets, *map(unquote, secrets)} - {""}, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def told(arguments: Iterable[str]) -> list[str]:
    """A command's arguments as a result may keep them: URLs as `hidden` shows them."""
    found = []
    for argument in arguments:
        option, mark, value = argument.partition("=")
        if mark and option.startswith("--"):
            found.append(f"{option}={hidden(value)}")
        else:
            found.append(hidden(argument))
    return found
