"""Tests of whestbench.py, in the order of its rooms, through its public names and its command line.

Expected values come from closed forms, from arithmetic done by hand, from NumPy in float64, or from the real
packages. A part near the end runs those: the environment variable WHESTBENCH_ORACLES names a folder with the
sub-folders flopscope-0.7.0, flopscope-0.12.4 and whestbench-0.16.2, each filled by `pip install --target`.
Without it these tests are skipped, except where CI=true: there they fail.

`python test_whestbench.py bench` measures how fast the engine is here, and what counting costs.
"""
import dis
import functools
import gc
import hashlib
import html.parser
import importlib.metadata
import importlib.util
import inspect
import io
import itertools
import json
import math
import os
import pickle
import platform
import re
import select
import shlex
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import tarfile
import tempfile
import textwrap
import time
import venv
import warnings
import xml.etree.ElementTree
import zipfile
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis import strategies as st

import whestbench as wb
from whestbench import flops, fnp

HERE = Path(__file__).resolve().parent
SHAPE = ["--width", "16", "--depth", "3"]
SMALL = [*SHAPE, "--n-mlps", "2", "--n-samples", "2048", "--lambda-flops-per-second", "0"]
BOOKS = ["0.7", "0.12"]
RUNNERS = ["local", "subprocess"]
ZEROS = "return fnp.zeros((mlp.depth, mlp.width))"
HEAD = """import time
import numpy as np
from whestbench import MLP, BaseEstimator, SetupContext
import flopscope as flops
import flopscope.numpy as fnp
"""
WIPE = "\r\x1b[2K"         # what the live line begins with


# ---- files and processes ----

def estimator_file(folder, body, name="estimator.py"):
    """Write an estimator file: `body` is that of predict(), or a module if it has a class or says raw."""
    body = textwrap.dedent(body)
    if "class " not in body and not body.startswith("# raw"):
        body = f"class Estimator(BaseEstimator):\n    def predict(self, mlp, budget):\n{indented(body, 8)}"
    path = Path(folder) / name
    path.write_text(body if body.startswith("# raw") else f"{HEAD}\n{body}\n")
    return str(path)

def indented(text, columns):
    return textwrap.indent(text, " " * columns)

def source_of(function):
    """The source of a function, after that of the functions and the numbers of its module that it uses."""
    used = {i.argval: function.__globals__.get(i.argval) for i in dis.get_instructions(function)
            if i.opname == "LOAD_GLOBAL"}
    functions = [f for f in used.values() if inspect.isfunction(f) and f.__globals__ is function.__globals__]
    constants = [f"{name} = {n!r}\n" for name, n in used.items() if type(n) in (int, float)]
    return "\n".join([*constants, *map(source_of, functions), inspect.getsource(function)])

PROPAGATION = f"# raw\nfrom __future__ import annotations\n{HEAD}{source_of(wb.mean_propagation)}" + """
class Estimator(BaseEstimator):
    def predict(self, mlp, budget):
        print("predicting", mlp.name)
        with flops.namespace("propagation"):
            return mean_propagation(mlp, budget)
"""

def python(*arguments, cwd=HERE, check=None, **environment):
    """Run Python on a file or a piece of code, in a process of its own; `check` is the status expected."""
    done = subprocess.run([sys.executable, *map(str, arguments)], cwd=cwd, text=True, capture_output=True,
                          timeout=300, env={**os.environ, **environment})
    assert check is None or done.returncode == check, done.stdout + done.stderr
    return done

def whest(*arguments, **how):
    """Run the tool as a user does."""
    return python(HERE / "whestbench.py", *arguments, **how)

def at_a_terminal(*arguments, types=(), columns=100, **environment):
    """Run the tool in a pseudo-terminal: status, transcript.

    A person `types`: (pattern to wait for, seconds to think, text).
    """
    pty, fcntl, termios = map(pytest.importorskip, ("pty", "fcntl", "termios"))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
    ours_alone = "COLUMNS", "NO_COLOR", "PYTHONBREAKPOINT", "PYTHONIOENCODING"
    inherited = {k: v for k, v in os.environ.items() if k not in ours_alone}
    process = subprocess.Popen([sys.executable, str(HERE / "whestbench.py"), *map(str, arguments)], cwd=HERE,
                               start_new_session=True, stdin=theirs, stdout=theirs, stderr=theirs,
                               env=inherited | {"TERM": "xterm"} | environment)
    os.close(theirs)
    transcript, read_to, types = b"", 0, list(types)
    try:
        while select.select([ours], [], [], 100)[0]:
            try:
                transcript += os.read(ours, 65536)
            except OSError:         # how Linux says that the other side is closed
                break
            while types and (prompt := re.search(types[0][0].encode(), transcript[read_to:])):
                (_, seconds, text), read_to = types.pop(0), read_to + prompt.end()
                time.sleep(seconds)
                os.write(ours, text.encode())
        return process.wait(100), transcript.decode(errors="replace").replace("\r\n", "\n")
    finally:
        process.kill()
        process.wait()
        os.close(ours)

def needs(module):
    """Import an optional module: without it a test is skipped, except where CI=true."""
    return (importlib.import_module if os.environ.get("CI") == "true" else pytest.importorskip)(module)

@pytest.fixture(scope="session", autouse=True)
def cache_of_the_session(tmp_path_factory):
    """No test touches the user's own store of truths."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WHESTBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield

@pytest.fixture
def command(tmp_path, capsys):
    """Run a command in this process on an estimator of this body: (exit status, stdout, stderr)."""
    def run(name, body, *flags):
        capsys.readouterr()
        status = wb.main([name, estimator_file(tmp_path, body), *flags])
        return status, *capsys.readouterr()
    return run

@pytest.fixture
def score(command):
    """Score an estimator of this body on two small networks: (exit status, document, stderr)."""
    def run(body, *flags):
        status, out, err = command("run", body, *SMALL, "--json", *flags)
        return status, json.loads(out), err
    return run

@pytest.fixture
def zeros_file(tmp_path):
    return estimator_file(tmp_path, ZEROS)

def numbers(document):
    """A document's results without what is measured by the clock."""
    if isinstance(document, dict):
        return {key: numbers(value) for key, value in document.items() if not key.endswith("_s")}
    return [numbers(value) for value in document] if isinstance(document, list) else document


# ---- bills ----

def operands():
    """a (3, 4) and b (4,) and s (4, 4) float32, d (4, 4) float64 and positive definite."""
    draw = np.random.default_rng(1).standard_normal
    a, b, s, d = (draw(shape).astype("f4") for shape in ((3, 4), 4, (4, 4), (4, 4)))
    d = d.astype("f8")
    return {name: fnp.asarray(x) for name, x in dict(a=a, b=b, s=s, d=d @ d.T + np.eye(4)).items()}

def bill(statements, prices, **names):
    """FLOPs of statements over the arrays of `operands` and others."""
    space = dict(operands(), fnp=fnp, flops=flops, np=np, **names)
    with wb.BudgetContext(10**12, quiet=True, prices=prices) as context, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(statements, space)
    return context.flops_used

def refused(statements, prices, error, match=None, **names):
    """Whether statements raise this error, whose message matches, and cost nothing."""
    space = dict(operands(), fnp=fnp, flops=flops, np=np, **names)
    with wb.BudgetContext(10**12, quiet=True, prices=prices) as context, pytest.raises(error, match=match):
        exec(statements, space)
    return context.flops_used == 0

def named(dotted):
    """What a name of the real package leads to here, of flops or of fnp."""
    owner = flops if hasattr(flops, dotted.partition(".")[0]) else fnp
    return functools.reduce(getattr, dotted.split("."), owner)


# ---- networks ----

def he_weights(width, depth, seed=0):
    draws = np.random.default_rng(seed).standard_normal((depth, width, width))
    return (draws * np.sqrt(2 / width)).astype(np.float32)

