"""The profile file: what goes in comes out; what is not whole or of this graph is refused."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from partopt.config import Taken
from partopt.errors import ConfigError
from partopt.graph.build import trace
from partopt.profilers import target as module
from partopt.profilers.base import Conditions, CutLatency, Duration, Profile, WorkerCost, total_of
from partopt.profilers.machine import now, this_machine
from partopt.profilers.profile import cautions, handed_over_by
from partopt.profilers.target import TargetProfile

SHAPE = (1, 3, 32, 32)


def made_up(graph, enclave="gramine-sgx", accelerator="cuda", as_traced="") -> Profile:
    """Times that no clock gave: each cut's are its own, and no decimal fraction."""

    def took(ms, backend):
        return Duration(ms, ms / 7, "measured", backend)

    cuts = []
    for i, _ in enumerate(graph.cuts("all")):
        parts = (
            took((i + 1) / 3, enclave),
            took(0.1 + i / 11, handed_over_by(accelerator)),
            took(20 - i / 9, accelerator),
        )
        names = ("enclave", "handoff", "accelerator")
        cuts.append(CutLatency(**dict(zip(names, parts, strict=True)), total=total_of(*parts)))
    return Profile(
        cuts=cuts,
        full_enclave=took(100 / 3, enclave),
        full_accelerator=took(61 / 3, accelerator),
        threads=3,
        batch=2,
        repetitions=5,
        warnings=cautions(enclave, accelerator, as_traced),
        worker=None if enclave == "native" else WorkerCost(start_s=13.1, load_s=0.7, peak_bytes=99),
        as_traced=as_traced,
        taken=Taken(machine=this_machine("target"), at=now()),
    )


def file_of(graph, **where) -> TargetProfile:
    measured = made_up(graph, **where)
    how = Conditions(
        enclave=measured.full_enclave.backend,
        accelerator=measured.full_accelerator.backend,
        threads=3,
        batch=2,
        repetitions=5,
    )
    return TargetProfile.of(graph, graph.cuts("all"), measured, how, spec="net", weights="none")


@pytest.fixture
def graph(tiny):
    return trace(tiny, torch.zeros(SHAPE))


@pytest.fixture
def stored(graph, tmp_path):
    path = tmp_path / "t.profile.json"
    file_of(graph).write(path)
    return path


@pytest.mark.parametrize(
    "where",
    [
        {},
        {"enclave": "native", "accelerator": "cpu"},
        {"enclave": "gramine-direct", "accelerator": "cpu", "as_traced": "no program"},
    ],
)
def test_times_come_back_as_they_were_measured(graph, tmp_path, where):
    path, measured = tmp_path / "t.json", made_up(graph, **where)
    file_of(graph, **where).write(path)
    read = TargetProfile.read(path)
    every = graph.cuts("all")
    back = read.times(graph, every)
    assert back.taken.profile is not None, "the file names itself"
    known = measured.taken.model_copy(update={"at": back.taken.at})
    assert replace(back, taken=None) == replace(measured, taken=None)
    assert back.taken.model_copy(update={"profile": None}) == known
    few = graph.cuts("stage")
    nodes = {cut.node: latency for cut, latency in zip(every, measured.cuts, strict=True)}
    assert read.times(graph, few).cuts == [nodes[cut.node] for cut in few]


def test_what_must_be_said_follows_from_the_backends_not_from_the_file(graph, tmp_path):
    raw = json.loads(file_of(graph, enclave="native", accelerator="cpu").to_json())
    read = TargetProfile.parse(json.dumps(raw).encode())
    assert any("without an enclave" in w for w in read.warnings)
    assert any("no GPU" in w for w in read.warnings)
    assert file_of(graph).warnings == []


