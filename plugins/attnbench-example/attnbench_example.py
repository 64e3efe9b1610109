"""softmax in base 2: exp(s - max) is 2 ** ((s - max) * log2 e), which fast kernels compute in this form."""

from math import e, log2

from attnbench import Capabilities, Implementation, Inputs, Prepared, Problem, differentiable, hookimpl


@hookimpl
def attnbench_implementations():
    yield Implementation(
        name="example-exp2",
        summary="plain attention with a softmax in base 2",
        capabilities=Capabilities(
            dtypes=frozenset({"float32", "float64"}),
            devices=frozenset({"cpu", "cuda"}),
            directions=frozenset({"forward", "backward", "forward_backward"}),
            masks=frozenset({"full", "causal"}),
            cross_lengths=False,  # a causal row that sees no key (Sq > Sk) would come out as NaN
        ),
        prepare=prepare,
        requires=("torch",),
        qkv_format="bhsd",
    )


def prepare(problem: Problem, inputs: Inputs) -> Prepared:
    import torch  # here, not above: `attnbench plan` imports this module

    i, j = (torch.arange(n, device=inputs.q.device) for n in problem.uniform)
    forbidden = ~problem.mask.allowed(i[:, None], j[None, :], *problem.uniform)  # [Sq, Sk]
    scale = problem.softmax_scale * log2(e)

    def attend(q, k, v):
        s = (q @ k.mT * scale).masked_fill(forbidden, float("-inf"))  # [B, H, Sq, Sk]
        weights = torch.exp2(s - s.amax(-1, keepdim=True))
        return weights @ v / weights.sum(-1, keepdim=True)

    return differentiable(attend, problem, inputs)
