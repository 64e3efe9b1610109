"""`attnbench list`: implementations and plugins."""

import argparse

from attnbench import plugins
from attnbench.plugins import requirements


def main(arguments: argparse.Namespace) -> int:
    """Print a line for each implementation and each plugin that could not be loaded."""
    registry = plugins.discover(arguments.plugin)
    width = max(map(len, registry.implementations), default=0)
    for name, implementation in registry.implementations.items():
        can = implementation.capabilities
        versions, reason = requirements(implementation)
        state = f"unavailable: {reason}" if reason else "ok"
        print(f"{name:{width}}  {state}")
        print(f"{'':{width}}  {implementation.summary}")
        if implementation.approximation:
            print(f"{'':{width}}  approximation: {implementation.approximation}")
        for label, values in (
            ("devices", can.devices),
            ("dtypes", can.dtypes),
            ("masks", can.masks),
            ("directions", can.directions),
        ):
            print(f"{'':{width}}  {label:10} {' '.join(sorted(values))}")
        owner = registry.owners[name].owner
        print(f"{'':{width}}  {'plugin':10} {owner.plugin} {owner.version} ({owner.source})  {versions}")
    for owner in registry.broken:
        print(f"\nplugin {owner.plugin} ({owner.source}) could not be loaded: {owner.error}")
    return 0
