"""What analyze.py chooses, refuses and says before it compares; and that repeats are not taken for seeds."""

from pathlib import Path

import pytest
from made_up import MadeUp, study_of
from memory import Memory
from test_hypotheses import NODE, tags

import analyze
from gpusched.core.errors import InputError
from gpusched.report import contents
from gpusched.report.analysis import Analysis, Choice, analyse
from gpusched.report.caveats import caveats, without_marked
from gpusched.report.compare import compare, compare_all, pair_up
from gpusched.report.dataset import load
from gpusched.report.statistics import paired
from gpusched.report.tables import to_csv
from gpusched.tracking.store import Store

pytestmark = pytest.mark.slow

QUICK = {"series": False, "trainings": False, "loads": ("low",), "seeds": 3}


def of(store: Store | Memory, study: str | None, **choice: object) -> Analysis:
    return analyse(store, Choice(study=study, allow_synthetic=True, **choice))  # type: ignore[arg-type]


def told(found: Analysis, *words: str) -> str:
    """Return the one caveat that holds all the words."""
    (text,) = [c for c in found.caveats if all(w in c for w in words)]
    return text


def test_an_empty_store_is_refused() -> None:
    with pytest.raises(InputError, match=r"No trials are stored in .* Run some first"):
        analyse(Memory(), Choice())
    with pytest.raises(InputError, match=r"no trials of it are stored .* none yet"):
        analyse(Memory(), Choice(study="main"))


def test_the_newest_real_study_is_taken(memory: Memory) -> None:
    MadeUp(name="real", tags={"synthetic": "false"}, **QUICK).write(memory)
    MadeUp(name="newer", **QUICK).write(memory)
    assert analyse(memory, Choice()).study.name == "real"  # the newer one is made up


def test_two_runs_give_the_same_tables(store: Store) -> None:
    first, second = of(store, "study", all_pairs=True), of(store, "study", all_pairs=True)
    assert {n: to_csv(t) for n, t in first.tables.items()} == {n: to_csv(t) for n, t in second.tables.items()}
    assert first.caveats == second.caveats
    assert list(first.tables) == ["comparison", "tests", "equivalence", "means", "aggregate", "assumptions", "pairs",
                                  "kpis", "trainings", "runs"]  # fmt: skip


def test_tables_need_no_more_than_study_and_comparison(store: Store) -> None:
    study = load(store, "study", allow_synthetic=True)
    plain = contents.tables(study, compare(study, "hpa", "ppo"), ["hpa", "ppo"])
    assert {n: to_csv(t) for n, t in plain.items()} == {
        n: to_csv(t) for n, t in of(store, "study").tables.items()
    }


def test_a_filter_chooses_runs_and_is_told(own: Store) -> None:
    MadeUp(name="wide", series=False, trainings=False, loads=("low", "high"), seeds=3).write(own)
    found = of(own, "wide", query="tags.load = 'high'")
    assert found.study.loads == ["high"]
    assert "6 of 12 trials" in told(found, "Filtered", "tags.load = 'high'")
    by_result = of(own, "wide", query="metrics.reward_mean > -100")
    assert "chosen by its outcome" in told(by_result, "looks at results")
    MadeUp(name="newest of them", tags={"synthetic": "false", "reward": "other"}, **QUICK).write(own)
    assert analyse(own, Choice(query="tags.reward = 'other'")).study.name == "newest of them"


