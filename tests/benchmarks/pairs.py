"""How often `attnbench compare` tells two runs of the same code apart, and whether it names a plugin that has slowed down.

    python tests/benchmarks/pairs.py [--pairs 10] [--suite quick] [--slowdown 10%] [--keep DIR]

Runs the suite in threes, with one more implementation from a plugin in a temporary folder: torch's SDPA, which waits for
a share of its own time. It waits for none in the first two runs and for `--slowdown` in the third: the first two are a pair
of equal runs, the last two one of a slowdown. Each pair is compared as it is, with a calibration of the machine that is
taken first, and with a margin of 1 %; then the sides of all pairs together. With `quick` and ten threes that is about an
hour. Run it with nothing else going on.

Exits with 1 where more than one pair of equal runs has a `slower`, or where the slowdown was not named, or anything else
was. `--keep` keeps the runs and the calibration; what is there already is not taken again.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnbench import suites
from attnbench.units import parse_share

PLUGIN = """
from time import perf_counter

from attnbench import Capabilities, Implementation, Prepared, hookimpl


def prepare(problem, inputs):
    from torch.nn.functional import scaled_dot_product_attention

    more = {{"is_causal": problem.mask.name == "causal", "enable_gqa": problem.heads_q != problem.heads_kv}}

    def step():
        start = perf_counter()
        out = scaled_dot_product_attention(inputs.q, inputs.k, inputs.v, **more)
        end = start + {factor} * (perf_counter() - start)
        while perf_counter() < end:
            pass
        return out

    return Prepared(step=step)


@hookimpl
def attnbench_implementations():
    yield Implementation(
        name="{name}",
        summary="SDPA that waits",
        capabilities=Capabilities(
            dtypes=frozenset({{"float32", "bfloat16"}}), masks=frozenset({{"full", "causal"}}), grouped_heads=True
        ),
        prepare=prepare,
        requires=("torch",),
        qkv_format="bhsd",
    )
"""
NAME = "paired-sdpa"
SLOWER = ("slower", "likely slower")
WAYS = ("not calibrated", "calibrated", "margin 1%")


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A folder with two plugins, and what to run with them."""

    folder: Path
    suite: str
    words: Sequence[str]

    def attnbench(self, *words: str, calibrated: bool = True) -> subprocess.CompletedProcess[str]:
        cache = str(self.folder / ("cache" if calibrated else "no-cache"))
        done = subprocess.run(
            [sys.executable, "-m", "attnbench", *words],
            env={**os.environ, "XDG_CACHE_HOME": cache},
            capture_output=True,
            text=True,
        )
        if done.returncode > 1:
            sys.exit(f"attnbench {' '.join(words)} failed:\n{done.stderr}")
        return done

    def run(self, name: str, factor: float) -> str:
        """A run of the suite, unless it is there already; its folder."""
        plugin = self.folder / f"waits-{factor:g}" / "paired.py"
        plugin.parent.mkdir(exist_ok=True)
        plugin.write_text(PLUGIN.format(name=NAME, factor=factor))
        folder = str(self.folder / name)
        if (self.folder / name / "results.csv").exists():
            return folder
        names = ",".join([*suites.load(self.suite).implementations, NAME])
        more = ["--set", f"implementations=[{names}]", "--plugin", str(plugin), "--quiet", "-o", folder]
        self.attnbench("run", self.suite, *self.words, *more)
        return folder

    def compared(self, base: str, new: str) -> Mapping[str, Mapping[str, Any]]:
        """The documents of a comparison with each of `WAYS`."""
        words = ["compare", base, new, "--format", "json", "--all"]
        return {
            way: json.loads(self.attnbench(*words, *more, calibrated=way != WAYS[0]).stdout)
            for way, more in zip(WAYS, ((), (), ("--margin", "1%")), strict=True)
        }


