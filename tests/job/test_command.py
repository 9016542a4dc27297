"""run.py as a person uses it: exit codes, one message, sweeps that survive a failure or an interruption."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.plugins.sweeper import Sweeper
from jobs import CONF, ROOT, SHORT

import run as script
from gpusched.job.command import run
from gpusched.job.setup import Result
from gpusched.job.sweep import SweepCallback, expand, unlike
from gpusched.tracking.store import Store

DB = "sqlite:///mlruns/mlflow.db"
POLICIES, LOADS = (
    ", ".join(sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml")))
    for group in ("policy", "load")
)


@pytest.fixture
def folder(tmp_path: Path, empty: Path) -> Path:
    shutil.copytree(empty, tmp_path / "mlruns")
    return tmp_path


@pytest.fixture
def command(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Call run.py in this process, in a folder of its own; return its exit code."""
    monkeypatch.chdir(folder)
    root, level = logging.getLogger(), logging.getLogger().level
    handlers = list(root.handlers)

    def call(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["run.py", "--config-dir", str(CONF), *arguments, *SHORT])
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        SweepCallback.current = None
        try:
            return run(script.app)
        except SystemExit as stop:  # argparse
            return int(stop.code or 0)
        finally:
            GlobalHydra.instance().clear()

    yield call
    root.handlers, root.level = handlers, level


