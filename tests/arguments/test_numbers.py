import math

import pytest

from partopt.arguments import numbers as arguments
from partopt.errors import UsageError


def test_ranges_are_named():
    arguments.whole("batch", None, 1)
    arguments.whole("batch", 1, 1)
    with pytest.raises(UsageError, match=r"`batch` got 0; use 1 or more"):
        arguments.whole("batch", 0, 1)
    with pytest.raises(UsageError, match=r"`input_size` got 1; use 16 to 4096"):
        arguments.whole("input_size", 1, *arguments.SIZES)
    for wrong in (0, -3, 100_000):
        with pytest.raises(UsageError, match=rf"`threads` got {wrong}; use 1 to \d+ .* cores"):
            arguments.threads(wrong)
    for wrong in (-1, 2**32):
        with pytest.raises(UsageError, match=r"`seed` got .*; use 0 to 4294967295"):
            arguments.seed(wrong)
    for value in (0, -1.0, math.nan, math.inf):
        with pytest.raises(UsageError, match="above 0"):
            arguments.above_zero("feature_cache", value, "GiB")


def test_names_are_trimmed_and_each_comes_once():
    assert arguments.names("attackers", "linear, decoder") == ["linear", "decoder"]
    assert arguments.names("attackers", ["linear"]) == ["linear"]
    assert arguments.names("attackers", None) is None
    for wrong in ("", "linear,", ",linear", "a,,b", []):
        with pytest.raises(UsageError, match="name is empty"):
            arguments.names("attackers", wrong)
    with pytest.raises(UsageError, match="`attackers` got 'linear' twice"):
        arguments.names("attackers", "linear,linear")
