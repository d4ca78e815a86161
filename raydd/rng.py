"""Named random streams: every random number of raydd comes from (seed, step, purpose, index) and from nothing else.

No actor holds a generator and nothing reads or seeds a global one, so a number does not depend on which process draws it,
on how many numbers were drawn before, or on whether the run was interrupted.
"""

import hashlib

import torch


def stream_key(seed: int, step: int, purpose: str, index: int = 0) -> int:
    """The 63-bit key of a stream: a BLAKE2b hash of its name, equal on every platform and Python version."""
    name = f"raydd:{int(seed)}:{int(step)}:{purpose}:{int(index)}"
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") >> 1


def stream(seed: int, step: int, purpose: str, index: int = 0) -> torch.Generator:
    """A fresh CPU generator for one purpose of one step; the same arguments give the same numbers for ever.

    Draw on the CPU and move the result: the same numbers then serve every device.
    """
    return torch.Generator().manual_seed(stream_key(seed, step, purpose, index))
