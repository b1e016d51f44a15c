"""One quick question to the Hugging Face hub before a load, so that a wrong name or no network is said at once.

``from_pretrained`` alone asks again and again for half a minute, with a warning each time.
"""

from difflib import get_close_matches
from typing import Any

from detjac_lanczos.errors import InputError, ModelError
from detjac_lanczos.models.catalogue import EMBEDDED

TIMEOUT_SECONDS = 10.0


def options_for_hub(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options with which to load `name`: from the hub's local cache alone if the hub is out of reach.

    Parameters
    ----------
    name
        A hub id.
    options
        Those of ``from_pretrained``; ``revision``, ``token``, ``cache_dir`` and ``local_files_only`` matter here.

    Raises
    ------
    InputError
        If the hub knows no such model.
    ModelError
        If the model has to come from the hub and the hub cannot be reached.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    if options.get("local_files_only"):
        return options
    close = get_close_matches(name.lower(), EMBEDDED, n=1)
    hint = f"did you mean {close[0]!r}?" if close else "check the spelling (`detjac models` lists the embedded ones)"
    token, revision = options.get("token"), options.get("revision")
    try:
        HfApi().model_info(name, revision=revision, token=token, timeout=TIMEOUT_SECONDS)
    except (RepositoryNotFoundError, HFValidationError):
        raise InputError(f"the Hugging Face hub has no model {name!r} that you may read; {hint}") from None
    except HfHubHTTPError:
        return options
    # Every HTTP library has its own tree of network errors, and the hub's client has changed libraries before.
    except Exception:
        folder = options.get("cache_dir")
        if isinstance(try_to_load_from_cache(name, "config.json", cache_dir=folder, revision=revision), str):
            return options | {"local_files_only": True}
        raise ModelError(
            f"{name!r} is not on this machine and the Hugging Face hub cannot be reached; give a folder, a .gguf "
            f"file or an embedded name: {hint}"
        ) from None
    return options
