"""What Fine-mixing is compared with: one interface (suspect, base, clean data → model), one defense a file."""
