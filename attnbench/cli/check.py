"""`attnbench check`: verify implementations without timing them."""

import argparse
import re

from attnbench.cli import choose
from attnbench.errors import DeviceError, UserError
from attnbench.records import Status


def main(arguments: argparse.Namespace) -> int:
    """Verify each chosen implementation on a few small problems; 0 or 1, where one is wrong or failed.

    Raises `UserError` where nothing could be checked.
    """
    device = arguments.device
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise DeviceError(f"--device: unknown device `{device}`", hint="one of: cpu, cuda, cuda:1")
    registry = choose.registry(arguments)
    names = registry.select(arguments.only)
    import torch

    from attnbench import testing

    if device != "cpu" and int(device[5:] or 0) >= torch.cuda.device_count():
        raise DeviceError(f"--device: torch finds no device `{device}`", hint="check with --device cpu")
    ends: set[Status] = set()
    why_not = ""
    for name in names:
        checked = False
        asked = {"strided": arguments.strided, "batch_invariance": arguments.batch_invariance}
        for problem, status, reason in testing.check(registry, name, arguments.problem, device, **asked):
            checked = True
            ends.add(status)
            told = f"{status}: {' '.join(reason.split())}" if reason else "right"
            why_not = f"{name}: {told}"
            print(f"{name}  {problem}  {told}")
        if not checked:
            why_not = f"{name}: it supports no small problem on {device}"
            print(f"{name}  none of the small problems is one that it supports on {device}")
    if ends <= {Status.UNSUPPORTED, Status.UNAVAILABLE}:
        raise UserError(
            f"nothing could be checked: {why_not}",
            hint="`attnbench list` shows what each implementation needs and supports",
        )
    return int(not ends.isdisjoint({Status.WRONG, Status.FAILED}))
