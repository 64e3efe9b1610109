"""Files that outlive a run, in the user's cache folder: of all devices and versions together."""

import os
import tempfile
from pathlib import Path


def path(name: str) -> Path:
    """`attnbench/name` below `$XDG_CACHE_HOME`, by default `~/.cache` (XDG Base Directory Specification).

    Raises RuntimeError for a user without a home.
    """
    given = os.environ.get("XDG_CACHE_HOME", "")
    folder = Path(given) if os.path.isabs(given) else Path.home() / ".cache"
    return folder / "attnbench" / name


def replace(file: Path, text: str) -> None:
    """Write a file so that nobody ever reads half of it. Raises OSError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False, encoding="utf-8") as written:
        written.write(text)
    os.replace(written.name, file)
