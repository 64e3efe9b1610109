"""Peaks that this machine knows of the devices of some runs."""

from collections.abc import Sequence

from attnbench import peaks
from attnbench.report.rows import Source


def known(sources: Sequence[Source]) -> dict[tuple[str, int], peaks.Peaks]:
    """Peaks by a device's model and its threads (0 on CUDA), as far as they are kept here."""
    found = {}
    for source in sources:
        for result in source.results:
            model = source.run.device_names.get(result.cell.device, "")
            threads = 0 if result.cell.device.startswith("cuda") else result.cell.threads
            if (model, threads) not in found:
                found[model, threads] = peaks.load(model, threads)
    return {key: kept for key, kept in found.items() if kept is not None}
