"""Gradients of parameters: the oracle against central differences and autograd, implementations against the oracle."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from decimal import Decimal, localcontext
from itertools import product

import pytest
import torch
from drawn_masks import EXAMPLES, PRODUCTS, drawn
from test_formulas import CPU, IMPLEMENTATIONS, MECHANISM_TEXTS, MODIFIER_TEXTS, everything, make, t5_bucket
from test_reference import MASK_SHAPES
from torch import Tensor

from attnbench import costs, inputs, reference, rotations, scope, verify
from attnbench.errors import ProblemError
from attnbench.implementation import Inputs
from attnbench.problem import Direction, Problem
from attnbench.testing import problem as small
from attnbench.testing import verdict

LEARNED = (
    *("bias:grad=1", "bias:grad=1:heads=1", "relative-bias:buckets=4:distance=3", "sinks"),
    "alibi+bias:grad=1+relative-bias:buckets=6:distance=9:past=1+sinks+softcap:cap=2",
)
SHAPES = (
    "batch=2 seqlen_q=5 seqlen_kv=7 heads_q=4 heads_kv=2 head_dim=4 head_dim_v=3 mask=causal",
    "seqlen_q=7 seqlen_kv=5 heads=2 head_dim=3 mask=causal",  # rows that see no key
    "batch=2 seqlen=6 heads_q=2 heads_kv=1 head_dim=4 mask=full",
)
BOTH = "direction=forward_backward"


def loss(problem: Problem, made: Inputs) -> float:
    """Sum of dout times the output, which a formula written out row by row confirms (test_formulas)."""
    assert made.dout is not None
    sample = everything(problem)
    out = reference.oracle(replace(problem, direction=Direction.FORWARD), replace(made, dout=None), sample)[
        "out"
    ]
    return float((out * sample.queries(made.dout)).sum())


def changed(made: Inputs, name: str, tensor: Tensor) -> Inputs:
    if name in made.extra:
        return replace(made, extra={**made.extra, name: tensor})
    return replace(made, **{name: tensor})


def slope(problem: Problem, made: Inputs, name: str, direction: Tensor, h: float) -> float:
    """Of the loss along `direction`: the central difference of fourth order, off by h^4 / 30 times its fifth derivative."""
    start = made.extra[name] if name in made.extra else getattr(made, name)
    at = {n: loss(problem, changed(made, name, start + n * h * direction)) for n in (-2, -1, 1, 2)}
    return (8 * (at[1] - at[-1]) - (at[2] - at[-2])) / (12 * h)


def agree_with_differences(problem: Problem, kind: str, h: float, most: float) -> None:
    made, sample = make(problem, kind), everything(problem)
    found = reference.oracle(problem, made, sample)
    generator = torch.Generator().manual_seed(0)
    for name in ("q", "k", "v", *problem.learned):
        start = made.extra[name] if name in made.extra else getattr(made, name)
        right = found[f"d{name}"]
        for _ in range(4):
            direction = torch.randn(start.shape, generator=generator, dtype=torch.float64)
            direction /= direction.norm()
            picked = {"q": sample.queries, "k": sample.keys, "v": sample.keys}.get(name)
            along = picked(direction) if picked else sample.parameter(name, direction)
            got = float((right * along).sum())
            scale = max(float(right.norm()), 1.0)
            assert abs(got - slope(problem, made, name, direction, h)) <= most * scale, name


@pytest.mark.parametrize("kind", inputs.COUNTED)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("modifiers", LEARNED)
def test_the_oracles_gradients_of_modifiers_are_central_differences(
    modifiers: str, shape: str, kind: str
) -> None:
    """Scores up to some 12: h^4 / 30 times 12^5 is 1e-8 at h = 1e-3; peaked inputs are that, normal ones far less."""
    problem = Problem.parse(f"{shape} dtype=float64 modifiers={modifiers} {BOTH}")
    agree_with_differences(problem, kind, 5e-4, 1e-8)


def textbook(problem: Problem, made: Inputs) -> dict[str, Tensor]:
    """The formula with every score in memory, in float64, and torch's own gradients where any are asked for."""
    (sq, sk), group, heads = problem.uniform, problem.heads_q // problem.heads_kv, problem.heads_q
    leaves = {name: getattr(made, name).double().requires_grad_() for name in "qkv"}
    leaves |= {name: made.extra[name].double().requires_grad_() for name in problem.learned}
    extra = {name: leaves.get(name, tensor.double()) for name, tensor in made.extra.items()}
    behind = torch.arange(sq)[:, None] + sk - sq - torch.arange(sk)
    s = (
        products(problem, leaves["q"], leaves["k"].repeat_interleave(group, 1), behind)
        * problem.softmax_scale
    )
    if problem.softcap:
        s = problem.softcap * torch.tanh(s / problem.softcap)
    if problem.modifier("alibi"):  # heads_q is a power of two here
        s = s - 2.0 ** (-8 * torch.arange(1, heads + 1).double() / heads)[:, None, None] * behind.abs()
    if "bias" in extra:
        s = s + extra["bias"]
    if (relative := problem.modifier("relative-bias")) is not None:
        sizes = relative.buckets, relative.distance, relative.past
        buckets = torch.tensor([[t5_bucket(n, *sizes) for n in row] for row in behind.tolist()])
        s = s + extra["relative_bias"].mT[:, buckets]
    mask = drawn(problem)[:, None]  # [B, 1, Sq, Sk]
    some = mask.any(-1, keepdim=True)
    s = s.masked_fill(~mask & some, -math.inf)
    if "sinks" in extra:
        s = torch.cat([s, extra["sinks"][:, None, None].expand(*s.shape[:-1], 1)], -1)
    out = s.softmax(-1)[..., :sk] * some @ leaves["v"].repeat_interleave(group, 1)
    found = {"out": out.detach()}
    if made.dout is not None:
        grads = torch.autograd.grad(out, [*leaves.values()], made.dout.double())
        found |= dict(zip((f"d{name}" for name in leaves), grads, strict=True))
    return found


