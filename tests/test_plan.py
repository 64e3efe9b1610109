import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attnbench import plan, plugins, suites
from attnbench.cli import main
from attnbench.errors import UserError
from attnbench.implementation import Capabilities, Device, Implementation, available, no_objection
from attnbench.plugins import Registry
from attnbench.records import Status
from attnbench.suites import Suite

CPU = (Device(kind="cpu"),)
CUDA = Device(kind="cuda", name="H200", compute_capability=(9, 0))


def implementation(
    name: str,
    *,
    requires: tuple[str, ...] = (),
    objection: Callable[..., Any] = no_objection,
    unavailable: Callable[..., Any] = available,
    **can: Any,
) -> Implementation:
    return Implementation(
        name=name,
        summary="s",
        capabilities=Capabilities(dtypes=frozenset({"float32"}), **can),
        prepare=lambda problem, inputs: lambda: None,
        requires=requires,
        objection=objection,
        unavailable=unavailable,
    )


def registry(*implementations: Implementation) -> Registry:
    return Registry(plugins=(), implementations={i.name: i for i in implementations}, owners={})


def suite(text: str = "", *overrides: str) -> Suite:
    problems = "problems:\n  - {seqlen: [8, 16], heads: 2, head_dim: 4, mask: [full, causal]}\n"
    return suites.parse(f"question: q\n{text}\n{problems}", "s.yaml", overrides)


def make(of: Suite, found: Registry, **options: Any) -> plan.Plan:
    return plan.make(of, found, **{"devices": CPU, "threads": 2, **options})


ONE, TWO = implementation("one"), implementation("two", masks=frozenset({"full", "causal"}))


# ---------------------------------------------------------------- cells


def test_every_cell_is_a_job_or_says_why_not() -> None:
    made = make(suite(), registry(ONE, TWO))
    assert len(made.cells) == 8
    assert len(made.jobs) == 6
    others = [cell for cell in made.cells if cell.status is not None]
    assert {(c.cell.implementation, c.status, c.reason) for c in others} == {
        ("one", Status.UNSUPPORTED, "no causal mask")
    }


def test_the_jobs_of_one_problem_on_one_device_stand_together() -> None:
    devices = (*CPU, CUDA)
    both = implementation("both", devices=frozenset({"cpu", "cuda"}))
    found = registry(both, implementation("too", devices=frozenset({"cpu", "cuda"})))
    groups = list(make(suite(), found, devices=devices).groups())
    assert [(problem.text.split()[1], device.kind, len(jobs)) for problem, device, jobs in groups] == [
        (f"seqlen={n}", kind, 2) for n in (8, 16) for kind in ("cpu", "cuda")
    ]
    assert all(job.problem is problem for problem, _, jobs in groups for job in jobs)
    assert groups[1][1] is CUDA  # with its name and its memory


def test_an_objection_in_words_is_the_reason() -> None:
    odd = implementation("odd", objection=lambda problem, device: f"no luck on {device}")
    made = make(suite(), registry(odd, TWO), only=["odd"])
    assert {c.reason for c in made.cells} == {"no luck on cpu", "no causal mask"}


def test_what_is_not_installed_is_unavailable() -> None:
    wanting = implementation("wanting", requires=("numpy", "no-such-distribution"))
    made = make(suite(), registry(wanting))
    assert {(c.status, c.reason) for c in made.cells} == {
        (Status.UNAVAILABLE, "needs no-such-distribution, which is not installed"),
        (Status.UNSUPPORTED, "no causal mask"),
    }


def test_an_implementation_may_say_that_it_is_unavailable_on_a_device() -> None:
    both = implementation(
        "both", devices=frozenset({"cpu", "cuda"}), unavailable=lambda device: f"no compiler for {device}"
    )
    made = make(suite(), registry(both), devices=(*CPU, CUDA))
    assert {(c.status, c.reason) for c in made.cells} == {
        (Status.UNAVAILABLE, "no compiler for cpu"),
        (Status.UNAVAILABLE, f"no compiler for {CUDA}"),
        (Status.UNSUPPORTED, "no causal mask"),
    }


