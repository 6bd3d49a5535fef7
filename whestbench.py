# /// script
# requires-python = ">=3.10"
# dependencies = ["numba", "numpy", "plac"]
# ///
# SPDX-License-Identifier: MIT
"""Score white-box estimators of random ReLU networks: an exact FLOP bill, an honest truth, an error bar.

Copy this one file beside your `estimator.py` and run `python whestbench.py run estimator.py`. An estimator
sees the weights of a network and a FLOP budget and predicts the mean activation of every neuron; the score is
its final-layer squared error against a Monte Carlo truth, times the share of the budget that it spent.
The rooms below follow the data: rounds, prices, budget, fnp, contract, engine, truth, baselines, scoring,
runners, reports, checklist, command line. Each uses only the rooms above it.
"""
from __future__ import annotations

import abc
import ast
import bisect
import builtins
import concurrent.futures
import contextlib
import copy
import difflib
import faulthandler
import functools
import hashlib
import html
import importlib.util
import inspect
import itertools
import json
import linecache
import math
import operator
import os
import platform
import queue
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import traceback
import types
import warnings
import weakref
from collections import Counter, defaultdict, deque, namedtuple
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
import typing
from typing import Any, Callable, Iterable, Iterator

if __name__ == "__main__" and (
        _missing := [name for name in ("numba", "numpy", "plac") if not importlib.util.find_spec(name)]):
    sys.exit(f"whest: {', '.join(_missing)} not found: pip install numba numpy plac, or use uv run whestbench.py")

import numpy as np

__version__ = "1.0.0"

# Run as a script, this module is still `whestbench`: one copy of every class, whoever imports it.
_RUN_AS_SCRIPT = __name__ == "__main__"
if _RUN_AS_SCRIPT:
    __name__ = "whestbench"
    sys.modules["whestbench"] = sys.modules["__main__"]


# ======================================================================================
# Rounds
#
# What a contest round fixes: the shape of its networks, its budget, its time rules and its
# price book. One row each; the command line's flags replace single cells of a row.
# ======================================================================================


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


ROUNDS = {r.tag: r for r in (
    #     tag          width depth flop_budget      lambda residual wall   prices
    Round("v1-warmup",   256,    8,  68_000_000_000, 1e11,    None,  60.0, "0.7"),
    Round("v1-phase1",   256,   32, 272_000_000_000, 1e11,    None,  60.0, "0.12"),
    Round("v2-phase2",  1024,   16,           2**41,  0.0,     0.4, 120.0, "0.12"),
)}
DEFAULT_ROUND = "v1-warmup"
MULTIPLIER_FLOOR = 0.1      # the least share of the budget that a score is multiplied with


# ======================================================================================
# Prices
#
# What every operation costs, in both price books: one table, then the rules that need more than a line.
#
#     FLOPs = int(units * rate of the dtype * complex factor * weight)           book 0.12
#     FLOPs = int(units * weight)                                                 book 0.7
#
# Source: the observed charges of flopscope 0.7.0 and 0.12.4; the tests compare them with these, call by call.
# ======================================================================================

# A row: names | units in 0.12 | units in 0.7 | weight | dtype whose rate is charged | complex factor | notes
#
# Left out, a cell is what the [section] says, or else: units as in 0.12, weight 1, the dtype of the first
# operand, factor 2. `a/b` weighs a in 0.12 and b in 0.7; {a; b} is a for the first name and b for the second.
# Cells are Python. They know the arguments by NumPy's names (or the row's own), the QUANTITIES
# below and the functions of this room. `free` is 0 and not even logged; `-`: no price, no dtype, or no sense
# for complex numbers. What looks at the result (O, made) is charged after the work, as is a row that notes
# `after`. `value`: depends on elements of an argument; `twins`: on which operands are one object. Results are
# counted arrays, even single numbers unless `scalars` stay; `plain`: never, `alike`: if operands are. Such a
# note may name its book.
PRICE_TABLE = """
[] pointwise: N elements, at least 1 | N | N | dtype loop
negative positive rint conj conjugate logical_not
abs absolute square reciprocal sign sqrt | complex {4; 4; 5; 6; 7; 10}
degrees radians deg2rad rad2deg signbit fabs ceil floor trunc spacing invert bitwise_not bitwise_invert
  bitwise_count | complex -
log log2 log10 log1p | weight 16 | complex {2.25; 2.3; 2.3; 2.3}
exp exp2 expm1 | weight 16 | complex 3.1
sin cos sinh cosh tanh | weight 16 | complex 3.4
arcsin arccos arctan arcsinh arccosh arctanh | weight 16 | complex 3.5
asin acos atan asinh acosh atanh | weight 16/1 | complex 3.5
tan cbrt | weight 16 | complex {3.6; -}
isnan isfinite isinf | size | size | notes plain
modf frexp | 2 * N | complex -
round around nan_to_num isreal iscomplex real_if_close | dtype with_out(kwargs, main)
fix isneginf isposinf | dtype with_out(kwargs, {main; sized; sized}) | complex -
angle | weight 16 | dtype f8 if main.kind == "b" else sized
sinc i0 | weight 16 | dtype inexact(main) | complex {14.5; -}
real imag | 0 | dtype main
iscomplexobj isrealobj | free | dtype main

[] pointwise: B elements of the operands together, at least 1 | B | B | dtype loop
add subtract maximum minimum fmax fmin equal not_equal less less_equal greater greater_equal logical_and
  logical_or logical_xor
multiply divide true_divide | complex {6; 11; 11}
copysign nextafter ldexp heaviside bitwise_and bitwise_or bitwise_xor bitwise_left_shift bitwise_right_shift
  left_shift right_shift | complex -
power float_power | weight 16 | complex 5.5
pow atan2 | weight 16/1 | complex {5.5; -}
floor_divide mod remainder fmod logaddexp logaddexp2 arctan2 hypot gcd lcm | weight 16 | complex -
divmod(x1, x2, out=None) | 2 * B | weight 16/1 | dtype weak(*two) | complex -
clip | max1(len(bounds)) * max1(elements(a, *bounds)) | N | dtype weak(a, *bounds, out)
isclose allclose | {6 * B; max1(7 * elements(a, b) - 1)}
  | dtype inexact({weak(a, b, rtol, atol); join(*args)})

[] reductions: adds additions (R: at least 1), V results of `each` elements | R | R
sum nansum cumsum nancumsum cumulative_sum | R + {0; seek; 0; seek; 0} | dtype summed
prod nanprod cumprod nancumprod cumulative_prod | R + {0; seek; 0; seek; 0} | dtype summed | complex 6
max min amax amin all any argmax argmin nanmax nanmin | dtype reduced
nanargmax nanargmin | R + seek | dtype reduced
count_nonzero ptp | {N; 2 * R + V} | dtype reduced
mean nanmean | adds + V + {0; seek} | {size and adds + V; R} | dtype averaged
var std nanvar nanstd | 2 * (N + adds + V) + {0; V; seek; V + seek} | weight 1/2 | dtype averaged
  | complex 2.5
average | R + V + (0 if weights is None else N + R)
  | dtype averaged if weights is None else join(averaged, weights) | complex 4
median nanmedian | {V * each; max1(V * each + N)} | {V * each; R} | dtype averaged
percentile quantile | quantiles | V * each | dtype weak({inexact(main); main}, q) | complex -
nanpercentile nanquantile | quantiles + max1(size) | - | dtype weak({inexact(main); main}, q) | complex -
trace | size // (shape[axis1] * shape[axis2] or 1) * max1(diagonal(a, offset, axis1, axis2))
  | max1(min(shape[axis1], shape[axis2])) | dtype summed | notes scalars

[] contractions | dtype with_out(kwargs, join(*(args[1:] if name == "einsum" else two)))
  | complex complex_products | notes twins
einsum | contracted[0]
outer tensordot | contracted[0] | notes twins plain0.7
matmul dot inner vecdot matvec vecmat | contracted[0] | notes twins alike0.7
vdot | contracted[0] | notes twins scalars
einsum_path | 1 | dtype - | notes -

[] creation, copies and views: O elements of the result | dtype made
array full_like | max1(size)
full fromstring block choose | O | weight {1; 1; 1; 4}
bmat fromiter fromfile fromregex | O | weight {1/4; 1/16; 1; 1}
ones ones_like tri | O | free
zeros zeros_like empty empty_like | 0 | free | dtype -
identity eye | {n; diagonal(result, k)} | free
arange linspace | 2 * {O; (O - retstep)} | {O; max1(num)} | notes scalars
logspace geomspace | O | max1(num) | weight 16/1 | complex 5.5
indices | O | 1 if sparse else O
vander | max1(O - 2 * size) | max1(O - size) | dtype join(x, i8) | complex 6
meshgrid | max1((sum(map(count, args)) if sparse else grids) if copy else 1) | max1(grids) | dtype join(*args)
diag | size if len(shape) == 1 else 0 | (size + abs(k))**2 if len(shape) == 1 else min(shape) | weight 1/4
  | dtype main
diagflat | size | O | dtype main | notes after
ix_ | O + masked(args) | O | dtype join(*result)
tril_indices triu_indices diag_indices tril_indices_from triu_indices_from diag_indices_from unravel_index
  ravel_multi_index | max1(O) | free | dtype - | notes scalars
mask_indices | n * n | O | weight 1/4 | dtype i8
broadcast_shapes | max1(count(*args)) | free | dtype -
base_repr binary_repr | max1(len(result)) | dtype -
copy reshape ravel require | max1(size) | {free; free; 0; free} | dtype {main; main; main; asked}
astype | size if copy or main != asked else 0 | free | dtype heavier(main, asked)
asarray | 0 if np.shares_memory(first, result) else O | 0 | dtype heavier(main, made) | notes value
asarray_chkfinite | size | dtype main | notes after
array_split split vsplit dsplit broadcast_arrays broadcast_to rollaxis from_dlpack frombuffer | 0 | dtype -
atleast_1d atleast_2d atleast_3d expand_dims squeeze flip fliplr flipud rot90 hsplit moveaxis swapaxes
  transpose | 0 | free | dtype -
matrix_transpose permute_dims linalg.matrix_transpose | free | dtype main
diagonal | 0 | max1(diagonal(first, offset, axis1, axis2)) | dtype main
unstack | 0 | size | dtype main | notes scalars
getitem(a, keys) | masked(keys) + 4 * O | - | dtype main | notes value

[] joining, comparing, choosing, writing
array_equal array_equiv | max1({max(map(count, two)); equated}) | dtype pair
concatenate stack vstack | max1(count(*first)) | dtype items
hstack column_stack row_stack | max1(count(*first)) | free | dtype items
concat dstack | O | dtype items
append | max1(count(arr, values)) | count(values) | dtype pair
insert | O | count(values) | weight 1/4 | dtype weak(arr, values)
delete trim_zeros | {O; size} | size - O | weight {1; 1/4}
tile repeat resize | {max1(O); max1(O); O}
roll | max1(O) | free
pad | padding | O | notes value
tril triu | max1({below(result, k); O - below(result, k - 1)}) | free
where(condition, x=None, y=None) | max1(spread(condition, x, y)) | size | weight 4 | dtype weak(x, y)
select | O * len(condlist) | max(map(count, choicelist)) | weight 1/4 | dtype weak(join(*choicelist), default)
take take_along_axis | O | weight {4; 4/1} | notes scalars
compress | size + 4 * O | O | weight 1/4 | dtype join(a)
nonzero flatnonzero argwhere extract | size | weight {1; 1; 1/4; 1/4} | dtype {main; main; main; join(arr)}
place putmask put put_along_axis | {size; size; count(ind); placed} | size | weight {1/4; 1/4; 1; 1}
copyto(dst, src, casting=None, where=True) | copied(size, where, shape) | copied(count(src), where)
  | dtype pair | notes value
fill_diagonal | filled | min(shape[:2]) | weight 1/4

[] sorting and searching | weight 4/1 | notes scalars
sort argsort unique | sorting(first, axis) | {sorting(a, axis); sorting(a, axis); sorting(ar)}
unique_all unique_counts unique_inverse unique_values | sorting(x)
sort_complex | sorting(a, -1) | size * lg(size) | weight 1
  | dtype join(main, c8 if main.char in "bhBHFD" else c16) | notes plain0.7
partition argpartition | max1(size * count(kth))
lexsort(keys, axis=-1) | sum(map(sorting, keys, [axis] * len(keys))) | len(keys) * max1(depth * lg(depth))
  | dtype items
searchsorted digitize | max1(count({v; x})) * lg(count({a; bins})) | dtype pair | complex {2; -}
bincount(x, weights=None, minlength=0) | max1(size) | dtype join(x, i8) | complex -
union1d setdiff1d setxor1d | together(*two) | dtype pair
intersect1d | together(*two) if assume_unique else sorting(ar1) + sorting(ar2) + together(*two, least=1)
  | together(*two) | dtype pair
isin | membership | together(*two) | weight 1 | dtype pair

[] 1-D numerics | notes plain0.7 scalars
diff | differences(a, n, axis, prepend, append) | differences(a, n, axis) | dtype join(a, prepend, append)
ediff1d | max1(size - 1 + count(*[end for end in (to_end, to_begin) if end is not None]))
gradient | slopes | dtype inexact(main) | notes value plain0.7
trapezoid | 4 * (size if x is None or len(shape_of(x)) == 1 else spread(y, x)) | size | dtype weak(y, x, dx)
interp | interpolation | max1(size) * lg(count(xp)) | dtype join(fp, f8) | complex 3
unwrap | max1(13 * size) | max1(7 * size) | dtype averaged | complex - | notes -
cov corrcoef | max1(2 * f * f * s + 2 * f * s) + {0; 2 * f * f + f} | max1(2 * f * f * s)
  | dtype join(first, y, f8) | complex 4
convolve correlate | {max1(sliding - (mode == "full")); sliding} | max1(2 * size * count(v) - size - count(v))
  | dtype pair | complex 4
cross | max1(3 * O) | max1(5 * size) | dtype pair | complex 4.7
linalg.cross | 3 * spread(*two) | 5 * spread(*two) | dtype pair | complex 4.7 | notes alike0.7
kron | max1(size * count(b)) | dtype pair | complex 6

[linalg.] a batch of m x n matrices, r the lesser of m and n | weight 1/4 | dtype lapack(first) | complex 4
  | notes alike0.7 scalars
cholesky eig eigvals eigh eigvalsh | batch * max1({n**3 // 3; 25 * n**3; 10 * n**3; 9 * n**3; 4 * n**3 // 3})
  | batch * max1(n**3)
inv | batch * max1(n**3 + (n**3 // 3 if group else n**3)) | batch * max1(n**3 + (n**3 // 3 if group else 0))
det slogdet | batch * max1(2 * n**3 // 3 + {1; 18} * n) | batch * max1(n**3)
solve | solved | batch * max1(n**3) | dtype lapack(a, b)
svd(a, full_matrices=True, compute_uv=True, hermitian=False, k=None) svdvals(x, k=None)
  | batch * max1(svd(m, n, {full_matrices, compute_uv; False, False}, k)) | batch * max1(m * n * (k or r))
qr | batch * max1((2 * m * n * r - 2 * r**3 // 3) * (1 if mode in ("r", "raw") else 2))
  | batch * max1(m * n * r)
lstsq pinv | batch * max1(svd(m, n) + {fitted; inverted}) | batch * max1(m * n * r + {fitted; inverted})
  | dtype {lapack(a, b); lapack(a)}
cond | batch * max1(svd(m, n, False, False) + 1 if p in (None, 2, -2) else 2 * r**3 + 4 * m * n + 1)
  | batch * max1(m * n * r if p in (None, 2, -2) else r**3 + m * n)
matrix_rank | ranked | batch * max1(m * n * r) if len(shape) > 1 else max1(size)
tensorsolve | max1(2 * count(b)**3 // 3 + 2 * count(b)**2) | math.prod(shape[2:])**3 | dtype lapack(a, b)
tensorinv | 2 * math.prod(shape[:ind])**3 | math.prod(shape[:ind])**3 | dtype lapack(a)
norm | measured(x, ord, axis, 2, book) | weight 1 | dtype lapack(x)
vector_norm matrix_norm | measured(x, ord, {axis, None; (-2, -1), 2}, book) | weight 1 | dtype lapack(x)
multi_dot | chained | weight 1 | dtype items | notes alike scalars
matrix_power | batch * squarings(n) * (2 * m**3 - m * m) | weight 1 | dtype lapack(a) if n < 0 else main
trace | size // (m * n or 1) * max1(diagonal(x, offset, -2, -1)) | max1(diagonal(x, offset, -2, -1))
  | weight 1 | dtype summed | complex 2
diagonal(x, offset=0) | 0 | max1(diagonal(x, offset, -2, -1)) | weight 1 | dtype main | complex 2 | notes -

[fft.] to T points, or `back` from half a spectrum | dtype with_out(kwargs, c8 if main.char in "efF" else c16)
  | complex 1
fft ifft | lines * fourier(T) | lines * 5 * T * levels(T)
rfft ihfft | lines * fourier(T, True) | lines * 5 * {(T // 2); T} * levels(T)
irfft hfft | lines * fourier(back, True) | lines * 5 * {(back // 2); back} * levels(back)
fft2 ifft2 fftn ifftn | staged(a, s, axes) | at_once(a, s, axes)
rfft2 rfftn | staged(a, s, axes, "forth") | at_once(a, s, axes, "forth")
irfft2 irfftn | staged(a, s, axes, "back") | at_once(a, s, axes, "back")
fftfreq rfftfreq | max1(O) | free | dtype made | notes plain0.7
fftshift ifftshift | N | free | dtype main | complex 2 | notes plain0.7

[random.] | max1(O) | dtype made | notes scalars
rand random random_integers random_sample ranf sample randint integers tomaxint
uniform | 3 * max1(O) | max1(O)
bytes | max1(len(result)) | dtype -
beta binomial chisquare dirichlet exponential f gamma geometric gumbel hypergeometric laplace logistic
  lognormal logseries multinomial negative_binomial noncentral_chisquare noncentral_f normal pareto poisson
  power randn rayleigh standard_cauchy standard_exponential standard_gamma standard_normal standard_t
  triangular vonmises wald weibull zipf | weight 16
multivariate_normal | 26 * count(mean)**3 + 2 * O * count(mean) + 16 * O | max1(O) | weight 1/16
multivariate_hypergeometric(colors, nsample, size=None, method="marginals") | coloured | max1(O) | weight 16
  | notes value after scalars
permuted permutation(x, axis=0) shuffle(x, axis=0) | {max1(size); max1(pool(x, axis)); max1(pool(x, axis))}
  | weight 4/1 | dtype - | notes after scalars
choice(a, size=None, replace=True, p=None, axis=0, shuffle=True) | chosen
  | max1(O if replace else pool(a) * lg(pool(a))) | weight 4/1 | dtype - | notes after scalars

[stats.] every: elements of all the arguments together |  | max1(size) | weight 1/16 | dtype f8
norm.pdf norm.cdf norm.ppf | {27; 48; 83} * every
uniform.pdf uniform.cdf uniform.ppf | {1; 4; 1} * every | weight 1
expon.pdf expon.cdf expon.ppf | {22; 22; 27} * every
cauchy.pdf cauchy.cdf cauchy.ppf | {6; 20; 28} * every | weight {1/4; 1/16; 1/16}
logistic.pdf logistic.cdf logistic.ppf | {23; 21; 28} * every
laplace.pdf laplace.cdf laplace.ppf | {22; 40; 51} * every
lognorm.pdf lognorm.cdf lognorm.ppf | {62; 70; 106} * every
truncnorm.pdf truncnorm.cdf truncnorm.ppf | {28; 51; 81} * every

[.] methods of ufuncs, with the weight (in 0.7 it is 1) and the complex factor of the ufunc | dtype folded
reduce(a, axis=0) accumulate(a, axis=0) | R
outer(a, b) | max1(elements(a) * elements(b)) | dtype looped(ufunc, a, b)
reduceat(a, indices, axis=0) | segments | max1(size) | notes value
at(a, indices, b=None) | touched(a, indices) | max1(indices.size if isinstance(indices, np.ndarray) else size)
  | dtype looped(ufunc, a, b) | notes value
"""


class FlopscopeError(Exception):
    """Base of the errors that the counter raises."""


class UnsupportedFunctionError(FlopscopeError):
    """The operation has no price here, so it must not run."""


class UnsupportedDtypeError(FlopscopeError, TypeError):
    """Book 0.12 bills numbers only: bool, integer, float, complex."""


# ---- shapes and dtypes -----------------------------------------------------------------------------------

_SCALARS = {int, float, complex, bool}
f8, i8, c8, c16 = map(np.dtype, ("f8", "i8", "c8", "c16"))
free = 0


def shape_of(a):
    """Shape of an array, a scalar or a nested list."""
    try:
        return a.shape
    except AttributeError:
        return () if type(a) in _SCALARS else np.asarray(a).shape


def dtype_of(a):
    """Dtype of an array, a scalar or a nested list; of a dtype, itself."""
    try:
        return a.dtype
    except AttributeError:
        return a if isinstance(a, np.dtype) else np.asarray(a).dtype


def axes_of(shape, axis):
    """The axes that `axis` (None, a number or several) names, as a tuple of non-negative numbers."""
    axes = range(len(shape)) if axis is None else (axis,) if isinstance(axis, (int, np.integer)) else axis
    return tuple([i + len(shape) if i < 0 else i for i in axes])


def count(*arrays):
    """Elements of all the arrays together."""
    return sum([math.prod(shape_of(a)) for a in arrays])


def spread(*arrays):
    """Elements that the arrays broadcast to."""
    return math.prod(np.broadcast_shapes(*map(shape_of, arrays)))


def elements(*arrays):
    """The same; if all are symmetric tensors, only those that differ."""
    shapes, groups = [shape_of(a) for a in arrays], [getattr(a, "_group", None) for a in arrays]
    shape = np.broadcast_shapes(*shapes)
    return orbits(binary(groups, shapes, shape), shape) if any(groups) else math.prod(shape)


def max1(n):
    """n, but at least 1."""
    return n if n > 1 else 1


def levels(n):
    """log2, rounded up."""
    return (n - 1).bit_length() if n > 1 else 0


def lg(n):
    """Steps of a binary search, levels of a merge sort."""
    return max1(levels(n))


