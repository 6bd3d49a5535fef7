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
import pickle
import platform
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
import typing
import warnings
from collections import Counter, defaultdict, deque, namedtuple
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

if __name__ == "__main__" and (
        _missing := [name for name in ("numba", "numpy", "plac") if not importlib.util.find_spec(name)]):
    sys.exit(f"whest: {', '.join(_missing)} not found: pip install numba numpy plac, or type "
             "uv run whestbench.py instead.")

import numpy as np

__version__ = "1.0.0"
__all__ = """
    ROUNDS Round PRICES PriceBook BudgetContext BudgetExhaustedError TimeExhaustedError namespace
    budget_summary budget_summary_dict budget_reset use_prices flops fnp MLP BaseEstimator SetupContext
    WhestError Misuse sample_mlp sample_suite build_mlp relu run_mlp run_mlp_all_layers
    sample_layer_statistics monte_carlo_layer_means load_estimator limit_threads pack_weights
    samples_per_block simulate_block block_inputs Truth TruthSource TruthStore grow_together Suite
    read_suite write_suite load_dataset mlp_at iter_mlps InvalidDatasetError BASELINES Baseline Outcome
    TruthError final_error suite_error score_mlp score_suite compare convergence_tables
    compare_against_monte_carlo metered_predict Profile LocalRunner SubprocessRunner Screen report_run
    COMMANDS main
""".split()

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

class FlopscopeError(Exception):
    """Base of the errors that the counter raises."""


class UnsupportedFunctionError(FlopscopeError):
    """The operation has no price here, so it must not run."""


class UnsupportedDtypeError(FlopscopeError, TypeError):
    """Book 0.12 bills numbers only: bool, integer, float, complex."""


# A row: names | units in 0.12 | units in 0.7 | weight | dtype whose rate is charged | complex factor | notes
#
# Left out, a cell is what the [section] says, or else: units as in 0.12, weight 1, the dtype of the first
# operand, factor 2. `a/b` weighs a in 0.12 and b in 0.7; {a; b} is a for the first name and b for the second.
# Cells are Python. They know the arguments by NumPy's names (or the row's own), the functions of this room,
# and the lines `quantity = formula`, each computed when asked for. `free` is 0 and not even logged; `-`: no
# price, no dtype, or no sense for complex numbers. What looks at the result (O, made) is charged after the
# work, as is a row that notes `after`. Results are counted arrays, even single numbers unless `scalars` stay;
# `plain`: never, `alike`: if operands are. Such a note may name its book.
PRICE_TABLE = """
early = book == "0.7"
first = args[0] if args else next(iter(kwargs.values()), None)
two = [*args, *kwargs.values()][:2]
out = None
dtype = None
shape = shape_of(first)
size = size_of(first)
O = size_of(*result) if isinstance(result, (tuple, list)) else size_of(result)
group = getattr(first, "_group", None)
ufunc = getattr(np, name.partition(".")[0])
main = dtype_of(first)
made = dtype_of(result[0] if isinstance(result, tuple) and result else result)
asked = main if dtype is None else np.dtype(dtype)
pair = join(*two)
items = with_out(out, join(*first))
every = max1(spread(*args, *kwargs.values()))

[] pointwise: N elements, at least 1 | N | N | dtype loop
N = max1(elements(first))
loop = loop_of(locals(), ufunc, args, kwargs)
negative positive rint conj conjugate logical_not
degrees radians deg2rad rad2deg signbit fabs ceil floor trunc spacing invert bitwise_not bitwise_invert
  bitwise_count | complex -
abs absolute square reciprocal sign sqrt | complex {4; 4; 5; 6; 7; 10}
log log2 log10 log1p | weight 16 | complex {2.25; 2.3; 2.3; 2.3}
exp exp2 expm1 | weight 16 | complex 3.1
sin cos sinh cosh tanh | weight 16 | complex 3.4
arcsin arccos arctan arcsinh arccosh arctanh | weight 16 | complex 3.5
asin acos atan asinh acosh atanh | weight 16/1 | complex 3.5
tan cbrt | weight 16 | complex {3.6; -}
isnan isfinite isinf | size | size | notes plain
modf frexp | 2 * N | complex -
round around nan_to_num isreal iscomplex real_if_close | dtype with_out(out, main)
sized = main if main.kind in "fc" else np.result_type(main, np.float16)
fix isneginf isposinf | dtype with_out(out, {main; sized; sized}) | complex -
angle | weight 16 | dtype f8 if main.kind == "b" else sized
sinc i0 | weight 16 | dtype inexact(main) | complex {14.5; -}
real imag | 0 | dtype main
iscomplexobj isrealobj | free | dtype main

[] pointwise: B elements of the operands together, at least 1 | B | B | dtype loop
B = max1(elements(*two))
add subtract maximum minimum fmax fmin equal not_equal less less_equal greater greater_equal logical_and
  logical_or logical_xor copysign nextafter ldexp heaviside bitwise_and bitwise_or bitwise_xor
  bitwise_left_shift bitwise_right_shift left_shift right_shift
multiply divide true_divide | complex {6; 11; 11}
power float_power | weight 16 | complex 5.5
pow atan2 | weight 16/1 | complex 5.5
floor_divide mod remainder fmod logaddexp logaddexp2 arctan2 hypot gcd lcm | weight 16
divmod(x1, x2, out=None) | 2 * B | weight 16/1 | dtype weak(*two) | complex -
bounds = [b for b in (a_min, a_max, min, max) if b is not None and b is not np._NoValue]
dense_bound = any(shape_of(b) and not getattr(b, "_group", None) for b in bounds)
clip | max1(len(bounds)) * max1(elements(a, *bounds)) | max1(size) if dense_bound else N
  | dtype weak(a, *bounds, out)
isclose allclose | {6 * B; max1(7 * elements(a, b) - 1)}
  | dtype inexact({weak(a, b, rtol, atol); join(*args)})

[] reductions: adds additions (R: at least 1), V results of `each` elements | R | R
axes = axes_of(shape, axis)
sides = [*map(shape.__getitem__, axes)]
each = math.prod(sides)
adds = summing(shape, axes, group, book)
R = max1(adds)
V = distinct(group, sorted({*range(len(shape))}.difference(axes)), shape)
seek = N if main.kind in "fc" else 0
summed = of_reduction(added(main), main, dtype, out)
lines = size // shape[axis] if shape[axis] else 1
reduced = of_reduction(main, main, dtype, out)
averaged = of_reduction(inexact(main), main, dtype, out)
sum nansum cumsum nancumsum cumulative_sum | R + {0; seek; 0; seek; 0} | dtype summed
prod nanprod cumprod nancumprod cumulative_prod | R + {0; seek; 0; seek; 0} | dtype summed | complex 6
max min amax amin all any nanmax nanmin | dtype reduced
argmax argmin
nanargmax nanargmin | R + seek
count_nonzero ptp | {N; 2 * R + V} | dtype reduced
mean nanmean | adds + V + {0; seek} | {adds + V; R} | dtype averaged
var std nanvar nanstd | 2 * (N + adds + V) + {0; V; seek; V + seek} | weight 1/2 | dtype averaged
  | complex 2.5
average | R + V + (0 if weights is None else N + R)
  | dtype averaged if weights is None else join(averaged, weights) | complex 4
median nanmedian | {V * each; max1(V * each + N)} | {V * each; R} | dtype averaged
orders = max1(size_of(q))
by_sorting = 4 * each * levels(each) + 3 * each + orders * (levels(each) + 4)
selected = V * (each * min(orders, 1 + 4 * levels(min(orders, each))) + 4 * orders if weights is None
  else by_sorting)
percentile quantile | selected | V * each | dtype weak({inexact(main); main}, q) | complex -
nanpercentile nanquantile | selected + max1(size) | - | dtype weak({inexact(main); main}, q) | complex -
trace | size // (shape[axis1] * shape[axis2] or 1) * max1(diagonal(a, offset, axis1, axis2))
  | max1(min(shape[axis1], shape[axis2])) | dtype summed | notes scalars

[] contractions | operations | dtype with_out(out, join(*(args[1:] if name == "einsum" else two)))
  | complex of_products
contracted = product_of(name, args, kwargs, book)
operations = contracted[0]
products = contracted[1]
unmultiplied = operations < products or not products and name == "einsum" and len(args) > 3
of_products = 6 if unmultiplied else (2 * operations + 4 * products) / operations if operations else 1
einsum
outer tensordot | notes plain0.7
matmul dot inner vecdot matvec vecmat | notes alike0.7
vdot | notes scalars
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
grids = math.prod(map(size_of, args)) * len(args)
meshgrid | max1((sum(map(size_of, args)) if sparse else grids) if copy else 1) | max1(grids)
  | dtype join(*args)
diag | size if len(shape) == 1 else 0 | (size + abs(k))**2 if len(shape) == 1 else min(shape) | weight 1/4
  | dtype main
diagflat | size | O | dtype main | notes after
ix_ | O + masked(args) | O | dtype join(*result)
tril_indices triu_indices diag_indices tril_indices_from triu_indices_from diag_indices_from unravel_index
  ravel_multi_index | max1(O) | free | dtype - | notes scalars
mask_indices | n * n | O | weight 1/4 | dtype i8
broadcast_shapes | max1(size_of(*args)) | free | dtype -
base_repr binary_repr | max1(len(result)) | dtype -
copy reshape ravel require | max1(size) | {free; free; 0; free} | dtype {main; main; main; asked}
astype | size if copy or main != asked else 0 | free | dtype heavier(main, asked)
asarray | 0 if np.shares_memory(first, result) else O | 0 | dtype heavier(main, made)
asarray_chkfinite | size | dtype main | notes after
array_split split vsplit dsplit broadcast_arrays broadcast_to rollaxis from_dlpack frombuffer | 0 | dtype -
atleast_1d atleast_2d atleast_3d expand_dims squeeze flip fliplr flipud rot90 hsplit moveaxis swapaxes
  transpose | 0 | free | dtype -
matrix_transpose permute_dims linalg.matrix_transpose | free | dtype main
diagonal | 0 | max1(diagonal(first, offset, axis1, axis2)) | dtype main
unstack | 0 | size | dtype main | notes scalars
getitem(a, keys) | masked(keys) + 4 * O | - | dtype main

[] joining, comparing, choosing, writing
array_equal array_equiv | max1({max(map(size_of, two)); equated(*two)}) | dtype pair
concatenate stack vstack | max1(size_of(*first)) | dtype items
hstack column_stack row_stack | max1(size_of(*first)) | free | dtype items
concat dstack | O | dtype items
append | max1(size_of(arr, values)) | size_of(values) | dtype pair
insert | O | size_of(values) | weight 1/4 | dtype weak(arr, values)
delete trim_zeros | {O; size} | size - O | weight {1; 1/4}
tile repeat resize | {max1(O); max1(O); O}
roll | max1(O) | free
pad | padding(shape, pad_width, mode, kwargs) | O
tril triu | max1({below(result, k); O - below(result, k - 1)}) | free
where(condition, x=None, y=None) | max1(spread(condition, x, y)) | size | weight 4 | dtype weak(x, y)
select | O * len(condlist) | max(map(size_of, choicelist)) | weight 1/4
  | dtype weak(join(*choicelist), default)
take take_along_axis | O | weight {4; 4/1} | notes scalars
compress | size + 4 * O | O | weight 1/4 | dtype join(a)
nonzero flatnonzero argwhere extract | size | weight {1; 1; 1/4; 1/4} | dtype {main; main; main; join(arr)}
placed = size_of(indices) if axis is None else size // max1(shape[axis]) * shape_of(indices)[axis]
place putmask put put_along_axis | {size; size; size_of(ind); placed} | size | weight {1/4; 1/4; 1; 1}
copyto(dst, src, casting=None, where=True) | int(np.broadcast_to(np.asarray(where), shape).sum())
  | size_of(src) if where is True else int(np.asarray(where).sum()) | dtype pair
rows = shape[0] if wrap else min(shape)
fill_diagonal | shape[0] if len(shape) > 2 else len(range(0, rows * shape[1], shape[1] + 1))
  | min(shape[:2]) | weight 1/4

[] sorting and searching | weight 4/1 | notes scalars
sort argsort unique | sorting(first, axis) | {sorting(a, axis); sorting(a, axis); sorting(ar)}
unique_all unique_counts unique_inverse unique_values | sorting(x)
sort_complex | sorting(a, -1) | size * lg(size) | weight 1
  | dtype join(main, c8 if main.char in "bhBHFD" else c16) | notes plain0.7
partition argpartition | max1(size * size_of(kth))
lexsort(keys, axis=-1) | sum(map(sorting, keys, [axis] * len(keys)))
  | len(keys) * nlogn(shape_of(keys[0])[axis]) | dtype items
searchsorted digitize | max1(size_of({v; x})) * lg(size_of({a; bins})) | dtype pair | complex {2; -}
bincount(x, weights=None, minlength=0) | max1(size) | dtype join(x, i8) | complex -
together = nlogn(size_of(*two))
union1d setdiff1d setxor1d | together | dtype pair
intersect1d
  | together if assume_unique else sorting(ar1) + sorting(ar2) + nlogn(sum(map(max1, map(size_of, two))))
  | together | dtype pair
tests = size_of(test_elements)
tabled = {main.kind, dtype_of(test_elements).kind} <= {*"biu"}
tried = 0 if tabled or tests >= 10 * size**0.145 else 2 * size * tests
isin | max(together, tried) | together | weight 1 | dtype pair

[] 1-D numerics: p points, f variables with t samples each | notes plain0.7 scalars
diff | differences(a, n, axis, prepend, append) | differences(a, n, axis) | dtype join(a, prepend, append)
ediff1d | max1(size - 1 + size_of(*[end for end in (to_end, to_begin) if end is not None]))
gradient | slopes(shape, size, axes, args[1:], edge_order)
  | max1(2 * int((size // np.array(shape) * np.subtract(shape, 2).clip(0)).sum())) | dtype inexact(main)
  | notes plain0.7
trapezoid | 4 * (size if x is None or len(shape_of(x)) == 1 else spread(y, x)) | size | dtype weak(y, x, dx)
p = size_of(xp)
wrapped = size * (3 + lg(p + 2)) + 16 * (size + p) + 4 * p * lg(p) + 10 * p + 6
interp | max1(size) * (3 + lg(p)) if period is None else wrapped | max1(size) * lg(p) | dtype join(fp, f8)
  | complex 3
unwrap | max1(13 * size) | max1(7 * size) | dtype averaged | complex - | notes -
in_rows = rowvar or early
f = variables(first, in_rows) + (0 if y is None else variables(y, in_rows))
t = size // max1(variables(first, in_rows))
cov corrcoef | max1(2 * f * f * t + 2 * f * t) + {0; 2 * f * f + f} | max1(2 * f * f * t)
  | dtype join(first, y, f8) | complex 4
overlaps = 2 * size * size_of(v) - size - size_of(v)
short = min(size, size_of(v))
cut = dict(full=0, same=(short // 2)**2 + ((short - 1) // 2)**2, valid=2 * (short - 1)**2)[mode]
convolve correlate | max1(overlaps - cut + {(mode != "full"); 1}) | max1(overlaps) | dtype pair | complex 4
cross | max1(3 * O) | max1(5 * size) | dtype pair | complex 4.7
linalg.cross | 3 * spread(*two) | 5 * spread(*two) | dtype pair | complex 4.7 | notes alike0.7
kron | max1(size * size_of(b)) | dtype pair | complex 6

[linalg.] a batch of m x n matrices, r the lesser of m and n; c right-hand sides | weight 1/4
  | dtype lapack(first) | complex 4 | notes alike0.7 scalars
m = shape[-2]
n = shape[-1]
r = min(m, n)
batch = math.prod(shape[:-2]) if m * n else 0
cholesky eig eigvals eigh eigvalsh
  | batch * max1({n**3 // 3; 25 * n**3; 10 * n**3; 9 * n**3; 4 * n**3 // 3}) | batch * max1(n**3)
inv | batch * max1(n**3 + (n**3 // 3 if group else n**3)) | batch * max1(n**3 + (n**3 // 3 if group else 0))
det slogdet | batch * max1(2 * n**3 // 3 + {1; 18} * n) | batch * max1(n**3)
batches = math.prod(np.broadcast_shapes(shape[:-2], shape_of(b)[:-2]))
c = shape_of(b)[-1] if len(shape_of(b)) > 1 else 1
solve | batches * (n and max1(2 * n**3 // 3 + 2 * n * n * c)) | batch * max1(n**3) | dtype lapack(a, b)
svd(a, full_matrices=True, compute_uv=True, hermitian=False, k=None) svdvals(x, k=None)
  | batch * max1(svd(m, n, {full_matrices, compute_uv; False, False}, k)) | batch * max1(m * n * (k or r))
qr | batch * max1((2 * m * n * r - 2 * r**3 // 3) * (1 if mode in ("r", "raw") else 2))
  | batch * max1(m * n * r)
fitted = product(r, m, c) + r * c + product(n, r, c)
inverted = r + n * r + product(n, r, m)
lstsq pinv | batch * max1(svd(m, n) + {fitted; inverted}) | batch * max1(m * n * r + {fitted; inverted})
  | dtype {lapack(a, b); lapack(a)}
cond | batch * max1(svd(m, n, False, False) + 1 if p in (None, 2, -2) else 2 * r**3 + 4 * m * n + 1)
  | batch * max1(m * n * r if p in (None, 2, -2) else r**3 + m * n)
tolerances = math.prod(np.broadcast_shapes(shape[:-2], shape_of(tol), shape_of(rtol)))
matrix_rank | batch * svd(m, n, vectors=False) + r * tolerances if len(shape) > 1 else max1(size)
  | batch * max1(m * n * r) if len(shape) > 1 else max1(size)
tensorsolve | max1(2 * size_of(b)**3 // 3 + 2 * size_of(b)**2) | math.prod(shape[2:])**3 | dtype lapack(a, b)
tensorinv | 2 * math.prod(shape[:ind])**3 | math.prod(shape[:ind])**3
groups = size // max1(each)
vectors = 2 * max1(each) if ord in (None, 0, 1, 2, np.inf, -np.inf) else 18 * each + 16
singular = 4 * each * min(sides) if early else svd(*sides, vectors=False)
matrices = singular if ord in (2, -2, "nuc") else 2 * max1(each)
norm | groups * (matrices if len(axes) == 2 else vectors) | matrices if len(axes) == 2 else 2 * max1(each)
  | weight 1
vector_norm | groups * vectors | 2 * max1(each) | weight 1
matrix_norm(x, ord="fro", axis=[-2, -1]) | groups * matrices | matrices | weight 1
multi_dot | chained(arrays, early) | weight 1 | dtype items | notes alike scalars
squarings = (n < 0) + max(0, abs(n).bit_length() + bin(n).count("1") - 2)
matrix_power | batch * squarings * (2 * m**3 - m * m) | weight 1 | dtype lapack(a) if n < 0 else main
trace | size // (m * n or 1) * max1(diagonal(x, offset, -2, -1)) | max1(diagonal(x, offset, -2, -1))
  | weight 1 | dtype summed | complex 2
diagonal(x, offset=0) | 0 | max1(diagonal(x, offset, -2, -1)) | weight 1 | dtype main | complex 2 | notes -

[fft.] along the axes `named`, to `points` | dtype with_out(out, c8 if main.char in "efF" else c16)
  | complex 1
s = n and [n]
half = "back" if name[4:].startswith(("irfft", "hfft")) else "forth"
  if "rfft" in name or "ihfft" in name else None
named = axes_of(shape, range(-len(s), 0) if axes is None and s is not None else axes)
extents = [*map(shape.__getitem__, named)]
points = s or ([*extents[:-1], 2 * extents[-1] - 2] if half == "back" else extents)
at_once = 5 * (math.prod(points) // (2 if "rfft" in name else 1)) * sum(map(levels, points))
rest = 1 if axes is None else size // max1(math.prod(extents))
fft ifft rfft ihfft irfft hfft fft2 ifft2 fftn ifftn rfft2 rfftn irfft2 irfftn
  | staged(shape, named, points, half) | max(rest * at_once, 0)
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
multivariate_normal | 26 * size_of(mean)**3 + 2 * O * size_of(mean) + 16 * O | max1(O) | weight 1/16
balls = int(np.sum(np.asarray(colors)))
drawn = balls + 2 * (O // size_of(colors)) * min(nsample, balls - nsample)
multivariate_hypergeometric(colors, nsample, size=None, method="marginals")
  | max1(O) if method == "marginals" else O + drawn | max1(O) | weight 16 | notes after scalars
pool = first if isinstance(first, (int, np.integer)) else shape[axis]
permuted permutation(x, axis=0) shuffle(x, axis=0) | max1({size; pool; pool}) | weight 4/1 | dtype -
  | notes after scalars
picked = max1(O if replace else pool)
weighed = 3 * pool + max1(O) * (lg(pool) + 1) if replace else pool * lg(pool)
choice(a, size=None, replace=True, p=None, axis=0, shuffle=True) | picked if p is None else weighed
  | max1(O if replace else pool * lg(pool)) | weight 4/1 | dtype - | notes after scalars

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
folded = loop_dtype(ufunc, [added(main) if ufunc in (np.add, np.multiply) else main] * 2)[0]
reduce(a, axis=0) accumulate(a, axis=0) | R
outer(a, b) | max1(elements(a) * elements(b)) | dtype loop_dtype(ufunc, [a, b])[0]
steps = np.diff([*np.asarray(indices), shape[axis]]) - 1
reduceat(a, indices, axis=0) | max1(lines * max(int(steps.clip(0).sum()), len(steps))) | max1(size)
at(a, indices, b=None) | max1(size_of(np.broadcast_to(np.False_, shape)[indices]))
  | max1(indices.size if isinstance(indices, np.ndarray) else size)
  | dtype loop_dtype(ufunc, [a, b][:ufunc.nin])[0]
"""


# ---- shapes and dtypes -----------------------------------------------------------------------------------

_WEAK = {int, float, complex}
_SCALARS = {*_WEAK, bool}
f8, i8, c8, c16 = map(np.dtype, ("f8", "i8", "c8", "c16"))
free = 0


def shape_of(a):
    """Shape of an array, or of the array that a list or a number would become."""
    return a.shape if hasattr(a, "shape") else np.asarray(a).shape


def dtype_of(a):
    """The same of its dtype; a dtype is its own."""
    return a if isinstance(a, np.dtype) else a.dtype if hasattr(a, "dtype") else np.asarray(a).dtype


def axes_of(shape, axis):
    """The axes that `axis` (None, a number or several) names, as a tuple of non-negative numbers."""
    axis = range(len(shape)) if axis is None else axis
    return np.lib.array_utils.normalize_axis_tuple(axis, len(shape), allow_duplicate=True)


def size_of(*arrays):
    """How many elements these arrays have, together."""
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
    """n, but at least the 1 that most operations cost."""
    return max(n, 1)


def levels(n):
    """log2, rounded up."""
    return (n - 1).bit_length() if n > 1 else 0


def lg(n):
    """log2, rounded up, but at least 1."""
    return max1(levels(n))


def nlogn(n):
    """Comparisons of a sort of n elements, at least 1."""
    return max1(n * lg(n))


@functools.cache
def rate_of(dtype):
    """Cost of an element operation: 1 up to 32 bits (per component), 2 up to 64, 3 and 4 beyond."""
    if dtype.kind not in "biufc":
        raise UnsupportedDtypeError(f"{dtype!r} has no price: use bool, integers, floats or complex numbers")
    return min(math.ceil(dtype.itemsize / (8 if dtype.kind == "c" else 4)), 4)


def heavier(*dtypes):
    """The dtype with the highest rate; of equals the first."""
    return max(dtypes, key=rate_of)


def weak(*operands):
    """result_type with weak Python scalars, as ufuncs promote."""
    return np.result_type(*[a if type(a) in _WEAK else dtype_of(a) for a in operands if a is not None])


def join(*operands):
    """result_type with Python scalars as the arrays that they would become."""
    return np.result_type(*[dtype_of(a) for a in operands if a is not None and a is not np._NoValue])


def inexact(dtype):
    """The dtype that NumPy computes means in: integers become float64."""
    return dtype if dtype.kind in "fc" else f8


def lapack(*operands):
    """Linear algebra is done in double precision as soon as one operand is an integer."""
    return join(*[inexact(dtype_of(a)) for a in operands])


def added(dtype):
    """What NumPy adds up in: no integers below 64 bits."""
    return np.zeros(0, dtype).sum().dtype if dtype.kind in "biu" else dtype


def with_out(out, dtype):
    """The dtype that a result has where it is written to `out`, an array, several or None."""
    outs = out if isinstance(out, tuple) else (out,)
    return np.result_type(dtype, *[array.dtype for array in outs if array is not None])


def of_reduction(default, main, dtype, out):
    """dtype= alone if given, else the heaviest of out=, the default and the input."""
    if dtype is not None:
        return np.dtype(dtype)
    dtype = heavier(*(() if out is None else (out.dtype,)), default, main)
    return np.result_type(dtype, main) if main.kind == "c" else dtype


def loop_dtype(ufunc, operands, dtype=None):
    """(heaviest dtype, whether complex) of the loop that NumPy picks for these operands."""
    kinds = tuple([type(a) if type(a) in _WEAK else dtype_of(a) for a in operands])
    if _WEAK.issuperset(kinds):
        kinds = tuple(map(np.dtype, kinds))
    fixed = {"signature": (None,) * ufunc.nin + (dtype,) * ufunc.nout, "casting": "unsafe"} if dtype else {}
    loop = ufunc.resolve_dtypes(kinds + (None,) * ufunc.nout, **fixed)
    if ufunc is np.ldexp:                           # the exponent only steers
        operands, loop = operands[:1], loop[::2]
    return heavier(*loop, *([] if dtype else [weak(*operands)])), any(t.kind == "c" for t in loop)


