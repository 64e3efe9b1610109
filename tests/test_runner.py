import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import fake_cuda
import pytest
import torch
from processes import VARIABLE, left_after, living

from attnbench import plan, plugins, runner, suites, turns
from attnbench.caches import Caching
from attnbench.clocks import Taken
from attnbench.forkserver import Child, ForkServer
from attnbench.implementation import Device
from attnbench.measure import Course
from attnbench.peaks import Peaks
from attnbench.records import Accuracy, Memory, Result, Status, worst
from attnbench.results import Journal, read_journal
from attnbench.runner import Candidate, Progress, Runner, _EndError, _Judge
from attnbench.suites import Suite
from attnbench.units import seconds_text

JUDGES = """
import ctypes
import time

from attnbench import inputs, judge


def crashes(channel):
    channel.receive()
    channel.send({})
    channel.receive()
    ctypes.string_at(0)


def hangs(channel):
    time.sleep(600)


def shares(channel):
    from attnbench import worker

    worker._copy = lambda given: given
    worker.serve(channel)


def tires(channel):
    judging = judge.Judge(channel.receive())
    channel.send({})
    for _ in inputs.KINDS:  # the outputs of one canary
        channel.send(judging.verdict(channel.receive()))
"""

PLUGIN = """
import gc
import os
import random
import time

from attnbench import Capabilities, Implementation, Prepared, hookimpl


def fused(inputs):
    import torch

    return torch.nn.functional.scaled_dot_product_attention(inputs.q, inputs.k, inputs.v)


def no_memory(inputs):
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


def record(name, attend, before=lambda: None):
    def prepare(problem, inputs):
        before()
        return lambda: attend(inputs)

    return Implementation(
        name=name,
        summary="for the tests of the runner",
        capabilities=Capabilities(dtypes=frozenset({"float32"}), devices=frozenset({"cpu", "cuda"})),
        prepare=prepare,
        qkv_format="bhsd",
    )


def waiting(inputs):
    import torch

    out = fused(inputs)
    if inputs.q.numel():
        torch.cuda.synchronize("cuda:0")
    return out


outputs = {}


def kept(inputs):
    import ctypes

    key = ctypes.string_at(inputs.q.data_ptr(), inputs.q.numel() * 4)  # read without an operation of torch's
    if key not in outputs:
        outputs[key] = fused(inputs)
    return outputs[key]


def placed(inputs):
    if not gc.isenabled():  # while it is timed
        raise RuntimeError(f"on {os.sched_getaffinity(0)}")
    return fused(inputs)


def with_a_hole(inputs):
    out = fused(inputs)
    out[:, :, 300] = float("nan")
    return out


SEEN = []


def spoils(inputs):
    if not SEEN:
        SEEN.append(inputs)
    if SEEN[0] is not inputs:
        inputs.k.zero_()
    return fused(inputs)


def restless(inputs):
    return fused(inputs) * (1 + random.choice((0, 1e-7, 2e-7, 3e-7)))


def by_batch(inputs):
    return fused(inputs) * (1 + 1e-7 * len(inputs.q))


def appending(when):
    def prepare(problem, inputs):
        from dataclasses import replace

        attending = loop().prepare(problem, replace(inputs, k_new=None, v_new=None)).step
        appending, calls = loop().prepare(problem, inputs).step, []
        if when == "in prepare":
            appending()

        def step():
            calls.append(None)
            return appending() if when == "always" or (when == "at first" and len(calls) < 9) else attending()

        return Prepared(step=step, refresh=appending if when == "in refresh" else None)

    return Implementation(
        name=f"appends-{when.replace(' ', '-')}",
        summary="for the tests of the runner",
        capabilities=loop().capabilities,
        prepare=prepare,
        qkv_format="bhsd",
    )


def loop():
    from attnbench.builtin import torch_varlen

    return next(one for one in torch_varlen.attnbench_implementations() if one.name == "torch-loop")


def patch_clocks(factor):
    from attnbench import clocks, worker

    honest = time.perf_counter
    clocks.perf_counter = worker.perf_counter = lambda: factor * honest()


def patch_time():
    honest = time.perf_counter
    time.perf_counter = lambda: honest() / 100


@hookimpl
def attnbench_implementations():
    for name in ("a", "b", "c"):
        yield record(f"good-{name}", fused)
    yield record("restless", restless)
    yield record("by-batch", by_batch)
    yield record("half", lambda inputs: fused(inputs) / 2)
    yield record("no-memory", no_memory)
    yield record("hole", with_a_hole)
    yield record("patches-time", fused, patch_time)
    yield record("slow-clock", fused, lambda: patch_clocks(0.01))
    yield record("fast-clock", fused, lambda: patch_clocks(100))
    yield record("stopped-clock", fused, lambda: patch_clocks(0))
    yield record("spoils-copies", spoils)
    yield record("noisy", lambda inputs: time.sleep(random.uniform(5e-3, 15e-3)) or fused(inputs))
    yield record("placed-a", placed)
    yield record("placed-b", placed)
    yield record("sleeps", lambda inputs: time.sleep(30))
    yield record("two-ms", lambda inputs: time.sleep(2e-3) or fused(inputs))
    yield record("waits", waiting)
    yield record("once", kept)
    for when in ("always", "in prepare", "in refresh", "at first"):
        yield appending(when)
"""

