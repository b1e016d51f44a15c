"""What `analyze` returns: the record (plain data, written to run.json) and the vectors, with names for both."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from detjac_lanczos.by_value import sent_by_value
from detjac_lanczos.frozen.drop import named_parts
from detjac_lanczos.operators import Reconstruction
from detjac_lanczos.operators.network import Candidate
from detjac_lanczos.reading.page import render_page
from detjac_lanczos.reading.record_values import SUCCESSFUL, asked_for, model_name
from detjac_lanczos.reading.table import render_table
from detjac_lanczos.runs.disk import write_run
from detjac_lanczos.runs.folder import write_whole
from detjac_lanczos.runs.schema import shown
from detjac_lanczos.runs.token_result import TokenResult
from detjac_lanczos.solvers.result import Guards


@sent_by_value()
@dataclass(frozen=True, eq=False)
class Run:
    """A finished job: everything measured, and everything needed to repeat it.

    Attributes
    ----------
    record : dict
        Plain data: what ``run.json`` holds and ``detjac svd --json`` prints.
    vectors : dict of str to Tensor
        ``U.{prompt}.{index}``, ``S.…``, ``V.…``, ``x.…``, ``y.{prompt}``, ``reconstruction.detached.{prompt}`` and,
        where they exist, ``guards.U.{prompt}.{index}`` …, ``reconstruction.ordinary.{prompt}`` and
        ``embeds.{prompt}`` (given in place of token ids); ``survey.basis``, the left vectors that a survey shares, as
        rows; ``probe``, the rows of a target of that kind.
    """

    record: dict[str, Any]
    vectors: dict[str, Tensor]

    @cached_property
    def tokens(self) -> list[TokenResult]:
        """Results, prompt by prompt and token by token."""
        results = []
        for entry in self.record["tokens"]:
            place = f"{entry['prompt']}.{entry['index']}"
            U, S, V = (self.vectors[f"{name}.{place}"] for name in "USV")
            guards = None
            if f"guards.S.{place}" in self.vectors:
                guards = Guards(*(self.vectors[f"guards.{name}.{place}"] for name in "USV"))
            results.append(TokenResult(entry, U, S, V, guards))
        return results

    @property
    def prompts(self) -> list[str | None]:
        """The prompts, None where token ids or embeddings were given."""
        return list(self.record["prompts"])

    @property
    def prediction(self) -> list[Candidate]:
        """What the model says next after the first prompt, most probable first."""
        return self.predictions[0]

    @property
    def predictions(self) -> list[list[Candidate]]:
        """What the model says next after each prompt."""
        return [[_candidate(entry) for entry in entries] for entries in self.record["predictions"]]

    @property
    def reconstruction(self) -> Reconstruction:
        """How well Σ J_i x_i + offset gives y after the first prompt; no errors are known where y is no model's."""
        return self.reconstructions[0]

    @property
    def reconstructions(self) -> list[Reconstruction]:
        """How well Σ J_i x_i + offset gives y after each prompt."""
        return [
            Reconstruction(
                self.vectors[f"y.{prompt}"],
                self.vectors[f"reconstruction.detached.{prompt}"],
                *(errors[name] for name in ("relative_error", "norm_error", "offset_share")),
            )
            for prompt, errors in enumerate(self.record["reconstructions"])
        ]

    @property
    def work(self) -> dict[str, Any]:
        """Counted work: method, why, row_sweeps, dense_row_sweeps, passes, products, columns, seconds."""
        return dict(self.record["work"])

    @property
    def stable_rank(self) -> list[float | None]:
        """Estimate of ‖J‖_F² / σ_1² of every token."""
        return [token.stable_rank for token in self.tokens]

    @property
    def converged(self) -> bool:
        """Whether every triplet of every token was found."""
        return all(token.status in SUCCESSFUL for token in self.tokens)

    def spectrum(self) -> Tensor:
        """Return the singular values of every token, NaN where one has fewer than another.

        Returns
        -------
        Tensor, shape (tokens, k)
            k is that of the token with most.
        """
        return pad_sequence([token.S for token in self.tokens], batch_first=True, padding_value=math.nan)

    def page(self) -> str:
        """Return the report: one HTML page that works offline.

        Returns
        -------
        str
        """
        return render_page(self.record, self.vectors)

    def report(self, path: str | os.PathLike[str]) -> Path:
        """Write the report to a file.

        Parameters
        ----------
        path : path
            One that exists is replaced.

        Returns
        -------
        Path

        Raises
        ------
        InputError
            If it cannot be written.
        """
        write_whole(path, self.page())
        return Path(path)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the run to a folder (run.json, vectors.safetensors, report.html, figures), whole or not at all.

        Parameters
        ----------
        folder : path
            Made if missing; a run that is there is replaced.

        Returns
        -------
        Path

        Raises
        ------
        InputError
            If the folder cannot be written, or holds anything but a run.
        """
        return write_run(self.record, self.vectors, folder)

    def __str__(self) -> str:
        """Return the table that ``detjac svd`` prints."""
        return render_table(self.record)

    def __repr__(self) -> str:
        """One line that says what was run."""
        r = self.record
        asked = f"k={r['options']['k']}" if r["options"]["k"] is not None else asked_for(r)
        prompts = named_parts([shown(prompt) for prompt in r["prompts"]])
        return f"Run(model={model_name(r)!r}, prompts=[{prompts}], {asked}, tokens={len(r['tokens'])})"


def _candidate(entry: dict[str, Any]) -> Candidate:
    """Return a candidate of the record, whatever else a later version says of it."""
    return Candidate(**{field.name: entry[field.name] for field in fields(Candidate)})
