"""Element types of their own for k and v, float8 with descales, int8: stored, meant, computed and counted."""

import csv
import math
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
import torch
from drawn_masks import drawn
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attnbench import costs, elements, inputs, plugins, reference, scope, testing, verify
from attnbench.cli import main
from attnbench.implementation import Device, Inputs, dequantised
from attnbench.problem import Descale, DType, Problem

SMALL = "batch=2 seqlen_q=33 seqlen_kv=80 heads_q=4 heads_kv=2 head_dim=16 head_dim_v=8 mask=causal"
TYPES = (
    "dtype=float8_e4m3",
    "dtype=float8_e4m3 descale=head",
    "dtype=bfloat16 kv_dtype=float8_e4m3",
    "dtype=bfloat16 kv_dtype=float8_e4m3 descale=head",
    "dtype=bfloat16 kv_dtype=int8",
    "dtype=float16 kv_dtype=int8 descale=head",
    "dtype=float32 kv_dtype=int8 descale=head",
    "dtype=float32 kv_dtype=float8_e4m3",
    "dtype=float32 kv_dtype=float16",
    "dtype=float64 kv_dtype=float8_e4m3 descale=head",
)
QUANTISED = [types for types in TYPES if "float8" in types or "int8" in types]
REGISTRY = plugins.discover()
AVAILABLE = {
    name: one
    for name, one in REGISTRY.implementations.items()
    if name in ("numpy", "torch-naive", "torch-chunked", "torch-sdpa", "torch-sdpa-math", "torch-sdpa-flash")
}


def make(text: str, kind: str = "normal", form: str = "bhsd", seed: int = 0) -> tuple[Problem, Inputs]:
    problem = Problem.parse(text)
    return problem, inputs.make(problem, kind=kind, seed=seed, device="cpu", qkv_format=form)


def meant(problem: Problem, made: Inputs) -> dict[str, Tensor]:
    """q, k and v in float64, of inputs in `bhsd`, head by head."""
    found = {}
    for name in "qkv":
        stored, descale = getattr(made, name), made.extra.get(f"{name}_descale")
        wide = stored.double()
        if descale is not None:
            for head in range(wide.shape[1]):
                of = head * problem.heads_kv // wide.shape[1] if len(descale) > 1 else 0
                wide[:, head] *= float(descale[of])
        found[name] = wide
    return found


# ---------------------------------------------------------------- text


@pytest.mark.parametrize("types", TYPES)
def test_the_types_are_part_of_the_text_that_is_read_back(types: str) -> None:
    found = Problem.parse(f"{SMALL} {types}")
    assert types in found.text
    assert Problem.parse(found.text) == found


def test_a_descale_says_nothing_where_nothing_is_quantised() -> None:
    plain = Problem.parse(f"{SMALL} dtype=bfloat16")
    assert Problem.parse(f"{SMALL} dtype=bfloat16 descale=head") == plain
    assert replace(plain, descale=Descale.HEAD).text == plain.text


def test_the_output_of_float8_is_bfloat16_and_else_has_the_type_of_q() -> None:
    found = {types: Problem.parse(f"{SMALL} {types}").out_dtype for types in TYPES}
    assert found == {
        types: "bfloat16" if types.startswith("dtype=float8") else types.split()[0][6:] for types in TYPES
    }


# ---------------------------------------------------------------- inputs


@pytest.mark.parametrize("types", TYPES)
@pytest.mark.parametrize("kind", inputs.KINDS)
def test_what_is_stored_has_the_promised_types_and_does_not_depend_on_the_format(
    kind: str, types: str
) -> None:
    (problem, one), (_, two) = make(f"{SMALL} {types}", kind), make(f"{SMALL} {types}", kind, "bshd")
    for name, dtype in (("q", problem.dtype), ("k", problem.kv_dtype), ("v", problem.kv_dtype)):
        tensor, other = getattr(one, name), getattr(two, name).transpose(1, 2)
        assert tensor.dtype == other.dtype == elements.TORCH_DTYPES[dtype]
        assert torch.equal(tensor.double(), other.double())
        assert bool(tensor.double().isfinite().all())
    assert one.extra.keys() == problem.parameters.keys()
    for name, parameter in problem.parameters.items():
        assert (
            tuple(one.extra[name].shape)
            == parameter.shape
            == ((2,) if problem.descale is Descale.HEAD else (1,))
        )
        assert one.extra[name].dtype == torch.float32
        assert torch.equal(one.extra[name], two.extra[name])