PROBLEM = "batch=1 seqlen=16 heads=2 head_dim=8 dtype=float32 mask=full"


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plugins") / "bench_of_tests.py"
    path.write_text(PLUGIN)
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    folder = tmp_path_factory.mktemp("judges")
    (folder / "judges.py").write_text(JUDGES)
    with ForkServer(
        runner.PRELOAD, env={"PYTHONPATH": f"{folder}:{Path(__file__).parent}", "OMP_NUM_THREADS": "1"}
    ) as found:
        yield found


Make = Callable[..., Runner]


@pytest.fixture
def make(server: ForkServer, plugin: Path, tmp_path: Path) -> Make:
    """Makes the runner of some implementations on some lengths."""

    def make_runner(
        *only: str,
        lengths: str = "[16]",
        budget: str = "20ms",
        launches: int = 1,
        gflop: float = 0.5,
        cache: str = "warm",
        batch: int = 1,
        batch_invariance: bool = False,
        clock: str = "wall",
        layout: str = "dense",
        devices: Sequence[Device] = (Device(kind="cpu"),),
        **options: Any,
    ) -> Runner:
        suite: Suite = suites.parse(
            f"question: q\nbaseline: good-a\nproblems: {{batch: {batch}, seqlen: {lengths}, heads: 2, head_dim: 8, "
            f"layout: '{layout}'}}\n"
            f"measure: {{launches: {launches}, budget: {budget}, threads: 1, cache: {cache}, clock: {clock}}}\n"
            f"verify: {{gflop: {gflop}, batch_invariance: {str(batch_invariance).lower()}}}\n",
            "s.yaml",
        )
        registry = plugins.discover([str(plugin)])
        made = plan.make(suite, registry, devices=devices, threads=1, only=only)
        return Runner(
            plan=made,
            suite=suite,
            registry=registry,
            server=server,
            patient=server,
            folder=tmp_path,
            seed=7,
            **options,
        )

    return make_runner


def ends(rows: tuple[Result, ...]) -> dict[str, tuple[Status, str]]:
    return {row.cell.implementation: (row.status, row.reason) for row in rows}


# ---------------------------------------------------------------- rows


def test_a_row_is_in_the_journal_before_it_is_reported(make: Make, tmp_path: Path) -> None:
    seen: list[Progress] = []

    def listen(now: Progress) -> None:
        if now.row:
            lines = (tmp_path / "journal.jsonl").read_text().splitlines()
            assert json.loads(lines[-1])["cell"]["implementation"] == now.row.cell.implementation
        seen.append(now)

    rows = make("good-a", "good-b", lengths="[8, 16]", listener=listen).run()
    assert [row.status for row in rows] == [Status.OK] * 4
    reported = [now for now in seen if now.row]
    assert [(now.done, now.total) for now in reported] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert {row.cell.key for row in rows} == {now.row.cell.key for now in reported if now.row}
    assert reported[-1].left_s == 0
    assert any(now.current.startswith("timing good-b on batch=1 seqlen=16 ") for now in seen)


def test_an_interruption_leaves_the_rest_not_run_and_no_worker(make: Make, server: ForkServer) -> None:
    def interrupt(now: Progress) -> None:
        if "timing" in now.current and "seqlen=16" in now.current:
            raise KeyboardInterrupt

    before = set(server.children)
    job = make("good-a", "good-b", lengths="[8, 16]", listener=interrupt)
    rows = job.run()
    assert [(row.status, row.reason) for row in rows[:2]] == [(Status.OK, "")] * 2
    assert [(row.status, row.reason) for row in rows[2:]] == [(Status.NOT_RUN, "interrupted")] * 2
    assert job.stopped == "interrupted"
    assert set(server.children) == before


@pytest.mark.parametrize("written", [False, True])
def test_what_an_interruption_leaves_is_what_the_journal_has(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: bool
) -> None:
    append = Journal.append

    def interrupted(journal: Journal, row: Result) -> None:
        if "seqlen=16" in str(row.cell.problem):
            if written:
                append(journal, row)
            raise KeyboardInterrupt
        append(journal, row)

    monkeypatch.setattr(Journal, "append", interrupted)
    rows = make("good-a", lengths="[8, 16, 24]").run()
    assert [row.status is Status.OK for row in rows] == [True, written, False]
    assert {row.cell.key for row in rows if row.timing} == {row.cell.key for row in read_journal(tmp_path)}


def test_rows_of_an_earlier_part_are_kept_and_not_measured_again(make: Make, tmp_path: Path) -> None:
    first = make("good-a", lengths="[8]").run()
    whole = make("good-a", lengths="[8, 16]", done={row.cell.key: row for row in first}).run()
    assert whole[0] is first[0]
    assert whole[1].status is Status.OK
    assert len((tmp_path / "journal.jsonl").read_text().splitlines()) == 2


