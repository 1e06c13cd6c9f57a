import os
import stat

import pytest

from partopt.enclave_runner.program.sealing import (
    derive,
    new_key,
    read_key,
    seal,
    unseal,
    write_key,
)
from partopt.errors import BundleError

MIB = 1 << 20


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1, 3 * MIB])
def test_what_was_sealed_opens(size):
    key, data = new_key(), os.urandom(size)
    sealed = seal(data, key, "w")
    assert unseal(sealed, key, "w") == data
    if size > 64:
        assert data[:32] not in sealed


@pytest.mark.parametrize("damage", ["key", "name", "flip", "cut", "swap", "drop", "magic", "empty"])
def test_nothing_else_opens(damage):
    key, data = new_key(), os.urandom(3 * MIB)
    sealed, name = bytearray(seal(data, key, "w")), "w"
    chunk, start = MIB + 16, 40
    if damage == "key":
        key = new_key()
    elif damage == "name":
        name = "v"
    elif damage == "flip":
        sealed[len(sealed) // 2] ^= 1
    elif damage == "cut":
        sealed = sealed[:-1]
    elif damage == "swap":
        a, b = sealed[start : start + chunk], sealed[start + chunk : start + 2 * chunk]
        sealed[start : start + 2 * chunk] = b + a
    elif damage == "drop":  # whole chunks from the end
        sealed = sealed[: start + 2 * chunk]
    elif damage == "magic":
        sealed[0] ^= 1
    else:
        sealed = bytearray()
    with pytest.raises(BundleError):
        unseal(bytes(sealed), key, name)


def test_two_seals_of_the_same_differ():
    key = new_key()
    assert seal(b"same", key, "w") != seal(b"same", key, "w")


def test_derived_keys_depend_on_purpose_and_salt():
    key = new_key()
    assert len({derive(key, "a"), derive(key, "b"), derive(key, "a", salt=b"s"), key}) == 4
    assert len(derive(key, "a", 16)) == 16


def test_key_files(tmp_path):
    path, key = tmp_path / "k", new_key()
    write_key(path, key)
    assert read_key(path) == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(FileExistsError):
        write_key(path, key)
    (tmp_path / "bad").write_text("zz")
    for name in ("bad", "none"):
        with pytest.raises(BundleError, match="`key` got"):
            read_key(tmp_path / name)
