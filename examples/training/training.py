"""Train an ESM-2 model by masked-language modelling, seeded and resumable."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from masking import mask
from torch.nn.attention import SDPBackend, sdpa_kernel

from packedesm.esm2.fair_esm import published_frequencies, write_fair_esm
from packedesm.esm2.geometry import Geometry
from packedesm.esm2.heads import LanguageModelHead
from packedesm.esm2.model import PackedESM2
from packedesm.esm2.weights import tensor_shapes
from packedesm.files import atomic_path
from packedesm.packing.batch import PackedBatch
from packedesm.packing.collator import VarlenCollator
from packedesm.packing.dataset import Protein
from packedesm.packing.packer import plan_packs

LOG_EVERY = 50  # steps


@dataclass(frozen=True)
class Recipe:
    """All that decides which weights come out, besides the proteins."""

    layers: int = 6
    width: int = 192
    heads: int = 6
    crop: int = 510  # most residues of a protein that a step sees
    token_budget: int = 4096  # tokens of a step
    steps: int = 10_000
    warmup: int = 300  # steps
    decay: int = 3_000  # last steps, in which the rate falls to 0
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.01  # of matrices
    clip: float = 1.0  # norm of the gradient
    dtype: str = "bfloat16"  # of the products; weights and optimiser are float32
    seed: int = 1

    @property
    def geometry(self) -> Geometry:
        """Size of the model."""
        return Geometry(self.layers, self.width, self.heads)

    def rate(self, step: int) -> float:
        """Return the learning rate of `step`, from 0: a rise, a plateau, a fall to 0, all linear.

        The plateau has no memory of the length of the run, so that a run can be prolonged.
        """
        shape = min(1.0, (step + 1) / self.warmup, (self.steps - step) / self.decay)
        return self.learning_rate * shape


class Crops:
    """The packs of every step, a pure function of proteins, recipe and step.

    Each epoch sees every protein once, those longer than `Recipe.crop` as a random stretch.
    """

    def __init__(self, sequences: Sequence[bytes], recipe: Recipe) -> None:
        self.sequences = sequences
        self.recipe = recipe
        self._epoch, self._first = -1, 0  # the epoch that is planned, and its first step
        self._packs: list[np.ndarray] = []

    def __getitem__(self, step: int) -> PackedBatch:
        """Return the pack of `step`; steps may be asked for from any one on, in rising order."""
        while step >= self._first + len(self._packs):
            self._first += len(self._packs)
            self._plan(self._epoch + 1)
        items = self._packs[step - self._first]
        return VarlenCollator()([self._protein(item) for item in items])

    def _plan(self, epoch: int) -> None:
        generator = np.random.default_rng((self.recipe.seed, epoch))
        lengths = np.array([len(sequence) for sequence in self.sequences])
        shown = np.minimum(lengths, self.recipe.crop)
        self._starts = generator.integers(0, lengths - shown, endpoint=True)
        order = generator.permutation(len(lengths))
        packs = plan_packs(shown[order] + 2, self.recipe.token_budget)
        self._packs = [order[packs[pack]] for pack in generator.permutation(len(packs))]
        self._epoch = epoch

    def _protein(self, item: int) -> Protein:
        start = int(self._starts[item])
        crop = self.sequences[item][start : start + self.recipe.crop]
        return Protein(int(item), crop, [(0, len(crop))])


class Trainer:
    """Model, optimiser and place in the run; `state` and `load` make it resumable."""

    def __init__(self, recipe: Recipe, sequences: Sequence[bytes], device: torch.device) -> None:
        self.recipe = recipe
        self.device = device
        self.crops = Crops(sequences, recipe)
        encoder, head = initial_weights(recipe.geometry, recipe.seed)
        self.encoder = PackedESM2.from_fair_esm(encoder, recipe.geometry, device=device)
        self.encoder.requires_grad_(True)
        self.head = LanguageModelHead(recipe.width).to(device)
        self.head.load_state_dict(head)
        self.parameters = [*self.encoder.parameters(), *self.head.parameters()]
        matrices = [weight for weight in self.parameters if weight.ndim > 1]
        vectors = [weight for weight in self.parameters if weight.ndim < 2]
        self.optimiser = torch.optim.AdamW(
            [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}],
            weight_decay=recipe.weight_decay,
            betas=(0.9, 0.98),  # as ESM-2
            fused=True,
        )
        self.step = self.tokens = 0
        self.seconds = 0.0

    def take_step(self) -> float:
        """Train on one pack; return the mean cross-entropy of its hidden residues, in nats."""
        start = time.perf_counter()
        task = mask(self.crops[self.step], np.random.default_rng((self.recipe.seed, 1, self.step)))
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.rate(self.step)
        bfloat16 = self.recipe.dtype == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, bfloat16), attention(self.device):
            logits = predict(self.encoder, self.head, task.batch.to(self.device), task.places)
        loss = F.cross_entropy(logits.float(), task.answers.to(self.device))
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip)
        self.optimiser.step()
        self.step += 1
        self.tokens += len(task.batch.input_ids)
        self.seconds += time.perf_counter() - start
        return loss.item()

    def state(self) -> dict:
        """Return all that `load` needs to go on as if nothing had happened."""
        return {
            "recipe": asdict(self.recipe),
            "encoder": self.encoder.state_dict(),
            "head": self.head.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "progress": {"step": self.step, "tokens": self.tokens, "seconds": self.seconds},
        }

    def load(self, state: dict) -> None:
        """Go on from `state`; the run's length and its decay may have changed since.

        Raises
        ------
        ValueError
            If it was made by another recipe.
        """
        recipe = Recipe(**state["recipe"])
        if replace(recipe, steps=self.recipe.steps, decay=self.recipe.decay) != self.recipe:
            raise ValueError(f"the saved run has another recipe: {state['recipe']}")
        self.encoder.load_state_dict(state["encoder"])
        self.head.load_state_dict(state["head"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.tokens, self.seconds = state["progress"].values()

    def export(self, path: Path) -> None:
        """Write the weights, rounded to float16, as a checkpoint in fair-esm's layout."""
        encoder = self.encoder.fair_esm_state()
        names = tensor_shapes(self.recipe.geometry)
        half = {name: encoder[name].detach().cpu().half() for name in names}
        head = {name: x.cpu().half() for name, x in self.head.state_dict().items()}
        write_fair_esm(path, self.recipe.geometry, half, head)