def test_no_round_of_an_earlier_part_goes_on(make: Make) -> None:
    (first, *_) = make("good-a", budget="100ms").run()
    (_, second) = make("good-a", "good-b", budget="100ms", done={first.cell.key: first}).run()
    assert first.blocks
    assert second.blocks
    assert not {b.round for b in first.blocks} & {b.round for b in second.blocks}
    assert turns.paired(second, first) is None


def test_without_time_nothing_is_run_and_the_reason_says_so(make: Make) -> None:
    rows = make("good-a", "half", time_budget_s=0.0).run()
    assert set(ends(rows).values()) == {(Status.NOT_RUN, "the time budget of 0 ns was spent")}


def test_a_call_does_not_outlast_the_time_budget_and_its_grace(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "GRACE_S", 0.5)
    start = time.monotonic()
    job = make("sleeps", "good-a", time_budget_s=0.5)
    rows = job.run()
    assert time.monotonic() - start < 5
    assert set(ends(rows).values()) == {(Status.NOT_RUN, "the time budget of 500 ms was spent")}
    assert job.stopped == "the time budget of 500 ms was spent"


def test_a_judge_does_not_outlast_the_time_budget_and_its_grace(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "GRACE_S", 0.5)
    monkeypatch.setattr(runner, "JUDGE", "judges:hangs")
    rows = make("good-a", time_budget_s=0.5).run()
    assert ends(rows) == {"good-a": (Status.NOT_RUN, "the time budget of 500 ms was spent")}


def test_rows_that_are_being_timed_end_with_what_they_have(make: Make) -> None:
    rows = make("noisy", budget="60s", launches=3, time_budget_s=3.0).run()
    assert rows[0].timing is not None
    assert (rows[0].timing.stop_reason, rows[0].timing.launches) == ("time budget", 1)


# ---------------------------------------------------------------- the judge


def test_a_wrong_answer_does_not_stop_the_others(make: Make) -> None:
    rows = make("half", "good-a").run()
    (status, reason) = ends(rows)["half"]
    assert status is Status.WRONG
    assert reason.endswith("(normal inputs)")
    assert ends(rows)["good-a"] == (Status.OK, "")


def test_what_is_not_finite_is_seen_outside_the_sample_too(make: Make) -> None:
    good, hole = make("hole", "good-a", lengths="[1024]", gflop=0.001).run()
    assert (hole.status, hole.reason) == (Status.WRONG, "out: not everywhere finite")
    assert good.accuracy is not None
    assert good.accuracy.checked_share < 0.1


@pytest.mark.parametrize(
    ("entry", "why"), [("judges:crashes", "killed by SIGSEGV"), ("judges:hangs", "it took too long")]
)
def test_an_answer_that_cannot_be_verified_is_not_ok(
    make: Make, monkeypatch: pytest.MonkeyPatch, entry: str, why: str
) -> None:
    monkeypatch.setattr(runner, "JUDGE", entry)
    monkeypatch.setattr(runner, "JUDGE_TIMEOUT_S", 0.3 if "hangs" in entry else 60)
    rows = make("good-a", "good-b").run()
    assert set(ends(rows).values()) == {(Status.FAILED, f"the answer could not be verified: {why}")}


def test_a_judge_that_ends_while_others_are_timed_leaves_no_unverified_time(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "JUDGE", "judges:tires")
    rows = make("good-a").run()
    why = "the answer could not be verified: the process exited with code 0"
    assert ends(rows) == {"good-a": (Status.FAILED, why)}
    assert rows[0].timing is None
    assert rows[0].accuracy is not None  # of the first call, which was right


def test_bits_that_differ_from_call_to_call_are_told_and_not_wrong(make: Make) -> None:
    rows = make("good-a", "restless").run()
    assert {r.cell.implementation: r.accuracy.deterministic for r in rows} == {
        "good-a": "yes",
        "restless": "no",
    }
    assert {r.status for r in rows} == {Status.OK}
    assert {r.accuracy.batch_invariant for r in rows} == {""}


def test_bits_that_depend_on_the_rest_of_the_batch_are_told_where_a_suite_asks(make: Make) -> None:
    rows = make("good-a", "by-batch", batch=2, batch_invariance=True).run()
    assert {r.cell.implementation: r.accuracy.batch_invariant for r in rows} == {
        "good-a": "yes",
        "by-batch": "no",
    }
    assert {r.status for r in rows} == {Status.OK}
    single = make("good-a", batch=1, lengths="[17]", batch_invariance=True).run()
    assert single[0].accuracy.batch_invariant == ""


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_the_judge_rests_while_others_measure_whatever_its_verdict(make: Make, tmp_path: Path) -> None:
    start = {"problem": PROBLEM, "device": "cpu", "seed": 1, "work": 1e9, "threads": 1}
    judge = _Judge(made := make("good-a"), made.patient, start)
    path = tmp_path / "output"
    torch.save({"out": torch.zeros(2, 1, 16, 8)}, path)
    try:
        with pytest.raises(_EndError) as caught:
            judge.verdict({"outputs": {"normal": str(path)}, "bits": {}})
        assert judge._child is not None
        end = time.monotonic() + 5
        while state(judge._child.pid) != "T" and time.monotonic() < end:
            time.sleep(0.01)
        assert state(judge._child.pid) == "T"
    finally:
        judge.end()
    assert caught.value.status is Status.WRONG


