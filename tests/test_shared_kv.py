"""Keys whose first columns are the values, stored once (absorbed MLA): inputs, what is right, and who computes it."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from drawn_masks import draw, drawn
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from zoo import cage, layouts

from attnbench import costs, inputs, measure, plugins, reference, testing, tokens, verify, worker
from attnbench.implementation import Capabilities, Device, Implementation, Inputs, Prepared
from attnbench.problem import Problem

CPU = Device(kind="cpu")
OURS = plugins.discover().implementations
COMPILED = ("torch-flex", "torch-compile-naive")  # which takes long: tests/test_coverage.py, the whole table
HEADS = "heads_q=4 heads_kv=2 head_dim=12 head_dim_v=8 shared_kv=true"
DEEPSEEK = "heads_q=4 heads_kv=1 head_dim=576 head_dim_v=512 scale=0.0721 shared_kv=true"
LENGTHS = ("batch=2 seqlen=9", "batch=2 seqlen_q=5 seqlen_kv=11", "batch=1 seqlen_q=9 seqlen_kv=4")
RAGGED = "requests=1q5s9_1q0s4_2q1s7_1q6s2"
DIRECTIONS = ("forward", "inference", "backward", "forward_backward")


def make(text: str, kind: str = "normal", form: str = "bhsd") -> tuple[Problem, Inputs, inputs.Sample]:
    problem = Problem.parse(text)
    made = inputs.make(problem, kind=kind, seed=0, device="cpu", qkv_format=form)
    return problem, made, inputs.sample(problem, work=math.inf, seed=0)


# ---------------------------------------------------------------- inputs


def stored_once(problem: Problem, made: Inputs) -> bool:
    """Whether v is the first columns of k, and not only in its values."""
    own = made.k[..., : problem.head_dim_v]
    return (made.v.data_ptr(), made.v.shape, made.v.stride()) == (own.data_ptr(), own.shape, own.stride())


@pytest.mark.parametrize("form", ["bshd", "bhsd"])
@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("layout", ["dense", "packed", "paged:page=4"])
@pytest.mark.parametrize("lengths", ["batch=2 seqlen=9", RAGGED])
def test_v_is_the_first_columns_of_k_and_is_stored_once(
    lengths: str, layout: str, kind: str, form: str
) -> None:
    problem, made, _ = make(f"{lengths} {HEADS} layout={layout} direction=backward", kind, form)
    strided, copy = inputs.strided(problem, made, form), worker._copy(made)
    inputs.overwrite(strided, problem, kind=kind, seed=0, qkv_format=form)
    for one in (made, strided, copy):
        assert stored_once(problem, one)
        assert torch.equal(one.k, made.k)
        assert not any(tensor is one.v for tensor in one.tensors)
    assert copy.k.data_ptr() != made.k.data_ptr()
    plain = tokens.plain(problem)
    right = inputs.make(plain, kind=kind, seed=0, device="cpu", qkv_format="bhsd")
    for name, tensor in (("k", made.k), ("v", made.v)):
        found = tokens.take(tensor, problem, 1, form, made.index.get("block_table"))
        assert torch.equal(found, getattr(right, name))


@settings(deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4),
    layout=st.sampled_from(["dense", "packed", "paged:page=4"]),
    group=st.integers(1, 3),
    heads=st.integers(1, 3),
    head_dim_v=st.integers(1, 8),
    direction=st.sampled_from(DIRECTIONS),
    dtype=st.sampled_from(["float64", "bfloat16"]),
)
def test_bytes_are_those_of_what_is_stored(
    lengths: list[tuple[int, int]],
    layout: str,
    group: int,
    heads: int,
    head_dim_v: int,
    direction: str,
    dtype: str,
) -> None:
    requests = "_".join(f"1q{q}s{k}" for q, k in lengths)
    heads_text = f"heads_q={group * heads} heads_kv={heads} head_dim=8 head_dim_v={head_dim_v}"
    text = f"requests={requests} {heads_text} shared_kv=true dtype={dtype} direction={direction}"
    _, made, _ = make(f"{text} layout=packed")
    size = measure.total_bytes([made.q, made.k])
    out = sum(q for q, _ in lengths) * group * heads * head_dim_v * made.q.element_size()
    backward = size + out + out + size  # q, k, out and dout are read, dq and dk written
    least = {"backward": backward, "forward_backward": size + out + backward}.get(direction, size + out)
    found = Problem.parse(f"{text} layout={layout}")
    part = costs.tensor_bytes(found)
    assert measure.total_bytes(made.tensors) == size + (made.dout is not None) * out + 4 * 2 * (
        len(lengths) + 1
    )
    readings = 2 if direction == "forward_backward" else 1
    assert costs.least_bytes(found) == least + readings * part["index"]
    assert (part["v"], costs.touched_bytes(found)) == (0, size + (made.dout is not None) * out)
    assert costs.flops(found) == costs.flops(Problem.parse(found.text.replace(" shared_kv=true", "")))


# ---------------------------------------------------------------- what is right


def brute_force(problem: Problem, made: Inputs) -> dict[str, Any]:
    """The formulas query by query, in float64, without torch: the gradient of a key is what comes through its scores
    and, in its first Dv columns, what comes through its value."""
    q, k = (t.double().numpy() for t in (made.q, made.k))
    dv, scale, shared = problem.head_dim_v, problem.softmax_scale, problem.heads_q // problem.heads_kv
    dout = None if made.dout is None else made.dout.double().numpy()
    found = {"out": np.zeros((*q.shape[:3], dv)), "dq": np.zeros_like(q), "dk": np.zeros_like(k)}
    sq, sk = problem.uniform or (0, 0)
    for b, h, i in np.ndindex(q.shape[:3]):
        keys = k[b, h // shared]
        seen = np.array(draw(problem.mask, sq, sk, b)[i], dtype=bool)
        if not seen.any():
            continue
        s, slope = keys @ q[b, h, i] * scale, 1.0
        if problem.softcap:
            bent = np.tanh(s / problem.softcap)
            s, slope = problem.softcap * bent, 1 - bent**2
        p = np.where(seen, np.exp(s - s[seen].max()), 0)
        p /= p.sum()
        found["out"][b, h, i] = p @ keys[:, :dv]
        if dout is None:
            continue
        g = dout[b, h, i]
        ds = p * (keys[:, :dv] @ g - g @ found["out"][b, h, i]) * slope * scale
        found["dq"][b, h, i] = ds @ keys
        found["dk"][b, h // shared] += np.outer(ds, q[b, h, i])
        found["dk"][b, h // shared, :, :dv] += np.outer(p, g)
    return found


def agree(problem: Problem, made: Inputs, sample: inputs.Sample, right: dict[str, Tensor]) -> None:
    oracle = reference.oracle(problem, made, sample)
    several = tuple(right[name] for name in inputs.outputs(problem))
    for name, want in inputs.pick(several, problem, sample, "bhsd").items():
        size = max(want.norm(), oracle[f"{name}_size"].norm())
        assert (oracle[name] - want).norm() <= 1e-12 * size, name
    assert "dv" not in oracle


@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("mask", ["full", "causal", "window:left=3:right=1", "document:count=3*causal"])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_the_oracle_agrees_with_brute_force(
    lengths: str, mask: str, direction: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "_BLOCK", 60)  # blocks of a few rows
    for modifiers in ("none", "softcap:cap=3"):
        words = f"mask={mask} modifiers={modifiers} direction={direction} dtype=float64 scale=0.4"
        problem, made, sample = make(f"{lengths} {HEADS} {words}", kind)
        found = brute_force(problem, made)
        agree(problem, made, sample, {name: torch.from_numpy(array) for name, array in found.items()})


def through_torch(problem: Problem, made: Inputs, dtype: torch.dtype) -> dict[str, Tensor]:
    """SDPA and torch's own gradients; in `bhsd`."""
    q, k = (t.detach().to(dtype).requires_grad_() for t in (made.q, made.k))
    mask = drawn(problem)[:, None]
    words = {"attn_mask": mask, "enable_gqa": True, "scale": problem.softmax_scale}
    out = F.scaled_dot_product_attention(q, k, k[..., : problem.head_dim_v], **words)
    assert made.dout is not None
    dq, dk = torch.autograd.grad(out, (q, k), made.dout.to(dtype))
    return {"out": out.detach(), "dq": dq, "dk": dk}


