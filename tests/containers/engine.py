"""A container engine for the tests, where none runs: Docker, Compose and buildx from Debian's packages.

    python -m tests.containers.engine start    starts it, installed first where it is not; prints what to `eval`
    python -m tests.containers.engine stop     ends it with all its containers; images and build caches stay

All it has lies in one folder, GPT2_CONTAINER_CACHE (`~/.cache/gpt2-containers`). It needs root and Debian's `apt-get`.
Debian 12's own Docker has neither Compose 2 nor buildx, so that these are the packages of Debian 13, unpacked, not
installed: its Go programs run with Debian 12's C library. `runc` alone does not; Debian 12's is used.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

_NEWER = ("docker.io", "docker-cli", "docker-compose", "docker-buildx", "containerd")
_OWN = ("runc", "tini")
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_ANSWER_SECONDS = 30
_START_SECONDS = 60
_INSTALL_SECONDS = 600


class EngineError(Exception):
    """No container engine can be started here; the message says why."""


class Engine:
    """Docker, in a folder with all that belongs to it.

    Args:
        folder: Holds its programs, its data, and its socket.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.programs = folder / "programs"
        self._run = folder / "run"
        self._log = folder / "dockerd.log"

    @property
    def environment(self) -> Mapping[str, str]:
        """What the environment needs for its clients."""
        return {
            "DOCKER_HOST": f"unix://{self._run}/docker.sock",
            "DOCKER_CONFIG": str(self.folder / "config"),
            "PATH": os.pathsep.join(
                [str(self.programs / "usr/bin"), str(self.programs / "usr/sbin"), os.environ.get("PATH", os.defpath)]
            ),
        }

    def answers(self) -> bool:
        """Whether it runs. Raises EngineError where it does, and is stuck."""
        command = ["docker", "version", "--format", "{{.Server.Version}}"]
        environment = {**os.environ, **self.environment}
        if shutil.which("docker", path=environment["PATH"]) is None:
            return False
        try:
            done = subprocess.run(command, env=environment, capture_output=True, timeout=_ANSWER_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise EngineError(
                f"dockerd does not answer within {_ANSWER_SECONDS} s, see {self._log}: wait until the machine is less "
                f"busy, or kill its process, which {self._pid_file} names, and start it again"
            ) from error
        return done.returncode == 0

    def start(self) -> None:
        """Starts it, installed first where it is not. Raises EngineError."""
        if self.answers():
            return
        self._require()
        if not (self.programs / ".ready").exists():
            self._install()
        self._run.mkdir(parents=True, exist_ok=True)
        (self.folder / "config" / "cli-plugins").mkdir(parents=True, exist_ok=True)
        for plugin in ("docker-compose", "docker-buildx"):
            link = self.folder / "config" / "cli-plugins" / plugin
            link.unlink(missing_ok=True)
            link.symlink_to(self.programs / "usr/libexec/docker/cli-plugins" / plugin)
        command = [
            *("dockerd", f"--host={self.environment['DOCKER_HOST']}", f"--data-root={self.folder / 'data'}"),
            *(f"--exec-root={self._run / 'exec'}", f"--pidfile={self._pid_file}"),
        ]
        # Where it has to switch this on itself, it also stops all other forwarding on the machine.
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                command,
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_SECONDS
        while not self.answers():
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                lines = self._log.read_text(errors="replace").splitlines()[-5:]
                raise EngineError(f"dockerd does not start, see {self._log}: {' | '.join(lines)}")
            time.sleep(0.2)
        _weigh_containers()

    def stop(self) -> None:
        """Ends it with its containers."""
        if self.answers():
            listed = self._docker("ps", "--quiet").split()
            if listed:
                self._docker("kill", *listed)
        if not self._pid_file.exists():
            return
        pid = int(self._pid_file.read_text())
        try:
            os.kill(pid, signal.SIGTERM)
        except ProcessLookupError:
            return
        deadline = time.monotonic() + _START_SECONDS
        while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
            time.sleep(0.2)
        _forget_network()

    @property
    def _pid_file(self) -> Path:
        return self._run / "dockerd.pid"

    def _docker(self, *arguments: str) -> str:
        return run(["docker", *arguments], self.environment, 120)

    def _require(self) -> None:
        if os.geteuid() != 0:
            raise EngineError("starting one needs root")
        if shutil.which("apt-get") is None:
            raise EngineError("installing one needs Debian's apt-get")

    def _install(self) -> None:
        if shutil.which("iptables") is None:
            run(["apt-get", "update", "--quiet=2"], {}, _INSTALL_SECONDS)
            command = ["apt-get", "install", "--quiet=2", "--yes", "--no-install-recommends", "iptables"]
            run(command, {"DEBIAN_FRONTEND": "noninteractive"}, _INSTALL_SECONDS)
        shutil.rmtree(self.programs, ignore_errors=True)
        packages = self.folder / "packages"
        shutil.rmtree(packages, ignore_errors=True)
        (packages / "lists" / "partial").mkdir(parents=True)
        (packages / "archives" / "partial").mkdir(parents=True)
        (packages / "trixie.list").write_text(f"deb [signed-by={_KEYRING}] {_debian_archive()} trixie main\n")
        options = [
            *("-o", f"Dir::Etc::SourceList={packages / 'trixie.list'}", "-o", "Dir::Etc::SourceParts=-"),
            *("-o", f"Dir::State::Lists={packages / 'lists'}", "-o", f"Dir::Cache={packages}"),
            *("-o", "APT::Sandbox::User=root", "-o", "Acquire::Languages=none"),
        ]
        run(["apt-get", *options, "--quiet=2", "update"], {}, _INSTALL_SECONDS)
        run(["apt-get", *options, "--quiet=2", "download", *_NEWER], {}, _INSTALL_SECONDS, packages)
        run(
            ["apt-get", "--quiet=2", "-o", "APT::Sandbox::User=root", "download", *_OWN], {}, _INSTALL_SECONDS, packages
        )
        for package in packages.glob("*.deb"):
            run(["dpkg", "--extract", str(package), str(self.programs)], {}, _INSTALL_SECONDS)
        shutil.rmtree(packages)
        (self.programs / ".ready").touch()


def run(command: Sequence[str], environment: Mapping[str, str], seconds: float, folder: Path | None = None) -> str:
    """Runs a program. Returns what it printed. Raises EngineError."""
    try:
        done = subprocess.run(
            command, env={**os.environ, **environment}, cwd=folder, capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"{' '.join(command[:3])}: no end within {seconds:.0f} s") from error
    if done.returncode != 0:
        raise EngineError(f"{' '.join(command[:3])}: {(done.stdout + done.stderr).strip()[-1000:]}")
    return done.stdout


def _debian_archive() -> str:
    """Where this machine has its own packages from. Raises EngineError."""
    listed = run(["apt-get", "indextargets", "--format", "$(CODENAME) $(REPO_URI)", "Created-By: Packages"], {}, 60)
    for line in listed.splitlines():
        suite, _, archive = line.partition(" ")
        if suite == "bookworm":
            return archive
    raise EngineError("installing one needs Debian 12's archive among apt's sources")


def _forget_network() -> None:
    """Takes away what dockerd leaves: its bridge, and its rules."""
    subprocess.run(["ip", "link", "delete", "docker0"], capture_output=True)
    for table in ("nat", "filter"):
        rules = subprocess.run(["iptables-save", "--table", table], capture_output=True, text=True).stdout.splitlines()
        kept = [line for line in rules if "DOCKER" not in line and "docker0" not in line]
        if kept != rules:
            subprocess.run(["iptables-restore", "--table", table], input="\n".join([*kept, ""]), text=True, check=True)


def _weigh_containers() -> None:
    """Gives the containers together the weight of many processes; in version 1 of cgroups they weigh as much as one."""
    shares = Path("/sys/fs/cgroup/cpu/docker/cpu.shares")
    if shares.parent.parent.is_dir():
        shares.parent.mkdir(exist_ok=True)
        shares.write_text("8192")


def default_engine() -> Engine:
    """The engine in the folder that GPT2_CONTAINER_CACHE names."""
    folder = os.environ.get("GPT2_CONTAINER_CACHE") or Path.home() / ".cache" / "gpt2-containers"
    return Engine(Path(folder).absolute())


def main() -> None:
    if sys.argv[1:] not in (["start"], ["stop"]):
        sys.exit(__doc__)
    engine = default_engine()
    try:
        if sys.argv[1] == "stop":
            engine.stop()
            return
        engine.start()
    except EngineError as error:
        sys.exit(f"no container engine: {error}")
    for name, value in engine.environment.items():
        print(f"export {name}='{value}'")


if __name__ == "__main__":
    main()
