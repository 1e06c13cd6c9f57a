import json

from partopt.enclave_runner.bench import STAGES, bench
from partopt.enclave_runner.orchestrator import ServeOptions
from partopt.reporting.answers import bench_table


def test_bench_measures_every_stage_and_the_other_ways(made, photo):
    shares = []
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
    assert found.found_ms is not None
    assert found.predicted_ms is not None
    assert len(shares) > 12
    json.dumps(found.as_dict(), allow_nan=False)
    assert bench_table(found) is not None
