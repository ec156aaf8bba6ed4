"""Settings of the tokenizer: the common ones, how it encodes, and where it may download from."""

import os
from pathlib import Path

from pydantic import Field

from gpt2_common.settings import ServiceSettings

_CGROUP = Path("/sys/fs/cgroup")


class TokenizerSettings(ServiceSettings):
    """Settings of the tokenizer."""

    listen: str = Field("127.0.0.1:50052", description="Address and port to serve gRPC on; port 0 takes a free one.")
    dataset_shard_bytes: int = Field(
        64 << 20, ge=1, description="Bytes of tokens after which a dataset begins its next file."
    )
    encode_workers: int = Field(0, ge=0, le=1024, description="Threads that encode; 0: the cores available.")
    openai_base_url: str = Field(
        "https://openaipublic.blob.core.windows.net/gpt-2/models",
        pattern="^https?://.+",
        description="Folder with OpenAI's models by size; a mirror of it will do.",
    )
    download_timeout_seconds: float = Field(
        30.0, gt=0, description="Maximum seconds without data from the server of a download."
    )

    @property
    def encode_threads(self) -> int:
        """Threads that encode, 1 or more: `encode_workers`, or the cores available."""
        return self.encode_workers or available_cores()

    @property
    def download_urls(self) -> tuple[str, ...]:
        """URLs under which a request may have tokenizers downloaded: OpenAI's, and the allowed roots on the web."""
        further = (root for root in self.roots if root.startswith(("http://", "https://")))
        return (self.openai_base_url.rstrip("/"), *further)


def available_cores(cgroup: Path = _CGROUP) -> int:
    """Returns the cores that this process may use, 1 or more: by its affinity and by the CPU quota of its container.

    Args:
        cgroup: Folder of the control group (version 2), whose `cpu.max` holds the quota.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = (cgroup / "cpu.max").read_text(encoding="ascii").split()
        if quota != "max":
            cores = min(cores, -(-int(quota) // int(period)))
    except (OSError, ValueError, ZeroDivisionError):
        pass
    return max(1, cores)
