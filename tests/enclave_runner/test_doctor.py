import stat
from importlib import metadata
from types import SimpleNamespace

from partopt.enclave_runner import doctor
from partopt.enclave_runner.doctor import examine
from partopt.enclave_runner.presence import detect


def test_a_machine_without_gramine(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    finding = next(f for f in examine() if f.name == "Gramine")
    assert finding.state == "missing"
    assert "https://gramine.readthedocs.io" in finding.detail


def test_gramine_on_the_path(tmp_path, monkeypatch):
    program = tmp_path / "gramine-direct"
    program.write_text("#!/bin/sh\necho Gramine 1.9\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert detect().version == "Gramine 1.9"
    assert next(f for f in examine() if f.name == "Gramine").state == "ok"


def test_too_little_shared_memory_is_missing(monkeypatch):
    def found(free: int):
        usage = SimpleNamespace(free=free << 20)
        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
        return next(f for f in examine() if f.name == "shared memory")

    assert found(64).state == "ok"
    assert found(8).state == "missing"
    assert "--shm-size" in found(8).detail


def test_onnx_runtime_is_named_or_missed(monkeypatch):
    found = {f.name: f for f in examine()}["ONNX Runtime"]
    assert found.state == "ok"
    assert "onnxruntime 1." in found.detail

    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    found = {f.name: f for f in examine()}["ONNX Runtime"]
    assert found.state == "missing"
    assert "no onnxruntime" in found.detail