@pytest.mark.parametrize("types", QUANTISED)
def test_what_is_meant_is_what_another_type_would_hold_within_the_rounding(types: str) -> None:
    problem, made = make(f"{SMALL} {types}")
    _, plain = make(f"{SMALL} dtype={'float64' if problem.dtype is DType.FLOAT64 else 'float32'}")
    found = meant(problem, made)
    for name, dtype in (("q", problem.dtype), ("k", problem.kv_dtype), ("v", problem.kv_dtype)):
        real = getattr(plain, name).double()
        off = (found[name] - real).abs()
        if dtype is DType.INT8:
            assert float(off.max()) <= 0.501 * float(made.extra[f"{name}_descale"].max())
        elif dtype is DType.FLOAT8_E4M3:  # half a step of 2^-3, below the least exponent half of 2^-9
            step = torch.maximum(real.abs() * 2.0**-4, 2.0**-10 * made.extra[f"{name}_descale"].max())
            assert bool((off <= 1.001 * step).all())


@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("types", QUANTISED)
def test_values_use_the_range_of_their_type_without_leaving_it(types: str, kind: str) -> None:
    problem, made = make(f"{SMALL} {types}", kind)
    for name, dtype in (("q", problem.dtype), ("k", problem.kv_dtype), ("v", problem.kv_dtype)):
        if dtype.quantised:
            top = float(getattr(made, name).double().abs().max())
            assert elements.LARGEST[dtype] / (1.07 * inputs.ROOM) <= top <= elements.LARGEST[dtype]


@pytest.mark.parametrize("heads", [1, 2, 8])
def test_no_descale_does_in_the_place_of_another(heads: int) -> None:
    """Steps of ROOM^(1 / 3 Hk) lie between them, less what the largest of normal values vary from head to head."""
    for seed in range(5):
        text = f"seqlen=512 heads={heads} head_dim=64 mask=full dtype=float8_e4m3 descale=head"
        _, made = make(text, seed=seed)
        q, k, v = (made.extra[f"{name}_descale"] for name in "qkv")
        apart = [max(float((a / b).max()), float((b / a).max())) for a, b in combinations((q, k, v), 2)]
        apart += [float((t / t.roll(1)).max()) for t in (q, k, v) if heads > 1]
        assert min(apart) > 1.2


def test_strided_inputs_hold_the_same_values() -> None:
    for types in TYPES:
        problem, made = make(f"{SMALL} {types}")
        other = inputs.strided(problem, made, "bhsd")
        inputs.overwrite(other, problem, kind="normal", seed=0, qkv_format="bhsd")
        for one, two in zip(made.tensors, other.tensors, strict=True):
            assert one.dtype == two.dtype
            assert torch.equal(one.double(), two.double())
        assert not any(t.is_contiguous() for t in (other.q, other.k, other.v))


