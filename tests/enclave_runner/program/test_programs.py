import importlib
import json
from pathlib import Path

import pytest
import torch
from torch import fx, nn

from partopt.enclave_runner.program.allowed import OPERATORS
from partopt.enclave_runner.program.operators import operator_named
from partopt.enclave_runner.program.optimise import channels_last, parse, quickest
from partopt.enclave_runner.program.programs import Program
from partopt.enclave_runner.program.recording import join, record
from partopt.errors import BundleError, ExportError, UsageError
from partopt.graph.build import trace
from partopt.graph.splitting import split


@pytest.fixture
def halves(tiny):
    graph = trace(tiny, torch.zeros(1, 3, 32, 32))
    head, tail = split(graph, "down.0")
    x = torch.rand(1, 3, 32, 32)
    first = record(head, [x], True)
    return tiny, head, first, record(tail, list(first(x)), True), x


def again(program: Program) -> Program:
    return Program.from_json(program.to_json()).load(program.tensors)


def test_a_program_read_back_gives_the_models_answer_at_any_batch(halves):
    tiny, _, head, tail, _ = halves
    head, tail = again(head), again(tail)
    for batch in (1, 2, 5):
        x = torch.rand(batch, 3, 32, 32)
        with torch.inference_mode():
            assert torch.equal(tail(*head(x))[0], tiny(x))


def test_two_halves_join_to_the_whole(halves):
    tiny, _, head, tail, x = halves
    whole = again(join(head, tail))
    with torch.inference_mode():
        assert torch.equal(whole(x)[0], tiny(x))


def test_marks_are_read_in_order(halves):
    *_, head, _, x = halves
    ticks = iter(range(100))
    marks = {0: None, len(head.steps) - 1: None}
    _, read = head.run((x,), marks, lambda: next(ticks))
    assert read == {0: 0, len(head.steps) - 1: 1}


@pytest.mark.parametrize(
    "name",
    [
        "aten.from_file.default",
        "aten.relu_.default",
        "aten.nope.default",
        "prims.sin.default",
        "os.system",
        "aten.__class__.mro",
        "size.eval",
        "aten.conv2d",
        "aten._print.default",
        "aten.einsum.default",
    ],
)
def test_operators_that_a_program_may_not_name(name):
    with pytest.raises(BundleError, match="program names"):
        operator_named(name)


@pytest.fixture
def corpus(monkeypatch):
    """Layers and functions that the list of operators was measured on."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "benchmarks"))
    return importlib.import_module("operators")


@pytest.mark.parametrize("some", [20, pytest.param(1, marks=pytest.mark.slow)])
def test_what_export_writes_is_listed_sized_and_read_back(corpus, some):
    """Each network's program says on shapes what it then computes, and computes what it is."""
    for name, module, x in list(corpus.small())[::some]:
        if some == 1:
            assert corpus.written(module, x) <= OPERATORS, name
        program = again(record(module.eval(), [x], False))
        ghosts = program.sized([x])
        with torch.inference_mode():
            want = module(x)
        (got,) = program(x)
        assert (ghosts[0].shape, ghosts[0].dtype) == (got.shape, got.dtype), name
        torch.testing.assert_close(got, want, msg=name, equal_nan=True)


def changed(program: Program, change) -> str:
    data = json.loads(program.to_json())
    change(data)
    return json.dumps(data)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["steps"][0].__setitem__(0, "aten.from_file.default"),
        lambda d: d["steps"][0][1].__setitem__(0, {"v": 10**6}),
        lambda d: d["steps"][0][1].__setitem__(0, {"v": -1}),
        lambda d: d["steps"][0][1].__setitem__(0, {"v": 1.5}),
        lambda d: d["steps"][0][1].__setitem__(0, {"code": "x"}),
        lambda d: d["steps"][0][1].__setitem__(0, "text"),
        lambda d: d["steps"][0].pop(),
        lambda d: d.pop("outputs"),
        lambda d: d.__setitem__("outputs", [10**6]),
        lambda d: d.__setitem__("inputs", [1]),
        lambda d: d.__setitem__("steps", {}),
    ],
)
def test_a_damaged_program_is_refused(halves, change):
    with pytest.raises(BundleError):
        Program.from_json(changed(halves[2], change))


def test_noise_is_no_program():
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        noise = torch.randint(0, 255, (40,), generator=generator, dtype=torch.uint8)
        with pytest.raises(BundleError):
            Program.from_json(bytes(noise.tolist()))


def test_missing_weights_are_named(halves):
    program = Program.from_json(halves[2].to_json())
    with pytest.raises(BundleError, match=r"lack .*stem"):
        program.load({})


def test_custom_operators_are_refused_at_export():
    @torch.library.custom_op("partopt_test::double", mutates_args=())
    def double(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    @double.register_fake
    def _(x):
        return torch.empty_like(x)

    class Custom(nn.Module):
        def forward(self, x):
            return double(x)

    with pytest.raises(ExportError, match="no ATen operator"):
        record(fx.symbolic_trace(Custom(), {}), [torch.zeros(1, 3)], False)


def test_optimised_heads_agree_within_the_tolerance(halves):
    tiny, head, first, tail, x = halves
    choice = quickest(head, first, tail, x, parse("fold-bn,channels-last"), True, repetitions=1)
    assert choice.switches == ("fold-bn", "channels-last")
    assert choice.difference <= 1e-4
    boundary = again(choice.program)(x)
    assert boundary[0].is_contiguous()
    with torch.inference_mode():
        torch.testing.assert_close(tail(*boundary)[0], tiny(x))


def test_automatic_choice_reports_all_that_it_tried(halves):
    _, head, first, tail, x = halves
    choice = quickest(head, first, tail, x, None, True, repetitions=1)
    assert set(choice.tried) == {"none", "fold-bn", "channels-last", "fold-bn+channels-last"}
    if not choice.switches:
        assert choice.difference == 0


def test_channels_last_keeps_the_values_of_several_outputs(halves):
    *_, head, _, x = halves
    torch.testing.assert_close(channels_last(head)(x)[0], head(x)[0])


def test_unknown_switches():
    with pytest.raises(UsageError, match="`optimise` got 'magic'"):
        parse("magic")
    assert parse("none") == ()
    assert parse("auto") is None
