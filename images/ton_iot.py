"""TON_IoT telemetry as images: windows of consecutive rows, merged over the devices on time.

The data: Alsaedi, Moustafa, Tari, Mahmood and Anwar, "TON_IoT telemetry dataset", IEEE Access 2020;
seven files ``Train_Test_IoT_*.csv``, one a device. How Rajasekar et al. (arXiv:2404.07437) made
pictures of it is not public; this conversion is ours:

- Rows of all devices are sorted by time. A row carries the latest values of every device, so that
  its columns are all features of all devices; nothing is carried over the start of a block.
- The timeline is parted into blocks of `BLOCK` rows; a block goes to train, validation or test as a
  whole, and its first window is left out, so that near-duplicate windows never straddle the split.
- A window is `ROWS` consecutive rows of one class. Columns are scaled to [0, 1] by minimum and
  maximum over the training rows (constant columns give 0.5, values outside are clipped); rows are
  time, columns are features; the picture is scaled bilinearly and its three channels are equal.

Files that passed through a spreadsheet are read too: semicolons or tabs, decimal commas, a column
of row numbers, names in any case; their dates: `dates`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..errors import DataError, UsageError
from ..printable import printable
from . import dates

if TYPE_CHECKING:
    import pandas as pd

PREFIX = "ton-iot:"
DEVICES = (
    "Fridge",
    "GPS_Tracker",
    "Garage_Door",
    "Modbus",
    "Motion_Light",
    "Thermostat",
    "Weather",
)
CLASSES = (
    "normal",
    "backdoor",
    "ddos",
    "injection",
    "password",
    "ransomware",
    "scanning",
    "xss",
)
ROWS = 32  # rows a window
BLOCK = 512  # rows a time block
PARTS = ("train", "validation", "test")
_WORDS = {
    "true": 1.0,
    "false": 0.0,
    "on": 1.0,
    "off": 0.0,
    "open": 1.0,
    "closed": 0.0,
    "high": 1.0,
    "low": 0.0,
}


@dataclass
class Counts:
    """What was read, and what was odd about it.

    Attributes:
        rows: Rows by device.
        missing_files: Devices without a file.
        bom, padded: Files that begin with a byte order mark; cells with stray blanks around them.
        bad_time, bad_class, bad_value: Rows left out for a time that is none, an unknown class, or
            a value that is neither a number nor a known word.
        undated: Rows left out for the time, by device.
        formats: Rows by the shape of their date, digits as 9 and letters as a.
        mixed, repeated: Windows left out for holding several classes, or for repeating another.
    """

    rows: dict[str, int] = field(default_factory=dict)
    missing_files: list[str] = field(default_factory=list)
    bom: int = 0
    padded: int = 0
    bad_time: int = 0
    bad_class: int = 0
    bad_value: int = 0
    undated: dict[str, int] = field(default_factory=dict)
    formats: dict[str, int] = field(default_factory=dict)
    mixed: int = 0
    repeated: int = 0

    def notes(self) -> list[str]:
        """All counts, for whoever asks."""
        devices = ", ".join(f"{n} {d}" for d, n in self.rows.items())
        dates = ", ".join(f"{n} like {shape}" for shape, n in self.formats.items())
        return [
            f"{sum(self.rows.values())} rows: {devices}",
            f"files with a byte order mark: {self.bom}; cells with stray blanks: {self.padded}",
            f"dates: {dates}",
            f"rows left out: {self.bad_time} for the time, {self.bad_class} for the class, "
            f"{self.bad_value} for a value",
            f"windows left out: {self.mixed} of several classes, {self.repeated} repeated",
        ]

    def warnings(self) -> list[str]:
        """What a result must say."""
        found = []
        if self.missing_files:
            found.append(f"TON_IoT files are missing: {', '.join(self.missing_files)}")
        left = {"time": self.bad_time, "class": self.bad_class, "value": self.bad_value}
        if any(left.values()):
            why = ", ".join(f"{n} for the {what}" for what, n in left.items() if n)
            if self.undated:
                shares = (f"{n} of {self.rows[d]} in {d}" for d, n in self.undated.items())
                why += f" (times: {', '.join(shares)})"
            found.append(f"{sum(left.values())} telemetry rows were left out: {why}")
        return found


@dataclass(frozen=True)
class Windows:
    """Windows of one part.

    Attributes:
        values: In [0, 1], float32, shape (N, ROWS, features).
        classes: Index into `CLASSES`, shape (N,).
        starts: Time of the first row, numpy datetime64, shape (N,).
    """

    values: np.ndarray
    classes: np.ndarray
    starts: np.ndarray


@dataclass(frozen=True)
class Telemetry:
    """The windows by part, in time order, with the names of their columns."""

    parts: dict[str, Windows]
    features: list[str]
    counts: Counts


def read(folder: Path, shares: tuple[float, float, float], seed: int = 0) -> Telemetry:
    """Read the files, merge them on time, part the blocks and cut them into windows.

    Args:
        folder: Where the ``Train_Test_IoT_*.csv`` files are.
        shares: Of train, validation and test, in any unit.
        seed: Decides which block goes where.

    Raises:
        UsageError: `folder` is no folder, or pandas is not installed.
        DataError: No telemetry file in it, no usable row, or dates of unknown order.
    """
    if not folder.is_dir():
        raise UsageError(
            f"`data` got {PREFIX + str(folder)!r}, which is no folder; give ton-iot:FOLDER with "
            "the Train_Test_IoT_*.csv files"
        )
    counts = Counts()
    tables = {}
    named = _files(folder)
    for device in DEVICES:
        path = named.get(f"train_test_iot_{device}.csv".lower())
        if path is not None:
            tables[device] = _device(path, device, counts)
        else:
            counts.missing_files.append(device)
    if not tables:
        below = sorted(folder.glob("*/[Tt]rain_[Tt]est_*.csv"))
        where = f" ({str(below[0].parent)!r} has some)" if below else ""
        like = [n for n in sorted(named) if n.startswith("train_test_")]
        where = where or (f" (but {printable(like[0])}: unpack it)" if like else "")
        raise DataError(
            f"`data` got {PREFIX + str(folder)!r}, where no Train_Test_IoT_*.csv file is{where}; "
            "give the folder of the TON_IoT telemetry files"
        )
    times, classes, values, features = _merge(tables)
    if len(times) < 3 * BLOCK:
        raise DataError(
            f"`data` got {PREFIX + str(folder)!r} with {len(times)} usable rows; at least "
            f"{3 * BLOCK} are needed"
        )
    part_of_block = _assign(classes, shares, seed)
    block = np.arange(len(times)) // BLOCK
    values = _carried(values, block)
    scaled = _scaled(values, part_of_block[block] == 0)
    return Telemetry(_windows(scaled, classes, times, part_of_block, counts), features, counts)


def balanced(classes: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Indices of at most `count` windows, the classes by turns until each is used up."""
    order = rng.permutation(len(classes))
    turn = np.empty(len(classes), int)
    for c in np.unique(classes):
        own = order[classes[order] == c]
        turn[own] = np.arange(len(own))
    position = np.argsort(order)
    return np.lexsort((position, turn))[:count]


