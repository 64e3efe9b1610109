"""`attnbench list`: what there is, and what can compute a problem here."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attnbench import environment, plan, plugins, suites
from attnbench.cli import list as listing
from attnbench.cli import main
from attnbench.implementation import Capabilities
from attnbench.problem import Direction, DType
from attnbench.records import Status

PLUGIN = """
from attnbench import Capabilities, Implementation, hookimpl


def record(name, **more):
    can = {"dtypes": frozenset({"float32"}), "devices": more.pop("devices", frozenset({"cpu"}))}
    can["masks"] = more.pop("masks", frozenset({"full"}))
    return Implementation(
        name=name, summary="s", capabilities=Capabilities(**can),
        prepare=lambda problem, inputs: lambda: None, **more,
    )


@hookimpl
def attnbench_implementations():
    yield record("mine-plain")
    yield record("mine-gpu", devices=frozenset({"cuda"}))
    yield record("mine-lost", requires=("no-such-distribution",), masks=frozenset({"full", "causal"}))
    yield record("mine-uncompiled", unavailable=lambda device: f"needs a compiler for {device}")
    yield record("mine-picky", objection=lambda problem, device: f"no luck on {device}")
    yield record("mine-rough", approximation="every other key is left out")
"""
PROBLEM = "seqlen=64 heads=2 head_dim=8"
UNKNOWN = "mechanism=linear modifiers=sinks"
TEXT = "batch=1 seqlen=64 heads=2 head_dim=8 dtype=float32 mask=full"
NO_GPU = "no CUDA device (no NVIDIA driver)"

List = Callable[..., str]


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> List:
    """What `attnbench list` prints with our plugin, on a machine without a GPU."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(environment, "no_cuda", lambda: "no NVIDIA driver")
    Path("mine.py").write_text(PLUGIN)

    def run(*words: str, code: int = 0) -> str:
        assert main(["list", "--plugin", "mine.py", *words]) == code
        found = capsys.readouterr()
        return found.err if code else found.out

    return run


def row(text: str, name: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"  {name} ")]
    return line.split()


# ---------------------------------------------------------------- the table


def test_each_implementation_says_what_it_can_do_and_whether_it_can_run_here(told: List) -> None:
    text = told()
    *plain, letter = row(text, "mine-plain")
    assert plain == ["mine-plain", "ok", "cpu", "f32", "f"]
    assert row(text, "mine-gpu")[:4] == ["mine-gpu", "no", "[1]", "cuda"]
    for name, reason in (
        ("mine-lost", "needs no-such-distribution, which is not installed"),
        ("mine-uncompiled", "needs a compiler for cpu"),
    ):
        assert row(text, name)[1] == "no"
        assert f"\n{row(text, name)[2]} {reason}\n" in text
    assert row(text, "torch-naive")[1:] == [
        "ok",
        "cpu",
        "cuda",
        "f64",
        "f32",
        "tf32",
        "f16",
        "bf16",
        "f8",
        "f",
        "b",
        "fb",
        "A",
    ]
    assert f"[1] {NO_GPU}\n[2] needs no-such-distribution, which is not installed\n" in text
    assert f"masks {letter}: full\n" in text
    assert "bf16 bfloat16" in text
    assert "fb forward_backward" in text
    assert "approximation: every other key is left out" in text
    assert f"\ncuda: {NO_GPU}" in text


def test_implementations_stand_under_their_plugin(told: List) -> None:
    lines = told().splitlines()
    assert lines.index("mine (mine.py)") + 1 == lines.index(
        next(line for line in lines if line.startswith("  mine-plain "))
    )
    assert any(line.startswith("torch 0") and "entry point, torch " in line for line in lines)