def test_a_truncated_file_is_one_sentence(stored, graph):
    data = stored.read_bytes()
    for size in [0, 1, 2, *range(3, len(data) - 2, 97), len(data) - 3]:
        with pytest.raises(ConfigError) as caught:
            TargetProfile.parse(data[:size], "profile 'x'")
        said = str(caught.value)
        assert said.startswith("profile 'x' is no whole JSON file"), said
        assert "partopt profile" in said
        assert "\n" not in said


@pytest.mark.parametrize("schema", [0, 2, 99, "1", 1.0, True, None, [1], {}])
def test_another_schema_is_one_sentence(stored, schema):
    raw = json.loads(stored.read_text())
    raw["schema"] = schema
    with pytest.raises(ConfigError, match=r"has `schema` .*this version reads 1"):
        TargetProfile.parse(json.dumps(raw).encode())


def nan(raw):
    raw["full_enclave"]["ms"] = float("nan")


def infinite(raw):
    raw["cuts"][1]["handoff"]["ms"] = float("inf")


def negative(raw):
    raw["cuts"][1]["enclave"]["ms"] = -1.0


def nothing(raw):
    raw["full_accelerator"]["ms"] = 0


def text(raw):
    raw["cuts"][0]["enclave"]["ms"] = "3.0"


def huge(raw):
    raw["cuts"][0]["handoff"]["ms"] = 1e12


def noise(raw):
    raw["cuts"][0]["handoff"]["noise_ms"] = -0.1


def longer(raw):
    raw["cuts"][2]["enclave"]["ms"] = raw["full_enclave"]["ms"] * 1.01


def longer_tail(raw):
    raw["cuts"][2]["accelerator"]["ms"] = raw["full_accelerator"]["ms"] * 1.01


def twice(raw):
    raw["cuts"][1]["name"] = raw["cuts"][0]["name"]


def further(raw):
    raw["cuts"][0]["safe"] = True


def lacking(raw):
    del raw["full_enclave"]


def none(raw):
    raw["cuts"] = []


def no_threads(raw):
    raw["conditions"]["threads"] = 0


def other_backend(raw):
    raw["conditions"]["enclave"] = "tdx"


def long_name(raw):
    raw["taken"]["machine"]["name"] = "x" * 100_000


def no_date(raw):
    raw["taken"]["at"] = "yesterday"


@pytest.mark.parametrize(
    "fault",
    [
        nan,
        infinite,
        negative,
        nothing,
        text,
        huge,
        noise,
        longer,
        longer_tail,
        twice,
        further,
        lacking,
        none,
        no_threads,
        other_backend,
        long_name,
        no_date,
    ],
)
def test_a_wrong_value_is_one_sentence(stored, fault):
    raw = json.loads(stored.read_text())
    TargetProfile.parse(json.dumps(raw).encode())
    fault(raw)
    with pytest.raises(ConfigError, match=r"is wrong.*; make it again$") as caught:
        TargetProfile.parse(json.dumps(raw).encode())
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_what_is_no_profile_is_one_sentence(tmp_path, monkeypatch, stored):
    with pytest.raises(ConfigError, match="does not exist"):
        TargetProfile.read(tmp_path / "none.json")
    with pytest.raises(ConfigError, match="does not exist"):
        TargetProfile.read(tmp_path)
    for data in (b"[]", b"3", b'{"schema": 1}', b'{"kind": "split config", "schema": 1}'):
        with pytest.raises(ConfigError, match="was not written by partopt profile"):
            TargetProfile.parse(data)
    with pytest.raises(ConfigError, match="no whole JSON"):
        TargetProfile.parse(b"[" * 100_000)
    with pytest.raises(ConfigError, match="no whole JSON"):
        TargetProfile.parse(b"\xff\xfe\x00")
    monkeypatch.setattr(module, "MAX_BYTES", stored.stat().st_size - 1)
    with pytest.raises(ConfigError, match="is larger than"):
        TargetProfile.read(stored)


