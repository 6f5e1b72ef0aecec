"""``fedethos predict``: a run's released adapter answers a typed prompt, or the rows of a file."""

from __future__ import annotations

import json
from contextlib import ExitStack
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedethos.escaping import escaped

if TYPE_CHECKING:
    from fedethos.simulations.predict import Answer, Predictor


def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    prompt: Annotated[str | None, typer.Option("--prompt", help="A text to answer or classify.")] = None,
    choices: Annotated[
        list[str] | None, typer.Option("--choice", metavar="TEXT", help="With --prompt: an option of multiple-choice; give it again.")
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", help="A table with the columns of the job's prompts.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="With --file: write JSONL there instead of printing it.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=8192, help="Longest answer of a language model, in tokens.")] = 128,
    temperature: Annotated[float, typer.Option(min=0.0, max=10.0, help="0: always the likeliest next token.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of answers that are drawn, with a temperature.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="With --prompt: print as JSON.")] = False,
) -> None:
    """Answer with the adapter that RUN released: text of a language model is streamed, a file is answered line by line as JSONL.

    The adapter is used only with the base model that it was trained on, and only if all its tensors fit.
    """
    if (prompt is None) == (file is None):
        raise typer.BadParameter("Give --prompt or --file.")
    if (choices or as_json) and prompt is None:
        raise typer.BadParameter("--choice and --json belong to --prompt.")
    if out is not None and file is None:
        raise typer.BadParameter("--out belongs to --file.")
    from fedethos.progress import Progress
    from fedethos.runfolder import RunFolder

    with ExitStack() as stack:
        with Progress() as progress:
            progress.stage("Loading libraries")
            from fedethos.client.writer import Decoding
            from fedethos.simulations.evaluate import open_released
            from fedethos.simulations.predict import Predictor

            released = stack.enter_context(open_released(RunFolder(run), progress))
        predictor = Predictor(released, Decoding(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed))
        if prompt is not None:
            _answer(predictor, prompt, tuple(choices or ()), as_json=as_json)
        elif file is not None:
            _answer_rows(predictor, file, out)


def _answer(predictor: Predictor, prompt: str, choices: tuple[str, ...], *, as_json: bool) -> None:
    predictor.require_fitting(choices)
    writer = predictor.writer
    if writer is None:
        answer = predictor.typed(prompt, choices)
    elif as_json:
        answer = {"text": next(writer.write([predictor.prompt(prompt)], predictor.decoding))[0][1]}
    else:
        writer.stream(predictor.prompt(prompt), predictor.decoding, lambda text: typer.echo(_shown(text), nl=False))
        typer.echo()
        return
    if as_json:
        typer.echo(json.dumps(answer, ensure_ascii=False))
        return
    typer.echo(answer["label"])
    for name, chance in answer["probabilities"].items():
        typer.echo(f"  {chance:.3f}  {name}")


def _shown(text: str) -> str:
    """What a model wrote, for a terminal: a control character, which could move the cursor or set colours, as its escape."""
    return escaped(text, ("Cc",), but="\n\t")


def _answer_rows(predictor: Predictor, file: Path, out: Path | None) -> None:
    answers = predictor.rows(file)
    first = list(islice(answers, 1))  # whatever is refused is refused before it, and leaves an earlier file as it is
    if out is None:
        for answer in chain(first, answers):
            typer.echo(_line(answer), nl=False)
        return
    with out.open("w", encoding="utf-8") as stream:
        written = sum(stream.write(_line(answer)) > 0 for answer in chain(first, answers))
    typer.echo(f"{written:,} answers in {out}")


def _line(answer: Answer) -> str:
    return json.dumps(answer, ensure_ascii=False) + "\n"
