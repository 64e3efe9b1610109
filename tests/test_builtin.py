"""What the built-in implementations compute, against attention written out in float64."""

import csv
import dataclasses
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import cycle, product
from pathlib import Path
from typing import Any

import pytest
import torch
from drawn_masks import drawn
from torch.nn.attention.flex_attention import create_block_mask
from torch.utils._python_dispatch import TorchDispatchMode

from attnbench import Device, Direction, Implementation, Inputs, Prepared, Problem
from attnbench.builtin import (
    numpy_mechanisms,
    numpy_textbook,
    torch_bias,
    torch_compile,
    torch_eager,
    torch_mechanisms,
    torch_mha,
    torch_sdpa,
    torch_varlen,
)
from attnbench.cli import main

MODULES = (
    *(numpy_mechanisms, numpy_textbook, torch_bias, torch_compile, torch_eager, torch_mechanisms),
    *(torch_mha, torch_sdpa, torch_varlen),
)
IMPLEMENTATIONS = {
    implementation.name: implementation
    for module in MODULES
    for implementation in module.attnbench_implementations()
}
# Inductor's first import runs code of torch's that is deprecated in torch.
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
]
GENERAL = ("numpy", "torch-naive", "torch-chunked", "torch-sdpa", "torch-sdpa-math", "torch-sdpa-flash")
"""Those that compute nearly every problem of the grid, and at once; the others have problems of their own."""
COMPILED = ("torch-compile-naive", "torch-flex")
CPU = Device(kind="cpu")
DTYPES = ("float64", "float32", "float16", "bfloat16")
MASKS = (
    "full",
    "causal",
    "causal-top-left",
    "window:left=3:right=1",
    "chunked:size=4*causal",
    "dilated:step=2",
    "prefix-lm:prefix=3",
    "block-causal:size=4",
    "global-window:tokens=1:left=1:right=0",
    "tree:width=2:depth=1",
    "block-sparse:density=0.5:block=4",
    "document:count=3*causal",
    "key-padding:share=0.4",
    "left-padding:share=0.3*causal",
)
SHAPES = (
    "batch=2 seqlen=9 heads=3 head_dim=8",
    "seqlen_q=7 seqlen_kv=18 heads_q=6 heads_kv=2 head_dim=5",
    "seqlen_q=13 seqlen_kv=6 heads_q=4 heads_kv=1 head_dim=8 scale=0.2",  # causal: seven rows see no key
    "batch=2 seqlen_q=8 seqlen_kv=12 heads_q=4 heads_kv=2 head_dim=8 head_dim_v=12",
    "seqlen_q=1 seqlen_kv=10 heads_q=2 heads_kv=1 head_dim=16",
)
TILED = "seqlen_q=290 seqlen_kv=600 heads_q=2 heads_kv=1 head_dim=8"  # three tiles of torch-chunked


@pytest.fixture(autouse=True, scope="module")
def _own_caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compilers begin with empty caches, as in a run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor")))
        yield


def formed(inputs: Inputs, form: str) -> Inputs:
    """Inputs in bhsd -> contiguous in `form`."""
    if form == "bhsd":
        return inputs
    q, k, v, dout = (
        None if t is None else t.transpose(1, 2).contiguous()
        for t in (inputs.q, inputs.k, inputs.v, inputs.dout)
    )
    return Inputs(q=q, k=k, v=v, dout=dout)


def make_inputs(problem: Problem, device: str = "cpu", seed: int = 0, form: str = "bhsd") -> Inputs:
    """N(0, 1) inputs, dout among them in every direction."""
    generator = torch.Generator().manual_seed(seed)
    (sq, sk), dtype = problem.sequences[0], getattr(torch, problem.dtype.value)

    def tensor(heads: int, tokens: int, dim: int) -> torch.Tensor:
        made = torch.randn(problem.batch, heads, tokens, dim, generator=generator, dtype=torch.float64)
        return made.to(device=device, dtype=dtype)

    inputs = Inputs(
        q=tensor(problem.heads_q, sq, problem.head_dim),
        k=tensor(problem.heads_kv, sk, problem.head_dim),
        v=tensor(problem.heads_kv, sk, problem.head_dim_v),
        dout=tensor(problem.heads_q, sq, problem.head_dim_v),
    )
    return formed(inputs, form)


cells = cache(drawn)
"""The mask of a problem, drawn cell by cell: boolean [B, Sq, Sk]."""


