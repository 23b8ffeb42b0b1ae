"""Random networks: every one equals its masked twin after pruning."""

from __future__ import annotations

import pytest
from prune_nets import image
from prune_random import Grower
from prune_twin import check, groups


@pytest.mark.parametrize("seed", range(25, 49))
def test_a_random_network_equals_its_twin(seed: int) -> None:
    model = Grower(seed).grow(3 + seed % 6)
    check(model, image(2, 3, 8, 8), (0.2, 0.6)[seed % 2], seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 400))
def test_many_random_networks_equal_their_twins(seed: int) -> None:
    model, feeds = Grower(seed).grow(3 + seed % 6), image(2, 3, 8, 8)
    found = groups(model, feeds)
    if not len(found.units):  # a small network in which everything reaches the output: each pin has its reason
        assert all(row.pinned for row in found.describe())
        return
    try:
        check(model, feeds, 0.6, seed, found)
    except AssertionError as error:
        if "nothing was tested" not in str(error):  # what went is sliced away or saturated
            raise
