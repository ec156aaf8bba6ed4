"""What holds for all tests."""

import signal


def pytest_configure() -> None:
    """Lets Ctrl-C reach the processes that tests start.

    A shell starts what it runs in the background with that signal ignored, which every process below would inherit.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
