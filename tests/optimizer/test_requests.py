"""Requests: flat keyword arguments become records, each of which checks its own values."""

from __future__ import annotations

import pytest

from partopt.errors import UsageError
from partopt.graph.traceargs import Tracing
from partopt.models.load import LoadedModel
from partopt.models.request import ModelRequest
from partopt.optimizer.check import check, check_all
from partopt.optimizer.check_request import CheckOptions, CheckRequest
from partopt.optimizer.find import find
from partopt.optimizer.policy import Policy
from partopt.optimizer.requests import (
    CutChoice,
    Effort,
    FindOptions,
    FindRequest,
    ImageChoice,
    Timing,
)
from partopt.profilers.base import Conditions
from partopt.profilers.sgx_model import SgxModel
from partopt.studies.reproduce import reproduce
from partopt.studies.single import attack_cut
from partopt.studies.strength import strength

from .test_retime import target

# Every option of `find` with a value that is not its default.
SAID = {
    "weights": "w.pth",
    "require_weights": True,
    "trust_model": True,
    "mean": [0.1],
    "std": [0.2],
    "input_size": 64,
    "tracing": Tracing({"a": 1}),
    "seed": 3,
    "data": "photos",
    "max_cuts": 5,
    "scale": "raw",
    "budget": "full",
    "attackers": ["linear"],
    "resolution": 32,
    "accelerator": "cpu",
    "engine": "ort",
    "protocol": "paper",
    "ssim": 0.3,
    "cuts": "all",
    "depth": 2,
    "tune": 4,
    "workers": 6,
    "exhaustive": True,
    "enclave": "native",
    "sgx_model": SgxModel(slowdown=2.0),
    "threads": 1,
    "batch": 7,
    "repetitions": 8,
    "profile": target({"late": 1.0}, enclave="native", engine="ort", batch=7, repetitions=8),
    "storage": "s.journal",
    "artifacts": "pictures",
    "feature_cache_gib": 1.5,
    "worst_share": 0.05,
    "worst_retrieval": 0.1,
    "adversary_images": 5000,
    "command": "partopt find",
}


def parts(request: FindRequest):
    return (
        *(request, request.model, request.which_cuts),
        *(request.images, request.effort, request.timing, request.adversary),
    )


def test_every_option_reaches_its_record():
    assert SAID.keys() == FindOptions.__annotations__.keys()
    request = FindRequest.of("net", SAID)
    for name, value in SAID.items():
        held = [getattr(part, name) for part in parts(request) if hasattr(part, name)]
        assert held, name
        if name != "threads":
            assert all(h == value for h in held), name
    default = FindRequest.of("net", {})
    assert default == FindRequest(model=ModelRequest(spec="net"))
    for name, value in SAID.items():
        held = [getattr(part, name) for part in parts(default) if hasattr(part, name)]
        assert name == "threads" or value not in held, f"{name} is given its default"


def test_what_is_none_is_not_said():
    assert FindRequest.of("net", dict.fromkeys(FindOptions.__annotations__)) == FindRequest.of(
        "net", {}
    )


def test_text_is_parsed():
    request = FindRequest.of("net", {"attackers": "linear, decoder", "sgx_model": "slowdown=3"})
    assert request.effort.attackers == ["linear", "decoder"]
    assert request.timing.sgx_model == SgxModel(slowdown=3)


@pytest.mark.parametrize("call", [find, reproduce])
@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"weigths": "none"}, r"`weigths` is no argument of \w+ \(nearest: weights"),
        ({"strict": True}, "`strict` is called `require_weights` now"),
        ({"budget": "huge"}, "`budget` got 'huge'; use 'quick', 'standard' or 'full'"),
        ({"enclave": "sgx"}, "`enclave` got 'sgx'; use 'auto', 'gramine-sgx'"),
        ({"repetitions": 0}, "`repetitions` got 0"),
        ({"seed": -1}, "`seed` got -1"),
    ],
)
def test_a_wrong_option_is_told_before_anything_is_loaded(call, options, told):
    with pytest.raises(UsageError, match=told):
        call("no_such_module:net", **options)


