"""`attnbench peaks`: what a device does at most."""

import argparse
import dataclasses
import json
import re
import sys

from attnbench import peaks, plan, runner
from attnbench.environment import available_cores
from attnbench.errors import DeviceError
from attnbench.units import bytes_text, rate_text


def main(arguments: argparse.Namespace) -> int:
    """Print peaks; measure and keep them where they are not known. Raises `UserError` without such a device."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", arguments.device):
        raise DeviceError(f"--device: unknown device `{arguments.device}`", hint="one of: cpu, cuda, cuda:1")
    with runner.fork_server() as server:
        devices, why, _ = runner.probe(server)
        (device,) = plan.resolve([arguments.device], devices)
        if device.kind == "cuda" and not device.name:
            raise DeviceError(f"--device: no `{device}` ({why or 'it is not among them'})")
        found, kept = runner.known_peaks(server, device, available_cores(), arguments.again)
    if found is None:
        raise DeviceError(
            f"the peaks of {device} could not be measured", hint="its process ended or took too long"
        )
    if arguments.json:
        print(json.dumps(dataclasses.asdict(found), indent=1))
    else:
        print("\n".join(_lines(found)))
    if not kept:
        print(f"not kept: {peaks.path().parent} cannot be written", file=sys.stderr)
    return 0


def _lines(found: peaks.Peaks) -> list[str]:
    products = [f"  {name:9} {rate_text(rate, 'FLOP')}" for name, rate in found.flops_per_s.items()]
    copies = [f"  {bytes_text(size):9} {rate_text(rate, 'B')}" for size, rate in found.bytes_per_s.items()]
    return [found.identity, "", "matrix product", *products, "", "reading or copying", *copies]
