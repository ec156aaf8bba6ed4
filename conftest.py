"""What holds for all tests."""

import signal

import hypothesis


def pytest_configure() -> None:
    """Lets Ctrl-C reach the processes that tests start.

    A shell starts what it runs in the background with that signal ignored, which every process below would inherit.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # How long an example takes says how busy the machine is.
    hypothesis.settings.register_profile("untimed", deadline=None)
    hypothesis.settings.load_profile("untimed")