def loop_of(call, ufunc, args, kwargs):
    """dtype of a ufunc's loop, joined with those of out=; a real loop sets the complex factor of its call.

    In a cell, locals() is the call itself.
    """
    asked = kwargs.get("dtype")
    dtype, is_complex = loop_dtype(ufunc, args[:ufunc.nin], asked and np.dtype(asked))
    joined = with_out(kwargs.get("out", args[ufunc.nin:]), dtype)
    if ufunc.nin == 2 and not is_complex:           # complex out= only, or operands of logical_and, _or, _xor
        call["factor"] = "1" if dtype.kind == "c" else "2"
    return joined


# ---- formulas that take more than a line ------------------------------------------------------------------


def equated(a, b):
    """array_equiv: broadcast if possible."""
    try:
        return elements(a, b)
    except ValueError:
        return max(size_of(a), size_of(b))


def diagonal(a, offset=0, axis1=0, axis2=1):
    """Length of a diagonal."""
    return np.broadcast_to(0, shape_of(a)).diagonal(offset, axis1, axis2).shape[-1]


def below(a, k):
    """Cells on and below the k-th diagonal."""
    return math.prod(a.shape[:-2]) * int(np.tri(*a.shape[-2:], k).sum())


def masked(keys):
    """Elements of the boolean masks among index keys."""
    return size_of(*[key for key in keys if dtype_of(key).kind == "b"])


def padding(shape, pad_width, mode, kwargs):
    """Every cell is written once; ramps, odd reflections and statistics are computed on top."""
    padded = (shape + np.broadcast_to(pad_width, (len(shape), 2)).sum(1)).tolist()
    units = math.prod(padded)
    if mode == "linear_ramp" or kwargs.get("reflect_type") == "odd":
        units += units - math.prod(shape)
    if mode in ("maximum", "minimum", "mean", "median"):
        lengths = np.broadcast_to(kwargs.get("stat_length") or max(shape), (len(shape), 2))
        for i, n in enumerate(shape):
            ends = np.minimum(lengths[i], n).tolist()
            ends = ends[:1] if ends == [n, n] else ends                   # one statistic serves both
            each = sum(ends) + (len(ends) if mode == "mean" else 0)
            units += math.prod([*padded[:i], *shape[i + 1:]]) * each
    return units


def sorting(a, axis=None):
    """Merge sort along one axis, or of all elements."""
    n = size_of(a)
    return max1(n * lg(n if axis is None or not shape_of(a) else shape_of(a)[axis]))


