"""What a plugin brings: `Implementation`, what it says it can do, and what it is handed to do it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from attnbench.problem import Direction, Problem

if TYPE_CHECKING:
    import torch

Step = Callable[[], Any]
"""Launches the work of one call and returns what the library returns; waits for it where the library is lazy."""

FORMATS = ("bshd", "bhsd")
"""Axis orders of q, k, v and the output: batch, sequence, heads, dim."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """Where a job runs. `kind` is `cpu` or `cuda`; its text is `cpu` or `cuda:0`."""

    kind: str
    index: int = 0
    name: str = ""
    memory_bytes: int = 0
    compute_capability: tuple[int, int] | None = None
    cache_bytes: int | None = None
    """Of the last-level cache; 0 where it cannot be known, None where nobody has looked."""

    def __str__(self) -> str:
        return self.kind if self.kind == "cpu" else f"{self.kind}:{self.index}"


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Seeded tensors of a problem in the format that the implementation asked for.

    In `bshd`: q [B, Sq, Hq, D], k [B, Sk, Hk, D], v [B, Sk, Hk, Dv], dout [B, Sq, Hq, Dv]; `bhsd` swaps
    the middle axes. S is that of the longest member; `problem.sequences` has the lengths of each, and nobody may look at
    what stands beyond them. Tokens of a `packed` batch stand one member after another, whatever the format:
    q [Tq, Hq, D], k [Tk, Hk, D], v [Tk, Hk, Dv], dout [Tq, Hq, Dv]; `problem.spans` are the members. A `paged` one has
    the same q, but k [pages, page, Hk, D] and v [pages, page, Hk, Dv].

    Where `problem.shared_kv`, v is a view of the first Dv columns of k. Where `problem.appends`, the last Sq keys of each
    member are not in their pages: `k_new` and `v_new` hold them, and the call writes them into the slots that the block
    table has for them, before it attends or beside it. These slots are all that a call may change.

    All others are contiguous in that order, and none requires a gradient. Where q, k or v are quantised, what is meant is
    the stored value times `q_descale`, `k_descale` or `v_descale` of `extra`. The harness writes new values into the same
    storage between calls, and other pages into the block table; see `Prepared.refresh`.
    """

    q: "torch.Tensor"
    k: "torch.Tensor"
    v: "torch.Tensor"
    dout: "torch.Tensor | None" = None
    """The gradient that flows into the output; None where the direction is forward."""
    extra: "Mapping[str, torch.Tensor]" = field(default_factory=dict)
    """What `problem.parameters` names: the tensors of score modifiers and mechanisms, alike in every format."""
    index: "Mapping[str, torch.Tensor]" = field(default_factory=dict)
    """Where the tokens lie, int32: of `packed`, `cu_seqlens_q` and `cu_seqlens_k` [B + 1]; of `paged`, `cu_seqlens_q`,
    `seqused_k` [B] and `block_table` [B, pages of the longest], in which a member that needs fewer pages has zeros. Lengths
    count tokens that are to be appended."""
    k_new: "torch.Tensor | None" = None
    """What the call appends, [Tq, Hk, D], in the order of q; None where it appends nothing."""
    v_new: "torch.Tensor | None" = None
    """Likewise, [Tq, Hk, Dv]; where `problem.shared_kv`, a view of the first columns of `k_new`."""

    @property
    def shared_kv(self) -> bool:
        """Whether v is a view of the first columns of k."""
        return self.v.data_ptr() == self.k.data_ptr()

    @property
    def tensors(self) -> "tuple[torch.Tensor, ...]":
        """All that are stored: what may be None where it is there, v where k does not hold it."""
        v, v_new = (None, None) if self.shared_kv else (self.v, self.v_new)
        given = (self.q, self.k, v, self.dout, self.k_new, v_new)
        there = (tensor for tensor in given if tensor is not None)
        return (*there, *self.extra.values(), *self.index.values())


