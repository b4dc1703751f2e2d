"""What a job runs on: GPUs, what ``auto`` means there, how fast and how full it is."""

from packedesm import exports

__all__, __getattr__ = exports(
    __name__,
    {
        "gpu_monitor": ["GPUMonitor"],
        "hardware": ["Device", "leased_device"],
        "auto": ["load"],
    },
)
