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

_FORWARD = (Direction.FORWARD, Direction.INFERENCE)


def computable(problem: Problem) -> str | None:
    """None where the oracle can compute `problem`, so that an answer can be verified; else the reason in words."""
    if not isinstance(problem.mechanism, Softmax) and (reason := _mechanism(problem)):
        return reason
    if problem.stored_apart and (reason := _stored(problem)):
        return reason
    if problem.appends and problem.direction not in _FORWARD:
        return "no gradients of a call that appends: it changes what they are taken of"
    if 0 in (problem.uniform or problem.longest):
        return "no reference for batches without queries or keys yet"
    if (problem.uniform is None or not isinstance(problem.layout, Dense)) and (beyond := _beyond(problem)):
        return f"no reference for {beyond} in packed, paged or ragged batches yet"
    if problem.dropout and problem.direction not in _FORWARD:
        return "no reference for the gradients of dropout yet"
    if problem.dropout and not isinstance(problem.mechanism, Softmax | Dot):
        return f"no reference for dropout with the {problem.mechanism.name} mechanism yet"
    if problem.shared_kv and (beyond := _unshared(problem)):
        return f"no reference for shared k and v with {beyond} yet"
    return None


def _beyond(problem: Problem) -> str | None:
    """What is there for dense batches of equal lengths alone."""
    if problem.dropout:
        return "dropout"
    if problem.learned and problem.direction not in _FORWARD:
        return f"the gradient of {problem.learned[0]}"
    if not isinstance(problem.mechanism, Softmax | Dot):
        return f"the {problem.mechanism.name} mechanism"
    return None


def _unshared(problem: Problem) -> str | None:
    """What is there only where v is stored apart from k."""
    if problem.stored_apart:
        return "a type of their own"
    if problem.dropout:
        return "dropout"
    return None if isinstance(problem.mechanism, Softmax | Dot) else f"the {problem.mechanism.name} mechanism"


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
    if isinstance(mechanism, Entmax) and mechanism.alpha == 1:
        return "no reference for entmax with alpha=1, which is softmax"
    if isinstance(mechanism, Entmax) and mechanism.alpha > 1.5 and problem.direction not in _FORWARD:
        told = f"no reference for the gradients of entmax with alpha={mechanism.alpha:g} yet"
        return f"{told}: above 1.5 they rise without bound at the edge of the support"
    if isinstance(mechanism, Linear) and not isinstance(problem.mask, Full | Causal):
        return f"no reference for the linear mechanism with the {problem.mask} mask yet: only full and causal"
    if problem.modifiers:
        return f"no reference for {problem.modifiers[0].name} with the {mechanism.name} mechanism yet"
    return None
