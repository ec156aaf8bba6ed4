"""What the tokenizer can be told: the common settings, how it encodes, and where it may download from."""

from pydantic import Field

from gpt2_common.settings import ServiceSettings


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
    download_timeout_seconds: float = Field(30.0, gt=0, description="Longest silence of a download.")

    @property
    def download_urls(self) -> tuple[str, ...]:
        """URLs under which a request may have tokenizers downloaded: OpenAI's, and the allowed roots on the web."""
        further = (root for root in self.roots if root.startswith(("http://", "https://")))
        return (self.openai_base_url.rstrip("/"), *further)
