"""The one error that qdeploy raises on purpose."""


class QdeployError(Exception):
    """Something the user can mend: says what was given, what is allowed, what to do.

    The command line prints the message and exits with 1. Any other exception is a bug of
    qdeploy and keeps its traceback.
    """
