"""A trained policy as an MLflow model: its own files, plus the layout mlflow.pytorch reads. Nothing is unpickled."""

from __future__ import annotations

import shutil
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from gpusched.core.errors import StoreError
from gpusched.tracking.database import told

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

NETWORK = "policy.pt2"
"""The network as a torch.export program; a policy's folder may do without."""
MODEL_TAG = "model_id"
NAME = "policy"


def log_model(client: MlflowClient, run_id: str, folder: Path) -> str:
    """Log the folder as the run's model and return the model's ID.

    The model keeps the folder's files under "policy/". Where one is `policy.pt2`, a copy at
    "data/model.pt2" and the flavour "pytorch" let `mlflow.pytorch.load_model` read the network, which
    itself refuses archives that hold pickled objects.
    """
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    experiment = client.get_run(run_id).info.experiment_id
    model = client.create_logged_model(
        experiment, name=NAME, source_run_id=run_id, model_type="autoscaling policy"
    )
    try:
        with tempfile.TemporaryDirectory() as place:
            _lay_out(Path(place), folder, model, run_id)
            client.log_model_artifacts(model.model_id, place)
    except BaseException:
        client.finalize_logged_model(model.model_id, LoggedModelStatus.FAILED)
        raise
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    client.set_tag(run_id, MODEL_TAG, model.model_id)
    return str(model.model_id)


def fetch_model(client: MlflowClient, run_id: str, store_folder: Path | None, where: str) -> Path:
    """Return the local folder of the run's model, as it was logged."""
    with told(where):
        model_id = client.get_run(run_id).data.tags.get(MODEL_TAG)
    if not model_id:
        raise StoreError(f"Run {run_id} in {where} has no model.")
    if store_folder:
        near = store_folder / "artifacts" / "models" / model_id / "artifacts" / "policy"
        if near.is_dir():
            return near
    from mlflow.artifacts import download_artifacts

    with told(f"{where} (model {model_id} of run {run_id})"):
        location = client.get_logged_model(model_id).artifact_location
        return Path(download_artifacts(artifact_uri=f"{location}/policy", tracking_uri=client.tracking_uri))


def _lay_out(place: Path, folder: Path, logged: LoggedModel, run_id: str) -> None:
    """Write the model's files and its MLmodel description into `place`."""
    from mlflow.models import Model

    shutil.copytree(folder, place / "policy")
    model = Model(artifact_path=logged.artifact_location, run_id=run_id, model_id=logged.model_id)
    model.add_flavor("gpusched", folder="policy", gpusched_version=_version("gpusched"))
    if (folder / NETWORK).exists():
        (place / "data").mkdir()
        shutil.copyfile(folder / NETWORK, place / "data" / "model.pt2")
        model.add_flavor("pytorch", model_data="data", pytorch_version=_version("torch"), code=None)
        (place / "requirements.txt").write_text("torch>=2.8\n")
    model.save(str(place / "MLmodel"))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
