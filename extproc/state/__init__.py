"""What several services hold in common, and what happens when they cannot."""