def test_a_device_that_is_missing_makes_its_cells_unavailable() -> None:
    gpu = implementation("gpu", devices=frozenset({"cuda"}))
    made = make(
        suite("", "device=cuda"),
        registry(gpu, ONE),
        devices=plan.resolve(["cuda"]),
        missing={"cuda:0": "no CUDA device (gone)"},
    )
    ends = {(c.cell.implementation, c.status, c.reason) for c in made.cells}
    assert ends == {(name, Status.UNAVAILABLE, "no CUDA device (gone)") for name in ("gpu", "one")}


def test_a_cuda_device_is_timed_by_events_and_the_cpu_by_the_wall_clock() -> None:
    both = implementation("both", devices=frozenset({"cpu", "cuda"}))
    made = make(suite(), registry(both), devices=(*CPU, CUDA))
    assert {(c.cell.device, c.cell.clock) for c in made.cells} == {("cpu", "wall"), ("cuda:0", "events")}


def test_the_job_is_part_of_the_cells_key() -> None:
    (first, *_) = make(suite("measure: {cache: cold}"), registry(ONE), threads=3).cells
    assert first.cell.key == (first.problem.text, "one", "cpu", 3, "cold", "wall")


def test_modes_of_the_cache_are_cells_of_the_same_group() -> None:
    of = suite("measure: {cache: [warm, cold, warm]}")
    made = make(of, registry(TWO, ONE))
    assert len(made.cells) == 16 == len(of.problems) * plan.width(of, registry(TWO, ONE))
    for problem, _, jobs in made.groups():
        names = ["two", "one"] if problem.mask.name == "full" else ["two"]
        assert [(j.cell.cache, j.cell.implementation) for j in jobs] == [
            (cache, name) for cache in ("warm", "cold") for name in names
        ]
    assert made.seconds > 2 * make(suite(), registry(TWO, ONE)).seconds


# ---------------------------------------------------------------- devices


def test_devices_are_resolved_without_looking_for_them() -> None:
    assert plan.resolve(["cpu", "cuda", "cuda:1"]) == (
        Device(kind="cpu"),
        Device(kind="cuda", index=0),
        Device(kind="cuda", index=1),
    )


def test_devices_that_were_found_bring_what_is_known_of_them() -> None:
    assert plan.resolve(["cuda", "cpu", "cuda:0"], [CUDA]) == (CUDA, *CPU)


def test_a_device_that_is_too_old_is_known_only_once_it_was_found() -> None:
    new = implementation("new", devices=frozenset({"cuda"}), compute_capability=(10, 0))
    blind = make(suite(), registry(new), devices=plan.resolve(["cuda"]))
    assert len(blind.jobs) == 2
    seen = make(suite(), registry(new), devices=plan.resolve(["cuda"], [CUDA]))
    assert "needs compute capability 10.0, H200 has 9.0" in {c.reason for c in seen.cells}
    assert not seen.jobs


# ---------------------------------------------------------------- blocks

FOR_EACH = (
    "problems:\n"
    "  - {device: cpu, seqlen: [8, 16], heads: 2, head_dim: 4}\n"
    "  - {device: cuda, seqlen: [16, 32], heads: 2, head_dim: 4}\n"
)


def test_a_block_for_a_kind_of_device_makes_cells_there_only() -> None:
    of = suites.parse(f"question: q\n{FOR_EACH}", "s.yaml")
    both = registry(implementation("both", devices=frozenset({"cpu", "cuda"})))
    made = make(of, both, devices=(*CPU, CUDA))
    assert [(c.problem.sequences[0][0], c.cell.device) for c in made.cells] == [
        (8, "cpu"),
        (16, "cpu"),
        (16, "cuda:0"),
        (32, "cuda:0"),
    ]
    assert len(make(of, both, devices=(CUDA,)).cells) == 2


def test_a_suite_without_a_block_for_a_device_says_so() -> None:
    of = suites.parse(f"question: q\n{FOR_EACH.splitlines()[0]}\n{FOR_EACH.splitlines()[2]}\n", "s.yaml")
    with pytest.raises(UserError) as caught:
        make(of, registry(ONE))
    assert caught.value.message == "no block of the suite is for cpu"
    assert caught.value.hint == "one is for cuda: --device cuda"


