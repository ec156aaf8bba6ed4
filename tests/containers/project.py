"""The stack of the compose file, in a copy of the checkout, as somebody runs it who has just cloned it."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .runs import PIPELINE, SPECIFICATION

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Container:
    """What the engine says of a container."""

    service: str
    name: str
    details: Mapping[str, Any]

    @property
    def running(self) -> bool:
        return bool(self.details["State"]["Running"])

    @property
    def health(self) -> str:
        """`healthy`, `unhealthy`, `starting`; empty where it has no check."""
        return str(self.details["State"].get("Health", {}).get("Status", ""))

    @property
    def pid(self) -> int:
        """Its main process, as this machine numbers it."""
        return int(self.details["State"]["Pid"])

    @property
    def restarts(self) -> int:
        return int(self.details["RestartCount"])

    @property
    def exit_code(self) -> int:
        return int(self.details["State"]["ExitCode"])


class Project:
    """The stack.

    Args:
        folder: The copy of the checkout.
        environment: What the engine's clients need, and the names of images.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self.environment = {**os.environ, **environment}

    def copy_checkout(self) -> None:
        """Copies what git knows or would take in, so that no file of a developer's is seen or written."""
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        )
        for name in filter(None, listed.stdout.split("\0")):
            if (ROOT / name).is_file():
                target = self.folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, target)

    def run(self, command: str | Sequence[str], seconds: float = 300) -> str:
        """Runs a program, or a line of the shell, in the checkout; it must succeed. Returns what it printed."""
        words = ["bash", "-euo", "pipefail", "-c", command] if isinstance(command, str) else list(command)
        done = subprocess.run(
            words, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=seconds
        )
        assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    def secret(self, name: str) -> str:
        """A secret that the first start has made."""
        return self.compose("run", "--rm", "-T", "prepare", "show", name).strip()

    def compose(self, *arguments: str, seconds: float = 300) -> str:
        """Runs `docker compose`."""
        return self.run(["docker", "compose", *arguments], seconds)

    def up(self, *options: str, seconds: float = 600) -> float:
        """Starts it and waits until all is healthy. Returns after how many seconds."""
        began = time.monotonic()
        try:
            self.compose("up", "--detach", "--wait", "--wait-timeout", f"{seconds:.0f}", *options, seconds=seconds + 60)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.state()}") from None
        return time.monotonic() - began

    def containers(self) -> dict[str, Container]:
        """All its containers, by service."""
        ids = self.compose("ps", "--all", "--quiet").split()
        found = json.loads(self.run(["docker", "inspect", *ids])) if ids else []
        services = [item["Config"]["Labels"]["com.docker.compose.service"] for item in found]
        return {
            service: Container(service, item["Name"].lstrip("/"), item)
            for service, item in sorted(zip(services, found, strict=True), key=lambda pair: pair[0])
        }

    def long_running(self) -> dict[str, Container]:
        """The containers that do not end by themselves."""
        return {
            name: container
            for name, container in self.containers().items()
            if container.details["HostConfig"]["RestartPolicy"]["Name"] not in ("", "no")
        }

    def state(self) -> str:
        """What is not well, with the last lines of its log."""
        lines = []
        for service, container in self.containers().items():
            well = container.health in ("healthy", "") if container.running else container.exit_code == 0
            if not well:
                checks = container.details["State"].get("Health", {}).get("Log", [])[-2:]
                lines += [f"{service}: {container.details['State']['Status']} {container.health}"]
                lines += [f"  check: {check['Output'].strip()[-400:]}" for check in checks]
                lines += [f"  {line}" for line in self.logs(service).splitlines()[-15:]]
        return "\n".join(lines)

    def logs(self, service: str) -> str:
        """All that a service has printed, with the times of the engine."""
        return self.compose("logs", "--no-color", "--no-log-prefix", "--timestamps", service)

    def kill_main_process(self, service: str) -> None:
        """Kills the main process as a lack of memory would: `docker kill` would count as stopped by hand."""
        os.kill(self.containers()[service].pid, signal.SIGKILL)

    def wait_until_healthy(self, service: str, seconds: float = 180) -> Container:
        """Waits until a service runs and is healthy."""
        deadline = time.monotonic() + seconds
        while True:
            container = self.containers()[service]
            if container.running and container.health in ("healthy", ""):
                return container
            assert time.monotonic() < deadline, f"{service} is not healthy: {self.state()}"
            time.sleep(1)


def follow_how_to(name: str, environment: Mapping[str, str], folder: Path, copy: Callable[[Project], None]) -> Project:
    """A stack, built, in a folder where only the README has been followed.

    Args:
        name: Compose's name of the project.
        environment: That of the engine.
        folder: An empty one.
        copy: Puts a checkout there.
    """
    # Not below a folder of one user: the engine mounts files of it into containers with others.
    folder.chmod(0o755)
    made = Project(folder, {**environment, "COMPOSE_PROJECT_NAME": name, "PIPELINES": "./pipelines"})
    copy(made)
    (folder / "pipelines").mkdir()
    (folder / "pipelines" / f"{PIPELINE}.yaml").write_text(SPECIFICATION)
    made.run("cp .env.example .env")
    made.compose("build", seconds=3000)
    return made