def differences(a, n, axis, *ends):
    """n rounds, each one element shorter than the one before."""
    extent = shape_of(a)[axis]
    length = extent + sum([(shape_of(end) or {axis: 1})[axis] for end in ends if end is not np._NoValue])
    return max1(size_of(a) // max1(extent) * (n * length - n * (n + 1) // 2))


def slopes(shape, size, axes, spacing, edge_order):
    """gradient: central differences, weighted if unevenly spaced."""
    units = 0
    for i, h in zip(axes, spacing * (len(axes) if len(spacing) == 1 else 1) or axes):
        n = shape[i]
        units += 2 * size + (6 * size // n if edge_order == 2 else 0)
        if shape_of(h):
            units += 3 * (n - 1)
            if len(set(np.diff(np.asarray(h)).tolist())) > 1:
                units += 3 * size * (n - 2) // n + 10 * (n - 2) + 4 * size // n
    return units


def variables(a, in_rows):
    """How many variables cov and corrcoef see in an array."""
    return (1, 1, *shape_of(a))[-2 if in_rows or len(shape_of(a)) < 2 else -1]


def svd(m, n, full=False, vectors=True, k=None):
    """LAPACK's gesdd (Golub and Van Loan, Matrix Computations, 8.6), or the first k triples only."""
    short, long = sorted((m, n))
    if full and vectors and m != n and k is None:
        return 4 * long**2 * short + 22 * short**3
    wide, core = (6, 20) if vectors else (2, 2)
    whole = wide * long * short**2 + core * short**3
    return whole if k is None else min(4 * m * n * k + wide * (m + n) * k * k + core * k**3, whole)


def product(m, k, n):
    """Of an m x k by a k x n matrix."""
    return max1(2 * m * k * n - m * n)


def chained(arrays, early):
    """multi_dot: the cheapest order of the products. Book 0.7 takes vectors at the ends for matrices."""
    shapes = [shape_of(a) for a in arrays]
    if not early:
        shapes[0], shapes[-1] = (1, *shapes[0])[-2:], (*shapes[-1], 1)[:2]
    dims = [shapes[0][0], *[shape[-1] for shape in shapes]]
    once = (lambda m, k, n: 2 * m * k * n) if early else product

    @functools.cache
    def best(i, j):
        splits = [best(i, k) + best(k, j) + once(dims[i], dims[k], dims[j]) for k in range(i + 1, j)]
        return min(splits, default=0)
    return max1(best(0, len(arrays)))


def staged(shape, axes, points, half):
    """Transforms (Cooley and Tukey) axis by axis, each on the extents that those before it left."""
    shape, units, steps = list(shape), 0, list(zip(axes, points))
    for i, n in steps if half == "back" else steps[::-1]:
        n, real = shape[i] if n == -1 else n, half and i == axes[-1]
        shape[i] = 1
        units += math.prod(shape) * (2 if n == 1 else 5 * (n // 2 if real else n) * levels(n))
        shape[i] = n // 2 + 1 if real and half == "forth" else n
    return units


# ---- the books -------------------------------------------------------------------------------------------

Row = namedtuple("Row", "units weight dtype factor notes parameters")
_LINES = re.sub(r"\n +", " ", PRICE_TABLE)
QUANTITIES = dict(re.findall(r"(?m)^(\w+) = (.*)", _LINES))


def read_prices(book):
    """{operation: Row} of a book: the table, taken apart."""
    unsaid = {"late": "", "early": "", "weight": "1", "dtype": "main", "complex": "2", "notes": ""}
    rows, side = {}, 0 if book == "0.12" else -1
    for line in re.findall(r"(?m)^(?!\w+ = ).+", _LINES):
        names, *cells = re.split(r" *\| *", line)
        said = dict(cell.split(" ", 1) for cell in cells if cell.startswith(tuple(unsaid)))
        said |= zip(("late", "early"), cells[:len(cells) - len(said)])
        if line.startswith("["):
            prefix = names[1:names.index("]")]
            section = unsaid | said
            continue
        for i, (name, parameters) in enumerate(re.findall(r"([\w.]+)(?:\((.*?)\))?", names)):
            late, early, weight, dtype, factor, notes = [
                re.sub(r"{(.*?;.*?)}", lambda choice, i=i: choice[1].split("; ")[i], cell)
                for cell in (section | said).values()]
            units, weight = (late, early or late)[side], int(weight.split("/")[side])
            notes = {note.removesuffix(book) for note in notes.split()}
            if units != "-":
                rows[prefix + name] = Row(units, weight, dtype, factor, notes, parameters)
    return rows


class Call(dict):
    """The names in the cells of a row: the arguments of one call, and the QUANTITIES that it needs."""

    def __init__(self, name, parameters, book, args, kwargs, result):
        names, defaults = parameters_of(name, parameters)
        super().__init__(defaults | dict(zip(names, args)) | kwargs)
        self.update(name=name, book=book, args=args, kwargs=kwargs, result=result)

    def __missing__(self, name):
        self[name] = self.evaluate(QUANTITIES[name])
        return self[name]

    def evaluate(self, cell):
        return eval(compiled(cell), globals(), self)


@functools.cache
def compiled(cell):
    """A cell of the table as code."""
    return compile(cell, "<price table>", "eval")


@functools.cache
def parameters_of(name, parameters):
    """(names of the positional parameters, defaults of all), as the row says, or else as NumPy does."""
    try:
        function = eval(f"lambda {parameters}: 0") if parameters else operator.attrgetter(name)(np)
        found = inspect.signature(function).parameters.values()
    except (AttributeError, TypeError, ValueError):
        return [], {}
    names = [p.name for p in found if p.kind <= p.POSITIONAL_OR_KEYWORD]
    return names, {p.name: p.default for p in found if p.default is not p.empty}


class PriceBook:
    """The prices of one version of the rules."""

    def __init__(self, name: str):
        self.name, self.rows = name, read_prices(name)
        self.immutable = name != "0.7"                      # 0.12 refuses item assignment, and charges rates
        self.plain, self.alike, self.after = [{op for op, row in self.rows.items() if note in row.notes}
                                              for note in ("plain", "alike", "after")]
        self.after |= {op for op, row in self.rows.items() if re.search(
            r"\b(O|result|made)\b", row.units + " " + row.dtype * self.immutable)}
        self.unlogged = {op for op, row in self.rows.items() if row.units == "free"}

    def charge(self, name: str, args: tuple, kwargs: dict, result: Any = None) -> tuple[int, np.dtype | None]:
        """(FLOPs, dtype charged or None) of the call `name(*args, **kwargs)`."""
        row = self.rows.get(name) or self._method(name)
        call = Call(name, row.parameters, self.name, args, kwargs, result)
        call["factor"] = row.factor
        units = call.evaluate(row.units)
        if not self.immutable or row.dtype == "-":
            return int(units * row.weight), None
        dtype, factor = call.evaluate(row.dtype), 1
        if dtype.kind == "c":
            if call["factor"] == "-":
                raise UnsupportedDtypeError(f"{name} has no meaning for complex numbers: take the real part")
            factor = call.evaluate(call["factor"])
        return int(units * rate_of(dtype) * factor * row.weight), dtype

    def _method(self, name):
        """The row of `ufunc.method`."""
        ufunc, _, method = name.rpartition(".")
        try:
            row, of = self.rows["." + method], self.rows[ufunc]
        except KeyError:
            raise UnsupportedFunctionError(
                f"{name} has no price in book {self.name}: the README lists what was left out") from None
        self.rows[name] = row._replace(weight=of.weight if self.immutable else 1, factor=of.factor)
        return self.rows[name]


PRICES = {name: PriceBook(name) for name in ("0.7", "0.12")}
UFUNCS = {op: getattr(np, op) for op, row in PRICES["0.12"].rows.items() if row.dtype == "loop"}


# ---- symmetries and contractions -----------------------------------------------------------------
#
# A symmetry is a group of axis permutations: a frozenset of tuples, each over *all* axes of the array
# ({(0, 1), (1, 0)} for a symmetric matrix), or None where only the identity is left.

_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
LARGEST_GROUP = 240     # 0.12 gives up looking for symmetries of larger ones, and prices without any


def proper(permutations):
    """The symmetry of these permutations, which form a group: None if it is the identity alone."""
    group = frozenset(permutations)
    return group if len(group) > 1 else None


def closure(*generators):
    """The smallest symmetry that holds all these sets of permutations; None counts as an empty one."""
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
        left, fixed = {*range(len(shape))}, 1
        while left:                             # one free index for each cycle
            fixed *= shape[axis := left.pop()]
            while (axis := g[axis]) in left:
                left.remove(axis)
        total += fixed
    return total // len(symmetry or "1")


def moved(symmetry):
    """The axes that some permutation of the symmetry moves."""
    return {a for g in symmetry or () for a, b in enumerate(g) if a != b}


def carried(symmetry, place, ndim):
    """The elements that keep the axes of `place` among themselves, these now at `place[axis]` of `ndim`."""
    source = {new: old for old, new in place.items()}
    return proper(tuple([place[g[source[a]]] if a in source else a for a in range(ndim)])
                  for g in symmetry or () if all(g[a] in place for a in place))


def stabiliser(symmetry, kept):
    """What is left on these axes, in this order."""
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
    return closure(carried(symmetry, {a: a for a in range(ndim)}, total),
                   carried(other, {a: ndim + a for a in range(other_ndim)}, total))


def broadcast_symmetry(symmetry, shape, to):
    """For broadcast_to: stretched axes drop out, new ones may be permuted among themselves."""
    lead = len(to) - len(shape)
    place = {a: lead + a for a, n in enumerate(shape) if n == to[lead + a]}
    return closure(carried(symmetry, place, len(to)), full_symmetry(to, range(lead)))


def binary(symmetries, shapes, to):
    """For binary ufuncs: 0-d operands do not count, one without symmetry spoils all, stretched axes not."""
    operands = [(s, shape) for s, shape in zip(symmetries, shapes) if shape]
    left = [broadcast_symmetry(s, shape, to) for s, shape in operands]
    return common([s for s in left if s]) if all(s for s, _ in operands) else None


def indexed(symmetry, shape, key):
    """For basic indexing: what leaves integer axes in place; none if a slice cuts a moved axis."""
    key = list(key) if isinstance(key, tuple) else [key]
    dots = [k is Ellipsis for k in [*key, Ellipsis]].index(True)
    given = sum(k is not None and k is not Ellipsis for k in key)
    key[dots:dots + 1] = [slice(None)] * (len(shape) - given)
    place, new, axis, cut = {}, [], 0, False
    for k in key:
        if k is None:
            new.append(len(place) + len(new))
            continue
        if isinstance(k, slice):
            cut |= axis in moved(symmetry) and k.indices(shape[axis]) != (0, shape[axis], 1)
            place[axis] = len(place) + len(new)
        axis += 1
    still = [g for g in symmetry or () if not cut and all(a in place or g[a] == a for a in range(axis))]
    ndim = len(place) + len(new)
    return closure(carried(still, place, ndim), symmetry and full_symmetry((1,) * ndim, tuple(new)))


def reshaped(symmetry, old, new):
    """Kept if every axis that moves survives: with its extent, and as many elements before it."""
    spots = [(n, math.prod(new[:i])) for i, n in enumerate(new)]
    place, start = {}, 0
    for axis in sorted(moved(symmetry)):
        try:
            place[axis] = spots.index((old[axis], math.prod(old[:axis])), start)
        except ValueError:
            return None
        start = place[axis] + 1
    return carried(symmetry, place, len(new))


class SymmetryGroup:
    """Permutations of some axes of an array; each generator permutes positions in `axes`."""

    def __init__(self, *generators: Iterable[int], axes: Iterable[int] | None = None):
        self.generators = [tuple(g) for g in generators]
        self.degree = len(self.generators[0])
        self.axes = tuple(range(self.degree) if axes is None else axes)

    @classmethod
    def from_generators(cls, generators: Iterable[Iterable[int]], *, axes: Iterable[int]) -> SymmetryGroup:
        """The group that these permutations of positions in `axes` make."""
        return cls(*generators, axes=axes)

    @classmethod
    def symmetric(cls, *, axes: Sequence[int]) -> SymmetryGroup:
        """All permutations of these axes."""
        n = len(axes)
        return cls(*[[*range(i), i + 1, i, *range(i + 2, n)] for i in range(n - 1)] or [[0]], axes=axes)

    @classmethod
    def cyclic(cls, *, axes: Sequence[int]) -> SymmetryGroup:
        """The rotations of these axes."""
        return cls([*range(1, len(axes)), 0], axes=axes)

    @classmethod
    def dihedral(cls, *, axes: Sequence[int]) -> SymmetryGroup:
        """The rotations and reflections of these axes."""
        return cls([*range(1, len(axes)), 0], [0, *range(len(axes) - 1, 0, -1)], axes=axes)

    @classmethod
    def direct_product(cls, *groups: SymmetryGroup) -> SymmetryGroup:
        """Groups that act side by side; ValueError if their axes overlap."""
        axes = [a for group in groups for a in group.axes]
        if len(set(axes)) < len(axes):
            raise ValueError("blocks of symmetric axes overlap: name each axis once")
        images = [{a: b.axes[i] for a, i in zip(b.axes, g)} for b in groups for g in b.generators]
        return cls(*[[axes.index(image.get(a, a)) for a in axes] for image in images], axes=axes)

    @classmethod
    def young(cls, blocks: Iterable[Sequence[int]]) -> SymmetryGroup:
        """All permutations within each of these blocks of axes."""
        return cls.direct_product(*(cls.symmetric(axes=block) for block in blocks))

    @classmethod
    def of(cls, symmetry: frozenset) -> SymmetryGroup:
        """The group of an array's symmetry, on the axes that it moves."""
        axes = sorted(moved(symmetry))
        return cls(*sorted(stabiliser(symmetry, axes))[1:], axes=axes)

    def over(self, ndim: int) -> frozenset | None:
        """The symmetry of an array of that many axes; ValueError if there are too few."""
        if not 0 <= min(self.axes) <= max(self.axes) < ndim:
            raise ValueError(f"symmetry axes {self.axes} are out of range for ndim={ndim}")
        return carried(closure(self.generators), dict(enumerate(self.axes)), ndim)

    def elements(self) -> list[tuple[int, ...]]:
        """Its permutations."""
        return sorted(closure(self.generators) or [tuple(range(self.degree))])

    def order(self) -> int:
        """How many permutations there are."""
        return len(self.elements())


def symmetry_group(symmetry):
    """What `symmetry=` means: a SymmetryGroup, axes that may all be permuted, or disjoint blocks of such."""
    if isinstance(symmetry, SymmetryGroup):
        return symmetry
    return SymmetryGroup.young(symmetry if isinstance(symmetry[0], (tuple, list)) else [symmetry])


# A factor of a product: its labels, their extents, its symmetry; equal `same` tells the same object.
Term = namedtuple("Term", "part shape sym same")


def label_group(terms, needed=None):
    """(labels in order, the symmetry of their index tuples) for a product of terms.

    Each term's labels may go to those of an identical one, permuted by its own symmetry, if labels map one to
    one. With `needed`, labels to be used later, these must stay among themselves, and identical terms with
    identical labels may permute summed axes in step.
    """
    labels = sorted({c for term in terms for c in term.part})
    if not any(term.sym for term in terms) and len({term.same for term in terms}) == len(terms):
        return labels, None
    needed = labels if needed is None else needed

    def allowed(pairs):
        one_to_one = len(dict(pairs)) == len(pairs) == len({d for _, d in pairs})
        return one_to_one and all((c in needed) == (d in needed) for c, d in pairs)

    maps = {(frozenset(), frozenset(range(len(terms))))}        # (pairs of labels, terms not yet met)
    for part, _, _, same in terms:
        twins = [j for j, term in enumerate(terms) if term.same == same]
        in_step = len(twins) > 1 and {terms[j].part for j in twins} == {part}
        summed = tuple([i for i, c in enumerate(part) if in_step and c not in needed])
        own = closure(terms[twins[0]].sym, full_symmetry((1,) * len(part), summed)) or [range(len(part))]
        maps = {(pairs, left - {j}) for known, left in maps for j in left.intersection(twins) for g in own
                if allowed(pairs := known.union(zip(part, [terms[j].part[i] for i in g])))}
    return labels, proper(tuple([labels.index(d) for _, d in sorted(pairs)]) for pairs, _ in maps)


def meetings(symmetry, shown, sizes):
    """Pairs (orbit of index tuples, orbit of output tuples) that meet: each is an addition or a store.

    One per orbit, unless the symmetry carries output labels into summed ones. Then it depends on which
    indices are equal: count pattern by pattern, where each index names the first that is equal to it.
    """
    if all(g[i] in shown for g in symmetry or () for i in shown):
        return orbits(symmetry, sizes)
    free = sorted(moved(symmetry))
    group, extents, total = stabiliser(symmetry, free), [sizes[i] for i in free], 0
    shown = [n for n, i in enumerate(free) if i in shown]
    views = stabiliser(group, shown) or [range(len(shown))]
    alike = [[j for j in range(i + 1) if extents[j] == n] for i, n in enumerate(extents)]
    for pattern in itertools.product(*alike):
        if all(pattern[i] == i for i in pattern):
            tuples = math.prod(extents[i] + 1 - len({*pattern} & {*alike[i]}) for i in {*pattern})
            orbit = {tuple([pattern[i] for i in g]) for g in group}
            visible = {min(tuple([p[shown[i]] for i in v]) for v in views) for p in orbit}
            total += tuples * len(visible) * (len(group) // len(orbit))
    return math.prod(n for i, n in enumerate(sizes) if i not in free) * total // len(group)


def additions(symmetry, shown, sizes, book):
    """What meets, less the orbits of the output that it ends in; in book 0.7 even if nothing meets."""
    met = meetings(symmetry, shown, sizes)
    return met - distinct(symmetry, shown, sizes) if met or book == "0.7" else 0


@functools.lru_cache(4096)
def summing(shape, axes, symmetry, book):
    """Additions that reduce these axes of an array."""
    large = book != "0.7" and len(symmetry or ()) > LARGEST_GROUP
    kept = [a for a in range(len(shape)) if a not in axes]
    return additions(None if large else symmetry, kept, shape, book)


def step_cost(terms, needed, size, merged, book):
    """(operations, multiplications) of the product of one or two terms; needed: the labels used later.

    Labels of one term alone are added up first. Then one product per orbit, and its additions; or, if that is
    less, what the orbits of all operands behind the terms take: `merged`, their (labels, symmetry).
    """
    def sizes_and_shown(labels):
        return tuple([size[c] for c in labels]), [i for i, c in enumerate(labels) if c in needed]

    before, left = 0, []
    for term, other in zip(terms, reversed(terms)):
        kept = [i for i, c in enumerate(term.part) if c in needed or c in other.part]
        before += additions(term.sym, kept, term.shape, book)
        left.append(term._replace(part="".join(term.part[i] for i in kept), sym=stabiliser(term.sym, kept)))
    if terms[0].same == terms[-1].same and len(left[0].part) != len(left[-1].part):
        raise IndexError("flopscope cannot price one operand used twice but summed to different ranks")
    labels, group = label_group(left)
    sizes, shown = sizes_and_shown(labels)
    products = orbits(group, sizes) * (len(terms) - 1)
    costs = [(products + additions(group, shown, sizes, book), products)]
    if merged:
        labels, group = merged
        sizes, shown = sizes_and_shown(labels)
        alive = [i for i, c in enumerate(labels) if any(c in term.part for term in left)]
        if group and (not alive or any(sizes[i] != sizes[j] for g in group for i, j in enumerate(g))):
            raise ValueError("flopscope cannot price equal operands summed wholly, or over unequal axes")
        before = max(before, 0)                                     # of empty operands, in book 0.7
        stored = distinct(group, shown, sizes)
        inner = math.prod(sizes[i] for i in alive if i not in shown)
        if {*labels} <= {*terms[0].part, *terms[1].part}:           # none was summed before
            costs.append((max(2 * distinct(group, alive, sizes) - stored, 0), products))
        if stored < math.prod(sizes[i] for i in shown):
            costs.append((stored * (2 * inner - 1), stored * (inner - 1)))
    cost, products = min(costs, key=operator.itemgetter(0))
    return before + cost, products


@functools.lru_cache(4096)
def contraction(operands, out, book):
    """(operations, multiplications, symmetry of the result) of an einsum of any number of operands, Terms.

    Three or more go pairwise along opt_einsum's path, whatever the caller asks for.
    """
    size = dict(sorted(item for term in operands for item in zip(term.part, term.shape)))   # the larger wins
    many = len(operands) > 2
    labels, group = label_group(operands, out)
    # 0.7 takes the labels of the output for sorted, and so marks the wrong axes where they are not.
    shown = sorted(out) if book == "0.7" and len(operands) > 1 else out
    mark = stabiliser(group, [labels.index(c) for c in shown])
    if book != "0.7" and len(label_group(operands)[1] or ()) > LARGEST_GROUP:
        return len(operands) * math.prod(size.values()), 0, mark
    if many:
        operands = [term._replace(shape=tuple([size[c] for c in term.part])) for term in operands]
    costs, terms, members = [], [*operands], [(k,) for k in range(len(operands))]
    for pair in find_path([term.part for term in operands], out, size) or [(0,)]:
        inside = tuple(sorted(m for k in pair for m in members[k]))
        needed = {*out}.union(*[term.part for k, term in enumerate(operands) if k not in inside])
        labels, group = label_group([operands[k] for k in inside], needed)
        merged = (labels, group) if many else None
        costs.append(step_cost([terms[k] for k in pair], needed, size, merged, book))
        part = "".join(c for c in labels if c in needed)
        left = stabiliser(group, [labels.index(c) for c in part])
        terms.append(Term(part, tuple([size[c] for c in part]), left, inside))
        members.append(inside)
    return *map(sum, zip(*costs)), mark


def find_path(terms, out, size):
    """The pairs that opt_einsum's optimize="auto" contracts in turn; each result gets the next free number.

    A depth-first search for the fewest operations: of everything for up to 4 operands, then of pairs that
    share labels, those that shrink most first, and no partial path 4 times worse than others of its length:
    all for up to 6 operands, the best two up to 8, then the best one. Beyond 14 opt_einsum does otherwise.
    """
    out, n = {*out}, len(terms)
    if n > 14:
        raise UnsupportedFunctionError("an einsum of more than 14 operands has no price: contract some first")
    exhaustive, branches = n < 5, None if n < 7 else 2 if n < 9 else 1
    best, least, known = (math.inf, math.inf, ()), defaultdict(lambda: math.inf), {}

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

    descend((), tuple(map(frozenset, terms)), frozenset(range(n)), 0, 0)
    return best[2]


@functools.lru_cache(4096)
def subscripts(text, ranks):
    """(parts, out) of einsum's subscripts for operands of these ranks, each axis with a letter of its own."""
    inputs, arrow, out = text.replace(" ", "").partition("->")
    if not arrow:
        once = sorted(c for c in inputs if c.isalpha() and inputs.count(c) == 1)
        out = "".join(["..." * ("..." in inputs), *once])
    inputs = inputs.split(",")
    wide = [(rank - len(part) + 3) * ("..." in part) for part, rank in zip(inputs, ranks)]
    spare = "".join(c for c in _LETTERS if c not in text)[:max(wide)]
    parts = tuple([part.replace("...", spare[max(wide) - n:]) for part, n in zip(inputs, wide)])
    if tuple(map(len, parts)) != ranks:
        raise ValueError(f"subscripts {text!r} do not fit operands of {ranks} axes")
    return parts, out.replace("...", spare)


_FIXED = {"outer": "a,b->ab", "vdot": "a,a->", "vecdot": "...i,...i->...", "matvec": "...ij,...j->...i",
          "vecmat": "...i,...ij->...j"}
CONTRACTIONS = ["einsum", "matmul", "dot", "inner", "tensordot", *_FIXED]


def meeting(m, n, a_axes, b_axes):
    """Subscripts where these axes of operands of ranks m and n meet: dot, inner, tensordot."""
    a, b = _LETTERS[:m], list(_LETTERS[m:m + n])
    for i, j in zip(a_axes, b_axes):
        b[j] = a[i]
    return f"{a},{''.join(b)}->{''.join(c for c in (*a, *b) if (c in a) != (c in b))}"


def product_of(name, args, kwargs, book):
    """(operations, multiplications, symmetry of the result, subscripts) of the call of a contraction."""
    operands, text = [*args, *kwargs.values()][:2], _FIXED.get(name)
    if name == "einsum":
        text, *operands = args
    shapes, syms = [shape_of(a) for a in operands], [getattr(a, "_group", None) for a in operands]
    m, n = [*map(len, shapes), 0][:2]
    if name in ("outer", "vdot"):
        shapes, syms = [(math.prod(shape),) for shape in shapes], [None, None]
    elif name in ("dot", "inner"):
        last = max(n - 2, 0) if name == "dot" else n - 1
        text = meeting(m, n, *([m - 1], [last]) if m and n else ((), ()))
    elif name == "matmul":
        i, k = "i" * (m > 1), "k" * (n > 1)
        text = f"...{i}j,...j{k}->...{i}{k}"
    elif name == "tensordot":
        axes = args[2] if len(args) > 2 else kwargs.get("axes", 2)
        axes = (range(m - axes, m), range(axes)) if isinstance(axes, (int, np.integer)) else axes
        axes = [tuple(np.atleast_1d(side).tolist()) for side in axes]
        axes = [*map(axes_of, shapes, axes)] if book != "0.7" else axes
        text = meeting(m, n, *axes)
    parts, out = subscripts(text, tuple(map(len, shapes)))
    same = [[*map(id, operands)].index(id(a)) for a in operands]
    cost, products, symmetry = contraction(tuple(map(Term, parts, shapes, syms, same)), out, book)
    if name == "tensordot":                 # marks what its operands' symmetries leave, not what they make
        a, b = [[i for i in range(len(shape)) if i not in side] for shape, side in zip(shapes, axes)]
        symmetry = side_by_side(stabiliser(syms[0], a), len(a), stabiliser(syms[1], b), len(b))
        if book == "0.7" and not axes[0] == axes[1] == (*range(max(m, n)),):
            # Products alone, shared out to the distinct elements; negative axes are taken for kept.
            left = [shapes[0][i] for i in a]
            result = *left, *(shapes[1][i] for i in b)
            dense = math.prod([*left, *shapes[1]])
            cost, products = max1(dense * orbits(symmetry, result) // (math.prod(result) or 1)), 0
    return cost, products, symmetry, f"{','.join(parts)}->{out}"


# ======================================================================================
# Budget
#
# A BudgetContext is a purse: it knows the price book in force, pays for every operation before it runs, and
# keeps the log. It keeps the time too: inside NumPy (backend), inside the counter (overhead), and the rest
# (residual), which contest rounds price by the clock. The session adds up every context of the process.
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


OpRecord = namedtuple("OpRecord", """op_name subscripts shapes flop_cost cumulative namespace
    flopscope_context_start_offset_s flopscope_backend_duration_s flopscope_overhead_duration_s
    resolved_dtype""")
Bill = namedtuple("Bill", "op_name cost dtype shapes subscripts", defaults=(None, (), None))
DEFAULT_BUDGET = 10**15             # of the context that is in force outside any other
_clock = time.perf_counter
_default_book = os.environ.get("WHESTBENCH_PRICES", "0.7")


class _Thread(threading.local):
    active: BudgetContext | None = None
    drawing = False                     # whether a random draw is under way


_thread = _Thread()


def use_prices(book: str) -> None:
    """Choose the price book, "0.7" or "0.12", of the contexts that are opened from now on."""
    global _default_book, _default_context
    _default_book, _default_context = PRICES[book].name, None


class BudgetContext(contextlib.ContextDecorator):
    """Counts the FLOPs of what is done through fnp: `with BudgetContext(1e9) as budget:`, or as a decorator.

    Raises BudgetExhaustedError instead of running an operation that costs more than remains, and
    TimeExhaustedError at the first operation after `wall_time_limit_s` seconds. Contexts do not nest; one
    entered again goes on counting. `prices` names the book, the session's (`use_prices`) unless given.
    """

    on_charge: Callable | None = None   # a profiler's hook: on_charge(context, bill) after each charge
    observer: Callable | None = None    # sees values: observer(name, args, kwargs, result, FLOPs)

    def __init__(self, flop_budget: float, quiet: bool = False, namespace: str | None = None,
                 wall_time_limit_s: float | None = None, *, prices: str | None = None):
        if not flop_budget > 0:
            raise ValueError(f"flop_budget must be a positive number, not {flop_budget}")
        self.flop_budget, self.wall_time_limit_s, self._quiet = flop_budget, wall_time_limit_s, quiet
        self.book, self.namespace = PRICES[prices or _default_book], namespace
        self.flops_used = 0
        self.flopscope_backend_time_s = self.flopscope_overhead_time_s = 0.0    # in NumPy, in this counter
        self._start, self._end, self._deadline = 0.0, 0.0, math.inf     # of the last time that it was entered
        self._log: list[list] = []
        self._collected: tuple = None, 0            # the session that knows it, and how much of its log

    def charge(self, bill: Bill, start: float = 0.0) -> None:
        """Pay for one operation and log it: a Bill, and when its call began."""
        used = self.flops_used + bill.cost
        if used > self.flop_budget:
            left = self.flops_remaining
            raise BudgetExhaustedError(bill.op_name, flop_cost=bill.cost, flops_remaining=left)
        self.flops_used = used
        self._log.append([bill, used, self.namespace, start, 0.0, 0.0])
        if self.on_charge is not None:
            self.on_charge(self, bill)
        if start > self._deadline:
            self._out_of_time(bill)

    def settle(self, backend: float, overhead: float, now: float) -> None:
        """Book the seconds that the operation charged last took in NumPy and in the counter."""
        self.flopscope_backend_time_s += backend
        self.flopscope_overhead_time_s += overhead
        entry = self._log[-1]
        entry[4], entry[5] = backend, overhead
        if now > self._deadline:
            self._out_of_time(entry[0])

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

    @contextlib.contextmanager
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
    def flops_remaining(self) -> float:
        """What may still be spent."""
        return self.flop_budget - self.flops_used

    @property
    def op_log(self) -> list[OpRecord]:
        """One OpRecord for each charge, in order."""
        return [OpRecord(bill.op_name, bill.subscripts, bill.shapes, bill.cost, used, space,
                         max(0.0, start - self._start), backend, overhead, bill.dtype and str(bill.dtype))
                for bill, used, space, start, backend, overhead in self._log]

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
        return _residual(self.wall_time_s, self.flopscope_backend_time_s, self.flopscope_overhead_time_s)

    def summary_dict(self, by_namespace: bool = False) -> dict:
        """Totals, by operation and, if asked, by namespace."""
        rows: dict = defaultdict(Counter)
        _add_up(rows, self._log)
        return _summary(self.flop_budget, rows, self.wall_time_s, by_namespace)

    def summary(self, by_namespace: bool = False) -> str:
        """The same as text."""
        return _summary_text(self.summary_dict(True), by_namespace, self.namespace)


class _Session:
    """Totals of the process: of every context that was closed, and of those that are open now."""

    def __init__(self):
        self.flop_budget, self.closed_s, self.rows = 0, 0.0, defaultdict(Counter)

    def collect(self, context):
        """Add what this context did since it was collected last."""
        known, done = context._collected
        self.flop_budget += 0 if known is self else context.flop_budget
        _add_up(self.rows, context._log[done:])
        context._collected = self, len(context._log)


_session = _Session()
_default_context: BudgetContext | None = None


def _add_up(rows, log):
    """Add a log to the Counters rows[namespace, operation]."""
    for (op_name, cost, *_), _, space, _, backend, overhead in log:
        rows[space, op_name].update(flop_cost=cost, calls=1, flopscope_backend_time_s=backend,
                                    flopscope_overhead_time_s=overhead)


def _residual(wall, backend, overhead):
    return None if wall is None else max(0.0, wall - backend - overhead)


def _summary(flop_budget, rows, wall, by_namespace):
    operations, spaces = defaultdict(Counter), defaultdict(Counter)
    for (space, op_name), row in rows.items():
        operations[op_name].update(row)
        spaces[space].update(row)
    used, backend, overhead = [sum(row[key] for row in rows.values()) for key in (
        "flop_cost", "flopscope_backend_time_s", "flopscope_overhead_time_s")]
    summary = {"flop_budget": flop_budget, "flops_used": used, "flops_remaining": flop_budget - used,
               "operations": {name: dict(row) for name, row in operations.items()}, "wall_time_s": wall,
               "flopscope_backend_time_s": backend, "flopscope_overhead_time_s": overhead,
               "residual_wall_time_s": _residual(wall, backend, overhead)}
    if by_namespace:
        summary["by_namespace"] = {space: {
            "flops_used": sums.pop("flop_cost"), **sums,
            "operations": {name: dict(row) for (within, name), row in rows.items() if within == space},
        } for space, sums in spaces.items()}
    return summary


def _summary_text(total, by_namespace, label=None):
    if not total["operations"]:
        return "No budget data recorded yet."
    amounts = {key: total[key] for key in ("flop_budget", "flops_used", "flops_remaining")}
    tables = [(label or "Budget", total["flop_budget"], amounts)]
    for of, key in (("namespace", "flops_used"),) * by_namespace + (("operation", "flop_cost"),):
        rows = total["by_namespace" if of == "namespace" else "operations"].items()
        amounts = {f"{name or '(unlabeled)'} [{row['calls']} calls]": row[key] for name, row in rows}
        tables.append((f"By {of}", total["flops_used"], amounts))
    seconds = {key: n for key, n in total.items() if key.endswith("_time_s") and n is not None}
    tables.append(("Seconds", total["wall_time_s"], seconds))
    lines = ["flopscope FLOP Budget Summary"]
    for title, whole, amounts in tables:
        lines.append(f"\n  {title}:")
        for name, n in sorted(amounts.items(), key=lambda item: -item[1]):
            lines.append(f"    {name:<32}{round(n, 3):>24,}  ({n / (whole or 1):6.1%})")
    return "\n".join(lines)


def active_budget() -> BudgetContext:
    """The context in force in this thread; outside any, the default context of the process."""
    global _default_context
    if _thread.active is not None:
        return _thread.active
    if _default_context is None:
        _default_context = BudgetContext(DEFAULT_BUDGET, quiet=True)
    return _default_context


budget = BudgetContext          # @budget(1e9) above a function reads better than @BudgetContext(1e9)


@contextlib.contextmanager
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
    live = [context for context in (_thread.active, _default_context) if context and context._log]
    for context in live:
        _session.collect(context)
    wall = _session.closed_s + sum(context.elapsed_s for context in live)
    return _summary(_session.flop_budget, _session.rows, wall or None, by_namespace)


def budget_summary(by_namespace: bool = False) -> None:
    """Print the totals of this process."""
    print(_summary_text(budget_summary_dict(True), by_namespace))


def budget_reset() -> None:
    """Forget the totals of this process: what an open context does from now on is counted anew."""
    global _session, _default_context
    _session, _default_context = _Session(), None
    if _thread.active is not None:
        _thread.active._collected = None, len(_thread.active._log)


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


def _mass(a, b):
    """Normal probability of [a, b], from the tail that a lies in: nothing cancels."""
    return np.where(a > 0, Phi(-a) - Phi(-b), Phi(b) - Phi(a))


def _fall(z):
    return np.exp(-np.abs(z))


# (pdf, cdf, ppf) in standard form: of z = (x - loc) / scale, or of the probability q; then shape parameters.
STANDARD = {
    "norm": (phi, Phi, ndtri),
    "uniform": (lambda z: (z >= 0) & (z <= 1),
                lambda z: np.clip(z, 0, 1),
                lambda q: q),
    "expon": (lambda z: np.where(z >= 0, _fall(z), 0),
              lambda z: -np.expm1(-np.maximum(z, 0)),
              lambda q: -np.log1p(-q)),
    "cauchy": (lambda z: 1 / (math.pi * (1 + z * z)),
               lambda z: np.arctan2(1, -z) / math.pi,
               lambda q: np.where(q == 0.5, 0, np.sign(q - 0.5) / np.tan(math.pi * np.minimum(q, 1 - q)))),
    "logistic": (lambda z: _fall(z) / (1 + _fall(z)) ** 2,
                 lambda z: np.where(z < 0, _fall(z), 1) / (1 + _fall(z)),
                 lambda q: np.log(q) - np.log1p(-q)),
    "laplace": (lambda z: _fall(z) / 2,
                lambda z: np.where(z < 0, _fall(z) / 2, 1 - _fall(z) / 2),
                lambda q: np.where(q < 0.5, np.log(2 * q), -np.log(2 * (1 - q)))),
    "lognorm": (lambda z, s: np.where(z > 0, phi(np.log(z) / s) / (s * z), 0),
                lambda z, s: np.where(z > 0, Phi(np.log(z) / s), 0),
                lambda q, s: np.exp(s * ndtri(q))),
    "truncnorm": (lambda z, a, b: np.where((z >= a) & (z <= b), phi(z) / _mass(a, b), 0),
                  lambda z, a, b: _mass(a, np.clip(z, a, b)) / _mass(a, b),
                  lambda q, a, b: np.clip(np.where(a > 0, -ndtri(Phi(-b) + (1 - q) * _mass(a, b)),
                                                   ndtri(Phi(a) + q * _mass(a, b))), a, b)),
}


def _distribution_method(name, method, standard):
    names = [*[*inspect.signature(STANDARD[name][1]).parameters][1:], "loc", "scale"]

    def value(x, *parameters, **named):
        given = {"loc": 0, "scale": 1} | dict(zip(names, parameters)) | named
        *shape, loc, scale = [np.asarray(given[key], float) for key in names]
        x = np.asarray(x, float)
        with np.errstate(all="ignore"):
            if method == "ppf":
                return np.where((x >= 0) & (x <= 1), loc + scale * standard(np.clip(x, 0, 1), *shape), np.nan)
            z = (x - loc) / scale
            result = np.where(np.isnan(z), np.nan, standard(z, *shape))
            return result / scale if method == "pdf" else result
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

    _group: frozenset | None = None           # a SymmetricTensor's group of axis permutations

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **kwargs):
        name = ufunc.__name__
        if name not in _FUNCTIONS:
            raise TypeError(f"numpy.{name} has no counted version: use the functions of fnp")
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
        return SymmetryGroup.of(self._group) if self._group else None

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
    return any(map(_group_of, operands))


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
        raise SymmetryError("axes of unequal extents cannot be symmetric: name others")
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
        raise SymmetryError("the data do not have this symmetry: symmetrize() makes the mean that has")
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
        raise ValueError(f"unknown settings {', '.join(sorted(unknown))}: there are {', '.join(_SETTINGS)}")
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
    if k is not None and k > min(np.shape(a)[-2:]) > 0:
        raise ValueError(f"a matrix of shape {np.shape(a)[-2:]} has no {k} singular values: ask for fewer")
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
            raise ValueError(f"MLP depth is declared as {self.depth}, but there are "
                             f"{len(self.weights)} weight matrices.")
        for layer, weight in enumerate(self.weights):
            if np.shape(weight) != (self.width, self.width):
                raise ValueError(f"Weight matrix {layer} has shape {np.shape(weight)}, "
                                 f"expected {(self.width, self.width)}.")

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
    require_positive(width=width, depth=depth)
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


def run_mlp_all_layers(mlp: MLP, inputs: np.ndarray) -> list[np.ndarray]:
    """The activations of every layer, `depth` arrays `(n, width)`, for inputs `(n, width)`; counted."""
    return list(itertools.accumulate(mlp.weights, lambda x, w: relu(fnp.matmul(x, w)), initial=inputs))[1:]


def run_mlp(mlp: MLP, inputs: np.ndarray) -> np.ndarray:
    """The last layer's activations `(n, width)`; counted."""
    return run_mlp_all_layers(mlp, inputs)[-1]


def sample_layer_statistics(mlp: MLP, n_samples: int, rng: Any = None, *, progress: Callable | None = None
                            ) -> tuple[np.ndarray, np.ndarray, float]:
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


def monte_carlo_layer_means(mlp: MLP, n_samples: int, seed: int | None = None) -> np.ndarray:
    """Plain sampling means of every layer, `(depth, width)`; counted."""
    return sample_layer_statistics(mlp, n_samples, fnp.random.default_rng(seed))[0]


SUBMISSION = "_whestbench_submission_"      # how the module names of loaded files begin


def load_estimator(path: str | os.PathLike, class_name: str | None = None) -> BaseEstimator:
    """Import an estimator file by its path and instantiate its estimator class.

    Without `class_name`: the `BaseEstimator` subclass named `Estimator`, else the only one defined there.
    The file's folder goes first on `sys.path`, so it may import its siblings. Raises WhestError.
    """
    path = Path(path).expanduser().resolve()
    failed = functools.partial(WhestError, code="SCORING_RUNTIME_ERROR")
    if not path.is_file():
        raise failed(f"Estimator file not found: {path}. Check the path, or run from its folder.")
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    name = SUBMISSION + hashlib.sha1(str(path).encode()).hexdigest()[:12]
    module = sys.modules[name] = types.ModuleType(name)
    module.__file__ = str(path)
    try:
        importlib.machinery.SourceFileLoader(name, str(path)).exec_module(module)
        return find_estimator_class(module, path.name, class_name)()
    except (WhestError, TimeExhaustedError):
        raise
    except SyntaxError as exc:
        raise failed(f"{path.name}, line {exc.lineno}: {exc.msg}.") from exc
    except ModuleNotFoundError as exc:
        raise WhestError(f"{path.name} imports {exc.name!r}, which is not installed: install it or drop "
                         "the import.", "ESTIMATOR_MISSING_MODULE") from exc
    except Exception as exc:
        where = participant_line(exc, path)
        raise failed(f"{path.name} could not be loaded: {type(exc).__name__}: {exc} ({where}); "
                     "--debug shows the traceback.") from exc


def find_estimator_class(module: types.ModuleType, file: str, class_name: str | None) -> type[BaseEstimator]:
    """Apply the loader's rules to a file's module; a WhestError names the nearest class where none fits."""
    known = {name: c for name, c in vars(module).items()
             if inspect.isclass(c) and issubclass(c, BaseEstimator) and c is not BaseEstimator}
    own = [name for name, c in known.items() if c.__module__ == module.__name__]
    name = class_name or (own[0] if len(own) == 1 else "Estimator")
    if name in known:
        return known[name]
    if class_name:
        near = difflib.get_close_matches(class_name, own, 1, 0)
        raise WhestError(f"{file} has no estimator class named {class_name!r}"
                         + (f"; did you mean --class {near[0]}?" if near else "."))
    if own:
        raise WhestError(f"{file} has several estimator classes ({', '.join(own)}): "
                         "name one of them Estimator, or choose with --class.")
    raise WhestError(f"{file} defines no estimator class: "
                     "write `class Estimator(BaseEstimator)` with a predict(self, mlp, budget) method.")


OURS = __file__, os.path.dirname(os.__file__) + os.sep       # and Python's, which may lie in the same folder


def is_participants(file: str, home: str) -> bool:
    """Whether a file below the participant's folder is neither installed nor ours."""
    return file.startswith(home) and "site-packages" not in file and not file.startswith(OURS)


def participant_line(exc: BaseException, path: Path | str) -> str:
    """`file.py, line 12` of the innermost frame of the participant's own folder in a traceback."""
    home = str(Path(path).parent) + os.sep
    frames = [f for f in traceback.extract_tb(exc.__traceback__, limit=-100)
              if is_participants(f.filename, home)]
    return f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else Path(path).name


# ======================================================================================
# Engine
#
# A block of samples is a pure function of (network, key, index): any thread, process or machine may
# compute it, in any order. After a ReLU half of the activations are zero; the kernels skip most of
# them, exactly, and so pass the rate at which a dense matrix product would run at best.
# ======================================================================================

GROUP = 16      # samples in a group: 8 draws of x, then their mirror images -x
COLUMNS = 64    # activations lie as [slab of 64 columns][sample][column]: zeros are a 64-bit mask; weights as
                # [slab of 64 outputs][input][output]: the 64 inputs of a slab fill half an L1 cache
TILE = 1        # rows that share a mask: as few as hide the latency of an FMA; load_kernels sets it
_LOAD = threading.Lock()
_n_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def limit_threads(n_threads: int | None) -> None:
    """Use at most so many threads for sampling and in NumPy's own OpenBLAS; None leaves both alone."""
    global _n_threads
    if n_threads:
        import ctypes
        _n_threads, folder = n_threads, Path(np.__file__).parent
        for library in [*folder.parent.glob("numpy.libs/*openblas*"), *folder.glob(".dylibs/*openblas*")]:
            with contextlib.suppress(AttributeError):
                ctypes.CDLL(str(library)).scipy_openblas_set_num_threads64_(n_threads)


class PackedNetwork(typing.NamedTuple):
    """The weights of a network as the kernels want them; made by `pack_weights`."""
    weights: np.ndarray         # float32 (depth, slabs, padded width, COLUMNS)
    width: int


class BlockSums(typing.NamedTuple):
    """What is kept of a block. Row i of a group sum covers samples 16 i to 16 i + 15: 8 antithetic pairs."""
    n_samples: int
    final: np.ndarray           # float32 (n_groups, width): group sums of the last layer's activations
    abs_z1: np.ndarray          # float32 (n_groups, width): of |z1|, z1 the first layer's pre-activations
    square_z2: np.ndarray       # float32 (n_groups, width): of z2**2, the second layer's (zero at depth 1)
    layer_sums: np.ndarray      # float64 (depth, width): sums of the activations
    layer_squares: np.ndarray   # float64 (depth, width): sums of their squared group sums
    final_squares: np.ndarray   # float64 (width,): sum of the last layer's squared activations


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
    return BlockSums(n_samples, last if len(weights) > 1 else first, 2 * first, square_z2,
                     layer_sums, layer_squares, squares.sum(0, dtype=np.float64))


def block_inputs(width: int, key: int, index: int) -> np.ndarray:
    """The inputs of a block, float32 (n_samples, width), in the order of its groups."""
    load_kernels()
    x = np.zeros((_padded(width) // COLUMNS, samples_per_block(width), COLUMNS), np.float32)
    draw_normals(x, np.uint64(key), np.uint64(index))
    x = x.swapaxes(0, 1).reshape(-1, 2, GROUP // 2, _padded(width))[..., :width]
    x[:, 1] = -x[:, 0]
    return x.reshape(-1, width)


def _padded(width: int) -> int:
    return -(-width // COLUMNS) * COLUMNS


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """An empty float32 array that starts on a cache line: a load across two lines costs double."""
    size = math.prod(shape)
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
            jit = njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
            names = globals()
            names["TILE"] = vector_type()[2]
            names |= {f.__name__: intrinsic(f) for f in (multiply_tile, relu_group)}
            names |= {f.__name__: jit(f) for f in (
                box_muller, draw_normals, add_squares, finish_slab, network_sums, add_product)}


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
        rows = GROUP if layer else GROUP // 2           # -x @ w is known from x @ w
        for slab in range(n_slabs):
            for k in range(n_slabs):
                w = weights[layer, slab, k * COLUMNS:].ctypes.data
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
        z = y[group * GROUP:(group + 1) * GROUP]
        total = groups[min(layer, 1), group, column:column + COLUMNS]
        if layer == 0:
            for pair in range(GROUP // 2):
                left = n_samples - group * GROUP - 2 * pair     # without biases, zeros add nothing to any sum
                for c in range(COLUMNS):
                    z[pair + GROUP // 2, c] = -z[pair, c] if left > 1 else np.float32(0)
                    z[pair, c] = z[pair, c] if left > 0 else np.float32(0)
        if layer == 1:
            add_squares(z, groups[2, group, column:])
        relu_group(z.ctypes.data, masks[group * GROUP // TILE:].ctypes.data, total.ctypes.data)
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
            b.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fmuladd.v{lanes}f32")
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
        k = b.cttz(bits, ir.IntType(1)(1))                      # the lowest bit that is set ...
        b.store(b.and_(bits, b.sub(bits, i64(1))), left)        # ... which is now done
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
                    value = b.fadd(b.load(here, align=4), zero)     # or LLVM stores by mask: slow on AMD
                    value = b.select(b.fcmp_ordered("<", value, zero), zero, value)     # a NaN stays
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


def matrix_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a @ b, to the same bits however many threads BLAS has."""
    load_kernels()
    padded = np.pad(a, ((0, -len(a) % 2), (0, -a.shape[1] % 4)))
    b_padded = np.pad(b, ((0, -len(b) % 4), (0, 16)))   # or all rows start at one place of a memory page
    out = np.zeros((len(padded), b_padded.shape[1]), np.result_type(a, b))
    add_product(padded, b_padded, out)
    return out[:len(a), :b.shape[1]]


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


def control_variates(weights: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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
    kernel = np.sqrt(1 - cosine**2) + (math.pi - np.arccos(cosine)) * cosine
    kernel *= np.outer(norms, norms) / (2 * math.pi)
    square_z2 = (matrix_product(kernel, second) * second).sum(0)

    mean_z2 = mean = times(abs_z1, second) / 2
    variance = square_z2 - mean**2
    slopes: list[np.ndarray] = []
    for following in [*weights[2:], None]:
        sigma = np.sqrt(np.maximum(variance, 1e-12 * variance.mean() + 1e-36))
        on = np.array([math.erfc(-a / math.sqrt(2)) / 2 for a in mean / sigma])
        density = np.exp(-(mean / sigma) ** 2 / 2) / math.sqrt(2 * math.pi)
        centre = mean * on + sigma * density
        relu_variance = np.maximum((mean**2 + variance) * on + mean * sigma * density - centre**2, 0)
        # d(mean of relu) / d(mean, variance of z), then the same of its variance
        slopes.append(np.array([on, density / (2 * sigma),
                                2 * centre * (1 - on), on - centre * density / sigma], np.float32))
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
    """What a network's weights, float32 matrices, say of its truth, and how sums over samples make it one.

    Sums are dictionaries of arrays; those of several chunks are added key by key. Even and odd pools are
    two folds.
    """

    def __init__(self, weights: list[np.ndarray]):
        self.controls = control_variates(weights) if len(weights) > 1 else None
        self.first_mean = np.linalg.norm(weights[0].astype(np.float64), axis=0) / math.sqrt(2 * math.pi)

    def centred(self, sizes, final, features):
        """Final sums over so many samples less their rough means, F; what the features predict of them, P."""
        means, coefficients, centre = self.controls
        P = matrix_product(features - np.outer(sizes, means).astype(features.dtype), coefficients)
        return final - np.outer(sizes, centre).astype(final.dtype), P

    def sums(self, blocks: list[BlockSums]) -> dict[str, np.ndarray]:
        """The sums over one chunk; of its blocks only the last may be cut short."""
        n = sum(b.n_samples for b in blocks)
        groups = np.minimum(n - np.arange(0, n, GROUP), GROUP)
        starts = np.arange(0, len(groups), POOL)
        size = np.add.reduceat(groups, starts)

        def by_fold(x, **kwargs):
            return np.array([x[fold::2].sum(0, **kwargs) for fold in (0, 1)])
        s = {key: sum(getattr(b, key) for b in blocks)
             for key in ("layer_sums", "layer_squares", "final_squares")}
        s |= {"n_samples": by_fold(size), "squared_sizes": np.array([groups @ groups, size @ size])}
        if self.controls is None:
            return s
        sums = np.block([[b.final, b.abs_z1, b.square_z2] for b in blocks])
        final, features = np.split(np.add.reduceat(sums, starts), [len(self.first_mean)], axis=1)
        # Float32 is enough here: products carry the error bars and the scale, never the mean.
        F, P = self.centred(size, final, features)
        return s | {"final": by_fold(final, dtype=np.float64),
                    "features": by_fold(features, dtype=np.float64),
                    "traces": np.array([by_fold((x * P).sum(1, dtype=np.float64)) for x in (F, P)]),
                    "products": np.array([matrix_product(x.T, x) for x in (F, P, F - P)])}

    def truth(self, s: dict[str, np.ndarray], plain: bool = False) -> Truth:
        """The Truth that these sums make; `plain` leaves the control variates out."""
        folds = s["n_samples"]
        n = int(folds.sum())
        group_size, pool_size = s["squared_sizes"] / n

        def error(squares, product_of_means, size):
            """(Co)variance of the mean from sums of squared group sums; the last group may be smaller."""
            return (squares - n * size * product_of_means) / ((n - size) * n or math.nan)
        mean = s["layer_sums"] / n
        sample_variance = np.maximum(s["final_squares"] / n - mean[-1] ** 2, 0)
        variance = error(s["layer_squares"], mean**2, group_size)
        mean[0], variance[0] = self.first_mean, 0
        covariance, scales = np.zeros((len(mean[0]),) * 2), np.zeros(2)
        if self.controls is not None:
            F, P = self.centred(folds, s["final"], s["features"])
            if not plain and folds.min() >= MIN_FOLD_GROUPS * POOL * GROUP:
                # Least squares of F on P, one number for all neurons, each fold's from the other: no sample
                # judges its own scale. 1 where mean propagation is right, 0 where it says nothing. Rounded,
                # so that the last bits of a product do not reach the mean.
                FP, PP = s["traces"]
                slope = (FP - (F * P).sum(1) * POOL * GROUP / folds) / np.maximum(PP, 1e-30)
                scales = np.nan_to_num(np.round(slope * 64) / 64)[::-1]
            mean[-1] = (s["final"] - scales[:, None] * P).sum(0) / n
            # F - aP has covariance (1 - a) FF + (a^2 - a) PP + a RR, R = F - P, as FP + PF = FF + PP - RR.
            F, P = F.sum(0) / n, P.sum(0) / n
            parts = np.array([1 - scales, scales**2 - scales, scales]) @ folds / n
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
# Truth: grown, remembered, shared
#
# The sums of a truth are those of its nodes, runs of samples that any thread, process or
# machine can compute; they are added in order, so neither workers nor interruptions move a
# bit. The store forgets rather than errs. Suites and published datasets are read here.
# ======================================================================================

STREAM = "3"        # of random numbers, their sums and files; the store never mixes two versions


class InvalidDatasetError(WhestError, ValueError):
    """A suite or dataset that cannot be used; the message says what is wrong with it."""


@contextlib.contextmanager
def reading(path: str | os.PathLike) -> Iterator[None]:
    """Whatever is found wrong with a file, say it in one sentence."""
    try:
        yield
    except WhestError:
        raise
    except Exception as exc:        # a damaged file can raise anything
        what = f"no {exc} in it" if isinstance(exc, KeyError) else exc
        raise InvalidDatasetError(
            f"{path} is not a usable suite or dataset ({what}): bake or fetch it anew.") from exc


def need(module: str, extra: str) -> types.ModuleType:
    """Import an optional package, or name the extra that brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as exc:
        raise WhestError(f"{module} is not installed: pip install 'whestbench-kit[{extra}]'.") from exc


def fingerprint(*arrays) -> str:
    """SHA-256 of arrays, their shapes and types."""
    digest = hashlib.sha256()
    for array in map(np.ascontiguousarray, arrays):
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()


def add_sums(first: dict, *others: dict) -> dict:
    """The sums of several nodes, added in the order given."""
    return {k: functools.reduce(np.add, (other[k] for other in others), a) for k, a in first.items()}


def samples_in(sums: dict) -> int:
    """How many samples these sums are of."""
    return int(np.sum(sums.get("n_samples", 0)))


class TruthSource:
    """The truth of one network, `weights` (depth, width, width), as it grows.

    `whole`: the sums over all nodes that are done; `sums`: those and, maybe, a part of the next one.
    """

    def __init__(self, weights: Iterable, store: TruthStore | None = None, plain: bool = False):
        self.weights, self.store, self.plain = [np.asarray(w, np.float32) for w in weights], store, plain
        self.width, self.depth, sha256 = len(self.weights[0]), len(self.weights), fingerprint(*self.weights)
        self.name, self.key = f"{self.width}x{self.depth}-{sha256[:32]}", int(sha256[:16], 16)
        self.sums: dict[str, np.ndarray] = {}
        self.whole = self.sums
        self.prepared: tuple[PackedNetwork, WhiteBox] | None = None

    def __reduce__(self):
        return revived, (self.name, self.weights)       # all that another process must know

    def prepare(self) -> tuple[PackedNetwork, WhiteBox]:
        """What sampling takes, worked out once in each process."""
        self.prepared = self.prepared or (pack_weights(self.weights), WhiteBox(self.weights))
        return self.prepared

    def at(self, n_samples: int, executor: concurrent.futures.Executor | None = None) -> Truth:
        """The truth of exactly `n_samples`; samples only what is neither here nor in the store."""
        return grow_together([self], n_samples, executor=executor)[0][0]

    def node(self, start: int) -> int:
        """How many samples the node at `start` holds: a chunk * 2**k, about 1% of all that come before it."""
        most = min(start // 64, 2**39 // (self.width**2 * self.depth))      # 2^40 FLOPs: seconds of work
        return max(CHUNK, 1 << most.bit_length() >> 1)

    def sample(self, start: int, n_samples: int) -> dict:
        """The sums over a node, or the first `n_samples` of it."""
        network, white_box = self.prepare()
        end, size = start + n_samples, samples_per_block(self.width)

        def chunk(first: int) -> dict:
            return white_box.sums([simulate_block(network, self.key, i // size, min(size, end - i))
                                   for i in range(first, min(first + CHUNK, end), size)])
        return functools.reduce(add_sums, map(chunk, range(start, end, CHUNK)))

    def lacking(self, n_samples: int) -> Iterator[tuple[int, int]]:
        """What is yet to be sampled, as arguments of `sample`."""
        known = [sums for sums in ({}, self.whole, self.stored()) if samples_in(sums) <= n_samples]
        self.sums = max(known, key=samples_in)
        start = samples_in(self.sums)
        while start < n_samples:
            size = min(self.node(start), n_samples - start)
            yield start, size
            start += size

    def add(self, sums: dict) -> None:
        """Add what `sample` gave for the next of them."""
        self.sums = add_sums(self.sums, sums) if self.sums else sums
        n_samples = samples_in(self.sums)
        if n_samples % self.node(n_samples) == 0:
            self.whole = self.sums

    def conclude(self) -> Truth:
        """The truth of all that is sampled, remembered."""
        truth = self.prepare()[1].truth(self.sums, self.plain)
        truth = replace(truth, covariance=truth.covariance.astype(np.float32))     # most of the file
        if self.store:
            self.store.put(self.file(truth.n_samples), vars(truth))
        return truth

    def recall(self, n_samples: int) -> Truth | None:
        """The truth of `n_samples`, if it is remembered."""
        arrays = self.store.get(self.file(n_samples)) if self.store else None
        return unpack_truth(arrays) if arrays else None

    def file(self, n_samples: int) -> str:
        return f"{self.name}/{n_samples}{'-plain' * self.plain}"

    def stored(self) -> dict:
        return self.store and self.store.get(f"{self.name}/sums") or {}

    def save(self) -> None:
        """Keep the sums: another run goes on from here."""
        if self.store and self.whole and samples_in(self.whole) > samples_in(self.stored()):
            self.store.put(f"{self.name}/sums", self.whole)


_revived: dict[str, TruthSource] = {}


def revived(name: str, weights: list[np.ndarray]) -> TruthSource:
    """The source in another process: one at a time, so that its nodes share what sampling takes."""
    if name not in _revived:
        _revived.clear()
        _revived[name] = TruthSource(weights)
    return _revived[name]


def grow_together(sources: list[TruthSource], n_samples: int | None = None,
                  error_of: Callable[[list[Truth]], Any] = lambda truths: None, precision: float = 0.02,
                  max_work: float = 2**40, executor: concurrent.futures.Executor | None = None,
                  progress: Callable[[int, int, Any], object] = lambda *_: None) -> tuple[list[Truth], Any]:
    """The truths at `n_samples`, or at the first checkpoint where `error_of(truths).precise(precision)`.

    Gives up at `max_work` dense FLOPs a network. Returns the truths and their error; `progress` gets samples
    done, samples to do, and the error so far. What an interruption leaves is in the store.
    """
    error = None
    try:
        for goal in [n_samples] if n_samples else checkpoints(sources[0].width, sources[0].depth, max_work):
            truths = grow(sources, goal, executor, progress, error)
            error = error_of(truths)
            if error and error.precise(precision):
                break
    finally:
        for source in sources:
            source.save()
    return truths, error


def awaited(future: Any, pool: Any) -> dict:
    """What a future gives; raises BrokenExecutor if a process of its pool is dead.

    One that was killed while it wrote leaves half a message, for whose rest its executor waits forever.
    """
    processes = getattr(pool, "_processes", None) or {}
    while processes and not concurrent.futures.wait([future], 1.0).done:
        if any(process.exitcode for process in processes.values()):
            for process in [*processes.values()]:
                process.kill()
            pool._result_queue._writer.close()      # was the last that might still write
            break
    return future.result()


def grow(sources: list[TruthSource], goal: int, executor, progress: Callable, error) -> list[Truth]:
    """Sample what these sources lack up to `goal`, a few nodes in flight at a time, and add it in order."""
    truths = [source.recall(goal) for source in sources]
    wanted = [source for source, truth in zip(sources, truths) if not truth]
    pending: deque = deque()
    with concurrent.futures.ThreadPoolExecutor(_n_threads) as threads:
        pool = executor or threads
        in_flight = getattr(pool, "_max_workers", 16) + 2
        list(threads.map(TruthSource.prepare, wanted))
        todo = ((source, node) for source in wanted for node in source.lacking(goal))
        saved_at = time.monotonic()
        try:
            while True:
                for source, node in itertools.islice(todo, in_flight - len(pending)):
                    pending.append((source, pool.submit(source.sample, *node)))
                if not pending:
                    break
                source, future = pending.popleft()
                source.add(awaited(future, pool))
                progress(sources.index(source) * goal + samples_in(source.sums), len(sources) * goal, error)
                if time.monotonic() > saved_at + 60:        # no more is lost to a kill
                    saved_at = time.monotonic()
                    for each in sources:
                        each.save()
        except concurrent.futures.BrokenExecutor:
            print("whest: the workers are lost; going on without them.", file=sys.stderr)
            return grow(sources, goal, None, progress, error)
        finally:
            for _, future in pending:
                future.cancel()
    return [truth or source.conclude() for source, truth in zip(sources, truths)]


class DaskExecutor:
    """The workers of a Dask cluster. A network is sent to them once, and again where one is lost."""

    source: Any = None      # the TruthSource that was sent last

    def __init__(self, address: str):
        connect = need("distributed", "cluster").Client
        try:
            self.client = connect(address, timeout=5)
        except (OSError, ValueError) as exc:
            raise WhestError(
                f"No Dask cluster answers at {address} ({exc}): start one, or leave out --dask.") from exc
        self.client.upload_file(__file__, load=False)
        self._max_workers = sum(self.client.nthreads().values())
        if not self._max_workers:
            self.client.close()
            raise WhestError(f"The Dask cluster at {address} has no workers: start some, or do without.")

    def submit(self, sample: types.MethodType, *node: int):
        if sample.__self__ is not self.source:
            self.source = sample.__self__
            self.sent = self.client.submit(lambda source: source, self.source, pure=False)
        return self.client.submit(TruthSource.sample, self.sent, *node, pure=False)


def unpack_truth(arrays: dict[str, np.ndarray]) -> Truth:
    """The Truth of which the store or a suite keeps these arrays."""
    fields: dict[str, Any] = {name: a if a.ndim else a.item() for name, a in arrays.items()}
    return Truth(**fields)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside this one, to be written and then moved there: all of it or nothing."""
    part = path.with_name(f".{os.urandom(6).hex()}{path.suffix}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


class TruthStore:
    """A folder of .npz files for each network. What it cannot keep or read is sampled again.

    `folder` defaults to $WHESTBENCH_CACHE, or whestbench in the user's cache directory.
    """

    def __init__(self, folder: str | os.PathLike | None = None):
        usual = "~/Library/Caches" if sys.platform == "darwin" else "~/.cache"
        base = os.environ.get("XDG_CACHE_HOME") or usual
        folder = folder or os.environ.get("WHESTBENCH_CACHE") or Path(base, "whestbench")
        self.folder, self.trouble = Path(folder).expanduser() / f"truth-{STREAM}", ""

    @contextlib.contextmanager
    def trying(self, name: str) -> Iterator[Path]:
        """Trouble with a file is worth one line, and no more."""
        path = self.folder / f"{name}.npz"
        try:
            yield path
        except Exception as exc:        # a damaged file can raise anything
            if not self.trouble:
                self.trouble = f"cannot use {path} ({type(exc).__name__}: {exc}); sampling instead."
                print(f"whest: {self.trouble}", file=sys.stderr)

    def get(self, name: str) -> dict[str, np.ndarray] | None:
        """The arrays that were put under this name, or None."""
        with self.trying(name) as path:
            if path.exists():
                with np.load(path, allow_pickle=False) as file:
                    arrays = dict(file)         # each member has a CRC-32
                if str(arrays.pop("name")) != name:
                    raise ValueError("it belongs elsewhere")
                return arrays
        return None

    def put(self, name: str, arrays: dict) -> None:
        with self.trying(name) as path:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as part:
                np.savez(part, **arrays, name=name)


class Suite(typing.NamedTuple):
    """Networks with their truths; `about` says where they come from."""
    mlps: list[MLP]
    truths: list[Truth]
    about: dict


def write_suite(path: str | os.PathLike, suite: Suite) -> None:
    """Write a suite as one portable .npz without pickles."""
    arrays: dict[str, Any] = {}
    networks = []
    for i, (mlp, truth) in enumerate(zip(suite.mlps, suite.truths)):
        members = {"weights": np.array([np.asarray(w) for w in mlp.weights]), **vars(truth)}
        networks.append({"name": mlp.name, "seed": mlp.seed, "sha256": fingerprint(*members.values())})
        arrays |= {f"{i}/{name}": a for name, a in members.items()}
    about = {"stream": STREAM, "whestbench_version": __version__, "networks": networks,
             "created_at_utc": datetime.now(timezone.utc).isoformat()}
    with replacing(Path(path)) as part, part.open("wb") as file:
        np.savez(file, **arrays, suite=json.dumps(suite.about | about))


def read_suite(path: str | os.PathLike, n_mlps: int | None = None) -> Suite:
    """The suite in a file, or its first networks. Raises InvalidDatasetError if anything is wrong with it."""
    suite = Suite([], [], {})
    with reading(path), np.load(path, allow_pickle=False) as file:
        about = json.loads(str(file["suite"]))
        for i, entry in enumerate(about["networks"][:n_mlps]):
            members = {key.split("/")[1]: file[key] for key in file.files if key.startswith(f"{i}/")}
            if fingerprint(*members.values()) != entry["sha256"]:
                raise ValueError(f"network {i} does not have the hash that it was written with")
            weights, truth = members.pop("weights"), unpack_truth(members)
            if weights.shape != (*truth.mean.shape, truth.mean.shape[-1]):
                raise ValueError(f"network {i} has weights {weights.shape} and a truth {truth.mean.shape}")
            if not (np.isfinite(weights).all() and np.isfinite(truth.mean).all()):
                raise ValueError(f"network {i} is not finite")
            suite.mlps.append(mlp_of(weights, entry["seed"], entry["name"]))
            suite.truths.append(truth)
    return suite._replace(about=about | {"path": str(Path(path).resolve()), "n_mlps": len(about["networks"])})


def mlp_of(weights: np.ndarray, seed: int, name: str) -> MLP:
    """The network of these weights `(depth, width, width)`."""
    return MLP(weights.shape[-1], len(weights), [fnp.asarray(w) for w in weights], seed, name)


class Dataset(list):
    """The rows, dictionaries, of one split of a published dataset; `metadata` is that of the whole."""

    column_names = property(lambda self: list(self[0]) if self else [])

    def __init__(self, folder: Path, metadata: dict, split: str, n_rows: int | None = None):
        parquet, self.metadata, splits = need("pyarrow.parquet", "parquet"), metadata, metadata["splits"]
        d, w = metadata["depth"], metadata["width"]
        shapes = {"weights": (d, w, w), "all_layer_means": (d, w), "final_means": (w,)}
        if split not in splits:
            raise InvalidDatasetError(f"Unknown split {split!r}: choose one of {', '.join(sorted(splits))}.")
        files = map(parquet.ParquetFile, sorted((folder / "data").glob(f"{split}-*.parquet")))
        for batch in itertools.islice((batch for file in files for batch in file.iter_batches(1)), n_rows):
            row = dict(zip(batch.schema.names, batch.columns))
            for name, column in row.items():
                while name in shapes and column.type.num_fields:
                    column = column.flatten()
                array = name in shapes
                row[name] = np.array(column, np.float32).reshape(shapes[name]) if array else column[0].as_py()
            self.append(row)


def open_dataset(path_or_repo: str | os.PathLike, revision: str | None = None,
                 token: str | None = None) -> tuple[Path, dict]:
    """The folder of a dataset, fetched if it is hf://owner/name[@revision], and its metadata, with splits."""
    name, folder = str(path_or_repo), Path(path_or_repo).expanduser()
    if name.startswith("hf://"):
        repo, _, pinned = name[5:].partition("@")
        download = need("huggingface_hub", "hub").snapshot_download
        folder = Path(download(repo, repo_type="dataset", revision=pinned or revision, token=token))
    about = json.loads((folder / "metadata.json").read_text())
    if about["schema_version"] != "3.0" or about["seed_protocol"]["version"] not in ("2.0", "3.0", "4.0"):
        raise ValueError("its schema or seed protocol is not known")
    if about.get("is_partial"):
        raise ValueError("it is a part, to be merged with the others")
    return folder, {"splits": {about.get("split"): about}} | about


def load_dataset(path_or_repo: str | os.PathLike, *, revision: str | None = None, split: str | None = None,
                 token: str | None = None, streaming: bool = False) -> Dataset | dict[str, Dataset]:
    """The rows of a contest dataset, a folder or hf://owner/name; by split, where it has several."""
    with reading(path_or_repo):
        folder, about = open_dataset(path_or_repo, revision, token)
        split = split or about.get("split")
        if split:
            return Dataset(folder, about, split)
        return {name: Dataset(folder, about, name) for name in about["splits"]}


def mlp_at(ds: Dataset, index: int) -> MLP:
    """Network `index` of a dataset, with the seed that the contest derives for it."""
    row, protocol = ds[index], ds.metadata["seed_protocol"]
    seed = row["mlp_seed"]
    if protocol["version"] == "3.0":
        seed = int(np.random.SeedSequence(seed).spawn(3)[2].generate_state(1)[0])
    elif protocol["version"] == "4.0":
        withheld = protocol.get("salt_source") == "env"
        salt = bytes.fromhex((os.environ.get("WHEST_SEED_SALT") if withheld else protocol.get("salt")) or "")
        if not salt or protocol.get("salt_digest") not in (None, hashlib.sha256(salt).hexdigest()):
            raise InvalidDatasetError(
                "The seeds' salt is missing or wrong: if it is withheld, set WHEST_SEED_SALT.")
        derived = hashlib.blake2b(seed.to_bytes(8, "big"), digest_size=8, key=salt, person=b"whest-4.0-est")
        seed = int.from_bytes(derived.digest()[-4:], "big")
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
            names = ", ".join(sorted(about["splits"]))
            raise Misuse(f"{path} has the splits {names}: choose one with --split.")
        ds = Dataset(folder, about, split, n_mlps)
        sha256 = hashlib.sha256((folder / "metadata.json").read_bytes()).hexdigest()
        return Suite(list(iter_mlps(ds)), [published_truth(row, about["n_samples"]) for row in ds], {
            "path": path if path.startswith("hf://") else str(folder.resolve()), "seed": about.get("seed"),
            "sha256": sha256, "n_mlps": about["splits"][split]["n_mlps"]})


def published_truth(row: dict, n_samples: int) -> Truth:
    """Published targets with error bars: the published variance, spread as in 512 samples of ours."""
    x = np.random.default_rng(0).standard_normal((512, len(row["final_means"])), np.float32)
    layers = [x := np.maximum(x @ weight, 0) for weight in row["weights"]]
    covariance = np.atleast_2d(np.cov(x, rowvar=False))
    covariance *= row["avg_variance"] / max(covariance.diagonal().mean(), 1e-30)
    mean = np.array([*row["all_layer_means"][:-1], row["final_means"]], np.float64)
    error = np.std(layers, 1) / n_samples**0.5
    return Truth(n_samples, mean, error, covariance.diagonal(), covariance / n_samples, 0.0)


# ======================================================================================
# Baselines
#
# Six estimators to be measured against, from nothing to second-order moment propagation.
# Written against fnp like any participant's, so that their bills are what yours would be.
# ======================================================================================


def zeros(mlp: MLP, budget: int) -> np.ndarray:
    """Predict that no neuron ever fires: what a failed estimator is scored as."""
    return fnp.zeros((mlp.depth, mlp.width))


def random(mlp: MLP, budget: int) -> np.ndarray:
    """Predict uniform noise: what an estimator that looks at nothing deserves."""
    return fnp.random.default_rng(mlp.seed).uniform(0.0, 1.0, size=(mlp.depth, mlp.width))


def sampling(mlp: MLP, budget: int) -> np.ndarray:
    """Spend a tenth of the budget, below which spending less earns nothing, on plain Monte Carlo."""
    n_samples = max(1, int(0.09 * budget / (2 * mlp.depth * mlp.width**2)))
    x = fnp.random.default_rng(mlp.seed).standard_normal((n_samples, mlp.width), dtype=fnp.float32)
    rows = []
    for weight in mlp.weights:
        x = fnp.maximum(fnp.matmul(x, weight), fnp.float32(0))
        rows.append(fnp.mean(x, axis=0))
    return fnp.stack(rows, axis=0)


def mean_propagation(mlp: MLP, budget: int) -> np.ndarray:
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


def covariance_propagation(mlp: MLP, budget: int) -> np.ndarray:
    """Carry mean and covariance from layer to layer, as if pre-activations were jointly Gaussian.

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


def combined(mlp: MLP, budget: int) -> np.ndarray:
    """Covariance propagation where its matrix products cost less than the free tenth, else means."""
    affordable = 4 * mlp.depth * mlp.width**3 <= MULTIPLIER_FLOOR * budget
    return (covariance_propagation if affordable else mean_propagation)(mlp, budget)


BASELINES = {baseline.__name__: baseline for baseline in (
    zeros, random, sampling, mean_propagation, covariance_propagation, combined)}


class Baseline(BaseEstimator):
    """A baseline of BASELINES by its name, as an estimator."""

    def __init__(self, name: str):
        self.name = name

    def predict(self, mlp: MLP, budget: int) -> np.ndarray:
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
    """What a predict() call gave and what it cost: a valid prediction `(depth, width)`, or why there is none.

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
        share = self.effective_compute(rules) / rules.flop_budget
        return 1.0 if self.failed else max(MULTIPLIER_FLOOR, share)

    def scored(self, truth: Truth) -> np.ndarray:
        """The prediction in float64, zeros for a failure."""
        return np.zeros_like(truth.mean) if self.prediction is None else self.prediction.astype(np.float64)

    def apply_limits(self, rules: Round) -> Outcome:
        """Withdraw a prediction that came too late or cost too much, as the contest does after the call."""
        limits = ((self.wall_time_s, rules.wall_time_limit, "time_exhausted"),
                  (self.residual_wall_time_s, rules.residual_wall_time_limit, "residual_wall_time_exhausted"),
                  (self.effective_compute(rules), rules.flop_budget, "combined_budget_exhausted"))
        for spent, limit, flag in limits:
            if not self.failed and limit is not None and spent > limit:
                self.prediction, self.flag = None, flag
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
    def corrected(self) -> float:
        """Unbiased for the error against exact truths; can be negative where noise hides a small one."""
        return self.raw - self.noise_floor

    @property
    def standard_error(self) -> float:
        """Of `corrected`, from truth noise."""
        return math.sqrt(self.linear + self.quadratic)

    @property
    def truth_interval(self) -> tuple[float, float]:
        """95% interval for these networks' error against exact truths."""
        half = NORMAL_975 * self.standard_error
        return self.corrected - half, self.corrected + half

    @property
    def network_interval(self) -> tuple[float, float] | None:
        """95% interval for the mean over all such networks, were the truths exact."""
        if self.between is None:
            return None
        half = student_975(self.n_networks - 1) * self.between
        return self.corrected - half, self.corrected + half

    def precise(self, precision: float) -> bool:
        """Whether standard error and noise floor are within this share of the corrected error."""
        return max(self.standard_error, self.noise_floor) <= precision * self.corrected

    def growth_needed(self, precision: float) -> float | None:
        """How many times the samples that `precision` takes; None for an error not told from zero."""
        if self.corrected <= NORMAL_975 * self.standard_error:
            return None
        aim = precision * self.corrected
        noise = self.linear + math.sqrt(self.linear ** 2 + 4 * self.quadratic * aim ** 2)
        return max(self.noise_floor / aim, noise / (2 * aim ** 2))


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
    linear = max((S * np.outer(g, g)).sum() - total ** 2 * trace_SS, 0)
    return TruthError(float((m[:, 0] * (deltas ** 2).mean(1)).sum()), float(total * np.trace(S) / width),
                      float(4 * linear / width ** 2), float(2 * total ** 2 * trace_SS / width ** 2))


def suite_error(errors: list[TruthError]) -> TruthError:
    """The mean of several networks' errors."""
    n, between = len(errors), None
    parts = [(e.raw, e.noise_floor, e.linear, e.quadratic) for e in errors]
    raw, floor, linear, quadratic = np.mean(parts, axis=0).tolist()
    if n > 1:
        # the scatter between networks, less what truth noise adds to it: that is the other interval's
        between = math.sqrt(max(np.var([e.corrected for e in errors], ddof=1) - linear - quadratic, 0) / n)
    return TruthError(raw, floor, linear / n, quadratic / n, between, n)


def suite_score(outcomes: list[Outcome], truths: list[Truth], multipliers: Iterable[float]) -> TruthError:
    """The score of these outcomes against these truths."""
    return suite_error([final_error(outcome.scored(truth)[-1], truth, multiplier)
                        for outcome, truth, multiplier in zip(outcomes, truths, multipliers)])


def student_cdf(t: float, dof: int) -> float:
    """P(T <= t) of Student's t: the finite sums of Abramowitz and Stegun 26.7.3 and 26.7.4."""
    angle, odd = math.atan2(t, math.sqrt(dof)), dof % 2
    powers = itertools.accumulate(range(2 + odd, dof, 2), lambda x, k: x * math.cos(angle) ** 2 * (k - 1) / k,
                                  initial=math.cos(angle) * (dof > 1) if odd else 1.0)
    total = math.sin(angle) * sum(powers)
    return (1 + (2 / math.pi * (angle + total) if odd else total)) / 2


def student_975(dof: int) -> float:
    """97.5% quantile of Student's t, to 1e-6."""
    return bisect.bisect(range(13 * 10**6), 0.975, key=lambda micro: student_cdf(micro / 1e6, dof)) / 1e6


Repeats = list[list[Outcome]]       # by repeat and network


def compare(ours: Repeats, theirs: Repeats, truths: list[Truth], rules: Round) -> dict:
    """The paired difference of two suite scores, ours less theirs, and how sure it is.

    The 95% interval is for all such networks, or the one. `networks_needed` would settle it with a chance of
    80%, were the difference what it seems (Guenther 1981).
    """
    n, n_repeats = len(truths), len(ours)

    def differences(us: Repeats, them: Repeats) -> Iterator[TruthError]:
        for truth, *outcomes in zip(truths, *itertools.chain(*zip(us, them))):      # ours and theirs in turn
            signs = np.tile([1 / len(us), -1 / len(us)], len(us))
            yield final_error([o.scored(truth)[-1] for o in outcomes], truth,
                              signs * [o.multiplier(rules) for o in outcomes])

    mean = suite_error([*differences(ours, theirs)])
    each = np.array([[error.corrected for error in differences([a], [b])] for a, b in zip(ours, theirs)])
    own = math.sqrt(each.var(0, ddof=1).mean() / (n_repeats * n)) if n_repeats > 1 else None
    # The scatter between networks, where there are several, holds what the seeds do.
    spread = max(mean.between or 0.0, own or 0.0)
    error = math.hypot(mean.standard_error, spread)
    t = mean.corrected / max(error, 1e-300)
    dof = n - 1 or 9999         # as good as normal
    half = student_975(dof) * error
    p = max(2 * student_cdf(-abs(t), dof), 1e-12) if each.any() else None
    needed = None
    if n > 1 and p and t and p > 0.05:
        needed = max(n + 1, math.ceil(n * ((NORMAL_975 + 0.8416) / t) ** 2 + NORMAL_975 ** 2 / 2))
    networks = math.sqrt(spread ** 2 - (own or 0.0) ** 2) if n > 1 else None
    parts = {"truth noise": mean.standard_error, "choice of networks": networks, "own randomness": own}
    return {"score": mean.corrected, "interval": (mean.corrected - half, mean.corrected + half), "p": p,
            "networks_needed": needed, "standard_error": error, "parts": parts, "n_repeats": n_repeats,
            "per_mlp": each.mean(0).tolist()}


def score_mlp(index: int, mlp: MLP, outcome: Outcome, truth: Truth, rules: Round) -> dict:
    """The report on one network, as in the real document. A failure is scored as zeros at the full budget."""
    prediction, multiplier = outcome.scored(truth), outcome.multiplier(rules)
    per_layer = ((prediction - truth.mean) ** 2).mean(axis=1)
    final = final_error(prediction[-1], truth)
    error = {"error": outcome.error, "error_code": outcome.error_code} if outcome.error_code else {}
    return {"mlp_index": index, "mlp_name": mlp.name, **error, "traceback": outcome.traceback,
            "final_layer_mse": final.raw, "all_layers_mse": float(per_layer.mean()),
            "per_layer_mse": per_layer.tolist(),
            "score_multiplier": multiplier, "adjusted_final_layer_score": final.raw * multiplier,
            "flops_used": outcome.flops_used, "effective_compute": outcome.effective_compute(rules),
            **{flag: outcome.flag == flag for flag in FLAGS}, **{t: getattr(outcome, t) for t in TIMES},
            "breakdowns": {"estimator": outcome.breakdown}, "truth_n_samples": truth.n_samples,
            "noise_floor": final.noise_floor, "corrected_final_layer_mse": final.corrected,
            "zeros_final_layer_mse": float((truth.mean[-1] ** 2).mean() - final.noise_floor),
            "sampling_variance": float(truth.variance.mean())}


def score_suite(suite: list[MLP], outcomes: list[Outcome], truths: list[Truth], rules: Round,
                precision: float) -> dict:
    """The `results` of a run: means, extremes and failures over the networks, and the corrected score."""
    per_mlp = [score_mlp(i, *each, rules) for i, each in enumerate(zip(suite, outcomes, truths))]

    def mean(key: str) -> Any:
        return np.mean([entry[key] for entry in per_mlp], axis=0).tolist()

    scores = [entry["adjusted_final_layer_score"] for entry in per_mlp]
    error = suite_score(outcomes, truths, [outcome.multiplier(rules) for outcome in outcomes])
    corrected = {"score": error.corrected, "growth_needed": error.growth_needed(precision)}
    for key in ("standard_error", "noise_floor", "truth_interval", "network_interval"):
        corrected[key] = getattr(error, key)
    failures = Counter("error" if o.error_code else o.flag for o in outcomes if o.failed)
    final = np.array([truths[0].mean[-1], outcomes[0].scored(truths[0])[-1]])
    points = np.round(final[:, ::-(-rules.width // 128)], 6).tolist()       # at most 128 neurons, for a plot
    means = ("adjusted_final_layer_score", "final_layer_mse", "all_layers_mse", "per_layer_mse")
    return {key: mean(key) for key in means} | {
        "best_mlp_adjusted_final_layer_score": min(scores),
        "worst_mlp_adjusted_final_layer_score": max(scores),
        "mean_score_multiplier": mean("score_multiplier"),
        "mean_effective_compute": mean("effective_compute"),
        "mean_compute_utilization": mean("effective_compute") / rules.flop_budget,
        "n_failed_mlps": failures.total(),
        "failure_breakdown": {key: failures[key] for key in (*FLAGS, "error")},
        "corrected": corrected,
        "final_layer_of_mlp_0": dict(zip(("true", "predicted"), points)),
        "per_mlp": per_mlp,
        "breakdowns": {"sampling": None, "estimator": add_breakdowns([o.breakdown for o in outcomes])}}


def add_breakdowns(breakdowns: list) -> Any:
    """Sum dictionaries of numbers, key by key and all the way down; None where there is nothing to sum."""
    present = [b for b in breakdowns if b is not None]
    if not present or not isinstance(present[0], dict):
        return sum(present) if present else None
    keys = dict.fromkeys(itertools.chain(*present))
    return {key: add_breakdowns([b.get(key) for b in present]) for key in keys}


def grow_truths(suite: list[MLP], rivals: list[list[Outcome]], rules: Round, options,
                progress: Callable[[int, int, Any], object]) -> list[Truth]:
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


SAMPLE_COUNTS = (10, 100, 1_000, 10_000, 100_000)


def convergence_tables(estimators: Iterable[BaseEstimator], mlp: MLP, flop_budget: int,
                       sample_counts: Iterable[int] = SAMPLE_COUNTS, seed: int = 0) -> list[list[dict]]:
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
        tables.append([{"n_samples": n_samples, "sampling_flops": flops, "estimator_flops": bill.flops_used,
                        "mse": float(((prediction - means) ** 2).mean()) - noise}
                       for n_samples, flops, means, noise in references])
    return tables


def table_lines(rows: list[dict]) -> list[str]:
    """A convergence table as right-aligned text."""
    line = "{:>10} | {:>16} | {:>15} | {:>11}".format
    return [line("n_samples", "sampling_flops", "estimator_flops", "MSE"), "-" * 61, *(
        line(n if isinstance(n, str) else f"{n:,}", f"{flops:,}" if flops else "-", f"{used:,}", f"{mse:.4e}")
        for n, flops, used, mse in map(dict.values, rows))]


def compare_against_monte_carlo(
        estimator: BaseEstimator, mlp: MLP, sample_counts: Iterable[int] = SAMPLE_COUNTS,
        estimator_budget: int = 4 * 10**9, sampling_budget: int = 10**12, seed: int = 0,
        submission_dir: str | None = None) -> None:
    """The starter kit's direct loop: print the convergence table of one estimator on one network."""
    print(f"MLP: width={mlp.width} depth={mlp.depth} seed={mlp.seed}")
    table, = convergence_tables([estimator], mlp, estimator_budget, sample_counts, seed)
    print(*table_lines(table), sep="\n")


# ======================================================================================
# Runners
#
# Where predict() runs. The metered call turns whatever happens inside, a wrong shape, an
# exception, an endless loop, into an Outcome, so one network's failure costs that network only.
# ======================================================================================


class InvalidPrediction(ValueError):
    """A prediction that cannot be scored, with the real package's `details`."""

    def __init__(self, message: str, mlp: MLP, got: tuple, hint: str):
        super().__init__(message)
        self.details = {"expected_shape": [mlp.depth, mlp.width], "got_shape": list(got),
                        "cause_hints": [hint], "hint": hint}


def materialise(raw: Any, mlp: MLP) -> np.ndarray:
    """What predict() returned as float32, billed where the book bills casts. Raises InvalidPrediction."""
    shape, expected = tuple(getattr(raw, "shape", ())), (mlp.depth, mlp.width)
    if shape == expected:
        if np.asarray(raw).dtype.kind not in "biufc":
            raise UnsupportedDtypeError(f"Predictions must be numbers, not {np.asarray(raw).dtype}.")
        prediction = np.array(fnp.asarray(raw, dtype=np.float32))
        shape = prediction.shape        # what it says of itself need not be what it is
    if shape != expected:
        hint = "Stack one (width,) vector per layer: fnp.stack(rows, axis=0)."
        if raw is None:
            hint = "predict() returned nothing: end it with a return statement."
        elif shape == expected[::-1]:
            hint = "It seems transposed: return prediction.T."
        elif not hasattr(raw, "shape"):
            hint = f"It returned a {type(raw).__name__}, not an array. {hint}"
        raise InvalidPrediction(f"Predictions must have shape (depth={mlp.depth}, width={mlp.width}); "
                                f"got shape={shape}.", mlp, shape, hint)
    for layer, neuron in np.argwhere(~np.isfinite(prediction)):
        value = prediction[layer, neuron]
        cause = ("0/0, inf - inf, or the root or logarithm of a negative number" if np.isnan(value)
                 else "a float32 overflow, or a division by zero")
        where = f"{value} first seen at layer {layer}, neuron {neuron}: look there for {cause}."
        raise InvalidPrediction("Predictions must contain only finite values.", mlp, shape, where)
    return prediction


class Alarm:
    """Interrupt the main thread's Python code after `seconds`, again and again until it gives way.

    It strikes only in code outside this file, never between a charge and its log; ten times a millisecond, so
    that an estimator that swallows that is soon met outside its `try`. What cannot be interrupted, C code or
    stolen signals, ends the process LAST_RESORT seconds later, and Python says where it was. Does nothing in
    other threads, or where the platform has no interval timer.
    """

    LAST_RESORT = 30.0
    current: Alarm | None = None        # the one in force

    def __init__(self, seconds: float | None, op_name: str):
        self.limit = self.left = math.inf if seconds is None else seconds
        self.op_name, self.process = op_name, os.getpid()
        self.works = (seconds is not None and hasattr(signal, "setitimer")
                      and threading.current_thread() is threading.main_thread())

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
        if os.getpid() != self.process:     # a fork of the estimator's has come back too
            os._exit(1)
        Alarm.current = None
        self.left -= time.perf_counter() - self.begun
        if self.works:
            signal.setitimer(signal.ITIMER_REAL, 0)
            faulthandler.cancel_dump_traceback_later()
            signal.signal(signal.SIGALRM, self.previous)

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        self.__exit__()
        yield
        self.__enter__()


AMOUNTS = "calls", "flops_used", "time_s"
OUTSIDE = "(the runner's own cast)", 0


class Profile:
    """Knows for every charge of a context which of the participant's lines were on the stack.

    The participant's are the modules that load_estimator makes and the files below `home`, installed packages
    and this file excepted. `attach` it to a context before that is entered; read `rows` when it is left.
    """

    def __init__(self, home: str | os.PathLike):
        self.home = str(Path(home).resolve()) + os.sep
        self.files: dict[str, bool] = {}        # whether each is the participant's

    def attach(self, context: BudgetContext) -> None:
        self.context = context
        self.stacks: list[tuple] = []
        context.on_charge = lambda *_: self.stacks.append(self.stack(sys._getframe(2)))

    def stack(self, frame: types.FrameType | None) -> tuple:
        """The participant's lines from this frame outwards, innermost first: (file, line, file, line ...)."""
        found: list = []
        while frame is not None and frame.f_code is not metered_predict.__code__:
            file = frame.f_code.co_filename
            if file not in self.files:
                self.files[file] = self.owns(file, frame.f_globals.get("__name__") or "")
            if self.files[file]:
                found += file, frame.f_lineno
            frame = frame.f_back
        return tuple(found)

    def owns(self, file: str, module: str = "") -> bool:
        """Whether a file is the participant's, wherever it was loaded from."""
        return module.startswith(SUBMISSION) or is_participants(file, self.home)

    def rows(self) -> list[dict]:
        """One row a line, in the order of the source: `calls`, `flops_used`, `time_s` (in counted calls),
        `charges` by namespace, operation and dtype; and `cumulative_...`, with all that it called.
        """
        totals: dict[tuple, list] = defaultdict(lambda: [0, 0, 0.0])
        for stack, (bill, _, space, _, backend, overhead) in zip(self.stacks, self.context._log):
            total = totals[stack, space, bill.op_name, bill.dtype]
            total[0] += 1
            total[1] += bill.cost
            total[2] += backend + overhead
        rows = []
        for (stack, space, name, dtype), total in totals.items():
            own, zeros = dict(zip(AMOUNTS, total)), dict.fromkeys(AMOUNTS, 0)
            charges = [{"namespace": space, "operation": name, "dtype": dtype and str(dtype)} | own]
            for file, line in dict.fromkeys(zip(stack[::2], stack[1::2])) or [OUTSIDE]:
                rows.append({"file": file.removeprefix(self.home), "line": line,
                             "source": linecache.getline(file, line).strip(), **own, "charges": charges,
                             **{f"cumulative_{amount}": value for amount, value in zip(AMOUNTS, total)}})
                own, charges = zeros, []        # of the callers
        return merged(rows, "file", "line")


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


def lines_of(outcomes: list[Outcome]) -> list[dict]:
    """The rows of these outcomes' profiles together."""
    return merged(itertools.chain(*[outcome.lines for outcome in outcomes]), "file", "line")


@contextlib.contextmanager
def debuggable(screen):
    """However pdb is opened inside, its prompt stops the live line, the alarm and all clocks."""
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
def unpatched(context: BudgetContext) -> Iterator[None]:
    """Put back, off the clock, what an estimator replaces in this module, its classes, fnp, NumPy or time."""
    pause, clock = context.pause, _clock
    with pause():
        here = sys.modules[__name__]
        classes = (c for c in vars(here).values() if isinstance(c, type) and c.__module__ == __name__)
        owners = here, np, time, flops, flops.stats, *_spaces.values(), *classes
        places = [(vars(owner), functools.partial(setattr, owner)) for owner in owners]
        places += [(table, table.__setitem__) for table in (PRICES, *(book.rows for book in PRICES.values()))]
        kept = [(now, put, name, value) for now, put in places for name, value in now.items()
                if callable(value) or not name.startswith("_")]         # the rest is state of our own
    try:
        yield
    finally:
        globals()["_clock"] = clock         # which the pause reads
        with pause():
            for now, put, name, value in kept:
                if now.get(name) is not value:
                    put(name, value)


def metered_predict(estimator: BaseEstimator, mlp: MLP, rules: Round, fail_fast: bool = False,
                    profile: Profile | None = None) -> Outcome:
    """Call predict() under the round's budget and clock; whatever happens inside becomes an Outcome.

    With `fail_fast` the participant's exception propagates; `profile` gives the outcome its rows.
    """
    outcome = Outcome()
    context = BudgetContext(rules.flop_budget, quiet=True, wall_time_limit_s=rules.wall_time_limit,
                            prices=rules.prices)
    if profile is not None:
        profile.attach(context)
    try:
        with Alarm(rules.wall_time_limit, "predict"), context:
            with unpatched(context):
                raw = estimator.predict(mlp, rules.flop_budget)
            outcome.prediction = materialise(raw, mlp)
    except BaseException as exc:        # SystemExit is the estimator's failure too
        if type(exc).__name__ == "BdbQuit":
            raise KeyboardInterrupt from exc
        if fail_fast or isinstance(exc, KeyboardInterrupt):
            raise
        describe_failure(outcome, exc, inspect.getsourcefile(type(estimator)) or __file__)
    outcome.flops_charged = context.flops_used
    # As in the real report: a blown budget counts as all of it, a blown clock and an error as nothing.
    outcome.flops_used = (context.flops_used if not outcome.failed else
                          rules.flop_budget if outcome.flag == "budget_exhausted" else 0)
    if outcome.error is None:
        summary = context.summary_dict(by_namespace=True)
        del summary["operations"]
        outcome.breakdown = summary | {"by_namespace": {
            "estimator." + (name or "estimator-client").removeprefix("estimator."): row
            for name, row in summary["by_namespace"].items()}}
        for name in TIMES:
            setattr(outcome, name, summary[name])
    if profile is not None:
        outcome.lines = profile.rows()
    return outcome.apply_limits(rules)


def describe_failure(outcome: Outcome, exc: BaseException, home: str) -> None:
    """Fill in flag or error, the participant's own line, and the traceback without our own frames."""
    text = traceback.TracebackException.from_exception(exc, limit=-100)     # a recursion may have millions
    for part in filter(None, (text, text.__cause__, text.__context__)):
        part.stack = traceback.StackSummary.from_list([f for f in part.stack if f.filename != __file__])
    header = "" if text.stack else "Traceback (most recent call last):\n  in predict()\n"
    outcome.line, outcome.traceback = participant_line(exc, home), header + "".join(text.format())
    if isinstance(exc, (BudgetExhaustedError, TimeExhaustedError)):
        outcome.flag = "budget_exhausted" if isinstance(exc, BudgetExhaustedError) else "time_exhausted"
        return
    kind, outcome.error_code = type(exc).__name__, "PREDICT_ERROR"
    details: dict[str, Any] = {"line": outcome.line}
    if isinstance(exc, InvalidPrediction):
        kind = outcome.error_code = "ValueError"
        details = exc.details | {"line": f"{Path(home).name}, the return value of predict()"}
    elif isinstance(exc, UnsupportedDtypeError):
        outcome.error_code = kind
    # str(text): that of an exception may raise in its turn
    outcome.error = {"message": str(text) or kind, "type": kind, "details": details}


class LocalRunner:
    """Runs the estimator in this process: the fastest, and the one to debug in; what kills it ends the run.

    A context manager: entering it loads the file or baseline and calls setup() within the round's set-up
    time, raising WhestError; leaving it calls teardown() within the same, and forgets the file's siblings,
    as a rival's may have the same names.
    """

    class_found = ""        # the class that the loader chose

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
            if alarm.left < 0:          # where it could not strike
                raise TimeExhaustedError("setup", elapsed_s=limit - alarm.left, limit_s=limit)
        except (WhestError, KeyboardInterrupt):
            raise
        except BaseException as exc:
            if self.fail_fast:
                raise
            line = participant_line(exc, self.path)
            said = f"raised {type(exc).__name__}: {exc} ({line}); --debug shows the traceback."
            late = isinstance(exc, TimeExhaustedError)
            if late:
                said = f"exceeded its limit of {limit:g} s: do less there, or raise --setup-timeout."
            raise WhestError(f"setup() {said}", "SETUP_TIMEOUT" if late else "SETUP_ERROR", "setup") from exc
        self.class_found = type(self.estimator).__name__
        return self

    def predict(self, mlp: MLP) -> Outcome:
        """The outcome on a copy of `mlp`: what an estimator scribbles on its weights stays there."""
        return metered_predict(self.estimator, mlp.copy(), self.rules, self.fail_fast, self.profile)

    def __exit__(self, *_):
        try:
            with Alarm(self.rules.setup_timeout, "teardown"):
                self.estimator.teardown()
        except BaseException as exc:        # the predictions are made: nothing is lost but teardown()
            what = traceback.format_exception_only(exc)[-1].strip()
            line = participant_line(exc, self.path)
            print(f"whest: teardown() raised {what} ({line}); the score stands.", file=sys.stderr)
        for name in set(sys.modules) - self.modules:
            found_beside = str(Path(self.path).parent / name.partition(".")[0])
            if (getattr(sys.modules[name], "__file__", None) or "").startswith(found_beside):
                del sys.modules[name]


def conforms(value: Any, form: Any) -> bool:
    """Whether JSON has a form: str, float (not negative), None, [form of items], {key: form}, {str: form of
    values}, or (form, or form)."""
    if isinstance(form, tuple):
        return any(conforms(value, each) for each in form)
    if isinstance(form, list):
        return isinstance(value, list) and all(conforms(item, form[0]) for item in value)
    if isinstance(form, dict):
        return isinstance(value, dict) and (str in form or form.keys() == value.keys()) and all(
            conforms(item, form.get(str) or form[key]) for key, item in value.items())
    if form is float:
        return isinstance(value, (int, float)) and 0 <= float(value) < math.inf
    return value is None if form is None else isinstance(value, form)


_TEXT, _TIMES, _AMOUNTS = (str, None), dict.fromkeys(TIMES, float), dict.fromkeys(AMOUNTS, float)
_SPENT = dict.fromkeys(("calls", *TIMES[1:3]), float)
_SPACE = _SPENT | {"flops_used": float, "operations": {str: _SPENT | {"flop_cost": float}}}
_BILL = _TIMES | {"flop_budget": float, "flops_used": float, "flops_remaining": float,
                  "by_namespace": {str: _SPACE}}
_REFUSAL = {"line": str, "expected_shape": [float], "got_shape": [float], "cause_hints": [str], "hint": str}
_ERROR = {"message": str, "type": str, "details": ({"line": str}, _REFUSAL)}
_CHARGE = _AMOUNTS | {"namespace": _TEXT, "operation": str, "dtype": _TEXT}
_LINE = _AMOUNTS | {f"cumulative_{amount}": float for amount in AMOUNTS} | {
    "file": str, "line": float, "source": str, "charges": [_CHARGE]}
_OUTCOME = _TIMES | {
    "flops_used": float, "flops_charged": float, "prediction": None, "breakdown": (_BILL, None),
    "flag": _TEXT, "traceback": _TEXT, "line": str, "lines": [_LINE]}
OUTCOME_FORM = _OUTCOME | {"error": None, "error_code": None}, _OUTCOME | {"error": _ERROR, "error_code": str}
ENVIRONMENT = re.compile(       # what a worker gets of ours
    "PATH|HOME|USER|LANG|TZ|TE?MP(DIR)?|SYSTEMROOT|XDG_CACHE_HOME|(LC|NUMBA)_.*|.*_NUM_THREADS"
    "|PYTHON(PATH|UTF8|IOENCODING|DONTWRITEBYTECODE|BREAKPOINT)")


class SubprocessRunner(LocalRunner):
    """Runs the estimator in a worker process with a memory limit; whatever kills it costs one network only.

    What the worker is told is a pickle; what it says is a line of JSON and the bytes of a prediction. That
    need not be true, but it has its form.
    """

    GRACE = 2.0         # seconds beyond the wall limit, in which the worker's own alarm may still answer
    START_UP = 30.0     # and beyond the set-up time, to start Python and import this module

    def __init__(self, *args: Any, memory_limit: int = 8 * 2**30, max_threads: int | None = None,
                 **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.limits = memory_limit, max_threads
        self.process: Any = None        # the worker

    def __enter__(self):
        code = (f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); "
                "import whestbench; whestbench.serve()")
        environment = {k: v for k, v in os.environ.items() if ENVIRONMENT.fullmatch(k)}
        self.process = subprocess.Popen([sys.executable, "-c", code], env=environment, start_new_session=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        arguments = self.path, self.class_name, self.rules, self.seed, False, self.profile
        timeout = self.rules.setup_timeout and self.rules.setup_timeout + self.START_UP
        self.class_found = self.ask((arguments, *self.limits), timeout, lambda said, _: str(said["class"]))
        return self

    def ask(self, question: Any, timeout: float | None, read: Callable) -> Any:
        """What `read(answer, data)` makes of the worker's answer; failing that, WhestError and its end."""
        process, token = self.process, os.urandom(8).hex()
        found: concurrent.futures.Future = concurrent.futures.Future()

        def exchange():     # in a thread, because a worker that neither listens nor speaks would hold us up
            try:
                pickle.dump((token, question), process.stdin)
                process.stdin.flush()
                answer = {}
                while answer.get("token") != token:     # what is left over from another question is no answer
                    answer = json.loads(process.stdout.readline(2**24))
                    data = process.stdout.read(min(max(0, answer["bytes"]), 2**28))
                if "code" in answer:
                    raise WhestError(*(str(answer[key]) for key in ("message", "code", "stage")))
                found.set_result(read(answer, data))
            except BaseException as exc:
                found.set_exception(exc)
        threading.Thread(target=exchange, daemon=True).start()
        try:
            return found.result(timeout)
        except concurrent.futures.TimeoutError:
            failure = WhestError(f"The worker gave no answer within {timeout:.0f} s.", "TIMEOUT", "setup")
        except WhestError as exc:
            failure = exc
        except Exception:
            failure = WhestError("The worker's answer was not understood.", "WORKER_PROTOCOL_ERROR", "setup")
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = process.wait(1.0)
                how = signal.strsignal(-status) if status < 0 else f"exit status {status}"
                failure = WhestError(f"The worker process died ({how}).", "WORKER_EOF", "setup")
        self.stop()
        raise failure

    def predict(self, mlp: MLP) -> Outcome:
        """The outcome in the worker, or what became of it; a dead one is replaced."""
        def read(answer: dict, data: bytes) -> Outcome:
            outcome, numbers = Outcome(**answer["outcome"]), np.frombuffer(data, np.float32)
            if not (conforms(answer["outcome"], OUTCOME_FORM) and np.isfinite(numbers).all()):
                raise ValueError("no outcome")
            if outcome.error is None and outcome.flag is None:
                outcome.prediction = numbers.reshape(mlp.depth, mlp.width)
            return outcome

        timeout = self.rules.wall_time_limit and self.rules.wall_time_limit + self.GRACE
        try:
            if self.process is None:
                self.__enter__()
            outcome = self.ask(mlp, timeout, read)
        except WhestError as exc:
            outcome = Outcome(error={"message": str(exc), "details": {}}, error_code=exc.code)
            if exc.code == "TIMEOUT":
                outcome = Outcome(flag="time_exhausted", wall_time_s=timeout or 0.0, traceback=str(exc))
        if self.fail_fast and outcome.failed:
            code = outcome.error_code or "PREDICT_ERROR"
            raise WhestError(outcome.traceback or outcome.error["message"], code, "predict")
        return outcome

    def stop(self, grace: float = 0.0) -> None:
        """End the worker and everything that it started, after it had so many seconds for teardown()."""
        if self.process is None:
            return
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            if grace:
                self.process.stdin.close()
                self.process.wait(grace)
        with contextlib.suppress(OSError):
            os.killpg(self.process.pid, signal.SIGKILL) if hasattr(os, "killpg") else self.process.kill()
        self.process.wait()
        self.process = None

    def __exit__(self, kind, *_):
        self.stop(0.0 if kind else (self.rules.setup_timeout or math.inf) + self.GRACE)


def serve() -> None:
    """The worker's side: answer questions on standard input until it closes."""
    import pdb
    questions, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)       # what the estimator prints is no answer
    pdb.set_trace = _no_debugger_here
    if os.environ.get("PYTHONBREAKPOINT") != "0":
        sys.breakpointhook = _no_debugger_here

    def answer(what: dict, data: bytes = b"") -> None:
        answers.write(json.dumps(what | {"token": token, "bytes": len(data)}).encode() + b"\n" + data)
        answers.flush()

    token, (arguments, memory_limit, max_threads) = pickle.load(questions)
    limit_threads(max_threads)
    if importlib.util.find_spec("resource"):
        import resource
        resource.setrlimit(resource.RLIMIT_AS, (memory_limit, memory_limit))
    try:
        with LocalRunner(*arguments) as runner:
            answer({"class": runner.class_found})
            with contextlib.suppress(EOFError, OSError, KeyboardInterrupt):     # nobody asks any more
                while True:
                    token, mlp = pickle.load(questions)
                    outcome = runner.predict(mlp)
                    data = b"" if outcome.failed else outcome.prediction.tobytes()
                    outcome.prediction = None
                    answer({"outcome": asdict(outcome)}, data)
    except WhestError as exc:
        answer({"message": str(exc), "code": exc.code, "stage": exc.stage})


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

    `format` is rich (frames, colour, live line), plain (neither: pipes, debuggers) or json. Entered, it holds
    on to stdout, as an estimator may replace or close it; under json all but the document goes to stderr.
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

    def restore_stdout(self) -> None:
        self.live(None)
        sys.stdout = self.stdout
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()      # what was printed meanwhile goes where it was meant to go
        os.dup2(self.descriptor, 1)

    def write(self, text: str) -> None:
        """Print on stdout; characters that its encoding lacks are replaced."""
        self.restore_stdout()
        text = text if self.colour else uncoloured(text)
        print(text.encode(self.encoding, "replace").decode(self.encoding), flush=True)

    def write_json(self, document: dict) -> bool:
        """Print the document, if JSON is what the screen is for."""
        if self.format == "json":
            self.write(json.dumps(document, indent=2))
        return self.format == "json"

    def live(self, text: str | None) -> None:
        """Redraw the live line, at most ten times a second; None wipes it, if it is there."""
        now = time.monotonic()
        if self.is_live and (self.drawn_at if text is None else now - self.drawn_at > 0.1):
            self.drawn_at = 0.0 if text is None else now
            print("\r\x1b[2K" + (text or "")[: self.width - 1], end="", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        self.live(None)
        was_live, self.is_live = self.is_live, False
        yield
        self.is_live = was_live

    def paint(self, text: str, style: str) -> str:
        """The text in a style; `write` takes it off where there is no colour."""
        return f"\x1b[{STYLES[style]}m{text}\x1b[0m"

    def bar(self, share: float, width: int) -> str:
        return ("█" if self.unicode else "#") * round(max(0.0, min(share, 1.0)) * width)

    def plot(self, scatter: Scatter, width: int, height: int = 9) -> Iterator[str]:
        """The points in braille, 2 x 4 to a character, or as *; and the diagonal."""
        across, down = (2, 4) if self.unicode else (1, 1)
        diagonal = ((height - 1 - column * height // width, column) for column in range(width))
        cells = dict.fromkeys(diagonal, "·" if self.unicode else "-")
        dots: Counter = Counter()
        for x, y in scatter.points:
            column, dx = divmod(round(x * (width * across - 1)), across)
            row, dy = divmod(round((1 - y) * (height * down - 1)), down)
            dots[row, column] |= 1 << ((0, 1, 2, 6), (3, 4, 5, 7))[dx][dy]
            cells[row, column] = chr(0x2800 + dots[row, column]) if self.unicode else "*"
        for row in range(height):
            yield "".join(cells.get((row, column), " ") for column in range(width))
        yield scatter.caption

    def drawn(self, item: str | Bar | Scatter, width: int) -> Iterable[str]:
        if isinstance(item, Scatter):
            return self.plot(item, width)
        text = item if isinstance(item, str) else item.text + self.bar(item.share, width - len(item.text))
        return wrap(text, width)

    def panel(self, title: str, lines: Iterable) -> None:
        """Print a titled panel; long lines are wrapped."""
        self.panels([(title, lines)])

    def panels(self, row: list) -> None:
        """Print panels, `(title, lines)`, side by side."""
        width, printed = (self.width + 1) // len(row) - 1, []
        bodies = [[line for item in items for line in self.drawn(item, width - 4)] for _, items in row]
        for (title, _), body in zip(row, bodies):
            body += [""] * (max(map(len, bodies)) - len(body))
            left, right, top, bottom = "  ", "  ", f"== {title} ".ljust(width, "="), ""
            if self.unicode:
                top = f"╭─ {self.paint(title, 'title')} {'─' * (width - 5 - len(title))}╮"
                left, right, bottom = "│ ", " │", f"╰{'─' * (width - 2)}╯"
            lines = (left + line + " " * (width - 4 - len(uncoloured(line))) + right for line in body)
            printed.append([top, *lines, bottom])
        self.write("\n".join(" ".join(cells).rstrip() for cells in zip(*printed)))


def uncoloured(text: str) -> str:
    """The text without its colour codes."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def wrap(line: str, width: int) -> list[str]:
    """Break a line that is too long at blanks, keeping its indentation; it may have breaks of its own."""
    if len(uncoloured(line)) <= width and "\n" not in line:
        return [line]
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    return [part for row in uncoloured(line).splitlines()
            for part in textwrap.wrap(row, width, subsequent_indent=indent, break_on_hyphens=False)]


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
            dots = (f'<circle cx="{260 * x + 3:.1f}" cy="{263 - 260 * y:.1f}" r="2.5"/>'
                    for x, y in item.points)
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


def _context(r):
    gate, second = r.config["residual_wall_time_limit_s"], readable(r.config["lambda_flops_per_second"])
    yield "estimator   {estimator} (class {class}), runner {runner}".format(**r.config)
    yield "networks    {n_mlps} of {width}x{depth}, seed {seed}, round {round}".format(**r.config)
    yield (f"budget      {readable(r.config['flop_budget'])} FLOPs each, prices {r.config['prices']}; "
           f"a residual second {second}, gate {'none' if gate is None else f'{gate:g} s'}; "
           f"wall {r.config['wall_time_limit_s']:g} s")


def _numbers(entries):
    return ", ".join(f"#{entry['mlp_index']}" for entry in entries)


def _traceback(r, entries):
    return [f"    {row}" for row in (entries[0]["traceback"] or "").splitlines()] if r.debug else []


def _error(r):
    """Equal failures together, each with the participant's line, the expectation, and the likely cause."""
    errors, groups = [entry for entry in r.per_mlp if "error_code" in entry], defaultdict(list)
    if not errors:
        return
    yield (f"predict() failed on {len(errors)} of {len(r.per_mlp)} MLPs; "
           "each is scored as zeros at the full budget.")
    for entry in errors:
        error, details = entry["error"], entry["error"]["details"]
        message = f"{error.get('type', entry['error_code'])}: {error['message']}"
        got, expected = (tuple(details.get(which, ())) for which in ("got_shape", "expected_shape"))
        shapes = [f"expected shape {expected}, got {got}"] if expected else []
        groups[message, details.get("line"), (*shapes, *details.get("cause_hints", ()))].append(entry)
    for (message, line, hints), entries in groups.items():
        yield from ("", r.screen.paint(message, "bad"))
        yield f"  on MLP {_numbers(entries)}" + (f", at {line}" if line else "")
        yield from (f"  {hint}" for hint in hints)
        yield from _traceback(r, entries)
    if not r.debug:
        yield from ("", "Add --debug for tracebacks, or --fail-fast to stop at the first with Python's own.")


def _exhausted(r):
    limits = (f"the FLOP budget of {readable(r.config['flop_budget'])}",
              f"the wall-clock limit of {r.config['wall_time_limit_s']} s",
              f"the gate of {r.config['residual_wall_time_limit_s']} s on time outside fnp",
              "the budget, by FLOPs and residual time together")
    for flag, limit in zip(FLAGS, limits):
        hit = [entry for entry in r.per_mlp if entry[flag]]
        if hit:
            yield f"{flag} = true on {len(hit)} MLPs ({_numbers(hit)}): over {limit}."
            yield from _traceback(r, hit)
    if any(r.results["failure_breakdown"][flag] for flag in FLAGS):
        yield "Their predictions were replaced by zeros, at multiplier 1."


def _truth(r):
    corrected = r.results["corrected"]
    yield f"{r.per_mlp[0]['truth_n_samples']:,} samples a network ({r.config['n_samples']})"
    yield ("its noise adds {noise_floor:.2g} to the raw score (taken out) and blurs it by "
           "{standard_error:.2g} (standard error)".format(**corrected))
    if corrected["growth_needed"] is None:
        yield "the score cannot be told from zero yet: raise --n-samples or --max-work"
    elif corrected["growth_needed"] > 1:
        yield "an error of {:.2%} would take {growth_needed:.2g} times as many samples".format(
            r.config["precision"], **corrected)


def _flops(r):
    breakdown = r.results["breakdowns"]["estimator"]
    if not breakdown:
        return
    operations = add_breakdowns([row["operations"] for row in breakdown["by_namespace"].values()]) or {}
    paid = [item for item in operations.items() if item[1]["flop_cost"]]
    for name, row in sorted(paid, key=lambda item: -item[1]["flop_cost"])[:8]:
        share = row["flop_cost"] / breakdown["flops_used"]
        yield Bar(f"{name.removeprefix('random.'):<26}{share:>6.1%}  {readable(row['flop_cost']):>10} FLOPs  "
                  f"{row['calls']:>7,} calls  ", share)
    yield ("wall {:.3f} s: {:.3f} s in NumPy, {:.3f} s counting, {:.3f} s residual"
           .format(*(breakdown[name] for name in TIMES)))


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


def _profile(r):
    """The participant's source with the bill of every line, and the bill by namespace and operation."""
    if "profile" not in r.results:
        return
    lines, used = r.results["profile"]["lines"], max(1, r.results["profile"]["flops_used"])
    columns = "{:>4} {:>7} {:>8} {:>6} {:<4} {:>6} {:>7} {:<5} {}".format

    def listed(row: dict, cumulative: str = "") -> str:
        dtypes = sorted({np.dtype(c["dtype"]).str[1:] for c in row["charges"] if c["dtype"]})
        share = row["flops_used"] / used
        return columns(row["line"] or "", f"{row['calls']:,}", readable(row["flops_used"]), f"{share:.1%}",
                       r.screen.bar(share, 4), cumulative, f"{row['cumulative_time_s'] * 1e3:,.1f}",
                       "+".join(dtypes), row["source"])[:r.screen.width - 4]

    yield columns("line", "calls", "FLOPs", "share", "", "cumul.", "ms", "dtype", "source")
    for file, rows in itertools.groupby(lines, lambda row: row["file"]):
        yield r.screen.paint(file, "strong")
        yield from (listed(row, f"{row['cumulative_flops_used'] / used:.1%}") for row in rows)
    yield ""
    yield columns("", "calls", "FLOPs", "share", "", "", "ms", "dtype", "namespace: operation")
    charges = merged(itertools.chain(*[row["charges"] for row in lines]), "namespace", "operation", "dtype")
    for c in sorted(charges, key=lambda c: -c["flops_used"])[:12]:
        yield listed(c | {"line": 0, "source": f"{c['namespace'] or '-'}: {c['operation']}", "charges": [c],
                          "cumulative_time_s": c["time_s"]})
    yield f"sum over lines: {sum(row['flops_used'] for row in lines):,} of {used:,} FLOPs billed"


def _mlp(r):
    """Each network's score, bill and flags, and its all_layers_mse early against deep."""
    if not r.debug:
        return
    columns = "{:>4} {:>10} {:>10} {:>15} {:>11} {:>10}  {}".format
    yield columns("MLP", "score", "FLOPs", "all_layers_mse", "early half", "deep half", "flags")
    for entry in r.per_mlp:
        layers = entry["per_layer_mse"]
        half = (len(layers) + 1) // 2
        flags = [flag for flag in FLAGS if entry[flag]] or [entry.get("error_code", "-")]
        yield columns(entry["mlp_index"], f"{entry['adjusted_final_layer_score']:.3e}",
                      readable(entry["flops_used"]), f"{entry['all_layers_mse']:.3e}",
                      f"{np.mean(layers[:half]):.2e}", f"{np.mean(layers[-half:]):.2e}", flags[0])


def sampling_score(results: dict, config: dict) -> tuple[float, int]:
    """The score of plain sampling at the estimator's own multiplier, and its number of samples.

    From the truth's single-sample variance; a sample costs `2 width^2 + 2 width` FLOPs a layer, and normals.
    """
    width, depth, multiplier = config["width"], config["depth"], results["mean_score_multiplier"]
    cost = depth * (2 * width**2 + 2 * width) + 16 * width
    n_samples = max(1, int(multiplier * config["flop_budget"] / cost))
    variance = float(np.mean([entry["sampling_variance"] for entry in results["per_mlp"]]))
    return multiplier * variance / n_samples, n_samples


def zeros_score(results: dict) -> float:
    """The score of predicting zeros, at the lowest multiplier."""
    errors = [entry["zeros_final_layer_mse"] for entry in results["per_mlp"]]
    return MULTIPLIER_FLOOR * float(np.mean(errors))


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


def _against(r):
    if not r.against:
        return
    difference, rival = r.against["difference"], r.against["results"]
    yield r.against["verdict"]
    yield (f"{r.against['estimator']}: corrected score {rival['corrected']['score']:.4g}, multiplier "
           f"{rival['mean_score_multiplier']:.3g}, failed {rival['n_failed_mlps']}; worse on "
           f"{sum(d < 0 for d in difference['per_mlp'])} of {len(difference['per_mlp'])}")
    parts = (f"{name} {'not known' if part is None else f'{part:.2g}'}"
             for name, part in difference["parts"].items())
    yield (f"standard error {difference['standard_error']:.2g}: {', '.join(parts)}"
           + " (--repeats 3 tells it apart)" * (difference["n_repeats"] == 1))


def _score(r):
    results, corrected, estimator = r.results, r.results["corrected"], r.config["estimator"]
    score, (low, high) = corrected["score"], corrected["truth_interval"]
    yield (r.screen.paint(f"{score:.4g}", "strong") + "  corrected score (lower is better); 95% interval "
           f"{low:.3g} to {high:.3g} by truth noise")
    if corrected["network_interval"]:
        yield "on other networks of this shape: {:.3g} to {:.3g}".format(*corrected["network_interval"])
    yield "raw: " + ", ".join(f"{name} {results[name]:.4g}" for name in (
        "adjusted_final_layer_score", "final_layer_mse", "all_layers_mse"))
    yield ("best MLP {best_mlp_adjusted_final_layer_score:.3g}, "
           "worst {worst_mlp_adjusted_final_layer_score:.3g}; multiplier {mean_score_multiplier:.3g} "
           "(C/B {mean_compute_utilization:.2%}), failed {n_failed_mlps} of {n}"
           .format(**results, n=len(r.per_mlp)))
    sampled, n = sampling_score(results, r.config)
    for rival, theirs in (("zeros", zeros_score(results)),
                          (f"sampling at your multiplier ({n:,} samples)", sampled)):
        ratio = f", by {max(score, theirs) / min(score, theirs):.3g}x" if score > 0 else ""
        verb, style = ("beats", "good") if score < theirs else ("loses to", "bad")
        yield r.screen.paint(f"{verb} {rival} ({theirs:.3g}){ratio}", style)
    yield "Next: whest " + (f"run {estimator} --n-mlps 3 --runner local --debug"
                            if results["failure_breakdown"]["error"] else f"checklist {estimator}")


PANELS = {      # title: the lines of a report, of which a panel without any is left out
    "Run context": _context,
    "Estimator Errors": _error,
    "Exhausted limits": _exhausted,
    "Truth": _truth,
    "Where the FLOPs went": _flops,
    "FLOPs by line": _profile,
    "Error by layer": lambda r: bars(r.results["per_layer_mse"], 1, log=True),
    "Score by MLP": lambda r: bars([entry["adjusted_final_layer_score"] for entry in r.per_mlp], 0),
    "Predicted vs true": lambda r: [scatter(**r.results["final_layer_of_mlp_0"])],
    "Each MLP": _mlp,
    "Final score": _score,
    "Against the rival": _against,
}


def report_run(document: dict, screen: Screen, debug: bool = False, html_path: str | None = None) -> None:
    """Print the report of a scored run or its document, and write the page. Misuse where that cannot be."""
    results = document["results"]
    r = types.SimpleNamespace(results=results, per_mlp=results["per_mlp"], config=document["run_config"],
                              against=document.get("against"), screen=screen, debug=debug)
    panels = [(title, lines) for title, draw in PANELS.items() if (lines := list(draw(r)))]
    if html_path:
        try:
            with replacing(Path(html_path)) as part:
                part.write_text(page(f"whestbench: {r.config['estimator']}", panels), "utf-8", "replace")
        except OSError as exc:
            raise Misuse(f"--html {html_path}: {exc.strerror}; choose another place.") from exc
    if screen.write_json(document):
        return
    for has_text, group in itertools.groupby(panels, lambda panel: str in map(type, panel[1])):
        row, across = list(group), 1 if has_text else max(1, screen.width // 26)
        for first in range(0, len(row), across):
            screen.panels(row[first:first + across])


def report_checks(title: str, checks: list[dict], screen: Screen) -> bool:
    """Print what `validate` or `doctor` found, or its document; tell whether no check failed."""
    ok = all(check["ok"] is not False for check in checks)
    if not screen.write_json({"ok": ok, "checks": checks, "whestbench_version": __version__}):
        labels = {True: screen.paint("OK  ", "good"), False: screen.paint("FAIL", "bad"), None: "NOTE"}
        screen.panel(title, (f"{labels[c['ok']]}  {c['check']}: {c['detail']}" for c in checks))
    return ok


# ======================================================================================
# Checklist
#
# The debugging page answers itself. Evidence is gathered once: a validation, a scored and profiled
# run, and a run under a Watch, which looks at the values. A question is a function of the evidence
# that yields its answer, in lines of text, and its Findings; QUESTIONS, at the end, is the page.
# ======================================================================================

SEVERITIES = {1: "SPOILS", 2: "COSTS", 3: "NOTE"}      # the score; what is merely worth knowing
CALL_RESIDUAL = 23e-6           # seconds of residual time that one call leaves with flopscope 0.12.4
UNCHANGED = "use the array itself: it cannot be written to; x[:, None] and squeeze are free"
FREE_INSTEAD = {        # of what is paid for; UNCHANGED holds for calls that change nothing
    "0.12": dict.fromkeys("copy array astype require reshape ravel flatten".split(), UNCHANGED)
    | {"tile": "broadcast_to is free"},
    "0.7": {"array": "asarray is free", "tile": "broadcast_to is free", "take": "indexing, x[i], is free",
            "compress": "indexing, x[mask], is free", "append": "hstack is free",
            "stack": "row_stack is free", "vstack": "row_stack is free", "copyto": "x[...] = y is free"},
}


def arrays_in(value: Any) -> Iterator[np.ndarray]:
    """Every array in arguments, also in lists, tuples and dictionaries."""
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from arrays_in(item)


class Instrument(ast.NodeTransformer):
    """Hands all that a module calls, and the functions of its operators, to builtins._whest_watch first."""

    def visit_Call(self, node):
        self.generic_visit(node)
        watch = ast.Name("_whest_watch", ast.Load())
        node.func = ast.copy_location(ast.Call(watch, [node.func], []), node)
        return ast.fix_missing_locations(node)

    def visit_BinOp(self, node):
        name = type(node.op).__name__.lower()
        name = {"mult": "mul", "matmult": "matmul", "div": "truediv"}.get(name, name)
        function = ast.parse(f"__import__('operator').{name}", mode="eval").body
        call = ast.copy_location(ast.Call(function, [node.left, node.right], []), node)
        return self.visit_Call(call) if hasattr(operator, name) else self.generic_visit(node)


class Watch(Profile):
    """A Profile that looks at values too: `notes[kind][place, operation, detail]` counts calls and FLOPs.

    Of plain NumPy it sees the functions, ufuncs, methods and binary operators that the participant's own
    files use on uncounted arrays in predict(); not what other libraries and compiled code do.
    """

    def __init__(self, home: str | os.PathLike):
        super().__init__(home)
        self.notes: dict[str, dict[tuple, Counter]] = defaultdict(lambda: defaultdict(Counter))
        self.first: dict[tuple, tuple] = {}         # place of each operation on values not seen before
        self.end: tuple | None = None               # place of the last operation
        self.products: list[tuple] = []             # each: its uses, the note if they are of its diagonal

    def attach(self, context: BudgetContext) -> None:
        super().attach(context)
        context.book, context.observer = copy.copy(context.book), self.observe

    @contextlib.contextmanager
    def instrumented(self) -> Iterator[None]:
        """Inside, the participant's modules are loaded instrumented; their lines stay."""
        from unittest import mock
        loader = importlib.machinery.SourceFileLoader
        original = loader.get_code

        def get_code(module, name):
            if not self.owns(module.path):
                return original(module, name)
            tree = Instrument().visit(ast.parse(module.get_data(module.path)))
            return compile(tree, module.path, "exec", dont_inherit=True)

        with (mock.patch.object(loader, "get_code", get_code),
              mock.patch.object(builtins, "_whest_watch", self.watched, create=True)):
            yield

    def place(self) -> tuple | None:
        """(file, line) of the participant's innermost line."""
        stack = self.stack(sys._getframe())
        return (stack[0].removeprefix(self.home), stack[1]) if stack else None

    def note(self, kind, name, flops, detail="") -> None:
        self.notes[kind][self.place(), name, detail].update(calls=1, flops=flops)

    def watched(self, function):
        """The function, or, if it is NumPy's or an operator, one that notes what it does to plain arrays."""
        owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
        kind = type(function if owner is None else owner)
        package, *space = str(getattr(function, "__module__", None) or kind.__module__).split(".")[:2]
        if package not in ("numpy", "_operator") or getattr(function, "__globals__", None) is globals():
            return function
        name = ".".join([*space, _OPERATORS.get(name, name)])
        bound = (owner,) if isinstance(owner, np.ndarray) else ()

        def call(*args, **kwargs):
            result = function(*args, **kwargs)
            arrays = list(arrays_in((bound, args, kwargs, result)))
            plain = not any(isinstance(a, FlopscopeArray) for a in arrays)
            if _thread.active and plain and any(a.ndim for a in arrays):
                with contextlib.suppress(Exception):        # what has no price is no work
                    flops, _ = self.context.book.charge(name, (*bound, *args), kwargs, result)
                    self.note("uncounted", name, flops)
            return result
        return call

    def observe(self, name, args, kwargs, result, flops):
        """Note what there is to say of a counted call; the context's observer."""
        place, arrays = self.place(), list(arrays_in((args, kwargs)))
        self.end = place or self.end
        self.observe_uses(name, args, arrays)
        if not (place and flops):
            return
        if name in CONTRACTIONS and len(args) > 1 + (name == "einsum"):
            self.observe_product(name, args, kwargs, result, flops)
        free = FREE_INSTEAD[self.context.book.name].get(name)
        if free and (free != UNCHANGED or arrays and arrays[0].dtype == result.dtype
                     and [n for n in arrays[0].shape if n > 1] == [n for n in result.shape if n > 1]):
            self.note("moved", name, flops, free)
        if not (name in _WRITERS or name.startswith("random.") or "out" in kwargs):
            others = [not isinstance(a, np.ndarray) and bare(a) for a in (*args, *kwargs.items())]
            key = name, fingerprint(*map(bare, arrays)), repr(others)
            if first := self.first.get(key):
                where = "in a loop" if first == place else f"first on line {first[1]}"
                self.note("repeated", name, flops, where)
            self.first.setdefault(key, place)

    def observe_product(self, name, args, kwargs, result, flops):
        """Note products of square matrices and of zeros; have the uses of the result observed."""
        operands = [np.asarray(bare(a)) for a in args[name == "einsum":]]
        shapes = [a.shape for a in operands]
        if min(map(len, shapes)) > 1 and len({n for shape in shapes for n in shape}) == 1:
            self.note("square", name, flops)
        inputs = product_of(name, args, kwargs, self.context.book.name)[3].split("->")[0].split(",")
        alive = {}          # by subscript: where the operands are not all zero
        for subscripts, a in zip(inputs, operands):
            for axis, label in enumerate(subscripts if len(set(subscripts)) == a.ndim else ""):
                used = (a != 0).any(axis=tuple({*range(a.ndim)} - {axis}))
                alive[label] = alive.get(label, True) & used
        if zeros := int(flops * (1 - math.prod(float(np.mean(used)) for used in alive.values()))):
            self.note("zeros", name, zeros)
        if isinstance(result, FlopscopeArray) and result.ndim > 1 and min(result.shape[-2:]) > 1:
            result.uses = set()
            spared = flops - flops // max(result.shape[-2:])
            self.products.append((result.uses, (self.place(), name, ""), spared))

    def observe_uses(self, name, args, arrays):
        """Remember of each product in use whether it is for more than its diagonal."""
        diagonal = (name.removeprefix("linalg.") in ("diag", "diagonal", "trace")
                    or name == "einsum" and args[0].replace(" ", "").split("->")[0] == "ii")
        for a in arrays:
            product = a
            while not hasattr(product, "uses") and isinstance(product.base, np.ndarray):
                product = product.base
            if hasattr(product, "uses"):
                on_it = a.ndim == product.ndim - 1 and a.strides[-1] == sum(product.strides[-2:])
                product.uses.add("diagonal" if diagonal and a.shape == product.shape or on_it else "all")


@dataclass
class Finding:
    """What to change: `place` is (file, line), `flops` of one network, `share` (0 to 1) that of the score."""

    severity: int
    said: str
    change: str
    place: tuple | None = None
    share: float = 1.0
    flops: float = 0


def gather_evidence(options: Any, rules: Round, screen: Screen) -> Any:
    """All that the questions ask about. Raises WhestError where nothing can be run."""
    path, class_name, seed = estimator_path(options), options.class_, options.seed
    profile, watch = Profile(Path(path).parent), Watch(Path(path).parent)
    e = types.SimpleNamespace(rules=rules, home=profile.home, until="")
    e.config = {"estimator": path, "seed": seed} | asdict(rules)
    screen.live("validate")
    e.checks = list(validation_checks(options, rules))
    screen.live("predict")
    suite = suite_of(options, rules, 3)
    with LocalRunner(path, class_name, rules, seed, profile=profile) as runner:
        e.class_found, e.outcomes = runner.class_found, [runner.predict(mlp) for mlp in suite]
        e.failed = [outcome for outcome in e.outcomes if outcome.failed]
        if not e.failed:
            e.reseeded = [[runner.predict(replace(mlp, seed=mlp.seed + k)).prediction for k in (1, 2)]
                          for mlp in suite]
            few = [n for n in SAMPLE_COUNTS if 2 * n * rules.depth * rules.width**2 <= 2**38]     # seconds
            fresh = load_estimator(path, class_name)
            e.table = convergence_tables([fresh], suite[0], rules.flop_budget, few)[0]
    e.truths = grow_truths(suite, [e.outcomes], rules, options, truth_progress(screen))
    e.results = score_suite(suite, e.outcomes, e.truths, rules, options.precision)
    e.score, e.spent = e.results["corrected"]["score"], e.results["mean_effective_compute"]
    e.propagated = [np.asarray(mean_propagation(mlp, DEFAULT_BUDGET)) for mlp in suite]
    e.lines = lines_of(e.outcomes)
    e.bill = max(1, sum(outcome.flops_charged for outcome in e.outcomes) / len(suite))
    screen.live("watch")
    untimed = replace(rules, lambda_flops_per_second=0.0, residual_wall_time_limit=None)
    try:
        with watch.instrumented(), LocalRunner(path, class_name, untimed, seed, profile=watch) as runner:
            outcome = runner.predict(next((mlp for mlp, o in zip(suite, e.outcomes) if o.failed), suite[0]))
        if outcome.failed:
            e.until = f", until predict() failed ({outcome.flag or outcome.error['message']})"
    except WhestError as exc:
        e.until = f", as it cannot be watched ({exc})"
    for uses, key, spared in watch.products:
        if uses == {"diagonal"}:
            watch.notes["diagonal"][key].update(calls=1, flops=spared)
    e.notes, e.end = watch.notes, watch.end
    return e


def waste(e, flops, said, change, place, unseen=0.0) -> Iterator[Finding]:
    """A Finding about FLOPs of a network, if they cost half a percent of the score or are 1% of the budget.

    `unseen`: what they cost on the real grader and not here. Under the multiplier's floor none is at stake.
    """
    spent, floor = e.spent + unseen, MULTIPLIER_FLOOR * e.rules.flop_budget
    share = 1 - max(floor, spent - flops) / max(floor, spent)
    if share >= 0.005 or flops >= 0.01 * e.rules.flop_budget:
        under = "" if share else " (free under the floor, but they would buy accuracy)"
        yield Finding(2 if share >= 0.005 else 3, said + under, change, place, share, flops)


def costliest(e, amount: str) -> tuple | None:
    """(file, line) of the line with most of an amount."""
    row = max(e.lines, key=lambda row: row[amount], default=None)
    return row and (row["file"], row["line"])


def ask_failures(e, kind: str, it_is: str):
    """On how many networks predict() failed so; a Finding for each group of equal failures."""
    scores = [mlp["adjusted_final_layer_score"] for mlp in e.results["per_mlp"]]
    groups = defaultdict(list)
    for i, o in enumerate(e.outcomes):
        if o.flag:
            failure = "limit", o.flag, "spend less"
        elif o.failed:
            said = f"{o.error['type']}: {o.error['message'].rstrip('.')}"
            hint = o.error["details"].get("hint")       # of predictions that were refused
            failure = (("finite" if "finite" in said else "shape", said, hint) if hint else
                       ("raised", said, "see whest run --debug"))
        if o.failed and failure[0] == kind:
            groups[(*failure, o.line)].append(i)
    n = sum(map(len, groups.values()))
    yield f"{it_is} on {n or 'none'} of {len(scores)} MLPs"
    for (_, said, change, line), members in groups.items():
        file, _, number = line.rpartition(", line ")
        place = (file, int(number)) if file else costliest(e, "flops_used") if kind == "limit" else e.end
        which = ", ".join(f"#{i}" for i in members)
        yield Finding(1, f"{said} on {len(members)} MLPs ({which}), scored as zeros", change, place,
                      sum(scores[i] for i in members) / sum(scores))


def ask_class(e):
    """Which class the loader took."""
    yield "yes" if e.class_found == "Estimator" else f"it is {e.class_found}, which the loader took"


def ask_validation(e):
    """What `whest validate` finds; a line that draws at random, where there is one."""
    bad = {c["check"]: f"{c['check']}: {c['detail']}" for c in e.checks[::-1] if not c["ok"]}
    yield "; ".join(bad.values()) or f"all {len(e.checks)} pass"
    if "determinism" in bad and not e.failed:
        draws = [(row["file"], row["line"]) for row in e.lines
                 if any("random" in charge["operation"] for charge in row["charges"])]
        yield Finding(3, bad["determinism"], "draw from default_rng(mlp.seed) alone",
                      draws[0] if len(draws) == 1 else None, 0.0)


def ask_zeros(e):
    """Whether predicting zeros scores better."""
    theirs = zeros_score(e.results)
    yield f"{'yes' if e.score > theirs else 'no'}: it scores {theirs:.3g}, you {e.score:.3g}"
    if e.score > theirs:
        yield Finding(1, f"zeros scores {e.score / theirs:.3g} times better: worse than guessing zero",
                      "look for a wrong sign, scale, transpose or layer", e.end, 1 - theirs / e.score)


def ask_sampling(e):
    """Whether plain sampling for the same FLOPs scores better."""
    (paid, n_samples), multiplier = sampling_score(e.results, e.config), e.results["mean_score_multiplier"]
    same = paid * n_samples / max(1.0, n_samples * e.spent / (multiplier * e.rules.flop_budget))
    yield (f"{'yes' if e.score > same else 'no'}: with your {readable(e.spent)} FLOPs it scores {same:.3g}, "
           f"you {e.score:.3g}; with all that the multiplier {multiplier:.3g} pays for, {paid:.3g}")
    if e.score > 2 * paid:
        change = ("find what costs more than it brings, or sample instead" if multiplier > MULTIPLIER_FLOOR
                  else "spend the first tenth of the budget, which is free, if only on samples")
        yield Finding(2 if e.score > 2 * same else 3, f"sampling scores {e.score / paid:.3g} times better "
                      "at your multiplier", change, e.end, 1 - paid / e.score)


def ask_layers(e):
    """The error of every layer, its growth, and where it leaves mean propagation's behind."""
    errors = [(p - truth.mean) ** 2 for p, truth in zip(e.propagated, e.truths)]
    mine, theirs = e.results["per_layer_mse"], np.mean(errors, axis=(0, 2)).tolist()
    growth = [None, *(b / a if a else None for a, b in itertools.pairwise(mine))]
    rows = [dict(zip(("mse", "baseline_mse", "growth"), row)) for row in zip(mine, theirs, growth)]
    yield {"layers": rows}
    logs = [math.log10(max(mse, 1e-12)) for mse in mine]
    for i, (row, log) in enumerate(zip(rows, logs), 1):
        grows = f"x{row['growth']:.3g}" if row["growth"] else ""
        yield Bar(f"layer {i:>3} {row['mse']:9.2e} {grows:>9} (mean_propagation {row['baseline_mse']:.2e}) ",
                  (log - min(logs) + 0.3) / (max(logs) - min(logs) + 0.3))
    i = max((i for i, (m, b) in enumerate(zip(mine, theirs), 1) if m <= 2 * b + 1e-12), default=0)
    if i < len(mine):           # the first layer from which on none is as good
        yield Finding(2, f"from layer {i + 1} on your MSE is over twice mean_propagation's: "
                      f"{mine[i]:.3g}, not {theirs[i]:.3g}",
                      f"compare what you compute at layer {i + 1} with mean_propagation",
                      e.end, 1 - theirs[-1] / mine[-1])


def ask_anatomy(e):
    """How much of the final error is the estimator's randomness, an offset, a factor, and the rest."""
    runs = [[outcome.prediction, *again] for outcome, again in zip(e.outcomes, e.reseeded)]
    if any(prediction is None for each in runs for prediction in each):
        yield "not measured: predict() failed with another mlp.seed"
        return
    last, truth = np.array(runs, np.float64)[:, :, -1], np.array([t.mean[-1] for t in e.truths])
    mse, error = ((last - truth[:, None]) ** 2).mean(), last.mean(axis=1) - truth
    own = min(1.0, last.var(axis=1, ddof=1).mean() / mse)
    scale, offset = (error * truth).sum() / (truth ** 2).sum(), error.mean()
    rest = error - np.polynomial.Polynomial.fit(truth.ravel(), error.ravel(), 1)(truth)
    shares = {"random": own, "offset": offset ** 2 / mse, "scale": scale ** 2 * (truth ** 2).mean() / mse,
              "rest": max(0.0, (rest ** 2).mean() / mse - own / last.shape[1])}
    yield {part: float(share) for part, share in shares.items()}
    named = {f"constant offset of {offset:+.3g}": shares["offset"],
             f"common factor of {1 + scale:.4g}": shares["scale"]}
    yield (f"{own:.0%} is your own randomness (3 values of mlp.seed), {1 - own:.0%} is always there; "
           + "".join(f"a {text} explains {share:.0%}, " for text, share in named.items())
           + f"and {shares['rest']:.0%} is neither")
    text, share = max(named.items(), key=lambda item: item[1])
    if share > 0.75 and own < 0.5:
        yield Finding(2, f"{share:.0%} of the final error is a {text}", "look for where it comes in",
                      e.end, float(share))


def ask_matmul(e):
    """The operations that cost most, and whether they are products of square matrices."""
    charges = merged(itertools.chain(*[row["charges"] for row in e.lines]), "operation")
    top = sorted(charges, key=lambda charge: -charge["flops_used"])[:4]
    yield ", ".join(f"{charge['operation']} {charge['flops_used'] / len(e.outcomes) / e.bill:.1%}"
                    for charge in top) or "nothing was charged"
    squares = sorted((note["flops"], place) for (place, *_), note in e.notes["square"].items())
    flops = sum(flops for flops, _ in squares)
    if flops > 0.9 * e.bill:
        found = waste(e, flops, f"{flops / e.bill:.0%} of the bill multiplies width x width matrices by such",
                      "consider diagonal variance instead of full covariance", squares[-1][1])
        yield from (finding for finding in found if finding.share)      # under the floor it is well spent


def ask_notes(e, kind: str, what: str, said: str, change: str):
    """What the watch noted of a kind, and a Finding for each place; `said` and `change` are templates."""
    total: Counter = sum(e.notes[kind].values(), Counter())
    yield (f"{total['calls'] or 'no'} {what}, {readable(total['flops'])} FLOPs, "
           f"{total['flops'] / e.bill:.1%} of the bill{e.until}")
    for (place, name, detail), note in e.notes[kind].items():
        facts, flops = {"name": name, "calls": note["calls"], "detail": detail}, note["flops"]
        if kind != "uncounted":
            yield from waste(e, flops, said.format(**facts), change.format(**facts), place)
        elif flops > max(0.1 * total["flops"], 0.01 * e.bill):
            yield Finding(1, said.format(**facts), change.format(**facts), place, 1.0, flops)


def ask_float64(e):
    """What float64 costs where float32 would do."""
    for row in e.lines:
        row["float64"] = sum(charge["flops_used"] for charge in row["charges"]
                             if charge["dtype"] in ("float64", "complex128")
                             and not charge["operation"].startswith("stats."))      # which always are
    flops = sum(row["float64"] for row in e.lines) // 2 // len(e.outcomes)
    rates = PRICES[e.rules.prices].immutable           # the book that charges rates
    yield (f"float64 costs {readable(flops)} FLOPs too many, {flops / e.bill:.1%} of the bill" if rates else
           f"no: book {e.rules.prices} charges dtypes alike")
    yield from waste(e, flops, "float64 doubles the price of what float32 could do, most at this line",
                     "make arrays and constants float32", costliest(e, "float64"))


def ask_calls(e):
    """What the number of calls would cost on the real grader."""
    calls = sum(row["calls"] for row in e.lines) / len(e.outcomes)
    seconds, gate = calls * CALL_RESIDUAL, e.rules.residual_wall_time_limit
    cost = seconds * e.rules.lambda_flops_per_second
    yield (f"{calls:,.0f} a network: on the real grader about {seconds:.3g} s of residual time, "
           + (f"as much as {readable(cost)} FLOPs" if cost else "free in this round")
           + (f", and the gate is {gate:g} s" if gate else ""))
    change, place = "work on whole arrays instead of in Python loops", costliest(e, "calls")
    if gate and seconds > gate:
        yield Finding(1, f"{calls:,.0f} calls leave {seconds:.2g} s there, past the gate", change, place)
    else:
        yield from waste(e, cost, f"{calls:,.0f} calls cost that much there", change, place, cost)


ALL, ANY = True, False      # whether the question is about the predictions of all networks
QUESTIONS = {               # the page: {tier: (..., the question, what answers it, with which arguments)}
    "Pure-Python inner loop (fastest iteration)": (
        (ALL, "FLOPs-vs-MSE convergence table", lambda e: table_lines(e.table)),
    ),
    "Sanity checks (2 minutes)": (
        (ANY, "Output shape: does predict() return shape (mlp.depth, mlp.width)?",
         ask_failures, "shape", "it does not"),
        (ANY, "Finite values: are all values finite?", ask_failures, "finite", "they are not"),
        (ANY, "Class name: is your class named Estimator?", ask_class),
        (ANY, "Determinism, and the other checks of whest validate", ask_validation),
    ),
    "Correctness checks (5 minutes)": (
        (ANY, "Did predict() raise?", ask_failures, "raised", "it did"),
        (ALL, "Does zeros beat you?", ask_zeros),
        (ALL, "Does sampling with the same FLOPs beat you?", ask_sampling),
        (ANY, "Is budget_exhausted true?", ask_failures, "limit", "a limit is exhausted"),
        (ALL, "Are errors concentrated at deep layers?", ask_layers),
        (ALL, "What is the final layer's error made of?", ask_anatomy),
    ),
    "Optimization checks (10+ minutes)": (
        (ANY, "Is matmul dominant?", ask_matmul),
        (ANY, "Redundant computation?", ask_notes, "repeated", "repeated operations",
         "{name} on the same values again, {calls:,} times, {detail}", "compute it once and keep the result"),
        (ANY, "Free operations wasted?", ask_notes, "moved", "copies, casts and reshapes that could be free",
         "{calls:,} paid calls of {name}", "{detail}"),
        (ANY, "A full product for its diagonal?", ask_notes, "diagonal", "products for their diagonal",
         "{calls:,} results of {name}, of which only the diagonal is used",
         "fnp.sum(a * b.T, axis=-1) is the diagonal of a @ b"),
        (ANY, "Work on rows or columns that are zero?", ask_notes, "zeros", "products of zeros",
         "{name} on rows or columns that are all zero, {calls:,} times", "leave them out before the product"),
        (ANY, "float64 where float32 would do?", ask_float64),
        (ANY, "Work done in plain NumPy?", ask_notes, "uncounted", "operations seen on plain arrays",
         "np.{name} on plain arrays, {calls:,} calls, uncounted: the rules forbid it",
         "fnp.{name} counts, and so do operators on fnp arrays"),
        (ANY, "Many small calls?", ask_calls),
    ),
}


def answered(e, needs_all: bool, question: str, ask: Callable, *arguments: str) -> dict:
    """A question's entry in the document: the lines of its answer, what was measured, and its findings."""
    said = ["not measured: predict() failed"] if needs_all and e.failed else list(ask(e, *arguments))
    found, findings = [each for each in said if isinstance(each, Finding)], []
    for f in sorted(found, key=lambda f: (f.severity, -f.share, -f.flops)):
        file, line = f.place or ("", 0)
        findings.append({**asdict(f), "flops": int(f.flops), "file": file, "line": line,
                         "source": linecache.getline(e.home + file, line).strip()})
    return {"question": question, "answer": [each for each in said if isinstance(each, (str, Bar))],
            "data": next((each for each in said if isinstance(each, dict)), {}), "findings": findings}


def checklist_lines(questions: list[dict], screen: Screen) -> Iterator[str | Bar]:
    """Each question with its answer and its findings."""
    styles = {0: "good", 1: "bad", 2: "bad", 3: "strong"}
    for asked in questions:
        worst = min([f["severity"] for f in asked["findings"]], default=0)
        measured = not str(asked["answer"][0]).startswith("not measured")
        label = SEVERITIES.get(worst, "OK" if measured else "-")
        yield screen.paint(f"{label:<7}", styles[worst]) + screen.paint(asked["question"], "strong")
        for line in asked["answer"]:
            yield Bar("       " + line.text, line.share) if isinstance(line, Bar) else "       " + line
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
# flags that it takes, and plac reads them as a function's signature.
# ======================================================================================


def at_least(least: float, kind: type, name: str) -> Callable:
    """A parser of numbers like 6.8e10, 2**41 or 68_000_000_000; what they are not is an "invalid `name`"."""
    def number(text: str) -> float:
        base, _, exponent = text.partition("**")
        value = float(base) ** float(exponent or 1)
        if not least <= value < math.inf or kind(value) != value:
            raise ValueError
        return kind(value)
    number.__name__ = name
    return number


INTEGER = at_least(1, int, "positive integer")
POSITIVE = at_least(5e-324, float, "positive number")
NATURAL = at_least(0, int, "nonnegative integer")
RATE = at_least(0, float, "nonnegative number")


def auto_or_positive_integer(text: str) -> int | None:
    """A number of samples; None for auto."""
    return None if text == "auto" else INTEGER(text)


FILE, FLAG = object(), object()     # types of the positional argument, and of an option that takes no value
OPTIONS: dict[str, tuple] = {       # name: (default, help, type, metavar or choices)
    "file": (None, "estimator file", FILE, "FILE"),
    "estimator": (None, "the same as the positional FILE", str, "FILE"),
    "class_": (None, "estimator class, where the file has several", str, "NAME"),
    "baseline": (None, "a baseline beside it", str, list(BASELINES)),
    "round": (DEFAULT_ROUND, f"contest round whose rules apply [{DEFAULT_ROUND}]", str, list(ROUNDS)),
    "width": (None, "neurons a layer [the round's]", INTEGER, "N"),
    "depth": (None, "layers [the round's]", INTEGER, "N"),
    "flop_budget": (None, "FLOP budget B of one network [the round's]", INTEGER, "FLOPS"),
    "prices": (None, "price book [the round's]", str, list(PRICES)),
    "lambda_flops_per_second": (None, "price of a residual second [the round's]", RATE, "RATE"),
    "wall_time_limit": (None, "seconds for one predict() [the round's]", POSITIVE, "SECONDS"),
    "residual_wall_time_limit": (None, "seconds of predict() outside fnp [the round's]", POSITIVE, "SECONDS"),
    "no_residual_wall_time_limit": (False, "lift that gate", FLAG, None),
    "setup_timeout": (None, "seconds for loading and setup() [5]", POSITIVE, "SECONDS"),
    "n_mlps": (None, "networks in the suite [10, or all of the dataset; checklist 3]", INTEGER, "N"),
    "n_samples": (None, "truth samples a network, or auto: as many as the score needs [auto]",
                  auto_or_positive_integer, "N"),
    "precision": (0.02, "of the score that auto aims at [0.02]", POSITIVE, "SHARE"),
    "max_work": (2**40, "dense FLOPs of sampling a network that auto may spend [2**40]", POSITIVE, "FLOPS"),
    "seed": (0, "of the suite's networks [0]", NATURAL, "N"),
    "max_threads": (None, "threads of NumPy and of the truth [all cores]", INTEGER, "N"),
    "repeats": (None, "of a measurement [5]; --against: of predict(), under other seeds [1]", INTEGER, "N"),
    "html": (None, "write the report as a page, too", str, "FILE"),
    "against": (None, "compare with a file or baseline, on the same networks and truths", str, "RIVAL"),
    "runner": ("local", "local (or inprocess): here, for debuggers; subprocess (or server): isolated [local]",
               str, ["local", "inprocess", "subprocess", "server"]),
    "memory_limit": (8.0, "of the isolated worker, in GB [8]", POSITIVE, "GB"),
    "format": (None, "rich for terminals, plain for pipes, json [rich or plain]",
               str, ["rich", "plain", "json"]),
    "json": (False, "the same as --format json", FLAG, None),
    "debug": (False, "tracebacks, and every network's numbers", FLAG, None),
    "profile": (False, "FLOPs by source line", FLAG, None),
    "fail_fast": (False, "stop at the first failure, with Python's own traceback", FLAG, None),
    "no_store": (False, "neither read nor write the store of truths", FLAG, None),
    "plain_truth": (False, "no control variates", FLAG, None),
    "dataset": (None, "score on a suite.npz, a folder of `whest dataset bake`, or hf://owner/name[@revision]",
                str, "PATH"),
    "split": (None, "of a dataset that has several", str, "NAME"),
    "output": ("suite.npz", "the suite to write [suite.npz]", str, "FILE"),
    "resume": (False, "grow the truths of an existing suite", FLAG, None),
    "dask": (None, "sample on the Dask cluster at this address", str, "ADDRESS"),
    "clear": (False, "remove everything from the store", FLAG, None),
}
RULES = " ".join(["round", "no_residual_wall_time_limit", *list(Round.__dataclass_fields__)[1:]])
COMMANDS: dict[str, Any] = {}       # name: function (options, screen) that returns the exit status


def command(options: str) -> Callable:
    """Make the function below, without "_command", a sub-command that takes these options."""
    def register(function: Any) -> Any:
        function.options = options.split()
        COMMANDS[function.__name__.removesuffix("_command")] = function
        return function
    return register


def parse(name: str, arguments: list[str]) -> types.SimpleNamespace:
    """All of OPTIONS: those that the sub-command takes as they are given, or the defaults. Raises Misuse."""
    import plac
    parameters = []
    for option in COMMANDS[name].options:
        default, text, kind, values = OPTIONS[option]
        choices, metavar = (values, "|".join(values)) if isinstance(values, list) else (None, values)
        style = {FILE: "positional", FLAG: "flag"}.get(kind, "option")
        note = plac.Annotation(text, style, None, {FILE: str, FLAG: None}.get(kind, kind), choices, metavar)
        # plac puts one dash before an option and makes others of underscores: _width is --width.
        parameters.append(inspect.Parameter("_" * (kind is not FILE) + option.rstrip("_"), default=default,
                                            kind=inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=note))

    def takes():
        """What plac sees of a sub-command: a signature, and the help."""

    takes.__signature__ = inspect.Signature(parameters)         # type: ignore[attr-defined]
    takes.__doc__ = inspect.getdoc(COMMANDS[name])
    parser = plac.parser_from(takes, prog=f"whest {name}")
    parser.error = functools.partial(refuse, parser.prog)
    given = vars(parser.parse_args(arguments))
    return types.SimpleNamespace(**{option: given.get(option.rstrip("_"), default)
                                    for option, (default, *_) in OPTIONS.items()})


def refuse(program: str, message: str):
    """What plac's parsers do with bad arguments: one sentence instead of a page of usage."""
    raise Misuse(f"{message[:1].upper()}{message[1:]}; `{program} --help` lists what it takes.")


def rules_of(options) -> Round:
    """The round's rules with the command line's replacements."""
    given = {name: value for name in vars(ROUNDS[options.round])
             if (value := getattr(options, name, None)) is not None}
    if options.no_residual_wall_time_limit:
        given["residual_wall_time_limit"] = None
    return replace(ROUNDS[options.round], **given)


def estimator_path(options) -> str:
    """The one estimator file that was named. Raises Misuse."""
    if bool(options.file) == bool(options.estimator):
        raise Misuse("Name one estimator file: whest run estimator.py (or --estimator estimator.py).")
    return options.file or options.estimator


def suite_of(options, rules: Round, n_mlps: int = 10) -> list[MLP]:
    """The networks to score, of which there are `n_mlps` unless the options say how many."""
    return list(sample_suite(options.n_mlps or n_mlps, rules.width, rules.depth, options.seed))


def runner_for(options, rules: Round, rival: str | None = None) -> LocalRunner:
    """The runner that the options ask for, of the estimator or a rival to it; not started yet."""
    path = rival or os.path.abspath(os.path.expanduser(estimator_path(options)))     # never a baseline's name
    profile = Profile(Path(path).parent) if options.profile and not rival else None
    arguments = path, None if rival else options.class_, rules, options.seed, options.fail_fast, profile
    if options.runner in ("local", "inprocess"):
        return LocalRunner(*arguments)
    return SubprocessRunner(*arguments, memory_limit=int(options.memory_limit * 2**30),
                            max_threads=options.max_threads)


@command(f"""file estimator class_ {RULES} n_mlps n_samples precision max_work plain_truth no_store dataset
    split seed max_threads runner memory_limit against repeats profile html format json debug fail_fast""")
def run(options, screen: Screen) -> int:
    """Score an estimator on a suite of random networks, and say what to do next.

    Prints the report, or with --format json the document of `whest run`. Exit status 0 if scored, 1 if the
    estimator failed on any network, 2 for misuse.
    """
    rules, rival, started = rules_of(options), options.against, datetime.now(timezone.utc)
    if options.repeats and not rival:
        raise Misuse("--repeats repeats a comparison: name a rival with --against.")
    if rival and rival not in BASELINES and not Path(rival).expanduser().is_file():
        raise Misuse(f"--against {rival}: no such file, nor one of the baselines {', '.join(BASELINES)}.")
    if options.html and not os.access(Path(options.html).parent, os.W_OK):
        raise Misuse(f"--html {options.html}: that folder cannot be written to; choose another.")
    limit_threads(options.max_threads)
    dataset = read_dataset(options.dataset, options.split, options.n_mlps) if options.dataset else None
    suite = dataset.mlps if dataset else suite_of(options, rules)
    rules = replace(rules, width=suite[0].width, depth=suite[0].depth)
    classes, outcomes = [], []          # of the estimator, then of its rival
    for which in (None, rival) if rival else (None,):
        with runner_for(options, rules, which) as runner:
            outcomes.append([[*predictions(runner, suite, i, screen)] for i in range(options.repeats or 1)])
            classes.append(runner.class_found)
    first = [repeats[0] for repeats in outcomes]
    truths = dataset.truths if dataset else grow_truths(suite, first, rules, options, truth_progress(screen))
    results, *theirs = (score_suite(suite, each, truths, rules, options.precision) for each in first)
    if options.profile:
        results["profile"] = {"flops_used": sum(outcome.flops_charged for outcome in first[0]),
                              "lines": lines_of(first[0])}
    config = asdict(rules) | {
        **{f"{name}_s": getattr(rules, name) for name in vars(rules) if name.endswith(("limit", "timeout"))},
        "n_mlps": len(suite), "seed": options.seed, "round": rules.tag, "estimator": estimator_path(options),
        "class": classes[0], "runner": options.runner, "precision": options.precision,
        "n_samples": "the dataset's" if dataset else options.n_samples or "auto"}
    if dataset:
        config["dataset"] = dataset.about
    document = {"schema_version": "1.1", "mode": "agent", "results": results, "run_meta": run_meta(started),
                "run_config": config, "whestbench_version": __version__}
    if rival:
        difference = compare(outcomes[0], outcomes[1], truths, rules)
        document["against"] = {"verdict": verdict(difference, config["estimator"], rival), "estimator": rival,
                               "class": classes[1], "difference": difference, "results": theirs[0]}
    report_run(document, screen, options.debug, options.html)
    n_errors = results["failure_breakdown"]["error"]
    if n_errors:
        print(f"whest: predict() failed on {n_errors} of {len(suite)} MLPs; the report says where and why.",
              file=sys.stderr)
    return 1 if n_errors else 0


def predictions(runner: LocalRunner, suite: list[MLP], repeat: int, screen: Screen) -> Iterator[Outcome]:
    """The outcomes on a suite; under other seeds for a repeat after the first."""
    for i, mlp in enumerate(suite):
        screen.live(f"predict  MLP {i + 1}/{len(suite)}")
        other = np.random.SeedSequence(mlp.seed, spawn_key=(repeat,)).generate_state(1)[0]
        yield runner.predict(replace(mlp, seed=int(other)) if repeat else mlp)


def truth_progress(screen: Screen) -> Callable:
    """What sampling shows: how far, how fast, how long still, and the score so far."""
    started, before = time.monotonic(), None

    def progress(done: int, todo: int, error: TruthError | None = None) -> None:
        nonlocal before
        before = done if before is None else before
        rate = (done - before) / max(time.monotonic() - started, 1e-9)
        left = f", {(todo - done) / rate:.0f} s left" if rate else ""
        score = "  score {:.4g} to {:.4g}".format(*error.truth_interval) if error else ""
        screen.live(f"truth  {done:,} of {todo:,} samples, {rate:,.0f}/s{left}{score}")
    return progress


def run_meta(started: datetime) -> dict:
    """When and where the run took place."""
    finished, system = datetime.now(timezone.utc), platform.uname()
    return {"run_started_at_utc": started.isoformat(), "run_finished_at_utc": finished.isoformat(),
            "run_duration_s": (finished - started).total_seconds(),
            "host": {"hostname": system.node, "os": system.system, "os_release": system.release,
                     "platform": platform.platform(), "machine": system.machine,
                     "python_version": platform.python_version(),
                     "numpy_version": np.__version__, "flopscope_version": flops.__version__,
                     "cpu_brand": platform.processor() or "unknown", "cpu_count_logical": os.cpu_count(),
                     "cpu_count_physical": None, "ram_total_bytes": None, "ram_available_bytes": None}}


@command(f"file estimator class_ {RULES} seed max_threads runner memory_limit format json debug")
def validate(options, screen: Screen) -> int:
    """Check the contract in seconds: class, setup, shape, finiteness, budget, determinism, the other book.

    Each check is a line with OK or what to do, on a tiny network and on the round's shape. Exit status 1 if
    one fails; a NOTE is no failure.
    """
    ok = report_checks("Validation", list(validation_checks(options, rules_of(options))), screen)
    if screen.format != "json":
        screen.write(f"Next: whest {'run' if ok else 'validate'} {estimator_path(options)}")
    return 0 if ok else 1


def validation_checks(options, rules: Round) -> Iterator[dict]:
    """The checks on a tiny network, the round's shape, and under the other book; a failure ends them."""
    def check(name: str, ok: bool | None, detail: str) -> dict:
        shape = f"{trial.width}x{trial.depth}, prices {trial.prices}"
        return {"check": name, "ok": ok, "detail": f"{detail} [{shape}]"}

    tiny = replace(rules, width=4, depth=2, lambda_flops_per_second=0.0,
                   flop_budget=max(1, rules.flop_budget * 32 // (rules.depth * rules.width**2)))
    for trial in (tiny, rules, replace(tiny, prices=next(book for book in PRICES if book != rules.prices))):
        with runner_for(options, trial) as runner:
            mlp = build_mlp(trial.width, trial.depth, options.seed)
            first, second = runner.predict(mlp), runner.predict(mlp)
        yield check("class", True, f"{runner.class_found}, loaded, set up within {trial.setup_timeout:g} s")
        if first.error:
            details = first.error["details"]
            hints = *details.get("cause_hints", ()), f"({details['line']})"
            yield check("predict", False, " ".join([first.error["message"], *hints]))
            return
        if first.flag:
            yield check("predict", False, f"{first.flag}: spend less, or raise the limit")
            return
        yield check("predict", True, f"shape {(mlp.depth, mlp.width)}, finite, {readable(first.flops_used)} "
                    f"FLOPs, {first.flops_used / trial.flop_budget:.2%} of the budget")
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
    rules = rules_of(options)
    limit_threads(options.max_threads)
    use_prices(rules.prices)
    e = gather_evidence(options, rules, screen)
    tiers: list[dict] = [{"tier": i, "title": title, "questions": [answered(e, *each) for each in questions]}
                         for i, (title, questions) in enumerate(QUESTIONS.items())]
    worst = Counter(f["severity"] for tier in tiers for asked in tier["questions"] for f in asked["findings"])
    if not screen.write_json({"ok": not worst[1], "tiers": tiers, "run_config": e.config,
                    "whestbench_version": __version__}):
        for tier in tiers:
            screen.panel(f"Tier {tier['tier']}: {tier['title']}", checklist_lines(tier["questions"], screen))
        found = [f"{SEVERITIES[severity]} {n}" for severity, n in sorted(worst.items()) if n]
        screen.write(", ".join(found) or "Nothing to change.")
    return 1 if worst[1] else 0


@command("format json")
def doctor(options, screen: Screen) -> int:
    """Check the installation: versions, threads, vectors, store, kernels, other packages, environment.

    Each check is a line with OK, NOTE or FAIL. Exit status 1 if one fails: such a thing would spoil a score.
    """
    checks = [dict(zip(("check", "ok", "detail"), found)) for found in health_checks()]
    return 0 if report_checks("Doctor", checks, screen) else 1


def health_checks() -> Iterator[tuple[str, bool | None, str]]:
    """(name, whether it is well or None for a note, detail) of each check."""
    import numba
    import plac
    yield "versions", True, (f"python {platform.python_version()}, numpy {np.__version__}, numba "
                             f"{numba.__version__}, plac {plac.__version__}, whestbench {__version__}")
    yield "threads", True, f"{_n_threads} of {os.cpu_count()} CPUs, vectors of {vector_type()[1]} float32"
    folder, start = TruthStore().folder, time.perf_counter()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        yield "store", True, f"{folder} is writable"
    except OSError as exc:
        yield "store", None, f"{folder} cannot be written ({exc.strerror}): every run samples anew"
    try:
        weights = np.stack([np.asarray(w, np.float64) for w in build_mlp(64, 2).weights])
        sums = simulate_block(pack_weights(weights), 0, 0).layer_sums[-1]
        how = "cached" if network_sums.stats.cache_hits else "compiled"       # type: ignore[attr-defined]
        how = f"{how}, first block after {time.perf_counter() - start:.1f} s"
        x = block_inputs(64, 0, 0)
        for weight in weights:
            x = np.maximum(x @ weight, 0)
        right = np.allclose(sums, x.sum(0), rtol=1e-4)
        yield "kernels", right, f"{how}, sums {'as' if right else 'unlike'} NumPy's in float64"
    except Exception as exc:        # the compiler can raise anything
        yield "kernels", False, f"no truth can be sampled: {type(exc).__name__}: {exc}"
    for name in ("flopscope", "local_engine", "whestbench"):
        find = importlib.machinery.PathFinder.find_spec
        specs = [find(name, [folder]) for folder in (os.getcwd(), *sys.path)]
        places = [os.path.realpath(spec.origin) for spec in specs if spec and spec.origin]
        if others := [place for place in places if place != os.path.realpath(__file__)]:
            then = "the same bill" if name == "flopscope" else "not always ours"
            yield name, False if name == "whestbench" and others[0] == places[0] else None, (
                f"another is at {others[0]}: what imports it gets {then}")
    for name in {"PYTHONBREAKPOINT", "OMP_NUM_THREADS", "WHESTBENCH_PRICES"} & os.environ.keys():
        yield name, None, f"is set to {os.environ[name]!r}"


@command("file estimator class_ baseline width depth seed prices format json")
def loop_command(options, screen: Screen) -> int:
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
    document = {"width": mlp.width, "depth": mlp.depth, "seed": options.seed, "tables": tables}
    if not screen.write_json(document):
        screen.write(f"MLP: width={mlp.width} depth={mlp.depth} seed={options.seed}")
        for label, rows in tables.items():
            screen.write("\n".join(["", f"--- {label} ---", *table_lines(rows)]))
    return 0


@command(f"""file output {RULES} n_mlps n_samples seed plain_truth resume no_store dask
    max_threads format json debug""")
def bake_command(options, screen: Screen) -> int:
    """Write a suite: networks with their truths, one portable file that `run --dataset` scores on.

    --resume grows the truths of an existing file to --n-samples (default: twice what they have).
    """
    rules, output = rules_of(options), Path(options.file or options.output)
    if output.exists() != options.resume:
        raise Misuse(f"{output} exists: add --resume to grow it, or choose another name." if output.exists()
                     else f"There is no {output} to resume: leave out --resume to bake it.")
    old = read_suite(output) if options.resume else None
    mlps = old.mlps if old else suite_of(options, rules)
    n_samples = options.n_samples or (2 * old.truths[0].n_samples if old else 2**20)
    if old and n_samples < old.truths[0].n_samples:
        raise Misuse(f"{output} has {old.truths[0].n_samples:,} samples a network already: ask for more.")
    store = None if options.no_store else TruthStore()
    executor: Any = DaskExecutor(options.dask) if options.dask else None
    limit_threads(options.max_threads)
    truths = []
    for mlp in mlps:        # one by one: what sampling a large network takes is let go before the next
        source = TruthSource(mlp.weights, store, options.plain_truth)
        truths += grow_together([source], n_samples, executor=executor, progress=truth_progress(screen))[0]
    about = {"seed": options.seed, "n_samples": n_samples, "width": mlps[0].width, "depth": mlps[0].depth}
    write_suite(output, Suite(mlps, truths, (old.about if old else {}) | about))
    noise = math.sqrt(np.mean([(truth.standard_error[-1]**2).mean() for truth in truths]))
    about |= {"path": str(output), "n_mlps": len(mlps), "final_layer_standard_error": noise}
    if not screen.write_json(about):
        size = f"{len(mlps)} networks {mlps[0].width}x{mlps[0].depth}, {n_samples:,} samples each"
        screen.write(f"{output}: {size}, final-layer standard error {noise:.3g}\n"
                     f"Next: whest run estimator.py --dataset {output}")
    return 0


@command("clear format json")
def store_command(options, screen: Screen) -> int:
    """Show what the store of truths holds; --clear empties it."""
    folder, rows = TruthStore().folder, list[dict]()
    for network in sorted({path.parent for path in folder.glob("*/[!.]*.npz")}):    # .*.npz: a killed run's
        counts = [int(path.stem.split("-")[0]) for path in network.glob("[0-9]*.npz")]
        size = sum(path.stat().st_size for path in network.iterdir())
        rows.append({"network": network.name, "bytes": size, "n_samples": max(counts, default=0)})
    if options.clear:
        shutil.rmtree(folder, ignore_errors=True)
    if not screen.write_json({"folder": str(folder), "cleared": options.clear, "networks": rows}):
        total = sum(row["bytes"] for row in rows) / 2**20
        screen.panel("Store", [f"{row['network'][:24]:<26} {row['n_samples']:>16,} samples "
                               f"{row['bytes'] / 2**20:>9.1f} MB" for row in rows]
                     + [f"{folder}: {len(rows)} networks, {total:.1f} MB" + ", cleared" * options.clear])
    return 0


# ---- bench ------------------------------------------------------------------------------------------------


def seconds_of(work, times=1):
    """The mean time of a call."""
    start = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - start) / times


def call_times(numpy):
    """Microseconds of common calls on 256 float32, medians: of NumPy, or a namespace like it."""
    x = numpy.array([1.0] * 256, dtype="float32")       # not ones(), which is known to be symmetric
    w = numpy.array([[1.0] * 256] * 256, dtype="float32")
    names = {"x": x, "w": w} | {name: getattr(numpy, name) for name in ("sqrt", "maximum", "sum", "mean")}
    calls = "x + x; x * 2.0; sqrt(x); maximum(x, x); sum(x); mean(x); w @ x; x[3]; x[2:5]; w[3]".split("; ")
    return {call: 1e6 * statistics.median(seconds_of(work, 200) for _ in range(7))
            for call in calls for work in [eval(f"lambda: {call}", names)]}


def ask_real_package(package: str, code: str) -> Any:
    """The `result` of code beside the real package, in a process of its own; None where there is none.

    It is looked for in the folder `package` of WHESTBENCH_ORACLES, else among this Python's packages.
    """
    name, oracles = package.partition("-")[0], os.environ.get("WHESTBENCH_ORACLES")
    if not oracles and not importlib.util.find_spec("opt_einsum"):       # which the real ones need
        return None
    environment = os.environ | ({"PYTHONPATH": str(Path(oracles) / package)} if oracles else {})
    code = f"""import json, statistics, sys, time
sys.path.remove("")
import {name}
assert {name}.__path__
{inspect.getsource(seconds_of)}
{inspect.getsource(call_times)}
{code}
print(json.dumps(result))"""
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True,
                          cwd=tempfile.gettempdir(), check=False)
    return None if done.returncode else json.loads(done.stdout)


def fma_chains(typingctx, n):
    """n times 96 fused multiply-adds of vectors, on registers alone: 12 chains hide the latency."""
    from llvmlite import ir
    from numba.core import cgutils, types
    vector, lanes, _ = vector_type()

    def codegen(context, b, signature, args):
        fma = cgutils.get_or_insert_function(
            b.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fmuladd.v{lanes}f32")
        factor, term = (ir.Constant(vector, [value] * lanes) for value in (0.999, 0.001))
        chains = [cgutils.alloca_once_value(b, term) for _ in range(12)]
        with cgutils.for_range(b, args[0]):
            for chain in chains * 8:
                b.store(b.call(fma, [b.load(chain), factor, term]), chain)
        total = functools.reduce(b.fadd, map(b.load, chains))
        return b.extract_element(total, ir.IntType(32)(0))

    return types.float32(types.int64), codegen


def fma_peak(threads: concurrent.futures.Executor) -> Callable[[], float]:
    """A function that measures the chip's float32 FMA rate on all threads in GFLOP/s, in registers alone."""
    from numba import njit
    from numba.extending import intrinsic
    chains: Any = intrinsic(fma_chains)
    run_chains, n = njit(lambda n: chains(n), nogil=True), 1_000_000
    run_chains(1)
    flops = _n_threads * n * 96 * 2 * vector_type()[1]
    return lambda: flops / 1e9 / seconds_of(lambda: list(threads.map(run_chains, [n] * _n_threads)))


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


def bench_shape(rules: Round, repeats: int, threads: concurrent.futures.Executor, peak: Callable) -> dict:
    """Samples a second of the engine and its rivals at a round's shape, interleaved, medians of `repeats`."""
    width, depth, row = rules.width, rules.depth, dict[str, Any]()
    weights = np.stack([np.asarray(w) for w in build_mlp(width, depth).weights])
    n_samples = max(8192, int(1e11 / (2 * depth * width**2)) // 4096 * 4096)
    block = functools.partial(simulate_block, pack_weights(weights), 1)
    indices = range(n_samples // samples_per_block(width))
    real = f"""mlp = whestbench.sample_mlp({width}, {depth})
whestbench.sample_layer_statistics(mlp, 2048)
result = seconds_of(lambda: whestbench.sample_layer_statistics(mlp, {n_samples}))"""
    runs = [(n_samples / seconds_of(lambda: deque(threads.map(block, indices), 0)),
             n_samples / seconds_of(lambda: numpy_engine(weights, n_samples, threads)),
             n_samples / (ask_real_package("whestbench-0.16.2", real) or math.nan), peak())
            for _ in range(repeats + 1)]
    engine, rival, real_one, fma = np.array(runs[1:]).T         # the first warms up
    gflops = engine * width**2 * (2 * depth - 1) / 1e9
    row |= {"round": rules.tag, "shape": f"{width}x{depth}"}
    for name, rates in {"engine": engine, "numpy": rival, "times_numpy": engine / rival, "real": real_one,
                        "times_real": engine / real_one, "gflops": gflops, "fma_peak_gflops": fma,
                        "of_peak": gflops / fma}.items():
        row[name] = None if np.isnan(rates).any() else float(np.median(rates))
    return row


def bench_lines(rows: list[dict], columns: dict[str, str]) -> Iterator[str]:
    """A table as text: the titles of `columns`, and below them their keys in the rows."""
    yield "".join(f"{title:>10}" if i else f"{title:<14}" for i, title in enumerate(columns))
    for row in rows:
        first, *values = (row[key] for key in columns.values())
        yield f"{first:<14}" + "".join(f"{'-' if v is None else f'{v:,.2f}' if v < 1000 else f'{v:,.0f}':>10}"
                                       for v in values)


@command("repeats max_threads format json")
def bench(options, screen: Screen) -> int:
    """Measure the engine against NumPy, the chip's FMA peak and the real package; and what counting costs.

    Everything is measured side by side in this run, as medians; quote the ratios. Takes a minute or two.
    """
    limit_threads(options.max_threads)
    with concurrent.futures.ThreadPoolExecutor(_n_threads) as threads:
        peak = fma_peak(threads)
        shapes = [bench_shape(rules, options.repeats or 5, threads, peak) for rules in ROUNDS.values()]
    plain = call_times(np)
    with BudgetContext(10**15, quiet=True, prices="0.12"):
        ours = call_times(fnp)
    real = ask_real_package("flopscope-0.12.4", """import flopscope as flops, flopscope.numpy as fnp
with flops.BudgetContext(flop_budget=10**15, quiet=True):
    result = call_times(fnp)""") or {}
    calls = []
    for name, us in plain.items():
        added, theirs = ours[name] - us, real[name] - us if real else None
        calls.append({"call": name, "numpy_us": us, "ours_us": ours[name], "real_us": real.get(name),
                      "added_us": added,
                      "times_less_added": theirs / added if theirs and added > 0 else None})
    if not screen.write_json({"engine": shapes, "overhead": calls}):
        screen.panel("Engine", bench_lines(shapes, {
            "shape": "shape", "samples/s": "engine", "NumPy": "numpy", "x NumPy": "times_numpy",
            "real": "real", "x real": "times_real", "GFLOP/s": "gflops", "FMA peak": "fma_peak_gflops",
            "of peak": "of_peak"}))
        screen.panel("Overhead of a call on 256 float32, in microseconds", bench_lines(calls, {
            "": "call", "NumPy": "numpy_us", "ours": "ours_us", "added": "added_us", "real 0.12": "real_us",
            "x less": "times_less_added"}))
    return 0


# ---- the way in -------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    """Run one sub-command; returns the exit status. This is the console script `whest`."""
    arguments = sys.argv[1:] if arguments is None else [str(a) for a in arguments]
    name, *rest = arguments or [""]
    if name == "--version":
        print(f"whestbench {__version__}")
        return 0
    if name in ("-h", "--help"):
        listed = (f"  {each:<12}{function.__doc__.splitlines()[0]}" for each, function in COMMANDS.items())
        print("\n".join([__doc__ or "", "Commands:", *listed]))
        return 0
    try:
        if name not in COMMANDS:
            raise Misuse(f"Name a command: {', '.join(COMMANDS)}. `whest COMMAND --help` explains each.")
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
        print(f"whest: {exc}", file=sys.stderr)
        return exc.exit_status
    except KeyboardInterrupt:
        print("whest: interrupted. Truth sampled so far is kept: the same command goes on from there.",
              file=sys.stderr)
        return 130


# Asked last for an import: where a starter kit has no `local_engine` of its own, this module is it.
_local_engine: Any = types.SimpleNamespace(
    find_spec=lambda name, *_: (importlib.util.spec_from_loader(name, _local_engine)
                                if name == "local_engine" else None),
    create_module=lambda spec: sys.modules[__name__], exec_module=lambda module: None)


def claim_names() -> None:
    """Let the imports of a contest submission reach this module, whatever is installed beside it."""
    install()
    here = sys.modules[__name__]
    for name in ("domain", "sdk", "generation", "simulation"):
        sys.modules[f"{__name__}.{name}"] = here
        setattr(here, name, here)
    sys.meta_path.append(_local_engine)


claim_names()
if _RUN_AS_SCRIPT:
    sys.exit(main())
