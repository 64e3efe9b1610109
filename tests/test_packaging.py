"""What is installed: the wheel, its entry points, its requirements and its extras."""

import configparser
import re
import subprocess
import sys
import tomllib
from email.message import Message
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import pytest

import attnbench

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BUILD = "import sys; from hatchling import build; print(build.build_wheel(sys.argv[1]))"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> ZipFile:
    """The wheel, as `pip` asks the build backend for it."""
    folder = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(folder)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return ZipFile(path)


def read(wheel: ZipFile, ending: str) -> str:
    (name,) = (name for name in wheel.namelist() if name.endswith(ending))
    return wheel.read(name).decode()


@pytest.fixture
def metadata(wheel: ZipFile) -> Message:
    return Parser().parsestr(read(wheel, ".dist-info/METADATA"))


def test_the_wheel_holds_every_module_the_suites_and_the_license(wheel: ZipFile) -> None:
    names = set(wheel.namelist())
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "attnbench").rglob("*.py")} <= names
    assert {f"attnbench/shipped_suites/{path.name}" for path in (ROOT / "suites").glob("*.yaml")} <= names
    assert "attnbench/py.typed" in names
    assert {f"attnbench/report/page.{kind}" for kind in ("html", "css", "js")} <= names
    assert "Apache License" in read(wheel, ".dist-info/licenses/LICENSE")


def test_the_wheel_holds_nothing_else(wheel: ZipFile) -> None:
    allowed = re.compile(
        r"attnbench/.+\.py|attnbench/py\.typed|attnbench/report/page\.(html|css|js)"
        r"|attnbench/shipped_suites/.+\.yaml|.+\.dist-info/.+"
    )
    assert [name for name in wheel.namelist() if not allowed.fullmatch(name)] == []


def test_the_version_is_the_same_everywhere(metadata: Message) -> None:
    assert metadata["Version"] == attnbench.__version__
    assert f"\nversion: {attnbench.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_command_the_built_in_plugins_and_that_of_pytest_are_entry_points(wheel: ZipFile) -> None:
    points = configparser.ConfigParser()
    points.read_string(read(wheel, ".dist-info/entry_points.txt"))
    assert dict(points["console_scripts"]) == {"attnbench": "attnbench.cli:main"}
    assert dict(points["pytest11"]) == {"attnbench": "attnbench.pytest_plugin"}
    built_in = {f"attnbench.builtin.{p.stem}" for p in (ROOT / "attnbench/builtin").glob("[!_]*.py")}
    assert set(points["attnbench"].values()) == built_in


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\s<>=!~;\[]", requirement)[0].lower() for requirement in requirements}


def test_a_plain_install_is_small() -> None:
    intended = {"torch", "numpy", "pluggy", "pandas", "pyyaml", "rich", "scipy", "threadpoolctl"}
    assert names(PROJECT["dependencies"]) == intended
    assert all(">=" in requirement for requirement in PROJECT["dependencies"])


def test_extras_are_there_and_all_is_all_of_them(metadata: Message) -> None:
    extras = PROJECT["optional-dependencies"]
    assert extras.keys() >= {"test", "report", "all"}
    assert set(metadata.get_all("Provides-Extra")) == extras.keys()
    (everything,) = extras["all"]
    assert set(everything.removeprefix("attnbench[").removesuffix("]").split(",")) == extras.keys() - {"all"}


def test_what_is_tested_is_pinned_once() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pinned = [line.split("==")[0].lower() for line in lines if "==" in line]
    assert len(pinned) == len(lines) == len(set(pinned))
    extras = PROJECT["optional-dependencies"]
    assert set(pinned) >= names([*PROJECT["dependencies"], *extras["report"], *extras["lint"]]) | (
        names(extras["test"]) - {"attnbench"}
    )


def test_an_installed_attnbench_finds_its_suites_from_any_folder(wheel: ZipFile, tmp_path: Path) -> None:
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    wheel.extractall(site)
    code = f"import sys; sys.path.insert(0, {str(site)!r}); from attnbench import suites; print(suites.find('quick'))"
    found = subprocess.run([sys.executable, "-c", code], cwd=elsewhere, capture_output=True, text=True)
    assert found.stdout.strip() == str(site / "attnbench/shipped_suites/quick.yaml"), found.stderr


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout")
def test_runs_are_ignored_by_git_and_their_manual_is_not() -> None:
    def ignored(path: str) -> bool:
        return not subprocess.run(["git", "check-ignore", "-q", "--no-index", path], cwd=ROOT).returncode

    assert ignored("results/quick-20260101-120000/results.csv")
    assert not ignored("results/README.md")
