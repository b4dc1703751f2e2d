"""Choose the proteins that training must not see: whole MMseqs2 clusters at 30% identity."""

import argparse
from pathlib import Path

from corpus import cluster, find_relatives, hold_out, read_entries, write_held_out


def main() -> None:
    """Read the options and write the list."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fasta", type=Path, required=True, help="UniProt proteins")
    parser.add_argument("--held-out", type=Path, required=True, help="the list to write")
    parser.add_argument("--share", type=float, default=0.05, help="of the proteins")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    entries = read_entries(options.fasta)
    clusters = hold_out(cluster(entries, options.threads), options.share, options.seed)
    held_out = [entry for entry in entries if entry.accession in clusters]
    training = [entry for entry in entries if entry.accession not in clusters]
    relatives = find_relatives(held_out, training, options.threads)
    write_held_out(options.held_out, clusters, relatives)


if __name__ == "__main__":
    main()
