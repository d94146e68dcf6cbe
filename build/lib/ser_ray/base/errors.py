"""The one exception that stands for a user's mistake."""


class UserError(Exception):
    """Something only the user can put right: jobs print it as one line and exit with code 2."""
