"""The Jacobian of a network as a linear operator, for one input token or for all of them jointly."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from detjac_lanczos.errors import InputError
from detjac_lanczos.frozen.affine import AffineNetwork
from detjac_lanczos.frozen.drop import named_parts
from detjac_lanczos.frozen.layout import Segment
from detjac_lanczos.frozen.places import Place
from detjac_lanczos.frozen.said import frozen_in_words
from detjac_lanczos.frozen.words import Softcap
from detjac_lanczos.operators.linear import MatrixFree
from detjac_lanczos.operators.one_sweep import products_of, transposed_products_of
from detjac_lanczos.operators.reconstruction import Reconstruction
from detjac_lanczos.operators.sweeps import Sweeps


class Jacobian(MatrixFree):
    """J of one source token (or of all tokens side by side) at one output position.

    ``shape`` is (d_out, d_in); a joint operator has d_in = tokens · hidden size, token after token.

    Attributes
    ----------
    network : AffineNetwork
    sweeps : Sweeps
        The network's products between source and target.
    source : int
        Block whose incoming residual stream is the input; −1 is the embeddings.
    target : Place
    prompt, position : int
        Prompt and output position.
    token : int or None
        Input token; None for the joint operator.
    """

    def __init__(
        self,
        network: AffineNetwork,
        sweeps: Sweeps,
        source: int,
        target: Place,
        prompt: int,
        token: int | None,
        position: int,
    ) -> None:
        self.network, self.sweeps, self.source, self.target = network, sweeps, source, target
        self.prompt, self.token, self.position = prompt, token, position
        self.dtype, self.device = network.dtype, network.device
        joint = token is None
        self.segment = Segment(prompt, 0 if token is None else token, position, 1, joint)
        self.tokens = self.segment.length if joint else 1
        self.shape = (sweeps.d_out, sweeps.d_in * self.tokens)

    def _goes_with(self, other: Jacobian) -> bool:
        """Tell whether both are of one map between two places, at whatever tokens and positions."""
        return (
            type(self) is type(other)
            and self.network is other.network
            and self.source == other.source
            and self.target.is_that(other.target)
        )

    @property
    def _elsewhere(self) -> str:
        return self.network._elsewhere

    def _matmat(self, X: Tensor) -> Tensor:
        return products_of(self.sweeps, [self], [X])[0]

    def _rmatmat(self, Y: Tensor) -> Tensor:
        return transposed_products_of(self.sweeps, [self], [Y])[0]

    @property
    @torch.inference_mode(False)
    def x(self) -> Tensor:
        """The input of the nonlinear pass, yours to write to: (d_in,)."""
        inputs = self.network.inputs(self.source, self.prompt)
        rows = inputs[self.token] if self.token is not None else inputs[: self.position + 1].reshape(-1)
        return rows.clone()

    @property
    @torch.inference_mode(False)
    def y(self) -> Tensor:
        """The target's value in the nonlinear pass, or, in an altered network, its own: yours to write to, (d_out,)."""
        return self.network.value(self.target, self.prompt, self.position).clone()

    @property
    @abstractmethod
    def offset(self) -> Tensor:
        """What Σ J_i x_i, over all tokens up to the output position, leaves of y: (d_out,)."""

    @property
    @abstractmethod
    def rebuilt(self) -> Reconstruction:
        """What the Jacobians of all tokens up to the output position give beside y, an altered network's own too."""

    @property
    def reconstruction(self) -> Reconstruction:
        """How well the Jacobians of all tokens up to the output position give y.

        Raises
        ------
        InputError
            If something in the network was replaced or switched off.
        """
        if self.network.altered:
            raise InputError(
                "a network with something replaced or switched off has no forward pass of the model to be held "
                "against; reconstruct the network it was made from"
            )
        return self.rebuilt

    def cost(self) -> float:
        """Row-sweeps of one column, either way."""
        return self.sweeps.cost(self.segment)

    @property
    def definition(self) -> dict[str, Any]:
        """What this operator is, in plain words."""
        network = self.network
        start = (
            network.family.input_definition if self.source < 0 else f"the residual stream entering block {self.source}"
        )
        tail = network.tail_words
        ends = {
            "output": f"after {tail or 'the last block'}",
            "residual": f"the residual stream {f'before {tail}' if tail else 'after the last block'}",
        }
        bends = set() if self.target.kind == "logits" else {Softcap}
        return {
            "family": network.family.name,
            "freeze": network.freeze,
            "frozen": frozen_in_words(set(network.frozen_kinds) - bends, network.freeze),
            "route": self.sweeps.route,
            "input": start,
            "target": str(self.target),
            "target_definition": ends.get(str(self.target), str(self.target)),
            "tail": tail,
            "position": self.position,
            "token": "joint" if self.token is None else self.token,
            "dtype": str(self.dtype).removeprefix("torch."),
            **({"weights": network.loaded.decoding} if network.loaded.decoding else {}),
            **({"switched_off": sorted(network.dropped)} if network.dropped else {}),
        }

    def _sum(self) -> Tensor:
        """Return Σ J_i x_i over all tokens up to the output position: (d_out,)."""
        joint = type(self)(self.network, self.sweeps, self.source, self.target, self.prompt, None, self.position)
        return joint._matmat(joint.x[:, None])[:, 0]

    def __repr__(self) -> str:
        """One line that says what the operator is."""
        token = "joint" if self.token is None else self.token
        return (
            f"{type(self).__name__}(shape={self.shape}, token={token}, position={self.position}, {self._map_in_words})"
        )

    @property
    def _map_in_words(self) -> str:
        """What `repr` says of the map, whatever the token and the position."""
        d = self.definition
        weights = f", weights {d['weights']}" if "weights" in d else ""
        without = f", without {named_parts(d['switched_off'])}" if "switched_off" in d else ""
        return (
            f"input: {d['input']}, target: {d['target_definition']}, freeze={d['freeze']!r}{weights}{without}, "
            f"{d['dtype']}"
        )


class DetachedJacobian(Jacobian):
    """J of the detached network: y = Σ J_i x_i + offset. Made by ``network.jacobian(token)``.

    One case is an exception: logits behind a softcap, of an altered network. There J and the offset keep the softcap's
    ratio of the model's pass, while y, as the network's ``prediction``, is read through the softcap itself.
    """

    @property
    def offset(self) -> Tensor:
        """The affine part r of y = Σ J_i x_i + r: (d_out,)."""
        return self.network.offset(self.source, self.target, self.prompt, self.position)

    @property
    def rebuilt(self) -> Reconstruction:
        """Σ J_i x_i + offset, over all tokens up to the output position, beside y."""
        offset = self.offset
        return Reconstruction.of(self.y, self._sum() + offset, offset)


class OrdinaryJacobian(Jacobian):
    """J of the model itself, nothing frozen, by automatic differentiation. Made by ``jacobian(..., frozen=False)``.

    A nonlinear model is no sum of its ordinary Jacobians: Σ J_i x_i misses y, and the reconstruction says by how much.
    """

    @property
    def offset(self) -> Tensor:
        """What Σ J_i x_i misses of y: (d_out,). No part of the map, and no part of the reconstruction."""
        return self.y - self._sum()

    @property
    def rebuilt(self) -> Reconstruction:
        """What Σ J_i x_i, over all tokens up to the output position, gives of y."""
        y, estimate = self.y, self._sum()
        return Reconstruction.of(y, estimate, y - estimate)

    @property
    def definition(self) -> dict[str, Any]:
        """What this operator is, in plain words."""
        return super().definition | {"freeze": "nothing", "frozen": "nothing"}
