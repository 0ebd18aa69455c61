"""Weights from the Hugging Face hub: the only file that imports huggingface_hub, which the extra `hub` brings."""

import contextlib
import errno
import sys
from pathlib import Path

from vit.errors import UserError
from vit.weights.files import INDEX, PICKLES, refuse_pickle

WANTED = ["config.json", "preprocessor_config.json", "model.safetensors", "model-*.safetensors", "model.safetensors.index.json"]
SECONDS = 5  # to wait for the hub's first answer


def fetch(text: str) -> Path:
    """The local folder of `timm:NAME` or `hf:ORG/NAME`: what changed is downloaded, and without a network what is there serves.

    Raises `UserError` without the extra, for a repository that isn't there or isn't open, and without a network.
    """
    kind, _, name = text.partition(":")
    repository = f"timm/{name}" if kind == "timm" else name
    try:
        import huggingface_hub as hub
        from huggingface_hub import errors
        from huggingface_hub.utils import httpx, validate_repo_id
    except ImportError as error:
        fix = "run the same with the extra: uv run --extra hub …"
        raise UserError("names on the hub need the package huggingface_hub", text, fix) from error
    try:
        validate_repo_id(repository)
        # One quick question first, where a download would ask for minutes.
        listed = [file.rfilename for file in hub.HfApi().model_info(repository, timeout=SECONDS).siblings or []]
        if not any(name.startswith("model") and name.endswith(".safetensors") for name in listed):
            refuse_pickle(Path(repository) / next((name for name in listed if Path(name).suffix in PICKLES), "weights"))
        return Path(hub.snapshot_download(repository, allow_patterns=WANTED, etag_timeout=SECONDS))
    except errors.HFValidationError as error:
        raise UserError(f"{repository!r:.80} is no name on the hub", text, "give timm:NAME or hf:ORG/NAME") from error
    except errors.GatedRepoError as error:
        fix = "take its licence on the hub's page, then run hf auth login"
        raise UserError(f"{repository} is given only to those who took its licence", text, fix) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(f"the hub knows no {repository}", text, "see the name on the hub's page of the model") from error
    except (OSError, RuntimeError, httpx.HTTPError, errors.HfHubHTTPError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        with contextlib.suppress(errors.LocalEntryNotFoundError):
            folder = Path(hub.snapshot_download(repository, allow_patterns=WANTED, local_files_only=True))
            if any((folder / name).is_file() for name in ("model.safetensors", INDEX)):  # shards alone: a download was cut off
                said = f"the hub doesn't answer ({type(error).__name__}): {folder}, downloaded before, is used"
                print(said, file=sys.stderr)
                return folder
        what = f"the hub doesn't answer ({type(error).__name__}), and {repository} was never downloaded here"
        raise UserError(what, text, "try again with a network, or give a folder that was downloaded elsewhere") from error
