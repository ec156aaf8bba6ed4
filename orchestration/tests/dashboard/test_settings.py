"""The dashboard's settings, and what `gpt2 dashboard` says of wrong ones."""

import pytest
from typer.testing import CliRunner

from gpt2_orchestration.cli import app
from gpt2_orchestration.dashboard.settings import DashboardSettings


def test_it_listens_on_loopback_alone_by_default():
    settings = DashboardSettings.from_environment({})
    assert (settings.host, settings.port) == ("127.0.0.1", 8090)
    assert settings.host_names == {"localhost", "127.0.0.1", "[::1]"}


def test_names_are_added():
    settings = DashboardSettings.from_environment({"GPT2_DASHBOARD_HOSTS": "Board.example, other"})
    assert {"board.example", "other", "localhost"} <= settings.host_names


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GPT2_DASHBOARD_LISTEN", "8090"),
        ("GPT2_DASHBOARD_LISTEN", "localhost:port"),
        ("GPT2_DASHBOARD_LISTEN", "localhost:70000"),
        ("GPT2_TENSORBOARD_URI", "localhost:6006"),
        ("GPT2_DASHBOARD_MLFLOW_LINK", "javascript:alert(1)"),
    ],
)
def test_a_wrong_one_is_refused_with_what_to_write(name, value):
    result = CliRunner().invoke(app, ["dashboard"], env={name: value})
    assert result.exit_code == 2
    assert f"{name} is {value!r}: write" in result.output
