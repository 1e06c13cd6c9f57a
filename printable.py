"""Text of unknown origin as text that a terminal, a page and JSON take as it stands.

Names of files, models, cuts and layers may hold anything: escape codes that recolour a terminal or
move its cursor, marks that reverse the direction of writing, bytes that are no UTF-8 (which Python
keeps as lone surrogates, and which no encoder takes).
"""

from __future__ import annotations

from typing import Any


def printable(text: str, keep: str = "") -> str:
    r"""Write every character that has no glyph as an escape, but those in `keep`.

    >>> printable("a\x1b[31m\u202e\udcff")
    'a\\x1b[31m\\u202e\\xff'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else _escape(c) for c in text)


def encodable(text: str) -> str:
    """Escape only what no encoder takes: bytes of file names that are no UTF-8."""
    if text.isascii():
        return text
    return "".join(_escape(c) if "\ud800" <= c <= "\udfff" else c for c in text)


def each(value: Any, change: Any) -> Any:
    """`change` every string in nested dicts, lists and tuples, keys included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {each(k, change): each(v, change) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(each(v, change) for v in value)
    return value


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that was no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()
