"""`attnbench selftest`: does it measure right on this machine?"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator

from attnbench import __version__, calibration, selftest
from attnbench.cli import display
from attnbench.environment import available_cores
from attnbench.errors import UserError
from attnbench.problem import suggestion
from attnbench.selftest import Check

_WORDS = {True: "pass", False: "FAIL", None: "-"}


def main(arguments: argparse.Namespace) -> int:
    """Print a line for each check as it comes in; 1 where one fails. Raises `UserError`."""
    if sys.platform != "linux":
        raise UserError(f"attnbench measures on Linux only, not on {sys.platform}")
    if arguments.calibrate:
        if arguments.only or arguments.quick:
            raise UserError("--calibrate makes no checks", hint="leave out --only and --quick")
        return _calibrate(arguments.json)
    for name in arguments.only:
        if name not in selftest.CHECKS:
            raise UserError(f"--only: there is no check `{name}`", hint=suggestion(name, selftest.CHECKS))
    names = [name for name in selftest.CHECKS if name in arguments.only or not arguments.only]
    found = list(_shown(selftest.checks(names, arguments.quick, display.waiting), quiet=arguments.json))
    failed = [check for check in found if check.passed is False]
    if arguments.json:
        document = {
            "attnbench": __version__,
            "quick": arguments.quick,
            "passed": not failed,
            "checks": [dataclasses.asdict(check) for check in found],
        }
        print(json.dumps(document, indent=2))
    elif failed:
        print(f"\n{len(failed)} of {len(found)} failed: do not trust times that are taken now.")
    return int(bool(failed))


def _shown(checks: Iterator[Check], quiet: bool) -> Iterator[Check]:
    for check in checks:
        if not quiet:
            print(f"{_WORDS[check.passed]:4}  {check.name:10}  {check.text}", flush=True)
        yield check


def _calibrate(as_json: bool) -> int:
    taken = []
    for threads in sorted({1, available_cores()}):  # those that suites have
        try:
            one = selftest.calibrate(threads, display.waiting)
        except selftest.NotMeasuredError as error:
            raise UserError(f"the machine could not be calibrated: {error}") from None
        path = calibration.store(one)
        taken.append(one)
        if not as_json:
            print(
                f"medians of {one.runs} runs lie {one.spread:.2%} apart (standard deviation) with torch {one.torch} "
                f"in {one.threads} {'thread' if one.threads == 1 else 'threads'} on {one.device}",
                flush=True,
            )
    if as_json:
        print(json.dumps([dataclasses.asdict(one) for one in taken], indent=2))
    print(path, file=sys.stderr)
    return 0
