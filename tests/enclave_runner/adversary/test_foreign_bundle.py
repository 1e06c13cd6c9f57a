"""A bundle, or a split config, that somebody else wrote: it runs nothing, and lies about nothing.

The attacker may change every file, and make every hash anew. They do not have the weights' key, nor
the key that a bundle is signed with.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import struct
import sys
from pathlib import Path

import pytest
import torch
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors.torch import load, save

from partopt import cli
from partopt.config import SplitConfig
from partopt.enclave_runner import launcher
from partopt.enclave_runner.bundles import signing
from partopt.enclave_runner.bundles.bundle import (
    FILE,
    NEEDS,
    Bundle,
    parts_of,
    read_bundle,
    sealed_file,
)
from partopt.enclave_runner.bundles.describing import hashed
from partopt.enclave_runner.bundles.export import Source, _splittable, export
from partopt.enclave_runner.bundles.needs import Needs, worker_of
from partopt.enclave_runner.bundles.resigning import sign_later
from partopt.enclave_runner.bundles.trust import SIGNATURE, hold_trusted, sign_bundle, signing_key
from partopt.enclave_runner.program.allowed import OPERATORS
from partopt.enclave_runner.program.loading import load_program
from partopt.enclave_runner.program.operators import operator_named
from partopt.enclave_runner.program.parts import WEIGHTS, WEIGHTS_OF, Part
from partopt.enclave_runner.program.programs import Program
from partopt.enclave_runner.program.sealing import seal, unseal
from partopt.errors import BackendError, BundleError, UsageError
from partopt.optimizer.check import check, check_all
from partopt.optimizer.policy import Policy

from ..conftest import ENGINE, opened

HEAD_WEIGHTS = WEIGHTS_OF[ENGINE]
HEAD_SEALED = sealed_file(ENGINE, "aes-256-gcm")


@pytest.fixture
def copy(made, tmp_path) -> Path:
    return made.copy(tmp_path / "b")


def edit(path: Path, change) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data, indent=2) + "\n")


def rehash(folder: Path, *, identity: bool = False) -> None:
    """What an attacker can do about hashes; with `identity`, about the bundle's identity too."""
    for role in ("head", "tail"):
        place = folder / role
        program = hashlib.sha256((place / "program.json").read_bytes()).hexdigest()
        edit(place / "spec.json", lambda d, p=program: d.update(program_sha256=p))
    weights = hashlib.sha256((folder / "tail" / WEIGHTS).read_bytes()).hexdigest()
    edit(folder / "tail" / "spec.json", lambda d: d.update(weights_sha256=weights))
    bundle = hashed(folder, Bundle.model_validate(json.loads((folder / FILE).read_text())))
    if identity:
        name = bundle.identified()
        edit(folder / "head" / "spec.json", lambda d: d.update(bundle=name))
        bundle = hashed(folder, bundle.model_copy(update={"identity": name}))
    bundle.write(folder)


# ---- which files there are


@pytest.mark.parametrize(
    "strange",
    [
        *("bundle.json", "../x", "/etc/passwd", "head/../tail/x", "head//spec.json", "./x", "head"),
        *("head.manifest", "head.manifest.template", "head/weights.safetensors", "head.sig", "x\n"),
    ],
)
def test_a_bundle_lists_its_own_files_and_no_others(copy, strange):
    read_bundle(copy)
    edit(copy / FILE, lambda d: d["files"].update({strange: "0" * 64}))
    with pytest.raises(BundleError, match="no file of a bundle"):
        read_bundle(copy)


def test_every_file_has_to_be_listed(copy):
    kept = (copy / FILE).read_text()
    names = list(json.loads(kept)["files"])
    assert len(names) > 9
    for gone in (names, *([n] for n in names)):
        edit(copy / FILE, lambda d, gone=gone: [d["files"].pop(n) for n in gone])
        with pytest.raises(BundleError, match="does not list"):
            read_bundle(copy)
        (copy / FILE).write_text(kept)


