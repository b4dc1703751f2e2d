"""Let fair-esm, torch and Lightning write tiny models, and fair-esm compute what they hold.

    PYTHONPATH=.models/lightning python -m tests.models.write_trainings FOLDER

As `tests.models.write_transformers`.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import esm
import pytorch_lightning as lightning
import torch

from tests.models.cases import randomise, save_vectors

LAYERS, WIDTH, HEADS = 3, 40, 2


class Module(lightning.LightningModule):
    """A classifier on top of ESM-2, as people write it."""

    def __init__(self, encoder, rate=1e-3, extra=None):
        super().__init__()
        self.save_hyperparameters(ignore=["encoder"])
        self.model = encoder
        self.head = torch.nn.Linear(WIDTH, 2)

    def training_step(self, batch, _index):
        hidden = self.model(batch[0], repr_layers=[LAYERS])["representations"][LAYERS]
        return self.head(hidden.mean(1)).square().mean()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.hparams.rate)


def encoder(seed: int) -> esm.ESM2:
    model = randomise(esm.ESM2(LAYERS, WIDTH, HEADS).eval(), seed)
    for layer in model.layers:
        frequencies = layer.self_attn.rot_emb.inv_freq
        frequencies.copy_(frequencies.half())  # as in the published files
    return model


def train(module: Module, path: Path) -> None:
    tokens = torch.tensor([[0, 5, 6, 7, 8, 9, 2]])
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(tokens))
    trainer = lightning.Trainer(
        max_steps=2,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(module, data)
    trainer.save_checkpoint(path)


def distributed(model: torch.nn.Module, folder: Path) -> torch.nn.Module:
    meeting = folder / "meeting"
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=0, world_size=1
    )
    return torch.nn.parallel.DistributedDataParallel(model)


def main(folder: Path) -> None:
    def save(name, model, content):
        torch.save(content, folder / name)
        keep(name, model)

    def keep(name, model):
        model = model.float().eval()

        def vectors(tokens):
            return model(tokens, repr_layers=[LAYERS])["representations"][LAYERS]

        save_vectors(folder, name, vectors)

    model = encoder(1)
    save("state_dict.pt", model, model.state_dict())
    model = encoder(2).half()
    save("half.pt", model, model.state_dict())
    model = encoder(3)
    save("distributed.pt", model, {"model": distributed(model, folder).state_dict(), "epoch": 1})
    model = encoder(4)
    train(Module(model), folder / "lightning.ckpt")
    keep("lightning.ckpt", model)
    model = encoder(5)
    train(Module(model, extra=SimpleNamespace(a=1)), folder / "lightning_with_objects.ckpt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
