"""Means, intervals and tests against arithmetic done by hand, scipy, and brute force."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from contextseg.errors import ContextsegError
from contextseg.evaluation.statistics import (
    case_values,
    contrasts,
    describe,
    holm,
    paired_tests,
    signed_rank,
)
from contextseg.evaluation.tables import latex, markdown, results, save_results
from contextseg.metrics import METRICS, Metric, summarise


def rows(
    method: str, values: dict[str, list[float]], seed: int = 0, klass: str = "liver", **more: Any
) -> pd.DataFrame:
    """A case for each value, of a metric for each key."""
    n = len(next(iter(values.values())))
    cases = [f"c{i:02d}" for i in range(n)]
    head = {"method": method, "seed": seed, "case": cases, "class": klass, "status": "both"}
    return pd.DataFrame(head | values | more)


def noise(n: int, seed: int) -> list[float]:
    return np.random.default_rng(seed).uniform(0.5, 0.9, n).tolist()


# --- means ----------------------------------------------------------------------------------------


def test_mean_over_cases_then_over_seeds() -> None:
    """Seeds: 0.6 and 0.8 (mean 0.7), 0.7 and 1.0 (0.85). Mean 0.775; their sd 0.15 / sqrt 2."""
    table = pd.concat([rows("a", {"dsc": [0.6, 0.8]}, 0), rows("a", {"dsc": [0.7, 1.0]}, 1)])
    [line] = describe(table, metrics=["dsc"]).to_dict("records")
    assert line["mean"] == pytest.approx(0.775)
    assert line["sd"] == pytest.approx(0.15 / 2**0.5)
    assert (line["n"], line["patients"], line["repetitions"], line["n_rows"]) == (2, 2, 2, 4)
    assert (line["low"], line["high"]) == pytest.approx(
        (0.65, 0.9)
    )  # both times the first case; both times the second


def test_one_seed_is_what_the_engine_says() -> None:
    table = pd.concat(
        [
            rows("a", {"dsc": noise(7, 0), "hd95_mm": noise(7, 1)}, klass="liver"),
            rows("a", {"dsc": noise(7, 2), "hd95_mm": noise(7, 3)}, klass="spleen"),
        ],
        ignore_index=True,
    )
    table.loc[3, ["status", "dsc", "hd95_mm"]] = ["missed", 0.0, 400.0]
    table.loc[9, ["status", "dsc", "hd95_mm"]] = ["absent", np.nan, np.nan]
    ours = describe(table, metrics=["dsc", "hd95_mm"]).set_index(["class", "metric"])
    theirs = summarise(table, by=["method"]).set_index(["class", "metric"])
    assert list(ours.index) == list(theirs.index)
    for column in ("mean", "n", "n_missed", "n_spurious", "n_absent"):
        np.testing.assert_allclose(ours[column], theirs[column])
    assert ours.loc[("liver", "dsc"), "n_missed"] == 1
    assert ours.loc[("spleen", "dsc"), "n"] == 6
    assert ours.loc[("overall", "dsc"), "n_rows"] == 14


def test_folds_are_one_repetition_and_what_lacks_a_class_has_no_overall() -> None:
    one = rows("a", {"dsc": [0.5, 0.7]}, fold=[0, 1])
    two = rows("a", {"dsc": [0.9, 0.9]}, klass="spleen", fold=[0, 1])
    alone = rows("b", {"dsc": [0.5, 0.7]})
    found = describe(pd.concat([one, two, alone]), metrics=["dsc"]).set_index(["method", "class"])
    assert found.loc[("a", "liver"), "repetitions"] == 1
    assert found.loc[("a", "overall"), "mean"] == pytest.approx((0.7 + 0.8) / 2)
    assert ("b", "overall") not in found.index


def test_one_case_one_seed_and_no_value() -> None:
    [line] = describe(rows("a", {"dsc": [0.8], "nsd": [np.nan]}), metrics=["dsc"]).to_dict(
        "records"
    )
    assert line["mean"] == 0.8
    assert np.isnan([line["sd"], line["low"], line["high"]]).all()
    [line] = describe(rows("a", {"nsd": [np.nan]}), metrics=["nsd", "hd95_mm"]).to_dict("records")
    assert line["n"] == 0
    assert np.isnan([line["mean"], line["low"]]).all()


# --- intervals ------------------------------------------------------------------------------------


def test_interval_is_scipys() -> None:
    values = noise(15, 4)
    [line] = describe(rows("a", {"dsc": values}), metrics=["dsc"], seed=7).to_dict("records")
    want = stats.bootstrap(
        (np.array(values),),
        np.mean,
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert line["low"] == pytest.approx(want.low, abs=0.004)
    assert line["high"] == pytest.approx(want.high, abs=0.004)


def test_interval_by_brute_force() -> None:
    """Two seeds, a value missing, a patient with two cases: draw patients, take all their rows,
    and average again.
    """
    table = pd.concat([rows("a", {"dsc": noise(9, s)}, s) for s in (0, 1)], ignore_index=True)
    table["patient"] = table["case"].replace({"c08": "c07"})
    table.loc[4, "dsc"] = np.nan
    rng, means = np.random.default_rng(3), []
    groups = dict(list(table.groupby("patient")))
    for _ in range(1500):
        drawn = pd.concat([groups[p] for p in rng.choice(list(groups), len(groups))])
        means.append(drawn.groupby("seed")["dsc"].mean().mean())
    [line] = describe(table, metrics=["dsc"]).to_dict("records")
    assert line["patients"] == 8
    np.testing.assert_allclose(
        [line["low"], line["high"]], np.quantile(means, [0.025, 0.975]), atol=0.012
    )
    [narrow] = describe(table, metrics=["dsc"], level=0.5).to_dict("records")
    np.testing.assert_allclose(
        [narrow["low"], narrow["high"]], np.quantile(means, [0.25, 0.75]), atol=0.012
    )


def test_patients_are_drawn_whole() -> None:
    """Four scans each of two patients, all 0 and all 1: a quarter of resamples is all 0; of
    single scans, 1 in 256.
    """
    table = rows("a", {"dsc": [0.0] * 4 + [1.0] * 4})
    [scans] = describe(table, metrics=["dsc"]).to_dict("records")
    [patients] = describe(table.assign(patient=["p"] * 4 + ["q"] * 4), metrics=["dsc"]).to_dict(
        "records"
    )
    assert (patients["low"], patients["high"]) == (0, 1)
    assert 0 < scans["low"] < scans["high"] < 1


def test_a_seed_repeats_the_interval() -> None:
    table = rows("a", {"dsc": noise(20, 5)})
    assert describe(table, metrics=["dsc"]).equals(describe(table, metrics=["dsc"]))
    assert not describe(table, metrics=["dsc"]).equals(describe(table, metrics=["dsc"], seed=1))


# --- tests ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 5, 9, 40])
def test_signed_rank_is_scipys_exact(n: int) -> None:
    d = np.random.default_rng(n).normal(0.3, 1, n)
    p, effect = signed_rank(d)
    assert p == pytest.approx(stats.wilcoxon(d, method="exact").pvalue)
    assert np.sign(effect) == np.sign(stats.rankdata(abs(d)) @ np.sign(d))


@pytest.mark.parametrize(
    "d",
    [[1, 1, -1, 2, 2, -3, 3], [0, 0, 1, -2, 2, 5], [0, 0.5], [0, 0, 0, 4, 4, 4, 4, -4], [1, -1]],
)
def test_signed_rank_with_ties_and_zeros_by_all_signs(d: list[float]) -> None:
    ranks = stats.rankdata(np.abs(d)) * (np.array(d) != 0)
    sums = [ranks @ (np.array(signs) > 0) for signs in product([-1, 1], repeat=len(d))]
    larger = max(ranks @ (np.array(d) > 0), ranks @ (np.array(d) < 0))
    want = min(1, 2 * np.mean(np.array(sums) >= larger))
    p, effect = signed_rank(d)
    assert p == pytest.approx(want)
    assert effect == pytest.approx(ranks @ np.sign(d) / (len(d) * (len(d) + 1) / 2))


def test_signed_rank_of_many_is_scipys_approximation() -> None:
    d = np.round(np.random.default_rng(0).normal(0.05, 1, 300), 1)  # with zeros and ties
    assert (d == 0).any()
    p, _ = signed_rank(d)
    assert p == pytest.approx(stats.wilcoxon(d, zero_method="pratt", method="asymptotic").pvalue)
    exact, _ = signed_rank(d[:200])
    assert exact == pytest.approx(
        stats.wilcoxon(d[:200], zero_method="pratt", method="asymptotic").pvalue, abs=0.005
    )


def test_signed_rank_of_little() -> None:
    for few in ([], [1.0], [np.nan, 1.0]):
        assert np.isnan(signed_rank(few)).all()
    assert signed_rank([0.0, 0.0, 0.0]) == (1.0, 0.0)
    assert signed_rank([0.0] * 300) == (1.0, 0.0)
    assert signed_rank([1.0, np.nan, 2.0])[0] == 0.5  # two of four assignments are as extreme
    assert signed_rank([1e-15, 0.3 - 0.2, 0.1]) == signed_rank(
        [0, 1, 1]
    )  # rounding makes neither rank nor sign


def test_holm_by_hand() -> None:
    """Sorted 0.01, 0.02, 0.03, 0.04: times 4, 3, 2, 1 are 0.04, 0.06, 0.06, 0.04; never falling:
    0.06 at the end.
    """
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == pytest.approx([1, 1])
    found = holm([0.01, np.nan, 0.02])
    assert found[[0, 2]] == pytest.approx([0.02, 0.02])
    assert np.isnan(found[1])
    assert len(holm([])) == 0


# --- contrasts ------------------------------------------------------------------------------------


def test_a_contrast_by_hand() -> None:
    """Six patients, a better by 0.1 to 0.6: 2 of 64 sign patterns are as extreme. HD95 too, of
    which less is better.
    """
    worse = np.full(6, 0.2)
    better = worse + np.arange(1, 7) / 10
    table = pd.concat(
        [
            rows("a", {"dsc": better, "hd95_mm": 10 - better}),
            rows("b", {"dsc": worse, "hd95_mm": 10 - worse}),
        ]
    )
    dsc, hd95 = contrasts(table, metrics=["dsc", "hd95_mm"]).to_dict("records")
    assert (dsc["a"], dsc["b"], dsc["n"], dsc["n_zero"]) == ("a", "b", 6, 0)
    assert dsc["difference"] == pytest.approx(0.35)
    assert dsc["p"] == pytest.approx(2 / 64)
    assert dsc["p_holm"] == hd95["p_holm"] == pytest.approx(4 / 64)
    assert (dsc["effect"], hd95["effect"]) == (1, 1)
    assert hd95["difference"] == pytest.approx(-0.35)
    assert hd95["low"] == pytest.approx(-dsc["high"])
    assert dsc["low"] == pytest.approx(
        describe(rows("d", {"dsc": better - worse}), metrics=["dsc"])["low"][0]
    )


def test_seeds_are_averaged_before_the_test_and_patients_are_the_unit() -> None:
    """a - b by case: seeds 0.2 and 0.0 give 0.1; two scans of one patient, 0.3 and -0.1, give
    0.1.
    """
    table = pd.concat(
        [
            rows("a", {"dsc": [0.7, 0.8, 0.4]}, 0),
            rows("a", {"dsc": [0.5, 0.8, 0.4]}, 1),
            rows("b", {"dsc": [0.5, 0.5, 0.5]}, 0),
        ]
    ).assign(patient=["p", "q", "q"] * 3)
    [line] = contrasts(table, metrics=["dsc"]).to_dict("records")
    assert (line["n"], line["difference"]) == (2, pytest.approx(0.1))
    assert line["p"] == 0.5
    assert (line["low"], line["high"]) == pytest.approx((0.1, 0.1))


def test_a_right_absence_is_won_against_one_made_up() -> None:
    """A liver that is not there:

    "a" leaves it out in both seeds, "b" makes it up in one: 1 against 1/2.
    """
    right = rows(
        "a", {"dsc": [0.5, np.nan], "hd95_mm": [9.0, np.nan], "sen": [0.5, np.nan]}
    ).assign(status=["both", "absent"])
    wrong = rows("b", {"dsc": [0.5, 0.0], "hd95_mm": [9.0, 50.0], "sen": [0.5, np.nan]}).assign(
        status=["both", "spurious"]
    )
    table = pd.concat([right, right.assign(seed=1), wrong, right.assign(method="b", seed=1)])
    found = contrasts(table, metrics=["dsc", "hd95_mm", "sen"]).set_index("metric")
    assert found["n"].tolist() == [2, 2, 1]
    assert found["difference"].tolist() == pytest.approx([0.25, -12.5, 0])
    means = describe(table, metrics=["dsc"]).set_index("method")
    assert means.loc["a", "mean"] == 0.5
    assert means.loc["a", "n_absent"] == 2
    assert contrasts(pd.concat([right, right.assign(method="b")]), metrics=["dsc"])[
        "n"
    ].tolist() == [1]


def test_volume_differences_are_compared_by_their_size() -> None:
    table = pd.concat([rows("a", {"rvd": [-0.1, 0.1]}), rows("b", {"rvd": [0.3, -0.3]})])
    [line] = contrasts(table, metrics=["rvd"]).to_dict("records")
    assert line["difference"] == pytest.approx(-0.2)
    assert line["effect"] == 1


def test_only_what_agrees_is_compared_and_holm_counts_a_class() -> None:
    parts = [
        rows(m, {"dsc": noise(6, i), "nsd": noise(6, 9 + i)}, klass=k).assign(budget=b)
        for i, (m, b, k) in enumerate(product("abc", ["5", "10"], ["liver", "spleen"]))
    ]
    found = contrasts(
        pd.concat(parts), by=["method", "budget"], within=["budget"], metrics=["dsc", "nsd"]
    )
    assert len(found) == 3 * 2 * 2 * 3  # pairs, budgets, metrics, classes with overall
    assert set(zip(found["a"], found["b"])) == {("a", "b"), ("a", "c"), ("b", "c")}
    for _, lines in found.groupby("class"):
        assert lines["p_holm"].to_numpy() == pytest.approx(holm(lines["p"].to_numpy()))
        assert len(lines) == 12


def test_nothing_to_compare() -> None:
    assert contrasts(rows("a", {"dsc": [0.5]}), metrics=["dsc"]).empty
    table = pd.concat([rows("a", {"dsc": [0.5, np.nan]}), rows("b", {"dsc": [0.7, 0.1]})])
    [line] = contrasts(table, metrics=["dsc"]).to_dict("records")
    assert (line["n"], line["difference"]) == (1, pytest.approx(-0.2))
    assert np.isnan([line["p"], line["p_holm"], line["low"], line["effect"]]).all()


# --- the values behind means and tests ------------------------------------------------------------


def grid(metrics: tuple[str, ...] = tuple(METRICS)) -> pd.DataFrame:
    """Two methods, budgets, seeds and classes, six cases of four patients; failures too."""
    parts = []
    for i, (m, b, s, k) in enumerate(product("ab", ["5", "10"], [0, 1], ["liver", "spleen"])):
        values = {name: noise(6, 100 * i + j) for j, name in enumerate(metrics)}
        part = rows(m, values, s, k, budget=b, patient=[*"ppqqrs"])
        if (m, s, k) == ("a", 1, "spleen"):
            part.loc[2, "status"] = "spurious"
        elif k == "spleen":
            part.loc[2, "status"] = "absent"
            part.loc[2, list(metrics)] = np.nan
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def test_the_differences_are_those_of_the_tests() -> None:
    """Of every metric, class, budget and pair: as many as were tested, with the test's mean."""
    given: dict[str, Any] = {"by": ["method", "budget"], "within": ["budget"], "resamples": 5}
    tests, differences = paired_tests(grid(), **given)
    keys = ["budget", "class", "metric", "a", "b"]
    summed = differences.groupby(keys)["difference"].agg(["mean", "count"])
    assert len(summed) == len(tests) == 2 * 3 * len(METRICS)
    for line in tests.to_dict("records"):
        mean, count = summed.loc[tuple(line[key] for key in keys)]
        assert count == line["n"] == 4
        assert mean == pytest.approx(line["difference"], abs=1e-12)
    pd.testing.assert_frame_equal(tests, contrasts(grid(), **given))


