"""The errors a user can mend."""


class InputError(ValueError):
    """Something the user gave us is wrong: a file, a field, a flag.

    The message is one line that names the thing and how to mend it; the command line prints it
    without a traceback and exits non-zero.
    """
