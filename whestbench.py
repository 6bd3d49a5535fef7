# /// script
# requires-python = ">=3.10"
# dependencies = ["numba", "numpy>=2", "plac"]
# ///
# SPDX-License-Identifier: MIT
"""Score white-box estimators of random ReLU networks: an exact FLOP bill, an honest truth, an error bar.

Copy this one file beside your `estimator.py` and run `python whestbench.py run estimator.py`. An estimator
sees the weights of a network and a FLOP budget and predicts the mean activation of every neuron; the score is
its final-layer squared error against a Monte Carlo truth, times the share of the budget that it spent.
The rooms below follow the data: rounds, prices, budget, fnp, contract, engine, truth, baselines, scoring,
runners, reports, checklist, command line. Each uses only the rooms above it. One `run` is this chain of calls:

    main > parse > run > networks_of > sample_suite                              the networks
                       > runner_for > predicted > LocalRunner.outcomes
                         > metered_predict > (fnp) perform > PriceBook.bill      predictions and their bills
                       > grow_truths > grow_together > grow
                         > TruthSource.sample > simulate_block, WhiteBox.sums    the truths
                       > score_suite > score_mlp > final_error                   the score
                       > report_run > PANELS > Screen.panels, page               what is shown

Samples come in pairs, x and -x; 8 pairs are a group, 4 groups a pool (one observation of the final layer), 4096
samples a chunk, one or more chunks a unit of work. A block is what the engine computes at once.
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 10):  # noqa: UP036, the reader may have another
    sys.exit("whest: Python 3.10 or newer is needed: type python3.12 whestbench.py, or the like.")

import abc
import ast
import bisect
import concurrent.futures
import copy
import difflib
import errno
import faulthandler
import hashlib
import html
import importlib.util
import inspect
import json
import linecache
import math
import operator
import os
import pickle
import platform
import queue
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import traceback
import types
import warnings
from collections import Counter, defaultdict, deque, namedtuple
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ContextDecorator, ExitStack, contextmanager, nullcontext, redirect_stdout, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from fractions import Fraction
from functools import cache, cached_property, lru_cache, partial, reduce, wraps
from itertools import (
    accumulate,
    chain,
    combinations,
    groupby,
    islice,
    pairwise,
    permutations,
    product,
    repeat,
    zip_longest,
)
from math import inf, prod
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__" and (
    _missing := [name for name in ("numba", "numpy", "plac") if not importlib.util.find_spec(name)]
):
    sys.exit(
        f"whest: {', '.join(_missing)} not found: pip install numba numpy plac, or type "
        "uv run whestbench.py instead."
    )

import numpy as np

__version__ = "1.0.0"
__all__ = """
    ROUNDS Round PRICES OPERATIONS LEFT_OUT price explain BudgetContext BudgetExhaustedError TimeExhaustedError
    namespace budget_summary budget_summary_dict budget_reset use_prices flops fnp MLP BaseEstimator SetupContext
    WhestError sample_mlp sample_suite build_mlp relu run_mlp run_mlp_all_layers
    monte_carlo_layer_means load_estimator limit_threads pack_weights samples_per_block simulate_block Truth
    TruthSource TruthStore write_suite read_dataset InvalidDatasetError BASELINES Outcome TruthError
    final_error score_suite compare compare_against_monte_carlo LocalRunner SubprocessRunner main
""".split()

# Run as a script, this module is still `whestbench`: one copy of every class, whoever imports it.
_RUN_AS_SCRIPT = __name__ == "__main__"
PROGRAM = "python whestbench.py" if _RUN_AS_SCRIPT else "whest"  # as the user starts it
if _RUN_AS_SCRIPT:
    __name__ = "whestbench"
    sys.modules["whestbench"] = sys.modules["__main__"]


# ======================================================================================
# Rounds
#
# What a contest round fixes: the shape of its networks, its budget, its time rules and its
# price book. One row each; the command line's flags replace single cells of a row.
# ======================================================================================

MULTIPLIER_FLOOR = 0.1  # spending a smaller share of the budget earns nothing


@dataclass(frozen=True)
class Round:
    """The rules of one contest round. Times in seconds, budgets in FLOPs; None means no limit."""

    tag: str
    width: int
    depth: int
    flop_budget: int
    lambda_flops_per_second: float
    residual_wall_time_limit: float | None
    wall_time_limit: float | None
    prices: str
    setup_timeout: float | None = 5.0
    purse: int | None = (
        None  # FLOPs that may be spent, if not the budget: where a network is too small for it
    )

    @property
    def most(self) -> int:
        """FLOPs that may be spent on one network."""
        return self.purse or self.flop_budget

    def multiplier(self, spent: float) -> float:
        """The share of the budget that so many FLOPs are, at least MULTIPLIER_FLOOR: it multiplies the score."""
        return max(MULTIPLIER_FLOOR, spent / self.flop_budget)


ROUNDS = {
    r.tag: r
    for r in (
        #     tag          width depth flop_budget      lambda residual wall   prices
        Round("v1-warmup", 256, 8, 68_000_000_000, 1e11, None, 60.0, "0.7"),
        Round("v1-phase1", 256, 32, 272_000_000_000, 1e11, None, 60.0, "0.12"),
        Round("v2-phase2", 1024, 16, 2**41, 0.0, 0.4, 120.0, "0.12"),
    )
}
DEFAULT_ROUND = "v1-warmup"


# ======================================================================================
# Prices
#
# What every operation costs, in both books. `price` registers operations: one place says all that is known
# of them, and a formula is a function of the Call. In: a name and arguments; out: `PriceBook.bill`.
#
#     FLOPs = int(units * rate of the dtype * weight)     book 0.12
#     FLOPs = int(units * weight)                         book 0.7
#
# Source: the observed charges of flopscope 0.7.0 and 0.12.4; the tests compare them with these, call by call.
# ======================================================================================


class FlopscopeError(Exception):
    """Base of the errors that the counter raises."""


class UnsupportedFunctionError(FlopscopeError):
    """The operation, or this form of it, has no price here, so it does not run."""


class UnsupportedDtypeError(FlopscopeError, TypeError):
    """Book 0.12 bills real numbers only: bool, integer, float."""


# ---- shapes and dtypes -----------------------------------------------------------------------------------

WEAK = {int, float, complex}  # Python's scalars take the dtype of the arrays that they meet
f8, i8 = np.dtype("f8"), np.dtype("i8")


def shape_of(a):
    """Shape of an array, or of the array that a list or a number would become."""
    return a.shape if hasattr(a, "shape") else np.asarray(a).shape


def dtype_of(a):
    """The same of its dtype; a dtype is its own."""
    if isinstance(a, np.dtype):
        return a
    return a.dtype if hasattr(a, "dtype") else np.asarray(a).dtype


def size_of(*arrays):
    """How many elements these arrays have, together."""
    return sum([prod(shape_of(a)) for a in arrays])


def spread(arrays):
    """How many elements these arrays broadcast to."""
    return prod(np.broadcast_shapes(*map(shape_of, arrays)))


def axes_of(shape, axis):
    """The axes that `axis` (None, a number or several) names, as a tuple of non-negative numbers."""
    axis = range(len(shape)) if axis is None else axis
    return np.lib.array_utils.normalize_axis_tuple(axis, len(shape), allow_duplicate=True)


def cells(shape):
    """How many elements an array of this shape, a number or several, has."""
    return prod(np.atleast_1d(shape).tolist())


def at_least_1(n):
    """n, but at least the 1 that most operations cost."""
    return max(n, 1)


def levels(n):
    """log2, rounded up."""
    return (n - 1).bit_length() if n > 1 else 0


def log2(n):
    """The same, but at least 1."""
    return at_least_1(levels(n))


def sorting(size, along):
    """Comparisons of merge sorts along extents, at least 1."""
    return at_least_1(size * log2(along))


@cache
def rate_of(dtype):
    """Cost of an element operation: 1 up to 32 bits, 2 up to 64, 3 and 4 beyond."""
    if dtype.kind not in "biuf":
        why = "take the real part" if dtype.kind == "c" else "use bool, integers or floats"
        raise UnsupportedDtypeError(f"{dtype} has no price in book 0.12: {why}")
    return min(math.ceil(dtype.itemsize / 4), 4)


def heavier(*dtypes):
    """The dtype with the highest rate; of equals the first."""
    return max(dtypes, key=rate_of)


def promoted(*operands):
    """result_type with weak Python scalars, as ufuncs promote."""
    return np.result_type(*[a if type(a) in WEAK else dtype_of(a) for a in operands if a is not None])


def joined(*operands):
    """result_type with Python scalars as the arrays that they would become."""
    return np.result_type(*[dtype_of(a) for a in operands if a is not None])


def inexact(dtype):
    """The dtype that NumPy computes means in: integers become float64."""
    return dtype if dtype.kind in "fc" else f8


# ---- symmetries ------------------------------------------------------------------------------------------
#
# A symmetry is a tuple of blocks of axes; those of a block may change places: ((0, 1),) for a symmetric
# matrix, () where none is known. So it is never written out, however many permutations it has.

LARGEST_GROUP = 223  # of permutations that a sum or product looks at: beyond, 0.12 prices without


def blocks_of(groups):
    """Groups of axes as a symmetry: sorted, those of a single axis left out."""
    return tuple(sorted(tuple(sorted(group)) for group in groups if len(group) > 1))


def symmetry_of(a):
    """What is known of an array, or of anything else."""
    return getattr(a, "_blocks", ())


def order_of(blocks):
    """How many permutations the blocks allow."""
    return prod(math.factorial(len(block)) for block in blocks)


@lru_cache(4096)
def distinct(blocks, shape, axes=None):
    """How many elements differ, along some of the axes: k interchangeable indices below n are a multiset."""
    axes, total = range(len(shape)) if axes is None else axes, 1
    if order_of(blocks) > 50_000:  # the real package gives up
        blocks = ()
    for block in (*blocks, *((axis,) for axis in {*axes}.difference(*blocks))):
        if inside := [axis for axis in block if axis in axes]:
            total *= math.comb(shape[inside[0]] + len(inside) - 1, len(inside))
    return total


def moved_to(places, blocks):
    """What is left of the blocks on the axes of `places`, {old: new}."""
    return blocks_of([places[axis] for axis in block if axis in places] for block in blocks)


def left_on(axes, blocks):
    """What is left on these axes, in this order."""
    return moved_to({axis: i for i, axis in enumerate(axes)}, blocks)


def equal_axes(shape, axes=None):
    """All axes of equal extents may change places: the symmetry of zeros, ones and constants."""
    groups = defaultdict(list)
    for axis in range(len(shape)) if axes is None else axes:
        groups[shape[axis]].append(axis)
    return blocks_of(groups.values())


def common(symmetries):
    """What several arrays share: nothing as soon as one has none."""

    def meet(one, other):
        return blocks_of({*a} & {*b} for a in one for b in other)

    return reduce(meet, symmetries) if symmetries else ()


def stretched(blocks, shape, to):
    """Of broadcast_to: stretched axes drop out, new ones of equal extents may change places."""
    lead = len(to) - len(shape)
    places = {axis: lead + axis for axis, n in enumerate(shape) if n == to[lead + axis]}
    return blocks_of([*moved_to(places, blocks), *equal_axes(to, range(lead))])


def shared(arrays, to):
    """Of pointwise operations: 0-d operands do not count, one without symmetry spoils all."""
    operands = [a for a in arrays if shape_of(a)]
    if not all(map(symmetry_of, operands)):
        return ()
    left = [stretched(symmetry_of(a), shape_of(a), to) for a in operands]
    return common([blocks for blocks in left if blocks])


def elements(*arrays):
    """Elements that the arrays broadcast to; if all are symmetric, only those that differ."""
    shape = np.broadcast_shapes(*map(shape_of, arrays))
    return distinct(shared(arrays, shape), shape) if any(map(symmetry_of, arrays)) else prod(shape)


def indexed(blocks, shape, key):
    """Of basic indexing: axes with an integer go, new ones come; nothing is left if a slice cuts a block."""
    key = list(key) if isinstance(key, tuple) else [key]
    dots = [k is Ellipsis for k in [*key, Ellipsis]].index(True)
    given = sum(k is not None and k is not Ellipsis for k in key)
    key[dots : dots + 1] = [slice(None)] * (len(shape) - given)
    moving, places, new, axis = {*chain(*blocks)}, {}, [], 0
    for k in key:
        here = len(places) + len(new)
        if k is None:
            new.append(here)
            continue
        if isinstance(k, slice):
            if axis in moving and k.indices(shape[axis]) != (0, shape[axis], 1):
                blocks = ()
            places[axis] = here
        axis += 1
    return blocks_of([*moved_to(places, blocks), new * bool(moving)])


def reshaped(blocks, old, new):
    """Of reshape: kept if every axis of a block survives, with its extent and as many elements before it."""
    spots = [(n, prod(new[:i])) for i, n in enumerate(new)]
    places, start = {}, 0
    for axis in sorted(chain(*blocks)):
        spot = old[axis], prod(old[:axis])
        if spot not in spots[start:]:
            return ()
        places[axis] = spots.index(spot, start)
        start = places[axis] + 1
    return moved_to(places, blocks)


def permuted(c):
    """Of transpose, swapaxes and moveaxis: the extents of a probe tell where each axis went."""
    probe = np.empty(tuple(range(2, 2 + len(c.shape))), "?")
    return left_on([n - 2 for n in c.operation.function(probe, *c.args[1:], **c.kwargs).shape], c.blocks)


def joined_along(c, axis):
    """Of concatenate and its kin: what the other axes of all parts share."""
    if axis is None:
        return ()
    return common(
        [
            moved_to({i: i for i in range(np.ndim(a)) if i != axis % np.ndim(a)}, symmetry_of(a))
            for a in c.first
        ]
    )


def stacked(c):
    """Of stack: the parts' axes make room for the new one."""
    ndim = c.result.ndim
    places = {i: i + (i >= c.axis % ndim) for i in range(ndim - 1)}
    return common([moved_to(places, symmetry_of(a)) for a in c.first])


def closed_up(c, is_closed):
    """What the axes that stay leave, closed up where the others are gone."""
    if c.axis is None:
        return ()
    return moved_to({axis: i if is_closed else axis for i, axis in enumerate(c.kept)}, c.blocks)


def reduced(c):
    """Of reductions."""
    return closed_up(c, c.result.ndim < len(c.shape))


def cumulative(c):
    """Of cumsum and cumprod: the other axes' symmetry stays."""
    blocks = closed_up(c, False)
    if blocks and c.early:
        raise UnsupportedFunctionError(
            f"book 0.7 takes the wrong axes of {c.name} for symmetric: use a plain copy"
        )
    return blocks


def unknown(c):
    """Of tile, repeat, roll and flip."""
    raise UnsupportedFunctionError(f"{c.name} of a symmetric array has no price here: use a plain copy")


def regrouped(c):
    """Of reshape, squeeze and their kin."""
    return reshaped(c.blocks, c.shape, c.result.shape)


def elementwise(c):
    """What the operands share."""
    return shared([a for a in c.args if not isinstance(a, (str, type(None)))], c.result.shape)


def of_product(c):
    """What the operands' symmetries, and an operand that is used twice, leave of the result."""
    return c.product.blocks


def constant(c):
    """Of zeros, ones and full: all equal axes may change places."""
    is_plain = (
        "fill_value" not in c.arguments or c.early and c.name == "full" or not shape_of(c["fill_value"])
    )
    return equal_axes(c.result.shape) if is_plain else ()


def like(c):
    """The same of what is made in the image of another array, whose own symmetry stays where it fits."""
    if not shape_of(c.arguments.get("fill_value")) and c.shape == c.result.shape and c.blocks:
        return c.blocks
    return constant(c)


def centred(c):
    """Of eye, identity, diag and diagflat: a matrix with its only diagonal in the middle."""
    is_made = c.name != "diag" or len(c.shape) == 1
    return equal_axes(c.result.shape) if is_made and not c.arguments.get("k") else ()


# ---- products --------------------------------------------------------------------------------------------
#
# A product is priced by its labels, as einsum writes them. Here symmetries are sets of permutations of labels
# or axes, since swapping two equal operands swaps several labels at once; None stands for the identity alone.

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Factor(NamedTuple):
    """An operand, or what was made of several: equal `same` says that it is the same object."""

    labels: str
    shape: tuple
    symmetry: frozenset | None
    same: Any


class Product(NamedTuple):
    """What a product costs, the symmetry of its result, and how einsum would write it."""

    operations: int
    blocks: tuple
    subscripts: str


def proper(permutations):
    """These permutations, which form a group; None if it is the identity alone."""
    group = frozenset(permutations)
    return group if len(group) > 1 else None


def closure(*generators):
    """The smallest group that holds all these sets of permutations."""
    group = new = generators = set().union(*(g or () for g in generators))
    while new:
        new = {tuple([p[i] for i in g]) for p in new for g in generators} - group
        group = group | new
    return proper(group)


def written_out(blocks, ndim):
    """All permutations of the blocks, each over all axes."""
    axes = [*chain(*blocks)]
    for images in product(*map(permutations, blocks)):
        image = dict(zip(axes, chain(*images)))
        yield tuple([image.get(axis, axis) for axis in range(ndim)])


def stabiliser(group, kept):
    """What keeps these places among themselves, as permutations of them, in this order."""
    place = {old: i for i, old in enumerate(kept)}
    return proper(
        tuple([place[g[old]] for old in kept]) for g in group or () if all(g[a] in place for a in kept)
    )


def orbits(group, sizes):
    """How many index tuples differ: Burnside, the mean over the group of those that are left in place."""
    total = 0
    for g in group or [range(len(sizes))]:
        left, fixed = {*range(len(sizes))}, 1
        while left:  # one free index for each cycle
            fixed *= sizes[i := left.pop()]
            while (i := g[i]) in left:
                left.remove(i)
        total += fixed
    return total // len(group or "1")


def stored(group, shown, sizes):
    """How many elements of the result differ."""
    return orbits(stabiliser(group, shown), [sizes[i] for i in shown])


def as_blocks(group, axes, what):
    """A group of permutations as blocks of axes. UnsupportedFunctionError if it is more than that."""
    swaps = {frozenset(i for i, j in enumerate(g) if i != j) for g in group or ()}
    blocks = blocks_of({frozenset(j for j in range(axes) if i == j or {i, j} in swaps) for i in range(axes)})
    if order_of(blocks) != len(group or "1"):
        raise UnsupportedFunctionError(
            f"einsum {what} gives a result whose axes change places in pairs only, which "
            "has no price here: multiply by a copy of one operand"
        )
    return blocks


def label_group(factors, needed=None):
    """(labels in order, the permutations of them that leave the product as it is).

    Each factor's labels may go to those of an equal one, permuted by its own symmetry, if labels map one to
    one. With `needed`, labels to be used later, these stay among themselves, and equal factors with equal
    labels may permute summed axes in step.

    Example: for `ij,kj` of one matrix twice, i may go to k and k to i while j stays, so labels ijk have the
    group {(0, 1, 2), (2, 1, 0)}: the result is symmetric.
    """
    labels = sorted({c for factor in factors for c in factor.labels})
    if not any(factor.symmetry for factor in factors) and len({f.same for f in factors}) == len(factors):
        return labels, None
    needed = labels if needed is None else needed

    def allowed(pairs):
        one_to_one = len(dict(pairs)) == len(pairs) == len({d for _, d in pairs})
        return one_to_one and all((c in needed) == (d in needed) for c, d in pairs)

    maps = {(frozenset(), frozenset(range(len(factors))))}  # (pairs of labels, factors not yet met)
    for own, _, symmetry, same in factors:
        twins = [j for j, factor in enumerate(factors) if factor.same == same]
        in_step = len(twins) > 1 and {factors[j].labels for j in twins} == {own}
        summed = tuple([i for i, c in enumerate(own) if in_step and c not in needed])
        group = closure(symmetry, {*written_out((summed,), len(own))}) or [range(len(own))]
        maps = {
            (pairs, left - {j})
            for known, left in maps
            for j in left.intersection(twins)
            for g in group
            if allowed(pairs := known.union(zip(own, [factors[j].labels[i] for i in g])))
        }
    return labels, proper(tuple([labels.index(d) for _, d in sorted(pairs)]) for pairs, _ in maps)


