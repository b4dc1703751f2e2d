"""The one exception whose text is meant for the user."""


class UserError(Exception):
    """The user's input or options are at fault.

    The message is one line that says what is wrong, where, and what to do. The command prints it
    without a traceback and exits with status 2.
    """
