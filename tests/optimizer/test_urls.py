import pytest

from partopt.errors import UsageError
from partopt.optimizer.urls import driven, hidden, hold_shared, named, scrubbed, told


@pytest.mark.parametrize(
    ("url", "shown", "name"),
    [
        ("postgresql://me:word@db.x/p", "postgresql://me:***@db.x/p", "db.x/p"),
        ("postgresql://me:wo@rd@db.x:5432/p", "postgresql://me:***@db.x:5432/p", "db.x:5432/p"),
        ("mysql+pymysql://me:word@db/p?ssl_key=k", "mysql+pymysql://me:***@db/p", "db/p"),
        ("postgresql://db/p?user=me&password=word", "postgresql://db/p", "postgresql://db/p"),
        ("postgresql://db/p?password=wo@rd", None, None),
        ("postgresql://me@db/p", "postgresql://me@db/p", "db/p"),
        ("sqlite:///here/a.db", "sqlite:///here/a.db", "sqlite:///here/a.db"),
        ("here/s.journal", "here/s.journal", "here/s.journal"),
    ],
)
def test_no_password_is_shown(url, shown, name):
    if shown is not None:
        assert (hidden(url), named(url)) == (shown, name)
    for text in (hidden(url), named(url), *told(["--storage", url, f"--storage={url}"])):
        assert "word" not in text
        assert "wo@rd" not in text
        assert not text.endswith("rd")


def test_other_arguments_stay_as_they_are():
    command = ["find", "--model", "a:b", "--concrete-args", "x=1", "--data=photos/a@b"]
    assert told(command) == command
    assert told(["--storage=mysql://a:b@c/d"]) == ["--storage=mysql://a:***@c/d"]


def test_what_a_driver_says_is_scrubbed():
    url = "postgresql://me:my%20word@db/p?sslpassword=other"
    said = "no: postgresql://me:my%20word@db, my word, other"
    assert scrubbed(said, url) == "no: postgresql://me:***@db, ***, ***"


def test_a_bare_scheme_gets_the_driver_that_is_installed():
    pytest.importorskip("psycopg")
    assert driven("postgresql://a/b") == driven("postgres://a/b") == "postgresql+psycopg://a/b"
    assert driven("postgresql+psycopg2://a/b") == "postgresql+psycopg2://a/b"
    assert driven("sqlite:///a") == "sqlite:///a"
    assert driven("a.journal") == "a.journal"


def test_jobs_are_not_taken_out_of_sqlite():
    for url in ("postgresql://a/b", "mysql+pymysql://a/b", "s.journal"):
        hold_shared(url)
    with pytest.raises(UsageError, match="two workers may take the same job"):
        hold_shared("sqlite:///a.db")