def weights(problem: Problem, q: torch.Tensor, k: torch.Tensor, head: int) -> torch.Tensor:
    """softmax(scores) [B, Sq, Sk] of one query head, 0 in rows that see no key."""
    allowed = cells(problem).to(q.device)
    s = q[:, head] @ k[:, head * problem.heads_kv // problem.heads_q].mT * problem.softmax_scale
    for modifier in problem.modifiers:
        s = torch.tanh(s / modifier.cap) * modifier.cap
    return torch.where(allowed, s, -torch.inf).softmax(-1).where(allowed.any(-1, keepdim=True), 0)


def plain(problem: Problem, inputs: Inputs, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """out, dq, dk, dv of the plain chain in `dtype`, a head at a time."""
    group = problem.heads_q // problem.heads_kv
    q, k, v = (t.detach().to(dtype).requires_grad_() for t in (inputs.q, inputs.k, inputs.v))
    out = torch.stack(
        [weights(problem, q, k, head) @ v[:, head // group] for head in range(problem.heads_q)], dim=1
    )
    assert inputs.dout is not None
    return (out.detach(), *torch.autograd.grad(out, (q, k, v), inputs.dout.to(dtype)))


def sizes_before_cancelling(problem: Problem, inputs: Inputs) -> tuple[float, float]:
    """Norms of dq and dk with dp + delta for dp - delta, all in absolute values: what is rounded to get them.

    A query that sees one key, or a sum in which the differences cancel, has a gradient much smaller than that.
    """
    group = problem.heads_q // problem.heads_kv
    q, k, v, dout = (t.double() for t in (inputs.q, inputs.k, inputs.v, inputs.dout) if t is not None)
    dq, dk = torch.zeros_like(q), torch.zeros_like(k)
    for head in range(problem.heads_q):
        p, do, vs = weights(problem, q, k, head), dout[:, head].abs(), v[:, head // group].abs()
        ds = p * (do @ vs.mT + (do * (p @ vs)).sum(-1, keepdim=True)) * problem.softmax_scale
        dq[:, head] = ds @ k[:, head // group].abs()
        dk[:, head // group] += ds.mT @ q[:, head].abs()
    return float(dq.norm()), float(dk.norm())


@cache
def expected(problem: Problem, device: str, seed: int) -> tuple[tuple[torch.Tensor, float], ...]:
    """For out, dq, dk and dv: the oracle's float64 tensor and the error allowed (L2 norm of the difference).

    Allowed is three times the error of the plain chain in the problem's own dtype, the factor of
    verification. That chain may be right by luck, so its error is taken as at least one rounding of what
    it adds up: half an epsilon, and 16 for float64, where chain and oracle are the same computation.
    """
    inputs = make_inputs(problem, device, seed)
    oracle = plain(problem, inputs, torch.float64)
    own = plain(problem, inputs, inputs.q.dtype)
    rounding = torch.finfo(inputs.q.dtype).eps * (16 if inputs.q.dtype == torch.float64 else 0.5)
    sizes = (float(oracle[0].norm()), *sizes_before_cancelling(problem, inputs), float(oracle[3].norm()))
    return tuple(
        (o, 3 * max(error(y, o), rounding * size)) for o, y, size in zip(oracle, own, sizes, strict=True)
    )


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.double() - want).norm())


def prepared(implementation: Implementation, problem: Problem, inputs: Inputs) -> Prepared:
    made = implementation.prepare(problem, inputs)
    return made if isinstance(made, Prepared) else Prepared(step=made)


def run(name: str, problem: Problem, device: str = "cpu") -> Prepared:
    """Prepares the implementation, and asserts that its answer is right."""
    implementation = IMPLEMENTATIONS[name]
    ready = prepared(implementation, problem, make_inputs(problem, device, form=implementation.qkv_format))
    found = outputs(ready)
    if implementation.qkv_format == "bshd":
        found = tuple(tensor.transpose(1, 2) for tensor in found)
    assert_right(found, problem, device)
    return ready


def outputs(ready: Prepared) -> tuple[torch.Tensor, ...]:
    raw = ready.read(ready.step())
    return raw if isinstance(raw, tuple) else (raw,)


def assert_right(got: tuple[torch.Tensor, ...], problem: Problem, device: str = "cpu", seed: int = 0) -> None:
    """`got` is what the problem's direction asks for, within the error allowed and zero where it must be."""
    forward = dataclasses.replace(problem, direction=Direction.FORWARD)
    all_four = dict(zip(("out", "dq", "dk", "dv"), expected(forward, device, seed), strict=True))
    names = {"forward": ["out"], "backward": ["dq", "dk", "dv"], "forward_backward": [*all_four]}
    for name, tensor in zip(names[problem.direction], got, strict=True):
        want, allowed = all_four[name]
        assert tensor.shape == want.shape, name
        assert tensor.dtype == getattr(torch, problem.dtype.value), name
        assert tensor.device == want.device, name
        assert error(tensor, want) <= allowed, f"{name}: {error(tensor, want):.2g} > {allowed:.2g}"
        unseen = ~cells(forward).any(-1 if name in ("out", "dq") else -2)  # [B, S], queries or keys alone
        rows = tensor.transpose(1, 2)[unseen.to(tensor.device)]
        assert not rows.any(), f"{name}: a row that must be zero is not"


def sweep(name: str, dtype: str, device: Device) -> tuple[int, int]:
    """Runs all that the implementation says it can do of a grid; returns how many it ran and how many not."""
    implementation, ran, refused = IMPLEMENTATIONS[name], 0, 0
    directions = ("forward_backward", "forward", "backward")
    grid = [*product(SHAPES, MASKS, ("none", "softcap:cap=1.5"), directions[:1])]
    grid += product(SHAPES[2:3], MASKS[:4], ("none", "softcap:cap=1.5"), directions[1:])
    grid += product((TILED,), ("full", "causal", "window:left=40:right=0"), ("none",), directions[:1])
    for shape, mask, modifiers, direction in grid:
        text = f"{shape} dtype={dtype} mask={mask} modifiers={modifiers} direction={direction}"
        problem = Problem.parse(text)
        if implementation.why_not(problem, device):
            refused += 1
            continue
        run(name, problem, device.kind)
        ran += 1
    return ran, refused


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", GENERAL)
def test_what_the_capabilities_allow_runs_and_is_right(name: str, dtype: str) -> None:
    ran, refused = sweep(name, dtype, CPU)
    softcap, unequal = 5 * 14 + 4 * 2, 14  # cells of the grid with a softcap; others with Dv != D
    lost = softcap * ("sdpa" in name) + unequal * (name == "torch-sdpa-flash")
    whole = 159
    if name == "numpy" and dtype not in ("float32", "float64"):
        lost = whole
    assert (ran, refused) == (whole - lost, lost)


def texts(shapes: Iterable[str], masks: Iterable[str], more: Iterable[str]) -> list[str]:
    """A problem for each shape and mask; `more` is dealt out in turn."""
    return [f"{s} mask={m} {end}" for (s, m), end in zip(product(shapes, masks), cycle(more), strict=False)]


PICKED = {
    "torch-mha": texts(
        (
            SHAPES[0],
            "seqlen_q=7 seqlen_kv=18 heads=3 head_dim=5",
            "seqlen_q=13 seqlen_kv=6 heads=2 head_dim=8",
        ),
        MASKS[:-3],
        [f"dtype={d} direction={way}" for way in ("forward_backward", "backward", "forward") for d in DTYPES],
    ),
    "torch-flex-eager": texts(
        SHAPES,
        MASKS[:5] + MASKS[-5:],
        [f"dtype={d} modifiers={m}" for m in ("none", "softcap:cap=1.5") for d in DTYPES],
    ),
    "torch-flex": [
        f"{SHAPES[1]} dtype=bfloat16 mask=causal",
        f"{SHAPES[2]} dtype=float32 mask=chunked:size=4*causal modifiers=softcap:cap=1.5",
        f"{SHAPES[3]} dtype=float16",
        f"{TILED} dtype=float32 mask=window:left=40:right=0",
        f"batch=3 {TILED} dtype=float32 mask=document:count=5*causal",
        f"batch=2 {TILED} dtype=bfloat16 mask=key-padding:share=0.4*block-sparse:density=0.3:block=50",
        f"batch=2 {SHAPES[2]} dtype=float32 mask=tree:width=2:depth=2*left-padding:share=0.3",
    ],
    "torch-compile-naive": [
        f"{SHAPES[0]} dtype=float32 mask=causal direction=backward",
        f"{SHAPES[1]} dtype=bfloat16 mask=causal direction=forward_backward",
        f"{SHAPES[2]} dtype=float64 mask=causal modifiers=softcap:cap=1.5",
        f"{SHAPES[3]} dtype=float16 mask=window:left=3:right=1",
        f"{SHAPES[3]} dtype=float32 mask=document:count=3*causal",
    ],
}
"""Problems for those that the whole grid would take too long, or that refuse most of it."""


def _picked() -> list[Any]:
    """Compiling takes seconds: every second of such problems is left to `.ci/full`."""
    compiled = ("torch-flex", "torch-compile-naive")
    return [
        pytest.param(name, text, marks=[pytest.mark.full] * (name in compiled and at % 2))
        for name, several in PICKED.items()
        for at, text in enumerate(several)
    ]


@pytest.mark.parametrize(("name", "text"), _picked())
def test_picked_problems_are_right(name: str, text: str) -> None:
    problem = Problem.parse(text)
    assert IMPLEMENTATIONS[name].why_not(problem, CPU) is None
    run(name, problem)


@pytest.mark.parametrize("name", [*GENERAL, "torch-flex-eager", "torch-mha"])
@pytest.mark.parametrize(
    ("mask", "sq", "sk", "picture"),
    [
        ("causal", 3, 5, "11100 11110 11111"),
        ("causal-top-left", 3, 5, "10000 11000 11100"),
        ("causal", 5, 3, "000 000 100 110 111"),
        ("causal-top-left", 5, 3, "100 110 111 111 111"),
        ("window:left=1:right=0", 3, 5, "01100 00110 00011"),
        ("causal*chunked:size=2", 3, 5, "00100 00110 00001"),
        ("tree:width=2:depth=1", 4, 5, "11000 11100 11110 11101"),
        ("document:count=5*causal", 5, 5, "10000 01000 00100 00010 00001"),
        ("key-padding:share=0.4", 3, 5, "11100 11100 11100"),
        ("left-padding:share=0.4*causal", 5, 5, "00000 00000 00100 00110 00111"),
    ],
)
def test_masks_look_as_their_names_say(name: str, mask: str, sq: int, sk: int, picture: str) -> None:
    """Equal scores and v = identity show each row's keys, shared equally."""
    problem = Problem.parse(f"seqlen_q={sq} seqlen_kv={sk} heads=1 head_dim={sk} dtype=float32 mask={mask}")
    inputs = Inputs(
        q=torch.zeros(1, 1, sq, sk), k=torch.randn(1, 1, sk, sk), v=torch.eye(sk).expand(1, 1, sk, sk)
    )
    form = IMPLEMENTATIONS[name].qkv_format
    (out,) = outputs(prepared(IMPLEMENTATIONS[name], problem, formed(inputs, form)))
    rows = ["".join("1" if weight else "0" for weight in row) for row in out.view(sq, sk).tolist()]
    assert " ".join(rows) == picture


@pytest.mark.parametrize("direction", ["forward", "backward", "forward_backward"])
@pytest.mark.parametrize("name", GENERAL)
def test_values_written_into_the_same_inputs_are_seen(name: str, direction: str) -> None:
    problem = Problem.parse(f"{SHAPES[1]} dtype=float32 mask=causal direction={direction}")
    inputs, new = make_inputs(problem), make_inputs(problem, seed=1)
    ready = prepared(IMPLEMENTATIONS[name], problem, inputs)
    first = tuple(tensor.clone() for tensor in outputs(ready))
    for field in ("q", "k", "v", "dout"):
        getattr(inputs, field).copy_(getattr(new, field))
    if ready.refresh:
        ready.refresh()
    second = outputs(ready)
    assert_right(first, problem)
    assert_right(second, problem, seed=1)
    for field in ("q", "k", "v", "dout"):
        assert torch.equal(getattr(inputs, field), getattr(new, field)), f"{field} was changed"


@pytest.mark.parametrize("name", GENERAL)
def test_no_step_hands_out_the_memory_of_an_earlier_answer(name: str) -> None:
    problem = Problem.parse(f"{SHAPES[1]} dtype=float32 mask=causal direction=forward_backward")
    ready = prepared(IMPLEMENTATIONS[name], problem, make_inputs(problem))
    first = outputs(ready)
    kept = [tensor.clone() for tensor in first]
    for tensor in outputs(ready):
        tensor.fill_(float("nan"))
    assert all(torch.equal(a, b) for a, b in zip(first, kept, strict=True))


def test_logits_too_large_for_exp_do_no_harm() -> None:
    problem = Problem.parse("seqlen=16 heads=1 head_dim=8 dtype=float32 scale=100 mask=causal")
    for name in (*GENERAL, "torch-flex-eager"):
        run(name, problem)


class Seen(TorchDispatchMode):
    """The operations that torch dispatches, and the largest number of elements that one returns."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.sizes: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.add(func.overloadpacket.__name__)
        out = func(*args, **(kwargs or {}))
        self.sizes |= {t.numel() for t in (out if isinstance(out, tuple) else (out,)) if torch.is_tensor(t)}
        return out


@pytest.mark.parametrize("name", ["torch-naive", "torch-chunked"])
def test_keys_are_not_copied_once_per_query_head(name: str) -> None:
    """With K of 4 x 300 x 7 elements, a copy per query head would be 5 times that."""
    text = (
        "seqlen_q=11 seqlen_kv=300 heads_q=20 heads_kv=4 head_dim=7 dtype=float32 direction=forward_backward"
    )
    problem = Problem.parse(text)
    ready = prepared(IMPLEMENTATIONS[name], problem, make_inputs(problem))
    with Seen() as seen:
        ready.step()
    assert 4 * 300 * 7 in seen.sizes  # dk: the mode sees what happens inside
    assert 20 * 300 * 7 not in seen.sizes


@pytest.mark.parametrize("mask", ["full", "causal", "window:left=100:right=0*dilated:step=3"])
def test_chunked_never_holds_a_whole_row_of_scores(mask: str) -> None:
    sq, sk = 700, 1500
    text = f"seqlen_q={sq} seqlen_kv={sk} heads=1 head_dim=4 dtype=float32 mask={mask} direction=forward_backward"
    problem = Problem.parse(text)
    inputs = make_inputs(problem)
    with Seen() as seen:
        outputs(prepared(IMPLEMENTATIONS["torch-chunked"], problem, inputs))
    assert sq * 4 in seen.sizes
    assert max(seen.sizes) <= sq * torch_eager.TILE


def test_chunked_skips_what_the_mask_rules_out() -> None:
    """Of 4 tiles of keys, a causal mask leaves 4, 3, 2 and 1 quarters of the queries."""
    n = 4 * torch_eager.TILE
    problem = Problem.parse(f"seqlen={n} heads=1 head_dim=4 dtype=float32 mask=causal")
    ready = prepared(IMPLEMENTATIONS["torch-chunked"], problem, make_inputs(problem))
    with Seen() as seen:
        ready.step()
    assert {rows * torch_eager.TILE**2 for rows in (1, 2, 3, 4)} <= seen.sizes


@pytest.mark.parametrize("direction", ["forward", "forward_backward"])
@pytest.mark.parametrize(
    ("name", "kernel"), [("torch-sdpa", "flash"), ("torch-sdpa-math", "math"), ("torch-sdpa-flash", "flash")]
)
def test_the_kernel_named_is_the_kernel_run(name: str, kernel: str, direction: str) -> None:
    problem = Problem.parse(f"{SHAPES[0]} dtype=bfloat16 mask=causal direction={direction}")
    ready = prepared(IMPLEMENTATIONS[name], problem, make_inputs(problem))
    with Seen() as seen:
        ready.step()
    assert ready.kernel == kernel
    assert ("_scaled_dot_product_flash_attention_for_cpu" in seen.names) == (kernel == "flash")


def test_default_dispatch_says_when_it_is_not_flash() -> None:
    problem = Problem.parse(f"{SHAPES[3]} dtype=float32")
    ready = prepared(IMPLEMENTATIONS["torch-sdpa"], problem, make_inputs(problem))
    assert ready.kernel == "math"  # flash takes no Dv != D


@pytest.mark.filterwarnings("ignore:Flash attention")  # torch's reasons, as warnings
@pytest.mark.parametrize("name", ["torch-sdpa-efficient", "torch-sdpa-cudnn"])
def test_a_kernel_that_is_not_there_is_not_replaced(name: str) -> None:
    problem = Problem.parse(f"{SHAPES[0]} dtype=float16")
    assert IMPLEMENTATIONS[name].why_not(problem, CPU) == "no cpu"
    with pytest.raises(RuntimeError, match=r"No (available kernel|viable backend)"):
        prepared(IMPLEMENTATIONS[name], problem, make_inputs(problem)).step()


@pytest.mark.filterwarnings("ignore:Flash attention")  # torch's reasons, as warnings
def test_flash_raises_rather_than_become_another_kernel() -> None:
    problem = Problem.parse(f"{SHAPES[3]} dtype=float32")
    assert IMPLEMENTATIONS["torch-sdpa-flash"].why_not(problem, CPU) == "no head_dim_v other than head_dim"
    ready = prepared(IMPLEMENTATIONS["torch-sdpa-flash"], problem, make_inputs(problem))
    with pytest.raises(RuntimeError, match="No available kernel"):
        ready.step()
    assert torch.backends.cuda.math_sdp_enabled()


@pytest.mark.parametrize("name", ["torch-sdpa-math", "torch-sdpa-flash"])
def test_other_users_of_sdpa_keep_their_switches(name: str) -> None:
    problem = Problem.parse(f"{SHAPES[0]} dtype=float32")
    before = torch.nn.attention._cur_sdpa_kernel_backends()
    outputs(prepared(IMPLEMENTATIONS[name], problem, make_inputs(problem)))
    assert torch.nn.attention._cur_sdpa_kernel_backends() == before


@pytest.mark.parametrize(
    ("text", "capability", "reason"),
    [
        ("seqlen=8 heads=1 head_dim=64 dtype=float32", (9, 0), "flash on CUDA takes no float32"),
        ("seqlen=8 heads=1 head_dim=257 dtype=float16", (9, 0), "no head_dim 257: at most 256"),
        ("seqlen=8 heads=1 head_dim=64 dtype=float16 mask=window:left=2", (9, 0), "no explicit mask"),
        ("seqlen_q=8 seqlen_kv=4 heads=1 head_dim=64 dtype=float16 mask=causal", (9, 0), "with Sq > Sk"),
        ("seqlen_q=4 seqlen_kv=8 heads=1 head_dim=64 dtype=float16 mask=causal", (9, 0), None),
        (
            "seqlen_q=4 seqlen_kv=8 heads=1 head_dim=64 dtype=float16 mask=causal-top-left",
            (9, 0),
            "is_causal",
        ),
        ("seqlen_q=1 seqlen_kv=8 heads=1 head_dim=64 dtype=float16 mask=causal", (9, 0), None),
        ("seqlen=8 heads=1 head_dim=64 dtype=float16", (7, 5), "needs compute capability 8.0"),
        (
            "seqlen=8 heads=1 head_dim=200 dtype=float16 direction=backward",
            (8, 9),
            "no gradient for head_dim 200",
        ),
        ("seqlen=8 heads=1 head_dim=200 dtype=float16 direction=backward", (9, 0), None),
    ],
)
def test_flash_on_cuda_says_why_not(text: str, capability: tuple[int, int], reason: str | None) -> None:
    device = Device(kind="cuda", name="a GPU", compute_capability=capability)
    why = IMPLEMENTATIONS["torch-sdpa-flash"].why_not(Problem.parse(text), device)
    assert why is None if reason is None else reason in (why or "")


HALF = "heads=2 head_dim=64 dtype=float16"


@pytest.mark.parametrize(
    ("name", "text", "capability", "reason"),
    [
        ("efficient", "seqlen=8 heads=1 head_dim=12 dtype=float32", (8, 0), None),
        ("efficient", "seqlen=8 heads=1 head_dim=6 dtype=float32", (8, 0), "only multiples of 4"),
        ("efficient", "seqlen=8 heads=1 head_dim=6 dtype=float32", (7, 5), None),
        ("efficient", "seqlen=8 heads=1 head_dim=16 head_dim_v=12 dtype=float16", (9, 0), "dimension 12"),
        ("efficient", "seqlen=8 heads=1 head_dim=64 dtype=float64", (9, 0), "no float64"),
        ("efficient", "seqlen=8 heads=1 head_dim=64 dtype=bfloat16", (7, 5), "no bfloat16 before"),
        ("efficient", f"seqlen=8 heads_q=4 heads_kv=2 {HALF[8:]}", (9, 0), "no grouped heads"),
        ("efficient", f"seqlen_q=9 seqlen_kv=4 mask=window:left=2 {HALF}", (9, 0), None),
        ("efficient", f"requests=2q0s4 {HALF}", (9, 0), "no empty sequences"),
        ("cudnn", "seqlen=8 heads=1 head_dim=64 dtype=float32", (9, 0), "no float32"),
        ("cudnn", "seqlen=8 heads=1 head_dim=136 dtype=float16", (9, 0), "only 8 to 128"),
        ("cudnn", "seqlen=8 heads=1 head_dim=12 dtype=float16", (9, 0), "only multiples of 8"),
        ("cudnn", f"seqlen_q=8 seqlen_kv=1 {HALF}", (9, 0), "no single key"),
        ("cudnn", f"requests=2q0s4 {HALF}", (9, 0), "no empty sequences"),
        ("cudnn", f"seqlen=8 {HALF}", (7, 5), "needs compute capability 8.0"),
        ("cudnn", f"seqlen_q=8 seqlen_kv=2 mask=causal-top-left {HALF}", (9, 0), None),
    ],
)
def test_other_kernels_of_sdpa_say_why_not(
    name: str, text: str, capability: tuple[int, int], reason: str | None
) -> None:
    device = Device(kind="cuda", name="a GPU", compute_capability=capability)
    why = IMPLEMENTATIONS[f"torch-sdpa-{name}"].why_not(Problem.parse(text), device)
    assert why is None if reason is None else reason in (why or "")


def test_listing_the_built_ins_imports_neither_torch_nor_numpy() -> None:
    names = [module.__name__.rpartition(".")[2] for module in MODULES]
    code = (
        "import sys\n"
        f"from attnbench.builtin import {', '.join(names)}\n"
        f"for m in ({', '.join(names)}): list(m.attnbench_implementations())\n"
        "print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("sq", "sk"), [(3, 0), (0, 3)])
def test_empty_sequences_give_zeros_or_a_reason(sq: int, sk: int) -> None:
    text = f"requests=2q{sq}s{sk} heads_q=4 heads_kv=2 head_dim=4 dtype=float32 mask=causal direction=forward_backward"
    problem = Problem.parse(text)
    for implementation in IMPLEMENTATIONS.values():
        if implementation.why_not(problem, CPU):
            assert implementation.name not in GENERAL or implementation.name == "torch-sdpa-flash"
            continue
        inputs = make_inputs(problem)
        found = outputs(prepared(implementation, problem, inputs))
        for tensor, like in zip(found, (inputs.q, inputs.q, inputs.k, inputs.v), strict=True):
            assert torch.equal(tensor, torch.zeros_like(like)), implementation.name


def operations(call: Callable[[], object]) -> set[str]:
    """What torch's profiler sees of a call, compiled code too, to which `Seen` would make dynamo blind."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profile:
        call()
    return {event.key for event in profile.key_averages()}


def test_compiled_flex_is_one_kernel_of_inductor() -> None:
    problem = Problem.parse(f"{SHAPES[1]} dtype=float32 mask=causal")
    ready = prepared(IMPLEMENTATIONS["torch-flex"], problem, make_inputs(problem))
    seen = operations(ready.step)
    assert ready.kernel == "inductor: C++ template"
    assert any("CompiledFxGraph" in name for name in seen)
    assert not seen & {"aten::bmm", "aten::matmul", "aten::_softmax", "aten::softmax"}


@pytest.mark.parametrize(
    ("mask", "kernel"), [("full", "inductor: rewritten to sdpa"), ("causal", "inductor")]
)
def test_compiled_naive_says_where_inductor_has_put_sdpa(mask: str, kernel: str) -> None:
    problem = Problem.parse(f"{SHAPES[0]} dtype=float32 mask={mask}")
    for _ in range(2):  # the second time from Inductor's cache
        torch_compile._program.cache_clear()
        ready = prepared(IMPLEMENTATIONS["torch-compile-naive"], problem, make_inputs(problem))
        seen = operations(ready.step)
        assert ready.kernel == kernel
        assert any("CompiledFxGraph" in name for name in seen)
        assert ("aten::_scaled_dot_product_flash_attention_for_cpu" in seen) == (mask == "full")
        assert "aten::_softmax" not in seen


COUNTED = """
import importlib, os, sys
import torch
def seen():
    me = os.getpid()
    return len(os.listdir("/proc/self/task")), open(f"/proc/self/task/{me}/children").read()
before = seen()
for name in sys.argv[1:]:
    importlib.import_module(name)
assert seen() == before, (before, seen())
"""


def test_what_is_loaded_ahead_starts_no_thread_and_no_process() -> None:
    names = {module for one in IMPLEMENTATIONS.values() for module in one.preload}
    assert names
    subprocess.run([sys.executable, "-W", "ignore", "-c", COUNTED, *sorted(names)], check=True)


@pytest.mark.parametrize("name", COMPILED)
def test_copies_of_the_inputs_share_what_is_compiled(name: str) -> None:
    problem = Problem.parse(f"{SHAPES[0]} dtype=float32 mask=causal")
    steps = []
    for _ in range(10):  # dynamo would give up after 8
        steps.append(prepared(IMPLEMENTATIONS[name], problem, make_inputs(problem)))
        if len(steps) == 1:
            torch._dynamo.utils.counters.clear()
    with torch.compiler.set_stance("fail_on_recompile"):
        first, *others = (step.read(step.step()) for step in steps)
    assert not torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert all(torch.equal(first, other) for other in others)
    assert len({out.data_ptr() for out in (first, *others)}) == 10


@pytest.mark.parametrize(
    "mask",
    [
        *(
            "causal",
            "causal-top-left",
            "window:left=100:right=0",
            "window:left=0:right=130",
            "chunked:size=96",
        ),
        *("dilated:step=3", "prefix-lm:prefix=140", "block-causal:size=64", "causal*chunked:size=200"),
        *("global-window:tokens=5:left=30:right=2", "window:right=3"),
    ],
)
@pytest.mark.parametrize(("sq", "sk"), [(256, 256), (200, 331), (1, 300), (300, 1), (130, 520), (127, 128)])
def test_a_block_mask_made_by_rows_is_that_of_torch(
    mask: str, sq: int, sk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_compile, "_KEYS", 256)
    problem = Problem.parse(f"seqlen_q={sq} seqlen_kv={sk} heads=1 head_dim=8 dtype=float32 mask={mask}")

    def allowed(b: Any, h: Any, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        seen: torch.Tensor = problem.mask.allowed(i, j, sq, sk)
        return seen

    ours = torch_compile._block_mask(problem, allowed, torch.device("cpu"))
    theirs = create_block_mask(allowed, None, None, sq, sk, "cpu")
    assert ours.seq_lengths == theirs.seq_lengths
    assert ours.BLOCK_SIZE == theirs.BLOCK_SIZE
    for kind in ("kv", "full_kv", "q", "full_q"):
        for name in (f"{kind}_num_blocks", f"{kind}_indices"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
            assert getattr(ours, name).dtype == getattr(theirs, name).dtype, name


@pytest.mark.parametrize(
    "mask",
    [
        *(
            "document:count=4",
            "document:count=9:seed=1*causal",
            "key-padding:share=0.4",
            "left-padding:share=0.4",
        ),
        *(
            "tree:width=3:depth=4",
            "block-sparse:density=0.3:block=48",
            "block-sparse:density=0.2:block=128*causal",
        ),
        "left-padding:share=0.3*window:left=100:right=0*document:count=2",
    ],
)
@pytest.mark.parametrize(("sq", "sk"), [(256, 256), (200, 331), (1, 300), (300, 140)])
def test_flex_sees_of_every_seeded_mask_what_is_drawn(mask: str, sq: int, sk: int) -> None:
    text = f"batch=3 seqlen_q={sq} seqlen_kv={sk} heads=1 head_dim=8 dtype=float32 mask={mask}"
    problem = Problem.parse(text)
    ours = torch_compile._flex(problem, torch.device("cpu")).keywords["block_mask"]
    b, i, j = torch.arange(3)[:, None, None], torch.arange(sq)[:, None], torch.arange(sk)
    assert torch.equal(ours.mask_mod(b, None, i, j).expand(3, sq, sk), cells(problem))
    theirs = create_block_mask(ours.mask_mod, 3 if problem.mask.by_member else None, None, sq, sk, "cpu")
    for kind in ("kv", "full_kv", "q", "full_q"):
        for name in (f"{kind}_num_blocks", f"{kind}_indices"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), name


def test_the_ninth_shape_is_compiled_like_the_first() -> None:
    for length in range(16, 27):  # dynamo gives up after 8 of one function
        problem = Problem.parse(f"seqlen={length} heads=2 head_dim=8 dtype=float32")
        ready = prepared(IMPLEMENTATIONS["torch-compile-naive"], problem, make_inputs(problem))
        assert any("CompiledFxGraph" in name for name in operations(ready.step))


def test_what_would_run_eagerly_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = (Problem.parse(f"seqlen={n} heads=2 head_dim=8 dtype=float32") for n in (16, 17))
    naive = IMPLEMENTATIONS["torch-compile-naive"]
    with (
        torch.compiler.set_stance("force_eager"),
        pytest.raises(RuntimeError, match="compiled nothing"),
    ):
        prepared(naive, one, make_inputs(one))
    prepared(naive, one, make_inputs(one))
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)
    with (
        torch._dynamo.config.patch(recompile_limit=1),
        pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit),
    ):
        prepared(naive, two, make_inputs(two))


@pytest.mark.parametrize("name", COMPILED)
def test_without_a_compiler_they_are_unavailable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = IMPLEMENTATIONS[name]
    assert found.unavailable(CPU) is None
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert found.unavailable(CPU) == "needs a C++ compiler: there is no `no-such-compiler`"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert found.unavailable(Device(kind="cuda")) == "needs triton, which is not installed"
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")
    assert found.unavailable(CPU) == "TORCH_COMPILE_DISABLE is set"


@pytest.mark.parametrize(
    ("name", "text", "device", "reason"),
    [
        ("torch-flex", "dtype=float64", "cpu", "no float64"),
        ("torch-flex", "dtype=float32 direction=backward", "cpu", "no backward pass on a cpu"),
        ("torch-flex-eager", "dtype=float64 direction=forward_backward", "cpu", "no backward pass on a cpu"),
        ("torch-flex", "dtype=float16 direction=backward", "cuda", None),
        ("torch-flex", "dtype=float16 head_dim_v=8", "cuda", "no head dimension 8"),
        ("torch-mha", "dtype=float32 scale=0.5", "cpu", "no scale"),
        ("torch-varlen", "dtype=float16", "cpu", "no cpu"),
        ("torch-varlen", "dtype=float16 mask=window:left=3", "cuda", None),
        ("torch-varlen", "dtype=float16 mask=dilated:step=2", "cuda", "no dilated mask"),
    ],
)
def test_flex_mha_and_varlen_say_why_not(name: str, text: str, device: str, reason: str | None) -> None:
    problem = Problem.parse(f"seqlen=8 heads=2 head_dim=32 {text}")
    why = IMPLEMENTATIONS[name].why_not(problem, Device(kind=device))
    assert why is None if reason is None else reason in (why or "")


def test_varlen_has_no_mask_for_more_queries_than_keys() -> None:
    problem = Problem.parse("seqlen_q=9 seqlen_kv=8 heads=2 head_dim=32 dtype=float16 mask=causal")
    why = IMPLEMENTATIONS["torch-varlen"].why_not(problem, Device(kind="cuda"))
    assert why == "no causal mask with Sq > Sk"


@pytest.mark.parametrize(
    "mask", ["full", "causal", "window:left=3", "window:right=1", "window:left=2:right=0"]
)
def test_varlen_packs_the_batch(mask: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for torch's function, by its documentation, on a CPU."""
    problem = Problem.parse(
        f"batch=3 seqlen_q=7 seqlen_kv=9 heads_q=4 heads_kv=2 head_dim=8 scale=0.3 dtype=float32 mask={mask}"
    )

    def stand_in(
        q: Any, k: Any, v: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: int, max_k: int,
        *, scale: float, window_size: tuple[int, int], enable_gqa: bool,
    ) -> Any:  # fmt: skip
        assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
        assert (max_q, max_k, enable_gqa) == (7, 9, True)
        left, right = (9 if side < 0 else side for side in window_size)
        p, j = torch.arange(7)[:, None] + 2, torch.arange(9)
        seen = (j >= p - left) & (j <= p + right)
        members = []
        for at, to in zip(cu_seq_q.tolist(), cu_seq_q.tolist()[1:], strict=False):
            assert to - at == 7
            one = slice(at // 7 * 9, to // 7 * 9)
            assert one.stop in cu_seq_k.tolist()
            tensors = (t.transpose(0, 1) for t in (q[at:to], k[one], v[one]))
            out = torch.nn.functional.scaled_dot_product_attention(
                *tensors, attn_mask=seen, scale=scale, enable_gqa=True
            )
            members.append(out.transpose(0, 1))
        return torch.cat(members)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", stand_in)
    found = IMPLEMENTATIONS["torch-varlen"]
    ready = prepared(found, problem, make_inputs(problem, form="bshd"))
    (out,) = outputs(ready)
    assert ready.kernel == "flash"
    assert_right((out.transpose(1, 2),), problem)


def test_a_compiled_job_runs_in_isolation_and_leaves_no_process(tmp_path: Path) -> None:
    suite = tmp_path / "suite.yaml"
    suite.write_text(
        "question: q\nimplementations: [torch-compile-naive]\n"
        "problems: {seqlen: 64, heads: 2, head_dim: 16}\n"
        "measure: {preset: quick, launches: 1, budget: 0.05s}\n"
    )
    assert main(["run", str(suite), "-o", str(tmp_path / "run")]) == 0
    (row,) = csv.DictReader((tmp_path / "run/results.csv").read_text().splitlines())
    assert (row["status"], row["reason"], row["kernel"]) == ("ok", "", "inductor: rewritten to sdpa")