def to_images(values: np.ndarray, side: int, batch: int = 64) -> np.ndarray:
    """Windows (N, ROWS, features) in [0, 1] to uint8 pictures (N, 3, side, side)."""
    out = np.empty((len(values), 3, side, side), np.uint8)
    for start in range(0, len(values), batch):
        part = torch.from_numpy(np.ascontiguousarray(values[start : start + batch]))[:, None]
        large = torch.nn.functional.interpolate(
            part, (side, side), mode="bilinear", antialias=True, align_corners=False
        )
        out[start : start + batch] = (large.clamp(0, 1) * 255).round().byte().numpy()
    return out


def _files(folder: Path) -> dict[str, Path]:
    """Files by their name in lower case.

    Raises:
        DataError: Two of them differ in nothing else.
    """
    found: dict[str, Path] = {}
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        name = path.name.lower()
        if name in found and name.startswith("train_test_iot_"):
            raise DataError(f"{found[name].name} and {path.name} name one device; remove one")
        found[name] = path
    return found


def _device(path: Path, device: str, counts: Counts) -> pd.DataFrame:
    """Rows of one device: time, class, features prefixed with the device's name."""
    pandas = _pandas()
    with open(path, "rb") as file:
        head = file.readline(1 << 16)
    counts.bom += head.startswith(b"\xef\xbb\xbf")
    separator = max(",;\t", key=lambda c: head.count(c.encode()))  # the comma on a tie
    try:
        raw = pandas.read_csv(
            path, sep=separator, dtype=str, encoding="utf-8-sig", keep_default_na=False
        )
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name} is not UTF-8 ({error.reason}); save it as UTF-8") from None
    except ValueError as error:
        raise DataError(f"{path.name} is no CSV ({str(error)[:80]}); fetch it again") from None
    raw.columns = [str(c).strip().lower() for c in raw.columns]
    lacking = {"date", "time", "type"} - set(raw.columns)
    if lacking:
        raise DataError(
            f"{path.name} lacks the column {', '.join(sorted(lacking))}; fetch it again"
        )
    counts.rows[device] = len(raw)
    clean = raw.apply(lambda column: column.str.strip())
    counts.padded += int((clean != raw).to_numpy().sum())
    shapes = clean["date"].str.replace(r"\d", "9", regex=True)
    for shape, n in shapes.str.replace(r"[A-Za-z]", "a", regex=True).value_counts().items():
        counts.formats[str(shape)] = counts.formats.get(str(shape), 0) + int(n)
    when = _times(clean["date"] + " " + clean["time"], path.name)
    if len(raw) and when.isna().all():
        first = f"{clean['date'].iloc[0]} {clean['time'].iloc[0]}"[:40]
        raise DataError(
            f"{path.name} has no date and time that can be read (the first: {first!r}); write "
            "dates as YYYY-MM-DD and times as HH:MM:SS"
        )
    known = clean["type"].str.lower().isin(CLASSES)
    known_columns = ("date", "time", "label", "type", "ts")
    # A column without a name holds row numbers, which would show as a ramp in every picture.
    names = [c for c in clean.columns if c not in known_columns and not _is_unnamed(c)]
    cells = clean[names]
    points = cells.apply(lambda c: c.str.contains(".", regex=False))
    if separator == ";" and not points.any(axis=None):  # where numbers have decimal commas
        cells = cells.apply(lambda c: c.str.replace(",", ".", regex=False))
    numbers = cells.apply(_numbers)
    usable = numbers.notna().all(axis=1)
    if undated := int(when.isna().sum()):
        counts.bad_time += undated
        counts.undated[device] = undated
    counts.bad_class += int((when.notna() & ~known).sum())
    counts.bad_value += int((when.notna() & known & ~usable).sum())
    keep = when.notna() & known & usable
    table = numbers[keep].add_prefix(f"{device.lower()}.")
    table.insert(0, "class", clean["type"][keep].str.lower().map(CLASSES.index))
    table.insert(0, "time", when[keep])
    return table


