"""`python -m lit_spectral` is the command line."""

from lit_spectral.cli import main

if __name__ == "__main__":
    main()
