"""FLOPs per token and peak FLOP/s, of which MFU is the ratio."""

import pytest

from gpt2_trainer.configuration.architecture import PRESETS, Architecture
from gpt2_trainer.training.mfu import flops_per_token, peak_flops


def test_operations_of_a_token():
    architecture = Architecture(layers=PRESETS["124M"], vocabulary_size=50257, end_token_id=50256)
    # 6 x (124,439,808 - 1024 x 768) + 12 x 12 x 768 x 1024
    assert flops_per_token(architecture, 1024) == 6 * 123_653_376 + 113_246_208
    assert flops_per_token(architecture, 512) == 6 * 123_653_376 + 56_623_104


@pytest.mark.parametrize(
    ("name", "precision", "tera"),
    [
        ("NVIDIA H200", "bfloat16", 989),
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989),
        ("NVIDIA H100 PCIe", "bfloat16", 756),
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312),
        ("NVIDIA A10G", "bfloat16", 70),
        ("NVIDIA L40S", "bfloat16", 362),
        ("NVIDIA L4", "bfloat16", 121),
        ("Tesla T4", "float32", 8.1),
        ("Tesla V100-SXM2-16GB", "bfloat16", 0),
        ("cpu", "float32", 0),
    ],
)
def test_peaks_by_name(name, precision, tera):
    assert peak_flops([name], precision, 0.0) == tera * 1e12


def test_a_setting_counts_for_each_device():
    assert peak_flops(["cpu", "cpu"], "float32", 5e9) == 1e10
    assert peak_flops(["NVIDIA H200"] * 2, "bfloat16", 0.0) == 2 * 989e12