@pytest.mark.parametrize("name", ["tail/weights.safetensors", "tail", "head", FILE, "systemd"])
def test_nothing_of_a_bundle_is_a_link(copy, tmp_path, name):
    real = tmp_path / "elsewhere"
    os.rename(copy / name, real)
    (copy / name).symlink_to(real)
    with pytest.raises(BundleError, match="link"):
        read_bundle(copy)


def test_a_pipe_keeps_nobody_waiting(copy):
    for name in ("README.md", "head/spec.json", FILE):
        kept = (copy / name).read_bytes()
        (copy / name).unlink()
        os.mkfifo(copy / name)
        with pytest.raises(BundleError):
            read_bundle(copy)
        (copy / name).unlink()
        (copy / name).write_bytes(kept)
    read_bundle(copy)


def test_a_file_without_end_is_not_read(copy):
    with open(copy / "tail" / "program.json", "r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(BundleError, match="missing from the bundle or was changed"):
        read_bundle(copy)
    with pytest.raises(BundleError, match="more than"):
        load_program(copy / "tail", Part.read(copy / "tail"), None)


def test_an_older_bundle_is_told_apart_in_one_sentence(copy):
    edit(copy / FILE, lambda d: d.update(schema=1))
    with pytest.raises(BundleError, match=r"another version of partopt; export again$"):
        read_bundle(copy)
    edit(copy / "head" / "spec.json", lambda d: d.update(schema=1))
    with pytest.raises(BundleError, match=r"another version of partopt; export again$"):
        Part.read(copy / "head")


# ---- changed, with fresh hashes


def zeroed(folder):
    weights = load((folder / "tail" / WEIGHTS).read_bytes())
    (folder / "tail" / WEIGHTS).write_bytes(save({n: t * 0 for n, t in weights.items()}))


def swapped(role):
    def change(folder):
        path = folder / role / "program.json"
        text = path.read_text().replace("aten.relu.default", "aten.tanh.default")
        path.write_text(text.replace('"deviation": ', '"deviation": 9'))

    return change


def darker(folder):
    edit(folder / "head" / "spec.json", lambda d: d["preprocessing"].update(mean=[0.9, 0.9, 0.9]))


def answers_moved(folder):
    edit(folder / FILE, lambda d: d.update(model="another", warnings=[]))


def unit(folder):
    path = next((folder / "systemd").iterdir())
    path.write_text(path.read_text().replace("ExecStart=", "ExecStartPre=/bin/id\nExecStart="))


def needs(folder):
    edit(folder / NEEDS, lambda d: d.update(max_threads=d["max_threads"] + 1))


CHANGES = {
    "zeroed tail": zeroed,
    "tail's program": swapped("tail"),
    "head's program": swapped("head"),
    "preprocessing": darker,
    "bundle.json": answers_moved,
    "unit": unit,
    "enclave": needs,
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_was_changed_and_hashed_afresh_is_not_answered(made, copy, what):
    CHANGES[what](copy)
    rehash(copy)
    if what not in ("head's program", "preprocessing"):  # these are in the spec, not the identity
        with pytest.raises(BundleError, match="of two bundles"):
            read_bundle(copy)
    rehash(copy, identity=True)
    read_bundle(copy)
    with pytest.raises(BundleError, match=r"does not open: .*the bundle was changed since export"):
        opened(copy / "head", Part.read(copy / "head"), made.key)


def test_what_was_not_changed_opens(made, copy):
    rehash(copy, identity=True)
    opened(copy / "head", Part.read(copy / "head"), made.key)


def test_a_head_without_a_seal_is_none(made, copy):
    """The key proves whose head it is; one that opens without it proves nothing."""
    head = copy / "head"
    sealed = (head / HEAD_SEALED).read_bytes()
    plain = unseal(sealed, made.key, f"head/{HEAD_WEIGHTS}", Part.read(head).bound)
    (head / HEAD_WEIGHTS).write_bytes(plain)
    edit(head / "spec.json", lambda d: d.update(seal="none"))
    with pytest.raises(BundleError, match="no head as export writes it"):
        Part.read(head)


def test_the_weights_of_another_bundle_do_not_open(made, copy, find_split):
    part = Part.read(copy / "head")
    sealed, name = copy / "head" / HEAD_SEALED, f"head/{HEAD_WEIGHTS}"
    plain = unseal(sealed.read_bytes(), made.key, name, part.bound)
    sealed.write_bytes(seal(plain, made.key, name, b"another"))
    with pytest.raises(BundleError, match="does not open"):
        opened(copy / "head", part, made.key)


def test_halves_of_two_bundles_do_not_fit(copy):
    def wider(spec):
        spec["inputs"][0]["shape"][1] += 1

    edit(copy / "tail" / "spec.json", wider)
    with pytest.raises(BundleError, match="do not fit together"):
        parts_of(copy)
    rehash(copy, identity=True)
    with pytest.raises(BundleError, match="do not fit together"):
        read_bundle(copy)


# ---- text and tensors that mean two things

JSON_FILES = [FILE, "head/spec.json", "tail/program.json", "labels.json", NEEDS]


def read(folder: Path, name: str):
    if name.endswith("program.json"):
        return Program.from_json((folder / name).read_bytes())
    if name == NEEDS:
        return Needs.read(folder)
    return Part.read(folder / "head") if name.endswith("spec.json") else read_bundle(folder)


@pytest.mark.parametrize("name", [n for n in JSON_FILES if n != "labels.json"])
def test_json_has_one_meaning_and_an_end(copy, name):
    good = (copy / name).read_text().strip()
    read(copy, name)
    first = next(iter(json.loads(good)))
    deep = f'{{"{first}": ' + "[" * 40 + "]" * 40 + "," + good[1:]
    bad = {
        "twice": f'{{"{first}": 0, ' + good[1:],
        "NaN": '{"x": NaN, ' + good[1:],
        "Infinity": '{"x": -Infinity, ' + good[1:],
        "deeper": deep.replace(f'"{first}"', '"x"', 1),
        "JSON": "[" * 100_000,
    }
    for word, text in bad.items():
        (copy / name).write_text(text)
        with pytest.raises(BundleError, match=word):
            read(copy, name)


def header(entries: dict[str, object], body: int, length: int | None = None) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(body)


F32 = {"dtype": "F32", "shape": [4]}
HEADERS = {
    "overlapping": header(
        {"a": {**F32, "data_offsets": [0, 16]}, "b": {**F32, "data_offsets": [8, 24]}}, 24
    ),
    "beyond the end": header({"a": {**F32, "data_offsets": [0, 16]}}, 8),
    "a hole": header({"a": {**F32, "data_offsets": [16, 32]}}, 32),
    "too small a span": header({"a": {**F32, "data_offsets": [0, 8]}}, 8),
    "backwards": header({"a": {**F32, "data_offsets": [16, 0]}}, 16),
    "overflow": header(
        {"a": {"dtype": "F32", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 0]}}, 0
    ),
    "no dtype": header({"a": {**F32, "dtype": "PY", "data_offsets": [0, 16]}}, 16),
    "a long header": header({}, 0, length=1 << 60),
    "cut off": b"\x00\x01",
    "empty": b"",
    "another tensor": save({"a": torch.zeros(4)}),
}


@pytest.mark.parametrize("what", HEADERS)
def test_safetensors_that_lie_are_refused(copy, what):
    (copy / "tail" / WEIGHTS).write_bytes(HEADERS[what])
    rehash(copy, identity=True)
    with pytest.raises(BundleError, match=r"no safetensors file|other tensors"):
        load_program(copy / "tail", Part.read(copy / "tail"), None)


def test_a_program_gives_what_its_spec_says(copy):
    def short(program):
        program["outputs"] = program["outputs"] * 2

    edit(copy / "tail" / "program.json", short)
    rehash(copy, identity=True)
    with pytest.raises(BundleError, match=r"does not fit its spec.json"):
        load_program(copy / "tail", Part.read(copy / "tail"), None)

    def flat(program):
        program["outputs"] = [0]

    edit(copy / "tail" / "program.json", flat)
    rehash(copy, identity=True)
    with pytest.raises(BundleError, match=r"gives other tensors than its spec.json says"):
        load_program(copy / "tail", Part.read(copy / "tail"), None)


# ---- what a program may do


@pytest.mark.parametrize(
    "name",
    [
        *(
            "_reshape_alias.default",
            "as_strided.default",
            "as_strided_copy.default",
            "set.source_Tensor",
        ),
        *(
            "empty.memory_format",
            "empty_strided.default",
            "empty_like.default",
            "new_empty.default",
        ),
        *(
            "empty_permuted.default",
            "new_empty_strided.default",
            "resize.default",
            "from_file.default",
        ),
        *(
            "_unsafe_index.Tensor",
            "_foreach_add.List",
            "rand.default",
            "_cudnn_init_dropout_state.out",
        ),
        *(
            "embedding_bag.default",
            "max_unpool2d.default",
            "_ctc_loss.default",
            "_fw_primal.default",
        ),
        *(
            "__class__.mro",
            "conv2d",
            "relu_.default",
            "add.out",
            "item.default",
            "data_ptr.default",
        ),
    ],
)
def test_operators_that_export_never_writes(name):
    assert f"aten.{name}" not in OPERATORS
    with pytest.raises(BundleError, match="may not use"):
        operator_named(f"aten.{name}")


def test_listed_operators_write_to_nothing_and_take_few_words():
    assert 200 < len(OPERATORS) < 320
    known = {"approximate", "rounding_mode", "mode", "reduce", "padding"}
    for name in OPERATORS:
        schema = operator_named(name)._schema
        assert not schema.is_mutable, name
        assert schema.returns, name
        assert {a.name for a in schema.arguments if "str" in str(a.type)} <= known, name
        base = name.split(".")[1]
        assert not any(w in base for w in ("empty", "strided", "alias", "resize", "rand")), name


def program(*steps: list) -> Program:
    """A program of one input, value 0, that returns its last value."""
    data = {"inputs": ["x"], "constants": [], "channels_last": False}
    return Program.from_json(json.dumps({**data, "steps": steps, "outputs": [len(steps)]}))


X, DEVICE = {"v": 0}, {"device": True}
HUGE = {
    "zeros": [["aten.zeros.default", [[1 << 40]], {"device": DEVICE}]],
    "arange": [["aten.arange.default", [1 << 40], {"device": DEVICE}]],
    "linspace": [["aten.linspace.default", [0, 1, 1 << 40], {"device": DEVICE}]],
    "eye": [["aten.eye.m", [1 << 20, 1 << 20], {"device": DEVICE}]],
    "new_zeros": [["aten.new_zeros.default", [X, [1 << 40]], {}]],
    "overflow": [["aten.new_zeros.default", [X, [1 << 40, 1 << 40]], {}]],
    "repeat": [["aten.repeat.default", [X, [1 << 20, 1 << 20]], {}]],
    "pad": [["aten.pad.default", [X, [1 << 33, 1 << 33]], {}]],
    "expand": [["aten.expand.default", [X, [1 << 40, 2, 3]], {}]],
    "one hot": [["aten.repeat_interleave.self_int", [X, 1 << 40, 0], {}]],
    "outer": [
        ["aten.new_zeros.default", [X, [1 << 20]], {}],
        ["aten.outer.default", [{"v": 1}, {"v": 1}], {}],
    ],
    "cat": [
        ["aten.new_zeros.default", [X, [1 << 28]], {}],
        ["aten.cat.default", [[{"v": 1}] * 64], {}],
    ],
    "convolution": [
        ["aten.new_zeros.default", [X, [1, 1, 2, 2]], {}],
        ["aten.conv2d.default", [{"v": 1}, {"v": 1}, None, [1, 1], [1 << 20, 1 << 20]], {}],
    ],
    "dimensions": [["aten.reshape.default", [X, [2, 3, *[1] * 30]], {}]],
    "twice": [["aten.repeat.default", [{"v": n}, [8, 8]], {}] for n in range(16)],
    "a number": [
        ["aten.sym_size.int", [X, 0], {}],
        *(["size.mul", [{"v": n}, 1 << 30], {}] for n in (1, 2)),
    ],
    "all at once": [["aten.new_zeros.default", [X, [1 << 29]], {}] for _ in range(20)]
    + [["aten.cat.default", [[{"v": n + 1} for n in range(20)]], {}]],
}


@pytest.mark.parametrize("what", HUGE)
def test_sizes_are_known_before_anything_is_allocated(what):
    with pytest.raises(BundleError, match=r"^program (has|needs)|^program's step"):
        program(*HUGE[what])(torch.zeros(2, 3))


@pytest.mark.parametrize("device", [{}, {"device": None}])
def test_tensors_are_made_where_they_can_be_measured(device):
    for name, args in (("full", [[1 << 40], 0.0]), ("ones", [[4]]), ("arange", [4])):
        with pytest.raises(BundleError, match="on a device of its own"):
            program([f"aten.{name}.default", args, device])


def test_a_program_that_fits_at_one_batch_need_not_at_another():
    grows = program(
        ["aten.sym_size.int", [X, 0], {}],
        ["size.sub", [{"v": 1}, 2], {}],
        ["size.mul", [{"v": 2}, 1 << 40], {}],
        ["aten.new_zeros.default", [X, [{"v": 3}]], {}],
    )
    assert grows(torch.zeros(2, 3))[0].shape == (0,)
    with pytest.raises(BundleError):
        grows(torch.zeros(3, 3))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("inputs", 0, "shape"), [1, 3, 1 << 20, 1 << 20]),
        (("outputs", 0, "shape"), [1 << 30]),
        (("limits", "image_pixels"), 1 << 30),
        (("limits", "image_bytes"), 1 << 30),
        (("preprocessing", "input_size"), 1 << 13),
        (("preprocessing", "resize"), 1 << 14),
        (("preprocessing", "input_size"), 64),
        (("preprocessing", "std"), [0, 1, 1]),
        (("preprocessing",), None),
        (("bundle",), "x"),
        (("role",), "tail"),
        (("outputs",), []),
    ],
)
def test_a_spec_asks_for_no_more_than_export_writes(copy, path, value):
    def change(place):
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value

    edit(copy / "head" / "spec.json", change)
    with pytest.raises(BundleError):
        Part.read(copy / "head")


