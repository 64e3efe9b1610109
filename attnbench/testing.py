"""For authors of plugins and for our own tests: a small problem, and the verification without processes.

Its assertions have their reasons; pytest need not explain them once more (PYTEST_DONT_REWRITE).
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from attnbench import changes, inputs, reference, scope, suites, tokens, verify
from attnbench.implementation import Device, Implementation, Prepared
from attnbench.plugins import Registry, requirements
from attnbench.problem import Paged, Problem, problem_from
from attnbench.records import Status

WORK = 5e8
SEED = 20240601


def problem(**changes: Any) -> Problem:
    """A small problem; `changes` are keys of a suite's `problems:`, such as `dtype="bfloat16"`."""
    keys: dict[str, Any] = {"batch": 2, "heads": 4, "head_dim": 32, "seqlen": 96, **changes}
    for both, one in (("heads", "heads_q"), ("seqlen", "seqlen_q"), ("seqlen", "requests")):
        if one in changes:
            del keys[both]
    if "requests" in changes:
        del keys["batch"]
    return problem_from(keys)


def verdict(
    implementation: Implementation,
    of: Problem,
    device: str = "cpu",
    seed: int = SEED,
    *,
    strided: bool = False,
    batch_invariance: bool = False,
) -> str | None:
    """None where the implementation computes the problem rightly, in this process, else the reason in words.

    All kinds of inputs are tried, each in the storage of the first. Beyond what is promised of an
    implementation, it may be asked to take `strided` inputs, and to give the first member of a batch the same
    bits alone. Raises what the implementation raises.
    """
    form = implementation.qkv_format
    sample = inputs.sample(of, work=WORK, seed=seed)
    given = inputs.make(of, kind="normal", seed=seed, device=device, qkv_format=form)
    if strided:
        given = inputs.strided(of, given, form)
        inputs.overwrite(given, of, kind="normal", seed=seed, qkv_format=form)
    prepared = implementation.prepare(of, given)
    if not isinstance(prepared, Prepared):
        prepared = Prepared(step=prepared)
    plain = tokens.plain(of)
    for kind in inputs.KINDS:
        inputs.overwrite(given, of, kind=kind, seed=seed, qkv_format=form)
        canonical = inputs.make(plain, kind=kind, seed=seed, device=device, qkv_format="bhsd")
        if sample.share < 1:
            inputs.mask_dout(given, of, sample, form)
            inputs.mask_dout(canonical, plain, sample, "bhsd")
        if prepared.refresh:
            prepared.refresh()
        promised = changes.promised(given, of)
        inputs.spoil(given, of)  # also what `refresh` has appended
        raw = prepared.step()
        found = verify.inspect(prepared.read(raw), of, given, device, form)
        if isinstance(found, str):
            return found
        if reason := changes.broken(given, of, promised):
            return reason
        actual = inputs.pick(found, of, sample, form, given.index.get("block_table"))
        if prepared.lse:
            lse = verify.inspect_lse(prepared.lse(raw), of, device)
            if isinstance(lse, str):
                return lse
            actual["lse"] = inputs.pick_lse(lse, of, sample)
        oracle, yardstick = (f(of, canonical, sample) for f in (reference.oracle, reference.yardstick))
        _, wrong = verify.Standard(of, oracle, yardstick, sample.share, kind).compare(actual)
        if wrong:
            return f"{wrong} ({kind} inputs)"
        if batch_invariance and of.batch > 1 and kind in inputs.COUNTED:
            alone = verify.alone(implementation, of, given, device)
            together = inputs.checksums(tensor[:1] for tensor in found[: len(alone)])
            if alone and inputs.checksums(alone) != together:
                return (
                    f"the first member of the batch has other bits when it is computed alone ({kind} inputs)"
                )
    return None


