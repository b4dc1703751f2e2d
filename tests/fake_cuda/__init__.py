"""A made-up NVIDIA GPU on a machine without one: tensors that have all but numbers."""
