"""Runs the dashboard: `python -m gpt2_orchestration.dashboard`."""

import sys

from gpt2_orchestration.client.proxies import exempt_loopback
from gpt2_orchestration.dashboard.server import serve
from gpt2_orchestration.dashboard.settings import DashboardSettings, SettingsError

if __name__ == "__main__":
    exempt_loopback()
    try:
        serve(DashboardSettings.from_environment())
    except SettingsError as error:
        sys.exit(f"gpt2 dashboard: {error}")
