"""Random streams: the same numbers for ever, and no two streams alike."""

import hashlib
import itertools
import math
from collections.abc import Iterator

import torch

from raydd.rng import stream, stream_key


def test_keys_are_fixed_for_ever() -> None:
    """A change of these numbers changes every result ever made: a new kind of stream needs a new purpose, not another hash."""
    assert stream_key(0, 0, "a") == 6_304_871_122_207_208_207
    assert stream_key(1, 2, "a", 3) == 3_229_577_181_128_644_649
    assert stream_key(2**40, 10**6, "init-images", 7) == 8_920_865_633_405_731_012


def test_numbers_are_fixed_for_ever() -> None:
    """torch keeps the numbers of its CPU generator between versions; if it ever does not, results of old versions cannot be repeated."""
    assert torch.randperm(8, generator=stream(0, 0, "a")).tolist() == [3, 7, 4, 0, 5, 2, 6, 1]
    assert torch.rand(3, generator=stream(1, 2, "a", 3)).tolist() == [0.48460686206817627, 0.04594731330871582, 0.25329387187957764]


def test_key_is_the_hash_of_its_name() -> None:
    digest = hashlib.blake2b(b"raydd:5:6:shuffle:7", digest_size=8).digest()
    assert stream_key(5, 6, "shuffle", 7) == int.from_bytes(digest, "little") // 2 < 2**63


def test_every_part_of_the_name_counts() -> None:
    names = list(itertools.product((0, 1, 11), (0, 1, 11), ("a", "b", "a:1"), (0, 1, 11)))
    assert len({stream_key(*name) for name in names}) == len(names)


def test_index_is_0_unless_given() -> None:
    assert stream_key(3, 4, "a") == stream_key(3, 4, "a", 0)


def test_a_stream_starts_anew_at_every_call() -> None:
    first, second = stream(3, 4, "a"), stream(3, 4, "a")
    torch.rand(1000, generator=first)
    assert torch.equal(torch.rand(5, generator=second), torch.rand(5, generator=stream(3, 4, "a")))


def test_the_global_generator_is_not_touched() -> None:
    before = torch.random.get_rng_state()
    torch.rand(10, generator=stream(0, 0, "a"))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_neighbouring_streams_are_independent() -> None:
    """Correlations of streams that differ in one number only are those of chance: |r| below five standard errors of 1 / sqrt(n)."""
    count = 4000

    def samples() -> Iterator[torch.Tensor]:
        for place in itertools.product((0, 1), (0, 1), ("a", "b"), (0, 1)):
            yield torch.rand(count, generator=stream(*place), dtype=torch.float64)

    correlation = torch.corrcoef(torch.stack(list(samples())))
    off_diagonal = correlation[~torch.eye(len(correlation), dtype=torch.bool)]
    assert off_diagonal.abs().max() < 5 / math.sqrt(count)


def test_first_numbers_of_streams_are_uniform() -> None:
    """One number from each of many streams, as many a draw of a step is: mean and variance of a uniform distribution."""
    count = 4000
    first = torch.stack([torch.rand((), generator=stream(0, step, "choice"), dtype=torch.float64) for step in range(count)])
    assert abs(first.mean() - 0.5) < 5 / math.sqrt(12 * count)
    assert abs(first.var() - 1 / 12) < 5 / math.sqrt(180 * count)
