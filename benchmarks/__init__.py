"""packedesm beside every other way to get ESM-2 vectors, and the hardware's limits, in one run."""
