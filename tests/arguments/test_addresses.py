"""HOST:PORT in all the ways in which people write it."""

import pytest

from partopt.arguments.addresses import address, numeric, shown
from partopt.errors import UsageError


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("127.0.0.1:7600", ("127.0.0.1", 7600)),
        ("localhost:0", ("localhost", 0)),
        ("[::1]:7600", ("::1", 7600)),
        (":7600", ("127.0.0.1", 7600)),
    ],
)
def test_what_is_meant(text, wanted):
    assert address("listen", text) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7600",
        "host",
        "host:",
        "host:x",
        "host:70000",
        "::1:7600",
        "[::1:7600",
        "[]:1",
        "h:\u00b2",
    ],
)
def test_what_means_nothing(text):
    with pytest.raises(UsageError, match=r"`listen` got .*HOST:PORT"):
        address("listen", text)


def test_an_enclave_gets_numbers():
    assert numeric("listen", "localhost:7600") == ("127.0.0.1", 7600)
    assert numeric("listen", "[::1]:7600") == ("::1", 7600)
    with pytest.raises(UsageError, match="has no address"):
        numeric("listen", "no-such-host.invalid:7600")


def test_what_is_shown_can_be_given():
    for place in (("127.0.0.1", 7600), ("::1", 7600)):
        assert address("connect", shown(*place)) == place
