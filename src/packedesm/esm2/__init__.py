"""The model: which there are, their weights, and ESM-2 on packed proteins."""
