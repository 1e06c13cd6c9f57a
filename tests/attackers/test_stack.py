from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from partopt import testing
from partopt.attackers.base import Attacker, Context, Fitted, as_images
from partopt.attackers.decoder import Decoder
from partopt.attackers.fast_ssim import fast_ssim
from partopt.attackers.hybrid import Hybrid
from partopt.attackers.linear import Linear
from partopt.attackers.newton import Newton
from partopt.attackers.pairs import Pairs
from partopt.attackers.scoring import ssim_of
from partopt.attackers.stack import MOST, Stack, _on_simplex, fit_weights, mean_ssim
from partopt.errors import AttackError, UsageError

LINEAR = Linear(max_cells=20_000)
DECODER = Decoder(epochs=2, width=16, narrowest=8, blocks=1, batch=8, linear=LINEAR)


class Faked(Attacker):
    """Rebuilds images from features that are the images, with errors of its own."""

    name = "faked"
    augments = True

    def __init__(self, change, rising: bool = False, stops: bool = False) -> None:
        self.change, self.still_rising, self.stops = change, rising, stops
        self.fits, self.seeds = 0, []

    def settings(self):
        return {"change": self.change}

    def fit(self, pairs, context):
        self.fits += 1
        self.seeds.append(context.seed)
        context.image_steps += len(pairs.images)
        context.stopped_early = self.stops

    def reconstruct(self, features):
        return self.change(torch.from_numpy(features).float())


def noisy(seed: int, much: float):
    noise = torch.randn(3, 48, 48, generator=torch.Generator().manual_seed(seed))
    return lambda x: (x + much * noise).clamp(0, 1)


def fitted(stack: Stack, leaves, context: Context | None = None) -> Stack:
    stack.fit(pairs_of(leaves), context or Context(3))
    return stack


def pairs_of(leaves, key: str = "these") -> Pairs:
    x = (leaves / np.float32(255)).astype(np.float32)
    pairs = Pairs.of((x[:8], leaves[:8]), (x[8:24], leaves[8:24]))
    return replace(pairs, key=key)


def value(stack: Attacker, leaves, rows=slice(24, 40)) -> float:
    x = (leaves / np.float32(255)).astype(np.float32)
    return float(ssim_of(stack.reconstruct, x[rows], leaves[rows]).mean())


def test_errors_that_members_do_not_share_cancel(leaves):
    members = [Faked(noisy(i, 0.2)) for i in range(2)]
    stack = fitted(Stack(linear=members[0], decoder=members[1], seeds=(0,)), leaves)
    alone = [value(m, leaves) for m in members]
    assert value(stack, leaves) > max(alone) + 0.05
    assert sum(stack.weights.values()) == pytest.approx(1, abs=1e-5)
    assert all(0.4 < w < 0.6 for w in stack.weights.values())


def test_the_stronger_member_weighs_more_and_a_useless_one_does_not_run(leaves):
    better, worse = Faked(noisy(0, 0.15)), Faked(noisy(1, 0.25))
    stack = fitted(Stack(linear=better, decoder=worse, seeds=(0,)), leaves)
    assert stack.weights["linear"] > stack.weights["decoder 0"] > 0.05
    useless = Faked(lambda x: torch.full_like(x, 0.5).roll(1, 0))
    stack = fitted(Stack(linear=Faked(noisy(0, 0.02)), decoder=useless, seeds=(0,)), leaves)
    assert list(stack.weights) == ["linear"]
    useless.change = None  # would fail if it ran
    assert value(stack, leaves) > 0.8


def test_weights_are_fitted_on_validation_images_alone(leaves):
    """A member that knows the training images by heart, and one that is honest."""
    known = {x.tobytes(): i for i, x in enumerate(leaves[:8])}

    def by_heart(x):
        pictures = (x * 255).round().byte().numpy()
        rows = [known.get(p.tobytes()) for p in pictures]
        return torch.stack(
            [torch.full((3, 48, 48), 0.5) if r is None else x[i] for i, r in enumerate(rows)]
        )

    cheat, honest = Faked(by_heart), Faked(noisy(0, 0.2))
    assert value(cheat, leaves, slice(0, 8)) > 0.99
    stack = fitted(Stack(linear=cheat, decoder=honest, seeds=(0,)), leaves)
    assert stack.weights.get("linear", 0) < 0.5
    assert value(stack, leaves) >= value(honest, leaves) - 1e-3


def test_never_below_its_best_member_on_validation_images(leaves):
    truth = as_images(leaves[:12])
    generator = torch.Generator().manual_seed(0)
    for count in (1, 2, 5, MOST):
        rebuilt = torch.stack(
            [
                (
                    truth * torch.rand(1, generator=generator)
                    + 0.3 * torch.rand(truth.shape, generator=generator)
                ).clamp(0, 1)
                for _ in range(count)
            ]
        )
        weights = fit_weights(rebuilt.half(), truth, 8, 0.1)
        assert float(weights.sum()) == pytest.approx(1, abs=1e-5)
        assert float(weights.min()) >= 0
        reached = mean_ssim(rebuilt.half(), truth, weights)
        alone = [float(fast_ssim(r.half().float(), truth).mean()) for r in rebuilt]
        even = float(fast_ssim(rebuilt.half().float().mean(0), truth).mean())
        assert reached >= max(*alone, even) - 1e-5


