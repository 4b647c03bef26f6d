"""The one exception type users see from this package."""


class HeadAwareError(ValueError):
    """A request, flag, file or combination this package cannot serve.

    The message names what was given, what was expected and what to do, in one or two sentences:
    command line entry points print it without a traceback.
    """