def _is_unnamed(column: str) -> bool:
    return not column or column.startswith("unnamed:")


def _times(text: pd.Series[Any], name: str = "the file") -> pd.Series[Any]:
    """Times of a file's dates, in the one order of day and month that all its rows allow."""
    return dates.times(text, name)


def _numbers(column: pd.Series[Any]) -> pd.Series[Any]:
    pandas = _pandas()
    words = column.str.lower().map(_WORDS)
    return pandas.to_numeric(column, errors="coerce").astype("float64").fillna(words)


def _merge(
    tables: dict[str, pd.DataFrame],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """All rows in time order; a row's other devices are not a number yet."""
    merged = _pandas().concat(tables.values(), ignore_index=True)
    merged = merged.sort_values("time", kind="stable")
    features = [c for c in merged.columns if c not in ("time", "class")]
    return (
        merged["time"].to_numpy(),
        merged["class"].to_numpy(int),
        merged[features].to_numpy(np.float64),
        features,
    )


def _assign(classes: np.ndarray, shares: tuple[float, float, float], seed: int) -> np.ndarray:
    """The part (0, 1, 2) of every block: blocks of each leading class are dealt by `shares`."""
    blocks = [classes[i : i + BLOCK] for i in range(0, len(classes), BLOCK)]
    # The rarest class that fills two windows decides, so that rare classes reach every part.
    common = np.bincount(classes, minlength=len(CLASSES))
    leading = []
    for block in blocks:
        here = np.bincount(block, minlength=len(CLASSES))
        candidates = [c for c in range(len(CLASSES)) if here[c] >= 2 * ROWS] or [int(here.argmax())]
        leading.append(min(candidates, key=lambda c: int(common[c])))
    rng = np.random.default_rng(seed)
    wanted = np.asarray(shares, float) / sum(shares)
    part = np.zeros(len(blocks), int)
    for c in sorted(set(leading)):
        own = rng.permutation([i for i, x in enumerate(leading) if x == c])
        dealt = np.zeros(3)
        for n, i in enumerate(own):
            # Whoever is furthest behind its share is next; test before validation on a tie.
            behind = wanted * (n + 1) - dealt
            part[i] = 2 - int(behind[::-1].argmax())
            dealt[part[i]] += 1
    return part


def _carried(values: np.ndarray, block: np.ndarray) -> np.ndarray:
    """Every device's latest values, within the block; before its first row there, its first."""
    frame = _pandas().DataFrame(values)
    grouped = frame.groupby(block)
    return np.asarray(grouped.ffill().fillna(grouped.bfill()).to_numpy())


def _scaled(values: np.ndarray, training: np.ndarray) -> np.ndarray:
    """Min-max by the training rows; what a block does not know is 0.5."""
    seen = np.where(np.isfinite(values[training]), values[training], np.nan)
    known = np.isfinite(seen).any(0)
    low, high = np.zeros(values.shape[1]), np.zeros(values.shape[1])
    low[known], high[known] = np.nanmin(seen[:, known], 0), np.nanmax(seen[:, known], 0)
    spread = high - low
    scaled = np.where(spread > 0, (values - low) / np.where(spread > 0, spread, 1.0), 0.5)
    return np.asarray(np.clip(np.nan_to_num(scaled, nan=0.5), 0, 1), np.float32)


def _windows(
    scaled: np.ndarray,
    classes: np.ndarray,
    times: np.ndarray,
    part_of_block: np.ndarray,
    counts: Counts,
) -> dict[str, Windows]:
    found: dict[str, list[tuple[np.ndarray, int, Any]]] = {p: [] for p in PARTS}
    seen: set[bytes] = set()
    for block, part in enumerate(part_of_block):
        first = block * BLOCK
        for start in range(first + ROWS, min(first + BLOCK, len(classes)) - ROWS + 1, ROWS):
            rows = slice(start, start + ROWS)
            if (classes[rows] != classes[start]).any():
                counts.mixed += 1
                continue
            digest = (scaled[rows] * 255).round().astype(np.uint8).tobytes()
            if digest in seen:
                counts.repeated += 1
                continue
            seen.add(digest)
            found[PARTS[part]].append((scaled[rows], int(classes[start]), times[start]))
    width = scaled.shape[1]
    return {
        part: Windows(
            np.stack([w[0] for w in ws]) if ws else np.empty((0, ROWS, width), np.float32),
            np.array([w[1] for w in ws], int),
            np.array([w[2] for w in ws], "datetime64[s]"),
        )
        for part, ws in found.items()
    }


def _pandas() -> Any:
    try:
        import pandas
    except ImportError:
        raise UsageError(
            f"`data` got {PREFIX}..., which needs pandas; pip install 'partopt[ton-iot]'"
        ) from None
    return pandas
