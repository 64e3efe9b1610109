"""Which problems can be verified: what the oracle computes today. The rest is `unsupported`, with the reason."""

from attnbench.problem import (
    Bias,
    Causal,
    Dense,
    Direction,
    Dot,
    DType,
    Entmax,
    Full,
    Linear,
    Modifier,
    Problem,
    RelativeBias,
    Rotary,
    Sinks,
    Softmax,
)


def computable(problem: Problem) -> str | None:
    """None where the oracle can compute `problem`, so that an answer can be verified; else the reason in words."""
    gradients = problem.direction in (Direction.BACKWARD, Direction.FORWARD_BACKWARD)
    if not isinstance(problem.mechanism, Softmax) and (reason := _mechanism(problem, gradients)):
        return reason
    for modifier in problem.modifiers:
        if isinstance(modifier, Rotary):
            return f"no reference for {modifier.name} yet"
        if gradients and _learned(modifier):
            return f"no reference for the gradient of {modifier.name} yet"
    if problem.stored_apart and (reason := _stored(problem, gradients)):
        return reason
    if not isinstance(problem.layout, Dense) or problem.uniform is None:
        return "no reference for packed, paged or ragged batches yet"
    if 0 in problem.uniform:
        return "no reference for empty sequences yet"
    if problem.dropout:
        return "no reference for dropout yet"
    return "no reference for shared k and v yet" if problem.shared_kv else None


def _stored(problem: Problem, gradients: bool) -> str | None:
    """What is not there yet of q, k and v that are stored in types of their own."""
    if problem.dtype is DType.INT8:
        return "no reference for int8 q"
    told = f"{problem.dtype.value} q with {problem.kv_dtype.value} k and v"
    if problem.dtype.quantised and not problem.kv_dtype.quantised:
        return f"no reference for {told}"
    if gradients:
        return f"no reference for the gradients of {told}"
    if not isinstance(problem.mechanism, Softmax | Dot):
        return f"no reference for {told} in the {problem.mechanism.name} mechanism yet"
    return None


def _mechanism(problem: Problem, gradients: bool) -> str | None:
    """What is not there yet of mechanisms other than softmax and dot."""
    mechanism = problem.mechanism
    if isinstance(mechanism, Softmax | Dot):
        return None
    if isinstance(mechanism, Entmax) and mechanism.alpha != 1.5:
        return f"no reference for entmax with alpha={mechanism.alpha:g} yet: only 1.5"
    if isinstance(mechanism, Linear) and not isinstance(problem.mask, Full | Causal):
        return f"no reference for the linear mechanism with the {problem.mask} mask yet: only full and causal"
    if problem.modifiers:
        return f"no reference for {problem.modifiers[0].name} with the {mechanism.name} mechanism yet"
    return f"no reference for the gradients of the {mechanism.name} mechanism yet" if gradients else None


def _learned(modifier: Modifier) -> bool:
    """Whether a backward pass must give the gradient of the modifier's tensors too."""
    return isinstance(modifier, RelativeBias | Sinks) or (isinstance(modifier, Bias) and bool(modifier.grad))
