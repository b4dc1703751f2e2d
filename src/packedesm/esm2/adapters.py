"""Merge a LoRA adapter, as peft saves it, into the weights of the model that it is for."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from packedesm.errors import UserError
from packedesm.esm2.model_files import read_small_json, weight_files
from packedesm.esm2.other_models import ADAPTER
from packedesm.esm2.tensor_files import tensors_of
from packedesm.esm2.tensor_names import PREFIXES, fair_esm_name, head_name
from packedesm.esm2.weights import EMBEDDINGS, TIED, Weights, check_kinds, check_tied, unique
from packedesm.outputs import LANGUAGE_HEAD

_MERGE = "merge it where it was trained: model.merge_and_unload().save_pretrained(FOLDER)"
# Settings that the tensors show, or that change nothing of what is computed after a training.
_HARMLESS = {
    *("alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config"),
    *("ensure_weight_tying", "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode"),
    *("layers_pattern", "layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout"),
    *("megatron_core", "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r"),
    *("rank_pattern", "runtime_config", "target_modules", "task_type", "use_rslora"),
}
# Ways to begin a training that leave the weights of the base as they are.
_BEGINNINGS = (True, False, None, "gaussian", "orthogonal", "eva")
_PREFIX = "base_model.model."
# Where the encoder's own name begins in that of a tensor; heads have no such part.
_ENCODER = re.compile(
    r"(?:^|\.)((?:encoder\.layer\.\d+|layers\.\d+|embeddings|encoder\.emb_layer_norm_after"
    r"|embed_tokens|emb_layer_norm_after)\..+)$"
)
_HEAD = re.compile(r"(?:^|\.)((?:lm_head|contact_head)\..+)$")
_MATRIX = re.compile(r"(.+)\.lora_([AB])(?:\.default)?\.weight")
_WRAPPED = re.compile(r"\.base_layer(?=\.)")  # what peft puts before the bias of a layer


@dataclass(frozen=True)
class _Update:
    """One product of two small matrices that is added to a weight."""

    a: torch.Tensor  # (rank, inputs)
    b: torch.Tensor  # (outputs, rank)
    scale: float


class _Merged(Mapping[str, torch.Tensor]):
    """The weights of a base with an adapter's; each is made when it is asked for, in float32."""

    def __init__(
        self,
        base: Mapping[str, torch.Tensor],
        updates: Mapping[str, _Update],
        replaced: Mapping[str, torch.Tensor],
    ) -> None:
        self._base, self._updates, self._replaced = base, updates, replaced

    def __getitem__(self, name: str) -> torch.Tensor:
        weight = self._replaced.get(name, self._base[name])
        if name not in self._updates:
            return weight
        update = self._updates[name]
        return weight.float() + update.scale * (update.b.float() @ update.a.float())

    def __iter__(self) -> Iterator[str]:
        return iter(self._base)

    def __len__(self) -> int:
        return len(self._base)


def load(folder: Path, base: Weights, needs: Collection[str] = ()) -> Weights:
    """Return the encoder and the heads of `base` with the adapter in `folder`.

    Parameters
    ----------
    needs
        The heads that `base` was read with: the others are left out of the adapter too.

    Raises
    ------
    UserError
        If a file is missing or damaged, the adapter is of another kind than LoRA or has parts that
        cannot be merged, it does not fit the base, or it changes nothing of encoder and heads.
    """
    settings = read_small_json(folder / ADAPTER)
    _check_settings(folder, settings)
    (file,) = weight_files(folder)
    updates, replaced, left_out = _sorted(file, tensors_of(file), settings, needs)
    tied = replaced.pop(TIED, None)
    _check_fit(file, {**base.state, **base.heads}, updates, replaced)
    ranks = sorted({len(update.a) for update in updates.values()})
    layout = (
        f"LoRA of rank {', '.join(map(str, ranks)) or 'none'} (peft "
        f"{str(settings.get('peft_version', 'of unknown version'))[:20]}, {len(updates)} matrices) "
        f"merged into: {base.layout}"
    )
    state = _Merged(base.state, updates, replaced)
    heads = dict(_Merged(base.heads, updates, replaced))
    if tied is not None:
        check_tied(tied, state[EMBEDDINGS], folder)
    elif LANGUAGE_HEAD in needs and EMBEDDINGS in {**updates, **replaced}:
        raise UserError(
            f"{file}: changes the embeddings, and says not what the language head ends in, which "
            f"was the same matrix; {_MERGE}"
        )
    left_out |= {*base.left_out}
    return Weights(base.geometry, state, layout, tuple(sorted(left_out)), heads)