def products(problem: Problem, q: Tensor, k: Tensor, behind: Tensor) -> Tensor:
    """q k^T [B, H, Sq, Sk]; with rotary, pairs of coordinates are complex numbers between which an angle lies."""
    if (rotary := problem.modifier("rotary")) is None:
        return q @ k.mT
    q, k = (torch.complex(*x.chunk(2, -1)) for x in (q, k))
    half = q.shape[-1]
    angles = behind[..., None] * rotary.base ** (-torch.arange(half).double() / half)  # [Sq, Sk, D/2]
    turns = torch.polar(torch.ones_like(angles), angles)
    return torch.einsum("bhim,bhjm,ijm->bhij", q, k.conj(), turns).real


DIRECTIONS = ("forward", "backward", "forward_backward")


@pytest.mark.parametrize("modifiers", MODIFIER_TEXTS)
@pytest.mark.parametrize("mask", [*EXAMPLES.values(), *PRODUCTS])
def test_the_oracle_agrees_with_brute_force_for_every_mask_modifier_and_direction(
    mask: str, modifiers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "_BLOCK", 100)  # blocks of a few rows
    turn = len(mask + modifiers)  # so that each direction meets each shape
    for at, direction in enumerate(DIRECTIONS, turn):
        shape = MASK_SHAPES[at % len(MASK_SHAPES)]
        text = f"{shape} dtype=float64 mask={mask} modifiers={modifiers} direction={direction}"
        agree_with_textbook(Problem.parse(text), "normal")


def agree_with_textbook(problem: Problem, kind: str) -> None:
    made, sample = make(problem, kind), everything(problem)
    found, right = reference.oracle(problem, made, sample), textbook(problem, made)
    names = inputs.outputs(problem)
    for name, tensor in inputs.pick(tuple(right[n] for n in names), problem, sample, "bhsd").items():
        assert found[name].shape == tensor.shape
        size = max(float(found[f"{name}_size"].norm()), 1e-30)
        assert float((found[name] - tensor).norm()) <= 1e-12 * size, name


