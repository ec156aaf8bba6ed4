"""The processor: its model and instruction sets, which decide what compiled programs run on it and how fast."""

import os
import platform
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_CPU_INFO = Path("/proc/cpuinfo")
_WITH_BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""Features by which a processor multiplies bfloat16: of x86, and Arm's FEAT_BF16."""
_SETS = {
    "avx2": "avx2",
    "avx512f": "avx512",
    "avx512_vnni": "avx512_vnni",
    "avx512_bf16": "avx512_bf16",
    "amx_tile": "amx",
    "amx_bf16": "amx_bf16",
    "asimd": "neon",
    "sve": "sve",
    "bf16": "bf16",
}
"""Names of the instruction sets that training depends on, by the kernel's name of the feature."""


@dataclass(frozen=True, slots=True)
class Processor:
    """The processor of this machine, as the kernel describes it.

    Args:
        model: Its model name, such as `Intel(R) Xeon(R) Platinum 8481C CPU`.
        features: The kernel's names of what it can do, in its order; empty where they are unknown.
        cores: Cores that this process may use.
    """

    model: str
    features: tuple[str, ...]
    cores: int

    @classmethod
    def of_this_machine(cls, cpu_info: Path = _CPU_INFO) -> "Processor":
        """Reads `/proc/cpuinfo`, where there is one."""
        fields: dict[str, str] = {}
        with suppress(OSError):
            for line in cpu_info.read_text(encoding="utf-8", errors="replace").splitlines():
                name, _, value = line.partition(":")
                # The first of several cores speaks for all.
                fields.setdefault(name.strip(), value.strip())
        # Arm names parts by numbers.
        part = " ".join(fields[name] for name in ("CPU implementer", "CPU part", "CPU variant") if name in fields)
        model = fields.get("model name") or part or platform.processor() or platform.machine()
        features = (fields.get("flags") or fields.get("Features") or "").split()
        return cls(model, tuple(features), len(os.sched_getaffinity(0)))

    @property
    def instruction_sets(self) -> tuple[str, ...]:
        """Those that training depends on, such as `avx2` and `amx`."""
        return tuple(name for feature, name in _SETS.items() if feature in self.features)

    @property
    def emulates_bfloat16(self) -> bool:
        """Whether it is known to multiply no bfloat16, so that such numbers are converted for each product."""
        return bool(self.features) and _WITH_BFLOAT16.isdisjoint(self.features)

    def __str__(self) -> str:
        sets = ", ".join(self.instruction_sets) or "instruction sets unknown"
        return f"{self.model}, {self.cores} cores ({sets})"
