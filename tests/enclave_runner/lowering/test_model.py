"""A program and its ONNX model answer alike, as written and as ONNX Runtime rewrote it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from partopt.enclave_runner.lowering.model import LOWERINGS, lowered
from partopt.enclave_runner.lowering.optimised import LEVELS, optimised
from partopt.enclave_runner.program.allowed import OPERATORS
from partopt.enclave_runner.program.onnx_held import held, sizes
from partopt.enclave_runner.program.ort_runtime import PLAIN, How, Session
from partopt.enclave_runner.program.programs import Program
from partopt.enclave_runner.program.recording import record
from partopt.errors import ExportError

SIZE = 12


class Made(nn.Module):
    """Maps a batch of images by a function, with layers of its own."""

    def __init__(self, function, **layers):
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.function(self, x)


def seq(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


def made(function, **layers) -> nn.Module:
    return Made(function, **layers)


def windows(m, x):
    """What a shifted window attention does to its map."""
    n, c, h, w = x.shape
    x = torch.roll(x, (-2, -2), (2, 3))
    x = x.view(n, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, c)
    q, k, v = m.qkv(x).reshape(x.size(0), 16, 3, 1, c).permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=m.bias)


def tokens(m, x):
    """What a vision transformer does to its patches."""
    n = x.shape[0]
    x = m.patch(x).reshape(n, 8, 9).permute(0, 2, 1)
    x = torch.cat([m.token.expand(n, -1, -1), x], dim=1) + m.place
    return m.block(m.norm(x))[:, 0]


NETS = {
    "classic": seq(
        nn.Conv2d(3, 6, 3, 2, 1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU6(),
        nn.Conv2d(6, 6, 3, 1, "same", 2, groups=3),
        nn.Hardswish(),
        nn.AvgPool2d(3, 1, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(6, 4),
    ),
    "squeeze and excite": made(
        lambda m, x: (y := m.conv(x)) * torch.sigmoid(m.down(F.silu(y.mean((2, 3), keepdim=True)))),
        conv=nn.Conv2d(3, 5, 3),
        down=nn.Conv2d(5, 5, 1),
    ),
    "fire": made(
        lambda m, x: F.max_pool2d(
            torch.cat([m.a(x).relu(), m.b(x).relu()], 1), 3, 2, ceil_mode=True
        ),
        a=nn.Conv2d(3, 4, 1),
        b=nn.Conv2d(3, 5, 3, padding=1),
    ),
    "windows": made(windows, qkv=nn.Linear(3, 9), bias=nn.Parameter(torch.rand(1, 1, 16, 16))),
    "tokens": made(
        tokens,
        patch=nn.Conv2d(3, 8, 4, 4),
        token=nn.Parameter(torch.rand(1, 1, 8)),
        place=nn.Parameter(torch.rand(1, 10, 8)),
        norm=nn.LayerNorm(8),
        block=seq(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8), nn.GELU("tanh")),
    ),
    "shuffled": made(
        lambda m, x: [t.flip(3) for t in F.channel_shuffle(m.conv(x), 2).chunk(2, dim=1)][1],
        conv=nn.Conv2d(3, 8, 1),
    ),
    "norms": seq(
        nn.Conv2d(3, 8, 1),
        nn.GroupNorm(2, 8),
        nn.InstanceNorm2d(8, affine=True),
        nn.Softmax(1),
        nn.LayerNorm([8, SIZE, SIZE]),
    ),
    "activations": made(
        lambda m, x: sum(
            f(x)
            for f in (
                *(F.elu, F.celu, F.selu, F.mish, F.softplus, F.logsigmoid, F.hardsigmoid),
                *(F.leaky_relu, F.softshrink, F.hardshrink, F.hardtanh, torch.tanh, torch.erf),
                lambda x: F.threshold(x, 0.1, -1.0),
                lambda x: F.prelu(x, m.slope),
                lambda x: x.clamp(-0.5, 0.7).abs().sqrt(),
            )
        ),
        slope=nn.Parameter(torch.rand(3)),
    ),
    "arithmetic": made(
        lambda m, x: torch.where(
            x > 0.2, 3 - x * 2, (x - m.c) / (x**2 + 1) + x.pow(3) - torch.maximum(x, m.c)
        ),
        c=nn.Parameter(torch.rand(3, 1, 1)),
    ),
    "compared": made(lambda m, x: ((x >= 0) & ~(x < 0.5)).float() + (x != 0) + x.ne(1).to(x.dtype)),
    "reduced": made(
        lambda m, x: torch.cat(
            [
                *(x.sum((2, 3)), x.amax((2, 3)), x.amin((2, 3)), x.var((2, 3)), x.std((2, 3))),
                *(x.mean(3).max(2)[0], x.logsumexp((2, 3)), x.flatten(2).norm(dim=2)),
                x.flatten(2).argmax(2).float(),
            ],
            1,
        )
    ),
    "resized": made(
        lambda m, x: torch.cat(
            [
                F.interpolate(x, scale_factor=2, mode="nearest"),
                F.interpolate(x, scale_factor=2, mode="bilinear"),
                F.interpolate(x, size=(24, 24), mode="bilinear", align_corners=True),
                F.interpolate(x, scale_factor=2, mode="bicubic"),
                m.up(x),
            ],
            1,
        ),
        up=nn.ConvTranspose2d(3, 2, 2, 2),
    ),
    "padded": made(
        lambda m, x: torch.cat(
            [
                F.pad(x, (1, 2, 3, 4), value=0.5),
                *(F.pad(x, (1, 2, 3, 4), mode=k) for k in ("reflect", "replicate", "circular")),
            ]
        ).view(-1, 3, 19, 15)
    ),
    "pooled": seq(nn.Conv2d(3, 3, 2), nn.AdaptiveAvgPool2d((4, 3)), nn.AdaptiveMaxPool2d((2, 1))),
    "folded": made(
        lambda m, x: (
            x
            + torch.arange(SIZE).float().view(1, 1, 1, -1)
            + m.table[torch.arange(SIZE).flip(0)].view(1, 1, -1, 1)
            + x.new_zeros(1, 3, SIZE, SIZE).masked_fill(m.table > 0, -2.0)
        ),
        table=nn.Parameter(torch.rand(SIZE) - 0.5),
    ),
    "sliced": made(
        lambda m, x: (
            torch.stack(
                [
                    x[:, :, ::2, 1:].narrow(2, 1, 4)[..., :10],
                    x[:, :, 2:6, -10:].transpose(2, 3).reshape(x.shape[0], 3, 4, 10),
                ],
                dim=2,
            )
            .unsqueeze(1)
            .squeeze(1)
            .unflatten(1, (3, 1))
            .repeat(1, 1, 2, 1, 1, 1)
        )
    ),
    "pixels": made(lambda m, x: F.pixel_shuffle(F.pixel_unshuffle(x, 3), 3) + x.new_ones(x.shape)),
    "products": made(
        lambda m, x: (
            (x.flatten(2) @ x.flatten(2).transpose(1, 2))
            + torch.addmm(m.b, x.mean((2, 3)), m.w).unsqueeze(1)
            + torch.baddbmm(x[:, :, 0, :3], x[:, :, :3, 1], x[:, :, :3, 2], beta=0.5, alpha=2.0)
        ),
        b=nn.Parameter(torch.rand(3)),
        w=nn.Parameter(torch.rand(3, 3)),
    ),
}


def noise(batch: int) -> torch.Tensor:
    return torch.randn(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(batch))


def program_of(net: nn.Module) -> Program:
    torch.manual_seed(0)
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
            nn.init.normal_(norm.running_mean)
    return record(net.eval(), [noise(2)], True)


def answers(model: bytes, x: torch.Tensor) -> list[torch.Tensor]:
    session = Session(model, How(level=PLAIN))
    return [torch.from_numpy(a) for a in session.run({"x0": x.numpy()})]


@pytest.mark.parametrize("name", NETS)
def test_a_program_and_its_model_answer_alike(name):
    program = program_of(NETS[name])
    plain = lowered(program, [noise(1)], True)
    for model in (plain, *(optimised(plain, level) for level in LEVELS)):
        for batch in (1, 2, 3):
            x = noise(batch)
            for truth, found in zip(program(x), answers(model, x), strict=True):
                torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-5)
            shapes = sizes(held(model), {"x0": tuple(x.shape)})
            assert [s for s, _ in shapes] == [tuple(t.shape) for t in program(x)]


def test_a_model_at_a_fixed_batch_has_numbers_for_shapes():
    program = record(NETS["tokens"].eval(), [noise(1)], False)
    model = lowered(program, [noise(1)], False)
    torch.testing.assert_close(
        answers(model, noise(1))[0], program(noise(1))[0], rtol=1e-4, atol=1e-5
    )
    assert not any(n.op == "Shape" for n in held(model).nodes)


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (lambda m, x: x.cumsum(2), "aten.cumsum.default"),
        (lambda m, x: torch.sort(x, 3)[0], "aten.sort.default"),
        (lambda m, x: F.avg_pool2d(x, 3, divisor_override=2), "a pool with a divisor of its own"),
        (lambda m, x: x * x.shape[0], "grows with the batch"),
        (lambda m, x: x.squeeze(), "more dimensions at one batch size"),
        (lambda m, x: x.half().float(), "float16"),
    ],
)
def test_what_is_not_written_is_named(function, named):
    with pytest.raises(ExportError, match=named.replace(".", r"\.")):
        lowered(program_of(made(function)), [noise(1)], True)


def test_only_operators_that_programs_may_use_are_written():
    assert LOWERINGS.keys() <= OPERATORS
