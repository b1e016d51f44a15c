"""The detached network of a prompt: predictions, Jacobians of its tokens, and what it makes of other inputs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import overload

import torch
from torch import Tensor

from detjac_lanczos.errors import InputError
from detjac_lanczos.frozen.affine import AffineNetwork
from detjac_lanczos.frozen.indices import whole_number
from detjac_lanczos.frozen.places import Place, source_block, target_place
from detjac_lanczos.frozen.prompt import decode
from detjac_lanczos.frozen.store import StoredNetwork
from detjac_lanczos.operators.autograd import AutogradSweeps
from detjac_lanczos.operators.blocks import check_block
from detjac_lanczos.operators.differentiable import product
from detjac_lanczos.operators.jacobian import DetachedJacobian, Jacobian, OrdinaryJacobian
from detjac_lanczos.operators.jacobian_batch import JacobianBatch
from detjac_lanczos.operators.passes import Passes
from detjac_lanczos.operators.reconstruction import Reconstruction
from detjac_lanczos.operators.sweeps import AffineSweeps, FrozenSweeps
from detjac_lanczos.operators.tokens import Selected, Single, Token, read_token, read_tokens


@dataclass(frozen=True)
class Candidate:
    """A next token.

    Attributes
    ----------
    token : str
        Its text.
    id : int
    probability : float
    """

    token: str
    id: int
    probability: float


class DetachedNetwork(AffineNetwork, StoredNetwork):
    """A frozen network that gives its Jacobians; see `detach`, and `FrozenNetwork` for its attributes."""

    route = FrozenSweeps.route
    """How products are computed: through the maps of the "frozen" network, or by "autograd"."""

    def _sweeps(self, source: int, target: Place) -> AffineSweeps:
        """Return the products of the frozen network between two places, as in `program`."""
        return FrozenSweeps(self.program(source, target), self.lengths, self.device)

    def _ordinary_sweeps(self, source: int, target: Place) -> AutogradSweeps:
        """Return the products of the model between two places, nothing frozen."""
        return AutogradSweeps(self._ordinary_passes, self, source, target)

    @cached_property
    @torch.inference_mode(False)
    def _ordinary_passes(self) -> Passes:
        self.require_own_pass("its ordinary Jacobians belong to another pass")
        return Passes(self.model, self.family, self.prompts)

    @cached_property
    def predictions(self) -> list[list[Candidate]]:
        """What the model says next after each prompt, most probable first (ten candidates).

        Of an altered network (see `replace`): what its own output says.
        """
        found = []
        for logits in self.last_logits:
            probabilities = torch.softmax(logits.double(), dim=-1)
            top = probabilities.topk(min(10, len(probabilities)))
            found.append(
                [
                    Candidate(decode(self.loaded, int(i)), int(i), float(p))
                    for p, i in zip(top.values, top.indices, strict=True)
                ]
            )
        return found

    @property
    def last_logits(self) -> list[Tensor]:
        """Logits at the last position of each prompt, an altered network's own: (vocabulary,) each."""
        if not self.altered:
            return list(self.streams.logits)
        return [self.value(Place("logits"), prompt, n - 1) for prompt, n in enumerate(self.lengths)]

    @property
    def prediction(self) -> list[Candidate]:
        """What the model says next after the (first) prompt."""
        return self.predictions[0]

    @cached_property
    @torch.inference_mode(False)
    def reconstruction(self) -> Reconstruction:
        """How well Σ J_i x_i + offset gives y at the last position of the (first) prompt.

        Raises
        ------
        InputError
            If the network is altered: no pass of the model gives its y.
        """
        return self.jacobian(token=0).reconstruction

    @overload
    def jacobian(
        self,
        token: Single = 0,
        *,
        source: str | Place = "embeddings",
        target: str | Place = "output",
        position: int = -1,
        frozen: bool = True,
    ) -> Jacobian: ...

    @overload
    def jacobian(
        self,
        token: slice | list[Token],
        *,
        source: str | Place = "embeddings",
        target: str | Place = "output",
        position: int = -1,
        frozen: bool = True,
    ) -> JacobianBatch: ...

    @overload
    def jacobian(
        self,
        token: list[int] | list[tuple[int, int]],
        *,
        source: str | Place = "embeddings",
        target: str | Place = "output",
        position: int = -1,
        frozen: bool = True,
    ) -> JacobianBatch: ...

    def jacobian(
        self,
        token: Single | slice | list[Token] | list[int] | list[tuple[int, int]] = 0,
        *,
        source: str | Place = "embeddings",
        target: str | Place = "output",
        position: int = -1,
        frozen: bool = True,
    ) -> Jacobian | JacobianBatch:
        """Return the Jacobian of one token, of all tokens side by side, or those of several tokens in lockstep.

        Parameters
        ----------
        token : int, (prompt, token), "joint" or (prompt, "joint"); or a slice or list
            A slice or list gives what `jacobians` gives.
        source : "embeddings" or layer(l)
        target : "output", "residual", "logits", layer(l), attention(l), mlp(l) or probe(W)
        position : int
            Row of the output.
        frozen : bool
            If False, the ordinary Jacobian of the model, nothing frozen, by automatic differentiation.

        Returns
        -------
        Jacobian or JacobianBatch
            Of one token (d_out, d_in), of "joint" (d_out, tokens · d_in); a batch for a slice or list.

        Raises
        ------
        InputError
            If the token, position, source or target does not exist, the token comes after the position, the target
            before the source or is a branch that blocks lack, the rows of a probe do not fit, or the ordinary Jacobian
            of an altered network is asked for.
        ModelError
            If the way to the logits is not built as the family declares; with ``frozen=False``, if the model cannot be
            copied, gives other logits than when it was frozen, or has weights that were made in inference mode.
            Products raise it, too, where the weights they read have changed in place.
        """
        if not frozen and self.altered:
            raise InputError("an ordinary Jacobian is the model's own; take it of the network before replace")
        if isinstance(token, slice | list):
            return self.jacobians(token, source=source, target=target, position=position, frozen=frozen)
        prompt, which = read_token(token)
        prompt = self._prompt(prompt)
        place, block = target_place(target, self.blocks), source_block(source, self.blocks)
        end = self._position(prompt, position, "position")
        start = None if which == "joint" else self._position(prompt, which, "token")
        if start is not None and start > end:
            raise InputError(f"token {start} comes after position {end}: its Jacobian is zero; choose a later position")
        if frozen:
            return DetachedJacobian(self, self._sweeps(block, place), block, place, prompt, start, end)
        return OrdinaryJacobian(self, self._ordinary_sweeps(block, place), block, place, prompt, start, end)

    def jacobians(
        self,
        tokens: slice | Token | Iterable[Token] | None = None,
        *,
        source: str | Place = "embeddings",
        target: str | Place = "output",
        position: int = -1,
        frozen: bool = True,
    ) -> JacobianBatch:
        """Return the Jacobians of several tokens for lockstep.

        Parameters
        ----------
        tokens : slice, index, (prompt, token), or list of indices and pairs; all tokens of all prompts by default
            A slice applies to every prompt, up to the output position. A tuple of two numbers is one (prompt, token).
        source, target, position, frozen
            As in `jacobian`.

        Returns
        -------
        JacobianBatch
            In the order of ``tokens``; those of a slice prompt by prompt.

        Raises
        ------
        InputError
            As in `jacobian`, or if no token is selected.
        ModelError
            As in `jacobian`.
        """
        wanted = read_tokens(tokens)
        if wanted is None or isinstance(wanted, slice):
            ends = [self._position(p, position, "position") for p in range(len(self.prompts))]
            chosen: list[Selected] = [
                (p, i)
                for p, n in enumerate(self.lengths)
                for i in range(*(wanted or slice(None)).indices(n))
                if i <= ends[p]
            ]
        else:
            chosen = wanted
        if not chosen:
            raise InputError("no tokens are selected; choose at least one")
        return JacobianBatch(
            [self.jacobian(t, source=source, target=target, position=position, frozen=frozen) for t in chosen]
        )

    def apply(
        self,
        X: Tensor,
        *,
        prompt: int = 0,
        source: str | Place = "embeddings",
        target: str | Place = "output",
        position: int = -1,
    ) -> Tensor:
        """Return what the detached network makes of other inputs: it is affine, x → Σ J_i x_i + offset.

        Autograd differentiates it in X; for a decoder that no family declares, in reverse mode alone.

        Parameters
        ----------
        X : Tensor, shape (b, positions, d)
            Inputs at every position up to the output's, in place of the prompt's own.
        prompt : int
        source, target, position
            As in `jacobian`.

        Returns
        -------
        Tensor, shape (b, d_out)

        Raises
        ------
        InputError
            As in `jacobian`, or if X is no tensor or has another shape.
        OperatorError
            If X has another dtype or device, or holds a NaN or an infinity.
        ModelError
            As in `jacobian`.
        """
        J = self.jacobian((prompt, "joint"), source=source, target=target, position=position)
        expected = (J.tokens, J.shape[1] // J.tokens)
        if not isinstance(X, Tensor) or X.ndim != 3 or X.shape[1:] != expected:
            got = tuple(X.shape) if isinstance(X, Tensor) else type(X).__name__
            raise InputError(f"apply takes inputs (b, {expected[0]}, {expected[1]}), a torch tensor; got {got}")
        columns = X.flatten(1).T
        check_block(J, columns, J.shape[1], "apply")
        sweeps = self._sweeps(J.source, J.target)

        def value(columns: Tensor) -> Tensor:
            rows = columns.unflatten(0, expected).movedim(2, 1).flatten(0, 1)
            return sweeps.affine(replace(J.segment, width=columns.shape[1]), rows).T

        return product("apply", value, J._matmat, J._rmatmat, columns).T

    def _prompt(self, prompt: int) -> int:
        found = whole_number(prompt)
        if found is None or not 0 <= found < len(self.prompts):
            raise InputError(f"prompt {prompt!r} does not exist; there are {len(self.prompts)}")
        return found

    def _position(self, prompt: int, index: int, what: str) -> int:
        n = self.lengths[prompt]
        found = whole_number(index)
        if found is None:
            shown = " ".join(repr(index).split())
            raise InputError(f"{what} {shown} is no index; give a whole number")
        if not -n <= found < n:
            where = f"prompt {prompt}" if len(self.prompts) > 1 else "the prompt"
            raise InputError(f"{what} {found} does not exist; {where} has {n} token{'s' * (n > 1)}, 0..{n - 1}")
        return found % n