def test_a_plan_tells_what_varies_and_how_much_is_excluded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "s.yaml").write_text(
        "question: q\nproblems:\n"
        "  - {seqlen: {geometric: [1, 1024]}, batch: [1, 2], exclude: {batch: 2, seqlen: 1024}, heads: 2, head_dim: 4}\n"
        "  - {zip: {seqlen_q: [1, 4], seqlen_kv: [8, 16]}, dtype: bfloat16, heads: 2, head_dim: 4}\n"
        "  - {device: cuda, seqlen: [8, 16], exclude: {seqlen: 8}, heads: 2, head_dim: 4}\n"
    )
    words = ["plan", str(tmp_path / "s.yaml"), "--only", "numpy"]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "problems         23; combinations excluded: 1\n" in told
    assert told.split("\nblocks:\n")[1].split("\nnot jobs:")[0] == (
        "  line 3: 22 combinations, 1 excluded\n"
        "    seqlen  1, 2, 4, 8, ... 11 in all ..., 512, 1024\n"
        "    batch   1, 2\n"
        "  line 4: 2 combinations\n"
        "    seqlen_q with seqlen_kv  1 with 8, 4 with 16\n"
        "  line 5: 2 combinations, 1 excluded, for cuda only, which is not in this plan\n"
    )


def test_a_plan_of_one_problem_has_nothing_that_varies(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--problem", "seqlen=8 heads=2 head_dim=4", "--only", "numpy"]) == 0
    assert "blocks" not in capsys.readouterr().out


# ---------------------------------------------------------------- choosing


@pytest.mark.parametrize(
    ("text", "only", "without", "expected"),
    [
        ("", [], [], ["torch-a", "torch-b", "numpy"]),
        ("implementations: torch-*", [], [], ["torch-a", "torch-b"]),
        ("implementations: torch-*", ["*-b"], [], ["torch-b"]),
        ("implementations: [numpy, torch-a]", [], ["numpy"], ["torch-a"]),
        ("", ["numpy", "torch-?"], ["*-a"], ["torch-b", "numpy"]),
    ],
)
def test_globs_choose_implementations(
    text: str, only: list[str], without: list[str], expected: list[str]
) -> None:
    found = registry(*map(implementation, ("torch-a", "torch-b", "numpy")))
    made = make(suite(text), found, only=only, without=without)
    assert list(dict.fromkeys(c.cell.implementation for c in made.cells)) == expected


@pytest.mark.parametrize(
    ("text", "options", "place"),
    [
        ("implementations: [torch-*, {}]", {}, "s.yaml:2: "),
        ("implementations:\n  - torch-sdpa\n  - {}", {}, "s.yaml:4: "),
        ("", {"only": ["torch-*", "{}"]}, ""),
        ("", {"without": ["{}"]}, ""),
    ],
)
@pytest.mark.parametrize(
    ("glob", "close"),
    [
        ("torch-sdpb", "torch-sdpa"),
        ("torhc-*", "torch-*"),
        ("trch-*", "torch-*"),
        ("*-sdap", "*-sdpa"),
        ("t*-sdpq", "t*-sdpa"),
        ("t?rhc-sdpa", "t?rch-sdpa"),
    ],
)
def test_a_glob_that_matches_nothing_is_an_error_with_its_place_and_a_suggestion(
    text: str, options: dict[str, list[str]], place: str, glob: str, close: str
) -> None:
    found = registry(implementation("torch-sdpa"), implementation("numpy"))
    chosen = {name: [g.format(glob) for g in globs] for name, globs in options.items()}
    with pytest.raises(UserError) as caught:
        make(suite(text.format(f'"{glob}"')), found, **chosen)
    assert caught.value.message == f"{place}no implementation matches `{glob}`"
    assert caught.value.hint == f"did you mean `{close}`?"


@pytest.mark.parametrize("glob", ["**x", "[ab", "", "?", "mamba-*"])
def test_a_glob_unlike_any_name_is_answered_with_the_names(glob: str) -> None:
    with pytest.raises(UserError) as caught:
        make(suite(), registry(implementation("torch-sdpa"), implementation("numpy")), only=[glob])
    assert caught.value.hint == "one of: numpy, torch-sdpa"


def test_nothing_left_to_run_is_an_error() -> None:
    with pytest.raises(UserError, match="no implementation is left to run"):
        make(suite("implementations: one"), registry(ONE, TWO), without=["one"])


def test_an_unknown_baseline_is_an_error_with_a_suggestion() -> None:
    with pytest.raises(UserError) as caught:
        make(suite("baseline: tow"), registry(ONE, TWO))
    assert caught.value.message == "s.yaml:2: the baseline `tow` is no implementation"
    assert caught.value.hint == "did you mean `two`?"


def test_a_baseline_that_was_not_chosen_is_left_out() -> None:
    assert make(suite("baseline: two"), registry(ONE, TWO)).baseline == "two"
    assert make(suite("baseline: two"), registry(ONE, TWO), only=["one"]).baseline is None


# ---------------------------------------------------------------- how long


def test_the_budget_is_the_presets_unless_the_suite_has_its_own() -> None:
    assert make(suite("measure: {preset: quick}"), registry(ONE)).budget_s == 0.5
    assert make(suite("measure: {preset: quick, budget: 2s}"), registry(ONE)).budget_s == 2


def test_the_estimate_grows_with_jobs_and_with_work() -> None:
    few, more = (make(suite(), registry(*found)).seconds for found in ([ONE], [ONE, TWO]))
    assert 2 * (3 + 4 * plan.PROCESS_S["cpu"]) <= few < more
    long = suites.parse(
        "question: q\nproblems: {seqlen: 131072, heads: 32, head_dim: 128}", "s.yaml"
    )  # 2 * 131072**2 * 256 * 32 floating-point operations, at least three times
    assert make(long, registry(ONE)).seconds > 3 * 2 * 131072**2 * 256 * 32 / 2e10


# ---------------------------------------------------------------- large plans


def test_too_many_cells_are_counted_and_not_made() -> None:
    problem = suite().problems[0]

    def never(*_: object) -> str:
        raise AssertionError("a cell was made")

    several = registry(*(implementation(f"i{n}", objection=never) for n in range(5)))
    large = suite()
    object.__setattr__(large, "problems", (problem,) * 200_001)
    with pytest.raises(UserError) as caught:
        make(large, several)
    assert caught.value.message == "the plan has 1,000,005 cells, more than 1,000,000"


def test_the_cells_of_a_problem_are_those_that_a_plan_makes_of_it() -> None:
    both = registry(ONE, TWO)
    of = suite("implementations: t*\ndevice: [cpu, cuda, cuda:0]")
    for only in ([], ["one", "two"]):
        made = make(of, both, devices=plan.resolve(of.devices), only=only)
        assert plan.width(of, both, only=only) * len(of.problems) == len(made.cells)


MEASURED = """
import sys, time
from attnbench.cli import main
code = main(sys.argv[1:])
with open("/proc/self/status") as status:  # ru_maxrss would count the process that started this one
    peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
print(f'[{code}, {time.process_time()}, {peak}]', file=sys.stderr)
"""


def measured(*words: str) -> tuple[int, float, int, str, str]:
    """Exit code, seconds of CPU time, peak bytes, standard output and the rest of standard error."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *words], capture_output=True, text=True, timeout=120
    )
    *told, last = done.stderr.splitlines()
    code, seconds, peak = json.loads(last)
    return code, seconds, peak, done.stdout, "\n".join(told)


SIX = "[numpy, torch-naive, torch-chunked, torch-sdpa, torch-sdpa-math, torch-sdpa-flash]"


@pytest.mark.parametrize(
    ("lengths", "only", "cells"), [(1000, ["--only", "numpy"], 100_000), (167, [], 100_200)]
)
def test_a_hundred_thousand_cells_are_planned_in_three_seconds(
    tmp_path: Path, lengths: int, only: list[str], cells: int
) -> None:
    values = {"seqlen": list(range(1, lengths + 1)), "heads": list(range(1, 101)), "head_dim": 64}
    text = f"question: q\nimplementations: {SIX}\nproblems: {json.dumps(values)}\n"
    (tmp_path / "many.yaml").write_text(text)
    for _ in range(5):  # the least of a few: what shares the core can only add to CPU time
        code, seconds, peak, out, err = measured("plan", str(tmp_path / "many.yaml"), *only)
        assert (code, err) == (0, "")
        assert f"cells            {cells}, of which " in out
        assert peak < 500e6
        if seconds < 3:
            return
    pytest.fail(f"planning {cells} cells took {seconds:.3g} s of CPU time")


def test_a_suite_of_a_million_combinations_is_refused_before_it_is_expanded(tmp_path: Path) -> None:
    values = {"seqlen": list(range(1, 1002)), "heads": list(range(1, 1001)), "head_dim": 64}
    (tmp_path / "many.yaml").write_text(f"question: q\nproblems:\n  {json.dumps(values)}\n")
    code, seconds, peak, out, err = measured("plan", str(tmp_path / "many.yaml"), "--only", "numpy")
    assert (code, out) == (2, "")
    assert "1,001,000 combinations of values, more than 1,000,000" in err
    assert seconds < 1  # expanding them takes about twenty
    assert peak < 100e6


@pytest.mark.parametrize("verb", ["plan", "run"])
def test_a_plan_of_a_million_cells_is_refused_before_its_problems_are_made(tmp_path: Path, verb: str) -> None:
    values = {"seqlen": list(range(1, 1000)), "heads": list(range(1, 1001)), "head_dim": 64}
    text = f"question: q\nimplementations: [numpy, torch-naive]\nproblems: {json.dumps(values)}\n"
    (tmp_path / "many.yaml").write_text(text)
    code, seconds, peak, out, err = measured(verb, str(tmp_path / "many.yaml"))
    assert (code, out) == (2, "")
    assert "many.yaml:3: 999,000 combinations of values of 2 cells each, 1,998,000 in all" in err
    assert seconds < 2  # making the problems takes about twenty
    assert peak < 100e6


@pytest.mark.parametrize("words", ["mechanism=entmax:alpha=1", "shared_kv=true dropout=0.1"])
def test_what_cannot_be_verified_is_not_timed_whatever_a_plugin_says(tmp_path: Path, words: str) -> None:
    found = suites.suite_of_problem(f"seqlen=64 heads=2 head_dim=16 {words}")
    registry = plugins.discover()
    able = registry.implementations["torch-naive"]
    everything = dataclasses.replace(
        able.capabilities,
        mechanisms=frozenset({"softmax", "entmax"}),
        shared_kv=True,
        dropout=True,
    )
    able = dataclasses.replace(able, capabilities=everything)
    boasting = dataclasses.replace(registry, implementations={"torch-naive": able})
    (cell,) = plan.make(found, boasting, devices=plan.resolve(["cpu"]), threads=1, only=["torch-naive"]).cells
    assert cell.status is Status.UNSUPPORTED
    assert "no reference" in cell.reason


@pytest.mark.parametrize(
    ("setting", "reason"),
    [("measure.cache=cold", plan.NO_CACHE), ("measure.clock=events", "no events clock on a cpu")],
)
def test_a_setting_that_cannot_be_measured_yet_is_a_row_with_its_reason(setting: str, reason: str) -> None:
    suite = suites.suite_of_problem("seqlen=64 heads=2 head_dim=16", [setting])
    devices = [Device(kind="cpu", cache_bytes=0)]
    made = plan.make(suite, plugins.discover(), devices=devices, threads=1, only=["torch-sdpa"])
    assert {(cell.status, cell.reason) for cell in made.cells} == {(Status.UNSUPPORTED, reason)}


def test_a_plugin_given_on_the_command_line_joins_the_suites_implementations(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from attnbench import Capabilities, Implementation, hookimpl\n"
        "@hookimpl\ndef attnbench_implementations():\n"
        "    can = Capabilities(dtypes=frozenset({'float32'}))\n"
        "    yield Implementation(name='mine', summary='', capabilities=can, prepare=lambda p, i: lambda: i.q)\n"
    )
    suite = suites.suite_of_problem("seqlen=64 heads=2 head_dim=16", ["implementations=torch-sdpa"])
    registry = plugins.discover([str(path)])
    names = [
        [
            c.cell.implementation
            for c in plan.make(suite, registry, devices=plan.resolve(["cpu"]), threads=1, only=only).cells
        ]
        for only in ([], ["numpy"])
    ]
    assert names == [["torch-sdpa", "mine"], ["numpy"]]
