"""Images drawn by integers alone: the same bytes on every machine."""
