"""Small changes of networks (LoRA and its relatives): read from files, and merged into weights that can come back."""
