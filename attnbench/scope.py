"""Which problems can be verified: what the oracle computes today. The rest is `unsupported`, with the reason."""

from attnbench.problem import Dense, DType, Problem, Softcap, Softmax


def computable(problem: Problem) -> str | None:
    """None where the oracle can compute `problem`, so that an answer can be verified; else the reason in words."""
    if not isinstance(problem.mechanism, Softmax):
        return f"no reference for the {problem.mechanism.name} mechanism yet"
    for modifier in problem.modifiers:
        if not isinstance(modifier, Softcap):
            return f"no reference for {modifier.name} yet"
    if problem.dtype in (DType.FLOAT8_E4M3, DType.INT8) or problem.kv_dtype != problem.dtype:
        return f"no reference for {problem.dtype.value} q with {problem.kv_dtype.value} k and v yet"
    if not isinstance(problem.layout, Dense) or problem.uniform is None:
        return "no reference for packed, paged or ragged batches yet"
    if 0 in problem.uniform:
        return "no reference for empty sequences yet"
    if problem.dropout:
        return "no reference for dropout yet"
    return "no reference for shared k and v yet" if problem.shared_kv else None
