"""torch's `scaled_dot_product_attention` with what score modifiers add to the scores as its mask."""

from collections.abc import Iterable

from attnbench import (
    INDEX_MASKS,
    Capabilities,
    Direction,
    Implementation,
    Inputs,
    Prepared,
    Problem,
    differentiable,
    hookimpl,
)


@hookimpl
def attnbench_implementations() -> Iterable[Implementation]:
    yield Implementation(
        name="torch-sdpa-bias",
        summary="SDPA with alibi, bias or relative-bias as its mask [Hq, Sq, Sk]; what is learned is put there in each call",
        capabilities=Capabilities(
            dtypes=frozenset(("float64", "float32", "float16", "bfloat16")),
            devices=frozenset(("cpu", "cuda")),
            directions=frozenset(("forward", "backward", "forward_backward", "inference")),
            masks=INDEX_MASKS,
            modifiers=frozenset(("alibi", "bias", "relative-bias")),
            grouped_heads=True,
            unequal_head_dims=True,
            shared_kv=True,
        ),
        prepare=_prepare,
        requires=("torch",),
        qkv_format="bhsd",
        objection=lambda problem, device: None if problem.modifiers else "nothing to add to the scores",
    )


def _prepare(problem: Problem, inputs: Inputs) -> Prepared:
    import torch
    import torch.nn.functional as F

    assert problem.uniform is not None
    sq, sk = problem.uniform
    device, dtype = inputs.q.device, inputs.q.dtype
    i, j = (torch.arange(n, device=device) for n in problem.uniform)
    ahead = j - (i[:, None] + (sk - sq))  # j - p
    fixed = torch.zeros(1, sq, sk, dtype=torch.float64, device=device)
    if (alibi := problem.modifier("alibi")) is not None:
        slopes = torch.tensor(alibi.slopes(problem.heads_q), dtype=torch.float64, device=device)
        fixed = -slopes[:, None, None] * ahead.abs()
    if problem.mask.name != "full":
        fixed = fixed.masked_fill(~problem.mask.allowed(i[:, None], j, sq, sk), float("-inf"))
    fixed = fixed.to(dtype)
    idle = alibi is None and problem.mask.name == "full"
    relative = problem.modifier("relative-bias")
    bucket = None if relative is None else relative.bucket(ahead)

    # a bucket's gradient is a sum over all of its pairs, which torch adds up in the dtype of the table
    forward = problem.direction in (Direction.FORWARD, Direction.INFERENCE)
    exact = dtype if forward else torch.promote_types(dtype, torch.float32)

    def added(extra: dict[str, torch.Tensor]) -> torch.Tensor:
        """[Hq or 1, Sq, Sk], from the parameters as they are now."""
        learned = []
        if "bias" in extra:
            learned.append(extra["bias"])
        if bucket is not None:
            learned.append(extra["relative_bias"].to(exact).mT[:, bucket].to(dtype))
        total = None if idle else fixed
        for one in learned:
            total = one if total is None else total + one
        assert total is not None
        return total

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **extra: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=added(extra)[None],
            scale=problem.scale,
            enable_gqa=problem.heads_q != problem.heads_kv,
        )

    return differentiable(attend, problem, inputs)
