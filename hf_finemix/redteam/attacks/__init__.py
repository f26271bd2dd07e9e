"""Making backdoored models to test defenses with, one attack a file."""