def attention(device: torch.device) -> AbstractContextManager:
    """Return a context in which `scaled_dot_product_attention` is fast with gradients.

    On a CPU that is plain matrix products: with crops of 510 residues and heads of 32 numbers, a
    step was 1.3 times as fast as with the fused kernel, whose backward pass is slow.
    """
    if device.type != "cpu":
        return nullcontext()
    # Without it, the plain products of bfloat16 are taken in float32.
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    return sdpa_kernel(SDPBackend.MATH)


def predict(
    encoder: PackedESM2, head: LanguageModelHead, batch: PackedBatch, places: torch.Tensor
) -> torch.Tensor:
    """Return logits (K, 33) for the tokens of `batch` at `places` (K,)."""
    hidden = encoder.forward_packed(**batch.inputs)
    return head(hidden[places.to(hidden.device)], encoder.embed_tokens.weight)


def initial_weights(
    geometry: Geometry, seed: int
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return untrained weights of encoder and head by fair-esm's names.

    Matrices are normal with variance 1 / (3 inputs), biases 0, LayerNorms the identity. The two
    matrices that add to the residual stream are smaller by √(2 layers), so that the stream does
    not grow with depth; the small embeddings, which are the head's last matrix too, let
    the first predictions be nearly uniform.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        if len(shape) == 1:
            return torch.full(shape, float("norm" in name and name.endswith("weight")))
        scale = 0.05 if "embed_tokens" in name else (3 * shape[1]) ** -0.5
        if name.endswith(("out_proj.weight", "fc2.weight")):
            scale /= (2 * geometry.layers) ** 0.5
        return scale * torch.randn(shape, generator=generator)

    encoder = {name: draw(name, shape) for name, shape in tensor_shapes(geometry).items()}
    for layer in range(geometry.layers):
        encoder[f"layers.{layer}.self_attn.rot_emb.inv_freq"] = published_frequencies(geometry)
    head = LanguageModelHead(geometry.width).state_dict()
    return encoder, {name: draw(name, tuple(x.shape)) for name, x in head.items()}


def train(trainer: Trainer, state_path: Path, checkpoint: Path, save_every: int) -> None:
    """Train to the last step of the recipe; save state and checkpoint as it goes.

    Every `LOG_EVERY` steps a line of JSON is added to `state_path` with ``.jsonl`` appended.
    """
    recipe = trainer.recipe
    losses = []
    with Path(f"{state_path}.jsonl").open("a") as log:
        while trainer.step < recipe.steps:
            losses.append(trainer.take_step())
            last = trainer.step == recipe.steps
            if trainer.step % LOG_EVERY == 0 or last:
                line = {
                    "step": trainer.step,
                    "tokens": trainer.tokens,
                    "seconds": round(trainer.seconds, 1),
                    "loss": round(sum(losses) / len(losses), 4),
                    "rate": recipe.rate(trainer.step - 1),
                }
                print(json.dumps(line), file=log, flush=True)
                losses.clear()
            if trainer.step % save_every == 0 or last:
                with atomic_path(state_path) as temporary, temporary.open("wb") as handle:
                    torch.save(trainer.state(), handle)
                trainer.export(checkpoint)