@pytest.mark.parametrize("types", QUANTISED)
def test_a_single_bit_changes_the_checksum(types: str) -> None:
    _, made = make(f"{SMALL} {types}")
    for tensor in made.tensors:
        before = inputs.checksum(made)
        flat = tensor.view(torch.uint8).view(-1)
        flat[len(flat) // 2] ^= 1
        assert inputs.checksum(made) != before


def test_values_are_doubled_and_negated_in_any_type() -> None:
    for types in QUANTISED:
        _, made = make(f"{SMALL} {types}")
        before = made.v.double()
        elements.multiply(made.v, -1)
        assert torch.equal(made.v.double(), -before)
        elements.multiply(made.v, -1)
        assert torch.equal(made.v.double(), before)
        if made.v.dtype == torch.float8_e4m3fn:
            elements.multiply(made.v, 2)
            assert torch.equal(made.v.double(), 2 * before)


# ---------------------------------------------------------------- oracle and yardstick


@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("types", TYPES)
def test_the_oracle_computes_from_what_is_stored_times_its_descale(types: str, kind: str) -> None:
    problem, made = make(f"{SMALL} {types}", kind)
    sample = inputs.sample(problem, work=math.inf, seed=0)
    found, of = reference.oracle(problem, made, sample)["out"], meant(problem, made)
    s = of["q"] @ of["k"].repeat_interleave(2, 1).mT * problem.softmax_scale
    right = s.masked_fill(~drawn(problem)[:, None], -math.inf).softmax(-1) @ of["v"].repeat_interleave(2, 1)
    got = found.view(2, 4, 33, 8)
    assert float((got - right).abs().max()) <= 1e-12 * float(right.abs().max())


@pytest.mark.parametrize("types", TYPES)
def test_the_yardstick_has_the_outputs_type_and_errs_as_its_class_does(types: str) -> None:
    """bfloat16 rounds to 2^-9, float16 to 2^-12; weights of float8 to 2^-5 on average."""
    problem, made = make(f"{SMALL.replace('80', '512')} {types}")
    sample = inputs.sample(problem, work=math.inf, seed=0)
    right, yard = (f(problem, made, sample)["out"] for f in (reference.oracle, reference.yardstick))
    assert yard.dtype == elements.TORCH_DTYPES[problem.out_dtype]
    error = float((yard.double() - right).norm() / right.norm())
    low, high = {
        "float8_e4m3": (0.015, 0.04),
        "bfloat16": (1e-3, 0.01),
        "float16": (1e-4, 1e-3),
        "float32": (1e-8, 1e-6),
        "float64": (1e-17, 1e-14),
    }[problem.dtype.value]
    assert low < error < high


def test_weights_of_float8_err_by_half_of_an_eighth_at_the_most_whatever_their_number() -> None:
    for keys in (4, 512, 32768):
        p = torch.randn(16, keys).softmax(-1)
        off = (elements.through_float8(p) - p).abs() / p
        large = p > p.amax(-1, keepdim=True) * 2.0**-14
        assert 2.0**-6 < float(off[large].max()) <= 2.0**-4
        rms = float((off[large] ** 2).mean().sqrt())
        if keys > 100:
            assert rms == pytest.approx(verify.FLOORS[DType.FLOAT8_E4M3], rel=0.05)
    assert not elements.through_float8(torch.zeros(2, 3)).any()


def judged(problem: Problem, made: Inputs, found: Tensor) -> str | None:
    sample = inputs.sample(problem, work=math.inf, seed=0)
    right, yard = (f(problem, made, sample) for f in (reference.oracle, reference.yardstick))
    standard = verify.Standard(problem, right, yard, sample.share)
    return standard.compare(inputs.pick((found,), problem, sample, "bhsd"))[1]


def test_weights_in_float8_are_right_where_q_is_float8_and_wrong_where_it_is_not() -> None:
    for types, accepted in (("dtype=float8_e4m3", True), ("dtype=bfloat16 kv_dtype=float8_e4m3", False)):
        reasons = []
        for kind in inputs.COUNTED:
            problem, made = make(f"seqlen=256 heads=2 head_dim=64 mask=full {types}", kind)
            q, k, v = (t.float() for t in dequantised(problem, made))
            p = elements.through_float8((q @ k.mT * problem.softmax_scale).softmax(-1))
            reasons.append(judged(problem, made, (p @ v).bfloat16()))
        assert (reasons == [None, None]) == accepted, (types, reasons)


def test_an_output_of_float8_is_no_output() -> None:
    problem, made = make(f"{SMALL} dtype=float8_e4m3")
    out = torch.zeros(2, 4, 33, 8)
    reason = verify.inspect(out.to(torch.float8_e4m3fn), problem, made, "cpu", "bhsd")
    assert reason == "dtype float8_e4m3fn, expected bfloat16"
    assert not isinstance(verify.inspect(out.bfloat16(), problem, made, "cpu", "bhsd"), str)


@pytest.mark.parametrize(
    ("types", "reason"),
    [
        *((types, None) for types in TYPES),
        ("dtype=int8", "no reference for int8 q"),
        ("dtype=float8_e4m3 kv_dtype=bfloat16", "no reference for float8_e4m3 q with bfloat16 k and v"),
        (
            "dtype=bfloat16 kv_dtype=int8 direction=backward",
            "no reference for the gradients of bfloat16 q with int8 k and v",
        ),
        (
            "dtype=bfloat16 kv_dtype=int8 mechanism=linear",
            "no reference for bfloat16 q with int8 k and v in the linear mechanism yet",
        ),
    ],
)
def test_what_cannot_be_computed_says_why(types: str, reason: str | None) -> None:
    assert scope.computable(Problem.parse(f"{SMALL} {types}")) == reason


# ---------------------------------------------------------------- implementations


@pytest.mark.parametrize("types", [*TYPES, "dtype=tfloat32"])
def test_at_least_two_implementations_on_a_cpu_are_right(types: str) -> None:
    problem = Problem.parse(f"{SMALL} {types}")
    able = [one for one in AVAILABLE.values() if one.why_not(problem, Device(kind="cpu")) is None]
    assert len(able) >= 2
    for one in able:
        assert testing.verdict(one, problem) is None, one.name


@pytest.mark.parametrize("name", ["numpy", "torch-naive", "torch-chunked", "torch-sdpa"])
@pytest.mark.parametrize("mask", ["full", "window:left=20:right=3", "key-padding:share=0.3"])
def test_masks_softcap_and_strides_go_with_them(name: str, mask: str) -> None:
    one, cpu = AVAILABLE[name], Device(kind="cpu")
    for types in ("dtype=float32 kv_dtype=int8", "dtype=float8_e4m3 descale=head"):
        for modifiers in ("none", "softcap:cap=5"):
            problem = Problem.parse(f"{SMALL.replace('causal', mask)} {types} modifiers={modifiers}")
            if one.why_not(problem, cpu) is None:
                assert testing.verdict(one, problem, strided=name != "numpy") is None


def test_modifiers_have_tensors_of_the_outputs_type() -> None:
    problem = Problem.parse(f"{SMALL} dtype=float8_e4m3 descale=head modifiers=bias+sinks")
    made = inputs.make(problem, kind="normal", seed=0, device="cpu", qkv_format="bhsd")
    assert made.extra["bias"].dtype == made.extra["sinks"].dtype == torch.bfloat16
    assert testing.verdict(AVAILABLE["torch-naive"], problem) is None


@pytest.mark.parametrize("types", TYPES)
def test_dequantised_is_what_is_meant_rounded_once_in_either_format(types: str) -> None:
    problem, made = make(f"{SMALL} {types}")
    _, other = make(f"{SMALL} {types}", form="bshd")
    of = meant(problem, made)
    pairs = zip(dequantised(problem, made), dequantised(problem, other, "bshd"), "qkv", strict=True)
    for one, two, name in pairs:
        assert one.dtype == elements.TORCH_DTYPES[problem.out_dtype]
        assert torch.equal(one, two.transpose(1, 2))
        step = torch.finfo(one.dtype).eps / 2 + 2.0**-23
        assert bool(((one.double() - of[name]).abs() <= step * of[name].abs()).all())


# ---------------------------------------------------------------- costs


@settings(deadline=None)
@given(
    types=st.sampled_from(TYPES),
    batch=st.integers(1, 3),
    sq=st.integers(1, 9),
    sk=st.integers(1, 9),
    group=st.integers(1, 3),
    heads=st.integers(1, 3),
    bias=st.booleans(),
)
def test_least_bytes_are_those_of_the_tensors(
    types: str, batch: int, sq: int, sk: int, group: int, heads: int, bias: bool
) -> None:
    text = f"batch={batch} seqlen_q={sq} seqlen_kv={sk} heads_q={group * heads} heads_kv={heads} head_dim=8 head_dim_v=4"
    problem, made = make(f"{text} {types}" + " modifiers=bias" * bias)
    out = (
        batch
        * group
        * heads
        * sq
        * 4
        * torch.empty((), dtype=elements.TORCH_DTYPES[problem.out_dtype]).element_size()
    )
    assert costs.least_bytes(problem) == out + sum(t.numel() * t.element_size() for t in made.tensors)


def test_narrow_keys_and_values_are_counted_as_such() -> None:
    plain = Problem.parse("batch=32 seqlen_q=1 seqlen_kv=4096 heads=8 head_dim=128 dtype=bfloat16")
    narrow = replace(plain, kv_dtype=DType.INT8)
    scales = 2 * 4
    part = costs.tensor_bytes(plain)
    assert costs.least_bytes(plain) - costs.least_bytes(narrow) == (part["k"] + part["v"]) // 2 - scales
    assert costs.flops(plain) == costs.flops(narrow)


def test_a_run_measures_them_in_processes_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(
        "question: which type?\n"
        "implementations: [numpy, torch-naive, torch-chunked, torch-sdpa]\n"
        "problems:\n"
        "  - {seqlen: 64, heads: 2, head_dim: 16, dtype: float8_e4m3}\n"
        "  - {seqlen: 64, heads: 2, head_dim: 16, kv_dtype: int8, descale: head}\n"
        "measure: {preset: quick, budget: 20ms, threads: 1}\n"
    )
    main(["run", str(tmp_path / "s.yaml"), "-o", str(tmp_path / "run"), "--quiet"])
    with open(tmp_path / "run" / "results.csv", newline="") as file:
        ends = {(row["implementation"], row["kv_dtype"]): row for row in csv.DictReader(file)}
    assert {row["reason"] for row in ends.values()} == {"", "no float8_e4m3"}
    assert [name for name, row in ends.items() if row["status"] != "ok"] == [("numpy", "float8_e4m3")]
    assert all(row["deterministic"] == "yes" for row in ends.values() if row["status"] == "ok")


@pytest.mark.parametrize(
    "more", ["modifiers=rotary", "modifiers=alibi+sinks", "dropout=0.1", "direction=inference"]
)
@pytest.mark.parametrize("types", ["dtype=float8_e4m3 descale=head", "dtype=bfloat16 kv_dtype=int8"])
def test_whoever_takes_another_axis_beside_them_is_right(types: str, more: str) -> None:
    problem, cpu = Problem.parse(f"{SMALL} {types} {more}"), Device(kind="cpu")
    able = [one for one in REGISTRY.implementations.values() if one.why_not(problem, cpu) is None]
    assert able
    for one in able:
        assert testing.verdict(one, problem) is None, one.name
