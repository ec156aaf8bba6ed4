"""Hugging Face's GPT-2 in PyTorch, its own generation."""

import os
import sys

import numpy as np
import torch
from contender import Work, serve
from transformers import GPT2Config, GPT2LMHeadModel


def build(setting: dict) -> Work:
    """Makes a generation from a random prompt."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=setting["vocabulary"],
        n_positions=setting["n_ctx"],
        n_embd=setting["n_embd"],
        n_layer=setting["n_layer"],
        n_head=setting["n_head"],
    )
    model = GPT2LMHeadModel(config).to(getattr(torch, sys.argv[1])).eval()
    random = np.random.default_rng(0)
    count = setting["new"]

    def work() -> float:
        prompt = torch.from_numpy(random.integers(0, setting["vocabulary"], (1, setting["prompt"])))
        rows = prompt.repeat(setting["batch"], 1)
        made = model.generate(
            rows,
            attention_mask=torch.ones_like(rows),
            do_sample=True,
            top_k=40,
            min_new_tokens=count,
            max_new_tokens=count,
            pad_token_id=0,
        )
        return float(made.shape[1] - setting["prompt"])

    return work


serve(build)