def _check_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    where = folder / ADAPTER
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise UserError(f"{where}: peft_type is {kind!r:.60}, only LORA is merged here; {_MERGE}")
    for key, value in settings.items():
        wrong = bool(value) and key not in _HARMLESS
        if key == "init_lora_weights":
            wrong = value not in _BEGINNINGS
        elif key == "revision":
            wrong = value not in (None, "main")
        if wrong:
            raise UserError(f"{where}: {key} is {value!r:.60}, which is not merged here; {_MERGE}")
    alpha = settings.get("lora_alpha")
    patterns = settings.get("alpha_pattern") or {}
    for number in (alpha, *patterns.values()) if isinstance(patterns, dict) else (None,):
        if type(number) not in (int, float):
            raise UserError(f"{where}: lora_alpha or alpha_pattern is no number; copy it again")
    for name in patterns:
        if not re.fullmatch(r"[\w.]+", name):
            raise UserError(
                f"{where}: alpha_pattern has {name!r:.60}, not a module's name; {_MERGE}"
            )


def _sorted(
    file: Path,
    tensors: Mapping[str, torch.Tensor],
    settings: Mapping[str, Any],
    needs: Collection[str],
) -> tuple[dict[str, _Update], dict[str, torch.Tensor], set[str]]:
    """Return products by the weight that they are added to, whole weights, and what is left out."""
    heads = tuple(PREFIXES[head] for head in needs)
    check_kinds(tensors, file.stat().st_size, str(file))
    halves: dict[str, dict[str, torch.Tensor]] = {}
    scales: dict[str, float] = {}
    whole, left_out = [], set()
    for name, tensor in tensors.items():
        plain = _WRAPPED.sub("", name.removeprefix(_PREFIX))
        inner = _HEAD.search(plain)
        of_head = inner is not None and inner[1].startswith(heads)
        if not of_head:
            inner = _ENCODER.search(plain)
        named: Callable[[str], str | None] = head_name if of_head else fair_esm_name
        if inner is None:
            left_out.add(name.removeprefix(_PREFIX).split(".")[0])
        elif matrix := _MATRIX.fullmatch(inner[1]):
            weight = named(f"{matrix[1]}.weight") or matrix[1]
            halves.setdefault(weight, {})[matrix[2]] = tensor
            scales[weight] = _scale(_MATRIX.sub(r"\1", name.removeprefix(_PREFIX)), settings)
        elif ours := named(inner[1]):
            whole.append((ours, tensor))
    updates = {}
    for weight, pair in halves.items():
        if pair.keys() != {"A", "B"} or any(x.dim() != 2 for x in pair.values()):
            raise UserError(f"{file}: the two matrices of {weight} are not whole; copy it again")
        rank = max(1, len(pair["A"]))
        divisor = rank**0.5 if settings.get("use_rslora") else rank
        updates[weight] = _Update(pair["A"], pair["B"], scales[weight] / divisor)
    try:
        return updates, unique(whole), left_out
    except ValueError as error:
        raise UserError(f"{file}: {error}; copy it again") from error


def _scale(module: str, settings: Mapping[str, Any]) -> float:
    """Return alpha of a module: the first pattern that is the end of its name, or that of all."""
    for pattern, alpha in (settings.get("alpha_pattern") or {}).items():
        if module == pattern or module.endswith(f".{pattern}"):
            return float(alpha)
    return float(settings["lora_alpha"])


def _check_fit(
    file: Path,
    base: Mapping[str, torch.Tensor],
    updates: Mapping[str, _Update],
    replaced: Mapping[str, torch.Tensor],
) -> None:
    if not updates and not replaced:
        raise UserError(
            f"{file}: changes nothing of the encoder, so the vectors are its base's; name that"
        )
    shapes = {name: [len(u.b), u.a.shape[1]] for name, u in updates.items()}
    shapes |= {name: [*x.shape] for name, x in replaced.items()}
    for name, shape in shapes.items():
        if name not in base:
            raise UserError(f"{file}: {name} is nothing that can be merged into an ESM-2; {_MERGE}")
        if shape != (wanted := [*base[name].shape]):
            raise UserError(
                f"{file}: {name} is {shape}, its base has {wanted}; "
                f"set the right model as base_model_name_or_path in {ADAPTER}"
            )
    for name, update in updates.items():
        if update.a.shape[0] != update.b.shape[1]:
            raise UserError(f"{file}: the two matrices of {name} do not fit; copy it again")