def test_a_member_alone_counts_and_the_ascent_finds_what_least_squares_does_not(leaves):
    """Of a blurred and a noisy picture SSIM likes another mean than squared errors do."""
    truth = as_images(leaves[:12])
    blurred = F.avg_pool2d(truth, 5, 1, 2, count_include_pad=False)
    rebuilt = torch.stack([blurred, noisy(0, 0.3)(truth)])
    some = fit_weights(rebuilt, truth, 0, 0.1)
    # Without the ascent the blurred one alone is better than what least squares mixes.
    assert some.tolist() == [1, 0]
    more = fit_weights(rebuilt, truth, 25, 0.1)
    assert mean_ssim(rebuilt, truth, more) > mean_ssim(rebuilt, truth, some) + 1e-3


@pytest.mark.parametrize(
    ("point", "nearest"),
    [
        ((0.2, 0.8), (0.2, 0.8)),
        ((2.0, 0.0), (1.0, 0.0)),
        ((0.5, 0.5, 0.5), (1 / 3, 1 / 3, 1 / 3)),
        ((0.7, 0.5, -3.0), (0.6, 0.4, 0.0)),
    ],
)
def test_the_nearest_weights(point, nearest):
    assert _on_simplex(torch.tensor(point)).tolist() == pytest.approx(nearest, abs=1e-6)


def test_what_is_fitted_on_the_same_pairs_is_not_fitted_again(leaves):
    decoder, linear = Faked(noisy(0, 0.1)), Faked(noisy(1, 0.1))
    context = Context(3)
    other_pairs = pairs_of(leaves, "others")
    context.fitted[context.key_of(repr(decoder), pairs_of(leaves))] = Fitted(decoder, 7.0, 1000)
    context.fitted[context.key_of(repr(linear), other_pairs)] = Fitted(linear, 7.0, 1000)
    taken = dict(context.fitted)
    stack = fitted(Stack(linear=linear, decoder=decoder, seeds=(0, 5)), leaves, context)
    assert decoder.fits == 0
    assert stack._fitted["decoder 0"] is decoder
    assert stack._fitted["linear"].fits == 1
    other = stack._fitted["decoder 5"]
    assert (other.fits, len(other.seeds)) == (1, 1)
    assert other.seeds[0] != 3
    assert context.cost(0.0) == (1000 + 2 * 8, 7.0)
    assert context.fitted == taken


def test_a_leak_that_a_member_proves_is_that_members(leaves):
    proving, later = Faked(noisy(0, 0.1), stops=True), Faked(noisy(1, 0.1))
    context = Context(0)
    stack = Stack(linear=Faked(noisy(2, 0.1)), decoder=proving, second=later, seeds=(0,))
    fitted(stack, leaves, context)
    assert context.stopped_early
    assert stack.weights == {"decoder 0": 1.0}
    assert value(stack, leaves) == value(proving, leaves)
    assert "second 0" not in stack._fitted


def test_a_member_that_was_still_rising_is_told():
    stack = Stack()
    stack._fitted = {"linear": Faked(None), "decoder 0": Faked(None)}
    assert not stack.still_rising
    stack._fitted["second 0"] = Faked(None, rising=True)
    assert stack.still_rising


def test_members_that_need_the_head():
    assert not Stack().needs_head
    for extra in (
        {"newton": Newton()},
        {"hybrid": Hybrid()},
        {"second": Decoder(losses=("perceptual",))},
    ):
        stack = Stack(**extra)
        assert stack.needs_head
        with pytest.raises(AttackError, match="needs the public head"):
            images = np.zeros((1, 3, 9, 9), np.uint8)
            part = np.zeros((1, 1, 2, 2)), images
            stack.fit(Pairs.of(part, part), Context())


@pytest.mark.parametrize("seeds", [(), (0, 0), (-1,), tuple(range(MOST))])
def test_seeds_that_make_no_sense(seeds):
    with pytest.raises(UsageError, match="`seeds` got"):
        _ = Stack(seeds=seeds).needs_head


def test_safer_settings_reach_every_member():
    safer = Stack(second=Decoder(batch=8), hybrid=Hybrid()).safer()
    assert isinstance(safer, Stack)
    assert safer.decoder.batch == Decoder().batch // 2
    assert safer.second.batch == 4
    assert safer.hybrid.decoder.lr < Decoder().lr


def test_real_members_white_box_ones_too():
    where = testing.arena(testing.convolutions())
    held = slice(96, 112)
    few = {
        "steps": 6,
        "tvs": (0.03,),
        "distances": ("l2",),
        "tuning_images": 4,
        "batch": 16,
        "sizes": ("input",),
        "levels": ((0,),),
    }
    stack = Stack(linear=LINEAR, decoder=DECODER, steps=6, hybrid=Hybrid(decoder=DECODER, **few))
    f, i = where.features, where.images
    context = Context(0, head=where.head, input_size=48)
    stack.fit(Pairs.of((f[:64], i[:64]), (f[held], i[held])), context)
    assert list(stack._fitted) == ["linear", "decoder 0", "decoder 1", "hybrid"]
    assert stack._fitted["hybrid"].decoder is stack._fitted["decoder 0"]
    own = ssim_of(stack.reconstruct, f[held], i[held]).mean()
    for member in stack._fitted.values():
        assert own >= ssim_of(member.reconstruct, f[held], i[held]).mean() - 1e-3
    first, second = (stack._fitted[f"decoder {s}"].reconstruct(f[held]) for s in (0, 1))
    assert not torch.equal(first, second)
