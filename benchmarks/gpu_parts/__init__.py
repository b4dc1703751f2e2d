"""The parts of `make bench-gpu`: each measures one thing in a process of its own."""
