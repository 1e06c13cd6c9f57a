import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partopt import config as c
from partopt.errors import ConfigError

TIME = c.Time(ms=1.0, noise_ms=0.1, basis="measured", backend="native")
LATENCY = {"enclave": TIME, "handoff": TIME, "accelerator": TIME, "total": TIME}


@pytest.fixture(scope="module")
def sample() -> c.SplitConfig:
    row = c.CutRow(
        name="a",
        aliases=[],
        stage=True,
        payload_bytes=4,
        head_flops=1,
        head_layers=1,
        head_param_bytes=1,
        head_peak_activation_bytes=1,
        ssim_raw=0.3,
        score=0.1,
        low=0.0,
        high=0.15,
        suffix_score=0.1,
        suffix_high=0.15,
        safe=True,
        status="safe",
        reason="",
        attacks=[],
        latency_ms=c.Latency(**LATENCY),
    )
    return c.SplitConfig(
        model=c.ModelInfo(
            spec="m",
            weights="w",
            weights_hash="0",
            random_weights=False,
            graph_hash="0",
            traced_by="torch.fx",
            input_shape=[1, 3, 8, 8],
            input_dtype="float32",
            preprocessing=c.PreprocessingInfo(
                input_size=8,
                resize=8,
                mean=[0.5] * 3,
                std=[0.5] * 3,
                interpolation="bilinear",
                source="given",
            ),
        ),
        cut=None,
        latency_ms=None,
        full_enclave_ms=TIME,
        privacy=c.Privacy(
            threshold=0.2,
            scale="corrected",
            rule="r",
            budget="quick",
            evidence="screening",
            floor=0.2,
            floor_p95=0.3,
            ssim="s",
            resolution=8,
            data="d",
            data_hash="0",
            images={"test": 1},
            skipped=[],
            attackers=[],
        ),
        cuts=[row],
        search=c.Search(
            trials_run=1, trials_reused=0, image_steps=1, attack_seconds=1.0, study="s", storage="j"
        ),
        seed=0,
        versions={},
        warnings=[],
    )


def test_older_versions_safe_on_a_screenings_evidence_is_screened(sample):
    raw = json.loads(sample.to_json())
    raw["cuts"][0].update(status="safe", safe=True)
    (row,) = c.SplitConfig.parse(json.dumps(raw).encode()).cuts
    assert (row.status, row.safe) == ("screened", False)
    raw["cuts"][0].update(status="leaks", safe=True)
    (row,) = c.SplitConfig.parse(json.dumps(raw).encode()).cuts
    assert (row.status, row.safe) == ("leaks", False), "`safe` says no more than the status"
    raw["cuts"][0].update(status="safe", safe=True)
    raw["privacy"].update(budget="full", evidence="full")
    (row,) = c.SplitConfig.parse(json.dumps(raw).encode()).cuts
    assert (row.status, row.safe) == ("safe", True)


def test_round_trip_with_stable_order(sample, tmp_path):
    path = tmp_path / "a.split.json"
    sample.write(path)
    again = c.SplitConfig.read(path)
    assert again == sample
    assert again.to_json() == path.read_text()
    assert list(json.loads(path.read_text()))[:2] == ["schema", "model"]


def _changed(sample, **changes) -> bytes:
    raw = json.loads(sample.to_json())
    raw.update(changes)
    return json.dumps(raw).encode()


def test_unknown_key_names_the_nearest(sample):
    raw = json.loads(sample.to_json())
    raw["privacy"]["treshold"] = 0.5
    with pytest.raises(ConfigError, match=r"unknown key `privacy.treshold` \(nearest: threshold"):
        c.SplitConfig.parse(json.dumps(raw).encode())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"[]", "no JSON object"),
        (b"{}", "no `schema`"),
        (b'{"schema": true}', "no `schema`"),
        (b"[" * 100_000, "no JSON"),
        (b"\xff\xfe\x00", "no JSON"),
    ],
)
def test_malformed(data, message):
    with pytest.raises(ConfigError, match=message):
        c.SplitConfig.parse(data)


def test_newer_and_older_schema(sample):
    with pytest.raises(ConfigError, match="a newer partopt wrote it"):
        c.SplitConfig.parse(_changed(sample, schema=99))
    with pytest.raises(ConfigError, match="old version"):
        c.SplitConfig.parse(_changed(sample, schema=0))


def test_nan_and_wrong_types_are_refused(sample):
    raw = json.loads(sample.to_json())
    raw["privacy"]["threshold"] = float("nan")
    with pytest.raises(ConfigError, match=r"privacy\.threshold"):
        c.SplitConfig.parse(json.dumps(raw).encode())
    with pytest.raises(ConfigError, match="wrong at `seed`"):
        c.SplitConfig.parse(_changed(sample, seed="many"))


def test_missing_and_oversized_files(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="does not exist"):
        c.SplitConfig.read(tmp_path / "no.json")
    monkeypatch.setattr(c, "MAX_BYTES", 10)
    (tmp_path / "big.json").write_text("x" * 11)
    with pytest.raises(ConfigError, match="at most 10"):
        c.SplitConfig.read(tmp_path / "big.json")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_fuzzed_configs_give_a_clean_error_or_a_config(sample, data):
    raw = json.loads(sample.to_json())
    for _ in range(data.draw(st.integers(1, 3))):
        place = raw
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = data.draw(st.sampled_from(keys))
            if isinstance(place[key], (dict, list)) and place[key] and data.draw(st.booleans()):
                place = place[key]
                continue
            place[key] = data.draw(json_values)
            break
    try:
        c.SplitConfig.parse(json.dumps(raw).encode())
    except ConfigError as error:
        assert "\n" not in str(error)  # noqa: PT017


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_fuzzed_bytes_give_a_clean_error(data):
    with pytest.raises(ConfigError):
        c.SplitConfig.parse(data)


def test_ten_thousand_damaged_files_give_a_clean_error(sample):
    """Bytes flipped, cut out, doubled and overwritten in a valid config, seeded."""
    rng = random.Random(0)
    text = sample.to_json().encode()
    accepted = 0
    for _ in range(10_000):
        data = bytearray(text)
        for _ in range(rng.randint(1, 4)):
            at, size = rng.randrange(len(data)), rng.randint(1, 40)
            kind = rng.randrange(4)
            if kind == 0:
                data[at] = rng.randrange(256)
            elif kind == 1:
                del data[at : at + size]
            elif kind == 2:
                data[at:at] = data[at : at + size]
            else:
                data[at:at] = rng.choice(
                    [b"{", b"[", b"null", b"1e999", b"NaN", b'"', b"../", b","]
                )
            data = data or bytearray(b"x")
        try:
            c.SplitConfig.parse(bytes(data))
            accepted += 1
        except ConfigError as error:
            assert "\n" not in str(error)  # noqa: PT017
    assert accepted < 9_000


def test_keys_cannot_leave_their_folder(sample):
    raw = json.loads(sample.to_json())
    attack = {"attacker": "a", "settings": "", "outcome": "failed", "key": "../../etc/passwd"}
    raw["cuts"][0]["attacks"] = [attack]
    with pytest.raises(ConfigError, match=r"attacks\.0\.key"):
        c.SplitConfig.parse(json.dumps(raw).encode())
    for bad in ("a" * 63, "A" * 64, "a" * 64 + "\n", "a" * 64 + "/x"):
        attack["key"] = bad
        with pytest.raises(ConfigError):
            c.SplitConfig.parse(json.dumps(raw).encode())


def test_json_schema_names_the_public_keys():
    schema = c.json_schema()
    assert "schema" in schema["properties"]
    assert schema["additionalProperties"] is False
