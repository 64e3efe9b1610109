"""What a person can put right: one class, raised anywhere, caught once in `cli`."""


class UserError(Exception):
    """Bad input. `message` says what and where, `hint` what to do about it; `shown` are lines that point at it."""

    def __init__(self, message: str, *, hint: str | None = None, shown: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.shown = shown


class SuiteError(UserError):
    """A suite file that cannot be read as one; the message begins with `file:line:`."""


class PluginError(UserError):
    """A plugin that cannot be loaded, or that conflicts with another."""


class ProblemError(UserError):
    """A problem that cannot exist, such as three query heads over two key/value heads."""


class ResultsError(UserError):
    """A run folder or a results file that cannot be read, written or resumed."""


class DeviceError(UserError):
    """A device that does not exist or cannot be used."""
