"""Plans that no budget has to force, and networks that nothing has checked."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from detjac_lanczos.frozen.plan import Plan
from detjac_lanczos.frozen.schedule import make_plan
from detjac_lanczos.frozen.ways import Way

_MAKER = "detjac_lanczos.operators.detach.make_plan"


def unchecked() -> AbstractContextManager[object]:
    """Within, `detach` asks nothing of a network: for tests of something else, as the checks take half of its time."""
    return patch("detjac_lanczos.operators.detach.check")


@contextmanager
def every_block(mixing: Way, gates: Way | None = None) -> Iterator[None]:
    """Within, `detach` under any budget treats the coefficients of every block in one way."""

    def plan(*arguments: Any) -> Plan:
        made = make_plan(*arguments)
        count = len(made.mixing)
        return replace(made, mixing=(mixing,) * count, gates=(gates or mixing,) * count)

    with patch(_MAKER, plan):
        yield
