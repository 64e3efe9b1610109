"""Mechanisms and score modifiers: the oracle against formulas written out row by row, costs against counts."""

import math
import re
from collections.abc import Iterator
from decimal import Decimal, localcontext
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnbench import costs, formulas, inputs, reference, scope, verify
from attnbench.builtin import (
    numpy_mechanisms,
    numpy_textbook,
    torch_bias,
    torch_eager,
    torch_mechanisms,
    torch_mha,
    torch_sdpa,
)
from attnbench.errors import ProblemError
from attnbench.implementation import Device, Inputs
from attnbench.problem import MECHANISMS, MODIFIERS, Alibi, Problem, RelativeBias
from attnbench.testing import verdict

MODULES = (numpy_mechanisms, numpy_textbook, torch_bias, torch_eager, torch_mechanisms, torch_mha, torch_sdpa)
IMPLEMENTATIONS = {one.name: one for module in MODULES for one in module.attnbench_implementations()}
CPU = Device(kind="cpu")

MECHANISM_TEXTS = (
    *("softmax", "dot", "general", "additive", "additive:hidden=3", "location", "linear"),
    *("local-gaussian:window=3", "multi-head", "sparsemax", "entmax", "entmax:alpha=1.25"),
)
MODIFIER_TEXTS = (
    *("alibi", "bias", "bias:heads=1", "bias:grad=1", "relative-bias:buckets=4:distance=3", "sinks"),
    *("relative-bias:buckets=6:distance=9:past=1", "alibi+bias+relative-bias+sinks+softcap:cap=2"),
    *("rotary", "rotary:base=100+sinks+softcap:cap=3"),
)
GRADIENTS = "direction=forward_backward"


def make(problem: Problem, kind: str = "normal", seed: int = 0) -> Inputs:
    return inputs.make(problem, kind=kind, seed=seed, device="cpu", qkv_format="bhsd")


def everything(problem: Problem) -> inputs.Sample:
    return inputs.sample(problem, work=math.inf, seed=0)


# ---------------------------------------------------------------- the formulas, a row at a time


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def feature(x: np.ndarray) -> np.ndarray:
    """elu + 1"""
    return np.array([y + 1 if y > 0 else math.exp(y) for y in x])


def simplex(s: np.ndarray, power: float) -> np.ndarray:
    """max(s / power - tau, 0)^power with sum 1, tau by bisection."""
    z = (s - s.max()) / power
    low, high = -1.0, 0.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (np.maximum(z - middle, 0) ** power).sum() >= 1 else (low, middle)
    return np.maximum(z - low, 0) ** power


