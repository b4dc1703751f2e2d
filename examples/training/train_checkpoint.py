"""Train the small checkpoint that ships with packedesm; docs/models says with which recipe.

A run that was stopped goes on from its state file when the same command is given again.
"""

import argparse
from dataclasses import fields
from pathlib import Path

import torch
from corpus import read_entries, read_held_out
from training import Recipe, Trainer, train


def main() -> None:
    """Read the options and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fasta", type=Path, required=True, help="UniProt proteins")
    parser.add_argument("--held-out", type=Path, required=True, help="from split_corpus.py")
    parser.add_argument("--state", type=Path, required=True, help="where a stopped run goes on")
    parser.add_argument("--checkpoint", type=Path, required=True, help="the .pt file to write")
    parser.add_argument("--save-every", type=int, default=200, metavar="STEPS")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2)
    for field in fields(Recipe):
        name = "--" + field.name.replace("_", "-")
        parser.add_argument(name, type=type(field.default), default=field.default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    held_out = read_held_out(options.held_out)
    entries = read_entries(options.fasta)
    sequences = [entry.sequence for entry in entries if entry.accession not in held_out]
    recipe = Recipe(**{field.name: getattr(options, field.name) for field in fields(Recipe)})
    trainer = Trainer(recipe, sequences, torch.device(options.device))
    if options.state.exists():
        trainer.load(torch.load(options.state, weights_only=True))
    train(trainer, options.state, options.checkpoint, options.save_every)


if __name__ == "__main__":
    main()
