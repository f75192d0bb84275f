"""Errors that are shown to the user in one line, and exit codes of runs that end early."""


class InputError(ValueError):
    """Something the user gave us is wrong: a file, a field, a flag.

    The message is one line that names the thing and the way out; the command line prints it
    without a traceback and exits non-zero.
    """


# Exit codes of `emu3`, besides 0 and 2 for a user's mistake.
REQUEUE = 75  # was told to leave and saved; start it again and it goes on
DIVERGED = 76  # too many bad steps in a row, or replicas that differ
HUNG = 77  # the watchdog ended it
INTERRUPTED = 130  # by hand, with Ctrl-C; a run that was given the time has saved


class RunEnded(Exception):
    """A run ended before its last step, for a reason that is nobody's mistake.

    Attributes:
        code: what the process should exit with.
    """

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code
