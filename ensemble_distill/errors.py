"""The one error a user is meant to read."""


class EdistillError(Exception):
    """A mistake the user can mend: the text says what is wrong, with both values, then what to do.

    The command line prints the text alone, without a traceback, and exits with status 2.
    """
