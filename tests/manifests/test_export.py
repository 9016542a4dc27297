"""The model repository that export.py writes, on networks small enough to export in a second."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from objects import MANIFESTS
from test_manifest_profile import load, model_config

export = load(MANIFESTS / "model" / "export.py", "model_export")
needs_onnx = pytest.mark.skipif(
    any(__import__("importlib.util").util.find_spec(name) is None for name in ("onnx", "onnxscript")),
    reason="the extra `model` is not installed: pip install -e '.[model]'",
)


class Tiny(torch.nn.Module):
    """A network with a batch norm and a pooling, as the real one has."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
            torch.nn.Flatten(), torch.nn.Linear(4, 5),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


@pytest.fixture
def tiny() -> torch.nn.Module:
    torch.manual_seed(1)
    return export.FromPixels(Tiny(), [0.5, 0.5, 0.5], [0.25, 0.25, 0.25]).eval()


@pytest.fixture
def config() -> Any:
    return export.ModelConfig(name="tiny", shape=(3, 8, 8), classes=5, max_batch=4, most_instances=2)


RANDOM = export.Weights(kind="random", source="a test", reason="asked for")


def test_pixels_are_scaled_and_normalised() -> None:
    seen: list[torch.Tensor] = []

    class Spy(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x)
            return x

    pixels = torch.tensor([0, 127.5, 255]).to(torch.uint8).reshape(1, 3, 1, 1)
    export.FromPixels(Spy(), [0.5, 0.5, 0.5], [0.25, 0.5, 1.0])(pixels)
    assert seen[0].flatten().tolist() == pytest.approx([-2.0, (127 / 255 - 0.5) / 0.5, 0.5], abs=1e-6)


