"""The files of suites: a person's own, and those that come with attnbench."""

import os
from pathlib import Path

from attnbench.errors import SuiteError

_LARGEST_FILE = 2**20


def _shipped() -> dict[str, Path]:
    package = Path(__file__).parents[1]
    inside = package / "shipped_suites"  # of a wheel; in a checkout they lie beside the package
    folder = inside if inside.is_dir() else package.parent / "suites"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def shipped() -> list[str]:
    """The names of the suites that come with attnbench."""
    return list(_shipped())


def find(name_or_path: str) -> Path:
    """The file of that path, or else the shipped suite of that name. Raises `SuiteError`."""
    if os.path.exists(name_or_path) and not os.path.isdir(name_or_path):
        return Path(name_or_path)
    if path := _shipped().get(name_or_path.removesuffix(".yaml")):
        return path
    if os.path.isdir(name_or_path):
        raise SuiteError(f"{name_or_path}: a directory is no suite", hint="give a file in it")
    raise SuiteError(
        f"{name_or_path}: no such file", hint=f"give a file, or one of ours: {', '.join(_shipped())}"
    )


def read(name_or_path: str) -> str:
    """The text of the file that `find` finds. Raises `SuiteError`."""
    try:
        with find(name_or_path).open("rb") as file:
            data = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise SuiteError(f"{name_or_path}: {error.strerror}") from None
    if len(data) > _LARGEST_FILE:
        raise SuiteError(f"{name_or_path}: no suite is larger than {_LARGEST_FILE:,} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SuiteError(
            f"{name_or_path}:{line}: not a text file in UTF-8", hint="save it as plain text in UTF-8"
        ) from None
