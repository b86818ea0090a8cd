"""The report that says of every token why it was kept, as a page and as pictures."""
