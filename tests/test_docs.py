"""What the pages say, executed or held against the code."""

import argparse
import dataclasses
import doctest
import fnmatch
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from entry_points import installed

from attnbench import (
    compare,
    hookspecs,
    implementation,
    models,
    noise,
    plan,
    plugins,
    pytest_plugin,
    results,
    selftest,
    suites,
    tables,
    units,
    verify,
    winners,
)
from attnbench.cli import BAD_INPUT, INTERRUPTED, choose, display, main, parser
from attnbench.records import Status
from attnbench.results import COLUMNS
from attnbench.testing import check_implementation

ROOT = Path(__file__).parents[1]
EXAMPLE = "plugins/attnbench-example/README.md"
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in sorted(
        [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "results/README.md", ROOT / EXAMPLE]
    )
}
ALL = "\n".join(PAGES.values())
README = PAGES["README.md"]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGES[page], re.DOTALL | re.MULTILINE)


def with_blocks(language: str) -> list[str]:
    return [page for page in PAGES if blocks(page, language)]


def rows(page: str, heading: str) -> Iterator[list[str]]:
    """The cells of the table in `page` whose first column is headed `heading`."""
    (table,) = re.findall(rf"^\| {heading} \|.*\n\|[-|:]+\|\n((?:\|.*\n)+)", PAGES[page], re.MULTILINE)
    for line in table.splitlines():
        yield [cell.strip() for cell in line.strip("|").split(" | ")]


@pytest.fixture
def folder(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with suites and results, and with every file whose name is in the first line of a block."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "suites").symlink_to(ROOT / "suites")
    (tmp_path / "results.csv").write_text(",".join(column.name for column in COLUMNS) + "\n")
    for language in ("python", "yaml"):
        for block in blocks(request.param, language):
            if named := re.match(r"# ([\w-]+\.(?:py|yaml))\n", block):
                (tmp_path / named[1]).write_text(block)
    return tmp_path


# ---------------------------------------------------------------- blocks


@pytest.mark.parametrize("page", with_blocks("yaml"))
def test_suites_load(page: str) -> None:
    for block in blocks(page, "yaml"):
        assert suites.parse(block, page).problems


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small tensors gain nothing from threads, and wait for them where another process is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("page", "folder"), [(page, page) for page in with_blocks("python")], indirect=["folder"]
)
def test_examples_run_plugins_are_right_and_their_tests_pass(page: str, folder: Path) -> None:
    for block in blocks(page, "python"):
        if not block.startswith("# "):
            exec(compile(block, page, "exec"), {})
            continue
        file = block.split()[1]
        if file.startswith("test_"):
            tests = [
                f for name, f in vars(importlib.import_module(file[:-3])).items() if name.startswith("test_")
            ]
            assert tests
            for test in tests:
                test()
        else:
            registry = plugins.discover([file])
            mine = [name for name, plugin in registry.owners.items() if plugin.target == file]
            assert mine, registry.broken
            for name in mine:
                check_implementation(registry.implementations[name])


def commands(page: str) -> list[str]:
    return [
        line.partition(" > ")[0]
        for block in blocks(page, "sh")
        for line in block.splitlines()
        if line.startswith("attnbench ")
    ]


@pytest.mark.parametrize(
    ("folder", "command"),
    [(page, command) for page in with_blocks("sh") for command in commands(page)],
    indirect=["folder"],
)
def test_commands_are_understood_and_choose_something(folder: Path, command: str) -> None:
    if "example-exp2" in command:
        pytest.importorskip("attnbench_example")
    arguments = parser().parse_args(shlex.split(command)[1:])
    tables.axes(getattr(arguments, "by", None))
    assert all(tables.view(name) for name in getattr(arguments, "view", ()))
    if arguments.verb == "check":
        assert choose.registry(arguments).select(arguments.only)
        assert arguments.problem is None or suites.suite_of_problem(arguments.problem)
    if arguments.verb not in ("run", "plan") or getattr(arguments, "resume", None):
        return
    registry = choose.registry(arguments)
    suite = choose.suite(arguments, registry)
    made = plan.make(
        suite,
        registry,
        devices=plan.resolve(suite.devices),
        threads=1,
        only=arguments.only,
        without=arguments.without,
    )
    names = {job.cell.implementation for job in made.jobs}
    assert names
    for pattern in arguments.only:
        assert fnmatch.filter(names, pattern), f"{pattern} runs nothing"
    if arguments.plugin:
        assert any(registry.owners[name].owner.source in arguments.plugin for name in names)


