"""attnbench: verified, isolated, honestly timed comparisons of attention implementations.

This is the whole interface for plugins; everything else is found in its module. (PYTEST_DONT_REWRITE)
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attnbench.hookspecs import hookimpl
    from attnbench.implementation import (
        Capabilities,
        Device,
        Implementation,
        Inputs,
        Prepared,
        Step,
        dequantised,
        differentiable,
    )
    from attnbench.problem import ALL_MASKS, INDEX_MASKS, Direction, DType, Problem
else:

    def __getattr__(name: str) -> object:
        """Names of the interface, imported when one is asked for: every run of pytest imports this package."""
        if name in __all__:
            for home in ("hookspecs", "implementation", "problem"):
                if hasattr(module := import_module(f"attnbench.{home}"), name):
                    return getattr(module, name)
        raise AttributeError(f"module 'attnbench' has no attribute '{name}'")


__version__ = "0.1.0"

__all__ = [
    "ALL_MASKS",
    "INDEX_MASKS",
    "Capabilities",
    "DType",
    "Device",
    "Direction",
    "Implementation",
    "Inputs",
    "Prepared",
    "Problem",
    "Step",
    "dequantised",
    "differentiable",
    "hookimpl",
]
