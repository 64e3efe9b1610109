"""What plugin authors may ask of `attnbench.testing` beyond a verdict on contiguous inputs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from attnbench import plugins
from attnbench.cli import main
from attnbench.implementation import Capabilities, Device, Implementation, Inputs, Prepared
from attnbench.testing import problem, verdict

CPU = Device(kind="cpu")
OURS = plugins.discover().implementations


def implementation(attend: Callable[[Inputs], Any], **prepared: Any) -> Implementation:
    return Implementation(
        name="mine",
        summary="for these tests",
        capabilities=Capabilities(dtypes=frozenset({"float32", "float64", "bfloat16"})),
        prepare=lambda _, inputs: Prepared(step=lambda: attend(inputs), **prepared),
        qkv_format="bhsd",
    )


def sdpa(inputs: Inputs) -> torch.Tensor:
    return F.scaled_dot_product_attention(inputs.q, inputs.k, inputs.v)


def blind_to_strides(inputs: Inputs) -> torch.Tensor:
    """Reads the elements behind each data pointer one after the other, as many a kernel does."""
    flat = (
        torch.as_strided(t, t.shape, torch.empty(t.shape).stride()) for t in (inputs.q, inputs.k, inputs.v)
    )
    return F.scaled_dot_product_attention(*flat)


def test_inputs_that_are_not_contiguous_are_wrong_only_where_they_were_asked_for() -> None:
    mine = implementation(blind_to_strides)
    assert verdict(mine, problem()) is None
    assert "out: " in (verdict(mine, problem(), strided=True) or "")
    assert verdict(implementation(sdpa), problem(), strided=True) is None


@pytest.mark.parametrize("name", ["torch-naive", "torch-chunked", "torch-sdpa", "torch-flash-lse"])
@pytest.mark.parametrize("direction", ["forward", "forward_backward"])
def test_ours_in_torch_take_inputs_that_are_not_contiguous(name: str, direction: str) -> None:
    for shape in ({"seqlen": 40}, {"seqlen_q": 24, "seqlen_kv": 40, "heads_q": 4, "heads_kv": 2}):
        of = problem(**shape, direction=direction, mask="causal-top-left")
        if OURS[name].why_not(of, CPU) is None:
            assert verdict(OURS[name], of, strided=True) is None


def test_bits_of_a_member_of_the_batch_are_compared_only_where_that_is_asked() -> None:
    mine = implementation(lambda inputs: sdpa(inputs) * (1 + 1e-7 * len(inputs.q)))
    assert verdict(mine, problem()) is None
    reason = "the first member of the batch has other bits when it is computed alone (normal inputs)"
    assert verdict(mine, problem(), batch_invariance=True) == reason
    assert verdict(mine, problem(batch=1), batch_invariance=True) is None
    assert verdict(implementation(sdpa), problem(), batch_invariance=True) is None


def lse(inputs: Inputs) -> torch.Tensor:
    s = inputs.q.float() @ inputs.k.float().mT * inputs.q.shape[-1] ** -0.5
    return s.logsumexp(-1)


@pytest.mark.parametrize(
    ("offered", "reason"),
    [
        (lambda found: found, None),
        (lambda found: found * 1.4426950408889634, "lse: error "),
        (lambda found: found + 0.1, "lse: error "),
        (lambda found: found.half(), "lse: dtype float16, expected float32"),
        (lambda found: found.transpose(1, 2), "lse: shape [2, 96, 4], expected [2, 4, 96]"),
        (lambda found: found.numpy(), "lse: it is a ndarray, expected a plain torch.Tensor"),
        (lambda found: found.log(), "lse: "),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_log_sum_exp_that_is_offered_must_be_right(
    dtype: str, offered: Callable[[torch.Tensor], Any], reason: str | None
) -> None:
    mine = implementation(
        lambda inputs: (sdpa(inputs), lse(inputs)), read=lambda raw: raw[0], lse=lambda raw: offered(raw[1])
    )
    found = verdict(mine, problem(dtype=dtype))
    assert found is None if reason is None else (found or "").startswith(reason)


@pytest.mark.parametrize("name", ["torch-chunked", "torch-flash-lse"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_ours_that_return_a_log_sum_exp_offer_it_and_it_is_right(name: str, dtype: str) -> None:
    shapes = (
        {"seqlen": 96},
        {"seqlen_q": 33, "seqlen_kv": 300},
        {"seqlen_q": 50, "seqlen_kv": 20, "heads": 2},
    )
    for mask in ("full", "causal", "causal-top-left"):
        for shape in shapes:
            of = problem(**shape, mask=mask, dtype=dtype)
            if OURS[name].why_not(of, CPU) is not None:
                continue
            given = Inputs(
                q=torch.zeros(of.batch, of.heads_q, of.uniform[0], 32, dtype=getattr(torch, dtype)),
                k=torch.zeros(of.batch, of.heads_kv, of.uniform[1], 32, dtype=getattr(torch, dtype)),
                v=torch.zeros(of.batch, of.heads_kv, of.uniform[1], 32, dtype=getattr(torch, dtype)),
            )
            assert OURS[name].prepare(of, given).lse is not None
            assert verdict(OURS[name], of) is None


@pytest.mark.parametrize("words", [["--strided"], ["--batch-invariance"], []])
def test_check_asks_for_more_where_it_is_told_to(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    text = "batch=2 seqlen=24 heads_q=4 heads_kv=2 head_dim=16 dtype=float32 mask=full"
    assert main(["check", "torch-sdpa-math", "--problem", text, *words]) == 0
    assert capsys.readouterr().out == f"torch-sdpa-math  {text}  right\n"
    views = int("--strided" in words)  # numpy's reshape of what is not contiguous is a copy, made once
    assert main(["check", "numpy", "--problem", text, *words]) == views
    assert capsys.readouterr().out.startswith(f"numpy  {text}  {'wrong: ' if views else 'right'}")
