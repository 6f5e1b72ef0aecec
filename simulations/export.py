"""``fedethos release export``: a finished run's adapter as PEFT reads it, or merged into its base model."""

from __future__ import annotations

import shutil
from pathlib import Path

from fedethos.errors import FedethosError
from fedethos.models.assets import resolve
from fedethos.models.base import content_hash
from fedethos.models.merged import export_merged
from fedethos.runfolder import ADAPTER_FILES, RunFolder
from fedethos.simulations.evaluate import require_base


def export_run(run: Path, out: Path, *, merged: bool) -> None:
    """Write the released model of ``run`` into the new folder ``out``.

    Raises
    ------
    FedethosError
        RUN-903 for an unfinished run, RUN-960 without a usable adapter, RUN-964 when ``out`` exists or there is no base to merge into,
        SEC-601 for another base model than the run's.
    """
    folder = RunFolder(run)
    job, base = folder.parse_job(), Path(folder.read_local().base)
    folder.read_result()
    if out.exists():
        raise FedethosError("RUN-964", "The folder to export to exists already.", where=str(out), fix="Name a new one with --out.")
    if not merged:
        out.mkdir(parents=True)
        for name in ADAPTER_FILES:
            if (folder.adapter / name).is_file():
                shutil.copyfile(folder.adapter / name, out / name)
        return
    if job.task == "tabular-classification":
        raise FedethosError(
            "RUN-964",
            "A tabular model has no base model to be merged into.",
            where="--merged",
            fix="Leave --merged out: the export is the whole model already.",
        )
    model = resolve(job.model.path, base=base)
    require_base(folder, content_hash(model))
    export_merged(model, folder.adapter, out, causal=job.is_language, labels=len(job.data.label.values))