def test_a_difference_has_its_patient() -> None:
    table = pd.concat([rows("a", {"dsc": [0.9, 0.7, 0.4]}), rows("b", {"dsc": [0.5, 0.5, 0.6]})])
    table = table.assign(patient=[*"ppq"] * 2)
    _, differences = paired_tests(table, metrics=["dsc"])
    assert dict(zip(differences["patient"], differences["difference"])) == pytest.approx(
        {"p": 0.3, "q": -0.2}
    )


def test_case_values_are_those_of_the_means() -> None:
    """Of a single repetition, the mean over its cases; a failure in any repetition is one."""
    table = grid(("dsc", "sen", "hd95_mm", "rvd"))
    single = table[table["seed"] == 1]
    values = case_values(single, by=["method", "budget"])
    means = describe(single, by=["method", "budget"], resamples=5)
    keys = ["method", "budget", "class", "metric"]
    summed = values.groupby(keys)["value"].agg(["mean", "count"])
    for line in means.to_dict("records"):
        mean, count = summed.loc[tuple(line[key] for key in keys)]
        assert count == line["n"]
        assert mean == pytest.approx(line["mean"])
    failed = case_values(table, metrics=["dsc"]).set_index(["method", "class", "case"])["failed"]
    assert failed[failed].index.tolist() == [
        ("a", "spleen", "c02"),
        ("a", "overall", "c02"),
    ]