@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("modifiers", LEARNED)
@pytest.mark.parametrize("block", [1, 2**20])
def test_the_oracles_gradients_of_modifiers_are_those_of_autograd(
    modifiers: str, shape: str, kind: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "_BLOCK", block)
    problem = Problem.parse(f"{shape} dtype=float32 modifiers={modifiers} {BOTH}")
    assert inputs.outputs(problem) == ("out", "dq", "dk", "dv", *(f"d{name}" for name in problem.learned))
    agree_with_textbook(problem, kind)


@pytest.mark.parametrize("modifiers", LEARNED)
def test_of_a_sample_the_gradients_of_parameters_are_sums_over_its_rows(modifiers: str) -> None:
    text = "batch=3 seqlen=40 heads_q=4 heads_kv=2 head_dim=8 dtype=float32 mask=causal"
    problem = Problem.parse(f"{text} modifiers={modifiers} {BOTH}")
    made = make(problem)
    part = inputs.Sample(groups=((0, 1), (2, 1)), rows=(0, 7, 39), heads_kv=2, share=0.1)
    inputs.mask_dout(made, problem, part, "bhsd")
    found, right = reference.oracle(problem, made, part), textbook(problem, made)
    picked = inputs.pick(tuple(right[n] for n in inputs.outputs(problem)), problem, part, "bhsd")
    for name in problem.learned:
        size = float(found[f"d{name}_size"].norm())
        assert float((found[f"d{name}"] - picked[f"d{name}"]).norm()) <= 1e-12 * size
    if "bias" in problem.learned:
        planes = 1 if "heads=1" in modifiers else 2
        assert picked["dbias"].shape == (planes, 3, 40)


def test_a_plane_of_a_bias_that_is_asked_for_counts_in_the_memory_of_a_sample() -> None:
    text = "seqlen=8192 heads=64 head_dim=64 dtype=bfloat16 mask=full modifiers=bias"
    shares = [
        inputs.sample(Problem.parse(f"{text}{grad} {BOTH}"), work=1e12, seed=0) for grad in ("", ":grad=1")
    ]
    held = [2 * 8 * len(s.groups) * len(s.rows) * 8192 for s in shares]
    assert held[1] <= inputs.MEMORY_BYTES < held[0]


SIZES = (
    "batch=2 seqlen=40 heads_q=4 heads_kv=2 head_dim=16 head_dim_v=12",
    "seqlen_q=17 seqlen_kv=70 heads=3 head_dim=8",
    "seqlen_q=70 seqlen_kv=17 heads=2 head_dim=8",
)
MASKS = ("mask=full", "mask=causal")


def right_ones(names: Sequence[str], rest: str) -> set[str]:
    """Those of `names` that compute gradients of such problems; all that they compute is right."""
    ran = set()
    for name, size, mask, direction in product(names, SIZES, MASKS, DIRECTIONS[1:]):
        problem = Problem.parse(f"{size} {mask} {rest} direction={direction}")
        if (IMPLEMENTATIONS[name].why_not(problem, CPU) or scope.computable(problem)) is None:
            ran.add(name)
            assert verdict(IMPLEMENTATIONS[name], problem) is None, (name, problem.text)
    return ran


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("modifiers", LEARNED)
def test_implementations_give_the_gradients_of_what_is_learned(modifiers: str, dtype: str) -> None:
    ran = right_ones(("numpy", "torch-naive", "torch-sdpa-bias"), f"dtype={dtype} modifiers={modifiers}")
    both = {"torch-naive"} if dtype.endswith("16") else {"numpy", "torch-naive"}
    assert ran == both | (set() if "sinks" in modifiers else {"torch-sdpa-bias"})


