"""The plotting library: an extra that is looked for before anything is read."""

from importlib.util import find_spec

from attnbench.errors import UserError

MODULES = ("altair", "vl_convert")


def require() -> None:
    """Raises `UserError` where the library is not installed."""
    missing = [name for name in MODULES if find_spec(name) is None]
    if missing:
        raise UserError(
            f"figures need {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed",
            hint="pip install 'attnbench[report]'",
        )
