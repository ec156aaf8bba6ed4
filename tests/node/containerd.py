"""containerd of a node: its images are kept in a folder for all runs, its containers for one.

Its programs are those of Debian's packages: `tests/containers/engine.py` unpacks containerd and runc.
"""

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from tests.containers.engine import default_engine

PAUSE_IMAGE = "gpt2-test-pause:1"
_START_SECONDS = 120
_SHOWN_LOG_LENGTH = 2000


class Containerd:
    """Runs from `start` to `stop`.

    Attributes:
        socket: Where it listens.

    Args:
        images: The folder of its images.
        folder: An empty one, for its socket, its log and what belongs to its containers.
        cni: The folder with the programs of the Container Network Interface, and that of their configuration.
    """

    def __init__(self, images: Path, folder: Path, cni: tuple[Path, Path] | None = None) -> None:
        self._images, self._folder = images, folder
        self._cni = cni
        self._log = folder / "containerd.log"
        self.socket = folder / "containerd.sock"
        programs = default_engine().programs
        path = [str(programs / "usr/bin"), str(programs / "usr/sbin"), os.environ["PATH"]]
        self._environment = {**os.environ, "PATH": os.pathsep.join(path)}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it, without the containers that an earlier run has left. Raises AssertionError with its log."""
        configuration = self._folder / "containerd.toml"
        configuration.write_text(self._configuration())
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                ["containerd", "--config", str(configuration)], env=self._environment, stdout=log, stderr=log
            )
        deadline = time.monotonic() + _START_SECONDS
        while self._ctr("version").returncode:
            ended = self._process.poll() is not None
            if ended or time.monotonic() > deadline:
                raise AssertionError(f"containerd does not start: {self._log.read_text()[-_SHOWN_LOG_LENGTH:]}")
            time.sleep(0.2)
        for line in self.ctr("containers", "list", "--quiet").split():
            self.ctr("containers", "delete", line)

    def stop(self) -> None:
        """Ends it; containers are left to who has started them."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait()

    def ctr(self, *arguments: str) -> str:
        """What containerd's own client prints. Raises AssertionError with its errors."""
        done = self._ctr(*arguments)
        assert done.returncode == 0, f"ctr {' '.join(arguments)}: {done.stderr.decode()}"
        return done.stdout.decode()

    def load(self, save: Sequence[str], environment: dict[str, str]) -> None:
        """Takes images from a program that writes an archive of them. Raises AssertionError with the errors of both."""
        saving = subprocess.Popen(save, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        done = self._ctr("images", "import", "-", archive=saving)
        _, errors = saving.communicate()
        assert saving.returncode == 0, f"{' '.join(save)}: {errors.decode()}"
        assert done.returncode == 0, f"ctr images import: {done.stderr.decode()}"

    def _ctr(
        self, *arguments: str, archive: subprocess.Popen[bytes] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        command = ["ctr", "--address", str(self.socket), "--namespace", "k8s.io", *arguments]
        source = subprocess.DEVNULL if archive is None else archive.stdout
        return subprocess.run(command, env=self._environment, stdin=source, capture_output=True)

    def _configuration(self) -> str:
        network = ""
        if self._cni is not None:
            programs, configuration = self._cni
            network = f"""
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{programs}"
    conf_dir = "{configuration}"
"""
        return f"""
version = 2
root = "{self._images}"
state = "{self._folder / "state"}"
[grpc]
  address = "{self.socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "docker.io/library/{PAUSE_IMAGE}"
  # Scores below that of this process may be forbidden, as in a container.
  restrict_oom_score_adj = true
{network}
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
"""