@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("mask", ["full", "causal", "tree:width=2:depth=1"])
@pytest.mark.parametrize("lengths", LENGTHS[:2])
def test_the_oracle_agrees_with_torchs_own_attention_and_gradients(
    lengths: str, mask: str, kind: str
) -> None:
    text = f"{lengths} {HEADS} mask={mask} dtype=float64 direction=forward_backward"
    problem, made, sample = make(text, kind)
    agree(problem, made, sample, through_torch(problem, made, torch.float64))


def test_sampled_rows_are_those_of_the_whole() -> None:
    problem, made, _ = make(f"batch=2 seqlen=40 {HEADS} mask=causal dtype=float64 direction=forward_backward")
    part = inputs.Sample(groups=((0, 1), (1, 0)), rows=(0, 7, 39), heads_kv=2, share=0.1)
    inputs.mask_dout(made, problem, part, "bhsd")
    agree(problem, made, part, through_torch(problem, made, torch.float64))


def test_absorbed_attention_is_expanded_attention_whose_projections_have_moved() -> None:
    """DeepSeek-V2 (2024), sections 2.1.2 and 2.1.3: k = [W_UK c; k_R] and v = W_UV c, of one latent c."""
    torch.manual_seed(0)
    heads, latent, plain, rotary, n = 3, 16, 8, 4, 10
    made = {name: torch.randn(*shape, dtype=torch.float64) for name, shape in {
        "c": (1, n, latent), "k_r": (1, n, rotary), "q_c": (heads, n, plain), "q_r": (heads, n, rotary),
        "w_uk": (heads, plain, latent), "w_uv": (heads, plain, latent),
    }.items()}  # fmt: skip
    scale = (plain + rotary) ** -0.5
    k = torch.cat([made["c"] @ made["w_uk"].mT, made["k_r"].expand(heads, -1, -1)], -1)
    q, v = torch.cat([made["q_c"], made["q_r"]], -1), made["c"] @ made["w_uv"].mT
    expanded = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)

    words = (
        f"seqlen={n} heads_q={heads} heads_kv=1 head_dim={latent + rotary} head_dim_v={latent} mask=causal"
    )
    problem = Problem.parse(f"{words} scale={scale!r} dtype=float64 shared_kv=true")
    q, k = torch.cat([made["q_c"] @ made["w_uk"], made["q_r"]], -1), torch.cat([made["c"], made["k_r"]], -1)
    absorbed = Inputs(q=q[None], k=k[None], v=k[None, ..., :latent])
    oracle = reference.oracle(problem, absorbed, inputs.sample(problem, work=math.inf, seed=0))
    torch.testing.assert_close(oracle["out"][0] @ made["w_uv"].mT, expanded, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_yardsticks_error_is_that_of_the_native_chain(dtype: str) -> None:
    text = (
        "seqlen=200 heads=2 head_dim=64 head_dim_v=48 mask=causal shared_kv=true direction=forward_backward"
    )
    problem, made, sample = make(f"{text} dtype={dtype}")
    oracle, yard = reference.oracle(problem, made, sample), reference.yardstick(problem, made, sample)
    q, k = (t.detach().requires_grad_() for t in (made.q, made.k))
    s = (q @ k.mT) * problem.softmax_scale
    out = s.masked_fill(~drawn(problem)[:, None], -math.inf).softmax(-1) @ k[..., :48]
    found = (out.detach(), *torch.autograd.grad(out, (q, k), made.dout))
    for name, native in inputs.pick(found, problem, sample, "bhsd").items():
        ours, its = ((t.double() - oracle[name]).norm() for t in (yard[name], native))
        assert 0.8 < float(ours / its) < 1.25, name


# ---------------------------------------------------------------- implementations


def able(problem: Problem) -> dict[str, Implementation]:
    return {
        name: one
        for name, one in OURS.items()
        if name not in COMPILED and "cpu" in one.capabilities.devices and one.why_not(problem, CPU) is None
    }


def test_these_take_the_heads_of_deepseek_and_are_right() -> None:
    problem = Problem.parse(f"batch=2 seqlen_q=9 seqlen_kv=33 {DEEPSEEK} dtype=float32 mask=causal")
    names = {"numpy", "torch-naive", "torch-chunked", "torch-sdpa", "torch-sdpa-math", "torch-flex-eager"}
    assert able(problem).keys() == names
    for name, one in able(problem).items():
        assert testing.verdict(one, problem, batch_invariance=name == "torch-naive") is None, name


@pytest.mark.parametrize("dtype", ["float64", "float32", "tfloat32", "float16", "bfloat16"])
@pytest.mark.parametrize(
    "words",
    [
        "",
        "mask=causal direction=inference",
        "mask=causal direction=backward modifiers=softcap:cap=5",
        "mask=causal direction=forward_backward",
        "direction=forward_backward head_dim_v=12",
        "mask=document:count=3*causal direction=backward modifiers=bias:grad=1",
        "modifiers=rotary direction=forward_backward",
        "mask=causal layout=packed direction=backward",
        "mask=causal layout=paged:page=4",
    ],
)
def test_whoever_takes_a_problem_is_right(words: str, dtype: str) -> None:
    heads = HEADS.replace(" head_dim_v=8", "") if "head_dim_v" in words else HEADS
    problem = Problem.parse(f"batch=2 seqlen_q=7 seqlen_kv=19 {heads} {words} dtype={dtype}")
    found = able(problem)
    assert found or "layout" in words
    for name, one in found.items():
        assert testing.verdict(one, problem) is None, name


@pytest.mark.parametrize("direction", ["forward", "forward_backward"])
@pytest.mark.parametrize("layout", ["dense", "packed", "paged:page=4"])
def test_ragged_batches_are_taken_too(layout: str, direction: str) -> None:
    text = f"{RAGGED} {HEADS} mask=causal layout={layout} direction={direction} dtype=float32"
    problem = Problem.parse(text)
    names = {"torch-loop", "torch-padded"} | ({"numpy-loop"} if direction == "forward" else set())
    assert able(problem).keys() == names
    for name, one in able(problem).items():
        assert testing.verdict(one, problem, strided=name == "torch-loop") is None, name


@pytest.mark.parametrize("name", ["torch-naive", "torch-chunked", "torch-sdpa"])
def test_inputs_that_are_not_contiguous_are_taken_too(name: str) -> None:
    text = f"batch=2 seqlen_q=7 seqlen_kv=19 {HEADS} mask=causal direction=forward_backward dtype=float32"
    assert testing.verdict(OURS[name], Problem.parse(text), strided=True) is None


@pytest.mark.parametrize("defect", ["", "one-slot-of-padding-seen", "padding-of-the-batch-seen"])
def test_what_stands_in_the_padding_shows_in_an_output_that_counts_it(defect: str) -> None:
    of = Problem.parse(f"requests=1q64s512_1q50s293 {HEADS} mask=causal dtype=bfloat16")
    found = cage.judge(lambda problem, given: layouts.members(problem, given, defect), of)
    assert (found.reason is None) == (defect == "")


def mine(attend: Any) -> Implementation:
    return Implementation(
        name="mine",
        summary="for these tests",
        capabilities=Capabilities(dtypes=frozenset({"float32"}), shared_kv=True),
        prepare=lambda _, given: Prepared(step=lambda: attend(given)),
        qkv_format="bhsd",
    )


def test_who_changes_the_values_in_place_or_returns_them_is_wrong() -> None:
    problem = testing.problem(shared_kv=True, head_dim_v=32)

    def scaled(given: Inputs) -> Tensor:
        given.v.mul_(0.5)
        return F.scaled_dot_product_attention(given.q, given.k, given.v)

    assert testing.verdict(mine(scaled), problem) == "the inputs were changed by the call"
    assert testing.verdict(mine(lambda given: given.v), problem) == "the output is a view of an input"


def test_a_gradient_of_v_is_one_output_too_many() -> None:
    problem, made, _ = make(f"seqlen=4 {HEADS} direction=backward")
    found = verify.inspect((made.q * 1, made.k * 1, made.v * 1), problem, made, "cpu", "bhsd")
    assert found == "3 outputs, expected 2: dq, dk"
