"""`pytest --attnbench SUITE`, as a stranger with a plugin of her own calls it: in processes, with the entry point."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from xml.etree import ElementTree

import pytest
from entry_points import installed
from processes import VARIABLE, left_after

ROOT = Path(__file__).parents[1]

COMMON = """
import os
import time

from attnbench import Capabilities, Implementation, hookimpl


def fused(inputs):
    import torch

    return torch.nn.functional.scaled_dot_product_attention(inputs.q, inputs.k, inputs.v)


def crashes(inputs):
    print("last words", flush=True)
    os.abort()


def raises(inputs):
    raise ValueError("never again")


def implementation(name, attend, **more):
    def prepare(problem, inputs):
        with open("prepared.txt", "a") as file:
            traced = [name for name in os.environ if "COVERAGE" in name]
            print(name, problem.dtype.value, problem.uniform[0], *traced, file=file)
        return lambda: attend(inputs)

    return Implementation(
        name=name,
        summary="for the tests of the plugin for pytest",
        capabilities=Capabilities(dtypes=frozenset({"float32"}), devices=frozenset({"cpu", "cuda"})),
        prepare=prepare,
        qkv_format="bhsd",
        **more,
    )


"""

MINE = """
@hookimpl
def attnbench_implementations():
    yield implementation("my-right", fused)
    yield implementation("my-twin", fused)
    yield implementation("my-wrong", lambda inputs: 1.01 * fused(inputs))
    yield implementation("my-missing", fused, requires=("no-such-distribution",))
"""

ILL = """
@hookimpl
def attnbench_implementations():
    yield implementation("my-crash", crashes)
    yield implementation("my-error", raises)
    yield implementation("my-sleep", lambda inputs: time.sleep(600))
"""

SUITE = """\
question: Does it work?
implementations: [my-right, my-twin, my-wrong, my-missing]
problems:
  - {batch: 1, heads: 2, head_dim: 16, seqlen: [24, 16], dtype: [float32, bfloat16]}
measure: {preset: quick, budget: 20ms, threads: 1}
"""

FIRST, SECOND = (
    f"suites/mine.yaml::batch=1 seqlen={n} heads=2 head_dim=16 dtype=float32 mask=full" for n in (24, 16)
)
ONE_THREAD = ("--attnbench-set", "measure.threads=1")
OPTIONS = ("--attnbench", "suites/mine.yaml", "--attnbench-plugin", "mine.py")
Pytest = Callable[..., subprocess.CompletedProcess[str]]


def stranger(folder: Path) -> Pytest:
    """A project with a plugin, a suite and a test in `folder`; returns what calls pytest there."""
    (folder / "suites").mkdir()
    (folder / "suites/mine.yaml").write_text(SUITE)
    (folder / "mine.py").write_text(COMMON + MINE)
    (folder / "ill.py").write_text(COMMON + ILL)
    (folder / "test_hers.py").write_text("def test_hers():\n    assert True\n")
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers\nfilterwarnings = error\n")
    installed(folder / "site")
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(folder / "site")])

    def call(
        *words: str, code: int = 0, start: str = "", below: str = "", **more: str
    ) -> subprocess.CompletedProcess[str]:
        begin = ["-c", start] if start else ["-m", "pytest"]
        done = subprocess.run(
            [sys.executable, *begin, *words],
            cwd=folder / below,
            env=env | more,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return call


@pytest.fixture
def call(tmp_path: Path) -> Pytest:
    return stranger(tmp_path)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a session of all tests, and what it printed. No test lasts longer than half a second."""
    folder = tmp_path_factory.mktemp("measured")
    reports = ("--junitxml=junit.xml", "--benchmark-json=found.json", "--benchmark-autosave", "-rs")
    more = ("--attnbench-plugin", "ill.py", "--attnbench-without", "my-sleep")
    done = stranger(folder)(*OPTIONS, *more, *reports, "-o", "timeout=0.5", code=1)
    return folder, done.stdout


def collected(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stdout.splitlines() if "::" in line]


# ---------------------------------------------------------------- where the option is not given


LOADED = """
import sys, pytest
{before}
code = pytest.main(["-q", *sys.argv[1:]])
print(*sorted(m for m in sys.modules if m.partition(".")[0] in ("attnbench", "torch", "yaml")))
sys.exit(code)
"""