def t5_bucket(behind: int, buckets: int, distance: int, past: bool) -> int:
    """Of a key `behind` positions before the query, as T5's code has it, in float64 and away from its edges."""
    side, start = (buckets, 0) if past else (buckets // 2, 0 if behind >= 0 else buckets // 2)
    n, exact = max(behind, 0) if past else abs(behind), side // 2
    if n < exact:
        return start + n
    steps = math.log(n / exact) / math.log(distance / exact) * (side - exact)
    return start + min(exact + math.floor(steps + 1e-9), side - 1)


def written_out(problem: Problem, made: Inputs) -> np.ndarray:
    """out [B, Hq, Sq, Dv] in float64, every number of every row on its own."""
    (sq, sk), group = problem.uniform, problem.heads_q // problem.heads_kv
    q, k, v = (t.double().numpy() for t in (made.q, made.k, made.v))
    extra = {name: t.double().numpy() for name, t in made.extra.items()}
    multi = problem.mechanism.name == "multi-head"
    if multi:
        q, k, v = (projected(x, extra[f"w_{name}"]) for name, x in zip("qkv", (q, k, v), strict=True))
    out = np.zeros((problem.batch, problem.heads_q, sq, problem.head_dim_v))
    for b, h, i in product(range(problem.batch), range(problem.heads_q), range(sq)):
        seen = [j for j in range(sk) if problem.mask.allowed(i, j, sq, sk)]
        if seen:
            weights = row_of_weights(problem, extra, q[b, h, i], k[b, h // group], h, i, seen)
            out[b, h, i] = [math.fsum(w * v[b, h // group, j, c] for w, j in zip(weights, seen, strict=True))
                            for c in range(problem.head_dim_v)]  # fmt: skip
    return projected(out, extra["w_o"]) if multi else out


def projected(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """[B, H, S, D] with the heads side by side times w."""
    b, h, s, d = x.shape
    found = np.zeros_like(x)
    for member, row in product(range(b), range(s)):
        found[member, :, row] = (np.concatenate(list(x[member, :, row])) @ w).reshape(h, d)
    return found


def row_of_weights(
    problem: Problem,
    extra: dict[str, np.ndarray],
    q: np.ndarray,
    keys: np.ndarray,
    h: int,
    i: int,
    seen: list[int],
) -> np.ndarray:
    """Of the keys `seen` by query i of head h."""
    sk, name = problem.uniform[1], problem.mechanism.name
    kv_head = h // (problem.heads_q // problem.heads_kv)
    if name == "linear":
        shares = np.array([feature(q) @ feature(keys[j]) for j in seen])
        return shares / shares.sum()
    scores = []
    for j in seen:
        match name:
            case "general":
                s = math.fsum(q[a] * extra["w"][h, a, c] * keys[j, c] for a, c in np.ndindex(len(q), len(q)))
            case "location":
                s = float(q @ extra["w"][h, :, j])
            case "additive":
                bent = np.tanh(q @ extra["w_q"][h] + keys[j] @ extra["w_k"][kv_head])
                s = float(bent @ extra["w"][h])
            case "dot":
                s = scored(problem, q, keys[j], i, j)
            case _:
                s = scored(problem, q, keys[j], i, j) * problem.softmax_scale
        scores.append(modified(problem, extra, s, h, i, j))
    s = np.array(scores)
    if name in ("sparsemax", "entmax"):
        return simplex(s, 1 / (getattr(problem.mechanism, "alpha", 2) - 1))
    sink = [extra["sinks"][h]] if problem.modifier("sinks") else []
    top = max([*scores, *sink])
    weights = np.exp(s - top) / math.fsum(math.exp(x - top) for x in [*scores, *sink])
    if name == "local-gaussian":
        centre = sk * sigmoid(float(extra["v_p"][h] @ np.tanh(q @ extra["w_p"][h])))
        sigma = problem.mechanism.window / 2
        weights = weights * [math.exp(-((j - centre) ** 2) / (2 * sigma**2)) for j in seen]
    return weights


def scored(problem: Problem, q: np.ndarray, k: np.ndarray, i: int, j: int) -> float:
    """q k^T of one pair; with rotary by the angle between both, of each pair of coordinates on its own."""
    if (rotary := problem.modifier("rotary")) is None:
        return float(q @ k)
    half, behind = len(q) // 2, i + problem.uniform[1] - problem.uniform[0] - j
    terms = []
    for m in range(half):
        angle = behind * rotary.base ** (-2 * m / len(q))
        (a, b), (c, d) = (q[m], q[m + half]), (k[m], k[m + half])
        terms += [(a * c + b * d) * math.cos(angle), -(b * c - a * d) * math.sin(angle)]
    return math.fsum(terms)


def modified(problem: Problem, extra: dict[str, np.ndarray], s: float, h: int, i: int, j: int) -> float:
    """The score of one pair after its modifiers but for the sinks."""
    sq, sk = problem.uniform
    behind = i + sk - sq - j
    if problem.softcap:
        s = problem.softcap * math.tanh(s / problem.softcap)
    if problem.modifier("alibi"):
        s -= 2.0 ** (-8 * (h + 1) / problem.heads_q) * abs(behind)  # heads_q is a power of two here
    if problem.modifier("bias"):
        s += extra["bias"][h if len(extra["bias"]) > 1 else 0, i, j]
    if relative := problem.modifier("relative-bias"):
        s += extra["relative_bias"][t5_bucket(behind, relative.buckets, relative.distance, relative.past), h]
    return s


# ---------------------------------------------------------------- the oracle


@st.composite
def problems(draw: Any, mechanism: str = "softmax", modifiers: str = "none") -> Problem:
    heads_kv, group = draw(st.sampled_from([(1, 1), (1, 2), (2, 1), (2, 2)]))
    masks = ["full", "causal"]
    if mechanism != "linear":
        masks += ["causal-top-left", "window:left=1:right=1", "dilated:step=2"]
    values = {
        "batch": draw(st.integers(1, 2)),
        "seqlen_q": draw(st.integers(1, 7)),
        "seqlen_kv": draw(st.integers(1, 7)),
        "heads_q": heads_kv * group,
        "heads_kv": heads_kv,
        "head_dim": 2 * draw(st.integers(1, 2)) if "rotary" in modifiers else draw(st.integers(1, 5)),
        "head_dim_v": draw(st.integers(1, 5)),
        "mask": draw(st.sampled_from(masks)),
        "dtype": draw(st.sampled_from(["float32", "bfloat16", "float64"])),
    }
    words = " ".join(f"{key}={value}" for key, value in values.items())
    return Problem.parse(f"{words} mechanism={mechanism} modifiers={modifiers}")


def agrees(problem: Problem, kind: str, seed: int) -> None:
    assert scope.computable(problem) is None
    made, sample = make(problem, kind, seed), everything(problem)
    found = reference.oracle(problem, made, sample)
    right = inputs.pick((torch.from_numpy(written_out(problem, made)),), problem, sample, "bhsd")["out"]
    assert found["out"].shape == right.shape
    size = float(torch.maximum(right.norm(), found["out_size"].norm()))
    assert float((found["out"] - right).norm()) <= 1e-12 * size


@pytest.mark.parametrize("mechanism", MECHANISM_TEXTS)
@settings(deadline=None, max_examples=40)
@given(data=st.data(), seed=st.integers(0, 99), kind=st.sampled_from(inputs.COUNTED))
def test_the_oracle_of_each_mechanism_is_the_formula(mechanism: str, data: Any, seed: int, kind: str) -> None:
    agrees(data.draw(problems(mechanism)), kind, seed)


@pytest.mark.parametrize("modifiers", MODIFIER_TEXTS)
@settings(deadline=None, max_examples=40)
@given(data=st.data(), seed=st.integers(0, 99), kind=st.sampled_from(inputs.COUNTED))
def test_the_oracle_of_each_modifier_is_the_formula(modifiers: str, data: Any, seed: int, kind: str) -> None:
    agrees(data.draw(problems("softmax", modifiers)), kind, seed)


def test_every_mechanism_and_modifier_is_among_them_or_is_said_to_be_missing() -> None:
    assert {text.partition(":")[0] for text in MECHANISM_TEXTS} == MECHANISMS.keys()
    tried = {one.partition(":")[0] for text in MODIFIER_TEXTS for one in text.split("+")}
    assert MODIFIERS.keys() == tried


@pytest.mark.parametrize("mechanism", MECHANISM_TEXTS)
def test_sampled_rows_of_a_mechanism_are_the_same_rows_of_the_whole(mechanism: str) -> None:
    text = "batch=3 seqlen=40 heads_q=4 heads_kv=2 head_dim=8 head_dim_v=6 dtype=float32 mask=causal"
    problem = Problem.parse(f"{text} mechanism={mechanism}")
    made = make(problem)
    part = inputs.Sample(groups=((0, 1), (2, 0)), rows=(0, 7, 39), heads_kv=2, share=0.1)
    whole, some = (reference.oracle(problem, made, s) for s in (everything(problem), part))
    places = [1, 4]  # of these groups among all six
    for name in ("out", "out_size"):
        right = whole[name][places][:, :, [0, 7, 39]]
        assert float((some[name] - right).norm()) <= 1e-12 * float(right.norm())


@pytest.mark.parametrize("dtype", ["float64", "float32", "tfloat32", "bfloat16", "float16"])
@pytest.mark.parametrize("mechanism", MECHANISM_TEXTS)
def test_the_yardstick_of_each_mechanism_errs_like_its_dtype(mechanism: str, dtype: str) -> None:
    """A rounding of each of some ten steps, and of scores up to 8; local-gaussian squares a distance of 50 sigmas."""
    text = f"seqlen=60 heads=2 head_dim=16 dtype={dtype} mask=causal mechanism={mechanism}"
    problem = Problem.parse(text)
    made, sample = make(problem), everything(problem)
    right, yard = (f(problem, made, sample)["out"] for f in (reference.oracle, reference.yardstick))
    unit = verify.FLOORS[problem.dtype] / (16 if dtype == "float64" else 1)
    steps = 1000 if mechanism.startswith("local-gaussian") else 80
    error = float((yard.double() - right).norm() / right.norm())
    assert 0 < error < steps * unit


@pytest.mark.parametrize("size", [4, 500])
def test_a_score_far_below_the_others_has_no_weight_in_a_sparse_mechanism(size: int) -> None:
    for mechanism in ("sparsemax", "entmax", "entmax:alpha=1.05", "entmax:alpha=1.75"):
        problem = Problem.parse(
            f"seqlen_q=1 seqlen_kv={size} heads=1 head_dim=1 dtype=float64 mechanism={mechanism}"
        )
        made = make(problem)
        made.q.fill_(1)
        made.v.copy_(torch.arange(size).view(made.v.shape))
        made.k.fill_(-1e6)
        made.k[..., 2, :] = 3.0
        assert float(reference.oracle(problem, made, everything(problem))["out"]) == 2.0


ALPHAS = (1.001, 1.05, 1.25, 1.5, 1.75, 1.99, 2.0)


def entmax(s: list[float], alpha: float) -> list[float]:
    """The weights of alpha-entmax in 40 digits: the sum is convex in the threshold's depth c below the largest score, and so
    Newton's steps from c = 1 come down on it (Peters et al. 2019, equation 5)."""
    with localcontext(prec=40):
        power, c = Decimal(alpha) - 1, Decimal(1)
        z = [power * (Decimal(x) - Decimal(max(s))) for x in s]
        for _ in range(100):
            t = [c + x for x in z if c + x > 0]
            weights = [x ** (1 / power) for x in t]
            step = (sum(weights) - 1) * power / sum(w / x for w, x in zip(weights, t, strict=True))
            c -= step
            if abs(step) < Decimal("1e-30"):
                break
        return [float(max(c + x, Decimal(0)) ** (1 / power)) for x in z]


@pytest.mark.parametrize("alpha", ALPHAS)
def test_entmax_is_the_root_of_its_equation_for_every_alpha(alpha: float) -> None:
    generator = torch.Generator().manual_seed(0)
    for keys, spread in ((1, 1.0), (2, 3.0), (12, 1.0), (12, 8.0)):
        s = spread * torch.randn(keys, generator=generator, dtype=torch.float64)
        right = torch.tensor(entmax(s.tolist(), alpha), dtype=torch.float64)
        assert float((formulas._exact(s - s.max(), alpha - 1) - right).abs().max()) <= 2e-14
        # power s - tau loses the digits that 1 / power has
        plain = formulas._halved(s - s.max(), alpha - 1)
        assert float((plain - right).abs().max()) <= 2.0**-52 * 8 / (alpha - 1)
        assert float(plain.sum()) == pytest.approx(1, abs=1e-15)


def test_entmax_of_two_is_sparsemax_and_of_one_and_a_half_the_sorted_one() -> None:
    s = 3 * torch.randn(64, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    s[:, 150:] = -torch.inf
    s -= s.amax(-1, keepdim=True)
    for power, sorted_one in ((1.0, formulas._sparsemax), (0.5, formulas._entmax)):
        for found in (formulas._exact(s, power), formulas._halved(s, power)):
            torch.testing.assert_close(found, sorted_one(s), rtol=0, atol=1e-14)
    nearly = formulas._exact(s, 1e-9)  # the limit of alpha 1
    torch.testing.assert_close(nearly, s.softmax(-1), rtol=0, atol=1e-7)


@pytest.mark.parametrize("alpha", [a for a in ALPHAS if a not in (1.001, 1.5)])
def test_implementations_of_entmax_take_any_alpha(alpha: float) -> None:
    ran = 0
    for words in ("dtype=float64 mask=causal", "dtype=float32", "dtype=bfloat16 mask=chunked:size=30"):
        for name in ("numpy-mechanisms", "torch-mechanisms"):
            text = f"seqlen_q=50 seqlen_kv=90 heads_q=4 heads_kv=2 head_dim=16 mechanism=entmax:alpha={alpha} {words}"
            if IMPLEMENTATIONS[name].why_not(Problem.parse(text), CPU) is None:
                assert verdict(IMPLEMENTATIONS[name], Problem.parse(text)) is None, (name, text)
                ran += 1
    assert ran == 5


# ---------------------------------------------------------------- implementations

SHAPES = (
    "batch=2 seqlen=40 heads_q=4 heads_kv=2 head_dim=16 head_dim_v=12",
    "seqlen_q=17 seqlen_kv=70 heads=3 head_dim=8",
    "seqlen_q=70 seqlen_kv=17 heads=2 head_dim=8",
)
COMPUTED = {
    "numpy": ("dot",),
    "torch-naive": ("dot",),
    "torch-chunked": ("dot",),
    "numpy-mechanisms": tuple(m for m in MECHANISM_TEXTS if m not in ("softmax", "multi-head")),
    "torch-mechanisms": tuple(m for m in MECHANISM_TEXTS if m not in ("softmax", "dot", "multi-head")),
    "numpy-multi-head": ("multi-head",),
    "torch-mha": ("multi-head",),
}


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    ("name", "mechanism"), [(name, mechanism) for name, several in COMPUTED.items() for mechanism in several]
)
def test_implementations_of_mechanisms_are_right(name: str, mechanism: str, dtype: str) -> None:
    implementation, tried = IMPLEMENTATIONS[name], 0
    for shape, mask in product(SHAPES, ("full", "causal", "window:left=9:right=3")):
        problem = Problem.parse(f"{shape} dtype={dtype} mask={mask} mechanism={mechanism}")
        if (implementation.why_not(problem, CPU) or scope.computable(problem)) is None:
            tried += 1
            assert verdict(implementation, problem) is None, problem.text
    assert tried or dtype not in implementation.capabilities.dtypes


@pytest.mark.parametrize("direction", ["forward", "backward", "forward_backward"])
def test_dot_has_gradients(direction: str) -> None:
    for name in ("numpy", "torch-naive", "torch-chunked"):
        problem = Problem.parse(f"{SHAPES[1]} dtype=float32 mask=causal mechanism=dot direction={direction}")
        assert verdict(IMPLEMENTATIONS[name], problem) is None, name


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("modifiers", [*MODIFIER_TEXTS, "alibi+softcap:cap=30", "bias+relative-bias"])
def test_implementations_of_modifiers_are_right(modifiers: str, dtype: str) -> None:
    ran = set()
    for name, shape, mask in product(
        ("numpy", "torch-naive", "torch-sdpa-bias", "torch-rotary-sdpa"),
        SHAPES,
        ("full", "causal", "window:left=9:right=3"),
    ):
        for direction in ("forward", "forward_backward")[mask != "full" :]:
            if "rotary" in modifiers:  # with 8 coordinates another key may score what the heavy one does
                shape = shape.replace("head_dim=8", "head_dim=32")
            text = f"{shape} dtype={dtype} mask={mask} modifiers={modifiers} direction={direction}"
            problem = Problem.parse(text)
            if (IMPLEMENTATIONS[name].why_not(problem, CPU) or scope.computable(problem)) is None:
                ran.add(name)
                assert verdict(IMPLEMENTATIONS[name], problem) is None, (name, problem.text)
    both = {"torch-naive"} if dtype.endswith("16") else {"numpy", "torch-naive"}
    names = {one.partition(":")[0] for one in modifiers.split("+")}
    fused = {"torch-sdpa-bias"} if names <= {"alibi", "bias", "relative-bias"} else set()
    assert ran == both | ({"torch-rotary-sdpa"} if names == {"rotary"} else fused)


def test_each_mechanism_has_two_implementations_beside_the_oracle() -> None:
    for name in MECHANISMS.keys() - {"softmax"}:
        able = [n for n, one in IMPLEMENTATIONS.items() if name in one.capabilities.mechanisms]
        assert len(able) >= 2, name


def test_sdpa_with_a_bias_says_no_where_there_is_none() -> None:
    problem = Problem.parse("seqlen=8 heads=1 head_dim=8")
    assert IMPLEMENTATIONS["torch-sdpa-bias"].why_not(problem, CPU) == "nothing to add to the scores"


# ---------------------------------------------------------------- parameters


def scores_of(mechanism: str, made: Inputs) -> torch.Tensor:
    q, k, w = made.q.double(), made.k.double(), {name: t.double() for name, t in made.extra.items()}
    if mechanism == "additive":
        bent = torch.tanh((q @ w["w_q"])[:, :, :, None] + (k @ w["w_k"])[:, :, None])
        return (bent * w["w"][:, None, None]).sum(-1)
    if mechanism == "multi-head":
        q, k = ((x.transpose(1, 2).flatten(2) @ w[f"w_{n}"]) for x, n in ((q, "q"), (k, "k")))
        q, k = (x.unflatten(2, (4, -1)).transpose(1, 2) for x in (q, k))
        return q @ k.mT * q.shape[-1] ** -0.5
    return q @ w["w"] if mechanism == "location" else q @ w["w"] @ k.mT


@pytest.mark.parametrize("mechanism", ["general", "additive", "location", "multi-head"])
@pytest.mark.parametrize("head_dim", [16, 128])
def test_parameters_give_scores_of_order_one(mechanism: str, head_dim: int) -> None:
    made = make(Problem.parse(f"seqlen=64 heads=4 head_dim={head_dim} mechanism={mechanism}"))
    assert 0.7 < float(scores_of(mechanism, made).std()) < 1.6


def test_parameters_are_a_function_of_problem_kind_seed_and_name() -> None:
    problem = Problem.parse("seqlen=6 heads=2 head_dim=4 mechanism=additive")
    made = make(problem)
    other = inputs.make(problem, kind="normal", seed=0, device="cpu", qkv_format="bshd")
    assert list(made.extra) == ["w_q", "w_k", "w"] == list(problem.parameters)
    for name, tensor in made.extra.items():
        assert torch.equal(tensor, other.extra[name])
        assert tensor.shape == problem.parameters[name].shape
        assert tensor.dtype == torch.float32
        for changed in (make(problem, "peaked"), make(problem, seed=1)):
            assert not torch.equal(tensor, changed.extra[name])
    assert not torch.equal(made.extra["w_q"], made.extra["w_k"])
    bare = make(Problem.parse("seqlen=6 heads=2 head_dim=4"))
    assert torch.equal(bare.q, made.q)  # q, k and v are what they are without


def test_a_matrix_of_large_inputs_is_a_multiple_of_the_identity() -> None:
    made = make(Problem.parse("seqlen=6 heads=2 head_dim=4 mechanism=general"), "large")
    assert torch.equal(made.extra["w"], torch.eye(4).expand(2, 4, 4) / 2)


@pytest.mark.parametrize("name", ["torch-naive", "torch-sdpa-bias", "numpy"])
def test_parameters_written_later_are_seen(name: str) -> None:
    problem = Problem.parse("seqlen=20 heads=2 head_dim=8 mask=causal modifiers=bias+relative-bias")
    made = make(problem)
    step = IMPLEMENTATIONS[name].prepare(problem, made)
    before = step.read(step.step()).clone()
    for tensor in made.extra.values():
        tensor.neg_()
    assert not torch.allclose(step.read(step.step()), before)


def test_a_parameter_that_a_call_changes_and_a_view_of_one_are_found() -> None:
    problem = Problem.parse("seqlen=8 heads=2 head_dim=8 modifiers=bias")
    made = make(problem)
    before = inputs.checksum(made)
    made.extra["bias"][0, 0, 0] += 1
    assert inputs.checksum(made) != before
    view = made.extra["bias"].view(1, 2, 8, 8)
    assert verify.inspect(view, problem, made, "cpu", "bhsd") == "the output is a view of an input"


@pytest.mark.parametrize("past", [0, 1])
@pytest.mark.parametrize(("buckets", "distance"), [(32, 128), (16, 64), (4, 5), (12, 1000)])
def test_buckets_are_those_of_t5(buckets: int, distance: int, past: int) -> None:
    relative = RelativeBias(buckets=buckets, distance=distance, past=past)
    ahead = range(-3 * distance, 3 * distance)
    right = [t5_bucket(-a, buckets, distance, bool(past)) for a in ahead]
    assert relative.bucket(np.array(ahead)).tolist() == right
    assert relative.bucket(torch.tensor(ahead)).tolist() == right
    assert set(right) == set(range(buckets)) - ({buckets // 2} if not past else set())


def test_slopes_are_those_of_the_paper() -> None:
    assert Alibi.slopes(8) == tuple(2.0**-n for n in range(1, 9))
    assert Alibi.slopes(16)[:2] == pytest.approx((2**-0.5, 0.5))
    assert Alibi.slopes(12) == pytest.approx((*Alibi.slopes(8), *Alibi.slopes(16)[:8:2]))
    assert Alibi.slopes(1) == (2.0**-8,)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("mechanism=dot scale=0.5", "the dot mechanism takes no scale, got 0.5"),
        ("modifiers=relative-bias:buckets=7", "buckets of relative-bias must be even and at least 4, got 7"),
        ("modifiers=relative-bias:distance=8", "distance of relative-bias must be above 8, got 8"),
    ],
)
def test_what_cannot_be_is_refused(words: str, message: str) -> None:
    with pytest.raises(ProblemError) as error:
        Problem.parse(f"seqlen=8 heads=1 head_dim=8 {words}")
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("modifiers=rotary direction=backward", None),
        ("modifiers=bias direction=backward", None),
        ("modifiers=relative-bias direction=forward_backward", None),
        ("mechanism=dot modifiers=sinks", None),
        ("mechanism=linear modifiers=sinks", "no reference for sinks with the linear mechanism yet"),
        ("mechanism=linear mask=chunked:size=4",
         "no reference for the linear mechanism with the chunked:size=4 mask yet: only full and causal"),
        ("mechanism=entmax:alpha=1.25 direction=backward", None),
        ("mechanism=entmax:alpha=1.75", None),
        ("mechanism=entmax:alpha=1", "no reference for entmax with alpha=1, which is softmax"),
        ("mechanism=entmax:alpha=1.75 direction=backward", "no reference for the gradients of entmax with alpha=1.75 yet: "
         "above 1.5 they rise without bound at the edge of the support"),
        ("mechanism=sparsemax direction=backward", None),
        ("mechanism=sparsemax direction=inference", None),
    ],
)  # fmt: skip
def test_what_is_not_computed_yet_is_said(words: str, reason: str | None) -> None:
    assert scope.computable(Problem.parse(f"seqlen=8 heads=1 head_dim=8 {words}")) == reason


# ---------------------------------------------------------------- costs


def counted(problem: Problem) -> int:
    """Multiplications and additions of the formula, counted one by one for each head, query and key."""
    (sq, sk), d, dv = problem.uniform, problem.head_dim, problem.head_dim_v
    name, total = problem.mechanism.name, 0
    seen = [[bool(problem.mask.allowed(i, j, sq, sk)) for j in range(sk)] for i in range(sq)]
    hidden = problem.mechanism.width(problem) if name == "additive" else 0
    score = {"additive": 4 * hidden}.get(name, 2 * d)
    if name == "linear":
        for _ in range(problem.batch * problem.heads_kv * sk):
            total += 2 * d * dv  # each key's share of the state
        for _, row in product(range(problem.batch * problem.heads_q), seen):
            total += (2 * d * dv + 2 * d) * any(row)
        return total
    for _, row in product(range(problem.batch * problem.heads_q), seen):
        total += sum(row) * (score + 2 * dv)
        total += {"general": 2 * d * d, "local-gaussian": 2 * d * d + 2 * d, "additive": 2 * d * hidden}.get(
            name, 0
        )
    for _ in range(problem.batch * problem.heads_kv * sk):
        total += {"additive": 2 * d * hidden}.get(name, 0)
    if name == "multi-head":
        for length, width in ((sq, problem.heads_q * d), (sq, problem.heads_q * dv)):
            total += problem.batch * length * 2 * width * width
        for length, width in ((sk, problem.heads_kv * d), (sk, problem.heads_kv * dv)):
            total += problem.batch * length * 2 * width * width
    return total


@pytest.mark.parametrize("mechanism", MECHANISM_TEXTS)
@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_flops_of_each_mechanism_are_counted(mechanism: str, data: Any) -> None:
    problem = data.draw(problems(mechanism))
    assert costs.flops(problem) == counted(problem)
    assert (costs.least_flops(problem) is None) == (mechanism not in ("softmax", "dot"))


@pytest.mark.parametrize("mechanism", MECHANISM_TEXTS)
@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_least_bytes_of_each_mechanism_are_those_of_its_tensors(mechanism: str, data: Any) -> None:
    problem = data.draw(problems(mechanism))
    made = make(problem)
    read = [t for t in made.tensors if mechanism != "location" or t is not made.k]
    written = problem.batch * problem.heads_q * problem.uniform[0] * problem.head_dim_v
    size = made.q.element_size()
    assert costs.least_bytes(problem) == size * (sum(t.numel() for t in read) + written)


@pytest.mark.parametrize("heads", ["", ":heads=1"])
def test_of_a_bias_only_what_the_mask_leaves_is_read(heads: str) -> None:
    bare = Problem.parse("batch=3 seqlen=8 heads=4 head_dim=8 dtype=bfloat16 mask=causal")
    biased = Problem.parse(f"{bare.text} modifiers=bias{heads}")
    more = 2 * 36 * (1 if heads else 4)
    assert costs.least_bytes(biased) - costs.least_bytes(bare) == more
    assert costs.touched_bytes(biased) - costs.touched_bytes(bare) == more
    assert costs.flops(biased) == costs.flops(bare)


# ---------------------------------------------------------------- what docs/problems.md says

PAGE = (Path(__file__).parents[1] / "docs/problems.md").read_text()


def rows(heading: str, last: str) -> dict[str, list[str]]:
    """The cells of the table with these first and last headings, by the name in the first."""
    (table,) = re.findall(
        rf"^\| {heading} \|[^\n]*{last}[^\n]* \|\n\|[-|]+\|\n((?:\|.*\n)+)", PAGE, re.MULTILINE
    )
    cells = ([cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines())
    return {first.strip("`"): rest for first, *rest in cells}


def letters(problem: Problem) -> dict[str, int]:
    (sq, sk), mechanism = problem.uniform, problem.mechanism
    pairs = costs.pairs(problem.mask, sq, sk)
    assert pairs is not None
    found = {"Sq": sq, "Sk": sk, "Hq": problem.heads_q, "Hk": problem.heads_kv, "pairs": pairs}
    found |= {"D": problem.head_dim, "Dv": problem.head_dim_v}
    relative = problem.modifier("relative-bias")
    found["buckets"] = relative.buckets if relative else 0
    return {**found, "M": mechanism.width(problem) if mechanism.name == "additive" else 0}


def told(problem: Problem, cell: str) -> dict[str, tuple[int, ...]]:
    """`w_q` [Hq D, M] -> the shapes that these letters mean."""
    names = letters(problem)

    def size(text: str) -> int:
        first = text.partition(" or ")[0].split()
        return math.prod(names[letter] for letter in first)

    shapes = re.findall(r"`(\w+)` \[([^\]]+)\]", cell)
    return {name: tuple(size(dim) for dim in dims.split(", ")) for name, dims in shapes}


def examples() -> Iterator[tuple[str, Problem]]:
    shape = "seqlen_q=5 seqlen_kv=7 heads_q=6 heads_kv=2 head_dim=4 head_dim_v=3 mask=causal"
    for axis, texts in (("mechanism", MECHANISM_TEXTS), ("modifiers", MODIFIER_TEXTS)):
        for text in texts:
            if "+" not in text:
                yield text.partition(":")[0], Problem.parse(f"{shape} {axis}={text}")


@pytest.mark.parametrize(("name", "problem"), [*examples()])
def test_the_page_has_the_parameters_of_each(name: str, problem: Problem) -> None:
    page = rows("modifier", "extra") | rows("mechanism", "extra")
    shapes = {name: parameter.shape for name, parameter in problem.parameters.items()}
    if name != "bias" or shapes["bias"][0] > 1:
        assert told(problem, page[name][-1]) == shapes


@pytest.mark.parametrize(("name", "problem"), [e for e in examples() if e[0] in MECHANISMS])
def test_the_page_has_the_costs_of_each(name: str, problem: Problem) -> None:
    (formula,) = rows("mechanism", "flops")[name]
    assert eval(formula.strip("`"), {}, letters(problem)) == costs.flops(problem)


def test_the_page_names_all_and_no_other() -> None:
    assert list(rows("modifier", "extra")) == [*MODIFIERS]
    for last in ("extra", "flops"):
        assert list(rows("mechanism", last)) == [*MECHANISMS]
