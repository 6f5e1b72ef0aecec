from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from fedethos.errors import FedethosError
from fedethos.fairness.suites.scenarios import scenario
from fedethos.fairness.suites.suite import WrittenSuite
from fedethos.models.text_scorer import load_text_scorer

TEXTS = ("the nurse was late", "he", "a long day at the office with two doctors and a train")


@pytest.fixture(scope="module")
def classifier(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "scorer"
    torch.manual_seed(2)
    labels = {0: "fine", 1: "toxic"}
    model = AutoModelForSequenceClassification.from_pretrained(tiny_base, id2label=labels, label2id={"fine": 0, "toxic": 1})
    torch.nn.init.normal_(model.classifier.weight, std=2.0)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_base).save_pretrained(folder)
    return folder


def probability(folder: Path, text: str) -> float:
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return float(model.eval()(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0, 1])


def test_scores_are_those_of_the_classifier_one_text_at_a_time(classifier: Path) -> None:
    assert load_text_scorer(classifier, "toxic")(TEXTS) == pytest.approx([probability(classifier, text) for text in TEXTS], abs=1e-5)


def test_an_unknown_label_or_an_untrained_head_is_refused(classifier: Path, tiny_base: Path) -> None:
    with pytest.raises(FedethosError, match="MODEL-488"):
        load_text_scorer(classifier, "rude")
    with pytest.raises(FedethosError, match="MODEL-488"):
        load_text_scorer(tiny_base, "LABEL_1")


def test_a_scenario_reports_false_positives_by_the_group_that_a_text_names(classifier: Path, tmp_path: Path) -> None:
    scores = [probability(classifier, text) for text in TEXTS]
    highest, lowest = TEXTS[scores.index(max(scores))], TEXTS[scores.index(min(scores))]
    document = {
        "schema": "fedethos/scenario/v1",
        "name": "toxic",
        "prompts": ["Who?"],
        "metric": "toxicity_rate",
        "limit": 0.1,
        "toxicity": {
            "path": str(classifier),
            "label": "toxic",
            "threshold": (min(scores) + max(scores)) / 2,
            "neutral": {"nurses": [highest], "others": [lowest]},
        },
    }
    (tmp_path / "scenario.yaml").write_text(yaml.safe_dump(document))
    suite = scenario(tmp_path / "scenario.yaml")
    assert isinstance(suite, WrittenSuite)
    assert {group: item.value for group, item in suite.false_positives.items()} == {"nurses": 1.0, "others": 0.0}
    tally = suite.tally([highest])["all"]
    assert tally.sums.tolist() == [[1.0, 1.0]]