def block_inputs(width, key, index):
    """The inputs of a block, float32 (n_samples, width), in the order of its groups."""
    wb.load_kernels()
    slabs = -(-width // wb.COLUMNS)
    x = np.zeros((slabs, wb.samples_per_block(width), wb.COLUMNS), np.float32)
    wb.draw_normals(x, np.uint64(key), np.uint64(index))
    x = x.swapaxes(0, 1).reshape(-1, 2, wb.GROUP // 2, slabs * wb.COLUMNS)[..., :width]
    x[:, 1] = -x[:, 0]
    return x.reshape(-1, width)

def forward(weights, x):
    """Float64 pre-activations and activations of every layer."""
    z, a = [], [x.astype(np.float64)]
    for w in weights:
        z.append(a[-1] @ np.asarray(w, np.float64))
        a.append(np.maximum(z[-1], 0))
    return z, a[1:]

def same(a, b):
    """Whether two tuples of arrays, or two dataclasses of them, have the same bits."""
    a, b = (x if isinstance(x, tuple) else tuple(vars(x).values()) for x in (a, b))
    return all(np.array_equal(u, v, equal_nan=True) for u, v in zip(a, b, strict=True))


# ==== Rounds ======================================================================================

def test_the_rounds_are_those_of_the_contest():
    assert {tag: (r.width, r.depth, r.flop_budget, r.lambda_flops_per_second, r.residual_wall_time_limit,
                  r.wall_time_limit, r.prices) for tag, r in wb.ROUNDS.items()} == {
        "v1-warmup": (256, 8, 68 * 10**9, 1e11, None, 60, "0.7"),
        "v1-phase1": (256, 32, 272 * 10**9, 1e11, None, 60, "0.12"),
        "v2-phase2": (1024, 16, 2**41, 0, 0.4, 120, "0.12")}

def test_a_flag_replaces_one_cell_of_the_round_and_no_other(command):
    status, out, _ = command("run", ZEROS, "--round", "v2-phase2", *SHAPE, "--n-mlps", "1", "--n-samples",
                             "2048", "--flop-budget", "2**30", "--wall-time-limit", "7.5", "--json")
    config = json.loads(out)["run_config"]
    given = {"width": 16, "depth": 3, "flop_budget": 2**30, "wall_time_limit_s": 7.5}
    rest = {"round": "v2-phase2", "prices": "0.12", "residual_wall_time_limit_s": 0.4,
            "lambda_flops_per_second": 0, "setup_timeout_s": 5}
    assert status == 0 and config == config | given | rest

def test_the_residual_gate_can_be_lifted(score):
    late = "time.sleep(0.1); " + ZEROS, "--residual-wall-time-limit", "0.05"
    assert score(*late)[1]["results"]["failure_breakdown"]["residual_wall_time_exhausted"] == 2
    document = score(*late, "--no-residual-wall-time-limit")[1]
    assert document["results"]["n_failed_mlps"] == 0
    assert document["run_config"]["residual_wall_time_limit_s"] is None

def test_the_book_of_the_round_prices_the_run(score):
    body = "return fnp.ones((mlp.depth, mlp.width), dtype=fnp.float32)"     # 48 cells, free in 0.7
    for round_, flops_used in (("v1-warmup", 0), ("v1-phase1", 48)):
        assert score(body, "--round", round_)[1]["results"]["per_mlp"][0]["flops_used"] == flops_used


# ==== Prices ======================================================================================

#    call                                            0.7   0.12   arithmetic where it is not plain
BILLS = [
    ("a + a",                                         12,    12),
    ("d + d",                                         16,    32),   # float64 costs twice in 0.12
    ("a * 2.0",                                       12,    12),   # a Python float is weak
    ("a * np.float64(2)",                             12,    24),   # NumPy's is not
    ("fnp.exp(a)",                                   192,   192),   # 16 a number
    ("fnp.sqrt(a)",                                   12,    12),
    ("a @ s",                                         84,    84),   # 2 * 48 - 12
    ("s @ d",                                        112,   224),
    ("fnp.sum(a)",                                    11,    11),
    ("fnp.sum(a, axis=0)",                             8,     8),
    ("fnp.mean(a, axis=0)",                           12,    12),
    ("fnp.var(a)",                                    22,    48),
    ("fnp.std(a)",                                    22,    49),
    ("fnp.median(a)",                                 12,    12),
    ("fnp.argmax(a, axis=1)",                          9,     9),
    ("fnp.cumsum(b)",                                  3,     3),
    ("fnp.clip(a, 0, 1)",                             12,    24),   # 0.12: two bounds
    ("fnp.sort(a)",                                   24,    96),   # 12 * log2(4), times 4 in 0.12
    ("fnp.where(a > 0, a, 0.0)",                      60,    60),   # the comparison, then 4 a number
    ("fnp.zeros((3, 4))",                              0,     0),
    ("fnp.ones((3, 4))",                               0,    24),
    ("fnp.arange(4)",                                  4,    16),
    ("fnp.linspace(0, 1, 5)",                          5,    20),
    ("a.T; fnp.transpose(a); a[1]; a[:, 1:3]",         0,     0),
    ("a.reshape(4, 3)",                                0,    12),
    ("a.copy()",                                       0,    12),
    ("a.astype(fnp.float64)",                          0,    24),
    ("a[[0, 1]]",                                      0,    32),   # 0.12: 4 a number gathered
    ("fnp.concatenate([a, a])",                       24,    24),
    ("fnp.packbits(a > 0)",                           14,    24),   # the comparison, then 2 bytes; 12 bits
    ("fnp.unpackbits(np.ones(3, 'u1'))",              24,    24),
    ("fnp.linalg.cholesky(d)",                       256,    42),   # 4 * 64; 64 // 3 * 2
    ("fnp.linalg.eigh(d)",                           256,  1152),   # 9 * 64 * 2
    ("fnp.linalg.qr(d)",                             256,   344),   # 2 * (2 * 64 - 2 * 64 // 3) * 2
    ("fnp.linalg.solve(d, d)",                       256,   340),   # (2 * 64 // 3 + 2 * 16 * 4) * 2
    ("fnp.linalg.svd(d)",                            256,  3328),   # (6 + 20) * 64 * 2
    ("fnp.linalg.inv(d)",                            256,   256),   # 2 * 64 * 2
    ("fnp.linalg.norm(a)",                            24,    24),
    ("fnp.random.default_rng(0).standard_normal(5)",  80,   160),
    ("fnp.random.default_rng(0).standard_normal(5, dtype='f4')", 80, 80),
    ("flops.stats.norm.cdf(b)",                       64,   384),   # 4 * 16; 4 * 48 * 2
    ("fnp.outer(b, b)",                               10,    10),   # n (n + 1) / 2: the same vector twice
    ("fnp.outer(b, b + 0)",                           20,    20),
    ("fnp.einsum('ii->', s)",                          3,     3),
    ("fnp.einsum('ij,kj->ik', s, s)",                 70,    70),   # a symmetric result: 10 * (2 * 4 - 1)
    ("s @ s.T",                                      112,   112),   # another object: not known as symmetric
    ("fnp.einsum('ia,ib,ic->abc', s, s, s)",         180,   180),
    ("e = fnp.eye(4, dtype='f4'); e + e",             10,    14),   # 10 orbits (0.12: and 4 cells to write)
    ("z = fnp.zeros((2,) * 7); z + z",                 8,    16),   # 8 orbits: how many indices are 1
    ("fnp.zeros((1,) * 15) + 1",                       1,     2),
]

@pytest.mark.parametrize("call, old, new", BILLS, ids=[row[0] for row in BILLS])
def test_a_call_costs_what_arithmetic_by_hand_says(call, old, new):
    assert (bill(call, "0.7"), bill(call, "0.12")) == (old, new)

@pytest.mark.parametrize("prices", BOOKS)
def test_the_same_operation_costs_the_same_by_every_name(prices):
    for group in (["a + b", "fnp.add(a, b)", "np.add(a, b)", "np.add(np.asarray(a), b)"],
                  ["a @ s", "fnp.matmul(a, s)", "fnp.dot(a, s)", "np.dot(a, s)", "np.asarray(a) @ s"],
                  ["a.sum(axis=0)", "fnp.sum(a, axis=0)", "np.sum(a, axis=0)", "np.add.reduce(a)"],
                  ["a.max()", "fnp.max(a)", "fnp.amax(a)", "np.max(a)", "np.maximum.reduce(a, axis=None)"],
                  ["-a", "fnp.negative(a)", "np.negative(a)"],
                  ["a > 0", "fnp.greater(a, 0)", "np.greater(a, 0)"],
                  ["fnp.cumsum(b)", "b.cumsum()", "np.add.accumulate(b)"]):
        assert len({bill(call, prices) for call in group}) == 1, group

def test_a_price_does_not_depend_on_values():
    for call in ("fnp.sort(a)", "fnp.where(a > 0, a, 0.0)", "a @ s", "fnp.nonzero(a)", "fnp.unique(a)",
                 "fnp.argsort(a)"):
        zero = {name: fnp.asarray(np.zeros_like(np.asarray(value))) for name, value in operands().items()}
        assert bill(call, "0.12", **zero) == bill(call, "0.12")

@pytest.mark.parametrize("prices", BOOKS)
def test_a_user_can_add_an_operation(prices, monkeypatch):
    for table in (wb.OPERATIONS, vars(fnp)):        # put back when the test ends
        monkeypatch.setitem(table, "sinc", table.get("sinc"))
        if table["sinc"] is None:
            del table["sinc"]
    assert refused("fnp.sinc(a)", prices, wb.UnsupportedFunctionError, "sinc")
    wb.price("sinc", units=lambda c: c.elements, says="an operation a number")
    assert bill("fnp.sinc(a)", prices) == 12
    np.testing.assert_array_equal(fnp.sinc(operands()["a"]), np.sinc(np.asarray(operands()["a"])))

# ---- what has no price ----

@pytest.mark.parametrize("prices", BOOKS)
def test_what_was_left_out_says_so_by_its_name(prices):
    names = " ".join(wb.LEFT_OUT.values()).split()
    assert {"sinc", "gradient", "histogram", "polyfit", "save", "fft"} <= set(names)
    for name in names:
        assert refused(f"f('{name}')(b)", prices, wb.UnsupportedFunctionError, rf"\b{re.escape(name)}\b",
                       f=named), name

@pytest.mark.parametrize("prices", BOOKS)
@pytest.mark.parametrize("call", [
    "fnp.fft.fft(b)", "flops.symmetrize(s, symmetry=(0, 1))", "flops.is_symmetric(s, symmetry=(0, 1))",
    "fnp.random.normal(size=3)", "fnp.random.RandomState(3)", "flops.stats.expon.pdf(b)",
    "flops.SymmetryGroup.cyclic(axes=(0, 1, 2))"])
def test_a_name_that_left_is_refused_or_missing_and_named(call, prices):
    name = re.search(r"(\w+)(\.pdf)?\(", call)[1]
    assert refused(call, prices, (wb.UnsupportedFunctionError, AttributeError), rf"\b{name}\b")

@pytest.mark.parametrize("prices", BOOKS)
@pytest.mark.parametrize("call, name", [
    ("fnp.einsum('i,i,i,i,i->', b, b, b, b, b)", "einsum"),
    ("fnp.einsum('ab,cd->abcd', s, s)", "ab,cd->abcd"), ("fnp.matmul(d, d, dtype=float)", "matmul"),
    ("fnp.linspace(0, 1, 5, retstep=True)", "linspace"),
    ("fnp.tensordot(fnp.zeros((3, 3)), b[:3], axes=1)", "tensordot"), ("np.add.outer(b, b)", "add.outer"),
    ("np.add.at(b, [0], 1)", "add.at"), ("np.multiply.reduceat(b, [0, 2])", "multiply.reduceat"),
    ("np.maximum.reduce(b, dtype=float)", "maximum.reduce"), ("np.subtract.reduce(b)", "subtract.reduce"),
    ("np.maximum.accumulate(b)", "maximum.accumulate")])
def test_a_form_without_a_price_is_refused_by_name(call, name, prices):
    error = TypeError if call.startswith("np.") else wb.UnsupportedFunctionError
    assert refused(call, prices, (error, wb.UnsupportedFunctionError), rf"\b{name}\b")

def test_names_that_the_real_package_lacks_are_missing_here_too():
    for name in ("vectorize", "matrix", "r_", "ascontiguousarray", "char", "float128", "no_such_name",
                 "linalg.no_such_name", "random.no_such_name"):
        with pytest.raises(AttributeError, match=name.rpartition(".")[2]):
            named(name)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = flops.no_such_name

@pytest.mark.parametrize("prices", BOOKS)
@pytest.mark.parametrize("call, error, message", [
    ("fnp.searchsorted(b)", TypeError, "required positional argument: 'v'"),
    ("fnp.linalg.eigh(b)", np.linalg.LinAlgError, "dimensional"),
    ("fnp.einsum('ij,jk->ik', s)", ValueError, "einstein sum"), ("np.take(b, [1])", TypeError, r"fnp\.take"),
    ("a @ np.ones((7, 5), 'f4')", ValueError, "core dimension"),
    ("fnp.add(a, np.ones(3, 'f4'))", ValueError, "broadcast"),
    ("fnp.linalg.inv(np.ones((2, 2)))", np.linalg.LinAlgError, "Singular"),
    ("fnp.linalg.cholesky(np.diag([1.0, -1.0]))", np.linalg.LinAlgError, "positive definite"),
    ("fnp.sum(a, axis=2)", np.exceptions.AxisError, "axis 2"), ("a[9]", IndexError, "out of bounds"),
    ("fnp.reshape(a, (5, 5))", ValueError, "shape"), ("fnp.concatenate([a, b])", ValueError, "dimension")])
def test_what_numpy_refuses_costs_nothing(call, error, message, prices):
    assert refused(call, prices, error, message)

@pytest.mark.parametrize("call, early", [("z * z", 4), ("fnp.sum(z)", 3), ("fnp.asarray([1j])", 0)])
def test_complex_numbers_are_billed_in_book_0_7_only(call, early):
    z = np.array([1j, 2, 3, 4], "c8").view(fnp.ndarray)
    assert bill(call, "0.7", z=z) == early
    assert refused(call, "0.12", wb.UnsupportedDtypeError, "complex", z=z)

@pytest.mark.parametrize("call", ["fnp.asarray(['x'])", "fnp.array([object()])"])
def test_book_0_12_refuses_dtypes_that_have_no_price(call):
    assert refused(call, "0.12", wb.UnsupportedDtypeError)


# ==== Budget ======================================================================================

@pytest.fixture(params=BOOKS)
def open_budget(request):
    """Make a quiet context in each price book."""
    return functools.partial(wb.BudgetContext, quiet=True, prices=request.param)

@pytest.fixture
def x():
    return fnp.asarray(np.ones(10, "f4"))

def test_an_operation_that_would_cross_the_budget_is_neither_charged_nor_run(open_budget):
    x, out = fnp.asarray(np.ones(600, "f4")), np.zeros(600, "f4")
    with open_budget(1500) as context:
        fnp.add(x, x)
        with pytest.raises(wb.BudgetExhaustedError, match=r"exp.*9,600.*900") as caught:
            fnp.exp(x, out=out)
        assert (context.flops_used, context.flops_remaining, len(context.op_log)) == (600, 900, 1)
        fnp.add(x[:300], x[:300])
        fnp.add(x, x)                   # what remains may be spent to the last FLOP
    assert context.flops_used == 1500 and context.flops_remaining == 0 and not out.any()
    error = caught.value
    assert (error.op_name, error.flop_cost, error.flops_remaining) == ("exp", 9600, 900)

def test_an_exhausted_budget_may_be_caught_and_the_work_go_on(score):
    status, document, _ = score("""
        rows = fnp.zeros((mlp.depth, mlp.width), dtype=fnp.float32)
        try:
            fnp.ones((1000, 1000)) @ fnp.ones((1000, 1000))
        except flops.BudgetExhaustedError:
            return rows + fnp.float32(1)""", "--flop-budget", "1e6")
    entry = document["results"]["per_mlp"][0]
    assert status == 0 and not entry["budget_exhausted"] and entry["flops_used"] == 48

@pytest.mark.parametrize("flop_budget", [0, -1, math.nan])
def test_a_budget_is_a_positive_number(flop_budget):
    with pytest.raises(ValueError):
        wb.BudgetContext(flop_budget)

def test_a_context_does_not_nest_and_opened_again_goes_on_where_it_stopped(open_budget, x):
    context = open_budget(100)
    for expected in (10, 20):
        with pytest.raises(RuntimeError, match="nest"), context:
            x + x
            with open_budget(10):
                pass
        assert context.flops_used == expected == context.op_log[-1].cumulative

def test_a_decorated_function_spends_one_purse_over_all_its_calls(x):
    @flops.budget(25, quiet=True)
    def double(y):
        """Twice y."""
        return y + y
    assert double.__name__ == "double" and double.__doc__ == "Twice y."
    np.testing.assert_array_equal(double(x), 2)
    double(x)
    with pytest.raises(wb.BudgetExhaustedError):
        double(x)

def test_the_log_has_a_record_for_each_charge_in_order(open_budget):
    a, s = operands()["a"], operands()["s"]
    with open_budget(10**6, namespace="top") as context:
        y = a @ s
        with flops.namespace("inner"), flops.namespace("deep"):
            fnp.sum(y, axis=0)
        y / 2
    assert [(r.op_name, r.flop_cost, r.cumulative, r.namespace) for r in context.op_log] == [
        ("matmul", 84, 84, "top"), ("sum", 8, 92, "top.inner.deep"), ("true_divide", 12, 104, "top")]
    first = context.op_log[0]
    assert first.subscripts == "ij,jk->ik" and first.shapes == ((3, 4), (4, 4))
    assert context.op_log[2].shapes == ((3, 4), ())
    assert first.flopscope_backend_duration_s > 0 and first.flopscope_context_start_offset_s >= 0
    if context.prices == "0.12":
        assert first.resolved_dtype == "float32"

def test_the_summary_adds_up_by_operation_and_by_namespace(open_budget):
    a = operands()["a"]
    with open_budget(1000) as context:
        a + a
        with flops.namespace("x"):
            a + a
            fnp.sqrt(a)
    total = context.summary_dict(by_namespace=True)
    assert (total["flop_budget"], total["flops_used"], total["flops_remaining"]) == (1000, 36, 964)
    operations, spaces = total["operations"], total["by_namespace"]
    costs = {name: (row["flop_cost"], row["calls"]) for name, row in operations.items()}
    assert costs == {"add": (24, 2), "sqrt": (12, 1)}
    assert {k: (v["flops_used"], v["calls"]) for k, v in spaces.items()} == {None: (12, 1), "x": (24, 2)}
    assert spaces["x"]["operations"]["sqrt"]["flop_cost"] == 12
    assert "by_namespace" not in context.summary_dict()
    text = context.summary(by_namespace=True)
    assert "add" in text and "36" in text and "66.7%" in text and "x" in text

@pytest.mark.parametrize("name", ["", " ", "a.b", 3])
def test_a_namespace_is_a_word_without_dots(name):
    with pytest.raises(ValueError, match="namespace"), flops.namespace(name):
        pass

def test_session_totals_add_up_contexts_the_open_one_and_work_outside_any(open_budget, x, capsys):
    flops.budget_reset()
    with open_budget(100):
        x + x
    with open_budget(50):
        x * x
        assert flops.budget_summary_dict()["flops_used"] == 20
    total = flops.budget_summary_dict()
    assert (total["flop_budget"], total["flops_used"], total["operations"]["add"]["calls"]) == (150, 20, 1)
    flops.budget_summary()
    assert "multiply" in capsys.readouterr().out
    x - x                                   # outside: a default context of 1e15
    assert flops.budget_summary_dict()["flop_budget"] == 150 + 10**15
    flops.budget_reset()
    assert flops.budget_summary_dict()["flops_used"] == 0

def test_an_operation_after_the_wall_limit_neither_runs_nor_is_charged(open_budget, x):
    with open_budget(100, wall_time_limit_s=0.02) as context:
        x + x
        time.sleep(0.03)
        with pytest.raises(wb.TimeExhaustedError) as caught:
            x + x
    assert caught.value.limit_s == 0.02 and caught.value.elapsed_s > 0.03 and caught.value.op_name == "add"
    assert context.flops_used == 10 and len(context.op_log) == 1

def test_the_three_parts_of_the_time_add_up(open_budget):
    x = fnp.asarray(np.ones((200, 200), "f4"))
    with open_budget(10**9) as context:
        for _ in range(20):
            x @ x
        time.sleep(0.05)
    parts = (context.flopscope_backend_time_s, context.flopscope_overhead_time_s,
             context.residual_wall_time_s)
    assert min(parts) > 0 and context.residual_wall_time_s >= 0.05
    assert sum(parts) == pytest.approx(context.wall_time_s)

def test_an_exception_leaves_the_context_and_stays_in_the_totals(open_budget, x):
    flops.budget_reset()
    with pytest.raises(KeyError), open_budget(100):
        x + x
        raise KeyError
    assert flops.budget_summary_dict()["flops_used"] == 10
    with open_budget(10):                   # nothing is left open
        pass

def test_a_thread_has_a_context_of_its_own(open_budget, x):
    def work():
        x + x                               # goes to the default context
        with open_budget(100) as mine:
            x * x
        return mine.flops_used
    with open_budget(100) as context, ThreadPoolExecutor(1) as threads:
        assert threads.submit(work).result() == 10 and context.flops_used == 0

def test_a_context_says_on_stderr_what_it_allows_unless_quiet(capsys):
    for quiet in (False, True):
        with wb.BudgetContext(1000, quiet=quiet):
            pass
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "1.00e+03" in err

def test_the_price_book_is_chosen_by_argument_by_function_and_by_environment():
    x = fnp.asarray(np.ones(10))
    try:
        for book, cost in (("0.12", 20), ("0.7", 10)):
            flops.use_prices(book)
            with wb.BudgetContext(100, quiet=True) as context:
                x + x
            assert (context.prices, context.flops_used) == (book, cost)
    finally:
        flops.use_prices("0.7")
    code = "import whestbench as w\nwith w.BudgetContext(9, quiet=True) as c: print(c.prices)"
    assert python("-c", code, WHESTBENCH_PRICES="0.12").stdout == "0.12\n"
    done = whest("validate", "estimator.py", WHESTBENCH_PRICES="0.9", check=2)
    assert done.stderr == "whest: WHESTBENCH_PRICES must be 0.7 or 0.12, not '0.9'.\n"


# ==== fnp =========================================================================================

def test_results_have_the_types_that_the_real_package_gives():
    a, b = operands()["a"], operands()["b"]
    for value in (a + a, a.sum(), fnp.sum([1, 2]), a[0], fnp.sqrt(2.0), fnp.median(a), np.add(a, a), a @ b,
                  np.ones(4, "f4") * b):
        assert type(value) is fnp.ndarray
    for value in (a[0, 0], b[2], fnp.trace(a), fnp.linalg.norm(a), fnp.linalg.det(a[:, :3]), fnp.vdot(b, b),
                  next(iter(b))):
        assert isinstance(value, np.generic)
    assert type(fnp.isfinite(a)) is np.ndarray
    assert type(fnp.count_nonzero(a)) is int
    assert type(fnp.random.default_rng(0).normal()) is float
    assert type(np.asarray(a)) is np.ndarray and isinstance(a, np.ndarray)
    for value in (fnp.zeros((3, 3)), fnp.eye(3), fnp.outer(b, b)):
        assert type(value) is flops.SymmetricTensor
    assert type(fnp.zeros((2, 3))) is flops.FlopscopeArray

@pytest.mark.parametrize("call", [
    "a + b", "a @ s", "fnp.exp(a)", "fnp.einsum('ij->ji', a)", "fnp.var(a, axis=1, ddof=1)",
    "fnp.sort(a, axis=0)", "fnp.percentile(a, [25, 50], axis=1)", "fnp.linalg.eigh(d)[0]",
    "fnp.where(a > 0, a, -1)", "fnp.take(a, [2, 0], axis=1)", "fnp.tensordot(a, s, axes=1)",
    "fnp.cumsum(a, axis=1)", "fnp.stack([b, b])", "fnp.searchsorted(fnp.sort(b), b)",
    "fnp.linalg.svd(a, full_matrices=False)[1]", "fnp.diagonal(d)", "a[a > 0]", "fnp.bincount([1, 2, 2])",
    "fnp.packbits(a > 0, axis=1)", "fnp.unpackbits(fnp.packbits(a > 0))"])
@pytest.mark.parametrize("prices", BOOKS)
def test_values_and_dtypes_are_numpy_s_own(call, prices):
    plain = {name: np.asarray(value) for name, value in operands().items()}
    expected = eval(call, dict(plain, fnp=np))
    with wb.BudgetContext(10**9, quiet=True, prices=prices):
        value = eval(call, dict(operands(), fnp=fnp))
    assert value.dtype == expected.dtype
    np.testing.assert_array_equal(np.asarray(value), expected, strict=True)

def test_random_streams_are_numpy_s_own():
    ours, theirs = fnp.random.default_rng(5), np.random.default_rng(5)
    for name, args in (("standard_normal", ((3, 2),)), ("normal", (1.0, 2.0, 4)), ("uniform", (0, 1, 3)),
                       ("integers", (0, 9, 5)), ("permutation", (6,)), ("choice", (9, 3)), ("random", ())):
        np.testing.assert_array_equal(getattr(ours, name)(*args), getattr(theirs, name)(*args))
    assert fnp.random.SeedSequence is np.random.SeedSequence and isinstance(ours, np.random.Generator)
    philox = (owner.random.Philox(3) for owner in (fnp, np))
    ours, theirs = (make(bits).normal(size=4) for make, bits in zip(
        (fnp.random.default_rng, np.random.default_rng), philox))
    np.testing.assert_array_equal(ours, theirs)

@pytest.mark.parametrize("write", ["x[0] = 1", "x[x < 9] = 1", "x += 1", "x.sort()", "x.fill(1)"])
def test_book_0_12_refuses_to_write_into_arrays_and_0_7_does_not(write):
    expected = np.arange(4.0)
    x = fnp.asarray(expected.copy())
    with wb.BudgetContext(10**6, quiet=True, prices="0.12"), pytest.raises((TypeError, ValueError)):
        exec(write, {"x": x})
    np.testing.assert_array_equal(x, expected)
    exec(write, {"x": expected})
    with wb.BudgetContext(10**6, quiet=True, prices="0.7"):
        exec(write, {"x": x})
    np.testing.assert_array_equal(x, expected)

def test_ordinary_work_gives_no_warnings_and_numpy_s_names_no_free_ride():
    a = operands()["a"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        a + a, 2 * a, a * np.float64(2), np.ones(4, "f4") + a, a.sum(), fnp.exp(a), np.shape(a), np.asarray(a)
    with pytest.raises((TypeError, wb.UnsupportedFunctionError), match="fft"):
        np.fft.fft(a)                       # has no counted way through NumPy's name: never free

def test_arrays_survive_pickling_copying_and_files(tmp_path):
    a = operands()["a"]
    for twin in (pickle.loads(pickle.dumps(a)), a.copy(), fnp.array(a)):
        assert type(twin) is fnp.ndarray and not np.shares_memory(twin, a)
        np.testing.assert_array_equal(twin, a)
    s = fnp.eye(3)
    assert type(pickle.loads(pickle.dumps(s))) is type(s)
    np.save(tmp_path / "a.npy", np.asarray(a))
    np.savez(tmp_path / "a.npz", scale=np.asarray(a))
    for loaded in (fnp.load(str(tmp_path / "a.npy")), fnp.load(str(tmp_path / "a.npz"))["scale"]):
        assert type(loaded) is fnp.ndarray
        np.testing.assert_array_equal(loaded, a)
    with pytest.raises(TypeError):
        hash(a)

def test_normal_distribution_is_that_of_the_grader():
    norm = flops.stats.norm
    def alike(a, b, rtol=1e-14, atol=0): np.testing.assert_allclose(np.asarray(a), b, rtol=rtol, atol=atol)
    x = np.array([-37.0, -8.0, -3.0, -1.0, -0.1, 0.0, 0.3, 1.0, 5.0, 9.0])
    alike(norm.cdf(x), [(1 + math.erf(t / math.sqrt(2))) / 2 for t in x], atol=1e-15)
    alike(norm.pdf(x), [math.exp(-t * t / 2) / math.sqrt(2 * math.pi) for t in x])
    alike(norm.ppf([0.975, 0.5, 0.025, 0.3]),
          [1.959963984540054, 0.0, -1.959963984540054, -0.5244005127080409], rtol=1e-13)
    with pytest.warns(UserWarning, match="eight digits"):       # at the line that calls it
        alike(norm.ppf(1e-7), -5.199337582192817, rtol=1e-8)
    alike(norm.cdf(3.0, loc=1.0, scale=2.0), (1 + math.erf(1 / math.sqrt(2))) / 2)
    assert norm.cdf(-9.0) == 0 and norm.ppf(0.0) == -np.inf and norm.ppf(1.0) == np.inf
    assert np.isnan(norm.ppf(1.5)) and np.isnan(norm.ppf(-0.5)) and np.isnan(norm.cdf(np.nan))

def test_symmetry_is_declared_checked_and_warned_about():
    x = np.arange(9.0).reshape(3, 3)
    tensor = flops.as_symmetric(x + x.T, symmetry=(0, 1))
    assert type(tensor).__name__ == "SymmetricTensor"
    for blocks in ((0, 1), [(0, 1)], flops.SymmetryGroup.symmetric(axes=(0, 1)),
                   flops.SymmetryGroup.young([(0, 1)])):
        assert bill("t + t", "0.7", t=flops.as_symmetric(x + x.T, symmetry=blocks)) == 6
        with pytest.raises(flops.SymmetryError, match=r"(?i)symmetr"):
            flops.as_symmetric(x, symmetry=blocks)
    with pytest.warns(flops.SymmetryLossWarning):
        tensor + fnp.asarray(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        flops.configure(symmetry_warnings=False)
        try:
            tensor + fnp.asarray(x)
        finally:
            flops.configure(symmetry_warnings=True)


# ==== Contract ====================================================================================

def test_networks_follow_the_published_rule_bit_for_bit():
    for n_mlps, width, depth, seed in ((3, 16, 3, 0), (1, 16, 3, 0), (2, 5, 4, 123456789)):
        streams = np.random.SeedSequence(seed).spawn(3 * n_mlps)
        for i, mlp in enumerate(wb.sample_suite(n_mlps, width, depth, seed)):
            rng = np.random.default_rng(streams[3 * i])
            assert (mlp.width, mlp.depth, len(mlp.weights)) == (width, depth, depth)
            assert mlp.seed == int(streams[3 * i + 2].generate_state(1)[0])
            for weight in mlp.weights:
                expected = (rng.standard_normal((width, width)) * np.sqrt(2 / width)).astype(np.float32)
                np.testing.assert_array_equal(np.asarray(weight), expected, strict=True)

def test_sample_mlp_draws_in_float64_and_attaches_the_seed():
    mlp = wb.sample_mlp(6, 2, np.random.default_rng(3), seed=11)
    assert mlp.seed == 11 and all(type(w) is fnp.ndarray for w in mlp.weights)
    expected = np.random.default_rng(3).standard_normal((2, 6, 6)) * math.sqrt(2 / 6)
    np.testing.assert_array_equal(np.asarray(mlp.weights), expected.astype("f4"))
    counted = wb.sample_mlp(6, 2, fnp.random.default_rng(3))
    np.testing.assert_array_equal(np.asarray(counted.weights), np.asarray(mlp.weights))
    for shape in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="must be positive"):
            wb.sample_mlp(*shape)

def test_an_mlp_is_frozen():
    with pytest.raises(AttributeError):
        wb.sample_mlp(4, 2, np.random.default_rng(0)).width = 5

def test_the_forward_pass_multiplies_from_the_left_and_rectifies():
    mlp = wb.sample_mlp(7, 3, np.random.default_rng(2))
    x = np.random.default_rng(1).standard_normal((5, 7)).astype("f4")
    layers = [np.asarray(layer) for layer in wb.run_mlp_all_layers(mlp, x)]
    y = x
    for weight, layer in zip(mlp.weights, layers, strict=True):
        y = np.maximum(y @ np.asarray(weight), 0)
        np.testing.assert_array_equal(layer, y, strict=True)
    np.testing.assert_array_equal(wb.run_mlp(mlp, x), y)
    assert [wb.relu(np.array([-1, 2], dtype)).dtype.name for dtype in ("f4", "f8")] == ["float32", "float64"]

@pytest.mark.parametrize("n_samples", [3000, 20_000])       # one chunk, and two
def test_layer_means_are_those_of_plain_sampling(n_samples):
    mlp = wb.sample_mlp(8, 3, np.random.default_rng(0))
    means = wb.monte_carlo_layer_means(mlp, n_samples, 1)
    x = np.random.default_rng(1).standard_normal((n_samples, 8), dtype=np.float32)
    for weight, row in zip(mlp.weights, means):
        x = np.maximum(x @ np.asarray(weight), 0)
        # our float64 means of its float32 forward pass
        np.testing.assert_allclose(np.asarray(row), x.mean(axis=0, dtype=np.float64), rtol=1e-6)
    assert means.dtype == np.float32

# ---- the starter kit's files ----

EXAMPLES = {
    "01_random": """
        class Estimator(BaseEstimator):
            def setup(self, context: SetupContext) -> None:
                seed = fnp.frombuffer(b"white-box", dtype=fnp.uint8).astype(fnp.int32)
                self.rng = fnp.random.default_rng(seed)

            def predict(self, mlp: MLP, budget: int) -> fnp.ndarray:
                return self.rng.uniform(0.0, 1.0, size=(mlp.depth, mlp.width)).astype(fnp.float32)

            def teardown(self) -> None:
                self.rng = None""",
    "02_mean_propagation": """
        class Estimator(BaseEstimator):
            def predict(self, mlp: MLP, budget: int) -> fnp.ndarray:
                mu, var, rows = fnp.zeros(mlp.width), fnp.ones(mlp.width), []
                for w in mlp.weights:
                    mu_pre, var_pre = w.T @ mu, fnp.maximum((w * w).T @ var, 1e-12)
                    sigma = fnp.sqrt(var_pre)
                    alpha = mu_pre / sigma
                    phi, Phi = flops.stats.norm.pdf(alpha), flops.stats.norm.cdf(alpha)
                    mu = mu_pre * Phi + sigma * phi
                    var = fnp.maximum((mu_pre**2 + var_pre) * Phi + mu_pre * sigma * phi - mu**2, 0.0)
                    rows.append(mu)
                return fnp.stack(rows, axis=0)""",
    "04_shipped_weights": """
        class Estimator(BaseEstimator):
            def setup(self, context: SetupContext) -> None:
                path = Path(context.submission_dir) / "scale.npz"
                self.scale = fnp.load(str(path))["scale"] if path.exists() else fnp.ones(())

            def predict(self, mlp: MLP, budget: int) -> fnp.ndarray:
                return fnp.zeros((mlp.depth, mlp.width)) * self.scale""",
}
KIT_HEAD = """# raw: the imports and the last lines of the starter kit's examples
from __future__ import annotations
import sys
from pathlib import Path
import flopscope as flops
import flopscope.numpy as fnp
from whestbench import BaseEstimator, SetupContext
from whestbench.domain import MLP
"""
KIT_TAIL = """
if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from local_engine import build_mlp, compare_against_monte_carlo
    compare_against_monte_carlo(Estimator(), build_mlp(16, 3), (10, 100))
"""

@pytest.mark.parametrize("name", EXAMPLES)
def test_the_starter_kit_s_examples_run_unmodified_by_path(name, tmp_path, capsys):
    path = estimator_file(tmp_path, KIT_HEAD + textwrap.dedent(EXAMPLES[name]) + KIT_TAIL, f"{name}.py")
    assert wb.main(["run", path, *SMALL, "--json"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert results["n_failed_mlps"] == 0 and math.isfinite(results["adjusted_final_layer_score"])
    assert wb.main(["validate", "--estimator", path, *SHAPE]) == 0
    assert "FAIL" not in capsys.readouterr().out

def test_every_name_of_the_real_packages_leads_here_in_any_order_of_import(tmp_path):
    source = """# raw
import flopscope.numpy as fnp, flopscope.stats, local_engine
from flopscope.numpy import linalg, random
import flopscope as flops
from whestbench.simulation import run_mlp, relu, run_mlp_all_layers
from whestbench.generation import sample_mlp
from whestbench.sdk import BaseEstimator, SetupContext
import whestbench.domain
from whestbench import MLP
assert whestbench.domain.MLP is MLP and flopscope.stats is flops.stats and flops.numpy is fnp
class Estimator(BaseEstimator):
    def predict(self, mlp, budget):
        assert isinstance(mlp, MLP) and all(isinstance(w, fnp.ndarray) for w in mlp.weights)
        return local_engine.monte_carlo_layer_means(mlp, 50, seed=1)
"""
    done = whest("run", estimator_file(tmp_path, source), *SMALL, "--json", cwd=tmp_path, check=0)
    assert json.loads(done.stdout)["results"]["n_failed_mlps"] == 0

def test_a_vendored_copy_serves_a_script_of_the_starter_kit(tmp_path):
    shutil.copy(HERE / "whestbench.py", tmp_path)
    (tmp_path / "examples").mkdir()
    head = KIT_HEAD.replace("import flopscope as", "import whestbench, flopscope as")
    path = estimator_file(tmp_path / "examples",
                          head + textwrap.dedent(EXAMPLES["02_mean_propagation"]) + KIT_TAIL)
    done = python(path, cwd=tmp_path, check=0, PYTHONPATH=str(tmp_path))
    assert re.search(r"^ +100 \|", done.stdout, re.M)

@pytest.fixture
def other_flopscope(tmp_path):
    """A folder with another package of the name flopscope: run code beside it."""
    (tmp_path / "flopscope").mkdir()
    (tmp_path / "flopscope" / "__init__.py").write_text("from . import numpy")
    (tmp_path / "flopscope" / "numpy.py").write_text("real = True")
    return lambda code: python("-c", code, cwd=tmp_path, PYTHONPATH=f"{tmp_path}{os.pathsep}{HERE}")

def test_an_installed_flopscope_does_not_get_in_the_way(other_flopscope):
    code = "import whestbench as w, flopscope.numpy as f, flopscope as g; print(f is w.fnp, g is w.flops)"
    assert other_flopscope(code).stdout == "True True\n"

def test_another_flopscope_imported_first_gets_one_clear_sentence(other_flopscope):
    done = other_flopscope("import flopscope, whestbench")
    assert done.returncode == 1
    assert re.search(r"whestbench.* (before|first)", done.stderr.strip().splitlines()[-1])

# ---- loading ----

def test_set_up_is_told_the_shape_and_the_place_and_is_not_billed(tmp_path, capsys):
    path = estimator_file(tmp_path, """
        import helper
        class Estimator(BaseEstimator):
            def setup(self, context):
                fnp.ones((100, 100)) @ fnp.ones((100, 100))
                helper.save(context)
            def predict(self, mlp, budget):
                assert budget == 2**30 and type(budget) is int
                return fnp.zeros((mlp.depth, mlp.width))
            def teardown(self):
                helper.save("down")""")
    (tmp_path / "helper.py").write_text("import pathlib\ndef save(what):\n  print(what, file=pathlib.Path("
                                        "__file__).with_name('log').open('a'))\n")
    status = wb.main(["run", path, *SMALL, "--seed", "5", "--flop-budget", "2**30", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert status == 0 and document["results"]["per_mlp"][0]["flops_used"] == 0
    context, last = (tmp_path / "log").read_text().splitlines()
    assert eval(context, {"SetupContext": wb.SetupContext}) == wb.SetupContext(
        width=16, depth=3, flop_budget=2**30, api_version="1.0", scratch_dir=None,
        submission_dir=str(tmp_path), seed=5)
    assert last == "down"

TWO = f"class A(BaseEstimator):\n    def predict(self, mlp, budget): {ZEROS}\nclass {{}}(A): pass"

@pytest.mark.parametrize("body, flags, chosen", [
    (TWO.format("Estimator"), (), "Estimator"), (TWO.format("B"), ("--class", "A"), "A"),
    (TWO.partition("class {}")[0], (), "A"), (TWO.partition("class {}")[0] + "\nAlias = A", (), "A")])
def test_the_class_named_estimator_wins_and_a_flag_chooses_another(body, flags, chosen, score):
    status, document, _ = score(body, *flags)
    assert status == 0 and document["run_config"]["class"] == chosen

def test_a_class_that_is_not_there_is_answered_with_those_that_are(command):
    status, _, err = command("run", TWO.format("Bravo"), *SMALL, "--class", "Brave")
    assert status == 1 and "Bravo" in err


# ==== Engine ======================================================================================

def close(value, exact, tolerance):
    """Relative to the neuron, or to its layer for neurons so seldom on that float32 cancellation decides."""
    size = np.abs(exact)
    return np.all(np.abs(value - exact) <= tolerance * np.maximum(size, 0.2 * size.mean(-1, keepdims=True)))

def draws(key, blocks, width=1024):
    """The normals of these blocks, mirror images left out, (n, width)."""
    pairs = [block_inputs(width, key, i).reshape(-1, 2, wb.GROUP // 2, width) for i in blocks]
    return np.concatenate(pairs)[:, 0].reshape(-1, width)

def test_normals_have_the_moments_the_distribution_and_the_tails():
    count, moments, tails, seen, edges = 0, np.zeros(6), np.zeros(3), np.zeros(4000), np.linspace(-6, 6, 4001)
    for i in range(60):
        x = draws(7, [i]).ravel().astype(np.float64)
        count += x.size
        moments += [(x**k).sum() for k in range(1, 7)]
        tails += [(np.abs(x) > t).sum() for t in (3, 4, 5)]
        seen += np.histogram(x, edges)[0]
    sigma = np.sqrt(np.array([1, 2, 15, 96, 945, 10170]) / count)      # of the sample moments of a normal
    assert np.all(np.abs(moments / count - [0, 1, 0, 3, 0, 15]) < 4.5 * sigma)
    expected = count * np.array([math.erfc(t / math.sqrt(2)) for t in (3, 4, 5)])
    assert np.all(np.abs(tails - expected) < 4.5 * np.sqrt(expected))
    cdf = np.array([math.erfc(-e / math.sqrt(2)) / 2 for e in edges[1:]])
    assert np.abs(np.cumsum(seen) / count - cdf).max() < 1.95 / math.sqrt(count)    # Kolmogorov-Smirnov

def test_normals_are_independent_across_lanes_rows_blocks_and_keys():
    x = draws(1, range(40)).astype(np.float64)
    for y, worst in ((x, 6), ((x**2 - 1) / math.sqrt(2), 8)):       # lanes, and their squares
        off = (y.T @ y / len(y))[~np.eye(1024, dtype=bool)] * math.sqrt(len(y))
        assert abs(off.std() - 1) < 0.01 and np.abs(off).max() < worst
    first = draws(1, [0])
    assert abs((first[1:] * first[:-1]).sum()) < 5 * math.sqrt(first.size)              # rows
    for key, index in ((1, 1), (1, 2**32), (2, 0), (1 + 2**32, 0), (2**63 + 1, 0)):
        other = draws(key, [index])
        assert abs((first * other).sum()) < 5 * math.sqrt(first.size)
        assert not np.isin(first[0, :64], other).any()

def test_a_block_s_inputs_are_antithetic_pairs_and_a_pure_function():
    x = block_inputs(100, 3, 4)
    pairs = x.reshape(-1, 2, wb.GROUP // 2, 100)
    assert x.shape == (wb.samples_per_block(100), 100) and x.dtype == np.float32
    assert (pairs[:, 0] == -pairs[:, 1]).all()
    assert (x == block_inputs(100, 3, 4)).all() and (x != block_inputs(100, 3, 5)).any()

@pytest.mark.parametrize("width, depth", [(1, 1), (1, 40), (2, 3), (7, 2), (16, 40), (100, 8), (256, 8),
                                          (256, 40), (1000, 3)])
def test_block_sums_equal_float64(width, depth):
    weights = he_weights(width, depth, seed=width)
    weights = np.abs(weights) if width < 7 else weights        # else few neurons are ever on
    sums, x = wb.simulate_block(wb.pack_weights(weights), 11, 3), block_inputs(width, 11, 3)
    z, a = forward(weights, x)
    def by_group(y): return y.reshape(-1, wb.GROUP, width).sum(1)
    assert sums.n_samples == len(x)
    for layer in range(depth):
        assert close(sums.layer_sums[layer], a[layer].sum(0), 1e-6)
        assert close(sums.layer_squares[layer], (by_group(a[layer]) ** 2).sum(0), 1e-5)
    assert close(sums.final, by_group(a[-1]), 1e-5) and close(sums.final_squares, (a[-1] ** 2).sum(0), 3e-6)
    assert close(sums.abs_z1, by_group(np.abs(z[0])), 3e-6)
    assert close(sums.square_z2, by_group(z[1] ** 2), 1e-5) if depth > 1 else not sums.square_z2.any()

def test_the_beginning_of_a_block_is_that_of_the_whole():
    network = wb.pack_weights(he_weights(64, 3))
    x = block_inputs(64, 1, 2).reshape(-1, 2, wb.GROUP // 2, 64)
    x = x.swapaxes(1, 2).reshape(-1, 64)                # pair by pair
    whole, part = (wb.simulate_block(network, 1, 2, n) for n in (None, 165))
    assert part.n_samples == 165 and (part.final[:10] == whole.final[:10]).all()
    assert close(part.layer_sums[-1], forward(he_weights(64, 3), x[:165])[1][-1].sum(0), 1e-6)
    for wrong in (0, 2**20):
        with pytest.raises(ValueError):
            wb.simulate_block(network, 1, 2, wrong)

@pytest.mark.parametrize("scale", [0, 1e-42, 1e-30, 1e12, 1e18])
def test_zero_denormal_and_huge_weights_are_right(scale):
    weights = he_weights(48, 2)
    weights[0] *= np.float32(scale)
    weights[1, :, ::3] = 0
    sums = wb.simulate_block(wb.pack_weights(weights), 1, 0)
    _, activations = forward(weights, block_inputs(48, 1, 0))
    tolerance = 1e-6 if scale != 1e-42 else 1e-2        # two digits left
    assert close(sums.layer_sums, np.array([layer.sum(0) for layer in activations]), tolerance)

@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused_before_any_work(bad):
    weights = he_weights(8, 3)
    weights[2, 1, 5] = bad
    with pytest.raises(ValueError, match="inf or NaN"):
        wb.pack_weights(weights)
    for shape in ((8, 8), (2, 8, 7), (0, 8, 8)):
        with pytest.raises(ValueError, match="shape"):
            wb.pack_weights(np.zeros(shape))

def test_bits_do_not_depend_on_workers_or_order():
    network, n = wb.pack_weights(he_weights(100, 5)), 16
    alone = [wb.simulate_block(network, 9, i) for i in range(n)]
    order = [int(i) for i in np.random.default_rng(0).permutation(n)]
    for workers in (1, 2, 3, 8):
        with ThreadPoolExecutor(workers) as executor:
            blocks = executor.map(functools.partial(wb.simulate_block, network, 9), order)
            assert all(same(block, alone[i]) for i, block in zip(order, blocks))

def plain_truth(weights, key, n_samples):
    """The truth by sampling alone, its errors from the spread of whole groups."""
    network, block = wb.pack_weights(weights), wb.samples_per_block(len(weights[0]))
    sums = [wb.simulate_block(network, key, first // block, min(block, n_samples - first))
            for first in range(0, n_samples, block)]
    groups = n_samples // wb.GROUP
    mean = sum(s.layer_sums for s in sums) / n_samples
    squares = sum(s.layer_squares for s in sums) / groups / wb.GROUP**2
    final = np.concatenate([s.final.astype(np.float64) for s in sums]) / wb.GROUP - mean[-1]
    return wb.Truth(n_samples=n_samples, mean=mean, scale=0.0,
                    standard_error=np.sqrt((squares - mean**2).clip(0) / (groups - 1)),
                    variance=sum(s.final_squares for s in sums) / n_samples - mean[-1]**2,
                    covariance=final.T @ final / groups / (groups - 1))

def test_standard_errors_from_groups_are_right():
    """200 truths of a block each: standardised errors against a long one have variance 1 and cover 95%."""
    weights, block = he_weights(16, 4, seed=5), wb.samples_per_block(16)
    long = plain_truth(weights, 1, 1000 * block)
    short = [plain_truth(weights, key, block) for key in range(2, 202)]
    scores = np.array([(t.mean - long.mean) / np.hypot(t.standard_error, long.standard_error) for t in short])
    on = long.mean > 0.05 * long.mean.mean(1, keepdims=True)    # hardly ever on: has no normal error
    variance, covered = (scores**2).mean(0)[on], (np.abs(scores) < 1.96).mean(0)[on]
    assert abs(variance.mean() - 1) < 0.1 and np.abs(variance - 1).max() < 4.5 * math.sqrt(2 / 200)
    assert abs(covered.mean() - 0.95) < 0.015


# ==== Truth =======================================================================================

CHUNK = wb.CHUNK

def truth_of(weights, key, n_samples):
    """The truth of the first `n_samples` of a stream."""
    source = wb.TruthSource(weights)
    source.key = key
    return source.at(n_samples)

@pytest.fixture(scope="module")
def truths():
    """A long truth of a network of 48 x 5, and 200 short ones: with control variates, and plain."""
    weights = he_weights(48, 5, 11)
    return (plain_truth(weights, 10**6, 2**20), [truth_of(weights, key, 2048) for key in range(200)],
            [plain_truth(weights, key, 2048) for key in range(200)])

def test_the_first_layer_is_exact_and_the_others_lie_within_their_error_bars(truths):
    long, family, plain = truths
    exact = np.linalg.norm(he_weights(48, 5, 11)[0].astype(np.float64), axis=0) / math.sqrt(2 * math.pi)
    np.testing.assert_allclose(family[0].mean[0], exact, rtol=1e-12)
    assert not family[0].standard_error[0].any()
    usual = (long.mean > 0.05)[1:]          # the error of a neuron that hardly ever fires is not normal
    for each in (family, plain):
        errors = [np.hypot(t.standard_error, long.standard_error).clip(1e-300) for t in each]
        z = np.array([((t.mean - long.mean) / error)[1:][usual] for t, error in zip(each, errors)])
        assert 0.92 < (z**2).mean() < 1.08 and 0.94 < (abs(z) < 1.96).mean() < 0.96

def test_the_covariance_of_the_final_layer_is_that_of_its_errors(truths):
    _, family, _ = truths
    seen = np.cov(np.array([t.mean[-1] for t in family]).T)
    said = np.mean([t.covariance for t in family], axis=0)
    assert np.trace(said) == pytest.approx(np.trace(seen), rel=0.08)
    assert np.linalg.norm(said - seen) < 0.35 * np.linalg.norm(seen)

def test_control_variates_leave_less_than_half_of_the_variance(truths):
    long, family, plain = truths
    ours, pairs = (np.var([t.mean[-1] for t in each], axis=0).sum() for each in (family, plain))
    assert ours < pairs and long.variance.sum() / 2048 / ours > 2

@pytest.mark.parametrize("n_samples", [1, 2, 10, 15, 17, 63, 65, 1000, 4096, 4097, 5095, 12345])
def test_a_truth_has_exactly_the_samples_asked_for(n_samples):
    truth = wb.TruthSource(wb.build_mlp(24, 3, 2).weights).at(n_samples)
    assert truth.n_samples == n_samples and np.isfinite(truth.mean).all() and truth.mean.shape == (3, 24)
    known = np.isfinite(truth.standard_error)       # a single group, or pool, says nothing of its error
    assert known.all() if n_samples > wb.GROUP * wb.POOL else not known[1:].any() or n_samples > wb.GROUP

@pytest.mark.parametrize("width, depth", [(1, 1), (1, 2), (2, 3), (3, 1), (16, 2), (65, 3), (320, 2)])
def test_the_smallest_networks_and_odd_shapes_have_truths_too(width, depth):
    weights = he_weights(width, depth, 8)
    truth = wb.TruthSource(weights).at(4 * CHUNK + 123)
    x = np.random.default_rng(0).standard_normal((2**18, width), np.float32)
    for layer, weight in enumerate(weights):
        x = np.maximum(x @ weight, 0)
        sigma = np.hypot(truth.standard_error[layer], x.std(0, dtype=np.float64) * 2**-9)
        assert np.all(abs(truth.mean[layer] - x.mean(0, dtype=np.float64)) < 5 * sigma + 1e-12)

def unbiased(exact, errors):
    """Whether corrected errors lie about the exact one, by chance alone, and their intervals cover it."""
    corrected = np.array([error.corrected for error in errors])
    noise = math.hypot(corrected.std() / math.sqrt(len(errors)), exact.standard_error)
    half = [1.96 * math.hypot(error.standard_error, exact.standard_error) for error in errors]
    covered = (abs(corrected - exact.corrected) < half).mean()
    return abs(corrected.mean() - exact.corrected) < 3.5 * noise and 0.9 < covered < 0.99

@pytest.mark.parametrize("size", [0.3, 0.03, 0.01])
def test_the_corrected_error_is_unbiased_and_its_interval_covers(size, truths):
    long, family, _ = truths
    prediction = long.mean[-1] + size * np.random.default_rng(0).standard_normal(48)
    assert unbiased(wb.final_error(prediction, long), [wb.final_error(prediction, t) for t in family])

@pytest.mark.parametrize("multipliers", [(0.1, -0.1), (0.1, -0.3)])
def test_the_difference_of_two_errors_is_unbiased_and_its_interval_covers(multipliers, truths):
    long, family, _ = truths
    draw = np.random.default_rng(0).standard_normal
    for size in (0.3, 0.03, 0.01):
        shared = long.mean[-1] + size * draw(48)
        two = [shared, shared + size / 3 * draw(48)]
        exact = wb.final_error(two, long, multipliers)
        one_by_one = [m * wb.final_error(p, long).corrected for p, m in zip(two, multipliers)]
        assert exact.corrected == pytest.approx(sum(one_by_one))
        assert unbiased(exact, [wb.final_error(two, t, multipliers) for t in family])

def test_sampling_stops_when_the_score_is_precise_enough():
    error = wb.TruthError(raw=1.01, noise_floor=0.01, variance=0.0004)
    assert error.standard_error == pytest.approx(0.02) and error.corrected == 1.0
    assert error.precise(0.0201) and not error.precise(0.0199)
    assert not wb.TruthError(0.5, 0.4, 1e-9).precise(0.5)       # the noise floor counts, too

def test_student_s_t_is_that_of_the_tables():
    for dof, t in ((1, 12.7062), (2, 4.30265), (5, 2.57058), (9, 2.26216), (30, 2.04227), (99, 1.98422)):
        assert wb.student_975(dof) == pytest.approx(t, rel=3e-6)
    assert wb.student_cdf(-1.0, 1) == pytest.approx(0.25) and wb.student_cdf(0.0, 4) == 0.5

def test_an_explicit_number_of_samples_is_kept_and_auto_reaches_its_precision(score):
    half = "return fnp.full((mlp.depth, mlp.width), 0.5)"
    fixed, auto = (score(half, *flags)[1]["results"] for flags in ((), ("--n-samples", "auto")))
    assert {entry["truth_n_samples"] for entry in fixed["per_mlp"]} == {2048}
    n, = {entry["truth_n_samples"] for entry in auto["per_mlp"]}
    assert n >= CHUNK and math.log2(n / CHUNK).is_integer()
    corrected = auto["corrected"]
    assert max(corrected["standard_error"], corrected["noise_floor"]) <= 0.02 * corrected["score"]


# ==== Truth: growing, remembered, shared ==========================================================

@pytest.fixture(scope="module")
def mlp():
    return wb.build_mlp(64, 4, 7)

@pytest.fixture
def store(tmp_path):
    return wb.TruthStore(tmp_path / "cache")

def whest_with(*arguments, cache, code=0):
    return whest(*arguments, WHESTBENCH_CACHE=str(cache), check=code)

def run_json(*arguments, cache):
    done = whest_with("run", *arguments, "--format", "json", cache=cache)
    document = json.loads(done.stdout)
    return document["results"] | {"stderr": done.stderr, "config": document["run_config"]}

# ---- growing ----

@pytest.mark.parametrize("n", [4 * CHUNK, 11 * CHUNK, 5 * CHUNK + 1000])
def test_any_way_to_a_number_of_samples_gives_the_same_bits(n, mlp, store):
    direct = wb.TruthSource(mlp.weights).at(n)
    stepwise = wb.TruthSource(mlp.weights)
    for m in (5000, 100, CHUNK, 3 * CHUNK + 17, 2 * CHUNK + 17, n):
        last = stepwise.at(m)
    kept = wb.TruthSource(mlp.weights, store)
    kept.at(2 * CHUNK), kept.at(n)
    assert same(direct, last) and same(direct, kept.at(n))
    assert same(direct, wb.TruthSource(mlp.weights, store).at(n))
    kept.at(16 * CHUNK)                                             # fewer, after more
    assert same(wb.TruthSource(mlp.weights).at(3 * CHUNK), kept.at(3 * CHUNK))
    assert same(wb.TruthSource(mlp.weights).at(32 * CHUNK), wb.TruthSource(mlp.weights, store).at(32 * CHUNK))

@pytest.mark.parametrize("n", [1, 16, 32, 320])         # too few for control variates
def test_samples_are_those_of_the_stream(n, mlp):
    source = wb.TruthSource(mlp.weights)
    x = block_inputs(mlp.width, source.key, 0)[:n]
    mean = forward(mlp.weights, x)[1][-1].mean(0)
    np.testing.assert_allclose(source.at(n).mean[-1], mean, rtol=1e-5, atol=2e-6)

def test_networks_have_streams_of_their_own(mlp):
    other = wb.build_mlp(64, 4, 8)
    a, b = wb.TruthSource(mlp.weights), wb.TruthSource(other.weights)
    assert a.key != b.key and a.name != b.name
    assert wb.TruthSource([w.copy() for w in mlp.weights]).name == a.name

def test_blas_threads_move_no_bit():
    code = ("import numpy, whestbench as wb\n"
            "truth = wb.TruthSource(wb.build_mlp(256, 3, 0).weights).at(12000)\n"
            "print(wb.fingerprint(*map(numpy.asarray, vars(truth).values())))")
    one, two = (python("-c", code, check=0, OPENBLAS_NUM_THREADS=n).stdout for n in "12")
    assert one == two

class Wanted:
    """An error that is precise from n samples on."""

    def __init__(self, truths, n):
        self.ok = truths[0].n_samples >= n

    def precise(self, precision):
        return self.ok

def test_auto_stops_at_the_first_checkpoint_whatever_the_store_holds(mlp, store):
    mlps = [mlp, wb.build_mlp(64, 4, 9)]
    wb.TruthSource(mlp.weights, store).at(64 * CHUNK)
    for kept in (None, store, store):
        calls = []
        truths, error = wb.grow_together([wb.TruthSource(m.weights, kept) for m in mlps],
                                         error_of=lambda t: Wanted(t, 7 * CHUNK),
                                         progress=lambda *call, calls=calls: calls.append(call))
        assert [t.n_samples for t in truths] == [8 * CHUNK] * 2 and error.ok
        assert all(0 <= done <= todo for done, todo, _ in calls)
    truths, error = wb.grow_together([wb.TruthSource(mlp.weights)], error_of=lambda t: Wanted(t, 1e99),
                                     max_work=2 * 64 * 64 * 4 * 5 * CHUNK)
    assert truths[0].n_samples == 4 * CHUNK and not error.ok

def test_run_auto_is_deterministic_whatever_is_stored(zeros_file, tmp_path):
    def run(cache, *extra):
        out = run_json(zeros_file, "--width", 32, "--depth", 3, "--n-mlps", 2, *extra, cache=cache)
        return [(e["truth_n_samples"], e["final_layer_mse"], e["noise_floor"])
                for e in out["per_mlp"]], out["corrected"]
    first = run(tmp_path / "a")
    assert run(tmp_path / "a") == first                                     # from the store
    run(tmp_path / "b", "--n-samples", 100_000)
    assert run(tmp_path / "b") == first                                     # a store that holds other truths
    assert run(tmp_path / "c", "--no-store") == first and not (tmp_path / "c").exists()

# ---- the store ----

def flipped(data, place):
    return data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1:]

def archive(**arrays):
    """The bytes of an .npz file."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()

DAMAGE = {          # how: what becomes of the bytes of a file
    "truncated": lambda data: data[:len(data) // 2], "empty": lambda data: b"",
    "text": lambda data: b"not yours",
    "npy": lambda data: b"\x93NUMPY" + data, "pickle": lambda data: archive(name=np.array([{}], object)),
    "other npz": lambda data: archive(a=np.ones(3)), "first byte": lambda data: flipped(data, 0),
    "a byte of data": lambda data: flipped(data, len(data) * 2 // 3),
    "last byte": lambda data: flipped(data, len(data) - 1),
    "a directory byte": lambda data: flipped(data, len(data) - 120)}

def damage(path, how):
    if how == "folder":
        path.unlink()
        path.mkdir()
    elif how == "another network's":
        other = wb.TruthSource(wb.build_mlp(64, 4, 99).weights, wb.TruthStore(path.parents[2]))
        other.at(4 * CHUNK + 5)
        shutil.copy(path.parents[1] / other.name / path.name, path)
    else:
        path.write_bytes(DAMAGE[how](path.read_bytes()))

@pytest.mark.parametrize("how", [*DAMAGE, "folder", "another network's"])
def test_bad_files_are_sampled_again(mlp, tmp_path, capfd, how):
    n = 4 * CHUNK + 5
    expected = wb.TruthSource(mlp.weights).at(n)
    first = wb.TruthSource(mlp.weights, wb.TruthStore(tmp_path))
    first.at(n)
    for path in list(tmp_path.glob(f"*/{first.name}/*.npz")):
        damage(path, how)
    capfd.readouterr()
    store = wb.TruthStore(tmp_path)
    assert same(expected, wb.TruthSource(mlp.weights, store).at(n))
    assert same(wb.TruthSource(mlp.weights).at(2 * n), wb.TruthSource(mlp.weights, store).at(2 * n))
    warned = capfd.readouterr().err.splitlines()
    assert len(warned) <= 1 and (warned or how == "last byte")
    if how != "folder":                                                     # mended
        assert same(expected, wb.TruthSource(mlp.weights, wb.TruthStore(tmp_path)).at(n))
        assert not capfd.readouterr().err

def test_a_file_in_the_place_of_the_store_is_no_obstacle(mlp, tmp_path, capfd):
    (tmp_path / "cache").write_text("in the way")
    truth = wb.TruthSource(mlp.weights, wb.TruthStore(tmp_path / "cache")).at(5000)
    assert same(wb.TruthSource(mlp.weights).at(5000), truth) and capfd.readouterr().err.count("\n") == 1

@pytest.mark.skipif(sys.platform != "linux", reason="root may write anywhere else")
def test_a_read_only_store_is_no_obstacle(zeros_file):
    shape = ("--width", 16, "--depth", 2, "--n-mlps", 1)
    refused = run_json(zeros_file, *shape, cache="/proc/whestbench")
    free = run_json(zeros_file, *shape, "--no-store", cache="/proc/whestbench")
    assert refused["corrected"] == free["corrected"]
    assert refused["stderr"].count("cannot use /proc/whestbench") == 1 and "/proc" not in free["stderr"]

def test_a_full_disk_leaves_nothing_half_written(tmp_path):
    """A limit on the size of files stands for a full disk: writing stops with an OSError half-way."""
    code = f"""if 1:
        import resource, signal, whestbench as wb
        m = wb.build_mlp(64, 4, 7); expected = wb.TruthSource(m.weights).at(9000)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
        t = wb.TruthSource(m.weights, wb.TruthStore({str(tmp_path)!r})).at(9000)
        assert (t.mean == expected.mean).all()"""
    done = python("-c", code, check=0)
    assert done.stderr.count("\n") == 1 and "cannot use" in done.stderr
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]      # nothing half written stays behind

def growing_process(tmp_path, loop):
    """A process that grows the truth `s` of a network, shared with others by the store in this folder."""
    code = f"""import whestbench as wb; CHUNK = wb.CHUNK
s = wb.TruthSource(wb.build_mlp(64, 4, 7).weights, wb.TruthStore({str(tmp_path)!r}))
{loop}"""
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True, cwd=HERE)

def test_processes_may_share_a_store_at_once(mlp, tmp_path):
    loop = "for k in range(6): t = s.at(CHUNK * 2**k + 7)\nprint(wb.fingerprint(t.mean, t.covariance))"
    jobs = [growing_process(tmp_path, loop) for _ in range(3)]
    outs = [job.communicate(timeout=60) for job in jobs]
    expected = wb.TruthSource(mlp.weights).at(CHUNK * 32 + 7)
    assert {out for out, _ in outs} == {wb.fingerprint(expected.mean, expected.covariance) + "\n"}
    assert not any(err for _, err in outs), outs
    assert same(expected, wb.TruthSource(mlp.weights, wb.TruthStore(tmp_path)).at(CHUNK * 32 + 7))

def test_a_killed_process_leaves_a_store_that_goes_on(mlp, tmp_path, capfd):
    expected = wb.TruthSource(mlp.weights).at(40 * CHUNK + 3)
    job = growing_process(tmp_path, "for k in range(1, 10**6): s.at(k * CHUNK); print(k, flush=True)")
    job.stdout.readline()
    time.sleep(0.013)
    job.kill()                                                          # SIGKILL
    job.communicate()
    assert same(expected, wb.TruthSource(mlp.weights, wb.TruthStore(tmp_path)).at(40 * CHUNK + 3))
    assert not capfd.readouterr().err

def test_ctrl_c_keeps_what_was_done(mlp, store):
    def interrupt(done, todo, error):
        if done >= 21 * CHUNK:
            raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        wb.grow_together([wb.TruthSource(mlp.weights, store)], 64 * CHUNK, progress=interrupt)
    nodes, source = [], wb.TruthSource(mlp.weights, store)
    (truth,), _ = wb.grow_together([source], 64 * CHUNK, progress=lambda *node: nodes.append(node))
    assert same(wb.TruthSource(mlp.weights).at(64 * CHUNK), truth) and len(nodes) <= 64 - 21

def test_a_store_forgets_what_was_used_longest_ago(tmp_path):
    """Room for three files and a half: whichever was read or written last is kept."""
    def kept(): return {name for name in "abcdef" if (store.folder / name / "1.npz").exists()}
    arrays = {"x": np.random.default_rng(0).standard_normal(1000)}
    store = wb.TruthStore(tmp_path)
    store.put("a/1", arrays)
    size = (store.folder / "a" / "1.npz").stat().st_size
    store = wb.TruthStore(tmp_path, limit=int(3.5 * size))
    for age, name in ((30, "c"), (20, "b")):
        store.put(f"{name}/1", arrays)
        os.utime(store.folder / name / "1.npz", (time.time() - age,) * 2)
    os.utime(store.folder / "a" / "1.npz", (time.time() - 40,) * 2)
    assert kept() == set("abc")
    np.testing.assert_array_equal(store.get("a/1")["x"], arrays["x"])   # now the oldest is c
    store.put("d/1", arrays)
    assert kept() == set("abd")
    store.put("e/1", arrays)
    assert kept() == set("ade") and store.get("b/1") is None
    assert wb.STORE_LIMIT in (2 * 10**9, 2 * 2**30)

def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("WHESTBENCH_CACHE", str(tmp_path / "a"))
    assert wb.TruthStore().folder.parent == tmp_path / "a"
    monkeypatch.delenv("WHESTBENCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert wb.TruthStore().folder.parent == tmp_path / "b" / "whestbench"

# ---- suites ----

@pytest.fixture(scope="module")
def suite_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("suite") / "suite.npz"
    mlps = list(wb.sample_suite(2, 16, 3, 5))
    truths = [wb.TruthSource(m.weights).at(5000) for m in mlps]
    wb.write_suite(path, mlps, truths, {"seed": 5})
    return path, mlps, truths

def test_a_suite_survives_being_written_and_read(suite_file):
    path, mlps, truths = suite_file
    about = wb.describe_dataset(path)
    assert (about["seed"], about["n_mlps"], about["path"]) == (5, 2, str(path.resolve()))
    for old, a, (new, b) in zip(mlps, truths, wb.read_dataset(path), strict=True):
        assert (old.name, old.seed, old.width, old.depth) == (new.name, new.seed, new.width, new.depth)
        np.testing.assert_array_equal(old.weights, new.weights)
        assert same(a, b)
    assert len(list(wb.read_dataset(path, n_mlps=1))) == 1

def with_other(path, key, change, target):
    """A copy of a suite with one array changed, or left out."""
    with np.load(path) as file:
        arrays = dict(file)
    array = arrays.pop(key)
    np.savez(target, **arrays, **({key: change(array)} if change else {}))
    return target

@pytest.mark.parametrize("how", [
    "truncated", "empty", "text", "npy", "pickle", "other npz", "a byte of data",
    ("0/weights", lambda a: a * 2), ("0/weights", lambda a: a[:, :, :-1]), ("0/weights", None),
    ("1/mean", lambda a: a + 1e-9), ("1/mean", None)])
def test_damaged_and_altered_suites_are_refused(suite_file, tmp_path, how):
    shutil.copy(suite_file[0], path := tmp_path / "s.npz")
    damage(path, how) if isinstance(how, str) else with_other(path, *how, path)
    with pytest.raises(wb.InvalidDatasetError, match=r"s\.npz" if isinstance(how, str) else "hash"):
        list(wb.read_dataset(path))

def test_a_suite_is_read_one_network_after_the_other(suite_file, tmp_path):
    pairs = wb.read_dataset(with_other(suite_file[0], "1/mean", np.negative, tmp_path / "s.npz"))
    assert same(next(pairs)[1], suite_file[2][0])       # what is wrong with the second is not yet met
    with pytest.raises(wb.InvalidDatasetError):
        next(pairs)

@pytest.mark.parametrize("of_mlp, of_truth, says", [
    (lambda mlp: {"weights": [np.full((16, 16), np.inf, np.float32)] * 3}, lambda t: {}, "finite"),
    (lambda mlp: {"weights": [np.ones((16, 15), np.float32)] * 3}, lambda t: {}, "weights"),
    (lambda mlp: {}, lambda t: {"mean": t.mean * np.nan}, "finite"),
    (lambda mlp: {}, lambda t: {"mean": t.mean[:2]}, "truth")])
def test_suites_that_hash_well_and_are_wrong_are_refused(of_mlp, of_truth, says, suite_file, tmp_path):
    _, (mlp, _), (truth, _) = suite_file
    wb.write_suite(tmp_path / "s.npz", [replace(mlp, **of_mlp(mlp))], [replace(truth, **of_truth(truth))], {})
    with pytest.raises(wb.InvalidDatasetError, match=says):
        list(wb.read_dataset(tmp_path / "s.npz"))

def test_a_baked_suite_is_run_and_baked_anew_with_more_samples(zeros_file, tmp_path):
    suite, cache = tmp_path / "s.npz", tmp_path / "cache"
    shape = ("--width", 32, "--depth", 3)
    whest_with("bake", suite, *shape, "--n-mlps", 2, "--n-samples", 20_000, "--seed", 3, cache=cache)
    baked = run_json(zeros_file, "--dataset", suite, cache=cache)
    live = run_json(zeros_file, *shape, "--n-mlps", 2, "--n-samples", 20_000, "--seed", 3,
                    cache=tmp_path / "other")
    for key in ("adjusted_final_layer_score", "corrected"):
        assert baked[key] == live[key]
    assert baked["config"]["dataset"]["n_mlps"] == 2
    for asked, scored in ((1, 1), (3, 2)):      # as the real one
        run = run_json(zeros_file, "--dataset", suite, "--n-mlps", asked, cache=cache)
        assert len(run["per_mlp"]) == scored
    assert "exists" in whest_with("bake", suite, *shape, cache=cache, code=2).stderr
    suite.unlink()
    whest_with("bake", suite, *shape, "--n-mlps", 2, "--n-samples", 50_000, "--seed", 3, cache=cache)
    for mlp, truth in wb.read_dataset(suite):
        assert truth.n_samples == 50_000 and same(truth, wb.TruthSource(mlp.weights).at(50_000))
    suite.write_bytes(suite.read_bytes()[:-500])
    done = whest_with("run", zeros_file, "--dataset", suite, cache=cache, code=1)
    assert "not a usable suite" in done.stderr and done.stderr.count("\n") == 1

# ---- datasets of the real package ----

REAL_CLI = "import sys; from whestbench.cli import main; sys.exit(main(sys.argv[1:]))"

@pytest.fixture(scope="session")
def real_whestbench(oracle_folder, tmp_path_factory):
    """Run code where whestbench is the real package: its standard output."""
    package, folder = oracle_folder("whestbench-0.16.2"), tmp_path_factory.mktemp("real")
    return lambda code, *arguments, check=0: python("-c", code, *arguments, cwd=folder, check=check,
                                                    PYTHONPATH=str(package), HF_HOME=str(folder)).stdout

@pytest.fixture(scope="session")
def real_dataset(real_whestbench, tmp_path_factory):
    """A dataset baked by the real package, an estimator, and the real document of its score."""
    needs("pyarrow")
    folder = tmp_path_factory.mktemp("dataset")
    (folder / "seeds.json").write_text("[11, 22, 33]")
    path = estimator_file(folder, "return fnp.ones((mlp.depth, mlp.width)) * 0.5")
    real_whestbench(REAL_CLI, "dataset", "bake", "--n-mlps", 3, "--n-samples", 2000, "--width", 8,
                    "--depth", 3, "--mlp-seeds", folder / "seeds.json", "--output", folder / "baked")
    return folder / "baked", path, json.loads(real_whestbench(
        REAL_CLI, "run", "--dataset", folder / "baked", "--estimator", path, "--format", "json"))

@pytest.fixture
def dataset_copy(real_dataset, tmp_path):
    """A copy of it that may be spoiled: its folder, and a function that changes its metadata."""
    shutil.copytree(real_dataset[0], folder := tmp_path / "d")
    about = json.loads((folder / "metadata.json").read_text())
    return folder, lambda **changed: (folder / "metadata.json").write_text(json.dumps(about | changed))

def test_a_dataset_scores_as_in_the_real_package(real_dataset, tmp_path):
    folder, path, real = real_dataset
    ours = run_json(path, "--round", "v2-phase2", "--dataset", folder, cache=tmp_path)
    assert [e["mlp_name"] for e in ours["per_mlp"]] == [e["mlp_name"] for e in real["results"]["per_mlp"]]
    for key in ("final_layer_mse", "all_layers_mse", "adjusted_final_layer_score"):
        assert ours[key] == pytest.approx(real["results"][key], rel=3e-6)
    about = wb.describe_dataset(folder)
    for key in ("sha256", "seed", "n_mlps"):
        assert ours["config"]["dataset"][key] == about[key] == real["run_config"]["dataset"][key]
    assert len(run_json(path, "--dataset", folder, "--n-mlps", 2, cache=tmp_path)["per_mlp"]) == 2

def test_a_dataset_is_read_as_by_the_real_package(real_dataset, tmp_path):
    mlps = [mlp for mlp, _ in wb.read_dataset(real_dataset[0])]
    assert [m.seed for m in mlps] == [504589216, 3333880692, 1359142240]        # of the real package
    streams = [np.random.default_rng(np.random.SeedSequence(s).spawn(3)[0]) for s in (11, 22, 33)]
    for mlp, rng in zip(mlps, streams, strict=True):
        np.testing.assert_array_equal(mlp.weights, wb.sample_mlp(8, 3, rng).weights)
    with pytest.raises(wb.InvalidDatasetError, match=r"Unknown split"):
        list(wb.read_dataset(real_dataset[0], split="nope"))
    with pytest.raises(wb.InvalidDatasetError, match="nowhere"):
        list(wb.read_dataset(tmp_path / "nowhere"))

def test_published_truths_have_error_bars(real_dataset):
    """Theirs, of 2000 samples, lie about a long truth of ours as their error bars say."""
    z = []
    for mlp, truth in wb.read_dataset(real_dataset[0]):
        long = wb.TruthSource(mlp.weights).at(200_000)
        z.append((truth.mean - long.mean) / truth.standard_error)
        assert truth.n_samples == 2000
        row_variance = np.trace(truth.covariance) * 2000 / 8
        assert row_variance == pytest.approx(truth.variance.mean())
    assert len(z) == 3 and 0.5 < np.sqrt(np.nanmean(np.square(z))) < 1.5

SALT = bytes.fromhex("00ff" * 8)

@pytest.mark.parametrize("version, extra", [("2.0", {}), ("4.0", {"salt": SALT.hex()}),
                                            ("4.0", {"salt_source": "env"})])
def test_every_seed_protocol_gives_its_seeds(dataset_copy, monkeypatch, version, extra):
    folder, rewrite = dataset_copy
    protocol = {"name": "x", "version": version, **extra, "salt_digest": hashlib.sha256(SALT).hexdigest()}
    rewrite(seed_protocol=protocol, seed=4)
    monkeypatch.setenv("WHEST_SEED_SALT", SALT.hex())
    expected = [11, 22, 33]
    if version != "2.0":
        digests = [hashlib.blake2b(seed.to_bytes(8, "big"), digest_size=8, key=SALT, person=b"whest-4.0-est")
                   for seed in expected]
        expected = [int.from_bytes(digest.digest()[-4:], "big") for digest in digests]
    assert [mlp.seed for mlp, _ in wb.read_dataset(folder)] == expected
    if version == "4.0":
        monkeypatch.setenv("WHEST_SEED_SALT", "11")
        rewrite(seed_protocol=protocol | {"salt": "11"})
        with pytest.raises(wb.InvalidDatasetError, match="salt"):
            list(wb.read_dataset(folder))

@pytest.mark.parametrize("change", [{"schema_version": "9"}, {"is_partial": True}, {"width": 9},
                                    {"seed_protocol": {"version": "7"}}, "metadata", "data"])
def test_bad_datasets_are_refused(dataset_copy, change):
    folder, rewrite = dataset_copy
    if isinstance(change, dict):
        rewrite(**change)
    elif change == "metadata":
        (folder / "metadata.json").write_text("{")
    else:
        parquet = next((folder / "data").iterdir())
        parquet.write_bytes(parquet.read_bytes()[:999])
    with pytest.raises(wb.InvalidDatasetError):
        list(wb.read_dataset(folder))

@pytest.mark.parametrize("column, says", [("all_layer_means", "five standard errors"), ("weights", "five standard"),
                                          ("final_means", "final means"), ("weights", "not finite")])
def test_a_dataset_whose_numbers_do_not_fit_each_other_is_refused(dataset_copy, column, says):
    pq = needs("pyarrow.parquet")
    file = next((dataset_copy[0] / "data").iterdir())
    table = pq.read_table(file)

    def spoiled(value):
        if not isinstance(value, list):
            return math.nan if says == "not finite" else value + 9
        return [spoiled(value[0]), *value[1:]]
    values, at = table.column(column).to_pylist(), table.schema.get_field_index(column)
    array = needs("pyarrow").array([spoiled(values[0]), *values[1:]], table.schema.types[at])
    pq.write_table(table.set_column(at, table.schema.field(at), array), file)
    with pytest.raises(wb.InvalidDatasetError, match=says):
        list(wb.read_dataset(dataset_copy[0]))

def test_missing_extras_name_the_extra(real_dataset, monkeypatch):
    folder = real_dataset[0]
    for module, extra, path in (("huggingface_hub", "hub", "hf://owner/name"),
                                ("pyarrow.parquet", "parquet", folder)):
        says = rf"pip install {module.partition('.')[0]} .*{extra}"
        with monkeypatch.context() as patch, pytest.raises(wb.WhestError, match=says):
            patch.setitem(sys.modules, module, None)
            list(wb.read_dataset(path))

def test_a_dataset_is_fetched_by_its_name_and_revision(real_dataset, monkeypatch):
    fetched = []
    monkeypatch.setitem(sys.modules, "huggingface_hub", type("hub", (), {"snapshot_download": staticmethod(
        lambda repo, **kw: fetched.append((repo, kw["repo_type"], kw["revision"])) or str(real_dataset[0]))}))
    assert len(list(wb.read_dataset("hf://owner/name@abc"))) == 3
    assert set(fetched) == {("owner/name", "dataset", "abc")}

# ---- Dask ----

def test_dask_gives_the_same_bits_through_the_loss_of_a_worker(tmp_path, monkeypatch):
    distributed = needs("distributed")
    mlp = wb.build_mlp(128, 3, 1)
    n = 80 * CHUNK + 700
    expected = wb.TruthSource(mlp.weights).at(n)
    monkeypatch.chdir(tmp_path)         # workers do not find whestbench by chance
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None,
                                  local_directory=str(tmp_path)) as cluster:
        executor = wb.DaskExecutor(cluster.scheduler_address)
        killed = []
        def progress(done, todo, error):
            if not killed and done > 8 * CHUNK:
                killed.append(next(iter(cluster.workers.values())).process.process.pid)
                os.kill(killed[0], signal.SIGKILL)
        truths, _ = wb.grow_together([wb.TruthSource(mlp.weights)], n, executor=executor, progress=progress)
        assert killed and same(expected, truths[0])
        executor.client.close()

@pytest.mark.parametrize("address, why", [("nowhere", "port"), ("tcp://127.0.0.1:1", "Timed out"),
                                          ("x://y:1", "scheme")])
def test_an_address_without_a_dask_cluster_gets_one_sentence(address, why, tmp_path, capsys):
    needs("distributed")
    assert wb.main(["bake", str(tmp_path / "s.npz"), *SHAPE, "--n-mlps", "1", "--n-samples", "64", "--dask",
                    address]) == 1
    gc.collect()        # a client that is collected while another starts would stop both for ever
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("whest: ") and err.count("\n") == 1 and address in err and why in err
    assert not list(tmp_path.iterdir())

def test_a_dask_cluster_without_workers_gets_one_sentence(tmp_path, capsys):
    with needs("distributed").LocalCluster(n_workers=0, dashboard_address=None,
                                           local_directory=str(tmp_path)) as cluster:
        assert wb.main(["bake", str(tmp_path / "s.npz"), *SHAPE, "--dask", cluster.scheduler_address]) == 1
    assert "no workers" in capsys.readouterr().err


# ==== Baselines ===================================================================================

@pytest.fixture(scope="module")
def network():
    """A network with its means by a million plain samples in float64-summed NumPy."""
    mlp = wb.build_mlp(24, 4, seed=3)
    x = np.random.default_rng(0).standard_normal((2**20, 24), dtype=np.float32)
    means = []
    for weight in mlp.weights:
        x = np.maximum(x @ np.asarray(weight), 0)
        means.append(x.mean(axis=0, dtype=np.float64))
    return mlp, np.array(means)

def test_the_baselines_rank_as_they_should(network):
    mlp, means = network
    assert set(wb.BASELINES) == {"zeros", "sampling", "mean_propagation", "covariance_propagation"}
    error = {name: float(((np.asarray(f(mlp, 10**9)) - means)[-1] ** 2).mean())
             for name, f in wb.BASELINES.items()}
    assert error["sampling"] < error["covariance_propagation"] < error["mean_propagation"] < error["zeros"]
    assert error["zeros"] == pytest.approx((means[-1] ** 2).mean())

@pytest.mark.parametrize("name", ["mean_propagation", "covariance_propagation"])
def test_propagation_is_exact_in_the_first_layer(name, network):
    mlp, _ = network
    exact = np.linalg.norm(np.asarray(mlp.weights[0], dtype=np.float64), axis=0) / math.sqrt(2 * math.pi)
    prediction = np.asarray(wb.BASELINES[name](mlp, 10**9))
    np.testing.assert_allclose(prediction[0], exact, rtol=1e-6)         # float32 weights squared

@pytest.mark.parametrize("prices", BOOKS)
@pytest.mark.parametrize("name", wb.BASELINES)
def test_each_baseline_keeps_to_the_contract_and_the_budget(name, prices, network):
    with wb.BudgetContext(10**8, quiet=True, prices=prices) as context:
        prediction = wb.BASELINES[name](network[0], 10**8)
    assert prediction.shape == (4, 24) and np.isfinite(prediction).all()
    assert context.flops_used < {"sampling": 1.1e7}.get(name, 1e6)

def test_sampling_spends_what_costs_nothing_more():
    with wb.BudgetContext(10**8, quiet=True) as context:
        wb.sampling(wb.build_mlp(24, 4, seed=3), 10**8)
    assert 0.085 < context.flops_used / 10**8 <= 0.1


# ==== Scoring =====================================================================================

RULES = replace(wb.ROUNDS["v1-warmup"], width=2, depth=2, flop_budget=1000, lambda_flops_per_second=100.0,
                wall_time_limit=10.0, residual_wall_time_limit=5.0)
MEANS = np.array([[1.0, 2.0], [3.0, 4.0]])

def scored(*outcomes, rules=RULES, error=0.0):
    """Results of these outcomes against truths of MEANS, whose final means have this standard error."""
    truth = wb.Truth(n_samples=10**9, mean=MEANS, standard_error=np.array([[0.0, 0.0], [error, error]]),
                     variance=np.ones(2), covariance=np.eye(2) * error**2, scale=0.0)
    n, mlp = len(outcomes), wb.MLP(2, 2, [np.eye(2, dtype="f4")] * 2)
    return wb.score_suite([mlp] * n, [o.apply_limits(rules) for o in outcomes], [truth] * n, rules, 0.02)

def test_the_score_is_the_final_layer_s_error_times_the_share_of_the_budget():
    prediction = np.array([[1.0, 1.0], [5.0, 4.0]], dtype="f4")     # squared errors 0 1 / 4 0
    entry, = scored(wb.Outcome(prediction, flops_used=400, residual_wall_time_s=2.0))["per_mlp"]
    assert entry["effective_compute"] == 400 + 100 * 2.0
    assert (entry["final_layer_mse"], entry["all_layers_mse"]) == (2.0, 1.25)
    assert entry["per_layer_mse"] == [0.5, 2.0]
    assert entry["adjusted_final_layer_score"] == pytest.approx(2.0 * 0.6)
    assert not any(entry[flag] for flag in wb.FLAGS) and "error" not in entry

@pytest.mark.parametrize("flops_used, multiplier", [(0, 0.1), (99, 0.1), (100, 0.1), (250, 0.25),
                                                    (1000, 1.0)])
def test_spending_less_than_a_tenth_earns_nothing_more(flops_used, multiplier):
    entry, = scored(wb.Outcome(np.zeros((2, 2)), flops_used=flops_used))["per_mlp"]
    assert entry["adjusted_final_layer_score"] == pytest.approx(12.5 * multiplier)

@pytest.mark.parametrize("outcome, flag", [
    (dict(flops_used=900, residual_wall_time_s=1.01), "combined_budget_exhausted"),
    (dict(residual_wall_time_s=5.01, wall_time_s=5.1), "residual_wall_time_exhausted"),
    (dict(wall_time_s=10.1, residual_wall_time_s=6.0), "time_exhausted")])
def test_a_prediction_over_a_limit_is_scored_as_zeros_at_the_full_budget(outcome, flag):
    entry, = scored(wb.Outcome(MEANS.astype("f4"), **outcome))["per_mlp"]
    assert [name for name in wb.FLAGS if entry[name]] == [flag]
    assert entry["final_layer_mse"] == entry["adjusted_final_layer_score"] == (9 + 16) / 2
    assert entry["flops_used"] == outcome.get("flops_used", 0)

def test_limits_are_strict_and_a_round_without_a_limit_has_none():
    exact = dict(flops_used=500, residual_wall_time_s=5.0, wall_time_s=10.0)
    entry, = scored(wb.Outcome(MEANS.astype("f4"), **exact))["per_mlp"]
    assert not any(entry[flag] for flag in wb.FLAGS) and entry["adjusted_final_layer_score"] == 0
    lax = replace(RULES, residual_wall_time_limit=None, wall_time_limit=None, lambda_flops_per_second=0.0)
    entry, = scored(wb.Outcome(MEANS.astype("f4"), residual_wall_time_s=1e6, wall_time_s=1e6),
                    rules=lax)["per_mlp"]
    assert not any(entry[flag] for flag in wb.FLAGS)

def test_the_suite_averages_its_networks_and_counts_its_failures():
    results = scored(wb.Outcome(MEANS.astype("f4") + 1, flops_used=200),            # MSE 1, multiplier 0.2
                     wb.Outcome(flops_used=1000, flag="budget_exhausted"),          # MSE 12.5, multiplier 1
                     wb.Outcome(error={"message": "x", "details": {}}, error_code="PREDICT_ERROR"))
    expected = dict(
        adjusted_final_layer_score=(0.2 + 12.5 + 12.5) / 3, final_layer_mse=(1 + 12.5 + 12.5) / 3,
        all_layers_mse=(1 + 7.5 + 7.5) / 3, per_layer_mse=[(1 + 2.5 + 2.5) / 3, (1 + 12.5 + 12.5) / 3],
        best_mlp_adjusted_final_layer_score=0.2, worst_mlp_adjusted_final_layer_score=12.5,
        mean_score_multiplier=2.2 / 3, mean_compute_utilization=1.2 / 3, mean_effective_compute=400)
    for name, value in expected.items():
        assert results[name] == pytest.approx(value), name
    assert results["n_failed_mlps"] == 2
    assert results["failure_breakdown"] == dict.fromkeys(wb.FLAGS, 0) | {"budget_exhausted": 1, "error": 1}

def test_the_corrected_error_leaves_out_the_truth_s_own_noise():
    results = scored(wb.Outcome(MEANS.astype("f4") + 1), wb.Outcome(MEANS.astype("f4") + 2), error=0.5)
    assert [e["final_layer_mse"] for e in results["per_mlp"]] == [1.0, 4.0]
    assert [e["corrected_final_layer_mse"] for e in results["per_mlp"]] == pytest.approx([0.75, 3.75])
    assert results["corrected"]["score"] == pytest.approx(0.1 * 2.25)
    # The variance of a mean of (d + e)^2 over two neurons is (4 d'Sd + 2 tr SS) / 4, with S = I / 4. What is
    # seen of d, here 1 and 2, holds noise too: tr SS is what that adds to d'Sd.
    variance = [(4 * (d * d * 2 / 4 - 2 / 16) + 2 * 2 / 16) / 4 for d in (1, 2)]
    expected = 0.1 * math.sqrt(sum(variance)) / 2
    assert results["corrected"]["standard_error"] == pytest.approx(expected, rel=1e-6)

@pytest.fixture(scope="module")
def population():
    """32 networks of 16 x 3: their long truths, and for each eight short ones whose noise is felt."""
    weights = [np.asarray(wb.build_mlp(16, 3, seed).weights) for seed in range(32)]
    return ([wb.TruthSource(w).at(2**18) for w in weights],
            [[truth_of(w, key, 512) for key in range(8)] for w in weights])

@pytest.mark.parametrize("sizes, flops_used", [((0.05, 0.06), 100), ((0.05, 0.08), 300),
                                               ((0.01, 0.012), 100)])
def test_the_paired_interval_covers_and_is_narrower_than_the_unpaired(sizes, flops_used, population):
    long, short = population
    rules, rng = replace(RULES, lambda_flops_per_second=0.0), np.random.default_rng(0)
    hardness = rng.lognormal(sigma=0.3, size=32)        # what is hard for one is hard for the other
    a, b = ([wb.Outcome((t.mean + size * hard * rng.standard_normal((3, 16))).astype("f4"), used)
             for t, hard in zip(long, hardness)] for size, used in zip(sizes, (100, flops_used)))
    exact = wb.compare(a, b, long, rules)["score"]
    covered, paired, unpaired = [], [], []
    for _ in range(300):                # suites of six networks with their truths, each drawn anew
        pick = rng.integers(32, size=6)
        truths = [short[i][rng.integers(8)] for i in pick]
        ours, theirs = ([outcomes[i] for i in pick] for outcomes in (a, b))
        difference = wb.compare(ours, theirs, truths, rules)
        low, high = difference["interval"]
        covered.append(low < exact < high)
        assert (difference["p"] < 0.05) == (not low < 0 < high)
        paired.append(difference["standard_error"])
        each = [wb.suite_score(x, truths, rules) for x in (ours, theirs)]
        unpaired.append(math.hypot(*(part for e in each for part in (e.between, e.standard_error))))
    assert 0.91 < np.mean(covered) < 0.995 and np.mean(paired) < np.mean(unpaired)


# ==== Runners =====================================================================================

FAILURES = {        # what predict() does on the first network: (error_code, pattern of message or details)
    "raise KeyError('weights')": ("PREDICT_ERROR", "weights"),
    "import sys; sys.exit(3)": ("PREDICT_ERROR", "3"),
    "return fnp.zeros((mlp.width, mlp.depth))": (
        "ValueError", r"(?s)depth=3, width=16.*\(16, 3\).*transpose"),
    "return fnp.zeros(mlp.width)": ("ValueError", r"(?s)shape=\(16,\).*stack"),
    "return fnp.zeros((mlp.depth, mlp.width)) / 0": ("ValueError", "(?s)finite.*layer 1"),
    "return fnp.full((mlp.depth, mlp.width), np.inf)": ("ValueError", "finite"),
    "return [[0.0] * mlp.width] * mlp.depth": ("ValueError", "(?s)shape.*list"),
    "return None": ("ValueError", "(?s)shape.*return"),
    "return (row for row in fnp.zeros((mlp.depth, mlp.width)))": ("ValueError", "(?s)shape.*generator"),
    "return 0.5": ("ValueError", "shape"),
    "return np.full((mlp.depth, mlp.width), 'x')": ("UnsupportedDtypeError|ValueError|TypeError", "."),
}

@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("failure", FAILURES)
def test_a_failing_prediction_is_explained_and_the_other_networks_are_scored(failure, score):
    once = "self.calls = getattr(self, 'calls', 0) + 1\nif self.calls == 1:\n    "
    status, document, err = score(f"{once}{failure}\n{ZEROS}")
    code, pattern = FAILURES[failure]
    bad, good = document["results"]["per_mlp"]
    assert status == 1 and re.fullmatch(code, bad["error_code"])
    assert re.search(pattern, json.dumps(bad["error"]))
    assert "Traceback" in bad["traceback"]
    assert bad["flops_used"] == 0 and bad["breakdowns"]["estimator"] is None
    assert bad["adjusted_final_layer_score"] == bad["final_layer_mse"] > 0
    assert "error" not in good
    assert good["adjusted_final_layer_score"] == pytest.approx(0.1 * good["final_layer_mse"])
    assert document["results"]["n_failed_mlps"] == document["results"]["failure_breakdown"]["error"] == 1
    assert err.strip().count("\n") == 0 and "1 of 2" in err

LIMITS = [          # flag, what predict() does, flags, FLOPs that the entry reports
    ("budget_exhausted", "return fnp.ones((mlp.depth, 10**6)) @ fnp.ones((10**6, mlp.width))",
     ("--flop-budget", "1e6"), 10**6),
    ("time_exhausted", "while True: pass", ("--wall-time-limit", "0.2"), 0),
    ("time_exhausted", "x = fnp.ones(9)\nwhile True: x = x + 1", ("--wall-time-limit", "0.2"), 0),
    ("residual_wall_time_exhausted", "time.sleep(0.1); " + ZEROS, ("--residual-wall-time-limit", "0.05"), 0),
    ("combined_budget_exhausted", "time.sleep(0.1); " + ZEROS, ("--lambda-flops-per-second", "1e12"), 0)]

@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("flag, body, flags, flops_used", LIMITS)
def test_an_exhausted_limit_is_flagged_and_is_no_error(flag, body, flags, flops_used, runner, score):
    status, document, _ = score(body, *flags, "--runner", runner)
    none_failed = dict.fromkeys([*wb.FLAGS, "error"], 0)
    assert status == 0 and document["results"]["failure_breakdown"] == none_failed | {flag: 2}
    for entry in document["results"]["per_mlp"]:
        assert [name for name in wb.FLAGS if entry[name]] == [flag] and "error_code" not in entry
        assert entry["flops_used"] == flops_used
        assert entry["adjusted_final_layer_score"] == entry["final_layer_mse"]
        assert entry["breakdowns"]["estimator"] is not None

@pytest.mark.parametrize("prices", BOOKS)
@pytest.mark.parametrize("dtype, rate", [("float64", 2), ("int64", 2), ("float32", 0)])
def test_a_plain_array_of_any_real_dtype_is_valid_and_its_cast_is_billed_by_the_book(
        dtype, rate, prices, score):
    body = f"return np.zeros((mlp.depth, mlp.width), '{dtype}')"
    status, document, _ = score(body, "--prices", prices)
    flops_used = document["results"]["per_mlp"][0]["flops_used"]
    assert status == 0 and flops_used == (48 * rate if prices == "0.12" else 0)

def test_an_estimator_cannot_touch_the_network_that_it_is_scored_on(score):
    honest, _ = score(ZEROS)[1]["results"]["per_mlp"]
    vandal, _ = score("for w in mlp.weights: np.asarray(w)[:] = 0\n" + ZEROS)[1]["results"]["per_mlp"]
    assert vandal["final_layer_mse"] == honest["final_layer_mse"] > 0

SAMPLER = """
    rng = fnp.random.default_rng(mlp.seed)
    x = rng.standard_normal((500, mlp.width), dtype=fnp.float32)
    rows = []
    for weight in mlp.weights:
        x = fnp.maximum(x @ weight, 0)
        rows.append(fnp.mean(x, axis=0))
    return fnp.stack(rows)
"""

def test_the_same_command_gives_the_same_numbers_on_any_number_of_threads(score):
    first, again, single = (score(SAMPLER, *flags)[1]["results"]
                            for flags in ((), (), ("--max-threads", "1")))
    assert numbers(first) == numbers(again) == numbers(single)
    assert numbers(score(SAMPLER, "--seed", "1")[1]["results"]) != numbers(first)

# ---- a rival ----

def test_a_log_gets_a_line_for_each_run(score, tmp_path):
    log = tmp_path / "log.jsonl"
    for body in (ZEROS, "return fnp.full((mlp.depth, mlp.width), math.nan)"):
        _, document, _ = score(f"import math\n{body}", "--log", str(log), "--seed", "7")
    first, last = map(json.loads, log.read_text().splitlines())
    source = (tmp_path / "estimator.py").read_bytes()
    assert last["sha256"] == hashlib.sha256(source).hexdigest() != first["sha256"]
    assert last["failures"]["error"] == 2 and first["failures"]["error"] == 0 and first["class"] == "Estimator"
    assert last["score"] == document["results"]["corrected"]["score"] and first["seed"] == 7
    assert first["versions"]["whestbench"] == wb.__version__

def test_a_log_that_cannot_be_written_is_refused_before_the_work(command, tmp_path):
    status, _, err = command("run", ZEROS, *SMALL, "--log", str(tmp_path / "none" / "log"))
    assert status == 2 and "cannot be written" in err

def test_what_the_clock_adds_to_a_score_is_told_apart(command):
    flags = [*SHAPE, "--n-mlps", "2", "--n-samples", "2048", "--flop-budget", "1e6", "--format", "plain"]
    _, out, _ = command("run", f"import time\ntime.sleep(0.05)\n{ZEROS}", *flags,
                        "--lambda-flops-per-second", "1e7")
    assert float(re.search(r"by FLOPs alone +(\S+)", out)[1]) < float(re.search(r"layer_score +(\S+)", out)[1])
    _, out, _ = command("run", ZEROS, *flags, "--lambda-flops-per-second", "0")
    assert "by FLOPs alone" not in out

@pytest.mark.parametrize("arguments, meant", [(["rum"], "run"), (["run", "x.py", "--nmlps", "3"], "--n-mlps"),
                                              (["chekclist"], "checklist")])
def test_a_slip_of_the_hand_is_told_what_was_meant(arguments, meant, capsys):
    assert wb.main(arguments) == 2 and f"Did you mean {meant}?" in capsys.readouterr().err

def test_the_real_command_s_flags_for_details_are_understood(command):
    _, plain, _ = command("run", ZEROS, *SMALL, "--format", "plain", "--show-diagnostic-plots")
    _, full, _ = command("run", ZEROS, *SMALL, "--format", "plain", "--detail", "full")
    assert "== Each MLP" in full and "== Each MLP" not in plain

@pytest.mark.parametrize("runner", RUNNERS)
def test_a_rival_is_scored_on_the_same_networks_and_the_difference_is_of_the_scores(
        runner, score, tmp_path, capsys):
    rival = estimator_file(tmp_path, "return fnp.full((mlp.depth, mlp.width), 0.4)", "rival.py")
    assert wb.main(["run", rival, *SMALL, "--json"]) == 0
    alone = json.loads(capsys.readouterr().out)["results"]
    status, document, _ = score(ZEROS, "--against", rival, "--runner", runner)
    ours, (against,) = document["results"], document["against"]
    theirs, difference = against["results"], against["difference"]
    assert status == 0 and (against["estimator"], against["class"]) == (rival, "Estimator")
    del alone["standings"]
    assert numbers(theirs) == numbers(alone)
    assert difference["score"] == pytest.approx(ours["corrected"]["score"] - theirs["corrected"]["score"])
    assert difference["per_mlp"] == pytest.approx([
        0.1 * (a["corrected_final_layer_mse"] - b["corrected_final_layer_mse"])
        for a, b in zip(ours["per_mlp"], theirs["per_mlp"], strict=True)])
    low, high = difference["interval"]
    assert low < difference["score"] < high
    parts = (difference["parts"][part] for part in ("truth noise", "choice of networks"))
    assert difference["standard_error"] == pytest.approx(math.hypot(*parts))

@pytest.mark.parametrize("runner", RUNNERS)
def test_a_baseline_is_a_rival_by_its_name_and_the_better_one_is_named(runner, score):
    _, document, err = score(ZEROS, "--against", "mean_propagation", "--n-mlps", "6", "--runner", runner)
    difference, verdict = (document["against"][0][key] for key in ("difference", "verdict"))
    assert difference["score"] > 0 and difference["p"] < 0.05 and difference["networks_needed"] is None
    assert verdict.startswith("mean_propagation is better than ") and "p = " in verdict and err == ""

@pytest.mark.parametrize("ours, theirs", [
    (ZEROS, "mean_propagation"),
    ("import whestbench as wb\nreturn wb.mean_propagation(mlp, budget)", "zeros")])
def test_the_verdict_quotes_its_interval_from_low_to_high_whichever_is_better(ours, theirs, score):
    against = score(ours, "--against", theirs, "--n-mlps", "6")[1]["against"][0]
    said = re.search(r"by (\S+) on .* interval (\S+) to (\S+),", against["verdict"])
    by, low, high = map(float, said.groups())
    assert 0 < low < by < high and by == pytest.approx(abs(against["difference"]["score"]), rel=0.01)

def test_several_rivals_stand_in_one_table_best_first(score, command):
    flags = ["--against", "zeros", "--against", "mean_propagation", "--n-mlps", "3"]
    _, document, _ = score("return fnp.full((mlp.depth, mlp.width), -2.0)", *flags)
    assert [rival["estimator"] for rival in document["against"]] == ["zeros", "mean_propagation"]
    for rival in document["against"]:
        alone = score("return fnp.full((mlp.depth, mlp.width), -2.0)", "--against", rival["estimator"],
                      "--n-mlps", "3", "--n-samples", str(document["results"]["per_mlp"][0]["truth_n_samples"]))
        assert alone[1]["against"][0]["difference"]["score"] == rival["difference"]["score"]
    _, out, _ = command("run", ZEROS.replace("zeros", "ones"), *SMALL, *flags, "--format", "plain")
    table = out.partition("you less it")[2].splitlines()[1:4]
    assert [row.split()[0] for row in table] == ["mean_propagation", "you", "zeros"]

def test_an_estimator_against_itself_differs_by_exactly_0(score, tmp_path):
    against = score(SAMPLER, "--against", str(tmp_path / "estimator.py"))[1]["against"][0]
    difference = against["difference"]
    assert difference["score"] == difference["standard_error"] == 0 and difference["per_mlp"] == [0, 0]
    assert difference["p"] is None and "exactly the same" in against["verdict"]

def test_what_is_not_settled_says_how_many_networks_would_do(score):
    noisy = "return fnp.full((mlp.depth, mlp.width), 0.4) + 0.1 * fnp.random.default_rng(mlp.seed).uniform()"
    few, many = (score(noisy, "--n-mlps", n, "--against", "zeros")[1]["against"][0] for n in ("3", "200"))
    needed = few["difference"]["networks_needed"]
    assert few["difference"]["p"] > 0.05 and needed > 3 and few["verdict"].startswith("Not settled: ")
    assert f"about {needed} networks would settle it" in few["verdict"]
    assert many["difference"]["p"] <= 0.05 and many["difference"]["networks_needed"] is None
    assert "is better than" in many["verdict"]

def test_siblings_of_the_same_name_do_not_leak_from_one_estimator_to_its_rival(tmp_path, capsys):
    for name, level in (("a", 0), ("b", 1)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "levels.py").write_text(f"LEVEL = {level}.0")
        body = "import levels\nreturn fnp.full((mlp.depth, mlp.width), levels.LEVEL)"
        estimator_file(tmp_path / name, body)
    a, b = (str(tmp_path / name / "estimator.py") for name in "ab")
    assert wb.main(["run", a, "--against", b, *SMALL, "--json"]) == 0
    both = json.loads(capsys.readouterr().out)
    assert both["results"]["final_layer_mse"] != both["against"][0]["results"]["final_layer_mse"]

# ---- isolation ----

def test_the_isolated_runner_gives_the_same_numbers(score):
    local, isolated = (score(SAMPLER, "--runner", runner)[1]["results"] for runner in RUNNERS)
    assert numbers(local) == numbers(isolated) and local["per_mlp"][0]["flops_used"] > 50_000

def test_a_worker_that_dies_costs_one_network_only(score):
    status, document, _ = score("import os, pathlib\nflag = pathlib.Path(__file__).with_suffix('.flag')\n"
                                f"if not flag.exists():\n    flag.touch()\n    os._exit(7)\n{ZEROS}",
                                "--runner", "subprocess")
    bad, good = document["results"]["per_mlp"]
    assert status == 1 and bad["error_code"] == "WORKER_EOF" and "7" in json.dumps(bad["error"])
    assert "error" not in good and not any(good[flag] for flag in wb.FLAGS)

def forge(answer):
    """Write an answer into every pipe of a worker's."""
    return f"""for fd in range(3, 64):
    if os.path.exists(f"/proc/self/fd/{{fd}}") and "pipe" in os.readlink(f"/proc/self/fd/{{fd}}"):
        try: os.write(fd, {answer!r})
        except OSError: pass"""

LIAR = """class Liar:
    shape = mlp.depth, mlp.width
    def __array__(self, *_, **__): return np.zeros(7)
return Liar()"""
# What predict() does on the first network: its fate here, unless it would end us, and in a worker.
HOSTILE = {
    "swallow": ("while True:\n    try:\n        while True: pass\n    except BaseException: pass",
                "time_exhausted", "time_exhausted"),
    "steal the signal": ("signal.signal(signal.SIGALRM, signal.SIG_IGN)\nwhile True: pass",
                         None, "time_exhausted"),
    # a signal without a name
    "kill": ("os.kill(os.getpid(), getattr(signal, 'SIGRTMIN', 8) + 1)", None, "WORKER_EOF"),
    "leave": ("os._exit(0)", None, "WORKER_EOF"),
    "fill memory": ("np.empty(2**31)", None, "PREDICT_ERROR"),
    "fork": ("os.fork()", "scored", "scored"),
    "lie about a shape": (LIAR, "ValueError", "ValueError"),
    "raise what has no text": ("class Odd(BaseException):\n    details = 7\n"
                               "    def __str__(self): return 1 / 0\nraise Odd",
                               "PREDICT_ERROR", "PREDICT_ERROR"),
    "take stdout": ("sys.stdout = io.StringIO(); os.write(1, b'{}'); os.close(1)", "scored", "scored"),
    "close stdout": ("sys.stdout.close()", None, "scored"),
    "forge an empty answer": (forge(b"{}\n"), None, "an error"),
    "forge what is no answer": (forge(b'{"outcome": 1, "bytes": -1}\n[' * 9), None, "an error"),
    "forge half an answer": (forge(b'{"flops_used": '), None, "an error"),
}

def hostile_file(folder, trick):
    return estimator_file(folder, f"""class Estimator(BaseEstimator):
    def predict(self, mlp, budget):
        import io, os, signal, sys, whestbench as wb
        if mlp.name == 'mlp-0':
{indented(trick, 12)}
        return wb.mean_propagation(mlp, budget)""")

@pytest.fixture(scope="session")
def untouched(tmp_path_factory):
    """The entry of the second network where nobody is hostile."""
    done = whest("run", hostile_file(tmp_path_factory.mktemp("honest"), "pass"), *SMALL, "--json", check=0)
    return numbers(json.loads(done.stdout)["results"]["per_mlp"][1])

@pytest.mark.filterwarnings("ignore::DeprecationWarning")      # of forks beside threads
@pytest.mark.parametrize("trick, runner, fate", [
    (trick, runner, fate) for trick, (_, *fates) in HOSTILE.items()
    for runner, fate in zip(RUNNERS, fates) if fate])
def test_a_hostile_estimator_harms_its_own_network_only(trick, runner, fate, tmp_path, untouched, capfd):
    path = hostile_file(tmp_path, HOSTILE[trick][0])
    wb.main(["run", path, *SMALL, "--json", "--runner", runner, "--wall-time-limit", "1"])
    out, err = capfd.readouterr()
    bad, good = json.loads(out)["results"]["per_mlp"]
    seen = bad.get("error_code") or next(filter(bad.get, wb.FLAGS), "scored")
    assert "error" in bad if fate == "an error" else seen == fate
    assert numbers(good) == untouched and untouched["flops_used"] > 0 and "Traceback" not in err
    assert good["wall_time_s"] > 0

@pytest.mark.parametrize("down, says", [("1 / 0", "ZeroDivisionError"), ("while True: pass", "0.5"),
                                        ("import sys; sys.exit(3)", "SystemExit: 3")])
def test_a_tear_down_that_fails_costs_nothing_and_is_told(down, says, score):
    body = (f"class E(BaseEstimator):\n    def predict(self, mlp, budget): {ZEROS}\n"
            f"    def teardown(self):\n        {down}")
    status, document, err = score(body, "--setup-timeout", "0.5")
    assert status == 0 and document["results"]["n_failed_mlps"] == 0
    assert "teardown()" in err and says in err and "estimator.py, line 10" in err and err.count("\n") == 1

def test_what_no_alarm_can_interrupt_ends_the_process_and_names_the_line(tmp_path):
    path = estimator_file(tmp_path, """
        import itertools, whestbench
        whestbench.Alarm.LAST_RESORT = 0.2
        class Estimator(BaseEstimator):
            def predict(self, mlp, budget): return sum(itertools.repeat(1))""")
    done = whest("run", path, *SMALL, "--wall-time-limit", "0.2")
    assert done.returncode == 1 and done.stdout == ""
    assert re.search(r'estimator.py", line \d+ in predict', done.stderr)

@pytest.mark.parametrize("setup, code", [("raise OSError('no model file')", "SETUP_ERROR"),
                                         ("time.sleep(9)", "SETUP_TIMEOUT")])
def test_a_set_up_that_fails_or_takes_too_long_ends_the_run(
        setup, code, command, tmp_path, monkeypatch, capsys):
    body = f"class E(BaseEstimator):\n    def setup(self, c): {setup}\n    def predict(self, m, b): pass"
    status, out, err = command("run", body, *SMALL, "--setup-timeout", "0.5", "--json")
    error = json.loads(out)["error"]
    monkeypatch.chdir(tmp_path)
    assert wb.main(["run", "estimator.py", *SMALL, "--setup-timeout", "0.5"]) == 1      # by a relative path
    assert capsys.readouterr().err == err and ("line 8" in err) == (code == "SETUP_ERROR")
    assert status == 1 and (error["stage"], error["code"]) == ("setup", code)
    assert err.strip().count("\n") == 0 and ("no model file" in err or "setup" in err)

# ---- debuggers ----

PAUSED = f"import pdb\nx = 41\n%s\nx += 1\n{ZEROS}"
PDB = r"\(Pdb\) "

def test_breakpoint_opens_a_clean_prompt_in_the_participant_s_frame_and_stops_the_clocks(tmp_path):
    path = estimator_file(tmp_path, PAUSED % "breakpoint()")
    status, seen = at_a_terminal("run", path, *SMALL, "--wall-time-limit", "1", types=[
        (PDB, 0, "p mlp.width, x\n"), (PDB, 1.5, "c\n"), (PDB, 0, "c\n")])
    prompt = seen[seen.index("estimator.py("):seen.index("(Pdb) c")]
    frame, source, *echo = prompt.splitlines()
    assert frame.endswith("predict()") and source == ("-> x += 1" if sys.version_info < (3, 13)
                                                      else "-> breakpoint()")
    assert echo == ["(Pdb) p mlp.width, x", "(16, 41)"]
    assert seen.count(f"{WIPE}predict  MLP 2/2{WIPE}> ") == 1   # the live line goes on, and makes way again
    assert status == 0 and "exhausted" not in seen and float(re.search(r"predict\(\) took (\S+) s:", seen)[1]) < 1

@pytest.mark.parametrize("call, flags, environment", [
    ("pdb.set_trace()", ["--format", "plain"], {}), ("pdb.set_trace()", ["--wall-time-limit", "1"], {}),
    ("breakpoint()", [], {"PYTHONBREAKPOINT": "pdb.set_trace"})])
def test_pdb_works_however_it_is_called(call, flags, environment, tmp_path):
    status, seen = at_a_terminal("run", estimator_file(tmp_path, PAUSED % call), *SMALL, *flags,
                                 **environment, types=[(PDB, 1.5, "p x\n"), (PDB, 0, "c\n"), (PDB, 0, "c\n")])
    assert status == 0 and "(Pdb) p x\n41\n(Pdb) c\n" in seen and "exhausted" not in seen
    assert ("\x1b" in seen) == ("--wall-time-limit" in flags)

@pytest.mark.parametrize("runner", RUNNERS)
def test_breakpoint_can_be_switched_off(runner, tmp_path):
    status, seen = at_a_terminal("run", estimator_file(tmp_path, PAUSED % "breakpoint()"), *SMALL, "--runner",
                                 runner, PYTHONBREAKPOINT="0")
    assert status == 0 and "(Pdb)" not in seen and "\x1b" not in seen

@pytest.mark.parametrize("call", ["breakpoint()", "pdb.set_trace()"])
def test_a_breakpoint_in_a_worker_says_where_it_works(call, score):
    status, document, _ = score(PAUSED % call, "--runner", "subprocess")
    assert status == 1 and "needs --runner local" in document["results"]["per_mlp"][0]["error"]["message"]

def test_leaving_the_debugger_ends_the_run_in_one_sentence(tmp_path):
    status, seen = at_a_terminal("run", estimator_file(tmp_path, PAUSED % "breakpoint()"), *SMALL,
                                 types=[(PDB, 0, "q\n")])
    assert status == 130 and re.fullmatch("whest: interrupted.*\n", seen.partition("(Pdb) q\n")[2])

def test_fail_fast_lets_python_s_own_traceback_out(tmp_path):
    done = whest("run", estimator_file(tmp_path, "raise KeyError('weights')"), *SMALL, "--fail-fast")
    assert done.returncode == 1 and "in predict" in done.stderr
    assert done.stderr.strip().endswith("KeyError: 'weights'")

@pytest.mark.parametrize("body, says", [("raise KeyError('weights')", "KeyError: 'weights'"),
                                        ("import os; os._exit(7)", "exit status 7")])
def test_fail_fast_stops_at_the_first_failure_of_a_worker_too(body, says, tmp_path):
    done = whest("run", estimator_file(tmp_path, body), *SMALL, "--fail-fast", "--runner", "subprocess")
    assert done.returncode == 1 and done.stdout == "" and says in done.stderr


# ==== Reports =====================================================================================

@pytest.fixture(scope="session")
def good_run(tmp_path_factory):
    """One scored run of mean propagation, in a process of its own: the finished process and its document."""
    path = estimator_file(tmp_path_factory.mktemp("good"), PROPAGATION)
    done = whest("run", path, *SMALL, "--format", "json", check=0)
    return done, json.loads(done.stdout)

LAYERS, TIMES = [float], dict.fromkeys(wb.TIMES, float)
BREAKDOWN = dict(flop_budget=int, flops_used=int, flops_remaining=int, by_namespace=dict, **TIMES)
ENTRY = dict(mlp_index=int, mlp_name=str, final_layer_mse=float, all_layers_mse=float, per_layer_mse=LAYERS,
             adjusted_final_layer_score=float, flops_used=int, effective_compute=float,
             **dict.fromkeys(wb.FLAGS, bool), **TIMES, breakdowns=dict(estimator=BREAKDOWN),
             traceback=type(None))
DOCUMENT = dict(
    schema_version=str, mode=str, whestbench_version=str,
    results=dict(adjusted_final_layer_score=float, final_layer_mse=float, all_layers_mse=float,
                 per_layer_mse=LAYERS, best_mlp_adjusted_final_layer_score=float,
                 worst_mlp_adjusted_final_layer_score=float, n_failed_mlps=int, mean_score_multiplier=float,
                 mean_compute_utilization=float, mean_effective_compute=float,
                 failure_breakdown=dict.fromkeys([*wb.FLAGS, "error"], int), per_mlp=[ENTRY],
                 breakdowns=dict(sampling=object, estimator=BREAKDOWN)),
    run_meta=dict(run_started_at_utc=str, run_finished_at_utc=str, run_duration_s=float, host=dict(
        hostname=str, os=str, os_release=str, platform=str, machine=str, python_version=str, cpu_brand=object,
        cpu_count_logical=int, cpu_count_physical=object, ram_total_bytes=object, ram_available_bytes=object,
        numpy_version=str, flopscope_version=str)),
    run_config=dict(n_mlps=int, width=int, depth=int, seed=int, flop_budget=int, setup_timeout_s=float,
                    wall_time_limit_s=float, residual_wall_time_limit_s=object,
                    lambda_flops_per_second=float))

def mismatches(value, form, where="document"):
    """Where `value` lacks a key of `form` or has another type: forms are types, {key: form} and [form]."""
    if isinstance(form, dict):
        if not isinstance(value, dict):
            return [f"{where} is no object"]
        return [m for key in form for m in (mismatches(value[key], form[key], f"{where}.{key}")
                                            if key in value else [f"{where}.{key} is missing"])]
    if isinstance(form, list):
        return [m for item in value for m in mismatches(item, form[0], f"{where}[]")]
    fits = isinstance(value, form) and (form is not int or type(value) is int)
    return [] if fits else [f"{where} is a {type(value).__name__}"]

def test_the_document_has_the_keys_and_types_of_the_real_one(good_run):
    assert mismatches(good_run[1], DOCUMENT) == []
    assert good_run[1]["schema_version"] == "1.1" and good_run[1]["mode"] == "agent"

def test_the_breakdown_names_namespaces_and_operations(good_run):
    total = good_run[1]["results"]["breakdowns"]["estimator"]
    names = total["by_namespace"]
    assert {"estimator.propagation"} <= set(names) <= {"estimator.propagation", "estimator.estimator-client"}
    assert sum(row["flops_used"] for row in names.values()) == total["flops_used"] > 0
    operations = names["estimator.propagation"]["operations"]
    assert operations["matmul"]["calls"] == 12 and operations["matmul"]["flop_cost"] == 12 * (2 * 256 - 16)
    assert operations["stats.norm.cdf"]["flop_cost"] == 2 * 3 * 16 * 16

def test_the_plain_report_has_its_panels_and_nothing_for_terminals_only(tmp_path, good_run):
    done = whest("run", estimator_file(tmp_path, PROPAGATION), *SMALL, "--format", "plain", COLUMNS="100",
                 PYTHONIOENCODING="ascii", check=0)
    titles = re.findall(r"^== (.+?) =+$", done.stdout, re.M)
    assert titles[:2] == ["Run", "FLOPs"] and titles[-2:] == ["Where you stand", "Score"]
    assert "Estimator Errors" not in titles and "Limits" not in titles
    assert done.stdout.isascii() and "\x1b" not in done.stdout + done.stderr
    assert max(map(len, done.stdout.splitlines()[:-1])) <= 100       # a command to be pasted is not wrapped
    assert f"{good_run[1]['results']['final_layer_mse']:.2e}" in done.stdout
    assert "matmul" in done.stdout and re.search("zeros .* times worse", done.stdout)

@pytest.mark.parametrize("columns, environment, lacks", [(80, {}, None), (200, {}, None),
                                                         (100, {"NO_COLOR": "1"}, r"\x1b\[[\d;]*m"),
                                                         (100, {"TERM": "dumb"}, "\x1b"),
                                                         (100, {"PYTHONIOENCODING": "ascii"},
                                                          r"[^\x00-\x7f]")])
def test_a_terminal_gets_a_live_line_that_leaves_no_trace_and_panels_that_fit(
        columns, environment, lacks, tmp_path):
    body = ("time.sleep(0.2)\nif mlp.name == 'mlp-0':\n"
            "    raise ValueError('every good boy deserves fudge\\n' * 9)\n" + ZEROS)
    path = estimator_file(tmp_path, body)
    status, seen = at_a_terminal("run", path, *SMALL, columns=columns, **environment)
    left = re.sub(r"[^\n]*" + re.escape(WIPE), "", seen)                      # what is not wiped
    assert status == 1 and "predict  MLP" not in left and "truth  1" not in left
    assert ("predict  MLP 2/2" in seen) == ("TERM" not in environment)
    assert not (lacks and re.search(lacks, seen))
    lines = [re.sub(r"\x1b\[[\d;]*m", "", line) for line in left.splitlines()]
    assert max(map(len, lines[:-2])) == min(columns, 120) and sum("fudge" in line for line in lines) == 9
    assert re.match("== Run =+$", lines[0])

@pytest.mark.parametrize("runner", RUNNERS)
def test_json_keeps_stdout_for_the_document_whatever_the_estimator_writes(runner, tmp_path):
    body = ("import os, sys\nprint('MARK')\nos.write(1, b'MARK')\nos.system('echo MARK')\n"
            "sys.__stdout__.write('MARK')\n" + ZEROS)
    done = whest("run", estimator_file(tmp_path, body), *SMALL, "--json", "--runner", runner)
    assert json.loads(done.stdout)["results"]["n_failed_mlps"] == 0
    assert "MARK" not in done.stdout and "MARK" in done.stderr

PLOTS = ["MSE by layer", "Score by MLP"]
LEVELS = "return fnp.full((mlp.depth, mlp.width), 0.5 + 0.01 * (mlp.seed % 7))"

@pytest.mark.parametrize("form", ["plain", "rich"])
@pytest.mark.parametrize("columns", [40, 80, 100, 120])
def test_plots_stand_side_by_side_where_the_terminal_has_room(form, columns, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    _, out, _ = command("run", LEVELS, *SMALL, "--depth", "8", "--n-mlps", "10", "--format", form)
    lines = wb.uncoloured(out).splitlines()[:-1]        # a command to be pasted is not wrapped
    assert max(map(len, lines)) <= columns and (columns == 40 or len(lines) <= 60)
    titled = [i for title in PLOTS for i, line in enumerate(lines) if title in line]
    assert len(titled) == 2 and (len(set(titled)) == 1) == (columns > 60)
    if form == "plain" and columns == 100:
        width = lines[titled[0]].index("== Score") - 1      # of the first plot: its longest bar fills it
        rows = [line[:width].split() for line in lines[titled[0] + 1:titled[0] + 9]]
        assert [row[0] for row in rows] == list("12345678") and all(row[2].strip("#") == "" for row in rows)
        assert max(len(line[:width].rstrip()) for line in lines[titled[0] + 1:titled[0] + 9]) == width - 2

def test_bars_stand_for_neighbours_together_where_there_are_many():
    one, many = (list(wb.bars([float(i + 1) for i in range(n)], 1)) for n in (3, 40))
    assert [bar.text.split()[0] for bar in one] == ["1", "2", "3"]
    assert [bar.share for bar in one] == [1 / 3, 2 / 3, 1]
    assert [bar.text.split()[0] for bar in many] == [*(f"{i}-{i + 2}" for i in range(1, 40, 3)), "40"]
    assert [bar.text.split()[1] for bar in many[::13]] == ["2.00e+00", "4.00e+01"]
    assert [bar.share for bar in wb.bars([0.0, 0.0], 0)] == [0, 0]
    low, middle, high = (bar.share for bar in wb.bars([1e-4, 1e-3, 1e-2], 1, log=True))
    assert 0 < low < middle < high == 1 and high - middle == pytest.approx(middle - low)
    assert [bar.share for bar in wb.bars([1e-16, 1e-3, 1e-2], 1, log=True)] == pytest.approx([0, 2 / 3, 1])

# ---- the page ----

class Page(html.parser.HTMLParser):
    """A page's tags, its text, and whether every tag is closed in its order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.open = [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.open += [tag] * (tag != "meta")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data

def test_the_page_has_the_panels_of_the_report_and_needs_nothing_else(tmp_path, capsys):
    hostile = "a <img src=x onerror=alert(1)> & 'b' \".py"
    path, page = estimator_file(tmp_path, LEVELS, hostile), tmp_path / "report.html"
    arguments = ["run", path, *SMALL, "--n-mlps", "5", "--against", "zeros", "--html", str(page), "--format"]
    assert wb.main([*arguments, "plain"]) == 0
    told, text = capsys.readouterr().out, page.read_text("utf-8")
    parsed = Page(text)
    assert parsed.open == [] and "://" not in text and "color-scheme: light dark" in text
    tags = [tag for tag, _ in parsed.tags]
    assert set(tags) == set(
        "html meta title style h1 p h2 main section pre span svg path circle rect text footer".split())
    score = re.search(r"layer_score +(\S+)", told)[1]
    assert f">{score}</h1>" in text and text.index("<h2>Score<") < text.index("<h2>FLOPs<") < text.index("<h2>Run<")
    assert {name for _, attrs in parsed.tags for name in attrs}.isdisjoint(["src", "href", "onerror"])
    assert tags.count("rect") == 3 + 5 + 1              # only one operation is billed
    titles = re.findall(r"== (\w.*?) =", told)
    assert len(titles) == tags.count("h2") == 8 and all(title in parsed.words for title in titles)
    assert hostile in parsed.words and "times worse" in parsed.words
    for svg in re.findall("<svg.*?</svg>", text):
        assert len(xml.etree.ElementTree.fromstring(svg)) >= 2
    assert wb.main([*arguments, "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["against"][0]["verdict"] in Page(page.read_text("utf-8")).words
    assert sorted(os.listdir(tmp_path)) == sorted([hostile, "report.html"])

def test_the_page_escapes_what_an_estimator_says_and_shows_colours_as_classes(command, tmp_path):
    page = tmp_path / "report.html"
    body = "raise ValueError('</pre><script>rows</script>')"
    status, _, _ = command("run", body, *SMALL, "--html", str(page), "--debug")
    text = page.read_text("utf-8")
    assert status == 1 and "failed on 2 of 2 MLPs</h1>" in text
    assert "<script" not in text and "\x1b" not in text and '"bad">ValueError' in text
    assert "</pre><script>rows</script>" in Page(text).words

def test_an_estimator_that_closes_stdout_is_reported_all_the_same(tmp_path):
    path = estimator_file(tmp_path, f"import sys\nsys.stdout.close()\n{ZEROS}")
    done = whest("run", path, *SMALL, check=0)
    assert "== Score" in done.stdout and "Traceback" not in done.stderr

@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device")
def test_a_device_is_never_replaced_by_a_page(zeros_file):
    done = whest("run", zeros_file, *SMALL, "--html", "/dev/full", check=2)
    assert "/dev/full cannot be written" in done.stderr and not os.path.isfile("/dev/full")

@pytest.mark.parametrize("target", ["none/report.html", "folder.html", "report.html"])
def test_a_page_that_cannot_be_written_gets_one_sentence(target, tmp_path, capsys, monkeypatch):
    path, page = estimator_file(tmp_path, ZEROS), tmp_path / "report.html"
    page.write_text("old")
    (tmp_path / "folder.html").mkdir()

    def full_disk(self, *_):
        self.touch()
        raise OSError(28, "No space left on device")
    if target == page.name:
        monkeypatch.setattr(Path, "write_text", full_disk)
    for form in ("plain", "json"):
        assert wb.main(["run", path, *SMALL, "--html", str(tmp_path / target), "--format", form]) == 2
        out, err = capsys.readouterr()
        assert err.strip().count("\n") == 0 and target in err and len(err.split()) >= 4
        assert out == "" if form == "plain" else json.loads(out)["ok"] is False
    assert page.read_text() == "old" and len(os.listdir(tmp_path)) == 3

def test_errors_have_a_panel_with_the_line_and_debug_adds_tracebacks(command):
    body = "x = 1\nraise ValueError('rows do not add up')"
    status, out, _ = command("run", body, *SMALL, "--format", "plain")
    assert status == 1 and "== Estimator Errors" in out and "rows do not add up" in out
    line = 1 + (HEAD + "\nclass\ndef\nx = 1\nraise").splitlines().index("raise")
    assert f"estimator.py, line {line}" in out and "Traceback" not in out
    status, out, _ = command("run", body, *SMALL, "--format", "plain", "--debug")
    assert status == 1 and "Traceback (most recent call last)" in out and "raise ValueError" in out
    assert "early" in out and "deep" in out
    _, out, _ = command("run", "return fnp.ones(2) @ fnp.ones(3)", *SMALL, "--format", "plain", "--debug")
    assert "in predict" in out and "fnp.ones(2) @ fnp.ones(3)" in out and "whestbench.py" not in out

def test_exhausted_limits_have_a_panel_with_their_flags(command):
    _, body, flags, _ = LIMITS[0]
    status, out, _ = command("run", body, *SMALL, *flags, "--format", "plain")
    assert status == 0 and "== Limits" in out and "budget_exhausted" in out and "1.00e06" in out


# ==== Checklist ===================================================================================

LOOP = """
mean, variance, rows = fnp.zeros(mlp.width, dtype=fnp.float32), fnp.ones(mlp.width, dtype=fnp.float32), []
for i, weight in enumerate(mlp.weights):
    m = fnp.matmul(mean, weight)
    v = {variance}
    s = fnp.sqrt(fnp.maximum(v, fnp.float32(1e-12)))
    density, below = flops.stats.norm.pdf(m / s), flops.stats.norm.cdf(m / s)
    mean = m * below + s * density
    {extra}
    variance = fnp.maximum((m * m + v) * below + m * s * density - mean * mean, fnp.float32(0))
    rows.append(mean)
return fnp.stack(rows, axis=0){end}
"""

def propagation(extra="pass", variance="fnp.matmul(variance, weight * weight)", end=""):
    return LOOP.format(extra=extra, variance=variance, end=end)

FORWARD = """
x = fnp.random.default_rng(mlp.seed).standard_normal(({n}, mlp.width), dtype=fnp.float32)
rows = []
for weight in mlp.weights:
    x = fnp.maximum(fnp.matmul(x, weight), fnp.float32(0))
    rows.append(fnp.mean(x, axis=0))
return fnp.stack(rows, axis=0)
"""
PATIENT = [*"--width 48 --depth 4 --n-samples 8192 --lambda-flops-per-second 0 --json".split()]
PRICED_TIME = "--lambda-flops-per-second 1e11 --flop-budget 1e11"      # 1 ms is 0.1% of the budget
FLAWS = {   # flaw: (predict(), flags, the question that finds it, severity, pattern); its line says `here`
    "shape": ("return fnp.zeros((mlp.width, mlp.depth))   # here", "", "Output shape", 1, "transposed"),
    "finite": ("return fnp.zeros((mlp.depth, mlp.width)) / 0   # here", "", "values finite", 1, "0/0"),
    "determinism": (FORWARD.format(n=512).replace("mlp.seed", "").replace("32)\nrows", "32)   # here\nrows"),
                    "", "whest validate", 3, "differ"),
    "raise": (f"if mlp.name == 'mlp-1':\n    raise KeyError('w')   # here\n{ZEROS}",
              "", "raise", 1, "KeyError.*#1"),
    "zeros": ("return fnp.full((mlp.depth, mlp.width), -1.0)   # here", "", "zeros", 1, "than guessing zero"),
    "sampling": ("fnp.matmul(*mlp.weights[:2])\nreturn fnp.ones((mlp.depth, mlp.width))   # here",
                 "--flop-budget 1e6", "sampling", 2, "times better"),
    "exhausted": (f"for _ in range(3):\n    fnp.matmul(*mlp.weights[:2])   # here\n{ZEROS}", "--flop-budget 5e5",
                  "budget_exhausted", 1, r"budget_exhausted.* on 3 MLPs.* 656,640 FLOPs .* 72% would fit"),
    "deep layers": (propagation("mean = mean * fnp.float32(1 + 0.2 * (i > 1))", end="   # here"),
                    "", "deep layers", 2, "layer 3"),
    "one factor": (propagation(end=" * fnp.float32(1.3)   # here"), "", "made of", 2,
                   r"1\.3\d* times too large.*dividing by it"),
    "too small": (propagation(end=" * fnp.float32(0.5)   # here"), "", "made of", 2,
                  r"[12]\.\d+ times too small.*multiplying by it.*what shrinks it"),
    "one constant": (propagation(end=" + fnp.float32(0.5)   # here"), "", "made of", 2, r"0\.5\d* too high"),
    "matmul": (propagation(variance="fnp.diag((weight.T @ fnp.diag(variance)) @ weight)   # here"),
               "--flop-budget 1e6", "matmul dominant", 2, "diagonal variance"),
    "loop": (propagation("for _ in range(5): fnp.matmul(weight, weight.T)   # here"),
             "--flop-budget 1e7", "Redundant", 2, "16 times, in a loop"),
    "copies": (propagation("for _ in range(40): weight.copy()   # here"),
               "--flop-budget 1e6 --prices 0.12", "Free operations", 2, "160 paid calls of copy"),
    "float64": (propagation("fnp.matmul(weight.astype(fnp.float64), weight)   # here"),
                "--flop-budget 2e6 --prices 0.12", "float64", 2, "float32"),
    "plain NumPy": (propagation("w = np.asarray(weight)\n    for _ in range(9000): w @ w   # here"),
                    PRICED_TIME, "Time outside fnp", 1, "plain NumPy is uncounted"),
    "Python loops": (propagation("for _ in range(10**6): i += 1   # here"),
                     PRICED_TIME, "Time outside fnp", 2, "whole arrays"),
    "free tenth": (propagation(end="   # here"), "--flop-budget 5e7", "sampling", 2, r"average in [\d,]+ samples"),
    "squares": ("x = fnp.ones(10**4)\nfor i in range(9):\n    (x + i) ** 2   # here\n" + propagation(),
                "--flop-budget 1e7", "Free operations", 2, r"power.*x \* x"),
    "many calls": ("x = fnp.zeros(2)\nfor _ in range(2000):\n    x = x + 1.0   # here\n" + propagation(),
                   "--residual-wall-time-limit 0.04", "small calls", 1, r"2,0\d\d calls"),
    "priced calls": ("x = fnp.zeros(2)\nfor _ in range(1000):\n    x = x + 1.0   # here\n" + propagation(),
                     "--lambda-flops-per-second 1e11 --flop-budget 1e9", "small calls", 1,
                     r"1,0\d\d calls.*score zeros there"),
}

def answers(document):
    """Every question of the page with what was answered."""
    return {asked["question"]: asked for tier in document["tiers"] for asked in tier["questions"]}

def findings(document):
    return [(question, f) for question, asked in answers(document).items() for f in asked["findings"]]

@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("flaw", FLAWS)
def test_each_planted_flaw_is_found_with_its_line(flaw, command):
    body, flags, question, severity, pattern = FLAWS[flaw]
    status, out, err = command("checklist", body, *PATIENT, *flags.split())
    found = findings(json.loads(out))
    assert [f for asked, f in found if question in asked and f["severity"] == severity
            and f["file"] == "estimator.py" and f["source"].endswith("# here")
            and re.search(pattern, f["said"] + f["change"]) and 0 <= f["share"] <= 1], (found, err)
    assert not [asked for asked in answers(json.loads(out)).values() if asked["ok"] and asked["findings"]]
    assert status == (1 if min(f["severity"] for _, f in found) == 1 else 0)

GOOD = dict(mean_propagation="1e7", covariance_propagation="4e8", sampler="2e8")

@pytest.mark.parametrize("prices", BOOKS)
@pytest.mark.parametrize("good", GOOD)
def test_good_estimators_get_a_clean_bill(good, prices, command):
    body = FORWARD.format(n="int(0.09 * budget / (8 * mlp.width**2))")
    if good in wb.BASELINES:
        body = f"# raw\nfrom __future__ import annotations\n{HEAD}{source_of(wb.BASELINES[good])}" + f"""
class Estimator(BaseEstimator):
    def predict(self, mlp, budget):
        return {good}(mlp, budget)
"""
    status, out, _ = command("checklist", body, *PATIENT, "--flop-budget", GOOD[good], "--prices", prices)
    document = json.loads(out)
    assert status == 0 and document["ok"]
    assert [f for asked, f in findings(document) if "sampling" not in asked and "made of" not in asked] == []
    assert [tier["tier"] for tier in document["tiers"]] == [1, 2, 3]
    assert all(asked["answer"] for asked in answers(document).values())
    assert all(asked["ok"] is True for asked in answers(document).values() if not asked["findings"]
               and asked["question"] != "Errors concentrated at deep layers?")

def test_the_anatomy_of_an_error_tells_randomness_from_bias(command):
    shares = []
    for body in (FORWARD.format(n=64), propagation(end=" * 1.3")):
        document = json.loads(command("checklist", body, *PATIENT)[1])
        (answer,) = answers(document)["What is the final error made of?"]["answer"]
        assert "own randomness" in answer and "factor explains" in answer
        shares.append([int(share) for share in re.findall(r"(\d+)%", answer)])
    (random, _, scale, _), (no_random, _, all_scale, _) = shares
    assert random > 70 and scale < 50 and no_random == 0 and all_scale > 90

def test_the_checklist_is_printed_in_the_page_s_order_and_words(command):
    status, out, _ = command("checklist", FLAWS["one factor"][0], *PATIENT[:-1], "--format", "plain")
    words = ["Tier 1", "Output shape (mlp.depth, mlp.width)?", "All values finite?",
             "Class named Estimator?", "Tier 2", "Did predict() raise?", "Does zeros beat you?",
             "Is budget_exhausted true?", "Errors concentrated at deep layers?", "layer 4 ", "Tier 3",
             "matmul dominant?", "Redundant computation?", "Free operations wasted?", "to look at, worst first"]
    places = [out.index(word) for word in words]
    assert status == 0 and places == sorted(places) and "# here" in out and out.splitlines()[-1].startswith("Next: ")
    assert "of the score" in out.splitlines()[-2]
    assert re.search("dividing by it would bring the score to", out)

def test_the_checklist_of_a_failing_estimator_shows_only_what_says_something(command):
    status, out, _ = command("checklist", FLAWS["raise"][0], *PATIENT[:-1], "--format", "plain")
    unasked = out[out.index("== Not measured"):]
    assert status == 1 and "OK     Output shape (mlp.depth, mlp.width)?  yes, on 2 of 3 MLPs" in out
    assert "LOOK   Did predict() raise?" in out and "yes, on 1 of 3 MLPs" in out and "Tier 3" not in out
    assert "Does zeros beat you?" in unasked and "Is matmul dominant?" in unasked
    _, out, _ = command("checklist", "raise ValueError('w')", *PATIENT[:-1], "--format", "plain")
    assert "Output shape" in out[out.index("== Not measured"):] and "yes, on 0" not in out

HELPERS = """
def helper(x):
    return fnp.exp(x)       # helper

class Estimator(BaseEstimator):
    def predict(self, mlp, budget):
        with flops.namespace("outer"):
            rows = [helper(w) + w for w in mlp.weights]
        return fnp.stack([fnp.mean(row, axis=0) for row in rows])
"""

@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("prices", BOOKS)
def test_the_profile_names_lines_through_helpers_and_comprehensions(prices, runner, score):
    status, document, _ = score(HELPERS, "--profile", "--runner", runner, "--prices", prices)
    profile = document["results"]["profile"]
    inner, outer, last = profile["lines"][:3]
    n, cost = 2 * 3, 16 * 16                     # matrices, elements of one; exp weighs 16
    assert [row["source"].split()[0] for row in (inner, outer, last)] == ["return", "rows", "return"]
    assert status == 0 and inner["calls"] == outer["calls"] == n and inner["line"] + 5 == outer["line"]
    assert inner["flops_used"] == inner["cumulative_flops_used"] == 16 * n * cost
    assert outer["flops_used"] == n * cost and outer["cumulative_flops_used"] == 17 * n * cost
    assert outer["cumulative_time_s"] > outer["time_s"] > 0
    assert [(c["namespace"], c["operation"], c["dtype"], c["calls"]) for c in inner["charges"]] == [
        ("outer", "exp", "float32" if prices == "0.12" else None, n)]
    bills = [entry["breakdowns"]["estimator"]["flops_used"] for entry in document["results"]["per_mlp"]]
    assert sum(row["flops_used"] for row in profile["lines"]) == profile["flops_used"] == sum(bills)

@pytest.mark.parametrize("body", [
    "return np.zeros((mlp.depth, mlp.width))", "fnp.ones(8) + 1.0; raise KeyError('w')",
    "fnp.ones(8) + 1.0\nreturn fnp.zeros(2)", "fnp.ones(8) + 1.0; fnp.exp(fnp.ones(10**6))",
    "return fnp.asarray(list(map(lambda w: w[0] * 2, mlp.weights)))",
    "exec('y = fnp.ones(8) * 2', globals())\n" + ZEROS])
def test_the_sum_over_lines_is_the_bill_whatever_happens(body, score):
    _, document, _ = score(body, "--profile", "--prices", "0.12", "--flop-budget", "1e6")
    profile = document["results"]["profile"]
    assert sum(row["flops_used"] for row in profile["lines"]) == profile["flops_used"] > 0
    assert all(row["flops_used"] == sum(c["flops_used"] for c in row["charges"]) for row in profile["lines"])

def test_what_the_runner_is_charged_has_a_line_of_its_own(command, score):
    body = "return np.zeros((mlp.depth, mlp.width))"
    _, document, _ = score(body, "--profile", "--prices", "0.12")
    (row,) = document["results"]["profile"]["lines"]
    assert row["line"] == 0 and row["flops_used"] == 2 * 2 * 3 * 16     # two networks; float64 is twice
    _, out, _ = command("run", HELPERS, *SMALL, "--profile", "--format", "plain")
    listing = out[out.index("FLOPs by line"):]
    assert re.search(r" 6 +24,576 +88\.6% +#{4} +88\.6% .*return fnp", listing) and "94.1%" in listing
    assert "27,744 of 27,744" in listing


# ==== Command line ================================================================================

HELPLESS = {        # a file that cannot be scored: (its text, code, what the sentence names)
    "no class": ("# raw\nx = 1\n", "SCORING_VALIDATION_ERROR", "Estimator"),
    "two classes": (TWO.format("B"), "SCORING_VALIDATION_ERROR", "A, B"),
    "syntax": ("# raw\nclass Estimator(:\n", "SCORING_RUNTIME_ERROR", "line 2"),
    "missing module": ("# raw\nimport no_such_module\n", "ESTIMATOR_MISSING_MODULE", "no_such_module"),
    "raising import": ("# raw\n1 / 0\n", "SCORING_RUNTIME_ERROR", "division by zero"),
    "no predict": ("class E(BaseEstimator): pass", "SCORING_RUNTIME_ERROR", "predict"),
    "no base class": ("class Estimator:\n    def predict(self, mlp, budget): pass",
                      "SCORING_VALIDATION_ERROR", "BaseEstimator"),
}

@pytest.mark.parametrize("kind", HELPLESS)
@pytest.mark.parametrize("name", ["run", "validate"])
def test_a_file_that_cannot_be_scored_gets_one_sentence_and_status_1(kind, name, command):
    text, code, named = HELPLESS[kind]
    flags = SMALL if name == "run" else SHAPE
    status, out, err = command(name, text, *flags)
    said = err if name == "run" else err + out
    assert status == 1 and named in re.sub(r"\s+", " ", said) and "Traceback" not in out + err
    if name == "run":
        assert err.strip().count("\n") == 0 and out == ""
        status, out, _ = command(name, text, *flags, "--json")
        document = json.loads(out)
        assert status == 1 and document["ok"] is False and document["error"]["code"] == code
        assert document["error"]["stage"] in ("run", "setup") and named in document["error"]["message"]

MISUSE = ["", "run", "walk", "validate", "loop", "checklist", "checklist x.py --n-mlps 0",
          "loop x.py --baseline nothing", "validate x.py --prices 0.9",
          *(f"run x.py {flags}" for flags in (
              "--no-such-flag", "--round v9", "--n-mlps 0", "--n-mlps many", "--flop-budget -1",
              "--width 1.5", "--runner cloud", "--setup-timeout 0", "--lambda-flops-per-second -1",
              "--prices 0.9", "--against nothing.py", "--n-samples 0",
              # what left the kit
              "--against zeros --repeats 3", "--plain-truth", "--max-work 1e9", "--memory-limit 1",
              "--against combined")),
          "loop x.py --baseline random", "doctor", "store --clear", "bench"]

@pytest.mark.parametrize("arguments", MISUSE)
def test_misuse_gets_one_sentence_and_status_2(arguments, capsys, monkeypatch):
    monkeypatch.chdir(HERE)
    assert wb.main(arguments.replace("x.py", "estimator.py").split()) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.strip().count("\n") == 0 and len(err.split()) >= 4

@pytest.mark.parametrize("name", ["run", "validate", "loop", "checklist"])
def test_a_missing_file_is_named(name, capsys):
    for file in ("no_such_file.py", "zeros"):       # a baseline is a rival, not a file
        assert wb.main([name, file, *SHAPE]) == 1
        out, err = capsys.readouterr()
        assert file in out + err and "Traceback" not in out + err

def test_misuse_under_json_is_answered_in_json(capsys):
    assert wb.main(["run", "x.py", "--n-mlps", "0", "--format", "json"]) == 2
    assert json.loads(capsys.readouterr().out)["ok"] is False

LISTED = {
    "validate": "estimator class round prices", "loop": "baseline width depth seed",
    "checklist": "estimator class round prices n-mlps format json", "run": """
    estimator class runner format json debug fail-fast round width depth flop-budget prices seed n-mlps
    n-samples lambda-flops-per-second wall-time-limit residual-wall-time-limit no-residual-wall-time-limit
    setup-timeout max-threads against html profile dataset split"""}

@pytest.mark.parametrize("name", wb.COMMANDS)
def test_help_explains_every_flag_of_a_command(name):
    done = whest(name, "--help", COLUMNS="100")
    assert done.returncode == 0 and done.stderr == ""
    flags = [line for line in done.stdout.splitlines() if re.match(r"  +-", line)]
    assert flags and wb.COMMANDS[name].__doc__.split(".")[0].split()[-1] in done.stdout
    for flag in LISTED.get(name, "").split():
        assert re.search(rf"(?<![\w-])--{flag}(?![\w-])", done.stdout), flag

def test_help_lists_the_commands_and_starts_without_numba():
    assert {"run", "validate", "checklist", "loop", "bake"} <= set(wb.COMMANDS)
    done = whest("--help", check=0)
    assert all(re.search(rf"^ +{name} ", done.stdout, re.M) for name in wb.COMMANDS)
    code = "import sys, whestbench; print([m for m in ('numba', 'plac') if m in sys.modules])"
    assert python("-c", code).stdout == "[]\n"

def test_the_version_is_told_with_those_of_what_it_stands_on(capsys):
    assert wb.main(["--version"]) == 0
    numba, plac = map(importlib.metadata.version, ("numba", "plac"))
    assert capsys.readouterr().out == (f"whestbench {wb.__version__}, Python {platform.python_version()}, "
                                       f"NumPy {np.__version__}, numba {numba}, plac {plac}\n")

def test_kernels_that_do_not_compile_end_the_run_in_one_sentence(zeros_file):
    done = whest("run", zeros_file, *SMALL, "--no-store", check=1, NUMBA_DISABLE_JIT="1")
    assert done.stdout == "" and done.stderr.startswith("whest: ") and done.stderr.count("\n") == 1
    assert "NUMBA_DISABLE_JIT" in done.stderr

@pytest.mark.parametrize("prices", BOOKS)
def test_validate_passes_a_good_estimator_line_by_line(prices, command):
    status, out, _ = command("validate", ZEROS, *SHAPE, "--prices", prices, "--format", "plain")
    assert status == 0 and "FAIL" not in out and out.count("OK") >= 6
    status, out, _ = command("validate", ZEROS, *SHAPE, "--json")
    assert status == 0 and json.loads(out)["ok"] is True

INVALID = {"return fnp.zeros((mlp.width, mlp.depth))": "shape",
           "return fnp.full((mlp.depth, mlp.width), np.nan)": "finite",
           "raise KeyError('w')": "KeyError|'w'",
           "return fnp.asarray(np.random.rand(mlp.depth, mlp.width))": "mlp.seed",
           "return None": "return",
           "y = fnp.ones((500, 500)) @ fnp.ones((500, 500)); " + ZEROS: "budget_exhausted"}

@pytest.mark.parametrize("body", INVALID)
def test_validate_says_what_to_do_and_exits_1(body, command):
    status, out, err = command("validate", body, *SHAPE, "--flop-budget", "1e6", "--format", "plain")
    assert status == 1 and "FAIL" in out and re.search(INVALID[body], out)
    assert "Traceback" not in out + err

def test_validate_notes_what_the_grader_would_trip_over(command):
    status, out, _ = command("validate", f"print('hello')\n{ZEROS}", *SHAPE, "--json")
    notes = {check["check"]: check["detail"] for check in json.loads(out)["checks"] if check["ok"] is None}
    assert status == 0 and "numpy" in notes["imports"] and "whestbench" not in notes["imports"].split(":")[0]
    assert "sys.stderr" in notes["stdout"] and len(notes) == 2
    _, out, _ = command("validate", ZEROS, *SHAPE, "--json")
    assert "stdout" not in [check["check"] for check in json.loads(out)["checks"]]

def test_validate_tells_what_would_not_run_under_the_other_book(command):
    body = "x = fnp.zeros((mlp.depth, mlp.width))\nx[0] = 0.5\nreturn x"
    _, out, _ = command("validate", body, *SHAPE, "--round", "v1-warmup", "--format", "plain")
    assert "0.12" in out and "assignment" in out
    status, out, _ = command("validate", body, *SHAPE, "--round", "v1-phase1", "--format", "plain")
    assert status == 1 and "assignment" in out

def test_the_loop_prints_the_convergence_table_with_a_baseline_beside_it(command):
    status, out, _ = command("loop", ZEROS, *SHAPE, "--baseline", "mean_propagation")
    assert status == 0 and "mean_propagation" in out
    tables = re.findall(r"n_samples \| +sampling_flops \| +estimator_flops \| +MSE\n-+\n((?:.*\|.*\n)+)",
                        out + "\n")
    assert len(tables) == 2
    for table, flops_used in zip(tables, ("0", None)):
        rows = [[cell.strip() for cell in row.split("|")] for row in table.strip().splitlines()]
        assert [row[0] for row in rows] == ["10", "100", "1,000", "10,000", "100,000", "truth"]
        assert len({row[2] for row in rows}) == 1 and flops_used in (None, rows[0][2])
        costs = [int(row[1].replace(",", "")) for row in rows[:-1]]
        assert costs == sorted(costs) and costs[1] == pytest.approx(10 * costs[0], rel=0.1)
        errors = [float(row[3]) for row in rows]
        assert errors[-2] == pytest.approx(errors[-1], rel=0.1)     # 100,000 samples are near the truth

def test_the_module_is_a_script_and_never_imports_argparse():
    source = (HERE / "whestbench.py").read_text()
    assert not re.search(r"^\s*(import|from) argparse", source, re.M)
    assert source.startswith("# /// script\n") and "SPDX-License-Identifier" in source


# ==== Vendoring ===================================================================================

@pytest.fixture(scope="module")
def kit(tmp_path_factory):
    """A folder with whestbench.py, an estimator and compiled kernels; the MSE that every way must give."""
    folder = tmp_path_factory.mktemp("a kit, très vide")
    shutil.copy(HERE / "whestbench.py", folder)
    estimator_file(folder, PROPAGATION)
    return folder, mse_of([sys.executable, "whestbench.py", "run", "estimator.py"], folder)

def start(command, cwd, **environment):
    arguments = map(str, [*command, *SHAPE, "--n-mlps", 1, "--n-samples", 2048, "--no-store", "--json"])
    return subprocess.Popen([*arguments], cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            env={**os.environ, **environment})

def mse_of(command, cwd, **environment):
    """The final-layer MSE that a run of the kit's estimator prints as JSON."""
    process = start(command, cwd, **environment)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return json.loads(out)["results"]["final_layer_mse"]

@pytest.mark.parametrize("environment", [{}, {"PYTHONDONTWRITEBYTECODE": "1"}, {"PYTHONSAFEPATH": "1"}])
def test_the_one_file_runs_as_a_script_from_anywhere_and_as_a_module(kit, tmp_path, environment):
    folder, mse = kit
    assert environment or mse_of([sys.executable, "-m", "whestbench", "run", "estimator.py"], folder) == mse
    command = [sys.executable, folder / "whestbench.py", "run", folder / "estimator.py"]
    assert mse_of(command, tmp_path, **environment) == mse

def test_two_runs_at_once_give_the_same_numbers(kit):
    folder, mse = kit
    both = [start([sys.executable, "whestbench.py", "run", "estimator.py"], folder) for _ in range(2)]
    assert [json.loads(process.communicate(timeout=300)[0])["results"]["final_layer_mse"]
            for process in both] == [mse, mse]

def test_a_folder_that_takes_no_cache_is_no_obstacle(kit, tmp_path):
    for name in ("whestbench.py", "estimator.py"):
        shutil.copy(kit[0] / name, tmp_path)
    (tmp_path / "__pycache__").write_text("where kernels would be cached")
    assert mse_of([sys.executable, "whestbench.py", "run", "estimator.py"], tmp_path) == kit[1]

def test_a_starter_kit_keeps_its_own_modules_beside_the_real_packages(kit, tmp_path, oracle_folder):
    for name in ("whestbench.py", "estimator.py"):
        shutil.copy(kit[0] / name, tmp_path)
    (tmp_path / "local_engine.py").write_text("OWN = True\n")
    (tmp_path / "examples").mkdir()
    source = (tmp_path / "estimator.py").read_text()
    (tmp_path / "examples" / "one.py").write_text(source + "\nimport local_engine\nassert local_engine.OWN\n")
    real = str(oracle_folder("whestbench-0.16.2"))
    for example in ("estimator.py", "examples/one.py"):
        assert mse_of([sys.executable, "whestbench.py", "run", example], tmp_path, PYTHONPATH=real) == kit[1]

def test_a_python_without_the_packages_gets_one_sentence(kit):
    bare = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-S", "whestbench.py", "run", "estimator.py"], cwd=kit[0],
                          capture_output=True, text=True, env=bare)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "pip install numba numpy plac" in done.stderr

@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project, as a clone has it."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("whestbench.py", "estimator.py", "test_whestbench.py", "pyproject.toml", "README.md"):
        shutil.copy(HERE / name, folder)
    return folder

def test_uv_runs_the_one_file_and_the_page_s_commands_in_the_project(kit, project):
    uv = needs("uv").find_uv_bin()
    environment = {"VIRTUAL_ENV": "", "UV_PYTHON": sys.executable, "UV_NO_PROGRESS": "1"}
    assert mse_of([uv, "run", "whestbench.py", "run", "estimator.py"], kit[0], **environment) == kit[1]
    for line in ("python estimator.py", "python estimator.py --baseline mean_propagation"):
        done = subprocess.run([uv, "run", *line.split(), *SHAPE], cwd=project, capture_output=True, text=True,
                              timeout=200, env=os.environ | environment)
        assert done.returncode == 0 and "n_samples" in done.stdout, done.stderr
    assert mse_of([uv, "run", "whest", "run", "--estimator", kit[0] / "estimator.py"], project,
                  **environment) == kit[1]

def test_wheel_and_sdist_hold_the_module_and_install(project, tmp_path, kit):
    uv = needs("uv").find_uv_bin()
    subprocess.run([uv, "build", "--quiet", "--python", sys.executable, "--out-dir", tmp_path], cwd=project,
                   check=True)
    (wheel,), (sdist,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        members = archive.namelist()
    assert "whestbench.py" in members and not {"estimator.py", "test_whestbench.py"} & set(members)
    with tarfile.open(sdist) as archive:
        sources = {name.partition("/")[2] for name in archive.getnames()}
    assert {"whestbench.py", "pyproject.toml", "README.md"} <= sources
    venv.create(tmp_path / "bare", with_pip=True)
    scripts = tmp_path / "bare" / ("Scripts" if os.name == "nt" else "bin")
    subprocess.run([scripts / "pip", "install", "--quiet", wheel], check=True, capture_output=True,
                   timeout=300)
    version = subprocess.run([scripts / "whest", "--version"], capture_output=True, text=True, check=True,
                             cwd=tmp_path).stdout
    assert re.fullmatch(rf"whestbench {re.escape(wb.__version__)}, Python [\d.]+\S*, NumPy [\d.]+\S*, "
                        r"numba [\d.]+\S*, plac [\d.]+\S*\n", version)
    assert mse_of([scripts / "whest", "run", kit[0] / "estimator.py"], tmp_path) == kit[1]


# ==== README and style ============================================================================

README = (HERE / "README.md").read_text()

def flat(text):
    """The text without its line breaks."""
    return " ".join(text.split())

def readme_table(title):
    """The cells of the README's table with this title in its first column."""
    lines = README.partition(f"\n| {title} |")[2].partition("\n\n")[0].splitlines()
    return [[cell.strip().strip("`") for cell in line.split("|")[1:-1]] for line in lines[2:]]

def test_the_readme_s_rounds_are_those_of_the_tool():
    for row, rules in zip(readme_table("round"), wb.ROUNDS.values(), strict=True):
        tag, shape, budget, second, gate, wall, book = row
        assert tag.split("`")[0] == rules.tag and book == rules.prices
        assert shape == f"{rules.width}x{rules.depth}"
        assert int(budget.replace(",", "")) == rules.flop_budget and wall == f"{rules.wall_time_limit:g} s"
        assert float(second.split()[0].replace("free", "0")) == rules.lambda_flops_per_second
        assert gate == f"{rules.residual_wall_time_limit or 'none'} s".replace("none s", "none")

def test_the_readme_lists_what_is_left_out():
    section = README.partition("## What is left out\n")[2].partition("\n## ")[0]
    assert wb.LEFT_OUT and all(reason in flat(section) for reason in wb.LEFT_OUT)
    words = set(re.findall(r"[\w.]+\w", section))
    assert set(" ".join(wb.LEFT_OUT.values()).split()) <= words

def test_the_readme_s_prices_are_those_of_the_tool():
    rng = np.random.default_rng(0)
    def array(*shape, dtype="f4"):
        return fnp.asarray(rng.standard_normal(shape, dtype))
    names = {"x": array(1000), "y": array(1000), "w": array(100, 100), "v": array(100, 100),
             "d": array(1000, dtype="f8"), "i": np.arange(1000)}
    rows = readme_table("call")
    assert len(rows) > 8
    for call, *bills, _ in rows:
        assert [f"{bill(call, book, **names):,}" for book in BOOKS] == bills, call

@pytest.fixture
def beside_estimator(tmp_path, monkeypatch):
    """Work in a folder that has the kit's estimator; it may be written to."""
    (tmp_path / "estimator.py").write_bytes((HERE / "estimator.py").read_bytes())
    monkeypatch.chdir(tmp_path)

CHEAP = [*SHAPE, "--flop-budget", "1e7", "--lambda-flops-per-second", "0"]
READY = {"bake": [*SHAPE, "--n-mlps", "2", "--n-samples", "2048"], "validate": CHEAP,
         "run": [*CHEAP, "--n-mlps", "2", "--n-samples", "2048"],
         "checklist": [*CHEAP, "--n-mlps", "2", "--n-samples", "2048"]}      # makes a command quick

@pytest.mark.usefixtures("beside_estimator")
def test_the_readme_s_lines_of_python_run(capsys):
    code = README.partition("```python\n")[2].partition("```")[0]
    code = code.replace("width=256, depth=8", "width=16, depth=3").replace('"3"]', f'"2", *{READY["run"]}]')
    space = {}
    exec(code, space)
    assert space["status"] == 0 and space["error"].corrected > 0 and "matmul" in capsys.readouterr().out

ELSEWHERE = {       # tested by
    "python test_whestbench.py bench": "test_bench_measures_every_round_s_shape_and_the_overhead_of_a_call",
    "uv run whestbench.py run estimator.py":
        "test_uv_runs_the_one_file_and_the_page_s_commands_in_the_project"}

IN_README = re.findall(r"`((?:whest|python(?! whestbench)|uv run) [^`]*\w)`", README)

@pytest.mark.parametrize("line", sorted(set(IN_README)))
@pytest.mark.usefixtures("beside_estimator")
def test_a_command_of_the_readme_works_as_typed(line, capsys):
    if line in ELSEWHERE:
        assert ELSEWHERE[line] in globals()
        return
    program, *arguments = shlex.split(line)
    if program == "python":
        done = python(*arguments, *SHAPE, cwd=Path.cwd(), check=0, PYTHONPATH=str(HERE))
        assert "n_samples" in done.stdout
        return
    if "suite.npz" in arguments and arguments[0] == "run":
        assert wb.main(["bake", "--output", "suite.npz", *READY["bake"]]) == 0
    status = wb.main([*arguments, *READY.get(arguments[0], [])])
    out, err = capsys.readouterr()
    assert status == 0 and out and not err.startswith("whest:"), err

def test_every_public_name_has_type_hints():
    assert len(set(wb.__all__)) == len(wb.__all__)
    bare = []
    for name in wb.__all__:
        thing = getattr(wb, name)
        members = [(name, thing)]
        if inspect.isclass(thing):
            members = [(f"{name}.{key}", getattr(value, "fget", None) or getattr(value, "__func__", value))
                       for key, value in vars(thing).items() if key == "__init__" or key[0] != "_"]
        for label, function in members:
            if (inspect.isfunction(function) and function.__module__ == "whestbench"
                    and "<" not in function.__code__.co_filename):
                signature = inspect.signature(function)
                values = [p.annotation for p in signature.parameters.values() if p.name not in ("self", "_")]
                values += [signature.return_annotation] * (function.__name__ != "__init__")
                bare += [label] * (inspect.Parameter.empty in values)
    assert bare == []

@pytest.mark.parametrize("tool, arguments", [("ruff", ["check", "."]), ("mypy", [])])
def test_linter_and_type_checker_are_content(tool, arguments, tmp_path):
    needs(tool)
    python("-m", tool, *arguments, "--cache-dir", tmp_path, check=0)


# ==== Oracles: the real packages, each in a process and a folder of its own =======================

# Calls of every priced operation, between `;;`: `names: arguments; arguments`, or `= calls`; see `fixture`.
# A call is made for each dtype in place of X, and once with uncounted arrays.
# Left out: trapz and in1d (not in this NumPy).
ZOO = {}
ZOO["pointwise"] = r"""
abs absolute negative positive exp exp2 expm1 log log2 log10 log1p sqrt cbrt square reciprocal sin cos tan
arcsin arccos arctan sinh cosh tanh arcsinh arccosh arctanh asin acos atan asinh acosh atanh degrees
radians deg2rad rad2deg sign signbit fabs ceil floor rint trunc spacing logical_not bitwise_not
bitwise_invert bitwise_count invert conj conjugate fix round around nan_to_num isnan isfinite isinf: X34;
X03; X; 0.5 ;; add subtract multiply divide true_divide floor_divide power pow float_power mod remainder
fmod maximum minimum fmax fmin logaddexp logaddexp2 arctan2 atan2 hypot copysign nextafter heaviside
greater greater_equal less less_equal equal not_equal logical_and logical_or logical_xor bitwise_and
bitwise_or bitwise_xor bitwise_left_shift bitwise_right_shift left_shift right_shift gcd lcm: X34, X4; X34,
X34; X34, 2; 2.0, X34; X34, np.float64(2); X34, F34; Y234, X; X03, 1 ;; sum prod max min amax amin mean std
var argmax argmin cumsum cumprod any all count_nonzero nansum nanprod nanmax nanmin nanmean nanstd nanvar
nanargmax nanargmin nancumsum nancumprod median nanmedian average: X34; X34, axis=-1; X34, axis=0,
keepdims=True; X234, axis=(0, 2); X; X03; [1, 2, 3]; X34, axis=0, dtype=f4 ;; percentile quantile: X34,
0.5; X34, [0.25, 0.5]; X34, 1, axis=0; X234, [0, 0.5], axis=(0, 2); X34, 0.5, axis=1, keepdims=True; X34,
0.5, method="lower"; X34, np.float32(0.5) ;; sum mean var any cumsum: X34, 0, out=Y4 ;;
einsum: "ij,ij,k->k", X34, X34, X3;
"i,j,k->k", X3, X3,
X4; "i,j,k->jk", X0, X3, X4;
"aij,aik->ajk", X234, X234; "aij,aik->ajk", X222, X222; "ij,ij,k->k", X44,
X44, X3 ;; sqrt sinh degrees fix round: F34, out=Y34 ;; dot inner outer vdot: a=X3, b=Y3 ;; dot matmul:
X34, X4, out=Y3 ;; full: shape=3, fill_value=2.0 ;; where: condition=B34, x=X34, y=2 ;; count_nonzero: X34,
axis=None; X4, axis=0; X4, keepdims=True ;; trace: X03 ;; unique: X34, axis=0; X345, axis=-1 ;; = X34 + X4;
X34 - X4; X34 * X4; X34 / X4; X34 // X4; X34 % X4; X34**2; 2**X34; -X34; +X34; abs(X34); ~X34; X34 > X4;
X34 <= X4; X34 == X4; X34 != X4; X34 & X34; X34 | X34; X34 ^ X34; X34 << 1; X34 >> 1; 1 + X34; 1 - X34; 2 /
X34; 5 % X34; X34 * 2.5; np.float32(2) * X34; np.float64(2) * X34; X34 * np.float64(2); np.ones((3, 4)) *
X34; X34 + True; X34 @ X43; X43 @ np.ones((3, 4), f4) ;; = X34.sum(); X34.sum(0); X34.sum(axis=1,
keepdims=True); X34.prod(); X34.mean(0); X34.std(); X34.var(axis=1, ddof=1); X34.min(); X34.max(axis=0);
X34.argmin(); X34.argmax(1); X34.any(); X34.all(); X34.cumsum(); X34.cumsum(1); X34.cumprod(0);
X34.round(); X34.clip(0, 1); X34.trace(); X34.dot(X4); X34.T; X34.copy(); X34.ravel(); X34.flatten();
X34.reshape(4, 3); X34.reshape(-1); X34.reshape((2, 6)); X34.astype(f8); X34.astype(f4); X34.nonzero();
X34.conj(); X34.tolist(); X34.squeeze(); X34.transpose(); X34.transpose(1, 0); X34.swapaxes(0, 1);
X34.take([0]); X34.repeat(2); X34.argsort(); X34.argsort(axis=0); X34.argpartition(1); X34.diagonal();
X34.item(2); X34.compress([True, False, True], axis=0); X4.searchsorted(2); X34.mT ;; = X34[1]; X34[1, 2];
X34[1:, ::2]; X34[None]; X34[..., 0]; X34[[0, 1]]; X34[T2]; X34[B34]; X34[[0, 1], [1, 2]]; X34[X34 > 0];
X34[:, [0, 2]]; X34[np.int64(1)]; X5[True]; X34.flat[3]; next(iter(X34)); next(iter(X4)); X34[np.array(1)]
;; = np.sum(X34); np.mean(X34, axis=0); np.add(X34, X4); np.exp(X34); np.add.reduce(X34);
np.add.reduce(X34, axis=1); np.multiply.reduce(X34, axis=None); np.maximum.reduce(X34);
np.logical_or.reduce(X34); np.minimum.reduce(X34); np.logical_and.reduce(X34); np.add.accumulate(X34);
np.multiply.accumulate(X34); np.fft.fft(X4); np.nansum(X34) ;; add: X34, X34, dtype=f8; X34, X34, dtype=f4,
casting="unsafe"; X34, X34, where=B34, out=Y34 ;; sqrt exp: F34 * F34, out=Y34; F34 * F34, dtype=f8 ;; sum
mean max min prod: X34, where=B34, initial=2 ;; clip: X34, 0, 1; X34, None, 1; X4, X4, 2; X34, 0.5, None;
X34, min=0; X34, min=0, max=Y4 ;; var std: X34, axis=0, mean=Y4[None]; X34, 0, ddof=1 ;; round: X34, 2; 2.567, 1"""
ZOO["contraction"] = r"""
matmul dot: X34, X43; X44, X44; X4, X4; X34, X4; X4, X44; X234, X43 ;; dot vdot inner outer vecdot matmul:
X4, Y4; X4, X4; X4, F4 ;; dot: X34, 2.0; X, X34; X34, X43 ;; inner: X34, X24; X34, X34 ;; vecdot
linalg.vecdot: X34, X34; X34, X4; X234, X34 ;; matvec: X34, X4; X234, X4 ;; vecmat: X3, X34; X3, X234 ;;
linalg.matmul: X34, X43; X44, X44 ;; linalg.outer outer: X3, X4; X3, X3 ;; outer: X34, X4 ;; tensordot:
X34, X43, 1; X234, X34, 2; X234, X45, axes=1; X234, X43, axes=([2, 1], [0, 1]); X3, X4, 0; X44, X44, 2;
X34, X34 ;; einsum: "ij,jk", X34, X43; "ij,kj->ik", X34, X34; "ij,jk->ik", X44, X44; "i,i->", X4, X4;
"ij->ji", X34; "ii->i", X44; "ii", X44; "ij->i", X34; "i,j->ij", X4, X4; "i,j", X3, X4; "ia,ib,ic->abc",
X44, X44, X44; "ij,jk,kl->il", X34, X43, X34; "ij,jk,k->i", X34, X45, X5; "...i->...", X34;
"...ij,...jk->...ik", X234, X43; "ij,j,i->", X34, X4, X3; "ji,jk,kl->il", X44, X44, X44; "i,i,i->i", X4,
X4, X4; "ij,ij->", X34, X34; "ij,kl->", X34, X43; "ij,k->i", X34, X3; "bi,bj,ij->b", X34, X34, X44;
"ab,bc,cd,de->ae", X34, X45, X52, X23; "i,i,i,i->", X3, X3, X3, X3; "ij,jk->ik", X03, X34; "ab,bc,ca->",
X44, X44, X44; "ij,ij->ij", X34, F34; "i->", X4 ;; kron: X34, X22; X3, X2 ;; linalg.tensordot: X34, X43,
axes=1"""
ZOO["symmetric"] = r"""
= fnp.zeros((2,) * 7) + fnp.zeros((2,) * 7); fnp.zeros((1,) * 15) + 1; fnp.sum(fnp.zeros((2,) * 5),
axis=0); fnp.zeros((2, 2, 3, 3, 3)) + 1; zeros4 + zeros4; [fnp.add(sym3, sym3, out=sym3),
fnp.exp(sym3)][1]; [fnp.exp(X33, out=zeros4[:3, :3]), 1][0]; fnp.clip(sym3, 0, X3); fnp.clip(sym3, 0,
sym3); fnp.clip(sym3, 0, 1); sym3[0, None, None] + 1; sym3[None, :, None] + 1; fnp.argmax(X34, axis=0,
out=fnp.zeros(4, dtype=fnp.int64) + 0); sym3 + sym3; sym3 * 2.0; sym3 + X33; sym3 @ sym3; sym3 @ X33;
fnp.exp(sym3); fnp.sum(sym3); fnp.sum(sym3, axis=0); fnp.mean(sym3, axis=1); fnp.var(sym3);
fnp.cumsum(sym3, axis=0); fnp.max(cube3, axis=0); fnp.sum(cube3, axis=1); cube3 * cube3;
fnp.transpose(cube3, (2, 0, 1)); sym3.T; sym3[0]; sym3[:2, :2]; cube3[0]; cube3[0] + cube3[0]; cube3[1:,
0]; sym3.reshape(9); sym3.copy() + 1; fnp.sqrt(sym3 * sym3); sym3 > 0; fnp.where(sym3 > 0, sym3, 0.0);
fnp.linalg.inv(sym3); fnp.linalg.eigh(sym3); fnp.einsum("ij,jk->ik", sym3, sym3); fnp.einsum("ij,ij->",
sym3, sym3); fnp.einsum("ij,kj->ik", X33, sym3); fnp.einsum("ijk,k->ij", cube3, X3); fnp.einsum("ijk->jki",
cube3); fnp.einsum("ij,jk,kl->il", sym3, sym3, sym3); fnp.inner(sym3, sym3); fnp.dot(sym3, X3);
fnp.outer(X3, X3) + 1; fnp.diag(X3) * 2; fnp.eye(3) + fnp.eye(3);
fnp.ones((3, 3)) @ X33; fnp.zeros_like(X33) + 1; fnp.full((3, 3), 2.0) + sym3; fnp.concatenate([sym3,
sym3]) + 1; fnp.stack([sym3, sym3]) + 1; fnp.squeeze(sym3[None]) + 1; fnp.expand_dims(sym3, 0) * 2;
fnp.broadcast_to(sym3, (2, 3, 3)) * 2; fnp.clip(sym3, 0, 1) + 1;
fnp.triu(sym3) + 1; fnp.median(sym3, axis=0); fnp.moveaxis(cube3, 0, 2) + 1;
fnp.minimum(sym3, sym3.T); sym3.astype(f4) + 1; fnp.round(sym3) + 1; fnp.sum(cube3, axis=(0, 1));
fnp.argmax(cube3, axis=2); fnp.std(cube3, axis=0); fnp.swapaxes(cube3, 0, 1) + 1; young4 * 2;
fnp.sum(young4, axis=0) * 2; fnp.einsum("ijkl->ij", young4); fnp.trace(cube3); fnp.fill_diagonal(sym3, 1);
fnp.linalg.solve(sym3, X3); fnp.linalg.cholesky(sym3 @ sym3 + fnp.eye(3)); fnp.where(True, sym3, sym3);
fnp.diagonal(sym3) + 1; sym3.flatten(); flops.as_symmetric(fnp.ones((2, 3, 3)), symmetry=(1, 2)) * 2;
fnp.add(X33, X33, out=sym3); fnp.add(X33, X33, out=fnp.outer(X3, X3)); fnp.add(F33, F33, out=fnp.zeros((3,
3))); fnp.exp(sym3, out=sym3); fnp.sum(X333, axis=0, out=sym3); operator.iadd(fnp.zeros((3, 3)), X33);
operator.iadd(sym3, sym3); fnp.linalg.solve(X33, pX3); fnp.atleast_3d(sym3) + 1; sym3.squeeze();
sym3.ravel(); fnp.array_split(cube3, 2)[0] + 1"""
ZOO["creation"] = r"""
array: X34; 3; X34, dtype=f4; X34, copy=False; [1.5, 2], dtype=i4 ;; ones: 5; (3, 4), dtype=f4; (0, 3); ();
(3, 4), i8 ;; zeros: (3, 4); 3, dtype=f4 ;; empty: (3, 4); 3, f4 ;; full: (3, 4), 2.0; 5, 2, dtype=f4; (0,
2), 1.0; (), 1.0 ;; full_like: X34, 2; X34, 2, shape=(5,); X34, 2, dtype=f4; X, 1; F34, 2.0, dtype=f8 ;;
ones_like: X34; X34, dtype=f4; X34, shape=(2, 2); X0; [1, 2] ;; zeros_like empty_like: X34 ;; eye: 4; 3, 4,
-1; 4, dtype=f4; 0; 3, 5, 4 ;; identity: 4; 3, dtype=f4; 0; 3, i8 ;; arange: 10; 2.0, 5.0, 0.5; 0; stop=4;
0, 1, 0.1, f4 ;; linspace: 0, 1; X3, Y3, 5; F3, 2.0, 5, axis=1; 0, 1, 5, dtype=f4; 0, 9, 10, dtype=i4 ;;
diag: X4; X4, -2; X34, 1; X34, 9; X03 ;; diagflat: X4; X23, 1; X; [1, 2]; X0 ;; copy: X34; X; X0; [1, 2] ;;
astype: X34, f4; X34, f8, copy=False; X0, f4; X34, i4, copy=False ;; asarray: X34; 3.0; X; X34.T; X34[:,
::2]"""
ZOO["movement"] = r"""
atleast_3d flip fliplr flipud rot90 transpose matrix_transpose shape size ndim isfortran ndenumerate
nditer: X34 ;; diagonal: X34; X34, 1; X345, 0, 1, 2; X34, -5 ;; ix_: [0, 1], [2, 3]; B4, T2; B4, B3; [True,
False]; J3, T2 ;; frombuffer: b"12345678" ;; ravel: X34; X34, order="F"; [1, 2]; X0 ;; reshape: X34, (4,
3); X34, -1; X0, (0, 2); X34, shape=(12,); X34, (4, 3), copy=True ;; concatenate: [X34, Y34]; [X34, X24,
X54]; (X34, Y32), axis=1; [X34, Y23], axis=None; [X0, X0]; [X3, [1, 2]]; [F3, X3], dtype=f4,
casting="unsafe"; X34; [[1], [2.0]]; [F3, F3], out=Y6 ;; concat: [X3, F4] ;; stack: [X34, Y34]; [X3, F3];
[X, X]; [1.0, 2.0]; X34 ;; vstack: [X34, Y4]; [X3, X3] ;; hstack: [X34, Y32]; [X3, X]; [1, 2]; [X0] ;;
dstack: [X34, X34]; [X3, X3]; [X34] ;; column_stack: [X3, X34]; [X3, Y3] ;; row_stack: [X3, Y3] ;; tile:
X34, 2; X3, (2, 2); X34, 0; 2.0, 3; X34, (2, 1, 3) ;; repeat: X34, 2; X34, 2, axis=1; X3, [1, 2, 0]; X34,
0; 2, 3 ;; roll: X34, 1; X34, 1, axis=0; X34, (1, 2), axis=(0, 1); X0, 1; X, 1 ;; array_split: X5, 2 ;;
split vsplit: X34, 3 ;; hsplit: X34, 2 ;; dsplit: X234, 2 ;; unstack: X34; X34, axis=1; X0 ;; atleast_1d: X
;; atleast_2d: X3, Y4 ;; broadcast_arrays broadcast: X34, X4 ;; broadcast_to: X4, (3, 4) ;; expand_dims:
X34, 1 ;; squeeze: X134 ;; moveaxis: X345, 0, 2 ;; rollaxis: X345, 2 ;; swapaxes: X34, 0, 1 ;;
permute_dims: X34, (1, 0) ;; result_type: X34, F3 ;; can_cast promote_types: f4, f8 ;; isscalar
min_scalar_type: 3 ;; shares_memory may_share_memory: X34, X34 ;; common_type: Y3 ;; isdtype: f4, "real
floating" ;; issubdtype: f4, np.floating ;; iterable: X3 ;; typename: "d" ;; mintypecode: "f" ;; geterr
get_printoptions: **{} ;; finfo: f4 ;; iinfo: i4 ;; ndindex: 3, 2 ;; errstate: all="ignore" ;; packbits:
X34; X34, axis=0; X9, bitorder="little"; [1, 0, 1] ;; unpackbits: X34; X34, axis=1; X34, axis=0,
count=5; X3, bitorder="little"; X0"""
ZOO["indices"] = r"""
triu: X34; X34, 1; X34, -1; X4; X44, 9 ;; tril: X34; X44, -1; X234, 1; X4; X03 ;; triu_indices: 4; 4, 1; 4,
-1, 5; 0 ;; tril_indices: 4; 3, 1, 6 ;; diag_indices: 4; 4, 3 ;; triu_indices_from: Y44; X34, 1 ;;
tril_indices_from diag_indices_from: X44 ;; unravel_index: 5, (3, 4); [5, 6], (3, 4); T3, (3, 4, 2); K22,
(3, 4) ;; ravel_multi_index: (K3, K3), (3, 4); (1, 2), (3, 4); [[1, 2], [0, 1]], (3, 4); (K32, K2), (3, 4);
K24, (3, 4) ;; where: X34 > 0; B34, X34, Y34; B34, X34, 0; B3, 1.0, 2.0; B31, X34, F4; True, X34, 0; X34,
F34, 1.5; B3, [1, 2, 3], X3; X0; T4, X34, 3 ;; nonzero: X34; X0; X3 ;; argwhere: X34; X0; X ;; flatnonzero:
X34; X0 ;; select: [B34, B34], [X34, Y34]; [B34, B34], [X34, 0], F34; [B3], [X43]; [B3], [2], 1; [B3],
[X3], default=np.float64(2) ;; take: X34, [0, 1]; X34, T3, axis=0; X34, K22, axis=1; X34, 2; X34, [],
axis=0; [1.0, 2.0], 0; X34, K5, 1; X34, J3, mode="wrap"; F34, [0, 1], out=F2 ;; take_along_axis: X34, K34,
1; X34, K14, axis=0; X34, T5, None; X34, K31, 1; X34, K32, axis=-1 ;; compress: B3, X34, axis=0; [True,
False], X34; B4, X34, 1; [False], X3; B4, X34 ;; put: X34, [0, 1], [5, 6]; X34, T5, 1; X34, 3, 1; X34, [],
1; X34, [1, 2, 3], F3, mode="clip" ;; put_along_axis: X34, K31, 9, 1; X34, K34, Y34, axis=1; X34, K14, 0,
axis=0; X34, K32, F32, 1; X34, K11, 9, 1 ;;
copyto: X34, Y34, casting="unsafe"; X34, 1; F34, 2.5; X0, 1; F34, Y34; X34, [1, 0, 1, 0],
casting="unsafe"; F, 2.0 ;;
fill_diagonal: X44, 5; X53, 0, wrap=True; X333, 1; X22, [1, 2]; X03, 1"""
ZOO["sorting"] = r"""
unique_all: X34 ;; sort: X34; X0; X345, axis=1; X34, kind="stable"; X34, stable=True; X03, axis=0 ;;
argsort: X34; X34, None; X, axis=None; [3, 1]; X30 ;; partition: X34, 1; X34, [0, 2]; X5, (1, 2, 3); X34,
T2; X30, 0 ;; argpartition: X34, 1; X34, [1, 2], axis=0; X5, -1; X34, 3, None ;; searchsorted: S5, X34; S0,
X3; S9, F3; X5, X3, sorter=T5; F5, F0 ;; digitize: X34, S5; 0.5, S5; X3, S1, right=True; F5, [0.0, 1.0,
2.0]; X0, S5 ;; unique: X34; X0; [1, 1, 2]; X345, axis=-1; X30, axis=0 ;; unique_counts unique_inverse: X5
;; unique_values: X34; [1, 2, 2] ;; union1d: X5, Y3; X34, X2; [1, 2], [2, 3]; F3, F3; X0, X1 ;; setdiff1d:
X5, Y3; X34, X2; T5, T3, assume_unique=True; X0, X0; T9, F3 ;; setxor1d: X5, Y3; X34, X2,
assume_unique=True; X0, X1 ;; bincount: K5; K5, minlength=9; [1, 2, 2]; J5; K5, weights=F5"""
ZOO["numerics"] = r"""
kron: X34, Y22; X, X3; X0, X3; X234, X22; F2, X2 ;; trace: X34; X34, 1;
X345; X44, dtype=f8; X34, 9"""
ZOO["linalg"] = r"""
linalg.svd: X34; X44, False; X03; X34, hermitian=False; X30 ;; linalg.svdvals: X34; X254; X03 ;;
linalg.cholesky: P44; P244; P44, upper=True; X00; Q55 ;; linalg.qr: X34; X43, mode="r"; X254, "r"; X30;
X54, "complete" ;; linalg.eig linalg.slogdet: X44; X233; X00 ;; linalg.eigh: P44; X44, "U"; Q233; X00 ;;
linalg.eigvals: X44; X233; X11 ;; linalg.eigvalsh: X44; Q233, UPLO="U"; X11; X022 ;; linalg.solve: X44, Y4;
X44, F4; X2133, Y433; F44, F4; X033, X3 ;; linalg.inv: X44; X233; X11; P44; [[1, 2], [3, 5]] ;; linalg.det:
X44; X233; X11; X00; X022 ;; linalg.norm: X5; X34, np.inf; X345, axis=(0, 2); [3, 4]; X34, ord=None,
axis=-1, keepdims=True"""
ZOO["random"] = r"""
random.seed random.default_rng G.standard_cauchy: 3 ;; G.bytes: 10 ;; G.beta G.wald: 1, 2, 3 ;; G.chisquare
G.pareto G.power G.standard_t G.weibull G.zipf: 2, 3 ;; G.geometric G.logseries: 0.5, 3 ;; G.binomial
G.negative_binomial: 5, 0.5, 3 ;; G.gamma G.noncentral_chisquare: 2, 1, 3 ;; G.noncentral_f: 2, 3, 1, 3 ;;
G.triangular: 0, 1, 2, 3 ;; G.gumbel G.laplace G.logistic G.lognormal G.vonmises: 0, 1, 3 ;; G.random: 3;
(2, 3), dtype=f4; out=Y5 ;; G.normal: size=3; Y3 ;; G.standard_normal: 3; ; out=F5, dtype=f4 ;; G.uniform:
size=3; 0, Y3 ;; G.integers: 5; 5, size=3, dtype=i4; 0, 5, (2, 3), endpoint=True ;; G.exponential
G.rayleigh: 1, 3 ;; G.standard_exponential: 3, dtype=f4; 3 ;; G.standard_gamma: 2, 3, dtype=f4 ;;
G.dirichlet: [1, 2], 3 ;; G.f: 2, 3, 3 ;; G.hypergeometric: 5, 5, 3, 3 ;; G.multinomial: 5, [0.5, 0.5], 3
;; G.poisson: 3, 3 ;; G.multivariate_normal: Y3, P33; Y3, P33, (2, 2), method="cholesky"; Y3, P33, 4,
method="eigh" ;; G.choice: 5; 5, 3; X5, 3, replace=False ;; G.permutation: 5; X34,
axis=1; [1, 2, 3] ;; G.permuted: X34; X5, out=X5; [1, 2, 3] ;; G.shuffle: X34; X34, axis=1; X5 ;; G.spawn:
2"""
ZOO["stats"] = r"""
stats.norm.pdf: X5; [0.5, 1] ;; stats.norm.cdf: X5 ;; stats.norm.ppf: X5 * 0 + 0.5; F5 * 0 + 0.3, loc=1.0,
scale=2.0"""

@pytest.fixture(scope="session")
def oracle_folder():
    """Folder of one of the real packages, by name and version."""
    def folder(name):
        path = Path(os.environ.get("WHESTBENCH_ORACLES", "/nowhere")) / name
        if not path.is_dir():
            give_up = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
            give_up(f"no {name} in WHESTBENCH_ORACLES")
        return path.resolve()
    return folder

def fixture(name):
    """An array by its name: letter for dtype, digits for shape; X34 is a float64 (3, 4), pX34 uncounted."""
    import re
    import zlib

    import flopscope as flops
    import flopscope.numpy as fnp
    import numpy as np
    draw = np.random.default_rng(zlib.crc32(name.removeprefix("p").encode()))
    blocks = {"sym3": [(0, 1)], "cube3": [(0, 1, 2)], "young4": [(0, 1), (2, 3)]}.get(name)
    if name == "zeros4":
        return fnp.zeros((4, 4))
    if blocks:
        x = np.round(draw.standard_normal((3,) * (blocks[-1][-1] + 1)) * 8) / 8     # sums are exact
        x = x + x.swapaxes(0, 1)
        if name == "cube3":
            x = x + np.moveaxis(x, 2, 0) + np.moveaxis(x, 2, 1)
        return flops.as_symmetric(x + x.swapaxes(2, 3) if name == "young4" else x, symmetry=blocks)
    if not re.fullmatch(r"p?[B-Z]\d*", name):
        raise KeyError(name)
    plain, name = name.startswith("p"), name.removeprefix("p")
    letter, shape = name[0], tuple(map(int, name[1:]))
    dtype = dict(X="f8", Y="f8", F="f4", I="i8", J="i4", B="?", U="u1", H="f2", P="f8", Q="f4", S="f8",
                 T="i8", K="i8")[letter]
    top = dict(I=9, J=9, U=9, K=3).get(letter)
    x = draw.integers(0, top, shape) if top else draw.standard_normal(shape)
    if letter in "PQ":
        x = x @ np.swapaxes(x, -1, -2) + np.eye(shape[-1])          # positive definite
    if letter == "T":
        x = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    x = np.sort(x) if letter == "S" else x > 0 if letter == "B" else x
    x = np.asarray(x).astype(dtype)
    return x if plain else x.view(fnp.ndarray)

def serve_programs():
    """An oracle's process: run programs, lists of statements, and answer with all that each statement did."""
    import operator
    import os
    import pickle
    import sys
    import types
    import warnings

    import flopscope as flops
    import flopscope.numpy as fnp
    import numpy as np
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    answers, sys.stdout = os.fdopen(os.dup(1), "wb"), sys.stderr

    class Names(dict):
        def __missing__(self, name):
            return self.setdefault(name, fixture(name))

    def plain(value):
        kind = type(value).__name__
        if isinstance(value, np.ndarray):
            return kind, np.array(value)
        if isinstance(value, (tuple, list)):
            return kind, [plain(item) for item in value]
        return kind, value if isinstance(value, (np.generic, int, float, complex, str, bytes)) else None

    def run(program, budget):
        names = Names(flops=flops, fnp=fnp, np=np, operator=operator, linalg=fnp.linalg, random=fnp.random,
                      stats=flops.stats, types=types, G=fnp.random.default_rng(7),
                      f4=np.float32, f8=np.float64, i4=np.int32, i8=np.int64)
        done, seen = [], 0
        with flops.BudgetContext(budget, quiet=True) as context:
            for statement in program:
                target, before = statement.partition(" = ")[0], set(names)
                try:
                    try:
                        value = plain(eval(statement, names, names))
                    except SyntaxError:                 # a statement, not an expression
                        exec(statement, names, names)
                        value = plain(names[target]) if target.isidentifier() else ("None", None)
                    if value[0] == "NoneType":      # it may have written into its operands
                        value = "None", [plain(names[k]) for k in sorted(set(names) - before)
                                         if isinstance(names[k], np.ndarray)]
                except Exception as exc:
                    value = "raised", type(exc).__name__
                log = context.op_log
                done.append(([(r.op_name, int(r.flop_cost)) for r in log[seen:]], value))
                seen = len(log)
        return done

    while True:
        try:
            job, budget = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump([run(program, budget) for program in job], answers)
        answers.flush()

@pytest.fixture(scope="session")
def both(oracle_folder):
    """Run programs by the real package and by ours: for each the list of (statement, theirs, ours)."""
    sides = {}

    def start(package, ours):
        code = "\n".join([ours, *map(inspect.getsource, (fixture, serve_programs)), "serve_programs()"])
        return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                cwd=package.parent, env={**os.environ, "PYTHONPATH": str(package),
                                                         "OPENBLAS_NUM_THREADS": "1"})

    def run(programs, prices, budget=10**15):
        if prices not in sides:
            package = oracle_folder("flopscope-0.7.0" if prices == "0.7" else "flopscope-0.12.4")
            ours = (f"import sys; sys.path[0] = {str(HERE)!r}\n"
                    f"import whestbench as w; w.use_prices({prices!r})")
            sides[prices] = start(package, ""), start(package, ours)        # the same NumPy on both sides
        for side in sides[prices]:
            pickle.dump((programs, budget), side.stdin)
            side.stdin.flush()
        answers = [pickle.load(side.stdout) for side in sides[prices]]
        return [list(zip(*each)) for each in zip(programs, *answers)]
    yield run
    for side in itertools.chain(*sides.values()):
        side.stdin.close()
        side.wait()

# Where the real packages trip over themselves:
OWN_ERRORS = ("RuntimeError|ZeroDivisionError|AttributeError|IndexError|DiminoBudgetExceeded|_indices_from"
              "|permuted|unravel_index")

def same_value(a, b, exact=True):
    """Whether two values are the same: type names, dtypes, shapes, every number (of stats, within 1e-13)."""
    (kind, x), (other, y) = a, b
    if kind != other or type(x) is not type(y):
        return False
    if isinstance(x, list):
        return len(x) == len(y) and all(same_value(p, q, exact) for p, q in zip(x, y))
    if isinstance(x, (np.ndarray, np.generic, float, complex)):
        x, y = np.asarray(x), np.asarray(y)
        if x.dtype != y.dtype or x.shape != y.shape:
            return False
        if x.dtype.kind in "fc" and not exact:
            return np.allclose(x, y, rtol=1e-13, atol=1e-14, equal_nan=True)
        return np.array_equal(x, y, equal_nan=x.dtype.kind in "fc")
    return x == y

def differences(runs, exact=True):
    """What differs between the two sides, as text; and how many statements there were."""
    found, total = [], 0
    for program in runs:
        for statement, (bill, value), (our_bill, our_value) in program:
            total += 1
            cost, our_cost = (sum(flop_cost for _, flop_cost in each) for each in (bill, our_bill))
            if value[0] == "raised":        # ours too then, by whatever error; nor may it cost more
                known = (our_value == value if value[1] == "LinAlgError" else
                         our_value[0] == "raised" or re.search(OWN_ERRORS, value[1] + statement))
                dearer = our_value[0] == "raised" and our_cost > cost
                what = "bill" if dearer else None if known else "raise"
            elif bill != our_bill:
                what = "bill" if cost != our_cost else "log"
            elif statement.startswith("fnp.empty"):
                what = None
            else:
                alike = same_value(value, our_value, exact and "stats." not in statement)
                what = None if alike else "value"
            if what:
                found.append(f"{what:5} {statement}\n      theirs {str(bill)[:200]} {str(value)[:120]}\n"
                             f"      ours   {str(our_bill)[:200]} {str(our_value)[:120]}")
    return found, total

def zoo_calls(family, dtypes="XFIJBU"):
    """The calls of one family of the zoo: its entries with every name, and every dtype."""
    calls = []
    for entry in re.sub(r"\s+", " ", ZOO[family]).strip().split(" ;; "):
        names, _, arguments = entry.partition("= " if entry.startswith("= ") else ": ")
        for each in arguments.split("; "):
            calls += [f"{n if '.' in n else 'fnp.' + n}({each})" for n in names.split()] or [each]
    variants = []
    for call in calls:
        variants += [re.sub(r"\bX(?=\d*\b)", letter, call) for letter in dtypes]
        variants += [] if dtypes == "X" else [re.sub(r"(?<![\w.'\"])[BFHIJKPQSTUXY]\d*\b", r"p\g<0>", call)]
    return [[call] for call in dict.fromkeys(variants)]

@pytest.mark.parametrize("prices", BOOKS)
@pytest.mark.parametrize("family", list(ZOO))
def test_every_call_of_the_zoo_has_the_real_bill_value_dtype_and_type(family, prices, both):
    runs = both(zoo_calls(family), prices)
    found, total = differences(runs)
    assert not found, f"{len(found)} of {total} calls differ:\n" + "\n".join(found[:20])

MODULES = """
import json, os, sys
import numpy as np
import flopscope as flops
import flopscope.numpy as fnp

class Bias(flops.Module):
    def __init__(self):
        self.b, self._hidden = fnp.zeros(2), fnp.ones(9)

class Net(flops.Module):
    def __init__(self, n, rate=0.5):
        self.n, self.rate, self.plain, self.w = n, rate, np.ones(3), fnp.zeros((n, 2), dtype=fnp.float32)
        self.layers, self.table = [Bias(), fnp.zeros(1), 7], {"k": (fnp.zeros(2), "text"), 3: Bias()}

    def config(self):
        return {"n": self.n}

if sys.argv[1] == "save":
    net = Net(3)
    net.w, net.layers[1], net.table["k"] = net.w + 2, fnp.array([0.5]), (fnp.array([3.0, 4.0]), "text")
    net.layers[0].b = fnp.array([1.0, 2.0])
    with flops.BudgetContext(10**9, quiet=True) as budget:
        net.save(sys.argv[2], meta={"rate": 0.25})
    told = budget.flops_used
else:
    with flops.BudgetContext(10**9, quiet=True) as budget:
        net = Net.from_file(sys.argv[2], n=4)
    told = [type(net.w).__name__, net.n, net.rate, fnp.load(sys.argv[2])["__meta__"]]
    try:
        net.load_state_dict({"w": net.w, "v": net.w})
    except ValueError as exc:
        told.append(str(exc))
print(json.dumps([told, {name: [str(a.dtype), a.tolist()] for name, a in net.state_dict().items()}]))
"""

@pytest.mark.parametrize("prices", BOOKS)
def test_a_module_saved_by_each_is_read_by_the_other(prices, oracle_folder, tmp_path):
    package = oracle_folder("flopscope-0.7.0" if prices == "0.7" else "flopscope-0.12.4")
    (tmp_path / "theirs.py").write_text(MODULES)
    (tmp_path / "ours.py").write_text(f"import whestbench\n{MODULES}")
    paths = {"theirs": str(package), "ours": str(HERE)}

    def told(side, *arguments):
        return json.loads(python(tmp_path / f"{side}.py", *arguments, cwd=tmp_path, check=0,
                                 PYTHONPATH=paths[side], WHESTBENCH_PRICES=prices).stdout)
    assert told("ours", "save", "ours.npz") == told("theirs", "save", "theirs.npz")
    assert (tmp_path / "ours.npz").read_bytes() == (tmp_path / "theirs.npz").read_bytes()
    for file in ("ours.npz", "theirs.npz"):
        read = told("ours", "load", file)
        assert read == told("theirs", "load", file) and read[0][:3] == ["FlopscopeArray", 4, 0.25]
        assert read[0][4].startswith("state_dict mismatch") and read[1]["layers.0.b"] == ["float64", [1.0, 2.0]]

@pytest.mark.parametrize("call, refuses", [
    ("fnp.var(X34, axis=0, mean=np.ones((5, 1, 4)))", "0.12"),
    ("fnp.tensordot(X33, X33, ([-1], [0]))", "0.7"), ("fnp.tensordot(X234, X34, ([-1], [-1]))", "0.7"),
    ("fnp.cumsum(cube3, axis=0)", "0.7"), ("fnp.cumprod(cube3, axis=2)", "0.7"),
    ("fnp.einsum('zja,zjb->zab', X234, X234)", "0.7"), ("fnp.einsum('zja,zjb->zab', X222, X222)", "0.7"),
    ("fnp.einsum('ija,ijb->iab', X234, X234)", "0.7"), ("list(sym3.flat)", "0.12")])
def test_a_form_that_one_book_refuses_has_the_real_price_in_the_other(call, refuses, both):
    program = ["(sym3, cube3)", call]           # in book 0.12 it costs something to declare a symmetry
    _, (_, _, ours) = both([program], refuses)[0]
    assert ours == ([], ("raised", "UnsupportedFunctionError"))
    found, _ = differences(both([program], {"0.7": "0.12", "0.12": "0.7"}[refuses]))
    assert not found, found[0]

REHEARSAL = """rng().normal(0., X4); rng().uniform(0., X4); rng().poisson(X4); rng().normal(X4); rng().gumbel(X4)
rng().multinomial(5, fnp.array([.5, .5])); rng().wald(2., X4 + 1.); rng().beta(2. + 1., X4 + 1.)
rng().binomial(fnp.array([3, 4]), .5); rng().integers(0, fnp.array([5, 6])); rng().triangular(0., X4 + 1., 9.)
rng().normal(0., 1., 4)
rng().shuffle(list(range(3))); rng().shuffle(X4); fnp.linspace(X4.min(), X4.max(), 5)
fnp.quantile(X4, fnp.array(.5)); fnp.percentile(X34, fnp.array([20., 50.])); fnp.tile(X4, fnp.array(2))
fnp.dot(X4, 2.); fnp.inner(X4, 2.); fnp.hstack([X4, X4], dtype="f4"); fnp.vstack([X4, X4], dtype="f4")
twice(fnp.quantile(cube3, .5, axis=0)); twice(fnp.percentile(cube3, 50, axis=2))
twice(fnp.quantile(cube3, .5, axis=0, keepdims=True)); fnp.sum(X34, 0, None, Y4) is Y4
fnp.exp(X4, Y4) is Y4; fnp.exp(X4, out=(Y4,)) is Y4; fnp.full_like(X4, X4.max())
fnp.split(X4, fnp.array([1])); 3 in sym3; 7 in X4; 1. in X4; X4[range(2)]; fnp.var(X34, axis=0, mean=X34[:1])
flops.stats.norm.cdf(-9.); flops.stats.norm.ppf(1e-10); flops.stats.norm.pdf(X4, X4)
fnp.eye(10**7); fnp.ones((10**13,)); sym3.symmetry == (sym3 + sym3).symmetry
fnp.random.Generator.exponential(fnp.array([1., 2.])); fnp.array([5., 6, 7, 8])[range(2)]"""


@pytest.mark.parametrize("prices", BOOKS)
def test_what_runs_here_runs_on_the_grader_and_what_fails_there_fails_here(prices, both):
    setting = ["rng = lambda: fnp.random.default_rng(11)", "twice = lambda a: a + a", "(sym3, cube3, Y4)"]
    calls = [call.strip() for line in REHEARSAL.splitlines() for call in line.split(";")]
    found, _ = differences(both([[*setting, call] for call in calls], prices))
    assert not found, "\n".join(found)


@pytest.mark.parametrize("prices", BOOKS)
def test_280_of_the_real_names_have_a_price_each_is_in_the_zoo_and_the_others_say_they_have_none(
        prices, both):
    registry = "__import__('flopscope._registry', fromlist=['REGISTRY']).REGISTRY.items()"
    listed = both([[f"[(n, e['category']) for n, e in {registry} if e['category'] != 'blacklisted']"]],
                  prices)
    names, refused = [(name, kind) for _, ((_, name), (_, kind)) in listed[0][0][1][1][1]], []
    for name, _ in names:
        try:
            with wb.BudgetContext(10**6, quiet=True, prices=prices):
                named(name)()
        except (AttributeError, wb.UnsupportedFunctionError) as error:
            at_once = re.match(r"fft|stats\.\w+|random\.RandomState", name)
            assert (at_once[0] if at_once else name).rpartition(".")[2] in str(error)
            refused.append(name)
        except Exception:       # it misses its arguments
            pass
    assert len(names) > 560 and len(names) - len(refused) >= 280, refused
    zoo = " ".join(re.sub(r"\bG\.", "random.Generator.", re.sub(r"\b(fnp|flops)\.", "", call))
                   for family in ZOO for call, in zoo_calls(family, "X"))
    unvisited = {name for name, kind in names if kind.startswith("counted") and name not in refused
                 and not re.search(rf"(?<![\w.]){name}\(", zoo)}
    assert unvisited <= {"getitem"}         # x[keys], which is all over the zoo

# What a random program may do: templates by kinds of operands and result (M matrix, V vector, S scalar).
STEPS = [line.rsplit(" -> ", 1) for line in """{M} + {M} -> M; {M} * {V} -> M; {M} - {S} -> M; {M} /
3.0 -> M; 2 * {M} -> M; {V} * {V} -> V; {V} + {S} -> V; -{M} -> M; {M} ** 2 -> M; {M} > {M} -> M; {M} @ {M}
-> M; {M} @ {V} -> V; {V} @ {V} -> S; {M}.T -> M; {M}[1] -> V; {M}[:, 2] -> V; {V}[3] -> S; {M}[[2, 0, 1,
3]] -> M; {M}[::-1] -> M; fnp.dot({V}, {M}) -> V; fnp.exp(-abs({M})) -> M; fnp.sqrt(abs({M})) -> M;
fnp.tanh({V}) -> V; fnp.maximum({M}, 0) -> M; fnp.minimum({M}, {V}) -> M; fnp.clip({M}, -1, 1) -> M;
fnp.sum({M}, axis=0) -> V; fnp.mean({M}, axis=1) -> V; fnp.sum({M}) -> S; {M}.max() -> S; {M}.var(axis=0) ->
V; fnp.std({V}) -> S; fnp.cumsum({M}, axis=0) -> M; fnp.where({M} > 0, {M}, {V}) -> M; fnp.outer({V}, {V})
-> M; fnp.diag({V}) -> M; fnp.diag({M}) -> V; fnp.trace({M}) -> S; fnp.eye(4) -> M; fnp.zeros((4, 4)) -> M;
fnp.ones(4, dtype=fnp.float32) -> V; fnp.arange(4.0) -> V; fnp.einsum("ij,jk->ik", {M}, {M}) -> M;
fnp.einsum("ij,j->i", {M}, {V}) -> V; fnp.einsum("ij,ij->", {M}, {M}) -> S; fnp.einsum("ij,jk,kl->il", {M},
{M}, {M}) -> M; fnp.inner({M}, {M}) -> M; fnp.linalg.norm({V}) -> S; fnp.linalg.qr({M})[0] -> M;
fnp.linalg.inv({M} + 9 * fnp.eye(4)) -> M; fnp.linalg.eigvalsh({M} + {M}.T) -> V; fnp.linalg.solve({M} + 9 *
fnp.eye(4), {V}) -> V; fnp.sort({M}, axis=1) -> M; fnp.argsort({V}) -> V; fnp.median({M}, axis=0) -> V;
fnp.concatenate([{M}[:2], {M}[2:]]) -> M; fnp.stack([{V}, {V}, {V}, {V}]) -> M; {M}.reshape(2, 8).reshape(4,
4) -> M; fnp.transpose({M}).copy() -> M; {V}.astype(fnp.float32) -> V; {M}.astype(fnp.float64) -> M;
fnp.take({M}, [3, 1, 1, 0], axis=0) -> M; rng.standard_normal((4, 4)) -> M; rng.normal(size=4) -> V;
rng.standard_normal(4, dtype=fnp.float32) -> V; fnp.broadcast_to({V}, (4, 4)) -> M; fnp.tril({M}) -> M;
fnp.logical_and({M} > 0, {M} < 1) -> M; fnp.count_nonzero({M} > 0) -> S; fnp.asarray({V}, dtype=fnp.float64)
-> V; np.add({M}, {M}) -> M; np.sum({M}, axis=1) -> V; fnp.multiply({M}, {M}, out={M}) -> M; fnp.full((4,
4), {S}) -> M; fnp.linalg.cholesky({M} @ {M}.T + fnp.eye(4)) -> M""".replace("\n", " ").split("; ")]
STEPS += [["{M}[0] = {V}", ""], ["{M} += {M}", ""], ["{V} *= 2", ""], ["fnp.fill_diagonal({M}, {S})", ""],
          ["fnp.copyto({M}, {V})", ""]]

@st.composite
def random_program(draw):
    """5 to 40 statements on matrices (4, 4), vectors and scalars; each may use all that came before."""
    made = {"M": ["m0", "m1"], "V": ["v0", "v1"], "S": ["s0", "2.5"]}
    program = ["rng = fnp.random.default_rng(3)", "m0 = fnp.array(rng.standard_normal((4, 4)))",
               "v0 = fnp.array([1.0, -2.0, 0.5, 3.0])", "s0 = fnp.sum(v0)",
               "m1 = rng.standard_normal((4, 4), dtype=fnp.float32)",
               "v1 = rng.standard_normal(4, dtype=fnp.float32)"]
    for step in draw(st.lists(st.sampled_from(STEPS), min_size=5, max_size=40)):
        source, out, target = step[0].partition("out={M}")
        text = re.sub(r"{([MVS])}", lambda m: draw(st.sampled_from(made[m[1]])), source)
        if out:     # never an array that may be symmetric: the real package refuses to write into it
            text += "out=" + draw(st.sampled_from(["m0", "m1"])) + target
        if step[1]:
            name = f"{step[1].lower()}{len(program)}"
            made[step[1]].append(name)
            text = f"{name} = {text}"
        program.append(text)
    return program

@pytest.mark.parametrize("prices", BOOKS)
def test_random_programs_have_the_real_bill_and_results_after_every_call(prices, both):
    @settings(derandomize=True, max_examples=25, deadline=None, phases=[Phase.generate], database=None,
              verbosity=Verbosity.quiet, suppress_health_check=list(HealthCheck))
    @given(st.lists(random_program(), min_size=8, max_size=8))
    def check(programs):
        for program, run in zip(programs, both(programs, prices)):
            found, _ = differences([run])
            assert not found, "\n".join([*program, "", found[0]])
    check()

# ---- whole estimators: `mlp` has float32 weights, `budget` is tight enough for the last one ----

def low_rank(mlp, budget):
    basis, core, rows = fnp.eye(mlp.width)[:, :4], fnp.eye(4), []
    for w in mlp.weights:
        u, s, vt = fnp.linalg.svd(w.T @ basis @ core, full_matrices=False)
        basis, core = u, fnp.diag(s) @ vt
        rows.append(fnp.linalg.norm(basis @ core, axis=1) * fnp.sqrt(0.5 / fnp.pi))
    return fnp.stack(rows, axis=0)

def eigendecomposition(mlp, budget):
    cov, rows = fnp.eye(mlp.width, dtype=fnp.float32), []
    for w in mlp.weights:
        values, vectors = fnp.linalg.eigh(w.T @ cov @ w)
        kept = fnp.where(values > fnp.percentile(values, 50), values, 0)
        cov = (vectors * kept) @ vectors.T / 2
        rows.append(fnp.sqrt(fnp.abs(fnp.diagonal(cov))) * 0.4)
    return fnp.asarray(fnp.stack(rows), dtype=fnp.float32)

def gather_and_scatter(mlp, budget):
    x, rows = fnp.ones(mlp.width), []
    for w in mlp.weights:
        order = fnp.argsort(-fnp.sum(fnp.abs(w), axis=0))[:8]
        y = fnp.zeros(mlp.width)
        fnp.put_along_axis(y, order, fnp.take(w, order, axis=1).T @ x, 0)
        fnp.put(y, fnp.nonzero(y < 0)[0], 0.0)
        chosen = w[fnp.ix_(order, order)]
        x = y / (1 + fnp.linalg.norm(chosen)) + fnp.bincount(order, minlength=mlp.width) * 0.1
        rows.append(x)
    return fnp.stack(rows)

def einsum_heavy(mlp, budget):
    cov, rows = fnp.eye(mlp.width), []
    for w in mlp.weights:
        cov = fnp.einsum("ji,jk,kl->il", w, cov, w) * 0.5
        fourth = fnp.einsum("ia,ib,ab->i", w, w, cov) + fnp.einsum("ij,ij->i", cov, cov)
        rows.append(fnp.einsum("ii->i", cov) ** 0.5 * 0.6 + fnp.einsum("i,i->", fourth, fourth) * 1e-6)
    return fnp.stack(rows) + fnp.tensordot(mlp.weights[0], cov * mlp.weights[1], axes=2) * 1e-6

def symmetric_arrays(mlp, budget):
    cov, rows = fnp.eye(mlp.width), []
    for w in mlp.weights:
        product = w.T @ cov @ w
        pre = flops.as_symmetric(product + product.T, symmetry=(0, 1)) / 2
        s = fnp.sqrt(fnp.maximum(fnp.diag(pre), 1e-12))
        cov = pre * fnp.outer(s, s) / (1 + fnp.outer(s, s)) + fnp.eye(mlp.width) * 1e-3
        rows.append(fnp.mean(cov, axis=0) + s)
    return fnp.stack(rows)

def budget_aware(mlp, budget):
    rng, kept = fnp.random.default_rng(mlp.seed), fnp.zeros((mlp.depth, mlp.width))
    with flops.namespace("tries"):
        for n in (10, 100, 1000, 10_000):
            try:
                x, rows = rng.standard_normal((n, mlp.width), dtype=fnp.float32), []
                for w in mlp.weights:
                    x = fnp.maximum(x @ w, 0)
                    rows.append(fnp.mean(x, axis=0))
                kept = fnp.stack(rows)
            except flops.BudgetExhaustedError as error:
                return kept + error.flops_remaining / budget
    return kept

ESTIMATORS = [low_rank, eigendecomposition, gather_and_scatter, einsum_heavy, symmetric_arrays, budget_aware]

@pytest.mark.parametrize("prices", BOOKS)
@pytest.mark.parametrize("estimator", [*ESTIMATORS, *wb.BASELINES.values()], ids=lambda f: f.__name__)
def test_a_whole_estimator_has_the_real_bill_and_prediction(estimator, prices, both):
    draw = "(np.random.default_rng({}).standard_normal((16, 16)) * 8 ** -0.5).astype(np.float32)"
    weights = ", ".join(f"fnp.array({draw.format(layer)})" for layer in range(4))
    program = [f"mlp = types.SimpleNamespace(width=16, depth=4, seed=7, weights=[{weights}])",
               "from __future__ import annotations\n" + source_of(estimator),
               f"prediction = {estimator.__name__}(mlp, 10**6)"]
    (run,) = both([program], prices, budget=10**6)
    name, value = run[-1][1][1]
    assert name.endswith(("Array", "Tensor")) and value.shape == (4, 16) and np.isfinite(value).all()
    found, _ = differences([run], exact="propagation" not in estimator.__name__)     # of stats.norm
    assert not found, found[0]

def test_networks_and_errors_are_those_of_the_real_package(real_whestbench, tmp_path):
    code = """import sys, numpy as np
from whestbench.scoring import ContestSpec, make_contest
spec = dict(width=32, depth=4, n_mlps=2, flop_budget=10**9, ground_truth_samples=2**18, seed=3)
data = make_contest(ContestSpec(**spec))
np.savez(sys.argv[1], seeds=[m.seed for m in data.mlps], weights=[np.array(m.weights) for m in data.mlps],
         means=np.array(data.all_layer_targets), variances=data.avg_variances)"""
    real_whestbench(code, tmp_path / "made.npz")
    with np.load(tmp_path / "made.npz") as made:
        theirs = zip(*(made[name] for name in ("seeds", "weights", "means", "variances")))
    for mlp, (seed, weights, means, variance) in zip(wb.sample_suite(2, 32, 4, 3), theirs, strict=True):
        assert mlp.seed == seed
        np.testing.assert_array_equal(np.asarray(mlp.weights), np.asarray(weights), strict=True)
        prediction = np.asarray(wb.mean_propagation(mlp, 10**9))[-1]
        truth = wb.TruthSource(mlp.weights).at(2**18)
        ours, real = ((prediction - m[-1]) ** 2 for m in (truth.mean, means))
        # A mean of n samples errs with a covariance of trace width * variance / n: twice, at four sigma.
        noise = variance / 2**18
        assert abs(ours.mean() - real.mean()) < 8 * math.sqrt(2 * ours.mean() * noise) + 2 * noise
        np.testing.assert_allclose(truth.mean, means, atol=6 * math.sqrt(2 * 2 * variance / 2**18))

NULLABLE = "sampling cpu_brand cpu_count_physical ram_total_bytes ram_available_bytes".split()

def form_of(value, where=None):
    """The form of a document, for `mismatches`; what may be null or several things may be anything."""
    if isinstance(value, dict) and where != "sampling":         # which is null where nothing was billed
        return {key: form_of(item, key) for key, item in value.items()}
    if isinstance(value, list):
        return [form_of(value[0])] if value and not isinstance(value[0], dict) else list
    if value is None or where in NULLABLE:
        return object
    return (float, int) if isinstance(value, float) else type(value)

def test_the_document_is_a_superset_of_the_real_one(real_whestbench, tmp_path, capsys):
    body = "self.calls = getattr(self, 'calls', 0) + 1\nif self.calls == 1: raise KeyError('first')\n" \
           "return fnp.ones((mlp.depth, mlp.width)) * 0.5"
    path = estimator_file(tmp_path, body)
    arguments = ["run", "--estimator", path, "--n-mlps", "2", "--n-samples", "256", "--seed", "0",
                 "--format", "json"]
    theirs = json.loads(real_whestbench(REAL_CLI, *arguments, check=None))
    assert wb.main([*arguments, *SHAPE, "--round", "v2-phase2"]) == 1
    ours = json.loads(capsys.readouterr().out)
    assert mismatches(ours, form_of(theirs)) == []
    for our_entry, their_entry in zip(ours["results"]["per_mlp"], theirs["results"]["per_mlp"], strict=True):
        form = form_of(their_entry) | ({"error": (str, dict)} if "error" in their_entry else {})
        assert mismatches(our_entry, form) == [] and ("error" in our_entry) == ("error" in their_entry)
        assert our_entry["flops_used"] == their_entry["flops_used"] * 48 // 2**14


# ==== Bench: `python test_whestbench.py bench`, how fast the engine is here, and what counting costs

N_THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
CALLS = "x + x; x * 2.0; sqrt(x); maximum(x, x); sum(x); mean(x); w @ x; x[3]; x[2:5]; w[3]".split("; ")

def seconds_of(work, times=1):
    """The mean time of a call."""
    start = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - start) / times

def call_times(numpy, calls, repeats):
    """Microseconds of calls on 256 float32, medians: of NumPy, or a namespace like it."""
    x = numpy.array([1.0] * 256, dtype="float32")       # not ones(), which is known to be symmetric
    w = numpy.array([[1.0] * 256] * 256, dtype="float32")
    names = {"x": x, "w": w} | {name: getattr(numpy, name) for name in ("sqrt", "maximum", "sum", "mean")}
    return {call: 1e6 * statistics.median(seconds_of(work, 200) for _ in range(repeats))
            for call in calls for work in [eval(f"lambda: {call}", names)]}

def ask_real_package(package, code):
    """The `result` of code beside the real package, in a process of its own; None where there is none.

    It is looked for in the folder `package` of WHESTBENCH_ORACLES, else among this Python's packages.
    """
    name, oracles = package.partition("-")[0], os.environ.get("WHESTBENCH_ORACLES")
    if not oracles and not importlib.util.find_spec("opt_einsum"):       # which the real ones need
        return None
    done = python("-c", f"""import json, statistics, sys, time
sys.path.remove("")
import {name}
assert {name}.__path__
{inspect.getsource(seconds_of)}
{inspect.getsource(call_times)}
{code}
print(json.dumps(result))""", cwd=tempfile.gettempdir(),
                  **({"PYTHONPATH": str(Path(oracles) / package)} if oracles else {}))
    return None if done.returncode else json.loads(done.stdout)

def fma_chains(typingctx, n):
    """n times 96 fused multiply-adds of vectors, on registers alone: 12 chains hide the latency."""
    from llvmlite import ir
    from numba.core import cgutils, types
    vector, lanes, _ = wb.vector_type()

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

def fma_peak(threads):
    """A function that measures the chip's float32 FMA rate on all threads in GFLOP/s, in registers alone."""
    from numba import njit
    from numba.extending import intrinsic
    chains, n = intrinsic(fma_chains), 1_000_000
    run_chains = njit(lambda n: chains(n), nogil=True)
    run_chains(1)
    operations = N_THREADS * n * 96 * 2 * wb.vector_type()[1]
    return lambda: operations / 1e9 / seconds_of(lambda: list(threads.map(run_chains, [n] * N_THREADS)))

def numpy_engine(weights, n_samples, threads):
    """The honest NumPy engine: chunks of float32 normals drawn on all cores, BLAS products, column sums."""
    generators = [np.random.default_rng(i) for i in range(N_THREADS)]
    sums = np.zeros(weights.shape[:2])
    for first in range(0, n_samples, 4096):
        x = np.empty((min(4096, n_samples - first), weights.shape[1]), np.float32)
        list(threads.map(lambda rng, part: rng.standard_normal(out=part, dtype=np.float32),
                         generators, np.array_split(x, N_THREADS)))
        for layer, weight in enumerate(weights):
            x = x @ weight
            np.maximum(x, 0, out=x)
            sums[layer] += x.sum(0)

def bench_shape(rules, repeats, threads, peak, n_samples=None):
    """Samples a second of the engine and its rivals at a round's shape, interleaved, medians of `repeats`."""
    width, depth, block = rules.width, rules.depth, wb.samples_per_block(rules.width)
    weights = np.stack([np.asarray(w) for w in wb.build_mlp(width, depth).weights])
    n_blocks = max(1, (n_samples or max(8192, int(1e11 / (2 * depth * width**2)))) // block)
    simulate, n_samples = functools.partial(wb.simulate_block, wb.pack_weights(weights), 1), n_blocks * block
    real = f"""mlp = whestbench.sample_mlp({width}, {depth})
whestbench.sample_layer_statistics(mlp, 2048)
result = seconds_of(lambda: whestbench.sample_layer_statistics(mlp, {n_samples}))"""
    runs = [(n_samples / seconds_of(lambda: deque(threads.map(simulate, range(n_blocks)), 0)),
             n_samples / seconds_of(lambda: numpy_engine(weights, n_samples, threads)),
             n_samples / (ask_real_package("whestbench-0.16.2", real) or math.nan), peak())
            for _ in range(repeats + 1)]
    engine, rival, real_one, fma = np.array(runs[1:]).T         # the first warms up
    gflops = engine * width**2 * (2 * depth - 1) / 1e9
    rates = {"engine": engine, "numpy": rival, "times_numpy": engine / rival, "real": real_one,
             "times_real": engine / real_one, "gflops": gflops, "fma_peak_gflops": fma,
             "of_peak": gflops / fma}
    return {"round": rules.tag, "shape": f"{width}x{depth}"} | {
        name: None if np.isnan(rate).any() else float(np.median(rate)) for name, rate in rates.items()}

def measure(repeats, n_samples=None, progress=lambda text: None):
    """All that the bench knows: a row for each round's shape, and one for each common call."""
    with ThreadPoolExecutor(N_THREADS) as threads:
        peak, shapes = fma_peak(threads), []
        for rules in wb.ROUNDS.values():
            progress(f"the engine at {rules.width}x{rules.depth}")
            shapes.append(bench_shape(rules, repeats, threads, peak, n_samples))
    progress("what counting costs")
    plain = call_times(np, CALLS, repeats + 2)
    with wb.BudgetContext(10**15, quiet=True, prices="0.12"):
        ours = call_times(fnp, CALLS, repeats + 2)
    real = ask_real_package("flopscope-0.12.4", f"""import flopscope as flops, flopscope.numpy as fnp
with flops.BudgetContext(flop_budget=10**15, quiet=True):
    result = call_times(fnp, {CALLS}, {repeats + 2})""") or {}
    rows = []
    for call, us in plain.items():
        added, theirs = ours[call] - us, real[call] - us if real else None
        rows.append({"call": call, "numpy_us": us, "ours_us": ours[call], "real_us": real.get(call),
                     "added_us": added, "times_less_added": theirs / added if real and added > 0 else None})
    return {"engine": shapes, "overhead": rows}

def bench_lines(rows, columns):
    """A table as text: the titles of `columns`, and below them their keys in the rows."""
    yield "".join(f"{title:>10}" if i else f"{title:<14}" for i, title in enumerate(columns))
    for row in rows:
        first, *values = (row[key] for key in columns.values())
        yield f"{first:<14}" + "".join(f"{'-' if v is None else f'{v:,.2f}' if v < 1000 else f'{v:,.0f}':>10}"
                                       for v in values)

def bench(repeats=5, as_json=False):
    """Measure the engine against NumPy, the chip's FMA peak and the real package; and what counting costs.

    Everything is measured side by side in this run, as medians; quote the ratios. Takes a minute or two.
    """
    live = sys.stderr.isatty()
    found = measure(repeats, progress=lambda text: live and print(f"{WIPE}{text}", end="", file=sys.stderr,
                                                                  flush=True))
    if live:
        print(WIPE, end="", file=sys.stderr, flush=True)
    if as_json:
        print(json.dumps(found, indent=2))
        return
    print("Engine", *bench_lines(found["engine"], {
        "shape": "shape", "samples/s": "engine", "NumPy": "numpy", "x NumPy": "times_numpy", "real": "real",
        "x real": "times_real", "GFLOP/s": "gflops", "FMA peak": "fma_peak_gflops", "of peak": "of_peak"}),
        "", "Overhead of a call on 256 float32, in microseconds", *bench_lines(found["overhead"], {
            "": "call", "NumPy": "numpy_us", "ours": "ours_us", "added": "added_us", "real 0.12": "real_us",
            "x less": "times_less_added"}), sep="\n")

def test_bench_measures_every_round_s_shape_and_the_overhead_of_a_call(monkeypatch):
    monkeypatch.setenv("WHESTBENCH_ORACLES", "")
    found, told = measure(1, 512), []
    assert [row["round"] for row in found["engine"]] == list(wb.ROUNDS)
    for row in found["engine"]:
        assert row["times_numpy"] == pytest.approx(row["engine"] / row["numpy"])
        assert row["real"] is row["times_real"] is None
        assert row["of_peak"] == pytest.approx(row["gflops"] / row["fma_peak_gflops"])
        told += bench_lines([row], {"shape": "shape", "samples/s": "engine", "real": "real"})
    for row in found["overhead"]:
        assert row["added_us"] == row["ours_us"] - row["numpy_us"] and row["numpy_us"] > 0
    assert {"x + x", "w @ x", "mean(x)", "x[3]"} <= {row["call"] for row in found["overhead"]}
    assert "256x8" in told[1] and told[1].endswith("-")

if __name__ == "__main__":
    import plac

    @plac.pos("command", "what to do", choices=["bench"])
    @plac.opt("repeats", "how often the engine is measured", type=int)
    @plac.flg("json", "print JSON")
    def main(command, repeats=5, json=False):
        bench(repeats, json)

    plac.call(main)