def test_case_values_leave_out_what_is_endless_or_missing() -> None:
    table = pd.concat([rows("a", {"hd95_mm": [3.0, np.inf, np.nan]}), rows("a", {"dsc": [0.5]})])
    values = case_values(table, metrics=["hd95_mm"])
    assert values["value"].tolist() == [3.0]
    assert case_values(table, metrics=["nsd"]).empty


def test_the_direction_of_every_metric_is_the_catalogues() -> None:
    """The first is better by 0.1 of its size: the effect is 1, whichever way is better."""
    for name, metric in METRICS.items():
        better, worse = (0.9, 0.8) if metric.direction == "higher" else (0.8, 0.9)
        table = pd.concat([rows("a", {name: [better] * 4}), rows("b", {name: [worse] * 4})])
        [line] = contrasts(table, metrics=[name]).to_dict("records")
        assert line["effect"] == 1, name


def test_a_new_metric_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = Metric("toy", "Toy score", 2, "mm", "lower", best=0.0)
    monkeypatch.setitem(METRICS, "toy", toy)
    table = pd.concat([rows("a", {"toy": [1.0] * 6}), rows("b", {"toy": [2.0] * 6})])
    page = markdown(results(table, data="d", split="s", metrics=["toy"]))
    assert "| Method | Toy score, mm ↓ | Missed |" in page
    assert "| a | **1.00** [1.00, 1.00] |" in page
    assert "| a - b | Toy score, mm | 6 | -1.00 [-1.00, -1.00] | 1.00 |" in page


