import copy
import hashlib
import io
import json
import os
import subprocess
import sys
import tomllib
import zipfile
from dataclasses import replace

import pytest
import torch
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors.torch import load

from partopt.config import SplitConfig, Tensor
from partopt.enclave_runner.bundles.archive import archived
from partopt.enclave_runner.bundles.bundle import MODULES, Bundle, read_bundle
from partopt.enclave_runner.bundles.export import (
    SEALED,
    Build,
    Keys,
    Source,
    _splittable,
    export,
)
from partopt.enclave_runner.bundles.gramine import Installation
from partopt.enclave_runner.bundles.manifest import GramineWorker, render
from partopt.enclave_runner.bundles.needs import worker_of
from partopt.enclave_runner.bundles.trust import hold_trusted
from partopt.enclave_runner.program.loading import load_program
from partopt.enclave_runner.program.parts import WEIGHTS, Part
from partopt.enclave_runner.program.recording import join
from partopt.enclave_runner.program.sealing import new_key, read_key, unseal
from partopt.errors import (
    BackendError,
    BundleError,
    CutError,
    ExportError,
    UsageError,
    WeightsError,
)
from partopt.graph.answers import tensors
from partopt.models.load import LoadedModel

from ..conftest import ENGINE
from ..test_trusted_base import ENGINES, TRUSTED

# Importing a module runs the packages above it; they are empty.
INITS = {"__init__", "enclave_runner.__init__"} | {
    f"enclave_runner.{folder}.__init__" for folder in ("inside", "program", "wire")
}


def source(split) -> Source:
    """A screened cut of our own factory."""
    return Source(split=split, accept_screening=True, trust_model=True)


def test_the_bundle_says_what_it_is(made):
    bundle = read_bundle(made.folder)
    assert (bundle.model, bundle.cut, bundle.batch) == ("runnets:Net", "mid.2", 4)
    assert bundle.boundary[0].shape == [1, 24, 16, 16]
    assert bundle.payload_bytes == 24 * 16 * 16 * 4
    assert bundle.optimisation.switches == []
    assert bundle.footprint.enclave_size >= bundle.footprint.libraries
    assert any("random" in w for w in bundle.warnings)
    on_disk = {str(p.relative_to(made.folder)) for p in made.folder.rglob("*") if p.is_file()}
    assert on_disk == {*bundle.files, "bundle.json"}
    assert SplitConfig.read(made.folder / "split.json").cut.name == "mid.2"


def test_each_side_holds_its_own_weights_alone_and_the_heads_are_sealed(made):
    sealed = (made.folder / "head" / SEALED).read_bytes()
    bound = Part.read(made.folder / "head").bound
    head = load(unseal(sealed, made.key, f"head/{WEIGHTS}", bound))
    tail = load((made.folder / "tail" / WEIGHTS).read_bytes())
    names = {k.split(".")[0] for k in head}, {k.split(".")[0] for k in tail}
    assert names == ({"stem", "mid"}, {"late", "fc"})
    everything = b"".join(p.read_bytes() for p in made.folder.rglob("*") if p.is_file())
    for name, tensor in head.items():
        raw = tensor.numpy().tobytes()
        if len(raw) >= 32 and len(set(raw)) > 8:
            assert raw[:32] not in everything, f"{name} lies in the bundle in the clear"
    assert made.key not in everything
    assert made.key.hex().encode() not in everything


def test_programs_from_the_bundle_give_the_models_answer(made, photo):
    head, tail = (
        load_program(made.folder / r, Part.read(made.folder / r), made.key)
        for r in ("head", "tail")
    )
    with torch.inference_mode():
        x = made.prepared(photo)
        assert torch.equal(tail(*head(x))[0], made.loaded.module(x))


