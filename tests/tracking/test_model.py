"""A model comes back as it went in, MLflow lists it, and mlflow.pytorch reads the network without unpickling."""

from pathlib import Path

import pytest

from gpusched.core.errors import StoreError
from gpusched.tracking.store import Store


def test_the_folder_comes_back(store: Store, tmp_path: Path) -> None:
    (tmp_path / "policy.json").write_text('{"levers": [6]}')
    (tmp_path / "weights.npz").write_bytes(b"\x00\x01")
    with store.start("training", study="models", name="ppo 0", params={}, tags={}) as run:
        model_id = run.model(tmp_path)
    folder = store.download(run.id, "model")
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {
        "policy.json": b'{"levers": [6]}',
        "weights.npz": b"\x00\x01",
    }
    experiment = store._client.get_experiment_by_name("models")
    (model,) = store._client.search_logged_models([experiment.experiment_id])
    assert (model.model_id, model.source_run_id, str(model.status)) == (model_id, run.id, "READY")


def test_a_run_without_a_model_says_so(store: Store) -> None:
    with store.start("training", study="models", name="none", params={}, tags={}) as run:
        pass
    with pytest.raises(StoreError, match="has no model"):
        store.download(run.id, "model")


@pytest.mark.slow
def test_mlflow_loads_the_exported_network(store: Store, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    import mlflow.pytorch

    net = torch.nn.Linear(3, 2)
    x = torch.ones(4, 3)
    batch = torch.export.Dim("batch")
    torch.export.save(torch.export.export(net, (x,), dynamic_shapes=({0: batch},)), tmp_path / "policy.pt2")
    (tmp_path / "policy.json").write_text("{}")
    with store.start("training", study="models", name="ppo 1", params={}, tags={}) as run:
        model_id = run.model(tmp_path)
    place = Path(store._client.get_logged_model(model_id).artifact_location.removeprefix("file://"))
    loaded = mlflow.pytorch.load_model(str(place))
    torch.testing.assert_close(loaded(x[:2]), net(x[:2]))
