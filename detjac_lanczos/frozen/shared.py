"""What never changes and holds a whole model: copies of it are itself, and no pickle holds it."""

from __future__ import annotations

from typing import Any, NoReturn, Self

from detjac_lanczos.errors import InputError


class Shared:
    """A network, or operators of one: ``copy`` and ``deepcopy`` give the object itself, ``pickle`` says what to do."""

    def __copy__(self) -> Self:
        """Return itself."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return itself."""
        return self

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        """Refuse to be pickled.

        Raises
        ------
        InputError
            Always.
        """
        raise InputError(f"a {type(self).__name__} holds the model and is not pickled; {self._elsewhere}")

    @property
    def _elsewhere(self) -> str:
        """What there is to do in another process."""
        return (
            "give another process the file of network.save(path) and have it call DetachedNetwork.load(path, model), "
            "or detach there"
        )
