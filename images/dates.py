"""Times of telemetry files: which number of a date is the day is decided once a file.

A date with the month's name, or with four digits of the year first, can be read one way. Of
``04/05/2019`` no row alone tells. All rows of the file do: a number above 12 is a day; failing
that, the order of the rows, if the dates go forward in time in one reading only. What stays open,
or is contradictory, is refused: half the days of a file read the wrong way round would tear its
time blocks apart. A year of two digits stands last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import DataError

if TYPE_CHECKING:
    import pandas as pd

# Three numbers, then the time of day; the same separator twice.
_NUMBERS = r"^(\d{1,4})([-/.])(\d{1,2})\2(\d{4}|\d{1,2})(?!\d)[T ]*(.*)$"
_COMPACT = r"^((?:19|20)\d{2})(\d{2})(\d{2})(?!\d)[T ]*(.*)$"
_NAMED = r"(?i)(?<![a-z])(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*"
# Spreadsheets store a date as midnight of the day.
_TWICE = r"^(?:00?:00(?::00(?:\.0+)?)?|12:00(?::00)? ?AM) *Z?[ ]+(?=\d)"
_HINT = "write its dates as YYYY-MM-DD"


def times(text: pd.Series[Any], name: str) -> pd.Series[Any]:
    """Times (datetime64, NaT where there is none) of a file's dates, each with its time of day.

    Args:
        text: A date, a blank and a time of day a row, in the file's order.
        name: The file's, for messages.

    Raises:
        DataError: The order of day and month contradicts itself, or cannot be told.
    """
    pandas = _pandas()
    text = text.astype(object)
    parts = text.str.extract(_NUMBERS)
    numbers = pandas.DataFrame({k: pandas.to_numeric(parts[k]) for k in (0, 2, 3)})
    numbers.columns = ["a", "b", "c"]
    clock = parts[4].fillna("")
    year_first = parts[0].str.len() >= 3
    numeric = numbers["a"].notna() & ~year_first

    compact = text.str.extract(_COMPACT)
    is_compact = compact[0].notna()
    clock = clock.where(~is_compact, compact[3])

    iso = pandas.Series("", index=text.index, dtype=object)
    iso = iso.where(~year_first, _iso(numbers["a"], numbers["b"], numbers["c"]))
    iso = iso.where(~is_compact, _iso(*(pandas.to_numeric(compact[k]) for k in range(3))))
    named = (iso == "") & ~numeric & text.str.contains(_NAMED)
    found = _parsed(iso, clock)
    found[named] = pandas.to_datetime(
        text[named], format="mixed", dayfirst=True, errors="coerce"
    ).astype(found.dtype)
    if numeric.any():
        read = _decided(numbers, parts[3].str.len() == 4, numeric, found, name)
        found[numeric] = _parsed(read[numeric], clock[numeric])
    return found


def _decided(
    numbers: pd.DataFrame,
    long_year: pd.Series[Any],
    numeric: pd.Series[Any],
    known: pd.Series[Any],
    name: str,
) -> pd.Series[Any]:
    """ISO dates of the numeric rows, in the one reading that the file allows."""
    first, second, year = (numbers[k] for k in ("a", "b", "c"))
    short = numeric & ~long_year
    if first[short].nunique() < year[short].nunique():
        raise DataError(
            f"{name} has dates like {_example(numbers, short)} in which the year may stand first "
            f"or last; {_HINT}"
        )
    # The pivot of the C library: 69 is 1969, 68 is 2068.
    year = year.where(long_year, year + 1900 + 100 * (year < 69))
    readings = {
        "day first": _iso(year, second, first),
        "month first": _iso(year, first, second),
    }
    day_first = numeric & (first > 12) & (second <= 12)
    month_first = numeric & (second > 12) & (first <= 12)
    if day_first.any() and month_first.any():
        raise DataError(
            f"{name} has dates with the day first ({int(day_first.sum())}, like "
            f"{_example(numbers, day_first)}) and with the month first "
            f"({int(month_first.sum())}, like {_example(numbers, month_first)}); {_HINT}"
        )
    if day_first.any() or month_first.any():
        return readings["day first" if day_first.any() else "month first"]
    open_rows = numeric & (first != second) & (first <= 12) & (second <= 12)
    if not open_rows.any():
        return readings["day first"]
    forward = [
        reading
        for reading in readings.values()
        if _goes_forward(reading.where(numeric, known.dt.strftime("%Y-%m-%d")))
    ]
    if len(forward) != 1:
        raise DataError(
            f"{name} has dates like {_example(numbers, open_rows)} which no row tells to begin "
            f"with the day or the month; {_HINT}"
        )
    return forward[0]


def _goes_forward(iso: pd.Series[Any]) -> bool:
    days = _pandas().to_datetime(iso, format="%Y-%m-%d", errors="coerce").dropna()
    return bool(days.is_monotonic_increasing)


def _example(numbers: pd.DataFrame, rows: pd.Series[Any]) -> str:
    return "/".join(f"{int(v):02d}" for v in numbers[rows].iloc[0])


def _iso(year: pd.Series[Any], month: pd.Series[Any], day: pd.Series[Any]) -> pd.Series[Any]:
    """Dates as YYYY-MM-DD, empty where the numbers can be none."""
    good = month.between(1, 12) & day.between(1, 31) & year.between(1677, 2262)
    digits = [
        n.where(good, 0).astype(int).astype(str).str.zfill(width)
        for n, width in ((year, 4), (month, 2), (day, 2))
    ]
    return (digits[0] + "-" + digits[1] + "-" + digits[2]).where(good, "")


def _parsed(iso: pd.Series[Any], clock: pd.Series[Any]) -> pd.Series[Any]:
    """Times of dates as YYYY-MM-DD and times of day; NaT where there is either not."""
    pandas = _pandas()
    clock = clock.str.strip().str.replace(_TWICE, "", regex=True)
    clock = clock.str.replace(r" *(?:Z|\+00:?00)$", "", regex=True)
    clock = clock.str.replace(r"^(\S+) +\1$", r"\1", regex=True)  # in both columns
    good = (iso != "") & clock.str.match(r"(?i)\d{1,2}:\d{2}(?::\d{2}(?:\.\d+)?)?(?: ?[ap]m)?$")
    found = pandas.Series(pandas.NaT, index=iso.index, dtype="datetime64[ns]")
    found[good] = pandas.to_datetime(
        iso[good] + " " + clock[good], format="mixed", errors="coerce"
    ).astype(found.dtype)
    return found


def _pandas() -> Any:
    import pandas

    return pandas