def accuracy(**changes: float) -> Accuracy:
    names = ("row", "rms", "max", "cosine", "yardstick_row", "yardstick_rms", "checked_share")
    return Accuracy(**{**dict.fromkeys(names, 0.5), **changes})


def test_the_worst_of_several_accuracies_is_the_worst_of_each_number() -> None:
    found = worst([accuracy(row=0.7, cosine=0.9), accuracy(max=2.0, checked_share=0.1, cosine=0.99)])
    assert found == accuracy(row=0.7, max=2.0, checked_share=0.1, cosine=0.9)


def test_an_error_that_is_not_finite_is_the_worst() -> None:
    assert worst([accuracy(row=float("inf")), accuracy()]).row == float("inf")


# ---------------------------------------------------------------- caches

SMALL_CACHE = Device(kind="cpu", cache_bytes=8192)
"""Inputs of a problem of 16 tokens have 3 KiB: six copies are twice as much."""


def test_warm_and_cold_are_measured_in_the_same_rounds(make: Make) -> None:
    rows = make("good-a", "good-b", cache="[warm, cold]", devices=[SMALL_CACHE], budget="300ms").run()
    assert [(row.status, row.reason) for row in rows] == [(Status.OK, "")] * 4
    assert [(row.cell.cache, row.cell.implementation) for row in rows] == [
        (cache, name) for cache in ("warm", "cold") for name in ("good-a", "good-b")
    ]
    assert [row.timing.cache_method for row in rows if row.timing] == ["", "", "rotation", "rotation"]
    shared = set.intersection(*({(b.launch, b.round) for b in row.blocks} for row in rows))
    assert len(shared) >= 3
    assert rows[0].blocks != rows[2].blocks


def test_what_is_right_is_judged_once_for_all_modes(make: Make, server: ForkServer) -> None:
    said: list[str] = []
    job = make(
        "good-a",
        "half",
        cache="[warm, cold]",
        devices=[SMALL_CACHE],
        listener=lambda now: said.append(now.current),
    )
    rows = job.run()
    assert [row.status for row in rows] == [Status.OK, Status.WRONG, Status.OK, Status.WRONG]
    assert rows[1].reason == rows[3].reason
    assert len([current for current in said if current.startswith("verifying")]) == 2


def test_one_mode_may_end_without_the_other(make: Make) -> None:
    warm, cold = make("spoils-copies", cache="[warm, cold]", devices=[SMALL_CACHE]).run()
    assert warm.status is Status.OK
    assert (cold.status, cold.reason) == (
        Status.WRONG,
        "after it was timed, the inputs were changed by the call",
    )


def test_new_tokens_are_appended_by_the_call_itself_and_by_every_one_that_is_judged(make: Make) -> None:
    append = "paged:page=4:append=1"
    names = [f"appends-{when}" for when in ("always", "in-prepare", "in-refresh", "at-first")]
    rows = make(*names, layout=append, cache="[warm, cold]", devices=[SMALL_CACHE]).run()
    missing = "k: 16 of 16 new tokens are not in their slots after the call, the first is key 0 of member 0"
    at_once = [(Status.OK, ""), (Status.WRONG, missing), (Status.WRONG, missing)]
    late = (Status.WRONG, f"after it was timed, {missing}")
    assert [(row.status, row.reason) for row in rows] == [*at_once, late] * 2
    assert [row.timing.cache_method for row in rows if row.timing] == ["", "rotation"]


@pytest.mark.parametrize(("size", "method"), [(1024, "exceeds cache"), (2**20, "flush")])
def test_a_row_says_how_its_cache_was_emptied(make: Make, size: int, method: str) -> None:
    warm, cold = make(
        "good-a", cache="[warm, cold]", devices=[Device(kind="cpu", cache_bytes=size)], budget="100ms"
    ).run()
    assert warm.timing is not None
    assert cold.timing is not None
    assert cold.timing.cache_method == method
    assert warm.timing.cache_method == ("exceeds cache" if method == "exceeds cache" else "")
    assert method != "flush" or cold.timing.inner == 1


@pytest.mark.parametrize("size", [None, 0])
def test_without_a_known_cache_nothing_is_called_cold(make: Make, size: int | None) -> None:
    warm, cold = make("good-a", cache="[warm, cold]", devices=[Device(kind="cpu", cache_bytes=size)]).run()
    assert warm.status is Status.OK
    assert (cold.status, cold.reason) == (Status.UNSUPPORTED, plan.NO_CACHE)


def test_copies_that_share_memory_are_not_called_cold(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "WORKER", "judges:shares")
    (row,) = make("good-a", cache="cold", devices=[SMALL_CACHE]).run()
    why = "the copies of its inputs share memory, so its cache is not cold"
    assert (row.status, row.reason) == (Status.FAILED, why)


