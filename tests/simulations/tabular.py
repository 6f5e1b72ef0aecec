"""Sections of a small tabular job on the Adult rows of ``write_job``: it trains in a second."""

TABULAR = {
    "task": "tabular-classification",
    "model": {"path": "builtin:linear", "max_length": 128},
    "lora": {"r": 8, "layers_to_transform": None},
    "data": {
        "text": None,
        "features": {
            "age": {"low": 17, "high": 90},
            "education_num": {"mean": 10.0, "scale": 2.5},
            "relationship": ["Wife", "Own-child", "Husband", "Not-in-family", "Other-relative", "Unmarried"],
        },
    },
}
