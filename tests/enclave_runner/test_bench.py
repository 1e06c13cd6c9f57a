import json
import tempfile

from partopt.enclave_runner import bench as module
from partopt.enclave_runner.bench import STAGES, bench
from partopt.enclave_runner.bundles.bundle import WEIGHTS_OF, sealed_file
from partopt.enclave_runner.orchestrator import ServeOptions
from partopt.enclave_runner.probing import Probe
from partopt.enclave_runner.program.parts import Part
from partopt.enclave_runner.program.sealing import unseal
from partopt.reporting.answers import bench_table

from .conftest import ENGINE


def test_bench_measures_every_stage_and_the_other_ways(made, photo, monkeypatch, tmp_path):
    """And puts no weight of the head on the disk that it does not seal: it may be killed."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    shares, kept = [], {}

    class Looked(Probe):
        def once(self):
            kept.update({p.name: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()})
            return super().once()

    monkeypatch.setattr(module, "Probe", Looked)
    found = bench(
        made.folder,
        photo,
        ServeOptions(enclave="native"),
        made.key,
        insecure=True,
        requests=12,
        published=1,
        progress=lambda what, share: shares.append(share),
    )
    assert set(found.stages) == {*STAGES, "split", "inside", "client"}
    for values in found.stages.values():
        assert 0 <= values["p50"] <= values["p95"] <= values["p99"]
    assert set(found.baselines) == {"whole in enclave", "whole outside", "published"}
    assert found.pipelined["requests_per_s"] > 0
    if ENGINE == "torch":  # by which the split config's times were taken
        assert found.found_ms is not None
        assert found.predicted_ms is not None
    assert len(shares) > 12
    json.dumps(found.as_dict(), allow_nan=False)
    assert bench_table(found) is not None
    weights = WEIGHTS_OF[ENGINE]
    sealed = (made.folder / "head" / sealed_file(ENGINE, "aes-256-gcm")).read_bytes()
    bound = Part.read(made.folder / "head").bound
    secret = unseal(sealed, made.key, f"head/{weights}", bound)
    assert kept or ENGINE == "ort", "with which no part is written for a probe"
    parts = [secret[i : i + 32] for i in range(512, len(secret) - 32, 32)]
    assert not any(part in data for data in kept.values() for part in parts)
    assert list(tmp_path.iterdir()) == []
