"""From arguments to a suite, its plugins and its plan: what `run` and `plan` have in common."""

import argparse
import sys

from attnbench import plugins, suites
from attnbench.environment import available_cores
from attnbench.errors import UserError
from attnbench.plugins import Registry
from attnbench.suites import Suite


def suite(arguments: argparse.Namespace, text: str | None = None) -> Suite:
    """The suite that the arguments name, with their overrides. `text` stands in for its file."""
    overrides = [*arguments.set]
    if arguments.device:
        overrides.append(f"device=[{', '.join(arguments.device)}]")
    if arguments.preset:
        overrides.append(f"measure.preset={arguments.preset}")
    if arguments.problem and arguments.suite:
        raise UserError("give a suite or --problem, not both")
    if arguments.problem:
        return suites.suite_of_problem(arguments.problem, overrides)
    if not arguments.suite:
        raise UserError("no suite", hint=f"give a file, --problem, or one of: {', '.join(suites.shipped())}")
    return suites.load(arguments.suite, overrides, text)


def registry(arguments: argparse.Namespace) -> Registry:
    """All plugins; what cannot be loaded is said on standard error."""
    found = plugins.discover(arguments.plugin)
    for owner in found.broken:
        print(
            f"warning: plugin `{owner.plugin}` ({owner.source}) was left out: {owner.error}", file=sys.stderr
        )
    return found


def threads(of: Suite) -> int:
    """Threads of a job: the suite's, else every core that this process may use."""
    return of.measure.threads or available_cores()
