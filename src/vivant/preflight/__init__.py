"""What can be refused before any tensor is read: `pia` and `consisid`, and what both ask."""
