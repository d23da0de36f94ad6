"""Measure how fast this device multiplies matrices, the peak with which a run's speed is compared."""

import time

import torch


def measure_peak(device: torch.device, dtype: torch.dtype, seconds: float = 0.3) -> tuple[float, str]:
    """Time products of two square matrices for `seconds`, and take the fastest.

    This is not the data sheet's peak, but the speed of a large product with the threads of this process and the
    current load of the machine.

    Returns:
        Floating-point operations per second, and a description of the measurement.
    """
    side = 1024 if device.type == "cpu" else 8192
    generator = torch.Generator(device).manual_seed(0)
    left, right = (torch.randn(side, side, generator=generator, device=device).to(dtype) for _ in range(2))

    def product() -> float:
        start = time.perf_counter()
        torch.matmul(left, right)
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        return time.perf_counter() - start

    product()  # warms up
    fastest, end = product(), time.perf_counter() + seconds
    while time.perf_counter() < end:
        fastest = min(fastest, product())
    per_second = 2 * side**3 / fastest
    threads = f", {torch.get_num_threads()} thread(s)" if device.type == "cpu" else ""
    name = str(dtype).removeprefix("torch.")
    return (
        per_second,
        f"{per_second:.2e} operations/s, products of {side}x{side} {name} matrices on {device.type}{threads}",
    )
