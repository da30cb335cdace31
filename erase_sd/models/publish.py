"""An exported folder on the model hub, with the user's own login; never without being asked."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import ModelError, SettingError, reason
from ..runtime import log


def check_hub_id(hub_id: str) -> None:
    """Raises SettingError unless it is an `owner/name` that the hub accepts."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", hub_id):
            raise HFValidationError
        validate_repo_id(hub_id)
    except HFValidationError:
        raise SettingError("needs a hub id (owner/name)", field="push_to", value=hub_id) from None


def push(folder: Path, hub_id: str) -> str:
    """Uploads `folder` as one commit and returns its address; a new repository is private.

    Uses the login of `hf auth login` or `HF_TOKEN`. Raises SettingError without one, ModelError if the
    hub refuses or cannot be reached.
    """
    import httpx2
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    check_hub_id(hub_id)
    if not get_token():
        raise SettingError(
            "nobody is logged in; `hf auth login` first", field="push_to", value=hub_id
        )
    log.info("%s: uploading %s", hub_id, folder)
    api = HfApi()
    try:
        api.create_repo(hub_id, private=True, exist_ok=True)
        commit = api.upload_folder(
            repo_id=hub_id, folder_path=folder, commit_message="Erased concepts"
        )
    except (HfHubHTTPError, OfflineModeIsEnabled, httpx2.HTTPError, ConnectionError) as error:
        raise ModelError(
            f"cannot be uploaded ({reason(error)})", field="push_to", value=hub_id
        ) from None
    return str(commit.commit_url)
