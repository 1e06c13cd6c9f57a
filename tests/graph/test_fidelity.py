"""The graph is the model, or there is no graph."""

import dataclasses
import random
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from partopt.errors import TraceError
from partopt.graph.answers import tensors
from partopt.graph.build import trace
from partopt.graph.fidelity import compare
from partopt.graph.reference import TOLERANCE, look, random_inputs, share, spread
from partopt.graph.splitting import split


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Conv2d(3, 8, 3, 2, 1)
        self.b = nn.Conv2d(8, 8, 3, 1, 1)
        self.fc = nn.Linear(8, 4)
        self.register_buffer("count", torch.zeros(()))

    def end(self, x):
        return self.fc(self.b(x).mean((2, 3)))


def net(forward):
    return type(forward.__name__, (Base,), {"forward": forward})().eval()


def slices(self, x):
    x = self.a(x)
    out = torch.zeros_like(x)
    out[:, :4, :, 1:] = x[:, :4, :, :-1]
    out[:, 4:] = x[:, 4:]
    return self.end(out)


def whole_slice(self, x):
    x = self.a(x)
    y = torch.empty_like(x)
    y[:] = x
    return self.end(y)


def rolled(self, x):
    x = torch.roll(self.a(x), 1, 2)
    x[:, :, 0] = 0
    return self.end(x)


def view(self, x):
    x = self.a(x)
    y = x[:, :4]
    y.add_(1)
    return self.end(x)


def view_that_never_fires(self, x):
    x = self.a(x)
    y = x[:, :4]
    y.masked_fill_(y > 1e4, 0.0)
    return self.end(x)


def chunks(self, x):
    x = self.a(x)
    p, q = x.chunk(2, 1)
    p += q
    return self.end(x)


def list_of_chunks(self, x):
    xs = list(self.a(x).split(4, 1))
    xs[0] = xs[0].relu_()
    return self.end(torch.cat(xs, 1))


def copied_into_view(self, x):
    x = self.a(x)
    x[:, 2:4].copy_(x[:, 4:6])
    return self.end(x)


def put(self, x):
    x = self.a(x)
    x.index_put_((torch.tensor([0]),), torch.tensor(1.0))
    return self.end(x)


def out_argument(self, x):
    x = self.a(x)
    y = torch.empty_like(x)
    torch.add(x, 1, out=y)
    return self.end(y)


def alias(self, x):
    x = self.a(x)
    before = x
    x += self.b(x)
    return self.end(x * before)


def same_tensor(self, x):
    x = self.a(x)
    before = F.dropout(x, training=False)
    x *= 2
    return self.end(x + before)


def overwritten_input(self, x):
    x.mul_(2)
    return self.end(self.a(x))


def sizes_in_place(self, x):
    x = self.a(x)
    n = x.shape[0]
    m = n
    n += 1
    return self.end(x) * m / n


def class_index(self, x):
    return view(self, x).argmax(1)


def optional(self, x, mask=None, scale=2.0):
    x = self.a(x)
    if mask is not None:
        x = x * mask
    return self.end(x) * scale


def type_test(self, x):
    x = self.a(x)
    return self.end(x * 2 if isinstance(x, torch.Tensor) else x)


def counter(self, x):
    self.count.add_(1)
    return self.end(self.a(x))


def twice(self, x):
    return self.end(self.b(self.a(x)))


def attributes(self, x):
    self.last = self.a(x)
    return self.end(self.last)


def spectrum(self, x):
    return self.end(torch.fft.ifft2(torch.fft.fft2(self.a(x)) * 2).real)


FOLLOWED = [
    slices,
    whole_slice,
    rolled,
    view,
    view_that_never_fires,
    chunks,
    list_of_chunks,
    copied_into_view,
    put,
    out_argument,
    alias,
    same_tensor,
    overwritten_input,
    sizes_in_place,
    class_index,
    optional,
    type_test,
    counter,
    twice,
    attributes,
    spectrum,
]


def holds(model, size=16):
    """Graph and every split give the model's answer; model and example are as they were."""
    x = random_inputs((torch.zeros(2, 3, size, size),), 2, 7)[0]
    with torch.no_grad():
        want = [t.clone() for t in tensors(model(x.clone()))]
    state = {n: t.clone() for n, t in model.state_dict().items()}
    own = {n: set(vars(m)) for n, m in model.named_modules()}
    rng, example = torch.get_rng_state(), torch.zeros(1, 3, size, size)
    graph = trace(model, example)
    assert torch.equal(rng, torch.get_rng_state())
    assert not example.any()
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())
    assert {n: set(vars(m)) for n, m in model.named_modules()} == own
    kept = x.clone()
    with torch.no_grad():
        assert all(map(torch.equal, tensors(graph.module(x)), want))
        for cut in graph.cuts("all"):
            head, tail = split(graph, cut, flat=True)
            got = [t.reshape(w.shape) for t, w in zip(tail(*head(x)), want, strict=True)]
            assert all(map(torch.equal, got, want)), cut.name
    assert torch.equal(x, kept)
    return graph


