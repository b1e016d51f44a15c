"""What a verification tells beside its claims: how the model was loaded, and words that have changed since."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from detjac_lanczos.operators import JacobianBatch
from detjac_lanczos.runs.run import Run
from detjac_lanczos.runs.threshold_claims import rests_on_its_search

WORDED = ("family", "frozen", "input", "tail", "target_definition", "weights")
"""Parts of a definition that are sentences or names. What they say is held by parts that are compared (source, target,
position, freeze, route, dtype, the fingerprint of the weights) and by what is measured: x, y and the products of the
operator. The words themselves may be others in another version.
"""


def loading_notes(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line of the options that the model was loaded with, where they are not the defaults."""
    if loading := record["loading"]:
        yield f"the model was loaded with {', '.join(f'{name}={value!r}' for name, value in loading.items())}"


def threshold_notes(run: Run) -> Iterator[str]:
    """Yield a line where all values above a threshold were asked for, with no claim of completeness for them."""
    threshold = run.record["options"]["threshold"]
    if threshold is not None and (count := sum(map(rests_on_its_search, run.tokens))):
        yield (
            f"that {count} of {len(run.tokens)} tokens have no further value above {threshold:g} is not claimed: a few "
            "random vectors found none that large, which is no proof (certify='complete' claims it)"
        )


def wording_notes(record: Mapping[str, Any], batch: JacobianBatch) -> Iterator[str]:
    """Yield a line for each part of the definition that reads otherwise today."""
    written, today = record["definition"], batch.operators[0].definition
    for name in WORDED:
        if name in today and name in written and written[name] != today[name]:
            yield (
                f"definition.{name} reads {written[name]!r} in the record and {today[name]!r} today: the words are not "
                "compared, what they stand for is measured"
            )