def meetings(group, shown, sizes):
    """Pairs (orbit of index tuples, orbit of output tuples) that meet: each is an addition or a store.

    One per orbit, unless the group carries output labels into summed ones. Then it depends on which indices
    are equal: count pattern by pattern, where each index names the first that is equal to it.

    Example: `ij->i` of a symmetric matrix. The pattern (0, 0), i = j, has n tuples whose orbit shows one
    output; (0, 1) has n (n - 1), two to an orbit, which shows both: n + n (n - 1) meetings.
    """
    if all(g[i] in shown for g in group or () for i in shown):
        return orbits(group, sizes)
    free = sorted({i for g in group for i, j in enumerate(g) if i != j})
    group, extents, total = stabiliser(group, free), [sizes[i] for i in free], 0
    shown = [n for n, i in enumerate(free) if i in shown]
    views = stabiliser(group, shown) or [range(len(shown))]
    alike = [[j for j in range(i + 1) if extents[j] == n] for i, n in enumerate(extents)]
    for pattern in product(*alike):
        if all(pattern[i] == i for i in pattern):
            tuples = prod(extents[i] + 1 - len({*pattern} & {*alike[i]}) for i in {*pattern})
            orbit = {tuple([pattern[i] for i in g]) for g in group}
            visible = {min(tuple([p[shown[i]] for i in v]) for v in views) for p in orbit}
            total += tuples * len(visible) * (len(group) // len(orbit))
    return prod(n for i, n in enumerate(sizes) if i not in free) * total // len(group)


def additions(group, shown, sizes, early):
    """What meets, less what it ends in; in book 0.7 even if nothing meets."""
    met = meetings(group, shown, sizes)
    return met - stored(group, shown, sizes) if met or early else 0


def step_cost(factors, needed, size, merged, early):
    """Operations of the product of one or two factors; `needed`: the labels used later.

    1. Labels of one factor alone are added up first.
    2. What is left takes one product an orbit, and its additions.
    3. Or, of three factors and more, what the orbits of all operands behind the factors take, if that is
       less: `merged`, their labels and group. A multiplication and an addition for each of their orbits, or,
       for each distinct element of the result, the whole sum that makes it.
    """

    def sizes_and_shown(labels):
        return [size[c] for c in labels], [i for i, c in enumerate(labels) if c in needed]

    before, left = 0, []
    for factor, other in zip(factors, reversed(factors)):
        kept = [i for i, c in enumerate(factor.labels) if c in needed or c in other.labels]
        before += additions(factor.symmetry, kept, factor.shape, early)
        left.append(
            factor._replace(
                labels="".join(factor.labels[i] for i in kept), symmetry=stabiliser(factor.symmetry, kept)
            )
        )
    if factors[0].same == factors[-1].same and len(left[0].labels) != len(left[-1].labels):
        raise UnsupportedFunctionError("an operand used twice, but summed to different ranks, has no price")
    labels, group = label_group(left)
    sizes, shown = sizes_and_shown(labels)
    costs = [orbits(group, sizes) * (len(factors) - 1) + additions(group, shown, sizes, early)]
    if merged:
        labels, group = merged
        sizes, shown = sizes_and_shown(labels)
        alive = [i for i, c in enumerate(labels) if any(c in factor.labels for factor in left)]
        if group and (not alive or any(sizes[i] != sizes[j] for g in group for i, j in enumerate(g))):
            raise UnsupportedFunctionError(
                "equal operands summed wholly, or over unequal axes, have no price"
            )
        before = max(before, 0)  # of empty operands, in book 0.7
        outputs = stored(group, shown, sizes)
        inner = prod(sizes[i] for i in alive if i not in shown)
        if {*labels} <= {*factors[0].labels, *factors[1].labels}:  # none was summed before
            costs.append(max(2 * stored(group, alive, sizes) - outputs, 0))
        if outputs < prod(sizes[i] for i in shown):
            costs.append(outputs * (2 * inner - 1))
    return before + min(costs)


@lru_cache(4096)
def contraction_cost(operands, out, early):
    """Operations of an einsum of Factors. Three or four go pairwise along `cheapest_path`, whatever is asked."""
    size = dict(sorted(item for f in operands for item in zip(f.labels, f.shape)))  # the larger wins
    many = len(operands) > 2
    if not early and len(label_group(operands)[1] or ()) > LARGEST_GROUP:
        return len(operands) * prod(size.values())
    if many:
        operands = [f._replace(shape=tuple([size[c] for c in f.labels])) for f in operands]
    cost, factors, members = 0, [*operands], [(k,) for k in range(len(operands))]
    for pair in cheapest_path([f.labels for f in operands], out, size) or [(0,)]:
        inside = tuple(sorted(m for k in pair for m in members[k]))
        needed = {*out}.union(*[f.labels for k, f in enumerate(operands) if k not in inside])
        labels, group = label_group([operands[k] for k in inside], needed)
        cost += step_cost([factors[k] for k in pair], needed, size, (labels, group) if many else None, early)
        left = "".join(c for c in labels if c in needed)
        made = stabiliser(group, [labels.index(c) for c in left])
        factors.append(Factor(left, tuple([size[c] for c in left]), made, inside))
        members.append(inside)
    return max(cost, 0)


@lru_cache(4096)
def result_blocks(operands, out, early):
    """The symmetry of an einsum's result. UnsupportedFunctionError where that would need code of its own."""
    text = f"{','.join(factor.labels for factor in operands)}->{out}"
    labels, group = label_group(operands, out)
    blocks = as_blocks(stabiliser(group, [labels.index(c) for c in out]), len(out), text)
    if early and blocks and len(operands) > 1 and list(out) != sorted(out):
        raise UnsupportedFunctionError(
            f"book 0.7 takes the wrong axes of {text} for symmetric: name the "
            "result's labels in alphabetical order"
        )
    return blocks


def cheapest_path(terms, out, size):
    """The pairs that opt_einsum's exhaustive search contracts in turn; each result gets the next free number."""
    best, least, known = (), inf, {}

    def descend(path, terms, left, total):
        nonlocal best, least
        if len(left) == 1:
            best, least = path, total
            return
        for i, j in combinations(sorted(left), 2):
            a, b = terms[i], terms[j]
            if (a, b) not in known:  # remembered by labels alone, although the other terms matter too
                needed = {*out}.union(*(terms[k] for k in left - {i, j}))
                cost = prod(size[c] for c in a | b) * (1 + bool(a & b - needed))
                known[a, b] = (a | b) & needed, cost
            made, cost = known[a, b]
            if total + cost < least:
                descend((*path, (i, j)), (*terms, made), left - {i, j} | {len(terms)}, total + cost)

    descend((), tuple(map(frozenset, terms)), frozenset(range(len(terms))), 0)
    return best


@lru_cache(4096)
def subscripts(text, ranks):
    """(labels of each operand, of the result) of einsum's subscripts for operands of these ranks."""
    inputs, arrow, out = text.replace(" ", "").partition("->")
    if not arrow:
        once = sorted(c for c in inputs if c.isalpha() and inputs.count(c) == 1)
        out = "".join(["..." * ("..." in inputs), *once])
    parts = inputs.split(",")
    wide = [(rank - len(part) + 3) * ("..." in part) for part, rank in zip(parts, ranks)]
    spare = "".join(c for c in LETTERS if c not in text)[: max(wide)]
    parts = [part.replace("...", spare[max(wide) - n :]) for part, n in zip(parts, wide)]
    if tuple(map(len, parts)) != ranks:
        raise ValueError(f"subscripts {text!r} do not fit operands of {ranks} axes")
    return parts, out.replace("...", spare)


def meeting_at(m, n, a_axes, b_axes):
    """Subscripts where these axes of operands of ranks m and n meet: dot, inner, tensordot."""
    a, b = LETTERS[:m], list(LETTERS[m : m + n])
    for i, j in zip(a_axes, b_axes):
        b[j] = a[i]
    return f"{a},{''.join(b)}->{''.join(c for c in (*a, *b) if (c in a) != (c in b))}"


FIXED_LABELS = {
    "outer": "a,b->ab",
    "vdot": "a,a->",
    "vecdot": "...i,...i->...",
    "matvec": "...ij,...j->...i",
    "vecmat": "...i,...ij->...j",
}


def product_of(c):
    """The Product of a call of einsum, or of what einsum could write."""
    name, operands = c.name, c.operands
    text = FIXED_LABELS.get(name)
    if name == "einsum":
        text = c.first
        if len(operands) > 4 or not isinstance(text, str) or {"out", "symmetry"} & c.kwargs.keys():
            raise UnsupportedFunctionError(
                "einsum takes subscripts and one to four operands here, no out= and no symmetry=: "
                "multiply some first"
            )
    if "dtype" in c.kwargs:
        raise UnsupportedFunctionError(f"{name} with dtype= has no price here: cast the operands")
    shapes, symmetries = [*map(shape_of, operands)], [*map(symmetry_of, operands)]
    m, n = [*map(len, shapes), 0][:2]
    if name in ("outer", "vdot"):
        shapes, symmetries = [(prod(shape),) for shape in shapes], [(), ()]
    elif name in ("dot", "inner"):
        last = max(n - 2, 0) if name == "dot" else n - 1
        if c.early and not (m and n):
            raise UnsupportedFunctionError(f"book 0.7 has no {name} with a single number: multiply")
        text = meeting_at(m, n, [m - 1], [last]) if m and n else meeting_at(m, n, (), ())
    elif name == "tensordot":
        axes = c["axes"]
        axes = (range(m - axes, m), range(axes)) if isinstance(axes, (int, np.integer)) else axes
        axes = [tuple(np.atleast_1d(side).tolist()) for side in axes]
        if c.early and min(chain(*axes), default=0) < 0:
            raise UnsupportedFunctionError(
                "book 0.7 overcharges tensordot with negative axes: name them from the left"
            )
        axes = [*map(axes_of, shapes, axes)]
        text = meeting_at(m, n, *axes)
    elif name == "matmul":
        i, k = "i" * (m > 1), "k" * (n > 1)
        text = f"...{i}j,...j{k}->...{i}{k}"
    if max(map(order_of, symmetries)) > LARGEST_GROUP:
        raise UnsupportedFunctionError(
            f"{c.name} of an array with so many interchangeable axes has no price here"
        )
    labels, out = subscripts(text, tuple(map(len, shapes)))
    groups = [proper(written_out(blocks, len(shape))) for blocks, shape in zip(symmetries, shapes)]
    same = [[*map(id, operands)].index(id(a)) for a in operands]
    factors, text = tuple(map(Factor, labels, shapes, groups, same)), f"{','.join(labels)}->{out}"
    if name == "tensordot":
        if any(symmetries):
            raise UnsupportedFunctionError("tensordot of a symmetric array has no price here: use einsum")
        operations = contraction_cost(factors, out, c.early)
        if c.early and out:  # products alone
            operations = at_least_1(prod(dict(zip(chain(*labels), chain(*shapes))).values()))
        return Product(operations, (), text)
    return Product(contraction_cost(factors, out, c.early), result_blocks(factors, out, c.early), text)


# ---- one registration an operation -----------------------------------------------------------------------


class Matrices(NamedTuple):
    """Of linear algebra: rows, columns, and how many such matrices."""

    m: int
    n: int
    many: int


class Call:
    """A call as its formulas see it: `c["axis"]` is an argument by NumPy's name, the rest is worked out of
    the arguments and, where the charge waits for it, of the result."""

    def __init__(self, operation, early, args, kwargs, result=None):
        self.operation, self.name, self.early = operation, operation.name, early
        self.args, self.kwargs, self.result = args, kwargs, result

    def __getitem__(self, name):
        return self.arguments[name]

    @cached_property
    def arguments(self):
        names, defaults = parameters_of(self.operation.takes or self.operation.function)
        return defaults | dict(zip(names, self.args)) | self.kwargs

    @cached_property
    def operands(self):
        """The first two arguments, or the one that a ufunc takes; all those of einsum."""
        if self.name == "einsum":
            return self.args[1:]
        return [*self.args, *self.kwargs.values()][: getattr(self.operation.function, "nin", 2)]

    first = property(lambda c: c.args[0] if c.args else None)
    blocks = property(lambda c: symmetry_of(c.first))
    shape = cached_property(lambda c: shape_of(c.first))
    size = cached_property(lambda c: size_of(c.first))
    numbers = property(lambda c: at_least_1(c.size))
    main = cached_property(lambda c: dtype_of(c.first))
    distinct = cached_property(lambda c: at_least_1(distinct(c.blocks, c.shape)))
    elements = cached_property(lambda c: at_least_1(elements(*c.operands)))
    results_listed = property(lambda c: c.result if isinstance(c.result, (tuple, list)) else [c.result])
    outputs = property(lambda c: size_of(*c.results_listed))
    written = property(lambda c: at_least_1(c.outputs))
    made = property(lambda c: dtype_of(c.results_listed[0]))
    axis = property(lambda c: c.arguments.get("axis"))
    axes = cached_property(lambda c: axes_of(c.shape, c.axis))
    kept = property(lambda c: tuple([axis for axis in range(len(c.shape)) if axis not in c.axes]))
    along = property(lambda c: c.size if c.axis is None or not c.shape else c.shape[c.axis])
    each = property(lambda c: prod(c.shape[axis] for axis in c.axes))  # elements behind a result
    results = cached_property(lambda c: distinct(c.blocks, c.shape, c.kept))
    folds = property(lambda c: at_least_1(c.additions))
    product = cached_property(lambda c: product_of(c))
    made_by_product = property(lambda c: distinct(c.product.blocks, shape_of(c.result)))

    @cached_property
    def additions(self):
        """Of a reduction: each distinct result takes what lies behind it, less one."""
        if order_of(self.blocks) > LARGEST_GROUP and not self.early:
            return self.size - self.size // at_least_1(self.each)
        if not self.size and not self.early:
            return 0
        return self.results * (distinct(self.blocks, self.shape, tuple({*self.axes})) - 1)

    @cached_property
    def matrix(self):
        *batch, m, n = self.shape
        return Matrices(m, n, prod(batch) if m * n else 0)


@cache
def parameters_of(function):
    """(names of the positional parameters, defaults of all)."""
    try:
        found = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return (), {}
    names = tuple(p.name for p in found if p.kind <= p.POSITIONAL_OR_KEYWORD and p.name != "self")
    return names, {
        p.name: None if p.default is np._NoValue else p.default for p in found if p.default is not p.empty
    }


def loop(c):
    """The heaviest dtype of the loop that NumPy picks for a ufunc, widened by out=."""
    ufunc, operands, dtype = c.operation.function, c.operands, c.kwargs.get("dtype")
    kinds = tuple([type(a) if type(a) in WEAK else dtype_of(a) for a in operands])
    if WEAK.issuperset(kinds):
        kinds = tuple(map(np.dtype, kinds))
    asked = {}
    if dtype is not None:
        asked = {"signature": (None,) * ufunc.nin + (np.dtype(dtype),) * ufunc.nout, "casting": "unsafe"}
    found = ufunc.resolve_dtypes(kinds + (None,) * ufunc.nout, **asked)
    return with_out(c, heavier(*found, *([] if asked else [promoted(*operands)])))


def with_out(c, dtype):
    """The dtype that a result has where it is written to `out`."""
    out = c.kwargs.get("out")
    return (
        dtype
        if out is None
        else np.result_type(dtype, *[a.dtype for a in (out if type(out) is tuple else [out])])
    )


def reduction(default):
    """dtype= alone if given, else the heaviest of out=, the input and the default that is made of it."""

    def found(c):
        dtype, out = c.kwargs.get("dtype"), c.kwargs.get("out")
        if dtype is not None:
            return np.dtype(dtype)
        return heavier(*([] if out is None else [out.dtype]), default(c.main), c.main)

    return found


def added(dtype):
    """What NumPy adds up in: no integers below 64 bits."""
    return np.zeros(0, dtype).sum().dtype if dtype.kind in "biu" else dtype


def own(c):
    """The dtype of the first operand."""
    return c.main


def own_with_out(c):
    """The dtype of the first operand, widened by out=."""
    return with_out(c, c.main)


def made(c):
    """The dtype of the result."""
    return c.made


def both(c):
    """What the first two operands make together."""
    return with_out(c, joined(*c.operands))


def parts(c):
    """What the arrays in a list make together."""
    return with_out(c, joined(*c.first))


def lapack(c):
    """Linear algebra is done in double precision as soon as an operand is an integer."""
    return joined(*[inexact(dtype_of(a)) for a in c.operands[: 1 + (c.name == "linalg.solve")]])


def asked(default=None):
    """The dtype that is asked for by `dtype`, else the default or that of the first operand."""

    def found(c):
        return np.dtype(default or c.main) if c["dtype"] is None else np.dtype(c["dtype"])

    return found


def unlogged(c):
    """Neither charged nor logged."""
    return None


class Bill(NamedTuple):
    """What one operation is charged: FLOPs, the dtype whose rate was charged, and what the log shows."""

    op_name: str
    cost: int
    dtype: np.dtype | None = None
    shapes: tuple = ()
    subscripts: str | None = None


@dataclass(frozen=True)
class Operation:
    """All that is known of an operation of NumPy's.

    `units(c)`: what a Call is charged for, in book 0.12, and `early(c)` in 0.7 (the same, unless given); None
    for a call that is not even logged. `weight` and `early_weight`: of a unit. `dtype(c)`: whose rate book
    0.12 charges; None for none. `late`: the charge waits for the result, `c.result`.
    `returns`: "arrays" (counted ones, even single numbers), "scalars" (single numbers stay NumPy's) or "plain";
    `early_returns`, in 0.7: also "alike" (as plain as the operands), or "alike last" (as the last one).
    `keeps(c)`: the blocks of axes that the result is symmetric under, asked if an operand is symmetric or,
    where it `makes` symmetries, always. `mend(result, c)`: what the contest's package makes of NumPy's result.
    `function`: what does the work, if not NumPy's of that name; `takes`: a function with its arguments, where
    NumPy's does not tell them. `writes`: into its first operand. `unrouted`: names that NumPy's own functions
    do not reach. `plain`: arguments that the real package trips over if they are counted;
    `early_plain`, more of them in 0.7. `logged_as`: the name in the log. `says`: how the price comes about, a
    template of `c`.
    """

    name: str
    units: Callable[[Call], Any]
    early: Callable[[Call], Any] | None = None
    weight: int = 1
    early_weight: int | None = None
    dtype: Callable[[Call], np.dtype] | None = own
    late: bool = False
    returns: str = "arrays"
    early_returns: str = ""
    keeps: Callable[[Call], tuple] | None = None
    makes: bool = False
    mend: Callable | None = None
    function: Any = None
    takes: Callable | None = None
    warns: Any = False
    writes: bool = False
    unrouted: str = ""
    plain: str = ""
    early_plain: str = ""
    logged_as: str = ""
    says: str = ""


OPERATIONS: dict[str, Operation] = {}


def price(names: str, units: Callable[[Call], Any], **told: Any) -> None:
    """Register operations, `names` of NumPy's separated by blanks; what is told of them are an Operation's fields."""
    for name in names.split():
        operation = Operation(name, units, **told)
        numpys = reduce(lambda owner, part: getattr(owner, part, None), name.split("."), np)  # type: ignore
        if operation.function or numpys:  # this NumPy has it
            OPERATIONS[name] = replace(operation, function=operation.function or numpys)


class PriceBook(NamedTuple):
    """The prices of one version of the rules. Book 0.12 is `immutable`: arrays are not written into."""

    name: str
    immutable: bool

    def weight_of(self, operation: Operation) -> int:
        """The weight of a unit."""
        is_early = not self.immutable and operation.early_weight is not None
        return operation.early_weight if is_early else operation.weight  # type: ignore[return-value]

    def bill(self, call: Call) -> Bill | None:
        """What a Call costs; None if it is not logged. Raises UnsupportedFunctionError or -DtypeError."""
        operation, weight, dtype = call.operation, self.weight_of(call.operation), None
        units = operation.units if self.immutable else operation.early or operation.units
        for name in f"{operation.plain} {'' if self.immutable else operation.early_plain}".split():
            if any_counted([call.arguments.get(name)]):
                raise UnsupportedFunctionError(
                    f"{call.name} with a counted {name} has no price: use np.asarray({name})"
                )
        amount = units(call)
        if amount is None:
            return None
        if self.immutable and operation.dtype:
            dtype = operation.dtype(call)
            amount *= rate_of(dtype)
        subscripts = call.product.subscripts if operation.keeps is of_product else None
        whole = subscripts or isinstance(operation.function, np.ufunc)
        shown = call.operands if whole else [a for a in call.args[:1] if isinstance(a, np.ndarray)]
        return Bill(
            operation.logged_as or call.name,
            int(amount * weight),
            dtype,
            tuple(map(shape_of, shown)),
            subscripts,
        )

    def explain(self, call: Call) -> str:
        """How the price of a call comes about."""
        operation, bill = call.operation, self.bill(call)
        if bill is None:
            return "free"
        weight = self.weight_of(operation)
        said = operation.says.format(c=call) or "no sentence is known"
        if operation.weight == weight != 1 and operation.early_weight in (None, weight):
            said += f", weight {weight}"
        elif weight != 1:
            said += f"; weight {weight} in book {self.name}"
        if bill.dtype and rate_of(bill.dtype) > 1:
            said += f"; {bill.dtype} costs {rate_of(bill.dtype)} times in book {self.name}"
        return said + "; what is symmetric counts once" * bool(symmetry_of(call.result) or call.blocks)


PRICES = {book.name: book for book in (PriceBook("0.7", False), PriceBook("0.12", True))}


# ---- what NumPy does not do, or not in the same way ------------------------------------------------------


def pairwise_einsum(text, *operands, optimize, **kwargs):
    """einsum pair by pair along the charged path, as the real package does: the bits depend on it."""
    if len(operands) == 1:
        return np.einsum(text, *operands, **kwargs)
    parts, out = subscripts(text, tuple(map(np.ndim, operands)))
    size = {c: n for part, a in zip(parts, operands) for c, n in zip(part, np.shape(a))}
    left = dict(enumerate(zip(parts, operands)))
    path = [(0, 1)] if len(parts) == 2 else cheapest_path(parts, out, size)
    for step, (i, j) in enumerate(path, len(parts)):
        (other, b), (term, a) = left.pop(i), left.pop(j)
        needed = set(out).union(*[rest for rest, _ in left.values()])
        made = "".join(c for c in dict.fromkeys(term + other) if c in needed) if left else out
        left[step] = (
            made,
            np.einsum(f"{term},{other}->{made}", a, b, optimize=optimize, **({} if left else kwargs)),
        )
    return left[step][1]


def warn(message, category=UserWarning):
    """Warn at the line that called into this file."""
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_globals is globals():
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


@cache
def say_once(sentence):
    """A sentence on stderr, once in a process."""
    print(f"whest: {sentence}", file=sys.stderr)


def compiled(function, decorate, *signatures, **options):
    """A function compiled by one of numba's decorators, cached on disk where there is a place for that."""
    try:
        return decorate(*signatures, cache=True, **options)(function)
    except RuntimeError:
        say_once("no folder for compiled code: set NUMBA_CACHE_DIR to one, to compile only once.")
        return decorate(*signatures, **options)(function)


@cache
def elementwise_kernel(function):
    """A scalar function as a ufunc of float64."""
    import numba

    return compiled(function, numba.vectorize, ["f8(f8)"])


# Coefficients of Acklam's approximation of the normal quantile (2003), in the middle and in the tails.
MIDDLE = (
    (
        -3.969683028665376e01,
        2.209460984245205e02,
        -2.759285104469687e02,
        1.383577518672690e02,
        -3.066479806614716e01,
        2.506628277459239e00,
    ),
    (
        -5.447609879822406e01,
        1.615858368580409e02,
        -1.556989798598866e02,
        6.680131188771972e01,
        -1.328068155288572e01,
        1.0,
    ),
)
TAIL = (
    (
        -7.784894002430293e-03,
        -3.223964580411365e-01,
        -2.400758277161838e00,
        -2.549732539343734e00,
        4.374664141464968e00,
        2.938163982698783e00,
    ),
    (0.0, 7.784695709041462e-03, 3.224671290700398e-01, 2.445134137142996e00, 3.754408661907416e00, 1.0),
)
DENSITY_AT_0 = 0.3989422804014327


def below(z):
    """Probability below z * sqrt 2; as on the grader, it is 0 where z * sqrt 2 < -8.3."""
    return 0.5 * (1.0 + math.erf(z))


def quantile(p):
    """Acklam's approximation and a Newton step, as on the grader: tails beyond 1e-8 are right to 1e-9 only."""
    if not 0.0 < p < 1.0:
        return math.nan if p != 0.0 and p != 1.0 else math.copysign(inf, p - 0.5)
    tail = min(p, 1.0 - p)
    if tail < 0.02425:
        x, coefficients = math.sqrt(-2.0 * math.log(tail)), TAIL
    else:
        x, coefficients = (p - 0.5) * (p - 0.5), MIDDLE
    above, under = 0.0, 0.0
    for i in range(6):
        above = above * x + coefficients[0][i]
        under = under * x + coefficients[1][i]
    x = above / under
    if tail >= 0.02425:
        x *= p - 0.5
    elif p > 0.5:
        x = -x
    density = DENSITY_AT_0 * math.exp(-0.5 * x * x)
    return x if density <= 1e-300 else x - (0.5 * (1.0 + math.erf(x / math.sqrt(2.0))) - p) / density


def normal_pdf(x, loc=0, scale=1):
    """Density of the normal distribution, float64; arguments broadcast."""
    z = (np.asarray(x, float) - loc) / scale
    return DENSITY_AT_0 / scale * np.exp(-0.5 * z * z)


def normal_cdf(x, loc=0, scale=1):
    """Its distribution function."""
    return elementwise_kernel(below)((np.asarray(x, float) - loc) / (scale * math.sqrt(2)))


def normal_ppf(q, loc=0, scale=1):
    """Its quantiles of the probabilities q; nan outside [0, 1]. Warns where they are not quite the grader's."""
    q = np.asarray(q, float)
    tail = np.minimum(q, 1 - q)
    if np.any((tail > 0) & (tail < 1e-4)):
        warn("norm.ppf within 1e-4 of 0 or 1 is the grader's to eight digits only")
    return loc + scale * elementwise_kernel(quantile)(q)


NORMAL = {"pdf": normal_pdf, "cdf": normal_cdf, "ppf": normal_ppf}


# ---- the operations --------------------------------------------------------------------------------------

per_element = attrgetter("elements")
per_distinct = attrgetter("distinct")
per_number = attrgetter("size")
per_numbers = attrgetter("numbers")
per_fold = attrgetter("folds")
per_result = attrgetter("outputs")
per_written = attrgetter("written")


def free(c):
    """Logged, at no cost."""
    return 0


def refuse(c, **allowed):
    """UnsupportedFunctionError unless each of these arguments has the only value that has a price."""
    for name, value in allowed.items():
        if type(c[name]) is not type(value) or c[name] != value:
            raise UnsupportedFunctionError(f"{c.name} with {name}= has no price here: leave it out")


def diagonal_length(shape, offset, axis1=0, axis2=1):
    """How many elements a diagonal has."""
    return np.broadcast_to(0, shape).diagonal(offset, axis1, axis2).shape[-1]


def on_diagonal(c):
    """Elements of a diagonal, at least 1."""
    return at_least_1(diagonal_length(c.shape, c["offset"], c["axis1"], c["axis2"]))


def masked(keys):
    """Elements of the boolean masks among index keys."""
    return size_of(*[key for key in keys if dtype_of(key).kind == "b"])


def below_diagonal(c, k):
    """Cells on and below the k-th diagonal of the result."""
    return prod(c.result.shape[:-2]) * int(np.tri(*c.result.shape[-2:], k).sum())


def scattered(c):
    """What put_along_axis writes."""
    if c.axis is None:
        return size_of(c["indices"])
    return c.size // at_least_1(c.along) * shape_of(c["indices"])[c.axis]


def filled(c):
    """What fill_diagonal writes."""
    if len(c.shape) > 2:
        return c.shape[0]
    rows = c.shape[0] if c["wrap"] else min(c.shape)
    return len(range(0, rows * c.shape[1], c.shape[1] + 1))


pointwise = partial(price, units=per_element, dtype=loop, keeps=elementwise, says="an operation a number")
pointwise(
    "add subtract multiply divide true_divide negative positive conj conjugate abs absolute fabs square sqrt"
)
pointwise("maximum minimum fmax fmin sign signbit copysign nextafter heaviside reciprocal spacing")
pointwise(
    "equal not_equal less less_equal greater greater_equal logical_not logical_and logical_or logical_xor"
)
pointwise(
    "ceil floor trunc rint degrees radians deg2rad rad2deg invert bitwise_not bitwise_invert bitwise_count"
)
pointwise("bitwise_and bitwise_or bitwise_xor left_shift right_shift bitwise_left_shift bitwise_right_shift")
pointwise("exp exp2 expm1 log log2 log10 log1p logaddexp logaddexp2 power float_power cbrt hypot", weight=16)
pointwise("sin cos tan arcsin arccos arctan arctan2 sinh cosh tanh arcsinh arccosh arctanh", weight=16)
pointwise("floor_divide mod remainder fmod gcd lcm", weight=16)
pointwise("asin acos atan asinh acosh atanh pow atan2", weight=16, early_weight=1)
pointwise("isnan isfinite isinf", units=per_number, keeps=None, returns="plain")
pointwise(
    "round around",
    units=per_distinct,
    dtype=own_with_out,
    unrouted="around",
    mend=lambda result, c: result.item() if type(c.first) in (*WEAK, bool) else result,
)
pointwise("fix nan_to_num", units=per_distinct, dtype=own_with_out, unrouted="fix nan_to_num")


def bounds_of(c):
    """What clip is given, by position or by either of its keywords."""
    given = [*c.args[1:3], *(c.kwargs.get(name) for name in ("a_min", "a_max", "min", "max"))]
    return [bound for bound in given if bound is not None]


def clipped(c):
    """An operation a number and bound; book 0.7 counts the numbers alone."""
    bounds = bounds_of(c)
    if not c.early:
        return at_least_1(len(bounds)) * at_least_1(elements(c.first, *bounds))
    return c.numbers if any(shape_of(b) and not symmetry_of(b) for b in bounds) else c.distinct


pointwise(
    "clip",
    units=clipped,
    says="an operation a number and bound",
    dtype=lambda c: promoted(c.first, *bounds_of(c), c.kwargs.get("out")),
)


def averaged(c):
    """Units of average, which has no price with weights."""
    refuse(c, weights=None, returned=False)
    return c.folds if c.early else c.folds + c.results


def about_the_mean(c):
    """Of var: the mean, the squares about it, and their mean."""
    if c["mean"] is not None and spread((c.first, c["mean"])) > c.size:
        raise UnsupportedFunctionError(f"{c.name} about means of another shape has no price here")
    return 2 * (c.distinct + c.additions + c.results)


reducing = partial(
    price, units=per_fold, keeps=reduced, says="{c.folds:,} operations, for {c.results:,} results"
)
reducing("sum prod", dtype=reduction(added), warns=True)
reducing("cumsum cumprod", dtype=reduction(added), keeps=cumulative, warns=True)
reducing("max min amax amin all any", dtype=reduction(np.dtype), warns=True)
reducing("argmax argmin", warns=True)
reducing(
    "count_nonzero",
    warns="0.7",
    units=per_distinct,
    early=per_fold,
    dtype=reduction(np.dtype),
    unrouted="count_nonzero",
    mend=lambda result, c: int(result) if c.axis is None and not c["keepdims"] else result,
)
reducing(
    "mean",
    units=lambda c: c.additions + c.results,
    dtype=reduction(inexact),
    says="{c.additions:,} additions and {c.results:,} divisions",
)
reducing(
    "var",
    warns="0.7",
    units=about_the_mean,
    early=per_fold,
    early_weight=2,
    dtype=reduction(inexact),
    says="the mean, and that of the squares about it",
)
reducing(
    "std",
    warns="0.7",
    units=lambda c: about_the_mean(c) + c.results,
    early=per_fold,
    early_weight=2,
    dtype=reduction(inexact),
    says="the mean, that of the squares about it, and roots",
)
reducing("median", units=lambda c: c.results * c.each, dtype=reduction(inexact))
reducing("average", warns="0.7", units=averaged, early=averaged, dtype=reduction(inexact))


def with_nan_search(base):
    """The units of a reduction, after floats were looked through for NaN."""
    always = base.name == "median"
    return lambda c: at_least_1(base.units(c) + (c.distinct if always or c.main.kind in "fc" else 0))


for _name in "sum prod cumsum cumprod mean var std argmax argmin median max min".split():
    _base = OPERATIONS[_name]
    _units = _base.units if _name in ("max", "min") else with_nan_search(_base)
    price(
        f"nan{_name}",
        _units,
        early=per_fold,
        early_weight=_base.early_weight,
        dtype=_base.dtype,
        keeps=_base.keeps,
        unrouted=f"nan{_name}",
        says=_base.says,
        warns=_base.warns or "0.7",
    )


def selections(c):
    """For k orders: a search among n numbers that k orders share, and four operations each."""
    refuse(c, weights=None)
    k = at_least_1(size_of(c["q"]))
    searches = c.each * min(k, 1 + 4 * levels(min(k, c.each)))
    return c.results * (c.each if c.early else searches + 4 * k)


def selected(c):
    """Of quantile and percentile with one order."""
    return unknown(c) if c.blocks and shape_of(c["q"]) else reduced(c)


selecting = partial(
    price,
    units=selections,
    keeps=selected,
    early_plain="q",
    says="searches among {c.each:,} numbers a result",
)
selecting("percentile", dtype=lambda c: promoted(inexact(c.main), c["q"]))
selecting("quantile", dtype=lambda c: promoted(c.main, c["q"]))

multiplying = partial(
    price,
    units=lambda c: c.product.operations,
    keeps=of_product,
    dtype=both,
    says="multiplications and additions of {c.product.subscripts}, for {c.made_by_product:,} distinct results",
)
multiplying("einsum", function=pairwise_einsum)
multiplying("outer tensordot", early_returns="plain")
multiplying("matmul dot vecdot matvec vecmat", early_returns="alike")
multiplying("inner", early_returns="alike", function=lambda a, b: np.inner(a, b))  # by their names, too
multiplying("vdot", returns="scalars", unrouted="vdot", function=lambda a, b: np.vdot(a, b))
price(
    "kron",
    lambda c: at_least_1(c.size * size_of(c["b"])),
    dtype=both,
    early_returns="plain",
    unrouted="kron",
    says="a product a result",
)

COPIED = "{c.size:,} numbers are written"
WRITTEN = "{c.outputs:,} numbers are written"
making = partial(price, early=unlogged, makes=True, says=COPIED)


def takes_shape(shape, dtype=None, order="C"):
    """The arguments of zeros, ones and empty."""


def per_cell(c):
    """As many as an array of the shape that is asked for has."""
    return cells(c["shape"])


making(
    "zeros",
    free,
    dtype=asked(float),
    keeps=constant,
    says="free",
    takes=takes_shape,
)
making(
    "ones",
    per_cell,
    dtype=asked(float),
    keeps=constant,
    takes=takes_shape,
)
making(
    "full",
    per_cell,
    early=per_cell,
    keeps=constant,
    dtype=lambda c: np.dtype(dtype_of(c["fill_value"]) if c["dtype"] is None else c["dtype"]),
)
making("zeros_like", free, dtype=asked(), keeps=like, unrouted="zeros_like", says="free")
making(
    "ones_like",
    lambda c: cells(c.shape if c["shape"] is None else c["shape"]),
    dtype=asked(),
    keeps=like,
    unrouted="ones_like",
)
making(
    "full_like",
    per_numbers,
    plain="fill_value",
    early=per_numbers,
    dtype=asked(),
    keeps=like,
    unrouted="full_like",
)
making(
    "eye",
    lambda c: diagonal_length((c["N"], c["N"] if c["M"] is None else c["M"]), c["k"]),
    dtype=asked(float),
    keeps=centred,
    says=WRITTEN,
)
making(
    "identity", lambda c: c["n"], dtype=asked(float), keeps=centred, says="{c.first:,} numbers are written"
)
making("diagflat", per_number, early=per_result, late=True, keeps=centred, unrouted="diagflat")
making(
    "diag",
    lambda c: c.size if len(c.shape) == 1 else 0,
    early_weight=4,
    keeps=centred,
    unrouted="diag",
    early=lambda c: (c.size + abs(c["k"])) ** 2 if len(c.shape) == 1 else min(c.shape),
)
price("array", per_numbers, dtype=asked(), says=COPIED)
price(
    "empty",
    free,
    early=unlogged,
    dtype=asked(float),
    says="free",
    takes=takes_shape,
)
price("empty_like", free, early=unlogged, dtype=asked(), unrouted="empty_like", says="free")
price(
    "arange",
    lambda c: 2 * c.outputs,
    plain="start stop step",
    takes=lambda start=0, stop=None, step=1: None,
    early=per_result,
    dtype=made,
    late=True,
    says="2 operations a number",
)


def spaced(c):
    """2 operations a number; book 0.7 counts the numbers."""
    refuse(c, retstep=False)
    return at_least_1(c["num"]) if c.early else 2 * c.outputs


price(
    "linspace",
    spaced,
    early=spaced,
    early_plain="start stop",
    dtype=made,
    late=True,
    returns="scalars",
    unrouted="linspace",
    says="2 operations a number",
)
price(
    "ix_",
    lambda c: c.outputs + masked(c.args),
    early=per_result,
    late=True,
    dtype=lambda c: joined(*c.result),
    unrouted="ix_",
    says=WRITTEN,
)
indexing = partial(price, units=per_written, early=unlogged, dtype=None, late=True, returns="scalars")
indexing("tril_indices triu_indices diag_indices", says=WRITTEN)
for _name in "tril_indices_from triu_indices_from diag_indices_from unravel_index ravel_multi_index".split():
    indexing(_name, unrouted=_name, says=WRITTEN)
price("copy", per_numbers, early=unlogged, keeps=elementwise, says=COPIED)
price(
    "reshape",
    per_numbers,
    early=unlogged,
    keeps=regrouped,
    warns=True,
    says="{c.size:,} numbers, even as a view",
)
price("ravel", per_numbers, early=free, warns=True, says="{c.size:,} numbers, even as a view")
price(
    "astype",
    lambda c: c.size if c["copy"] or c.main != np.dtype(c["dtype"]) else 0,
    early=unlogged,
    dtype=lambda c: heavier(c.main, np.dtype(c["dtype"])),
    takes=lambda x, dtype, copy=True: None,
    says=COPIED,
)
price(
    "asarray",
    lambda c: 0 if np.shares_memory(c.first, c.result) else c.outputs,
    early=free,
    dtype=lambda c: heavier(c.main, c.made),
    late=True,
    says="numbers are written if they move",
)

viewing = partial(price, units=free, dtype=None, says="a view is free")
viewing("frombuffer broadcast_arrays rollaxis", unrouted="broadcast_arrays rollaxis")
viewing("vsplit dsplit array_split", unrouted="array_split", warns=True, plain="indices_or_sections")
viewing(
    "split",
    warns=True,
    plain="indices_or_sections",
    keeps=lambda c: moved_to({axis: axis for axis in c.kept}, c.blocks),
)
viewing("broadcast_to", keeps=lambda c: stretched(c.blocks, c.shape, c.result.shape), makes=True)
viewing("unstack", early=per_number, returns="scalars", unrouted="unstack")
viewing("diagonal", early=on_diagonal, warns=True)
viewing("rot90", early=unlogged, unrouted="rot90")
viewing("fliplr flipud hsplit", early=unlogged, unrouted="fliplr flipud", warns=True)
viewing("flip", early=unlogged, keeps=unknown)
viewing("atleast_1d atleast_2d atleast_3d", early=unlogged, keeps=regrouped)
viewing("squeeze", early=unlogged, keeps=regrouped, warns=True)
viewing(
    "expand_dims",
    early=unlogged,
    makes=True,
    keeps=lambda c: blocks_of([*regrouped(c), axes_of(c.result.shape, c.axis)]),
)
viewing("transpose swapaxes moveaxis", early=unlogged, keeps=permuted)
viewing("matrix_transpose permute_dims", units=unlogged, keeps=permuted, unrouted="permute_dims")
price(
    "trace",
    lambda c: c.size // (c.shape[c["axis1"]] * c.shape[c["axis2"]] or 1) * on_diagonal(c),
    early=lambda c: at_least_1(min(c.shape[c["axis1"]], c.shape[c["axis2"]])),
    dtype=reduction(added),
    returns="scalars",
    says="an addition a diagonal element",
)
joining = partial(
    price,
    units=lambda c: at_least_1(size_of(*c.first)),
    dtype=parts,
    warns=True,
    says="all numbers of the result are written",
)
joining("concatenate", keeps=lambda c: joined_along(c, c.axis), takes=lambda a, axis=0, out=None: None)
joining("stack", keeps=stacked)


def without_dtype(function):
    """A NumPy function of a list of arrays that has no dtype= in the contest's package."""
    return wraps(function)(lambda tup: function(tup))


joining("vstack", keeps=lambda c: joined_along(c, 0), function=without_dtype(np.vstack))
joining(
    "row_stack",
    early=unlogged,
    function=without_dtype(np.vstack),
    keeps=lambda c: joined_along(c, 0),
    logged_as="vstack",
)
for _function in (np.hstack, np.column_stack):
    joining(
        _function.__name__,
        early=unlogged,
        keeps=lambda c: joined_along(c, 1),
        function=without_dtype(_function),
    )
joining("concat dstack", units=per_result, late=True, unrouted="concat dstack", warns=False)
repeating = partial(price, units=per_written, late=True, says=WRITTEN)
repeating("tile", keeps=unknown, early_plain="reps")
repeating("repeat", keeps=unknown)
repeating("roll", early=unlogged, keeps=unknown)
repeating("tril", warns=True, units=lambda c: at_least_1(below_diagonal(c, c["k"])), early=unlogged)
repeating(
    "triu", warns=True, units=lambda c: at_least_1(c.outputs - below_diagonal(c, c["k"] - 1)), early=unlogged
)

choosing = partial(price, weight=4, late=True, says="a choice a number")
choosing(
    "where",
    lambda c: at_least_1(spread(c.arguments.values())),
    early=per_number,
    late=False,
    dtype=lambda c: promoted(c["x"], c["y"]),
    takes=lambda condition, x=None, y=None: None,
)
choosing(
    "select",
    lambda c: c.outputs * len(c["condlist"]),
    early=lambda c: max(map(size_of, c["choicelist"])),
    weight=1,
    early_weight=4,
    dtype=lambda c: promoted(joined(*c["choicelist"]), c["default"]),
)
choosing("take", per_result, returns="scalars", unrouted="take")
choosing("take_along_axis", per_result, early_weight=1, returns="scalars", unrouted="take_along_axis")
choosing(
    "compress",
    warns=True,
    units=lambda c: c.size + 4 * c.outputs,
    early=per_result,
    weight=1,
    early_weight=4,
    dtype=lambda c: dtype_of(c["a"]),
    unrouted="compress",
)
price("nonzero flatnonzero", per_number, unrouted="flatnonzero", says="a comparison a number")
price("argwhere", per_number, early_weight=4, unrouted="argwhere", says="a comparison a number")


def copied(c):
    """What copyto writes; book 0.7 counts what it reads."""
    refuse(c, where=True)
    return size_of(c["src"]) if c.early else c.size


writing = partial(price, early=per_number, writes=True, says="numbers are written")
writing("put", lambda c: size_of(c["ind"]), unrouted="put")
writing("put_along_axis", scattered, unrouted="put_along_axis")
writing("copyto", copied, early=copied, dtype=both, takes=lambda dst, src, casting=None, where=True: None)
writing("fill_diagonal", filled, early=lambda c: min(c.shape[:2]), early_weight=4, unrouted="fill_diagonal")
price("packbits", per_numbers, early=per_result, late=True, says="an operation a bit")
price("unpackbits", per_result, late=True, says="an operation a bit")

searching = partial(
    price, weight=4, early_weight=1, returns="scalars", says="n log2 n comparisons, n = {c.along:,}"
)
searching("sort argsort", lambda c: sorting(c.size, c.along))
searching("unique", lambda c: sorting(c.size, c.along), early=lambda c: sorting(c.size, c.size))
searching("unique_all unique_counts unique_inverse unique_values", lambda c: sorting(c.size, c.size))
searching(
    "partition argpartition", lambda c: at_least_1(c.size * size_of(c["kth"])), says="a comparison a number"
)
searching(
    "searchsorted",
    lambda c: at_least_1(size_of(c["v"])) * log2(c.size),
    dtype=both,
    says="log2 n comparisons a query, n = {c.size:,}",
)
searching(
    "digitize", lambda c: c.numbers * log2(size_of(c["bins"])), dtype=both, says="log2 n comparisons a number"
)
searching("bincount", per_numbers, dtype=lambda c: joined(c.first, i8), says="an operation a number")
searching(
    "union1d setdiff1d setxor1d",
    lambda c: sorting(*[size_of(*c.operands)] * 2),
    dtype=both,
    says="n log2 n comparisons of both together",
)


solving = partial(
    price,
    dtype=lapack,
    early_weight=4,
    returns="scalars",
    early_returns="alike",
    says="LAPACK's operations, n = {c.matrix.n:,}",
    early=lambda c: c.matrix.many * at_least_1(c.matrix.m * c.matrix.n * min(c.matrix[:2])),
)


def per_matrix(each):
    """Units for a batch of square matrices, by those of one with n rows."""
    return lambda c: c.matrix.many * at_least_1(each(c.matrix.n))


for _name, _operations in {
    "cholesky": lambda n: n**3 // 3,
    "eig": lambda n: 25 * n**3,
    "eigvals": lambda n: 10 * n**3,
    "eigh": lambda n: 9 * n**3,
    "eigvalsh": lambda n: 4 * n**3 // 3,
    "det": lambda n: 2 * n**3 // 3 + n,
    "slogdet": lambda n: 2 * n**3 // 3 + 18 * n,
}.items():
    solving(f"linalg.{_name}", per_matrix(_operations))


def inversions(c):
    """2 n^3; of a symmetric matrix 4/3 n^3, for which book 0.7 charges more."""
    n, symmetric = c.matrix.n, bool(c.blocks)
    return c.matrix.many * at_least_1(n**3 + (n**3 // 3 if symmetric else 0 if c.early else n**3))


def solutions(c):
    """An LU decomposition, and two triangular systems a right-hand side."""
    n, b = c.matrix.n, shape_of(c["b"])
    batch = prod(np.broadcast_shapes(c.shape[:-2], b[:-2]))
    return batch * (n and at_least_1(2 * n**3 // 3 + 2 * n * n * (b[-1] if len(b) > 1 else 1)))


def singular(c):
    """LAPACK's gesdd (Golub and Van Loan, Matrix Computations, 8.6), with vectors or without."""
    short, long = sorted(c.matrix[:2])
    operations = 2 * long * short**2 + 2 * short**3
    if c.name == "linalg.svd" and c["compute_uv"]:
        is_full = c["full_matrices"] and short < long
        operations = 4 * long**2 * short + 22 * short**3 if is_full else 6 * long * short**2 + 20 * short**3
    return c.matrix.many * at_least_1(operations)


def orthogonal(c):
    """qr: once for R alone, twice with Q."""
    m, n, count = c.matrix
    r = min(m, n)
    return count * at_least_1((2 * m * n * r - 2 * r**3 // 3) * (1 if c["mode"] in ("r", "raw") else 2))


def norms(c):
    """2 operations a number of each norm; book 0.7 charges one of several."""
    if c["ord"] not in (None, 1, inf, *([2] if len(c.axes) == 1 else ["fro"])):
        raise UnsupportedFunctionError(f"norm with ord={c['ord']} has no price here: use the singular values")
    one = 2 * at_least_1(c.each)
    return one if c.early else c.size // at_least_1(c.each) * one


solving("linalg.inv", inversions, early=inversions, keeps=elementwise)
solving("linalg.solve", solutions, early_returns="alike last")
solving("linalg.svd", singular)
solving("linalg.svdvals", singular, unrouted="linalg.svdvals")
solving("linalg.qr", orthogonal)
solving("linalg.norm", norms, early=norms, early_weight=1, says="2 operations a number")


def drawing(names, units=per_written, **told):
    """Register methods of a Generator."""
    for name in names.split():
        price(
            f"random.{name}",
            units,
            late=True,
            returns="scalars",
            function=getattr(np.random.Generator, name),
            logged_as=f"random.Generator.{name}",
            **{"dtype": made, "says": "{c.outputs:,} draws"} | told,
        )


def pool(c):
    """How many things there are to choose from, or to shuffle; at least 1."""
    return at_least_1(c.first if isinstance(c.first, (int, np.integer)) else c.shape[c.axis])


def choices(c):
    """What choice draws, or shuffles to draw without replacement."""
    refuse(c, p=None)
    return c.written if c["replace"] else pool(c) * (log2(pool(c)) if c.early else 1)


# NumPy's checks of these call NumPy's functions, which the real package does not count there.
SHAPE_PARAMETERS = """a b df dfnum dfden nonc shape scale sigma kappa lam left mode right p n alpha low high
    ngood nbad nsample mean"""
drawing("random integers")
drawing("uniform", lambda c: 3 * c.written, early=per_written, plain=SHAPE_PARAMETERS)
drawing("bytes", lambda c: at_least_1(len(c.result)), dtype=None)
for _names in (
    "beta binomial chisquare dirichlet exponential f gamma geometric gumbel hypergeometric laplace logistic lognormal",
    "logseries multinomial negative_binomial noncentral_chisquare noncentral_f normal pareto poisson power rayleigh",
    "standard_cauchy standard_exponential standard_gamma standard_normal standard_t triangular vonmises weibull",
    "wald zipf",
):
    drawing(_names, weight=16, plain=SHAPE_PARAMETERS)
drawing(
    "multivariate_normal",
    lambda c: 26 * c.size**3 + 2 * c.outputs * c.size + 16 * c.outputs,
    early=per_written,
    early_weight=16,
)
shuffling = partial(drawing, weight=4, early_weight=1, dtype=None)
shuffling("permuted", per_numbers)
shuffling("permutation", pool, takes=lambda x, axis=0: None)
shuffling("shuffle", pool, takes=lambda x, axis=0: None, early_plain="x")
shuffling("choice", choices, takes=lambda a, size=None, replace=True, p=None, axis=0, shuffle=True: None)


def per_sample(operations, c):
    """So many operations for each number of the broadcast arguments."""
    return operations * at_least_1(spread(c.arguments.values()))


for _name, _each in {"pdf": 27, "cdf": 48, "ppf": 83}.items():
    price(
        f"stats.norm.{_name}",
        partial(per_sample, _each),
        early=per_numbers,
        early_weight=16,
        dtype=lambda c: f8,
        function=NORMAL[_name],
        plain="loc scale",
        says=f"{_each} operations a number, in book 0.7 16",
    )


def gathered(c):
    """Of x[keys], with arrays among the keys: masks are read, and 4 a number. Other keys give a free view."""
    keys = c.args[1] if type(c.args[1]) is tuple else (c.args[1],)
    arrays = [key for key in keys if isinstance(key, (list, range, np.ndarray, bool, np.bool_))]
    return masked(arrays) + 4 * c.outputs if arrays else None


price(
    "getitem",
    gathered,
    warns=True,
    early=unlogged,
    late=True,
    returns="scalars",
    function=np.ndarray.__getitem__,
    keeps=lambda c: () if gathered(c) else indexed(c.blocks, c.shape, c.args[1]),
    says="4 operations a number that is gathered, 1 a number of a mask",
)

LEFT_OUT = {  # why: what of NumPy's has no price here
    "complex numbers": "angle real imag isreal iscomplex real_if_close iscomplexobj isrealobj sort_complex",
    "transforms and special functions": "fft sinc i0 unwrap trapezoid ldexp",
    "windows": "bartlett blackman hamming hanning kaiser",
    "polynomials": "poly polyadd polyder polydiv polyfit polyint polymul polysub polyval roots vander",
    "histograms": "histogram histogram2d histogram_bin_edges histogramdd",
    "callbacks": "apply_along_axis apply_over_axes fromfunction fromiter piecewise",
    "files and text": "fromfile fromregex fromstring save savez savez_compressed base_repr binary_repr testing",
    "numerics": "cov corrcoef correlate convolve cross interp ediff1d gradient diff pad trim_zeros",
    "comparing and counting": "isclose allclose array_equal array_equiv isneginf isposinf ptp isin intersect1d lexsort",
    "two results": "modf frexp divmod einsum_path nanpercentile nanquantile cumulative_sum cumulative_prod",
    "making and writing": "meshgrid indices logspace geomspace tri mask_indices asarray_chkfinite require block bmat",
    "growing and shrinking": "append insert delete resize choose extract place putmask broadcast_shapes",
    "linear algebra": "linalg.tensorsolve linalg.tensorinv linalg.multi_dot linalg.matrix_power linalg.cross",
    "condition and rank": "linalg.cond linalg.matrix_rank",
    "other norms and systems": "linalg.lstsq linalg.pinv linalg.vector_norm linalg.matrix_norm",
    "linalg's own names": "linalg.trace linalg.diagonal linalg.matrix_transpose",
    "random functions of old": "random.RandomState random.normal random.rand random.randn random.randint random.random",
    "random, by its old names": "random.uniform random.standard_normal random.choice random.permutation random.shuffle",
}


# ======================================================================================
# Budget
#
# A BudgetContext is a purse: it knows the price book in force, pays for every operation before it runs, and
# keeps the log. It keeps the time too: inside NumPy (backend), inside the counter (overhead), and the rest
# (residual), which contest rounds price by the clock. The session adds up every context of the process.
# Way in: `afford` and `record`, one pair a call; way out: `summary_dict`.
# ======================================================================================


class BudgetExhaustedError(FlopscopeError):
    """The operation would cost more than remains; it was neither charged nor run."""

    def __init__(self, op_name: str, *, flop_cost: int, flops_remaining: float):
        super().__init__(f"{op_name} costs {flop_cost:,} FLOPs, but only {flops_remaining:,} are left")
        self.op_name, self.flop_cost, self.flops_remaining = op_name, flop_cost, flops_remaining


class TimeExhaustedError(FlopscopeError):
    """The context's wall-clock limit has passed; times in seconds."""

    def __init__(self, op_name: str, *, elapsed_s: float, limit_s: float):
        super().__init__(f"{op_name}: {elapsed_s:.3f} s have passed; the wall-clock limit is {limit_s:.3f} s")
        self.op_name, self.elapsed_s, self.limit_s = op_name, elapsed_s, limit_s


OpRecord = namedtuple(
    "OpRecord",
    """op_name subscripts shapes flop_cost cumulative namespace
    flopscope_context_start_offset_s flopscope_backend_duration_s flopscope_overhead_duration_s
    resolved_dtype""",
)


class Charge(NamedTuple):
    """One entry of a context's log, or several together; times in seconds."""

    bill: Bill
    cumulative: int
    namespace: str | None
    start: float
    backend: float  # in NumPy
    overhead: float  # in this counter
    stack: tuple = ()  # the participant's lines, innermost first, where a profile is kept: (file, line, ...)
    calls: int = 1

    @property
    def amounts(self):
        return {
            "flop_cost": self.bill.cost,
            "calls": self.calls,
            "flopscope_backend_time_s": self.backend,
            "flopscope_overhead_time_s": self.overhead,
        }


def summed(charges, key):
    """{key(charge): the amounts of all such charges}."""
    rows = defaultdict(Counter)
    for charge in charges:
        rows[key(charge)].update(charge.amounts)
    return rows


def condensed(charges):
    """Charges of the same lines, namespace, operation and dtype as one."""
    rows = summed(
        charges, lambda charge: (charge.stack, charge.namespace, charge.bill.op_name, charge.bill.dtype)
    )
    return [
        Charge(
            Bill(name, row["flop_cost"], dtype),
            0,
            space,
            0.0,
            row["flopscope_backend_time_s"],
            row["flopscope_overhead_time_s"],
            stack,
            row["calls"],
        )
        for (stack, space, name, dtype), row in rows.items()
    ]


DEFAULT_BUDGET = 10**15  # of the context that is in force outside any other
_clock = time.perf_counter
_default_book = os.environ.get("WHESTBENCH_PRICES", "0.7")


class _Thread(threading.local):
    active: BudgetContext | None = None
    drawing = False  # whether a random draw is under way


_thread = _Thread()


def use_prices(book: str) -> None:
    """Choose the price book, "0.7" or "0.12", of the contexts that are opened from now on."""
    global _default_book, _default_context
    _default_book, _default_context = PRICES[book].name, None


class BudgetContext(ContextDecorator):
    """Counts the FLOPs of what is done through fnp: `with BudgetContext(1e9) as budget:`, or as a decorator.

    Raises BudgetExhaustedError instead of running an operation that costs more than remains, and
    TimeExhaustedError at the first operation after `wall_time_limit_s` seconds. Contexts do not nest; one
    entered again goes on counting. `prices` names the book, the session's (`use_prices`) unless given.
    """

    profile: Any = None  # knows the participant's lines: profile.stack(frame)
    observer: Any = None  # sees values: observer(name, args, kwargs, result, FLOPs)

    def __init__(
        self,
        flop_budget: float,
        quiet: bool = False,
        namespace: str | None = None,
        wall_time_limit_s: float | None = None,
        *,
        prices: str | None = None,
    ):
        if not 0 < flop_budget < inf:
            raise ValueError(f"flop_budget must be a positive number, not {flop_budget}")
        self.flop_budget, self.wall_time_limit_s, self._quiet = flop_budget, wall_time_limit_s, quiet
        self.book, self.namespace = PRICES[prices or _default_book], namespace
        self._used = 0
        self.flopscope_backend_time_s = self.flopscope_overhead_time_s = 0.0  # in NumPy, in this counter
        self._start, self._end, self._deadline = 0.0, 0.0, inf  # of the last time that it was entered
        self._log: list[Charge] = []
        self._collected: tuple = None, 0  # the session that knows it, and how much of its log

    def afford(self, bill: Bill, now: float) -> None:
        """Raise BudgetExhaustedError if the operation costs more than remains, TimeExhaustedError if it is late."""
        if self._used + bill.cost > self.flop_budget:
            raise BudgetExhaustedError(
                bill.op_name, flop_cost=bill.cost, flops_remaining=self.flops_remaining
            )
        if now > self._deadline:
            self._out_of_time(bill)

    def record(self, bill: Bill, start: float, backend: float, now: float) -> None:
        """Charge what was done since `start`, of which so many seconds in NumPy."""
        overhead = now - start - backend
        self._used += bill.cost
        self.flopscope_backend_time_s += backend
        self.flopscope_overhead_time_s += overhead
        stack = ()
        if self.profile is not None:  # its time is not the participant's
            stack = self.profile.stack(sys._getframe(1))
            self.flopscope_overhead_time_s += _clock() - now
        self._log.append(Charge(bill, self._used, self.namespace, start, backend, overhead, stack))
        if now > self._deadline:
            self._out_of_time(bill)

    def _out_of_time(self, bill):
        raise TimeExhaustedError(bill.op_name, elapsed_s=self.elapsed_s, limit_s=self.wall_time_limit_s)

    def __enter__(self):
        if _thread.active is not None:
            raise RuntimeError("BudgetContexts do not nest: leave the first before entering the next")
        _thread.active = self
        if not self._quiet:
            print(f"flopscope prices {self.prices} | budget: {self.flop_budget:.2e} FLOPs", file=sys.stderr)
        self._start, self._end = _clock(), 0.0
        if self.wall_time_limit_s is not None:
            self._deadline = self._start + self.wall_time_limit_s
        return self

    def __exit__(self, *_):
        self._end, _thread.active = _clock(), None
        _session.collect(self)
        _session.closed_s += self.elapsed_s

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Stop all clocks, for a debugger: this time belongs neither to the wall time nor to the residual."""
        begun = _clock()
        try:
            yield
        finally:
            paused = _clock() - begun
            self._start += paused
            self._deadline += paused

    @property
    def prices(self) -> str:
        """Name of the price book in force."""
        return self.book.name

    @property
    def flops_used(self) -> int:
        """What was charged so far."""
        return self._used

    @property
    def flops_remaining(self) -> float:
        """What may still be spent."""
        return self.flop_budget - self.flops_used

    @property
    def op_log(self) -> list[OpRecord]:
        """One OpRecord for each charge, in order."""
        return [
            OpRecord(
                bill.op_name,
                bill.subscripts,
                bill.shapes,
                bill.cost,
                used,
                space,
                max(0.0, start - self._start),
                backend,
                overhead,
                bill.dtype and str(bill.dtype),
            )
            for bill, used, space, start, backend, overhead, *_ in self._log
        ]

    @property
    def elapsed_s(self) -> float:
        """Seconds since it was entered, until it was left, pauses excluded."""
        return (self._end or _clock()) - self._start if self._start else 0.0

    @property
    def wall_time_s(self) -> float | None:
        """The same; None before it is entered."""
        return self.elapsed_s if self._start else None

    @property
    def residual_wall_time_s(self) -> float | None:
        """Seconds spent elsewhere: Python, plain NumPy, other libraries."""
        outside = self.elapsed_s - self.flopscope_backend_time_s - self.flopscope_overhead_time_s
        return max(0.0, outside) if self._start else None

    def summary_dict(self, by_namespace: bool = False) -> dict:
        """Totals, by operation and, if asked, by namespace."""
        return summary_of(self.flop_budget, self._log, self.wall_time_s, by_namespace)

    def summary(self, by_namespace: bool = False) -> str:
        """The same as text."""
        return summary_text(self.summary_dict(True), by_namespace, self.namespace)


class _Session:
    """What the process did: the logs of every context that was closed, and of those that are open now."""

    def __init__(self):
        self.flop_budget, self.closed_s, self.log = 0, 0.0, []

    def collect(self, context):
        """Add what this context did since it was collected last."""
        known, done = context._collected
        self.flop_budget += 0 if known is self else context.flop_budget
        self.log = condensed(self.log + context._log[done:])
        context._collected = self, len(context._log)


_session = _Session()
_default_context: BudgetContext | None = None


def summary_of(flop_budget, charges, wall, by_namespace=False):
    """A context's summary_dict: totals of a log, by operation and, if asked, by namespace."""
    used, backend, overhead = [
        sum(charge.amounts[key] for charge in charges)
        for key in ("flop_cost", "flopscope_backend_time_s", "flopscope_overhead_time_s")
    ]
    summary = {
        "flop_budget": flop_budget,
        "flops_used": used,
        "flops_remaining": flop_budget - used,
        "operations": summed(charges, lambda charge: charge.bill.op_name),
        "wall_time_s": wall,
        "flopscope_backend_time_s": backend,
        "flopscope_overhead_time_s": overhead,
        "residual_wall_time_s": None if wall is None else max(0.0, wall - backend - overhead),
    }
    if by_namespace:
        spaces = summed(charges, lambda charge: charge.namespace)
        summary["by_namespace"] = {
            space: {"flops_used": row.pop("flop_cost"), **row, "operations": {}}
            for space, row in spaces.items()
        }
        for (space, name), row in summed(
            charges, lambda charge: (charge.namespace, charge.bill.op_name)
        ).items():
            summary["by_namespace"][space]["operations"][name] = row
    return summary


def summary_text(total, by_namespace, label=None):
    """A summary_dict as text."""
    if not total["operations"]:
        return "No budget data recorded yet."
    lines = [f"flopscope FLOP Budget Summary: {label or 'all'}"]
    lines += [f"  {key:<32}{total[key]:>24,}" for key in ("flop_budget", "flops_used", "flops_remaining")]
    for key, cost in (("by_namespace", "flops_used"),) * by_namespace + (("operations", "flop_cost"),):
        lines.append(f"  {key.replace('_', ' ')}:")
        for name, row in sorted(total[key].items(), key=lambda item: -item[1][cost]):
            share = row[cost] / (total["flops_used"] or 1)
            lines.append(
                f"    {name or '(unlabeled)':<30}{row[cost]:>24,}  ({share:6.1%}) {row['calls']:>9,} calls"
            )
    lines += [
        f"  {key:<32}{n:>24.3f} s" for key, n in total.items() if key.endswith("_time_s") and n is not None
    ]
    return "\n".join(lines)


def active_budget():
    """The context in force in this thread; outside any, the default context of the process."""
    global _default_context
    if _thread.active is not None:
        return _thread.active
    if threading.current_thread() is not threading.main_thread():
        warn("fnp in a thread of its own, outside any BudgetContext, is billed to nobody")
    if _default_context is None:
        _default_context = BudgetContext(DEFAULT_BUDGET, quiet=True)
    return _default_context


budget = BudgetContext  # @budget(1e9) above a function reads better than @BudgetContext(1e9)


@contextmanager
def namespace(segment: str) -> Iterator[BudgetContext]:
    """Log the operations inside under this name, below the name that is in force."""
    if not isinstance(segment, str) or not segment.strip() or "." in segment:
        raise ValueError(f"a namespace is a non-empty string without dots, not {segment!r}")
    context = active_budget()
    outer = context.namespace
    context.namespace = f"{outer}.{segment}" if outer else segment
    try:
        yield context
    finally:
        context.namespace = outer


def budget_summary_dict(by_namespace: bool = False) -> dict:
    """Totals of this process, all contexts together."""
    live = [context for context in (_thread.active, _default_context) if context and context._used]
    for context in live:
        _session.collect(context)
    wall = _session.closed_s + sum(context.elapsed_s for context in live)
    return summary_of(_session.flop_budget, _session.log, wall or None, by_namespace)


def budget_summary(by_namespace: bool = False) -> None:
    """Print the totals of this process."""
    print(summary_text(budget_summary_dict(True), by_namespace))


def budget_reset() -> None:
    """Forget the totals of this process: what an open context does from now on is counted anew."""
    global _session, _default_context
    _session, _default_context = _Session(), None
    if _thread.active is not None:
        _thread.active._collected = None, len(_thread.active._log)


# ======================================================================================
# fnp
#
# NumPy's names, counted. `perform` is what every counted call goes through: ask the book, pay, run NumPy on
# plain views, dress the result. Way in: the namespaces `fnp` and `flops`; way out: arrays, and a context's log.
# ======================================================================================

_getitem = np.ndarray.__getitem__
_BASIC_KEYS = {int, slice, type(None), type(Ellipsis), np.int64, np.int32}


class FlopscopeArray(np.ndarray):
    """A NumPy array whose operations are counted; `fnp.ndarray`."""

    _blocks: tuple = ()  # of axes that may change places: what is known of a SymmetricTensor

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **kwargs):
        name = ufunc.__name__ if method == "__call__" else f"{ufunc.__name__}.{method}"
        if name not in FUNCTIONS:
            raise UnsupportedFunctionError(f"np.{name} has no price here: use the functions of fnp")
        if out is not None:
            kwargs["out"] = out if len(out) > 1 else out[0]
        warn(f"np.{name} met a counted array: call the functions of fnp instead")
        return FUNCTIONS[name](*inputs, **kwargs)

    def __array_function__(self, function, types_, args, kwargs):
        name = f"{function.__module__}.{function.__name__}".removeprefix("numpy.")
        if name in _PASSED_THROUGH:
            return function(*bare(args), **bare(kwargs))
        if name not in OPERATIONS:
            raise UnsupportedFunctionError(f"np.{name} of a counted array has no price here")
        if name in OPERATIONS[name].unrouted.split():
            raise TypeError(f"np.{name} has no counted version by NumPy's name: call fnp.{name}")
        warn(f"np.{name} met a counted array: call fnp.{name} instead")
        return FUNCTIONS[name](*args, **kwargs)

    def __getitem__(self, key):
        for each in key if type(key) is tuple else (key,):
            if type(each) not in _BASIC_KEYS:
                return perform(OPERATIONS["getitem"], _getitem, {}, (self, key), {})
        return _getitem(self, key)

    def __setitem__(self, key, value):
        if active_budget().book.immutable:
            raise TypeError("book 0.12 has no item assignment: use where, concatenate, put_along_axis ...")
        super().__setitem__(key, value)

    def __contains__(self, item):
        return bool(FUNCTIONS["any"]((self == item).view(FlopscopeArray)))

    def compress(self, condition, *args, **kwargs):
        return FUNCTIONS["compress"](condition, self, *args, **kwargs)

    def conj(self):
        return self.conjugate()


class SymmetricTensor(FlopscopeArray):
    """A counted array known to be symmetric under permutations of its axes: prices count what differs."""

    _inferred = False  # whether out= may break the symmetry: of zeros, ones and constants

    @property
    def symmetry(self):
        """The SymmetryGroup of its axes; None once writing has broken it."""
        return SymmetryGroup(self._blocks) if self._blocks else None

    @property
    def T(self):
        return self.transpose()

    def __getitem__(self, key):
        keys = key if type(key) is tuple else (key,)
        if {*map(type, keys)} <= _BASIC_KEYS:
            return view_of(self, "getitem", _getitem, key)
        return super().__getitem__(key)

    def flatten(self, order="C"):
        return self.ravel(order).view(np.ndarray)

    @property
    def flat(self):
        if active_budget().book.immutable:
            raise UnsupportedFunctionError("flat of a symmetric array has no price in book 0.12: use ravel")
        return super().flat

    def __reduce__(self):
        return tagged, (self.view(FlopscopeArray), self._blocks)


class SymmetryGroup(NamedTuple):
    """Blocks of axes that may change places: what `symmetry=` takes and `SymmetricTensor.symmetry` gives."""

    blocks: tuple

    @classmethod
    def symmetric(cls, *, axes: Sequence[int]) -> SymmetryGroup:
        """All permutations of these axes."""
        return cls.young([axes])

    @classmethod
    def young(cls, blocks: Iterable[Sequence[int]]) -> SymmetryGroup:
        """All permutations within each of these blocks of axes; ValueError if they overlap."""
        blocks = [*map(tuple, blocks)]
        if len({*chain(*blocks)}) < sum(map(len, blocks)):
            raise ValueError("blocks of symmetric axes overlap: name each axis once")
        return cls(blocks_of(blocks))

    @property
    def axes(self) -> tuple:
        """The axes that move."""
        return tuple(sorted(chain(*self.blocks)))


def tagged(array, blocks):
    """The counted array as a SymmetricTensor of this symmetry, if there is any."""
    if blocks:
        array = array.view(SymmetricTensor)
        array._blocks = blocks
    return array


def view_of(array, name, native, *args):
    """What a method that gives a free view of a symmetric array gives, with what is left of the symmetry."""
    result = native(array.view(FlopscopeArray), *args)
    call = Call(OPERATIONS[name], not active_budget().book.immutable, (array, *args), {}, result)
    return with_symmetry(call, result) if isinstance(result, np.ndarray) else result


def bare(a):
    """`a` with every counted array in it (a list, a tuple, a dict) as a plain view of the same memory."""
    kind = type(a)
    if kind is list or kind is tuple:
        items = [bare(item) for item in a]
        return kind(items) if any(x is not y for x, y in zip(a, items)) else a
    if kind is dict:
        return {key: bare(value) for key, value in a.items()}
    return a.view(np.ndarray) if isinstance(a, FlopscopeArray) else a


def dress(result, scalars=True):
    """A result as callers see it: counted arrays; NumPy scalars as 0-d arrays, unless they are to stay."""
    kind = type(result)
    if kind is np.ndarray or scalars and isinstance(result, np.generic):
        return np.asarray(result).view(FlopscopeArray)
    if not isinstance(result, (list, tuple)):
        return result
    items = [dress(item, scalars) for item in result]
    return kind(*items) if hasattr(kind, "_fields") else kind(items)


def any_counted(args):
    """Whether a counted array is among arguments, or in lists among them."""
    return any(isinstance(a, FlopscopeArray) or type(a) in (list, tuple) and any_counted(a) for a in args)


def any_symmetric(args):
    """Whether an operand is known to be symmetric."""
    operands = args[0] if args and isinstance(args[0], (list, tuple)) else args
    return any(map(symmetry_of, operands))


# ---- the way of a call ------------------------------------------------------------------------------------

_PLAIN_KINDS = {int, float, bool, type(None), str, type}
# ndarray's methods of these names are quicker than NumPy's functions.
_QUICK_METHODS = set("sum prod max min mean argmax argmin any all cumsum cumprod".split())


def counted(operation):
    """The counted version of a NumPy function."""
    known = {}

    def call(*args, **kwargs):
        return perform(operation, operation.function, known, args, kwargs)

    call.__name__ = call.__qualname__ = operation.name.rpartition(".")[2]
    call.__doc__ = operation.function.__doc__
    return call


def key_of(operation, book, args, kwargs):
    """(what a bill follows from, the operands as NumPy is to see them); no key if it is more."""
    by_kind, key, plain = isinstance(operation.function, np.ufunc), (book,), []
    for a in args:
        kind = type(a)
        if kind is FlopscopeArray or kind is np.ndarray or kind is SymmetricTensor:
            key += kind, a.shape, a.dtype, symmetry_of(a)
            a = a.view(np.ndarray)
        elif kind in _PLAIN_KINDS:
            key += (kind,) if by_kind else (kind, a)
        elif kind is tuple and all(type(n) is int for n in a):
            key += (a,)
        else:
            return None, bare(args)
        plain.append(a)
    for name, value in kwargs.items():
        if type(value) not in _PLAIN_KINDS:
            return None, plain
        key += name, type(value), value
    if operation.keeps is of_product:
        ids = [*map(id, args)]
        key += (tuple(map(ids.index, ids)),)
    return key, plain


def perform(operation, work, known, args, kwargs):
    """Any counted call: ask the book, pay, run it on plain views, dress the result.

    What the price knows only from the result is charged after the work. `known`: bills by what they follow from.
    """
    start = _clock()
    context = _thread.active or active_budget()
    book = context.book
    if not args or (len(args) > 1 or kwargs) and isinstance(operation.function, np.ufunc):
        args, kwargs = in_their_places(operation, args, kwargs)
    key, plain = key_of(operation, book, args, kwargs)
    call = Call(operation, not book.immutable, args, kwargs)
    bill = known.get(key) if key else None
    if bill is None and not operation.late:
        bill = bill_of(call, book)
        if key and len(known) < 4096:
            known[key] = bill
    if bill is not None:
        context.afford(bill, start)
    written = written_symmetry(call) if operation.writes or "out" in kwargs else None
    if operation.name in _QUICK_METHODS and type(plain[0]) is np.ndarray:
        work = getattr(np.ndarray, operation.name)
    begun = _clock()
    call.result = result = work(*plain, **bare(kwargs))
    ended = _clock()
    if operation.late:
        bill = bill_of(call, book)
        if bill is not None:
            context.afford(bill, start)
    result = finished(call, plain, result)
    if written is not None and book.immutable:  # 0.7 goes on billing it as symmetric
        written._blocks = ()
    if bill is not None:
        context.record(bill, start, ended - begun, _clock())
    if context.observer is not None:
        context.observer(operation.name, args, kwargs, result, bill.cost if bill else 0)
    return result


def in_their_places(operation, args, kwargs):
    """Arguments as formulas expect them: the first by its position, the destination of a ufunc as out=."""
    if not args and not operation.name.startswith("random."):
        first = next(iter(parameters_of(operation.takes or operation.function)[0]), None)
        if first in kwargs:
            kwargs = dict(kwargs)
            args = (kwargs.pop(first),)
    n_in = getattr(operation.function, "nin", len(args))
    out = args[n_in:] or kwargs.get("out")
    if isinstance(out, tuple):
        destination = out[0][0] if isinstance(out[0], tuple) else out[0]
        args, kwargs = args[:n_in], kwargs | {"out": destination}
    return args, kwargs


def bill_of(call, book):
    """The Bill of a call. What a formula cannot digest, NumPy refuses by its own error, or it has no price."""
    try:
        return book.bill(call)
    except FlopscopeError:
        raise
    except Exception as exc:
        if not call.operation.late:
            args, kwargs = copy.deepcopy((bare(call.args), bare(call.kwargs)))
            call.operation.function(*args, **kwargs)
        raise UnsupportedFunctionError(
            f"fnp.{call.name} has no price in this form ({exc}): the README lists what was left out"
        ) from None


def finished(call, plain, result):
    """A result as callers see it: mended, as counted as its operands ask for, and with its symmetry."""
    operation, out, args = call.operation, call.kwargs.get("out"), call.args
    if len(args) > 1 and not isinstance(operation.function, np.ufunc):
        for given, seen in zip(args[1:], plain[1:]):
            if seen is result:  # a destination, by its position
                return given
    if out is not None and not operation.name.startswith("random."):
        return dress(out) if operation.name in ("take", "concatenate") else out
    if operation.mend:
        result = operation.mend(result, call)
    returns, scalars = (
        call.early and operation.early_returns or operation.returns,
        operation.returns != "scalars",
    )
    if operation.early_returns.startswith("alike") and not any_counted(
        args[-1:] if operation.early_returns == "alike last" else args
    ):
        returns, scalars = "plain" if call.early else returns, False
    if returns != "plain":
        result = dress(result, scalars)
    makes = operation.makes or operation.keeps is of_product and len({*map(id, args)}) < len(args)
    if isinstance(result, (np.ndarray, list)) and (makes or any_symmetric(args)):
        return with_symmetry(call, result)
    return result


def explain(function: Callable[[], Any], prices: str | None = None) -> list[tuple[str, int, str]]:
    """(operation, FLOPs, how they come about) of every charge of `function()` under a price book, or the session's."""
    rows = []

    def note(name, args, kwargs, result, cost):
        call = Call(OPERATIONS[name], not context.book.immutable, args, kwargs, result)
        rows.append((name, cost, context.book.explain(call)))

    with BudgetContext(DEFAULT_BUDGET, quiet=True, prices=prices) as context:
        context.observer = note
        function()
    return rows


# ---- symmetry: what is known of results -------------------------------------------------------------------


def with_symmetry(call, result):
    """`result` as a SymmetricTensor, if the operation keeps or makes a symmetry."""
    operation, symmetric = call.operation, any_symmetric(call.args)
    blocks = operation.keeps(call) if operation.keeps else ()
    if isinstance(result, list):
        return [tagged(a, blocks) for a in result]
    if operation.keeps is of_product and blocks and not (call.early or np.isfinite(bare(result)).all()):
        return result
    operands = call.first if isinstance(call.first, (list, tuple)) else call.args
    warns = (
        operation.warns
        or operation.keeps is elementwise
        and len(call.operands) > 1
        and operation.name != "clip"
    )
    had = [
        order_of(
            stretched(symmetry_of(a), a.shape, result.shape)
            if operation.keeps is elementwise
            else symmetry_of(a)
        )
        for a in operands
        if symmetry_of(a)
    ]
    warned = warns in (True, "0.7" if call.early else True) and _SETTINGS["symmetry_warnings"]
    if warned and max(had, default=1) > order_of(blocks):
        warn(
            f"{operation.name} loses a symmetry: what it gives costs the full price from here on",
            SymmetryLossWarning,
        )
    result = tagged(result, blocks)
    if blocks and not symmetric and operation.keeps in (constant, like):
        result._inferred = True
    return result


def written_symmetry(call):
    """The symmetric array that a call writes into, unless it stays so. ValueError if it must stay so."""
    operation, out = call.operation, call.kwargs.get("out")
    if out is not None and (operation.name == "dot" or operation.name == "matmul" and call.early):
        raise TypeError(f"{operation.name} has no out= in this book: use its result")
    written = call.args[0] if operation.writes else out
    if not symmetry_of(written):
        return None
    if written is out and operation.keeps and (any_symmetric(call.args) or operation.keeps is of_product):
        call.result = out
        if operation.keeps(call) == out._blocks:
            return None
    if operation.writes or out._inferred or operation.name in ("take", "concatenate"):
        return written
    raise ValueError(f"{operation.name} would break a symmetry: write into a plain copy")


class FlopscopeWarning(UserWarning):
    """Base of everything that counting warns of."""


class SymmetryLossWarning(FlopscopeWarning):
    """A symmetric array went in, nothing is known of what came out: it costs the full price from here on."""


class SymmetryError(FlopscopeError):
    """The data do not have the symmetry that was claimed."""


def pay(name, units, dtype, *shapes):
    """Charge what does not go through `perform`, in book 0.12 alone."""
    context, now = active_budget(), _clock()
    if context.book.immutable:
        bill = Bill(name, units * rate_of(dtype), dtype, shapes)
        context.afford(bill, now)
        context.record(bill, now, 0.0, now)


def as_symmetric(data: Any, *, symmetry: SymmetryGroup | tuple | list) -> FlopscopeArray:
    """`data` as a SymmetricTensor; `symmetry` names axes that may change places, or disjoint blocks of such.

    Raises SymmetryError if the values are not symmetric, ValueError for axes that there are not. Book 0.12
    charges the comparison with every swap of neighbours.
    """
    plain = np.asarray(bare(data))
    if not isinstance(symmetry, SymmetryGroup):
        several = isinstance(symmetry[0], (tuple, list))
        symmetry = SymmetryGroup.young(symmetry if several else [symmetry])
    if not {*symmetry.axes} <= {*range(plain.ndim)}:
        raise ValueError(f"symmetry axes {symmetry.axes} are out of range for ndim={plain.ndim}")
    swaps = [pair for block in symmetry.blocks for pair in pairwise(block)]
    dtype = inexact(plain.dtype)
    pay("as_symmetric", at_least_1(len(swaps) * (7 * plain.size - 1)), dtype, plain.shape)
    for a, b in swaps:
        if plain.shape[a] != plain.shape[b] or not np.allclose(
            plain, plain.swapaxes(a, b), atol=1e-6, rtol=1e-5
        ):
            raise SymmetryError(f"axes {a} and {b} cannot change places: the data are not symmetric in them")
    return tagged(plain.view(FlopscopeArray), symmetry.blocks)


_SETTINGS = {
    "symmetry_warnings": True,
    "check_nan_inf": False,
    "callback_warnings": True,
    "partition_budget": 100_000,
    "dimino_budget": 50_000,
    "einsum_path_cache_size": 4096,
}


def configure(**settings) -> None:
    """Change settings: `symmetry_warnings=False` silences SymmetryLossWarning. Prices stay the same."""
    if unknown := set(settings) - set(_SETTINGS):
        raise ValueError(f"unknown settings {', '.join(sorted(unknown))}: there are {', '.join(_SETTINGS)}")
    _SETTINGS.update(settings)


# ---- functions --------------------------------------------------------------------------------------------

_QUERIES = """ndim shape size result_type can_cast common_type min_scalar_type promote_types shares_memory
    may_share_memory issubdtype isdtype isscalar isfortran iterable typename mintypecode"""
_PASSED_THROUGH = {*_QUERIES.split(), *"array_equal array_repr array_str array2string save savez".split()}
_FOLDS = dict(
    pair.split("=")
    for pair in """add.reduce=sum multiply.reduce=prod maximum.reduce=max
    minimum.reduce=min logical_and.reduce=all logical_or.reduce=any add.accumulate=cumsum
    multiply.accumulate=cumprod""".split()
)  # along the first axis, unless told otherwise

FUNCTIONS: dict[str, Callable] = {
    name: counted(operation) for name, operation in OPERATIONS.items() if not name.startswith("random.")
}


class LeftOut:
    """Stands for what has no price: refuses to be called, or to give what it is a namespace of."""

    def __init__(self, name, why):
        self._said = f"{name} has no price here ({why}): the README lists what was left out"

    def __call__(self, *_, **__):
        raise UnsupportedFunctionError(self._said)

    def __getattr__(self, name):
        raise UnsupportedFunctionError(self._said)


def found_late(prefix):
    """The `__getattr__` of a counted namespace: what a user has priced since, or what is refused by name."""

    def find(name):
        full = prefix + name
        if full in OPERATIONS and prefix != "random.":
            return counted(OPERATIONS[full])
        for why, names in LEFT_OUT.items():
            if full in names.split():
                return LeftOut(f"fnp.{full}", why)
        raise AttributeError(f"fnp has no {full!r}")

    return find


def three_way_or_nonzero(condition, *choices, three_way=FUNCTIONS["where"], **named):
    """where; of a condition alone, book 0.12 makes nonzero."""
    choices += (*named.values(),)
    alone = not choices and active_budget().book.immutable
    return FUNCTIONS["nonzero"](condition) if alone else three_way(condition, *choices)


def one_by_one(function):
    """Book 0.12 logs each of several arrays."""
    return lambda *arrays: (
        tuple(map(function, arrays))
        if len(arrays) > 1 and active_budget().book.immutable
        else function(*arrays)
    )


def einsum_by_book(text, *operands, optimize=None, product=FUNCTIONS["einsum"], **kwargs):
    """einsum, computed as the book's package does, whatever `optimize` asks."""
    return product(text, *operands, optimize=active_budget().book.immutable, **kwargs)


def fold_of(name, function):
    """reduce or accumulate of a ufunc, along the first axis unless told otherwise."""

    def folded(x, axis=0, **kwargs):
        if "dtype" in kwargs and not name.startswith(("add", "multiply")):
            raise UnsupportedFunctionError(f"np.{name} with dtype= has no price here: cast the operand")
        return function(x, axis=axis, **kwargs)

    return folded


FUNCTIONS |= {"where": three_way_or_nonzero, "einsum": einsum_by_book}
FUNCTIONS |= {f"linalg.{name}": FUNCTIONS[name] for name in ("matmul", "outer", "tensordot", "vecdot")}
FUNCTIONS |= {name: one_by_one(FUNCTIONS[name]) for name in ("atleast_1d", "atleast_2d", "atleast_3d")}
FUNCTIONS |= {name: fold_of(name, FUNCTIONS[same]) for name, same in _FOLDS.items()}


# ---- operators and methods --------------------------------------------------------------------------------

_OPERATORS = dict(
    pair.split("=")
    for pair in """add=add sub=subtract mul=multiply truediv=true_divide
    floordiv=floor_divide mod=mod pow=power matmul=matmul and=bitwise_and or=bitwise_or xor=bitwise_xor
    lshift=left_shift rshift=right_shift lt=less le=less_equal gt=greater ge=greater_equal eq=equal
    ne=not_equal neg=negative pos=positive abs=abs invert=invert""".split()
)
_WRITING = ["sort", "partition", "fill", "put", "resize", "setfield"]


def define_operator(short, name):
    """Give counted arrays an operator, its reflection and its in-place form."""
    function = FUNCTIONS[name]

    def in_place(self, other):
        if active_budget().book.immutable:
            raise TypeError(f"book 0.12 has no in-place operators: write x = fnp.{name}(x, y)")
        result = function(self, other)
        if symmetry_of(self) and symmetry_of(result) != self._blocks:
            raise ValueError(f"{name} in place would break a symmetry: write x = fnp.{name}(x, y)")
        np.copyto(self.view(np.ndarray), bare(result), casting="same_kind")
        return self

    setattr(FlopscopeArray, f"__{short}__", function)
    setattr(FlopscopeArray, f"__r{short}__", lambda self, other: function(other, self))
    setattr(FlopscopeArray, f"__i{short}__", in_place)


def native_method(name):
    """A method that one book counts. In the other, NumPy does it for free, or 0.12 refuses what writes."""
    native, known = getattr(np.ndarray, name), dict()
    operation = OPERATIONS.get("copy" if name == "flatten" else name)

    def method(self, *args, **kwargs):
        immutable = active_budget().book.immutable
        if immutable and name in _WRITING:
            raise ValueError(f"book 0.12 has no in-place {name}: arrays are immutable there")
        if name in ("sort", "partition") and symmetry_of(self):
            raise ValueError(f"{name} in place would break a symmetry: use fnp.{name}")
        if immutable or name in ("sort", "partition"):
            return perform(operation, native, known, (self, *args), kwargs)
        result = native(self.view(np.ndarray), *args, **kwargs)
        observer = active_budget().observer
        if observer is not None:
            observer(name, (self, *args), kwargs, result, 0)
        if name == "nonzero" or not isinstance(result, np.ndarray):
            return result
        return with_symmetry(Call(operation, True, (self, *args), kwargs, result), dress(result))

    return method


def view_method(name):
    """A method that gives a free view, with what it leaves of the symmetry."""
    native = getattr(np.ndarray, name)
    return lambda self, *args: view_of(self, name, native, *args)


for _short, _name in _OPERATORS.items():  # Python never asks for the forms that an operator has not
    define_operator(_short, _name)
for _name in """sum prod mean std var min max argmin argmax all any cumsum cumprod argsort argpartition
        searchsorted take repeat clip round trace dot conjugate""".split():
    setattr(FlopscopeArray, _name, FUNCTIONS[_name])
for _name in [*_WRITING, "copy", "ravel", "reshape", "nonzero", "astype", "flatten", "choose"]:
    setattr(FlopscopeArray, _name, native_method(_name))
for _name in ("transpose", "swapaxes"):
    setattr(SymmetricTensor, _name, view_method(_name))
for _name in ("squeeze", "ravel"):
    setattr(SymmetricTensor, _name, FUNCTIONS[_name])


# ---- random -----------------------------------------------------------------------------------------------


def sampler(operation):
    """A counted method of a Generator."""
    draw = operation.function

    @wraps(draw)
    def sample(self, *args, **kwargs):
        if not isinstance(self, _CountedGenerator):  # NumPy would take its memory for a generator's
            raise TypeError(
                f"{draw.__name__} is a method of a Generator: fnp.random.default_rng().{draw.__name__}"
            )
        if _thread.drawing:  # what NumPy's samplers call inside is free
            return draw(self, *args, **kwargs)
        _thread.drawing = True
        try:
            return perform(operation, partial(draw, self), {}, args, kwargs)
        finally:
            _thread.drawing = False

    return sample


class _CountedGenerator(np.random.Generator):
    """A numpy.random.Generator whose draws are counted; made by `fnp.random.default_rng`."""

    def __reduce__(self):
        return _CountedGenerator, (self.bit_generator,)


for _name in dir(np.random.Generator):
    if f"random.{_name}" in OPERATIONS:
        setattr(_CountedGenerator, _name, sampler(OPERATIONS[f"random.{_name}"]))
_CountedGenerator.multivariate_hypergeometric = LeftOut(  # type: ignore[method-assign]
    "multivariate_hypergeometric", "a formula of its own"
)


def default_rng(seed=None) -> np.random.Generator:
    """A counted numpy.random.Generator: the same stream as NumPy's for the same seed."""
    if isinstance(seed, _CountedGenerator):
        raise UnsupportedFunctionError("default_rng takes a seed or a bit generator, not a counted Generator")
    return _CountedGenerator(np.random.default_rng(seed).bit_generator)


# ---- weights in a file ------------------------------------------------------------------------------------


def load(file):
    """The array in an .npy file, or a dict of those in an .npz file; its `__meta__` as Python's own data."""
    loaded = np.load(file)
    if isinstance(loaded, np.ndarray):
        return dress(loaded)
    arrays = {name: dress(loaded[name]) for name in loaded}
    if "__meta__" in arrays:
        arrays["__meta__"] = json.loads(arrays["__meta__"].tobytes())
    return arrays


def items_of(value):
    """(key, item) of what a Module keeps of a container; nothing of anything else."""
    if isinstance(value, Module):
        return [(name, item) for name, item in vars(value).items() if not name.startswith("_")]
    if isinstance(value, (list, tuple)):
        return list(enumerate(value))
    return list(value.items()) if isinstance(value, dict) else []


def arrays_inside(value, prefix):
    """(dotted name, array) of every counted array in a container."""
    for key, item in items_of(value):
        if isinstance(item, FlopscopeArray):
            yield f"{prefix}{key}", item
        yield from arrays_inside(item, f"{prefix}{key}.")


def with_arrays(value, prefix, arrays):
    """The container with its counted arrays replaced by those of these dotted names; Modules stay themselves."""
    items = {}
    for key, item in items_of(value):
        name = f"{prefix}{key}"
        known = isinstance(item, FlopscopeArray)
        items[key] = arrays.get(name, item) if known else with_arrays(item, f"{name}.", arrays)
    if isinstance(value, Module):
        vars(value).update(items)
        return value
    for kind in (list, tuple):
        if isinstance(value, kind):
            return kind(items.values())
    return items if isinstance(value, dict) else value


class Module:
    """Counted arrays as attributes, also in lists, dictionaries and other Modules, kept in an .npz without pickles.

    Attributes whose names begin with _ are not kept, nor is anything but counted arrays.
    """

    def config(self) -> dict:
        """Keyword arguments for the constructor, kept beside the arrays for `from_file`."""
        return {}

    def state_dict(self, prefix: str = "") -> dict:
        """{dotted name: array} of all that is kept."""
        return dict(arrays_inside(self, prefix))

    def load_state_dict(self, sd: dict, *, strict: bool = True) -> None:
        """Put arrays where `state_dict` found theirs. With `strict`, ValueError unless the names are the same."""
        known, given = {*self.state_dict()}, {*sd} - {"__meta__"}
        if strict and known != given:
            missing, unexpected = sorted(known - given), sorted(given - known)
            raise ValueError(f"state_dict mismatch. {missing=} {unexpected=}")
        with_arrays(self, "", sd)

    def save(self, path: Any, *, meta: dict | None = None) -> None:
        """Write all arrays and the configuration into an .npz file; book 0.12 charges 4 FLOPs a number written."""
        arrays, text = self.state_dict(), json.dumps({**self.config(), **(meta or {})}).encode()
        names = "".join([*arrays, "__meta__"]).encode()
        units = sum(a.size + 8 * a.ndim for a in arrays.values()) + len(names) + len(text) + 16
        dtype = np.result_type(np.uint8, *[a.dtype for a in arrays.values()])
        pay("savez", 4 * units, dtype, *(a.shape for a in arrays.values()))
        np.savez(path, **bare(arrays), __meta__=np.frombuffer(text, np.uint8))

    def load(self, path: Any) -> Module:
        """Read what `save` has written."""
        self.load_state_dict(load(path))
        return self

    @classmethod
    def from_file(cls, path: Any, **overrides: Any) -> Module:
        """A new one, constructed as the file says (or `overrides`), with the file's arrays."""
        arrays = load(path)
        made = cls(**{**arrays.pop("__meta__", {}), **overrides})
        made.load_state_dict(arrays)
        return made


# ---- modules ----------------------------------------------------------------------------------------------

_AS_IN_NUMPY = """bool_ int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 complex64
    complex128 floating integer number dtype broadcast errstate finfo iinfo ndenumerate ndindex nditer e inf
    nan pi newaxis printoptions get_printoptions set_printoptions geterr seterr"""


def uncounted(function):
    """A function of NumPy's that is free, and sees plain arrays."""
    return wraps(function)(lambda *args, **kwargs: function(*bare(args), **bare(kwargs)))


def module(name, *members, **others):
    """A module of these members."""
    made = types.ModuleType(name)
    vars(made).update({member.__name__: member for member in members}, **others)
    return made


def members(owner, names, change=lambda member: member):
    """{name: member} of an owner, each changed."""
    return {name: change(getattr(owner, name)) for name in names.split()}


def counted_functions(prefix):
    """Those of a namespace, by their short names; others are found late."""
    return {
        name.removeprefix(prefix): function
        for name, function in FUNCTIONS.items()
        if name.startswith(prefix) and "." not in name.removeprefix(prefix)
    } | {"__getattr__": found_late(prefix)}


fnp = module(
    "flopscope.numpy",
    load,
    ndarray=FlopscopeArray,
    **members(np, _AS_IN_NUMPY),
    **members(np, _QUERIES, uncounted),
    **counted_functions(""),
    linalg=module("flopscope.numpy.linalg", **counted_functions("linalg.")),
    random=module(
        "flopscope.numpy.random",
        default_rng,
        Generator=_CountedGenerator,
        __getattr__=found_late("random."),
        **members(np.random, "SeedSequence PCG64 Philox MT19937 SFC64 BitGenerator seed"),
    ),
)
stats = module(
    "flopscope.stats",
    norm=types.SimpleNamespace(**{name: FUNCTIONS[f"stats.norm.{name}"] for name in NORMAL}),
)
_errors = [
    FlopscopeError,
    FlopscopeWarning,
    BudgetExhaustedError,
    TimeExhaustedError,
    SymmetryError,
    UnsupportedFunctionError,
    UnsupportedDtypeError,
    SymmetryLossWarning,
]
flops = module(
    "flopscope",
    *_errors,
    BudgetContext,
    OpRecord,
    FlopscopeArray,
    SymmetricTensor,
    SymmetryGroup,
    Module,
    namespace,
    budget_summary,
    budget_summary_dict,
    budget_reset,
    use_prices,
    as_symmetric,
    configure,
    budget=budget,
    current_budget=active_budget,
    numpy=fnp,
    stats=stats,
    errors=module("flopscope.errors", *_errors),
    __version__="0.12.4",
)


def not_here(name):
    """What asking flops for a name that it lacks raises."""
    raise AttributeError(
        f"flopscope.{name} is not in this kit: `whest price EXPRESSION` tells what something costs, and why"
    )


flops.__getattr__ = not_here


def install():
    """Make `import flopscope`, `import flopscope.numpy as fnp` and their submodules reach this counter."""
    if sys.modules.get("flopscope", flops) is not flops:
        raise ImportError(
            "flopscope is already imported: import whestbench first, or type "
            "python whestbench.py loop estimator.py"
        )
    flops.__path__ = fnp.__path__ = []
    for each in (flops, flops.stats, flops.errors, fnp, fnp.linalg, fnp.random):
        sys.modules[each.__name__] = each
    sys.modules["flopscope.numpy.typing"] = np.typing


# ======================================================================================
# Contract
#
# What a participant's file meets: the network, the estimator's base class, the set-up context, and the loader.
# The module names of the real packages lead here, so the same file runs on the real grader unmodified.
# Way in: `load_estimator`; way out: an estimator, and the networks that it is asked about.
# ======================================================================================


class WhestError(Exception):
    """What ends a command before anything is scored: one sentence for stderr, a stage and a code for JSON."""

    exit_status = 1

    def __init__(self, message: str, code: str = "SCORING_VALIDATION_ERROR", stage: str = "run"):
        super().__init__(message)
        self.stage, self.code = stage, code


class Misuse(WhestError):
    """A WhestError about the command line itself."""

    exit_status = 2

    def __init__(self, message):
        super().__init__(message, "USAGE_ERROR")


@dataclass(frozen=True)
class MLP:
    """A stack of `depth` weight matrices `(width, width)`, float32, without biases: `y = relu(x @ W)`."""

    width: int
    depth: int
    weights: list
    seed: int = 0
    name: str = ""

    def copy(self) -> MLP:
        """The same network with weights of its own: what an estimator may scribble on."""
        return replace(self, weights=[fnp.asarray(np.array(w)) for w in self.weights])


@dataclass(frozen=True)
class SetupContext:
    """What `setup` is told: the shape and budget (FLOPs) to come, and where the submission lives."""

    width: int
    depth: int
    flop_budget: int
    api_version: str
    scratch_dir: str | None = None
    submission_dir: str | None = None
    seed: int = 0


class BaseEstimator(abc.ABC):
    """Subclass this as `Estimator` and write `predict`; `setup` and `teardown` are optional, never billed."""

    @abc.abstractmethod
    def predict(self, mlp: MLP, budget: int) -> np.ndarray:
        """Return the predicted mean activations, `(depth, width)`, spending at most `budget` FLOPs."""

    def setup(self, context: SetupContext) -> None:
        """Called once, before the first network; has `setup_timeout` seconds."""

    def teardown(self) -> None:
        """Called once, after the last network."""


def sample_mlp(width: int, depth: int, rng: Any = None, *, seed: int = 0) -> MLP:
    """Draw a He-initialised network: entries `N(0, 2 / width)`, drawn in float64 and cast to float32.

    `rng` is a NumPy or counted Generator (fresh if None); `seed` is only attached to the result. Raises
    ValueError unless both sizes are positive.
    """
    if min(width, depth) <= 0:
        raise ValueError(f"width and depth must be positive, not {width} and {depth}.")
    rng, scale = rng or np.random.default_rng(), math.sqrt(2.0 / width)
    weights = [np.asarray(rng.standard_normal((width, width))) * scale for _ in range(depth)]
    return MLP(width, depth, [fnp.asarray(w.astype(np.float32)) for w in weights], seed)


def sample_suite(n_mlps: int, width: int, depth: int, seed: int) -> Iterator[MLP]:
    """The networks of a run, bit for bit those of whestbench 0.16.

    Of the `3 * n_mlps` streams spawned from `seed`, `3i` draws the weights of network i, `3i + 1` drew
    the real package's samples and is left alone, `3i + 2` gives `mlp.seed`.
    """
    streams = np.random.SeedSequence(seed).spawn(3 * n_mlps)
    for i in range(n_mlps):
        mlp_seed = int(streams[3 * i + 2].generate_state(1)[0])
        mlp = sample_mlp(width, depth, np.random.default_rng(streams[3 * i]), seed=mlp_seed)
        yield replace(mlp, name=f"mlp-{i}")


def build_mlp(width: int = 256, depth: int = 8, seed: int = 0) -> MLP:
    """The first network of the suite of `seed`."""
    return next(sample_suite(1, width, depth, seed))


def relu(x: np.ndarray) -> np.ndarray:
    """`max(x, 0)`, counted; keeps the dtype of floating-point input."""
    return fnp.maximum(x, np.float32(0))


def relu_moments(mean, variance, sigma, density, below):
    """(mean, variance) of relu(z) for z ~ N(mean, sigma^2), with density = phi(mean / sigma), below = Phi(...).

    E relu(z) = m Phi + s phi, E relu(z)^2 = (m^2 + s^2) Phi + m s phi. Rounding may leave a variance below 0.
    """
    first = mean * below + sigma * density
    return first, (mean * mean + variance) * below + mean * sigma * density - first * first


def run_mlp_all_layers(mlp: MLP, inputs: np.ndarray) -> list[np.ndarray]:
    """The activations of every layer, `depth` arrays `(n, width)`, for inputs `(n, width)`; counted."""
    layers = [inputs]
    for weight in mlp.weights:
        layers.append(relu(fnp.matmul(layers[-1], weight)))
    return layers[1:]


def run_mlp(mlp: MLP, inputs: np.ndarray) -> np.ndarray:
    """The last layer's activations `(n, width)`; counted."""
    return run_mlp_all_layers(mlp, inputs)[-1]


def monte_carlo_layer_means(mlp: MLP, n_samples: int, seed: int | None = None) -> np.ndarray:
    """Plain sampling means of every layer, `(depth, width)` float32; counted.

    Draws what the real package draws, in chunks of as many rows, so that a seed gives its numbers.
    """
    rng, sums = fnp.random.default_rng(seed), np.zeros((mlp.depth, mlp.width))
    chunk = max(1024, min(16384, 2**20 // mlp.width))
    for start in range(0, n_samples, chunk):
        inputs = rng.standard_normal((min(chunk, n_samples - start), mlp.width), dtype=np.float32)
        layers = run_mlp_all_layers(mlp, inputs)
        sums += [np.asarray(fnp.sum(x, axis=0, dtype=np.float64)) for x in layers]
    return fnp.asarray((sums / n_samples).astype(np.float32))


SUBMISSION = "_whestbench_submission_"  # how the module names of loaded files begin


def load_estimator(path: str | os.PathLike, class_name: str | None = None) -> BaseEstimator:
    """Import an estimator file by its path and instantiate its estimator class.

    Without `class_name`: the `BaseEstimator` subclass named `Estimator`, else the only one defined there.
    The file's folder goes first on `sys.path`, so it may import its siblings. Raises WhestError.
    """
    path = Path(path).expanduser().resolve()
    if not path.is_file():
        raise WhestError(
            f"Estimator file not found: {path}. Check the path, or run from its folder.",
            "SCORING_RUNTIME_ERROR",
        )
    sys.path.insert(0, str(path.parent))
    name = f"{SUBMISSION}{path}"
    module = sys.modules[name] = types.ModuleType(name)
    module.__file__ = str(path)
    try:
        importlib.machinery.SourceFileLoader(name, str(path)).exec_module(module)
        return find_estimator_class(module, path.name, class_name)()
    except (WhestError, TimeExhaustedError):
        raise
    except Exception as exc:
        missing = isinstance(exc, ModuleNotFoundError)
        raise WhestError(
            f"{participant_line(exc, path)}, while it was loaded: {type(exc).__name__}: {exc}; "
            + ("install it, or drop the import." if missing else "--debug shows the traceback."),
            "ESTIMATOR_MISSING_MODULE" if missing else "SCORING_RUNTIME_ERROR",
        ) from exc


def find_estimator_class(module, file, class_name):
    """Apply the loader's rules to a file's module; a WhestError names the classes that there are."""
    known = {
        name: c
        for name, c in vars(module).items()
        if inspect.isclass(c) and issubclass(c, BaseEstimator) and c is not BaseEstimator
    }
    own = [*{c: name for name, c in known.items() if c.__module__ == module.__name__}.values()]  # once each
    name = class_name or (own[0] if len(own) == 1 else "Estimator")
    if name in known:
        return known[name]
    raise WhestError(
        f"{file} has no estimator class named {name}: "
        + (
            f"choose one of {', '.join(own)} with --class."
            if own
            else "write `class Estimator(BaseEstimator)` with a predict(self, mlp, budget) method."
        )
    )


OURS = __file__, os.path.dirname(os.__file__) + os.sep  # and Python's, which may lie in the same folder


def is_participants(file, home):
    """Whether a file below the participant's folder is neither installed nor ours."""
    return file.startswith(home) and "site-packages" not in file and not file.startswith(OURS)


def participant_line(exc, path):
    """`file.py, line 12` of the innermost frame of the participant's own folder in a traceback."""
    home = str(Path(path).parent) + os.sep
    for frame in reversed(traceback.extract_tb(exc.__traceback__, limit=-100)):
        if is_participants(frame.filename, home):
            return f"{Path(frame.filename).name}, line {frame.lineno}"
    return Path(path).name


# ======================================================================================
# Engine
#
# A block of samples is a pure function of (network, key, index): any thread, process or machine may compute it,
# in any order. After a ReLU half of the activations are zero; the kernels skip most of them, exactly, and so pass
# the rate at which a dense matrix product would run at best. Way in: `simulate_block`; way out: BlockSums.
# ======================================================================================

GROUP = 16  # samples in a group: 8 draws of x, then their mirror images -x
COLUMNS = 64  # activations lie as [slab of 64 columns][sample][column]: zeros are a 64-bit mask; weights as
# [slab of 64 outputs][input][output]: the 64 inputs of a slab fill half an L1 cache
TILE = 1  # rows that share a mask: as few as hide the latency of an FMA; load_kernels sets it
_LOAD = threading.Lock()
_n_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def limit_threads(n_threads: int | None) -> None:
    """Use at most so many threads for sampling and in NumPy's own OpenBLAS; None leaves both alone."""
    global _n_threads
    if n_threads:
        import ctypes

        _n_threads = n_threads
        for library in Path(np.__file__).parents[1].glob("numpy*/**/*openblas*64*"):
            with suppress(AttributeError):
                ctypes.CDLL(str(library)).scipy_openblas_set_num_threads64_(n_threads)


class PackedNetwork(NamedTuple):
    """The weights of a network as the kernels want them; made by `pack_weights`."""

    weights: np.ndarray  # float32 (depth, slabs, padded width, COLUMNS)
    width: int


class BlockSums(NamedTuple):
    """What is kept of a block. Row i of a group sum covers samples 16 i to 16 i + 15: 8 antithetic pairs."""

    n_samples: int
    final: np.ndarray  # float32 (n_groups, width): group sums of the last layer's activations
    abs_z1: np.ndarray  # float32 (n_groups, width): of |z1|, z1 the first layer's pre-activations
    square_z2: np.ndarray  # float32 (n_groups, width): of z2**2, the second layer's (zero at depth 1)
    layer_sums: np.ndarray  # float64 (depth, width): sums of the activations
    layer_squares: np.ndarray  # float64 (depth, width): sums of their squared group sums
    final_squares: np.ndarray  # float64 (width,): sum of the last layer's squared activations


def pack_weights(weights: np.ndarray | Sequence) -> PackedNetwork:
    """Lay out matrices (depth, width, width) for the kernels. ValueError unless square and finite."""
    weights = np.asarray(weights, np.float32)
    if weights.ndim != 3 or weights.shape[1] != weights.shape[2] or weights.size == 0:
        raise ValueError(f"weights must have shape (depth, width, width), not {weights.shape}")
    if not np.isfinite(weights).all():
        raise ValueError("weights contain inf or NaN")
    depth, width, _ = weights.shape
    padded = _padded(width)
    packed = _aligned((depth, padded // COLUMNS, padded, COLUMNS))
    square = np.pad(weights, ((0, 0), *[(0, padded - width)] * 2))
    packed[:] = square.reshape(depth, padded, -1, COLUMNS).swapaxes(1, 2)
    return PackedNetwork(packed, width)


def samples_per_block(width: int) -> int:
    """The number of samples in a block of a network of this width, a power of two from 512 to 4096."""
    return min(4096, max(1 << (2**18 // _padded(width)).bit_length() - 1, 512))


def simulate_block(network: PackedNetwork, key: int, index: int, n_samples: int | None = None) -> BlockSums:
    """The sums over block `index` of the stream `key` (integers below 2**64), or over its first `n_samples`.

    The same bits whenever and wherever it is computed. Releases the GIL. ValueError if a block has fewer.
    """
    load_kernels()
    weights, width = network
    full = samples_per_block(width)
    n_samples = full if n_samples is None else n_samples
    if not 0 < n_samples <= full:
        raise ValueError(f"a block holds 1 to {full} samples, not {n_samples}")
    x, y = _aligned((2, weights.shape[1], -(-n_samples // GROUP) * GROUP, COLUMNS))
    groups, sums = network_sums(weights, np.uint64(key), np.uint64(index), n_samples, x, y)
    first, last, square_z2, squares = groups[..., :width]
    layer_sums, layer_squares = sums[..., :width]
    # |z| sums to twice relu(z), as every z comes with -z
    return BlockSums(
        n_samples,
        last if len(weights) > 1 else first,
        2 * first,
        square_z2,
        layer_sums,
        layer_squares,
        squares.sum(0, dtype=np.float64),
    )


def _padded(width):
    return -(-width // COLUMNS) * COLUMNS


def _aligned(shape):
    """An empty float32 array that starts on a cache line: a load across two lines costs double."""
    size = prod(shape)
    raw = np.empty(size + 16, np.float32)
    start = -raw.ctypes.data % 64 // 4
    return raw[start : start + size].reshape(shape)


# Kernels are plain functions until they are compiled on first use: importing this module imports no numba.
# They find each other as globals; in a closure numba would take them for new ones, and miss its disk cache.


def load_kernels():
    """Compile the kernels, or take them from numba's cache on disk. Only the first call costs anything."""
    with _LOAD:
        if not hasattr(network_sums, "py_func"):
            import numba
            from numba.extending import intrinsic

            if numba.config.DISABLE_JIT:
                raise WhestError("The truth's kernels need numba's compiler: unset NUMBA_DISABLE_JIT.")
            names = globals()
            names["TILE"] = vector_type()[2]
            names |= {f.__name__: intrinsic(f) for f in (multiply_tile, relu_group)}
            names |= {
                f.__name__: compiled(f, numba.njit, nogil=True, error_model="numpy", fastmath={"contract"})
                for f in (box_muller, draw_normals, add_squares, finish_slab, network_sums, add_product)
            }


def network_sums(weights, key, index, n_samples, x, y):
    """Draw a block and take it through all layers; x and y have room for a layer's activations.

    Returns the group sums of the first layer, of the last if there are more, of z2**2, and of the last's
    squares; and every layer's sums of activations and of their squared group sums.
    """
    depth, n_slabs, width, _ = weights.shape
    n_rows = x.shape[1]
    groups, sums = np.zeros((4, n_rows // GROUP, width), np.float32), np.zeros((2, depth, width))
    masks, y_masks = np.full((2, n_slabs, n_rows // TILE), ~np.uint64(0))
    draw_normals(x, key, index)
    for layer in range(depth):
        rows = GROUP if layer else GROUP // 2  # -x @ w is known from x @ w
        for slab in range(n_slabs):
            for k in range(n_slabs):
                w = weights[layer, slab, k * COLUMNS :].ctypes.data
                x_k, y_slab = x[k].ctypes.data, y[slab].ctypes.data
                for group in range(0, n_rows, GROUP):
                    for row in range(group, group + rows, TILE):
                        at = row * COLUMNS * 4
                        multiply_tile(x_k + at, masks[k, row // TILE], w, y_slab + at, k > 0)
            finish_slab(y[slab], y_masks[slab], n_samples, layer, depth, slab * COLUMNS, groups, sums)
        x, y, masks, y_masks = y, x, y_masks, masks
    return groups, sums


def finish_slab(y, masks, n_samples, layer, depth, column, groups, sums):
    """Turn 64 columns of pre-activations into activations, masks and sums."""
    for group in range(len(y) // GROUP):
        z = y[group * GROUP : (group + 1) * GROUP]
        total = groups[min(layer, 1), group, column : column + COLUMNS]
        if layer == 0:
            for pair in range(GROUP // 2):
                left = n_samples - group * GROUP - 2 * pair  # without biases, zeros add nothing to any sum
                for c in range(COLUMNS):
                    z[pair + GROUP // 2, c] = -z[pair, c] if left > 1 else np.float32(0)
                    z[pair, c] = z[pair, c] if left > 0 else np.float32(0)
        if layer == 1:
            add_squares(z, groups[2, group, column:])
        relu_group(z.ctypes.data, masks[group * GROUP // TILE :].ctypes.data, total.ctypes.data)
        if layer == depth - 1:
            add_squares(z, groups[3, group, column:])
        for c in range(COLUMNS):
            t = np.float64(total[c])
            sums[0, layer, column + c] += t
            sums[1, layer, column + c] += t * t


def add_squares(rows, total):
    """Add the squares of a group's 16 rows to `total`, 64 columns."""
    for r in range(GROUP):
        for c in range(COLUMNS):
            total[c] += rows[r, c] * rows[r, c]


def draw_normals(x, key, index):
    """Fill the draws among the rows of x: Philox-4x32-7 (Salmon et al., SC 2011), then Box and Muller."""
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    for slab in range(len(x)):
        for row in range(x.shape[1]):
            if row % GROUP >= GROUP // 2:
                continue
            for i in range(16):
                a, b = np.uint64(row * 16 + i) & low, np.uint64(slab)
                c, d = index & low, index >> shift
                k, l = key & low, key >> shift
                for _ in range(7):
                    p, q = a * np.uint64(0xD2511F53), c * np.uint64(0xCD9E8D57)
                    a, b, c, d = (q >> shift) ^ b ^ k, q & low, (p >> shift) ^ d ^ l, p & low
                    k, l = (k + np.uint64(0x9E3779B9)) & low, (l + np.uint64(0xBB67AE85)) & low
                x[slab, row, i], x[slab, row, i + 16] = box_muller(np.int32(a), np.int32(b))
                x[slab, row, i + 32], x[slab, row, i + 48] = box_muller(np.int32(c), np.int32(d))


def box_muller(a, b):
    """Two independent normals from two random int32; none is beyond 6.66."""
    f, sqrt_half = np.float32, np.int32(0x3F3504F3)  # the latter as bits
    u = (f((a >> np.int32(1)) & np.int32(0x7FFFFFFF)) + f(0.5)) * f(2.0**-31)  # in (0, 1]
    bits = np.int32(np.float32(u).view(np.int32) - sqrt_half)  # u = 2**exponent (1 + m)
    m = np.int32((bits & np.int32(0x7FFFFF)) + sqrt_half).view(np.float32) - f(1)
    exponent = f(bits >> np.int32(23))
    p = f(7.0376836292e-2) * m - f(1.1514610310e-1)  # log(1 + m), as Cephes does
    p = ((p * m + f(1.1676998740e-1)) * m - f(1.2420140846e-1)) * m + f(1.4249322787e-1)
    p = ((p * m - f(1.6668057665e-1)) * m + f(2.0000714765e-1)) * m - f(2.4999993993e-1)
    p = (p * m + f(3.3333331174e-1)) * m - f(0.5)
    radius = np.sqrt(f(-2) * (p * m * m + m + exponent * f(0.6931471805599453)))
    t = f(b) * f(2.0**-32)  # half the angle, over pi
    s = t * t  # minimax to 5e-8
    sine = (((f(0.0775603876) * s - f(0.598242104)) * s + f(2.55006981)) * s - f(5.167709827)) * s
    sine = (sine + f(3.141592741)) * t
    cosine = (((f(0.21969679) * s - f(1.33188021)) * s + f(4.058412075)) * s - f(4.934792995)) * s + f(1)
    return radius * (cosine * cosine - sine * sine), radius * f(2) * sine * cosine


# In vector IR, because the compiler's own vectors reach half the chip's rate. All arrays go by address.


def vector_type():
    """The host's float32 vector, its lanes, and the rows in a tile: as few as hide the latency of an FMA."""
    from llvmlite import binding, ir

    features = binding.get_host_cpu_features()
    lanes, rows = (16, 2) if features.get("avx512f") else (8, 1) if features.get("avx2") else (4, 1)
    return ir.VectorType(ir.FloatType(), lanes), lanes, rows


def _pointer(b, base, index, kind):
    """The address `base` + 4 `index`, of a `kind`."""
    return b.inttoptr(b.add(base, b.mul(base.type(4), index)), kind.as_pointer())


def multiply_tile(typingctx, x, mask, w, y, resume):
    """y (+)= x @ w for the rows of a tile, over a slab of 64 inputs and 64 outputs.

    Bit k of the mask tells whether any of the rows has a nonzero k-th input; the others are not visited.
    The sums live in registers: LLVM promotes `alloca`s whose address goes nowhere.
    """
    from llvmlite import ir
    from numba.core import cgutils, types

    vector, lanes, rows = vector_type()
    tile, columns = range(0, rows * COLUMNS, COLUMNS), range(0, COLUMNS, lanes)

    def codegen(context, b, signature, args):
        x, mask, w, y, resume = args
        i64, zero, to_all = x.type, ir.Constant(vector, None), ir.VectorType(ir.IntType(32), lanes)(None)
        fma = cgutils.get_or_insert_function(
            b.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fmuladd.v{lanes}f32"
        )
        out = {(r, v): _pointer(b, y, i64(r + v), vector) for r in tile for v in columns}
        sums = {at: cgutils.alloca_once_value(b, zero) for at in out}
        with b.if_then(resume):
            for at, here in out.items():
                b.store(b.load(here, align=4), sums[at])
        left = cgutils.alloca_once_value(b, mask)
        test, step, done = map(b.append_basic_block, ("test", "step", "done"))
        b.branch(test)
        b.position_at_end(test)
        bits = b.load(left)
        b.cbranch(b.icmp_unsigned("!=", bits, i64(0)), step, done)
        b.position_at_end(step)
        k = b.cttz(bits, ir.IntType(1)(1))  # the lowest bit that is set ...
        b.store(b.and_(bits, b.sub(bits, i64(1))), left)  # ... which is now done
        w_k = b.mul(k, i64(COLUMNS))
        weights = {v: b.load(_pointer(b, w, b.add(w_k, i64(v)), vector), align=4) for v in columns}
        for r in tile:
            value = b.load(_pointer(b, x, b.add(k, i64(r)), vector.element), align=4)
            one = b.insert_element(zero, value, ir.IntType(32)(0))
            broadcast = b.shuffle_vector(one, one, to_all)
            for v in columns:
                b.store(b.call(fma, [broadcast, weights[v], b.load(sums[r, v])]), sums[r, v])
        b.branch(test)
        b.position_at_end(done)
        for at, here in out.items():
            b.store(b.load(sums[at]), here, align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.uint64, types.int64, types.int64, types.boolean), codegen


def relu_group(typingctx, z, masks, total):
    """ReLU of 16 rows of 64 floats in place; each tile's mask of nonzero columns; the sum of the rows."""
    from llvmlite import ir
    from numba.core import cgutils, types

    vector, lanes, rows = vector_type()

    def codegen(context, b, signature, args):
        z, masks, total = args
        i64, zero, columns = z.type, ir.Constant(vector, None), range(0, COLUMNS, lanes)
        sums = [cgutils.alloca_once_value(b, zero) for _ in columns]
        with cgutils.for_range(b, i64(GROUP // rows)) as tile:
            first, mask = b.mul(tile.index, i64(rows * COLUMNS)), i64(0)
            for s, column in zip(sums, columns):
                active = ir.Constant(ir.VectorType(ir.IntType(1), lanes), None)
                for r in range(rows):
                    here = _pointer(b, z, b.add(first, i64(r * COLUMNS + column)), vector)
                    value = b.fadd(b.load(here, align=4), zero)  # or LLVM stores by mask: slow on AMD
                    value = b.select(b.fcmp_ordered("<", value, zero), zero, value)  # a NaN stays
                    b.store(value, here, align=4)
                    b.store(b.fadd(b.load(s), value), s)
                    active = b.or_(active, b.fcmp_unordered("!=", value, zero))
                bits = b.zext(b.bitcast(active, ir.IntType(lanes)), i64)
                mask = b.or_(mask, b.shl(bits, i64(column)))
            b.store(mask, _pointer(b, masks, b.mul(tile.index, i64(2)), i64))
        for s, column in zip(sums, columns):
            b.store(b.load(s), _pointer(b, total, i64(column), vector), align=4)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), codegen


def add_product(a, b, out):
    """out += a @ b: two rows by four inputs at a time, 64 inputs of b kept in cache."""
    for start in range(0, len(b), 64):
        for i in range(0, len(a), 2):
            x, y = out[i], out[i + 1]
            for k in range(start, min(start + 64, len(b)), 4):
                x0, x1, x2, x3 = a[i, k], a[i, k + 1], a[i, k + 2], a[i, k + 3]
                y0, y1, y2, y3 = a[i + 1, k], a[i + 1, k + 1], a[i + 1, k + 2], a[i + 1, k + 3]
                b0, b1, b2, b3 = b[k], b[k + 1], b[k + 2], b[k + 3]
                for j in range(b.shape[1]):
                    x[j] += x0 * b0[j] + x1 * b1[j] + x2 * b2[j] + x3 * b3[j]
                    y[j] += y0 * b0[j] + y1 * b1[j] + y2 * b2[j] + y3 * b3[j]


def matrix_product(a, b):
    """a @ b, to the same bits however many threads BLAS has."""
    load_kernels()
    padded = np.pad(a, ((0, -len(a) % 2), (0, -a.shape[1] % 4)))
    b_padded = np.pad(b, ((0, -len(b) % 4), (0, 16)))  # or all rows start at one place of a memory page
    out = np.zeros((len(padded), b_padded.shape[1]), np.result_type(a, b))
    add_product(padded, b_padded, out)
    return out[: len(a), : b.shape[1]]


# ======================================================================================
# Truth
#
# The mean of every neuron, with an error bar. Samples come as antithetic pairs in groups. The final layer
# also gets control variates: the means of |z1| and z2^2 (pre-activations of layers 1 and 2) are known in
# closed form, and so, from the derivative of mean propagation, is about how far their scatter moves the
# final layer. One number, the scale of that correction, is fitted. Any coefficients leave the truth
# unbiased; poor ones only make it less precise.
# ======================================================================================

POOL = 4  # of the engine's groups are one observation of the final layer
CHUNK = 4096  # samples that enter the moments at once; checkpoints are CHUNK * 2**k
MIN_FOLD_GROUPS = 8  # a fold of fewer groups is no judge of the scale: plain pairs


def times(vector, matrix):
    """vector @ matrix, to the same bits however many threads BLAS has."""
    return np.einsum("i,ij->j", vector, matrix)


def control_variates(weights):
    """What the weights alone say of the features |z1| and z2^2 (depth >= 2).

    Returns (3 * width,), rough final means and then the features' exact ones; and the coefficients
    (2 * width, width) float32, change of the final means per unit of each feature.

    E|z1_j| = |w_j| sqrt(2/pi); E z2_i^2 = (W2' M W2)_ii with M the arc-cosine kernel (Cho and Saul 2009).
    A pair's mean of z2 is |z1| @ W2 / 2, so a group's features give mean and variance of its z2; mean
    propagation (pre-activations as independent Gaussians) takes these to the final means. The coefficients
    are its derivative, by the chain rule from the last layer back.
    """
    first, second = (w.astype(np.float64) for w in weights[:2])
    norms = np.maximum(np.linalg.norm(first, axis=0), 1e-150)
    abs_z1 = norms * math.sqrt(2 / math.pi)
    cosine = np.clip(matrix_product((first / norms).T, first / norms), -1, 1)
    kernel = np.sqrt(1 - cosine**2) + (math.pi - np.arccos(cosine)) * cosine
    kernel *= np.outer(norms, norms) / (2 * math.pi)
    square_z2 = (matrix_product(kernel, second) * second).sum(0)

    mean_z2 = mean = times(abs_z1, second) / 2
    variance = square_z2 - mean**2
    slopes: list[np.ndarray] = []
    for following in [*weights[2:], None]:
        sigma = np.sqrt(np.maximum(variance, 1e-12 * variance.mean() + 1e-36))
        on = np.array([math.erfc(-a / math.sqrt(2)) / 2 for a in mean / sigma])
        density = np.exp(-((mean / sigma) ** 2) / 2) / math.sqrt(2 * math.pi)
        centre, relu_variance = relu_moments(mean, variance, sigma, density, on)
        relu_variance = np.maximum(relu_variance, 0)
        # d(mean of relu) / d(mean, variance of z), then the same of its variance
        slopes.append(
            np.array(
                [on, density / (2 * sigma), 2 * centre * (1 - on), on - centre * density / sigma], np.float32
            )
        )
        if following is not None:
            mean, variance = times(centre, following), times(relu_variance, following * following)

    by_mean, by_variance = np.diag(slopes[-1][0]), np.diag(slopes[-1][1])
    for w, (mm, mv, vm, vv) in zip(weights[:1:-1], slopes[-2::-1]):
        of_mean = matrix_product(w, by_mean)
        # (w * w) @ by_variance with w * w as a product of its margins: as precise, at half the work
        rows, columns = np.einsum("ij,ij->i", w, w), np.einsum("ij,ij->j", w, w)
        of_variance = np.outer(rows, times(columns, by_variance) / max(rows.sum(), 1e-30))
        by_mean = mm[:, None] * of_mean + vm[:, None] * of_variance
        by_variance = mv[:, None] * of_mean + vv[:, None] * of_variance
    by_abs_z1 = matrix_product(weights[1], by_mean / 2 - mean_z2[:, None].astype(np.float32) * by_variance)
    coefficients = np.nan_to_num(np.concatenate([by_abs_z1, by_variance]), posinf=0, neginf=0)
    return np.concatenate([centre, abs_z1, square_z2]), coefficients


@dataclass(frozen=True)
class Truth:
    """E[activation] of every neuron for x ~ N(0, I), and how far off it may be.

    `mean`, `standard_error` (depth, width); `variance` (width,), of one sample's final activations;
    `covariance` (width, width), of the error of mean[-1]: neurons move together. Errors are nan, unknown, for
    a single group. `scale`: the part of the closed-form correction that was made, 0 for plain pairs.
    """

    n_samples: int
    mean: np.ndarray
    standard_error: np.ndarray
    variance: np.ndarray
    covariance: np.ndarray
    scale: float


@dataclass
class Sums:
    """Sums over samples, kept apart in two folds, the even and the odd pools; those of several chunks add up.

    A pool is POOL groups. `predicted`: what the features, |z1| and z2^2, say of a pool's final sums.
    """

    n_samples: np.ndarray  # (2,), by fold
    squared_sizes: np.ndarray  # (2,), of groups, and of pools
    layer_sums: np.ndarray  # (depth, width)
    layer_squares: np.ndarray  # (depth, width), of squared group sums
    final_squares: np.ndarray  # (width,), of the last layer's squares
    observed: Any = (
        0.0  # (2, 3 * width), by fold: final activations, features; 0 for a single layer, as the rest
    )
    traces: Any = 0.0  # (2, 2), of pool products: final by predicted, and predicted by itself; by fold
    products: Any = 0.0  # (3, width, width), of pool sums: final, predicted, and what is left

    def __add__(self, other):
        return Sums(*map(operator.add, vars(self).values(), vars(other).values()))

    @property
    def total(self):
        """How many samples these sums are of."""
        return int(np.sum(self.n_samples))


class WhiteBox:
    """What a network's weights, float32 matrices, say of its truth, and how sums over samples make it one."""

    def __init__(self, weights):
        self.network = pack_weights(weights)
        self.controls = control_variates(weights) if len(weights) > 1 else None
        self.first_mean = np.linalg.norm(weights[0].astype(np.float64), axis=0) / math.sqrt(2 * math.pi)

    def centred(self, sizes, observed):
        """Final sums over so many samples less their rough means; and what the features predict of these."""
        means, coefficients = self.controls
        surplus = observed - np.outer(sizes, means).astype(observed.dtype)
        final, features = np.split(surplus, coefficients.shape[1:], axis=1)
        return final, matrix_product(features, coefficients)

    def sums(self, blocks):
        """The sums over one chunk; of its blocks only the last may be cut short."""
        n = sum(b.n_samples for b in blocks)
        groups = np.minimum(n - np.arange(0, n, GROUP), GROUP)
        starts = np.arange(0, len(groups), POOL)
        size = np.add.reduceat(groups, starts)

        def by_fold(x):
            return np.array([x[fold::2].sum(0, dtype=np.float64) for fold in (0, 1)])

        layers = [
            sum(getattr(b, key) for b in blocks) for key in ("layer_sums", "layer_squares", "final_squares")
        ]
        plain = by_fold(size), np.array([groups @ groups, size @ size]), *layers
        if self.controls is None:
            return Sums(*plain)
        pools = np.add.reduceat(np.block([[b.final, b.abs_z1, b.square_z2] for b in blocks]), starts)
        # Float32 is enough here: products carry the error bars and the scale, never the mean.
        final, predicted = self.centred(size, pools)
        traces = [by_fold((x * predicted).sum(1, dtype=np.float64)) for x in (final, predicted)]
        products = [matrix_product(x.T, x) for x in (final, predicted, final - predicted)]
        return Sums(*plain, by_fold(pools), np.array(traces), np.array(products))

    def truth(self, s):
        """The Truth that these sums make."""
        folds, n = s.n_samples, s.total
        group_size, pool_size = s.squared_sizes / n

        def error(squares, product_of_means, size):
            """(Co)variance of the mean from sums of squared group sums; the last group may be smaller."""
            return (squares - n * size * product_of_means) / ((n - size) * n or math.nan)

        mean = s.layer_sums / n
        sample_variance = np.maximum(s.final_squares / n - mean[-1] ** 2, 0)
        variance = error(s.layer_squares, mean**2, group_size)
        mean[0], variance[0] = self.first_mean, 0
        covariance, scales = np.zeros((len(mean[0]),) * 2), np.zeros(2)
        if self.controls is not None:
            final, predicted = self.centred(folds, s.observed)
            if folds.min() >= MIN_FOLD_GROUPS * POOL * GROUP:
                # Least squares of final on predicted, one number for all neurons, each fold's from the other:
                # no sample judges its own scale. 1 where mean propagation is right, 0 where it says nothing.
                # Rounded, so that the last bits of a product do not reach the mean.
                shared = s.traces[0] - (final * predicted).sum(1) * POOL * GROUP / folds
                slope = shared / np.maximum(s.traces[1], 1e-30)
                scales = np.nan_to_num(np.round(slope * 64) / 64)[::-1]
            mean[-1] = (s.observed[:, : len(final[0])] - scales[:, None] * predicted).sum(0) / n
            # F - aP has covariance (1 - a) FF + (a^2 - a) PP + a RR, R = F - P, as FP + PF = FF + PP - RR.
            final, predicted = final.sum(0) / n, predicted.sum(0) / n
            parts = np.array([1 - scales, scales**2 - scales, scales]) @ folds / n
            covariance = sum(
                part * error(squares, np.outer(m, m), pool_size)
                for part, squares, m in zip(parts, s.products, (final, predicted, final - predicted))
            )
            variance[-1] = np.diag(covariance)
        return Truth(
            n, mean, np.sqrt(np.maximum(variance, 0)), sample_variance, covariance, float(scales @ folds / n)
        )


# ======================================================================================
# Truth: grown, remembered, shared
#
# The sums of a truth are those of its units of work, runs of samples that any thread or machine can compute; they
# are added in order, so neither workers nor interruptions move a bit. The store forgets rather than errs. Suites
# and published datasets are read here. Way in: `grow_together`, `read_dataset`; way out: Truths.
# ======================================================================================

STREAM = "5"  # of random numbers, their sums and files; the store never mixes two versions
STORE_LIMIT = 2 * 10**9  # bytes that the store may hold


class InvalidDatasetError(WhestError, ValueError):
    """A suite or dataset that cannot be used; the message says what is wrong with it."""


@contextmanager
def reading(path):
    """Whatever is found wrong with a file, say it in one sentence."""
    try:
        yield
    except WhestError:
        raise
    except Exception as exc:  # a damaged file can raise anything
        what = f"no {exc} in it" if isinstance(exc, KeyError) else exc
        raise InvalidDatasetError(
            f"{path} is not a usable suite or dataset ({what}): bake or fetch it anew."
        ) from exc


def need(module, extra):
    """Import an optional package, or name the extra that brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as exc:
        package = module.partition(".")[0]
        raise WhestError(f"{package} is not installed: pip install {package} (the extra {extra!r}).") from exc


def fingerprint(*arrays):
    """SHA-256 of arrays, their shapes and types."""
    digest = hashlib.sha256()
    for array in map(np.ascontiguousarray, arrays):
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()


class TruthSource:
    """The truth of one network, `weights` (depth, width, width), as it grows.

    `whole`: the sums over all units of work that are done; `sums`: those and, maybe, a part of the next one.
    """

    whole: Sums | None = None
    sums: Sums | None = None
    white_box: WhiteBox | None = None

    def __init__(self, weights: Iterable, store: TruthStore | None = None):
        self.weights, self.store = [np.asarray(w, np.float32) for w in weights], store
        self.width, self.depth, sha256 = len(self.weights[0]), len(self.weights), fingerprint(*self.weights)
        self.name, self.key = f"{self.width}x{self.depth}-{sha256[:32]}", int(sha256[:16], 16)

    def __reduce__(self):
        return TruthSource, (self.weights,)  # all that another process must know

    def prepare(self) -> WhiteBox:
        """What sampling takes, worked out once in each process."""
        self.white_box = self.white_box or WhiteBox(self.weights)
        return self.white_box

    def at(self, n_samples: int) -> Truth:
        """The truth of exactly `n_samples`; samples only what is neither here nor in the store."""
        return grow_together([self], n_samples)[0][0]

    def unit(self, start: int) -> int:
        """How many samples the unit of work at `start` holds: a chunk * 2**k, about 1% of all before it."""
        most = min(start // 64, 2**39 // (self.width**2 * self.depth))  # 2^40 FLOPs: seconds of work
        return max(CHUNK, 1 << most.bit_length() >> 1)

    def sample(self, start: int, n_samples: int) -> Sums:
        """The sums over a unit of work, or the first `n_samples` of it."""
        white_box, end, size = self.prepare(), start + n_samples, samples_per_block(self.width)

        def chunk(first):
            return white_box.sums(
                [
                    simulate_block(white_box.network, self.key, i // size, min(size, end - i))
                    for i in range(first, min(first + CHUNK, end), size)
                ]
            )

        return reduce(operator.add, map(chunk, range(start, end, CHUNK)))

    def lacking(self, n_samples: int) -> Iterator[tuple[int, int]]:
        """What is yet to be sampled, as arguments of `sample`."""
        known = [sums for sums in (self.whole, self.stored("sums", Sums)) if sums and sums.total <= n_samples]
        self.sums = max(known, key=lambda sums: sums.total, default=None)
        start = self.sums.total if self.sums else 0
        while start < n_samples:
            size = min(self.unit(start), n_samples - start)
            yield start, size
            start += size

    def add(self, sums: Sums) -> None:
        """Add what `sample` gave for the next of them."""
        self.sums = self.sums + sums if self.sums else sums
        if self.sums.total % self.unit(self.sums.total) == 0:
            self.whole = self.sums

    def conclude(self) -> Truth:
        """The truth of all that is sampled, remembered."""
        truth = self.prepare().truth(self.sums)
        truth = replace(truth, covariance=truth.covariance.astype(np.float32))  # most of the file
        if self.store:
            self.store.put(f"{self.name}/{truth.n_samples}", vars(truth))
        return truth

    def stored(self, what: Any, kind: type) -> Any:
        """The Sums, under "sums", or the Truth of so many samples that the store holds, or None."""
        return self.store and self.store.get(f"{self.name}/{what}", kind)

    def save(self) -> None:
        """Keep the sums: another run goes on from here."""
        if self.store and self.whole:
            stored = self.stored("sums", Sums)
            if not stored or stored.total < self.whole.total:
                self.store.put(f"{self.name}/sums", vars(self.whole))


IN_FLIGHT = 64  # units of work: their sums wait in memory, those of a wide network take 25 MB each
MAX_WORK = 2**40  # dense FLOPs of sampling a network that `auto` may spend


def grow_together(
    sources,
    n_samples=None,
    error_of=lambda truths: None,
    precision=0.02,
    max_work=MAX_WORK,
    executor=None,
    progress=lambda *_: None,
):
    """The truths at `n_samples`, or at the first checkpoint where `error_of(truths).precise(precision)`.

    Gives up at `max_work` dense FLOPs a network. Returns the truths and their error; `progress` gets samples
    done, samples to do, and the error so far. What an interruption leaves is in the store.
    """
    goal, error = n_samples or CHUNK, None
    work = 2 * _padded(sources[0].width) ** 2 * sources[0].depth
    try:
        while True:
            truths = grow(sources, goal, executor, progress, error)
            error = error_of(truths)
            if n_samples or error.precise(precision) or 2 * goal * work > max_work:
                break
            goal *= 2
    except KeyboardInterrupt as exc:
        exc.kept = sum(source.whole.total for source in sources if source.store and source.whole)
        raise
    finally:
        for source in sources:
            source.save()
    return truths, error


def grow(sources, goal, executor, progress, error):
    """Sample what these sources lack up to `goal`, and add it in order."""
    truths = [source.stored(goal, Truth) for source in sources]
    wanted = [source for source, truth in zip(sources, truths) if not truth]
    threads = concurrent.futures.ThreadPoolExecutor(_n_threads)
    submit, saved_at = (executor or threads).submit, time.monotonic()
    try:
        list(threads.map(TruthSource.prepare, wanted))
        units = ((source, unit) for source in wanted for unit in source.lacking(goal))
        pending = deque()
        while True:
            for source, unit in islice(units, IN_FLIGHT - len(pending)):
                pending.append((source, submit(source.sample, *unit)))
            if not pending:
                break
            source, future = pending.popleft()
            source.add(future.result())
            progress(sources.index(source) * goal + source.sums.total, len(sources) * goal, error)
            if time.monotonic() > saved_at + 60:  # no more is lost to a kill
                saved_at = time.monotonic()
                for each in sources:
                    each.save()
    except Exception as exc:
        if not executor:
            raise
        print(f"whest: the cluster is lost ({type(exc).__name__}); going on without it.", file=sys.stderr)
        return grow(sources, goal, None, progress, error)
    finally:
        threads.shutdown(cancel_futures=True)
    return [truth or source.conclude() for source, truth in zip(sources, truths)]


class DaskExecutor:
    """The workers of a Dask cluster. A network is sent to them once, and again where one is lost."""

    source: Any = None  # the TruthSource that was sent last

    def __init__(self, address):
        connect = need("distributed", "cluster").Client
        try:
            self.client = connect(address, timeout=5)
            if not self.client.nthreads():
                self.client.close()
                raise ValueError("it has no workers")
        except (OSError, ValueError) as exc:
            raise WhestError(
                f"No Dask cluster answers at {address} ({exc}): start one, or leave out --dask."
            ) from exc
        self.client.upload_file(__file__, load=False)

    def submit(self, sample, *unit):
        if sample.__self__ is not self.source:
            self.source = sample.__self__
            self.sent = self.client.submit(lambda source: source, self.source, pure=False)
        return self.client.submit(TruthSource.sample, self.sent, *unit, pure=False)


@contextmanager
def replacing(path):
    """A path beside this one, to be written and then moved there: all of it or nothing."""
    part = path.with_name(f".{os.urandom(6).hex()}{path.suffix}")
    try:
        yield part
        os.replace(part, path)
    except OSError as exc:
        raise Misuse(f"{path} cannot be written: {exc.strerror}") from exc
    finally:
        part.unlink(missing_ok=True)


def unpacked(kind, arrays):
    """The Truth or Sums of which the store or a suite keeps these arrays."""
    return kind(**{name: a if a.ndim else a.item() for name, a in arrays.items()})


class TruthStore:
    """A folder of .npz files for each network, of at most `limit` bytes: what was used longest ago is forgotten.

    What it cannot keep or read is sampled again. `folder` defaults to $WHESTBENCH_CACHE, or whestbench in the
    user's cache directory.
    """

    def __init__(self, folder: str | os.PathLike | None = None, limit: int = STORE_LIMIT):
        usual = "~/Library/Caches" if sys.platform == "darwin" else "~/.cache"
        base = Path(os.environ.get("XDG_CACHE_HOME") or usual, "whestbench")
        folder = Path(folder or os.environ.get("WHESTBENCH_CACHE") or base).expanduser().absolute()
        self.folder, self.limit, self.warned = folder / f"truth-{STREAM}", limit, False

    @contextmanager
    def trying(self, name: str) -> Iterator[Path]:
        """Trouble with a file is worth one line, and no more."""
        path = self.folder / f"{name}.npz"
        try:
            yield path
        except Exception as exc:  # a damaged file can raise anything
            if not self.warned:
                said = f"cannot use {path} ({type(exc).__name__}: {exc}); sampling instead."
                print(f"whest: {said}", file=sys.stderr)
            self.warned = True

    def get(self, name: str, kind: type = dict) -> Any:
        """The Truth or Sums that was put under this name, or None."""
        with self.trying(name) as path:
            if path.exists():
                with np.load(path, allow_pickle=False) as file:
                    arrays = dict(file)  # each member has a CRC-32
                if str(arrays.pop("name")) != f"{name} {fingerprint(*arrays.values())}":
                    raise ValueError("it belongs elsewhere, or was altered")
                os.utime(path)
                return unpacked(kind, arrays)
        return None

    def put(self, name: str, arrays: dict) -> None:
        with self.trying(name) as path:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as part:
                np.savez(part, **arrays, name=f"{name} {fingerprint(*map(np.asarray, arrays.values()))}")
            files = [(file.stat(), file) for file in self.folder.glob("*/*.npz")]
            held = sum(about.st_size for about, _ in files)
            for about, file in sorted(files, key=lambda item: item[0].st_mtime):
                if held <= self.limit:
                    break
                file.unlink(missing_ok=True)
                held -= about.st_size


def write_suite(path: str | os.PathLike, mlps: list[MLP], truths: list[Truth], about: dict) -> None:
    """Write networks with their truths as one portable .npz without pickles."""
    arrays: dict[str, Any] = {}
    networks = []
    for i, (mlp, truth) in enumerate(zip(mlps, truths)):
        members = {"weights": np.array([np.asarray(w) for w in mlp.weights]), **vars(truth)}
        networks.append({"name": mlp.name, "seed": mlp.seed, "sha256": fingerprint(*members.values())})
        arrays |= {f"{i}/{name}": a for name, a in members.items()}
    with replacing(Path(path)) as part, part.open("wb") as file:
        np.savez(file, **arrays, suite=json.dumps(about | {"networks": networks}))


def suite_networks(path, about):
    """Name, seed, weights, means and truth of each network of a suite file, as `read_dataset` takes them."""
    with np.load(path, allow_pickle=False) as file:
        for i, entry in enumerate(about["networks"]):
            members = {key.split("/")[1]: file[key] for key in file.files if key.startswith(f"{i}/")}
            if fingerprint(*members.values()) != entry["sha256"]:
                raise ValueError(f"network {i} does not have the hash that it was written with")
            weights = members.pop("weights")
            yield entry["name"], entry["seed"], weights, members["mean"], partial(unpacked, Truth, members)


def published_networks(folder, about, split):
    """The same of a published dataset, of which no more than a row is ever in memory."""
    parquet = need("pyarrow.parquet", "parquet").ParquetFile
    files = sorted((folder / "data").glob(f"{split}-*.parquet"))
    if not files:
        raise ValueError(f"no {split}-*.parquet in its data")
    width = about["width"]
    for row in (batch for file in files for batch in parquet(file).iter_batches(1)):
        arrays = []
        for name in ("weights", "all_layer_means", "final_means"):
            column = row.column(name)
            while column.type.num_fields:
                column = column.flatten()
            arrays.append(np.array(column, np.float32))
        weights, means, final = arrays
        mean = means.reshape(-1, width).astype(np.float64)
        weights = weights.reshape(-1, width, width)
        name, seed, variance = (row.column(c)[0].as_py() for c in ("mlp_name", "mlp_seed", "avg_variance"))
        if not np.allclose(mean[-1], final, rtol=1e-4):
            raise ValueError(f"the final means of {name} are not those of its last layer")
        truth = partial(published_truth, weights, mean, variance, about["n_samples"])
        yield name, estimator_seed(seed, about["seed_protocol"]), weights, mean, truth


def published_truth(weights, mean, variance, n_samples):
    """Published targets with error bars: the published variance, spread as in 512 samples of ours."""
    x = np.random.default_rng(0).standard_normal((512, mean.shape[1]), np.float32)
    layers = [x := np.maximum(x @ weight, 0) for weight in weights]
    if np.mean((np.mean(layers, 1) - mean) ** 2) > 25 * np.mean(np.var(layers, 1)) / len(x):
        raise ValueError("its targets are not the means of its networks: five standard errors off")
    covariance = np.atleast_2d(np.cov(x, rowvar=False))
    covariance *= variance / max(covariance.diagonal().mean(), 1e-30)
    error = np.std(layers, 1) / n_samples**0.5
    return Truth(n_samples, mean, error, covariance.diagonal(), covariance / n_samples, 0.0)


def estimator_seed(seed, protocol):
    """The seed that the contest derives for an estimator from that of a network."""
    if protocol["version"] == "2.0":
        return seed
    if protocol["version"] == "3.0":
        return int(np.random.SeedSequence(seed).spawn(3)[2].generate_state(1)[0])
    if protocol["version"] != "4.0":
        raise ValueError("its seed protocol is not known")
    salt = bytes.fromhex(protocol.get("salt") or os.environ.get("WHEST_SEED_SALT", ""))
    if hashlib.sha256(salt).hexdigest() != protocol["salt_digest"]:
        raise ValueError("the salt of its seeds is missing or wrong: if it is withheld, set WHEST_SEED_SALT")
    derived = hashlib.blake2b(seed.to_bytes(8, "big"), digest_size=8, key=salt, person=b"whest-4.0-est")
    return int.from_bytes(derived.digest()[-4:], "big")


def open_dataset(path, split=None):
    """Where it is, what it says of itself, and the split, of a suite file or of a published dataset.

    Fetches what is at hf://owner/name[@revision].
    """
    path, place = str(path), Path(path).expanduser()
    if path.startswith("hf://"):
        repo, _, revision = path[5:].partition("@")
        download = need("huggingface_hub", "hub").snapshot_download
        fetch = partial(download, repo, repo_type="dataset", revision=revision or None)
        place = Path(fetch(allow_patterns="metadata.json"))
    if place.is_file():
        with np.load(place, allow_pickle=False) as file:
            text = str(file["suite"]).encode()
    else:
        text = (place / "metadata.json").read_bytes()
    about = {"sha256": hashlib.sha256(text).hexdigest()} | json.loads(text)
    if place.is_file():
        about["n_mlps"] = len(about["networks"])
    elif about["schema_version"] != "3.0" or about.get("is_partial"):
        raise ValueError("its schema is not known, or it is a part, to be merged with the others")
    about = {"splits": {about.get("split"): about}} | about
    split = split or about.get("split") or about.get("default_split")
    if split not in about["splits"]:
        names = ", ".join(map(str, about["splits"]))
        raise InvalidDatasetError(f"Unknown split {split!r}: choose one with --split: {names}.")
    if path.startswith("hf://"):  # not the other splits: a contest's have many gigabytes
        fetch(allow_patterns=f"data/{split}-*.parquet")
    return place, about, split


def describe_dataset(path, split=None):
    """What the document of a run says of its dataset."""
    with reading(path):
        place, about, split = open_dataset(path, split)
        return {
            "path": path if str(path).startswith("hf://") else str(place.resolve()),
            "seed": about.get("seed"),
            "sha256": about["sha256"],
            "n_mlps": about["splits"][split]["n_mlps"],
        }


def read_dataset(
    path: str | os.PathLike, split: str | None = None, n_mlps: int | None = None, with_truths: bool = True
) -> Iterator[tuple[MLP, Any]]:
    """The networks of a suite file, or of a published dataset, and their truths (or None), one by one.

    So memory does not grow with the dataset. Raises InvalidDatasetError.
    """
    with reading(path):
        place, about, split = open_dataset(path, split)
        is_suite = place.is_file()
        found = suite_networks(place, about) if is_suite else published_networks(place, about, split)
        for name, seed, weights, mean, truth in islice(found, n_mlps):
            if weights.shape != (*mean.shape, mean.shape[-1]):
                raise ValueError(f"{name} has weights {weights.shape} and a truth {mean.shape}")
            if not (np.isfinite(weights).all() and np.isfinite(mean).all()):
                raise ValueError(f"{name} is not finite")
            mlp = MLP(mean.shape[1], len(mean), [fnp.asarray(w) for w in weights], seed, name)
            yield mlp, truth() if with_truths else None


# ======================================================================================
# Baselines
#
# Four estimators to be measured against, from nothing to second-order moment propagation. Written against fnp
# like any participant's, so that their bills are what yours would be. Way in and out: BASELINES, by name.
# ======================================================================================


def zeros(mlp: MLP, budget: int) -> np.ndarray:
    """Predict that no neuron ever fires: what a failed estimator is scored as."""
    return fnp.zeros((mlp.depth, mlp.width))


def sampling(mlp: MLP, budget: int) -> np.ndarray:
    """Spend a tenth of the budget, below which spending less earns nothing, on plain Monte Carlo."""
    n_samples = max(1, int(0.09 * budget / (2 * mlp.depth * mlp.width**2)))
    x = fnp.random.default_rng(mlp.seed).standard_normal((n_samples, mlp.width), dtype=fnp.float32)
    return fnp.stack([fnp.mean(layer, axis=0) for layer in run_mlp_all_layers(mlp, x)], axis=0)


def rectified(m, v):
    """Mean and variance of relu(z) for z ~ N(m, v); then s = sqrt(v), and the density and distribution at m / s."""
    v = fnp.maximum(v, 1e-12)
    s = fnp.sqrt(v)
    density, below = flops.stats.norm.pdf(m / s), flops.stats.norm.cdf(m / s)
    mean, variance = relu_moments(m, v, s, density, below)
    return mean, fnp.maximum(variance, 0.0), s, density, below


def mean_propagation(mlp: MLP, budget: int) -> np.ndarray:
    """Carry each neuron's mean and variance from layer to layer, as if neurons were independent Gaussians."""
    mean, variance, rows = fnp.zeros(mlp.width), fnp.ones(mlp.width), []
    for weight in mlp.weights:
        m, v = fnp.matmul(mean, weight), fnp.matmul(variance, weight * weight)
        mean, variance, *_ = rectified(m, v)
        rows.append(mean)
    return fnp.stack(rows, axis=0)


def covariance_propagation(mlp: MLP, budget: int) -> np.ndarray:
    """Carry mean and covariance from layer to layer, as if pre-activations were jointly Gaussian.

    Off the diagonal the first two Hermite terms of Cov(relu(z_i), relu(z_j)) are kept (Price's theorem):
    K_ij Phi_i Phi_j + K_ij^2 phi_i phi_j / (2 s_i s_j).
    """
    mean, covariance, rows = fnp.zeros(mlp.width), fnp.eye(mlp.width), []
    for weight in mlp.weights:
        k = fnp.matmul(fnp.matmul(weight.T, covariance), weight)
        mean, variance, s, density, below = rectified(fnp.matmul(mean, weight), fnp.diag(k))
        slope = density / s
        covariance = k * fnp.outer(below, below) + k * k * fnp.outer(slope, slope) * 0.5
        fnp.fill_diagonal(covariance, variance)
        rows.append(mean)
    return fnp.stack(rows, axis=0)


BASELINES = {
    baseline.__name__: baseline for baseline in (zeros, sampling, mean_propagation, covariance_propagation)
}


class Baseline(BaseEstimator):
    """A baseline of BASELINES by its name, as an estimator."""

    def __init__(self, name):
        self.name = name

    def predict(self, mlp, budget):
        with warnings.catch_warnings():  # about our code, which its user cannot mend
            warnings.simplefilter("ignore", SymmetryLossWarning)
            return BASELINES[self.name](mlp, budget)


# ======================================================================================
# Scoring
#
# From what predict() gave and what it cost to the contest's numbers: the score of one network, the score of the
# suite, and how sure both are. Keys are those of the real `whest run --format json`; what we add stands beside
# them under names of its own. Way in: Outcomes and Truths; way out: `score_suite`, `compare`.
# ======================================================================================

FLAGS = ("budget_exhausted", "time_exhausted", "residual_wall_time_exhausted", "combined_budget_exhausted")
TIMES = ("wall_time_s", "flopscope_backend_time_s", "flopscope_overhead_time_s", "residual_wall_time_s")


@dataclass
class Outcome:
    """What a predict() call gave and what it cost: a valid prediction `(depth, width)`, or why there is none.

    `flops_charged` is what was charged, `flops_used` what the real report says: all of a blown budget, nothing
    after an error or a blown clock. The four times are seconds. `flag` is one of FLAGS; `error` is {"message",
    "type", "details"}, with `error_code`; `line` the participant's, where it failed. `charges` are condensed;
    `outside` are the seconds of lines outside fnp, {(file, line): s}, where a profile was kept.
    """

    prediction: Any = None
    flops_used: int = 0
    flops_charged: int = 0
    wall_time_s: float = 0.0
    flopscope_backend_time_s: float = 0.0
    flopscope_overhead_time_s: float = 0.0
    residual_wall_time_s: float = 0.0
    flag: str | None = None
    error: dict | None = None
    error_code: str | None = None
    traceback: str | None = None
    line: str = ""
    charges: list = field(default_factory=list)
    outside: dict = field(default_factory=dict)
    warned: Counter = field(default_factory=Counter)  # how often, by line and text

    @property
    def failed(self) -> bool:
        """Whether there is no valid prediction."""
        return self.prediction is None

    def effective_compute(self, rules: Round) -> float:
        """`C = F + lambda * R` in FLOPs, with R the residual wall time."""
        return self.flops_used + rules.lambda_flops_per_second * self.residual_wall_time_s

    def multiplier(self, rules: Round) -> float:
        """Share of the budget that was spent, at least MULTIPLIER_FLOOR; 1 for a failure."""
        return 1.0 if self.failed else rules.multiplier(self.effective_compute(rules))

    def scored(self, truth: Truth) -> np.ndarray:
        """The prediction in float64, zeros for a failure."""
        return np.zeros_like(truth.mean) if self.failed else self.prediction.astype(np.float64)

    def apply_limits(self, rules: Round) -> Outcome:
        """Withdraw a prediction that came too late or cost too much, as the contest does after the call."""
        limits = (
            (self.wall_time_s, rules.wall_time_limit, "time_exhausted"),
            (self.residual_wall_time_s, rules.residual_wall_time_limit, "residual_wall_time_exhausted"),
            (self.effective_compute(rules), rules.most, "combined_budget_exhausted"),
        )
        for spent, limit, flag in limits:
            if not self.failed and limit is not None and spent > limit:
                self.prediction, self.flag = None, flag
        return self


def breakdown_of(outcomes, rules):
    """The bill of outcomes as in the real report, by namespace; None where all ended in an error."""
    billed = [outcome for outcome in outcomes if not outcome.error]
    if not billed:
        return None
    charges = [charge for outcome in billed for charge in outcome.charges]
    wall = sum(outcome.wall_time_s for outcome in billed)
    summary = summary_of(rules.flop_budget * len(billed), charges, wall, True)
    summary["by_namespace"] = {
        "estimator." + (name or "estimator-client").removeprefix("estimator."): row
        for name, row in summary["by_namespace"].items()
    }
    return summary


class Failure(NamedTuple):
    """Why a network is scored as zeros: `kind` is "error" or one of FLAGS; `line` is the participant's."""

    kind: str
    said: str
    line: str = ""
    hints: tuple = ()

    @property
    def text(self):
        """All of it in one line."""
        return " ".join([self.said, *self.hints, f"({self.line})" * bool(self.line)])


def failure_of(outcome, rules):
    """The one place where a failure is put into words, for every report, page and document."""
    if not outcome.failed:
        return None
    if outcome.flag is None:
        said = f"{outcome.error.get('type', outcome.error_code)}: {outcome.error['message']}"
        hints = outcome.error["details"].get("cause_hints", ())
        return Failure("error", said, outcome.line, tuple(hints))
    budget, spent = readable(rules.flop_budget), readable(outcome.effective_compute(rules))
    said = {
        "budget_exhausted": f"the next operation would have crossed the FLOP budget of {budget}; "
        f"{readable(outcome.flops_charged)} were spent",
        "time_exhausted": f"predict() took {outcome.wall_time_s:.3g} s, "
        f"the wall-clock limit is {rules.wall_time_limit} s",
        "residual_wall_time_exhausted": f"{outcome.residual_wall_time_s:.3g} s passed outside fnp, the limit is "
        f"{rules.residual_wall_time_limit} s",
        "combined_budget_exhausted": f"FLOPs and time outside fnp came to {spent}, the budget is {budget}",
    }
    return Failure(outcome.flag, f"{outcome.flag}: {said[outcome.flag]}", outcome.line)


def readable(n):
    """6,434 below a million, 6.80e10 above."""
    return f"{n:,.0f}" if abs(n) < 1e6 else f"{n:.2e}".replace("e+", "e")


def times_text(ratio):
    """29,213 times, 1.28 times."""
    return f"{ratio:,.{0 if ratio >= 10 else 2}f} times"


NORMAL_975 = 1.959963984540054  # quantile that makes a two-sided 95% interval


@dataclass(frozen=True)
class TruthError:
    """A mean squared error, or a suite's mean of them, against noisy truths.

    `raw` as measured; `noise_floor`, its expected excess; `variance`, what truth noise gives it. `between`: the
    standard error of a suite's mean from the choice of its `n_networks` alone, None for one network.
    """

    raw: float
    noise_floor: float
    variance: float
    between: float | None = None
    n_networks: int = 1

    @property
    def corrected(self) -> float:
        """Unbiased for the error against exact truths; can be negative where noise hides a small one."""
        return self.raw - self.noise_floor

    @property
    def standard_error(self) -> float:
        """Of `corrected`, from truth noise."""
        return math.sqrt(self.variance)

    @property
    def truth_interval(self) -> tuple[float, float]:
        """95% interval for these networks' error against exact truths."""
        half = NORMAL_975 * self.standard_error
        return self.corrected - half, self.corrected + half

    @property
    def network_interval(self) -> tuple[float, float] | None:
        """95% interval for the mean over all such networks, were the truths exact; of 5 networks at least.

        It is built on the logarithm (by the delta method), as a mean of squares is above 0 and skewed.
        """
        if self.between is None or self.n_networks < 5 or self.corrected <= 0:
            return None
        factor = math.exp(student_975(self.n_networks - 1) * self.between / self.corrected)
        return self.corrected / factor, self.corrected * factor

    def precise(self, precision: float) -> bool:
        """Whether standard error and noise floor are within this share of the corrected error."""
        return max(self.standard_error, self.noise_floor) <= precision * self.corrected


def final_error(prediction: Any, truth: Truth, multipliers: Any = 1.0) -> TruthError:
    """Error of a prediction of the final layer (width,), or the weighted sum of those of several (k, width).

    Multipliers (k,) may be negative: noise that two scores share cancels in their difference. Where the truth
    is off by e ~ N(0, S), the sum of m |d - e|^2 is off by -2 g'e + sum(m) |e|^2, with g the sum of m d.
    """
    S, m = truth.covariance.astype(np.float64), np.reshape(multipliers, (-1, 1))
    # Summed one by one, so that equal predictions of opposite sign leave exactly nothing.
    deltas = np.atleast_2d(prediction) - truth.mean[-1]
    g, total, width = (m * deltas).sum(0), float(m.sum()), deltas.shape[1]
    # Taken out: the excess of tr SS, S being a sample covariance of f degrees of freedom (Wishart moments),
    # and that of g'Sg, the deltas holding the truth's noise.
    f = max(truth.n_samples / (POOL * GROUP) - 1, 2)
    trace_SS = max(((S * S).sum() - np.trace(S) ** 2 / f) * f * f / ((f + 2) * (f - 1)), 0)
    linear = max((S * np.outer(g, g)).sum() - total**2 * trace_SS, 0)
    variance = (4 * linear + 2 * total**2 * trace_SS) / width**2
    return TruthError(
        float((m[:, 0] * (deltas**2).mean(1)).sum()), float(total * np.trace(S) / width), float(variance)
    )


def suite_error(errors):
    """The mean of several networks' errors."""
    n, between = len(errors), None
    raw, floor, variance = np.mean([(e.raw, e.noise_floor, e.variance) for e in errors], axis=0).tolist()
    if n > 1:
        # the scatter between networks, less what truth noise adds to it: that is the other interval's
        between = math.sqrt(max(np.var([e.corrected for e in errors], ddof=1) - variance, 0) / n)
    return TruthError(raw, floor, variance / n, between, n)


def suite_score(outcomes, truths, rules):
    """The score of these outcomes against these truths."""
    return suite_error(
        [
            final_error(outcome.scored(truth)[-1], truth, outcome.multiplier(rules))
            for outcome, truth in zip(outcomes, truths)
        ]
    )


def student_cdf(t, dof):
    """P(T <= t) of Student's t: the finite sums of Abramowitz and Stegun 26.7.3 and 26.7.4."""
    angle, odd = math.atan2(t, math.sqrt(dof)), dof % 2
    powers = accumulate(
        range(2 + odd, dof, 2),
        lambda x, k: x * math.cos(angle) ** 2 * (k - 1) / k,
        initial=math.cos(angle) * (dof > 1) if odd else 1.0,
    )
    total = math.sin(angle) * sum(powers)
    return (1 + (2 / math.pi * (angle + total) if odd else total)) / 2


def student_975(dof):
    """97.5% quantile of Student's t, to 1e-6."""
    return bisect.bisect(range(13 * 10**6), 0.975, key=lambda micro: student_cdf(micro / 1e6, dof)) / 1e6


def compare(ours: list[Outcome], theirs: list[Outcome], truths: Iterable[Truth], rules: Round) -> dict:
    """The paired difference of two suite scores, ours less theirs, and how sure it is.

    The 95% interval is for all such networks, or the one. `networks_needed` would settle it with a chance of
    80%, were the difference what it seems (Guenther 1981).
    """
    errors = [
        final_error(
            [o.scored(truth)[-1] for o in pair],
            truth,
            np.array([1, -1]) * [o.multiplier(rules) for o in pair],
        )
        for truth, *pair in zip(truths, ours, theirs)
    ]
    mean, n, each = suite_error(errors), len(errors), [error.corrected for error in errors]
    error = math.hypot(mean.standard_error, mean.between or 0.0)
    t, dof = mean.corrected / max(error, 1e-300), n - 1 or 9999  # as good as normal
    half = student_975(dof) * error
    p = max(2 * student_cdf(-abs(t), dof), 1e-12) if any(each) else None
    needed = None
    if n > 1 and p and t and p > 0.05:
        needed = max(n + 1, math.ceil(n * ((NORMAL_975 + 0.8416) / t) ** 2 + NORMAL_975**2 / 2))
    parts = {"truth noise": mean.standard_error, "choice of networks": mean.between}
    return {
        "score": mean.corrected,
        "interval": (mean.corrected - half, mean.corrected + half),
        "p": p,
        "networks_needed": needed,
        "standard_error": error,
        "parts": parts,
        "per_mlp": each,
    }


def score_mlp(index, mlp, outcome, truth, rules):
    """The report on one network, as in the real document. A failure is scored as zeros at the full budget."""
    prediction, multiplier = outcome.scored(truth), outcome.multiplier(rules)
    per_layer = ((prediction - truth.mean) ** 2).mean(axis=1)
    final = final_error(prediction[-1], truth)
    error = {"error": outcome.error, "error_code": outcome.error_code} if outcome.error_code else {}
    if failure := failure_of(outcome, rules):
        error["failure"] = failure._asdict()
    return {
        "mlp_index": index,
        "mlp_name": mlp.name,
        **error,
        "traceback": outcome.traceback,
        "final_layer_mse": final.raw,
        "all_layers_mse": float(per_layer.mean()),
        "per_layer_mse": per_layer.tolist(),
        "score_multiplier": multiplier,
        "adjusted_final_layer_score": final.raw * multiplier,
        "flops_used": outcome.flops_used,
        "effective_compute": outcome.effective_compute(rules),
        **{flag: outcome.flag == flag for flag in FLAGS},
        **{t: getattr(outcome, t) for t in TIMES},
        "breakdowns": {"estimator": breakdown_of([outcome], rules)},
        "truth_n_samples": truth.n_samples,
        "noise_floor": final.noise_floor,
        "corrected_final_layer_mse": final.corrected,
        "zeros_final_layer_mse": float((truth.mean[-1] ** 2).mean() - final.noise_floor),
        "sampling_variance": float(truth.variance.mean()),
    }


def score_suite(
    suite: Iterable[MLP], outcomes: list[Outcome], truths: Iterable[Truth], rules: Round, precision: float
) -> dict:
    """The `results` of a run: means, extremes and failures over the networks, and the corrected score."""
    per_mlp, errors = [], []
    final_of_first: list[list[float]] = []
    for i, (mlp, outcome, truth) in enumerate(zip(suite, outcomes, truths)):
        per_mlp.append(score_mlp(i, mlp, outcome, truth, rules))
        final = outcome.scored(truth)[-1]
        errors.append(final_error(final, truth, outcome.multiplier(rules)))
        final_of_first = final_of_first or np.round([truth.mean[-1], final], 6).tolist()

    def mean(key):
        return np.mean([entry[key] for entry in per_mlp], axis=0).tolist()

    scores, error = [entry["adjusted_final_layer_score"] for entry in per_mlp], suite_error(errors)
    corrected = {"score": error.corrected, "is_precise": error.precise(precision)}
    timeless = replace(rules, lambda_flops_per_second=0.0)
    by_flops = [
        entry["corrected_final_layer_mse"] * outcome.multiplier(timeless)
        for entry, outcome in zip(per_mlp, outcomes)
    ]
    corrected["score_by_flops_alone"] = float(np.mean(by_flops))
    for key in ("standard_error", "noise_floor", "truth_interval", "network_interval"):
        corrected[key] = getattr(error, key)
    failures = Counter("error" if o.error_code else o.flag for o in outcomes if o.failed)
    means = """adjusted_final_layer_score final_layer_mse all_layers_mse per_layer_mse
        mean_score_multiplier mean_effective_compute""".split()
    return {key: mean(key.removeprefix("mean_")) for key in means} | {
        "best_mlp_adjusted_final_layer_score": min(scores),
        "worst_mlp_adjusted_final_layer_score": max(scores),
        "mean_compute_utilization": mean("effective_compute") / rules.flop_budget,
        "n_failed_mlps": failures.total(),
        "failure_breakdown": {key: failures[key] for key in (*FLAGS, "error")},
        "corrected": corrected,
        "warnings": sum((o.warned for o in outcomes), Counter()),
        "final_layer_of_mlp_0": dict(zip(("true", "predicted"), final_of_first)),
        "per_mlp": per_mlp,
        "breakdowns": {"sampling": None, "estimator": breakdown_of(outcomes, rules)},
    }


def sampling_score(per_mlp, rules, multiplier=MULTIPLIER_FLOOR):
    """The score of plain sampling at a multiplier, and its number of samples.

    From the truth's single-sample variance; a sample costs `2 width^2 + 2 width` FLOPs a layer, and normals.
    """
    cost = rules.depth * (2 * rules.width**2 + 2 * rules.width) + 16 * rules.width
    n_samples = max(1, int(multiplier * rules.flop_budget / cost))
    variance = float(np.mean([entry["sampling_variance"] for entry in per_mlp]))
    return multiplier * variance / n_samples, n_samples


def zeros_score(per_mlp):
    """The score of predicting zeros, at the lowest multiplier."""
    return MULTIPLIER_FLOOR * float(np.mean([entry["zeros_final_layer_mse"] for entry in per_mlp]))


def standings(per_mlp, propagated, truths, rules):
    """{baseline: {score, note}}: what zeros, mean propagation (its outcomes are given) and sampling would score."""
    sampled, n = sampling_score(per_mlp, rules)
    mean = suite_score(propagated, truths, replace(rules, lambda_flops_per_second=0.0))
    return {
        "zeros": {"score": zeros_score(per_mlp)},
        "mean_propagation": {"score": mean.corrected},
        "sampling": {
            "score": sampled,
            "note": f"{n:,} samples: what {MULTIPLIER_FLOOR:.0%} of the budget buys",
        },
    }


def grow_truths(suite, rivals, rules, n_samples, precision, store, progress):
    """Truths for estimators' outcomes: `n_samples` exactly, or as many as make each suite score precise.

    Whether to stop is judged by FLOPs alone: neither the clock nor the store moves a reported number.
    """
    timeless = replace(rules, lambda_flops_per_second=0.0)

    def least_precise(truths):
        scores = [suite_score(each, truths, timeless) for each in rivals]
        return min(scores, key=lambda score: score.precise(precision))

    with concurrent.futures.ThreadPoolExecutor(_n_threads) as threads:  # hashing is half of a second run
        sources = list(threads.map(lambda mlp: TruthSource(mlp.weights, store), suite))
    return grow_together(sources, n_samples, least_precise, precision, progress=progress)[0]


SAMPLE_COUNTS = (10, 100, 1_000, 10_000, 100_000)


def convergence_tables(estimators, mlp, flop_budget, sample_counts=SAMPLE_COUNTS, seed=0):
    """For each estimator, its MSE over all layers against ever longer plain sampling, and at last the truth.

    Rows: n_samples, sampling_flops, estimator_flops, mse; the last is corrected for the truth's own noise.
    """
    references: list[tuple] = []
    for n_samples in sample_counts:
        with BudgetContext(10**16, quiet=True) as sampling:
            means = monte_carlo_layer_means(mlp, n_samples, seed)
        references.append((n_samples, sampling.flops_used, np.asarray(means), 0.0))
    truth = TruthSource(mlp.weights).at(2**17)
    references.append(("truth", 0, truth.mean, float((truth.standard_error**2).mean())))
    tables = []
    for estimator in estimators:
        estimator.setup(SetupContext(mlp.width, mlp.depth, flop_budget, "1.0", seed=mlp.seed))
        with BudgetContext(flop_budget, quiet=True) as bill:
            prediction = np.array(fnp.asarray(estimator.predict(mlp.copy(), flop_budget)))
        tables.append(
            [
                {
                    "n_samples": n_samples,
                    "sampling_flops": flops,
                    "estimator_flops": bill.flops_used,
                    "mse": float(((prediction - means) ** 2).mean()) - noise,
                }
                for n_samples, flops, means, noise in references
            ]
        )
    return tables


def table_lines(rows):
    """A convergence table as right-aligned text."""
    line = "{:>10} | {:>16} | {:>15} | {:>11}".format
    return [
        line("n_samples", "sampling_flops", "estimator_flops", "MSE"),
        "-" * 61,
        *(
            line(
                n if isinstance(n, str) else f"{n:,}",
                f"{flops:,}" if flops else "-",
                f"{used:,}",
                f"{mse:.4e}",
            )
            for n, flops, used, mse in map(dict.values, rows)
        ),
    ]


def compare_against_monte_carlo(
    estimator: BaseEstimator,
    mlp: MLP,
    sample_counts: Iterable[int] = SAMPLE_COUNTS,
    estimator_budget: int = 4 * 10**9,
    sampling_budget: int = 10**12,
    seed: int = 0,
    submission_dir: str | None = None,
) -> None:
    """The starter kit's direct loop: print the convergence table of one estimator on one network."""
    print(f"MLP: width={mlp.width} depth={mlp.depth} seed={mlp.seed}")
    (table,) = convergence_tables([estimator], mlp, estimator_budget, sample_counts, seed)
    print(*table_lines(table), sep="\n")


# ======================================================================================
# Runners
#
# Where predict() runs. The metered call turns whatever happens inside, a wrong shape, an exception, an endless
# loop, into an Outcome, so one network's failure costs that network only. Way in: `LocalRunner.outcomes`.
# ======================================================================================


class InvalidPrediction(ValueError):
    """A prediction that cannot be scored, with a hint where to look."""

    def __init__(self, message, hint):
        super().__init__(message)
        self.hint = hint


def materialise(raw, mlp):
    """What predict() returned as float32, billed where the book bills casts. Raises InvalidPrediction."""
    shape, expected = tuple(getattr(raw, "shape", ())), (mlp.depth, mlp.width)
    if shape == expected:
        if np.asarray(raw).dtype.kind not in "biufc":
            raise UnsupportedDtypeError(f"Predictions must be numbers, not {np.asarray(raw).dtype}.")
        prediction = np.array(fnp.asarray(raw, dtype=np.float32))
        shape = prediction.shape  # what it says of itself need not be what it is
    if shape != expected:
        hint = "Stack one (width,) vector per layer: fnp.stack(rows, axis=0)."
        if raw is None:
            hint = "predict() returned nothing: end it with a return statement."
        elif shape == expected[::-1]:
            hint = "It seems transposed: return prediction.T."
        elif not hasattr(raw, "shape"):
            hint = f"It returned a {type(raw).__name__}, not an array. {hint}"
        raise InvalidPrediction(
            f"Predictions must have shape (depth={mlp.depth}, width={mlp.width}); got shape={shape}.",
            hint,
        )
    for layer, neuron in np.argwhere(~np.isfinite(prediction)):
        value = prediction[layer, neuron]
        cause = (
            "0/0, inf - inf, or the root or logarithm of a negative number"
            if np.isnan(value)
            else "a float32 overflow, or a division by zero"
        )
        raise InvalidPrediction(
            "Predictions must contain only finite values.",
            f"{value} first in layer {layer + 1}: look there for {cause}.",
        )
    return prediction


class Alarm:
    """Interrupt the main thread's Python code after `seconds`, again and again until it gives way.

    It strikes only in code outside this file, never between a charge and its log; ten times a millisecond, so
    that an estimator that swallows that is soon met outside its `try`. What cannot be interrupted, C code or
    stolen signals, ends the process LAST_RESORT seconds later, and Python says where it was. Does nothing in
    other threads, or where the platform has no interval timer.
    """

    LAST_RESORT = 30.0
    current = None  # the one in force

    def __init__(self, seconds, op_name):
        self.limit = self.left = inf if seconds is None else seconds
        self.op_name, self.process = op_name, os.getpid()
        is_main = threading.current_thread() is threading.main_thread()
        self.works = seconds is not None and hasattr(signal, "setitimer") and is_main

    def strike(self, signum, frame):
        elapsed = self.limit - self.left + time.perf_counter() - self.begun
        module = "" if frame is None else frame.f_globals.get("__name__", "")
        elsewhere = module not in (__name__, "contextlib") and elapsed > self.limit + 0.5
        # In the participant's frames first: library code may be a callback, where an exception would be lost.
        if module.startswith(SUBMISSION) or elsewhere:
            raise TimeExhaustedError(self.op_name, elapsed_s=elapsed, limit_s=self.limit)

    def __enter__(self):
        Alarm.current, self.begun, left = self, time.perf_counter(), max(self.left, 0.0)
        if self.works:
            self.previous = signal.signal(signal.SIGALRM, self.strike)
            # by a millisecond later, as the context's clock begins later
            signal.setitimer(signal.ITIMER_REAL, left + 1e-3, 1e-4)
            faulthandler.dump_traceback_later(left + self.LAST_RESORT, exit=True, file=2)
        return self

    def __exit__(self, *_):
        if os.getpid() != self.process:  # a fork of the estimator's has come back too
            os._exit(1)
        Alarm.current = None
        self.left -= time.perf_counter() - self.begun
        if self.works:
            signal.setitimer(signal.ITIMER_REAL, 0)
            faulthandler.cancel_dump_traceback_later()
            signal.signal(signal.SIGALRM, self.previous)

    @contextmanager
    def pause(self):
        self.__exit__()
        yield
        self.__enter__()


class Profile:
    """Knows which of the participant's lines are on the stack: for every charge, and at a thousand ticks a second.

    The participant's are the modules that load_estimator makes and the files below `home`, installed packages
    and this file excepted.
    """

    def __init__(self, home):
        self.home, self.files = str(Path(home).resolve()) + os.sep, {}  # whether each is the participant's

    def attach(self, context):
        """Before the context is entered."""
        context.profile, self.context, self.outside = self, context, Counter()

    def stack(self, frame):
        """The participant's lines from this frame outwards, innermost first: (file, line, file, line ...)."""
        found = []
        while frame is not None and frame.f_code is not metered_predict.__code__:
            file = frame.f_code.co_filename
            if file not in self.files:
                module = frame.f_globals.get("__name__") or ""
                self.files[file] = module.startswith(SUBMISSION) or is_participants(file, self.home)
            if self.files[file]:
                found += file, frame.f_lineno
            frame = frame.f_back
        return tuple(found)

    def tick(self, signum, frame):
        """Book the time since the last tick on the participant's line, if it is not in a counted call."""
        now, inner = _clock(), frame
        while inner is not None and inner.f_code is not perform.__code__:
            inner = inner.f_back
        stack = self.stack(frame)
        if inner is None and stack:
            self.outside[stack[:2]] += now - self.ticked
            self.context.flopscope_overhead_time_s += _clock() - now
        self.ticked = _clock()

    @contextmanager
    def ticking(self):
        """Look at the clock inside, where signals can be had."""
        if not hasattr(signal, "SIGPROF") or threading.current_thread() is not threading.main_thread():
            yield
            return
        self.ticked, previous = _clock(), signal.signal(signal.SIGPROF, self.tick)
        signal.setitimer(signal.ITIMER_PROF, 1e-3, 1e-3)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.signal(signal.SIGPROF, previous)


OUTSIDE = "(the runner's own cast)", 0


def lines_of(outcomes, home):
    """The participant's lines in order: what each cost itself, with all that it called, and outside fnp."""
    linecache.checkcache()
    charges, outside = [], Counter()
    operations, with_callees = defaultdict(list), defaultdict(Counter)
    for outcome in outcomes:
        outside.update(outcome.outside)
        for charge in outcome.charges:
            places = list(zip(charge.stack[::2], charge.stack[1::2])) or [OUTSIDE]
            charges.append(charge._replace(stack=places[0]))
            for place in {*places}:
                with_callees[place].update(amounts_of(charge))
    for charge in condensed(charges):
        operations[charge.stack].append(
            {
                "namespace": charge.namespace,
                "operation": charge.bill.op_name,
                "dtype": charge.bill.dtype and str(charge.bill.dtype),
                **amounts_of(charge),
            }
        )
    return [
        {
            "file": place[0].removeprefix(home),
            "line": place[1],
            "source": linecache.getline(*place).strip() if os.path.isfile(place[0]) else "",
            "charges": operations[place],
            "outside_s": outside[place],
            **{key: sum(row[key] for row in operations[place]) for key in AMOUNTS},
            **{f"cumulative_{key}": with_callees[place][key] for key in AMOUNTS},
        }
        for place in sorted({*with_callees, *outside}, key=lambda place: (not place[1], place))
    ]


AMOUNTS = "calls", "flops_used", "time_s"


def amounts_of(charge):
    """A charge's AMOUNTS, as the document names them."""
    return dict(zip(AMOUNTS, (charge.calls, charge.bill.cost, charge.backend + charge.overhead)))


@contextmanager
def debuggable(screen):
    """However pdb is opened inside, its prompt stops the live line, the alarm and all clocks."""
    import pdb

    interaction = pdb.Pdb.interaction

    def paused_interaction(self, *args):
        with ExitStack() as stack:
            for stoppable in filter(None, (screen, Alarm.current, _thread.active)):
                stack.enter_context(stoppable.pause())
            interaction(self, *args)

    pdb.Pdb.interaction = paused_interaction
    try:
        yield
    finally:
        pdb.Pdb.interaction = interaction


def metered_predict(estimator, mlp, rules, fail_fast=False, profile=None):
    """Call predict() under the round's budget and clock; whatever happens inside becomes an Outcome.

    With `fail_fast` the participant's exception propagates; `profile` is told of every line.
    """
    outcome = Outcome()
    context = BudgetContext(
        rules.most, quiet=True, wall_time_limit_s=rules.wall_time_limit, prices=rules.prices
    )
    if profile:
        profile.attach(context)
    home = inspect.getsourcefile(type(estimator)) or __file__
    lines = Profile(Path(home).parent)

    def note(message, category, *_):
        stack = lines.stack(sys._getframe(1)) or (home, 0)
        where = f"{stack[0].removeprefix(lines.home)}, line {stack[1]}"
        outcome.warned[f"{where}: {category.__name__}: {message}"] += 1

    try:
        with (
            warnings.catch_warnings(),
            Alarm(rules.wall_time_limit, "predict"),
            context,
            profile.ticking() if profile else nullcontext(),
        ):
            warnings.simplefilter("always")
            warnings.showwarning = note
            outcome.prediction = materialise(estimator.predict(mlp, rules.flop_budget), mlp)
    except BaseException as exc:  # SystemExit is the estimator's failure too
        if type(exc).__name__ == "BdbQuit":
            raise KeyboardInterrupt from exc
        if fail_fast or isinstance(exc, KeyboardInterrupt):
            raise
        describe_failure(outcome, exc, home, rules)
    outcome.flops_charged = context.flops_used
    if not outcome.failed:
        outcome.flops_used = context.flops_used
    outcome.charges = condensed(context._log)
    if outcome.error is None:
        for name in TIMES:
            setattr(outcome, name, getattr(context, name))
    if profile:
        outcome.outside = dict(profile.outside)
    return outcome.apply_limits(rules)


def describe_failure(outcome, exc, home, rules):
    """Fill in flag or error, the participant's own line, and the traceback without our own frames."""
    text = traceback.TracebackException.from_exception(exc, limit=-100)  # a recursion may have millions
    for part in filter(None, (text, text.__cause__, text.__context__)):
        part.stack = traceback.StackSummary.from_list([f for f in part.stack if f.filename != __file__])
    header = "" if text.stack else "Traceback (most recent call last):\n  in predict()\n"
    outcome.line, outcome.traceback = participant_line(exc, home), header + "".join(text.format())
    if isinstance(exc, (BudgetExhaustedError, TimeExhaustedError)):
        outcome.flag = "time_exhausted"
        if isinstance(exc, BudgetExhaustedError):  # counts as all of it, as in the real report
            outcome.flag, outcome.flops_used = "budget_exhausted", rules.flop_budget
        return
    kind, hints, outcome.error_code = type(exc).__name__, (), "PREDICT_ERROR"
    if isinstance(exc, InvalidPrediction):
        kind = outcome.error_code = "ValueError"
        hints, outcome.line = [exc.hint], f"{Path(home).name}, the return value of predict()"
    elif isinstance(exc, UnsupportedDtypeError):
        outcome.error_code = kind
    # str(text): that of an exception may raise in its turn
    outcome.error = error_of(str(text) or kind, kind, hints)


class Networks:
    """Networks that `make(*arguments)` yields anew each time one goes through them, unless they are `kept`.

    Pickled, they are no more than that: another process makes its own.
    """

    kept = None

    def __init__(self, n_mlps, make, *arguments):
        self.n_mlps, self.make, self.arguments = n_mlps, make, arguments

    def __len__(self):
        return self.n_mlps

    def __iter__(self):
        return iter(self.kept or self.make(*self.arguments))

    def __reduce__(self):
        return Networks, (self.n_mlps, self.make, *self.arguments)


@dataclass
class LocalRunner:
    """Runs the estimator in this process: the fastest, and the one to debug in; what kills it ends the run.

    A context manager: entering it loads the file or baseline and calls setup() within the round's set-up
    time, raising WhestError; leaving it calls teardown() within the same, and forgets the file's siblings,
    as a rival's may have the same names.
    """

    path: str
    class_name: str | None
    rules: Round
    seed: int
    fail_fast: bool = False
    profile: Profile | None = None
    max_threads: int | None = None
    class_found = ""  # the class that the loader chose

    def __post_init__(self):
        if self.path not in BASELINES:  # absolute, wherever the estimator may chdir to
            self.path = str(Path(self.path).expanduser().resolve())

    def __enter__(self):
        rules, limit = self.rules, self.rules.setup_timeout
        context = SetupContext(
            rules.width,
            rules.depth,
            rules.flop_budget,
            api_version="1.0",
            submission_dir=str(Path(self.path).parent),
            seed=self.seed,
        )
        self.modules = set(sys.modules)
        try:
            with Alarm(limit, "setup") as alarm:
                known = self.path in BASELINES
                self.estimator = Baseline(self.path) if known else load_estimator(self.path, self.class_name)
                self.estimator.setup(context)
            if alarm.left < 0:  # where it could not strike
                raise TimeExhaustedError("setup", elapsed_s=limit - alarm.left, limit_s=limit)
        except BaseException as exc:
            if self.fail_fast or isinstance(exc, (WhestError, KeyboardInterrupt)):
                raise
            where = participant_line(exc, self.path)
            said, code = f"raised {type(exc).__name__}: {exc} ({where}); --debug shows the traceback", "ERROR"
            if isinstance(exc, TimeExhaustedError):
                said, code = (
                    f"exceeded its limit of {limit:g} s: do less there, or raise --setup-timeout",
                    "TIMEOUT",
                )
            raise WhestError(f"setup() {said}.", f"SETUP_{code}", "setup") from exc
        self.class_found = type(self.estimator).__name__
        return self

    def predict(self, mlp: MLP) -> Outcome:
        """The outcome on a copy of `mlp`: what an estimator scribbles on its weights stays there."""
        return metered_predict(self.estimator, mlp.copy(), self.rules, self.fail_fast, self.profile)

    def outcomes(self, networks: Networks) -> Iterator[Outcome]:
        """The outcome on each network."""
        return map(self.predict, networks)

    def __exit__(self, *_):
        try:
            with Alarm(self.rules.setup_timeout, "teardown"):
                self.estimator.teardown()
        except BaseException as exc:  # the predictions are made: nothing is lost but teardown()
            what = traceback.format_exception_only(exc)[-1].strip()
            line = participant_line(exc, self.path)
            print(f"whest: teardown() raised {what} ({line}); the score stands.", file=sys.stderr)
        for name in set(sys.modules) - self.modules:
            found_beside = str(Path(self.path).parent / name.partition(".")[0])
            if (getattr(sys.modules[name], "__file__", None) or "").startswith(found_beside):
                del sys.modules[name]


ENVIRONMENT = re.compile(  # what a worker gets of ours
    "PATH|HOME|USER|LANG|TZ|TE?MP(DIR)?|SYSTEMROOT|XDG_CACHE_HOME|(LC|NUMBA|OPENBLAS)_.*|.*_NUM_THREADS"
    "|PYTHON(PATH|UTF8|IOENCODING|DONTWRITEBYTECODE|BREAKPOINT)"
)
MEMORY_LIMIT = 8 * 2**30  # bytes of a worker


def amount(value):
    """A number of JSON's that nothing overflows on; what is none raises."""
    if not 0 <= value <= 2**63:
        raise ValueError(f"{value} is no amount")
    return value


def read_outcome(said, shape):
    """The Outcome that a worker tells in JSON, field by field; whatever does not convert raises."""
    outcome = Outcome(
        **{name: amount(said[name]) for name in ("flops_used", "flops_charged", *TIMES)},
        **{name: said[name] and str(said[name]) for name in ("traceback", "line")},
        outside={(str(file), amount(line)): amount(seconds) for file, line, seconds in said["outside"]},
        warned=Counter({text: amount(times) for text, times in said["warned"].items()}),
    )
    if said["flag"]:
        outcome.flag = FLAGS[FLAGS.index(said["flag"])]
    elif said["error"]:
        error, outcome.error_code = said["error"], str(said["error_code"])
        outcome.error = error_of(error["message"], error["type"], error["details"]["cause_hints"])
    else:
        outcome.prediction = np.array(said["prediction"], np.float32).reshape(shape)
        if not np.isfinite(outcome.prediction).all():
            raise ValueError("a prediction that is not finite")
    for (name, cost, dtype, *_), _, space, _, *times, stack, calls in said["charges"]:
        bill = Bill(str(name), amount(cost), dtype and np.dtype(str(dtype)))
        lines = tuple(amount(part) if i % 2 else str(part) for i, part in enumerate(stack))
        outcome.charges.append(
            Charge(bill, 0, space and str(space), 0.0, *map(amount, times), lines, amount(calls))
        )
    return outcome


def error_of(message, kind, hints=()):
    """What an Outcome and the document say of an error."""
    return {"message": str(message), "type": str(kind), "details": {"cause_hints": [*map(str, hints)]}}


def failed_outcome(message, code):
    """The Outcome of a network that a worker failed on."""
    return Outcome(error=error_of(message, code), error_code=code, traceback=message)


class SubprocessRunner(LocalRunner):
    """Runs the estimator in a worker process with a memory limit; whatever kills it costs one network only.

    The worker is told all by a file, and says a line of JSON a network. That need not be true, but it converts.
    On silence or death a new worker goes on with the next network, or with the same one if it was not its first.
    """

    GRACE = 2.0  # seconds beyond the wall limit, in which the worker's own alarm may still answer
    START_UP = 30.0  # and beyond the set-up time, to start Python and import this module

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """The worker is gone already."""

    def outcomes(self, networks: Networks) -> Iterator[Outcome]:
        """The outcome on each network, or what became of the worker. Raises WhestError if none can be set up."""
        done = 0
        while done < len(networks):
            with tempfile.TemporaryFile() as aside:
                for outcome in self._work(networks, done, aside):
                    done += 1
                    if self.fail_fast and outcome.failed:
                        said = outcome.traceback or failure_of(outcome, self.rules).text
                        raise WhestError(said, outcome.error_code or "PREDICT_ERROR", "predict")
                    yield outcome

    def _work(self, networks, first, aside):
        """The outcomes of a new worker that starts with network `first`, until it falls silent or dies."""
        process, said, answered = self._started(networks, first, aside), queue.SimpleQueue(), 0

        def listen():
            for line in iter(lambda: process.stdout.readline(2**26), ""):
                said.put(line)
            said.put("")

        def heard(limit, grace):
            """Its next answer, within so many seconds. Raises WhestError if there is none, or if it is one."""
            try:
                answer = said.get(timeout=limit and limit + grace)
            except queue.Empty:
                late = f"The worker gave no answer within {limit + grace:.0f} s."
                raise WhestError(late, "TIMEOUT", "setup") from None
            if not answer:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(1.0)
                status = process.returncode or 0
                how = signal.strsignal(-status) if status < 0 else f"exit status {status}"
                raise WhestError(f"The worker process died ({how}).", "WORKER_EOF", "setup")
            answer = json.loads(answer)
            if "code" in answer:
                raise WhestError(*(str(answer[key]) for key in ("message", "code", "stage")))
            return answer

        threading.Thread(target=listen, daemon=True).start()
        rules = self.rules
        try:
            self.class_found = str(heard(rules.setup_timeout, self.START_UP)["class"])
            for _ in range(first, len(networks)):
                answer = heard(rules.wall_time_limit, self.GRACE)
                yield read_outcome(answer, (rules.depth, rules.width)).apply_limits(rules)
                answered += 1
            with suppress(subprocess.TimeoutExpired):  # teardown()
                process.wait((rules.setup_timeout or 0) + self.GRACE)
        except WhestError as exc:
            if not self.class_found:
                raise
            if exc.code == "TIMEOUT":
                limit = (rules.wall_time_limit or 0) + self.GRACE
                yield Outcome(flag="time_exhausted", traceback=str(exc), wall_time_s=limit)
            elif exc.code != "WORKER_EOF" or not answered:  # else who knows what killed it: once more
                yield failed_outcome(str(exc), exc.code)
        except Exception:  # what it said can be anything
            yield failed_outcome("The worker's answer was not understood.", "WORKER_PROTOCOL_ERROR")
        finally:
            with suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()
            process.wait()
            aside.seek(0)
            print(aside.read(2**20).decode(errors="replace"), end="", file=sys.stderr)

    def _started(self, networks, first, aside):
        """A worker process, which is told what to do. It prints to a file: what it leaves behind may hold that
        open, but not our terminal."""
        code = (
            f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); "
            "import whestbench; whestbench.serve()"
        )
        arguments = self.path, self.class_name, self.rules, self.seed, False, self.profile, self.max_threads
        with tempfile.TemporaryFile() as told:
            pickle.dump((LocalRunner(*arguments), networks, first), told)
            told.seek(0)
            return subprocess.Popen(
                [sys.executable, "-uc", code],
                env={k: v for k, v in os.environ.items() if ENVIRONMENT.fullmatch(k)},
                start_new_session=True,
                stdin=told,
                stdout=subprocess.PIPE,
                stderr=aside,
                encoding="utf-8",
                errors="replace",
            )


def serve():
    """The worker's side: what standard input tells is done, a line of JSON a network."""
    import pdb

    runner, networks, first = pickle.load(sys.stdin.buffer)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # what the estimator prints is no answer
    pdb.set_trace = _no_debugger_here  # breakpoint() goes there too

    def say(what):
        print(json.dumps(what, default=str), file=answers, flush=True)

    limit_threads(runner.max_threads)
    with suppress(ImportError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    try:
        with runner:
            say({"class": runner.class_found})
            for mlp in islice(networks, first, None):
                outcome = runner.predict(mlp)
                outside = [(*place, seconds) for place, seconds in outcome.outside.items()]
                prediction = None if outcome.failed else outcome.prediction.tolist()
                say(vars(outcome) | {"outside": outside, "prediction": prediction})
    except WhestError as exc:
        say({"code": exc.code, "message": str(exc), "stage": exc.stage})


def _no_debugger_here(*args, **kwargs):
    raise RuntimeError("breakpoint() needs --runner local: an isolated worker has no terminal.")


# ======================================================================================
# Reports
#
# A report is drawn from one plain dictionary, the document that `--format json` prints, so nothing on the page is
# unavailable to a script. A panel is a title and lines of text, bars and plots; how it is coloured and fitted to
# the terminal is the Screen's business, and how it looks in a browser that of `page`.
# Way in: `report_run`, `draw_checks`; way out: `Screen.write`.
# ======================================================================================

STYLES = {"title": "1;36", "good": "32", "bad": "31", "strong": "1"}


class Bar(NamedTuple):
    """A line of a panel that ends in a bar: it fills `share` of the room that the text leaves."""

    text: str
    share: float


class Scatter(NamedTuple):
    """A plot in a panel: points (x, y), with the names of both axes."""

    points: list
    across: str
    up: str


class Screen:
    """Where a command writes: panels on stdout, and on a terminal a live line on stderr that leaves no trace.

    `format` is rich (colour, live line), plain (neither: pipes, debuggers) or json. Entered, it holds on to
    stdout, as an estimator may replace or close it; under json all but the document goes to stderr.
    """

    def __init__(self, format=None):
        smart = os.environ.get("TERM") != "dumb" and "PYTHONBREAKPOINT" not in os.environ
        self.format = format or ("rich" if smart and sys.stdout.isatty() else "plain")
        rich = self.format == "rich"
        self.colour = rich and not os.environ.get("NO_COLOR")
        self.width = max(40, min(shutil.get_terminal_size((100, 24)).columns, 120))
        self.is_live, self.drawn_at = rich and smart and sys.stderr.isatty(), 0.0
        with suppress(AttributeError):  # of what stands in for stdout, and takes all characters
            sys.stdout.reconfigure(errors="replace")

    def __enter__(self):
        self.stdout, self.descriptor = sys.stdout, os.dup(1)
        if self.format == "json":
            sys.stdout.flush()
            sys.stdout = sys.stderr
            os.dup2(2, 1)
        return self

    def __exit__(self, *_):
        self.restore_stdout()
        os.close(self.descriptor)

    def restore_stdout(self):
        self.live(None)
        if self.stdout.closed:  # by the estimator
            self.stdout = os.fdopen(os.dup(self.descriptor), "w", errors="replace")
        sys.stdout = self.stdout
        with suppress(OSError, ValueError):
            sys.stdout.flush()  # what was printed meanwhile goes where it was meant to go
        os.dup2(self.descriptor, 1)

    def write(self, text):
        """Print on stdout; characters that its encoding lacks are replaced."""
        self.restore_stdout()
        print(text if self.colour else uncoloured(text), flush=True)

    def show(self, document, draw):
        """Print what a command found: the document itself, or what `draw` makes of it."""
        if self.format == "json":
            self.write(json.dumps(finite(document), indent=2))
        else:
            draw(document, self)

    def live(self, text):
        """Redraw the live line, at most ten times a second; None wipes it, if it is there."""
        now = time.monotonic()
        if self.is_live and (self.drawn_at if text is None else now - self.drawn_at > 0.1):
            self.drawn_at = 0.0 if text is None else now
            print("\r\x1b[2K" + (text or "")[: self.width - 1], end="", file=sys.stderr, flush=True)

    @contextmanager
    def pause(self):
        self.live(None)
        was_live, self.is_live = self.is_live, False
        yield
        self.is_live = was_live

    def panels(self, *row):
        """Print panels, `(title, lines)`, side by side; long lines are wrapped."""
        width, columns = (self.width + 1) // len(row) - 1, []
        for title, items in row:
            top = f"== {paint(title, 'title')} " + "=" * (width - 4 - len(title))
            columns.append([top, *(f"  {line}" for item in items for line in drawn(item, width - 4)), ""])
        for cells in zip_longest(*columns, fillvalue=""):
            padded = (cell + " " * (width - len(uncoloured(cell))) for cell in cells)
            self.write(" ".join(padded).rstrip())


def finite(document):
    """It with null where a number is not finite, which JSON has not."""
    return json.loads(json.dumps(document), parse_constant=lambda name: None)


def drawn(item, width):
    """The lines of text that show an item of a panel."""
    if isinstance(item, Scatter):
        return plotted(item, width)
    return wrap(item if isinstance(item, str) else item.text + bar(item.share, width - len(item.text)), width)


def bar(share, width):
    """A bar that fills a share of so many columns."""
    return "#" * round(share * width)


def paint(text, style):
    """The text in a style; `Screen.write` takes it off where there is no colour."""
    return f"\x1b[{STYLES[style]}m{text}\x1b[0m"


def uncoloured(text):
    """The text without its colour codes."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def wrap(line, width):
    """Break a line that is too long at blanks, keeping its indentation; it may have breaks of its own."""
    if len(uncoloured(line)) <= width and "\n" not in line:
        return [line]
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    return [
        part
        for row in uncoloured(line).splitlines()
        for part in textwrap.wrap(row, width, subsequent_indent=indent, break_on_hyphens=False)
    ]


def framed(scatter):
    """Its points, from the top left in units of its frame; the height of 0 there; the labels of the extremes."""
    xs, ys = zip(*scatter.points)
    high, low, right = max(*ys, 0.0), min(*ys, 0.0), max(xs) or 1.0
    tall = high - low or 1.0
    points = [(x / right, (high - y) / tall) for x, y in scatter.points]
    return points, high / tall, f"{high:+.1e}", f"{low:+.1e}", f"{scatter.across} {right:.3g}"


def plotted(scatter, width, height=7):
    """The points as text, . for one and : for several, with 0 as a line and the extremes at the axes."""
    points, zero, high, low, across = framed(scatter)
    room, bottom = width - 11, height - 1
    zero_row, dots = round(zero * bottom), np.full((height, room), " ")
    dots[zero_row] = "-"
    for place, n in Counter((round(y * bottom), round(x * (room - 1))) for x, y in points).items():
        dots[place] = "." if n == 1 else ":"
    labels = {0: high, bottom: low, zero_row: "0"}
    rows = (f"{labels.get(row, ''):>9} |" + "".join(dots[row]) for row in range(height))
    return [scatter.up, *rows, " " * 10 + "0" + across.rjust(room)]


PAGE = """<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><title>whestbench</title><style>
:root {{ color-scheme: light dark; font: 15px system-ui }} h1 {{ font-size: 2.4rem; margin: .5rem 0 0 }}
body {{ max-width: 64rem; margin: 1rem auto; padding: 0 1rem }} h2 {{ font-size: 1.1rem }}
main {{ display: flex; flex-wrap: wrap; gap: 1rem }}
section {{ flex: 1 1 18rem; min-width: 0; padding: 0 1rem 1rem; background: #8882; overflow: auto }}
section:has(pre) {{ flex-basis: 100% }} footer {{ opacity: .7 }} pre {{ margin: 0 }} svg {{ display: block }}
pre, text {{ font: 12px/1.6 monospace; white-space: pre; fill: CanvasText }}
path {{ stroke: gray }} rect, circle {{ fill: light-dark(royalblue, skyblue); opacity: .8 }}
.good {{ color: light-dark(green, lightgreen) }} .bad {{ color: light-dark(firebrick, salmon) }}
.strong {{ font-weight: bold }}
</style>{0}<main>{1}</main><footer>{2}</footer></html>
"""
FIRST_ON_PAGE = ["Estimator Errors", "Limits", "Score", "Where you stand", "Against rivals", "Warnings"]


def page(document, panels):
    """The panels as one HTML page that needs nothing else, light or dark as the reader's system is.

    The score, or that there is none, comes first and large, what was run at the foot.
    """

    def markup(item):
        if isinstance(item, Scatter):
            return svg_plot(item)
        if isinstance(item, Bar):
            start = 7.5 * len(item.text)  # wide enough for any monospaced font of 12 pixels
            return (
                f'<svg width="{start + 170}" height="20"><text y="14">{html.escape(item.text)}</text>'
                f'<rect x="{start}" y="3" width="{170 * item.share:.1f}" height="14"/></svg>'
            )
        text = html.escape(item)
        for name, code in STYLES.items():
            text = re.sub(rf"\x1b\[{code}m(.*?)\x1b\[0m", rf'<span class="{name}">\1</span>', text)
        return f"<pre>{uncoloured(text) or ' '}</pre>"

    config, n_failed = document["run_config"], document["results"]["n_failed_mlps"]
    corrected = document["results"]["corrected"]
    low, high = corrected["truth_interval"]
    style, said = "strong", f"{corrected['score']:.2e}"
    told = f"{low:.2e} to {high:.2e} (95%, given the ground truth's own noise)"
    if n_failed:
        style, said, told = "bad", f"predict() failed on {n_failed} of {config['n_mlps']} MLPs", ""
    estimator, following = html.escape(config["estimator"]), html.escape(next_step(document))
    above = f"{estimator}<h1 class={style}>{said}</h1>{told}<p>{following}</p>"

    def place(panel):
        return [*FIRST_ON_PAGE, panel[0]].index(panel[0]), panel[0] == "Run"

    sections = (
        f"<section><h2>{heading}</h2>{''.join(map(markup, items))}</section>"
        for heading, items in sorted(panels, key=place)
    )
    made = f"whestbench {__version__}, {document['run_meta']['run_finished_at_utc'][:16]} UTC"
    return PAGE.format(above, "".join(sections), made)


def svg_plot(scatter):
    """The points, with 0 as a line and the extremes at the axes."""
    points, zero, high, low, across = framed(scatter)
    dots = (f'<circle cx="{70 + 200 * x:.1f}" cy="{20 + 200 * y:.1f}" r="2.5"/>' for x, y in points)
    return (
        f'<svg width="290" height="250" role="img" aria-label="{scatter.up} by {scatter.across}">'
        f'<path d="M70 20v200M70 {20 + 200 * zero:.1f}h200"/>'
        f'<text y="14">{scatter.up}</text><text y="32">{high}</text><text y="220">{low}</text>'
        f'<text x="70" y="240">0</text><text x="130" y="240">{across}</text>{"".join(dots)}</svg>'
    )


def _run(r):
    gate, second = r.run_config["residual_wall_time_limit_s"], r.run_config["lambda_flops_per_second"]
    for line in (
        "estimator      {estimator} (class {class}), runner {runner}",
        "networks       {n_mlps} MLPs of width {width}, depth {depth}, seed {seed}",
        "round          {round}: prices {prices}, wall limit {wall_time_limit_s:g} s, a second outside fnp costs "
        f"{readable(second)} FLOPs" + (f", at most {gate:g} s" if gate else ""),
        f"FLOP budget    {readable(r.run_config['flop_budget'])} per MLP",
    ):
        yield line.format(**r.run_config)


def _failures(r, kinds):
    """Equal failures together, each with the participant's line, and the likely cause."""
    groups = defaultdict(list)
    for entry in r.results["per_mlp"]:
        if entry.get("failure", {}).get("kind") in kinds:
            groups[tuple(entry["failure"].values())].append(entry)
    if groups:
        n, of = sum(map(len, groups.values())), len(r.results["per_mlp"])
        yield f"predict() failed on {n} of {of} MLPs. Each is scored as zeros, with multiplier 1."
    for (_, said, line, hints), entries in groups.items():
        which = ", ".join(f"#{entry['mlp_index']}" for entry in entries)
        yield from ("", paint(said, "bad"), f"  MLP {which}" + f" at {line}" * bool(line))
        yield from (f"  {hint}" for hint in hints)
        if r.debug:
            yield from (f"    {row}" for row in (entries[0]["traceback"] or "").splitlines())


def _flops(r):
    breakdown = r.results["breakdowns"]["estimator"]
    if not breakdown:
        return
    paid = sorted(breakdown["operations"].items(), key=lambda item: -item[1]["flop_cost"])
    for name, row in [item for item in paid if item[1]["flop_cost"]][:8]:
        share = row["flop_cost"] / breakdown["flops_used"]
        yield Bar(
            f"{name.removeprefix('random.'):<26}{readable(row['flop_cost']):>10}{share:>8.1%}"
            f"{row['calls']:>9,} calls  ",
            share,
        )
    yield (
        "predict() took {wall_time_s:.3f} s: {flopscope_backend_time_s:.3f} s in NumPy, "
        "{flopscope_overhead_time_s:.3f} s counting, {residual_wall_time_s:.3f} s elsewhere"
    ).format(**breakdown)


def bars(values, first, log=False):
    """A bar for each value, numbered from `first`; of more than 16 values, for the mean of neighbours.

    A `log` bar spans three decades, or fewer.
    """
    size, names, means = -(-len(values) // 16), [], []
    for start in range(0, len(values), size):
        part = values[start : start + size]
        names.append(f"{first + start}" + f"-{first + start + len(part) - 1}" * (len(part) > 1))
        means.append(float(np.mean(part)))
    heights = np.log10(np.maximum(means, 1e-30)) if log else np.array(means)
    low, high = max(min(heights) - 0.3, max(heights) - 3) if log else 0.0, max(heights)
    shares = np.maximum(heights - low, 0.0) / (high - low or 1)
    for name, mean, share in zip(names, means, shares):
        yield Bar(f"{name:>{max(map(len, names))}} {mean:.2e} ", share)


def _neurons(r):
    """The final layer's error against its truth, of a hundred neurons or so."""
    final = r.results["final_layer_of_mlp_0"]
    points = [(true, predicted - true) for true, predicted in zip(final["true"], final["predicted"])]
    return [Scatter(points[:: -(-len(points) // 128)], "true mean", "predicted less true")]


def _profile(r):
    """The participant's source with the bill of every line, and its seconds outside fnp."""
    if "profile" not in r.results:
        return
    lines, used = r.results["profile"]["lines"], max(1, r.results["profile"]["flops_used"])
    yield "line   calls    FLOPs  share      cumul.   fnp ms  else ms source"
    for file, rows in groupby(lines, lambda row: row["file"]):
        yield paint(file, "strong")
        for row in rows:
            share, cumulative = row["flops_used"] / used, row["cumulative_flops_used"] / used
            yield (
                f"{row['line'] or '':>4} {row['calls']:>7,} {readable(row['flops_used']):>8} {share:>6.1%} "
                f"{bar(share, 4):<4} {cumulative:>6.1%} {row['time_s'] * 1e3:>8,.1f} "
                f"{row['outside_s'] * 1e3:>8,.1f} {row['source']}"
            )[: r.width - 4]
    yield f"sum over lines: {sum(row['flops_used'] for row in lines):,} of {used:,} FLOPs billed"


def _mlps(r):
    """Each network's score, bill and flags, and its all_layers_mse early against deep."""
    if not r.detailed:
        return
    yield " MLP      score      FLOPs  all_layers_mse  early half  deep half  flags"
    for entry in r.results["per_mlp"]:
        layers = entry["per_layer_mse"]
        half = (len(layers) + 1) // 2
        yield (
            f"{entry['mlp_index']:>4} {entry['adjusted_final_layer_score']:>10.3e} "
            f"{readable(entry['flops_used']):>10} {entry['all_layers_mse']:>15.3e} "
            f"{np.mean(layers[:half]):>11.2e} {np.mean(layers[-half:]):>10.2e}  "
            f"{entry.get('failure', {}).get('kind', '-')}"
        )


def _standing(r):
    """You among zeros, mean_propagation and sampling, worst first."""
    you = r.results["corrected"]["score"]
    rows = r.results["standings"] | {"you": {"score": you}}
    for name, row in sorted(rows.items(), key=lambda item: -item[1]["score"]):
        ratio, how, style = row["score"] / you if you > 0 < row["score"] else 1.0, "", "strong"
        if abs(ratio - 1) > 0.005:
            style, which = ("good", "worse") if ratio > 1 else ("bad", "better")
            how = f"{times_text(max(ratio, 1 / ratio)):>15} {which}"
        text = f"{name:<18}{row['score']:9.2e}{how:<25}{row.get('note', '')}"
        yield paint(text.rstrip(), style)


def verdict(difference, us, them):
    """Which of two estimators is better and how sure that is, in one sentence to be quoted."""
    n, p, needed = len(difference["per_mlp"]), difference["p"], difference["networks_needed"]
    on = f"on {n} networks" if n > 1 else "on this one network"
    if p is None:
        return f"{us} and {them} score exactly the same {on}: the difference is 0."
    sign, better, worse = (-1, us, them) if difference["score"] < 0 else (1, them, us)
    low, high = sorted(sign * end for end in difference["interval"])
    says = "{} is better than {}" if p <= 0.05 else "Not settled: {} seems better than {}"
    settle = f"; about {readable(needed)} networks would settle it." if needed else "."
    return (
        f"{says.format(better, worse)} by {abs(difference['score']):.3g} {on} (95% interval {low:.3g} to "
        f"{high:.3g}, p = {p:.2g}){settle}"
    )


def _against(r):
    """A verdict on each rival, and all in one table, best first."""
    if not r.against:
        return
    yield from (rival["verdict"] for rival in r.against)
    rows = [(r.results["corrected"]["score"], "you", "", "")]
    for rival in r.against:
        difference = rival["difference"]
        interval = "{:+.2e} to {:+.2e}".format(*difference["interval"])
        score = rival["results"]["corrected"]["score"]
        rows.append((score, rival["estimator"][-23:], f"{difference['score']:+.2e}", interval))
    yield f"{'':<24}{'score':>9}{'you less it':>13}  95% interval"
    for score, name, less, interval in sorted(rows):
        yield f"{name:<24}{score:>9.2e}{less:>13}  {interval}".rstrip()


def _score(r):
    results, corrected, share = r.results, r.results["corrected"], MULTIPLIER_FLOOR
    networks = corrected["network_interval"]
    told = "too few to tell: --n-mlps 5" if len(r.results["per_mlp"]) < 5 else "lost in the truth's noise"
    if networks:
        told = "{:.2e} to {:.2e}  (95%)".format(*networks)
    spent = "you spent {mean_compute_utilization:.2%} of the budget"
    if results["n_failed_mlps"]:
        spent = "of a network that failed it is 1"
    elif results["mean_score_multiplier"] < 1.001 * share:
        spent += f"; under {share:.0%} it stays at {share:g}"
    headline, *rows = (
        "adjusted_final_layer_score  {score:>9.2e}   the contest's ranking; lower is better",
        "  given the ground truth's own noise    {truth_interval[0]:.2e} to {truth_interval[1]:.2e}  (95%)",
        f"  on other networks like these          {told}",
        "final_layer_mse             {final_layer_mse:>9.2e}   times the multiplier {mean_score_multiplier:.3g}",
        "multiplier                  {mean_score_multiplier:>9.3g}   " + spent,
        "all_layers_mse              {all_layers_mse:>9.2e}",
        "MLPs                        {n_mlps:>9}   best {best_mlp_adjusted_final_layer_score:.2e}, "
        "worst {worst_mlp_adjusted_final_layer_score:.2e}, failed {n_failed_mlps}",
        "ground truth                {truth_n_samples:>9,}   "
        "samples per MLP; uncorrected score {adjusted_final_layer_score:.2e}",
    )
    numbers = results["per_mlp"][0] | results | corrected | r.run_config
    yield paint(headline.format(**numbers), "strong")
    if corrected["score_by_flops_alone"] < 0.99 * corrected["score"]:
        yield "  by FLOPs alone            {score_by_flops_alone:>9.2e}   the rest is the clock's: it moves".format(
            **corrected
        )
    yield from (row.format(**numbers) for row in rows)
    if not corrected["is_precise"]:
        yield "the truth's noise is more than the precision asked for: raise --n-samples"


def next_step(document):
    """What to do now, which is never what was done."""
    entries, estimator = document["results"]["per_mlp"], shlex.quote(document["run_config"]["estimator"])
    failure = next((entry["failure"] for entry in entries if "failure" in entry), None)
    if not failure:
        return f"Next: {PROGRAM} checklist {estimator}"
    if failure["kind"] != "error" and "profile" not in document["results"]:
        what = "less time" if "time" in failure["kind"] else "fewer FLOPs"
        return f"Next: spend {what}, by `{PROGRAM} run {estimator} --profile` you see where."
    if failure["kind"] != "error":
        return f"Next: spend less at the costliest lines above; {PROGRAM} checklist {estimator} says how."
    if "the return value" in failure["line"]:
        return f"Next: `{PROGRAM} checklist {estimator}` finds the line that made it so."
    where = f"mend {failure['line']}" if failure["line"] else "see `whest validate`"
    return f"Next: {where}. `--fail-fast` stops there with Python's own traceback, breakpoint() before it."


PANELS = {  # title: the lines of a report, of which a panel without any is left out
    "Run": _run,
    "Estimator Errors": partial(_failures, kinds=["error"]),
    "Limits": partial(_failures, kinds=FLAGS),
    "Warnings": lambda r: [f"{text} ({n:,} times)" for text, n in r.results["warnings"].items()],
    "FLOPs": _flops,
    "FLOPs by line": _profile,
    "MSE by layer (log)": lambda r: bars(r.results["per_layer_mse"], 1, log=True),
    "Score by MLP": lambda r: bars(
        [entry["adjusted_final_layer_score"] for entry in r.results["per_mlp"]], 0
    ),
    "Error by neuron, MLP 0": _neurons,
    "Each MLP": _mlps,
    "Where you stand": _standing,
    "Against rivals": _against,
    "Score": _score,
}
UNTOLD_OF_FAILURES = {"MSE by layer (log)", "Score by MLP", "Error by neuron, MLP 0", "Where you stand"}


def report_run(document, screen, debug=False, detailed=False, html_path=None):
    """Print the report of a scored run or its document, and write the page. Misuse where that cannot be."""
    details = {"debug": debug, "detailed": debug or detailed, "width": screen.width}
    r = types.SimpleNamespace(**{"against": []} | document | details)
    skipped = UNTOLD_OF_FAILURES if r.results["n_failed_mlps"] else ()
    panels = [
        (title, lines) for title, draw in PANELS.items() if title not in skipped and (lines := list(draw(r)))
    ]
    if html_path:
        with replacing(Path(html_path)) as part:
            part.write_text(page(document, panels), "utf-8", "replace")

    def draw(document, screen):
        for has_text, group in groupby(panels, lambda panel: str in map(type, panel[1])):
            row, across = list(group), 1 if has_text else max(1, screen.width // 30)
            for first in range(0, len(row), across):
                screen.panels(*row[first : first + across])
        screen.write(next_step(document))

    screen.show(document, draw)


def draw_checks(document, screen):
    """Print what `validate` found, and what to do next."""
    labels = {True: paint("OK  ", "good"), False: paint("FAIL", "bad"), None: "NOTE"}
    lines = [f"{labels[c['ok']]}  {c['check']}: {c['detail']}" for c in document["checks"]]
    screen.panels(("Validation", lines))
    estimator = shlex.quote(document["estimator"])
    mend = f"mend what FAILs, line by line; `{PROGRAM} run {estimator} --debug` shows tracebacks."
    screen.write(f"Next: {PROGRAM} run {estimator}" if document["ok"] else f"Next: {mend}")


def draw_tables(document, screen):
    """Print the convergence tables of `loop`."""
    screen.write("MLP: width={width} depth={depth} seed={seed}".format(**document))
    for label, rows in document["tables"].items():
        screen.write("\n".join(["", f"--- {label} ---", *table_lines(rows)]))


def draw_suite(document, screen):
    """Print what `bake` has written, and what to do next."""
    screen.write(
        "{path}: {n_mlps} networks {width}x{depth}, {n_samples:,} samples each, final-layer standard error "
        "{final_layer_standard_error:.3g}".format(**document)
    )
    screen.write(f"Next: {PROGRAM} run estimator.py --dataset {shlex.quote(document['path'])}")


def draw_prices(document, screen):
    """Print what an expression costs in every book, with the rows' own sentences."""
    books = [document[book] for book in PRICES]
    line = "{:<36}{:>16}{:>16}".format
    text = [line("", *(f"book {book}" for book in PRICES))]
    for rows in zip_longest(*books):
        charged = [row for row in rows if row]
        names = " / ".join(dict.fromkeys(row["operation"] for row in charged))
        text.append(line("  " + names, *(f"{row['flops']:,}" if row else "-" for row in rows)))
        # what one book says holds in the other, or more
        text += wrap("    " + max((row["says"] for row in charged), key=len), screen.width)
    if max(map(len, books)) > 1:
        text.append(line("  total", *(f"{sum(row['flops'] for row in rows):,}" for rows in books)))
    text += [f"  book {book}: {why}" for book, why in document["refused"].items()]
    screen.write("\n".join(text))


# ======================================================================================
# Checklist
#
# The debugging page answers itself. Evidence is gathered once: a validation, a scored and profiled run, and a run
# under a Watch, which looks at the values. A question is a function of the evidence that returns its answer's
# lines and its findings, and whether all is well without any; QUESTIONS, at the end, is the page. Way in:
# `gather_evidence`; way out: `answered`.
# ======================================================================================

CALL_RESIDUAL = 23e-6  # seconds of residual time that one call leaves with flopscope 0.12.4
UNCHANGED = "use the array itself: it cannot be written to; x[:, None] and squeeze are free"
FREE_INSTEAD = {  # of what is paid for; UNCHANGED holds for calls that change nothing
    "0.12": dict.fromkeys(("copy", "array", "astype", "reshape", "ravel"), UNCHANGED),
    "0.7": {
        "array": "asarray is free",
        "take": "indexing, x[i], is free",
        "stack": "row_stack is free",
    },
}


def arrays_in(value):
    """Every array in arguments, also in lists, tuples and dictionaries."""
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from arrays_in(item)


def squeezed(a):
    """What no free operation changes: the type, and the axes of more than one element."""
    return a.dtype, bare(a).squeeze().shape


class Watch(Profile):
    """A Profile that looks at values too: `notes[kind][place, operation, detail]` counts calls and FLOPs.

    It sees what goes through fnp; what does not shows as time outside it.
    """

    def __init__(self, home):
        super().__init__(home)
        self.notes = defaultdict(lambda: defaultdict(Counter))
        self.first = {}  # place of each operation on values not seen before
        self.end = None  # place of the last operation
        self.broken = None  # (place, operation) of the first value that is not finite
        self.costliest = 0, ""  # FLOPs of a call, and how they come about

    def attach(self, context):
        super().attach(context)
        context.observer = self.observe

    def observe(self, name, args, kwargs, result, flops):
        """Note what there is to say of a counted call; the context's observer."""
        place, arrays = self.stack(sys._getframe())[:2], [*arrays_in((args, kwargs))]
        if not place:
            return
        self.end = place
        numbers = [bare(a) for a in arrays_in(result) if a.dtype.kind in "fc"]
        if not (self.broken or all(np.isfinite(a).all() for a in numbers)):
            self.broken = place, name
        if not flops:
            return

        def note(kind, detail=""):
            self.notes[kind][place, name, detail].update(calls=1, flops=flops)

        operation, shapes, book = OPERATIONS[name], [a.shape for a in arrays], self.context.book
        if flops > self.costliest[0]:
            told = book.explain(Call(operation, not book.immutable, args, kwargs, result))
            self.costliest = flops, f"costliest call: {name}, {readable(flops)} FLOPs: {told}"
        if operation.keeps is of_product:
            square = min(map(len, shapes), default=0) > 1 and len({*chain(*shapes)}) == 1
            note("product", "square" if square else "")
        free = FREE_INSTEAD[book.name].get(name)
        if free and (free != UNCHANGED or squeezed(result) in map(squeezed, arrays)):
            note("moved", free)
        if name == "power" and isinstance(args[-1], int) and args[-1] == 2:
            note("moved", "x * x costs a sixteenth")
        if not (operation.writes or name.startswith("random.") or "out" in kwargs):
            others = [not isinstance(a, np.ndarray) and bare(a) for a in (*args, *kwargs.items())]
            key = name, fingerprint(*map(bare, arrays)), repr(others)
            if first := self.first.get(key):
                note("repeated", "in a loop" if first == place else f"first on line {first[1]}")
            self.first.setdefault(key, place)


@dataclass
class Evidence:
    """All that the questions ask about, of an estimator under rules."""

    rules: Round
    checks: list  # of validate
    class_found: str
    suite: list
    outcomes: list
    reseeded: list  # predictions under two other seeds, by network, unless one failed
    watch: Watch
    watched: Outcome  # off the clock, of the first network that failed, or the first
    truths: list
    results: dict

    score = property(lambda e: e.results["corrected"]["score"])
    spent = property(lambda e: e.results["mean_effective_compute"])
    bill = property(lambda e: max(1, e.watched.flops_charged))


def gather_evidence(options, rules, screen):
    """Validate, predict, watch and score. Raises WhestError where nothing can be run."""
    path, watch = estimator_path(options), Watch(Path(estimator_path(options)).parent)
    screen.live("validate")
    checks = list(validation_checks(options, rules))
    suite = list(sample_suite(options.n_mlps or 3, rules.width, rules.depth, options.seed))
    screen.live("predict")
    with LocalRunner(path, options.class_, rules, options.seed, profile=Profile(watch.home)) as runner:
        outcomes, reseeded = list(runner.outcomes(suite)), []
        failed = [i for i, outcome in enumerate(outcomes) if outcome.failed]
        if not failed:
            reseeded = [
                [runner.predict(replace(mlp, seed=mlp.seed + k)).prediction for k in (1, 2)] for mlp in suite
            ]
    screen.live("watch")
    subject = failed[0] if failed else 0
    purse = 10 * rules.flop_budget if outcomes[subject].flag else None  # to see what would have followed
    untimed = replace(rules, lambda_flops_per_second=0.0, residual_wall_time_limit=None, purse=purse)
    with LocalRunner(path, options.class_, untimed, options.seed, profile=watch) as runner:
        watched = runner.predict(suite[subject])
    store = None if options.no_store else TruthStore()
    truths = grow_truths(
        suite, [outcomes], rules, options.n_samples, options.precision, store, truth_progress(screen)
    )
    results = score_suite(suite, outcomes, truths, rules, options.precision)
    linecache.checkcache()
    return Evidence(
        rules, checks, runner.class_found, suite, outcomes, reseeded, watch, watched, truths, results
    )


def finding(e, severity, said, change, place=None, share=1.0):
    """What to change, at (file, line), and which share (0 to 1) of the score it is worth.

    Severity 1 spoils the score, 2 costs a part of it, 3 is merely worth knowing.
    """
    file, line = place or ("", 0)
    return {
        "severity": severity,
        "said": said,
        "change": change,
        "file": file.removeprefix(e.watch.home),
        "line": line,
        "source": linecache.getline(os.path.join(e.watch.home, file), line).strip(),
        "share": float(share),
    }


def waste(e, flops, said, change, place, unseen=0.0):
    """A finding about FLOPs of a network, if they cost half a percent of the score or are 1% of the budget.

    `unseen`: what they cost on the real grader and not here. Under the multiplier's floor none is at stake.
    """
    spent = e.spent + unseen
    share = 1 - e.rules.multiplier(spent - flops) / e.rules.multiplier(spent)
    if share >= 0.005:
        return [finding(e, 2, said, change, place, share)]
    if flops >= 0.01 * e.rules.flop_budget:
        said += " (free under the floor, but they would buy accuracy)"
        return [finding(e, 3, said, change, place, 0.0)]
    return []


def wasted(e, flops, found):
    """The answer about FLOPs that could be saved."""
    said = f"{readable(flops)} FLOPs, {flops / e.bill:.1%} of the bill"
    answer = f"yes: {said}" if found else f"too little to matter: {said}" if flops else "none found"
    return [answer + ", until predict() failed" * e.watched.failed], found


def costliest(charges, amount="flop_cost"):
    """(file, line) of the line with most of an amount."""
    lines = summed(charges, lambda charge: charge.stack[:2])
    return max(lines, key=lambda place: lines[place][amount], default=None)


def kind_of(failure):
    """Which question a failure answers."""
    if failure.kind != "error":
        return "limit"
    invalid = re.match("ValueError: Predictions must .*?(shape|finite)", failure.said)
    return invalid[1] if invalid else "raised"


def ask_failures(e, kind, good, bad):
    """On how many networks predict() failed so; a finding for each group of equal failures."""
    groups = defaultdict(dict)
    for i, outcome in enumerate(e.outcomes):
        failure = failure_of(outcome, e.rules)
        if failure and kind_of(failure) == kind:
            same = failure.kind if kind == "limit" else failure.said  # what was spent may differ
            groups[same, failure.line][i] = failure
    scores = np.array([mlp["adjusted_final_layer_score"] for mlp in e.results["per_mlp"]])
    found = []
    for (_, where), members in groups.items():
        said = next(iter(members.values())).said
        file, _, line = where.rpartition(", line ")
        place = (
            (file, int(line)) if file else e.watch.end if kind != "limit" else costliest(e.watched.charges)
        )
        change = " ".join(next(iter(members.values())).hints) or "`whest run --debug` shows the traceback"
        if kind == "limit":
            change = "spend less"
            outside = max(outcome.residual_wall_time_s for outcome in e.outcomes)
            needs = e.bill + outside * e.rules.lambda_flops_per_second
            if needs > e.rules.flop_budget:
                fits = 0.95 * e.rules.flop_budget / needs  # a clock never says the same twice
                change += (
                    f": predict() needs {readable(needs)} FLOPs with its time, of which {fits:.0%} would fit"
                )
        if kind == "finite" and e.watch.broken:
            place, name = e.watch.broken
            change = f"{name} made the first value that is not finite; {change}"
        which = ", ".join(f"#{i}" for i in members)
        said += f" on {len(members)} MLPs ({which}), scored as zeros"
        found.append(finding(e, 1, said, change, place, scores[[*members]].sum() / scores.sum()))
    n, n_good = len(scores), len(scores) - e.results["n_failed_mlps"]
    if not (groups or n_good or kind in ("raised", "limit")):
        return [], []
    answer = bad.format(sum(map(len, groups.values())), n) if groups else good.format(n_good, n)
    return [answer], found


def ask_class(e):
    """Which class the loader took."""
    own = e.class_found == "Estimator"
    return ["yes" if own else f"it is {e.class_found}, which the loader took"], []


def ask_validation(e):
    """What `whest validate` finds; a line that draws at random, where there is one."""
    passed = sum(check["ok"] is True for check in e.checks)
    said = {c["check"]: f"{c['check']}: {c['detail']}" for c in e.checks[::-1] if not c["ok"]}
    found = []
    if "determinism" in said and not e.results["n_failed_mlps"]:
        draws = {charge.stack[:2] for charge in e.watched.charges if "random" in charge.bill.op_name}
        place = draws.pop() if len(draws) == 1 else None
        found = [finding(e, 3, said["determinism"], "draw from default_rng(mlp.seed) alone", place, 0.0)]
    answer = "; ".join([f"{passed} of {len(e.checks)} checks pass", *said.values()])
    return [answer], found, all(check["ok"] is not False for check in e.checks)


def ask_zeros(e):
    """Whether predicting zeros scores better."""
    theirs, found = zeros_score(e.results["per_mlp"]), []
    if e.score > max(1.001 * theirs, theirs + 1e-12):  # what float32 resolves
        said = f"zeros scores {times_text(e.score / theirs)} better: worse than guessing zero"
        change = "look for a wrong sign, scale, transpose or layer"
        found = [finding(e, 1, said, change, e.watch.end, 1 - theirs / e.score)]
    return [f"{'yes' if found else 'no'}: zeros {theirs:.2e}, you {e.score:.2e}"], found


def ask_sampling(e):
    """Whether plain sampling, for what the multiplier pays, scores better, or would beside the prediction."""
    multiplier, found = e.results["mean_score_multiplier"], []
    paid, n_samples = sampling_score(e.results["per_mlp"], e.rules, multiplier)
    used = e.spent / e.rules.flop_budget
    spare = max(0.0, 0.95 - used / MULTIPLIER_FLOOR)  # of those samples, free but for their time
    verdict = "yes" if e.score > 1.2 * paid > 0 else "about as well" if e.score > paid else "no"
    mixed = 1 / (1 / e.score + spare / paid) if e.score > 0 < paid else e.score  # inverse errors add up
    said = f"you use {used:.2%} of the budget, of which the first {MULTIPLIER_FLOOR:.0%} are free"
    if verdict == "yes":
        said = f"sampling scores {times_text(e.score / paid)} better"
    if mixed < 0.8 * e.score:
        change = (
            f"average in {spare * n_samples:,.0f} samples, which the multiplier leaves free, weighted by the "
            f"inverse errors: about {mixed:.2g}"
        )
        found = [finding(e, 2, said, change, e.watch.end, 1 - mixed / e.score)]
    elif verdict == "yes":
        change = "find what costs more than it brings, or sample instead"
        found = [finding(e, 2, said, change, e.watch.end, 1 - paid / e.score)]
    return [f"{verdict}: {paid:.2e} with {n_samples:,} samples, you {e.score:.2e}"], found


def ask_layers(e):
    """The error of every layer, whether it grows, and where it leaves mean propagation's behind."""
    mine, found = e.results["per_layer_mse"], []
    propagated = [mean_propagation(mlp, DEFAULT_BUDGET) for mlp in e.suite]
    errors = [(np.asarray(p) - truth.mean) ** 2 for p, truth in zip(propagated, e.truths)]
    theirs = np.mean(errors, axis=(0, 2)).tolist()
    least = min((mse for mse in mine if mse > 1e-12), default=inf)  # less is rounding
    grows = mine[-1] > 3 * least
    answer = "no"
    if grows:
        first = mine.index(least) + 1
        answer = f"yes: they grow from {least:.1e} (layer {first}) to {mine[-1]:.1e} (layer {len(mine)})"
    # the first layer from which on none is as good
    i = max((i for i, (m, b) in enumerate(zip(mine, theirs), 1) if m <= 2 * b + 1e-12), default=0)
    if i < len(mine):
        answer += f"; from layer {i + 1} on they are over twice mean_propagation's"
        said = f"over twice mean_propagation's MSE from layer {i + 1} on: {mine[i]:.3g}, not {theirs[i]:.3g}"
        change = f"compare what you compute at layer {i + 1} with mean_propagation"
        found = [finding(e, 2, said, change, e.watch.end, 1 - theirs[-1] / mine[-1])]
    table = [
        Bar(f"{'':9}layer {own.text}(mean_propagation {other.text.split()[-1]}) ", own.share)
        for own, other in zip(bars(mine, 1, log=True), bars(theirs, 1))
    ]
    return [answer, f"{'':9}MSE by layer, bars on a logarithmic scale:", *table], found, not grows


def ask_anatomy(e):
    """How much of the final error is the estimator's randomness, an offset, a factor, and the rest."""
    runs = [[outcome.prediction, *again] for outcome, again in zip(e.outcomes, e.reseeded)]
    if any(prediction is None for each in runs for prediction in each):
        return [], []
    last, truth = np.array(runs, np.float64)[:, :, -1], np.array([t.mean[-1] for t in e.truths])
    mse, error = ((last - truth[:, None]) ** 2).mean() or 1.0, last.mean(axis=1) - truth
    own = min(1.0, last.var(axis=1, ddof=1).mean() / mse)
    scale, offset = (error * truth).sum() / ((truth**2).sum() or 1.0), error.mean()
    by_scale, by_offset = scale**2 * (truth**2).mean() / mse, offset**2 / mse
    answer = (
        f"{own:.0%} your own randomness (3 values of mlp.seed), {1 - own:.0%} always there; a common factor "
        f"explains {by_scale:.0%}, an offset {by_offset:.0%}"
    )
    if by_offset > by_scale and offset > 0:
        off, remedy, cause = f"{offset:.3g} too high", "taking that off", "raises"
    elif by_offset > by_scale:
        off, remedy, cause = f"{-offset:.3g} too low", "adding that", "lowers"
    elif scale > 0:
        off, remedy, cause = f"{1 + scale:.4g} times too large", "dividing by it", "inflates"
    else:
        off, remedy, cause = f"{1 / max(1 + scale, 0.01):.4g} times too small", "multiplying by it", "shrinks"
    share, found = max(by_scale, by_offset), []
    if share > 0.25 and own < 0.5 and scale > -0.99:  # else it is zeros
        change = (
            f"{remedy} would bring the score to about {(1 - share) * e.score:.2g}; look for what {cause} it"
        )
        found = [finding(e, 2, f"your final layer is {off}", change, e.watch.end, share)]
    return [answer], found


def ask_matmul(e):
    """Whether products cost most, and whether they are of square matrices."""
    products = Counter()
    for (_, _, kind), note in e.watch.notes["product"].items():
        products[kind] += note["flops"]
    share, found = products.total() / e.bill, []
    answer = f"{'yes' if share > 0.9 else 'no'}, {share:.1%}"
    square = products["square"] / e.bill
    if square > 0.9:
        answer += ": width x width products"
        if e.spent > MULTIPLIER_FLOOR * e.rules.flop_budget:  # under the floor it is well spent
            said = f"{square:.0%} of the bill multiplies width x width matrices by such"
            change = "consider diagonal variance instead of full covariance"
            found = waste(e, products["square"], said, change, costliest(e.watched.charges))
    return [answer, " " * 9 + e.watch.costliest[1]][: 1 + bool(e.watch.costliest[1])], found


def ask_notes(e, kind, said, change=None):
    """What the watch noted of a kind, and a finding for each place, by the template `said`."""
    found, total = [], 0
    for (place, name, detail), note in e.watch.notes[kind].items():
        total += note["flops"]
        told = said.format(name=name, detail=detail, **note)
        found += waste(e, note["flops"], told, change or detail, place)
    return wasted(e, total, found)


def ask_float64(e):
    """What float64 costs where float32 would do."""
    doubled = [
        charge
        for charge in e.watched.charges
        if charge.bill.dtype == np.float64 and not charge.bill.op_name.startswith("stats.")
    ]
    if not PRICES[e.rules.prices].immutable:  # the book that charges rates
        return [f"book {e.rules.prices} charges dtypes alike"], []
    flops = sum(charge.bill.cost for charge in doubled) // 2
    said = "float64 doubles the price of what float32 could do, most at this line"
    return wasted(e, flops, waste(e, flops, said, "make arrays and constants float32", costliest(doubled)))


def ask_outside(e):
    """Time outside fnp, which the round prices or limits, and where it passes."""
    seconds = max(outcome.residual_wall_time_s for outcome in e.outcomes)
    cost, gate = seconds * e.rules.lambda_flops_per_second, e.rules.residual_wall_time_limit
    outside, found = sum((Counter(outcome.outside) for outcome in e.outcomes), Counter()), []
    seen = outside.total() / len(e.outcomes)
    if seen > 0.01 and (cost > 0.01 * e.rules.flop_budget or gate and seconds > 0.5 * gate or seen > 0.1):
        place, most = outside.most_common(1)[0]
        severity, change = 2, "work on whole arrays through fnp"
        if re.search(r"\b(np|numpy|scipy|math|numba)\b|@", linecache.getline(*place)):
            severity, change = 1, "plain NumPy is uncounted, and the rules forbid it: call fnp"
        share = 1 - e.rules.multiplier(e.spent - cost) / e.rules.multiplier(e.spent)
        said = f"{seconds:.3g} s outside fnp, {most / outside.total():.0%} of it at this line"
        found = [finding(e, severity, said, change, place, share)]
    worth = f", as much as {readable(cost)} FLOPs" if cost else ""
    return [f"{seconds:.3g} s{worth}"], found


def ask_calls(e):
    """What the number of calls would cost on the real grader."""
    calls = sum(charge.calls for charge in e.watched.charges)
    seconds, gate = calls * CALL_RESIDUAL, e.rules.residual_wall_time_limit
    cost = seconds * e.rules.lambda_flops_per_second
    change, place = "work on whole arrays instead of in Python loops", costliest(e.watched.charges, "calls")
    said, found = f"{calls:,} calls take {seconds:.2g} s of the real grader's own time", []
    if calls > 500:  # fewer are no loop
        found = waste(e, cost, said, change, place, cost)
    if gate and seconds > gate or calls > 500 and cost > e.rules.flop_budget - e.spent:
        found = [finding(e, 1, said + ": past the limit, so it would score zeros there", change, place)]
    answer = f"{calls:,} a network: on the real grader about {seconds:.3g} s outside fnp"
    answer += f", as much as {readable(cost)} FLOPs" * bool(cost) + (
        f"; the gate is {gate:g} s" if gate else ""
    )
    return [answer], found


ALWAYS, UNLESS_RAISED, UNLESS_FAILED = (), ("error",), ("error", *FLAGS)  # failures that leave nothing to ask
QUESTIONS = {  # the page: {tier: ((when it is asked, the question, what answers it, its arguments), ...)}
    "Sanity checks": (
        (
            ALWAYS,
            "Output shape (mlp.depth, mlp.width)?",
            ask_failures,
            "shape",
            "yes, on {} of {} MLPs",
            "no, on {} of {} MLPs",
        ),
        (
            ALWAYS,
            "All values finite?",
            ask_failures,
            "finite",
            "yes, on {} of {} MLPs",
            "no, on {} of {} MLPs",
        ),
        (ALWAYS, "Class named Estimator?", ask_class),
        (ALWAYS, "whest validate", ask_validation),
    ),
    "Correctness checks": (
        (ALWAYS, "Did predict() raise?", ask_failures, "raised", "no", "yes, on {} of {} MLPs"),
        (UNLESS_FAILED, "Does zeros beat you?", ask_zeros),
        (UNLESS_FAILED, "Does sampling beat you?", ask_sampling),
        (ALWAYS, "Is budget_exhausted true?", ask_failures, "limit", "no", "yes, on {} of {} MLPs"),
        (UNLESS_FAILED, "Errors concentrated at deep layers?", ask_layers),
        (UNLESS_FAILED, "What is the final error made of?", ask_anatomy),
    ),
    "Optimization checks": (
        (UNLESS_RAISED, "Is matmul dominant?", ask_matmul),
        (
            UNLESS_RAISED,
            "Redundant computation?",
            ask_notes,
            "repeated",
            "{name} on the same values again, {calls:,} times, {detail}",
            "compute it once and keep the result",
        ),
        (
            UNLESS_RAISED,
            "Free operations wasted?",
            ask_notes,
            "moved",
            "{calls:,} paid calls of {name}",
        ),
        (UNLESS_RAISED, "float64 where float32 would do?", ask_float64),
        (UNLESS_RAISED, "Time outside fnp?", ask_outside),
        (UNLESS_RAISED, "Many small calls?", ask_calls),
    ),
}


def answered(e, unasked_after, question, ask, *arguments):
    """A question's entry in the document: whether all is well (None: not measured), the answer, the findings."""
    failed = any(e.results["failure_breakdown"][kind] for kind in unasked_after)
    answer, findings, *ok = ([], []) if failed else ask(e, *arguments)
    ok = not findings and all(ok) if answer else None
    return {"question": question, "ok": ok, "answer": answer, "findings": findings}


def checklist_lines(asked):
    """A question with its answer and its findings."""
    label, (first, *more) = paint("OK  ", "good") if asked["ok"] else paint("LOOK", "bad"), asked["answer"]
    yield f"{label}   {asked['question']:<38}{first}"
    yield from more
    for f in asked["findings"]:
        yield "         " + paint(f["said"], "bad" if f["severity"] < 3 else "strong")
        if f["line"]:
            yield f"           {f['file']}, line {f['line']}:  {f['source']}"
        yield f"           change: {f['change']}"


def draw_checklist(document, screen):
    """Print the page, answered, and at its end the findings again, worst first."""
    unasked, found = [], []
    for tier in document["tiers"]:
        lines = []
        for asked in tier["questions"]:
            found += asked["findings"]
            if asked["ok"] is None:
                unasked.append(asked["question"])
            else:
                lines += checklist_lines(asked)
        if lines:
            screen.panels((f"Tier {tier['tier']}: {tier['title']}", lines))
    if unasked:
        screen.panels(("Not measured, for want of predictions", [" ".join(unasked)]))
    screen.write(f"{len(found)} to look at, worst first:" if found else "Nothing to change.")
    for f in sorted(found, key=lambda f: (-f["share"], f["severity"])):
        where = f"{f['file']}, line {f['line']}" if f["line"] else ""
        said = textwrap.shorten(f["said"], 48, placeholder=" ...")
        screen.write(f"  LOOK   {said:<48} {where:<22}{f['share']:>4.0%} of the score")
    then = "follow the first `change:`, then " if found else ""
    screen.write(f"Next: {then}{PROGRAM} run {shlex.quote(document['estimator'])}")


# ======================================================================================
# Command line
#
# One function per sub-command, which finds something and has it shown. OPTIONS says once what each flag means; a
# command names the flags that it takes, and plac reads them as a function's signature. Way in: `main`.
# ======================================================================================


def between(least, most, kind):
    """An exact parser of numbers in that range, like 6.8e10, 2**41 or 68_000_000_000."""

    def number(text):
        base, _, exponent = text.replace("_", "").partition("**")
        if not least <= float(base) ** float(exponent or 1) <= most:
            raise ValueError
        value = Fraction(base) ** int(exponent or 1)
        if kind is int and value.denominator > 1:
            raise ValueError
        return kind(value)

    # "invalid ... value", says plac
    number.__name__ = "whole " * (kind is int) + f"number from {least:g} to {most:g}"
    return number


INTEGER = between(1, 1e15, int)
N_SAMPLES = between(1, 1e12, int)  # what a year allows
SECONDS = between(1e-6, 3e7, float)


def n_samples_or_auto(text):
    """A number of samples; None for auto."""
    return None if text == "auto" else N_SAMPLES(text)


n_samples_or_auto.__name__ = f"{N_SAMPLES.__name__}, or auto,"


def absolute(path):
    """The file that is meant, wherever an estimator may chdir to."""
    return path if path.startswith("hf://") else os.path.abspath(os.path.expanduser(path))


POSITIONAL = ("file", "expression", "arrays")  # the last takes any number
OPTIONS: dict[str, tuple] = {  # name: (default, help, type or None of a flag, choices or what stands for it)
    "file": (None, "estimator file", str, "FILE"),
    "expression": (None, "Python on fnp, flops, np and the arrays that are named", str, "EXPRESSION"),
    "arrays": ((), "float32 normals of that shape: w=100x100, or w=100x100:float64", str, "NAME=SHAPE"),
    "estimator": (None, "the same as the positional FILE", str, "FILE"),
    "class_": (None, "estimator class, where the file has several", str, "NAME"),
    "baseline": (None, "a baseline beside it", str, "|".join(BASELINES)),
    "round": (DEFAULT_ROUND, f"contest round whose rules apply [{DEFAULT_ROUND}]", str, "|".join(ROUNDS)),
    "width": (None, "neurons a layer [the round's]", INTEGER, "N"),
    "depth": (None, "layers [the round's]", INTEGER, "N"),
    "flop_budget": (None, "FLOP budget of one network [the round's]", INTEGER, "FLOPS"),
    "prices": (None, "price book [the round's]", str, "|".join(PRICES)),
    "lambda_flops_per_second": (
        None,
        "price of a second outside fnp [the round's]",
        between(0, 1e300, float),
        "RATE",
    ),
    "wall_time_limit": (None, "seconds for one predict() [the round's]", SECONDS, "SECONDS"),
    "residual_wall_time_limit": (None, "seconds of predict() outside fnp [the round's]", SECONDS, "SECONDS"),
    "no_residual_wall_time_limit": (False, "lift that gate", None, ""),
    "setup_timeout": (None, "seconds for loading and setup() [5]", SECONDS, "SECONDS"),
    "n_mlps": (
        None,
        "networks in the suite [10, or all of the dataset; checklist 3]",
        between(1, 1e6, int),
        "N",
    ),
    "n_samples": (None, "truth samples a network, or auto [auto]", n_samples_or_auto, "N"),
    "precision": (0.02, "of the score that auto aims at [0.02]", between(1e-6, 1, float), "SHARE"),
    "seed": (0, "of the suite's networks [0]", between(0, 2.0**127, int), "N"),
    "max_threads": (None, "threads of NumPy and of the truth [all cores]", INTEGER, "N"),
    "html": (None, "write the report as a page, too", absolute, "FILE"),
    "log": (None, "append a line of JSON about this run: what, when, and its score", absolute, "FILE"),
    "against": ((), "compare with a file or baseline, on the same networks; may be repeated", str, "RIVAL"),
    "runner": (
        "local",
        "local (or inprocess): here; subprocess (or server): isolated [local]",
        str,
        "local|inprocess|subprocess|server",
    ),
    "format": (None, "rich for terminals, plain for pipes, json", str, "rich|plain|json"),
    "json": (False, "the same as --format json", None, ""),
    "debug": (False, "tracebacks, and every network's numbers", None, ""),
    "detail": (None, "full: every network's numbers", str, "raw|full"),
    "show_diagnostic_plots": (False, "as always", None, ""),
    "profile": (False, "FLOPs by source line", None, ""),
    "fail_fast": (False, "stop at the first failure, with Python's own traceback", None, ""),
    "no_store": (False, "neither read nor write the store of truths", None, ""),
    "dataset": (
        None,
        "score on a suite.npz, a published dataset's folder, or hf://owner/name[@revision]",
        absolute,
        "PATH",
    ),
    "split": (None, "of a dataset that has several", str, "NAME"),
    "output": ("suite.npz", "the suite to write [suite.npz]", str, "FILE"),
    "dask": (None, "sample on the Dask cluster at this address", str, "ADDRESS"),
}
RULES = """round width depth flop_budget lambda_flops_per_second residual_wall_time_limit
    no_residual_wall_time_limit wall_time_limit prices setup_timeout"""
COMMANDS: dict[str, Any] = {}  # name: function (options, screen) that returns the exit status


def command(options):
    """Make the function below, without "_command", a sub-command that takes these options."""

    def register(function):
        function.options = options.split()
        COMMANDS[function.__name__.removesuffix("_command")] = function
        return function

    return register


def repeated():
    """The type of a flag that may be repeated: plac keeps its last value, which is the list of all."""
    given = []

    def add(text):
        given.append(text)
        return given

    return add


def parse(command, arguments):
    """All of OPTIONS: those that the sub-command takes as they are given, or the defaults. Raises Misuse."""
    import plac

    parameters = []
    for option in COMMANDS[command].options:
        default, text, kind, values = OPTIONS[option]
        style = "positional" if option in POSITIONAL else "option" if kind else "flag"
        # plac puts one dash before an option and makes others of underscores: _width is --width.
        name = "_" * (style != "positional") + option.rstrip("_")
        kind = repeated() if default == () and style == "option" else kind
        note = text, style, None, kind, values.split("|") if "|" in values else None, values
        parameter = inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=note)
        if option == "arrays":
            parameter = parameter.replace(kind=inspect.Parameter.VAR_POSITIONAL)
        else:
            parameter = parameter.replace(default=default)
        parameters.append(parameter)

    def takes():
        """What plac sees of a sub-command: a signature, and the help."""

    takes.__signature__ = inspect.Signature(parameters)
    takes.__doc__ = inspect.getdoc(COMMANDS[command])
    parser = plac.parser_from(takes, prog=f"{PROGRAM} {command}")
    parser.error = partial(refuse_arguments, parser.prog)
    given = vars(parser.parse_args(arguments))
    return types.SimpleNamespace(
        **{option: given.get(option.rstrip("_"), default) for option, (default, *_) in OPTIONS.items()}
    )


def did_you_mean(word, known):
    """What was probably meant, as a question, if anything was."""
    near = difflib.get_close_matches(word, known, 1)
    return f" Did you mean {near[0]}?" if near else ""


def refuse_arguments(program, message):
    """What plac's parsers do with bad arguments: one sentence instead of a page of usage."""
    flags = ["--" + option.rstrip("_").replace("_", "-") for option in OPTIONS]
    unknown = re.match(r"unrecognized arguments: (--\S+)", message)
    hint = did_you_mean(unknown[1], flags) if unknown else ""
    raise Misuse(f"{message[:1].upper()}{message[1:]}; `{program} --help` lists what it takes.{hint}")


def rules_of(options):
    """The round's rules with the command line's replacements."""
    rules = ROUNDS[options.round]
    given = {name: getattr(options, name, None) for name in vars(rules)}
    rules = replace(rules, **{name: value for name, value in given.items() if value is not None})
    if options.no_residual_wall_time_limit:
        rules = replace(rules, residual_wall_time_limit=None)
    gigabytes = rules.depth * rules.width**2 / 2**28
    if gigabytes > 32:
        raise Misuse(
            f"A network of width {rules.width:,} and depth {rules.depth:,} takes {gigabytes:,.0f} GB: "
            "choose smaller ones."
        )
    return rules


def estimator_path(options):
    """The one estimator file that was named, absolute. Raises Misuse."""
    if bool(options.file) == bool(options.estimator):
        raise Misuse(f"Name one estimator file: {PROGRAM} run estimator.py (or --estimator estimator.py).")
    if not hasattr(options, "path"):  # found once: later the estimator may have changed the folder
        options.path = absolute(options.file or options.estimator)
    return options.path


def runner_for(options, rules, rival=None):
    """The runner that the options ask for, of the estimator or a rival to it; not started yet."""
    path = rival or estimator_path(options)
    kind = LocalRunner if options.runner in ("local", "inprocess") else SubprocessRunner
    profile = Profile(Path(path).parent) if options.profile and not rival else None
    runner = kind(path, None if rival else options.class_, rules, options.seed, options.fail_fast, profile)
    runner.max_threads = options.max_threads
    return runner


@command(f"""file estimator class_ {RULES} n_mlps n_samples precision no_store dataset split seed max_threads
    runner against profile html log format json debug detail show_diagnostic_plots fail_fast""")
def run(options, screen):
    """Score an estimator on a suite of random networks, and say what to do next.

    Prints the report, or with --format json the document of `whest run`. Exit status 0 if scored, 1 if
    predict() raised or gave what is no prediction on any network, 2 for misuse.
    """
    started, rules, path = datetime.now(timezone.utc), rules_of(options), estimator_path(options)
    rivals = [None, *map(rival_path, options.against)]
    for output in filter(None, (options.html, options.log)):
        refuse_read_only(output)
    limit_threads(options.max_threads)
    networks, truths, about = networks_of(options, rules)
    first = next(iter(networks))
    rules = replace(rules, width=first.width, depth=first.depth)
    outcomes, classes = [], []
    for rival in rivals:
        with runner_for(options, rules, rival) as runner:
            outcomes.append(list(predicted(runner, networks, screen)))
            classes.append(runner.class_found)
    with LocalRunner("mean_propagation", None, rules, options.seed) as baseline:
        propagated = list(baseline.outcomes(networks))
    if not truths:
        store = None if options.no_store else TruthStore()
        progress = truth_progress(screen)
        truths = grow_truths(
            list(networks), outcomes, rules, options.n_samples, options.precision, store, progress
        )
    results, *others = (score_suite(networks, each, truths, rules, options.precision) for each in outcomes)
    results["standings"] = standings(results["per_mlp"], propagated, truths, rules)
    if options.profile:
        results["profile"] = {
            "flops_used": sum(outcome.flops_charged for outcome in outcomes[0]),
            "lines": lines_of(outcomes[0], str(Path(path).parent) + os.sep),
        }
    config = run_config(options, rules) | {"n_mlps": len(networks), "class": classes[0]} | about
    document = {
        "schema_version": "1.1",
        "mode": "agent",
        "results": results,
        "run_meta": run_meta(started),
        "run_config": config,
        "whestbench_version": __version__,
    }
    if options.against:
        document["against"] = []
        for rival, kind, theirs, scored in zip(options.against, classes[1:], outcomes[1:], others):
            difference = compare(outcomes[0], theirs, truths, rules)
            told = {"verdict": verdict(difference, config["estimator"], rival), "difference": difference}
            document["against"].append(told | {"estimator": rival, "class": kind, "results": scored})
    if options.log:
        log_run(options.log, path, document)
    report_run(document, screen, options.debug, options.detail == "full", options.html)
    n_errors = results["failure_breakdown"]["error"]
    if n_errors:
        complain(f"predict() failed on {n_errors} of {len(networks)} MLPs; the report says where and why.")
    return 1 if n_errors else 0


def run_config(options, rules):
    """What was asked for, under the names of the real document."""
    told = {name + "_s" * name.endswith(("limit", "timeout")): value for name, value in asdict(rules).items()}
    return told | {
        "seed": options.seed,
        "round": rules.tag,
        "estimator": options.file or options.estimator,
        "runner": options.runner,
    }


def log_run(log, path, document):
    """Append what one wants to remember of a run to a file, as a line of JSON."""
    results, host = document["results"], document["run_meta"]["host"]
    entry = {
        "when": document["run_meta"]["run_started_at_utc"],
        "sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest() if os.path.isfile(path) else None,
        **document["run_config"],
        **results["corrected"],
        "multiplier": results["mean_score_multiplier"],
        "failures": results["failure_breakdown"],
        "versions": {name: host[name] for name in host if name.endswith("_version")}
        | {"whestbench": __version__},
    }
    try:
        with open(log, "a", encoding="utf-8") as file:
            file.write(json.dumps(finite(entry)) + "\n")
    except OSError as exc:
        raise Misuse(f"--log {log}: {exc.strerror}; choose another place.") from exc


def rival_path(against):
    """A baseline's name, or the absolute path of a file. Raises Misuse."""
    if against in BASELINES:
        return against
    path = absolute(against)
    if not Path(path).is_file():
        raise Misuse(f"--against {against}: no such file, nor a baseline ({', '.join(BASELINES)}).")
    return path


def refuse_read_only(path):
    """Misuse where a file could not be written, before the work is done; a device is not to be replaced by one."""
    is_other = os.path.exists(path) and not os.path.isfile(path)
    if is_other or not os.access(Path(path).parent, os.W_OK):
        raise Misuse(f"{path} cannot be written: choose another place.")


def dataset_networks(*arguments):
    """The networks of a dataset alone."""
    return (mlp for mlp, _ in read_dataset(*arguments, with_truths=False))


def networks_of(options, rules):
    """The networks to score on; of a dataset also its truths, and what is to be told of it."""
    path, split = options.dataset, options.split
    if path is not None:
        about = describe_dataset(path, split)
        if not about["n_mlps"]:
            raise InvalidDatasetError(f"{path} has no networks.")
        n = min(options.n_mlps or about["n_mlps"], about["n_mlps"])
        truths = Networks(n, lambda: (truth for _, truth in read_dataset(path, split, n)))
        return Networks(n, dataset_networks, path, split, n), truths, {"dataset": about}
    n = options.n_mlps or 10
    networks = Networks(n, sample_suite, n, rules.width, rules.depth, options.seed)
    networks.kept = list(networks)
    return networks, None, {}


def predicted(runner, networks, screen):
    """The outcomes on a suite, with progress."""
    outcomes, n = iter(runner.outcomes(networks)), len(networks)
    for i in range(1, n + 1):
        screen.live(f"predict  MLP {i}/{n}")
        yield next(outcomes)
    next(outcomes, None)  # let a worker tear down


def truth_progress(screen):
    """What sampling shows: how far, how fast, how long still, and the score so far."""
    started, before = time.monotonic(), None

    def progress(done, todo, error=None):
        nonlocal before
        before = done if before is None else before
        rate = (done - before) / max(time.monotonic() - started, 1e-9)
        left = f", {(todo - done) / rate:.0f} s left" if rate else ""
        score = "  score {:.4g} to {:.4g}".format(*error.truth_interval) if error else ""
        screen.live(f"truth  {done:,} of {todo:,} samples, {rate:,.0f}/s{left}{score}")

    return progress


def run_meta(started):
    """When and where the run took place."""
    finished, system = datetime.now(timezone.utc), platform.uname()
    return {
        "run_started_at_utc": started.isoformat(),
        "run_finished_at_utc": finished.isoformat(),
        "run_duration_s": (finished - started).total_seconds(),
        "host": dict.fromkeys(("cpu_count_physical", "ram_total_bytes", "ram_available_bytes"))  # not known
        | {
            "hostname": system.node,
            "os": system.system,
            "os_release": system.release,
            "platform": platform.platform(),
            "machine": system.machine,
            "python_version": platform.python_version(),
            "numpy_version": np.__version__,
            "flopscope_version": flops.__version__,
            "cpu_brand": system.processor or "unknown",
            "cpu_count_logical": os.cpu_count(),
        },
    }


@command(f"file estimator class_ {RULES} seed max_threads runner format json debug")
def validate(options, screen):
    """Check the contract in seconds: class, setup, shape, finiteness, budget, determinism, the other book.

    Each check is a line with OK or what to do, on a tiny network and on the round's shape. Exit status 1 if
    one fails; a NOTE is no failure.
    """
    checks = list(validation_checks(options, rules_of(options)))
    ok, estimator = all(check["ok"] is not False for check in checks), options.file or options.estimator
    document = {"ok": ok, "checks": checks, "estimator": estimator, "whestbench_version": __version__}
    screen.show(document, draw_checks)
    return 0 if ok else 1


def validation_checks(options, rules):
    """The checks on a tiny network without a budget, the round's shape, and under the other book."""
    path, other = estimator_path(options), next(book for book in PRICES if book != rules.prices)
    budget = max(1, rules.flop_budget * 32 // (rules.depth * rules.width**2))
    tiny = replace(
        rules, width=4, depth=2, lambda_flops_per_second=0.0, flop_budget=budget, purse=DEFAULT_BUDGET
    )
    for trial in (tiny, rules, replace(tiny, prices=other)):
        where = f" [{trial.width}x{trial.depth}, prices {trial.prices}]"
        for name, ok, detail in contract_checks(options, trial):
            yield {
                "check": name,
                "ok": ok or None if trial.prices == other else ok,
                "detail": detail + where,
            }
    if foreign := ", ".join(foreign_imports(Path(path))):
        detail = f"{foreign}: the grader has the standard library, flopscope and whestbench alone"
        yield {"check": "imports", "ok": None, "detail": detail}


def foreign_imports(path):
    """Names of the packages that a file imports and the grader has not."""
    names = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    beside = {each.stem for each in path.parent.iterdir()}
    return sorted(names - beside - {*sys.stdlib_module_names, "flopscope", "whestbench"})


def contract_checks(options, rules):
    """(name, whether it is well or None, detail) of each check under these rules."""
    mlp, stdout, printed = build_mlp(rules.width, rules.depth, options.seed), sys.stdout, []

    def write(text):
        printed.append(text)
        return stdout.write(text)

    heard: Any = types.SimpleNamespace(write=write, flush=stdout.flush)
    with redirect_stdout(heard), runner_for(options, rules) as runner:
        first, second = runner.outcomes(Networks(2, repeat, mlp, 2))
    yield "class", True, f"{runner.class_found}, loaded, set up within {rules.setup_timeout:g} s"
    if failure := failure_of(first, rules):
        yield "predict", False, failure.text
        return
    detail = f"shape {(mlp.depth, mlp.width)}, finite, {readable(first.flops_used)} FLOPs"
    if not first.flops_used:
        detail += "; is it computed outside fnp?"
    if rules.purse is None:
        share = first.effective_compute(rules) / rules.flop_budget
        detail += f", {share:.2%} of the budget with the time outside fnp"
    yield "predict", True, detail
    if not second.failed and np.array_equal(first.prediction, second.prediction):
        yield "determinism", True, "two calls agree bit for bit"
    else:
        yield "determinism", None, "two calls on one network differ: seed your generator from mlp.seed"
    if printed and rules.purse is None:
        yield "stdout", None, "it prints; the grader's worker speaks on stdout: print to sys.stderr"


@command(
    f"file estimator class_ {RULES} n_mlps n_samples precision no_store seed max_threads format json debug"
)
def checklist(options, screen):
    """Answer the debugging page by measurement: each finding with its line, and with what to change.

    Runs the estimator on 3 networks, again with other seeds, and once under watch. Exit status 0 if nothing
    spoils the score, 1 if something does, 2 for misuse.
    """
    rules = rules_of(options)
    limit_threads(options.max_threads)
    use_prices(rules.prices)
    e = gather_evidence(options, rules, screen)
    tiers = [
        {"tier": i, "title": title, "questions": [answered(e, *each) for each in questions]}
        for i, (title, questions) in enumerate(QUESTIONS.items(), 1)
    ]
    ok = not any(
        f["severity"] == 1 for tier in tiers for asked in tier["questions"] for f in asked["findings"]
    )
    estimator = options.file or options.estimator
    document = {"ok": ok, "tiers": tiers, "estimator": estimator, "whestbench_version": __version__}
    screen.show(document, draw_checklist)
    return 0 if ok else 1


@command("format json expression arrays")
def price_command(options, screen: Screen) -> int:
    """What an expression costs in both books, operation by operation, and why: whest price "fnp.sort(x)" x=1000.

    Python evaluates it on arrays of the named shapes, under each book in turn. Exit status 1 if a book refuses it.
    """
    if not options.expression:
        raise Misuse(f'Name an expression: {PROGRAM} price "fnp.sort(x)" x=1000.')
    rng, names = np.random.default_rng(0), {"fnp": fnp, "flops": flops, "np": np}
    for text in options.arrays:
        name, _, form = text.partition("=")
        try:
            shape, _, dtype = form.partition(":")
            extents = [int(n) for n in shape.split("x") if n]
            names[name] = fnp.asarray(rng.standard_normal(extents).astype(dtype or np.float32))
        except (ValueError, TypeError, MemoryError) as exc:
            raise Misuse(f"{text} names no array ({exc}): write w=100x100, or w=100x100:float64.") from None
    document = {"expression": options.expression, "refused": {}}
    for book in PRICES:
        document[book] = []
        try:
            for operation, cost, says in explain(lambda: eval(options.expression, dict(names)), book):
                document[book].append({"operation": operation, "flops": cost, "says": says})
        except Exception as exc:
            document["refused"][book] = f"{type(exc).__name__}: {exc}"
    screen.show(document, draw_prices)
    return 1 if document["refused"] else 0


@command("file estimator class_ baseline width depth seed prices format json")
def loop_command(options, screen):
    """The direct loop, `python estimator.py`: one network, no runner, a prediction against ever more samples.

    Prints the table n_samples | sampling_flops | estimator_flops | MSE, and with --baseline NAME the same for
    a baseline beside it.
    """
    rules = rules_of(options)
    use_prices(rules.prices)
    mlp = build_mlp(rules.width, rules.depth, options.seed)
    estimators = {"Your estimator": load_estimator(estimator_path(options), options.class_)}
    if options.baseline:
        estimators[f"Baseline: {options.baseline}"] = Baseline(options.baseline)
    tables = dict(zip(estimators, convergence_tables(estimators.values(), mlp, rules.flop_budget)))
    screen.show({"width": mlp.width, "depth": mlp.depth, "seed": options.seed, "tables": tables}, draw_tables)
    return 0


@command(f"file output {RULES} n_mlps n_samples seed no_store dask max_threads format json debug")
def bake_command(options, screen):
    """Write a suite: networks with their truths, one portable file that `run --dataset` scores on.

    The store remembers the samples: baked anew with more of them, a suite goes on from there.
    """
    rules, output = rules_of(options), Path(options.file or options.output).absolute()
    if output.exists():
        raise Misuse(f"{output} exists: choose another name.")
    refuse_read_only(output)
    n_samples, store = options.n_samples or 2**20, None if options.no_store else TruthStore()
    executor = DaskExecutor(options.dask) if options.dask else None
    limit_threads(options.max_threads)
    mlps = list(sample_suite(options.n_mlps or 10, rules.width, rules.depth, options.seed))
    truths = []
    for mlp in mlps:  # one by one: what sampling a large network takes is let go before the next
        source = TruthSource(mlp.weights, store)
        truths += grow_together([source], n_samples, executor=executor, progress=truth_progress(screen))[0]
    told = {"seed": options.seed, "n_samples": n_samples, "width": rules.width, "depth": rules.depth}
    try:
        write_suite(output, mlps, truths, told)
    except Misuse as exc:
        kept = "the store has the samples: give another --output" if store else "the samples are lost"
        raise Misuse(f"{exc}; {kept}.") from exc
    noise = math.sqrt(np.mean([(truth.standard_error[-1] ** 2).mean() for truth in truths]))
    screen.show(
        told | {"path": str(output), "n_mlps": len(mlps), "final_layer_standard_error": noise}, draw_suite
    )
    return 0


# ---- the way in -------------------------------------------------------------------------------------------


def versions():
    """What --version prints."""
    from importlib.metadata import version

    others = ", ".join(f"{title} {version(title.lower())}" for title in ("NumPy", "numba", "plac"))
    return f"whestbench {__version__}, Python {platform.python_version()}, {others}"


def overview():
    """What --help prints."""
    listed = (f"  {each:<12}{function.__doc__.splitlines()[0]}" for each, function in COMMANDS.items())
    return "\n".join([(__doc__ or "").partition("The rooms below")[0].rstrip(), "", "Commands:", *listed])


def complain(said):
    """One sentence on stderr."""
    print(f"whest: {said}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    """Run one sub-command; returns the exit status. This is the console script `whest`."""
    arguments = sys.argv[1:] if arguments is None else [str(a) for a in arguments]
    name, *rest = arguments or [""]
    for ignored in {"FLOPSCOPE_DEFAULT_BUDGET", "FLOPSCOPE_DISABLE_WEIGHTS"} & os.environ.keys():
        complain(f"{ignored} has no effect here: prices and budget are the round's.")
    if sys.stdout is None:
        complain("standard output is closed.")
        return 1
    try:
        if name in ("--version", "-h", "--help"):
            print(versions() if name == "--version" else overview(), flush=True)
            return 0
        if name not in COMMANDS:
            known = f"{', '.join(COMMANDS)}. `{PROGRAM} COMMAND --help` explains each."
            raise Misuse(f"Name a command: {known}{did_you_mean(name, COMMANDS)}")
        if _default_book not in PRICES:
            raise Misuse(f"WHESTBENCH_PRICES must be {' or '.join(PRICES)}, not {_default_book!r}.")
        options = parse(name, rest)
        with Screen("json" if options.json else options.format) as screen, debuggable(screen):
            return COMMANDS[name](options, screen)
    except WhestError as exc:
        if "--debug" in arguments:
            traceback.print_exc()
        if "--json" in arguments or "json" in arguments:
            error = {"stage": exc.stage, "code": exc.code, "message": str(exc)}
            print(json.dumps({"ok": False, "error": error, "whestbench_version": __version__}, indent=2))
        complain(exc)
        return exc.exit_status
    except KeyboardInterrupt as exc:
        kept = getattr(exc, "kept", 0)
        said = (
            f"{kept:,} samples are kept: the same command goes on from there."
            if kept
            else "no samples are kept."
        )
        complain(f"interrupted; {said}")
        return 130
    except OSError as exc:  # of standard output; files have sentences of their own
        if exc.errno not in (errno.EPIPE, errno.ENOSPC):
            raise
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, for the rest of this process
        if exc.errno == errno.EPIPE:
            return 128 + signal.SIGPIPE
        complain(f"standard output cannot be written: {exc.strerror}.")
        return 1


def find_spec(name, *_):
    """Asked last for an import: where a starter kit has no `local_engine` of its own, this module is it."""
    if name.startswith(f"{__name__}."):
        raise ModuleNotFoundError(
            f"{name} is not in this kit: whestbench itself has load_estimator, read_dataset, "
            "score_suite, LocalRunner and BudgetContext",
            name=name,
        )
    return importlib.util.spec_from_loader(name, _local_engine) if name == "local_engine" else None


_local_engine: Any = types.SimpleNamespace(
    find_spec=find_spec, create_module=lambda spec: sys.modules[__name__], exec_module=lambda module: None
)


def claim_names():
    """Let the imports of a contest submission reach this module, whatever is installed beside it."""
    install()
    here = sys.modules[__name__]
    here.__path__ = []  # so that what is not here is refused by name
    for name in ("domain", "sdk", "generation", "simulation"):
        sys.modules[f"{__name__}.{name}"] = here
        setattr(here, name, here)
    sys.meta_path.append(_local_engine)


claim_names()
if _RUN_AS_SCRIPT:
    sys.exit(main())