# ---------------------------------------------------------------- a device of its own


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Device:
    """A CUDA device that a CPU plays."""
    monkeypatch.setattr(runner, "WORKER", "fake_cuda:serve")
    monkeypatch.setattr(runner, "JUDGE", "fake_cuda:judge")
    return fake_cuda.DEVICE


def test_a_cuda_device_has_its_clock_its_memory_and_its_end_to_end_times(make: Make, cuda: Device) -> None:
    good, wrong, full = make("good-a", "half", "no-memory", devices=[cuda]).run()
    assert (good.status, good.reason) == (Status.OK, "")
    assert (good.cell.device, good.cell.clock) == ("cuda:0", "events")
    assert good.memory is not None
    assert good.memory.method == "cuda"
    assert good.memory.workspace_bytes == 2 * fake_cuda.GIB - good.memory.output_bytes
    assert good.memory.device_delta_bytes == 0
    assert good.timing is not None
    assert good.timing.host_enqueue_s is not None
    assert good.timing.end_to_end_s is not None
    assert good.timing.host_enqueue_s <= good.timing.median_s * 2
    assert wrong.status is Status.WRONG
    assert (full.status, full.reason) == (
        Status.OUT_OF_MEMORY,
        "CUDA out of memory. Tried to allocate 20.00 GiB.",
    )


@pytest.mark.parametrize(("size", "method"), [(8192, "rotation"), (2**20, "flush")])
def test_a_cuda_device_is_cold_by_its_second_level(make: Make, cuda: Device, size: int, method: str) -> None:
    (row,) = make("good-a", cache="cold", devices=[replace(cuda, cache_bytes=size)]).run()
    assert (row.status, row.reason) == (Status.OK, "")
    assert row.timing is not None
    assert row.timing.cache_method == method
    assert row.timing.end_to_end_s is not None


def test_a_graph_is_a_clock_of_its_own_and_what_it_cannot_hold_is_unsupported(
    make: Make, cuda: Device
) -> None:
    good, waits, once = make("good-a", "waits", "once", devices=[cuda], clock="graph").run()
    assert (good.status, good.reason, good.cell.clock) == (Status.OK, "", "graph")
    assert good.timing is not None
    assert good.timing.inner >= 4
    assert good.timing.host_enqueue_s is not None
    assert (waits.status, waits.reason) == (
        Status.UNSUPPORTED,
        "no CUDA graph: RuntimeError: CUDA error: operation not permitted when stream is capturing",
    )
    assert once.status is Status.UNSUPPORTED, once.reason
    assert once.reason == "no CUDA graph: a call enqueues nothing on the stream that it is called on"


@pytest.mark.parametrize(("size", "method"), [(8192, "rotation"), (2**20, "flush")])
def test_a_graph_of_a_cold_cache_covers_all_copies(make: Make, cuda: Device, size: int, method: str) -> None:
    (row,) = make("good-a", cache="cold", clock="graph", devices=[replace(cuda, cache_bytes=size)]).run()
    assert (row.status, row.reason) == (Status.OK, "")
    assert row.timing is not None
    assert row.timing.cache_method == method
    copies = 2 * size / (3 * 16 * 8 * 2 * 4)  # of q, k and v
    assert row.timing.inner >= copies if method == "rotation" else row.timing.inner == 1
    assert (row.timing.energy_j is None) == (method == "flush")


def test_a_cuda_device_tells_its_clock_its_heat_and_the_energy_of_a_call(make: Make, cuda: Device) -> None:
    (row,) = make("two-ms", devices=[cuda]).run()
    timing = row.timing
    assert timing is not None, row.reason
    assert (timing.sm_clock_hz, timing.power_w, timing.temperature_c) == (1.98e9, 250, 55)
    assert timing.throttle == ""
    assert timing.energy_j is not None
    # the calls run one after the other and a little else goes on, at 250 W; no call can be shorter than its sleep
    assert 250 * 2e-3 < timing.energy_j < 250 * 3 * timing.median_s
    assert row.blocks[0].sm_clock_hz == 1.98e9
    assert [b.energy_j for b in row.blocks[:-1]] == [None] * (len(row.blocks) - 1)


def test_processes_on_a_device_share_its_memory_contexts_included(make: Make, cuda: Device) -> None:
    job = make("good-*", devices=[cuda])
    limit = job._limit(cuda)
    assert limit == int(0.9 * cuda.memory_bytes)
    each = limit // 2 - runner.CONTEXT_BYTES
    assert names(job._cohorts(candidates(job, each, each, each), limit)) == [
        ["good-a", "good-b"],
        ["good-a", "good-c"],
    ]
    assert len(job._cohorts(candidates(job, each + 1, each + 1, each + 1), limit)) == 3


# ---------------------------------------------------------------- the parent's clock


def test_a_worker_whose_clock_was_changed_is_impossible(make: Make) -> None:
    found = ends(make("slow-clock", "good-a", "fast-clock", "stopped-clock", budget="200ms").run())
    for name in ("slow-clock", "fast-clock"):
        status, reason = found[name]
        assert status is Status.IMPOSSIBLE, (name, reason)
        assert reason.startswith("the job's clock accounts for ")
    still = "the job's clock stood still while it was timed"
    assert found["stopped-clock"] == (Status.IMPOSSIBLE, still)
    assert found["good-a"] == (Status.OK, "")


