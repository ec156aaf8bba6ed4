"""Hugging Face's GPT-2 in PyTorch with fused AdamW: `pytorch.py eager|compiled|flash`; flash is compiled, too.

With `flash`, a GPU computes attention by FlashAttention alone: where it cannot, this ends with an error.
"""

import os
import sys

import numpy as np
import torch
from contender import Accelerator, Work, serve
from transformers import GPT2Config, GPT2LMHeadModel


def build(setting: dict) -> Work:
    """Makes a step on random tokens."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = GPT2Config(
        vocab_size=setting["vocabulary"],
        n_positions=setting["n_ctx"],
        n_embd=setting["n_embd"],
        n_layer=setting["n_layer"],
        n_head=setting["n_head"],
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
        attn_implementation="sdpa",
    )
    model = GPT2LMHeadModel(config).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    mixed = setting["precision"] == "bfloat16"

    def forward(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=mixed):
            logits = model(inputs).logits
        return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())

    if sys.argv[1] == "flash" and device == "cuda":
        for enable in (
            torch.backends.cuda.enable_math_sdp,
            torch.backends.cuda.enable_mem_efficient_sdp,
            torch.backends.cuda.enable_cudnn_sdp,
        ):
            enable(False)
    if sys.argv[1] != "eager":
        if os.environ.get("ATEN_CPU_CAPABILITY") == "avx2":
            # Held to AVX2 on a processor with more, its check of positions finds wrong ones in right code.
            torch._inductor.config.assert_indirect_indexing = False
        forward = torch.compile(forward)
    random = np.random.default_rng(0)
    shape = (setting["batch"], setting["length"] + 1)

    def work() -> float:
        tokens = torch.from_numpy(random.integers(0, setting["vocabulary"], shape)).to(device)
        loss = forward(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return work


def accelerator() -> Accelerator | None:
    """The GPU that PyTorch computes on."""
    if not torch.cuda.is_available():
        return None
    return Accelerator(torch.cuda.get_device_name(), torch.cuda.max_memory_allocated())


serve(build, accelerator)
