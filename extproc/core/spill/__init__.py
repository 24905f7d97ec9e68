"""Spill-over to another pool: what is said of it (values), when a request goes (choice), its cost (books)."""
