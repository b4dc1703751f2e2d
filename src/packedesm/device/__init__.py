"""What a job runs on: GPUs, what ``auto`` means there, how fast and how full it is."""
