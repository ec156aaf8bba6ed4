"""Runs the dashboard: `python -m gpt2_orchestration.dashboard`."""

import sys

from gpt2_orchestration.dashboard.server import serve
from gpt2_orchestration.dashboard.settings import DashboardSettings, SettingsError
from gpt2_proxies import exempt_loopback

if __name__ == "__main__":
    exempt_loopback()
    try:
        serve(DashboardSettings.from_environment())
    except SettingsError as error:
        sys.exit(f"gpt2 dashboard: {error}")
