"""q, k and v stored in types of their own, in batches that are ragged, packed or paged."""

from dataclasses import replace

import pytest
import torch
from test_layouts import CPU, HEADS, IMPLEMENTATIONS, LAYOUTS, RAGGED, make, taken, textbook
from torch import Tensor

from attnbench import costs, elements, inputs, reference, scope, testing, tokens
from attnbench.implementation import Inputs, dequantised
from attnbench.problem import DType, Packed, Problem

TYPES = (
    "dtype=bfloat16 kv_dtype=int8 descale=head",
    "dtype=float16 kv_dtype=float8_e4m3",
    "dtype=float8_e4m3 descale=head",
    "dtype=float32 kv_dtype=int8",
    "dtype=float32 kv_dtype=float8_e4m3 descale=head",
    "dtype=float64 kv_dtype=float16",
)
LENGTHS = (RAGGED, "batch=3 seqlen_q=3 seqlen_kv=6")


def meant(problem: Problem, name: str, stored: Tensor, made: Inputs, axis: int) -> Tensor:
    """`stored` in float64 times its descale, whose heads lie along `axis`, one after the other."""
    found, descale = stored.double(), made.extra.get(f"{name}_descale")
    if descale is None:
        return found
    factors = [float(descale[head * len(descale) // found.shape[axis]]) for head in range(found.shape[axis])]
    shape = [-1 if at == axis else 1 for at in range(found.ndim)]
    return found * torch.tensor(factors, dtype=torch.float64).view(shape)


@pytest.mark.parametrize("types", TYPES)
@pytest.mark.parametrize("lengths", LENGTHS)
def test_what_is_stored_does_not_depend_on_the_layout(lengths: str, types: str) -> None:
    for kind in inputs.KINDS:
        plain = tokens.plain(Problem.parse(f"{lengths} {HEADS} mask=causal {types}"))
        one = make(plain, kind)
        right = taken(plain, one)
        for layout in LAYOUTS:
            problem = Problem.parse(f"{lengths} {HEADS} mask=causal {types} layout={layout}")
            for form in ("bshd", "bhsd"):
                made = make(problem, kind, form)
                found = taken(problem, made, form)
                assert [found[name].dtype for name in "qkv"] == [right[name].dtype for name in "qkv"]
                assert all(torch.equal(found[name].double(), right[name].double()) for name in "qkv")
                assert made.extra.keys() == one.extra.keys()
                assert all(torch.equal(made.extra[name], one.extra[name]) for name in one.extra)


def test_a_slot_without_a_token_holds_the_largest_that_is_stored() -> None:
    for types, dtype in (("dtype=float32 kv_dtype=int8", "int8"), ("dtype=float8_e4m3", "float8_e4m3")):
        made = make(Problem.parse(f"requests=1q3_1q2 {HEADS} {types} layout=paged:page=4"))
        pages = made.index["block_table"][:, 0].tolist()
        for page, tokens_of in zip(pages, (3, 2), strict=True):
            for stored in (made.k, made.v):
                behind = stored.double()[page, tokens_of:]
                assert behind.abs().max() == elements.LARGEST[DType(dtype)]
                assert stored.double()[page, :tokens_of].abs().max() <= behind.abs().max()
        dense = make(Problem.parse(f"requests=1q3_1q2 {HEADS} {types}"), form="bshd")
        assert dense.v.double()[1, 2:].abs().max() == elements.LARGEST[DType(dtype)]


@pytest.mark.parametrize("types", TYPES)
@pytest.mark.parametrize("kind", ["normal", "peaked"])
def test_the_oracle_computes_each_member_from_what_is_stored_times_its_descale(kind: str, types: str) -> None:
    problem = Problem.parse(f"{RAGGED} {HEADS} mask=causal {types} layout=packed")
    made, sample = make(problem, kind), inputs.sample(problem, work=1e9, seed=0)
    found = reference.oracle(problem, made, sample)["out"]
    real = {name: meant(problem, name, getattr(made, name), made, 1) for name in "qkv"}
    for b, right in enumerate(textbook(problem, Inputs(**real))):
        for head in range(2):
            want = right["out"][2 * head : 2 * head + 2]
            got = found[sample.groups.index((b, head))][:, : want.shape[1]]
            torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("types", TYPES)
def test_dequantised_is_what_is_meant_in_every_layout(types: str, layout: str) -> None:
    for form in ("bshd", "bhsd"):
        problem = Problem.parse(f"{RAGGED} {HEADS} {types} layout={layout}")
        made = make(problem, form=form)
        axis = 1 if layout == "dense" and form == "bhsd" else -2
        for name, got in zip("qkv", dequantised(problem, made, form), strict=True):
            stored = getattr(made, name)
            right = meant(problem, name, stored, made, axis % stored.ndim)
            step = torch.finfo(got.dtype).eps / 2 + 2.0**-23
            assert bool(((got.double() - right).abs() <= step * right.abs()).all())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["numpy-loop", "torch-loop", "torch-padded"])
def test_implementations_are_right(name: str, layout: str) -> None:
    tried = 0
    for types in TYPES:
        for lengths, mask in ((RAGGED, "causal"), (RAGGED, "full"), (LENGTHS[1], "window:left=3:right=1")):
            problem = Problem.parse(f"{lengths} {HEADS} mask={mask} {types} layout={layout}")
            if IMPLEMENTATIONS[name].why_not(problem, CPU) is None:
                assert testing.verdict(IMPLEMENTATIONS[name], problem, strided=bool(tried % 2)) is None
                tried += 1
    assert tried >= 6


def test_who_takes_another_heads_descale_is_wrong_in_a_packed_batch() -> None:
    problem = Problem.parse(
        f"{RAGGED} {HEADS} mask=causal dtype=float32 kv_dtype=int8 descale=head layout=packed"
    )
    loop = IMPLEMENTATIONS["torch-loop"]

    def next_head(problem: Problem, given: Inputs) -> object:
        extra = {name: tensor.roll(1) for name, tensor in given.extra.items()}
        return loop.prepare(problem, replace(given, extra=extra))

    assert "x the budget" in (testing.verdict(replace(loop, prepare=next_head), problem) or "right")


@pytest.mark.parametrize("types", TYPES)
def test_least_bytes_are_those_of_stored_tokens_and_descales(types: str) -> None:
    dense = Problem.parse(f"{RAGGED} {HEADS} {types}")
    made = make(replace(dense, layout=Packed()))
    of_tensors = sum(t.numel() * t.element_size() for t in (made.q, made.k, made.v, *made.extra.values()))
    out = 16 * 4 * 12 * dense.out_dtype.bytes
    assert costs.least_bytes(dense) == of_tensors + out
    packed = replace(dense, layout=Packed())
    assert costs.least_bytes(packed) == of_tensors + out + sum(4 * t.numel() for t in made.index.values())


def test_gradients_of_stored_types_are_refused_in_every_layout() -> None:
    for layout in ("dense", "packed"):
        words = f"{RAGGED} {HEADS} dtype=bfloat16 kv_dtype=int8 direction=backward layout={layout}"
        told = "no reference for the gradients of bfloat16 q with int8 k and v"
        assert scope.computable(Problem.parse(words)) == told