def _identity(raw: Any) -> Any:
    return raw


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What `prepare` returns. A plain callable is taken for one with only a step."""

    step: Step
    read: Callable[[Any], Any] = _identity
    """Outside the clock: what `step` returned -> torch tensors in the implementation's format.

    `forward` -> out; `backward` -> (dq, dk, dv); `forward_backward` -> (out, dq, dk, dv). Of `problem.shared_kv` without
    dv, which is part of dk. Then the gradients of the parameters in `problem.learned`, in their order and shapes.
    """
    lse: "Callable[[Any], torch.Tensor] | None" = None
    """Outside the clock, where `step` returns it too: what `step` returned -> natural log-sum-exp of the scaled scores
    of the keys that each query may see, float32 [B, Hq, Sq] in every format, [Hq, Tq] of packed and paged batches,
    -inf where there is none."""
    refresh: Callable[[], object] | None = None
    """Outside the clock, after the harness has written new values into the inputs: bring them to where
    `step` reads them (copy to the library's own arrays, redo the forward pass). None where `step` reads the
    inputs themselves."""
    memory: Callable[[], int] | None = None
    """Peak bytes of the library's own allocator since its last call, where it keeps one."""
    kernel: str = ""
    """Which kernel will run, where it can be known."""


def _texts(*values: str) -> Any:
    return field(default=frozenset(values))


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What an implementation can compute, as data. Everything not named is unsupported."""

    dtypes: frozenset[str]
    devices: frozenset[str] = _texts("cpu")
    directions: frozenset[str] = _texts("forward")
    masks: frozenset[str] = _texts("full")
    """Names of masks; `product` among them says that products of the others work too."""
    modifiers: frozenset[str] = _texts()
    mechanisms: frozenset[str] = _texts("softmax")
    layouts: frozenset[str] = _texts("dense")
    head_dims: tuple[int, int] = (1, 2**31)
    """Smallest and largest head dimension."""
    head_dim_multiple: int = 1
    grouped_heads: bool = False
    """Fewer key/value heads than query heads, without expanding them."""
    unequal_head_dims: bool = False
    """Dv other than D."""
    cross_lengths: bool = True
    """Sq other than Sk."""
    ragged: bool = False
    """Batches whose members differ in length."""
    scale: bool = True
    """A scale other than 1 / sqrt(D)."""
    dropout: bool = False
    kv_dtypes: frozenset[str] = _texts()
    """Element types of k and v apart from q's own."""
    shared_kv: bool = False
    """v as a view of the first columns of k."""
    append: bool = False
    """New k and v, which the call writes into pages."""
    compute_capability: tuple[int, int] | None = None
    """Least CUDA compute capability."""

    def reasons(self, problem: Problem, device: Device) -> Iterator[str]:
        """Why `problem` cannot be computed on `device`, each reason in words."""
        if device.kind not in self.devices:
            yield f"no {device.kind}"
        if problem.dtype not in self.dtypes:
            yield f"no {problem.dtype.value}"
        if problem.kv_dtype != problem.dtype and problem.kv_dtype not in self.kv_dtypes:
            yield f"no {problem.kv_dtype.value} k and v beside {problem.dtype.value} q"
        if problem.direction not in self.directions:
            yield f"no {problem.direction.value}"
        if problem.mechanism.name not in self.mechanisms:
            yield f"no {problem.mechanism.name} mechanism"
        if problem.layout.name not in self.layouts:
            yield f"no {problem.layout.name} layout"
        for name in problem.mask.names:
            if name not in self.masks:
                yield f"no {name} mask" if name != "product" else "no products of masks"
        for modifier in problem.modifiers:
            if modifier.name not in self.modifiers:
                yield f"no {modifier.name}"
        if problem.scale is not None and not self.scale:
            yield "no scale of one's own"
        if problem.heads_q != problem.heads_kv and not self.grouped_heads:
            yield "no grouped heads"
        if problem.head_dim_v != problem.head_dim and not self.unequal_head_dims:
            yield "no head_dim_v other than head_dim"
        for dim, name in {problem.head_dim_v: "head_dim_v", problem.head_dim: "head_dim"}.items():
            if not self.head_dims[0] <= dim <= self.head_dims[1]:
                yield f"no {name} {dim}: only {self.head_dims[0]} to {self.head_dims[1]}"
            elif dim % self.head_dim_multiple:
                yield f"no {name} {dim}: only multiples of {self.head_dim_multiple}"
        if problem.uniform is None and not self.ragged:
            yield "no ragged batches"
        if not self.cross_lengths and any(q != s for q, s in problem.sequences):
            yield "no key length other than the query length"
        if problem.dropout and not self.dropout:
            yield "no dropout"
        if problem.shared_kv and not self.shared_kv:
            yield "no shared k and v"
        if problem.appends and not self.append:
            yield "no append of new k and v"
        least, has = self.compute_capability, device.compute_capability
        if least and has and has < least:
            yield f"needs compute capability {least[0]}.{least[1]}, {device.name} has {has[0]}.{has[1]}"

    def why_not(self, problem: Problem, device: Device) -> str | None:
        """None where `problem` can be computed on `device`, else the first reason."""
        return next(self.reasons(problem, device), None)


def no_objection(problem: Problem, device: Device) -> str | None:
    """The default `objection`: whatever the capabilities allow."""
    return None


def available(device: Device) -> str | None:
    """The default `unavailable`: wherever what it requires is installed."""
    return None


@dataclass(frozen=True, kw_only=True)
class Implementation:
    """One way to compute attention; a variant is another record, never a flag."""

    name: str
    summary: str
    capabilities: Capabilities
    prepare: Callable[[Problem, Inputs], Prepared | Step]
    """Does all that must not be timed (imports, packing, planning, compiling) and returns the step. In a process that
    measures with a cold cache it is called once for each copy of the inputs: what is compiled should be shared."""
    requires: tuple[str, ...] = ()
    """Distributions that must be installed; looked up, not imported. Their versions go into the results."""
    preload: tuple[str, ...] = ()
    """Modules that take long to import: a run that has a job of it imports them once, and its processes are forked
    from there. Importing them must start no thread and touch no device; a name that fails is passed over."""
    qkv_format: str = "bshd"
    approximation: str | None = None
    """What is approximated, in words; None for an exact computation."""
    objection: Callable[[Problem, Device], str | None] = no_objection
    """A reason against a problem that data cannot express."""
    unavailable: Callable[[Device], str | None] = available
    """A reason why it cannot run on this machine, whatever the problem, such as a compiler that is missing.
    Called to plan, so it must be quick."""

    def __post_init__(self) -> None:
        if not self.name or any(c.isspace() or c in ",*?[]@" for c in self.name):
            raise ValueError(
                f"implementation name {self.name!r} must have no spaces, commas, `@` or glob characters"
            )
        if self.qkv_format not in FORMATS:
            raise ValueError(
                f"{self.name}: qkv_format must be one of {', '.join(FORMATS)}, got {self.qkv_format!r}"
            )

    def why_not(self, problem: Problem, device: Device) -> str | None:
        """None where `problem` can be computed on `device`, else the reason in words."""
        return self.capabilities.why_not(problem, device) or self.objection(problem, device)


def dequantised(
    problem: Problem, inputs: Inputs, qkv_format: str = "bhsd"
) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
    """q, k and v in the output's dtype: what is stored in another one is converted, and multiplied by its descale.

    New tensors for those, so this belongs into the timed call; the inputs themselves for the others. Layouts stay: of pages all
    are converted.
    """
    import torch

    to = torch.bfloat16 if problem.dtype.quantised else inputs.q.dtype
    wide = torch.promote_types(to, torch.float32)  # lest the descale itself be rounded
    axis = -3 if problem.layout.name == "dense" and qkv_format == "bhsd" else -2  # of the heads

    def real(name: str) -> torch.Tensor:
        stored: torch.Tensor = getattr(inputs, name)
        descale = inputs.extra.get(f"{name}_descale")
        if descale is None:
            return stored.to(to)
        by_head = torch.unflatten(stored.to(wide), axis, (problem.heads_kv, -1))
        by_head *= descale.view(-1, *[1] * -axis)
        return by_head.flatten(axis - 1, axis).to(to)

    q, k, v = map(real, "qkv")
    return q, k, v


def differentiable(
    attend: "Callable[..., torch.Tensor]",
    problem: Problem,
    inputs: Inputs,
    kernel: str = "",
) -> Prepared:
    """A `Prepared` for a differentiable torch function, in the direction that the problem asks for.

    `attend(q, k, v, **extra) -> out` gets the inputs in the implementation's format, and the parameters by their
    names: it must take them from there, for the gradients of some are asked for (`problem.learned`). What is stored in
    another type than that of the output is as `dequantised` makes it of `bhsd`, inside the call. The backward
    pass is torch's own; in `backward` the forward pass runs outside the clock and its graph is kept.
    """
    apart = problem.stored_apart
    extra = {name: tensor for name, tensor in inputs.extra.items() if not name.endswith("_descale")}

    def forward() -> "torch.Tensor":
        qkv = dequantised(problem, inputs) if apart else (inputs.q, inputs.k, inputs.v)
        return attend(*qkv, **extra)

    if problem.direction is Direction.FORWARD:
        return Prepared(step=forward, kernel=kernel)
    import torch

    if problem.direction is Direction.INFERENCE:

        def infer() -> torch.Tensor:
            with torch.inference_mode():
                return forward()

        return Prepared(step=infer, kernel=kernel)
    dout = inputs.dout
    assert dout is not None
    stored = (inputs.q, inputs.k) if problem.shared_kv else (inputs.q, inputs.k, inputs.v)
    wanted = tuple(tensor.detach().requires_grad_() for tensor in stored)
    learned = {name: extra[name].detach().requires_grad_() for name in problem.learned}
    extra |= learned
    leaves = (*wanted, *learned.values())
    zeros = bool(learned)  # for what such a problem does not look at, as the keys of the mechanism location

    def recorded() -> "torch.Tensor":
        q, k, *v = wanted
        return attend(q, k, *(v or [k[..., : problem.head_dim_v]]), **extra)

    if problem.direction is Direction.FORWARD_BACKWARD:

        def both() -> tuple[torch.Tensor, ...]:
            out = recorded()
            return (out.detach(), *torch.autograd.grad(out, leaves, dout, materialize_grads=zeros))

        return Prepared(step=both, kernel=kernel)
    graph: list[torch.Tensor] = []

    def refresh() -> None:
        graph.clear()  # the old graph's memory first
        graph.append(recorded())

    def backward() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(graph[0], leaves, dout, retain_graph=True, materialize_grads=zeros)

    refresh()
    return Prepared(step=backward, refresh=refresh, kernel=kernel)
