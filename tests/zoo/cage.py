"""The problems on which the zoo is judged, and the judging of what needs no process of its own."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

from zoo.defects import Compute

from attnbench import changes, inputs, reference, tokens, verify
from attnbench.implementation import Inputs
from attnbench.problem import Problem

DTYPES = ("bfloat16", "float16", "float32")
LENGTHS = {"512": 512, "8k": 8192, "32k": 32768}
WORK = 5e8  # as in a run, so that at 32k keys a sample is judged
SEED = 20261121

UNLIKE = "requests=1q128s{keys}_1q96s{part}_1q0s9_2q1s{keys} mask=causal"
SHAPES = {
    "full": "mask=full",
    "large": "mask=full scale=16.0",  # scores of several hundred, as q k^T without a scale
    "batch": "batch=2 mask=full",
    "causal": "mask=causal",
    "window": "mask=window:left=200:right=16",
    "top-left": "mask=causal-top-left",
    "chunked": "mask=chunked:size=100",
    "dilated": "mask=dilated:step=3",
    "prefix-lm": "mask=prefix-lm:prefix={short}",
    "block-causal": "mask=block-causal:size=48",
    "global-window": "mask=global-window:tokens=4:left=200:right=16",
    "tree": "mask=tree:width=3:depth=3",
    "block-sparse": "mask=block-sparse:density=0.25:block=64*causal",
    "documents": "batch=2 mask=document:count={many}*causal",
    "key-padding": "batch=2 mask=key-padding:share=0.3",
    "left-padding": "batch=2 mask=left-padding:share=0.3*causal",
    "empty-rows": "mask=chunked:size={short}*causal-top-left",  # from row 64 on no key is allowed
    "ragged": "mask=full",
    "wide-values": "head_dim_v=80 mask=full",
    "grouped": "heads_q=4 heads_kv=2 mask=full",
    "capped": "mask=full modifiers=softcap:cap=20",
    "capped-window": "mask=window:left=200:right=16 modifiers=softcap:cap=3",
    "gradients": "mask=causal direction=forward_backward",
    "grouped-gradients": "heads_q=4 heads_kv=2 mask=causal direction=forward_backward",
    "capped-gradients": "mask=causal modifiers=softcap:cap=20 direction=forward_backward",
    "alibi": "mask=causal modifiers=alibi",
    "biased": "mask=full modifiers=bias",
    "relative": "mask=full modifiers=relative-bias",
    "sinks": "mask=causal modifiers=sinks",
    "int8-keys": "mask=causal heads_q=4 heads_kv=2 kv_dtype=int8 descale=head",
    "float8-keys": "mask=causal heads_q=4 heads_kv=2 kv_dtype=float8_e4m3",
    "float8": "mask=causal heads_q=4 heads_kv=2 dtype=float8_e4m3 descale=head",
    "rotary": "mask=causal modifiers=rotary",
    "dropout": "mask=causal dropout=0.1",
    "grouped-dropout": "heads_q=4 heads_kv=2 mask=full dropout=0.1",
    "rotary-gradients": "mask=causal modifiers=rotary direction=forward_backward",
    "shared": "mask=causal heads_q=2 heads_kv=1 head_dim_v=48 scale=0.15 shared_kv=true",
    "shared-gradients": "mask=causal heads_q=2 heads_kv=1 head_dim_v=48 shared_kv=true direction=forward_backward",
    "entmax": "mask=causal mechanism=entmax:alpha=1.25",
    "padded": UNLIKE,
    "packed": UNLIKE + " layout=packed",
    "paged": UNLIKE + " layout=paged:page=16",
    "append": UNLIKE + " layout=paged:page=16:append=1",
    "packed-rotary": UNLIKE + " layout=packed modifiers=rotary",
    "packed-stored": UNLIKE + " heads_q=4 heads_kv=2 layout=packed kv_dtype=int8 descale=head",
    "paged-stored": UNLIKE + " heads_q=4 heads_kv=2 layout=paged:page=16 kv_dtype=float8_e4m3 descale=head",
}
"""What differs from 128 queries, one batch member, two heads of 64; `{short}` is 64 less than the keys, `{many}` a 64th
of them, `{part}` half of them and no multiple of a page. A dtype of its own is that in all columns of a table."""

RAGGED = 37  # keys beyond a multiple of any tile


def problem(shape: str, keys: int, dtype: str) -> Problem:
    words = SHAPES[shape].format(short=keys - 64, many=keys // 64, keys=keys, part=keys // 2 + RAGGED)
    if "heads" not in words:
        words += " heads=2"
    if " dtype=" not in words:
        words += f" dtype={dtype}"
    keys += RAGGED if shape == "ragged" else 0
    if "requests" not in words:
        words += f" seqlen_q=128 seqlen_kv={keys}"
    return Problem.parse(f"head_dim=64 {words}")


@dataclass(frozen=True, kw_only=True)
class Found:
    """The verdict on one algorithm and one problem, over all kinds of inputs."""

    reason: str | None
    """Of the first kind of inputs that shows it wrong; None for right."""
    ratio: float
    """The largest error, of a row or a tensor, over what is allowed there; infinite where it is not finite, and where the
    inputs are not what a call must make of them."""


@cache
def exhibit(text: str) -> list[tuple[str, Inputs, inputs.Sample, verify.Standard]]:
    """Inputs of every kind, and what is right for them; 200 MB at 32k keys."""
    of, found = Problem.parse(text), []
    sample = inputs.sample(of, work=WORK, seed=SEED)
    for kind in inputs.KINDS:
        made = inputs.make(of, kind=kind, seed=SEED, device="cpu", qkv_format="bhsd")
        plain = tokens.plain(of)
        told = (
            made if plain == of else inputs.make(plain, kind=kind, seed=SEED, device="cpu", qkv_format="bhsd")
        )
        if sample.share < 1:
            inputs.mask_dout(made, of, sample, "bhsd")
        right, yard = (f(of, told, sample) for f in (reference.oracle, reference.yardstick))
        found.append((kind, made, sample, verify.Standard(of, right, yard, sample.share, kind)))
    return found


def judge(compute: Compute, of: Problem) -> Found:
    """As canary and judge of a run do it, without their processes."""
    reasons, ratios = [], [0.0]
    for kind, given, sample, standard in exhibit(of.text):
        if of.appends:  # others are judged on the same pages
            given = replace(given, k=given.k.clone(), v=given.v.clone())
        promised = changes.promised(given, of)
        outputs = tuple(compute(of, given)[name] for name in inputs.outputs(of))
        contract = verify.inspect(outputs, of, given, "cpu", "bhsd")
        assert not isinstance(contract, str), contract  # a member computes; it does not break the contract
        broken = changes.broken(given, of, promised)
        if broken:
            assert of.appends, broken
            reasons, ratios = [*reasons, f"{broken} ({kind} inputs)"], [*ratios, math.inf]
        for name, tensor in inputs.pick(contract, of, sample, "bhsd").items():
            accuracy, reason = standard.compare({name: tensor})
            row, rms = verify.factors(name)
            ratios += [
                accuracy.row / (row * accuracy.yardstick_row),
                accuracy.rms / (rms * accuracy.yardstick_rms),
            ]
            reasons += [f"{reason} ({kind} inputs)"] if reason else []
    return Found(reason=next(iter(reasons), None), ratio=max(ratios))


def grid(lengths: dict[str, int], dtypes: tuple[str, ...]) -> Iterator[tuple[str, str, str, Problem]]:
    """(shape, length, dtype, problem)."""
    for shape in SHAPES:
        for length, keys in lengths.items():
            for dtype in dtypes:
                yield shape, length, dtype, problem(shape, keys, dtype)