def test_a_run_without_the_option_imports_two_small_modules(call: Pytest) -> None:
    done = call(start=LOADED.format(before=""))
    assert done.stdout.splitlines()[-1] == "attnbench attnbench.pytest_plugin"
    assert "1 passed" in done.stdout


def test_who_imports_attnbench_before_pytest_does_gets_no_warning(call: Pytest) -> None:
    """pytest warns of modules that it comes too late to rewrite, which may be an error."""
    done = call(start=LOADED.format(before="import attnbench; attnbench.Implementation"))
    assert "1 passed" in done.stdout
    assert "warning" not in done.stdout


def test_check_implementation_fails_with_its_reason_alone(call: Pytest, tmp_path: Path) -> None:
    (tmp_path / "test_hers.py").write_text(CHECKS)
    told = call("-p", "no:benchmark", code=1).stdout
    assert "E       AssertionError: my-wrong is wrong on batch=" in told
    told = told.partition(" short test summary ")[0]  # which repeats it whole where CI is set
    assert told.count(" x the budget (") == 1
    assert "testing.py" not in told


CHECKS = """
from mine import attnbench_implementations

from attnbench.testing import check_implementation


def test_hers():
    check_implementation(list(attnbench_implementations())[2])
"""


# ---------------------------------------------------------------- which tests there are


def test_every_cell_is_a_test_beside_the_others(call: Pytest) -> None:
    done = call(*OPTIONS, "--collect-only", "-q")
    names = ("my-right", "my-twin", "my-wrong", "my-missing")
    problems = [p.replace("float32", dtype) for p in (FIRST, SECOND) for dtype in ("float32", "bfloat16")]
    assert collected(done) == ["test_hers.py::test_hers", *(f"{p}::{n}" for p in problems for n in names)]
    assert "16 cells of suites/mine.yaml, of which 6 are measured" in done.stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["-m", "attnbench and not skip"], [f"{p}::my-{n}" for p in (FIRST, SECOND) for n in ("right", "twin", "wrong")]),
        (["-m", "attnbench(seqlen=16, dtype='float32')", "-k", "right"], [f"{SECOND}::my-right"]),
        (["-k", "my-twin and float32", "--deselect", FIRST], [f"{SECOND}::my-twin"]),
        ([f"{FIRST}::my-right"], [f"{FIRST}::my-right"]),
        ([SECOND, "--attnbench-only", "my-w*,my-r*"], [f"{SECOND}::my-right", f"{SECOND}::my-wrong"]),
        (["suites/mine.yaml", "-k", "wrong and float32"], [f"{FIRST}::my-wrong", f"{SECOND}::my-wrong"]),
        (["test_hers.py", "-k", "hers"], ["test_hers.py::test_hers"]),
    ],
    ids=lambda value: " ".join(value[:1]),
)  # fmt: skip
def test_tests_are_chosen_as_any_others(call: Pytest, words: list[str], expected: list[str]) -> None:
    assert collected(call(*OPTIONS, "--collect-only", "-q", *words)) == expected


def test_ids_are_those_seen_from_the_folder_that_one_is_in(call: Pytest) -> None:
    words = ("--attnbench", "mine.yaml", "--attnbench-plugin", "../mine.py", "--collect-only", "-q")
    there = f"{FIRST.removeprefix('suites/')}::my-right"
    assert collected(call(*words, there, below="suites")) == [f"{FIRST}::my-right"]


def test_a_suite_that_is_shipped_goes_by_its_name(call: Pytest) -> None:
    done = call(
        "--attnbench", "quick", "--attnbench-only", "numpy", "--collect-only", "-q", "-m", "attnbench"
    )
    tests = collected(done)
    assert len(tests) == 16
    assert all(test.startswith("quick::batch=1 ") and test.endswith("::numpy") for test in tests)


# ---------------------------------------------------------------- how they end


def ends(folder: Path) -> dict[tuple[str, str, str], tuple[str, str]]:
    """(implementation, dtype, length) of each cell -> its end in JUnit's words, and the message."""
    found = {}
    for case in ElementTree.parse(folder / "junit.xml").iter("testcase"):
        if cell := re.search(r"seqlen=(\d+) .* dtype=(\w+)", case.attrib["classname"]):
            end = next((e for e in case if e.tag in ("failure", "skipped", "error")), None)
            told = ("passed", "") if end is None else (end.tag, end.attrib["message"])
            found[case.attrib["name"], cell[2], cell[1]] = told
    return found


