"""`attnbench schema`: the JSON Schema of a suite."""

import argparse
import json

from attnbench import suites


def main(arguments: argparse.Namespace) -> int:
    """Print the schema."""
    print(json.dumps(suites.schema(), indent=2))
    return 0
