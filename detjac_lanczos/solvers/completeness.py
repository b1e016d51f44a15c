"""The claim of COMPLETENESS: nothing larger was missed."""

from collections.abc import Sequence
from dataclasses import dataclass

from detjac_lanczos.solvers.wording import ratio_up, short

GUARDS = 6
"""The most triplets beyond k that a claim deflates. Chosen: each is a further vector to keep, of each side."""


@dataclass(frozen=True)
class Completeness:
    """With probability 1 - ``delta`` over the probes: σ_j(A) ≤ ``upper[j - 1]`` for j = 1, …, k + guards + 1.

    About the operator as computed. The values found are lower bounds, less ``rounding``: together they enclose
    σ_1, …, σ_k. If ``complete``, all k enclosures are as narrow as the tolerance and τ lies below s_k: the triplets are
    those of σ_1, …, σ_k, index by index.

    Attributes
    ----------
    k, guards : int
        Triplets asked for, and further ones that were found on the way and deflated with them.
    delta : float
        0 where the whole matrix was written out.
    seed, number : int
        The stream of the probe's random vectors: the seed of the solve, and how many claims had failed before.
    steps : tuple of int
        Products of each random vector of the probe that the claim rests on.
    products : int
        Products of all probes, those that found a missed value included.
    tau : float
        Bound of ‖(I - U Uᵀ) A (I - V Vᵀ)‖₂ over all k + guards triplets.
    upper : tuple of float, length k + guards + 1
        The last is 0 where the operator has no further value.
    rounding : float
        What rounding, and the measured loss of orthonormality and adjointness, can add; ``upper`` holds it.
    complete : bool
    cluster : bool
        σ_{k+1} is no more than ``tol`` below σ_k, as a guard or a probe has shown.
    sigma_1, sigma_k : float
        As found; what ``line`` compares with. σ_k is 0 where k is.
    floor : float
        Values below it are rounding.
    threshold : float or None
        Where all values above it were asked for: ``complete`` then says that σ_k lies above it and σ_{k+1} does not,
        and ``cluster`` that the latter may lie no more than ``tol`` below.
    """

    k: int
    guards: int
    delta: float
    seed: int
    number: int
    steps: tuple[int, ...]
    products: int
    tau: float
    upper: tuple[float, ...]
    rounding: float
    complete: bool
    cluster: bool
    sigma_1: float
    sigma_k: float
    floor: float
    threshold: float | None

    @classmethod
    def of(
        cls,
        values: Sequence[float],
        upper: Sequence[float],
        *,
        k: int,
        index_exact: bool,
        tau: float,
        beyond: float,
        rounding: float,
        floor: float,
        tol: float,
        scale: float,
        threshold: float | None,
        seed: int,
        delta: float = 0.0,
        number: int = 0,
        steps: Sequence[int] = (),
    ) -> "Completeness":
        """Return the claim that values and their bounds make.

        Parameters
        ----------
        values : sequence of float, descending
            Those found, k at least where there are any; the first is the largest known.
        upper : sequence of float, length k + guards + 1
        index_exact : bool
            The k triplets are those of σ_1, …, σ_k. With a threshold, it is enough that σ_k lies above it, also less
            ``rounding``, and σ_{k+1} does not.
        beyond : float
            The largest value that was seen beside those of the k triplets.
        scale : float
            All but ``threshold`` are as many times the operator's.
        tol : float
            As in `svd`.
        k, tau, rounding, floor, threshold, seed, delta, number, steps
            As in the claim.

        Returns
        -------
        Completeness
        """
        first, last = values[0], values[k - 1] if k else 0.0
        edge = last if threshold is None else threshold * scale
        parted = upper[k] <= edge and (k == 0 or last - rounding > edge)
        return cls(
            k=k,
            guards=len(upper) - 1 - k,
            delta=delta,
            seed=seed,
            number=number,
            steps=tuple(steps),
            products=sum(steps),
            tau=tau / scale,
            upper=tuple(bound / scale for bound in upper),
            rounding=rounding / scale,
            complete=index_exact if threshold is None else parted,
            cluster=edge > floor and beyond >= (1.0 - tol) * edge,
            sigma_1=first / scale,
            sigma_k=last / scale,
            floor=floor / scale,
            threshold=threshold,
        )

    @property
    def line(self) -> str:
        """The claim in one line."""
        k = self.k
        if self.threshold is not None:
            return self._line_of_threshold
        cluster = f", σ_{k} and σ_{k + 1} in one cluster" if self.cluster else ""
        if self.complete:
            names = "this is σ_1" if k == 1 else f"these are σ_1..σ_{k}"
            return f"COMPLETE: {names}{cluster} ({self.grounds})"
        bounded, bound = (k, self.upper[k - 1]) if self.whole else (k + 1, self.upper[k])
        unit, name = (self.sigma_k, k) if self.sigma_k > self.floor else (self.sigma_1, 1)
        ratio = f"{ratio_up(bound / unit)} σ_{name}" if unit > 0.0 else f"{bound:g}"
        return f"BOUND σ_{bounded} ≤ {ratio}{cluster} ({self.grounds})"

    @property
    def whole(self) -> bool:
        """Whether an operator of this shape has no σ_{k+1}, which is then bounded by 0."""
        return self.k > 0 and self.upper[self.k] == 0.0

    @property
    def hidden(self) -> bool:
        """Whether rounding alone hides that σ_k lies above the threshold: no more than k values do."""
        return self.threshold is not None and not self.complete and self.upper[self.k] <= self.threshold

    @property
    def _line_of_threshold(self) -> str:
        k, threshold = self.k, short(self.threshold or 0.0)
        if self.complete:
            return f"COMPLETE: {f'all {k} σ' if k else 'no σ'} above {threshold} ({self.grounds})"
        if self.hidden:
            return f"BOUND at most {k} σ above {threshold} ({self.grounds})"
        return f"BOUND σ_{k + 1} ≤ {ratio_up(self.upper[k] / (self.threshold or 1.0))} × {threshold} ({self.grounds})"

    @property
    def grounds(self) -> str:
        """What the claim rests on: δ, products and guards."""
        if self.delta == 0.0:
            return "the whole matrix was seen"
        guards = f", {self.guards} guard{'s' if self.guards > 1 else ''}" if self.guards else ""
        return f"δ = {short(self.delta)}, {self.products} products{guards}"