def test_a_test_ends_as_its_cell(measured: tuple[Path, str]) -> None:
    found = ends(measured[0])
    assert len(found) == 6 * 4
    for name in ("my-right", "my-twin"):
        assert found[name, "float32", "24"] == found[name, "float32", "16"] == ("passed", "")
        assert found[name, "bfloat16", "16"] == ("skipped", f"{name}: unsupported: no bfloat16")
    end, reason = found["my-missing", "float32", "16"]
    assert end == "skipped"
    assert reason.startswith("my-missing: unavailable: needs no-such-distribution")
    for name, told in (("my-wrong", "wrong: out: "), ("my-crash", "crashed: "), ("my-error", "failed: ")):
        end, reason = found[name, "float32", "24"]
        assert end == "failure"
        assert told in reason


def test_a_wrong_cell_shows_error_budget_and_how_to_see_it_again(measured: tuple[Path, str]) -> None:
    told = measured[1].split(" my-wrong on ")[1].split("\n__")[0]
    assert re.search(r"wrong: out: row error \S+ is \S+ x the budget \(3 x yardstick \S+\), worst at", told)
    columns = dict(line.split(maxsplit=1) for line in told.splitlines() if re.match(r"\w+ {2,}", line))
    assert float(columns["err_row"]) == pytest.approx(0.01, rel=0.05)  # of an answer that is 1 % too large
    assert float(columns["yardstick_row"]) < 1e-6
    assert "--only my-wrong" in columns["repro"]
    assert f"--seed {columns['seed']}" in columns["repro"]
    assert "--plugin mine.py" in columns["repro"]


def test_no_failure_shows_a_traceback_of_pytest_or_of_attnbench(measured: tuple[Path, str]) -> None:
    assert "pytest_plugin" not in measured[1]
    assert "site-packages" not in measured[1]


def test_what_a_job_printed_stands_below_its_failure(measured: tuple[Path, str]) -> None:
    crash = measured[1].split(" my-crash on ")[1].split("\n__")[0]
    assert re.search(r"-- Captured output of the job --+\nlast words", crash)


def test_what_the_machine_lacks_is_a_skip(call: Pytest) -> None:
    words = (
        *OPTIONS,
        "-p",
        "no:benchmark",
        "-k",
        "my-right and float32",
        "--attnbench-device",
        "cuda",
        "-rs",
    )
    done = call(*words, CUDA_VISIBLE_DEVICES="")
    assert "my-right: unavailable: no CUDA device (" in done.stdout
    assert "2 skipped, 15 deselected" in done.stdout


def test_only_chosen_cells_run_and_x_stops_before_the_next_problem(call: Pytest, tmp_path: Path) -> None:
    words = (*OPTIONS, "-x", "-k", "float32 and not twin", "-p", "no:benchmark")
    done = call(*words, code=1, COVERAGE_PROCESS_START="")  # which must not reach what is timed
    assert "1 failed, 1 passed" in done.stdout
    prepared = set((tmp_path / "prepared.txt").read_text().splitlines())
    assert prepared == {"my-right float32 24", "my-wrong float32 24"}
    assert "1 failed" in call(*OPTIONS, "--lf", "-p", "no:benchmark", code=1).stdout


def test_an_interrupted_session_leaves_nothing_behind(tmp_path: Path) -> None:
    stranger(tmp_path)
    words = [*OPTIONS, "--attnbench-plugin", "ill.py", "-k", "sleep and float32"]
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path / 'site'}", VARIABLE: str(tmp_path)}
    session = subprocess.Popen(
        [sys.executable, "-m", "pytest", *words], cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True
    )
    try:
        while not (tmp_path / "prepared.txt").exists():
            assert session.poll() is None
        session.send_signal(signal.SIGINT)
        told, _ = session.communicate(timeout=60)
    finally:
        session.kill()
    assert session.returncode == pytest.ExitCode.INTERRUPTED
    assert "KeyboardInterrupt" in told
    assert left_after(str(tmp_path)) == []


