"""Damage model files in every way, and load them; to be run in a process with bounded memory.

    python -m tests.esm2.fuzz_models FOLDER FIRST_SEED COUNT

The folder holds ``model.pt``, ``alone.pt`` with its tensors alone, ``folder/`` with config.json and
model.safetensors, and ``adapter/`` to that, all good.
Prints how often each end was met; what is neither loaded nor refused in one line ends with its
traceback and the seed that makes it again.
"""

import json
import random
import resource
import shutil
import sys
import time
import traceback
from argparse import Namespace
from collections import Counter
from pathlib import Path

import torch

from packedesm.errors import UserError
from packedesm.esm2.checkpoints import load_state

MEMORY = 2 << 30
SECONDS = 60
NUMBERS = (0, -1, 1, 2, 7, 33, 1 << 31, 1 << 63, 10**30, 1e308, True, None, "3", [], {}, "x" * 9999)


def flip(content: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice((1, 1, 3, 30))):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)


def cut(content: bytearray, chance: random.Random) -> None:
    del content[chance.randrange(len(content)) :]


def splice(content: bytearray, chance: random.Random) -> None:
    start, size = chance.randrange(len(content)), chance.randrange(1, 2000)
    at = chance.randrange(len(content))
    content[at : at + chance.choice((0, size))] = content[start : start + size]


def numbers(content: bytearray, chance: random.Random) -> None:
    """Write an odd number over eight bytes near the beginning, where headers count."""
    at = chance.randrange(min(64, len(content)))
    value = chance.choice((0, 1, (1 << 32) - 1, 1 << 40, (1 << 63) - 1, (1 << 64) - 1))
    content[at : at + 8] = value.to_bytes(8, "little")


def text(content: bytearray, chance: random.Random) -> None:
    """Exchange words of a header for others: dtypes, shapes, offsets, names."""
    kinds = b"F32", b"F16", b"I64", b"BOOL", b"F8_E4M3"
    word = chance.choice((*kinds, b"[64]", b"999999999", b"-1", b"layer", b"\0"))
    places = [n for n in range(len(content) - 9) if content[n : n + 1].isalnum()] or [0]
    at = chance.choice(places[:4000])
    content[at : at + len(word)] = word


def damage_json(path: Path, chance: random.Random) -> None:
    config = json.loads(path.read_text())
    for _ in range(chance.choice((1, 1, 2, 4))):
        key = chance.choice([*config, "new"])
        if chance.random() < 0.2:
            config.pop(key, None)
        else:
            config[key] = chance.choice(NUMBERS)
    whole = json.dumps(config)
    if chance.random() < 0.1:
        whole = "[" * chance.choice((10, 100_000)) + whole
    path.write_text(whole)


def damaged_state(path: Path, chance: random.Random) -> None:
    """Save the tensors again, some of them of another kind."""
    with torch.serialization.safe_globals([Namespace]):
        content = torch.load(path, weights_only=True)
    model = content.get("model", content)
    settings = content["cfg"]["model"] if "cfg" in content else Namespace()
    for name in chance.sample([*model], chance.choice((1, 1, 3))):
        tensor = model[name]
        kinds = [
            lambda x: x.to(chance.choice((torch.bool, torch.int64, torch.complex64, torch.half))),
            lambda x: x.to(torch.float8_e4m3fn),
            lambda x: x.to("meta"),
            lambda x: x.to_sparse(),
            lambda x: torch.zeros(1).expand(10**12),
            lambda x: torch.zeros(1).expand(x.shape),
            lambda x: x[..., :1],
            lambda x: x.tolist(),
            lambda x: None,
            lambda x: torch.full_like(x, torch.nan),
        ]
        model[chance.choice((name, name, 7, f"encoder.{name}"))] = chance.choice(kinds)(tensor)
    for key in vars(settings):
        if chance.random() < 0.1:
            setattr(settings, key, chance.choice(NUMBERS[:-2]))
    torch.save(content, path)


def make(source: Path, target: Path, seed: int) -> Path:
    """Write the damaged model of a seed, and return its path."""
    chance = random.Random(seed)
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    kind = chance.choice(("bytes of .pt", "tensors", "config", "bytes of safetensors"))
    in_folder = chance.choice(("folder", "adapter"))
    if kind == "config":
        (path,) = (target / in_folder).glob("*config.json")
        damage_json(path, chance)
        return path.parent
    path = target / chance.choice(("model.pt", "alone.pt"))
    if kind == "tensors":
        damaged_state(path, chance)
        return path
    if kind == "bytes of safetensors":
        (path,) = (target / in_folder).glob("*.safetensors")
    content = bytearray(path.read_bytes())
    chance.choice((flip, cut, splice, numbers, text))(content, chance)
    path.write_bytes(content)
    return path if path.suffix == ".pt" else path.parent


def main(folder: Path, first: int, count: int) -> int:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    ends: Counter[str] = Counter()
    for seed in range(first, first + count):
        path, begun = make(folder / "good", folder / "damaged", seed), time.monotonic()
        try:
            for tensor in load_state(path)[1].values():
                tensor.sum()
            ends["loaded"] += 1
        except UserError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error), (seed, str(error))
            ends["refused"] += 1
        except BaseException:
            traceback.print_exc()
            print(f"seed {seed}: {path}", file=sys.stderr)
            return 1
        assert time.monotonic() - begun < SECONDS, f"seed {seed}"
    print(json.dumps(ends))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
