from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from partopt.blinded.masks import Bank, Pad
from partopt.blinded.ring import add
from partopt.errors import BlindingError, ServiceError, UsageError

from .conftest import LAYERS, inputs

ONE = LAYERS["tokens"]
ZERO = torch.zeros(1, *ONE.shape, dtype=torch.int32)
# A process that takes one mask from a bank, and so does its child; then it is killed.
SCRIPT = """
import os, signal, torch
from partopt.blinded.masks import Bank
from partopt.blinded.layers import Layer
from partopt.errors import BlindingError
layer = Layer("l", torch.ones(2, 12, dtype=torch.int8), (5, 12), 255)
bank = Bank([layer], capacity=2)
bank.fill()
early = bank.take()[0].take("l")
zero = torch.zeros(1, 5, 12, dtype=torch.int32)
def show():
    value = bank.take()[0].take("l").mask(zero)
    os.write(1, f"{bank.identity.hex()} {value.flatten().tolist()}\\n".encode())
if os.fork() == 0:
    try:
        early.mask(zero)
        os.write(1, b"reused\\n")
    except BlindingError:
        show()
    os._exit(0)
os.wait()
show()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_pad_works_once():
    pad = Pad(ONE)
    with pytest.raises(BlindingError, match="masks once, then unmasks once"):
        Pad(ONE).unmask(torch.zeros(1, *ONE.output_shape, dtype=torch.int32))
    pad.mask(ZERO)
    with pytest.raises(BlindingError, match="was used"):
        pad.mask(ZERO)
    answer = torch.zeros(1, *ONE.output_shape, dtype=torch.int32)
    pad.unmask(answer)
    with pytest.raises(BlindingError):
        pad.unmask(answer)


def test_a_value_of_the_wrong_shape_uses_the_mask_up():
    pad = Pad(ONE)
    with pytest.raises(ValueError, match="got"):
        pad.mask(ZERO[:, :1])
    with pytest.raises(BlindingError):
        pad.mask(ZERO)


def test_masks_cannot_be_copied_or_stored():
    bank = Bank([ONE])
    bank.fill()
    pads = bank.take()[0]
    for thing in (bank, pads, pads.take("tokens")):
        for copied in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(BlindingError, match="second time"):
                copied(thing)


def test_threads_never_get_the_same_mask():
    bank = Bank([ONE], capacity=20)
    bank.fill()

    def take(_: int) -> tuple[int, tuple[int, ...]]:
        pads = bank.take()[0]
        return pads.serial, tuple(pads.take("tokens").mask(ZERO).flatten().tolist())

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(take, range(60)))
    assert len({s for s, _ in found}) == 60
    assert len({m for _, m in found}) == 60
    assert bank.serial == 60


def test_neither_death_nor_forking_brings_a_mask_back():
    runs = [
        subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
        for _ in range(2)
    ]
    lines = [line for run in runs for line in run.stdout.splitlines()]
    assert [run.returncode for run in runs] == [-9, -9], runs[0].stderr
    assert len(lines) == 4
    identities, masks = zip(*(line.split(" ", 1) for line in lines), strict=True)
    assert len(set(identities)) == 4
    assert len(set(masks)) == 4


def test_an_empty_bank_makes_more_or_is_busy():
    makes = Bank([ONE], capacity=1)
    assert makes.fill() == 1
    assert makes.fill() == 0
    assert [p.serial for p in makes.take(3)] == [0, 1, 2]
    busy = Bank([ONE], capacity=2, when_empty="busy")
    assert busy.fill(1) == 1
    with pytest.raises(ServiceError, match="2 images were asked for and 1 are ready") as caught:
        busy.take(2)
    assert caught.value.code == "busy"
    assert len(busy) == 1, "what is ready is not lost to a request that was refused"
    assert busy.take(1)[0].serial == 0
    with pytest.raises(ServiceError):
        busy.take()


def test_each_layer_once_a_request():
    pads = Bank([ONE, LAYERS["plain"]]).take()[0]
    pads.take("plain")
    for name in ("plain", "nope"):
        with pytest.raises(BlindingError, match="no pad left"):
            pads.take(name)


def test_factors_are_the_layers_of_the_masks(layer):
    pad = Pad(layer)
    mask, factor = pad._mask, pad._factor
    assert torch.equal(pad.mask(inputs(layer, 1)), add(inputs(layer, 1), mask))
    assert factor.shape == (1, *layer.output_shape)
    bank = Bank([layer])
    assert bank.bytes_each == mask.nbytes + factor.nbytes


def test_odd_arguments():
    with pytest.raises(UsageError, match="use make or busy"):
        Bank([ONE], when_empty="wait")
    with pytest.raises(UsageError, match="`capacity` got 0"):
        Bank([ONE], capacity=0, when_empty="busy")