@needs_onnx
@pytest.mark.slow
def test_the_repository_is_whole_and_the_graph_takes_any_batch(
    tiny: torch.nn.Module, config: Any, tmp_path: Path
) -> None:
    found = export.write_repository(tmp_path, config, tiny, RANDOM)
    folder = tmp_path / "tiny"
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()) == [
        "1/model.onnx",
        "config.pbtxt",
        "configs/instances-1.pbtxt",
        "configs/instances-2.pbtxt",
        "weights.json",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"], "nothing is left behind"
    for name in ("config.pbtxt", "configs/instances-2.pbtxt"):
        served = model_config((folder / name).read_text())
        assert served.parameters["weights"].string_value == "random"
    assert served.instance_group[0].count == 2
    about = json.loads((folder / "weights.json").read_text())
    assert about["kind"] == "random" and about["reason"] == "asked for" and about["check"] == found
    onnxruntime = pytest.importorskip(
        "onnxruntime", reason="no onnxruntime: the graph's numbers are not checked"
    )
    session = onnxruntime.InferenceSession(
        str(folder / "1" / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    (given,), (answer,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, list(given.shape[1:])) == ("input", "tensor(uint8)", [3, 8, 8])
    assert answer.name == "logits"
    for batch in (1, 2, 7, 64):
        rows = torch.randint(0, 256, (batch, 3, 8, 8), dtype=torch.uint8)
        with torch.no_grad():
            expected = tiny(rows)
        torch.testing.assert_close(
            torch.from_numpy(session.run(None, {"input": rows.numpy()})[0]), expected, rtol=1e-3, atol=1e-5
        )


@needs_onnx
@pytest.mark.slow
def test_a_graph_that_computes_something_else_is_refused(
    tiny: torch.nn.Module, config: Any, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime", reason="no onnxruntime: numbers are not checked")
    path, example = tmp_path / "m.onnx", torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    export.export_onnx(tiny, example, path, ("input", "logits"))
    export.check_onnx(tiny, example, path)
    with torch.no_grad():
        tiny.network.layers[-1].bias.add_(1.0)
    with pytest.raises(export.ExportError, match="differs from torch"):
        export.check_onnx(tiny, example, path)


def test_one_row_would_be_frozen_into_the_graph(tiny: torch.nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two rows"):
        export.export_onnx(
            tiny, torch.zeros(1, 3, 8, 8, dtype=torch.uint8), tmp_path / "m.onnx", ("input", "logits")
        )


def test_a_failed_export_leaves_the_old_model(
    tiny: torch.nn.Module, config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "old").touch()
    monkeypatch.setattr(export, "export_onnx", lambda *args: (_ for _ in ()).throw(RuntimeError("disk full")))
    with pytest.raises(RuntimeError, match="disk full"):
        export.write_repository(tmp_path, config, tiny, RANDOM, force=True)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["tiny", "tiny/old"]


def test_a_model_that_is_there_is_not_replaced_unasked(
    tiny: torch.nn.Module, config: Any, tmp_path: Path
) -> None:
    (tmp_path / "tiny").mkdir()
    with pytest.raises(export.ExportError, match="--force"):
        export.write_repository(tmp_path, config, tiny, RANDOM)


class Hub:
    """timm as far as export.py uses it; `reachable` says whether the hub answers."""

    def __init__(self, reachable: bool) -> None:
        self.reachable = reachable
        self.calls: list[tuple[str, bool]] = []

    def create_model(self, name: str, *, pretrained: bool, exportable: bool) -> torch.nn.Module:
        assert exportable
        self.calls.append((name, pretrained))
        if pretrained and not self.reachable:
            raise OSError("Name or service not known\nand more lines")
        network = Tiny()
        network.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
        return network


@pytest.mark.parametrize(
    ("choice", "reachable", "kind", "reason"),
    [
        ("auto", True, "pretrained", ""),
        ("auto", False, "random", "no weights from the hub: OSError: Name or service not known"),
        ("pretrained", True, "pretrained", ""),
        ("random", True, "random", "asked for"),
    ],
)
def test_which_weights(
    choice: str, reachable: bool, kind: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(reachable)
    monkeypatch.setattr(export, "_timm", lambda: hub)
    module, weights = export.mobilenet(choice, seed=3)
    assert (weights.kind, weights.reason) == (kind, reason)
    assert hub.calls[-1][1] == (kind == "pretrained")
    assert not module.training
    assert ("e2400_r224_in1k" in weights.source) == (kind == "pretrained")


def test_random_weights_are_the_same_for_the_same_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_timm", lambda: Hub(False))
    first, second, other = (
        torch.cat([p.flatten() for p in export.mobilenet("random", seed)[0].parameters()])
        for seed in (3, 3, 4)
    )
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_weights_that_were_asked_for_and_cannot_be_had(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(export, "_timm", lambda: Hub(False))
    assert export.main(["--out", str(tmp_path / "models"), "--weights", "pretrained"]) == 2
    assert "--weights random" in capsys.readouterr().err
    assert not (tmp_path / "models").exists()


def test_the_run_says_which_weights(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(export, "_timm", lambda: Hub(False))
    monkeypatch.setattr(export, "write_repository", lambda *args, **kwargs: "checked")
    assert export.main(["--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "RANDOM weights" in said and "Name or service not known" in said


def test_a_missing_package_is_one_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    assert export.main(["--out", str(tmp_path)]) == 2
    assert "pip install -e '.[model]'" in capsys.readouterr().err


@needs_onnx
def test_a_file_too_new_for_triton_is_refused(
    monkeypatch: pytest.MonkeyPatch, tiny: torch.nn.Module, tmp_path: Path
) -> None:
    onnx = pytest.importorskip("onnx")
    monkeypatch.setattr(onnx, "load", lambda path: SimpleNamespace(ir_version=13))
    monkeypatch.setattr(onnx.checker, "check_model", lambda graph: None)
    with pytest.raises(export.ExportError, match="IR 13"):
        export.check_onnx(tiny, torch.zeros(2, 3, 8, 8), tmp_path / "m.onnx")
