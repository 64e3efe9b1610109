"""`attnbench check`: verify implementations without timing them."""

import argparse

from attnbench.cli import choose


def main(arguments: argparse.Namespace) -> int:
    """Verify each chosen implementation on a few small problems; exit code 1 where one is not right."""
    from attnbench import testing

    registry = choose.registry(arguments)
    worst = 0
    for name in registry.select(arguments.only):
        for problem, reason in testing.check(registry, name, arguments.problem, arguments.device):
            worst |= reason is not None
            print(f"{name}  {problem}  {'right' if reason is None else reason}")
    return worst
