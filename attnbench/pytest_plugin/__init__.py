"""The plugin for pytest: `pytest --attnbench SUITE` makes every cell of a suite a test.

Every run of pytest imports this module, so it holds the options alone; the rest is imported where they are given.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

_GLOBS = ("only", "without")
OPTIONS = {
    "only": ("GLOB,...", "take these implementations instead of those that the suite names"),
    "without": ("GLOB,...", "leave these implementations out"),
    "plugin": ("FILE.py|MODULE", "load a plugin that is not installed"),
    "set": ("KEY=VALUE", "override a key of the suite"),
    "device": ("DEVICE", "override the suite's devices: cpu, cuda, cuda:1"),
}
"""Those of `attnbench run` that may be given several times, as `--attnbench-NAME`."""


def pytest_addoption(parser: "pytest.Parser") -> None:
    group = parser.getgroup("attnbench", "attention implementations, verified and timed")
    group.addoption("--attnbench", metavar="SUITE", help="make a test of every cell of this suite")
    for name, (metavar, meaning) in OPTIONS.items():
        group.addoption(
            f"--attnbench-{name}",
            action="extend" if name in _GLOBS else "append",
            type=(lambda text: text.split(",")) if name in _GLOBS else str,
            default=[],
            metavar=metavar,
            help=f"{meaning}; may be repeated",
        )
    group.addoption("--attnbench-preset", metavar="PRESET", help="how long each cell is measured")


def pytest_configure(config: "pytest.Config") -> None:
    config.addinivalue_line(
        "markers", "attnbench(implementation, seqlen, dtype, ...): a cell of the suite that --attnbench names"
    )
    if config.getoption("attnbench") is not None:
        from attnbench.pytest_plugin.session import Session

        config.pluginmanager.register(Session(config), "attnbench-session")
