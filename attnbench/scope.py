"""Which problems can be verified: what the oracle computes today. The rest is `unsupported`, with the reason."""

from attnbench.problem import (
    Causal,
    Dense,
    Direction,
    Dot,
    DType,
    Entmax,
    Full,
    Linear,
    Problem,
    Softmax,
)


def computable(problem: Problem) -> str | None:
    """None where the oracle can compute `problem`, so that an answer can be verified; else the reason in words."""
    if not isinstance(problem.mechanism, Softmax) and (reason := _mechanism(problem)):
        return reason
    if problem.stored_apart and (reason := _stored(problem)):
        return reason
    if not isinstance(problem.layout, Dense) or problem.uniform is None:
        return "no reference for packed, paged or ragged batches yet"
    if 0 in problem.uniform:
        return "no reference for empty sequences yet"
    if problem.dropout and problem.direction not in (Direction.FORWARD, Direction.INFERENCE):
        return "no reference for the gradients of dropout yet"
    if problem.dropout and not isinstance(problem.mechanism, Softmax | Dot):
        return f"no reference for dropout with the {problem.mechanism.name} mechanism yet"
    return "no reference for shared k and v yet" if problem.shared_kv else None


def _stored(problem: Problem) -> str | None:
    """What is not there yet of q, k and v that are stored in types of their own."""
    if problem.dtype is DType.INT8:
        return "no reference for int8 q"
    told = f"{problem.dtype.value} q with {problem.kv_dtype.value} k and v"
    if problem.dtype.quantised and not problem.kv_dtype.quantised:
        return f"no reference for {told}"
    if problem.direction not in (Direction.FORWARD, Direction.INFERENCE):
        return f"no reference for the gradients of {told}"
    if not isinstance(problem.mechanism, Softmax | Dot):
        return f"no reference for {told} in the {problem.mechanism.name} mechanism yet"
    return None


def _mechanism(problem: Problem) -> str | None:
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
    return None