def test_any_changed_file_is_noticed(made, tmp_path):
    copy = made.copy(tmp_path / "b")
    for name in read_bundle(copy).files:
        kept = (copy / name).read_bytes()
        (copy / name).write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
        with pytest.raises(BundleError, match="missing from the bundle or was changed"):
            read_bundle(copy)
        (copy / name).unlink()
        with pytest.raises(BundleError, match="missing"):
            read_bundle(copy)
        (copy / name).write_bytes(kept)
    read_bundle(copy)


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 2},
        {"schema": 4},
        {"extra": 1},
        {"batch": "x"},
        {"files": {"../x": "0" * 64}},
        {"files": {"/etc/passwd": "0" * 64}},
        {"seal": "rot13"},
    ],
)
def test_a_wrong_bundle_json_is_refused(made, tmp_path, change):
    copy = made.copy(tmp_path / "b")
    data = json.loads((copy / "bundle.json").read_text())
    (copy / "bundle.json").write_text(json.dumps({**data, **change}))
    with pytest.raises(BundleError):
        read_bundle(copy)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '{"schema": 1}', "[" * 100_000])
def test_what_is_no_bundle_json(tmp_path, text):
    (tmp_path / "bundle.json").write_text(text)
    with pytest.raises(BundleError):
        read_bundle(tmp_path)


def test_workers_check_hashes_themselves(made, tmp_path):
    copy = made.copy(tmp_path / "b")
    part = Part.read(copy / "tail")
    for name in ("program.json", WEIGHTS):
        kept = (copy / "tail" / name).read_bytes()
        (copy / "tail" / name).write_bytes(kept + b" ")
        with pytest.raises(BundleError, match="was changed since export"):
            load_program(copy / "tail", part, None)
        (copy / "tail" / name).write_bytes(kept)
    with pytest.raises(BundleError, match="key is wrong"):
        load_program(copy / "head", Part.read(copy / "head"), new_key())


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("limits", "batch"), 0),
        (("limits", "batch"), 10**9),
        (("limits", "image_bytes"), "x"),
        (("inputs", 0, "shape"), [1, -3]),
        (("inputs", 0, "dtype"), "object"),
        (("role",), "cow"),
        (("seal",), "rot13"),
        (("preprocessing", "resize"), 1 << 40),
        (("schema",), 9),
        (("schema",), 1),
        (("preprocessing", "interpolation"), "magic"),
        (("inputs", 0, "shape"), [1 << 31] * 8),
    ],
)
def test_a_wrong_spec_is_refused(made, tmp_path, path, value):
    copy = made.copy(tmp_path / "b")
    data = json.loads((copy / "head" / "spec.json").read_text())
    place = data
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    (copy / "head" / "spec.json").write_text(json.dumps(data))
    with pytest.raises(BundleError):
        Part.read(copy / "head")


def test_nothing_is_overwritten(made, tmp_path):
    with pytest.raises(UsageError, match="not empty"):
        export(source(made.split), made.folder)
    (tmp_path / "k").write_text("mine")
    with pytest.raises(UsageError, match="`key` got"):
        export(
            source(made.split),
            tmp_path / "b",
            keys=Keys(file=tmp_path / "k"),
        )
    with pytest.raises(UsageError, match="inside the bundle"):
        export(
            source(made.split),
            tmp_path / "b",
            keys=Keys(file=tmp_path / "b" / "k"),
        )
    assert not (tmp_path / "b").exists()


def test_other_weights_than_were_attacked_are_refused(made, tmp_path):
    config = SplitConfig.read(made.split)
    other = config.model.model_copy(update={"weights_hash": "1" * 64})
    path = tmp_path / "s.json"
    config.model_copy(update={"model": other}).write(path)
    with pytest.raises(WeightsError, match="not those"):
        export(source(path), tmp_path / "b")
    assert list(tmp_path.iterdir()) == [path]


def restated(made, path, *, row=None, privacy=None):
    """The split config of `made` with other words on its evidence, written as it stands."""
    config = json.loads(made.split.read_text())
    for found in config["cuts"]:
        found.update(row or {})
    config["privacy"].update(privacy or {})
    path.write_text(json.dumps(config))
    return path


SAFE = {"status": "safe", "safe": True}
ENOUGH = {"budget": "standard", "evidence": "standard", "shortfall": ""}


