"""The hooks that a plugin may implement: each is called once and yields records."""

from collections.abc import Iterable, Mapping

import pluggy

from attnbench.implementation import Implementation

hookspec = pluggy.HookspecMarker("attnbench")
hookimpl = pluggy.HookimplMarker("attnbench")


@hookspec
def attnbench_implementations() -> Iterable[Implementation]:
    """The implementations that this plugin brings.

    Called in the command line's process to plan, and again in every worker: import nothing heavy here.
    """


@hookspec
def attnbench_environment() -> Mapping[str, str]:
    """Facts about the plugin's own world for the run's header, such as a driver's version.

    Called once a run. Give no host name, user name or absolute path.
    """
