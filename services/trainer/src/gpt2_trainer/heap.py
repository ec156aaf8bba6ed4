"""How a process that trains on CPUs keeps memory: what one step frees, the next one takes again.

A step's tensors are large, and glibc by default asks the kernel for each of them and gives each back: at 124M, batch
4 x 256, that is 1.6 GB a step in 0.4 million pages, each cleared anew and each a fault. Here nothing goes back, all of
it lies in one heap, and the heap is asked for in huge pages: about a tenth more tokens a second on two cores.
"""

_TUNABLES = {"mmap_max": 0, "trim_threshold": 1 << 40, "arena_max": 1, "hugetlb": 1}

KEPT_HEAP = {"GLIBC_TUNABLES": ":".join(f"glibc.malloc.{name}={value}" for name, value in _TUNABLES.items())}
"""Variables that such a process starts with: glibc reads them before anything else runs. Other libcs do not know them.
Who sets GLIBC_TUNABLES for the service decides for the trainings beside it, too; TrainJobs start with these."""
