"""From the name a user gives a model to a folder on disk."""

from pathlib import Path

# What serving needs of a hub repository; other weight formats are left there.
FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "merges.txt"]


def resolve_model(
    model: str | Path, revision: str | None = None, token: str | None = None, field: str = "model"
) -> Path:
    """The local folder of a model: a path as it is, a hub name (`owner/name`) downloaded or found in the hub's cache.

    Args:
        field: what the user called it, for the error.

    Raises:
        ValueError: there is no such folder, and no such repository can be had.
    """
    path = Path(model).expanduser()
    if path.exists():
        return path
    name = str(model)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ValueError(
            f"{field}: no folder {name!r}; give a Hugging Face checkpoint folder or a hub name (owner/name)"
        )
    import huggingface_hub  # a second of imports that a local folder does not need

    try:
        return Path(huggingface_hub.snapshot_download(name, revision=revision, token=token, allow_patterns=FILES))
    except Exception as error:  # its own errors, the HTTP client's, and the operating system's
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{field}: no folder {name!r}, and the hub did not give it either: {reason}") from error
