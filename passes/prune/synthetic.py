"""Feeds made up for a model of which no data is known: noise with the spectrum of natural images and sounds.

Amplitudes fall with 1/frequency (Field, J. Opt. Soc. Am. A 4, 1987, of images), and channels have most of it in common.
A network answers to such noise far more as it does to real inputs than it does to white noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...ir import Model
from ...runtime import feeds as sources
from ...runtime.feeds import Feeds
from ..base import Context

Array = np.ndarray
COUNT = 24
SHARED = 0.9  # of the amplitude that channels have in common


def feeds(model: Model, ctx: Context) -> Feeds:
    """Like the (random) feeds of the context, with coloured noise in place of white for floats of rank 3 and more."""
    rng = np.random.default_rng(ctx.seed)
    given = list(ctx.fit)
    return sources.resolve([_coloured(given[k % len(given)], rng) for k in range(COUNT)], model)


def _coloured(feed: Mapping[str, Any], rng: Any) -> dict[str, Any]:
    return {n: noise(x.shape, x, rng) if _signal(x) else x for n, x in feed.items()}


def _signal(x: Any) -> bool:
    return isinstance(x, np.ndarray) and x.dtype.kind == "f" and x.ndim >= 3 and x[0, 0].size > 1


def noise(shape: tuple[int, ...], like: Array, rng: Any) -> Array:
    """Noise `[N, C, *sizes]`, 1/f along the sizes, with the mean and spread of another array."""
    axes, sizes = tuple(range(2, len(shape))), shape[2:]
    common = rng.standard_normal((shape[0], 1, *sizes))
    white = SHARED * common + np.sqrt(1 - SHARED**2) * rng.standard_normal(shape)
    grids = np.meshgrid(*(np.fft.fftfreq(n) for n in sizes), indexing="ij")
    frequency = np.sqrt(sum(np.square(g) for g in grids))
    frequency.reshape(-1)[0] = 1 / max(sizes)
    found = np.fft.ifftn(np.fft.fftn(white, axes=axes) / frequency, axes=axes).real
    found = (found - found.mean()) / max(float(found.std()), 1e-12)
    return np.asarray(found * like.std() + like.mean(), like.dtype)
