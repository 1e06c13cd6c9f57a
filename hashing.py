"""Content hashes: what caches, studies and split configs are keyed by."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def hash_json(value: Any) -> str:
    """SHA-256 of a JSON-serialisable value in a canonical form, as 64 hex digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def hash_state(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of a state dict, in name order."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def hash_array(array: np.ndarray) -> str:
    """SHA-256 over dtype, shape and bytes of an array."""
    digest = hashlib.sha256(f"{array.dtype}|{array.shape}|".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def derive_seed(seed: int, *parts: Any) -> int:
    """A 31-bit seed that depends on `seed` and on what it is for, not on the order of use."""
    return int(hash_json([seed, *map(str, parts)])[:8], 16) & 0x7FFFFFFF