@pytest.mark.parametrize(
    ("row", "privacy", "word"),
    [
        ({}, {}, "screened"),
        (SAFE, {"shortfall": ""}, "screened"),
        (SAFE, {**ENOUGH, "evidence": "screening"}, "screened"),
        (SAFE, {**ENOUGH, "budget": "quick"}, "screened"),
        (SAFE, {**ENOUGH, "protocol": "paper"}, "screened"),
        ({"status": "screened"}, ENOUGH, "screened"),
        ({"status": "undecided"}, {}, "undecided"),
    ],
)
def test_a_cut_that_nothing_certifies_is_refused_without_a_word(made, tmp_path, row, privacy, word):
    path = restated(made, tmp_path / "s.json", row=row, privacy=privacy)
    with pytest.raises(UsageError, match=f"is {word}, not certified: .*--accept-screening") as info:
        export(Source(split=path, trust_model=True), tmp_path / "b")
    assert "--budget standard" in str(info.value), "what could certify it"
    assert list(tmp_path.iterdir()) == [path]
    _splittable(source(path))


def test_a_certified_cut_takes_no_word_and_a_key_signs_its_bundle(made, tmp_path):
    path = restated(made, tmp_path / "s.json", row=SAFE, privacy=ENOUGH)
    key = Ed25519PrivateKey.generate()
    pem, spki = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (tmp_path / "k.pem").write_bytes(key.private_bytes(pem, *plain))
    (tmp_path / "k.pub").write_bytes(key.public_key().public_bytes(pem, spki))
    keys = Keys(sign_bundle=tmp_path / "k.pem")
    done = export(Source(split=path, trust_model=True), tmp_path / "b", keys=keys)
    assert not any("certified" in w for w in done.warnings)
    hold_trusted(done.folder, tmp_path / "k.pub")
    assert read_bundle(done.folder).identity == done.bundle.identified()