def test_names_are_held_by_whoever_is_called(tmp_path):
    for call in (attack_cut, strength):
        with pytest.raises(UsageError, match=r"`atackers` is no argument of .*: attackers"):
            call("no_such_module:net", "cut", atackers=["linear"])
        with pytest.raises(UsageError, match="`protocol` is no argument of"):
            call("no_such_module:net", "cut", protocol="paper")
    with pytest.raises(UsageError, match=r"`reatack` is no argument of check .*: reattack"):
        check(tmp_path / "a.json", reatack=True)
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(UsageError, match=r"`wieghts` is no argument of check .*: weights"):
        check_all([tmp_path / "a.json"], "none", wieghts="none")


@pytest.mark.parametrize(
    ("record", "wrong", "told"),
    [
        (CutChoice, {"max_cuts": 0}, "`max_cuts` got 0"),
        (CutChoice, {"depth": 0}, "`depth` got 0"),
        (Effort, {"tune": -1}, "`tune` got -1"),
        (Effort, {"workers": 65}, "`workers` got 65; use 1 to 64"),
        (Effort, {"budget": "tiny"}, "`budget` got 'tiny'"),
        (Timing, {"threads": 0}, "`threads` got 0"),
        (Timing, {"batch": 0}, "`batch` got 0"),
        (Timing, {"accelerator": "tpu"}, "`accelerator` got 'tpu'; use 'auto', 'cuda' or 'cpu'"),
        (Conditions, {"repetitions": 0}, "`repetitions` got 0"),
        (Conditions, {"threads": 0}, "`threads` got 0"),
        (Policy, {"protocol": "lax"}, "`protocol` got 'lax'; use 'strict' or 'paper'"),
        (Policy, {"scale": "log"}, "`scale` got 'log'; use 'corrected' or 'raw'"),
        (CheckRequest, {"latency_tolerance": 0.0}, "`latency-tolerance` got 0.0"),
        (CheckRequest, {"latency_tolerance": float("nan")}, "`latency-tolerance` got nan"),
    ],
)
def test_each_record_checks_its_own(record, wrong, told):
    with pytest.raises(UsageError, match=told):
        record(**wrong)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"ssim": 0.0}, "`ssim` got 0.0"),
        ({"ssim": float("nan")}, "`ssim` got nan"),
        ({"feature_cache_gib": 0.0}, "`feature_cache` got 0.0"),
        ({"protocol": "lax"}, "`protocol` got 'lax'"),
    ],
)
def test_a_whole_request_checks_its_own(tiny_loaded, wrong, told):
    with pytest.raises(UsageError, match=told):
        FindRequest(model=tiny_loaded, **wrong)


def test_a_loaded_model_takes_no_second_choice_of_weights(tiny_loaded: LoadedModel):
    assert FindRequest.of(tiny_loaded, {"seed": 4}).model is tiny_loaded
    with pytest.raises(UsageError, match="`weights` is given beside a loaded model"):
        find(tiny_loaded, weights="none")


def test_a_check_takes_every_option():
    said = {
        "model": "net",
        "weights": "w.pth",
        "data": "photos",
        "ssim": 0.1,
        "budget": "full",
        "trust_stored": True,
        "trust_model": True,
        "attack": False,
        "reattack": True,
        "new_data": True,
        "storage": "s.journal",
        "workers": 3,
        "latency": False,
        "latency_tolerance": 0.5,
        "profile": SAID["profile"],
    }
    assert said.keys() == CheckOptions.__annotations__.keys()
    for name, value in said.items():
        request = CheckRequest.of(Policy(seed=5), {name: value})
        held = [
            getattr(part, name)
            for part in (request, request.policy, request.sources)
            if hasattr(part, name)
        ]
        assert value in held, name
        assert request.policy.seed == 5
    for beside in ({"storage": "s.journal"}, {"attack": False}):
        with pytest.raises(UsageError, match="`reattack` got --"):
            CheckRequest.of(Policy(), {"reattack": True, **beside})


def test_images_are_asked_for_by_folder_and_hash():
    assert ImageChoice(data="photos", expected_data="ab").expected_data == "ab"
