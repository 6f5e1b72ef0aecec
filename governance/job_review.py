"""The page of ``fedethos client review``: one self-contained HTML file for those who decide at a site."""

from __future__ import annotations

from fedethos.client.review import Review
from fedethos.client.review_words import headline, parts
from fedethos.governance.pages import template


def job_review(review: Review) -> str:
    """The page as text. Everything in it comes from the job and the site's own document, and is escaped."""
    return template("job_review.html.j2").render(
        name=review.job_name,
        review=review,
        headline=headline(review),
        parts=parts(review),
        page_note=f"Job {review.job_sha256[:16]}, code {review.code_sha256[:16]}",
    )
