"""``pb_utils.Logger``: how a model writes to the server's log."""

import enum
import logging


class Logger:
    """A model's log, under its name. Any thread may write to it."""

    class LogLevel(enum.Enum):
        """How loud; the value is the level in :mod:`logging`."""

        INFO = logging.INFO
        WARNING = logging.WARNING
        ERROR = logging.ERROR
        VERBOSE = logging.DEBUG

    INFO = LogLevel.INFO
    WARNING = LogLevel.WARNING
    ERROR = LogLevel.ERROR
    VERBOSE = LogLevel.VERBOSE

    def __init__(self, log: logging.Logger) -> None:
        self._log = log

    def log(self, message: str, level: LogLevel = LogLevel.INFO) -> None:
        """Write ``message`` at ``level``."""
        self._log.log(level.value, "%s", message)

    def log_info(self, message: str) -> None:
        """Write ``message`` for the record."""
        self.log(message, self.INFO)

    def log_warn(self, message: str) -> None:
        """Write ``message`` as something to look into."""
        self.log(message, self.WARNING)

    def log_error(self, message: str) -> None:
        """Write ``message`` as a failure."""
        self.log(message, self.ERROR)

    def log_verbose(self, message: str) -> None:
        """Write ``message`` for who asked for --log-level debug."""
        self.log(message, self.VERBOSE)


def model_log(model: str) -> logging.Logger:
    """The log of the model called ``model``."""
    return logging.getLogger(f"preheat.python.{model}")
