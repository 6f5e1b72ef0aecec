"""A finished run with plausible numbers: five sites, six rounds, sex and race; written through the run folder itself."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from fedethos.governance.report import render_report
from fedethos.runfolder import RunFolder

JOB = Path(__file__).parents[2] / "simulations" / "jobs" / "adult.yaml"
HASH = "3f1a9c5e7b2d4860a1c3e5f7092b4d6f8a0c2e4f6183a5c7d9ebfd1032547698"
DELTA = 1.0e-5
SITE_SIZES = {"site-1": 1800, "site-2": 1300, "site-3": 900, "site-4": 1100, "site-5": 700}
RATES = {  # group: (count, selection rate, true-positive rate, false-positive rate, accuracy)
    "sex": {
        "Female": (975, 0.131, 0.640, 0.069, 0.892),
        "Male": (1962, 0.318, 0.704, 0.152, 0.793),
        "unknown": (0, None, None, None, None),
    },
    "race": {
        "White": (2511, 0.271, 0.695, 0.128, 0.821),
        "Black": (276, 0.133, 0.610, 0.071, 0.886),
        "Asian-Pac-Islander": (93, 0.290, 0.731, 0.132, 0.806),
        "Amer-Indian-Eskimo": (31, 0.129, 0.500, 0.080, 0.871),
        "Other": (26, 0.115, None, 0.045, 0.885),
        "unknown": (0, None, None, None, None),
    },
}
GAPS = {
    "sex": {
        "demographic_parity_difference": (0.187, 0.158, 0.216),
        "demographic_parity_ratio": (0.412, 0.345, 0.489),
        "equalized_odds_difference": (0.083, 0.052, 0.131),
        "equal_opportunity_difference": (0.064, 0.010, 0.131),
    },
    "race": {
        "demographic_parity_difference": (None, 0.061, 0.302),
        "demographic_parity_ratio": (None, 0.221, 0.871),
        "equalized_odds_difference": (None, 0.070, 0.481),
        "equal_opportunity_difference": (None, 0.070, 0.481),
    },
}


@dataclass(frozen=True)
class Story:
    """What a test may change about the sample run."""

    name: str = "adult-income"
    mode: str = "local"
    basis: str = "oracle"
    group_aware: bool = False
    secure_rng: bool = False
    status: str = "completed"
    site_suffix: str = ""
    group_suffix: str = ""
    sentence: str = (
        "Men are approved more often than women: 31.8 % against 13.1 %, a demographic-parity difference of 0.187 (0.158 to 0.216)."
    )
    validation_released: bool = True


MakeRun = Callable[..., RunFolder]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """``make_run(folder="run", **changes of Story)`` writes the run and returns its folder, unlocked."""

    def make(folder: str = "run", **changes: object) -> RunFolder:
        return write_sample_run(tmp_path / folder, replace(Story(), **changes))

    return make


@pytest.fixture(scope="session")
def page_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """``page_of(**changes of Story)``: the report of a sample run, drawn once per story."""

    @functools.cache
    def draw(story: Story) -> str:
        run = write_sample_run(tmp_path_factory.mktemp("report") / "run", story)
        return render_report(run.path).read_text(encoding="utf-8")

    return lambda **changes: draw(replace(Story(), **changes))


def write_sample_run(path: Path, story: Story) -> RunFolder:
    with RunFolder(path).create() as run:
        run.write_job(JOB.read_text())
        run.write_manifest(_manifest(story))
        for number in range(7):
            run.append_round(_round(number, story))
        run.write_privacy(_privacy(story))
        run.write_fairness(_fairness(story))
        run.write_result(_result(story))
    return RunFolder(path)


def _sites(story: Story) -> dict[str, int]:
    return {name + story.site_suffix: size for name, size in SITE_SIZES.items()}


def _interval(value: float | None, low: float | None, high: float | None) -> dict:
    return {"value": value, "low": low, "high": high, "abstained": value is None}


def _rate(value: float | None, count: int) -> dict:
    if value is None or count < 30:
        return _interval(None, None, None)
    half = round(1.96 * math.sqrt(value * (1 - value) / count), 4)
    return _interval(value, max(round(value - half, 4), 0.0), min(round(value + half, 4), 1.0))


def _attributes(story: Story) -> dict:
    return {
        attribute: {name: _interval(*GAPS[attribute][name]) for name in GAPS[attribute]}
        | {
            "groups": {
                group + story.group_suffix: {"count": count if count >= 11 else None}
                | {name: _rate(value, count) for name, value in zip(("selection_rate", "tpr", "fpr", "accuracy"), rates, strict=True)}
                for group, (count, *rates) in groups.items()
            }
        }
        for attribute, groups in RATES.items()
    }


def _oracle(story: Story) -> dict | None:
    if story.basis == "unprotected":
        return None
    names = ("selection_rate", "tpr", "fpr", "accuracy")
    return {
        "metrics": {"accuracy": 0.826, "balanced_accuracy": 0.776, "f1": 0.661, "roc_auc": 0.871, "worst_group_accuracy": 0.793},
        "baseline": {"accuracy": 0.611, "balanced_accuracy": 0.563, "f1": 0.401, "roc_auc": 0.588, "worst_group_accuracy": 0.570},
        "people": {"train": 5702, "validation": 979, "test": 2937},
        "classes": None,
        "scenarios": {},
        "fairness": {
            attribute: {name: value[0] or 0.21 for name, value in GAPS[attribute].items()}
            | {
                "groups": {
                    group + story.group_suffix: {"count": count}
                    | {
                        name: rate and round(rate * (1.03 if story.basis == "released" else 1.0), 4)
                        for name, rate in zip(names, rates, strict=True)
                    }
                    for group, (count, *rates) in groups.items()
                }
            }
            for attribute, groups in RATES.items()
        },
    }


def _metrics(shift: float = 0.0) -> dict:
    values = {
        "accuracy": (0.826, 0.812, 0.839),
        "balanced_accuracy": (0.776, 0.758, 0.793),
        "f1": (0.661, 0.634, 0.687),
        "roc_auc": (0.871, 0.857, 0.884),
        "worst_group_accuracy": (0.793, 0.775, 0.811),
    }
    return {name: _interval(*(round(value - shift, 4) for value in triple)) for name, triple in values.items()}


def _epsilon(site: int, number: int, story: Story) -> float | None:
    return None if story.mode == "none" else round((7.98 - 0.06 * site) * (0.42 + 0.58 * number / 6), 4)


def _result(story: Story) -> dict:
    return {
        "name": story.name,
        "status": story.status,
        "rounds": 6,
        "seconds": 118.4,
        "engine": "inprocess",
        "basis": story.basis,
        "group_aware": story.group_aware,
        "oracle": _oracle(story),
        "baseline": {} if story.basis == "released" else _metrics(0.24),
        "metrics": _metrics(),
        "fairness": _attributes(story),
        "classes": None,
        "personal": None,
        "scenarios": {},
        "privacy": {
            "unit": "record",
            "adjacency": "add-remove",
            "accountant": None if story.mode == "none" else "pld",
            "secure_rng": story.secure_rng,
            "sites": {
                name: {
                    "epsilon": _epsilon(index, 6, story),
                    "delta": None if story.mode == "none" else DELTA,
                    "steps": 120,
                    "releases": 0 if story.basis == "oracle" else 1,
                }
                for index, name in enumerate(_sites(story))
            },
        },
        "communication": {"bytes_up": 19_713_240, "bytes_down": 22_998_780},
        "aggregation_error": 0.0,
    }


def _states(number: int, sites: list[str]) -> dict:
    states = {} if number == 0 else dict.fromkeys(sites, "sent")
    return states | ({sites[3]: "late"} if number == 4 else {}) | ({sites[1]: "refused"} if number == 2 else {})


def _round(number: int, story: Story) -> dict:
    rise = 1 - math.exp(-number / 1.6)
    sites = list(_sites(story))
    late, refused = number == 4, number == 2
    released = story.validation_released
    return {
        "round": number,
        "seconds": 3.1 if number == 0 else 17.2 + 0.9 * number,
        "sites": _states(number, sites),
        "metrics": {
            "accuracy": round(0.60 + 0.23 * rise, 4) if released else None,
            "balanced_accuracy": round(0.56 + 0.22 * rise, 4) if released else None,
            "f1": round(0.40 + 0.27 * rise, 4) if released else None,
            "roc_auc": round(0.59 + 0.29 * rise, 4) if released else None,
            "worst_group_accuracy": round(0.56 + 0.24 * rise, 4) if released else None,
        },
        "fairness": {
            attribute: {
                "demographic_parity_difference": round(base + 0.12 * rise, 4) if released else None,
                "equalized_odds_difference": round(0.02 + 0.5 * base * rise + 0.02 * math.sin(number), 4) if released else None,
            }
            for attribute, base in (("sex", 0.07), ("race", 0.10))
        },
        "basis": story.basis,
        "epsilon": {name: _epsilon(index, number, story) for index, name in enumerate(sites)} if story.mode != "none" and number else None,
        "bytes_up": 0 if number == 0 else 657_108 * (4 if late or refused else 5),
        "bytes_down": 0 if number == 0 else 657_108 * 5,
        "aggregation_error": 0.0,
        "refusals": [{"site": sites[1], "code": "AGG-702"}] if refused else [],
    }


def _manifest(story: Story) -> dict:
    return {
        "name": story.name,
        "job_sha256": HASH,
        "versions": {
            "fedethos": "0.1.0",
            "flwr": "1.41.0",
            "opacus": "1.6.0",
            "peft": "0.21.2",
            "torch": "2.13.0",
            "transformers": "5.23.0",
        },
        "python": "3.11.9",
        "threads": 1,
        "seed": 7,
        "base_model": {"path": "asset:minilm", "sha256": HASH[::-1]},
        "sites": {
            name: {"declared_size": size, "weight": round(size / sum(SITE_SIZES.values()), 4), "declared": "rounded-from-simulation"}
            for name, size in _sites(story).items()
        },
        "privacy": {name: {"noise_multiplier": 0.9} for name in _sites(story)},
        "basis": story.basis,
        "secure_rng": story.secure_rng,
        "engine": "inprocess",
        "marks": []
        if story.secure_rng
        else ["Simulation, not a guarantee", "Declared sizes were rounded up from the simulation's own data"],
    }


def _privacy(story: Story) -> dict:
    private = story.mode != "none"
    return {
        "mode": story.mode,
        "unit": "record",
        "adjacency": "add-remove",
        "delta": DELTA if private else None,
        "target_epsilon": 8.0 if private else None,
        "max_grad_norm": 1.0 if private else None,
        "secure_rng": story.secure_rng,
        "accountant": "pld" if private else None,
        "sites": {
            name: {
                "epsilon": _epsilon(index, 6, story),
                "delta": DELTA if private else None,
                "steps": 120,
                "sampling_rate": round(64 / size, 4) if private else None,
                "noise_multiplier": round(0.72 + 60 / size, 3) if private else None,
                "declared_size": size,
            }
            for index, (name, size) in enumerate(_sites(story).items())
        },
        "statement": "Whoever sees everything that a site sent learns almost the same whether or not any one record took part: "
        "the odds of any conclusion change by a factor of at most e^8, but for a chance of 1 in 100,000."
        if private
        else "Nothing was done to protect the records. Use this only with public or synthetic data.",
    }


def _fairness(story: Story) -> dict:
    return {
        "threshold": {
            "kind": "pooled",
            "log_odds": -0.5,
            "edge_index": 31,
            "source": "validation histogram, share of positives nearest the base rate",
        },
        "verdict": {
            "state": "measured",
            "sentences": [story.sentence, "By race the gaps are not measurable here: three groups have fewer than 100 test people."],
        },
        "attributes": _attributes(story),
        "min_group_size": 11,
        "tolerance": 0.1,
        "people": {"train": 5702, "validation": 979, "test": 2937},
    }