def check_implementation(
    implementation: Implementation, of: Problem | None = None, device: str = "cpu"
) -> None:
    """Raise AssertionError, with the reason, unless `implementation` computes `of` (or small problems) rightly.

    Without a problem it is tried on every dtype, mask and direction of its capabilities that the oracle knows.
    """
    __tracebackhide__ = True  # from pytest, which then shows the reason alone
    where = Device(kind=device.partition(":")[0])
    several = [of] if of is not None else list(samples(implementation, where))
    assert several, f"{implementation.name} supports no small problem on {device}"
    for one in several:
        reason = implementation.why_not(one, where)
        assert reason is None, f"{implementation.name} does not support {one}: {reason}"
        reason = verdict(implementation, one, device)
        assert reason is None, f"{implementation.name} is wrong on {one}: {reason}"


def samples(implementation: Implementation, device: Device) -> Iterator[Problem]:
    """Small problems that the implementation says it supports, one for each layout, dtype, mask and direction; new k
    and v are appended where the mask is causal.

    Of softmax without modifiers; where it supports none of these, of each of its mechanisms and modifiers.
    """
    can, some = implementation.capabilities, False
    for layout in sorted(can.layouts):
        for one in _samples(implementation, device, layout=layout):
            some = True
            yield one
            if layout == "paged" and one.mask.name == "causal":
                appending = replace(one, layout=Paged(append=1))
                if implementation.why_not(appending, device) is None:
                    yield appending
    if not some:
        for axis, names in (("mechanism", can.mechanisms), ("modifiers", can.modifiers)):
            for name in sorted(names):
                yield from _samples(implementation, device, **{axis: _WRITTEN.get(name, name)})


_WRITTEN = {"local-gaussian": "local-gaussian:window=16", "softcap": "softcap:cap=30"}
"""Mechanisms and modifiers that need a number, with one."""


def _samples(implementation: Implementation, device: Device, **more: str) -> Iterator[Problem]:
    can = implementation.capabilities
    lengths: list[dict[str, Any]] = [{"seqlen": 96}, {"seqlen_q": 33, "seqlen_kv": 80}]
    lengths += [{"requests": "2q33s80_1q0s7_1q1s50"}] if can.ragged else []
    for dtype in sorted(can.dtypes):
        for mask in ("full", "causal", "causal-top-left", "window:left=16:right=0"):
            for direction in ("forward", "backward", "forward_backward"):
                for length in lengths:
                    for heads in ({"heads": 4}, {"heads_q": 4, "heads_kv": 2}):
                        keys = {"dtype": dtype, "mask": mask, "direction": direction}
                        found = problem(**keys, **length, **heads, **more)
                        if scope.computable(found) is None and implementation.why_not(found, device) is None:
                            yield found
        for kv_dtype in sorted(can.kv_dtypes - {dtype}):
            found = problem(
                dtype=dtype, kv_dtype=kv_dtype, descale="head", heads_q=4, heads_kv=2, seqlen=96, **more
            )
            if scope.computable(found) is None and implementation.why_not(found, device) is None:
                yield found


def check(
    registry: Registry, name: str, text: str | None, device: str, **asked: bool
) -> Iterator[tuple[Problem, Status, str]]:
    """Each problem (small ones where there is no `text`), how it ended, and the reason where that is not `ok`.

    `asked` is what `verdict` may be asked beyond its promises.
    """
    implementation = registry.implementations[name]
    where = Device(kind=device.partition(":")[0])
    missing = requirements(implementation)[1] or implementation.unavailable(where)
    given = samples(implementation, where) if text is None else suites.suite_of_problem(text).problems
    for one in given:
        if reason := implementation.why_not(one, where) or scope.computable(one):
            yield one, Status.UNSUPPORTED, reason
        elif missing:
            yield one, Status.UNAVAILABLE, missing
        else:
            try:
                wrong = verdict(implementation, one, device, **asked)
            except (Exception, SystemExit) as error:
                yield one, Status.FAILED, f"{type(error).__name__}: {error}"
            else:
                yield one, Status.WRONG if wrong else Status.OK, wrong or ""
    if device != "cpu":
        torch.cuda.synchronize(device)
