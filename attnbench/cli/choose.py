"""From arguments to a suite, its plugins and its plan: what `run` and `plan` have in common."""

import argparse
import json
import shlex
import sys
from functools import partial

from attnbench import plan, plugins, suites
from attnbench.environment import available_cores, last_level_cache
from attnbench.errors import PluginError, UserError
from attnbench.implementation import Device
from attnbench.plugins import ENTRY_POINT, Registry
from attnbench.suites import Suite


def suite(arguments: argparse.Namespace, found: Registry, text: str | None = None) -> Suite:
    """The suite that the arguments name, with their overrides. `text` stands in for its file.

    Its cells are counted before any problem is made, so what is too large or matches nothing ends here.
    """
    overrides: list[suites.Override] = [*arguments.set]
    if arguments.device:
        told = " ".join(f"--device {device}" for device in arguments.device)
        overrides.append((told, f"device=[{', '.join(arguments.device)}]"))
    if arguments.preset is not None:
        overrides.append((f"--preset {arguments.preset}", f"measure.preset={arguments.preset}"))
    cells = partial(plan.width, registry=found, only=arguments.only, without=arguments.without)
    if arguments.problem is not None and arguments.suite is not None:
        raise UserError("give a suite or --problem, not both")
    if arguments.problem is not None:
        return suites.suite_of_problem(arguments.problem, overrides, cells)
    if arguments.suite is None:
        raise UserError("no suite", hint=f"give a file, --problem, or one of: {', '.join(suites.shipped())}")
    return suites.load(arguments.suite, overrides, text, cells)


def registry(arguments: argparse.Namespace) -> Registry:
    """All plugins; an installed one that cannot be loaded is said on standard error, one of --plugin is an error."""
    found = plugins.discover(arguments.plugin, importing)
    for owner in found.broken:
        if owner.source != ENTRY_POINT:
            raise PluginError(
                f"--plugin {owner.source}: it cannot be loaded: {owner.error}",
                hint=f"`{_traceback(owner.source)}` shows the traceback",
            )
        print(
            f"warning: plugin `{owner.plugin}` ({owner.source}) was left out: {owner.error}", file=sys.stderr
        )
    return found


def importing(plugin: str) -> None:
    """Say that an import takes long: it may hang."""
    print(f"plugin `{plugin}` is still being imported", file=sys.stderr, flush=True)


def _traceback(target: str) -> str:
    """A command that loads a plugin as attnbench does, its hooks too."""
    return shlex.join(["python", "-c", f"from attnbench import plugins; plugins.load({json.dumps(target)})"])


def check_threads(count: int) -> None:
    """Raises `UserError` for more threads than cores: they would wait for each other, and time that."""
    if count > (cores := available_cores()):
        raise UserError(
            f"`threads` is {count:,}, more than the cores that this process may use: {cores:,}",
            hint=f"--set measure.threads={cores}",
        )


def cpu(of: Suite) -> Device:
    """This machine's processor, with its last-level cache."""
    return Device(kind="cpu", cache_bytes=last_level_cache(threads(of)) or 0)


def threads(of: Suite) -> int:
    """Threads of a job: the suite's, else every core that this process may use."""
    return of.measure.threads or available_cores()
