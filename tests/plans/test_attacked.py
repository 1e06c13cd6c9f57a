"""Our own attacker on what a blinded layer sends: as good as blind; with a mask used again, not."""

from __future__ import annotations

import numpy as np
import torch

from partopt.attackers.base import Context
from partopt.attackers.blind import Blind
from partopt.attackers.pairs import Pairs
from partopt.attackers.panel import make
from partopt.attackers.scoring import ssim_of
from partopt.blinded import masks
from partopt.blinded.engine import Engine
from partopt.blinded.outside import Worker
from partopt.blinded.ring import subtract, uniform
from partopt.blinded.transcript import Recorder
from partopt.images.dead_leaves import dead_leaves

PARTS = slice(0, 72), slice(72, 84), slice(84, 100)


def above_the_floor(made) -> float:
    """SSIM of the linear attacker above what is reached without any map."""
    pictures = dead_leaves(100, 32, seed=11)
    stem = made.network.layers["stem_0"]
    recorder = Recorder(Worker([stem.layer]))
    engine = Engine([stem.layer], recorder)
    for picture in pictures:
        values = torch.from_numpy(picture)[None].float() / 255 - 0.5
        engine.request().compute("stem_0", stem.integers(values))
    sent = recorder.sent["stem_0"]
    # What a host would try first: the difference from another request, as a signed number.
    maps = torch.cat([subtract(s, sent[0]) for s in sent]).to(torch.float64)
    rows = (maps / maps.std()).to(torch.float16).numpy()
    scores = []
    for attacker in (make("linear"), Blind(steps=3)):
        train, held_out, test = ((rows[p], pictures[p]) for p in PARTS)
        attacker.fit(Pairs.of(train, held_out), Context())
        scores.append(float(np.mean(ssim_of(attacker.reconstruct, *test))))
    return scores[0] - scores[1]


def test_a_transcript_cannot_be_inverted(made):
    assert above_the_floor(made) < 0.05


def test_a_mask_used_again_can(made, monkeypatch):
    same = uniform((1, 3, 32, 32))
    monkeypatch.setattr(masks, "uniform", lambda shape: same.clone())
    assert above_the_floor(made) > 0.3
