"""One record of an export, and its faces: terminal, JSON, Markdown, HTML. No torch in here."""
