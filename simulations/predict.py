"""``fedethos predict RUN``: the released adapter of a run answers new records. Nothing is measured, and nothing is charged.

Every task answers in its own way: a classifier with labels, multiple-choice with one of the options, the other language models with text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
import pandas as pd

from fedethos.client.examples import Inputs
from fedethos.client.model import margin_of
from fedethos.client.writer import Decoding, TextWriter
from fedethos.data.answers import ChatMessage, dump_chat, open_chats
from fedethos.data.contract import apply_contract
from fedethos.data.readers import read_table
from fedethos.data.records import Records
from fedethos.errors import FedethosError
from fedethos.fairness.histograms import EDGES
from fedethos.job import Job
from fedethos.simulations.evaluate import ReleasedModel

_AT_ONCE = 64


class Answer(TypedDict, total=False):
    """``label`` and ``probabilities`` of all labels, or ``text``; ``row`` where a table was read."""

    row: int
    label: str
    probabilities: dict[str, float]
    text: str


@dataclass(frozen=True)
class Predictor:
    """Answers of a released model (``evaluate.open_released``)."""

    released: ReleasedModel
    decoding: Decoding

    @property
    def writer(self) -> TextWriter | None:
        """What writes free text; None for tasks that choose among labels."""
        return None if self.job.task == "multiple-choice" else self.released.task.writer

    @property
    def job(self) -> Job:
        return self.released.job

    def prompt(self, text: str) -> str:
        """A typed text as the task's prompt."""
        return dump_chat([ChatMessage(role="user", content=text)]) if self.job.data.messages is not None else text

    def require_fitting(self, choices: tuple[str, ...]) -> None:
        """DATA-186 for a typed prompt of a task that reads columns, or choices that do not fit the job."""
        task, most = self.job.task, len(self.job.data.label.values)
        if task == "tabular-classification":
            raise FedethosError(
                "DATA-186", f"The task {task} reads columns, not a typed prompt.", where="--prompt", fix="Give a table with --file."
            )
        if task == "multiple-choice" and not 2 <= len(choices) <= most:
            raise FedethosError(
                "DATA-186",
                f"A typed prompt of multiple-choice needs 2 to {most} choices, and {len(choices)} were given.",
                where="--choice",
                fix="Give --choice TEXT again for each option, or a table with --file.",
            )
        if task != "multiple-choice" and choices:
            raise FedethosError("DATA-186", f"The task {task} has no choices.", where="--choice", fix="Leave --choice out.")

    def typed(self, text: str, choices: tuple[str, ...]) -> Answer:
        """The label of one typed text, and its probabilities; of ``choices`` for multiple-choice. DATA-186 as ``require_fitting``."""
        self.require_fitting(choices)
        labels = self.job.data.label.values
        options = (*choices, *[None] * (len(labels) - len(choices)))
        records = Records(
            text=(self.prompt(text),),
            label=np.zeros(1, dtype=np.int64),
            groups={},
            unit=np.zeros(1, dtype=np.int64),
            identity=np.zeros((1, 32), dtype=np.uint8),
            answers=(options,) if choices else (),
        )
        return next(self._labels(records, [choices] if choices else None))

    def rows(self, path: Path) -> Iterator[Answer]:
        """Answers to the rows of a table that has the columns of the job's prompts; ``row`` counts from 0. Errors as for ``read_table``."""
        if not path.exists():
            raise FedethosError("DATA-101", "The file does not exist.", where=str(path), fix="Correct --file.")
        data = self.job.data.of_questions.model_copy(update={"path": str(path.resolve()), "columns": self.job.data.columns})
        frame = read_table(data, base=Path())
        if self.writer is None:
            for row, answer in enumerate(self._labels(apply_contract(frame, data), None)):
                yield Answer(row=row, **answer)
            return
        for batch in self.writer.write(self._prompts(frame), self.decoding):
            yield from (Answer(row=row, text=text) for row, text in batch)

    def _prompts(self, frame: pd.DataFrame) -> tuple[str, ...]:
        data = self.job.data.of_questions
        if data.messages is None:
            return apply_contract(frame, data).text
        if data.messages not in frame:
            raise FedethosError("DATA-104", f'The data has no column "{data.messages}".', where="data.messages")
        return open_chats(frame[data.messages].tolist())

    def _labels(self, records: Records, shown: list[tuple[str, ...]] | None) -> Iterator[Answer]:
        """``label`` and the ``probabilities`` of all labels; two labels are decided at the released threshold."""
        inputs, labels = self.released.task.inputs(records), self.job.data.label
        for start in range(0, len(records), _AT_ONCE):
            rows = np.arange(start, min(start + _AT_ONCE, len(records)))
            for row, (chosen, chances) in zip(rows, self._decided(inputs, rows), strict=True):
                names = labels.values if shown is None else shown[row]
                yield {"label": names[chosen], "probabilities": {name: chances[place] for place, name in enumerate(names)}}

    def _decided(self, inputs: Inputs, rows: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Iterator[tuple[int, list[float]]]:
        label = self.job.data.label
        logits = self.released.task.model.logits(inputs.batch(rows)).detach()
        chosen = logits.argmax(dim=1).tolist()
        if len(label.values) == 2:
            favored = margin_of(logits, label.favorable_index) >= EDGES[self.released.edge]
            chosen = [label.favorable_index if one else 1 - label.favorable_index for one in favored]
        yield from zip(chosen, logits.double().softmax(dim=1).tolist(), strict=True)
