"""The network that acts, the network that learns and the exported program are the same function; files are safe."""

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributions import Categorical

from gpusched.core.errors import InputError
from gpusched.policy.network import Network, most_likely, read_network
from gpusched.rl.network import MLP, Actor, Levers, export

HIDDEN = [8, 5]


@pytest.fixture(scope="module")
def learnt() -> MLP:
    torch.manual_seed(1)
    mlp = MLP(4, HIDDEN, 6, last_gain=1.0)
    mlp.normalise_by(np.random.default_rng(0).normal(3.0, 2.0, (50, 4)).astype(np.float32))
    return mlp


@pytest.fixture(scope="module")
def program(learnt: MLP, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "policy.pt2"
    export(learnt.freeze(), HIDDEN, path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 2, 33])
def test_numpy_torch_and_exported_program_agree(learnt: MLP, program: Path, batch: int) -> None:
    features = (
        np.random.default_rng(batch).normal(3.0, 9.0, (batch, 4)).astype(np.float32)
    )  # some beyond the clip
    with torch.no_grad():
        truth = learnt(torch.from_numpy(features)).numpy()
        served = torch.export.load(program).module()(torch.from_numpy(features)).numpy()
    np.testing.assert_allclose(read_network(program)(features), truth, atol=1e-5)
    np.testing.assert_array_equal(served, truth)


def test_normalisation_is_the_samples_own(learnt: MLP) -> None:
    sample = np.random.default_rng(0).normal(3.0, 2.0, (50, 4)).astype(np.float32)
    np.testing.assert_allclose((sample - learnt.mean.numpy()) / learnt.std.numpy(),
                               (sample - sample.mean(0)) / sample.std(0), rtol=1e-4)  # fmt: skip


def test_an_actor_neither_reads_nor_scales_by_the_critics_columns() -> None:
    torch.manual_seed(2)
    actor, rng = Actor(3, [4], 2, last_gain=1.0), np.random.default_rng(0)
    sample = rng.normal(3.0, 2.0, (50, 5)).astype(np.float32)
    actor.normalise_by(sample)
    np.testing.assert_allclose(actor.mean.numpy(), sample[:, :3].mean(0), rtol=1e-5)
    changed = np.concatenate([sample[:, :3], rng.normal(size=(50, 2)).astype(np.float32)], axis=1)
    assert torch.equal(actor(sample)[0], actor(changed)[0])
    np.testing.assert_allclose(actor.freeze()(sample[:, :3]), actor(sample)[0].detach().numpy(), atol=1e-5)


def test_a_constant_feature_is_not_blown_up() -> None:
    mlp = MLP(1, [2], 2, last_gain=1.0)
    mlp.normalise_by(np.full((9, 1), 0.7, dtype=np.float32))
    assert mlp.std.tolist() == [1.0]


@pytest.mark.slow
def test_the_digest_knows_names_shapes_and_numbers(learnt: MLP, program: Path) -> None:
    network = read_network(program)
    assert network.digest == learnt.freeze().digest
    assert network.shape == [4, 8, 5, 6]
    changed = {**network.weights, "layers.0.bias": network.weights["layers.0.bias"] + np.float32(1e-6)}
    assert Network(changed).digest != network.digest


def test_frozen_weights_do_not_learn_on(learnt: MLP) -> None:
    frozen = learnt.freeze()
    before = frozen.digest
    with torch.no_grad():
        learnt.layers[0].bias.add_(1.0)
    assert frozen.digest == before
    learnt.take(frozen)
    assert learnt.freeze().digest == before


class Trap:
    """What a crafted file would hold: unpickling it leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.trace,))


@pytest.mark.slow
def test_a_crafted_file_is_refused_and_nothing_in_it_runs(program: Path, tmp_path: Path) -> None:
    trace, crafted = tmp_path / "it ran", tmp_path / "policy.pt2"
    with zipfile.ZipFile(program) as old, zipfile.ZipFile(crafted, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("weight_0") or "sample_inputs" in name:
                data = pickle.dumps(Trap(trace))
            new.writestr(name, data.replace(b'"use_pickle": false', b'"use_pickle": true'))
    with pytest.raises(InputError, match="pickled"):
        read_network(crafted)
    assert not trace.exists()


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["missing", "empty", "text", "cut", "flipped"])
def test_a_damaged_file_is_refused(program: Path, tmp_path: Path, damage: str) -> None:
    path, data = tmp_path / "policy.pt2", program.read_bytes()
    middle = data.index(b"weights/weight_") + 200
    flipped = data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :]
    if damage != "missing":
        path.write_bytes(
            {"empty": b"", "text": b"hello", "cut": data[: len(data) // 2], "flipped": flipped}[damage]
        )
    with pytest.raises(InputError, match=r"policy\.pt2.*Train"):
        read_network(path)


def test_most_likely_takes_each_levers_largest() -> None:
    logits = np.array([[0, 5, 1, 9, 2], [3, 1, 2, 0, 4]], dtype=np.float32)
    assert most_likely(logits, [3, 2], np.zeros(5)).tolist() == [[1, 0], [0, 1]]


def test_a_handicap_must_be_overcome() -> None:
    logits = np.array([[0.0, 1.4, 2.9], [0.0, 1.6, 3.2], [0.0, 1.6, 2.9]], dtype=np.float32)
    handicap = 1.5 * np.arange(3)
    assert most_likely(logits, [3], handicap).tolist() == [[0], [2], [1]]


def test_levers_are_independent_categoricals() -> None:
    logits = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    levers, parts = (
        Levers(logits, [3, 2]),
        [Categorical(logits=logits[:, :3]), Categorical(logits=logits[:, 3:])],
    )
    choice = torch.stack([parts[0].sample(), parts[1].sample()], dim=-1)
    truth = parts[0].log_prob(choice[:, 0]) + parts[1].log_prob(choice[:, 1])
    torch.testing.assert_close(levers.log_prob(choice), truth)
    torch.testing.assert_close(levers.entropy(), parts[0].entropy() + parts[1].entropy())
    assert torch.equal(levers.mode, torch.stack([logits[:, :3].argmax(-1), logits[:, 3:].argmax(-1)], dim=-1))


def test_levers_sample_in_proportion() -> None:
    torch.manual_seed(3)
    chance = torch.tensor([0.5, 0.3, 0.2, 0.9, 0.1])
    drawn = Levers(chance.log().expand(20_000, 5), [3, 2]).sample()
    share = torch.cat([torch.bincount(drawn[:, a], minlength=n) for a, n in enumerate([3, 2])]) / 20_000
    error = (chance * (1 - chance) / 20_000).sqrt()
    assert ((share - chance).abs() < 4 * error).all()