def named(found: Mapping[str, Any], *verdicts: str) -> set[str]:
    """Implementations with such a verdict, on a cell or as a whole."""
    return {
        one["implementation"]
        for one in (*found["cells"], *found["implementations"])
        if one["verdict"] in verdicts
    }


def of_the_slow(found: Mapping[str, Any]) -> str:
    counts = Counter(one["verdict"] for one in found["cells"] if one["implementation"] == NAME)
    return ", ".join(f"{number} {verdict}" for verdict, number in counts.items())


def line(title: str, found: Mapping[str, Any]) -> str:
    told = ", ".join(f"{number} {verdict}" for verdict, number in found["counts"].items())
    whole = ", ".join(sorted(named(found, *SLOWER))) or "none"
    overall = found["overall"]
    return f"{title}: {told}; slower: {whole}; all {overall['ratio']:.3f}; {NAME}: {of_the_slow(found)}"


def threes(bench: Bench, number: int, slow: float) -> tuple[dict[str, list[Mapping[str, Any]]], ...]:
    """The documents of the equal pairs by way, and those of the slowed ones, each printed as it comes; last all runs together."""
    factors = {"base": 1.0, "new": 1.0, "slowed": slow}
    pairs = {"equal": ("base", "new"), "slowed": ("new", "slowed")}
    found: dict[str, dict[str, list[Mapping[str, Any]]]] = {name: {way: [] for way in WAYS} for name in pairs}
    for at in range(number):
        runs = {name: bench.run(f"{name}-{at}", factor) for name, factor in factors.items()}
        for name, (base, new) in pairs.items():
            for way, document in bench.compared(runs[base], runs[new]).items():
                found[name][way].append(document)
                print(line(f"{name} {at + 1}, {way}", document), flush=True)
    for name, sides in pairs.items():
        document = bench.compared(*(str(bench.folder / f"{side}-*") for side in sides))[WAYS[0]]
        print(line(f"{name}, {number} runs a side", document), flush=True)
    return tuple(found.values())


@contextlib.contextmanager
def kept(folder: str | None) -> Iterator[Path]:
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        yield Path(folder).resolve()
    else:
        with tempfile.TemporaryDirectory() as name:
            yield Path(name)


def main() -> int:
    parser = argparse.ArgumentParser(description="Pairs of runs of the same code, and of a slower plugin.")
    parser.add_argument("--pairs", type=int, default=10, help="of each sort")
    parser.add_argument("--suite", default="quick")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as for `run`")
    parser.add_argument("--slowdown", type=parse_share, default=0.1, metavar="SHARE", help="such as 10%%")
    parser.add_argument("--keep", metavar="DIR", help="a folder for the runs")
    arguments = parser.parse_args()
    pairs, slow = arguments.pairs, 1 + arguments.slowdown
    with kept(arguments.keep) as folder:
        words = [word for one in arguments.set for word in ("--set", one)]
        bench = Bench(folder=folder, suite=arguments.suite, words=words)
        if not (folder / "cache" / "attnbench" / "calibration.json").exists():
            print(bench.attnbench("selftest", "--calibrate").stdout.strip(), flush=True)
        same, slowed = threes(bench, pairs, slow)
    failed = False
    for way in WAYS[:2]:
        sure = sum(bool(named(one, "slower")) for one in same[way])
        any_ = sum(bool(named(one, *SLOWER)) for one in same[way])
        right = sum(named(one, *SLOWER) == {NAME} and one["regressions"] > 0 for one in slowed[way])
        failed |= any_ > 1 or right < pairs
        print(
            f"{way}: {sure} of {pairs} equal pairs have a `slower`, {any_} that or a `likely slower`; of "
            f"{pairs} pairs with {NAME} {slow - 1:.0%} slower, {right} name it and nothing else"
        )
    same_within = sum(
        one["verdict"] == "same"
        for found in slowed[WAYS[2]]
        for one in found["cells"]
        if one["implementation"] == NAME
    )
    print(
        f"with a margin of 1 %, {same_within} of its cells that are {slow - 1:.0%} slower are called the same"
    )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