# ---- Gramine


SIGN = """#!{python}
import hashlib, pathlib, sys
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
text = pathlib.Path(given["--manifest"]).read_text()
text += "sgx.isvprodid = 0\\nsgx.use_exinfo = false\\n"
pathlib.Path(given["--output"]).write_text(text)
measured = hashlib.sha256(text.encode()).digest()
pathlib.Path(given["--sigfile"]).write_bytes(bytes(960) + measured + bytes(816))
"""


@pytest.fixture
def gramine(tmp_path, monkeypatch) -> Path:
    """Gramine's files as they are installed, with a tool that signs, and one that must not run."""
    place = tmp_path / "usr"
    libraries = place / "lib" / "x86_64-linux-gnu" / "gramine"
    (libraries / "runtime" / "glibc").mkdir(parents=True)
    (place / "bin").mkdir()
    for name in ("libsysdb.so", "runtime/glibc/libc.so.6"):
        (libraries / name).write_text(name)
    scripts = {
        "gramine-direct": f"#!/bin/sh\nLIBPAL_PATH={libraries}/direct/libpal.so\n",
        "gramine-sgx-sign": SIGN.format(python=sys.executable),
        "gramine-manifest": f"#!/bin/sh\ntouch {tmp_path}/rendered\n",
    }
    for name, text in scripts.items():
        (place / "bin" / name).write_text(text)
        (place / "bin" / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", str(place / "bin"), prepend=os.pathsep)
    monkeypatch.setattr("partopt.enclave_runner.bundles.manifest._hash", lambda path: "0" * 64)
    (tmp_path / "key.pem").write_text("a key")
    yield tmp_path
    assert not (tmp_path / "rendered").exists(), "gramine-manifest was run"


def test_a_template_in_a_bundle_is_nothing(gramine, copy):
    evil = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    (copy / "head.manifest.template").write_text(evil)
    (copy / "head.manifest").write_text(evil)
    text = launcher.rendered("gramine-direct", copy, gramine).read_text()
    assert evil not in text
    assert f'libos.entrypoint = "{os.path.realpath(sys.executable)}"' in text


def test_a_bundle_names_no_entry_point(copy):
    for name in ("argv", "entrypoint", "prefixes", "shm", "module"):
        edit(copy / NEEDS, lambda d, name=name: d.update({name: ["/bin/sh"]}))
        with pytest.raises(BundleError, match="not as export writes it"):
            Needs.read(copy)
        edit(copy / NEEDS, lambda d, name=name: d.pop(name))
    Needs.read(copy)


@pytest.mark.parametrize(
    "file",
    [
        *(
            "/etc/shadow",
            "/root/.ssh/id_rsa",
            "../x",
            "/usr/lib/../../etc/shadow",
            "/home/x/y",
            "",
            7,
        ),
        *("head/spec.json", "/usr/libx", "/", "/proc/self/mem", "/dev/sda", "/usr/lib//x"),
    ],
)
def test_an_enclave_opens_no_other_files_of_the_host(copy, file):
    edit(copy / NEEDS, lambda d: d["files"].append(file))
    with pytest.raises(BundleError, match="names"):
        worker_of(copy)


@pytest.mark.parametrize("size", [0, -1, 3 << 20, 1 << 50, "1G", 1.5, True])
def test_an_enclaves_size_is_one(copy, size):
    edit(copy / NEEDS, lambda d: d.update(enclave_size=size))
    with pytest.raises(BundleError, match="asks for an enclave"):
        Needs.read(copy)


def test_signing_later(gramine, copy, capsys):
    assert read_bundle(copy).mrenclave is None
    assert cli.run(["sign", str(copy), "--key", str(gramine / "key.pem")]) == 0
    bundle = read_bundle(copy)
    assert bundle.mrenclave in capsys.readouterr().err
    assert bundle.mrenclave == signing.measured(copy)
    assert launcher.rendered("gramine-sgx", copy, gramine) == copy / "head.manifest"
    assert not (copy / "head.manifest").exists()


def test_a_signed_bundles_weights_still_open(gramine, made, copy):
    sign_later(copy, gramine / "key.pem")
    opened(copy / "head", Part.read(copy / "head"), made.key)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("libos.entrypoint = ", 'libos.entrypoint = "/bin/sh" # '),
        ("loader.log_level", "loader.insecure__use_cmdline_argv = true\nloader.log_level"),
        ("sgx.debug = false", "sgx.debug = true"),
        ("fs.mounts = [", 'fs.mounts = [\n{ path = "/h", uri = "file:/root" },'),
        ("sgx.allowed_files = [", 'sgx.allowed_files = [\n"file:/root/",'),
        ("sgx.isvprodid = 0", "sgx.isvprodid = 1"),
        ("sys.stack.size", "sys."),
    ],
)
def test_a_signed_manifest_says_what_ours_does(gramine, copy, old, new):
    sign_later(copy, gramine / "key.pem")
    path = copy / "head.manifest.sgx"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    rehash(copy)
    read_bundle(copy)
    with pytest.raises(BundleError, match=r"head\.manifest\.sgx"):
        launcher.rendered("gramine-sgx", copy, gramine)


