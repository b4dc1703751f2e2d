"""What fair-esm says of proteins, by plain calls and loops: what every array is held to."""

import gzip
from pathlib import Path

import esm
import numpy as np
import torch

from packedesm.alphabet import STANDARD
from packedesm.device.memory import keep_freed_memory
from packedesm.esm2.fair_esm import write_random_checkpoint, write_random_regression
from packedesm.esm2.geometry import Geometry
from packedesm.esm2.model_files import regression_file
from packedesm.esm2.registry import MODELS

GEOMETRY = Geometry(layers=2, width=16, heads=2)
GEOMETRY_8M = MODELS["esm2_t6_8M_UR50D"]
MODEL = "esm2_of_test.pt"
MOST = 1022  # residues


def write_model(folder: Path, geometry: Geometry = GEOMETRY, seed: int = 3) -> Path:
    """Write random weights of everything: the encoder and both heads."""
    path = folder / MODEL
    write_random_checkpoint(path, geometry, seed=seed)
    write_random_regression(regression_file(path), geometry, seed)
    return path


def spread(fasta: Path) -> dict[str, str]:
    """Return forty proteins spread over the lengths of a file by id, the shortest first.

    That and the longest are among them.
    """
    text = gzip.decompress(fasta.read_bytes()).decode().removeprefix(">")
    records = [record.partition("\n") for record in text.split("\n>")]
    found = sorted(
        ((header.split()[0], rest.replace("\n", "")) for header, _, rest in records),
        key=lambda record: len(record[1]),
    )
    return dict(found[round(k * (len(found) - 1) / 39)] for k in range(40))


class EightMillion:
    """Random weights of the 8M model's geometry, and what fair-esm says of forty proteins.

    They are cut at 1,022 residues. It is made once for all tests: a pass over a long protein that
    tells of contacts takes seconds.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.path = folder / MODEL

    @staticmethod
    def fill(folder: Path, sequences: dict[str, str]) -> None:
        """Write the model, and what is said of each protein."""
        keep_freed_memory()  # fair-esm's maps are large, and the system would clear them each time
        oracle, layers = FairEsm(write_model(folder, GEOMETRY_8M)), range(GEOMETRY_8M.layers + 1)
        for place, sequence in enumerate(sequences.values()):
            said = oracle.result(sequence[:MOST], repr_layers=layers, return_contacts=True)
            del said["attentions"]
            torch.save(said, folder / f"{place}.pt")

    def said(self, place: int) -> dict:
        """Return fair-esm's result for one of the forty, with every layer, but for the maps."""
        return torch.load(self._folder / f"{place}.pt", weights_only=True)


class FairEsm:
    """fair-esm's own model, loaded as it loads it."""

    def __init__(self, path: Path) -> None:
        content, regression = (
            torch.load(file, weights_only=False)  # this very test has written them
            for file in (path, regression_file(path))
        )
        load = esm.pretrained.load_model_and_alphabet_core
        self.model, self.alphabet = load("esm2", content, regression)
        self.model.eval()
        self._convert = self.alphabet.get_batch_converter()

    @torch.inference_mode()
    def result(self, sequence: str, **asked) -> dict:
        return self.model(self._convert([("", sequence)])[2], **asked)

    def letters(self, sequence: str) -> list[int]:
        return [self.alphabet.get_idx(letter) for letter in sequence]

    def arrays(
        self, sequence: str, layers: tuple[int, ...], *, masked: bool = True
    ) -> dict[str, np.ndarray]:
        """Return every array of one protein, of some layers and the last, by its name.

        Those from `masked` passes take one for every residue.
        """
        asked = {"repr_layers": [*layers, self.model.num_layers], "return_contacts": True}
        found = self.arrays_of(self.result(sequence, **asked), sequence, layers)
        return found | self.masked_arrays(sequence) if masked else found

    def arrays_of(
        self, said: dict, sequence: str, layers: tuple[int, ...]
    ) -> dict[str, np.ndarray]:
        """Return every array that needs no masked pass, from fair-esm's result for a protein."""
        depth, found = self.model.num_layers, {}
        for layer in (*layers, depth):
            tokens = said["representations"][layer][0].double().numpy()
            name = "" if layer == depth else f".layer{layer}"
            found[f"mean{name}"] = tokens[1:-1].mean(0)
            found[f"max{name}"] = tokens[1:-1].max(0)
            found[f"cls{name}"] = tokens[0]
            found[f"residue{name}"] = tokens[1:-1]
        logits = said["logits"][0, 1:-1].double()
        found["logits"] = logits.numpy()
        own = enumerate(self.letters(sequence))
        likely = logits.log_softmax(-1)
        found["log_likelihood"] = np.array([float(likely[place, token]) for place, token in own])
        contacts = said["contacts"][0].double().numpy()
        found["contacts"] = np.concatenate([line[row:] for row, line in enumerate(contacts)])
        return found

    def masked_arrays(self, sequence: str) -> dict[str, np.ndarray]:
        """Return the arrays of one protein that come from masked passes."""
        masked = torch.stack([self.masked(sequence, place) for place in range(len(sequence))])
        own = enumerate(self.letters(sequence))
        surprise = -np.mean([float(masked[place, token]) for place, token in own])
        return {
            "masked_marginals": masked[:, self.letters("".join(STANDARD))].numpy(),
            "pseudo_perplexity": np.exp(surprise),
        }

    def masked(self, sequence: str, place: int) -> torch.Tensor:
        """Return the log probabilities (33,) at a place that is masked."""
        text = sequence[:place] + "<mask>" + sequence[place + 1 :]
        return self.result(text)["logits"][0, place + 1].double().log_softmax(-1)
