"""torch's `scaled_dot_product_attention`: as it dispatches by itself, and held to one of its kernels."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from attnbench import (
    ALL_MASKS,
    Capabilities,
    Device,
    Direction,
    Implementation,
    Inputs,
    Prepared,
    Problem,
    dequantised,
    differentiable,
    hookimpl,
)

if TYPE_CHECKING:
    import torch

_CAPABILITIES = Capabilities(
    dtypes=frozenset(("float64", "float32", "tfloat32", "float16", "bfloat16", "float8_e4m3")),
    devices=frozenset(("cpu", "cuda")),
    directions=frozenset(("forward", "backward", "forward_backward", "inference")),
    masks=ALL_MASKS,
    grouped_heads=True,
    unequal_head_dims=True,
    kv_dtypes=frozenset(("float32", "float16", "bfloat16", "float8_e4m3", "int8")),
    shared_kv=True,
)


@hookimpl
def attnbench_implementations() -> Iterable[Implementation]:
    yield Implementation(
        name="torch-sdpa",
        summary="scaled_dot_product_attention; torch chooses the kernel, which the column `kernel` names",
        capabilities=replace(_CAPABILITIES, dropout=True),
        prepare=partial(_prepare, None),
        requires=("torch",),
        qkv_format="bhsd",
    )
    yield Implementation(
        name="torch-sdpa-math",
        summary="scaled_dot_product_attention held to its math kernel, which itself repeats k and v of grouped heads",
        capabilities=replace(_CAPABILITIES, dropout=True),
        prepare=partial(_prepare, "math"),
        requires=("torch",),
        qkv_format="bhsd",
    )
    yield Implementation(
        name="torch-sdpa-flash",
        summary="scaled_dot_product_attention held to its flash kernel; raises where that cannot run",
        capabilities=replace(_CAPABILITIES, unequal_head_dims=False, compute_capability=(8, 0)),
        prepare=partial(_prepare, "flash"),
        requires=("torch",),
        qkv_format="bhsd",
        objection=_flash_objection,
    )
    yield Implementation(
        name="torch-sdpa-efficient",
        summary="scaled_dot_product_attention held to its memory-efficient kernel; raises where that cannot run",
        capabilities=replace(
            _CAPABILITIES,
            dtypes=frozenset(("float32", "float16", "bfloat16")),
            devices=frozenset(("cuda",)),
            grouped_heads=False,  # in torch 2.13; a later one has them
        ),
        prepare=partial(_prepare, "efficient"),
        requires=("torch",),
        qkv_format="bhsd",
        objection=_efficient_objection,
    )
    yield Implementation(
        name="torch-sdpa-cudnn",
        summary="scaled_dot_product_attention held to its cuDNN kernel; raises where that cannot run",
        capabilities=replace(
            _CAPABILITIES,
            dtypes=frozenset(("float16", "bfloat16")),
            devices=frozenset(("cuda",)),
            head_dims=(8, 128),  # more on some devices, with some versions of cuDNN
            head_dim_multiple=8,
            compute_capability=(8, 0),
        ),
        prepare=partial(_prepare, "cudnn"),
        requires=("torch",),
        qkv_format="bhsd",
        objection=_cudnn_objection,
    )
    yield Implementation(
        name="torch-rotary-sdpa",
        summary="q and k turned by their positions in plain torch operations, then SDPA; torch chooses its kernel",
        capabilities=replace(
            _CAPABILITIES,
            dtypes=_CAPABILITIES.dtypes - {"float8_e4m3"},
            kv_dtypes=frozenset(),
            modifiers=frozenset(("rotary",)),
        ),
        prepare=_prepare_rotary,
        requires=("torch",),
        qkv_format="bhsd",
        objection=lambda problem, device: None if problem.modifiers else "nothing to turn",
    )
    yield Implementation(
        name="torch-flash-lse",
        summary="the operator beneath SDPA's flash kernel on a CPU, which returns the log-sum-exp too; private to torch",
        capabilities=replace(
            _CAPABILITIES,
            dtypes=frozenset(("float64", "float32", "float16", "bfloat16")),
            devices=frozenset(("cpu",)),
            directions=frozenset(("forward",)),
            masks=frozenset(("full", "causal", "causal-top-left")),
            unequal_head_dims=False,
            kv_dtypes=frozenset(),
        ),
        prepare=_prepare_lse,
        requires=("torch",),
        qkv_format="bhsd",
        objection=_lse_objection,
    )


def _mask_form(problem: Problem) -> str:
    """How SDPA is told the mask: `none`, `is_causal`, `lower-right` (causal with Sq != Sk) or `explicit`."""
    assert problem.uniform is not None
    sq, sk = problem.uniform
    match problem.mask.name:
        case "full":
            return "none"
        case "causal" if sq == 1:  # the one query is the last: it sees every key
            return "none"
        case "causal":
            return "is_causal" if sq == sk else "lower-right"
        case "causal-top-left":  # the alignment of is_causal
            return "is_causal"
    return "explicit"


def _flash_objection(problem: Problem, device: Device) -> str | None:
    """What torch's dispatcher asks of the flash kernel beyond the capabilities (torch 2.13: `sdp_utils.cpp`
    for CUDA, `sdp_utils_cpp.cpp` for CPU, whose kernel takes all four dtypes, explicit masks and any D)."""
    assert problem.uniform is not None
    sq, sk = problem.uniform
    if not (sq and sk):
        return "flash takes no empty sequences"
    if device.kind == "cpu":
        return None
    if problem.out_dtype.value not in ("float16", "bfloat16"):
        return f"flash on CUDA takes no {problem.out_dtype.value}"
    if problem.head_dim > 256:
        return f"flash on CUDA takes no head_dim {problem.head_dim}: at most 256"
    version = device.compute_capability or (0, 0)
    narrow = (8, 6) <= version <= (8, 9) or version >= (12, 0)
    if narrow and problem.direction is not Direction.FORWARD and 192 < problem.head_dim <= 224:
        return f"flash has no gradient for head_dim {problem.head_dim} on compute capability {version[0]}.{version[1]}"
    form = _mask_form(problem)
    if form == "explicit":
        return "flash on CUDA takes no explicit mask"
    if form == "is_causal" and sq != sk:
        return "flash on CUDA takes no is_causal with Sq != Sk"
    if form == "lower-right" and sq > sk:
        return "flash on CUDA takes no causal mask with Sq > Sk"
    return None


def _efficient_objection(problem: Problem, device: Device) -> str | None:
    """What torch's dispatcher asks of the memory-efficient kernel beyond the capabilities (`sdp_utils.cpp`)."""
    assert problem.uniform is not None
    if 0 in problem.uniform:
        return "efficient takes no empty sequences"
    half, recent = problem.dtype.value != "float32", (device.compute_capability or (8, 0)) >= (8, 0)
    if problem.dtype.value == "bfloat16" and not recent:
        return "efficient takes no bfloat16 before compute capability 8.0"
    multiple = 8 if half else 4 if recent else 1
    for dim in (problem.head_dim, problem.head_dim_v):
        if dim % multiple:
            return f"efficient takes no head dimension {dim} in {problem.dtype.value}: only multiples of {multiple}"
    return None


