"""`python -m gpt2_orchestration.runners.airflow.initialize FILE`: Airflow's tables, and its user `admin`.

One process in place of three of Airflow's commands, each of which imports for seconds; and the password, from FILE, is
an argument of none. It runs before each start: tables are migrated, the password is set again.
"""

import sys
from pathlib import Path

from airflow.providers.fab.auth_manager.cli_commands.utils import get_application_builder
from airflow.utils.db import upgradedb

_USER = "admin"


def main(password_file: Path) -> None:
    """Migrates the tables and sets the password.

    Args:
        password_file: Has the password, in one line.
    """
    upgradedb()
    password = password_file.read_text(encoding="utf-8").strip()
    with get_application_builder() as builder:
        manager = builder.sm
        user = manager.find_user(_USER)
        if user is None:
            role = manager.find_role("Admin")
            manager.add_user(_USER, _USER, _USER, f"{_USER}@localhost", role, password=password)
        else:
            manager.reset_password(user.id, password)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