@pytest.mark.parametrize(
    ("row", "privacy"),
    [
        ({"status": "leaks"}, {}),
        ({"status": "failed"}, {}),
        ({"status": "not attacked"}, {}),
        ({"name": "elsewhere"}, {}),
        ({"status": "undecided"}, ENOUGH),
    ],
)
def test_no_word_lets_a_cut_out_that_counts_as_leaking(made, tmp_path, row, privacy):
    path = restated(made, tmp_path / "s.json", row=row, privacy=privacy)
    with pytest.raises(UsageError, match="counts as leaking; run find again"):
        export(source(path), tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_the_bundle_goes_on_saying_that_its_cut_was_only_screened(made):
    said = "the cut is screened, not certified: this was a screening; --budget standard"
    assert any(w.startswith(said) for w in read_bundle(made.folder).warnings)
    assert f"- {said}" in (made.folder / "README.md").read_text()
    assert SplitConfig.read(made.folder / "split.json").standing == "screened"


def test_no_cut_no_bundle(made, tmp_path):
    path = tmp_path / "s.json"
    SplitConfig.read(made.split).model_copy(update={"cut": None}).write(path)
    with pytest.raises(UsageError, match="no cut"):
        export(source(path), tmp_path / "b")


def test_weights_that_lie_on_both_sides_are_told_from_the_start(find_split, tmp_path):
    split, loaded = find_split("runnets:Tied", "relu")
    told = "head and tail both read a.weight"
    assert any(told in w for w in SplitConfig.read(split).warnings)
    done = export(source(split), tmp_path / "b")
    assert any(told in w for w in done.warnings)
    assert done.off == 0
    halves = [
        load_program(done.folder / role, Part.read(done.folder / role), read_key(done.key))
        for role in ("head", "tail")
    ]
    image = torch.rand(2, 3, 32, 32)
    (answer,) = halves[1](*halves[0](image))
    (together,) = join(*halves)(image)
    with torch.no_grad():
        assert torch.equal(answer, loaded.module(image))
        assert torch.equal(together, answer)


def test_a_graph_that_was_not_attacked_is_refused(made, tmp_path):
    """Names of nodes may come to mean other layers of the same shape."""
    config = SplitConfig.read(made.split)
    other = config.model.model_copy(update={"graph_hash": "1" * 64})
    path = tmp_path / "s.json"
    config.model_copy(update={"model": other}).write(path)
    with pytest.raises(CutError, match="not the one that was attacked"):
        export(source(path), tmp_path / "b")


def test_programs_are_held_against_the_loaded_model(made, tmp_path, monkeypatch):
    """Not against the graph: a graph of another network cannot vouch for itself."""
    honest = LoadedModel.trace

    def wrong(self):
        graph = honest(self)
        graph.module.late = copy.deepcopy(graph.module.late)
        with torch.no_grad():
            graph.module.late.bias += 0.1
        return graph

    monkeypatch.setattr(LoadedModel, "trace", wrong)
    with pytest.raises(ExportError, match="answer otherwise than the model"):
        export(source(made.split), tmp_path / "b")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("name", ["Packed", "Whole"])
def test_answers_in_containers_are_exported(find_split, tmp_path, name):
    split, loaded = find_split(f"runnets:{name}", "a")
    done = export(source(split), tmp_path / "b")
    halves = [
        load_program(done.folder / role, Part.read(done.folder / role), read_key(done.key))
        for role in ("head", "tail")
    ]
    image = torch.rand(1, 3, 32, 32)
    got = halves[1](*halves[0](image))
    with torch.no_grad():
        want = tensors(loaded.module(image))
    assert [t.shape for t in got] == [t.shape or (1,) for t in want]
    assert all(torch.equal(g, w.reshape(g.shape)) for g, w in zip(got, want, strict=True))
    assert done.bundle.batch == (8 if name == "Packed" else 1)


def test_a_complex_boundary_is_refused(find_split, tmp_path):
    split, loaded = find_split("runnets:Spectral", "a")
    config = SplitConfig.read(split)
    cut = loaded.trace().cut("fft_fft2")
    tensor = Tensor(**{**vars(cut.boundary[0]), "shape": list(cut.boundary[0].shape)})
    chosen = config.cut.model_copy(update={"name": cut.name, "boundary": [tensor]})
    row = config.cuts[0].model_copy(update={"name": cut.name})
    config.model_copy(update={"cut": chosen, "cuts": [row]}).write(split)
    with pytest.raises(ExportError, match="complex64, which cannot cross"):
        export(source(split), tmp_path / "b")


def test_labels(made, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("a\nb\nc\n")
    with pytest.raises(UsageError, match="3 labels for 5 classes"):
        export(
            source(made.split),
            tmp_path / "b",
            build=Build(labels=str(names)),
        )
    with pytest.raises(UsageError, match="use imagenet or a text file"):
        export(
            source(made.split),
            tmp_path / "b",
            build=Build(labels="nope.txt"),
        )


def test_what_gramine_lacks_is_said(made, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendError, match="gramine-sgx-pf-crypt is not on PATH"):
        export(
            source(made.split),
            tmp_path / "b",
            keys=Keys(seal_with="gramine"),
        )
    (tmp_path / "key.pem").write_text("x")
    with pytest.raises(BackendError, match="`sign` needs gramine-sgx-sign, not on PATH"):
        export(source(made.split), tmp_path / "b", keys=Keys(sign=tmp_path / "key.pem"))
    assert not (tmp_path / "b").exists()


@pytest.fixture
def gramine(tmp_path) -> Installation:
    """What an installed Gramine looks like."""
    place = tmp_path / "gramine"
    (place / "runtime" / "glibc").mkdir(parents=True)
    for name in ("libsysdb.so", "runtime/glibc/libc.so.6", "runtime/glibc/ld.so"):
        (place / name).write_text(name)
    return Installation(place / "libsysdb.so", place / "runtime" / "glibc")


def test_the_manifest_trusts_files_not_folders(made, gramine):
    worker = worker_of(made.folder)
    archive = archived(worker.files)
    manifest = tomllib.loads(render(worker, gramine, made.folder, (MODULES, archive)))
    trusted = {e["uri"]: e["sha256"] for e in manifest["sgx"]["trusted_files"]}
    assert not [e for e in trusted if e.endswith("/")]
    assert len(trusted) < 3000
    spec = (made.folder / "head" / "spec.json").read_bytes()
    assert trusted["file:head/spec.json"] == hashlib.sha256(spec).hexdigest()
    assert f"file:{gramine.runtime}/libc.so.6" in trusted
    assert manifest["sys"]["disallow_subprocesses"] is True
    assert manifest["sgx"]["debug"] is False
    assert len(manifest["sgx"]["allowed_files"]) == 2
    assert any(e.endswith("/torch/lib/libtorch_cpu.so") for e in trusted)
    assert not any("torchvision" in e for e in trusted), "the enclave needs no torchvision"
    assert not any("/optuna/" in e for e in trusted)
    assert trusted[f"file:{MODULES}"] == archive.sha256
    with zipfile.ZipFile(io.BytesIO(archive.data)) as packed:
        names = packed.namelist()
    assert not [
        e for e in trusted if e.endswith(("partopt/errors.py", "site-packages/numpy/__init__.py"))
    ]
    own = {n.removeprefix("partopt/") for n in names if n.startswith("partopt/")}
    read = {e.removesuffix(".pyc").replace("/", ".") for e in own}
    wanted = {*TRUSTED, *ENGINES[ENGINE][0], "enclave_runner.inside.archived"}
    assert read == {*wanted, *INITS}, "what the head worker imports"


def test_an_archive_of_modules_is_the_same_in_every_process(made):
    """Whoever holds a signed enclave against its own files makes it anew."""
    code = (
        "import sys; from pathlib import Path; "
        "from partopt.enclave_runner.bundles.archive import archived; "
        "from partopt.enclave_runner.bundles.needs import Needs; "
        "print(archived(Needs.read(Path(sys.argv[1])).files).sha256)"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code, str(made.folder)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert said == {archived(worker_of(made.folder).files).sha256 + "\n"}


def test_a_worker_runs_out_of_the_archive_alone(made, tmp_path):
    """Without a look at sources: compiled modules come from beside, the rest from the archive."""
    (tmp_path / MODULES).write_bytes(archived(worker_of(made.folder).files).data)
    code = (
        "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); "
        "import partopt; assert sys.path[0] in partopt.__file__; "
        "from partopt.enclave_runner.inside import archived as a; sys.meta_path.append(a.Beside); "
        f"import partopt.enclave_runner.inside.{ENGINE}_head, numpy, cryptography, PIL.Image; "
        "assert all(sys.path[0] in m.__file__ for m in (numpy, cryptography, PIL)); "
        "from PIL import _imaging; from numpy.linalg import _umath_linalg; print('all')"
    )
    told = subprocess.run(
        [sys.executable, "-I", "-c", code, str(tmp_path / MODULES)], capture_output=True, text=True
    )
    assert told.stdout == "all\n", told.stderr


def test_the_manifest_names_no_libc_of_the_host(made, gramine):
    worker = worker_of(made.folder)
    text = render(worker, gramine, made.folder, (MODULES, archived(worker.files)))
    trusted = [e["uri"] for e in tomllib.loads(text)["sgx"]["trusted_files"]]
    elsewhere = [e for e in trusted if not e.startswith(f"file:{gramine.runtime}")]
    assert not any(e.endswith(("/libc.so.6", "/libm.so.6")) for e in elsewhere)


@pytest.mark.parametrize("name", ['a"b', "a{{ 7 * 7 }}", "{% for x in y %}", "a\\b", "é"])
def test_a_path_stands_in_the_manifest_as_it_is(gramine, tmp_path, name):
    worker = GramineWorker(
        module="m",
        folder=name,
        names=["n"],
        trusted=True,
        files=[],
        prefixes=[],
        enclave_size=1 << 30,
        max_threads=8,
    )
    (tmp_path / name).mkdir()
    (tmp_path / name / "n").write_text("x")
    none = (MODULES, archived([]))
    manifest = tomllib.loads(render(worker, gramine, tmp_path, none))
    assert f"file:{name}" in [m["uri"] for m in manifest["fs"]["mounts"]]
    with pytest.raises(ExportError, match="cannot stand in a manifest"):
        render(replace(worker, folder='x"\n[evil]'), gramine, tmp_path, none)
    with pytest.raises(BackendError, match="cannot be read"):
        lacking = (MODULES, archived(["/no/where"]))
        render(worker, gramine, tmp_path, lacking)


def test_bundle_schema_is_strict():
    with pytest.raises(ValueError, match="extra"):
        Bundle.model_validate({"extra": 1})