def test_filters_that_cannot_be(own: Store) -> None:
    with pytest.raises(InputError, match=r"--filter .* no trial in .* passes it"):
        analyse(own, Choice(query="tags.policy = 'nobody'"))
    MadeUp(name="sieve", **QUICK).write(own)
    with pytest.raises(InputError, match=r"--filter .*none of the 6 trials of study 'sieve' passes it"):
        of(own, "sieve", query="tags.load = 'nowhere'")
    for query in (
        "tags.load = high",
        "(tags.load = 'high')",
        "load = 'high'",
        "tags.a = 'b' or tags.a = 'c'",
        "high",
    ):
        with pytest.raises(InputError, match=r"filter"):
            of(own, "sieve", query=query)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--study", "sift", "--filter", "tags.load = high"], "filter"),
        (["--study", "sift", "--filter", "tags.load = 'nowhere'"], "none of the 6 trials"),
        (["--study", "sift", "--margin", "-1"], "--margin = -1.0: must be a share greater than 0"),
        (["--study", "sifted"], "Did you mean 'sift'"),
        (["--study", "sift", "--baseline", "static"], "has no run of it that counts. Policies: hpa, ppo."),
    ],
)
def test_mistakes_get_one_message_and_exit_code_2(
    own: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    if "sift" not in own.studies():
        MadeUp(name="sift", tags={"synthetic": "false"}, **QUICK).write(own)
    assert analyze.main(["--uri", own.uri, "--out", str(tmp_path), *args]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_clusters_are_never_pooled(own: Store) -> None:
    MadeUp(name="both", **QUICK).write(own)
    MadeUp(name="both", tags={"cluster": "microk8s"}, **QUICK).write(own)
    with pytest.raises(InputError, match=r"microk8s \(6 runs\), sim \(6 runs\).*never pooled.*--filter"):
        of(own, "both")
    real = of(own, "both", query="tags.cluster LIKE 'microk8s%'")
    assert len(real.study.trials) == 6
    assert real.study.clusters == ["microk8s"]
    assert real.study.excluded == []  # a simulated run is no older version of a real one
    MadeUp(name="set", **QUICK).write(own)
    MadeUp(name="set").trial(own, "hpa", "low", 3, tags={"cluster": "sim[scrape_s=1]"})
    assert "different clusters" in told(of(own, "set"), "sim[scrape_s")


def test_a_failed_run_elsewhere_does_not_stop_a_report(memory: Memory) -> None:
    MadeUp(name="lost", **QUICK).write(memory)
    MadeUp(name="lost").trial(
        memory, "hpa", "low", 0, tags={"cluster": "local", "gate/readiness": "failed: foreign process"}
    )
    found = of(memory, "lost")
    assert len(found.study.trials) == 6
    assert "gate readiness: foreign process" in found.study.excluded[0].why


def test_any_two_policies(memory: Memory) -> None:
    MadeUp(name="three", policies=("hpa", "ppo", "static"), **QUICK).write(memory)
    found = of(memory, "three", baseline="static", candidate="hpa")
    assert found.comparison is not None
    assert (found.comparison.baseline, found.comparison.candidate) == ("static", "hpa")
    assert found.policies == ["static", "hpa", "ppo"]
    everyone = of(memory, "three", all_pairs=True).tables["pairs"]
    assert {(r[0].text, r[1].text) for r in everyone.rows} == {
        ("ppo", "hpa"),
        ("static", "hpa"),
        ("static", "ppo"),
    }
    assert "Holm over all 24 tests" in everyone.notes[0]
    with pytest.raises(InputError, match=r"--candidate stat: .*Did you mean 'static'"):
        of(memory, "three", candidate="stat")
    with pytest.raises(InputError, match=r"both 'hpa'"):
        of(memory, "three", candidate="hpa")


def test_all_pairs_share_one_holm_family() -> None:
    study = study_of({p: {"latency_p95_s": v} for p, v in
                      {"a": [1.0, 1.1, 0.9], "b": [2.0, 2.2, 1.9], "c": [1.0, 1.3, 0.8]}.items()})  # fmt: skip
    rows = [row for c in compare_all(study, ["a", "b", "c"]) for row in c.rows if row.pairs]
    assert len(rows) == 3
    least = min(rows, key=lambda row: row.paired.p)
    assert least.holm_p == pytest.approx(3 * least.paired.p, rel=1e-12)


def test_the_registered_pair_and_margin_are_the_default(memory: Memory) -> None:
    node = NODE | {"candidate": "static", "margin": 0.07}
    MadeUp(name="planned", policies=("hpa", "ppo", "static"), tags=tags(node), **QUICK).write(memory)
    found = of(memory, "planned")
    assert found.comparison is not None
    assert (found.comparison.baseline, found.comparison.candidate) == ("hpa", "static")
    assert "within 7 %" in found.tables["equivalence"].title
    assert next(iter(found.tables)) == "hypotheses"
    assert found.tables["comparison"].notes[0].startswith("Exploratory: what was claimed")
    other = of(memory, "planned", candidate="ppo", margin=0.2)
    assert "ppo against hpa was chosen at the analysis" in told(other, "static against hpa")
    assert "chosen at the analysis; 0.07" in told(other, "margin")
    assert len(other.registered.results) == 4  # judged all the same


def test_without_hypotheses_every_test_is_exploratory(store: Store) -> None:
    found = of(store, "study")
    assert "hypotheses" not in found.tables
    assert found.tables["comparison"].notes[0] == "Exploratory: no claim was written down before the runs."


@pytest.mark.parametrize("margin", [0.0, -0.1, float("nan"), float("inf")])
def test_a_margin_that_is_none(margin: float) -> None:
    with pytest.raises(InputError, match=r"--margin = .*: must be a share greater than 0"):
        Choice(margin=margin)


def test_one_policy_or_no_common_load_is_described_only(memory: Memory) -> None:
    MadeUp(name="alone", policies=("hpa",), **QUICK).write(memory)
    found = of(memory, "alone")
    assert (found.comparison, found.notes) == (None, [])
    assert "Only hpa has runs that count" in found.no_comparison
    assert list(found.tables) == ["means", "kpis", "runs"]
    made = MadeUp(name="apart", series=False)
    made.trial(memory, "hpa", "low", 0)
    made.trial(memory, "ppo", "high", 0)
    assert "no load in common" in of(memory, "apart").no_comparison


def test_a_study_without_the_usual_pair_is_described_unless_a_pair_was_asked_for(memory: Memory) -> None:
    MadeUp(name="rows", policies=("ppo", "ppo[a=1]", "ppo[a=2]"), **QUICK).write(memory)
    found = of(memory, "rows", all_pairs=True)
    assert found.comparison is None
    assert "ppo is not compared with hpa: study 'rows' has no run of hpa that counts" in found.no_comparison
    assert "two of: ppo, ppo[a=1], ppo[a=2]" in found.no_comparison
    assert {"means", "pairs"} <= set(found.tables)  # every two of them are compared all the same
    with pytest.raises(InputError, match=r"--baseline hpa: study 'rows' has no run of it"):
        of(memory, "rows", baseline="hpa")
    with pytest.raises(InputError, match=r"--baseline hpa: .* Policies: ppo, ppo\[a=1\], ppo\[a=2\]"):
        of(memory, "rows", candidate="ppo[a=1]")
    pair = of(memory, "rows", baseline="ppo", candidate="ppo[a=1]")
    assert pair.comparison is not None


def test_conditions_are_told_apart_from_policies(memory: Memory) -> None:
    made = MadeUp(name="mixed up", **QUICK)
    made.write(memory)
    made.trial(memory, "ppo", "low", 0, tags={"service": "other"})
    made.trial(memory, "hpa", "low", 1, tags={"git_commit": "fedcba"})
    made.trial(memory, "ppo", "low", 1, tags={"git_commit": "fedcba"})
    found = of(memory, "mixed up")
    assert "in 1 of 3 cells" in told(found, "different service profiles")
    assert "it does not touch their differences" in told(found, "different commits")


def test_repeats_are_averaged_within_their_seed(memory: Memory) -> None:
    made = MadeUp(name="repeats", episodes=3, **QUICK)
    made.write(memory)
    found = of(memory, "repeats")
    assert len(found.study.trials) == 18
    assert found.study.excluded == []  # a repeat is no older run of the same seed
    assert found.comparison is not None
    row = found.comparison.row("low", "latency_p95_s")
    assert row is not None
    means = {p: [sum(made.values(p, "low", s, e)["latency_p95_s"] for e in range(3)) / 3 for s in range(3)]
             for p in ("hpa", "ppo")}  # fmt: skip
    assert row.pairs == row.baseline.n == 3
    assert row.paired.p == pytest.approx(paired(means["ppo"], means["hpa"]).p, rel=1e-9)
    assert row.baseline.mean == pytest.approx(sum(means["hpa"]) / 3, rel=1e-12)
    assert len(row.runs) == 18
    variance = found.tables["variance"]
    assert {r[2].text for r in variance.rows} == {"hpa", "ppo", "ppo − hpa"}
    assert all(r[3].values[""] == 3 and r[4].values[""] == 9 for r in variance.rows)


def test_pairs_use_the_repeats_both_have() -> None:
    study = study_of({
        "hpa": {"latency_p95_s": [[1.0, 5.0], [2.0, float("nan")]]},
        "ppo": {"latency_p95_s": [[1.5], [2.5, 9.0]]},
    })  # fmt: skip
    pairs = pair_up(study, "low", "latency_p95_s", "hpa", "ppo")
    assert pairs.seeds == (0, 1)
    assert pairs.differences_S.tolist() == [0.5, 0.5]  # 5.0 has no partner, 9.0 a partner without a value
    assert [u.values["latency_p95_s"] for u in study.units("hpa", "low")] == [3.0, 2.0]
    assert any("Unequal repeats per seed" in c for c in caveats(study))


def test_marked_runs_count_and_what_they_change_is_told(memory: Memory) -> None:
    made = MadeUp(name="fallen", series=False, trainings=False, loads=("low",))
    made.write(memory)
    detail = "failed: longest time without fresh metrics 80 s; the configured HPA took over from the policy"
    fallen = made.trial(memory, "ppo", "low", 0, tags={"gate/telemetry": detail})
    found = of(memory, "fallen")
    assert fallen in found.study.ids
    assert "1 of 5 runs of ppo" in told(found, "Marked", "the configured HPA took over")
    assert told(found, "Without the 1 marked runs")
    shadow = made.trial(memory, "ppo", "low", 1, tags={"gate/shadow": "failed: policy.shadow=true"})
    assert shadow not in of(memory, "fallen").study.ids  # its numbers are somebody else's


def test_leaving_marked_runs_out_by_hand() -> None:
    values = {
        "hpa": {"latency_p95_s": [1.0, 1.1, 0.9, 1.0, 1.05]},
        "ppo": {"latency_p95_s": [0.5, 0.6, 0.41, 0.5, 5.0]},
    }
    study = study_of(values)
    last = next(t for t in study.trials if t.policy == "ppo" and t.seed == 4)
    object.__setattr__(last, "marks", ("telemetry: fell back",))
    (text,) = without_marked(study, compare(study, "hpa", "ppo"))
    assert text == (
        "Without the 1 marked runs 1 of 8 decisions would be others: Latency p95 under low: undecided → better."
    )
    assert without_marked(study_of(values), compare(study_of(values), "hpa", "ppo")) == []


def test_every_claim_table_cell_names_runs_of_the_study(memory: Memory) -> None:
    MadeUp(name="sourced", episodes=2, tags=tags(), **QUICK).write(memory)
    found = of(memory, "sourced", all_pairs=True)
    assert {
        "hypotheses",
        "comparison",
        "tests",
        "equivalence",
        "means",
        "aggregate",
        "assumptions",
        "variance",
        "pairs",
    } < set(found.tables)
    for table in found.tables.values():
        assert set(table.runs) <= found.study.ids
    kinds = [r[1].values["kind"] for r in found.tables["hypotheses"].rows]
    assert kinds == ["superior", "non_inferior", "equivalent", "non_inferior"]