def in_a_shell(folder: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    environment = {**os.environ, "PYTHONPATH": paths, **more}
    words = [sys.executable, str(ROOT / "run.py"), "--config-dir", str(CONF), *arguments, *SHORT]
    process = subprocess.Popen(
        words,
        cwd=folder,
        env={**environment, "PYTHONFAULTHANDLER": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs, tests among them, begin with SIGINT ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        out, err = process.communicate(timeout=600)  # seconds on an idle machine, minutes on a busy one
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)  # it says where every thread stands
        pytest.fail(f"still there after 600 s: {process.communicate()[1]}")
    return subprocess.CompletedProcess(words, process.returncode, out, err)


BAD = {
    "policy=pppo": f"policy = 'pppo': no such option. Allowed: {POLICIES}. Did you mean 'ppo'?",
    "plicy=hpa": "plicy: no such key. Allowed: job, policy, load, reward, action, service, cluster, fault, hypotheses, seed, study, "
    "resume, tracking, trial, experiment. Did you mean 'policy'?",
    "load.usrs=3": "load.usrs: no such key. Allowed: users, think_min_s, think_max_s. Did you mean 'users'?",
    "load.users=": None,
    "load.users=-2": "load.users = -2: must lie in 0..100000 users.",
    "seed=range(5": "'seed=range(5': cannot be read. Write key=value, and quote it for the shell: 'seed=range(5)'.",
    "policy=hpa,static": "policy=hpa,static: several values make a sweep. Add -m, or write a list as key=[a,b].",
    "policy.scale_up.select=Max": "policy.scale_up.select: policy.scale_up has no value it could change. "
    "Set it as a whole: 'policy.scale_up={select: VALUE}'.",
    "load=null": "a group needs the name of an option",
    "job=train": "policy = 'hpa': does not learn, so job=train has nothing to do.",
    "-m policy=hpa,foo": f"policy = 'foo': no such option. Allowed: {POLICIES}.",
    "-m policy=hpa,static policy.target=50": "policy.target: no such key. Allowed: replicas, shadow, max_change, cooldown_s.",
    "-m load.users=5,-2": "load.users = -2: must lie in 0..100000 users.",
    "-m reward=balanced,latency": "reward=balanced reward=latency: 1 of 2 jobs are the same policy, load and seed as others, and would "
    "replace them in the study.",
    "-m policy=hpa,hpa": "1 of 2 jobs are the same policy, load and seed as others",
    "-m seed=range(0)": "seed=range(0): the sweep is empty.",
    "-m seed=interval(0,1)": "seed=interval(0,1): has no end.",
    "hydra.job.chdir=true": "hydra.job.chdir = true: every job would keep a store of its own.",
    "hydra.run.dir=/proc/no/such": "cannot be read or written (No such file or directory).",
    "--cfg job -m seed=0,1": "refused by Hydra: Only one of --run, --multirun, --cfg",
    "seed=0,1 -m load=low": "-m: stands between key=value words. Put it before the first of them.",
    "hydra.verbose=3": "refused by Hydra: ",
    "study=日本": "Letters beyond ASCII need quotes of their own",
    "tracking.artifacts=/proc/x": "tracking.artifacts: /proc/x cannot be written",
    "tracking.uri=nonsense": None,
    "tracking.uri=sqlite:////proc/no/mlflow.db": "",
}


LONG = (
    "-m policy=hpa,static policy.target=50",
    "-m load.users=5,-2",
    "policy.scale_up.select=Max",
    "job=train",
    "load.usrs=3",
    "-m policy=hpa,hpa",
    "-m seed=interval(0,1)",
    "hydra.run.dir=/proc/no/such",
    "hydra.job.chdir=true",
    "--cfg job -m seed=0,1",
    "hydra.verbose=3",
)
"""As good as others of their kind: left out by make check."""


@pytest.mark.parametrize(
    "arguments",
    [pytest.param(a, marks=[pytest.mark.slow] * (a in LONG)) for a, told in BAD.items() if told is not None],
)
def test_one_message_and_exit_code_2(command, capfd: pytest.CaptureFixture[str], arguments: str) -> None:
    assert command(*arguments.split()) == 2
    told = capfd.readouterr().err
    assert BAD[arguments] in told
    assert "Traceback" not in told
    assert "Error executing job" not in told
    assert not list(Path().glob("outputs/sweeps/*/*/0")), "a job of the sweep was started"


@pytest.mark.slow
def test_a_wrong_word_in_a_real_shell(tmp_path: Path) -> None:
    done = in_a_shell(tmp_path, "policy=hpq")
    assert done.returncode == 2
    assert done.stderr == f"policy = 'hpq': no such option. Allowed: {POLICIES}. Did you mean 'hpa'?\n"
    assert done.stdout == ""


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = f"""import runpy, sys
sys.argv = ["run.py", "--help"]
try: runpy.run_path({str(ROOT / "run.py")!r}, run_name="__main__")
except SystemExit as stop: assert not stop.code
heavy = {{"torch", "mlflow", "numba", "matplotlib", "pandas", "tianshou"}} & set(sys.modules)
assert not heavy, heavy"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert "python run.py policy=hpa load=high" in done.stdout
    assert f"load: {LOADS}" in done.stdout


def test_a_trial_ends_with_its_table(command, capfd: pytest.CaptureFixture[str]) -> None:
    assert command("policy=static", "policy.replicas=3") == 0
    table = capfd.readouterr().out
    assert "latency_p95_s" in table
    assert "0.05" in table
    (found,) = Store(DB).find("main", kind="trial")
    assert found.id in table


@pytest.mark.slow
def test_a_sweep_is_checked_once_and_leaves_hydra_as_it_was(command, monkeypatch: pytest.MonkeyPatch) -> None:
    again: list[object] = []

    def second_check(sweeper: Sweeper, batch: object) -> None:
        again.append(batch)

    monkeypatch.setattr(Sweeper, "validate_batch_is_legal", second_check)
    assert command("-m", "seed=0,1") == 0
    assert not again
    assert Sweeper.validate_batch_is_legal is second_check


@pytest.mark.slow
def test_a_failing_job_does_not_lose_the_others(command, capfd: pytest.CaptureFixture[str]) -> None:
    sweep = ["-m", "load=low,medium,high", "cluster.break_at_users=50"]
    assert command(*sweep) == 1
    shown = capfd.readouterr()
    assert "1 of 3 jobs failed" in shown.err
    assert "hpa on medium, seed 0: RuntimeError: the double broke" in shown.err
    assert "| high" in shown.out
    assert "| low" in shown.out
    store = Store(DB)
    assert sorted(found.tags["load"] for found in store.find("main", kind="trial")) == ["high", "low"]
    (parent,) = store.find("main", kind="sweep", status="FAILED")
    assert all(f.tags["mlflow.parentRunId"] == parent.id for f in store.find("main", kind="trial"))
    assert command(*sweep, "resume=true") == 1
    states = [Result.read(path).status for path in Path().glob("outputs/sweeps/*/*/*/status.json")]
    assert sorted(states) == ["failed"] * 2 + ["finished"] * 2 + ["skipped"] * 2


@pytest.mark.slow
@pytest.mark.parametrize(("how", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_an_interrupted_sweep_keeps_what_is_finished(folder: Path, how: str, code: int) -> None:
    done = in_a_shell(folder, "-m", "load=low,medium,high", INTERRUPT_AT_USERS="50", INTERRUPT_BY=how)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert "| low" in done.stdout
    store = Store(f"sqlite:///{folder}/mlruns/mlflow.db")
    states = {found.tags["load"]: found.status for found in store.find("main", kind="trial", status=None)}
    assert states == {"low": "FINISHED", "medium": "KILLED"}
    assert [found.status for found in store.find("main", kind="sweep", status=None)] == ["KILLED"]
    status = [
        json.loads(path.read_text())["status"] for path in folder.glob("outputs/sweeps/*/*/*/status.json")
    ]
    assert sorted(status) == ["finished", "killed"]


@pytest.mark.slow
def test_a_folder_of_an_earlier_sweep_is_not_counted_again(
    command, capfd: pytest.CaptureFixture[str]
) -> None:
    assert command("-m", "hydra.sweep.dir=sd", "seed=0,1") == 0
    capfd.readouterr()
    assert command("-m", "hydra.sweep.dir=sd", "seed=5") == 0
    assert "| 1 |" in capfd.readouterr().out
    assert command("-m", "hydra.sweep.dir=se", "hydra.sweep.subdir='x/${hydra.job.num}'", "seed=6") == 0


def test_glob_sweeps_over_what_there_is(command) -> None:
    assert command("-m", "policy=glob(static*)", "seed=0") == 0
    assert {found.tags["policy"] for found in Store(DB).find("main", kind="trial")} == {"static", "static_1"}


@pytest.mark.slow
def test_labels_keep_their_brackets_on_the_terminal(command, capfd: pytest.CaptureFixture[str]) -> None:
    assert command("-m", "policy.target=50,90") == 0
    shown = capfd.readouterr().out
    assert "hpa[target=50]" in shown and "hpa[target=90]" in shown


def test_expand_is_the_product_of_all_sweeps_and_the_last_word_wins() -> None:
    jobs = expand(["policy=ppo,hpa", "seed=range(2)", "load=low", "load=high"])
    assert jobs == [[p, s, "load=high"] for p in ("policy=ppo", "policy=hpa") for s in ("seed=0", "seed=1")]


@pytest.mark.slow
def test_headline_is_the_study_of_the_readme(command, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpusched.job import sweep

    seen: list[list[list[str]]] = []

    class Stop(BaseException):
        pass

    def stop(self: sweep.Sweep, config: object) -> None:
        seen.append(self.jobs)
        raise Stop

    monkeypatch.setattr(sweep.Sweep, "begin", stop)
    with pytest.raises(Stop):
        command("experiment=headline")
    wanted = {(p, load, f"seed={s}") for p in ("policy=ppo", "policy=hpa") for load in ("load=low", "load=medium", "load=high")
              for s in range(5)}  # fmt: skip
    assert {tuple(job[:3]) for job in seen[0]} == wanted
    assert len(seen[0]) == 30


def test_every_seed_and_every_other_combination_is_checked_once() -> None:
    jobs = expand(["policy=hpa,ppo", "load=low,high", "seed=range(20)"])
    assert len(jobs) == 80
    kept = unlike(jobs)
    assert len(kept) == 20 + 3
    assert {job[2] for job in kept} == {f"seed={k}" for k in range(20)}
    assert {tuple(job[:2]) for job in kept} == {tuple(job[:2]) for job in jobs}
    assert unlike([["policy=hpa"], ["policy=ppo"]]) == [["policy=hpa"], ["policy=ppo"]], "no seed is swept"