def test_the_signature_is_of_the_enclave_that_clients_expect(gramine, copy):
    sign_later(copy, gramine / "key.pem")
    edit(copy / FILE, lambda d: d.update(mrenclave="1" * 64))
    with pytest.raises(BundleError, match="of another enclave"):
        launcher.rendered("gramine-sgx", copy, gramine)


def test_an_unsigned_bundle_is_no_success(made, copy, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    (tmp_path / "key.pem").write_text("a key")
    before = (copy / FILE).read_bytes()
    asked = ["--accept-screening", "--trust-model", "--sign", str(tmp_path / "key.pem")]
    assert cli.run(["export", str(made.split), "--out", str(tmp_path / "new"), *asked]) == 1
    assert "`sign` needs gramine-sgx-sign" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert cli.run(["sign", str(copy), "--key", str(tmp_path / "key.pem")]) == 1
    assert cli.run(["sign", str(copy), "--key", str(tmp_path / "nokey.pem")]) == 2
    assert (copy / FILE).read_bytes() == before


def test_gramine_without_its_libraries_is_said(gramine, copy):
    (gramine / "usr/lib/x86_64-linux-gnu/gramine/libsysdb.so").unlink()
    with pytest.raises(BackendError, match="not the libraries that belong to it"):
        launcher.rendered("gramine-direct", copy, gramine)


# ---- whose bundle it is


@pytest.fixture
def keys(tmp_path) -> dict[str, Path]:
    """Two pairs of Ed25519 keys as PEM files."""
    paths = {}
    for name in ("mine", "theirs"):
        key = Ed25519PrivateKey.generate()
        pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
        paths[name] = tmp_path / f"{name}.pem"
        paths[name].write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
        public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
        paths[f"{name} public"] = tmp_path / f"{name}.pub"
        paths[f"{name} public"].write_bytes(public)
    return paths


def test_a_bundle_of_somebody_trusted(copy, keys):
    with pytest.raises(BundleError, match="is not signed"):
        hold_trusted(copy, keys["mine public"])
    sign_bundle(copy, signing_key(keys["mine"]))
    hold_trusted(copy, keys["mine public"])
    read_bundle(copy)
    with pytest.raises(BundleError, match="not signed by"):
        hold_trusted(copy, keys["theirs public"])


@pytest.mark.parametrize("text", ["", "zz", "00" * 64, "00" * 63, "é", "00" * 4000])
def test_what_is_no_signature(copy, keys, text):
    (copy / SIGNATURE).write_text(text)
    with pytest.raises(BundleError):
        hold_trusted(copy, keys["mine public"])


def test_one_changed_byte_is_somebody_elses(copy, keys):
    sign_bundle(copy, signing_key(keys["mine"]))
    zeroed(copy)
    with pytest.raises(BundleError, match="was changed"):
        read_bundle(copy)
    rehash(copy, identity=True)
    with pytest.raises(BundleError, match="not signed by"):
        hold_trusted(copy, keys["mine public"])


@pytest.mark.parametrize("command", ["run", "serve", "bench", "unlock"])
def test_commands_read_nothing_of_a_bundle_that_is_not_trusted(
    made, copy, keys, command, monkeypatch, tmp_path, capsys
):
    sign_bundle(copy, signing_key(keys["theirs"]))
    monkeypatch.setattr("partopt.enclave_runner.bundles.bundle.parsed", lambda *_: 1 / 0)
    more = {"run": ["--input", str(keys["mine"])], "unlock": ["--connect", "127.0.0.1:1"]}
    arguments = [command, str(copy), "--trust", str(keys["mine public"]), *more.get(command, [])]
    assert cli.run([*arguments, "--insecure-no-attestation"]) == 1
    assert "is not signed by" in capsys.readouterr().err


def test_keys_that_are_none(copy, keys, tmp_path):
    (tmp_path / "x").write_text("x")
    for wrong in (tmp_path / "x", tmp_path / "none", keys["mine"], tmp_path):
        with pytest.raises(UsageError, match="`trust` got"):
            hold_trusted(copy, wrong)
    for wrong in (tmp_path / "x", tmp_path / "none", keys["mine public"]):
        with pytest.raises(UsageError, match="`sign-bundle` got"):
            signing_key(wrong)


def test_the_enclaves_signature_wants_the_bundles_again(gramine, copy, keys):
    sign_bundle(copy, signing_key(keys["mine"]))
    with pytest.raises(UsageError, match="give --sign-bundle too"):
        sign_later(copy, gramine / "key.pem")
    with pytest.raises(BundleError, match="not signed by"):
        sign_later(copy, gramine / "key.pem", keys["mine"], keys["theirs public"])
    sign_later(copy, gramine / "key.pem", keys["mine"], keys["mine public"])
    hold_trusted(copy, keys["mine public"])
    assert read_bundle(copy).mrenclave is not None


# ---- split configs


@pytest.fixture
def foreign(made, tmp_path, monkeypatch) -> Path:
    """A split config that names a factory, which leaves a mark where it is imported or called."""
    code = "import pathlib\npathlib.Path('imported').touch()\ndef make(): return None\n"
    (tmp_path / "evil_factory.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "s.json"
    edit(Path(made.split), lambda d: None)
    config = json.loads(Path(made.split).read_text())
    config["model"]["spec"] = "evil_factory:make"
    path.write_text(json.dumps(config))
    yield path
    sys.modules.pop("evil_factory", None)


def test_export_imports_nothing_that_nobody_trusts(foreign, tmp_path):
    for spec in ("evil_factory:make", "os:abort", "os:_exit"):
        edit(foreign, lambda d, spec=spec: d["model"].update(spec=spec))
        with pytest.raises(UsageError, match=r"names the factory .*--trust-model"):
            export(Source(split=foreign, accept_screening=True), tmp_path / "b")
    assert not (tmp_path / "imported").exists()
    edit(foreign, lambda d: d["model"].update(spec="evil_factory:make"))
    with pytest.raises(UsageError, match="returned None"):
        export(Source(split=foreign, accept_screening=True, trust_model=True), tmp_path / "b")
    assert (tmp_path / "imported").exists(), "the mark is made where it is trusted"


@pytest.mark.parametrize(
    "settings", [None, "ssim = 0.3\n", '[[models]]\nmodel = "squeezenet1_1"\n']
)
def test_check_imports_nothing_that_nobody_trusts(foreign, tmp_path, settings):
    for spec in ("os:abort", "evil_factory:make"):
        edit(foreign, lambda d, spec=spec: d["model"].update(spec=spec))
        with pytest.raises(UsageError, match=r"names the factory .*--trust-model"):
            if settings is None:
                check(foreign, weights="none", attack=False)
            else:
                (tmp_path / "partopt.toml").write_text(settings)
                check_all([foreign], tmp_path / "partopt.toml", weights="none", attack=False)
    assert not (tmp_path / "imported").exists()


def test_who_names_the_factory_themselves_trusts_it(foreign, tmp_path):
    """On the command line, in the policy, or in the settings: not in the split config alone."""
    ways = [
        lambda: check(foreign, model="evil_factory:make", weights="none", attack=False),
        lambda: check(
            foreign, policy=Policy(model="evil_factory:make", weights="none"), attack=False
        ),
        lambda: check(foreign, weights="none", attack=False, trust_model=True),
        lambda: check_all([foreign], tmp_path / "partopt.toml", weights="none", attack=False),
    ]
    (tmp_path / "partopt.toml").write_text('[[models]]\nmodel = "evil_factory:make"\n')
    for way in ways:
        with pytest.raises(UsageError, match="returned None"):
            way()
    _splittable(Source(split=foreign, accept_screening=True))
    assert SplitConfig.read(foreign).model.spec == "evil_factory:make"
