"""A frozen network on disk: one safetensors file with its description as JSON in the header.

The model's weights stay where they are; their fingerprint is stored, and a network is only ever joined to them again,
in a model that makes the same maps of them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, uint8

from detjac_lanczos.errors import RunFileError, UnsupportedModelError, first_line, shortage_said
from detjac_lanczos.frozen.capture import Streams
from detjac_lanczos.frozen.declare import Family
from detjac_lanczos.frozen.families import family_of
from detjac_lanczos.frozen.mapped import is_mapped, mapped_elsewhere
from detjac_lanczos.frozen.network import FrozenNetwork
from detjac_lanczos.frozen.plan import Plan
from detjac_lanczos.frozen.prompt import Prompt
from detjac_lanczos.frozen.setup import setup_of
from detjac_lanczos.frozen.ways import Rates
from detjac_lanczos.models import LoadedModel, load_model
from detjac_lanczos.models.alignment import aligned
from detjac_lanczos.models.dtypes import compute_dtype
from detjac_lanczos.models.loaded import ModelLike
from detjac_lanczos.models.offloaded import execution_devices, require_values
from detjac_lanczos.whole_file import as_path, parents_made, require_opened, unreadable, whole_file

FORMAT = 7

KIND = "detjac network"
FILE_NAME = "network.safetensors"
_STREAMS = ("embeddings", "output", "logits", "model_output")


class StoredNetwork(FrozenNetwork):
    """A frozen network that is written to a file and read back."""

    def save(self, path: str | Path) -> Path:
        """Write coefficients and streams to one safetensors file, whole or not at all; the weights stay out of it.

        Parameters
        ----------
        path : str or Path
            A file ending in ``.safetensors``, or a folder (made if missing) for ``network.safetensors``.

        Returns
        -------
        Path
            The file.

        Raises
        ------
        RunFileError
            If it cannot be written.
        """
        tensors = _tensors(self)
        devices = execution_devices(self.model)
        description = {
            "model": self.loaded.name,
            "fingerprint": self.loaded.fingerprint,
            "dtype": str(self.dtype).removeprefix("torch."),
            "family": self.family.name,
            "setup": setup_of(self),
            "freeze": self.freeze,
            "dropped": sorted(self.dropped),
            "changed": sorted(self.changed),
            "plan": None if self.planned is None else self.planned.record,
            "elsewhere": [
                name for name, value in self.coefficients.items() if is_mapped(value) or value.device not in devices
            ],
            "prompts": [{name: value for name, value in vars(p).items() if name != "embeds"} for p in self.prompts],
        }
        header = {"kind": KIND, "format": str(FORMAT), "network": json.dumps(description)}
        header["checksum"] = _checksum(tensors, header["network"])
        path = _file(as_path(path))
        try:
            with shortage_said(f"write {path}", RunFileError), parents_made(path), whole_file(path) as beside:
                save_file(tensors, beside, metadata=header)
        except (OSError, ValueError, SafetensorError) as error:  # ValueError: a null byte in the name
            raise RunFileError(f"cannot write {path} ({error}); choose a place that can be written") from error
        return path

    @classmethod
    def load(cls, path: str | Path, model: ModelLike) -> Self:
        """Read a network back and join it to its model; its sweeps are the same bit for bit.

        Parameters
        ----------
        path : str or Path
            The file, or the folder that holds it.
        model : LoadedModel, or anything `load_model` takes
            The model it was made from: with the same weights, by their fingerprint, and the same maps of them. What
            made attention weights and routing alone (rotary frequencies, windows, caps of scores) is not compared, as
            those are saved. Values of branches and ordinary Jacobians come from passes of this model, and are refused
            where its logits on the prompts are others.

        Returns
        -------
        Self

        Raises
        ------
        RunFileError
            If the file is missing, truncated, foreign or of another format than this version's, or cannot be read (also
            as memory or file descriptors run out), it belongs to other weights, or to a model that makes other maps of
            them, or the model lies on several devices.
        UnsupportedModelError
            If a weight of the model has no values (meta device), or that of a packed module is no packed one.
        InputError, ModelError
            As `load_model`, or if no family declares the model.
        """
        loaded = load_model(model)
        path = _file(as_path(path))
        with shortage_said(f"read {path}", RunFileError):
            fields, setup = _joined(path, loaded)
            try:
                network = cls(loaded, **fields)
                _require_setup(path, network, setup)
            except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
                raise _damaged(path, error) from error  # coefficients of which no maps can be made
            return network


def _joined(path: Path, loaded: LoadedModel) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the fields of a network but its model, where that has the weights it was made from, and its setup."""
    devices = sorted(map(str, execution_devices(loaded.model)))
    if len(devices) > 1:
        raise RunFileError(f"a saved network joins a model on one device, not on {', '.join(devices)}; load it on one")
    require_values(loaded.model)
    family = family_of(loaded.model)
    description, tensors = _read(path, loaded.device)
    try:
        fingerprint, name = description["fingerprint"], description["model"]
        if fingerprint != loaded.fingerprint:
            dtype, other = description["dtype"], str(compute_dtype(loaded.model)).removeprefix("torch.")
            if dtype != other:
                raise RunFileError(
                    f"{path} was made in {dtype}, and {loaded.name} is in {other}; load it with {name} in {dtype}"
                )
            raise RunFileError(
                f"{path} was made from other weights than {loaded.name}'s; load it with the model {name}"
            )
        return _fields(description, tensors, loaded, family), dict(description["setup"])
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(path, error) from error