def test_the_suite_of_the_example_passes(tmp_path: Path) -> None:
    pytest.importorskip("attnbench_example")
    call = stranger(tmp_path)
    shutil.copytree(ROOT / "plugins/attnbench-example", tmp_path / "example")
    done = call("--attnbench", "example/suite.yaml", "example", "--attnbench-only", "example-*", *ONE_THREAD)
    assert "4 passed" in done.stdout


# ---------------------------------------------------------------- records of pytest-benchmark


def test_every_ok_cell_is_a_record_and_no_other(measured: tuple[Path, str]) -> None:
    folder, printed = measured
    records = json.loads((folder / "found.json").read_text())["benchmarks"]
    assert {r["fullname"] for r in records} == {
        f"{p}::my-{n}" for p in (FIRST, SECOND) for n in ("right", "twin")
    }
    for record in records:
        told, stats = record["extra_info"], record["stats"]
        assert stats["rounds"] == len(stats["data"]) == told["n"] - told["n_flagged"]
        assert stats["iterations"] == told["inner"]
        assert stats["median"] == median(stats["data"])
        assert (stats["min"], told["p20_s"] < told["p80_s"]) == (told["min_s"], True)
        assert record["params"]["implementation"] == record["name"] == told["implementation"]
        assert record["group"] == record["params"]["problem"] == told["problem"]
        assert told["status"] == "ok"
        assert told["workspace_bytes"] >= 0
    assert f"benchmark '{FIRST.split('::')[1]}': 2 tests" in printed


def test_records_are_accepted_by_compare(measured: tuple[Path, str], call: Pytest) -> None:
    folder, _ = measured
    (saved,) = folder.glob(".benchmarks/*/*.json")
    found = folder / "found.json"
    done = call("compare", str(saved), str(found), "--group-by=fullname", start=COMPARE)
    assert done.stdout.count(": 2 tests") == 4
    assert len(re.findall(r"^my-(?:right|twin) \(\S+\) ", done.stdout, re.MULTILINE)) == 2 * 4
    done = call("compare", str(saved), str(found), "--group-by=param:implementation", start=COMPARE)
    assert "benchmark 'implementation=my-twin': 4 tests" in done.stdout


COMPARE = "from pytest_benchmark.cli import main; main()"


# ---------------------------------------------------------------- errors of the one who calls


@pytest.mark.parametrize(
    ("words", "error", "hint"),
    [
        (["--attnbench", "none.yaml"], "none.yaml: no such file", "give a file, or one of ours: "),
        (["--attnbench", "bad.yaml"], "bad.yaml:3: unknown key `head`", "did you mean"),
        ([*OPTIONS, "--attnbench-only", "my-rihgt"], "no implementation matches `my-rihgt`", "`my-right`"),
        ([*OPTIONS, "--attnbench-without", "*"], "no implementation is left", "loosen --attnbench-only or"),
        ([*OPTIONS, "--attnbench-preset", "quik"], "--attnbench-preset quik: ", "quick"),
        ([*OPTIONS, "--attnbench-set", "measure.threads=9999"], "`threads` is 9,999", "--attnbench-set measure"),
        ([*OPTIONS[:2], "--attnbench-plugin", "his.py"], "no plugin file `his.py`", "give a path"),
        ([*OPTIONS, f"{FIRST}::my-rihgt"], f"not found: {FIRST}::my-rihgt", "--collect-only"),
        ([*OPTIONS, "--dist", "load"], "nothing may run beside it", "-n 0"),
    ],
    ids=lambda value: value.split(":")[0] if isinstance(value, str) else "",
)  # fmt: skip
def test_bad_input_is_a_usage_error_with_a_hint(
    call: Pytest, tmp_path: Path, words: list[str], error: str, hint: str
) -> None:
    (tmp_path / "bad.yaml").write_text(
        "question: Which?\nproblems:\n  - {head: 2, seqlen: 16, head_dim: 8}\n"
    )
    if "--dist" in words:  # as pytest-xdist brings it
        (tmp_path / "conftest.py").write_text(
            "def pytest_addoption(parser):\n    parser.addoption('--dist', default='no')\n"
        )
    done = call(*words, code=pytest.ExitCode.USAGE_ERROR)
    told = done.stderr.splitlines()
    line = next(i for i, line in enumerate(told) if line.startswith("ERROR: "))
    assert error in told[line]
    assert told[line + 1].startswith("hint: ")
    assert hint in told[line + 1]
    assert "Traceback" not in done.stderr