# --- tables ---------------------------------------------------------------------------------------


def scores(method: str, dsc: list[float], budget: str = "all", seed: int = 0) -> pd.DataFrame:
    cases = [f"c{i}" for i in range(len(dsc))]
    return pd.DataFrame(
        {
            "method": method,
            "budget": budget,
            "seed": seed,
            "case": cases,
            "class": "liver",
            "status": "both",
        }
    ).assign(dsc=dsc, hd95_mm=[10 * (1 - d) for d in dsc])


def rows_of(page: str) -> dict[str, list[str]]:
    lines = [
        [cell.strip() for cell in line.strip("| ").split(" | ")]
        for line in page.split("###")[0].splitlines()
    ]
    return {line[0]: line[1:] for line in lines if len(line) > 3 and not line[0].startswith("---")}


def test_bold_is_the_best_that_the_test_confirms() -> None:
    """Eight patients.

    Best by 0.1 to 0.17 in each: p = 2/256 twice, times 6 tests of the table: 0.047.
    """
    low = np.linspace(0.3, 0.5, 8)
    better, close = (
        low + np.arange(10, 18) / 100,
        low + np.array([1, -2, 3, -4, 5, -6, 7, -8]) / 1000,
    )
    table = pd.concat(
        [
            scores("low", low.tolist()),
            scores("best", better.tolist()),
            scores("close", close.tolist()),
        ]
    )
    found = results(table, data="d", split="s", metrics=["dsc", "hd95_mm"])
    assert found.tests("liver") == 6
    page = rows_of(markdown(found))
    assert [
        ("**" in page[name][0], "**" in page[name][1]) for name in ("low", "best", "close")
    ] == [
        (False, False),
        (True, True),
        (False, False),
    ]
    again = results(
        pd.concat([table, scores("more", (better + 0.001).tolist())]), data="d", split="s"
    )
    assert "**" not in markdown(again).split("###")[0]  # with twelve tests nothing is sure enough
    assert "**" not in markdown(results(scores("one", better.tolist()), data="d", split="s"))


