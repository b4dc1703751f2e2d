"""What fair-esm says of proteins, by plain calls and loops: what every array is held to."""

from pathlib import Path

import esm
import numpy as np
import torch

from packedesm.alphabet import STANDARD
from packedesm.esm2.fair_esm import write_random_checkpoint
from packedesm.esm2.geometry import Geometry

GEOMETRY = Geometry(layers=2, width=16, heads=2)


def write_model(folder: Path, geometry: Geometry = GEOMETRY, seed: int = 3) -> Path:
    """Write random weights of everything: the encoder, both heads, and nothing small."""
    path = folder / "esm2_of_test.pt"
    write_random_checkpoint(path, geometry, seed=seed)
    random = torch.Generator().manual_seed(seed)
    features = geometry.layers * geometry.heads
    regression = {
        "contact_head.regression.weight": torch.randn(1, features, generator=random) * 3,
        "contact_head.regression.bias": torch.tensor([-0.4]),
    }
    torch.save({"model": regression}, folder / "esm2_of_test-contact-regression.pt")
    return path


class FairEsm:
    """fair-esm's own model, loaded as it loads it."""

    def __init__(self, path: Path) -> None:
        content, regression = (
            torch.load(file, weights_only=False)  # this very test has written them
            for file in (path, path.with_name(f"{path.stem}-contact-regression.pt"))
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

    def arrays(self, sequence: str, layers: tuple[int, ...]) -> dict[str, np.ndarray]:
        """Return every array of one protein, of some layers and the last, by its name."""
        depth = self.model.num_layers
        said = self.result(sequence, repr_layers=[*layers, depth], return_contacts=True)
        found = {}
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
        masked = torch.stack([self.masked(sequence, place) for place in range(len(sequence))])
        found["masked_marginals"] = masked[:, self.letters("".join(STANDARD))].numpy()
        own = enumerate(self.letters(sequence))
        surprise = -np.mean([float(masked[place, token]) for place, token in own])
        found["pseudo_perplexity"] = np.exp(surprise)
        return found

    def masked(self, sequence: str, place: int) -> torch.Tensor:
        """Return the log probabilities (33,) at a place that is masked."""
        text = sequence[:place] + "<mask>" + sequence[place + 1 :]
        return self.result(text)["logits"][0, place + 1].double().log_softmax(-1)