@pytest.mark.parametrize("forward", FOLLOWED, ids=lambda f: f.__name__)
def test_the_graph_is_the_model(forward):
    graph = holds(net(forward))
    assert graph.difference == 0
    assert {"a", "b"} <= {c.name for c in graph.cuts("all")}


def test_hooks_on_the_model_and_in_it_are_part_of_it():
    for hang in (
        lambda m: m.register_forward_pre_hook(lambda module, args: (args[0] * 3,)),
        lambda m: m.register_forward_hook(lambda module, args, answer: answer * 3),
        lambda m: m.b.register_forward_hook(lambda module, args, answer: answer * 3),
    ):
        model = net(twice)
        plain = trace(model, torch.zeros(1, 3, 16, 16))
        hang(model)
        graph = holds(model)
        x = torch.randn(1, 3, 16, 16)
        if not model.b._forward_hooks:  # which both graphs share
            assert not torch.equal(graph.module(x), plain.module(x))


def test_parametrised_weights():
    model = net(twice)
    nn.utils.parametrizations.weight_norm(model.b)
    nn.utils.parametrizations.spectral_norm(model.a)
    holds(model.eval())
    model = net(twice)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.utils.weight_norm(model.b)
        nn.utils.spectral_norm(model.a)
    holds(model.eval())


def test_a_model_in_training_mode_is_traced_in_eval_mode_and_left():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Conv2d(4, 2, 3))
    model.train()
    graph = trace(model, torch.zeros(1, 3, 8, 8))
    assert all(m.training for m in model.modules())
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        got = graph.module(x)
        assert torch.equal(got, graph.module(x))
        assert torch.equal(got, model.eval()(x))
    assert graph.module.get_submodule("0").weight is model[0].weight


@dataclasses.dataclass
class Answer:
    logits: torch.Tensor
    maps: tuple = ()


def as_dictionary(self, x):
    y = self.a(x)
    return {"logits": self.end(y), "maps": (y, [y.mean()])}


def as_record(self, x):
    y = self.a(x)
    return Answer(self.end(y), (y,))


def as_tuple(self, x):
    y = self.a(x)
    return self.end(y), (y, None)


@pytest.mark.parametrize("forward", [as_dictionary, as_record, as_tuple], ids=lambda f: f.__name__)
def test_answers_in_containers(forward):
    graph = holds(net(forward))
    assert "a" in [c.name for c in graph.cuts()], "part of the answer, but not all of it"


def random_rows(self, x):
    return self.end(F.dropout(self.a(x), 0.5))


def drawn(self, x):
    return self.end(self.a(x) + torch.rand(1))


def drawn_by_python(self, x):
    return self.end(self.a(x)) * random.random()


def hidden(self, x):
    return self.end(F.dropout(self.a(x), 0.5)).argmax(1) * 0


def counted(self, x):
    self.count.add_(1)
    return self.end(self.a(x)) * self.count