def test_more_cuts_than_any_network_has_are_refused(stored):
    raw = json.loads(stored.read_text())
    many = [copy.copy(raw["cuts"][0]) for _ in range(module.MOST_CUTS + 1)]
    for i, cut in enumerate(many):
        cut["name"] = str(i)
    with pytest.raises(ConfigError, match="at most 20000"):
        TargetProfile.parse(json.dumps({**raw, "cuts": many}).encode())


class Changed(nn.Module):
    """`Tiny` of the fixtures with something else about it."""

    def __init__(self, tiny, act=torch.relu, renamed=False) -> None:
        super().__init__()
        names = ("stem", "down", "res", "late", "pool", "fc")
        for name in names:
            setattr(self, "residual" if renamed and name == "res" else name, getattr(tiny, name))
        self.renamed, self.act = renamed, act

    def forward(self, x):
        x = self.down(self.stem(x))
        y = self.residual(x) if self.renamed else self.res(x)
        z = self.act(y)
        x = x + z + z
        x = self.pool(self.late(x))
        return self.fc(torch.flatten(x, 1))


def test_only_the_same_graph_is_taken_whatever_its_weights(tiny):
    base = trace(Changed(copy.deepcopy(tiny)), torch.zeros(SHAPE))
    read = TargetProfile.parse(file_of(base).to_json().encode(), "profile 'x'")
    other_weights = copy.deepcopy(tiny)
    for parameter in other_weights.parameters():
        parameter.data += 1
    read.hold(trace(Changed(other_weights), torch.zeros(SHAPE)))
    wider = copy.deepcopy(tiny)
    wider.fc = nn.Linear(8, 6)
    changed = {
        "an operator": trace(Changed(copy.deepcopy(tiny), act=torch.tanh), torch.zeros(SHAPE)),
        "a name": trace(Changed(copy.deepcopy(tiny), renamed=True), torch.zeros(SHAPE)),
        "a shape": trace(Changed(wider), torch.zeros(SHAPE)),
    }
    for what, graph in changed.items():
        with pytest.raises(ConfigError, match="operators, shapes or names of nodes differ") as got:
            read.hold(graph, "mine")
        assert "is of another layer graph (net" in str(got.value), what
        assert "\n" not in str(got.value)
    larger = trace(Changed(copy.deepcopy(tiny)), torch.zeros(1, 3, 40, 40))
    with pytest.raises(ConfigError, match="its input is 1x3x32x32, not 1x3x40x40"):
        read.hold(larger)


def test_a_hash_of_another_scheme_says_nothing(graph):
    raw = json.loads(file_of(graph).to_json())
    raw["model"]["graph_hash"] = raw["model"]["graph_hash"].replace("graph2:", "graph1:")
    with pytest.raises(ConfigError, match="hashed by different versions"):
        TargetProfile.parse(json.dumps(raw).encode()).hold(graph)


@pytest.mark.parametrize("edit", ["dropped", "renamed", "payload", "swapped"])
def test_the_cuts_are_those_of_the_graph(graph, edit):
    raw = json.loads(file_of(graph).to_json())
    cuts = raw["cuts"]
    if edit == "dropped":
        del cuts[2]
    elif edit == "renamed":
        cuts[2]["name"] += "x"
    elif edit == "payload":
        cuts[2]["payload_bytes"] += 1
    else:
        cuts[1], cuts[2] = cuts[2], cuts[1]
    with pytest.raises(ConfigError, match="does not list the"):
        TargetProfile.parse(json.dumps(raw).encode()).times(graph, graph.cuts())


def test_the_machine_says_what_it_is():
    here = this_machine()
    assert here.cores >= 1
    assert here.memory_bytes is None or here.memory_bytes > 1 << 20
    assert here.torch == str(torch.__version__)
    assert here.gpu is None or torch.cuda.is_available()
    assert this_machine("my \x1b[31mname" + "x" * 999).name.startswith("my \\x1b[31mname")
    assert len(this_machine("x" * 999).name) == 255
