"""The marks that diffusers' test classes carry; `--strict-markers` asks for them by name."""

MARKS = (
    "attention", "autoround", "big_accelerator", "bitsandbytes", "cache", "compile", "context_parallel", "cpu_offload",
    "gguf", "group_offload", "ip_adapter", "lora", "memory", "modelopt", "quantization", "quanto", "sdnq", "single_file",
    "tensor_parallel", "torchao", "training",
)  # fmt: skip


def pytest_configure(config):
    for mark in MARKS:
        config.addinivalue_line("markers", f"{mark}: of diffusers' own tests")