def test_a_plugin_that_patches_the_time_module_changes_nothing(make: Make) -> None:
    rows = make("patches-time", "good-a").run()
    assert set(ends(rows).values()) == {(Status.OK, "")}
    patched, honest = (row.timing.median_s if row.timing else 0.0 for row in rows)
    assert 1 / 10 < patched / honest < 10  # it would be a hundredth


def test_a_limit_that_leaves_no_memory_to_tell_of_it_is_told_of(make: Make) -> None:
    found = make("good-a")
    found._memory = 1024
    (row,) = found.run()
    assert row.status is Status.OUT_OF_MEMORY
    assert row.reason.endswith("(limit 1.00 KiB)")


# ---------------------------------------------------------------- where a launch works


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one core")
def test_all_that_is_timed_by_turns_stays_on_the_same_cores_of_a_lot(make: Make) -> None:
    rows = make("placed-a", "placed-b", lengths="[16, 24, 32, 40, 48, 56, 64, 72]").run()
    found = {(row.cell.problem, row.reason) for row in rows}
    assert {row.status for row in rows} == {Status.FAILED}
    assert len(found) == len({problem for problem, _ in found}) == 8
    places = {reason.partition(" (")[0] for _, reason in found}
    assert places <= {f"RuntimeError: on {{{core}}}" for core in os.sched_getaffinity(0)}
    assert len(places) > 1


# ---------------------------------------------------------------- limits of the device


class Limits:
    """Peaks that a test decides, as often as they are asked for."""

    def __init__(self, *flops_per_s: float) -> None:
        self.flops_per_s = list(flops_per_s)

    def __call__(self, server: ForkServer, device: Device, threads: int, again: bool) -> tuple[Peaks, bool]:
        rate = self.flops_per_s.pop(0)
        return (
            Peaks(device="d", threads=1, torch="2", flops_per_s={"float32": rate}, bytes_per_s={}),
            again,
        )


FLOPS = 4 * 16 * 16 * 8 * 2  # of the problem of these tests


def limited(make: Make, monkeypatch: pytest.MonkeyPatch, *flops_per_s: float) -> tuple[Result, Limits]:
    limits = Limits(*flops_per_s)
    monkeypatch.setattr(runner, "known_peaks", limits)
    (row,) = make("good-a", limits=True).run()
    return row, limits


