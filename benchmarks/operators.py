"""Which ATen operators exported programs hold: the list in `enclave_runner/program/allowed.py`.

    python benchmarks/operators.py                torch.nn's layers and arithmetic, seconds
    python benchmarks/operators.py --zoo          torchvision's classification networks too
    python benchmarks/operators.py --model NAME   one of them, or a factory

Prints the operators, sorted, with a network that each was seen in, and those that the list lacks
(exit code 1) or has and nothing wrote.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import nn

from partopt.enclave_runner.program.allowed import OPERATORS
from partopt.enclave_runner.program.recording import exported, is_check
from partopt.errors import ExportError, PartoptError
from partopt.graph.torchvision_cpu import models
from partopt.models.load import load_model

Tensor = torch.Tensor


class Calls(nn.Module):
    """A network of one function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """Apply it."""
        return self.function(x)


class Scaled(nn.Module):
    """A convolution with a norm and scale of each channel, as training code writes them by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(3, 1, 1))
        self.register_buffer("index", torch.tensor([2, 0, 1]))
        self.place = nn.Embedding(4, 16)

    def forward(self, x: Tensor) -> Tensor:
        """Norm by hand, channels picked by index, and an embedding."""
        x = (x - x.mean((2, 3), keepdim=True)) * torch.rsqrt(x.var((2, 3), keepdim=True) + 1e-5)
        x = (self.scale * x)[:, self.index].index_select(1, self.index)
        return x + self.place(torch.arange(4, device=x.device)).mean() + torch.ones_like(x)


def _grid(x: Tensor) -> Tensor:
    turn = torch.eye(2, 3)[None].repeat(len(x), 1, 1)
    return F.affine_grid(turn, x.shape, align_corners=False)


ACTIVATIONS: list[nn.Module] = [
    *(nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(), nn.PReLU(), nn.ELU(), nn.SELU(), nn.CELU()),
    *(nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Mish(), nn.Sigmoid(), nn.Tanh(), nn.Softplus()),
    *(nn.Softsign(), nn.Hardswish(), nn.Hardsigmoid(), nn.Hardtanh(), nn.Hardshrink()),
    *(nn.Softshrink(), nn.Tanhshrink(), nn.Threshold(0.1, 0.0), nn.LogSigmoid(), nn.Softmax(1)),
    *(nn.LogSoftmax(1), nn.Softmin(1), nn.GLU(2), nn.Softmax2d()),
]
LAYERS: list[nn.Module] = [
    *(nn.Conv2d(3, 4, 3), nn.Conv2d(3, 3, 3, groups=3, padding="same"), nn.Identity()),
    *(nn.ConvTranspose2d(3, 4, 2, 2), nn.BatchNorm2d(3), nn.GroupNorm(3, 3), nn.Dropout()),
    *(nn.LayerNorm(16), nn.InstanceNorm2d(3), nn.InstanceNorm2d(3, affine=True), nn.Dropout2d()),
    *(nn.LocalResponseNorm(2), nn.RMSNorm(16), nn.MaxPool2d(2), nn.AvgPool2d(2), nn.LPPool2d(2, 2)),
    *(nn.AdaptiveAvgPool2d(2), nn.AdaptiveMaxPool2d(2), nn.MaxPool2d(3, 2, ceil_mode=True)),
    *(nn.Upsample(scale_factor=2, mode=m) for m in ("nearest", "bilinear", "bicubic")),
    *(nn.Upsample(size=32, mode=m) for m in ("nearest", "bilinear", "bicubic", "nearest-exact")),
    *(nn.ZeroPad2d(1), nn.ReflectionPad2d(1), nn.ReplicationPad2d(1), nn.ConstantPad2d(1, 0.5)),
    *(nn.CircularPad2d(1), nn.PixelUnshuffle(2), nn.ChannelShuffle(3), nn.Flatten()),
    *(nn.Linear(16, 4), nn.Unfold(2), Scaled(), nn.AlphaDropout(), nn.FeatureAlphaDropout()),
]
SEQUENCES: list[nn.Module] = [
    *(nn.Linear(8, 4), nn.LayerNorm(8), nn.Conv1d(6, 4, 3), nn.BatchNorm1d(6), nn.MaxPool1d(2)),
    *(
        nn.AvgPool1d(2),
        nn.AdaptiveAvgPool1d(2),
        nn.AdaptiveMaxPool1d(2),
        nn.ConvTranspose1d(6, 2, 2),
    ),
    *(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Upsample(scale_factor=2)),
]
FUNCTIONS: list[Callable[[Tensor], Tensor]] = [
    lambda x: x + x * 2 - x / 3 + (1 - x) - (2 / (x + 3)) + x**2 + 2**x + (-x) + torch.pow(x, x),
    lambda x: x.abs() + x.exp() + x.abs().sqrt() + x.sin() + x.cos() + x.square() + x.sign(),
    lambda x: (x.abs() + 1).log() + x.expm1() + x.abs().log1p() + x.erf() + (x + 1).reciprocal(),
    lambda x: x.floor() + x.ceil() + x.round() + x.trunc() + x.frac() + x.atan() + x.sinh(),
    lambda x: x.clamp(0, 1) + x.clamp(min=0.1) + x.clamp_min(0) + x.clamp_max(1) + x.tan(),
    lambda x: torch.maximum(x, x * 2) + torch.minimum(x, x * 2) + torch.atan2(x, x) + x.cosh(),
    lambda x: torch.where(x > 0, x, x * 2) + torch.where(x >= 0, x, 0.0) + x.masked_fill(x < 0, 0),
    lambda x: ((x <= 0.5) | (x == 0) & (x != 1) ^ ~(x > 0.2)).float() + torch.logical_not(x > 0),
    lambda x: (x > x.mean()).to(torch.float32) * (x < x.mean()).int() + (x >= x.mean()).float(),
    lambda x: torch.logical_and(x > 0, x < 1).float() + torch.logical_or(x > 0, x < 1) + x.fmod(2),
    lambda x: (
        x.sum() + x.mean((2, 3)).sum() + x.sum(1).amax() + x.amin() + x.std() + x.var(1).sum()
    ),
    lambda x: x.max(1)[0] + x.min(1).values + x.prod(1) + x.argmax(1) + x.norm(dim=1) + x.amax(1),
    lambda x: x.logsumexp(1) + x.cumsum(1)[:, 0] + x.topk(2, 1).values[:, 0] + x.sort(1)[0][:, 1],
    lambda x: F.normalize(x, dim=1) + torch.linalg.vector_norm(x, dim=1, keepdim=True) + x.max(),
    lambda x: x.flatten(1).view(x.shape[0], -1, 4).permute(0, 2, 1).reshape(x.shape[0], -1),
    lambda x: x.transpose(1, 2).contiguous().unsqueeze(1).squeeze(1).flip(1).roll(1, 2).clone(),
    lambda x: torch.cat([x, x[:, :1], x[..., 1:]], 1) if x.shape[-1] == 1 else torch.cat([x, x], 1),
    lambda x: (
        torch.stack([x, x], 1).unbind(1)[0] + x.chunk(2, 2)[0].mean() + x.split(8, 3)[1].sum()
    ),
    lambda x: (
        sum(t.mean() for t in x.split([4, 12], 2)) + x.narrow(2, 0, 4).mean() + x[:, 0].mean()
    ),
    lambda x: x.expand(2, *x.shape)[0] + x.repeat(1, 1, 1, 2)[..., :16] + x.tile(2)[..., :16],
    lambda x: x.repeat_interleave(2, 1)[:, :3] + x.expand_as(x) + x.type_as(x) + x.half().float(),
    lambda x: x.unflatten(1, (1, 3)).movedim(1, 2).flatten(1, 2).swapaxes(1, 2).mT.T.mean(0).mean(),
    lambda x: (
        x @ x.mT + torch.bmm(x[:, 0], x[:, 1])[:, None] + torch.matmul(x, x) + x[:, :, ::2].sum()
    ),
    lambda x: torch.addmm(x[0, 0], x[0, 1], x[0, 2]),
    lambda x: torch.baddbmm(x[:, 0], x[:, 1], x[:, 2]) + torch.tensordot(x[:, 0], x[0, 0], 1),
    lambda x: (
        F.pad(x, (1, 1))[..., 1:-1] + F.pad(x, (1, 0, 0, 0), "replicate")[..., 1:] + x.new_zeros(1)
    ),
    lambda x: F.interpolate(x, size=16, mode="bilinear", antialias=True) + F.unfold(x, 2).mean(),
    lambda x: F.fold(F.unfold(x, 2, stride=2), 16, 2, stride=2) + torch.zeros_like(x) + x.detach(),
    lambda x: F.pixel_shuffle(x.repeat(1, 4, 1, 1), 2) + F.one_hot(x.argmax(3), 16).float().mean(),
    lambda x: (
        F.scaled_dot_product_attention(x, x, x) + F.cosine_similarity(x, x).mean() + x.new_ones(1)
    ),
    lambda x: F.grid_sample(x, _grid(x), align_corners=False),
    lambda x: (
        x + torch.linspace(0, 1, 16) + torch.arange(16) + torch.full((1,), 0.5) + torch.zeros(1)
    ),
    lambda x: (
        x + x.new_full((1,), 0.5) + torch.ones(1) + torch.arange(0, 32, 2) + torch.full_like(x, 2)
    ),
    lambda x: (
        torch.gather(x, 3, x.argmax(3, keepdim=True)) + x.tril().mean() + x.triu() + x.diff().sum()
    ),
    lambda x: x.new_zeros((1,)) + x.mean(1, keepdim=True) + torch.outer(x[0, 0, 0], x[0, 0, 1]),
    lambda x: (
        x.sigmoid().logit() + x.softmax(-1) + x.log_softmax(-1) + torch.lerp(x, x, 0.5) + x.sub(1)
    ),
    lambda x: (
        x.floor_divide(2) + torch.div(x, 2, rounding_mode="floor") + x.remainder(2) + x.isnan()
    ),
    lambda x: (
        torch.addcmul(x, x, x) + torch.addcdiv(x, x, x + 3) + torch.hypot(x, x) + x.double().float()
    ),
    lambda x: (
        x.nan_to_num() + (x.any(1) | x.all(1)).float()[:, None] + x.bool().long().bfloat16().float()
    ),
    lambda x: (
        x[:, [0, 2]].sum(1) + x.select(1, 0) + x.take_along_dim(x.argsort(1), 1)[:, 0] + x.median()
    ),
    lambda x: (
        F.avg_pool2d(x, 2, count_include_pad=False).mean()
        + F.max_pool2d(x, 2).mean()
        + torch.rsub(x, 1)
    ),
    lambda x: (
        x[:, :1].squeeze().mean() + x[:, :1, :1].squeeze((1, 2)).mean() + torch.mm(x[0, 0], x[0, 1])
    ),
    lambda x: (
        x.min() + x.any().float() + x.all() + (x == x * 2).float() + (x != x * 2) + (x <= x * 2)
    ),
    lambda x: (
        x.clamp(x * 0, x * 2) + torch.bitwise_and(x > 0, x < 1).float() + x.abs().log2().exp2()
    ),
    lambda x: (
        x.abs().log10() + x.asin() + x.acos() + x.erfc() + x.cumprod(1) + x.atanh() + x.asinh()
    ),
    lambda x: (
        torch.mv(x[0, 0], x[0, 0, 0]) + torch.dot(x[0, 0, 0], x[0, 0, 1]) + x[0, 0].t() + x.acosh()
    ),
    lambda x: (
        x.std(1).mean() + x.std((2, 3), unbiased=False).mean() + torch.var_mean(x, 1)[0].mean()
    ),
    lambda x: (
        torch.std_mean(x, 1)[0].mean() + x.var(dim=1, unbiased=False).mean() + x.var() + x.min(1)[0]
    ),
    lambda x: (
        torch.zeros_like(x).scatter(3, x.argmax(3, keepdim=True), 1.0)
        + x.movedim((1, 2), (2, 1)).mean()
    ),
    lambda x: (
        x.split([1, 2], 1)[0].mean() + x.tensor_split(3, 1)[0].mean() + torch.hstack([x, x]).mean()
    ),
    lambda x: (
        x.adjoint().mean()
        + x.transpose(-1, -2).mean()
        + x.ravel().sum()
        + x.view_as(x).reshape_as(x)
    ),
    lambda x: torch.vstack([x, x])[:1] + torch.concat([x, x], 0).mean() + x.rot90(1, (2, 3)),
    lambda x: (
        x.maximum(x.new_tensor(0.1)) + x.argmin(1, keepdim=True) + x.sum((2, 3), keepdim=True)
    ),
    lambda x: (
        F.relu6(x) + F.softmax(x.flatten(2), -1).sum() + F.hardtanh(x, 0, 6) + F.glu(x, 3).mean()
    ),
    lambda x: (
        F.conv2d(x, x.new_ones(3, 1, 1, 1), groups=3) + F.linear(x, x.new_ones(16, 16)) + x.pow(0.5)
    ),
    lambda x: (
        x.clamp_min(x * 0.5) + x.heaviside(x) + x.logaddexp(x) + x.deg2rad() + x.sinc() + x.sgn()
    ),
    lambda x: (
        (x * 255).to(torch.uint8).float()
        + x.to(torch.float64).to(torch.float32)
        + x.cpu()
        + x.to(x)
    ),
    lambda x: (
        torch.where(x > 0, 1.0, 0.0) + torch.where(x > 0, 0.0, x) + x.gt(0).sum(1, keepdim=True)
    ),
    lambda x: (
        (x.long() + 1) % 2
        + (x.int() // 2)
        + (x.long() << 1)
        + (x.long() & 1)
        + x.floor().long().abs()
    ),
    lambda x: (
        F.mse_loss(x, x * 2)
        + F.l1_loss(x, x * 2)
        + x.mul(2).div(2).add(x, alpha=2).neg()
        + x.numel()
    ),
]


def _assigned(x: Tensor) -> Tensor:
    """What is written into parts of a tensor becomes scatters and copies."""
    y = x.clone()
    y[:, 0] = 0
    y[:, 1] = x[:, 2]
    y[:, :, 2:4] = 1
    y[:, :, :, 1:5] += x[:, :, :, 3:7]
    y[:, [0, 2]] = 0.5
    y[0].add_(1).mul_(2).clamp_(0, 1).relu_()
    y[:, 1].fill_(3).sub_(1).div_(2)
    y.masked_fill_(x > 1, 0).copy_(x)
    z = torch.zeros(len(x), 4, 16, 16)
    z[:, :3] = y
    return torch.relu_(z) + F.leaky_relu_(z.clone()) + F.hardswish(z.clone(), inplace=True)


def small() -> Iterator[tuple[str, nn.Module, Tensor]]:
    """Layers and functions, each as a network, and an input of two images (or sequences)."""
    images, rows = torch.rand(2, 3, 16, 16), torch.rand(2, 6, 8)
    for layer in [*ACTIVATIONS, *LAYERS]:
        yield type(layer).__name__, layer, images
    for layer in SEQUENCES:
        yield type(layer).__name__, layer, rows
    yield "assignments", Calls(_assigned), images
    yield "MultiheadAttention", Calls(_attention), rows
    for number, function in enumerate(FUNCTIONS):
        yield f"function {number}", Calls(function), images


def _attention(x: Tensor) -> Tensor:
    weight = torch.ones(24, 8)
    return F.multi_head_attention_forward(
        *(x.transpose(0, 1), x.transpose(0, 1), x.transpose(0, 1), 8, 2, weight, None, None, None),
        *(False, 0.0, torch.ones(8, 8), None),
        training=False,
    )[0]


def written(module: nn.Module, example: Tensor) -> set[str]:
    """Operators of the module's program, at one batch size and at any, as it is and functional.

    Raises:
        ExportError: The module cannot be exported in either way.
    """
    found: set[str] = set()
    error: ExportError | None = None
    for dynamic in (False, True):
        try:
            program = exported(module.eval(), [example], dynamic)
        except ExportError as caught:
            error = caught
            continue
        # Beside a single operator that writes to its argument, all others are written like this.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            functional = program.run_decompositions({})
        for way in (program, functional):
            found |= {
                str(n.target)
                for n in way.graph.nodes
                if isinstance(n.target, torch._ops.OpOverload)
                and not n.target._schema.is_mutable
                and not is_check(n)
            }
    if not found and error is not None:
        raise error
    return found


def of_model(name: str) -> set[str]:
    """Operators of a model's program, at the smallest input that it takes of a few."""
    error: PartoptError | None = None
    for size in (64, 96, None):
        try:
            loaded = load_model(name, weights="none", input_size=size)
            return written(loaded.trace().module, loaded.example())
        except PartoptError as caught:
            error = caught
    assert error is not None
    raise error


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--zoo", action="store_true")
    parser.add_argument("--model", action="append", default=[])
    args = parser.parse_args()
    seen: dict[str, str] = {}
    jobs: list[tuple[str, Callable[[], set[str]]]] = [
        (name, lambda m=module, x=example: written(m, x)) for name, module, example in small()
    ]
    names = [*(models.list_models(module=models) if args.zoo else []), *args.model]
    jobs += [(name, lambda n=name: of_model(n)) for name in names]
    for name, job in jobs:
        try:
            found = job()
            print(f"{name}: {len(found)} operators", file=sys.stderr, flush=True)
            for operator in found:
                seen.setdefault(operator, name)
            if lacking := sorted(found - OPERATORS):
                print(f"{name}: {' '.join(lacking)}", file=sys.stderr, flush=True)
        except PartoptError as error:
            print(f"{name} cannot be exported: {error}", file=sys.stderr)
    for operator in sorted(seen):
        print(f"{operator:<50} {seen[operator]}")
    lacking, idle = sorted(seen.keys() - OPERATORS), sorted(OPERATORS - seen.keys())
    print(f"not in the list: {' '.join(lacking) or '-'}")
    print(f"written by nothing of this run: {' '.join(idle) or '-'}")
    return 1 if lacking else 0


if __name__ == "__main__":
    sys.exit(main())
