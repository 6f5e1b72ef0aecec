"""What a site's own records look like before anything is trained: a node-only audit, nothing of it leaves.

``table.py`` is what every measure reads, ``audit.py`` runs them all, ``findings.py`` says in sentences what to look at.
"""
