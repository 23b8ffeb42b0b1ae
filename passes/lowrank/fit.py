"""Fitting the factors of any split: one contraction describes it, and each factor in turn is a linear problem.

A split is an einsum from its factors to the layer's weight, for example "orj,rci->ocij" for a k×1 convolution
followed by a 1×k one. The first factor listed is the last layer in the graph (it owns the output index `o`), so it
has a closed-form refit, W M Tᵀ (T M Tᵀ)⁻¹ with T the other factors contracted. The other factors are improved by a
few conjugate-gradient steps on the same quadratic, which only ever lower the error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import linalg

from ..bands import bands
from .basis import Basis, normal
from .norm import Array, Norm, evened

ESTIMATE_JITTER = 1e-5  # relative; a redundant basis has a singular Gram matrix, and products are of single precision


@dataclass(frozen=True)
class Lost:
    """What factors lack of a weight (O, C, *kernel), as a matrix (O, D) that is made a band of its rows at a time."""

    spec: str
    factors: Sequence[Array]
    weight: Array

    def __iter__(self) -> Iterator[tuple[slice, Array]]:
        """(outputs, their rows in double precision)."""
        terms, target = _terms(self.spec)
        head, inputs = terms[0], self.weight.shape[target.index("c")]
        largest = max(f.size for f in self.factors)
        for part in bands(self.weight.shape):
            left = self.weight[part].astype(np.float64)
            first = self.factors[0][_along(head, "o", part)]
            for columns in bands((inputs, max(1, largest // inputs))):
                some = [f[_along(t, "c", columns)] for t, f in zip(terms, (first, *self.factors[1:]))]
                left[:, columns] -= compose(self.spec, [f.astype(np.float64) for f in some])
            yield part, left.reshape(len(left), -1)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.concatenate([rows for _, rows in self]).astype(dtype or np.float64, copy=False)

    def __matmul__(self, x: Array) -> Array:
        return np.concatenate([rows @ x for _, rows in self])

    def energy(self, norm: Norm) -> float:
        """tr(ΔW M ΔWᵀ) of what was seen."""
        return sum(norm.energy(rows) for _, rows in self)


def _along(term: str, letter: str, part: slice) -> tuple[slice, ...]:
    """An index that takes this part of a factor along one of its letters, where it has that."""
    return tuple(part if c == letter else slice(None) for c in term)


def compose(spec: str, factors: Sequence[Array]) -> Array:
    """The weight (O, C, *kernel) that the factors stand for."""
    return np.einsum(spec, *factors, optimize=True)


def refit(spec: str, factors: Sequence[Array], weight: Array, norm: Norm) -> list[Array]:
    """The factors with the first one, the last layer of the chain, replaced by its least-squares optimum."""
    gram, right = normal(Basis.of(spec, factors, weight.shape), weight.reshape(len(weight), -1), norm)
    return with_first(spec, factors, _solve(gram, right).T)


def first(spec: str, factors: Sequence[Array]) -> Array:
    """The first factor as a matrix (O, q) that multiplies `basis`."""
    head, _, _ = _parts(spec)
    return np.moveaxis(factors[0], head.index("o"), 0).reshape(factors[0].shape[head.index("o")], -1)


def with_first(spec: str, factors: Sequence[Array], matrix: Array) -> list[Array]:
    """The factors with the first one taken from such a matrix."""
    head, _, _ = _parts(spec)
    sizes = [factors[0].shape[head.index(c)] for c in head if c != "o"]
    return [np.moveaxis(matrix.reshape(len(matrix), *sizes), 0, head.index("o")), *factors[1:]]


def cut(spec: str, factors: Sequence[Array], sizes: dict[str, int]) -> list[Array]:
    """The leading slice of every factor along the indices in `sizes`."""
    terms, _ = _terms(spec)
    return [f[tuple(slice(sizes.get(c)) for c in t)] for t, f in zip(terms, factors)]


def errors(
    spec: str, factors: Sequence[Array], weight: Array, norm: Norm, sizes: Sequence[dict[str, int]], total: float
) -> list[float]:
    """Relative output error after `refit`, at several ranks nested in `factors`, for the price of one.

    total: energy of the weight with ridge, `norm.inner_energy`.

    With T's rows in the order of their rank, every rank's Gram matrix is a leading block of T M Tᵀ = C Cᵀ, its
    Cholesky factor a leading block of C, and the energy explained a running sum of the squared rows of C⁻¹ T M Wᵀ.
    """
    if total <= 0:
        return [0.0] * len(sizes)
    head, _, target = _parts(spec)
    kept = [c for c in head if c != "o"]
    shape = [factors[0].shape[head.index(c)] for c in kept]
    index = dict(zip(kept, np.indices(shape).reshape(len(shape), -1)))
    letter = next(c for c in kept if c not in target)
    order = np.argsort(index[letter], kind="stable")
    gram, right = normal(Basis.of(spec, factors, weight.shape), weight.reshape(len(weight), -1), norm, single=True)
    gram, right = gram[np.ix_(order, order)].astype(np.float64), right[order].astype(np.float64)
    scale = _scaled(gram)
    np.einsum("ii->i", gram)[:] += ESTIMATE_JITTER
    lower = linalg.cholesky(evened(gram).T, lower=True, overwrite_a=True, check_finite=False)
    solved = linalg.solve_triangular(lower, right / scale[:, None], lower=True, check_finite=False)
    explained = np.concatenate([[0.0], np.cumsum((solved**2).sum(1))])
    counts = np.searchsorted(index[letter][order], [s.get(letter, shape[kept.index(letter)]) for s in sizes])
    return [float(max(0.0, 1 - explained[n] / total)) for n in counts]


def error(weight: Array, approximation: Array, norm: Norm) -> float:
    """Relative output error tr(ΔW M ΔWᵀ) / tr(W M Wᵀ), 0 for a layer whose output is constant."""
    flat = weight.reshape(len(weight), -1)
    total = norm.energy(flat)
    return norm.energy(flat - approximation.reshape(flat.shape)) / total if total > 0 else 0.0


def improve(
    spec: str, factors: Sequence[Array], weight: Array, norm: Norm, sweeps: int = 1, steps: int = 6
) -> list[Array]:
    """Refit the first factor, and between refits take `steps` conjugate-gradient steps on each of the others.

    Alternating least squares with inexact inner solves; monotone in the error with ridge.
    """
    out = refit(spec, factors, weight, norm)
    for _ in range(sweeps):
        for index in range(1, len(out)):
            out[index] = _descend(spec, out, index, weight, norm, steps)
        out = refit(spec, out, weight, norm)
    return out


def _descend(spec: str, factors: Sequence[Array], index: int, weight: Array, norm: Norm, steps: int) -> Array:
    """Preconditioned conjugate gradients on the normal equations of one factor, all others fixed."""
    terms, target = _terms(spec)
    others = [t for k, t in enumerate(terms) if k != index]
    rest = [f for k, f in enumerate(factors) if k != index]
    soften = _preconditioner(spec, factors, index, weight.shape, norm)

    def forward(x: Array) -> Array:
        return compose(spec, [*factors[:index], x, *factors[index + 1 :]]).reshape(len(weight), -1)

    def adjoint(g: Array) -> Array:
        pulled = np.einsum(f"{','.join([target, *others])}->{terms[index]}", g, *rest, optimize=True)
        return np.asarray(pulled)

    x = factors[index].copy()
    residual = adjoint(norm.apply(weight.reshape(len(weight), -1) - forward(x)).reshape(weight.shape))
    step = soften(residual)
    direction, size = step, float((residual * step).sum())
    start = size
    for _ in range(steps):
        if size <= 1e-16 * start or not size > 0:
            break
        curved = adjoint(norm.apply(forward(direction)).reshape(weight.shape))
        bend = float((direction * curved).sum())
        if bend <= 0:
            break
        x = x + (size / bend) * direction
        residual = residual - (size / bend) * curved
        step = soften(residual)
        size, previous = float((residual * step).sum()), size
        direction = step + (size / previous) * direction
    return x


def _preconditioner(
    spec: str, factors: Sequence[Array], index: int, shape: Sequence[int], norm: Norm
) -> Callable[[Array], Array]:
    """An approximate inverse of one factor's normal equations: a Kronecker product, one small matrix an index group.

    Indices of the input (c, i, j, k) take the marginal of M; a rank index takes the product of the Gram matrices
    of the other factors that carry it, each in the marginal of M over the input's indices in it.
    """
    terms, target = _terms(spec)
    own, columns = terms[index], [c for c in target if c != "o"]
    unfolded = tuple(shape[1:])
    grams: list[tuple[list[str], Array]] = []
    inside = [c for c in own if c in columns]
    if inside:
        marginal = norm.marginal(unfolded, tuple(sorted(columns.index(c) for c in inside)))
        ordered = sorted(inside, key=columns.index)
        grams.append((ordered, marginal.apply(np.eye(marginal.width))))
    for letter in (c for c in own if c not in columns):
        gram = np.ones((1, 1))
        for k, (term, factor) in enumerate(zip(terms, factors)):
            if k != index and letter in term:
                gram = gram * _gram(term, factor, letter, columns, unfolded, norm)
        grams.append(([letter], gram))
    inverses = [(letters, _inverse(gram)) for letters, gram in grams]

    def soften(x: Array) -> Array:
        for letters, inverse in inverses:
            axes = [own.index(c) for c in letters]
            moved = np.moveaxis(x, axes, range(len(axes)))
            flat = inverse @ moved.reshape(len(inverse), -1)
            x = np.moveaxis(flat.reshape(moved.shape), range(len(axes)), axes)
        return x

    return soften


def _gram(
    term: str, factor: Array, letter: str, columns: Sequence[str], unfolded: tuple[int, ...], norm: Norm
) -> Array:
    """Gram matrix of a factor along one of its rank indices, its input indices in the marginal of M."""
    inside = sorted((c for c in term if c in columns), key=list(columns).index)
    front = [letter, *[c for c in term if c != letter and c not in inside], *inside]
    moved = np.transpose(factor, [term.index(c) for c in front])
    if not inside:
        flat = moved.reshape(len(moved), -1)
        return flat @ flat.T
    marginal = norm.marginal(unfolded, tuple(list(columns).index(c) for c in inside))
    rows = moved.reshape(-1, marginal.width)
    weighted = marginal.apply(rows)
    return weighted.reshape(len(moved), -1) @ rows.reshape(len(moved), -1).T


def _inverse(gram: Array, floor: float = 1e-4) -> Array:
    """A damped inverse; the damping keeps an approximate curvature from promising steps that are far too long."""
    gram = (gram + gram.T) / 2
    level = float(np.trace(gram)) / len(gram)
    return np.linalg.inv(gram + (floor * level or 1.0) * np.eye(len(gram)))


def _solve(gram: Array, target: Array) -> Array:
    """gram⁻¹ · target; a semi-definite gram (a redundant basis) falls back on the least-norm solution. Uses gram up."""
    scale = _scaled(evened(gram))
    right = target / scale[:, None]
    try:
        factor = linalg.cho_factor(gram, check_finite=False)
        diagonal = np.diag(factor[0])
        if diagonal.min() > 1e-7 * diagonal.max():
            return linalg.cho_solve(factor, right, check_finite=False) / scale[:, None]
    except linalg.LinAlgError:
        pass
    values, vectors = linalg.eigh(gram)
    keep = values > 1e-12 * values[-1]
    inverse = (vectors[:, keep] / values[keep]) @ vectors[:, keep].T
    return (inverse @ right) / scale[:, None]


def _scaled(gram: Array) -> Array:
    """Bring the diagonal to one, in place; returns the roots of what it was."""
    scale = np.sqrt(np.maximum(np.diag(gram), 1e-300))
    for part in bands(gram.shape):
        gram[part] /= np.outer(scale[part], scale)
    return scale


def _terms(spec: str) -> tuple[list[str], str]:
    left, target = spec.split("->")
    return left.split(","), target


def _parts(spec: str) -> tuple[str, list[str], str]:
    """The first factor's indices, the others', and the weight's."""
    terms, target = _terms(spec)
    return terms[0], terms[1:], target
