"""attnbench as pytest finds it where it is installed, for processes that have a checkout on their path."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def installed(site: Path) -> None:
    """Metadata with the entry points of `pyproject.toml` and the files of a wheel, for a checkout on the path."""
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["pytest11"]
    told = site / "attnbench_here-0.dist-info"
    told.mkdir(parents=True)
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: attnbench-here\nVersion: 0\n")
    lines = [f"{name} = {target}\n" for name, target in points.items()]
    (told / "entry_points.txt").write_text("".join(["[pytest11]\n", *lines]))
    files = [f"{path.relative_to(ROOT)},,\n" for path in (ROOT / "attnbench").rglob("*.py")]
    (told / "RECORD").write_text("".join(files))
