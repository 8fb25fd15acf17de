"""`python -m nfqguard`: the same command line as the installed program's."""
from nfqguard.cli import main

main(prog_name="nfqguard")
