"""YAML -> `Suite`. The only package that knows YAML; one table of keys makes loader, JSON Schema and docs."""

from attnbench.suites.blocks import LARGEST
from attnbench.suites.files import find, shipped
from attnbench.suites.keys import (
    AXIS_KEYS,
    BLOCK_KEYS,
    MEASURE_KEYS,
    SUITE_KEYS,
    VERIFY_KEYS,
    Key,
    keys_markdown,
    schema,
)
from attnbench.suites.loader import Override, load, parse, suite_of_problem
from attnbench.suites.suite import PRESETS, UNTIMED, Axis, Block, Measure, Preset, Suite, Verify

__all__ = [
    "AXIS_KEYS",
    "BLOCK_KEYS",
    "LARGEST",
    "MEASURE_KEYS",
    "PRESETS",
    "SUITE_KEYS",
    "UNTIMED",
    "VERIFY_KEYS",
    "Axis",
    "Block",
    "Key",
    "Measure",
    "Override",
    "Preset",
    "Suite",
    "Verify",
    "find",
    "keys_markdown",
    "load",
    "parse",
    "schema",
    "shipped",
    "suite_of_problem",
]