def _cudnn_objection(problem: Problem, device: Device) -> str | None:
    """What torch's dispatcher asks of cuDNN's kernel beyond the capabilities (`sdp_utils.cpp`)."""
    assert problem.uniform is not None
    if 0 in problem.uniform:
        return "cuDNN takes no empty sequences"
    if problem.uniform[1] == 1:
        return "cuDNN takes no single key"
    return None


def _lse_objection(problem: Problem, device: Device) -> str | None:
    assert problem.uniform is not None
    if 0 in problem.uniform:
        return "flash takes no empty sequences"
    form = _mask_form(problem)
    return "the operator has no causal mask with Sq != Sk" if form == "lower-right" else None


_SWITCHES = {"math": "math", "flash": "flash", "efficient": "mem_efficient", "cudnn": "cudnn"}
"""Kernel -> what torch calls it in the names of its switches."""


def _prepare(kernel: str | None, problem: Problem, inputs: Inputs) -> Prepared:
    """SDPA held to `kernel` by torch's process-wide switches, which each call turns off and on again.

    With all other kernels off, torch raises where this one cannot run. The context manager `sdpa_kernel`
    does the same, but costs a call 11 us on a CPU, which is more than the smallest problems take; this costs 0.3 us.
    """
    import torch
    import torch.nn.functional as F

    sdpa: Callable[..., torch.Tensor] = F.scaled_dot_product_attention
    if inputs.q.is_cuda:
        torch.backends.cuda.matmul.allow_tf32 = problem.dtype.value == "tfloat32"
    form = _mask_form(problem)
    arguments: dict[str, Any] = {
        "attn_mask": _mask(kernel, form, problem, inputs.q.device),
        "dropout_p": problem.dropout,
        "is_causal": form == "is_causal",
        "scale": problem.scale,
        "enable_gqa": problem.heads_q != problem.heads_kv,
    }
    if kernel is None:
        return differentiable(
            partial(sdpa, **arguments), problem, inputs, kernel=_chosen(problem, inputs, arguments)
        )
    kernels = [*_SWITCHES] if inputs.q.is_cuda else ["math", "flash"]
    switches = torch.backends.cuda  # of all devices, for all their name
    others: list[Callable[[bool], None]] = [
        getattr(switches, f"enable_{_SWITCHES[other]}_sdp")
        for other in kernels
        if other != kernel and getattr(switches, f"{_SWITCHES[other]}_sdp_enabled")()
    ]

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        for switch in others:
            switch(False)
        try:
            return sdpa(q, k, v, **arguments)
        finally:
            for switch in others:
                switch(True)

    return differentiable(attend, problem, inputs, kernel=kernel)