@functools.cache
def rate_of(dtype):
    """Cost of an element operation: 1 up to 32 bits (per component), 2 up to 64, 3 and 4 beyond."""
    if dtype.kind not in "biufc":
        raise UnsupportedDtypeError(f"{dtype!r} is not billable: only bool, integer, float and complex are")
    return min(max1(-(-dtype.itemsize * (4 if dtype.kind == "c" else 8) // 32)), 4)


def heavier(a, b):
    """Of two dtypes the one with the higher rate; the first if equal."""
    return b if rate_of(b) > rate_of(a) else a


def kind_of(a):
    """What promotion sees: the dtype, or the Python type of a bare int, float or complex."""
    return type(a) if type(a) in (int, float, complex) else dtype_of(a)


def weak(*operands):
    """result_type with weak Python scalars, as ufuncs promote."""
    kinds = [kind_of(a) for a in operands if a is not None]
    return np.result_type(*[kind(0) if isinstance(kind, type) else kind for kind in kinds])


def join(*operands):
    """result_type with Python scalars as the arrays that they would become."""
    return np.result_type(*[dtype_of(a) for a in operands if a is not None and a is not np._NoValue])


def inexact(dtype, least=f8):
    """Floats and complex stay; integers and bools become float64."""
    return dtype if dtype.kind in "fc" else least


def lapack(*operands):
    """Linear algebra is done in double precision as soon as one operand is an integer."""
    return join(*operands, *[inexact(dtype_of(a)) for a in operands])


@functools.cache
def loop_dtype(ufunc, inputs, dtype=None):
    """(heaviest dtype, whether complex) of the loop that NumPy picks for dtypes or weak Python types."""
    if all(isinstance(t, type) for t in inputs):
        inputs = tuple(map(np.dtype, inputs))
    fixed = {} if dtype is None else dict(
        signature=(None,) * ufunc.nin + (dtype,) * ufunc.nout, casting="unsafe")
    loop = ufunc.resolve_dtypes(inputs + (None,) * ufunc.nout, **fixed)
    heavy = loop
    if dtype is None:
        inputs = inputs[:1] if ufunc is np.ldexp else inputs                # its exponent only steers
        promoted = np.result_type(*[t(0) if isinstance(t, type) else t for t in inputs])
        heavy = [*loop[:len(inputs)], *(loop[ufunc.nin:] if ufunc.nout == 1 else ()), promoted]
    return functools.reduce(heavier, heavy), any(t.kind == "c" for t in loop)


# ---- quantities ------------------------------------------------------------------------------------------
#
# What cells may use besides arguments, computed when asked for; `first` is the first argument. Some are cells
# themselves, some functions of the arguments and quantities that their parameters name (`call` is all).

QUANTITIES = dict(line.split(" = ") for line in """\
two = [*args, *kwargs.values()][:2]
shape = shape_of(first)
size = count(first)
N = max1(elements(first))
B = max1(elements(*two))
group = getattr(first, "_group", None)
axes = axes_of(shape, axis)
adds = reduction[0]
R = max1(adds)
V = reduction[1]
each = math.prod(map(shape.__getitem__, axes))
seek = N if main.kind in "fc" else 0
m = shape[-2]
n = shape[-1]
r = min(m, n)
batch = math.prod(shape[:-2]) if m * n else 0
lines = size // shape[axis] if shape[axis] else 1
T = shape[axis] if n is None else n
back = 2 * (shape[axis] - 1) if n is None else n
f = samples[0]
s = samples[1]
depth = shape_of(keys[0])[axis]
bounds = [b for b in (a_min, a_max, min, max) if b is not None and b is not np._NoValue]
every = max1(spread(*args, *kwargs.values()))
grids = math.prod(map(count, args)) * len(args)
inverted = r + n * r + product(n, r, m)
ufunc = getattr(np, name.partition(".")[0])
main = dtype_of(first)
made = dtype_of(result[0] if isinstance(result, tuple) and result else result)
asked = main if dtype is None else np.dtype(dtype)
pair = join(*two)
items = with_out(kwargs, join(*first))
sized = inexact(main, np.result_type(main, np.float16))
summed = of_reduction(call, main, added(main))
reduced = of_reduction(call, main, main)
averaged = of_reduction(call, main, inexact(main))
contracted = product_of(name, args, kwargs, book)[:2]
""".splitlines())


def quantity(formula):
    """Add the function below to QUANTITIES, under its own name."""
    QUANTITIES[formula.__name__] = formula


@quantity
def O(result):
    """Elements of the result, or of all its arrays."""
    return count(*result) if isinstance(result, (tuple, list)) else count(result)


def added(dtype):
    """What NumPy adds up in: no integers below 64 bits."""
    return dtype if dtype.kind not in "biu" else np.zeros(0, dtype).sum().dtype


def with_out(kwargs, dtype):
    """The dtype joined with that of out=, if given."""
    out = kwargs.get("out")
    return dtype if out is None else np.result_type(dtype, (out[0] if isinstance(out, tuple) else out).dtype)


def of_reduction(call, main, default):
    """dtype= alone if given, else the heaviest of out=, the default and the input."""
    if call.get("dtype") is not None:
        return np.dtype(call["dtype"])
    out = call.get("out")
    dtype = heavier(default if out is None else heavier(out.dtype, default), main)
    return np.result_type(dtype, main) if main.kind == "c" else dtype


@quantity
def reduction(shape, size, group, axes, book):
    """(additions, results): dense, elements less results; of a symmetric tensor, orbits of both."""
    kept = [i for i in range(len(shape)) if i not in axes]
    extents = tuple([shape[i] for i in kept])
    if group:
        return summing(shape, axes, group, book), orbits(stabiliser(group, kept), extents)
    return size - math.prod(extents) if size else 0, math.prod(extents)


@quantity
def loop(call, ufunc, args, kwargs):
    """dtype of a ufunc's loop, or of out= if that is heavier."""
    asked, outs = kwargs.get("dtype"), kwargs.get("out", args[ufunc.nin:])
    dtype, is_complex = loop_dtype(ufunc, tuple(map(kind_of, args[:ufunc.nin])), asked and np.dtype(asked))
    call["factor"] = None if is_complex else 1
    for out in outs if isinstance(outs, tuple) else (outs,):
        if out is not None:
            dtype = heavier(dtype, np.result_type(dtype, out.dtype))
            if out.dtype.kind == "c" and not is_complex:
                call["factor"] = None if ufunc.nin == 1 else 2
    return dtype


def looped(ufunc, *operands):
    """The same for ufunc.outer and ufunc.at."""
    return loop_dtype(ufunc, tuple(map(kind_of, operands[:ufunc.nin])))[0]


@quantity
def folded(ufunc, main):
    """The same for ufunc.reduce, accumulate and reduceat."""
    return looped(ufunc, *[added(main) if ufunc in (np.add, np.multiply) else main] * 2)


@quantity
def complex_products(contracted, name, args):
    """A complex multiplication is 6 operations, an addition 2."""
    units, products = contracted
    if units < products or products == 0 and name == "einsum" and len(args) > 3:
        return 6
    return (6 * products + 2 * (units - products)) / units if units else 1


@quantity
def equated(two):
    """array_equiv: broadcast if possible."""
    try:
        return elements(*two)
    except ValueError:
        return max(map(count, two))


@quantity
def quantiles(V, each, q, weights):
    """Selection of k order statistics; with weights, a sort and a running sum."""
    k = max1(count(q))
    if weights is not None:
        return V * (4 * each * levels(each) + 3 * each + k * (levels(each) + 4))
    return V * (each * min(k, 1 + 4 * levels(min(k, each))) + 4 * k)


def diagonal(a, offset=0, axis1=0, axis2=1):
    """Length of a diagonal."""
    rows, columns = shape_of(a)[axis1], shape_of(a)[axis2]
    return max(min(rows + min(offset, 0), columns - max(offset, 0)), 0)


def below(a, k):
    """Cells on and below the k-th diagonal."""
    *batch, rows, columns = shape_of(a)
    return math.prod(batch) * int(np.clip(np.arange(1, rows + 1) + k, 0, columns).sum())


def masked(keys):
    """Elements of the boolean masks among index keys."""
    kinds = list, bool, np.ndarray, np.bool_
    return count(*[key for key in keys if isinstance(key, kinds) and dtype_of(key) == bool])


@quantity
def padding(shape, pad_width, mode, kwargs):
    """Every cell is written once; ramps, odd reflections and statistics are computed on top."""
    widths = np.broadcast_to(pad_width, (len(shape), 2)).tolist()
    padded = [n + before + after for n, (before, after) in zip(shape, widths)]
    units = math.prod(padded)
    if mode == "linear_ramp" or kwargs.get("reflect_type") == "odd":
        units += math.prod(padded) - math.prod(shape)
    if mode in ("maximum", "minimum", "mean", "median"):
        lengths = np.broadcast_to(kwargs.get("stat_length") or max(shape), (len(shape), 2)).tolist()
        for i, n in enumerate(shape):
            ends = [min(n, length) for length in lengths[i]]
            ends = ends[:1] if ends == [n, n] else ends                   # one statistic serves both
            each = sum(ends) + (len(ends) if mode == "mean" else 0)
            units += math.prod([*padded[:i], *shape[i + 1:]]) * each
    return units


@quantity
def placed(arr, indices, axis):
    """put_along_axis: cells written."""
    if axis is None:
        return count(indices)
    extents = list(shape_of(arr))
    extents[axis] = shape_of(indices)[axis]
    return math.prod(extents)


def copied(size, where, shape=None):
    """Elements that copyto writes: all, or those where `where` is true."""
    return size if where is True else int(np.broadcast_to(np.asarray(where), shape or np.shape(where)).sum())


@quantity
def filled(shape, wrap):
    """fill_diagonal: cells written."""
    rows, columns, *more = shape
    end = (rows if wrap else min(rows, columns)) * columns
    return rows if more else len(range(0, end, columns + 1))


def sorting(a, axis=None):
    """Merge sort along one axis, or of all elements."""
    shape = shape_of(a)
    return max1(math.prod(shape) * lg(math.prod(shape) if axis is None or not shape else shape[axis]))


def together(*arrays, least=0):
    """The elements of all the arrays, sorted as one."""
    n = sum([max(count(a), least) for a in arrays])
    return max1(n * lg(n))


@quantity
def membership(element, test_elements):
    """isin: by sorting, or one by one where the other array is short and there may be no table."""
    n, m = count(element), count(test_elements)
    tabled = dtype_of(element).kind in "biu" and dtype_of(test_elements).kind in "biu"
    return max(together(element, test_elements), 0 if tabled or m >= 10 * n**0.145 else 2 * n * m)


def differences(a, n, axis, *ends):
    """n rounds, each one element shorter than the one before."""
    extent = shape_of(a)[axis]
    length = extent + sum([(shape_of(end) or {axis: 1})[axis] for end in ends if end is not np._NoValue])
    return max1(count(a) // (extent or 1) * (n * length - n * (n + 1) // 2))


@quantity
def slopes(shape, size, axes, args, edge_order, book):
    """gradient: central differences, weighted if unevenly spaced. Book 0.7 sees no axis and no spacing."""
    if book == "0.7":
        return max1(sum([2 * size * max(n - 2, 0) // n for n in shape]))
    units, spacing = 0, args[1:] * (len(axes) if len(args) == 2 else 1) or axes
    for i, h in zip(axes, spacing):
        n = shape[i]
        units += 2 * size + (6 * size // n if edge_order == 2 else 0)
        if shape_of(h):
            units += 3 * (n - 1)
            if len(set(np.diff(np.asarray(h)).tolist())) > 1:
                units += 3 * size * (n - 2) // n + 10 * (n - 2) + 4 * size // n
    return units


@quantity
def interpolation(size, xp, period):
    """interp: a binary search and a line for each point; a period adds wrapping and sorting."""
    m = count(xp)
    if period is None:
        return max1(size) * (3 + lg(m))
    return size * (3 + lg(m + 2)) + 16 * (size + m) + 4 * m * lg(m) + 8 * m + 2 * (m + 2) + 2


@quantity
def samples(first, y, rowvar, book):
    """(variables, samples) of a covariance. Book 0.7 takes rows for variables, whatever it is told."""
    def of(a):
        shape = shape_of(a)
        return (1, count(a)) if len(shape) < 2 else shape if rowvar or book == "0.7" else shape[::-1]
    f, s = of(first)
    return f + (0 if y is None else of(y)[0]), s


@quantity
def sliding(a, v, mode):
    """Multiplications and additions of all the overlaps of two vectors."""
    short, long = sorted((count(a), count(v)))
    left, right = short // 2, (short - 1) // 2
    return {"full": 2 * long * short - long - short + 1, "valid": (2 * short - 1) * (long - short + 1),
            "same": 2 * long * short - left * (left + 1) - right * (right + 1) - long}[mode]


def svd(m, n, full=False, vectors=True, k=None):
    """LAPACK's gesdd (Golub and Van Loan, Matrix Computations, 8.6), or the first k triples only."""
    r, wide, core = min(m, n), *((6, 20) if vectors else (2, 2))
    if full and vectors and m != n and k is None:
        return 4 * max(m, n)**2 * r + 22 * r**3
    whole = wide * max(m, n) * r * r + core * r**3
    return whole if k is None else min(4 * m * n * k + wide * (m + n) * k * k + core * k**3, whole)


def product(m, k, n):
    """Of an m x k by a k x n matrix."""
    return max1(2 * m * k * n - m * n)


def squarings(e):
    """Products in a matrix power; the inverse is priced as one more."""
    return (e < 0) + (abs(e).bit_length() + bin(e).count("1") - 2 if abs(e) > 1 else 0)


@quantity
def fitted(m, n, r, b):
    """lstsq, once the matrix is decomposed."""
    c = (*shape_of(b), 1)[1]
    return product(r, m, c) + r * c + product(n, r, c)


@quantity
def solved(shape, n, b):
    """LU and substitution for each matrix of the batch."""
    *batch, _, columns = shape_of(b) if len(shape_of(b)) > 1 else (n, 1)
    each = n and max1(2 * n**3 // 3 + 2 * n * n * columns)
    return math.prod(np.broadcast_shapes(shape[:-2], batch)) * each


@quantity
def ranked(shape, tol, rtol):
    """matrix_rank: singular values, each compared with its tolerances."""
    if len(shape) < 2:
        return max1(math.prod(shape))
    *batch, m, n = shape
    pairs = np.broadcast_shapes(batch, *[shape_of(t) for t in (tol, rtol) if t is not None])
    return math.prod(batch) * svd(m, n, vectors=False) + min(m, n) * math.prod(pairs)


def measured(x, ord, axis, rank, book):
    """Norms of vectors, or of matrices if of this rank. Book 0.7 forgets that there may be more than one."""
    extents, early = [shape_of(x)[i] for i in axes_of(shape_of(x), axis)], book == "0.7"
    n, matrix = math.prod(extents), len(extents) == rank
    groups = 1 if early else count(x) // (n or 1)
    if matrix and ord in (2, -2, "nuc"):
        return 4 * n * min(extents) if early else groups * svd(*extents, vectors=False)
    simple = early or matrix or ord in (None, 0, 1, 2, np.inf, -np.inf)
    return (2 * max1(n) if simple else 18 * n + 16) * groups


@quantity
def chained(arrays, book):
    """multi_dot: the cheapest order of the products. Book 0.7 takes vectors at the ends for matrices."""
    shapes, early = [shape_of(a) for a in arrays], book == "0.7"
    if not early:
        shapes[0], shapes[-1] = (1, *shapes[0])[-2:], (*shapes[-1], 1)[:2]
    dims = [shapes[0][0], *[shape[-1] for shape in shapes]]
    once = (lambda m, k, n: 2 * m * k * n) if early else product

    @functools.cache
    def best(i, j):
        splits = [best(i, k) + best(k, j) + once(dims[i], dims[k], dims[j]) for k in range(i + 1, j)]
        return min(splits, default=0)
    return max1(best(0, len(arrays)))


def fourier(n, real=False):
    """One transform (Cooley and Tukey), complex or half of that."""
    return 2 if n == 1 else 5 * (n // 2 if real else n) * levels(n)


def staged(a, s, axes, real=None):
    """N-d transform, one axis after the other, each on the extents that those before it left."""
    shape = list(shape_of(a))
    axes = axes_of(shape, range(-len(s), 0) if axes is None and s is not None else axes)
    points, last, units = spectrum(shape, s, axes, real), len(axes) - 1, 0
    for j in range(last + 1) if real == "back" else range(last, -1, -1):
        i, n = axes[j], shape[axes[j]] if points[j] == -1 else points[j]
        shape[i] = 1
        units += math.prod(shape) * fourier(n, real and j == last)
        shape[i] = n // 2 + 1 if real == "forth" and j == last else n
    return units


def spectrum(shape, s, axes, real):
    """Lengths of the transformed axes; of a half spectrum, the length of the real signal behind it."""
    points = list(s or [shape[i] for i in axes])
    return [*points[:-1], 2 * points[-1] - 2] if real == "back" and s is None else points


def at_once(a, s, axes, real=None):
    """Book 0.7: all axes as one transform; a batch is seen only where axes are named."""
    shape, named = shape_of(a), axes_of(shape_of(a), axes)
    points = spectrum(shape, s, named, real)
    batch = 1 if axes is None else count(a) // (math.prod([shape[i] for i in named]) or 1)
    return max(batch * 5 * (math.prod(points) // (2 if real else 1)) * sum(map(levels, points)), 0)


def pool(a, axis=0):
    """How many things there are to choose from or to shuffle."""
    return a if isinstance(a, (int, np.integer)) else shape_of(a)[axis]


@quantity
def chosen(a, axis, replace, p, O):
    """choice, with or without replacement and weights."""
    n = pool(a, axis)
    if p is None:
        return max1(O if replace else n)
    return 3 * n + max1(O) * (lg(n) + 1) if replace else n * lg(n)


@quantity
def coloured(colors, nsample, method, O):
    """multivariate_hypergeometric, by its marginals or ball by ball."""
    balls = int(np.sum(np.asarray(colors)))
    drawn = 2 * (O // count(colors)) * min(nsample, balls - nsample)
    return max1(O) if method == "marginals" else balls + drawn + O


@quantity
def segments(a, indices, axis):
    """reduceat: additions in each segment, but at least one operation."""
    length, starts = shape_of(a)[axis], [int(i) for i in np.asarray(indices)]
    steps = sum([max1(stop - start) - 1 for start, stop in zip(starts, starts[1:] + [length])])
    return max1(count(a) // (length or 1) * max(steps, len(starts)))


def touched(a, indices):
    """Elements that an index picks."""
    return max1(count(np.broadcast_to(np.False_, shape_of(a))[indices]))


# ---- the books -------------------------------------------------------------------------------------------

Row = namedtuple("Row", "units weight dtype factor parameters notes bare")


def _read(table):
    """{book: {operation: Row}}: the table, taken apart."""
    books = {"0.7": {}, "0.12": {}}
    for line in re.sub(r"\n +", " ", table.strip()).splitlines():
        names, *cells = [cell.strip() for cell in line.split("|")]
        keyed = dict(re.findall(r"(?m)^(weight|dtype|complex|notes) (.*)", "\n".join(cells)))
        keyed |= zip(("late", "early"), cells[:len(cells) - len(keyed)])
        if line.startswith("["):
            prefix = names[1:names.index("]")]
            section = dict(late="", early="", weight="1", dtype="main", complex="2", notes="") | keyed
            continue
        cells = (section | keyed).values()
        for i, (name, parameters) in enumerate(re.findall(r"([\w.]+)(?:\((.*?)\))?", names)):
            late, early, weight, dtype, factor, notes = [
                re.sub(r"{(.*?)}", lambda choice: choice[1].split(";")[i].strip(), cell) for cell in cells]
            for book, units, weight in zip(("0.12", "0.7"), (late, early or late), weight.split("/") * 2):
                seen = {*notes.replace(book, "").split()}
                if re.search(r"\b(O|result|made)\b", units + " " + dtype * (book == "0.12")):
                    seen.add("after")
                bare = None if "value" in seen else _SCALARS if dtype == "loop" else frozenset()
                if units != "-":
                    row = Row(units, int(weight), dtype, factor, parameters, seen, bare)
                    books[book][prefix + name] = row
    return books


class Call(dict):
    """One call: its arguments, by name, and whatever else the cells of a row ask for."""

    def __init__(self, name, parameters, book, args, kwargs, result):
        names, defaults = parameters_of(name, parameters)
        first = args[0] if args else next(iter(kwargs.values()), None)
        super().__init__(defaults, name=name, book=book, args=args, result=result, first=first)
        self.update(zip(names, args), **kwargs)
        self["kwargs"] = kwargs

    def __missing__(self, name):
        formula = self if name == "call" else QUANTITIES[name]
        if isinstance(formula, str):
            formula = self.evaluate(formula)
        elif callable(formula):
            needs = formula.__code__.co_varnames[:formula.__code__.co_argcount]
            formula = formula(*[self[need] for need in needs])
        self[name] = formula
        return formula

    def evaluate(self, cell):
        return eval(_compiled(cell), globals(), self)


@functools.cache
def _compiled(cell):
    return compile(cell, "<price table>", "eval")


@functools.cache
def parameters_of(name, parameters):
    """(names of the positional parameters, defaults of all), as the row says, or else as NumPy does."""
    function = eval(f"lambda {parameters}: 0") if parameters else np
    for part in name.split(".") if not parameters else ():
        function = getattr(function, part, None)
    try:
        found = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return [], {}
    names = [p.name for p in itertools.takewhile(lambda p: p.kind <= p.POSITIONAL_OR_KEYWORD, found)]
    return names, {p.name: p.default for p in found if p.default is not p.empty}


def _seen(a, bare=frozenset()):
    """What a price can depend on: shape, dtype and symmetry of an array; value, or just type, of others."""
    if isinstance(a, np.ndarray):
        return a.shape, a.dtype, getattr(a, "_group", None), None if a.shape or bare else a.item()
    if type(a) in bare:
        return type(a)
    return (type(a), *map(_seen, a)) if isinstance(a, (list, tuple)) else (type(a), a)


class PriceBook:
    """The prices of one version of the rules."""

    def __init__(self, name, rows):
        self.name, self.rows, self._known = name, rows, {}
        self.immutable = name != "0.7"                      # 0.12 refuses item assignment, and charges rates
        self.after = {op for op in rows if "after" in rows[op].notes}
        self.plain = {op for op in rows if "plain" in rows[op].notes}
        self.alike = {op for op in rows if "alike" in rows[op].notes}
        self.unlogged = {op for op in rows if rows[op].units == "free"}

    def __repr__(self):
        return f"PriceBook({self.name!r})"

    def charge(self, name, args, kwargs, result=None):
        """(FLOPs, dtype charged or None) of the call `name(*args, **kwargs)`."""
        row, key = self.rows.get(name) or self._method(name), None
        if row.bare is not None and ("twins" not in row.notes or len({*map(id, args)}) == len(args)):
            try:
                key = (name, *[_seen(a, row.bare) for a in args])
                if kwargs or result is not None:
                    key += _seen(result), *[(k, _seen(a)) for k, a in kwargs.items()]
                return self._known[key]
            except KeyError:
                if len(self._known) > 20_000:
                    self._known.clear()
            except TypeError:                               # something unhashable
                key = None
        price = self._price(row, Call(name, row.parameters, self.name, args, kwargs, result))
        if key is not None:
            self._known[key] = price
        return price

    def _price(self, row, call):
        units = call.evaluate(row.units)
        if not self.immutable or row.dtype == "-":
            return int(units * row.weight), None
        dtype = call.evaluate(row.dtype)
        factor = call.get("factor", None if dtype.kind == "c" else 1)
        if factor is None:
            if row.factor == "-":
                raise UnsupportedDtypeError(f"{call['name']} has no meaning for complex numbers")
            factor = call.evaluate(row.factor)
        return int(units * rate_of(dtype) * factor * row.weight), dtype

    def _method(self, name):
        """The row of `ufunc.method`."""
        ufunc, _, method = name.rpartition(".")
        try:
            row, of = self.rows["." + method], self.rows[ufunc]
        except KeyError:
            raise UnsupportedFunctionError(f"{name} has no price in book {self.name}") from None
        self.rows[name] = row._replace(weight=of.weight if self.immutable else 1, factor=of.factor)
        return self.rows[name]


PRICES = {name: PriceBook(name, rows) for name, rows in _read(PRICE_TABLE).items()}
UFUNCS = {op: getattr(np, op) for op, row in PRICES["0.12"].rows.items() if row.dtype == "loop"}


# ---- symmetries and contractions -----------------------------------------------------------------
#
# A symmetry is a group of axis permutations: a frozenset of tuples, closed, each over *all* axes of the
# array ({(0, 1), (1, 0)} for a symmetric matrix), or None where only the identity is left.

_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
LARGEST_GROUP = 240     # 0.12 gives up looking for symmetries of larger ones, and prices without any


def proper(permutations):
    """The symmetry of these permutations, which form a group; None if it is the identity alone."""
    group = frozenset(permutations)
    return group if len(group) > 1 else None


def closure(*generators):
    """The smallest symmetry that holds all elements of these sets of permutations (None is an empty set)."""
    group = new = generators = set().union(*(g or () for g in generators))
    while new:
        new = {tuple([p[i] for i in g]) for p in new for g in generators} - group
        group = group | new
    return proper(group)


@functools.lru_cache(4096)
def orbits(symmetry, shape):
    """How many elements are distinct: Burnside, the mean over the group of the index tuples left in place."""
    total = 0
    for g in symmetry or [range(len(shape))]:
        left, fixed = set(range(len(shape))), 1
        while left:                             # one free index for each cycle
            fixed *= shape[axis := left.pop()]
            while (axis := g[axis]) in left:
                left.remove(axis)
        total += fixed
    return total // len(symmetry or "1")


def moved(symmetry):
    """The axes that some permutation moves."""
    return {a for g in symmetry or () for a, b in enumerate(g) if a != b}


def carried(symmetry, place, ndim):
    """The elements that keep the axes of `place` among themselves, these now at `place[axis]` of `ndim`."""
    source = {new: old for old, new in place.items()}
    return proper(tuple([place[g[source[a]]] if a in source else a for a in range(ndim)])
                  for g in symmetry or () if all(g[a] in place for a in place))


def stabiliser(symmetry, kept):
    """What is left on these axes, in this order: for reductions, and for transpositions that keep all."""
    return carried(symmetry, {axis: i for i, axis in enumerate(kept)}, len(kept))


def distinct(symmetry, kept, shape):
    """How many elements differ once only these axes are kept."""
    return orbits(stabiliser(symmetry, kept), tuple([shape[a] for a in kept]))


@functools.lru_cache(4096)
def full_symmetry(shape, axes=None):
    """All permutations of (these) axes of equal extents: that of zeros, ones and constants."""
    axes = range(len(shape)) if axes is None else axes
    images = (dict(zip(axes, p)) for p in itertools.permutations(axes))
    return proper(tuple([image.get(a, a) for a in range(len(shape))]) for image in images
                  if all(shape[a] == shape[b] for a, b in image.items()))


def common(symmetries):
    """What several arrays share: nothing as soon as one has none."""
    return proper(frozenset.intersection(*symmetries)) if symmetries and all(symmetries) else None


def side_by_side(symmetry, ndim, other, other_ndim):
    """The direct product, for outer ufuncs and tensordot."""
    total = ndim + other_ndim
    shifted = {a: ndim + a for a in range(other_ndim)}
    return closure(carried(symmetry, {a: a for a in range(ndim)}, total), carried(other, shifted, total))


def broadcast_symmetry(symmetry, shape, to):
    """For broadcast_to: stretched axes drop out, new ones may be permuted among themselves."""
    lead = len(to) - len(shape)
    place = {a: lead + a for a, n in enumerate(shape) if n == to[lead + a]}
    return closure(carried(symmetry, place, len(to)), full_symmetry(to, range(lead)))


def binary(symmetries, shapes, to):
    """For binary ufuncs: 0-d operands do not count, one without symmetry spoils all, stretched axes not."""
    operands = [(s, shape) for s, shape in zip(symmetries, shapes) if shape]
    if not all(s for s, _ in operands):
        return None
    return common([a for s, shape in operands if (a := broadcast_symmetry(s, shape, to))])


def indexed(symmetry, shape, key):
    """For basic indexing: what leaves integer axes in place; none if a slice cuts a moved axis."""
    key = list(key) if isinstance(key, tuple) else [key]
    at = [k is Ellipsis for k in [*key, Ellipsis]].index(True)
    given = sum(k is not None and k is not Ellipsis for k in key)
    key[at:at + 1] = [slice(None)] * (len(shape) - given)
    left, axis, place, new = symmetry, 0, {}, []
    for k in key:
        if k is None:
            new.append(len(place) + len(new))
            continue
        if not isinstance(k, slice):
            left = proper(g for g in left or () if g[axis] == axis)
        else:
            place[axis] = len(place) + len(new)
            if axis in moved(symmetry) and k.indices(shape[axis]) != (0, shape[axis], 1):
                left = None
        axis += 1
    ndim = len(place) + len(new)
    return closure(carried(left, place, ndim), symmetry and full_symmetry((1,) * ndim, tuple(new)))


def reshaped(symmetry, old, new):
    """Kept if every axis that moves survives: with its extent, and as many elements before it."""
    before, place = [(n, math.prod(new[:i])) for i, n in enumerate(new)], {}
    for axis in sorted(moved(symmetry)):
        here = old[axis], math.prod(old[:axis])
        if here not in before:
            return None
        place[axis] = before.index(here)
        before[place[axis]] = None
    return carried(symmetry, place, len(new))


class SymmetryGroup:
    """Permutations of some axes of an array; the generators permute positions in `axes`."""

    def __init__(self, *generators, axes=None):
        self.generators, self.degree = [tuple(g) for g in generators], len(generators[0])
        self.axes = tuple(range(self.degree) if axes is None else axes)

    @classmethod
    def from_generators(cls, generators, *, axes):
        return cls(*generators, axes=axes)

    @classmethod
    def symmetric(cls, *, axes):
        n = len(axes)
        return cls(*[[*range(i), i + 1, i, *range(i + 2, n)] for i in range(n - 1)] or [[0]], axes=axes)

    @classmethod
    def cyclic(cls, *, axes):
        return cls([*range(1, len(axes)), 0], axes=axes)

    @classmethod
    def dihedral(cls, *, axes):
        return cls([*range(1, len(axes)), 0], [0, *range(len(axes) - 1, 0, -1)], axes=axes)

    @classmethod
    def direct_product(cls, *groups):
        axes = [a for group in groups for a in group.axes]
        if len(set(axes)) < len(axes):
            raise ValueError("blocks of symmetric axes overlap")
        images = [{a: b.axes[i] for a, i in zip(b.axes, g)} for b in groups for g in b.generators]
        return cls(*[[axes.index(image.get(a, a)) for a in axes] for image in images], axes=axes)

    @classmethod
    def young(cls, blocks):
        return cls.direct_product(*(cls.symmetric(axes=block) for block in blocks))

    @classmethod
    def of(cls, symmetry):
        """The group of an array's symmetry, on the axes that it moves."""
        axes = sorted(moved(symmetry))
        return cls(*sorted(stabiliser(symmetry, axes))[1:], axes=axes)

    def over(self, ndim):
        """The symmetry of an array of that many axes."""
        if not 0 <= min(self.axes) <= max(self.axes) < ndim:
            raise ValueError(f"symmetry axes {self.axes} are out of range for ndim={ndim}")
        return carried(closure(self.generators), dict(enumerate(self.axes)), ndim)

    def elements(self):
        return sorted(closure(self.generators) or [tuple(range(self.degree))])

    def order(self):
        return len(self.elements())


def symmetry_group(symmetry):
    """What `symmetry=` means: a SymmetryGroup, axes that may all be permuted, or disjoint blocks of such."""
    if isinstance(symmetry, SymmetryGroup):
        return symmetry
    if not isinstance(symmetry, (tuple, list)) or not symmetry:
        raise TypeError("symmetry must be a SymmetryGroup, axes or blocks of axes")
    return SymmetryGroup.young(symmetry if isinstance(symmetry[0], (tuple, list)) else [symmetry])


# --- Counting one product of operands -------------------------------------------------------------

def label_group(parts, syms, same, needed=None):
    """(labels in order, the symmetry of their index tuples) for a product of operands.

    Each operand's labels may go to those of an identical operand, permuted by its own symmetry, as long as
    labels map one to one. With `needed`, the labels still to be used must also stay among themselves, and
    identical operands with identical labels may permute summed axes in step.
    """
    labels = sorted(set("".join(parts)))
    if not any(syms) and len(set(same)) == len(same):
        return labels, None
    needed = labels if needed is None else needed
    maps = {(frozenset(), frozenset(range(len(parts))))}        # (pairs of labels, operands not yet met)
    for k, part in enumerate(parts):
        twins = [j for j, s in enumerate(same) if s == same[k]]
        in_step = len(twins) > 1 and {parts[j] for j in twins} == {part}
        summed = tuple([i for i, c in enumerate(part) if in_step and c not in needed])
        own = closure(syms[twins[0]], full_symmetry((1,) * len(part), summed)) or [range(len(part))]
        maps = {(pairs, left - {j}) for known, left in maps for j in left.intersection(twins) for g in own
                if one_to_one(pairs := known.union(zip(part, [parts[j][i] for i in g])), needed)}
    return labels, proper(tuple([labels.index(d) for _, d in sorted(pairs)]) for pairs, _ in maps)


def one_to_one(pairs, needed):
    """Whether the pairs map labels one to one and keep the needed ones among themselves."""
    onto = {d for _, d in pairs}
    kept = all((c in needed) == (d in needed) for c, d in pairs)
    return kept and len(dict(pairs)) == len(pairs) == len(onto)


def patterns(sizes, blocks=(), tuples=1):
    """All ways in which indices can be equal, and how many index tuples are; only equal sizes may agree."""
    if len(blocks) == len(sizes):
        yield blocks, tuples
        return
    n = sizes[len(blocks)]
    alike = {b for b, size in zip(blocks, sizes) if size == n}
    for b in alike:
        yield from patterns(sizes, (*blocks, b), tuples)
    if n > len(alike):
        yield from patterns(sizes, (*blocks, len(blocks)), tuples * (n - len(alike)))


def meetings(symmetry, shown, sizes):
    """Pairs (orbit of index tuples, orbit of output tuples) that meet: each is an addition or a store.

    One per orbit, unless the symmetry carries output labels into summed ones: then pattern by pattern.
    """
    if all(g[i] in shown for g in symmetry or () for i in shown):
        return orbits(symmetry, sizes)
    free = sorted(moved(symmetry))
    still = math.prod(n for i, n in enumerate(sizes) if i not in free)
    group, total = stabiliser(symmetry, free), 0
    shown = [n for n, i in enumerate(free) if i in shown]
    views = stabiliser(group, shown) or [range(len(shown))]
    for pattern, tuples in patterns([sizes[i] for i in free]):
        orbit = {tuple([pattern[i] for i in g]) for g in group}
        visible = {min(tuple([p[shown[i]] for i in v]) for v in views) for p in orbit}
        total += tuples * len(visible) * (len(group) // len(orbit))
    return still * total // len(group)


def additions(symmetry, shown, sizes, book):
    """What meets, less the orbits of the output that it ends in; in book 0.7 even if nothing meets."""
    met = meetings(symmetry, shown, sizes)
    return met - distinct(symmetry, shown, sizes) if met or book == "0.7" else 0


@functools.lru_cache(4096)
def summing(shape, axes, symmetry, book):
    """Additions that reduce these axes of an array."""
    if book != "0.7" and len(symmetry or ()) > LARGEST_GROUP:
        symmetry = None
    return additions(symmetry, [a for a in range(len(shape)) if a not in axes], shape, book) if axes else 0


# --- Contractions ---------------------------------------------------------------------------------

def presummed(parts, shapes, syms, needed, book):
    """(additions, parts, symmetries) once labels of one operand alone that nobody needs are added up."""
    additions, ready = 0, []
    for part, shape, sym, other in zip(parts, shapes, syms, reversed(parts)):
        kept = [i for i, c in enumerate(part) if c in needed or c in other]
        additions += summing(shape, tuple(set(range(len(part))) - set(kept)), sym, book)
        ready.append(("".join(part[i] for i in kept), stabiliser(sym, kept)))
    return additions, *zip(*ready)


def product_cost(parts, out, size, syms, same, book):
    """(operations, multiplications) of one or two operands: one product per orbit, then additions."""
    if same[0] == same[-1] and len(parts[0]) != len(parts[-1]):
        raise IndexError("flopscope cannot price one operand used twice but summed to different ranks")
    labels, symmetry = label_group(parts, syms, same)
    sizes, shown = tuple([size[c] for c in labels]), [i for i, c in enumerate(labels) if c in out]
    products = orbits(symmetry, sizes) * (len(parts) - 1)
    return products + additions(symmetry, shown, sizes, book), products


def contraction(parts, out, shapes, syms, same, book):
    """(operations, multiplications, symmetry of the result) of an einsum of any number of operands.

    parts, out: strings of labels; same: equal entries for operands that are the same object. Three or more go
    pairwise along opt_einsum's path, whatever the caller asks for: each step costs the least of what its two
    terms, all operands merged so far, or the distinct elements of its result would take.
    """
    size = {}
    for c, n in zip("".join(parts), sum(shapes, ())):
        size[c] = max(n, size.get(c, n))
    labels, group = label_group(parts, syms, same, frozenset(out))
    # 0.7 takes the labels of the output for sorted, and so marks the wrong axes where they are not.
    mark = stabiliser(group, [labels.index(c) for c in (sorted(out) if book == "0.7" and parts[1:] else out)])
    if book != "0.7" and len(label_group(parts, syms, same)[1] or ()) > LARGEST_GROUP:
        return len(parts) * math.prod(size.values()), 0, mark
    if len(parts) > 2:
        shapes = [tuple([size[c] for c in part]) for part in parts]
    elif len(parts) == 1:
        return *product_cost(parts, out, size, syms, same, book), mark
    total = products = 0
    terms = [((k,), *term) for k, term in enumerate(zip(parts, shapes, syms))]
    for pair in find_path(parts, out, size) if len(parts) > 2 else [(0, 1)]:
        members, two, extents, two_syms = zip(*[terms[k] for k in pair])
        inside = sorted(sum(members, ()))
        needed = frozenset(out).union(*(p for k, p in enumerate(parts) if k not in inside))
        before, summed, two_syms = presummed(two, extents, two_syms, needed, book)
        ids = [same[m[0]] if len(m) == 1 else m for m in members]
        costs = [product_cost(summed, needed, size, two_syms, ids, book)]
        labels, group = label_group(*([x[k] for k in inside] for x in (parts, syms, same)), needed)
        sizes, shown = [size[c] for c in labels], [i for i, c in enumerate(labels) if c in needed]
        if len(parts) > 2:
            before = max(before, 0)         # empty operands, in book 0.7
            alive = [i for i, c in enumerate(labels) if c in "".join(summed)]
            if any(not alive or sizes[i] != sizes[j] for g in group or () for i, j in enumerate(g)):
                raise ValueError("flopscope cannot price equal operands summed wholly, or along unequal axes")
            merged = carried(group, {i: i for i in alive}, len(labels))
            if merged and set(labels) <= set("".join(two)):         # none was summed before
                met = 2 * distinct(merged, alive, sizes) - distinct(merged, shown, sizes)
                costs.append((max(met, 0), costs[0][1]))
            stored = distinct(group, shown, sizes)
            inner = math.prod(sizes[i] for i in alive if i not in shown)
            if stored < math.prod(sizes[i] for i in shown):
                costs.append((stored * (2 * inner - 1), stored * (inner - 1)))
        best = min(costs, key=lambda cost: cost[0])
        total, products = total + before + best[0], products + best[1]
        result = "".join(labels[i] for i in shown)
        terms.append((tuple(inside), result, tuple([size[c] for c in result]), stabiliser(group, shown)))
    return total, products, mark


def find_path(terms, out, size):
    """The pairs that opt_einsum's optimize="auto" contracts in turn; each result gets the next free number.

    A depth-first search for the fewest operations: of everything for up to 4 operands, then only of the pairs
    that share labels, those that shrink most first, giving up on partial paths 4 times worse than others of
    their length; all pairs for up to 6 operands, the best two up to 8, then the best one. Beyond 14 opt_einsum
    does otherwise, and we refuse.
    """
    terms, out, n = tuple(map(frozenset, terms)), frozenset(out), len(terms)
    if n > 14:
        raise UnsupportedFunctionError("an einsum of more than 14 operands has no price here: contract some of them first")
    exhaustive, branches = n < 5, None if n < 7 else 2 if n < 9 else 1
    best, least, known = (math.inf, math.inf, ()), defaultdict(lambda: math.inf), {}

    @functools.lru_cache(None)
    def volume(labels):
        return math.prod(size[c] for c in labels)

    def candidates(terms, left, total, largest, outer):
        for i, j in map(sorted, itertools.combinations(left, 2)):
            a, b = terms[i], terms[j]
            if not outer and a.isdisjoint(b):
                continue
            if (a, b) not in known:       # remembered by labels alone, although the other terms matter too
                needed = out.union(*(terms[k] for k in left - {i, j}))
                known[a, b] = (a | b) & needed, volume(a | b) * (1 + bool(a & b - needed))
            ab, cost = known[a, b]
            after, top = total + cost, 0 if exhaustive else max(largest, volume(ab))
            if (after, top) < best[:2]:
                least[len(terms)] = min(least[len(terms)], after)
                if exhaustive or after <= 4 * least[len(terms)]:
                    yield volume(ab) - volume(a) - volume(b), cost, after, top, (i, j), ab

    def descend(path, terms, left, total, largest):
        nonlocal best
        if len(left) == 1:
            best = total, largest, path
            return
        pairs = candidates(terms, left, total, largest, exhaustive)
        if not exhaustive:
            pairs = sorted(list(pairs) or candidates(terms, left, total, largest, True))[:branches]
        for _, _, after, top, pair, ab in pairs:
            descend((*path, pair), (*terms, ab), left - {*pair} | {len(terms)}, after, top)

    descend((), terms, frozenset(range(n)), 0, 0)
    return best[2]


# --- Subscripts -----------------------------------------------------------------------------------

@functools.lru_cache(4096)
def subscripts(text, ranks):
    """(parts, out) of einsum's subscripts for operands of these ranks, each axis with a letter of its own."""
    inputs, arrow, out = text.replace(" ", "").partition("->")
    if not arrow:
        letters = inputs.replace(",", "").replace("...", "")
        out = "..." * ("..." in inputs) + "".join(c for c in sorted(set(letters)) if letters.count(c) == 1)
    inputs, spare = inputs.split(","), [c for c in _LETTERS if c not in text]
    wide = [(rank - len(part) + 3) * ("..." in part) for part, rank in zip(inputs, ranks)]
    fill = lambda part, n: part.replace("...", "".join(spare[max(wide) - n:max(wide)]))
    return tuple(map(fill, inputs, wide)), fill(out, max(wide))


def axes_labels(m, n, a_axes, b_axes):
    """(parts, out) where these axes of operands of ranks m and n meet: dot, inner, outer, vdot, tensordot."""
    a, b = _LETTERS[:m], list(_LETTERS[m:m + n])
    for i, j in zip(a_axes, b_axes):
        b[j] = a[i]
    return (a, "".join(b)), "".join(c for c in (*a, *b) if (c in a) != (c in b))


# ---- the operations that are contractions --------------------------------------------------------

CONTRACTIONS = "einsum matmul dot inner outer vdot vecdot matvec vecmat tensordot".split()
_FIXED = {"outer": "a,b->ab", "vdot": "a,a->", "vecdot": "...i,...i->...", "matvec": "...ij,...j->...i",
          "vecmat": "...i,...ij->...j"}


@functools.lru_cache(4096)
def priced_product(name, meeting, shapes, syms, same, book):
    """(operations, multiplications, symmetry of the result, subscripts) of a contraction.

    meeting: subscripts, or for each of two operands the axes where they meet.
    """
    ranks = tuple(map(len, shapes))
    parts, out = subscripts(meeting, ranks) if isinstance(meeting, str) else axes_labels(*ranks, *meeting)
    cost, products, symmetry = contraction(parts, out, shapes, syms, same, book)
    if name == "tensordot":                 # marks what its operands' symmetries leave, not what they make
        kept = [[i for i in range(rank) if i not in axes] for rank, axes in zip(ranks, meeting)]
        symmetry = side_by_side(*[x for s, axes in zip(syms, kept) for x in (stabiliser(s, axes), len(axes))])
        if book == "0.7" and not meeting[0] == meeting[1] == (*range(max(ranks)),):
            # Products alone, shared out to the distinct elements; negative axes are taken for kept.
            result = tuple([shape[i] for shape, axes in zip(shapes, kept) for i in axes])
            dense = math.prod([*shapes[1], *(shapes[0][i] for i in kept[0])])
            cost, products = max1(dense * orbits(symmetry, result) // (math.prod(result) or 1)), 0
    return cost, products, symmetry, f"{','.join(parts)}->{out}"


def product_of(name, args, kwargs, book):
    """priced_product of a call."""
    operands, meeting = [*args, *kwargs.values()][:2], _FIXED.get(name)
    if name == "einsum":
        meeting, *operands = args
    shapes = tuple([shape_of(a) for a in operands])
    m, n = [*map(len, shapes), 0][:2]
    if name in ("outer", "vdot"):
        shapes = tuple([(math.prod(shape),) for shape in shapes])
    elif name in ("dot", "inner"):
        meeting = ((m - 1,), (max(n - 2, 0) if name == "dot" else n - 1,)) if m and n else ((), ())
    elif name == "matmul":
        i, k = "i" * (m > 1), "k" * (n > 1)
        meeting = f"{i and '...'}{i}j,{k and '...'}j{k}->...{i}{k}"
    elif name == "tensordot":
        axes = args[2] if len(args) > 2 else kwargs.get("axes", 2)
        if isinstance(axes, (int, np.integer)):
            axes = range(m - axes, m), range(axes)
        meeting = tuple([tuple(np.atleast_1d(side).tolist()) for side in axes])
        if book != "0.7":
            meeting = axes_of(shapes[0], meeting[0]), axes_of(shapes[1], meeting[1])
    syms = tuple([None if name in ("outer", "vdot") else getattr(a, "_group", None) for a in operands])
    ids = [id(a) for a in operands]
    return priced_product(name, meeting, shapes, syms, tuple([ids.index(i) for i in ids]), book)


# ======================================================================================
# Budget
#
# A BudgetContext is a purse: it knows the price book in force, pays for every operation before it
# runs, and keeps the log. It keeps the time too: inside NumPy (backend), inside the counter
# (overhead), and all the rest (residual), which contest rounds price by the clock. The session adds
# up every context of the process.
# ======================================================================================


class BudgetExhaustedError(FlopscopeError):
    """The operation would cost more than remains; it was neither charged nor run."""

    def __init__(self, op_name, *, flop_cost, flops_remaining):
        super().__init__(f"{op_name} costs {flop_cost:,} FLOPs, but only {flops_remaining:,} are left")
        self.op_name, self.flop_cost, self.flops_remaining = op_name, flop_cost, flops_remaining


class TimeExhaustedError(FlopscopeError):
    """The context's wall-clock limit has passed."""

    def __init__(self, op_name, *, elapsed_s, limit_s):
        super().__init__(f"{op_name}: {elapsed_s:.3f} s have passed; the wall-clock limit is {limit_s:.3f} s")
        self.op_name, self.elapsed_s, self.limit_s = op_name, elapsed_s, limit_s


OpRecord = namedtuple("OpRecord", """op_name subscripts shapes flop_cost cumulative namespace
    flopscope_context_start_offset_s flopscope_backend_duration_s flopscope_overhead_duration_s
    resolved_dtype""")
Bill = namedtuple("Bill", "op_name cost dtype shapes subscripts", defaults=(None, (), None))
DEFAULT_BUDGET = 10**15             # of the context that is in force outside any other
_clock = time.perf_counter
_default_book = os.environ.get("WHESTBENCH_PRICES", "0.7")


class _Thread(threading.local):
    active, drawing = None, False       # its context; whether a random draw is under way


_thread = _Thread()


def use_prices(book):
    """Choose the price book ("0.7" or "0.12") of the contexts that are opened from now on."""
    global _default_book, _default_context
    _default_book, _default_context = PRICES[book].name, None


class BudgetContext:
    """Counts the FLOPs of what is done through fnp: `with BudgetContext(1e9) as budget:`, or as a decorator.

    Raises BudgetExhaustedError instead of running an operation that costs more than remains, and
    TimeExhaustedError at the first operation after `wall_time_limit_s` seconds. Contexts do not nest; one
    entered again goes on counting. `prices` names the book, the session's (`use_prices`) unless given.
    """

    on_charge = None        # a profiler's hook: on_charge(context, bill) after each charge
    observer = None         # sees values: observer(name, args, kwargs, result, FLOPs); has a book of its own

    def __init__(self, flop_budget, quiet=False, namespace=None, wall_time_limit_s=None, *, prices=None):
        if not flop_budget > 0:
            raise ValueError(f"flop_budget must be a positive number, not {flop_budget}")
        self.flop_budget, self.wall_time_limit_s, self._quiet = flop_budget, wall_time_limit_s, quiet
        self.book = PRICES[prices or _default_book]
        self.namespace = self._label = namespace
        self.flops_used = 0
        self.exhausted = None               # the last BudgetExhaustedError or TimeExhaustedError, if any
        self._log, self._records = [], []
        self.flopscope_backend_time_s = 0.0         # seconds inside NumPy
        self.flopscope_overhead_time_s = 0.0        # seconds inside this counter
        self._paused, self._deadline, self._start, self._wall = 0.0, math.inf, None, None
        self.mark_collected(None)

    def charge(self, bill, start=None):
        """Pay for one operation and log it: a Bill, and when its call began."""
        used = self.flops_used + bill.cost
        if used > self.flop_budget:
            self.exhausted = BudgetExhaustedError(bill.op_name, flop_cost=bill.cost, flops_remaining=self.flops_remaining)
            raise self.exhausted
        self.flops_used = used
        self._log.append([bill, used, self.namespace, start, 0.0, 0.0])
        if self.on_charge is not None:
            self.on_charge(self, bill)
        if start is not None and start > self._deadline:
            self._out_of_time(bill.op_name)

    def settle(self, backend, overhead, now):
        """Book the seconds that the operation charged last took in NumPy and in the counter."""
        self.flopscope_backend_time_s += backend
        self.flopscope_overhead_time_s += overhead
        entry = self._log[-1]
        entry[4], entry[5] = backend, overhead
        if now > self._deadline:
            self._out_of_time(entry[0].op_name)

    def mark_collected(self, session):
        """Remember how far the totals of this session include this context."""
        self._collected = (session, len(self._log), self.wall_time_s or 0.0,
                           self.flopscope_backend_time_s, self.flopscope_overhead_time_s)

    def _out_of_time(self, op_name):
        self.exhausted = TimeExhaustedError(op_name, elapsed_s=self.elapsed_s, limit_s=self.wall_time_limit_s)
        raise self.exhausted

    def __enter__(self):
        if _thread.active is not None:
            raise RuntimeError("Cannot nest BudgetContexts")
        _thread.active = self
        if not self._quiet:
            print(f"flopscope prices {self.prices} | budget: {self.flop_budget:.2e} FLOPs", file=sys.stderr)
        self._wall, self._paused, self._start = None, 0.0, _clock()
        self._collected = (*self._collected[:2], 0.0, *self._collected[3:])
        if self.wall_time_limit_s is not None:
            self._deadline = self._start + self.wall_time_limit_s
        return self

    def __exit__(self, *_):
        self._wall, self._deadline, _thread.active = self.elapsed_s, math.inf, None
        _session.collect(self)

    def __call__(self, function):
        @functools.wraps(function)
        def metered(*args, **kwargs):
            with self:
                return function(*args, **kwargs)
        return metered

    @contextlib.contextmanager
    def pause(self):
        """Stop all clocks, for a debugger: this time belongs neither to the wall time nor to the residual."""
        begun = _clock()
        try:
            yield
        finally:
            paused = _clock() - begun
            self._paused += paused
            self._deadline += paused

    @property
    def prices(self):
        """Name of the price book in force."""
        return self.book.name

    @property
    def flops_remaining(self):
        return self.flop_budget - self.flops_used

    @property
    def op_log(self):
        """One OpRecord for each charge, in order."""
        for bill, used, space, start, backend, overhead in self._log[len(self._records):]:
            op_name, cost, dtype, shapes, subscripts = bill
            offset = 0.0 if start is None or self._start is None else start - self._start
            self._records.append(OpRecord(op_name, subscripts, shapes, cost, used, space, offset, backend, overhead,
                                          dtype and str(dtype)))
        return self._records

    @property
    def elapsed_s(self):
        """Seconds since the context was entered, pauses excluded."""
        return 0.0 if self._start is None else _clock() - self._start - self._paused

    @property
    def wall_time_s(self):
        """Seconds inside the context (so far, while it is open); None before it is entered."""
        return self._wall if self._wall is not None or self._start is None else self.elapsed_s

    @property
    def residual_wall_time_s(self):
        """Seconds spent elsewhere: Python, plain NumPy, other libraries."""
        spent = self.flopscope_backend_time_s + self.flopscope_overhead_time_s
        return None if self._start is None else max(0.0, self.wall_time_s - spent)

    def summary_dict(self, by_namespace=False):
        """Totals, by operation and, if asked, by namespace."""
        rows = _totals(defaultdict(Counter), self._log)
        return _summary(self.flop_budget, rows, by_namespace, self.wall_time_s,
                        self.flopscope_backend_time_s, self.flopscope_overhead_time_s)

    def summary(self, by_namespace=False):
        """The same as text."""
        return _summary_text(self.summary_dict(by_namespace=True), by_namespace, self._label)


def _totals(rows, log):
    """rows[namespace, operation], Counters, with this log added."""
    for (op_name, cost, *_), _, space, _, backend, overhead in log:
        rows[space, op_name].update(flop_cost=cost, calls=1, flopscope_backend_time_s=backend,
                                    flopscope_overhead_time_s=overhead)
    return rows


def _summary(flop_budget, rows, by_namespace, wall, backend, overhead):
    operations, spaces, used = defaultdict(Counter), {}, 0
    for (space, op_name), row in rows.items():
        operations[op_name].update(row)
        total = spaces.setdefault(space, Counter(flops_used=0))
        total.update(flops_used=row["flop_cost"], **{key: row[key] for key in [*row][1:]})
        used += row["flop_cost"]
    summary = {"flop_budget": flop_budget, "flops_used": used, "flops_remaining": flop_budget - used,
               "operations": {name: dict(row) for name, row in operations.items()},
               "wall_time_s": wall, "flopscope_backend_time_s": backend, "flopscope_overhead_time_s": overhead,
               "residual_wall_time_s": None if wall is None else max(0.0, wall - backend - overhead)}
    if by_namespace:
        summary["by_namespace"] = {space: {**total, "operations": {}} for space, total in spaces.items()}
        for (space, op_name), row in rows.items():
            summary["by_namespace"][space]["operations"][op_name] = dict(row)
    return summary


def _summary_text(total, by_namespace, label=None):
    if not total["operations"]:
        return "No budget data recorded yet."
    used, given, wall = total["flops_used"], total["flop_budget"], total["wall_time_s"]
    title = "flopscope FLOP Budget Summary"
    lines = [title + (f" [{label}]" if label else ""), "=" * len(title),
             f"  Total budget:     {given:>19,}", f"  Used:             {used:>19,}  ({used / given:.1%})",
             f"  Remaining:        {given - used:>19,}  ({1 - used / given:.1%})"]
    for name, key in (("namespace", "flops_used"),) * by_namespace + (("operation", "flop_cost"),):
        lines.append(f"\n  By {name}:")
        rows = total["operations" if name == "operation" else "by_namespace"]
        for name, row in sorted(rows.items(), key=lambda item: -item[1][key]):
            calls = f"[{row['calls']} call{'s' * (row['calls'] != 1)}]"
            lines.append(f"    {name or '(unlabeled)':<20} {row[key]:>15,}  ({row[key] / max(used, 1):6.1%})  {calls}")
    if wall is not None:
        lines.append(f"\n  Total Wall Time:     {wall:.3f}s")
        for name in ("Flopscope Backend", "Flopscope Overhead", "Residual Wall Time"):
            seconds = total[name.lower().replace(" ", "_").removesuffix("_time") + "_time_s"]
            lines.append(f"  {name + ':':<20} {seconds:.3f}s  ({seconds / (wall or 1):.1%})")
    return "\n".join(lines)


class _Session:
    """Totals of the process: of every context that was closed, and of those that are open now."""

    def __init__(self):
        self.rows = defaultdict(Counter)
        self.flop_budget, self.wall, self.backend, self.overhead = 0, None, 0.0, 0.0

    def collect(self, context):
        """Add what this context did since it was collected last."""
        known, done, wall, backend, overhead = context._collected
        self.flop_budget += 0 if known is self else context.flop_budget
        _totals(self.rows, context._log[done:])
        if context.wall_time_s is not None:
            self.wall = (self.wall or 0.0) + context.wall_time_s - wall
        self.backend += context.flopscope_backend_time_s - backend
        self.overhead += context.flopscope_overhead_time_s - overhead
        context.mark_collected(self)

    def summary_dict(self, by_namespace):
        for live in (_thread.active, _default_context):
            if live is not None and live._log:
                self.collect(live)
        return _summary(self.flop_budget, self.rows, by_namespace, self.wall, self.backend, self.overhead)


_session, _default_context = _Session(), None


def active_budget():
    """The context in force in this thread; outside any, the default context of the process."""
    global _default_context
    if _thread.active is None and _default_context is None:
        _default_context = BudgetContext(DEFAULT_BUDGET, quiet=True)
    return _thread.active or _default_context


budget = BudgetContext          # @budget(1e9) above a function reads better than @BudgetContext(1e9)


@contextlib.contextmanager
def namespace(segment):
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


def budget_summary_dict(by_namespace=False):
    """Totals of this process, all contexts together."""
    return _session.summary_dict(by_namespace)


def budget_summary(by_namespace=False):
    """Print the totals of this process."""
    print(_summary_text(_session.summary_dict(True), by_namespace))


def budget_reset():
    """Forget the totals of this process: what open contexts do from now on is counted anew."""
    global _session, _default_context
    _session, _default_context = _Session(), None
    if _thread.active is not None:
        _thread.active.mark_collected(None)


# ---- flops.stats: the distributions in closed form, right in both tails -----------------------------------

_normal = statistics.NormalDist()
erfc = np.vectorize(math.erfc, otypes=[float])
ndtri = np.vectorize(lambda p: _normal.inv_cdf(p) if 0 < p < 1 else math.copysign(math.inf, p - 0.5),
                     otypes=[float])


def phi(z):
    """Standard normal density."""
    return np.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def Phi(z):
    """Standard normal distribution function."""
    return erfc(-z / math.sqrt(2)) / 2


def _between(a, b, of):
    """of(low, high, side) of a truncated normal, mirrored to have its mass in the left tail: nothing cancels."""
    mirror = a > 0
    return of(np.where(mirror, -b, a), np.where(mirror, -a, b), np.where(mirror, -1, 1))


def _truncated_cdf(z, a, b):
    def share(low, high, side):
        below = Phi(np.clip(side * z, low, high))
        return np.where(side > 0, below - Phi(low), Phi(high) - below) / (Phi(high) - Phi(low))
    return _between(a, b, share)


def _truncated_ppf(q, a, b):
    return _between(a, b, lambda low, high, side: np.clip(side * ndtri(
        Phi(low) + np.where(side > 0, q, 1 - q) * (Phi(high) - Phi(low))), a, b))


def _fall(z):
    return np.exp(-np.abs(z))


# (pdf, cdf, ppf) in standard form: of z = (x - loc) / scale, or of the probability q; then shape parameters.
STANDARD = {
    "norm": (phi, Phi, ndtri),
    "uniform": (lambda z: np.where((z >= 0) & (z <= 1), 1.0, 0.0),
                lambda z: np.clip(z, 0.0, 1.0),
                lambda q: q),
    "expon": (lambda z: np.where(z >= 0, _fall(z), 0.0),
              lambda z: -np.expm1(-np.maximum(z, 0.0)),
              lambda q: -np.log1p(-q)),
    "cauchy": (lambda z: 1 / (math.pi * (1 + z * z)),
               lambda z: np.arctan2(1.0, -z) / math.pi,
               lambda q: np.where(q == 0.5, 0.0, np.sign(q - 0.5) / np.tan(math.pi * np.minimum(q, 1 - q)))),
    "logistic": (lambda z: _fall(z) / (1 + _fall(z)) ** 2,
                 lambda z: np.where(z < 0, _fall(z), 1.0) / (1 + _fall(z)),
                 lambda q: np.log(q) - np.log1p(-q)),
    "laplace": (lambda z: _fall(z) / 2,
                lambda z: np.where(z < 0, _fall(z) / 2, 1 - _fall(z) / 2),
                lambda q: np.where(q < 0.5, np.log(2 * q), -np.log(2 * (1 - q)))),
    "lognorm": (lambda z, s: np.where(z > 0, phi(np.log(np.abs(z)) / s) / (s * np.abs(z)), 0.0),
                lambda z, s: np.where(z > 0, Phi(np.log(np.abs(z)) / s), 0.0),
                lambda q, s: np.exp(s * ndtri(q))),
    "truncnorm": (lambda z, a, b: np.where((z >= a) & (z <= b), phi(z) / _between(
                      a, b, lambda low, high, _: Phi(high) - Phi(low)), 0.0),
                  _truncated_cdf, _truncated_ppf),
}
_SHAPES = {"lognorm": ["s"], "truncnorm": ["a", "b"]}


def _distribution_method(name, method, standard):
    names = [*_SHAPES.get(name, ()), "loc", "scale"]

    def value(x, *parameters, **named):
        given = {"loc": 0.0, "scale": 1.0} | dict(zip(names, parameters)) | named
        *shape, loc, scale = [np.asarray(given[key], float) for key in names]
        x = np.asarray(x, float)
        with np.errstate(all="ignore"):
            if method == "ppf":
                return np.where((x >= 0) & (x <= 1), loc + scale * standard(np.clip(x, 0, 1), *shape), np.nan)
            z = (x - loc) / scale
            result = np.where(np.isnan(z), np.nan, standard(z, *shape))
            return np.asarray(result / scale if method == "pdf" else result)
    value.__doc__ = f"{method} of the {name} distribution, parameters {', '.join(names)}; float64, broadcast."
    return value


STATS = {f"stats.{name}.{method}": _distribution_method(name, method, standard)
         for name, row in STANDARD.items() for method, standard in zip(("pdf", "cdf", "ppf"), row)}


# ======================================================================================
# fnp
#
# NumPy's names, counted. `counted` makes every function from the price table and the NumPy function of the
# same name: ask the book, pay, run it on plain views, dress the result. The tables hold what behaves
# otherwise, and which results are known to be symmetric.
# ======================================================================================

_getitem = np.ndarray.__getitem__
_BASIC_KEYS = {int, slice, type(None), type(Ellipsis), np.int64, np.int32}


class FlopscopeArray(np.ndarray):
    """A NumPy array whose operations are counted; `fnp.ndarray`."""

    _group = None           # a SymmetricTensor's group of axis permutations

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **kwargs):
        name = ufunc.__name__
        if name not in _FUNCTIONS:
            raise TypeError(f"numpy.{name} has no counted version")
        if out is not None:
            kwargs["out"] = out if len(out) > 1 else out[0]
        if method != "__call__":
            name += f".{method}"
        _warn(f"np.{name} met a counted array: call the functions of fnp instead")
        function = _FUNCTIONS.get(name) or counted(name, getattr(ufunc, method))
        return function(*inputs, **kwargs)

    def __array_function__(self, function, types_, args, kwargs):
        name = f"{function.__module__}.{function.__name__}".removeprefix("numpy.")
        if name in _PASSED_THROUGH:
            return function(*bare(args), **bare(kwargs))
        if name not in _FUNCTIONS or name in _UNROUTED or name.startswith(("fft.", "nan")):
            return NotImplemented
        _warn(f"np.{name} met a counted array: call fnp.{name} instead")
        return _FUNCTIONS[name](*args, **kwargs)

    def __getitem__(self, key):
        keys = key if type(key) is tuple else (key,)
        for each in keys:
            if type(each) not in _BASIC_KEYS:
                break
        else:
            return _getitem(self, key)
        start, context, result = _clock(), active_budget(), _getitem(self, key)
        keys = [k for k in keys if isinstance(k, (list, np.ndarray, bool, np.bool_))]
        if keys and context.book.immutable:
            charge = context.book.charge("getitem", (self, bare(keys)), {}, result)
            context.charge(Bill("getitem", *charge, (self.shape,)), start)
        _show(context, "getitem", (self, key), {}, result)
        return result

    def __setitem__(self, key, value):
        if active_budget().book.immutable:
            raise TypeError("book 0.12 has no item assignment: use where, concatenate, put_along_axis ...")
        super().__setitem__(key, value)

    def compress(self, condition, *args, **kwargs):
        return _FUNCTIONS["compress"](condition, self, *args, **kwargs)

    def conj(self):
        return self.conjugate()


class SymmetricTensor(FlopscopeArray):
    """A counted array known to be symmetric under permutations of its axes: prices count its orbits."""

    _writable = False       # whether out= may break the symmetry: of zeros, ones and constants

    @property
    def symmetry(self) -> SymmetryGroup | None:
        """The SymmetryGroup of its axes; None once writing has broken it."""
        return self._group and SymmetryGroup.of(self._group)

    def is_symmetric(self) -> bool:
        """Whether its values (still) have this symmetry."""
        group = self.symmetry
        return group is not None and is_symmetric(self, symmetry=group)

    @property
    def T(self):
        return self.transpose()

    def flatten(self, order="C"):
        return self.ravel(order).view(np.ndarray)

    @property
    def flat(self):
        return _Flat(self) if active_budget().book.immutable else super().flat

    def __reduce__(self):
        return tagged, (self.view(FlopscopeArray), self._group)


class _Flat:
    """`flat` of a symmetric tensor: book 0.12 forgets the symmetry of what is written through it."""

    def __init__(self, array):
        self._array, self._flat = array, array.view(np.ndarray).flat

    def __len__(self):
        return len(self._flat)

    def __getitem__(self, key):
        return self._flat[key]

    def __setitem__(self, key, value):
        self._flat[key], self._array._group = value, None


def tagged(array, group):
    """The counted array as a SymmetricTensor of this symmetry, if there is any."""
    if group:
        array = array.view(SymmetricTensor)
        array._group = group
    return array


def bare(a):
    """`a` with every counted array in it (a list, a tuple, a dict) as a plain view of the same memory."""
    kind = type(a)
    if kind is list or kind is tuple:
        return kind([bare(item) for item in a])
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


_dress_arrays = functools.partial(dress, scalars=False)


def _any_counted(args):
    return any(isinstance(a, FlopscopeArray) or type(a) in (list, tuple) and _any_counted(a) for a in args)


def _warn(message, category=UserWarning):
    """Warn at the line that called into this file."""
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_globals is globals():
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


# ---- the wrapper ------------------------------------------------------------------------------------------

_PLAIN_KINDS = {int, float, bool, type(None), str, type}


def counted(name, function):
    """The counted version of a NumPy function: charge, run it on plain views, dress what it returns."""
    if name in _BY_SHAPE:
        call = _counted_by_shape(name, function)
    else:
        def call(*args, **kwargs):
            return _run(name, function, args, kwargs)
    call.__name__ = call.__qualname__ = name.rpartition(".")[2]
    call.__doc__ = function.__doc__
    return call


def _key_of(book, args, kwargs, pointwise):
    """(what a bill by shapes depends on, the operands as NumPy is to see them); no key if it is more."""
    key, plain = (book,), []
    for a in args:
        kind = type(a)
        if kind is FlopscopeArray or kind is np.ndarray:
            key += kind, a.shape, a.dtype
            a = a.view(np.ndarray)
        elif kind in _PLAIN_KINDS:
            key += (kind,) if pointwise else (kind, a)
        else:
            return None, plain
        plain.append(a)
    for parameter, value in kwargs.items():
        if type(value) not in _PLAIN_KINDS:
            return None, plain
        key += parameter, type(value), value
    return key, plain


def _counted_by_shape(name, function):
    """The same, quick: where the bill follows from shapes, dtypes and scalars, it is looked up."""
    pointwise, multiplies, known = name in UFUNCS, name in CONTRACTIONS, {}
    method = getattr(np.ndarray, name) if name in _QUICK_METHODS else None

    def call(*args, **kwargs):
        start = _clock()
        context = _thread.active or active_budget()
        key, plain = _key_of(context.book, args, kwargs, pointwise)
        if key is None or not args or multiplies and args[0] is args[-1] or context.observer is not None:
            return _run(name, function, args, kwargs)
        found = known.get(key)
        if found is None:
            if len(known) > 4096:
                known.clear()
            found = known[key] = _bill(name, args, kwargs, context.book), _finish(name, args, context.book)
        bill, finish = found
        context.charge(bill, start)
        work = method if method and type(plain[0]) is np.ndarray else function
        begun = _clock()
        result = work(*plain, **kwargs)
        ended = _clock()
        if finish:
            result = result.view(FlopscopeArray) if type(result) is np.ndarray else finish(result)
        now = _clock()
        context.settle(ended - begun, begun - start + now - ended, now)
        return result
    return call


def _run(name, function, args, kwargs, logged=None):
    """Any counted call. What the price knows only from the result is charged after the work."""
    start, context = _clock(), active_budget()
    book, drawn = context.book, name.startswith("random.")
    late, free = name in book.after, name in book.unlogged
    if not args and not drawn:                      # prices and symmetries ask for the first by its place
        first = next(iter(inspect.signature(function).parameters))
        args = (kwargs.pop(first),) if first in kwargs else ()
    broken = _broken(name, args, kwargs, book)
    bill = None if late else _bill(name, args, kwargs, book, logged)
    if not (late or free):
        context.charge(bill, start)
    begun = _clock()
    result = function(*bare(args), **bare(kwargs))
    ended = _clock()
    if late:
        bill = Bill(logged or name, *book.charge(name, args, kwargs, result))
        context.charge(bill, start)
    out = kwargs.get("out")
    if out is None or drawn:
        finish = _finish(name, args, book)
        result = _passed_on(name, args, kwargs, finish(result) if finish else result)
    else:
        result = dress(out) if name in _DRESS_OUT else out
    if broken is not None and book.immutable:       # 0.7 goes on billing it as symmetric
        broken._group = None
    if not free:
        now = _clock()
        context.settle(ended - begun, begun - start + now - ended, now)
    _show(context, name, args, kwargs, result, bill.cost)
    return result


def _bill(name, args, kwargs, book, logged=None):
    """The Bill of a call: the log shows all operands of products and of pointwise operations."""
    charge, subscripts = book.charge(name, args, kwargs), None
    shown = args[:2] if name in UFUNCS else [a for a in args[:1] if isinstance(a, np.ndarray)]
    if name in CONTRACTIONS:
        subscripts = product_of(name, args, kwargs, book.name)[3]
        shown = args[1:] if name == "einsum" else args[:2]
    logged = logged or _LOGGED_AS.get(name, name)
    return Bill(logged, *charge, tuple([shape_of(a) for a in shown]), subscripts)


def _finish(name, args, book):
    """What makes a result what callers see; None if it stays as NumPy gives it."""
    operands = args[1:] if name in ("linalg.solve", "linalg.lstsq") else args   # NumPy asks the last
    if name in book.plain or name in book.alike and not _any_counted(operands):
        return None
    scalars_stay = name in _SCALARS_STAY or name in _ALIKE and not _any_counted(args)
    return _dress_arrays if scalars_stay else dress


def _show(context, name, args, kwargs, result, cost=0):
    """Tell the observer, also of what is free or billed by itself."""
    if context.observer is not None:
        context.observer(name, args, kwargs, result, cost)


# ---- symmetry: what is known of results -------------------------------------------------------------------

def _group_of(a):
    return getattr(a, "_group", None)


def _kept(a, gone, ndim, closed=None):
    """What the other axes leave: closed up if some are missing, or where they were."""
    left = [i for i in range(np.ndim(a)) if i not in gone]
    closed = ndim < a.ndim if closed is None else closed
    return carried(_group_of(a), {i: k if closed else i for k, i in enumerate(left)}, ndim)


def _permuted(name, a, *places, **named):
    move = getattr(np.ndarray if places else np, name, None) or getattr(np, name)
    probe = np.empty(tuple(range(2, 2 + a.ndim)), "?")              # its extents tell where each axis went
    return stabiliser(a._group, [n - 2 for n in move(probe, *places, **named).shape])


def _picked(a, key):
    keys = key if type(key) is tuple else (key,)
    return {*map(type, keys)} <= _BASIC_KEYS and indexed(a._group, a.shape, key)


def _flipped(group, axes):
    return proper(g for g in group or () if {g[i] for i in axes} == set(axes))


def _tiled(a, reps):
    """Kept if axes that change places are repeated alike."""
    reps = (1,) * (a.ndim - len(reps)) + reps
    group = carried(a._group, {i: len(reps) - a.ndim + i for i in range(a.ndim)}, len(reps))
    return group if all(reps[g[i]] == n for g in group or () for i, n in enumerate(reps)) else None


def _joined(arrays, axis):
    return axis is not None and common([_group_of(a) and _kept(a, [axis % a.ndim], a.ndim) for a in arrays])


def _stacked(arrays, axis, ndim):
    place = {i: i + (i >= axis % ndim) for i in range(ndim - 1)}
    return common([carried(_group_of(a), place, ndim) for a in arrays])


_ELEMENTWISE = " ".join(
    op for op, ufunc in UFUNCS.items() if ufunc.nout == 1 and op not in PRICES["0.12"].plain)
# What results are symmetric under: names | a cell, as in the price table. Asked if an operand is symmetric,
# and else of the _MAKERS and of products of an array with itself.
_SYMMETRIES = f"""
{_ELEMENTWISE} fix round around angle sinc i0 nan_to_num isneginf isposinf isreal iscomplex real_if_close real
    imag clip copy linalg.inv | binary(list(map(_group_of, args)), list(map(shape_of, args)), result.shape)
{" ".join(f"{op}.outer" for op in UFUNCS)}
    | side_by_side(*[x for a in args for x in (_group_of(a), np.ndim(a))])
{" ".join(CONTRACTIONS)} | _of_product(name, args, kwargs, result, book)
sum prod max min amax amin mean std var argmax argmin any all count_nonzero nansum nanprod nanmax nanmin
    nanmean nanstd nanvar nanargmax nanargmin median nanmedian average
    | axis is not None and _kept(first, axes, result.ndim)
cumsum cumprod nancumsum nancumprod | axis is not None and _kept(first, axes, result.ndim, book == "0.7")
zeros ones identity | full_symmetry(result.shape)
full | (book == "0.7" or not shape_of(fill_value)) and full_symmetry(result.shape)
zeros_like ones_like | shape_of(first) == result.shape and group or full_symmetry(result.shape)
full_like | not shape_of(fill_value) and (
    shape_of(first) == result.shape and group or full_symmetry(result.shape))
eye diagflat | not k and full_symmetry(result.shape)
diag | not k and len(shape_of(v)) == 1 and full_symmetry(result.shape)
transpose swapaxes moveaxis matrix_transpose | _permuted(name, *args, **kwargs)
getitem | _picked(*args)
reshape squeeze atleast_1d atleast_2d atleast_3d | reshaped(group, first.shape, result.shape)
repeat roll | axis is not None and not moved(group) & set(axes) and group
flip | _flipped(group, axes)
tile | _tiled(first, tuple(np.atleast_1d(bare(reps)).tolist()))
concatenate(a, axis=0) | _joined(first, axis)
vstack row_stack | _joined(first, 0)
hstack column_stack | _joined(first, 1)
stack | _stacked(first, axis, result.ndim)
split | [_kept(first, axes, first.ndim)] * len(result)
broadcast_to | broadcast_symmetry(group, shape_of(first), result.shape)
expand_dims(a, axis) | closure(reshaped(group, shape_of(first), result.shape),
    full_symmetry((1,) * result.ndim, axes_of(result.shape, axis)))
"""
SYMMETRIES = {name: (cell, parameters)
              for names, cell in re.findall(r"(.+?) \| (.+)", re.sub(r"\n +", " ", _SYMMETRIES))
              for name, parameters in re.findall(r"([\w.]+)(?:\((.*?)\))?", names)}
_CONSTANT = ["zeros", "ones", "full", "zeros_like", "ones_like", "full_like"]
_MAKERS = {*_CONSTANT, "eye", "identity", "diag", "diagflat", "broadcast_to", "expand_dims"}


def _symmetry_of(name, args, kwargs, result):
    """The symmetry of a result, or of each of several."""
    cell, parameters = SYMMETRIES.get(name, ("None", ""))
    return Call(name, parameters, active_budget().prices, args, kwargs, result).evaluate(cell)


def _of_product(name, args, kwargs, result, book):
    *_, group, text = product_of(name, args, kwargs, book)
    if not group:
        return None
    plain, out = bare(result), text.partition("->")[2]
    finite = np.isfinite(plain).all()
    if book == "0.7" and finite and list(out) != sorted(out) and not _holds(plain, group):
        raise SymmetryError(f"book 0.7 takes the wrong axes of {text} for symmetric: name them in order")
    return group if finite or book == "0.7" else None


def _any_symmetric(args):
    operands = args[0] if args and isinstance(args[0], (list, tuple)) else args
    return any([_group_of(a) for a in operands])


def _passed_on(name, args, kwargs, result):
    """`result` as a SymmetricTensor, if the operation keeps or makes a symmetry."""
    symmetric = name in SYMMETRIES and _any_symmetric(args)
    makes = name in _MAKERS or name in CONTRACTIONS and len({*map(id, args)}) < len(args)
    if not (symmetric or makes) or not isinstance(result, (np.ndarray, list)):
        return result
    group = _symmetry_of(name, args, kwargs, result)
    if isinstance(result, list):
        return [tagged(a, g) for a, g in zip(result, group)]
    if symmetric and not (group or name in CONTRACTIONS) and result.ndim and _SETTINGS["symmetry_warnings"]:
        _warn(f"{name} loses the symmetry of its operand", SymmetryLossWarning)
    result = tagged(result, group)
    if group and not symmetric and name in _CONSTANT:
        result._writable = True
    return result


def _broken(name, args, kwargs, book):
    """The symmetric tensor that a call writes into, unless it keeps it so. ValueError if it must stay so."""
    out = kwargs.get("out")
    if out is not None and (name == "dot" or name == "matmul" and not book.immutable):
        raise TypeError(f"{name} has no out= in book {book.name}")
    written = args[0] if args and (name in _WRITERS or name.endswith(".at")) else out
    group = _group_of(written)
    if not group:
        return None
    if written is out and _any_symmetric(args) and _symmetry_of(name, args, kwargs, out) == group:
        return None
    if name in _WRITERS or written is out and (out._writable or name in _DRESS_OUT):
        return written
    raise ValueError(f"{name} would break a symmetry: write into a plain copy")


class FlopscopeWarning(UserWarning):
    """Base of everything that counting warns of."""


class SymmetryLossWarning(FlopscopeWarning):
    """A symmetric tensor went in, nothing is known of what came out: it costs the full price from here on."""


class SymmetryError(FlopscopeError, ValueError):
    """The data do not have the symmetry that was claimed."""


def _pay_for_symmetry(name, plain, units):
    """Book 0.12 charges for checking and making symmetries."""
    context, dtype = active_budget(), inexact(plain.dtype)
    if context.book.immutable:
        cost = units * rate_of(dtype) * (2 if dtype.kind == "c" else 1)
        context.charge(Bill(name, cost, dtype, (plain.shape,)))


def _holds(plain, group, atol=1e-6, rtol=1e-5):
    images = [plain.transpose(g) for g in group or ()]
    if any(image.shape != plain.shape for image in images):
        raise SymmetryError("symmetric axes have equal extents")
    return all(np.allclose(plain, image, atol=atol, rtol=rtol) for image in images)


def _averaged(plain, group):
    images = [plain.transpose(g) for g in sorted(group or [range(plain.ndim)])]
    return tagged((sum(images) / len(images)).view(FlopscopeArray), group)


def _checked(name, data, symmetry, **tolerances):
    """(the data, the symmetry of their array, whether they have it)."""
    plain, symmetry = np.asarray(bare(data)), symmetry_group(symmetry)
    swaps = sum(list(g) != sorted(g) for g in symmetry.generators)
    _pay_for_symmetry(name, plain, max1(swaps * (7 * plain.size - 1)))
    group = symmetry.over(plain.ndim)
    return plain, group, _holds(plain, group, **tolerances)


def is_symmetric(data: Any, *, symmetry: SymmetryGroup | tuple | list, atol: float = 1e-6,
                 rtol: float = 1e-5) -> bool:
    """Whether the values have this symmetry, within the tolerances."""
    return _checked("is_symmetric", data, symmetry, atol=atol, rtol=rtol)[2]


def as_symmetric(data: Any, *, symmetry: SymmetryGroup | tuple | list) -> FlopscopeArray:
    """`data` as a SymmetricTensor; SymmetryError if its values are not symmetric."""
    plain, group, holds = _checked("as_symmetric", data, symmetry)
    if not holds:
        raise SymmetryError("the data do not have this symmetry")
    return tagged(plain.view(FlopscopeArray), group)


def symmetrize(data: Any, *, symmetry: SymmetryGroup | tuple | list) -> FlopscopeArray:
    """The mean of `data` over all permutations of the symmetry, in double precision."""
    plain, group = np.asarray(bare(data)), symmetry_group(symmetry)
    plain = plain.astype(np.result_type(plain, f8), copy=False)
    _pay_for_symmetry("symmetrize", plain, (group.order() + 1) * plain.size)
    return _averaged(plain, group.over(plain.ndim))


_SETTINGS = {"symmetry_warnings": True, "check_nan_inf": False, "callback_warnings": True,
             "partition_budget": 100_000, "dimino_budget": 50_000, "einsum_path_cache_size": 4096}


def configure(**settings) -> None:
    """Change settings: `symmetry_warnings=False` silences SymmetryLossWarning. Prices stay the same."""
    if unknown := set(settings) - set(_SETTINGS):
        raise ValueError(f"unknown settings: {', '.join(sorted(unknown))}")
    _SETTINGS.update(settings)


# ---- exceptions, as tables --------------------------------------------------------------------------------

_SCALARS_STAY = {name for name, row in PRICES["0.12"].rows.items() if "scalars" in row.notes}
# Of plain operands: in book 0.7 the whole result stays plain, in 0.12 its scalars do.
_ALIKE = PRICES["0.7"].alike
_LOGGED_AS = {"linalg.diagonal": "diagonal", "row_stack": "vstack"}
_WRITERS = {"copyto", "fill_diagonal", "put", "place", "putmask", "put_along_axis"}
_DRESS_OUT = {"take", "concatenate"}        # give out= back as a counted array, even if it is none
# ndarray's methods of these names are quicker than NumPy's functions.
_QUICK_METHODS = set("sum prod max min mean argmax argmin any all cumsum cumprod".split())
_BY_SHAPE = _QUICK_METHODS.union((op for op, ufunc in UFUNCS.items() if ufunc.nout == 1),
                                 "std var median clip where matmul dot".split())
# Refused under NumPy's own name, like all of fft and nan...
_UNROUTED = set("""angle append argwhere around array_split block broadcast_arrays choose compress concat
    convolve correlate count_nonzero cumulative_prod cumulative_sum delete diag diag_indices_from diagflat
    dstack ediff1d einsum_path empty_like extract fill_diagonal fix flatnonzero fliplr flipud full_like
    geomspace i0 imag insert interp iscomplex isneginf isposinf isreal ix_ kron linspace logspace ones_like
    permute_dims put put_along_axis ravel_multi_index real real_if_close resize rollaxis rot90 sinc
    sort_complex take take_along_axis trapezoid tril_indices_from trim_zeros triu_indices_from unravel_index
    unstack unwrap vdot zeros_like linalg.cond linalg.cross linalg.diagonal linalg.matmul linalg.matrix_norm
    linalg.matrix_transpose linalg.outer linalg.svdvals linalg.tensordot linalg.tensorinv linalg.trace
    linalg.vecdot linalg.vector_norm""".split())
_QUERIES = """ndim shape size result_type can_cast common_type min_scalar_type promote_types shares_memory
    may_share_memory issubdtype isdtype isscalar isfortran iterable typename mintypecode"""
_PASSED_THROUGH = set(f"""{_QUERIES} array_equal iscomplexobj isrealobj array_repr array_str array2string save
    savez""".split())
_OPERATORS = dict(pair.split("=") for pair in """add=add sub=subtract mul=multiply truediv=true_divide
    floordiv=floor_divide mod=mod pow=power matmul=matmul and=bitwise_and or=bitwise_or xor=bitwise_xor
    lshift=left_shift rshift=right_shift lt=less le=less_equal gt=greater ge=greater_equal eq=equal
    ne=not_equal neg=negative pos=positive abs=abs invert=invert""".split())
_FOLDS = dict(pair.split("=") for pair in """add.reduce=sum multiply.reduce=prod maximum.reduce=max
    minimum.reduce=min logical_and.reduce=all logical_or.reduce=any add.accumulate=cumsum
    multiply.accumulate=cumprod""".split())         # along the first axis, unless told otherwise


# ---- functions that are not simply NumPy's ----------------------------------------------------------------

def _einsum(text, *operands, optimize=None, out=None, **kwargs):
    """einsum pair by pair along the charged path, as the real package does: the bits depend on it."""
    immutable = active_budget().book.immutable
    if out is not None:
        if not immutable:
            return np.copyto(out, _einsum(text, *operands, **kwargs), casting="unsafe")
        operands = [np.asarray(a, np.result_type(out, *operands)) for a in operands]
        return _FUNCTIONS["copyto"](out, _einsum(text, *operands, **kwargs), casting="safe")    # billed
    if len(operands) == 1:
        return np.einsum(text, *operands, **kwargs)
    parts, out = subscripts(text, tuple(map(np.ndim, operands)))
    size = {c: n for part, a in zip(parts, operands) for c, n in zip(part, np.shape(a))}
    left = dict(enumerate(zip(parts, operands)))
    path = [(0, 1)] if len(parts) == 2 else find_path(parts, out, size)
    for step, (j, i) in enumerate(map(sorted, path), len(parts)):
        (term, a), (other, b) = left.pop(i), left.pop(j)
        needed = set(out).union(*[rest for rest, _ in left.values()])
        result = "".join(c for c in dict.fromkeys(term + other) if c in needed) if left else out
        left[step] = result, np.einsum(f"{term},{other}->{result}", a, b, optimize=immutable,
                                       **({} if left else kwargs))
    return left[step][1]


def _svd(a, full_matrices=True, compute_uv=True, hermitian=False, k=None):
    found = np.linalg.svd(a, full_matrices and k is None, compute_uv, hermitian)
    if compute_uv and k is not None:
        return found._replace(U=found.U[..., :k], S=found.S[..., :k], Vh=found.Vh[..., :k, :])
    return found if compute_uv else found[..., :k]


def _numpy_function(name):
    return functools.reduce(lambda owner, part: getattr(owner, part, None), name.split("."), np)


def _then(function, mend):
    """NumPy's function, and what the real package makes of its result: mend(result, *args, **kwargs)."""
    return functools.wraps(function)(lambda *args, **kwargs: mend(function(*args, **kwargs), *args, **kwargs))


def _array_in(book):
    return lambda result, *_: np.asarray(result) if active_budget().prices == book else result


_MENDS = {
    "isreal iscomplex real imag": lambda result, _: np.asarray(result),
    "iscomplexobj isrealobj": _array_in("0.7"),
    "bmat": _array_in("0.12"),
    "isclose": lambda result, *args, **named:
        result if any(hasattr(a, "shape") for a in (*args, *named.values())) else bool(result),
    "round around": lambda result, a, *_, **__: result.item() if type(a) in _SCALARS else result,
    "average": lambda result, *_, **__: np.stack(result) if isinstance(result, tuple) else result,
    "unique": lambda result, *_, **__:
        np.sort(result) if isinstance(result, np.ndarray) and result.dtype.kind == "c" else result,
    "count_nonzero": lambda result, a, axis=None, *, keepdims=False:
        int(result) if axis is None and not keepdims else result,
}
_IMPLEMENTED = STATS | {name: _then(getattr(np, name), mend)
                        for names, mend in _MENDS.items() for name in names.split()} | {
    "einsum": _einsum, "row_stack": np.vstack, "linalg.svd": _svd,
    "inner": lambda a, b: np.inner(a, b), "vdot": lambda a, b: np.vdot(a, b),       # here by their names too
    "linalg.svdvals": lambda x, k=None: np.linalg.svdvals(x)[..., :k],
    "linalg.diagonal": lambda x, offset=0: np.diagonal(x, offset, -2, -1),
}
_FUNCTIONS = {name: counted(name, _function) for name in PRICES["0.7"].rows | PRICES["0.12"].rows
              if not name.startswith("random.")
              and (_function := _IMPLEMENTED.get(name) or _numpy_function(name))}


def _where(condition, *choices, three_way=_FUNCTIONS["where"], **named):
    choices += *named.values(),
    alone = not choices and active_budget().book.immutable
    return _FUNCTIONS["nonzero"](condition) if alone else three_way(condition, *choices)


def _one_by_one(function):
    """Book 0.12 logs each of several arrays."""
    return lambda *arrays: (tuple(map(function, arrays)) if len(arrays) > 1 and active_budget().book.immutable
                            else function(*arrays))


_FUNCTIONS["where"] = _where
_FUNCTIONS |= {name: _one_by_one(_FUNCTIONS[name]) for name in ("atleast_1d", "atleast_2d", "atleast_3d")}
_FUNCTIONS |= {f"linalg.{name}": _FUNCTIONS[name] for name in ("matmul", "outer", "tensordot", "vecdot")}
_FUNCTIONS |= {name: functools.partial(_FUNCTIONS[same], axis=0) for name, same in _FOLDS.items()}


# ---- operators and methods --------------------------------------------------------------------------------

def _define_operator(short, name):
    function = _FUNCTIONS[name]

    def in_place(self, other):
        if active_budget().book.immutable:
            raise TypeError(f"book 0.12 has no in-place operators: write x = fnp.{name}(x, y)")
        result = function(self, other)
        if _group_of(self) and _group_of(result) != self._group:
            raise ValueError(f"{name} in place would break a symmetry: write x = fnp.{name}(x, y)")
        np.copyto(self.view(np.ndarray), bare(result), casting="same_kind")
        return self
    setattr(FlopscopeArray, f"__{short}__", function)
    setattr(FlopscopeArray, f"__r{short}__", lambda self, other: function(other, self))
    setattr(FlopscopeArray, f"__i{short}__", in_place)


def _view_method(name):
    """A method that gives a free view of a symmetric tensor, with what is left of the symmetry."""
    view = getattr(FlopscopeArray, name)
    return lambda self, *args: _passed_on(name.strip("_"), (self, *args), {},
                                          view(self.view(FlopscopeArray), *args))


def _native_method(name):
    """A method that one book counts. In the other, NumPy does it for free, or 0.12 refuses what writes."""
    native, priced = getattr(np.ndarray, name), "copy" if name == "flatten" else name

    def method(self, *args, **kwargs):
        context = active_budget()
        immutable = context.book.immutable
        if immutable and name in _WRITING:
            raise ValueError(f"book 0.12 has no in-place {name}: arrays are immutable there")
        if immutable or name in ("sort", "partition"):
            return _run(priced, native, (self, *args), kwargs)
        result = native(self.view(np.ndarray), *args, **kwargs)
        _show(context, name, (self, *args), kwargs, result)
        return result if name == "nonzero" else _passed_on(name, (self, *args), kwargs, dress(result))
    return method


_WRITING = ["sort", "partition", "fill", "put", "resize", "setfield"]
for _short, _name in _OPERATORS.items():        # Python never asks for the forms that an operator has not
    _define_operator(_short, _name)
for _name in """sum prod mean std var min max argmin argmax all any cumsum cumprod ptp argsort argpartition
        searchsorted take repeat clip round trace dot conjugate""".split():
    setattr(FlopscopeArray, _name, _FUNCTIONS[_name])
for _name in [*_WRITING, "copy", "ravel", "reshape", "nonzero", "astype", "flatten", "choose"]:
    setattr(FlopscopeArray, _name, _native_method(_name))
for _name in ("__getitem__", "transpose", "swapaxes"):
    setattr(SymmetricTensor, _name, _view_method(_name))
for _name in ("squeeze", "ravel"):
    setattr(SymmetricTensor, _name, _FUNCTIONS[_name])


# ---- random -----------------------------------------------------------------------------------------------

def _sampler(owner, name):
    """A counted sampler: a function of numpy.random, or a method of one of its classes."""
    draw, is_method = getattr(owner, name), isinstance(owner, type)
    logged = f"random.{owner.__name__}.{name}" if is_method else f"random.{name}"

    @functools.wraps(draw)
    def sample(*args, **kwargs):
        if _thread.drawing:                 # what NumPy's samplers call inside is free
            return draw(*args, **kwargs)
        work, args = (functools.partial(draw, args[0]), args[1:]) if is_method else (draw, args)
        _thread.drawing = True
        try:
            return _run(f"random.{name}", work, args, kwargs, logged)
        finally:
            _thread.drawing = False
    return sample


class _CountedGenerator(np.random.Generator):
    def __reduce__(self):
        return _CountedGenerator, (self.bit_generator,)


class _CountedRandomState(np.random.RandomState):
    def __reduce__(self):
        return _CountedRandomState, (), self.get_state(legacy=False)


def default_rng(seed=None) -> np.random.Generator:
    """A counted numpy.random.Generator: the same stream as NumPy's for the same seed."""
    if isinstance(seed, _CountedGenerator):
        raise UnsupportedFunctionError("default_rng takes a seed or a bit generator, not a counted Generator")
    return _CountedGenerator(np.random.default_rng(seed).bit_generator)


def symmetric(shape, symmetry: SymmetryGroup, distribution: str = "randn", **parameters) -> FlopscopeArray:
    """The mean over a SymmetryGroup's permutations of an array that numpy.random.<distribution> draws."""
    draw, context = getattr(np.random, distribution), active_budget()
    data = draw(*shape) if distribution in ("rand", "randn") else draw(size=shape, **parameters)
    units = max1(data.size) * (symmetry.order() + 1 + context.book.immutable)
    context.charge(Bill("random.symmetric", units, None, (data.shape,)))
    return _averaged(data, symmetry.over(data.ndim))


# ---- modules ----------------------------------------------------------------------------------------------

_LEFT_OUT = """apply_along_axis apply_over_axes bartlett blackman fromfunction hamming hanning histogram
    histogram2d histogram_bin_edges histogramdd in1d kaiser packbits piecewise poly polyadd polyder polydiv
    polyfit polyint polymul polysub polyval roots save savez savez_compressed trapz unpackbits"""
_AS_IN_NUMPY = """bool_ int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 complex64
    complex128 floating integer number dtype broadcast errstate finfo iinfo ndenumerate ndindex nditer e inf
    nan pi newaxis printoptions get_printoptions set_printoptions geterr seterr"""


def _refuse(name, *_, **__):
    raise UnsupportedFunctionError(f"fnp.{name} has no price here: the README lists what was left out")


def _uncounted(function):
    return functools.wraps(function)(lambda *args, **kwargs: function(*bare(args), **bare(kwargs)))


def _assert(name, *args, **kwargs):
    getattr(np.testing, name)(*bare(args), **bare(kwargs))      # only now, as numpy.testing is slow to import


def load(file) -> Any:
    """The array in an .npy file, or a dict of those in an .npz file."""
    loaded = np.load(file)
    return dress(loaded) if isinstance(loaded, np.ndarray) else {name: dress(loaded[name]) for name in loaded}


def _module(name, *members, **others):
    module = types.ModuleType(name)
    vars(module).update({member.__name__: member for member in members}, **others)
    return module


def _members(owner, names, made=lambda member: member):
    return {name: made(getattr(owner, name)) for name in names.split()}


_spaces = {name: _module(f"flopscope.numpy.{name}") for name in ("linalg", "fft", "random", "testing")}
fnp = _module("flopscope.numpy", load, ndarray=FlopscopeArray, **_spaces, **_members(np, _AS_IN_NUMPY),
              **_members(np, _QUERIES, _uncounted),
              **{name: functools.partial(_refuse, name) for name in _LEFT_OUT.split()})
_spaces[""] = fnp
for _name, _function in _FUNCTIONS.items():
    _space, _, _short = _name.rpartition(".")
    if _space in _spaces:
        setattr(_spaces[_space], _short, _function)
for _name in ("assert_allclose", "assert_array_equal"):
    setattr(fnp.testing, _name, functools.partial(_assert, _name))
for _name in [name.removeprefix("random.") for name in PRICES["0.12"].rows if name.startswith("random.")]:
    for _owner, _target in ((np.random, fnp.random), (np.random.Generator, _CountedGenerator),
                            (np.random.RandomState, _CountedRandomState)):
        if hasattr(_owner, _name):
            setattr(_target, _name, _sampler(_owner, _name))
vars(fnp.random).update(
    _members(np.random, "SeedSequence PCG64 Philox MT19937 SFC64 BitGenerator seed get_state set_state"),
    default_rng=default_rng, symmetric=symmetric, Generator=_CountedGenerator,
    RandomState=_CountedRandomState)
stats = _module("flopscope.stats", **{name: types.SimpleNamespace(**{
    method: _FUNCTIONS[f"stats.{name}.{method}"] for method in ("pdf", "cdf", "ppf")}) for name in STANDARD})
_errors = [FlopscopeError, FlopscopeWarning, BudgetExhaustedError, TimeExhaustedError, SymmetryError,
           UnsupportedFunctionError, UnsupportedDtypeError, SymmetryLossWarning]
flops = _module("flopscope", *_errors, BudgetContext, OpRecord, FlopscopeArray, SymmetricTensor,
                SymmetryGroup, namespace, budget_summary, budget_summary_dict, budget_reset, use_prices,
                as_symmetric, is_symmetric, symmetrize, configure, budget=budget,
                current_budget=active_budget, numpy=fnp, stats=stats,
                errors=_module("flopscope.errors", *_errors), __version__="0.12.4")


def install() -> None:
    """Make `import flopscope`, `import flopscope.numpy as fnp` and their submodules reach this counter."""
    if sys.modules.get("flopscope", flops) is not flops:
        raise ImportError("flopscope is already imported: import whestbench before flopscope")
    flops.__path__ = fnp.__path__ = []
    for module in (flops, flops.stats, flops.errors, *_spaces.values()):
        sys.modules[module.__name__] = module


# ======================================================================================
# Contract
#
# What a participant's file meets: the network, the estimator's base class, the set-up
# context, and the loader. The module names of the real packages lead here, so the same
# file runs on the real grader unmodified.
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

    def __init__(self, message: str):
        super().__init__(message, "USAGE_ERROR")


def require_positive(**sizes: int) -> None:
    """Raise ValueError naming the first size that is not positive."""
    for label, size in sizes.items():
        if size <= 0:
            raise ValueError(f"{label} must be positive.")


@dataclass(frozen=True)
class MLP:
    """A stack of `depth` weight matrices `(width, width)`, float32, without biases: `y = relu(x @ W)`."""

    width: int
    depth: int
    weights: list
    seed: int = 0
    name: str = ""

    def validate(self) -> None:
        """Raise ValueError if the weights do not have the declared shape."""
        require_positive(width=self.width, depth=self.depth)
        if len(self.weights) != self.depth:
            raise ValueError(f"MLP depth is declared as {self.depth}, but there are {len(self.weights)} weight matrices.")
        for layer, weight in enumerate(self.weights):
            if np.shape(weight) != (self.width, self.width):
                raise ValueError(f"Weight matrix {layer} has shape {np.shape(weight)}, expected {(self.width, self.width)}.")

    def copy(self) -> MLP:
        """The same network with weights of its own: what an estimator may scribble on."""
        return replace(self, weights=[fnp.asarray(np.array(w)) for w in self.weights])


@dataclass(frozen=True)
class SetupContext:
    """What `setup` is told: the shape and budget to come, and where the submission lives."""

    width: int
    depth: int
    flop_budget: int
    api_version: str
    scratch_dir: str | None = None
    submission_dir: str | None = None
    seed: int = 0


class BaseEstimator(abc.ABC):
    """Subclass this as `Estimator` and write `predict`; `setup` and `teardown` are optional and not billed."""

    @abc.abstractmethod
    def predict(self, mlp: MLP, budget: int) -> np.ndarray:
        """Return the predicted mean activations, `(depth, width)`, spending at most `budget` FLOPs."""

    def setup(self, context: SetupContext) -> None:
        """Called once, before the first network; has `setup_timeout` seconds."""

    def teardown(self) -> None:
        """Called once, after the last network."""


def sample_mlp(width: int, depth: int, rng=None, *, seed: int = 0) -> MLP:
    """Draw a He-initialised network: entries `N(0, 2 / width)`, drawn in float64 and cast to float32.

    `rng` is a NumPy or counted Generator (fresh if None); `seed` is only attached to the result.
    """
    require_positive(width=width, depth=depth)
    rng = np.random.default_rng() if rng is None else rng
    scale = math.sqrt(2.0 / width)
    weights = [fnp.asarray((np.asarray(rng.standard_normal((width, width))) * scale).astype(np.float32))
               for _ in range(depth)]
    return MLP(width, depth, weights, seed=seed)


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


def relu(x):
    """`max(x, 0)`, counted; keeps the dtype of floating-point input."""
    return fnp.maximum(x, np.float32(0))


def run_mlp_all_layers(mlp: MLP, inputs) -> list:
    """The activations of every layer, `depth` arrays `(n, width)`, for inputs `(n, width)`; counted."""
    return list(itertools.accumulate(mlp.weights, lambda x, weight: relu(fnp.matmul(x, weight)), initial=inputs))[1:]


def run_mlp(mlp: MLP, inputs):
    """The last layer's activations `(n, width)`; counted."""
    return run_mlp_all_layers(mlp, inputs)[-1]


def sample_layer_statistics(mlp: MLP, n_samples: int, rng=None, *, progress: Callable | None = None):
    """Plain Monte Carlo: `(means (depth, width) float32, last layer's means, its mean variance)`; counted.

    Draws what the real package draws, in chunks of as many rows, so that a seeded `rng` gives its numbers.
    """
    rng = fnp.random.default_rng() if rng is None else rng
    chunk = max(1024, min(16384, 2**20 // mlp.width))
    sums, squares = np.zeros((mlp.depth, mlp.width)), np.zeros(mlp.width)
    starts = range(0, n_samples, chunk)
    for done, start in enumerate(starts, 1):
        inputs = rng.standard_normal((min(chunk, n_samples - start), mlp.width), dtype=np.float32)
        for layer, x in enumerate(run_mlp_all_layers(mlp, inputs)):
            sums[layer] += np.asarray(fnp.sum(x, axis=0, dtype=np.float64))
        squares += np.asarray(fnp.sum(fnp.square(fnp.asarray(x, dtype=np.float64)), axis=0))
        if progress:
            progress({"completed": done, "total": len(starts), "unit": "chunks"})
    with np.errstate(invalid="ignore"):
        means = (sums / n_samples).astype(np.float32)
        variance = np.mean(squares / n_samples - means[-1].astype(np.float64) ** 2)
    return fnp.asarray(means), fnp.asarray(means[-1].copy()), float(variance)


SUBMISSION = "_whestbench_submission_"      # how the module names of loaded files begin


def load_estimator(path: str | os.PathLike, class_name: str | None = None) -> BaseEstimator:
    """Import an estimator file by its path and instantiate its estimator class.

    Without `class_name`: the `BaseEstimator` subclass named `Estimator`, else the only one defined there.
    The file's folder goes first on `sys.path`, so it may import its siblings. Raises WhestError.
    """
    path = Path(path).expanduser().resolve()
    if not path.is_file():
        raise WhestError(f"Estimator file not found: {path}. Check the path, or run from its folder.", "SCORING_RUNTIME_ERROR")
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    name = SUBMISSION + hashlib.sha1(str(path).encode()).hexdigest()[:12]
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        return find_estimator_class(module, path, class_name)()
    except (WhestError, TimeExhaustedError):
        raise
    except SyntaxError as exc:
        raise WhestError(f"{path.name}, line {exc.lineno}: {exc.msg}.", "SCORING_RUNTIME_ERROR") from exc
    except ModuleNotFoundError as exc:
        raise WhestError(f"{path.name} imports {exc.name!r}, which is not installed: install it or drop the import.",
                         "ESTIMATOR_MISSING_MODULE") from exc
    except Exception as exc:
        raise WhestError(f"{path.name} could not be loaded: {type(exc).__name__}: {exc} ({participant_line(exc, path)})",
                         "SCORING_RUNTIME_ERROR") from exc


def find_estimator_class(module: types.ModuleType, path: Path, class_name: str | None) -> type[BaseEstimator]:
    """Apply the loader's rules; a WhestError names the nearest class where none fits."""
    classes = {c.__name__: c for c in vars(module).values() if inspect.isclass(c)}
    own = {n: c for n, c in classes.items() if issubclass(c, BaseEstimator) and c.__module__ == module.__name__}
    if class_name is not None:
        if issubclass(classes.get(class_name, object), BaseEstimator) and class_name != "BaseEstimator":
            return classes[class_name]
        near = difflib.get_close_matches(class_name, own, 1, 0.4) or list(own)
        raise WhestError(f"{path.name} has no estimator class named {class_name!r}"
                         + (f"; did you mean --class {near[0]}?" if near else "."))
    if "Estimator" in own or len(own) == 1:
        return own.get("Estimator") or next(iter(own.values()))
    if own:
        raise WhestError(f"{path.name} has several estimator classes ({', '.join(own)}): "
                         "name one of them Estimator, or choose with --class.")
    duck = [n for n, c in classes.items() if hasattr(c, "predict") and c is not BaseEstimator]
    raise WhestError(f"{path.name} defines no estimator class: "
                     + (f"make it `class {duck[0]}(BaseEstimator)`." if duck else
                        "write `class Estimator(BaseEstimator)` with a predict(self, mlp, budget) method."))


def participant_line(exc: BaseException, path: Path | str) -> str:
    """`file.py, line 12` of the innermost frame of the participant's own folder in a traceback."""
    home = str(Path(path).parent)
    frames = [f for f in traceback.extract_tb(exc.__traceback__, limit=-100)
              if f.filename.startswith(home) and f.filename != __file__ and "site-packages" not in f.filename]
    return f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else Path(path).name


def monte_carlo_layer_means(mlp: MLP, n_samples: int, seed: int | None = None) -> np.ndarray:
    """Plain sampling means of every layer, `(depth, width)`."""
    return sample_layer_statistics(mlp, n_samples, fnp.random.default_rng(seed))[0]


# ======================================================================================
# Engine
#
# A block is a pure function of (network, key, index): any thread, process or machine may compute
# it, in any order. After a ReLU half of the activations are zero; the kernels skip most of them,
# exactly, and so pass the rate at which a dense matrix product would run at best.
# ======================================================================================

GROUP = 16      # samples in a group: 8 draws of x, then their mirror images -x
COLUMNS = 64    # activations lie as [slab of 64 columns][sample][column]: zeros are a 64-bit mask; weights as
                # [slab of 64 outputs][input][output]: the 64 inputs of a slab fill half an L1 cache
_LOAD = threading.Lock()
_n_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def limit_threads(n_threads: int | None) -> None:
    """Use at most `n_threads` threads for sampling and in NumPy's bundled OpenBLAS; None leaves both alone."""
    global _n_threads
    if n_threads:
        import ctypes
        _n_threads, root = n_threads, Path(np.__file__).parent
        for path in itertools.chain(root.parent.glob("numpy.libs/*openblas*"), root.glob(".dylibs/*openblas*")):
            setter = getattr(ctypes.CDLL(str(path)), "scipy_openblas_set_num_threads64_", None)
            if setter:
                setter(n_threads)


class PackedNetwork(typing.NamedTuple):
    """The weights of a network as the kernels want them; made by `pack_weights`."""
    weights: np.ndarray         # float32 (depth, slabs, padded width, COLUMNS)
    width: int
    depth: int


class BlockSums(typing.NamedTuple):
    """What is kept of a block. Row i of a group sum covers samples 16 i to 16 i + 15: 8 antithetic pairs."""
    n_samples: int
    final: np.ndarray           # float32 (n_groups, width): group sums of the last layer's activations
    abs_z1: np.ndarray          # float32 (n_groups, width): of |z1|, z1 the first layer's pre-activations
    square_z2: np.ndarray       # float32 (n_groups, width): of z2**2, the second layer's (zero at depth 1)
    layer_sums: np.ndarray      # float64 (depth, width): sums of the activations
    layer_squares: np.ndarray   # float64 (depth, width): sums of their squared group sums
    final_squares: np.ndarray   # float64 (width,): sum of the last layer's squared activations


def pack_weights(weights) -> PackedNetwork:
    """Pad and lay out matrices (depth, width, width). ValueError unless they are square and finite."""
    weights = np.asarray(weights, np.float32)
    if weights.ndim != 3 or weights.shape[1] != weights.shape[2] or weights.size == 0:
        raise ValueError(f"weights must have shape (depth, width, width), not {weights.shape}")
    if not np.isfinite(weights).all():
        raise ValueError("weights contain inf or NaN")
    depth, width, _ = weights.shape
    padded = _padded(width)
    packed = _aligned((depth, padded // COLUMNS, padded, COLUMNS))
    packed[:] = 0
    for start in range(0, width, COLUMNS):
        slab = weights[:, :, start:start + COLUMNS]
        packed[:, start // COLUMNS, :width, :slab.shape[2]] = slab
    return PackedNetwork(packed, width, depth)


def samples_per_block(width: int) -> int:
    """The number of samples in a block of a network of this width, a power of two from 512 to 4096."""
    return min(4096, max(1 << (2 ** 18 // _padded(width)).bit_length() - 1, 512))


def simulate_block(network: PackedNetwork, key: int, index: int, n_samples: int | None = None) -> BlockSums:
    """The sums over block `index` of the stream `key` (integers below 2**64), or over its first `n_samples`.

    The same bits whenever and wherever it is computed. Releases the GIL. Samples beyond `n_samples` are zeros:
    without biases they add nothing to any sum.
    """
    load_kernels()
    weights, width, depth = network
    full, padded = samples_per_block(width), _padded(width)
    n_samples = full if n_samples is None else n_samples
    if not 0 < n_samples <= full:
        raise ValueError(f"a block holds 1 to {full} samples, not {n_samples}")
    n_groups = -(-n_samples // GROUP)
    groups = np.zeros((4, n_groups, padded), np.float32)
    sums = np.zeros((2 * depth + 1, padded))
    activations = _aligned((2, padded // COLUMNS, n_groups * GROUP, COLUMNS))
    network_sums(weights, np.uint64(key), np.uint64(index), n_samples, activations, groups, sums)
    groups, sums = groups[..., :width], sums[:, :width].copy()
    return BlockSums(n_samples, groups[0].copy(), groups[1].copy(), groups[2].copy(),
                     sums[:depth], sums[depth:-1], sums[-1])


def block_inputs(width: int, key: int, index: int) -> np.ndarray:
    """The inputs of a block, float32 (n_samples, width), in the order of its groups."""
    load_kernels()
    x = np.zeros((_padded(width) // COLUMNS, samples_per_block(width), COLUMNS), np.float32)
    draw_normals(x, np.uint64(key), np.uint64(index))
    x = x.transpose(1, 0, 2).reshape(-1, 2, GROUP // 2, _padded(width))[..., :width]
    x[:, 1] = -x[:, 0]
    return x.reshape(-1, width)


def _padded(width: int) -> int:
    return -(-width // COLUMNS) * COLUMNS


def _aligned(shape) -> np.ndarray:
    """An empty float32 array that starts on a cache line: a load across two lines costs double."""
    size = int(np.prod(shape))
    raw = np.empty(size + 16, np.float32)
    start = -raw.ctypes.data % 64 // 4
    return raw[start:start + size].reshape(shape)


# Kernels are plain functions until they are compiled on first use: importing this module imports no numba.
# They find each other as globals; in a closure numba would take them for new ones, and miss its disk cache.

def load_kernels() -> None:
    """Compile the kernels, or take them from numba's cache on disk. Only the first call costs anything."""
    with _LOAD:
        if not hasattr(network_sums, "py_func"):
            from numba import njit
            from numba.extending import intrinsic
            for function in (tile_rows, multiply_tile, relu_group):
                globals()[function.__name__] = intrinsic(function)
            for function in (box_muller, draw_normals, add_squares, finish_slab, network_sums, add_product):
                globals()[function.__name__] = njit(
                    function, nogil=True, cache=True, error_model="numpy", fastmath={"contract"})


def draw_normals(x, key, index):
    """Fill the draws among the rows of x: Philox-4x32-7 (Salmon et al., SC 2011), then Box and Muller."""
    n_slabs, n_rows, _ = x.shape
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    words = np.empty((4, 16), np.int32)
    for slab in range(n_slabs):
        for row in range(n_rows):
            if row & 8:
                continue
            for i in range(16):
                a, b = np.uint64(row * 16 + i) & low, np.uint64(slab)
                c, d = index & low, index >> shift
                k, l = key & low, key >> shift
                for _ in range(7):
                    p, q = a * np.uint64(0xD2511F53), c * np.uint64(0xCD9E8D57)
                    a, b, c, d = (q >> shift) ^ b ^ k, q & low, (p >> shift) ^ d ^ l, p & low
                    k, l = (k + np.uint64(0x9E3779B9)) & low, (l + np.uint64(0xBB67AE85)) & low
                words[0, i], words[1, i], words[2, i], words[3, i] = a, b, c, d
            for j in range(0, 4, 2):
                for i in range(16):
                    x[slab, row, 16 * j + i], x[slab, row, 16 * j + 16 + i] = box_muller(
                        words[j, i], words[j + 1, i])


def box_muller(a, b):
    """Two independent normals from two random int32; none is beyond 6.66."""
    f, sqrt_half = np.float32, np.int32(0x3F3504F3)                             # the latter as bits
    u = (f((a >> np.int32(1)) & np.int32(0x7FFFFFFF)) + f(0.5)) * f(2.0 ** -31)     # in (0, 1]
    bits = np.int32(np.float32(u).view(np.int32) - sqrt_half)                   # u = 2**exponent (1 + m)
    m = np.int32((bits & np.int32(0x7FFFFF)) + sqrt_half).view(np.float32) - f(1)
    exponent = f(bits >> np.int32(23))
    p = f(7.0376836292e-2) * m - f(1.1514610310e-1)                             # log(1 + m), as Cephes does
    p = ((p * m + f(1.1676998740e-1)) * m - f(1.2420140846e-1)) * m + f(1.4249322787e-1)
    p = ((p * m - f(1.6668057665e-1)) * m + f(2.0000714765e-1)) * m - f(2.4999993993e-1)
    p = (p * m + f(3.3333331174e-1)) * m - f(0.5)
    radius = np.sqrt(f(-2) * (p * m * m + m + exponent * f(0.6931471805599453)))
    t = f(b) * f(2.0 ** -32)                                                    # half the angle, over pi
    s = t * t                                                                   # minimax to 5e-8
    sine = (((f(0.0775603876) * s - f(0.598242104)) * s + f(2.55006981)) * s - f(5.167709827)) * s
    sine = (sine + f(3.141592741)) * t
    cosine = (((f(0.21969679) * s - f(1.33188021)) * s + f(4.058412075)) * s - f(4.934792995)) * s + f(1)
    return radius * (cosine * cosine - sine * sine), radius * f(2) * sine * cosine


def network_sums(weights, key, index, n_samples, activations, groups, sums):
    """Draw a block, take it through all layers, fill `groups` (final, |z1|, z2**2, scratch) and `sums`."""
    depth, _, width, _ = weights.shape
    _, n_slabs, n_rows, _ = activations.shape
    tile = tile_rows()
    active = np.empty((2, n_slabs, n_rows // tile), np.uint64)
    active[0] = ~np.uint64(0)
    draw_normals(activations[0], key, index)
    n_pairs = (n_samples - n_rows + GROUP + 1) // 2         # of the last group
    activations[0, :, n_rows - GROUP + n_pairs:] = 0
    for layer in range(depth):
        x, y = activations[layer & 1], activations[1 - layer & 1]
        masks = active[layer & 1]
        rows = GROUP if layer else GROUP // 2           # -x @ w is known from x @ w
        for slab in range(n_slabs):
            for k in range(n_slabs):
                w, x_k, y_slab = weights[layer, slab, k * COLUMNS:].ctypes.data, x[k].ctypes.data, y[slab].ctypes.data
                for group in range(0, n_rows, GROUP):
                    for row in range(group, group + rows, tile):
                        at = row * COLUMNS * 4
                        multiply_tile(x_k + at, masks[k, row // tile], w, y_slab + at, k > 0)
            finish_slab(y[slab], active[1 - layer & 1, slab], n_samples, layer, depth, slab * COLUMNS,
                        groups, sums)


def finish_slab(y, masks, n_samples, layer, depth, column, groups, sums):
    """Turn 64 columns of pre-activations into activations, masks and sums."""
    tiles = GROUP // tile_rows()
    squares = np.empty(COLUMNS, np.float32)
    for group in range(len(y) // GROUP):
        first = group * GROUP
        total = groups[0 if layer == depth - 1 else 3, group]
        if layer == 0:
            for r in range(first, first + GROUP // 2):
                for c in range(COLUMNS):
                    y[r + GROUP // 2, c] = -y[r, c] if 2 * r - first + 1 < n_samples else np.float32(0)
        elif layer == 1:
            add_squares(y, first, squares)
            for c in range(COLUMNS):
                groups[2, group, column + c] = squares[c]
        relu_group(y[first:].ctypes.data, masks[group * tiles:].ctypes.data, total[column:].ctypes.data)
        for c in range(column, column + COLUMNS):
            t = np.float64(total[c])
            sums[layer, c] += t
            sums[depth + layer, c] += t * t
        if layer == 0:
            for c in range(column, column + COLUMNS):
                groups[1, group, c] = np.float32(2) * total[c]
        if layer == depth - 1:
            add_squares(y, first, squares)
            for c in range(COLUMNS):
                sums[2 * depth, column + c] += np.float64(squares[c])


def add_squares(y, first, squares):
    """The sums of squares over a group's 16 rows."""
    squares[:] = 0
    for r in range(first, first + GROUP):
        for c in range(COLUMNS):
            squares[c] += y[r, c] * y[r, c]


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


def matrix_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a @ b, to the same bits however many threads BLAS has."""
    load_kernels()
    padded = np.pad(a, ((0, -len(a) % 2), (0, -a.shape[1] % 4)))
    b_padded = np.pad(b, ((0, -len(b) % 4), (0, 16)))       # 16: or all rows start at one place of a memory page
    out = np.zeros((len(padded), b_padded.shape[1]), np.result_type(a, b))
    add_product(padded, b_padded, out)
    return out[:len(a), :b.shape[1]]


# In vector IR, because the compiler's own vectors reach half the chip's rate. All arrays go by address.

def vector_type():
    """The host's float32 vector, its lanes, and the rows in a tile: as few as hide the latency of an FMA."""
    from llvmlite import binding, ir
    features = binding.get_host_cpu_features()
    lanes, rows = (16, 2) if features.get("avx512f") else (8, 1) if features.get("avx2") else (4, 1)
    return ir.VectorType(ir.FloatType(), lanes), lanes, rows


def _pointer(b, address, offset, kind):
    return b.inttoptr(b.add(address, address.type(offset)), kind.as_pointer())


def tile_rows(typingctx):
    """How many rows share a mask and a tile."""
    from numba import types
    rows = vector_type()[2]
    return types.intp(), lambda context, b, signature, args: context.get_constant(types.intp, rows)


def multiply_tile(typingctx, x, mask, w, y, resume):
    """y (+)= x @ w for the rows of a tile, over a slab of 64 inputs and 64 outputs.

    Bit k of the mask tells whether any of the rows has a nonzero k-th input; the others are not visited.
    The sums live in registers: LLVM promotes `alloca`s whose address goes nowhere.
    """
    from llvmlite import ir
    from numba.core import cgutils, types
    vector, lanes, rows = vector_type()
    tile = [(r, v) for r in range(rows) for v in range(COLUMNS // lanes)]

    def codegen(context, b, signature, args):
        x, mask, w, y, resume = args
        i64, f32, zeros = x.type, vector.element, ir.Constant(ir.VectorType(ir.IntType(32), lanes), None)
        fma = cgutils.get_or_insert_function(
            b.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fmuladd.v{lanes}f32")
        out = {(r, v): _pointer(b, y, (r * COLUMNS + v * lanes) * 4, vector) for r, v in tile}
        sums = {at: cgutils.alloca_once(b, vector) for at in tile}
        left = cgutils.alloca_once_value(b, mask)
        for at in tile:
            b.store(ir.Constant(vector, None), sums[at])
        with b.if_then(resume):
            for at in tile:
                b.store(b.load(out[at], align=4), sums[at])
        test, step, done = map(b.append_basic_block, ("test", "step", "done"))
        b.branch(test)
        b.position_at_end(test)
        bits = b.load(left)
        b.cbranch(b.icmp_unsigned("!=", bits, i64(0)), step, done)
        b.position_at_end(step)
        k = b.cttz(bits, ir.IntType(1)(1))                      # the lowest bit that is set ...
        b.store(b.and_(bits, b.sub(bits, i64(1))), left)        # ... which is now done
        x_k, w_k = b.add(x, b.mul(k, i64(4))), b.add(w, b.mul(k, i64(COLUMNS * 4)))
        columns = [b.load(_pointer(b, w_k, 4 * v, vector), align=4) for v in range(0, COLUMNS, lanes)]
        for r, v in tile:
            if v == 0:
                value = b.load(_pointer(b, x_k, r * COLUMNS * 4, f32), align=4)
                one = b.insert_element(ir.Constant(vector, ir.Undefined), value, ir.IntType(32)(0))
                broadcast = b.shuffle_vector(one, one, zeros)
            b.store(b.call(fma, [broadcast, columns[v], b.load(sums[r, v])]), sums[r, v])
        b.branch(test)
        b.position_at_end(done)
        for at in tile:
            b.store(b.load(sums[at]), out[at], align=4)
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
        sums = [cgutils.alloca_once(b, vector) for _ in columns]
        for s in sums:
            b.store(zero, s)
        with cgutils.for_range(b, i64(GROUP // rows)) as tile:
            z_tile, mask = b.add(z, b.mul(tile.index, i64(rows * COLUMNS * 4))), i64(0)
            for s, column in zip(sums, columns):
                any_nonzero = ir.Constant(ir.VectorType(ir.IntType(1), lanes), None)
                for r in range(rows):
                    here = _pointer(b, z_tile, (r * COLUMNS + column) * 4, vector)
                    value = b.fadd(b.load(here, align=4), zero)     # or LLVM stores by mask: slow on AMD
                    value = b.select(b.fcmp_ordered("<", value, zero), zero, value)     # a NaN stays
                    b.store(value, here, align=4)
                    b.store(b.fadd(b.load(s), value), s)
                    any_nonzero = b.or_(any_nonzero, b.fcmp_unordered("!=", value, zero))
                bits = b.zext(b.bitcast(any_nonzero, ir.IntType(lanes)), i64)
                mask = b.or_(mask, b.shl(bits, i64(column)))
            b.store(mask, _pointer(b, b.add(masks, b.mul(tile.index, i64(8))), 0, i64))
        for s, column in zip(sums, columns):
            b.store(b.load(s), _pointer(b, total, column * 4, vector), align=4)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), codegen


# ======================================================================================
# Truth
#
# The mean of every neuron, with an error bar. Samples come as antithetic pairs in groups. The final layer
# also gets control variates: the means of |z1| and z2^2 (pre-activations of layers 1 and 2) are known in
# closed form, and so, from the derivative of mean propagation, is about how far their scatter moves the
# final layer. One number, the scale of that correction, is fitted. Any coefficients leave the truth
# unbiased; poor ones only make it less precise.
# ======================================================================================

POOL = 4              # of the engine's groups are one observation of the final layer
CHUNK = 4096          # samples that enter the moments at once; checkpoints are CHUNK * 2**k
MIN_FOLD_GROUPS = 8   # a fold of fewer groups is no judge of the scale: plain pairs


def times(vector, matrix):
    """vector @ matrix, to the same bits however many threads BLAS has."""
    return np.einsum("i,ij->j", vector, matrix)


def control_variates(weights):
    """What the weights alone say of the features |z1| and z2^2 (depth >= 2).

    Returns their exact means (2 * width,); the coefficients (2 * width, width) float32, change of the final
    means per unit of each feature; and `centre` (width,), rough final means.

    E|z1_j| = |w_j| sqrt(2/pi); E z2_i^2 = (W2' M W2)_ii with M the arc-cosine kernel (Cho and Saul 2009).
    A pair's mean of z2 is |z1| @ W2 / 2, so a group's features give mean and variance of its z2; mean
    propagation (pre-activations as independent Gaussians) takes these to the final means. The coefficients
    are its derivative, by the chain rule from the last layer back.
    """
    first, second = (w.astype(np.float64) for w in weights[:2])
    norms = np.maximum(np.linalg.norm(first, axis=0), 1e-150)
    abs_z1 = norms * math.sqrt(2 / math.pi)
    cosine = np.clip(matrix_product((first / norms).T, first / norms), -1, 1)
    kernel = np.sqrt(1 - cosine ** 2) + (math.pi - np.arccos(cosine)) * cosine
    kernel *= np.outer(norms, norms) / (2 * math.pi)
    square_z2 = (matrix_product(kernel, second) * second).sum(0)

    mean_z2 = mean = times(abs_z1, second) / 2
    variance, slopes = square_z2 - mean ** 2, []
    centre = relu_variance = None           # of the layer before
    for w in weights[1:]:
        if slopes:
            mean, variance = times(centre, w), times(relu_variance, w * w)
        sigma = np.sqrt(np.maximum(variance, 1e-12 * variance.mean() + 1e-36))
        on = np.array([math.erfc(-a / math.sqrt(2)) / 2 for a in mean / sigma])
        density = np.exp(-(mean / sigma) ** 2 / 2) / math.sqrt(2 * math.pi)
        centre = mean * on + sigma * density
        relu_variance = np.maximum((mean ** 2 + variance) * on + mean * sigma * density - centre ** 2, 0)
        # d(mean of relu) / d(mean, variance of z), then the same of its variance
        slopes.append(np.array([on, density / (2 * sigma),
                                2 * centre * (1 - on), on - centre * density / sigma], np.float32))

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
    return np.concatenate([abs_z1, square_z2]), coefficients, centre


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


class WhiteBox:
    """What a network's weights alone say of its truth, and how sums over samples make it one.

    Sums are dictionaries of arrays; those of several chunks are added key by key. Even and odd pools are two folds.
    """

    def __init__(self, weights):
        self.controls = control_variates(weights) if len(weights) > 1 else None
        self.first_mean = np.linalg.norm(weights[0].astype(np.float64), axis=0) / math.sqrt(2 * math.pi)

    def sums(self, blocks):
        """The sums over one chunk, a list of engine blocks."""
        groups = np.concatenate([np.minimum(b.n_samples - np.arange(0, b.n_samples, GROUP), GROUP) for b in blocks])
        starts = np.arange(0, len(groups), POOL)
        size = np.add.reduceat(groups, starts)

        def by_fold(x, **kwargs):
            return np.array([x[fold::2].sum(0, **kwargs) for fold in (0, 1)])
        s = {key: functools.reduce(np.add, [getattr(b, key) for b in blocks])
             for key in ("layer_sums", "layer_squares", "final_squares")}
        s |= {"n_samples": by_fold(size), "squared_sizes": np.array([groups @ groups, size @ size])}
        if self.controls is None:
            return s
        sums = np.concatenate([np.concatenate([b.final, b.abs_z1, b.square_z2], axis=1) for b in blocks])
        final, features = np.split(np.add.reduceat(sums, starts), [len(self.first_mean)], axis=1)
        # F: centred final sums, P: predicted from the features, R: what is left. Float32 is enough here:
        # products carry the error bars and the scale, never the mean.
        means, coefficients, centre = self.controls
        F = final - np.outer(size, centre).astype(np.float32)
        P = matrix_product(features - np.outer(size, means).astype(np.float32), coefficients)
        return s | {"final": by_fold(final, dtype=np.float64), "features": by_fold(features, dtype=np.float64),
                    "traces": np.array([by_fold((x * P).sum(1, dtype=np.float64)) for x in (F, P)]),
                    "products": np.array([matrix_product(x.T, x) for x in (F, P, F - P)])}

    def truth(self, s, plain=False):
        """The Truth that these sums make; `plain` leaves the control variates out."""
        folds = s["n_samples"]
        n = int(folds.sum())
        group_size, pool_size = s["squared_sizes"] / n
        mean = s["layer_sums"] / n

        def error(squares, product_of_means, size):
            """(Co)variance of the mean from sums of squared group sums; the last group may be smaller."""
            return (squares - n * size * product_of_means) / ((n - size) * n or math.nan)

        sample_variance = np.maximum(s["final_squares"] / n - mean[-1] ** 2, 0)
        variance = error(s["layer_squares"], mean ** 2, group_size)
        mean[0], variance[0] = self.first_mean, 0
        covariance, scales = np.zeros((len(mean[0]),) * 2), np.zeros(2)
        if self.controls is not None:
            means, coefficients, centre = self.controls
            F = s["final"] - np.outer(folds, centre)
            P = matrix_product(s["features"] - np.outer(folds, means), coefficients)
            if not plain and folds.min() >= MIN_FOLD_GROUPS * POOL * GROUP:
                # Least squares of F on P, one number for all neurons, each fold's from the other: no sample
                # judges its own scale. 1 where mean propagation is right, 0 where it says nothing. Rounded,
                # so that the last bits of a product do not reach the mean.
                FP, PP = s["traces"]
                slope = (FP - (F * P).sum(1) * POOL * GROUP / folds) / np.maximum(PP, 1e-30)
                scales = np.nan_to_num(np.round(slope * 64) / 64)[::-1]
            mean[-1] = (s["final"] - scales[:, None] * P).sum(0) / n
            # F - aP has covariance (1 - a) FF + (a^2 - a) PP + a RR, as FP + PF = FF + PP - RR.
            F, P = F.sum(0) / n, P.sum(0) / n
            parts = np.array([1 - scales, scales ** 2 - scales, scales]) @ folds / n
            covariance = sum(part * error(squares, np.outer(m, m), pool_size)
                             for part, squares, m in zip(parts, s["products"], (F, P, F - P)))
            variance[-1] = np.diag(covariance)
        return Truth(n, mean, np.sqrt(np.maximum(variance, 0)), sample_variance, covariance,
                     float(scales @ folds / n))


def checkpoints(width: int, depth: int, max_work: float) -> Iterator[int]:
    """Numbers of samples at which `auto` may stop: CHUNK * 2^k, up to max_work dense FLOPs of sampling."""
    n = CHUNK
    while n == CHUNK or 2 * width**2 * depth * n <= max_work:
        yield n
        n *= 2


# ======================================================================================
# Truth, second half: growing, remembered, shared
#
# The sums of a truth are a binary tree over chunks of samples. Any node can be computed
# anywhere, and nodes are added in one order only: neither workers nor interruptions move
# a bit. The store forgets rather than errs. Suites and published datasets are read here.
# ======================================================================================

STREAM = "2"        # of random numbers and their sums; the store never mixes two versions


class InvalidDatasetError(WhestError, ValueError):
    """A suite or dataset that cannot be used; the message says what is wrong with it."""


@contextlib.contextmanager
def reading(path):
    """Whatever is found wrong with a file, say it in one sentence."""
    try:
        yield
    except WhestError:
        raise
    except Exception as exc:
        what = f"it has no {exc}" if isinstance(exc, KeyError) else exc
        raise InvalidDatasetError(f"{path} is not a usable suite or dataset: {what}") from exc


def need(module: str, extra: str):
    """Import an optional package, or name the extra that brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as exc:
        raise WhestError(f"{module} is not installed: pip install 'whestbench-kit[{extra}]'") from exc


def fingerprint(*arrays) -> str:
    """SHA-256 of arrays, their shapes and types."""
    digest = hashlib.sha256()
    for array in map(np.ascontiguousarray, arrays):
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()


class TruthSource:
    """The truth of one network as it grows; the same to the bit however it got there.

    `stack`: what has been summed, (n_chunks, sums) of falling powers of two, the binary digits of their number.
    """

    def __init__(self, weights, store: TruthStore | None = None, plain: bool = False):
        self.weights, self.store, self.plain = [np.asarray(w, np.float32) for w in weights], store, plain
        self.width, self.depth, sha256 = len(weights[0]), len(weights), fingerprint(*self.weights)
        self.name, self.key = f"{self.width}x{self.depth}-{sha256[:32]}", int(sha256[:16], 16)
        self.stack, self.saved, self.saved_at, self.truth = [], None, time.monotonic(), None
        self.network = self.white_box = None

    n_chunks = property(lambda self: sum(size for size, _ in self.stack))

    def prepare(self) -> None:
        """Work out what sampling takes."""
        self.network = self.network or pack_weights(self.weights)
        self.white_box = self.white_box or WhiteBox(self.weights)

    def __getstate__(self) -> dict:
        """What another process must know."""
        return vars(self) | {"network": None, "store": None, "stack": [], "truth": None}

    def at(self, n_samples: int, executor: concurrent.futures.Executor | None = None) -> Truth:
        """The truth of exactly `n_samples`; samples only what is neither here nor in the store."""
        return grow_together([self], n_samples, executor=executor)[0][0]

    def sums(self, first: int, n_chunks: int, n_samples: int) -> dict:
        """Sums over a node, `n_chunks` from chunk `first` on; or over the first `n_samples` of one chunk."""
        if n_chunks > 1:
            return add_sums(*(self.sums(i, n_chunks // 2, n_samples) for i in (first, first + n_chunks // 2)))
        self.prepare()      # in another process the network is yet to be packed
        size = samples_per_block(self.width)
        return self.white_box.sums([simulate_block(self.network, self.key, i, min(size, n_samples - start))
                                    for i, start in enumerate(range(0, n_samples, size), first * -(-CHUNK // size))])

    def recall(self, n_samples: int, stack: list | None = None) -> Truth | None:
        """The truth that is remembered for `n_samples`, or that of a stack, to be remembered."""
        file = f"{self.name}/{n_samples}{'-plain' * self.plain}"
        if stack:
            total = add_sums(*(sums for _, sums in stack[::-1]))
            arrays = pack_truth(self.white_box.truth(total, self.plain))
            if self.store:
                self.store.put(file, arrays)
        elif self.truth and self.truth.n_samples == n_samples:
            return self.truth
        else:
            arrays = self.store and self.store.get(file)
        self.truth = arrays and unpack_truth(arrays)        # rounded, whether it comes from the store or not
        return self.truth

    def nodes(self, n_samples: int, n_workers: int) -> Iterator[tuple]:
        """What is yet to be summed, as arguments of `sums`."""
        end, rest = divmod(n_samples, CHUNK)
        if self.store and self.saved is None:
            kept = self.store.get(f"{self.name}/sums") or {"sizes": []}
            sizes = [int(size) for size in kept.pop("sizes")]
            self.saved = sum(sizes)
            if self.n_chunks < self.saved <= end:
                self.stack = [(size, {k: a[i] for k, a in kept.items()}) for i, size in enumerate(sizes)]
        if self.n_chunks > end:
            self.stack = []
        done = self.n_chunks
        # Up to 2^40 FLOPs are worth the way to another process, unless that leaves workers idle.
        most = min(2**39 // (CHUNK * self.width**2 * self.depth), (end - done) // (4 * n_workers))
        while done < end:
            size = min(done & -done or 1, *(1 << max(n, 1).bit_length() - 1 for n in (most, end - done)))
            yield done, size, CHUNK
            done += size
        if rest:
            yield end, 1, rest

    def receive(self, sums: dict, size: int, n_samples: int) -> None:
        """Add the next node."""
        if n_samples < CHUNK:
            self.recall(self.n_chunks * CHUNK + n_samples, [*self.stack, (size, sums)])
            return
        stack = self.stack
        while stack and stack[-1][0] == size:
            sums, size, stack = add_sums(stack[-1][1], sums), 2 * size, stack[:-1]
        self.stack = [*stack, (size, sums)]     # in one go, whenever Ctrl-C strikes
        if self.store and not stack:            # a checkpoint
            self.recall(size * CHUNK, self.stack)
        if time.monotonic() > self.saved_at + 60:
            self.save()

    def save(self) -> None:
        """Keep the sums: another run goes on from here."""
        self.saved_at = time.monotonic()
        if self.store and self.n_chunks > (self.saved or 0):
            sizes, sums = zip(*self.stack)
            self.store.put(f"{self.name}/sums", {k: [s[k] for s in sums] for k in sums[0]} | {"sizes": sizes})
            self.saved = self.n_chunks


def add_sums(first: dict, *others: dict) -> dict:
    """The sums of several nodes, added in the order given."""
    return {k: functools.reduce(np.add, (other[k] for other in others), a) for k, a in first.items()}


def grow_together(sources: list[TruthSource], n_samples: int | None = None, error_of: Callable | None = None,
                  precision: float = 0.02, max_work: float = 2**40, executor: concurrent.futures.Executor | None = None,
                  progress: Callable[[int, int, Any], None] = lambda *_: None) -> tuple[list[Truth], Any]:
    """The truths at `n_samples`; or, None, at the first checkpoint where `error_of(truths).precise(precision)`.

    Gives up at `max_work` dense FLOPs a network. Returns the truths and the last `error_of(truths)`; `progress` gets
    samples done, samples to do, and that error so far. What an interruption leaves is in the store.
    """
    error = None
    try:
        for goal in [n_samples] if n_samples else checkpoints(sources[0].width, sources[0].depth, max_work):
            def report(done: int) -> None:
                progress(done, len(sources) * goal, error)
            try:
                grow(sources, goal, executor, report)
            except concurrent.futures.BrokenExecutor:
                print("whest: the workers are lost; going on without them.", file=sys.stderr)
                executor = None
                grow(sources, goal, executor, report)
            truths = [source.recall(goal) or source.recall(goal, source.stack) for source in sources]
            error = error_of(truths) if error_of else None
            if error and error.precise(precision):
                break
    finally:
        for source in sources:
            source.save()
    return truths, error


def grow(sources: list[TruthSource], goal: int, executor, report: Callable[[int], None]) -> None:
    """Sample what these sources lack up to `goal`, a bounded number of nodes in flight, and add it in order."""
    with concurrent.futures.ThreadPoolExecutor(_n_threads) as threads:
        pool, pending = executor or threads, deque()
        n_workers = getattr(pool, "_max_workers", 16)
        wanted = [(i, source) for i, source in enumerate(sources) if not source.recall(goal)]
        list(threads.map(TruthSource.prepare, [source for _, source in wanted]))
        todo = ((i, node) for i, source in wanted for node in source.nodes(goal, n_workers))
        try:
            while True:
                for i, node in itertools.islice(todo, n_workers + 2 - len(pending)):
                    pending.append((i, node, pool.submit(sources[i].sums, *node)))
                if not pending:
                    return
                i, (first, size, n), future = pending.popleft()
                sources[i].receive(future.result(), size, n)
                report(i * goal + first * CHUNK + size * n)
        finally:
            for *_, future in pending:
                future.cancel()


class DaskExecutor:
    """The workers of a Dask cluster. A network is sent to them once, and again where one is lost."""

    def __init__(self, address: str):
        connect, self.source = need("distributed", "cluster").Client, None
        try:
            self.client = connect(address, timeout=5)
        except (OSError, ValueError) as exc:
            raise WhestError(f"No Dask cluster answers at {address}: {exc}.") from exc
        self.client.upload_file(__file__, load=False)
        self._max_workers = sum(self.client.nthreads().values())
        if not self._max_workers:
            self.client.close()
            raise WhestError(f"The Dask cluster at {address} has no workers.")

    def submit(self, method, *node):
        if method.__self__ is not self.source:
            self.source = method.__self__
            self.sent = self.client.submit(lambda source: source, self.source, pure=False)
        return self.client.get_executor(pure=False).submit(TruthSource.sums, self.sent, *node)


def pack_truth(truth: Truth) -> dict:
    """A truth as arrays; the covariance, most of it, in single precision."""
    return {name: np.asarray(a, np.float32 if name == "covariance" else None) for name, a in vars(truth).items()}


def unpack_truth(arrays: dict) -> Truth:
    """The truth that `pack_truth` made arrays of."""
    return Truth(**{name: a.astype(np.float64) if a.ndim else a.item() for name, a in arrays.items()})


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside this one, to be written and then moved there: all of it or nothing."""
    part = path.with_name(f".{os.urandom(6).hex()}{path.suffix}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_npz(path: Path, arrays: dict) -> None:
    """Write all of a .npz or nothing; each of its members carries a CRC-32."""
    with replacing(path) as part, part.open("wb") as file:
        np.savez(file, **arrays)


class TruthStore:
    """What is known of truths: a folder of .npz files for each network. What it cannot keep or read is sampled again.

    `folder` defaults to $WHESTBENCH_CACHE, or whestbench in the user's cache directory.
    """

    def __init__(self, folder: str | os.PathLike | None = None):
        base = os.environ.get("XDG_CACHE_HOME") or ("~/Library/Caches" if sys.platform == "darwin" else "~/.cache")
        folder = folder or os.environ.get("WHESTBENCH_CACHE") or os.path.join(base, "whestbench")
        self.folder, self.trouble = Path(os.path.expanduser(folder)) / f"truth-{STREAM}", None

    @contextlib.contextmanager
    def trying(self, name: str):
        """Trouble with a file is worth one line, and no more."""
        try:
            yield self.folder / f"{name}.npz"
        except Exception as exc:        # a damaged file can raise anything
            if not self.trouble:
                self.trouble = f"cannot use {self.folder}/{name}.npz ({type(exc).__name__}: {exc}); sampling instead."
                print(f"whest: {self.trouble}", file=sys.stderr)

    def get(self, name: str) -> dict | None:
        """The arrays that were put under this name, or None."""
        with self.trying(name) as path:
            if path.exists():
                with np.load(path, allow_pickle=False) as file:
                    arrays = dict(file)
                if str(arrays.pop("name")) != name:
                    raise ValueError("it belongs elsewhere")
                return arrays

    def put(self, name: str, arrays: dict) -> None:
        with self.trying(name) as path:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_npz(path, arrays | {"name": name})


class Suite(typing.NamedTuple):
    """Networks with their truths; `about` says where they come from."""
    mlps: list[MLP]
    truths: list[Truth]
    about: dict


def write_suite(path: str | os.PathLike, suite: Suite) -> None:
    """Write a suite as one portable .npz without pickles."""
    arrays, networks = {}, []
    for i, (mlp, truth) in enumerate(zip(suite.mlps, suite.truths)):
        members = {"weights": np.array([np.asarray(w) for w in mlp.weights]), **pack_truth(truth)}
        networks.append({"name": mlp.name, "seed": mlp.seed, "sha256": fingerprint(*members.values())})
        arrays |= {f"{i}/{name}": a for name, a in members.items()}
    about = {"stream": STREAM, "whestbench_version": __version__, "networks": networks,
             "created_at_utc": datetime.now(timezone.utc).isoformat()}
    write_npz(Path(path), arrays | {"suite": json.dumps(suite.about | about)})


def read_suite(path: str | os.PathLike, n_mlps: int | None = None) -> Suite:
    """The suite in a file, or its first networks. Raises InvalidDatasetError if anything about it is wrong."""
    mlps, truths = [], []
    with reading(path), np.load(path, allow_pickle=False) as file:
        about = json.loads(str(file["suite"]))
        for i, entry in enumerate(about["networks"][:n_mlps]):
            members = {key.split("/")[1]: file[key] for key in file.files if key.startswith(f"{i}/")}
            if fingerprint(*members.values()) != entry["sha256"]:
                raise ValueError(f"network {i} does not have the hash that it was written with")
            weights = members.pop("weights")
            mlp, truth = mlp_of(weights, entry["seed"], entry["name"]), unpack_truth(members)
            if weights.shape != (mlp.depth, mlp.width, mlp.width) or truth.mean.shape != weights.shape[:2]:
                raise ValueError(f"network {i} has weights {weights.shape} and a truth {truth.mean.shape}")
            if not np.isfinite(weights).all() or not np.isfinite(truth.mean).all():
                raise ValueError(f"network {i} is not finite")
            mlps.append(mlp)
            truths.append(truth)
        return Suite(mlps, truths, about | {"path": str(Path(path).resolve()), "n_mlps": len(about["networks"])})


def mlp_of(weights: np.ndarray, seed: int, name: str) -> MLP:
    """The network of these weights `(depth, width, width)`."""
    return MLP(weights.shape[-1], len(weights), [fnp.asarray(w) for w in weights], seed, name)


class Dataset(list):
    """The rows, dictionaries, of one split of a published dataset; `metadata` is that of the whole."""

    column_names = property(lambda self: list(self[0]) if self else [])

    def __init__(self, folder: Path, metadata: dict, split: str, n_rows: int | None = None):
        parquet, width, depth = need("pyarrow.parquet", "parquet"), metadata["width"], metadata["depth"]
        shapes = {"weights": (depth, width, width), "all_layer_means": (depth, width), "final_means": (width,)}
        splits = metadata.get("splits") or {metadata["split"]: metadata}
        if split not in splits:
            raise InvalidDatasetError(f'Unknown split "{split}". Should be one of {sorted(splits)}.')
        self.metadata, self.n_mlps = metadata, splits[split]["n_mlps"]
        files = map(parquet.ParquetFile, sorted((folder / "data").glob(f"{split}-*.parquet")))
        for batch in itertools.islice((batch for file in files for batch in file.iter_batches(1)), n_rows):
            row = dict(zip(batch.schema.names, batch.columns))
            for name, column in row.items():
                while name in shapes and column.type.num_fields:
                    column = column.flatten()
                row[name] = np.array(column, np.float32).reshape(shapes[name]) if name in shapes else column[0].as_py()
            self.append(row)


def open_dataset(path_or_repo, revision: str | None = None, token: str | None = None) -> tuple[Path, dict]:
    """The folder of a dataset, fetched if it is hf://owner/name[@revision], and its metadata."""
    name, folder = str(path_or_repo), Path(path_or_repo).expanduser()
    if name.startswith("hf://"):
        repo, _, pinned = name[5:].partition("@")
        download = need("huggingface_hub", "hub").snapshot_download
        folder = Path(download(repo, repo_type="dataset", revision=pinned or revision, token=token))
    about = json.loads((folder / "metadata.json").read_text())
    known = about["schema_version"] == "3.0" and about["seed_protocol"]["version"] in ("2.0", "3.0", "4.0")
    if not known or about.get("is_partial"):
        raise ValueError("its schema or seed protocol is not known, or it is a part, to be merged with the others")
    return folder, about


def load_dataset(path_or_repo, *, revision=None, split=None, token=None, streaming=False):
    """The rows of a contest dataset, a folder or hf://owner/name; of all its splits, by name, where it has several."""
    with reading(path_or_repo):
        folder, about = open_dataset(path_or_repo, revision, token)
        if split or "splits" not in about:
            return Dataset(folder, about, split or about["split"])
        return {name: Dataset(folder, about, name) for name in about["splits"]}


def mlp_at(ds: Dataset, index: int) -> MLP:
    """Network `index` of a dataset, with the seed that the contest derives for it."""
    if not isinstance(ds, Dataset):
        raise TypeError("Choose a split first: load_dataset(path, split=NAME).")
    row, protocol = ds[index], ds.metadata["seed_protocol"]
    seed = row["mlp_seed"]
    if protocol["version"] == "3.0":
        seed = int(np.random.SeedSequence(seed).spawn(3)[2].generate_state(1)[0])
    elif protocol["version"] == "4.0":
        withheld = protocol.get("salt_source") == "env"
        salt = bytes.fromhex((os.environ.get("WHEST_SEED_SALT") if withheld else protocol.get("salt")) or "")
        if not salt or protocol.get("salt_digest") not in (None, hashlib.sha256(salt).hexdigest()):
            raise InvalidDatasetError("The salt of the dataset's seeds is missing or wrong (WHEST_SEED_SALT, if withheld).")
        digest = hashlib.blake2b(seed.to_bytes(8, "big"), digest_size=8, key=salt, person=b"whest-4.0-est").digest()
        seed = int.from_bytes(digest[-4:], "big")
    return mlp_of(row["weights"], seed, row["mlp_name"])


def iter_mlps(ds: Dataset) -> Iterator[MLP]:
    """The networks of a dataset, in order."""
    return (mlp_at(ds, i) for i in range(len(ds)))


def read_dataset(path: str, split: str | None = None, n_mlps: int | None = None) -> Suite:
    """What `run --dataset` scores on: a suite file, or a published dataset with its own targets."""
    if Path(path).is_file():
        return read_suite(path, n_mlps)
    with reading(path):
        folder, about = open_dataset(path)
        split = split or about.get("split") or about.get("default_split")
        if not split:
            raise Misuse(f"{path} has the splits {sorted(about['splits'])}: choose one with --split.")
        ds = Dataset(folder, about, split, n_mlps)
        about = {"path": path if path.startswith("hf://") else str(folder.resolve()), "seed": about.get("seed"),
                 "sha256": hashlib.sha256((folder / "metadata.json").read_bytes()).hexdigest(), "n_mlps": ds.n_mlps}
        return Suite(list(iter_mlps(ds)), [published_truth(row, ds.metadata["n_samples"]) for row in ds], about)


def published_truth(row: dict, n_samples: int) -> Truth:
    """Published targets with error bars of plain sampling: the published variance, spread as in 512 samples of ours."""
    width = len(row["final_means"])
    x = [np.random.default_rng(0).standard_normal((512, width), np.float32)]
    for weight in row["weights"]:
        x.append(np.maximum(x[-1] @ weight, 0))
    covariance = np.atleast_2d(np.cov(x[-1], rowvar=False))
    covariance *= row["avg_variance"] * width / max(np.trace(covariance), 1e-30)
    mean = np.array([*row["all_layer_means"][:-1], row["final_means"]], np.float64)
    error = np.std(x[1:], 1) / n_samples**0.5
    return Truth(n_samples, mean, error, np.diag(covariance), covariance / n_samples, 0.0)


# ======================================================================================
# Baselines
#
# Six estimators to be measured against, from nothing to second-order moment propagation.
# Written against fnp like any participant's, so that their bills are what yours would be.
# ======================================================================================


def zeros(mlp: MLP, budget: int):
    """Predict that no neuron ever fires: what a failed estimator is scored as."""
    return fnp.zeros((mlp.depth, mlp.width))


def random(mlp: MLP, budget: int):
    """Predict uniform noise: what an estimator that looks at nothing deserves."""
    return fnp.random.default_rng(mlp.seed).uniform(0.0, 1.0, size=(mlp.depth, mlp.width))


def sampling(mlp: MLP, budget: int):
    """Spend a tenth of the budget, below which spending less earns nothing, on plain Monte Carlo."""
    n_samples = max(1, int(0.09 * budget / (2 * mlp.depth * mlp.width**2)))
    x = fnp.random.default_rng(mlp.seed).standard_normal((n_samples, mlp.width), dtype=fnp.float32)
    rows = []
    for weight in mlp.weights:
        x = fnp.maximum(fnp.matmul(x, weight), fnp.float32(0))
        rows.append(fnp.mean(x, axis=0))
    return fnp.stack(rows, axis=0)


def mean_propagation(mlp: MLP, budget: int):
    """Carry each neuron's mean and variance from layer to layer, as if neurons were independent Gaussians.

    For z ~ N(m, s^2): E relu(z) = m Phi(m/s) + s phi(m/s), E relu(z)^2 = (m^2 + s^2) Phi(m/s) + m s phi(m/s).
    """
    mean, variance, rows = fnp.zeros(mlp.width), fnp.ones(mlp.width), []
    for weight in mlp.weights:
        m = fnp.matmul(mean, weight)
        v = fnp.maximum(fnp.matmul(variance, weight * weight), 1e-12)
        s = fnp.sqrt(v)
        density, below = flops.stats.norm.pdf(m / s), flops.stats.norm.cdf(m / s)
        mean = m * below + s * density
        variance = fnp.maximum((m * m + v) * below + m * s * density - mean * mean, 0.0)
        rows.append(mean)
    return fnp.stack(rows, axis=0)


def covariance_propagation(mlp: MLP, budget: int):
    """Carry the mean and the whole covariance from layer to layer, as if pre-activations were jointly Gaussian.

    Off the diagonal the first two Hermite terms of Cov(relu(z_i), relu(z_j)) are kept (Price's theorem):
    K_ij Phi_i Phi_j + K_ij^2 phi_i phi_j / (2 s_i s_j).
    """
    mean, covariance, rows = fnp.zeros(mlp.width), fnp.eye(mlp.width), []
    for weight in mlp.weights:
        m = fnp.matmul(mean, weight)
        k = fnp.matmul(fnp.matmul(weight.T, covariance), weight)
        v = fnp.maximum(fnp.diag(k), 1e-12)
        s = fnp.sqrt(v)
        density, below = flops.stats.norm.pdf(m / s), flops.stats.norm.cdf(m / s)
        mean = m * below + s * density
        variance = fnp.maximum((m * m + v) * below + m * s * density - mean * mean, 0.0)
        slope = density / s
        covariance = k * fnp.outer(below, below) + k * k * fnp.outer(slope, slope) * 0.5
        fnp.fill_diagonal(covariance, variance)
        rows.append(mean)
    return fnp.stack(rows, axis=0)


def combined(mlp: MLP, budget: int):
    """Covariance propagation where the budget allows its matrix products at the lowest multiplier, else means."""
    affordable = 4 * mlp.depth * mlp.width**3 <= MULTIPLIER_FLOOR * budget
    return (covariance_propagation if affordable else mean_propagation)(mlp, budget)


BASELINES = {f.__name__: f for f in (zeros, random, sampling, mean_propagation, covariance_propagation, combined)}


class Baseline(BaseEstimator):
    """A baseline of BASELINES by its name, as an estimator."""

    def __init__(self, name: str):
        self.name = name

    def predict(self, mlp: MLP, budget: int):
        with warnings.catch_warnings():         # about our code, which its user cannot mend
            warnings.simplefilter("ignore", SymmetryLossWarning)
            return BASELINES[self.name](mlp, budget)


# ======================================================================================
# Scoring
#
# From what predict() gave and what it cost to the contest's numbers: the score of one
# network, the score of the suite, and how sure both are. Keys are those of the real
# `whest run --format json`; what we add stands beside them under names of its own.
# ======================================================================================

FLAGS = ("budget_exhausted", "time_exhausted", "residual_wall_time_exhausted", "combined_budget_exhausted")
TIMES = ("wall_time_s", "flopscope_backend_time_s", "flopscope_overhead_time_s", "residual_wall_time_s")


@dataclass
class Outcome:
    """What one predict() call gave and what it cost: a valid prediction `(depth, width)`, or why there is none.

    `flag` is one of FLAGS; `error` is `{"message", "details"}`; the four times are seconds.
    """

    prediction: np.ndarray | None = None
    flops_used: int = 0
    flops_charged: int = 0      # the same, but for a failure what it was charged until then
    wall_time_s: float = 0.0
    flopscope_backend_time_s: float = 0.0
    flopscope_overhead_time_s: float = 0.0
    residual_wall_time_s: float = 0.0
    breakdown: dict | None = None
    flag: str | None = None
    error: dict | None = None
    error_code: str | None = None
    traceback: str | None = None
    line: str = ""                              # of the participant's, where it failed
    lines: list = field(default_factory=list)   # the rows of a Profile, where one was kept

    @property
    def failed(self) -> bool:
        return self.prediction is None

    def effective_compute(self, rules: Round) -> float:
        """`C = F + lambda * R` in FLOPs, with R the residual wall time."""
        return self.flops_used + rules.lambda_flops_per_second * self.residual_wall_time_s

    def multiplier(self, rules: Round) -> float:
        """Share of the budget that was spent, at least 0.1; 1 for a failure."""
        return 1.0 if self.failed else max(MULTIPLIER_FLOOR, self.effective_compute(rules) / rules.flop_budget)

    def scored(self, truth: Truth) -> np.ndarray:
        """The prediction in float64, zeros for a failure."""
        return np.zeros_like(truth.mean) if self.failed else self.prediction.astype(np.float64)

    def apply_limits(self, rules: Round) -> Outcome:
        """Withdraw a prediction that came too late or cost too much, as the contest does after the call."""
        if not self.failed:
            limits = ((self.wall_time_s, rules.wall_time_limit, "time_exhausted"),
                      (self.residual_wall_time_s, rules.residual_wall_time_limit, "residual_wall_time_exhausted"),
                      (self.effective_compute(rules), rules.flop_budget, "combined_budget_exhausted"))
            self.flag = next((flag for spent, limit, flag in limits if limit is not None and spent > limit), None)
            if self.flag:
                self.prediction = None
        return self


NORMAL_975 = 1.959963984540054  # quantile that makes a two-sided 95% interval


@dataclass(frozen=True)
class TruthError:
    """A mean squared error, or a suite's mean of them, against noisy truths.

    `raw` as measured; `noise_floor`, its expected excess; `linear` + `quadratic`, the variance that truth
    noise gives it: parts that fall as 1 / n_samples and 1 / n_samples^2. `between`: the standard error of a
    suite's mean from the choice of its `n_networks` alone, None for one network.
    """
    raw: float
    noise_floor: float
    linear: float
    quadratic: float
    between: float | None = None
    n_networks: int = 1

    @property
    def corrected(self):
        """Unbiased for the error against exact truths; can be negative where noise hides a small one."""
        return self.raw - self.noise_floor

    @property
    def standard_error(self):
        """Of `corrected`, from truth noise."""
        return math.sqrt(self.linear + self.quadratic)

    @property
    def truth_interval(self):
        """95% interval for these networks' error against exact truths."""
        half = NORMAL_975 * self.standard_error
        return self.corrected - half, self.corrected + half

    @property
    def network_interval(self):
        """95% interval for the mean over all such networks, were the truths exact."""
        half = math.nan if self.between is None else student_975(self.n_networks - 1) * self.between
        return None if self.between is None else (self.corrected - half, self.corrected + half)

    def precise(self, precision):
        """Whether standard error and noise floor are within this share of the corrected error."""
        return max(self.standard_error, self.noise_floor) <= precision * self.corrected

    def growth_needed(self, precision):
        """How many times the samples that `precision` takes; None for an error not told from zero."""
        if self.corrected <= NORMAL_975 * self.standard_error:
            return None
        aim = precision * self.corrected
        noise = self.linear + math.sqrt(self.linear ** 2 + 4 * self.quadratic * aim ** 2)
        return max(self.noise_floor / aim, noise / (2 * aim ** 2))


def final_error(prediction, truth, multipliers=1.0):
    """Error of a prediction of the final layer (width,), or the weighted sum of those of several (k, width).

    Multipliers (k,) may be negative: noise that two scores share cancels in their difference. Where the truth
    is off by e ~ N(0, S), the sum of m |d - e|^2 is off by -2 g'e + sum(m) |e|^2, with g the sum of m d.
    """
    S, m = truth.covariance, np.reshape(multipliers, (-1, 1))
    # Summed one by one, so that equal predictions of opposite sign leave exactly nothing.
    deltas = np.atleast_2d(prediction) - truth.mean[-1]
    g, total, width = (m * deltas).sum(0), float(m.sum()), deltas.shape[1]
    # Taken out: the excess of tr SS, S being a sample covariance of f degrees of freedom (Wishart moments),
    # and that of g'Sg, the deltas holding the truth's noise.
    f = max(truth.n_samples / (POOL * GROUP) - 1, 2)
    trace_SS = max(((S * S).sum() - np.trace(S) ** 2 / f) * f * f / ((f + 2) * (f - 1)), 0)
    linear = max((S * np.outer(g, g)).sum() - total ** 2 * trace_SS, 0)
    return TruthError(float((m[:, 0] * (deltas ** 2).mean(1)).sum()), float(total * np.trace(S) / width),
                      float(4 * linear / width ** 2), float(2 * total ** 2 * trace_SS / width ** 2))


def suite_error(errors, multipliers):
    """The suite's score: the mean of multiplier * error over its networks."""
    columns = ((e.raw, e.noise_floor, e.linear, e.quadratic) for e in errors)
    raw, floor, linear, quadratic = np.array(list(columns)).T
    m, n, between = np.asarray(multipliers, float), len(errors), None
    if n > 1:
        # the scatter between networks, less what truth noise adds to it: that is the other interval's
        scatter = np.var(m * (raw - floor), ddof=1) - (m ** 2 * (linear + quadratic)).mean()
        between = math.sqrt(max(scatter, 0) / n)
    return TruthError(float((m * raw).mean()), float((m * floor).mean()), float(m ** 2 @ linear / n ** 2),
                      float(m ** 2 @ quadratic / n ** 2), between, n)


def student_cdf(t, dof):
    """P(T <= t) of Student's t: the finite sums of Abramowitz and Stegun 26.7.3 and 26.7.4."""
    angle, odd = math.atan2(t, math.sqrt(dof)), dof % 2
    powers = itertools.accumulate(range(2 + odd, dof, 2), lambda x, k: x * math.cos(angle) ** 2 * (k - 1) / k,
                                  initial=math.cos(angle) * (dof > 1) if odd else 1.0)
    total = math.sin(angle) * sum(powers)
    return (1 + (2 / math.pi * (angle + total) if odd else total)) / 2


def student_975(dof):
    """97.5% quantile of Student's t, to 1e-6."""
    return bisect.bisect(range(13 * 10**6), 0.975, key=lambda micro: student_cdf(micro / 1e6, dof)) / 1e6


def corrected_report(score: TruthError, precision: float) -> dict:
    """The `corrected` block of the document."""
    return {"score": score.corrected, "standard_error": score.standard_error, "noise_floor": score.noise_floor,
            "truth_interval": score.truth_interval, "network_interval": score.network_interval,
            "growth_needed": score.growth_needed(precision)}


def score_mlp(index: int, mlp: MLP, outcome: Outcome, truth: Truth, rules: Round) -> dict:
    """The report on one network, as in the real document. A failure is scored as zeros at the full budget."""
    prediction = outcome.scored(truth)
    squared_error = (prediction - truth.mean) ** 2
    multiplier = outcome.multiplier(rules)
    final = final_error(prediction[-1], truth)
    error = {} if outcome.error_code is None else {"error": outcome.error, "error_code": outcome.error_code}
    return {"mlp_index": index, "mlp_name": mlp.name, **error, "traceback": outcome.traceback,
            "final_layer_mse": final.raw, "all_layers_mse": float(squared_error.mean()),
            "per_layer_mse": squared_error.mean(axis=1).tolist(), "adjusted_final_layer_score": final.raw * multiplier,
            "flops_used": outcome.flops_used, "effective_compute": outcome.effective_compute(rules),
            **{flag: outcome.flag == flag for flag in FLAGS}, **{t: getattr(outcome, t) for t in TIMES},
            "breakdowns": {"estimator": outcome.breakdown}, "score_multiplier": multiplier,
            "truth_n_samples": truth.n_samples, "noise_floor": final.noise_floor,
            "corrected_final_layer_mse": final.corrected,
            "zeros_final_layer_mse": float((truth.mean[-1] ** 2).mean() - final.noise_floor),
            "sampling_variance": float(truth.variance.mean())}


def suite_score(outcomes: list[Outcome], truths: list[Truth], multipliers: Iterable[float]) -> TruthError:
    """The score of these outcomes against these truths."""
    errors = [final_error(outcome.scored(truth)[-1], truth) for outcome, truth in zip(outcomes, truths)]
    return suite_error(errors, list(multipliers))


def compare(ours: list, theirs: list, truths: list[Truth], rules: Round) -> dict:
    """The paired difference of two suite scores, ours less theirs, and how sure it is.

    `ours`, `theirs`: outcomes by repeat and network. The 95% interval is for all such networks, or the one.
    `networks_needed` would settle it with a chance of 80%, were the difference what it seems (Guenther 1981).
    """
    n, n_repeats = len(truths), len(ours)

    def errors(repeats) -> list[TruthError]:
        signed = [(sign / len(repeats), o[r]) for r in repeats for sign, o in ((1, ours), (-1, theirs))]
        return [final_error([o[i].scored(t)[-1] for _, o in signed], t,
                            [m * o[i].multiplier(rules) for m, o in signed]) for i, t in enumerate(truths)]

    mean = suite_error(errors(range(n_repeats)), np.ones(n))
    each = np.array([[error.corrected for error in errors([r])] for r in range(n_repeats)])
    own = math.sqrt(each.var(0, ddof=1).mean() / (n_repeats * n)) if n_repeats > 1 else None
    # The scatter between networks, where there are several, holds what the seeds do.
    spread = max(mean.between or 0.0, own or 0.0)
    error = math.hypot(mean.standard_error, spread)
    t = mean.corrected / error if error else math.copysign(math.inf, mean.corrected)
    dof = n - 1 or 9999         # as good as normal
    p, half = max(2 * student_cdf(-abs(t), dof), 1e-12) if each.any() else None, student_975(dof) * error
    networks = math.sqrt(spread ** 2 - (own or 0.0) ** 2) if n > 1 else None
    needed = None
    if n > 1 and p and t and p > 0.05:
        needed = max(n + 1, math.ceil(n * ((NORMAL_975 + 0.8416) / t) ** 2 + NORMAL_975 ** 2 / 2))
    parts = {"truth noise": mean.standard_error, "choice of networks": networks, "own randomness": own}
    return {"score": mean.corrected, "interval": (mean.corrected - half, mean.corrected + half), "p": p,
            "networks_needed": needed, "standard_error": error, "parts": parts, "n_repeats": n_repeats,
            "per_mlp": each.mean(0).tolist()}


def failed(entry: dict) -> bool:
    """Whether a per-MLP entry of the report is a failure of any kind."""
    return "error_code" in entry or any(entry[flag] for flag in FLAGS)


def score_suite(suite: list[MLP], outcomes: list[Outcome], truths: list[Truth], rules: Round, precision: float) -> dict:
    """The `results` of a run: means, extremes and failures over the networks, and the corrected score."""
    per_mlp = [score_mlp(i, *each, rules) for i, each in enumerate(zip(suite, outcomes, truths))]
    def mean(key: str) -> float:
        return float(np.mean([entry[key] for entry in per_mlp]))

    scores = [entry["adjusted_final_layer_score"] for entry in per_mlp]
    final = np.array([truths[0].mean[-1], outcomes[0].scored(truths[0])[-1]])
    points = np.round(final[:, ::-(-rules.width // 128)], 6).tolist()       # at most 128 neurons, for a plot
    counts = {flag: sum(entry[flag] for entry in per_mlp) for flag in FLAGS}
    return {"adjusted_final_layer_score": mean("adjusted_final_layer_score"), "final_layer_mse": mean("final_layer_mse"),
            "all_layers_mse": mean("all_layers_mse"),
            "per_layer_mse": np.mean([entry["per_layer_mse"] for entry in per_mlp], axis=0).tolist(),
            "best_mlp_adjusted_final_layer_score": min(scores), "worst_mlp_adjusted_final_layer_score": max(scores),
            "mean_score_multiplier": mean("score_multiplier"),
            "mean_compute_utilization": mean("effective_compute") / rules.flop_budget,
            "n_failed_mlps": sum(map(failed, per_mlp)), "mean_effective_compute": mean("effective_compute"),
            "failure_breakdown": counts | {"error": sum("error_code" in entry for entry in per_mlp)},
            "corrected": corrected_report(suite_score(outcomes, truths, [o.multiplier(rules) for o in outcomes]), precision),
            "final_layer_of_mlp_0": dict(zip(("true", "predicted"), points)), "per_mlp": per_mlp,
            "breakdowns": {"sampling": None,
                           "estimator": add_breakdowns([e["breakdowns"]["estimator"] for e in per_mlp])}}


def add_breakdowns(breakdowns: list):
    """Sum dictionaries of numbers, key by key and all the way down; None where there is nothing to sum."""
    present = [b for b in breakdowns if b is not None]
    if not present or not isinstance(present[0], dict):
        return sum(present) if present else None
    return {key: add_breakdowns([b.get(key) for b in present]) for key in dict.fromkeys(itertools.chain(*present))}


SAMPLE_COUNTS = (10, 100, 1_000, 10_000, 100_000)


def predict_within(estimator: BaseEstimator, mlp: MLP, flop_budget: int) -> tuple[np.ndarray, int]:
    """Set up an estimator and call it under a budget; the prediction `(depth, width)` and the FLOPs it used."""
    estimator.setup(SetupContext(mlp.width, mlp.depth, flop_budget, "1.0", seed=mlp.seed))
    with BudgetContext(flop_budget, quiet=True) as context:
        prediction = np.array(fnp.asarray(estimator.predict(mlp.copy(), flop_budget)))
    return prediction, context.flops_used


def convergence_tables(estimators: Iterable[BaseEstimator], mlp: MLP, flop_budget: int,
                       sample_counts: Iterable[int] = SAMPLE_COUNTS, seed: int = 0) -> list[list[dict]]:
    """For each estimator, its MSE over all layers against ever longer plain sampling, and at last the truth.

    The last row's MSE is corrected for the truth's own noise. Rows: n_samples, sampling_flops, estimator_flops, mse.
    """
    predictions = [predict_within(estimator, mlp, flop_budget) for estimator in estimators]
    references = []
    for n_samples in sample_counts:
        with BudgetContext(10**16, quiet=True) as sampling_cost:
            means = monte_carlo_layer_means(mlp, n_samples, seed)
        references.append((n_samples, sampling_cost.flops_used, np.asarray(means), 0.0))
    truth = TruthSource(mlp.weights).at(2**17)
    references.append(("truth", 0, truth.mean, float((truth.standard_error**2).mean())))
    return [[{"n_samples": n, "sampling_flops": flops, "estimator_flops": used,
              "mse": float(((prediction - means) ** 2).mean()) - noise} for n, flops, means, noise in references]
            for prediction, used in predictions]


def compare_against_monte_carlo(estimator: BaseEstimator, mlp: MLP, sample_counts: Iterable[int] = SAMPLE_COUNTS,
                                estimator_budget: int = 4 * 10**9, sampling_budget: int = 10**12, seed: int = 0,
                                submission_dir: str | None = None) -> None:
    """The starter kit's direct loop: print the convergence table of one estimator on one network."""
    print(f"MLP: width={mlp.width} depth={mlp.depth} seed={mlp.seed}")
    for row in table_lines(convergence_tables([estimator], mlp, estimator_budget, sample_counts, seed)[0]):
        print(row)


def table_lines(rows: list[dict]) -> list[str]:
    """A convergence table as right-aligned text."""
    lines = [f"{'n_samples':>10} | {'sampling_flops':>16} | {'estimator_flops':>15} | {'MSE':>11}", "-" * 61]
    for row in rows:
        n = row["n_samples"] if isinstance(row["n_samples"], str) else f"{row['n_samples']:,}"
        cost = f"{row['sampling_flops']:,}" if row["sampling_flops"] else "-"
        lines.append(f"{n:>10} | {cost:>16} | {row['estimator_flops']:>15,} | {row['mse']:>11.4e}")
    return lines


def grow_truths(suite: list[MLP], rivals: list, rules: Round, options, progress: Callable) -> list[Truth]:
    """Truths for estimators' outcomes: `--n-samples` exactly, or as many as make each suite score precise.

    Whether to stop is judged by FLOPs alone: neither the clock nor the store moves a reported number.
    """
    timeless = replace(rules, lambda_flops_per_second=0.0)

    def least_precise(truths: list[Truth]) -> TruthError:
        scores = [suite_score(each, truths, [o.multiplier(timeless) for o in each]) for each in rivals]
        return min(scores, key=lambda score: score.precise(options.precision))

    store = None if options.no_store else TruthStore()
    with concurrent.futures.ThreadPoolExecutor(_n_threads) as threads:      # hashing is half of a second run
        sources = list(threads.map(lambda mlp: TruthSource(mlp.weights, store, options.plain_truth), suite))
    return grow_together(sources, options.n_samples, least_precise, options.precision, options.max_work,
                         progress=progress)[0]


# ======================================================================================
# Runners
#
# Where predict() runs. The metered call turns whatever happens inside, a wrong shape, an
# exception, an endless loop, into an Outcome, so one network's failure costs that network
# only.
# ======================================================================================


class InvalidPrediction(ValueError):
    """A prediction that cannot be scored, with the real package's `details`."""

    def __init__(self, message: str, expected: tuple, got: tuple, hint: str):
        super().__init__(message)
        self.details = {"expected_shape": list(expected), "got_shape": list(got), "cause_hints": [hint], "hint": hint}


def materialise(raw: Any, mlp: MLP) -> np.ndarray:
    """Cast what predict() returned to float32, billed where the book bills casts. InvalidPrediction for a wrong shape."""
    shape, expected = tuple(getattr(raw, "shape", ())), (mlp.depth, mlp.width)
    if np.asarray(raw).dtype.kind not in "biufc" and shape:
        raise UnsupportedDtypeError(f"Predictions must be numbers, not {np.asarray(raw).dtype}.")
    if shape == expected:
        prediction = np.array(fnp.asarray(raw, dtype=np.float32))
        shape = prediction.shape        # what it says of itself need not be what it is
        if shape == expected:
            return prediction
    hint = "Stack one (width,) vector per layer: fnp.stack(rows, axis=0)."
    if raw is None:
        hint = "predict() returned nothing: end it with a return statement."
    elif shape == expected[::-1]:
        hint = "It seems transposed: return prediction.T."
    elif not hasattr(raw, "shape"):
        hint = f"It returned a {type(raw).__name__}, not an array. {hint}"
    raise InvalidPrediction(f"Predictions must have shape (depth={mlp.depth}, width={mlp.width}); got shape={shape}.",
                            expected, shape, hint)


def require_finite(prediction: np.ndarray) -> None:
    """InvalidPrediction naming the first layer with a NaN or an infinity."""
    bad = np.argwhere(~np.isfinite(prediction))
    if len(bad):
        layer, neuron = bad[0].tolist()
        value = prediction[layer, neuron]
        cause = ("0/0, inf - inf, or the root or logarithm of a negative number" if np.isnan(value)
                 else "a float32 overflow, or a division by zero")
        raise InvalidPrediction("Predictions must contain only finite values.", prediction.shape, prediction.shape,
                                f"{value} first seen at layer {layer}, neuron {neuron}: look there for {cause}.")


class Alarm:
    """Interrupt the main thread's Python code after `seconds`, again and again until it gives way.

    It strikes only in code outside this file: never between a charge and its log, nor in the runner itself, and not
    while a debugger has the floor. An estimator may swallow that: strikes come ten a millisecond, so that one soon
    meets it outside its `try`. What cannot be interrupted, C code or stolen signals, ends the process LAST_RESORT
    seconds later, with Python's own account of where it was. Does nothing in other threads, or where the platform
    has no interval timer.
    """

    LAST_RESORT = 30.0
    current = None      # the one in force

    def __init__(self, seconds: float | None, op_name: str):
        self.seconds, self.op_name = seconds, op_name
        self.works = (seconds is not None and hasattr(signal, "setitimer")
                      and threading.current_thread() is threading.main_thread())

    def set(self, seconds: float) -> None:
        """Strike after so many seconds, and from then on."""
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3), 1e-4)
        faulthandler.dump_traceback_later(seconds + self.LAST_RESORT, exit=True, file=2)

    def strike(self, signum, frame):
        elapsed, bdb = time.perf_counter() - self.start, sys.modules.get("bdb")
        if bdb is not None and isinstance(getattr(sys.gettrace(), "__self__", None), bdb.Bdb):
            return self.set(1.0)        # a debugger has the floor: ask again later
        # In the participant's own frames first: library code may be a callback, where an exception would be lost.
        module, ours = "" if frame is None else frame.f_globals.get("__name__", ""), (__name__, "contextlib")
        if module.startswith(SUBMISSION) or module not in ours and elapsed > self.seconds + 0.1:
            raise TimeExhaustedError(self.op_name, elapsed_s=elapsed, limit_s=self.seconds)

    def __enter__(self):
        Alarm.current, self.process, self.start = self, os.getpid(), time.perf_counter()
        if self.works:
            self.previous = signal.signal(signal.SIGALRM, self.strike)
            self.set(self.seconds + 1e-3)       # when the context's clock, begun later, is past the limit too
        return self

    def stop(self) -> float:
        """Stop; return the seconds that were left."""
        faulthandler.cancel_dump_traceback_later()
        return signal.setitimer(signal.ITIMER_REAL, 0)[0]

    def __exit__(self, *_):
        if os.getpid() != self.process:     # a fork of the estimator's has come back too
            os._exit(1)
        Alarm.current = None
        if self.works:
            self.stop()
            signal.signal(signal.SIGALRM, self.previous)

    @contextlib.contextmanager
    def pause(self):
        """Hold the timer, for as long as a person is at the debugger's prompt."""
        left, begun = self.stop() if self.works else 0, time.perf_counter()
        yield
        self.start += time.perf_counter() - begun
        if self.works:
            self.set(left)


class Profile:
    """Says for every charge of a context which of the participant's lines were on the stack.

    The participant's are the modules that load_estimator makes and the files below `home`, installed packages
    and this file excepted. `attach` to a context before it is entered, read `rows` when it is left.
    """

    def __init__(self, home: str | os.PathLike):
        self.home, self.files = str(Path(home).resolve()) + os.sep, {}

    def attach(self, context: BudgetContext) -> None:
        """Begin anew with this context."""
        self.context, self.stacks = context, []
        context.on_charge = self.on_charge

    def on_charge(self, context: BudgetContext, bill: Bill) -> None:
        self.stacks.append(self.stack(sys._getframe(2)))

    def stack(self, frame) -> tuple:
        """The participant's lines from this frame outwards, innermost first: (file, line, file, line ...)."""
        found, files, end = [], self.files, metered_predict.__code__
        while frame is not None and (code := frame.f_code) is not end:
            file = code.co_filename
            mine = files.get(file)
            if mine:
                found += file, frame.f_lineno
            elif mine is None:
                files[file] = self.owns(file, frame.f_globals.get("__name__") or "")
                continue
            frame = frame.f_back
        return tuple(found)

    def owns(self, file: str, module: str = "") -> bool:
        """Whether a file is the participant's."""
        inside = file.startswith(self.home) and "site-packages" not in file
        return (inside or module.startswith(SUBMISSION)) and not file.startswith(OURS)

    def rows(self) -> list[dict]:
        """One row a line, in the order of the source: its `charges` by namespace, operation and dtype; its
        `calls`, `flops_used` and `time_s` (in counted calls); `cumulative_...`, with all that it called.
        """
        totals: dict[tuple, list] = {}
        for stack, (bill, _, space, _, backend, overhead) in zip(self.stacks, self.context._log):
            total = totals.setdefault((stack, space, bill.op_name, bill.dtype), [0, 0, 0.0])
            total[0] += 1
            total[1] += bill.cost
            total[2] += backend + overhead
        rows = []
        for (stack, space, name, dtype), total in totals.items():
            amounts = dict(zip(AMOUNTS, total))
            places = list(dict.fromkeys(zip(stack[::2], stack[1::2]))) or [OUTSIDE]
            for depth, (file, line) in enumerate(places):
                charge = {"namespace": space, "operation": name, "dtype": dtype and str(dtype)} | amounts
                own = amounts if depth == 0 else dict.fromkeys(AMOUNTS, 0)
                rows.append({"file": file.removeprefix(self.home), "line": line,
                             "source": linecache.getline(file, line).strip() or file, **own,
                             **{f"cumulative_{key}": value for key, value in amounts.items()},
                             "charges": [] if depth else [charge]})
        return merged(rows, "file", "line")


OURS = __file__, os.path.dirname(os.__file__) + os.sep       # and Python's, which may lie in the same folder
AMOUNTS = "calls", "flops_used", "time_s"
OUTSIDE = "(the runner's own cast)", 0


def merged(rows: Iterable[dict], *keys: str) -> list[dict]:
    """Rows of the same keys as one, in the order of the keys: AMOUNTS are added, `charges` merged."""
    groups, together = defaultdict(list), []
    for row in rows:
        groups[tuple([row[key] or "" for key in keys])].append(row)
    for key in sorted(groups, key=lambda key: (not key[-1], key)):          # OUTSIDE comes last
        group = groups[key]
        total = group[0] | {key: sum(row[key] for row in group) for key in group[0] if key.endswith(AMOUNTS)}
        if "charges" in total:
            charges = itertools.chain(*[row["charges"] for row in group])
            total["charges"] = merged(charges, "namespace", "operation", "dtype")
        together.append(total)
    return together


@contextlib.contextmanager
def debuggable(screen):
    """However pdb is opened inside, its prompt stops the live line and all clocks."""
    import pdb
    interaction = pdb.Pdb.interaction

    def paused_interaction(self, *args):
        with contextlib.ExitStack() as stack:
            for stoppable in filter(None, (screen, Alarm.current, _thread.active)):
                stack.enter_context(stoppable.pause())
            interaction(self, *args)
    pdb.Pdb.interaction = paused_interaction
    try:
        yield
    finally:
        pdb.Pdb.interaction = interaction


@contextlib.contextmanager
def unpatched(context: BudgetContext):
    """Put back, at no charge, what an estimator replaces in this module, its classes, its prices, fnp, NumPy or time."""
    pause, clock = context.pause, _clock
    with pause():
        tables = [*map(vars, (np, time, flops, flops.stats, *_spaces.values())), PRICES, *(b.rows for b in PRICES.values())]
        owners = [sys.modules[__name__], *(c for c in globals().values() if isinstance(c, type) and c.__module__ == __name__)]
        kept, members = list(map(dict, tables)), [(owner, name, value) for owner in owners for name, value in vars(owner).items()
                                                  if isinstance(value, (types.FunctionType, type, property))]
    try:
        yield
    finally:
        globals()["_clock"] = clock         # which the pause reads
        with pause():
            for table, before in zip(tables, kept):
                table.update(before)
            for owner, name, value in members:
                if vars(owner).get(name) is not value:
                    setattr(owner, name, value)


def metered_predict(estimator: BaseEstimator, mlp: MLP, rules: Round, fail_fast: bool = False,
                    profile: Profile | None = None) -> Outcome:
    """Call predict() under the round's budget and clock; whatever happens inside becomes an Outcome.

    With `fail_fast`, the participant's exception propagates instead. `profile` gives the outcome its rows.
    """
    outcome, failure = Outcome(), None
    context = BudgetContext(rules.flop_budget, quiet=True, wall_time_limit_s=rules.wall_time_limit, prices=rules.prices)
    if profile is not None:
        profile.attach(context)
    try:
        with Alarm(rules.wall_time_limit, "predict"), context:
            with unpatched(context):
                raw = estimator.predict(mlp, rules.flop_budget)
            prediction = materialise(raw, mlp)
        require_finite(prediction)
        outcome.prediction, outcome.flops_used = prediction, context.flops_used
    except KeyboardInterrupt:
        raise
    except BaseException as exc:        # SystemExit is the estimator's failure too
        if type(exc).__name__ == "BdbQuit":
            raise KeyboardInterrupt from exc
        if fail_fast:
            raise
        failure = exc
    if isinstance(failure, (BudgetExhaustedError, TimeExhaustedError)):
        # As in the real report: a blown budget counts as all of it, a blown clock as nothing.
        outcome.flag = "budget_exhausted" if isinstance(failure, BudgetExhaustedError) else "time_exhausted"
        outcome.flops_used = rules.flop_budget if outcome.flag == "budget_exhausted" else 0
    if failure is None or outcome.flag:
        outcome.breakdown = namespaced(context.summary_dict(by_namespace=True))
        for name in TIMES:
            setattr(outcome, name, outcome.breakdown[name])
    if failure is not None:
        describe_failure(outcome, failure, inspect.getsourcefile(type(estimator)) or __file__)
    outcome.flops_charged = context.flops_used
    if profile is not None:
        outcome.lines = profile.rows()
    return outcome.apply_limits(rules)


def namespaced(summary: dict) -> dict:
    """A context's totals in the shape of the report's `breakdowns`: every namespace below "estimator."."""
    del summary["operations"]
    labels = {name: "estimator." + (name or "estimator-client").removeprefix("estimator.") for name in summary["by_namespace"]}
    return summary | {"by_namespace": {labels[name]: row for name, row in summary["by_namespace"].items()}}


def describe_failure(outcome: Outcome, exc: BaseException, home: str) -> None:
    """Fill in the message, the participant's own line, and the traceback with our own frames folded away."""
    text = traceback.TracebackException.from_exception(exc, limit=-100)     # the last frames: a recursion may have millions
    for part in filter(None, (text, text.__cause__, text.__context__)):
        part.stack = traceback.StackSummary.from_list([f for f in part.stack if f.filename != __file__])
    outcome.line = participant_line(exc, home)
    header = "" if text.stack else "Traceback (most recent call last):\n  in predict()\n"
    outcome.traceback = header + "".join(text.format())
    if not outcome.flag:
        returned = isinstance(exc, InvalidPrediction)
        kind = "ValueError" if returned else type(exc).__name__
        line = f"{Path(home).name}, the return value of predict()" if returned else outcome.line
        outcome.error_code = kind if returned or isinstance(exc, UnsupportedDtypeError) else "PREDICT_ERROR"
        # str(text): that of an exception may raise in its turn
        outcome.error = {"message": str(text) or kind, "type": kind, "details": {**(exc.details if returned else {}), "line": line}}


class LocalRunner:
    """Runs the estimator in this process: the fastest, and the one to debug in; what kills the process ends the run.

    A context manager: entering it loads the file or baseline and calls setup() within the round's set-up time,
    raising WhestError; leaving it calls teardown() within the same, and forgets the file's siblings, as a
    rival's may have the same names."""

    def __init__(self, path: str, class_name: str | None, rules: Round, seed: int, fail_fast: bool = False,
                 profile: Profile | None = None):
        # absolute, wherever the estimator may chdir to
        self.path = path if path in BASELINES else str(Path(path).expanduser().resolve())
        self.class_name, self.rules, self.seed, self.fail_fast = class_name, rules, seed, fail_fast
        self.profile = profile

    def __enter__(self):
        rules, limit = self.rules, self.rules.setup_timeout
        context = SetupContext(rules.width, rules.depth, rules.flop_budget, api_version="1.0",
                               submission_dir=str(Path(self.path).parent), seed=self.seed)
        self.modules = set(sys.modules)
        try:
            with Alarm(limit, "setup") as alarm:
                known = self.path in BASELINES
                self.estimator = Baseline(self.path) if known else load_estimator(self.path, self.class_name)
                self.estimator.setup(context)
            elapsed = time.perf_counter() - alarm.start
            if limit is not None and elapsed > limit:
                raise TimeExhaustedError("setup", elapsed_s=elapsed, limit_s=limit)
        except (WhestError, KeyboardInterrupt):
            raise
        except BaseException as exc:
            if self.fail_fast:
                raise
            if isinstance(exc, TimeExhaustedError):
                raise WhestError(f"setup() exceeded its limit of {limit:g} s: do less there, or raise --setup-timeout.",
                                 "SETUP_TIMEOUT", "setup") from exc
            raise WhestError(f"setup() raised {type(exc).__name__}: {exc} ({participant_line(exc, self.path)})",
                             "SETUP_ERROR", "setup") from exc
        return self

    @property
    def class_found(self) -> str:
        """Name of the class that the loader chose."""
        return type(self.estimator).__name__

    def predict(self, mlp: MLP) -> Outcome:
        """The outcome on a copy of `mlp`: what an estimator scribbles on its weights stays there."""
        return metered_predict(self.estimator, mlp.copy(), self.rules, self.fail_fast, self.profile)

    def __exit__(self, *_):
        try:
            with Alarm(self.rules.setup_timeout, "teardown"):
                self.estimator.teardown()
        except BaseException as exc:        # the predictions are made: nothing is lost but teardown()
            what = traceback.format_exception_only(exc)[-1].strip()
            print(f"whest: teardown() raised {what} ({participant_line(exc, self.path)}).", file=sys.stderr)
        for name in set(sys.modules) - self.modules:
            found_beside = str(Path(self.path).parent / name.partition(".")[0])
            if (getattr(sys.modules[name], "__file__", None) or "").startswith(found_beside):
                del sys.modules[name]


def send(stream, message: dict, payload: bytes = b"") -> None:
    """One frame of the worker protocol: a line of JSON that ends with the payload's length, then the payload."""
    with contextlib.suppress(OSError):          # if nobody listens any more, that shows in the answers
        stream.write(json.dumps(message | {"bytes": len(payload)}).encode() + b"\n" + payload)
        stream.flush()


def receive(stream, most: float = math.inf) -> tuple[dict, bytes]:
    """The next frame. EOFError if the other side is gone; another exception if what it says is no frame, or too long."""
    line = stream.readline(2**24)
    if not line:
        raise EOFError
    message = json.loads(line)
    size = message.pop("bytes")
    if not 0 <= size <= most:
        raise ValueError(f"a payload of {size} bytes")
    return message, stream.read(size)


def conforms(value, form) -> bool:
    """Whether JSON has a form: a type, None, [form of the items], {key: form}, {str: form of all}, (form, or form)."""
    if isinstance(form, tuple):
        return any(conforms(value, each) for each in form)
    if isinstance(form, list):
        return isinstance(value, list) and all(conforms(item, form[0]) for item in value)
    if isinstance(form, dict):
        return (isinstance(value, dict) and (str in form or form.keys() == value.keys())
                and all(conforms(item, form.get(str) or form[key]) for key, item in value.items()))
    return value is form or form is not None and isinstance(value, form) and (form is str or 0 <= value < math.inf)


def numbers(*names: str) -> dict:
    """The form of a dictionary of numbers."""
    return dict.fromkeys(names, (int, float))


_TOTALS = "calls", "flopscope_backend_time_s", "flopscope_overhead_time_s"
_BILL = numbers("flop_budget", "flops_used", "flops_remaining", *TIMES) | {"by_namespace": {
    str: numbers("flops_used", *_TOTALS) | {"operations": {str: numbers("flop_cost", *_TOTALS)}}}}
_DETAILS = ({"line": str}, {"line": str, "expected_shape": [int], "got_shape": [int], "cause_hints": [str], "hint": str})
_CHARGE = numbers(*AMOUNTS) | {"namespace": (str, None), "operation": str, "dtype": (str, None)}
_LINE = numbers("line", *AMOUNTS, *(f"cumulative_{amount}" for amount in AMOUNTS)) | {
    "file": str, "source": str, "charges": [_CHARGE]}
OUTCOME_FORM = numbers("flops_used", "flops_charged", *TIMES) | {       # what a worker may say
    "prediction": None, "breakdown": (_BILL, None), "flag": (str, None), "error_code": (str, None),
    "error": ({"message": str, "type": str, "details": _DETAILS}, None), "traceback": (str, None), "line": str, "lines": [_LINE]}


ENVIRONMENT = re.compile("PATH|HOME|USER|LANG|TZ|TMPDIR|TEMP|TMP|SYSTEMROOT|VIRTUAL_ENV|XDG_CACHE_HOME|NUMBA_.*|LC_.*"
                         "|PYTHON(PATH|UTF8|IOENCODING|DONTWRITEBYTECODE|BREAKPOINT)|(OMP|OPENBLAS|MKL)_NUM_THREADS")


class SubprocessRunner(LocalRunner):
    """Runs the estimator in a worker process with a memory limit; whatever kills it costs one network only.

    What the worker says is JSON and raw bytes, never a pickle.
    """

    class_found = ""        # told by the worker

    GRACE = 2.0         # seconds beyond the wall limit, in which the worker's own alarm may still answer
    START_UP = 30.0     # seconds for a worker to start Python and import this module, beyond the set-up time

    def __init__(self, *args, memory_limit: int = 8 * 2**30, max_threads: int | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.memory_limit, self.max_threads = memory_limit, max_threads
        self.process = None

    def __enter__(self):
        environment = {k: v for k, v in os.environ.items() if ENVIRONMENT.fullmatch(k)}
        code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import whestbench; whestbench.serve()"
        self.process = subprocess.Popen([sys.executable, "-c", code], env=environment, start_new_session=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.frames: queue.SimpleQueue = queue.SimpleQueue()
        threading.Thread(target=self.listen, args=(self.process.stdout, self.frames), daemon=True).start()
        answer, _ = self.ask({"path": self.path, "class_name": self.class_name, "seed": self.seed,
                              "rules": asdict(self.rules), "memory_limit": self.memory_limit,
                              "max_threads": self.max_threads, "profile": self.profile is not None},
                             b"", (self.rules.setup_timeout or math.inf) + self.START_UP)
        if not answer.get("ok"):
            self.stop()
            raise WhestError(str(answer["message"]), stage=str(answer.get("stage", "setup")), code=str(answer["code"]))
        self.class_found = str(answer.get("class"))
        return self

    @staticmethod
    def listen(stream, frames: queue.SimpleQueue) -> None:
        """Read frames until the worker stops making sense; the last entry says why."""
        while True:
            try:
                frames.put(receive(stream, 2**28))
            except Exception as exc:
                return frames.put((exc, b""))

    def ask(self, message: dict, payload: bytes, timeout: float) -> tuple[dict, bytes]:
        """Send a frame and wait for its answer; a worker that fails to give one is described in its place.

        An answer repeats the token of its question: what is left over from another network is none.
        """
        message, end = message | {"token": os.urandom(8).hex()}, time.monotonic() + timeout
        # In a thread, because a worker that has stopped reading would hold us up.
        threading.Thread(target=send, args=(self.process.stdin, message, payload), daemon=True).start()
        answer, data = {}, b""
        try:
            while isinstance(answer, dict) and answer.get("token") != message["token"]:
                answer, data = self.frames.get(timeout=min(end - time.monotonic(), threading.TIMEOUT_MAX))
        except (queue.Empty, ValueError):       # the latter for a timeout below zero
            return {"code": "TIMEOUT", "message": f"The worker gave no answer within {timeout:.0f} s."}, b""
        if isinstance(answer, EOFError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(1.0)
            status = self.process.poll()
            how = signal.strsignal(-status) if status and status < 0 else f"exit status {status}"
            return {"code": "WORKER_EOF", "message": f"The worker process died ({how})."}, b""
        unclear = {"code": "WORKER_PROTOCOL_ERROR", "message": "The worker's answer was not understood."}
        return unclear | (answer if isinstance(answer, dict) else {}), data

    def predict(self, mlp: MLP) -> Outcome:
        """The outcome in the worker, or what became of it; a dead one is replaced."""
        if self.process is None:
            try:
                self.__enter__()
            except WhestError as exc:
                return Outcome(error={"message": str(exc), "details": {}}, error_code="WORKER_RESTART_FAILED")
        weights = np.stack([np.asarray(w) for w in mlp.weights]).tobytes()
        limit = (self.rules.wall_time_limit or math.inf) + self.GRACE
        answer, data = self.ask({"width": mlp.width, "depth": mlp.depth, "seed": mlp.seed, "name": mlp.name}, weights, limit)
        said = answer.get("outcome")
        good = conforms(said, OUTCOME_FORM) and (said["error"] is None) == (said["error_code"] is None)
        if good and said["error"] is None and said["flag"] is None:
            good = len(data) == 4 * mlp.depth * mlp.width and bool(np.isfinite(np.frombuffer(data, np.float32)).all())
            said["prediction"] = np.frombuffer(data, np.float32).reshape(mlp.depth, mlp.width) if good else None
        if good:
            outcome = Outcome(**said)
        else:
            self.stop()
            message, code = str(answer["message"]), str(answer["code"])
            outcome = Outcome(error={"message": message, "details": {}}, error_code=code) if code != "TIMEOUT" else \
                Outcome(flag="time_exhausted", wall_time_s=limit, traceback=message)
        if self.fail_fast and outcome.failed:
            raise WhestError(outcome.traceback or outcome.error["message"], stage="predict", code=outcome.error_code or "PREDICT_ERROR")
        return outcome

    def stop(self) -> None:
        """Kill the worker and everything that it started."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL) if hasattr(os, "killpg") else self.process.kill()
            self.process.wait()
            self.process = None

    def __exit__(self, kind, *_):
        if self.process is not None and kind is None:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                self.process.stdin.close()      # lets teardown() run
                self.process.wait((self.rules.setup_timeout or math.inf) + self.GRACE)
        self.stop()


def serve() -> None:
    """The worker's side: answer frames on standard input until it closes."""
    import pdb
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)       # what the estimator prints is not protocol
    pdb.set_trace = _no_debugger_here
    if os.environ.get("PYTHONBREAKPOINT") != "0":
        sys.breakpointhook = _no_debugger_here
    message, _ = receive(requests)

    def answer(what: dict, payload: bytes = b"") -> None:
        send(answers, what | {"token": message["token"]}, payload)
    limit_threads(message["max_threads"])
    if importlib.util.find_spec("resource"):
        import resource
        resource.setrlimit(resource.RLIMIT_AS, (message["memory_limit"],) * 2)
    rules = Round(**message["rules"])
    try:
        profile = Profile(Path(message["path"]).parent) if message["profile"] else None
        with LocalRunner(message["path"], message["class_name"], rules, message["seed"],
                         profile=profile) as runner:
            answer({"ok": True, "class": runner.class_found})
            with contextlib.suppress(EOFError, OSError, KeyboardInterrupt):
                while True:
                    message, weights = receive(requests)
                    shape = message["depth"], message["width"], message["width"]
                    mlp = MLP(message["width"], message["depth"], list(np.frombuffer(weights, np.float32).reshape(shape)),
                              message["seed"], message["name"])
                    outcome = runner.predict(mlp)
                    payload = b"" if outcome.failed else outcome.prediction.tobytes()
                    outcome.prediction = None
                    answer({"outcome": asdict(outcome)}, payload)
    except WhestError as exc:
        answer({"ok": False, "message": str(exc), "stage": exc.stage, "code": exc.code})


def _no_debugger_here(*args, **kwargs):
    raise RuntimeError("breakpoint() needs --runner local: an isolated worker has no terminal.")


# ======================================================================================
# Reports
#
# A report is drawn from one plain dictionary, the document that `--format json` prints, so
# nothing on the page is unavailable to a script. A panel is a title and lines of text, bars
# and plots; how it is framed, coloured and fitted to the terminal is the Screen's business
# alone, and how it looks in a browser that of `page`.
# ======================================================================================

STYLES = {"title": "1;36", "good": "32", "bad": "31", "strong": "1"}


class Bar(typing.NamedTuple):
    """A line of a panel that ends in a bar: it fills `share` of the room that the text leaves."""
    text: str
    share: float


class Scatter(typing.NamedTuple):
    """A plot in a panel: points (x, y) of the unit square, with its diagonal."""
    points: list
    caption: str


class Screen:
    """Where a command writes: panels on stdout, and on a terminal a live line on stderr that leaves no trace.

    `format` is rich (frames, colour, live line), plain (neither: pipes, debuggers) or json.
    """

    def __init__(self, format: str | None = None):
        smart = os.environ.get("TERM") != "dumb" and "PYTHONBREAKPOINT" not in os.environ
        self.format = format or ("rich" if smart and sys.stdout.isatty() else "plain")
        rich = self.format == "rich"
        self.encoding = getattr(sys.stdout, "encoding", None) or "ascii"
        self.unicode = rich and "utf" in self.encoding.lower()
        self.colour = rich and not os.environ.get("NO_COLOR")
        self.width = max(40, min(shutil.get_terminal_size((100, 24)).columns, 120))
        self.is_live, self.drawn_at = rich and smart and sys.stderr.isatty(), 0.0
        self.kept: tuple | None = None      # stdout as it was, until the report: an estimator may replace or close it

    def __enter__(self):
        """Hold on to stdout; under json keep it for the document: other prints go to stderr."""
        self.kept = sys.stdout, os.dup(1)
        if self.format == "json":
            sys.stdout.flush()
            sys.stdout = sys.stderr
            os.dup2(2, 1)
        return self

    def __exit__(self, *_):
        self.live(None)
        self.release_stdout()

    def release_stdout(self) -> None:
        """Make stdout what it was, once nobody else is going to print."""
        if self.kept:
            sys.stdout, descriptor = self.kept
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()      # what was printed meanwhile goes where it was meant to go
            os.dup2(descriptor, 1)
            os.close(descriptor)
            self.kept = None

    def paint(self, text: str, style: str) -> str:
        """The text in a style; `write` takes it off where there is no colour."""
        return f"\x1b[{STYLES[style]}m{text}\x1b[0m"

    def bar(self, share: float, width: int = 20) -> str:
        """A bar that fills `share` of `width` cells."""
        return ("█" if self.unicode else "#") * round(max(0.0, min(share, 1.0)) * width)

    def plot(self, scatter: Scatter, width: int, height: int = 9) -> Iterator[str]:
        """The points in braille, 2 x 4 to a character, or as *; and the diagonal."""
        across, down = (2, 4) if self.unicode else (1, 1)
        diagonal = ((height - 1 - column * height // width, column) for column in range(width))
        cells = dict.fromkeys(diagonal, "·" if self.unicode else "-")
        dots: Counter = Counter()
        for x, y in set(scatter.points):
            column, dx = divmod(round(x * (width * across - 1)), across)
            row, dy = divmod(round((1 - y) * (height * down - 1)), down)
            dots[row, column] |= 1 << ((0, 1, 2, 6), (3, 4, 5, 7))[dx][dy]
            cells[row, column] = chr(0x2800 + dots[row, column]) if self.unicode else "*"
        for row in range(height):
            yield "".join(cells.get((row, column), " ") for column in range(width))
        yield scatter.caption

    def drawn(self, item: str | Bar | Scatter, width: int) -> Iterable[str]:
        """The lines of text that one line of a panel takes."""
        if isinstance(item, Scatter):
            return self.plot(item, width)
        if isinstance(item, Bar):
            item = item.text + self.bar(item.share, width - len(item.text))
        return wrap(item, width)

    def panel(self, title: str, lines: Iterable) -> None:
        """Print a titled panel; long lines are wrapped."""
        self.panels([(title, lines)])

    def panels(self, row: list) -> None:
        """Print panels, `(title, lines)`, side by side."""
        width = (self.width + 1) // len(row) - 1
        bodies = [[line for item in items for line in self.drawn(item, width - 4)] for _, items in row]
        printed = []
        for (title, _), body in zip(row, bodies):
            body += [""] * (max(map(len, bodies)) - len(body))
            title = title[:width - 6]
            if self.unicode:
                top = f"╭─ {self.paint(title, 'title')} {'─' * (width - len(title) - 5)}╮"
                body = [f"│ {line}{' ' * (width - 4 - len(uncoloured(line)))} │" for line in body]
                printed.append([top, *body, f"╰{'─' * (width - 2)}╯"])
            else:
                body = [f"  {line}{' ' * (width - 2 - len(uncoloured(line)))}" for line in body]
                printed.append([f"== {title} ".ljust(width, "="), *body, ""])
        self.write("\n".join(" ".join(cells).rstrip() for cells in zip(*printed)))

    def write(self, text: str) -> None:
        """Print on stdout; characters that its encoding lacks are replaced."""
        self.live(None)
        self.release_stdout()
        text = text if self.colour else uncoloured(text)
        print(text.encode(self.encoding, "replace").decode(self.encoding), flush=True)

    def live(self, text: str | None) -> None:
        """Redraw the live line, at most ten times a second; None wipes it, if it is there."""
        now = time.monotonic()
        if self.is_live and (self.drawn_at if text is None else now - self.drawn_at > 0.1):
            self.drawn_at = 0.0 if text is None else now
            print("\r\x1b[2K" + (text or "")[: self.width - 1], end="", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def pause(self):
        """Keep the live line away, for as long as a debugger has the terminal."""
        self.live(None)
        was_live, self.is_live = self.is_live, False
        yield
        self.is_live = was_live


def uncoloured(text: str) -> str:
    """The text without its colour codes."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def wrap(line: str, width: int) -> list[str]:
    """Break a line that is too long at blanks, keeping its indentation; a message may bring breaks of its own."""
    if len(uncoloured(line)) <= width and "\n" not in line:
        return [line]
    fit = textwrap.TextWrapper(width, subsequent_indent=" " * (len(line) - len(line.lstrip()) + 2), break_on_hyphens=False)
    return [part for row in uncoloured(line).splitlines() for part in fit.wrap(row)]


def readable(n: float) -> str:
    """6,434 below a million, 6.80e10 above."""
    return f"{n:,.0f}" if abs(n) < 1e6 else f"{n:.2e}".replace("e+", "e")


PAGE = """<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><title>{0}</title><style>
:root {{ color-scheme: light dark; --bar: #3a6fd8; --good: #14703a; --bad: #b3261e }}
@media (prefers-color-scheme: dark) {{ :root {{ --bar: #78a5ff; --good: #62d48c; --bad: #ff8b80 }} }}
body {{ max-width: 64rem; margin: 2rem auto; font: 15px/1.5 system-ui }}
h1 {{ font-size: 1.3rem }} h2 {{ font-size: 1rem }} main {{ display: flex; flex-wrap: wrap; gap: 1rem }}
section {{ flex: 1 1 18rem; padding: 0 1rem 1rem; background: #8882; border-radius: 6px; overflow: auto }}
section:has(pre) {{ flex-basis: 100% }} pre {{ margin: 0 }} svg {{ display: block; fill: var(--bar) }}
pre, text {{ font: 12px/1.6 monospace; white-space: pre-wrap; fill: CanvasText }}
path {{ fill: none; stroke: #8888 }} circle {{ fill-opacity: .6 }}
.good {{ color: var(--good) }} .bad {{ color: var(--bad) }} .strong {{ font-weight: bold }}
</style><h1>{0}</h1><main>{1}</main></html>
"""


def page(title: str, panels: list) -> str:
    """The panels as one HTML page that needs nothing else, light or dark as the reader's system is."""
    def drawn(item: str | Bar | Scatter) -> str:
        if isinstance(item, Scatter):
            dots = (f'<circle cx="{260 * x + 3:.1f}" cy="{263 - 260 * y:.1f}" r="2.5"/>' for x, y in item[0])
            return (f'<svg width="266" height="284"><path d="M3 3v260h260M3 263L263 3"/>{"".join(dots)}'
                    f'<text y="280">{html.escape(item.caption)}</text></svg>')
        if isinstance(item, Bar):
            start = 7.5 * len(item.text)        # wide enough for any monospaced font of 12 pixels
            return (f'<svg width="{start + 170}" height="20"><text y="14">{html.escape(item.text)}</text>'
                    f'<rect x="{start}" y="3" width="{170 * item.share:.1f}" height="14" rx="2"/></svg>')
        text = html.escape(item)
        for name, code in STYLES.items():
            text = re.sub(rf"\x1b\[{code}m(.*?)\x1b\[0m", rf'<span class="{name}">\1</span>', text)
        return f"<pre>{uncoloured(text) or ' '}</pre>"

    return PAGE.format(html.escape(title), "".join(
        f"<section><h2>{html.escape(heading)}</h2>{''.join(map(drawn, items))}</section>"
        for heading, items in panels))


def report_run(document: dict, screen: Screen, debug: bool = False, html_path: str | None = None) -> None:
    """Print the report of a scored run or its document, and write the page. Misuse where that cannot be."""
    results, config = document["results"], document["run_config"]
    per_mlp, breakdown = results["per_mlp"], results["breakdowns"]["estimator"]
    against = document.get("against")
    errors = [entry for entry in per_mlp if "error_code" in entry]
    exhausted = [entry for entry in per_mlp if any(entry[flag] for flag in FLAGS)]
    panels = (("Run context", True, context_lines(config)),
              ("Estimator Errors", errors, error_lines(errors, len(per_mlp), screen, debug)),
              ("Exhausted limits", exhausted, exhausted_lines(exhausted, config, debug)),
              ("Truth", True, truth_lines(results, config)),
              ("Where the FLOPs went", breakdown, flops_lines(breakdown)),
              ("FLOPs by line", "profile" in results, profile_lines(results, screen)),
              ("Error by layer", True, bars(results["per_layer_mse"], 1, log=True)),
              ("Score by MLP", True, bars([entry["adjusted_final_layer_score"] for entry in per_mlp], 0)),
              ("Predicted vs true", True, [scatter(**results["final_layer_of_mlp_0"])]),
              ("Each MLP", debug, mlp_lines(per_mlp)),
              ("Final score", True, score_lines(results, config, screen)),
              (f"Against {against and against['estimator']}", against, against and against_lines(against)))
    panels = [(title, list(lines)) for title, present, lines in panels if present]
    if html_path:
        try:
            with replacing(Path(html_path)) as part:
                part.write_text(page(f"whestbench: {config['estimator']}", panels), "utf-8", "replace")
        except OSError as exc:
            raise Misuse(f"--html {html_path}: {exc.strerror}.") from exc
    if screen.format == "json":
        return screen.write(json.dumps(document, indent=2))
    for has_text, group in itertools.groupby(panels, lambda panel: str in map(type, panel[1])):
        row, across = list(group), 1 if has_text else max(1, screen.width // 26)
        for first in range(0, len(row), across):
            screen.panels(row[first:first + across])


def context_lines(config: dict) -> Iterator[str]:
    """What was scored, on which networks, under which rules."""
    gate = config["residual_wall_time_limit_s"]
    yield f"estimator   {config['estimator']} (class {config['class']}), runner {config['runner']}"
    yield (f"networks    {config['n_mlps']} of {config['width']}x{config['depth']}, seed {config['seed']}, "
           f"round {config['round']}")
    yield (f"budget      {readable(config['flop_budget'])} FLOPs each, prices {config['prices']}; a residual second costs "
           f"{readable(config['lambda_flops_per_second'])}, gate {'none' if gate is None else f'{gate:g} s'}; "
           f"wall {config['wall_time_limit_s']:g} s")


def error_lines(errors: list[dict], n_mlps: int, screen: Screen, debug: bool) -> Iterator[str]:
    """Equal failures together, each with the participant's line, the expectation, and the likely cause."""
    yield f"predict() failed on {len(errors)} of {n_mlps} MLPs; each is scored as zeros at the full budget."
    groups = defaultdict(list)
    for entry in errors:
        details = entry["error"]["details"]
        groups[(entry["error"]["message"], *details.get("cause_hints", ()), details.get("line"))].append(entry)
    for (message, *hints, line), members in groups.items():
        details = members[0]["error"]["details"]
        yield ""
        yield screen.paint(f"{members[0]['error'].get('type', members[0]['error_code'])}: {message}", "bad")
        yield "  on MLP " + ", ".join(f"#{entry['mlp_index']}" for entry in members) + (f", at {line}" if line else "")
        if "expected_shape" in details:
            yield f"  expected shape {tuple(details['expected_shape'])}, got {tuple(details['got_shape'])}"
        yield from (f"  {hint}" for hint in hints)
        if debug:
            yield from (f"    {row}" for row in (members[0]["traceback"] or "").splitlines())
    if not debug:
        yield ""
        yield "Add --debug for tracebacks, or --fail-fast to stop at the first with Python's own."


def exhausted_lines(exhausted: list[dict], config: dict, debug: bool) -> Iterator[str]:
    """Which limits were exceeded, on which networks."""
    limits = (f"the FLOP budget of {readable(config['flop_budget'])}", f"the wall-clock limit of {config['wall_time_limit_s']} s",
              f"the gate of {config['residual_wall_time_limit_s']} s on time outside fnp",
              "the budget, by FLOPs and residual time together")
    for flag, limit in zip(FLAGS, limits):
        hit = [entry for entry in exhausted if entry[flag]]
        if hit:
            yield f"{flag} = true on {len(hit)} MLPs ({', '.join('#%d' % entry['mlp_index'] for entry in hit[:8])}): over {limit}."
            if debug:
                yield from (f"    {row}" for row in (hit[0]["traceback"] or "").splitlines())
    yield "Their predictions were replaced by zeros, at multiplier 1."


def truth_lines(results: dict, config: dict) -> Iterator[str]:
    """How far the truth was sampled, and what its noise does to the score."""
    corrected = results["corrected"]
    yield f"{results['per_mlp'][0]['truth_n_samples']:,} samples a network ({config['n_samples']})"
    yield (f"its noise adds {corrected['noise_floor']:.2g} to the raw score, which is taken out, "
           f"and blurs it by {corrected['standard_error']:.2g} (standard error)")
    if corrected["growth_needed"] is None:
        yield "the score cannot be told from zero yet: raise --n-samples or --max-work"
    elif corrected["growth_needed"] > 1:
        yield f"2% precision would take {corrected['growth_needed']:.2g} times as many samples"


def flops_lines(breakdown: dict) -> Iterator[str | Bar]:
    """The operations that cost most, and where the time went."""
    totals: dict[str, Counter] = defaultdict(Counter)
    for row in breakdown["by_namespace"].values():
        for name, operation in row["operations"].items():
            totals[name].update(cost=operation["flop_cost"], calls=operation["calls"])
    used = max(1, breakdown["flops_used"])
    rows = sorted((item for item in totals.items() if item[1]["cost"]), key=lambda item: -item[1]["cost"])
    for name, total in rows[:8]:
        cost = total["cost"]
        yield Bar(f"{name.removeprefix('random.'):<26}{cost / used:>6.1%}  {readable(cost):>10} FLOPs  "
                  f"{total['calls']:>7,} calls  ", cost / used)
    if rows[8:]:
        yield f"{f'{len(rows) - 8} others':<26}{sum(total['cost'] for _, total in rows[8:]) / used:>6.1%}"
    backend, overhead, residual = (breakdown[name] for name in TIMES[1:])
    yield f"wall {breakdown['wall_time_s']:.3f} s: {backend:.3f} s in NumPy, {overhead:.3f} s counting, {residual:.3f} s residual"


def bars(values: list[float], first: int, log: bool = False) -> Iterator[Bar]:
    """A bar for each value, numbered from `first`; of more than 16 values, for the mean of neighbours.

    A `log` bar spans three decades, or fewer.
    """
    size = -(-len(values) // 16)
    parts = {i: values[i:i + size] for i in range(0, len(values), size)}
    names = [f"{first + i}" + f"-{first + i + len(part) - 1}" * (len(part) > 1) for i, part in parts.items()]
    means = [float(np.mean(part)) for part in parts.values()]
    heights = [math.log10(max(mean, 1e-30)) for mean in means] if log else means
    low, high = max(min(heights) - 0.3, max(heights) - 3) if log else 0.0, max(heights)
    for name, mean, height in zip(names, means, heights):
        yield Bar(f"{name:>{max(map(len, names))}} {mean:.2e} ", max(height - low, 0.0) / (high - low or 1))


def scatter(true: list[float], predicted: list[float]) -> Scatter:
    """The final layer as predicted, upwards, against its truth; a prediction below 0 counts as 0."""
    high = max(*true, *predicted) or 1.0
    points = [(x / high, max(y, 0.0) / high) for x, y in zip(true, predicted)]
    return Scatter(points, f"0 to {high:.3g}, MLP 0")


def profile_lines(results: dict, screen: Screen) -> Iterator[str]:
    """The participant's source with the bill of every line, and the bill by namespace and operation."""
    lines = results["profile"]["lines"]
    used, file, last = max(1, results["profile"]["flops_used"]), None, 0
    columns = "{:>4} {:>7} {:>8} {:>6} {:<4} {:>6} {:>7} {:<5} {}".format

    def cells(first, row: dict, cumulative: str, seconds: float, charges: list, text: str) -> str:
        dtypes = sorted({np.dtype(c["dtype"]).str[1:] for c in charges if c["dtype"]})
        share = row["flops_used"] / used
        own = f"{row['calls']:,}", readable(row["flops_used"]), f"{share:.1%}", screen.bar(share, 4)
        line = columns(first, *own, cumulative, f"{seconds * 1e3:,.1f}", "+".join(dtypes), text)
        return line[:screen.width - 4]

    for row in lines:
        if row["file"] != file and row["line"]:
            file, last = row["file"], row["line"]
            yield screen.paint(file, "strong")
            yield columns("line", "calls", "FLOPs", "share", "", "cumul.", "ms", "dtype", "source")
        if last + 1 < row["line"]:
            yield columns(*[""] * 8, "...")
        last = row["line"]
        yield cells(last or "", row, f"{row['cumulative_flops_used'] / used:.1%}", row["cumulative_time_s"],
                    row["charges"], row["source"])
    yield ""
    yield columns("", "calls", "FLOPs", "share", "", "", "ms", "dtype", "namespace: operation")
    charges = merged(itertools.chain(*[row["charges"] for row in lines]), "namespace", "operation", "dtype")
    for c in sorted(charges, key=lambda c: -c["flops_used"])[:12]:
        yield cells("", c, "", c["time_s"], [c], f"{c['namespace'] or '-'}: {c['operation']}")
    yield f"sum over lines: {sum(row['flops_used'] for row in lines):,} of {used:,} FLOPs billed"


def mlp_lines(per_mlp: list[dict]) -> Iterator[str]:
    """Each network's score, bill and flags, and its all_layers_mse early against deep."""
    yield f"{'MLP':>4} {'score':>10} {'FLOPs':>10} {'all_layers_mse':>15} {'early half':>11} {'deep half':>10}  flags"
    for entry in per_mlp:
        layers = entry["per_layer_mse"]
        half = (len(layers) + 1) // 2
        flags = [flag for flag in FLAGS if entry[flag]] + [entry[k] for k in ("error_code",) if k in entry]
        yield (f"{entry['mlp_index']:>4} {entry['adjusted_final_layer_score']:>10.3e} {readable(entry['flops_used']):>10} "
               f"{entry['all_layers_mse']:>15.3e} {np.mean(layers[:half]):>11.2e} {np.mean(layers[-half:]):>10.2e}  "
               + (", ".join(flags) or "-"))


def sampling_score(results: dict, config: dict) -> tuple[float, int]:
    """The score of plain sampling at the estimator's own multiplier, and its number of samples.

    From the truth's single-sample variance; a sample costs `2 width^2 + 2 width` FLOPs a layer, and its normals.
    """
    width, depth, multiplier = config["width"], config["depth"], results["mean_score_multiplier"]
    n_samples = max(1, int(multiplier * config["flop_budget"] / (depth * (2 * width**2 + 2 * width) + 16 * width)))
    return multiplier * float(np.mean([entry["sampling_variance"] for entry in results["per_mlp"]])) / n_samples, n_samples


def verdict(difference: dict, us: str, them: str) -> str:
    """Which of two estimators is better and how sure that is, in one sentence to be quoted."""
    n, p, needed = len(difference["per_mlp"]), difference["p"], difference["networks_needed"]
    on = f"on {n} networks" if n > 1 else "on this one network"
    if p is None:
        return f"{us} and {them} score exactly the same {on}: the difference is 0."
    sign, better, worse = (-1, us, them) if difference["score"] < 0 else (1, them, us)
    low, high = sorted(sign * end for end in difference["interval"])
    says = "{} is better than {}" if p <= 0.05 else "Not settled: {} seems better than {}"
    settle = f"; about {readable(needed)} networks would settle it." if needed else "."
    return (f"{says.format(better, worse)} by {abs(difference['score']):.3g} {on} (95% interval {low:.3g} to "
            f"{high:.3g}, p = {p:.2g}){settle}")


def against_lines(against: dict) -> Iterator[str]:
    """Which is better, how sure that is, and where the doubt comes from."""
    difference, rival = against["difference"], against["results"]
    yield against["verdict"]
    yield (f"{against['estimator']}: corrected score {rival['corrected']['score']:.4g}, multiplier "
           f"{rival['mean_score_multiplier']:.3g}, failed {rival['n_failed_mlps']}; worse on "
           f"{sum(d < 0 for d in difference['per_mlp'])} of {len(difference['per_mlp'])}")
    parts = (f"{name} {'not known' if part is None else f'{part:.2g}'}"
             for name, part in difference["parts"].items())
    yield (f"standard error {difference['standard_error']:.2g}: {', '.join(parts)}"
           + " (--repeats 3 tells it apart)" * (difference["n_repeats"] == 1))


def score_lines(results: dict, config: dict, screen: Screen) -> Iterator[str]:
    """The score, how sure it is, what it beats, and what to do next."""
    corrected = results["corrected"]
    score, (low, high) = corrected["score"], corrected["truth_interval"]
    yield (screen.paint(f"{score:.4g}", "strong")
           + f"  corrected score (lower is better); 95% interval {low:.3g} to {high:.3g} from the truth's noise")
    if corrected["network_interval"]:
        yield "on other networks of this shape: {:.3g} to {:.3g}".format(*corrected["network_interval"])
    yield (f"raw: adjusted_final_layer_score {results['adjusted_final_layer_score']:.4g}, final_layer_mse "
           f"{results['final_layer_mse']:.4g}, all_layers_mse {results['all_layers_mse']:.4g}")
    yield (f"best MLP {results['best_mlp_adjusted_final_layer_score']:.3g}, worst "
           f"{results['worst_mlp_adjusted_final_layer_score']:.3g}; multiplier {results['mean_score_multiplier']:.3g} "
           f"(C/B {results['mean_compute_utilization']:.2%}), failed {results['n_failed_mlps']} of {len(results['per_mlp'])}")
    zeros_score = float(np.mean([entry["zeros_final_layer_mse"] for entry in results["per_mlp"]])) * MULTIPLIER_FLOOR
    sampled, n_samples = sampling_score(results, config)
    for rival, theirs in (("zeros", zeros_score), (f"sampling at your multiplier ({n_samples:,} samples)", sampled)):
        wins = score < theirs
        ratio = max(score, theirs) / min(score, theirs) if score > 0 else math.inf
        yield screen.paint(f"{'beats' if wins else 'loses to'} {rival} ({theirs:.3g})" + (f", by {ratio:.3g}x" if score > 0 else ""),
                           "good" if wins else "bad")
    if results["failure_breakdown"]["error"]:
        yield f"Next: whest run {config['estimator']} --n-mlps 3 --runner local --debug"
    else:
        yield f"Next: whest checklist {config['estimator']}"


def report_checks(title: str, checks: list[dict], screen: Screen) -> bool:
    """Print what `validate` or `doctor` found, a line a check, or its document; tell whether no check failed."""
    ok = all(check["ok"] is not False for check in checks)
    if screen.format == "json":
        screen.write(json.dumps({"ok": ok, "checks": checks, "whestbench_version": __version__}, indent=2))
    else:
        labels = {True: screen.paint("OK  ", "good"), False: screen.paint("FAIL", "bad"), None: "NOTE"}
        screen.panel(title, (f"{labels[c['ok']]}  {c['check']}: {c['detail']}" for c in checks))
    return ok


# ======================================================================================
# Checklist
#
# The debugging page answers itself. Evidence is gathered once: a validation, a scored and profiled
# run, and a run under a Watch, which looks at the values. A question is a function of it that
# yields its answer, in sentences, and its Findings; the page is drawn from their dictionary.
# ======================================================================================

TIERS = ("Pure-Python inner loop (fastest iteration)", "Sanity checks (2 minutes)",
         "Correctness checks (5 minutes)", "Optimization checks (10+ minutes)")
QUESTIONS: list = []    # (tier, the page's words, whether about predictions, function of the evidence)
SEVERITIES = {1: "SPOILS", 2: "COSTS", 3: "NOTE"}      # the score; what is merely worth knowing
CALL_RESIDUAL = 23e-6           # seconds of residual time that one call leaves with flopscope 0.12.4
DIAGONALS = {"diag", "diagonal", "trace", "linalg.diagonal", "linalg.trace"}
UNCHANGED = dict.fromkeys("copy array astype require reshape ravel flatten".split(),
                          "use the array itself: it cannot be written to; x[:, None] and squeeze are free")
FREE_INSTEAD = {        # what is paid for and has a free equivalent; UNCHANGED, if the call changes nothing
    "0.12": UNCHANGED | {"tile": "broadcast_to is free"},
    "0.7": {"array": "asarray is free", "tile": "broadcast_to is free", "take": "indexing, x[i], is free",
            "compress": "indexing, x[mask], is free", "append": "hstack is free",
            "stack": "row_stack is free", "vstack": "row_stack is free", "copyto": "x[...] = y is free"},
}


@dataclass
class Finding:
    """What to change: `place` is (file, line), `flops` of one network, `share` (0 to 1) that of the score."""

    severity: int
    said: str
    change: str
    place: tuple | None = None
    flops: int = 0
    share: float = 1.0

    def document(self, home: str) -> dict:
        file, line = self.place or ("", 0)
        return {"severity": self.severity, "said": self.said, "change": self.change, "flops": int(self.flops),
                "share": self.share, "file": file.removeprefix(home), "line": line,
                "source": linecache.getline(file, line).strip()}


def arrays_in(value: Any) -> Iterator[np.ndarray]:
    """Every array in arguments, also in lists, tuples and dictionaries."""
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from arrays_in(item)


class Instrument(ast.NodeTransformer):
    """Makes a module's calls, binary operators and returns pass by the Watch in builtins; its lines stay."""

    def hook(self, name: str, node: ast.AST, *arguments: ast.AST) -> ast.AST:
        watch = ast.Attribute(ast.Name("_whest_watch", ast.Load()), name, ast.Load())
        return ast.fix_missing_locations(ast.copy_location(ast.Call(watch, list(arguments), []), node))

    def visit_Call(self, node):
        self.generic_visit(node)
        node.func = self.hook("called", node, node.func)
        return node

    def visit_BinOp(self, node):
        self.generic_visit(node)
        name = type(node.op).__name__.lower().removeprefix("bit")
        name = {"mult": "mul", "matmult": "matmul", "div": "truediv"}.get(name, name)
        return self.hook("operated", node, ast.Constant(name), node.left, node.right)

    def visit_Return(self, node):
        self.generic_visit(node)
        node.value = self.hook("returned", node, *[node.value] * (node.value is not None))
        return node


class Watch(Profile):
    """A Profile that looks at values too: `notes[kind]` maps (place, operation, detail) to [calls, FLOPs].

    It sees every counted call. Of plain NumPy it sees, and prices, the functions, ufuncs, methods and binary
    operators that the participant's own files use on uncounted arrays in predict(); not in-place operators,
    comparisons, or what other libraries and compiled code do. Values are compared by their hashes.
    """

    def __init__(self, home: str | os.PathLike):
        super().__init__(home)
        self.notes, self.first, self.end = defaultdict(dict), {}, None
        self.products, self.results = {}, []        # products, by the id of their memory; what became of them

    def attach(self, context: BudgetContext) -> None:
        super().attach(context)
        context.book, context.observer = copy.copy(context.book), self.observe

    @contextlib.contextmanager
    def instrumented(self, known: set[str]) -> Iterator[None]:
        """Inside, the participant's modules are loaded anew and instrumented, except the `known` names."""
        loader, owns = importlib.machinery.SourceFileLoader, self.owns
        original = loader.get_code

        def get_code(self, name):
            if not owns(self.path):
                return original(self, name)
            tree = Instrument().visit(ast.parse(self.get_data(self.path)))
            return compile(tree, self.path, "exec", dont_inherit=True)

        def forget():
            for name in set(sys.modules) - known:
                if owns(getattr(sys.modules[name], "__file__", None) or ""):
                    del sys.modules[name]
        forget()
        builtins._whest_watch, loader.get_code = self, get_code
        try:
            yield
        finally:
            loader.get_code = original
            forget()
            del builtins._whest_watch

    def note(self, kind: str, place: tuple, name: str, flops: int, detail: Any = None) -> None:
        total = self.notes[kind].setdefault((place, name, detail), [0, 0])
        total[0] += 1
        total[1] += flops

    def returned(self, value=None):
        self.end = self.stack(sys._getframe(1))[:2]
        return value

    def operated(self, name: str, a, b):
        result = getattr(operator, f"__{name}__")(a, b)
        self.uncounted(_OPERATORS[name], (a, b), {}, result)
        return result

    def called(self, function):
        """The function, or one that also notes what it does, if it is NumPy's."""
        owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
        module, bound = str(getattr(function, "__module__", "")), ()
        if isinstance(function, type) or getattr(function, "__globals__", None) is globals():
            return function
        if isinstance(owner, (np.random.Generator, np.random.RandomState)):
            name = f"random.{name}"
        elif type(owner) is np.ndarray:
            bound = (owner,)
        elif module.startswith("numpy"):
            name = f"{module}.{name}".removeprefix("numpy.")
        elif not isinstance(function, np.ufunc):
            return function

        def call(*args, **kwargs):
            result = function(*args, **kwargs)
            self.uncounted(name, (*bound, *args), kwargs, result)
            return result
        return call

    def uncounted(self, name, args, kwargs, result) -> None:
        """Note what would have been charged for work on plain arrays."""
        given = list(arrays_in((args, kwargs)))
        worked = any(a.ndim for a in arrays_in((given, result))) and _thread.active is not None
        if worked and not any(isinstance(a, FlopscopeArray) for a in given):
            with contextlib.suppress(Exception):        # what has no price is no work
                flops = self.context.book.charge(name, args, kwargs, result)[0]
                self.note("uncounted", self.stack(sys._getframe(2))[:2], name, flops)

    def observe(self, name, args, kwargs, result, flops) -> None:
        """The observer of the context."""
        place, arrays = self.stack(sys._getframe(2))[:2], list(arrays_in((args, kwargs)))
        self.consume(name, args, arrays)
        if not (place and flops):
            return
        if name in CONTRACTIONS and len(args) > 1 + (name == "einsum"):
            if all(a.ndim > 1 for a in arrays) and len({n for a in arrays for n in a.shape}) == 1:
                self.note("square", place, name, flops)
            zeros = self.zeros(name, args, kwargs, flops)
            if zeros:
                self.note("zeros", place, name, zeros)
            if isinstance(result, np.ndarray) and result.ndim > 1 and min(result.shape[-2:]) > 1:
                root = root_of(result)
                spared = flops - flops // max(result.shape[-2:])
                self.products[id(root)] = weakref.ref(root), (place, name, spared, set())
                self.results.append(self.products[id(root)][1])
        free = FREE_INSTEAD[self.context.book.name].get(name)
        if free and (free is not UNCHANGED.get(name) or arrays and arrays[0].dtype == result.dtype
                     and [n for n in arrays[0].shape if n > 1] == [n for n in result.shape if n > 1]):
            self.note("moved", place, name, flops, free)
        if not (name in _WRITERS or name.startswith("random.") or "out" in kwargs):
            first = self.first.setdefault((name, self.content((args, kwargs))), [place])
            if first[1:]:
                self.note("repeated", place, name, flops,
                          "in a loop" if first[0] == place else f"first on line {first[0][1]}")
            first.append(place)

    def content(self, value) -> Any:
        """What tells a value from others of other content."""
        if isinstance(value, np.ndarray) and value.dtype != object:
            return fingerprint(bare(value))
        if isinstance(value, (list, tuple, dict)):
            return str([*map(self.content, value.items() if isinstance(value, dict) else value)])
        return f"{type(value).__name__} {value!r}"

    def consume(self, name, args, arrays) -> None:
        """Remember of each product in use whether it is for more than its diagonal."""
        diagonal = name in DIAGONALS or name == "einsum" and args[0].replace(" ", "").split("->")[0] == "ii"
        for a in arrays:
            root = root_of(a)
            ref, (*_, uses) = self.products.get(id(root), (lambda: None, [0]))
            if ref() is root:
                on_it = a.ndim == root.ndim - 1 and a.strides[-1] == sum(root.strides[-2:])
                uses.add("diagonal" if diagonal and a.shape == root.shape or on_it else "all")

    def zeros(self, name, args, kwargs, flops) -> int:
        """FLOPs of a product that go into rows and columns of zeros."""
        parts = product_of(name, args, kwargs, self.context.book.name)[3].split("->")[0].split(",")
        alive: dict[str, Any] = {}
        for part, a in zip(parts, args[name == "einsum":]):
            a = np.asarray(bare(a)) != 0
            for axis, label in enumerate(part if len(set(part)) == a.ndim else ""):
                used = a.any(axis=tuple(i for i in range(a.ndim) if i != axis))
                alive[label] = alive.get(label, True) & used
        return int(flops * (1 - math.prod(float(np.mean(used)) for used in alive.values())))


def root_of(a: np.ndarray) -> np.ndarray:
    """The array whose memory this one views."""
    while isinstance(a.base, np.ndarray):
        a = a.base
    return a


def gather_evidence(options, rules: Round, screen: Screen) -> types.SimpleNamespace:
    """All that the questions ask about. Raises WhestError where nothing can be run."""
    path, known = estimator_path(options), set(sys.modules)
    profile, watch = (kind(Path(path).parent) for kind in (Profile, Watch))
    untimed = replace(rules, lambda_flops_per_second=0.0, residual_wall_time_limit=None)
    rival = replace(untimed, flop_budget=DEFAULT_BUDGET)
    e = types.SimpleNamespace(rules=rules, home=profile.home, end=None, until="")
    e.config = {"estimator": path, "seed": options.seed} | asdict(rules)
    screen.live("validate")
    e.checks = list(validation_checks(options, rules))
    e.suite = list(sample_suite(options.n_mlps or 3, rules.width, rules.depth, options.seed))
    screen.live("predict")
    with LocalRunner(path, options.class_, rules, options.seed, profile=profile) as runner:
        e.outcomes = [runner.predict(mlp) for mlp in e.suite]
        e.failed = [o for o in e.outcomes if o.failed]
        e.reseeded = [[runner.predict(replace(mlp, seed=mlp.seed + k)).prediction for k in (1, 2)]
                      for mlp in e.suite if not e.failed]
    e.class_found = runner.class_found
    e.truths = grow_truths(e.suite, [e.outcomes], rules, options, truth_progress(screen))
    e.results = score_suite(e.suite, e.outcomes, e.truths, rules, options.precision)
    e.lines = merged(itertools.chain(*[outcome.lines for outcome in e.outcomes]), "file", "line")
    baseline = [metered_predict(Baseline("mean_propagation"), mlp.copy(), rival) for mlp in e.suite]
    e.baseline = score_suite(e.suite, baseline, e.truths, rival, options.precision)["per_layer_mse"]
    if not e.failed:
        screen.live("convergence table")
        counts = [n for n in SAMPLE_COUNTS if 2 * n * rules.depth * rules.width**2 <= 2**38]     # seconds
        fresh = load_estimator(path, options.class_)
        e.table = convergence_tables([fresh], e.suite[0], rules.flop_budget, counts)[0]
    screen.live("watch")
    refused = [i for i, o in enumerate(e.outcomes) if o.error and "hint" in o.error["details"]]
    e.watched = refused[0] if refused else 0
    try:
        with (watch.instrumented(known),
              LocalRunner(path, options.class_, untimed, options.seed, profile=watch) as runner):
            watched, e.end = runner.predict(e.suite[e.watched]), watch.end
        if watched.failed:
            e.until = f", until predict() failed ({watched.flag or watched.error['message']})"
    except WhestError as exc:
        e.until = f", as it cannot be watched ({exc})"
    for *note, uses in watch.results:
        if uses == {"diagonal"}:
            watch.note("diagonal", *note)
    e.notes = {kind: sorted(((flops, calls, *key) for key, (calls, flops) in notes.items()),
                            key=lambda note: -note[0]) for kind, notes in watch.notes.items()}
    e.bill = max(1, sum(o.flops_charged for o in e.outcomes) / len(e.outcomes))
    return e


def waste(e, flops: float, said: str, change: str, place: tuple | None, unseen=0.0) -> Iterator[Finding]:
    """A Finding about FLOPs of a network, if they cost half a percent of the score or are 1% of the budget.

    `unseen`: what they cost on the real grader and not here. Under the multiplier's floor none is at stake.
    """
    spent, floor = e.results["mean_effective_compute"] + unseen, MULTIPLIER_FLOOR * e.rules.flop_budget
    share = 1 - max(floor, spent - flops) / max(floor, spent)
    if share >= 0.005 or flops >= 0.01 * e.rules.flop_budget:
        under = "" if share else " (free under the floor, but they would buy accuracy)"
        yield Finding(2 if share >= 0.005 else 3, said + under, change, place, int(flops), share)


def place_of(e, text: str) -> tuple | None:
    """(file, line) of "file.py, line 12"."""
    found = re.fullmatch(r"(.+), line (\d+)", text)
    return (e.home + found[1], int(found[2])) if found else None


def costliest(e, amount: str) -> tuple | None:
    """(file, line) of the line with most of an amount."""
    row = max(e.lines, key=lambda row: row[amount], default=None)
    return row and (e.home + row["file"], row["line"])


def question(tier: int, words: str, of_predictions: bool = False) -> Callable:
    """Make the function below the answer to a question; `of_predictions`, if all networks have got theirs."""
    def register(function):
        QUESTIONS.append((tier, words, of_predictions, function))
        return function
    return register


@question(0, "FLOPs-vs-MSE convergence table", True)
def _ask_table(e):
    yield from table_lines(e.table)


def ask_prediction(word: str, e):
    """Whether no prediction was refused with this word in the message."""
    bad = [o for o in e.failed if o.error and "hint" in o.error["details"] and word in o.error["message"]]
    yield (f"no, on {len(bad)} of {len(e.suite)} MLPs" if bad else
           f"yes, on {len(e.suite) - len(e.failed)} of {len(e.suite)} MLPs, which gave a prediction")
    for outcome in bad[:1]:
        place = e.end if outcome is e.outcomes[e.watched] else None
        yield Finding(1, outcome.error["message"], outcome.error["details"]["hint"], place)


for _words, _word in (("Output shape: does predict() return shape (mlp.depth, mlp.width)?", "shape"),
                      ("Finite values: are all values finite?", "finite")):
    question(1, _words)(functools.partial(ask_prediction, _word))


@question(1, "Class name: is your class named Estimator?")
def _ask_class(e):
    yield "yes" if e.class_found == "Estimator" else f"it is {e.class_found}, which the loader took"


@question(1, "Determinism, and the other checks of whest validate")
def _ask_validation(e):
    bad = {c["check"]: f"{c['check']}: {c['detail']}" for c in e.checks[::-1] if not c["ok"]}
    yield "; ".join(bad.values()) or f"all {len(e.checks)} pass"
    draws = [row for row in e.lines if any("random" in c["operation"] for c in row["charges"])]
    for name, said in bad.items() if not e.failed else ():
        row = draws[0] if name == "determinism" and len(draws) == 1 else None
        place = row and (e.home + row["file"], row["line"])
        change = "draw from default_rng(mlp.seed) alone" if name == "determinism" else "see whest validate"
        yield Finding(3, said, change, place, 0, 0.0)


@question(2, "Did predict() raise?")
def _ask_raise(e):
    raised = [(i, o) for i, o in enumerate(e.outcomes) if o.error_code and "hint" not in o.error["details"]]
    yield f"yes, on {len(raised)} of {len(e.suite)} MLPs" if raised else f"no, on none of {len(e.suite)} MLPs"
    groups = defaultdict(list)
    for i, outcome in raised:
        groups[outcome.error["type"], outcome.error["message"], outcome.line].append(i)
    for (kind, message, line), members in groups.items():
        scores = [entry["adjusted_final_layer_score"] for entry in e.results["per_mlp"]]
        lost = sum(scores[i] for i in members) / sum(scores)
        yield Finding(1, f"{kind}: {message}, on MLP {', '.join(f'#{i}' for i in members)}",
                      "see the traceback: whest run --debug", place_of(e, line), 0, lost)


@question(2, "Does zeros beat you?", True)
def _ask_zeros(e):
    mine = e.results["corrected"]["score"]
    errors = [entry["zeros_final_layer_mse"] for entry in e.results["per_mlp"]]
    theirs = float(np.mean(errors)) * MULTIPLIER_FLOOR
    yield f"{'yes' if mine > theirs else 'no'}: it scores {theirs:.3g}, you {mine:.3g}"
    if mine > theirs:
        yield Finding(1, f"zeros scores {mine / theirs:.3g} times better: yours is worse than guessing zero",
                      "look for a wrong sign, scale, transpose or layer", e.end, 0, 1 - theirs / mine)


@question(2, "Does sampling with the same FLOPs beat you?", True)
def _ask_sampling(e):
    mine, spent = e.results["corrected"]["score"], e.results["mean_effective_compute"]
    (paid, n_samples), multiplier = sampling_score(e.results, e.config), e.results["mean_score_multiplier"]
    same = paid * n_samples / max(1.0, n_samples * spent / (multiplier * e.rules.flop_budget))
    answer = "yes" if mine > 2 * same else "no" if mine < same else "it is about as good"
    yield (f"{answer}: with your {readable(spent)} FLOPs it would score {same:.3g}, you {mine:.3g}; "
           f"with all that the multiplier {multiplier:.3g} pays for, {paid:.3g}")
    if mine > 2 * paid:
        said = f"sampling scores {mine / paid:.3g} times better at your multiplier"
        change = ("spend the first tenth of the budget, which is free, if only on samples" if multiplier == MULTIPLIER_FLOOR
                  else "find what costs more than it brings, or sample instead")
        yield Finding(2 if mine > 2 * same else 3, said, change, e.end, 0, 1 - paid / mine)


@question(2, "Is budget_exhausted true?")
def _ask_exhausted(e):
    flags = Counter((o.flag, o.line) for o in e.failed if o.flag)
    yield ("; ".join(f"{flag} = true on {n} of {len(e.suite)} MLPs" for (flag, _), n in flags.items())
           or f"no: {e.results['mean_compute_utilization']:.2%} of the budget is used")
    for (flag, line), n in flags.items():
        where = "it gave way here" if line else "this line costs most"
        yield Finding(1, f"{flag} on {n} MLPs, so that zeros were scored at the full budget; {where}",
                      "spend less", place_of(e, line) or costliest(e, "flops_used"), 0, n / len(e.suite))


@question(2, "Are errors concentrated at deep layers?", True)
def _ask_layers(e):
    mine, theirs = e.results["per_layer_mse"], e.baseline
    growth = [None] + [b / a if a else None for a, b in zip(mine, mine[1:])]
    yield {"layers": [dict(zip(("mse", "baseline_mse", "growth"), row)) for row in zip(mine, theirs, growth)]}
    fine = [i for i, (m, b) in enumerate(zip(mine, theirs), 1) if m <= 2 * b + 1e-12]
    departs = max(fine, default=0)          # 0-based: the first layer after which none is fine
    mean = (mine[-1] / mine[1]) ** (1 / (len(mine) - 2)) if len(mine) > 2 and mine[1] else 1.0
    yield (f"the last layer's MSE is {mine[-1]:.3g}, mean_propagation's {theirs[-1]:.3g}; "
           f"from layer 2 on yours changes by {mean:.3g}x a layer")
    if departs < len(mine):
        yield Finding(2, f"from layer {departs + 1} on your MSE is over twice mean_propagation's: "
                      f"{mine[departs]:.3g}, not {theirs[departs]:.3g}",
                      f"compare what you compute at layer {departs + 1} with mean_propagation",
                      e.end, 0, 1 - theirs[-1] / mine[-1])


@question(2, "What is the final layer's error made of?", True)
def _ask_anatomy(e):
    if any(p is None for again in e.reseeded for p in again):
        yield "not measured: predict() failed with another mlp.seed"
        return
    runs = np.array([[p[-1] for p in (outcome.prediction, *again)]
                     for outcome, again in zip(e.outcomes, e.reseeded)], np.float64)
    truth = np.array([t.mean[-1] for t in e.truths])
    mse = ((runs - truth[:, None]) ** 2).mean()
    random = min(1.0, runs.var(axis=1, ddof=1).mean() / mse)
    error = runs.mean(axis=1) - truth
    scale, offset = (error * truth).sum() / (truth ** 2).sum(), error.mean()
    both = np.polynomial.Polynomial.fit(truth.ravel(), error.ravel(), 1)(truth)
    shares = {"random": random, "offset": offset ** 2 / mse, "scale": scale ** 2 * (truth ** 2).mean() / mse,
              "rest": max(0.0, ((error - both) ** 2).mean() / mse - random / runs.shape[1])}
    yield {key: float(value) for key, value in shares.items()}
    off = {"offset": f"constant offset of {offset:+.3g}", "scale": f"common factor of {1 + scale:.4g}"}
    yield (f"{random:.0%} is your own randomness (3 values of mlp.seed), {1 - random:.0%} is always there; "
           + "".join(f"a {text} explains {shares[kind]:.0%}, " for kind, text in off.items())
           + f"and {shares['rest']:.0%} is neither")
    kind = max(off, key=shares.get)
    if shares[kind] > 0.75 and random < 0.5:
        yield Finding(2, f"{shares[kind]:.0%} of the final error is a {off[kind]}",
                      "look for where it comes in", e.end, 0, float(shares[kind]))


@question(3, "Is matmul dominant?")
def _ask_matmul(e):
    charges = merged(itertools.chain(*[row["charges"] for row in e.lines]), "operation")
    top = sorted(charges, key=lambda c: -c["flops_used"])[:4]
    total = e.bill * len(e.suite)
    yield ", ".join(f"{c['operation']} {c['flops_used'] / total:.1%}" for c in top) or "nothing was charged"
    square = e.notes.get("square", [])
    flops = sum(note[0] for note in square)
    if flops > 0.9 * e.bill:
        said = f"{flops / e.bill:.0%} of the bill multiplies width x width matrices by such"
        found = waste(e, flops, said, "consider diagonal variance instead of full covariance", square[0][2])
        yield from (finding for finding in found if finding.share)      # under the floor it is well spent


def _ask_notes(kind: str, what: str, said: str, change: str, e):
    """What the watch noted of a kind, and a Finding for each place; `said` and `change` are templates."""
    notes = e.notes.get(kind, [])
    total = sum(note[0] for note in notes)
    yield (f"{what}: {sum(note[1] for note in notes):,}, of {readable(total)} FLOPs, {total / e.bill:.1%} of "
           "the bill" if notes else f"no {what}") + e.until
    for flops, calls, place, name, detail in notes:
        fill = functools.partial(str.format, name=name, calls=calls, detail=detail)
        yield from waste(e, flops, fill(said), fill(change), place)


for _words, *_texts in (
    ("Redundant computation?", "repeated", "repeated operations",
     "{name} on the same values again, {calls:,} times, {detail}", "compute it once and keep the result"),
    ("Free operations wasted?", "moved", "copies, casts and reshapes paid for that could be free",
     "{calls:,} paid calls of {name}", "{detail}"),
    ("A full product for its diagonal?", "diagonal", "products of which only the diagonal is used",
     "{calls:,} results of {name}, of which only the diagonal is used",
     "fnp.sum(a * b.T, axis=-1) is the diagonal of a @ b"),
    ("Work on rows or columns that are zero?", "zeros", "products with rows or columns of zeros",
     "{name} on rows or columns that are all zero, {calls:,} times", "leave them out before the product"),
):
    question(3, _words)(functools.partial(_ask_notes, *_texts))


@question(3, "float64 where float32 would do?")
def _ask_float64(e):
    for row in e.lines:
        wide = [c for c in row["charges"] if c["dtype"] in ("float64", "complex128")]
        row["float64"] = sum(c["flops_used"] for c in wide if c["operation"][:6] != "stats.")   # always are
    flops = sum(row["float64"] for row in e.lines) // 2 // len(e.suite)
    rates = PRICES[e.rules.prices].immutable           # the book that charges rates
    yield (f"float64 costs {readable(flops)} FLOPs too many, {flops / e.bill:.1%} of the bill" if rates else
           f"no: book {e.rules.prices} charges dtypes alike")
    yield from waste(e, flops, "float64 doubles the price of what float32 could do, most at this line",
                     "make arrays and constants float32", costliest(e, "float64"))


@question(3, "Work done in plain NumPy?")
def _ask_uncounted(e):
    notes = e.notes.get("uncounted", [])
    total = sum(note[0] for note in notes)
    yield f"{readable(total)} FLOPs, {total / e.bill:.1%} of the bill, as far as seen{e.until}"
    for flops, calls, place, name, _ in notes if total > 0.01 * e.bill else []:
        if flops > 0.1 * total:
            yield Finding(1, f"np.{name} on plain arrays, {calls:,} calls, uncounted: the rules forbid it",
                          f"fnp.{name} counts, and so do operators on fnp arrays", place, flops)


@question(3, "Many small calls?")
def _ask_calls(e):
    calls = sum(row["calls"] for row in e.lines) / len(e.suite)
    seconds, gate = calls * CALL_RESIDUAL, e.rules.residual_wall_time_limit
    cost = seconds * e.rules.lambda_flops_per_second
    priced = f"as much as {readable(cost)} FLOPs" if cost else "free in this round"
    priced += f", and the gate is {gate:g} s" if gate else ""
    yield f"{calls:,.0f} a network: on the real grader about {seconds:.3g} s of residual time, {priced}"
    change, place = "work on whole arrays instead of in Python loops", costliest(e, "calls")
    if gate and seconds > gate:
        said = f"{calls:,.0f} calls leave {seconds:.2g} s there, past the gate of {gate:g} s"
        yield Finding(1, said, change, place)
    else:
        yield from waste(e, cost, f"{calls:,.0f} calls cost that much there", change, place, cost)


def checklist_lines(tier: dict, screen: Screen) -> Iterator[str]:
    """A tier's questions, each with its answer, its drawing and its findings."""
    styles = {0: "good", 1: "bad", 2: "bad", 3: "strong"}
    for asked in tier["questions"]:
        worst = min([f["severity"] for f in asked["findings"]], default=0)
        fine = "-" if asked["answer"][0].startswith("not measured") else "OK"
        label = screen.paint(f"{SEVERITIES.get(worst, fine):<7}", styles[worst])
        yield label + screen.paint(asked["question"], "strong")
        yield from (f"       {line}" for line in asked["answer"])
        layers = asked["data"].get("layers", [])
        logs = [math.log10(max(row["mse"], 1e-12)) for row in layers]
        for i, (row, log) in enumerate(zip(layers, logs), 1):
            growth, theirs = f"x{row['growth']:.3g}" if row["growth"] else "", row["baseline_mse"]
            yield Bar(f"       layer {i:>3} {row['mse']:9.2e} {growth:>9} (baseline {theirs:.2e}) ",
                      (log - min(logs) + 0.3) / (max(logs) - min(logs) + 0.3))
        for f in asked["findings"]:
            yield "       " + screen.paint(f"{SEVERITIES[f['severity']]}: {f['said']}", styles[f["severity"]])
            if f["line"]:
                yield f"         {f['file']}, line {f['line']}:  {f['source']}"
            flops = f", {readable(f['flops'])} FLOPs" if f["flops"] else ""
            yield f"         at stake: {f['share']:.1%} of the score{flops}; change: {f['change']}"


# ======================================================================================
# Command line
#
# One function per sub-command. OPTIONS says once what each flag means; a command names the
# flags that it takes, and plac reads them as the function's signature.
# ======================================================================================


def number(text: str) -> float:
    """6.8e10, 2**41 or 68_000_000_000."""
    base, _, exponent = text.partition("**")
    return float(base) ** float(exponent or 1)


def integer(text: str) -> int:
    """A whole number, in any of the ways of `number`."""
    if number(text) % 1:
        raise ValueError
    return int(number(text))


def sample_count(text: str) -> int | None:
    """A number of samples; None for auto."""
    return None if text == "auto" else integer(text)


FILE, FLAG = object(), object()     # the types of the positional argument, and of an option that takes no value
OPTIONS = {                         # name: (default, help, type, metavar or choices)
    "file": (None, "estimator file", FILE, "FILE"),
    "estimator": (None, "the same as the positional FILE", str, "FILE"),
    "class_": (None, "estimator class, where the file has several", str, "NAME"),
    "baseline": (None, "a baseline beside it", str, list(BASELINES)),
    "round": (DEFAULT_ROUND, f"contest round whose rules apply [{DEFAULT_ROUND}]", str, list(ROUNDS)),
    "width": (None, "neurons a layer [the round's]", integer, "N"),
    "depth": (None, "layers [the round's]", integer, "N"),
    "flop_budget": (None, "FLOP budget B of one network [the round's]", integer, "FLOPS"),
    "prices": (None, "price book [the round's]", str, list(PRICES)),
    "lambda_flops_per_second": (None, "price of a second of residual time [the round's]", number, "RATE"),
    "wall_time_limit": (None, "seconds for one predict() [the round's]", number, "SECONDS"),
    "residual_wall_time_limit": (None, "seconds of predict() outside fnp [the round's]", number, "SECONDS"),
    "no_residual_wall_time_limit": (False, "lift that gate", FLAG, None),
    "setup_timeout": (None, "seconds for loading and setup() [5]", number, "SECONDS"),
    "n_mlps": (None, "networks in the suite [10, or all of the dataset; checklist 3]", integer, "N"),
    "n_samples": (None, "truth samples a network, or auto: as many as the score needs [auto]", sample_count, "N"),
    "precision": (0.02, "of the score that auto aims at [0.02]", number, "SHARE"),
    "max_work": (2**40, "dense FLOPs of sampling a network that auto may spend [2**40]", number, "FLOPS"),
    "seed": (0, "of the suite's networks [0]", integer, "N"),
    "max_threads": (None, "threads of NumPy and of the truth [all cores]", integer, "N"),
    "repeats": (None, "of a measurement [5]; --against: of predict(), under other seeds [1]", integer, "N"),
    "html": (None, "write the report as a page, too", str, "FILE"),
    "against": (None, "compare with a file or baseline, on the same networks and truths", str, "RIVAL"),
    "runner": ("local", "local (or inprocess): here, for debuggers; subprocess (or server): isolated [local]", str,
               ["local", "inprocess", "subprocess", "server"]),
    "memory_limit": (8.0, "of the isolated worker, in GB [8]", number, "GB"),
    "format": (None, "rich for terminals, plain for pipes, json [rich or plain]", str, ["rich", "plain", "json"]),
    "json": (False, "the same as --format json", FLAG, None),
    "debug": (False, "tracebacks, and every network's numbers", FLAG, None),
    "profile": (False, "FLOPs by source line", FLAG, None),
    "fail_fast": (False, "stop at the first failure, with Python's own traceback", FLAG, None),
    "no_store": (False, "neither read nor write the store of truths", FLAG, None),
    "plain_truth": (False, "no control variates", FLAG, None),
    "dataset": (None, "score on a suite.npz, a folder of `whest dataset bake`, or hf://owner/name[@revision]", str, "PATH"),
    "split": (None, "of a dataset that has several", str, "NAME"),
    "output": ("suite.npz", "the suite to write [suite.npz]", str, "FILE"),
    "resume": (False, "grow the truths of an existing suite", FLAG, None),
    "dask": (None, "sample on the Dask cluster at this address", str, "ADDRESS"),
    "clear": (False, "remove everything from the store", FLAG, None),
}
LEAST = {"seed": 0, "lambda_flops_per_second": 0}       # of the options that need not be positive
RULES = """round width depth flop_budget prices lambda_flops_per_second wall_time_limit residual_wall_time_limit
    no_residual_wall_time_limit setup_timeout"""
COMMANDS: dict[str, Callable] = {}


def command(options: str) -> Callable:
    """Make the function below, without "_command", a sub-command that takes these options."""
    def register(function):
        function.options = options.split()
        COMMANDS[function.__name__.removesuffix("_command")] = function
        return function
    return register


def with_signature(function: Callable, annotation: type) -> Callable:
    """A command as plac wants it: a function whose signature is its options, with plac's annotations."""
    parameters = []
    for name in function.options:
        default, text, kind, values = OPTIONS[name]
        choices, metavar = (values, "|".join(values)) if isinstance(values, list) else (None, values)
        style = {FILE: "positional", FLAG: "flag"}.get(kind, "option")
        # Given as its own abbreviation, a name gets no short form: there are more options than letters.
        abbreviation = None if kind is FILE else "-" + name.rstrip("_").replace("_", "-")
        note = annotation(text, style, abbreviation, {FILE: str, FLAG: None}.get(kind, kind), choices, metavar)
        parameters.append(inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=note))

    def call(*values):
        options = types.SimpleNamespace(**dict(zip(function.options, values)))
        for name, value in vars(options).items():
            if OPTIONS[name][2] in (integer, number, sample_count) and value is not None and value < LEAST.get(name, 1e-300):
                least = "at least 0" if name in LEAST else "positive"
                raise Misuse(f"--{name.replace('_', '-')} must be {least}, not {value:g}.")
        with Screen("json" if options.json else options.format) as screen, debuggable(screen):
            return function(options, screen)
    call.__signature__, call.__doc__ = inspect.Signature(parameters), inspect.getdoc(function)
    return call


def rules_of(options) -> Round:
    """The round's rules with the command line's replacements. Raises WhestError."""
    given = {name: getattr(options, name) for name in RULES.split() if getattr(options, name, None) is not None}
    rules = ROUNDS[given.pop("round", DEFAULT_ROUND)]
    if given.pop("no_residual_wall_time_limit", False):
        given["residual_wall_time_limit"] = None
    return replace(rules, **given)


def estimator_path(options) -> str:
    """The one estimator file that was named. Raises WhestError."""
    if bool(options.file) == bool(options.estimator):
        raise Misuse("Name one estimator file: whest run estimator.py (or --estimator estimator.py).")
    return options.file or options.estimator


def runner_for(options, rules: Round, rival: str | None = None) -> LocalRunner:
    """The runner that the options ask for, of the estimator or a rival to it; not started yet."""
    path = rival or os.path.abspath(os.path.expanduser(estimator_path(options)))     # never a baseline's name
    class_name = None if rival else options.class_
    arguments = path, class_name, rules, options.seed, getattr(options, "fail_fast", False)
    profile = Profile(Path(path).parent) if getattr(options, "profile", False) and not rival else None
    if options.runner in ("local", "inprocess"):
        return LocalRunner(*arguments, profile=profile)
    return SubprocessRunner(*arguments, profile=profile, memory_limit=int(options.memory_limit * 2**30),
                            max_threads=options.max_threads)


@command(f"""file estimator class_ {RULES} n_mlps n_samples precision max_work plain_truth no_store dataset split
    seed max_threads runner memory_limit against repeats profile html format json debug fail_fast""")
def run(options, screen: Screen) -> int:
    """Score an estimator on a suite of random networks, and say what to do next.

    Prints the report, or with --format json the document of `whest run`. Exit status 0 if scored, 1 if the
    estimator failed on any network, 2 for misuse.
    """
    rules, started = rules_of(options), datetime.now(timezone.utc)
    rival = options.against
    if options.repeats and not rival:
        raise Misuse("--repeats is for --against: name a rival.")
    if rival and rival not in BASELINES and not Path(rival).expanduser().is_file():
        raise Misuse(f"--against {rival}: no such file, nor one of the baselines {', '.join(BASELINES)}.")
    if options.html and not os.access(Path(options.html).parent, os.W_OK):
        raise Misuse(f"--html {options.html}: cannot write in that folder.")
    limit_threads(options.max_threads)
    dataset = read_dataset(options.dataset, options.split, options.n_mlps) if options.dataset else None
    suite = dataset.mlps if dataset else list(sample_suite(options.n_mlps or 10, rules.width, rules.depth, options.seed))
    rules = replace(rules, width=suite[0].width, depth=suite[0].depth)
    classes, outcomes = [], []          # of the estimator, then of its rival
    for which in (None, rival) if rival else (None,):
        with runner_for(options, rules, which) as runner:
            outcomes.append(predictions(runner, suite, options.repeats or 1, screen))
            classes.append(runner.class_found)
    first = [repeats[0] for repeats in outcomes]
    truths = dataset.truths if dataset else grow_truths(suite, first, rules, options, truth_progress(screen))
    results, *theirs = (score_suite(suite, each, truths, rules, options.precision) for each in first)
    if options.profile:
        lines = merged(itertools.chain(*[outcome.lines for outcome in first[0]]), "file", "line")
        results["profile"] = {"lines": lines, "flops_used": sum(o.flops_charged for o in first[0])}
    config = {"n_mlps": len(suite), "width": rules.width, "depth": rules.depth, "seed": options.seed,
              "flop_budget": rules.flop_budget, "setup_timeout_s": rules.setup_timeout,
              "wall_time_limit_s": rules.wall_time_limit, "residual_wall_time_limit_s": rules.residual_wall_time_limit,
              "lambda_flops_per_second": rules.lambda_flops_per_second, "round": rules.tag, "prices": rules.prices,
              "estimator": estimator_path(options), "class": classes[0], "runner": options.runner,
              "n_samples": "the dataset's" if dataset else options.n_samples or "auto"}
    if dataset:
        config["dataset"] = dataset.about
    document = {"schema_version": "1.1", "mode": "agent", "results": results, "run_meta": run_meta(started),
                "run_config": config, "whestbench_version": __version__}
    if rival:
        difference = compare(*outcomes, truths, rules)
        document["against"] = {"verdict": verdict(difference, config["estimator"], rival), "estimator": rival,
                               "class": classes[1], "difference": difference, "results": theirs[0]}
    report_run(document, screen, options.debug, options.html)
    n_errors = results["failure_breakdown"]["error"]
    if n_errors:
        print(f"whest: predict() failed on {n_errors} of {len(suite)} MLPs; the report says where and why.", file=sys.stderr)
    return 1 if n_errors else 0


def predictions(runner: LocalRunner, suite: list[MLP], n_repeats: int, screen: Screen) -> list[list[Outcome]]:
    """The outcomes on a suite, again under other seeds for each repeat after the first."""
    outcomes: list[list[Outcome]] = []
    for repeat in range(n_repeats):
        outcomes.append([])
        for i, mlp in enumerate(suite):
            screen.live(f"predict  MLP {i + 1}/{len(suite)}")
            other = np.random.SeedSequence(mlp.seed, spawn_key=(repeat,)).generate_state(1)[0]
            outcomes[-1].append(runner.predict(replace(mlp, seed=int(other)) if repeat else mlp))
    return outcomes


def truth_progress(screen: Screen) -> Callable:
    """What sampling shows: how far, how fast, how long still, and the score so far."""
    started, first = time.monotonic(), []

    def progress(done: int, todo: int, error=None) -> None:
        first.append(done) if not first else None
        rate = (done - first[0]) / max(time.monotonic() - started, 1e-9)
        left = f", {(todo - done) / rate:.0f} s left" if rate else ""
        score = "" if error is None else f"  score {error.truth_interval[0]:.4g} to {error.truth_interval[1]:.4g}"
        screen.live(f"truth  {done:,} of {todo:,} samples, {rate:,.0f}/s{left}{score}")
    return progress


def run_meta(started: datetime) -> dict:
    """When and where the run took place."""
    finished, system = datetime.now(timezone.utc), platform.uname()
    return {"run_started_at_utc": started.isoformat(), "run_finished_at_utc": finished.isoformat(),
            "run_duration_s": (finished - started).total_seconds(),
            "host": {"hostname": system.node, "os": system.system, "os_release": system.release,
                     "platform": platform.platform(), "machine": system.machine,
                     "python_version": platform.python_version(), "cpu_brand": platform.processor() or "unknown",
                     "cpu_count_logical": os.cpu_count(), "cpu_count_physical": None, "ram_total_bytes": None,
                     "ram_available_bytes": None, "numpy_version": np.__version__, "flopscope_version": flops.__version__}}


@command(f"file estimator class_ {RULES} seed max_threads runner memory_limit format json debug")
def validate(options, screen: Screen) -> int:
    """Check the contract in seconds: class, setup, shape, finite values, budget, determinism, and the other price book.

    Each check is a line with OK or what to do, on a tiny network and on the round's shape. Exit status 1 if one fails;
    a NOTE is no failure.
    """
    ok = report_checks("Validation", list(validation_checks(options, rules_of(options))), screen)
    if screen.format != "json":
        screen.write(f"Next: whest {'run' if ok else 'validate'} {estimator_path(options)}")
    return 0 if ok else 1


def validation_checks(options, rules: Round) -> Iterator[dict]:
    """The checks in order, on a tiny network, the round's shape, and under the other book; a failure ends them."""
    def check(name: str, ok: bool | None, detail: str) -> dict:
        return {"check": name, "ok": ok, "detail": f"{detail} [{trial.width}x{trial.depth}, prices {trial.prices}]"}

    share = 32 / (rules.depth * rules.width**2)
    tiny = replace(rules, width=4, depth=2, flop_budget=max(1, int(rules.flop_budget * share)), lambda_flops_per_second=0.0)
    for trial in (tiny, rules, replace(tiny, prices=next(book for book in PRICES if book != rules.prices))):
        with runner_for(options, trial) as runner:
            mlp = build_mlp(trial.width, trial.depth, options.seed)
            first, second = runner.predict(mlp), runner.predict(mlp)
        yield check("class", True, f"{runner.class_found}, loaded and set up within {trial.setup_timeout:g} s")
        if first.failed:
            error = first.error and first.error["details"] | {"message": first.error["message"]}
            yield check("predict", False, f"{first.flag}: spend less, or raise the limit" if first.flag else
                        " ".join([error["message"], *error.get("cause_hints", ()), f"({error['line']})"]))
            return
        yield check("predict", True, f"shape {first.prediction.shape}, finite, {readable(first.flops_used)} FLOPs, "
                    f"{first.flops_used / trial.flop_budget:.2%} of the budget")
        same = not second.failed and np.array_equal(first.prediction, second.prediction)
        yield check("determinism", same or None, "two calls agree bit for bit" if same else
                    "two calls on one network differ: seed your generator from mlp.seed")


@command(f"""file estimator class_ {RULES} n_mlps n_samples precision max_work plain_truth no_store seed
    max_threads format json debug""")
def checklist(options, screen: Screen) -> int:
    """Answer the debugging page by measurement: each finding with its line, and with what to change.

    Runs the estimator on 3 networks, again with other seeds, and once under watch. Exit status 0 if nothing
    spoils the score, 1 if something does, 2 for misuse.
    """
    rules, options.runner = rules_of(options), "local"
    limit_threads(options.max_threads)
    use_prices(rules.prices)
    evidence = gather_evidence(options, rules, screen)
    tiers = [{"tier": i, "title": title, "questions": []} for i, title in enumerate(TIERS)]
    for tier, words, of_predictions, ask in QUESTIONS:
        skip = of_predictions and evidence.failed
        said = ["not measured: predict() failed"] if skip else list(ask(evidence))
        findings = sorted((each for each in said if isinstance(each, Finding)),
                          key=lambda f: (f.severity, -f.share, -f.flops))
        tiers[tier]["questions"].append({
            "question": words, "answer": [text for text in said if isinstance(text, str)],
            "data": next((data for data in said if isinstance(data, dict)), {}),
            "findings": [finding.document(evidence.home) for finding in findings]})
    worst = Counter(f["severity"] for tier in tiers for asked in tier["questions"] for f in asked["findings"])
    document = {"ok": not worst[1], "tiers": tiers, "run_config": evidence.config,
                "whestbench_version": __version__}
    if screen.format == "json":
        screen.write(json.dumps(document, indent=2))
        return int(not document["ok"])
    for tier in tiers:
        screen.panel(f"Tier {tier['tier']}: {tier['title']}", checklist_lines(tier, screen))
    counts = [f"{SEVERITIES[severity]} {worst[severity]}" for severity in sorted(worst)]
    screen.write(", ".join(counts) or "Nothing to change.")
    return int(not document["ok"])


@command("format json")
def doctor(options, screen: Screen) -> int:
    """Check the installation: versions, threads, vectors, store, kernels, other packages, environment variables.

    Each check is a line with OK, NOTE or FAIL. Exit status 1 if one fails: such a thing would spoil a score.
    """
    checks = [{"check": name, "ok": ok, "detail": detail} for name, ok, detail in health_checks()]
    return 0 if report_checks("Doctor", checks, screen) else 1


RIVALS = {          # packages of the same name elsewhere: what becomes of an estimator that imports them
    "flopscope": "estimators get ours, for the same bill", "local_engine": "estimators that import it get that one, not ours",
    "whestbench": "`python estimator.py` gets whichever comes first on the path"}
VARIABLES = {       # of the environment: what each decides
    "PYTHONBREAKPOINT": "what breakpoint() does, and makes output plain", "OMP_NUM_THREADS": "the threads of NumPy",
    "WHESTBENCH_PRICES": "the price book of contexts outside any round"}


def health_checks() -> Iterator[tuple[str, bool | None, str]]:
    """(name, whether it is well or None for a note, detail) of each check."""
    import numba
    import plac
    yield "versions", True, (f"python {platform.python_version()}, numpy {np.__version__}, numba {numba.__version__}, "
                             f"plac {plac.__version__}, whestbench {__version__}")
    yield "threads", True, f"{_n_threads}, of {os.cpu_count()} logical CPUs; vectors of {vector_type()[1]} float32"
    folder, start = TruthStore().folder, time.perf_counter()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        yield "store", True, f"{folder} is writable"
    except OSError as exc:
        yield "store", None, f"{folder} cannot be written ({exc.strerror}): every run samples its truths again"
    try:
        weights = np.stack([np.asarray(w, np.float64) for w in build_mlp(64, 2).weights])
        sums = simulate_block(pack_weights(weights), 0, 0).layer_sums[-1]
        took, how = time.perf_counter() - start, "cached" if network_sums.stats.cache_hits else "compiled"
        exact = functools.reduce(lambda x, weight: np.maximum(x @ weight, 0), weights, block_inputs(64, 0, 0)).sum(0)
        right = np.allclose(sums, exact, rtol=1e-4)
        yield "kernels", right, f"{how}, first block after {took:.1f} s, sums {'as' if right else 'unlike'} NumPy's in float64"
    except Exception as exc:        # the compiler can raise anything
        yield "kernels", False, f"no truth can be sampled: {type(exc).__name__}: {exc}"
    for name, then in RIVALS.items():
        specs = [importlib.machinery.PathFinder.find_spec(name, [entry]) for entry in (os.getcwd(), *sys.path)]
        places = [os.path.realpath(spec.origin) for spec in specs if spec and spec.origin]
        if others := [place for place in places if place != os.path.realpath(__file__)]:
            first = name == "whestbench" and others[0] == places[0]
            yield name, False if first else None, f"another is at {others[0]}: {then}" + ", here that one" * first
    for name in VARIABLES.keys() & os.environ.keys():
        yield name, None, f"is {os.environ[name]!r}: it decides {VARIABLES[name]}"


@command("file estimator class_ baseline width depth seed prices format json")
def loop_command(options, screen: Screen) -> int:
    """The direct loop, `python estimator.py`: one network, no runner, your prediction against ever more samples.

    Prints the table n_samples | sampling_flops | estimator_flops | MSE, and with --baseline NAME the same for a
    baseline beside it.
    """
    rules = ROUNDS[DEFAULT_ROUND]
    use_prices(options.prices or rules.prices)
    mlp = build_mlp(options.width or rules.width, options.depth or rules.depth, options.seed)
    estimators = {"Your estimator": load_estimator(estimator_path(options), options.class_)}
    if options.baseline:
        estimators[f"Baseline: {options.baseline}"] = Baseline(options.baseline)
    tables = dict(zip(estimators, convergence_tables(estimators.values(), mlp, rules.flop_budget)))
    if screen.format == "json":
        screen.write(json.dumps({"width": mlp.width, "depth": mlp.depth, "seed": options.seed, "tables": tables}, indent=2))
    else:
        screen.write(f"MLP: width={mlp.width} depth={mlp.depth} seed={options.seed}")
        for label, rows in tables.items():
            screen.write("\n".join(["", f"--- {label} ---", *table_lines(rows)]))
    return 0


@command(f"file output {RULES} n_mlps n_samples seed plain_truth resume no_store dask max_threads format json debug")
def bake_command(options, screen: Screen) -> int:
    """Write a suite: networks with their truths, one portable file that `run --dataset` scores on.

    --resume grows the truths of an existing file to --n-samples (default: twice what they have).
    """
    rules = rules_of(options)
    output = Path(options.file or options.output)
    if output.exists() != options.resume:
        raise Misuse(f"{output} exists: add --resume to grow it, or choose another name." if output.exists() else
                     f"There is no {output} to resume.")
    old = read_suite(output) if options.resume else None
    mlps = old.mlps if old else list(sample_suite(options.n_mlps or 10, rules.width, rules.depth, options.seed))
    n_samples = options.n_samples or (2 * old.truths[0].n_samples if old else 2**20)
    if old and n_samples < old.truths[0].n_samples:
        raise Misuse(f"{output} has {old.truths[0].n_samples:,} samples a network already.")
    store = None if options.no_store else TruthStore()
    executor = DaskExecutor(options.dask) if options.dask else None
    limit_threads(options.max_threads)
    truths = []
    for mlp in mlps:        # one by one: what sampling a large network takes is let go before the next
        source = TruthSource(mlp.weights, store, options.plain_truth)
        truths += grow_together([source], n_samples, executor=executor, progress=truth_progress(screen))[0]
    about = {"seed": options.seed, "n_samples": n_samples, "width": mlps[0].width, "depth": mlps[0].depth}
    write_suite(output, Suite(mlps, truths, (old.about if old else {}) | about))
    noise = math.sqrt(sum(float((t.standard_error[-1]**2).mean()) for t in truths) / len(truths))
    document = about | {"path": str(output), "n_mlps": len(mlps), "final_layer_standard_error": noise}
    screen.write(json.dumps(document, indent=2) if screen.format == "json" else
                 f"{output}: {len(mlps)} networks {mlps[0].width}x{mlps[0].depth}, {n_samples:,} samples each, "
                 f"final-layer standard error {noise:.3g}\nNext: whest run estimator.py --dataset {output}")
    return 0


@command("clear format json")
def store_command(options, screen: Screen) -> int:
    """Show what the store of truths holds; --clear empties it."""
    kept = TruthStore()
    rows = [{"network": folder.name, "bytes": sum(path.stat().st_size for path in folder.iterdir()),
             "n_samples": max([int(path.stem.split("-")[0]) for path in folder.glob("[0-9]*.npz")], default=0)}
            for folder in sorted({path.parent for path in kept.folder.glob("*/[!.]*.npz")})]      # .*.npz: a killed run's
    if options.clear:
        shutil.rmtree(kept.folder, ignore_errors=True)
    if screen.format == "json":
        screen.write(json.dumps({"folder": str(kept.folder), "cleared": options.clear, "networks": rows}, indent=2))
        return 0
    total = sum(row["bytes"] for row in rows)
    screen.panel("Store", [f"{row['network'][:24]:<26} {row['n_samples']:>16,} samples {row['bytes'] / 2**20:>9.1f} MB" for row in rows]
                 + [f"{kept.folder}: {len(rows)} networks, {total / 2**20:.1f} MB" + (", cleared" if options.clear else "")])
    return 0


RIVAL_CODE = """
import json, sys, time
import numpy as np
def median_time(call, repeats, times):
    return sorted(clock(call, repeats) for _ in range(times))[times // 2]
def clock(call, repeats):
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats
def overhead(fnp):
    x, w = fnp.array(np.ones(256, np.float32)), fnp.array(np.ones((256, 256), np.float32))
    calls = {"x + x": lambda: x + x, "x * 2.0": lambda: x * 2.0, "sqrt(x)": lambda: fnp.sqrt(x),
             "maximum(x, x)": lambda: fnp.maximum(x, x), "sum(x)": lambda: fnp.sum(x), "mean(x)": lambda: fnp.mean(x),
             "w @ x": lambda: w @ x, "x[3]": lambda: x[3], "x[2:5]": lambda: x[2:5], "w[3]": lambda: w[3]}
    return {name: 1e6 * median_time(call, 200, 7) for name, call in calls.items()}
"""
REAL_SAMPLER = RIVAL_CODE + """
import whestbench
mlp = whestbench.sample_mlp(int(sys.argv[1]), int(sys.argv[2]))
n = int(sys.argv[3])
whestbench.sample_layer_statistics(mlp, 2048)
print(n / clock(lambda: whestbench.sample_layer_statistics(mlp, n), 1))
"""
REAL_OVERHEAD = RIVAL_CODE + """
import flopscope as flops, flopscope.numpy as fnp
with flops.BudgetContext(flop_budget=10**15, quiet=True):
    print(json.dumps(overhead(fnp)))
"""


def ask_real_package(package: str, code: str, *arguments: int):
    """What `code` prints beside the real package, in a process of its own; None where it is not installed.

    It is looked for in the folder `package` of WHESTBENCH_ORACLES, else among this Python's packages.
    """
    name = package.partition("-")[0]
    oracles = os.environ.get("WHESTBENCH_ORACLES")
    if not oracles and not importlib.util.find_spec("opt_einsum"):       # which the real ones need, and we do not
        return None
    environment = os.environ | ({"PYTHONPATH": str(Path(oracles) / package)} if oracles else {})
    done = subprocess.run([sys.executable, "-c", f"import sys; sys.path.remove('')\nassert __import__({name!r}).__path__\n{code}",
                           *map(str, arguments)], env=environment, capture_output=True, text=True, cwd=tempfile.gettempdir())
    return json.loads(done.stdout) if done.returncode == 0 else None


def fma_chains(typingctx, n):
    """n times 96 fused multiply-adds of vectors, on registers alone: 12 chains hide the latency."""
    from llvmlite import ir
    from numba.core import cgutils, types
    vector, lanes, _ = vector_type()

    def codegen(context, b, signature, args):
        fma = cgutils.get_or_insert_function(
            b.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fmuladd.v{lanes}f32")
        chains, (factor, term) = [cgutils.alloca_once(b, vector) for _ in range(12)], (
            ir.Constant(vector, [value] * lanes) for value in (0.999, 0.001))
        for chain in chains:
            b.store(term, chain)
        with cgutils.for_range(b, args[0]):
            for chain in chains * 8:
                b.store(b.call(fma, [b.load(chain), factor, term]), chain)
        total = functools.reduce(b.fadd, map(b.load, chains))
        return b.extract_element(total, ir.IntType(32)(0))

    return types.float32(types.int64), codegen


def fma_peak(threads: concurrent.futures.Executor) -> Callable[[], float]:
    """A function that measures the chip's float32 FMA rate in GFLOP/s on all threads, without touching memory."""
    from numba import njit
    from numba.extending import intrinsic
    loop = intrinsic(fma_chains)
    run_chains, n = njit(lambda n: loop(n), nogil=True), 1_000_000
    run_chains(1)

    def measure() -> float:
        start = time.perf_counter()
        list(threads.map(run_chains, [n] * _n_threads))
        return _n_threads * n * 96 * 2 * vector_type()[1] / (time.perf_counter() - start) / 1e9
    return measure


def numpy_engine(weights: np.ndarray, n_samples: int, threads: concurrent.futures.Executor) -> None:
    """The honest NumPy engine: chunks of float32 normals drawn on all cores, BLAS products, column sums."""
    generators = [np.random.default_rng(i) for i in range(_n_threads)]
    sums = np.zeros(weights.shape[:2])
    for _ in range(n_samples // 4096):
        x = np.empty((4096, weights.shape[1]), np.float32)
        list(threads.map(lambda rng, part: rng.standard_normal(out=part, dtype=np.float32),
                         generators, np.array_split(x, _n_threads)))
        for layer, weight in enumerate(weights):
            x = x @ weight
            np.maximum(x, 0, out=x)
            sums[layer] += x.sum(0)


def bench_shape(rules: Round, repeats: int, threads: concurrent.futures.Executor, peak: Callable[[], float]) -> dict:
    """Samples a second of the engine and its rivals at a round's shape, interleaved, medians of `repeats`."""
    width, depth = rules.width, rules.depth
    weights = np.stack([np.asarray(w) for w in build_mlp(width, depth).weights])
    network, block = pack_weights(weights), samples_per_block(width)
    n_samples = max(8192, int(1e11 / (2 * depth * width**2)) // 4096 * 4096)
    rates = defaultdict(list)

    def clock(work: Callable) -> float:
        start = time.perf_counter()
        work()
        return n_samples / (time.perf_counter() - start)
    for repeat in range(repeats + 1):
        rates["engine"].append(clock(lambda: deque(threads.map(functools.partial(simulate_block, network, 1), range(n_samples // block)), 0)))
        rates["numpy"].append(clock(lambda: numpy_engine(weights, n_samples, threads)))
        rates["fma_peak_gflops"].append(peak())
        rates["real"].append(ask_real_package("whestbench-0.16.2", REAL_SAMPLER, width, depth, n_samples) or math.nan)
        if repeat == 0:                         # a warm-up
            rates.clear()
    rates["gflops"] = [rate * width**2 * (2 * depth - 1) / 1e9 for rate in rates["engine"]]
    row = {name: float(np.median(values)) for name, values in rates.items()}
    for name, a, b in (("times_numpy", "engine", "numpy"), ("times_real", "engine", "real"),
                       ("of_peak", "gflops", "fma_peak_gflops")):
        row[name] = float(np.median(np.divide(rates[a], rates[b])))
    return {"round": rules.tag, "shape": f"{width}x{depth}"} | {k: None if v != v else v for k, v in row.items()}


@command("repeats max_threads format json")
def bench(options, screen: Screen) -> int:
    """Measure the engine against NumPy, the chip's FMA peak and the real package; and what counting a call costs.

    Everything is measured side by side in this run, as medians; quote the ratios. Takes a minute or two.
    """
    limit_threads(options.max_threads)
    with concurrent.futures.ThreadPoolExecutor(_n_threads) as threads:
        peak = fma_peak(threads)
        shapes = [bench_shape(rules, options.repeats or 5, threads, peak) for rules in ROUNDS.values()]
    tools: dict[str, Any] = {}
    exec(RIVAL_CODE, tools)
    plain = tools["overhead"](np)
    with BudgetContext(10**15, quiet=True, prices="0.12"):
        ours = tools["overhead"](fnp)
    real = ask_real_package("flopscope-0.12.4", REAL_OVERHEAD) or {}
    calls = [{"call": name, "numpy_us": us, "ours_us": ours[name], "real_us": real.get(name), "added_us": ours[name] - us,
              "times_less_added": (real[name] - us) / (ours[name] - us) if real and ours[name] > us else None}
             for name, us in plain.items()]
    if screen.format == "json":
        screen.write(json.dumps({"engine": shapes, "overhead": calls}, indent=2))
        return 0

    def cell(value: float | None) -> str:
        return f"{'-' if value is None else f'{value:,.2f}' if value < 1000 else f'{value:,.0f}':>10}"
    columns = {"shape": "shape", "samples/s": "engine", "NumPy": "numpy", "x NumPy": "times_numpy", "real": "real",
               "x real": "times_real", "GFLOP/s": "gflops", "FMA peak": "fma_peak_gflops", "of peak": "of_peak"}
    screen.panel("Engine", ["".join(f"{title:>10}" for title in columns), *(
        "".join(f"{row[key]:>10}" if key == "shape" else cell(row[key]) for key in columns.values()) for row in shapes)])
    columns = {"NumPy": "numpy_us", "ours": "ours_us", "added": "added_us", "real 0.12": "real_us", "x less": "times_less_added"}
    screen.panel("Overhead of a call on 256 float32, in microseconds", [
        " " * 16 + "".join(f"{title:>10}" for title in columns),
        *(f"{c['call']:<16}" + "".join(cell(c[key]) for key in columns.values()) for c in calls)])
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run one sub-command; returns the exit status. This is the console script `whest`."""
    import plac
    arguments = sys.argv[1:] if arguments is None else [str(a) for a in arguments]
    commands = {name: staticmethod(with_signature(f, plac.Annotation)) for name, f in COMMANDS.items()}
    parser = plac.parser_from(type("whest", (), {"__doc__": __doc__, "commands": list(COMMANDS), "prog": "whest"} | commands)())
    parser.add_argument("--version", action="version", version=f"whestbench {__version__}")
    for entry in parser.subparsers._choices_actions:
        entry.help = entry.help.splitlines()[0]
    for each in (parser, *parser.subparsers.choices.values()):
        each.error = functools.partial(refuse, each.prog)
        for action in each._actions:
            action.option_strings = list(dict.fromkeys(action.option_strings))
    try:
        if not arguments:
            raise Misuse(f"Name a command: {', '.join(COMMANDS)}. `whest COMMAND --help` explains each.")
        if _default_book not in PRICES:
            raise Misuse(f"WHESTBENCH_PRICES must be {' or '.join(PRICES)}, not {_default_book!r}.")
        return parser.consume(arguments)[1]
    except WhestError as exc:
        if "--debug" in arguments:
            traceback.print_exc()
        if "--json" in arguments or "json" in arguments:
            error = {"stage": exc.stage, "code": exc.code, "message": str(exc)}
            print(json.dumps({"ok": False, "error": error, "whestbench_version": __version__}, indent=2))
        print(f"whest: {exc}", file=sys.stderr)
        return exc.exit_status
    except KeyboardInterrupt:
        print("whest: interrupted. Truth sampled so far is kept: the same command goes on from there.", file=sys.stderr)
        return 130


def refuse(program: str, message: str):
    """What plac's parsers do with bad arguments: one sentence instead of a page of usage."""
    raise Misuse(f"{message[:1].upper()}{message[1:]}; `{program} --help` lists what it takes.")


class LocalEngineFinder:
    """Asked last for an import: the starter kit's `local_engine` is this module where the kit has none of its own."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        return importlib.util.spec_from_loader(name, LocalEngineFinder) if name == "local_engine" else None

    @staticmethod
    def create_module(spec):
        return sys.modules[__name__]

    @staticmethod
    def exec_module(module):
        """Nothing to execute: the module is this one."""


def claim_names() -> None:
    """Let the imports of a contest submission reach this module, whatever is installed beside it."""
    install()
    here = sys.modules[__name__]
    for name in ("domain", "sdk", "generation", "simulation"):
        sys.modules[f"{__name__}.{name}"] = here
        setattr(here, name, here)
    sys.meta_path.append(LocalEngineFinder)


claim_names()
if _RUN_AS_SCRIPT:
    sys.exit(main())
