"""What the tokenizer can be told: the common settings, and the size of the files that it writes."""

from pydantic import Field

from gpt2_common.settings import ServiceSettings


class TokenizerSettings(ServiceSettings):
    """Settings of the tokenizer."""

    listen: str = Field("127.0.0.1:50052", description="Address and port to serve gRPC on; port 0 takes a free one.")
    dataset_shard_bytes: int = Field(
        64 << 20, ge=1, description="Bytes of tokens after which a dataset begins its next file."
    )
