"""The one exception for what a user can mend."""


class UserError(Exception):
    """A wrong input. The message is one sentence that names the file or parameter and the remedy.

    Entry points (`crt.cli`, `stages/`) print it without a traceback and exit with status 1.
    """