@pytest.mark.parametrize(
    ("command", "output"),
    [
        found
        for page in PAGES.values()
        for found in re.findall(
            r"^<!-- output -->\n```sh\n([^\n]*)\n```\n\n```text\n(.*?)^```$", page, re.DOTALL | re.MULTILINE
        )
    ],
)
def test_output_is_what_the_command_prints(
    command: str, output: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(shlex.split(command)[1:]) == 0
    assert capsys.readouterr().out == output


def test_the_dispatch_table_answers_as_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = PAGES["docs/choosing.md"]
    (command,) = re.findall(r"`attnbench (best .*--emit python) > dispatch\.py`", page)
    monkeypatch.chdir(ROOT)
    assert main(command.split()) == 0
    (tmp_path / "dispatch.py").write_text(capsys.readouterr().out)
    monkeypatch.syspath_prepend(tmp_path)
    (session,) = blocks("docs/choosing.md", "pycon")
    parsed = doctest.DocTestParser().get_doctest(session, {}, "docs/choosing.md", None, 0)
    assert doctest.DocTestRunner().run(parsed) == (0, 5)


def test_every_verdict_is_explained_and_no_other() -> None:
    assert [row[0] for row in rows("docs/choosing.md", "verdict")] == [f"`{v}`" for v in winners.Verdict]


@pytest.mark.parametrize(
    ("folder", "command"),
    [
        (page, line)
        for page in with_blocks("sh")
        for block in blocks(page, "sh")
        for line in block.splitlines()
        if line.startswith("pytest --attnbench")
    ],
    indirect=["folder"],
)
def test_commands_of_pytest_find_cells(folder: Path, command: str) -> None:
    if "example" in command:
        pytest.importorskip("attnbench_example")
        (folder / "plugins").symlink_to(ROOT / "plugins")
    installed(folder / "site")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder / "site")])}
    words = [*shlex.split(command)[1:], "--collect-only", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    measured = re.search(r"attnbench: \d+ cells of \S+, of which (\d+) are measured", done.stdout)
    assert measured
    assert int(measured[1])


def test_the_first_command_installs_and_runs_and_another_one_tests() -> None:
    first = blocks("README.md", "sh")[0].splitlines()
    assert first[0] == "python3 -m venv .venv"
    assert first[-2:] == ["pip install -c constraints.txt -e .", "attnbench run suites/quick.yaml"]
    script = (ROOT / ".ci/run").read_text()
    assert "<!-- tests -->" in script
    tested = re.findall(r"^<!-- tests -->\n```sh\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    assert len(tested) == 1
    assert tested[0].splitlines()[-1] == "pytest"


def test_the_table_of_the_readme_is_that_of_a_committed_run() -> None:
    (shown,) = re.findall(r"^<!-- table -->\n(.*?)^<!-- /table -->$", README, re.DOTALL | re.MULTILINE)
    (folder,) = re.findall(r"\]\((results/[^)]+)\)", shown)
    run, cells = results.load(ROOT / folder)
    page = (ROOT / folder / "timing.md").read_text()
    assert page == tables.markdown(tables.timing(cells, baseline=display.baseline(run)))
    assert shown.rstrip().endswith("\n\n".join(page.split("\n## ")[0].split("\n\n")[1:]).rstrip())


# ---------------------------------------------------------------- tables and names


def options() -> Iterator[tuple[str, argparse.Action]]:
    (verbs,) = (a for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    for verb, sub in verbs.choices.items():
        yield from ((verb, action) for action in sub._actions)
    yield from (("", action) for action in parser()._actions if action is not verbs)


def test_every_command_is_explained_and_no_other() -> None:
    verbs = dict.fromkeys(verb for verb, _ in options() if verb)
    assert [row[0] for row in rows("README.md", "command")] == [f"`attnbench {verb}`" for verb in verbs]


def test_every_option_is_explained_and_no_other() -> None:
    told = [name for row in rows("README.md", "option") for name in re.findall(r"`(--?[\w-]+)", row[0])]
    known = {name for _, action in options() for name in action.option_strings}
    assert sorted(told) == sorted(known - {"-h", "--help"})


def test_every_option_is_told_with_the_commands_that_take_it() -> None:
    for names, commands, _ in rows("README.md", "option"):
        told = set(re.findall(r"`(\w+)`", commands)) or {""}
        for name in re.findall(r"`(--?[\w-]+)", names):
            assert told == {verb for verb, action in options() if name in action.option_strings}, name


def test_every_option_of_pytest_is_explained_and_no_other() -> None:
    told = [re.findall(r"`(--[\w-]+)", row[0])[0] for row in rows("docs/plugins.md", "option of pytest")]
    known = [f"--attnbench-{name}" for name in (*pytest_plugin.OPTIONS, "preset")]
    assert told == ["--attnbench", *known]
    for option, meaning in rows("docs/plugins.md", "option of pytest"):
        if meaning.startswith("`--"):
            assert meaning.startswith(f"`--{option.removeprefix('`--attnbench-').split()[0].rstrip('`')}`")


@pytest.mark.parametrize("page", ["README.md", "results/README.md"])
def test_every_status_is_explained_and_no_other(page: str) -> None:
    assert [row[0] for row in rows(page, "status")] == [f"`{status}`" for status in Status]


def test_exit_codes_are_those_of_the_code() -> None:
    assert [int(row[0]) for row in rows("README.md", "exit code")] == [0, 1, BAD_INPUT, INTERRUPTED]


def test_every_hook_is_documented() -> None:
    hooks = [name for name in vars(hookspecs) if name.startswith("attnbench_")]
    assert [row[0] for row in rows("docs/plugins.md", "hook")] == [f"`{hook}`" for hook in hooks]


@pytest.mark.parametrize("record", ["Implementation", "Capabilities", "Prepared"])
def test_every_field_of_a_plugins_records_is_documented(record: str) -> None:
    fields = [f"`{field.name}`" for field in dataclasses.fields(getattr(implementation, record))]
    section = re.split(rf"^## {record}$", PAGES["docs/plugins.md"], flags=re.MULTILINE)[1].split("\n## ")[0]
    assert re.findall(r"^\| (`\w+`) \|", section, re.MULTILINE)[: len(fields)] == fields


def test_every_key_of_the_list_is_documented(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["list", "--json", "--problem", "seqlen=8 heads=2 head_dim=8 mechanism=linear modifiers=sinks"])
        == 0
    )
    document = json.loads(capsys.readouterr().out)
    answer = document["answers"][0]
    for heading, found in (
        ("key", document),
        ("key of an implementation", document["implementations"][0]),
        ("key of an answer", answer),
    ):
        told = [name for row in rows("docs/plugins.md", heading) for name in re.findall(r"`(\w+)`", row[0])]
        assert sorted(told) == sorted(found)
    for name in (*document["plugins"][0], *answer["reasons"][0]):
        assert f"`{name}`" in PAGES["docs/plugins.md"]


def test_every_check_of_the_selftest_and_its_keys_are_documented() -> None:
    page = PAGES["docs/measuring.md"]
    assert [row[0] for row in rows("docs/measuring.md", "check")] == [f"`{name}`" for name in selftest.CHECKS]
    for field in dataclasses.fields(selftest.Check):
        assert f"`{field.name}`" in page


def test_formats_and_inputs_are_documented() -> None:
    page = PAGES["docs/plugins.md"]
    names = [field.name for field in dataclasses.fields(implementation.Inputs)]
    for name in (*implementation.FORMATS, *names):
        assert f"`{name}`" in page


def test_presets_are_those_of_the_code() -> None:
    told = {row[0]: row[1:] for row in rows("docs/measuring.md", "preset")}
    assert told == {
        f"`{name}`": [str(preset.launches), f"{preset.budget_s:g} s"]
        for name, preset in suites.PRESETS.items()
    }


@pytest.mark.parametrize("page", ["docs/measuring.md", "docs/comparing.md"])
def test_constants_are_those_of_the_code(page: str) -> None:
    for name, value, _ in rows(page, "constant"):
        module, _, constant = name.strip("`").rpartition(".")
        actual = getattr(importlib.import_module(f"attnbench.{module}"), constant)
        said = units.parse_seconds(value) if constant.endswith("_S") else float(value)
        assert said == pytest.approx(actual, rel=1e-12), name


def test_every_verdict_and_every_kind_of_regression_is_explained() -> None:
    page = "docs/comparing.md"
    assert [row[0] for row in rows(page, "verdict")] == [f"`{verdict}`" for verdict in compare.Verdict]
    assert [row[0] for row in rows(page, "kind")] == [f"`{kind}`" for kind in compare.KINDS]
    assert [int(row[0]) for row in rows(page, "exit code")] == [0, 1, BAD_INPUT]


def test_the_example_of_a_comparison_prints_what_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    found = dict(
        re.findall(
            r"^<!-- ([\w.]+) -->\n```\w+\n(.*?)^```$", PAGES["docs/comparing.md"], re.DOTALL | re.MULTILINE
        )
    )
    for name in ("base.csv", "new.csv"):
        (tmp_path / name).write_text(found[name])
    assert main(["compare", "base.csv", "new.csv"]) == 1
    assert capsys.readouterr().out == found["output"]

    main(["compare", "base.csv", "new.csv", "--format", "json"])
    keys = [
        name
        for row in rows("docs/comparing.md", "key of `--format json`")
        for name in re.findall(r"`(\w+)`", row[0])
    ]
    assert sorted(keys) == sorted(json.loads(capsys.readouterr().out))


def test_the_limits_of_grades_are_those_of_the_code() -> None:
    found = {name: (float(a), float(b)) for name, a, b, _ in rows("docs/measuring.md", "sign")}
    assert found == noise.LIMITS


def test_factors_are_those_of_the_code() -> None:
    told = {name: tuple(map(float, values)) for name, *values in rows("docs/measuring.md", "tensor")}
    assert told == verify.FACTORS


def test_every_module_has_its_line_in_the_architecture() -> None:
    (picture,) = blocks("docs/architecture.md", "layers")
    told = {name for row in rows("docs/architecture.md", "module") for name in re.findall(r"`(\w+)`", row[0])}
    assert told == {word for line in picture.splitlines() for word in line.split()[1:]}


def test_every_built_in_implementation_and_model_is_named() -> None:
    built_in = [n for n, p in plugins.discover().owners.items() if p.target.startswith("attnbench.")]
    for name in (*built_in, *models.MODELS):
        assert f"`{name}`" in ALL or f" {name}," in ALL or f", {name} " in ALL, name


# ---------------------------------------------------------------- links


def slugs(page: str) -> set[str]:
    heads = re.findall(r"^#+ (.*)$", PAGES[page], re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_of_the_repository(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        path, _, anchor = target.partition("#")
        assert "://" not in target, "pages stand on their own"
        there = (ROOT / page).parent / path if path else ROOT / page
        assert there.exists(), target
        if anchor:
            assert anchor in slugs(str(there.resolve().relative_to(ROOT))), target


def test_every_page_is_reached_from_the_readme() -> None:
    for page in PAGES:
        assert page == "README.md" or f"]({page})" in README, page
