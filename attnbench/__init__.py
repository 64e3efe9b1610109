"""attnbench: verified, isolated, honestly timed comparisons of attention implementations.

This is the whole interface for plugins; everything else is found in its module.
"""

from attnbench.hookspecs import hookimpl
from attnbench.implementation import (
    Capabilities,
    Device,
    Implementation,
    Inputs,
    Prepared,
    Step,
    differentiable,
)
from attnbench.problem import INDEX_MASKS, Direction, DType, Problem

__version__ = "0.1.0"

__all__ = [
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
    "differentiable",
    "hookimpl",
]