def test_a_time_below_the_floor_is_impossible_and_says_so_in_figures(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    row, limits = limited(make, monkeypatch, 1.0, 2.0)
    assert row.status is Status.IMPOSSIBLE
    least = seconds_text(FLOPS / (1.5 * 2.0))
    assert row.reason.endswith(
        f"where this device needs {least} at least: 0.0000164 GFLOP at 1.5 x 2.00 FLOP/s"
    )
    assert limits.flops_per_s == []  # measured again before the verdict


def test_peaks_that_were_measured_on_a_busy_machine_accuse_nobody(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    row, limits = limited(make, monkeypatch, 1.0, 1e15)
    assert (row.status, row.reason) == (Status.OK, "")
    assert limits.flops_per_s == []
    assert row.timing is not None
    assert row.timing.floor_s == pytest.approx(FLOPS / 1.5e15)


def test_what_is_slow_enough_does_not_ask_again(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    row, limits = limited(make, monkeypatch, 1e15, 1.0)
    assert row.status is Status.OK
    assert limits.flops_per_s == [1.0]


def test_an_approximation_may_do_less_than_the_floor(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "known_peaks", Limits(1.0))
    job = make("good-a", limits=True)
    rough = replace(job.registry.implementations["good-a"], approximation="fewer keys")
    job.registry.implementations["good-a"] = rough  # type: ignore[index]
    (row,) = job.run()
    assert row.status is Status.OK
    assert row.timing is not None
    assert row.timing.floor_s is None


def test_a_run_in_a_hurry_measures_no_peaks(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "known_peaks", Limits())
    (row,) = make("good-a", limits=True, time_budget_s=20.0).run()
    assert row.status is Status.OK


def test_peaks_are_measured_in_a_process_of_their_own_once(
    server: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cpu = Device(kind="cpu", name="A CPU")
    found, kept = runner.known_peaks(server, cpu, 1)
    assert kept
    assert found is not None
    assert found.flops_per_s["float32"] > 1e8
    monkeypatch.setattr(runner, "PEAKS", "no:entry")
    assert runner.known_peaks(server, cpu, 1) == (found, True)
    assert runner.known_peaks(server, cpu, 1, again=True) == (found, True)
    assert runner.known_peaks(server, cpu, 2) == (None, False)


def course(blocks: list[tuple[float, float]]) -> Course:
    """A course whose blocks took so long by the worker's clock and by the parent's."""
    made = Course(call_s=1e-4, budget_s=1.0, launches=1, width=0.01)
    for round_, (busy, elapsed) in enumerate(blocks):
        made.add(Taken(seconds=(1e-4,) * 5, flagged=(), busy_s=busy, last=None), elapsed, round_)
    return made


def test_one_prompt_exchange_of_messages_clears_a_job_on_a_busy_machine() -> None:
    late = [(4e-3, 60e-3), (4e-3, 35e-3)]
    assert course(late).unaccounted() is not None
    assert course([*late, (4e-3, 4.3e-3)]).unaccounted() is None


def test_no_block_may_last_longer_inside_than_outside() -> None:
    assert course([(3e-3, 3.2e-3)] * 9 + [(30e-3, 3.2e-3)]).unaccounted() is not None


def test_short_blocks_are_no_place_to_hide() -> None:
    assert course([(3e-5, 3e-3)] * 100).unaccounted() is not None
    assert course([(3e-3, 3.2e-3)] * 100).unaccounted() is None


def test_samples_longer_than_their_block_are_impossible() -> None:
    made = Course(call_s=1e-4, budget_s=1.0, launches=1, width=0.01)
    made.add(Taken(seconds=(1e-2,) * 5, flagged=(), busy_s=5e-4, last=None), 6e-4, 0)
    assert made.unaccounted() is not None


@pytest.mark.parametrize(("late_blocks", "looks"), [(3, range(1, 9)), (1000, range(2, 9))])
def test_a_busy_machine_makes_no_job_impossible(
    make: Make, monkeypatch: pytest.MonkeyPatch, late_blocks: int, looks: range
) -> None:
    whole = Course.add

    def late(self: Course, taken: Taken, elapsed_s: float, round_: int, running: int | None) -> None:
        whole(self, taken, elapsed_s + 0.02 * (len(self.blocks) < late_blocks), round_, running)

    monkeypatch.setattr(Course, "add", late)
    monkeypatch.setattr(Course, "enough", lambda self, hurry: len(self.blocks) >= 3)
    (row,) = make("good-a").run()
    assert (row.status, row.reason) == (Status.OK, "")
    assert len(row.blocks) - 3 in looks


# ---------------------------------------------------------------- cohorts


def candidates(job: Runner, *bytes_: int) -> list[Candidate]:
    """A candidate for each job of a runner's plan, that needs so many bytes."""
    return [
        Candidate(
            planned=planned,
            answer={},
            accuracy=accuracy(),
            memory=Memory(input_bytes=1, output_bytes=1, workspace_bytes=need - 2, method="rss"),
            course=cast(Course, None),
            canary=cast(Child, None),
        )
        for planned, need in zip(job.plan.jobs, bytes_, strict=True)
    ]


def names(cohorts: list[list[Candidate]]) -> list[list[str]]:
    return [[c.planned.cell.implementation for c in cohort] for cohort in cohorts]


def test_what_fits_into_memory_is_measured_together(make: Make) -> None:
    job = make("good-*")
    assert names(job._cohorts(candidates(job, 10, 10, 10), 30)) == [["good-a", "good-b", "good-c"]]


def test_where_memory_is_short_every_cohort_holds_the_baseline(make: Make) -> None:
    job = make("good-*")
    assert names(job._cohorts(candidates(job, 10, 10, 10), 29)) == [
        ["good-a", "good-b"],
        ["good-a", "good-c"],
    ]


def test_every_cohort_holds_the_baseline_of_each_mode(make: Make) -> None:
    job = make("good-*", cache="[warm, cold]", devices=[SMALL_CACHE])
    found = candidates(job, *[10] * 6)

    def cohorts(limit: int) -> list[list[str]]:
        return [
            [f"{c.planned.cell.cache}:{c.planned.cell.implementation[-1]}" for c in cohort]
            for cohort in job._cohorts(found, limit)
        ]

    both = ["warm:a", "cold:a"]
    assert cohorts(60) == [[*both, "warm:b", "warm:c", "cold:b", "cold:c"]]
    assert cohorts(40) == [[*both, "warm:b", "warm:c"], [*both, "cold:b", "cold:c"]]
    assert cohorts(19) == [["warm:a"], ["warm:b"], ["warm:c"], ["cold:a"], ["cold:b"], ["cold:c"]]
    for candidate in found[3:]:
        candidate.caching = Caching(bytes=10)
    assert cohorts(40) == [[*both, "warm:b"], [*both, "warm:c"], ["cold:b"], ["cold:c"]]


def test_what_does_not_fit_beside_the_baseline_stands_alone(make: Make) -> None:
    job = make("good-*")
    assert names(job._cohorts(candidates(job, 10, 25, 10), 30)) == [["good-a", "good-c"], ["good-b"]]


def test_without_its_baseline_the_first_that_is_right_takes_its_place(make: Make) -> None:
    job = make("good-*")
    found = candidates(job, 10, 10, 10)[1:]
    assert names(job._cohorts(found, 15)) == [["good-b"], ["good-c"]]
    assert names(job._cohorts(found, 20)) == [["good-b", "good-c"]]
    assert job._cohorts([], 20) == []


def test_every_candidate_is_in_a_cohort_that_fits(make: Make) -> None:
    job = make("good-*", "half", "*-clock", "patches-time")
    rng = random.Random(5)
    for _ in range(200):
        found = candidates(job, *(rng.randrange(2, 60) for _ in job.plan.jobs))
        cohorts = job._cohorts(found, 100)
        placed = [c.planned.cell.implementation for cohort in cohorts for c in cohort]
        assert set(placed) == {c.planned.cell.implementation for c in found}
        assert len(placed) == len(found) + placed.count("good-a") - 1
        for cohort in cohorts:
            assert sum(2 + c.memory.workspace_bytes for c in cohort) <= 100 or len(cohort) == 1


def test_cohorts_are_measured_one_after_the_other(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def pairs(self: Runner, found: list[Candidate], limit: int) -> list[list[Candidate]]:
        return [[found[0], other] for other in found[1:]]

    monkeypatch.setattr(Runner, "_cohorts", pairs)
    rows = make("good-*", budget="200ms").run()
    assert set(ends(rows).values()) == {(Status.OK, "")}
    rounds = [{block.round for block in row.blocks} for row in rows]
    assert rounds[0] & rounds[1]
    assert rounds[0] & rounds[2]
    assert not rounds[1] & rounds[2]


def test_every_launch_is_a_fresh_process(
    make: Make, server: ForkServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []
    start = ForkServer.start

    def note(self: ForkServer, entry: str) -> Any:
        started.append(entry)
        return start(self, entry)

    monkeypatch.setattr(ForkServer, "start", note)
    (row,) = make("good-a", launches=3).run()
    assert row.timing is not None
    assert row.timing.launches == 3
    assert {block.launch for block in row.blocks} == {0, 1, 2}
    assert started.count(runner.WORKER) == 1 + 3  # canary, launches
    assert started.count(runner.JUDGE) == 1


# ---------------------------------------------------------------- what is left behind


def test_outputs_on_their_way_to_the_judge_do_not_stay(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folders: list[Path] = []
    owns = ForkServer.owns

    def note(self: ForkServer, scratch: str) -> None:
        folders.append(Path(scratch))
        owns(self, scratch)

    monkeypatch.setattr(ForkServer, "owns", note)
    make("half", "good-a", lengths="[8, 16]").run()  # what is wrong leaves its second output unread
    assert len(folders) == 2
    assert not any(folder.exists() for folder in folders)


def test_a_killed_runner_leaves_no_outputs_in_memory(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (scratch / "output").write_bytes(b"x" * 1000)
    program = (
        "import os, signal, sys, time; from attnbench.forkserver import ForkServer\n"
        "s = ForkServer([]); s.wait(); os.kill(s.process.pid, signal.SIGSTOP); s.owns(sys.argv[1])\n"
        "print(s.process.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(scratch)], stdout=subprocess.PIPE, text=True
    ) as killed:
        assert killed.stdout is not None
        pid = int(killed.stdout.readline())
        killed.send_signal(signal.SIGKILL)
    os.kill(pid, signal.SIGCONT)  # now it learns of the folder and of the end at once
    end = time.monotonic() + 10
    while scratch.exists() and time.monotonic() < end:
        time.sleep(0.01)
    assert not scratch.exists()


def test_a_runner_that_is_killed_while_a_worker_ends_leaves_nothing_either(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    program = (
        "import os, signal, sys, time; from attnbench.forkserver import ForkServer\n"
        "s = ForkServer(['entries']); s.owns(sys.argv[1]); a = s.start('entries:leave'); a.ask({}, 5)\n"
        "a.channel.sock.close()  # it ends, and the server waits for what it leaves behind\n"
        "time.sleep(0.2); os.kill(os.getpid(), signal.SIGKILL)"
    )
    marker = f"{tmp_path}#ending"
    path = str(Path(__file__).parent / "entries")
    with subprocess.Popen(
        [sys.executable, "-c", program, str(scratch)],
        env={**os.environ, "PYTHONPATH": path, VARIABLE: marker},
        stderr=subprocess.PIPE,
    ) as killed:
        assert killed.stderr is not None
        told = killed.stderr.read()  # until the server, which shares it, has ended too
    assert (killed.returncode, told) == (-signal.SIGKILL, b"")
    assert not scratch.exists()
    assert living(marker) == []


@pytest.mark.parametrize("moment", ["is born", "imports"])
def test_a_starting_server_ends_with_its_runner(tmp_path: Path, moment: str) -> None:
    (tmp_path / "sleepy.py").write_text(
        "import time; from pathlib import Path\nPath(__file__).with_name('importing').touch(); time.sleep(60)"
    )
    program = "from attnbench.forkserver import ForkServer; ForkServer(['sleepy']).wait()"
    marker = f"{tmp_path}#starting"
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(tmp_path), VARIABLE: marker},
        stderr=subprocess.PIPE,
    ) as killed:
        assert killed.stderr is not None
        end = time.monotonic() + 10
        while time.monotonic() < end:
            if len(living(marker)) == 2 and (moment == "is born" or (tmp_path / "importing").exists()):
                break
            time.sleep(0.01)
        killed.send_signal(signal.SIGKILL)
        assert left_after(marker) == []
        assert killed.stderr.read() == b""