def _prepare_rotary(problem: Problem, inputs: Inputs) -> Prepared:
    """x cos + turned(x) sin, as in GPT-NeoX: turned has the halves of x in each other's place, the second negated."""
    import torch
    import torch.nn.functional as F

    assert problem.uniform is not None
    sq, sk = problem.uniform
    form, half = _mask_form(problem), problem.head_dim // 2
    frequencies = problem.modifier("rotary").frequencies(problem.head_dim)
    every = torch.tensor(2 * frequencies, dtype=torch.float64, device=inputs.q.device)  # [D]
    sign = torch.where(torch.arange(2 * half, device=inputs.q.device) < half, -1.0, 1.0)
    angles = torch.arange(min(0, sk - sq), sk, device=inputs.q.device)[:, None] * every
    dtype = torch.bfloat16 if problem.dtype.quantised else inputs.q.dtype
    cos, sin = angles.cos().to(dtype), (angles.sin() * sign).to(dtype)
    tables = [(cos[-n:], sin[-n:]) for n in (sq, sk)]
    mask, gqa = _mask(None, form, problem, inputs.q.device), problem.heads_q != problem.heads_kv

    def attend(q: "torch.Tensor", k: "torch.Tensor", v: "torch.Tensor") -> "torch.Tensor":
        q, k = (x * cos + x.roll(half, -1) * sin for x, (cos, sin) in zip((q, k), tables, strict=True))
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=form == "is_causal", scale=problem.scale, enable_gqa=gqa
        )

    return differentiable(attend, problem, inputs)


def _prepare_lse(problem: Problem, inputs: Inputs) -> Prepared:
    import torch

    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    arguments = {"is_causal": _mask_form(problem) == "is_causal", "scale": problem.scale}

    def step() -> "tuple[torch.Tensor, torch.Tensor]":
        found: tuple[torch.Tensor, torch.Tensor] = attend(inputs.q, inputs.k, inputs.v, **arguments)
        return found

    return Prepared(step=step, read=lambda raw: raw[0], lse=lambda raw: raw[1], kernel="flash")


def _mask(kernel: str | None, form: str, problem: Problem, device: "torch.device") -> "torch.Tensor | None":
    """None, torch's lower-right bias where a kernel on CUDA knows it, or a boolean [Sq, Sk] made once,
    [B, 1, Sq, Sk] where the members of the batch differ."""
    import torch

    if form in ("none", "is_causal"):
        return None
    assert problem.uniform is not None
    sq, sk = problem.uniform
    if form == "lower-right" and sq < sk and kernel in ("flash", "efficient") and device.type == "cuda":
        from torch.nn.attention.bias import causal_lower_right

        bias: torch.Tensor = causal_lower_right(sq, sk)
        return bias
    i, j, b = (torch.arange(n, device=device) for n in (sq, sk, problem.batch))
    allowed: torch.Tensor = problem.mask.allowed(i[:, None], j, sq, sk, b[:, None, None, None])
    return allowed


def _chosen(problem: Problem, inputs: Inputs, arguments: dict[str, Any]) -> str:
    """The kernel that torch's dispatcher says it will run."""
    import torch
    from torch.nn.attention import SDPBackend

    grad = problem.direction in (Direction.BACKWARD, Direction.FORWARD_BACKWARD)
    q, k, v = (t.detach().requires_grad_(grad) for t in dequantised(problem, inputs))
    choice = SDPBackend(torch._fused_sdp_choice(q, k, v, **arguments))
    return str(choice.name.removesuffix("_ATTENTION").lower())
