"""Records: files to text, labels, groups and people. Start at ``fedethos.data.readers``."""
