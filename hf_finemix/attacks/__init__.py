"""Making backdoored models to test defences with, one attack a file."""