Edit = Callable[[Tensor], Tensor]
DEFECTS: dict[str, tuple[str, str, Edit]] = {
    "with the wrong sign": ("sinks", "dsinks", lambda t: -t),
    "without its first head": ("sinks", "dsinks", lambda t: t * (torch.arange(len(t)) > 0)),
    "5 % too large": ("bias:grad=1", "dbias", lambda t: t * 1.05),
    "of the mean over the batch": ("bias:grad=1", "dbias", lambda t: t / 2),
    "with heads swapped": ("bias:grad=1", "dbias", lambda t: t.flip(0)),
    "one key late": ("bias:grad=1", "dbias", lambda t: t.roll(1, -1)),
    "of one head for all": ("bias:grad=1:heads=1", "dbias", lambda t: t / 2),
    "one bucket late": ("relative-bias", "drelative_bias", lambda t: t.roll(1, 0)),
    "scaled like q k^T": ("relative-bias", "drelative_bias", lambda t: t * 8),
}


def judged(problem: Problem) -> tuple[Inputs, inputs.Sample, verify.Standard]:
    """Its inputs, all of them, and the standard of its answers."""
    made, sample = make(problem), everything(problem)
    oracle, yard = (f(problem, made, sample) for f in (reference.oracle, reference.yardstick))
    return made, sample, verify.Standard(problem, oracle, yard, 1.0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("defect", DEFECTS)
def test_a_wrong_gradient_of_a_parameter_is_wrong(defect: str, dtype: str) -> None:
    modifiers, name, edit = DEFECTS[defect]
    text = f"batch=2 seqlen=96 heads=2 head_dim=64 dtype={dtype} mask=causal modifiers={modifiers} {BOTH}"
    problem = Problem.parse(text)
    made, sample, standard = judged(problem)
    prepared = IMPLEMENTATIONS["torch-naive"].prepare(problem, made)
    outputs = dict(zip(inputs.outputs(problem), prepared.read(prepared.step()), strict=True))
    right = inputs.pick(tuple(outputs.values()), problem, sample, "bhsd")
    assert standard.compare(right)[1] is None
    outputs[name] = edit(outputs[name])
    wrong = inputs.pick(tuple(outputs.values()), problem, sample, "bhsd")
    accuracy, reason = standard.compare(wrong)
    assert reason is not None
    assert reason.startswith(f"{name}: ")
    assert accuracy.row > 0


def test_what_is_wrong_with_a_parameters_gradient_is_told_by_its_axes() -> None:
    problem = Problem.parse(f"{SHAPES[0]} dtype=float32 modifiers=bias:grad=1+sinks {BOTH}")
    made, _, standard = judged(problem)
    off = standard.oracle["dbias"].clone()
    off[3, 2] += 1
    assert str(standard.compare({"dbias": off})[1]).endswith("worst at bias[3, 2]")
    assert str(standard.compare({"dsinks": -standard.oracle["dsinks"]})[1]).endswith("worst at sinks[0]")
    given = (made.q, made.q, made.k, made.v)
    assert verify.inspect(given, problem, made, "cpu", "bhsd") == (
        "4 outputs, expected 6: out, dq, dk, dv, dbias, dsinks"
    )


def test_a_bias_whose_gradient_nobody_wants_has_none() -> None:
    problem = Problem.parse(f"{SHAPES[0]} modifiers=bias {BOTH}")
    assert inputs.outputs(problem) == ("out", "dq", "dk", "dv")
    assert problem.learned == ()


def test_batch_invariance_is_asked_of_tensors_with_members() -> None:
    problem = Problem.parse(f"batch=2 seqlen=9 heads=2 head_dim=8 modifiers=sinks {BOTH}")
    assert verdict(IMPLEMENTATIONS["torch-naive"], problem, batch_invariance=True) in (
        None,
        "the first member of the batch has other bits when it is computed alone (normal inputs)",
    )


@pytest.mark.parametrize(("modifiers", "more"), [("sinks", 4), ("bias:grad=1", 4 * 96 * 96), ("bias", 0)])
def test_gradients_of_what_is_learned_are_written(modifiers: str, more: int) -> None:
    backward = small(modifiers=modifiers, direction="backward")
    read = costs.least_bytes(backward) - costs.least_bytes(small(direction="backward"))
    forward = costs.least_bytes(small(modifiers=modifiers)) - costs.least_bytes(small())
    assert read - forward == more * 4


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("cap", [5, 20])
def test_a_softcap_whose_slope_is_lost_to_rounding_is_no_false_alarm(cap: int, seed: int) -> None:
    """Near 1, 1 - tanh^2 keeps few digits: of the yardstick and of implementations, while the oracle has them."""
    for shape in (
        "seqlen=128 heads=2 head_dim=64",
        "seqlen_q=64 seqlen_kv=300 heads_q=4 heads_kv=2 head_dim=32",
    ):
        problem = Problem.parse(f"{shape} dtype=float64 mask=causal modifiers=softcap:cap={cap} {BOTH}")
        for name in ("numpy", "torch-naive", "torch-chunked"):
            assert verdict(IMPLEMENTATIONS[name], problem, seed=seed) is None, (name, problem.text)


# ---------------------------------------------------------------- rotary


@pytest.mark.parametrize("kind", inputs.COUNTED)
@pytest.mark.parametrize("modifiers", ["rotary", "rotary:base=50+sinks+softcap:cap=3"])
def test_gradients_through_rotary_are_central_differences(modifiers: str, kind: str) -> None:
    for shape in SHAPES:
        words = shape.replace("head_dim=3 ", "head_dim=6 ")
        problem = Problem.parse(f"{words} dtype=float64 modifiers={modifiers} {BOTH}")
        agree_with_differences(problem, kind, 5e-4, 1e-8)


def test_the_angles_of_the_oracle_are_exact() -> None:
    problem = Problem.parse("seqlen=8 heads=1 head_dim=64 modifiers=rotary")
    positions = torch.tensor([-3, 0, 1, 1000, 32767, 2**20 + 1])
    found = rotations.exact(problem, positions)
    with localcontext(prec=60):
        pi = Decimal("3.14159265358979323846264338327950288419716939937510582097494")
        for row, p in enumerate(positions.tolist()):
            for m in range(32):
                angle = float(p * Decimal(10000) ** (Decimal(-2 * m) / 64) % (2 * pi))
                assert abs(float(found[0][row, m]) - math.cos(angle)) < 2e-15
                assert abs(float(found[1][row, m]) - math.sin(angle)) < 2e-15
    plain = rotations.plain(problem, positions, torch.float32)
    assert 1e-4 < float((plain[0].double() - found[0]).abs().max()) < 2**20 * 2**-23


def test_a_query_that_is_turned_points_at_the_keys_that_it_did_without() -> None:
    text = "seqlen_q=40 seqlen_kv=100 heads=2 head_dim=16 dtype=float32 mask=causal"
    bare, turned = Problem.parse(text), Problem.parse(f"{text} modifiers=rotary")
    for kind in ("peaked", "large"):
        before, after = (make(problem, kind) for problem in (bare, turned))
        for name, first in (("q", 60), ("k", 0)):
            x = getattr(after, name).double()
            positions = torch.arange(first, first + x.shape[2])
            again = rotations.turned(x, rotations.exact(turned, positions))
            right = getattr(before, name)
            assert float((again - right).norm() / right.norm()) < 1e-6
    assert torch.equal(make(bare).q, make(turned).q)


@pytest.mark.parametrize("length", [256, 8192])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_implementations_of_rotary_are_right_at_far_positions(dtype: str, length: int) -> None:
    text = f"seqlen_q=8 seqlen_kv={length} heads_q=2 heads_kv=1 head_dim=64 dtype={dtype} mask=causal"
    for name in ("numpy", "torch-naive", "torch-rotary-sdpa"):
        problem = Problem.parse(f"{text} modifiers=rotary {BOTH}")
        if IMPLEMENTATIONS[name].why_not(problem, CPU) is None:
            assert verdict(IMPLEMENTATIONS[name], problem) is None, name


def test_angles_in_float32_are_right_in_float32() -> None:
    """As many a library has them; at 32,768 keys they are off by 1e-3."""
    text = "seqlen_q=32 seqlen_kv=32768 heads=1 head_dim=64 dtype=float32 mask=causal modifiers=rotary"
    problem = Problem.parse(text)
    made, sample = make(problem), everything(problem)
    oracle, yard = (f(problem, made, sample) for f in (reference.oracle, reference.yardstick))
    inverse = 1.0 / 10000.0 ** (torch.arange(0, 64, 2).float() / 64)
    turns = [(torch.arange(32768).float()[:, None] * inverse)[start:] for start in (32736, 0)]
    q, k = (rotations.turned(x, (a.cos(), a.sin())) for x, a in zip((made.q, made.k), turns, strict=True))
    s = (q @ k.mT * 0.125).masked_fill(torch.ones(32, 32768).triu(32737).bool(), -math.inf)
    found = inputs.pick((s.softmax(-1) @ made.v,), problem, sample, "bhsd")
    assert verify.Standard(problem, oracle, yard, 1.0).compare(found)[1] is None


def test_rotary_needs_pairs() -> None:
    with pytest.raises(ProblemError, match="head_dim must be even, got 7"):
        Problem.parse("seqlen=8 heads=1 head_dim=7 modifiers=rotary")


# ---------------------------------------------------------------- mechanisms

MECHANISMS = tuple(text for text in MECHANISM_TEXTS if text not in ("softmax", "dot"))
LARGER = ("local-gaussian", "additive")
"""Whose sizes are those of the softmax before the Gaussian, and of the terms of 1 - tanh^2."""
KINKED = ("sparsemax", "entmax", "entmax:alpha=1.25", "linear")
"""Whose weights, or slopes of them, have corners: differences are taken over less, lest they cross one."""


@pytest.mark.parametrize("kind", inputs.COUNTED)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_the_oracles_gradients_of_mechanisms_are_central_differences(
    mechanism: str, shape: str, kind: str
) -> None:
    """Over 1e-5, the loss of order 10 is rounded to 1e-15 / 1e-5 = 1e-10 of a slope."""
    problem = Problem.parse(f"{shape} dtype=float64 mechanism={mechanism} {BOTH}")
    agree_with_differences(problem, kind, *((1e-5, 1e-8) if mechanism in KINKED else (5e-4, 1e-8)))


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_of_a_sample_the_gradients_of_a_mechanism_are_sums_over_its_rows(mechanism: str) -> None:
    text = "batch=3 seqlen=40 heads_q=4 heads_kv=2 head_dim=8 head_dim_v=6 dtype=float32 mask=causal"
    problem = Problem.parse(f"{text} mechanism={mechanism} {BOTH}")
    made = make(problem)
    part = inputs.Sample(groups=((0, 1), (2, 0)), rows=(0, 7, 39), heads_kv=2, share=0.1)
    inputs.mask_dout(made, problem, part, "bhsd")
    whole, some = (reference.oracle(problem, made, s) for s in (everything(problem), part))
    places = [1, 4]  # of these groups among all six
    for name in ("dk", "dv", *(f"d{name}" for name in problem.learned)):
        right = whole[name][places] if name in ("dk", "dv") else whole[name]
        assert float((some[name] - right).norm()) <= 1e-12 * float(whole[f"{name}_size"].norm()), name
    assert float((some["dq"] - whole["dq"][places][:, :, [0, 7, 39]]).norm()) <= 1e-12 * float(
        whole["dq_size"].norm()
    )


@pytest.mark.parametrize("block", [1, 500])
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_blocks_do_not_change_the_gradients_of_a_mechanism(
    mechanism: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = Problem.parse(f"{SHAPES[0]} dtype=float64 mechanism={mechanism} {BOTH}")
    made, sample = make(problem), everything(problem)
    right = reference.oracle(problem, made, sample)
    monkeypatch.setattr(reference, "_BLOCK", block)
    found = reference.oracle(problem, made, sample)
    for name in inputs.outputs(problem):
        assert float((found[name] - right[name]).norm()) <= 1e-13 * float(right[f"{name}_size"].norm()), name


def test_the_size_of_a_gradient_is_that_of_independent_terms() -> None:
    """Of normal inputs the terms are that, so that norms and sizes agree within the chance of two random signs."""
    for mechanism in MECHANISMS:
        problem = Problem.parse(f"seqlen=128 heads=2 head_dim=16 dtype=float32 mechanism={mechanism} {BOTH}")
        found = reference.oracle(problem, make(problem), everything(problem))
        for name in inputs.outputs(problem):
            size, norm = float(found[f"{name}_size"].norm()), float(found[name].norm())
            zero, larger = mechanism == "location" and name == "dk", mechanism.partition(":")[0] in LARGER
            assert zero or norm < 3 * size, (mechanism, name)
            assert zero or larger or size / 3 < norm, (mechanism, name)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_implementations_give_the_gradients_of_mechanisms(mechanism: str, dtype: str) -> None:
    names = ("numpy-mechanisms", "torch-mechanisms", "numpy-multi-head", "torch-mha")
    ran = right_ones(names, f"dtype={dtype} mechanism={mechanism}")
    of_numpy, of_torch = names[2:] if mechanism == "multi-head" else names[:2]
    assert ran == ({of_torch} if dtype.endswith("16") else {of_numpy, of_torch})


WRONG: dict[str, tuple[str, str, Edit]] = {
    "transposed": ("general", "dw", lambda t: t.mT.contiguous()),
    "of the first member": ("additive", "dw_q", lambda t: t / 2),
    "with the wrong sign": ("additive", "dw_k", lambda t: -t),
    "without the last unit": ("additive", "dw", lambda t: t * (torch.arange(t.shape[-1]) < t.shape[-1] - 1)),
    "one key late": ("location", "dw", lambda t: t.roll(1, -1)),
    "of another head": ("local-gaussian:window=16", "dv_p", lambda t: t.flip(0)),
    "doubled": ("local-gaussian:window=16", "dw_p", lambda t: 2 * t),
    "of weights as torch has them": ("multi-head", "dw_q", lambda t: t.mT.contiguous()),
    "10 % too large": ("multi-head", "dw_o", lambda t: 1.1 * t),
    "negated": ("sparsemax", "dq", lambda t: -t),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("defect", WRONG)
def test_a_wrong_gradient_of_a_mechanism_is_wrong(defect: str, dtype: str) -> None:
    mechanism, name, edit = WRONG[defect]
    problem = Problem.parse(
        f"batch=2 seqlen=96 heads=2 head_dim=16 dtype={dtype} mechanism={mechanism} {BOTH}"
    )
    made, _, standard = judged(problem)
    right = {n: standard.oracle[n].to(made.q.dtype) for n in inputs.outputs(problem)}
    assert standard.compare(right)[1] is None
    reason = standard.compare({name: edit(right[name])})[1]
    assert reason is not None
    assert reason.startswith(f"{name}: ")


@pytest.mark.parametrize("mechanism", MECHANISM_TEXTS)
def test_the_costs_of_a_backward_pass_follow_one_convention(mechanism: str) -> None:
    text = f"seqlen=12 heads=2 head_dim=8 mask=causal mechanism={mechanism}"
    forward, backward = (
        Problem.parse(f"{text} direction={direction}") for direction in ("forward", "backward")
    )
    assert costs.flops(backward) == 2.5 * costs.flops(forward)
    made = make(backward)
    written = sum(t.numel() for t in (made.q, made.k, made.v, *made.extra.values()))
    read = sum(t.numel() for t in made.tensors if mechanism != "location" or t is not made.k)
    least = costs.least_bytes(backward) // made.q.element_size()
    assert least == read + made.dout.numel() + written - (made.k.numel() if mechanism == "location" else 0)