def test_bold_competes_within_its_budget() -> None:
    low = np.linspace(0.3, 0.5, 10)
    parts = [
        scores("a", (low + 0.01 * np.arange(1, 11)).tolist(), "5"),
        scores("b", low.tolist(), "5"),
    ]
    parts += [scores("b", (low + 0.3).tolist(), "10"), scores("b", (low + 0.4).tolist(), "all")]
    page = markdown(results(pd.concat(parts), data="d", split="s", metrics=["dsc"]))
    lines = [line for line in page.split("###")[0].splitlines() if line.startswith(("| a", "| b"))]
    assert [line.split(" | ")[:2] for line in lines] == [
        ["| a", "5"],
        ["| b", "5"],
        ["| b", "10"],
        ["| b", "all"],
    ]
    assert ["**" in line for line in lines] == [True, False, False, False]


def test_latex_is_balanced_and_escaped(tmp_path: Path) -> None:
    table = pd.concat([scores("a_b & 50%", [0.5, 0.6], "5"), scores("c", [0.4, 0.7], "all")])
    found = results(table, data="set_1", split="test split")
    text = latex(found)
    assert r"a\_b \& 50\% & 5 & 0.550 [0.500, 0.600]" in text
    assert r"set\_1, test split" in text
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
    columns = text.split(r"\begin{tabular}{")[1].split("}")[0]
    for line in text.split(r"\midrule")[1].split(r"\\")[:-1]:
        assert line.replace(r"\&", "").count("&") == len(columns) - 1
    assert text.isascii()
    save_results(found, tmp_path, "x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x-pairs.csv", "x.csv", "x.md", "x.tex"]


def test_counts_stand_beside_the_means() -> None:
    table = scores("a", [0.5, 0.0, np.nan]).assign(status=["both", "missed", "absent"])
    page = rows_of(markdown(results(table, data="d", split="s")))
    assert page["a"][-3:] == ["1/3", "0", "1"]
    assert page["a"][0].startswith("0.250")


def test_tables_of_nothing() -> None:
    with pytest.raises(ContextsegError, match="nothing to compare"):
        results(pd.DataFrame(), data="d", split="s")
    with pytest.raises(ContextsegError, match="no such metric"):
        results(scores("a", [0.5]), data="d", split="s", metrics=["dice"])
