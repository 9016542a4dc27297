"""Export MobileNetV4-conv-small to ONNX and write Triton's model repository.

    python manifests/model/export.py --out outputs/models
    python manifests/model/export.py --out outputs/models --weights random --force

Needs the extra `model` (pip install -e '.[model]'): timm, onnx, onnxscript. The weights come from the hub where there
is a network. Random ones otherwise: the time an inference takes does not depend on them, its answer means nothing.
Which of the two they are is printed, written to weights.json beside the model, and told by the server:
GET /v2/models/mobilenetv4/config, parameters.weights.string_value is "pretrained" or "random".
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

TIMM_NAME = "mobilenetv4_conv_small"
TAG = "e2400_r224_in1k"
"""Weights trained at 224 x 224 on ImageNet-1k."""
OPSET = 18
NEWEST_IR = 10
"""ONNX Runtime 1.19, which Triton 24.10 brings, reads no newer file."""
WIDEST_BATCH = 64
"""The exported graph takes any batch up to this; config.pbtxt says what is used."""


class ExportError(Exception):
    """Something the user can mend; shown as one message, exit code 2."""


@dataclass(kw_only=True)
class ModelConfig:
    """What config.pbtxt says. The numbers are the service profile's (conf/service); a test compares them."""

    name: str = "mobilenetv4"
    input: str = "input"
    shape: tuple[int, ...] = (3, 224, 224)
    output: str = "logits"
    classes: int = 1000
    max_batch: int = 8
    preferred: list[int] = field(default_factory=list)
    queue_delay_us: int = 0
    queue_size: int = 0
    queue_timeout_us: int = 0
    instances: int = 1
    most_instances: int = 4

    def pbtxt(self, instances: int | None = None, weights: str = "unknown") -> str:
        """Return config.pbtxt with this many instances; Triton tells whoever asks for it which weights these are."""
        preferred = (
            f"  preferred_batch_size: [ {', '.join(map(str, self.preferred))} ]\n" if self.preferred else ""
        )
        # With any policy, even one without limits, Triton 2.51 can leave a request for 500 ms (docs/fidelity.md).
        policy = (
            f"  default_queue_policy {{ max_queue_size: {self.queue_size}"
            f" default_timeout_microseconds: {self.queue_timeout_us} }}\n"
            if self.queue_size or self.queue_timeout_us
            else ""
        )
        warmups = "".join(self._warmup(batch) for batch in range(1, self.max_batch + 1))
        return f"""name: "{self.name}"
backend: "onnxruntime"
max_batch_size: {self.max_batch}
input [ {{ name: "{self.input}" data_type: TYPE_UINT8 dims: [ {", ".join(map(str, self.shape))} ] }} ]
output [ {{ name: "{self.output}" data_type: TYPE_FP32 dims: [ {self.classes} ] }} ]
instance_group [ {{ kind: KIND_AUTO count: {instances or self.instances} }} ]
dynamic_batching {{
{preferred}  max_queue_delay_microseconds: {self.queue_delay_us}
{policy}}}
# 1 = heuristic. The exhaustive search would be run again for every batch size, at the cost of whoever comes first.
parameters {{ key: "cudnn_conv_algo_search" value: {{ string_value: "1" }} }}
parameters {{ key: "weights" value: {{ string_value: "{weights}" }} }}
# Every batch size once before the server is ready: a pod that is Ready answers at full speed.
{warmups}"""

    def _warmup(self, batch: int) -> str:
        dims = ", ".join(map(str, self.shape))
        tensor = f"{{ data_type: TYPE_UINT8 dims: [ {dims} ] random_data: true }}"
        return (
            f'model_warmup [ {{ name: "batch {batch}" batch_size: {batch}'
            f' inputs {{ key: "{self.input}" value: {tensor} }} }} ]\n'
        )


@dataclass(kw_only=True)
class Weights:
    """Where the weights came from; `reason` says why they are random."""

    kind: str
    source: str
    reason: str = ""


