"""Day and month are told apart once a file, by all its rows, or not at all."""

from __future__ import annotations

import pytest

from partopt.errors import DataError

pandas = pytest.importorskip("pandas")
from partopt.images.dates import times  # noqa: E402

TRUE = pandas.date_range("2019-04-27 12:00", periods=10, freq="24h")


def read(rows):
    return times(pandas.Series(list(rows), dtype=object), "F.csv")


@pytest.mark.parametrize("separator", ["/", "-", "."])
@pytest.mark.parametrize("year", ["%Y", "%y"])
@pytest.mark.parametrize("order", ["%d{0}%m{0}{1}", "%m{0}%d{0}{1}"])
def test_one_number_above_twelve_decides_for_all_rows(separator, year, order):
    found = read(TRUE.strftime(order.format(separator, year) + " %H:%M:%S"))
    assert (found == TRUE).all()


@pytest.mark.parametrize(
    "text",
    [
        "2019-04-05 10:00:00",
        "2019-04-05T10:00:00",
        "2019-04-05T10:00:00Z",
        "2019/4/5 10:00",
        "20190405 10:00:00",
        "5-Apr-19 10:00:00",
        "05 April 2019 10:00:00",
        "Apr 5, 2019 10:00",
        "2019-04-05T10:00:00 10:00:00",
        "2019-04-05 00:00:00 10:00:00",
        "2019-04-05 10:00:00 AM",
        "2019-04-05 10:00:00+00:00",
    ],
)
def test_dates_that_can_be_read_one_way(text):
    assert read([text])[0] == pandas.Timestamp("2019-04-05 10:00")


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "not a date 10:00:00",
        "2019-27-04 10:00:00",
        "2019-04-31 10:00:00",
        "13/13/2019 10:00:00",
        "04/04/2019",
        "04/04/2019 25:00:00",
        "Sat 04/05/2019 10:00:00",
        "2019-04-05T10:00:00+10:00",
        "2019-04-05T10:00:00 11:00:00",
        "4/5 10:00",
        "1556186400 1:00",
        "4/5-2019 10:00:00",
        "25042019 10:00:00",
    ],
)
def test_what_is_no_time_is_none(text):
    assert read([text]).isna().all()


def test_the_order_of_rows_decides_where_no_number_does():
    assert read(["11/04/2019 1:00", "12/04/2019 1:00", "01/05/2019 1:00"])[2].month == 5
    assert read(["04/11/2019 1:00", "04/12/2019 1:00", "05/01/2019 1:00"])[2].month == 5


def test_rows_of_another_shape_decide_too():
    known = ["01-Apr-19 1:00", "03/04/2019 1:00", "2019-04-06 1:00"]
    assert read(known)[1] == pandas.Timestamp("2019-04-03 1:00")
    other = ["01-Mar-19 1:00", "03/04/2019 1:00", "2019-03-06 1:00"]
    assert read(other)[1] == pandas.Timestamp("2019-03-04 1:00")


def test_the_same_number_twice_needs_no_decision():
    assert read(["04/04/2019 1:00"])[0] == pandas.Timestamp("2019-04-04 1:00")


@pytest.mark.parametrize(
    "rows",
    [
        ["04/05/2019 1:00"],
        ["01/04/2019 1:00", "02/04/2019 1:00"],  # forward in both readings
        ["03/02/2019 1:00", "01/04/2019 1:00", "02/03/2019 1:00", "01/01/2019 1:00"],  # in neither
    ],
)
def test_what_cannot_be_told_is_refused(rows):
    with pytest.raises(DataError, match=r"F\.csv .*no row tells.*YYYY-MM-DD"):
        read(rows)


def test_contradictions_are_refused():
    with pytest.raises(DataError, match=r"day first \(1, like 25/04/2019\).*month first \(2, like"):
        read(["25/04/2019 1:00", "04/26/2019 1:00", "04-27-2019 1:00"])


def test_a_short_year_that_may_stand_first_is_refused():
    with pytest.raises(DataError, match="year may stand first or last"):
        read(["19-04-25 1:00", "19-04-26 1:00"])
