"""``fedethos client ask``: the site's own questions to a released language model, at the site."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fedethos.cli_client_records import AsJson, SiteFile
from fedethos.cli_suites import Items, Seed, SuiteFiles, named, print_scores


def ask(
    job_file: Annotated[Path, typer.Argument(metavar="JOB", help="The job that the adapter was trained with.")],
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="Folder that `fedethos release export` wrote.")],
    site_file: SiteFile = Path("site.yaml"),
    suites: SuiteFiles = None,
    items: Items = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Ask a released language model this site's own questions, such as a scenario of prompts, before it is used here.

    Nothing is sent, no record is read, and no epsilon is spent.
    """
    if not suites:
        raise typer.BadParameter("Name at least one --suite, such as --suite scenario=FILE.")
    chosen = [named(text) for text in suites]
    from fedethos.progress import Progress

    with Progress() as progress:
        progress.stage("Loading libraries")
        from fedethos.documents import load_job
        from fedethos.simulations.evaluate import open_exported
        from fedethos.simulations.suites import SuiteQuestion, ask_suites, open_all
        from fedethos.site import load_site

        question = SuiteQuestion(chosen, items, seed)
        asked = open_all(question)
        job = load_site(site_file).local(load_job(job_file))
        with open_exported(adapter, job, site_file.parent, progress) as released:
            found = ask_suites(released, asked, question, progress)
    if as_json:
        typer.echo(json.dumps({name: scores.model_dump(mode="json") for name, scores in found.items()}, indent=2))
        return
    print_scores(found)
    typer.echo("Nothing was written or sent.")
