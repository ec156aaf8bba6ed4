"""OpenAI's published GPT-2 models: names, files, sizes and checksums.

Source: the files that OpenAI's `download_model.py` (gpt-2 repository) fetches.
"""

from collections.abc import Mapping
from types import MappingProxyType

from gpt2_contracts.tokenizer import ENCODER_FILE, MERGES_FILE

TOKENIZER_NAME = "openai-gpt2"
"""Name of OpenAI's GPT-2 tokenizer; the models of all sizes have the same one."""
END_TOKEN_ID = 50256
"""Id of `<|endoftext|>`, the last of its vocabulary."""

HPARAMS_FILE = "hparams.json"
CHECKPOINT_FILE = "checkpoint"
"""Names TensorFlow's checkpoint in the same folder."""
WEIGHTS_FILE = "model.ckpt.data-00000-of-00001"
FILES = (
    CHECKPOINT_FILE,
    ENCODER_FILE,
    HPARAMS_FILE,
    WEIGHTS_FILE,
    "model.ckpt.index",
    "model.ckpt.meta",
    MERGES_FILE,
)
NEEDED_FILES = tuple(name for name in FILES if name != "model.ckpt.meta")
"""Those that are read; the graph in the other belongs to OpenAI's own code."""

TOKENIZER_SHA256: Mapping[str, str] = MappingProxyType(
    {
        ENCODER_FILE: "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
        MERGES_FILE: "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    }
)
"""Checksums of the tokenizer's files, in lower-case hexadecimal."""
SHA256: Mapping[str, str] = MappingProxyType(
    {
        **TOKENIZER_SHA256,
        f"124M/{CHECKPOINT_FILE}": "dd1b025d2e155283f5e300ce95bf6d5b6bc0f7fe010db73daa6975eb896ab9cb",
        f"124M/{HPARAMS_FILE}": "d9d56e4121c427164e0c55c6f03c08e1daf9002b9b672825112d19097b680318",
        f"124M/{WEIGHTS_FILE}": "2060c885360cc0cf41d7a6dbc4d24b5127aae20260c8b5ae521b5a6578407118",
        "124M/model.ckpt.index": "71916f763f9746f9b2a06b12d91996cf1084ae008d0424543d39391c5f2dc687",
        "124M/model.ckpt.meta": "4668c448fa11531fd6700460487f73e82d3272960cea942252f8744bf225c77b",
    }
)
"""Known checksums by file name, or by model and file name."""
SIZES: Mapping[str, int] = MappingProxyType(
    {
        f"124M/{WEIGHTS_FILE}": 497_759_232,
        f"355M/{WEIGHTS_FILE}": 1_419_292_672,
        f"774M/{WEIGHTS_FILE}": 3_096_120_320,
        f"1558M/{WEIGHTS_FILE}": 6_230_444_800,
    }
)
"""Known sizes in bytes, by model and file name."""