def _require_setup(path: Path, network: FrozenNetwork, recorded: Mapping[str, str]) -> None:
    """Refuse a network whose model makes other maps of its coefficients than those that were saved."""
    try:
        changed = [part for part, digest in setup_of(network).items() if recorded.get(part) != digest]
        reason = f"{changed[0]} is set up otherwise" if changed else None
    except UnsupportedModelError as error:
        reason = str(error)
    if reason is not None:
        raise RunFileError(
            f"{path} does not fit {network.loaded.name}: {reason}; load it with the configuration it was made from"
        )


def _fields(
    description: Mapping[str, Any], tensors: Mapping[str, Tensor], loaded: LoadedModel, family: Family
) -> dict[str, Any]:
    ends = list(accumulate((len(p["tokens"]) for p in description["prompts"]), initial=0))
    residual = tuple(tensors[f"residual.{i}"] for i in range(len(_under(tensors, "residual."))))
    streams = {name: tensors[name] for name in _STREAMS}
    for name, values in (streams | dict(enumerate(residual))).items():
        length = len(description["prompts"]) if name == "logits" else ends[-1]
        if values.ndim != 2 or len(values) != length or not values.is_floating_point():
            raise ValueError(f"prompts of {ends[-1]} tokens, {name} is {values.dtype} {tuple(values.shape)}")
    return {
        "family": family,
        "prompts": tuple(
            Prompt(
                p["text"],
                tuple(int(token_id) for token_id in p["ids"]),
                tuple(p["tokens"]),
                None if p["ids"] else tensors["embeddings"][a:b],
                None if p["position_ids"] is None else tuple(p["position_ids"]),
                p["chat"],
                p["add_special_tokens"],
            )
            for p, (a, b) in zip(description["prompts"], pairwise(ends), strict=True)
        ),
        "freeze": description["freeze"],
        "coefficients": _under(tensors, "coefficient."),
        "streams": Streams(residual=residual, **streams),
        "dropped": frozenset(description["dropped"]),
        "changed": frozenset(description["changed"]),
        "planned": _plan(description, loaded, family),
    }


def _plan(description: Mapping[str, Any], loaded: LoadedModel, family: Family) -> Plan | None:
    record = description["plan"]
    lengths = tuple(len(prompt["tokens"]) for prompt in description["prompts"])
    if record is None:
        return None
    shape, ahead = family.shape(loaded.model, description["freeze"]), Rates.of(loaded.device).overlaps
    return Plan.from_record(record, shape, lengths, ahead=ahead)


def _read(path: Path, device: torch.device) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        require_opened(path)
        with safe_open(path, "pt", device="cpu") as file:
            header = file.metadata() or {}
            if header.get("kind") != KIND:
                raise RunFileError(f"{path} is not a saved network; give a file that network.save wrote")
            if int(header["format"]) > FORMAT:
                raise RunFileError(f"{path} has format {header['format']}, newer than {FORMAT}; update detjac-lanczos")
            if int(header["format"]) < FORMAT:
                raise RunFileError(f"{path} has format {header['format']}, older than {FORMAT}; save the network again")
            text, checksum = header["network"], header["checksum"]
            description = json.loads(text)
            elsewhere = {f"coefficient.{name}" for name in description["elsewhere"]}
            tensors = {
                name: mapped_elsewhere(value) if name in elsewhere else aligned(value.to(device))
                for name, value in ((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118
            }
    except FileNotFoundError:
        raise RunFileError(f"{path} does not exist; give a file that network.save wrote") from None
    except (SafetensorError, LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise _damaged(path, error) from error
    except (OSError, RuntimeError) as error:
        raise unreadable(path, error) from error
    if _checksum(tensors, text) != checksum:
        raise RunFileError(f"{path} is damaged: its contents do not match their checksum; save the network again")
    return description, tensors


def _tensors(network: FrozenNetwork) -> dict[str, Tensor]:
    streams = network.streams
    tensors = {f"coefficient.{name}": value for name, value in network.coefficients.items()}
    tensors |= {f"residual.{i}": value for i, value in enumerate(streams.residual)}
    tensors |= {name: getattr(streams, name) for name in _STREAMS}
    return {name: value.detach().contiguous() for name, value in tensors.items()}


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _damaged(path: Path, error: Exception) -> RunFileError:
    reason = f"{type(error).__name__}: {first_line(error)}"
    return RunFileError(f"{path} is damaged or foreign ({reason}); save the network again")


def _checksum(tensors: Mapping[str, Tensor], description: str) -> str:
    digest = hashlib.sha256(description.encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype} ".encode())
        digest.update(value.cpu().reshape(-1).view(uint8).numpy().data)
    return digest.hexdigest()


def _file(path: Path) -> Path:
    # Unlike Path's own, os.path.isdir makes no error of a name that is too long.
    return path if path.suffix == ".safetensors" and not os.path.isdir(path) else path / FILE_NAME