@pytest.mark.parametrize(
    ("forward", "said"),
    [
        (
            random_rows,
            r"random in eval mode: `dropout` at .*test_fidelity.py:\d+ \(`return self.en",
        ),
        (hidden, "random in eval mode: `dropout`"),
        (drawn, "`rand` at"),
        (drawn_by_python, "answers the same input differently in two runs; take out"),
        (counted, "writes to its own `count`"),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_models_that_answer_differently_each_time_are_refused(forward, said):
    with pytest.raises(TraceError, match=said):
        trace(net(forward), torch.zeros(1, 3, 16, 16))


def test_a_model_that_does_not_run_is_refused_at_once():
    with pytest.raises(TraceError, match="fails on an input of shape 1x4x16x16: "):
        trace(net(twice), torch.zeros(1, 4, 16, 16))


def test_a_batch_size_written_into_the_model():
    def fixed(self, x):
        return self.fc(self.a(x).view(1, 8, -1).mean(2)).expand(x.shape[0], 4)

    graph = trace(net(fixed), torch.zeros(1, 3, 16, 16))
    x = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(graph.module(x), net(fixed)(x))

    def only_one(self, x):
        return self.fc(torch.add(self.a(x), torch.ones(1, 8, 8, 8)).view(1, 8, -1).mean(2))

    graph = trace(net(only_one), torch.zeros(1, 3, 16, 16))
    with torch.no_grad():
        assert torch.equal(graph.module(x), net(only_one)(x))


def graph_of(model):
    return look(model, (torch.zeros(1, 3, 16, 16),)), trace(model, torch.zeros(1, 3, 16, 16)).module


def test_a_fault_is_named_where_it_begins():
    reference, module = graph_of(net(twice))
    assert compare(reference, module, None) is None
    new = nn.Conv2d(8, 8, 3, 1, 1)
    new.load_state_dict(module.b.state_dict())
    with torch.no_grad():
        new.bias[3] += 1e-3
    module.b = new
    found = compare(reference, module, None)
    assert found.where == "b"
    assert not found.tolerable


def test_a_fault_behind_a_class_index_or_a_constant_is_found():
    class Flat(Base):
        def forward(self, x):
            return (self.fc(self.b(self.a(x)).mean((2, 3))) * 1e-6 + 1e3).argmax(1)

    reference, module = graph_of(Flat().eval())
    new = nn.Conv2d(3, 8, 3, 2, 1)
    new.load_state_dict({n: t * 1.001 for n, t in module.a.state_dict().items()})
    module.a = new
    with torch.no_grad():
        assert torch.equal(
            module(reference.records[0].inputs[0]), reference.records[0].answer[0][1]
        )
    found = compare(reference, module, None)
    assert found.where == "a"
    assert found.share > 0


def test_rounding_is_measured_against_what_inputs_change():
    a = torch.tensor([[1000.0, 1.0], [1000.001, 2.0]])
    assert spread([a]) == 1.0
    assert spread([a[:, :1]]) == pytest.approx(1e-3, rel=0.1)
    # The same error is rounding beside the one and a fault beside the other.
    off = a + 1e-4
    assert share(a, off, spread([a])) < TOLERANCE
    assert share(a[:, :1], off[:, :1], spread([a[:, :1]])) > TOLERANCE
    nan = torch.tensor([1.0, float("nan"), float("inf")])
    assert share(nan, nan.clone(), 1.0) == 0
    assert share(nan, torch.tensor([1.0, 2.0, float("inf")]), 1.0) == float("inf")
    assert share(torch.tensor([1]), torch.tensor([2]), 100.0) == float("inf")


STEPS = {
    "conv": lambda m, x: m.b(x),
    "relu": lambda m, x: x.relu_(),
    "add": lambda m, x: x.add_(1),
    "iadd": lambda m, x: operator_iadd(x),
    "slice": lambda m, x: sliced(x),
    "view": lambda m, x: viewed(x),
    "roll": lambda m, x: torch.roll(x, 1, 3),
    "swap": lambda m, x: x.transpose(2, 3).contiguous(),
    "alias": lambda m, x: aliased(x),
    "chunk": lambda m, x: torch.cat([c.tanh_() for c in x.chunk(2, 1)], 1),
    "size": lambda m, x: x.reshape(x.shape[0], -1).view(x.shape[0], 8, *x.shape[2:]),
    "mask": lambda m, x: x.masked_fill(x > 1, 0.5),
    "pad": lambda m, x: F.interpolate(F.avg_pool2d(x, 2), size=x.shape[-2:]),
}


def operator_iadd(x):
    before = x
    x += 1
    return x * before


def sliced(x):
    x[:, 1:3] = x[:, 2:4] * 2
    return x


def viewed(x):
    x.view(x.shape[0], -1)[:, :7].mul_(3)
    return x


def aliased(x):
    y = x.detach()
    y -= 0.5
    return x + y


class Generated(Base):
    def __init__(self, steps, kept):
        super().__init__()
        self.steps, self.kept = steps, kept

    def forward(self, x, scale=None):
        x = self.a(x)
        before = x
        for i, step in enumerate(self.steps):
            if i == self.kept:
                before = x
            x = STEPS[step](self, x)
        return self.end(x + before)


@pytest.mark.parametrize("seed", range(24))
def test_generated_networks_are_followed(seed):
    draw = random.Random(seed)
    steps = [draw.choice(sorted(STEPS)) for _ in range(draw.randint(2, 5))]
    model = Generated(steps, draw.randrange(len(steps))).eval()
    graph = holds(model)
    assert graph.difference == 0
    assert graph.fixed_batch is None