class FromPixels(torch.nn.Module):
    """Takes bytes as they come from an image, [N, 3, H, W]; scales and normalises them, and calls the network."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, network: torch.nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", 255.0 * torch.tensor(mean).reshape(1, -1, 1, 1))
        self.register_buffer("std", 255.0 * torch.tensor(std).reshape(1, -1, 1, 1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.network((pixels.to(torch.float32) - self.mean) / self.std)  # type: ignore[no-any-return]


def mobilenet(choice: str, seed: int) -> tuple[torch.nn.Module, Weights]:
    """Return the network in inference mode and where its weights came from; `choice` is auto, pretrained or random.

    Raises ExportError where pretrained weights are asked for and cannot be had.
    """
    timm = _timm()
    weights = Weights(kind="random", source=f"torch.manual_seed({seed})", reason="asked for")
    if choice != "random":
        try:
            network = timm.create_model(f"{TIMM_NAME}.{TAG}", pretrained=True, exportable=True)
            return _from_pixels(network), Weights(kind="pretrained", source=f"timm {TIMM_NAME}.{TAG}")
        except Exception as error:  # the hub fails in as many ways as a network does
            weights.reason = (
                f"no weights from the hub: {type(error).__name__}: {str(error).splitlines()[0][:200]}"
            )
            if choice == "pretrained":
                raise ExportError(f"{weights.reason}. With --weights random it goes without.") from error
    torch.manual_seed(seed)
    return _from_pixels(timm.create_model(TIMM_NAME, pretrained=False, exportable=True)), weights


def _from_pixels(network: Any) -> torch.nn.Module:
    statistics = network.pretrained_cfg
    return FromPixels(network, statistics["mean"], statistics["std"]).eval()


def _timm() -> Any:
    try:
        try:
            import timm
        except RuntimeError as error:
            if "torchvision::nms" not in str(error):
                raise
            _name_torchvisions_operators()
            import timm
    except ImportError as error:
        raise ExportError(f"{error}. Install what exporting needs: pip install -e '.[model]'") from error
    return timm


def _name_torchvisions_operators() -> None:
    """Let torchvision be imported although it is of another build than torch and cannot load its extension.

    timm imports it for parts that are not used here; it only stumbles over the names of operators that are not there.
    """
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
    _KEPT.append(library)  # it forgets its operators when it is collected
    for name in [name for name in sys.modules if name.partition(".")[0] in ("torchvision", "timm")]:
        del sys.modules[name]


_KEPT: list[Any] = []


def export_onnx(module: torch.nn.Module, example: torch.Tensor, path: Path, names: tuple[str, str]) -> None:
    """Write a module of one input and one output as ONNX, with a free batch axis and the weights inside.

    `example` needs at least two rows: a graph traced with one takes one for ever.
    """
    if len(example) < 2:
        raise ValueError("example must have at least two rows")
    try:
        torch.onnx.export(
            module,
            (example,),
            str(path),
            input_names=[names[0]],
            output_names=[names[1]],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=WIDEST_BATCH)},),
            dynamo=True,
            external_data=False,
            opset_version=OPSET,
            verbose=False,
        )
    except ImportError as error:
        raise ExportError(f"{error}. Install what exporting needs: pip install -e '.[model]'") from error


def check_onnx(module: torch.nn.Module, example: torch.Tensor, path: Path) -> str:
    """Compare the file with the module on batches of 1 and of `example`; return what was found, in words.

    Raises ExportError where they differ, or where the file is too new for Triton's ONNX Runtime.
    """
    import onnx

    graph = onnx.load(str(path))
    onnx.checker.check_model(graph)
    if graph.ir_version > NEWEST_IR:
        raise ExportError(
            f"{path}: ONNX IR {graph.ir_version}; Triton 24.10 reads at most {NEWEST_IR}. Use an older onnx."
        )
    try:
        import onnxruntime
    except ImportError:
        return "structure checked, numbers not: there is no onnxruntime here"
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    worst = 0.0
    for rows in (example[:1], example):
        with torch.no_grad():
            expected = module(rows)
        (answer,) = session.run(None, {session.get_inputs()[0].name: rows.numpy()})
        if answer.shape != tuple(expected.shape):
            raise ExportError(f"{path}: answers {answer.shape}, torch answers {tuple(expected.shape)}")
        worst = max(worst, float((torch.from_numpy(answer) - expected).abs().max() / expected.abs().max()))
    if not worst < 1e-3:
        raise ExportError(f"{path}: differs from torch by {worst:.1e} of the largest answer")
    return f"differs from torch by at most {worst:.0e} of the largest answer, batches of 1 and {len(example)}"


def write_repository(
    folder: Path, config: ModelConfig, module: torch.nn.Module, weights: Weights, *, force: bool = False
) -> str:
    """Write folder/<model>/ (1/model.onnx, config.pbtxt, configs/, weights.json); return what the check found.

    It appears whole or not at all. Raises ExportError where it is there already and `force` is False.
    """
    target = folder / config.name
    if target.exists() and not force:
        raise ExportError(f"{target} is there already. Replace it with --force.")
    folder.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".export-", dir=folder))
    try:
        found = _fill(work, config, module, weights)
        _readable(work)
        if target.exists():
            target.rename(work / "old")
        work_new = work / "new"
        work_new.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return found


def _fill(work: Path, config: ModelConfig, module: torch.nn.Module, weights: Weights) -> str:
    new = work / "new"
    (new / "1").mkdir(parents=True)
    (new / "configs").mkdir()
    generator = torch.Generator().manual_seed(0)
    example = torch.randint(0, 256, (3, *config.shape), dtype=torch.uint8, generator=generator)
    path = new / "1" / "model.onnx"
    export_onnx(module, example, path, (config.input, config.output))
    found = check_onnx(module, example, path)
    (new / "config.pbtxt").write_text(config.pbtxt(weights=weights.kind))
    for instances in range(1, config.most_instances + 1):
        (new / "configs" / f"instances-{instances}.pbtxt").write_text(config.pbtxt(instances, weights.kind))
    about = {
        "model": config.name,
        **asdict(weights),
        "parameters": sum(p.numel() for p in module.parameters()),
        "onnx_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "check": found,
        "versions": {name: _version(name) for name in ("torch", "timm", "onnx", "onnxscript")},
    }
    (new / "weights.json").write_text(json.dumps(about, indent=2) + "\n")
    return found


def _readable(work: Path) -> None:
    """Let the server read what its user does not own."""
    for path in [work / "new", *(work / "new").rglob("*")]:
        os.chmod(path, 0o755 if path.is_dir() else 0o644)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def command(words: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line's values."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the model repository's folder")
    parser.add_argument("--weights", choices=("auto", "pretrained", "random"), default="auto")
    parser.add_argument("--seed", type=int, default=0, help="of random weights")
    parser.add_argument("--force", action="store_true", help="replace a model that is there")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Export; 2 and one message where something can be mended."""
    args = command(words)
    try:
        module, weights = mobilenet(args.weights, args.seed)
        found = write_repository(args.out, ModelConfig(), module, weights, force=args.force)
    except ExportError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{args.out / ModelConfig().name}: {weights.kind.upper()} weights ({weights.source})")
    if weights.kind == "random":
        print(f"  {weights.reason}. Times are those of the real model, answers are noise.")
    print(f"  {found}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