@pytest.mark.parametrize("width", [80, 70])
def test_the_table_fits_a_terminal(told: List, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnbench.cli.display.size", lambda: (width, False))
    for words in ([], ["--problem", PROBLEM], ["--problem", PROBLEM, "--why", "mine-*"]):
        text = told(*words)
        assert max(map(len, text.splitlines())) <= width
        assert "mine-rough" in text


def test_a_broken_plugin_is_shown_with_its_error(told: List) -> None:
    Path("broken.py").write_text("raise SystemExit('not today')")
    assert "plugin broken (broken.py) could not be loaded: SystemExit: not today" in told(
        "--plugin", "broken.py"
    )
    (broken,) = [p for p in json.loads(told("--plugin", "broken.py", "--json"))["plugins"] if p["error"]]
    assert broken == {
        "plugin": "broken",
        "source": "broken.py",
        "version": "",
        "error": "SystemExit: not today",
    }


def test_short_words_are_of_one_thing_each() -> None:
    assert len({*listing.SHORT.values()}) == len(listing.SHORT) == len(DType) + len(Direction)


# ---------------------------------------------------------------- one problem


def test_why_gives_every_reason_on_each_kind_of_device(told: List) -> None:
    lines = told("--problem", f"{PROBLEM} dtype=float16 {UNKNOWN}", "--why", "mine-gpu").splitlines()
    assert [" ".join(line.split()) for line in lines[1:]] == [
        "mine-gpu cpu unsupported",
        "capability: no cpu",
        "capability: no float16",
        "capability: no linear mechanism",
        "capability: no sinks",
        "reference: no reference for sinks with the linear mechanism yet",
        "mine-gpu cuda unsupported",
        "capability: no float16",
        "capability: no linear mechanism",
        "capability: no sinks",
        "reference: no reference for sinks with the linear mechanism yet",
        f"device: {NO_GPU}",
    ]


def test_without_why_a_problem_is_put_to_all_with_the_reason_of_the_plan(told: List) -> None:
    lines = [" ".join(line.split()) for line in told("--problem", PROBLEM).splitlines()]
    assert lines[0] == TEXT
    assert "mine-plain cpu yes" in lines
    assert "mine-plain cuda unsupported: no cuda" in lines
    assert f"mine-gpu cuda unavailable: {NO_GPU}" in lines
    assert "mine-lost cpu unavailable: needs no-such-distribution, which is not installed" in lines
    assert "mine-picky cpu unsupported: no luck on cpu" in lines


@pytest.mark.parametrize(
    "text",
    [
        PROBLEM,
        f"{PROBLEM} mask=causal dtype=bfloat16",
        f"{PROBLEM} {UNKNOWN}",
        "requests=2q8_1q3s9 heads=2 head_dim=8",
        "model=llama-3-8b seqlen=64 direction=backward",
    ],
)
def test_answers_are_those_of_a_plan_for_a_machine_that_has_the_device(told: List, text: str) -> None:
    answers = json.loads(told("--problem", text, "--json"))["answers"]
    found = {
        (a["implementation"], a["device"]): (a["status"], a["reasons"][0]["reason"] if a["reasons"] else "")
        for a in answers
    }
    made = plan.make(
        suites.suite_of_problem(text),
        plugins.discover(["mine.py"]),
        devices=plan.resolve(["cpu", "cuda"]),
        threads=1,
        only=["*"],
        elsewhere=("cuda",),
    )
    planned = {
        (p.cell.implementation, p.cell.device.partition(":")[0]): (p.status, p.reason) for p in made.cells
    }
    here = {
        (name, kind): (Status.UNAVAILABLE, NO_GPU)
        for (name, kind), (status, _) in planned.items()
        if kind == "cuda" and status is None
    }
    assert found == planned | here


def test_an_unknown_name_is_refused_with_a_suggestion(told: List) -> None:
    text = told("--problem", PROBLEM, "--why", "torch-niave", code=2)
    assert text == "error: no implementation matches `torch-niave`\n\nhint: did you mean `torch-naive`?\n"


def test_why_needs_a_problem(told: List) -> None:
    assert told("--why", "numpy", code=2).startswith("error: --why needs a problem\n\nhint: add --problem")


# ---------------------------------------------------------------- JSON


def test_json_holds_all_of_the_table(told: List) -> None:
    document = json.loads(told("--json"))
    records: dict[str, Any] = {record["name"]: record for record in document["implementations"]}
    assert {name: r["available"] for name, r in records.items() if name.startswith("mine")} == {
        "mine-plain": True,
        "mine-gpu": False,
        "mine-lost": False,
        "mine-uncompiled": False,
        "mine-picky": True,
        "mine-rough": True,
    }
    assert records["mine-gpu"]["reason"] == NO_GPU
    assert records["mine-plain"]["reason"] is None
    assert records["mine-rough"]["approximation"] == "every other key is left out"
    assert records["torch-naive"]["capabilities"]["dtypes"] == [
        *("float64", "float32", "tfloat32", "float16", "bfloat16", "float8_e4m3")
    ]
    assert [*records["numpy"]["capabilities"]] == [field.name for field in dataclasses.fields(Capabilities)]
    assert document["missing_devices"] == {"cuda": NO_GPU}
    assert "answers" not in document


# ---------------------------------------------------------------- the machine


def test_a_machine_without_cuda_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(environment, "_version", lambda name: "9.9.9+cpu")
    assert environment.no_cuda(tmp_path) == "torch 9.9.9+cpu is built without CUDA"
    monkeypatch.setattr(environment, "_version", lambda name: "9.9.9+cu999")
    assert environment.no_cuda(tmp_path) == "no NVIDIA driver"
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidiactl").touch()
    assert environment.no_cuda(tmp_path) is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert environment.no_cuda(tmp_path) == "CUDA_VISIBLE_DEVICES hides them all"


@pytest.mark.parametrize("words", [["--problem", PROBLEM], ["--json"]])
def test_nothing_heavy_is_imported(words: list[str]) -> None:
    program = (
        "import sys; from attnbench.cli import main; main(sys.argv[1:]); "
        "print(*{'torch', 'pandas', 'scipy', 'rich'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "list", *words], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr.split()) == (0, [])
