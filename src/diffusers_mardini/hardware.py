"""Choose the device and the number format to run on where the user does not, and recognise a lack of memory."""

import torch


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NO_MEMORY = (  # torch's words on a CPU, on MPS and in CUDA's libraries, where it has no error class for it
    "DefaultCPUAllocator",
    "MPS backend out of memory",
    "STATUS_ALLOC_FAILED",
    "Storage size calculation overflowed",
    "integer multiplication overflow",
)


def choose_device(name: str = "auto") -> torch.device:
    """Return the named device; `"auto"` is the first of CUDA, MPS and CPU that is available.

    Raises:
        ValueError: if torch does not know the device, or cannot use it here.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        torch.zeros(1, device=name).item()  # "meta" creates tensors, but they hold no numbers
        return torch.device(name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device {name!r} cannot be used here ({str(error).splitlines()[0]}); try 'cpu'") from error


def choose_dtype(name: str, device: torch.device) -> tuple[torch.dtype, str]:
    """Return the number format to compute in, and the reason for it.

    `"auto"` is bfloat16 where the hardware multiplies it, else float32: a CPU without such units emulates bfloat16 and
    is several times slower with it (8 times on the one measured).

    Raises:
        ValueError: for a name that is neither "auto" nor one of `DTYPES`.
    """
    if name == "auto":
        if has_bfloat16_units(device):
            return torch.bfloat16, f"this {device.type} has bfloat16 units"
        return torch.float32, f"this {device.type} has no bfloat16 units"
    if name not in DTYPES:
        raise ValueError(f"dtype {name!r} is unknown; use auto, {', '.join(DTYPES)}")
    return DTYPES[name], "as asked for"


def uses_bfloat16(mixed_precision: str, device: torch.device) -> bool:
    """Return whether training under `mixed_precision` ("auto", "no" or "bf16") autocasts to bfloat16 on the device."""
    name = {"auto": "auto", "no": "float32", "bf16": "bfloat16"}[mixed_precision]
    return choose_dtype(name, device)[0] == torch.bfloat16


def has_bfloat16_units(device: torch.device) -> bool:
    """Return whether the device multiplies bfloat16 natively (x86: AMX or AVX512-BF16, ARM: the bf16 extension)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(unit, False) for unit in ("amx_bf16", "avx512_bf16", "bf16"))
    return False


def is_lack_of_memory(error: BaseException | None) -> bool:
    """Return whether an error, or one that caused it, says that memory ran out."""
    while error is not None:
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
            return True
        if isinstance(error, RuntimeError) and any(sign in str(error) for sign in NO_MEMORY):
            return True
        error = error.__cause__
    return False
