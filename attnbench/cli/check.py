"""`attnbench check`: verify implementations without timing them."""

import argparse
import re

from attnbench.cli import choose
from attnbench.errors import DeviceError


def main(arguments: argparse.Namespace) -> int:
    """Verify each chosen implementation on a few small problems; exit code 1 where one is not right."""
    device = arguments.device
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise DeviceError(f"--device: unknown device `{device}`", hint="one of: cpu, cuda, cuda:1")
    registry = choose.registry(arguments)
    names = registry.select(arguments.only)
    import torch

    from attnbench import testing

    if device != "cpu" and int(device[5:] or 0) >= torch.cuda.device_count():
        raise DeviceError(f"--device: torch finds no device `{device}`", hint="check with --device cpu")
    worst = 0
    for name in names:
        for problem, reason in testing.check(registry, name, arguments.problem, device):
            worst |= reason is not None
            print(f"{name}  {problem}  {'right' if reason is None else reason}")
    return worst
