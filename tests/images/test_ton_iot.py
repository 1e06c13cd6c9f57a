"""TON_IoT telemetry: odd rows are counted, windows never straddle the split, features stay true."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from partopt import cli, settings
from partopt.errors import DataError, UsageError
from partopt.images import ton_iot
from partopt.images.load import Split, load_images
from partopt.preprocessing import Preprocessing
from partopt.reporting import samples

pytest.importorskip("pandas")
HOW = Preprocessing(32, 36)
# Three ways in which dates stand in the files, and in files that passed through a spreadsheet.
DATES = ("{:%d-%b-%y}", "{:%Y-%m-%d}", "{:%d/%m/%Y}")


def write(folder, device, columns, rows, bom=False):
    lines = [f"date,time,{','.join(columns)},label,type"]
    lines += [",".join(map(str, row)) for row in rows]
    text = "\n".join(lines) + "\n"
    path = folder / f"Train_Test_IoT_{device}.csv"
    path.write_bytes((b"\xef\xbb\xbf" if bom else b"") + text.encode())


@pytest.fixture
def folder(tmp_path):
    """Two devices, 4,800 rows each, four classes in long runs, and some odd rows."""
    rng = np.random.default_rng(0)
    start = np.datetime64("2019-04-01T00:00:00")
    kinds = np.repeat(["normal", "ddos", "xss", "normal", "scanning", "ddos"], 800)
    fridge, weather = [], []
    for i, kind in enumerate(kinds):
        when = (start + np.timedelta64(10 * i, "s")).item()
        date, clock = DATES[i % 3].format(when), f" {when:%H:%M:%S} "
        state = ["high", " low "][i % 2]
        fridge.append(
            (date, clock, round(rng.uniform(0, 15), 3), state, int(kind != "normal"), kind)
        )
        later = (start + np.timedelta64(10 * i + 5, "s")).item()
        heat = round(20 + 10 * np.sin(i / 40) + rng.normal(), 4)
        weather.append((f"{later:%d-%b-%y}", f"{later:%H:%M:%S}", heat, 1, kind))
    fridge[10] = ("not a date", "", 3.0, "high", 0, "normal")
    fridge[20] = (*fridge[20][:5], "worm")
    fridge[30] = (*fridge[30][:2], "?", *fridge[30][3:])
    columns = ["fridge_temperature", "temp_condition"]
    write(tmp_path, "Fridge", columns, fridge, bom=True)
    write(tmp_path, "Weather", ["temperature"], weather)
    return tmp_path


def test_what_is_odd_is_counted(folder):
    counts = ton_iot.read(folder, (6, 2, 2)).counts
    assert counts.rows == {"Fridge": 4800, "Weather": 4800}
    assert (counts.bom, counts.bad_time, counts.bad_class, counts.bad_value) == (1, 1, 1, 1)
    assert counts.padded >= 4800
    assert "Modbus" in counts.missing_files
    assert {"99-aaa-99", "9999-99-99", "99/99/9999"} <= counts.formats.keys()
    text = "; ".join(counts.warnings())
    assert "missing: GPS_Tracker" in text
    assert "3 telemetry rows were left out" in text


def test_dates_are_read_day_first(folder):
    windows = ton_iot.read(folder, (6, 2, 2)).parts
    starts = np.concatenate([w.starts for w in windows.values()])
    assert starts.min() >= np.datetime64("2019-04-01")
    assert starts.max() < np.datetime64("2019-04-02")


def test_no_window_of_one_block_is_in_two_parts(folder):
    windows = ton_iot.read(folder, (6, 2, 2)).parts
    assert all(len(w.classes) for w in windows.values())
    spans = []
    for part, w in windows.items():
        spans += [(start, part) for start in w.starts]
    spans.sort()
    window = np.timedelta64(5 * ton_iot.ROWS, "s")  # a row every five seconds
    for (a, one), (b, two) in pairwise(spans):
        if one != two:
            assert b - a >= 2 * window, "a window is left out between parts"


def test_columns_are_scaled_by_training_rows_only(folder):
    train = ton_iot.read(folder, (6, 2, 2)).parts["train"].values
    assert train.shape[1:] == (ton_iot.ROWS, 3)
    assert train.min() == 0
    assert train.max() == 1
    assert set(np.unique(train[..., 1])) == {0.0, 1.0}, "high and low"


def test_repeated_windows_are_left_out(folder):
    text = (folder / "Train_Test_IoT_Weather.csv").read_text().splitlines()
    (folder / "Train_Test_IoT_Fridge.csv").unlink()
    still = [",".join([*line.split(",")[:2], "20.0", *line.split(",")[3:]]) for line in text[1:]]
    (folder / "Train_Test_IoT_Weather.csv").write_text("\n".join([text[0], *still]) + "\n")
    found = ton_iot.read(folder, (6, 2, 2))
    assert sum(len(w.classes) for w in found.parts.values()) == 1
    assert found.counts.repeated > 50


def test_images_of_all_classes_and_the_same_ones_again(folder):
    images = load_images(f"ton-iot:{folder}", HOW, Split(60, 16, 16), minimum=20)
    assert images.images.shape == (92, 3, 32, 32)
    assert (images.images[:, 0] == images.images[:, 1]).all()
    train = [samples.class_of(n) for n in images.names[:60]]
    assert {c: train.count(c) for c in set(train)} == dict.fromkeys(
        ("normal", "ddos", "xss", "scanning"), 15
    )
    assert images.source.startswith("ton-iot: ")
    again = load_images(f"ton-iot:{folder}", HOW, Split(60, 16, 16), minimum=20)
    assert again.digest == images.digest
    other = load_images(f"ton-iot:{folder}", HOW, Split(60, 16, 16), minimum=20, seed=1)
    assert other.digest != images.digest


def test_rows_are_time_and_columns_are_features():
    ramp = np.zeros((1, ton_iot.ROWS, 4), np.float32)
    ramp[0, :, 2] = np.linspace(0, 1, ton_iot.ROWS)
    image = ton_iot.to_images(ramp, 64)[0, 0].astype(int)
    assert (image[:, :16] == 0).all()
    assert (np.diff(image[:, 40]) >= 0).all()
    assert image[-1, 40] > 230


def test_clear_errors(folder, tmp_path_factory):
    with pytest.raises(UsageError, match="no folder"):
        load_images("ton-iot:/nowhere", HOW, Split(6, 2, 2))
    with pytest.raises(DataError, match=r"no Train_Test_IoT_\*\.csv"):
        load_images(f"ton-iot:{tmp_path_factory.mktemp('empty')}", HOW, Split(6, 2, 2))
    write(folder, "Weather", ["temperature"], [])
    text = (folder / "Train_Test_IoT_Weather.csv").read_text().replace("type", "kind")
    (folder / "Train_Test_IoT_Weather.csv").write_text(text)
    with pytest.raises(DataError, match="lacks the column type"):
        load_images(f"ton-iot:{folder}", HOW, Split(6, 2, 2))


def whole(frame, folder, name="Train_Test_IoT_Fridge.csv", **how):
    folder.mkdir()
    frame.to_csv(folder / name, index=False, **how)
    return ton_iot.read(folder, (6, 2, 2))


def test_files_that_passed_through_a_spreadsheet_say_the_same(tmp_path):
    """One telemetry, in every shape in which it is passed around."""
    pandas = pytest.importorskip("pandas")
    n = 3 * ton_iot.BLOCK
    rng = np.random.default_rng(0)
    when = pandas.date_range("2019-04-28", periods=n, freq="5min")
    frame = pandas.DataFrame(
        {
            "date": when.strftime("%Y-%m-%d"),
            "time": when.strftime("%H:%M:%S"),
            "fridge_temperature": rng.normal(10, 3, n).round(3),
            "type": "normal",
        }
    )
    wanted = whole(frame, tmp_path / "plain")
    american = frame.assign(date=when.strftime("%m/%d/%Y"), time=when.strftime("%I:%M:%S %p"))
    upper = frame.rename(columns=str.upper)
    numbered = frame.reset_index().rename(columns={"index": ""})
    shapes = {
        "american": whole(american, tmp_path / "us"),
        "european": whole(
            frame.assign(date=when.strftime("%d.%m.%y")), tmp_path / "eu", sep=";", decimal=","
        ),
        "bom": whole(upper, tmp_path / "bom", encoding="utf-8-sig", lineterminator="\r\n"),
        "lower": whole(frame, tmp_path / "lower", name="train_test_iot_fridge.CSV"),
        "numbered": whole(numbered, tmp_path / "numbered"),
        "tabs": whole(frame, tmp_path / "tabs", sep="\t"),
    }
    for name, found in shapes.items():
        assert found.features == wanted.features, name
        for part, windows in wanted.parts.items():
            assert np.array_equal(found.parts[part].values, windows.values), (name, part)
            assert (found.parts[part].starts == windows.starts).all(), (name, part)


def test_undated_rows_are_named_by_device_and_a_file_of_them_is_refused(folder):
    warnings = ton_iot.read(folder, (6, 2, 2)).counts.warnings()
    assert any("(times: 1 of 4800 in Fridge)" in w for w in warnings)
    path = folder / "Train_Test_IoT_Weather.csv"
    path.write_text(path.read_text().replace("Apr", "Avril"))
    with pytest.raises(DataError, match=r"Weather\.csv has no date and time that can be read"):
        ton_iot.read(folder, (6, 2, 2))
    path.write_text(path.read_text().replace("01-Avril-19", "03/04/2019"))
    with pytest.raises(DataError, match=r"Weather\.csv has dates like 03/04/2019 which no row"):
        ton_iot.read(folder, (6, 2, 2))


def test_other_encodings_and_places_are_said(folder):
    path = folder / "Train_Test_IoT_Weather.csv"
    path.write_bytes(path.read_bytes().replace(b"temperature", b"temp\xe9rature"))
    with pytest.raises(DataError, match=r"Weather\.csv is not UTF-8"):
        ton_iot.read(folder, (6, 2, 2))
    (folder / "outer").mkdir()
    (folder / "outer" / "Train_Test_datasets").mkdir()
    path.rename(folder / "outer" / "Train_Test_datasets" / path.name)
    with pytest.raises(DataError, match="outer/Train_Test_datasets' has some"):
        ton_iot.read(folder / "outer", (6, 2, 2))


def test_the_data_command(folder, tmp_path, capsys):
    page = tmp_path / "samples.png"
    arguments = ["data", f"ton-iot:{folder}", "--preview", "--out", str(page), "--input-size", "48"]
    assert cli.run(arguments) == 0
    told = capsys.readouterr().out
    for word in ("scanning", "floor at 48x48", "stray blanks", "split by time block", "missing"):
        assert word in told
    with Image.open(page) as opened:
        assert opened.height == 4 * 100


def test_settings_keep_the_kind_of_data(tmp_path):
    (tmp_path / "partopt.toml").write_text('data = "ton-iot:telemetry"\n')
    assert settings.read(tmp_path / "partopt.toml").data == f"ton-iot:{tmp_path / 'telemetry'}"


@pytest.mark.shared_data
def test_the_real_files(shared):
    found = ton_iot.read(shared / "ton_iot", (256, 64, 80))
    assert sum(found.counts.rows.values()) == 261_119
    assert len(found.features) == 17
    for part in found.parts.values():
        assert set(part.classes) == set(range(8)), "every class in every part"
