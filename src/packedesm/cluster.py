"""Shards, time and memory of jobs, from what they will have to do."""

from __future__ import annotations

import math

from packedesm.esm2.registry import Checkpoint

# Starting Python, loading weights over a busy network, measuring the peak: rarely five minutes.
_SETUP_MINUTES = 15
# Twice the computed time: GPUs are shared, clocks vary, and a limit that is hit costs a queue.
_MARGIN = 2
# Shards for each of several devices that take one after another, so that they end together: the
# last one ends at most a quarter of its time after the first.
_SHARDS_PER_DEVICE = 4
# Each shard costs its job the load of the weights, and a look at the device. That shall be a tenth
# of its time, on a fast GPU, at most.
_LOAD_SECONDS, _LOAD_BYTES_PER_SECOND, _WORTH = 5, 1e9, 10
_GPU_TFLOPS = 200
# A CPU core in float32 reaches 0.02 to 0.1 TFLOP/s.
_CPU_TFLOPS = 0.05
# Python with torch and a CUDA context.
_BASE_MB = 3000
# The file's weights (2 or 4 bytes each) and a float32 copy of them, at the same time.
_BYTES_PER_PARAMETER = 8


def shards_for(checkpoint: Checkpoint, cost: float, devices: int, kind: str) -> int:
    """Return into how many shards several devices of one machine have their work cut.

    Parameters
    ----------
    cost
        Of all of it, as in `embed_minutes`.
    devices, kind
        How many there are, and what they are, ``cuda`` or ``cpu``.
    """
    tflops = {"cuda": _GPU_TFLOPS, "cpu": _CPU_TFLOPS}[kind]
    seconds = 60 * _model_minutes(checkpoint, cost, tflops) / devices
    load = _LOAD_SECONDS + _BYTES_PER_PARAMETER * checkpoint.geometry.parameters / (
        _LOAD_BYTES_PER_SECOND
    )
    return devices * max(1, min(_SHARDS_PER_DEVICE, int(seconds / (_WORTH * load))))


def embed_minutes(
    checkpoint: Checkpoint, cost: float, attempt: int, *, tflops: float, max_minutes: int
) -> int:
    """Return the time limit of one embedding job, in minutes.

    Parameters
    ----------
    cost
        Of the shard, in tokens, as ``sharding.json`` has it: attention is counted as the number of
        tokens whose matrix products take as many operations.
    attempt
        1 for the first; each further one is given twice the time.
    tflops
        Sustained 10^12 FLOP/s that the job is counted on to reach.
    max_minutes
        The most that may be asked for.
    """
    minutes = _model_minutes(checkpoint, cost, tflops)
    return limited(_SETUP_MINUTES + _MARGIN * minutes, attempt, max_minutes)


def reference_minutes(
    checkpoint: Checkpoint, tokens: float, attempt: int, *, max_minutes: int
) -> int:
    """Return the time limit, in minutes, of passing `tokens` through the reference on a CPU."""
    minutes = _model_minutes(checkpoint, tokens, _CPU_TFLOPS)
    return limited(_SETUP_MINUTES + _MARGIN * minutes, attempt, max_minutes)


def transfer_minutes(megabytes: float, rate: float, attempt: int, *, max_minutes: int) -> int:
    """Return the time limit, in minutes, of a job that handles files at `rate` MB/s."""
    return limited(_SETUP_MINUTES + _MARGIN * megabytes / rate / 60, attempt, max_minutes)


def model_megabytes(checkpoint: Checkpoint, attempt: int) -> int:
    """Return the main memory, in MB, of a job that holds the model; more for each attempt."""
    weights = _BYTES_PER_PARAMETER * checkpoint.geometry.parameters / 1e6
    return math.ceil((_BASE_MB + weights) * (1 + attempt) / 2)


def limited(minutes: float, attempt: int, max_minutes: int) -> int:
    """Return `minutes` doubled with each attempt after the first, up to `max_minutes`."""
    return min(max_minutes, math.ceil(minutes * 2 ** (attempt - 1)))


def _model_minutes(checkpoint: Checkpoint, tokens: float, tflops: float) -> float:
    geometry = checkpoint.geometry
    # 24 width² FLOP per layer and token: `Geometry.flops` without attention, which the cost holds.
    return 24 * geometry.layers * geometry.width**2 * tokens / (tflops * 1e12) / 60
